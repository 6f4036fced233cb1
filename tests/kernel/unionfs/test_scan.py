"""Directories scanned, on the real kernel."""

from __future__ import annotations

import os
import socket
import stat
import threading
from dataclasses import replace
from errno import ESTALE
from functools import partial
from typing import TYPE_CHECKING

import pytest
from hypothesis import given

from isolib._kernel import calls
from isolib.errors import ArchiveError, SyscallError, Unsupported
from isolib.unionfs.disk.scan import SMALL, scan
from isolib.unionfs.drivers.base import Form
from isolib.unionfs.entry import Kind
from tests.layered import OVERLAYS, Model, anywhere, directory, file, kept, layers, link, make, places, tree, whiteout

if TYPE_CHECKING:
    from pathlib import Path

    from tests.layered import Made

OWNERS = (0, 1000) if os.geteuid() == 0 else (os.geteuid(),)


def found(root: int, form: Form = Form.MERGED) -> list[Made]:
    """Return what a directory is made of."""
    return kept(scan(root, form))


@given(layers(OWNERS, marks=False))
def test_as_unpacked(layer: list[Made]) -> None:
    """What was unpacked is scanned as it was, in order, with further names as links to the first; and can be unpacked again."""
    layer = [directory(b"", uid=OWNERS[-1], gid=OWNERS[-1]), *layer]
    try:
        model = Model()
        model.apply([one for one in layer if one[0].path])
    except ArchiveError:
        return
    with places(2) as (root, other):
        make(layer, root)
        once = found(root.fileno())
        make(once, other)
        assert found(other.fileno()) == once
        assert tree(other.fileno()) == tree(root.fileno())
    paths = [entry.path.split(b"/") if entry.path else [] for entry, _ in once]
    assert paths == sorted(paths)
    things = model.tree()
    assert {entry.path for entry, _ in once} == set(things)
    for entry, content in once[1:]:
        thing = things[entry.path]
        first = min(thing.names, key=lambda path: path.split(b"/"))
        if entry.kind is Kind.HARDLINK:
            assert entry.target == first != entry.path
            assert not entry.xattrs
        else:
            assert (entry.kind, first) == (thing.kind, entry.path)
            assert (content or entry.target, dict(entry.xattrs)) == (thing.content, thing.xattrs)
        assert (entry.mode, (entry.uid, entry.gid), entry.mtime) == (thing.mode, thing.owner, thing.mtime)


@pytest.mark.root
@pytest.mark.parametrize("form", OVERLAYS)
def test_marks(form: Form) -> None:
    """Whiteouts and opaque directories are found again as they were said, and nothing of how they are kept."""
    base = [directory(b""), directory(b"d"), file(b"d/x"), file(b"gone"), file(b"t")]
    top = [directory(b""), replace_opaque(b"d"), file(b"d/y"), whiteout(b"gone"), directory(b"t")]
    with places(2) as (lower, upper):
        make(base, lower, form)
        make(top, upper, form, [lower])
        told = found(upper.fileno(), form)
        assert told == [directory(b""), replace_opaque(b"d"), file(b"d/y"), whiteout(b"gone"), replace_opaque(b"t")]
        raw = found(upper.fileno())
        assert {entry.path: entry.kind for entry, _ in raw}[b"gone"] is Kind.CHARACTER
        assert all(not entry.xattrs for entry, _ in raw)


def replace_opaque(path: bytes) -> Made:
    """Return an opaque directory."""
    entry, content = directory(path)
    return replace(entry, opaque=True), content


@pytest.mark.root
@pytest.mark.parametrize("attribute", ["redirect", "metacopy"])
def test_elsewhere(tmp_path: Path, attribute: str) -> None:
    """A layer of which overlayfs keeps a part in another one is refused, and not taken for all there is."""
    (tmp_path / "a").mkdir()
    os.setxattr(tmp_path / "a", f"trusted.overlay.{attribute}", b"/b")
    with open_directory(tmp_path) as root:
        assert [entry.path for entry, _ in scan(root, Form.USER_OVERLAY)] == [b"", b"a"]
        with pytest.raises(Unsupported, match=f"{attribute} of /a"):
            list(scan(root, Form.OVERLAY))


