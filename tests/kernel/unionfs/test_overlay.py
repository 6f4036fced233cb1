"""Overlay mounts without a store, on the real kernel: as root, and as an ordinary user by a deputy."""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import os
import select
import shutil
import stat
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import pytest

import isolib
from isolib import IdMap, PlanError, SyscallError, Unsupported
from isolib._kernel import calls
from isolib._kernel.procfs import parse_mountinfo
from isolib.unionfs import Branch, ChangeKind, new_overlay
from isolib.unionfs.drivers.base import Form
from isolib.unionfs.overlays import enclosure, stacking
from tests.interrupts import interrupt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType

    from isolib.unionfs import OverlayMount

IS_ROOT = os.geteuid() == 0
ADDED, MODIFIED, DELETED = ChangeKind.ADDED, ChangeKind.MODIFIED, ChangeKind.DELETED

pytestmark = pytest.mark.usefixtures("overlays")


@pytest.fixture(autouse=True)
def removable(tmp_path: Path) -> Iterator[None]:
    """Let everybody remove what overlayfs leaves in a work directory, which nobody may read."""
    yield
    for path in tmp_path.glob("**/work"):
        if path.is_dir():
            path.chmod(0o700)


class Disk(TypedDict, total=False):
    """An upper and a work directory, as `new_overlay` takes them."""

    upper: str
    work: str


@pytest.fixture(scope="session")
def overlays() -> None:
    """Skip the test where this user has no overlay mounts at all, in a user namespace either."""
    options = "lowerdir=/usr:/etc" + ("" if IS_ROOT else ",userxattr")
    command = ["unshare", "-m" if IS_ROOT else "-rm", "mount", "-t", "overlay", "overlay", "-o", options, "/mnt"]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("the kernel refuses overlay mounts to this user")


@pytest.fixture
def layers(tmp_path: Path) -> tuple[str, str]:
    """Return two directories, the topmost first."""
    top, bottom = tmp_path / "top", tmp_path / "bottom"
    write(top / "file", "top")
    write(top / "dir/x", "x")
    write(bottom / "file", "bottom")
    write(bottom / "dir/y", "y")
    write(bottom / "same", "same")
    write(bottom / "old/1", "1")
    return str(top), str(bottom)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """Return an upper and a work directory on disk."""
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    return Disk(upper=str(tmp_path / "upper"), work=str(tmp_path / "work"))


