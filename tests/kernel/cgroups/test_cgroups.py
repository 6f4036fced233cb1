"""Control groups at work: one file for every kind of host, and for root as for who has a delegated subtree."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from isolib._kernel._ext import lib

import isolib
from isolib import PIPE, STDOUT, Reason
from isolib._kernel.lodging import Account
from tests.groups import controllers, has_version_2, is_legacy, needs
from tests.programs import EAT, FORK_BOMB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.usefixtures("groups")

PYTHON = os.path.realpath(sys.executable)

#: Counts, slowly enough for a pipe and fast enough to be seen to have stopped.
TICK = "import sys, time\nwhile True:\n    sys.stdout.write('x'); sys.stdout.flush(); time.sleep(0.001)"
BURN = "print(flush=True)\nwhile True: pass"
PATIENCE = 60.0
"""Seconds, for what must come."""


def eat(group: isolib.Cgroup, megabytes: int) -> tuple[bytes | None, isolib.Exit]:
    """Let a process in the group use that much memory."""
    with group.spawn([PYTHON, "-c", EAT, str(megabytes)], stdout=PIPE, stderr=STDOUT) as process:
        out, _ = process.communicate()
        return out, process.wait()


def directories(group: isolib.Cgroup) -> list[Path]:
    """Return the directories of a group, each once."""
    return [Path(path) for path in dict.fromkeys(group.paths.values())]


class Ticker:
    """A process that makes progress one can see."""

    def __init__(self, group: isolib.Cgroup) -> None:
        self.process = group.spawn([PYTHON, "-c", TICK], stdout=PIPE)
        assert self.process.stdout is not None
        self.fd = self.process.stdout.fileno()
        os.read(self.fd, 1)  # it runs
        os.set_blocking(self.fd, False)

    def drain(self) -> int:
        """Read what has come so far; returns how much that was."""
        total = 0
        try:
            while block := os.read(self.fd, 65536):
                total += len(block)
        except BlockingIOError:
            pass
        return total


@pytest.fixture
def ticking() -> Iterator[Callable[[isolib.Cgroup], Ticker]]:
    """Return what starts a ticker; all are ended after the test."""
    made: list[Ticker] = []

    def start(group: isolib.Cgroup) -> Ticker:
        made.append(Ticker(group))
        return made[-1]

    yield start
    for one in made:
        one.process.close()


# ---- what they are ----


def test_alone() -> None:
    """A group is made with its limits, can be read back, and is gone after the block."""
    needs("memory", "pids")
    with isolib.new_cgroup(memory_max="64M", pids_max=50) as group:
        assert (group.memory.max, group.pids.max) == (64 << 20, 50)
        places = directories(group)
        assert all(place.is_dir() for place in places)
        assert group.name in repr(group)
    assert not any(place.exists() for place in places)
    assert group.closed


def test_born_inside() -> None:
    """A process is in the group from its first moment on, in every hierarchy that the group is in."""
    with isolib.new_cgroup() as group, group.spawn(["cat", "/proc/self/cgroup"], stdout=PIPE) as process:
        lines = (process.communicate()[0] or b"").decode().splitlines()
        found = [line for line in lines if group.name in line]
        assert len(found) == len(directories(group))


def test_list_of_processes() -> None:
    """pids() and processes() tell who is inside, the supervisor too."""
    with isolib.new_cgroup() as group, group.spawn(["sleep", "100"]) as process:
        assert process.pid in group.pids()
        assert process.pid in [one.pid for one in group.processes()]
    assert process.exit is not None
    assert process.exit.reason is Reason.KILLED


def test_spawn_takes_it() -> None:
    """spawn(cgroup=) is the same as the method of the group."""
    with isolib.new_cgroup() as group, isolib.spawn(["sleep", "100"], cgroup=group) as process:
        assert process.pid in group.pids()


# ---- limits ----


def test_memory_limit_kills() -> None:
    """A process beyond its memory limit is killed, the reason is OOM, and its peak is about the limit."""
    needs("memory")
    with isolib.new_cgroup(memory_max="48M", swap_max=None) as group:
        out, end = eat(group, 200)
        assert out == b""
        assert end.reason is Reason.OOM
        assert end.signal == signal.SIGKILL
        assert end.usage.memory_peak is not None
        assert 40 << 20 < end.usage.memory_peak < 50 << 20  # who is dying may go a little beyond
        assert group.oom_kills >= 1


def test_memory_limit_lets_live() -> None:
    """A process below its memory limit is not killed, and the group goes on after one that was."""
    needs("memory")
    with isolib.new_cgroup(memory_max="96M") as group:
        for megabytes, reason in ((10, Reason.EXITED), (200, Reason.OOM), (10, Reason.EXITED)):
            assert eat(group, megabytes)[1].reason is reason


@pytest.mark.parametrize("together", [True, False])
def test_oom_group(*, together: bool) -> None:
    """With oom_group everybody in the group dies when one must; without, the one alone."""
    needs("memory")
    with isolib.new_cgroup(memory_max="64M", oom_group=together) as group, group.spawn(["sleep", "100"]) as bystander:
        assert eat(group, 200)[1].reason is Reason.OOM
        if together:
            # In v2 the kernel kills, and counts, him too; in v1 his supervisor is told that the group is out of memory.
            assert bystander.wait(timeout=10).reason is Reason.OOM
        else:
            assert bystander.poll() is None


def test_child_of_the_command_is_killed() -> None:
    """A command that fails because the kernel killed a process that it had started says OOM, too."""
    needs("memory")
    script = f"{PYTHON} -c '{EAT}' 200 || exit 7"
    with isolib.new_cgroup(memory_max="64M", oom_group=False) as group, group.spawn(["sh", "-c", script]) as process:
        end = process.wait()
        assert (end.code, end.reason) == (7, Reason.OOM)


def test_memory_limit_for_a_start() -> None:
    """A limit that is too low for a program to start is an error that says so, and leaves nothing."""
    needs("memory")
    with pytest.raises(isolib.IsolibError, match="memory"), isolib.new_cgroup(memory_max=4096) as group:
        group.spawn(["true"]).close()


def cpu_total(group: isolib.Cgroup) -> float:
    """Return how much processor time a group has had."""
    counted = group.stats().cpu
    assert counted is not None
    assert counted.total is not None
    return counted.total


def cpu_used(group: isolib.Cgroup, seconds: float, processes: int = 1) -> float:
    """Return how much processor time processes in the group get in a while, as a part of one processor."""
    running = [group.spawn([PYTHON, "-c", BURN], stdout=PIPE) for _ in range(processes)]
    try:
        for process in running:
            wait_for_start(process)
        before, start = cpu_total(group), time.monotonic()
        wait(seconds)
        after, end = cpu_total(group), time.monotonic()
        return (after - before) / (end - start)
    finally:
        for one in running:
            one.close()


def wait_for_start(process: isolib.Process) -> None:
    """Wait until a process burns: what its start needs, the files of Python among it, is not shared by weights."""
    assert process.stdout is not None
    assert process.stdout.readline() == b"\n"


def wait(seconds: float) -> None:
    """Let time pass."""
    threading.Event().wait(seconds)


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_cpu_limit(share: float) -> None:
    """A busy loop gets its share of a processor, within 10 %."""
    needs("cpu")
    with isolib.new_cgroup(cpu_max=share, cpu_weight=10000) as group:  # what others want must not matter here
        assert group.cpu.max == share
        assert cpu_used(group, 3) == pytest.approx(share, rel=0.1)
        counted = group.stats().cpu
        assert counted is not None
        assert counted.throttled_periods  # it was the limit that held it


def test_cpu_weight() -> None:
    """Groups of weight 100 and 300 share one processor 1:3, within 15 %."""
    needs("cpu")
    processor = min(os.sched_getaffinity(0))
    argv = ["taskset", "-c", str(processor), PYTHON, "-c", BURN]
    with (
        isolib.new_cgroup() as above,
        above.child("light", cpu_weight=100) as light,
        above.child("heavy", cpu_weight=300) as heavy,
        light.spawn(argv, stdout=PIPE) as one,
        heavy.spawn(argv, stdout=PIPE) as other,
    ):
        wait_for_start(one)
        wait_for_start(other)
        before = [cpu_total(group) for group in (light, heavy)]
        assert wait_for(lambda: cpu_total(light) - before[0] > 1)
        after = [cpu_total(group) for group in (light, heavy)]
        used = [late - early for late, early in zip(after, before, strict=True)]
        assert used[1] / used[0] == pytest.approx(3, rel=0.15)


def test_pids_limit_stops_a_fork_bomb() -> None:
    """A fork bomb gets no further than its limit, and all of it is gone with the group."""
    needs("pids")
    with isolib.new_cgroup(pids_max=40) as group, group.spawn([PYTHON, "-c", FORK_BOMB]) as process:
        assert wait_for(lambda: group.pids.current >= 40)
        assert wait_for(lambda: group.pids.hits)
        subprocess.run(["true"], check=True)  # the host is unharmed
        assert len(group.pids()) == 40
        group.kill()
        assert group.pids() == []
        assert process.wait().reason is Reason.KILLED


def test_pids_limit_is_the_reason() -> None:
    """A program that fails because it may not fork says LIMIT."""
    needs("pids")
    code = "import os\nfor _ in range(20):\n    if not os.fork(): os.read(os.pipe()[0], 1)"
    with isolib.new_cgroup(pids_max=8) as group, group.spawn([PYTHON, "-c", code], stderr=PIPE) as process:
        process.communicate()
        end = process.wait()
        assert (end.code, end.reason) == (1, Reason.LIMIT)
        assert end.usage.pids_peak == 7


@pytest.fixture
def block_device(place: Path) -> Iterator[str]:
    """Return a loop device, which a group can be limited on."""
    if os.geteuid() != 0:
        pytest.skip("needs to be started by root, who may make a block device")
    image = place / "disk"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    made = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no loop devices here: {made.stderr.strip()}")
    yield made.stdout.strip()
    subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


DIRECT_WRITE = """
import mmap, os, sys, time
block = mmap.mmap(-1, 1 << 20)
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_DIRECT)
start = time.monotonic()
for at in range(int(sys.argv[2])):
    os.pwrite(fd, block, at << 20)
