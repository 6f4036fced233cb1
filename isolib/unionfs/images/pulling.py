"""Images come from a registry: what is missing is fetched by several threads, and unpacked by the caller's as it comes.

The threads do nothing but fetch files.  They end with the pull, also when it is interrupted: their lines are cut then.
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Final

from isolib.errors import ArchiveError, RegistryError, StoreDamaged
from isolib.unionfs.images import oci
from isolib.unionfs.images.config import Platform
from isolib.unionfs.images.documents import LARGEST, sha256
from isolib.unionfs.images.loading import Loader, Progress
from isolib.unionfs.images.members import Section
from isolib.unionfs.images.offers import described, manifest_for
from isolib.unionfs.images.parts import discard, fetch, taken_part
from isolib.unionfs.store.records import chain, hex_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType
    from typing import Self

    from isolib._kernel.handle import Fd
    from isolib.unionfs.archive import tar
    from isolib.unionfs.images.offers import LayerOffer, Offer
    from isolib.unionfs.images.references import Reference
    from isolib.unionfs.images.registry import Registry
    from isolib.unionfs.store.areas import Area
    from isolib.unionfs.store.layout import Layout
    from isolib.unionfs.store.records import ImageRecord, Records

__all__ = ["Puller"]

_THREADS: Final = 4


class Puller:
    """Brings an image from a registry into a store.

    Parameters
    ----------
    records, area
        The store, and where it is made.
    registry
        Where it comes from.
    limits
        What a layer may grow to.
    progress
        Is told how far it has come, by the calling thread alone.
    """

    def __init__(
        self,
        records: Records,
        area: Area,
        registry: Registry,
        limits: tar.Limits,
        progress: Callable[[Progress], object] | None,
    ) -> None:
        self._records = records
        self._area = area
        self._registry = registry
        self._limits = limits
        self._progress = progress
        self._known: dict[str, bytes] = {}

    def pull(self, reference: Reference, platform: Platform | None, names: Sequence[Reference]) -> ImageRecord:
        """Bring in an image, and call it by names."""
        offer = self._offer(reference, platform)
        chains = chain(layer.diff_id for layer in offer.layers)
        fetcher = _Fetcher(self._records.layout, self._registry, len(chains), self._progress)
        loader = Loader(self._records, self._area, self._limits, fetcher.relay)
        missing = [
            _Missing(layer, number, partial(self._records.has_layer, chains[number]))
            for number, layer in enumerate(offer.layers)
            if not loader.has(chains[number])
        ]
        self._check_sizes([one.layer for one in missing])
        with fetcher:
            fetcher.start(missing)
            for number, layer in enumerate(offer.layers):
                if not loader.has(chains[number]):
                    fetcher.obtain(layer, partial(loader.has, chains[number]))
                loader.load_layer(fetcher, layer, chains[: number + 1], len(chains))
                fetcher.give_up(layer)
        return self._records.add_image(self._area, offer.config, offer.manifest, names)

    def _offer(self, reference: Reference, platform: Platform | None) -> Offer:
        which = reference.digest or reference.tag or ""
        # The digest of a config is no manifest's, though the store has something of that name.
        data = self._stored(which) if reference.digest and not self._records.has_image(which) else None
        if data is None:
            data, kind = self._registry.manifest(which)
        else:
            kind = oci.type_of_manifest(data)
        self._known[sha256(data)] = data
        top = oci.Descriptor(kind, sha256(data), len(data))
        return described(self._document, manifest_for(self._document, top, platform or Platform.host()), platform)

    def _document(self, descriptor: oci.Descriptor) -> bytes:
        """Return a manifest or a config: from the store, where that has it."""
        digest = descriptor.digest
        if descriptor.size > LARGEST:
            raise ArchiveError(f"a document of {descriptor.size} bytes; {LARGEST} are the most", digest)
        data = self._known.get(digest) or self._stored(digest)
        if data is None:
            is_manifest = descriptor.is_manifest or descriptor.is_index
            data = self._registry.manifest(digest)[0] if is_manifest else self._registry.document(digest)
        if len(data) != descriptor.size or sha256(data) != digest:
            raise ArchiveError(f"its digest is {sha256(data)}, its size {len(data)}: it is another, or damaged", digest)
        self._known[digest] = data
        return data

    def _stored(self, digest: str) -> bytes | None:
        if not self._records.layout.holds(f"blobs/{hex_of(digest)}"):
            return None
        with suppress(StoreDamaged):  # taken away just now, or not what it was
            return self._records.blob(digest)
        return None

    def _check_sizes(self, layers: Sequence[LayerOffer]) -> None:
        for layer in layers:
            # No way of compressing makes it longer by more than this.
            if layer.size is not None and layer.size > self._limits.size + self._limits.size // 64 + LARGEST:
                raise ArchiveError(f"its file of {layer.size} bytes is beyond the limit of {self._limits.size}", layer.digest)


@dataclass(frozen=True, slots=True)
class _Missing:
    """A layer that the store has not, its number, and what tells whether it has it now."""

    layer: LayerOffer
    number: int
    is_there: Callable[[], bool]


class _Fetcher:
    """Fetches files of layers, some at once; within ``with``.

    Parameters
    ----------
    layout
        The store.
    registry
        Where they come from.
    count
        How many layers the image has.
    progress
        Is told how far it has come.
    """

    def __init__(
        self,
        layout: Layout,
        registry: Registry,
        count: int,
        progress: Callable[[Progress], object] | None,
    ) -> None:
        self._layout = layout
        self._registry = registry
        self._count = count
        self._progress = progress
        self._uses: Counter[str | None] = Counter()
        self._numbers: dict[str | None, int] = {}
        self._todo: SimpleQueue[_Missing | None] = SimpleQueue()
        self._told: SimpleQueue[tuple[LayerOffer, int | Fd | BaseException | None]] = SimpleQueue()
        self._threads: list[Thread] = []
        self._files: dict[str, Fd | None] = {}

    def __enter__(self) -> Self:
        return self

    def start(self, missing: Sequence[_Missing]) -> None:
        """Begin to fetch layers; those of one file need it but once."""
        files = {one.layer.digest: one for one in reversed(missing)}
        self._uses.update(one.layer.digest for one in missing)
        self._numbers.update((digest, one.number) for digest, one in files.items())
        for one in sorted(files.values(), key=attrgetter("number")):
            self._todo.put(one)
        for _ in range(min(_THREADS, len(files))):
            self._todo.put(None)
            # On the list first: an interrupt must not find a thread that nobody ends.
            self._threads.append(Thread(target=self._work, name="isolib-pull", daemon=True))
            self._threads[-1].start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()
        for file in self._files.values():
            if file is not None:
                file.close()
        # After an interrupt, or when the registry has gone, what has come is worth keeping.
        if isinstance(error, Exception) and not isinstance(error, RegistryError):
            for digest in self._uses:
                if digest is not None:
                    discard(self._layout, digest)

    def _end(self) -> None:
        """End the threads: those that fetch still are cut off."""
        self._registry.cancel()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        while not self._told.empty():
            layer, what = self._told.get()
            if layer.digest is not None and not isinstance(what, (int, BaseException)):
                self._files[layer.digest] = what

    # In threads of its own

    def _work(self) -> None:
        while (one := self._todo.get()) is not None:
            try:
                found = self._fetched(one.layer, partial(self._tell, one.layer), one.is_there, wait=False)
            except BaseException as error:  # noqa: BLE001 - raised where it is waited for
                self._told.put((one.layer, error))
                return
            self._told.put((one.layer, found))

    def _tell(self, layer: LayerOffer, done: int) -> None:
        self._told.put((layer, done))

    def _fetched(
        self, layer: LayerOffer, tell: Callable[[int], None], is_there: Callable[[], bool], *, wait: bool
    ) -> Fd | None:
        """Return the file of a layer; None: somebody else fetches it, or has put the layer on record."""
        assert layer.digest is not None  # noqa: S101 - a manifest has it
        if (part := taken_part(self._layout, layer.digest, wait=wait)) is None:
            return None
        with part:
            if is_there():
                part.remove()
                return None
            return fetch(self._registry, part, layer, tell)

    # In the caller's

    def obtain(self, layer: LayerOffer, is_there: Callable[[], bool]) -> None:
        """Have the file of a layer; the caller holds no lock.

        Parameters
        ----------
        layer
            The layer.
        is_there
            Tells whether somebody else has put the layer on record meanwhile.
        """
        assert layer.digest is not None  # noqa: S101 - a manifest has it
        if layer.digest not in self._uses:
            raise StoreDamaged("it was there, and is not any more", f"layers of {layer.digest}")
        while layer.digest not in self._files:
            self._take(*self._told.get())
        if self._files[layer.digest] is None:
            self._files[layer.digest] = self._fetched(layer, partial(self._show, layer), is_there, wait=True)

    def _take(self, layer: LayerOffer, what: int | Fd | BaseException | None) -> None:
        if isinstance(what, BaseException):
            raise what
        if isinstance(what, int):
            self._show(layer, what)
        elif layer.digest is not None:
            self._files[layer.digest] = what

    def _show(self, layer: LayerOffer, done: int) -> None:
        if self._progress is not None:
            number = self._numbers[layer.digest] + 1
            self._progress(Progress(number, self._count, done, layer.size or 0, is_fetched=True))

    def relay(self, progress: Progress) -> None:
        """Pass on how far the unpacking has come, and what the threads have told meanwhile."""
        while not self._told.empty():
            self._take(*self._told.get())
        if self._progress is not None:
            self._progress(progress)

    def has(self, path: str) -> bool:
        """Return whether a file has come."""
        return self._files.get(_digest(path)) is not None

    @contextmanager
    def open(self, path: str) -> Iterator[tuple[Section, int]]:
        """Have a file open that has come, and its size."""
        file = self._files.get(_digest(path))
        if file is None:
            raise StoreDamaged("it was there, and is not any more", f"layers of {_digest(path)}")
        size = os.fstat(file.fileno()).st_size
        yield Section(file.fileno(), 0, size), size

    def give_up(self, layer: LayerOffer) -> None:
        """Drop the file of a layer that is on record; unless another layer has the same."""
        if layer.digest is None or layer.digest not in self._uses:
            return
        self._uses[layer.digest] -= 1
        if not self._uses[layer.digest]:
            file = self._files.get(layer.digest)
            if file is not None:
                file.close()
                self._files[layer.digest] = None
                discard(self._layout, layer.digest)


def _digest(path: str) -> str:
    return path.removeprefix("blobs/").replace("/", ":")
