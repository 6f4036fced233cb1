"""Images, trees and overlays as roots: who writes what to whom, whose it is, and what is left of it."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import subprocess
import sys
from errno import EBUSY, EROFS
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib import PIPE, ImageNotFound, PlanError, Sandbox, SandboxSpec, SetupFailed, SyscallError, new_overlay, spawn
from isolib.mounts import Bind
from isolib.net import new_network
from tests.interrupts import interrupt
from tests.kernel.unionfs.places import place as place_of
from tests.roots import small_root
from tests.storage import disk
from tests.stores import check

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType

    from isolib.unionfs import Image, OverlayMount, Store, Tree

pytestmark = pytest.mark.usefixtures("user_namespaces")

IS_ROOT = os.geteuid() == 0
#: Drivers, and the file systems on which they are tried.
PLACES = (("overlay", "here"), ("overlay", "tmpfs"), ("vfs", "here"), ("btrfs", "btrfs"))


#: Functions of whole modules that have a part in lending.
NAMES = frozenset({"_housed", "give_back", "lend", "take_back", "lend_new", "enter", "leave"})


@pytest.fixture(params=PLACES, ids="-".join)
def store(request: pytest.FixtureRequest, place: Path) -> Iterator[Store]:
    """Return a store of each driver, which must be in order at the end."""
    driver, file_system = request.param
    if not IS_ROOT and driver != "vfs":
        pytest.skip(f"a store with the driver {driver} takes root")
    with contextlib.ExitStack() as stack:
        top = str(place)
        if file_system != "here":
            top = stack.enter_context(disk(file_system)).path
        with isolib.open_store(f"{top}/store", driver=driver) as opened:
            yield opened
            check(opened)


@pytest.fixture
def image(store: Store, place: Path) -> Image:
    """Return an image with a few programs."""
    return store.load(small_root(place / "root"), name="small")


@pytest.fixture
def tree(store: Store, image: Image) -> Iterator[Tree]:
    """Return a tree of it."""
    with store.checkout(image) as made:
        yield made


@pytest.fixture(params=["memory", "disk"])
def overlay(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OverlayMount]:
    """Return an overlay over a root with a few programs, which takes what is written in memory, or on disk."""
    root = small_root(tmp_path / "root")
    upper, work = (None, None) if request.param == "memory" else (tmp_path / "upper", tmp_path / "work")
    for path in (upper, work):
        if path is not None:
            path.mkdir()
    with new_overlay(root, upper=upper, work=work) as made:
        yield made


def script(text: str) -> list[str]:
    """Return the command for a text of a shell."""
    return ["/bin/sh", "-e", "-c", text]


def output(text: str, root: object, **options: object) -> str:
    """Run a script in a sandbox of its own, and return what it prints."""
    return isolib.run(script(text), root=root, check=True, **options).stdout.decode()  # type: ignore[arg-type]


def found(root: Tree | OverlayMount) -> list[tuple[str, str]]:
    """Return what is different in a tree."""
    return [(change.kind.value, change.path) for change in root.changes()]


# ---- trees ----


def test_what_is_written_in_it_is_in_the_tree(tree: Tree) -> None:
    """What a process writes, changes and deletes is a change of the tree, and what it mounts for itself is none."""
    output("echo new > /etc/new; mkdir /etc/dir; rm /bin/touch; echo x > /tmp/x", tree)
    assert found(tree) == [("deleted", "/bin/touch"), ("added", "/etc/dir"), ("added", "/etc/new")]
    assert Path(tree.path, "etc/new").read_text(encoding="ascii") == "new\n"
    assert output("cat /etc/new; ls /tmp", tree) == "new\n"


def test_owners(tree: Tree, store: Store) -> None:
    """What is root's in the image is root's inside, and what root makes inside is root's on disk and in a commit."""
    assert output("stat -c %u:%g /bin/busybox; touch /etc/mine; stat -c %u:%g /etc/mine", tree) == "0:0\n0:0\n"
    if IS_ROOT:
        argv = script("touch /etc/other; chown 7:8 /etc/other")
        with spawn(argv, new={"user", "mnt"}, id_map="auto", root=tree) as process:
            assert process.wait().returncode == 0
        status = os.stat(f"{tree.path}/etc/other")
        assert (status.st_uid, status.st_gid) == (7, 8)
    status = os.stat(f"{tree.path}/etc/mine")
    assert (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())
    made = tree.commit("owners")
    with store.checkout(made) as again:
        status = os.stat(f"{again.path}/etc/mine")
        assert (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())
        assert found(again) == []


