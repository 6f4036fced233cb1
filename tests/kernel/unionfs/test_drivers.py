"""The contract of the storage drivers, for every driver on every file system that it is for."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isolib import PlanError, SyscallError, Unsupported
from isolib._kernel.handle import Fd
from isolib.unionfs.drivers.base import Form
from isolib.unionfs.entry import Kind
from tests.kernel.unionfs.places import PLACES, layer, leftovers, mounted, place, write
from tests.trees import facts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolib.unionfs.drivers.base import Driver
    from tests.kernel.unionfs.places import Place

ALL = pytest.mark.parametrize("where", PLACES, indirect=True, ids="-on-".join)
OVERLAYS = {Form.OVERLAY, Form.USER_OVERLAY}


@pytest.fixture
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Return a directory for a driver, in which nothing may be left aside in the end."""
    driver, file_system = request.param
    with place(driver, file_system, tmp_path) as found:
        yield found
        assert leftovers(found.path) == []


@pytest.fixture
def driver(where: Place) -> Iterator[Driver]:
    """Return a driver with two layers, "base" and "more" above it."""
    with where.driver().home:
        pass
    made = where.driver()
    layer(made, "base", [], fill_base)
    layer(made, "more", ["base"], lambda top: write(f"{top}/more", "more"))
    yield made
    for tree in made.trees():
        made.remove_tree(tree)
    made.settle()
    made.close()


def fill_base(top: str) -> None:
    """Make some files."""
    write(f"{top}/etc/passwd", "root")
    write(f"{top}/etc/group", "wheel")
    os.link(f"{top}/etc/group", f"{top}/etc/group-")
    os.symlink("passwd", f"{top}/etc/link")
    os.mkfifo(f"{top}/fifo")
    os.utime(f"{top}/etc/passwd", ns=(1, 1_234_567_890_123_456_789))
    os.chmod(f"{top}/etc/passwd", 0o604)


BOTH = ["base", "more"]


@ALL
def test_a_draft_becomes_a_layer(driver: Driver) -> None:
    """A draft is listed until it is sealed, and then the layer holds what was put into it."""
    draft = driver.new_draft("new", [])
    assert driver.drafts() == {"new"}
    write(f"/proc/self/fd/{draft.root.fileno()}/file", "text")
    driver.seal(draft, "third")
    assert driver.drafts() == set()
    assert driver.layers() == {"base", "more", "third"}
    with driver.open_layer("third") as root:
        assert Path(f"/proc/self/fd/{root.fileno()}/file").read_text(encoding="ascii") == "text"


@ALL
def test_a_draft_begins_with_what_its_form_says(driver: Driver) -> None:
    """Above a layer, a draft holds that one's tree where layers are whole, and nothing where they are changes."""
    draft = driver.new_draft("new", BOTH)
    found = set(os.listdir(draft.root.fileno()))
    assert found == (set() if driver.form in OVERLAYS else {"etc", "fifo", "more"})
    driver.drop("new")


@ALL
def test_sealing_what_exists_drops_the_draft(driver: Driver) -> None:
    """A layer that there is already stays as it was when a draft is sealed with its name."""
    draft = driver.new_draft("again", [])
    write(f"/proc/self/fd/{draft.root.fileno()}/other", "other")
    driver.seal(draft, "base")
    assert driver.drafts() == set()
    with driver.open_layer("base") as root:
        assert set(os.listdir(root.fileno())) == {"etc", "fifo"}


@ALL
def test_dropping_and_removing(driver: Driver) -> None:
    """Drafts, layers and trees are gone when they are removed, and to remove what is not there is nothing."""
    driver.new_draft("one", ["base"]).root.close()
    driver.new_tree("tree", BOTH)
    for _ in range(2):
        driver.drop("one")
        driver.remove_tree("tree")
        driver.remove_layer("more")
        driver.remove_layer("base")
    assert (driver.drafts(), driver.trees(), driver.layers()) == (set(), set(), set())


@ALL
def test_a_tree_shows_its_layers(driver: Driver) -> None:
    """A tree shows all its layers in one, with owners, modes, times and links as they are there."""
    driver.new_tree("tree", BOTH)
    assert driver.trees() == {"tree"}
    with mounted(driver, "tree") as top:
        found = facts(top)
        assert set(found) == {".", "etc", "etc/passwd", "etc/group", "etc/group-", "etc/link", "fifo", "more"}
        mode, _, _, time, content, _, _ = found["etc/passwd"]
        assert (stat.S_IMODE(int(str(mode))), time, content) == (0o604, 1_234_567_890_123_456_789, b"root")
        assert found["etc/group-"][-1] == "etc/group"
    driver.release("tree")


