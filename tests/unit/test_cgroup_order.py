"""The order of writes in v1, where two files make one limit and the kernel checks after each write."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolib.cgroups.controllers.cpu import Cpu
from isolib.cgroups.controllers.memory import Memory
from isolib.errors import PlanError, Unsupported
from tests.recorded import MIB, group

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from tests.recorded import Recorded

LIMIT, BOTH = "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"
QUOTA, PERIOD = "cpu.cfs_quota_us", "cpu.cfs_period_us"


@pytest.fixture
def v1(tmp_path: Path) -> Iterator[Recorded]:
    """Return a new group of v1."""
    with group(tmp_path / "v1", 1) as directory:
        yield directory


# ---- memory and swap ----


def test_raising_and_lowering(v1: Recorded) -> None:
    """Raised, the limit on both goes first, and lowered the one on memory does; the swap stays what it was."""
    memory = Memory(v1)
    memory.max, memory.swap_max = 10 * MIB, 2 * MIB
    assert v1.take()[-2:] == [(LIMIT, f"{10 * MIB}"), (BOTH, f"{12 * MIB}")]
    memory.max = 20 * MIB
    assert v1.take() == [(BOTH, f"{22 * MIB}"), (LIMIT, f"{20 * MIB}")]
    memory.max = 5 * MIB
    assert v1.take() == [(LIMIT, f"{5 * MIB}"), (BOTH, f"{7 * MIB}")]
    assert (memory.max, memory.swap_max) == (5 * MIB, 2 * MIB)
    Memory(v1).max = None
    assert v1.take() == [(BOTH, "-1"), (LIMIT, "-1")]
    assert (Memory(v1).max, Memory(v1).swap_max) == (None, None)


def test_swap(v1: Recorded) -> None:
    """None at all, any number and no limit are read back, and swap alone cannot be limited before memory is."""
    memory = Memory(v1)
    with pytest.raises(PlanError, match=r"memory\.max must be set before"):
        memory.swap_max = 0
    assert v1.writes == []
    memory.max = MIB
    for swap in (0, MIB, None):
        memory.swap_max = swap
        assert (memory.max, memory.swap_max) == (MIB, swap)


def test_no_swap_accounting(tmp_path: Path, v1: Recorded) -> None:
    """Where swap is not counted memory is limited alone, and a limit on swap is Unsupported."""
    (tmp_path / "v1" / BOTH).unlink()
    memory = Memory(v1)
    memory.max = MIB
    assert v1.writes == [(LIMIT, f"{MIB}")]
    with pytest.raises(Unsupported, match=f"no {BOTH}"):
        memory.swap_max = 0


#: Memory and swap together are less than what the kernel counts to, which is no limit.
LIMITS = st.none() | st.integers(min_value=0, max_value=2**61)


@given(st.lists(st.tuples(st.booleans(), LIMITS), max_size=8))
def test_any_limits(steps: list[tuple[bool, int | None]]) -> None:
    """Whatever is set after whatever, the limit on both is never below that on memory: the kernel would refuse the write."""
    with tempfile.TemporaryDirectory() as place, group(place, 1) as directory:
        memory = Memory(directory)
        for is_swap, value in steps:
            if not is_swap:
                swap = memory.swap_max
                memory.max = value
                assert memory.max == value
                assert memory.swap_max == (None if value is None else swap)
            elif memory.max is not None or value is None:
                memory.swap_max = value
                assert memory.swap_max == value
        for limits in replayed({LIMIT: -1, BOTH: -1}, directory.writes):
            most, both = (2**63 if limits[name] < 0 else limits[name] for name in (LIMIT, BOTH))
            assert most <= both


def replayed(state: dict[str, int], writes: Iterable[tuple[str, str]]) -> Iterator[dict[str, int]]:
    """Yield what the files say after each write."""
    for name, value in writes:
        state[name] = int(value)
        yield state


# ---- quota and period ----


def test_period_changes_only_for_small_shares(v1: Recorded) -> None:
    """The period is written when it changes, and the quota always."""
    cpu = Cpu(v1)
    cpu.max = 1.5
    assert v1.take() == [(QUOTA, "150000")]
    cpu.max = 0.002
    assert v1.take() == [(QUOTA, "2000"), (PERIOD, "1000000")]
    cpu.max = 2
    assert v1.take() == [(PERIOD, "100000"), (QUOTA, "200000")]
    cpu.max = None
    assert v1.take() == [(QUOTA, "-1")]
    assert cpu.max is None


def test_new_group_is_not_asked(v1: Recorded, tmp_path: Path) -> None:
    """What a group has at first is known until something is written in it; so a new one is written to and not read."""
    files = {name: tmp_path / "v1" / name for name in (PERIOD, BOTH)}
    for file in files.values():
        file.write_text("no number")
    v1.is_new = True
    Cpu(v1).max = 0.5
    assert v1.take() == [(QUOTA, "50000")]
    assert not v1.is_new
    for controller, value in ((Cpu(v1), 1.5), (Memory(v1), MIB)):
        with pytest.raises(ValueError, match="no number"):
            controller.max = value
    v1.is_new = True
    Memory(v1).max = MIB
    assert v1.take() == [(LIMIT, f"{MIB}")]
    v1.is_new = True
    Cpu(v1).max = 0.002
    assert v1.take() == [(PERIOD, "1000000"), (QUOTA, "2000")]


SHARES = st.floats(min_value=0.001, max_value=64) | st.floats(min_value=0.001, max_value=0.02)


@given(st.lists(st.none() | SHARES, max_size=8))
def test_any_shares(shares: list[float | None]) -> None:
    """Between two writes a group has never more than before and after: the one above may have just as much."""
    with tempfile.TemporaryDirectory() as place, group(place, 1) as directory:
        cpu = Cpu(directory)
        state = {QUOTA: -1, PERIOD: 100_000}
        for share in shares:
            before = of(state)
            cpu.max = share
            between = [of(each) for each in replayed(state, directory.take())]
            assert max(between) <= max(before, between[-1])
            assert cpu.max == (None if share is None else pytest.approx(share, abs=1e-5))


def of(state: dict[str, int]) -> float:
    """Return what share a state of the files is."""
    return 1e9 if state[QUOTA] < 0 else state[QUOTA] / state[PERIOD]
