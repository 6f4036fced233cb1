"""The images that a source has to offer: what an OCI layout lists, or the archive of ``docker save``."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from isolib.errors import ArchiveError, PlanError
from isolib.unionfs.images import docker, oci
from isolib.unionfs.images.blobs import read
from isolib.unionfs.images.config import Platform, read_config
from isolib.unionfs.images.documents import Document, sha256
from isolib.unionfs.images.references import Reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import TypeAlias

    from isolib.unionfs.images.blobs import Files
    from isolib.unionfs.images.config import Recorded

    #: Returns the bytes that a descriptor is of, compared with its digest and its size.
    Reading: TypeAlias = Callable[[oci.Descriptor], bytes]

__all__ = ["LayerOffer", "Offer", "described", "docker_offers", "manifest_for", "oci_offers"]

LAYOUT: Final = "oci-layout"
INDEX: Final = "index.json"
#: Indexes within indexes.
_DEEPEST: Final = 4


@dataclass(frozen=True, slots=True)
class LayerOffer:
    """The tar of a layer.

    Attributes
    ----------
    path
        Of its file.
    diff_id
        What it must be once it is not compressed any more.
    digest, size
        What the file must be; None where nobody says.
    """

    path: str
    diff_id: str
    digest: str | None = None
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    """One image of a source.

    Attributes
    ----------
    config
        Its config, as it was written.
    recorded
        What that says.
    manifest
        Its manifest, as it was written; None where there is none.
    layers
        Its layers, the lowest first.
    names
        What it is called.
    tag
        What it is called where that is only a tag, or a word: OCI layouts leave it at that.
    """

    config: bytes
    recorded: Recorded
    manifest: bytes | None
    layers: tuple[LayerOffer, ...]
    names: tuple[Reference, ...] = ()
    tag: str = ""

    @property
    def digest(self) -> str:
        """What the image is."""
        return sha256(self.config)


def _path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _names(texts: Iterable[str]) -> tuple[Reference, ...]:
    """Return those that are names; there are archives with ``<none>:<none>``."""
    found: dict[Reference, None] = {}
    for text in texts:
        try:
            found[Reference.parse(text)] = None
        except PlanError:
            continue
    return tuple(found)


def _document(files: Files, descriptor: oci.Descriptor) -> bytes:
    data = read(files, _path(descriptor.digest))
    if len(data) != descriptor.size or sha256(data) != descriptor.digest:
        raise ArchiveError(f"its digest is {sha256(data)}, its size {len(data)}: it is another, or damaged", descriptor.digest)
    return data


def oci_offers(files: Files, platform: Platform | None) -> list[Offer]:
    """Return the images of an OCI layout.

    Parameters
    ----------
    files
        What it consists of.
    platform
        The platform to choose where there are several; None: that of this machine.

    Raises
    ------
    ArchiveError
        Something is missing or damaged, or is of a type that is not known; nothing is for the platform.

    Notes
    -----
    Source: the OCI image specification, image-layout.md.
    """
    layout = Document.read(read(files, LAYOUT), LAYOUT)
    version = layout.text("imageLayoutVersion")
    if version.partition(".")[0] != "1":
        raise ArchiveError(f"version {version[:20]!r} of the layout; 1 is known", LAYOUT)
    document = partial(_document, files)
    return [
        _named(described(document, descriptor, platform), names)
        for descriptor, names in _chosen(document, oci.read_index(read(files, INDEX), INDEX), platform)
    ]


def _chosen(
    document: Reading, found: Sequence[oci.Descriptor], platform: Platform | None
) -> Iterator[tuple[oci.Descriptor, tuple[str, ...]]]:
    """Yield the manifests to load, and what each is called."""
    wanted = platform or Platform.host()
    named: defaultdict[str, list[oci.Descriptor]] = defaultdict(list)
    for one in found:
        if one.is_manifest or one.is_index:
            named[one.name].append(one)
    if not named:
        raise ArchiveError("it lists no image", INDEX)
    names: defaultdict[str, list[str]] = defaultdict(list)
    manifests: dict[str, oci.Descriptor] = {}
    for name, several in named.items():
        # Those of one name are one image for several platforms. Those of none are so when they say for which.
        alone = [several] if name or any(one.platform for one in several) else [[one] for one in several]
        for group in alone:
            one = manifest_for(document, oci.choose(group, wanted, INDEX), wanted)
            manifests[one.digest] = one
            names[one.digest].append(name)
    yield from ((one, tuple(filter(None, names[digest]))) for digest, one in manifests.items())


def manifest_for(document: Reading, descriptor: oci.Descriptor, platform: Platform) -> oci.Descriptor:
    """Return the manifest of a platform: what is given, or what that lists for it.

    Raises
    ------
    ArchiveError
        It lists none, or a list is damaged.
    """
    for _ in range(_DEEPEST):
        if descriptor.is_manifest:
            return descriptor
        listed = oci.read_index(document(descriptor), descriptor.digest)
        fitting = [one for one in listed if one.is_manifest or one.is_index]
        descriptor = oci.choose(fitting, platform, descriptor.digest)
    raise ArchiveError(f"lists of manifests that nest more than {_DEEPEST} levels deep", descriptor.digest)


def described(document: Reading, descriptor: oci.Descriptor, platform: Platform | None) -> Offer:
    """Return the image of a manifest.

    Parameters
    ----------
    document
        Returns the bytes that a descriptor is of.
    descriptor
        The manifest.
    platform
        What it must be for; None: for anything.

    Raises
    ------
    ArchiveError
        The manifest or the config is damaged, or it is not for the platform.
    """
    data = document(descriptor)
    manifest = oci.read_manifest(data, descriptor.digest)
    config = document(manifest.config)
    recorded = _checked(config, manifest.config.digest, len(manifest.layers), platform)
    layers = tuple(
        LayerOffer(_path(layer.digest), diff_id, layer.digest, layer.size)
        for layer, diff_id in zip(manifest.layers, recorded.diff_ids, strict=True)
    )
    return Offer(config, recorded, data, layers)


def _named(offer: Offer, names: Sequence[str]) -> Offer:
    whole = [name for name in names if "/" in name or ":" in name]
    return replace(offer, names=_names(whole), tag=next((name for name in names if name not in whole), ""))


def docker_offers(files: Files, platform: Platform | None) -> list[Offer]:
    """Return the images of an archive of ``docker save``; each is for one platform.

    Raises
    ------
    ArchiveError
        Something is missing or damaged; one is not for the platform.
    """
    listed = docker.read_archive(read(files, docker.MANIFEST))
    if not listed:
        raise ArchiveError("it lists no image", docker.MANIFEST)
    return [_docker_offer(files, one, platform) for one in listed]


def _docker_offer(files: Files, listed: docker.Listed, platform: Platform | None) -> Offer:
    config = read(files, listed.config)
    recorded = _checked(config, listed.config, len(listed.layers), platform)
    layers = tuple(LayerOffer(path, diff_id) for path, diff_id in zip(listed.layers, recorded.diff_ids, strict=True))
    return Offer(config, recorded, None, layers, _names(listed.names))


def _checked(config: bytes, what: str, layers: int, platform: Platform | None) -> Recorded:
    recorded = read_config(config, what)
    if len(recorded.diff_ids) != layers:
        raise ArchiveError(f"it speaks of {len(recorded.diff_ids)} layers, the manifest of {layers}", what)
    if platform is not None and not platform.runs(recorded.config.platform):
        raise ArchiveError(f"it is for {recorded.config.platform}, not for {platform}", what)
    return recorded
