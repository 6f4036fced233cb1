from __future__ import annotations

import os
import pickle
import stat
from dataclasses import FrozenInstanceError, fields
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolib._kernel.assembly import Scene
from isolib._kernel.guest import Guest, Place, inodes_for
from isolib._kernel.plan import Builder
from isolib.errors import PlanError, Unsupported
from isolib.mounts import Bind, Dev, Dir, File, Mask, Overlay, Proc, ReadOnly, Root, Symlink, Tmpfs, WorkTree
from isolib.mounts.checks import check_source, check_target
from isolib.mounts.idmap import compose, exchange
from isolib.types import IdMap

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

VALUES = [
    Bind("/usr", "/data/usr"),
    Bind("/usr", "/data/usr", readonly=False, recursive=False, id_map=[IdMap(0, 1000)]),
    Tmpfs("/scratch", size="64M", mode=0o700),
    Proc(),
    Dev(),
    Overlay("/etc", ["/srv/etc", "/etc"]),
    Overlay("/etc", ["/etc"], upper="/srv/upper", work="/srv/work"),
    Mask("/etc/machine-id"),
    ReadOnly("/tmp/input"),
    File("/etc/hostname", "sandbox\n"),
    Dir("/data", mode=0o1777),
    Symlink("/bin", "usr/bin"),
    WorkTree("/srv/project", "keep"),
    Root.host(),
    Root.host(writable=True, room="64M"),
    Root.empty(),
    Root.tree("/usr", writable=True),
]

#: Makes the value with a path of the sandbox's.
TARGETS: dict[str, Callable[[Any], object]] = {
    "Bind": lambda path: Bind("/usr", path),
    "Tmpfs": Tmpfs,
    "Proc": Proc,
    "Dev": Dev,
    "Overlay": lambda path: Overlay(path, ["/usr"]),
    "Mask": Mask,
    "ReadOnly": ReadOnly,
    "File": lambda path: File(path, b""),
    "Dir": Dir,
    "Symlink": lambda path: Symlink(path, "to"),
    "WorkTree": WorkTree,
}


def where(value: object) -> str:
    """Return the place of a mount as it is stored."""
    name = "path" if isinstance(value, Mask | ReadOnly | WorkTree) else "target"
    return str(getattr(value, name))


class TestValues:
    @pytest.mark.parametrize("value", VALUES, ids=repr)
    def test_pickle(self, value: object) -> None:
        """A value survives pickling, and equals itself with the same hash."""
        again = pickle.loads(pickle.dumps(value))  # noqa: S301 - our own bytes
        assert again == value
        assert hash(again) == hash(value)
        assert repr(again) == repr(value)

    @pytest.mark.parametrize("value", VALUES, ids=repr)
    def test_frozen(self, value: object) -> None:
        """No field of a value can be changed."""
        for field in fields(value):  # type: ignore[arg-type]  # each is a dataclass
            with pytest.raises(FrozenInstanceError):
                setattr(value, field.name, None)

    def test_difference(self) -> None:
        """Values of different content differ."""
        assert len({hash(value) for value in VALUES}) == len(VALUES)
        assert len(set(VALUES)) == len(VALUES)

    def test_paths_become_text(self, tmp_path: Path) -> None:
        """Any kind of path is taken, and two spellings of one path are one value."""
        assert Bind(os.fsencode(tmp_path), b"//data/./x/") == Bind(tmp_path, "/data/x")

    def test_public_home(self) -> None:
        """The public classes say that they are of isolib.mounts."""
        for value in VALUES:
            kind = type(value) if not isinstance(value, Root) else Root
            assert kind.__module__ == "isolib.mounts"


