"""What happens to a group, as the kernel tells it."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import threading
from contextlib import ExitStack
from queue import SimpleQueue
from typing import TYPE_CHECKING

import pytest

from isolib.cgroups.events import Event, EventKind, Events, KillCount, wait_empty, wait_oom
from isolib.errors import GoneError, PlanError, SyscallError, Unsupported
from tests import watches
from tests.groups import PATIENCE, has_version_2, is_legacy
from tests.watches import in_background, join

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.cgroups.conftest import RawGroup


@pytest.fixture
def events(raw_group: RawGroup) -> Iterator[Events]:
    """Return what watches the group."""
    with Events(raw_group.unified, raw_group.controllers) as watching:
        yield watching


def take(events: Events, *kinds: EventKind) -> list[Event]:
    """Return the next events up to one of the last of these kinds, which must all come, in this order."""
    found = []
    wanted = list(kinds)
    while wanted:
        event = events.wait(PATIENCE)
        assert event is not None, f"not told: {wanted}"
        if event.kind is wanted[0]:
            del wanted[0]
            found.append(event)
    return found


def test_populated_and_empty(raw_group: RawGroup, events: Events) -> None:
    """The first process and the last one's end are told, and what was so before is not."""
    raw_group.in_v2()
    assert events.wait(0) is None
    for turn in (1, 2):
        process = raw_group.stay()
        assert take(events, EventKind.POPULATED) == [Event(EventKind.POPULATED, 1, turn)]
        raw_group.end(process)
        assert take(events, EventKind.EMPTY) == [Event(EventKind.EMPTY, 1, turn)]


def test_frozen_and_thawed(raw_group: RawGroup, events: Events) -> None:
    """Freezing and thawing are told when they are done."""
    unified = raw_group.in_v2()
    process = raw_group.stay()
    unified.write("cgroup.freeze", "1")
    take(events, EventKind.FROZEN)
    unified.write("cgroup.freeze", "0")
    take(events, EventKind.THAWED)
    raw_group.end(process)


def test_oom_kill(raw_group: RawGroup, events: Events) -> None:
    """A process that the kernel kills for want of memory is told, and before it that the group was out of memory."""
    assert {EventKind.OOM, EventKind.OOM_KILL} <= events.kinds
    raw_group.limit_memory("20M")
    for turn in (1, 2):
        raw_group.eat()
        oom, kill = take(events, EventKind.OOM, EventKind.OOM_KILL)
        assert (kill.count, kill.total) == (1, turn)
        assert oom.total >= oom.count >= 1


def test_oom_kill_in_a_group_below(raw_group: RawGroup, events: Events) -> None:
    """A kill in a group below, by the limit of this one, is this one's too, also after the group below was removed."""
    raw_group.limit_memory("20M")
    memory = raw_group.controllers["memory"]
    count = KillCount(memory)
    for one in raw_group.directories:
        one.make("below")
    raw_group.eat("/below")
    assert take(events, EventKind.OOM_KILL)[0].total == 1
    if is_legacy("memory"):
        assert count() == 1
        os.rmdir("below", dir_fd=memory.fileno())
        assert count() == 1
        memory.make("below")
        assert count() == 1


def test_pids_max(raw_group: RawGroup, events: Events) -> None:
    """A process that was refused is told, where `kinds` says that it will be."""
    pids = raw_group.controllers["pids"]
    pids.write("pids.max", "1")
    code = "try: os.fork()\nexcept BlockingIOError: pass\nelse: sys.exit('forked')"
    raw_group.end(raw_group.start(code))
    assert (EventKind.PIDS_MAX in events.kinds) != is_legacy("pids")
    if not is_legacy("pids"):
        assert take(events, EventKind.PIDS_MAX) == [Event(EventKind.PIDS_MAX, 1, 1)]


def test_memory_high_and_max(raw_group: RawGroup, events: Events) -> None:
    """Memory beyond its limits is told, where `kinds` says that it will be."""
    memory = raw_group.controllers["memory"]
    told = {EventKind.MEMORY_HIGH, EventKind.MEMORY_MAX}
    assert events.kinds & told == (set() if is_legacy("memory") else told)
    if not is_legacy("memory"):
        memory.write("memory.high", "8M")
        raw_group.end(raw_group.start("x = bytes(9 << 20).replace(b'\\0', b'x')"))
        take(events, EventKind.MEMORY_HIGH)
        memory.write("memory.high", "max")
        raw_group.limit_memory("20M")
        raw_group.eat()
        take(events, EventKind.MEMORY_MAX)
        with Events(None, {"memory": memory}) as later:
            assert later.wait(0) is None


def test_removal_ends_a_blocked_iteration(raw_group: RawGroup, events: Events) -> None:
    """An iteration that waits on another thread ends when somebody removes the group."""
    thread = in_background(events)
    raw_group.remove()
    join(thread)
    with pytest.raises(GoneError, match="removed"):
        events.wait()
    assert list(events) == []


