"""A stream that an archive is read from, in blocks, and the contents of files in it."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final

from isolib.errors import ArchiveError, ClosedError
from isolib.unionfs.archive.headers import BLOCK
from isolib.unionfs.archive.streams import CHUNK

if TYPE_CHECKING:
    from collections.abc import Callable

    from isolib.unionfs.archive.recipe import Recorder
    from isolib.unionfs.archive.sparse import Map
    from isolib.unionfs.archive.streams import Readable

__all__ = ["Plain", "Source", "Sparse"]

#: What is read ahead, so that a small file costs no call.
_AHEAD: Final = 256 << 10
_ZEROS: Final = bytes(64 << 10)


class Source:
    """What has been read of a stream, and the rest of it.

    Parameters
    ----------
    stream
        The stream.
    record
        Takes every byte but those of contents that it wants to be told of only.
    """

    __slots__ = ("_at", "_buffer", "_read", "_record")

    def __init__(self, stream: Readable, record: Recorder | None) -> None:
        self._read: Callable[[int], bytes] = stream.read
        self._buffer = b""
        self._at = 0
        self._record = record

    def take(self, size: int) -> bytes:
        """Return exactly so many bytes, which are few.

        Raises
        ------
        ArchiveError
            The stream ends before.
        """
        at = self._at
        end = at + size
        if end > len(self._buffer):
            self._fill(size)
            at, end = 0, size
        self._at = end
        data = self._buffer[at:end]
        if self._record is not None:
            self._record.raw(data)
        return data

    def some(self, size: int, *, quiet: bool = False) -> bytes:
        """Return at least one byte, and at most so many.

        Parameters
        ----------
        size
            How many, at least one.
        quiet
            Whether they need not be recorded.

        Raises
        ------
        ArchiveError
            The stream is at its end.
        """
        at = self._at
        data = self._buffer[at : at + size]
        self._at = at + len(data)
        if not data:
            if size < _AHEAD:
                self._fill(1)
                data = self._buffer[:size]
                self._at = len(data)
            else:
                data = self._read(min(size, CHUNK))
                if not data:
                    raise _cut_short()
        if not quiet and self._record is not None:
            self._record.raw(data)
        return data

    def at_end(self) -> bool:
        """Return whether there is nothing more."""
        if self._at < len(self._buffer):
            return False
        self._buffer, self._at = self._read(_AHEAD), 0
        return not self._buffer

    def _fill(self, size: int) -> None:
        """Have so many bytes at the beginning of the buffer."""
        parts = [self._buffer[self._at :]]
        have = len(parts[0])
        while have < size:
            data = self._read(max(_AHEAD, min(size - have, CHUNK)))
            if not data:
                raise _cut_short()
            parts.append(data)
            have += len(data)
        self._buffer, self._at = b"".join(parts), 0


def _cut_short() -> ArchiveError:
    return ArchiveError("the archive is cut short")


class Plain:
    """The content of a file, as it is stored.

    Parameters
    ----------
    source
        Where it comes next.
    path
        Of the file, for messages.
    size
        In bytes.

    Attributes
    ----------
    quiet
        Whether it need not be recorded.
    """

    __slots__ = ("_left", "_over", "_path", "_size", "_source", "quiet")

    def __init__(self, source: Source, path: bytes, size: int) -> None:
        self._source = source
        self._path = path
        self._size = size
        self._left = size
        self.quiet = False
        self._over = False

    def read(self, size: int = -1, /) -> bytes:
        """Return the next bytes, at most so many; none at the end.

        Raises
        ------
        ArchiveError
            The archive ends before the file does.
        ClosedError
            The next entry has been asked for.
        """
        left = self._left
        if size < 0:
            return b"".join(iter(lambda: self.read(CHUNK), b""))
        self.check()
        size = min(size, left)
        if not size:
            return b""
        try:
            data = self._source.some(size, quiet=self.quiet)
        except ArchiveError as error:
            raise ArchiveError(f"the archive is cut short, {left} bytes before the end of this file", self._path) from error
        self._left = left - len(data)
        return data

    def check(self) -> None:
        """Refuse when it is too late.

        Raises
        ------
        ClosedError
            The next entry has been asked for.
        """
        if self._over:
            raise ClosedError("the archive has been read beyond this content")

    def finish(self) -> None:
        """Pass over what has not been read, and over what fills the last block."""
        while self._left:
            self.read(CHUNK)
        self._over = True
        if fill := -self._size % BLOCK:
            self._source.take(fill)


class Sparse:
    """The content of a file of which only the data are stored: expanded.

    Parameters
    ----------
    stored
        What is stored.
    extents
        The map, checked.
    size
        Of the file, in bytes.
    """

    __slots__ = ("_at", "_ends", "_offsets", "_size", "_stored")

    def __init__(self, stored: Plain, extents: Map, size: int) -> None:
        self._stored = stored
        self._offsets, self._ends = extents.offsets, extents.ends
        self._size = size
        self._at = 0

    def read(self, size: int = -1, /) -> bytes:
        """Return the next bytes, at most so many; none at the end."""
        at = self._at
        if size < 0:
            return b"".join(iter(lambda: self.read(CHUNK), b""))
        self._stored.check()
        size = min(size, self._size - at)
        if not size:
            return b""
        index = bisect_right(self._ends, at)
        offset = self._offsets[index] if index < len(self._offsets) else self._size
        data = _ZEROS[: min(size, offset - at)] if at < offset else self._stored.read(min(size, self._ends[index] - at))
        self._at = at + len(data)
        return data

    def finish(self) -> None:
        """Pass over what has not been read."""
        self._stored.finish()
