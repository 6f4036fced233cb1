"""How long processes of a group wait for a resource, and being told when it is too long."""

from __future__ import annotations

import asyncio
import os
import select
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

import pytest

from isolib._kernel.procfs import parse_status
from isolib.cgroups.events import wait_empty
from isolib.cgroups.pressure import Pressures
from isolib.errors import GoneError, PlanError, Unsupported
from tests.groups import has_version_2, is_legacy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.cgroups.conftest import RawGroup

PATIENCE = 60.0
CAP_SYS_RESOURCE = 24


def file_of(group: RawGroup, name: str) -> Path:
    """Return one of the group's files in cgroup v2."""
    return Path(group.in_v2().path, name)


@pytest.fixture
def pressures(raw_group: RawGroup) -> Pressures:
    """Return the pressure of the group, where the kernel counts it."""
    if not file_of(raw_group, "cpu.pressure").exists():
        pytest.skip("this host counts no pressure of groups")
    return Pressures(raw_group.unified)


@pytest.fixture
def busy(raw_group: RawGroup, pressures: Pressures) -> Iterator[None]:
    """Let two processes of the group want the same processor."""
    processor = min(os.sched_getaffinity(0))
    for _ in range(2):
        raw_group.start(f"os.sched_setaffinity(0, {{{processor}}})\nwhile True: pass")
    yield
    raw_group.remove()


def test_nobody_waits(pressures: Pressures) -> None:
    """A group without processes has no pressure, and nothing is told in time."""
    for one in (pressures.cpu, pressures.memory, pressures.io):
        assert one.some is not None
        assert one.some.total == 0
    assert not pressures.cpu.wait(some=0.5, timeout=0.01)
    assert not pressures.memory.wait(some=0.5, full=0.5, timeout=0)


def test_wait(pressures: Pressures, busy: None) -> None:
    """Two processes for one processor are a stall: it is told, and counted."""
    before = pressures.cpu.some
    assert pressures.cpu.wait(some=0.1, timeout=PATIENCE)
    after = pressures.cpu.read().some
    assert before is not None
    assert after is not None
    assert after.total > before.total


def test_wait_for_either(raw_group: RawGroup, pressures: Pressures, busy: None) -> None:
    """With both kinds of stall, the one that comes ends the wait; one that the kernel does not count is refused."""
    if "full " in file_of(raw_group, "cpu.pressure").read_text(encoding="ascii"):
        assert pressures.cpu.full is not None
        assert pressures.cpu.wait(some=0.1, full=2.0, timeout=PATIENCE)
    else:
        assert pressures.cpu.full is None
        with pytest.raises(Unsupported, match=r"5\.13"):
            pressures.cpu.wait(full=1.0)


def test_trigger_in_an_event_loop(pressures: Pressures, busy: None) -> None:
    """A trigger has a descriptor that becomes readable, and can be awaited after that: it tells again and again."""
    with pressures.cpu.trigger(some=0.1) as trigger:
        assert "some 100000 2000000" in repr(trigger)
        poll = select.poll()
        poll.register(trigger, select.POLLIN)
        assert poll.poll(PATIENCE * 1000) != []

        async def body() -> None:
            async with asyncio.timeout(PATIENCE):
                await trigger.told()

        asyncio.run(body())
    assert "closed" in repr(trigger)


def test_trigger_under_trio(pressures: Pressures, busy: None) -> None:
    """A trigger can be awaited under trio."""
    import trio  # noqa: PLC0415 - what asyncio's code does depends on whether it is imported

    async def body() -> bool:
        with pressures.cpu.trigger(some=0.1) as trigger, trio.fail_after(PATIENCE):
            await trigger.told()
            return True

    assert trio.run(body)


