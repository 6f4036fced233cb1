"""Links of the other kinds: what they are as ip sees them, where they lie, what is refused, and how they go."""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
import threading
from contextlib import closing
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

import pytest

import isolib
from isolib import ClosedError, PermissionDenied, PlanError, SyscallError, Unsupported, new_netns
from isolib._kernel import reaper
from isolib.net import kinds, parsing, queries, requests, tap
from isolib.net.sysctl import Sysctls
from isolib.net.veth import new_veth
from tests import oracles, table
from tests.interrupts import interrupt
from tests.kinds import needs, refusal
from tests.nets import socket_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType

    from isolib._kernel.handle import Handle
    from isolib.namespaces import NetNS
    from isolib.net.interface import Interface
    from isolib.net.veth import Veth


class Ground(NamedTuple):
    """Two namespaces with a cable between them."""

    a: NetNS
    b: NetNS
    cable: Veth

    @property
    def wire(self) -> Interface:
        """What links stand on."""
        return self.cable.a


@pytest.fixture
def ground(a: NetNS, b: NetNS) -> Iterator[Ground]:
    """Return what links stand on."""
    with new_veth(a, b, names=("wire", "far"), addresses=("10.0.0.1/24", "10.0.0.2/24")) as cable:
        yield Ground(a, b, cable)


MAKERS: dict[str, Callable[..., Handle]] = {
    "macvlan": lambda ground, **options: kinds.new_macvlan(ground.wire, **options),
    "ipvlan": lambda ground, **options: kinds.new_ipvlan(ground.wire, **options),
    "vlan": lambda ground, **options: kinds.new_vlan(ground.wire, 7, **options),
    "vxlan": lambda _, **options: kinds.new_vxlan(7, **options),
    "dummy": lambda _, **options: kinds.new_dummy(**options),
    "tun": lambda _, **options: tap.new_tun(**options),
    "tap": lambda _, **options: tap.new_tap(**options),
}

NAME = f"zz-{os.getpid()}-it"
"""Of a link in the host's own namespace."""

every_kind = pytest.mark.parametrize("kind", MAKERS)
STANDING = ("macvlan", "ipvlan", "vlan")


@pytest.fixture
def make(ground: Ground) -> Callable[..., Handle]:
    """Return what makes a link of a kind; skip the test where this host has none."""

    def made(kind: str, **options: object) -> Handle:
        needs(kind)
        return MAKERS[kind](ground, **options)

    return made


def seen(ns: NetNS, name: str) -> dict[str, object]:
    """Return a link as ip sees it, whole."""
    (found,) = [one for one in oracles.ip(ns, "link") if one["ifname"] == name]
    return found


def data(ns: NetNS, name: str) -> dict[str, object]:
    """Return what ip says that is of a link's kind."""
    info = seen(ns, name)["linkinfo"]
    assert isinstance(info, dict)
    found: dict[str, object] = info.get("info_data", {})
    return found


# ---- all of them ----


@every_kind
def test_what_the_host_has(ground: Ground, kind: str) -> None:
    """A kind is there where ip can make one, and doctor() says so; elsewhere both say what refuses it."""
    feature = isolib.doctor()["tun" if kind == "tap" else kind]
    assert feature.available == (not refusal(kind)), feature
    if feature.available:
        MAKERS[kind](ground, ns=ground.a).close()
        return
    with pytest.raises(Unsupported) as caught:
        MAKERS[kind](ground, ns=ground.a)
    words = re.findall(r"CONFIG_\w+|/dev/net/tun", feature.refused_by)
    assert words
    assert all(word in caught.value.refused_by for word in words)
    assert kind in {caught.value.feature.removesuffix(" links"), "tun", "tap"}
    assert oracles.names(queries.links(ground.a)) == ["wire"]


