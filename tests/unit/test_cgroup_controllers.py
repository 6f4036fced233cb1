"""The controllers on plain directories with the files that a kernel has: what is read, and exactly what is written where."""

from __future__ import annotations

import os
from collections.abc import Callable
from errno import EINVAL
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from isolib.cgroups.controllers.cpu import Cpu
from isolib.cgroups.controllers.cpuset import Cpuset, inherit
from isolib.cgroups.controllers.hugetlb import Hugetlb, page_name
from isolib.cgroups.controllers.io import Io
from isolib.cgroups.controllers.memory import Memory
from isolib.cgroups.controllers.pids import Pids
from isolib.errors import GoneError, PlanError, SyscallError, Unsupported
from isolib.types import MAX_SIZE
from tests.recorded import FILES, MIB, Recorded, fill, group

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from isolib.cgroups.controllers.knobs import Controller

Kind: TypeAlias = "type[Controller]"
Writes: TypeAlias = list[tuple[str, str]]
Case: TypeAlias = "tuple[Kind, str, object, Writes, Writes | None]"
Make: TypeAlias = Callable[[Kind, int], Any]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Return a function that makes a controller of a new group; its `directory` notes what is written."""
    made: list[Recorded] = []

    def new(kind: Kind, version: int) -> Controller:
        made.append(group(tmp_path / str(len(made)), version))
        controller = kind(made[-1])
        return controller.counting(lambda: None).listing(lambda: [7]) if isinstance(controller, Pids) else controller

    yield new
    for one in made:
        one.close()


# ---- reading ----

#: Attribute, and its value in a new group of either version; Unsupported where the version has no such thing.
NEW: list[tuple[Kind, str, object, object]] = [
    (Cpu, "max", None, None),
    (Cpu, "burst", 0.0, 0.0),
    (Cpu, "weight", 100, 100),
    (Cpu, "idle", False, False),
    (Cpu, "uclamp_min", 0.0, 0.0),
    (Cpu, "uclamp_max", 100.0, 100.0),
    (Cpuset, "cpus", frozenset(), frozenset()),
    (Cpuset, "mems", frozenset(), frozenset()),
    (Cpuset, "effective_cpus", {0, 1, 2, 3}, {0, 1, 2, 3}),
    (Cpuset, "effective_mems", {0}, {0}),
    (Memory, "max", None, None),
    (Memory, "high", None, Unsupported),
    (Memory, "low", 0, MAX_SIZE),
    (Memory, "min", 0, Unsupported),
    (Memory, "swap_max", None, None),
    (Memory, "swap_high", None, Unsupported),
    (Memory, "oom_group", False, Unsupported),
    (Memory, "current", MIB, MIB),
    (Memory, "peak", 2 * MIB, 2 * MIB),
    (Memory, "swap_current", 4096, 4096),
    (Io, "max", {}, {}),
    (Io, "weight", 100, 100),
    (Io, "latency", {}, Unsupported),
    (Pids, "max", None, None),
    (Pids, "current", 3, 3),
    (Pids, "peak", 9, 9),
    (Pids, "hits", 2, 2),
    (Hugetlb, "max", {"1GB": None, "2MB": None}, {"1GB": None, "2MB": None}),
]


@pytest.mark.parametrize(("kind", "name", "v2", "v1"), NEW)
def test_new_group(make: Make, kind: Kind, name: str, v2: object, v1: object) -> None:
    """A group in which nothing was set has no limits, whichever way its version shows that."""
    for version, expected in ((2, v2), (1, v1)):
        controller = make(kind, version)
        if expected is Unsupported:
            with pytest.raises(Unsupported, match=f"{controller.name}.{name} .*cgroup v{version}.*cgroup v{3 - version}"):
                getattr(controller, name)
        else:
            assert getattr(controller, name) == expected
        assert controller.directory.writes == []


# ---- writing ----

#: Attribute, what is assigned, what is written in v2, and in v1; None where the version has no such thing.
WRITTEN: list[Case] = [
    (Cpu, "max", 0.5, [("cpu.max", "50000 100000")], [("cpu.cfs_quota_us", "50000")]),
    (Cpu, "max", None, [("cpu.max", "max")], [("cpu.cfs_quota_us", "-1")]),
    (Cpu, "max", 0.005, [("cpu.max", "5000 1000000")], [("cpu.cfs_period_us", "1000000"), ("cpu.cfs_quota_us", "5000")]),
    (Cpu, "burst", 0.02, [("cpu.max.burst", "20000")], [("cpu.cfs_burst_us", "20000")]),
    (Cpu, "weight", 1, [("cpu.weight", "1")], [("cpu.shares", "10")]),
    (Cpu, "weight", 10000, [("cpu.weight", "10000")], [("cpu.shares", "102400")]),
    (Cpu, "idle", True, [("cpu.idle", "1")], [("cpu.idle", "1")]),
    (Cpu, "uclamp_min", 12.5, [("cpu.uclamp.min", "12.50")], [("cpu.uclamp.min", "12.50")]),
    (Cpu, "uclamp_max", 100, [("cpu.uclamp.max", "100.00")], [("cpu.uclamp.max", "100.00")]),
    (Cpuset, "cpus", {0, 1, 2, 7}, [("cpuset.cpus", "0-2,7")], [("cpuset.cpus", "0-2,7")]),
    (Cpuset, "mems", {0}, [("cpuset.mems", "0")], [("cpuset.mems", "0")]),
    (
        *(Memory, "max", 64 * MIB),
        [("memory.max", "67108864")],
        [("memory.limit_in_bytes", "67108864")],
    ),
    (
        *(Memory, "max", None),
        [("memory.max", "max")],
        [("memory.limit_in_bytes", "-1")],
    ),
    (Memory, "high", 4096, [("memory.high", "4096")], None),
    (Memory, "high", None, [("memory.high", "max")], None),
    (Memory, "low", 4096, [("memory.low", "4096")], [("memory.soft_limit_in_bytes", "4096")]),
    (Memory, "low", 0, [("memory.low", "0")], [("memory.soft_limit_in_bytes", "0")]),
    (Memory, "low", MAX_SIZE, [("memory.low", "max")], [("memory.soft_limit_in_bytes", "-1")]),
    (Memory, "min", 4096, [("memory.min", "4096")], None),
    (Memory, "min", MAX_SIZE, [("memory.min", "max")], None),
    (Memory, "swap_high", 4096, [("memory.swap.high", "4096")], None),
    (Memory, "oom_group", True, [("memory.oom.group", "1")], None),
    (Io, "weight", 1000, [("io.bfq.weight", "1000")], [("blkio.bfq.weight", "1000")]),
    (Pids, "max", 64, [("pids.max", "64")], [("pids.max", "64")]),
    (Pids, "max", None, [("pids.max", "max")], [("pids.max", "max")]),
    (Hugetlb, "max", {"2MB": 64 * MIB, "1GB": None}, [("hugetlb.2MB.max", "67108864"), ("hugetlb.1GB.max", "max")], [
        ("hugetlb.2MB.limit_in_bytes", "67108864"), ("hugetlb.1GB.limit_in_bytes", "-1")]),
]  # fmt: skip


@pytest.mark.parametrize("case", WRITTEN, ids=lambda case: f"{case[0].name}.{case[1]}={case[2]}")
def test_assigned(make: Make, case: Case) -> None:
    """What is assigned is written in the words of the version into its file, and is what is read afterwards."""
    kind, name, value, *both = case
    for version, expected in zip((2, 1), both, strict=True):
        controller = make(kind, version)
        if expected is None:
            with pytest.raises(Unsupported, match=f"cgroup v{version}, which has no such thing"):
                setattr(controller, name, value)
            assert controller.directory.writes == []
        else:
            setattr(controller, name, value)
            assert controller.directory.writes == expected
            assert getattr(controller, name) == value


def test_texts(make: Make) -> None:
    """Texts with units, "max" and lists of processors mean what they mean in the kernel, and so does "all" protection."""
    for version in (2, 1):
        memory = make(Memory, version)
        memory.max, memory.low = "1M", "max"
        assert (memory.max, memory.low) == (MIB, MAX_SIZE)
        memory.max, memory.low = "max", None
        assert (memory.max, memory.low) == (None, 0)
        cpuset, huge = make(Cpuset, version), make(Hugetlb, version)
        cpuset.cpus, huge.max = "0-1", {"2M": "4M"}
        assert (cpuset.cpus, huge.max["2MB"]) == ({0, 1}, 4 * MIB)


#: What no controller takes.
BAD: list[tuple[Kind, str, list[object]]] = [
    (Cpu, "max", [0, -1, "1", True, 10**400]),
    (Cpu, "burst", [-1, "1", None, True]),
    (Cpu, "weight", [0, 10001, None, 1.5]),
    (Cpu, "idle", [2, None, "1"]),
    (Cpu, "uclamp_min", [-1, 100.1, float("nan"), True, "1", 10**400]),
    (Cpu, "uclamp_max", [-1, "max"]),
    (Cpuset, "cpus", ["", (), "a", 0, None]),
    (Cpuset, "mems", [[-1], "1-0"]),
    *((Memory, name, [-1, "1X", 1.5, True]) for name in ("max", "high", "low", "min", "swap_max", "swap_high")),
    (Memory, "oom_group", [None, 2]),
    (Io, "max", [None, [], {"8:0": 5}, {"nothing": 1}, {(8, 0): None}]),
    (Io, "weight", [0, 10001, None]),
    (Pids, "max", [-1, 1.0, "5", 1 << 23]),
    (Hugetlb, "max", [None, 5, {"3": 1}, {"2M": -1}, {0: 1}, {"x": 1}]),
]


@pytest.mark.parametrize("version", [2, 1])
@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [(kind, name, value) for kind, name, some in BAD for value in some],
    ids=lambda value: repr(value)[:40],
)
def test_bad_values(make: Make, kind: Kind, name: str, value: object, version: int) -> None:
    """What cannot work is a PlanError that names the attribute, before anything is written."""
    controller = make(kind, version)
    with pytest.raises(PlanError, match=f"{controller.name}.{name}"):
        setattr(controller, name, value)
    assert controller.directory.writes == []


# ---- what is not there ----

#: Attribute, and its file in each version.
FILE_OF = [
    (Cpu, "max", "cpu.max", "cpu.cfs_quota_us"),
    (Cpu, "burst", "cpu.max.burst", "cpu.cfs_burst_us"),
    (Cpu, "weight", "cpu.weight", "cpu.shares"),
    (Cpu, "idle", "cpu.idle", "cpu.idle"),
    (Cpu, "uclamp_min", "cpu.uclamp.min", "cpu.uclamp.min"),
    (Cpu, "uclamp_max", "cpu.uclamp.max", "cpu.uclamp.max"),
    (Cpuset, "effective_cpus", "cpuset.cpus.effective", "cpuset.effective_cpus"),
    (Memory, "max", "memory.max", "memory.limit_in_bytes"),
    (Memory, "peak", "memory.peak", "memory.max_usage_in_bytes"),
    (Memory, "swap_max", "memory.swap.max", "memory.memsw.limit_in_bytes"),
    (Memory, "swap_current", "memory.swap.current", "memory.memsw.usage_in_bytes"),
    (Memory, "events", "memory.events", "memory.oom_control"),
    (Io, "max", "io.max", "blkio.throttle.read_bps_device"),
    (Io, "stat", "io.stat", "blkio.throttle.io_serviced_recursive"),
    (Pids, "peak", "pids.peak", "pids.peak"),
    (Pids, "hits", "pids.events", "pids.events"),
]


def get(controller: Controller, name: str) -> object:
    """Return an attribute, or what a method returns."""
    found = getattr(controller, name)
    return found() if callable(found) else found


@pytest.mark.parametrize(("kind", "name", "v2", "v1"), FILE_OF)
def test_missing_files(make: Make, kind: Kind, name: str, v2: str, v1: str) -> None:
    """A file that the kernel does not give is Unsupported, and the message names it and its directory."""
    for version, file in ((2, v2), (1, v1)):
        get(make(kind, version), name)  # where the file is, nothing is refused
        controller = make(kind, version)  # another: what was asked for once may stay open
        os.unlink(f"{controller.directory.path}/{file}")
        with pytest.raises(Unsupported, match=f"{controller.directory.path} no {file}") as caught:
            get(controller, name)
        assert caught.value.feature.startswith(f"{controller.name}.{name} ")
        assert f"+{controller.name}" in caught.value.remedy


def test_assigning_to_missing_files(make: Make) -> None:
    """An assignment makes no file, but is Unsupported as well."""
    cpu = make(Cpu, 2)
    os.unlink(f"{cpu.directory.path}/cpu.max")
    with pytest.raises(Unsupported, match=r"no cpu\.max"):
        cpu.max = 1
    assert not cpu.directory.has("cpu.max")


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (Cpu, "max", 1),
        (Cpuset, "cpus", "0"),
        (Memory, "max", 1),
        (Io, "weight", 1),
        (Pids, "max", 1),
        (Hugetlb, "max", {"2M": 1}),
    ],
)
def test_missing_controllers(kind: Kind, name: str, value: object) -> None:
    """A controller that is nowhere raises its refusal whenever it is used, and says so when it is shown."""
    refusal = Unsupported("a thing", "somebody", "a remedy")
    for given, words in ((refusal, "a thing: refused by somebody"), (None, f"the {kind.name} controller .* no hierarchy")):
        controller: Any = kind(None, given)
        assert not controller.is_available
        assert repr(controller) == f"<{kind.__name__} not available>"
        with pytest.raises(Unsupported, match=words):
            getattr(controller, name)
        with pytest.raises(Unsupported, match=words):
            setattr(controller, name, value)


def test_shown(make: Make) -> None:
    """A controller shows where it is, and its attributes have docstrings."""
    memory = make(Memory, 1)
    assert repr(memory) == f"<Memory {memory.directory.path}, v1>"
    for kind in (Cpu, Cpuset, Memory, Io, Pids, Hugetlb):
        assert all(one.__doc__ for name, one in vars(kind).items() if not name.startswith("_") and name != "name")


def test_removed_group(make: Make) -> None:
    """A file of a group that was removed is no missing feature: the group is gone."""
    memory = make(Memory, 2)
    for file in FILES[2]:
        os.unlink(f"{memory.directory.path}/{file}")
    for act in (lambda: memory.max, lambda: setattr(memory, "max", 1), memory.events):
        with pytest.raises(GoneError, match="removed"):
            act()


# ---- what is particular to one ----


def refuse(directory: Recorded, name: str, value: str) -> None:
    """Raise what a write does whose value the kernel does not take."""
    raise directory.refused("write", name, EINVAL, value)


def test_burst_needs_a_quota(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the kernel refuses a burst for want of a quota, the message says so and not only "invalid argument"."""
    cpu = make(Cpu, 2)
    monkeypatch.setattr(Recorded, "write", refuse)
    with pytest.raises(PlanError, match=r"there is no cpu\.max"):
        cpu.burst = 0.01
    cpu.directory.show("cpu.max", "5000 100000\n")
    with pytest.raises(PlanError, match=r"more than the quota, 0\.005 s"):
        cpu.burst = 0.01
    with pytest.raises(SyscallError, match="EINVAL"):
        cpu.burst = 0.004


