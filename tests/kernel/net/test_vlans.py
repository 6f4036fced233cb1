"""VLANs of bridges: which ports are in which, as bridge sees it, and where frames go, with a tag and without."""

from __future__ import annotations

import errno
from contextlib import ExitStack, closing
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import pytest

from isolib import PlanError, SyscallError, Unsupported, new_netns
from isolib.net import PortVlan, new_bridge, new_veth
from tests import oracles
from tests.frames import EVERYBODY, Frame, Wire, heard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from isolib.namespaces import NetNS
    from isolib.net import Bridge, Interface

STATION = "02:00:00:00:00:77"


@cache
def refusal() -> str:
    """Return why this host's bridges have no VLANs, as ip is told; "": they have."""
    with closing(new_netns()) as ns:
        command = "PATH=$PATH:/usr/sbin:/sbin; ip link add br0 type bridge vlan_filtering 1 2>&1 || exit 0"
        said = oracles.run_in(ns, "sh", "-c", command).strip()
    assert not said or "not supported" in said, said
    return said


@pytest.fixture
def vlans(user_namespaces: None) -> None:
    """Skip the test where this host's bridges have no VLANs: by ip's account, not by isolib's."""
    if refusal():
        pytest.skip(f"this host's bridges have no VLANs: {refusal()}")


class Switch(NamedTuple):
    """A bridge with four ports, none of which is in a VLAN, and what is at the other end of each."""

    hub: NetNS
    bridge: Bridge
    ports: list[Interface]
    wires: list[Wire]

    def put(self, number: int, vlan: int | None = None, words: bytes = b"hello", target: str = EVERYBODY) -> Frame:
        """Return a frame from the station at a port, without a tag, and put it on its wire, with a tag or without."""
        source = f"02:00:00:00:01:0{number}"
        self.wires[number].put(Frame(target, source, words, vlan))
        return Frame(target, source, words)

    def heard(self) -> list[list[tuple[bytes, int | None]]]:
        """Return what has come out of each port: words and tag."""
        return [[(frame.words, frame.vlan) for frame in frames] for frames in heard(self.wires)]


@pytest.fixture
def switch(vlans: None, new_ns: Callable[[], NetNS]) -> Iterator[Switch]:
    """Return a bridge with four ports."""
    hub = new_ns()
    with ExitStack() as stack:
        bridge = stack.enter_context(new_bridge("br0", ns=hub, vlan_filtering=True, default_pvid=0))
        made = Switch(hub, bridge, [], [])
        for number in range(4):
            there = new_ns()
            cable = stack.enter_context(new_veth(hub, there, names=(f"p{number}", "eth0")))
            bridge.add(cable.a)
            made.ports.append(cable.a)
            made.wires.append(stack.enter_context(Wire(there, "eth0")))
        yield made


def of(switch: Switch, number: int) -> set[tuple[int, bool, bool]]:
    """Return the VLANs of a port, and fail unless bridge says the same of all."""
    assert set(switch.bridge.vlans()) == oracles.vlans(switch.hub)
    assert len(switch.bridge.vlans()) == len(set(switch.bridge.vlans()))
    return {(one.id, one.pvid, one.untagged) for one in switch.bridge.vlans(switch.ports[number])}


# ---- where the kernel has none ----


def test_kernel_without_vlans(ns: NetNS) -> None:
    """Where ip can make no bridge with VLANs, that is told, when one is made, changed, and given VLANs, and nothing is left."""
    if not refusal():
        pytest.skip("this host's bridges have VLANs")
    for options in ({"vlan_filtering": True}, {"default_pvid": 7}):
        with pytest.raises(Unsupported, match="CONFIG_BRIDGE_VLAN_FILTERING"):
            new_bridge("br0", ns=ns, **options)
        assert oracles.names(oracles.links(ns)) == []
    with new_bridge("br0", ns=ns, default_pvid=0) as bridge:
        actions: list[Callable[[], object]] = [
            lambda: bridge.change(vlan_filtering=True),
            lambda: bridge.change(default_pvid=7),
            lambda: bridge.add_vlans(bridge.interface, 7),
        ]
        for action in actions:
            with pytest.raises(Unsupported, match="CONFIG_BRIDGE_VLAN_FILTERING"):
                action()
        assert bridge.vlans() == []


# ---- which ports are in which ----


