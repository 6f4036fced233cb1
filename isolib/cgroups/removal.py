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
from isolib._kernel.handle import Fd, Rollback
from isolib._kernel.hints import typed
from isolib._kernel.waiting import poll
from isolib.cgroups import freezing
from isolib.cgroups.errands import Errands
from isolib.cgroups.tree import ABSENT, each_group, listed, names_in, open_at, pids_in
from isolib.errors import GoneError, IsolibError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from isolib.cgroups.files import Directory
    from isolib.errors import SyscallError

__all__ = ["end", "is_populated", "kill", "reap_adopted", "remove", "remove_all", "remove_empty", "wait_until_empty"]

_PATIENCE: Final = 30.0
_SECOND: Final = 1.0
_LIST: Final = 65536
#: How many processes are open at once: a program may open a thousand files, and a group have more members.
_BATCH: Final = 64
#: Seconds between two looks where the kernel tells nobody: processes of v1 that have ended, but are being taken apart.
_LOOK_AGAIN: Final = 0.002


def is_populated(directory: Directory) -> bool:
    """Return whether somebody lives in a group of v2, or below."""
    return b"populated 1" in directory.glance("cgroup.events")


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
    directories = [unified] if unified else legacy
    reapers: list[Fd] = []
    try:
        for directory in directories:
            _kill_members(directory, spared)
        # Some of the commands have ended before, and their supervisors with them.
        alive = {pid for directory in directories for pid in pids_in(directory)}
        reapers = [fd for pid in sorted(alive.intersection(spared))[:_BATCH] if (fd := _open_process(pid)) is not None]
    finally:
        freezing.thaw(unified, freezer)
    _wait_for(reapers, time.monotonic() + _SECOND)
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
        _kill_members(directory)
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


def _open_process(pid: int) -> Fd | None:
    """Return a descriptor of a process, or None where it has ended."""
    try:
        return Fd.take(os.pidfd_open, pid)
    except ProcessLookupError:
        return None


def _kill_members(directory: Directory, spared: Collection[int] = ()) -> bool:
    """Kill those that are in a group and below it now, but for some; returns whether there were any.

    A number that was read may be another process's by now.  A process that is open, and listed after that, is a member: it is
    killed, and nobody else is.
    """
    members = [pid for pid in pids_in(directory) if pid and pid not in spared]
    for start in range(0, len(members), _BATCH):
        opened = {pid: fd for pid in members[start : start + _BATCH] if (fd := _open_process(pid)) is not None}
        still = set(pids_in(directory))
        for pid, fd in opened.items():
            with fd:
                if pid in still:
                    with suppress(GoneError):
                        calls.pidfd_send_signal(fd.fileno(), signal.SIGKILL, f"process {pid}")
    return bool(members)


def _kill_listed(directory: Directory, deadline: float) -> bool:
    """Kill those that are in a tree of v1 now, and wait for the ends of some; returns whether there were any."""
    if not _kill_members(directory):
        return False
    for pid in pids_in(directory)[:_BATCH]:
        fd = _open_process(pid) if pid else None
        if fd is not None:
            with fd:
                if not poll(fd, max(0.0, deadline - time.monotonic()) * 1000):
                    raise IsolibError(f"{directory.path}: processes are left in it after {_PATIENCE:g} s")
    return True


def _wait_for(pidfds: Iterable[Fd], deadline: float) -> None:
    """Wait until processes have ended, which their descriptors tell at once, and cgroup.events some milliseconds later."""
    for pidfd in pidfds:
        with pidfd:
            poll(pidfd, max(0.0, deadline - time.monotonic()) * 1000)


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


def remove_empty(parents: Iterable[Directory], name: str, opened: Errands | None = None) -> bool:
    """Remove a group from one hierarchy after the other while nobody lives in it there, and nothing is below it.

    Returns whether it is gone from all, and then what was ``opened`` in it is closed.  It takes one call, and no descriptor.
    """
    errands = Errands()
    for parent in parents:
        errands.remove(parent, name)
    if opened is not None:
        errands.close_those_of(opened)
    while (refused := errands.attempt()) is not None:
        if refused.errno != ENOENT:
            return False
        errands.pass_over()
    return True


def remove_all(parents: Sequence[Directory], name: str, opened: Errands | None = None) -> None:
    """As `remove`, from several hierarchies: from each, whatever becomes of another; a group that is gone is no error."""
    if not remove_empty(parents, name, opened):
        with Rollback() as undo:
            for parent in parents:
                undo.push(_remove_from, parent, name)


def _remove_from(parent: Directory, name: str) -> None:
    with suppress(GoneError):
        remove(parent, name)


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
