"""Ending what lives in a group, and taking its directories down.

In v2 one write kills a whole tree, however fast it forks, and cgroup.events tells when the last one is gone.  v1 has neither:
there every process is killed by a descriptor of its own, which tells of its end.
"""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import suppress
from errno import EBUSY, ENOENT
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib._kernel.handle import Fd
from isolib._kernel.hints import typed
from isolib.cgroups import freezing
from isolib.cgroups.tree import ABSENT, each_group, listed, names_in, open_at, pids_in
from isolib.errors import GoneError, IsolibError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from isolib.cgroups.files import Directory
    from isolib.errors import SyscallError

__all__ = ["end", "is_populated", "kill", "reap_adopted", "remove", "remove_empty", "wait_until_empty"]

_PATIENCE: Final = 30.0
_SECOND: Final = 1.0
_LIST: Final = 65536
#: Seconds between two looks where the kernel tells nobody: processes of v1 that have ended, but are being taken apart.
_LOOK_AGAIN: Final = 0.002


def is_populated(directory: Directory) -> bool:
    """Return whether somebody lives in a group of v2, or below."""
    return b"populated 1" in directory.sample("cgroup.events")


# ---- killing ----


@typed("processes of a control group")
def kill(unified: Directory | None, legacy: list[Directory]) -> None:
    """Kill everybody in a group and below it, and wait for their ends.

    Raises
    ------
    SyscallError
        The kernel refuses.
    IsolibError
        Somebody is still there after 30 s: in an uninterruptible wait of a driver or a network file system.
    """
    deadline = time.monotonic() + _PATIENCE
    if unified is not None:
        if is_populated(unified):
            _kill_unified(unified)
            wait_until_empty(unified, deadline - time.monotonic())
        return
    for directory in legacy:
        thaw_all(directory)
    while any(_kill_listed(directory, deadline) for directory in legacy):
        pass


@typed("processes of a control group")
def end(unified: Directory | None, freezer: Directory | None, legacy: list[Directory], spared: Collection[int]) -> None:
    """Kill everybody in a group but the supervisors of commands, who reap those and then end by themselves; wait for all.

    So it is known how each command ended, and the dead count as processes no more, however slow the init of this system is.
    Standing still nobody forks, and SIGKILL is the first thing that everybody meets afterwards.  Who does not stand still
    within a second is killed without ceremony.
    """
    was_frozen = freezing.is_frozen(unified, freezer)
    try:
        freezing.freeze(unified, freezer, _SECOND)
    except GoneError:
        raise
    except IsolibError:
        kill(unified, legacy)
        return
    reapers: list[Fd | None] = []
    try:
        for pid in {pid for directory in ([unified] if unified else legacy) for pid in pids_in(directory)}:
            if pid in spared:
                with suppress(OSError):
                    reapers.append(Fd.take(os.pidfd_open, pid))
            else:
                _kill_one(pid)
    finally:
        freezing.thaw(unified, freezer)
    _wait_for(filter(None, reapers), time.monotonic() + _SECOND)
    if unified is None or not freezing.wait_for(unified, "cgroup.events", b"populated 0", _SECOND):
        kill(unified, legacy)
    if was_frozen:
        freezing.freeze(unified, freezer, _SECOND)


def _kill_unified(directory: Directory) -> None:
    if directory.has("cgroup.kill"):
        directory.write("cgroup.kill", "1")
        return
    # Before 5.14: nobody forks while frozen, and SIGKILL ends who is frozen in v2.
    directory.write("cgroup.freeze", "1")
    try:
        for pid in pids_in(directory):
            _kill_one(pid)
    finally:
        directory.write("cgroup.freeze", "0")


def wait_until_empty(directory: Directory, timeout: float) -> None:
    """Wait until nobody lives in a group of v2: the kernel tells by cgroup.events.

    Raises
    ------
    IsolibError
        Somebody still does.
    """
    if not freezing.wait_for(directory, "cgroup.events", b"populated 0", timeout):
        left = ", ".join(map(str, pids_in(directory)[:10]))
        raise IsolibError(f"{directory.path}: processes are left in it after {timeout:g} s: {left}")


@typed("the freezer of a control group")
def thaw_all(directory: Directory) -> None:
    """Thaw a tree of v1 groups: who is frozen there does not die of SIGKILL."""
    for fd in each_group(directory.fileno()):
        try:
            with open_at(fd, "freezer.state", os.O_WRONLY) as file:
                os.write(file.fileno(), b"THAWED")
        except OSError as error:  # another hierarchy, or the topmost group
            if error.errno not in ABSENT:
                raise


