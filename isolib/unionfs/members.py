"""Where the files of a tar lie in it, for archives that hold blobs.

Such an archive has a few large files, and which of them are needed, and in what order, stands in one of them, perhaps the last.  So
the headers alone are read, and the files later, where they lie.
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

__all__ = ["Member", "Section", "members"]

_FILES: Final = (b"0", b"\0", b"7")
_HARD, _SYMBOLIC = b"1", b"2"
_EXTENDED: Final = (b"x", b"X")
_GLOBAL: Final = b"g"
_LONG_NAME, _LONG_LINK = b"L", b"K"
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
    at = 0
    name = link = size = None
    while True:
        block = read(BLOCK, at)
        if block == ZEROS or (not block and at):
            return
        if len(block) < BLOCK:
            raise ArchiveError("the archive is cut short")
        header = decode(block)
        kind, length = header.kind, header.number(SIZE)
        at += BLOCK
        if kind in {*_EXTENDED, _GLOBAL, _LONG_NAME, _LONG_LINK}:
            if not 0 <= length <= _LONGEST:
                raise ArchiveError(f"an extended header of {length} bytes", header.name)
            data = read(length, at)
            if kind in _EXTENDED:
                values = pax.parse(data).values
                name, link, size = values.get(b"path", name), values.get(b"linkpath", link), values.get(b"size")
            elif kind == _LONG_NAME:
                name = data.partition(b"\0")[0]
            elif kind == _LONG_LINK:
                link = data.partition(b"\0")[0]
        else:
            if size is not None:
                length = pax.decimal(size, b"size")
            if kind not in _FILES:
                length = 0
            if not 0 <= length <= _LARGEST:
                raise ArchiveError(f"has a size of {length} bytes", header.name)
            yield _member(kind, name or header.name, link or header.link, at, length)
            name = link = size = None
        at += length + -length % BLOCK


def _member(kind: bytes, name: bytes, link: bytes, at: int, size: int) -> Member:
    path = os.fsdecode(relative(name))
    if kind in _FILES:
        return Member(path, at, size)
    if kind == _HARD:
        return Member(path, at, 0, os.fsdecode(relative(link)))
    if kind == _SYMBOLIC:
        return Member(path, at, 0, os.path.normpath(os.path.join(os.path.dirname(path), os.fsdecode(link))))
    return Member(path, at, 0, is_file=False)
