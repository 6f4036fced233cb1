"""What limits are given as, and how the kernel writes them.  Pure: every check is made before anything is changed."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from isolib._kernel.cgroupfs import V1_NAMES
from isolib.errors import PlanError
from isolib.types import MAX_SIZE, check_path, parse_duration, parse_size

if TYPE_CHECKING:
    from datetime import timedelta

__all__ = [
    "IoLimit",
    "check_name",
    "cpu_quota",
    "cpus_of",
    "device_number",
    "format_cpus",
    "parse_count",
    "parse_cpus",
    "parse_limit",
    "parse_protection",
    "parse_weight",
    "shares_of",
    "weight_of",
]

Size: TypeAlias = int | str

MAX: Final = "max"
#: Where cgroup v1 shows that memory has no limit it is the most pages that there can be, in bytes (PAGE_COUNTER_MAX); how many
#: that is depends on the size of a page, and huge ones go to 16 GiB.
V1_UNLIMITED: Final = 2**63 - 2**34
MOST_PIDS: Final = 4 * 1024 * 1024  # PID_MAX_LIMIT
MOST_CPUS: Final = 8192  # NR_CPUS of the largest configuration

_NAME: Final = re.compile(r"[A-Za-z0-9_+@:][A-Za-z0-9_.+@:-]*")
_RESERVED: Final = re.compile(
    rf"({'|'.join(sorted(V1_NAMES | {'cgroup', 'dmem', 'io'}))})\..*|tasks|notify_on_release|release_agent"
)
_FILE: Final = re.compile(r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*")
#: How isolib calls the groups below a group in which processes live.
_TAKEN_BELOW: Final = re.compile(r"p\d+|joined")
_LONGEST_NAME: Final = 200


def check_name(value: object, what: str = "name", *, below: bool = False) -> str:
    """Return a name that a control group may have: one directory, and none that a file of the kernel's has.

    Parameters
    ----------
    value
        The name.
    what
        The name of the argument, for the message.
    below
        Whether the group is made below another of isolib's, where some names are taken by the places of processes.

    Raises
    ------
    PlanError
        It is empty, too long, has a slash or another character than letters, digits and ``_.+@:-``, begins with a dot or a
        dash, or is that of a control file.
    """
    if not isinstance(value, str):
        raise PlanError(f"{what}: the name of a control group is a str, not {value!r}")
    if not 0 < len(value) <= _LONGEST_NAME:
        raise PlanError(f"{what}: the name of a control group has 1 to {_LONGEST_NAME} characters: {value[:50]!r}")
    if not _NAME.fullmatch(value):
        raise PlanError(
            f"{what}: {value!r}: a control group is named by letters, digits and _.+@:-, and begins with no dot or dash"
        )
    if below and _TAKEN_BELOW.fullmatch(value):
        raise PlanError(f"{what}: {value!r}: below a group p and a number, and 'joined', are the places of its processes")
    if _RESERVED.fullmatch(value):
        raise PlanError(f"{what}: {value!r} is, or may become, a file of the kernel's in the same directory")
    return value


def check_file(value: object, what: str = "file") -> str:
    """Return the name of a control file: letters, digits, dots and underscores.

    Raises
    ------
    PlanError
        It is something else.
    """
    if not isinstance(value, str) or not _FILE.fullmatch(value):
        raise PlanError(f"{what}: {value!r} is not the name of a control file, as 'memory.max' is one")
    return value


# ---- numbers ----


def parse_limit(value: object, what: str) -> int | None:
    """Return a limit in bytes; None for ``None`` and ``"max"``: no limit.

    Raises
    ------
    PlanError
        It is no size, negative, or more than the kernel counts.
    """
    if value is None or value == MAX:
        return None
    return parse_size(value, what)  # type: ignore[arg-type]  # it checks


def parse_protection(value: object, what: str) -> int:
    """Return how many bytes are protected: none for ``None``, and all for ``"max"``, the contrary of a limit."""
    return MAX_SIZE if value == MAX else parse_limit(value, what) or 0


def parse_count(value: object, what: str, most: int = MOST_PIDS) -> int | None:
    """Return a limit on a number of things; None: no limit."""
    if value is None or value == MAX:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise PlanError(f"{what}: a whole number is wanted, or 'max', not {value!r}")
    if not 0 <= value <= most:
        raise PlanError(f"{what}: {value!r} is not between 0 and {most}")
    return value


def parse_weight(value: object, what: str) -> int:
    """Return a weight, 1 to 10000; 100 is what every group has at first."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise PlanError(f"{what}: a weight is a whole number, not {value!r}")
    if not 1 <= value <= 10000:  # noqa: PLR2004 - CGROUP_WEIGHT_MIN and _MAX
        raise PlanError(f"{what}: a weight is 1 to 10000, not {value!r}; 100 is the default")
    return value


