"""explain() is true: the system calls that it prints are those that strace sees, in order, process by process."""

from __future__ import annotations

import os
import re
import resource
import select
import signal
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib import PIPE, IdMap, mounts
from isolib._kernel import calls
from isolib._kernel.assembly import Rights
from isolib._kernel.launch import launch
from isolib._kernel.plan import HOLD, Builder, Step, exec_step
from isolib._kernel.request import Request
from isolib.cgroups.explain import Outline
from isolib.process import Process
from isolib.setting import Setting
from isolib.spec import SandboxSpec
from tests.groups import needs
from tests.seccomp import deny
from tests.strace import attached, tid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from isolib._kernel.course import Section
    from isolib._kernel.plan import Plan
    from tests.strace import Trace

ALL_KINDS = {"user", "pid", "mnt", "net", "ipc", "uts", "cgroup", "time"}
ROOT = os.geteuid() == 0


def assert_told(section: Section, names: list[str], text: str) -> None:
    """Fail, at the first part that differs, unless these calls are those of the section."""
    seen = "".join(f"{name} " for name in names)
    if re.fullmatch(section.pattern, seen):
        return
    told = ""
    for number, part in section.parts:
        told += part.pattern
        if not re.match(told, seen):
            pytest.fail(f"{section.title}: at step {number}, {part.calls}\nseen: {seen}\n\n{text}", pytrace=False)
    pytest.fail(f"{section.title}: more calls than told\nseen: {seen}\n\n{text}", pytrace=False)


def names_of(trace: Trace, pid: int) -> list[str]:
    """Return the names of a process's calls."""
    return [name for name, _ in trace.calls(pid)]


def up_to_exec(trace: Trace, pid: int) -> list[str]:
    """Return the names of a command's calls as long as it was ours: until its execve has succeeded."""
    names = []
    for name, result in trace.calls(pid):
        names.append(name)
        if name == "execve" and result == "0":
            return names
    pytest.fail(f"process {pid} has executed nothing: {names}")


def launch_part(names: list[str]) -> list[str]:
    """Return what of the calling thread's calls belongs to a launch."""
    before = ("getcwd", "newfstatat", "fcntl", "openat", "pipe2", "fchown")
    start = end = names.index("socketpair")
    while start and names[start - 1] in before:
        start -= 1
    end = names.index("recvmsg", start)
    while end < len(names) and names[end] == "recvmsg":
        end += 1
    return names[start:end]


def check(plan: Plan, run: Callable[[], object]) -> Trace:
    """Run something under strace that launches this plan, once, and compare what it did with what the plan says."""
    with attached() as trace:
        run()
    sections = {section.title: section for section in plan.sections()}
    host = tid()
    middle = trace.child_of(host, "clone")
    first = trace.child_of(middle, "clone")
    inside = trace.child_of(first, "clone3")
    others = [pid for pid in trace.pids() if pid not in {host, middle, first, inside}]
    commands = [pid for pid in others if names_of(trace, pid)[:1] in (["sendmsg"], ["rt_sigprocmask"])]
    text = plan.explain()
    assert_told(sections["host"], launch_part(names_of(trace, host)), text)
    assert_told(sections["middle"], names_of(trace, middle), text)
    assert_told(sections["stage 1"], names_of(trace, first), text)
    whole = sections["inside"]._replace(parts=sections["inside"].parts + sections["supervisor"].parts)
    assert_told(whole, names_of(trace, inside), text)
    assert len(commands) == ("command" in sections)
    for command in commands:
        assert_told(sections["command"], up_to_exec(trace, command), text)
    return trace


def check_request(request: Request, *argv: str, pty: bool = False, stdout: int | None = None, code: int = 0) -> Trace:
    """Compare the launch of a request with its plan."""

    def run() -> None:
        with Process.start(request, argv, stdin=None, stdout=stdout, stderr=None, pty=pty) as process:
            assert process.wait(60).code == code

    return check(request.plan(argv), run)


@pytest.fixture(autouse=True)
def warm() -> None:
    """Have this process open once what every launch needs."""
    isolib.spawn(["true"]).close()


@contextmanager
def namespaces_of(kinds: set[str]) -> Iterator[list[File]]:
    """Hold a sandbox's namespaces open by their files."""
    script = "echo; exec sleep 1000"
    with ExitStack() as stack:
        process = stack.enter_context(isolib.spawn(["sh", "-c", script], new={*kinds, "user"}, stdout=PIPE))
        assert process.stdout is not None
        process.stdout.readline()
        pid = process.pid
        yield [File(stack, f"/proc/{pid}/ns/{kind}") for kind in sorted({*kinds, "user"})]


class File:
    """An open file."""

    def __init__(self, stack: ExitStack, path: str) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, self._fd)

    def fileno(self) -> int:
        """Return its number."""
        return self._fd


# ---- the plans ----


def test_plain_spawn() -> None:
    """A spawn that isolates nothing does what it says, whatever its streams."""
    request = Request()
    for stdout in (None, PIPE, isolib.DEVNULL):
        check_request(request, "true", stdout=stdout)