print((int(sys.argv[2]) << 20) / (time.monotonic() - start))
"""


def test_io_limit(block_device: str) -> None:
    """A direct write gets the rate that was set, within 20 %, and is counted."""
    needs("io")
    rate = 8 << 20
    with isolib.new_cgroup(io_max={block_device: isolib.IoLimit(wbps=rate)}) as group:
        assert [limit.wbps for limit in group.io.max.values()] == [rate]
        with group.spawn([PYTHON, "-c", DIRECT_WRITE, block_device, "24"], stdout=PIPE) as process:
            out, _ = process.communicate()
            assert float(out or 0) == pytest.approx(rate, rel=0.2)
            usage = process.wait().usage
        assert usage.io_written == 24 << 20
        [counted] = [one for device, one in group.stats().io.items() if device in group.io.max]
        assert counted.written_bytes == 24 << 20


def test_cpus() -> None:
    """A process runs on the processors that its group has, and on no others."""
    needs("cpuset")
    processor = max(os.sched_getaffinity(0))
    with isolib.new_cgroup(cpus={processor}) as group:
        assert group.cpuset.cpus == {processor}
        code = "import os; print(os.sched_getaffinity(0))"
        with group.spawn([PYTHON, "-c", code], stdout=PIPE) as process:
            assert eval(process.communicate()[0] or b"") == {processor}  # noqa: S307 - our own program's words


def test_hugetlb() -> None:
    """A limit on huge pages is kept, by their size."""
    needs("hugetlb")
    with isolib.new_cgroup(hugetlb_max={"2M": "4M"}) as group:
        assert group.hugetlb.max["2MB"] == 4 << 20
        assert group.hugetlb.current("2M") == 0


def test_live_changes() -> None:
    """Limits can be changed while processes live in the group, and read back."""
    needs("memory", "cpu", "pids")
    with isolib.new_cgroup(memory_max="128M") as group, group.spawn(["sleep", "100"]) as process:
        group.memory.max = "64M"
        group.memory.low = "8M"
        group.cpu.max = 0.75
        group.cpu.weight = 300
        group.pids.max = 30
        assert (group.memory.max, group.memory.low, group.pids.max) == (64 << 20, 8 << 20, 30)
        assert (group.cpu.max, group.cpu.weight) == (0.75, 300)
        group.memory.max = group.cpu.max = group.pids.max = None
        assert (group.memory.max, group.cpu.max, group.pids.max) == (None, None, None)
        assert process.pid in group.pids()  # it is in every hierarchy that was added
        with open(f"/proc/{process.pid}/cgroup", encoding="ascii") as file:
            inside = [line for line in file.read().splitlines() if group.name in line.split("/")]
        assert len(inside) == len(directories(group))


# ---- control ----


def test_freeze_and_thaw(ticking: Callable[[isolib.Cgroup], Ticker]) -> None:
    """A frozen group makes no progress, and goes on when it is thawed."""
    with isolib.new_cgroup() as group:
        ticker = ticking(group)
        with group.frozen() as held:
            assert held is group
            assert stands_still(group)
            ticker.drain()
            wait(0.1)
            assert ticker.drain() == 0
        assert not stands_still(group)
        assert wait_for(ticker.drain)


def stands_still(group: isolib.Cgroup) -> bool:
    """Return whether a group is frozen; a function, for type checkers think that a property stays as it was."""
    return group.is_frozen


def wait_for(condition: Callable[[], object]) -> bool:
    """Return whether a condition becomes true in time."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if condition():
            return True
        wait(0.01)
    return False


