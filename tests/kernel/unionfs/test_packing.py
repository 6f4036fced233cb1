"""Small files packed many at once are, to the byte, what they are one by one."""

from __future__ import annotations

import io
import os
import threading
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolib import new_overlay
from isolib._kernel.handle import Fd
from isolib.errors import ArchiveError
from isolib.unionfs.archive import tar
from isolib.unionfs.archive.behind import Behind
from isolib.unionfs.archive.recipe import Recorder, replay
from isolib.unionfs.disk.scan import scan
from isolib.unionfs.drivers.base import Form
from isolib.unionfs.overlays.overlay_diff import Changed
from isolib.unionfs.overlays.uppers import Uppers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from isolib.unionfs.entry import Content, Offering

_LENGTHS: Final = st.sampled_from([1, 2, 3, 97, 98, 99, 100, 101, 154, 155, 156, 200])
_LETTERS: Final = st.sampled_from(["a", "b", "é", "-"])
_NAMES: Final = st.builds(lambda letter, length: letter * length, _LETTERS, _LENGTHS).filter(
    lambda name: len(os.fsencode(name)) < 256
)
_SIZES: Final = st.sampled_from([0, 1, 511, 512, 513, 8000, 65535, 65536, 65537])
_TIMES: Final = st.sampled_from(
    [0, 1, 10**9, 1_500_000_000_123_456_789, 1_500_000_000_000_000_000, -1, -(10**9), 2**33 * 10**9]
)
_LIMITS: Final = st.sampled_from([None, 0, 5, 1_500_000_000_000_000_001, -1])


class _Source:
    """Files of a directory, by their paths."""

    def __init__(self, root: str) -> None:
        self._root = root

    def __call__(self, path: bytes) -> Content:
        with open(os.path.join(os.fsencode(self._root), path), "rb") as file:
            return io.BytesIO(file.read())


def _both(pieces: Offering, root: str, limit: int | None = None) -> bytes:
    """Return the archive, which is the same in both ways, and of which the recipe makes it again."""
    archives = []
    for one in (pieces, iter(pieces)):
        archive, recipe = io.BytesIO(), io.BytesIO()
        recorder = Recorder(recipe)
        assert tar.write(one, archive, mtime_limit=limit, record=recorder) == len(archive.getvalue()) == recorder.size
        recipe.seek(0)
        assert b"".join(replay(recipe, _Source(root))) == archive.getvalue()
        archives.append(archive.getvalue())
    assert archives[0] == archives[1]
    return archives[0]


@given(
    st.dictionaries(
        st.lists(_NAMES, min_size=1, max_size=3).map("/".join), st.tuples(_SIZES, _TIMES, st.integers(0, 0o777)), max_size=10
    ),
    st.sets(st.integers(0, 9)),
    _LIMITS,
)
def test_a_tree_packed(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, tuple[int, int, int]], odd: set[int], limit: int | None
) -> None:
    """Any tree, whatever its names, sizes, times, modes, links and attributes are, makes the same archive in both ways."""
    top = str(tmp_path_factory.mktemp("tree"))
    for number, (path, (size, mtime, mode)) in enumerate(files.items()):
        full = f"{top}/{path}"
        try:
            os.makedirs(os.path.dirname(full), exist_ok=True)
            with open(full, "xb") as file:
                file.write(bytes([number]) * size)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            continue
        if number in odd:
            if number % 2:
                os.link(full, f"{top}/link{number}")
            else:
                os.setxattr(full, "user.one", b"1")
        os.utime(full, ns=(0, mtime))
        os.chmod(full, mode | 0o600)
    with Fd(os.open(top, os.O_RDONLY)) as root:
        _both(scan(root.fileno(), Form.MERGED), top, limit)


def _told(pieces: Offering) -> Iterator[bytes]:
    """Yield the paths that are told one by one, where all is taken that can be."""
    room = memoryview(bytearray(1 << 20))
    for one in pieces.offers():
        if isinstance(one, tuple):
            yield one[0].path
        else:
            while one.pack(room, None, is_recorded=True).goes_on:
                pass


