"""Pressure: how long processes of a group had to wait for a resource (Documentation/accounting/psi.rst)."""

from __future__ import annotations

import os
import re
import select
from dataclasses import dataclass
from errno import EINVAL, ENODEV, ENOENT, EOPNOTSUPP, EPERM
from typing import TYPE_CHECKING, Final

from isolib._kernel.handle import Epoll
from isolib._kernel.hints import typed
from isolib._kernel.waiting import Deadline, poll, readable
from isolib.cgroups.values import parse_flag
from isolib.errors import GoneError, PlanError, SyscallError, Unsupported
from isolib.types import parse_duration

if TYPE_CHECKING:
    from datetime import timedelta
    from types import TracebackType
    from typing import Self

    from isolib._kernel.handle import Fd
    from isolib.cgroups.files import Directory

__all__ = ["RESOURCES", "Pressure", "PressureLine", "PressureValues", "Pressures", "Trigger", "parse_pressure"]

RESOURCES: Final = ("cpu", "memory", "io", "irq")
_FEATURE: Final = "pressure of a control group"
_LINE: Final = re.compile(rb"(some|full) avg10=(\d+\.\d+) avg60=(\d+\.\d+) avg300=(\d+\.\d+) total=(\d+)", re.ASCII)
_SHORTEST: Final = 0.5  # WINDOW_MIN_US
_LONGEST: Final = 10.0  # WINDOW_MAX_US
#: What the averages are computed in, and so the windows of those without CAP_SYS_RESOURCE (PSI_FREQ).
_STEP: Final = 2.0
_MICRO: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class PressureLine:
    """How much time was lost by waiting.

    Attributes
    ----------
    avg10, avg60, avg300
        The part of the last 10, 60 and 300 seconds, in percent.
    total
        Since the group was made, in seconds.
    """

    avg10: float = 0.0
    avg60: float = 0.0
    avg300: float = 0.0
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class PressureValues:
    """The pressure on one resource.

    Attributes
    ----------
    some
        The time in which at least one process waited; None for irq.
    full
        The time in which all of them waited, and nothing was done; None for the cpu of older kernels (before 5.13).
    """

    some: PressureLine | None = None
    full: PressureLine | None = None


def parse_pressure(data: bytes) -> PressureValues:
    """Return what a file such as memory.pressure says.

    Raises
    ------
    ValueError
        It says something else.

    Examples
    --------
    >>> parse_pressure(b"full avg10=1.50 avg60=0.00 avg300=0.00 total=2000000").full.total
    2.0
    """
    found = {}
    for line in data.splitlines():
        match = _LINE.fullmatch(line.rstrip())
        if match is None:
            raise ValueError(f"not a line of a pressure file: {line[:100]!r}")
        avg10, avg60, avg300 = map(float, match.groups()[1:4])
        found[match[1]] = PressureLine(avg10, avg60, avg300, int(match[5]) / _MICRO)
    if not found:
        raise ValueError("an empty pressure file")
    return PressureValues(found.get(b"some"), found.get(b"full"))