def test_ports_are_in_vlans(switch: Switch) -> None:
    """Numbers, ranges, and how a port is in a VLAN, are those that bridge tells; what is said anew replaces what was."""
    bridge, port = switch.bridge, switch.ports[0]
    assert of(switch, 0) == set()
    bridge.add_vlans(port, 10, pvid=True, untagged=True)
    assert of(switch, 0) == {(10, True, True)}
    bridge.add_vlans(port, [20, 22, 21, 30, 20])
    assert of(switch, 0) == {(10, True, True), *((number, False, False) for number in (20, 21, 22, 30))}
    bridge.add_vlans(port, 20, pvid=True)
    assert of(switch, 0) == {(10, False, True), (20, True, False), *((number, False, False) for number in (21, 22, 30))}
    bridge.add_vlans(port, range(20, 23), untagged=True)
    assert of(switch, 0) == {(10, False, True), *((number, False, True) for number in (20, 21, 22)), (30, False, False)}
    bridge.add_vlans(port, [])
    bridge.remove_vlans(port, [])
    bridge.remove_vlans(port, [21, 22, 30, 99])
    assert of(switch, 0) == {(10, False, True), (20, False, True)}
    assert of(switch, 1) == set()


def test_all_vlans_there_are(switch: Switch) -> None:
    """A trunk for all 4094 is one request, and all of them are read back; so is every second one of them."""
    switch.bridge.add_vlans(switch.ports[0], range(1, 4095))
    assert of(switch, 0) == {(number, False, False) for number in range(1, 4095)}
    switch.bridge.remove_vlans(switch.ports[0], range(1, 4095, 2))
    assert of(switch, 0) == {(number, False, False) for number in range(2, 4095, 2)}


def test_vlans_of_the_bridge_itself(switch: Switch) -> None:
    """The bridge itself is put in VLANs and taken out, as bridge tells it."""
    bridge = switch.bridge
    bridge.add_vlans(bridge.interface, [5, 6], untagged=True)
    assert bridge.vlans(bridge.interface) == [PortVlan(bridge.index, number, untagged=True) for number in (5, 6)]
    assert set(bridge.vlans()) == oracles.vlans(switch.hub)
    bridge.remove_vlans(bridge.interface, 5)
    assert [one.id for one in bridge.vlans(bridge.interface)] == [6]
    assert set(bridge.vlans()) == oracles.vlans(switch.hub)


def test_default_pvid(vlans: None, ns: NetNS) -> None:
    """A new port is in the VLAN that is the default one, untagged, and goes to the new one with it; 0 is none."""
    with new_bridge("br0", ns=ns, vlan_filtering=True, default_pvid=7) as bridge, new_veth(ns, ns) as cable:
        bridge.add(cable.a)
        for number in (7, 4094, 1, 0):
            bridge.change(default_pvid=number)
            options = bridge.interface.link().bridge
            assert options is not None
            assert options.default_pvid == number
            assert [one.bridge for one in oracles.links(ns) if one.kind == "bridge"] == [options]
            found = [(one.id, one.pvid, one.untagged) for one in bridge.vlans(cable.a)]
            assert found == ([(number, True, True)] if number else [])
            assert set(bridge.vlans()) == oracles.vlans(ns)


def test_bridges_side_by_side(switch: Switch) -> None:
    """Of two bridges in one namespace, each tells of its own ports alone."""
    with new_bridge("br1", ns=switch.hub, default_pvid=9) as other:
        switch.bridge.add_vlans(switch.ports[0], 10)
        assert {one.index for one in switch.bridge.vlans()} == {switch.ports[0].index}
        assert [(one.index, one.id) for one in other.vlans()] == [(other.index, 9)]
        with pytest.raises(PlanError, match="p0 is no port of the bridge br1"):
            other.remove_vlans(switch.ports[0], 10)
        assert {one.id for one in switch.bridge.vlans()} == {10}


@pytest.mark.parametrize("numbers", [0, 4095, -1, "10", True, [1, 5000], [None], 1.5], ids=str)
def test_numbers_that_no_vlan_has(ns: NetNS, numbers: object) -> None:
    """What is no number of a VLAN is refused by its name, whatever the kernel has, and none of those beside it is taken."""
    with new_bridge("br0", ns=ns) as bridge:
        before = bridge.vlans()
        for action in (bridge.add_vlans, bridge.remove_vlans):
            with pytest.raises(PlanError, match="vlans: a number from 1 to 4094"):
                action(bridge.interface, numbers)  # type: ignore[arg-type]
        with pytest.raises(PlanError, match="pvid"):
            bridge.add_vlans(bridge.interface, [7, 8], pvid=True)
        assert bridge.vlans() == before


