"""What cannot be: it is told by an error of its own kind that names argument and value, and then everything is as before."""

from __future__ import annotations

import errno
import io
import re
import socket
import threading
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from isolib import ClosedError, PlanError, SyscallError, new_ipcns, new_netns, open_netns
from isolib.net import add_barrier, addresses, links, new_bridge, new_network, new_veth, routes, rules
from isolib.net.sysctl import Sysctls
from tests.nets import listen, reaches, socket_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from isolib.namespaces import NetNS
    from isolib.net import Endpoint, Network

    Call = Callable[["Scene"], object]

pytestmark = pytest.mark.usefixtures("user_namespaces")


@dataclass
class Scene:
    """Two networks and who is in them.

    Attributes
    ----------
    network, other
        One of both kinds of addresses, and one of IPv4 alone.
    a, b, free, gone
        Namespaces: attached to the first, attached to the second, to none, and one that is closed.
    one, stranger, detached
        Endpoints: of the first, of the second, and one that was of the first.
    closed
        A network.
    """

    network: Network
    other: Network
    a: NetNS
    b: NetNS
    free: NetNS
    gone: NetNS
    one: Endpoint
    stranger: Endpoint
    detached: Endpoint
    closed: Network

    def state(self) -> dict[str, object]:
        """Return all that there is, but for what changes by itself."""
        spaces = {"a": self.a, "b": self.b, "free": self.free, "network": self.network.ns, "other": self.other.ns}
        found: dict[str, object] = {name: everything(ns) for name, ns in spaces.items()}
        for name, network in (("network", self.network), ("other", self.other)):
            found[f"endpoints of {name}"] = network.endpoints()
            found[f"hosts of {name}"] = network.hosts()
            found[f"ports of {name}"] = len(network._published)
            found[f"free of {name}"] = [pool.free for pool in network._pools]
        return found | {"weather": self.one.weather(), "threads": threading.active_count()}


def everything(ns: NetNS) -> list[object]:
    """Return what is in a namespace, but for what the kernel changes by itself."""
    plain = [replace(link, stats=None, state="", flags=link.flags - {"running", "lower_up"}) for link in links(ns)]
    ways = [one for one in routes(ns, table=None) if one.destination.version == 4 or not one.destination.is_link_local]
    own = [one for one in addresses(ns) if not one.interface.is_link_local]
    return [plain, set(own), {one for one in ways if not one.destination.is_multicast}, rules(ns)]


@pytest.fixture
def scene() -> Iterator[Scene]:
    """Return it."""
    with ExitStack() as stack:

        def space() -> NetNS:
            return stack.enter_context(closing(new_netns()))

        network = stack.enter_context(new_network("10.77.0.0/24", ipv6="fd77::/64", name="one"))
        other = stack.enter_context(new_network("10.78.0.0/24", name="other"))
        a, b, free, gone = (space() for _ in range(4))
        gone.close()
        one, stranger = network.attach(a), other.attach(b)
        detached = network.attach(free)
        detached.detach()
        closed = new_network("10.79.0.0/24")
        closed.close()
        yield Scene(network, other, a, b, free, gone, one, stranger, detached, closed)


def is_refused(scene: Scene, call: Call, words: str, kind: type[Exception] = PlanError) -> Exception:
    """Fail unless a call raises this error with these words, and everything is then as it was before."""
    before = scene.state()
    with pytest.raises(kind, match=words) as caught:
        call(scene)
    assert scene.state() == before
    # Nothing that it took is missing for who comes next.
    endpoint = scene.network.attach(scene.free)
    endpoint.detach()
    return caught.value


def words_of(argument: str, value: object) -> str:
    """Return a pattern for a message that begins with an argument's name and has its value."""
    return rf"^{argument}\b.*{re.escape(str(value))}"


# ---- attaching ----

ATTACHED: list[tuple[str, object]] = [
    *(("name", value) for value in ("x" * 16, "é" * 8, "", "a/b", "a b", "..", "b%d", "a\n", 5, None)),
    *(("address", value) for value in ("10.78.0.3", "10.77.0.0", "10.77.0.255", "10.77.0.1", "10.77.0.2")),
    *(("address", value) for value in ("10.77.0.9/24", "10.77.0", "nonsense", "", "fd77::9", 5, True, b"\x0a\x4d\x00\x09")),
    *(("ipv6", value) for value in ("fd78::3", "fd77::", "fd77::1", "fd77::2")),
    *(("ipv6", value) for value in ("fd77::9/64", "fe80::1%eth0", "nonsense", "", "10.77.0.9", 5)),
    *(("hostname", value) for value in ("", "a b", "-a", "a_b!", "x" * 64, 5)),
]


