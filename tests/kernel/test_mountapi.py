"""Paths that cannot lead out of a root, and detached mounts, as Python itself uses them."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib._kernel import assembly, calls, mountapi
from isolib.errors import SyscallError
from isolib.types import IdMap

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def opened(path: Path | str) -> Iterator[int]:
    """Open a directory for the block."""
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a root with links that lead out of it, and something outside."""
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "passwd").write_text("inside")
    (tmp_path / "passwd").write_text("outside")
    for name, to in (
        ("absolute", "/etc"),
        ("relative", "../../../../etc"),
        ("dangling", "/nowhere"),
        ("loop", "loop"),
        ("magic", "/proc/self/root"),
    ):
        (root / name).symlink_to(to)
    return root


class TestOpenInRoot:
    @pytest.mark.parametrize("path", ["etc/passwd", "/etc/passwd", "absolute/passwd", "relative/passwd", "../../etc/passwd"])
    def test_stays_inside(self, root: Path, path: str) -> None:
        """Every way to a file leads to the one inside."""
        with opened(root) as base:
            fd = mountapi.open_in_root(base, path, os.O_RDONLY)
        with open(fd, encoding="ascii") as file:
            assert file.read() == "inside"
            assert not os.get_inheritable(file.fileno())

    @pytest.mark.parametrize(
        ("path", "code"), [("dangling", errno.ENOENT), ("loop", errno.ELOOP), ("etc/passwd/x", errno.ENOTDIR)]
    )
    def test_refused(self, root: Path, path: str, code: int) -> None:
        """What leads nowhere is an error that names the path."""
        with opened(root) as base, pytest.raises(SyscallError) as caught:
            mountapi.open_in_root(base, path)
        assert (caught.value.op, caught.value.errno, caught.value.target) == ("openat2", code, path)

    def test_magic_link(self) -> None:
        """A magic link is not followed, not even within the root."""
        with opened("/") as base, pytest.raises(SyscallError) as caught:
            mountapi.open_in_root(base, "/proc/self/root/etc")
        assert caught.value.errno == errno.ELOOP

    def test_while_others_rename(self, root: Path) -> None:
        """It does not fail because something is being renamed meanwhile."""
        (root / "a").mkdir()
        (root / "b").mkdir()
        stop = threading.Event()
        libc = ctypes.CDLL(None)
        names = os.fsencode(root / "a"), os.fsencode(root / "b")
        turns, renamed = 0, 0

        def rename() -> None:
            nonlocal renamed
            while not stop.is_set() and libc.renameat2(-100, names[0], -100, names[1], 2) == 0:
                renamed += 1

        thread = threading.Thread(target=rename)
        thread.start()
        try:
            with opened(root) as base:
                while turns < 500 or (renamed < 100 and thread.is_alive()):
                    fd = mountapi.open_in_root(base, "absolute/../../absolute/../etc/passwd")
                    found = os.fstat(fd)
                    os.close(fd)
                    assert os.path.samestat(found, (root / "etc" / "passwd").stat())
                    turns += 1
        finally:
            stop.set()
            thread.join()
        assert renamed >= 100


class TestMakeDirectories:
    def test_made(self, root: Path) -> None:
        """What is absent is made, inside, with the mode that was asked for; what is there is kept."""
        with opened(root) as base:
            for _ in range(2):
                fd = mountapi.make_directories(base, "/absolute/deep//./down", 0o750)
                os.close(fd)
        assert stat.S_IMODE((root / "etc" / "deep" / "down").stat().st_mode) == 0o750
        assert not os.path.exists("/etc/deep")

    @pytest.mark.parametrize("path", ["dangling/x", "loop/x", "etc/passwd", "etc/passwd/x"])
    def test_refused(self, root: Path, path: str) -> None:
        """A dangling link is not filled in, a file is no directory; nothing is made outside, no descriptor is left."""
        with opened(root) as base, pytest.raises(SyscallError):
            mountapi.make_directories(base, path)
        assert not os.path.exists("/nowhere")

    def test_root_itself(self, root: Path) -> None:
        """An empty path is the root."""
        with opened(root) as base:
            fd = mountapi.make_directories(base, "/")
        assert os.path.samestat(os.fstat(fd), root.stat())
        os.close(fd)


class TestKind:
    def test_kinds(self, root: Path) -> None:
        """The type of what lies at a path is told, None where nothing can be found."""
        found = {
            path: mountapi.kind_in_root(str(root), path) for path in ("absolute/passwd", "relative", "", "dangling", "loop")
        }
        assert found == {
            "absolute/passwd": stat.S_IFREG,
            "relative": stat.S_IFDIR,
            "": stat.S_IFDIR,
            "dangling": None,
            "loop": None,
        }
        assert mountapi.kind_in_root(str(root / "absent"), "x") is None


@pytest.mark.root
class TestDetached:
    def test_new_mount(self) -> None:
        """A file system can be made and used without being mounted anywhere."""
        options = {"size": "1M", "nr_inodes": "4", "mode": "700"}
        with opened_fd(mountapi.new_mount("tmpfs", options, attributes=calls.MOUNT_ATTR_NODEV)) as mount:
            os.mkdir("a", dir_fd=mount)
            assert stat.S_ISDIR(os.stat("a", dir_fd=mount).st_mode)
            assert stat.S_IMODE(os.fstat(mount).st_mode) == 0o700

    def test_refused_option(self) -> None:
        """An option that the file system does not know is named."""
        with pytest.raises(SyscallError) as caught:
            mountapi.new_mount("tmpfs", {"colour": "red"})
        assert (caught.value.op, caught.value.target) == ("fsconfig", "colour")

    def test_clone_is_read_only(self, root: Path) -> None:
        """A clone has the attributes that were asked for; its original has not."""
        clone = mountapi.clone_tree(str(root), attributes=calls.MOUNT_ATTR_RDONLY)
        with opened_fd(clone) as mount, pytest.raises(OSError, match="Read-only"):
            os.mkdir("new", dir_fd=mount)
        (root / "new").mkdir()

    def test_attach(self, root: Path) -> None:
        """A detached mount is attached onto what a descriptor is open on, in the mount namespace of the thread."""

        def inside() -> list[str]:
            with opened(root) as base, opened_fd(mountapi.make_directories(base, "absolute/place")) as place:
                with opened_fd(mountapi.new_mount("tmpfs")) as mount:
                    os.mkdir("seen", dir_fd=mount)
                    mountapi.attach(mount, place, "absolute/place")
                return os.listdir(root / "etc" / "place")

        with isolib.new_mntns() as namespace:
            assert namespace.run(inside) == ["seen"]
        assert os.listdir(root / "etc" / "place") == []

    def test_id_map(self, root: Path) -> None:
        """Ids of a clone can be mapped, where the file system takes it, and that is found out by trying."""
        userns = assembly.userns_fd((IdMap(0, 5000),), (IdMap(0, 6000),))
        assert mountapi.takes_id_map(str(root), userns)
        assert not mountapi.takes_id_map("/proc", userns)
        assert not mountapi.takes_id_map(str(root / "absent"), userns)
        with opened_fd(mountapi.clone_tree(str(root), userns=userns)) as mount:
            status = os.stat("etc", dir_fd=mount)
        assert (status.st_uid, status.st_gid) == (5000, 6000)


@contextmanager
def opened_fd(fd: int) -> Iterator[int]:
    """Close a descriptor after the block."""
    try:
        yield fd
    finally:
        os.close(fd)