@ALL
def test_layers_stay_as_they_are(driver: Driver) -> None:
    """Whatever is written to a tree, its layers do not change."""
    with driver.open_layer("base") as base:
        before = facts(f"/proc/self/fd/{base.fileno()}")
        driver.new_tree("tree", BOTH)
        with mounted(driver, "tree") as top:
            write(f"{top}/etc/passwd", "changed")
            os.unlink(f"{top}/etc/link")
            os.rename(f"{top}/etc/group", f"{top}/etc/renamed")
            os.chmod(f"{top}/etc", 0o700)
            write(f"{top}/new/file", "new")
        driver.release("tree")
        assert facts(f"/proc/self/fd/{base.fileno()}") == before


@ALL
def test_changed_says_exactly_what(driver: Driver) -> None:
    """What a tree changes is told once for each path: added, modified and deleted, parents first, and nothing else."""
    driver.new_tree("tree", BOTH)
    assert [entry.path for entry, _ in driver.changed("tree") if entry.kind is not Kind.DIRECTORY] == []
    with mounted(driver, "tree") as top:
        write(f"{top}/etc/passwd", "other text")
        os.unlink(f"{top}/more")
        write(f"{top}/new/file", "new")
    driver.release("tree")
    found, content = {}, {}
    for entry, data in driver.changed("tree"):
        assert entry.path not in found
        found[entry.path] = entry.kind
        content[entry.path] = data.read() if data else None
    assert {path: kind for path, kind in found.items() if path not in {b"", b"etc"}} == {
        b"etc/passwd": Kind.FILE,
        b"more": Kind.WHITEOUT,
        b"new": Kind.DIRECTORY,
        b"new/file": Kind.FILE,
    }
    assert (content[b"etc/passwd"], content[b"new/file"]) == (b"other text", b"new")
    assert list(found).index(b"new") < list(found).index(b"new/file")


@ALL
def test_a_commit_makes_a_layer_and_the_tree_goes_on(driver: Driver) -> None:
    """After a commit there is a layer with which a new tree looks as this one, and this one has no changes."""
    driver.new_tree("tree", BOTH)
    with mounted(driver, "tree") as top:
        write(f"{top}/etc/passwd", "other text")
        os.unlink(f"{top}/more")
    driver.release("tree")
    driver.commit("tree", "third")
    assert driver.layers() == {"base", "more", "third"}
    driver.new_tree("again", [*BOTH, "third"])
    with mounted(driver, "tree") as top, mounted(driver, "again") as other:
        assert facts(top) == facts(other)
        assert not os.path.exists(f"{other}/more")
    driver.release("tree")
    driver.release("again")
    assert [entry for entry, _ in driver.changed("tree") if entry.kind is not Kind.DIRECTORY] == []


@ALL
def test_snapshots_and_resets(driver: Driver) -> None:
    """A tree goes back to what it was at a snapshot, and without one to its layers; what it was meanwhile is gone."""
    driver.new_tree("tree", BOTH)
    with mounted(driver, "tree") as top:
        original = facts(top)
        write(f"{top}/one", "1")
        kept = facts(top)
    driver.release("tree")
    driver.snapshot("tree", "first")
    with mounted(driver, "tree") as top:
        assert facts(top) == kept
        write(f"{top}/two", "2")
        os.unlink(f"{top}/more")
    driver.release("tree")
    assert driver.snapshots("tree") == {"first"}
    driver.reset("tree", "first")
    with mounted(driver, "tree") as top:
        assert facts(top) == kept
    driver.release("tree")
    driver.reset("tree")
    with mounted(driver, "tree") as top:
        assert facts(top) == original
    driver.release("tree")
    driver.reset("tree", "first")
    with mounted(driver, "tree") as top:
        assert facts(top) == kept


@ALL
def test_a_second_snapshot_of_a_name_is_refused(driver: Driver) -> None:
    """A snapshot is not replaced by another one of its name."""
    driver.new_tree("tree", BOTH)
    driver.snapshot("tree", "one")
    with pytest.raises(SyscallError) as caught:
        driver.snapshot("tree", "one")
    assert caught.value.errno == errno.EEXIST


@ALL
def test_a_fork_goes_its_own_way(driver: Driver) -> None:
    """A fork begins as the tree is, and from then on neither sees what the other does."""
    driver.new_tree("tree", BOTH)
    with mounted(driver, "tree") as top:
        write(f"{top}/one", "1")
        driver.fork("tree", "new")
        write(f"{top}/two", "2")
        with mounted(driver, "new") as other:
            write(f"{other}/three", "3")
            assert {"one", "three"} == set(os.listdir(other)) - {"etc", "fifo", "more"}
            assert {"one", "two"} == set(os.listdir(top)) - {"etc", "fifo", "more"}
    assert driver.trees() == {"tree", "new"}