def test_events(make: Make) -> None:
    """What v2 counts apart for the group alone can be asked for, where the kernel has it; v1 counts two things."""
    new, old = make(Memory, 2), make(Memory, 1)
    assert new.events() == {"low": 1, "high": 2, "max": 3, "oom": 4, "oom_kill": 5, "oom_group_kill": 6}
    assert new.events(local=True)["oom_kill"] == 1
    os.unlink(f"{new.directory.path}/memory.events.local")
    assert new.events(local=True)["oom_kill"] == 5
    assert old.events() == old.events(local=True) == {"max": 3, "oom_kill": 5}


def test_reclaim_and_peaks(make: Make) -> None:
    """Memory is reclaimed in v2 only, and a peak can be reset in v1 only."""
    new, old = make(Memory, 2), make(Memory, 1)
    assert new.reclaim("1M") is True
    old.reset_peak()
    assert new.directory.writes == [("memory.reclaim", "1048576")]
    assert old.directory.writes == [("memory.max_usage_in_bytes", "0")]
    with pytest.raises(Unsupported, match="cgroup v1"):
        old.reclaim(1)
    with pytest.raises(Unsupported, match="cgroup v2"):
        new.reset_peak()
    with pytest.raises(PlanError, match="amount"):
        new.reclaim(-1)


