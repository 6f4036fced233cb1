"""Suspending a group and resuming it, by the kernel's own notice that everybody stands still."""

from __future__ import annotations

import os
import select
import time
from typing import TYPE_CHECKING, Final

from isolib.errors import IsolibError, Unsupported

if TYPE_CHECKING:
    from types import TracebackType

    from isolib.cgroups.files import Directory
    from isolib.cgroups.group import Cgroup

__all__ = ["Frozen", "freeze", "has_freezer", "is_frozen", "seen_frozen", "thaw", "wait_for"]

#: Seconds for those who are in a system call that cannot be interrupted.
_PATIENCE: Final = 10.0
#: Seconds between two looks at freezer.state of v1, which tells of no change.
_LOOK_AGAIN: Final = 0.001
#: How many milliseconds late the kernel may tell of a change of a file in v2: of one after another it tells once (cgroup.c,
#: CGROUP_FILE_NOTIFY_MIN_INTV).  Meanwhile one look each millisecond sees it earlier.
_LATE: Final = 10


def has_freezer(unified: Directory) -> bool:
    """Return whether a group of v2 can be frozen: since Linux 5.2, and not the top one.  The file that tells it stays open."""
    return b"frozen " in (unified.sample_if_there("cgroup.events") or b"")


def seen_frozen(unified: Directory) -> bool | None:
    """Return whether everybody in a group of v2 stands still; None: it cannot be frozen."""
    events = unified.glance_if_there("cgroup.events") or b""
    return b"frozen 1" in events if b"frozen " in events else None


def freeze(unified: Directory | None, legacy: Directory | None, timeout: float = _PATIENCE) -> None:
    """Suspend everybody in a group and below it, and wait until they stand still.

    Raises
    ------
    Unsupported
        Neither v2 (since Linux 5.2) nor the freezer of v1 is there.
    IsolibError
        Somebody did not stop in time; the group goes on.
    """
    if unified is not None and has_freezer(unified):
        stands = False
        try:
            unified.write("cgroup.freeze", "1")
            stands = wait_for(unified, "cgroup.events", b"frozen 1", timeout)
        finally:
            if not stands:
                unified.write("cgroup.freeze", "0")
        if not stands:
            raise IsolibError(f"{unified.path}: not everybody stands still after {timeout:g} s; it goes on")
        return
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
    stands = False
    try:
        while not stands and time.monotonic() <= deadline:
            # Written again each time: who forks while it is FREEZING may have been missed.
            directory.write("freezer.state", "FROZEN")
            stands = directory.read("freezer.state").strip() == "FROZEN"
            if not stands:
                pause.poll(_LOOK_AGAIN * 1000)
    finally:
        if not stands:
            directory.write("freezer.state", "THAWED")
    if not stands:
        raise IsolibError(f"{directory.path}: not everybody stands still after {timeout:g} s; it goes on")


def thaw(unified: Directory | None, legacy: Directory | None) -> None:
    """Let a group go on; one that is not frozen does already.  An interrupt is raised when it does."""
    try:
        _thaw(unified, legacy)
    except KeyboardInterrupt:
        _thaw(unified, legacy)
        raise


def _thaw(unified: Directory | None, legacy: Directory | None) -> None:
    if unified is not None and has_freezer(unified):
        unified.write("cgroup.freeze", "0")
        wait_for(unified, "cgroup.events", b"frozen 0", _PATIENCE)
    elif legacy is not None:
        legacy.write("freezer.state", "THAWED")


def is_frozen(unified: Directory | None, legacy: Directory | None) -> bool:
    """Return whether everybody in a group stands still."""
    if unified is not None and (found := seen_frozen(unified)) is not None:
        return found
    return legacy is not None and legacy.read("freezer.state").strip() == "FROZEN"


def wait_for(directory: Directory, file: str, content: bytes, timeout: float | None) -> bool:
    """Wait until a file of v2 that tells of its changes holds this; returns whether it does."""
    deadline = None if timeout is None else time.monotonic() + timeout
    with directory.open_file(file, os.O_RDONLY) as fd:
        poll = select.poll()
        poll.register(fd.fileno(), select.POLLPRI)
        looks = 0
        while True:
            try:
                if content in os.pread(fd.fileno(), 4096, 0):
                    return True
            except OSError as error:
                raise directory.refused("read", file, error.errno or 0) from None
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            looks += 1
            if looks <= _LATE:
                poll.poll(1)
            else:
                poll.poll(None if left is None else max(1, left * 1000))


class Frozen:
    """The block of `isolib.Cgroup.frozen`: the group stands still in it, and goes on after the last of several."""

    def __init__(self, group: Cgroup) -> None:
        self._group = group

    def __enter__(self) -> Cgroup:
        self._group._hold_still(1)  # noqa: SLF001 - its other half
        return self._group

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._group._hold_still(-1)  # noqa: SLF001
