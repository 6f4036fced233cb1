"""Groups of this process: where a test may make some, and programs that make them as hosts of their own."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from isolib._kernel.procfs import parse_cgroup, parse_mountinfo

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 30
"""Seconds after which a test no longer waits for what must come."""

AWKWARD = {"cpuset"}
"""Controllers whose new groups take no process before something is set."""


class Hierarchy(NamedTuple):
    """The group of this process in one hierarchy, where it may make others."""

    path: str
    version: int
    controllers: frozenset[str]


def hierarchies() -> tuple[Hierarchy, ...]:
    """Return the groups of this process in which it may make others."""
    return tuple(one for one in _usable() if not one.controllers & AWKWARD)


@cache
def _usable() -> tuple[Hierarchy, ...]:
    own = {entry.controllers: entry.path for entry in parse_cgroup(Path("/proc/self/cgroup").read_bytes())}
    found = []
    for mount in parse_mountinfo(Path("/proc/self/mountinfo").read_bytes()):
        if mount.fs_type not in {"cgroup", "cgroup2"}:
            continue
        version = 2 if mount.fs_type == "cgroup2" else 1
        for controllers, group in own.items():
            is_its_own = set(controllers) <= set(mount.super_options) if controllers else version == 2
            if not is_its_own or not group.startswith(mount.root):
                continue
            path = os.path.normpath(f"{mount.mount_point}/{group.removeprefix(mount.root)}")
            if os.access(path, os.W_OK | os.X_OK):
                found.append(Hierarchy(path, version, frozenset(controllers)))
    return tuple(found)


@cache
def controllers() -> frozenset[str]:
    """Return the controllers that groups of this user's can have, as cgroup v2 calls them; from the host, not from isolib."""
    found: set[str] = set()
    for one in _usable():
        if one.version == 1:
            found |= {"io" if name == "blkio" else name for name in one.controllers}
            continue
        top = own = Path(one.path)
        while os.access(top.parent / "cgroup.procs", os.W_OK):
            top = top.parent
        if top == own and (top / "cgroup.type").exists():  # this process is in it, so it gives none; only the first group may
            continue
        found |= set((top / "cgroup.controllers").read_text(encoding="ascii").split())
    return frozenset(found)


def is_legacy(name: str) -> bool:
    """Return whether groups of this user's have a controller, called as in cgroup v2, by a hierarchy of cgroup v1."""
    return any(one.version == 1 and {"io": "blkio"}.get(name, name) in one.controllers for one in _usable())


def has_version_2() -> bool:
    """Return whether groups of this user's are in cgroup v2, with controllers or without."""
    return any(one.version == 2 for one in hierarchies())


def needs(*names: str) -> None:
    """Skip the test where this user may make no groups, or none with these controllers."""
    if not hierarchies():
        if "ISOLIB_TEST_NEEDS_GROUPS" in os.environ:
            pytest.fail("this host was to have groups that this user may make, and has none")
        pytest.skip("this host has no cgroups that this user may make")
    for name in names:
        if name not in controllers():
            pytest.skip(f"groups of this user have no {name} controller on this host")


def parents(*, version: int | None = None, controller: str | None = None) -> list[str]:
    """Return the directories to make groups in, or skip the test where the host lets this user make none."""
    paths = [
        one.path
        for one in hierarchies()
        if version in {None, one.version} and (controller is None or controller in one.controllers)
    ]
    if not paths:
        pytest.skip(f"this host has no cgroups of {controller or 'version ' + str(version or 'any')} that this user may make")
    return paths


def left(prefix: str) -> list[str]:
    """Return the groups whose names begin so."""
    return sorted(str(path) for one in hierarchies() for path in Path(one.path).glob(f"{prefix}*"))


def take_away(group: str) -> list[str]:
    """Remove a group once nobody lives in it any more; returns the groups that were below it then, which somebody has left."""
    deadline = time.monotonic() + PATIENCE
    tick = threading.Event()
    while _is_inhabited(group) and time.monotonic() < deadline:
        tick.wait(0.01)
    below = sorted(os.path.join(top, name) for top, names, _ in os.walk(group) for name in names)
    for path in (*reversed(below), group):
        while os.path.exists(path):
            try:
                os.rmdir(path)
            except OSError:  # v1 counts a process for a moment after everybody has been told that it ended
                if time.monotonic() > deadline:
                    raise
                tick.wait(0.01)
    return below


