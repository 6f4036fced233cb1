"""What limits are given as, and what becomes of them."""

from __future__ import annotations

import os
from datetime import timedelta
from itertools import pairwise
from math import inf, nan
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolib.cgroups import values
from isolib.cgroups.values import (
    IoLimit,
    check_name,
    cpu_quota,
    cpus_of,
    device_number,
    format_cpus,
    microseconds,
    parse_count,
    parse_cpus,
    parse_flag,
    parse_limit,
    parse_weight,
    read_cpus,
    shares_of,
    weight_of,
)
from isolib.errors import PlanError
from isolib.types import MAX_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

#: Of no kind that any limit is of.
NONSENSE: tuple[object, ...] = (
    b"1",
    "",
    "x",
    [],
    {},
    object(),
    nan,
    -1,
    -inf,
    inf,
    10**400,
    -(10**400),
    "-1",
    "1 2",
    "1\n2",
    "1\0",
)


# ---- names ----


@pytest.mark.parametrize("name", ["a", "0", "job-1", "x.y", "_", "user@1000.service", "+1", "a:b", "a" * 200, "cpuset", "max"])
def test_names(name: str) -> None:
    """A name that is one plain directory is taken as it is."""
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", ".hidden", "-f", "a/b", "/a", "a/", "a b", "a\n", "a\0", "ä", "a\udcff", "a" * 201),
        *("tasks", "notify_on_release", "release_agent", "cgroup.procs", "memory.max", "cpu.stat", "misc.x", "io.", "dmem.max"),
        *(None, b"a", 1, Path("a")),
    ],
)
def test_bad_names(name: object) -> None:
    """What is no plain directory name, or may be a file of the kernel's, is refused, and the message names the argument."""
    with pytest.raises(PlanError, match="title: "):
        check_name(name, "title")


@given(st.text())
def test_any_name(name: str) -> None:
    """What is taken is one component of a path in ASCII, and all else is a PlanError."""
    try:
        assert check_name(name) == name
    except PlanError:
        return
    assert name.isascii()
    assert not {"/", "\0", "\n", " "} & set(name)
    assert name not in {".", "..", ""}


# ---- numbers ----


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, None), ("max", None), (0, 0), (1, 1), ("256M", 256 << 20), ("1.5 GiB", 3 << 29), ("0", 0), (MAX_SIZE, MAX_SIZE)],
)
def test_sizes(value: object, expected: int | None) -> None:
    """A limit in bytes is a number or a text with a unit, and both None and "max" are no limit."""
    assert parse_limit(value, "memory_max") == expected


@pytest.mark.parametrize(
    ("value", "most", "expected"),
    [(None, 10, None), ("max", 10, None), (0, 10, 0), (10, 10, 10), (4 * 1024 * 1024, 4 * 1024 * 1024, 4194304)],
)
def test_counts(value: object, most: int, expected: int | None) -> None:
    """A number of things may be up to the most that there can be."""
    assert parse_count(value, "pids_max", most) == expected


@pytest.mark.parametrize("value", [True, False, 1, 0])
def test_flags(value: object) -> None:
    """A truth value is taken, and so are 0 and 1."""
    assert parse_flag(value, "oom_group") is bool(value)


@pytest.mark.parametrize("parse", [parse_limit, parse_count, parse_weight, parse_flag, cpu_quota, parse_cpus])
@pytest.mark.parametrize("value", NONSENSE, ids=lambda value: repr(value)[:20])
def test_nonsense(parse: Callable[[object, str], object], value: object) -> None:
    """What is no value of its kind is a PlanError that names the argument, and no other error."""
    with pytest.raises(PlanError, match="argument"):
        parse(value, "argument")


