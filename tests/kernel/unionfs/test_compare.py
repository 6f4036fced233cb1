"""Trees compared, on the real kernel."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given

from isolib._kernel.handle import Fd
from isolib.errors import ArchiveError
from isolib.unionfs.compare import changes, difference, exact
from isolib.unionfs.drivers.base import Form
from isolib.unionfs.entry import Change, ChangeKind, Kind
from isolib.unionfs.scan import SMALL, scan
from isolib.unionfs.unpack import unpack
from tests.layered import directory, file, kept, layers, link, make, opaque, pieces, places, symlink, tree, whiteout
from tests.storage import disk

if TYPE_CHECKING:
    from tests.layered import Made

OWNERS = (0, 1000) if os.geteuid() == 0 else (os.geteuid(),)


def told(old: Fd, new: Fd) -> list[Made]:
    """Return what is different."""
    return kept(difference(old.fileno(), new.fileno()))


@given(layers(OWNERS), layers(OWNERS), layers(OWNERS))
def test_applied(base: list[Made], one: list[Made], other: list[Made]) -> None:
    """What is different between two trees, unpacked onto the one, makes the other of it; and nothing of it is the same."""
    with places(3) as (old, new, copy):
        try:
            make(base, old)
            make(one, old)
            make(base, new)
            make(other, new)
        except ArchiveError:
            return
        make(kept(scan(old.fileno(), Form.MERGED)), copy)
        found = told(old, new)
        make(found, copy)
        assert tree(copy.fileno()) == tree(new.fileno())
        assert told(copy, new) == told(new, copy) == told(new, new) == []
        before, after = tree(old.fileno()), tree(new.fileno())
        paths = [entry.path for entry, _ in found]
        assert len(paths) == len(set(paths))
        for path in paths:
            assert before.get(path) != after.get(path)
        directories = {path for path, thing in before.items() if thing.kind is Kind.DIRECTORY} & {
            path for path, thing in after.items() if thing.kind is Kind.DIRECTORY
        }
        gone = {path for path in before if path not in after and path.rpartition(b"/")[0] in directories}
        assert gone == {entry.path for entry, _ in found if entry.kind is Kind.WHITEOUT}


def test_same_time_and_size() -> None:
    """A file of which only the content is another, with the same size and the same times, is different."""
    for size in (3, SMALL + 3, (3 << 20) + 3):
        with places(2) as (old, new):
            make([directory(b""), file(b"f", b"x" * size)], old)
            make([directory(b""), file(b"f", b"x" * (size - 1) + b"y")], new)
            ((entry, content),) = told(old, new)
            assert (entry.path, entry.kind, content[-1:]) == (b"f", Kind.FILE, b"y")


def test_links() -> None:
    """Which names are of one file is part of a tree."""
    apart = [directory(b""), file(b"a", b"1"), file(b"b", b"1"), file(b"c", b"1")]
    linked = [directory(b""), file(b"a", b"1"), link(b"b", b"a"), file(b"c", b"1")]
    others = [directory(b""), file(b"a", b"1"), file(b"b", b"1"), link(b"c", b"b")]
    with places(3) as (one, two, three):
        make(apart, one)
        make(linked, two)
        make(others, three)
        summary = {
            (a, b): [(entry.path, entry.kind, entry.target) for entry, _ in told(x, y)]
            for a, x in enumerate((one, two, three))
            for b, y in enumerate((one, two, three))
        }
    assert summary == {
        (0, 0): [],
        (1, 1): [],
        (2, 2): [],
        (0, 1): [(b"b", Kind.HARDLINK, b"a")],
        (1, 0): [(b"b", Kind.FILE, b"")],
        (0, 2): [(b"c", Kind.HARDLINK, b"b")],
        (2, 0): [(b"c", Kind.FILE, b"")],
        (1, 2): [(b"b", Kind.FILE, b""), (b"c", Kind.HARDLINK, b"b")],
        (2, 1): [(b"b", Kind.HARDLINK, b"a")],  # and c is alone then
    }


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_shared_blocks(kind: str) -> None:
    """Files that share their blocks are the same, and one that was written to since is not."""
    with disk(kind) as made:
        for name in ("old", "new"):
            os.mkdir(name, dir_fd=made.root.fileno())
        old, new = (Fd(os.open(name, os.O_RDONLY, dir_fd=made.root.fileno())) for name in ("old", "new"))
        with old, new:
            data = os.urandom(1 << 20)
            make([directory(b""), file(b"f", data), file(b"g", data)], old)
            unpack(scan(old.fileno(), Form.MERGED), new.fileno(), Form.MERGED)
            assert told(old, new) == []
            times = os.stat("g", dir_fd=new.fileno())
            fd = os.open("g", os.O_WRONLY, dir_fd=new.fileno())
            os.pwrite(fd, b"another", 500_000)
            os.utime(fd, ns=(times.st_mtime_ns, times.st_mtime_ns))
            os.close(fd)
            assert [entry.path for entry, _ in told(old, new)] == [b"g"]


BASE = [
    directory(b""),
    directory(b"d"),
    file(b"d/x", b"1"),
    directory(b"d/sub"),
    file(b"d/sub/y"),
    file(b"f", b"2"),
    symlink(b"s", b"f"),
    directory(b"gone"),
    file(b"gone/z"),
]


def changed(layer: list[Made]) -> dict[str, ChangeKind]:
    """Return what a layer changes."""
    with places(1) as (lower,):
        make(BASE, lower)
        found = changes(pieces(layer), [lower.fileno()], Form.MERGED)
    assert found == sorted(found)
    return {change.path: change.kind for change in found}


def test_changes() -> None:
    """What is new, other and gone is listed, by its topmost path, and no directory of which only the time is other."""
    layer = [
        directory(b"", mtime=5),
        directory(b"d", mtime=7),
        file(b"d/new"),
        file(b"f", b"3"),
        directory(b"s"),
        whiteout(b"gone"),
        whiteout(b"never"),
    ]
    assert changed(layer) == {
        "/d/new": ChangeKind.ADDED,
        "/f": ChangeKind.MODIFIED,
        "/s": ChangeKind.MODIFIED,
        "/gone": ChangeKind.DELETED,
    }


def test_changes_of_an_opaque_directory() -> None:
    """What an opaque directory hides is gone, but for what the layer brings."""
    layer = [directory(b"d"), opaque(b"d"), directory(b"d/sub")]
    assert changed(layer) == {"/d/x": ChangeKind.DELETED, "/d/sub/y": ChangeKind.DELETED}


def test_what_is_the_same_is_no_change() -> None:
    """A file that a layer has as it is below is none of its changes, and is left out by `exact`; its attributes count."""
    assert changed([file(b"d/x", b"1"), symlink(b"s", b"f")]) == {}
    assert changed([file(b"d/x", b"0")]) == {"/d/x": ChangeKind.MODIFIED}
    assert changed([file(b"d/x", b"1", 0o600)]) == {"/d/x": ChangeKind.MODIFIED}
    assert changed([directory(b"d", 0o700)]) == {"/d": ChangeKind.MODIFIED}
    with places(2) as (lower, upper):
        make(BASE, lower)
        make([*BASE[:3], file(b"f", b"3"), symlink(b"s", b"f"), file(b"d/big", b"x" * 70_000)], upper)
        make([file(b"d/big", b"x" * 70_000)], lower)
        left = kept(exact(scan(upper.fileno(), Form.MERGED), [lower.fileno()], Form.MERGED))
    assert left == [directory(b""), directory(b"d"), file(b"f", b"3")]


def test_order_of_changes() -> None:
    """Changes are compared by their paths."""
    assert Change("/a", ChangeKind.DELETED) < Change("/b", ChangeKind.ADDED)
    assert replace(Change("/a", ChangeKind.DELETED), path="/c").path == "/c"
