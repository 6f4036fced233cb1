"""Control groups in odd and busy hosts: threads, loops, notebooks, forks, subreapers, groups that were killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib import PIPE, Reason
from tests.groups import PATIENCE, hierarchies, left
from tests.plans import children_of
from tests.programs import in_notebook

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("user_namespaces", "groups")


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep threads computing."""
    end = threading.Event()

    def compute() -> None:
        while not end.is_set():
            sum(range(200))

    threads = [threading.Thread(target=compute) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        end.set()
        for thread in threads:
            thread.join()


def in_a_host(program: str, *prefix: str) -> str:
    """Run a program as a host of its own; returns what it prints."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    argv = [*prefix, sys.executable, "-W", "error", "-c", textwrap.dedent(program)]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=180)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


# ---- threads ----


def test_many_threads_in_one_group() -> None:
    """16 threads start processes in one group at once: every status is right, and no place of one is left."""

    def one(number: int) -> tuple[int | None, bytes | None, Reason]:
        with group.spawn(["sh", "-c", f"echo {number}; exit {number % 200}"], stdout=PIPE) as process:
            out, _ = process.communicate(timeout=300)
            end = process.wait(300)
            return end.code, out, end.reason

    with isolib.new_cgroup(pids_max=200) as group:
        with busy(2), ThreadPoolExecutor(16) as pool:
            results = list(pool.map(one, range(160)))
        assert results == [(number % 200, f"{number}\n".encode(), Reason.EXITED) for number in range(160)]
        assert group.pids() == []
        spare = 1  # for the next one
        for path in set(group.paths.values()):
            assert len([name for name in os.listdir(path) if os.path.isdir(f"{path}/{name}")]) <= spare


def test_many_threads_where_there_is_room_for_few() -> None:
    """Where the limit lets few live at once, who finds no room is told, and the others are right."""

    def one(_: int) -> int | str | None:
        try:
            with group.spawn(["sh", "-c", "exit 5"]) as process:
                return process.wait(300).code
        except isolib.SetupFailed as error:
            assert "pids.max" in str(error)  # noqa: PT017 - others succeed meanwhile
            return "refused"

    with isolib.new_cgroup(pids_max=6) as group:
        with ThreadPoolExecutor(16) as pool:
            found = set(pool.map(one, range(96)))
        assert found <= {5, 2, "refused"}  # 2: the shell has found no room
        assert 5 in found
        assert found & {2, "refused"}
        assert group.pids() == []


def test_many_limited_runs() -> None:
    """64 runs with limits, at once and beside threads that compute, have each its own output and status."""

    def one(number: int) -> tuple[int, bytes]:
        done = isolib.run(["sh", "-c", f"echo {number}; exit {number}"], cwd="/tmp", memory="64M", pids=20)
        return done.returncode, done.stdout

    with busy(2), ThreadPoolExecutor(64) as pool:
        assert list(pool.map(one, range(64))) == [(number, f"{number}\n".encode()) for number in range(64)]
    assert left(f"isolib-{os.getpid()}-") == []


# ---- loops ----


def test_inside_a_running_loop() -> None:
    """Groups are made and used in a coroutine, and in the threads of its loop."""

    def some(number: int) -> int | None:
        with isolib.new_cgroup(pids_max=20) as group, group.spawn(["sh", "-c", f"exit {number}"]) as process:
            return process.wait(60).code

    async def main() -> None:
        own = await asyncio.create_subprocess_exec("sh", "-c", "sleep 0.2; exit 5")
        assert some(7) == 7
        assert isolib.run(["true"], cwd="/tmp", memory="64M").returncode == 0
        assert await asyncio.gather(*(asyncio.to_thread(some, number) for number in range(32))) == list(range(32))
        assert await own.wait() == 5

    asyncio.run(main())


NOTEBOOK = """
import isolib
with isolib.new_cgroup(pids_max=20) as group, group.spawn(["sh", "-c", "exit 3"]) as process:
    codes = [process.wait(60).code]
codes.append(isolib.run(["sh", "-c", "exit 4"], cwd="/tmp", memory="64M").returncode)
print("done", codes)
"""


@pytest.mark.slow
def test_inside_a_jupyter_kernel() -> None:
    """Groups work in the cells of a notebook."""
    assert in_notebook(NOTEBOOK)[0][0]["text"] == "done [3, 4]\n"


# ---- children ----


def test_children_are_not_waited_for() -> None:
    """Where SIGCHLD is ignored, statuses and reasons are right all the same."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with isolib.new_cgroup(pids_max=30) as group:
            for code in range(10):
                with group.spawn(["sh", "-c", f"setsid sleep 1000 & exit {code}"]) as process:
                    assert process.wait(60).code == code
            with group.spawn(["sleep", "1000"]) as process:
                group.kill()
                assert process.wait(60).reason is Reason.KILLED
        assert isolib.run(["sh", "-c", "exit 3"], cwd="/tmp", pids=20).returncode == 3
    finally:
        signal.signal(signal.SIGCHLD, before)


SUBREAPER = """
import ctypes, os, isolib
isolib.new_cgroup().close()
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
with isolib.new_cgroup(pids_max=50) as group:
    with group.spawn(["sh", "-c", "setsid sleep 1000 & sleep 1000 & exit 3"]) as process:
        print(process.wait(60).code)
    with group.spawn(["sleep", "1000"]) as process:
        group.kill()
        print(process.wait(60).reason.value)
print(isolib.run(["sh", "-c", "setsid sleep 1000 & exit 4"], cwd="/tmp", pids=20).returncode)
with isolib.Sandbox(cwd="/tmp", pids=30) as box:
    one = box.popen(["sh", "-c", "setsid sleep 1000 & sleep 1000"])
    box.freeze()
    one.kill()
    print(one.wait(60).reason.value)
    box.thaw()
    print(box.run(["echo", "on"]).stdout)
"""


def test_host_that_adopts() -> None:
    """A host that is a child subreaper, as PID 1 of a container is, waits for nobody for ever: not for who died in groups."""
    assert in_a_host(SUBREAPER).split() == ["3", "killed", "4", "killed", "b'on\\n'"]


@pytest.mark.root
def test_host_that_is_pid_1() -> None:
    """The same where the host is PID 1 of a pid namespace and waits for no orphan."""
    prefix = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    assert in_a_host(SUBREAPER, *prefix).split() == ["3", "killed", "4", "killed", "b'on\\n'"]


FORK = """
import os, isolib, warnings
warnings.simplefilter("ignore")
group = isolib.new_cgroup(pids_max=50)
process = group.spawn(["sleep", "1000"])
box = isolib.Sandbox(cwd="/tmp", pids=30)
box.open()
inside = box.popen(["sleep", "1000"])
places = set(group.paths.values()) | set(box.cgroup.paths.values())
frozen = group.frozen()
child = os.fork()
if not child:
    status = 1
    try:
        own = isolib.new_cgroup(pids_max=20)
        with own.spawn(["sh", "-c", "exit 3"]) as mine:
            assert mine.wait(60).code == 3
        assert isolib.run(["true"], cwd="/tmp", pids=20).returncode == 0
        process.close(); group.close(); box.close()
        with open("/dev/null"):
            status = 0
    finally:
        os._exit(status)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert process.poll() is None and inside.poll() is None
assert all(map(os.path.isdir, places)), places
print(process.pid in group.pids(), box.run(["echo", "on"]).stdout, child)
with group.spawn(["sh", "-c", "exit 6"]) as other:
    assert other.wait(60).code == 6
box.close(); process.close(); group.close()
assert not any(map(os.path.isdir, places)), places
"""


def test_fork_of_a_host_with_groups() -> None:
    """A fork's copies of groups do nothing, it makes groups of its own, and its end removes those and no others."""
    alive, out, child = in_a_host(FORK).split()
    assert (alive, out) == ("True", "b'on\\n'")
    tick = threading.Event()
    for _ in range(500):
        if not left(f"isolib-{child}-"):
            break
        tick.wait(0.01)
    assert left(f"isolib-{child}-") == []


# ---- a kernel fault: CLONE_INTO_CGROUP and groups that were killed once ----

BORN = """
import isolib
for _ in range(2):
    with isolib.new_cgroup(pids_max=30) as group:
        for code in (3, 4):
            with group.spawn(["sh", "-c", f"exit {code}"]) as process:
                print(process.wait(60).code)
        with group.spawn(["sleep", "1000"]) as process:
            group.kill()
            group.kill()
            print(process.wait(60).reason.value)
        with group.spawn(["grep", "-c", group.name, "/proc/self/cgroup"], stdout=isolib.PIPE) as process:
            print(int(process.communicate()[0]) == len(set(group.paths.values())))
    print(isolib.run(["sh", "-c", "exit 5"], cwd="/tmp", pids=20).returncode)
with isolib.Sandbox(cwd="/tmp", pids=30) as box:
    print(box.run(["sh", "-c", "exit 6"]).returncode)
    print(box.run(["sh", "-c", "exit 7"]).returncode)
"""


def is_populated(path: str) -> bool:
    """Return whether somebody lives in a group."""
    with open(f"{path}/cgroup.events", encoding="ascii") as file:
        return "populated 1" in file.read()


@pytest.fixture
def once_killed() -> Iterator[str]:
    """Return a group of v2 to which cgroup.kill was written once."""
    above = next((one.path for one in hierarchies() if one.version == 2), None)
    if above is None:
        pytest.skip("this host has no cgroup v2 that this user may use")
    path = f"{above}/isolib-test-{os.getpid()}-killed"
    os.mkdir(path)
    try:
        with open(f"{path}/cgroup.kill", "w", encoding="ascii") as file:
            file.write("1")
        yield path
    finally:
        tick = threading.Event()
        for _ in range(PATIENCE * 100):  # the reaper of a host that has ended is there for a moment more
            if not is_populated(path):
                break
            tick.wait(0.01)
        os.rmdir(path)


def test_host_in_a_group_that_was_killed_once(once_killed: str) -> None:
    """Some kernels kill whoever a member of such a group clones into another: there is another way, and all works by it."""
    prefix = ["sh", "-c", f'echo 0 > {once_killed}/cgroup.procs && exec "$@"', "sh"]
    words = in_a_host(BORN, *prefix).split()
    once = ["3", "4", "killed", "True", "5"]
    assert words == [*once, *once, "6", "7"]


def test_no_child_of_ours() -> None:
    """What lives in a group is no child of the host."""
    before = set(children_of(os.getpid()))
    with isolib.new_cgroup() as group, closing(group.spawn(["sleep", "100"])):
        assert set(children_of(os.getpid())) == before