class TestTargets:
    @pytest.mark.parametrize("name", TARGETS)
    @pytest.mark.parametrize(
        "path", ["", "relative", "a/b", "/", "//", "/.", "/../etc", "/a/../b", "/a/..", "/a\0b", "/" + "x" * 5000, 7, None]
    )
    def test_refused(self, name: str, path: str) -> None:
        """A target that cannot work is refused when the value is made."""
        with pytest.raises(PlanError):
            TARGETS[name](path)

    @pytest.mark.parametrize("name", TARGETS)
    def test_odd_names(self, name: str) -> None:
        """Spaces, commas, colons, backslashes, line feeds and bytes that are no UTF-8 are parts of names like any other."""
        assert where(TARGETS[name]("/a b,c:d\\e\nf")) == "/a b,c:d\\e\nf"
        assert where(TARGETS[name](b"/caf\xe9")) == "/caf\udce9"

    @given(st.lists(st.sampled_from(["", ".", "a", "b c", "...", "é"]), max_size=6))
    def test_normal_form(self, names: list[str]) -> None:
        """What is left of a target has no empty and no dot parts, and is its own normal form."""
        path = "/" + "/".join(names)
        if not [name for name in names if name not in {"", "."}]:
            with pytest.raises(PlanError):
                check_target(path, "target", of="Test")
            return
        found = check_target(path, "target", of="Test")
        assert found == check_target(found, "target", of="Test")
        assert "//" not in found
        assert "/./" not in found + "/"


