"""Where programs of other projects are, by which a feature works: on the PATH, or where administrators have theirs."""

from __future__ import annotations

import os
import stat
from typing import Final

__all__ = ["find_program"]

_ADMINISTRATORS: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def find_program(name: str) -> str | None:
    """Return the whole path of a program that this user may execute: of the PATH, or where administrators have theirs."""
    for directory in (*os.environ.get("PATH", os.defpath).split(os.pathsep), *_ADMINISTRATORS):
        path = os.path.join(directory, name)
        # What depends on the working directory is nobody's choice.
        if os.path.isabs(path) and os.access(path, os.X_OK) and stat.S_ISREG(os.stat(path).st_mode):
            return path
    return None
