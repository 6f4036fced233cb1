"""What a tar has beside the contents of its files, so that it can be made again to the byte from where these lie.

A layer's digest is that of its tar, and the same files make different tars: the order, the times of access, the padding, the
dialect, what was written twice.  A recipe keeps all this in a few per cent of the size, and of each file only where it is
and how long.  While an archive is read or written a `Recorder` makes it, and `replay` makes the archive of it.

The format: one line that names it, then a stream of zlib, of records.  Each begins with a byte and a number of eight bytes:

``r``
    so many bytes, which follow, as they are in the archive
``c``
    so many bytes, the content of a file; two bytes and so many more are its path
``e``
    the end; so many bytes there were

Numbers are little-endian.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Final

from isolib.errors import ArchiveError
from isolib.unionfs.archive.streams import CHUNK
from isolib.unionfs.entry import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Iterator

    from isolib.unionfs.archive.behind import Behind
    from isolib.unionfs.archive.streams import Readable, Writable
    from isolib.unionfs.entry import Content, Entry

__all__ = ["Recorder", "replay"]

_FORMAT: Final = b"isolib recipe 1\n"
_HEAD: Final = struct.Struct("<BQ")
_LENGTH: Final = struct.Struct("<H")
_RAW, _CONTENT, _END = b"rce"

#: Headers are alike, so the least effort finds most of it.
_EFFORT: Final = 1
_LONGEST_RAW: Final = CHUNK
#: How much is compressed in one call.
_AT_ONCE: Final = 1 << 18
#: Kinds that leave a directory at their path, and what is in it, as it is.
_HARMLESS: Final = frozenset({Kind.DIRECTORY, Kind.OPAQUE})


class Recorder:
    """Makes a recipe of an archive that is read or written.

    Parameters
    ----------
    sink
        Where the recipe goes.
    keep
        Contents that are to be in the recipe itself, because they are nowhere else: what `lost` was after the same archive had
        been read before.
    behind
        Does the work of it; its block ends after `finish`.

    Attributes
    ----------
    lost
        Contents, by number, that a later entry of the same archive replaces or removes.  If there is one, what was made is of
        no use: read the archive again with ``keep=lost``.
    size
        Bytes of the archive so far.

    Notes
    -----
    Nothing is kept of what is written but a path for each file, and that only while an archive is read: what is written has
    each path once.
    """

    def __init__(self, sink: Writable, *, keep: Collection[int] = (), behind: Behind | None = None) -> None:
        self._packed = _Compressed(sink)
        self._keep = keep
        self._behind = behind
        self._records: list[bytes] = []
        self._waiting = 0
        self._raw: list[bytes] = []
        self._held = 0
        self._contents = 0
        self.lost: set[int] = set()
        self.size = 0
        #: The number of the content that lies at a path, and what is below a directory.
        self._at: dict[bytes, int] = {}
        self._below: dict[bytes, set[bytes]] = {}
        sink.write(_FORMAT)

    def raw(self, data: bytes) -> None:
        """Take bytes as they are in the archive."""
        self._raw.append(data)
        self._held += len(data)
        if self._held >= _LONGEST_RAW:
            self._flush()

    def content(self, path: bytes, size: int) -> bool:
        """Take note of the content of a file.

        Parameters
        ----------
        path
            Where it will be found.
        size
            In bytes.

        Returns
        -------
        bool
            Whether that is enough.  Otherwise it is to be given to `raw`.
        """
        number = self._contents
        self._contents += 1
        if number in self._keep:
            return False
        self._flush()
        self._put(_HEAD.pack(_CONTENT, size) + _LENGTH.pack(len(path)) + path)
        self.size += size
        return True

    def takes_records(self) -> bool:
        """Return whether `records` may be called: no content is to be in the recipe itself."""
        return not self._keep

    def records(self, records: bytes, contents: int, size: int) -> None:
        """Take records that somebody else has made, of so many contents, and of so many bytes of the archive."""
        self._flush()
        self._put(records)
        self._contents += contents
        self.size += size

    def passing(self, entry: Entry) -> None:
        """Take note of an entry before its content: it may replace what came before."""
        path, kind = entry.path, entry.kind
        if path in self._at:
            self.lost.add(self._at.pop(path))
        elif path in self._below and kind not in _HARMLESS:
            self._forget(path)
        directory = path.rpartition(b"/")[0]
        while directory and directory not in self._below:
            if directory in self._at:  # a file, which a directory is to take the place of
                self.lost.add(self._at.pop(directory))
            directory = directory.rpartition(b"/")[0]
        if kind is Kind.FILE and entry.size and self._contents not in self._keep:
            self._at[path] = self._contents
            self._enter(path)

    def _enter(self, path: bytes) -> None:
        while path:
            directory = path.rpartition(b"/")[0]
            known = directory in self._below
            self._below.setdefault(directory, set()).add(path)
            if known:
                return
            path = directory

    def _forget(self, path: bytes) -> None:
        gone = [path]
        while gone:
            path = gone.pop()
            number = self._at.pop(path, None)
            if number is not None:
                self.lost.add(number)
            gone += self._below.pop(path, ())

    def _flush(self) -> None:
        if not self._held:
            return
        data = b"".join(self._raw)
        self._raw, self._held = [], 0
        for at in range(0, len(data), _LONGEST_RAW):
            part = data[at : at + _LONGEST_RAW]
            self._put(_HEAD.pack(_RAW, len(part)))
            self._put(part)
        self.size += len(data)

    def _put(self, data: bytes) -> None:
        self._records.append(data)
        self._waiting += len(data)
        if self._waiting >= _AT_ONCE:
            self._pass_on()

    def _pass_on(self) -> None:
        data = b"".join(self._records)
        self._records, self._waiting = [], 0
        self._do(self._packed.write, data)

    def _do(self, function: Callable[[bytes], object], data: bytes) -> None:
        if self._behind is None:
            function(data)
        else:
            self._behind.do(function, data)

    def finish(self) -> None:
        """Write the rest, at the end of the archive."""
        self._flush()
        self._put(_HEAD.pack(_END, self.size))
        self._pass_on()
        self._do(self._packed.finish, b"")


class _Compressed:
    """What records go to."""

    def __init__(self, sink: Writable) -> None:
        self._sink = sink
        self._zlib = zlib.compressobj(_EFFORT)

    def write(self, data: bytes, /) -> None:
        if packed := self._zlib.compress(data):
            self._sink.write(packed)

    def finish(self, _: bytes) -> None:
        self._sink.write(self._zlib.flush())


class _Recipe:
    """The records of a recipe."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._zlib = zlib.decompressobj()
        self._buffer = b""

    def begin(self) -> None:
        """Read the line that names the format."""
        line = b""
        while len(line) < len(_FORMAT) and (more := self._source.read(len(_FORMAT) - len(line))):
            line += more
        if line != _FORMAT:
            raise ArchiveError(f"is no recipe of the version that is known, but begins with {line!r}")

    def take(self, size: int) -> bytes:
        """Return so many bytes."""
        parts = []
        while size:
            if not self._buffer:
                self._buffer = self._more()
            part = self._buffer[:size]
            self._buffer = self._buffer[len(part) :]
            size -= len(part)
            parts.append(part)
        return b"".join(parts)

    def _more(self) -> bytes:
        """Return some bytes, a bounded number, and at least one."""
        unpacker = self._zlib
        while not unpacker.eof:
            packed = unpacker.unconsumed_tail or self._source.read(CHUNK)
            try:
                data = unpacker.decompress(packed, CHUNK)
            except zlib.error as error:
                raise ArchiveError(f"the recipe is damaged: {error}") from error
            if data:
                return data
            if not packed:
                break
        raise ArchiveError("the recipe is cut short")

    def end(self) -> None:
        """Read the check sum at the end."""
        unpacker = self._zlib
        while not unpacker.eof:
            packed = unpacker.unconsumed_tail or self._source.read(CHUNK)
            try:
                more = unpacker.decompress(packed, CHUNK)
            except zlib.error as error:
                raise ArchiveError(f"the recipe is damaged: {error}") from error
            if more or not packed:
                break
        if self._buffer or not unpacker.eof or unpacker.unused_data or self._source.read(1):
            raise ArchiveError("the recipe does not end where it says")


