"""The place of one process in a group: a group below it, of its own.

Limits stand in the group; the process lives one level lower.  So it never sees the files of its own limits (its cgroup
namespace begins below them), what it used is counted apart from what others in the group did, and it is born in a directory
that was never killed: once cgroup.kill was written to a group, some kernels kill every process that is cloned into it.
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from threading import RLock
from typing import TYPE_CHECKING, Final

from isolib._kernel.handle import Fd, home
from isolib._kernel.lodging import Account, Shape
from isolib.cgroups import removal
from isolib.cgroups.controllers.cpuset import inherit
from isolib.cgroups.controllers.io import load_stat, total
from isolib.cgroups.files import Directory, distinct, parse_flat
from isolib.cgroups.tree import ABSENT
from isolib.errors import SyscallError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Self

__all__ = ["COUNTING", "LEGACY", "Lodge", "Quarters", "apart"]

#: The controllers that count apart what each process in a group uses; processes do not compete within a group, so cpu is not.
COUNTING: Final = frozenset({"memory", "io", "pids"})
#: And those that do where cgroup v2 is not mounted.
LEGACY_COUNTING: Final = frozenset({"cpuacct"})
#: What every group has there: without v2, the freezer is what stops and kills.
LEGACY: Final = LEGACY_COUNTING | {"freezer"}
#: Hierarchies of v1 in which processes live in the group itself, and have none of their own below: there a limit on I/O binds
#: who is in the group, and nobody in groups below (blk-throttle.c, throtl_pd_init), and device rules can be changed only while
#: there are no groups below (device_cgroup.c, devcgroup_update_access).
SHARED: Final = frozenset({"io", "devices"})
_EVENTFD: Final = struct.Struct("=Q")


def apart(legacy: Mapping[str, Directory]) -> list[Directory]:
    """Return the directories of v1 in which each process has a group of its own: those that count more than `SHARED`."""
    return distinct(directory for name, directory in legacy.items() if name not in SHARED)


class Quarters:
    """What a group gives to those who live in it: its directories, and how a process is born there.

    Parameters
    ----------
    unified
        The group's directory in v2, or None.
    legacy
        Its directories in v1, by controller (as v2 calls them); co-mounted controllers share one.
    counting
        The controllers of v2 that are enabled for the groups below.
    numbers
        Yields a number for each process that comes.
    oom
        Who is killed with a process that the kernel kills for want of memory: as in `isolib.Cgroup`.
    is_flat
        Whether processes live in the group itself in v2: it has threaded groups below, and can have no others.
    foreign
        Whether the group is somebody else's, in which nothing is made.
    """

    def __init__(
        self,
        unified: Directory | None,
        legacy: Mapping[str, Directory],
        counting: frozenset[str],
        numbers: Iterator[int],
        *,
        oom: str = "one",
        is_flat: bool = False,
        foreign: bool = False,
    ) -> None:
        self.unified = unified
        self.legacy = legacy
        self.counting = counting
        #: Directories of v1, each once: those with a group of its own for each process, and those without.
        self.counted, self.shared = apart({} if foreign else legacy), distinct(legacy.values())
        self.shared = [one for one in self.shared if one not in self.counted]
        #: Whether a process that the kernel kills for want of memory takes the others with it: in v1 its supervisor sees to it.
        self.tell_oom = oom != "one" and "memory" in legacy and not foreign
        #: Whether that takes but its own along, and no others: memory.oom.group is set for each process in v2.
        self.oom_alone = oom == "process"
        self.flat = is_flat or foreign
        self.numbers = numbers

    @property
    def shape(self) -> Shape:
        """What a launch must provide for."""
        legacy = len(self.counted) + len(self.shared)
        return Shape(self.unified is not None, legacy, self.tell_oom, self.tell_oom and self.oom_alone)

    def has_cpuset(self, directory: Directory) -> bool:
        """Return whether a directory of v1 is of cpuset, which nobody enters before it was given processors."""
        return self.legacy.get("cpuset") is directory


class Lodge:
    """A group for one process; see `isolib._kernel.lodging.Lodge`."""

    def __init__(self, quarters: Quarters, *, clone: bool, left: Callable[[Account], object]) -> None:
        self.directory = self.procs = self.oom = self.oom_kills = -1
        self.tasks: Sequence[int] = ()
        self.name = f"p{next(quarters.numbers)}"
        self._home = home()
        self._quarters = quarters
        self._left = left
        self._lock = RLock()
        self._account: Account | None = None
        self._settled = False
        self._unified: Directory | None = None
        self._owned: list[Fd] = []
        self._hits_before = 0
        #: The supervisor of a command, who reaps and reports; 0: not known, or not of a command.
        self.supervisor = 0
        self.killed = False
        try:
            self._make(clone=clone)
        except BaseException:
            self._leave()
            raise

    def _make(self, *, clone: bool) -> None:
        quarters = self._quarters
        if quarters.unified is not None:
            if not quarters.flat:
                quarters.unified.make(self.name)
            self._unified = quarters.unified if quarters.flat else Directory.open(self.name, 2, parent=quarters.unified)
            if quarters.oom_alone and "memory" in quarters.counting:
                self._unified.write("memory.oom.group", "1")
            if clone:
                self.directory = self._unified.fileno()
            else:
                self.procs = self._open(self._unified, "cgroup.procs", os.O_WRONLY)
        for one in quarters.counted:
            one.make(self.name)
            if quarters.has_cpuset(one):
                with Directory.open(self.name, 1, parent=one) as mine:
                    inherit(one, mine)
        tasks = [self._open(one, f"{self.name}/tasks", os.O_WRONLY) for one in quarters.counted]
        self.tasks = (*tasks, *(self._open(one, "tasks", os.O_WRONLY) for one in quarters.shared))
        if quarters.tell_oom:
            self.oom = self._tell_oom(quarters.legacy["memory"])
            if quarters.oom_alone:
                self.oom_kills = self._open(quarters.legacy["memory"], f"{self.name}/memory.oom_control", os.O_RDONLY)

    def _open(self, directory: Directory, name: str, flags: int) -> int:
        fd = directory.open_file(name, flags)
        self._owned.append(fd)
        return fd.fileno()

    def _tell_oom(self, memory: Directory) -> int:
        """Return an eventfd that the kernel writes to when the group is out of memory (cgroup-v1/memory.rst, 10)."""
        told = Fd.take(os.eventfd, 0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        assert told is not None  # noqa: S101 - os.eventfd raises
        self._owned.append(told)
        with memory.open_file(f"{self.name}/memory.oom_control", os.O_RDONLY) as control:
            memory.write(f"{self.name}/cgroup.event_control", f"{told.fileno()} {control.fileno()}")
        return told.fileno()

    def last(self, left: Callable[[], object]) -> Self:
        """Return this place, the only one of its group: that is closed when the process is gone."""
        self._left = lambda _: left()
        return self

    def ready(self) -> None:
        """Forget what happened before a process came."""
        if self.oom >= 0:
            with suppress(BlockingIOError):
                os.read(self.oom, _EVENTFD.size)
        self._hits_before = self._hits_above()

    # ---- as isolib._kernel.lodging has it ----

    def kill(self) -> None:
        """Kill everybody in it, the supervisor too, and wait for their ends."""
        if self._home == home() and not self._quarters.flat and self._account is None:
            with suppress(ProcessLookupError):  # it has been removed
                if self._unified is not None:
                    removal.kill(self._unified, [])
                elif self.is_frozen():
                    self._kill_frozen(self._quarters.legacy["freezer"])
                else:
                    removal.kill(None, self._legacy())

    def _kill_frozen(self, freezer: Directory) -> None:
        """Kill in a frozen group of v1, where nobody dies who is frozen; the others stop again at once."""
        removal.thaw_all(freezer)
        try:
            removal.kill(None, self._legacy())
        finally:
            freezer.write("freezer.state", "FROZEN")

    def reap(self) -> None:
        """Reap those of the whole group whose parents were killed with them, where this process has adopted them."""
        if self._home == home() and self._quarters.unified is not None and not self._quarters.flat:
            removal.reap_adopted(self._quarters.unified)

    def is_frozen(self) -> bool:
        """Return whether those in it stand still."""
        if self._account is not None:
            return False
        if self._unified is None:
            freezer = self._quarters.legacy.get("freezer")
            return freezer is not None and freezer.read("freezer.state").strip() != "THAWED"
        try:
            return b"frozen 1" in self._unified.sample("cgroup.events")
        except ProcessLookupError:
            return False

    def settle(self) -> Account:
        """Kill who is left, wait for their ends, take the place down, and return what it says; again is the same value.

        Raises
        ------
        SyscallError
            What it says could not be read; it is taken down all the same.
        """
        with self._lock:
            unread = None
            if not self._settled and self._home == home():  # interrupted anywhere here, it goes on when it is asked again
                self.kill()
                if self._account is None:
                    self._account, unread = self._look()
                self._leave()
                self._left(self._account)
                self._settled = True
            if unread is not None:
                raise unread
            return self._account or Account()

    def _leave(self) -> None:
        quarters = self._quarters
        if self._unified is not None and not quarters.flat:
            self._unified.close()
        for fd in self._owned:
            fd.close()
        with suppress(ProcessLookupError):
            if quarters.unified is not None and not quarters.flat:
                removal.remove(quarters.unified, self.name)
            for one in quarters.counted:
                removal.remove(one, self.name)

    def _legacy(self) -> list[Directory]:
        found = []
        for one in self._quarters.counted:
            with suppress(ProcessLookupError):
                found.append(Directory.open(self.name, 1, parent=one))
        return found

    # ---- what it says ----

    def _look(self) -> tuple[Account, SyscallError | None]:
        try:
            return self._read(), None
        except ProcessLookupError:  # the whole group has been removed by somebody else
            return Account(), None
        except SyscallError as error:
            return Account(), error

    def _read(self) -> Account:
        user = system = None
        if self._unified is not None and not self._quarters.flat:
            cpu = parse_flat(self._unified.read("cpu.stat").encode())
            user, system = cpu["user_usec"] / 1e6, cpu["system_usec"] / 1e6
        elif "cpuacct" in self._quarters.legacy:
            user, system = (self._number("cpuacct", "", f"cpuacct.usage_{one}") for one in ("user", "sys"))
            user, system = (None if one is None else one / 1e9 for one in (user, system))
        read, written = self._io()
        peak = self._pids_peak()
        return Account(
            cpu_user=user,
            cpu_system=system,
            memory_peak=self._number("memory", "memory.peak", "memory.max_usage_in_bytes"),
            io_read=read,
            io_written=written,
            pids_peak=None if peak is None else max(peak - 1, 1),  # its supervisor is no process of the caller's
            oom_kills=self._oom_kills(),
            pids_hits=self._hits_here() + max(0, self._hits_above() - self._hits_before),
        )

    def _file(self, controller: str, v2: str, v1: str) -> str | None:
        """Return what a file of this process's group holds; None where the host counts no such thing for it."""
        quarters = self._quarters
        legacy = quarters.legacy.get(controller)
        try:
            if legacy is not None:
                return legacy.read(f"{self.name}/{v1}")
            if self._unified is not None and controller in quarters.counting:
                return self._unified.read(v2)
        except SyscallError as error:
            if isinstance(error, ProcessLookupError) or error.errno not in ABSENT:
                raise
        return None  # a kernel that is too old for it

    def _number(self, controller: str, v2: str, v1: str) -> int | None:
        text = self._file(controller, v2, v1)
        return None if text is None else int(text)

    def _pids_peak(self) -> int | None:
        """Return the peak; a new process that a limit above refuses has been counted here already, but not there."""
        here = self._number("pids", "pids.peak", "pids.peak")
        above = self._quarters.legacy.get("pids", self._quarters.unified)
        if here is None or above is None:
            return here
        return min(here, int(above.sample("pids.peak")))

    def _oom_kills(self) -> int:
        text = self._file("memory", "memory.events.local", "memory.oom_control")
        return 0 if text is None else parse_flat(text.encode()).get("oom_kill", 0)

    def _hits_here(self) -> int:
        text = self._file("pids", "pids.events", "pids.events")
        return 0 if text is None else parse_flat(text.encode()).get("max", 0)

    def _hits_above(self) -> int:
        """Since Linux 6.11 v2 counts a refusal where the limit is, no more where the process is."""
        quarters = self._quarters
        if quarters.unified is None or "pids" not in quarters.counting:
            return 0
        return parse_flat(quarters.unified.sample_if_there("pids.events") or b"").get("max", 0)

    def _io(self) -> tuple[int | None, int | None]:
        if "io" in self._quarters.legacy:  # there all are together, and the launcher knows better
            return None, None
        text = self._file("io", "io.stat", "")
        return (None, None) if text is None else total(load_stat(text.encode()))
