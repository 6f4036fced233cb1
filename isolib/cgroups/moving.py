"""Moving processes that exist already; who is born in a group needs none of this.

A write to cgroup.procs costs some milliseconds: the kernel waits until nobody is in the midst of a fork.
"""

from __future__ import annotations

import os
from contextlib import suppress
from errno import EBUSY, EOPNOTSUPP, ESRCH
from typing import TYPE_CHECKING, Protocol

from isolib._kernel import cgroupfs
from isolib._kernel.handle import home
from isolib._kernel.hints import typed
from isolib._kernel.procfs import parse_cgroup
from isolib.cgroups.files import Directory, distinct
from isolib.cgroups.hierarchy import V2_NAMES
from isolib.errors import GoneError, IsolibError, PlanError, SyscallError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from isolib._kernel.cgroupfs import Group
    from isolib.cgroups.group import Cgroup

    class HasPid(Protocol):
        """A process: of isolib, subprocess, multiprocessing or psutil."""

        @property
        def pid(self) -> int | None:
            """Its number."""


__all__ = ["Entered", "groups_of", "move", "process_id"]


def process_id(process: int | HasPid, what: str = "process") -> int:
    """Return the number of a process, given as such or as an object that has a ``pid``.

    Raises
    ------
    PlanError
        It is neither, or a number that no process has.
    """
    pid = process if isinstance(process, int) else getattr(process, "pid", None)
    if isinstance(pid, bool) or not isinstance(pid, int):
        raise PlanError(f"{what}: a process id, or an object with a pid, is wanted, not {process!r}")
    if pid <= 0:
        raise PlanError(f"{what}: {pid} is the number of no process")
    return pid


def move(pid: int, directories: Iterable[Directory], file: str = "cgroup.procs") -> None:
    """Move a process, with all its threads, into groups.

    Raises
    ------
    GoneError
        There is no such process.
    """
    for directory in directories:
        try:
            directory.write(file, str(pid))
        except SyscallError as error:
            if error.errno == ESRCH:
                raise GoneError("write", f"process {pid}", hint="it has ended, or is a kernel thread") from None
            if error.errno in {EBUSY, EOPNOTSUPP}:
                text = "the group gives controllers to groups below it, or is threaded, and takes no processes itself"
                raise type(error)(error.op, error.target, error.errno, text) from None
            raise


@typed("the control groups of a process")
def groups_of(pid: int | str) -> tuple[Directory | None, dict[str, Directory]]:
    """Return the groups that a process is in: of v2, and of v1 by controller (as v2 calls them)."""
    unified, legacy = _look(pid)
    opened = {one.path: Directory.open(one.path, 1) for one in legacy.values()}
    found = {V2_NAMES.get(name, name): opened[one.path] for name, one in legacy.items()}
    return None if unified is None else Directory.open(unified.path, 2), found


def _look(pid: int | str) -> tuple[Group | None, dict[str, Group]]:
    try:
        with open(f"/proc/{pid}/cgroup", "rb") as file:
            entries = parse_cgroup(file.read())
    except (FileNotFoundError, ProcessLookupError):
        raise GoneError("open", f"process {pid}") from None
    return cgroupfs.own_groups(cgroupfs.read_mounts(), entries)


class Entered:
    """The block of `isolib.Cgroup.entered`: this process, with all its threads, is in the group, and goes back at the end."""

    def __init__(self, group: Cgroup) -> None:
        self._group = group
        self._before: list[Directory] = []
        self._home: tuple[int, int] | None = None

    def __enter__(self) -> Cgroup:
        if self._before:
            raise IsolibError(f"{self._group!r}: this process is in it already by this very object")
        self._home = home()
        unified, legacy = groups_of("self")
        self._before = distinct([unified, *legacy.values()])
        self._group._visits.append(self)  # noqa: SLF001 - it is not closed before this process has left it
        try:
            self._group.add(os.getpid())
        except BaseException:
            self.leave()
            raise
        return self._group

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.leave()
        except KeyboardInterrupt:  # it is raised when this process is back
            self.leave()
            raise

    @typed("the control groups of this process")
    def leave(self) -> None:
        """Go back; again, and in a fork, is nothing."""
        if self._home != home():
            return
        unified, legacy = _look("self")
        here = {one.path for one in (*([unified] if unified else []), *legacy.values())}
        move(os.getpid(), [directory for directory in self._before if directory.path not in here])
        before, self._before = self._before, []
        with suppress(ValueError):  # it was interrupted behind this
            self._group._visits.remove(self)  # noqa: SLF001
        for directory in before:
            directory.close()
