"""Images come in, are changed, and go out: between stores, and between this package and others' programs."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isolib import ArchiveError, ImageNotFound, PlanError
from isolib.unionfs import Change, ChangeKind, History, Limits, Platform
from tests.images import INDEX, Draft, content, described, digest, layer, layout, packed, written
from tests.programs import tool
from tests.stores import driver, other, store

if TYPE_CHECKING:
    from collections.abc import Callable

    from isolib.unionfs import Image, Store, Tree

__all__ = ["driver", "other", "store"]

COMPRESSED = partial(gzip.compress, compresslevel=1, mtime=0)
ROOT = layer({"etc": None, "etc/motd": b"hello\n", "etc/gone": b"x", "bin": None, "bin/sh": b"#!" * 5000, "empty": b""})
ABOVE = layer({"etc": None, "etc/motd": b"changed\n", "etc/.wh.gone": b"", "new/": None, "new/file": b"new" * 100})
CREATED = datetime(2024, 1, 1, tzinfo=UTC)


def layers_in(draft: Draft, image: Image) -> bool:
    """Return whether an image has just the layers of a draft."""
    return [one.diff_id for one in image.layers] == [digest(one) for one in draft.layers]


# ---- what comes in ----


def oci_directory(draft: Draft, path: Path) -> Path:
    """Make an OCI layout."""
    return written(layout(("app:1", draft)), path)


def oci_tar(draft: Draft, path: Path) -> Path:
    """Make an OCI layout in a tar."""
    return packed(layout(("app:1", draft)), path)


def oci_compressed(draft: Draft, path: Path) -> Path:
    """Make an OCI layout of compressed layers, in a compressed tar."""
    return packed(layout(("app:1", replace(draft, compress=COMPRESSED))), path, compress=True)


def docker_files(draft: Draft) -> dict[str, bytes]:
    """Return the files of an archive as docker save has written it for long, with what nobody needs beside."""
    files = {f"{number}/layer.tar": one for number, one in enumerate(draft.layers)}
    listed = [{"Config": "config.json", "RepoTags": ["app:1", "<none>:<none>"], "Layers": [*files]}]
    files |= {"0/VERSION": b"1.0", "0/json": b"{}", "repositories": b"{}", "config.json": draft.config}
    return {**files, "manifest.json": json.dumps(listed).encode()}


def docker_archive(draft: Draft, path: Path) -> Path:
    """Make an archive of docker save."""
    return packed(docker_files(draft), path)


def docker_compressed(draft: Draft, path: Path) -> Path:
    """Make one that is compressed, as docker save | gzip does."""
    return packed(docker_files(draft), path, compress=True)


def docker_links(draft: Draft, path: Path) -> Path:
    """Make one in which layers are symbolic links to others, as where two images share them."""
    files = docker_files(draft)
    files["elsewhere/layer.tar"] = files.pop("1/layer.tar")
    return packed(files, path, links={"1/layer.tar": "../elsewhere/layer.tar"})


FORMS = [oci_directory, oci_tar, oci_compressed, docker_archive, docker_compressed, docker_links]


@pytest.mark.parametrize("make", FORMS)
def test_every_form_of_an_image_is_the_same_image(store: Store, tmp_path: Path, make: Callable[[Draft, Path], Path]) -> None:
    """An image has its digest, layers, config, name and files, however it is packed."""
    draft = Draft([ROOT, ABOVE], run={"Env": ["A=1"], "Cmd": ["sh"]})
    image = store.load(make(draft, tmp_path / "source"))
    assert (image.digest, image.names) == (draft.digest, ("app:1",))
    assert layers_in(draft, image)
    assert [one.size for one in image.layers] == [len(ROOT), len(ABOVE)]
    assert (dict(image.config.env), image.config.cmd, image.config.platform) == ({"A": "1"}, ("sh",), draft.platform)
    assert image.history == (History(created_by="step 0"), History(created_by="step 1"))
    with store.checkout(image) as tree:
        there = content(tree.path)
        assert tree.changes() == []
    assert there["etc/motd"] == (0o100644, digest(b"changed\n"))
    assert {*there} == {"etc", "etc/motd", "bin", "bin/sh", "empty", "new", "new/file"}


def test_what_is_loaded_again_is_there_already(store: Store, tmp_path: Path) -> None:
    """Layers that are there are not read: an image whose blobs of them are gone can be loaded again, and has one copy."""
    path = oci_directory(Draft([ROOT, ABOVE]), tmp_path / "source")
    image = store.load(path)
    for one in (ROOT, ABOVE):
        (path / "blobs" / digest(one).replace(":", "/")).unlink()
    assert store.load(path) == image
    assert len(store.images()) == 1


def test_progress_is_told(store: Store, tmp_path: Path) -> None:
    """While an image is loaded it is told which layer it is at, and how far; each ends whole."""
    draft = Draft([layer({"big": os.urandom(3 << 20)}), ABOVE])
    told: list[tuple[int, int, int, int]] = []
    store.load(
        oci_tar(draft, tmp_path / "x.tar"), progress=lambda one: told.append((one.layer, one.layers, one.done, one.total))
    )
    assert told == sorted(told)
    assert len(told) >= 4
    assert {(number, size) for number, of, done, size in told if done == size and of == 2} == {
        (number + 1, len(one)) for number, one in enumerate(draft.layers)
    }


def test_what_progress_raises_ends_the_load(store: Store, tmp_path: Path) -> None:
    """An exception of the callback is raised, and nothing is left."""

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.load(oci_tar(Draft([ROOT]), tmp_path / "x.tar"), progress=stop)
    assert store.images() == ()


def test_a_pipe_is_read_to_its_end(store: Store, tmp_path: Path) -> None:
    """A source that can be read once, as a FIFO, is as good as a file."""
    os.mkfifo(tmp_path / "fifo")
    path = oci_tar(Draft([ROOT]), tmp_path / "x.tar")
    with subprocess.Popen(["cp", path, tmp_path / "fifo"]):
        assert store.load(tmp_path / "fifo").digest == Draft([ROOT]).digest


def test_several_images_come_together(store: Store, tmp_path: Path) -> None:
    """All images of an archive come in with their names; one can be selected, and only one can be called otherwise."""
    one, two = Draft([ROOT]), Draft([ROOT, ABOVE])
    path = packed(layout(("example.org/a:1", one), ("two", two)), tmp_path / "x.tar")
    with pytest.raises(ArchiveError, match=r"2 images in it.*: example.org/a:1, two"):
        store.load(path, name="mine")
    assert store.load(path, select="two", name="mine").digest == two.digest
    assert [image.names for image in store.images()] == [("mine:latest",)]
    assert store.load(path, select="example.org/a:1").digest == one.digest
    assert store.load(path, select=two.digest).digest == two.digest
    with pytest.raises(ArchiveError, match="no image 'three'"):
        store.load(path, select="three")
    store.load(path)
    assert {image.names for image in store.images()} == {("mine:latest",), ("example.org/a:1",)}


def for_platforms(tmp_path: Path, *platforms: str) -> Path:
    """Make a layout of one image for several platforms, in an index of its own, as registries have it."""
    drafts = [Draft([layer({"platform": one.encode()})], Platform.parse(one)) for one in platforms]
    files = layout(*(("", draft) for draft in drafts))
    listed = [
        described(draft.blobs()[0], platform={"os": draft.platform.os, "architecture": draft.platform.architecture})
        for draft in drafts
    ]
    attested = described(drafts[0].blobs()[0], platform={"os": "unknown", "architecture": "unknown"})
    attested["annotations"] = {"vnd.docker.reference.type": "attestation-manifest"}
    inner = json.dumps({"schemaVersion": 2, "manifests": [attested, *listed]}).encode()
    files[f"blobs/{digest(inner).replace(':', '/')}"] = inner
    outer = {"mediaType": INDEX, "digest": digest(inner), "size": len(inner)}
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [outer]}).encode()
    return written(files, tmp_path / "-".join(platforms).replace("/", "_"))


def test_this_machine_s_platform_is_taken(store: Store, tmp_path: Path) -> None:
    """Of several platforms this machine's is loaded, or the one that was asked for; what is not there is refused."""
    host = str(Platform.host())
    path = for_platforms(tmp_path, "linux/mips", host, "linux/s390x")
    assert store.load(path).config.platform == Platform.host()
    assert store.load(path, platform="linux/s390x").config.platform == Platform("linux", "s390x")
    with pytest.raises(ArchiveError, match="nothing for linux/386 in it; platforms: "):
        store.load(path, platform="linux/386")
    with pytest.raises(ArchiveError, match=f"nothing for {host} in it"):
        store.load(for_platforms(tmp_path, "linux/mips", "linux/s390x"))
    with pytest.raises(ArchiveError, match=f"is for {host}, not for linux/mips"):
        store.load(oci_tar(Draft([ROOT]), tmp_path / "x.tar"), platform="linux/mips")