@pytest.mark.root
def test_without_a_user_namespace(tree: Tree) -> None:
    """Root's process without a user namespace of its own has the tree as it is, and so has one that has the same ids in it."""
    for more in ({}, {"id_map": [isolib.IdMap(0, 0, 65536)]}):
        new = {"mnt", "pid", "user"} if more else {"mnt", "pid"}
        argv = script("touch /etc/x; chown 1000:1000 /etc/x; stat -c %u /etc/x /bin")
        with spawn(argv, new=new, root=tree, stdout=PIPE, **more) as process:  # type: ignore[arg-type]
            assert process.communicate()[0] == b"1000\n0\n"
            Path(tree.path, "etc/host").touch()
    assert os.stat(f"{tree.path}/etc/x").st_uid == 1000


def test_two_at_once(tree: Tree) -> None:
    """Two sandboxes in one tree see what the other writes at once, and so does the tree's own path."""
    with Sandbox(root=tree) as one, Sandbox(root=tree) as other:
        one.run(script("echo 1 > /etc/one"), check=True)
        assert other.run(script("cat /etc/one; echo 2 > /etc/two"), check=True).stdout == b"1\n"
        assert Path(tree.path, "etc/two").read_text(encoding="ascii") == "2\n"
        assert found(tree) == [("added", "/etc/one"), ("added", "/etc/two")]
    with open(f"{tree.path}/etc/three", "x", encoding="ascii"):
        pass
    assert output("ls /etc", tree) == "one\nthree\ntwo\n"


@pytest.mark.root
def test_a_mapped_tree_of_overlay(store: Store, tree: Tree) -> None:
    """Where overlayfs has to map a whole tree, its path is read-only meanwhile, and a process with other ids is refused."""
    with Sandbox(root=tree) as box:
        box.run(script("echo 1 > /etc/one"), check=True)
        if store.driver == "overlay":
            with pytest.raises(OSError, match="Read-only") as caught:
                open(f"{tree.path}/etc/two", "x", encoding="ascii")  # noqa: SIM115 - it is not opened
            assert caught.value.errno == EROFS
            with pytest.raises(SyscallError, match="another: end that first") as refused:
                spawn(["/bin/id"], new={"mnt"}, root=tree)
            assert refused.value.errno == EBUSY
        else:
            Path(tree.path, "etc/two").touch()
            with spawn(script("echo 3 > /etc/two"), new={"mnt"}, root=tree) as process:
                assert process.wait().returncode == 0
            assert box.run(script("cat /etc/two; stat -c %u /etc/two"), check=True).stdout == b"3\n0\n"
        assert box.run(script("cat /etc/one"), check=True).stdout == b"1\n"
    with spawn(["/bin/id", "-u"], new={"mnt"}, root=tree, stdout=PIPE) as process:
        assert process.communicate()[0] == b"0\n"


def test_commit_while_somebody_is_in_it(tree: Tree, store: Store) -> None:
    """A commit has what was written so far; who is in the tree goes on, and what he writes then is in the next commit."""
    with Sandbox(root=tree) as box:
        box.run(script("echo 1 > /etc/one; rm /bin/ln"), check=True)
        first = tree.commit("first")
        assert found(tree) == []
        box.run(script("echo 2 > /etc/two; cat /etc/one"), check=True)
        assert found(tree) == [("added", "/etc/two")]
        snapshot = tree.snapshot()
        box.run(script("rm /etc/two"), check=True)
        with pytest.raises(SyscallError, match="would lose that") as caught:
            tree.reset(snapshot)
        assert caught.value.errno == EBUSY
    tree.reset(snapshot)
    second = tree.commit("second")
    assert output("ls /etc /bin", first) == output("ls /etc /bin", second).replace("two\n", "", 1)
    assert output("cat /etc/one /etc/two", second) == "1\n2\n"
    assert store.verify() == ()


def test_a_tree_that_is_closed_stays_for_who_is_in_it(store: Store, image: Image) -> None:
    """A tree that is closed goes with the last process that is in it, and no collection takes it before."""
    tree = store.checkout(image)
    with Sandbox(root=tree) as one, Sandbox(root=tree) as other:
        one.run(script("echo 1 > /etc/one"), check=True)
        tree.close()
        image.remove()
        store.gc()
        one.close()
        assert other.run(script("cat /etc/one"), check=True).stdout == b"1\n"
        assert len(store._records.driver.trees()) == 1
    assert store._records.driver.trees() == set()
    assert store.gc().layers