def test_frozen_blocks_nest(ticking: Callable[[isolib.Cgroup], Ticker]) -> None:
    """Of blocks within one another the outermost lets the group go on."""
    with isolib.new_cgroup() as group:
        ticking(group)
        with group.frozen():
            with group.frozen():
                assert stands_still(group)
            assert stands_still(group)
        assert not stands_still(group)


def test_a_frozen_group_can_be_killed(ticking: Callable[[isolib.Cgroup], Ticker]) -> None:
    """Killing and closing a frozen group end those in it."""
    with isolib.new_cgroup() as group:
        ticker = ticking(group)
        group.freeze()
        group.kill()
        assert ticker.process.wait(timeout=10).reason is Reason.KILLED
        group.thaw()
        other = ticking(group)
        group.freeze()
    assert other.process.wait(timeout=10).reason is Reason.KILLED


def test_a_process_of_a_frozen_group_can_be_killed(ticking: Callable[[isolib.Cgroup], Ticker]) -> None:
    """Process.kill ends one that stands still, and no other of its group."""
    with isolib.new_cgroup() as group:
        first, second = ticking(group), ticking(group)
        group.freeze()
        first.process.kill()
        assert first.process.wait(timeout=10).reason is Reason.KILLED
        group.thaw()
        second.drain()
        assert wait_for(second.drain)