def test_a_directory_is_an_image_of_one_layer(store: Store, other: Store, tmp_path: Path) -> None:
    """A directory comes in with links, modes and times, and is the same image each time, in every store."""
    source = tmp_path / "root"
    (source / "usr/bin").mkdir(parents=True)
    (source / "usr/bin/tool").write_text("#!/bin/sh\n")
    (source / "usr/bin/tool").chmod(0o755)
    os.link(source / "usr/bin/tool", source / "usr/bin/alias")
    (source / "bin").symlink_to("usr/bin")
    os.utime(source / "usr/bin/tool", ns=(1, 1_234_567_890_123_456_789))
    image = store.load(source, name="root")
    assert (len(image.layers), image.names) == (1, ("root:latest",))
    assert store.load(source) == other.load(source) == image
    with store.checkout(image) as tree:
        assert content(tree.path) == content(str(source))
        tool, alias = (os.stat(f"{tree.path}/usr/bin/{name}") for name in ("tool", "alias"))
        assert (tool.st_ino, tool.st_nlink, tool.st_mtime_ns) == (alias.st_ino, 2, 1_234_567_890_123_456_789)


@pytest.mark.parametrize("compress", [False, True])
def test_a_tar_of_a_root_is_an_image_of_one_layer(store: Store, tmp_path: Path, compress: bool) -> None:  # noqa: FBT001
    """A tar of a root file system is one layer, to the byte: its digest is that of the tar."""
    data = layer({".": None, "./usr/": None, "./usr/lib": b"x", "./manifest.json": b"[]", "./oci-layout": b"{}"})
    path = tmp_path / "root.tar"
    path.write_bytes(COMPRESSED(data) if compress else data)
    image = store.load(path)
    assert [one.diff_id for one in image.layers] == [digest(data)]
    with store.checkout(image) as tree:
        assert sorted(os.listdir(tree.path)) == ["manifest.json", "oci-layout", "usr"]