@pytest.mark.parametrize(("argument", "value"), ATTACHED, ids=repr)
def test_attach(scene: Scene, argument: str, value: object) -> None:
    """An argument that no endpoint can have is refused by its name and value before anything is done."""
    shown = repr(value)[1:-1] if isinstance(value, str) else str(value)
    options: dict[str, Any] = {"hostname": "web", argument: value}
    is_refused(scene, lambda scene: scene.network.attach(scene.free, **options), words_of(argument, shown))


@pytest.mark.parametrize("value", [5, "eth0", object()], ids=str)
def test_attach_what_is_no_namespace(scene: Scene, value: Any) -> None:  # noqa: ANN401 - what is none
    """What is no network namespace is told by the argument's name."""
    is_refused(scene, lambda scene: scene.network.attach(value), words_of("ns", value))
    with closing(new_ipcns()) as ipc:
        is_refused(scene, lambda scene: scene.network.attach(ipc), "^ns: a network namespace is wanted")


def test_attach_a_closed_namespace(scene: Scene) -> None:
    """A namespace that is closed already is told as such."""
    is_refused(scene, lambda scene: scene.network.attach(scene.gone), "closed", ClosedError)


def test_addresses_of_a_kind_that_a_network_has_not(scene: Scene) -> None:
    """An address of a kind that the network has none of is refused by name."""
    is_refused(scene, lambda scene: scene.other.attach(scene.free, ipv6="fd78::5"), words_of("ipv6", "fd78::5"))


@pytest.mark.parametrize("name", ["eth0", "lo"])
def test_name_that_is_taken_inside(scene: Scene, name: str) -> None:
    """An interface of this name in the namespace is told by its name."""
    error = is_refused(
        scene, lambda scene: scene.network.attach(scene.a, name=name, default_route=False), rf"\b{name}\b", SyscallError
    )
    assert isinstance(error, SyscallError)
    assert error.errno == errno.EEXIST


@pytest.mark.parametrize("subnet", ["10.77.0.0/24", "10.77.0.128/25", "10.76.0.0/15"])
def test_overlapping_subnets_in_one_namespace(scene: Scene, subnet: str) -> None:
    """A namespace that is in one network is not taken into another whose subnet overlaps that, however they are routed."""
    with new_network(subnet) as third:
        for options in ({"default_route": False}, {}):
            is_refused(
                scene,
                lambda scene, options=options: third.attach(scene.a, name="eth1", **options),  # type: ignore[misc]
                rf"^ns: .*{re.escape(subnet)} overlaps 10\.77\.0\.0/24\b.*\beth0\b",
            )
        assert third.endpoints() == []
        third.attach(scene.free)


def test_overlapping_subnets_of_ipv6(scene: Scene) -> None:
    """Subnets of IPv6 that overlap are told as well."""
    with new_network("10.80.0.0/24", ipv6="fd77::/60") as third:
        is_refused(
            scene,
            lambda scene: third.attach(scene.a, name="eth1", default_route=False),
            r"^ns: .*fd77::/60 overlaps fd77::/64\b.*\beth0\b",
        )


def test_subnet_that_the_namespace_has_routes_for(scene: Scene) -> None:
    """A route of the namespace into the subnet, by whatever gateway, is told; one to much more does not matter."""
    with new_veth(scene.free, scene.b, names=("wire", "far"), addresses=("192.0.2.1/24", None)) as cable:
        cable.a.add_route("10.0.0.0/8", gateway="192.0.2.9")
        cable.a.add_route("0.0.0.0/1")  # half of a default route, as VPNs have them
        scene.network.attach(scene.free, name="eth0").detach()
        cable.a.add_route("10.77.0.64/26", gateway="192.0.2.9")
        with pytest.raises(PlanError, match=r"^ns: .*10\.77\.0\.0/24 overlaps 10\.77\.0\.64/26\b.*\bwire\b"):
            scene.network.attach(scene.free)
        assert [link.name for link in links(scene.free)] == ["lo", "wire"]


