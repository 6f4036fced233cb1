"""Union file systems: beside the bare system calls (floor_unionfs.c), and beside the tools that do the same.

Five questions, each answered with all contenders taking turns in one run:

- overlay: an overlay of 1, 10, 100 and 400 directories, detached, made and closed
- commit: 10,000 small files, which a tree has changed, become a layer
- load: an image of 200 MB comes in
- reset: a tree forgets 10,000 files
- checkout: a tree of the vfs driver, which is a whole copy, on tmpfs, XFS and btrfs: 10,000 small files with four large ones,
  and what the distribution has of Python

The file systems are made for this, in memory, and are attached nowhere.  What a contender has made is removed, and written to
the disk, before the next one's turn: that time is nobody's.  Goals are judged by minima.
"""

from __future__ import annotations

import contextlib
import ctypes
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from functools import partial
from typing import TYPE_CHECKING, Final

# Last: an installed isolib goes before the checkout, which has no compiled part.
sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from benchmarks import common
from benchmarks.common import Contender
from isolib import new_overlay, open_store
from isolib._kernel import calls
from isolib._kernel.handle import Fd
from isolib.unionfs.disk.copying import copy_tree
from isolib.unionfs.drivers.vfs import VfsDriver
from tests.storage import MAKERS, disk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from isolib.unionfs import Store
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


# ---- overlay ----

FLOOR, NEW_OVERLAY = "floor: one C call", "isolib: new_overlay(), close()"
DEPTHS: Final = (1, 10, 100, 400)


def ask_overlay(rounds: int) -> dict[str, object]:
    """Compare mounts of directories."""
    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory(prefix="isolib-bench-") as directory, disk("tmpfs", size=SIZE) as made:
        floor = common.compile_library("floor_unionfs", directory)
        for depth in DEPTHS:
            lowers = [f"{made.path}/{depth}-{number}" for number in range(depth)]
            for lower in lowers:
                os.mkdir(lower)
            paths = (ctypes.c_char_p * depth)(*map(os.fsencode, lowers))
            contenders = [Contender(FLOOR, partial(bare, floor, paths)), Contender(NEW_OVERLAY, partial(layered, lowers))]
            working, absent = common.present(contenders)
            timings = common.interleave(working, rounds * 10)
            common.table(f"directories: {depth}", timings, FLOOR)
            found[str(depth)] = common.answer(timings, absent, [common.goal(timings, NEW_OVERLAY, FLOOR, 1.3)])
    return found


def bare(floor: ctypes.CDLL, paths: ctypes.Array[ctypes.c_char_p]) -> None:
    """Make an overlay, and let it go."""
    error = -floor.floor_overlay(paths, len(paths))
    if error:
        raise OSError(error, os.strerror(error), "floor_overlay")


def layered(lowers: list[str]) -> None:
    """Do the same by isolib."""
    new_overlay(*lowers).close()


# ---- commit and reset ----

COMMIT, RESET = "isolib: Tree.commit()", "isolib: Tree.reset()"
TARFILE, GNU_TAR, GNU_TAR_XATTRS, READ = "tarfile", "tar", "tar --xattrs", "read and write, no archive"


def ask_commit(rounds: int) -> dict[str, object]:
    """Compare what makes a layer of files."""
    with disk("tmpfs", size=SIZE) as made, open_store(f"{made.path}/store", driver="overlay") as store:
        make_files(f"{made.path}/files", large=0)
        archive = f"{made.path}/archive.tar"

        def committed() -> int:
            with store.checkout() as tree:
                copy_files(f"{made.path}/files", tree.path)
                taken = common.taken(tree.commit)
            store.gc(unnamed=True)
            return taken

        def told(name: str, once: Callable[[], object]) -> Contender:
            def turn() -> int:
                taken = common.taken(once)
                os.unlink(archive)
                return taken

            return Contender(name, turn)

        def by_tar(*options: str) -> None:
            argv = ["tar", "-c", *options, "-f", archive, "-C", made.path, "files"]
            subprocess.run(argv, check=True, pass_fds=[made.root.fileno()])

        def by_tarfile() -> None:
            with tarfile.open(archive, "w") as file:
                file.add(f"{made.path}/files", "files")

        def by_nobody() -> None:
            with open(archive, "wb") as sink:
                for directory, _, names in os.walk(f"{made.path}/files"):
                    for name in names:
                        with open(f"{directory}/{name}", "rb", buffering=0) as file:
                            sink.write(file.read())

        contenders = [
            Contender(COMMIT, committed),
            told(TARFILE, by_tarfile),
            told(GNU_TAR, by_tar),
            told(GNU_TAR_XATTRS, partial(by_tar, "--xattrs")),
            told(READ, by_nobody),
        ]
        working, absent = common.present(contenders)
        timings = common.interleave(working, rounds)
        common.table("10,000 small files become a layer", timings, GNU_TAR_XATTRS)
        goals = [common.goal(timings, COMMIT, TARFILE, 1 / 4), common.goal(timings, COMMIT, GNU_TAR_XATTRS, 1.5)]
        return common.answer(timings, absent, goals)