@pytest.mark.parametrize("name", ["unified", "memory", "pids"])
def test_removal_is_seen_in_each_hierarchy(raw_group: RawGroup, name: str) -> None:
    """Whichever directories are watched, the removal of the group ends the watch."""
    is_v2 = name == "unified"
    with Events(raw_group.in_v2() if is_v2 else None, {} if is_v2 else {name: raw_group.controllers[name]}) as events:
        thread = in_background(events)
        raw_group.remove()
        join(thread)


def test_removal_of_a_neighbour_is_nothing(raw_group: RawGroup, events: Events) -> None:
    """The removal of other groups in the same directory does not end it."""
    other = f"{raw_group.in_v2().path}-other"
    os.mkdir(other)
    os.rmdir(other)
    assert events.wait(0) is None
    process = raw_group.stay()
    take(events, EventKind.POPULATED)
    raw_group.end(process)


def test_close_ends_blocked_iterations(raw_group: RawGroup) -> None:
    """Closing it on one thread ends the iterations of others, and nothing stays open."""
    events = Events(raw_group.unified, raw_group.controllers)
    watches.check_close_ends_blocked_iterations(events)


def test_closing_the_directories_does_not_disturb(raw_group: RawGroup) -> None:
    """What is watched has descriptors of its own: the caller may close his."""
    with raw_group.in_v2().copy() as lent:
        events = Events(lent, {})
    with events:
        process = raw_group.stay()
        take(events, EventKind.POPULATED)
        raw_group.end(process)
        take(events, EventKind.EMPTY)


def test_each_event_is_given_once(raw_group: RawGroup, events: Events) -> None:
    """Threads that take from one watch share the events: all that come are given, each to one of them."""
    raw_group.in_v2()
    found: SimpleQueue[Event] = SimpleQueue()
    threads = [in_background(events, found) for _ in range(3)]
    try:
        for turn in range(1, 11):
            process = raw_group.stay()
            assert found.get(timeout=PATIENCE) == Event(EventKind.POPULATED, 1, turn)
            raw_group.end(process)
            assert found.get(timeout=PATIENCE) == Event(EventKind.EMPTY, 1, turn)
    finally:
        raw_group.remove()
    join(*threads)
    assert found.empty()


def test_fileno_is_readable_when_there_is_something(raw_group: RawGroup, events: Events) -> None:
    """Any event loop can wait for it, and sees nothing when there is nothing."""
    raw_group.in_v2()
    poll = select.poll()
    poll.register(events, select.POLLIN)
    assert poll.poll(0) == []
    process = raw_group.stay()
    assert poll.poll(PATIENCE * 1000) != []
    take(events, EventKind.POPULATED)
    raw_group.end(process)
    take(events, EventKind.EMPTY)
    while events.wait(0.02) is not None:  # the kernel may tell a second time what was seen at the first
        pass
    assert poll.poll(0) == []


async def two_watchers(group: RawGroup) -> list[EventKind]:
    """Let two tasks iterate over one watch until it is closed; nothing here is of one event loop."""
    with Events(group.unified, {}) as events:
        process = group.stay()
        found = [(await anext(events)).kind]
        group.end(process)
        found.append((await anext(events)).kind)
        group.remove()
        found += [event.kind async for event in events]
        return found


def check_asyncio(group: RawGroup) -> None:
    """Fail unless two tasks under asyncio get what happens."""
    group.in_v2()
    assert asyncio.run(two_watchers(group)) == [EventKind.POPULATED, EventKind.EMPTY]


def test_asyncio(raw_group: RawGroup) -> None:
    """`async for` gives the events under asyncio, and ends with the group."""
    check_asyncio(raw_group)


def test_trio(raw_group: RawGroup) -> None:
    """`async for` gives the events under trio, and ends with the group."""
    import trio  # noqa: PLC0415 - what asyncio's code does depends on whether it is imported

    raw_group.in_v2()
    assert trio.run(two_watchers, raw_group) == [EventKind.POPULATED, EventKind.EMPTY]


def test_asyncio_with_trio_in_the_process(raw_group: RawGroup) -> None:
    """That trio was imported does not make asyncio code wait by it."""
    import trio  # noqa: F401, PLC0415

    check_asyncio(raw_group)


def test_asyncio_tasks_wait_side_by_side(raw_group: RawGroup) -> None:
    """Several tasks may wait for the next event; closing ends them all, and a cancelled one disturbs no other."""
    watches.check_asyncio_tasks_wait_side_by_side(lambda: Events(raw_group.unified, raw_group.controllers))


