"""What a tree changes, told as paths."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from isolib.unionfs.disk import compare
from isolib.unionfs.drivers.base import Form
from isolib.unionfs.store.records import hex_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolib.unionfs.entry import Change, Pieces
    from isolib.unionfs.store.records import Records

__all__ = ["changes", "opened_layers"]


def opened_layers(records: Records, stack: ExitStack, below: Sequence[str]) -> list[int]:
    """Open what lies below something, as `Below` and `unpack` take it: layers, the topmost first, or one whole tree."""
    needed = below[-1:] if records.driver.form is Form.MERGED else below[::-1]
    return [stack.enter_context(records.driver.open_layer(hex_of(one))).fileno() for one in needed]


def changes(records: Records, pieces: Pieces, below: Sequence[str]) -> list[Change]:
    """Return the paths that pieces change of what lies below them, sorted."""
    with ExitStack() as stack:
        return compare.changes(pieces, opened_layers(records, stack, below), records.driver.form)