def replay(recipe: Readable, open_content: Callable[[bytes], Content]) -> Generator[bytes]:
    """Make an archive again.

    Parameters
    ----------
    recipe
        What a `Recorder` has written.
    open_content
        Opens the file at a path.  What it returns is closed if it can be.

    Yields
    ------
    bytes
        The archive, in pieces of at most 1 MiB.

    Raises
    ------
    ArchiveError
        The recipe is damaged, or a file has not the size that it had.  Whether its content is the same, the digest of what is
        yielded tells: comparing that is the caller's.
    """
    records = _Recipe(recipe)
    records.begin()
    total = 0
    while True:
        kind, size = _HEAD.unpack(records.take(_HEAD.size))
        if kind == _RAW and size <= _LONGEST_RAW:
            yield records.take(size)
        elif kind == _CONTENT:
            (length,) = _LENGTH.unpack(records.take(_LENGTH.size))
            path = records.take(length)
            yield from _content(open_content(path), path, size)
        elif kind == _END and size == total:
            records.end()
            return
        else:
            raise ArchiveError("the recipe is damaged: it has a record that cannot be")
        total += size


def _content(content: Content, path: bytes, size: int) -> Iterator[bytes]:
    """Yield the content of a file, of which so much is expected."""
    try:
        left = size
        while left:
            data = content.read(min(left, CHUNK))
            if not data:
                raise ArchiveError(f"has {size - left} bytes instead of {size}", path)
            left -= len(data)
            yield data
        if content.read(1):
            raise ArchiveError(f"has more than the {size} bytes that it had", path)
    finally:
        close = getattr(content, "close", None)
        if close is not None:
            close()
