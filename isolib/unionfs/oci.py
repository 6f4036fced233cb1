"""Documents of the OCI image specification: what refers to what.

An *index* lists manifests, one for each platform; a *manifest* names a config and the blobs of the layers.  Each names others by
*descriptors*: type, digest and size.  Docker's own formats of the same (schema 2) differ in the types alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from isolib.errors import ArchiveError
from isolib.unionfs.config import Platform
from isolib.unionfs.documents import Document, dump
from isolib.unionfs.references import is_digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["Descriptor", "Manifest", "choose", "read_index", "read_manifest", "write_index", "write_manifest"]

INDEX: Final = "application/vnd.oci.image.index.v1+json"
MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG: Final = "application/vnd.oci.image.config.v1+json"
LAYER: Final = "application/vnd.oci.image.layer.v1.tar"

_INDEXES: Final = frozenset({INDEX, "application/vnd.docker.distribution.manifest.list.v2+json"})
_MANIFESTS: Final = frozenset({MANIFEST, "application/vnd.docker.distribution.manifest.v2+json"})
_CONFIGS: Final = frozenset({CONFIG, "application/vnd.docker.container.image.v1+json"})
_LAYERS: Final = frozenset(
    {
        *(f"{LAYER}{suffix}" for suffix in ("", "+gzip", "+zstd")),
        *(f"application/vnd.docker.image.rootfs.diff.tar{suffix}" for suffix in ("", ".gzip", ".zstd")),
    }
)
_ELSEWHERE: Final = ("nondistributable", "foreign")
#: How a layer is compressed, by what its type ends with.
SUFFIXES: Final = {None: "", "gzip": "+gzip", "zstd": "+zstd"}

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
        if layer.media_type not in _LAYERS:
            why = " (its content is to be had elsewhere)" if any(word in layer.media_type for word in _ELSEWHERE) else ""
            raise ArchiveError(f"a layer of the type {layer.media_type[:80]!r}, which is not known here{why}", layer.digest)
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