@every_kind
def test_link_of_each_kind(ground: Ground, make: Callable[..., Handle], kind: str) -> None:
    """Every field of a link is what ip says; it is up, has its name, MTU and addresses at once, and goes with its handle."""
    options = {} if kind in {"ipvlan", "tun"} else {"mac": "02:00:00:00:00:07"}
    link = make(kind, ns=ground.b, name="it", mtu=1280, addresses=["10.5.0.1/24", "fd05::1/64"], **options)
    with link:
        (route,) = ground.b.netlink().ask(requests.find_route(ip_address("fd05::1"), link.index))  # type: ignore[attr-defined]
        assert parsing.parse_route(route).type == "local"
        (ours,) = [one for one in queries.links(ground.b) if one.name == "it"]
        (theirs,) = [one for one in oracles.links(ground.b) if one.name == "it"]
        for field in ours.__slots__:
            if field not in {"stats", "state", "flags"}:  # which change by themselves
                assert getattr(ours, field) == getattr(theirs, field), field
        assert (ours.kind, ours.mtu, ours.up) == ("tun" if kind == "tap" else kind, 1280, True)
        assert ours.mac == options.get("mac", ours.mac)
        found = {str(one.interface) for one in oracles.addresses(ground.b) if one.index == ours.index}
        assert {"10.5.0.1/24", "fd05::1/64"} <= found
        assert repr(link).startswith(f"<{type(link).__name__} it index={ours.index}")
        assert (link.name, link.index) == ("it", ours.index)  # type: ignore[attr-defined]
    assert oracles.names(queries.links(ground.b)) == ["far"]
    link.close()


@every_kind
def test_name_that_is_taken(ground: Ground, make: Callable[..., Handle], kind: str) -> None:
    """A name that is taken is told, who has it keeps it, and nothing else is left."""
    with pytest.raises(SyscallError) as caught:
        make(kind, ns=ground.b, name="far")
    assert caught.value.errno == errno.EEXIST
    assert caught.value.hint
    assert oracles.names(queries.links(ground.b)) == ["far"]


@every_kind
def test_address_that_the_kernel_refuses(ground: Ground, make: Callable[..., Handle], kind: str) -> None:
    """When the last step fails, the link that was made before it is gone."""
    for name in ("all", "default"):
        Sysctls(ground.b)[f"ipv6/conf/{name}/disable_ipv6"] = True
    with pytest.raises(SyscallError, match="fd00::1/64"):
        make(kind, ns=ground.b, addresses=["10.1.0.1/24", "fd00::1/64"])
    assert oracles.names(queries.links(ground.b)) == ["far"]


@every_kind
@pytest.mark.parametrize(
    "arguments",
    [
        {"name": "x" * 16},
        {"name": ""},
        {"name": "a/b"},
        {"mtu": 67},
        {"mtu": "1500"},
        {"addresses": "10.0.0.1/24"},
        {"addresses": ["10.0.0.1"]},
        {"addresses": ["10.0.0.1/24", "10.0.0.1/24"]},
        {"addresses": [None]},
        {"ns": 7},
    ],
    ids=str,
)
def test_bad_arguments(ground: Ground, kind: str, arguments: dict[str, object]) -> None:
    """What no link can have is refused by the argument's name before anything is done, whatever the host has."""
    with pytest.raises(PlanError, match=next(iter(arguments))):
        MAKERS[kind](ground, **{"ns": ground.a, **arguments})
    assert oracles.names(queries.links(ground.a)) == ["wire"]


@every_kind
def test_closed_namespace(ground: Ground, kind: str) -> None:
    """A closed namespace is told as such."""
    gone = new_netns()
    gone.close()
    with pytest.raises(ClosedError):
        MAKERS[kind](ground, ns=gone)


@every_kind
def test_namespace_that_ends_first(ground: Ground, make: Callable[..., Handle], kind: str) -> None:
    """A link whose namespace has ended can be asked nothing more, and is closed without complaint."""
    with closing(new_netns()) as gone:
        link = make(kind, ns=gone)
    with pytest.raises(ClosedError):
        link.interface.link()  # type: ignore[attr-defined]
    link.close()
    assert link.closed


@every_kind
def test_forgotten_link(ground: Ground, make: Callable[..., Handle], kind: str) -> None:
    """A link that nobody closes is removed when it is collected, with a warning."""
    link = make(kind, ns=ground.b)
    with pytest.warns(ResourceWarning, match="never closed"):
        del link
    assert oracles.names(queries.links(ground.b)) == ["far"]


