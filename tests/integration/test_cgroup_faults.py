"""Whatever fails in the life of a group: an exception of isolib's, nothing left, and everything usable afterwards."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import shutil
import subprocess
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TYPE_CHECKING

import pytest

import isolib
from tests import table
from tests.groups import left, parents, sweep
from tests.strace import attached

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.usefixtures("user_namespaces", "warm")


def a_group() -> None:
    """Make a group with limits, and remove it."""
    isolib.new_cgroup(memory_max="64M", pids_max=50).close()


def a_process() -> None:
    """Start a process in a group, and wait for it."""
    with isolib.new_cgroup(pids_max=50) as group, group.spawn(["true"]) as process:
        process.wait(60)


def a_killed_process() -> None:
    """Freeze, thaw and kill a process in a group."""
    with isolib.new_cgroup() as group, group.spawn(["sleep", "100"]):
        with group.frozen():
            pass
        group.kill()


def a_run() -> None:
    """Run a command in a sandbox with limits."""
    isolib.run(["true"], cwd="/tmp", memory="64M", pids=30)


def a_sandbox() -> None:
    """Make a sandbox with limits, and run a command in it."""
    with isolib.Sandbox(cwd="/tmp", memory="64M", pids=30) as box:
        box.run(["true"])


LIVES = (a_group, a_process, a_killed_process, a_run, a_sandbox)


@pytest.fixture
def warm() -> Iterator[None]:
    """Have everything opened that is opened once; what a fault has left is removed after the test."""
    parents()
    for life in LIVES:
        life()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()
    sweep(own())


def own() -> str:
    """Return how the names of this process's groups begin."""
    return f"isolib-{os.getpid()}-"


def refused(life: Callable[[], None]) -> str | None:
    """Return how something failed, if it did; only isolib's own exceptions may come."""
    try:
        life()
    except isolib.IsolibError as error:
        return str(error)
    except ExceptionGroup as several:
        if several.split(isolib.IsolibError)[1] is not None:
            raise
        return str(several)
    return None


def descriptors() -> set[str]:
    """Return the open descriptors."""
    return set(os.listdir("/proc/self/fd"))


@contextlib.contextmanager
def few_descriptors(number: int) -> Iterator[None]:
    """Let this process open only as many more descriptors."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = (one for one in range(before[0]) if not os.path.exists(f"/proc/self/fd/{one}"))
    for _ in range(number):
        next(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next(free), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("life", LIVES, ids=lambda life: str(life.__name__))
def test_too_few_descriptors(life: Callable[[], None]) -> None:
    """With 0, 1, 2 ... free descriptors it fails by an exception of isolib's until it succeeds, and nothing is left."""
    before = descriptors()
    for number in range(200):
        with few_descriptors(number):
            error = refused(life)
        gc.collect()
        check_left(error)
        assert (number, descriptors()) == (number, before)
        life()
        if error is None:
            break
    assert 3 < number < 199


#: Errors that calls really have.
ERRORS = {
    "mkdirat": "ENOSPC",
    "openat": "ENOMEM",
    "write": "EIO",
    "pread64": "EIO",
    "read": "EIO",
    "fcntl": "EMFILE",
    "pidfd_open": "EMFILE",
    "getdents64": "EIO",
}
#: Which calls each life makes, and how many at the least; of directories, one in each hierarchy, and pread where that is v2.
FAULTS = {
    "a_group": {"mkdirat": 1, "openat": 3, "write": 2, "pread64": 0, "read": 1},  # its limits are two
    "a_killed_process": {"mkdirat": 2, "openat": 3, "write": 3, "pread64": 1, "read": 1}
    | {"fcntl": 1, "pidfd_open": 1, "getdents64": 1},
    "a_run": {"mkdirat": 2, "openat": 3, "write": 3, "pread64": 0, "read": 1},
}


def with_a_fault(fault: str, function: Callable[[], str | None]) -> tuple[bool, str | None]:
    """Call a function on a thread of its own in which strace makes a call fail; returns whether that came, and the result."""
    program = shutil.which("strace")
    if program is None:
        pytest.skip("strace is not installed")
    go, numbers = threading.Event(), SimpleQueue[int]()

    def body() -> str | None:
        numbers.put(threading.get_native_id())
        go.wait()
        return function()

    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(body)
        argv = [program, "-s0", f"-einject={fault}", f"-etrace={fault.partition(':')[0]}", "-p", str(numbers.get())]
        with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as strace:
            assert strace.stderr is not None
            ctypes.CDLL(None).prctl(0x59616D61, strace.pid, 0, 0, 0)  # PR_SET_PTRACER, for Yama
            first = strace.stderr.readline()
            go.set()
            pool.shutdown()
            text = strace.stderr.read()  # it ends with the thread
    if b"attached" not in first:
        pytest.skip(f"strace may not attach to this process: {first.decode().strip()}")
    return b"(INJECTED)" in text, result.result()


@pytest.mark.parametrize(("life", "call"), [(life, call) for life, calls in FAULTS.items() for call in calls], ids=str)
def test_a_call_that_fails(life: str, call: str) -> None:
    """Each of its calls of a kind that fails once is an exception of isolib's, or has another way; nothing is left."""
    (one,) = (one for one in LIVES if one.__name__ == life)
    with isolib.new_cgroup(memory_max="64M", pids_max=50) as group:
        hierarchies = len(set(group.paths.values()))
    before = descriptors()
    tried = 0
    while True:
        came, error = with_a_fault(f"{call}:error={ERRORS[call]}:when={tried + 1}", lambda: refused(one))
        if not came:
            break
        tried += 1
        gc.collect()
        check_left(error)
        assert descriptors() == before, (call, tried)
        one()
    assert tried >= max(FAULTS[life][call], hierarchies if call == "mkdirat" else 0)


def test_removal_that_fails() -> None:
    """What cannot be removed is told, hierarchy by hierarchy, and stays entrusted to the reaper."""
    group = isolib.new_cgroup(pids_max=50)
    places = set(group.paths.values())
    with attached("-einject=unlinkat:error=EACCES", "-etrace=unlinkat"):
        error = refused(group.close)
    assert set(left(own())) == places
    assert error is not None
    check_left(error)


def check_left(error: str | None) -> None:
    """Fail unless nothing is left, or what could not be removed was told, and is entrusted to the reaper still."""
    found = {os.path.basename(path) for path in left(own())}
    assert found <= table.names(), error
    assert error is not None or not found
    sweep(own())
    for ticket in list(table.own().live.values()):
        ticket.strike()
