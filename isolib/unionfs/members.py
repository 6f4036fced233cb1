"""Where the files of a tar lie in it, for archives that hold blobs.

Such an archive has a few large files, and which of them are needed, and in what order, stands in one of them, perhaps the last.
 So the headers alone are read, and the files later, where they lie.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from isolib.errors import ArchiveError
from isolib.unionfs import pax
from isolib.unionfs.headers import BLOCK, SIZE, ZEROS, decode
from isolib.unionfs.names import relative

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from isolib.unionfs.headers import Header

__all__ = ["Member", "Section", "members"]

_FILES: Final = (b"0", b"\0", b"7")
_HARD, _SYMBOLIC = b"1", b"2"
_EXTENDED: Final = (b"x", b"X")
_LONG: Final = {b"L": b"path", b"K": b"linkpath"}
_EXTENDING: Final = frozenset({*_EXTENDED, *_LONG, b"g"})
_LONGEST: Final = 1 << 20
_LARGEST: Final = 1 << 50


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive.

    Attributes
    ----------
    path
        As entries have it.
    offset, size
        Where its content is, in bytes.
    link
        The path of the file that it is a link to, hard or symbolic; None for a file of its own.
    is_file
        Whether it is a file or a link; else it is a directory, or something that holds nothing.
    """

    path: str
    offset: int
    size: int
    link: str | None = None
    is_file: bool = True


class Section:
    """A part of a file, read front to back; several of one file do not disturb each other.

    Parameters
    ----------
    fd
        The file's descriptor.
    offset, size
        The part.
    """

    __slots__ = ("_at", "_end", "_fd")

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self._fd = fd
        self._at = offset
        self._end = offset + size

    def read(self, size: int = -1, /) -> bytes:
        """Return the next bytes, at most so many; none at the end."""
        left = self._end - self._at
        data = os.pread(self._fd, left if size < 0 else min(size, left), self._at)
        self._at += len(data)
        return data


def members(read: Callable[[int, int], bytes]) -> Iterator[Member]:
    """Yield the files, links and directories of an archive.

    Parameters
    ----------
    read
        Returns so many bytes from an offset; fewer at the end.

    Raises
    ------
    ArchiveError
        It is no tar, or is cut short.
    """
    at, said = 0, _Said()
    while True:
        block = read(BLOCK, at)
        if block == ZEROS or (not block and at):
            return
        if len(block) < BLOCK:
            raise ArchiveError("the archive is cut short")
        header = decode(block)
        length = header.number(SIZE)
        at += BLOCK
        if header.kind in _EXTENDING:
            if not 0 <= length <= _LONGEST:
                raise ArchiveError(f"an extended header of {length} bytes", header.name)
            said.take(header.kind, read(length, at))
        else:
            member = said.member(header, at, length)
            if member.size and not read(1, at + member.size - 1):
                raise ArchiveError("the archive is cut short", header.name)
            yield member
            length, said = member.size, _Said()
        at += length + -length % BLOCK


class _Said:
    """What the headers before an entry's own say of it."""

    def __init__(self) -> None:
        self._values: dict[bytes, bytes] = {}

    def take(self, kind: bytes, data: bytes) -> None:
        """Take the content of such a header."""
        if kind in _EXTENDED:
            self._values |= pax.parse(data).values
        elif kind in _LONG:
            self._values[_LONG[kind]] = data.partition(b"\0")[0]

    def member(self, header: Header, at: int, size: int) -> Member:
        """Return the member whose header this is."""
        if b"size" in self._values:
            size = pax.decimal(self._values[b"size"], b"size")
        if header.kind not in _FILES:
            size = 0
        if not 0 <= size <= _LARGEST:
            raise ArchiveError(f"has a size of {size} bytes", header.name)
        name = self._values.get(b"path") or header.name
        return _member(header.kind, name, self._values.get(b"linkpath") or header.link, at, size)


def _member(kind: bytes, name: bytes, link: bytes, at: int, size: int) -> Member:
    path = os.fsdecode(relative(name))
    if kind in _FILES:
        return Member(path, at, size)
    if kind == _HARD:
        return Member(path, at, 0, os.fsdecode(relative(link)))
    if kind == _SYMBOLIC:
        return Member(path, at, 0, os.path.normpath(os.path.join(os.path.dirname(path), os.fsdecode(link))))
    return Member(path, at, 0, is_file=False)
