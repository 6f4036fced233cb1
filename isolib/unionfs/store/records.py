"""What a store has on record, and the few ways in which that changes.

A layer is on record when ``layers/HEX`` is there, an image when ``images/HEX`` is; nothing else decides.  They are written
after what they stand for, and removed before it.  So a crash leaves at most things that nobody has on record, and the collector
takes those.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from errno import EDQUOT, ENOSPC
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from isolib.errors import ArchiveError, ImageNotFound, StoreDamaged, SyscallError
from isolib.unionfs.archive.streams import chain_id
from isolib.unionfs.drivers.deputed import contents_of
from isolib.unionfs.entry import Layer
from isolib.unionfs.images.config import read_config
from isolib.unionfs.images.documents import Document, dump, sha256
from isolib.unionfs.images.references import Reference, is_digest
from isolib.unionfs.store.areas import new_area

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from isolib.unionfs.drivers.base import Driver
    from isolib.unionfs.images.config import Recorded
    from isolib.unionfs.store.areas import Area
    from isolib.unionfs.store.layout import Layout
    from isolib.unionfs.store.locks import Locks

__all__ = ["ImageRecord", "LayerRecord", "Records", "Standing", "TreeRecord", "chain", "hex_of", "trusted"]

_ALGORITHM: Final = "sha256:"
_NO_ROOM: Final = frozenset({EDQUOT, ENOSPC})


def hex_of(digest: str) -> str:
    """Return what a digest is filed under, in the store and with the driver."""
    return digest.removeprefix(_ALGORITHM)


def chain(diff_ids: Iterable[str]) -> tuple[str, ...]:
    """Return the chain ids of layers, the lowest first."""
    found: list[str] = []
    for diff_id in diff_ids:
        found.append(chain_id(found[-1] if found else None, diff_id))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """A layer on record.

    Attributes
    ----------
    layer
        What it is.
    parent
        The chain id of the layer below; None for the lowest.
    """

    layer: Layer
    parent: str | None

    def told(self) -> bytes:
        """Return it as it is written."""
        return dump({"diff_id": self.layer.diff_id, "parent": self.parent, "size": self.layer.size})


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image on record.

    Attributes
    ----------
    digest
        Of its config: what it is.
    manifest
        The digest of the manifest that it came with; None where it came with none.
    """

    digest: str
    manifest: str | None


@dataclass(frozen=True, slots=True)
class Standing:
    """What a tree stands on.

    Attributes
    ----------
    image
        The digest of the image; None: of none.
    below
        The chain ids of the layers below, the lowest first.
    """

    image: str | None
    below: tuple[str, ...]

    def told(self) -> dict[str, Any]:
        """Return it as it is written."""
        return {"image": self.image, "below": [*self.below]}

    @classmethod
    def read(cls, document: Document) -> Standing:
        """Return it as it was written."""
        return cls(document.text("image") if document.value.get("image") else None, document.texts("below") or ())


@dataclass(frozen=True, slots=True)
class TreeRecord:
    """A tree on record.

    Attributes
    ----------
    tree
        What the driver calls it.
    kept
        Whether it outlives the process that has it.
    standing
        What it stands on.
    snapshots
        What it stood on when it was as it was then, by name.
    resetting
        The snapshot that it is on its way back to; None: to none.
    """

    tree: str
    kept: bool
    standing: Standing
    snapshots: dict[str, Standing] = field(default_factory=dict)
    resetting: str | None = None

    @property
    def layers(self) -> set[str]:
        """The layers that it needs."""
        return {layer for one in (self.standing, *self.snapshots.values()) for layer in one.below}

    @property
    def images(self) -> set[str]:
        """The images whose configs it needs."""
        return {one.image for one in (self.standing, *self.snapshots.values()) if one.image}

    def told(self) -> bytes:
        """Return it as it is written."""
        told: dict[str, Any] = {"tree": self.tree, "kept": self.kept, **self.standing.told()}
        told["snapshots"] = {name: one.told() for name, one in self.snapshots.items()}
        return dump({**told, "resetting": self.resetting})

    @classmethod
    def read(cls, data: bytes, what: str) -> TreeRecord:
        """Return it as it was written."""
        document = Document.read(data, what)
        taken = document.object("snapshots")
        snapshots = {name: Standing.read(taken.object(name)) for name in taken.value}
        resetting = document.text("resetting", "") or None
        return cls(document.text("tree"), document.flag("kept"), Standing.read(document), snapshots, resetting)


@contextmanager
def trusted(what: str) -> Iterator[None]:
    """Take what the store has written itself for no archive of somebody's: when it is wrong, the store is damaged."""
    try:
        yield
    except ArchiveError as error:
        raise StoreDamaged(error.reason, what) from None
    except FileNotFoundError:
        raise StoreDamaged("it is missing", what) from None


