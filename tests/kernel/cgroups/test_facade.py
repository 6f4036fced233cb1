"""What a group tells and offers beside its limits: statistics, events, pressure, history, threads, devices, raw files."""

from __future__ import annotations

import asyncio
import copy
import errno
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib import PIPE, Reason
from isolib.cgroups import EventKind
from tests.groups import has_version_2, is_legacy, needs
from tests.programs import EAT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolib.cgroups.events import Events

PYTHON = os.path.realpath(sys.executable)
TOO_MUCH = [PYTHON, "-c", EAT, "200"]
"""Uses more than the group may."""


@pytest.fixture
def group() -> Iterator[isolib.Cgroup]:
    """Return a group with a limit on memory; skip where this user may make none."""
    needs("memory", "pids")
    with isolib.new_cgroup(memory_max="48M") as made:
        yield made


# ---- statistics ----


def test_stats(group: isolib.Cgroup) -> None:
    """stats() tells of memory, processor time and processes, also of those that are gone; it is a value."""
    burn = [PYTHON, "-c", "import time\nwhile time.process_time() < 0.2: pass"]
    with group.spawn(burn) as process:
        usage = process.wait().usage
    now = group.stats()
    assert now.cpu is not None
    assert now.cpu.total is not None
    assert usage.cpu_user is not None
    assert usage.cpu_system is not None
    assert now.cpu.total == pytest.approx(usage.cpu_user + usage.cpu_system, abs=0.02)
    assert now.memory is not None
    assert now.memory.limit == 48 << 20
    assert now.memory.peak is not None
    assert usage.memory_peak is not None
    assert now.memory.peak >= usage.memory_peak
    assert now.pids is not None
    assert now.pids.peak == 2  # the command and its supervisor
    assert copy.deepcopy(now) == now


def test_stats_count_kills(group: isolib.Cgroup) -> None:
    """Kills for want of memory are counted by the group, also when the processes are gone."""
    for number in (1, 2):
        with group.spawn(TOO_MUCH) as process:
            assert process.wait().reason is Reason.OOM
        # v2 counts everybody who is killed with the one.
        assert group.oom_kills == number if is_legacy("memory") else group.oom_kills >= number
        counted = group.stats().memory
        assert counted is not None
        assert counted.oom_kills == group.oom_kills


def test_history(group: isolib.Cgroup) -> None:
    """history() samples until it is closed, and yields series for plots."""
    with group.history(every=0.01) as history, group.spawn(["sleep", "0.2"]) as process:
        process.wait()
    times, values = history.series("pids.current")
    assert len(times) == len(values) > 2
    assert max(values) >= 2  # the command and its supervisor
    assert times == sorted(times)


def test_pressure(group: isolib.Cgroup) -> None:
    """pressure has a line for each resource, or says what refuses it."""
    assert (group.path is not None) == has_version_2()
    if os.path.exists(f"{group.path}/cpu.pressure"):
        line = group.pressure.cpu.some
        assert line is not None
        assert 0 <= line.avg10 <= 100
    else:
        with pytest.raises(isolib.Unsupported, match=r"PSI|cgroup v2"):
            _ = group.pressure.cpu.some


# ---- events ----


def test_wait_oom(group: isolib.Cgroup) -> None:
    """wait_oom returns when a process was killed, at once when one has been, and False when none is in time."""
    assert group.wait_oom(timeout=0.05) is False
    with group.spawn(TOO_MUCH):
        assert group.wait_oom(timeout=30) is True
    assert group.wait_oom(timeout=0) is True


def test_wait_empty(group: isolib.Cgroup) -> None:
    """wait_empty returns when the last process is gone, and False while one is there."""
    with group.spawn(["cat"], stdin=PIPE) as process:
        assert group.wait_empty(timeout=0.05) is False
        assert process.stdin is not None
        process.stdin.close()
        assert group.wait_empty(timeout=30) is True


def test_events(group: isolib.Cgroup) -> None:
    """The iterator yields that somebody came, that memory ran out, and that nobody is left."""
    seen: list[EventKind] = []
    with group.events() as events:
        argv = [PYTHON, "-c", f"input()\n{EAT}", "200"]
        with group.spawn(argv, stdin=PIPE) as process:  # it waits, or it could be gone again before it was seen
            if has_version_2():
                watch_until(EventKind.POPULATED, events, seen)
            process.communicate(b"\n")
            watch_until(EventKind.OOM_KILL, events, seen)
        if has_version_2():
            watch_until(EventKind.EMPTY, events, seen)
    if has_version_2():
        assert seen[0] is EventKind.POPULATED
    if not is_legacy("memory"):
        assert EventKind.MEMORY_MAX in seen[: seen.index(EventKind.OOM_KILL)]


