"""Images leave a store: as an OCI layout, in a tar or a directory, or as ``docker save`` writes them.

The same image makes the same bytes each time.  Its layers' tars are those that came in, to the byte; how they are compressed
is chosen anew, and the manifest names the compressed ones.  So a manifest stays what it was where its layers were compressed in
the way that is chosen, by a program that compresses as this one does; the config, which is what an image is, always does.
"""

from __future__ import annotations

import io
import os
from contextlib import contextmanager, suppress
from errno import EINVAL
from functools import partial
from secrets import token_hex
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, BinaryIO, Final

from isolib._kernel.handle import Fd
from isolib._kernel.hints import typed
from isolib.errors import PlanError, from_errno
from isolib.unionfs.archive import tar
from isolib.unionfs.archive.compression import Compression, new_compressor
from isolib.unionfs.archive.streams import CHUNK, DigestWriter
from isolib.unionfs.entry import Entry, Kind
from isolib.unionfs.images import docker, oci
from isolib.unionfs.images.documents import dump, sha256
from isolib.unionfs.images.members import Section
from isolib.unionfs.images.offers import INDEX, LAYOUT
from isolib.unionfs.store.layers import replayed
from isolib.unionfs.store.records import chain, hex_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from isolib.unionfs.entry import Content, Layer, Pieces
    from isolib.unionfs.images.references import Reference
    from isolib.unionfs.store.records import ImageRecord, Records

__all__ = ["check_compression", "is_docker_archive", "save", "written"]

_VERSION: Final = dump({"imageLayoutVersion": "1.0.0"})
_FORMATS: Final = ("oci", "docker")
_BLOBS: Final = "blobs/sha256"