@ALL
def test_another_process_sees_the_same(where: Place, driver: Driver) -> None:
    """All that a driver knows lies in its directory: a second one goes on with the trees of the first."""
    driver.new_tree("tree", BOTH)
    with mounted(driver, "tree") as top:
        write(f"{top}/one", "1")
        seen = facts(top)
    driver.release("tree")
    driver.snapshot("tree", "kept")
    other = where.driver()
    assert (other.layers(), other.trees(), other.snapshots("tree")) == (driver.layers(), {"tree"}, {"kept"})
    with mounted(other, "tree") as top:
        assert facts(top) == seen
    other.release("tree")
    other.settle()
    other.close()


@ALL
def test_usage_tells_what_was_written(driver: Driver) -> None:
    """A tree takes up what was written to it, and no more than a little beside."""
    driver.new_tree("tree", BOTH)
    before = driver.usage("tree").size
    with mounted(driver, "tree") as top:
        fd = os.open(f"{top}/big", os.O_CREAT | os.O_WRONLY, 0o600)
        os.write(fd, os.urandom(1 << 20))
        os.fsync(fd)
        os.close(fd)
    assert (1 << 20) <= driver.usage("tree").size - before < (1 << 21)


@ALL
def test_a_quota_holds_or_is_refused(driver: Driver) -> None:
    """A quota bounds what can be written to a tree, before and after a reset; a driver that has none says so beforehand."""
    if not has_quotas(driver):
        with pytest.raises(Unsupported) as refused:
            driver.new_tree("tree", BOTH, quota=4 << 20)
        assert refused.value.remedy
        assert driver.trees() == set()
        return
    driver.new_tree("tree", BOTH, quota=4 << 20)
    for _ in range(2):
        with mounted(driver, "tree") as top:
            with pytest.raises(OSError, match="quota") as caught:
                fill_up(f"{top}/big", 16 << 20)
            assert caught.value.errno == errno.EDQUOT
        driver.reset("tree")


def has_quotas(driver: Driver) -> bool:
    """Return whether a driver knows quotas."""
    return driver.name in {"btrfs", "zfs"}


def fill_up(path: str, size: int) -> None:
    """Write so many bytes into a new file, to the disk."""
    with open(path, "wb", buffering=0) as file:
        for _ in range(size >> 20):
            file.write(os.urandom(1 << 20))
            os.fsync(file.fileno())


@ALL
@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b", "a\nb", "x" * 256])
def test_bad_names_are_refused_at_once(driver: Driver, name: str) -> None:
    """A name that could lie elsewhere than in its directory is refused by everything that takes one."""
    driver.new_tree("tree", BOTH)
    for call in (
        lambda: driver.new_draft(name, []),
        lambda: driver.drop(name),
        lambda: driver.open_layer(name),
        lambda: driver.remove_layer(name),
        lambda: driver.new_tree(name, []),
        lambda: driver.new_tree("new", [name]),
        lambda: driver.commit("tree", name),
        lambda: driver.snapshot("tree", name),
        lambda: driver.reset("tree", name),
        lambda: driver.fork("tree", name),
        lambda: driver.fork(name, "new"),
        lambda: driver.remove_tree(name),
    ):
        with pytest.raises(PlanError):
            call()
    assert (driver.trees(), driver.layers()) == ({"tree"}, {"base", "more"})


@ALL
def test_what_is_not_there_is_told(driver: Driver) -> None:
    """Whatever needs a tree, a layer or a snapshot that there is not says so, and makes none."""
    driver.new_tree("tree", BOTH)
    for call in (
        lambda: driver.open_layer("none"),
        lambda: driver.mount("none"),
        lambda: list(driver.changed("none")),
        lambda: driver.commit("none", "third"),
        lambda: driver.snapshot("none", "one"),
        lambda: driver.reset("none"),
        lambda: driver.reset("tree", "none"),
        lambda: driver.fork("none", "new"),
        lambda: driver.snapshots("none"),
        lambda: driver.usage("none"),
    ):
        with pytest.raises(SyscallError) as caught:
            call()
        assert caught.value.errno == errno.ENOENT
    assert (driver.trees(), driver.layers(), driver.snapshots("tree")) == ({"tree"}, {"base", "more"}, set())


@ALL
def test_a_tree_above_nothing_is_empty(driver: Driver) -> None:
    """A tree can stand on no layer at all."""
    driver.new_tree("tree", [])
    with mounted(driver, "tree") as top:
        assert os.listdir(top) == []
        assert stat.S_IMODE(os.stat(top).st_mode) == 0o755
        write(f"{top}/dir/file", "text")
    driver.release("tree")
    assert [entry.path for entry, _ in driver.changed("tree") if entry.path] == [b"dir", b"dir/file"]


