"""One examination of a host: what its probes share, and how the end of a probe becomes a feature."""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import ExitStack
from errno import ENOENT
from typing import TYPE_CHECKING, NamedTuple, Protocol

from isolib._kernel import calls
from isolib._kernel.handle import Fd
from isolib._kernel.netlink.socket import Socket
from isolib._kernel.plan import INSIDE
from isolib._kernel.sockets import netlink_step
from isolib.errors import SetupFailed, SyscallError, from_errno
from isolib.support import refusals
from isolib.support.attempts import own_room, resident
from isolib.support.refusals import NOTHING, Refusal, Refused, said
from isolib.support.report import Feature

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from isolib._kernel.launch import Launched
    from isolib._kernel.plan import Step
    from isolib.support.facts import Facts
    from isolib.support.refusals import Need


class Examination:
    """What the probes of one `doctor()` share: the facts, what was found so far, and descriptors, closed at the end."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.found: dict[str, Feature] = {}
        self.orphan: tuple[int, int] | None = None
        self._stack = ExitStack()
        self._handed: dict[str, int | Exception] = {}
        self._netlink: dict[int, Socket] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def require_proc(self) -> None:
        """Raise `Refused` where the facts could not be read."""
        if not self.facts.namespaces:
            by = refusals.shortage("open", "/proc", ENOENT)
            raise Refused("/proc does not tell", by or _UNEXPECTED)

    def remember(self, launched: Launched) -> None:
        """Keep the identity of a process and of its parent, to ask later whether that has reaped it."""
        pidfd = os.dup(launched.pidfd)
        self._stack.callback(os.close, pidfd)
        with open(f"/proc/{launched.supervisor_pid}/status", "rb") as file:
            parent = next((int(line.split()[1]) for line in file if line.startswith(b"PPid:")), 0)
        self.orphan = pidfd, parent

    def handed(self, label: str, step: Step) -> int:
        """Return the descriptor that a step yields in a new network namespace, which lives as long as the examination.

        Nobody enters that namespace: a socket stays in the one that it was made in.  Made once for each label, whether it
        works or not.
        """
        known = self._handed.get(label)
        if known is None:
            try:
                known = self._hand_over(label, step)
            except (Refused, OSError) as error:
                known = error
            self._handed[label] = known
        if isinstance(known, Exception):
            raise known
        return known

    def netlink(self, protocol: int) -> Socket:
        """Return a netlink socket of a network namespace that is this protocol's alone; raises as `handed`."""
        known = self._netlink.get(protocol)
        if known is None:
            label = f"netlink {protocol}"
            step = netlink_step(protocol, f"netlink protocol {protocol}")
            fd = Fd.take(fcntl.fcntl, self.handed(label, step), fcntl.F_DUPFD_CLOEXEC, 0)
            assert fd is not None  # noqa: S101 - it raises
            calls.netlink_prepare(fd.fileno(), label)
            known = self._netlink[protocol] = Socket(fd, label)
            self._stack.callback(known.close)
        return known

    def _hand_over(self, label: str, step: Step) -> int:
        builder = own_room(self.facts, "net")
        builder.pty = builder.produce(INSIDE, step, label)
        return self._stack.enter_context(resident(self.facts, builder)).pty


class Explain(Protocol):
    """Says who refused a failed call."""

    def __call__(self, error: SyscallError, need: Need, facts: Facts, /) -> Refusal:
        """Return who refused, and the remedy."""


def explain_call(error: SyscallError, need: Need, facts: Facts) -> Refusal:
    """Say who refused, from the call and its error number."""
    return refusals.call(error.op, error.errno, need, facts)


def mode_of(path: str) -> str:
    """Return mode and owner of a file as ``ls -l`` shows them."""
    try:
        status = os.stat(path)
    except OSError:
        return "unknown"
    return f"{stat.filemode(status.st_mode)} of uid {status.st_uid}"


def open_device(path: str, flags: int = os.O_RDWR) -> int:
    """Open a device file; raises `SyscallError`."""
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        raise from_errno("open", path, error.errno or 0) from error


def explain_device(error: SyscallError, need: Need, facts: Facts) -> Refusal:
    """Say who refused to open a device, or what was asked of it."""
    if error.op in ("openat2", "open"):
        path = str(error.target)
        return refusals.device_file(path, error.errno, mode_of(path), need, facts)
    return refusals.call(error.op, error.errno, need, facts)


class Probe(NamedTuple):
    """One feature: its name, and the function that uses it and returns details, or raises.

    Of what is raised, `Refused` says all itself; a `SyscallError` is explained by ``explain`` with ``need``.
    """

    name: str
    function: Callable[[Examination], str]
    need: Need = NOTHING
    explain: Explain = explain_call

    def examine(self, exam: Examination) -> Feature:
        """Run the probe; whatever happens in it becomes a feature."""
        try:
            feature = Feature(self.name, available=True, reason=self.function(exam))
        except Refused as refused:
            feature = _refused(self.name, refused.reason, refused.refusal)
        except OSError as caught:
            error = caught if isinstance(caught, SyscallError) else _as_syscall_error(caught)
            reason = said(error.op, error.target, error.errno)
            feature = _refused(self.name, reason, self._refusal(error, exam.facts))
        except Exception as error:  # noqa: BLE001 - a probe that breaks must not hide what the others found
            feature = _refused(self.name, f"{type(error).__name__}: {error}", _UNEXPECTED)
        exam.found[self.name] = feature
        return feature

    def _refusal(self, error: SyscallError, facts: Facts) -> Refusal:
        short = refusals.shortage(error.op, error.target, error.errno)
        if short is not None:
            return short
        if isinstance(error, SetupFailed) and error.step.startswith("start of the launcher"):
            return refusals.call(error.op, error.errno, NOTHING, facts)  # nothing of the feature was tried
        return self.explain(error, self.need, facts)


def _as_syscall_error(error: OSError) -> SyscallError:
    return from_errno("a system call", error.filename and str(error.filename), error.errno or 0)


_UNEXPECTED = Refusal("an error that the probe did not expect", "report it, with the reason")


def _refused(name: str, reason: str, refusal: Refusal) -> Feature:
    return Feature(name, available=False, reason=reason, refused_by=refusal.refused_by, remedy=refusal.remedy)
