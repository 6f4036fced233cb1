"""Volumes: what they keep, who may use them at once, what is shown inside, what is refused, what survives a kill."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import pwd
import select
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import threading
from errno import EBUSY, EDQUOT, ENOENT, ENOSPC, EROFS
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib import ArchiveError, ClosedError, GoneError, ImageNotFound, PlanError, SyscallError, Unsupported
from isolib._kernel.procfs import parse_mountinfo
from isolib.mounts import Bind, Root, Tmpfs
from isolib.unionfs import Limits, Subject
from tests import hostile
from tests.interrupts import interrupt
from tests.storage import disk
from tests.stores import check, usable
from tests.trees import facts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolib.unionfs import Image, Store, Volume

IS_ROOT = os.geteuid() == 0
KINDS = {"pid", "mnt", "user", "ipc", "uts"}


@pytest.fixture(params=["overlay", "vfs", "btrfs"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Return an empty store of each driver, which must be in order at the end and have nothing half made in it."""
    with contextlib.ExitStack() as stack:
        top = str(tmp_path)
        if request.param == "btrfs":
            top = stack.enter_context(disk("btrfs")).path
        opened = stack.enter_context(isolib.open_store(f"{top}/store", driver=usable(request.param)))
        yield opened
        check(opened)


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Store]:
    """Return an empty store of the driver that everybody has."""
    with isolib.open_store(tmp_path / "store", driver="vfs") as opened:
        yield opened
        check(opened)