def test_a_tar_that_replaces_what_it_brought_comes_out_as_it_was(store: Store, other: Store, tmp_path: Path) -> None:
    """A layer in which a path comes twice, which nobody's directory can hold, is saved to the byte all the same."""
    twice = layer({"a": b"first" * 1000, "d": None, "d/x": b"in d", "a ": b"second"})
    image = store.load(oci_tar(Draft([ROOT, twice]), tmp_path / "x.tar"))
    with store.checkout(image) as tree:
        assert Path(tree.path, "a").read_bytes() == b"second"
    image.save(tmp_path / "saved.tar")
    assert other.load(tmp_path / "saved.tar") == image


def test_a_layer_of_nothing_is_a_layer(store: Store, tmp_path: Path) -> None:
    """Empty layers, several of them alike, come in and out as they are."""
    image = store.load(oci_tar(Draft([layer({}), ROOT, layer({}), layer({})]), tmp_path / "x.tar"))
    assert len(image.layers) == 4
    assert len({one.chain_id for one in image.layers}) == 4


# ---- what goes out ----


@pytest.mark.parametrize(("form", "compression"), [("oci", None), ("oci", "gzip"), ("docker", None), ("docker", "gzip")])
def test_an_image_goes_from_store_to_store(
    store: Store, other: Store, tmp_path: Path, form: str, compression: str | None
) -> None:
    """Loaded, changed, committed, saved and loaded elsewhere, an image is the same; saved twice, so is the archive."""
    image = store.load(oci_compressed(Draft([ROOT, ABOVE]), tmp_path / "source"))
    with store.checkout(image) as tree:
        Path(tree.path, "etc/mine").write_text("mine")
        shutil.rmtree(f"{tree.path}/new")
        made = tree.commit("change", tag="made:1")
        there = content(tree.path)
    paths = [tmp_path / "one.tar", tmp_path / "two.tar"]
    for path in paths:
        made.save(path, format=form, compression=compression)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    again = other.load(paths[0])
    assert (again, again.names, again.history, again.layers) == (made, ("made:1",), made.history, made.layers)
    with other.checkout(again) as tree:
        assert content(tree.path) == there


