"""The limits of sandboxes: each is kept, its reason is told, and one that this host cannot keep is an exception."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib import Reason, Sandbox
from tests.groups import left, needs
from tests.programs import as_host

if TYPE_CHECKING:
    from collections.abc import Callable

    from isolib.spec import SandboxFields

pytestmark = pytest.mark.usefixtures("user_namespaces", "groups")

EAT = "import sys\nblock = bytearray(int(sys.argv[1]) << 20)\nprint('survived')"
FORKS = "import os\nwhile True: os.fork()"
BURN = "import os, sys, time\nend = float(sys.argv[1])\nwhile time.process_time() < end: pass"

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


def once(argv: list[str], *, check: bool = False, **limits: object) -> isolib.Completed:
    """Run a command in a sandbox of its own."""
    return isolib.run(argv, cwd="/tmp", check=check, **limits)  # type: ignore[arg-type]


def in_a_box(argv: list[str], *, check: bool = False, **limits: object) -> isolib.Completed:
    """Run a command in a sandbox that is there for many."""
    with Sandbox(cwd="/tmp", **limits) as box:  # type: ignore[arg-type]
        assert box.run(["true"]).returncode == 0
        return box.run(argv, check=check)


def in_a_fresh_box(argv: list[str], *, check: bool = False, **limits: object) -> isolib.Completed:
    """Run a command, the first, in a sandbox that is there for many."""
    with Sandbox(cwd="/tmp", **limits) as box:  # type: ignore[arg-type]
        return box.run(argv, check=check)


both = pytest.mark.parametrize("run", [once, in_a_box])


def python(code: str, *arguments: object) -> list[str]:
    """Return the command for a program."""
    return ["python3", "-I", "-S", "-c", code, *map(str, arguments)]


# ---- each limit ----


@both
def test_memory(run: Callable[..., isolib.Completed]) -> None:
    """Who wants more memory than there is is killed, and the reason is OOM; who wants less is not."""
    needs("memory")
    done = run(python(EAT, 200), memory="64M", swap=None)
    assert (done.exit.reason, done.stdout, done.degraded) == (Reason.OOM, b"", {})
    assert done.usage.memory_peak is not None
    assert 50 << 20 < done.usage.memory_peak <= 66 << 20
    done = run(python(EAT, 10), memory="64M")
    assert (done.exit.reason, done.stdout) == (Reason.EXITED, b"survived\n")
    with pytest.raises(isolib.OutOfMemory, match="memory limit of 67108864 bytes") as caught:
        run(python(f"print('before', flush=True)\n{EAT}", 200), memory="64M", check=True)
    assert caught.value.stdout == b"before\n"
    assert caught.value.usage is not None
    assert caught.value.usage.memory_peak


@both
def test_ends_of_ones_own(run: Callable[..., isolib.Completed]) -> None:
    """Below its limits a command ends as it would without them, whichever status or signal it chooses."""
    needs("memory", "pids")
    done = run(["sh", "-c", "exit 137"], memory="200M", pids=30)
    assert (done.returncode, done.exit.reason) == (137, Reason.EXITED)
    assert run(["sh", "-c", "kill -9 $$"], memory="200M", pids=30).exit.reason is Reason.SIGNALED


@both
def test_each_limit_has_its_own_reason(run: Callable[..., isolib.Completed]) -> None:
    """With all limits at once the reason is that of the one that was met."""
    needs("memory", "pids")
    limits = {"memory": "64M", "swap": None, "pids": 30, "output": 1000}
    assert run(python(EAT, 200), wall=60, **limits).exit.reason is Reason.OOM
    assert run(["yes"], wall=60, **limits).exit.reason is Reason.LIMIT
    assert run(python(FORKS), wall=60, **limits).exit.reason is Reason.LIMIT
    assert run(["false"], wall=60, **limits).exit.reason is Reason.EXITED
    assert run(["sleep", "60"], wall=1, **limits).exit.reason is Reason.TIMEOUT


@both
def test_swap(run: Callable[..., isolib.Completed]) -> None:
    """With no swap beside the memory nobody gets more than the memory."""
    needs("memory")
    with isolib.new_cgroup(memory_max="64M") as group:
        files = os.listdir(group.paths["memory"])
    if not {"memory.swap.max", "memory.memsw.limit_in_bytes"}.intersection(files):
        with pytest.raises(isolib.Unsupported, match="swap"):
            run(["true"], memory="64M", swap=0)
        return
    assert run(python(EAT, 200), memory="64M", swap=0).exit.reason is Reason.OOM
    assert run(python(EAT, 10), memory="64M", swap="16M").exit.reason is Reason.EXITED


@both
def test_cpu(run: Callable[..., isolib.Completed]) -> None:
    """With a tenth of a processor it takes ten times as long, but for one period at each end: the kernel's own arithmetic."""
    needs("cpu")
    done = run(python(BURN, 0.2), cpu=0.1)
    assert done.exit.reason is Reason.EXITED
    usage = done.usage
    assert usage.cpu_user is not None
    assert usage.cpu_system is not None
    used = usage.cpu_user + usage.cpu_system
    assert used >= 0.2
    assert usage.wall is not None
    # A quota of 10 ms in each period of 100 ms, two of which it has only in part; a tick of the clock may be overrun.
    assert used <= 0.1 * (usage.wall + 0.2) + 0.03