class open_directory:  # noqa: N801
    """Opens a directory for the time of a block."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> int:
        self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def test_special_files(tmp_path: Path) -> None:
    """A FIFO that nobody writes to is found without being opened, and a socket is left out, and named."""
    os.mkfifo(tmp_path / "fifo", 0o604)
    with socket.socket(socket.AF_UNIX) as one, open_directory(tmp_path) as root:
        one.bind(f"/proc/self/fd/{root}/socket")
        scanned = scan(root, Form.MERGED)
        assert [(entry.path, entry.kind) for entry, _ in scanned] == [(b"", Kind.DIRECTORY), (b"fifo", Kind.FIFO)]
        assert scanned.left_out == [b"socket"]


@pytest.mark.parametrize("size", [0, 1, SMALL, SMALL + 1, 3 << 20])
def test_contents(tmp_path: Path, size: int) -> None:
    """A content is all of a file, in parts as they are asked for, whether it was read with its directory or is opened later."""
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    with open_directory(tmp_path) as root:
        for entry, content in scan(root, Form.MERGED):
            if content is not None:
                assert entry.size == size
                assert b"".join(iter(partial(content.read, 1000), b"")) == data
                assert content.read() == b""
        assert found(root)[1][1] == data


@pytest.mark.parametrize("change", ["shorter", "longer", "another", "a FIFO"])
def test_changed_while_read(tmp_path: Path, change: str) -> None:
    """A file that is not any more what it was when it is read is an error, and never another length of content."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * (SMALL + 100))
    with open_directory(tmp_path) as root:
        pieces = iter(scan(root, Form.MERGED))
        next(pieces)
        entry, content = next(pieces)
        assert content is not None
        if change == "shorter":
            assert content.read(10) == b"x" * 10
            os.truncate(path, 100)
        elif change == "longer":
            assert content.read(10) == b"x" * 10
            with path.open("ab") as opened:
                opened.write(b"y" * 100)
            assert len(content.read()) == entry.size - 10
            return
        else:
            other = tmp_path / "other"
            os.mkfifo(other) if change == "a FIFO" else other.write_bytes(b"z" * (SMALL + 100))
            other.rename(path)
        with pytest.raises(SyscallError, match="file") as caught:
            content.read()
        assert caught.value.errno == ESTALE
        assert caught.value.target == "/file"


def test_given_up(tmp_path: Path) -> None:
    """A content that was not opened before the next piece was asked for says so."""
    (tmp_path / "file").write_bytes(b"x" * (SMALL + 1))
    with open_directory(tmp_path) as root:
        contents = [content for _, content in scan(root, Form.MERGED) if content is not None]
        with pytest.raises(ValueError, match="/file: the next piece"):
            contents[0].read()


def test_deep() -> None:
    """A tree of 4,096 directories in one another is scanned and removed with few descriptors, and each has its path."""
    with anywhere() as made:
        root = made.fileno()
        at = os.dup(root)
        for number in range(4096):
            os.mkdir("d", dir_fd=at)
            inner = os.open("d", os.O_RDONLY, dir_fd=at)
            os.close(at)
            at = inner
            if number % 1000 == 0:
                os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=at))
        os.close(at)
        before = len(os.listdir("/proc/self/fd"))
        most, count, last = 0, 0, b""
        for entry, _ in scan(root, Form.MERGED):
            count, last = count + 1, entry.path
            if count % 500 == 0:
                most = max(most, len(os.listdir("/proc/self/fd")))
        assert (count, last) == (1 + 4096 + 5, b"d/f")
        assert most - before < 100
        calls.remove_tree(root, None, "")
        assert os.listdir(f"/proc/self/fd/{root}") == []


def test_moved_meanwhile(tmp_path: Path) -> None:
    """A directory that is moved away while what is far below it is read is noticed on the way back."""
    with open_directory(tmp_path) as root:
        path = tmp_path / "top" / "/".join("d" * 200)
        path.mkdir(parents=True)
        (tmp_path / "top/d/after").touch()
        (tmp_path / "other").mkdir()
        pieces = iter(scan(root, Form.MERGED))
        while next(pieces)[0].path.count(b"/") < 200:
            pass
        os.rename(tmp_path / "top/d/d", tmp_path / "other/d")
        with pytest.raises(SyscallError) as caught:
            list(pieces)
        assert caught.value.errno == ESTALE


def test_in_motion(tmp_path: Path) -> None:
    """Beside somebody who makes and removes files, a scan ends, and has all that stays."""
    with open_directory(tmp_path) as root:
        for number in range(500):
            (tmp_path / f"stays{number:03}").write_bytes(b"x")
        stop = threading.Event()

        def stir() -> None:
            while not stop.is_set():
                for name in ("a", "stays250a", "z"):
                    (tmp_path / name).mkdir()
                    (tmp_path / name).rmdir()

        thread = threading.Thread(target=stir)
        thread.start()
        try:
            for _ in range(20):
                names = [entry.path for entry, _ in scan(root, Form.MERGED) if entry.kind is Kind.FILE]
                assert names == [b"stays%03d" % number for number in range(500)]
        finally:
            stop.set()
            thread.join()


def test_mode_of_names(tmp_path: Path) -> None:
    """Names that are no text are names as any other."""
    with open_directory(tmp_path) as root:
        name = bytes(set(range(1, 256)) - {ord("/")})
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=root))
        (_, _), (entry, _) = found(root)
        assert entry.path == name
        assert stat.S_IMODE(entry.mode) == entry.mode


def test_ids(tmp_path: Path) -> None:
    """Owners are mapped as the caller says."""
    with open_directory(tmp_path) as root:
        ((entry, _),) = scan(root, Form.MERGED, ids=lambda uid, gid: (uid + 5, gid + 7))
        assert (entry.uid, entry.gid) == (os.geteuid() + 5, os.getegid() + 7)


def test_links() -> None:
    """Each further name of a file is a link to the first in order, symbolic links' and FIFOs' too."""
    with places(1) as (root,):
        make([file(b"m", b"1"), link(b"z", b"m"), link(b"a", b"m")], root)
        assert [(entry.path, entry.kind, entry.target) for entry, _ in found(root.fileno())[1:]] == [
            (b"a", Kind.FILE, b""),
            (b"m", Kind.HARDLINK, b"a"),
            (b"z", Kind.HARDLINK, b"a"),
        ]