def test_the_manifest_of_uncompressed_layers_stays(store: Store, tmp_path: Path) -> None:
    """A manifest, with what is not known of it, is written again as it came, where its layers can be."""
    files = layout(("", Draft([ROOT])))
    index = json.loads(files["index.json"])
    old = f"blobs/{index['manifests'][0]['digest'].replace(':', '/')}"
    manifest = json.dumps({**json.loads(files.pop(old)), "annotations": {"who": "me"}}, indent=7).encode()
    files[f"blobs/{digest(manifest).replace(':', '/')}"] = manifest
    files["index.json"] = json.dumps({**index, "manifests": [described(manifest)]}).encode()
    image = store.load(written(files, tmp_path / "source"))
    assert image.manifest_digest == image.save(tmp_path / "saved.tar") == digest(manifest)
    assert store.image(digest(manifest)) == image
    assert image.save(tmp_path / "saved.tar", compression="gzip") != digest(manifest)


def test_images_are_added_to_a_layout(store: Store, other: Store, tmp_path: Path) -> None:
    """In a directory an OCI layout is made, and more images are added; one takes the place of another of its name."""
    place = tmp_path / "layout"
    place.mkdir()
    one = store.load(oci_tar(Draft([ROOT]), tmp_path / "x.tar"), name="a:1")
    two = store.load(oci_tar(Draft([ROOT, ABOVE]), tmp_path / "y.tar"), name="b:1")
    one.save(place)
    two.save(place)
    assert other.load(place, select="a:1") == one
    assert other.load(place, select="b:1") == two
    two.tag("a:1")
    two.save(place)
    assert {image.digest for image in other.images()} == {one.digest, two.digest}
    for image in other.images():
        image.remove()
    other.load(place)
    assert [image.names for image in other.images()] == [("a:1", "b:1")]
    with pytest.raises(PlanError, match="directory, which is for the format 'oci'"):
        two.save(place, format="docker")
    with pytest.raises(PlanError, match="other things in it"):
        two.save(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "what"), [({"format": "zip"}, "format: 'zip'"), ({"compression": "lzma"}, "compression: 'lzma'")]
)
def test_only_what_there_is_can_be_saved_as(store: Store, tmp_path: Path, wrong: dict[str, str], what: str) -> None:
    """Unknown formats are refused, and no file is made."""
    image = store.load(oci_tar(Draft([ROOT]), tmp_path / "x.tar"))
    with pytest.raises(PlanError, match=what):
        image.save(tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()


# ---- names ----


def test_an_image_is_found_by_whatever_it_is_called(store: Store, tmp_path: Path) -> None:
    """Names, short and long, digests, and beginnings of digests all lead to an image; nothing else does."""
    image = store.load(oci_tar(Draft([ROOT]), tmp_path / "x.tar"), name="debian")
    plain = image.digest.removeprefix("sha256:")
    for name in ("debian", "debian:latest", "docker.io/library/debian", image.digest, plain, plain[:4], image.digest[:20]):
        assert store.image(name) == image
    for name in ("debian:12", "sha256:0000", "0000", f"sha256:{'0' * 64}", f"debian@sha256:{'0' * 64}"):
        with pytest.raises(ImageNotFound):
            store.image(name)
    with pytest.raises(PlanError):
        store.image("No Name")
    image.tag("other/name:2")
    assert [*image.names] == ["debian:latest", "other/name:2"]
    image.untag("debian")
    with pytest.raises(ImageNotFound):
        image.untag("debian")
    assert [*image.names] == ["other/name:2"]
    second = store.load(oci_tar(Draft([ABOVE]), tmp_path / "y.tar"), name="other/name:2")
    assert (image.names, second.names) == ((), ("other/name:2",))


# ---- what is made ----


def change(path: str, kind: ChangeKind) -> Change:
    """Return a change."""
    return Change(path, kind)


def test_changes_are_exact(store: Store, tmp_path: Path) -> None:
    """What was added, modified and deleted is told, each path once; what is as it was is not."""
    with store.checkout(store.load(oci_tar(Draft([ROOT, ABOVE]), tmp_path / "x.tar"))) as tree:
        root = Path(tree.path)
        (root / "etc/motd").write_text("other")
        (root / "bin/sh").chmod(0o700)
        (root / "empty").unlink()
        (root / "dir").mkdir()
        (root / "dir/file").touch()
        shutil.rmtree(root / "new")
        (root / "new").mkdir()
        (root / "new/other").touch()
        (root / "there").touch()
        (root / "there").unlink()
        added, modified, deleted = ChangeKind.ADDED, ChangeKind.MODIFIED, ChangeKind.DELETED
        assert [(one.path, one.kind) for one in tree.changes()] == [
            ("/bin/sh", modified),
            ("/dir", added),
            ("/dir/file", added),
            ("/empty", deleted),
            ("/etc/motd", modified),
            ("/new/file", deleted),
            ("/new/other", added),
        ]


def test_a_diff_is_the_layer_that_a_commit_makes(store: Store, tmp_path: Path) -> None:
    """The tar that `diff` writes has the digest of the layer that `commit` makes of the same changes."""
    with store.checkout(store.load(oci_tar(Draft([ROOT]), tmp_path / "x.tar"))) as tree:
        Path(tree.path, "etc/motd").write_text("other")
        Path(tree.path, "empty").unlink()
        out = io.BytesIO()
        told = tree.diff(out)
        assert told.diff_id == digest(out.getvalue())
        with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
            assert {".wh.empty", "etc/motd"} <= {*tar.getnames()}
        assert tree.commit().layers[-1] == told
        assert tree.changes() == []


def test_a_commit_tells_how_it_came_to_be(store: Store, tmp_path: Path) -> None:
    """A commit has the config that it is given, the history of what it stands on and a step more, and its name."""
    base = store.load(oci_tar(Draft([ROOT], run={"Cmd": ["sh"], "OnBuild": ["x"]}), tmp_path / "x.tar"))
    with store.checkout(base) as tree:
        Path(tree.path, "file").touch()
        config = replace(base.config, cmd=("run",), env={"A": "1"})
        made = tree.commit("why", tag="made", config=config, created_by="touch file", created=CREATED)
        assert tree.image == made
        unchanged = tree.commit("only the config", config=replace(made.config, user="me"), created=CREATED)
    assert (made.config.cmd, dict(made.config.env), made.config.created) == (("run",), {"A": "1"}, CREATED)
    assert made.history == (*base.history, History(CREATED, "touch file", "why"))
    assert made.layers[:1] == base.layers
    assert unchanged.layers == made.layers
    assert unchanged.history[-1] == History(CREATED, comment="only the config", empty_layer=True)
    assert unchanged.config.user == "me"
    assert store.images()[-1] == base
    assert {*store.images()} == {made, unchanged, base}


def test_the_same_changes_make_the_same_image(store: Store, tmp_path: Path) -> None:
    """Two trees that were changed alike become one layer, and with a fixed time one image; both go on above it."""
    base = store.load(oci_tar(Draft([ROOT]), tmp_path / "x.tar"))
    with store.checkout(base) as one, store.checkout(base) as two:
        made = []
        for tree in (one, two):
            Path(tree.path, "file").write_text("same")
            os.utime(f"{tree.path}/file", ns=(0, 0))
            os.utime(tree.path, ns=(0, 0))
            made.append(tree.commit(created=CREATED))
            Path(tree.path, "after").write_text("more")
            assert [(one.path, one.kind) for one in tree.changes()] == [("/after", ChangeKind.ADDED)]
        assert made[0] == made[1]


def test_a_tree_of_nothing_becomes_an_image(store: Store) -> None:
    """An empty tree can be filled and committed; the image is for this machine."""
    with store.checkout() as tree:
        assert tree.image is None
        assert os.listdir(tree.path) == []
        Path(tree.path, "one").write_text("1")
        image = tree.commit(tag="scratch")
        assert [one.path for one in tree.changes()] == []
    assert image.config.platform == Platform.host()
    with store.checkout("scratch") as tree:
        assert Path(tree.path, "one").read_text() == "1"


def test_ten_layers_deep_files_come_and_go(store: Store, other: Store, tmp_path: Path) -> None:
    """Ten commits in each of which a file is made and another deleted are ten layers, in which each file is as it was last."""
    made = []
    with store.checkout() as tree:
        for number in range(10):
            Path(tree.path, f"file{number % 3}").write_text(str(number))
            gone = Path(tree.path, f"file{(number + 1) % 3}")
            gone.unlink(missing_ok=True)
            made.append(tree.commit(f"step {number}"))
    assert [len(image.layers) for image in made] == [*range(1, 11)]
    made[-1].save(tmp_path / "x.tar")
    with other.checkout(other.load(tmp_path / "x.tar")) as tree:
        assert {one.name: one.read_text() for one in Path(tree.path).iterdir()} == {"file0": "9", "file2": "8"}


def names(tree: Tree) -> list[str]:
    """Return what is in a tree."""
    return sorted(os.listdir(tree.path))


def test_a_tree_goes_back_to_its_snapshots(store: Store) -> None:
    """Snapshots are kept as they were, also over a commit; a tree goes back to any of them, and to what it stands on."""
    with store.checkout() as tree:
        Path(tree.path, "a").touch()
        first = tree.snapshot()
        Path(tree.path, "b").touch()
        assert tree.snapshot("second") == "second"
        image = tree.commit()
        Path(tree.path, "c").touch()
        path, number = tree.path, tree.fileno()
        tree.reset()
        assert names(tree) == ["a", "b"]
        tree.reset(first)
        assert (names(tree), tree.image) == (["a"], None)
        Path(tree.path, "d").touch()
        again = tree.commit()
        assert len(again.layers) == 1
        tree.reset("second")
        assert names(tree) == ["a", "b"]
        assert (tree.path, tree.fileno()) == (path, number)
        assert tree.snapshots == (first, "second")
        with pytest.raises(PlanError, match="a snapshot 'second' already"):
            tree.snapshot("second")
        with pytest.raises(ImageNotFound):
            tree.reset("third")
        assert len(image.layers) == 1


def test_a_fork_goes_its_own_way(store: Store) -> None:
    """What is done in a fork is not seen in what it was forked from, nor the other way round."""
    with store.checkout() as tree:
        Path(tree.path, "both").touch()
        with tree.fork() as fork:
            Path(tree.path, "mine").touch()
            Path(fork.path, "its").touch()
            assert (names(tree), names(fork)) == (["both", "mine"], ["both", "its"])
            made = fork.commit()
        assert len(made.layers) == 1
        assert names(tree) == ["both", "mine"]


def test_usage_grows_with_what_is_written(store: Store) -> None:
    """A tree takes up at least what was written to it."""
    with store.checkout() as tree:
        before = tree.usage()
        Path(tree.path, "big").write_bytes(os.urandom(1 << 20))
        after = tree.usage()
        assert after.size - before.size >= 1 << 20


def test_forgotten_trees_complain_and_go(store: Store) -> None:
    """A tree that nobody closed is removed when it is forgotten, with a warning; until then its store is open."""
    code = """
import isolib, sys, warnings
tree = isolib.open_store(sys.argv[1]).checkout()
open(f"{tree.path}/x", "w").close()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    del tree
print([str(one.message).split()[2] for one in caught])
"""
    told = subprocess.run([sys.executable, "-c", code, store.path], capture_output=True, text=True, check=True)
    assert told.stdout == "['<Tree']\n"
    assert store._records.trees() == []


# ---- what must not come in ----


@dataclass
class Parts:
    """The files of a layout, and the paths of some of them."""

    files: dict[str, bytes]
    index: str
    manifest: str
    config: str
    blob: str


def parts(files: dict[str, bytes]) -> Parts:
    """Return what a layout of one image consists of."""
    manifest = f"blobs/{json.loads(files['index.json'])['manifests'][0]['digest'].replace(':', '/')}"
    told = json.loads(files[manifest])
    config, blob = (f"blobs/{one['digest'].replace(':', '/')}" for one in (told["config"], told["layers"][0]))
    return Parts(files, "index.json", manifest, config, blob)


def without(part: str) -> Callable[[Parts], None]:
    """Return what removes a part."""
    return lambda there: there.files.__delitem__(getattr(there, part))


def edited(part: str, edit: Callable[[bytes], bytes]) -> Callable[[Parts], None]:
    """Return what changes a part."""

    def do(there: Parts) -> None:
        name = getattr(there, part)
        there.files[name] = edit(there.files[name])

    return do


def layout_is(data: bytes) -> Callable[[Parts], None]:
    """Return what changes the file that says that it is a layout."""
    return lambda there: there.files.__setitem__("oci-layout", data)


def loop_of_indexes(there: Parts) -> None:
    """Have indexes within indexes."""
    inner = {"mediaType": INDEX, "digest": digest(b""), "size": 0}
    for _ in range(6):
        data = json.dumps({"schemaVersion": 2, "manifests": [inner]}).encode()
        there.files[f"blobs/{digest(data).replace(':', '/')}"] = data
        inner = {"mediaType": INDEX, "digest": digest(data), "size": len(data)}
    there.files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [inner]}).encode()


