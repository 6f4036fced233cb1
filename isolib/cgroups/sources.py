"""Where the events of a group come from: files that tell of their changes, and what v1 has instead."""

from __future__ import annotations

import os
import select
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from errno import ENODEV, ESRCH
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib._kernel.handle import Epoll, Fd
from isolib._kernel.hints import typed
from isolib.cgroups.files import parse_flat
from isolib.cgroups.tree import pids_in, read_at, walk
from isolib.errors import GoneError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Protocol

    from isolib.cgroups.files import Directory

    class Source(Protocol):
        """What may become ready, and what it has to tell then."""

        @property
        def mask(self) -> int:
            """What to poll for."""

        def fileno(self) -> int:
            """Return the descriptor."""

        def read(self) -> Iterable[Event]:
            """Return what has happened; raises GoneError when the group has been removed."""

        def close(self) -> None:
            """Close it."""


__all__ = ["MEMORY", "PIDS", "Counts", "Event", "EventKind", "File", "KillCount", "LegacyOom", "Removal", "States"]


class EventKind(Enum):
    """What can happen to a group."""

    OOM = "oom"
    """It has met its limit, and nothing was left to be reclaimed."""
    OOM_KILL = "oom_kill"
    """The kernel has killed a process of it for want of memory."""
    OOM_GROUP_KILL = "oom_group_kill"
    """It has killed all of them (since Linux 5.17)."""
    MEMORY_MAX = "memory_max"
    """Memory was about to go beyond memory.max, and was reclaimed."""
    MEMORY_HIGH = "memory_high"
    """Memory went beyond memory.high, and processes were slowed down."""
    MEMORY_LOW = "memory_low"
    """It was reclaimed from although it used less than memory.low."""
    PIDS_MAX = "pids_max"
    """One more process was refused."""
    POPULATED = "populated"
    """The first process has come into it, or a group below."""
    EMPTY = "empty"
    """The last process has left it and all groups below."""
    FROZEN = "frozen"
    """All its processes stand still."""
    THAWED = "thawed"
    """They run again."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that has happened to a group.

    Attributes
    ----------
    kind
        What.
    count
        How often since the last event of this kind; the kernel may tell several at once.
    total
        How often since the group was made, as far as the kernel counts it; else since somebody began to watch.
    """

    kind: EventKind
    count: int = 1
    total: int = 1


MEMORY: Final = {
    "oom": EventKind.OOM,
    "oom_kill": EventKind.OOM_KILL,
    "oom_group_kill": EventKind.OOM_GROUP_KILL,
    "max": EventKind.MEMORY_MAX,
    "high": EventKind.MEMORY_HIGH,
    "low": EventKind.MEMORY_LOW,
}
PIDS: Final = {"max": EventKind.PIDS_MAX}
_STATE_KINDS: Final = {
    "populated": (EventKind.EMPTY, EventKind.POPULATED),
    "frozen": (EventKind.THAWED, EventKind.FROZEN),
}


# ---- where events come from ----


class File:
    """A file of the kernel's that tells of its changes: to who has read it, by POLLPRI.  It can be read at any time."""

    mask = select.EPOLLPRI

    def __init__(self, directory: Directory, name: str) -> None:
        self._directory = directory
        self._name = name
        self._fd = directory.open_file(name, os.O_RDONLY)
        self.last = self._load()

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._fd.fileno()

    def close(self) -> None:
        """Close it."""
        self._fd.close()

    def _load(self) -> dict[str, int]:
        try:
            return parse_flat(os.pread(self._fd.fileno(), 4096, 0))
        except OSError as error:
            raise self._directory.refused("read", self._name, error.errno or 0) from None

    def changes(self) -> Iterator[tuple[str, int, int]]:
        """Yield what has another number than before: its name, the old and the new one."""
        before, self.last = self.last, self._load()
        for name, number in self.last.items():
            if number != before.get(name, 0):
                yield name, before.get(name, 0), number


class Counts(File):
    """A file of numbers that only grow."""

    def __init__(self, directory: Directory, name: str, kinds: Mapping[str, EventKind]) -> None:
        super().__init__(directory, name)
        self.kinds = frozenset(kind for key, kind in kinds.items() if key in self.last)
        self._by_name = kinds

    def read(self) -> Iterator[Event]:
        """Return what has happened."""
        for name, old, new in self.changes():
            if new > old and (kind := self._by_name.get(name)):
                yield Event(kind, new - old, new)


