"""Images: what was put together once, is never changed, and is called by its digest."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from isolib.errors import ImageNotFound, PlanError, StoreDamaged
from isolib.types import check_path
from isolib.unionfs.drivers.base import Form
from isolib.unionfs.images.buildable import Buildable
from isolib.unionfs.images.references import Reference, is_digest
from isolib.unionfs.images.saving import check_compression, is_docker_archive, save
from isolib.unionfs.rooted import Rooted, ids_of
from isolib.unionfs.store.records import Standing, chain, hex_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from isolib._kernel.assembly import Scene
    from isolib.unionfs.entry import Layer
    from isolib.unionfs.images.config import History, ImageConfig
    from isolib.unionfs.stays import Stay
    from isolib.unionfs.store.records import ImageRecord, Records

__all__ = ["Image", "find", "find_digest", "opened_image"]

_PREFIX: Final = re.compile(r"(?:sha256:)?([0-9a-f]{4,64})")
_SHOWN: Final = 12


@dataclass(frozen=True, slots=True, repr=False)
class Image(Rooted, Buildable):
    """An image in a store.

    It is a value: it does not change, and it is equal to another of the same digest.  What can change is what the store calls
    it, and whether it is there any more.  A pickled one names the directory of its store, which must be there when it is read.

    As ``root=`` of `isolib.spawn`, `isolib.run` and `isolib.Sandbox` it is the root of a process, with a layer above it that
    takes what is written and goes with the process.  What `config` says of the command, the environment, the user and the
    working directory is for who starts it to give: ``isolib.run(image.config.entrypoint + image.config.cmd, root=image)``.

    Attributes
    ----------
    digest
        Of its config, which names all its layers: what the image is, whatever format it came in.  Docker and Podman call it the
        image's id.
    config
        How it wants to be run, and what it is for.
    history
        How it came to be, the oldest step first.
    layers
        What it consists of, the lowest first.
    """

    digest: str
    config: ImageConfig = field(compare=False)
    history: tuple[History, ...] = field(compare=False)
    layers: tuple[Layer, ...] = field(compare=False)
    _records: Records = field(compare=False)

    @property
    def names(self) -> tuple[str, ...]:
        """What the store calls it now, sorted."""
        return tuple(sorted(map(str, self._references())))

    def _references(self) -> list[Reference]:
        return sorted((name for name, image in self._records.names().items() if image == self.digest), key=str)

    @property
    def manifest_digest(self) -> str | None:
        """The digest of the manifest that it came with, which is what registries call it by; None where it came with none.

        A manifest names the layers as they are compressed, so an image can come with several; it is that of the last time.
        """
        return self._records.image(self.digest).manifest

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        format: str = "oci",  # noqa: A002 - what it is
        compression: str | None = None,
    ) -> str | None:
        """Write it to a file for others.

        The same image makes the same bytes each time, and loading them gives an image of the same digest: the tars of its
        layers are, to the byte, those that it came with.

        Parameters
        ----------
        path
            The file, which is replaced in one step when all is written.  Where it is a directory, an OCI layout is written into
            it, or the image is added to the one that is there.
        format
            ``"oci"``: an OCI layout in a tar, or in a directory.  ``"docker"``: what ``docker save`` writes.
        compression
            ``"gzip"``, ``"zstd"`` or None: of each layer in an OCI layout, of the whole in the other.

        Returns
        -------
        str or None
            The digest of the manifest that was written.  It names the layers as they are compressed, so it is that of the
            image's manifest as it came only where they are the same to the byte: uncompressed ones always are.  None for
            ``"docker"``.

        Raises
        ------
        PlanError
            There is no such format or compression.
        StoreDamaged
            A layer is not any more what it was; nothing is written.
        SyscallError
            The file cannot be written.
        """
        where, way = check_path(path, "path"), check_compression(compression)
        docker = is_docker_archive(format)
        record = self._records.image(self.digest)
        return save(self._records, record, self._references(), where, docker_archive=docker, compression=way)

    def tag(self, name: str) -> None:
        """Call it by a name; where another image has it, that one loses it.

        Parameters
        ----------
        name
            ``[registry/]path[:tag]``; without a tag, ``latest`` is meant.

        Raises
        ------
        PlanError
            It is no name.
        ImageNotFound
            The image is not in the store any more.
        """
        self._records.add_name(_plain(name), self.digest)

    def untag(self, name: str) -> None:
        """Take a name from it; the image stays.

        Raises
        ------
        ImageNotFound
            It has no such name.
        """
        self._records.remove_name(_plain(name), self.digest)

    def remove(self) -> None:
        """Take it out of the store, with all its names.

        Layers that nothing else needs stay until `Store.gc`; trees that stand on it are not disturbed.

        Raises
        ------
        ImageNotFound
            It is not in the store any more.
        """
        self._records.remove_image(self.digest)

    # ---- as a root ----

    def lend(self, scene: Scene) -> Stay:
        """Return a tree of its own for one process (for the modules that compose; `isolib.spawn` and others take ``root=``).

        Raises
        ------
        ImageNotFound
            It is not in the store any more.
        """
        from isolib.unionfs.store.tree import lend_new  # noqa: PLC0415 - a tree knows of images

        self._records.image(self.digest)
        return lend_new(self._records, Standing(self.digest, tuple(one.chain_id for one in self.layers)), ids_of(scene))

    def own_map(self) -> str | None:
        """Return the id map that a process with this root needs, where it is not the usual one."""
        return self._records.driver.own_map()

    def kind(self, name: str) -> int | None:
        """Return the type of what lies at a name in its top directory; None: nothing."""
        self._records.image(self.digest)
        driver = self._records.driver
        for one in reversed(self.layers):
            with driver.open_layer(hex_of(one.chain_id)) as layer:
                try:
                    found = os.stat(name, dir_fd=layer.fileno(), follow_symlinks=False)
                except FileNotFoundError:
                    if driver.form is Form.MERGED:
                        return None
                    continue
                return None if stat.S_ISCHR(found.st_mode) and not found.st_rdev else stat.S_IFMT(found.st_mode)
        return None

    def told(self) -> str:
        """Return what it is, for people."""
        name = next(iter(self.names), self.digest[: len("sha256:") + _SHOWN])
        return f"the image {name}, with a writable layer that goes with the process"

    def __reduce__(self) -> tuple[object, ...]:
        return _again, (self._records.layout.path, self.digest)

    def __repr__(self) -> str:
        count = len(self.layers)
        return (
            f"<Image {self.digest[: len('sha256:') + _SHOWN]} of {count} layer{'s' * (count != 1)} for {self.config.platform}>"
        )


def _plain(name: str) -> Reference:
    reference = Reference.parse(name)
    if reference.digest is not None:
        raise PlanError(f"name: {name!r}: an image has its digest already; a name is given without")
    return reference


def opened_image(records: Records, digest: str) -> Image:
    """Return an image that is on record.

    Raises
    ------
    ImageNotFound
        It is not.
    """
    records.image(digest)
    recorded = records.config(digest)
    layers = tuple(records.layer(one).layer for one in chain(recorded.diff_ids))
    return Image(digest, recorded.config, recorded.history, layers, records)


def _again(path: str, digest: str) -> Image:
    """Return an image that was pickled."""
    from isolib.unionfs.store.founding import open_records  # noqa: PLC0415 - a store knows of images

    return opened_image(open_records(path, existing=True), digest)


def find(records: Records, text: str) -> Image:
    """Return the image of a name, a digest, or the beginning of one; as `find_digest`."""
    return opened_image(records, find_digest(records, text))


def find_digest(records: Records, text: str) -> str:
    """Return the digest of the image of a name, a digest, or the beginning of one; the image may be damaged.

    Raises
    ------
    PlanError
        It is none of these.
    ImageNotFound
        There is none, or several whose digests begin so.
    """
    if not is_digest(text):
        match = _PREFIX.fullmatch(str(text))
        try:
            reference = Reference.parse(text)
        except PlanError:
            if match is None:
                raise
        else:
            found = records.named(reference)
            if found is None and reference.digest is not None:
                return _by_prefix(records, text, reference.digest)
            if found is not None:
                return found
        if match is None:
            raise ImageNotFound(f"no image is called {text}")
        return _by_prefix(records, text, f"sha256:{match[1]}")
    return _by_prefix(records, text, text)


def _by_prefix(records: Records, text: str, prefix: str) -> str:
    found = {digest for digest in records.images() if _has(records.image, digest, prefix)}
    if len(found) > 1:
        raise ImageNotFound(f"{text}: the digests of {len(found)} images begin so")
    if not found:
        raise ImageNotFound(f"no image is called {text}, and none has such a digest")
    return found.pop()


def _has(record: Callable[[str], ImageRecord], digest: str, prefix: str) -> bool:
    try:
        return digest.startswith(prefix) or (record(digest).manifest or "").startswith(prefix)
    except (ImageNotFound, StoreDamaged):  # removed just now; or it is not this one that is asked for
        return False
