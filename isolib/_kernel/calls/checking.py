"""From what a C function returned to a value or an exception that names the call and its object."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from isolib._kernel._ext import ffi
from isolib._kernel.hints import hint
from isolib.errors import from_errno

if TYPE_CHECKING:
    from isolib._kernel.handle import Fd
    from isolib.errors import SyscallError


def checked(op: str, target: str | None, result: int) -> int:
    """Return what a call returned, or raise for a negative number with the errno that it left."""
    if result < 0:
        raise refusal(op, target, ffi.errno)
    return result


def taken(op: str, target: str, made: Fd | None) -> Fd:
    """Return the descriptor that a call yielded, or raise."""
    if made is None:
        raise refusal(op, target, ffi.errno)
    return made


def refusal(op: str, target: str | None, errno: int) -> SyscallError:
    """Return the exception for a refused call, with its hint."""
    return from_errno(op, target, errno, hint(op, errno, target))


def path_bytes(value: str | bytes) -> bytes:
    """Return a path as the kernel takes it."""
    return os.fsencode(value)
