"""Images come into a store: layer by layer, each only if it is not there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from isolib.errors import ArchiveError
from isolib.unionfs.archive import tar
from isolib.unionfs.archive.compression import open_compressed
from isolib.unionfs.archive.recipe import Recorder
from isolib.unionfs.archive.streams import DigestReader
from isolib.unionfs.entry import Layer
from isolib.unionfs.store.layers import RecipeFile, drafted, put_on_record
from isolib.unionfs.store.records import LayerRecord, chain, hex_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from contextlib import AbstractContextManager
    from typing import BinaryIO, TypeAlias

    from isolib.unionfs.archive.streams import Readable
    from isolib.unionfs.drivers.base import Draft
    from isolib.unionfs.images.blobs import Files
    from isolib.unionfs.images.offers import LayerOffer, Offer
    from isolib.unionfs.images.references import Reference
    from isolib.unionfs.store.areas import Area
    from isolib.unionfs.store.records import ImageRecord, Records

    #: Opens a layer's file anew each time, and says how long it is.
    Opener: TypeAlias = Callable[[], AbstractContextManager[tuple[Readable, int]]]

__all__ = ["Loader", "Progress"]

_STEP: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a load has come.

    Attributes
    ----------
    layer, layers
        Which layer it is at, from 1 on, and how many there are.
    done, total
        Bytes of that layer's file, as they lie in the source, compressed or not.  A layer that the store has already is done at
        once.
    is_fetched
        Whether this is of the fetching of the file from a registry, before it is unpacked: `Store.pull` alone has that.
    """

    layer: int
    layers: int
    done: int
    total: int
    is_fetched: bool = False


class _Counted:
    """A stream that tells how much of it has been read, about once a megabyte."""

    def __init__(self, source: Readable, tell: Callable[[int], None]) -> None:
        self._read = source.read
        self._tell = tell
        self._done = self._told = 0

    def read(self, size: int, /) -> bytes:
        data = self._read(size)
        self._done += len(data)
        if self._done - self._told >= _STEP:
            self._told = self._done
            self._tell(self._done)
        return data


class Loader:
    """Brings images into a store.

    Parameters
    ----------
    records
        The store.
    area
        Where they are made.
    limits
        What a layer may grow to.
    progress
        Is told how far it has come.
    """

    def __init__(
        self, records: Records, area: Area, limits: tar.Limits, progress: Callable[[Progress], object] | None = None
    ) -> None:
        self._records = records
        self._area = area
        self._limits = limits
        self._progress = progress
        self._at = (1, 1)

    def load(self, files: Files, offer: Offer, names: Iterable[Reference]) -> ImageRecord:
        """Bring in an image that a source offers."""
        chains = chain(layer.diff_id for layer in offer.layers)
        for number, layer in enumerate(offer.layers):
            self.load_layer(files, layer, chains[: number + 1], len(chains))
        return self._records.add_image(self._area, offer.config, offer.manifest, names)

    def load_layer(self, files: Files, layer: LayerOffer, chains: Sequence[str], count: int) -> None:
        """Bring in a layer, unless it is there; those below it are.

        Parameters
        ----------
        files
            What the source consists of.
        layer
            The layer.
        chains
            Its chain id, after those of all below it.
        count
            How many layers the image has.
        """
        self._at = len(chains), count
        with self._records.locks.layer(hex_of(chains[-1])):
            if not self.has(chains[-1]):
                self._make(files, layer, chains)
        self._tell(layer.size or 0, layer.size or 0)

    def _tell(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(Progress(*self._at, done, total))

    def _counted(self, stream: Readable, size: int) -> Readable:
        return _Counted(stream, lambda done: self._tell(done, size))

    def has(self, chain_id: str) -> bool:
        """Return whether a layer is there; from now on it stays, or is this process's to make."""
        with self._records.locks.shared():
            self._area.rely_on([f"layer:{chain_id}"])
            return self._records.has_layer(chain_id)

    def _make(self, files: Files, offer: LayerOffer, chains: Sequence[str]) -> None:
        *below, top = chains
        recipe = RecipeFile(self._records, self._area)
        what = offer.digest or offer.path

        def once(draft: Draft | None, keep: Collection[int]) -> tuple[Collection[int], int]:
            with files.open(offer.path) as (section, size), recipe.writing() as sink:
                if offer.size is not None and offer.size != size:
                    raise ArchiveError(f"it has {size} bytes instead of {offer.size}", what)
                blob = DigestReader(self._counted(section, size))
                plain = DigestReader(open_compressed(blob))
                lost = self._through(plain, sink, keep, draft, below, unended=True)
                blob.drain()
            if offer.digest is not None and blob.digest != offer.digest:
                raise ArchiveError(f"its digest is {blob.digest}: it is another, or damaged", what)
            if plain.digest != offer.diff_id:
                raise ArchiveError(f"the digest of its tar is {plain.digest} instead of {offer.diff_id}", what)
            return lost, plain.size

        with drafted(self._records, self._area, below) as draft:
            lost, size = once(draft, ())
            if lost:
                # What one entry brings and a later one takes away is nowhere now, so the recipe must have it.
                _, size = once(None, lost)
            record = LayerRecord(Layer(offer.diff_id, top, size), below[-1] if below else None)
            put_on_record(self._records, recipe, record, draft)

    def _through(
        self,
        plain: DigestReader,
        recipe: BinaryIO,
        keep: Collection[int],
        draft: Draft | None,
        below: Sequence[str],
        *,
        unended: bool,
    ) -> Collection[int]:
        """Read a tar to its end, and unpack it where there is a draft; return which contents its recipe lacks."""
        if draft is None:
            recorder = Recorder(recipe, keep=keep)
            for _ in tar.read(plain, limits=self._limits, record=recorder, unended=unended):
                pass
            recorder.finish()
            lost: Collection[int] = recorder.lost
        else:
            names = [*map(hex_of, below)]
            lost = self._records.contents.unpack(draft, names, plain, recipe, limits=self._limits, unended=unended)
        plain.drain()
        return lost