def watch_until(kind: EventKind, events: Events, seen: list[EventKind]) -> None:
    """Take events until one of a kind has come."""
    while kind not in seen:
        event = events.wait(timeout=30)
        assert event is not None, f"not told: {kind}"
        seen.append(event.kind)


def test_events_in_a_loop(group: isolib.Cgroup) -> None:
    """In asyncio the same is awaited, and other tasks go on."""

    async def watch() -> EventKind:
        with group.events() as events:
            async for event in events:
                if event.kind is EventKind.OOM_KILL:
                    return event.kind
        raise AssertionError("it ended")

    async def main() -> tuple[EventKind, int]:
        ticks = 0
        watching = asyncio.ensure_future(watch())
        await asyncio.sleep(0)  # it has begun to watch
        with group.spawn(TOO_MUCH):
            while not watching.done():
                ticks += 1
                await asyncio.sleep(0.001)
            return await watching, ticks

    kind, ticks = asyncio.run(main())
    assert kind is EventKind.OOM_KILL
    assert ticks > 2


# ---- threads ----


def test_threaded_group() -> None:
    """A thread of a process can be limited apart from the others, in a threaded group below that of the process."""
    code = """
import isolib, os, threading
go, done = threading.Event(), threading.Event()
tids = []
def work():
    tids.append(threading.get_native_id()); go.set(); done.wait()
with isolib.new_cgroup() as group:
    below = group.child("workers", threaded=True, pids_max=50)
    worker = threading.Thread(target=work); worker.start(); go.wait()
    with group.entered():
        below.add_thread(tids[0])
        with open(f"/proc/self/task/{tids[0]}/cgroup") as file: assert "/workers" in file.read()
        with open("/proc/thread-self/cgroup") as file: assert "/workers" not in file.read()
        assert below.pids.max == 50
        done.set(); worker.join()
"""
    needs("pids")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_threaded_group_too_late(group: isolib.Cgroup) -> None:
    """When processes live in groups of their own already, a threaded group is refused, with the reason."""
    with group.spawn(["true"]) as process:
        process.wait()
    with pytest.raises(isolib.IsolibError, match="before its first process"):
        group.child("workers", threaded=True)
    with pytest.raises(isolib.PlanError, match="memory"), isolib.new_cgroup() as other:
        other.child("workers", threaded=True, memory_max="1M")


# ---- files ----


def test_raw_files(group: isolib.Cgroup) -> None:
    """A control file without a name here can be read and written as it is."""
    file = "memory.limit_in_bytes" if is_legacy("memory") else "memory.max"
    assert int(group.read(file)) == 48 << 20
    group.write(file, str(40 << 20))
    assert group.memory.max == 40 << 20
    with pytest.raises(isolib.SyscallError) as caught:
        group.write(file, "nonsense")
    assert caught.value.errno == errno.EINVAL
    assert file in str(caught.value)
    assert "nonsense" in str(caught.value)


@pytest.mark.parametrize("name", ["nothing.max", "../memory.max", "memory.no_such_file"])
def test_raw_files_that_are_none(group: isolib.Cgroup, name: str) -> None:
    """A file that there is not, one of no controller where only v2 would have it, and a path are each refused in its way."""
    kind: type[isolib.IsolibError] = isolib.PlanError if "/" in name else isolib.SyscallError
    if name == "nothing.max" and not has_version_2():
        kind = isolib.Unsupported
    with pytest.raises(isolib.IsolibError, match=name) as caught:
        group.read(name)
    assert type(caught.value) is kind
    if kind is isolib.SyscallError:
        assert isinstance(caught.value, isolib.SyscallError)
        assert caught.value.errno == errno.ENOENT


@pytest.mark.root
def test_devices() -> None:
    """A process opens the devices that the rules of its group allow, and no others; rules can be changed."""
    with isolib.new_cgroup(devices=["c 1:3 rw", isolib.cgroups.DeviceRule.of("/dev/zero", "r")]) as group:
        assert group.devices.rules is not None

        def opens(device: str) -> bool:
            with group.spawn(["sh", "-c", f": < {device}"], stderr=isolib.DEVNULL) as process:
                return process.wait().code == 0

        assert [opens(f"/dev/{name}") for name in ("null", "zero", "full")] == [True, True, False]
        group.devices.rules = ["c 1:3 rw", "c 1:7 r"]
        assert [opens(f"/dev/{name}") for name in ("null", "zero", "full")] == [True, False, True]


def test_many_in_one_group(group: isolib.Cgroup) -> None:
    """Threads that start processes in one group at once each get a place, a status and an account of their own."""
    codes: list[tuple[int, int | None]] = []

    def work(number: int) -> None:
        for _ in range(5):
            with group.spawn(["sh", "-c", f"exit {number}"]) as process:
                codes.append((number, process.wait().code))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(codes) == 40
    assert all(number == code for number, code in codes)
    assert group.pids() == []
