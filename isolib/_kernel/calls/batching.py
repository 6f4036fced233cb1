"""Small operations on files and directories: one call for each, or for many, which gives the GIL away once."""

from __future__ import annotations

import os
import weakref
from errno import EINTR
from functools import partial
from typing import Any, Final, NamedTuple

from isolib._kernel._ext import ffi, lib
from isolib._kernel.handle import Fd

ERRAND_ABSENT: Final[int] = lib.ISOLIB_ERRAND_ABSENT
ERRAND_MKDIR: Final[int] = lib.ISOLIB_ERRAND_MKDIR
ERRAND_RMDIR: Final[int] = lib.ISOLIB_ERRAND_RMDIR
ERRAND_OPEN: Final[int] = lib.ISOLIB_ERRAND_OPEN
ERRAND_READ: Final[int] = lib.ISOLIB_ERRAND_READ
ERRAND_WRITE: Final[int] = lib.ISOLIB_ERRAND_WRITE
ERRAND_HOLDS: Final[int] = lib.ISOLIB_ERRAND_HOLDS
ERRAND_NOTIFY: Final[int] = lib.ISOLIB_ERRAND_NOTIFY
ERRAND_CLOSE: Final[int] = lib.ISOLIB_ERRAND_CLOSE

_OPENING: Final = frozenset({ERRAND_OPEN, ERRAND_NOTIFY})
_NULL: Final = ffi.NULL
# Looked up by name they would cost more than what they are for.
_BATCH: Final = ffi.typeof("struct isolib_batch *")
_CHARS: Final = ffi.typeof("char[]")


class Refused(NamedTuple):
    """That something has failed: the system call, and the error number."""

    call: str
    errno: int


def _refused(result: int, call: str) -> Refused:
    return Refused("open" if result == -1 else call, ffi.errno)


def _name(name: str) -> bytes:
    if "\0" in name:
        raise ValueError(f"a NUL in the name of a file: {name!r}")
    return os.fsencode(name)


def read_file(base: int, name: str, room: int, *, to_end: bool) -> bytes | Refused:
    """Return what is in a file of a directory, or what one read yields, or what was refused.

    As many bytes as there is room for may not be all.
    """
    encoded, data = _name(name), ffi.new(_CHARS, room)
    while (size := lib.isolib_file_read(base, encoded, data, room, to_end)) < 0:
        if ffi.errno != EINTR:  # between two calls Python runs its signal handlers
            return _refused(size, "read")
    return bytes(ffi.buffer(data, size))


def write_file(base: int, name: str, data: bytes) -> Refused | None:
    """Write into a file of a directory, by one write; returns what was refused."""
    encoded = _name(name)
    while (result := lib.isolib_file_write(base, encoded, data, len(data))) < 0:
        if ffi.errno != EINTR:
            return _refused(result, "write")
    return None


