"""What a build is made of, without a kernel's help: patterns, changes to a config, where a path leads, users of an image."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from isolib import PlanError, SyscallError
from isolib._kernel.handle import Fd
from isolib.unionfs import ImageConfig
from isolib.unionfs.disk.resolving import MountPoints, make_directories, read_file, resolve
from isolib.unionfs.images.accounts import Account, account_of
from isolib.unionfs.images.configuring import Changes
from isolib.unionfs.images.context import Excluded
from isolib.unionfs.store.steps import key_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOTHING = Changes(*[None] * len(Changes._fields))


@pytest.fixture
def top(tmp_path: Path) -> Iterator[int]:
    """Return a directory as the top of a tree."""
    with Fd(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as opened:
        yield opened.fileno()


@pytest.mark.parametrize(
    ("pattern", "out", "kept"),
    [
        ("*.pyc", [b"a.pyc", b"a/b.pyc", b"x.pyc/y"], [b"a.py", b"pyc"]),
        (".git", [b".git", b".git/config", b"sub/.git/HEAD"], [b".gitignore", b"x.git"]),
        ("docs/*.html", [b"docs/a.html", b"docs/a.html/x"], [b"docs/sub/a.html", b"a.html", b"x/docs/a.html"]),
        ("/out", [b"out", b"out/x"], [b"x/out"]),
        ("a/*/c", [b"a/b/c", b"a/b/c/d"], [b"a/b/b/c", b"a/c"]),
        ("[!a]b", [b"bb"], [b"ab"]),
        ("\udcff*", [b"\xffx"], [b"x"]),
    ],
)
def test_patterns_leave_out(pattern: str, out: list[bytes], kept: list[bytes]) -> None:
    """A pattern is for names at any depth, or for the whole path if it has a slash; what lies below goes too."""
    excluded = Excluded([pattern])
    assert all(map(excluded, out))
    assert not any(map(excluded, kept))


def test_one_text_is_no_list_of_patterns() -> None:
    """A pattern that is not in a list is refused, for it would be taken letter by letter."""
    with pytest.raises(PlanError, match="exclude"):
        Excluded("*.pyc")


def test_a_path_leads_within_the_tree(tmp_path: Path, top: int) -> None:
    """Links, absolute or upward, begin at the top; what is missing is told, also behind a link that leads to nothing."""
    (tmp_path / "dir/sub").mkdir(parents=True)
    (tmp_path / "file").touch()
    for name, target in {
        "abs": "/dir",
        "up": "../../../dir/sub",
        "none": "/new/place",
        "dir/back": "..",
        "loop": "loop",
    }.items():
        os.symlink(target, tmp_path / name)
    found = {
        path: resolve(top, path.encode())[:2]
        for path in ("", "/", "abs/sub", "up/x/y", "none/z", "abs/back/file", "../../file", "dir/./sub//", "x/../file", "none")
    }
    assert found == {
        "": (b"", 0),
        "/": (b"", 0),
        "abs/sub": (b"dir/sub", 0),
        "up/x/y": (b"dir/sub/x/y", 2),
        "none/z": (b"new/place/z", 3),
        "abs/back/file": (b"file", 0),
        "../../file": (b"file", 0),
        "dir/./sub//": (b"dir/sub", 0),
        "x/../file": (b"file", 0),
        "none": (b"new/place", 2),
    }
    assert resolve(top, b"none", follow=False) == (b"none", 0, 0o120000)
    for path in (b"loop/x", b"file/x"):
        with pytest.raises(SyscallError):
            resolve(top, path)


def test_directories_are_made_where_a_path_leads(tmp_path: Path, top: int) -> None:
    """Directories are made behind links, with their mode; what is there stays, and a file in the way is refused."""
    os.symlink("/new", tmp_path / "link")
    assert make_directories(top, b"/link/a/b", mode=0o711) == b"new/a/b"
    assert [(tmp_path / path).stat().st_mode & 0o777 for path in ("new", "new/a/b")] == [0o711, 0o711]
    assert make_directories(top, b"new", mode=0o700) == b"new"
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o711
    (tmp_path / "file").touch()
    with pytest.raises(SyscallError, match="directory"):
        make_directories(top, b"file")


def test_mount_points_leave_no_trace(tmp_path: Path, top: int) -> None:
    """They go again, and the times of what they lay in are back; where something else was changed too, times and it stay."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    for path in (tmp_path / "one", tmp_path / "two", tmp_path):
        os.utime(path, ns=(5, 7_000_000_001))
    points = MountPoints(top)
    assert points.make(b"one/a/b", directory=True) == b"one/a/b"
    assert points.make(b"one/c", directory=False) == b"one/c"
    points.make(b"two/d", directory=True)
    points.make(b"two", directory=True)
    points.make(b"three", directory=True)
    (tmp_path / "two/mine").touch()
    (tmp_path / "three/mine").touch()
    points.remove()
    assert sorted(os.listdir(tmp_path)) == ["one", "three", "two"]
    assert (os.listdir(tmp_path / "one"), os.listdir(tmp_path / "two")) == ([], ["mine"])
    assert (tmp_path / "one").stat().st_mtime_ns == 7_000_000_001
    assert (tmp_path / "two").stat().st_mtime_ns != 7_000_000_001