@pytest.fixture
def volume(store: Store) -> Iterator[Volume]:
    """Return an empty volume."""
    with store.new_volume("data") as made:
        yield made


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a root file system with all kinds of things in /data, and a link to there."""
    top = tmp_path / "source"
    data = top / "data"
    (data / "empty").mkdir(parents=True)
    (data / "closed").mkdir()
    (data / "file").write_text("text", encoding="ascii")
    os.link(data / "file", data / "closed/again")
    os.setxattr(data / "file", "user.note", b"kept")
    os.symlink("../../nowhere", data / "link")
    os.mkfifo(data / "fifo")
    with (data / "sparse").open("wb") as file:
        file.truncate(1 << 20)
    if IS_ROOT:
        os.chown(data / "file", 1000, 1001)
        os.chown(data / "link", 5, 6, follow_symlinks=False)
        os.chown(data, 999, 998)
        os.mknod(data / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    os.chmod(data / "file", 0o4751)
    os.chmod(data / "closed", 0o500)
    os.chmod(data, 0o2750)
    os.utime(data / "file", ns=(10**18 + 1, 10**18 + 7))
    os.symlink("data", top / "way")
    os.symlink("/../../../way", top / "other")
    (top / "text").write_text("no directory", encoding="ascii")
    return top


@pytest.fixture
def image(store: Store, source: Path) -> Image:
    """Return an image of that."""
    return store.load(source, name="base")


@pytest.fixture
def target(tmp_path: Path) -> Iterator[str]:
    """Return a directory to attach something to; nothing is attached to it afterwards."""
    (tmp_path / "target").mkdir()
    yield str(tmp_path / "target")
    assert os.listdir(tmp_path / "target") == []


def names(volume: Volume) -> list[str]:
    """Return what is in a volume."""
    return sorted(os.listdir(volume.path))


def run(code: str, *arguments: object, pass_fds: tuple[int, ...] = ()) -> subprocess.Popen[str]:
    """Start Python with a program that uses isolib."""
    argv = [sys.executable, "-c", f"import os, sys, isolib\n{code}", *map(str, arguments)]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=pass_fds)


def inherited(store: Store) -> tuple[int, ...]:
    """Return the descriptors that a process needs to find a store that is attached nowhere."""
    return (int(store.path.split("/")[4]),) if store.path.startswith("/proc/self/fd/") else ()


def sh(text: str) -> list[str]:
    """Return a command for the shell."""
    return ["sh", "-c", text]


# ---- on record ----


def test_a_volume_stays_in_the_store(store: Store) -> None:
    """A volume keeps its name, its labels and its files when the store is closed and opened again."""
    with store.new_volume("one", labels={"of": "mine"}) as one, store.new_volume("two"):
        Path(one.path, "file").write_text("text", encoding="ascii")
    assert store.volumes() == ("one", "two")
    with isolib.open_store(store.path) as again, again.volume("one") as one:
        assert (one.name, one.labels, one.quota) == ("one", {"of": "mine"}, None)
        assert Path(one.path, "file").read_text(encoding="ascii") == "text"
        assert os.listdir(one.fileno()) == ["file"]


def test_a_name_is_of_one_volume(store: Store, volume: Volume) -> None:
    """A name that is taken, or is none, is refused, and one that nobody has is not found."""
    with pytest.raises(PlanError, match="the store has a volume 'data' already"):
        store.new_volume("data")
    with pytest.raises(PlanError, match="the store has a volume 'data' already"):
        volume.clone("data")
    for name in ("", ".", "..", "a/b", "-a", "a\n", "x" * 129):
        with pytest.raises(PlanError, match="name: 1 to 128 letters"):
            store.new_volume(name)
    with pytest.raises(ImageNotFound, match="no volume 'other'"):
        store.volume("other")
    assert store.volumes() == ("data",)


def test_labels_are_texts(plain: Store) -> None:
    """Labels that are no texts, and a quota of nothing, are refused, and there is no volume then."""
    with pytest.raises(PlanError, match="labels: a mapping from str to str"):
        plain.new_volume("data", labels={"a": 1})  # type: ignore[dict-item]
    with pytest.raises(PlanError, match="quota=0"):
        plain.new_volume("data", quota=0)
    assert plain.volumes() == ()


def test_a_removed_volume_is_gone(store: Store, volume: Volume) -> None:
    """Removal takes a volume with all its files, closes the handle, and frees the name."""
    Path(volume.path, "file").touch()
    os.makedirs(f"{volume.path}/a/b/c")
    os.chmod(f"{volume.path}/a", 0)
    volume.remove()
    assert volume.closed
    assert store.volumes() == ()
    with pytest.raises(ClosedError):
        volume.fileno()
    with store.new_volume("data") as again:
        assert names(again) == []


def test_closing_a_store_closes_its_volumes(plain: Store) -> None:
    """A volume is closed when its store is, and is used no more."""
    with isolib.open_store(plain.path) as again:
        volume = again.new_volume("data")
    assert volume.closed
    plain.volume("data").remove()


def test_a_collection_takes_no_volume(store: Store, volume: Volume) -> None:
    """A volume stays whatever is collected, be it used or not, empty or full."""
    Path(volume.path, "file").touch()
    volume.close()
    store.new_volume("empty").close()
    store.gc(unnamed=True)
    assert store.volumes() == ("data", "empty")
    with store.volume("data") as again:
        assert names(again) == ["file"]


@pytest.mark.parametrize("wrong", ["{", '{"labels": {"a": 1}}', '{"quota": "much"}', None])
def test_damage_is_told(plain: Store, wrong: str | None) -> None:
    """A volume whose record does not read, or whose files are missing, is told by verify; the others are not."""
    plain.new_volume("good").close()
    plain.new_volume("bad").close()
    meta = Path(plain.path, "volumes/bad/meta.json")
    was = meta.read_bytes()
    if wrong is None:
        os.rmdir(f"{plain.path}/volumes/bad/content/root")
    else:
        meta.write_text(wrong, encoding="ascii")
    assert [(one.subject, one.name) for one in plain.verify()] == [(Subject.VOLUME, "bad")]
    with pytest.raises(isolib.StoreDamaged):
        plain.volume("bad")
    meta.write_bytes(was)
    os.makedirs(f"{plain.path}/volumes/bad/content/root", exist_ok=True)


@pytest.mark.root
def test_a_store_that_can_only_be_read(tmp_path: Path) -> None:
    """Of a read-only store volumes are read, saved and shown read-only, and nothing of them can be changed."""
    with disk("tmpfs") as memory:
        with isolib.open_store(f"{memory.path}/store", driver="vfs") as store, store.new_volume("data") as volume:
            Path(volume.path, "file").write_text("text", encoding="ascii")
        with memory.readonly() as root, isolib.open_store(f"/proc/self/fd/{root.fileno()}/store") as store:
            with store.volume("data") as volume:
                assert names(volume) == ["file"]
                volume.save(tmp_path / "saved.tar")
                assert isolib.run(["cat", "/data/file"], volumes={"/data": (volume, "ro")}).stdout == b"text"
                done = isolib.run(["touch", "/data/file"], volumes={"/data": volume})
                assert b"Read-only file system" in done.stderr
                for change in (volume.remove, lambda: volume.clone("copy"), lambda: volume.restore(tmp_path / "saved.tar")):
                    with pytest.raises(SyscallError) as caught:
                        change()
                    assert caught.value.errno == EROFS
            with pytest.raises(SyscallError):
                store.new_volume("other")


# ---- shown to processes ----


@pytest.mark.usefixtures("user_namespaces")
def test_what_is_written_inside_stays(volume: Volume) -> None:
    """What root inside writes is in the volume, belongs to the user on disk, and the next sandbox sees it."""
    done = isolib.run(
        sh("echo text > /data/file && mkdir /data/dir && stat -c %u:%g /data /data/file"), volumes={"/data": volume}
    )
    assert (done.returncode, done.stdout) == (0, b"0:0\n0:0\n"), done.stderr
    assert names(volume) == ["dir", "file"]
    found = os.stat(f"{volume.path}/file")
    assert (found.st_uid, found.st_gid) == (os.geteuid(), os.getegid())
    with isolib.Sandbox(volumes={"/data": volume}) as box:
        assert box.run(["cat", "/data/file"]).stdout == b"text\n"


@pytest.mark.root
def test_ids_are_the_same_inside_and_on_disk(volume: Volume) -> None:
    """Started by root, another user inside makes files of the same ids on disk."""
    os.chmod(volume.path, 0o777)
    done = isolib.run(["touch", "/data/file"], user=(1000, 1001), volumes={"/data": volume})
    assert done.returncode == 0, done.stderr
    found = os.stat(f"{volume.path}/file")
    assert (found.st_uid, found.st_gid) == (1000, 1001)


@pytest.mark.usefixtures("user_namespaces")
def test_read_only_is(volume: Volume) -> None:
    """Nothing can be written through a read-only mount: not to files, not to names, not to attributes; nor remounted."""
    Path(volume.path, "file").write_text("text", encoding="ascii")
    commands = (
        "touch /data/new",
        "echo x > /data/file",
        "rm /data/file",
        "chmod 777 /data/file",
        "mount -o remount,bind,rw /data",
    )
    with isolib.Sandbox(volumes={"/data": (volume, "ro")}) as box:
        assert box.run(["cat", "/data/file"]).stdout == b"text"
        for command in commands:
            assert box.run(sh(command)).returncode != 0, command
    assert Path(volume.path, "file").read_text(encoding="ascii") == "text"
    assert names(volume) == ["file"]


@pytest.mark.usefixtures("user_namespaces")
@pytest.mark.parametrize("access", ["ro", "rw"])
def test_flags_of_the_mount(volume: Volume, access: str) -> None:
    """The mount inside has no devices and no set-user-id programs, and is read-only where that was asked for."""
    table = isolib.run(["cat", "/proc/self/mountinfo"], volumes={"/deep/data": (volume, access)}).stdout
    (found,) = [one for one in parse_mountinfo(table) if one.mount_point == "/deep/data"]
    assert {access, "nosuid", "nodev"} <= set(found.options)


READ_ONLY_BELOW = """
import ctypes
with isolib.open_store(sys.argv[1]) as store, store.volume("data") as volume:
    os.mkdir(f"{volume.path}/below")
    assert ctypes.CDLL(None).mount(b"t", f"{volume.path}/below".encode(), b"tmpfs", 0, None) == 0
    for access in ("ro", "rw"):
        command = ["sh", "-c", "touch /data/x; touch /data/below/x; ls /data /data/below"]
        print(isolib.run(command, volumes={"/data": (volume, access)}).stdout.split())
