"""Pressure files and triggers, without a kernel that counts pressure."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolib.cgroups.files import Directory
from isolib.cgroups.pressure import PressureLine, Pressures, PressureValues, _texts, parse_pressure
from isolib.errors import PlanError, Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MEMORY = b"some avg10=0.22 avg60=0.17 avg300=1.11 total=58761459\nfull avg10=100.00 avg60=0.13 avg300=0.96 total=57634210\n"


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Directory]:
    """Return a group with the files of a kernel that counts pressure."""
    (tmp_path / "cgroup.procs").touch()
    (tmp_path / "cgroup.pressure").write_text("1\n")
    for name in ("cpu", "memory", "io"):
        (tmp_path / f"{name}.pressure").write_bytes(MEMORY)
    with Directory.open(str(tmp_path), 2) as directory:
        yield directory


def test_values(directory: Directory) -> None:
    """Averages are percentages, totals are seconds, and each attribute is read anew."""
    pressures = Pressures(directory)
    assert pressures.memory.some == PressureLine(0.22, 0.17, 1.11, 58.761459)
    assert pressures.io.full == PressureLine(100.0, 0.13, 0.96, 57.634210)
    assert pressures.enabled
    with open(f"{directory.path}/memory.pressure", "wb") as file:
        file.write(MEMORY.replace(b"0.22", b"0.33"))
    assert pressures.memory.read() == PressureValues(
        PressureLine(0.33, 0.17, 1.11, 58.761459), PressureLine(100.0, 0.13, 0.96, 57.634210)
    )


def test_files_with_one_line() -> None:
    """irq has no "some", and the cpu of older kernels no "full"."""
    some, full = MEMORY.splitlines(keepends=True)
    assert parse_pressure(some).full is None
    assert parse_pressure(full).some is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"some",
        b"some avg10=1 avg60=0.00 avg300=0.00 total=0",
        MEMORY + b"more",
        b"none" + MEMORY[4:],
        "some avg10=\u0661.0".encode(),
    ],
)
def test_other_files(data: bytes) -> None:
    """Anything else is refused."""
    with pytest.raises(ValueError, match="pressure file"):
        parse_pressure(data)


@given(st.binary() | st.builds(lambda cut, more: MEMORY[:cut] + more, st.integers(0, len(MEMORY)), st.binary(max_size=9)))
def test_parser(data: bytes) -> None:
    """Whatever the bytes are, there is a value or a ValueError."""
    try:
        found = parse_pressure(data)
    except ValueError:
        return
    assert found.some or found.full


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({}, "a stall is wanted"),
        ({"some": 0}, "some: a stall is more than 0"),
        ({"some": 3.0}, "at most the window, 2 s"),
        ({"full": -1}, "full"),
        ({"full": float("nan")}, "full"),
        ({"some": "1"}, "some"),
        ({"some": True}, "some"),
        ({"some": 0.1, "full": 1e-9}, "full: a stall is more than 0"),
        ({"some": 0.1, "within": 0.4}, "0.5 to 10 seconds"),
        ({"some": 0.1, "within": timedelta(seconds=11)}, "0.5 to 10 seconds"),
        ({"some": 0.1, "within": "2"}, "within"),
        ({"some": 0.1, "timeout": -1}, "timeout"),
    ],
)
def test_bad_numbers(directory: Directory, numbers: dict[str, float], words: str) -> None:
    """What the kernel cannot be asked is refused before it is asked."""
    for name in ("cpu", "memory", "io"):
        with pytest.raises(PlanError, match=words):
            getattr(Pressures(directory), name).wait(**numbers)
    with open(f"{directory.path}/cpu.pressure", "rb") as file:
        assert file.read() == MEMORY


def test_irq_has_no_some(directory: Directory) -> None:
    """A stall that the kernel does not count for irq is refused by name."""
    with pytest.raises(PlanError, match="irq"):
        Pressures(directory).irq.trigger(some=0.1)


@pytest.mark.parametrize(
    ("kind", "stall", "within", "text"),
    [
        ("some", 0.15, 1.0, b"some 150000 1000000"),
        ("full", timedelta(milliseconds=50), timedelta(seconds=2), b"full 50000 2000000"),
        ("some", 10, 10, b"some 10000000 10000000"),
    ],
)
def test_what_is_asked(kind: str, stall: float, within: float, text: bytes) -> None:
    """Stalls and windows go to the kernel in microseconds."""
    numbers = {"some": None, "full": None, kind: stall}
    assert _texts("cpu", numbers["some"], numbers["full"], within) == [text]


def test_refusals(directory: Directory, tmp_path: Path) -> None:
    """A group without pressure says why there is none: v1, a given reason, the switch, or the kernel."""
    with pytest.raises(Unsupported, match="cgroup v1"):
        Pressures(None).cpu.read()
    reason = Unsupported("a", "b", "c")
    with pytest.raises(Unsupported) as caught:
        Pressures(None, reason).cpu.wait(some=1)
    assert caught.value is reason
    pressures = Pressures(directory)
    (tmp_path / "cpu.pressure").unlink()
    with pytest.raises(Unsupported, match=r"PSI|cgroup_disable"):
        pressures.cpu.read()
    (tmp_path / "cgroup.pressure").write_text("0\n")
    with pytest.raises(Unsupported) as caught:
        pressures.cpu.read()
    assert caught.value.remedy == "pressure.enabled = True"
    pressures.enabled = True
    assert pressures.enabled
    (tmp_path / "cgroup.pressure").unlink()
    (tmp_path / "cpu.pressure").write_bytes(MEMORY)
    with pytest.raises(Unsupported, match=r"6\.1"):
        pressures.enabled = False