class TestSources:
    def test_relative(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A relative source starts from the working directory of the moment, and keeps its '..'."""
        monkeypatch.chdir(tmp_path)
        assert check_source("a/../b", "source", of="Test") == f"{tmp_path}/a/../b"

    @pytest.mark.parametrize("path", ["/proc/self/fd/3", "/proc//self", "/proc/thread-self/root"])
    def test_own_process(self, path: str) -> None:
        """A source in the caller's own /proc/self is refused, for the launcher would look at its own."""
        with pytest.raises(PlanError, match="launcher"):
            Bind(path, "/data")

    @pytest.mark.parametrize("path", ["", "a\0b", None, 3])
    def test_refused(self, path: str) -> None:
        """A source that is no path is refused."""
        with pytest.raises(PlanError):
            Bind(path, "/data")


class TestArguments:
    @pytest.mark.parametrize("size", ["", "0", 0, -1, "-1", "1X", 2**63, None.__class__, 1.5, True])
    def test_bad_size(self, size: int | str) -> None:
        """A size that is no size, and one that the kernel takes for no limit, is refused."""
        with pytest.raises(PlanError):
            Tmpfs("/a", size=size)
        with pytest.raises(PlanError):
            Root.host(room=size)

    @pytest.mark.parametrize("mode", [-1, 0o10000, "755", True, None])
    def test_bad_mode(self, mode: int) -> None:
        """A mode that is no set of permission bits is refused."""
        for make in (Tmpfs, Dir, lambda path, mode: File(path, b"", mode=mode)):
            with pytest.raises(PlanError):
                make("/a", mode=mode)

    def test_sizes(self) -> None:
        """A size is kept in bytes; files are limited with it."""
        assert Tmpfs("/a", size="1K").size == 1024
        assert inodes_for(1) == 64
        assert inodes_for(1 << 30) == 262144

    @pytest.mark.parametrize("lowers", [[], ["/a"] * 2, ["/a", "/b", "//a"], "/a", [f"/{number}" for number in range(501)], 7])
    def test_bad_lowers(self, lowers: list[str]) -> None:
        """No layer, one twice, more than 500, and one path in place of a list are refused."""
        with pytest.raises(PlanError):
            Overlay("/a", lowers)

    def test_most_lowers(self) -> None:
        """500 layers can be asked for."""
        assert len(Overlay("/a", [f"/{number}" for number in range(500)]).lowers) == 500

    @pytest.mark.parametrize(
        "layers", [{"upper": "/u"}, {"work": "/w"}, {"upper": "/u", "work": "/u"}, {"upper": "/l", "work": "/w"}]
    )
    def test_bad_upper(self, layers: dict[str, str]) -> None:
        """An upper directory needs a work directory, and neither is another layer."""
        with pytest.raises(PlanError):
            Overlay("/a", ["/l"], upper=layers.get("upper"), work=layers.get("work"))

    def test_bad_content(self) -> None:
        """The content of a file is bytes or text, and not too much."""
        for data in (7, None, ["a"], "\udce9", b"x" * (8 << 20) + b"x"):
            with pytest.raises(PlanError):
                File("/a", data)  # type: ignore[arg-type]
        assert File("/a", "é").data == "é".encode()

    def test_bad_work_mode(self) -> None:
        """A working directory is discarded, kept or not writable."""
        with pytest.raises(PlanError):
            WorkTree("/a", "forget")

    def test_bad_id_map(self) -> None:
        """An id map of a bind is checked as every other."""
        with pytest.raises(PlanError, match="overlap"):
            Bind("/a", "/b", id_map=[IdMap(0, 1000, 2), IdMap(1, 2000)])

    def test_tree_that_is_none(self, tmp_path: Path) -> None:
        """A root that is a file, or is not there, is refused before any step is made."""
        (tmp_path / "file").touch()
        (tmp_path / "odd").mkdir()
        (tmp_path / "odd" / "proc").symlink_to("/tmp")
        scene = Scene(new=frozenset({"mnt"}), privileged=False)
        for name in ("file", "absent", "odd"):
            with pytest.raises(PlanError, match=name):
                Root.tree(tmp_path / name).add_steps(Builder(), (), scene)

    def test_joined_mount_namespace(self) -> None:
        """A root in a mount namespace that others use is refused: it would be theirs too."""
        with pytest.raises(PlanError, match="mount namespace"):
            Root.host().add_steps(Builder(), (), Scene(new=frozenset(), privileged=False, joined=frozenset({"mnt"})))

    def test_id_map_without_privilege(self) -> None:
        """An id-mapped bind is refused to an ordinary user, with what would help."""
        scene = Scene(new=frozenset({"mnt", "user"}), privileged=False, uid_map=(IdMap(0, 1000),), gid_map=(IdMap(0, 1000),))
        with pytest.raises(Unsupported, match="root"):
            Bind("/usr", "/data", id_map=[IdMap(0, 0)]).add_steps(Builder(), None, scene)


class TestIdMaps:
    INNER = (IdMap(0, 100000, 1000), IdMap(1000, 300000, 1000))

    def test_compose(self) -> None:
        """Ids inside go through the map of the user namespace, piece by piece."""
        assert compose([IdMap(999, 5000, 2)], self.INNER) == (IdMap(5000, 100999), IdMap(5001, 300000))

    def test_compose_without_userns(self) -> None:
        """Without a user namespace of its own, ids inside are the host's."""
        assert compose([IdMap(0, 1000, 5)], ()) == (IdMap(1000, 0, 5),)

    def test_compose_unmapped(self) -> None:
        """An id that means nothing inside is refused."""
        with pytest.raises(PlanError, match="not every id"):
            compose([IdMap(1999, 0, 2)], self.INNER)

    @given(st.integers(0, 30), st.integers(0, 30))
    def test_exchange(self, inside: int, on_disk: int) -> None:
        """Two ids change places, all others stay, and nothing is mapped twice."""
        ranges = exchange((IdMap(0, 70, 10), IdMap(10, 100, 10)), inside, on_disk)
        found = {one.inside + offset: one.outside + offset for one in ranges for offset in range(one.count)}
        swapped = {inside: on_disk, on_disk: inside}
        assert found == {number: swapped.get(number, number) for number in range(20)}


class TestGuest:
    @pytest.fixture
    def guest(self) -> Guest:
        """Return a guest with a skeleton."""
        guest = Guest.begin(Builder(), Scene(new=frozenset({"mnt"}), privileged=False))
        guest.make_skeleton()
        return guest

    def kinds(self, guest: Guest) -> list[str]:
        """Return the kinds of the steps so far."""
        return [step.kind for step in guest.builder._inside]

    def test_parents(self, guest: Guest) -> None:
        """A directory is made with what is absent above it, once."""
        before = len(self.kinds(guest))
        guest.make("/a/b/c")
        guest.make("/a/b/d", directory=False)
        assert self.kinds(guest)[before:] == ["MKDIR", "MKDIR", "MKDIR", "MKNOD"]
        assert guest.make("/a/b").name == "a/b"

    def test_file_is_no_directory(self, guest: Guest) -> None:
        """What was made a file cannot be used as a directory, nor the other way round."""
        guest.make("/a", directory=False)
        guest.make("/b")
        for path, directory in (("/a", True), ("/a/b", True), ("/b", False)):
            with pytest.raises(PlanError):
                guest.make(path, directory=directory)

    def test_foreign_content(self, guest: Guest) -> None:
        """Below a mount of foreign content every path is resolved at run time."""
        mount = guest.host_tree("/usr", 0, recursive=True)
        guest.attach(mount, "/usr", Place("foreign", mount, source="/usr"))
        before = len(self.kinds(guest))
        guest.attach(mount, "/usr/share", Place("foreign", mount))
        assert self.kinds(guest)[before:] == ["OPEN", "MOVE_MOUNT"]

    def test_writable_foreign_content(self, guest: Guest) -> None:
        """Where mount points may be made in foreign content, they are made by the step that resolves them."""
        mount = guest.host_tree("/usr", 0, recursive=True)
        guest.attach(mount, "/usr", Place("foreign", mount, writable=True))
        before = len(self.kinds(guest))
        guest.attach(mount, "/usr/share", Place("foreign", mount))
        assert self.kinds(guest)[before:] == ["TARGET", "MOVE_MOUNT"]

    def test_covering(self, guest: Guest) -> None:
        """What a mount covers is forgotten."""
        guest.make("/a/b")
        mount = guest.new_fs("tmpfs", {}, 0)
        guest.attach(mount, "/a", Place("directory", mount))
        assert guest.look("/a/b") == (Place("directory", mount), ["b"])

    def test_later_mount_in_an_earlier_one(self, guest: Guest) -> None:
        """The mount point of a later mount is made in the earlier one."""
        scene = guest.scene
        Tmpfs("/data").add_steps(guest.builder, guest, scene)
        tmpfs = guest.look("/data")[0].base
        Bind("/usr", "/data/usr").add_steps(guest.builder, guest, scene)
        made = [step for step in guest.builder._inside if step.kind == "MKDIR"][-1]
        assert (made.fd, made.text) == (tmpfs, b"usr")

    def test_link_is_followed_inside(self, guest: Guest) -> None:
        """A path through a link of ours is resolved at run time, within the root."""
        Symlink("/bin", "usr/bin").add_steps(guest.builder, guest, guest.scene)
        before = len(self.kinds(guest))
        ReadOnly("/bin/x").add_steps(guest.builder, guest, guest.scene)
        assert self.kinds(guest)[before] == "OPEN"

    def test_occupied(self, guest: Guest) -> None:
        """A link and a file do not replace what lies there; a mask and a read-only view need something to lie there."""
        guest.make("/a")
        for value in (Symlink("/a", "b"), File("/a", b""), Mask("/b"), ReadOnly("/b")):
            with pytest.raises(PlanError):
                value.add_steps(guest.builder, guest, guest.scene)

    @pytest.mark.parametrize("value", [Dir("/a"), Symlink("/a", "b")], ids=repr)
    def test_host_is_not_written(self, value: Dir | Symlink) -> None:
        """Without a root of its own nothing is made in the host's file system."""
        with pytest.raises(PlanError, match="host's own file system"):
            value.add_steps(Builder(), None, Scene(new=frozenset({"mnt"}), privileged=False))

    def test_too_many(self) -> None:
        """10,000 mounts are refused while the plan is being made."""
        builder, scene = Builder(), Scene(new=frozenset({"mnt"}), privileged=False)
        mounts = [Bind("/usr", f"/data/{number}") for number in range(10_000)]
        with pytest.raises(PlanError, match="too many mounts"):
            Root.empty().add_steps(builder, mounts, scene)


class TestHostRoot:
    def test_visible(self) -> None:
        """What is visible is told: each top-level entry once, private places, no sysfs."""
        lines = Root.host().visible()
        paths = [line.partition(":")[0] for line in lines]
        assert len(set(paths)) == len(paths)
        assert {"/tmp", "/run", "/root", "/home", "/proc", "/dev", "/sys"} <= set(paths)
        for name in os.listdir("/"):
            kind = stat.S_IFMT(os.lstat(f"/{name}").st_mode)
            if name != "lost+found" and kind in {stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK}:
                assert f"/{name}" in paths

    def test_programs(self) -> None:
        """The directories of the interpreter's programs exist, and are none that every PATH has."""
        for path in Root.interpreter_directories():
            assert os.path.isdir(path)
            assert path not in {"/bin", "/usr/bin", "/usr/local/bin"}