def write(path: Path | str, text: str) -> None:
    """Write a file, and make the directories above it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def names(mount: OverlayMount, path: str = "") -> list[str]:
    """Return what is in a directory of a mount."""
    return sorted(os.listdir(f"{mount.path}/{path}"))


def changes(mount: OverlayMount) -> dict[str, ChangeKind]:
    """Return what has changed."""
    found = mount.changes()
    assert [change.path for change in found] == sorted(change.path for change in found)
    return {change.path: change.kind for change in found}


def members(mount: OverlayMount) -> list[str]:
    """Return the names in the layer of what has changed."""
    file = io.BytesIO()
    size = mount.diff(file)
    assert size == len(file.getvalue())
    file.seek(0)
    with tarfile.open(fileobj=file) as tar:
        return tar.getnames()


# ---- what it shows ----


def test_it_shows_the_topmost(layers: tuple[str, str]) -> None:
    """The first directory is the topmost, and what the others have beside it is there too."""
    with new_overlay(*layers) as mount:
        assert names(mount) == ["dir", "file", "old", "same"]
        assert names(mount, "dir") == ["x", "y"]
        assert Path(mount.path, "file").read_text() == "top"
        assert mount.lowers == layers


def test_what_is_written_is_not_written_to_the_layers(layers: tuple[str, str]) -> None:
    """Lower directories are as they were, whatever is written, and a mount in memory takes what was written with it."""
    before = tree(layers[0]), tree(layers[1])
    with new_overlay(*layers) as mount:
        write(f"{mount.path}/file", "changed")
        shutil.rmtree(f"{mount.path}/dir")
        assert names(mount) == ["file", "old", "same"]
        upper = mount.upper
        assert upper is not None
        assert sorted(os.listdir(upper)) == ["dir", "file"]
    assert (tree(layers[0]), tree(layers[1])) == before
    with new_overlay(*layers) as mount:
        assert names(mount) == ["dir", "file", "old", "same"]


def tree(path: str) -> dict[str, tuple[int, int, bytes]]:
    """Return everything below a directory, with its mode and time."""
    found = {}
    for top, directories, files in os.walk(path):
        for name in (*directories, *files):
            whole = Path(top, name)
            status = whole.lstat()
            content = whole.read_bytes() if stat.S_ISREG(status.st_mode) else b""
            found[str(whole)] = (status.st_mode, status.st_mtime_ns, content)
    return found


def test_nothing_is_attached(layers: tuple[str, str]) -> None:
    """A mount is in no mount table, and other programs of the same user reach it by its path."""
    with new_overlay(*layers) as mount:
        assert mine() == []
        assert mount.path.startswith(f"/proc/{os.getpid()}/fd/")
        assert subprocess.run(["cat", f"{mount.path}/file"], capture_output=True, check=True).stdout == b"top"
        subprocess.run(["cp", "/etc/passwd", f"{mount.path}/new"], check=True)
        assert "new" in names(mount)


def mine() -> list[str]:
    """Return where overlays of directories of these tests are attached, and what is mounted of such directories."""
    mounts = parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())
    return [one.mount_point for one in mounts if "/pytest-" in f"{one.root} {one.mount_point} {one.super_options}"]


@pytest.mark.usefixtures("many_descriptors")
@pytest.mark.parametrize("count", [1, 2, 10, 100, 400, 499, 500, 501, 999, 1000, 1200])
def test_many_layers(tmp_path: Path, count: int) -> None:
    """Any number of layers is merged, each hiding what those below it have."""
    for number in range(count):
        write(tmp_path / f"{number}/own{number}", str(number))
        write(tmp_path / f"{number}/shared", str(number))
    with new_overlay(*(tmp_path / str(number) for number in range(count))) as mount:
        assert len(names(mount)) == count + 1
        assert Path(mount.path, "shared").read_text() == "0"
        assert Path(mount.path, f"own{count - 1}").read_text() == str(count - 1)
        os.unlink(f"{mount.path}/own{count - 1}")
        assert changes(mount) == {f"/own{count - 1}": DELETED}


@pytest.mark.usefixtures("many_descriptors")
def test_whiteouts_of_merged_layers(tmp_path: Path) -> None:
    """Of more than 500 layers, too, a whiteout hides what any lower one has, on either side of the border."""
    for number in range(600):
        write(tmp_path / f"{number}/own{number}", "")
    with new_overlay(*(tmp_path / str(number) for number in range(600))) as mount:
        os.unlink(f"{mount.path}/own10")
        os.unlink(f"{mount.path}/own550")
        mount.commit(tmp_path / "top")
    with new_overlay(tmp_path / "top", *(tmp_path / str(number) for number in range(600))) as mount:
        assert not {"own10", "own550"} & set(names(mount))
        assert len(names(mount)) == 598
    # In the lower half, too: it stands on what it hides.
    order = [*(str(number) for number in range(540)), "top", *(str(number) for number in range(540, 600))]
    with new_overlay(*(tmp_path / name for name in order)) as mount:
        assert "own550" not in names(mount)
        assert "own10" in names(mount)


@pytest.mark.parametrize("name", [b"a:b", b"a,b", b"a\\b", b"a\nb", b"caf\xe9", b"a b", b"'\"", b"lowerdir=x", b"-" * 255])
def test_names_need_no_quoting(tmp_path: Path, name: bytes) -> None:
    """A layer, an upper, a work directory and a target may have any name."""
    top = os.fsencode(tmp_path)
    lower, upper, work, target = (os.path.join(top, one, name) for one in (b"l", b"u", b"w", b"t"))
    for path in (lower, upper, work, target):
        os.makedirs(path)
    Path(os.fsdecode(lower), "file").touch()
    with new_overlay(lower, upper=upper, work=work, target=target if IS_ROOT else None) as mount:
        assert names(mount) == ["file"]
        assert mount.lowers == (os.fsdecode(lower),)
        Path(mount.path, "new").touch()
    assert os.listdir(upper) == [b"new"]


def test_relative_paths(layers: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths start at the working directory of the moment of the call."""
    monkeypatch.chdir(Path(layers[0]).parent)
    with new_overlay("top", "bottom") as mount:
        monkeypatch.chdir("/")
        assert names(mount) == ["dir", "file", "old", "same"]