def test_mount_points_that_a_command_has_replaced_stay(tmp_path: Path, top: int) -> None:
    """What was removed, filled, or exchanged for something else meanwhile is left as it is."""
    points = MountPoints(top)
    for name in (b"gone", b"full", b"deep/in"):
        points.make(name, directory=name != b"full")
    (tmp_path / "gone").rmdir()
    (tmp_path / "full").write_text("x")
    (tmp_path / "deep/in").rmdir()
    (tmp_path / "deep").rmdir()
    os.symlink("/etc", tmp_path / "deep")
    points.remove()
    assert (tmp_path / "full").read_text() == "x"


def test_files_of_users_are_read_with_care(tmp_path: Path, top: int) -> None:
    """No file, a FIFO, a link out, and lines that are none are no users; what is found is what the files say."""
    assert account_of(top, "") == Account(0, 0, (), "/root")
    assert account_of(top, "12") == Account(12, 0, (), "/")
    (tmp_path / "etc").mkdir()
    os.mkfifo(tmp_path / "etc/passwd")
    assert read_file(top, b"etc/passwd", 10) == b""
    (tmp_path / "etc/passwd").unlink()
    (tmp_path / "etc/passwd").write_text(
        "broken\n::::::\nbad:x:minus:1::/:\nme:x:7:8::/home/me:/bin/sh\nme:x:9:9::/:\nnohome:x:5:5:::\n"
    )
    (tmp_path / "etc/group").write_text("a:x:3:me,you\nb:x:x:me\nc:x:8:me\nd:x:4:you\n+\n")
    assert account_of(top, "me") == account_of(top, "7") == Account(7, 8, (3,), "/home/me")
    assert account_of(top, "me:d") == Account(7, 4, (), "/home/me")
    assert account_of(top, "nohome").home == "/"
    for user in ("bad", "nobody", "me:b", "me:nobody", "4294967295", "99999999999999999999"):
        with pytest.raises(PlanError):
            account_of(top, user)


@pytest.mark.parametrize(
    ("changes", "config", "told"),
    [
        ({"env": {"A": "1"}}, {"env": {"B": "0", "A": "1"}}, "ENV A=1"),
        ({"env": {"B": None}}, {"env": {}}, "ENV B"),
        ({"cmd": "run it"}, {"cmd": ("/bin/sh", "-c", "run it")}, 'CMD ["/bin/sh", "-c", "run it"]'),
        ({"cmd": []}, {"cmd": None}, "CMD []"),
        ({"entrypoint": ["a", "b"]}, {"entrypoint": ("a", "b")}, 'ENTRYPOINT ["a", "b"]'),
        ({"workdir": "sub/.."}, {"workdir": "/w"}, "WORKDIR /w"),
        ({"workdir": "/x"}, {"workdir": "/x"}, "WORKDIR /x"),
        ({"user": 5}, {"user": "5"}, "USER 5"),
        (
            {"expose": [80, "81/udp", "1-2"]},
            {"exposed_ports": ("80/tcp", "81/udp", "1-2/tcp")},
            "EXPOSE 80/tcp; EXPOSE 81/udp; EXPOSE 1-2/tcp",
        ),
        ({"volumes": ["/v"]}, {"volumes": ("/v",)}, "VOLUME /v"),
        ({"stop_signal": "SIGINT", "author": "me"}, {"stop_signal": "SIGINT", "author": "me"}, "STOPSIGNAL SIGINT"),
    ],
)
def test_changes_are_made_and_told(changes: dict[str, object], config: dict[str, object], told: str) -> None:
    """Each change makes the config another, and is told as a Dockerfile would."""
    before = ImageConfig(env={"B": "0"}, cmd=("was",), workdir="/w", exposed_ports=("80/tcp",))
    assert NOTHING._replace(**changes).made_to(before) == (replace(before, **config), told)  # type: ignore[arg-type]


def test_a_key_is_of_all_that_a_step_is() -> None:
    """The order of what is said of a step has no say in its key; all else has."""
    key = key_of("sha256:1", {"a": 1, "b": [2]})
    assert key == key_of("sha256:1", {"b": [2], "a": 1})
    assert (
        len({key, key_of("sha256:2", {"a": 1, "b": [2]}), key_of("sha256:1", {"a": 1, "b": [3]}), key_of("sha256:1", {"a": 1})})
        == 4
    )