@pytest.mark.parametrize("spoken_with", [False, True])
def test_subnet_that_leads_nowhere(scene: Scene, *, spoken_with: bool) -> None:
    """A route that leads nowhere, and so is of no link, is told too, whether or not the namespace was spoken with before."""
    with closing(new_netns()) as ns:
        with closing(open_netns(fd=ns)) as same:
            add_barrier("10.77.0.0/24", ns=same)
        if spoken_with:
            assert [link.name for link in links(ns)] == ["lo"]
        with pytest.raises(PlanError, match=r"^ns: 10\.77\.0\.0/24 overlaps 10\.77\.0\.0/24\b.*nowhere"):
            scene.network.attach(ns)
        assert [link.name for link in links(ns)] == ["lo"]


def test_two_places_in_one_network(scene: Scene) -> None:
    """A namespace may have two interfaces in one network: that is no overlap."""
    with scene.network.attach(scene.a, name="eth1", default_route=False) as second:
        assert str(second.address) == "10.77.0.4"


@pytest.mark.parametrize(("subnet", "room"), [("10.80.0.0/30", 1), ("10.80.0.0/29", 5), ("10.80.0.0/31", 1)])
def test_full(scene: Scene, subnet: str, room: int) -> None:
    """A network without a free address says so, with its subnet, and has one again when somebody leaves."""
    with new_network(subnet) as small, ExitStack() as stack:
        ends = [small.attach(stack.enter_context(closing(new_netns()))) for _ in range(room)]
        is_refused(scene, lambda scene: small.attach(scene.free), f"{re.escape(subnet)} is full")
        assert small.endpoints() == ends
        ends[-1].detach()
        assert small.attach(scene.free).address == ends[-1].address


# ---- publishing ----

PUBLISHED: list[tuple[str, object]] = [
    *(("host_port", value) for value in (65536, -1, "80", None, True, 80.0)),
    *(("port", value) for value in (0, 65536, -1, "80", None, True)),
    *(("proto", value) for value in ("sctp", "TCP", "", None, 6)),
    *(("host", value) for value in ("localhost", "127.0.0.1/8", "", 5, "fe80::1%lo")),
]


@pytest.mark.parametrize(("argument", "value"), PUBLISHED, ids=repr)
def test_publish(scene: Scene, argument: str, value: object) -> None:
    """What no published port can have is refused by its name and value."""
    options: dict[str, Any] = {"host_port": 0, "endpoint": scene.one, "port": 80, argument: value}
    is_refused(scene, lambda scene: scene.network.publish(**options), words_of(argument, value))


def test_publish_who_is_not_there(scene: Scene) -> None:
    """Another network's endpoint, a detached one, and what is none, are told by the argument's name."""
    for wrong in (scene.stranger, scene.detached, None, scene.a, "web"):
        is_refused(scene, lambda scene, wrong=wrong: scene.network.publish(0, wrong, 80), "^endpoint: .* is none of")  # type: ignore[misc]