def test_a_kept_tree_is_nobody_elses_as_long_as_somebody_is_in_it(store: Store, image: Image) -> None:
    """A tree with a name cannot be taken by another handle before the last process in it is gone."""
    tree = store.checkout(image, name="work")
    with Sandbox(root=tree) as box:
        tree.close()
        with pytest.raises(SyscallError) as caught:
            store.tree("work")
        assert caught.value.errno == EBUSY
        box.run(script("echo 1 > /etc/one"), check=True)
    with store.tree("work") as again:
        assert found(again) == [("added", "/etc/one")]
        again.remove()


def test_a_store_that_is_closed_before_its_processes(place: Path) -> None:
    """Processes outlive the store that their roots are of; the next who opens it collects what they had."""
    with isolib.open_store(place / "store", driver="vfs") as store:
        image = store.load(small_root(place / "root"))
        boxes = [Sandbox(root=image), Sandbox(root=store.checkout(image))]
        for box in boxes:
            box.open()
    for box in boxes:
        assert box.run(script("echo 1 > /etc/x; cat /etc/x"), check=True).stdout == b"1\n"
        box.close()
    with isolib.open_store(place / "store") as again:
        assert len(again._records.driver.trees()) == 2
        check(again)
        assert again._records.driver.trees() == set()


# ---- images ----


def test_an_image_is_not_changed(image: Image, store: Store) -> None:
    """What a process writes to an image goes with it: the next one, and another at the same time, see nothing of it."""
    with Sandbox(root=image) as one, Sandbox(root=image) as other:
        one.run(script("echo 1 > /etc/one; rm /bin/touch"), check=True)
        assert one.run(script("cat /etc/one"), check=True).stdout == b"1\n"
        assert other.run(script("ls /etc /bin/touch"), check=True).stdout.split() == [b"/bin/touch", b"/etc:"]
    assert output("ls /etc", image) == ""
    assert store._records.driver.trees() == set()
    assert store.verify() == ()


def test_collected_while_it_runs(image: Image, store: Store) -> None:
    """An image that is removed while a process has it loses nothing before that is gone, and everything after."""
    with Sandbox(root=image) as box:
        image.remove()
        assert store.gc().layers == ()
        assert b"busybox" in box.run(["/bin/ls", "/bin"], check=True).stdout
        with pytest.raises(ImageNotFound):
            isolib.run(["/bin/ls"], root=image)
    assert len(store.gc().layers) == 1


def test_failed_starts_leave_nothing(image: Image, tree: Tree, store: Store) -> None:
    """A program that is not there, or a user who is in the wrong place, leaves no tree and nobody in one."""
    trees = store._records.driver.trees()
    for root in (image, tree):
        with pytest.raises(SetupFailed, match="/bin/none"):
            isolib.run(["/bin/none"], root=root)
        with pytest.raises(SetupFailed, match="/none"):
            spawn(["/bin/id"], new={"mnt", "user"}, root=root, cwd="/none")
        with pytest.raises(PlanError, match="mount namespace"):
            spawn(["/bin/id"], root=root)
    assert store._records.driver.trees() == trees
    tree.reset()


def test_specs(image: Image, tree: Tree) -> None:
    """A spec with an image compares, hashes and pickles; one with a tree is not pickled, for the tree is this process's."""
    spec = SandboxSpec(root=image, hostname="box")
    again = pickle.loads(pickle.dumps(spec))  # noqa: S301 - our own
    assert again == spec
    assert hash(again) == hash(spec)
    if not image._records.layout.path.startswith("/proc/"):
        assert isolib.run(["/bin/ls", "/"], root=again.root, check=True).stdout.split()[0] == b"bin"
    with pytest.raises(TypeError, match="belongs to the process that made it"):
        pickle.dumps(SandboxSpec(root=tree))


def test_a_pickled_image_of_a_store_that_is_gone(tmp_path: Path) -> None:
    """A pickled image whose store is not there any more is no image, and no store is made for it."""
    with isolib.open_store(tmp_path / "store", driver="vfs") as store:
        (tmp_path / "root").mkdir()
        data = pickle.dumps(store.load(tmp_path / "root"))
    (tmp_path / "store").rename(tmp_path / "other")
    with pytest.raises(SyscallError):
        pickle.loads(data)  # noqa: S301 - our own
    (tmp_path / "store").mkdir()
    with pytest.raises(ImageNotFound):
        pickle.loads(data)  # noqa: S301 - our own
    assert os.listdir(tmp_path / "store") == []


def test_told(image: Image, tree: Tree) -> None:
    """What is visible says which image or tree it is, and what becomes of what is written."""
    assert image.visible()[0] == "/: the image small:latest, with a writable layer that goes with the process"
    assert image.visible()[1:] == ["/proc: private", "/dev: private", "/tmp: private"]
    assert tree.visible()[0] == f"/: the tree {tree.name}, writable"
    assert "move_mount" in Sandbox(root=image).explain()


