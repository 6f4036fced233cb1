"""Hosts that fork, ignore their children, or are interrupted by signals all the time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import warnings
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib import PIPE, Sandbox, spawn
from isolib import namespaces as ns
from tests.strace import attached
from tests.threads import here

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("user_namespaces")


def in_a_fork(action: Callable[[], object]) -> None:
    """Call something in a fork of this process, which then ends without more ado."""
    child = os.fork()
    if not child:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                action()
        finally:
            os._exit(0)
    os.waitpid(child, 0)


@pytest.mark.parametrize("action", [Sandbox.close, Sandbox.kill, Sandbox.__del__])
def test_sandbox_in_a_fork(action: Callable[[Sandbox], None]) -> None:
    """A fork's copy of a sandbox does nothing to the sandbox, whether it is closed, killed or forgotten."""
    with Sandbox(cwd="/tmp") as box:
        in_a_fork(lambda: action(box))
        assert box.run(["echo", "alive"]).stdout == b"alive\n"


FORKING = """
import multiprocessing, os, select, sys
import isolib

def work(pipe):
    box = isolib.Sandbox(cwd="/tmp")
    box.open()
    plain = isolib.spawn(["sleep", "1000"])
    inside = isolib.spawn(["sleep", "1000"], new={"user", "pid"})
    pipe.send([plain.pid, inside.pid, box.popen(["sleep", "1000"]).pid])
    pipe.recv()
    os._exit(0)  # as a worker of multiprocessing ends: no atexit, no finalizer

if __name__ == "__main__":
    for method in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        ours, theirs = context.Pipe()
        worker = context.Process(target=work, args=[theirs])
        worker.start()
        pidfds = [os.pidfd_open(pid) for pid in ours.recv()]
        ours.send("go")
        worker.join()
        print(method, [bool(select.select([fd], [], [], 10)[0]) for fd in pidfds])
"""


def test_workers_of_multiprocessing(tmp_path: Path) -> None:
    """A worker process that ends without closing anything leaves nothing, however it was started."""
    program = tmp_path / "forking.py"
    program.write_text(FORKING)
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    done = subprocess.run([sys.executable, program], env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.splitlines() == [f"{name} [True, True, True]" for name in ("fork", "spawn", "forkserver")], done.stderr


def test_namespaces_where_children_are_not_waited_for() -> None:
    """Namespaces of every kind are made where SIGCHLD is ignored, and the maker can start threads and programs afterwards."""
    makers: list[Callable[[], ns.Namespace]] = [ns.new_netns, ns.new_utsns, ns.new_ipcns, ns.new_cgroupns, ns.new_mntns]
    makers += [ns.new_pidns, ns.new_userns, *([ns.new_timens] if os.path.exists("/proc/self/ns/time") else [])]

    def links() -> dict[str, str]:
        return {name: os.readlink(f"/proc/thread-self/ns/{name}") for name in os.listdir("/proc/thread-self/ns")}

    before = links()
    old = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        for make in makers:
            with closing(make()) as namespace, namespace.spawn(["sh", "-c", "exit 3"]) as process:
                assert process.wait(60).code == 3
                started = threading.Thread(target=lambda: None)
                started.start()
                started.join()
    finally:
        signal.signal(signal.SIGCHLD, old)
    assert links() == before
    assert subprocess.run(["true"], check=False).returncode == 0


@pytest.mark.parametrize("new", [set(), {"user", "pid"}], ids=["plain", "inside"])
def test_children_that_are_gone_at_once(new: set[str]) -> None:
    """Where SIGCHLD is ignored, a process of the launch that has ended before it could be watched is no failure."""
    with attached("-einject=pidfd_open:delay_enter=100000", "-etrace=pidfd_open") as trace:
        old = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        try:
            with spawn(["sh", "-c", "exit 7"], new=new) as process:
                assert process.wait(60).code == 7
        finally:
            signal.signal(signal.SIGCHLD, old)
    assert "(DELAYED)" in trace.text()


def test_waits_go_on_after_signals() -> None:
    """A host whose signal handler runs every half millisecond gets the whole of every output and the right statuses."""
    handled = 0

    def handle(_: int, __: object) -> None:
        nonlocal handled
        handled += 1

    seen = set()
    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 5e-4, 5e-4)
    try:
        for _ in range(10):
            with spawn(["sh", "-c", "cat; sleep 0.01; exit 5"], new={"user", "pid"}, stdin=PIPE, stdout=PIPE) as process:
                out, _ = process.communicate(bytes(1_000_000), timeout=60)
                seen.add((len(out or b""), process.wait().code))
            done = isolib.run(["sh", "-c", "sleep 0.01; echo x; exit 4"], cwd="/tmp")
            seen.add((len(done.stdout), done.returncode))
        with Sandbox(cwd="/tmp") as box:
            seen |= {(len(box.run(["echo", "yes"]).stdout), 0) for _ in range(10)}
        with closing(ns.new_userns()) as namespace:
            assert namespace.id != here("user")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert handled
    assert seen == {(1_000_000, 5), (2, 4), (4, 0)}
