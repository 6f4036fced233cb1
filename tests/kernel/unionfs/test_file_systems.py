"""A store on each file system that it may lie on: all that it does, once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import isolib
from isolib.unionfs import Change, ChangeKind
from tests.images import Draft, content, layer, layout, packed
from tests.storage import disk
from tests.stores import check, driver

__all__ = ["driver"]

#: Drivers, and the file systems that each is tried on.
PLACES = [
    *((driver, kind) for driver in ("overlay", "vfs") for kind in ("ext4", "xfs", "btrfs", "tmpfs")),
    ("btrfs", "btrfs"),
]
SIZE = {"xfs": 300 << 20}


def draft() -> Draft:
    """Return an image of two layers whose owner is who runs this."""
    lower = layer({"etc": None, "etc/motd": b"hello\n", "etc/gone": b"x", "bin": None, "bin/sh": b"#!" * 5000})
    return Draft([lower, layer({"etc": None, "etc/motd": b"changed\n", "etc/.wh.gone": b"", "new": None, "new/file": b"new"})])


def has_attributes(path: Path) -> bool:
    """Return whether files have attributes of users: in memory they do since Linux 6.6."""
    try:
        os.setxattr(path, "user.name", b"value")
    except OSError:
        return False
    return True


def used(place: str, kind: str) -> None:
    """Load, check out, change, commit, reset, verify, save, collect and load again, in stores in a directory."""
    image_path = packed(layout(("app:1", draft())), Path(place, "image.tar"))
    marked = has_attributes(image_path)
    with isolib.open_store(f"{place}/store", driver=kind) as store:
        image = store.load(image_path)
        assert store.load(image_path) == image
        with store.checkout(image) as tree:
            top = Path(tree.path)
            assert content(tree.path).keys() == {"etc", "etc/motd", "bin", "bin/sh", "new", "new/file"}
            (top / "new/file").rename(top / "etc/file")
            (top / "bin/sh").chmod(0o700)
            os.link(top / "etc/file", top / "etc/other")
            if marked:
                os.setxattr(top / "etc/motd", "user.name", b"value")
            os.utime(top / "etc/motd", ns=(1, 1_234_567_890_123_456_789))
            added, modified, deleted = ChangeKind.ADDED, ChangeKind.MODIFIED, ChangeKind.DELETED
            kinds = {"/bin/sh": modified, "/etc/file": added, "/etc/motd": modified, "/etc/other": added, "/new/file": deleted}
            assert tree.changes() == [Change(path, kind) for path, kind in kinds.items()]
            tree.snapshot("first")
            made = tree.commit("all of it", tag="made:1")
            Path(tree.path, "junk").write_bytes(bytes(100_000))
            tree.reset()
            assert tree.changes() == []
            expected = content(tree.path)
        assert store.verify() == ()
        made.save(f"{place}/saved.tar", compression="gzip")
        image.remove()
        assert store.gc().layers == ()
        with isolib.open_store(f"{place}/other", driver=kind) as other:
            again = other.load(f"{place}/saved.tar")
            assert again == made
            with other.checkout(again) as tree:
                assert content(tree.path) == expected
                status, same = (os.stat(f"{tree.path}/etc/{name}") for name in ("file", "other"))
                assert status.st_ino == same.st_ino
                assert not marked or os.getxattr(f"{tree.path}/etc/motd", "user.name") == b"value"
                assert os.stat(f"{tree.path}/etc/motd").st_mtime_ns == 1_234_567_890_123_456_789
            check(other)
        made.remove()
        assert {*store.gc().layers} == {one.chain_id for one in made.layers}
        assert store.images() == ()
        check(store)


@pytest.mark.root
@pytest.mark.parametrize(("name", "kind"), PLACES)
def test_all_that_a_store_does(name: str, kind: str) -> None:
    """On each file system an image is loaded, changed, committed, reset, verified, saved, collected and loaded elsewhere."""
    with disk(kind, size=SIZE.get(kind, 128 << 20)) as there:
        used(there.path, name)


def test_all_that_a_store_does_here(driver: str, tmp_path: Path) -> None:
    """The same where temporary files are, with each driver that works on any file system."""
    used(str(tmp_path), driver)


@pytest.mark.root
def test_layers_without_a_store(tmp_path: Path) -> None:
    """Directories are stacked, written to and told apart, with what this kernel takes of layers."""
    lowers = [tmp_path / f"lower, {number}:" for number in range(30)]
    for number, one in enumerate(lowers):
        one.mkdir()
        (one / str(number)).write_text("below")
        (one / "same").write_text(str(number))
    with isolib.new_overlay(*lowers) as merged:
        assert len(os.listdir(merged.path)) == 31
        Path(merged.path, "0").unlink()
        Path(merged.path, "new").write_text("new")
        added, deleted = ChangeKind.ADDED, ChangeKind.DELETED
        assert merged.changes() == [Change("/0", deleted), Change("/new", added)]
    assert (lowers[0] / "0").read_text() == "below"