# ---- hostile ones ----


@pytest.mark.parametrize("name", ["proc", "dev"])
@pytest.mark.parametrize("kind", ["link", "file"])
def test_no_place_for_proc(store: Store, place: Path, name: str, kind: str) -> None:
    """An image whose /proc or /dev is a link or a file is refused before anything is done."""
    root = small_root(place / "root", directories=("etc",))
    if kind == "link":
        os.symlink("/etc", root / name)
    else:
        (root / name).touch()
    image = store.load(root)
    with store.checkout(image) as tree:
        for one in (image, tree):
            with pytest.raises(PlanError, match=f"/{name} of the .* is no directory"):
                isolib.run(["/bin/id"], root=one)


def test_a_link_that_comes_later(tree: Tree) -> None:
    """A tree whose /proc becomes a link between the plan and the launch is refused by the launch."""
    request = isolib._kernel.request.Request(new={"mnt", "pid", "user"}, root=tree, id_map="auto" if IS_ROOT else "root")
    os.rmdir(f"{tree.path}/proc")
    os.symlink("/etc", f"{tree.path}/proc")
    with pytest.raises(SetupFailed, match="/proc"):
        request.launch(["/bin/id"], (-1, -1, -1))


def test_links_lead_nowhere_else(store: Store, place: Path) -> None:
    """A mount goes where the path leads within the image, whatever its links say; /tmp may be such a link."""
    root = small_root(place / "root", directories=("etc", "proc", "dev"))
    os.symlink("/etc", root / "out")
    os.symlink("/proc/1/root/etc", root / "magic")
    os.symlink("etc", root / "tmp")
    (root / "etc/file").touch()
    source = place / "source"
    source.write_text("bound", encoding="ascii")
    image = store.load(root)
    assert output("cat /etc/file", image, mounts=[Bind(source, "/out/file")]) == "bound"
    assert output("ls /tmp", image) == "file\n"
    with pytest.raises(SetupFailed, match="/magic/file"):
        output("true", image, mounts=[Bind(source, "/magic/file")])


def test_mount_points_that_are_missing(image: Image, tree: Tree, place: Path, store: Store) -> None:
    """A mount point that an image does not have is made in the layer of the process; a tree gets it."""
    source = place / "source"
    source.write_text("bound", encoding="ascii")
    mounts = [Bind(source, "/data/in/file")]
    assert output("cat /data/in/file", image, mounts=mounts) == "bound"
    assert output("cat /data/in/file", tree, mounts=mounts) == "bound"
    assert found(tree) == [("added", "/data"), ("added", "/data/in"), ("added", "/data/in/file")]
    with store.checkout(image) as untouched:
        assert found(untouched) == []


def test_the_network_is_called_by_name(image: Image) -> None:
    """A sandbox with an image as its root and a network has its own name in /etc/hosts, and the network in /etc/resolv.conf."""
    with new_network("10.77.0.0/24") as network, Sandbox(root=image, network=network, hostname="box") as box:
        assert box.endpoint is not None
        assert f"{box.endpoint.address}\tbox" in box.run(["/bin/cat", "/etc/hosts"], check=True).stdout.decode()
        assert b"nameserver" in box.run(["/bin/cat", "/etc/resolv.conf"], check=True).stdout
        assert isolib.run(["/bin/cat", "/etc/hosts"], root=image, network=network, hostname="one", check=True).stdout


# ---- where it cannot be, and where it is interrupted ----


@pytest.mark.root
def test_fuse(tmp_path: Path) -> None:
    """fuse-overlayfs maps no ids, so its trees and images are roots of processes with root's own user namespace alone."""
    with (
        place_of("fuse-overlayfs", "here", tmp_path) as where,
        isolib.open_store(f"{where.path}/s", driver="fuse-overlayfs") as store,
    ):
        image = store.load(small_root(tmp_path / "root"))
        with store.checkout(image) as tree:
            for root in (image, tree):
                with pytest.raises(isolib.Unsupported, match="maps no ids"):
                    isolib.run(["/bin/id"], root=root)
                with spawn(script("echo 1 > /etc/one; cat /etc/one"), new={"mnt"}, root=root, stdout=PIPE) as process:
                    assert process.communicate()[0] == b"1\n"
            assert found(tree) == [("added", "/etc/one")]
        check(store)


