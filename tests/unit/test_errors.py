from __future__ import annotations

import copy
import errno
import os
import pickle
import subprocess
from signal import SIGKILL, SIGRTMIN

import pytest

import isolib
from isolib import errors
from isolib.errors import (
    ArchiveError,
    ClosedError,
    CommandFailed,
    GoneError,
    ImageNotFound,
    IsolibError,
    LimitExceeded,
    OutOfMemory,
    PermissionDenied,
    PlanError,
    RegistryError,
    SandboxTimeout,
    SetupFailed,
    StoreDamaged,
    SyscallError,
    ThreadStranded,
    Unsupported,
    from_errno,
)
from isolib.types import Exit, Reason, Usage

USAGE = Usage(wall=2.5, memory_peak=1 << 20)
FAILED = Exit(code=3, signal=None, reason=Reason.EXITED, usage=USAGE)
KILLED = Exit(code=None, signal=SIGKILL, reason=Reason.OOM)

EVERY_KIND: list[tuple[IsolibError, str]] = [
    (IsolibError("what happened"), "what happened"),
    (PlanError("memory: negative"), "memory: negative"),
    (ArchiveError("is cut short"), "is cut short"),
    (ArchiveError("leads out of the tree", b"../etc"), "../etc: leads out of the tree"),
    (ArchiveError("is long", b"a" * 5000), "a" * 255 + "...: is long"),
    (ArchiveError("is odd", b"\x1b[2J\xff"), "'\\x1b[2J\\udcff': is odd"),
    (ClosedError("<NetNS closed>"), "<NetNS closed>"),
    (ThreadStranded("in net:[7]"), "in net:[7]"),
    (ImageNotFound("no image is called app:1"), "no image is called app:1"),
    (RegistryError("ghcr.io", "it refuses", 403), "ghcr.io: it refuses"),
    (StoreDamaged("its digest is another", "blobs/12"), "blobs/12: its digest is another"),
    (
        Unsupported("time namespaces", "the kernel (CONFIG_TIME_NS is not set)", "Linux 5.6 with CONFIG_TIME_NS=y"),
        "time namespaces: refused by the kernel (CONFIG_TIME_NS is not set) -- Linux 5.6 with CONFIG_TIME_NS=y",
    ),
    (SyscallError("mount", "/x", errno.EINVAL), "mount: /x: Invalid argument (EINVAL)"),
    (SyscallError("unshare", None, errno.ENOSPC, "look there"), "unshare: No space left on device (ENOSPC) -- look there"),
    (PermissionDenied("mount", "/x", errno.EACCES, "be root"), "mount: /x: Permission denied (EACCES) -- be root"),
    (GoneError("pidfd_open", "process 7"), "pidfd_open: process 7: No such process (ESRCH)"),
    (
        SetupFailed("proc", "mount", "/proc", errno.EPERM, "a reason"),
        "proc: mount: /proc: Operation not permitted (EPERM) -- a reason",
    ),
    (LimitExceeded(["yes"], "wrote too much", b"y\n", None, USAGE), "['yes'] wrote too much"),
    (SandboxTimeout(["sleep", "9"], 2, b"out", b"err", USAGE), "['sleep', '9'] ran longer than 2 s"),
    (OutOfMemory(["sort"], 1024, b"", b"x"), "['sort'] was killed for using more than its memory limit of 1024 bytes"),
    (OutOfMemory(["sort"]), "['sort'] was killed for using more than its memory limit"),
    (CommandFailed(["make"], FAILED, b"", b"cc\nno rule\n\n"), "['make'] exited with status 3: no rule"),
    (CommandFailed(["make"], KILLED), "['make'] was killed by SIGKILL (oom)"),
]


def kind(error: IsolibError) -> str:
    """Name a test after the exception."""
    return type(error).__name__


ERRORS = pytest.mark.parametrize("error", [error for error, _ in EVERY_KIND], ids=kind)


def test_every_exception_is_tried() -> None:
    """The list above leaves no exception out."""
    assert {type(error).__name__ for error, _ in EVERY_KIND} == set(errors.__all__)