def test_everything_that_spawn_can_do(user_namespaces: None) -> None:
    """All eight kinds of namespaces, names, limits, identity, directory, terminal, environment, descriptors."""
    read, write = os.pipe()
    try:
        request = Request(
            new=ALL_KINDS,
            id_map=[IdMap(0, 0, 2000)] if ROOT else "root",
            user=1000 if ROOT else 0,
            hostname="explained",
            domainname="example",
            cwd="/",
            env={"PATH": "/nonexistent:/bin:/usr/bin", "A": "1"},
            rlimits={resource.RLIMIT_NOFILE: (64, 128), resource.RLIMIT_CORE: 0},
            umask=0o27,
            pty=True,
            pass_fds=[read, write],
            deadline=60,
            rights=Rights(capabilities=0, no_new_privs=True, seccomp=deny()),
        )
        check_request(request, "sh", "-c", "exit 3", pty=True, code=3)
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.skipif(not ROOT, reason="keeping capabilities over a change of the user id takes root")
def test_capabilities_that_stay() -> None:
    """An identity with capabilities: kept over the change of the user id, made ambient."""
    request = Request(user=1000, rights=Rights(capabilities=1 << 10 | 1 << 13, no_new_privs=True))
    check_request(request, "true")


SYSTEM = [mounts.Bind(path, path) for path in ("/lib", "/lib64", "/usr") if os.path.isdir(path)]


def test_mounts_and_targets(user_namespaces: None, tmp_path: Path) -> None:
    """Mounts on targets that are there, that are not, and that are deep: the calls depend on what is found, and are told."""
    root = tmp_path / "root"
    (root / "there").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    request = Request(
        new={"user", "mnt", "pid"},
        root=mounts.Root.tree(root, writable=True),
        mounts=[
            *SYSTEM,
            mounts.Bind(tmp_path, "/there"),
            mounts.Tmpfs("/absent/deep/down"),
            mounts.Bind(tmp_path / "file", "/absent/deep/down/copy/file"),
            mounts.Bind(tmp_path / "file", "/absent/file"),
            mounts.File("/absent/deep/down/written", "content"),
            mounts.Symlink("/absent/deep/down/link", "written"),
            mounts.Mask("/usr/share"),
            mounts.ReadOnly("/absent/deep"),
        ],
    )
    trace = check_request(request, "/usr/bin/true")
    assert "absent" in os.listdir(root)
    assert "mkdirat" in {name for pid in trace.pids() for name in names_of(trace, pid)}


@pytest.mark.parametrize("root", ["host", "empty", "tree"])
def test_roots(root: str, user_namespaces: None, tmp_path: Path) -> None:
    """Every root is entered as it says."""
    binds = [] if root == "host" else SYSTEM
    for bind in binds:
        (tmp_path / str(bind.target).lstrip("/")).mkdir()
    if root == "host":
        value = mounts.Root.host(writable=True)
    else:
        value = mounts.Root.empty() if root == "empty" else mounts.Root.tree(tmp_path)
    check_request(Request(new=ALL_KINDS - {"time"}, root=value, mounts=binds), "/usr/bin/true")


def test_default_sandbox(user_namespaces: None) -> None:
    """The whole of a default sandbox, as `run` makes it in one call, from its first system call to its last."""
    spec = SandboxSpec.of(None, {"wall": 60})
    isolib.run(["true"], wall=60)
    plan = Setting(spec).request(deadline=60).plan(["true"])
    check(plan, lambda: isolib.run(["true"], wall=60, check=True))


def test_sandbox_with_limits(user_namespaces: None, groups: None) -> None:
    """With limits the plan tells how the command is born in its group, and the rest which directories are made for it."""
    limits = {"memory_max": "64M", "pids_max": 30}
    outline = Outline(limits)
    spec = SandboxSpec.of(None, {"memory": "64M", "pids": 30, "wall": 60})

    def run() -> None:
        isolib.run(["true"], memory="64M", pids=30, wall=60, check=True)

    run()  # what is opened once is open then
    trace = check(Setting(spec).request(deadline=60, cgroup=outline).plan(["true"]), run)
    made = [name for name in names_of(trace, tid()) if name == "mkdirat"]
    assert len(made) == sum(call.name == "mkdirat" for call in outline.calls())
    text = isolib.Sandbox(spec).explain()
    assert text.startswith(outline.explain())
    assert ("CLONE_INTO_CGROUP" in text) == outline.shape.unified


def test_command_that_is_out_of_memory(user_namespaces: None, groups: None) -> None:
    """What the supervisor does when memory is short is in the plan too."""
    needs("memory")
    argv = [os.path.realpath(sys.executable), "-I", "-S", "-c", "block = bytearray(200 << 20)"]
    spec = SandboxSpec.of(None, {"memory": "48M", "wall": 60})

    def run() -> None:
        assert isolib.run(argv, memory="48M", wall=60).exit.reason is isolib.Reason.OOM

    run()
    check(Setting(spec).request(deadline=60, cgroup=Outline({"memory_max": "48M"})).plan(argv), run)


