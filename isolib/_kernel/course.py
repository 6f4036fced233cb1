"""The whole course of a launch, process by process: the calls of the steps, and those that every launch makes around them.

Pure: steps in, text out.  A test holds it against strace, call by call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from isolib._kernel.explain import Call, Explained, explain_step

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from isolib._kernel.plan import Step


class Section(NamedTuple):
    """What one process does, or the calling thread: its parts in order, those that are a step with its number."""

    title: str
    parts: tuple[tuple[int | None, Explained], ...]

    @property
    def pattern(self) -> str:
        """A regular expression for the names of all its calls, each followed by a space."""
        return "".join(part.pattern for _, part in self.parts)

    def lines(self) -> list[str]:
        """Return the title, and a line for each call, which begins with the number of its step."""
        lines = [f"{self.title}:"]
        for number, part in self.parts:
            mark = "" if number is None else str(number)
            lines += [f"{mark:>5}  {call}" for call in part.calls]
        return lines


def _fixed(*calls: Call, form: str = "") -> tuple[None, Explained]:
    return None, Explained("", calls, form)


_GAPS: Final = "for each gap between the descriptors that stay"
_LOOK: Final = "where the plan was made for a working directory"
_SIGNALS: Final = 62  # all but SIGKILL and SIGSTOP

_HOST: Final = _fixed(
    Call("getcwd", when=_LOOK),
    Call("newfstatat", '"/"', when=_LOOK),
    Call("fcntl", "F_GETFD", when="for each standard stream that is inherited"),
    Call("openat", '"/dev/null"', when="for each stream that is DEVNULL"),
    Call("pipe2", "O_CLOEXEC", when="for each stream that is a PIPE"),
    Call("fchown", "to whom the command is outside", when="for each PIPE of a sandbox that root starts"),
    Call("socketpair", "AF_UNIX, SOCK_SEQPACKET", "unix(7)"),
    Call("setsockopt", "SO_PASSCRED", "unix(7)"),
    Call("memfd_create", '"isolib-plan"'),
    Call("writev", "the plan"),
    Call("rt_sigprocmask", "block every signal"),
    Call("clone", "CLONE_VM|CLONE_FS|CLONE_FILES"),
    Call("rt_sigprocmask", "as it was"),
    Call("wait4", "the middle process, __WALL"),
    Call("close", "the plan, the children's ends and the pidfd of stage 1", times=3),
    Call("close", when="for each stream that is no descriptor of the caller's"),
    Call("recvmsg", "pidfds and pids, until the command runs", "unix(7)"),
    Call("recvmsg", when="for each further message, and after an interrupt"),
    form=(
        "(?:getcwd newfstatat )?(?:fcntl |openat |pipe2 |fchown )*socketpair setsockopt memfd_create writev rt_sigprocmask "
        "clone rt_sigprocmask wait4 (?:close ){3,}(?:recvmsg )+"
    ),
)
_ENDED: Final = "until nothing is left, where stage 1 had to end stage 2, or has failed"
_KILL_CHILDREN: Final = (
    ("openat", '"thread-self/children", "PID"'),
    ("read", "the numbers of children"),
    ("close", ""),
    ("pidfd_send_signal", "SIGKILL"),
    ("wait4", "-1, __WALL"),
)
_MIDDLE: Final = _fixed(
    Call("rt_sigaction", "SIGCHLD, SIG_DFL"),
    Call("prctl", "PR_SET_CHILD_SUBREAPER, 1"),
    Call("clone", "CLONE_VM|CLONE_VFORK"),
    Call("pidfd_open", "stage 1"),
    Call("ppoll", "pidfds of stage 1 and of the host"),
    Call("wait4", "stage 1"),
    *(Call(name, what, when=_ENDED) for name, what in _KILL_CHILDREN),
    Call("exit", "0"),
)
_START: Final = (
    _fixed(
        Call("fcntl", "F_DUPFD_CLOEXEC or F_SETFD", "fcntl(2)", when="for standard streams that change places or stay"),
        Call("dup3", "to 0, 1, 2", when="for the other standard streams"),
        form="(?:fcntl |dup3 )*",
    ),
    _fixed(
        Call("close_range", "whatever the launcher does not need"),
        Call("close_range", when=_GAPS),
        Call("fcntl", "F_SETFD, 0", when="for each descriptor that the launcher needs"),
        Call("execveat", "isolib-launcher, AT_EMPTY_PATH"),
        Call("execve", '"isolib-launcher"', when="where a memory file cannot be executed"),
        Call("prctl", 'PR_SET_NAME, "isolib-init"'),
        Call("rt_sigaction", "SIG_DFL", times=_SIGNALS),
        Call("rt_sigprocmask", "SIG_UNBLOCK, SIGTERM"),
        Call("lseek", "the plan, SEEK_END"),
        Call("mmap", "the plan"),
        Call("close"),
    ),
)
_WAIT: Final = _fixed(Call("close"), Call("read", "until the id maps are written", "pipe(7)"))
_HELPER: Final = _fixed(
    Call("openat", '"/dev/null", O_RDWR'), Call("dup3", "to 0, 1, 2", times=3), Call("close_range", "3, ~0"), Call("execve")
)
_QUIET: Final = "unless the command is run to its end in one call"
_COMMAND: Final = _fixed(
    Call("sendmsg", "its pid, by SCM_CREDENTIALS", "unix(7)", when=_QUIET), Call("rt_sigprocmask", "nothing blocked")
)


def _supervisor(kind: str, *, is_init: bool, deadline: bool, oom: bool) -> Iterator[tuple[None, Explained]]:
    handed = "pidfd of the command, terminal" if kind == "SUPERVISE" else "what the plan hands over"
    clock = [Call("clock_gettime", "CLOCK_MONOTONIC")] if deadline else []
    yield _fixed(
        Call("capset", "CAP_KILL"),
        Call("capset", "nothing", when="where it has not even that"),
        Call("prctl", "PR_SET_NO_NEW_PRIVS, 1"),
        Call("sendmsg", handed, "unix(7)", when=_QUIET if kind == "SUPERVISE" else ""),
        Call("close_range", "whatever it does not need"),
        Call("close_range", when=_GAPS),
        Call("close", "the pipe by which stage 1 sees that the host is watched"),
        *clock,
    )
    news = "for each process that ends, signal that comes, word of the host's"
    memory = "when memory is short in the control group"
    yield _fixed(
        *clock,
        Call("ppoll", f"signals, status socket, pidfd of the host{', eventfd' if oom else ''}"),
        Call("read", "signalfd", when=news),
        Call("wait4", "-1, WNOHANG|__WALL", when=news),
        Call("pidfd_send_signal", "the command", when=news),
        Call("recvfrom", "status socket", when=news),
        Call("prctl", "PR_SET_DUMPABLE, 0", when=news),
        *([Call("read", "eventfd", when=memory), Call("pread64", "memory.oom_control", when=memory)] if oom else []),
        *([Call("clock_gettime", "CLOCK_MONOTONIC", when=memory)] if oom and deadline else []),
        form=(
            f"(?:{'clock_gettime ' if deadline else ''}ppoll {'(?:read )?(?:pread64 )?' if oom else ''}"
            f"{'(?:clock_gettime )?' if oom and deadline else ''}(?:read |wait4 |pidfd_send_signal |recvfrom |prctl )*)+"
        ),
    )
    left = "while processes are left"
    if is_init:
        kill, form = [Call("kill", "-1, SIGKILL", when=left)], "(?:kill wait4 )*"
    else:
        kill = [Call(name, what, when=left) for name, what in _KILL_BY_PROC]
        form = "(?:(?:openat |read |getdents64 |pidfd_send_signal |close )+wait4 )*"
    yield _fixed(*kill, Call("wait4", "-1, __WALL", when=left), form=form)
    yield _fixed(Call("getrusage", "RUSAGE_CHILDREN"), Call("sendmsg", "status and usage", "unix(7)"), Call("exit_group", "0"))


_KILL_BY_PROC: Final = (
    ("openat", '"thread-self/children", "PID", "PID/task", "PID/task/TID/children"'),
    ("read", "the numbers of children"),
    ("getdents64", "the threads of a process"),
    ("pidfd_send_signal", "SIGSTOP, then SIGKILL"),
    ("close", ""),
)


_DEAD: Final = "when the host is gone, for each group that is entrusted"
_LEFT: Final = "and those that are not empty, or hold others"
_REAPER: Final = (
    _fixed(
        Call("sendmsg", "it holds", "unix(7)"),
        Call("close_range", "whatever it does not need"),
        Call("close_range", when=_GAPS),
        Call("close", "the pipe by which stage 1 sees that the host is watched"),
    ),
    _fixed(
        Call("ppoll", "pidfd of the host, status socket"),
        Call("recvmsg", "directories in which things are made", "unix(7)", when="for each word of the host's"),
        Call("fstatfs", when="for each directory"),
        Call("close", when="for each that is needed no more"),
        form="(?:ppoll (?:recvmsg |fstatfs |close )*)+",
    ),
    _fixed(
        Call("clock_gettime", "CLOCK_MONOTONIC", when=_DEAD),
        Call("openat2", "O_DIRECTORY, RESOLVE_BENEATH|RESOLVE_NO_SYMLINKS|RESOLVE_NO_XDEV", when=_DEAD),
        Call("openat", '"cgroup.kill", "freezer.state", "cgroup.procs", "cgroup.events"', when=_DEAD),
        Call("write", "1, FROZEN, THAWED", when=_DEAD),
        Call("read", "processes, and whether there are any", when=_DEAD),
        Call("getpid", when=_DEAD),
        Call("pidfd_open", "a process", when=_LEFT),
        Call("pidfd_send_signal", "SIGKILL", when=_LEFT),
        Call("lseek", when=_LEFT),
        Call("getdents64", "the groups below", when=_LEFT),
        Call("ppoll", "its end, or a change of cgroup.events", when=_LEFT),
        Call("unlinkat", "AT_REMOVEDIR", when=_DEAD),
        Call("close", when=_DEAD),
        form=(
            "(?:(?:clock_gettime |openat2 |openat |write |read |getpid |pidfd_open |pidfd_send_signal |lseek |getdents64 "
            "|ppoll |unlinkat |close )+)?"
        ),
    ),
    _fixed(Call("exit_group", "0")),
)


def sections(steps: Sequence[Step]) -> Iterator[Section]:
    """Return what each process of a launch does, in the order of their birth; the calling thread first."""
    parts: dict[str, list[tuple[int | None, Explained]]] = {"first": [], "inside": [], "command": []}
    stage = "first"
    helped = False
    end = steps[-1]
    for number, step in enumerate(steps):
        parts[stage].append((number, explain_step(step)))
        helped |= step.kind == "MAP_HELPER"
        if step.kind == "GO":
            stage = "inside"
        elif step.kind == "SUPERVISE":
            stage, end = "command", step
    yield Section("host", (_HOST,))
    yield Section("middle", (_MIDDLE,))
    yield Section("stage 1", (*_START, *parts["first"]))
    if helped:
        yield Section("helper", (_HELPER,))
    yield Section("inside", (_WAIT, *parts["inside"]))
    if parts["command"]:
        yield Section("command", (_COMMAND, *parts["command"]))
    if end.kind == "REAP":
        yield Section("supervisor", _REAPER)
        return
    supervisor = _supervisor(end.kind, is_init=end.flags != 0, deadline=end.value != 0, oom=end.fd is not None)
    yield Section("supervisor", tuple(supervisor))
