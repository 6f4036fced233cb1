"""Whatever a store is given, and however little it is left to work with, it says what is wrong and stays as it was."""

from __future__ import annotations

import gc
import io
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tarfile
from contextlib import contextmanager, suppress
from errno import EMFILE, ENOSPC, EROFS
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import isolib
from isolib import ArchiveError, ImageNotFound, IsolibError, PermissionDenied, PlanError, StoreDamaged, SyscallError
from isolib._kernel.handle import Fd
from isolib._kernel.mountapi import new_mount
from isolib.unionfs import Limits, Subject
from tests.images import INDEX, MANIFEST, Draft, described, digest, layer, layout, packed, written
from tests.programs import together
from tests.storage import disk
from tests.stores import check, driver, leftovers, store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from isolib.unionfs import Image, Store

__all__ = ["driver", "store"]

LOWER = layer({"etc": None, "etc/motd": b"hello\n", "bin": None, "bin/sh": b"#!" * 500})
UPPER = layer({"etc": None, "etc/motd": b"changed\n", "etc/.wh.gone": b"", "new/": None, "new/file": b"new" * 100})
DRAFT = Draft([LOWER, UPPER])
BLOCK = 512


def blob(data: bytes) -> str:
    """Return the path of a blob in a layout."""
    return f"blobs/{digest(data).replace(':', '/')}"


@pytest.fixture
def base(store: Store, tmp_path: Path) -> Image:
    """Return an image that was there before."""
    return store.load(written(layout(("", Draft([layer({"before": b"1"})]))), tmp_path / "before"), name="before")


@contextmanager
def unchanged(store: Store) -> Iterator[None]:
    """Assert that a block leaves a store with the same images, by the same names, in order and without leftovers."""
    before = {image: image.names for image in store.images()}
    yield
    assert {image: image.names for image in store.images()} == before
    check(store)


def refused(store: Store, path: Path, match: str | None = None) -> ArchiveError:
    """Return the error that a load of something ends with."""
    with pytest.raises(ArchiveError, match=match) as caught:
        store.load(path)
    return caught.value


# ---- archives that are cut short, or have been altered on the way ----


def docker_files(draft: Draft) -> dict[str, bytes]:
    """Return the files of an archive of docker save, its manifest last."""
    files = {f"{number}/layer.tar": one for number, one in enumerate(draft.layers)}
    listed = [{"Config": "config.json", "RepoTags": ["app:1"], "Layers": [*files]}]
    return {**files, "config.json": draft.config, "manifest.json": json.dumps(listed).encode()}


def root_tar(path: Path) -> Path:
    """Make a tar of a root file system."""
    path.write_bytes(LOWER)
    return path


#: How each form is made, and how many bytes of it are what the image consists of: all but the end mark and what fills it up.
ARCHIVES: dict[str, Callable[[Path], Path]] = {
    "oci": partial(packed, layout(("app:1", DRAFT))),
    "docker": partial(packed, docker_files(DRAFT)),
    "compressed": partial(packed, layout(("app:1", DRAFT)), compress=True),
    "root": root_tar,
}


@pytest.mark.parametrize("form", ARCHIVES)
def test_an_archive_that_is_cut_anywhere_is_refused(store: Store, base: Image, tmp_path: Path, form: str) -> None:
    """Cut before the end of the last file, at each block, an archive is an ArchiveError; cut after it, what it was or one."""
    path = ARCHIVES[form](tmp_path / "whole.tar")
    data = path.read_bytes()
    whole = store.load(path)
    whole.remove()
    step, needed = BLOCK, len(data)
    if form == "compressed":
        step = 29
    else:
        with tarfile.open(path) as tar:
            last = tar.getmembers()[-1]
            needed = last.offset_data + last.size
    assert len(data) // step > 15
    with unchanged(store):
        for end in range(0, len(data), step):
            (tmp_path / "cut.tar").write_bytes(data[:end])
            if end < needed:
                refused(store, tmp_path / "cut.tar")
                continue
            with suppress(ArchiveError):  # for want of its end mark
                image = store.load(tmp_path / "cut.tar")
                assert form == "root" or image == whole
                image.remove()
    assert store.images() == (base,)


