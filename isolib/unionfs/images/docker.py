"""The archive of ``docker save``: a tar of configs and layers, and a manifest that names them by their paths.

Docker, Podman and skopeo have each written it in their own ways: a layer is ``ID/layer.tar``, or a symbolic link to another's,
or ``DIGEST.tar``, or a blob as in an OCI layout.  The manifest tells; nothing is guessed from names.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from isolib.errors import ArchiveError
from isolib.unionfs.images.documents import Document, dump, parse

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["MANIFEST", "Listed", "read_archive", "write_archive"]

MANIFEST: Final = "manifest.json"


@dataclass(frozen=True, slots=True)
class Listed:
    """One image of an archive.

    Attributes
    ----------
    config
        The path of its config.
    layers
        The paths of its layers, the lowest first.
    names
        What it is called.
    """

    config: str
    layers: tuple[str, ...]
    names: tuple[str, ...]


def is_archive(data: bytes) -> bool:
    """Return whether a file of this name is the manifest of an archive: many a root directory has one of its own."""
    try:
        found = parse(data, MANIFEST)
    except ArchiveError:
        return False
    return isinstance(found, list) and all(isinstance(one, dict) and "Config" in one for one in found)


def read_archive(data: bytes) -> tuple[Listed, ...]:
    """Return the images that a manifest lists, in its order."""
    found = parse(data, MANIFEST)
    if not isinstance(found, list):
        raise ArchiveError("a list of images is expected", MANIFEST)
    return tuple(_listed(Document(one, f"{MANIFEST}[{number}]")) for number, one in enumerate(found))


def _listed(document: Document) -> Listed:
    layers = tuple(_path(layer, document) for layer in document.texts("Layers") or ())
    return Listed(_path(document.text("Config"), document), layers, document.texts("RepoTags") or ())


def _path(text: str, document: Document) -> str:
    path = posixpath.normpath(text)
    if not text or path.startswith(("/", "..")) or "\0" in path:
        raise ArchiveError(f"{text[:80]!r} is not the path of a file in the archive", document.what)
    return path


def write_archive(images: Iterable[Listed]) -> bytes:
    """Return the manifest of an archive."""
    return dump([{"Config": image.config, "RepoTags": [*image.names] or None, "Layers": [*image.layers]} for image in images])
