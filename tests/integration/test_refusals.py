"""What the host itself is refused while it starts a process, and what becomes of a launch whose processes are killed."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from isolib import PIPE, Reason, SetupFailed, spawn
from isolib._kernel import calls
from isolib._kernel.hints import hint
from isolib._kernel.launch import launch
from isolib._kernel.plan import Builder, Step, exec_step
from isolib._kernel.procfs import parse_stat
from tests.plans import adopting, children_of, nothing_changes
from tests.strace import attached

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolib._kernel.plan import Plan

pytestmark = pytest.mark.usefixtures("user_namespaces")

# ---- limits of the host ----

LIMITED = """
import json, os, resource, sys, isolib
from isolib import DEVNULL, PIPE
from isolib._kernel import assembly, launch, request
isolib.spawn, isolib.run, isolib.Sandbox  # imported, for that takes descriptors too
report = os.fdopen(os.dup(1), "w")
ALL = {"user", "pid", "mnt", "net", "ipc", "uts", "cgroup", "time"}

def plain():
    with isolib.spawn(["true"]) as process: assert process.wait(60).code == 0
def pipes():
    with isolib.spawn(["cat"], stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
        assert process.communicate(b"x", 60) == (b"x", b"")
def everything():
    with isolib.spawn(["true"], new=ALL, pty=True) as process: assert process.wait(60).code == 0
def run():
    assert isolib.run(["true"]).returncode == 0
def sandbox():
    with isolib.Sandbox() as box: assert box.run(["cat"], input=b"x").stdout == b"x"

def found():
    paths = {fd: f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")}
    return {fd: os.readlink(path) for fd, path in paths.items() if os.path.lexists(path)}

def attempt(body, kind, value):
    before = found()
    limits = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, limits[1]))
    try:
        body()
        said = None
    except Exception as error:
        said = [type(error).__name__, *(getattr(error, name, None) for name in ("errno", "op", "hint")), str(error)]
    finally:
        resource.setrlimit(kind, limits)
    new = {fd: path for fd, path in found().items() if path != before.get(fd)}
    base = launch._grounds.get(os.getpid())
    kept = {base.host, base.proc, base.image} if base else set()
    leaked = [path for fd, path in new.items() if int(fd) not in kept | {fd.fileno() for fd in assembly._userns_cache.values()}]
    return said, leaked
"""

FILES = """
body = globals()[sys.argv[1]]
if sys.argv[2] == "closed":
    for fd in (0, 1, 2): os.close(fd)
results = []
for limit in range(4, 500):
    results.append(attempt(body, resource.RLIMIT_NOFILE, limit))
    if results[-1][0] is None:
        break
json.dump(results, report)
"""

PROCESSES = """
import ctypes
plain()
if os.geteuid() == 0:
    os.setresgid(64999, 64999, 64999)
    os.setresuid(64999, 64999, 64999)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: or its own /proc would be root's
results = []
for limit in range(200000):
    results.append(attempt(globals()[sys.argv[1]], resource.RLIMIT_NPROC, limit))
    if results[-1][0] is None:
        break
