"""A store of an ordinary user: the same images as root's, with files of all their owners.

Root runs these tests as such a user, in one test.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import select
import signal
import stat
import subprocess
import sys
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib import GoneError, PermissionDenied, Unsupported
from isolib._kernel import idmap
from isolib.unionfs import drivers
from isolib.unionfs.overlays.deputy import deputy
from tests import ordinary
from tests.images import Draft, layout, packed
from tests.kernel.unionfs import test_store as storing
from tests.roots import small_root
from tests.stores import check, leftovers
from tests.treemachine import try_trees

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolib.unionfs import Store

IS_ROOT = os.geteuid() == 0
HAS_IDS = not IS_ROOT and ordinary.has_ids()
unprivileged = pytest.mark.unprivileged
with_ids = pytest.mark.skipif(not HAS_IDS, reason="this user has no subordinate ids")


def entry(
    name: str, owner: tuple[int, int] = (0, 0), mode: int = 0o644, kind: bytes = tarfile.REGTYPE, **more: str
) -> tarfile.TarInfo:
    """Return an entry of an archive."""
    made = tarfile.TarInfo(name)
    made.uid, made.gid = owner
    made.mode, made.type, made.mtime = mode, kind, 1_700_000_000
    made.linkname = more.get("target", "")
    if "xattr" in more:
        made.pax_headers = {"SCHILY.xattr.user.note": more["xattr"]}
    return made


def archive(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """Return the tar of a layer."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in entries:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def directory(name: str, owner: tuple[int, int] = (0, 0), mode: int = 0o755) -> tuple[tarfile.TarInfo, bytes]:
    """Return an entry of a directory."""
    return entry(name, owner, mode, tarfile.DIRTYPE), b""


LOWEST = archive(
    directory("."),
    directory("bin"),
    (entry("bin/su", mode=0o4755), b"program"),
    (entry("bin/write", (0, 5), 0o2755), b"other program"),
    directory("var"),
    directory("var/mail", (0, 8), 0o2775),
    (entry("var/mail/games", (5, 8), 0o660), b"letter" * 1000),
    directory("var/partial", (100, 0), 0o700),
    (entry("var/partial/list", (100, 65534), 0o600, xattr="told"), b"secret"),
    (entry("var/link", (33, 33), 0o777, tarfile.SYMTYPE, target="partial/list"), b""),
    (entry("var/pipe", (33, 4), 0o620, tarfile.FIFOTYPE), b""),
    (entry("var/su", (0, 0), 0o4755, tarfile.LNKTYPE, target="bin/su"), b""),
    directory("srv", (1000, 1000), 0o700),
    (entry("srv/old", (1000, 1000), 0o600), b"old"),
)
UPPER = archive(
    directory("var", (0, 0)),
    (entry("var/mail/.wh.games", (0, 0)), b""),
    directory("srv", (1001, 1000), 0o750),
    (entry("srv/.wh..wh..opq", (0, 0)), b""),
    (entry("srv/new", (1001, 1001), 0o400), b"new"),
    (entry("bin/su", (0, 0), 0o4711), b"newer program"),
)


def image(where: Path, *layers: bytes) -> Path:
    """Return an archive of an image."""
    return packed(layout(("", Draft(layers or (LOWEST, UPPER)))), where / "image.tar")


def sha256(data: bytes) -> str:
    """Return a digest as images have it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture(params=["overlay", "vfs"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Return an empty store, which must be in order at the end."""
    if request.param == "overlay":
        need_overlays(tmp_path)
    with isolib.open_store(tmp_path / "store", driver=request.param) as opened:
        yield opened
        check(opened)


def has_overlays(where: Path) -> bool:
    """Return whether the kernel mounts an overlay for root of a user namespace, to be written to in this place."""
    for name in ("lower", "upper", "work"):
        (where / name).mkdir(exist_ok=True)
    options = f"lowerdir={where}/lower,upperdir={where}/upper,workdir={where}/work,userxattr"
    script = f"mount -t overlay overlay -o {options} {where}/lower && touch {where}/lower/file && rm -r {where}/work/*"
    return subprocess.run(["unshare", "-rm", "sh", "-c", script], check=False, capture_output=True).returncode == 0


def need_overlays(where: Path) -> None:
    """Skip the test where there are none."""
    if not has_overlays(where):
        pytest.skip("the kernel refuses overlay mounts to this user, or this file system does not take them")