def _kill_listed(directory: Directory, deadline: float) -> bool:
    """Kill those that are in a tree of v1 now, and wait for their ends; returns whether there were any."""
    pids = [pid for pid in pids_in(directory) if pid]
    poll = select.poll()
    kept = []
    for pid in pids:
        try:
            pidfd = Fd.take(os.pidfd_open, pid)
        except ProcessLookupError:
            continue
        assert pidfd is not None  # noqa: S101 - pidfd_open raises
        # Named by its descriptor from here on: it is killed if it is still in the group, and nobody else is.
        if pid in pids_in(directory):
            with suppress(GoneError):
                calls.pidfd_send_signal(pidfd.fileno(), signal.SIGKILL, f"process {pid}")
            poll.register(pidfd.fileno(), select.POLLIN)
            kept.append(pidfd)
    for pidfd in kept:
        with pidfd:
            single = select.poll()
            single.register(pidfd.fileno(), select.POLLIN)
            if not single.poll(max(0, deadline - time.monotonic()) * 1000):
                raise IsolibError(f"{directory.path}: processes are left in it after {_PATIENCE:g} s")
    return bool(pids)


def _wait_for(pidfds: Iterable[Fd], deadline: float) -> None:
    """Wait until processes have ended, which their descriptors tell at once, and cgroup.events some milliseconds later."""
    for pidfd in pidfds:
        with pidfd:
            poll = select.poll()
            poll.register(pidfd.fileno(), select.POLLIN)
            poll.poll(max(0.0, deadline - time.monotonic()) * 1000)


def _kill_one(pid: int) -> None:
    with suppress(OSError, GoneError):
        pidfd = Fd.take(os.pidfd_open, pid)
        if pidfd is not None:
            with pidfd:
                calls.pidfd_send_signal(pidfd.fileno(), signal.SIGKILL, f"process {pid}")


def reap_adopted(unified: Directory) -> None:
    """Reap those of a group of v2 whose parents were killed with them, and who came to this process.

    PID 1 and child subreapers adopt.  Who is not reaped keeps the pid namespace from ending in which he lived.
    """
    mark = f"/{os.path.basename(unified.path)}/p".encode()  # its lodges; who was moved in has another parent, who waits
    for task in os.listdir("/proc/self/task"):
        with suppress(OSError), open_at(-1, f"/proc/self/task/{task}/children") as file:
            for pid in map(int, os.read(file.fileno(), _LIST).split()):
                with suppress(OSError), open_at(-1, f"/proc/{pid}/cgroup") as own:
                    groups = os.read(own.fileno(), _LIST)
                    if any(line.startswith(b"0::") and mark in line for line in groups.splitlines()):
                        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)


# ---- taking down ----


def remove_empty(parent: Directory, name: str) -> bool:
    """Remove a group if nobody lives in it, and nothing is below it; returns whether it is gone.  It takes no descriptor."""
    try:
        os.rmdir(name, dir_fd=parent.fileno())
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def remove(parent: Directory, name: str) -> None:
    """Remove an empty group and those below it; one that does not exist is removed already.

    Raises
    ------
    SyscallError
        EBUSY: somebody lives in it; the message names the processes.
    """
    deadline = time.monotonic() + 1
    while True:
        try:
            _remove_tree(parent.fileno(), name)
        except OSError as error:
            # v1 counts a process for a moment after everybody has been told that it ended, and tells nobody when it stops.
            if error.errno != EBUSY or time.monotonic() > deadline:
                raise _not_removed(parent, name, error.errno or 0) from None
            select.poll().poll(_LOOK_AGAIN * 1000)
        else:
            return


def _remove_tree(parent: int, name: str) -> None:
    try:
        os.rmdir(name, dir_fd=parent)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != EBUSY:
            raise
    else:
        return
    try:
        fd = open_at(parent, name, os.O_DIRECTORY)
    except FileNotFoundError:
        return
    with fd:
        for child in names_in(fd.fileno()):
            _remove_tree(fd.fileno(), child)
    with suppress(FileNotFoundError):
        os.rmdir(name, dir_fd=parent)


def _not_removed(parent: Directory, name: str, errno: int) -> SyscallError:
    if errno == ENOENT:
        return GoneError("rmdir", f"{parent.path}/{name}", errno)
    error = parent.refused("rmdir", name, errno)
    if errno == EBUSY:
        try:
            with open_at(parent.fileno(), name, os.O_DIRECTORY) as fd:
                pids = [pid for one in each_group(fd.fileno()) for pid in listed(one)]
        except OSError:
            pids = []
        left = ", ".join(map(str, pids[:10])) or "none that this pid namespace shows"
        error.hint = f"somebody lives in it: {left}"
    return error
