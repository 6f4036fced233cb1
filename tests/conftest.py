"""What all tests share: who runs what, and that nothing is left behind.

Around every test a fixture compares what the process has: descriptors, mounts, threads, children, namespaces, network
interfaces, cgroups, launchers of ours, what the reaper guards, and everything that "the host is left as found" speaks of. Where
the kernel is lazy (an interface dies some time after its namespace) it waits for the kernel's own notification.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import resource
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import hypothesis
import psutil
import pytest

from isolib._kernel.procfs import parse_cgroup, parse_fdinfo, parse_mountinfo, parse_stat, parse_status
from tests import throwaway
from tests.groups import needs

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from isolib._kernel.launch import Launched
    from isolib._kernel.reaper import _Reaper
    from isolib.unionfs.overlays.deputy import Deputy

# Administrators' tools are oracles here, and not on everybody's PATH.
os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"

PATIENCE = 10.0
"""Seconds in which what the kernel takes away by itself must be gone."""

Things: TypeAlias = "dict[str, str]"
"""What there is of one kind: its identity, and a description."""


# A deadline would be a test of this machine's speed.
hypothesis.settings.register_profile("isolib", deadline=None)
hypothesis.settings.load_profile("isolib")


# ---- who runs what ----


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the switches for runs that must not leave anything out, and for those that are not alone."""
    parser.addoption("--no-skip", action="store_true", help="a test that would be skipped fails")
    parser.addoption("--shared-host", action="store_true", help="others mount, and make links and groups, in it meanwhile")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers that this file gives a meaning to, but those that pyproject.toml has."""
    config.addinivalue_line(
        "markers", "leaves(*kinds, reason): the test may leave these kinds of things behind; the kinds are those of LOOK"
    )


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Leave out what is for another user than this one."""
    is_root = os.geteuid() == 0
    for item in items:
        if "needs_root" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.root)
        if item.get_closest_marker("root") and not is_root:
            item.add_marker(pytest.mark.skip(reason="needs to be started by root"))
        if item.get_closest_marker("unprivileged") and is_root:
            item.add_marker(pytest.mark.skip(reason="needs to be started by an ordinary user"))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that changes its host in one that is thrown away."""
    if not pyfuncitem.get_closest_marker("destructive") or throwaway.INSIDE in os.environ:
        return None
    status, output = throwaway.run_inside(pyfuncitem.nodeid, pyfuncitem.config.rootpath)
    if status:
        pytest.fail(f"in the throw-away host:\n{output}", pytrace=False)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With --no-skip, make a failure of a skipped test."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and item.config.getoption("--no-skip"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"--no-skip: {reason}"
    return report


@pytest.fixture
def needs_root() -> None:
    """Skip the test unless root runs it; the same as the marker `root`."""
    if os.geteuid() != 0:
        pytest.skip("needs to be started by root")


@dataclass(frozen=True)
class Account:
    """An ordinary user."""

    uid: int
    gid: int

    def run(self, argv: Sequence[str], **options: object) -> subprocess.CompletedProcess[str]:
        """Run a command as this user, and return what it wrote."""
        if os.geteuid() == 0:
            options |= {"user": self.uid, "group": self.gid, "extra_groups": []}
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, **options)  # type: ignore[call-overload, no-any-return]


@pytest.fixture(scope="session")
def ordinary_user() -> Account:
    """Return who runs the tests, or for root an account without rights."""
    return Account(os.geteuid(), os.getegid()) if os.geteuid() else Account(65534, 65534)


@pytest.fixture
def groups() -> None:
    """Skip the test where the user may make no control groups."""
    needs()


@pytest.fixture(scope="session")
def user_namespaces() -> None:
    """Skip the test where this user may not make user namespaces."""
    code = "import ctypes, sys; sys.exit(ctypes.CDLL(None).unshare(0x10000000))"
    if subprocess.run([sys.executable, "-I", "-c", code], check=False).returncode:
        pytest.skip("the kernel or its configuration refuses user namespaces to this user")


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Have more descriptors than the 1,024 that an ordinary user has if he does not ask for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# ---- what there is ----


def read(path: str) -> bytes:
    """Return a file under /proc, empty when it is gone."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def link(path: str) -> str:
    """Return where a link under /proc leads, "gone" when it is gone."""
    try:
        return os.readlink(path)
    except OSError:
        return "gone"


