"""A group and those below it, read by descriptors: plain directories here."""

from __future__ import annotations

import os
import resource
from contextlib import contextmanager
from errno import EISDIR, ELOOP, EMFILE
from typing import TYPE_CHECKING

import pytest

from isolib.cgroups.files import Directory
from isolib.cgroups.tree import counted_in, each_group, listed, names_in, open_at, pids_in, read_at, walk
from isolib.errors import IsolibError, SyscallError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a group with ``a``, ``a/b`` and ``c`` below it; each has processes and has counted."""
    for number, name in enumerate((".", "a", "a/b", "c"), 1):
        group = tmp_path / "group" / name
        group.mkdir(parents=True, exist_ok=True)
        (group / "cgroup.procs").write_text(f"{number}\n{number}0\n")
        (group / "pids.events").write_text(f"max {number}\nother 100\n")
    return tmp_path / "group"


@pytest.fixture
def directory(place: Path) -> Iterator[Directory]:
    """Return that group, open."""
    with Directory.open(str(place), 1) as directory:
        yield directory


@contextmanager
def free_descriptors(number: int) -> Iterator[None]:
    """Let this process open only so many more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probes = [os.dup(0) for _ in range(number + 1)]
    for fd in probes:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probes[-1], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# ---- walking ----


def test_walk(place: Path, directory: Directory) -> None:
    """Every group comes once, after the one above it, with its path from the first one on and a descriptor of its own."""
    (place / "link").symlink_to("a")
    before = os.listdir("/proc/self/fd")
    paths = []
    for path, fd in walk(directory.fileno()):
        assert os.path.samestat(os.fstat(fd), os.stat(place / path))
        paths.append(path)
    assert sorted(paths) == [".", "./a", "./a/b", "./c"]
    assert paths[0] == "."
    assert paths.index("./a") < paths.index("./a/b")
    assert len(list(each_group(directory.fileno()))) == 4
    assert os.listdir("/proc/self/fd") == before


def test_walk_that_is_given_up(directory: Directory) -> None:
    """Who walks no further has no descriptor left."""
    before = os.listdir("/proc/self/fd")
    groups = walk(directory.fileno())
    assert [next(groups)[0] for _ in range(2)] in ([".", "./a"], [".", "./c"])
    groups.close()  # type: ignore[attr-defined]  # it is a generator
    assert os.listdir("/proc/self/fd") == before


def test_groups_that_go_meanwhile(tmp_path: Path) -> None:
    """A group that is removed while the others are looked at is passed over, and so is the first one."""
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    with Directory.open(str(tmp_path), 1) as directory:
        groups = walk(directory.fileno())
        next(groups)
        first, _ = next(groups)
        for name in {"./a", "./b", "./c"} - {first}:
            (tmp_path / name).rmdir()
        assert list(groups) == []
    gone = tmp_path / "gone"
    gone.mkdir()
    with Directory.open(str(gone), 1) as directory:
        gone.rmdir()
        assert [path for path, _ in walk(directory.fileno())] == ["."]
        assert names_in(directory.fileno()) == []
        assert pids_in(directory) == []
        assert counted_in(directory, "pids.events", "max") == 0


# ---- files ----


def test_file(place: Path, directory: Directory) -> None:
    """All of a file is read, however long it is; one that is empty is not one that is not there."""
    fd = directory.fileno()
    long = b"1234567\n" * 50_000
    (place / "long").write_bytes(long)
    (place / "empty").touch()
    assert read_at(fd, "long") == long
    assert read_at(fd, "empty") == b""
    assert read_at(fd, "nothing") is None


def test_processes(place: Path, directory: Directory) -> None:
    """Those in a group and below it are listed once each; a group without a list of processes is asked for its threads."""
    (place / "c/cgroup.procs").write_text("20\n1\n")
    (place / "a/b/cgroup.procs").unlink()
    (place / "a/b/cgroup.threads").write_text("40\n")
    assert sorted(pids_in(directory)) == [1, 2, 10, 20, 40]
    assert pids_in(directory)[:2] == listed(directory.fileno()) == [1, 10]
    (place / "cgroup.procs").unlink()
    assert listed(directory.fileno()) == []


def test_counts(place: Path, directory: Directory) -> None:
    """One line is summed over a group and those below it; who has no such file, or no such line, adds nothing."""
    assert counted_in(directory, "pids.events", "max") == 1 + 2 + 3 + 4
    (place / "a/pids.events").unlink()
    (place / "c/pids.events").write_text("other 5\n")
    assert counted_in(directory, "pids.events", "max") == 1 + 3
    assert counted_in(directory, "memory.events", "max") == 0


def a_directory(path: Path) -> None:
    """Put a directory in the place of a file, which cannot be read."""
    path.mkdir()


def a_link(path: Path) -> None:
    """Put a link in its place, which is not followed."""
    path.symlink_to("/dev/null")


@pytest.mark.parametrize(("put", "errno"), [(a_directory, EISDIR), (a_link, ELOOP)])
@pytest.mark.parametrize("group", [".", "a/b"])
def test_what_cannot_be_read_is_not_taken_for_nothing(
    place: Path, directory: Directory, put: Callable[[Path], None], errno: int, group: str
) -> None:
    """A file that is there and cannot be read is an error, of isolib's own for who asks for a whole tree, and no empty one."""
    for name in ("cgroup.procs", "pids.events"):
        (place / group / name).unlink()
        put(place / group / name)
    with open_at(directory.fileno(), group, os.O_DIRECTORY) as own:
        for read in (lambda: read_at(own.fileno(), "pids.events"), lambda: listed(own.fileno())):
            with pytest.raises(OSError) as caught:  # noqa: PT011 - its number is looked at
                read()
            assert caught.value.errno == errno
            assert not isinstance(caught.value, IsolibError)
    for act, words in (
        (lambda: pids_in(directory), "cgroup.procs|processes of a control group"),
        (lambda: counted_in(directory, "pids.events", "max"), "pids.events|what a control group counts"),
    ):
        with pytest.raises(SyscallError, match=words) as refused:
            act()
        assert refused.value.errno == errno


@pytest.mark.parametrize("free", [0, 1, 2])
def test_too_few_descriptors(directory: Directory, free: int) -> None:
    """Where there are too few descriptors nobody is told that a group is empty: the error names their limit."""
    with free_descriptors(free):
        for act in (lambda: pids_in(directory), lambda: counted_in(directory, "pids.events", "max")):
            with pytest.raises(SyscallError, match="RLIMIT_NOFILE") as caught:
                act()
            assert caught.value.errno == EMFILE
    assert len(pids_in(directory)) == 8