@every_kind
def test_link_where_the_caller_is(ground: Ground, make: Callable[..., Handle], kind: str, needs_root: None) -> None:
    """In the caller's own namespace a link is entrusted to the reaper until it is closed, but one that its descriptor owns."""
    reaper.pid()  # there is one from here on
    before = set(table.indices())
    with make(kind, name=NAME):
        assert [one.name for one in queries.links() if one.name == NAME]
        assert len(set(table.indices()) - before) == (0 if kind in {"tun", "tap"} else 1)
    assert set(table.indices()) == before
    assert not [one.name for one in queries.links() if one.name == NAME]


def test_ordinary_user_cannot_change_the_host(ground: Ground) -> None:
    """Who may not change the host's namespace is told so."""
    if os.geteuid() == 0:
        pytest.skip("root may")
    with pytest.raises(PermissionDenied, match="CAP_NET_ADMIN"):
        kinds.new_macvlan(ground.wire, name=NAME)
    with pytest.raises(PermissionDenied, match="CAP_NET_ADMIN"):
        kinds.new_vxlan(7, name=NAME)


# ---- those that stand on another ----


@pytest.mark.parametrize("kind", STANDING)
def test_link_below_in_another_namespace(ground: Ground, make: Callable[..., Handle], kind: str) -> None:
    """A link is born in its own namespace, and what it stands on is in another, by whose number it is known."""
    with make(kind, ns=ground.b, name="it"):
        (ours,) = [one for one in queries.links(ground.b) if one.name == "it"]
        assert ours.lower == ground.wire.index
        assert ours.lower_nsid is not None
    with make(kind, ns=ground.a, name="it"):
        (ours,) = [one for one in queries.links(ground.a) if one.name == "it"]
        assert (ours.lower, ours.lower_nsid) == (ground.wire.index, None)


@pytest.mark.parametrize("kind", STANDING)
def test_link_below_that_ends(ground: Ground, make: Callable[..., Handle], kind: str) -> None:
    """A link goes with what it stands on, and is closed without complaint."""
    with make(kind, ns=ground.b, name="it"):
        ground.cable.close()
        assert oracles.names(queries.links(ground.b)) == []


@pytest.mark.parametrize("lower", ["", "x" * 16, 5, None, 1.5])
def test_link_below_that_is_none(ground: Ground, lower: object) -> None:
    """What is no link, and what can be no link's name, is told by the argument's name."""
    for make in (kinds.new_macvlan, kinds.new_ipvlan, lambda one, **options: kinds.new_vlan(one, 7, **options)):
        with pytest.raises(PlanError, match="lower"):
            make(lower, ns=ground.a)  # type: ignore[arg-type]


def test_link_below_that_is_not_there(ground: Ground) -> None:
    """A link below that does not exist is told, and nothing is made."""
    with pytest.raises(SyscallError) as caught:
        kinds.new_macvlan("zz-absent", ns=ground.a)
    assert (caught.value.errno, caught.value.target) == (errno.ENODEV, "zz-absent")


def test_link_below_by_name(ground: Ground, make: Callable[..., Handle], needs_root: None) -> None:
    """A link below may be named, in the namespace of the calling thread."""
    make("macvlan", ns=ground.b).close()
    with new_veth(None, ground.a, names=(NAME, "w")), kinds.new_macvlan(NAME, ns=ground.b, name="it") as link:
        assert link.interface.link().lower_nsid is not None


# ---- each kind's own ----


@pytest.mark.parametrize("mode", ["private", "vepa", "bridge", "passthru"])
def test_modes_of_macvlan(ground: Ground, make: Callable[..., Handle], mode: str) -> None:
    """Each mode is the one that ip names."""
    with make("macvlan", ns=ground.b, name="it", mode=mode) as link:
        assert data(ground.b, "it")["mode"] == mode
        assert link.interface.link().mode == mode  # type: ignore[attr-defined]


