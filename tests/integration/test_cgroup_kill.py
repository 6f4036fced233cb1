"""kill -9 of a host that has control groups: within a second there is no process and no directory of it, in any hierarchy."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from tests.groups import left, parents, sweep
from tests.plans import adopting, children_of
from tests.programs import FORK_BOMB

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("user_namespaces")

HOST = f"""
import os, signal, sys
import isolib
def tell(*words):
    print(*words, flush=True)
FORKS = {FORK_BOMB!r}
"""

#: What hosts do all the time; each begins with a line about its reaper.
LIVES = {
    "groups": """
    while True:
        with isolib.new_cgroup(memory_max="64M", pids_max=50, cpu_max=0.5) as group:
            group.child("below", pids_max=10)
            group.memory.max = "32M"
    """,
    "sleepers": """
    while True:
        with isolib.new_cgroup(pids_max=50) as group:
            for _ in range(3):
                group.spawn(["sh", "-c", "setsid sleep 1000 & sleep 1000"])
            group.kill()
            group.spawn(["true"]).wait()
    """,
    "fork bombs": """
    while True:
        with isolib.new_cgroup(pids_max=60) as group, group.spawn([sys.executable, "-c", FORKS]) as process:
            group.kill()
    """,
    "frozen": """
    while True:
        with isolib.new_cgroup() as group, group.spawn(["sh", "-c", "while :; do sleep 0; done"]):
            with group.frozen():
                group.is_frozen
            group.freeze()
    """,
    "run": """
    while True:
        isolib.run(["sh", "-c", "sleep 1000 & setsid sleep 1000 & sleep 0.005"], cwd="/tmp", memory="64M", pids=30)
    """,
    "sandbox": """
    while True:
        with isolib.Sandbox(cwd="/tmp", memory="64M", pids=30) as box:
            box.popen(["sleep", "1000"])
            box.run(["sh", "-c", "setsid sleep 1000 & exit 0"])
            box.freeze()
            box.thaw()
    """,
}


@contextmanager
def running(program: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program as a host of its own."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    argv = [sys.executable, "-c", HOST + textwrap.dedent(program), *arguments]
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            sweep(f"isolib-{process.pid}-")


def check_end(host: subprocess.Popen[bytes], where: object) -> None:
    """Kill a host, which must not have ended by itself, and fail unless all is gone within a second."""
    prefix = f"isolib-{host.pid}-"
    host.kill()
    assert host.wait() == -signal.SIGKILL, where
    deadline = time.monotonic() + 1
    tick = threading.Event()
    while (left(prefix) or adopted()) and time.monotonic() < deadline:
        tick.wait(0.005)
    assert (left(prefix), adopted()) == ([], []), where


def adopted() -> list[int]:
    """Reap who has ended, and return who has not: all that the host has left came to this process."""
    found = []
    for pid in children_of(os.getpid()):
        with suppress(ChildProcessError):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is None:
                found.append(pid)
    return found


@pytest.mark.parametrize("life", LIVES)
def test_killed_at_any_moment(life: str) -> None:
    """Whatever a host does with groups, and whenever it is killed, nothing of it is there a second later."""
    parents()
    assert adopted() == []
    begin = "isolib.new_cgroup().close()\ntell('ready')\n"
    choose = random.Random(life)  # noqa: S311 - no secret
    with adopting():
        for _ in range(12):
            moment = choose.uniform(0, 0.2)
            with running(begin + textwrap.dedent(LIVES[life])) as host:
                assert host.stdout is not None
                assert host.stdout.readline() == b"ready\n"
                threading.Event().wait(moment)
                check_end(host, (life, moment))


# Each turn is a fork, which is a host with a reaper of its own, and kills itself at the next point where Python calls or
# returns from something that handles groups.  What it leaves is adopted here: when nobody is left, nothing may be.
AT_EVERY_CALL = """
import ctypes, json, time
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
import isolib.cgroups.make as make
ROOT = os.path.dirname(isolib.__file__)
OURS = tuple(f"{ROOT}/{part}" for part in ("cgroups/", "_kernel/", "process.py", "oneshot.py", "sandbox.py"))
PARENTS = json.loads(sys.argv[1])
START, STEP = int(sys.argv[2]), int(sys.argv[3])

def life():
    with isolib.new_cgroup(memory_max="64M", pids_max=50) as group:
        with group.spawn(["sh", "-c", "setsid sleep 1000 & sleep 1000"]):
            pass
        with group.frozen():
            pass
    isolib.run(["true"], cwd="/tmp", pids=20)

life()

def turn(points):
    def profile(frame, event, what):
        nonlocal points
        if frame.f_code.co_filename.startswith(OURS):
            points -= 1
            if points == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.setprofile(profile)
    life()
    sys.setprofile(None)

def groups_of(pid):
    return [name for parent in PARENTS for name in os.listdir(parent) if name.startswith(f"isolib-{pid}-")]

own = isolib._kernel.reaper.pid()
bad, points, tried, ended = [], START, 0, False
while not ended:
    child = os.fork()
    if not child:
        turn(points)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    ended = code != -signal.SIGKILL
    if code not in (0, -signal.SIGKILL):
        bad.append([points, f"it ended with {code}", []])
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        pid = os.waitpid(-1, os.WNOHANG)[0]
        if pid == 0:
            children = [word for task in os.listdir("/proc/self/task") for word in
                        open(f"/proc/self/task/{task}/children").read().split()]
            if children == [str(own)] and not groups_of(child):
                break
            time.sleep(0.002)
    else:
        bad.append([points, groups_of(child), children])
    tried += 1
    points += STEP
tell(json.dumps([tried, bad]))
"""


@pytest.mark.parametrize("starts", [(1,), *(pytest.param((one, one + 1), marks=pytest.mark.slow) for one in range(2, 14, 2))])
def test_killed_at_every_call(starts: tuple[int, ...]) -> None:
    """SIGKILL at the calls by which a host makes, fills, freezes and removes groups leaves no group and no process."""
    with ExitStack() as stack:
        # Two at once: each waits as much as it computes.
        drivers = [stack.enter_context(running(AT_EVERY_CALL, json.dumps(parents()), str(one), "13")) for one in starts]
        for driver in drivers:
            assert driver.stdout is not None
            tried, bad = json.loads(driver.stdout.readline())
            assert bad == []
            assert tried > 100
