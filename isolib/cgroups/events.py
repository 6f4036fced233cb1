"""Watching a group: what happens to it, as the kernel tells it.

The files of cgroup v2 that tell of their changes are polled for POLLPRI, and read when they changed; v1 writes to an eventfd
when a group is out of memory.  Nothing is looked at again and again, but the processes of v1 that have ended (`wait_empty`).
"""

from __future__ import annotations

import os
import select
from contextlib import suppress
from errno import ENODEV
from typing import TYPE_CHECKING, Final

from isolib._kernel.handle import Fd
from isolib._kernel.hints import typed
from isolib._kernel.news import News
from isolib._kernel.waiting import Deadline, poll
from isolib.cgroups.controllers.pids import counts_refusals
from isolib.cgroups.files import parse_flat
from isolib.cgroups.removal import is_populated
from isolib.cgroups.sources import MEMORY, PIDS, Counts, Event, EventKind, KillCount, LegacyOom, Removal, States
from isolib.cgroups.tree import pids_in
from isolib.errors import GoneError, Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import timedelta
    from typing import TypeVar

    from isolib.cgroups.files import Directory
    from isolib.cgroups.sources import Source

    SourceT = TypeVar("SourceT", bound=Source)

__all__ = ["Event", "EventKind", "Events", "KillCount", "wait_empty", "wait_oom"]

_V2: Final = 2
#: Milliseconds.
_LOOK_AGAIN: Final = 2


class Events(News[Event]):
    """What happens to a group from now on: an iterator, for `for` and for `async for` (asyncio and trio).

    It ends when the group has been removed, or `close` was called, by whichever thread.  `fileno` is readable when there is
    something, for other event loops.  Several threads may take from it; each event is given once.

    What ends before it was seen is not told, such as a group that was populated and is empty again; the kernel may hold news
    back for 10 ms (cgroup_file_notify).

    Parameters
    ----------
    unified
        The group's directory in cgroup v2, or None.
    controllers
        The directory that has each controller, by its name in v2; memory and pids are looked at.
    oom_kills
        How many processes were killed for want of memory, where the memory controller is v1's; by default `KillCount`.

    Attributes
    ----------
    kinds
        What this host can tell.  v1 tells OOM and OOM_KILL; PIDS_MAX too, unpromised, by kernels before 6.11.

    Raises
    ------
    GoneError
        There is no such group.
    Unsupported
        Nothing of it tells anything.
    """

    _what = "the events of a control group"
    kinds: frozenset[EventKind]

    @typed(_what)
    def __init__(
        self,
        unified: Directory | None,
        controllers: Mapping[str, Directory],
        *,
        oom_kills: Callable[[], int] | None = None,
    ) -> None:
        super().__init__()
        self._sources: dict[int, Source] = {}
        self._copies: dict[int, Directory] = {}
        self._path = next((one.path for one in (unified, *controllers.values()) if one is not None), "nowhere")
        try:
            self.kinds = frozenset(self._watch(unified, controllers, oom_kills))
        except BaseException:
            self._release()
            raise

    def _watch(
        self, unified: Directory | None, controllers: Mapping[str, Directory], oom_kills: Callable[[], int] | None
    ) -> Iterator[EventKind]:
        memory, pids = (self._copy(controllers.get(name)) for name in ("memory", "pids"))
        unified = self._copy(unified)
        tells_removal = False
        if unified is not None and unified.has("cgroup.events"):
            yield from self._add(States(unified)).kinds
        if memory is not None and memory.version == _V2:
            yield from self._add(Counts(memory, "memory.events", MEMORY)).kinds
        elif memory is not None and memory.has("cgroup.event_control"):
            yield from self._add(LegacyOom(memory, oom_kills or KillCount(memory))).kinds
            tells_removal = True
        if pids is not None and pids.has("pids.events"):
            kinds = self._add(Counts(pids, "pids.events", PIDS)).kinds
            # Before Linux 6.11 it is told where the process is; since then v1 tells nobody: pids_event() wakes a file it lacks.
            if counts_refusals(pids):
                yield from kinds
        watched = unified or memory or pids
        if watched is None:
            raise Unsupported(
                "events of a control group",
                "this host or group, which has neither cgroup v2 nor a controller of memory or pids",
                "mount -t cgroup2, or the memory controller",
            )
        if not tells_removal:
            self._add(Removal(watched))
            if not watched.is_there():
                raise GoneError("open", watched.path, ENODEV, "the control group has been removed")

    def _copy(self, directory: Directory | None) -> Directory | None:
        """Return a directory of our own: a group may be closed while somebody waits for it."""
        if directory is None:
            return None
        number = directory.fileno()
        if number not in self._copies:
            self._copies[number] = self._own(directory.copy())
        return self._copies[number]

    def _add(self, source: SourceT) -> SourceT:
        self._sources[source.fileno()] = self._own(source)
        self._epoll.register(source.fileno(), source.mask)
        return source

    def __repr__(self) -> str:
        state = "closed" if self._closed else "group gone" if self._over else ", ".join(sorted(one.value for one in self.kinds))
        return f"<Events of {self._path}: {state}>"

    def _look(self) -> None:
        for number, _ in self._epoll.poll(0):
            if (source := self._sources.get(number)) is not None:
                try:
                    self._tell(source.read())
                except GoneError as error:
                    self._end(error)