def test_macvlans_of_one_link_reach_each_other(ground: Ground, make: Callable[..., Handle]) -> None:
    """Frames go from one namespace to another by two macvlan links of one link in a third."""
    with (
        closing(new_netns()) as third,
        make("macvlan", ns=ground.b, name="it", addresses=["10.6.0.1/24"]),
        make("macvlan", ns=third, name="it", addresses=["10.6.0.2/24"]),
    ):
        assert speaks(ground.b, third, "10.6.0.2")


def speaks(near: NetNS, far: NetNS, address: str) -> bool:
    """Say whether a datagram comes through."""
    with (
        socket_in(far, socket.SOCK_DGRAM) as receiver,
        socket_in(near, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind((address, 9))
        sender.sendto(b"word", (address, 9))
        return receiver.recv(10) == b"word"


@pytest.mark.parametrize("mode", ["l2", "l3", "l3s"])
@pytest.mark.parametrize("isolation", ["bridge", "private", "vepa"])
def test_modes_of_ipvlan(ground: Ground, make: Callable[..., Handle], mode: str, isolation: str) -> None:
    """Each mode and each isolation is the one that ip names."""
    if mode == "l3s":
        needs("ipvlan l3s")
    with make("ipvlan", ns=ground.b, name="it", mode=mode, isolation=isolation):
        found = data(ground.b, "it")
        assert (found["mode"], found.get("flags", isolation)) == (mode, isolation)


@pytest.mark.parametrize(("number", "protocol"), [(1, "802.1Q"), (4094, "802.1Q"), (5, "802.1ad")])
def test_vlan(ground: Ground, make: Callable[..., Handle], number: int, protocol: str) -> None:
    """Number and protocol are those that ip says; the name is made of the number."""
    make("vlan", ns=ground.b).close()
    with kinds.new_vlan(ground.wire, number, ns=ground.b, protocol=protocol) as link:
        assert link.name == f"vlan{number}"
        found = data(ground.b, link.name)
        assert (found["id"], found["protocol"]) == (number, protocol)
        assert link.interface.link().vlan == number
    ground.wire.down()
    with pytest.raises(SyscallError, match="bring it up first"):
        kinds.new_vlan(ground.wire, number, ns=ground.b, protocol=protocol)


@pytest.mark.parametrize("number", [0, 4095, -1, "7", None, True])
def test_numbers_that_no_vlan_has(ground: Ground, number: object) -> None:
    """A number beyond those of VLANs is refused by its name."""
    with pytest.raises(PlanError, match="id"):
        kinds.new_vlan(ground.wire, number, ns=ground.a)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"vni": 0},
        {"vni": 16777215, "port": 1},
        {"vni": 7, "remote": "10.0.0.2", "local": "10.0.0.1", "learning": False, "port": 65535},
        {"vni": 7, "remote": "fd00::2", "local": "fd00::1"},
    ],
    ids=str,
)
def test_options_of_vxlan(ground: Ground, make: Callable[..., Handle], options: dict[str, object]) -> None:
    """Number, ends, port and learning are those that ip says."""
    make("vxlan", ns=ground.a).close()
    with kinds.new_vxlan(ns=ground.a, **options) as link:  # type: ignore[arg-type]
        found = data(ground.a, link.name)
        assert link.name == f"vxlan{options['vni']}"
        assert (found["id"], found["port"], found["learning"]) == (
            options["vni"],
            options.get("port", 4789),
            options.get("learning", True),
        )
        assert found.get("remote", found.get("remote6")) == options.get("remote")
        assert found.get("local", found.get("local6")) == options.get("local")


def test_vxlan_by_a_group_and_a_link(ground: Ground, make: Callable[..., Handle]) -> None:
    """A multicast group is reached by the link that is given, also one in another namespace."""
    make("vxlan", ns=ground.a).close()
    for ns in (ground.a, ground.b):
        with kinds.new_vxlan(9, ns=ns, remote="239.1.1.1", lower=ground.wire) as link:
            found = link.interface.link()
            assert data(ns, link.name)["group"] == "239.1.1.1"
            assert (found.lower, found.lower_nsid is None) == (ground.wire.index, ns is ground.a)