"""


@pytest.mark.root
def test_read_only_is_so_for_what_is_mounted_below(plain: Store) -> None:
    """What somebody has mounted below a volume is read-only inside, too."""
    plain.new_volume("data").close()
    argv = ["unshare", "-m", sys.executable, "-c", f"import os, sys, isolib\n{READ_ONLY_BELOW}", plain.path]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "[b'/data:', b'below', b'/data/below:']",
        "[b'/data:', b'below', b'x', b'/data/below:', b'x']",
    ]


@pytest.mark.usefixtures("user_namespaces")
def test_two_sandboxes_have_it_at_once(volume: Volume) -> None:
    """What one sandbox writes, another one sees, and one that has it read-only, while all are open."""
    with (
        isolib.Sandbox(volumes={"/data": volume}) as one,
        isolib.Sandbox(volumes={"/mine": volume}) as two,
        isolib.Sandbox(volumes={"/data": (volume, "ro")}) as three,
    ):
        assert one.run(sh("echo one > /data/file")).returncode == 0
        assert two.run(sh("cat /mine/file; echo two >> /mine/file")).stdout == b"one\n"
        assert three.run(["cat", "/data/file"]).stdout == b"one\ntwo\n"


@pytest.mark.usefixtures("user_namespaces")
def test_in_mounts_it_has_a_place_in_the_order(volume: Volume) -> None:
    """A volume among other mounts comes after those before it, and others can lie in it; in any root."""
    usr = [Bind(path, path) for path in ("/usr", "/bin", "/lib", "/lib64") if os.path.exists(path)]
    mounts = [*usr, Tmpfs("/srv"), volume.bind("/srv/data"), Tmpfs("/srv/data/private")]
    done = isolib.run(sh("echo x > /srv/data/file; echo x > /srv/data/private/file"), root=Root.empty(), mounts=mounts)
    assert done.returncode == 0, done.stderr
    assert names(volume) == ["file", "private"]
    assert os.listdir(f"{volume.path}/private") == []


@pytest.mark.usefixtures("user_namespaces")
def test_a_process_has_it_in_use(store: Store, volume: Volume) -> None:
    """A volume cannot be removed while a process has it, also when the handle that it was shown by is closed; then it can."""
    mounts = [volume.bind("/tmp/data")]
    with isolib.spawn(["sleep", "60"], new=KINDS, root=Root.host(), mounts=mounts, id_map="auto" if IS_ROOT else "root"):
        volume.close()
        with store.volume("data") as other:
            with pytest.raises(SyscallError, match="uses this volume") as caught:
                other.remove()
            assert caught.value.errno == EBUSY
            assert not other.closed
    with pytest.raises(ClosedError):
        isolib.spawn(["true"], new=KINDS, root=Root.host(), mounts=mounts, id_map="auto" if IS_ROOT else "root")
    store.volume("data").remove()


@pytest.mark.usefixtures("user_namespaces")
def test_a_sandbox_has_it_in_use_until_it_is_closed(store: Store, volume: Volume) -> None:
    """A volume can be removed right after the last sandbox with it was closed, however many commands have run in them."""
    for _ in range(2):
        assert isolib.run(["true"], volumes={"/data": volume}).returncode == 0
    with isolib.Sandbox(volumes={"/data": volume}) as box:
        box.run(["true"])
        with pytest.raises(SyscallError) as caught:
            volume.remove()
        assert caught.value.errno == EBUSY
    volume.remove()
    assert store.volumes() == ()


@pytest.mark.usefixtures("user_namespaces")
def test_only_the_volume_is_ever_shown(plain: Store, tmp_path: Path) -> None:
    """When another directory has taken its place, nothing is shown in its stead."""
    with plain.new_volume("data") as volume:
        volume.fileno()
        where = Path(volume.path)
        where.rename(tmp_path / "moved")
        with pytest.raises(GoneError, match="or none"):
            isolib.run(["true"], volumes={"/data": volume})
        where.mkdir()
        with pytest.raises(GoneError, match="another directory lies there"):
            isolib.run(["true"], volumes={"/data": volume})
        where.rmdir()
        (tmp_path / "moved").rename(where)
        assert isolib.run(["true"], volumes={"/data": volume}).returncode == 0


def test_volumes_of_a_spec(plain: Store, tmp_path: Path) -> None:
    """The field takes volumes and paths, with and without access, compares, and is refused when it makes no sense."""
    with plain.new_volume("data") as volume:
        spec = isolib.SandboxSpec(volumes={"/data": volume})
        assert spec == isolib.SandboxSpec(volumes={"/data": (volume, "rw")})
        assert spec != isolib.SandboxSpec(volumes={"/data": (volume, "ro")})
        with pytest.raises(PlanError, match="volumes: 'wr': 'ro' or 'rw'"):
            isolib.SandboxSpec(volumes={"/data": (volume, "wr")})
        with pytest.raises(PlanError, match="volume: target='data'"):
            isolib.run(["true"], volumes={"data": volume})
        with pytest.raises(PlanError, match="volumes"):
            isolib.SandboxSpec(volumes={"/data": 5})  # type: ignore[dict-item]
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            pickle.dumps(spec)
    path = isolib.SandboxSpec(volumes={"/data": tmp_path, "/other": (tmp_path, "ro")})
    assert pickle.loads(pickle.dumps(path)) == path  # noqa: S301 - our own


@pytest.mark.usefixtures("user_namespaces")
def test_a_path_in_the_place_of_a_volume(tmp_path: Path) -> None:
    """A path is a directory of the host, to be written to, or read-only where that is said."""
    (tmp_path / "file").write_text("text", encoding="ascii")
    tmp_path.chmod(0o777)
    assert isolib.run(["cat", "/tmp/here/file"], volumes={"/tmp/here": tmp_path}).stdout == b"text"
    assert isolib.run(["touch", "/tmp/here/new"], volumes={"/tmp/here": tmp_path}).returncode == 0
    done = isolib.run(["touch", "/tmp/here/other"], volumes={"/tmp/here": (tmp_path, "ro")})
    assert b"Read-only file system" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["file", "new"]


# ---- at a path of the host ----


@pytest.mark.root
def test_mounted_at_a_path_of_the_host(store: Store, volume: Volume, target: str) -> None:
    """A volume is attached where that is wanted, in use meanwhile, and detached when the handle or the volume is closed."""
    Path(volume.path, "file").touch()
    with volume.mount(target) as mount:
        assert mount.target == target
        Path(target, "new").touch()
        assert names(volume) == ["file", "new"]
        with store.volume("data") as other, pytest.raises(SyscallError) as caught:
            other.remove()
        assert caught.value.errno == EBUSY
    assert os.listdir(target) == []
    kept = volume.mount(target, readonly=True)
    with pytest.raises(OSError, match="Read-only"):
        Path(target, "other").touch()
    volume.close()
    assert kept.closed
    assert os.listdir(target) == []
    store.volume("data").remove()


@pytest.mark.root
def test_a_target_that_is_none(volume: Volume, tmp_path: Path) -> None:
    """A target that does not exist is an error that names it, and leaves nothing in use."""
    with pytest.raises(SyscallError, match="absent") as caught:
        volume.mount(tmp_path / "absent")
    assert caught.value.errno == ENOENT
    volume.remove()


@pytest.mark.unprivileged
def test_an_ordinary_user_attaches_nothing(volume: Volume, target: str) -> None:
    """An ordinary user, who may mount nothing on the host, is told so."""
    with pytest.raises(Unsupported, match="CAP_SYS_ADMIN"):
        volume.mount(target)


HOST = """
import signal
store = isolib.open_store(sys.argv[1])
mount = store.volume("data").mount(sys.argv[2])
print(os.listdir(mount.target), flush=True)
signal.pause()
"""


@pytest.mark.root
def test_of_a_killed_host_no_mount_is_left(plain: Store, target: str) -> None:
    """When a process that has attached a volume is killed, it is detached, and in use no more."""
    with plain.new_volume("data") as volume:
        Path(volume.path, "file").touch()
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        poll = select.poll()
        poll.register(table, select.POLLPRI)
        table.read()
        with run(HOST, plain.path, target) as host:
            assert host.stdout is not None
            said, found = host.stdout.readline(), os.listdir(target)
            host.send_signal(signal.SIGKILL)
        assert (said, found) == ("['file']\n", ["file"])
        while os.path.ismount(target):
            assert poll.poll(10_000)
    plain.volume("data").remove()


# ---- filled from an image ----


def test_fill_keeps_everything(image: Image, source: Path, volume: Volume) -> None:
    """What comes from an image has its owner, mode, times, attributes and hard links, and so has the top."""
    assert volume.fill(image, "/data") is True
    was, found = facts(f"{source}/data"), facts(volume.path)
    assert found == was


@pytest.mark.parametrize("path", ["/way", "way/", "/other"])
def test_fill_follows_links_within_the_image(image: Image, volume: Volume, path: str) -> None:
    """Symbolic links on the way lead to where they lead in the image, and not out of it."""
    assert volume.fill(image, path) is True
    assert "sparse" in names(volume)


def test_fill_only_what_is_empty(image: Image, volume: Volume) -> None:
    """A volume that has something in it stays as it is, and that is told."""
    Path(volume.path, "mine").touch()
    assert volume.fill(image, "/data") is False
    assert names(volume) == ["mine"]


@pytest.mark.parametrize("path", ["/absent", "/text"])
def test_fill_from_what_is_no_directory(image: Image, volume: Volume, path: str) -> None:
    """What the image does not have, or is no directory there, is an error, and the volume stays empty."""
    with pytest.raises(SyscallError, match=path):
        volume.fill(image, path)
    with pytest.raises(ImageNotFound):
        volume.fill("other", "/data")
    assert names(volume) == []


@pytest.mark.usefixtures("user_namespaces", "image")
def test_fill_nothing_that_is_used(store: Store, volume: Volume) -> None:
    """What a process or another handle has before its eyes is not exchanged; the handle that fills may have used it itself."""
    with isolib.Sandbox(volumes={"/data": volume}), pytest.raises(SyscallError) as caught:
        volume.fill("base", "/data")
    assert caught.value.errno == EBUSY
    with store.volume("data") as other:
        other.fileno()
        with pytest.raises(SyscallError) as caught:
            volume.fill("base", "/data")
        assert caught.value.errno == EBUSY
    number = volume.fileno()
    assert volume.fill("base", "/data") is True
    assert volume.fileno() == number
    assert "sparse" in os.listdir(number)


FILL = """
with isolib.open_store(sys.argv[1]) as store, store.volume("data") as volume:
    print("ready", flush=True)
    sys.stdin.read()
    filled = volume.fill("base", "/data")
    print(filled, "sparse" in os.listdir(volume.fileno()))