def test_weights() -> None:
    """The weight of a sandbox is that of its group."""
    needs("cpu")
    with Sandbox(cwd="/tmp", cpu_weight=250) as box:
        assert box.cgroup.cpu.weight == 250
        assert box.run(["true"]).returncode == 0


@both
def test_pids(run: Callable[..., isolib.Completed]) -> None:
    """A fork bomb is stopped, and the reason is LIMIT."""
    needs("pids")
    done = run(python(FORKS), pids=30)
    assert done.exit.reason is Reason.LIMIT
    assert done.usage.pids_peak is not None
    assert 10 < done.usage.pids_peak <= 30
    with pytest.raises(isolib.CommandFailed) as caught:
        run(python(FORKS), pids=30, check=True)
    assert caught.value.exit.usage.pids_peak
    done = run(python(CROWD), pids=30)
    assert (done.returncode, done.exit.reason) == (3, Reason.LIMIT)
    assert 20 < int(done.stdout) < 30  # some of the 30 are the command and supervisors
    assert run(["sh", "-c", "(exit 3)"], pids=30).exit.reason is Reason.EXITED


def test_io() -> None:
    """A limit on I/O is in the kernel, for the disk that was named."""
    needs("io")
    disk = next((name for name in sorted(os.listdir("/sys/block")) if not name.startswith(("loop", "ram", "zram"))), None)
    if disk is None:
        pytest.skip("this host has no disk")
    number = Path(f"/sys/block/{disk}/dev").read_text(encoding="ascii").strip()
    with Sandbox(cwd="/tmp", io={number: isolib.IoLimit(wbps=10 << 20)}) as box:
        assert any(limit.wbps == 10 << 20 for limit in box.cgroup.io.max.values())
        assert box.run(["true"]).returncode == 0
    assert once(["true"], io={number: isolib.IoLimit(riops=1000)}).returncode == 0


@pytest.mark.parametrize("run", [once, in_a_fresh_box])
@pytest.mark.parametrize("cpu", [None, 0.02])
def test_wall(run: Callable[..., isolib.Completed], cpu: float | None) -> None:
    """Time is up when it is up, also for who gets hardly any processor time; the reason is TIMEOUT."""
    needs("cpu")
    done = run(["sleep", "1000"], wall=3, cpu=cpu, pids=30)
    assert done.exit.reason is Reason.TIMEOUT
    with pytest.raises(isolib.SandboxTimeout) as caught:
        run(["sleep", "1000"], wall=3, cpu=cpu, pids=30, check=True)
    assert caught.value.usage is not None


def test_timeout_of_a_throttled_command() -> None:
    """A timeout of the host's ends a busy command with hardly any processor time, and all that it has started."""
    needs("cpu")
    with pytest.raises(isolib.SandboxTimeout):
        isolib.run(["sh", "-c", "while :; do :; done & while :; do :; done"], cwd="/tmp", cpu=0.02, timeout=1)
    assert left(f"isolib-{os.getpid()}-") == []


@both
def test_output(run: Callable[..., isolib.Completed]) -> None:
    """Who writes without end is killed, in a group with limits too; the reason is LIMIT."""
    done = run(["yes"], output="1M", memory="64M", pids=30)
    assert (done.exit.reason, len(done.stdout)) == (Reason.LIMIT, 1 << 20)


# ---- a sandbox goes on ----


def test_sandbox_goes_on_after_one_was_killed() -> None:
    """When a command is killed for want of memory, the sandbox, its files and its other commands stay."""
    needs("memory")
    with Sandbox(cwd="/tmp", memory="96M", pids=50) as box:
        box.run(["sh", "-c", "echo kept > /tmp/file"], check=True)
        other = box.popen(["sleep", "1000"])
        for _ in range(3):
            assert box.run(python(EAT, 300)).exit.reason is Reason.OOM
            done = box.run(["cat", "/tmp/file"], check=True)
            assert done.stdout == b"kept\n"
        assert box.cgroup.oom_kills >= 3
        assert other.poll() is None
        assert box.run(["pgrep", "sleep"]).returncode == 0


def test_all_of_a_command_is_killed() -> None:
    """With who is out of memory goes what the same command has started, so that nothing is left half done."""
    needs("memory")
    script = f"sleep 1000 & python3 -I -S -c '{EAT}' 300; echo went on"
    with Sandbox(cwd="/tmp", memory="96M", pids=50) as box:
        done = box.run(["sh", "-c", script])
        assert done.exit.reason is Reason.OOM
        # In v1 the kernel kills one process, and the shell may go on before the supervisor has looked.
        by_the_kernel = box.cgroup.path == box.cgroup.paths["memory"]
        assert done.stdout in ({b""} if by_the_kernel else {b"", b"went on\n"})
        assert box.run(["pgrep", "sleep"]).returncode == 1


