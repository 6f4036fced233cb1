"""Root file systems come into a store: a directory or a tar, as images of one layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from isolib.unionfs.archive.compression import open_compressed
from isolib.unionfs.archive.streams import DigestReader
from isolib.unionfs.entry import Layer
from isolib.unionfs.images.config import History, ImageConfig, new_config
from isolib.unionfs.images.loading import Loader
from isolib.unionfs.images.sources import SourceKind
from isolib.unionfs.store.layers import RecipeFile, drafted, put_on_record
from isolib.unionfs.store.records import LayerRecord, hex_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from isolib.unionfs.drivers.base import Draft
    from isolib.unionfs.images.config import Platform
    from isolib.unionfs.images.references import Reference
    from isolib.unionfs.images.sources import Source
    from isolib.unionfs.store.records import ImageRecord

__all__ = ["RootLoader"]

_MADE_BY: Final = {SourceKind.DIRECTORY: "isolib: load a directory", SourceKind.TAR: "isolib: load a tar"}


class RootLoader(Loader):
    """Brings root file systems into a store.

    What a layer is called is its digest, which is known only when it has been read; so it is made first, and dropped where the
    store has it. The image says nothing of when it was made: the same root file system makes the same image.
    """

    def load_root(self, source: Source, names: Iterable[Reference], platform: Platform) -> ImageRecord:
        """Bring one in.

        Parameters
        ----------
        source
            A directory or a tar.
        names
            What to call the image.
        platform
            What it is for.
        """
        recipe = RecipeFile(self._records, self._area)
        with drafted(self._records, self._area, ()) as draft:
            make = self._directory if source.kind is SourceKind.DIRECTORY else self._tar
            layer = make(source, draft, recipe)
            with self._records.locks.layer(hex_of(layer.chain_id)):
                if not self.has(layer.chain_id):
                    put_on_record(self._records, recipe, LayerRecord(layer, None), draft)
        self._tell(layer.size, layer.size)
        config = ImageConfig(architecture=platform.architecture, variant=platform.variant, os=platform.os)
        step = History(created_by=_MADE_BY[source.kind])
        return self._records.add_image(self._area, new_config(config, [layer.diff_id], [step]), None, names)

    def _tar(self, source: Source, draft: Draft, recipe: RecipeFile) -> Layer:
        lost, plain = self._read_tar(source, draft, recipe, ())
        if lost:
            _, plain = self._read_tar(source, None, recipe, lost)
        return Layer(plain.digest, plain.digest, plain.size)

    def _read_tar(
        self, source: Source, draft: Draft | None, recipe: RecipeFile, keep: Collection[int]
    ) -> tuple[Collection[int], DigestReader]:
        with source.files.open("") as (section, size), recipe.writing() as sink:
            plain = DigestReader(open_compressed(self._counted(section, size)))
            return self._through(plain, sink, keep, draft, (), unended=False), plain

    def _directory(self, source: Source, draft: Draft, recipe: RecipeFile) -> Layer:
        assert source.root is not None  # noqa: S101 - as the kind says
        with recipe.writing() as sink:
            written = self._records.contents.fill(draft, source.root, sink, limits=self._limits)
        return Layer(written.digest, written.digest, written.size)
