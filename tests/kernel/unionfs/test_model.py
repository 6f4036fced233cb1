"""Every storage driver against one model of a tree, and against every other driver."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

import isolib
from isolib.types import IdMap
from tests.examined import succeeds
from tests.storage import disk
from tests.treemachine import try_trees

if TYPE_CHECKING:
    from collections.abc import Iterator

#: A driver, the file system that its store lies on, and the drivers that take what is made with it.  What fuse-overlayfs shows
#: is at times not what was written, so it only takes what others have made.
PLACES: Final = (
    ("overlay", "tmpfs", ("vfs", "fuse-overlayfs")),
    ("vfs", "here", ("overlay", "vfs")),
    ("btrfs", "btrfs", ("overlay", "vfs")),
)
ALL: Final = pytest.mark.parametrize(
    ("driver", "file_system", "others"), PLACES, ids=[f"{one[0]}-on-{one[1]}" for one in PLACES]
)


@contextmanager
def place(driver: str, file_system: str, tmp_path: Path) -> Iterator[Path]:
    """Give a place for a store; skip the test where this host or this user has none."""
    if driver != "vfs" and os.geteuid() != 0:
        pytest.skip("an ordinary user mounts nothing in the first user namespace")
    with ExitStack() as stack:
        yield tmp_path if file_system == "here" else Path(stack.enter_context(disk(file_system)).path)


def run(driver: str, file_system: str, others: tuple[str, ...], tmp_path: Path, *, examples: int, steps: int) -> None:
    """Run the machine on a driver."""
    with ExitStack() as stack:
        path = stack.enter_context(place(driver, file_system, tmp_path))
        if os.geteuid() != 0:
            others = ("vfs",)
        stores = {
            name: stack.enter_context(isolib.open_store(tmp_path / f"other-{name}", driver=name))
            for name in others
            if name != "fuse-overlayfs" or shutil.which(name)
        }
        try_trees(lambda name: isolib.open_store(path / name, driver=driver), stores, examples=examples, steps=steps)


def run_enclosed(tmp_path: Path, *, examples: int, steps: int) -> None:
    """Run the machine on overlays that are mounted in a user namespace."""
    if not succeeds("unshare", *([] if os.geteuid() == 0 else ["-r"]), "--user", "--mount", "true"):
        pytest.skip("this host gives no user namespace")
    program = str(Path(__file__).with_name("enclosed.py"))
    # Root's ids mean the same inside, so that files can be given away.
    ids = [IdMap(0, 0, 65536)] if os.geteuid() == 0 else "root"
    argv = [sys.executable, program, str(tmp_path), str(examples), str(steps)]
    with isolib.spawn(argv, new={"user", "mnt"}, id_map=ids, stdout=isolib.PIPE, stderr=isolib.STDOUT) as process:
        output, _ = process.communicate()
    assert process.returncode == 0, output


@ALL
def test_a_tree_is_what_a_model_says(driver: str, file_system: str, others: tuple[str, ...], tmp_path: Path) -> None:
    """Whatever is done to a tree, it is what a model of it says, also in another driver's store, and no layer changes."""
    run(driver, file_system, others, tmp_path, examples=20, steps=30)


@pytest.mark.slow
@ALL
def test_a_tree_is_long_what_a_model_says(driver: str, file_system: str, others: tuple[str, ...], tmp_path: Path) -> None:
    """So it is after many more things were done to it."""
    run(driver, file_system, others, tmp_path, examples=30, steps=50)


def test_a_tree_in_a_user_namespace_is_what_a_model_says(tmp_path: Path) -> None:
    """An overlay that keeps its books in user.* attributes does no less."""
    run_enclosed(tmp_path, examples=20, steps=30)


@pytest.mark.slow
def test_a_tree_in_a_user_namespace_is_long_what_a_model_says(tmp_path: Path) -> None:
    """So does one to which many more things are done."""
    run_enclosed(tmp_path, examples=30, steps=50)
