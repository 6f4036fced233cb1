"""What a directory tree is, as a value that two trees can be compared by; it knows nothing of isolib."""

from __future__ import annotations

import os
import stat
from typing import TypeAlias

#: What lies at a path: type and mode, owner and group, time of modification, content or target or device, attributes, and
#: the first of its names.
Facts: TypeAlias = "tuple[object, ...]"


def facts(top: str, *, times: bool = True, directory_times: bool = True) -> dict[str, Facts]:
    """Return all that is in a tree, by path; "." is the top."""
    first: dict[tuple[int, int], str] = {}
    found: dict[str, Facts] = {}
    waiting = ["."]
    while waiting:
        path = waiting.pop()
        whole = os.path.join(top, path)
        status = os.lstat(whole)
        kind = stat.S_IFMT(status.st_mode)
        content: object = None
        if kind == stat.S_IFREG:
            with open(whole, "rb") as file:
                content = file.read()
        elif kind == stat.S_IFLNK:
            content = os.readlink(whole)
        elif kind in {stat.S_IFCHR, stat.S_IFBLK}:
            content = status.st_rdev
        elif kind == stat.S_IFDIR:
            names = sorted(os.listdir(whole), reverse=True)
            content = tuple(names)
            waiting += [os.path.normpath(os.path.join(path, name)) for name in names]
        is_timed = times and (directory_times or kind != stat.S_IFDIR)
        attributes = {
            name: os.getxattr(whole, name, follow_symlinks=False) for name in os.listxattr(whole, follow_symlinks=False)
        }
        again = first.setdefault((status.st_dev, status.st_ino), path) if kind != stat.S_IFDIR else path
        time = status.st_mtime_ns if is_timed else None
        found[path] = (status.st_mode, status.st_uid, status.st_gid, time, content, attributes, again)
    return found