@pytest.mark.parametrize(("error", "text"), EVERY_KIND, ids=[kind(error) for error, _ in EVERY_KIND])
def test_message(error: IsolibError, text: str) -> None:
    """The message says what failed, on what, and what would help."""
    assert str(error) == text


@ERRORS
def test_pickle(error: IsolibError) -> None:
    """An exception crosses a process boundary with its type, its attributes and its notes."""
    error.add_note("and a note")
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301 -- our own
        assert type(other) is type(error)
        assert str(other) == str(error)
        assert other.args == error.args
        assert vars(other) == vars(error)
        assert other.__notes__ == ["and a note"]
        for name in ("errno", "strerror", "filename"):
            assert getattr(other, name, None) == getattr(error, name, None)
    del error.__notes__


@ERRORS
def test_public_name(error: IsolibError) -> None:
    """Every exception is named after, and importable from, the place where users look."""
    assert type(error).__module__ == "isolib"
    assert getattr(isolib, type(error).__name__) is type(error)


def test_bases() -> None:
    """Each exception is also the builtin one that a caller would expect."""
    for cls, bases in {
        SyscallError: (IsolibError, OSError),
        PermissionDenied: (SyscallError, PermissionError),
        GoneError: (SyscallError, ProcessLookupError),
        SetupFailed: (SyscallError,),
        PlanError: (IsolibError, ValueError),
        ClosedError: (IsolibError, ValueError),
        ThreadStranded: (IsolibError,),
        Unsupported: (IsolibError,),
        SandboxTimeout: (LimitExceeded, IsolibError, TimeoutError),
        OutOfMemory: (LimitExceeded, IsolibError, MemoryError),
        CommandFailed: (IsolibError, subprocess.CalledProcessError),
    }.items():
        for base in bases:
            assert issubclass(cls, base)


def test_attributes() -> None:
    """What the message says is there as attributes, too."""
    failed = SetupFailed("proc", "mount", "/proc", errno.EPERM, "a reason")
    assert (failed.step, failed.op, failed.target, failed.errno, failed.hint) == ("proc", "mount", "/proc", 1, "a reason")
    assert (failed.filename, failed.strerror) == ("/proc", os.strerror(errno.EPERM))
    timeout = SandboxTimeout(["sleep"], 1.5, b"out", b"err", USAGE)
    assert (timeout.timeout, timeout.stdout, timeout.stderr, timeout.usage) == (1.5, b"out", b"err", USAGE)
    assert timeout.errno is None
    command = CommandFailed(["make"], KILLED, b"out", b"err")
    assert (command.returncode, command.cmd, command.stdout, command.stderr) == (-SIGKILL, ["make"], b"out", b"err")
    assert (command.exit, command.usage) == (KILLED, KILLED.usage)
    unsupported = Unsupported("a", "b", "c")
    assert (unsupported.feature, unsupported.refused_by, unsupported.remedy) == ("a", "b", "c")


def test_from_errno() -> None:
    """The error number chooses the class, unless the caller does."""
    for number, cls in (
        (errno.EPERM, PermissionDenied),
        (errno.EACCES, PermissionDenied),
        (errno.ESRCH, GoneError),
        (errno.EINVAL, SyscallError),
    ):
        error = from_errno("op", "target", number, "hint")
        assert type(error) is cls
        assert (error.op, error.target, error.errno, error.hint) == ("op", "target", number, "hint")
    assert type(from_errno("op", None, errno.EPERM, cls=SyscallError)) is SyscallError


def test_odd_names() -> None:
    """Names with line feeds or escape sequences, and unknown numbers, make one harmless line."""
    assert str(SyscallError("open", "a\n\x1b[2Jb", errno.EIO)) == r"open: 'a\n\x1b[2Jb': Input/output error (EIO)"
    assert str(SyscallError("open", "\udce9", errno.EIO)).isascii()
    assert str(SyscallError("x", None, 4095)) == "x: Unknown error 4095 (4095)"
    realtime = Exit(code=None, signal=SIGRTMIN + 3, reason=Reason.SIGNALED)
    assert str(CommandFailed(["x"], realtime)) == f"['x'] was killed by signal {SIGRTMIN + 3} (signaled)"
    assert str(CommandFailed(["x"], FAILED, None, b"\xff\x1b" + b"y" * 999)).count("y") < 200
