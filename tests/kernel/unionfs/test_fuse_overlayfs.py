"""What is fuse-overlayfs's own in its driver: a program that serves, and ends; its marks; awkward paths."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from isolib import Unsupported
from isolib._kernel.handle import Fd
from isolib.unionfs.drivers import fuse_overlayfs  # as an attribute, `drivers` is the function of the same name
from isolib.unionfs.drivers.fuse_overlayfs import FuseOverlayDriver
from tests.kernel.unionfs.places import layer, mounted, place, write
from tests.trees import facts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.unionfs.places import Place

pytestmark = pytest.mark.root


@pytest.fixture
def where(tmp_path: Path) -> Iterator[Place]:
    """Return a directory whose name would mean something else in the program's options."""
    top = tmp_path / "a:b,c\\d e"
    top.mkdir()
    with place("fuse-overlayfs", "here", top) as found:
        yield found


def servers() -> set[int]:
    """Return the processes of the program."""
    return {one.pid for one in psutil.process_iter(["name"]) if one.info["name"] == "fuse-overlayfs"}


def test_awkward_paths_and_many_layers(where: Place) -> None:
    """Whatever the path of the directory has in it, and however many layers there are, the tree shows them all."""
    driver = where.driver()
    names = [f"layer:{number},\\" for number in range(60)]
    for name in names:
        layer(driver, name, [], lambda top, name=name: write(f"{top}/{name}"))  # type: ignore[misc]
    driver.new_tree("tree", names)
    with mounted(driver, "tree") as top:
        assert set(os.listdir(top)) == set(names)
    driver.release("tree")
    driver.settle()
    driver.home.close()


def test_layers_hold_no_marks_of_the_program(where: Place) -> None:
    """A directory that was replaced is opaque in the layer by its attribute alone, and hides what was there before."""
    driver = where.driver()
    layer(driver, "base", [], lambda top: write(f"{top}/dir/old"))
    driver.new_tree("tree", ["base"])
    with mounted(driver, "tree") as top:
        shutil.rmtree(f"{top}/dir")
        write(f"{top}/dir/new")
    driver.commit("tree", "second")
    with driver.open_layer("second") as root:
        assert set(facts(f"/proc/self/fd/{root.fileno()}")) == {".", "dir", "dir/new"}
    driver.new_tree("again", ["base", "second"])
    with mounted(driver, "again") as top:
        assert os.listdir(f"{top}/dir") == ["new"]
    driver.release("again")
    driver.settle()
    driver.home.close()


def test_the_program_ends_when_the_tree_is_let_go(where: Place) -> None:
    """There is one process while a tree is mounted, and none when it is released, which may be done again."""
    before = servers()
    driver = where.driver()
    driver.new_tree("tree", [])
    with driver.mount("tree"), driver.mount("tree"):
        assert len(servers() - before) == 1
    driver.release("tree")
    assert servers() <= before
    driver.release("tree")
    driver.home.close()


def test_the_program_ends_with_who_started_it(where: Place) -> None:
    """When the process that has mounted a tree is killed, the program ends, and no mount is left."""
    before = servers()
    code = (
        "import sys; sys.path.append(sys.argv[2]); from tests.kernel.unionfs import places\n"
        "driver = places.Place(places.DRIVERS['fuse-overlayfs'], sys.argv[1]).driver(); driver.new_tree('tree', [])\n"
        "mount = driver.mount('tree'); print(flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, where.path, str(Path(__file__).parents[3])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        pids = servers() - before
        watched = [Fd(os.pidfd_open(pid)) for pid in pids]
        process.kill()
        process.wait()
    assert len(watched) == 1
    assert where.path.encode() not in Path("/proc/self/mountinfo").read_bytes()
    assert b"fuse-overlayfs" not in Path("/proc/self/mountinfo").read_bytes()
    for each in watched:
        with each:
            assert select.select([each], [], [], 10)[0], "it still runs"


def test_without_the_program_it_says_so(where: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the program is not installed, that and how to get it is what the driver says."""
    monkeypatch.setattr(fuse_overlayfs, "_PROGRAM", "no-such-program")
    with Fd(os.open(where.path, os.O_RDONLY)) as home, pytest.raises(Unsupported, match="apt install fuse-overlayfs"):
        FuseOverlayDriver.examine(home.fileno(), where.path)


def test_where_nothing_is_attached_it_says_so(where: Place) -> None:
    """A directory that cannot be shown to the program is refused, with what would help."""
    from isolib._kernel.mountapi import new_mount  # noqa: PLC0415

    with Fd(new_mount("tmpfs")) as detached, pytest.raises(Unsupported, match="attached"):
        FuseOverlayDriver.examine(detached.fileno(), f"/proc/self/fd/{detached.fileno()}")