def test_resident_sandbox(user_namespaces: None) -> None:
    """A sandbox that stays, from its beginning to its end; HOLD in place of a command."""
    plan = Setting(SandboxSpec()).request(dumpable=True).builder.build(HOLD)

    def run() -> None:
        with isolib.Sandbox():
            pass

    check(plan, run)


def test_command_in_a_resident_sandbox(user_namespaces: None) -> None:
    """A command that joins a sandbox's namespaces."""
    with isolib.Sandbox() as box:
        assert box.run(["true"]).returncode == 0
        plan = box._live().plan(["true"])
        check(plan, lambda: box.run(["true"], check=True))


@pytest.mark.parametrize("kinds", [set(), {"net"}, {"pid", "mnt"}, {"net", "uts", "ipc", "cgroup"}], ids=sorted)
def test_joins(kinds: set[str], user_namespaces: None) -> None:
    """Joining somebody's namespaces, with its user namespace."""
    with namespaces_of(kinds) as handles:
        check_request(Request(join=handles), "true")


def test_killed_trees(user_namespaces: None) -> None:
    """The end of a process that leaves others behind, by PID 1 and by a subreaper."""
    for new in ({"user", "pid"}, set()):
        request = Request(new=new)
        argv = ["sh", "-c", "sleep 1000 > /dev/null & sleep 1000 > /dev/null & exit 5"]
        check_request(request, *argv, code=5)


def test_signals_are_passed_on(user_namespaces: None) -> None:
    """What a supervisor does with a signal and at its host's word."""
    request = Request(new={"user", "pid"})
    argv = ["sh", "-c", "trap 'exit 9' TERM; echo; while :; do read x; done"]

    def run() -> None:
        with Process.start(request, argv, stdin=PIPE, stdout=PIPE, stderr=None) as process:
            assert process.stdout is not None
            process.stdout.readline()
            signal.pidfd_send_signal(process.fileno(), signal.SIGTERM)
            assert process.wait(60).code == 9

    check(request.plan(argv), run)


def test_helpers_that_write_maps(user_namespaces: None) -> None:
    """A program that writes a map, as newuidmap(1) does, is run with nothing but its arguments."""
    builder = Builder()
    builder.clone_flags = calls.CLONE_NEWUSER
    builder.map_helper("/bin/true", ["0", "100000", "65536"])  # strace takes the privileges from a set-user-id program
    plan = builder.build(HOLD)

    def run() -> None:
        held = launch(plan)
        gone = os.dup(held.pidfd)
        held.close()
        select.select([gone], [], [])
        os.close(gone)

    trace = check(plan, run)
    (helper,) = (pid for pid in trace.pids() if names_of(trace, pid)[:2] == ["openat", "dup3"])
    (section,) = (one for one in plan.sections() if one.title == "helper")
    assert_told(section, up_to_exec(trace, helper), plan.explain())


def test_every_call_around_a_launch_is_told_by_name(user_namespaces: None) -> None:
    """What explain() prints as certain has a name that strace has too: no call is called otherwise than the kernel calls it."""
    request = Request(new=ALL_KINDS, pty=True, rights=Rights(capabilities=0, no_new_privs=True))
    trace = check_request(request, "true", pty=True)
    seen = {name for pid in trace.pids() for name in names_of(trace, pid)}
    told = {call.name for section in request.plan(["true"]).sections() for _, part in section.parts for call in part.calls}
    certain = {
        call.name
        for section in request.plan(["true"]).sections()
        for _, part in section.parts
        for call in part.calls
        if not call.when
    }
    assert certain <= seen
    elsewhere = {"getcwd", "newfstatat", "openat", "pipe2", "fchown", "clone", "recvfrom", "pidfd_send_signal", "prctl"}
    elsewhere |= {"kill", "dup3", "capset"}
    assert told - certain <= seen.union(elsewhere)


def test_a_step_of_several_calls_is_numbered_once() -> None:
    """Each line of a step begins with its number, which is also that of an error."""
    builder = Builder()
    builder.add("inside", Step("LINK_UP", text=b"lo", what="lo"))
    plan = builder.build(exec_step([b"true"], [], [b"/bin/true"]))
    lines = plan.explain().splitlines()
    assert [line.split()[1] for line in lines if line.startswith("    2  ")] == [
        "socket(AF_INET,",
        "ioctl(SIOCGIFFLAGS,",
        "ioctl(SIOCSIFFLAGS,",
        "close()",
    ]
    assert [line for line in lines if not line.startswith(" ")] == [
        "host:", "middle:", "stage 1:", "inside:", "command:", "supervisor:",
    ]  # fmt: skip


def test_sandbox_explains_itself(user_namespaces: None) -> None:
    """`Sandbox.explain` is the plan's, and needs no sandbox."""
    text = isolib.Sandbox(hostname="told").explain([sys.executable])
    assert 'sethostname("told")' in text
    assert f'execve("{sys.executable}")' in text
    assert "MOUNT_ATTR_RDONLY" in text
