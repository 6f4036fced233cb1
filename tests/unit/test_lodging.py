"""Which reason comes from which evidence, and what a process used."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from isolib._kernel import calls
from isolib._kernel.lodging import Account
from isolib._kernel.verdict import Evidence, usage, verdict
from isolib.types import Exit, Reason, Usage

#: The wait status of a command that succeeded, failed, was killed, or ended by another signal.
OK, FAILED, KILLED, SEGV = 0, 3 << 8, 9, 11
NORMAL = 0
USED = Usage(wall=1.0)
OOM, PIDS, BOTH = Account(oom_kills=1), Account(pids_hits=1), Account(oom_kills=1, pids_hits=1)
NOTHING = Account()


def ended(status: int = OK, ending: int = NORMAL, **numbers: int) -> SimpleNamespace:
    """Return what is heard of a supervisor that has told how its command ended."""
    names = ("cpu_user_us", "cpu_system_us", "memory_peak", "blocks_read", "blocks_written")
    message = SimpleNamespace(value=status, ending=ending, **{name: numbers.get(name, 0) for name in names})
    return SimpleNamespace(has_exit=True, exit=message, ended_ns=numbers.get("ended_ns", 0))


#: How the supervisor says that it ended, the wait status, what else is known, and the reason that it comes to.
TABLE = [
    (NORMAL, OK, Evidence(NOTHING), Reason.EXITED),
    (NORMAL, FAILED, Evidence(NOTHING), Reason.EXITED),
    (NORMAL, SEGV, Evidence(NOTHING), Reason.SIGNALED),
    (NORMAL, SEGV | 0x80, Evidence(NOTHING), Reason.SIGNALED),  # with a core
    (NORMAL, KILLED, Evidence(NOTHING), Reason.SIGNALED),  # by somebody else
    # a deadline has the first word
    (calls.END_DEADLINE, KILLED, Evidence(NOTHING), Reason.TIMEOUT),
    (calls.END_DEADLINE, OK, Evidence(NOTHING), Reason.TIMEOUT),  # it handled SIGTERM
    (calls.END_DEADLINE, KILLED, Evidence(BOTH, killed=True, overflowed=True), Reason.TIMEOUT),
    # then its output
    (NORMAL, KILLED, Evidence(NOTHING, overflowed=True), Reason.LIMIT),
    (NORMAL, OK, Evidence(NOTHING, overflowed=True), Reason.LIMIT),
    (calls.END_KILLED, KILLED, Evidence(NOTHING, killed=True, overflowed=True), Reason.LIMIT),
    (NORMAL, KILLED, Evidence(OOM, overflowed=True), Reason.LIMIT),
    # then memory
    (NORMAL, KILLED, Evidence(OOM), Reason.OOM),
    (NORMAL, FAILED, Evidence(OOM), Reason.OOM),  # a child was killed, and it gave up
    (NORMAL, SEGV, Evidence(OOM), Reason.OOM),
    (NORMAL, OK, Evidence(OOM), Reason.EXITED),  # a child was killed, and it coped
    (calls.END_OOM, KILLED, Evidence(NOTHING), Reason.OOM),
    (calls.END_OOM, OK, Evidence(NOTHING), Reason.OOM),
    (calls.END_OOM, KILLED, Evidence(NOTHING, killed=True), Reason.OOM),
    (calls.END_KILLED, KILLED, Evidence(OOM, killed=True), Reason.OOM),
    # then who killed it
    (calls.END_KILLED, KILLED, Evidence(NOTHING), Reason.KILLED),
    (calls.END_KILLED, OK, Evidence(NOTHING), Reason.KILLED),
    (NORMAL, KILLED, Evidence(NOTHING, killed=True), Reason.KILLED),
    (NORMAL, SEGV, Evidence(NOTHING, killed=True), Reason.SIGNALED),  # it fell before the kill came
    (NORMAL, FAILED, Evidence(NOTHING, killed=True), Reason.EXITED),
    (NORMAL, KILLED, Evidence(PIDS, killed=True), Reason.KILLED),
    # and then the number of processes
    (NORMAL, FAILED, Evidence(PIDS), Reason.LIMIT),
    (NORMAL, SEGV, Evidence(PIDS), Reason.LIMIT),
    (NORMAL, OK, Evidence(PIDS), Reason.EXITED),
    (NORMAL, FAILED, Evidence(BOTH), Reason.OOM),
]


@pytest.mark.parametrize(("ending", "status", "evidence", "reason"), TABLE)
def test_reasons(ending: int, status: int, evidence: Evidence, reason: Reason) -> None:
    """Each piece of evidence leads to one reason, and the stronger one decides."""
    assert verdict(ended(status, ending), evidence, USED).reason is reason


@pytest.mark.parametrize(
    ("status", "code", "signal"),
    [(OK, 0, None), (FAILED, 3, None), (255 << 8, 255, None), (KILLED, None, 9), (SEGV | 0x80, None, 11)],
)
def test_codes_and_signals(status: int, code: int | None, signal: int | None) -> None:
    """A status is a code or a signal, never both, and what was used comes with it."""
    found = verdict(ended(status), Evidence(NOTHING), USED)
    assert (found.code, found.signal, found.usage) == (code, signal, USED)


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        (Evidence(NOTHING), Reason.KILLED),
        (Evidence(NOTHING, killed=True), Reason.KILLED),
        (Evidence(OOM), Reason.OOM),
        (Evidence(OOM, killed=True), Reason.OOM),
        (Evidence(PIDS), Reason.KILLED),
    ],
)
def test_supervisor_without_a_word(evidence: Evidence, reason: Reason) -> None:
    """A supervisor that was killed could say nothing; the kernel may have done it for memory, with all that was there."""
    assert verdict(SimpleNamespace(has_exit=False), evidence, USED) == Exit(None, 9, reason, USED)


# ---- what it used ----


def test_usage_of_a_launcher() -> None:
    """Without a group the supervisor's words count: microseconds become seconds, and blocks bytes."""
    pump = ended(cpu_user_us=1_500_000, cpu_system_us=250_000, memory_peak=4096, blocks_read=2, blocks_written=3)
    assert usage(pump, 0, 2_000_000_000, NOTHING) == Usage(2.0, 1.5, 0.25, 4096, 1024, 1536, None)