"""


@pytest.mark.usefixtures("image")
def test_of_several_processes_one_fills(store: Store, volume: Volume) -> None:
    """When several processes fill a volume at once, one does it, and all find it full then."""
    volume.close()
    processes = [run(FILL, store.path, pass_fds=inherited(store)) for _ in range(3)]
    for one in processes:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    for one in processes:
        assert one.stdin is not None
        one.stdin.close()
    said = []
    for one in processes:
        assert one.stdout is not None
        with one:
            said.append(one.stdout.read())
    assert sorted(said) == ["False True\n", "False True\n", "True True\n"]


# ---- archives ----


@pytest.mark.usefixtures("image")
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_saved_and_restored_it_is_the_same(store: Store, volume: Volume, tmp_path: Path, compression: str | None) -> None:
    """The tar of a volume, restored into another one, makes all of it again, and the same bytes when it is saved again."""
    volume.fill("base", "/data")
    os.mkfifo(f"{volume.path}/other fifo")
    volume.save(tmp_path / "saved", compression=compression)
    with store.new_volume("second") as second:
        second.restore(tmp_path / "saved")
        assert facts(second.path) == facts(volume.path)
        one, other = io.BytesIO(), io.BytesIO()
        volume.save(one)
        second.save(other)
        assert one.getvalue() == other.getvalue()
        if compression is None:
            assert (tmp_path / "saved").read_bytes() == one.getvalue()


@pytest.mark.usefixtures("image")
def test_the_owner_in_an_archive_is_who_he_is_inside(volume: Volume) -> None:
    """In an archive files of the user whose volume it is are root's, as a sandbox has them, and so they come back to him."""
    Path(volume.path, "own").touch()
    file = io.BytesIO()
    volume.save(file)
    file.seek(0)
    with tarfile.open(fileobj=file) as archive:
        assert [(one.name, one.uid, one.gid) for one in archive if one.isfile()] == [("own", 0, 0)]
    file.seek(0)
    volume.restore(file, replace=True)
    found = os.stat(f"{volume.path}/own")
    assert (found.st_uid, found.st_gid) == (os.geteuid(), os.getegid())


