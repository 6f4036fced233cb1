"""A store on each file system that it may lie on: all that it does, once, for root and for an ordinary user."""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib.unionfs import Change, ChangeKind
from tests.images import Draft, content, layer, layout, packed
from tests.storage import disk
from tests.stores import check

if TYPE_CHECKING:
    from tests.conftest import Account

#: Drivers, and the file systems that each is tried on; an ordinary user's are those of "vfs".
PLACES = [
    *((driver, kind) for driver in ("overlay", "vfs") for kind in ("ext4", "xfs", "btrfs", "tmpfs")),
    ("btrfs", "btrfs"),
]
SIZE = {"xfs": 300 << 20}


def draft() -> Draft:
    """Return an image of two layers whose owner is who runs this."""
    lower = layer({"etc": None, "etc/motd": b"hello\n", "etc/gone": b"x", "bin": None, "bin/sh": b"#!" * 5000})
    return Draft([lower, layer({"etc": None, "etc/motd": b"changed\n", "etc/.wh.gone": b"", "new": None, "new/file": b"new"})])


def used(place: str, driver: str) -> None:
    """Load, check out, change, commit, reset, verify, save, collect and load again, in stores in a directory."""
    image_path = packed(layout(("app:1", draft())), Path(place, "image.tar"))
    with isolib.open_store(f"{place}/store", driver=driver) as store:
        image = store.load(image_path)
        assert store.load(image_path) == image
        with store.checkout(image) as tree:
            top = Path(tree.path)
            assert content(tree.path).keys() == {"etc", "etc/motd", "bin", "bin/sh", "new", "new/file"}
            (top / "new/file").rename(top / "etc/file")
            (top / "bin/sh").chmod(0o700)
            os.link(top / "etc/file", top / "etc/other")
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
        with isolib.open_store(f"{place}/other", driver=driver) as other:
            again = other.load(f"{place}/saved.tar")
            assert again == made
            with other.checkout(again) as tree:
                assert content(tree.path) == expected
                status, same = (os.stat(f"{tree.path}/etc/{name}") for name in ("file", "other"))
                assert status.st_ino == same.st_ino
                assert os.getxattr(f"{tree.path}/etc/motd", "user.name") == b"value"
                assert os.stat(f"{tree.path}/etc/motd").st_mtime_ns == 1_234_567_890_123_456_789
            check(other)
        made.remove()
        assert {*store.gc().layers} == {one.chain_id for one in made.layers}
        assert store.images() == ()
        check(store)


@pytest.mark.root
@pytest.mark.parametrize(("driver", "kind"), PLACES)
def test_all_that_a_store_does(driver: str, kind: str) -> None:
    """On each file system an image is loaded, changed, committed, reset, verified, saved, collected and loaded elsewhere."""
    with disk(kind, size=SIZE.get(kind, 128 << 20)) as there:
        used(there.path, driver)


@pytest.mark.root
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs"])
def test_all_that_an_ordinary_user_s_store_does(kind: str, tmp_path: Path, ordinary_user: Account) -> None:
    """The same for an ordinary user, on file systems that only root could mount."""
    used(str(tmp_path), "vfs")  # what is imported, is
    with disk(kind, size=SIZE.get(kind, 128 << 20)) as there:
        place = f"{there.path}/user"
        os.mkdir(place, 0o700)
        os.chown(place, ordinary_user.uid, ordinary_user.gid)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.setgroups([])
                os.setresgid(ordinary_user.gid, ordinary_user.gid, ordinary_user.gid)
                os.setresuid(ordinary_user.uid, ordinary_user.uid, ordinary_user.uid)
                used(place, "vfs")
                status = 0
            except BaseException:  # noqa: BLE001 - the parent is told by the status
                traceback.print_exc()
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.unprivileged
def test_all_that_a_store_does_here(tmp_path: Path) -> None:
    """The same for an ordinary user where his temporary files are."""
    used(str(tmp_path), "vfs")
