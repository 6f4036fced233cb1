"""What a tree changes, told as paths."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from isolib.unionfs.below import Below
from isolib.unionfs.drivers.base import Form
from isolib.unionfs.entry import Change, ChangeKind, Kind
from isolib.unionfs.files import joined, shown
from isolib.unionfs.records import hex_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from isolib.unionfs.entry import Entry, Pieces
    from isolib.unionfs.records import Records

__all__ = ["changes", "opened_layers"]


def opened_layers(records: Records, stack: ExitStack, below: Sequence[str]) -> list[int]:
    """Open what lies below something, as `Below` and `unpack` take it: layers, the topmost first, or one whole tree."""
    needed = below[-1:] if records.driver.form is Form.MERGED else below[::-1]
    return [stack.enter_context(records.driver.open_layer(hex_of(one))).fileno() for one in needed]


def changes(records: Records, pieces: Pieces, below: Sequence[str]) -> list[Change]:
    """Return the paths that pieces change of what lies below them, sorted."""
    with ExitStack() as stack:
        lower = Below(opened_layers(records, stack, below), records.driver.form)
        return sorted(Change(shown(path), kind) for path, kind in _changes(pieces, lower))


def _changes(pieces: Pieces, lower: Below) -> Iterator[tuple[bytes, ChangeKind]]:
    opaque: list[bytes] = []
    below_opaque: set[bytes] = set()
    for entry, _ in pieces:
        path = entry.path
        if entry.opaque:
            opaque.append(path)
        if path.rpartition(b"/")[0] in opaque:
            below_opaque.add(path)
        if entry.kind is Kind.WHITEOUT:
            yield path, ChangeKind.DELETED
            continue
        old = lower.find(path)
        if old is None:
            if path:
                yield path, ChangeKind.ADDED
        elif not _is_same_directory(entry, old.entry):
            yield path, ChangeKind.MODIFIED
    for path in opaque:
        yield from ((one, ChangeKind.DELETED) for name in lower.names(path) if (one := joined(path, name)) not in below_opaque)


def _is_same_directory(new: Entry, old: Entry) -> bool:
    """Return whether all that is new is what is in it."""
    return (
        (new.kind, old.kind) == (Kind.DIRECTORY, Kind.DIRECTORY)
        and (new.mode, new.uid, new.gid) == (old.mode, old.uid, old.gid)
        and new.xattrs == old.xattrs
    )
