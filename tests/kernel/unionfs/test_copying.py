"""Copies of whole trees: exact, whatever is in them, and nothing of them outside."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import stat
import struct
import threading
from typing import TYPE_CHECKING

import pytest

from isolib import SyscallError
from isolib._kernel import calls
from isolib._kernel.handle import Fd
from isolib._kernel.mountapi import attach, clone_tree, new_mount
from isolib.unionfs.disk.copying import copy_tree
from tests.storage import disk
from tests.trees import facts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: What security.capability holds (linux/capability.h, VFS_CAP_REVISION_2): cap_net_raw, permitted.
CAPABILITY = struct.pack("<IIIII", 0x02000000, 1 << 13, 0, 0, 0)
#: What system.posix_acl_access holds (linux/posix_acl_xattr.h): user::rw- user:1:r-- group::r-- mask::r-- other::---
ACCESS = struct.pack("<I" + "HHI" * 5, 2, 1, 6, 0xFFFFFFFF, 2, 4, 1, 4, 4, 0xFFFFFFFF, 16, 4, 0xFFFFFFFF, 32, 0, 0xFFFFFFFF)

FILE_SYSTEMS = ["here", "tmpfs", "xfs", "btrfs", "ext4"]


@pytest.fixture(params=FILE_SYSTEMS)
def top(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Return a directory on each file system, with the two directories "old" and "new" in it."""
    with contextlib.ExitStack() as stack:
        path = str(tmp_path) if request.param == "here" else stack.enter_context(disk(request.param)).path
        os.mkdir(f"{path}/old")
        os.mkdir(f"{path}/new")
        yield path


def copy(top: str, threads: int | None = None) -> None:
    """Copy "old" into "new"."""
    with Fd(os.open(f"{top}/old", os.O_RDONLY)) as old, Fd(os.open(f"{top}/new", os.O_RDONLY)) as new:
        copy_tree(old, new, f"{top}/new", threads=threads)


def make(path: str, data: bytes = b"") -> None:
    """Make a file."""
    with open(path, "wb") as file:
        file.write(data)


def remove(top: str, name: str) -> None:
    """Remove a tree."""
    with Fd(os.open(top, os.O_RDONLY)) as base:
        calls.remove_tree(base.fileno(), name, name)


