"""Does an operation of a driver again and again, killed each time a little later: run by test_drivers.py.

``killed.py DRIVER DIRECTORY OPERATION`` prints at how many points it was killed.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.append(str(Path(__file__).resolve().parents[3]))

from tests.kernel.unionfs.places import DRIVERS, Place, layer, leftovers, mounted, write
from tests.trees import facts

if TYPE_CHECKING:
    from types import FrameType

    from isolib.unionfs.drivers.base import Driver

POINTS = 16
"""At how many calls of an operation it is killed, from its beginning to its end."""


def fill(top: str) -> None:
    """Make some files."""
    for number in range(20):
        write(f"{top}/d{number % 3}/f{number}", str(number))


def prepare(driver: Driver) -> None:
    """Begin with a tree of which there is a snapshot, a layer above its own, and a draft."""
    for tree in driver.trees():
        driver.remove_tree(tree)
    for name in ("third", "committed", "sealed"):
        driver.remove_layer(name)
    driver.drop("draft")
    layer(driver, "third", ["base"], fill)
    draft = driver.new_draft("draft", [])
    fill(f"/proc/self/fd/{draft.root.fileno()}")
    draft.root.close()
    driver.new_tree("tree", ["base"])
    with mounted(driver, "tree") as top:
        fill(top)
        os.unlink(f"{top}/base")
    driver.release("tree")
    driver.snapshot("tree", "kept")
    with mounted(driver, "tree") as top:
        write(f"{top}/more", "more")
    driver.release("tree")
    driver.settle()


def operate(driver: Driver, operation: str) -> None:
    """Do it, and wait for what goes on behind."""
    if operation == "seal":
        draft = driver.new_draft("other", ["base"])
        driver.seal(draft, "sealed")
    elif operation == "new_tree":
        driver.new_tree("new", ["base"])
    elif operation == "commit":
        driver.commit("tree", "committed")
    elif operation == "snapshot":
        driver.snapshot("tree", "second")
    elif operation == "reset":
        driver.reset("tree", "kept")
    elif operation == "fork":
        driver.fork("tree", "new")
    elif operation == "remove_tree":
        driver.remove_tree("tree")
    else:
        driver.remove_layer("third")
    driver.settle()


def look(driver: Driver, operation: str) -> object:
    """Return what there is to be seen of all that there is."""
    layers: dict[str, object] = {}
    for name in sorted(driver.layers()):
        with driver.open_layer(name) as root:
            layers[name] = facts(f"/proc/self/fd/{root.fileno()}", times=False)
    if operation == "commit":
        layers.pop("committed", None)  # the tree, which follows in the next step, tells what there is
    trees: dict[str, object] = {}
    for name in sorted(driver.trees()):
        with mounted(driver, name) as top:
            trees[name] = facts(top, times=False), frozenset(driver.snapshots(name))
        driver.release(name)
    driver.settle()
    return layers, trees


def calls_of(driver: Driver, operation: str) -> int:
    """Return how many functions of C an operation calls."""
    counter = itertools.count()
    sys.setprofile(lambda _frame, event, _argument: next(counter) if event == "c_call" else None)
    operate(driver, operation)
    sys.setprofile(None)
    return next(counter)


def killed_at(place: Place, operation: str, number: int) -> bool:
    """Do it in a child that is killed at a call; return whether it was."""
    child = os.fork()
    if child == 0:
        counter = itertools.count()

        def watch(_frame: FrameType, event: str, _argument: object) -> None:
            if event == "c_call" and next(counter) == number:
                os.kill(os.getpid(), signal.SIGKILL)

        driver = place.driver()
        sys.setprofile(watch)
        operate(driver, operation)
        sys.setprofile(None)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def main(kind: str, path: str, operation: str) -> None:
    """Check every point."""
    place = Place(DRIVERS[kind], path)
    driver = place.driver()
    layer(driver, "base", [], lambda top: write(f"{top}/base", "base"))
    prepare(driver)
    was = look(driver, operation)
    operate(place.driver(), operation)
    is_to_be = look(driver, operation)
    points = 0
    prepare(driver)
    count = calls_of(place.driver(), operation)
    for number in range(0, count, max(1, count // POINTS)):
        prepare(driver)
        if not killed_at(place, operation, number):
            continue  # what goes on behind is not the same each time
        points += 1
        found = place.driver()
        found.sweep()
        seen = look(found, operation)
        assert seen in (was, is_to_be), f"killed at call {number}: {seen}"
        assert leftovers(path) == [], f"killed at call {number}"
        found.drop("other")
        found.settle()
        assert found.drafts() == {"draft"}
    driver.drop("draft")
    for tree in driver.trees():
        driver.remove_tree(tree)
    driver.settle()
    sys.stdout.write(f"{points}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
