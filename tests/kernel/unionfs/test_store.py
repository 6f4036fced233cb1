"""A store: who may use it at once, what survives a kill, what is refused, what is collected."""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import subprocess
import sys
import threading
from errno import EBUSY, ENOSPC, EROFS
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib import ImageNotFound, PermissionDenied, PlanError, StoreDamaged, SyscallError, Unsupported
from isolib.unionfs import Subject, drivers
from tests.images import Draft, layer, layout, packed, written
from tests.interrupts import interrupt
from tests.storage import disk
from tests.stores import check, driver, leftovers, store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from isolib.unionfs import Store

__all__ = ["driver", "store"]

SMALL = layer({"etc": None, "etc/motd": b"hello\n", "bin": None, "bin/sh": b"#!" * 5000})
ABOVE = layer({"etc": None, "etc/motd": b"changed\n", "etc/.wh.gone": b"", "var": None, "var/log": b"x" * 100})


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Return an archive of an image of two layers."""
    return packed(layout(("", Draft([SMALL, ABOVE]))), tmp_path / "image.tar")


def files(path: str) -> dict[str, bytes]:
    """Return all files below a directory, and their contents."""
    return {str(one): one.read_bytes() for one in sorted(Path(path).rglob("*")) if one.is_file() and not one.is_symlink()}


def run(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start Python with a program that uses isolib."""
    argv = [sys.executable, "-c", f"import os, sys, isolib\n{code}", *map(str, arguments)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finished(*processes: subprocess.Popen[str]) -> None:
    """Wait for processes, which must succeed."""
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output


# ---- opening ----


def test_a_store_keeps_to_its_driver(store: Store, driver: str) -> None:
    """A store is opened again with the driver that it was made with, and with no other."""
    with isolib.open_store(store.path) as again:
        assert (again.driver, again.path) == (driver, store.path)
    with pytest.raises(PlanError, match=r"the store .* has the driver"):
        isolib.open_store(store.path, driver={"overlay": "vfs", "vfs": "overlay"}[driver])


def test_there_is_no_driver_of_another_name(tmp_path: Path) -> None:
    """An unknown driver is refused, and no directory is made."""
    with pytest.raises(PlanError, match="driver: 'tape' is none; there are overlay, "):
        isolib.open_store(tmp_path / "new", driver="tape")
    assert not (tmp_path / "new").exists()


def test_the_best_driver_is_chosen_by_trying(tmp_path: Path) -> None:
    """Where none is named, a new store has the first of those that work there."""
    working = [name for name, feature in drivers(tmp_path).items() if feature]
    assert "vfs" in working
    with isolib.open_store(tmp_path / "new") as opened:
        assert opened.driver == working[0]


def test_a_driver_that_is_absent_says_what_it_needs(tmp_path: Path) -> None:
    """Each driver that does not work in a directory is told with what refuses it and what would help; nothing is left there."""
    found = drivers(tmp_path)
    assert list(found) == ["overlay", "btrfs", "zfs", "fuse-overlayfs", "vfs", "devicemapper", "aufs"]
    for name, feature in found.items():
        assert feature.name == name
        assert feature.available or (feature.refused_by and feature.remedy)
    assert list(tmp_path.iterdir()) == []
    file_system = subprocess.run(
        ["stat", "-f", "-c", "%T", tmp_path], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert bool(found["btrfs"]) == (file_system == "btrfs")


def test_a_directory_of_other_things_is_no_store(tmp_path: Path) -> None:
    """A directory that has something in it and is no store is not made one."""
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(PlanError, match="is no store, and has 'mine' in it"):
        isolib.open_store(tmp_path, driver="vfs")
    assert [one.name for one in tmp_path.iterdir()] == ["mine"]


def test_a_store_of_a_newer_version_is_not_touched(tmp_path: Path, image: Path) -> None:
    """A store that a newer isolib has made is refused as such, and stays as it is."""
    with isolib.open_store(tmp_path / "store", driver="vfs") as opened:
        opened.load(image)
    version = tmp_path / "store/store.json"
    version.write_text(json.dumps({**json.loads(version.read_text()), "version": 2}))
    before = files(str(tmp_path / "store"))
    with pytest.raises(Unsupported, match="it is of version 2 -- a newer isolib"):
        isolib.open_store(tmp_path / "store")
    assert files(str(tmp_path / "store")) == before


@pytest.mark.parametrize("text", ["", "{", "{}", '{"version": "1"}', '{"version": 1, "driver": "tape"}'])
def test_a_store_that_does_not_say_what_it_is_is_damaged(tmp_path: Path, text: str) -> None:
    """A version file that cannot be understood is damage, and no reason to make a new store."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store/store.json").write_text(text)
    with pytest.raises(StoreDamaged, match=r"store\.json"):
        isolib.open_store(tmp_path / "store")
    assert (tmp_path / "store/store.json").read_text() == text


def test_only_its_owner_gets_into_a_store(store: Store) -> None:
    """A store has set-user-id programs in it: its directory is closed to others."""
    assert os.stat(store.path).st_mode & 0o777 == 0o700


def test_where_a_store_is_when_nothing_is_said(tmp_path: Path) -> None:
    """An ordinary user's store is in the directory for data; root's on the host in /var/lib."""
    code = "from isolib.unionfs.store.store import default_path; print(default_path())"
    root = os.geteuid() == 0
    for extra, expected in [
        ({"XDG_DATA_HOME": "/data"}, "/data/isolib"),
        ({"XDG_DATA_HOME": ""}, "/home/me/.local/share/isolib"),
    ]:
        env = {**os.environ, "HOME": "/home/me", **extra}
        told = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout.strip()
        assert told == ("/var/lib/isolib" if root else expected)


def test_many_processes_make_one_store(tmp_path: Path, image: Path) -> None:
    """Eight processes that open a new store at once have one store, and each can use it."""
    code = "with isolib.open_store(sys.argv[1], driver='vfs') as s: s.load(sys.argv[2])"
    finished(*(run(code, tmp_path / "s", image) for _ in range(8)))
    with isolib.open_store(tmp_path / "s") as opened:
        assert len(opened.images()) == 1
        check(opened)


# ---- several at once ----


def test_many_processes_load_the_same_and_other_images(store: Store, tmp_path: Path) -> None:
    """Eight processes that load at once, two by two the same, get all images, and layers that they share are made once."""
    for number in range(4):
        draft = Draft([SMALL, layer({"etc": None, "etc/number": str(number).encode()})])
        written(layout((f"image:{number}", draft)), tmp_path / str(number))
    code = "with isolib.open_store(sys.argv[1]) as s: s.load(sys.argv[2])"
    finished(*(run(code, store.path, tmp_path / str(number % 4)) for number in range(8)))
    assert {image.names for image in store.images()} == {(f"image:{number}",) for number in range(4)}
    assert len({one.chain_id for image in store.images() for one in image.layers}) == 5


def test_threads_commit_and_collect_at_once(store: Store, image: Path) -> None:
    """Threads that check out, commit and collect at the same time do not disturb each other."""
    base = store.load(image)
    made: list[str] = []
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(4):
                with store.checkout(base) as tree:
                    Path(tree.path, "mine").write_text(f"{number} {turn}")
                    made.append(tree.commit(tag=f"made:{number}-{turn}").digest)
                store.gc()
        except BaseException as error:  # noqa: BLE001 - shown by the test
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert {one.digest for one in store.images()} == {base.digest, *made}
    assert len(set(made)) == 16


def test_what_a_load_relies_on_is_not_collected(store: Store, tmp_path: Path, image: Path) -> None:
    """A collection in the midst of a load leaves the layers that the load has made, though no image has them yet."""
    seen: list[int] = []

    def collect(progress: object) -> None:
        seen.append(len(store.gc().layers))

    loaded = store.load(image, progress=collect)
    assert set(seen) == {0}
    assert store.image(loaded.digest).layers == loaded.layers


# ---- trees ----


def test_a_tree_without_a_name_goes_with_its_process(store: Store, image: Path) -> None:
    """The tree of a process that was killed is collected, and that of one that lives is not."""
    base = store.load(image)
    with store.checkout(base) as living:
        Path(living.path, "here").write_text("x")
        code = "t = isolib.open_store(sys.argv[1]).checkout(sys.argv[2]); print('ready', flush=True); sys.stdin.read()"
        argv = [sys.executable, "-c", f"import sys, isolib\n{code}", store.path, base.digest]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            assert store.gc().trees == ()
            process.kill()
            process.wait()
            assert len(store.gc().trees) == 1
        assert Path(living.path, "here").read_text() == "x"


def test_a_tree_with_a_name_is_kept(store: Store, image: Path) -> None:
    """A tree that has a name is there again when it is asked for, with its changes and snapshots."""
    base = store.load(image)
    with store.checkout(base, name="work") as tree:
        Path(tree.path, "one").write_text("1")
        tree.snapshot("first")
        Path(tree.path, "two").write_text("2")
        with pytest.raises(SyscallError) as caught:
            store.tree("work")
        assert caught.value.errno == EBUSY
        with pytest.raises(PlanError, match="has a tree 'work' already"):
            store.checkout(base, name="work")
    base.remove()
    assert store.gc().layers == ()
    assert store.trees() == ("work",)
    with store.tree("work") as tree:
        assert tree.image is None
        assert [change.path for change in tree.changes()] == ["/one", "/two"]
        assert tree.snapshots == ("first",)
        tree.reset("first")
        assert [change.path for change in tree.changes()] == ["/one"]
        assert len(tree.commit(tag="from:work").layers) == 3
        tree.remove()
    assert store.trees() == ()
    with pytest.raises(ImageNotFound):
        store.tree("work")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", "x" * 129, "a\n", "é"])
def test_names_of_trees_are_plain(tmp_path: Path, name: str) -> None:
    """A name that would not be one directory is refused."""
    with isolib.open_store(tmp_path / "store", driver="vfs") as opened:
        with pytest.raises(PlanError):
            opened.checkout(name=name)
        with pytest.raises(PlanError):
            opened.tree(name)


def test_closing_a_store_closes_its_trees(store: Store) -> None:
    """A tree does not outlive the store that it was made with, and leaves nothing there."""
    with isolib.open_store(store.path) as again:
        tree = again.checkout()
    assert tree.closed
    assert store._records.trees() == []
    tree.close()


# ---- what is collected ----


def test_layers_go_when_nothing_needs_them(store: Store, tmp_path: Path, image: Path) -> None:
    """Layers that two images share stay with the last, and what is collected can be loaded again."""
    first = store.load(image, name="first")
    other = store.load(written(layout(("", Draft([SMALL]))), tmp_path / "other"), name="other")
    assert first.layers[0] == other.layers[0]
    first.remove()
    assert store.gc().layers == (first.layers[1].chain_id,)
    other.remove()
    assert store.gc().layers == (first.layers[0].chain_id,)
    assert store.load(image).layers == first.layers


def test_images_without_a_name_stay_unless_they_are_to_go(store: Store, image: Path) -> None:
    """A collection takes images that have no name only when it is told to."""
    unnamed = store.load(image)
    assert store.gc().images == ()
    assert store.gc(unnamed=True).images == (unnamed.digest,)
    assert store.images() == ()
    with pytest.raises(ImageNotFound):
        unnamed.tag("too:late")
    with pytest.raises(ImageNotFound):
        unnamed.remove()


# ---- what is refused ----


def readonly(store: Store, image: Path) -> Iterator[tuple[int, bool]]:
    """Try whatever changes a store that can only be read; yield the error number of each, and whether it says so."""
    base = store.images()[0]
    actions: list[Callable[[], object]] = [
        *(partial(store.load, image), partial(store.checkout, base), partial(base.tag, "new"), partial(base.untag, "base")),
        *(base.remove, store.gc),
    ]
    for action in actions:
        with pytest.raises(SyscallError) as caught:
            action()
        yield caught.value.errno, "only be read" in str(caught.value)


@pytest.mark.root
def test_a_store_on_a_read_only_file_system_can_be_read(tmp_path: Path, image: Path) -> None:
    """What would change such a store is EROFS; its images can be looked at, verified and saved."""
    with disk("tmpfs") as there:
        with isolib.open_store(f"{there.path}/store", driver="vfs") as opened:
            base = opened.load(image, name="base")
        with there.readonly() as mount, isolib.open_store(f"/proc/self/fd/{mount.fileno()}/store") as opened:
            assert set(readonly(opened, image)) == {(EROFS, True)}
            assert opened.image("base") == base
            assert opened.verify() == ()
            opened.image("base").save(tmp_path / "saved.tar")
        with isolib.open_store(f"{there.path}/store") as opened:
            assert opened.load(tmp_path / "saved.tar") == base
            check(opened)


@pytest.mark.unprivileged
def test_a_store_that_may_only_be_read_can_be_read(tmp_path: Path, image: Path) -> None:
    """What would change a store whose directories are closed to writing is refused as such; the rest works."""
    with isolib.open_store(tmp_path / "store", driver="vfs") as opened:
        base = opened.load(image, name="base")
    parts = [tmp_path / "store", *(one for one in (tmp_path / "store").iterdir() if one.is_dir())]
    for part in parts:
        part.chmod(0o500)
    with isolib.open_store(tmp_path / "store") as opened:
        with pytest.raises(PermissionDenied, match="only be read"):
            opened.load(image)
        assert opened.verify() == ()
        assert opened.image("base").save(tmp_path / "saved.tar")
    for part in parts:
        part.chmod(0o700)
    with isolib.open_store(tmp_path / "store") as opened:
        assert opened.load(tmp_path / "saved.tar") == base


@pytest.mark.root
@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
def test_a_full_disk_leaves_the_store_intact(tmp_path: Path, image: Path, driver: str, kind: str) -> None:
    """A load and a commit for which there is no room are ENOSPC, leave nothing, and work when there is room again."""
    big = packed(layout(("", Draft([SMALL, layer({"big": os.urandom(40 << 20)})]))), tmp_path / "big.tar")
    with disk(kind, size=32 << 20) as there, isolib.open_store(f"{there.path}/store", driver=driver) as opened:
        base = opened.load(image, name="base")
        with pytest.raises(SyscallError) as caught:
            opened.load(big)
        assert caught.value.errno == ENOSPC
        assert opened.images() == (base,)
        check(opened)
        with opened.checkout(base) as tree:
            with open(f"{tree.path}/filler", "wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
                file.writelines(bytes(1 << 16) for _ in range(1024))
            os.truncate(f"{tree.path}/filler", 0)
            Path(tree.path, "small").write_text("fits")
            done = tree.commit(tag="done")
        assert len(done.layers) == 3
        check(opened)


# ---- what is found ----


def damaged(store: Store, image: Path) -> Iterator[tuple[Path, Subject]]:
    """Yield paths in a store, each with what is wrong when it is damaged."""
    loaded = store.load(image, name="one")
    root = Path(store.path)
    one = loaded.layers[0].chain_id.removeprefix("sha256:")
    yield root / "blobs" / loaded.digest.removeprefix("sha256:"), Subject.BLOB
    yield root / "layers" / one / "recipe", Subject.LAYER
    yield root / "layers" / one / "meta.json", Subject.LAYER
    yield root / "images" / loaded.digest.removeprefix("sha256:"), Subject.IMAGE
    yield next((root / "names").iterdir()), Subject.NAME
    yield next((root / "driver" / "layers" / one).rglob("bin/sh")), Subject.LAYER


@pytest.mark.parametrize("number", range(6))
def test_verify_finds_what_was_damaged(tmp_path: Path, driver: str, image: Path, number: int) -> None:
    """A byte that was changed anywhere on record is found, and said of what it is."""
    with isolib.open_store(tmp_path / "store", driver=driver) as opened:
        path, subject = list(damaged(opened, image))[number]
        assert opened.verify() == ()
        data = path.read_bytes()
        path.write_bytes(data[:-3] + b"@@@")
        found = opened.verify()
        assert subject in {finding.subject for finding in found}, found
        path.unlink()
        if path.parent.name not in {"images", "names"}:
            needs = Subject.IMAGE if subject is Subject.BLOB else subject
            assert needs in {finding.subject for finding in opened.verify()}


def test_a_layer_that_is_gone_is_found(tmp_path: Path, driver: str, image: Path) -> None:
    """A layer that the driver lost, or the records, is found missing; what it is needed for is told."""
    with isolib.open_store(tmp_path / "store", driver=driver) as opened:
        loaded = opened.load(image)
        opened._records.driver.remove_layer(loaded.layers[1].chain_id.removeprefix("sha256:"))
        assert [(one.subject, "no such layer" in one.problem) for one in opened.verify()] == [(Subject.LAYER, True)]
        opened._records.layout.remove(f"layers/{loaded.layers[0].chain_id.removeprefix('sha256:')}")
        assert {one.subject for one in opened.verify()} == {Subject.LAYER, Subject.IMAGE}
        with pytest.raises(StoreDamaged):
            loaded.save(tmp_path / "x.tar")
        assert not (tmp_path / "x.tar").exists()


# ---- what survives a kill ----

WORK = """
import random

path, archive = sys.argv[1:]

def tell(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def count(frame, event, argument):
    global left
    if event == "c_call":
        left -= 1
        if left == 0:
            os.kill(os.getpid(), 9)

def turn(store):
    loaded = store.load(archive, name="loaded")
    tell("made", loaded.digest)
    with store.checkout(loaded) as tree:
        with open(f"{tree.path}/new", "w") as file:
            file.write(str(random.random()))
        tree.snapshot()
        made = tree.commit(tag="made")
        tell("made", made.digest)
    try:
        kept = store.tree("kept")
    except isolib.ImageNotFound:
        kept = store.checkout(loaded, name="kept")
    with kept:
        with open(f"{kept.path}/kept", "w") as file:
            file.write(str(random.random()))
        name = kept.snapshot()
        of_kept = kept.commit(tag="of-kept")
        tell("made", of_kept.digest)
        kept.reset(name)
    tell("gone", made.digest)
    made.remove()
    tell("gone", loaded.digest)
    loaded.remove()
    store.gc()
    tell("gone", of_kept.digest)
    of_kept.remove()
    store.gc(unnamed=True)

with isolib.open_store(path) as store:
    turn(store)  # what is imported and cached, is
    store._records.driver.settle()
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        random.seed()
        left = stop = int(line)
        with isolib.open_store(path) as store:
            sys.setprofile(count)
            turn(store)
            sys.setprofile(None)
        tell("calls", stop - left)
        os._exit(0)
    tell("status", os.waitpid(child, 0)[1])
"""


class Worker:
    """A process whose children use a store, one after the other, each to be killed somewhere.

    Attributes
    ----------
    made
        Digests of the images that the last child has said to have made, and not to be about to remove.
    """

    def __init__(self, store: Store, image: Path) -> None:
        argv = [sys.executable, "-c", f"import os, sys, isolib\n{WORK}", store.path, str(image)]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.made: set[str] = set()

    def work(self, stop: int) -> int:
        """Have a child work, and be killed at its so many-th call of a C function; 0: not at all.

        Returns
        -------
        int
            How many it made, when it was not killed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{stop}\n")
        self._process.stdin.flush()
        self.made.clear()
        calls = 0
        while (line := self._process.stdout.readline().split())[0] != "status":
            if line[0] == "made":
                self.made.add(line[1])
            elif line[0] == "gone":
                self.made.discard(line[1])
            else:
                calls = int(line[1])
        assert int(line[1]) == (0 if calls else signal.SIGKILL)
        return calls

    def end(self) -> None:
        """End it."""
        self._process.communicate(timeout=120)
        assert self._process.returncode == 0


def survives(store: Store, tmp_path: Path, image: Path, chosen: random.Random, kills: int) -> None:
    """Kill processes at random points, and look after each."""
    before = store.load(written(layout(("", Draft([layer({"before": b"1"})]))), tmp_path / "before"), name="before")
    with store.checkout(before, name="mine") as tree:
        Path(tree.path, "mine").write_text("mine")
        committed = tree.commit(tag="committed")
        Path(tree.path, "later").write_text("later")
    worker = Worker(store, image)
    mounts = Path("/proc/self/mountinfo").read_bytes()
    try:
        most = worker.work(0)
        for number in range(kills):
            stop = chosen.randrange(1, most)
            worker.work(stop)
            assert store.verify() == (), stop
            assert worker.made <= {one.digest for one in store.images()}, stop
            store.gc()
            assert store.verify() == (), stop
            assert leftovers(store) == {}, stop
            assert worker.made <= {one.digest for one in store.images()}, stop
            assert store.image("committed") == committed
            assert store.image("before") == before
            if "kept" in store.trees():
                with store.tree("kept") as tree:
                    assert {change.path for change in tree.changes()} <= {"/kept"}, stop
                    tree.commit()
                    if number % 8 == 7:  # it has become many layers, and is begun anew
                        tree.remove()
                        store.gc(unnamed=True)
    finally:
        worker.end()
    assert store.path.encode() not in Path("/proc/self/mountinfo").read_bytes().replace(mounts, b"")
    for name in store.trees():
        with store.tree(name) as tree:
            assert name != "mine" or [change.path for change in tree.changes()] == ["/later"]
            tree.remove()


@pytest.mark.parametrize("seed", range(2))
def test_a_kill_at_any_time_loses_nothing(store: Store, tmp_path: Path, image: Path, seed: int) -> None:
    """Killed anywhere, a process leaves a store that is in order, with all that was committed before, and nothing for good."""
    survives(store, tmp_path, image, random.Random(seed), 4)  # noqa: S311 - the same points each time


@pytest.mark.slow
def test_a_hundred_kills_lose_nothing(store: Store, tmp_path: Path, image: Path) -> None:
    """The same, a hundred times over with each driver, at other points each time."""
    survives(store, tmp_path, image, random.Random(), 100)  # noqa: S311 - any points


@pytest.mark.slow
@pytest.mark.root
def test_kills_lose_nothing_on_btrfs(tmp_path: Path, image: Path) -> None:
    """The same with subvolumes."""
    with disk("btrfs") as there:
        path = f"/proc/{os.getpid()}/fd/{there.root.fileno()}/store"
        with isolib.open_store(path, driver="btrfs") as opened:
            survives(opened, tmp_path, image, random.Random(), 20)  # noqa: S311 - any points
            check(opened)


def descriptors() -> set[str]:
    """Return what is open in this process."""
    return {
        f"{number} {os.readlink(f'/proc/self/fd/{number}')}"
        for number in os.listdir("/proc/self/fd")
        if os.path.lexists(f"/proc/self/fd/{number}")
    }


@pytest.mark.filterwarnings("ignore:never closed:ResourceWarning")  # its close was interrupted at its entry, and comes anyway
def test_an_interrupt_at_any_time_leaves_nothing(store: Store, image: Path) -> None:
    """KeyboardInterrupt anywhere in a load, a checkout or a commit is raised, and nothing stays half made or open."""
    base = store.load(image, name="base")

    def action() -> None:
        store.load(image)
        with store.checkout(base) as tree:
            Path(tree.path, "new").write_text("x")
            tree.commit("interrupted")

    action()
    driver = store._records.driver
    driver.settle()
    gc.collect()
    before = descriptors()
    turn, step = 1, 301
    while interrupt(turn, action, lambda code: "isolib/unionfs" in code.co_filename) <= 0:
        gc.collect()
        driver.settle()
        assert descriptors() == before, turn
        assert store.verify(contents=False) == (), turn
        turn += step
    assert turn > 5 * step
    store.gc(unnamed=True)
    assert store.images() == (base,)


def test_a_forked_child_gives_nothing_back(store: Store, image: Path) -> None:
    """A copy of the process that os.fork made leaves tree and store to its parent."""
    base = store.load(image)
    with store.checkout(base) as tree:
        child = os.fork()
        if child == 0:
            tree.close()
            store.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        Path(tree.path, "still").write_text("here")
        assert [change.path for change in tree.changes()] == ["/still"]
