"""Directories that look like control groups, and note what is written into them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from isolib.cgroups.files import Directory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from isolib._kernel.handle import Fd

MIB = 1 << 20

#: A new group of a unified host, as Linux 7.2 shows it; BFQ is the scheduler.
V2 = {
    "cgroup.controllers": "cpuset cpu io memory hugetlb pids\n",
    "cgroup.procs": "",
    "cgroup.subtree_control": "\n",
    "cgroup.type": "domain\n",
    "cpu.max": "max 100000\n",
    "cpu.max.burst": "0\n",
    "cpu.weight": "100\n",
    "cpu.idle": "0\n",
    "cpu.uclamp.min": "0.00\n",
    "cpu.uclamp.max": "max\n",
    "cpuset.cpus": "\n",
    "cpuset.mems": "\n",
    "cpuset.cpus.effective": "0-3\n",
    "cpuset.mems.effective": "0\n",
    "memory.max": "max\n",
    "memory.high": "max\n",
    "memory.low": "0\n",
    "memory.min": "0\n",
    "memory.swap.max": "max\n",
    "memory.swap.high": "max\n",
    "memory.oom.group": "0\n",
    "memory.current": "1048576\n",
    "memory.peak": "2097152\n",
    "memory.swap.current": "4096\n",
    "memory.reclaim": "",
    "memory.events": "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\n",
    "memory.events.local": "low 0\nhigh 0\nmax 0\noom 0\noom_kill 1\noom_group_kill 0\n",
    "io.max": "",
    "io.bfq.weight": "default 100\n",
    "io.latency": "",
    "io.stat": "8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=16 dios=3\n254:1 \n",
    "pids.max": "max\n",
    "pids.current": "3\n",
    "pids.peak": "9\n",
    "pids.events": "max 2\n",
    "hugetlb.2MB.max": "max\n",
    "hugetlb.2MB.rsvd.max": "max\n",
    "hugetlb.2MB.current": "4194304\n",
    "hugetlb.1GB.max": "max\n",
    "hugetlb.1GB.current": "0\n",
}

UNLIMITED = "9223372036854771712\n"
"""What v1 shows for memory without a limit, where a page has 4 KiB."""

#: The same of a legacy host with Linux 6.18, with all controllers mounted together.
V1 = {
    "cgroup.procs": "",
    "tasks": "",
    "cpu.cfs_quota_us": "-1\n",
    "cpu.cfs_period_us": "100000\n",
    "cpu.cfs_burst_us": "0\n",
    "cpu.shares": "1024\n",
    "cpu.idle": "0\n",
    "cpu.uclamp.min": "0.00\n",
    "cpu.uclamp.max": "max\n",
    "cpuset.cpus": "\n",
    "cpuset.mems": "\n",
    "cpuset.effective_cpus": "0-3\n",
    "cpuset.effective_mems": "0\n",
    "memory.limit_in_bytes": UNLIMITED,
    "memory.memsw.limit_in_bytes": UNLIMITED,
    "memory.soft_limit_in_bytes": UNLIMITED,
    "memory.usage_in_bytes": "1048576\n",
    "memory.max_usage_in_bytes": "2097152\n",
    "memory.memsw.usage_in_bytes": "1052672\n",
    "memory.failcnt": "3\n",
    "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n",
    "blkio.throttle.read_bps_device": "",
    "blkio.throttle.write_bps_device": "",
    "blkio.throttle.read_iops_device": "",
    "blkio.throttle.write_iops_device": "",
    "blkio.bfq.weight": "100\n",
    "blkio.throttle.io_service_bytes_recursive": "8:0 Read 4096\n8:0 Write 8192\n8:0 Sync 12288\n8:0 Async 0\n8:0 Discard 16\n"
    "8:0 Total 12304\nTotal 12304\n",
    "blkio.throttle.io_serviced_recursive": "8:0 Read 1\n8:0 Write 2\n8:0 Discard 3\n8:0 Total 6\nTotal 6\n",
    "pids.max": "max\n",
    "pids.current": "3\n",
    "pids.peak": "9\n",
    "pids.events": "max 2\n",
    "hugetlb.2MB.limit_in_bytes": "9223372036852678656\n",
    "hugetlb.2MB.usage_in_bytes": "4194304\n",
    "hugetlb.1GB.limit_in_bytes": "9223372035781033984\n",
    "hugetlb.1GB.usage_in_bytes": "0\n",
    "devices.allow": "",
    "devices.deny": "",
    "devices.list": "a *:* rwm\n",
}

FILES = {2: V2, 1: V1}

#: What the kernel shows, where that is not what was written.
_SHOWN = {
    ("cpu.max", "max"): "max 100000",
    ("memory.limit_in_bytes", "-1"): UNLIMITED.strip(),
    ("memory.memsw.limit_in_bytes", "-1"): UNLIMITED.strip(),
    ("hugetlb.2MB.limit_in_bytes", "-1"): "9223372036852678656",
    ("hugetlb.1GB.limit_in_bytes", "-1"): "9223372035781033984",
}


class Recorded(Directory):
    """A directory with plain files, which notes what is written; each write takes the place of what was there."""

    __slots__ = ("writes",)

    def __init__(self, fd: Fd, path: str, version: int) -> None:
        super().__init__(fd, path, version)
        self.writes: list[tuple[str, str]] = []

    def write(self, name: str, value: str) -> None:
        """Write as the real one does, and show it as the kernel would."""
        super().write(name, value)
        self.writes.append((name, value))
        self.show(name, _SHOWN.get((name, value), value) + "\n")

    def show(self, name: str, text: str) -> None:
        """Let a file hold something else."""
        Path(self.path, name).write_text(text, encoding="ascii")

    def take(self) -> list[tuple[str, str]]:
        """Return what was written, and forget it."""
        taken, self.writes = self.writes, []
        return taken


def fill(place: str | os.PathLike[str], files: Mapping[str, str]) -> str:
    """Write files into a directory, which is made where there is none."""
    os.makedirs(place, exist_ok=True)
    for name, text in files.items():
        Path(place, name).write_text(text, encoding="ascii")
    return os.fspath(place)


def group(place: str | os.PathLike[str], version: int) -> Recorded:
    """Return a new group of a version."""
    return Recorded.open(fill(place, FILES[version]), version)