@pytest.mark.parametrize("proto", ["tcp", "udp"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_port_in_use(scene: Scene, proto: str, host: str) -> None:
    """A port that somebody has, whoever it is, is told with its address, number and protocol."""
    with ExitStack() as stack:
        if proto == "tcp":
            taken = stack.enter_context(listen(None, host)).getsockname()[1]
        else:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            holder = stack.enter_context(socket_in(None, socket.SOCK_DGRAM, family))
            holder.bind((host, 0))
            taken = holder.getsockname()[1]
        ours = stack.enter_context(scene.network.publish(0, scene.one, 80, proto=proto, host=host)).port
        for port in (taken, ours):
            error = is_refused(
                scene,
                lambda scene, port=port: scene.network.publish(port, scene.one, 81, proto=proto, host=host),  # type: ignore[misc]
                rf"{re.escape(host)} port {port} \({proto}\)",
                SyscallError,
            )
            assert isinstance(error, SyscallError)
            assert error.errno == errno.EADDRINUSE


def test_publish_where_nobody_is(scene: Scene) -> None:
    """An address that this host does not have is told."""
    error = is_refused(
        scene, lambda scene: scene.network.publish(0, scene.one, 80, host="192.0.2.77"), r"192\.0\.2\.77 port 0", SyscallError
    )
    assert isinstance(error, SyscallError)
    assert error.errno == errno.EADDRNOTAVAIL


# ---- partitions and the way out ----


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        (lambda scene: ([scene.one],), "two groups"),
        (lambda _: (), "two groups"),
        (lambda scene: ([scene.one], [scene.one]), r"in two groups: .*10\.77\.0\.2"),
        (lambda scene: ([scene.one], [scene.stranger]), r"^partition: .*10\.78\.0\.2.* is none of .*one"),
        (lambda scene: ([scene.one], [scene.detached]), "^partition: .* is none of"),
        (lambda scene: ([scene.one], [scene.a]), "^partition: .* is none of"),
        (lambda scene: ([scene.one], [None]), "^partition: None is none of"),
        (lambda scene: ([scene.one], scene.one), r"^partition: .*lists of endpoints.*10\.77\.0\.2"),
        (lambda scene: ([scene.one], None), "^partition: .*lists of endpoints.*None"),
        (lambda scene: ([scene.one], "web"), "^partition: .*lists of endpoints.*'web'"),
        (lambda scene: (end for end in (scene.one, scene.one)), "^partition: .*lists of endpoints"),
    ],
    ids=[
        "one",
        "none",
        "in both",
        "stranger",
        "detached",
        "namespace",
        "None",
        "no list",
        "None for a list",
        "text",
        "no lists",
    ],
)
def test_partition(scene: Scene, groups: Callable[[Scene], tuple[Any, ...]], words: str) -> None:
    """Groups that cannot be are refused, with who is wrong in them."""
    is_refused(scene, lambda scene: scene.network.partition(*groups(scene)), words)


def test_decisions_without_a_way_out(scene: Scene) -> None:
    """What may be reached outside is nothing to decide about where there is no way out."""
    for decide in (scene.network.allow, scene.network.deny):
        is_refused(scene, lambda _, decide=decide: decide("192.0.2.1"), "^allow and deny are about the way out")  # type: ignore[misc]


@pytest.mark.root
@pytest.mark.parametrize("value", [None, 5, b"\0\0\0\0", "a b", "10.1", "192.0.2.1/24", "", ["192.0.2.1"]], ids=repr)
def test_decisions_that_are_none(scene: Scene, value: Any) -> None:  # noqa: ANN401 - what is none
    """What is no address, no network and no name is refused before anybody is asked for it."""
    with scene.free.entered(), new_network(internet=True) as network:
        before = network._its_firewall().rules()
        for decide in (network.allow, network.deny):
            with pytest.raises(PlanError, match=words_of("destination", value)):
                decide("192.0.2.1", value)
        assert network._its_firewall().rules() == before


@pytest.fixture
def host(scene: Scene) -> Iterator[NetNS]:
    """Return a namespace that has a way out, and in which the calling thread is."""
    with new_veth(scene.free, scene.b, names=("wan", "far"), addresses=("198.51.100.1/24", "198.51.100.2/24")) as cable:
        cable.a.add_route("203.0.113.0/24", gateway="198.51.100.2")
        cable.a.add_route(gateway="198.51.100.2")
        with scene.free.entered():
            yield scene.free


@pytest.mark.root
@pytest.mark.parametrize("subnet", ["198.51.100.0/24", "198.51.0.0/16", "198.51.100.128/25"])
def test_subnet_of_the_hosts_own_link(host: NetNS, subnet: str) -> None:
    """A network that would hide what is at a link of its host gets no way out, and nothing of the host's is changed for it."""
    before, forwards = everything(host), Sysctls(host)["net.ipv4.ip_forward"]
    with pytest.raises(PlanError, match=rf"^subnet: {re.escape(subnet)} overlaps 198\.51\.100\.0/24\b.*\bwan\b"):
        new_network(subnet, internet=True)
    assert everything(host) == before
    assert Sysctls(host)["net.ipv4.ip_forward"] == forwards


@pytest.mark.root
def test_subnets_that_hide_nothing_near(host: NetNS, scene: Scene) -> None:
    """What is far away may be hidden, and the host's own link from who has no way out; the host itself loses neither."""
    before = everything(host)
    with new_network("203.0.113.0/26", internet=True), new_network("198.51.100.0/24"):
        assert reaches(host, scene.b, "198.51.100.2")
    assert everything(host) == before