def outside(uid: int) -> int:
    """Return who owns on the host what belongs to somebody in an image."""
    return next(one.outside + uid - one.inside for one in idmap.auto_map() if one.inside <= uid < one.inside + one.count)


def as_image_root(*argv: str, fd: int) -> None:
    """Run a command with all rights over the ids of images, and a descriptor."""
    pid = deputy().call(os.getpid)
    enter = ["nsenter", "--target", str(pid), "--user", "--setuid", "0", "--setgid", "0", "--"]
    subprocess.run([*enter, *argv], check=True, pass_fds=[fd])


# ---- root ----


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("ids", [True, False], ids=["with subordinate ids", "without"])
def test_as_an_ordinary_user(ids: bool) -> None:  # noqa: FBT001 - a parameter of pytest's
    """What the tests below say of owners, drivers and threads holds for an ordinary user, with subordinate ids and without."""
    chosen = "ids or directory or quota or truth" + " or owners or fuse or threads or beside" * ids
    with ordinary.place() as home:
        argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not root", "-k", chosen, __file__]
        done = ordinary.run(argv, home, ids=ids)
    assert done.returncode == 0, done.stdout
    assert ("this user has no subordinate ids" not in done.stdout) is ids, done.stdout


WORK = """
import hashlib, io, json, os, sys
from datetime import datetime, UTC
import isolib
path, image, driver = sys.argv[1:]
with isolib.open_store(path, driver=driver) as store:
    loaded = store.load(image, name="loaded")
    with store.checkout(loaded) as tree:
        os.unlink(f"{tree.path}/bin/write")
        os.mkdir(f"{tree.path}/new", 0o755)
        with open(f"{tree.path}/new/file", "w") as file:
            file.write("text")
        os.rename(f"{tree.path}/bin/su", f"{tree.path}/bin/sudo")
        for name in ("bin/sudo", "new/file", "new", "bin", "."):
            os.utime(f"{tree.path}/{name}", ns=(0, 1_600_000_000_000_000_005))
        sink = io.BytesIO()
        told = tree.diff(sink)
        made = tree.commit("work", tag="made", created=datetime(2026, 1, 1, tzinfo=UTC))
    made.save(path + ".tar")
    print(json.dumps([loaded.digest, made.digest, told.diff_id, [layer.chain_id for layer in made.layers]]))
"""


@pytest.mark.root
@pytest.mark.parametrize("driver", ["overlay", "vfs"])
def test_digests_are_those_of_roots_store(driver: str) -> None:
    """What an ordinary user loads, changes and commits has the digests that it has with root, and the same bytes when saved."""
    with ordinary.place() as home:
        theirs = image(home)
        own = home / "own"
        own.mkdir(mode=0o700)
        argv = [sys.executable, "-c", WORK]
        by_root = subprocess.run([*argv, str(own / "store"), str(theirs), driver], check=True, capture_output=True, text=True)
        by_user = ordinary.run([*argv, str(home / "store"), str(theirs), driver], home)
        assert by_user.returncode == 0, by_user.stdout
        assert json.loads(by_user.stdout) == json.loads(by_root.stdout)
        assert (home / "store.tar").read_bytes() == (own / "store.tar").read_bytes()


# ---- images ----


@unprivileged
@with_ids
def test_an_image_of_many_owners(store: Store, tmp_path: Path) -> None:
    """Files of all owners lie there as those of the user's subordinate ids, with their modes, and are the image's in a tar."""
    loaded = store.load(image(tmp_path), name="many")
    assert [layer.diff_id for layer in loaded.layers] == [sha256(LOWEST), sha256(UPPER)]
    assert store.verify() == ()
    with store.checkout(loaded) as tree:
        found = {
            name: os.lstat(f"{tree.path}/{name}") for name in ("bin/su", "var/su", "bin/write", "var/mail", "var/link", "srv")
        }
        assert {name: (one.st_uid, one.st_mode & 0o7777) for name, one in found.items()} == {
            "bin/su": (os.geteuid(), 0o4711),
            "var/su": (os.geteuid(), 0o4755),
            "bin/write": (os.geteuid(), 0o2755),
            "var/mail": (os.geteuid(), 0o2775),
            "var/link": (outside(33), 0o777),
            "srv": (outside(1001), 0o750),
        }
        assert os.listdir(f"{tree.path}/var/mail") == []
        assert stat.S_ISFIFO(os.lstat(f"{tree.path}/var/pipe").st_mode)
        with pytest.raises(PermissionError):  # it is somebody else's
            os.listdir(f"{tree.path}/var/partial")
        assert tree.changes() == []
    saved = tmp_path / "saved.tar"
    loaded.save(saved)
    with tarfile.open(saved) as tar:
        contents = [file.read() for member in tar if member.isfile() and (file := tar.extractfile(member)) is not None]
    plain = [gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data for data in contents]
    assert {LOWEST, UPPER} <= set(plain)