json.dump([len(results), results[-8:]], report)
"""

FILE_SIZE = """
plain()
json.dump(attempt(plain, resource.RLIMIT_FSIZE, 100), report)
"""


def limited(program: str, *arguments: str) -> Any:  # noqa: ANN401 - JSON
    """Run a program that limits itself; returns what it reports."""
    argv = [sys.executable, "-c", LIMITED + program, *arguments]
    done = subprocess.run(argv, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


@pytest.mark.parametrize("streams", ["open", "closed"])
@pytest.mark.parametrize("body", ["plain", "pipes", "everything", "run", "sandbox"])
def test_too_many_descriptors(body: str, streams: str) -> None:
    """EMFILE at every point of a launch, in the host and in the launcher, is an exception that says so, and nothing leaks."""
    results = limited(FILES, body, streams)
    assert len(results) > 5
    assert results[-1] == [None, []]
    for said, leaked in results[:-1]:
        name, number, _, remedy, text = said
        assert leaked == [], text
        assert number == errno.EMFILE, text
        if name != "OSError":  # of a file that is looked at before anything is made
            assert name in {"SetupFailed", "SyscallError"}, text
            assert "RLIMIT_NOFILE" in remedy, text


def test_too_many_processes() -> None:
    """EAGAIN from every clone of a launch, as RLIMIT_NPROC of an ordinary user makes it."""
    for body in ("plain", "everything"):
        tries, results = limited(PROCESSES, body)
        assert tries > 1
        assert results[-1] == [None, []]
        for said, leaked in results[:-1]:
            name, number, op, remedy, text = said
            assert leaked == []
            assert (name, number) == ("SetupFailed", errno.EAGAIN), text
            assert op in {"clone", "clone3"}
            assert "RLIMIT_NPROC" in remedy


def test_too_small_files() -> None:
    """A plan longer than RLIMIT_FSIZE cannot be written, not even to memory: EFBIG, and no signal that kills."""
    said, leaked = limited(FILE_SIZE)
    assert leaked == []
    assert said[:3] == ["SetupFailed", errno.EFBIG, "writev"]


# ---- calls of the host ----

HOSTS_CALLS = [
    ("socketpair", 1, "EMFILE", "status socket"),
    ("socketpair", 1, "ENOMEM", "status socket"),
    ("setsockopt", 1, "ENOMEM", "status socket"),
    ("memfd_create", 1, "EMFILE", "the plan"),
    ("memfd_create", 1, "ENOSYS", "the plan"),
    ("writev", 1, "ENOSPC", "the plan"),
    ("writev", 1, "ENOMEM", "the plan"),
    ("pipe2", 1, "ENFILE", "standard streams"),
    ("pipe2", 2, "EMFILE", "standard streams"),
    ("pipe2", 3, "EMFILE", "standard streams"),
    ("clone", 1, "EAGAIN", "the launcher"),
    ("clone", 1, "ENOMEM", "the launcher"),
    ("recvmsg", 1, "ENOMEM", "descriptors from the launcher"),
    ("recvmsg", 2, "ENOBUFS", "descriptors from the launcher"),
    ("recvmsg", 3, "ENOMEM", "descriptors from the launcher"),
    ("dup3", 1, "EMFILE", "standard streams"),
    ("close_range", 1, "ENOMEM", "descriptors"),
    ("execveat", 1, "ENOMEM", ""),
]


@pytest.fixture
def adopted() -> Iterator[None]:
    """Adopt what a launch leaves behind."""
    with adopting():
        yield


@pytest.mark.parametrize("fault", HOSTS_CALLS, ids=lambda fault: "-".join(map(str, fault[:3])))
@pytest.mark.parametrize("new", [set(), {"user", "pid"}], ids=["plain", "inside"])
def test_a_call_of_the_host_that_fails(fault: tuple[str, int, str, str], new: set[str], adopted: None) -> None:
    """Whatever the calling thread is refused is named, with its object, and rolled back; the launcher is found another way."""
    call, nth, name, target = fault
    error: SetupFailed | None = None
    with attached(f"-einject={call}:error={name}:when={nth}", f"-etrace={call}") as trace, nothing_changes():
        try:
            with spawn(["cat"], new=new, stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
                assert process.communicate(b"x", 60) == (b"x", b"")
        except SetupFailed as failed:
            error = failed.with_traceback(None)
    assert "(INJECTED)" in trace.text()
    if not target:
        assert error is None
        return
    assert error is not None
    number = getattr(errno, name)
    assert (error.op, error.target, error.errno) == (call, target, number)
    assert error.hint == hint(call, number, target)
    assert error.step == "start of the launcher"


# ---- processes of ours that are killed ----


class Halt:
    """A point in a plan at which its process waits, and that tells when it is reached; two named pipes."""

    def __init__(self, directory: Path) -> None:
        self._reached, self._go_on = directory / "reached", directory / "go on"
        for path in (self._reached, self._go_on):
            os.mkfifo(path)

    def add(self, builder: Builder, phase: str) -> None:
        """Let a phase begin with it: to open a named pipe for reading is to wait for a writer."""
        for path in (self._reached, self._go_on):
            slot = builder.produce(phase, Step("OPEN", text=os.fsencode(path), flags=os.O_RDONLY, what=path.name), path.name)
            builder.add(phase, Step("CLOSE", fd=slot))

    def wait(self) -> None:
        """Wait until it is reached."""
        os.close(os.open(self._reached, os.O_WRONLY))

    def release(self) -> None:
        """Let the process go on, whether it is there or yet to come."""
        self._writer = os.open(self._go_on, os.O_RDWR)

    def close(self) -> None:
        """Give back what release() has opened."""
        os.close(self._writer)


def newest_launcher(pid: int) -> int:
    """Return the youngest of the launcher's processes among the descendants of a process."""
    found: list[tuple[int, int]] = []
    while not found:  # one that is being adopted at this moment may be in nobody's list
        waiting = children_of(pid)
        while waiting:
            one = waiting.pop()
            waiting += children_of(one)
            with suppress(OSError, ValueError):
                stat = parse_stat(Path(f"/proc/{one}/stat").read_bytes())
                if stat.comm == "isolib-init" and stat.state != "Z":
                    found.append((stat.starttime, one))
    return max(found)[1]


