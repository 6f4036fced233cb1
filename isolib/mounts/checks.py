"""What mount values check when they are made: pure, no system call but those of the path type given."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from isolib.errors import PlanError
from isolib.types import check_path, parse_size

if TYPE_CHECKING:
    from isolib.types import AnyPath

MODES = 0o7777


def check_target(value: AnyPath, what: str, *, of: str) -> str:
    """Return a path inside the root, normalised: absolute, without ``..``, without empty and ``.`` parts, not "/"."""
    path = check_path(value, what)
    if not path.startswith("/"):
        raise PlanError(f"{of}: {what}={path!r}: a path inside the root is absolute")
    names = [name for name in path.split("/") if name not in {"", "."}]
    if ".." in names:
        raise PlanError(f"{of}: {what}={path!r}: '..' means nothing in a root that is still being built; write the path itself")
    if not names:
        raise PlanError(f"{of}: {what}={path!r}: the root itself is what root= gives: Root.host(), Root.empty() or Root.tree()")
    return "/" + "/".join(names)


def check_source(value: AnyPath, what: str, *, of: str) -> str:
    """Return a path on the host, made absolute by the working directory of this moment."""
    path = check_path(value, what)
    if not path.startswith("/"):
        try:
            path = os.path.join(os.getcwd(), path)
        except FileNotFoundError:
            raise PlanError(f"{of}: {what}={path!r} is relative, and the working directory has been deleted") from None
    # Not normpath: "a/../b" is not "b" where a is a symbolic link.
    path = "/" + "/".join(name for name in path.split("/") if name not in {"", "."})
    if path.startswith(("/proc/self/", "/proc/thread-self/")) or path in {"/proc/self", "/proc/thread-self"}:
        raise PlanError(f"{of}: {what}={path!r} would be the launcher's own, not this process's")
    return path


def check_mode(value: object, what: str, *, of: str, most: int = MODES) -> int:
    """Return permission bits."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise PlanError(f"{of}: {what}={value!r}: permission bits are a number from 0 to {most:#o}")
    return value


def check_room(value: int | str, what: str, *, of: str) -> int:
    """Return a size for a tmpfs: at least a page, for to the kernel 0 means no limit."""
    size = parse_size(value, f"{of}: {what}")
    if size < 1:
        raise PlanError(f"{of}: {what}={value!r}: a tmpfs of no size has, for the kernel, no limit")
    return size