def altered(data: bytes, chosen: random.Random) -> bytes:
    """Return an archive with some bits that are others, or with a block of something else in it."""
    found = bytearray(data)
    for _ in range(chosen.choice([1, 1, 3])):
        found[chosen.randrange(len(found))] ^= 1 << chosen.randrange(8)
    if chosen.random() < 0.2:
        at = chosen.randrange(len(found) // BLOCK + 1) * BLOCK
        found[at : at + BLOCK] = chosen.randbytes(BLOCK)
    return bytes(found)


@pytest.mark.parametrize("form", ARCHIVES)
def test_an_archive_that_was_altered_is_refused_or_harmless(store: Store, base: Image, tmp_path: Path, form: str) -> None:
    """With bits of it turned over, an archive is an ArchiveError, or an image that agrees with its digests all the same."""
    data = ARCHIVES[form](tmp_path / "whole.tar").read_bytes()
    chosen = random.Random(form)  # noqa: S311 - the same each time
    errors = 0
    with unchanged(store):
        for _ in range(40):
            (tmp_path / "altered.tar").write_bytes(altered(data, chosen))
            try:
                image = store.load(tmp_path / "altered.tar")
            except ArchiveError:
                errors += 1
                continue
            # Only a layout names its config by its digest.
            assert form in {"docker", "root"} or image.digest == DRAFT.digest
            assert store.verify() == ()
            image.remove()
    assert errors >= 5
    assert base.names == ("before:latest",)


# ---- what does not agree with what is said of it ----


def images(
    *,
    manifest: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    edit: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, bytes]:
    """Return the files of a layout whose documents differ from what they should be, and agree with each other otherwise."""
    told = {**json.loads(DRAFT.config), **(config or {})}
    config_data = json.dumps(told).encode()
    layers = [
        {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest(one), "size": len(one)} for one in DRAFT.layers
    ]
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest(config_data),
            "size": len(config_data),
        },
        "layers": layers,
        **(manifest or {}),
    }
    if edit is not None:
        edit(document)
    data = json.dumps(document).encode()
    listed = {**described(data), "mediaType": document.get("mediaType", MANIFEST)}
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [listed]}).encode()
    blobs = {blob(one): one for one in (*DRAFT.layers, config_data, data)}
    return {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": index, **blobs}


def typed(place: str, media_type: str) -> Callable[[dict[str, Any]], None]:
    """Return what gives the config or the first layer of a manifest another type."""

    def edit(manifest: dict[str, Any]) -> None:
        one = manifest["config"] if place == "config" else manifest["layers"][0]
        one["mediaType"] = media_type

    return edit


def sized(manifest: dict[str, Any]) -> None:
    """Have a manifest say another size."""
    manifest["layers"][1]["size"] += 1


def of_another_kind(manifest: dict[str, Any]) -> None:
    """Have a manifest name a layer by another kind of digest."""
    manifest["layers"][0]["digest"] = f"sha512:{'0' * 128}"


def exchanged(manifest: dict[str, Any]) -> None:
    """Have a manifest name its layers in another order than the config."""
    manifest["layers"].reverse()


OTHER = digest(b"another")
ROOTFS = {"type": "layers", "diff_ids": [digest(LOWER), OTHER]}
#: What is wrong, and what is said of it: the thing, and why.
DISAGREEING: dict[str, tuple[dict[str, bytes], str]] = {
    "a diff_id": (
        images(config={"rootfs": ROOTFS}),
        f"{digest(UPPER)}: the digest of its tar is {digest(UPPER)} instead of {OTHER}",
    ),
    "a size": (images(edit=sized), f"{digest(UPPER)}: it has {len(UPPER)} bytes instead of {len(UPPER) + 1}"),
    "the order": (images(edit=exchanged), f"{digest(UPPER)}: the digest of its tar is"),
    "too few layers": (images(config={"rootfs": {**ROOTFS, "diff_ids": [OTHER]}}), "it speaks of 1 layers, the manifest of 2"),
    "a kind of digest": (images(edit=of_another_kind), "is no digest of the kind sha256"),
    "a config of a chart": (
        images(edit=typed("config", "application/vnd.cncf.helm.config.v1+json")),
        r"not an image: its config is of the type 'application/vnd\.cncf\.helm\.config\.v1\+json'",
    ),
    "an unknown layer": (images(edit=typed("layer", "application/x-rpm")), "application/x-rpm"),
    "an encrypted layer": (
        images(edit=typed("layer", "application/vnd.oci.image.layer.v1.tar+gzip+encrypted")),
        "encrypted",
    ),
    "a layer from elsewhere": (
        images(edit=typed("layer", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")),
        "foreign",
    ),
    "an unknown manifest": (images(manifest={"mediaType": "application/vnd.example.v9+json"}), "it lists no image"),
    "a list for a manifest": (images(manifest={"manifests": []}), "manifests has no place in a manifest"),
    "schema 1": (
        images(manifest={"schemaVersion": 1, "fsLayers": [], "history": []}),
        "schemaVersion is 1; 2 alone is known",
    ),
    "signed schema 1": (
        images(manifest={"schemaVersion": 1, "mediaType": "application/vnd.docker.distribution.manifest.v1+prettyjws"}),
        "it lists no image",
    ),
    "another schema": (images(manifest={"schemaVersion": 3}), "schemaVersion is 3; 2 alone is known"),
    "an artifact": (images(manifest={"layers": [], "config": None}), "config"),
}


@pytest.mark.parametrize("what", DISAGREEING)
def test_what_does_not_agree_is_named(store: Store, base: Image, tmp_path: Path, what: str) -> None:
    """Digests, sizes and types that are not what is said of them, or not known, are refused by an error that names them."""
    files, message = DISAGREEING[what]
    with unchanged(store):
        refused(store, written(files, tmp_path / "layout"), message)
    assert store.images() == (base,)


@pytest.mark.parametrize("part", ["config", "manifest", "layer"])
def test_a_blob_under_another_digest_is_told_with_both(store: Store, tmp_path: Path, part: str) -> None:
    """A blob that is another than its name says is told with the digest that it should have and the one that it has."""
    files = layout(("app:1", DRAFT))
    name = {"config": blob(DRAFT.config), "manifest": blob(DRAFT.blobs()[0]), "layer": blob(UPPER)}[part]
    data = files[name]
    files[name] = data.replace(b"changed", b"chAnged") if part == "layer" else data.replace(b"sha256:", b"sha256;", 1)
    assert files[name] != data
    with unchanged(store):
        error = refused(store, written(files, tmp_path / "layout"))
    assert error.entry == digest(data)
    assert digest(files[name]) in error.reason


# ---- bombs ----


def deep(depth: int) -> bytes:
    """Return a layer with a path of so many names."""
    return layer({"/".join("d" * depth): None})


BOMBS: dict[str, tuple[bytes, Limits]] = {
    "contents": (layer({"zeros": bytes(1 << 20)}), Limits(size=1 << 19)),
    "many small ones": (layer({str(number): bytes(1000) for number in range(60)}), Limits(size=50_000)),
    "entries": (layer({str(number): b"" for number in range(60)}), Limits(entries=50)),
    "depth": (deep(60), Limits(depth=50)),
    "names": (layer({"n" * 200 + "/" + "n" * 200: b""}), Limits(path=300)),
}


@pytest.mark.parametrize("what", BOMBS)
@pytest.mark.parametrize("form", ["image", "root", "directory"])
def test_what_grows_beyond_a_limit_is_refused(store: Store, tmp_path: Path, what: str, form: str) -> None:
    """Each limit holds, for layers of images, for tars and for directories; up to the limit all comes in."""
    data, limits = BOMBS[what]
    path = tmp_path / "bomb"
    if form == "image":
        packed(layout(("", Draft([data]))), path)
    elif form == "root":
        path.write_bytes(data)
    else:
        path.mkdir()
        subprocess.run(["tar", "-x", "-C", path], input=data, check=True)
    with unchanged(store):
        with pytest.raises(ArchiveError, match=r"limit|most|more than"):
            store.load(path, limits=limits)
        store.load(path).remove()


# ---- names ----

NO_NAMES = ["", " ", "UPPER", "a//b", "../x", "a:", "a:b:c d", "a\0b", "a\nb", "a@sha256:12", "x" * 300, "a:" + "t" * 129]


def test_what_is_no_name_is_refused_before_anything_is_done(store: Store, base: Image, tmp_path: Path) -> None:
    """A text that is no name is a PlanError wherever a name is taken, and no file has been read or changed for it."""
    with unchanged(store), store.checkout(base) as tree:
        Path(tree.path, "mine").touch()
        for name in NO_NAMES:
            actions: list[Callable[[], object]] = [
                partial(store.load, tmp_path / "there is none", name=name),
                partial(base.tag, name),
                partial(base.untag, name),
                partial(tree.commit, tag=name),
                partial(store.image, name),
                partial(store.checkout, name),
            ]
            for action in actions:
                with pytest.raises(PlanError):
                    action()
        assert [one.path for one in tree.changes()] == ["/mine"]


# ---- what cannot be in a layer ----


@pytest.mark.parametrize("name", [".wh.x", ".wh.", ".wh..wh..opq", "sub/.wh.x"])
def test_a_file_that_a_layer_cannot_hold_is_not_committed(store: Store, base: Image, name: str) -> None:
    """A file that would be read as a whiteout is told by its path; without it the same changes are committed."""
    with store.checkout(base) as tree:
        Path(tree.path, "sub").mkdir()
        Path(tree.path, "good").write_text("good")
        bad = Path(tree.path, name)
        bad.touch()
        with unchanged(store):
            for action in (partial(tree.commit, tag="bad"), partial(tree.diff, io.BytesIO())):
                with pytest.raises(ArchiveError) as caught:
                    action()
                assert caught.value.entry == name
                assert "'.wh.'" in caught.value.reason
        bad.unlink()
        made = tree.commit(tag="made")
    assert len(made.layers) == 2
    with store.checkout(made) as tree:
        assert Path(tree.path, "good").read_text() == "good"


# ---- many at once ----

TOGETHER = """if True:
    import sys, isolib
    with isolib.open_store(sys.argv[1]) as store:
        sys.stdin.read()
        print(store.load(sys.argv[2]).digest)
"""


def test_eight_processes_load_the_same(store: Store, tmp_path: Path) -> None:
    """Eight processes that load one image at the same moment all have it, and there is one copy of each layer."""
    path = packed(layout(("app:1", DRAFT)), tmp_path / "image.tar")
    argv = [sys.executable, "-c", TOGETHER, store.path, str(path)]
    assert together(argv, 8) == {f"{DRAFT.digest}\n"}
    assert [image.digest for image in store.images()] == [DRAFT.digest]
    assert len(store._records.layers()) == len(store._records.driver.layers()) == 2


# ---- little to work with ----


def all_of_it(store: Store, path: Path, out: Path) -> None:
    """Do about everything that a store can, and take away what it has made."""
    image = store.load(path)
    with store.checkout(image) as tree:
        Path(tree.path, "mine").write_text("mine")
        tree.snapshot("first")
        tree.fork().close()
        made = tree.commit(tag="made")
        tree.reset("first")
    with store.checkout(image, name="kept") as tree:
        Path(tree.path, "kept").write_text("kept")
    with store.tree("kept") as tree:
        tree.commit(tag="kept")
        tree.remove()
    made.save(out)
    made.save(out, format="docker", compression="gzip")
    assert store.verify() == ()
    store.gc()


def tidy(store: Store, base: Image) -> None:
    """Take away what an interrupted `all_of_it` has left, and assert that nothing else is there."""
    gc.collect()
    store._records.driver.settle()
    assert store.verify() == ()
    assert base in store.images()
    for name in store.trees():
        with store.tree(name) as tree:
            tree.remove()
    for image in store.images():
        if image != base:
            image.remove()
    store.gc()
    store._records.driver.settle()
    assert leftovers(store) == {}


def descriptors() -> set[str]:
    """Return what is open in this process."""
    links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    return {f"{link} {os.readlink(link)}" for link in links if os.path.lexists(link)}


@pytest.mark.slow
def test_without_descriptors(store: Store, base: Image, tmp_path: Path) -> None:
    """With too few descriptors, whichever is the one too many, it is EMFILE, and nothing stays or leaks."""
    action = partial(all_of_it, store, packed(layout(("app:1", DRAFT)), tmp_path / "image.tar"), tmp_path / "saved.tar")
    action()
    tidy(store, base)
    before, limits = descriptors(), resource.getrlimit(resource.RLIMIT_NOFILE)
    fewest = len(before)
    for count in range(fewest, fewest + 60):
        failed = 0
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, limits[1]))
        try:
            action()
        except SyscallError as error:
            failed = error.errno
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        if not failed:
            break
        assert failed == EMFILE
        tidy(store, base)
        assert descriptors() == before, count
    assert fewest + 8 < count < fewest + 50


ROOM = 8 << 20
INODES = 400


@contextmanager
def filled(place: str, count: int, *, of_inodes: bool) -> Iterator[None]:
    """Leave so many bytes or inodes on a small file system, for the time of a block."""
    directory = Path(place, "filler")
    directory.mkdir()
    if of_inodes:
        for number in range(os.statvfs(place).f_favail - count):
            (directory / str(number)).touch()
    else:
        free = os.statvfs(place)
        with (directory / "file").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_bsize - count)
    try:
        yield
    finally:
        shutil.rmtree(directory)