def halted_plan(halt: Halt, phase: str, *, inside: bool) -> Plan:
    """Return a plan of three processes that halts in one of them."""
    builder = Builder()
    if inside:
        builder.clone_flags = calls.CLONE_NEWUSER | calls.CLONE_NEWPID
        builder.supervise_flags = 1
        builder.map("uid_map", f"0 {os.geteuid()} 1")
    else:
        builder.add("inside", Step("PRCTL", flags=36, value=1))
    halt.add(builder, phase)
    builder.add("command", Step("CLOSE_FDS"))
    return builder.build(exec_step([b"true"], [], [b"/bin/true"]))


#: Where a launch halts, and whether the process that halts is meant, or its parent.
KILLED = {
    "the middle process": ("host", True),
    "stage 1": ("host", False),
    "stage 2": ("inside", False),
    "the supervisor, before its command runs": ("command", True),
    "the command, before it runs": ("command", False),
}


@pytest.mark.parametrize("who", KILLED)
@pytest.mark.parametrize("inside", [False, True], ids=["plain", "inside"])
def test_a_process_of_a_launch_that_is_killed(who: str, inside: bool, tmp_path: Path, adopted: None) -> None:  # noqa: FBT001
    """Whichever process of a launch is killed: an error and no hang, and nothing is left.

    The middle one is not needed any more then, and a command is killed as it is when it runs.
    """
    phase, parent = KILLED[who]
    halt = Halt(tmp_path)
    plan = halted_plan(halt, phase, inside=inside)
    error: SetupFailed | None = None

    def kill() -> None:
        halt.wait()
        pid = newest_launcher(os.getpid())
        if parent:
            pid = parse_stat(Path(f"/proc/{pid}/stat").read_bytes()).ppid
        os.kill(pid, signal.SIGKILL)
        halt.release()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        launch(plan).end()
    except SetupFailed as failed:
        error = failed
    finally:
        killer.join()
        halt.close()
    reap()
    if who in {"the middle process", "the command, before it runs"}:
        assert error is None
    else:
        assert error is not None
        assert (error.op, error.errno) == ("launch", errno.ECHILD)


def test_the_middle_process_is_killed_while_stage_1_uses_our_memory(adopted: None) -> None:
    """The calling thread waits for stage 1 itself, which runs on its stack until it executes the launcher."""
    tracer = 0

    def kill() -> None:
        while True:
            for pid in children_of(os.getpid()):
                if pid != tracer and children_of(pid):
                    os.kill(pid, signal.SIGKILL)
                    return

    for _ in range(5):
        with attached("-einject=close_range:delay_enter=100000:when=1", "-etrace=close_range,futex") as trace:
            tracer = trace.tracer
            killer = threading.Thread(target=kill)
            killer.start()
            with spawn(["sh", "-c", "exit 7"]) as process:
                assert process.wait(60).code == 7
            killer.join()
        assert "(DELAYED)" in trace.text()
        assert re.search(r"FUTEX_WAIT, \d+, NULL\)", trace.text())
        reap()


def reap() -> None:
    """Wait for the end of whatever was adopted."""
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


#: Calls that the processes of a launch make and this one, meanwhile, does not.
POINTS = [
    *(("rt_sigaction", nth) for nth in (1, 30, 62)),
    ("clone3", 1),
    ("sendmsg", 1),
    ("setsid", 1),
    ("setsid", 2),
    ("keyctl", 1),
    ("prctl", 1),
    ("prctl", 2),
    ("unshare", 1),
    ("sethostname", 1),
    ("mount_setattr", 1),
    ("signalfd4", 1),
    ("getcwd", 1),
    ("execve", 1),
    ("exit_group", 1),
]


@pytest.mark.parametrize(("call", "nth"), POINTS)
def test_killed_at_a_call(call: str, nth: int, adopted: None) -> None:
    """The same at system calls of the launcher, by a tracer."""
    error, end = None, None
    options = {"new": {"user", "pid", "mnt", "uts", "cgroup"}, "hostname": "x", "cwd": "/"}
    with attached(f"-einject={call}:signal=KILL:when={nth}", f"-etrace={call}") as trace, nothing_changes():
        try:
            with spawn(["true"], **options) as process:  # type: ignore[arg-type]
                end = process.wait(60)
        except SetupFailed as failed:
            error = failed.with_traceback(None)
        reap_all_but(trace.tracer)
    assert (error is None) != (end is None)
    assert error is None or error.errno == errno.ECHILD
    if end is not None:  # it had started
        assert end.reason in {Reason.KILLED, Reason.SIGNALED, Reason.EXITED}


def reap_all_but(pid: int) -> None:
    """Reap what was adopted, and wait for what still runs, a tracer excepted."""
    while any(child != pid for child in children_of(os.getpid())):
        os.waitid(os.P_ALL, 0, os.WEXITED)