def test_kill_of_many_that_fork() -> None:
    """Of 500 processes that fork all the time none is left after a kill, and the group can be used again."""
    needs("pids")
    with isolib.new_cgroup(pids_max=500) as group, group.spawn([PYTHON, "-c", FORK_BOMB]):
        assert wait_for(lambda: group.pids.current >= 500)
        group.kill()
        assert group.pids() == []
        with group.spawn(["echo", "again"], stdout=PIPE) as process:
            assert process.communicate()[0] == b"again\n"


def test_spawn_after_kill() -> None:
    """A group that was killed, again and again, takes new processes."""
    with isolib.new_cgroup() as group:
        for _ in range(3):
            with group.spawn(["sleep", "100"]) as process:
                group.kill()
                assert process.wait().reason is Reason.KILLED
            with group.spawn(["true"]) as process:
                assert process.wait().reason is Reason.EXITED


def test_restart() -> None:
    """restart ends a process and starts the same program, with its streams, in the same group."""
    with isolib.new_cgroup() as group:
        first = group.spawn(["sh", "-c", "echo $$; exec sleep 100"], stdout=PIPE)
        assert first.stdout is not None
        one = first.stdout.readline()
        with group.restart(first) as second:
            assert first.exit is not None
            assert second.stdout is not None
            assert second.stdout.readline() != one
            assert second.pid in group.pids()


def test_kill_reaches_those_who_left() -> None:
    """What a process has put into a session of its own, without a pid namespace, ends with the process."""
    with isolib.new_cgroup() as group:
        with group.spawn(["sh", "-c", "setsid sleep 1000 & setsid sleep 1000 & exit 0"]) as process:
            assert process.wait().code == 0
        assert group.pids() == []


def test_add(ticking: Callable[[isolib.Cgroup], Ticker]) -> None:
    """A process that exists can be moved into the group, and is killed with it."""
    with subprocess.Popen(["sleep", "1000"]) as other, isolib.new_cgroup() as group:
        group.add(other)
        assert group.pids() == [other.pid]
        with group.spawn(["true"]) as process:  # both kinds live together
            assert process.wait().code == 0
        group.kill()
        assert other.wait() == -signal.SIGKILL