def refusals(store: Store, base: Image, image: Path, out: Path, counts: range, *, of_inodes: bool) -> int:
    """Do everything with ever more room; return how often that was not enough."""
    place = os.path.dirname(store.path)
    for number, count in enumerate(counts):
        failed = (0, "")
        try:
            with filled(place, count, of_inodes=of_inodes):
                all_of_it(store, image, out)
        except SyscallError as error:
            failed = (error.errno, "")
        except OSError as error:  # this test's own file
            failed = (error.errno or 0, os.path.basename(error.filename))
        if not failed[0]:
            return number
        # An overlay whose work directory cannot be made is one that can only be read.
        assert failed[0] == ENOSPC or (failed[0] == EROFS and store.driver == "overlay")
        assert failed[1] in {"", "mine", "kept"}
        tidy(store, base)
    return pytest.fail(f"{counts[-1]} was never enough")


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.parametrize("of_inodes", [False, True])
def test_without_room(tmp_path: Path, driver: str, of_inodes: bool) -> None:  # noqa: FBT001
    """Whichever byte or inode is the one too many, it is ENOSPC, nothing that was there is lost, and what was begun goes."""
    image = packed(layout(("app:1", DRAFT)), tmp_path / "image.tar")
    before = written(layout(("", Draft([layer({"before": b"1"})]))), tmp_path / "before")
    options = {"size": str(ROOM), "nr_inodes": str(INODES), "mode": "755"}
    with (
        Fd(new_mount("tmpfs", options)) as root,
        isolib.open_store(f"/proc/self/fd/{root.fileno()}/store", driver=driver) as store,
    ):
        base = store.load(before, name="before")
        counts = range(3, 150, 2) if of_inodes else range(0, 2 << 20, 8192)
        assert refusals(store, base, image, tmp_path / "saved.tar", counts, of_inodes=of_inodes) > 10
        tidy(store, base)


