"""An interrupt at any point of a life: nothing that isolib opened or started is left."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import select
import signal
import warnings
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib import PIPE, SetupFailed, spawn
from isolib._kernel import reaper
from tests.groups import left, parents
from tests.interrupts import interrupt
from tests.plans import adopting, children_of, descriptors
from tests.table import lost, own

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType

    Scenario = Callable[[], None]

pytestmark = pytest.mark.usefixtures("user_namespaces", "adopted")

#: Where interrupts are raised: the modules that own something. (Planning owns nothing.)
FILES = {
    *("process.py", "oneshot.py", "sandbox.py"),
    *(f"_kernel/{name}.py" for name in ("launch", "request", "streams", "handle", "reaper")),
    *(f"_kernel/calls/{name}.py" for name in ("batching", "checking", "launching", "reaping", "system")),
    *(
        "cgroups/errands.py",
        "cgroups/files.py",
        "cgroups/freezing.py",
        "cgroups/group.py",
        "cgroups/lodge.py",
        "cgroups/make.py",
    ),
    *("cgroups/moving.py", "cgroups/place.py", "cgroups/removal.py", "cgroups/controls.py"),
}
OWNERS = {os.path.join(os.path.dirname(isolib.__file__), name) for name in FILES}


def a_process() -> None:
    """Start a process and wait for it."""
    with spawn(["true"]) as process:
        assert process.wait(60).code == 0


def a_conversation() -> None:
    """Write to a process and read from it."""
    with spawn(["cat"], stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
        assert process.communicate(b"word", 60) == (b"word", b"")


def files() -> None:
    """Use a process's streams as files, then go on with communicate()."""
    with spawn(["sh", "-c", "echo one; echo two; cat"], stdin=PIPE, stdout=PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"three\n")
        assert process.stdout.readline() == b"one\n"
        assert process.communicate(timeout=60)[0] == b"two\nthree\n"


def a_terminal() -> None:
    """Start a process in namespaces of its own with a terminal, and kill it."""
    with spawn(["cat"], new={"user", "pid", "mnt"}, pty=True) as process:
        process.resize(24, 80)
        assert process.terminal is not None
        process.terminal.write(b"x\n")
        assert process.terminal.read(1) == b"x"
        process.kill()


def a_failure() -> None:
    """Fail to start a process."""
    with contextlib.suppress(SetupFailed):
        spawn(["/nonexistent"], new={"user", "pid"}, stdin=PIPE, stdout=PIPE).close()


def a_run() -> None:
    """Run a command in a sandbox of its own."""
    assert isolib.run(["cat"], input=b"word").stdout == b"word"


def a_failed_run() -> None:
    """Fail to run one."""
    with contextlib.suppress(SetupFailed):
        isolib.run(["/nonexistent"])


def a_late_run() -> None:
    """Run one that takes too long."""
    with contextlib.suppress(isolib.SandboxTimeout):
        isolib.run(["sleep", "100"], timeout=0.01)


def a_group() -> None:
    """Make a group with limits, and remove it."""
    isolib.new_cgroup(memory_max="64M", pids_max=50).close()


def a_process_in_a_group() -> None:
    """Start a process in a group, wait for it, and start another one."""
    with isolib.new_cgroup(memory_max="64M", pids_max=50) as group:
        with group.spawn(["true"]) as process:
            assert process.wait(60).code == 0
        other = group.spawn(["sleep", "100"])
    other.close()


def a_frozen_group() -> None:
    """Let a process stand still for a while."""
    with isolib.new_cgroup() as group, group.spawn(["sleep", "100"]):
        with group.frozen():
            pass
        group.kill()


def an_entered_group() -> None:
    """Be in a group for a while, and go back."""
    with isolib.new_cgroup() as group, group.entered():
        pass


def a_limited_run() -> None:
    """Run a command in a sandbox with limits."""
    assert isolib.run(["cat"], input=b"word", memory="64M", pids=20).stdout == b"word"


def a_limited_sandbox() -> None:
    """Make a sandbox with limits, run a command in it and start another one."""
    with isolib.Sandbox(memory="64M", pids=20) as box:
        assert box.run(["true"]).returncode == 0
        box.popen(["sleep", "100"])


def a_sandbox() -> None:
    """Make a sandbox, run a command in it and start another one."""
    with isolib.Sandbox() as box:
        assert box.run(["true"]).returncode == 0
        box.popen(["sleep", "100"])