class States(File):
    """cgroup.events: what is so, or is not."""

    def __init__(self, directory: Directory) -> None:
        super().__init__(directory, "cgroup.events")
        self.kinds = frozenset(kind for name in self.last for kind in _STATE_KINDS.get(name, ()))
        self._totals: dict[EventKind, int] = {}

    def read(self) -> Iterator[Event]:
        """Return what has happened."""
        for name, _, new in self.changes():
            if name in _STATE_KINDS:
                kind = _STATE_KINDS[name][bool(new)]
                self._totals[kind] = self._totals.get(kind, 0) + 1
                yield Event(kind, 1, self._totals[kind])


class KillCount:
    """How many processes the kernel has killed for want of memory in a group of v1 and those below; it only grows.

    v1 counts them where the process was, and forgets them with that group.  What was seen of a group that is gone is kept.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._seen: dict[str, int] = {}
        self._total = 0

    @typed("what a control group counts")
    def __call__(self) -> int:
        """Return the number."""
        for path, fd in walk(self._directory.fileno()):
            number = parse_flat(read_at(fd, "memory.oom_control") or b"").get("oom_kill", 0)
            before = self._seen.get(path, 0)
            # A smaller number is of a new group with the same name.
            self._total += number - before if number >= before else number
            self._seen[path] = number
        return self._total


class LegacyOom:
    """v1's memory: an eventfd is written to when the killer is called, and when the group is removed (memcg_event_remove).

    That is before anybody has been killed, and the number of kills tells nobody of its change.  But who is killed ends, and is
    counted before he is; so those who were there are waited for, until one of them was it.
    """

    kinds = frozenset({EventKind.OOM, EventKind.OOM_KILL})
    mask = select.EPOLLIN

    def __init__(self, directory: Directory, kills: Callable[[], int]) -> None:
        self._directory = directory
        self._kills = kills
        self._last = kills()
        self._ooms = 0
        self._epoll = Epoll()
        self._suspects: dict[int, Fd] = {}
        fd = Fd.take(os.eventfd, 0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        assert fd is not None  # noqa: S101 - os.eventfd raises
        self._fd = fd
        try:
            with directory.open_file("memory.oom_control", os.O_RDONLY) as control:
                directory.write("cgroup.event_control", f"{fd.fileno()} {control.fileno()}")
            self._epoll.register(fd.fileno(), select.EPOLLIN)
        except BaseException:  # else who keeps the exception keeps both
            self.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._epoll.fileno()

    def close(self) -> None:
        """Close it."""
        # The epoll descriptor first: a fork must not take anything out of what it shares with its parent.
        self._epoll.close()
        self._fd.close()
        self._forget()

    def read(self) -> Iterator[Event]:
        """Return what has happened."""
        told = 0
        with suppress(BlockingIOError):
            told = os.eventfd_read(self._fd.fileno())
        if told and not self._directory.is_there():
            raise GoneError("poll", f"{self._directory.path}/memory.oom_control", ENODEV, "the control group has been removed")
        if told:
            self._ooms += told
            yield Event(EventKind.OOM, told, self._ooms)
            self._suspect()
        for number, _ in self._epoll.poll(0):
            if (ended := self._suspects.pop(number, None)) is not None:
                self._epoll.unregister(number)
                ended.close()
        kills = self._kills()
        if kills > self._last:
            before, self._last = self._last, kills
            self._forget()
            yield Event(EventKind.OOM_KILL, kills - before, kills)

    def _suspect(self) -> None:
        for pid in filter(None, pids_in(self._directory)):
            try:
                fd = Fd.take(os.pidfd_open, pid)
            except OSError as error:
                if error.errno == ESRCH:
                    continue
                return  # no more descriptors: those that there are, and the next time that the killer is called, must do
            assert fd is not None  # noqa: S101 - pidfd_open raises
            self._suspects[fd.fileno()] = fd
            self._epoll.register(fd.fileno(), select.EPOLLIN)

    def _forget(self) -> None:
        for number, fd in self._suspects.items():
            if not self._epoll.closed:
                self._epoll.unregister(number)
            fd.close()
        self._suspects.clear()


class Removal:
    """The directory above, which tells when one in it is removed: no file of a group does (inotify(7))."""

    mask = select.EPOLLIN

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._fd = calls.watch_removals(f"/proc/self/fd/{directory.fileno()}/..", directory.path)

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._fd.fileno()

    def close(self) -> None:
        """Close it."""
        self._fd.close()

    def read(self) -> Iterable[Event]:
        """Raise when it is this one that was removed."""
        with suppress(BlockingIOError):
            while os.read(self._fd.fileno(), 65536):
                pass
        if not self._directory.is_there():
            raise GoneError("poll", self._directory.path, ENODEV, "the control group has been removed")
        return ()