def parse_flag(value: object, what: str) -> bool:
    """Return a truth value; 0 and 1 are taken too."""
    if value not in (0, 1):
        raise PlanError(f"{what}: True or False is wanted, not {value!r}")
    return bool(value)


# ---- processor time ----

_PERIOD: Final = 100_000  # microseconds, the kernel's default
_LONGEST_PERIOD: Final = 1_000_000
_SHORTEST_QUOTA: Final = 1000


def cpu_quota(value: object, what: str) -> tuple[int, int] | None:
    """Return quota and period in microseconds for a number of processors; None: no limit.

    The period is the kernel's own, 0.1 s, but for less than a hundredth of a processor: the shortest quota is 1 ms, and the
    longest period 1 s.

    Raises
    ------
    PlanError
        It is no number, or less than a thousandth or more than 8192.

    Examples
    --------
    >>> cpu_quota(0.5, "cpu_max")
    (50000, 100000)
    """
    if value is None or value == MAX:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise PlanError(f"{what}: a number of processors is wanted (0.5 is half of one), not {value!r}")
    if not _SHORTEST_QUOTA / _LONGEST_PERIOD <= value <= MOST_CPUS:  # nor is NaN
        raise PlanError(f"{what}: {value!r}: a number of processors from 0.001 to {MOST_CPUS} is wanted")
    period = _PERIOD if value * _PERIOD >= _SHORTEST_QUOTA else _LONGEST_PERIOD
    return round(value * period), period


def cpus_of(quota: int, period: int) -> float:
    """Return the number of processors that a quota is."""
    return quota / period


def microseconds(value: object, what: str) -> int:
    """Return a duration, seconds or a timedelta, in microseconds."""
    duration: float | timedelta = value  # type: ignore[assignment]  # parse_duration checks
    return round(parse_duration(duration, what) * 1_000_000)


def shares_of(weight: int) -> int:
    """Return cpu.shares of v1 for a weight of v2, as the kernel does (sched_weight_from_cgroup)."""
    return (weight * 1024 + 50) // 100


def weight_of(shares: int) -> int:
    """Return the weight of v2 for cpu.shares of v1, as the kernel does (sched_weight_to_cgroup)."""
    return min(max((shares * 100 + 512) // 1024, 1), 10000)


# ---- lists of processors and memory nodes ----


def parse_cpus(value: object, what: str) -> frozenset[int]:
    """Return a set of processors (or memory nodes), given as ``"0-3,8"`` or as numbers.

    Raises
    ------
    PlanError
        It is something else, empty, or holds a number that no processor has.
    """
    if isinstance(value, str):
        numbers = _cpu_list(value, what)
    elif isinstance(value, Iterable) and not isinstance(value, (bytes, Mapping)):
        numbers = set()
        for one in value:
            if isinstance(one, bool) or not isinstance(one, int):
                raise PlanError(f"{what}: numbers of processors are wanted, not {one!r}")
            numbers.add(one)
    else:
        raise PlanError(f"{what}: '0-3,8' or a set of numbers is wanted, not {value!r}")
    if not numbers:
        raise PlanError(f"{what}: at least one must be named")
    if min(numbers) < 0 or max(numbers) >= MOST_CPUS:
        raise PlanError(f"{what}: {value!r}: they are numbered from 0 to at most {MOST_CPUS - 1}")
    return frozenset(numbers)


def _cpu_list(text: str, what: str) -> set[int]:
    numbers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,5})(?:-(\d{1,5}))?\s*", part, re.ASCII)
        if match is None:
            raise PlanError(f"{what}: {text!r}: a list such as '0-3,8' is wanted")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last >= MOST_CPUS:
            raise PlanError(f"{what}: {part.strip()!r} is no range of numbers below {MOST_CPUS}")
        numbers.update(range(first, last + 1))
    return numbers