SCENARIOS: tuple[Scenario, ...] = (
    a_process,
    a_conversation,
    files,
    a_terminal,
    a_failure,
    a_run,
    a_failed_run,
    a_late_run,
    a_sandbox,
    a_group,
    a_process_in_a_group,
    a_frozen_group,
    an_entered_group,
    a_limited_run,
    a_limited_sandbox,
)
GROUPS = SCENARIOS[9:]

MOST = 400
"""How many points of one scenario are tried at the most; where it has more, they are drawn."""


@pytest.fixture
def adopted() -> Iterator[None]:
    """Adopt what is left behind, so that it can be waited for; but not the reaper."""
    with contextlib.suppress(isolib.Unsupported):
        isolib.new_cgroup().close()
    with adopting():
        yield
    if reaper._reapers:  # an interrupt may cost an entry, no more; other tests count them
        assert len(lost()) <= MOST
        own().free += lost()


@pytest.fixture(params=SCENARIOS, ids=lambda scenario: str(scenario.__name__))
def scenario(request: pytest.FixtureRequest) -> Iterator[Scenario]:
    """Run the test with each scenario; processes that are forgotten are not worth a warning here, for they are the point."""
    if request.param in GROUPS:
        parents()
    request.param()  # what is opened once is opened
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
        gc.freeze()  # so that hundreds of collections look only at what the scenario made
        yield request.param
        gc.unfreeze()


def is_ours(code: CodeType) -> bool:
    """Return whether this is code of isolib that has something to lose."""
    return code.co_filename in OWNERS


def strangers() -> list[int]:
    """Return the children of this process but its reaper, which stays."""
    own = {one.launched.supervisor_pid for one in reaper._reapers.values() if one.launched}
    return [pid for pid in children_of(os.getpid()) if pid not in own]


def assert_nothing_left(before: dict[str, str], where: str) -> None:
    """Fail unless every descriptor is closed, every process ends and every group is removed."""
    gc.collect()
    assert descriptors() == before, where
    assert left(f"isolib-{os.getpid()}-") == [], where
    for pid in strangers():
        ended = os.pidfd_open(pid)
        try:
            assert select.select([ended], [], [], 10)[0], f"{where}: process {pid} still runs"
        finally:
            os.close(ended)
        os.waitid(os.P_PID, pid, os.WEXITED)
    assert strangers() == [], where


def test_interrupt_at_every_point(scenario: Scenario, lost: list[type[BaseException]]) -> None:
    """Wherever an interrupt comes, every descriptor is closed and every process ends; of many points MOST are drawn."""
    before = descriptors()
    far = 1_000_000
    points = far - interrupt(far, scenario, is_ours)
    assert points > 50
    turns = range(1, points + 1)
    chosen = list(turns) if points <= MOST else sorted(random.Random(points).sample(turns, MOST))  # noqa: S311 - no secret
    for turn in chosen:
        interrupt(turn, scenario, is_ours)
        assert_nothing_left(before, f"point {turn} of {points}")
    assert set(lost) <= {KeyboardInterrupt}


def test_interrupted_close_is_finished() -> None:
    """When an interrupt comes out of close(), and the process counts as closed, it has ended."""
    turn, closed = 0, 0
    came = True
    while came:
        turn += 1
        with spawn(["sleep", "1000"], new={"user", "pid"}) as process:
            supervisor = os.dup(process.fileno())
            came = interrupt(turn, process.close, is_ours) == 0
            try:
                process.fileno()
            except isolib.ClosedError:
                closed += came
                assert select.select([supervisor], [], [], 0)[0], f"point {turn}"
            finally:
                os.close(supervisor)
    assert closed > 3


def test_interrupt_by_a_signal(scenario: Scenario, lost: list[type[BaseException]]) -> None:
    """The same with true signals at random times, most of which find the thread in a system call."""
    before = descriptors()
    choose = random.Random(11)  # noqa: S311 - no secret
    armed = False

    def interrupt_once(_: int, __: object) -> None:
        if armed:  # the kernel may deliver the signal of a timer that was just cancelled
            raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt_once)
    try:
        for turn in range(100):
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, choose.uniform(1e-5, 6e-3))
                scenario()
                armed = False
            except KeyboardInterrupt:
                armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert_nothing_left(before, f"turn {turn}")
    finally:
        signal.signal(signal.SIGALRM, old)
    assert set(lost) <= {KeyboardInterrupt}
