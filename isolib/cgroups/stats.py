"""What a group uses and has used, read from the files of its controllers (cgroup-v2.rst; cgroup-v1/memory.rst).

Every file stays open in its directory, so that the second sample costs a fraction of the first.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, fields, replace
from html import escape
from typing import TYPE_CHECKING, Final, TypeVar

from isolib.cgroups.controllers.hugetlb import sizes
from isolib.cgroups.controllers.io import STAT_FILES, DeviceIo, load_stat, load_v1_stat
from isolib.cgroups.controllers.knobs import load_limit
from isolib.cgroups.files import parse_flat
from isolib.cgroups.pressure import RESOURCES, PressureLine, PressureValues, parse_pressure

if TYPE_CHECKING:
    from collections.abc import Mapping

    from isolib.cgroups.files import Directory

__all__ = ["CpuStats", "MemoryStats", "PidsStats", "Stats", "read_stats"]

_V2: Final = 2
_MICRO: Final = 1e6
_NANO: Final = 1e9

ValueT = TypeVar("ValueT")


@dataclass(frozen=True, slots=True)
class MemoryStats:
    """The memory of a group, in bytes; what is counted, since the group was made.  None: the host does not tell.

    Attributes
    ----------
    current
        In use now.
    peak
        The most that was in use at any one time.
    limit
        What may be used at the most; None: no limit.
    swap, swap_peak, swap_limit
        The same for swap, which is beside it.
    anon, file, shmem, mapped, dirty, writeback
        Memory of programs; files in the page cache, of which some are tmpfs and shared memory, some are mapped, some are to be
        written, and some are being written.
    kernel, slab, sock
        What the kernel keeps for the group; of which the slabs are (v2); the buffers of sockets (v1: of TCP).
    pgfault, pgmajfault, refaults_anon, refaults_file
        Page faults; those that waited for a disk; pages that were needed again after they had been reclaimed.
    low_hits, high_hits, max_hits
        How often it was reclaimed although protected, went beyond memory.high, and met its limit.
    ooms, oom_kills, oom_group_kills
        How often nothing was left to be reclaimed; how many processes were killed for it; how often the whole group was.  v1
        counts kills only, and only those in the group itself.
    raw
        Every line of memory.stat.
    """

    current: int | None = None
    peak: int | None = None
    limit: int | None = None
    swap: int | None = None
    swap_peak: int | None = None
    swap_limit: int | None = None
    anon: int | None = None
    file: int | None = None
    shmem: int | None = None
    mapped: int | None = None
    dirty: int | None = None
    writeback: int | None = None
    kernel: int | None = None
    slab: int | None = None
    sock: int | None = None
    pgfault: int | None = None
    pgmajfault: int | None = None
    refaults_anon: int | None = None
    refaults_file: int | None = None
    low_hits: int | None = None
    high_hits: int | None = None
    max_hits: int | None = None
    ooms: int | None = None
    oom_kills: int | None = None
    oom_group_kills: int | None = None
    raw: Mapping[str, int] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class CpuStats:
    """The processor time of a group, since it was made.  None: the host does not tell.

    Attributes
    ----------
    user, system, total
        In seconds.
    periods, throttled_periods, throttled
        Periods of cpu.max that began, those in which the group had to stop, and for how many seconds.
    bursts, burst
        Periods in which it used time that it had saved up, and how many seconds of it.
    """

    user: float | None = None
    system: float | None = None
    total: float | None = None
    periods: int | None = None
    throttled_periods: int | None = None
    throttled: float | None = None
    bursts: int | None = None
    burst: float | None = None


@dataclass(frozen=True, slots=True)
class PidsStats:
    """The processes and threads of a group.  None: the host does not tell.

    Attributes
    ----------
    current
        How many there are.
    peak
        The most that there were at any one time.
    limit
        How many there may be; None: no limit.
    hits
        How often one more was refused.
    """

    current: int | None = None
    peak: int | None = None
    limit: int | None = None
    hits: int | None = None


#: What counts up for ever, by class: what a difference can be taken of.
_COUNTERS: Final[Mapping[type, frozenset[str]]] = {
    MemoryStats: frozenset(
        {
            *("pgfault", "pgmajfault", "refaults_anon", "refaults_file"),
            *("low_hits", "high_hits", "max_hits", "ooms", "oom_kills", "oom_group_kills"),
        }
    ),
    CpuStats: frozenset(one.name for one in fields(CpuStats)),
    PidsStats: frozenset({"hits"}),
    DeviceIo: frozenset(one.name for one in fields(DeviceIo)),
    PressureLine: frozenset({"total"}),
}


@dataclass(frozen=True, slots=True)
class Stats:
    """What a group uses and has used, at one moment.

    Attributes
    ----------
    memory, cpu, pids
        None where no controller of the host counts it for the group.
    io
        What was read and written, by ``(major, minor)`` of the device.
    pressure
        By resource: ``"cpu"``, ``"memory"``, ``"io"``, ``"irq"``; those that the host tells.
    hugetlb
        Bytes of huge pages in use, by the size of the page: ``"2MB"``.
    time
        When, as `time.monotonic` says, in seconds; samples that differ in nothing else are equal.
    """

    memory: MemoryStats | None = None
    cpu: CpuStats | None = None
    io: Mapping[tuple[int, int], DeviceIo] = field(default_factory=dict)
    pids: PidsStats | None = None
    pressure: Mapping[str, PressureValues] = field(default_factory=dict)
    hugetlb: Mapping[str, int] = field(default_factory=dict)
    time: float = field(default=0.0, compare=False)

    def since(self, earlier: Stats) -> Stats:
        """Return what happened after an earlier sample: counters without what they were then, and the rest as it is now.

        `time` of what is returned is the seconds between the two.

        Examples
        --------
        >>> before, now = (Stats(cpu=CpuStats(total=at), time=at) for at in (1.0, 3.5))
        >>> now.since(before).cpu.total
        2.5
        """
        return Stats(
            memory=_difference(self.memory, earlier.memory),
            cpu=_difference(self.cpu, earlier.cpu),
            io={device: _difference(one, earlier.io.get(device)) for device, one in self.io.items()},
            pids=_difference(self.pids, earlier.pids),
            pressure={
                name: PressureValues(*(_difference(getattr(one, kind), getattr(before, kind)) for kind in ("some", "full")))
                for name, one in self.pressure.items()
                for before in (earlier.pressure.get(name, PressureValues()),)
            },
            hugetlb=self.hugetlb,
            time=self.time - earlier.time,
        )

    def _repr_html_(self) -> str:
        # No colour of its own, so that it can be read on any background.
        cell = "text-align:left;padding:0 1em 0 0;border:0;background:none;color:inherit"
        rows = "".join(
            f'<tr><th style="{cell}">{escape(title)}</th><td style="{cell}">{escape(text)}</td></tr>'
            for title, text in _rows(self)
        )
        return f"<table>{rows}</table>"


def _difference(now: ValueT, before: ValueT | None) -> ValueT:
    """Return a value with what it counts since another one."""
    if now is None or before is None:
        return now
    changes = {}
    for name in _COUNTERS[type(now)]:
        one, other = getattr(now, name), getattr(before, name)
        if one is not None and other is not None:
            changes[name] = one - other
    return replace(now, **changes)  # type: ignore[type-var]  # all of them are dataclasses


# ---- reading ----


def read_stats(unified: Directory | None, controllers: Mapping[str, Directory]) -> Stats:
    """Return what a group uses and has used.

    Parameters
    ----------
    unified
        Its directory in cgroup v2, or None.
    controllers
        The directory that has each controller, by its name in v2, of either version; and ``"cpuacct"`` of v1.

    Raises
    ------
    GoneError
        The group has been removed.

    Notes
    -----
    A counter costs 1 to 1.5 us from its second sample on, as against 13 us with open() and read(); everything together, with
    every controller of a hybrid host, some 0.2 ms.
    """
    now = time.monotonic()
    pids, io = controllers.get("pids"), controllers.get("io")
    return Stats(
        memory=None if (memory := controllers.get("memory")) is None else _memory(memory),
        cpu=_cpu(unified, controllers),
        io={} if io is None else _io(io),
        pids=None if pids is None else _pids(pids),
        pressure={} if unified is None else _pressure(unified),
        hugetlb={} if (hugetlb := controllers.get("hugetlb")) is None else _hugetlb(hugetlb),
        time=now,
    )


def _number(directory: Directory, name: str) -> int | None:
    data = directory.sample_if_there(name)
    return None if data is None else int(data)


def _limit(directory: Directory, name: str) -> int | None:
    data = directory.sample_if_there(name)
    return None if data is None else load_limit(data.decode("ascii").strip())


def _flat(directory: Directory, name: str) -> dict[str, int]:
    return parse_flat(directory.sample_if_there(name) or b"")


def _memory(directory: Directory) -> MemoryStats:
    return _memory_v2(directory) if directory.version == _V2 else _memory_v1(directory)


def _memory_v2(directory: Directory) -> MemoryStats:
    stat, events = _flat(directory, "memory.stat"), _flat(directory, "memory.events")
    return MemoryStats(
        current=_number(directory, "memory.current"),
        peak=_number(directory, "memory.peak"),
        limit=_limit(directory, "memory.max"),
        swap=_number(directory, "memory.swap.current"),
        swap_peak=_number(directory, "memory.swap.peak"),
        swap_limit=_limit(directory, "memory.swap.max"),
        anon=stat.get("anon"),
        file=stat.get("file"),
        shmem=stat.get("shmem"),
        mapped=stat.get("file_mapped"),
        dirty=stat.get("file_dirty"),
        writeback=stat.get("file_writeback"),
        kernel=stat.get("kernel"),
        slab=stat.get("slab"),
        sock=stat.get("sock"),
        pgfault=stat.get("pgfault"),
        pgmajfault=stat.get("pgmajfault"),
        refaults_anon=stat.get("workingset_refault_anon"),
        refaults_file=stat.get("workingset_refault_file"),
        low_hits=events.get("low"),
        high_hits=events.get("high"),
        max_hits=events.get("max"),
        ooms=events.get("oom"),
        oom_kills=events.get("oom_kill"),
        oom_group_kills=events.get("oom_group_kill"),
        raw=stat,
    )


def _memory_v1(directory: Directory) -> MemoryStats:
    stat = _flat(directory, "memory.stat")
    current, limit = _number(directory, "memory.usage_in_bytes"), _limit(directory, "memory.limit_in_bytes")
    both = _limit(directory, "memory.memsw.limit_in_bytes")
    return MemoryStats(
        current=current,
        peak=_number(directory, "memory.max_usage_in_bytes"),
        limit=limit,
        swap=stat.get("total_swap"),
        swap_limit=None if both is None or limit is None else max(0, both - limit),
        anon=stat.get("total_rss"),
        file=stat.get("total_cache"),
        shmem=stat.get("total_shmem"),
        mapped=stat.get("total_mapped_file"),
        dirty=stat.get("total_dirty"),
        writeback=stat.get("total_writeback"),
        kernel=_number(directory, "memory.kmem.usage_in_bytes"),
        sock=_number(directory, "memory.kmem.tcp.usage_in_bytes"),
        pgfault=stat.get("total_pgfault"),
        pgmajfault=stat.get("total_pgmajfault"),
        refaults_anon=stat.get("total_workingset_refault_anon"),
        refaults_file=stat.get("total_workingset_refault_file"),
        max_hits=_number(directory, "memory.failcnt"),
        oom_kills=_flat(directory, "memory.oom_control").get("oom_kill"),
        raw=stat,
    )


def _cpu(unified: Directory | None, controllers: Mapping[str, Directory]) -> CpuStats | None:
    """cpu.stat of v2 has the times of every group, and the throttling of those with the controller; v1 has two files."""
    controller, accounts = controllers.get("cpu"), controllers.get("cpuacct")
    stat = {} if unified is None else _flat(unified, "cpu.stat")
    user, system, total = (_scaled(stat.get(f"{name}_usec"), _MICRO) for name in ("user", "system", "usage"))
    throttled, burst = (_scaled(stat.get(f"{name}_usec"), _MICRO) for name in ("throttled", "burst"))
    if controller is not None and controller.version != _V2:
        stat = _flat(controller, "cpu.stat")
        throttled, burst = (_scaled(stat.get(f"{name}_time"), _NANO) for name in ("throttled", "burst"))
    if total is None and accounts is not None:
        names = ("cpuacct.usage_user", "cpuacct.usage_sys", "cpuacct.usage")
        user, system, total = (_scaled(_number(accounts, name), _NANO) for name in names)
    found = CpuStats(
        user=user,
        system=system,
        total=total,
        periods=stat.get("nr_periods"),
        throttled_periods=stat.get("nr_throttled"),
        throttled=throttled,
        bursts=stat.get("nr_bursts"),
        burst=burst,
    )
    return None if found == CpuStats() else found


def _scaled(number: int | None, unit: float) -> float | None:
    return None if number is None else number / unit


def _io(directory: Directory) -> dict[tuple[int, int], DeviceIo]:
    contents = [directory.sample_if_there(name) or b"" for name in STAT_FILES[directory.version]]
    return load_stat(*contents) if directory.version == _V2 else load_v1_stat(*contents)


def _pids(directory: Directory) -> PidsStats:
    return PidsStats(
        current=_number(directory, "pids.current"),
        peak=_number(directory, "pids.peak"),
        limit=_limit(directory, "pids.max"),
        hits=_flat(directory, "pids.events").get("max"),
    )


def _pressure(directory: Directory) -> dict[str, PressureValues]:
    found = {}
    for name in RESOURCES:
        data = directory.sample_if_there(f"{name}.pressure", comes_and_goes=True)
        if data is not None:
            found[name] = parse_pressure(data)
    return found


def _hugetlb(directory: Directory) -> dict[str, int]:
    end = "current" if directory.version == _V2 else "usage_in_bytes"
    found = {}
    for size in sizes(directory):
        number = _number(directory, f"hugetlb.{size}.{end}")
        if number is not None:
            found[size] = number
    return found


# ---- showing ----


def _rows(stats: Stats) -> list[tuple[str, str]]:
    """Return titles and texts, of what is known."""
    rows: list[tuple[str, list[str | None]]] = []
    if (memory := stats.memory) is not None:
        names = ("current", "peak", "limit", "swap", "anon", "file", "kernel")
        rows.append(("memory", [_sized(name, getattr(memory, name)) for name in names]))
        rows.append(("out of memory", [_counted(memory.oom_kills, "processes killed"), _counted(memory.max_hits, "limit met")]))
    if (cpu := stats.cpu) is not None:
        rows.append(("cpu", [_timed(name, getattr(cpu, name)) for name in ("total", "user", "system", "throttled")]))
    for (major, minor), one in stats.io.items():
        rows.append((f"io {major}:{minor}", [_sized("read", one.read_bytes), _sized("written", one.written_bytes)]))
    if (pids := stats.pids) is not None:
        rows.append(("pids", [_counted(getattr(pids, name), name) for name in ("current", "peak", "limit", "hits")]))
    for name, values in stats.pressure.items():
        lines = (("some", values.some), ("full", values.full))
        rows.append((f"{name} pressure", [f"{kind} {line.avg10:g} %" for kind, line in lines if line is not None]))
    rows += [(f"huge pages of {size}", [_sized("in use", number)]) for size, number in stats.hugetlb.items()]
    return [(title, ", ".join(filter(None, texts))) for title, texts in rows]


def _sized(name: str, number: int | None) -> str | None:
    return None if number is None else f"{name} {show_size(number)}"


def _timed(name: str, seconds: float | None) -> str | None:
    return None if seconds is None else f"{name} {seconds:.3f} s"


def _counted(number: int | None, name: str) -> str | None:
    return None if number is None else f"{number} {name}"


def show_size(number: float) -> str:
    """Return a number of bytes for people.

    Examples
    --------
    >>> show_size(1536)
    '1.5 KiB'
    """
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(number) < 1024:  # noqa: PLR2004 - what each is of the one before
            return f"{number:.4g} {unit}"
        number /= 1024
    return f"{number:.4g} TiB"
