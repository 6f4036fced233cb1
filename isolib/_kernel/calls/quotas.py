"""Quotas of projects: quotactl_fd(2), since Linux 5.14, and ioctl_xfs_fssetxattr(2)."""

from __future__ import annotations

from isolib._kernel._ext import ffi, lib
from isolib._kernel.calls.checking import checked


def project_is_enforced(fd: int, target: str) -> bool:
    """Return whether a file system counts what projects have, and keeps their limits."""
    return bool(checked("quotactl_fd Q_XGETQSTAT", target, lib.isolib_project_is_enforced(fd)))


def project_limit(fd: int, project: int, size: int, target: str) -> None:
    """Set how many bytes a project may have on a file system, in steps of 1,024; 0: as many as there are."""
    checked("quotactl_fd Q_SETQUOTA", target, lib.isolib_project_limit(fd, project, size))


def project_is_used(fd: int, project: int, target: str) -> bool:
    """Return whether anything belongs to a project, or is limited for it."""
    return bool(checked("quotactl_fd Q_GETQUOTA", target, lib.isolib_project_is_used(fd, project)))


def project_of(fd: int, target: str) -> int:
    """Return the project to which a file belongs; 0: to none."""
    project = ffi.new("uint32_t *")
    checked("ioctl FS_IOC_FSGETXATTR", target, lib.isolib_project_get(fd, project))
    return int(project[0])


def set_project(directory: int, project: int, target: str) -> None:
    """Let a directory belong to a project, with all that is made in it from now on."""
    checked("ioctl FS_IOC_FSSETXATTR", target, lib.isolib_project_set(directory, project))