def test_everything_is_as_it_was(top: str) -> None:
    """Files of every kind, with their owners, modes, times, attributes and links, are in the copy as they were."""
    old = f"{top}/old"
    for size in (0, 1, 4096, 65536, 65537, 300_000):
        make(f"{old}/file{size}", os.urandom(size))
    os.symlink("/nowhere/at all", f"{old}/link")
    os.mkfifo(f"{old}/fifo", 0o640)
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(old):
        server.bind("socket")
    os.makedirs(f"{old}/a/b/c")
    os.link(f"{old}/file1", f"{old}/a/b/again")
    os.link(f"{old}/link", f"{old}/a/link again")
    os.mkdir(f"{old}/empty", 0o701)
    os.chmod(f"{old}/file4096", 0o4711)
    make(f"{old}/a/name with\nline feed and \udcff".encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape"))
    for path in (f"{old}/file0", f"{old}/a/b", f"{old}/link", f"{old}/fifo", old):
        os.utime(path, ns=(1_000_000_007, 77), follow_symlinks=False)
    copy(top)
    assert os.stat(f"{top}/new/file0").st_atime_ns == os.lstat(f"{top}/new/link").st_atime_ns == 1_000_000_007
    assert facts(f"{top}/new") == facts(old)


@pytest.mark.root
def test_what_only_root_can_make(top: str) -> None:
    """Owners, devices, capabilities, attributes of every name space and access lists are kept."""
    old = f"{top}/old"
    make(f"{old}/file", b"x")
    os.symlink("x", f"{old}/link")
    os.mkdir(f"{old}/dir", 0o2755)
    os.mknod(f"{old}/whiteout", stat.S_IFCHR, 0)
    os.mknod(f"{old}/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(f"{old}/block", stat.S_IFBLK | 0o600, os.makedev(7, 200))
    for name in ("file", "link", "dir", "whiteout"):
        os.chown(f"{old}/{name}", 1234, 5678, follow_symlinks=False)
    os.chmod(f"{old}/file", 0o6755)
    os.setxattr(f"{old}/file", "security.capability", CAPABILITY)
    os.setxattr(f"{old}/dir", "trusted.overlay.opaque", b"y")
    os.setxattr(f"{old}/link", "trusted.of-a-link", b"value", follow_symlinks=False)
    os.setxattr(f"{old}/file", "user.large", bytes(3000))
    make(f"{old}/listed")
    os.setxattr(f"{old}/listed", "system.posix_acl_access", ACCESS)
    os.setxattr(f"{old}/dir", "system.posix_acl_default", ACCESS)
    before = facts(old)
    copy(top)
    assert facts(f"{top}/new") == before


@pytest.mark.root
def test_lists_of_the_target_are_not_inherited(top: str) -> None:
    """A default access list of the directory that is copied into gets into nothing of the copy."""
    os.setxattr(f"{top}/new", "system.posix_acl_default", ACCESS)
    os.mkdir(f"{top}/old/dir")
    make(f"{top}/old/dir/file")
    before = facts(f"{top}/old")
    copy(top)
    assert facts(f"{top}/new") == before


def test_holes_stay_holes(top: str) -> None:
    """A file of which little is written takes as little room in the copy, and reads the same."""
    with open(f"{top}/old/sparse", "wb") as file:
        for at in (1 << 20, 30 << 20):
            file.seek(at)
            file.write(b"data")
        file.truncate(40 << 20)
    copy(top)
    with open(f"{top}/old/sparse", "rb") as old, open(f"{top}/new/sparse", "rb") as new:
        assert old.read() == new.read()
    assert os.stat(f"{top}/new/sparse").st_blocks * 512 < 1 << 20


def test_many_threads_make_the_same(top: str) -> None:
    """However many threads work at it, large directories, deep ones and links across them are whole."""
    for number in range(3000):
        make(f"{top}/old/{number}", b"%d" % number)
    for number in range(40):
        os.mkdir(f"{top}/old/d{number}")
        for each in range(20):
            os.link(f"{top}/old/{number * 20 + each}", f"{top}/old/d{number}/{each}")
    before = facts(f"{top}/old")
    for threads in (1, 2, 8):
        copy(top, threads)
        assert facts(f"{top}/new") == before
        remove(top, "new")
        os.mkdir(f"{top}/new")


def test_how_deep_a_tree_is_does_not_matter(tmp_path: Path) -> None:
    """A tree deeper than a path can be long, and than there may be descriptors, is copied and removed."""
    os.mkdir(tmp_path / "old")
    os.mkdir(tmp_path / "new")
    depth = deepen(tmp_path / "old", 1200)
    copy(str(tmp_path))
    assert deepen(tmp_path / "new", 0) == depth
    remove(str(tmp_path), "old")
    remove(str(tmp_path), "new")
    assert os.listdir(tmp_path) == []


def deepen(top: Path, levels: int) -> int:
    """Make directories in one another, each beside a file and another directory; return how many there are then."""
    depth, fd = 0, os.open(top, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("directory", dir_fd=fd)
        os.mkdir("beside", dir_fd=fd)
        os.close(os.open("file", os.O_CREAT, dir_fd=fd))
        below = os.open("directory", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    fd = os.open(top, os.O_RDONLY)
    with contextlib.suppress(FileNotFoundError):
        while True:
            below = os.open("directory", os.O_RDONLY, dir_fd=fd)
            os.stat("beside", dir_fd=fd)
            os.close(fd)
            fd, depth = below, depth + 1
    os.close(fd)
    return depth


def test_what_fails_is_named(tmp_path: Path) -> None:
    """What cannot be made is an error with the path of the very thing, and nothing is replaced."""
    make_both = [tmp_path / "old" / "dir", tmp_path / "new"]
    for directory in make_both:
        directory.mkdir(parents=True)
    (tmp_path / "old/dir/file").write_text("old", encoding="ascii")
    (tmp_path / "new/dir").mkdir()
    with pytest.raises(SyscallError) as caught:
        copy(str(tmp_path))
    assert (caught.value.op, caught.value.errno, caught.value.target) == ("mkdirat", errno.EEXIST, f"{tmp_path}/new/dir")


@pytest.mark.parametrize("kind", ["tmpfs", "ext4", "btrfs"])
def test_a_full_disk_is_told(kind: str) -> None:
    """Where there is no room, that is the error, and no thread and no descriptor is left."""
    with disk(kind, size=128 << 20 if kind == "btrfs" else 16 << 20) as made:
        os.mkdir(f"{made.path}/old")
        make(f"{made.path}/old/file", os.urandom(1 << 20))
        with disk("tmpfs", size=256 << 20) as large:
            os.mkdir(f"{large.path}/old")
            for number in range(200):
                make(f"{large.path}/old/{number}", os.urandom(1 << 20))
            with Fd(os.open(f"{large.path}/old", os.O_RDONLY)) as old, Fd(os.open(made.path, os.O_RDONLY)) as top:
                os.mkdir("new", dir_fd=top.fileno())
                with Fd(os.open("new", os.O_RDONLY, dir_fd=top.fileno())) as new, pytest.raises(SyscallError) as caught:
                    copy_tree(old, new, "new")
        assert caught.value.errno == errno.ENOSPC


def test_an_interrupt_ends_it(tmp_path: Path) -> None:
    """KeyboardInterrupt comes through while a tree is copied, and what works at it has ended then."""
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    with open(tmp_path / "old/file", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 4 << 30) if room(tmp_path) > 10 << 30 else pytest.skip("too little room")
    before = threading.active_count()
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        with pytest.raises(KeyboardInterrupt):
            copy_again_and_again(tmp_path)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert threading.active_count() == before


def copy_again_and_again(top: Path) -> None:
    """Make more and more copies."""
    for number in range(1000):
        new = top / f"new/{number}"
        new.mkdir()
        with Fd(os.open(top / "old", os.O_RDONLY)) as old, Fd(os.open(new, os.O_RDONLY)) as made:
            copy_tree(old, made, "new")


def room(path: Path) -> int:
    """Return how many bytes are free there."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


@pytest.mark.root
def test_what_is_mounted_below_is_left_out(tmp_path: Path) -> None:
    """A file system that is mounted in a tree is no part of it: the directory is in the copy, and empty."""
    import isolib  # noqa: PLC0415
    from isolib.mounts import Tmpfs  # noqa: PLC0415

    (tmp_path / "old/mounted").mkdir(parents=True)
    (tmp_path / "new").mkdir()
    mount = Tmpfs(f"{tmp_path}/old/mounted")
    with isolib.spawn(
        ["sh", "-c", f"touch {tmp_path}/old/mounted/x; echo; exec cat"],
        new={"mnt"},
        mounts=[mount],
        stdin=isolib.PIPE,
        stdout=isolib.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        inside = f"/proc/{process.pid}/root{tmp_path}"
        assert os.listdir(f"{inside}/old/mounted") == ["x"]
        with Fd(os.open(f"{inside}/old", os.O_RDONLY)) as old, Fd(os.open(tmp_path / "new", os.O_RDONLY)) as new:
            copy_tree(old, new, "new")
    assert os.listdir(tmp_path / "new/mounted") == []


# ---- removal ----


def test_removal_follows_nothing(tmp_path: Path) -> None:
    """What links lead to stays when the tree that they are in is removed."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").write_text("kept", encoding="ascii")
    (tmp_path / "tree/dir").mkdir(parents=True)
    (tmp_path / "tree/link").symlink_to(tmp_path / "kept")
    (tmp_path / "tree/dir/link").symlink_to("../../kept")
    remove(str(tmp_path), "tree")
    assert os.listdir(tmp_path) == ["kept"]
    assert os.listdir(tmp_path / "kept") == ["file"]


def test_removal_needs_no_modes(tmp_path: Path) -> None:
    """Directories that their owner may neither read, write nor search are removed all the same."""
    (tmp_path / "tree/dir/below").mkdir(parents=True)
    (tmp_path / "tree/dir/below/file").touch()
    for path in ("tree/dir/below", "tree/dir", "tree"):
        (tmp_path / path).chmod(0)
    remove(str(tmp_path), "tree")
    assert os.listdir(tmp_path) == []


def test_a_directory_is_emptied_and_stays(tmp_path: Path) -> None:
    """All that is in a directory is removed, whatever its modes are, and the directory is there still."""
    (tmp_path / "tree/dir/below").mkdir(parents=True)
    (tmp_path / "tree/dir/below/file").touch()
    (tmp_path / "tree/file").touch()
    (tmp_path / "beside").touch()
    (tmp_path / "tree/dir").chmod(0)
    with Fd(os.open(tmp_path / "tree", os.O_PATH)) as base:
        calls.remove_tree(base.fileno(), None, "tree")
        assert os.listdir(tmp_path / "tree") == []
        calls.remove_tree(base.fileno(), None, "tree")
    assert set(os.listdir(tmp_path)) == {"tree", "beside"}


def test_removal_takes_no_name_that_is_taken(tmp_path: Path) -> None:
    """What lies very deep is removed, also where things have the names that it would be moved to."""
    deep = tmp_path / "tree" / "/".join("d" * 48)
    (deep / "e").mkdir(parents=True)
    (deep / "e/file").touch()
    inode = (deep / "e").stat().st_ino
    for number in range(3):
        (tmp_path / f"tree/.isolib-{inode:x}-{number:x}/full").mkdir(parents=True)
    remove(str(tmp_path), "tree")
    assert os.listdir(tmp_path) == []


@pytest.mark.root
def test_removal_stays_on_its_mount(tmp_path: Path) -> None:
    """What is mounted in a tree is not removed with it: that is refused, by the path of the place."""
    with Fd(new_mount("tmpfs", {"mode": "755"})) as outer, Fd(new_mount("tmpfs")) as inner:
        os.makedirs(f"/proc/self/fd/{outer.fileno()}/tree/below/place")
        with Fd(clone_tree("", dir_fd=outer.fileno())) as root:
            with Fd(os.open("tree/below/place", os.O_PATH, dir_fd=root.fileno())) as place:
                try:
                    attach(inner.fileno(), place.fileno(), "place")
                except SyscallError:
                    pytest.skip("this kernel attaches nothing to a detached mount")
            make(f"/proc/self/fd/{outer.fileno()}/tree/below/place/hidden")
            make(f"/proc/self/fd/{inner.fileno()}/kept")
            with pytest.raises(SyscallError, match="something is mounted there") as caught:
                calls.remove_tree(root.fileno(), "tree", "tree")
            assert (caught.value.errno, caught.value.target) == (errno.EXDEV, "tree/below/place")
            assert os.listdir(f"/proc/self/fd/{inner.fileno()}") == ["kept"]
            calls.remove_tree(outer.fileno(), "tree", "tree")
            assert os.listdir(f"/proc/self/fd/{outer.fileno()}") == []


def test_removing_nothing_is_nothing(tmp_path: Path) -> None:
    """There need not be anything of the name."""
    remove(str(tmp_path), "nothing")
    (tmp_path / "file").touch()
    remove(str(tmp_path), "file")
    assert os.listdir(tmp_path) == []