def test_upper_on_disk(layers: tuple[str, str], disk: Disk) -> None:
    """What is written to an upper directory on disk is there after the mount is gone, and when it is mounted again."""
    with new_overlay(*layers, **disk) as mount:
        write(f"{mount.path}/new", "new")
        os.unlink(f"{mount.path}/file")
        assert mount.upper == disk["upper"]
    assert sorted(os.listdir(disk["upper"])) == ["file", "new"]
    with new_overlay(*layers, **disk) as mount:
        assert names(mount) == ["dir", "new", "old", "same"]
        assert changes(mount) == {"/file": DELETED, "/new": ADDED}


def test_root_of_a_mount_in_memory(layers: tuple[str, str]) -> None:
    """The root of a mount that is written to in memory has the mode, the owner and the time of the topmost directory's."""
    Path(layers[0]).chmod(0o2750)
    os.utime(layers[0], ns=(10**18, 10**18))
    with new_overlay(*layers) as mount:
        status = os.stat(mount.path)
        assert stat.S_IMODE(status.st_mode) == 0o2750
        assert (status.st_uid, status.st_mtime_ns) == (os.geteuid(), 10**18)
        assert changes(mount) == {}


def test_read_only(layers: tuple[str, str]) -> None:
    """A read-only mount of one directory or several shows them, and nothing can be written."""
    for some in (layers[:1], layers):
        with new_overlay(*some, readonly=True) as mount:
            assert "file" in names(mount)
            assert mount.upper is None
            with pytest.raises(OSError, match="Read-only file system"):
                Path(mount.path, "new").touch()
            with pytest.raises(PlanError):
                mount.changes()


def test_room_in_memory(layers: tuple[str, str]) -> None:
    """A place in memory has room for so many bytes, and no more."""
    with new_overlay(*layers, size="1M") as mount:
        Path(mount.path, "half").write_bytes(bytes(500_000))
        with pytest.raises(OSError, match="No space left"):
            Path(mount.path, "more").write_bytes(bytes(1_000_000))


def test_number_of_files_in_memory(layers: tuple[str, str]) -> None:
    """A place in memory has room for as many files as pages, empty ones too."""
    with new_overlay(*layers, size="1M") as mount:
        made = 0
        with contextlib.suppress(OSError):
            for made in range(1000):
                Path(mount.path, f"empty{made}").touch()
        assert 200 < made < 256


def test_attributes(layers: tuple[str, str]) -> None:
    """A mount has no effective set-user-id bits, devices or programs where that is asked."""
    for noexec, flag in ((False, 0), (True, os.ST_NOEXEC)):
        with new_overlay(*layers, noexec=noexec) as mount:
            flags = os.statvfs(mount.path).f_flag
            assert flags & (os.ST_NOSUID | os.ST_NODEV) == os.ST_NOSUID | os.ST_NODEV
            assert flags & os.ST_NOEXEC == flag
    with new_overlay(*layers, nosuid=False, nodev=False) as mount:
        assert not os.statvfs(mount.path).f_flag & (os.ST_NOSUID | os.ST_NODEV)


def test_overlay_on_an_overlay(layers: tuple[str, str]) -> None:
    """A mount can be a layer of another one, and of no third: there the error says why."""
    with new_overlay(*layers) as first:
        write(f"{first.path}/new", "new")
        with new_overlay(first.path) as second:
            assert "new" in names(second)
            with pytest.raises(SyscallError, match="more than two of them cannot be stacked") as caught:
                new_overlay(second.path)
            assert caught.value.errno == errno.EINVAL


# ---- what was written ----


