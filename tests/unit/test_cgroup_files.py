"""The directory of a control group, and its files: plain ones here."""

from __future__ import annotations

import os
from errno import EACCES, EBUSY, EEXIST, EINVAL, ELOOP, ENODEV, ENOENT, ENOTDIR, EOPNOTSUPP, EPERM, EROFS
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolib.cgroups.files import Directory, distinct, parse_flat, parse_nested
from isolib.cgroups.tree import names_in
from isolib.errors import ClosedError, GoneError, PermissionDenied, SyscallError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a directory that looks like a group with one below it."""
    place = tmp_path / "group"
    (place / "below").mkdir(parents=True)
    for one in (place, place / "below"):
        (one / "cgroup.procs").write_text("")
    (place / "memory.max").write_text("max\n")
    (place / "pids.current").write_text("3\n")
    return place


@pytest.fixture
def directory(place: Path) -> Iterator[Directory]:
    """Return that directory, open."""
    with Directory.open(str(place), 2) as directory:
        yield directory


def remove(place: Path) -> None:
    """Take a group away, as the kernel does: nothing can be found in it any more, and its directory is dead."""
    for one in sorted(place.rglob("*"), reverse=True):
        one.rmdir() if one.is_dir() else one.unlink()
    place.rmdir()


# ---- opening and closing ----


def test_open(place: Path, directory: Directory) -> None:
    """A directory is opened by its path, or by its name below another one, and says where it is."""
    with Directory.open("below", 1, parent=directory) as below:
        assert (below.path, below.version) == (f"{place}/below", 1)
        assert repr(below) == f"<Directory {place}/below v1>"
        assert os.path.samestat(os.fstat(below.fileno()), os.stat(place / "below"))
    assert os.get_inheritable(directory.fileno()) is False


@pytest.mark.parametrize(("name", "errno"), [("nothing", ENOENT), ("memory.max", ENOTDIR), ("link", ENOTDIR)])
def test_cannot_be_opened(place: Path, directory: Directory, name: str, errno: int) -> None:
    """What is no directory, or only leads to one, is not opened; what is not there is gone."""
    (place / "link").symlink_to(place / "below")
    for path, parent in ((str(place / name), None), (name, directory)):
        with pytest.raises(GoneError if errno == ENOENT else SyscallError, match=f"{place}/{name}") as caught:
            Directory.open(path, 2, parent=parent)
        assert caught.value.errno == errno


def test_close(directory: Directory) -> None:
    """Closed twice it is closed once, its counters are closed with it, and using it afterwards is an error."""
    directory.sample("pids.current")
    before = directory.descriptors
    assert len(before) == 2
    copy = directory.copy()
    for _ in range(2):
        directory.close()
    uses: list[Callable[[], object]] = [
        directory.fileno,
        lambda: directory.read("memory.max"),
        lambda: directory.sample("pids.current"),
    ]
    for use in uses:
        with pytest.raises(ClosedError):
            use()
    for fd in before - copy.descriptors:
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)
    assert copy.read("memory.max") == "max\n"
    copy.close()


# ---- reading and writing ----


def test_read_and_write(place: Path, directory: Directory) -> None:
    """What is written is in the file, as it is, and what is in the file is read, however long it is."""
    directory.write("memory.max", "5000")
    assert (place / "memory.max").read_text() == "5000"
    assert directory.read("memory.max") == "5000"
    long = "pgfault 1\n" * 10_000
    (place / "memory.stat").write_text(long)
    assert directory.read("memory.stat") == long
    assert directory.sample("memory.stat").decode() == long


def test_has(place: Path, directory: Directory) -> None:
    """A file is there or not, and a link is looked at and not through."""
    (place / "link").symlink_to("nowhere")
    assert [directory.has(name) for name in ("memory.max", "below", "link", "nothing")] == [True, True, True, False]


@pytest.mark.parametrize("name", ["secret", "nothing"])
def test_links_are_not_followed(place: Path, directory: Directory, name: str) -> None:
    """A link in the place of a file is refused, wherever it leads, and nothing is written through it."""
    target = place.parent / name
    if name == "secret":
        target.write_text("x")
    (place / "memory.high").symlink_to(target)
    for act in (directory.read, directory.sample, lambda file: directory.write(file, "1")):
        with pytest.raises(SyscallError) as caught:
            act("memory.high")
        assert caught.value.errno == ELOOP
    assert not target.exists() or target.read_text() == "x"


def test_missing_file(place: Path, directory: Directory) -> None:
    """A file that is not there is an error that names it, and it is not made; the group is there all the same."""
    for act in (directory.read, directory.sample, lambda file: directory.write(file, "1")):
        with pytest.raises(SyscallError, match=f"open: {place}/memory.peak") as caught:
            act("memory.peak")
        assert caught.value.errno == ENOENT
        assert not isinstance(caught.value, GoneError)
    assert not directory.has("memory.peak")


@pytest.mark.parametrize(
    ("errno", "kind", "words"),
    [
        (EACCES, PermissionDenied, "write permission"),
        (EPERM, PermissionDenied, "refuses it to this user"),
        (EBUSY, SyscallError, "in use"),
        (EINVAL, SyscallError, "does not take this value"),
        (EROFS, SyscallError, "read-only"),
        (EOPNOTSUPP, SyscallError, "threaded"),
        (ENODEV, SyscallError, "no such device"),
    ],
)
def test_refusals(place: Path, directory: Directory, errno: int, kind: type[SyscallError], words: str) -> None:
    """A refusal names the call, the file and the value, and says what the error number means for a control group."""
    error = directory.refused("write", "memory.max", errno, "5\n")
    assert type(error) is kind
    assert error.target == f"{place}/memory.max = '5'"
    assert words in str(error)
    assert directory.refused("read", "memory.max", errno).target == f"{place}/memory.max"


def test_bad_texts(directory: Directory) -> None:
    """What can be no name of a file, and no value, is a ValueError, and leaves no descriptor open."""
    before = os.listdir("/proc/self/fd")
    for act in (
        lambda: directory.write("memory.max", "ä"),
        lambda: directory.read("a\0b"),
        lambda: directory.write("a\0b", ""),
    ):
        with pytest.raises(ValueError):  # noqa: PT011 - several kinds
            act()
    assert os.listdir("/proc/self/fd") == before
    assert directory.read("memory.max") == "max\n"


# ---- counters that stay open ----


def test_sample(place: Path, directory: Directory) -> None:
    """A counter is opened once, and read from its beginning each time."""
    assert directory.sample("pids.current") == b"3\n"
    descriptors = directory.descriptors
    (place / "pids.current").write_text("41\n")
    assert directory.sample("pids.current") == b"41\n"
    assert directory.descriptors == descriptors


def test_sample_if_there(place: Path, directory: Directory) -> None:
    """What was not there is not asked for again, unless it may come."""
    for name, comes_and_goes in (("memory.peak", False), ("cpu.pressure", True)):
        assert directory.sample_if_there(name, comes_and_goes=comes_and_goes) is None
        (place / name).write_text("5\n")
        assert directory.sample_if_there(name, comes_and_goes=comes_and_goes) == (b"5\n" if comes_and_goes else None)


def test_glance(place: Path, directory: Directory) -> None:
    """What is asked once is read without staying open, and from where it is open already; what is not there is remembered."""
    before = directory.descriptors
    assert directory.glance("pids.current") == directory.glance_if_there("pids.current") == b"3\n"
    assert directory.descriptors == before
    kept = directory.open_file("pids.current", os.O_RDONLY)
    directory.keep("pids.current", kept)
    (place / "pids.current").unlink()
    assert directory.glance("pids.current") == directory.sample("pids.current") == b"3\n"
    directory.close()
    assert kept.closed


def test_glance_if_there(place: Path, directory: Directory) -> None:
    """What was not there is not asked for again."""
    assert directory.glance_if_there("memory.peak") is None
    (place / "memory.peak").write_text("5\n")
    assert directory.glance_if_there("memory.peak") is None
    assert directory.glance("memory.peak") == b"5\n"


# ---- a group that is removed ----


def test_removed(place: Path, directory: Directory) -> None:
    """Everything that is asked of a group that was removed says that it is gone, and names it."""
    remove(place)
    for act in (
        lambda: directory.read("memory.max"),
        lambda: directory.write("memory.max", "1"),
        lambda: directory.sample("pids.current"),
        lambda: directory.sample_if_there("pids.current"),
        lambda: directory.make("new"),
        lambda: Directory.open("below", 2, parent=directory),
    ):
        with pytest.raises(GoneError, match=str(place)):
            act()
    assert not directory.is_there()
    assert directory.names() == directory.entries() == []


@pytest.mark.parametrize("errno", [ENODEV, ENOENT])
def test_which_errors_mean_gone(place: Path, directory: Directory, errno: int) -> None:
    """An open file of a removed group has no device, one that is to be opened is not found: both only when it is gone."""
    assert not isinstance(directory.refused("read", "memory.max", errno), GoneError)
    remove(place)
    assert isinstance(directory.refused("read", "memory.max", errno), GoneError)
    assert not isinstance(directory.refused("read", "memory.max", EINVAL), GoneError)


# ---- groups below ----


def test_make(place: Path, directory: Directory) -> None:
    """A group is made below, and one that is there is an error only for who wants a new one."""
    directory.make("new")
    assert sorted(directory.names()) == ["below", "new"]
    with pytest.raises(SyscallError, match=f"mkdir: {place}/new.*the name is taken") as caught:
        directory.make("new")
    assert caught.value.errno == EEXIST
    directory.make("new", anew=False)
    with pytest.raises(SyscallError, match="no/such"):
        directory.make("no/such")


def test_names(place: Path, directory: Directory) -> None:
    """Only directories are groups, and links to them are none."""
    (place / "link").symlink_to("below")
    assert directory.names() == names_in(directory.fileno()) == ["below"]
    assert set(directory.entries()) == {"below", "cgroup.procs", "memory.max", "pids.current", "link"}


def test_listing_twice_at_once(directory: Directory) -> None:
    """Whoever lists a group sees all of it, also while another thread is in the midst of that: each has its own position."""
    with os.scandir(directory.fileno()) as other:
        next(other)
        assert directory.names() == names_in(directory.fileno()) == ["below"]
        assert len(directory.entries()) == 4


def test_distinct(directory: Directory) -> None:
    """Of directories each is named once, in their order, and none that is not there; another object is another directory."""
    with directory.copy() as copy, Directory.open("below", 2, parent=directory) as below:
        assert distinct([below, None, directory, below, copy, directory, None]) == [below, directory, copy]
        assert distinct(one for one in (None, below)) == [below]
    assert distinct([]) == distinct([None]) == []


# ---- parsers ----


def test_flat() -> None:
    """Lines of a name and a number are read, and others passed over."""
    assert parse_flat(b"oom 4\noom_kill 5\n") == {"oom": 4, "oom_kill": 5}
    assert parse_flat(b"\nmax\nsome avg10=1\nlow -1\nhigh x\nempty \na 1 2\n") == {}


def test_nested() -> None:
    """Lines of a name and pairs are read, with no pairs too, and an empty file has none."""
    assert parse_nested(b"8:0 rbytes=1 wbytes=max\n254:1 \n") == {"8:0": {"rbytes": "1", "wbytes": "max"}, "254:1": {}}
    assert parse_nested(b"") == parse_nested(b"\n \n") == {}
    assert parse_nested(b"a=b c\n") == {"c": {}}


WORDS = st.text(alphabet="abcxyz_.0123456789", min_size=1, max_size=20)


@given(st.dictionaries(WORDS, st.integers(min_value=0, max_value=2**64 - 1)))
def test_any_flat(values: dict[str, int]) -> None:
    """What a kernel writes for any counts is read as the same counts."""
    assert parse_flat("".join(f"{name} {number}\n" for name, number in values.items()).encode()) == values


@given(st.dictionaries(WORDS, st.dictionaries(WORDS, WORDS)))
def test_any_nested(values: dict[str, dict[str, str]]) -> None:
    """What a kernel writes for any pairs is read as the same pairs."""
    lines = (" ".join((name, *(f"{key}={value}" for key, value in pairs.items()))) + "\n" for name, pairs in values.items())
    assert parse_nested("".join(lines).encode()) == values


@given(st.binary())
def test_any_bytes(data: bytes) -> None:
    """Whatever a file holds, the parsers return something."""
    assert all(number >= 0 for number in parse_flat(data).values())
    assert all(isinstance(pairs, dict) for pairs in parse_nested(data).values())
