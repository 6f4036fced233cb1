"""Many spawns at once, in a busy host, in an event loop, in a kernel of Jupyter, beside other reapers: no hang, no leak."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isolib import PIPE, spawn
from tests.programs import in_notebook

if TYPE_CHECKING:
    from collections.abc import Iterator

THREADS = 64
SPAWNS = 200
NAMESPACES = {"user", "pid", "mnt", "ipc", "uts"}


def zombies() -> int:
    """Count the zombies that a launcher left to whoever adopted it."""
    count = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_bytes()
            except OSError:
                continue
            count += b"(isolib-init) Z" in stat
    return count


def census() -> dict[str, int]:
    """Count what a leak would add to."""
    task = Path("/proc/self/task")
    children = 0
    tasks = os.listdir(task)
    for name in tasks:
        try:
            children += len((task / name / "children").read_text(encoding="ascii").split())
        except FileNotFoundError:  # a thread that has been joined but is still on its way out
            continue
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "mounts": len(Path("/proc/self/mountinfo").read_bytes().splitlines()),
        "threads": threading.active_count(),
        "tasks": len(tasks),
        "children": children,
        "zombies": zombies(),
    }


def assert_unchanged(before: dict[str, int]) -> None:
    """Fail unless the counts come back: init reaps orphans, and the kernel ends threads, in their own time."""
    settled = threading.Event()
    for _ in range(500):
        after = census()
        if after | {"zombies": 0} == before | {"zombies": 0} and after["zombies"] <= before["zombies"]:
            return
        settled.wait(0.02)
    assert census() == before


@contextmanager
def busy_host() -> Iterator[None]:
    """Keep eight threads busy: four in pure Python, four in getaddrinfo, whose locks a fork would copy."""
    end = threading.Event()

    def compute() -> None:
        total = 0
        while not end.is_set():
            total += sum(range(200))

    def resolve() -> None:
        while not end.is_set():
            socket.getaddrinfo("localhost", 80)

    threads = [threading.Thread(target=target) for target in (compute, resolve) * 4]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        end.set()
        for thread in threads:
            thread.join()


def spawn_some(worker: int, count: int) -> list[tuple[int, int | None, bytes]]:
    """Run commands whose status and output tell which one each was."""
    results = []
    for index in range(count):
        code = (worker * 7 + index) % 256
        new = NAMESPACES if index % 10 == 0 else {"user", "pid"} if index % 2 else set()
        with spawn(["sh", "-c", f"echo {worker}.{index}; exit {code}"], new=new, stdout=PIPE) as process:
            out, _ = process.communicate(timeout=300)
            results.append((code, process.wait(300).code, out or b""))
            assert out == f"{worker}.{index}\n".encode()
    return results


@pytest.mark.slow
def test_64_threads_in_a_busy_host() -> None:
    """64 threads x 200 spawns beside 8 busy threads: every status and output right, and the host as it was."""
    spawn_some(0, 1)
    before = census()
    with busy_host(), ThreadPoolExecutor(THREADS) as pool:
        results = [one for some in pool.map(lambda worker: spawn_some(worker, SPAWNS), range(THREADS)) for one in some]
    assert len(results) == THREADS * SPAWNS
    assert [one for one in results if one[0] != one[1]] == []
    assert_unchanged(before)


@pytest.mark.slow
def test_sigchld_ignored() -> None:
    """Where the host ignores SIGCHLD, and so has its children reaped by the kernel, statuses are right all the same."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        results = spawn_some(1, 100)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert [one for one in results if one[0] != one[1]] == []


@pytest.mark.slow
def test_beside_a_thread_that_reaps_everything() -> None:
    """Another thread in os.waitpid(-1, 0) gets its own child and none of ours, and our statuses are right."""
    reaped: list[int] = []
    end = threading.Event()

    def reap() -> None:
        while not end.is_set():
            try:
                reaped.append(os.waitpid(-1, 0)[0])
            except ChildProcessError:
                end.wait(0.001)

    thread = threading.Thread(target=reap)
    thread.start()
    try:
        own = os.posix_spawn("/bin/true", ["true"], {})
        results = spawn_some(2, 200)
    finally:
        end.set()
        thread.join()
    assert [one for one in results if one[0] != one[1]] == []
    assert reaped == [own]


def test_inside_a_running_loop() -> None:
    """spawn() works inside a coroutine and in the loop's thread pool; asyncio's own children are not disturbed."""

    async def main() -> None:
        own = await asyncio.create_subprocess_exec("sh", "-c", "sleep 0.2; exit 5")
        assert spawn_some(3, 5)
        results = await asyncio.gather(*(asyncio.to_thread(spawn_some, worker, 10) for worker in range(16)))
        assert all(wanted == got for some in results for wanted, got, _ in some)
        assert await own.wait() == 5

    asyncio.run(main())


def test_event_loop_hears_of_the_end() -> None:
    """The pidfd that fileno() returns can be watched by a loop, and poll() knows the end when it is readable."""

    async def main() -> int | None:
        with spawn(["sh", "-c", "sleep 0.1; exit 9"], new={"user", "pid"}) as process:
            ended = asyncio.Event()
            loop = asyncio.get_running_loop()
            loop.add_reader(process.fileno(), ended.set)
            await asyncio.wait_for(ended.wait(), 60)
            loop.remove_reader(process.fileno())
            end = process.poll()
            assert end is not None
            return end.code

    assert asyncio.run(main()) == 9


NOTEBOOK = """
import asyncio, isolib
results = []
for code in range(5):
    with isolib.spawn(["sh", "-c", f"echo {code}; exit {code}"], new={"user", "pid"}, stdout=isolib.PIPE) as process:
        out, _ = process.communicate(timeout=60)
        results.append((code, process.wait().code, out))
assert all(a == b for a, b, _ in results), results
assert asyncio.get_running_loop().is_running()
print("done", len(results))
"""


@pytest.mark.slow
def test_inside_a_jupyter_kernel() -> None:
    """The cells of a notebook run in a loop that is running; spawn() works there."""
    assert in_notebook(NOTEBOOK)[0][0]["text"] == "done 5\n"


def test_after_a_fork_the_child_has_its_own() -> None:
    """A forked copy of a process handle does nothing to the parent's process; the child can spawn by itself."""
    with spawn(["sh", "-c", "read x; exit 6"], stdin=PIPE) as process:
        program_end = os.fork()
        if program_end == 0:
            status = 1
            try:
                process.close()
                with spawn(["sh", "-c", "exit 0"]) as own:
                    status = 0 if own.wait(60).code == 0 else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(program_end, 0)[1]) == 0
        assert process.poll() is None
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.close()
        assert process.wait(60).code == 6