OUT_OF_RANGE: list[tuple[Callable[[object, str], object], object]] = [
    *((parse_limit, value) for value in (True, MAX_SIZE + 1, "9E", "8388608T", 1.5)),
    *((parse_count, value) for value in (True, 4 * 1024 * 1024 + 1, 1.0, "5")),
    *((parse_weight, value) for value in (True, 0, 10001, 1.0, None, "max", "100")),
    *((parse_flag, value) for value in (None, 2, "yes", "true", 0.5)),
    *((cpu_quota, value) for value in (True, 0, 0.0, 0.0009, 8193, 8192.5, "0.5", "50%", 1j)),
    *((parse_cpus, value) for value in (None, 1, [True], ["0"], [1.0], "0-", "1-0", "0,,1", "8192", "0-8192", [8192])),
    (parse_cpus, {0: 1}),
    (parse_cpus, [[0]]),
    *((parse_cpus, value) for value in ("0:1", "0-3/2", "٣", "999999", ",", "all")),
    (parse_cpus, [-1]),
    (parse_cpus, frozenset()),
]


@pytest.mark.parametrize(("parse", "value"), OUT_OF_RANGE)
def test_out_of_range(parse: Callable[[object, str], object], value: object) -> None:
    """What the kernel would not take, or would take for something else, is a PlanError that names the argument."""
    with pytest.raises(PlanError, match="argument"):
        parse(value, "argument")


# ---- processor time ----


@pytest.mark.parametrize(
    ("share", "quota"),
    [
        (None, None),
        ("max", None),
        (1, (100_000, 100_000)),
        (0.5, (50_000, 100_000)),
        (2.5, (250_000, 100_000)),
        (0.01, (1000, 100_000)),
        (0.00999, (9990, 1_000_000)),
        (0.001, (1000, 1_000_000)),
        (8192, (819_200_000, 100_000)),
    ],
)
def test_quota(share: object, quota: tuple[int, int] | None) -> None:
    """The period is the kernel's own, but where the quota would be shorter than the kernel's shortest."""
    assert cpu_quota(share, "cpu_max") == quota


@given(st.floats(min_value=0.001, max_value=8192))
def test_any_quota(share: float) -> None:
    """Every share is within what the kernel takes (1 ms of quota, 1 s of period), and is off by half a microsecond at most."""
    found = cpu_quota(share, "cpu_max")
    assert found is not None
    quota, period = found
    assert quota >= 1000
    assert period in {100_000, 1_000_000}
    assert abs(quota - share * period) <= 0.5000001
    assert cpu_quota(cpus_of(quota, period), "cpu_max") in {found, (quota // 10, period // 10)}


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (0.5, 500_000), (1e-6, 1), (timedelta(milliseconds=3), 3000)])
def test_microseconds(value: object, expected: int) -> None:
    """A duration in seconds, or a timedelta, becomes whole microseconds."""
    assert microseconds(value, "burst") == expected