def test_changes_are_exact(layers: tuple[str, str]) -> None:
    """A change is what differs: not what was copied up and is as it was, nor a directory whose content alone has changed."""
    with new_overlay(*layers) as mount:
        path = Path(mount.path)
        with open(path / "same", "r+", encoding="utf-8"):
            pass  # copied up
        write(path / "old/new", "in an old directory")
        write(path / "fresh/deep/file", "in new ones")
        (path / "dir/x").unlink()
        write(path / "file", "other")
        assert changes(mount) == {
            "/dir/x": DELETED,
            "/file": MODIFIED,
            "/fresh": ADDED,
            "/fresh/deep": ADDED,
            "/fresh/deep/file": ADDED,
            "/old/new": ADDED,
        }
        wanted = ["dir", "dir/.wh.x", "file", "fresh", "fresh/deep", "fresh/deep/file", "old", "old/new"]
        assert members(mount) == wanted


def test_same_size_and_time(layers: tuple[str, str]) -> None:
    """A file of the same size and with the same time, to the nanosecond, is changed if one byte is another."""
    with new_overlay(*layers) as mount:
        path = f"{mount.path}/same"
        before = os.stat(path)
        write(path, "sAme")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert changes(mount) == {"/same": MODIFIED}
        write(path, "same")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert changes(mount) == {}


def test_attributes_are_changes(layers: tuple[str, str]) -> None:
    """Another mode, time or attribute of a file, and another mode of a directory, is a change."""
    with new_overlay(*layers) as mount:
        os.chmod(f"{mount.path}/same", 0o700)
        os.chmod(f"{mount.path}/dir", 0o711)
        os.utime(f"{mount.path}/file", ns=(5, 5))
        os.setxattr(f"{mount.path}/old/1", "user.some", b"value")
        assert changes(mount) == {"/dir": MODIFIED, "/file": MODIFIED, "/old/1": MODIFIED, "/same": MODIFIED}


def test_replaced_directory(layers: tuple[str, str]) -> None:
    """Of a directory that was deleted and made anew, what is not there any more is deleted, name by name."""
    with new_overlay(*layers) as mount:
        shutil.rmtree(f"{mount.path}/dir")
        write(f"{mount.path}/dir/y", "another y")
        assert changes(mount) == {"/dir/x": DELETED, "/dir/y": MODIFIED}
        assert members(mount) == ["dir", "dir/.wh..wh..opq", "dir/y"]
        stats = mount.stats()
        assert (stats.opaque, stats.created, stats.copied_up) == (1, 1, 0)


def test_another_kind(layers: tuple[str, str]) -> None:
    """What has become something else is modified, and what was below it is gone."""
    with new_overlay(*layers) as mount:
        path = Path(mount.path)
        (path / "file").unlink()
        (path / "file").mkdir()
        shutil.rmtree(path / "old")
        (path / "old").symlink_to("nowhere")
        os.mkfifo(path / "fifo")
        assert changes(mount) == {"/fifo": ADDED, "/file": MODIFIED, "/old": MODIFIED}


def test_hard_links(layers: tuple[str, str]) -> None:
    """A new name of an old file is a hard link in the layer, which holds the file then; the old name is no change."""
    with new_overlay(*layers) as mount:
        os.link(f"{mount.path}/same", f"{mount.path}/second")
        assert changes(mount) == {"/second": ADDED}
        file = io.BytesIO()
        mount.diff(file)
        file.seek(0)
        with tarfile.open(fileobj=file) as tar:
            assert [(one.name, one.islnk()) for one in tar] == [("same", False), ("second", True)]


def test_stats(layers: tuple[str, str]) -> None:
    """What was copied up, created and deleted is counted, in files and in bytes."""
    with new_overlay(*layers) as mount:
        assert mount.stats() == isolib.unionfs.OverlayStats()
        os.chmod(f"{mount.path}/same", 0o600)
        write(f"{mount.path}/new/file", "12345")
        os.unlink(f"{mount.path}/file")
        stats = mount.stats()
        assert (stats.copied_up, stats.copied_up_bytes) == (1, 4)
        assert (stats.created, stats.created_bytes, stats.directories) == (1, 5, 1)
        assert (stats.whiteouts, stats.opaque) == (1, 0)


