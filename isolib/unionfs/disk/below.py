"""What the layers below show at a path, without a mount."""

from __future__ import annotations

import os
import stat
from errno import ENOENT
from typing import TYPE_CHECKING, Final, NamedTuple

from isolib._kernel import calls
from isolib.errors import from_errno
from isolib.unionfs.disk.files import joined, names_in, open_beneath, shown
from isolib.unionfs.disk.scan import describe
from isolib.unionfs.entry import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolib._kernel.calls import Found
    from isolib._kernel.handle import Fd
    from isolib.unionfs.drivers.base import Form
    from isolib.unionfs.entry import Entry

__all__ = ["Below", "Visible"]

_REMEMBERED: Final = 10_000
_ROOM: Final = 1 << 17


class Visible(NamedTuple):
    """What is seen at a path."""

    entry: Entry
    found: Found
    layer: int
    """Of which layer it is, as a number in the sequence of them."""


class Below:
    """The union of some layers.

    Parameters
    ----------
    layers
        Descriptors of their directories, the topmost first; or of one whole tree.
    form
        How they lie on disk.
    """

    def __init__(self, layers: Sequence[int], form: Form) -> None:
        self.layers = tuple(layers)
        self._form = form
        self._looker = calls.Looker(_ROOM)
        self._directories: dict[bytes, tuple[int, ...]] = {}

    def directory(self, path: bytes) -> tuple[int, ...]:
        """Return which layers make the directory at a path, the topmost first; none where there is no directory."""
        if not path:
            return tuple(range(len(self.layers)))
        known = self._directories.get(path)
        if known is None:
            known = self._merged(path)
            if len(self._directories) >= _REMEMBERED:
                self._directories.clear()
            self._directories[path] = known
        return known

    def _merged(self, path: bytes) -> tuple[int, ...]:
        parent, _, name = path.rpartition(b"/")
        merged = []
        for layer in self.directory(parent):
            seen = self._look(layer, parent, name)
            if seen is None:
                continue
            if not stat.S_ISDIR(seen.found.mode):
                break
            merged.append(layer)
            if seen.entry.opaque:
                break
        return tuple(merged)

    def find(self, path: bytes) -> Visible | None:
        """Return what is seen at a path; None where nothing is."""
        parent, _, name = path.rpartition(b"/")
        for layer in self.directory(parent):
            seen = self._look(layer, parent, name or b".")
            if seen is not None:
                return None if seen.entry.kind is Kind.WHITEOUT else seen
        return None

    def names(self, path: bytes) -> list[bytes]:
        """Return the names that are seen in a directory, sorted."""
        seen: dict[bytes, bool] = {}
        for layer in self.directory(path):
            with self._open(layer, path) as opened:
                for name in names_in(opened.fileno(), path):
                    if name not in seen:
                        one = self._look(layer, path, name)
                        seen[name] = one is not None and one.entry.kind is not Kind.WHITEOUT
        return sorted(name for name, is_there in seen.items() if is_there)

    def open(self, visible: Visible, flags: int) -> Fd:
        """Open what is seen."""
        return open_beneath(self.layers[visible.layer], visible.entry.path, flags)

    def _open(self, layer: int, path: bytes) -> Fd:
        return open_beneath(self.layers[layer], path)

    def _look(self, layer: int, parent: bytes, name: bytes) -> Visible | None:
        path = parent if name == b"." else joined(parent, name)
        with open_beneath(self.layers[layer], parent, os.O_PATH | os.O_DIRECTORY) as directory:
            (found,) = self._looker.look(directory.fileno(), [name], 0, 0)
            if found.error == ENOENT:
                return None
            if found.error:
                raise from_errno("statx", shown(path), found.error)
            entry = describe(directory.fileno(), found, path, self._form)
        return None if entry is None else Visible(entry, found, layer)