# ---- where frames go ----


def test_vlans_do_not_hear_each_other(switch: Switch) -> None:
    """Of four stations on one bridge in two VLANs, each hears the other one of its own, and none of the others."""
    for number, vlan in enumerate((10, 20, 10, 20)):
        switch.bridge.add_vlans(switch.ports[number], vlan, pvid=True, untagged=True)
    for number in range(4):
        switch.put(number, words=b"%d" % number)
    assert switch.heard() == [[(b"2", None)], [(b"3", None)], [(b"0", None)], [(b"1", None)]]


def test_without_filtering_all_hear_all(switch: Switch) -> None:
    """VLANs count as soon as the bridge is told to heed them, and as long."""
    for number, vlan in enumerate((10, 20)):
        switch.bridge.add_vlans(switch.ports[number], vlan, pvid=True, untagged=True)
    switch.bridge.change(vlan_filtering=False)
    switch.put(0)
    assert switch.heard() == [[], *([[(b"hello", None)]] * 3)]
    switch.bridge.change(vlan_filtering=True)
    switch.put(0)
    assert switch.heard() == [[], [], [], []]


def test_trunk(switch: Switch) -> None:
    """A trunk carries the frames of its VLANs with their tags, both ways, and those of other VLANs not at all."""
    for number, vlan in enumerate((10, 20, 30)):
        switch.bridge.add_vlans(switch.ports[number], vlan, pvid=True, untagged=True)
    switch.bridge.add_vlans(switch.ports[3], [10, 20])
    for number in range(3):
        switch.put(number, words=b"%d" % number)
    *others, trunk = switch.heard()
    assert others == [[], [], []]
    assert sorted(trunk, key=str) == [(b"0", 10), (b"1", 20)]
    for tag in (10, 20, 30, None):
        switch.put(3, tag, words=b"to %d" % (tag or 0))
    assert switch.heard() == [[(b"to 10", None)], [(b"to 20", None)], [], []]


def test_frames_of_a_vlan_that_the_port_is_not_in(switch: Switch) -> None:
    """Who tags his frames does not come into a VLAN that his port is not in, and without a pvid he comes into none."""
    switch.bridge.add_vlans(switch.ports[0], 10, pvid=True, untagged=True)
    switch.bridge.add_vlans(switch.ports[1], 20, pvid=True, untagged=True)
    switch.bridge.add_vlans(switch.ports[3], 20)
    switch.put(0, 20)
    switch.put(3, None)
    assert switch.heard() == [[], [], [], []]
    switch.bridge.remove_vlans(switch.ports[0], 10)
    switch.bridge.add_vlans(switch.ports[0], 20, pvid=True, untagged=True)
    switch.put(0)
    assert switch.heard() == [[], [(b"hello", None)], [], [(b"hello", 20)]]


def test_table_by_vlan(switch: Switch) -> None:
    """One station may be behind one port in one VLAN and behind another in another; bridge reads the same table."""
    bridge, ports = switch.bridge, switch.ports
    for port in ports:
        bridge.add_vlans(port, [10, 20])
    bridge.add_fdb(STATION, ports[1], vlan=10)
    bridge.add_fdb(STATION, ports[2], vlan=20)
    found = {(one.index, one.vlan) for one in bridge.fdb() if one.mac == STATION}
    assert found == {(ports[1].index, 10), (ports[2].index, 20)}
    oracles.agree(lambda: set(bridge.fdb()), lambda: oracles.fdb(switch.hub, "br0"))
    switch.put(0, 10, target=STATION, words=b"a")
    switch.put(0, 20, target=STATION, words=b"b")
    assert switch.heard() == [[], [(b"a", 10)], [(b"b", 20)], []]
    bridge.remove_fdb(STATION, ports[1], vlan=10)
    assert {(one.index, one.vlan) for one in bridge.fdb() if one.mac == STATION} == {(ports[2].index, 20)}
    for action in (bridge.add_fdb, bridge.remove_fdb):
        with pytest.raises(SyscallError) as caught:
            action(STATION, ports[1], vlan=30)
        assert caught.value.errno in {errno.EINVAL, errno.ENOENT}