def copy_files(source: str, target: str) -> None:
    """Write files into a tree."""
    with Fd(os.open(source, os.O_RDONLY)) as old, Fd(os.open(target, os.O_RDONLY)) as new:
        copy_tree(old, new, "files")


def ask_reset(rounds: int) -> dict[str, object]:
    """Measure how long a tree takes to forget."""
    with disk("tmpfs", size=SIZE) as made, open_store(f"{made.path}/store", driver="overlay") as store:
        make_files(f"{made.path}/files", large=0)
        with store.checkout() as tree:

            def once() -> int:
                copy_files(f"{made.path}/files", tree.path)
                taken = common.taken(tree.reset)
                store._records.driver.settle()  # noqa: SLF001 - what is removed behind is nobody's time
                return taken

            timings = common.interleave([Contender(RESET, once)], rounds)
            common.table("a tree forgets 10,000 files", timings)
            return common.answer(timings, {}, [common.goal_within(timings, RESET, 2)])


# ---- load ----

LOAD, UMOCI, RAW = "isolib: Store.load()", "umoci unpack", "umoci raw unpack"
FILES, MEAN = 10_000, 20_000


def make_image(path: str) -> None:
    """Make an OCI layout of one compressed layer, of 200 MB of files that are as compressible as programs are."""
    words = [os.urandom(6) for _ in range(4096)]
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for number in range(FILES):
            if number % 100 == 0:
                info = tarfile.TarInfo(f"{number // 100}")
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(info)
            size = MEAN * (1 + number % 7) // 4
            data = b"".join(words[(number * 31 + at * at) % 4096] for at in range(size // 6))
            info = tarfile.TarInfo(f"{number // 100}/{number}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    plain = layer.getvalue()
    blobs = f"{path}/blobs/sha256"
    os.makedirs(blobs)

    def put(data: bytes, media_type: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        with open(f"{blobs}/{digest}", "wb") as file:
            file.write(data)
        return {"mediaType": f"application/vnd.oci.image.{media_type}", "digest": f"sha256:{digest}", "size": len(data)}

    told = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine),
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(plain).hexdigest()}"]},
    }
    config = put(json.dumps(told).encode(), "config.v1+json")
    layers = [put(gzip.compress(plain, 6), "layer.v1.tar+gzip")]
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": layers,
    }
    image = put(json.dumps(manifest).encode(), "manifest.v1+json")
    image["annotations"] = {"org.opencontainers.image.ref.name": "image"}
    for name, document in (
        ("oci-layout", {"imageLayoutVersion": "1.0.0"}),
        ("index.json", {"schemaVersion": 2, "manifests": [image]}),
    ):
        with open(f"{path}/{name}", "w", encoding="ascii") as text:
            json.dump(document, text)


def ask_load(rounds: int) -> dict[str, object]:
    """Compare what unpacks an image."""
    with disk("tmpfs", size=SIZE) as made:
        os.mkdir(f"{made.path}/image")
        make_image(f"{made.path}/image")

        def loaded(store: Store) -> int:
            taken = common.taken(partial(store.load, f"{made.path}/image"))
            for image in store.images():
                image.remove()
            store.gc()
            store._records.driver.settle()  # noqa: SLF001
            return taken

        def unpacked(*command: str) -> int:
            argv = ["umoci", *command, "--image", f"{made.path}/image:image", f"{made.path}/bundle"]
            taken = common.taken(
                partial(subprocess.run, argv, check=True, pass_fds=[made.root.fileno()], stdout=subprocess.DEVNULL)
            )
            calls.remove_tree(made.root.fileno(), "bundle", "bundle")
            return taken

        with open_store(f"{made.path}/store", driver="overlay") as store:
            contenders = [
                Contender(LOAD, partial(loaded, store)),
                Contender(UMOCI, partial(unpacked, "unpack")),
                Contender(RAW, partial(unpacked, "raw", "unpack")),
            ]
            working, absent = common.present(contenders)
            timings = common.interleave(working, max(3, rounds // 3))
        common.table("an image of 200 MB", timings, UMOCI)
        return common.answer(timings, absent, [common.goal(timings, LOAD, UMOCI, 1)])


def main() -> None:
    """Answer the questions."""
    answers = {"overlay": ask_overlay, "commit": ask_commit, "load": ask_load, "reset": ask_reset, "checkout": ask_checkout}
    options = common.parse(common.arguments(__doc__), [*answers])
    rounds = 3 if options.quick else 15
    asked = {question: partial(answer, rounds) for question, answer in answers.items()}
    common.write_json(options.json, common.ask(options.questions, asked))


if __name__ == "__main__":
    main()
