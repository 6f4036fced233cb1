"""What a group tells of itself: what it uses, under what pressure, and what happens to it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from isolib._kernel.handle import Handle
from isolib.cgroups import events
from isolib.cgroups.controllers.pids import counts_refusals
from isolib.cgroups.history import History
from isolib.cgroups.pressure import Pressures
from isolib.cgroups.stats import read_stats
from isolib.cgroups.tree import counted_in
from isolib.errors import Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from isolib.cgroups.controls import Controls
    from isolib.cgroups.events import Events
    from isolib.cgroups.stats import Stats

__all__ = ["Watched"]


class Watched(Handle, made_by="isolib.new_cgroup() or isolib.open_cgroup()"):
    """The part of `Cgroup` that looks and waits, and changes nothing."""

    _controls: Controls

    def __init__(self) -> None:
        super().__init__()
        #: What is counted in a group below goes with it (v1; refusals in v2 before 6.11): of those that are gone.
        self._kills_before = self._hits_before = 0
        self._pressure: Pressures | None = None

    def stats(self) -> Stats:
        """Return what the group uses and has used: memory, processor time, disk I/O, processes, pressure; a frozen value.

        Raises
        ------
        GoneError
            The group has been removed.

        Examples
        --------
        >>> with new_cgroup(memory_max="64M") as group:
        ...     group.stats().memory.limit
        67108864
        """
        self._check_open()
        controls = self._controls
        found = read_stats(controls.unified, controls.by_name)
        if found.memory is not None and "memory" in controls.legacy:
            found = replace(found, memory=replace(found.memory, oom_kills=self.oom_kills))
        if found.pids is not None and (hits := self._hits()) is not None:
            found = replace(found, pids=replace(found.pids, hits=hits))
        return found

    def history(self, every: float | timedelta = 0.1, *, most: int = 10_000) -> History:
        """Sample `stats` until that is closed: a context manager, with ``samples``, and ``series`` for plots.

        Parameters
        ----------
        every
            Seconds or a timedelta between two samples.
        most
            How many are kept; the oldest go first.

        Examples
        --------
        >>> with new_cgroup() as group, group.history(every=0.01) as history:
        ...     group.spawn(["true"]).close()
        >>> len(history.series("cpu.total")[0]) == len(history.samples)
        True
        """
        self._check_open()
        return History(self.stats, every, most=most)

    @property
    def pressure(self) -> Pressures:
        """How long its processes have waited for processor, memory and disk (PSI; in cgroup v2, since Linux 4.20).

        Using it raises `Unsupported` where the kernel does not count it: without cgroup v2, without CONFIG_PSI, booted with
        psi=0, or switched off for the group.
        """
        self._check_open()
        if self._pressure is None:
            refusal = Unsupported("pressure of a control group", "this host, which has no cgroup v2", "mount cgroup2")
            self._pressure = Pressures(self._controls.unified, refusal)
        return self._pressure

    def events(self) -> Events:
        """Return what happens to the group from now on: an iterator, for ``for`` and ``async for``, and a context manager.

        Raises
        ------
        Unsupported
            The host has neither cgroup v2 nor a controller that tells anything.

        Examples
        --------
        >>> with new_cgroup() as group, group.events() as events, group.spawn(["sleep", "60"]):
        ...     events.wait(timeout=10).kind.value
        'populated'
        """
        self._check_open()
        controls = self._controls
        return events.Events(controls.unified, controls.by_name, oom_kills=self._kill_count)

    @property
    def oom_kills(self) -> int:
        """How many processes the kernel has killed in the group for want of memory, those below included."""
        self._check_open()
        return self._legacy_kills() if "memory" in self._controls.legacy else self._controls.memory.events().get("oom_kill", 0)

    @property
    def _kill_count(self) -> Callable[[], int] | None:
        """What counts kills in v1; of somebody else's group it is not told which groups below go, and `KillCount` looks."""
        return self._legacy_kills if self._controls.owned else None

    def _legacy_kills(self) -> int:
        memory = self._controls.legacy.get("memory")
        return self._kills_before + (0 if memory is None else counted_in(memory, "memory.oom_control", "oom_kill"))

    def _hits(self) -> int | None:
        """Return how often a new process was refused; None: the group's own file says it, with those below."""
        pids = self._controls.by_name.get("pids")
        if pids is None or counts_refusals(pids):
            return None
        return self._hits_before + counted_in(pids, "pids.events", "max")

    def wait_oom(self, timeout: float | timedelta | None = None) -> bool:
        """Wait until the kernel has killed a process of the group for want of memory, now or before.

        Parameters
        ----------
        timeout
            Seconds or a timedelta; None: no limit.

        Returns
        -------
        bool
            False: not in time.

        Raises
        ------
        Unsupported
            The group has no memory controller.
        GoneError
            The group has been removed.
        """
        self._check_open()
        return events.wait_oom(self._controls.memory.directory, timeout=timeout, oom_kills=self._kill_count)

    def wait_empty(self, timeout: float | timedelta | None = None) -> bool:
        """Wait until no process lives in the group, or below it.

        Returns
        -------
        bool
            False: not in time.
        """
        self._check_open()
        return events.wait_empty(self._controls.unified, self._controls.distinct, timeout)