@unprivileged
@with_ids
def test_changes_have_the_ids_of_the_image(store: Store, tmp_path: Path) -> None:
    """What is done to files of others in a tree, by who may, is told, committed, snapshot, reset and forked as theirs."""
    loaded = store.load(image(tmp_path))
    with store.checkout(loaded) as tree:
        top = f"/proc/self/fd/{tree.fileno()}"
        as_image_root("chown", "8:12", f"{top}/bin/write", fd=tree.fileno())
        as_image_root("sh", "-c", f"echo more >> {top}/var/partial/list", fd=tree.fileno())
        assert [change.path for change in tree.changes()] == ["/bin/write", "/var/partial/list"]
        before = io.BytesIO()
        tree.diff(before)
        with tarfile.open(fileobj=io.BytesIO(before.getvalue())) as tar:
            owners = {member.name: (member.uid, member.gid, member.mode) for member in tar if member.isfile()}
            listed = tar.extractfile("var/partial/list")
            assert listed is not None
            assert listed.read() == b"secretmore\n"
            assert tar.getmember("var/partial/list").pax_headers["SCHILY.xattr.user.note"] == "told"
        assert owners == {"bin/write": (8, 12, 0o755), "var/partial/list": (100, 65534, 0o600)}
        used = tree.usage()
        assert used.size > 0
        name = tree.snapshot()
        tree.reset()
        assert tree.changes() == []
        tree.reset(name)
        after = io.BytesIO()
        tree.diff(after)
        assert after.getvalue() == before.getvalue()
        with tree.fork() as other:
            made = other.commit("theirs", tag="theirs")
        assert made.layers[-1].diff_id == sha256(before.getvalue())
    assert store.verify() == ()
    made.remove()
    loaded.remove()
    assert len(store.gc(unnamed=True).layers) == 3
    assert os.listdir(f"{store.path}/layers") == []


@unprivileged
@with_ids
def test_what_is_copied_into_an_image_has_the_owners_that_are_asked_for(store: Store, tmp_path: Path) -> None:
    """`Image.copy` gives files to any owner of the image, in directories that are theirs too; unless told, they are root's."""
    (tmp_path / "file").write_text("text")
    loaded = store.load(image(tmp_path))
    made = loaded.copy(tmp_path / "file", target="/srv/theirs", owner=(8, 12)).copy(
        tmp_path / "file", target="/var/partial/roots"
    )
    made = made.copy("/var/partial/list", target="/bin/list", from_image=loaded)
    (tmp_path / "saved").mkdir()
    made.save(tmp_path / "saved")
    owners: dict[str, tuple[int, int]] = {}
    for layer in made.layers[-3:]:
        with tarfile.open(tmp_path / "saved/blobs/sha256" / layer.diff_id.removeprefix("sha256:")) as tar:
            owners |= {member.name: (member.uid, member.gid) for member in tar if member.isfile()}
    assert owners == {"srv/theirs": (8, 12), "var/partial/roots": (0, 0), "bin/list": (0, 0)}


@with_ids
def test_a_step_of_a_build_is_another_user_of_the_image(store: Store, tmp_path: Path) -> None:
    """`Image.run` runs as any user of the image, whose files are then his."""
    base = store.load(small_root(tmp_path / "root"))
    made = base.run(["/bin/sh", "-c", "echo > /tmp/x; id -u > /etc/who"], user="0").run(
        ["/bin/sh", "-c", "mkdir -p /home; chown 33:34 /home"]
    )
    theirs = made.run(["/bin/sh", "-c", "id -u > /home/me"], user="33:34")
    (tmp_path / "saved").mkdir()
    theirs.save(tmp_path / "saved")
    with tarfile.open(tmp_path / "saved/blobs/sha256" / theirs.layers[-1].diff_id.removeprefix("sha256:")) as tar:
        assert (tar.getmember("home/me").uid, tar.getmember("home/me").gid) == (33, 34)