@pytest.mark.unprivileged
def test_owners_that_cannot_be_had(plain: Store) -> None:
    """An archive with owners whom an ordinary user has not is refused, unless he allows their files to be his."""
    file = io.BytesIO(hostile.member(b"x", b"x", uid=2_000_000, gid=2_000_000) + hostile.END)
    with plain.new_volume("data") as volume:
        with pytest.raises(SyscallError, match=r"allow=\['owners'\]"):
            volume.restore(file)
        assert names(volume) == []
        file.seek(0)
        volume.restore(file, allow=["owners"])
        assert os.stat(f"{volume.path}/x").st_uid == os.geteuid()


@pytest.fixture
def subordinate_ids() -> None:
    """Skip the test where this user has no subordinate ids, or may not map them."""
    me = pwd.getpwuid(os.geteuid()).pw_name
    for kind in ("uid", "gid"):
        if shutil.which(f"new{kind}map") is None:
            pytest.skip(f"new{kind}map is not installed")
        lines = Path(f"/etc/sub{kind}").read_text(encoding="utf-8").splitlines()
        if not any(line.split(":")[0] in {me, str(os.geteuid())} for line in lines):
            pytest.skip(f"/etc/sub{kind} has no range for {me}")


@pytest.mark.unprivileged
@pytest.mark.usefixtures("user_namespaces", "subordinate_ids")
def test_files_of_subordinate_ids(plain: Store) -> None:
    """What users inside make, whom only a user namespace has, their host counts, saves, restores, copies and removes."""
    text = "cd /tmp/data; mkdir -m 700 own; echo x > own/file; chown -R 33:34 own; chown 35:36 .; chmod 700 ."
    file, again = io.BytesIO(), io.BytesIO()
    with plain.new_volume("data") as volume:
        mounts = [volume.bind("/tmp/data")]
        with isolib.spawn(sh(text), new=KINDS, root=Root.host(), mounts=mounts, id_map="auto") as process:
            assert process.wait().returncode == 0
        with pytest.raises(PermissionError):
            names(volume)
        assert volume.usage().files == 3
        volume.save(file)
        file.seek(0)
        with tarfile.open(fileobj=file) as archive:
            assert [(one.name, one.uid, one.gid) for one in archive] == [(".", 35, 36), ("own", 33, 34), ("own/file", 33, 34)]
        file.seek(0)
        volume.restore(file, replace=True)
        with volume.clone("copy") as copy:
            copy.save(again)
            assert again.getvalue() == file.getvalue()
            copy.remove()
        volume.remove()