BROKEN: dict[str, Callable[[Parts], None]] = {
    "no index": without("index"),
    "no layer": without("blob"),
    "no manifest": without("manifest"),
    "no config": without("config"),
    "another version": layout_is(b'{"imageLayoutVersion": "2.0.0"}'),
    "no version": layout_is(b"{}"),
    "an empty index": edited("index", lambda _: b'{"schemaVersion": 2, "manifests": []}'),
    "a changed layer": edited("blob", lambda data: data[:2000] + b"@" + data[2001:]),
    "a changed config": edited("config", lambda data: data.replace(b"linux", b"Linux")),
    "a changed manifest": edited("manifest", lambda data: data + b" "),
    "a layer cut short": edited("blob", lambda data: data[:3000]),
    "a longer layer": edited("blob", lambda data: data + b"x"),
    "no JSON": edited("index", lambda data: data[:-2]),
    "a loop of indexes": loop_of_indexes,
}


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("in_tar", [False, True])
def test_a_broken_layout_is_refused(store: Store, tmp_path: Path, what: str, in_tar: bool) -> None:  # noqa: FBT001
    """Whatever is missing, changed or cut short in a layout is an ArchiveError, and nothing of it is in the store."""
    files = layout(("app:1", Draft([ROOT, ABOVE])))
    BROKEN[what](parts(files))
    path = packed(files, tmp_path / "x.tar") if in_tar else written(files, tmp_path / "x")
    with pytest.raises(ArchiveError):
        store.load(path)
    assert store.images() == ()
    store.gc()
    assert store._records.layers() == []


