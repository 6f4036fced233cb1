"""The programs that hold a setting at a value: how those of one namespace know of each other.

A setting's file has one inode for each network namespace, so locks on it are kernel state that all its programs see.  They are
locks of open file descriptions (fcntl_locking(2), F_OFD_SETLK): they end with the last descriptor, and the reaper has one too.
What such a lock says is where it lies:

- **Marks.**  Each holder has some bytes locked, whose places say what the setting was before the first of them, and what they
  hold it at.  So whoever is the last knows what to give back, though the first one has gone long since.
- **The door.**  Who comes or goes has this byte: he looks at the marks and the setting, and changes both, and nobody else does
  meanwhile.  That takes microseconds, and the kernel opens the door when its owner dies.  Those who wait do so at another byte
  of his, which the length of his lock at the door tells, so that they are in nobody's way.

All are locks for writing, and those take a file that is open for writing: who can pretend to hold a setting may change it
anyway.  Who may only read it, and locks it all the same, can keep others from coming, which is told, but not from going, and is
not waited for.

The programs must see one and the same procfs: another mount of it has other inodes, and who is there is not seen.  Kernels
before 6.16 may make two inodes when a file is looked up twice at one moment, for the first time.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from errno import EAGAIN
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from isolib._kernel import calls
from isolib.errors import PlanError, from_errno

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolib._kernel.handle import Fd
    from isolib.errors import SyscallError

__all__ = ["Held", "Holders"]

_FLOCK: Final = Struct("hhqqi4x")
_DOOR: Final = calls.SETTING_DOOR
#: A turn at the door is a number of so many bits.
_TURN_BITS: Final = 40
_TURNS: Final = 1 << _TURN_BITS
#: How often a door that nobody is seen in is found shut, or a mark without an end, before somebody is said to be in the way.
_KNOCKS: Final = 1000

#: A mark is a text in pieces of five bytes, a locked byte for each.  Its place is, from the highest bit: which, whose, what.
_PIECE_BITS: Final = calls.SETTING_MARKS_FROM
_PIECES: Final = (1 << 63 - _PIECE_BITS) - 1
_PIECE_SIZE: Final = 5
_TEXT_BITS: Final = 8 * _PIECE_SIZE
_SLOTS: Final = 1 << _PIECE_BITS - _TEXT_BITS

_IN_THE_WAY: Final = "a process keeps a lock on this setting that is no holder's (/proc/locks)"


class Held(NamedTuple):
    """What a setting is held at, what it was before, and what else is to be put right then: a word of the holders' own."""

    old: str
    value: str
    beside: str = ""


class _Lock(NamedTuple):
    start: int
    size: int


