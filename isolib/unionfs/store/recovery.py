"""Commits and resets of trees, in steps that can be finished when whoever began them was killed.

What a commit is about to do lies in the tree's directory, as ``commit/``, from before the driver does it until all is on
record::

    commit/commit.json     {"layer": its chain id, "name": what the image is to be called}
    commit/config          the config of the image
    commit/layer/          what ``layers/HEX`` is to be

So the driver's one step, `Driver.commit`, decides: before it the tree is what it was, and after it `finish` can be run by
anybody who has the tree, and as often as he likes.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from isolib.unionfs.entry import Kind
from isolib.unionfs.images.documents import Document
from isolib.unionfs.images.references import Reference
from isolib.unionfs.store.locks import try_lock
from isolib.unionfs.store.records import Standing, hex_of, trusted

if TYPE_CHECKING:
    from isolib.unionfs.store.areas import Area
    from isolib.unionfs.store.records import ImageRecord, Records, TreeRecord

__all__ = ["PENDING", "finish", "move_layer", "recover", "recover_all", "write_tree"]

PENDING: Final = "commit"


def write_tree(records: Records, name: str, record: TreeRecord) -> None:
    """Write the record of a tree anew; the caller has the tree."""
    path = f"trees/{name}"
    records.layout.write(f"{path}/new.json", record.told(), durable=record.kept)
    records.layout.move(f"{path}/new.json", f"{path}/meta.json", durable=record.kept)


def move_layer(records: Records, name: str, top: str) -> None:
    """Put the layer on record that a tree has become; the caller holds the layer."""
    pending, to = f"trees/{name}/{PENDING}/layer", f"layers/{hex_of(top)}"
    if records.layout.holds(pending):
        records.sync_layer(top)
        if not records.layout.move(pending, to):
            records.layout.remove(pending)


def finish(records: Records, area: Area, name: str) -> ImageRecord:
    """Put the image on record that is to come of a commit, and let the tree stand on it; its layer is on record."""
    pending = f"trees/{name}/{PENDING}"
    record = records.tree(name)
    with trusted(pending):
        document = Document.read(records.layout.read(f"{pending}/commit.json"), pending)
        top, called = document.text("layer"), document.text("name", "")
        config = records.layout.read(f"{pending}/config")
        below = record.standing.below
        if top not in below:
            below = (*below, top)
    with records.locks.shared():
        records.hold(area, below)
    image = records.add_image(area, config, None, [Reference.parse(called)] if called else [])
    write_tree(records, name, replace(record, standing=Standing(image.digest, below)))
    records.layout.remove(pending)
    return image


def recover(records: Records, name: str) -> None:
    """Finish or undo what was begun with a tree; the caller has it, and it was somebody's who is gone."""
    record = records.tree(name)
    if record.resetting is not None:
        records.driver.reset(record.tree, record.resetting)
        write_tree(records, name, reset(record))
    pending = f"trees/{name}/{PENDING}"
    if not records.layout.holds(pending):
        return
    if not records.layout.holds(f"{pending}/commit.json"):  # it was being removed
        records.layout.remove(pending)
        return
    with trusted(pending):
        top = Document.read(records.layout.read(f"{pending}/commit.json"), pending).text("layer")
    with records.area() as area:
        with records.locks.layer(hex_of(top)):
            # Somebody else may have made the same layer since; but a tree that has not become one has changes still.  To look
            # for them comes first: it lets the driver finish what it had begun.
            done = top in record.standing.below or (not _has_changes(records, record) and _is_made(records, top))
            if done:
                with records.locks.shared():
                    area.rely_on([f"layer:{top}"])
                move_layer(records, name, top)
        if done:
            finish(records, area, name)
        else:
            records.layout.remove(pending)


def reset(record: TreeRecord) -> TreeRecord:
    """Return the record of a tree that has come back to the snapshot to which it was on its way."""
    standing = record.snapshots[record.resetting] if record.resetting is not None else record.standing
    return replace(record, standing=standing, resetting=None)


def _has_changes(records: Records, record: TreeRecord) -> bool:
    return any(entry.kind is not Kind.DIRECTORY for entry, _ in records.driver.changed(record.tree))


def _is_made(records: Records, top: str) -> bool:
    return hex_of(top) in records.driver.layers()


def recover_all(records: Records) -> None:
    """Finish or undo what was begun with kept trees that nobody has."""
    for name in records.trees():
        with suppress(FileNotFoundError), records.layout.open(f"trees/{name}", os.O_DIRECTORY) as directory:
            if try_lock(directory.fileno()) and records.layout.holds(f"trees/{name}/meta.json") and records.tree(name).kept:
                recover(records, name)