class Trigger:
    """The kernel's promise to tell when a stall is longer than it may be; a context manager.

    It tells once in a window at the most, as long as the pressure lasts.  `fileno` is readable when it has told, for any event
    loop; whoever saw that needs not ask `wait` again, since telling it once is what the kernel does.
    """

    @typed("a trigger of pressure")
    def __init__(self, pressure: Pressure, writes: list[bytes]) -> None:
        self._pressure = pressure
        self._writes = writes
        self._fds: list[Fd] = []
        self._epoll = Epoll()
        try:
            for text in writes:
                fd = pressure.arm(text)
                self._fds.append(fd)
                self._epoll.register(fd.fileno(), select.EPOLLPRI)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        state = " closed" if self._epoll.closed else ""
        return f"<Trigger {self._pressure.name}.pressure {' or '.join(text.decode() for text in self._writes)}{state}>"

    def fileno(self) -> int:
        """Return the descriptor, readable when the kernel has told."""
        return self._epoll.fileno()

    def wait(self, timeout: float | timedelta | None = None) -> bool:
        """Wait until the kernel tells; returns whether it did in time.

        Raises
        ------
        GoneError
            The group has been removed.
        """
        left = Deadline(timeout)
        while True:
            # The file is asked itself: a poll of the epoll descriptor would take the news, and leave nothing to be seen.
            together = select.poll()
            for fd in self._fds:
                together.register(fd.fileno(), select.POLLPRI)
            if ready := together.poll(left.milliseconds()):
                self._check(any(events & select.POLLERR for _, events in ready))
                return True
            if left.is_over:
                return False

    async def told(self) -> None:
        """Wait until the kernel tells, under asyncio or trio; time-outs are those of the event loop.

        Raises
        ------
        GoneError
            The group has been removed.
        """
        await readable(self.fileno())
        self._check(bool(poll(self._fds[0].fileno(), 0, select.POLLPRI) & select.POLLERR))

    def _check(self, failed: bool) -> None:  # noqa: FBT001 - of this module only
        if failed:
            self._pressure.check_there()

    def close(self) -> None:
        """Take the promise back; again is nothing."""
        self._epoll.close()
        for fd in self._fds:
            fd.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Pressure:
    """The pressure on one resource of a group; every attribute asks the kernel anew."""

    __slots__ = ("_owner", "name")

    def __init__(self, owner: Pressures, name: str) -> None:
        self._owner = owner
        self.name = name

    def __repr__(self) -> str:
        return f"<Pressure {self.name} of {self._owner!r}>"

    @property
    def directory(self) -> Directory:
        """The group's directory in cgroup v2."""
        return self._owner.directory

    @property
    def some(self) -> PressureLine | None:
        """The time in which at least one process waited; None for irq."""
        return self.read().some

    @property
    def full(self) -> PressureLine | None:
        """The time in which all processes waited; None where the kernel does not count it."""
        return self.read().full

    def read(self) -> PressureValues:
        """Return both, of one moment.

        Raises
        ------
        Unsupported
            The kernel counts no pressure, or not for this group.
        GoneError
            The group has been removed.
        """
        try:
            return parse_pressure(self.directory.sample(f"{self.name}.pressure"))
        except SyscallError as error:
            raise self._rewritten(error) from None

    def trigger(self, *, some: float | None = None, full: float | None = None, within: float | timedelta = _STEP) -> Trigger:
        """Ask the kernel to tell when processes wait for longer than they may.

        Parameters
        ----------
        some, full
            Seconds within the window: of at least one process, of all processes.  With both, whichever comes first.
        within
            The window, 0.5 to 10 seconds.  Without CAP_SYS_RESOURCE it must be a multiple of 2 seconds.

        Returns
        -------
        Trigger
            To be closed.

        Raises
        ------
        PlanError
            No stall is given, or a number is out of its range.
        Unsupported
            The kernel counts no pressure, or does not take this window from this user.
        """
        writes = _texts(self.name, some, full, within)
        return Trigger(self, writes)

    def wait(
        self,
        *,
        some: float | None = None,
        full: float | None = None,
        within: float | timedelta = _STEP,
        timeout: float | timedelta | None = None,
    ) -> bool:
        """Wait until processes wait for longer than they may.

        Parameters
        ----------
        some, full, within
            As in `trigger`.
        timeout
            Seconds or a timedelta; None: no limit.

        Returns
        -------
        bool
            False: not in time.

        Raises
        ------
        PlanError, Unsupported
            As in `trigger`.
        GoneError
            The group has been removed.
        """
        writes = _texts(self.name, some, full, within)
        if timeout is not None:
            parse_duration(timeout, "timeout")
        with Trigger(self, writes) as trigger:
            return trigger.wait(timeout)

    # ---- for Trigger ----

    def arm(self, text: bytes) -> Fd:
        """Open the file anew and give it a trigger: it has one, and as long as it is open."""
        file = f"{self.name}.pressure"
        try:
            fd = self.directory.open_file(file, os.O_RDWR | os.O_NONBLOCK)
            try:
                os.write(fd.fileno(), text)
            except OSError as error:
                fd.close()
                raise self.directory.refused("write", file, error.errno or 0, text.decode()) from None
        except SyscallError as error:
            raise self._rewritten(error, text) from None
        return fd

    def check_there(self) -> None:
        """Raise when the group has been removed, or its pressure is no more counted: the kernel says the same for both."""
        if not self.directory.is_there():
            target = f"{self.directory.path}/{self.name}.pressure"
            raise GoneError("poll", target, ENODEV, "the control group has been removed")
        self.read()

    def _rewritten(self, error: SyscallError, text: bytes | None = None) -> Exception:
        if isinstance(error, GoneError):
            return error
        if error.errno in {ENOENT, ENODEV, EOPNOTSUPP}:
            return self._owner.absent(self.name)
        if text is not None and error.errno in {EINVAL, EPERM}:
            kind, _, window = text.decode().split()
            if error.errno == EINVAL and getattr(self.read(), kind) is None:
                return Unsupported(
                    f'"{kind}" of the {_FEATURE} by {self.name}',
                    "the kernel, which is older than 5.13",
                    'a newer kernel, or "some"',
                )
            if error.errno == EINVAL and int(window) % int(_STEP * _MICRO):
                return Unsupported(
                    f"a window of {int(window) / _MICRO:g} s for the {_FEATURE}",
                    "the kernel, for a process without CAP_SYS_RESOURCE",
                    "within=2, 4, 6, 8 or 10 seconds; or the capability",
                )
            if error.errno == EPERM:
                return Unsupported(
                    f"waiting for the {_FEATURE}",
                    "the kernel, which before Linux 6.5 took it from CAP_SYS_RESOURCE only",
                    "the capability, or a newer kernel",
                )
        return error