# ---- bad weather ----

WEATHER: list[tuple[str, object]] = [
    *(("delay", value) for value in (-1, "20", "ms", "-1ms", float("nan"), float("inf"), 86_401, b"1ms", True)),
    *(("jitter", value) for value in (-1, "x", 3)),
    *((name, value) for name in ("loss", "duplicate", "corrupt", "reorder") for value in (-0.1, 1.1, "101%", "1", 5, True)),
    *(("rate", value) for value in (0, 7, "10", "10mbps", 10**16, 1.5, True)),
    *(("limit", value) for value in (0, -1, 1_000_001, "5", 1.5, True)),
    *(("direction", value) for value in ("up", "", "IN", 5)),
]


@pytest.mark.parametrize(("argument", "value"), WEATHER, ids=repr)
def test_impair(scene: Scene, argument: str, value: object) -> None:
    """Weather that cannot be is refused by the argument's name and value, and what was in force still is."""
    force = scene.one.impair(loss=0.5)
    options: dict[str, Any] = ({} if argument == "delay" else {"delay": "5ms"}) | {argument: value}
    is_refused(scene, lambda scene: scene.one.impair(**options), words_of(argument, ""))
    assert scene.one.weather() == {"out": force}


def test_capture(scene: Scene) -> None:
    """A capture that cannot be is refused by the argument's name, and nothing is written."""
    file = io.BytesIO()
    for value in (0, -1, 262_145, "1K", None, True):
        is_refused(scene, lambda scene, value=value: scene.one.capture(file, snaplen=value), words_of("snaplen", value))  # type: ignore[misc]
    is_refused(scene, lambda scene: scene.one.capture(5), words_of("path", 5))  # type: ignore[arg-type]
    assert file.getvalue() == b""


# ---- what is over ----


@pytest.mark.parametrize("what", ["up", "down", "stats", "impair", "capture"])
def test_detached_endpoint(scene: Scene, what: str) -> None:
    """Who is detached does nothing any more, and says so."""
    arguments = [io.BytesIO()] if what == "capture" else []
    is_refused(scene, lambda scene: getattr(scene.detached, what)(*arguments), "closed", ClosedError)


@pytest.mark.parametrize(
    "call",
    [
        lambda network, scene: network.attach(scene.free, hostname="web"),
        lambda network, scene: network.publish(0, scene.one, 80),
        lambda network, scene: network.partition([scene.one], [scene.stranger]),
        lambda network, _: network.heal(),
        lambda network, _: network.picture(),
        lambda network, scene: network.bridge.add(scene.one.port),
        lambda network, _: network.bridge.ports(),
    ],
    ids=["attach", "publish", "partition", "heal", "picture", "add", "ports"],
)
def test_closed_network(scene: Scene, call: Callable[[Network, Scene], object]) -> None:
    """A closed network takes nobody and does nothing any more, and says so."""
    is_refused(scene, lambda scene: call(scene.closed, scene), "closed", ClosedError)


# ---- bridges ----

BRIDGES: list[tuple[str, object]] = [
    *(("name", value) for value in ("x" * 16, "", "a/b", "b%d", 5)),
    *(("mac", value) for value in ("", "02:42:ac:11:00", "01:00:5e:00:00:01", "00:00:00:00:00:00", b"\2" * 5, 5)),
    *(("mtu", value) for value in (67, 65536, -1, "1500", True)),
    *(("addresses", value) for value in ("10.0.0.1/24", ["10.0.0.1"], ["10.0.0.0/24"], ["10.0.0.1/24"] * 2, [None], 5)),
    *(("priority", value) for value in (-1, 65536, "1")),
    *(("ageing_time", value) for value in (-1, "x", float("nan"), 10**12)),
    *(("forward_delay", value) for value in (-1, "x", float("nan"))),
    ("ns", 5),
]


@pytest.mark.parametrize(("argument", "value"), BRIDGES, ids=repr)
def test_bridge(scene: Scene, argument: str, value: object) -> None:
    """What no bridge can have is refused by the argument's name before anything is done."""
    options: dict[str, Any] = {"name": "br1", "ns": scene.free, argument: value}
    is_refused(scene, lambda _: new_bridge(**options), words_of(argument, ""))