#: What closes what a batch has opened, until it is closed or gone.  A finalizer of the batch itself would not do: where a cycle
#: is collected, it may come before that of the handle that still needs the descriptors.  What is here is not collected, and the
#: memory of a batch belongs to no cycle: it goes when all finalizers have run, and takes its entry with it, all in C.
_owners: Final[dict[int, tuple[object, ...]]] = {}


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
    """Operations that are done in order, up to the first that fails; from the first `run` on no more are added.

    What they open is the batch's from the first moment on, and is closed with it, in one call.  The directories that they are
    about must stay open until they are done.

    Examples
    --------
    >>> root, batch = os.open("/", os.O_PATH), Batch()
    >>> batch.add(ERRAND_OPEN, root, "etc", flags=os.O_PATH), batch.add(ERRAND_OPEN, root, "no such file", flags=os.O_PATH)
    (0, 1)
    >>> batch.run(), batch.done
    (Refused(call='open', errno=2), 1)
    >>> os.readlink(f"/proc/self/fd/{batch.fd(0).fileno()}")
    '/etc'
    >>> batch.close()
    >>> os.close(root)
    """

    __slots__ = ("_alive", "_batch", "_is_lent", "_opened", "_rows", "_texts")

    def __init__(self) -> None:
        self._rows: list[tuple[object, ...]] = []
        self._texts: list[str] = []
        self._alive: list[object] = []
        self._opened: list[int] = []
        self._batch: Any = None
        self._is_lent = False

    def add(self, kind: int, base: int, name: str, text: str = "", *, flags: int = 0) -> int:
        """Add an errand; returns its number.

        Parameters
        ----------
        kind
            ``ERRAND_*``: what is done; cdef.h says it.
        base
            A descriptor of the directory that it is about.
        name
            Of what is in it.
        text
            What is written, or looked for.
        flags
            ``os.O_*`` of what is opened; O_CLOEXEC and O_NOFOLLOW are added.
        """
        number = len(self._rows)
        self._rows.append((kind, base, flags, -1, _NULL, 0, 0))
        self._texts += (name, text)
        if kind in _OPENING:
            self._opened.append(number)
        return number

    def add_read(self, base: int, name: str, room: int) -> int:
        """Add the reading of a file, of so many bytes at the most and by one read."""
        data = ffi.new(_CHARS, room)
        self._alive.append(data)
        self._rows.append((ERRAND_READ, base, 0, -1, data, room, 0))
        self._texts += (name, "")
        return len(self._rows) - 1

    def add_close(self, other: Batch) -> None:
        """Add the closing of what another one has opened, if it was run."""
        if other._batch is None:
            return
        self._alive.append(other._batch)
        self._rows.append((ERRAND_CLOSE, -1, 0, -1, other._batch, 0, 0))
        self._texts += ("", "")

    def lend(self) -> Any:
        """Return the C structure, for a call that runs it too, until `returned`; no more errands are added then."""
        self._is_lent = True
        return self._begun()

    def returned(self) -> None:
        """Be told that the call is over."""
        self._is_lent = False

    def take(self) -> None:
        """Keep a call that it was lent to from running it; one that does so at this moment is waited for.

        After this, and not before, it may be run here, and the directories be closed that it is about.
        """
        if self._is_lent:  # else the call would give the GIL away for nothing
            lib.isolib_batch_take(self._begun())

    def _begun(self) -> Any:
        if self._batch is None:
            self._begin()
        return self._batch

    def _begin(self) -> None:
        texts = "\0".join(self._texts)
        if texts.count("\0") > max(0, len(self._texts) - 1):
            raise ValueError(f"a NUL in a name or a text: {self._texts}")
        encoded = ffi.new(_CHARS, os.fsencode(texts))
        self._alive.append(encoded)
        batch = ffi.new(_BATCH, (len(self._rows), 0, 0, _NULL, encoded, self._rows))
        if self._opened:
            key, memory = id(batch), batch[0]
            owner = ffi.gc(ffi.addressof(memory), lib.isolib_batch_close)
            # Called with the reference, which thus is the default of pop.  The last of a tuple goes first.
            _owners[key] = weakref.ref(batch, partial(_owners.pop, key)), memory, owner
        self._batch = batch

    def run(self) -> Refused | None:
        """Do what is left to be done; returns what was refused: called again, it begins with that one, number `done`."""
        batch = self._begun()
        if self.is_complete:  # the call would give the GIL away for nothing
            return None
        while lib.isolib_batch_run(batch) < 0:
            if ffi.errno != EINTR:
                return Refused(ffi.string(batch.call).decode(), ffi.errno)
        return None

    def skip(self) -> None:
        """Leave the one out that was refused."""
        self._batch.done += 1

    @property
    def done(self) -> int:
        """How many have been done, or left out."""
        return 0 if self._batch is None else int(self._batch.done)

    @property
    def is_complete(self) -> bool:
        """Whether all have been done, or left out."""
        return self.done == len(self._rows) and self._batch is not None

    def fd(self, errand: int) -> Fd:
        """Return the descriptor that an errand has opened, which stays the batch's, and closes with it."""
        return Fd.held(_Opened(self._batch, errand))

    def data(self, errand: int) -> bytes:
        """Return what an errand has read; as many bytes as there was room for may not be all."""
        found = self._batch.errands[errand]
        return bytes(ffi.buffer(found.data, found.read))

    def close(self) -> None:
        """Close what is open of it; again is nothing."""
        batch = self._batch
        if batch is None or not self._opened:
            return
        if any(batch.errands[number].fd >= 0 for number in self._opened):
            lib.isolib_batch_close(batch)
        found = _owners.pop(id(batch), None)
        if found is not None:
            ffi.gc(found[-1], None)  # it would close once more, and give the GIL away for nothing
        self._opened = []
