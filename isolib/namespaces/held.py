"""A process that holds new namespaces until we have taken hold of them; of a pid namespace it is PID 1 and stays."""

from __future__ import annotations

import os
import time
from errno import ENOTTY
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib._kernel.handle import Fd
from isolib._kernel.launch import launch
from isolib._kernel.plan import HOLD
from isolib.errors import IsolibError, SyscallError, from_errno

if TYPE_CHECKING:
    from isolib._kernel.plan import Builder

__all__ = ["Held", "take", "take_by_path"]

_SECOND: Final = 1_000_000_000
_PATIENCE: Final = 10
"""How many seconds killed processes may take to end. A frozen one takes for ever."""

_SILENT: Final = (calls.STDIO_NULL, calls.STDIO_NULL, calls.STDIO_NULL)


class Held:
    """The process of a plan that ends with HOLD; owned until `end`."""

    def __init__(self, builder: Builder, label: str) -> None:
        self._label = label
        self._launched = launch(builder.build(HOLD), builder.fds, stdio=_SILENT)
        self._pump = calls.new_pump()
        calls.pump_watch(self._pump, self._launched.request)

    def namespace(self, kind: str) -> Fd:
        """Take one of its namespaces; kind ``time_for_children`` is the one that its next child gets."""
        return take(self._launched.pidfd, self._launched.supervisor_pid, kind)

    def hide(self) -> None:
        """Make it invisible for ptrace(2) and in /proc to whoever will live beside it; `namespace` fails from now on."""
        calls.say(self._launched.status, hide=True)

    def is_alive(self) -> bool:
        """Return whether it still holds."""
        return self._launched.pidfd >= 0 and not self._gone(0)

    def _gone(self, timeout_ns: int) -> bool:
        deadline = time.monotonic_ns() + timeout_ns
        result = calls.PUMP_SIGNAL
        while result == calls.PUMP_SIGNAL:  # in between Python runs its signal handlers
            result = calls.pump_run(self._pump, calls.UNTIL_EXIT, max(0, deadline - time.monotonic_ns()))
        return result == calls.PUMP_DONE

    def end(self) -> None:
        """End it and all that runs in its pid namespace, and wait for that; again is nothing.

        Raises
        ------
        IsolibError
            Something in its pid namespace does not die of SIGKILL: it is frozen by a cgroup, or waits for a device.
        """
        if self._launched.pidfd < 0:
            return
        calls.say(self._launched.status)
        gone = self._gone(_PATIENCE * _SECOND)
        self._launched.close()
        if not gone:
            raise IsolibError(f"{self._label}: its processes were killed {_PATIENCE} s ago and have not ended; is one frozen?")


def take(pidfd: int, pid: int, kind: str) -> Fd:
    """Return a namespace of a process, by its pidfd where the kernel can (6.11), else by /proc and the pid.

    Raises
    ------
    SyscallError
        The kernel refused; GoneError when the process has ended.
    """
    try:
        fd = Fd.take(calls.pidfd_namespace, pidfd, kind)
    except SyscallError as error:
        if error.errno != ENOTTY:
            raise
        by_path = take_by_path(pid, kind)
        # The pid was the process's own all the time if the process is alive now.
        calls.pidfd_send_signal(pidfd, 0, f"process {pid}")
        return by_path
    assert fd is not None  # noqa: S101 -- it raises
    return fd


def take_by_path(pid: int, kind: str) -> Fd:
    """Return a namespace of whatever process or thread has this pid now.

    Raises
    ------
    SyscallError
        The kernel refused; ENOENT when there is no such process, or no such kind.
    """
    path = f"/proc/{pid}/ns/{kind}"
    try:
        fd = Fd.take(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise from_errno("open", path, error.errno or 0) from None
    assert fd is not None  # noqa: S101 -- os.open raises
    return fd
