"""The limits of a new group: every argument, the order in which they are set, and what may be left out."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from isolib.cgroups.controllers.device_rules import DeviceRule
from isolib.cgroups.controls import Controls
from isolib.cgroups.limits import LimitFields, Limits, parse_allow
from isolib.cgroups.place import Place
from isolib.cgroups.values import IoLimit
from isolib.errors import PlanError, SyscallError, Unsupported
from tests.recorded import MIB, group

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import TypeAlias

    from tests.recorded import Recorded

    Host: TypeAlias = Callable[[int], tuple[Controls, Recorded]]

IN_V1 = ("cpu", "cpuset", "memory", "io", "pids", "hugetlb", "devices")
NOWHERE = Unsupported("a controller", "this host", "another one")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """Return a function that makes a group of a unified (2) or legacy (1) host, and the directory of it."""
    made: list[Recorded] = []

    def new(version: int) -> tuple[Controls, Recorded]:
        directory = group(tmp_path / str(len(made)), version)
        made.append(directory)
        place = Place(lambda more: Place(place.source, refusals=dict.fromkeys(more, NOWHERE)))
        unified, legacy = (directory, {}) if version == 2 else (None, dict.fromkeys(IN_V1, directory))
        return Controls("group", place, unified, legacy, owned=False), directory

    yield new
    for one in made:
        one.close()


#: Every argument, and what is written for it in each version, in the order in which it is.
ALL = {
    "oom_group": True,  # who makes the group sees to it
    "hugetlb_max": {"2M": "4M"},
    "io_max": {"8:0": IoLimit(rbps=5)},
    "io_weight": 50,
    "pids_max": 64,
    "cpu_weight": 200,
    "cpu_max": 0.5,
    "swap_max": "1M",
    "memory_low": "1M",
    "memory_high": "2M",
    "memory_max": "3M",
    "mems": [0],
    "cpus": "0-1",
}
WRITTEN = {
    2: [
        ("cpuset.cpus", "0-1"),
        ("cpuset.mems", "0"),
        ("memory.max", f"{3 * MIB}"),
        ("memory.high", f"{2 * MIB}"),
        ("memory.low", f"{MIB}"),
        ("memory.swap.max", f"{MIB}"),
        ("cpu.max", "50000 100000"),
        ("cpu.weight", "200"),
        ("pids.max", "64"),
        ("io.bfq.weight", "50"),
        ("io.max", "8:0 rbps=5 wbps=max riops=max wiops=max"),
        ("hugetlb.2MB.max", f"{4 * MIB}"),
    ],
    1: [
        ("cpuset.cpus", "0-1"),
        ("cpuset.mems", "0"),
        ("memory.limit_in_bytes", f"{3 * MIB}"),
        ("memory.soft_limit_in_bytes", f"{MIB}"),
        ("memory.limit_in_bytes", f"{3 * MIB}"),
        ("memory.memsw.limit_in_bytes", f"{4 * MIB}"),
        ("cpu.cfs_quota_us", "50000"),
        ("cpu.shares", "2048"),
        ("pids.max", "64"),
        ("blkio.bfq.weight", "50"),
        ("blkio.throttle.read_bps_device", "8:0 5"),
        ("blkio.throttle.write_bps_device", "8:0 0"),
        ("blkio.throttle.read_iops_device", "8:0 0"),
        ("blkio.throttle.write_iops_device", "8:0 0"),
        ("hugetlb.2MB.limit_in_bytes", f"{4 * MIB}"),
    ],
}


@pytest.mark.parametrize("version", [2, 1])
def test_all(host: Host, version: int) -> None:
    """Every limit is set, in an order of isolib's own: what others depend on goes first."""
    controls, directory = host(version)
    refused = Limits(ALL).apply(controls, frozenset({"memory_high"}))
    assert directory.writes == WRITTEN[version]
    assert set(refused) == (set() if version == 2 else {"memory_high"})  # v1 has no such thing
    assert set(ALL) | {"devices", "allow"} == set(LimitFields.__annotations__)


def test_devices(host: Host) -> None:
    """Device rules are set too, here by the files of v1."""
    controls, directory = host(1)
    Limits({"devices": iter(["c 1:3 rw", DeviceRule.parse("c 1:5 r")])}).apply(controls, frozenset())
    assert directory.writes[0] == ("devices.deny", "a")
    assert {("devices.allow", "c 1:3 rw"), ("devices.allow", "c 1:5 r")} == set(directory.writes[1:])
    assert Limits({"devices": ["a"]}).controllers == frozenset()


def test_nothing() -> None:
    """What is None was not asked for, and takes no controller; what is "max" was."""
    assert Limits({}).controllers == Limits(dict.fromkeys(ALL) | {"oom_group": False}).controllers == frozenset()
    assert Limits({"memory_max": "max", "pids_max": 1}).controllers == {"memory", "pids"}
    assert Limits(ALL).controllers == {"cpu", "cpuset", "memory", "io", "pids", "hugetlb"}


@pytest.mark.parametrize("version", [2, 1])
def test_what_can_be_read_once(host: Host, version: int) -> None:
    """Numbers that are given by an iterator are looked at once, when they are checked."""
    controls, directory = host(version)
    limits = Limits({"cpus": iter([0, 1]), "mems": (one for one in (0,))})
    limits.apply(controls, frozenset())
    assert directory.writes == [("cpuset.cpus", "0-1"), ("cpuset.mems", "0")]


@pytest.mark.parametrize("share", [0.001, 0.0099, 0.0123456, 0.5, 3.3333, 8192])
def test_shares_are_set_as_given(host: Host, share: float) -> None:
    """A number of processors is off by no more than the kernel's own grain."""
    controls, _ = host(2)
    Limits({"cpu_max": share}).apply(controls, frozenset())
    assert controls.cpu.max == pytest.approx(share, abs=5e-6)


