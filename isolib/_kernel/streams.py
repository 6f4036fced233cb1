"""Standard streams as callers name them, and as the launcher takes them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib.errors import PlanError

if TYPE_CHECKING:
    from isolib.types import HasFileno

# subprocess's own values, so that either module's may be passed; importing subprocess would cost more than isolib does.
PIPE: Final = -1
STDOUT: Final = -2
DEVNULL: Final = -3


def stdio(
    stdin: int | HasFileno | None, stdout: int | HasFileno | None, stderr: int | HasFileno | None, *, pty: bool
) -> tuple[int, int, int]:
    if pty:
        if not (stdin is stdout is stderr is None):
            raise PlanError("pty=True: the terminal is stdin, stdout and stderr; they cannot be given too")
        return (calls.STDIO_NULL,) * 3
    return _stream(stdin, "stdin"), _stream(stdout, "stdout"), _stream(stderr, "stderr")


def _stream(value: int | HasFileno | None, name: str) -> int:
    if value is None:
        return calls.STDIO_INHERIT
    number = value if isinstance(value, int) else value.fileno()
    if number >= 0:
        try:
            os.fstat(number)
        except OSError:
            raise PlanError(f"{name}: descriptor {number} is not open") from None
        return number
    if number == PIPE:
        return calls.STDIO_PIPE
    if number == DEVNULL:
        return calls.STDIO_NULL
    if number == STDOUT and name == "stderr":
        return calls.STDIO_STDOUT
    raise PlanError(f"{name}={value!r}: None, PIPE, DEVNULL, a descriptor or a file is wanted")