def test_processes(make: Make) -> None:
    """The controller of processes is called for their numbers; a better count of refusals is used where there is one."""
    pids = make(Pids, 1)
    assert pids() == [7]
    assert pids.counting(lambda: 0).hits == 0
    assert pids.counting(lambda: None).hits == 2


def test_inherited_processors(tmp_path: Path) -> None:
    """A new group of v1 is given the processors and memory nodes of the one above it, and keeps those that it has."""
    with group(tmp_path / "above", 1) as above, group(tmp_path / "below", 1) as below:
        above.show("cpuset.cpus", "0-3\n")
        above.show("cpuset.mems", "0\n")
        below.show("cpuset.cpus", "1\n")
        inherit(above, below)
        assert below.writes == [("cpuset.mems", "0")]


@pytest.mark.parametrize(
    ("given", "name"),
    [("2M", "2MB"), ("2MB", "2MB"), (2 << 20, "2MB"), ("1G", "1GB"), ("64K", "64KB"), ("32M", "32MB"), ("16G", "16GB")],
)
def test_page_names(given: int | str, name: str) -> None:
    """A size of pages is named as the kernel names its files."""
    assert page_name(given) == name


def test_huge_pages(make: Make) -> None:
    """Every size has its own count, limits on reservations are not taken for others, and an unknown size is Unsupported."""
    for version in (2, 1):
        huge = make(Hugetlb, version)
        assert (huge.current("2M"), huge.current("1G")) == (4 * MIB, 0)
        with pytest.raises(Unsupported, match=r"no hugetlb\.16GB\."):
            huge.current("16G")
        with pytest.raises(Unsupported, match=r"no hugetlb\.16GB\."):
            huge.max = {"16G": 0}
        huge.max = {"2M": 0}
        assert huge.max == {"2MB": 0, "1GB": None}


def test_pages_of_64_kib(tmp_path: Path) -> None:
    """Where a page has 64 KiB, v1 shows less for no limit, and it is none all the same."""
    with group(tmp_path / "big", 1) as directory:
        fill(directory.path, dict.fromkeys(("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"), f"{2**63 - 2**16}\n"))
        assert (Memory(directory).max, Memory(directory).swap_max) == (None, None)
