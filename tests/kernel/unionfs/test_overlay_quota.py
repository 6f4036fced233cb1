"""Quotas of trees that are overlays: projects of XFS."""

from __future__ import annotations

import os
from errno import ENOSPC
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib import PlanError, Unsupported
from isolib._kernel import calls
from isolib._kernel.handle import Fd
from tests.kernel.unionfs.places import DRIVERS, Place, layer, mounted, write
from tests.storage import disk
from tests.stores import check

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolib.unionfs.drivers.base import Driver

pytestmark = pytest.mark.root

MOST = 4 << 20


@pytest.fixture
def driver() -> Iterator[Driver]:
    """Return a driver with a layer "base", on XFS that keeps to quotas of projects."""
    with disk("xfs", options={"prjquota": None}) as there:
        os.mkdir(f"{there.path}/home", 0o700)
        made = Place(DRIVERS["overlay"], f"{there.path}/home").driver()
        layer(made, "base", [], lambda top: Path(top, "large").write_bytes(bytes(2 * MOST)))
        yield made
        for tree in made.trees():
            made.remove_tree(tree)
        made.settle()
        made.close()


def fill(top: str) -> int:
    """Write until there is no room; return how much there was."""
    done = 0
    with open(f"{top}/filler", "ab", buffering=0) as file:
        try:
            while done < 4 * MOST:
                done += file.write(bytes(1 << 18))
        except OSError as error:
            assert error.errno == ENOSPC  # noqa: PT017 - how much was written before is what counts
    return done


def test_a_quota_bounds_what_is_written(driver: Driver) -> None:
    """A tree above a layer that is larger takes what it may, and after a reset as much again; another tree is not bounded."""
    driver.new_tree("tree", ["base"], quota=MOST)
    driver.new_tree("free", ["base"])
    for _ in range(2):
        with mounted(driver, "tree") as top:
            assert MOST // 2 <= fill(top) <= MOST
            assert os.stat(f"{top}/large").st_size == 2 * MOST
        driver.reset("tree")
    with mounted(driver, "free") as top:
        assert fill(top) == 4 * MOST


def test_a_quota_bounds_copies_from_below(driver: Driver) -> None:
    """A file of a layer that does not fit cannot be changed, for it is copied first; it can be removed."""
    driver.new_tree("tree", ["base"], quota=MOST)
    with mounted(driver, "tree") as top:
        with pytest.raises(OSError, match="No space left"):
            os.truncate(f"{top}/large", 2 * MOST - 1)
        os.unlink(f"{top}/large")


def test_a_quota_stays_with_a_tree(driver: Driver) -> None:
    """After a commit, in a snapshot's tree, in a fork and in another process's driver it is the same, and starts anew."""
    driver.new_tree("tree", ["base"], quota=MOST)
    with mounted(driver, "tree") as top:
        assert fill(top) <= MOST
    driver.commit("tree", "full")
    with mounted(driver, "tree") as top:
        os.unlink(f"{top}/filler")
        assert MOST // 2 <= fill(top) <= MOST
        os.unlink(f"{top}/filler")
        write(f"{top}/file", "x")
    driver.release("tree")
    driver.snapshot("tree", "kept")
    driver.fork("tree", "fork")
    for name in ("tree", "fork"):
        with mounted(driver, name) as top:
            assert MOST // 2 <= fill(top) <= MOST
        driver.reset(name, "kept" if name == "tree" else None)
    other = Place(DRIVERS["overlay"], driver.path).driver()
    with mounted(other, "tree") as top:
        assert MOST // 2 <= fill(top) <= MOST
    other.release("tree")
    other.settle()
    other.close()


def test_nothing_is_bounded_for_ever(driver: Driver) -> None:
    """A layer that was a tree's, and the number of one that was removed, have no limit any more."""
    driver.new_tree("tree", [], quota=MOST)
    with mounted(driver, "tree") as top:
        fill(top)
    with driver.home as home, Fd(os.dup(home.fileno())) as kept:
        parts = Path(driver.path, "parts")
        with Fd(os.open(next(parts.iterdir()), os.O_RDONLY)) as part:
            project = calls.project_of(part.fileno(), "part")
        assert project
        assert calls.project_is_used(kept.fileno(), project, "project")
        driver.remove_tree("tree")
        driver.settle()
        assert list(parts.iterdir()) == []
        assert not calls.project_is_used(kept.fileno(), project, "project")
        driver.new_tree("tree", [], quota=MOST)
        with mounted(driver, "tree") as top:
            assert fill(top) <= MOST
        driver.commit("tree", "full")
        with driver.open_layer("full") as root:
            Path(f"/proc/self/fd/{root.fileno()}/more").write_bytes(bytes(2 * MOST))


def test_it_is_refused_where_it_would_not_hold() -> None:
    """On XFS without such quotas, with such as are only counted, and on ext4, a quota is refused with what would help."""
    for kind, options in (("xfs", {}), ("xfs", {"pqnoenforce": None}), ("ext4", {}), ("tmpfs", {})):
        with disk(kind, options=options) as there:
            os.mkdir(f"{there.path}/home")
            made = Place(DRIVERS["overlay"], f"{there.path}/home").driver()
            with pytest.raises(Unsupported, match="prjquota"):
                made.new_tree("tree", [], quota=MOST)
            with pytest.raises(PlanError, match="number of bytes"):
                made.new_tree("tree", [], quota=0)
            assert made.trees() == set()
            made.settle()
            made.close()


def test_a_store_has_it() -> None:
    """A checkout with a quota is bounded, and what it commits is an image like any other."""
    with disk("xfs", options={"prjquota": None}) as there, isolib.open_store(f"{there.path}/store", driver="overlay") as store:
        with store.checkout(quota="4M") as tree:
            assert fill(tree.path) <= MOST
            os.truncate(f"{tree.path}/filler", 1 << 20)
            image = tree.commit(tag="bounded")
            os.unlink(f"{tree.path}/filler")
            assert MOST // 2 <= fill(tree.path) <= MOST
        with store.checkout(image) as tree:
            assert os.stat(f"{tree.path}/filler").st_size == 1 << 20
        check(store)
