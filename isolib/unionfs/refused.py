"""Why the kernel has refused an overlay, in words: to it nearly everything is an invalid argument."""

from __future__ import annotations

import os
from errno import EINVAL, ELOOP
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib._kernel.procfs import parse_mountinfo
from isolib.errors import from_errno

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolib.errors import SyscallError

__all__ = ["explained", "is_overlay"]

_OVERLAY_MAGIC: Final = 0x794C7630


def is_overlay(fd: int) -> bool:
    """Return whether a descriptor lies in an overlay."""
    return calls.fs_magic(fd) == _OVERLAY_MAGIC


def fs_type_of(path: str) -> str:
    """Return the type of the file system that a path lies in, as /proc/self/mountinfo names it; "?" where that is unknown."""
    try:
        device = os.stat(path).st_dev
        with open("/proc/thread-self/mountinfo", "rb") as file:
            mounts = parse_mountinfo(file.read())
    except (OSError, ValueError):
        return "?"
    return next((one.fs_type for one in mounts if one.dev == (os.major(device), os.minor(device))), "?")


def explained(refused: calls.StackRefused, lowers: Sequence[str], upper: str | None) -> SyscallError:
    """Return the exception for a refused overlay, whose hint says which layer or option it was, as far as that can be told."""
    error = refused.error
    reasons = [refused.said] if refused.said and error.errno in {EINVAL, ELOOP} else []
    if error.errno == EINVAL:
        reasons += _reasons(lowers, upper)
    # Another one: that which it is raised in the place of would be in a circle with itself, and keep all that callers have.
    return from_errno(error.op, error.target, error.errno, "; ".join(reasons) or error.hint)


def _reasons(lowers: Sequence[str], upper: str | None) -> list[str]:
    reasons = []
    for path in lowers:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            if is_overlay(fd):
                reasons.append(f"{path} lies in an overlay: more than two of them cannot be stacked")
                break
        finally:
            os.close(fd)
    if upper is not None:
        reasons.append(
            f"{upper} lies on {fs_type_of(upper)}, which must have extended attributes, d_type and whiteouts to be written to"
        )
    return reasons