@with_ids
def test_a_tree_through_fuse(tmp_path: Path) -> None:
    """With fuse-overlayfs a tree is the user's to use too, and tells its changes."""
    if not (os.path.exists("/usr/bin/fuse-overlayfs") and os.access("/dev/fuse", os.R_OK | os.W_OK)):
        pytest.skip("this user has no fuse-overlayfs, or may not open /dev/fuse")
    with isolib.open_store(tmp_path / "store", driver="fuse-overlayfs") as store:
        loaded = store.load(image(tmp_path))
        with store.checkout(loaded) as tree:
            assert os.lstat(f"{tree.path}/srv").st_uid == outside(1001)
            Path(tree.path, "bin/new").write_text("new")
            assert [change.path for change in tree.changes()] == ["/bin/new"]
            made = tree.commit()
        assert len(made.layers) == 3
        check(store)


@unprivileged
def test_without_ids_other_owners_are_refused(tmp_path: Path) -> None:
    """Who has no subordinate ids loads what is root's alone; for other owners he is told what would help."""
    if HAS_IDS:
        pytest.skip("this user has subordinate ids")
    with isolib.open_store(tmp_path / "store", driver="vfs") as store:
        with pytest.raises(PermissionDenied, match=r"0:5: this user has no ids .* /etc/subuid .* newuidmap"):
            store.load(image(tmp_path))
        assert leftovers(store) == {}
        loaded = store.load(image(tmp_path, archive(directory("bin"), (entry("bin/su", mode=0o4755), b"program"))))
        with store.checkout(loaded) as tree:
            status = os.stat(f"{tree.path}/bin/su")
            assert (status.st_uid, status.st_mode & 0o7777) == (os.geteuid(), 0o4755)
        check(store)


@unprivileged
@with_ids
def test_ids_beyond_the_range_are_refused(store: Store, tmp_path: Path) -> None:
    """An owner for whom the user's range has no id is an error that says which ids there are."""
    with pytest.raises(PermissionDenied, match=r"3000000:0: this user has ids for 0 to 0, 1 to \d+; "):
        store.load(image(tmp_path, archive((entry("file", (3_000_000, 0)), b""))))
    assert leftovers(store) == {}


@unprivileged
def test_a_directory(tmp_path: Path) -> None:
    """The user's own files are root's in an image of a directory; files of owners that he has no ids for are refused."""
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/motd").write_text("hello")
    with isolib.open_store(tmp_path / "store", driver="vfs") as store:
        loaded = store.load(tree)
        with store.checkout(loaded) as made:
            Path(made.path, "etc/motd").unlink()
            sink = io.BytesIO()
            made.diff(sink)
        with tarfile.open(fileobj=io.BytesIO(sink.getvalue())) as tar:
            assert {(member.uid, member.gid) for member in tar} == {(0, 0)}
        with pytest.raises(PermissionDenied, match="whose it is cannot be told"):
            store.load("/usr/lib")
        check(store)


# ---- drivers ----


@unprivileged
def test_drivers_tell_the_truth(tmp_path: Path) -> None:
    """The overlay driver is said to work, and is the default, where the kernel mounts overlays in user namespaces."""
    expected = has_overlays(tmp_path)
    assert bool(drivers(tmp_path)["overlay"]) is expected
    assert drivers(tmp_path)["vfs"]
    assert not drivers(tmp_path)["devicemapper"]
    with isolib.open_store(tmp_path / "store") as store:
        assert not expected or store.driver == "overlay"


@unprivileged
def test_no_quota(store: Store) -> None:
    """A quota is refused by name, and leaves no tree."""
    with pytest.raises(Unsupported, match="a quota for a tree: refused by"):
        store.checkout(quota="1M")
    assert store.trees() == ()


@unprivileged
def test_a_tree_is_what_a_model_says(tmp_path: Path) -> None:
    """Whatever the user does to a tree, it is what a model of it says, also in another driver's store, and no layer changes."""
    for driver in ("vfs", *["overlay"] * has_overlays(tmp_path)):
        (where := tmp_path / f"of-{driver}").mkdir()
        with isolib.open_store(where / "beside", driver="vfs") as other:
            try_trees(partial(opened, where, driver), {"vfs": other}, examples=4, steps=8)


def opened(where: Path, driver: str, name: str) -> Store:
    """Open a store."""
    return isolib.open_store(where / name, driver=driver)


