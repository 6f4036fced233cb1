"""Suspending a group and resuming it, by the kernel's own notice that everybody stands still."""

from __future__ import annotations

import select
import time
from typing import TYPE_CHECKING, Final

from isolib.cgroups import removal
from isolib.errors import IsolibError, Unsupported

if TYPE_CHECKING:
    from types import TracebackType

    from isolib.cgroups.files import Directory
    from isolib.cgroups.group import Cgroup

__all__ = ["Frozen", "freeze", "thaw"]

#: Seconds for those who are in a system call that cannot be interrupted.
_PATIENCE: Final = 10.0
#: Seconds between two looks at freezer.state of v1, which tells of no change.
_LOOK_AGAIN: Final = 0.001


def freeze(unified: Directory | None, legacy: Directory | None, timeout: float = _PATIENCE) -> None:
    """Suspend everybody in a group and below it, and wait until they stand still.

    Raises
    ------
    Unsupported
        Neither v2 (since Linux 5.2) nor the freezer of v1 is there.
    IsolibError
        Somebody did not stop in time; the group goes on.
    """
    if unified is not None and unified.has("cgroup.freeze"):
        unified.write("cgroup.freeze", "1")
        if removal.wait_for(unified, "cgroup.events", b"frozen 1", timeout):
            return
        unified.write("cgroup.freeze", "0")
        raise IsolibError(f"{unified.path}: not everybody stands still after {timeout:g} s; it goes on")
    if legacy is None:
        raise Unsupported(
            "freezing a control group",
            "the kernel, whose cgroup v2 is older than 5.2, and no freezer of v1 is mounted",
            "a newer kernel, or as root: mount -t cgroup -o freezer cgroup /sys/fs/cgroup/freezer",
        )
    _freeze_legacy(legacy, timeout)


def _freeze_legacy(directory: Directory, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    pause = select.poll()
    while True:
        # Written again each time: who forks while it is FREEZING may have been missed.
        directory.write("freezer.state", "FROZEN")
        if directory.read("freezer.state").strip() == "FROZEN":
            return
        if time.monotonic() > deadline:
            directory.write("freezer.state", "THAWED")
            raise IsolibError(f"{directory.path}: not everybody stands still after {timeout:g} s; it goes on")
        pause.poll(_LOOK_AGAIN * 1000)


def thaw(unified: Directory | None, legacy: Directory | None) -> None:
    """Let a group go on; one that is not frozen does already."""
    if unified is not None and unified.has("cgroup.freeze"):
        unified.write("cgroup.freeze", "0")
        removal.wait_for(unified, "cgroup.events", b"frozen 0", _PATIENCE)
    elif legacy is not None:
        legacy.write("freezer.state", "THAWED")


def is_frozen(unified: Directory | None, legacy: Directory | None) -> bool:
    """Return whether everybody in a group stands still."""
    if unified is not None and unified.has("cgroup.freeze"):
        return b"frozen 1" in unified.sample("cgroup.events")
    return legacy is not None and legacy.read("freezer.state").strip() == "FROZEN"


class Frozen:
    """The block of `Cgroup.frozen`: the group stands still in it, and goes on after the last of several."""

    def __init__(self, group: Cgroup) -> None:
        self._group = group

    def __enter__(self) -> Cgroup:
        self._group._hold_still(1)  # noqa: SLF001 - its other half
        return self._group

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._group._hold_still(-1)  # noqa: SLF001
