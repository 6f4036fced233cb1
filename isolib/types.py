"""Values that more than one module speaks of, and the checks of what users pass in.

Everything here is pure: no check asks the kernel anything. What cannot work is refused with `isolib.errors.PlanError`,
whose message names the argument.
"""

from __future__ import annotations

import enum
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from operator import attrgetter, index
from typing import TYPE_CHECKING, Protocol

from isolib.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import timedelta
    from typing import SupportsFloat, SupportsIndex, TypeAlias

    AnyPath: TypeAlias = os.PathLike[str] | os.PathLike[bytes] | str | bytes

__all__ = [
    "Exit",
    "Feature",
    "HasFileno",
    "IdMap",
    "Reason",
    "Usage",
    "check_argv",
    "check_hostname",
    "check_id_map",
    "check_path",
    "parse_duration",
    "parse_size",
]

MAX_ID = 2**32 - 2
"""The highest user or group id; (uid_t) -1 means "none" (user_namespaces(7))."""
MAX_EXTENTS = 340
"""The most ranges that one id map may have (user_namespaces(7), Linux 4.15)."""
MAX_PATH = 4095
"""The longest path that a system call takes, in bytes (path_resolution(7): PATH_MAX counts the closing NUL)."""
MAX_HOSTNAME = 64
"""The longest host name, in bytes (uname(2): __NEW_UTS_LEN)."""
MAX_SIZE = 2**63 - 1
"""The largest size in bytes: the kernel's counters are signed 64-bit integers."""
MAX_SECONDS = 2**63 // 10**9 - 1
"""The longest duration: the kernel counts nanoseconds in signed 64-bit integers (292 years)."""
MAX_DIGITS = 40
"""The most digits that a size may be written with."""

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


class HasFileno(Protocol):
    """Anything that owns a file descriptor: a handle, a file, a socket."""

    def fileno(self) -> int:
        """Return the descriptor."""


@dataclass(frozen=True, slots=True)
class IdMap:
    """One range of a user or group id map, as a line of uid_map in user_namespaces(7).

    The value itself may be anything; `check_id_map` says whether a set of ranges can be used.

    Attributes
    ----------
    inside
        The first id inside the user namespace.
    outside
        The id that it stands for outside.
    count
        How many ids, in order, are mapped like that.

    Examples
    --------
    >>> IdMap(0, 1000)
    IdMap(inside=0, outside=1000, count=1)
    """

    inside: int
    outside: int
    count: int = 1


