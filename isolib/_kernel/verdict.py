"""How a process ended, why, and what it used: from what its supervisor told and what its control group says.  Pure."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from signal import SIGKILL
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib._kernel.lodging import Account
from isolib.types import Exit, Reason, Usage

if TYPE_CHECKING:
    from isolib._kernel.calls import Pump

_BLOCK: Final = 512
_SECOND: Final = 1_000_000_000
_COUNTED: Final = tuple(one.name for one in fields(Usage) if one.name in Account._fields)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known beside the words of the supervisor.

    Attributes
    ----------
    account
        What the control group of the process says; empty where it had none.
    killed
        Whether this program has killed it.
    overflowed
        Whether it wrote more than it may.
    """

    account: Account
    killed: bool = False
    overflowed: bool = False


def usage(pump: Pump, started_ns: int, now_ns: int, account: Account) -> Usage:
    """Return what a process has used; a control group sees more than the launcher, so it has the last word."""
    wall = ((pump.ended_ns or now_ns) - started_ns) / _SECOND
    message = pump.exit
    known = Usage(wall=wall)
    if pump.has_exit:
        known = Usage(
            wall=wall,
            cpu_user=message.cpu_user_us / 1e6,
            cpu_system=message.cpu_system_us / 1e6,
            memory_peak=message.memory_peak,
            io_read=message.blocks_read * _BLOCK,
            io_written=message.blocks_written * _BLOCK,
        )
    counted = {name: value for name in _COUNTED if (value := getattr(account, name)) is not None}
    return replace(known, **counted) if counted else known


def verdict(pump: Pump, evidence: Evidence, used: Usage) -> Exit:
    """Return how it ended."""
    if not pump.has_exit:  # the supervisor itself was killed, and with it the command
        return Exit(None, int(SIGKILL), Reason.OOM if evidence.account.oom_kills else Reason.KILLED, used)
    status = pump.exit.value
    signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    code = None if signal is not None else os.WEXITSTATUS(status)
    return Exit(code, signal, _reason(pump.exit.ending, code, signal, evidence), used)


def _reason(ending: int, code: int | None, signal: int | None, evidence: Evidence) -> Reason:
    has_failed = code != 0
    if ending == calls.END_DEADLINE:
        return Reason.TIMEOUT
    if evidence.overflowed:
        return Reason.LIMIT
    if ending == calls.END_OOM or (evidence.account.oom_kills and has_failed):
        return Reason.OOM
    if ending == calls.END_KILLED or (signal == SIGKILL and evidence.killed):
        return Reason.KILLED
    if evidence.account.pids_hits and has_failed:
        return Reason.LIMIT
    return Reason.EXITED if signal is None else Reason.SIGNALED
