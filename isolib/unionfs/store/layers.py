"""Layers in a store: how one comes in from a tar, and how its tar comes out again.

The tar is not kept.  The driver has the files, and a recipe of all else lies beside: see `isolib.unionfs.archive.recipe`.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from isolib.errors import ArchiveError, StoreDamaged, SyscallError
from isolib.unionfs.archive.streams import DigestWriter
from isolib.unionfs.store.layout import damaged
from isolib.unionfs.store.records import hex_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import BinaryIO

    from isolib.unionfs.drivers.base import Draft
    from isolib.unionfs.entry import Layer
    from isolib.unionfs.store.areas import Area
    from isolib.unionfs.store.records import LayerRecord, Records

__all__ = ["RecipeFile", "drafted", "put_on_record", "replayed"]


class RecipeFile:
    """The recipe of a layer in the making, in an area.

    Parameters
    ----------
    records, area
        Where it is made.
    """

    def __init__(self, records: Records, area: Area, directory: str = "layer") -> None:
        self._layout = records.layout
        self.directory = f"{area.path}/{directory}"
        self._layout.make(self.directory)
        self._path = f"{self.directory}/recipe"

    @contextmanager
    def writing(self) -> Iterator[BinaryIO]:
        """Write it, in the place of what was written before; it is on disk at the end."""
        with self._layout.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file:
            try:
                with open(file.fileno(), "wb", closefd=False, buffering=1 << 16) as stream:
                    yield stream
                os.fsync(file.fileno())
            except OSError as error:
                if isinstance(error, SyscallError):
                    raise
                raise self._layout.refused(error, "write", self._path) from None

    def complete(self, record: LayerRecord) -> None:
        """Say what it is of: the directory is then what ``layers/HEX`` is to be."""
        self._layout.write(f"{self.directory}/meta.json", record.told())
        self._layout.sync(self.directory)


def put_on_record(records: Records, recipe: RecipeFile, record: LayerRecord, draft: Draft) -> None:
    """Make a layer of a draft, and put it on record; the caller holds the layer."""
    recipe.complete(record)
    records.driver.seal(draft, hex_of(record.layer.chain_id))
    records.sync_layer(record.layer.chain_id)
    records.layout.move(recipe.directory, f"layers/{hex_of(record.layer.chain_id)}")


@contextmanager
def drafted(records: Records, area: Area, below: Sequence[str]) -> Iterator[Draft]:
    """Have a draft of a layer, which is dropped unless it was sealed."""
    name = area.fresh()
    try:
        yield records.driver.new_draft(name, [*map(hex_of, below)])
    finally:
        records.driver.drop(name)


def replayed(records: Records, layer: Layer) -> Iterator[bytes]:
    """Yield the tar of a layer, in pieces; the caller has seen to it that the layer stays.

    Raises
    ------
    StoreDamaged
        It is not the tar any more: raised in the place of the last piece at the latest, so that nobody has all of it.
    """
    name = hex_of(layer.chain_id)
    what = f"layers/{name}"
    digest, last = DigestWriter(), b""
    try:
        recipe = records.layout.open_file(f"{what}/recipe")
    except FileNotFoundError:
        raise StoreDamaged("the recipe is missing", what) from None
    with recipe, open(recipe.fileno(), "rb", closefd=False) as stream:
        try:
            for data in records.contents.replay(name, stream):
                digest.write(data)
                if data and last:
                    yield last
                last = data or last
        except ArchiveError as error:
            raise StoreDamaged(str(error), what) from None
        except OSError as error:
            raise damaged(error, what) from None
    if (digest.digest, digest.size) != (layer.diff_id, layer.size):
        raise StoreDamaged(f"its content has changed: the digest of its tar is {digest.digest}, not {layer.diff_id}", what)
    yield last
