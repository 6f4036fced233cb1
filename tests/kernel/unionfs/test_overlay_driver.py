"""The overlay driver on the real kernel, as root of the host and as root of a user namespace."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isolib import SyscallError, Unsupported
from isolib._kernel.handle import Fd
from isolib.unionfs.drivers.base import Form
from isolib.unionfs.drivers.overlay import OverlayDriver

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Set for the run as root of a user namespace.
INSIDE = "ISOLIB_TEST_IN_USER_NAMESPACE"

Tree = dict[str, str]

BASE: Tree = {"a": "1", "dir/x": "x", "dir/y": "y", "old/z": "z"}


@pytest.fixture
def needs_rights() -> None:
    """Skip the test where this process may mount nothing itself."""
    if subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode:
        pytest.skip("takes CAP_SYS_ADMIN in the user namespace of this process")


@pytest.fixture
def home(tmp_path: Path, needs_rights: None) -> str:
    """Return the directory of a driver."""
    (tmp_path / "home").mkdir()
    return str(tmp_path / "home")


@pytest.fixture
def driver(home: str) -> Iterator[OverlayDriver]:
    """Return a driver that has one layer, "base", and a tree above it, "tree"."""
    with opened(home) as made:
        draft = made.new_draft("draft", [])
        fill(draft.root, BASE)
        made.seal(draft, "base")
        made.new_tree("tree", ["base"])
        yield made


@contextlib.contextmanager
def opened(path: str) -> Iterator[OverlayDriver]:
    """Give a driver for a directory, as another process would have it."""
    with Fd(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as home:
        made = OverlayDriver(home, path)
        yield made
        made.settle()
        for tree in made.trees():
            made.release(tree)


def way(fd: Fd) -> Path:
    """Return where the files of a directory are."""
    return Path(f"/proc/self/fd/{fd.fileno()}")


def fill(root: Fd, files: Tree) -> None:
    """Write files."""
    for name, text in files.items():
        path = way(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def files(root: Fd) -> Tree:
    """Return every file below a directory."""
    found = {}
    for top, _, names in os.walk(way(root)):
        for name in names:
            path = Path(top, name)
            found[str(path.relative_to(way(root)))] = path.read_text(encoding="utf-8")
    return found


def shown(driver: OverlayDriver, tree: str = "tree") -> Tree:
    """Return every file of a tree."""
    with driver.mount(tree) as mount:
        return files(mount)


def changed(driver: OverlayDriver, tree: str = "tree") -> dict[str, str]:
    """Return what a tree changes."""
    return {os.fsdecode(entry.path): entry.kind.value for entry, _ in driver.changed(tree) if entry.path}


def write_some(driver: OverlayDriver, tree: str = "tree") -> Tree:
    """Change a tree, and return what it shows then."""
    with driver.mount(tree) as mount:
        fill(mount, {"a": "2", "new/file": "n"})
        shutil.rmtree(way(mount) / "dir")
        fill(mount, {"dir/w": "w"})
        (way(mount) / "old/z").unlink()
    return {"a": "2", "new/file": "n", "dir/w": "w"}


CHANGED = {
    "a": "file",
    "dir": "directory",
    "dir/w": "file",
    "new": "directory",
    "new/file": "file",
    "old": "directory",
    "old/z": "whiteout",
}


def test_examine(home: str) -> None:
    """A directory is found fit by trying, and nothing of that stays."""
    with Fd(os.open(home, os.O_RDONLY)) as fd:
        OverlayDriver.examine(fd.fileno(), home)
    assert [name for name in Path(home).rglob("*") if name.name != "aside"] == []


def test_examine_on_an_overlay(driver: OverlayDriver) -> None:
    """A directory on an overlay is found unfit, and the error says what would be."""
    with driver.mount("tree") as mount:
        path = str(way(mount) / "dir")
        with Fd(os.open(path, os.O_RDONLY)) as fd, pytest.raises(Unsupported, match="ext4, xfs, btrfs or tmpfs"):
            OverlayDriver.examine(fd.fileno(), path)


def test_layers(driver: OverlayDriver) -> None:
    """A draft becomes a layer when it is sealed, one of a name that there is is dropped, and a layer can be removed."""
    assert (driver.layers(), driver.drafts()) == ({"base"}, set())
    draft = driver.new_draft("again", [])
    fill(draft.root, {"other": ""})
    assert driver.drafts() == {"again"}
    driver.seal(draft, "base")
    assert driver.drafts() == set()
    with driver.open_layer("base") as layer:
        assert files(layer) == BASE
    driver.drop("none")
    driver.remove_layer("base")
    driver.remove_layer("base")
    assert driver.layers() == set()


def test_tree(driver: OverlayDriver) -> None:
    """A tree shows its layers and what was written, also to who has the directory after this, and the layers do not change."""
    assert shown(driver) == BASE
    after = write_some(driver)
    assert shown(driver) == after
    assert changed(driver) == CHANGED
    driver.release("tree")
    with opened(driver.path) as another:
        assert shown(another) == after
    with driver.open_layer("base") as layer:
        assert files(layer) == BASE


def test_tree_without_layers(driver: OverlayDriver) -> None:
    """A tree may stand on nothing."""
    driver.new_tree("bare", [])
    assert shown(driver, "bare") == {}
    with driver.mount("bare") as mount:
        fill(mount, {"x": "x"})
        assert os.stat(way(mount)).st_mode & 0o777 == 0o755
    driver.commit("bare", "first")
    assert shown(driver, "bare") == {"x": "x"}
    assert changed(driver, "bare") == {}


def test_mount_is_detached(driver: OverlayDriver) -> None:
    """A mounted tree is in no mount table, and has no effective set-user-id bits and devices."""
    before = Path("/proc/self/mountinfo").read_bytes()
    with driver.mount("tree") as mount:
        assert Path("/proc/self/mountinfo").read_bytes() == before
        flags = os.statvfs(way(mount)).f_flag
        assert flags & (os.ST_NOSUID | os.ST_NODEV) == os.ST_NOSUID | os.ST_NODEV


def test_commit(driver: OverlayDriver) -> None:
    """What was written becomes a layer without being copied, and the tree goes on above it without changes."""
    after = write_some(driver)
    with driver.mount("tree") as mount:
        number = os.stat(way(mount) / "new/file").st_ino
    driver.commit("tree", "second")
    assert (shown(driver), changed(driver)) == (after, {})
    assert driver.layers() == {"base", "second"}
    with driver.open_layer("second") as layer:
        assert os.stat(way(layer) / "new/file").st_ino == number
    assert os.listdir(f"{driver.path}/layers/second") == ["root"]
    driver.new_tree("other", ["base", "second"])
    assert shown(driver, "other") == after
    with driver.mount("tree") as mount:
        fill(mount, {"third": "3"})
    assert changed(driver) == {"third": "file"}


def test_commit_makes_an_old_mount_read_only(driver: OverlayDriver) -> None:
    """Nobody can write to a layer by a descriptor from before."""
    with driver.mount("tree") as mount:
        fill(mount, {"new": ""})
        driver.commit("tree", "second")
        with pytest.raises(OSError, match="Read-only file system"):
            fill(mount, {"more": ""})


def test_commit_while_somebody_writes(driver: OverlayDriver) -> None:
    """While a file is open to be written the layer is a copy, which nobody writes to, and the tree has what is written then."""
    write_some(driver)
    with driver.mount("tree") as mount, open(way(mount) / "open", "w", encoding="utf-8") as file:
        file.write("before")
        file.flush()
        driver.commit("tree", "second")
        file.write(" and after")
        file.flush()
        assert shown(driver)["open"] == "before and after"
    with driver.open_layer("second") as layer:
        assert (way(layer) / "open").read_text() == "before"
    driver.release("tree")
    assert shown(driver)["open"] == "before and after"
    # What lies in an opaque directory is there again, for that hides the layer's; nothing else is.
    assert set(changed(driver)) - {"dir", "new", "old"} == {"dir/w", "open"}


def test_commit_under_a_name_that_there_is(driver: OverlayDriver) -> None:
    """A layer of this name is the same layer: what was written is dropped for it."""
    write_some(driver)
    driver.fork("tree", "twin")
    driver.commit("tree", "second")
    driver.commit("twin", "second")
    assert shown(driver, "twin") == shown(driver)
    assert changed(driver, "twin") == {}


@pytest.mark.parametrize("is_mounted", [True, False])
def test_snapshots(driver: OverlayDriver, is_mounted: bool) -> None:  # noqa: FBT001
    """A tree can be taken back to any snapshot, as often as wanted, and to its layers."""
    states: list[Tree] = []
    for number in range(3):
        with driver.mount("tree") as mount:
            fill(mount, {f"new{number}": str(number), "a": str(number)})
            if number == 1:
                shutil.rmtree(way(mount) / "dir")
            states.append(files(mount))
        if not is_mounted:
            driver.release("tree")
        driver.snapshot("tree", f"s{number}")
        assert shown(driver) == states[-1]
    assert driver.snapshots("tree") == {"s0", "s1", "s2"}
    for number in (1, 2, 0, 2):
        driver.reset("tree", f"s{number}")
        assert shown(driver) == states[number]
    driver.reset("tree")
    assert (shown(driver), changed(driver)) == (BASE, {})
    driver.reset("tree", "s1")
    assert changed(driver)["dir"] == "whiteout"
    with pytest.raises(SyscallError) as caught:
        driver.snapshot("tree", "s1")
    assert caught.value.errno == errno.EEXIST
    with pytest.raises(SyscallError):
        driver.reset("tree", "none")


def test_a_snapshot_leaves_the_mount(driver: OverlayDriver) -> None:
    """A descriptor from before a snapshot, or a fork, still is the tree, to be read and to be written."""
    with driver.mount("tree") as mount:
        fill(mount, {"before": ""})
        driver.snapshot("tree", "snapshot")
        driver.fork("tree", "fork")
        fill(mount, {"after": ""})
        assert {"before", "after"} <= set(shown(driver))
    assert "after" not in shown(driver, "fork")
    driver.reset("tree", "snapshot")
    assert "after" not in shown(driver)


def test_commit_above_snapshots(driver: OverlayDriver) -> None:
    """A commit makes one layer of all that was written, before and after snapshots, and the snapshots stay."""
    for name, text in (("one", "1"), ("two", "2")):
        with driver.mount("tree") as mount:
            fill(mount, {name: text, "a": text})
        driver.release("tree")
        driver.snapshot("tree", name)
    with driver.mount("tree") as mount:
        (way(mount) / "one").unlink()
        shutil.rmtree(way(mount) / "dir")
        fill(mount, {"dir/new": ""})
    before = shown(driver)
    wanted = {"a": "file", "dir": "directory", "dir/new": "file", "two": "file"}
    assert changed(driver) == wanted
    driver.commit("tree", "all")
    assert (shown(driver), changed(driver)) == (before, {})
    driver.new_tree("other", ["base", "all"])
    assert shown(driver, "other") == before
    driver.reset("tree", "one")
    assert shown(driver) == {**BASE, "one": "1", "a": "1"}


@pytest.mark.parametrize("is_mounted", [True, False])
def test_fork(driver: OverlayDriver, is_mounted: bool) -> None:  # noqa: FBT001
    """A fork is as the tree was, and each goes its own way, whichever is removed first."""
    after = write_some(driver)
    if not is_mounted:
        driver.release("tree")
    driver.fork("tree", "twin")
    assert (shown(driver, "twin"), changed(driver, "twin")) == (after, CHANGED)
    for tree in ("tree", "twin"):
        with driver.mount(tree) as mount:
            fill(mount, {tree: tree})
    assert shown(driver) == {**after, "tree": "tree"}
    driver.remove_tree("tree")
    driver.settle()
    driver.release("twin")
    assert shown(driver, "twin") == {**after, "twin": "twin"}
    driver.sweep()
    assert shown(driver, "twin") == {**after, "twin": "twin"}


def test_hard_links_and_kinds_in_several_parts(driver: OverlayDriver) -> None:
    """What several parts say together is what the topmost of them shows: kinds, opaque directories and hard links too."""
    with driver.mount("tree") as mount:
        fill(mount, {"f": "f", "d/inner": "i", "k/old": "k"})
        os.link(way(mount) / "f", way(mount) / "g")
    driver.release("tree")
    driver.snapshot("tree", "one")
    with driver.mount("tree") as mount:
        shutil.rmtree(way(mount) / "d")
        (way(mount) / "d").write_text("a file now", encoding="utf-8")
        shutil.rmtree(way(mount) / "k")
        fill(mount, {"k/new": "k"})
        before = files(mount)
    driver.commit("tree", "all")
    driver.new_tree("other", ["base", "all"])
    assert shown(driver, "other") == before
    with driver.mount("other") as mount:
        assert os.path.samefile(way(mount) / "f", way(mount) / "g")


def test_usage(driver: OverlayDriver) -> None:
    """A tree takes up what was written to it, and nothing of its layers."""
    before = driver.usage("tree")
    with driver.mount("tree") as mount:
        (way(mount) / "large").write_bytes(b"x" * 100_000)
    after = driver.usage("tree")
    assert after.size - before.size >= 100_000
    assert (after.files or 0) - (before.files or 0) == 1


def test_removal(driver: OverlayDriver) -> None:
    """Of a tree that was removed nothing is left, and of a reset nothing of what was written; layers stay."""
    write_some(driver)
    driver.snapshot("tree", "s")
    driver.reset("tree")
    driver.settle()
    driver.remove_tree("tree")
    driver.remove_tree("tree")
    driver.settle()
    assert (driver.trees(), driver.layers()) == (set(), {"base"})
    assert os.listdir(f"{driver.path}/parts") == os.listdir(f"{driver.path}/aside") == []


def test_many_layers(driver: OverlayDriver) -> None:
    """A tree may stand on hundreds of layers."""
    names = ["base"]
    for number in range(520):
        draft = driver.new_draft("draft", names)
        fill(draft.root, {"a": str(number), f"own{number}": ""})
        driver.seal(draft, f"layer{number}")
        names.append(f"layer{number}")
    driver.new_tree("high", names)
    found = shown(driver, "high")
    assert (found["a"], len(found)) == ("519", len(BASE) + 520)


def test_no_quota(driver: OverlayDriver) -> None:
    """A quota is refused, and no tree is made."""
    with pytest.raises(Unsupported, match="quota"):
        driver.new_tree("small", [], quota=1000)
    assert driver.trees() == {"tree"}


def test_absent(driver: OverlayDriver) -> None:
    """A tree that does not exist is an error that names it."""
    for call in (driver.mount, driver.usage, driver.snapshots):
        with pytest.raises(SyscallError, match="trees/none") as caught:
            call("none")
        assert caught.value.errno == errno.ENOENT


KILLED = """
import os, sys
from isolib._kernel.handle import Fd
from isolib.unionfs.drivers.overlay import OverlayDriver
home = sys.argv[1]
driver = OverlayDriver(Fd(os.open(home, os.O_RDONLY)), home)
number = len(driver.layers())
layers = sorted(driver.layers() - {"base"}, key=int)
tree = f"tree{number}"
driver.remove_tree(tree)
driver.new_tree(tree, ["base", *layers])
def write():
    with driver.mount(tree) as mount:
        open(f"/proc/self/fd/{mount.fileno()}/file{number}", "w").close()

