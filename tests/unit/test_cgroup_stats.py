"""What a group uses and has used, from files of both versions in plain directories."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolib.cgroups.controllers.io import DeviceIo
from isolib.cgroups.files import Directory
from isolib.cgroups.history import History
from isolib.cgroups.pressure import PressureLine, PressureValues
from isolib.cgroups.stats import CpuStats, MemoryStats, PidsStats, Stats, read_stats, show_size
from isolib.errors import GoneError, PlanError

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20

#: As Linux 7.2 writes them, with numbers that differ.
V2 = {
    "cgroup.procs": "",
    "cpu.stat": "usage_usec 3500000\nuser_usec 2500000\nsystem_usec 1000000\nnice_usec 0\nnr_periods 20\nnr_throttled 5\n"
    "throttled_usec 250000\nnr_bursts 2\nburst_usec 30000\n",
    "memory.current": "11534336\n",
    "memory.peak": "20971520\n",
    "memory.max": "max\n",
    "memory.swap.current": "4096\n",
    "memory.swap.peak": "8192\n",
    "memory.swap.max": "1048576\n",
    "memory.stat": "anon 5242880\nfile 4194304\nkernel 2097152\nkernel_stack 65536\nsock 1024\nshmem 512\nfile_mapped 2048\n"
    "file_dirty 3072\nfile_writeback 4096\nslab 1048576\npgfault 700\npgmajfault 7\nworkingset_refault_anon 1\n"
    "workingset_refault_file 2\n",
    "memory.events": "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\nsock_throttled 0\n",
    "io.stat": "8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n254:1 \n",
    "pids.current": "3\n",
    "pids.peak": "9\n",
    "pids.max": "64\n",
    "pids.events": "max 2\n",
    "cpu.pressure": "some avg10=1.50 avg60=0.50 avg300=0.10 total=2500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
    "irq.pressure": "full avg10=0.00 avg60=0.00 avg300=0.00 total=1000\n",
    "hugetlb.2MB.current": "4194304\n",
    "hugetlb.2MB.max": "max\n",
}

#: As Linux 6.18 writes them.
V1 = {
    "cgroup.procs": "",
    "cpu.stat": "nr_periods 20\nnr_throttled 5\nthrottled_time 250000000\nnr_bursts 2\nburst_time 30000000\n",
    "cpuacct.usage": "3500000000\n",
    "cpuacct.usage_user": "2500000000\n",
    "cpuacct.usage_sys": "1000000000\n",
    "memory.usage_in_bytes": "11534336\n",
    "memory.max_usage_in_bytes": "20971520\n",
    "memory.limit_in_bytes": "33554432\n",
    "memory.memsw.limit_in_bytes": "34603008\n",
    "memory.kmem.usage_in_bytes": "2097152\n",
    "memory.kmem.tcp.usage_in_bytes": "1024\n",
    "memory.failcnt": "3\n",
    "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n",
    "memory.stat": "cache 1\nrss 2\ntotal_cache 4194304\ntotal_rss 5242880\ntotal_shmem 512\ntotal_mapped_file 2048\n"
    "total_dirty 3072\ntotal_writeback 4096\ntotal_workingset_refault_anon 1\ntotal_workingset_refault_file 2\n"
    "total_swap 4096\ntotal_pgfault 700\ntotal_pgmajfault 7\n",
    "blkio.throttle.io_service_bytes_recursive": "8:0 Read 4096\n8:0 Write 8192\n8:0 Total 12288\nTotal 12288\n",
    "blkio.throttle.io_serviced_recursive": "8:0 Read 1\n8:0 Write 2\n8:0 Total 3\nTotal 3\n",
    "pids.current": "3\n",
    "pids.peak": "9\n",
    "pids.max": "max\n",
    "pids.events": "max 2\n",
    "hugetlb.2MB.usage_in_bytes": "4194304\n",
    "hugetlb.2MB.limit_in_bytes": "9223372036852678656\n",
}
CONTROLLERS = ("memory", "cpu", "cpuacct", "io", "pids", "hugetlb")

SAME_MEMORY = {
    "current": 11 * MIB,
    "peak": 20 * MIB,
    "swap": 4096,
    "swap_limit": MIB,
    "anon": 5 * MIB,
    "file": 4 * MIB,
    "shmem": 512,
    "mapped": 2048,
    "dirty": 3072,
    "writeback": 4096,
    "kernel": 2 * MIB,
    "sock": 1024,
    "pgfault": 700,
    "pgmajfault": 7,
    "refaults_anon": 1,
    "refaults_file": 2,
    "max_hits": 3,
    "oom_kills": 5,
}
"""What both versions tell, by the same names."""


def fill(place: Path, files: dict[str, str]) -> Path:
    """Write files into a new directory."""
    place.mkdir()
    for name, text in files.items():
        (place / name).write_text(text)
    return place


@pytest.fixture
def v2(tmp_path: Path) -> Iterator[Directory]:
    """Return a directory as of cgroup v2."""
    with Directory.open(str(fill(tmp_path / "v2", V2)), 2) as directory:
        yield directory


@pytest.fixture
def v1(tmp_path: Path) -> Iterator[Directory]:
    """Return a directory as of cgroup v1, with all controllers mounted together."""
    with Directory.open(str(fill(tmp_path / "v1", V1)), 1) as directory:
        yield directory


def of_v2(directory: Directory) -> Stats:
    """Return what a group of a unified host says."""
    return read_stats(directory, dict.fromkeys(CONTROLLERS[:2] + CONTROLLERS[3:], directory))


def of_v1(directory: Directory) -> Stats:
    """Return what a group of a legacy host says."""
    return read_stats(None, dict.fromkeys(CONTROLLERS, directory))


def test_memory(v2: Directory, v1: Directory) -> None:
    """Both versions tell the same by the same names, and what only one tells is None in the other."""
    new, old = of_v2(v2).memory, of_v1(v1).memory
    assert new is not None
    assert old is not None
    for memory in (new, old):
        assert {name: getattr(memory, name) for name in SAME_MEMORY} == SAME_MEMORY
    assert (new.limit, old.limit) == (None, 32 * MIB)
    assert (new.slab, new.swap_peak, new.low_hits, new.high_hits, new.ooms, new.oom_group_kills) == (MIB, 8192, 1, 2, 4, 6)
    assert (old.slab, old.swap_peak, old.low_hits, old.high_hits, old.ooms, old.oom_group_kills) == (None,) * 6
    assert new.raw["kernel_stack"] == 65536
    assert old.raw["rss"] == 2


def test_cpu(v2: Directory, v1: Directory) -> None:
    """Times are in seconds, whether the kernel wrote microseconds or nanoseconds."""
    assert of_v2(v2).cpu == of_v1(v1).cpu == CpuStats(2.5, 1.0, 3.5, 20, 5, 0.25, 2, 0.03)


def test_cpu_of_a_hybrid_host(v2: Directory, v1: Directory) -> None:
    """Where v2 has the times and v1 the controller, the throttling is v1's."""
    Path(v2.path, "cpu.stat").write_text("usage_usec 3500000\nuser_usec 2500000\nsystem_usec 1000000\n")
    assert read_stats(v2, {"cpu": v1}).cpu == CpuStats(2.5, 1.0, 3.5, 20, 5, 0.25, 2, 0.03)
    assert read_stats(v2, {}).cpu == CpuStats(2.5, 1.0, 3.5)
    assert read_stats(None, {"cpu": v1}).cpu == CpuStats(None, None, None, 20, 5, 0.25, 2, 0.03)


