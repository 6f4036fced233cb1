"""Threads that enter namespaces and come back: nested, out of order, across threads and tasks, interrupted, refused."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import warnings
from contextlib import closing
from errno import ENOMEM
from typing import TYPE_CHECKING

import pytest

from isolib import IsolibError, PermissionDenied, SyscallError, ThreadStranded
from isolib import namespaces as ns
from isolib._kernel import calls
from isolib.namespaces import enter
from tests.interrupts import interrupt
from tests.seccomp import Denied
from tests.threads import give_privileges_up, here, in_a_thread, restrict_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator
    from types import CodeType

pytestmark = pytest.mark.root

KINDS = ("net", "uts", "ipc", "cgroup")


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


# ---- in order ----


def test_thread_is_inside_and_back(one: ns.NetNS) -> None:
    """Inside the block the thread is in the namespace, and a port of the host's is free there."""
    before = here()
    with socket.create_server(("127.0.0.1", 0)) as outside:
        port = outside.getsockname()[1]
        with one.entered() as value:
            assert value is one
            assert here() == one.id
            socket.create_server(("127.0.0.1", port)).close()
    assert here() == before
    assert not one.closed


@pytest.mark.parametrize("kind", KINDS)
def test_new_is_inside_and_back(kind: str) -> None:
    """`with new_netns()` and the like: the thread is inside, and back, and the namespace is gone."""
    before = here(kind)
    with getattr(ns, f"new_{kind}ns")() as namespace:
        assert here(kind) == namespace.id != before
    assert here(kind) == before


def test_blocks_nest(one: ns.NetNS, two: ns.NetNS) -> None:
    """Blocks nest in each other and in themselves, and each puts back what it found."""
    before = here(), here("uts")
    again = one.entered()
    with again, two.entered(), again, ns.new_utsns() as uts, one.entered(), again:
        assert here() == one.id
        assert here("uts") == uts.id
    with again:
        with two.entered():
            with again:
                assert here() == one.id
            assert here() == two.id
        assert here() == one.id
    assert (here(), here("uts")) == before


def test_handle_may_be_entered_again_while_inside() -> None:
    """A handle in two `with` blocks is closed at the end of the outer one."""
    before = here()
    with ns.new_netns() as namespace:
        with namespace:
            assert here() == namespace.id
        assert namespace.fileno() >= 0
        assert here() == namespace.id
    assert namespace.closed
    assert here() == before


def test_handle_may_be_closed_inside() -> None:
    """Closing the handle inside its block leaves the thread inside until the block ends."""
    before = here()
    with ns.new_netns() as namespace:
        namespace.close()
        assert here() == namespace.id
    assert here() == before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_exception_in_the_body(one: ns.NetNS, error: type[BaseException]) -> None:
    """Whatever the body raises comes out, and the thread is back."""
    before = here()

    with pytest.raises(error), one.entered(), ns.new_utsns():
        raise error
    assert here() == before


def test_threads_are_independent(one: ns.NetNS) -> None:
    """A worker thread that enters comes back to where it was, not to where the main thread is (/proc/self)."""
    before = here()

    def worker() -> tuple[int, int, int]:
        start = here()
        with ns.new_netns() as own:
            inside = here()
            assert inside == own.id
        return start, inside, here()

    with one.entered():
        start, inside, end = in_a_thread(worker)
        assert start == end == one.id  # where its creator was
        assert inside not in (before, one.id)
    with one.entered():
        other = in_a_thread(lambda: _outside_of(one))
    assert other == one.id
    assert here() == before


def _outside_of(namespace: ns.NetNS) -> int:
    with namespace.entered():
        pass
    return here()


