"""Several layers as the one that they are together: what the upper of them says counts."""

from __future__ import annotations

from dataclasses import replace
from errno import ENOENT
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib.errors import SyscallError, from_errno
from isolib.unionfs.disk.files import NOT_A_DIRECTORY, joined, names_in, open_beneath, shown
from isolib.unionfs.disk.scan import SMALL, describe, hard_link, scan, with_content
from isolib.unionfs.entry import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from isolib._kernel.calls import Found
    from isolib._kernel.handle import Fd
    from isolib.unionfs.disk.scan import FileOffer
    from isolib.unionfs.drivers.base import Form
    from isolib.unionfs.entry import Entry, Piece

__all__ = ["Uppers"]

_MISSING: Final = frozenset({ENOENT}) | NOT_A_DIRECTORY


class Uppers:
    """Layers in an OVERLAY form, as pieces: in the order, and with the meaning, of `scan`.

    Parameters
    ----------
    layers
        Descriptors of their directories, the topmost first, which stay open.
    form
        How they lie on disk.
    """

    def __init__(self, layers: Sequence[Fd], form: Form) -> None:
        self._layers = tuple(layers)
        self._form = form

    def __iter__(self) -> Iterator[Piece]:
        if len(self._layers) == 1:
            yield from scan(self._layers[0].fileno(), self._form)
            return
        looker = calls.Looker()
        root = self._layers[0].fileno()
        (row,) = looker.look(root, [b"."], 0, 0)
        entry = describe(root, row, b"", self._form)
        if entry is not None:
            yield entry, None
        yield from self._walk(looker)

    def offers(self) -> Iterator[Piece | FileOffer]:
        """As iterating it, with offers of small files."""
        return scan(self._layers[0].fileno(), self._form).offers() if len(self._layers) == 1 else iter(self)

    def names(self, path: bytes) -> set[bytes]:
        """Return the names that any of them has in a directory."""
        found: set[bytes] = set()
        for layer in self._layers:
            if (directory := _directory(layer, path)) is not None:
                with directory:
                    found.update(names_in(directory.fileno(), path))
        return found

    def links(self, path: bytes) -> int:
        """Return how many names the file has that is at a path in the topmost of them that has one."""
        looker = calls.Looker()
        parent, _, name = path.rpartition(b"/")
        for layer in self._layers:
            if (directory := _directory(layer, parent)) is not None:
                with directory:
                    (row,) = looker.look(directory.fileno(), [name], 0, 0)
                    if not row.error:
                        return row.links
        return 0

    def _walk(self, looker: calls.Looker) -> Iterator[Piece]:
        first: dict[tuple[int, int], bytes] = {}
        todo = [(b"", self._names(looker, b"", list(self._layers)))]
        while todo:
            path, names = todo[-1]
            following = next(names, None)
            if following is None:
                todo.pop()
                continue
            name, rows = following
            whole = joined(path, name)
            top, merged, opaque = self._decide(path, whole, rows)
            if top is None:
                continue
            entry, layer, row = top
            if entry.kind is Kind.DIRECTORY:
                yield replace(entry, opaque=opaque), None
                todo.append((whole, self._names(looker, whole, merged)))
                continue
            yield from self._file(entry, layer, row, path, first)

    def _decide(
        self, path: bytes, whole: bytes, rows: list[tuple[Fd, Found]]
    ) -> tuple[tuple[Entry, Fd, Found] | None, list[Fd], bool]:
        """Return what a name stands for and where that is; of a directory, what it is made of, and whether it is opaque."""
        merged: list[Fd] = []
        top: tuple[Entry, Fd, Found] | None = None
        for layer, row in rows:
            with open_beneath(layer.fileno(), path) as directory:
                entry = describe(directory.fileno(), row, whole, self._form)
            if entry is None:  # a socket
                break
            top = top or (entry, layer, row)
            if entry.kind is not Kind.DIRECTORY:
                # It hides what lies below it: so a directory above it is opaque.
                return top, merged, bool(merged)
            merged.append(layer)
            if entry.opaque:
                return top, merged, True
        return top, merged, False

    def _file(self, entry: Entry, layer: Fd, row: Found, path: bytes, first: dict[tuple[int, int], bytes]) -> Iterator[Piece]:
        if row.links > 1 and entry.kind is not Kind.WHITEOUT:
            name = first.setdefault((row.device, row.inode), entry.path)
            if name is not entry.path:
                yield hard_link(entry, name), None
                return
        if entry.kind is not Kind.FILE:
            yield entry, None
            return
        with open_beneath(layer.fileno(), path) as directory:
            yield from with_content(entry, directory.fileno(), row)

    def _names(self, looker: calls.Looker, path: bytes, layers: list[Fd]) -> Iterator[tuple[bytes, list[tuple[Fd, Found]]]]:
        """Yield the names in a directory, sorted, each with the layers that have it, the topmost first."""
        found: dict[bytes, list[tuple[Fd, Found]]] = {}
        for layer in layers:
            if (directory := _directory(layer, path)) is None:
                continue
            with directory:
                names = names_in(directory.fileno(), path)
                at = 0
                while at < len(names):
                    for row in looker.look(directory.fileno(), names, at, SMALL):
                        at += 1
                        if row.error:
                            raise from_errno("statx", shown(joined(path, row.name)), row.error)
                        found.setdefault(row.name, []).append((layer, row))
        return iter(sorted(found.items()))


def _directory(layer: Fd, path: bytes) -> Fd | None:
    try:
        return open_beneath(layer.fileno(), path)
    except SyscallError as error:
        if error.errno not in _MISSING:
            raise
        return None