@pytest.mark.root
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_full_disk_can_be_emptied(tmp_path: Path, driver: str, kind: str) -> None:
    """On a disk that is full to the last byte a load is ENOSPC, and an image can be removed and collected: then it works."""
    big = packed(layout(("big:1", Draft([LOWER, layer({"big": os.urandom(8 << 20)})]))), tmp_path / "big.tar")
    size = 300 << 20 if kind == "xfs" else 128 << 20
    with disk(kind, size=size) as there, isolib.open_store(f"{there.path}/store", driver=driver) as opened:
        base = opened.load(packed(layout(("app:1", DRAFT)), tmp_path / "image.tar"), name="base")
        first = opened.load(big, name="first")
        with open(f"{there.path}/filler", "wb", buffering=0) as filler, suppress(OSError):
            while filler.write(bytes(1 << 16)):
                pass
            os.fsync(filler.fileno())
        other = packed(layout(("", Draft([layer({"other": os.urandom(4 << 20)})]))), tmp_path / "other.tar")
        with pytest.raises(SyscallError) as caught:
            opened.load(other)
        assert caught.value.errno == ENOSPC
        assert {*opened.images()} == {base, first}
        assert opened.verify() == ()
        if kind == "xfs":  # which reuses inodes a while after they were freed
            os.truncate(f"{there.path}/filler", 1 << 20)
        first.remove()
        assert opened.gc().layers == (first.layers[1].chain_id,)
        opened.load(other).remove()
        assert opened.images() == (base,)
        check(opened)