def test_freeze_and_thaw() -> None:
    """A frozen sandbox stands still, takes no commands, and goes on when it is thawed."""
    with Sandbox(cwd="/tmp", pids=30) as box:
        script = "while :; do echo x; sleep 0.001; done"
        process = box.popen(["sh", "-c", script])
        assert process.stdout is not None
        process.stdout.readline()
        box.freeze()
        assert box.cgroup.is_frozen
        with pytest.raises(isolib.IsolibError, match="frozen"):
            box.run(["true"])
        os.set_blocking(process.stdout.fileno(), False)
        while process.stdout.read():
            pass
        threading.Event().wait(0.1)
        assert not process.stdout.read()
        os.set_blocking(process.stdout.fileno(), True)
        box.thaw()
        assert process.stdout.readline() == b"x\n"
        assert box.run(["true"]).returncode == 0


def test_frozen_sandbox_can_be_closed() -> None:
    """The end of a block ends a frozen sandbox."""
    with Sandbox(cwd="/tmp", pids=30) as box:
        process = box.popen(["sleep", "1000"])
        box.freeze()
    assert process.exit is not None
    assert process.exit.reason is Reason.KILLED


def test_usage() -> None:
    """What a command has used is counted for it alone, with all that it has started."""
    needs("memory")
    needs("pids")
    with Sandbox(cwd="/tmp", memory="256M", pids=50) as box:
        large = box.run(python(EAT, 100), check=True).usage
        small = box.run(["true"], check=True).usage
        burn = box.run(["sh", "-c", f"{shlex.join(python(BURN, 0.3))} & wait"]).usage
        crowd = box.run(["sh", "-c", "sleep 0.3 & sleep 0.3 & sleep 0.3 & wait"]).usage
    assert large.memory_peak is not None
    assert small.memory_peak is not None
    assert 100 << 20 < large.memory_peak < 130 << 20
    assert small.memory_peak < 30 << 20
    assert (small.pids_peak, crowd.pids_peak) == (1, 4)
    assert burn.cpu_user is not None
    assert burn.cpu_system is not None
    assert burn.cpu_user + burn.cpu_system > 0.299  # it stops when it has seen 0.3 s


def test_limits_are_of_all_commands_together() -> None:
    """Two commands of a sandbox share its processes."""
    needs("pids")
    with Sandbox(cwd="/tmp", pids=40) as box:
        alone = int(box.run(python(CROWD)).stdout)
        script = "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 1000 & done; echo; wait"
        with box.popen(["sh", "-c", script]) as crowd:
            assert crowd.stdout is not None
            assert crowd.stdout.read(1) == b"\n"
            beside = int(box.run(python(CROWD)).stdout)
    assert 0 < beside <= alone - 10


# ---- what this host cannot keep ----

HIDDEN = """
import os, isolib
def attempt(**limits):
    for make in (lambda: isolib.run(["true"], cwd="/tmp", **limits).exit, lambda: opened(**limits)):
        try:
            print(make())
        except isolib.Unsupported as refusal:
            print("Unsupported", refusal.feature, "|", refusal.refused_by, "|", refusal.remedy)
def opened(**limits):
    with isolib.Sandbox(cwd="/tmp", **limits) as box:
        return sorted(box.degraded), box.run(["true"]).returncode
attempt({limits})
attempt({limits}, allow=("{name}",))
found = [name for path, names, _ in os.walk("/sys/fs/cgroup") for name in names if name.startswith(f"isolib-{{os.getpid()}}-")]
print("left", found)
"""


@pytest.mark.root
@pytest.mark.parametrize(
    ("hidden", "name", "limits"),
    [
        ("memory", "memory", 'memory="64M"'),
        ("pids", "pids", "pids=20"),
        ("cpu", "cpu", "cpu=0.5"),
        ("blkio", "io", 'io={"8:0": isolib.IoLimit(wbps=1000000)}'),
    ],
)
def test_limit_that_cannot_be_kept(hidden: str, name: str, limits: str) -> None:
    """A controller that is not mounted is named by an exception, and nothing is started; allow= lets the limit be left out."""
    mount = f"/sys/fs/cgroup/{hidden}"
    if not os.path.ismount(mount):
        pytest.skip(f"this host has no hierarchy of {hidden} of its own")
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    program = HIDDEN.replace("{limits}", limits).replace("{name}", name).replace("{{", "{").replace("}}", "}")
    argv = ["unshare", "-m", "sh", "-c", f'umount {mount} && exec "$@"', "sh", sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 5
    for line in lines[:2]:
        assert line.startswith("Unsupported")
        assert name in line
        assert hidden in line
    assert "exited" in lines[2].lower()
    assert lines[3] == f"(['{name}'], 0)"
    assert lines[4] == "left []"


NOTHING_MOUNTED = """
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
    refusal, run, box = as_host(NOTHING_MOUNTED, *prefix).splitlines()
    assert refusal.startswith("refused: control groups")
    assert (run, box) == ("0 ['memory', 'pids']", "0 ['memory']")


# ---- what is no limit ----

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