def _texts(name: str, some: float | None, full: float | None, within: float | timedelta) -> list[bytes]:
    """Return what is written to the file, for each kind of stall that was asked for."""
    window = parse_duration(within, "within")
    if not _SHORTEST <= window <= _LONGEST:
        raise PlanError(f"within: the window of a pressure trigger is {_SHORTEST} to {_LONGEST:g} seconds, not {within!r}")
    if some is None and full is None:
        raise PlanError("a stall is wanted, in seconds: some=0.15 (at least one process waits) or full=0.1 (all of them do)")
    if some is not None and name == "irq":
        raise PlanError("some: the kernel counts no such thing for irq; full= is")
    texts = []
    for kind, value in (("some", some), ("full", full)):
        if value is not None:
            stall = parse_duration(value, kind)
            if not 1 / _MICRO <= stall <= window:
                raise PlanError(f"{kind}: a stall is more than 0 and at most the window, {window:g} s, not {value!r}")
            texts.append(f"{kind} {round(stall * _MICRO)} {round(window * _MICRO)}".encode())
    return texts


class Pressures:
    """The pressure on each resource of a group, in cgroup v2.

    Parameters
    ----------
    directory
        The group's directory in cgroup v2, or None.
    refusal
        Why there is none: what every use raises then.

    Attributes
    ----------
    cpu, memory, io, irq
        Each a `Pressure`.
    """

    def __init__(self, directory: Directory | None, refusal: Unsupported | None = None) -> None:
        self._directory = directory
        self._refusal = refusal
        self.cpu, self.memory, self.io, self.irq = (Pressure(self, name) for name in RESOURCES)

    def __repr__(self) -> str:
        return f"<Pressures {'not available' if self._directory is None else self._directory.path}>"

    @property
    def directory(self) -> Directory:
        """The group's directory in cgroup v2."""
        if self._directory is None:
            raise self._refusal or Unsupported(_FEATURE, "cgroup v1, which has no such thing", "mount cgroup2 beside it")
        return self._directory

    @property
    def enabled(self) -> bool:
        """Whether the kernel counts the pressure of this group; that costs a little at every switch (since Linux 6.1).

        Raises
        ------
        Unsupported
            It cannot be switched, or the kernel counts no pressure at all.
        """
        try:
            return self.directory.read("cgroup.pressure").strip() == "1"
        except SyscallError as error:
            raise self._unswitched(error) from None

    @enabled.setter
    def enabled(self, value: bool) -> None:
        wanted = parse_flag(value, "pressure.enabled")
        try:
            self.directory.write("cgroup.pressure", str(int(wanted)))
        except SyscallError as error:
            raise self._unswitched(error) from None

    def _unswitched(self, error: SyscallError) -> Exception:
        if isinstance(error, GoneError) or error.errno not in {ENOENT, EOPNOTSUPP}:
            return error
        if self.directory.has("cpu.pressure"):
            return Unsupported(
                "switching the pressure of a control group", "the kernel, which is older than 6.1", "a newer one"
            )
        return self.absent("cpu")

    def absent(self, name: str) -> Unsupported:
        """Return why a group has no such file; the kernel hides it for one of these reasons."""
        switch = self.directory.sample_if_there("cgroup.pressure", comes_and_goes=True)
        if switch is not None and switch.strip() == b"0":
            return Unsupported(_FEATURE, f"{self.directory.path}/cgroup.pressure, which is 0", "pressure.enabled = True")
        if not os.path.exists("/proc/pressure"):
            reason = "the kernel, which was built without CONFIG_PSI or booted with it off (CONFIG_PSI_DEFAULT_DISABLED, psi=0)"
            return Unsupported(_FEATURE, reason, "psi=1 on the kernel's command line")
        if not self.directory.has("cpu.pressure"):
            reason = "the kernel, which was booted with cgroup_disable=pressure (or this is the topmost group of an old one)"
            return Unsupported(_FEATURE, reason, "a kernel's command line without it")
        reason = "the kernel, which is older than 6.1 or was built without CONFIG_IRQ_TIME_ACCOUNTING"
        return Unsupported(f"{_FEATURE} by {name}", reason, "a kernel that has it")
