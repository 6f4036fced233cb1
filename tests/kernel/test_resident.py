"""Functions that run on a thread which lives in a namespace."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
import weakref
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import pytest

from isolib import ClosedError, IsolibError, PermissionDenied, ThreadStranded
from isolib import namespaces as ns
from isolib._kernel import calls
from tests.threads import give_privileges_up, here, in_a_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.root


@pytest.fixture
def one() -> Iterator[ns.NetNS]:
    """Return a network namespace."""
    with closing(ns.new_netns()) as namespace:
        yield namespace


@pytest.fixture
def two() -> Iterator[ns.NetNS]:
    """Return another network namespace."""
    with closing(ns.new_netns()) as namespace:
        yield namespace


@pytest.mark.parametrize("kind", ["net", "uts", "ipc", "cgroup", "mnt"])
def test_function_runs_inside(kind: str) -> None:
    """The function runs inside, its arguments and its result are the objects themselves, and the caller stays outside."""
    before = here(kind)
    given = object()
    with closing(getattr(ns, f"new_{kind}ns")()) as namespace:
        assert namespace.run(here, kind) == namespace.id
        assert namespace.run(lambda *a, **k: (a, k), given, x=given) == ((given,), {"x": given})
        assert here(kind) == before


def test_exception_comes_back_with_its_traceback(one: ns.NetNS) -> None:
    """What the function raises is raised in the caller, and the traceback leads to the line that raised it."""
    error = LookupError("inside")

    def deep() -> None:
        raise error

    with pytest.raises(LookupError) as caught:
        one.run(deep)
    assert caught.value is error
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names[0] == "test_exception_comes_back_with_its_traceback"
    assert names[-1] == "deep"
    assert "perform" not in names


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration])
def test_any_exception_comes_back(one: ns.NetNS, error: type[BaseException]) -> None:
    """Also what ends a thread or a program elsewhere is only the outcome of the call; the thread goes on."""

    def raise_it() -> None:
        raise error

    with pytest.raises(error):
        one.run(raise_it)
    assert one.run(here) == one.id


def test_same_thread_serves_all_calls(one: ns.NetNS, two: ns.NetNS) -> None:
    """A handle has one thread, started by its first call, and it is not the caller's."""
    threads = {one.run(threading.get_native_id) for _ in range(5)}
    assert len(threads) == 1
    assert threads != {threading.get_native_id()}
    assert one.run(lambda: threading.current_thread().name) == f"isolib net:[{one.id}]"
    assert two.run(threading.get_native_id) not in threads


def test_concurrent_callers_queue(one: ns.NetNS) -> None:
    """Calls of many threads run one after the other, and everybody gets his own result."""
    running = []
    results = {}

    def job(number: int) -> int:
        running.append(number)
        assert len(running) == 1
        time.sleep(0.0001)
        running.remove(number)
        return number

    def caller(start: int) -> None:
        for number in range(start, start + 20):
            results[number] = one.run(job, number)

    threads = [threading.Thread(target=caller, args=(start,)) for start in range(0, 400, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: number for number in range(400)}


def test_context_variables_are_the_callers(one: ns.NetNS) -> None:
    """The function sees the caller's context variables; what it sets stays with it."""
    variable = contextvars.ContextVar("variable", default="default")
    variable.set("caller's")
    assert one.run(variable.get) == "caller's"
    one.run(variable.set, "function's")
    assert variable.get() == "caller's"


def test_nested_call_runs_directly(one: ns.NetNS, two: ns.NetNS) -> None:
    """A function may call run() of its own namespace, and of others."""
    assert one.run(lambda: one.run(one.run, here)) == one.id
    assert one.run(lambda: (two.run(here), here())) == (two.id, one.id)
    assert one.run(lambda: _enter(two)) == (two.id, one.id)


def _enter(namespace: ns.NetNS) -> tuple[int, int]:
    with namespace.entered():
        inside = here()
    return inside, here()


def test_circle_is_an_error(one: ns.NetNS, two: ns.NetNS) -> None:
    """Two threads that would wait for each other for ever raise instead, and go on."""
    with pytest.raises(IsolibError, match="would wait for itself"):
        one.run(lambda: two.run(lambda: one.run(here)))
    assert (one.run(here), two.run(here)) == (one.id, two.id)


def test_circle_of_two_callers_is_an_error(one: ns.NetNS, two: ns.NetNS) -> None:
    """Two callers who cross each other's way do not deadlock: at least one of them gets an error."""
    barrier = threading.Barrier(2)
    outcomes: list[object] = []

    def caller(first: ns.NetNS, second: ns.NetNS) -> None:
        try:
            outcomes.append(first.run(lambda: (barrier.wait(10), second.run(here))[1]))
        except IsolibError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=caller, args=pair) for pair in ((one, two), (two, one))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert any(isinstance(each, IsolibError) for each in outcomes)
    assert (one.run(here), two.run(here)) == (one.id, two.id)