def test_vxlan_carries_frames(ground: Ground, make: Callable[..., Handle]) -> None:
    """What is sent into one end of a vxlan comes out at the other, through the network below."""
    make("vxlan", ns=ground.a).close()
    with (
        kinds.new_vxlan(7, ns=ground.a, remote="10.0.0.2", addresses=["10.6.0.1/24"]),
        kinds.new_vxlan(7, ns=ground.b, remote="10.0.0.1", addresses=["10.6.0.2/24"]),
    ):
        assert speaks(ground.a, ground.b, "10.6.0.2")


@pytest.mark.parametrize(
    "options",
    [
        {"vni": -1},
        {"vni": 1 << 24},
        {"vni": 7, "port": 0},
        {"vni": 7, "port": 65536},
        {"vni": 7, "remote": "x"},
        {"vni": 7, "local": "239.1.1.1"},
        {"vni": 7, "remote": "239.1.1.1"},
        {"vni": 7, "local": "fd00::1", "remote": "10.0.0.1"},
        {"vni": 7, "lower": 5},
    ],
    ids=str,
)
def test_options_that_no_vxlan_has(ground: Ground, options: dict[str, object]) -> None:
    """What a vxlan cannot be is refused by the argument's name."""
    with pytest.raises(PlanError, match=next(reversed(options))):
        kinds.new_vxlan(ns=ground.a, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda wire: kinds.new_macvlan(wire, mode="source"), "mode"),
        (lambda wire: kinds.new_macvlan(wire, mode=4), "mode"),  # type: ignore[arg-type]
        (lambda wire: kinds.new_macvlan(wire, mac="x"), "mac"),
        (lambda wire: kinds.new_ipvlan(wire, mode="bridge"), "mode"),
        (lambda wire: kinds.new_ipvlan(wire, isolation="no"), "isolation"),
        (lambda wire: kinds.new_vlan(wire, 7, protocol="802.3"), "protocol"),
        (lambda _: kinds.new_dummy(mac=b"\x01\0\0\0\0\0"), "mac"),
        (lambda _: tap.new_tap(mac="x"), "mac"),
    ],
)
def test_options_that_there_are_not(ground: Ground, call: Callable[[Interface], object], word: str) -> None:
    """A word that is none of an option's is refused by the option's name."""
    with pytest.raises(PlanError, match=word):
        call(ground.wire)


# ---- tun and tap ----


