"""The exceptions of isolib.

Each says what failed, on which object, and what would allow it. All are importable from `isolib` itself, and all
survive pickling with their attributes, so that they can cross a process boundary.

This module imports nothing of isolib, and everything else may import it.
"""

from __future__ import annotations

import os
from errno import EACCES, EPERM, ESRCH, errorcode
from signal import Signals
from subprocess import CalledProcessError
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    from isolib.types import Exit, Usage

    Command: TypeAlias = Sequence[str | bytes | os.PathLike[str] | os.PathLike[bytes]]

__all__ = [
    "ArchiveError",
    "ClosedError",
    "CommandFailed",
    "GoneError",
    "ImageNotFound",
    "IsolibError",
    "LimitExceeded",
    "OutOfMemory",
    "PermissionDenied",
    "PlanError",
    "RegistryError",
    "SandboxTimeout",
    "SetupFailed",
    "StoreDamaged",
    "SyscallError",
    "ThreadStranded",
    "Unsupported",
]


_LONGEST_SHOWN = 255


class IsolibError(Exception):
    """The base of every exception that isolib raises on its own account."""

    def _arguments(self) -> tuple[object, ...]:
        """Return what the constructor must be called with to make this exception again."""
        return self.args

    def __reduce__(self) -> tuple[object, ...]:
        # The default hands `args` to the constructor, which is right only where the two have the same shape.
        return type(self), self._arguments(), self.__dict__


class PlanError(IsolibError, ValueError):
    """An argument that cannot work, found before the first system call: nothing was done and nothing has changed."""


class ClosedError(IsolibError, ValueError):
    """A handle was used after it was closed.

    A `ValueError`, as for an operation on a closed file.
    """


class ThreadStranded(IsolibError):
    """The calling thread could not be brought back to where it was.

    It must not run anything else: let it end. The rest of the process is not affected.
    """


class ArchiveError(IsolibError, ValueError):
    """An archive, an image or a part of one is damaged, breaks its format, or asks for what must not be.

    Parameters
    ----------
    reason
        What is wrong with it.
    entry
        The part that it is wrong with: the path of an archive's entry, the digest of a blob.  None: the whole.
    """

    def __init__(self, reason: str, entry: bytes | str | None = None) -> None:
        super().__init__(reason, entry)
        self.reason = reason
        self.entry = None if entry is None else os.fsdecode(entry)

    def __str__(self) -> str:
        if self.entry is None:
            return self.reason
        # Names in archives are anybody's: they may be long, and hold line feeds and escape sequences.
        entry = self.entry if len(self.entry) <= _LONGEST_SHOWN else self.entry[:_LONGEST_SHOWN] + "..."
        return f"{entry if entry.isprintable() else repr(entry)}: {self.reason}"


class ImageNotFound(IsolibError, LookupError):
    """A store has no such image, tree or volume, or several that are meant by what was given."""


class StoreDamaged(IsolibError):
    """Something that a store has on record is missing or is not what it was: `Store.verify` lists all such things.

    Parameters
    ----------
    reason
        What is wrong.
    what
        With what: the path in the store.
    """

    def __init__(self, reason: str, what: str) -> None:
        super().__init__(reason, what)
        self.reason = reason
        self.what = what

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}"


class RegistryError(IsolibError):
    """A registry of images cannot be reached, refuses, or does not answer as registries do.

    Parameters
    ----------
    registry
        Its name.
    reason
        What it is.
    status
        The status of its answer, by HTTP; None: it did not come to that.
    """

    def __init__(self, registry: str, reason: str, status: int | None = None) -> None:
        super().__init__(registry, reason, status)
        self.registry = registry
        self.reason = reason
        self.status = status

    def __str__(self) -> str:
        return f"{self.registry}: {self.reason}"


class Unsupported(IsolibError):
    """What was asked cannot be done on this host, or by this user.

    Parameters
    ----------
    feature
        What was asked for: ``"time namespaces"``.
    refused_by
        What refuses it: a kernel version, a configuration option, a sysctl, a security module, a privilege.
    remedy
        What would allow it, in one line.
    """

    def __init__(self, feature: str, refused_by: str, remedy: str) -> None:
        super().__init__(feature, refused_by, remedy)
        self.feature = feature
        self.refused_by = refused_by
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.feature}: refused by {self.refused_by} -- {self.remedy}"


class SyscallError(IsolibError, OSError):
    """A system call failed.

    Parameters
    ----------
    op
        The system call: ``"mount"``.
    target
        The object that it was applied to, or None where there is none. It is `filename` too, as in other OSErrors.
    errno
        The error number.
    hint
        What the error number means here and what would help, where that is known.
    """

    # OSError reads these from C members; the declarations tell type checkers that they are always set.
    errno: int
    strerror: str

    def __init__(self, op: str, target: str | None, errno: int, hint: str | None = None) -> None:
        super().__init__(errno, os.strerror(errno), target)
        self.op = op
        self.target = target
        self.hint = hint

    def _arguments(self) -> tuple[object, ...]:
        return self.op, self.target, self.errno, self.hint

    def __str__(self) -> str:
        parts = [self.op]
        if self.target is not None:
            # A name may hold line feeds and escape sequences, and it may come from inside a sandbox.
            parts.append(self.target if self.target.isprintable() else repr(self.target))
        parts.append(f"{self.strerror} ({errorcode.get(self.errno, self.errno)})")
        text = ": ".join(parts)
        return f"{text} -- {self.hint}" if self.hint else text