def test_io_and_pids_and_huge_pages(v2: Directory, v1: Directory) -> None:
    """Disks are named by their numbers, and a device that has done nothing is there with nothing."""
    new, old = of_v2(v2), of_v1(v1)
    assert new.io == {(8, 0): DeviceIo(4096, 8192, 1, 2), (254, 1): DeviceIo()}
    assert old.io == {(8, 0): DeviceIo(4096, 8192, 1, 2)}
    assert new.pids == PidsStats(3, 9, 64, 2)
    assert old.pids == PidsStats(3, 9, None, 2)
    assert new.hugetlb == old.hugetlb == {"2MB": 4 * MIB}


def test_pressure(v2: Directory, v1: Directory) -> None:
    """What the kernel counts is there, and nothing is made up for the rest."""
    some, nothing = PressureLine(1.5, 0.5, 0.1, 2.5), PressureLine()
    irq = PressureValues(None, PressureLine(total=0.001))
    assert of_v2(v2).pressure == {"cpu": PressureValues(some, nothing), "irq": irq}
    assert of_v1(v1).pressure == {}


def test_what_a_host_does_not_tell(tmp_path: Path) -> None:
    """A group without any of these files has None, and controllers that are nowhere have no value at all."""
    with Directory.open(str(fill(tmp_path / "bare", {"cgroup.procs": ""})), 2) as bare:
        assert read_stats(bare, {}) == Stats()
        found = read_stats(bare, dict.fromkeys(CONTROLLERS, bare))
    assert found == Stats(memory=MemoryStats(), pids=PidsStats())