def test_more_than_there_is_room_for(tmp_path: Path) -> None:
    """Of a directory with thousands of files none is told one by one, and nothing is lost where a buffer ends."""
    for number in range(1500):
        (tmp_path / f"{number}").write_bytes(os.urandom(number * 37 % 3000))
    (tmp_path / "1000a").mkdir()
    (tmp_path / "1000a" / "inner").write_bytes(b"x")
    with Fd(os.open(tmp_path, os.O_RDONLY)) as root:
        assert list(_told(scan(root.fileno(), Form.MERGED))) == [b"", b"1000a"]
        _both(scan(root.fileno(), Form.MERGED), str(tmp_path))


def test_a_name_that_means_a_whiteout(tmp_path: Path) -> None:
    """A file whose name begins with .wh. is refused in both ways, and one that only has it inside is in the archive."""
    (tmp_path / "a.wh.b").write_bytes(b"x")
    with Fd(os.open(tmp_path, os.O_RDONLY)) as root:
        assert b"a.wh.b" in _both(scan(root.fileno(), Form.MERGED), str(tmp_path))
        (tmp_path / ".wh.b").write_bytes(b"x")
        with pytest.raises(ArchiveError, match=r"\.wh\."):
            tar.write(scan(root.fileno(), Form.MERGED), io.BytesIO())


def _change(top: str) -> None:
    """Change some of the files that `test_an_upper_directory_packed` has made."""
    for number in range(0, 60, 3):
        with open(f"{top}/d/{number}", "r+b") as file:  # copied up, and as it was
            file.read()
        status = os.stat(f"{top}/d/{number}")
        if number % 2:
            with open(f"{top}/d/{number}", "r+b") as file:
                file.write(b"!")
        if number % 4:
            os.utime(f"{top}/d/{number}", ns=(0, status.st_mtime_ns))
    for number in range(100, 110):
        with open(f"{top}/d/{number}", "wb") as file:
            file.write(b"new")
    os.unlink(f"{top}/d/1")


def test_an_upper_directory_packed(tmp_path: Path) -> None:
    """What a tree has changed is the same in both ways: new files are packed, and what may be as it was is compared."""
    (tmp_path / "d").mkdir()
    for number in range(60):
        (tmp_path / "d" / f"{number}").write_bytes(b"old %d" % number)
        os.utime(tmp_path / "d" / f"{number}", ns=(0, 1_500_000_000_000_000_000 + number))
    with new_overlay(tmp_path) as merged:
        _change(merged.path)
        sides = merged._sides()

        def compare(upper: Fd, below: Fd, form: Form) -> None:
            pieces = Changed(Uppers([upper], form), below)
            archive = _both(pieces, merged.path)
            told = set(_told(pieces))
            assert {b"d/1", b"d/27"} <= told  # deleted; written to, with the size and the time that it had
            assert not {b"d/%d" % number for number in range(101, 110)} & told
            assert b"d/100\0" in archive
            assert b"d/2\0" not in archive
            assert b"d/12\0" not in archive

        if merged.form is Form.OVERLAY:
            compare(*sides)
        else:
            archive = io.BytesIO()
            merged.diff(archive)
            assert b"d/100\0" in archive.getvalue()
            assert b"d/12\0" not in archive.getvalue()


def test_what_is_done_behind() -> None:
    """All is done in its order when the block ends, whether in a thread or not."""
    done: list[bytes] = []
    with Behind() as behind:
        for number in range(100):
            behind.do(done.append, bytes([number]) * (10 if number < 50 else 1 << 17))
    assert [data[0] for data in done] == list(range(100))


def _fails(error: BaseException) -> Callable[[bytes], object]:
    def fail(_: bytes) -> None:
        raise error

    return fail


def test_what_fails_behind() -> None:
    """An error is raised at the end of the block at the latest, and nothing is done after it."""
    done: list[bytes] = []
    error, large = OSError("full"), bytes(1 << 17)

    def block() -> None:
        with Behind() as behind:
            behind.do(_fails(error), large)
            for _ in range(100):
                behind.do(done.append, large)

    with pytest.raises(OSError, match="full"):
        block()
    assert not done


def test_a_block_that_fails() -> None:
    """What a block raises is raised, and leaves no thread."""
    threads = set(threading.enumerate())

    def block() -> None:
        with Behind() as behind:
            behind.do(len, bytes(1 << 17))
            assert set(threading.enumerate()) > threads
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        block()
    assert set(threading.enumerate()) == threads