@ALL
def test_examining_leaves_nothing(where: Place) -> None:
    """A driver finds out whether it works in a directory, and the directory is as before."""
    before = set(os.listdir(where.path))
    with Fd(os.open(where.path, os.O_RDONLY)) as home:
        where.kind.examine(home.fileno(), where.path)
    assert set(os.listdir(where.path)) - {"aside"} == before


# ---- bad weather ----


@pytest.mark.parametrize("where", [one for one in PLACES if one[1] != "here"], indirect=True, ids="-on-".join)
def test_a_read_only_disk_is_told(where: Place, driver: Driver) -> None:
    """On a file system that takes no writes everything can be read, and everything else is refused with EROFS."""
    driver.new_tree("tree", BOTH)
    driver.settle()
    with Fd(os.open(where.path, os.O_RDONLY)) as home, Fd(readonly(home)) as frozen:
        other = where.kind(Fd(os.dup(frozen.fileno())), f"/proc/self/fd/{frozen.fileno()}")
        assert (other.layers(), other.trees()) == ({"base", "more"}, {"tree"})
        for call in (
            lambda: other.new_draft("new", ["base"]),
            lambda: other.new_tree("new", BOTH),
            lambda: other.commit("tree", "third"),
            lambda: other.reset("tree"),
            lambda: other.remove_layer("base"),
            lambda: other.remove_tree("tree"),
        ):
            with pytest.raises(SyscallError) as caught:
                call()
            assert caught.value.errno == errno.EROFS
        other.close()
    assert (driver.layers(), driver.trees()) == ({"base", "more"}, {"tree"})


def readonly(home: Fd) -> int:
    """Return a detached mount of a directory that takes no writes."""
    from isolib._kernel import calls  # noqa: PLC0415
    from isolib._kernel.mountapi import clone_tree  # noqa: PLC0415

    return clone_tree("", dir_fd=home.fileno(), attributes=calls.MOUNT_ATTR_RDONLY)


@pytest.mark.parametrize(("kind", "file_system"), [one for one in PLACES if one[1] in {"tmpfs", "ext4", "btrfs"}])
def test_a_full_disk_loses_nothing(kind: str, file_system: str, tmp_path: Path) -> None:
    """Where there is no room, what cannot be made is told with ENOSPC, and all that there was is as it was."""
    with place(kind, file_system, tmp_path, size=128 << 20 if file_system == "btrfs" else 16 << 20) as where:
        driver = where.driver()
        layer(driver, "base", [], fill_base)
        driver.new_tree("tree", ["base"])
        with mounted(driver, "tree") as top:
            before = facts(top)
            with contextlib.suppress(OSError), open(f"{where.path}/ballast", "wb", buffering=0) as file:
                while file.write(bytes(65536)):
                    pass
            with pytest.raises(OSError, match="space") as caught:
                fill_up_with_trees(driver)
            assert caught.value.errno == errno.ENOSPC
            os.unlink(f"{where.path}/ballast")
            assert facts(top) == before
        for tree in driver.trees():
            driver.remove_tree(tree)
        driver.settle()
        driver.sweep()
        assert leftovers(where.path) == []
        driver.close()


def fill_up_with_trees(driver: Driver) -> None:
    """Make trees, and write to each, until there is no room."""
    for number in range(100_000):
        driver.new_tree(f"new{number}", ["base"])
        with mounted(driver, f"new{number}") as top:
            write(f"{top}/file", "x" * 100_000)
        driver.release(f"new{number}")


#: Where a driver is killed each time the tests are run; elsewhere it takes the same steps.
KILLED = {("vfs", "here"), ("btrfs", "btrfs"), ("overlay", "tmpfs"), ("fuse-overlayfs", "here"), ("devicemapper", "here")}


@pytest.mark.parametrize(
    "where",
    [pytest.param(one, marks=() if one in KILLED else pytest.mark.slow) for one in PLACES],
    indirect=True,
    ids=["-on-".join(one) for one in PLACES],
)
@pytest.mark.parametrize(
    "operation", ["seal", "new_tree", "commit", "snapshot", "reset", "fork", "remove_tree", "remove_layer"]
)
def test_killed_anywhere_it_leaves_what_was_or_what_is_to_be(where: Place, operation: str) -> None:
    """Whoever is killed between any two calls of an operation leaves what was or what is to be, and a sweep nothing else."""
    program = [sys.executable, str(Path(__file__).with_name("killed.py")), where.kind.name, where.path, operation]
    descriptors = [int(where.path.split("/")[4])] if where.path.startswith("/proc/self/fd/") else []
    done = subprocess.run(program, pass_fds=descriptors, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 3, "it was killed nowhere"