def datagram(source: str, target: str, words: bytes) -> bytes:
    """Return a packet of IPv4 with a datagram of UDP, without the latter's checksum."""
    udp = struct.pack(">HHHH", 9, 9, 8 + len(words), 0) + words
    head = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, socket.inet_aton(source), socket.inet_aton(target)
    )
    total = sum(struct.unpack(">10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    return head[:10] + struct.pack(">H", ~total & 0xFFFF) + head[12:] + udp


def test_packets_of_tun(ground: Ground, make: Callable[..., Handle]) -> None:
    """What is sent into the interface is read here, and what is written here is received there."""
    tun = make("tun", ns=ground.a, name="it", addresses=["10.6.0.1/24"])
    assert isinstance(tun, tap.Tun)
    with tun, socket_in(ground.a, socket.SOCK_DGRAM) as there:
        there.bind(("10.6.0.1", 9))
        there.sendto(b"out", ("10.6.0.2", 9))
        packet = tun.read(timeout=oracles.PATIENCE)
        while packet is not None and packet[0] >> 4 != 4:  # the kernel looks for routers of IPv6
            packet = tun.read(timeout=oracles.PATIENCE)
        assert packet is not None
        assert packet[-3:] == b"out"
        tun.write(datagram("10.6.0.2", "10.6.0.1", b"in"))
        assert there.recvfrom(10) == (b"in", ("10.6.0.2", 9))
        assert not os.get_inheritable(tun.fileno())


def test_reading_and_nothing_comes(ground: Ground, make: Callable[..., Handle]) -> None:
    """Reading ends without a packet after its time, and with one that comes meanwhile, without end where none is given."""
    for name in ("all", "default"):
        Sysctls(ground.a)[f"ipv6/conf/{name}/disable_ipv6"] = True
    tun = make("tun", ns=ground.a, addresses=["10.6.0.1/24"])
    assert isinstance(tun, tap.Tun)
    with tun, socket_in(ground.a, socket.SOCK_DGRAM) as there:
        assert tun.read(timeout=0) is None
        assert tun.read(timeout=0.01) is None
        for wrong in (-1, "x"):
            with pytest.raises(PlanError, match="timeout"):
                tun.read(timeout=wrong)  # type: ignore[arg-type]
        sender = threading.Timer(0.05, there.sendto, [b"late", ("10.6.0.2", 9)])
        sender.start()
        packet = tun.read()
        sender.join()
        assert packet is not None
        assert packet.endswith(b"late")


def test_frames_of_tap(ground: Ground, make: Callable[..., Handle]) -> None:
    """A frame that is written here comes in, and the answer to it is read here."""
    device = make("tap", ns=ground.a, mac="02:00:00:00:00:01", addresses=["10.6.0.1/24"])
    assert isinstance(device, tap.Tap)
    us, them = bytes.fromhex("020000000002"), bytes.fromhex("020000000001")
    who = (
        struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1) + us + socket.inet_aton("10.6.0.2") + bytes(6) + socket.inet_aton("10.6.0.1")
    )
    with device:
        device.write(b"\xff" * 6 + us + b"\x08\x06" + who)
        frame = device.read(timeout=oracles.PATIENCE)
        while frame is not None and frame[12:14] != b"\x08\x06":
            frame = device.read(timeout=oracles.PATIENCE)
        assert frame is not None
        assert (frame[:6], frame[6:12], frame[20:22], frame[22:28]) == (us, them, b"\0\2", them)


def test_writing_what_is_none(ground: Ground, make: Callable[..., Handle]) -> None:
    """What is no packet, and any packet while the interface is down, is told with an error number of its own."""
    tun = make("tun", ns=ground.a)
    assert isinstance(tun, tap.Tun)
    with tun:
        with pytest.raises(SyscallError) as caught:
            tun.write(b"\x00")
        assert caught.value.errno == errno.EINVAL
        tun.interface.down()
        with pytest.raises(SyscallError) as caught:
            tun.write(datagram("10.6.0.2", "10.6.0.1", b"in"))
        assert caught.value.errno == errno.EIO
    with pytest.raises(ClosedError):
        tun.read()
    with pytest.raises(ClosedError):
        tun.write(b"")


def test_interface_that_somebody_left(ground: Ground, make: Callable[..., Handle]) -> None:
    """An interface that was left without a program is not taken for a new one."""
    make("tun", ns=ground.a).close()
    oracles.run_in(ground.a, "ip", "tuntap", "add", "mode", "tun", "name", "left")
    with pytest.raises(SyscallError) as caught:
        tap.new_tun(ns=ground.a, name="left")
    assert caught.value.errno == errno.EEXIST
    assert "left" in oracles.names(queries.links(ground.a))


# ---- interrupted ----

#: Where interrupts are raised: all that makes and removes links, but veth pairs.
OWNERS = {
    os.path.join(os.path.dirname(isolib.__file__), name)
    for name in (
        "net/kinds.py",
        "net/tap.py",
        "net/owned.py",
        "_kernel/netlink/socket.py",
        "_kernel/sockets.py",
        "_kernel/handle.py",
    )
}


@pytest.mark.parametrize("kind", ["macvlan", "tun"])
@pytest.mark.filterwarnings("ignore:never closed:ResourceWarning")
def test_interrupts(ground: Ground, make: Callable[..., Handle], kind: str, lost: list[type[BaseException]]) -> None:
    """An interrupt at any point of the life of a link leaves neither it nor a descriptor."""
    make(kind, ns=ground.b).close()

    def live() -> None:
        MAKERS[kind](ground, ns=ground.b, addresses=["10.5.0.1/24"]).close()

    turn = 0
    while interrupt(turn := turn + 1, live, is_ours) == 0:
        assert oracles.names(queries.links(ground.b)) == ["far"], turn
    assert turn > 50


def is_ours(code: CodeType) -> bool:
    """Return whether interrupts are raised in this code."""
    return code.co_filename in OWNERS
