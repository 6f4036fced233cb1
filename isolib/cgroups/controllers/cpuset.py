"""On which processors, and in which memory (Documentation/admin-guide/cgroup-v2.rst, Cpuset; cpuset(7))."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from isolib.cgroups.controllers.knobs import Controller, Knob
from isolib.cgroups.values import format_cpus, parse_cpus, read_cpus

if TYPE_CHECKING:
    from isolib.cgroups.files import Directory

__all__ = ["Cpuset", "inherit"]

_FILES: Final = ("cpuset.cpus", "cpuset.mems")


class Cpuset(Controller):
    """The processors and memory nodes of a group."""

    name = "cpuset"

    cpus = Knob(
        "cpuset.cpus",
        "cpuset.cpus",
        parse=parse_cpus,
        show=format_cpus,
        load=read_cpus,
        doc="The processors on which its processes may run; none where nothing was said (v2), and all of those above are.",
    )
    mems = Knob(
        "cpuset.mems",
        "cpuset.mems",
        parse=parse_cpus,
        show=format_cpus,
        load=read_cpus,
        doc="The memory nodes that its processes may use.",
    )

    @property
    def effective_cpus(self) -> frozenset[int]:
        """The processors on which its processes do run."""
        return read_cpus(self.read("cpuset.cpus.effective", "cpuset.effective_cpus", "effective_cpus"))

    @property
    def effective_mems(self) -> frozenset[int]:
        """The memory nodes that its processes do use."""
        return read_cpus(self.read("cpuset.mems.effective", "cpuset.effective_mems", "effective_mems"))


def inherit(parent: Directory, group: Directory) -> None:
    """Give a new group of v1 what nobody can enter it without: processors and memory nodes, those of the group above."""
    for name in _FILES:
        if not group.read(name).strip():
            group.write(name, parent.read(name).strip())