def test_thread_is_where_its_namespace_says(one: ns.NetNS) -> None:
    """The thread is in no namespace but its own, even when the first call is made inside others."""
    before = here("uts")
    with ns.new_utsns(hostname="inside") as uts, ns.new_netns():
        assert here("uts") == uts.id
        assert one.run(here) == one.id
        assert one.run(here, "uts") == before


def test_mount_namespace_has_its_own_directory(tmp_path: os.PathLike[str]) -> None:
    """In a mount namespace the function has its own root, working directory and umask; the caller's do not change."""
    directory, mask = os.getcwd(), os.umask(0o22)
    os.umask(mask)
    with ns.new_mntns() as namespace:
        assert namespace.run(os.getcwd) == "/"
        namespace.run(os.chdir, tmp_path)
        namespace.run(os.umask, 0o77)
        namespace.run(calls.mount, "tmpfs", os.fspath(tmp_path), "tmpfs", 0)
        assert namespace.run(os.getcwd) == os.fspath(tmp_path)
        assert not os.path.ismount(tmp_path)
    assert os.getcwd() == directory
    assert os.umask(mask) == mask


def test_close_ends_the_thread(one: ns.NetNS) -> None:
    """When close() returns, the thread has left the namespace and has ended."""
    one.run(here)
    names = [thread.name for thread in threading.enumerate()]
    one.close()
    assert len([thread.name for thread in threading.enumerate()]) == len(names) - 1
    with pytest.raises(ClosedError):
        one.run(here)


def test_close_waits_for_what_runs(one: ns.NetNS) -> None:
    """Calls that were made before close() are served to their end."""
    started, go = threading.Event(), threading.Event()
    results = []

    def job() -> int:
        started.set()
        go.wait()
        return here()

    slow = threading.Thread(target=lambda: results.append(one.run(job)))
    slow.start()
    started.wait()
    closer = threading.Thread(target=one.close)
    closer.start()
    go.set()
    closer.join()
    slow.join()
    assert results == [one.id]


def test_function_may_close_its_handle(one: ns.NetNS) -> None:
    """A function that closes the handle whose thread it runs on gets to its end."""

    def job() -> int:
        one.close()
        return here()

    assert one.run(job) == one.id
    assert one.closed


def test_forgotten_handle_ends_its_thread() -> None:
    """The thread does not keep its handle alive, and ends with it."""
    namespace = ns.new_netns()
    tid = namespace.run(threading.get_native_id)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del namespace
        gc.collect()
    assert tid not in {thread.native_id for thread in threading.enumerate()}


def test_arguments_are_not_kept(one: ns.NetNS) -> None:
    """While the thread waits for the next call it keeps nothing of the last one."""

    class Thing:
        pass

    for function in (id, lambda thing: thing, lambda thing: thing / 0):
        thing = Thing()
        trace = weakref.ref(thing)
        with suppress(TypeError):
            one.run(function, thing)
        del thing
        gc.collect()
        assert trace() is None


