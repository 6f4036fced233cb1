"""Names for namespaces: pin() and unpin(), and what `ip netns` and they have of each other."""

from __future__ import annotations

import os
import subprocess
import threading
from contextlib import closing
from typing import TYPE_CHECKING, TypeVar

import pytest

from isolib import ClosedError, PermissionDenied, PlanError, SyscallError
from isolib import namespaces as ns
from isolib._kernel import calls
from isolib.namespaces import pin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    T = TypeVar("T")

KINDS = [kind for kind in ("net", "uts", "ipc", "cgroup", "pid", "user", "time") if os.path.exists(f"/proc/self/ns/{kind}")]


@pytest.fixture
def elsewhere(needs_root: None) -> Iterator[ns.MntNS]:
    """Return a mount namespace with an empty /run, where names can be given without the host seeing them."""
    with ns.new_mntns() as namespace:
        namespace.run(calls.mount, "tmpfs", "/run", "tmpfs", 0)
        yield namespace


def ip_netns(*arguments: str) -> str:
    """Run `ip netns` from the calling thread, in its mount namespace."""
    return subprocess.run(["ip", "netns", *arguments], capture_output=True, text=True, check=True).stdout


def in_mounts(namespace: ns.MntNS, function: Callable[[], T]) -> T:
    """Call a function where the names are."""
    return namespace.run(function)


def mounted(path: Path) -> bool:
    """Return whether something is mounted on a file."""
    with open("/proc/thread-self/mountinfo", encoding="utf-8") as file:
        return any(line.split()[4] == str(path) for line in file)


@pytest.mark.parametrize("kind", KINDS)
def test_pinned_namespace_is_found_by_its_path(elsewhere: ns.MntNS, tmp_path: Path, kind: str) -> None:
    """A namespace that was pinned is the same one when it is opened by the path, also after the handle was closed."""
    place = tmp_path / "with space, comma:colon"

    def body() -> None:
        with closing(getattr(ns, f"new_{kind}ns")()) as namespace:
            namespace.pin(place)
            assert mounted(place) or " " in str(place)
        with getattr(ns, f"open_{kind}ns")(path=place) as again:
            assert again == namespace
        assert place.stat().st_mode & 0o777 == 0o444
        again.unpin()
        assert not place.exists()

    in_mounts(elsewhere, body)


def test_pinned_namespace_lives_without_a_handle(elsewhere: ns.MntNS, tmp_path: Path) -> None:
    """Closing the handle leaves the name, and what is inside stays as it was."""
    place = tmp_path / "box"

    def body() -> None:
        with ns.new_utsns(hostname="pinned") as namespace:
            namespace.pin(place)
        with ns.open_utsns(path=place):
            assert os.uname().nodename == "pinned"
        namespace.unpin()
        assert os.listdir(tmp_path) == []

    in_mounts(elsewhere, body)


def test_two_names(elsewhere: ns.MntNS, tmp_path: Path) -> None:
    """A namespace may have several names; unpin() takes all away that this handle has given."""

    def body() -> None:
        with closing(ns.new_utsns()) as namespace, closing(ns.open_utsns(fd=namespace)) as other:
            namespace.pin(tmp_path / "a")
            namespace.pin(tmp_path / "b")
            other.pin(tmp_path / "c")
            namespace.unpin()
            assert os.listdir(tmp_path) == ["c"]
            other.unpin()
            with pytest.raises(PlanError, match="not pinned"):
                namespace.unpin()

    in_mounts(elsewhere, body)


def test_nothing_that_is_there_is_covered(elsewhere: ns.MntNS, tmp_path: Path) -> None:
    """A file, a link or a directory that is there is left as it is."""
    (tmp_path / "file").write_text("content")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "directory").mkdir()

    def body() -> None:
        with closing(ns.new_utsns()) as namespace:
            for name in ("file", "link", "directory"):
                with pytest.raises(SyscallError, match="EEXIST"):
                    namespace.pin(tmp_path / name)
            with pytest.raises(SyscallError, match="its directory must be there"):
                namespace.pin(tmp_path / "nowhere" / "name")
            with pytest.raises(PlanError):
                namespace.unpin()

    in_mounts(elsewhere, body)
    assert (tmp_path / "file").read_text() == "content"
    assert sorted(os.listdir(tmp_path)) == ["directory", "file", "link"]


@pytest.mark.parametrize("path", ["", "a\0b", "x" * 5000, 7])
def test_impossible_paths_are_refused(path: str) -> None:
    """What cannot be a path is a PlanError."""
    with closing(ns.new_userns()) as namespace, pytest.raises(PlanError, match="path"):
        namespace.pin(path)