def test_group_that_is_gone(v2: Directory) -> None:
    """A group that was removed is an error and no empty value."""
    for file in Path(v2.path).iterdir():
        file.unlink()
    with pytest.raises(GoneError, match="removed"):
        of_v2(v2)


def test_samples_are_new(v2: Directory) -> None:
    """A file that stays open gives what is in it now; one that was not there is not asked for again, but pressure is."""
    before = of_v2(v2)
    Path(v2.path, "pids.current").write_text("4\n")
    Path(v2.path, "io.pressure").write_text(V2["cpu.pressure"])
    now = of_v2(v2)
    assert before != now
    assert (now.pids, now.time > before.time) == (PidsStats(4, 9, 64, 2), True)
    assert "io" in now.pressure


def test_since(v2: Directory) -> None:
    """A difference has what was counted meanwhile, and the rest as it is now."""
    before = of_v2(v2)
    Path(v2.path, "cpu.stat").write_text(V2["cpu.stat"].replace("3500000", "5000000"))
    Path(v2.path, "memory.stat").write_text(V2["memory.stat"].replace("pgfault 700", "pgfault 1000"))
    Path(v2.path, "io.stat").write_text(V2["io.stat"].replace("4096", "5000") + "8:16 rbytes=1 wbytes=2\n")
    Path(v2.path, "cpu.pressure").write_text(V2["cpu.pressure"].replace("2500000", "3000000"))
    now = of_v2(v2)
    change = now.since(before)
    assert change.cpu == CpuStats(0, 0, 1.5, 0, 0, 0, 0, 0)
    assert change.memory is not None
    assert now.memory is not None
    assert (change.memory.pgfault, change.memory.oom_kills, change.memory.current) == (300, 0, now.memory.current)
    assert change.io == {(8, 0): DeviceIo(904), (254, 1): DeviceIo(), (8, 16): DeviceIo(1, 2)}
    assert change.pids == PidsStats(3, 9, 64, 0)
    assert change.pressure["cpu"].some == PressureLine(1.5, 0.5, 0.1, 0.5)
    assert change.pressure["irq"] == PressureValues(None, PressureLine())
    assert change.time == now.time - before.time
    assert now.since(Stats()) == now


def test_values(v2: Directory, v1: Directory) -> None:
    """Samples can be pickled, do not change, and show in a table what they know and nothing else."""
    for stats in (of_v2(v2), of_v1(v1), Stats()):
        assert pickle.loads(pickle.dumps(stats)) == stats  # noqa: S301 - our own
        with pytest.raises(AttributeError):
            stats.time = 0  # type: ignore[misc]  # that is the test
        assert "None" not in stats._repr_html_()
    html = of_v2(v2)._repr_html_()
    for text in ("current 11 MiB", "total 3.500 s", "io 8:0", "read 4 KiB", "cpu pressure", "some 1.5 %", "2MB"):
        assert text in html


@given(st.integers(min_value=0, max_value=2**63))
def test_sizes_for_people(number: int) -> None:
    """A size is shown in few characters, whatever it is."""
    assert len(show_size(number)) < 16


@given(st.dictionaries(st.sampled_from([*V2, *V1]), st.binary(max_size=200)))
def test_whatever_the_files_hold(files: dict[str, bytes]) -> None:
    """What is in the files ends in a value or in a ValueError."""
    for version in (2, 1):
        directory = Contents(files, version)
        try:
            found = read_stats(directory, dict.fromkeys(CONTROLLERS, directory))
        except ValueError:
            continue
        assert isinstance(found, Stats)