class Records:
    """The records of a store.

    Parameters
    ----------
    layout, locks
        Where they lie, and who may change them.
    driver
        Has what they are of.
    durable
        Whether the files of a layer are on disk before its record is.

    Attributes
    ----------
    contents
        Its files.
    """

    def __init__(self, layout: Layout, locks: Locks, driver: Driver, *, durable: bool = False) -> None:
        self.layout = layout
        self.locks = locks
        self.driver = driver
        self.contents = contents_of(driver)
        self._durable = durable

    def area(self) -> AbstractContextManager[Area]:
        """Have a place to make things in; see `isolib.unionfs.store.areas.new_area`."""
        return new_area(self.layout, self.locks)

    @contextmanager
    def relying(self, layers: Iterable[str], blobs: Iterable[str] = ()) -> Iterator[None]:
        """Keep layers and blobs from being collected for the time of the block, also in a store that cannot be written."""
        with ExitStack() as stack:
            self._rely(stack, partial(tuple, layers), blobs)
            yield

    @contextmanager
    def relying_on_present(self, layers: Iterable[str]) -> Iterator[list[str]]:
        """As `relying`, on those of some layers that are on record; which ones they are is said."""
        with ExitStack() as stack:
            yield [*self._rely(stack, lambda: [one for one in layers if self.has_layer(one)])]

    def _rely(self, stack: ExitStack, layers: Callable[[], Sequence[str]], blobs: Iterable[str] = ()) -> Sequence[str]:
        """Keep layers that are found while the store is held, and blobs, for as long as a stack."""
        if self.layout.may_write():
            try:
                with ExitStack() as making:
                    area = making.enter_context(self.area())
                    with self.locks.shared():
                        found = layers()
                        self.hold(area, found, blobs)
                    stack.push(making.pop_all())
                    return found
            except SyscallError as error:
                if error.errno not in _NO_ROOM:
                    raise
        # Where nothing can be noted, the store itself is held: nobody collects meanwhile.
        stack.enter_context(self.locks.shared())
        found = layers()
        self._present(found)
        return found

    def hold(self, area: Area, layers: Sequence[str], blobs: Iterable[str] = ()) -> None:
        """Note that an area relies on layers that are on record, and on blobs.  The caller holds the store."""
        self._present(layers)
        area.rely_on([*(f"layer:{one}" for one in layers), *(f"blob:{one}" for one in blobs)])

    def _present(self, layers: Iterable[str]) -> None:
        for one in layers:
            if not self.has_layer(one):
                raise StoreDamaged("it is missing", f"layers/{hex_of(one)}")

    # Layers

    def sync_layer(self, chain_id: str) -> None:
        """Have the files of a layer on disk that is to go on record, where that is wanted."""
        if self._durable:
            self.driver.sync(hex_of(chain_id))

    def has_layer(self, chain_id: str) -> bool:
        """Return whether a layer is on record."""
        return self.layout.holds(f"layers/{hex_of(chain_id)}")

    def layer(self, chain_id: str) -> LayerRecord:
        """Return a layer that is on record.

        Raises
        ------
        StoreDamaged
            It is not, or its record is no good.
        """
        what = f"layers/{hex_of(chain_id)}/meta.json"
        with trusted(what):
            document = Document.read(self.layout.read(what), what)
            diff_id, parent = document.text("diff_id"), document.value.get("parent")
            if not is_digest(diff_id) or not (parent is None or is_digest(parent)):
                raise ArchiveError("what should be digests is none", what)
            return LayerRecord(Layer(diff_id, chain_id, document.number("size")), parent)

    def layers(self) -> list[str]:
        """Return the chain ids of the layers on record."""
        return [f"{_ALGORITHM}{name}" for name in self.layout.names("layers")]

    # Images

    def has_image(self, digest: str) -> bool:
        """Return whether an image is on record."""
        return self.layout.holds(f"images/{hex_of(digest)}")

    def image(self, digest: str) -> ImageRecord:
        """Return an image that is on record.

        Raises
        ------
        ImageNotFound
            It is not.
        """
        what = f"images/{hex_of(digest)}"
        with trusted(what):
            try:
                data = self.layout.read(what)
            except FileNotFoundError:
                raise ImageNotFound(f"the store has no image {digest} any more") from None
            told = Document.read(data, what).value
            manifest = told.get("manifest")
            if "manifest" not in told or not (manifest is None or is_digest(manifest)):
                raise ArchiveError("manifest: this is no digest", what)
            return ImageRecord(digest, manifest)

    def images(self) -> list[str]:
        """Return the digests of the images on record."""
        return [f"{_ALGORITHM}{name}" for name in self.layout.names("images")]

    def blob(self, digest: str) -> bytes:
        """Return a config or a manifest.

        Raises
        ------
        StoreDamaged
            It is missing, or is not what its digest says.
        """
        what = f"blobs/{hex_of(digest)}"
        with trusted(what):
            data = self.layout.read(what)
        if sha256(data) != digest:
            raise StoreDamaged("its digest is another", what)
        return data

    def config(self, digest: str) -> Recorded:
        """Return what the config of an image says."""
        what = f"blobs/{hex_of(digest)}"
        data = self.blob(digest)
        with trusted(what):
            return read_config(data, what)

    def add_image(self, area: Area, config: bytes, manifest: bytes | None, names: Iterable[Reference]) -> ImageRecord:
        """Put an image on record, and call it by names; its layers are, and the area relies on them."""
        record = ImageRecord(sha256(config), None if manifest is None else sha256(manifest))
        with self.locks.shared():
            self._put_blob(area, record.digest, config)
            if manifest is not None and record.manifest is not None:
                self._put_blob(area, record.manifest, manifest)
            area.put(f"images/{hex_of(record.digest)}", dump({"manifest": record.manifest}))
            for name in names:
                self._name(area, name, record.digest)
        return record

    def _put_blob(self, area: Area, digest: str, data: bytes) -> None:
        area.rely_on([f"blob:{digest}"])
        try:
            self.blob(digest)
        except StoreDamaged:  # it is missing, or is not what it was: to bring it in again mends that
            area.put(f"blobs/{hex_of(digest)}", data)

    def remove_image(self, digest: str) -> None:
        """Take an image off the record, with its names; what it alone needed, the collector takes."""
        with self.locks.exclusive():
            for name, image in self._named().items():
                if image == digest:
                    self.layout.unlink(f"names/{name}")
            if not self.layout.unlink(f"images/{hex_of(digest)}"):
                raise ImageNotFound(f"the store has no image {digest} any more")

    # Names

    def names(self) -> dict[Reference, str]:
        """Return all names, and the digests of the images that they are of."""
        return {reference: image for _, (reference, image) in self._name_records()}

    def _named(self) -> dict[str, str]:
        return {name: image for name, (_, image) in self._name_records()}

    def _name_records(self) -> Iterator[tuple[str, tuple[Reference, str]]]:
        for name, data in self.layout.each("names"):
            yield name, self.name_record(data, f"names/{name}")

    def name_record(self, data: bytes, what: str) -> tuple[Reference, str]:
        """Return what a file of a name says."""
        with trusted(what):
            document = Document.read(data, what)
            image = document.text("image")
            try:
                reference = Reference.parse(document.text("name"))
            except ValueError as error:
                raise ArchiveError(str(error), what) from None
            if not is_digest(image):
                raise ArchiveError("image: this is no digest", what)
            return reference, image

    def named(self, reference: Reference) -> str | None:
        """Return the digest of the image of a name; None where none has it."""
        what = _file_of(reference)
        try:
            return self.name_record(self.layout.read(what), what)[1]
        except FileNotFoundError:
            return None

    def add_name(self, reference: Reference, digest: str) -> None:
        """Call an image by a name, which another may have had."""
        with self.area() as area, self.locks.shared():
            self.image(digest)
            self._name(area, reference, digest)

    def _name(self, area: Area, reference: Reference, digest: str) -> None:
        area.put(_file_of(reference), dump({"name": reference.full, "image": digest}))

    def remove_name(self, reference: Reference, digest: str) -> None:
        """Take a name from an image that has it."""
        with self.locks.exclusive():
            if self.named(reference) != digest:
                raise ImageNotFound(f"the image {digest} is not called {reference}")
            self.layout.unlink(_file_of(reference))

    # Trees

    def tree(self, name: str) -> TreeRecord:
        """Return a tree that is on record.

        Raises
        ------
        ImageNotFound
            It is not.
        """
        what = f"trees/{name}/meta.json"
        with trusted(what):
            data = self.layout.read(what)
            return TreeRecord.read(data, what)

    def kept_trees(self) -> Iterator[str]:
        """Yield the names of the trees that are kept."""
        for name in self.trees():
            try:
                if self.tree(name).kept:
                    yield name
            except StoreDamaged:
                if self.layout.holds(f"trees/{name}/meta.json"):  # else it was removed just now
                    raise

    def trees(self) -> list[str]:
        """Return the names of the trees on record."""
        return self.layout.names("trees")


def _file_of(reference: Reference) -> str:
    return f"names/{hex_of(sha256(reference.full.encode()))}"