def test_entered() -> None:
    """In the block of entered() this process is in the group, and afterwards where it was."""
    code = """
import isolib
def own():
    with open("/proc/self/cgroup") as file: return file.read()
before = own()
with isolib.new_cgroup() as group:
    with group.entered() as same:
        assert same is group
        inside = [line for line in own().splitlines() if group.name in line.split("/")]
        assert len(inside) == len(set(group.paths.values())), own()
    assert own() == before
"""
    done = subprocess.run([PYTHON_HERE, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


PYTHON_HERE = sys.executable


def test_nested_groups() -> None:
    """Groups below a group have limits of their own, and are gone with it."""
    needs("memory")
    with isolib.new_cgroup(memory_max="128M") as outer:
        inner = outer.child("inner", memory_max="48M")
        assert all(inner.paths[name] == f"{path}/inner" for name, path in outer.paths.items() if name in inner.paths)
        with outer.spawn(["sleep", "100"]), inner.spawn(["sleep", "100"]) as process:
            assert process.pid in outer.pids()
            assert eat(inner, 100)[1].reason is Reason.OOM
            assert eat(outer, 60)[1].reason is Reason.EXITED
        other = isolib.new_cgroup(parent=outer)
        outer.close()
        assert inner.closed
        assert other.closed


def burn(group: isolib.Cgroup, seconds: float) -> tuple[float, isolib.Usage]:
    """Let a process in the group compute; returns how much processor time it has had as it knows itself, and as is told."""
    code = "import os, sys, time\nend = time.process_time() + float(sys.argv[1])\nwhile time.process_time() < end: pass\n"
    code += "print(time.process_time(), flush=True)\nos._exit(0)"
    with group.spawn([PYTHON, "-c", code, str(seconds)], stdout=PIPE) as process:
        own = float(process.communicate()[0] or 0)
        return own, process.wait().usage


def test_usage_is_each_processes_own() -> None:
    """What two processes of a group use is counted apart."""
    needs("memory")
    with isolib.new_cgroup() as group:
        small, large = (eat(group, size)[1].usage for size in (1, 60))
        assert small.memory_peak is not None
        assert large.memory_peak is not None
        assert large.memory_peak - small.memory_peak > 50 << 20
        burning, idle = (burn(group, seconds) for seconds in (0.5, 0))
        assert burning[0] > 0.5
        for own, usage in (burning, idle):
            assert usage.cpu_user is not None
            assert usage.cpu_system is not None
            assert own - 0.05 < usage.cpu_user + usage.cpu_system < own + 0.45
            assert usage.pids_peak == 1


# ---- many ----


@pytest.mark.slow
def test_a_thousand() -> None:
    """A thousand groups are made, filled and removed, and none is left."""
    needs("pids")
    places: list[Path] = []
    for _ in range(1000):
        with isolib.new_cgroup(pids_max=20) as group, group.spawn(["true"]) as process:
            places += directories(group)
            process.wait()
    assert not any(place.exists() for place in places)


def test_from_many_threads() -> None:
    """200 groups made from 16 threads at once have each the limits that were asked for."""
    needs("memory", "pids")

    def one(number: int) -> bool:
        with isolib.new_cgroup(memory_max=(64 + number) << 20, pids_max=20 + number) as group:
            with group.spawn(["true"]) as process:
                code = process.wait().code
            return (group.memory.max, group.pids.max, code) == ((64 + number) << 20, 20 + number, 0)

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(one, range(200)))


# ---- closed by another thread ----


def test_nobody_comes_while_it_is_closed() -> None:
    """From when somebody begins to close a group on, nothing is made in it; what was made before goes with it."""
    reached, go_on = threading.Event(), threading.Event()

    class Child:
        def close(self) -> None:
            reached.set()
            assert go_on.wait(PATIENCE)

    with isolib.new_cgroup() as group:
        child = Child()
        group._children.add(child)  # type: ignore[arg-type]
        lodge = group.lodge()
        closing = threading.Thread(target=group.close)
        closing.start()
        try:
            assert reached.wait(PATIENCE)
            for make in (group.lodge, lambda: group.child("inner"), lambda: isolib.new_cgroup(parent=group)):
                with pytest.raises(isolib.ClosedError, match="being closed"):
                    make()
        finally:
            go_on.set()
            closing.join(PATIENCE)
        assert lodge.is_gone


def test_a_place_that_was_left_touches_nothing(tmp_path: Path) -> None:
    """Where a group is closed and a place in it is not, nothing more is done in it, whoever has its numbers by now."""
    if not has_version_2():
        pytest.skip("this host has no cgroup v2 in which this user may make groups")
    with isolib.new_cgroup() as group:
        lodge = group.lodge()
        parting = lodge.parting()
        assert parting is not None
        lent = parting.lend()
        lodge.abandon()
    for name in ("cgroup.events", "cgroup.procs"):
        (tmp_path / name).write_text("populated 0\n")
    (tmp_path / lodge.name).mkdir()
    others = [os.open(tmp_path, os.O_RDONLY) for _ in range(64)]
    try:
        lib.isolib_batch_run_lent(lent)
        lodge.kill()
        assert lodge.settle() == Account()
        assert (tmp_path / lodge.name).is_dir()
        assert not (tmp_path / "cgroup.kill").exists()
    finally:
        for other in others:
            os.close(other)


def test_closed_while_commands_run() -> None:
    """A sandbox that is closed while others run commands in it is gone with all of them, and so are their groups."""
    needs("memory", "pids")

    def keep_running() -> int:
        done = 0
        with contextlib.suppress(isolib.IsolibError):
            while True:
                done += box.run(["true"]).returncode == 0
        return done

    for _ in range(20):
        with ThreadPoolExecutor(4) as pool, isolib.Sandbox(memory="64M", pids=64) as box:
            running = [pool.submit(keep_running) for _ in range(4)]
            box.run(["true"])
            places = directories(box.cgroup)
            box.close()
            assert all(one.result(PATIENCE) >= 0 for one in running)
        assert not any(place.exists() for place in places)


# ---- bad input ----


@pytest.mark.parametrize(
    ("limits", "word"),
    [
        ({"memory_max": -1}, "memory_max"),
        ({"memory_max": "lots"}, "memory_max"),
        ({"memory_max": 2**70}, "memory_max"),
        ({"memory_max": 1.5}, "memory_max"),
        ({"swap_max": "-5M"}, "swap_max"),
        ({"cpu_max": 0}, "cpu_max"),
        ({"cpu_max": -0.5}, "cpu_max"),
        ({"cpu_max": float("nan")}, "cpu_max"),
        ({"cpu_max": "half"}, "cpu_max"),
        ({"cpu_weight": 0}, "cpu_weight"),
        ({"cpu_weight": 10001}, "cpu_weight"),
        ({"pids_max": -1}, "pids_max"),
        ({"pids_max": 2**40}, "pids_max"),
        ({"cpus": "3-1"}, "cpus"),
        ({"cpus": "a"}, "cpus"),
        ({"cpus": []}, "cpus"),
        ({"io_max": {"/dev/nothing": isolib.IoLimit(wbps=1)}}, "/dev/nothing"),
        ({"io_max": {"/dev/null": isolib.IoLimit(wbps=1)}}, "/dev/null"),
        ({"io_max": {"/proc": isolib.IoLimit(wbps=1)}}, "/proc"),
        ({"io_max": {"8:0": 5}}, "io_max"),
        ({"hugetlb_max": "4M"}, "hugetlb_max"),
        ({"name": "a/b"}, "a/b"),
        ({"name": ".."}, ".."),
        ({"name": ""}, "name"),
        ({"name": "memory.max"}, "memory.max"),
        ({"name": "a\nb"}, "name"),
        ({"name": "x" * 300}, "name"),
        ({"allow": ("everything",)}, "everything"),
        ({"allow": "memory_max"}, "allow"),
        ({"parent": "/sys/fs/cgroup"}, "parent"),
        ({"threaded": True}, "threaded"),
    ],
)
def test_bad_arguments(limits: dict[str, object], word: str) -> None:
    """A bad argument is a PlanError that names it, and nothing was made."""
    with pytest.raises(isolib.PlanError) as caught:
        isolib.new_cgroup(**limits)  # type: ignore[arg-type]
    assert word in str(caught.value)


def test_limits_within_those_above() -> None:
    """A limit above that of the group above is refused, with the file and both values."""
    needs("memory", "pids")
    with isolib.new_cgroup(memory_max="64M", pids_max=10) as group:
        for limits, word in (({"memory_max": "128M"}, "memory.max"), ({"pids_max": 11}, "pids.max")):
            with pytest.raises(isolib.PlanError, match=word):
                group.child("inner", **limits)
        group.child("inner", memory_max="64M", pids_max=10).close()


def test_what_the_kernel_refuses() -> None:
    """A value that only the kernel can refuse is an error that names the file and the value, and leaves nothing."""
    needs("cpuset")
    with pytest.raises(isolib.SyscallError) as caught:
        isolib.new_cgroup(cpus={8000})
    assert "cpuset.cpus" in str(caught.value)
    assert "8000" in str(caught.value)


def test_device_that_the_kernel_does_not_know() -> None:
    """A device number without a device is an error that names the file and the device."""
    needs("io")
    with pytest.raises(isolib.SyscallError, match="4095:77"):
        isolib.new_cgroup(io_max={(4095, 77): isolib.IoLimit(wbps=1 << 20)})


def test_a_name_twice() -> None:
    """A name that is taken is an error, and the group that has it stays as it is."""
    name = f"isolib-test-{os.getpid()}"
    with isolib.new_cgroup(name=name) as group, group.spawn(["sleep", "100"]) as process:
        with pytest.raises(isolib.SyscallError, match=name) as caught:
            isolib.new_cgroup(name=name)
        assert caught.value.errno == errno.EEXIST
        assert process.pid in group.pids()


def test_a_group_that_vanished() -> None:
    """A group that somebody else has removed is an error that says so; closing it is none."""
    with isolib.new_cgroup() as group:
        for place in directories(group):
            for below in place.glob("*/"):
                below.rmdir()
            place.rmdir()
        with pytest.raises(isolib.GoneError):
            group.child("inner")
        with pytest.raises(isolib.GoneError):
            group.spawn(["true"]).close()


def test_closed() -> None:
    """What is closed cannot be used, and can be closed again."""
    group = isolib.new_cgroup()
    group.close()
    group.close()
    for use in (group.fileno, group.freeze, group.kill, lambda: group.spawn(["true"]), lambda: group.add(os.getpid())):
        with pytest.raises(isolib.ClosedError):
            use()


@pytest.mark.parametrize(
    ("pid", "kind"),
    [
        *((pid, isolib.PlanError) for pid in (0, -1, True, "1", None)),
        (2**31 - 1, isolib.GoneError),
    ],
)
def test_add_nobody(pid: object, kind: type[isolib.IsolibError]) -> None:
    """What is the number of no process cannot be added, and what could be one's is not found."""
    with isolib.new_cgroup() as group:
        with pytest.raises(kind, match="process"):
            group.add(pid)  # type: ignore[arg-type]
        assert group.pids() == []


def test_forgotten() -> None:
    """A group that is forgotten is removed, with a warning."""
    group = isolib.new_cgroup()
    places = directories(group)
    with pytest.warns(ResourceWarning, match="never closed"):
        del group
    assert not any(place.exists() for place in places)


# ---- adopting ----


def test_open_by_path_and_by_process() -> None:
    """A group can be adopted by its directory and by a process in it; closing the handle leaves it as it is."""
    with isolib.new_cgroup() as group, group.spawn(["sleep", "100"]) as process:
        for path in set(group.paths.values()):
            with isolib.open_cgroup(path) as same:
                assert process.pid in same.pids()
        with isolib.open_cgroup(process) as inner:
            assert process.pid in inner.pids()
        assert process.poll() is None
    with pytest.raises(isolib.PlanError, match="no control group"):
        isolib.open_cgroup("/tmp")
    with pytest.raises(isolib.GoneError):
        isolib.open_cgroup("/sys/fs/cgroup/no-such-group")


def test_hierarchy() -> None:
    """hierarchy() says what /proc and the mounts say."""
    found = isolib.hierarchy()
    kinds = {line.split(" - ")[1].split()[0] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    assert (
        found.mode
        == {(True, True): "hybrid", (True, False): "unified", (False, True): "legacy"}[
            "cgroup2" in kinds,
            "cgroup" in kinds,
        ]
    )
    for binding in found.controllers.values():
        assert Path(binding.path).is_dir()
    known = controllers() & {"cpu", "cpuset", "hugetlb", "io", "memory", "pids"}
    assert known
    assert {name: found.controllers[name].version for name in known} == {name: 1 if is_legacy(name) else 2 for name in known}
    assert found.delegation == ("root" if os.geteuid() == 0 else "delegated")