class Contents(Directory):
    """A directory that is in memory only: hypothesis makes many."""

    __slots__ = ("_contents",)

    def __init__(self, contents: dict[str, bytes], version: int) -> None:
        self.path = "/memory"
        self.version = version
        self._contents = contents

    def sample_if_there(self, name: str, *, comes_and_goes: bool = False) -> bytes | None:  # noqa: ARG002 - as its base
        """Return what was given."""
        return self._contents.get(name)

    def entries(self) -> list[str]:
        """Return the names."""
        return list(self._contents)


# ---- series of samples ----


def series_of(*samples: Stats, most: int = 100) -> History:
    """Return a history that has ended and holds these."""
    left = list(samples)

    def sample() -> Stats:
        if not left:
            raise GoneError("read", "the group")
        return left.pop(0)

    with History(sample, 0.0001, most=most) as history:
        history._thread.join(30)
    return history


SAMPLES = (
    Stats(
        memory=MemoryStats(current=10, raw={"pgscan": 1}),
        cpu=CpuStats(total=1.0),
        io={(8, 0): DeviceIo(read_bytes=1), (8, 16): DeviceIo(read_bytes=2)},
        pressure={"cpu": PressureValues(PressureLine(avg10=5.0))},
        hugetlb={"2MB": 4},
        time=100.0,
    ),
    Stats(memory=MemoryStats(current=20), cpu=CpuStats(total=1.5), time=101.0),
    Stats(memory=MemoryStats(), cpu=CpuStats(total=3.5), time=103.0),
)


@pytest.mark.parametrize(
    ("name", "rate", "expected"),
    [
        ("memory.current", False, ([0.0, 1.0], [10.0, 20.0])),
        ("memory.current", True, ([1.0], [10.0])),
        ("cpu.total", False, ([0.0, 1.0, 3.0], [1.0, 1.5, 3.5])),
        ("cpu.total", True, ([1.0, 3.0], [0.5, 1.0])),
        ("io.read_bytes", False, ([0.0], [3.0])),
        ("io.8:16.read_bytes", False, ([0.0], [2.0])),
        ("io.8:32.read_bytes", False, ([], [])),
        ("memory.raw.pgscan", False, ([0.0], [1.0])),
        ("pressure.cpu.some.avg10", False, ([0.0], [5.0])),
        ("pressure.cpu.full.avg10", False, ([], [])),
        ("hugetlb.2MB", False, ([0.0], [4.0])),
        ("pids.current", False, ([], [])),
    ],
)
def test_series(name: str, rate: bool, expected: tuple[list[float], list[float]]) -> None:  # noqa: FBT001 - a parameter
    """Times and values are of equal length, and samples without the number are left out."""
    assert series_of(*SAMPLES).series(name, rate=rate) == expected


@pytest.mark.parametrize(
    "name",
    ["", "memory", "memory.", "memory.raw", "memory.nonsense", "io", "io.a.b.c", "cpu.total.more", "time", "pressure.cpu.some"],
)
def test_series_of_nothing(name: str) -> None:
    """A name that no sample can have is refused, and the message lists those that it can."""
    with pytest.raises(PlanError, match=r"memory\.current"):
        series_of(*SAMPLES).series(name)


@pytest.mark.parametrize(
    ("every", "most", "words"),
    [
        (0, 1, "every"),
        (-1, 1, "every"),
        ("1", 1, "every"),
        (1, 0, "most"),
        (1, -1, "most"),
        (1, 1.5, "most"),
        (1, True, "most"),
    ],
)
def test_bad_histories(every: float, most: int, words: str) -> None:
    """What cannot work is refused before any thread is started or sample taken."""
    with pytest.raises(PlanError, match=words):
        History(Stats, every, most=most)


def test_pictures() -> None:
    """A history without a number has no line for it, and one with equal numbers has a flat one."""
    assert "<polyline" not in series_of(Stats())._repr_html_()
    flat = [Stats(memory=MemoryStats(current=0), time=at) for at in (0.0, 1.0)]
    html = series_of(*flat)._repr_html_()
    assert html.count("<polyline") == 1
    assert "0 bytes" in html