class _Joined:
    """A content out of pieces."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int = -1, /) -> bytes:
        """Return the next bytes."""
        if not self._rest:
            self._rest = next(self._pieces, b"")
        data, self._rest = (self._rest, b"") if not 0 <= size < len(self._rest) else (self._rest[:size], self._rest[size:])
        return data


class _Blob:
    """A file of what is saved: its name, its size, and how its content is had."""

    def __init__(self, digest: str, size: int, opened: Callable[[], Content]) -> None:
        self.digest = digest
        self.size = size
        self.opened = opened

    @classmethod
    def of(cls, data: bytes) -> _Blob:
        """Return that of a document."""
        return cls(sha256(data), len(data), partial(io.BytesIO, data))


def is_docker_archive(format: str) -> bool:  # noqa: A002 - as users name it
    """Return whether a format is that of Docker, and not OCI's.

    Raises
    ------
    PlanError
        There is none of this name.
    """
    if format not in _FORMATS:
        raise PlanError(f"format: {format!r} is none; there are 'oci' and 'docker'")
    return format == "docker"


def check_compression(compression: str | None) -> Compression:
    """Return how to compress.

    Raises
    ------
    PlanError
        It is no way that images are compressed in.
    """
    ways = {None: Compression.NONE, "none": Compression.NONE, "gzip": Compression.GZIP, "zstd": Compression.ZSTD}
    if compression not in ways:
        raise PlanError(f"compression: {compression!r} is none; there are 'gzip', 'zstd' and None")
    return ways[compression]


def save(
    records: Records,
    record: ImageRecord,
    names: Sequence[Reference],
    path: str,
    *,
    docker_archive: bool,
    compression: Compression,
) -> str | None:
    """Write an image to a file, or into a directory.

    Returns
    -------
    str or None
        The digest of the manifest, where there is one.
    """
    saver = _Saver(records, record, names, compression)
    layers = chain(saver.recorded.diff_ids)
    with records.relying(layers, [record.digest, *filter(None, (record.manifest,))]):
        if os.path.isdir(path):
            if docker_archive:
                raise PlanError(f"path: {path!r} is a directory, which is for the format 'oci'")
            return saver.into(path)
        directory = os.path.dirname(path) or "."
        if docker_archive:
            with written(path) as sink, new_compressor(sink, compression) as packed:
                tar.write(saver.docker(), packed)
            return None
        with _temporary(directory) as spool, written(path) as sink:
            manifest, blobs = saver.blobs(spool)
            tar.write(_layout(blobs, saver.index(manifest)), sink)
            return manifest.digest


class _Saver:
    def __init__(self, records: Records, record: ImageRecord, names: Sequence[Reference], compression: Compression) -> None:
        self._records = records
        self._record = record
        self._names = names
        self._compression = compression
        self._config = records.blob(record.digest)
        self.recorded = records.config(record.digest)

    @property
    def layers(self) -> list[Layer]:
        """What the image consists of."""
        return [self._records.layer(one).layer for one in chain(self.recorded.diff_ids)]

    def _plain(self, layer: Layer) -> Content:
        return _Joined(replayed(self._records, layer))

    def docker(self) -> Pieces:
        """Yield the files of an archive of ``docker save``."""
        layers = {f"{hex_of(layer.diff_id)}.tar": layer for layer in self.layers}
        config = f"{hex_of(self._record.digest)}.json"
        files = {name: _Blob(layer.diff_id, layer.size, partial(self._plain, layer)) for name, layer in layers.items()}
        files[config] = _Blob.of(self._config)
        order = [f"{hex_of(diff_id)}.tar" for diff_id in self.recorded.diff_ids]
        listed = docker.Listed(config, tuple(order), tuple(str(name) for name in self._names))
        files[docker.MANIFEST] = _Blob.of(docker.write_archive([listed]))
        for name in sorted(files):
            yield Entry(name.encode(), Kind.FILE, 0o644, size=files[name].size), files[name].opened()

    def blobs(self, spool: BinaryIO) -> tuple[oci.Descriptor, dict[str, _Blob]]:
        """Return the manifest's descriptor, and all blobs by their digests.

        Parameters
        ----------
        spool
            Takes what is compressed, for its digest must be known before.
        """
        kind = oci.layer_type(self._compression)
        blobs: dict[str, _Blob] = {}
        descriptors = []
        for layer in self.layers:
            blob = _Blob(layer.diff_id, layer.size, partial(self._plain, layer))
            if self._compression is not Compression.NONE:
                blob = self._compressed(layer, spool)
            blobs[blob.digest] = blob
            descriptors.append(oci.Descriptor(kind, blob.digest, blob.size))
        config = _Blob.of(self._config)
        written = self._manifest(oci.Descriptor(oci.CONFIG, config.digest, config.size), descriptors)
        manifest = _Blob.of(written)
        blobs |= {config.digest: config, manifest.digest: manifest}
        kind = oci.type_of_manifest(written)
        return oci.Descriptor(kind, manifest.digest, manifest.size, self.recorded.config.platform), blobs

    def _compressed(self, layer: Layer, spool: BinaryIO) -> _Blob:
        begin = spool.seek(0, os.SEEK_END)
        sink = DigestWriter(spool)
        with new_compressor(sink, self._compression) as packed:
            for data in replayed(self._records, layer):
                packed.write(data)
        return _Blob(sink.digest, sink.size, partial(_part, spool, begin, sink.size))

    def _manifest(self, config: oci.Descriptor, layers: Sequence[oci.Descriptor]) -> bytes:
        if self._record.manifest is not None:
            data = self._records.blob(self._record.manifest)
            known = oci.read_manifest(data, self._record.manifest)
            if [layer.digest for layer in known.layers] == [layer.digest for layer in layers]:
                return data
        return oci.write_manifest(config, layers)

    def index(self, manifest: oci.Descriptor, others: Sequence[oci.Descriptor] = ()) -> bytes:
        """Return the index of a layout that has this image, and others."""
        return oci.write_index([*others, *oci.called(manifest, self._names)])

    def into(self, path: str) -> str:
        """Write an OCI layout into a directory, or add the image to the one that is there."""
        with Fd(_opened(path)) as root, _temporary(path) as spool:
            there = os.listdir(root.fileno())
            if there and LAYOUT not in there:
                raise PlanError(f"path: the directory {path!r} has other things in it, and is no OCI layout")
            manifest, blobs = self.blobs(spool)
            others = oci.read_index(_read(root, INDEX), INDEX) if INDEX in there else ()
            ours = {one.name for one in oci.called(manifest, self._names)}
            kept = [one for one in others if one.digest != manifest.digest and one.name not in ours]
            for directory in ("blobs", _BLOBS):
                _make(root, directory)
            for digest, blob in blobs.items():
                _write(root, f"{_BLOBS}/{hex_of(digest)}", blob.opened())
            _write(root, LAYOUT, io.BytesIO(_VERSION))
            _write(root, INDEX, io.BytesIO(self.index(manifest, kept)))
            return manifest.digest


def _layout(blobs: dict[str, _Blob], index: bytes) -> Pieces:
    for directory in ("blobs", _BLOBS):
        yield Entry(directory.encode(), Kind.DIRECTORY, 0o755), None
    files = {f"{_BLOBS}/{hex_of(digest)}": blob for digest, blob in blobs.items()}
    files |= {LAYOUT: _Blob.of(_VERSION), INDEX: _Blob.of(index)}
    for name in sorted(files):
        yield Entry(name.encode(), Kind.FILE, 0o644, size=files[name].size), files[name].opened()


def _part(file: BinaryIO, offset: int, size: int) -> Content:
    file.flush()
    return Section(file.fileno(), offset, size)


def _opened(path: str) -> int:
    with typed(path):
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _make(root: Fd, name: str) -> None:
    try:
        os.mkdir(name, 0o777, dir_fd=root.fileno())
    except FileExistsError:
        pass
    except OSError as error:
        raise from_errno("mkdirat", name, error.errno or EINVAL) from None


def _read(root: Fd, name: str) -> bytes:
    with typed(name), open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=root.fileno()), "rb") as file:
        return file.read()


def _write(root: Fd, name: str, content: Content) -> None:
    """Write a file in a layout, in one step."""
    new = f"{os.path.dirname(name)}/.{token_hex(8)}".lstrip("/")
    here = root.fileno()
    with typed(name):
        try:
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=here), "wb") as file:
                while data := content.read(CHUNK):
                    file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(new, name, src_dir_fd=here, dst_dir_fd=here)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(new, dir_fd=here)


@contextmanager
def _temporary(directory: str) -> Iterator[BinaryIO]:
    """Have a file without a name, on the file system of a directory."""
    with typed(directory):
        file = TemporaryFile(dir=directory)  # noqa: SIM115 - what the block raises is not about this
    with file:
        yield file


@contextmanager
def written(path: str) -> Iterator[BinaryIO]:
    """Write a file, which is there at the end of the block, whole, or not at all."""
    new = f"{path}.{token_hex(4)}"
    try:
        with typed(path), open(new, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with typed(path):
            os.rename(new, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(new)