@pytest.mark.parametrize("what", ["tree", "image"])
def test_interrupted(place: Path, what: str) -> None:
    """Wherever an interrupt comes while a root is lent or given back, the tree is as it was, and nothing is left."""

    def counts(code: CodeType) -> bool:
        ours = code.co_filename.endswith(("unionfs/stays.py", "unionfs/overlays/lending.py"))
        return code.co_name != "__del__" and (ours or code.co_name in NAMES)

    driver = "overlay" if IS_ROOT else "vfs"
    with isolib.open_store(place / "store", driver=driver) as store:
        image = store.load(small_root(place / "root"))
        with store.checkout(image) as tree:
            root: Tree | Image = tree if what == "tree" else image
            turn = 1
            while not interrupt(turn, lambda: isolib.run(["/bin/true"], root=root), counts):
                gc.collect()  # what nobody was given, because he was interrupted
                Path(tree.path, "etc/host").touch()
                assert found(tree) == [("added", "/etc/host")]
                turn += 1
            assert turn > len(NAMES)
            assert len(store._records.driver.trees()) == 1
        check(store)


# ---- overlays without a store ----


def test_an_overlay(overlay: OverlayMount) -> None:
    """An overlay is the root of several, one after another and at once, and what is root's in it is its owner's outside."""
    assert output("stat -c %u /bin/busybox; echo 1 > /etc/one; rm /bin/touch", overlay) == "0\n"
    with Sandbox(root=overlay) as one, Sandbox(root=overlay) as other:
        one.run(script("cat /etc/one; mkdir /etc/dir"), check=True)
        assert other.run(script("ls -d /etc/dir"), check=True).stdout == b"/etc/dir\n"
        assert found(overlay) == [("deleted", "/bin/touch"), ("added", "/etc/dir"), ("added", "/etc/one")]
    Path(overlay.path, "etc/host").touch()
    status = os.stat(f"{overlay.path}/etc/one")
    assert (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())
    assert output("ls /etc; stat -c %u /etc/host", overlay) == "dir\nhost\none\n0\n"


def test_an_overlay_that_is_closed_before_its_processes(overlay: OverlayMount) -> None:
    """Who is in an overlay keeps it when it is closed, and its upper directory is nobody else's as long as he does."""
    upper, lower = overlay.upper, overlay.lowers[0]
    with Sandbox(root=overlay) as box:
        overlay.close()
        assert box.run(script("echo 1 > /etc/one; cat /etc/one"), check=True).stdout == b"1\n"
        if upper is not None and not upper.startswith("/proc/"):
            with pytest.raises(SyscallError) as caught:
                new_overlay(lower, upper=upper, work=f"{os.path.dirname(upper)}/work")
            assert caught.value.errno == EBUSY


def test_an_overlay_for_reading(place: Path) -> None:
    """An overlay to which nothing can be written is a root too, if it has the directories that are covered."""
    with new_overlay(small_root(place / "root"), readonly=True) as overlay:
        assert overlay.visible()[0].endswith("read-only")
        assert output("ls /tmp; cat /proc/self/stat > /dev/null; echo x > /etc/x || echo no", overlay) == "no\n"


@pytest.mark.root
def test_an_overlay_that_is_attached(place: Path) -> None:
    """An attached overlay is the root of processes of this user namespace alone, for its ids cannot be mapped."""
    (place / "target").mkdir()
    with new_overlay(small_root(place / "root"), target=place / "target") as overlay:
        with spawn(script("echo 1 > /etc/one"), new={"mnt"}, root=overlay) as process:
            assert process.wait().returncode == 0
        assert found(overlay) == [("added", "/etc/one")]
        with pytest.raises(isolib.Unsupported, match="target="):
            isolib.run(["/bin/id"], root=overlay)


# ---- who is killed ----

KILLED = """
import os, sys
import isolib
with isolib.open_store(sys.argv[1]) as store:
    image = store.image("small")
    tree = store.checkout(image, name="kept")
    boxes = [isolib.Sandbox(root=root) for root in (image, tree, tree)]
    for box in boxes:
        box.open()
        box.run(["/bin/touch", "/etc/written"], check=True)
    print(flush=True)
    sys.stdin.read()
"""


def test_killed(store: Store, image: Image) -> None:
    """When a program is killed whose sandboxes have images and trees, a collection leaves what was kept, and nothing else."""
    path = store.path
    passed = [int(path.split("/")[4])] if path.startswith("/proc/self/fd/") else []
    argv = [sys.executable, "-c", KILLED, path]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=passed) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"\n"
        program.send_signal(signal.SIGKILL)
    check(store)
    with store.tree("kept") as tree:
        assert found(tree) == [("added", "/etc/written")]
        assert output("ls /etc", tree) == "written\n"
        tree.remove()
