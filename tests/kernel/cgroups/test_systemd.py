"""Scopes of the real systemd: the system's for root, the user's own for an ordinary user."""

from __future__ import annotations

import asyncio
import ctypes
import os
import select
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isolib import GoneError, PermissionDenied, SyscallError, Unsupported, spawn
from isolib._kernel.procfs import parse_cgroup, parse_mountinfo
from isolib.cgroups import systemd
from isolib.cgroups.systemd_bus import user_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

IS_ROOT = os.geteuid() == 0
IN_DELETE = 0x200  # inotify(7)


@pytest.fixture(autouse=True)
def systemd_is_here() -> None:
    """Skip the test where there is no systemd to ask."""
    if not systemd.is_running():
        pytest.skip("systemd is not the init of this host")
    if not IS_ROOT:
        try:
            user_address(os.environ, os.geteuid())
        except Unsupported as missing:
            pytest.skip(f"this user has no systemd on this host: {missing}")


@pytest.fixture
def sleeper() -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Return a function that starts a process to be moved; it is ended with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(["sleep", "inf"]))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def top() -> str:
    """Return where cgroup v2 is mounted."""
    return next(
        mount.mount_point for mount in parse_mountinfo(Path("/proc/self/mountinfo").read_bytes()) if mount.fs_type == "cgroup2"
    )


def directory(scope: systemd.Scope) -> Path:
    """Return the directory of a scope's group."""
    return Path(top() + scope.path)


def group_of(pid: int) -> str:
    """Return the v2 group of a process."""
    return next(entry.path for entry in parse_cgroup(Path(f"/proc/{pid}/cgroup").read_bytes()) if entry.hierarchy_id == 0)


def number_of(scope: systemd.Scope) -> int:
    """Return the number in the name of a scope."""
    return int(scope.name.removesuffix(".scope").split("-")[2])


@pytest.fixture
def same_name_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the first two names that are tried be the same one."""
    number = next(systemd._numbers)
    monkeypatch.setattr(systemd, "_numbers", chain((number, number), systemd._numbers))


@contextmanager
def until_removed(path: Path) -> Iterator[None]:
    """Wait at the end of the block until a directory has been removed."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_CLOEXEC)
    try:
        assert libc.inotify_add_watch(fd, os.fsencode(path.parent), IN_DELETE) >= 0, os.strerror(ctypes.get_errno())
        yield
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        while path.exists():
            assert poll.poll(20_000), f"{path} is still there"
            os.read(fd, 4096)
    finally:
        os.close(fd)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process."""
    process.kill()
    process.wait()


def test_process_is_in_its_scope(sleeper: Callable[[], subprocess.Popen[bytes]]) -> None:
    """When start_scope returns the process is in the group that it names, and the calling process where it was."""
    process, own = sleeper(), group_of(os.getpid())
    scope = systemd.start_scope([process.pid])
    assert group_of(process.pid) == scope.path
    assert scope.path.endswith(f"/{scope.name}")
    assert group_of(os.getpid()) == own


def test_scope_is_delegated(sleeper: Callable[[], subprocess.Popen[bytes]]) -> None:
    """The group is the caller's: its directory and the files of delegation can be written, and it has controllers."""
    group = directory(systemd.start_scope([sleeper().pid]))
    assert group.stat().st_uid == os.geteuid()
    for path in (group, group / "cgroup.procs", group / "cgroup.subtree_control"):
        assert os.access(path, os.W_OK)
    assert {"memory", "pids"} <= set((group / "cgroup.controllers").read_text().split())
    assert (group / "pids.max").read_text() == "max\n"


def test_groups_below(sleeper: Callable[[], subprocess.Popen[bytes]]) -> None:
    """With its process in a leaf, the scope hands every controller that it has to groups below, and limits hold there."""
    process = sleeper()
    group = directory(systemd.start_scope([process.pid]))
    (group / "leaf").mkdir()
    (group / "leaf/cgroup.procs").write_text(str(process.pid))
    controllers = (group / "cgroup.controllers").read_text().split()
    (group / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in controllers))
    (group / "box").mkdir()
    assert (group / "box/cgroup.controllers").read_text().split() == controllers
    (group / "box/pids.max").write_text("7")
    (group / "box/memory.max").write_text("20M")
    assert (group / "box/pids.max").read_text() == "7\n"
    assert (group / "box/memory.max").read_text() == f"{20 << 20}\n"
    (group / "box").rmdir()


def test_several_processes(sleeper: Callable[[], subprocess.Popen[bytes]]) -> None:
    """All the processes that are given are moved together."""
    processes = [sleeper() for _ in range(3)]
    scope = systemd.start_scope([process.pid for process in processes])
    assert [group_of(process.pid) for process in processes] == [scope.path] * 3


def test_process_of_spawn() -> None:
    """A process that isolib started can be moved like any other."""
    with spawn(["sleep", "inf"]) as process:
        scope = systemd.start_scope([process.pid])
        assert group_of(process.pid) == scope.path
        process.kill()