def test_interrupted_caller(one: ns.NetNS) -> None:
    """A caller who is interrupted waits no longer, and then neither does close(); the function goes on to its end."""
    go, done = threading.Event(), threading.Event()

    def job() -> None:
        go.wait()
        done.set()

    old = signal.signal(signal.SIGALRM, _raise_interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            one.run(job)
    finally:
        signal.signal(signal.SIGALRM, old)
    one.close()
    assert not done.is_set()
    go.set()
    assert done.wait(10)


def _raise_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_deserted_call_is_not_made(one: ns.NetNS) -> None:
    """A call whose caller was interrupted before its turn came is not made."""
    started, go = threading.Event(), threading.Event()
    called: list[int] = []

    def job() -> None:
        started.set()
        go.wait()

    slow = threading.Thread(target=one.run, args=(job,))
    slow.start()
    started.wait()
    old = signal.signal(signal.SIGALRM, _raise_interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            one.run(called.append, 1)
    finally:
        signal.signal(signal.SIGALRM, old)
    go.set()
    slow.join()
    assert one.run(here) == one.id
    assert not called


def test_thread_that_does_not_come_back_is_replaced(one: ns.NetNS, two: ns.NetNS) -> None:
    """A function that strands the thread, or leaves it in another namespace, spoils no further call."""

    def strand() -> None:
        stay = two.entered()
        stay.__enter__()
        give_privileges_up()
        with pytest.raises(ThreadStranded):
            stay.__exit__(None, None, None)

    kept: list[object] = []

    def leave_inside() -> None:
        stay = two.entered()
        stay.__enter__()
        kept.append(stay)

    for spoil in (strand, leave_inside):
        first = one.run(threading.get_native_id)
        one.run(spoil)
        assert one.run(here) == one.id
        assert one.run(threading.get_native_id) != first
    with pytest.raises(ThreadStranded):
        kept[0].__exit__(None, None, None)  # type: ignore[attr-defined]


def test_thread_without_privileges_gets_a_reason(one: ns.NetNS) -> None:
    """When the thread may not enter, the caller gets the reason, and nothing is left of it."""

    def worker() -> None:
        give_privileges_up()
        for _ in range(2):
            with pytest.raises(PermissionDenied, match=r"spawn\(\)"):
                one.run(here)

    in_a_thread(worker)
    assert one.run(here) == one.id


def test_from_an_event_loop(one: ns.NetNS, two: ns.NetNS) -> None:
    """In an event loop, run() concerns no other task, and may be given to threads."""

    async def main() -> list[int]:
        before = here()
        jobs = [asyncio.to_thread(each.run, here) for each in (one, two) * 10]
        numbers = await asyncio.gather(*jobs)
        assert here() == before
        return numbers

    assert asyncio.run(main()) == [one.id, two.id] * 10


def test_server_inside_and_client_outside(one: ns.NetNS) -> None:
    """A socket that was opened inside works outside, and belongs to the namespace."""
    with one.run(socket.create_server, ("127.0.0.1", 80)) as server:
        assert one.run(_connect, server) == ("127.0.0.1", 80)
        with socket.socket() as client, pytest.raises(OSError, match=r"refused|unreachable"):
            client.connect(("127.0.0.1", 80))


def _connect(server: socket.socket) -> object:
    with socket.create_connection(server.getsockname()) as client:
        return client.getpeername()


IN_A_FORK = """
import os, threading
import isolib.namespaces as ns
here = lambda: os.stat("/proc/thread-self/ns/net").st_ino
outside = here()
namespace = ns.new_netns()
assert namespace.run(here) == namespace.id
with namespace.entered():
    pid = os.fork()
    if pid == 0:
        try:
            assert here() == namespace.id
            assert namespace.run(here) == namespace.id
            namespace.close()
        except BaseException:
            os._exit(1)
    else:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
if pid == 0:
    os._exit(0 if here() == outside else 2)
assert here() == outside
assert namespace.run(here) == namespace.id
assert threading.active_count() == 2
namespace.close()
assert threading.active_count() == 1
"""


def test_after_a_fork() -> None:
    """In a fork of the process run() works, a block ends well, and closing takes nothing away from the parent."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", IN_A_FORK],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def test_end_of_the_interpreter() -> None:
    """A Python that ends while threads live in namespaces, or are inside, ends at once."""
    code = """
import isolib.namespaces as ns
a, b = ns.new_netns(), ns.new_mntns()
a.run(int), b.run(int)
stay = a.entered()
stay.__enter__()
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


def _same(function: Callable[[], int]) -> int:
    return function()


def test_traces_and_profiles_reach_the_thread(one: ns.NetNS) -> None:
    """What threading.settrace asks for is done on the thread too: coverage and debuggers see the function."""
    seen = []
    threading.setprofile(lambda frame, *_: seen.append(frame.f_code.co_name))
    try:
        one.run(_same, here)
    finally:
        threading.setprofile(None)
    assert "_same" in seen
