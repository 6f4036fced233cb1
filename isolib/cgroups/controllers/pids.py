"""The number of processes and threads (Documentation/admin-guide/cgroup-v2.rst, PID)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isolib.cgroups.controllers.knobs import Controller, count, number
from isolib.cgroups.files import parse_flat

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from isolib.cgroups.files import Directory

__all__ = ["Pids", "counts_refusals"]


def counts_refusals(directory: Directory) -> bool:
    """Return whether a group counts the refusals in groups below it too: in v2 since Linux 6.11 (kernel/cgroup/pids.c)."""
    return directory.has("pids.events.local")


class Pids(Controller):
    """How many processes and threads a group may have; called, it returns their numbers.

    The supervisor of each process that isolib starts is one of them.
    """

    name = "pids"
    _listed: Callable[[], list[int]]
    _counted: Callable[[], int | None]

    def __call__(self) -> list[int]:
        """Return the ids of the processes in the group and below it, as this pid namespace numbers them."""
        return self._listed()

    def counting(self, counted: Callable[[], int | None]) -> Self:
        """Return this controller, which asks this function how often one more was refused, where v1 counts it."""
        self._counted = counted
        return self

    def listing(self, listed: Callable[[], list[int]]) -> Self:
        """Return this controller, which asks this function for the processes."""
        self._listed = listed
        return self

    max = count("pids.max", "pids.max", "The most at any one time; None: no limit.  One more is refused with EAGAIN.")

    @property
    def current(self) -> int:
        """How many there are now."""
        return number(self, "pids.current", "pids.current", "current")

    @property
    def peak(self) -> int:
        """The most that there were at any one time (since Linux 6.1)."""
        return number(self, "pids.peak", "pids.peak", "peak")

    @property
    def hits(self) -> int:
        """How often one more was refused."""
        counted = self._counted()
        return (
            counted
            if counted is not None
            else parse_flat(self.read("pids.events", "pids.events", "hits").encode()).get("max", 0)
        )
