"""Limits of sandboxes: what happens at each, who is told how, and what goes on afterwards."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib import PIPE, Reason, Sandbox
from tests.groups import left, parents
from tests.programs import as_host

if TYPE_CHECKING:
    from isolib.spec import SandboxFields

pytestmark = pytest.mark.usefixtures("user_namespaces", "groups")

PYTHON = os.path.realpath(sys.executable)
EAT = "block = bytearray(300 << 20)"
EATER = [PYTHON, "-I", "-S", "-c", EAT]
#: Counts how many processes it may start.
CROWD = """
import os, signal
children = []
try:
    for _ in range(500):
        child = os.fork()
        if not child:
            signal.pause()
        children.append(child)
except OSError:
    print(len(children), flush=True)
    for child in children:
        os.kill(child, 9)
        os.waitpid(child, 0)
    raise SystemExit(3)
"""
BURN = "import os, time\nbegin = time.monotonic()\nwhile time.monotonic() - begin < 2: pass\nprint(sum(os.times()[:2]))"


@pytest.fixture
def groups() -> None:
    """Skip these tests where this user may make no groups with memory."""
    parents(controller="memory")


def test_memory() -> None:
    """A command beyond the memory limit is killed: the reason is OOM, and the peak is known; with check it is an exception."""
    done = isolib.run(EATER, cwd="/tmp", memory="64M", swap=0)
    assert (done.exit.reason, done.degraded) == (Reason.OOM, {})
    assert done.usage.memory_peak is not None
    assert 50 << 20 < done.usage.memory_peak <= 66 << 20
    with pytest.raises(isolib.OutOfMemory, match=r"memory limit of 67108864 bytes") as caught:
        isolib.run(["sh", "-c", f"echo before; exec {PYTHON} -I -S -c '{EAT}'"], cwd="/tmp", memory="64M", check=True)
    assert isinstance(caught.value, MemoryError)
    assert caught.value.stdout == b"before\n"


def test_memory_below_the_limit() -> None:
    """A command that needs less is not killed, and fails for a reason of its own as without a limit."""
    isolib.run([PYTHON, "-I", "-S", "-c", "block = bytearray(20 << 20)"], cwd="/tmp", memory="200M", check=True)
    done = isolib.run(["sh", "-c", "exit 137"], cwd="/tmp", memory="200M")
    assert (done.returncode, done.exit.reason) == (137, Reason.EXITED)
    done = isolib.run(["sh", "-c", "kill -9 $$"], cwd="/tmp", memory="200M")
    assert done.exit.reason is Reason.SIGNALED


def test_files_in_memory_count() -> None:
    """What is written into a tmpfs of the sandbox is memory of it."""
    done = isolib.run(["dd", "if=/dev/zero", "of=/tmp/large", "bs=1M", "count=300"], cwd="/tmp", memory="64M", swap=0)
    assert done.exit.reason is Reason.OOM


def test_sandbox_goes_on_after_oom() -> None:
    """A command of a sandbox is killed whole for its memory; no other is, and what stood in files is there."""
    with Sandbox(cwd="/tmp", memory="96M", swap=0) as box:
        box.run(["sh", "-c", "echo kept > /tmp/file"], check=True)
        with box.popen(["sleep", "1000"]) as bystander:
            for _ in range(2):
                done = box.run(["sh", "-c", f"sleep 1000 & {PYTHON} -I -S -c '{EAT}'; echo went on"])
                assert (done.exit.reason, done.stdout) == (Reason.OOM, b"")
            assert bystander.poll() is None
        assert box.run(["cat", "/tmp/file"], check=True).stdout == b"kept\n"
        assert box.cgroup is not None
        assert box.cgroup.oom_kills >= 2
        with pytest.raises(isolib.OutOfMemory):
            box.run(EATER, check=True)


def test_limits_are_of_all_commands_together() -> None:
    """Two commands of a sandbox share its processes."""
    with Sandbox(cwd="/tmp", pids=40) as box:
        alone = int(box.run([PYTHON, "-I", "-S", "-c", CROWD]).stdout)
        script = "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 1000 & done; echo; wait"
        with box.popen(["sh", "-c", script], stdout=PIPE) as crowd:
            assert crowd.stdout is not None
            assert crowd.stdout.read(1) == b"\n"
            beside = int(box.run([PYTHON, "-I", "-S", "-c", CROWD]).stdout)
    assert 0 < beside <= alone - 10


def test_pids() -> None:
    """A command that may start no more processes fails, and the reason says why; one that has enough does not."""
    done = isolib.run([PYTHON, "-I", "-S", "-c", CROWD], cwd="/tmp", pids=30)
    assert (done.returncode, done.exit.reason) == (3, Reason.LIMIT)
    assert 20 < int(done.stdout) < 30
    assert isolib.run(["sh", "-c", "true & wait; exit 3"], cwd="/tmp", pids=30).exit.reason is Reason.EXITED


def test_fork_bomb() -> None:
    """A fork bomb is bounded by its limit, ends with its time, and is gone when run returns."""
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    done = isolib.run([PYTHON, "-I", "-S", "-c", bomb], cwd="/tmp", pids=50, cpu=0.5, wall=1)
    assert done.exit.reason in {Reason.TIMEOUT, Reason.LIMIT}
    assert left(f"isolib-{os.getpid()}-") == []


def test_cpu() -> None:
    """A command gets the share of a processor that it was given, and its account says what it used."""
    done = isolib.run([PYTHON, "-I", "-S", "-c", BURN], cwd="/tmp", cpu=0.25, check=True)
    assert float(done.stdout) < 2 * 0.25 + 0.3
    assert done.usage.cpu_user is not None
    assert done.usage.cpu_system is not None
    assert float(done.stdout) - 0.1 < done.usage.cpu_user + done.usage.cpu_system < 1.2


def test_wall_and_memory_together() -> None:
    """Each limit has its own reason, whichever else there is."""
    limits: SandboxFields = {"cwd": "/tmp", "memory": "64M", "pids": 30, "output": 1000, "wall": 60}
    assert isolib.run(EATER, **limits).exit.reason is Reason.OOM
    assert isolib.run(["yes"], **limits).exit.reason is Reason.LIMIT
    assert isolib.run(["false"], **limits).exit.reason is Reason.EXITED
    limits["wall"] = 0.3
    assert isolib.run(["sleep", "60"], **limits).exit.reason is Reason.TIMEOUT


def test_frozen_sandbox() -> None:
    """A sandbox stands still between freeze and thaw, and can be closed in between."""
    with Sandbox(cwd="/tmp", pids=30) as box:
        process = box.popen(["sh", "-c", "while :; do echo; done"], stdout=PIPE)
        assert process.stdout is not None
        process.stdout.read(1)
        box.freeze()
        os.set_blocking(process.stdout.fileno(), False)
        while process.stdout.read(65536):
            pass
        assert not process.stdout.read(1)
        box.thaw()
        os.set_blocking(process.stdout.fileno(), True)
        assert process.stdout.read(1) == b"\n"
        box.freeze()
    assert left(f"isolib-{os.getpid()}-") == []


LIMITS: list[tuple[SandboxFields, str]] = [
    ({"memory": "many"}, "memory"),
    ({"memory": -1}, "memory"),
    ({"cpu": 0}, "cpu"),
    ({"cpu": float("nan")}, "cpu"),
    ({"pids": -1}, "pids"),
    ({"pids": "30"}, "pids"),  # type: ignore[typeddict-item]
    ({"cpu_weight": 0}, "cpu_weight"),
    ({"swap": 1.5}, "swap"),  # type: ignore[typeddict-item]
    ({"io": {"/dev/null": isolib.IoLimit(rbps="1M")}}, "/dev/null"),
]


@pytest.mark.parametrize(("limits", "word"), LIMITS)
def test_bad_limits(limits: SandboxFields, word: str) -> None:
    """A limit that is none is an error that names it, before anything is made."""
    with pytest.raises(isolib.PlanError, match=word):
        isolib.run(["true"], **limits)
    with pytest.raises(isolib.PlanError, match=word), Sandbox(**limits):
        pass


HIDDEN = """
import isolib
def kept(**options):
    return isolib.run(["true"], cwd="/tmp", memory="64M", pids=30, **options)
try:
    kept()
except isolib.Unsupported as error:
    print("refused:", error)
done = kept(allow={"memory", "pids"})
print(done.returncode, sorted(done.degraded))
with isolib.Sandbox(cwd="/tmp", memory="64M", allow={"memory"}) as box:
    print(box.run(["true"]).returncode, sorted(box.degraded))
"""


@pytest.mark.root
def test_where_no_limit_can_be_kept() -> None:
    """Where the host has no control groups a limit is refused, or left out by `allow`, which is told."""
    prefix = ["unshare", "-m", "sh", "-c", 'umount -R /sys/fs/cgroup && exec "$@"', "sh"]
    refusal, run, box = as_host(HIDDEN, *prefix).splitlines()
    assert refusal.startswith("refused: control groups")
    assert (run, box) == ("0 ['memory', 'pids']", "0 ['memory']")