def test_diff_is_reproducible(layers: tuple[str, str]) -> None:
    """The same changes, made in another order, are the same bytes."""
    archives = []
    for order in (("b", "a", "c"), ("c", "b", "a")):
        with new_overlay(*layers) as mount:
            for name in order:
                write(f"{mount.path}/{name}", name)
                os.utime(f"{mount.path}/{name}", ns=(0, 10**18 + 1))
            file = io.BytesIO()
            mount.diff(file)
            archives.append(file.getvalue())
    assert archives[0] == archives[1]


def test_commit(layers: tuple[str, str], tmp_path: Path) -> None:
    """A committed directory, as the topmost layer of another mount, shows what this one shows; and this one goes on."""
    with new_overlay(*layers) as mount:
        write(f"{mount.path}/new/file", "new")
        os.unlink(f"{mount.path}/file")
        shutil.rmtree(f"{mount.path}/dir")
        write(f"{mount.path}/dir/z", "z")
        assert mount.commit(tmp_path / "layer") == str(tmp_path / "layer")
        write(f"{mount.path}/later", "later")
        with new_overlay(tmp_path / "layer", *layers) as other:
            assert names(other) == ["dir", "new", "old", "same"]
            assert names(other, "dir") == ["z"]
            assert changes(other) == {}
        with pytest.raises(SyscallError) as caught:
            mount.commit(tmp_path / "layer")
        assert caught.value.errno == errno.EEXIST
        assert sorted(os.listdir(tmp_path)) == ["bottom", "layer", "top"]


def test_freeze(layers: tuple[str, str], disk: Disk) -> None:
    """A frozen mount is read-only until it is thawed; with a file open to be written it cannot be frozen."""
    with new_overlay(*layers, **disk) as mount:
        with open(f"{mount.path}/new", "w", encoding="utf-8"), pytest.raises(SyscallError) as caught:
            mount.freeze()
        assert caught.value.errno == errno.EBUSY
        mount.freeze()
        with pytest.raises(OSError, match="Read-only file system"):
            Path(mount.path, "more").touch()
        assert changes(mount) == {"/new": ADDED}
        mount.thaw()
        Path(mount.path, "more").touch()


def test_upper_is_an_exact_diff(layers: tuple[str, str], disk: Disk) -> None:
    """The upper directory holds no redirect, no file without its content and no index: it is a layer as it lies there."""
    with new_overlay(*layers, **disk) as mount:
        os.chmod(f"{mount.path}/same", 0o600)
        with pytest.raises(OSError, match="Invalid cross-device link"):
            os.rename(f"{mount.path}/dir", f"{mount.path}/moved")
        shutil.move(f"{mount.path}/dir", f"{mount.path}/moved")
        assert names(mount, "moved") == ["x", "y"]
    assert Path(disk["upper"], "same").read_text() == "same"
    for top, directories, files in os.walk(disk["upper"]):
        for name in (*directories, *files):
            path = os.path.join(top, name)
            found = os.listxattr(path, follow_symlinks=False)
            assert not [one for one in found if one.endswith(("redirect", "metacopy"))]
    with new_overlay(disk["upper"], *layers) as mount:
        assert names(mount) == ["file", "moved", "old", "same"]


# ---- whose rights ----


def test_branches(layers: tuple[str, str], disk: Disk) -> None:
    """A branch may be read-only, with or without whiteouts, and the first one may be written to."""
    top, bottom = layers
    with new_overlay(Branch(disk["upper"], "rw"), Branch(top, "ro"), bottom, work=disk["work"]) as mount:
        write(f"{mount.path}/new", "new")
        assert mount.lowers == layers
    assert os.listdir(disk["upper"]) == ["new"]


def test_tree_without_whiteouts(layers: tuple[str, str], disk: Disk) -> None:
    """A branch that is to be read-only without whiteouts is refused when it has any, or an opaque directory, by its path."""
    with new_overlay(*layers, **disk) as mount:
        os.unlink(f"{mount.path}/dir/x")
    with pytest.raises(Unsupported, match="/upper/dir/x is a whiteout"):
        new_overlay(Branch(disk["upper"], "ro"), *layers)
    with new_overlay(Branch(disk["upper"], "ro+wh"), *layers) as mount:
        assert names(mount, "dir") == ["y"]


