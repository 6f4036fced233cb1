"""Bad weather as values: what is asked for, checked before anything is done, and what is in force; the kernel is not asked.

Words for numbers.  A duration is seconds, a timedelta, or "20ms"; a probability is a number from 0 to 1, or "1%"; a rate is
bits in a second, or "10mbit", by powers of 1000, or of 1024 with an i ("10mibit"), as in tc(8).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING, Final, TypeAlias

from isolib.errors import PlanError
from isolib.types import parse_duration

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import timedelta
    from typing import SupportsFloat, SupportsIndex

    Duration: TypeAlias = SupportsFloat | timedelta | str
    Probability: TypeAlias = SupportsFloat | str
    Rate: TypeAlias = SupportsIndex | str

__all__ = ["Effect", "Impairment", "InForce", "parse_impairment", "parse_probability", "parse_rate", "parse_time"]

LONGEST: Final = 86_400
"""The longest delay, in seconds."""
MOST_JITTER: Final = (2**31 - 1) / 10**9
"""The kernel draws from a signed 32-bit number of nanoseconds."""
SLOWEST: Final = 8
"""Bits in a second: the kernel counts bytes."""
FASTEST: Final = 10**15
MOST_PACKETS: Final = 1_000_000
"""The longest queue."""
_DIGITS: Final = 30
#: Queues that nobody has asked for: the shortest, the longest for a rate alone, and the longest.
_FEWEST: Final = 50
_SHORT: Final = 1000
_LONG: Final = 50_000
#: What is reckoned with where no rate is given, and the bits of a full packet of Ethernet.
_FAST: Final = 1_200_000_000
_PACKET: Final = 12_000

_TEXT: Final = re.compile(rf"\s*(\d{{1,{_DIGITS}}}(?:\.\d{{1,{_DIGITS}}})?)\s*([a-z%/]*)\s*", re.ASCII)
_TIMES: Final = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_RATES: Final[dict[str, int]] = {
    f"{letter}{i}bit": (1024 if i else 1000) ** power
    for power, letter in enumerate(("", "k", "m", "g", "t"))
    for i in ("", "i")
    if letter or not i
}


def parse_time(value: Duration, what: str) -> float:
    """Return a duration in seconds.

    Raises
    ------
    PlanError
        It is something else, or negative.

    Examples
    --------
    >>> parse_time("20ms", "delay")
    0.02
    """
    if not isinstance(value, str):
        return parse_duration(value, what)
    match = _TEXT.fullmatch(value)
    if match is None or match[2] not in _TIMES:
        raise PlanError(f"{what}: {value!r} is no duration: write '20ms' (s, ms, us, ns), or a number of seconds")
    return parse_duration(float(match[1]) * _TIMES[match[2]], what)


def parse_probability(value: Probability, what: str) -> float:
    """Return a probability from 0 to 1.

    Raises
    ------
    PlanError
        It is something else.

    Examples
    --------
    >>> parse_probability("1%", "loss")
    0.01
    """
    given: object = value
    number = math.nan
    if isinstance(given, str):
        match = _TEXT.fullmatch(given)
        if match is not None and match[2] == "%":
            number = float(match[1]) / 100
    elif not isinstance(given, (bool, bytes, bytearray)):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
    if not 0 <= number <= 1:
        raise PlanError(f"{what}: a probability is a number from 0 to 1, or a text like '1%', not {value!r}")
    return number


def parse_rate(value: Rate, what: str) -> int:
    """Return a rate in bits a second.

    Raises
    ------
    PlanError
        It is something else, or less than 8 bits a second, or more than any network has.

    Examples
    --------
    >>> parse_rate("10mbit", "rate")
    10000000
    """
    if isinstance(value, str):
        match = _TEXT.fullmatch(value.lower())
        unit = match[2].removesuffix("/s") if match is not None else ""
        if match is None or unit not in _RATES:
            raise PlanError(f"{what}: {value!r} is no rate: write '10mbit' (bit, kbit, mbit, gbit), or bits in a second")
        number = round(float(match[1]) * _RATES[unit])
    else:
        try:
            number = -1 if isinstance(value, bool) else index(value)
        except TypeError:
            raise PlanError(f"{what}: a rate is a number of bits in a second, or a text like '10mbit', not {value!r}") from None
    if not SLOWEST <= number <= FASTEST:
        raise PlanError(f"{what}: {value!r} is no rate: {SLOWEST} to {FASTEST} bits in a second are one")
    return number


@dataclass(frozen=True, slots=True, kw_only=True)
class Impairment:
    """What is to happen to packets that leave by one interface; made by `parse_impairment`.

    Attributes
    ----------
    delay, jitter
        In seconds: each packet takes from ``delay - jitter`` to ``delay + jitter``, all of it as probable.
    loss, duplicate, corrupt
        The probability that a packet is lost, comes twice, or has one bit turned.
    reorder
        The probability that a packet is not delayed, and so overtakes others.  Without, they keep their order.
    rate
        In bits a second, Ethernet's headers included; None: as fast as it goes.
    limit
        How many packets may wait; those that come then are dropped.  None: `queue` says how many.

    Examples
    --------
    >>> parse_impairment(delay="20ms", loss="1%")
    Impairment(delay=0.02, loss=0.01)
    """

    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    reorder: float = 0.0
    rate: int | None = None
    limit: int | None = None

    def __repr__(self) -> str:
        return f"Impairment({', '.join(f'{name}={value!r}' for name, value in self.asked())})"

    def __bool__(self) -> bool:
        return any(self.asked())

    def asked(self) -> Iterator[tuple[str, float | int]]:
        """Yield the name and the value of each that is not as in good weather."""
        for name in NAMES:
            value = getattr(self, name)
            if value:
                yield name, value

    @property
    def queue(self) -> int:
        """How many packets may wait: what passes in a fifth of a second, 50 to 1000, and beside that what is delayed."""
        if self.limit is not None:
            return self.limit
        each = (self.rate or _FAST) / _PACKET
        waiting = min(max(_FEWEST, math.ceil(each / 5)), _SHORT)
        return min(waiting + math.ceil((self.delay + self.jitter) * each), _LONG)


NAMES: Final = tuple(Impairment.__dataclass_fields__)


def parse_impairment(
    *,
    delay: Duration | None = None,
    jitter: Duration | None = None,
    loss: Probability | None = None,
    duplicate: Probability | None = None,
    corrupt: Probability | None = None,
    reorder: Probability | None = None,
    rate: Rate | None = None,
    limit: SupportsIndex | None = None,
) -> Impairment:
    """Return what is asked for, checked; None is as in good weather.

    Raises
    ------
    PlanError
        A value cannot be one, or one makes no sense without another; the message names the argument.

    Examples
    --------
    >>> parse_impairment(rate="1mbit", limit=20)
    Impairment(rate=1000000, limit=20)
    """
    asked = Impairment(
        delay=0.0 if delay is None else parse_time(delay, "delay"),
        jitter=0.0 if jitter is None else parse_time(jitter, "jitter"),
        loss=0.0 if loss is None else parse_probability(loss, "loss"),
        duplicate=0.0 if duplicate is None else parse_probability(duplicate, "duplicate"),
        corrupt=0.0 if corrupt is None else parse_probability(corrupt, "corrupt"),
        reorder=0.0 if reorder is None else parse_probability(reorder, "reorder"),
        rate=None if rate is None else parse_rate(rate, "rate"),
        limit=None if limit is None else _parse_limit(limit),
    )
    _check_together(asked)
    return asked


def _parse_limit(value: SupportsIndex) -> int:
    try:
        number = -1 if isinstance(value, bool) else index(value)
    except TypeError:
        number = -1
    if not 1 <= number <= MOST_PACKETS:
        raise PlanError(f"limit: a number of packets is wanted, 1 to {MOST_PACKETS}, not {value!r}")
    return number


def _check_together(asked: Impairment) -> None:
    if asked.delay > LONGEST:
        raise PlanError(f"delay: {asked.delay} s is longer than a day")
    if asked.jitter > MOST_JITTER:
        raise PlanError(f"jitter: {asked.jitter} s is more than the kernel can draw, {MOST_JITTER} s")
    if asked.jitter > asked.delay:
        raise PlanError(
            f"jitter: {asked.jitter} s is more than delay={asked.delay} s, and no packet leaves before it has come: delay more"
        )
    if asked.reorder and not asked.delay:
        raise PlanError("reorder: packets overtake others that are delayed: ask for a delay too")
    if asked.limit is not None and not (asked.delay or asked.rate):
        raise PlanError("limit: nothing waits without a delay or a rate: ask for one too")


# ---- what is in force ----


@dataclass(frozen=True, slots=True)
class Effect:
    """One of the things that were asked for, as it is in force.

    Attributes
    ----------
    name
        Which: ``"delay"``.
    value
        As in `Impairment`, after the kernel's rounding.
    backend
        What does it: ``"netem"``, ``"tbf"``, ``"nftables"`` or ``"relay"``.
    exactly
        How exactly, in words.
    """

    name: str
    value: float | int
    backend: str
    exactly: str


@dataclass(frozen=True, slots=True)
class InForce:
    """What is in force at an interface.

    Attributes
    ----------
    impairment
        What was asked for.
    effects
        One for each thing asked for, and ``limit`` where packets wait.

    Examples
    --------
    >>> print(InForce(parse_impairment(loss=0.5), (Effect("loss", 0.5, "nftables", "by chance"),)))
    loss=0.5 by nftables: by chance
    """

    impairment: Impairment
    effects: tuple[Effect, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.effects)

    def __str__(self) -> str:
        lines = (f"{one.name}={one.value} by {one.backend}: {one.exactly}" for one in self.effects)
        return "\n".join(lines) or "nothing: packets pass as they come"

    def __getitem__(self, name: str) -> Effect:
        for one in self.effects:
            if one.name == name:
                return one
        raise KeyError(name)

    def __iter__(self) -> Iterator[Effect]:
        return iter(self.effects)

    @property
    def backends(self) -> frozenset[str]:
        """What does it."""
        return frozenset(one.backend for one in self.effects)