def test_one_handle_in_many_threads(one: ns.NetNS) -> None:
    """Threads may use one handle, and one context manager, at the same time."""
    shared = one.entered()
    barrier = threading.Barrier(8)
    seen = []

    def worker() -> None:
        for _ in range(50):
            with shared:
                seen.append(here())
            seen.append(-here())
        barrier.wait()

    before = here()
    threads = [threading.Thread(target=worker) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(seen) == {one.id, -before}


def test_program_is_where_the_thread_is(one: ns.NetNS) -> None:
    """A program that subprocess starts inside the block is inside."""
    with one.entered():
        done = subprocess.run(["readlink", "/proc/self/ns/net"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"net:[{one.id}]"


def test_what_others_did_inside_is_undone(one: ns.NetNS, two: ns.NetNS) -> None:
    """A thread that some other library moved elsewhere inside the block comes back all the same."""
    before = here()
    with one.entered():
        calls.setns(two.fileno(), calls.CLONE_NEWNET, "two")
    assert here() == before


# ---- out of order ----


def test_leaving_out_of_order_is_an_error(one: ns.NetNS, two: ns.NetNS) -> None:
    """Who leaves the outer block first gets an error, and so does the inner one; the thread is where it was."""
    before = here()
    outer, inner = one.entered(), two.entered()
    outer.__enter__()
    inner.__enter__()
    with pytest.raises(IsolibError, match="out of order") as caught:
        outer.__exit__(None, None, None)
    assert not isinstance(caught.value, ThreadStranded)
    assert here() == before
    with pytest.raises(IsolibError, match="ran outside"):
        inner.__exit__(None, None, None)
    assert here() == before
    with outer:
        assert here() == one.id


def test_leaving_kinds_out_of_order_is_an_error(one: ns.NetNS) -> None:
    """The order is that of the blocks, whatever their kinds."""
    before = here(), here("uts")
    with closing(ns.new_utsns()) as uts:
        outer, inner = one.entered(), uts.entered()
        outer.__enter__()
        inner.__enter__()
        with pytest.raises(IsolibError, match="out of order"):
            outer.__exit__(None, None, None)
        assert (here(), here("uts")) == before
        with pytest.raises(IsolibError, match="ran outside"):
            inner.__exit__(None, None, None)
    assert (here(), here("uts")) == before


def test_leaving_twice_is_an_error(one: ns.NetNS) -> None:
    """A block that was left cannot be left again."""
    stay = one.entered()
    with stay:
        pass
    with pytest.raises(IsolibError, match="left already"):
        stay.__exit__(None, None, None)


def test_overlapping_generators(one: ns.NetNS, two: ns.NetNS) -> None:
    """Two generators with overlapping blocks get an error each, and the thread is where it was."""
    before = here()
    first, second = _generate(one), _generate(two)
    assert next(first) == one.id
    assert next(second) == two.id
    with pytest.raises(IsolibError, match="out of order"):
        first.close()
    with pytest.raises(IsolibError, match="ran outside"):
        second.close()
    assert here() == before


def _generate(namespace: ns.NetNS) -> Generator[int, None, None]:
    with namespace.entered():
        while True:
            yield here()


# ---- across threads ----


def test_generator_that_another_thread_ends(one: ns.NetNS) -> None:
    """A generator that one thread began and another ends raises ThreadStranded there; the first returns at its next use."""
    before = here()
    generator = _generate(one)
    assert next(generator) == one.id
    with pytest.raises(ThreadStranded, match="changed threads"):
        in_a_thread(generator.close)
    assert here() == one.id
    with ns.new_utsns():
        assert here() == before
    assert here() == before


def test_generator_whose_thread_has_ended(one: ns.NetNS) -> None:
    """When the thread that entered is gone nothing can be stranded, and nothing is kept of it."""
    generator = _generate(one)
    tid = in_a_thread(lambda: (next(generator), threading.get_native_id())[1])
    while os.path.exists(f"/proc/self/task/{tid}"):
        os.sched_yield()
    assert len(enter._threads) == 1
    before = here()
    with pytest.raises(ThreadStranded):
        generator.close()
    assert not enter._threads
    assert here() == before


def test_abandoned_stay_below_another_one(one: ns.NetNS, two: ns.NetNS) -> None:
    """A stay that another thread has ended beneath one that goes on is ended together with that one."""
    before = here()
    generator = _generate(one)
    next(generator)
    with two.entered():
        with pytest.raises(ThreadStranded):
            in_a_thread(generator.close)
        assert here() == two.id
    assert here() == before


def test_handle_that_another_thread_leaves() -> None:
    """What is said of generators holds for the block of a handle: it is closed, and the error is raised."""
    before = here()
    namespace = ns.new_netns()
    namespace.__enter__()
    with pytest.raises(ThreadStranded):
        in_a_thread(lambda: namespace.__exit__(None, None, None))
    assert namespace.closed
    with ns.new_netns():
        pass
    assert here() == before


# ---- across tasks ----


def test_task_that_enters_while_another_one_is_inside(one: ns.NetNS, two: ns.NetNS) -> None:
    """While a coroutine awaits inside its block no other task of the thread can enter; its own block goes on unharmed."""
    before = here()

    async def main() -> None:
        inside, tried = asyncio.Event(), asyncio.Event()

        async def patient() -> int:
            with one.entered():
                inside.set()
                await tried.wait()
                return here()

        async def intruder() -> None:
            await inside.wait()
            with pytest.raises(IsolibError, match="another task awaits"), two.entered():
                pytest.fail("not reached")
            assert two.run(here) == two.id
            tried.set()

        first, _ = await asyncio.gather(patient(), intruder())
        assert first == one.id

    asyncio.run(asyncio.wait_for(main(), 60))
    assert here() == before


def test_task_may_nest_its_own_blocks(one: ns.NetNS, two: ns.NetNS) -> None:
    """A coroutine may enter, await, and enter again, and so may what it calls and what it starts inside."""

    async def deeper() -> int:
        with two.entered():
            await asyncio.sleep(0)
            return here()

    async def main() -> None:
        with one.entered():
            await asyncio.sleep(0)
            assert await deeper() == two.id
            assert await asyncio.create_task(deeper()) == two.id
            assert contextvars.copy_context().run(lambda: _outside_of(two)) == one.id
            assert here() == one.id

    asyncio.run(main())


def test_loop_may_run_inside(one: ns.NetNS, two: ns.NetNS) -> None:
    """An event loop that runs inside a block of ordinary code may enter what it likes, whatever its contexts are."""

    async def main() -> int:
        with two.entered():
            return here()

    with asyncio.Runner() as runner:
        runner.run(asyncio.sleep(0))
        with one.entered():
            assert runner.run(main()) == two.id
            assert here() == one.id


def test_overlapping_tasks_are_noticed(one: ns.NetNS, two: ns.NetNS) -> None:
    """Two coroutines that share a context and overlap get an error when they leave."""
    before = here()

    async def hold(namespace: ns.NetNS, entered: asyncio.Event, leave: asyncio.Event) -> None:
        with namespace.entered():
            entered.set()
            await leave.wait()

    async def main() -> list[BaseException | None]:
        events = [asyncio.Event() for _ in range(4)]
        context = contextvars.copy_context()
        first = asyncio.create_task(hold(one, events[0], events[1]), context=context)
        await events[0].wait()
        second = asyncio.create_task(hold(two, events[2], events[3]), context=context)
        await events[2].wait()
        events[1].set()
        result = await asyncio.gather(first, return_exceptions=True)
        events[3].set()
        return [*result, *await asyncio.gather(second, return_exceptions=True)]

    first, second = asyncio.run(asyncio.wait_for(main(), 60))
    assert isinstance(first, IsolibError)
    assert isinstance(second, IsolibError)
    assert here() == before


def test_async_generator_that_is_forgotten(one: ns.NetNS) -> None:
    """An asynchronous generator that is left in the midst of its block is ended by the loop, and the thread is back."""
    before = here()

    async def generate() -> AsyncIterator[int]:
        with one.entered():
            yield here()

    async def main() -> None:
        async for number in generate():
            assert number == one.id
            break

    asyncio.run(main())
    assert here() == before


# ---- refusals ----


def test_thread_that_cannot_come_back(one: ns.NetNS) -> None:
    """A thread that gives its privileges up inside is stranded: it is told so, at once and at every further use."""

    def worker() -> list[str]:
        messages = []
        stay = one.entered()
        stay.__enter__()
        give_privileges_up()
        for use in (
            lambda: stay.__exit__(None, None, None),
            one.entered().__enter__,
            lambda: ns.new_utsns().__enter__(),
            ns.new_netns,
        ):
            with pytest.raises(ThreadStranded) as caught:
                use()
            messages.append(str(caught.value))
        assert here() == one.id
        return messages

    messages = in_a_thread(worker)
    assert len(set(messages)) == 1
    assert "setns" in messages[0]
    assert one.run(here) == one.id


@pytest.mark.parametrize(
    ("denied", "op"),
    [("unshare", "unshare"), ("socket", "ioctl SIOCSIFFLAGS"), ("ioctl", "ioctl SIOCSIFFLAGS"), ("sethostname", "sethostname")],
)
def test_half_made_namespace_is_undone(denied: str, op: str) -> None:
    """Whichever call fails while a namespace is made: it is named, and the thread is where it was."""

    def worker() -> None:
        before = here(), here("uts")
        restrict_thread(Denied(denied, ENOMEM))
        with pytest.raises(SyscallError, match="ENOMEM") as caught:
            ns.new_utsns(hostname="x") if denied == "sethostname" else ns.new_netns()
        assert caught.value.op == op
        assert (here(), here("uts")) == before
        assert not enter.is_inside()

    in_a_thread(worker)


def test_thread_without_privileges(one: ns.NetNS) -> None:
    """A thread that may not enter is told what else it can do, and can go on."""

    def worker() -> None:
        before = here()
        give_privileges_up()
        for _ in range(2):
            with pytest.raises(PermissionDenied, match=r"spawn\(\)") as caught:
                one.entered().__enter__()
            assert caught.value.op == "setns"
            assert here() == before
        assert not enter.is_inside()

    in_a_thread(worker)


ROOT_OF_A_USER_NAMESPACE = """
import os
import isolib.namespaces as ns
from isolib import PermissionDenied
here = lambda: os.stat("/proc/thread-self/ns/net").st_ino
before = here()
namespace = ns.new_netns()
assert here() == before
assert namespace.owner.id == os.stat("/proc/self/ns/user").st_ino
try:
    with namespace.entered():
        print("inside", here() == namespace.id)
except PermissionDenied as error:
    print(error)
assert here() == before
assert namespace.run(here) == namespace.id
with namespace.spawn(["true"]) as process:
    assert process.wait(10).code == 0
namespace.close()
"""


@pytest.mark.parametrize("options", [("--net",), ()])
def test_root_of_a_user_namespace(options: tuple[str, ...]) -> None:
    """Who could not come back to a namespace of the host's is not let out of it; from one of his own he is."""
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", *options, sys.executable, "-c", ROOT_OF_A_USER_NAMESPACE],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    if options:
        assert done.stdout == "inside True\n"
    else:
        assert "the way back" in done.stdout
        assert "run() may do without" in done.stdout


# ---- nothing is left ----


def test_many_times() -> None:
    """Five hundred namespaces later there are as many descriptors as before."""
    before = os.listdir("/proc/self/fd")
    for _ in range(500):
        with ns.new_netns(lo=False), ns.new_utsns(hostname="x"):
            pass
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize("free", range(4))
def test_without_descriptors(free: int) -> None:
    """When there are no descriptors left nothing happens, however many calls have succeeded before."""
    code = f"""
import os, resource, sys
import isolib.namespaces as ns
from isolib import SyscallError
here = lambda: os.stat("/proc/thread-self/ns/net").st_ino
before = here()
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
kept = []
try:
    while True:
        kept.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
for _ in range({free}):
    os.close(kept.pop())
try:
    with ns.new_netns():
        print("inside")
except SyscallError as error:
    print(error.errno)
assert here() == before
for fd in kept:
    os.close(fd)
sys.exit(len(os.listdir("/proc/self/fd")) != 4)
"""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout.strip() == ("inside" if free >= 2 else "24"), done.stderr
    assert done.returncode == 0, done.stderr


def is_ours(code: CodeType) -> bool:
    """Return whether this is isolib's code."""
    return "/isolib/" in code.co_filename


def enter_new() -> None:
    """Live through a new namespace."""
    with ns.new_netns(lo=False):
        pass


def enter_new_by_name() -> None:
    """Live through a new namespace that has a name in the frame."""
    with ns.new_utsns(hostname="x") as namespace:
        assert socket.gethostname() == "x"
        assert namespace.fileno() >= 0


def enter_several() -> None:
    """Live through nested blocks."""
    with ns.new_utsns() as uts, ns.new_ipcns(), uts.entered():
        pass


def make_and_close() -> None:
    """Make and close."""
    ns.new_utsns().close()


@pytest.fixture(params=[enter_new, enter_new_by_name, enter_several, make_and_close])
def scenario(request: pytest.FixtureRequest) -> Iterator[Callable[[], None]]:
    """Run the test with each scenario; forgotten handles are not worth a warning here, for they are the point."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.freeze()  # so that many collections look only at what the scenario made
        yield request.param
        gc.unfreeze()


def check_nothing_left(before: list[int], descriptors: set[str]) -> None:
    """Fail if the thread is somewhere else, or a descriptor is open."""
    gc.collect()
    assert [here(kind) for kind in KINDS] == before
    assert set(os.listdir("/proc/self/fd")) == descriptors
    assert not enter.is_inside()


def test_interrupt_at_every_point(scenario: Callable[[], None], lost: list[type[BaseException]]) -> None:
    """Wherever an interrupt comes: when it has come out of the block, the thread is back and every descriptor is closed."""
    before, descriptors = [here(kind) for kind in KINDS], set(os.listdir("/proc/self/fd"))
    turn = 1
    while interrupt(turn, scenario, is_ours) == 0:
        check_nothing_left(before, descriptors)
        turn += 1
    assert turn > 50
    assert set(lost) <= {KeyboardInterrupt}


def test_interrupt_by_a_signal(scenario: Callable[[], None], lost: list[type[BaseException]]) -> None:
    """The same with true signals at random times."""
    before, descriptors = [here(kind) for kind in KINDS], set(os.listdir("/proc/self/fd"))
    choose = random.Random(7)  # noqa: S311 -- not a secret
    armed = False

    def interrupt_once(_: int, __: object) -> None:
        # The kernel may deliver the signal of a timer that was just cancelled.
        if armed:
            raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt_once)
    try:
        for _ in range(300):
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, choose.uniform(5e-6, 400e-6))
                scenario()
                armed = False
            except KeyboardInterrupt:
                armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            check_nothing_left(before, descriptors)
    finally:
        signal.signal(signal.SIGALRM, old)
    assert set(lost) <= {KeyboardInterrupt}