def test_usage_of_a_group() -> None:
    """What a group counts is used instead, zeros too, and what it does not count stays the supervisor's."""
    pump = ended(cpu_user_us=1_500_000, cpu_system_us=250_000, memory_peak=4096, blocks_read=2, blocks_written=3)
    account = Account(cpu_user=9.0, cpu_system=0.0, memory_peak=8192, pids_peak=5, oom_kills=1)
    assert usage(pump, 0, 2_000_000_000, account) == Usage(2.0, 9.0, 0.0, 8192, 1024, 1536, 5)
    counted = Account(1.0, 2.0, 3, 4, 5, 6)
    assert usage(pump, 0, 2_000_000_000, counted) == Usage(2.0, 1.0, 2.0, 3, 4, 5, 6)


def test_usage_without_a_word() -> None:
    """Of a supervisor that was killed only the group tells, and the clock."""
    pump = SimpleNamespace(has_exit=False, exit=None, ended_ns=0)
    assert usage(pump, 500_000_000, 1_000_000_000, NOTHING) == Usage(wall=0.5)
    assert usage(pump, 500_000_000, 1_000_000_000, Account(memory_peak=7)) == Usage(wall=0.5, memory_peak=7)


def test_wall_time() -> None:
    """It ends when the end was heard of, not when somebody asks."""
    assert usage(ended(ended_ns=3_000_000_000), 1_000_000_000, 9_000_000_000, NOTHING).wall == 2.0