@pytest.mark.parametrize("make", [oci_tar, oci_compressed, docker_archive, docker_compressed])
@pytest.mark.parametrize("part", [0.1, 0.4, 0.7, 0.9])
def test_an_archive_cut_short_is_refused(
    store: Store, tmp_path: Path, make: Callable[[Draft, Path], Path], part: float
) -> None:
    """An archive that ends too early is an ArchiveError, wherever it ends."""
    path = make(Draft([ROOT, ABOVE]), tmp_path / "x.tar")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data.rstrip(b"\0")) * part)])
    with pytest.raises(ArchiveError):
        store.load(path)
    assert store.images() == ()


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({"Layers": ["0/layer.tar"]}, "layers"),
        ({"Layers": ["0/layer.tar", "missing"]}, "no such file"),
        ({"Layers": ["0/layer.tar", "../x"]}, "not the path"),
        ({"Config": "missing.json"}, "no such file"),
        ({"Config": "manifest.json"}, "an object"),
        ({"Layers": ["1/layer.tar", "0/layer.tar"]}, "the digest of its tar"),
    ],
)
def test_a_broken_archive_of_docker_is_refused(store: Store, tmp_path: Path, files: dict[str, object], what: str) -> None:
    """A manifest of docker save that does not fit its archive is an ArchiveError."""
    there = docker_files(Draft([ROOT, ABOVE]))
    there["manifest.json"] = json.dumps([{**json.loads(there["manifest.json"])[0], **files}]).encode()
    with pytest.raises(ArchiveError, match=what):
        store.load(packed(there, tmp_path / "x.tar"))