while True:
    for name, act in (
        ("write", write),
        ("snapshot", lambda: driver.snapshot(tree, str(number))),
        ("fork", lambda: driver.fork(tree, f"fork{number}")),
        ("commit", lambda: driver.commit(tree, str(number))),
        ("reset", lambda: driver.reset(tree, str(number))),
        ("remove", lambda: driver.remove_tree(f"fork{number}")),
        ("reset", lambda: driver.reset(tree)),
    ):
        act()
        print(name, number, flush=True)
    number += 1
    driver.release(tree)
    driver.remove_tree(tree)
    tree = f"tree{number}"
    layers = sorted(driver.layers() - {"base"}, key=int)
    driver.new_tree(tree, ["base", *layers])
"""


def test_killed(driver: OverlayDriver) -> None:
    """Whenever a process is killed, every layer is whole, every tree can be mounted, and a sweep leaves nothing else."""
    for wanted in range(1, 21):
        with subprocess.Popen([sys.executable, "-c", KILLED, driver.path], stdout=subprocess.PIPE, text=True) as host:
            assert host.stdout is not None
            for _ in range(wanted):
                assert host.stdout.readline()
            host.kill()
        with opened(driver.path) as after:
            after.sweep()
            for layer in after.layers() - {"base"}:
                with after.open_layer(layer) as root:
                    assert f"file{layer}" in files(root)
            for tree in after.trees():
                assert set(BASE) <= set(shown(after, tree))
                after.remove_tree(tree)
        assert os.listdir(f"{driver.path}/parts") == os.listdir(f"{driver.path}/aside") == []
    driver.new_tree("tree", ["base"])


def test_form(driver: OverlayDriver) -> None:
    """The form says in which attributes the books are kept, and a tree that opens a directory anew shows it."""
    inside = INSIDE in os.environ
    assert driver.form is (Form.USER_OVERLAY if inside else Form.OVERLAY)
    with driver.mount("tree") as mount:
        shutil.rmtree(way(mount) / "dir")
        (way(mount) / "dir").mkdir()
    (part,) = os.listdir(f"{driver.path}/parts")
    prefix = "user" if inside else "trusted"
    assert os.getxattr(f"{driver.path}/parts/{part}/root/dir", f"{prefix}.overlay.opaque") == b"y"


@pytest.mark.usefixtures("user_namespaces")
def test_as_root_of_a_user_namespace(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """All this works in a user namespace, too, where nobody is root on the host."""
    if INSIDE in os.environ:
        pytest.skip("it is being done")
    command = ["unshare", "-rm", sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    command += [f"--basetemp={tmp_path}/inside", f"--rootdir={request.config.rootpath}", "-k", "not killed and not many_layers"]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=request.config.rootpath, env=os.environ | {INSIDE: "1"}
    )
    subprocess.run(["unshare", "-r", "rm", "-rf", f"{tmp_path}/inside"], check=True)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
