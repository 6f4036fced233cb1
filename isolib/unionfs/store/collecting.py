"""What nothing refers to any more is taken away.

Roots are the images, the trees that are kept or whose owners live, and what living processes rely on.  What hangs on none of
them goes: first its record, while nobody can come to rely on it, then the driver's files, while others work on.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from secrets import token_hex
from typing import TYPE_CHECKING

from isolib.errors import StoreDamaged
from isolib.unionfs.store import steps
from isolib.unionfs.store.areas import owner, relied_on
from isolib.unionfs.store.locks import try_lock
from isolib.unionfs.store.records import chain, hex_of
from isolib.unionfs.store.recovery import recover_all
from isolib.unionfs.store.volume_records import sweep_volumes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolib._kernel.handle import Fd
    from isolib.unionfs.store.records import Records

__all__ = ["Collected", "collect"]


@dataclass(frozen=True, slots=True)
class Collected:
    """What was taken away.

    Attributes
    ----------
    images
        Digests of images; only those without a name, and only where that was asked for.
    layers
        Chain ids of layers that no image and no tree needed.
    trees
        Names of trees whose owners are gone.
    leftovers
        How many things processes that were killed had left half made, and parts of files that broken pulls had left.
    """

    images: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    trees: tuple[str, ...] = ()
    leftovers: int = 0


@dataclass(slots=True)
class _Needed:
    """What must stay."""

    layers: set[str] = field(default_factory=set)
    blobs: set[str] = field(default_factory=set)
    trees: set[str] = field(default_factory=set)
    areas: set[str] = field(default_factory=set)


def _opened(records: Records, part: str) -> Iterator[tuple[str, Fd]]:
    """Yield the directories of a part, each with a descriptor that is open for the time being."""
    for name in records.layout.names(part):
        with suppress(FileNotFoundError), records.layout.open(f"{part}/{name}", os.O_DIRECTORY) as directory:
            yield name, directory


def _areas(records: Records, needed: _Needed) -> int:
    dead = 0
    for name, directory in _opened(records, "staging"):
        if try_lock(directory.fileno()):
            records.layout.remove(f"staging/{name}")
            dead += 1
            continue
        needed.areas.add(name)
        for what in relied_on(records.layout, name):
            kind, _, digest = what.partition(":")
            (needed.layers if kind == "layer" else needed.blobs).add(digest)
    return dead


def _trees(records: Records, needed: _Needed) -> list[str]:
    dead = []
    for name, directory in _opened(records, "trees"):
        if not records.layout.holds(f"trees/{name}/meta.json"):
            records.layout.remove(f"trees/{name}")  # its owner was killed while he did
            continue
        record = records.tree(name)
        if not record.kept and try_lock(directory.fileno()):
            records.layout.remove(f"trees/{name}")
            dead.append(name)
            continue
        needed.trees.add(record.tree)
        needed.layers |= record.layers
        needed.blobs |= record.images
    return dead


def _images(records: Records, needed: _Needed, *, unnamed: bool) -> list[str]:
    named = steps.lineage(records, set(records.names().values())) if unnamed else set()
    dropped = []
    for digest in records.images():
        if unnamed and digest not in named:
            records.layout.unlink(f"images/{hex_of(digest)}")
            dropped.append(digest)
            continue
        record = records.image(digest)
        needed.blobs |= {digest, *filter(None, (record.manifest,))}
        needed.layers |= {*chain(records.config(digest).diff_ids)}
    return dropped


def _parent(records: Records, layer: str) -> str | None:
    """Return what a layer that nobody needs stands on; what its record says does not matter any more if it is damaged."""
    try:
        return records.layer(layer).parent
    except StoreDamaged:
        return None


def _take_records(records: Records, aside: str, needed: _Needed) -> list[str]:
    """Take layers and blobs off the record; return the layers, those on top of others first.

    Nothing is made for it, for there may be no room: each record goes to a place of its own, where the next collector would
    find it as something that nobody has locked.
    """
    layout = records.layout
    parents = {one: _parent(records, one) for one in records.layers() if one not in needed.layers}
    for one in parents:
        layout.move(f"layers/{hex_of(one)}", f"{aside}-{hex_of(one)}")
    for name in layout.names("blobs"):
        if f"sha256:{name}" not in needed.blobs:
            layout.unlink(f"blobs/{name}")

    def depth(one: str | None) -> int:
        found = 0
        while one in parents:
            one = parents[one]
            found += 1
        return found

    return sorted(parents, key=depth, reverse=True)


def collect(records: Records, *, unnamed: bool = False) -> Collected:
    """Take away what nothing refers to.

    Parameters
    ----------
    records
        Of which store.
    unnamed
        Whether images go too that have no name, and from which no named one was built.
    """
    driver, layout = records.driver, records.layout
    layout.check_writable()
    recover_all(records)
    driver.sweep()
    sweep_volumes(records)
    needed, aside = _Needed(), f"staging/{token_hex(8)}"
    with records.locks.exclusive():
        leftovers = _areas(records, needed)
        trees = _trees(records, needed)
        images = _images(records, needed, unnamed=unnamed)
        steps.sweep(records)
        layers = _take_records(records, aside, needed)
        known = {*map(hex_of, needed.layers)}
        orphans = [name for name in driver.layers() if name not in known and name not in {*map(hex_of, layers)}]
        drafts = [name for name in driver.drafts() if owner(name) not in needed.areas]
        remains = [name for name in driver.trees() if name not in needed.trees and owner(name) not in needed.areas]
    for name in map(hex_of, layers):
        layout.remove(f"{aside}-{name}")  # first, for what follows makes lock files
    for name in drafts:
        driver.drop(name)
    for name in remains:
        driver.remove_tree(name)
    for name in (*map(hex_of, layers), *orphans):
        # Whoever makes a layer holds it from before he looks until it is on record.
        with records.locks.layer(name):
            if not layout.holds(f"layers/{name}"):
                driver.remove_layer(name)
    for name, file in _opened_files(records, "locks"):
        if try_lock(file.fileno()):
            layout.unlink(f"locks/{name}")
    driver.settle()
    leftovers += len(orphans) + len(drafts) + max(0, len(remains) - len(trees))
    return Collected(tuple(images), tuple(layers), tuple(trees), leftovers)


def _opened_files(records: Records, part: str) -> Iterator[tuple[str, Fd]]:
    for name in records.layout.names(part):
        with suppress(FileNotFoundError), records.layout.open(f"{part}/{name}") as file:
            yield name, file
