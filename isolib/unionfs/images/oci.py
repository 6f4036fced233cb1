"""Documents of the OCI image specification: what refers to what.

An *index* lists manifests, one for each platform; a *manifest* names a config and the blobs of the layers.  Each names others
by *descriptors*: type, digest and size.  Docker's own formats of the same (schema 2) differ in the types alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from isolib.errors import ArchiveError
from isolib.unionfs.archive.compression import Compression, of_media_type
from isolib.unionfs.images.config import Platform
from isolib.unionfs.images.documents import Document, dump
from isolib.unionfs.images.references import DEFAULT_TAG, is_digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from isolib.unionfs.images.references import Reference

__all__ = [
    "ACCEPTED",
    "Descriptor",
    "Manifest",
    "called",
    "choose",
    "layer_type",
    "read_index",
    "read_manifest",
    "type_of_manifest",
    "write_index",
    "write_manifest",
]

INDEX: Final = "application/vnd.oci.image.index.v1+json"
MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG: Final = "application/vnd.oci.image.config.v1+json"
LAYER: Final = "application/vnd.oci.image.layer.v1.tar"

_INDEXES: Final = frozenset({INDEX, "application/vnd.docker.distribution.manifest.list.v2+json"})
_MANIFESTS: Final = frozenset({MANIFEST, "application/vnd.docker.distribution.manifest.v2+json"})
#: The types of manifests and lists of them that are known here.
ACCEPTED: Final = (*sorted(_INDEXES), *sorted(_MANIFESTS))
_CONFIGS: Final = frozenset({CONFIG, "application/vnd.docker.container.image.v1+json"})
_ELSEWHERE: Final = ("nondistributable", "foreign")
#: What the type of a layer ends with, by how it is compressed.
_SUFFIXES: Final = {Compression.NONE: "", Compression.GZIP: "+gzip", Compression.ZSTD: "+zstd"}

#: The annotation by which an index says what a manifest is called, and the one that Docker and containerd use for whole names.
REF_NAME: Final = "org.opencontainers.image.ref.name"
FULL_NAME: Final = "io.containerd.image.name"
_NO_IMAGE: Final = "vnd.docker.reference.type"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a document says of another, or of a blob.

    Attributes
    ----------
    media_type
        What it is.
    digest, size
        Of its bytes.
    platform
        What it is for; None where that is not said.
    annotations
        Whatever else is said.
    """

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None
    annotations: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def name(self) -> str:
        """What an index calls it; empty: nothing."""
        return self.annotations.get(FULL_NAME) or self.annotations.get(REF_NAME, "")

    @property
    def is_index(self) -> bool:
        """Whether it is a list of manifests."""
        return self.media_type in _INDEXES

    @property
    def is_manifest(self) -> bool:
        """Whether it is an image's manifest, and not that of something that was said of an image."""
        return self.media_type in _MANIFESTS and _NO_IMAGE not in self.annotations

    def told(self) -> dict[str, Any]:
        """Return it as documents write it."""
        told: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.annotations:
            told["annotations"] = dict(self.annotations)
        if self.platform is not None:
            told["platform"] = {"architecture": self.platform.architecture, "os": self.platform.os}
            if self.platform.variant:
                told["platform"]["variant"] = self.platform.variant
        return told


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an image consists of.

    Attributes
    ----------
    config
        Its config.
    layers
        Its layers, the lowest first.
    """

    config: Descriptor
    layers: tuple[Descriptor, ...]


def _descriptor(document: Document) -> Descriptor:
    digest = document.text("digest")
    if not is_digest(digest):
        raise ArchiveError(f"{digest[:80]!r} is no digest of the kind sha256", document.what)
    platform = None
    if document.value.get("platform") is not None:
        told = document.object("platform")
        platform = Platform(told.text("os", ""), told.text("architecture", ""), told.text("variant", ""))
    return Descriptor(document.text("mediaType"), digest, document.number("size"), platform, document.mapping("annotations"))


def _checked(data: bytes, what: str, kinds: frozenset[str], kind: str, other: str) -> Document:
    document = Document.read(data, what)
    version = document.value.get("schemaVersion")
    if version != 2:  # noqa: PLR2004 - of both formats
        raise ArchiveError(f"schemaVersion is {version!r:.60}; 2 alone is known", what)
    told = document.text("mediaType", "")
    if told and told not in kinds:
        raise ArchiveError(f"its type is {told[:80]!r}, not that of {kind}", what)
    if document.value.get(other) is not None:
        # One program would take it for a list of manifests, and another for a manifest (CVE-2021-41190).
        raise ArchiveError(f"{other} has no place in {kind}", what)
    return document


def read_index(data: bytes, what: str) -> tuple[Descriptor, ...]:
    """Return what an index lists, in its order.

    Notes
    -----
    Source: the OCI image specification, image-index.md.
    """
    document = _checked(data, what, _INDEXES, "a list of manifests", "layers")
    return tuple(map(_descriptor, document.objects("manifests")))


def read_manifest(data: bytes, what: str) -> Manifest:
    """Return what a manifest names.

    Raises
    ------
    ArchiveError
        It is not an image's, or has a layer of a type that is unknown, or that is to be had elsewhere.

    Notes
    -----
    Source: the OCI image specification, manifest.md.
    """
    document = _checked(data, what, _MANIFESTS, "a manifest", "manifests")
    config = _descriptor(document.object("config"))
    if config.media_type not in _CONFIGS:
        raise ArchiveError(f"not an image: its config is of the type {config.media_type[:80]!r}", what)
    layers = tuple(map(_descriptor, document.objects("layers")))
    for layer in layers:
        of_media_type(layer.media_type)
        if any(word in layer.media_type for word in _ELSEWHERE):
            raise ArchiveError(
                f"a layer of the type {layer.media_type!r}: it is to be had elsewhere, and not part of the image", what
            )
    return Manifest(config, layers)


def choose(found: Sequence[Descriptor], platform: Platform, what: str) -> Descriptor:
    """Return what an index has for a platform: the first that fits, those of just its variant before others.

    Raises
    ------
    ArchiveError
        There is none.
    """
    fitting = [one for one in found if one.platform is None or platform.runs(one.platform)]
    if not fitting:
        offered = ", ".join(sorted({str(one.platform) for one in found if one.platform})) or "none"
        raise ArchiveError(f"there is nothing for {platform} in it; platforms: {offered}", what)
    return next((one for one in fitting if one.platform is not None and one.platform.plain == platform.plain), fitting[0])


def called(manifest: Descriptor, names: Sequence[Reference]) -> list[Descriptor]:
    """Return what an index says of a manifest that has names: all that is known of it once for each, as Docker does."""
    notes = [{FULL_NAME: name.full, REF_NAME: name.tag or DEFAULT_TAG} for name in names]
    return [replace(manifest, annotations=MappingProxyType(one)) for one in notes] or [manifest]


def type_of_manifest(data: bytes) -> str:
    """Return the type of a manifest that was read."""
    return Document.read(data, "manifest").text("mediaType", MANIFEST)


def layer_type(compression: Compression) -> str:
    """Return the type of a layer that is compressed so."""
    return f"{LAYER}{_SUFFIXES[compression]}"


def write_manifest(config: Descriptor, layers: Iterable[Descriptor]) -> bytes:
    """Return the manifest of an image."""
    return dump(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.told(),
            "layers": [layer.told() for layer in layers],
        }
    )


def write_index(manifests: Iterable[Descriptor]) -> bytes:
    """Return an index."""
    return dump({"schemaVersion": 2, "mediaType": INDEX, "manifests": [one.told() for one in manifests]})
