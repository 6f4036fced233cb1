"""Standard streams as callers name them, and as the launcher takes them."""

from __future__ import annotations

import io
import os
from typing import IO, TYPE_CHECKING, Final

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


class _Pipe(io.FileIO):
    """A stream of a launch: its descriptor stays the launch's, so that it has one owner whenever an interrupt comes."""

    def __init__(self, request: calls.LaunchRequest, number: int) -> None:
        self._request = request
        self._number = number
        self._surrendered = True  # until it is open: close() is called for what an interrupt left half made, too
        mode = "r+" if number == calls.TERMINAL else "r" if number else "w"
        super().__init__(calls.launch_stream(request, number), mode, closefd=False)
        self._surrendered = False

    def readinto(self, buffer: bytearray | memoryview) -> int | None:  # type: ignore[override]
        return None if self._surrendered else super().readinto(buffer)

    def surrender(self) -> None:
        """Read no more, and leave the descriptor open when this is closed."""
        self._surrendered = True

    def close(self) -> None:
        super().close()
        if not self._surrendered:
            calls.close_stream(self._request, self._number)


def open_stream(request: calls.LaunchRequest, number: int) -> IO[bytes]:
    """Return one of the pipes of a launch, 0 to 2, or its terminal, as a binary file."""
    raw = _Pipe(request, number)
    if number == calls.TERMINAL:
        return raw
    return io.BufferedReader(raw) if number else io.BufferedWriter(raw)


def surrender(file: IO[bytes]) -> bytes:
    """Close a file of `open_stream` but not its descriptor; returns what it had read and not yet given away."""
    raw = file.raw if isinstance(file, (io.BufferedReader, io.BufferedWriter)) else file
    assert isinstance(raw, _Pipe)  # noqa: S101 - the caller has no others
    if isinstance(file, io.BufferedWriter):
        file.flush()
    raw.surrender()
    early = file.peek() if isinstance(file, io.BufferedReader) else b""
    file.close()
    return early
