"""What is done in several directories at once: plain ones here, and errors as those of `Directory`."""

from __future__ import annotations

import os
from errno import EEXIST, ENOTEMPTY
from typing import TYPE_CHECKING

import pytest

from isolib.cgroups import removal
from isolib.cgroups.errands import Errands, contents, do_reading
from isolib.cgroups.files import Directory
from isolib.errors import ClosedError, GoneError, SyscallError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def fill(place: Path) -> None:
    """Make a directory look like a group."""
    place.mkdir()
    (place / "cgroup.procs").write_text("")
    (place / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    (place / "pids.max").write_text("max\n")


@pytest.fixture
def places(tmp_path: Path) -> list[Path]:
    """Return two directories that look like groups of two hierarchies."""
    found = [tmp_path / name for name in ("one", "two")]
    for place in found:
        fill(place)
    return found


@pytest.fixture
def parents(places: list[Path]) -> Iterator[list[Directory]]:
    """Return them, open."""
    opened = [Directory.open(str(place), version) for place, version in zip(places, (2, 1), strict=True)]
    yield opened
    for directory in opened:
        directory.close()


def remove(place: Path) -> None:
    """Take a group away, as the kernel does."""
    for one in place.iterdir():
        one.unlink()
    place.rmdir()


def test_made_in_several(parents: list[Directory], places: list[Path]) -> None:
    """Groups are made and opened in each, and are directories as those that are opened by themselves."""
    errands = Errands()
    numbers = [(errands.make(one, "new"), errands.open_group(one, "new")) for one in parents]
    assert not errands.is_done(0)
    errands.run()
    assert errands.is_complete
    made = [errands.directory(number) for _, number in numbers]
    assert [(one.path, one.version) for one in made] == [(f"{places[0]}/new", 2), (f"{places[1]}/new", 1)]
    for one, place in zip(made, places, strict=True):
        assert os.path.samestat(os.fstat(one.fileno()), os.stat(place / "new"))
    errands.close()
    for one in made:
        with pytest.raises(ClosedError):
            one.fileno()


def told(act: Callable[[], object]) -> tuple[type[BaseException], str]:
    """Return the exception that something raises."""
    with pytest.raises(SyscallError) as caught:
        act()
    return type(caught.value), str(caught.value)


#: What may be refused: as an errand, and as a method of `Directory`.
REFUSALS: dict[str, tuple[Callable[[Errands, Directory], int], Callable[[Directory], object]]] = {
    "make": (lambda errands, one: errands.make(one, "pids.max"), lambda one: one.make("pids.max")),
    "make below nothing": (lambda errands, one: errands.make(one, "a/b"), lambda one: one.make("a/b")),
    "open": (lambda errands, one: errands.open_group(one, "no"), lambda one: Directory.open("no", 2, parent=one)),
    "open a file as a group": (
        lambda errands, one: errands.open_group(one, "pids.max"),
        lambda one: Directory.open("pids.max", 2, parent=one),
    ),
    "open a file": (
        lambda errands, one: errands.open_file(one, "no", os.O_WRONLY),
        lambda one: one.open_file("no", os.O_WRONLY),
    ),
    "read": (lambda errands, one: errands.read(one, "no"), lambda one: one.read("no")),
    "write": (lambda errands, one: errands.write(one, "no", "5"), lambda one: one.write("no", "5")),
}


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("name", REFUSALS)
def test_refused_as_by_itself(name: str, parents: list[Directory], places: list[Path], *, gone: bool) -> None:
    """What is refused in the middle is the same exception as by itself, also where the group has been removed."""
    add, act = REFUSALS[name]
    errands = Errands()
    errands.make(parents[1], "first")
    number = add(errands, parents[0])
    errands.make(parents[1], "last")
    if gone:
        remove(places[0])
    kind, text = told(errands.run)
    assert (kind, text) == told(lambda: act(parents[0]))
    assert (kind is GoneError) == (gone or name == "open")
    assert (places[1] / "first").is_dir()
    assert not (places[1] / "last").exists()
    assert errands.pass_over() == number
    errands.run()
    assert (places[1] / "last").is_dir()


def test_absent(parents: list[Directory]) -> None:
    """A name that is taken is refused as if it should be made."""
    errands = Errands()
    errands.be_absent(parents[0], "free")
    errands.be_absent(parents[1], "pids.max")
    with pytest.raises(SyscallError, match=f"mkdir: {parents[1].path}/pids.max.*the name is taken") as caught:
        errands.run()
    assert caught.value.errno == EEXIST


def test_hold(parents: list[Directory], places: list[Path]) -> None:
    """What is behind a condition is done when it holds, and until then nothing of it."""
    errands = Errands()
    errands.hold(parents[0], "cgroup.events", "populated 0")
    number = errands.read(parents[0], "pids.max")
    for _ in range(2):
        found, refused = do_reading(errands, {"max": number})
        assert (found, errands.is_done(0)) == ({}, False)
        assert refused is not None
    (places[0] / "cgroup.events").write_text("populated 0\n")
    assert do_reading(errands, {"max": number}) == ({"max": "max\n"}, None)


def test_contents(parents: list[Directory], places: list[Path]) -> None:
    """Files are read together; those that the kernel does not give a group are left out, and a group that is gone is told."""
    (places[1] / "io.stat").write_text("8:0 rbytes=1\n" * 1000)
    files = {"a": (parents[0], "pids.max"), "b": (parents[0], "pids.peak"), "c": (parents[1], "io.stat")}
    assert contents(files) == {"a": "max\n", "c": "8:0 rbytes=1\n" * 1000}
    assert contents({}) == {}
    remove(places[0])
    with pytest.raises(GoneError):
        contents(files)


# ---- taking down ----


def test_remove_empty(parents: list[Directory], places: list[Path]) -> None:
    """A group is removed from one after the other, where it is, and then what was opened in it is closed."""
    opened = Errands()
    for parent in parents:
        opened.make(parent, "new")
        opened.open_group(parent, "new")
    opened.run()
    (places[1] / "new" / "below").mkdir()
    assert removal.remove_empty(parents, "new", opened) is False
    assert [(place / "new").exists() for place in places] == [False, True]
    assert not opened.fd(1).closed
    (places[1] / "new" / "below").rmdir()
    assert removal.remove_empty(parents, "new", opened) is True
    assert opened.fd(1).closed
    assert not (places[1] / "new").exists()
    assert removal.remove_empty(parents, "new") is True


def test_remove_all(parents: list[Directory], places: list[Path]) -> None:
    """What cannot be removed from one hierarchy is told, and removed from the others all the same."""
    for place in places:
        (place / "new").mkdir()
    (places[0] / "new" / "file").write_text("")
    with pytest.raises(SyscallError, match=f"rmdir: {parents[0].path}/new") as caught:
        removal.remove_all(parents, "new")
    assert caught.value.errno == ENOTEMPTY
    assert [(place / "new").exists() for place in places] == [True, False]
    (places[0] / "new" / "file").unlink()
    removal.remove_all(parents, "new")
    assert not (places[0] / "new").exists()
