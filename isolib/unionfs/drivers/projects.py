"""Quotas of directories: a project of its own for each, by which XFS counts and bounds what is in it.

ext4 counts projects too, but lets whoever has CAP_SYS_RESOURCE go beyond a limit, and through an overlay everybody writes with
the rights of who has mounted it; so there a limit would hold for nobody.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from errno import EPERM
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib.errors import PlanError, SyscallError, Unsupported

if TYPE_CHECKING:
    from isolib._kernel.handle import Fd

__all__ = ["check_quota", "free_project", "give_project"]

_XFS_SUPER_MAGIC: Final = 0x58465342
#: From which numbers are drawn: administrators and other programs count from below.
_FIRST: Final = 1 << 30
_FEATURE: Final = "a quota for a tree"
_REMEDY: Final = "a store on XFS that is mounted with 'prjquota', as root of the host, with Linux 5.14; or driver='btrfs'"


def check_quota(home: Fd, path: str, size: int) -> None:
    """Find out whether directories in a driver's home can be bounded.

    Raises
    ------
    PlanError
        The size is none.
    Unsupported
        They cannot: what refuses it, and what would help.
    """
    if size <= 0:
        raise PlanError(f"quota={size}: a number of bytes is wanted")
    if calls.fs_magic(home.fileno()) != _XFS_SUPER_MAGIC:
        raise Unsupported(_FEATURE, f"the file system of {path}, which is not XFS", _REMEDY)
    try:
        is_enforced = calls.project_is_enforced(home.fileno(), path)
    except SyscallError as error:  # it counts nothing, or the kernel has no such call
        raise Unsupported(_FEATURE, f"{path}: {error.op}: {error.strerror}", _REMEDY) from error
    if not is_enforced:
        raise Unsupported(_FEATURE, f"the file system of {path}, which does not keep to quotas of projects", _REMEDY)
    try:
        calls.project_limit(home.fileno(), _unused(home, path), 0, path)
    except SyscallError as error:
        if error.errno != EPERM:
            raise
        raise Unsupported(_FEATURE, "the kernel, for want of CAP_SYS_ADMIN on the host", _REMEDY) from error


def give_project(directory: Fd, size: int, shown: str) -> None:
    """Bound what an empty directory may come to hold; what is made in it is counted with it."""
    project = _unused(directory, shown)
    calls.project_limit(directory.fileno(), project, size, shown)
    try:
        calls.set_project(directory.fileno(), project, shown)
    except BaseException:
        calls.project_limit(directory.fileno(), project, 0, shown)
        raise


def free_project(directory: Fd, shown: str) -> None:
    """Bound no more what a directory holds; one without a project is nothing."""
    with suppress(SyscallError):  # a file system without projects
        if project := calls.project_of(directory.fileno(), shown):
            calls.project_limit(directory.fileno(), project, 0, shown)


def _unused(directory: Fd, shown: str) -> int:
    while True:
        project = _FIRST + secrets.randbelow(_FIRST)
        if not calls.project_is_used(directory.fileno(), project, shown):
            return project