def test_mount_namespace_cannot_be_pinned_in_itself(elsewhere: ns.MntNS, tmp_path: Path) -> None:
    """What the kernel refuses leaves no file behind."""

    def body() -> None:
        with ns.open_mntns(path="/proc/thread-self/ns/mnt") as own, pytest.raises(SyscallError, match="pinned in itself"):
            own.pin(tmp_path / "own")

    in_mounts(elsewhere, body)
    assert os.listdir(tmp_path) == []


def test_only_what_was_pinned_is_unpinned(elsewhere: ns.MntNS, tmp_path: Path) -> None:
    """When something else is at the place by now it is left there, and unpin() says so."""
    place = tmp_path / "name"

    def body() -> None:
        with closing(ns.new_utsns()) as one, closing(ns.new_utsns()) as two:
            one.pin(place)
            calls.umount(str(place), calls.MNT_DETACH)
            place.unlink()
            two.pin(place)
            with pytest.raises(SyscallError, match="not what is mounted there"):
                one.unpin()
            assert mounted(place)
            two.unpin()
            one.unpin()  # there is nothing any more

    in_mounts(elsewhere, body)


def test_closed_handle_cannot_be_pinned(tmp_path: Path) -> None:
    """A closed handle has nothing to give a name to."""
    with ns.new_userns() as namespace:
        pass
    with pytest.raises(ClosedError):
        namespace.pin(tmp_path / "name")
    assert os.listdir(tmp_path) == []


@pytest.mark.unprivileged
def test_pinning_takes_privileges(tmp_path: Path) -> None:
    """Without privileges pin() is refused, and leaves no file behind."""
    with ns.new_userns() as namespace, pytest.raises(PermissionDenied):
        namespace.pin(tmp_path / "name")
    assert os.listdir(tmp_path) == []


# ---- ip netns ----


def test_ip_sees_names_of_isolib(elsewhere: ns.MntNS) -> None:
    """A namespace that is pinned in /run/netns is in `ip netns`, can be used by it, and can be deleted by it."""

    def body() -> None:
        with ns.new_netns() as namespace:
            namespace.pin("/run/netns/ours")
        assert "ours" in ip_netns("list")
        shown = ip_netns("exec", "ours", "ip", "-o", "link", "show", "lo")
        assert "UP" in shown
        assert ip_netns("exec", "ours", "readlink", "/proc/self/ns/net").strip() == f"net:[{namespace.id}]"
        ip_netns("delete", "ours")
        with pytest.raises(SyscallError, match="ENOENT"):
            ns.open_netns(name="ours")

    in_mounts(elsewhere, body)


def test_isolib_sees_names_of_ip(elsewhere: ns.MntNS) -> None:
    """A namespace that `ip netns add` has made is found by its name, and its name can be taken away."""

    def body() -> None:
        ip_netns("add", "theirs")
        expected = os.stat("/run/netns/theirs").st_ino
        with ns.open_netns(name="theirs") as namespace:
            assert namespace.id == expected == os.stat("/proc/thread-self/ns/net").st_ino
            with pytest.raises(PlanError, match="kind net, not uts"):
                ns.open_utsns(name="theirs")
        assert "theirs" in ip_netns("list")
        namespace.unpin()
        assert ip_netns("list") == ""

    in_mounts(elsewhere, body)


def test_directory_is_that_of_ip(elsewhere: ns.MntNS) -> None:
    """/run/netns is set up as `ip netns add` does it: one shared mount, whoever comes first, and however many come at once."""

    def mounts() -> list[list[str]]:
        with open("/proc/thread-self/mountinfo", encoding="utf-8") as file:
            lines = [line.split(" - ")[0].split() for line in file]
        return [line for line in lines if line[4] == "/run/netns"]

    def body() -> None:
        with closing(ns.new_netns()) as namespace:
            namespace.pin("/run/netns/first")
            ip_netns("add", "second")
            namespace.pin("/run/netns/third")
        ((*_, optional),) = [line[6:] for line in mounts()]
        assert optional.startswith("shared:")
        assert os.stat("/run/netns").st_mode & 0o777 == 0o755

    in_mounts(elsewhere, body)
    with ns.new_mntns() as other:
        other.run(calls.mount, "tmpfs", "/run", "tmpfs", 0)
        other.run(ip_netns, "add", "first")
        other.run(_pin_at_once)
        assert len(other.run(mounts)) == 1


def _pin_at_once() -> None:
    with closing(ns.new_netns(lo=False)) as namespace:
        threads = [threading.Thread(target=namespace.pin, args=(f"/run/netns/{number}",)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(ip_netns("list").splitlines()) == 9
        namespace.unpin()


def test_name_is_checked() -> None:
    """What can be a file name can be a name."""
    for name in ("a", "eth0.100", "ünïcode", "with space", "x" * 255, "..."):
        assert pin.check_name(name) == name
