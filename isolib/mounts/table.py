"""What is mounted on the host, as far as roots have to know."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from isolib._kernel.procfs import parse_mountinfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from isolib._kernel.procfs import Mount

__all__ = ["KERNEL", "fs_type_of", "kernel_mounts", "mounts_below", "outermost"]

KERNEL: Final = frozenset(
    {
        "binfmt_misc",
        "bpf",
        "cgroup",
        "cgroup2",
        "configfs",
        "debugfs",
        "devpts",
        "devtmpfs",
        "efivarfs",
        "fusectl",
        "mqueue",
        "nfsd",
        "proc",
        "pstore",
        "rpc_pipefs",
        "securityfs",
        "selinuxfs",
        "sysfs",
        "tracefs",
    }
)
"""File systems that show or steer the kernel; those of the host are not the guest's, wherever they are mounted."""


def _table() -> list[Mount]:
    with open("/proc/thread-self/mountinfo", "rb") as file:
        return parse_mountinfo(file.read())


def mounts_below(path: str) -> list[tuple[str, str]]:
    """Return what is mounted below a path of this thread: mount points with their file systems, in the order of the paths."""
    below = path.rstrip("/") + "/"
    return sorted({(one.mount_point, one.fs_type) for one in _table() if one.mount_point.startswith(below)})


def outermost(mounts: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield of mounts in the order of their paths those that lie in no other."""
    covered = ""
    for point, fs_type in mounts:
        if not (covered and (point + "/").startswith(covered)):
            covered = point + "/"
            yield point, fs_type


def kernel_mounts(visible: Iterable[str]) -> Iterator[str]:
    """Yield where the host has file systems of the kernel's mounted within what is visible: outermost ones only."""
    tops = tuple(top.rstrip("/") + "/" for top in visible)
    kernels = [(point, fs_type) for point, fs_type in mounts_below("/") if fs_type in KERNEL and point.startswith(tops)]
    return (point for point, _ in outermost(kernels) if os.path.isdir(point))


def fs_type_of(path: str) -> str:
    """Return the file system that a path lies on, for an error."""
    holding = [one for one in _table() if (path + "/").startswith(one.mount_point.rstrip("/") + "/")]
    return max(holding, key=lambda one: len(one.mount_point)).fs_type if holding else "unknown"