class Reason(enum.Enum):
    """Why a process ended."""

    EXITED = "exited"
    """It called exit."""
    SIGNALED = "signaled"
    """A signal ended it that isolib did not send."""
    OOM = "oom"
    """It was killed, or it failed because the kernel had killed a process of its own, for it used more memory than it may."""
    TIMEOUT = "timeout"
    """isolib killed it, for it ran longer than it may."""
    KILLED = "killed"
    """isolib killed it, for it was told to."""
    LIMIT = "limit"
    """It went over another limit: its output, for which isolib killed it, or the number of processes, which made it fail."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process and its children used; None where the host cannot tell.

    Attributes
    ----------
    wall, cpu_user, cpu_system
        In seconds.
    memory_peak
        The most memory used at any one time, in bytes.
    io_read, io_written
        What went from and to storage, in bytes.
    pids_peak
        The most processes and threads at any one time.
    """

    wall: float | None = None
    cpu_user: float | None = None
    cpu_system: float | None = None
    memory_peak: int | None = None
    io_read: int | None = None
    io_written: int | None = None
    pids_peak: int | None = None


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: with a code or by a signal, the other being None.

    Attributes
    ----------
    code
        The exit status, 0 to 255.
    signal
        The number of the signal that ended it.
    reason
        Why.
    usage
        What it used.

    Examples
    --------
    >>> Exit(code=None, signal=9, reason=Reason.OOM).returncode
    -9
    """

    code: int | None
    signal: int | None
    reason: Reason
    usage: Usage = field(default_factory=Usage)

    @property
    def returncode(self) -> int:
        """The exit status, or the number of the signal negated, as in `subprocess`."""
        if self.signal is not None:
            return -self.signal
        if self.code is None:
            raise ValueError("neither a code nor a signal")
        return self.code


@dataclass(frozen=True, slots=True)
class Feature:
    """One thing that a host may or may not let its user do; true when it does.

    Attributes
    ----------
    name
        What it is: ``"overlay"``, ``"net namespace"``.
    available
        Whether this process can use it, as found by using it.
    reason
        What was found: details when it is available, the failed system call and its error when it is not.
    refused_by
        What refuses it: the kernel, a sysctl and its value, a security module, a missing capability.  Empty when available.
    remedy
        What would allow it, in one line.  Empty when available.

    Examples
    --------
    >>> bool(Feature("veth", available=True, reason=""))
    True
    """

    name: str
    available: bool
    reason: str
    refused_by: str = ""
    remedy: str = ""

    def __bool__(self) -> bool:
        return self.available

    def __str__(self) -> str:
        if self.available:
            return f"{self.name}: yes" + (f" ({self.reason})" if self.reason else "")
        return f"{self.name}: no: {self.reason}; refused by {self.refused_by}; remedy: {self.remedy}"


def parse_size(value: SupportsIndex | str, what: str) -> int:
    """Return a size in bytes.

    Parameters
    ----------
    value
        An integer, or digits with a unit: ``"256M"``, ``"1.5 GiB"``. K, M, G and T are powers of 1024, in either case,
        with or without B or iB. Fractions are rounded down to whole bytes.
    what
        The name of the argument, for the message.

    Raises
    ------
    PlanError
        It is something else, negative, or more than the kernel can count.

    Examples
    --------
    >>> parse_size("256M", "memory")
    268435456
    """
    number: object = value
    if isinstance(number, str):
        size = _parse_size_text(number, what)
    else:
        try:
            size = -1 if isinstance(number, bool) else index(value)  # type: ignore[arg-type]  # index() checks
        except TypeError:
            raise PlanError(f"{what}: a size is a number of bytes or a text like '256M', not {value!r}") from None
    if size < 0:
        raise PlanError(f"{what}: a size is a number of bytes and not negative: {value!r}")
    if size > MAX_SIZE:
        raise PlanError(f"{what}: {value!r} is more than the kernel can count, {MAX_SIZE} bytes")
    return size


def _parse_size_text(value: str, what: str) -> int:
    text = value.strip().upper()
    number = text.rstrip("KMGTIB ")
    unit = text[len(number) :].lstrip(" ")
    letter = unit.removesuffix("B").removesuffix("I")
    whole, point, fraction = number.partition(".")
    if letter not in _UNITS or unit not in (letter, f"{letter}B", f"{letter}IB") or unit == "IB":
        raise PlanError(f"{what}: {value!r} has no unit that is known here: use K, M, G or T (powers of 1024)")
    digits = whole + fraction
    # Bounded before int(): that takes quadratic time, and raises beyond 4,300 digits.
    if not (digits.isascii() and digits.isdigit()) or not whole or (point and not fraction) or len(digits) > MAX_DIGITS:
        raise PlanError(f"{what}: {value!r} is not a size: write '256M' or a number of bytes")
    parts: int = 10 ** len(fraction)
    return (int(digits) << _UNITS[letter]) // parts


def parse_duration(value: SupportsFloat | timedelta, what: str) -> float:
    """Return a duration in seconds.

    Parameters
    ----------
    value
        Seconds, or a `datetime.timedelta`.
    what
        The name of the argument, for the message.

    Raises
    ------
    PlanError
        It is something else, negative, not a number, or more than the kernel can count (292 years).

    Examples
    --------
    >>> parse_duration(1, "timeout")
    1.0
    """
    try:
        # Not isinstance: importing datetime for it would cost more than the rest of this module.
        number: object = value.total_seconds() if hasattr(value, "total_seconds") else value
        # float() would take texts and truth values as well.
        seconds = -1.0 if isinstance(number, (bool, str, bytes, bytearray)) else float(number)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise PlanError(f"{what}: a duration is a number of seconds or a timedelta, not {value!r}") from None
    except OverflowError:
        seconds = math.inf
    if math.isnan(seconds) or seconds < 0:
        raise PlanError(f"{what}: a duration is a number of seconds and not negative: {value!r}")
    if seconds > MAX_SECONDS:
        raise PlanError(f"{what}: {value!r} is more than the kernel can count, {MAX_SECONDS} s; None means no limit")
    return seconds


def check_path(value: AnyPath, what: str) -> str:
    r"""Return a path as text, undecodable bytes as surrogates (`os.fsdecode`).

    Parameters
    ----------
    value
        The path. It need not exist, and may be relative.
    what
        The name of the argument, for the message.

    Raises
    ------
    PlanError
        It is no path, is empty, holds a NUL, or is longer than a system call takes.

    Examples
    --------
    >>> check_path(b"/srv/caf\xe9", "root")
    '/srv/caf\udce9'
    """
    try:
        raw = os.fsencode(value)
    except TypeError:
        raise PlanError(f"{what}: a path is a str, bytes or os.PathLike, not {value!r}") from None
    except UnicodeEncodeError:
        raise PlanError(f"{what}: no file can have this name: {value!r}") from None
    if not raw:
        raise PlanError(f"{what}: the path is empty")
    if b"\0" in raw:
        raise PlanError(f"{what}: a path cannot hold a NUL: {value!r}")
    if len(raw) > MAX_PATH:
        raise PlanError(f"{what}: the path is {len(raw)} bytes long; a system call takes {MAX_PATH}")
    return os.fsdecode(raw)


def check_hostname(value: str, what: str) -> str:
    """Return a host or domain name that sethostname(2) takes and that programs can print.

    Parameters
    ----------
    value
        The name, 1 to 64 bytes long.
    what
        The name of the argument, for the message.

    Raises
    ------
    PlanError
        It is something else, or holds a slash or a control character (a NUL, a line feed).

    Examples
    --------
    >>> check_hostname("build-7.example", "hostname")
    'build-7.example'
    """
    if not isinstance(value, str):
        raise PlanError(f"{what}: a host name is a str, not {value!r}")
    try:
        length = len(os.fsencode(value))
    except UnicodeEncodeError:
        raise PlanError(f"{what}: this name cannot be written in bytes: {value!r}") from None
    if not 1 <= length <= MAX_HOSTNAME:
        raise PlanError(f"{what}: a host name is 1 to {MAX_HOSTNAME} bytes long, not {length}: {value!r}")
    if "/" in value or any(ord(character) < ord(" ") or character == "\x7f" for character in value):
        raise PlanError(f"{what}: a host name cannot hold a slash or a control character: {value!r}")
    return value


def check_argv(value: Sequence[AnyPath], what: str = "argv") -> tuple[bytes, ...]:
    """Return a command as the bytes that execve(2) takes.

    Parameters
    ----------
    value
        The program and its arguments, a list or a tuple. Never one string: no shell is there to take it apart.
    what
        The name of the argument, for the message.

    Raises
    ------
    PlanError
        It is no list, is empty, names no program, or holds something that is no argument.

    Examples
    --------
    >>> check_argv(["ls", "-l"])
    (b'ls', b'-l')
    """
    if isinstance(value, (str, bytes, bytearray, memoryview)) or not isinstance(value, Sequence):
        raise PlanError(f"{what}: a command is a list of the program and its arguments, not {value!r}")
    if not value:
        raise PlanError(f"{what}: the command is empty")
    argv = tuple(_check_argument(item, f"{what}[{index}]") for index, item in enumerate(value))
    if not argv[0]:
        raise PlanError(f"{what}[0]: the name of the program is empty")
    return argv


def _check_argument(item: AnyPath, what: str) -> bytes:
    try:
        raw = os.fsencode(item)
    except TypeError:
        raise PlanError(f"{what}: an argument is a str, bytes or os.PathLike, not {item!r}") from None
    except UnicodeEncodeError:
        raise PlanError(f"{what}: this text cannot be written in bytes: {item!r}") from None
    if b"\0" in raw:
        raise PlanError(f"{what}: an argument cannot hold a NUL: {item!r}")
    return raw


def check_id_map(ranges: Iterable[IdMap], what: str = "id map") -> tuple[IdMap, ...]:
    """Return the ranges of an id map, in their order, when the kernel can take them together.

    Parameters
    ----------
    ranges
        What maps to what.
    what
        The name of the argument, for the message.

    Raises
    ------
    PlanError
        There are none, or more than 340; one holds ids that do not exist; two overlap, inside or outside.

    Examples
    --------
    >>> check_id_map([IdMap(0, 1000), IdMap(1, 100000, 65536)])[0]
    IdMap(inside=0, outside=1000, count=1)
    """
    try:
        checked = tuple(ranges)
    except TypeError:
        raise PlanError(f"{what}: an id map is a list of IdMap, not {ranges!r}") from None
    for one in checked:
        _check_range(one, what)
    if not checked:
        raise PlanError(f"{what}: the map is empty")
    if len(checked) > MAX_EXTENTS:
        raise PlanError(f"{what}: {len(checked)} ranges; the kernel takes {MAX_EXTENTS}")
    for side in ("inside", "outside"):
        by_start = sorted(checked, key=attrgetter(side))
        for one, after in pairwise(by_start):
            if getattr(one, side) + one.count > getattr(after, side):
                raise PlanError(f"{what}: {one} and {after} overlap {side}")
    return checked


def _check_range(one: object, what: str) -> None:
    if not isinstance(one, IdMap):
        raise PlanError(f"{what}: an id map is a list of IdMap, not of {one!r}")
    numbers: tuple[object, ...] = (one.inside, one.outside, one.count)
    for number in numbers:
        if not isinstance(number, int) or isinstance(number, bool):
            raise PlanError(f"{what}: {one}: ids and counts are integers, not {number!r}")
    if one.count < 1:
        raise PlanError(f"{what}: {one} maps no id")
    for first in (one.inside, one.outside):
        if first < 0 or first + one.count - 1 > MAX_ID:
            raise PlanError(f"{what}: {one} leaves the range of ids, 0 to {MAX_ID}")


for _public in (IdMap, Reason, Usage, Exit):
    # Tracebacks and pickles name the place that users import from.
    _public.__module__ = "isolib"