def wait_oom(
    memory: Directory,
    *,
    timeout: float | timedelta | None = None,
    oom_kills: Callable[[], int] | None = None,
) -> bool:
    """Wait until the kernel has killed a process of a group, or of one below, for want of memory, now or before.

    Parameters
    ----------
    memory
        The group's directory in the hierarchy that has the memory controller, of either version.
    timeout
        Seconds or a timedelta; None: no limit.
    oom_kills
        As for `Events`.

    Returns
    -------
    bool
        False: not in time.

    Raises
    ------
    GoneError
        The group has been removed.
    """
    left = Deadline(timeout)
    with memory.copy() as own:
        kills = oom_kills or KillCount(own)
        return _wait_oom(own, left, kills)


def _wait_oom(memory: Directory, left: Deadline, kills: Callable[[], int]) -> bool:
    with Events(None, {"memory": memory}, oom_kills=kills) as events:
        is_v2 = memory.version == _V2
        seen = parse_flat(memory.sample("memory.events")).get("oom_kill", 0) if is_v2 else kills()
        while not seen:
            event = events.wait_until(left)
            if event is None:
                return False
            if event.kind is EventKind.OOM_KILL:
                seen = event.total
    return True


def wait_empty(unified: Directory | None, legacy: Sequence[Directory], timeout: float | timedelta | None = None) -> bool:
    """Wait until no process lives in a group or below it.

    Parameters
    ----------
    unified
        The group's directory in cgroup v2, or None.
    legacy
        Its directories in v1, which are looked at only without that: there each process is waited for.
    timeout
        Seconds or a timedelta; None: no limit.

    Returns
    -------
    bool
        False: not in time.  A group that has been removed is empty.
    """
    left = Deadline(timeout)
    if unified is None:
        return all(_wait_listed(directory, left) for directory in legacy)
    with suppress(GoneError), unified.copy() as own, Events(own, {}) as events:
        while is_populated(own):
            if events.wait_until(left) is None:
                return False
    return True


def _wait_listed(directory: Directory, left: Deadline) -> bool:
    with suppress(GoneError), directory.copy() as own:
        while pids := pids_in(own):
            visible = next(filter(None, pids), None)
            if visible is None:
                raise Unsupported(
                    f"waiting for the processes of {own.path}",
                    "this pid namespace, which does not show them, and cgroup v1, which does not tell when a group is empty",
                    "a host with cgroup v2, or a process in their pid namespace or one above",
                )
            with suppress(ProcessLookupError):
                fd = Fd.take(os.pidfd_open, visible)
                assert fd is not None  # noqa: S101 - pidfd_open raises
                with fd:
                    if not poll(fd.fileno(), left.milliseconds()):
                        return False
            # Kernels since 6.19 list who has ended until he has left the processor, and v1 tells nobody of that.
            if visible in pids_in(own):
                if left.is_over:
                    return False
                select.poll().poll(_LOOK_AGAIN)
    return True
