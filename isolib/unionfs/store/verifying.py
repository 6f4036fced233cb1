"""Everything that a store has on record is looked at, and what is wrong is told."""

from __future__ import annotations

import enum
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isolib.errors import ImageNotFound, StoreDamaged
from isolib.unionfs.archive.streams import chain_id
from isolib.unionfs.store import steps
from isolib.unionfs.store.layers import replayed
from isolib.unionfs.store.records import chain, hex_of
from isolib.unionfs.store.volume_records import read_volume, volume_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from isolib.unionfs.store.records import LayerRecord, Records

__all__ = ["Finding", "Subject", "verify"]


class Subject(enum.Enum):
    """What something is wrong with."""

    LAYER = "layer"
    IMAGE = "image"
    NAME = "name"
    TREE = "tree"
    VOLUME = "volume"
    BLOB = "blob"
    STEP = "step"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong in a store.

    Attributes
    ----------
    subject
        What kind of thing it is.
    name
        Which one: a digest, a chain id, a name.
    problem
        What is wrong with it.
    """

    subject: Subject
    name: str
    problem: str

    def __str__(self) -> str:
        return f"{self.subject.value} {self.name}: {self.problem}"


class _Findings:
    def __init__(self) -> None:
        self.all: list[Finding] = []

    def add(self, subject: Subject, name: str, problem: str) -> None:
        self.all.append(Finding(subject, name, problem))

    @contextmanager
    def about(self, subject: Subject, name: str) -> Iterator[None]:
        try:
            yield
        except StoreDamaged as error:
            self.add(subject, name, str(error))


def verify(
    records: Records, *, contents: bool = True, progress: Callable[[int, int], object] | None = None
) -> tuple[Finding, ...]:
    """Look at everything on record.

    Parameters
    ----------
    records
        Of which store.
    contents
        Whether to make the tar of every layer again and compare its digest.
    progress
        Is told how many layers have been looked at, and how many there are.
    """
    found = _Findings()
    # What comes later is left out, and what goes away meanwhile must not be missed: it is relied on.
    with records.locks.shared():
        layers, images, trees = records.layers(), records.images(), records.trees()
    with records.relying_on_present(layers) as present:
        _blobs(records, found)
        for digest in images:
            _image(records, digest, found)
        _names(records, found)
        for name in trees:
            _tree(records, name, found)
        for name, step in steps.steps(records):
            if step is None:
                found.add(Subject.STEP, name, "what is on record of it is no good")
        for name in volume_names(records):
            with found.about(Subject.VOLUME, name), suppress(ImageNotFound):  # it was removed just now
                read_volume(records, name)
        in_driver = records.driver.layers()
        for number, one in enumerate(present):
            with found.about(Subject.LAYER, one):
                if hex_of(one) not in in_driver:
                    raise StoreDamaged("the driver has no such layer", f"layers/{hex_of(one)}")
                _layer(records, records.layer(one), contents=contents)
            if progress is not None:
                progress(number + 1, len(present))
    return tuple(found.all)


def _layer(records: Records, record: LayerRecord, *, contents: bool) -> None:
    layer, what = record.layer, f"layers/{hex_of(record.layer.chain_id)}"
    if chain_id(record.parent, layer.diff_id) != layer.chain_id:
        raise StoreDamaged("it is filed under the wrong chain id", what)
    if record.parent is not None and not records.has_layer(record.parent):
        raise StoreDamaged(f"the layer below it, {record.parent}, is missing", what)
    if contents:
        for _ in replayed(records, layer):
            pass


def _blobs(records: Records, found: _Findings) -> None:
    for name in records.layout.names("blobs"):
        if not records.layout.holds(f"blobs/{name}"):
            continue
        with found.about(Subject.BLOB, f"sha256:{name}"):
            try:
                records.blob(f"sha256:{name}")
            except StoreDamaged:
                if records.layout.holds(f"blobs/{name}"):  # else it was collected
                    raise


def _image(records: Records, digest: str, found: _Findings) -> None:
    with found.about(Subject.IMAGE, digest):
        try:
            record = records.image(digest)
        except ImageNotFound:
            return
        try:
            if record.manifest is not None:
                records.blob(record.manifest)
            for one in chain(records.config(digest).diff_ids):
                if not records.has_layer(one):
                    raise StoreDamaged(f"its layer {one} is missing", f"images/{hex_of(digest)}")
        except StoreDamaged:
            if records.has_image(digest):
                raise


def _names(records: Records, found: _Findings) -> None:
    for name in records.layout.names("names"):
        with found.about(Subject.NAME, name), suppress(FileNotFoundError):  # it was taken away just now
            data = records.layout.read(f"names/{name}")
            reference, digest = records.name_record(data, f"names/{name}")
            if not records.has_image(digest) and records.named(reference) == digest:
                found.add(Subject.NAME, str(reference), f"there is no image {digest}")


def _tree(records: Records, name: str, found: _Findings) -> None:
    if not records.layout.holds(f"trees/{name}/meta.json"):
        return
    with found.about(Subject.TREE, name):
        try:
            record = records.tree(name)
            missing = sorted(one for one in record.layers if not records.has_layer(one))
            if missing:
                raise StoreDamaged(f"the layers {', '.join(missing)} below it are missing", f"trees/{name}")
            if record.tree not in records.driver.trees():
                raise StoreDamaged("the driver has no such tree", f"trees/{name}")
        except StoreDamaged:
            if records.layout.holds(f"trees/{name}/meta.json"):
                raise
