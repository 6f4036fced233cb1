"""A commit that was interrupted is finished, or undone.

What a commit is about to do to a tree lies in the tree's directory (``layer``) from before the driver does it until it is on record.
Its maker may have been killed anywhere between.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from isolib.errors import ArchiveError, StoreDamaged
from isolib.unionfs.documents import Document
from isolib.unionfs.entry import Kind
from isolib.unionfs.locks import try_lock
from isolib.unionfs.records import Standing, hex_of
from isolib.unionfs.streams import chain_id

if TYPE_CHECKING:
    from isolib.unionfs.records import Records, TreeRecord

__all__ = ["PENDING", "finish", "recover", "write_tree"]

PENDING = "layer"


def write_tree(records: Records, name: str, record: TreeRecord) -> None:
    """Write the record of a tree anew; the caller has the tree."""
    path = f"trees/{name}"
    records.layout.write(f"{path}/new.json", record.told(), durable=record.kept)
    records.layout.move(f"{path}/new.json", f"{path}/meta.json", durable=record.kept)


def finish(records: Records, name: str) -> None:
    """Finish or undo what was begun with a tree; the caller has the tree."""
    layout = records.layout
    pending = f"trees/{name}/{PENDING}"
    try:
        data = layout.read(f"{pending}/meta.json")
    except FileNotFoundError:
        layout.remove(pending)
        return
    record = records.tree(name)
    try:
        document = Document.read(data, pending)
        parent, diff_id = document.value.get("parent"), document.text("diff_id")
    except ArchiveError as error:
        raise StoreDamaged(error.reason, pending) from None
    top = chain_id(parent, diff_id)
    with records.locks.layer(hex_of(top)):
        # Another process may have made the same layer since; but a tree that has not become one has changes still.
        if hex_of(top) in records.driver.layers() and not _has_changes(records, record.tree):
            if not layout.move(pending, f"layers/{hex_of(top)}"):
                layout.remove(pending)
            write_tree(records, name, replace(record, standing=Standing(record.standing.image, (*record.standing.below, top))))
        else:
            layout.remove(pending)


def _has_changes(records: Records, tree: str) -> bool:
    return any(entry.kind is not Kind.DIRECTORY for entry, _ in records.driver.changed(tree))


def recover(records: Records) -> None:
    """Finish or undo what was begun with kept trees that nobody has."""
    for name in records.trees():
        if records.layout.holds(f"trees/{name}/{PENDING}"):
            with suppress(FileNotFoundError), records.layout.open(f"trees/{name}", os.O_DIRECTORY) as directory:
                if try_lock(directory.fileno()) and records.layout.holds(f"trees/{name}/meta.json") and records.tree(name).kept:
                    finish(records, name)