def test_interrupt(raw_group: RawGroup, events: Events) -> None:
    """A wait ends by the exception of a signal handler, and the watch can be used after it."""

    def handler(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        with pytest.raises(KeyboardInterrupt):
            events.wait()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert events.wait(0) is None


def test_signal_does_not_end_a_wait(raw_group: RawGroup, events: Events) -> None:
    """Signals whose handler raises nothing leave the wait as it was: it goes on until something happens, however many come."""
    raw_group.in_v2()
    came = 0
    enough = threading.Event()

    def handler(*_: object) -> None:
        nonlocal came
        came += 1
        if came == 20:
            enough.set()

    def come_late() -> None:
        if enough.wait(PATIENCE):
            raw_group.stay()

    late = threading.Thread(target=come_late)
    before = signal.signal(signal.SIGALRM, handler)
    try:
        late.start()
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        assert events.wait(2 * PATIENCE) == Event(EventKind.POPULATED, 1, 1)
        assert came >= 20
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        late.join()


def test_fork(raw_group: RawGroup, events: Events) -> None:
    """In a fork it is of no use, and closing it there takes nothing from the parent."""
    watches.check_fork(events)
    assert events.wait(0) is None
    if has_version_2():
        process = raw_group.stay()
        take(events, EventKind.POPULATED)
        raw_group.end(process)


def test_group_that_is_gone(raw_group: RawGroup) -> None:
    """A group that does not exist any more cannot be watched, and nobody waits for it."""
    raw_group.remove()
    with pytest.raises(GoneError):
        Events(raw_group.unified, raw_group.controllers)
    with pytest.raises(GoneError):
        wait_oom(raw_group.controllers["memory"])
    assert wait_empty(raw_group.unified, raw_group.legacy)


def test_no_descriptors(raw_group: RawGroup) -> None:
    """Whichever descriptor is refused, the error names that limit and nothing stays open."""
    watches.check_no_descriptors(lambda: Events(raw_group.unified, raw_group.controllers))


def test_too_many_inotify_instances(raw_group: RawGroup) -> None:
    """Where the user may have no more inotify instances, the error names the sysctl."""
    unified = raw_group.in_v2()
    with open("/proc/sys/fs/inotify/max_user_instances", encoding="ascii") as file:
        most = int(file.read())

    def use_up() -> None:
        with ExitStack() as stack:
            for _ in range(most + 1):
                stack.enter_context(Events(unified, {}))

    with pytest.raises(SyscallError, match="max_user_instances"):
        use_up()


def test_nothing_to_watch(raw_group: RawGroup) -> None:
    """A group of which the kernel tells nothing is refused: nobody would ever be woken."""
    with pytest.raises(Unsupported, match="memory or pids"):
        Events(None, {})


def test_handler_closes(raw_group: RawGroup) -> None:
    """A signal handler may close what the interrupted thread waits for."""
    events = Events(raw_group.unified, raw_group.controllers)
    watches.check_handler_closes(events)


# ---- waiting for one thing ----


def test_wait_oom(raw_group: RawGroup) -> None:
    """It sees a kill while it waits, one before it was called, and no more than there were."""
    memory = raw_group.controllers["memory"]
    raw_group.limit_memory("20M")
    assert not wait_oom(memory, timeout=0)
    outcome: SimpleQueue[bool] = SimpleQueue()
    thread = threading.Thread(target=lambda: outcome.put(wait_oom(memory, timeout=PATIENCE)))
    thread.start()
    raw_group.eat()
    thread.join()
    assert outcome.get_nowait()
    assert wait_oom(memory)


def test_wait_oom_of_a_group_that_is_removed(raw_group: RawGroup) -> None:
    """Nobody waits for ever for a group that somebody removes."""
    outcome: SimpleQueue[BaseException] = SimpleQueue()

    def body() -> None:
        try:
            wait_oom(raw_group.controllers["memory"])
        except GoneError as error:
            outcome.put(error)

    thread = threading.Thread(target=body)
    thread.start()
    raw_group.remove()
    join(thread)
    assert isinstance(outcome.get_nowait(), GoneError)


@pytest.mark.parametrize("hierarchies", ["v2", "v1"])
def test_wait_empty(raw_group: RawGroup, hierarchies: str) -> None:
    """It returns at once when nobody is there, False when somebody stays, and True when the last one has left."""
    unified = raw_group.in_v2() if hierarchies == "v2" else None
    legacy = [] if hierarchies == "v2" else raw_group.in_v1()
    assert wait_empty(unified, legacy)
    processes = [raw_group.stay() for _ in range(2)]
    assert not wait_empty(unified, legacy, 0)
    assert not wait_empty(unified, legacy, 0.01)
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    assert wait_empty(unified, legacy, PATIENCE)


def test_bad_timeouts(raw_group: RawGroup, events: Events) -> None:
    """A time-out that is no duration is refused before anything is waited for."""
    for timeout in (-1, "1", float("nan")):
        with pytest.raises(PlanError, match="timeout"):
            events.wait(timeout)  # type: ignore[arg-type]  # that is the test
        with pytest.raises(PlanError, match="timeout"):
            wait_oom(raw_group.controllers["memory"], timeout=timeout)  # type: ignore[arg-type]
        with pytest.raises(PlanError, match="timeout"):
            wait_empty(raw_group.unified, raw_group.legacy, timeout)  # type: ignore[arg-type]
