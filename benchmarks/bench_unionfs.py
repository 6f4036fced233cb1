"""Union file systems: beside the tools that do the same.

One question so far, answered with all contenders taking turns in one run:

- checkout: a tree of the vfs driver, which is a whole copy, on tmpfs, XFS and btrfs: 10,000 small files with four large ones,
  and what the distribution has of Python

The file systems are made for this, in memory, and are attached nowhere.  What a contender has made is removed, and written to
the disk, before the next one's turn: that time is nobody's.  Goals are judged by minima.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Final

# Last: an installed isolib goes before the checkout, which has no compiled part.
sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from benchmarks import common
from benchmarks.common import Contender
from isolib._kernel import calls
from isolib._kernel.handle import Fd
from isolib.unionfs.copying import copy_tree
from isolib.unionfs.drivers.vfs import VfsDriver
from tests.storage import MAKERS, disk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.storage import Disk

FILE_SYSTEMS: Final = ("tmpfs", "xfs", "btrfs")
SIZE: Final = 3 << 30
PYTHON: Final = "/usr/lib/python3"
CP, ISOLIB, PLAIN, ALONE = "cp -a --reflink=auto", "isolib: VfsDriver.new_tree()", "isolib: copy_tree()", "isolib: one thread"
#: How many times faster than cp it is to be.
WANTED: Final = 1.3


def make_files(top: str, count: int = 10_000, large: int = 4) -> None:
    """Make small files of up to 8 KiB, a hundred in each directory, and some of 20 MiB."""
    os.mkdir(top)
    for number in range(count):
        directory = f"{top}/{number // 100}"
        if number % 100 == 0:
            os.mkdir(directory)
        with open(f"{directory}/{number}", "wb") as file:
            file.write(os.urandom(100 + number * 97 % 8000))
    for number in range(large):
        with open(f"{top}/large{number}", "wb") as file:
            file.write(os.urandom(20 << 20))


def contenders(made: Disk, source: str, driver: VfsDriver, layer: str) -> Iterator[Contender]:
    """Yield who copies a tree."""
    top = made.root.fileno()

    def measured(name: str, once: Callable[[], object]) -> Contender:
        def turn() -> int:
            taken = common.taken(once)
            calls.remove_tree(top, "copy", "copy")
            driver.remove_tree("copy")
            driver.settle()
            sync(made)
            return taken

        return Contender(name, turn)

    def by_isolib(threads: int | None) -> None:
        os.mkdir(f"{made.path}/copy")
        with Fd(os.open(source, os.O_RDONLY)) as old, Fd(os.open(f"{made.path}/copy", os.O_RDONLY)) as new:
            copy_tree(old, new, "copy", threads=threads)

    copy = ["cp", "-a", "--reflink=auto", source, f"{made.path}/copy"]
    yield measured(CP, lambda: subprocess.run(copy, check=True, pass_fds=[top]))
    yield measured(PLAIN, partial(by_isolib, None))
    yield measured(ALONE, partial(by_isolib, 1))
    yield measured(ISOLIB, partial(driver.new_tree, "copy", [layer]))


def sync(made: Disk) -> None:
    """Write everything to the disk."""
    with Fd(os.open(made.path, os.O_RDONLY)) as root:
        calls.syncfs(root.fileno(), made.kind)


def ask_checkout(rounds: int) -> dict[str, object]:
    """Compare copies of trees."""
    found: dict[str, object] = {}
    for kind in FILE_SYSTEMS:
        if os.geteuid() != 0 or (kind in MAKERS and shutil.which(MAKERS[kind][0]) is None):
            found[kind] = {"refused": "it takes root, and the tools of the file system"}
            print(f"\nnot measured: {kind}: it takes root, and the tools of the file system")
            continue
        with contextlib.ExitStack() as stack:
            made = stack.enter_context(disk(kind, size=SIZE))
            os.mkdir(f"{made.path}/home")
            home = stack.enter_context(Fd(os.open(f"{made.path}/home", os.O_RDONLY)))
            driver = VfsDriver(home, f"{made.path}/home")
            make_files(f"{made.path}/files")
            subprocess.run(["cp", "-a", PYTHON, f"{made.path}/python"], check=True, pass_fds=[made.root.fileno()])
            for name in ("files", "python"):
                found[f"{kind} {name}"] = compare(made, driver, name, rounds)
    return found


def compare(made: Disk, driver: VfsDriver, name: str, rounds: int) -> dict[str, object]:
    """Compare copies of one tree."""
    source = f"{made.path}/{name}"
    draft = driver.new_draft(name, [])
    with Fd(os.open(source, os.O_RDONLY)) as old:
        copy_tree(old, draft.root, name)
    driver.seal(draft, name)
    sync(made)
    working, absent = common.present(list(contenders(made, source, driver, name)))
    timings = common.interleave(working, rounds)
    common.table(f"{made.kind}: {name}", timings, CP)
    goals: common.Goals = [common.goal(timings, each, CP, 1 / WANTED) for each in (ISOLIB, PLAIN)]
    return common.answer(timings, absent, goals)


def main() -> None:
    """Answer the questions."""
    parser = common.arguments(__doc__)
    options = common.parse(parser, ["checkout"])
    rounds = 3 if options.quick else 15
    common.write_json(options.json, common.ask(options.questions, {"checkout": partial(ask_checkout, rounds)}))


if __name__ == "__main__":
    main()