# ---- what is killed, and what is interrupted ----


def kill_deputy() -> None:
    """Kill it, and wait until it is gone."""
    pid = deputy().call(os.getpid)
    watch = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    select.select([watch], [], [])
    os.close(watch)


@unprivileged
def test_a_deputy_that_is_killed_in_a_load(store: Store, tmp_path: Path) -> None:
    """The load raises, nothing of it is left, and the next one works."""
    large = image(tmp_path, archive((entry("large"), os.urandom(5_000_000))))
    killed: list[object] = []

    def kill(progress: object) -> None:
        if not killed:
            killed.append(progress)
            kill_deputy()

    with pytest.raises(GoneError):
        store.load(large, progress=kill)
    assert store.verify() == ()
    store.gc()
    assert leftovers(store) == {}
    assert store.verify() == ()
    assert store.load(large).layers


@unprivileged
def test_a_deputy_that_is_killed_beside_a_tree(store: Store, tmp_path: Path) -> None:
    """A tree goes on when the deputy that has mounted it is gone: it is written to, committed, and closed."""
    root_only = archive(directory("etc"), (entry("etc/motd"), b"hello"))
    with store.checkout(store.load(image(tmp_path, root_only))) as tree:
        Path(tree.path, "before").write_text("1")
        kill_deputy()
        Path(tree.path, "after").write_text("2")
        assert [change.path for change in tree.changes()] == ["/after", "/before"]
        made = tree.commit(tag="made")
        kill_deputy()
        Path(tree.path, "later").write_text("3")
        with store.checkout(made) as other:
            assert sorted(os.listdir(other.path)) == ["after", "before", "etc"]
        assert [change.path for change in tree.changes()] == ["/later"]
    assert store.verify() == ()


@unprivileged
def test_who_is_killed_leaves_the_store_in_order(store: Store, tmp_path: Path) -> None:
    """Killed anywhere, a process leaves a store that is in order, with all that was committed before, and nothing for good."""
    small = packed(layout(("", Draft([storing.SMALL, storing.ABOVE]))), tmp_path / "small.tar")
    storing.survives(store, tmp_path, small, random.Random(3), 2)  # noqa: S311 - the same points each time


@unprivileged
@pytest.mark.filterwarnings("ignore:never closed:ResourceWarning")  # its close was interrupted at its entry, and comes anyway
def test_an_interrupt_waits_for_the_deputy(store: Store, tmp_path: Path) -> None:
    """KeyboardInterrupt anywhere in a load, a checkout or a commit is raised, and nothing stays half made or open."""
    small = packed(layout(("", Draft([storing.SMALL, storing.ABOVE]))), tmp_path / "small.tar")
    storing.test_an_interrupt_at_any_time_leaves_nothing(store, small)


@unprivileged
def test_no_process_is_left(tmp_path: Path) -> None:
    """The deputy ends with the process that it works for, also when that is killed."""
    code = """
from isolib.unionfs.overlays.deputy import deputy
with isolib.open_store(sys.argv[1], driver="vfs") as store:
    with store.checkout() as tree:
        print(deputy().call(os.getpid), flush=True)
        sys.stdin.readline()
"""
    for end in ("", "kill"):
        argv = [sys.executable, "-c", f"import os, sys, isolib{code}", str(tmp_path / f"store{end}")]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        watch = os.pidfd_open(int(process.stdout.readline()))
        if end:
            process.kill()
        process.communicate("")
        assert select.select([watch], [], [], 60)[0] == [watch]
        os.close(watch)


@unprivileged
def test_threads(store: Store, tmp_path: Path) -> None:
    """Threads load, commit, collect and look at once."""
    root_only = [archive((entry(f"file{number}"), os.urandom(200_000))) for number in range(4)]
    archives = [
        packed(layout(("", Draft([root_only[0], one]))), tmp_path / f"image{number}.tar")
        for number, one in enumerate(root_only)
    ]
    start = threading.Barrier(4)

    def work(number: int) -> None:
        start.wait()
        for turn in range(3):
            with store.checkout(store.load(archives[(number + turn) % 4])) as tree:
                Path(tree.path, "mine").write_text(f"{number} {turn}")
                assert [change.path for change in tree.changes()] == ["/mine"]
                tree.commit(tag=f"made{number}")
            store.gc()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert store.verify() == ()