def to_shares(weight: int) -> int:
    """Return what sched_weight_from_cgroup of the kernel does: DIV_ROUND_CLOSEST_ULL(weight * 1024, CGROUP_WEIGHT_DFL)."""
    return (weight * 1024 + 100 // 2) // 100


def to_weight(shares: int) -> int:
    """Return what sched_weight_to_cgroup does: clamp(DIV_ROUND_CLOSEST_ULL(shares * CGROUP_WEIGHT_DFL, 1024), 1, 10000)."""
    return max(1, min(10000, (shares * 100 + 1024 // 2) // 1024))


def test_every_weight_comes_back() -> None:
    """A weight is the same after it has been cpu.shares, for all that there are, and the kernel's own formulas agree."""
    for weight in range(1, 10001):
        assert shares_of(weight) == to_shares(weight)
        assert weight_of(shares_of(weight)) == to_weight(to_shares(weight)) == weight


@given(st.integers(min_value=2, max_value=1 << 18))
def test_any_shares(shares: int) -> None:
    """Whatever cpu.shares somebody has set shows as a weight that there is."""
    assert 1 <= weight_of(shares) == to_weight(shares) <= 10000


# ---- lists of processors ----


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", {0}),
        ("0-3,8", {0, 1, 2, 3, 8}),
        (" 0 , 2-3\n", {0, 2, 3}),
        ("3,0-3", {0, 1, 2, 3}),
        ([1, 1, 0], {0, 1}),
        (range(2), {0, 1}),
        ((one for one in (5, 6)), {5, 6}),
        ("8191", {8191}),
    ],
)
def test_processors(value: object, expected: set[int]) -> None:
    """Processors are given as the kernel writes them, or as any numbers in any order."""
    assert parse_cpus(value, "cpus") == expected


@given(st.frozensets(st.integers(min_value=0, max_value=8191), min_size=1))
def test_processors_there_and_back(numbers: frozenset[int]) -> None:
    """What is written for a set of processors is read as the same set, has no white space, and no range could be joined."""
    text = format_cpus(numbers)
    assert parse_cpus(text, "cpus") == read_cpus(f"{text}\n") == numbers
    parts = [[int(end) for end in part.split("-")] for part in text.split(",")]
    assert all(before[-1] + 1 < after[0] for before, after in pairwise(parts))


def test_no_processors() -> None:
    """The kernel shows an empty list where nothing was said."""
    assert read_cpus("\n") == read_cpus("") == frozenset()
    assert format_cpus(()) == ""


@given(st.text(alphabet="0123456789-, \n"))
def test_any_list(text: str) -> None:
    """A text is a list of processors or a PlanError."""
    try:
        found = parse_cpus(text, "cpus")
    except PlanError:
        return
    assert found
    assert parse_cpus(format_cpus(found), "cpus") == found


# ---- devices ----


def test_io_limit() -> None:
    """Rates may be texts with units, "max" is no limit, and equal limits are equal values."""
    assert IoLimit(rbps="10M", wbps="max") == IoLimit(rbps=10 << 20)
    assert IoLimit(riops=2**32 - 2).riops == 2**32 - 2
    assert IoLimit() == IoLimit(rbps=None, wbps=None, riops=None, wiops=None)


@pytest.mark.parametrize("name", ["rbps", "wbps", "riops", "wiops"])
@pytest.mark.parametrize("value", [0, "0", -1, True, 1.5, 2**64, "fast"])
def test_bad_io_limits(name: str, value: int) -> None:
    """Nothing at all is no rate, for the kernel takes 0 for no limit; the message names what was wrong."""
    with pytest.raises(PlanError, match=name):
        IoLimit(**{name: value})


@pytest.mark.parametrize(
    ("device", "number"), [((8, 0), (8, 0)), ("8:16", (8, 16)), ("254:1048575", (254, 1048575)), ((0, 0), (0, 0))]
)
def test_device_numbers(device: object, number: tuple[int, int]) -> None:
    """A number is taken as it is, and nothing is looked up."""
    assert device_number(device) == number


@pytest.mark.parametrize(
    "device",
    [
        *((8,), (8, 0, 1), (8, -1), (8, True), ("8", "0"), [8, 0], 8, None, "", "8:", ":0", "8:0\n", "-8:0", "a\0b"),
        *("/dev/null", "/dev/no/such/disk", "/proc", Path("/sys")),
    ],
    ids=repr,
)
def test_bad_devices(device: object) -> None:
    """What is no block device, and lies on none, is a PlanError that names the argument."""
    with pytest.raises(PlanError, match="io_max"):
        device_number(device, "io_max")


def test_whole_disks(tmp_path: Path) -> None:
    """A partition stands for the disk that it is on, and a disk for itself."""
    partition = tmp_path / "devices/pci0/sda/sda1"
    partition.mkdir(parents=True)
    (partition / "partition").write_text("1\n")
    (partition / "dev").write_text("8:1\n")
    (partition.parent / "dev").write_text("8:0\n")
    numbers = tmp_path / "dev/block"
    numbers.mkdir(parents=True)
    for number, place in (("8:1", partition), ("8:0", partition.parent)):
        (numbers / number).symlink_to(os.path.relpath(place, numbers))
    for minor in (0, 1):
        assert values._whole_disk(8, minor, str(numbers)) == (8, 0)
    assert values._whole_disk(9, 0, str(numbers)) == (9, 0)  # it has gone meanwhile
