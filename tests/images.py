"""Images of the tests' own, made by hand with the standard library: as others would make them, and as nobody should."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from isolib.unionfs.images.config import Platform

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"


def digest(data: bytes) -> str:
    """Return the digest of bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def layer(files: Mapping[str, bytes | None]) -> bytes:
    """Return the tar of a layer; None: a directory.  Names come more than once with spaces at their end."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name.rstrip(" "))
            info.mode = 0o755 if data is None else 0o644
            info.mtime = 1_700_000_000
            info.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            info.size = len(data or b"")
            tar.addfile(info, io.BytesIO(data or b""))
    return out.getvalue()


@dataclass
class Draft:
    """What an image is made of."""

    layers: Sequence[bytes]
    platform: Platform = field(default_factory=Platform.host)
    run: Mapping[str, Any] = field(default_factory=dict)
    compress: Callable[[bytes], bytes] | None = None

    @property
    def config(self) -> bytes:
        """The config."""
        told = {
            "architecture": self.platform.architecture,
            "os": self.platform.os,
            "config": dict(self.run),
            "rootfs": {"type": "layers", "diff_ids": [digest(one) for one in self.layers]},
            "history": [{"created_by": f"step {number}"} for number, _ in enumerate(self.layers)],
        }
        return json.dumps(told).encode()

    @property
    def digest(self) -> str:
        """What it is."""
        return digest(self.config)

    def blobs(self) -> tuple[bytes, dict[str, bytes]]:
        """Return the manifest, and all files by their digests."""
        packed = [one if self.compress is None else self.compress(one) for one in self.layers]
        kind = LAYER if self.compress is None else f"{LAYER}+gzip"
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": {"mediaType": CONFIG, "digest": self.digest, "size": len(self.config)},
                "layers": [{"mediaType": kind, "digest": digest(one), "size": len(one)} for one in packed],
            }
        ).encode()
        return manifest, {digest(one): one for one in (*packed, self.config, manifest)}


def described(data: bytes, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever JSON has
    """Return the descriptor of a manifest."""
    return {"mediaType": MANIFEST, "digest": digest(data), "size": len(data), **more}


def layout(*drafts: tuple[str, Draft], index: Callable[[list[Any]], list[Any]] | None = None) -> dict[str, bytes]:
    """Return the files of an OCI layout of images, each with the name that its annotation has."""
    files: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}
    listed = []
    for name, draft in drafts:
        manifest, blobs = draft.blobs()
        files |= {f"blobs/{one.replace(':', '/')}": data for one, data in blobs.items()}
        notes = {"annotations": {"org.opencontainers.image.ref.name": name}} if name else {}
        listed.append(described(manifest, **notes))
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": listed if index is None else index(listed)}).encode()
    return files


def written(files: Mapping[str, bytes], path: Path) -> Path:
    """Write files into a directory."""
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def packed(files: Mapping[str, bytes], path: Path, *, links: Mapping[str, str] | None = None, compress: bool = False) -> Path:
    """Write files, and symbolic links, into a tar."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    path.write_bytes(gzip.compress(out.getvalue(), 1) if compress else out.getvalue())
    return path


def content(root: str) -> dict[str, tuple[int, str]]:
    """Return what is in a tree: modes, and contents or targets of links, by path."""
    found = {}
    for directory, names, files in os.walk(root):
        for name in (*names, *files):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            text = ""
            if os.path.islink(path):
                text = os.readlink(path)
            elif os.path.isfile(path):
                with open(path, "rb") as file:
                    text = digest(file.read())
            found[os.path.relpath(path, root)] = (status.st_mode, text)
    return found
