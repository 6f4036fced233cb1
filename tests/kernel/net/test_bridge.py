"""Bridges: how they and their ports are set, live, as ip and bridge see it; what they know, and where frames go."""

from __future__ import annotations

import errno
from contextlib import ExitStack
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

import pytest

from isolib import PlanError, SyscallError, new_netns
from isolib.net import FdbEntry, new_bridge, new_veth
from tests import oracles
from tests.frames import EVERYBODY, Frame, Wire, heard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from isolib.namespaces import NetNS
    from isolib.net import Bridge, Interface

STATION = "02:00:00:00:00:77"
"""Of nobody, until a frame comes from it."""


class Switch(NamedTuple):
    """A bridge with three ports, and what is at the other end of each."""

    hub: NetNS
    bridge: Bridge
    ports: list[Interface]
    wires: list[Wire]
    macs: list[str]

    def frame(self, number: int, target: str = EVERYBODY, words: bytes = b"hello") -> Frame:
        """Return a frame from the station at a port, and put it on its wire."""
        made = Frame(target, self.macs[number], words)
        self.wires[number].put(made)
        return made

    def heard(self) -> list[list[Frame]]:
        """Return what has come out of each port."""
        return heard(self.wires)


@pytest.fixture
def switch(new_ns: Callable[[], NetNS]) -> Iterator[Switch]:
    """Return a bridge with three ports."""
    hub = new_ns()
    with ExitStack() as stack:
        bridge = stack.enter_context(new_bridge("br0", ns=hub))
        made = Switch(hub, bridge, [], [], [])
        for number in range(3):
            there = new_ns()
            cable = stack.enter_context(new_veth(hub, there, names=(f"p{number}", "eth0")))
            bridge.add(cable.a)
            made.ports.append(cable.a)
            made.wires.append(stack.enter_context(Wire(there, "eth0")))
            made.macs.append(f"02:00:00:00:01:0{number}")  # not the interface's, from which the kernel itself sends
        yield made


# ---- how it is set ----