@pytest.mark.root
def test_id_map(layers: tuple[str, str], tmp_path: Path, disk: Disk) -> None:
    """With an id map, files of one user on disk are another's in the mount, of every layer, and there is no mount for it."""
    os.chown(f"{layers[1]}/same", 5, 5)
    ranges = [IdMap(1000, 0), IdMap(0, 1000), IdMap(2000, 5)]
    for options in (Disk(), disk):
        with new_overlay(*layers, id_map=ranges, **options) as mount:
            assert (os.stat(f"{mount.path}/file").st_uid, os.stat(f"{mount.path}/same").st_uid) == (1000, 2000)
            assert mine() == []
            os.chmod(f"{mount.path}/file", 0o600)
            assert os.stat(f"{mount.path}/file").st_uid == 1000
            assert changes(mount) == {"/file": MODIFIED}
    # On disk, what was copied up belongs to whom it belonged before.
    assert os.stat(f"{disk['upper']}/file").st_uid == 0


@pytest.mark.root
def test_id_map_without_who_writes(layers: tuple[str, str], disk: Disk) -> None:
    """A mount that could not be written to, for its id map has nobody who could, is refused and not made read-only."""
    with pytest.raises(SyscallError, match="must be in the id map") as caught:
        new_overlay(*layers, id_map=[IdMap(1000, 0)], **disk)
    assert caught.value.errno == errno.EROFS


@pytest.mark.unprivileged
def test_what_takes_root(layers: tuple[str, str], tmp_path: Path) -> None:
    """An ordinary user is told why there is no target and no id map for him."""
    with pytest.raises(Unsupported, match="target= for an ordinary user"):
        new_overlay(*layers, target=tmp_path)
    with pytest.raises(Unsupported, match="id_map= for an ordinary user"):
        new_overlay(*layers, id_map=[IdMap(1000, 0)])


def test_form(layers: tuple[str, str]) -> None:
    """The books are kept in trusted attributes by root on the host, and in user ones in a user namespace."""
    with new_overlay(*layers) as mount:
        assert mount.form is (Form.OVERLAY if IS_ROOT else Form.USER_OVERLAY)


# ---- where it is attached ----


@pytest.fixture
def target(tmp_path: Path) -> Iterator[str]:
    """Return a directory to attach something to; nothing is attached to it afterwards."""
    (tmp_path / "target").mkdir()
    yield str(tmp_path / "target")
    assert os.listdir(tmp_path / "target") == []


@pytest.mark.root
def test_target(layers: tuple[str, str], target: str) -> None:
    """A mount is attached where that is wanted, and nowhere when it is closed, however many have something in it open."""
    with new_overlay(*layers, target=target) as mount:
        assert mount.path == target
        assert "file" in os.listdir(target)
        held = os.open(f"{target}/file", os.O_RDONLY)
    assert os.listdir(target) == []
    assert os.read(held, 3) == b"top"
    os.close(held)


@pytest.mark.root
def test_target_that_is_none(layers: tuple[str, str], tmp_path: Path) -> None:
    """A target that does not exist, or is no directory, is an error that names it, and leaves nothing."""
    for path, number in ((tmp_path / "absent", errno.ENOENT), (Path(layers[0], "file"), errno.ENOTDIR)):
        with pytest.raises(SyscallError) as caught:
            new_overlay(*layers, target=path)
        assert (caught.value.errno, caught.value.target) == (number, str(path))


@pytest.mark.root
def test_moved_and_covered(layers: tuple[str, str], target: str, tmp_path: Path) -> None:
    """A mount that was moved meanwhile is found, and what somebody has put in its place stays."""
    (tmp_path / "elsewhere").mkdir()
    with new_overlay(*layers, target=target):
        for command in (
            ["--make-private", str(tmp_path)],
            ["--move", target, f"{tmp_path}/elsewhere"],
            ["--bind", layers[0], target],
        ):
            subprocess.run(["mount", *command], check=command[0] != "--make-private", capture_output=True)
    try:
        assert os.listdir(tmp_path / "elsewhere") == []
        assert os.listdir(target) == os.listdir(layers[0])
    finally:
        subprocess.run(["umount", target], check=True)