# ---- a store that can only be read ----


@pytest.mark.root
def test_what_would_change_a_read_only_store_is_told(tmp_path: Path) -> None:
    """On a mount that can only be read no tree is made, taken or committed and nothing is pulled, and the error says why."""
    image = packed(layout(("app:1", DRAFT)), tmp_path / "image.tar")
    with disk("tmpfs") as there:
        with isolib.open_store(f"{there.path}/store", driver="vfs") as opened:
            base = opened.load(image)
            opened.checkout(base, name="kept").close()
        with there.readonly() as mount, isolib.open_store(f"/proc/self/fd/{mount.fileno()}/store") as opened:
            actions: list[Callable[[], object]] = [
                partial(opened.checkout),
                partial(opened.checkout, base, name="new"),
                partial(opened.pull, "127.0.0.1:1/app"),
                partial(opened.image("app:1").tag, "new"),
                partial(opened.gc, unnamed=True),
            ]
            for action in actions:
                with pytest.raises(SyscallError, match="the store can only be read by this process") as caught:
                    action()
                assert caught.value.errno == EROFS
            assert opened.trees() == ("kept",)
            assert opened.images() == (base,)


# ---- a store that was damaged ----


def hexadecimal(identifier: str) -> str:
    """Return what a digest is filed under."""
    return identifier.removeprefix("sha256:")