def _is_inhabited(group: str) -> bool:
    """Return whether somebody lives in a group or below it."""
    events = Path(group, "cgroup.events")
    if events.exists():
        return "populated 1" in events.read_text(encoding="ascii")
    for directory, _, _ in os.walk(group):
        with contextlib.suppress(OSError):  # it is being removed
            if Path(directory, "cgroup.procs").read_bytes():
                return True
    return False


def has_ended(pidfd: int) -> bool:
    """Wait for the end of a process, and say whether it came."""
    return bool(select.select([pidfd], [], [], PATIENCE)[0])


def is_running(pidfd: int) -> bool:
    """Say whether a process has not ended."""
    return not select.select([pidfd], [], [], 0)[0]


PRELUDE = """
import os, signal, subprocess, sys
from isolib._kernel import reaper

PREFIX, *PARENTS = sys.argv[1:]
FDS = [os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for path in PARENTS]

def write(path, word):
    with open(path, "w") as file:
        file.write(str(word))

def make(name, below=""):
    for parent in PARENTS:
        os.makedirs(f"{parent}/{PREFIX}{name}{below}")

def group(name, below=""):
    ticket = reaper.entrust(FDS, PREFIX + name)
    make(name, below)
    return ticket

def put(pid, name):
    for parent in PARENTS:
        write(f"{parent}/{PREFIX}{name}/cgroup.procs", pid)

def member(name, *argv):
    waiting = ["sh", "-c", 'read word; exec "$@"', "sh", *(argv or ["sleep", "1000"])]
    process = subprocess.Popen(waiting, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    put(process.pid, name)
    process.stdin.close()  # it does nothing before it is a member
    return process.pid

def tell(*numbers):
    print(*numbers, flush=True)
"""


class Host:
    """A program that has made groups, and its reaper."""

    def __init__(self, prefix: str, process: subprocess.Popen[str], stack: contextlib.ExitStack) -> None:
        self.prefix = prefix
        self.process = process
        self._stack = stack

    def pidfd(self, pid: int) -> int:
        """Return a descriptor of a process that is running."""
        fd = os.pidfd_open(pid)
        self._stack.callback(os.close, fd)
        return fd

    def heard(self) -> list[int]:
        """Return the numbers of the next line that it tells."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the host has failed"
        return [int(number) for number in line.split()]

    def heard_pidfds(self) -> list[int]:
        """Return descriptors of the processes that it tells."""
        return [self.pidfd(pid) for pid in self.heard()]

    def say(self, word: str) -> None:
        """Write a line to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """End it by SIGKILL; one that had ended by itself has failed."""
        self.process.kill()
        assert self.process.wait() == -signal.SIGKILL


@contextlib.contextmanager
def host(body: str, bases: list[str], *prefix: str) -> Iterator[Host]:
    """Run a program that makes groups, as a process of its own; whatever becomes of the test, none of them stays."""
    name = f"isolib-test-{os.getpid()}-{os.urandom(4).hex()}-"
    program = PRELUDE + textwrap.dedent(body)
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    argv = [*prefix, sys.executable, "-c", program, name, *bases]
    with (
        contextlib.ExitStack() as stack,
        subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
    ):
        stack.callback(sweep, name)
        stack.callback(process.kill)
        yield Host(name, process, stack)


def sweep(prefix: str) -> None:
    """Remove what a failed test has left."""
    for group in left(prefix):
        for directory, _, _ in sorted(os.walk(group), reverse=True):
            for file, word in (("freezer.state", "THAWED"), ("cgroup.kill", "1")):
                with contextlib.suppress(OSError):
                    Path(directory, file).write_text(word, encoding="ascii")
            with contextlib.suppress(OSError):
                os.rmdir(directory)
