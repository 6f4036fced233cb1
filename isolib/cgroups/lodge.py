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

from isolib._kernel.handle import home
from isolib._kernel.lodging import Account, Shape
from isolib.cgroups import removal
from isolib.cgroups.controllers.cpuset import inherit
from isolib.cgroups.controllers.io import load_stat, total
from isolib.cgroups.errands import Errands, contents, do_reading
from isolib.cgroups.files import Directory, distinct, parse_flat
from isolib.errors import SyscallError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Self

    from isolib._kernel.calls import Batch

__all__ = ["COUNTING", "LEGACY", "Lodge", "Quarters", "apart", "avoid_clone"]

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
#: What says what a process used: what that is, the controller, and the files of v2 and of v1.  In v1 the I/O of all is counted
#: together, and the launcher knows better.
_FILES: Final = (
    ("cpu user", "cpuacct", "", "cpuacct.usage_user"),
    ("cpu system", "cpuacct", "", "cpuacct.usage_sys"),
    ("memory peak", "memory", "memory.peak", "memory.max_usage_in_bytes"),
    ("memory events", "memory", "memory.events.local", "memory.oom_control"),
    ("pids peak", "pids", "pids.peak", "pids.peak"),
    ("pids events", "pids", "pids.events", "pids.events"),
    ("io", "io", "io.stat", ""),
)
#: The processes (see `home`) whose children CLONE_INTO_CGROUP kills: where the caller's own group was killed once, some kernels
#: kill whoever it clones into another.
_clone_kills: Final[set[tuple[int, int]]] = set()


