"""The plans that the tests of faults go through step by step, and how to make any one of their steps fail."""

from __future__ import annotations

import ctypes
import os
import resource
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import isolib
from isolib import PIPE, IdMap, mounts
from isolib._kernel.assembly import Rights
from isolib._kernel.explain import explain_step
from isolib._kernel.plan import HOLD, Plan, Step
from isolib._kernel.request import Request
from isolib.setting import Setting
from isolib.spec import SandboxSpec
from tests.nets import until
from tests.seccomp import Denied, deny

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

ALL_KINDS = {"user", "pid", "mnt", "net", "ipc", "uts", "cgroup", "time"}
ROOT = os.geteuid() == 0
SYSTEM = [mounts.Bind(path, path) for path in ("/lib", "/lib64", "/usr") if os.path.isdir(path)]


class Subject(NamedTuple):
    """A plan to try, with the descriptors of its declared slots."""

    plan: Plan
    fds: Sequence[int]
    kept: object = None  # owns the descriptors


class File:
    """An open file."""

    def __init__(self, stack: ExitStack, path: str) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, self._fd)

    def fileno(self) -> int:
        """Return its number."""
        return self._fd


@contextmanager
def namespaces_of(kinds: set[str]) -> Iterator[list[File]]:
    """Hold somebody's namespaces of these kinds, and his user namespace, open by their files."""
    wanted = sorted({*kinds, "user"})
    with ExitStack() as stack:
        process = stack.enter_context(isolib.spawn(["sh", "-c", "echo; exec sleep 1000"], new=wanted, stdout=PIPE))
        assert process.stdout is not None
        process.stdout.readline()
        yield [File(stack, f"/proc/{process.pid}/ns/{kind}") for kind in wanted]


@contextmanager
def everything(_: Path) -> Iterator[Subject]:
    """All that spawn can do without a root: all kinds of namespaces, names, limits, identity, directory, terminal, rights."""
    request = Request(
        new=ALL_KINDS,
        id_map=[IdMap(0, 0, 2000)] if ROOT else "root",
        user=1000 if ROOT else 0,
        hostname="faulty",
        domainname="example",
        cwd="/",
        env={"PATH": "/bin:/usr/bin", "A": "1"},
        rlimits={resource.RLIMIT_NOFILE: (64, 128), resource.RLIMIT_CORE: 0},
        umask=0o27,
        pty=True,
        deadline=60,
        rights=Rights(capabilities=1 << 10, no_new_privs=True, seccomp=deny()),
    )
    yield Subject(request.plan(["true"]), request.builder.fds, request)


@contextmanager
def sandbox(_: Path) -> Iterator[Subject]:
    """The default sandbox."""
    request = Setting(SandboxSpec()).request(deadline=60)
    yield Subject(request.plan(["true"]), request.builder.fds, request)


@contextmanager
def resident(_: Path) -> Iterator[Subject]:
    """A sandbox that stays: a plan that ends with HOLD."""
    request = Setting(SandboxSpec()).request(dumpable=True)
    yield Subject(request.builder.build(HOLD), request.builder.fds, request)


@contextmanager
def joins(_: Path) -> Iterator[Subject]:
    """A process that joins somebody's namespaces of every kind that can be joined."""
    with namespaces_of(ALL_KINDS - {"time"}) as handles:
        request = Request(join=handles, cwd="/")
        yield Subject(request.plan(["true"]), request.builder.fds, request)


@contextmanager
def visitor(_: Path) -> Iterator[Subject]:
    """A command in a sandbox that stays."""
    with isolib.Sandbox() as box:
        request = box._live()
        yield Subject(request.plan(["true"]), request.builder.fds, request)


