"""A private /proc: the processes of the new pid namespace, and as little as possible of the machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib._kernel.guest import Guest, Place
from isolib._kernel.plan import INSIDE
from isolib.mounts.checks import check_target
from isolib.mounts.values import Mount, freeze

if TYPE_CHECKING:
    from isolib._kernel.assembly import Scene
    from isolib._kernel.plan import Builder, Slot
    from isolib.types import AnyPath

__all__ = ["MASKED", "READ_ONLY", "Proc"]

MASKED: Final = (
    "acpi",
    "asound",
    "interrupts",
    "kcore",
    "keys",
    "latency_stats",
    "sched_debug",
    "scsi",
    "sysrq-trigger",
    "timer_list",
    "timer_stats",
)
"""What of /proc is hidden where the kernel has it: hardware, memory, keys, timers and the magic keys are the machine's."""

READ_ONLY: Final = ("bus", "fs", "irq", "sys")
"""What of /proc is read-only: there root inside may be the owner, and what is written changes the machine."""

_ATTRIBUTES: Final = calls.MOUNT_ATTR_NOSUID | calls.MOUNT_ATTR_NODEV | calls.MOUNT_ATTR_NOEXEC


@lru_cache(maxsize=1)
def _present() -> frozenset[tuple[str, bool]]:
    """Return what this kernel's /proc has of both lists, with whether it is a directory."""
    with os.scandir("/proc") as entries:
        return frozenset((one.name, one.is_dir()) for one in entries if one.name in {*MASKED, *READ_ONLY})


def masked_files() -> int:
    """Return how many files of /proc are masked on this host."""
    return sum(name in MASKED and not is_directory for name, is_directory in _present())


@dataclass(frozen=True, slots=True)
class Proc(Mount):
    """A procfs that shows the processes of the new pid namespace, and no others.

    Masked where the kernel has them: acpi, asound, interrupts, kcore, keys, latency_stats, sched_debug, scsi, sysrq-trigger,
    timer_list, timer_stats.  Read-only: bus, fs, irq, sys.  All of it nosuid, nodev, noexec.

    In a process that shares its creator's pid namespace the processes there are the right ones to show, and a new procfs is not
    allowed to show them: the host's /proc is bound, with the same parts masked and read-only.

    Parameters
    ----------
    target
        Where; no part of it may be a symbolic link.

    Raises
    ------
    PlanError
        The path cannot work.

    Notes
    -----
    In a user namespace the kernel makes a new procfs only where an older one is mounted that nothing covers: not in a container
    whose own /proc is masked, as Docker's and this one's are.  The launch fails then, with EPERM.  Sources: proc(5),
    pid_namespaces(7), and mount_too_revealing() in the kernel's fs/namespace.c.

    Examples
    --------
    >>> Proc()
    Proc(target='/proc')
    """

    target: AnyPath = "/proc"

    def __post_init__(self) -> None:
        freeze(self, target=check_target(self.target, "target", of="Proc"))

    def add_steps(self, builder: Builder, root: Slot | None, scene: Scene) -> None:
        """Add the steps that attach it."""
        guest = Guest.of(builder, root, scene)
        target = os.fsdecode(self.target)
        bound = "pid" not in scene.new | scene.joined
        if bound:
            proc = guest.host_tree("/proc", _ATTRIBUTES, recursive=True, phase=INSIDE)
        else:
            proc = guest.new_fs("proc", {}, _ATTRIBUTES)
        guest.attach(proc, target, Place("foreign", proc), plain=True)
        for name, is_directory in sorted(_present()):
            what = f"{target}/{name}"
            if name in MASKED:
                cover = guest.nothing() if is_directory else guest.null()
            else:
                cover = guest.clone_of(proc, name, recursive=bound)
                guest.set_attributes(cover, calls.MOUNT_ATTR_RDONLY, recursive=bound, what=what)
            guest.attach_onto(cover, proc, name, what)