def test_removal_ends_a_wait(raw_group: RawGroup, pressures: Pressures) -> None:
    """Who waits on another thread is told that the group is gone."""
    outcome: SimpleQueue[BaseException] = SimpleQueue()
    armed = threading.Event()

    def body() -> None:
        with pressures.memory.trigger(some=1) as trigger:
            armed.set()
            try:
                trigger.wait()
            except GoneError as error:
                outcome.put(error)

    thread = threading.Thread(target=body)
    thread.start()
    armed.wait()
    raw_group.remove()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert "removed" in str(outcome.get_nowait())
    with pytest.raises(GoneError):
        pressures.memory.wait(some=1, timeout=0)
    with pytest.raises(GoneError):
        pressures.memory.read()


def test_removal_ends_an_await(raw_group: RawGroup, pressures: Pressures) -> None:
    """Who awaits a trigger is told that the group is gone."""

    async def body() -> None:
        with pressures.memory.trigger(some=1) as trigger:
            task = asyncio.create_task(trigger.told())
            await asyncio.wait([task], timeout=0)
            raw_group.remove()
            async with asyncio.timeout(PATIENCE):
                with pytest.raises(GoneError):
                    await task

    asyncio.run(body())


def test_window_without_the_capability(pressures: Pressures) -> None:
    """A window that the kernel takes from the privileged only is taken, or refused by name."""
    with open("/proc/thread-self/status", "rb") as file:
        effective = int(parse_status(file.read())["CapEff"], 16)
    if effective >> CAP_SYS_RESOURCE & 1:
        assert not pressures.cpu.wait(some=0.5, within=1.0, timeout=0)
    else:
        with pytest.raises(Unsupported, match="CAP_SYS_RESOURCE") as caught:
            pressures.cpu.wait(some=0.5, within=1.0, timeout=0)
        assert "2, 4" in caught.value.remedy
        assert not pressures.cpu.wait(some=0.5, within=4, timeout=0)


def test_switch(raw_group: RawGroup, pressures: Pressures) -> None:
    """Counting can be switched off and on for a group; meanwhile reading says what switched it off."""
    if not file_of(raw_group, "cgroup.pressure").exists():
        with pytest.raises(Unsupported, match=r"6\.1"):
            pressures.enabled = False
        pytest.skip("this kernel has no cgroup.pressure (before 6.1), which is refused by name")
    assert pressures.enabled
    assert pressures.cpu.read().some is not None
    pressures.enabled = False
    assert not pressures.enabled
    for refused in (pressures.cpu.read, lambda: pressures.cpu.wait(some=1, timeout=0)):
        with pytest.raises(Unsupported, match=r"cgroup\.pressure, which is 0"):
            refused()
    pressures.enabled = True
    assert pressures.cpu.read().some is not None
    with pytest.raises(PlanError, match="enabled"):
        pressures.enabled = "off"  # type: ignore[assignment]  # that is the test


def test_host_without_it(raw_group: RawGroup) -> None:
    """Where the kernel counts no pressure, the refusal names how it was built or booted; no value is made up."""
    if not has_version_2() or file_of(raw_group, "cpu.pressure").exists():
        pressures = Pressures(None)
        reason = "cgroup v1"
    else:
        pressures = Pressures(raw_group.unified)
        reason = "CONFIG_PSI|cgroup_disable=pressure"
    for refused in (
        lambda: pressures.cpu.some,
        pressures.memory.read,
        lambda: pressures.io.wait(some=1, timeout=0),
        lambda: pressures.enabled,
    ):
        with pytest.raises(Unsupported, match=reason):
            refused()


def test_memory_pressure(raw_group: RawGroup, pressures: Pressures) -> None:
    """Where v2 has memory, a group that is slowed down at memory.high has pressure on memory."""
    if is_legacy("memory"):
        pytest.skip("memory is a controller of cgroup v1 on this host")
    memory = raw_group.controllers["memory"]
    memory.write("memory.high", "8M")
    process = raw_group.start("x = [bytes(1 << 20).replace(b'\\0', b'x') for _ in range(10)]")
    raw_group.end(process)
    assert wait_empty(raw_group.unified, [], PATIENCE)
    assert pressures.memory.some is not None
    assert pressures.memory.some.total > 0