OPTIONS: list[dict[str, object]] = [
    {"stp": True},
    {"ageing_time": 12.5},
    {"ageing_time": timedelta(minutes=2)},
    {"forward_delay": 4},
    {"hello_time": 1},
    {"max_age": 7},
    {"priority": 0},
    {"priority": 65535},
    {"multicast_snooping": False},
    {"stp": True, "ageing_time": 60, "forward_delay": 5, "hello_time": 1.5, "max_age": 10, "priority": 7},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options(ns: NetNS, options: dict[str, object]) -> None:
    """What a bridge is made with, and what is changed afterwards, is what ip says, and is read back; the rest stays."""
    expected = {key: value.total_seconds() if isinstance(value, timedelta) else value for key, value in options.items()}
    for live in (False, True):
        with new_bridge("br0", ns=ns, **({} if live else options)) as bridge:  # type: ignore[arg-type]
            before = bridge.interface.link().bridge
            if live:
                bridge.change(**options)  # type: ignore[arg-type]
            found = bridge.interface.link().bridge
            (seen,) = [one.bridge for one in oracles.links(ns) if one.kind == "bridge"]
            assert found == seen
            assert {key: getattr(found, key) for key in options} == expected
            if live:
                assert before is not None
                others = [key for key in before.__slots__ if key not in options]
                assert [getattr(found, key) for key in others] == [getattr(before, key) for key in others]


@pytest.mark.parametrize(
    "options",
    [
        {"ageing_time": -1},
        {"ageing_time": "x"},
        {"forward_delay": 1 << 40},
        {"hello_time": -0.5},
        {"max_age": "soon"},
        {"priority": 65536},
        {"priority": True},
        {"default_pvid": 4095},
        {"default_pvid": -1},
        {"default_pvid": "1"},
    ],
    ids=str,
)
def test_options_that_cannot_be(ns: NetNS, options: dict[str, object]) -> None:
    """A value that no bridge can have is refused by its name, when one is made and when one is changed."""
    with pytest.raises(PlanError, match=next(iter(options))):
        new_bridge("br0", ns=ns, **options)  # type: ignore[arg-type]
    with new_bridge("br0", ns=ns) as bridge:
        before = bridge.interface.link().bridge
        with pytest.raises(PlanError, match=next(iter(options))):
            bridge.change(**options)  # type: ignore[arg-type]
        assert bridge.interface.link().bridge == before


PORT_OPTIONS = ("hairpin", "isolated", "learning", "flood", "guard", "fast_leave")


def test_ports_as_bridge_sees_them(switch: Switch) -> None:
    """Each switch of a port, and its cost and priority, are what bridge and ip say, on and off again; other ports stay."""
    port, other = switch.ports[:2]
    names = {"fast_leave": "fastleave"}

    def seen(of: Interface) -> dict[str, object]:
        found: dict[str, object] = next(one for one in oracles.bridge(switch.hub, "link") if one["ifname"] == of.name)
        return found

    untouched = seen(other)
    for option in PORT_OPTIONS:
        for on in (True, False):
            switch.bridge.set_port(port, **{option: on})
            found = port.link().port
            assert getattr(found, option) is on
            assert seen(port)[names.get(option, option)] is on
            assert found == next(one.port for one in oracles.links(switch.hub) if one.index == port.index)
    switch.bridge.set_port(port, cost=7, priority=3, hairpin=True)
    assert (seen(port)["cost"], seen(port)["priority"], seen(port)["hairpin"]) == (7, 3, True)
    switch.bridge.set_port(port)
    assert (seen(port)["cost"], seen(other)) == (7, untouched)


@pytest.mark.parametrize("options", [{"cost": 0}, {"cost": 65536}, {"priority": 64}, {"priority": True}], ids=str)
def test_port_options_that_cannot_be(switch: Switch, options: dict[str, int]) -> None:
    """What no port can have is refused by its name, and nothing is changed, not even beside it."""
    with pytest.raises(PlanError, match=next(iter(options))):
        switch.bridge.set_port(switch.ports[0], hairpin=True, **options)  # type: ignore[arg-type]
    found = switch.ports[0].link().port
    assert found is not None
    assert found.hairpin is False


def test_ports_come_and_go(switch: Switch) -> None:
    """Ports are those that ip says; a link that is no port any more is one like any other, and cannot be set as a port."""
    bridge, port = switch.bridge, switch.ports[0]
    assert {one.index for one in bridge.ports()} == {one.index for one in switch.ports}
    bridge.remove(port)
    assert {one.index for one in bridge.ports()} == {one.index for one in switch.ports[1:]}
    assert {one.index for one in oracles.links(switch.hub) if one.master == bridge.index} == {
        one.index for one in switch.ports[1:]
    }
    with pytest.raises(SyscallError, match="no port of a bridge"):
        bridge.set_port(port, hairpin=True)
    actions: list[Callable[[], object]] = [lambda: bridge.add_vlans(port, 7), lambda: bridge.add_fdb(STATION, port)]
    for action in actions:
        with pytest.raises(PlanError, match="p0 is no port of the bridge br0"):
            action()


def test_interfaces_of_other_namespaces(switch: Switch) -> None:
    """An interface of another namespace, which might have the number of one here, is no port and is told so everywhere."""
    there = new_netns()
    with new_veth(there, there) as cable:
        far = cable.a
        actions: list[Callable[[], object]] = [
            lambda: switch.bridge.add(far),
            lambda: switch.bridge.remove(far),
            lambda: switch.bridge.set_port(far, hairpin=True),
            lambda: switch.bridge.add_vlans(far, 7),
            lambda: switch.bridge.remove_vlans(far, 7),
            lambda: switch.bridge.add_fdb(STATION, far),
            lambda: switch.bridge.remove_fdb(STATION, far),
        ]
        for action in actions:
            with pytest.raises(PlanError, match="another namespace"):
                action()
    there.close()


def test_another_bridges_port(switch: Switch) -> None:
    """What is another bridge's port is not changed through this one."""
    with new_bridge("br1", ns=switch.hub) as other:
        with pytest.raises(PlanError, match="p1 is no port of the bridge br1"):
            other.add_fdb(STATION, switch.ports[1])
        assert [one for one in switch.bridge.fdb() if one.mac == STATION] == []
        assert {one.index for one in other.fdb()} <= {other.index}


# ---- where frames go ----


def test_frames_go_to_all_others(switch: Switch) -> None:
    """A frame for everybody leaves by every port but the one that it came from."""
    frame = switch.frame(0)
    assert switch.heard() == [[], [frame], [frame]]


def test_hairpin(switch: Switch) -> None:
    """With hairpin, a port hears what comes from it; without, again, it does not."""
    switch.bridge.set_port(switch.ports[0], hairpin=True)
    frame = switch.frame(0)
    assert switch.heard() == [[frame], [frame], [frame]]
    switch.bridge.set_port(switch.ports[0], hairpin=False)
    frame = switch.frame(0, words=b"again")
    assert switch.heard() == [[], [frame], [frame]]


def test_isolated_ports(switch: Switch) -> None:
    """Isolated ports do not hear each other, and each is heard by the one that is not isolated, and hears it."""
    for port in switch.ports[:2]:
        switch.bridge.set_port(port, isolated=True)
    first, second, third = (switch.frame(number, words=b"%d" % number) for number in range(3))
    found = [set(frames) for frames in switch.heard()]
    assert found == [{third}, {third}, {first, second}]


def test_learning_and_flooding(switch: Switch) -> None:
    """A frame for a station that is known leaves by its port alone, and for an unknown one by those that are flooded."""
    switch.bridge.set_port(switch.ports[0], learning=False)
    switch.bridge.set_port(switch.ports[1], flood=False)
    switch.frame(0)
    switch.frame(1)
    switch.heard()
    assert [one.index for one in switch.bridge.fdb() if one.mac == switch.macs[1]] == [switch.ports[1].index]
    assert [one for one in switch.bridge.fdb() if one.mac == switch.macs[0]] == []
    to_known, to_unknown = switch.frame(2, switch.macs[1]), switch.frame(2, STATION)
    assert switch.heard() == [[to_unknown], [to_known], []]


def test_static_entries(switch: Switch) -> None:
    """A station that was said to be behind a port is sought there alone, wherever it is heard from, until that is removed."""
    bridge = switch.bridge
    bridge.add_fdb(STATION, switch.ports[1])
    switch.wires[2].put(Frame(EVERYBODY, STATION, b"I am here"))
    switch.heard()
    frame = switch.frame(0, STATION)
    assert switch.heard() == [[], [frame], []]
    bridge.add_fdb(STATION, switch.ports[2])
    frame = switch.frame(0, STATION)
    assert switch.heard() == [[], [], [frame]]
    bridge.add_fdb(STATION, switch.ports[1], sticky=False)
    switch.wires[2].put(Frame(EVERYBODY, STATION, b"I have moved"))
    switch.heard()
    frame = switch.frame(0, STATION)
    assert switch.heard() == [[], [], [frame]]
    bridge.remove_fdb(STATION, switch.ports[2])
    frame = switch.frame(0, STATION)
    assert switch.heard() == [[], [frame], [frame]]


# ---- what it knows ----


def known(switch: Switch) -> set[FdbEntry]:
    """Return the table of a bridge, and fail unless bridge reads the same."""
    return oracles.agree(lambda: set(switch.bridge.fdb()), lambda: oracles.fdb(switch.hub, "br0"))


def test_table_as_bridge_sees_it(switch: Switch) -> None:
    """Entries that were learned, were said, and are the bridge's own are those that bridge tells, each with its state."""
    bridge = switch.bridge
    stations = {STATION, "02:00:00:00:00:01", "02:00:00:00:00:02"}
    assert stations & {one.mac for one in known(switch)} == set()
    switch.wires[0].put(Frame(EVERYBODY, STATION, b"hello"))
    assert switch.wires[1].seen(1)
    bridge.add_fdb("02:00:00:00:00:01", switch.ports[1])
    bridge.add_fdb("02:00:00:00:00:02", bridge.interface)
    found = {one.mac: one for one in known(switch) if one.vlan is None}  # where there are VLANs, it is in the default one too
    assert found[STATION] == FdbEntry(STATION, switch.ports[0].index, state="dynamic")
    assert found["02:00:00:00:00:01"] == FdbEntry("02:00:00:00:00:01", switch.ports[1].index, state="static", sticky=True)
    assert found["02:00:00:00:00:02"] == FdbEntry("02:00:00:00:00:02", bridge.index, state="local")
    bridge.remove_fdb(STATION, switch.ports[0])
    bridge.remove_fdb("02:00:00:00:00:01", switch.ports[1])
    bridge.remove_fdb("02:00:00:00:00:02", bridge.interface)
    assert stations & {one.mac for one in known(switch)} == set()


def test_entries_that_are_not_there(switch: Switch) -> None:
    """An entry that the bridge does not have cannot be removed, and that is told by its own error number."""
    with pytest.raises(SyscallError, match="no such entry") as caught:
        switch.bridge.remove_fdb(STATION, switch.ports[0])
    assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"mac": "x"}, "mac"),
        ({"mac": "01:00:00:00:00:01"}, "mac"),
        ({"mac": EVERYBODY}, "mac"),
        ({"vlan": 0}, "vlan"),
        ({"vlan": 4095}, "vlan"),
        ({"vlan": True}, "vlan"),
    ],
    ids=str,
)
def test_entries_that_cannot_be(switch: Switch, arguments: dict[str, object], word: str) -> None:
    """What is no address of one station, or no VLAN, is refused before the kernel is asked."""
    before = switch.bridge.fdb()
    for action in (switch.bridge.add_fdb, switch.bridge.remove_fdb):
        with pytest.raises(PlanError, match=word):
            action(**{"mac": STATION, "port": switch.ports[0], **arguments})  # type: ignore[arg-type]
    assert set(switch.bridge.fdb()) == set(before)
