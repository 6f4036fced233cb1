"""Files with several names as aufs keeps them: below ``.wh..wh.plnk``, and every name a link to there.

Images from the time when Docker's layers were branches of aufs have them so.

Source: aufs(5), "Pseudo-link".
"""

from __future__ import annotations

from dataclasses import replace
from tempfile import SpooledTemporaryFile
from typing import IO, TYPE_CHECKING, Final

from isolib.errors import ArchiveError
from isolib.unionfs.entry import Entry, Kind
from isolib.unionfs.streams import CHUNK

if TYPE_CHECKING:
    from isolib.unionfs.entry import Content, Piece

__all__ = ["PseudoLinks"]

#: Bytes of all files that are kept at a time: they are on disk twice until the end.
_MOST: Final = 1 << 30


class _Kept:
    """The content of a file, where it is kept."""

    __slots__ = ("_at", "_file", "_left")

    def __init__(self, file: IO[bytes], at: int, size: int) -> None:
        self._file = file
        self._at = at
        self._left = size

    def read(self, size: int = -1, /) -> bytes:
        """Return the next bytes, at most so many; none at the end."""
        self._file.seek(self._at)
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._at += len(data)
        self._left -= len(data)
        return data


class PseudoLinks:
    """The files that aufs keeps, until their names come.

    The first name of a file becomes the file, the others hard links to that one.  All contents are in one temporary file, which
    has no name and goes with this process.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._end = 0
        self._kept: dict[bytes, tuple[Entry, int]] = {}
        self._first: dict[bytes, bytes] = {}

    def keep(self, entry: Entry, content: Content) -> None:
        """Keep a file, the path of which is the one that aufs has given it.

        Raises
        ------
        ArchiveError
            All that are kept would be more than 1 GiB.
        """
        if self._end + entry.size > _MOST:
            raise ArchiveError(f"aufs's pseudo-links have more than {_MOST} bytes", entry.path)
        if self._file is None:
            self._file = SpooledTemporaryFile(CHUNK)  # noqa: SIM115  # `close` does
        self._file.seek(self._end)
        while data := content.read(CHUNK):
            self._file.write(data)
        self._kept[entry.path] = (entry, self._end)
        self._first.pop(entry.path, None)
        self._end += entry.size

    def resolve(self, path: bytes, target: bytes) -> Piece | None:
        """Return what a name of a file stands for; None if its target is not kept."""
        if target in self._first:
            return Entry(path, Kind.HARDLINK, target=self._first[target]), None
        if target not in self._kept or self._file is None:
            return None
        self._first[target] = path
        entry, at = self._kept[target]
        return replace(entry, path=path), _Kept(self._file, at, entry.size)

    def close(self) -> None:
        """Remove the temporary file."""
        if self._file is not None:
            self._file.close()