class PermissionDenied(SyscallError, PermissionError):
    """A system call was refused for lack of a privilege (EPERM, EACCES)."""


class GoneError(SyscallError, ProcessLookupError):
    """The process, or whatever else was meant, does not exist any more (ESRCH)."""

    def __init__(self, op: str, target: str | None, errno: int = ESRCH, hint: str | None = None) -> None:
        super().__init__(op, target, errno, hint)


class SetupFailed(SyscallError):
    """A step in the birth of a process or a sandbox failed, and everything before it was undone.

    Parameters
    ----------
    step
        The step of the plan, in words: ``"mount /proc"``.
    op, target, errno, hint
        As in `SyscallError`.
    """

    def __init__(self, step: str, op: str, target: str | None, errno: int, hint: str | None = None) -> None:
        super().__init__(op, target, errno, hint)
        self.step = step

    def _arguments(self) -> tuple[object, ...]:
        return self.step, *super()._arguments()

    def __str__(self) -> str:
        return f"{self.step}: {super().__str__()}"


class LimitExceeded(IsolibError):
    """A command went over one of its limits.

    Parameters
    ----------
    cmd
        The command, as it was given.
    what
        What happened, as the end of a sentence about it.
    stdout, stderr
        What had been captured so far, or None where nothing was to be captured.
    usage
        What it had used so far.
    """

    def __init__(
        self,
        cmd: Command,
        what: str,
        stdout: bytes | None = None,
        stderr: bytes | None = None,
        usage: Usage | None = None,
    ) -> None:
        super().__init__(f"{cmd!r} {what}")
        self.cmd = cmd
        self.what = what
        self.stdout = stdout
        self.stderr = stderr
        self.usage = usage

    def _arguments(self) -> tuple[object, ...]:
        return self.cmd, self.what, self.stdout, self.stderr, self.usage


class SandboxTimeout(LimitExceeded, TimeoutError):
    """A command was ended because it ran longer than it may.

    Parameters
    ----------
    cmd, stdout, stderr, usage
        As in `LimitExceeded`.
    timeout
        The limit, in seconds.
    """

    def __init__(
        self,
        cmd: Command,
        timeout: float,
        stdout: bytes | None = None,
        stderr: bytes | None = None,
        usage: Usage | None = None,
    ) -> None:
        super().__init__(cmd, f"ran longer than {timeout:g} s", stdout, stderr, usage)
        self.timeout = timeout

    def _arguments(self) -> tuple[object, ...]:
        return self.cmd, self.timeout, self.stdout, self.stderr, self.usage


class OutOfMemory(LimitExceeded, MemoryError):
    """A command was killed because it used more memory than it may.

    Parameters
    ----------
    cmd, stdout, stderr, usage
        As in `LimitExceeded`.
    limit
        The limit, in bytes, where it is known.
    """

    def __init__(
        self,
        cmd: Command,
        limit: int | None = None,
        stdout: bytes | None = None,
        stderr: bytes | None = None,
        usage: Usage | None = None,
    ) -> None:
        of = "" if limit is None else f" of {limit} bytes"
        super().__init__(cmd, f"was killed for using more than its memory limit{of}", stdout, stderr, usage)
        self.limit = limit

    def _arguments(self) -> tuple[object, ...]:
        return self.cmd, self.limit, self.stdout, self.stderr, self.usage


class CommandFailed(IsolibError, CalledProcessError):
    """A command that was run with ``check=True`` did not succeed.

    Parameters
    ----------
    cmd
        The command, as it was given.
    status
        How it ended; kept as `exit`, and `usage` and `returncode` with it.
    stdout, stderr
        What was captured, or None where nothing was to be captured.
    """

    def __init__(self, cmd: Command, status: Exit, stdout: bytes | None = None, stderr: bytes | None = None) -> None:
        super().__init__(status.returncode, cmd, stdout, stderr)
        self.exit = status
        self.usage = status.usage
        self.args = self._arguments()  # CalledProcessError leaves what it was called with

    def _arguments(self) -> tuple[object, ...]:
        return self.cmd, self.exit, self.stdout, self.stderr

    def __str__(self) -> str:
        if self.exit.signal is None:
            text = f"{self.cmd!r} exited with status {self.exit.code}"
        else:
            text = f"{self.cmd!r} was killed by {_signal_name(self.exit.signal)} ({self.exit.reason.value})"
        # The last line is where a program says why it stopped; all of it is in `stderr`.
        lines = (self.stderr or b"").split(b"\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), b"")
        return f"{text}: {last[:200].decode('utf-8', 'backslashreplace')}" if last else text


def _signal_name(number: int) -> str:
    try:
        return Signals(number).name
    except ValueError:  # a real-time signal has no name of its own
        return f"signal {number}"


def from_errno(
    op: str, target: str | None, errno: int, hint: str | None = None, cls: type[SyscallError] | None = None
) -> SyscallError:
    """Make the exception for a failed system call.

    Parameters
    ----------
    op, target, errno, hint
        As in `SyscallError`.
    cls
        The class to use, one with the constructor of `SyscallError`; by default the one that the error number asks for.

    Returns
    -------
    SyscallError
        Not raised: `PermissionDenied` for EPERM and EACCES, `GoneError` for ESRCH.
    """
    if cls is None:
        cls = {EPERM: PermissionDenied, EACCES: PermissionDenied, ESRCH: GoneError}.get(errno, SyscallError)
    return cls(op, target, errno, hint)


for _name in __all__:
    # Tracebacks and pickles name the place that users import from.
    globals()[_name].__module__ = "isolib"
