"""Files with several names as aufs keeps them: below ``.wh..wh.plnk``, and every name a link to there.

Images from the time when Docker's layers were branches of aufs have them so.

Source: aufs(5), "Pseudo-link".
"""

from __future__ import annotations

from dataclasses import replace
from tempfile import SpooledTemporaryFile
from typing import TYPE_CHECKING

from isolib.unionfs.entry import Entry, Kind
from isolib.unionfs.streams import CHUNK

if TYPE_CHECKING:
    from isolib.unionfs.entry import Content, Piece

__all__ = ["PseudoLinks"]


class PseudoLinks:
    """The files that aufs keeps, until their names come.

    The first name of a file becomes the file, the others hard links to that one.  Until then the content is in a temporary
    file, which counts to the limits of the archive.
    """

    def __init__(self) -> None:
        self._kept: dict[bytes, tuple[Entry, SpooledTemporaryFile[bytes]]] = {}
        self._first: dict[bytes, bytes] = {}

    def keep(self, entry: Entry, content: Content) -> None:
        """Keep a file, the path of which is the one that aufs has given it."""
        file = SpooledTemporaryFile(max_size=CHUNK)  # noqa: SIM115  # closed with all
        self._drop(entry.path)
        self._kept[entry.path] = (entry, file)
        while data := content.read(CHUNK):
            file.write(data)
        file.seek(0)

    def resolve(self, path: bytes, target: bytes) -> Piece | None:
        """Return what a name of a file stands for; None if its target is not kept."""
        if target in self._first:
            return Entry(path, Kind.HARDLINK, target=self._first[target]), None
        if target not in self._kept:
            return None
        self._first[target] = path
        entry, file = self._kept[target]
        return replace(entry, path=path), file

    def close(self) -> None:
        """Remove the temporary files."""
        for path in list(self._kept):
            self._drop(path)

    def _drop(self, path: bytes) -> None:
        if path in self._kept:
            self._kept.pop(path)[1].close()
        self._first.pop(path, None)