@contextmanager
def tree(directory: Path) -> Iterator[Subject]:
    """A root that is a directory, in which mount points must be made."""
    root = directory / "root"
    root.mkdir()
    (directory / "file").write_text("x")
    request = Request(
        new={"user", "mnt", "pid"},
        root=mounts.Root.tree(root, writable=True),
        mounts=[
            *SYSTEM,
            mounts.Tmpfs("/absent/deep"),
            mounts.Bind(directory / "file", "/absent/file"),
            mounts.File("/absent/deep/written", "content"),
            mounts.Symlink("/absent/deep/link", "written"),
            mounts.Dir("/absent/deep/directory"),
            mounts.Mask("/usr/share"),
            mounts.ReadOnly("/absent/deep"),
        ],
    )
    yield Subject(request.plan(["/usr/bin/true"]), request.builder.fds, request)


@contextmanager
def confined(_: Path) -> Iterator[Subject]:
    """An identity that keeps capabilities, and a Landlock ruleset."""
    handled = ctypes.c_uint64(1)  # LANDLOCK_ACCESS_FS_EXECUTE
    ruleset = ctypes.CDLL(None, use_errno=True).syscall(444, ctypes.byref(handled), 8, 0)
    kept = 1 << 10 if ROOT else None
    rights = Rights(capabilities=kept, no_new_privs=True, landlock=ruleset if ruleset >= 0 else None)
    try:
        request = Request(user=1000 if ROOT else None, rights=rights)
        yield Subject(request.plan(["true"]), request.builder.fds, request)
    finally:
        if ruleset >= 0:
            os.close(ruleset)


SUBJECTS: dict[str, Callable[[Path], AbstractContextManager[Subject]]] = {
    "everything": everything,
    "sandbox": sandbox,
    "resident": resident,
    "joins": joins,
    "visitor": visitor,
    "tree": tree,
    "confined": confined,
}


def with_steps(plan: Plan, at: int, *steps: Step) -> Plan:
    """Return the plan with steps put in before one of its own."""
    return Plan([*plan.steps[:at], *steps, *plan.steps[at:]], declared=plan.declared, pty=plan.pty)


def stage_of(plan: Plan, at: int) -> str:
    """Return in which stage a step runs."""
    kinds = [step.kind for step in plan.steps]
    if at <= kinds.index("GO"):
        return "first"
    return "command" if "SUPERVISE" in kinds and at > kinds.index("SUPERVISE") else "inside"


# ---- making a step's own system calls fail ----

NO_NEW_PRIVS = Step("PRCTL", flags=38, value=1, what="PR_SET_NO_NEW_PRIVS")

#: Calls whose result does not matter, or that cannot fail.
HARMLESS = {"close", "umask", "wait4", "exit_group", "getdents64"}

#: Of kinds that make one call several times: which argument tells them apart, and its values.
TOLD_APART = {
    ("STDIO", "dup3"): (1, (0, 1, 2)),
    ("LINK_UP", "ioctl"): (1, (0x8913, 0x8914)),
    ("PTY_OPEN", "ioctl"): (1, (0x40045431, 0x5441)),
    ("BOUNDING", "prctl"): (1, (0, 21, 40)),
    ("AMBIENT", "prctl"): (1, (4, 2)),
}


class Fault(NamedTuple):
    """A system call of a step that is to fail."""

    number: int
    step: Step
    call: str
    arguments: tuple[tuple[int, int], ...]

    def plan(self, whole: Plan, errno: int) -> tuple[Plan, int]:
        """Return the plan in which it does, and the step's number in that."""
        kinds = [step.kind for step in whole.steps]
        clone, go = kinds.index("CLONE"), kinds.index("GO")
        # Between the two there is room for nothing else.
        at = clone if clone < self.number <= go else self.number
        program = deny(Denied(self.call, errno, self.arguments))
        return with_steps(whole, at, NO_NEW_PRIVS, Step("SECCOMP", text2=program, what="fault")), self.number + 2


