"""The overlay that is made in one call is the one that is made step by step."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from isolib import new_overlay
from isolib.unionfs.overlays import stacking

if TYPE_CHECKING:
    from pathlib import Path

    from isolib.unionfs.overlays.overlay import OverlayMount


def _seen(mount: OverlayMount) -> tuple[object, ...]:
    """Return what tells one mount from another."""
    assert mount.upper is not None
    upper, root, space = os.stat(mount.upper), os.stat(mount.path), os.statvfs(mount.path)
    attributes = {name: os.getxattr(mount.upper, name) for name in os.listxattr(mount.upper) if name.startswith("user.one")}
    with open(f"{mount.path}/new", "wb") as file:
        file.write(b"new")
    os.unlink(f"{mount.path}/old")
    return (
        (upper.st_mode, upper.st_uid, upper.st_gid, root.st_mode, root.st_uid, root.st_gid, root.st_mtime_ns),
        attributes,
        (space.f_blocks, space.f_files, space.f_flag),
        mount.form,
        mount.changes(),
    )


@pytest.mark.parametrize("kind", ["plain", "closed", "attributes", "sticky"])
def test_the_same_in_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Owner, mode, time and attributes of the topmost directory, room, flags and what is written are the same in both ways."""
    top, base = tmp_path / "top", tmp_path / "base"
    top.mkdir()
    base.mkdir()
    (base / "old").write_bytes(b"old")
    if os.geteuid() == 0:
        os.chown(top, 12, 34)
    if kind == "attributes":
        os.setxattr(top, "user.one", b"1")
    top.chmod({"closed": 0o700, "sticky": 0o1777}.get(kind, 0o755))
    os.utime(top, ns=(10**18, 10**18 + 1))

    def make() -> tuple[object, ...]:
        with new_overlay(top, base, size="1M", noexec=True) as mount:
            return _seen(mount)

    monkeypatch.setattr(stacking, "_direct", {})
    step_by_step = make()  # nothing is known of the kernel
    assert make() == step_by_step