def test_links_in_a_layout_do_not_lead_out(store: Store, tmp_path: Path) -> None:
    """A symbolic link in a layout to a file elsewhere, and a FIFO in it, are no blobs."""
    files = layout(("", Draft([ROOT])))
    path = written(files, tmp_path / "layout")
    blob = path / "blobs" / digest(ROOT).replace(":", "/")
    blob.rename(tmp_path / "outside")
    blob.symlink_to(tmp_path / "outside")
    with pytest.raises(ArchiveError, match="no such file"):
        store.load(path)
    blob.unlink()
    os.mkfifo(blob)
    with pytest.raises(ArchiveError, match="not a plain file"):
        store.load(path)


def test_links_in_an_archive_may_not_go_round(store: Store, tmp_path: Path) -> None:
    """A layer that is a link to itself, or round in a circle, is no layer."""
    files = docker_files(Draft([ROOT, ABOVE]))
    del files["0/layer.tar"]
    with pytest.raises(ArchiveError, match="no such file"):
        store.load(packed(files, tmp_path / "x.tar", links={"0/layer.tar": "../2/layer.tar", "2/layer.tar": "../0/layer.tar"}))


@pytest.mark.parametrize("data", [b"", b"nothing", b"\x1f\x8b\x08\x00garbage", b"\0" * 100, os.urandom(4096)])
def test_what_is_no_archive_is_refused(store: Store, tmp_path: Path, data: bytes) -> None:
    """A file that is no tar, compressed or not, is an ArchiveError."""
    path = tmp_path / "x"
    path.write_bytes(data)
    with pytest.raises(ArchiveError):
        store.load(path)


