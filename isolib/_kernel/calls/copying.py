"""Whole trees, copied and removed: in C, for what is to be done for each file costs less than one call from Python."""

from __future__ import annotations

import os
from errno import ENOTEMPTY, EXDEV
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from isolib._kernel._ext import ffi, lib
from isolib._kernel.calls.checking import path_bytes, refusal
from isolib.errors import from_errno

if TYPE_CHECKING:
    from collections.abc import Mapping

_COPY: Final = ffi.typeof("struct isolib_copy *")
_REMOVAL: Final = ffi.typeof("struct isolib_removal *")
_REMOVAL_HINTS: Final = MappingProxyType({EXDEV: "something is mounted there", ENOTEMPTY: "somebody keeps making files in it"})
_NONE: Final[Mapping[int, str]] = MappingProxyType({})


def _check(done: Any, target: str, hints: Mapping[int, str] = _NONE) -> None:
    if done.error:
        path = os.fsdecode(ffi.string(done.path))
        call = "malloc" if done.call == ffi.NULL else ffi.string(done.call).decode()
        what = os.path.join(target, path) if path else target
        if done.error in hints:
            raise from_errno(call, what, done.error, hints[done.error])
        raise refusal(call, what, done.error)


def copy_tree(source: int, target: int, threads: int, shown: str) -> None:
    """Copy a directory with all that is in it into an empty one; the errors name what is in ``shown``."""
    copy = ffi.gc(ffi.new(_COPY, (source, target, threads)), lib.isolib_copy_end)
    try:
        while lib.isolib_copy_run(copy):
            pass  # between two calls Python runs its signal handlers
    finally:
        lib.isolib_copy_end(copy)
    _check(copy, shown)


def remove_tree(base: int, name: str | bytes | None, shown: str) -> None:
    """Remove what has a name in a directory, with all that is in it; nothing of this name is nothing.

    Parameters
    ----------
    base
        Of the directory.
    name
        One name, not a path.  None: all that is in the directory, which itself stays.
    shown
        The path of what is removed, for errors, which name what is in it.

    Raises
    ------
    SyscallError
        Something cannot be removed: it is immutable, or somebody else's.  EXDEV: something is mounted on it.
        ENOTEMPTY: somebody keeps making files in it.
    """
    encoded = ffi.NULL if name is None else ffi.new("char[]", path_bytes(name))
    removal = ffi.new(_REMOVAL, {"base": base, "name": encoded})
    while lib.isolib_remove_run(removal):
        pass
    _check(removal, shown, _REMOVAL_HINTS)
