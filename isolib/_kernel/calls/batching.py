"""Small operations in directories, in a row: one call, which gives the GIL away once."""

from __future__ import annotations

import os
from errno import EINTR
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from isolib._kernel._ext import ffi, lib
from isolib._kernel.handle import Fd

if TYPE_CHECKING:
    from collections.abc import Sequence

ERRAND_ABSENT: Final[int] = lib.ISOLIB_ERRAND_ABSENT
ERRAND_MKDIR: Final[int] = lib.ISOLIB_ERRAND_MKDIR
ERRAND_RMDIR: Final[int] = lib.ISOLIB_ERRAND_RMDIR
ERRAND_OPEN: Final[int] = lib.ISOLIB_ERRAND_OPEN
ERRAND_READ: Final[int] = lib.ISOLIB_ERRAND_READ
ERRAND_WRITE: Final[int] = lib.ISOLIB_ERRAND_WRITE
ERRAND_EVENTFD: Final[int] = lib.ISOLIB_ERRAND_EVENTFD

_OPENING: Final = frozenset({ERRAND_OPEN, ERRAND_EVENTFD})
# Looked up by name they would cost as much as the rest.
_BATCH: Final = ffi.typeof("struct isolib_batch *")
_CHARS: Final = ffi.typeof("char[]")


class Errand(NamedTuple):
    """One operation of a `Batch`.

    Attributes
    ----------
    kind
        ``ERRAND_*``: what is done; cdef.h says it.
    base
        A descriptor of the directory that it is about.
    name
        Of what is in it.
    flags
        ``os.O_*`` of what is opened; O_CLOEXEC and O_NOFOLLOW are added.
    data
        What is written.
    room
        How many bytes are read at the most.
    """

    kind: int
    base: int
    name: str
    flags: int = 0
    data: bytes = b""
    room: int = 0


class Refused(NamedTuple):
    """That an errand has failed: its number, the system call and the error number."""

    errand: int
    call: str
    errno: int


class _Opened:
    """A descriptor that a batch holds, as `Fd` wants it."""

    __slots__ = ("_batch", "_errand")

    def __init__(self, batch: Any, number: int) -> None:
        self._batch = batch  # whose memory the errand is
        self._errand = batch.errands + number

    @property
    def closed(self) -> bool:
        return bool(self._errand.fd < 0)

    def fileno(self) -> int:
        fd = int(self._errand.fd)
        if fd < 0:
            raise ValueError("it is closed")
        return fd

    def close(self) -> None:
        if not self.closed:  # else the call would give the GIL away for nothing
            lib.isolib_errand_close(self._errand)


class Batch:
    """Operations that are done in order, up to the first that fails.

    What they open is the batch's from the first moment on, and is closed with it, in one call.

    Parameters
    ----------
    errands
        What is to be done.  The directories must stay open until it is done.

    Raises
    ------
    ValueError
        There is a NUL in a name.

    Examples
    --------
    >>> root = os.open("/", os.O_PATH)
    >>> batch = Batch([Errand(ERRAND_OPEN, root, "etc", os.O_PATH), Errand(ERRAND_OPEN, root, "no such file", os.O_PATH)])
    >>> batch.run()
    Refused(errand=1, call='open', errno=2)
    >>> os.readlink(f"/proc/self/fd/{batch.fd(0).fileno()}")
    '/etc'
    >>> batch.close()
    >>> os.close(root)
    """

    __slots__ = ("_batch", "_opens", "_texts")

    def __init__(self, errands: Sequence[Errand]) -> None:
        self._texts: list[object] = []
        rows = [self._row(errand) for errand in errands]
        batch = ffi.new(_BATCH, (len(rows), 0, ffi.NULL, rows))
        self._opens = any(errand.kind in _OPENING for errand in errands)
        self._batch = ffi.gc(batch, lib.isolib_batch_close) if self._opens else batch

    def _row(self, errand: Errand) -> tuple[object, ...]:
        kind, base, name, flags, data, room = errand
        if "\0" in name:
            raise ValueError(f"a NUL in the name of a file: {name!r}")
        where = ffi.new(_CHARS, os.fsencode(name))
        what = ffi.new(_CHARS, data or room) if data or room else ffi.NULL
        self._texts += (where, what)
        return kind, base, where, flags, -1, what, len(data) or room, 0

    def run(self) -> Refused | None:
        """Do what is left to be done; returns what was refused: called again, it begins with that one."""
        batch = self._batch
        while lib.isolib_batch_run(batch) < 0:
            if ffi.errno != EINTR:  # between two calls Python runs its signal handlers
                return Refused(batch.done, ffi.string(batch.call).decode(), ffi.errno)
        return None

    def skip(self) -> None:
        """Leave the one out that was refused."""
        self._batch.done += 1

    @property
    def done(self) -> int:
        """How many have been done, or left out."""
        return int(self._batch.done)

    def fd(self, errand: int) -> Fd:
        """Return the descriptor that an errand has opened, which stays the batch's, and closes with it."""
        return Fd.held(_Opened(self._batch, errand))

    def data(self, errand: int) -> bytes:
        """Return what an errand has read; as many bytes as there was room for may not be all."""
        found = self._batch.errands[errand]
        return bytes(ffi.buffer(found.data, found.read))

    def close(self) -> None:
        """Close what is open of it; again is nothing."""
        if self._opens:
            lib.isolib_batch_close(self._batch)
            ffi.gc(self._batch, None)  # else its end would give the GIL away once more
            self._opens = False
