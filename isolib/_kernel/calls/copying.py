"""Whole trees, copied and removed: in C, for what is to be done for each file costs less than one call from Python."""

from __future__ import annotations

import os
from typing import Any, Final

from isolib._kernel._ext import ffi, lib
from isolib._kernel.calls.checking import path_bytes, refusal

_COPY: Final = ffi.typeof("struct isolib_copy *")
_REMOVAL: Final = ffi.typeof("struct isolib_removal *")


def _check(done: Any, target: str) -> None:
    if done.error:
        path = os.fsdecode(ffi.string(done.path))
        call = "malloc" if done.call == ffi.NULL else ffi.string(done.call).decode()
        raise refusal(call, os.path.join(target, path) if path else target, done.error)


def copy_tree(source: int, target: int, threads: int, shown: str) -> None:
    """Copy a directory with all that is in it into an empty one; the errors name what is in ``shown``."""
    copy = ffi.gc(ffi.new(_COPY, (source, target, threads)), lib.isolib_copy_end)
    try:
        while lib.isolib_copy_run(copy):
            pass  # between two calls Python runs its signal handlers
    finally:
        lib.isolib_copy_end(copy)
    _check(copy, shown)


def remove_tree(base: int, name: str, shown: str) -> None:
    """Remove what has a name in a directory, with all that is in it; the errors name what is in ``shown``."""
    encoded = ffi.new("char[]", path_bytes(name))
    removal = ffi.new(_REMOVAL, {"base": base, "name": encoded})
    while lib.isolib_remove_run(removal):
        pass
    _check(removal, shown)