@pytest.mark.root
def test_same_upper_again_at_once(layers: tuple[str, str], disk: Disk, target: str) -> None:
    """When a mount is closed, nothing uses its directories any more: they are at once another one's."""
    for _ in range(20):
        with new_overlay(*layers, target=target, **disk) as mount:
            write(f"{mount.path}/new", "new")
        assert "in use" not in kernel_says(disk)


def kernel_says(disk: Disk) -> str:
    """Return what the kernel says of mounting an overlay that insists on having its directories alone."""
    options = f"lowerdir=/etc,upperdir={disk['upper']},workdir={disk['work']},index=on"
    command = ["unshare", "-m", "mount", "-t", "overlay", "overlay", "-o", options, "/mnt"]
    found = subprocess.run(command, check=False, capture_output=True, text=True)
    shutil.rmtree(f"{disk['work']}/index", ignore_errors=True)
    return "in use" if "busy" in found.stderr else ""


HOST = """
import os, signal, sys
from isolib.unionfs import new_overlay
mount = new_overlay(sys.argv[1], target=sys.argv[2] or None)
assert "file" in os.listdir(mount.path)
print(mount.path, flush=True)
signal.pause()
"""


@pytest.mark.root
def test_killed_host(layers: tuple[str, str], target: str) -> None:
    """Of a process that is killed no mount is left, attached or not."""
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        poll = select.poll()
        poll.register(table, select.POLLPRI)
        table.read()
        for where in (target, ""):
            with subprocess.Popen([sys.executable, "-c", HOST, layers[0], where], stdout=subprocess.PIPE, text=True) as host:
                try:
                    assert host.stdout is not None
                    assert host.stdout.readline().strip()
                    assert (target in mine()) is bool(where)
                finally:  # by itself it would not end
                    host.kill()
            while target in mine():
                assert poll.poll(10_000)


# ---- what cannot work ----


def refused(call: Callable[[], object], text: str) -> None:
    """Fail unless something is refused for its arguments."""
    with pytest.raises(PlanError, match=text):
        call()


def test_bad_arguments(layers: tuple[str, str], disk: Disk, tmp_path: Path) -> None:
    """What cannot work is refused before anything is done, and the message says what it is."""
    top, bottom = layers
    upper, work = disk["upper"], disk["work"]
    for name in ("upper/inside", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "full/file").touch()
    (tmp_path / "link").symlink_to(top)
    refused(new_overlay, "at least one lower directory")
    refused(lambda: new_overlay(top, top), "one directory, two layers")
    refused(lambda: new_overlay(top, tmp_path / "link"), "one directory, two layers")
    refused(lambda: new_overlay(top, upper=upper), "given together")
    refused(lambda: new_overlay(top, work=work), "given together")
    refused(lambda: new_overlay(top, upper=top, work=work), "one directory, two layers")
    refused(lambda: new_overlay(top, upper=upper, work=upper), "are one directory")
    refused(lambda: new_overlay(top, upper=upper, work=tmp_path / "upper/inside"), "may lie in the other")
    refused(lambda: new_overlay(tmp_path / "upper/inside", upper=upper, work=work), "must not lie in an upper")
    refused(lambda: new_overlay(top, upper=upper, work=tmp_path / "full"), "work must be empty.*'file'")
    refused(lambda: new_overlay(top, upper=upper, work="/dev/shm"), "same file system")
    refused(lambda: new_overlay(top, upper=upper, work=work, readonly=True), "no upper")
    refused(lambda: new_overlay(top, Branch(bottom, "rw")), "topmost")
    refused(lambda: Branch(top, "rx"), "rights")
    refused(lambda: new_overlay(top, size=0), "no limit")
    refused(lambda: new_overlay(""), "empty")
    refused(lambda: new_overlay("a\0b"), "NUL")
    with new_overlay(top) as mount:
        for name in ("upper", "work"):
            Path(mount.path, name).mkdir()
        refused(lambda: new_overlay(bottom, upper=f"{mount.path}/upper", work=f"{mount.path}/work"), "lies in an overlay")
    assert os.listdir(work) == []


def test_absent_and_no_directory(layers: tuple[str, str], tmp_path: Path) -> None:
    """A layer that does not exist, or is a file, is named in the error."""
    for path, number in ((tmp_path / "absent", errno.ENOENT), (Path(layers[0], "file"), errno.ENOTDIR)):
        with pytest.raises(SyscallError) as caught:
            new_overlay(layers[1], path)
        assert (caught.value.errno, caught.value.target) == (number, str(path))