class Holders:
    """Those who hold a setting, of whom the owner of this open file is, or may become, one.

    Parameters
    ----------
    file
        Of /proc/sys, open for reading and writing; it stays the caller's.
    target
        What it is, for errors.
    """

    __slots__ = ("_file", "_target")

    def __init__(self, file: Fd, target: str) -> None:
        self._file = file
        self._target = target

    @contextmanager
    def door(self, *, going: bool = False) -> Iterator[None]:
        """Let nobody else come or go for the time of a block.

        Parameters
        ----------
        going
            Whether somebody who cannot be waited for is no reason not to go on.

        Raises
        ------
        SyscallError
            EAGAIN: somebody is in the way.
        """
        turn = int.from_bytes(os.urandom(_TEXT_BITS // 8), "big")
        try:
            self._set(fcntl.F_WRLCK, _TURNS + turn)
            if not self._enter(turn) and not going:
                raise self._refusal()
            yield
        finally:
            self._set(fcntl.F_UNLCK, 0, 2 * _TURNS)

    def _enter(self, turn: int) -> bool:
        knocks = 0
        while not self._set(fcntl.F_WRLCK, _DOOR, turn + 1):
            found = self._other(_DOOR, 1)
            if found is not None:
                knocks = 0
                # It is free to read when he has gone, however he does.
                self._call(fcntl.F_OFD_SETLKW, fcntl.F_RDLCK, _TURNS + max(0, found.size - 1), 1)
                self._set(fcntl.F_UNLCK, _TURNS, _TURNS)
                self._set(fcntl.F_WRLCK, _TURNS + turn)
            elif (knocks := knocks + 1) == _KNOCKS:
                return False
        return True

    def others(self) -> Held | None:
        """Return what other programs hold it at; None: nobody does.  For who has the door.

        Raises
        ------
        SyscallError
            EAGAIN: somebody is in the way.
        """
        for _ in range(_KNOCKS):
            found = self._other(_place(0), 1 << _PIECE_BITS)
            if found is None:
                return None
            slot = found.start >> _TEXT_BITS & _SLOTS - 1
            text = b""
            for number in range(_PIECES):
                piece = self._other(_place(number, slot), 1 << _TEXT_BITS)
                if piece is None:  # he was killed, and his reaper too
                    break
                text += (piece.start & _TURNS - 1).to_bytes(_PIECE_SIZE, "big")
                if text.endswith(b"\0"):
                    old, _, rest = text.rstrip(b"\0").decode("utf-8", "surrogateescape").partition("\n")
                    value, _, beside = rest.partition("\n")
                    return Held(old, value, beside)
        raise self._refusal()

    def join(self, held: Held) -> None:
        """Become one of them.  For who has the door.

        Raises
        ------
        SyscallError
            EAGAIN: somebody is in the way.
        PlanError
            All of it is too long.
        """
        text = "\n".join(held).encode("utf-8", "surrogateescape") + b"\0"
        pieces = [text[at : at + _PIECE_SIZE].ljust(_PIECE_SIZE, b"\0") for at in range(0, len(text), _PIECE_SIZE)]
        if len(pieces) > _PIECES:
            raise PlanError(f"what {self._target} was and what it is to be are too long together to be held")
        slot = next((slot for slot in range(_SLOTS) if self._other(_place(0, slot), 1 << _TEXT_BITS) is None), 0)
        for number in reversed(range(len(pieces))):  # the first piece last: who has that one has all
            if not self._set(fcntl.F_WRLCK, _place(number, slot) + int.from_bytes(pieces[number], "big")):
                raise self._refusal()

    def leave(self) -> None:
        """Be none of them any more; again is nothing."""
        self._set(fcntl.F_UNLCK, _place(0), 0)

    def clear(self) -> None:
        """Let go of every lock; again is nothing."""
        self._set(fcntl.F_UNLCK, 0, 0)

    def _refusal(self) -> SyscallError:
        return from_errno("fcntl F_OFD_SETLK", self._target, EAGAIN, _IN_THE_WAY)

    def _set(self, kind: int, start: int, size: int = 1) -> bool:
        """Set a lock, or none; return whether nobody was in the way."""
        try:
            self._call(fcntl.F_OFD_SETLK, kind, start, size)
        except BlockingIOError:
            return False
        return True

    def _other(self, start: int, size: int) -> _Lock | None:
        """Return a lock for writing that others have there: only that is in the way of one for reading."""
        kind, found = self._call(fcntl.F_OFD_GETLK, fcntl.F_RDLCK, start, size)
        return None if kind == fcntl.F_UNLCK else found

    def _call(self, command: int, kind: int, start: int, size: int) -> tuple[int, _Lock]:
        try:
            answer = fcntl.fcntl(self._file.fileno(), command, _FLOCK.pack(kind, os.SEEK_SET, start, size, 0))
        except BlockingIOError:
            raise
        except OSError as error:
            raise from_errno("fcntl F_OFD_SETLK", self._target, error.errno or 0) from None
        kind, _, start, size, _ = _FLOCK.unpack(answer)
        return kind, _Lock(start, size)


def _place(number: int, slot: int = 0) -> int:
    return number + 1 << _PIECE_BITS | slot << _TEXT_BITS
