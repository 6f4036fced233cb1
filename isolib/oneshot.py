"""A process run to its end with its outputs captured: one call without the GIL where nothing interrupts it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib._kernel.launch import failure
from isolib.errors import GoneError, SandboxTimeout, Unsupported
from isolib.process import Process
from isolib.types import parse_duration

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from datetime import timedelta

    from isolib._kernel.lodging import Lodge
    from isolib._kernel.request import Request
    from isolib.cgroups import Cgroup
    from isolib.spec import SandboxSpec
    from isolib.types import Exit

_BOTH: Final = calls.UNTIL_EXIT | calls.UNTIL_STREAMS
_SECOND: Final = 1_000_000_000


def _new_pump(data: bytes | None, output_limit: int | None) -> tuple[calls.Pump, object]:
    pump = calls.new_pump()
    alive = calls.pump_input(data or b"")
    pump.input, pump.input_size = alive, len(data or b"")
    if output_limit is not None:
        pump.out.limit = pump.err.limit = output_limit
    return pump, alive


def new_group(spec: SandboxSpec, *, oom: str = "group") -> tuple[Cgroup | None, Mapping[str, Unsupported]]:
    """Make a control group with the limits of a sandbox; returns it, and the limits that were left out as ``allow=`` says.

    None: there is nothing for a group to do, or no group can be made and every limit may be left out.
    """
    if not spec.limits.group:
        return None, {}
    from isolib.cgroups.make import make  # noqa: PLC0415 - who has no limits needs none of it

    try:
        group = make(spec.limits.group, allow=spec.group_allow, oom=oom)
    except Unsupported as refusal:
        if not spec.limits.group.keys() <= set(spec.group_allow):
            raise
        return None, spec.by_own_names(dict.fromkeys(spec.limits.group, refusal))
    return group, spec.by_own_names(group.degraded)


class OneShotGroups:
    """The control groups of one-shot sandboxes of one spec: each has a new one, which goes with it."""

    def __init__(self, spec: SandboxSpec, group: Cgroup) -> None:
        self._spec = spec
        self.shape = group.shape  # it is the host's, and so that of all

    def lodge(self) -> Lodge:
        """Return the place for one process."""
        group, _ = new_group(self._spec)
        if group is None:
            raise GoneError("mkdir", "the control groups of this program", hint="no group can be made here any more")
        try:
            return group.lodge().last(group.close)
        except BaseException:
            group.close()
            raise

    @staticmethod
    def avoid_clone() -> bool:
        """Be told that CLONE_INTO_CGROUP killed a process at its birth."""
        from isolib.cgroups.lodge import avoid_clone  # noqa: PLC0415 - it is loaded by now

        return avoid_clone()


class OneShot(Process):
    """A process whose launch, streams and end are one call."""

    @classmethod
    def run_to_end(
        cls,
        request: Request,
        argv: Sequence[str | bytes | os.PathLike[str]],
        data: bytes | None = None,
        *,
        timeout: float | timedelta | None = None,
        output_limit: int | None = None,
        premises: tuple[bytes, int] | None = None,
    ) -> tuple[Exit, bytes, bytes] | None:
        """Run a request to its end with captured outputs (for the modules that compose); one call without the GIL.

        None: a premise of the request holds no more, and nothing was done.
        """
        seconds = None if timeout is None else parse_duration(timeout, "timeout")
        deadline = None if seconds is None else time.monotonic() + seconds
        pump, alive = _new_pump(data, output_limit)
        left = -1 if seconds is None else int(seconds * _SECOND)
        stdin = calls.STDIO_NULL if data is None else calls.STDIO_PIPE
        result = request.run(argv, pump, (stdin, calls.STDIO_PIPE, calls.STDIO_PIPE), left, premises)
        if result is None:
            return None
        process = cls(argv, result[0], pump)
        process._limit, process._input = output_limit, alive
        end = process._finish(result[1], seconds, deadline)
        refused = calls.heard_failure(pump)
        if refused is not None:
            raise failure(request.plan(argv), refused)
        return end

    def _finish(self, pumped: int, seconds: float | None, deadline: float | None) -> tuple[Exit, bytes, bytes]:
        """Go on with what one call began, where a signal, a limit or the time interrupted it."""
        try:
            if pumped == calls.PUMP_OVERFLOW:
                self.kill()
            if not self._pump.gone or pumped != calls.PUMP_DONE:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                try:
                    self._wait(_BOTH, left)
                except SandboxTimeout:
                    self.kill()
                    self._wait(_BOTH, None)
                    out, err = self._captured()
                    raise SandboxTimeout(self.args, seconds or 0.0, out, err, self._usage()) from None
            if self._exit is None:
                self._exit = self._ended()
                self._launched.give_back()
            out, err = self._captured()
            return self._exit, out or b"", err or b""
        finally:
            self.close()