def faults(plan: Plan) -> Iterator[Fault]:
    """Return every system call of a plan that can fail a step."""
    written: set[int] = set()
    for number, step in enumerate(plan.steps):
        if step.kind == "MAP":
            if len(step.text2) not in written:  # one write of that size cannot be told from another
                yield Fault(number, step, "write", ((2, len(step.text2)),))
            written.add(len(step.text2))
        elif step.kind == "GO":
            yield Fault(number, step, "write", ((2, 1),))
        else:
            for name in _names(step):
                yield from (Fault(number, step, name, arguments) for arguments in _told_apart(step, name))


def _names(step: Step) -> list[str]:
    spared = HARMLESS | ({"clone", "sendmsg"} if step.kind == "CLONE" else set())
    return [name for name in dict.fromkeys(call.name for call in explain_step(step).calls) if name not in spared]


def _told_apart(step: Step, name: str) -> list[tuple[tuple[int, int], ...]]:
    if (step.kind, name) not in TOLD_APART:
        return [()]
    argument, values = TOLD_APART[step.kind, name]
    if step.kind == "AMBIENT" and not step.value:
        values = values[:1]
    if step.kind == "BOUNDING":
        values = tuple(value for value in values if not step.value >> value & 1)
    return [((argument, value),) for value in values]


class Injection(NamedTuple):
    """A system call of a step, told from all others of a launch by its name and how often its process has called it."""

    number: int
    step: Step
    call: str
    nth: int


#: What Python itself calls now and then.
PYTHONS = {"brk", "close", "fstat", "futex", "getpid", "mmap", "mprotect", "munmap", "newfstatat", "openat", "read", "write"}


def injections(plan: Plan) -> Iterator[Injection]:
    """Return the calls of a plan that strace can make fail, without a change to the plan, in the right process."""
    earlier: Counter[str] = Counter()
    uncertain = set(PYTHONS)
    for section in plan.sections():
        if section.title == "supervisor":
            return
        own: Counter[str] = Counter()
        for number, part in section.parts:
            for call in part.calls:
                if call.when:
                    uncertain.add(call.name)
                    continue
                own[call.name] += 1
                if number is not None and call.name not in uncertain | HARMLESS and own[call.name] > earlier[call.name]:
                    yield Injection(number, plan.steps[number], call.name, own[call.name])
                own[call.name] += call.times - 1
        earlier |= own


# ---- what must be left ----

PR_SET_CHILD_SUBREAPER = 36


@contextmanager
def adopting() -> Iterator[None]:
    """Make this process the parent of everything that a launch leaves behind: what it has not, nobody has."""
    libc = ctypes.CDLL(None)
    isolib.spawn(["true"], new={"user", "mnt"}).close()  # what is opened once is opened
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def descriptors() -> dict[str, str]:
    """Return the open descriptors and what they are of."""
    paths = {fd: f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")}
    return {fd: os.readlink(path) for fd, path in paths.items() if os.path.lexists(path)}


def children_of(pid: int) -> list[int]:
    """Return the children of a process, zombies too."""
    found: list[str] = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            found += Path(f"/proc/{pid}/task/{thread}/children").read_text(encoding="ascii").split()
    return sorted(map(int, found))


def state() -> tuple[object, ...]:
    """Return what a failed launch must not have changed; the children include zombies."""
    own = Path("/proc/thread-self")
    return (
        descriptors(),
        children_of(os.getpid()),
        (own / "mountinfo").read_bytes(),
        [os.readlink(own / "ns" / kind) for kind in os.listdir(own / "ns")],
    )


@contextmanager
def nothing_changes() -> Iterator[None]:
    """Fail if the block changes anything."""
    before, threads = state(), os.listdir("/proc/self/task")
    yield
    assert until(lambda: set(os.listdir("/proc/self/task")) <= set(threads))  # one that was joined may still be on its way
    changes = [(old, new) for old, new in zip(before, state(), strict=True) if old != new]
    assert not changes, f"before and after: {changes}"