RECORDS: dict[str, Callable[[Path, Image], Path]] = {
    "an image": lambda root, image: root / "images" / hexadecimal(image.digest),
    "a config": lambda root, image: root / "blobs" / hexadecimal(image.digest),
    "a manifest": lambda root, image: root / "blobs" / hexadecimal(image.manifest_digest or ""),
    "a layer": lambda root, image: root / "layers" / hexadecimal(image.layers[0].chain_id) / "meta.json",
    "a recipe": lambda root, image: root / "layers" / hexadecimal(image.layers[0].chain_id) / "recipe",
    "a name": lambda root, _: next(one for one in (root / "names").iterdir() if b"app:1" in one.read_bytes()),
    "a tree": lambda root, _: root / "trees/kept/meta.json",
}
"""Where each record of an image and of a tree lies."""

SUBJECTS = {
    "an image": Subject.IMAGE,
    "a config": Subject.BLOB,
    "a manifest": Subject.BLOB,
    "a name": Subject.NAME,
    "a tree": Subject.TREE,
}


def replaced(path: Path, make: Callable[[Path], object]) -> None:
    """Put something else in the place of a file."""
    path.unlink()
    make(path)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(bytes(range(256))),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "a list": lambda path: path.write_bytes(b"[]"),
    "an empty object": lambda path: path.write_bytes(b"{}"),
    "a directory": lambda path: replaced(path, Path.mkdir),
    "a link": lambda path: replaced(path, lambda one: one.symlink_to("/etc/hostname")),
    "a FIFO": lambda path: replaced(path, os.mkfifo),
}


