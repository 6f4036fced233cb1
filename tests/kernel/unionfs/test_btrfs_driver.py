"""What is btrfs's own in its driver: subvolumes inside of trees, quotas, owners without privileges."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isolib._kernel import calls
from isolib._kernel.handle import Fd
from isolib.unionfs.disk.compare import difference
from isolib.unionfs.drivers.btrfs import BtrfsDriver
from isolib.unionfs.entry import Kind
from tests.kernel.unionfs.places import layer, leftovers, mounted, place, write
from tests.trees import facts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolib.unionfs.drivers.base import Driver
    from isolib.unionfs.entry import Entry, Pieces
    from tests.kernel.unionfs.places import Place

pytestmark = pytest.mark.root


@pytest.fixture
def where(tmp_path: Path) -> Iterator[Place]:
    """Return a directory on btrfs."""
    with place("btrfs", "btrfs", tmp_path) as found:
        yield found


@pytest.fixture
def driver(where: Place) -> Iterator[Driver]:
    """Return a driver with one layer, "base"."""
    made = where.driver()
    layer(made, "base", [], lambda top: write(f"{top}/file", "text"))
    yield made
    made.settle()
    made.home.close()


def make_subvolume(path: str) -> None:
    """Make a subvolume, as a guest would."""
    above, name = os.path.split(path)
    with Fd(os.open(above, os.O_RDONLY)) as directory:
        calls.btrfs_create(directory.fileno(), name, path)


def nest(top: str) -> None:
    """Make subvolumes in one another, one of them read-only, in and below directories."""
    os.makedirs(f"{top}/dir/below")
    make_subvolume(f"{top}/dir/below/one")
    write(f"{top}/dir/below/one/deep/file", "nested")
    make_subvolume(f"{top}/dir/below/one/deep/two")
    write(f"{top}/dir/below/one/deep/two/file", "in two")
    make_subvolume(f"{top}/three")
    write(f"{top}/three/file", "three")
    os.utime(f"{top}/dir/below", ns=(5, 7))
    with Fd(os.open(f"{top}/three", os.O_RDONLY)) as three:
        calls.btrfs_set_readonly(three.fileno(), "three", readonly=True)


def test_subvolumes_inside_are_in_every_copy(driver: Driver) -> None:
    """What lies in subvolumes that a guest has made is in snapshots, forks and layers, as it is in the tree."""
    driver.new_tree("tree", ["base"])
    with mounted(driver, "tree") as top:
        nest(top)
        before = facts(top)
    driver.snapshot("tree", "kept")
    driver.fork("tree", "fork")
    driver.commit("tree", "second")
    driver.new_tree("again", ["base", "second"])
    driver.reset("tree", "kept")
    for tree in ("tree", "fork", "again"):
        with mounted(driver, tree) as top:
            assert facts(top) == before
    assert list(driver.changed("again")) == []


def test_subvolumes_inside_are_removed(where: Place, driver: Driver) -> None:
    """Trees with subvolumes in them, read-only ones too, leave nothing when they are removed."""
    driver.new_tree("tree", ["base"])
    with mounted(driver, "tree") as top:
        nest(top)
    driver.remove_tree("tree")
    driver.remove_layer("base")
    driver.settle()
    assert leftovers(where.path) == []
    with Fd(os.open(where.path, os.O_RDONLY)) as home:
        assert calls.btrfs_nested(home.fileno(), where.path) == []


def test_layers_cannot_be_written_to(driver: Driver) -> None:
    """A layer is a read-only subvolume: nobody changes it by mistake."""
    with driver.open_layer("base") as root, pytest.raises(OSError, match="Read-only"):
        os.open("file", os.O_WRONLY, dir_fd=root.fileno())


def fill_large(top: str) -> None:
    """Make a file of 8 MiB."""
    Path(top, "large").write_bytes(os.urandom(8 << 20))


def test_a_quota_counts_what_is_its_own(driver: Driver) -> None:
    """A tree above a layer that is larger than its quota can be made and written to."""
    layer(driver, "large", [], fill_large)
    driver.new_tree("tree", ["large"], quota=4 << 20)
    with mounted(driver, "tree") as top:
        write(f"{top}/file", "x" * 1_000_000)
    assert 1_000_000 <= driver.usage("tree").size < 3_000_000


def test_without_privileges(where: Place) -> None:
    """Subvolumes are made, copied and removed by their owner alone, who has no privilege at all."""
    os.chown(where.path, 65534, 65534)
    code = (
        "import os, sys; sys.path.append(sys.argv[2]); from tests.kernel.unionfs import places, test_btrfs_driver as t\n"
        "open(os.devnull, encoding='ascii').close()  # what root alone can read of his Python is read now\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "place = places.Place(places.DRIVERS['btrfs'], sys.argv[1]); driver = place.driver()\n"
        "places.DRIVERS['btrfs'].examine(driver.home.fileno(), sys.argv[1])\n"
        "places.layer(driver, 'base', [], lambda top: places.write(top + '/file', 'text'))\n"
        "driver.new_tree('tree', ['base'])\n"
        "with places.mounted(driver, 'tree') as top: t.nest(top)\n"
        "driver.snapshot('tree', 'kept'); driver.commit('tree', 'second'); driver.reset('tree')\n"
        "assert driver.usage('tree').size >= 0\n"
        "driver.remove_tree('tree'); driver.remove_layer('second'); driver.remove_layer('base'); driver.settle()\n"
        "assert not places.leftovers(sys.argv[1])\n"
    )
    root = str(Path(__file__).parents[3])
    number = int(where.path.split("/")[4])
    command = [sys.executable, "-c", code, where.path, root]
    done = subprocess.run(command, pass_fds=[number], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_other_subvolumes_do_not_matter(where: Place, driver: Driver) -> None:
    """A directory is found to do for the driver although the file system has subvolumes elsewhere."""
    driver.new_tree("tree", ["base"])
    beside = f"{where.path}-beside"
    os.mkdir(beside)
    with Fd(os.open(beside, os.O_RDONLY)) as home:
        where.kind.examine(home.fileno(), beside)
    assert os.listdir(beside) in ([], ["aside"])


# ---- what was written since ----


def fill_many(top: str) -> None:
    """Make a thousand files in twenty directories, some of which have another name in another directory."""
    for number in range(1000):
        write(f"{top}/d{number % 20}/f{number}", str(number))
    for number in range(0, 1000, 50):
        os.link(f"{top}/d{number % 20}/f{number}", f"{top}/d{(number + 7) % 20}/link{number}")


def change_some(top: str) -> None:
    """Change a few things, each in another way."""
    write(f"{top}/d1/f1", "longer than it was")
    status = os.stat(f"{top}/d2/f2")
    write(f"{top}/d2/f2", "3")
    os.utime(f"{top}/d2/f2", ns=(status.st_atime_ns, status.st_mtime_ns))
    with open(f"{top}/d3/f3", "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[:1] = b"x"
    os.chmod(f"{top}/d4/f4", 0o700)
    os.setxattr(f"{top}/d5/f5", "user.one", b"1")
    os.unlink(f"{top}/d6/f6")
    os.rename(f"{top}/d7/f7", f"{top}/d8/moved")
    os.unlink(f"{top}/d0/f100")  # its other name stays
    os.link(f"{top}/d11/f11", f"{top}/d12/more")
    os.chmod(f"{top}/d13", 0o700)
    os.unlink(f"{top}/d14/f14")
    os.rename(f"{top}/d14/f34", f"{top}/d14/f14")
    os.symlink("f15", f"{top}/d15/symlink")
    make_subvolume(f"{top}/d16/subvolume")
    write(f"{top}/d16/subvolume/file", "in it")


def told(pieces: Pieces) -> list[tuple[Entry, bytes]]:
    """Return all that is in pieces."""
    return [(entry, b"" if content is None else content.read()) for entry, content in pieces]


def both(driver: Driver) -> tuple[int, set[int] | None]:
    """Compare a tree with its layer by what was written since and as a whole; return how many pieces there are, and where."""
    assert isinstance(driver, BtrfsDriver)
    below = driver._below("trees/tree/now")[-1]
    with driver.mount("tree") as new, driver.open_layer(below) as old:
        within = driver._within(old, new)
        found = told(difference(old.fileno(), new.fileno()))
    assert told(driver.changed("tree")) == found
    return len(found), None if within is None else {*within}


def test_only_what_was_written_is_looked_at(driver: Driver) -> None:
    """Whatever was done to some files of many is told as by a comparison of everything, after a commit and a reset too."""
    layer(driver, "many", [], fill_many)
    driver.new_tree("tree", ["many"])
    with driver.mount("tree") as new, driver.open_layer("many") as old:
        assert isinstance(driver, BtrfsDriver)
        assert len(driver._within(old, new) or range(1000)) < 100
    assert both(driver)[0] == 0
    with mounted(driver, "tree") as top:
        change_some(top)
    count, within = both(driver)
    assert count > 20
    assert within is not None
    assert len(within) < 300
    driver.commit("tree", "changed")
    assert both(driver)[0] == 0
    driver.reset("tree")
    assert both(driver)[0] == 0
    with mounted(driver, "tree") as top:
        write(f"{top}/d1/f21", "again")
    count, within = both(driver)
    assert count == 1
    assert within is not None
    driver.snapshot("tree", "kept")
    driver.reset("tree", "kept")
    assert both(driver) == (1, None), "of a copy of a copy the kernel tells nothing"
    driver.remove_tree("tree")


@pytest.mark.parametrize("move", ["rename", "exchange"])
def test_bonds_of_files_in_a_directory_that_was_moved(driver: Driver, move: str) -> None:
    """Names of one file stay so in a layer though the directory of one of them was moved, and neither name was touched."""
    layer(driver, "many", [], fill_many)
    driver.new_tree("tree", ["many"])
    with mounted(driver, "tree") as top:
        if move == "rename":
            os.rename(f"{top}/d0", f"{top}/d3/d0")
        else:
            with Fd(os.open(top, os.O_RDONLY)) as here:
                calls.rename(here.fileno(), "d0", here.fileno(), "d1", calls.RENAME_EXCHANGE, top)
    both(driver)
    path = b"d3/d0/f0" if move == "rename" else b"d1/f0"
    bonds = {entry.path: entry.target for entry, _ in driver.changed("tree") if entry.kind is Kind.HARDLINK}
    names = {path, b"d7/link0"}
    assert any({one, target} == names for one, target in bonds.items()), bonds