def test_a_bomb_is_defused(store: Store, tmp_path: Path) -> None:
    """A layer that expands beyond its limit is refused, and leaves nothing."""
    bomb = layer({"bomb": bytes(64 << 20)})
    path = packed(layout(("", Draft([bomb], compress=COMPRESSED))), tmp_path / "x.tar")
    assert path.stat().st_size < 1 << 20
    with pytest.raises(ArchiveError, match="limit"):
        store.load(path, limits=Limits(size=16 << 20))
    assert store.images() == ()


def test_a_layer_that_means_harm_leaves_the_host_alone(store: Store, tmp_path: Path) -> None:
    """A layer whose paths lead upward is an ArchiveError, and nothing is outside of the store."""
    with pytest.raises(ArchiveError, match="upward"):
        store.load(oci_tar(Draft([layer({"../../../../../../tmp/isolib-was-here": b"x"})]), tmp_path / "x.tar"))
    assert not os.path.exists("/tmp/isolib-was-here")


# ---- others' programs ----


@pytest.mark.root
def test_what_umoci_makes_is_loaded_and_what_is_saved_it_unpacks(store: Store, tmp_path: Path) -> None:
    """An image that umoci has made comes in, and one that is saved is unpacked by umoci to the same files."""
    place = tmp_path / "layout"
    tool("umoci", "init", "--layout", place)
    tool("umoci", "new", "--image", f"{place}:base")
    tool("umoci", "unpack", "--image", f"{place}:base", tmp_path / "bundle")
    (tmp_path / "bundle/rootfs/etc").mkdir()
    (tmp_path / "bundle/rootfs/etc/motd").write_text("by umoci")
    tool("umoci", "repack", "--image", f"{place}:app", tmp_path / "bundle")
    image = store.load(place, select="app", name="app:1")
    with store.checkout(image) as tree:
        assert Path(tree.path, "etc/motd").read_text() == "by umoci"
        Path(tree.path, "etc/motd").unlink()
        Path(tree.path, "etc/issue").write_text("by isolib")
        os.link(f"{tree.path}/etc/issue", f"{tree.path}/etc/issue.net")
        made = tree.commit("changed", tag="made:1")
        there = content(tree.path)
    for compression in (None, "gzip"):
        out = tmp_path / f"out-{compression}"
        out.mkdir()
        made.save(out, compression=compression)
        tool("umoci", "unpack", "--image", f"{out}:1", tmp_path / f"unpacked-{compression}")
        assert content(str(tmp_path / f"unpacked-{compression}/rootfs")) == there
        assert "changed" in tool("umoci", "stat", "--image", f"{out}:1")


@pytest.mark.parametrize("form", ["oci", "docker"])
def test_skopeo_copies_what_is_saved_and_back(store: Store, other: Store, tmp_path: Path, form: str) -> None:
    """skopeo reads our archives, agrees on the digests, and what it writes of them is the same image."""
    image = store.load(oci_compressed(Draft([ROOT, ABOVE]), tmp_path / "source"), name="app:1")
    image.save(tmp_path / "saved.tar", format=form)
    source = {"oci": f"oci-archive:{tmp_path}/saved.tar", "docker": f"docker-archive:{tmp_path}/saved.tar"}[form]
    insecure = ("--insecure-policy",)
    told = json.loads(tool("skopeo", *insecure, "inspect", "--config", "--raw", source))
    assert told["rootfs"]["diff_ids"] == [one.diff_id for one in image.layers]
    for target in ("oci-archive", "docker-archive", "oci"):
        out = f"{tmp_path}/{form}-{target}"
        tool("skopeo", *insecure, "copy", source, f"{target}:{out}:app:1")
        again = other.load(out)
        assert [one.diff_id for one in again.layers] == [one.diff_id for one in image.layers]
        assert (again.config.platform, again.names) == (image.config.platform, ("app:1",))


@pytest.mark.root
def test_buildah_takes_what_is_saved(store: Store, tmp_path: Path) -> None:
    """buildah pulls our archive, and its image has the same layers."""
    image = store.load(oci_tar(Draft([ROOT, ABOVE]), tmp_path / "x.tar"))
    image.save(tmp_path / "saved.tar", compression="gzip")
    storage = ("--root", tmp_path / "storage", "--runroot", tmp_path / "run", "--storage-driver", "vfs")
    pulled = tool("buildah", *storage, "pull", "--policy", "always", f"oci-archive:{tmp_path}/saved.tar").split()[-1]
    told = json.loads(tool("buildah", *storage, "inspect", "--type", "image", pulled))
    assert told["OCIv1"]["rootfs"]["diff_ids"] == [one.diff_id for one in image.layers]
    assert f"sha256:{pulled}" == image.digest
