"""Batches of operations on files and directories: plain ones here."""

from __future__ import annotations

import gc
import os
import signal
import threading
from errno import EBADF, EEXIST, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY
from typing import TYPE_CHECKING

import pytest
from isolib._kernel._ext import lib

from isolib._kernel import calls
from isolib._kernel.calls import Batch, Refused
from isolib._kernel.calls.batching import _owners

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a directory with a file, an empty directory and one that is not."""
    (tmp_path / "file").write_text("content\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full" / "inside").mkdir(parents=True)
    (tmp_path / "link").symlink_to("file")
    return tmp_path


@pytest.fixture
def base(place: Path) -> Iterator[int]:
    """Return a descriptor of that directory."""
    fd = os.open(place, os.O_PATH | os.O_CLOEXEC)
    yield fd
    os.close(fd)


def descriptors() -> set[str]:
    """Return the open descriptors."""
    return set(os.listdir("/proc/self/fd"))


# ---- one file ----


@pytest.mark.parametrize("to_end", [True, False])
def test_read(place: Path, base: int, *, to_end: bool) -> None:
    """A file is read, and no more of it than there is room for; a long one may be read in parts."""
    assert calls.read_file(base, "file", 100, to_end=to_end) == b"content\n"
    assert calls.read_file(base, "file", 4, to_end=to_end) == b"cont"
    (place / "file").write_bytes(b"")
    assert calls.read_file(base, "file", 4, to_end=to_end) == b""


def test_read_to_the_end() -> None:
    """Of what the kernel hands out in parts, one read yields the first, and all of it is read to the end."""
    first, found = (calls.read_file(-1, "/proc/self/maps", 1 << 20, to_end=to_end) for to_end in (False, True))
    assert isinstance(first, bytes)
    assert isinstance(found, bytes)
    assert len(first) <= 4096 < len(found)
    assert found.endswith(b"\n")


def test_write(place: Path, base: int) -> None:
    """What is written is in the file, as it is, from its beginning; nothing is made."""
    assert calls.write_file(base, "file", b"CON\0\xff") is None
    assert (place / "file").read_bytes() == b"CON\0\xffnt\n"
    assert calls.write_file(base, "new", b"x") == Refused("open", ENOENT)
    assert not (place / "new").exists()


@pytest.mark.parametrize(
    ("name", "read", "write"),
    [
        ("nothing", Refused("open", ENOENT), Refused("open", ENOENT)),
        ("empty", Refused("read", EISDIR), Refused("open", EISDIR)),
        ("file/below", Refused("open", ENOTDIR), Refused("open", ENOTDIR)),
        ("link", Refused("open", 40), Refused("open", 40)),
    ],
)
def test_refused(base: int, name: str, read: Refused, write: Refused) -> None:
    """What is refused is told with the call that was, links are not followed, and nothing stays open."""
    before = descriptors()
    assert calls.read_file(base, name, 10, to_end=True) == read
    assert calls.write_file(base, name, b"x") == write
    assert descriptors() == before


def test_full_device() -> None:
    """A write that fails is told as such, not as the opening."""
    assert calls.write_file(-1, "/dev/full", b"x") == Refused("write", 28)


# ---- in order ----


def test_all(place: Path, base: int) -> None:
    """Everything is done in order, and what was opened and read is there afterwards."""
    batch = Batch()
    numbers = [
        batch.add(calls.ERRAND_ABSENT, base, "new"),
        batch.add(calls.ERRAND_MKDIR, base, "new"),
        batch.add(calls.ERRAND_OPEN, base, "new", flags=os.O_RDONLY | os.O_DIRECTORY),
        batch.add(calls.ERRAND_WRITE, base, "file", "CON"),
        batch.add_read(base, "file", 100),
        batch.add(calls.ERRAND_RMDIR, base, "empty"),
        batch.add_read(base, "file", 5),
    ]
    assert (numbers, batch.done) == (list(range(7)), 0)
    assert not (place / "new").exists()
    assert batch.run() is None
    assert batch.done == 7
    fd = batch.fd(2).fileno()
    assert os.path.samestat(os.fstat(fd), os.stat(place / "new"))
    assert os.get_inheritable(fd) is False
    assert (batch.data(4), batch.data(6)) == (b"CONtent\n", b"CONte")
    assert not (place / "empty").exists()
    assert batch.run() is None  # nothing is left to do
    assert os.listdir(place / "new") == []


#: What fails, and how; what is before it is done, and what is behind it is not.
FAILURES: dict[str, tuple[Callable[[Batch, int], int], Refused]] = {
    "absent": (lambda batch, base: batch.add(calls.ERRAND_ABSENT, base, "link"), Refused("mkdir", EEXIST)),
    "mkdir": (lambda batch, base: batch.add(calls.ERRAND_MKDIR, base, "empty"), Refused("mkdir", EEXIST)),
    "mkdir below nothing": (lambda batch, base: batch.add(calls.ERRAND_MKDIR, base, "a/b"), Refused("mkdir", ENOENT)),
    "rmdir": (lambda batch, base: batch.add(calls.ERRAND_RMDIR, base, "full"), Refused("rmdir", ENOTEMPTY)),
    "rmdir of a file": (lambda batch, base: batch.add(calls.ERRAND_RMDIR, base, "file"), Refused("rmdir", ENOTDIR)),
    "open": (lambda batch, base: batch.add(calls.ERRAND_OPEN, base, "no"), Refused("open", ENOENT)),
    "open elsewhere": (lambda batch, _: batch.add(calls.ERRAND_OPEN, -1, "no"), Refused("open", EBADF)),
    "read": (lambda batch, base: batch.add_read(base, "no", 10), Refused("open", ENOENT)),
    "read of a directory": (lambda batch, base: batch.add_read(base, "empty", 10), Refused("read", EISDIR)),
    "write": (lambda batch, base: batch.add(calls.ERRAND_WRITE, base, "no", "x"), Refused("open", ENOENT)),
    "write to a full device": (
        lambda batch, _: batch.add(calls.ERRAND_WRITE, -1, "/dev/full", "x"),
        Refused("write", 28),
    ),
    "notify": (lambda batch, base: batch.add(calls.ERRAND_NOTIFY, base, "no", "file"), Refused("open", ENOENT)),
    "notify through nothing": (
        lambda batch, base: batch.add(calls.ERRAND_NOTIFY, base, "file", "no"),
        Refused("open", ENOENT),
    ),
    "notify through a full device": (
        lambda batch, base: batch.add(calls.ERRAND_NOTIFY, base, "file", "/dev/full"),
        Refused("write", 28),
    ),
    "unknown": (lambda batch, base: batch.add(99, base, "file"), Refused("batch", 22)),
}


@pytest.mark.parametrize("failing", FAILURES, ids=str)
def test_failure_in_the_middle(place: Path, base: int, failing: str) -> None:
    """The first that fails is told with its call and errno; those before it are done, those behind it are not, or later."""
    add, refused = FAILURES[failing]
    before = descriptors()
    batch = Batch()
    batch.add(calls.ERRAND_MKDIR, base, "first")
    batch.add(calls.ERRAND_OPEN, base, "first", flags=os.O_PATH)
    number = add(batch, base)
    batch.add(calls.ERRAND_MKDIR, base, "last")
    for _ in range(2):
        assert batch.run() == refused
        assert batch.done == number == 2
        assert (place / "first").is_dir()
        assert not (place / "last").exists()
        assert len(descriptors() - before) == 1
    batch.skip()
    assert batch.run() is None
    assert (place / "last").is_dir()
    batch.close()
    assert descriptors() == before


def test_notify(place: Path, base: int) -> None:
    """An eventfd is told to the kernel with the file that it is for, which is closed again."""
    before = descriptors()
    (place / "control").write_text("")
    batch = Batch()
    batch.add(calls.ERRAND_NOTIFY, base, "file", "control")
    assert batch.run() is None
    told, _ = map(int, (place / "control").read_text().split())
    assert batch.fd(0).fileno() == told
    assert os.readlink(f"/proc/self/fd/{told}") == "anon_inode:[eventfd]"
    with pytest.raises(BlockingIOError):
        os.read(told, 8)
    assert descriptors() - before == {str(told)}
    batch.close()
    assert descriptors() == before


@pytest.mark.parametrize("text", ["a\0b", "\0"])
def test_nul(base: int, text: str) -> None:
    """A NUL in a name or a text would make another one of it, so nothing is done."""
    acts: list[Callable[[], object]] = [
        lambda: calls.read_file(base, text, 10, to_end=True),
        lambda: calls.write_file(base, text, b""),
    ]
    for name, value in ((text, ""), ("file", text)):
        batch = Batch()
        batch.add(calls.ERRAND_WRITE, base, name, value)
        acts.append(batch.run)
    for act in acts:
        with pytest.raises(ValueError, match="NUL"):
            act()


def test_odd_names(place: Path, base: int) -> None:
    """Names that are no UTF-8, and empty ones, are taken as they are."""
    odd = os.fsdecode(b"\xff\xfe new\nline")
    batch = Batch()
    batch.add(calls.ERRAND_MKDIR, base, odd)
    batch.add(calls.ERRAND_MKDIR, base, "")
    assert batch.run() == Refused("mkdir", ENOENT)
    assert os.path.isdir(os.path.join(place, odd))


def test_empty() -> None:
    """Nothing to do is done."""
    batch = Batch()
    assert (batch.run(), batch.done) == (None, 0)
    batch.close()


# ---- who owns what is opened ----


def opened(base: int, count: int = 1) -> Batch:
    """Return a batch that has opened something."""
    batch = Batch()
    for _ in range(count):
        batch.add(calls.ERRAND_OPEN, base, "empty", flags=os.O_PATH)
    assert batch.run() is None
    return batch


def test_close(base: int) -> None:
    """What was opened is closed together, or one by one, each once; and nothing is left of the book about it."""
    before, owners = descriptors(), len(_owners)
    batch = opened(base, 3)
    fds = [batch.fd(number) for number in range(3)]
    fds[1].close()
    fds[1].close()
    assert [fd.closed for fd in fds] == [False, True, False]
    assert len(descriptors() - before) == 2
    batch.close()
    assert descriptors() == before
    assert [fd.closed for fd in fds] == [True] * 3
    other = os.open("/", os.O_PATH)  # it has one of those numbers now
    batch.close()
    fds[0].close()
    os.fstat(other)
    os.close(other)
    assert len(_owners) == owners


def test_close_another(base: int) -> None:
    """A batch closes what another has opened, in its turn."""
    before = descriptors()
    first, second = opened(base, 2), Batch()
    second.add(calls.ERRAND_RMDIR, base, "full")
    second.add_close(first)
    assert second.run() == Refused("rmdir", ENOTEMPTY)
    assert not first.fd(0).closed
    second.skip()
    assert second.run() is None
    assert first.fd(0).closed
    assert first.fd(1).closed
    assert descriptors() == before
    never_run = Batch()
    third = Batch()
    third.add_close(never_run)
    assert third.run() is None


def test_taken(place: Path, base: int) -> None:
    """What was lent to a call is not done by that when it was taken; what was not taken is."""
    for name, is_taken in (("first", False), ("second", True)):
        batch = Batch()
        batch.add(calls.ERRAND_MKDIR, base, name)
        lent = batch.lend()
        if is_taken:
            batch.take()
            batch.take()
        lib.isolib_batch_run_lent(lent)
        assert (place / name).is_dir() != is_taken
        assert batch.is_complete != is_taken
        batch.take()
        assert batch.run() is None
        assert (place / name).is_dir()


def test_taken_by_one_of_two(base: int, place: Path) -> None:
    """Who takes it waits for the call that does it at this moment: each errand is done once, and by one of them."""
    os.mkfifo(place / "pipe")
    batch = Batch()
    batch.add(calls.ERRAND_MKDIR, base, "new")
    batch.add_read(base, "pipe", 10)
    batch.add(calls.ERRAND_RMDIR, base, "new")
    lent = batch.lend()
    thread = threading.Thread(target=lib.isolib_batch_run_lent, args=(lent,))
    thread.start()
    end = os.open(place / "pipe", os.O_WRONLY)  # returns when the other end is opened
    late = threading.Timer(0.05, os.write, (end, b"x"))
    late.start()
    batch.take()
    assert (batch.done, batch.data(1)) == (3, b"x")
    assert not (place / "new").exists()
    thread.join()
    late.join()
    os.close(end)


def test_forgotten(base: int) -> None:
    """What nobody closed is closed when the batch and all that was made of it are forgotten."""
    before, owners = descriptors(), len(_owners)
    batch = opened(base)
    fd = batch.fd(0)
    del batch
    os.fstat(fd.fileno())
    del fd
    assert descriptors() == before
    assert len(_owners) == owners


@pytest.mark.parametrize("older", [True, False])
def test_forgotten_in_a_cycle(base: int, *, older: bool) -> None:
    """In a cycle that is collected, whoever has a finalizer finds his descriptors open, whichever is the older."""
    seen: list[bool] = []

    class Holder:
        batch: Batch
        itself: Holder

        def __del__(self) -> None:
            seen.append(self.batch.fd(0).closed)

    before = descriptors()
    if older:
        holder, batch = Holder(), opened(base)
    else:
        batch, holder = opened(base), Holder()
    holder.batch, holder.itself = batch, holder
    del holder, batch
    assert descriptors() != before
    gc.collect()
    assert seen == [False]
    assert descriptors() == before


def test_signal_handlers_run(base: int, place: Path) -> None:
    """A read that a signal interrupts lets Python's handlers run, and goes on; what a handler raises ends it."""
    os.mkfifo(place / "pipe")
    ends = [os.open(place / "pipe", os.O_RDONLY | os.O_NONBLOCK), os.open(place / "pipe", os.O_WRONLY)]
    heard: list[str] = []

    def handle(_: int, __: object) -> None:
        heard.append("")
        if len(heard) > 2:
            raise KeyboardInterrupt
        if len(heard) == 2:
            os.write(ends[1], b"x")
        signal.setitimer(signal.ITIMER_REAL, 0.01)

    old = signal.signal(signal.SIGALRM, handle)
    batch = Batch()
    batch.add_read(base, "pipe", 10)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        assert batch.run() is None
        assert (len(heard), batch.data(0)) == (2, b"x")
        with pytest.raises(KeyboardInterrupt):
            calls.read_file(base, "pipe", 10, to_end=False)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    for end in ends:
        os.close(end)
