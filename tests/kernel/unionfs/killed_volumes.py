"""Does an operation with a volume again and again, killed each time a little later: run by test_volumes.py.

``killed_volumes.py STORE IMAGE OPERATION`` prints at how many points it was killed.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.append(str(Path(__file__).resolve().parents[3]))

import isolib
from tests.stores import check
from tests.trees import facts

if TYPE_CHECKING:
    from types import FrameType

    from isolib.unionfs import Store

POINTS = 6
"""At how many calls of an operation it is killed, from its beginning to its end."""


def prepare(store: Store, archive: str) -> None:
    """Begin with a volume that is empty, one that has something in it, and its archive."""
    for name in store.volumes():
        store.volume(name).remove()
    store.new_volume("empty", labels={"is": "empty"}).close()
    with store.new_volume("full") as full:
        full.fill("base", "/data")
        full.save(archive)
        for number in range(9):
            Path(full.path, f"more{number}").write_text(str(number), encoding="ascii")


def operate(store: Store, archive: str, operation: str) -> None:
    """Do it."""
    if operation == "new":
        store.new_volume("new").close()
    elif operation == "fill":
        with store.volume("empty") as volume:
            volume.fill("base", "/data")
    elif operation == "restore":
        with store.volume("full") as volume:
            volume.restore(archive, replace=True)
    elif operation == "clone":
        with store.volume("full") as volume, volume.clone("new"):
            pass
    else:
        store.volume("full").remove()


def look(store: Store) -> object:
    """Return what there is to be seen of all volumes."""
    found: dict[str, object] = {}
    for name in store.volumes():
        with store.volume(name) as volume:
            found[name] = volume.labels, facts(volume.path, times=False)
    return found


def killed_at(path: str, archive: str, operation: str, number: int) -> int:
    """Do it in a child that is killed at a call, 0: at none; return how many calls there were, or 0 when it was killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        counter = itertools.count(1)

        def watch(_frame: FrameType, event: str, _argument: object) -> None:
            if event == "c_call" and next(counter) == number:
                os.kill(os.getpid(), signal.SIGKILL)

        with isolib.open_store(path) as store:
            sys.setprofile(watch)
            operate(store, archive, operation)
            sys.setprofile(None)
        os.write(writing, str(next(counter)).encode("ascii"))
        os._exit(0)
    os.close(writing)
    count = os.read(reading, 32)
    os.close(reading)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) == (not count), status
    return int(count or 0)


def main(path: str, image: str, operation: str) -> None:
    """Check every point."""
    archive = f"{image}.volume"
    with isolib.open_store(path) as store:
        store.load(image, name="base")
        prepare(store, archive)
        was = look(store)
    count = killed_at(path, archive, operation, 0)
    with isolib.open_store(path) as store:
        is_to_be = look(store)
    assert was != is_to_be
    points = 0
    for number in range(1, count, max(1, count // POINTS)):
        with isolib.open_store(path) as store:
            prepare(store, archive)
        if killed_at(path, archive, operation, number):
            continue  # not each time are there as many
        points += 1
        with isolib.open_store(path) as store:
            seen = look(store)
            assert seen in (was, is_to_be), f"killed at call {number}: {seen}"
            check(store)
            assert look(store) == seen
    with isolib.open_store(path) as store:
        for name in store.volumes():
            store.volume(name).remove()
    sys.stdout.write(f"{points}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