def contents(path: str) -> dict[str, bytes]:
    """Return the files of a store that are on record, and of its driver."""
    parts = ("blobs", "driver/layers", "images", "layers", "names", "trees")
    found = (one for part in parts for one in Path(path, part).rglob("*") if one.is_file() and not one.is_symlink())
    return {str(one): one.read_bytes() for one in found}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("record", RECORDS)
def test_a_damaged_record_is_found_and_nothing_is_lost_for_it(tmp_path: Path, record: str, damage: str) -> None:
    """Whatever a record has become, `verify` names it, `gc` takes nothing that was needed, and the rest of the store works."""
    image_path = packed(layout(("app:1", DRAFT)), tmp_path / "image.tar")
    other_path = packed(layout(("other:1", Draft([UPPER]))), tmp_path / "other.tar")
    with isolib.open_store(tmp_path / "store", driver="vfs") as opened:
        image, other = opened.load(image_path), opened.load(other_path)
        opened.checkout(image, name="kept").close()
        path = RECORDS[record](tmp_path / "store", image)
        DAMAGES[damage](path)
        before = contents(opened.path)
        found = opened.verify()
        assert SUBJECTS.get(record, Subject.LAYER) in {one.subject for one in found}, found
        assert all(one.problem for one in found)
        if record in {"an image", "a config", "a tree"}:
            for unnamed in (False, True):
                with pytest.raises(StoreDamaged, match=path.name):
                    opened.gc(unnamed=unnamed)
        else:
            opened.gc()
        assert contents(opened.path) == before
        with opened.checkout(other) as tree:
            assert Path(tree.path, "new/file").read_bytes() == b"new" * 100


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "a directory"])
@pytest.mark.parametrize("record", ["an image", "a config", "a manifest", "a name"])
def test_what_was_damaged_is_mended_by_loading_it_again(tmp_path: Path, record: str, damage: str) -> None:
    """An image whose documents were damaged is whole again when it comes in again."""
    path = packed(layout(("app:1", DRAFT)), tmp_path / "image.tar")
    with isolib.open_store(tmp_path / "store", driver="vfs") as opened:
        image = opened.load(path)
        DAMAGES[damage](RECORDS[record](tmp_path / "store", image))
        assert opened.verify() != ()
        assert opened.load(path) == image
        assert opened.images() == (image,)
        check(opened)


@pytest.mark.parametrize("record", ["an image", "a config", "a layer"])
@pytest.mark.parametrize("by_digest", [False, True], ids=["by name", "by digest"])
def test_an_image_that_is_damaged_can_be_removed(tmp_path: Path, record: str, by_digest: bool) -> None:  # noqa: FBT001 - a parameter of pytest's
    """What cannot be opened any more can be taken out of the store all the same, which is in order then."""
    with isolib.open_store(tmp_path / "store", driver="vfs") as opened:
        image = opened.load(packed(layout(("app:1", DRAFT)), tmp_path / "image.tar"))
        other = opened.load(packed(layout(("other:1", Draft([UPPER]))), tmp_path / "other.tar"))
        DAMAGES["noise"](RECORDS[record](tmp_path / "store", image))
        with pytest.raises(StoreDamaged):
            opened.images()
        opened.remove(image.digest if by_digest else "app:1")
        opened.gc()
        assert opened.images() == (other,)
        with pytest.raises(ImageNotFound):
            opened.remove("app:1")
        check(opened)