@pytest.mark.usefixtures("same_name_twice")
def test_scope_ends_with_its_last_process(sleeper: Callable[[], subprocess.Popen[bytes]]) -> None:
    """When the last process has ended systemd removes the scope, with groups that were made below, and its name is free."""
    first, last = sleeper(), sleeper()
    scope = systemd.start_scope([first.pid, last.pid])
    group = directory(scope)
    (group / "leaf").mkdir()
    (group / "leaf/cgroup.procs").write_text(str(last.pid))
    with until_removed(group):
        end(first)
        assert (group / "leaf").exists()
        end(last)
    assert systemd.start_scope([sleeper().pid]) == scope


def test_two_scopes(sleeper: Callable[[], subprocess.Popen[bytes]]) -> None:
    """Two scopes at once have groups of their own, and the end of one leaves the other."""
    first, second = sleeper(), sleeper()
    one, two = systemd.start_scope([first.pid]), systemd.start_scope([second.pid])
    assert (group_of(first.pid), group_of(second.pid)) == (one.path, two.path)
    assert one.path != two.path
    with until_removed(directory(one)):
        end(first)
    assert group_of(second.pid) == two.path


@pytest.mark.usefixtures("same_name_twice")
def test_name_is_taken(sleeper: Callable[[], subprocess.Popen[bytes]]) -> None:
    """A name that a living scope has is passed over: the other process gets a scope of the next name."""
    first, second = sleeper(), sleeper()
    one, two = systemd.start_scope([first.pid]), systemd.start_scope([second.pid])
    assert number_of(two) == number_of(one) + 1
    assert (group_of(first.pid), group_of(second.pid)) == (one.path, two.path)


def test_ended_process() -> None:
    """A process that has ended cannot be put into a scope, and the error says that it is gone."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    with pytest.raises(GoneError):
        systemd.start_scope([process.pid])


def test_first_process() -> None:
    """What systemd refuses to move is an error, with systemd's own words."""
    with pytest.raises(SyscallError, match=r"1 is a manager process.*org\.freedesktop\."):
        systemd.start_scope([1])


def test_in_event_loop(sleeper: Callable[[], subprocess.Popen[bytes]]) -> None:
    """A scope can be started from a coroutine."""
    process = sleeper()

    async def cell() -> systemd.Scope:
        return systemd.start_scope([process.pid])

    assert asyncio.run(cell()).path == group_of(process.pid)


def test_in_threads(sleeper: Callable[[], subprocess.Popen[bytes]]) -> None:
    """Threads that start scopes at once get one each, with the process that each gave."""
    processes = [sleeper() for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        scopes = list(pool.map(lambda process: systemd.start_scope([process.pid]), processes))
    assert [group_of(process.pid) for process in processes] == [scope.path for scope in scopes]
    assert len({scope.path for scope in scopes}) == 8


@pytest.mark.root
def test_mark_of_delegation(sleeper: Callable[[], subprocess.Popen[bytes]]) -> None:
    """The system's systemd marks a scope as delegated; what is below it is the caller's, and the slice around it is not."""
    group = directory(systemd.start_scope([sleeper().pid]))
    (group / "a").mkdir()
    assert systemd.delegated_by_systemd(str(group))
    assert systemd.delegated_ancestor(str(group / "a"), top()) == str(group)
    assert not systemd.delegated_by_systemd(str(group.parent))
    assert systemd.delegated_ancestor(str(group.parent), top()) is None
    (group / "a").rmdir()


@pytest.mark.unprivileged
def test_group_of_users_systemd(sleeper: Callable[[], subprocess.Popen[bytes]]) -> None:
    """The group that the user's systemd was given, and the slices that it made below, are not the caller's to divide."""
    group = directory(systemd.start_scope([sleeper().pid]))
    manager = next(path for path in group.parents if path.name == f"user@{os.geteuid()}.service")
    assert systemd.delegated_by_systemd(str(manager))
    for path in (manager, *(path for path in group.parents if manager in path.parents)):
        assert systemd.delegated_ancestor(str(path), top()) is None


@pytest.mark.unprivileged
def test_system_refuses_ordinary_user(sleeper: Callable[[], subprocess.Popen[bytes]]) -> None:
    """The system's systemd gives an ordinary user no scope, and the error names polkit and the other way."""
    process = sleeper()
    before = group_of(process.pid)
    with pytest.raises(PermissionDenied, match=r"polkit.*user=True"):
        systemd.start_scope([process.pid], user=False)
    assert group_of(process.pid) == before


@pytest.mark.unprivileged
def test_user_address_without_environment(
    sleeper: Callable[[], subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's systemd is found where the environment says nothing, as under cron, and where it is another user's."""
    for values in ({}, {"XDG_RUNTIME_DIR": "/run/user/0", "DBUS_SESSION_BUS_ADDRESS": "unix:path=/run/user/0/bus"}):
        for name in ("XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        process = sleeper()
        scope = systemd.start_scope([process.pid])
        assert group_of(process.pid) == scope.path
