"""The number of processes and threads (Documentation/admin-guide/cgroup-v2.rst, PID)."""

from __future__ import annotations

from isolib.cgroups.controllers.knobs import Controller, count, number
from isolib.cgroups.files import parse_flat

__all__ = ["Pids"]


class Pids(Controller):
    """How many processes and threads a group may have.

    The supervisor of each process that isolib starts is one of them.
    """

    name = "pids"

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
        """How often one more was refused (v1: to processes in this group itself)."""
        return parse_flat(self.read("pids.events", "pids.events", "hits").encode()).get("max", 0)