def test_a_damaged_layer_that_nobody_needs_is_collected(tmp_path: Path) -> None:
    """A layer whose record is damaged does not stay for ever: it goes when no image needs it, and can be loaded anew."""
    path = packed(layout(("app:1", DRAFT)), tmp_path / "image.tar")
    with isolib.open_store(tmp_path / "store", driver="vfs") as opened:
        image = opened.load(path)
        image.remove()
        for one in image.layers:
            (tmp_path / "store/layers" / hexadecimal(one.chain_id) / "meta.json").write_bytes(b"")
        assert opened.verify() != ()
        assert {*opened.gc().layers} == {one.chain_id for one in image.layers}
        check(opened)
        assert opened.load(path) == image
        check(opened)


ALTERATIONS: dict[str, Callable[[Path], object]] = {
    "other bytes": lambda path: path.write_bytes(path.read_bytes().swapcase()),
    "more bytes": lambda path: path.write_bytes(path.read_bytes() + b"!"),
    "fewer bytes": lambda path: os.truncate(path, path.stat().st_size - 1),
    "nothing": lambda path: path.unlink(),
    "a directory": lambda path: replaced(path, Path.mkdir),
    "a link": lambda path: replaced(path, lambda one: one.symlink_to("/etc/hostname")),
    "a FIFO": lambda path: replaced(path, os.mkfifo),
}


@pytest.mark.parametrize("what", ALTERATIONS)
def test_a_file_of_a_layer_that_was_altered_is_found(tmp_path: Path, driver: str, what: str) -> None:
    """A file of a layer that is not what it was is found though its times are as before; no archive is made of it."""
    with isolib.open_store(tmp_path / "store", driver=driver) as opened:
        image = opened.load(packed(layout(("app:1", DRAFT)), tmp_path / "image.tar"))
        good = opened.load(packed(layout(("", Draft([UPPER]))), tmp_path / "good.tar"), name="good")
        lower = Path(opened.path, "driver/layers", hexadecimal(image.layers[0].chain_id))
        path = next(lower.rglob("etc/motd"))
        times = path.stat()
        ALTERATIONS[what](path)
        if os.path.lexists(path):
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns), follow_symlinks=False)
        found = opened.verify()
        assert {(one.subject, one.name) for one in found} == {(Subject.LAYER, image.layers[0].chain_id)}
        assert opened.verify(contents=False) == ()
        for form in ("oci", "docker"):
            with pytest.raises(StoreDamaged, match=hexadecimal(image.layers[0].chain_id)):
                image.save(tmp_path / "saved.tar", format=form)
        assert not (tmp_path / "saved.tar").exists()
        good.save(tmp_path / "good.tar")


# ---- what there is not ----


def test_what_there_is_not_is_told(store: Store, base: Image, tmp_path: Path) -> None:
    """A source, an image and a tree that do not exist, and a source that may not be read, are errors that name them."""
    with unchanged(store):
        with pytest.raises(SyscallError, match="there is none") as caught:
            store.load(tmp_path / "there is none")
        assert isinstance(caught.value, OSError)
        with pytest.raises(PlanError, match="neither a directory nor a file"):
            store.load("/dev/null")
        for action in (partial(store.image, "none"), partial(store.checkout, "none"), partial(store.tree, "none")):
            with pytest.raises(ImageNotFound, match="none"):
                action()
        if os.geteuid() != 0:
            closed = tmp_path / "closed"
            closed.write_bytes(LOWER)
            closed.chmod(0)
            with pytest.raises(PermissionDenied, match="closed"):
                store.load(closed)
    base.remove()
    for removed in (
        base.remove,
        partial(base.tag, "new"),
        partial(base.save, tmp_path / "x.tar"),
        partial(store.checkout, base),
    ):
        with pytest.raises(IsolibError):
            removed()
    assert not (tmp_path / "x.tar").exists()