def test_restore_takes_no_place_unasked(volume: Volume) -> None:
    """What is in a volume stays unless it is said that it may go; then only what is in the archive is there."""
    Path(volume.path, "old").touch()
    file = io.BytesIO()
    volume.save(file)
    Path(volume.path, "new").touch()
    file.seek(0)
    with pytest.raises(PlanError, match="replace=True"):
        volume.restore(file)
    assert names(volume) == ["new", "old"]
    number = volume.fileno()
    volume.restore(file, replace=True)
    assert names(volume) == ["old"]
    assert volume.fileno() == number
    assert os.listdir(number) == ["old"]


@pytest.mark.usefixtures("user_namespaces")
def test_nothing_that_is_used_is_replaced(store: Store, volume: Volume) -> None:
    """While a process has a volume, its files are not exchanged for others."""
    Path(volume.path, "old").touch()
    file = io.BytesIO()
    volume.save(file)
    with isolib.Sandbox(volumes={"/data": volume}) as box:
        with store.volume("data") as other, pytest.raises(SyscallError) as caught:
            other.restore(io.BytesIO(file.getvalue()), replace=True)
        assert caught.value.errno == EBUSY
        assert box.run(["ls", "/data"]).stdout == b"old\n"


def test_hostile_archives(plain: Store, tmp_path: Path) -> None:
    """No archive of the corpus changes anything outside; one that is refused leaves the volume as it was."""
    canary = tmp_path / "canary"
    canary.mkdir()
    (canary / "secret").write_text("secret", encoding="ascii")
    before = facts(str(tmp_path / "canary"))
    with plain.new_volume("data") as volume:
        Path(volume.path, "old").touch()

        def found() -> object:
            return facts(volume.path) if IS_ROOT else names(volume)  # others cannot read what is closed to its owner

        for case in hostile.EVERY[::6]:  # tests of the reader, and of what unpacks, have them all
            was = found()
            archive = io.BytesIO(case.archive(os.fsencode(canary)))
            try:
                volume.restore(archive, replace=True, allow=["devices", "owners", "xattrs"], limits=Limits(size=64 << 20))
            except (ArchiveError, SyscallError):
                assert found() == was, case.name
            else:
                assert case.refused is None, case.name
            assert facts(str(canary)) == before, case.name