def test_one_upper_one_mount(layers: tuple[str, str], disk: Disk) -> None:
    """An upper directory that a mount has is not another one's, which the kernel itself would let happen."""
    with new_overlay(*layers, **disk):
        with pytest.raises(SyscallError) as caught:
            new_overlay(*layers, **disk)
        assert (caught.value.errno, caught.value.target) == (errno.EBUSY, disk["upper"])
    new_overlay(*layers, **disk).close()


# ---- as a handle ----


def test_forgotten(layers: tuple[str, str]) -> None:
    """A mount that was forgotten is gone, and is complained about."""
    mount = new_overlay(*layers)
    path = mount.path
    with pytest.warns(ResourceWarning, match="never closed: <OverlayMount"):
        del mount
    assert not os.path.exists(path)


def test_closed(layers: tuple[str, str]) -> None:
    """A closed mount can be closed again and used for nothing."""
    mount = new_overlay(*layers)
    mount.close()
    mount.close()
    for use in (mount.changes, mount.stats, mount.freeze, lambda: mount.commit("/nowhere"), mount.fileno):
        with pytest.raises(isolib.ClosedError):
            use()


def test_fork(layers: tuple[str, str]) -> None:
    """A fork of the process closes its copy, and the mount is as it was."""
    with new_overlay(*layers) as mount:
        pid = os.fork()
        if not pid:
            mount.close()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert "file" in names(mount)


# ---- other kernels ----


@pytest.mark.root
@pytest.mark.parametrize("way", ["descriptors", "paths", "one value", "mount(2)"])
def test_old_ways(layers: tuple[str, str], disk: Disk, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way in which older kernels take layers makes the same mount: in memory, on disk, with mapped ids, of many."""
    known = {"descriptors": calls.STACK_BY_FD, "paths": calls.STACK_BY_PATH, "one value": calls.STACK_TOGETHER}
    monkeypatch.setattr(stacking, "_direct", {"works": False})
    monkeypatch.setattr(enclosure, "_WAYS", (known[way],) if way in known else ())
    monkeypatch.setattr(enclosure, "_way", {})
    many = [tmp_path / f"many{number}" for number in range(520)]
    for path in many:
        write(path / path.name, "")
    with new_overlay(*layers) as mount:
        write(f"{mount.path}/new", "new")
        assert changes(mount) == {"/new": ADDED}
    with new_overlay(*layers, **disk) as mount:
        assert names(mount) == ["dir", "file", "old", "same"]
    with new_overlay(*layers, id_map=[IdMap(1000, 0)]) as mount:
        assert os.stat(f"{mount.path}/file").st_uid == 1000
    with new_overlay(*layers, readonly=True, noexec=True) as mount:
        assert os.statvfs(mount.path).f_flag & os.ST_NOEXEC
    for count in (70, 300, 500, 520):
        with new_overlay(*many[:count]) as mount:
            assert len(names(mount)) == count


# ---- bad moments ----


@pytest.mark.parametrize("attached", [False, pytest.param(True, marks=pytest.mark.root)])
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # which closes itself all the same
@pytest.mark.filterwarnings("ignore:never closed:ResourceWarning")  # its close was interrupted at its entry, and comes anyway
def test_interrupts(layers: tuple[str, str], tmp_path: Path, attached: bool) -> None:  # noqa: FBT001
    """Wherever an interrupt comes, no mount and no descriptor is left."""
    (tmp_path / "target").mkdir()
    target = tmp_path / "target" if attached else None
    new_overlay(*layers, target=target).close()  # what stays for the life of the process is there

    def make() -> None:
        with new_overlay(*layers, target=target) as mount:
            write(f"{mount.path}/new", "new")
            assert mount.changes()

    def counts(code: CodeType) -> bool:
        return "/overlays/over" in code.co_filename or "/overlays/stacking" in code.co_filename or "reaper" in code.co_filename

    turn = 1
    while not interrupt(turn, make, counts):
        turn += 1
    assert turn > 50
    gc.collect()
    assert mine() == []