def avoid_clone() -> bool:
    """Remember that CLONE_INTO_CGROUP kills; returns whether that is news."""
    is_news = home() not in _clone_kills
    _clone_kills.add(home())
    return is_news


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

    def __init__(self, quarters: Quarters, *, left: Callable[[Account], object]) -> None:
        self.directory = self.procs = self.oom = self.oom_kills = -1
        self.tasks: Sequence[int] = ()
        self.name = f"p{next(quarters.numbers)}"
        self._home = home()
        self._quarters = quarters
        self._left = left
        self._lock = RLock()
        self._account: Account | None = None
        self._settled = self._gone = False
        self._unified: Directory | None = None
        #: What its descriptors were opened by, and are closed by.
        self._making = Errands()
        #: What is done at its end, and the numbers of what is read.
        self._parting: tuple[Errands, dict[str, int]] | None = None
        self._hits_before = 0
        #: The supervisor of a command, who reaps and reports; 0: not known, or not of a command.
        self.supervisor = 0
        self.killed = False
        try:
            self._make(clone=home() not in _clone_kills)
        except BaseException:
            self._leave()
            raise

    def _make(self, *, clone: bool) -> None:
        quarters, making, unified = self._quarters, self._making, self._quarters.unified
        own = None if unified is None else self._plan_unified(unified)
        procs = None if unified is None or clone else making.open_file(unified, self._here("cgroup.procs"), os.O_WRONLY)
        tasks = self._plan_legacy()
        told = self._plan_oom() if quarters.tell_oom else []
        making.run()
        self._unified = unified if own is None else self._opened(*own)
        self.tasks = tuple(making.fd(number).fileno() for number in tasks)
        if procs is not None:
            self.procs = making.fd(procs).fileno()
        elif self._unified is not None:
            self.directory = self._unified.fileno()
        for one in quarters.counted:
            if quarters.has_cpuset(one):
                with Directory.open(self.name, 1, parent=one) as mine:
                    inherit(one, mine)
        if told:
            self.oom = making.fd(told[0]).fileno()
            self.oom_kills = making.fd(told[1]).fileno() if quarters.oom_alone else -1

    def _opened(self, own: int, events: int) -> Directory:
        """Return the group of v2 that was made."""
        directory = self._making.directory(own)
        directory.keep("cgroup.events", self._making.fd(events))
        return directory

    def _here(self, file: str) -> str:
        """Return the name of a file of v2, from the group above; where that is flat, processes live in it themselves."""
        return file if self._quarters.flat else f"{self.name}/{file}"

    def _plan_unified(self, unified: Directory) -> tuple[int, int] | None:
        """Have a group of v2 made; returns the numbers of its opening and its events, None: it is the one above itself."""
        quarters, making = self._quarters, self._making
        if quarters.flat:
            return None
        making.make(unified, self.name)
        if quarters.oom_alone and "memory" in quarters.counting:
            making.write(unified, self._here("memory.oom.group"), "1")
        return making.open_group(unified, self.name), making.open_file(unified, self._here("cgroup.events"), os.O_RDONLY)

    def _plan_legacy(self) -> list[int]:
        """Have the groups of v1 made; returns the numbers of the openings of the tasks files."""
        quarters, making = self._quarters, self._making
        for one in quarters.counted:
            making.make(one, self.name)
        files = [*((one, f"{self.name}/tasks") for one in quarters.counted), *((one, "tasks") for one in quarters.shared)]
        return [making.open_file(one, name, os.O_WRONLY) for one, name in files]

    def _plan_oom(self) -> list[int]:
        """Have an eventfd told when the group is out of memory (cgroup-v1/memory.rst, 10), and what counts the kills opened."""
        making, memory, file = self._making, self._quarters.legacy["memory"], f"{self.name}/memory.oom_control"
        told = making.notify(memory, file, f"{self.name}/cgroup.event_control")
        return [told, making.open_file(memory, file, os.O_RDONLY)] if self._quarters.oom_alone else [told]

    def last(self, left: Callable[[], object]) -> Self:
        """Return this place, the only one of its group: that is closed when the process is gone."""
        self._left = lambda _: left()
        return self

    def ready(self, *, was_spare: bool) -> None:
        """Forget what happened before a process came; to a place that was just made nothing has."""
        if was_spare and self.oom >= 0:
            with suppress(BlockingIOError):
                os.read(self.oom, _EVENTFD.size)
        self._hits_before = self._hits_above()

    # ---- as isolib._kernel.lodging has it ----

    def kill(self) -> None:
        """Kill everybody in it, the supervisor too, and wait for their ends."""
        if self._home != home() or self._quarters.flat:
            return
        with self._lock:
            self._take()
            if self._account is None and not self.is_gone:
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
        if self._account is not None or self.is_gone:
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
                if self._account is None:
                    self._account, unread = self._end()
                self._leave()
                self._left(self._account)
                self._settled = True
            if unread is not None:
                raise unread
            return self._account or Account()

    def parting(self) -> Batch | None:
        """Return what is done when v2 tells that everybody is gone: what it says is read, and it is taken down, in one call."""
        with self._lock:
            if self._unified is None or self._quarters.flat or self._settled:
                return None
            if self._parting is None:
                errands = Errands()
                errands.hold(self._unified, "cgroup.events", "populated 0")
                numbers = {what: errands.read(*file) for what, file in self._files().items()}
                for parent in self._parents:
                    errands.remove(parent, self.name)
                errands.close_those_of(self._making)
                self._parting = errands, numbers
            return self._parting[0].batch

    def _take(self) -> None:
        """Keep the call of another thread that may do the parting out of the directories from now on."""
        if self._parting is not None:
            self._parting[0].take()

    def abandon(self) -> None:
        """Leave the place as it is, for the directories around it are closed: the reaper has it."""
        with self._lock:
            self._take()
            self._account = self._account or Account()
            self._gone = True
            self._leave()
            self._settled = True

    def _end(self) -> tuple[Account, SyscallError | None]:
        """Kill who is left, and read what it says."""
        if self.parting() is not None and self._parting is not None:
            errands, numbers = self._parting
            errands.take()
            found, refused = do_reading(errands, numbers)
            if not errands.is_done(0):
                self.kill()
                found, refused = do_reading(errands, numbers)
            if errands.is_done(len(numbers)):
                self._gone = refused is None
                return self._read(found), None
        self.kill()
        return self._look()

    @property
    def is_gone(self) -> bool:
        """Whether it was taken down; perhaps in the very call that was interrupted."""
        return self._gone or (self._parting is not None and self._parting[0].is_complete)

    def _leave(self) -> None:
        try:
            if not self._gone:
                removal.remove_all(self._parents, self.name, self._making)
        finally:
            self._making.close()
            if self._unified is not None and not self._quarters.flat:
                self._unified.close()  # with the counters that it keeps open
        self._gone = True

    def _legacy(self) -> list[Directory]:
        found = []
        for one in self._quarters.counted:
            with suppress(ProcessLookupError):
                found.append(Directory.open(self.name, 1, parent=one))
        return found

    # ---- what it says ----

    @property
    def _parents(self) -> list[Directory]:
        """The directories below which it is."""
        quarters = self._quarters
        return distinct([None if quarters.flat else quarters.unified, *quarters.counted])

    def _look(self) -> tuple[Account, SyscallError | None]:
        try:
            return self._read(contents(self._files())), None
        except ProcessLookupError:  # the whole group has been removed by somebody else
            return Account(), None
        except SyscallError as error:
            return Account(), error

    def _read(self, found: Mapping[str, str]) -> Account:
        user, system = self._cpu(found)
        read, written = self._io(found)
        # A new process that a limit above refuses has been counted here already, but not there.
        peaks = [_number(found, what) for what in ("pids peak", "pids peak above")]
        peak = min((one for one in peaks if one is not None), default=None)
        return Account(
            cpu_user=user,
            cpu_system=system,
            memory_peak=_number(found, "memory peak"),
            io_read=read,
            io_written=written,
            pids_peak=None if peak is None else max(peak - 1, 1),  # its supervisor is no process of the caller's
            oom_kills=_count(found, "memory events", "oom_kill"),
            pids_hits=_count(found, "pids events", "max") + max(0, self._hits_above() - self._hits_before),
        )

    def _files(self) -> dict[str, tuple[Directory, str]]:
        """Return the files that say what the process used, as far as the host counts that for it."""
        quarters = self._quarters
        found = {}
        if self._unified is not None and not quarters.flat:
            found["cpu"] = self._unified, "cpu.stat"
        for what, controller, v2, v1 in _FILES:
            legacy = quarters.legacy.get(controller)
            if legacy is not None and v1:
                found[what] = legacy, f"{self.name}/{v1}"
            elif legacy is None and self._unified is not None and controller in quarters.counting and v2:
                found[what] = self._unified, v2
        above = quarters.legacy.get("pids", quarters.unified)
        if "pids peak" in found and above is not None:
            found["pids peak above"] = above, "pids.peak"
        return found

    @staticmethod
    def _cpu(found: Mapping[str, str]) -> tuple[float | None, float | None]:
        if "cpu" in found:
            cpu = parse_flat(found["cpu"].encode())
            return cpu["user_usec"] / 1e6, cpu["system_usec"] / 1e6
        user, system = _number(found, "cpu user"), _number(found, "cpu system")
        return None if user is None else user / 1e9, None if system is None else system / 1e9

    def _hits_above(self) -> int:
        """Since Linux 6.11 v2 counts a refusal where the limit is, no more where the process is."""
        quarters = self._quarters
        if quarters.unified is None or "pids" not in quarters.counting:
            return 0
        return parse_flat(quarters.unified.sample_if_there("pids.events") or b"").get("max", 0)

    @staticmethod
    def _io(found: Mapping[str, str]) -> tuple[int | None, int | None]:
        return total(load_stat(found["io"].encode())) if "io" in found else (None, None)


def _number(found: Mapping[str, str], what: str) -> int | None:
    return int(found[what]) if what in found else None


def _count(found: Mapping[str, str], what: str, line: str) -> int:
    return parse_flat(found.get(what, "").encode()).get(line, 0)