@pytest.mark.parametrize(
    "given",
    [
        {"memory_max": "1X"},
        {"memory_high": -1},
        {"memory_low": 1.5},
        {"swap_max": True},
        {"cpu_max": "0.5"},
        {"cpu_weight": 0},
        {"cpus": "a"},
        {"mems": []},
        {"pids_max": -1},
        {"io_weight": 10001},
        {"io_max": {"8:0": 1}},
        {"hugetlb_max": {"3": 1}},
        {"devices": "c 1:3 rw"},
        {"oom_group": 2},
    ],
    ids=repr,
)
def test_bad_arguments(given: dict[str, object]) -> None:
    """A bad argument is a PlanError that names it by the caller's word, before there is any group."""
    (name,) = given
    with pytest.raises(PlanError, match=name):
        Limits(given)
    if name != "oom_group":
        with pytest.raises(PlanError, match="their word"):
            Limits(given, {name: "their word"})


# ---- what may be left out ----


def test_refusal(host: Host) -> None:
    """What a host does not have ends the making of a group, unless it may be left out: then it is told, and the rest is set."""
    controls, directory = host(2)
    os.unlink(f"{directory.path}/memory.swap.max")
    os.unlink(f"{directory.path}/cpu.max")
    limits = Limits({"swap_max": 0, "cpu_max": 1, "pids_max": 5})
    for allow in (set(), {"swap_max"}, {"pids_max"}):
        with pytest.raises(Unsupported, match=r"memory\.swap\.max|cpu\.max"):
            limits.apply(controls, frozenset(allow))
    directory.take()
    refused = limits.apply(controls, frozenset({"swap_max", "cpu_max"}))
    assert {name: error.feature for name, error in refused.items()} == {
        "swap_max": "memory.swap_max of a control group",
        "cpu_max": "cpu.max of a control group",
    }
    assert directory.writes == [("pids.max", "5")]


def test_missing_controller(host: Host) -> None:
    """A controller that the place refuses raises that refusal, or reports it where it may be left out."""
    controls, directory = host(2)
    directory.show("cgroup.controllers", "pids\n")
    limits = Limits({"memory_max": 1})
    with pytest.raises(Unsupported, match="a controller: refused by this host"):
        limits.apply(controls, frozenset())
    assert limits.apply(controls, frozenset({"memory_max"})) == {"memory_max": NOWHERE}


def test_refused_value(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that the kernel does not take is no missing feature: it is raised, allowed or not."""
    controls, directory = host(2)
    os.unlink(f"{directory.path}/pids.max")
    os.mkdir(f"{directory.path}/pids.max")  # which no value can be written to
    with pytest.raises(SyscallError, match=r"pids\.max = '5'"):
        Limits({"pids_max": 5}).apply(controls, frozenset({"pids_max"}))


@pytest.mark.parametrize(
    ("allow", "expected"),
    [
        ((), set()),
        ([], set()),
        ({"swap_max"}, {"swap_max"}),
        (("move-self", "cpus"), {"move-self", "cpus"}),
        (["cpus", "cpus"], {"cpus"}),
        (iter(["io_max"]), {"io_max"}),
    ],
    ids=repr,
)
def test_allow(allow: object, expected: set[str]) -> None:
    """What may be left out is named by the arguments, and so is a move of this program."""
    assert parse_allow(allow) == expected


@pytest.mark.parametrize("allow", ["swap_max", None, 1, ["swap"], [1], ["oom_group"], [[]]], ids=repr)
def test_bad_allow(allow: object) -> None:
    """Another name, or a text for a list of names, is a PlanError that says what can be named."""
    with pytest.raises(PlanError, match="allow"):
        parse_allow(allow)


# ---- the group above ----

#: What the group above has, an argument that is within it, and one that is not.
ABOVE = [
    ("memory_max", {"memory_max": "4M"}, "4M", "5M"),
    ("memory_max", {"memory_max": "4M"}, 0, "max"),
    ("swap_max", {"memory_max": "4M", "swap_max": "2M"}, "2M", "3M"),
    ("cpu_max", {"cpu_max": 0.5}, 0.5, 0.51),
    ("cpu_max", {"cpu_max": 0.005}, 0.005, "max"),
    ("pids_max", {"pids_max": 10}, 10, 11),
    ("cpus", {"cpus": "0-3"}, "1,3", "3-4"),
    ("mems", {"mems": "0"}, "0", [0, 1]),
]


@pytest.mark.parametrize("version", [2, 1])
@pytest.mark.parametrize(("name", "above", "within", "beyond"), ABOVE)
def test_within(host: Host, version: int, name: str, above: dict[str, object], within: object, beyond: object) -> None:  # noqa: PLR0917
    """A limit may be what the group above has; more is a PlanError that names both values and the directory."""
    controls, directory = host(version)
    Limits({name: beyond}).check_within(controls)  # where it has none, everything is within
    Limits(above).apply(controls, frozenset())
    Limits({name: within}).check_within(controls)
    directory.take()
    with pytest.raises(PlanError, match=f"{name}={beyond!r}: more than .* of {directory.path}: ".replace("[", r"\[")):
        Limits({name: beyond}).check_within(controls)
    assert directory.writes == []


def test_within_what_is_not_known(host: Host) -> None:
    """A group above that has no such file or controller limits nothing."""
    controls, directory = host(2)
    directory.show("cgroup.controllers", "memory\n")
    os.unlink(f"{directory.path}/memory.max")
    Limits({"memory_max": "1T", "pids_max": 1000, "cpus": "0-100"}).check_within(controls)