def test_an_archive_that_is_cut_short(volume: Volume) -> None:
    """What ends too early, or grows beyond its limit, is refused as a whole."""
    file = io.BytesIO()
    Path(volume.path, "file").write_bytes(b"x" * 5000)
    volume.save(file)
    for wrong, limits in (
        (file.getvalue()[:3000], None),
        (file.getvalue()[:-1024], None),
        (file.getvalue(), Limits(size=4000)),
    ):
        with pytest.raises(ArchiveError):
            volume.restore(io.BytesIO(wrong), replace=True, limits=limits)
    assert Path(volume.path, "file").read_bytes() == b"x" * 5000


def test_a_sink_that_fails(volume: Volume, tmp_path: Path) -> None:
    """When a tar cannot be written, that is raised, and no half of it stays at the path."""
    Path(volume.path, ".wh.file").touch()
    with pytest.raises(ArchiveError, match=r"\.wh\."):
        volume.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    os.rename(f"{volume.path}/.wh.file", f"{volume.path}/file")

    class Broken:
        def write(self, data: bytes, /) -> int:
            raise ValueError(f"no room for {len(data)} bytes")

    with pytest.raises(ValueError, match="no room"):
        volume.save(Broken())


# ---- copies, quotas, full disks ----


def test_a_clone_goes_its_own_way(store: Store, volume: Volume, image: Image) -> None:
    """A clone has all that a volume has, with its labels; what is changed in one is not in the other."""
    volume.fill(image, "/data")
    with volume.clone("copy", labels={"is": "copy"}) as copy:
        assert facts(copy.path) == facts(volume.path)
        Path(copy.path, "new").touch()
        Path(volume.path, "file").unlink()
        assert "new" not in names(volume)
        assert "file" in names(copy)
        assert copy.labels == {"is": "copy"}
        if store.driver == "btrfs":
            assert os.stat(copy.path).st_ino == 256
        copy.remove()


def test_usage(volume: Volume) -> None:
    """What a volume takes up is told: at least the bytes that were written, and each inode once."""
    Path(volume.path, "file").write_bytes(os.urandom(1 << 20))
    os.link(f"{volume.path}/file", f"{volume.path}/again")
    os.sync()
    found = volume.usage()
    assert 1 << 20 <= found.size < 2 << 20
    assert found.files == 2