def descriptors() -> Things:
    """Return the open descriptors and what they are of, but those that isolib opens once for the life of the process."""
    links = {number: link(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd") if int(number) not in kept()}
    return {f"{number} {target}": "" for number, target in links.items() if target != "gone"}


def kept() -> set[int]:
    """Return the descriptors that every launch uses, the user namespaces of id-mapped mounts, and what the reaper shares."""
    grounds = getattr(sys.modules.get("isolib._kernel.launch"), "_grounds", {})
    namespaces = getattr(sys.modules.get("isolib._kernel.assembly"), "_userns_cache", {})
    return {
        *(fd for ground in grounds.values() for fd in (ground.host, ground.proc, ground.image)),
        *(fd.fileno() for fd in namespaces.values()),
        *(fd for reaper in reapers() for fd in reaper.descriptors),
        *(fd for deputy, socket in deputies() for fd in (socket, deputy.status, deputy.pidfd, deputy.command)),
        *group_place(),
    }


def group_place() -> set[int]:
    """Return the descriptors of the directories in which this process makes its groups."""
    module = sys.modules.get("isolib.cgroups.place")
    return module.descriptors() if module is not None else set()


def reapers() -> Iterable[_Reaper]:
    """Return what this process has of its reaper; one at the most, unless something is wrong."""
    found: dict[object, _Reaper] = getattr(sys.modules.get("isolib._kernel.reaper"), "_reapers", {})
    return found.values()


def deputies() -> list[tuple[Launched, int]]:
    """Return those who mount for an ordinary user, and the socket of each; they stay as long as this process."""
    found: dict[object, Deputy] = getattr(sys.modules.get("isolib.unionfs.overlays.deputy"), "_deputies", {})
    running = [deputy._running for deputy in found.values() if deputy._running is not None]
    return [(process._launched, socket.fileno()) for process, socket in running]


def mounts() -> Things:
    """Return the mounts of this thread's mount namespace."""
    return dict.fromkeys(os.fsdecode(read("/proc/thread-self/mountinfo")).split("\n"), "")


def threads() -> Things:
    """Return the native threads of this process."""
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    return {tid: names.get(int(tid), "not of Python") for tid in os.listdir("/proc/self/task")}


def children() -> Things:
    """Return the children of this process, zombies too."""
    task = f"/proc/self/task/{threading.main_thread().native_id}/children"
    if os.path.exists(task):
        pids = [
            pid for tid in os.listdir("/proc/self/task") for pid in read(f"/proc/self/task/{tid}/children").decode().split()
        ]
    else:
        pids = [str(child.pid) for child in psutil.Process().children()]
    return {pid: describe_process(pid) for pid in pids}


def describe_process(pid: str) -> str:
    """Return the name and the state of a process."""
    try:
        stat = parse_stat(read(f"/proc/{pid}/stat"))
    except ValueError:
        return "gone"
    return f"{stat.comm} {stat.state}"


def namespaces() -> Things:
    """Return the namespaces of every thread."""
    return {
        f"{tid} {name} {link(f'/proc/self/task/{tid}/ns/{name}')}": ""
        for tid in os.listdir("/proc/self/task")
        for name in os.listdir("/proc/self/ns")
    }


def interfaces() -> Things:
    """Return the network interfaces of this thread's network namespace."""
    return {f"{index} {name}": "" for index, name in socket.if_nameindex()}


def cgroups() -> Things:
    """Return the cgroups below those of this process, in every hierarchy."""
    groups = {entry.controllers: entry.path for entry in parse_cgroup(read("/proc/self/cgroup"))}
    found: Things = {}
    for mount in parse_mountinfo(read("/proc/thread-self/mountinfo")):
        for controllers, path in groups.items():
            is_hers = set(controllers) <= set(mount.super_options) if controllers else mount.fs_type == "cgroup2"
            if mount.fs_type.startswith("cgroup") and is_hers and path.startswith(mount.root):
                own = os.path.normpath(f"{mount.mount_point}/{path.removeprefix(mount.root)}")
                found |= {os.path.join(top, name): "" for top, names, _ in os.walk(own) for name in names}
    return {path: text for path, text in found.items() if not is_of_another_host(path)}


def is_of_another_host(path: str) -> bool:
    """Return whether a group, or one above it, is that of another living program that uses isolib; its name has the pid."""
    pids = [int(match[1]) for match in re.finditer(r"/isolib-(?:[a-z]+-)?(\d+)", path)]
    return bool(pids) and os.getpid() not in pids and os.path.exists(f"/proc/{pids[0]}")


def launchers() -> Things:
    """Return the launcher processes that watch this process; they are not its children (see `isolib._kernel.launch`).

    The one reaper stays as long as this process.
    """
    if "isolib._kernel.launch" not in sys.modules:
        return {}
    pids = (pid for pid in os.listdir("/proc") if pid.isdigit() and read(f"/proc/{pid}/cmdline").startswith(b"isolib"))
    ours = {str(reaper.launched.supervisor_pid) for reaper in reapers() if reaper.launched}
    ours |= {str(deputy.supervisor_pid) for deputy, _ in deputies()}
    return {pid: describe_process(pid) for pid in pids if pid not in ours and is_watching_us(pid)}


def entrusted() -> Things:
    """Return what the reaper would remove if this process ended now."""
    return {f"entry {index}": "" for reaper in reapers() for index in reaper.live}


def is_watching_us(pid: str) -> bool:
    """Say whether a process has a pidfd of this one; where it shows its descriptors to nobody, whether it has our user id."""
    try:
        numbers = os.listdir(f"/proc/{pid}/fdinfo")
    except FileNotFoundError:
        return False
    except PermissionError:
        return parse_status(read(f"/proc/{pid}/status")).get("Uid", "").split()[:1] == [str(os.getuid())]
    for number in numbers:
        with contextlib.suppress(ValueError):  # it was closed meanwhile
            if parse_fdinfo(read(f"/proc/{pid}/fdinfo/{number}")).pid == os.getpid():
                return True
    return False


def process() -> Things:
    """Return what a library must not change in its host."""
    status = parse_status(read(f"/proc/self/task/{threading.main_thread().native_id}/status"))
    fields = ("Umask", "Uid", "Gid", "Groups", "SigBlk", "SigIgn", "SigCgt", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp")
    found = {f"{name} {status.get(name)}": "" for name in fields}
    found |= {f"{name} {link(f'/proc/self/{name}')}": "" for name in ("cwd", "root")}
    found[f"dumpable {os.stat('/proc/self/fd').st_uid == os.geteuid()}"] = ""
    return found | {f"{name}={value}": "" for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


LOOK: dict[str, Callable[[], Things]] = {
    "descriptors": descriptors,
    "mounts": mounts,
    "threads": threads,
    "children": children,
    "namespaces": namespaces,
    "interfaces": interfaces,
    "cgroups": cgroups,
    "launchers": launchers,
    "entrusted": entrusted,
    "process": process,
}

LASTING = {"descriptors", "mounts", "interfaces", "process"}
"""Kinds of which nothing may be missing afterwards either."""

SHARED = {"mounts", "interfaces", "cgroups"}
"""Kinds that this process shares with other runs in this host, as those of pytest-xdist's workers, whose things come and go."""


def look(kinds: set[str]) -> dict[str, Things]:
    """Return what there is of these kinds."""
    return {kind: LOOK[kind]() for kind in kinds}


def compare(before: dict[str, Things], after: dict[str, Things]) -> dict[str, Things]:
    """Return what is there that was not, and what is missing."""
    difference: dict[str, Things] = {}
    for kind, things in after.items():
        new = {key: text for key, text in things.items() if key not in before[kind]}
        if kind == "namespaces":  # of threads that are new, only the thread matters
            old_threads = {key.split()[0] for key in before[kind]}
            new = {key: text for key, text in new.items() if key.split()[0] in old_threads and not key.endswith("gone")}
        missing = {f"missing: {key}": "" for key in before[kind] if key not in things} if kind in LASTING else {}
        if new or missing:
            difference[kind] = new | missing
    return difference


# ---- waiting for what the kernel does later ----


class Watch:
    """Everything by which the kernel tells that one of these things has gone."""

    def __init__(self, difference: dict[str, Things]) -> None:
        self.poll = select.poll()
        self.stack = contextlib.ExitStack()
        if "mounts" in difference:
            self.add_file("/proc/thread-self/mountinfo")
        if "interfaces" in difference:
            events = self.stack.enter_context(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE))
            events.bind((0, 1))  # RTMGRP_LINK
            self.poll.register(events, select.POLLIN)
        for pid, text in (difference.get("children", {}) | difference.get("launchers", {})).items():
            if not text.endswith("Z"):  # that one has ended, and somebody should have waited for it
                self.add_process(int(pid), 0)
        for tid in difference.get("threads", {}):
            self.add_process(int(tid), os.O_EXCL)  # PIDFD_THREAD, since Linux 6.9
        for path in difference.get("cgroups", {}):
            with contextlib.suppress(OSError):  # v1 has none
                self.add_file(f"{path}/cgroup.events")

    def add_file(self, path: str) -> None:
        """Watch for the change of a kernel file."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.stack.callback(os.close, fd)
        self.poll.register(fd, select.POLLPRI)

    def add_process(self, pid: int, flags: int) -> None:
        """Watch for the end of a process or a thread."""
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(pid, flags)
            self.stack.callback(os.close, pidfd)
            self.poll.register(pidfd, select.POLLIN)

    def wait(self) -> None:
        """Wait for one of them. What the kernel tells nobody about (v1 cgroups, old kernels) is looked at now and then."""
        self.poll.poll(20)


def wait_until_gone(before: dict[str, Things]) -> dict[str, Things]:
    """Return what is left when the kernel has had its time."""
    difference = compare(before, look(set(before)))
    deadline = time.monotonic() + PATIENCE
    while difference and time.monotonic() < deadline:
        # Opened first, looked at then: what goes in between is told too.
        watch = Watch(difference)
        with watch.stack:
            now = compare(before, look(set(before) - {"descriptors"}))
            if now:
                watch.wait()
        gc.collect()  # what hangs in a cycle is not lost, also what a thread has left there that has ended only now
        difference = compare(before, look(set(before)))
    return difference


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test if it leaves something behind, or changes this process."""
    if throwaway.INSIDE in os.environ:  # whatever is left there is thrown away
        yield
        return
    is_shared = "PYTEST_XDIST_WORKER" in os.environ or request.config.getoption("--shared-host")
    relaxed: set[str] = set(SHARED) if is_shared else set()
    for marker in request.node.iter_markers("leaves"):
        if not marker.kwargs.get("reason") or not set(marker.args) <= set(LOOK):
            pytest.fail(f"@pytest.mark.leaves takes kinds of {sorted(LOOK)} and a reason=")
        relaxed |= set(marker.args)
    before = look(set(LOOK) - relaxed)
    yield
    if difference := wait_until_gone(before):
        lines = [f"  {kind}: {key} {text}" for kind, things in difference.items() for key, text in things.items()]
        pytest.fail("left behind:\n" + "\n".join(lines), pytrace=False)


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> list[type[BaseException]]:
    """Collect what is raised in finalizers, where Python can only print it."""
    kinds: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda event: kinds.append(event.exc_type))
    return kinds


@pytest.fixture
def place() -> Iterator[Path]:
    """Return a directory that everybody may enter, on a file system of the disk."""
    path = Path(tempfile.mkdtemp(dir="/var/tmp", prefix="isolib-test-"))
    path.chmod(0o755)
    yield path
    subprocess.run(["rm", "-rf", path], check=True)  # overlay leaves directories that nobody may read