def read_cpus(text: str) -> frozenset[int]:
    """Return what the kernel shows as such a list; it may be empty."""
    return frozenset(_cpu_list(text, "cpuset")) if text.strip() else frozenset()


def format_cpus(numbers: Iterable[int]) -> str:
    """Return a list as the kernel takes it.

    Examples
    --------
    >>> format_cpus({0, 1, 2, 8})
    '0-2,8'
    """
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


# ---- devices ----


@dataclass(frozen=True, slots=True, kw_only=True)
class IoLimit:
    """The most that a group may read from and write to one device; None: no limit.

    Attributes
    ----------
    rbps, wbps
        Bytes a second, read and written: a number or a text like "10M".
    riops, wiops
        Operations a second.

    Raises
    ------
    PlanError
        A number is 0, negative or more than the kernel counts.

    Examples
    --------
    >>> IoLimit(wbps="10M")
    IoLimit(rbps=None, wbps=10485760, riops=None, wiops=None)
    """

    rbps: int | None = None
    wbps: int | None = None
    riops: int | None = None
    wiops: int | None = None

    if TYPE_CHECKING:  # texts are taken too, and become numbers

        def __init__(
            self,
            *,
            rbps: Size | None = None,
            wbps: Size | None = None,
            riops: Size | None = None,
            wiops: Size | None = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        for name in ("rbps", "wbps"):
            limit = parse_limit(getattr(self, name), name)
            if limit == 0:
                raise PlanError(f"{name}: 0: at least 1 byte a second is wanted; the kernel takes 0 for no limit")
            object.__setattr__(self, name, limit)
        for name in ("riops", "wiops"):
            count = parse_count(getattr(self, name), name, 2**32 - 2)
            if count == 0:
                raise PlanError(f"{name}: 0: at least 1 operation a second is wanted; the kernel takes 0 for no limit")
            object.__setattr__(self, name, count)


IoLimit.__module__ = "isolib.cgroups"


def device_number(device: object, what: str = "device") -> tuple[int, int]:
    """Return the number of a block device, given as ``"/dev/sda"``, ``"8:0"``, ``(8, 0)``, or any path on its file system.

    Raises
    ------
    PlanError
        There is no such device, or the path lies on no block device.
    """
    if isinstance(device, tuple):
        if len(device) == 2 and all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in device):  # noqa: PLR2004
            return device
        raise PlanError(f"{what}: {device!r}: (major, minor) is wanted")
    if isinstance(device, str) and (match := re.fullmatch(r"(\d{1,10}):(\d{1,10})", device, re.ASCII)):
        return int(match[1]), int(match[2])
    path = check_path(device, what)  # type: ignore[arg-type]  # it checks
    try:
        status = os.stat(path)
    except OSError as error:
        raise PlanError(f"{what}: {path!r}: {error.strerror}; a block device, 'MAJOR:MINOR' or a path is wanted") from None
    number = status.st_rdev if stat.S_ISBLK(status.st_mode) else status.st_dev
    if stat.S_ISCHR(status.st_mode):
        raise PlanError(f"{what}: {path!r} is a character device; a block device is wanted")
    if os.major(number) == 0:
        raise PlanError(f"{what}: {path!r} is on a file system without a block device (tmpfs, overlay ...); name the device")
    return _whole_disk(os.major(number), os.minor(number))


def _whole_disk(major: int, minor: int, numbers: str = "/sys/dev/block") -> tuple[int, int]:
    """Return the disk that a partition is on: the kernel throttles disks (blkg_conf_prep)."""
    place = f"{numbers}/{major}:{minor}"
    if not os.path.exists(f"{place}/partition"):
        return major, minor
    with open(f"{os.path.realpath(place)}/../dev", encoding="ascii") as file:
        first, _, second = file.read().strip().partition(":")
    return int(first), int(second)
