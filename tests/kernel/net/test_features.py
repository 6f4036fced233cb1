"""What interfaces do by themselves: as ethtool and pyroute2 see it, switched, and seen in the packets that then come."""

from __future__ import annotations

import errno
import json
import socket
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from isolib import PlanError, SyscallError, Unsupported, new_netns
from isolib._kernel.netlink import genl
from isolib._kernel.netlink.socket import GENERIC, open_netlink
from isolib.net import new_bridge, new_veth
from tests import oracles
from tests.nets import dial, listen, socket_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolib.namespaces import NetNS
    from isolib.net import Interface, Veth

FAMILIES = """
import json, sys
from pyroute2.netlink.generic import GenericNetlinkSocket
found = {}
for name in sys.argv[1:]:
    sock = GenericNetlinkSocket()
    sock.bind(name, genl_message := __import__("pyroute2").netlink.genlmsg)
    found[name] = [sock.prid, dict(sock.mcast_groups)]
json.dump(found, sys.stdout)
"""


@pytest.fixture
def cable(a: NetNS, b: NetNS) -> Iterator[Veth]:
    """Return a cable."""
    with new_veth(a, b, names=("eth0", "far"), addresses=("10.0.0.1/24", "10.0.0.2/24")) as made:
        yield made


def active(end: Interface) -> set[str]:
    """Return the features that an interface has on, and fail unless ethtool sees all of them the same."""
    found = end.features()
    told = oracles.features(end.ns, end.name)  # type: ignore[arg-type]
    # It says of some features of its own what they are together, and has older names for others.
    common = found.keys() & told.keys()
    assert {name: found[name] for name in common} == {name: told[name] for name in common}
    assert {"tx-checksum-ip-generic", "tx-tcp-segmentation", "tx-udp-segmentation"} <= common
    return {name for name, one in found.items() if one.active}


def test_features_are_those_of_ethtool(ns: NetNS, cable: Veth) -> None:
    """Each feature of a veth, a bridge and loopback, is active, wanted and fixed as ethtool says."""
    with new_bridge("br0", ns=cable.a.ns) as bridge:
        for end in (cable.a, cable.b, bridge.interface):
            assert active(end)


def test_switching(cable: Veth) -> None:
    """A feature by its name, and several by a word of ethtool's, are switched off and on again; others and other ends stay."""
    before = active(cable.a)
    other = active(cable.b)
    cable.a.set_features({"tx-udp-segmentation": False, "gro": True})
    assert active(cable.a) == before - {"tx-udp-segmentation"} | {"rx-gro"}
    cable.a.set_features({"tx-udp-segmentation": True, "gro": False})
    assert active(cable.a) == before
    cable.a.set_features({"tx": False, "tso": False, "gso": False})
    off = {name for name in before if name.startswith(("tx-checksum", "tx-tcp"))} | {"tx-generic-segmentation"}
    assert active(cable.a) & off == set()
    assert len(off) >= 5
    cable.a.set_features({"tx": True, "tso": True, "gso": True})
    assert active(cable.a) == before
    assert active(cable.b) == other
    cable.a.set_features({})
    assert active(cable.a) == before


def test_features_that_are_fixed(cable: Veth) -> None:
    """One that is fixed cannot be changed, and what is asked for beside it is not done either; what it is may be asked for."""
    before = active(cable.a)
    for name in ("tx-checksum-ipv4", "lro"):
        with pytest.raises(Unsupported, match=rf"{name} of eth0: refused by the interface: it is off and fixed"):
            cable.a.set_features({"gso": False, name: True})
        assert active(cable.a) == before
        cable.a.set_features({name: False})
    with pytest.raises(PlanError, match="'tx-teleport' is no feature"):
        cable.a.set_features({"gso": False, "tx-teleport": True})
    assert active(cable.a) == before


def test_features_that_take_others(cable: Veth) -> None:
    """One that another one keeps from being on is told, and is not wanted afterwards either; with that one it can be had."""
    cable.a.set_features({"tx": False, "tso": False})
    before = cable.a.features()
    with pytest.raises(Unsupported, match="tx-tcp-segmentation"):
        cable.a.set_features({"tso": True, "gro": True})
    assert cable.a.features() == before
    cable.a.set_features({"tso": True, "tx": True})
    assert {"tx-tcp-segmentation", "tx-checksum-ip-generic"} <= active(cable.a)


def longest(cable: Veth, a: NetNS, b: NetNS) -> int:
    """Return the length of the longest packet that comes out of a cable when a stream goes in."""
    with (
        socket_in(b, socket.SOCK_RAW, socket.AF_PACKET, socket.htons(0x0800)) as wire,
        listen(b, "10.0.0.2") as server,
        dial(a, "10.0.0.2", server.getsockname()[1]) as near,
        server.accept()[0] as far,
    ):
        wire.bind((cable.b.name, 0x0800))
        near.sendall(bytes(200_000))
        left = 200_000
        while left:
            left -= len(far.recv(left))
        wire.settimeout(0)
        lengths = []
        while True:
            try:
                lengths.append(len(wire.recv(1 << 17)))
            except BlockingIOError:
                return max(lengths)


def test_packets_as_on_a_wire(a: NetNS, b: NetNS, cable: Veth) -> None:
    """A stream through a veth comes in packets larger than its MTU, and without segmentation in none that is."""
    assert longest(cable, a, b) > 1514
    cable.a.set_features({"tso": False, "gso": False, "tx": False})
    assert longest(cable, a, b) <= 1514


def test_link_that_is_gone(a: NetNS, b: NetNS) -> None:
    """Of a link that is gone that is said."""
    with new_veth(a, b) as cable:
        end = cable.a
    for action in (end.features, lambda: end.set_features({"tx": False})):
        with pytest.raises(SyscallError, match="no such link") as caught:
            action()
        assert caught.value.errno == errno.ENODEV


def test_where_the_caller_is(needs_root: None) -> None:
    """Of an interface in the calling thread's own namespace it is asked there, and not where the thread is another time."""
    with new_netns(), new_veth(names=("zz-one", "zz-two")) as cable:
        assert active(cable.a)
        with closing(new_netns()) as other, other.entered(), pytest.raises(PlanError, match="no more"):
            cable.a.features()
        cable.a.set_features({"gso": False})
        assert "tx-generic-segmentation" not in active(cable.a)


# ---- families ----


def test_families_are_those_of_pyroute2(ns: NetNS) -> None:
    """The number of a family and its multicast groups are those that another program is told."""
    pytest.importorskip("pyroute2")
    names = ("nlctrl", "ethtool")
    told = json.loads(oracles.run_in(ns, sys.executable, "-c", FAMILIES, *names))
    with open_netlink(ns, GENERIC) as route:
        for name in names:
            family = genl.resolve(route, name)
            assert (family.id, family.name, dict(family.groups)) == (told[name][0], name, told[name][1])
            assert family.groups


def test_family_that_there_is_not(ns: NetNS) -> None:
    """A family that the kernel has not is told as such, and the socket goes on."""
    with open_netlink(ns, GENERIC) as route:
        for name in ("teleport", "x" * 15):
            with pytest.raises(SyscallError, match="no such family") as caught:
                genl.resolve(route, name)
            assert caught.value.errno == errno.ENOENT
        assert genl.resolve(route, "nlctrl").id == 0x10
