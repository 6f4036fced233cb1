"""Launching a plan: the one call, and what it returns.

A :class:`Launched` owns the descriptors of a running process: its status socket, the pidfd of its supervisor, the pidfd of the
command, its pipes and its terminal.  Closing the status socket, or the death of this process, ends everything behind it.
"""

from __future__ import annotations

import fcntl
import os
import threading
from errno import ENOENT, ESTALE
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib._kernel.handle import Fd, Rollback
from isolib._kernel.hints import hint
from isolib.errors import SetupFailed, Unsupported, from_errno

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from isolib._kernel.lending import Loan
    from isolib._kernel.lodging import Lodge
    from isolib._kernel.plan import Plan

_IMAGE_PATH: Final = os.path.join(os.path.dirname(__file__), "isolib-launcher")

_STDERR: Final = 2
_INHERITED: Final = (calls.STDIO_INHERIT,) * 3


class _Ground:
    """What every launch of this process stands on, opened once: the sealed launcher, this process's pidfd, a real procfs."""

    __slots__ = ("_owned", "host", "image", "image_path", "is_own_proc", "owner", "proc")

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.image_path = os.fsencode(_IMAGE_PATH)
        host = _opened("pidfd_open", "this process", os.pidfd_open, self.owner)
        proc = _opened("open", "/proc", os.open, "/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        image = _seal()
        self._owned = (host, proc, image)
        self.host, self.proc = host.fileno(), proc.fileno()
        self.image = -1 if image is None else image.fileno()
        if calls.fs_magic(self.proc) != calls.PROC_SUPER_MAGIC:  # something was mounted over it
            raise from_errno("open", "/proc", ENOENT, "isolib needs procfs mounted at /proc")
        self.is_own_proc = _is_own(self.proc)


def _opened(op: str, target: str, call: Callable[..., int], *arguments: object) -> Fd:
    """Take a descriptor, with a number that is no standard stream's: in a daemon 0 to 2 may be free."""
    try:
        fd = Fd.take(call, *arguments)
        if fd is not None and fd.fileno() <= _STDERR:
            fd = Fd.take(fcntl.fcntl, fd.fileno(), fcntl.F_DUPFD_CLOEXEC, _STDERR + 1)
    except OSError as error:
        raise from_errno(op, target, error.errno or 0, hint(op, error.errno or 0, target)) from None
    assert fd is not None  # noqa: S101 - they raise
    return fd


def _is_own(proc: int) -> bool:
    """Return whether a procfs numbers processes as this process does: it may be that of a pid namespace around."""
    try:
        return os.readlink("self", dir_fd=proc) == str(os.getpid())
    except OSError:
        return False


def _seal() -> Fd | None:
    """Return the sealed image, or None where memory files cannot be made or executed: then the installed file is executed."""
    try:
        return calls.seal_launcher(_IMAGE_PATH)
    except PermissionError:  # vm.memfd_noexec = 2
        return None


_lock = threading.Lock()
_grounds: dict[int, _Ground] = {}


def ground() -> _Ground:
    """Return this process's ground; a process forked from one that had it makes its own."""
    pid = os.getpid()
    found = _grounds.get(pid)
    if found is None:
        with _lock:
            found = _grounds.get(pid)
            if found is None:
                found = _grounds[pid] = _Ground()
    return found


def _forget_after_fork() -> None:
    # The lock may be held by a thread that does not exist here; the parent's descriptors are closed, not used.
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()
    _grounds.clear()


os.register_at_fork(after_in_child=_forget_after_fork)


class Launched:
    """A process that the launcher started; owner of everything that belongs to it until :meth:`close`.

    The descriptors stand in a C structure that owns them from the launch on, and closes them in one call, or when it is
    forgotten: at no point could an interrupt leave one that nobody owns.
    """

    __slots__ = ("_request", "loans", "lodge")

    def __init__(self, request: calls.LaunchRequest, lodge: Lodge | None = None) -> None:
        self._request = request
        #: Where it lives in the tree of control groups, or None: where its creator does.
        self.lodge = lodge
        #: What it has of others, which they get back when it and all that it left behind are gone.
        self.loans: tuple[Loan, ...] = ()

    @property
    def status(self) -> int:
        """The socket to its supervisor."""
        return int(self._request.status)

    @property
    def pidfd(self) -> int:
        """Of its supervisor; -1 when this object is closed."""
        return int(self._request.pidfd)

    @property
    def command(self) -> int:
        """The pidfd of the command, or -1."""
        return int(self._request.command)

    @property
    def pty(self) -> int:
        """The descriptor that it has handed over, the terminal's master, or -1."""
        return int(self._request.pty)

    @property
    def supervisor_pid(self) -> int:
        """The supervisor's pid."""
        return int(self._request.supervisor_pid)

    @property
    def command_pid(self) -> int:
        """The command's pid, or 0."""
        return int(self._request.command_pid)

    @property
    def started_ns(self) -> int:
        """When it was launched, on CLOCK_MONOTONIC."""
        return int(self._request.started_ns)

    def namespace(self, kind: str) -> Fd:
        """Take one of the supervisor's namespaces."""
        try:
            return calls.take_namespace(self.pidfd, kind)
        except OSError:  # before 6.11
            found = Fd.take(os.open, f"/proc/{self.supervisor_pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
            assert found is not None  # noqa: S101 - os.open raises
            return found

    @property
    def request(self) -> calls.LaunchRequest:
        """The C structure."""
        return self._request

    def end(self) -> None:
        """End it and all that it has started, wait for that, and close everything."""
        calls.abort_launch(self._request)
        self.give_back()

    def close(self) -> None:
        """Close every descriptor still owned.  The supervisor sees its socket close, and ends all that still runs."""
        calls.forget_launch(self._request)
        self.give_back()

    def give_back(self) -> None:
        """Give back what was lent to it: it is gone.  Again is nothing."""
        if self.loans:
            with Rollback() as undo:
                for loan in self.loans:
                    undo.push(loan.close)


def launch(
    plan: Plan,
    fds: Sequence[int] = (),
    *,
    stdio: tuple[int, int, int] = _INHERITED,
    keep: Sequence[int] = (),
    lodge: Lodge | None = None,
) -> Launched:
    """Run a plan with the declared descriptors; returns when the command has been executed or the resident process holds.

    Raises
    ------
    SetupFailed
        A step failed; it names the step, its object and what would help.  Nothing is left.
    """
    request = calls.new_launch()
    try:
        calls.launch(request, _wanted(plan, fds, stdio, keep))
    except calls.LaunchRefused as refused:
        raise failure(plan, refused) from None
    return Launched(request, lodge)


def run(
    plan: Plan,
    fds: Sequence[int],
    pump: calls.Pump,
    *,
    stdio: tuple[int, int, int],
    timeout_ns: int,
    premises: tuple[bytes, int] | None = None,
    lodge: Lodge | None = None,
) -> tuple[Launched, int] | None:
    """Run a plan to the end of its command, in one call; returns what is left of it and what the pump returned.

    None: a premise of the plan holds no more, and nothing was done.
    """
    request = calls.new_launch()
    try:
        wanted = _wanted(plan, fds, stdio, (), premises)
        if lodge is not None:
            wanted = wanted._replace(careful=True, after=lodge.parting())
        pumped = calls.run(request, pump, wanted, timeout_ns)
    except calls.LaunchRefused as refused:
        if refused.errno == ESTALE and refused.stage == "host":
            return None
        raise failure(plan, refused) from None
    return Launched(request, lodge), pumped


def _wanted(
    plan: Plan,
    fds: Sequence[int],
    stdio: tuple[int, int, int],
    keep: Sequence[int],
    premises: tuple[bytes, int] | None = None,
) -> calls.Launch:
    base = ground()
    if not base.is_own_proc and any(step.kind in {"MAP", "MAP_HELPER"} for step in plan.steps):
        raise Unsupported(
            "a new user namespace",
            "/proc, which is that of another pid namespace",
            "mount -t proc proc /proc, in a new mount namespace",
        )
    return calls.Launch(
        base.image, base.image_path, plan.encode(), fds, keep, stdio, base.host, base.proc, plan.stream_owner, premises
    )


#: What a call of the host's side of a launch is about.
_HOST_TARGETS: Final = {
    "clone": "the launcher",
    "close_range": "descriptors",
    "dup3": "standard streams",
    "execve": os.fsdecode(_IMAGE_PATH),
    "fcntl": "descriptors",
    "memfd_create": "the plan",
    "openat": "/dev/null",
    "pipe2": "standard streams",
    "recvmsg": "descriptors from the launcher",
    "setsockopt": "status socket",
    "socketpair": "status socket",
    "writev": "the plan",
}


def failure(plan: Plan, refused: calls.LaunchRefused) -> SetupFailed:
    """Return the exception for a step that failed."""
    number, errno, stage, call = refused.step, refused.errno, refused.stage, refused.call
    if 0 <= number < len(plan.steps):
        step = plan.steps[number]
        # The calls of a helper program's birth are no news; that it failed is.
        op = step.op if call is None or step.kind == "MAP_HELPER" else call
        target, name = step.target, f"{number} {step.kind} ({stage})"
    elif stage == "host":
        op = call or "launch"
        target, name = _HOST_TARGETS.get(op, "the launcher"), "start of the launcher"
    else:
        op, target, name = call or "launch", "the launcher", f"start of the launcher ({stage})"
    return SetupFailed(name, op, target, errno, hint(op, errno, target))