def test_a_quota_is_kept_or_refused(store: Store, tmp_path: Path) -> None:
    """Where the driver has quotas, what goes beyond is refused, also when it is restored; elsewhere the quota is."""
    if store.driver != "btrfs":
        with pytest.raises(Unsupported, match=f"a quota for a volume: refused by the {store.driver} driver"):
            store.new_volume("data", quota="8M")
        assert store.volumes() == ()
        return
    (tmp_path / "big").write_bytes(os.urandom(12 << 20))
    with tarfile.open(tmp_path / "big.tar", "w") as archive:
        archive.add(tmp_path / "big", "big")
    with store.new_volume("data", quota="8M") as volume:
        with pytest.raises(SyscallError) as caught:
            volume.restore(tmp_path / "big.tar")
        assert caught.value.errno == EDQUOT
        assert names(volume) == []
        done = subprocess.run(
            ["dd", "if=/dev/urandom", f"of={volume.path}/file", "bs=1M", "count=12", "conv=fsync"],
            pass_fds=inherited(store),
            env={**os.environ, "LC_ALL": "C"},
            capture_output=True,
            check=False,
        )
        assert b"Disk quota exceeded" in done.stderr
    with store.volume("data") as again:
        assert again.quota == 8 << 20


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_full_disk_leaves_it_as_it_was(tmp_path: Path, kind: str) -> None:
    """When there is no room to fill, to restore or to copy, that is told, and the volume is as it was, nothing half made."""
    (tmp_path / "big").mkdir()
    (tmp_path / "big/file").write_bytes(os.urandom(10 << 20))
    archive = tmp_path / "big.tar"
    with tarfile.open(archive, "w") as made:
        made.add(tmp_path / "big", ".")
    with disk(kind, size=16 << 20) as small, isolib.open_store(f"{small.path}/store", driver="vfs") as store:
        image = store.load(tmp_path / "big", name="big")
        with store.new_volume("data") as volume:
            for action in (lambda: volume.fill(image), lambda: volume.restore(archive)):
                with pytest.raises(SyscallError) as caught:
                    action()
                assert caught.value.errno == ENOSPC
                assert names(volume) == []
                check(store)
            image.remove()
            store.gc()
            volume.restore(archive)
            with pytest.raises(SyscallError) as caught:
                volume.restore(archive, replace=True)
            assert caught.value.errno == ENOSPC
            with pytest.raises(SyscallError) as caught:
                volume.clone("copy")
            assert caught.value.errno == ENOSPC
            assert os.stat(f"{volume.path}/file").st_size == 10 << 20
            assert store.volumes() == ("data",)
        check(store)


# ---- at any time ----


REMOVE = """
with isolib.open_store(sys.argv[1]) as store, store.volume("data") as volume:
    try:
        volume.remove()
    except OSError as error:
        print(error.errno)
"""


def test_who_has_it_keeps_it(store: Store, volume: Volume) -> None:
    """A handle of another process keeps a volume from being removed, and after that refusal all goes on as before."""
    volume.fileno()
    for _ in range(2):
        with run(REMOVE, store.path, pass_fds=inherited(store)) as process:
            assert process.communicate()[0] == f"{EBUSY}\n"
        assert names(volume) == []
    with store.volume("data"), pytest.raises(SyscallError):
        volume.remove()
    volume.remove()


def test_threads_use_it_together(store: Store) -> None:
    """Of threads that make, use and remove volumes of one name at once, each finds it whole or not at all."""
    failures: list[BaseException] = []

    def work() -> None:
        for _ in range(10):
            try:
                with contextlib.suppress(PlanError):
                    store.new_volume("data", labels={"a": "b"}).close()
                with contextlib.suppress(ImageNotFound, SyscallError), store.volume("data") as volume:
                    assert volume.labels == {"a": "b"}
                    assert os.listdir(volume.fileno()) == []
                    volume.remove()
            except BaseException as error:  # noqa: BLE001 - shown by the test
                failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert failures == []
    for name in store.volumes():
        store.volume(name).remove()


@pytest.mark.parametrize("operation", ["new", "fill", "restore", "clone", "remove"])
@pytest.mark.parametrize(("driver", "kind"), [("vfs", "here"), ("overlay", "ext4"), ("btrfs", "btrfs")])
def test_killed_anywhere_it_leaves_what_was_or_what_is_to_be(
    tmp_path: Path, source: Path, driver: str, kind: str, operation: str
) -> None:
    """Whoever is killed between any two calls leaves what was or what is to be, and a collection takes the rest."""
    program = [sys.executable, str(Path(__file__).with_name("killed_volumes.py"))]
    with disk(kind) if kind != "here" else contextlib.nullcontext() as found:
        path = f"{tmp_path if found is None else found.path}/store"
        with isolib.open_store(path, driver=driver) as store:
            descriptors = inherited(store)
        arguments = [path, str(source), operation]
        done = subprocess.run([*program, *arguments], pass_fds=descriptors, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 3, "it was killed nowhere"


def test_an_interrupt_at_any_time_leaves_nothing(plain: Store, source: Path) -> None:
    """KeyboardInterrupt anywhere is raised, nothing stays open, and what was half made a collection takes."""
    image = plain.load(source, name="base")
    file = io.BytesIO()
    with plain.new_volume("archive") as volume:
        volume.fill(image, "/data")
        volume.save(file)

    def action() -> None:
        with plain.new_volume("data") as volume:
            volume.fill(image, "/data")
            volume.restore(io.BytesIO(file.getvalue()), replace=True)
            volume.remove()

    action()
    plain._records.driver.settle()
    turn, step = 1, 97
    while interrupt(turn, action, lambda code: "isolib/unionfs/store" in code.co_filename) <= 0:
        plain._records.driver.settle()
        check(plain)
        for name in plain.volumes():
            if name != "archive":
                plain.volume(name).remove()
        turn += step
    assert turn > 5 * step
