"""Queueing disciplines as values: what the kernel is told of each, and what it tells.

Units.  Times are in nanoseconds, rates in bytes a second, probabilities in parts of 2^32, lengths of queues in packets unless
the name says bytes.  Where the kernel takes a time in its own ticks, one is 64 ns on every kernel since 2.6.32 (the second
number of /proc/net/psched); 64-bit attributes, which are exact, are sent beside them.

Source: tc(8), linux/pkt_sched.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, TypeAlias

from isolib._kernel.netlink import codec
from isolib._kernel.netlink.codec import MalformedError

__all__ = ["CERTAIN", "QDISCS", "AnyQdisc", "Bfifo", "Clsact", "Htb", "HtbClass", "Ingress", "Netem", "Pfifo", "Tbf"]

CERTAIN: Final = 2**32
"""The probability of what always happens; the kernel's own scale ends one below."""

_TICK_SHIFT: Final = 6
_WORD_MAX: Final = 2**32 - 1
_ETHERNET: Final = 1


@dataclass(frozen=True, slots=True)
class Netem:
    """A network emulator: tc-netem(8).

    Attributes
    ----------
    delay, jitter
        In nanoseconds; without a table of a distribution, uniform from so much less to so much more.
    loss, duplicate, corrupt, reorder
        Probabilities; ``reorder`` sends packets at once, of those that come ``gap`` apart.
    delay_correlation, loss_correlation, duplicate_correlation, corrupt_correlation, reorder_correlation
        How much each depends on the one before, from 0 to `CERTAIN`.
    rate
        In bytes a second, 0: none.  It also keeps the order: no packet leaves before one that came earlier.
    limit
        How many packets may wait.
    """

    delay: int = 0
    jitter: int = 0
    loss: int = 0
    duplicate: int = 0
    corrupt: int = 0
    reorder: int = 0
    gap: int = 0
    rate: int = 0
    limit: int = 1000
    delay_correlation: int = 0
    loss_correlation: int = 0
    duplicate_correlation: int = 0
    corrupt_correlation: int = 0
    reorder_correlation: int = 0

    kind = "netem"

    def options(self) -> bytes:
        """Return TCA_OPTIONS.  All of them every time: one that is left out stays as it was."""
        head = struct.pack(
            "=IIIIII",
            _ticks(self.delay),
            self.limit,
            _chance(self.loss),
            self.gap,
            _chance(self.duplicate),
            _ticks(self.jitter),
        )
        correlations = (self.delay_correlation, self.loss_correlation, self.duplicate_correlation)
        parts = (
            codec.attribute(1, struct.pack("=III", *map(_chance, correlations))),
            codec.attribute(3, struct.pack("=II", _chance(self.reorder), _chance(self.reorder_correlation))),
            codec.attribute(4, struct.pack("=II", _chance(self.corrupt), _chance(self.corrupt_correlation))),
            codec.attribute(6, struct.pack("=IiIi", min(self.rate, _WORD_MAX), 0, 0, 0)),
            codec.u64(8, self.rate) if self.rate > _WORD_MAX else b"",
            codec.u64(10, self.delay),
            codec.u64(11, self.jitter),
        )
        return head + b"".join(parts)

    @classmethod
    def parse(cls, data: bytes) -> Netem:
        """Return what TCA_OPTIONS say."""
        head = struct.Struct("=IIIIII")
        latency, limit, loss, gap, duplicate, jitter = unpack(head, data)
        found = codec.table(data, head.size)
        delay_correlation, loss_correlation, duplicate_correlation = words(found.get(1, b""), 3)
        reorder, reorder_correlation = words(found.get(3, b""), 2)
        corrupt, corrupt_correlation = words(found.get(4, b""), 2)
        return cls(
            delay=wide(found, 10, latency << _TICK_SHIFT),
            jitter=wide(found, 11, jitter << _TICK_SHIFT),
            loss=_parts(loss),
            duplicate=_parts(duplicate),
            corrupt=_parts(corrupt),
            reorder=_parts(reorder),
            gap=gap,
            rate=wide(found, 8, words(found.get(6, b""), 1)[0]),
            limit=limit,
            delay_correlation=_parts(delay_correlation),
            loss_correlation=_parts(loss_correlation),
            duplicate_correlation=_parts(duplicate_correlation),
            corrupt_correlation=_parts(corrupt_correlation),
            reorder_correlation=_parts(reorder_correlation),
        )


@dataclass(frozen=True, slots=True)
class Tbf:
    """A token bucket: tc-tbf(8).

    Attributes
    ----------
    rate
        In bytes a second.
    burst_bytes
        What may leave at once after a pause.  Longer packets are cut where they were joined, or dropped.
    limit_bytes
        What may wait, in the queue that it has by itself.
    """

    rate: int
    burst_bytes: int
    limit_bytes: int

    kind = "tbf"

    def options(self) -> bytes:
        """Return TCA_OPTIONS."""
        body = _rate(self.rate) + _rate(0) + struct.pack("=III", self.limit_bytes, _duration(self.burst_bytes, self.rate), 0)
        parts = [codec.attribute(1, body), codec.u32(6, self.burst_bytes)]
        if self.rate > _WORD_MAX:
            parts.append(codec.u64(4, self.rate))
        return b"".join(parts)

    @classmethod
    def parse(cls, data: bytes) -> Tbf:
        """Return what TCA_OPTIONS say; the kernel tells the burst as a time."""
        found = codec.table(data)
        head = struct.Struct("=8xI12xIII")
        rate, limit, buffer, _ = unpack(head, found.get(1, b""))
        rate = wide(found, 4, rate)
        return cls(rate=rate, burst_bytes=round((buffer << _TICK_SHIFT) * rate / 10**9), limit_bytes=limit)


@dataclass(frozen=True, slots=True)
class Htb:
    """A tree of classes that share a rate: tc-htb(8); unsorted packets go to the class with the minor number ``default``."""

    default: int = 1

    kind = "htb"

    def options(self) -> bytes:
        """Return TCA_OPTIONS."""
        return codec.attribute(2, struct.pack("=IIIII", 3, 10, self.default, 0, 0))

    @classmethod
    def parse(cls, data: bytes) -> Htb:
        """Return what TCA_OPTIONS say."""
        return cls(default=unpack(struct.Struct("=8xI8x"), codec.table(data).get(2, b""))[0])


@dataclass(frozen=True, slots=True)
class HtbClass:
    """A class of `Htb`: what it is sure of, and what it may take where others leave it, in bytes a second."""

    rate: int
    ceil: int
    burst_bytes: int

    kind = "htb"

    def options(self) -> bytes:
        """Return TCA_OPTIONS.  The quantum only matters between classes; given, the kernel does not complain of its own."""
        times = _duration(self.burst_bytes, self.rate), _duration(self.burst_bytes, self.ceil)
        body = _rate(self.rate) + _rate(self.ceil) + struct.pack("=IIIII", *times, 60_000, 0, 0)
        parts = [codec.attribute(1, body)]
        parts += [codec.u64(kind, rate) for kind, rate in ((6, self.rate), (7, self.ceil)) if rate > _WORD_MAX]
        return b"".join(parts)


@dataclass(frozen=True, slots=True)
class Pfifo:
    """First in, first out, so many packets: tc-pfifo(8)."""

    limit: int

    kind = "pfifo"

    def options(self) -> bytes:
        """Return TCA_OPTIONS."""
        return struct.pack("=I", self.limit)

    @classmethod
    def parse(cls, data: bytes) -> Pfifo:
        """Return what TCA_OPTIONS say."""
        return cls(*unpack(struct.Struct("=I"), data))


@dataclass(frozen=True, slots=True)
class Bfifo:
    """First in, first out, so many bytes: tc-pfifo(8)."""

    limit_bytes: int

    kind = "bfifo"

    def options(self) -> bytes:
        """Return TCA_OPTIONS."""
        return struct.pack("=I", self.limit_bytes)

    @classmethod
    def parse(cls, data: bytes) -> Bfifo:
        """Return what TCA_OPTIONS say."""
        return cls(*unpack(struct.Struct("=I"), data))


@dataclass(frozen=True, slots=True)
class Clsact:
    """No queue: a place for filters of what comes and of what goes (Linux 4.5)."""

    kind = "clsact"

    def options(self) -> bytes:
        """Return TCA_OPTIONS: none."""
        return b""

    @classmethod
    def parse(cls, _: bytes) -> Clsact:
        """Return what TCA_OPTIONS say: nothing."""
        return cls()


@dataclass(frozen=True, slots=True)
class Ingress:
    """No queue: a place for filters of what comes."""

    kind = "ingress"

    def options(self) -> bytes:
        """Return TCA_OPTIONS: none."""
        return b""

    @classmethod
    def parse(cls, _: bytes) -> Ingress:
        """Return what TCA_OPTIONS say: nothing."""
        return cls()


AnyQdisc: TypeAlias = Netem | Tbf | Htb | Pfifo | Bfifo | Clsact | Ingress
QDISCS: Final[dict[str, type[AnyQdisc]]] = {one.kind: one for one in (Netem, Tbf, Htb, Pfifo, Bfifo, Clsact, Ingress)}


def _ticks(nanoseconds: int) -> int:
    return min(nanoseconds >> _TICK_SHIFT, _WORD_MAX)


def _duration(size: int, rate: int) -> int:
    """Return how many ticks so many bytes take."""
    return min(-(-size * 10**9 // max(rate, 1)) >> _TICK_SHIFT, _WORD_MAX)


def _chance(parts: int) -> int:
    """Return a probability as the kernel has it: what is one part of its 2^32 or fewer is none."""
    return max(0, min(parts, CERTAIN) - 1)


def _parts(chance: int) -> int:
    return chance + 1 if chance else 0


def _rate(rate: int) -> bytes:
    """Return a struct tc_ratespec; of Ethernet, so that the kernel computes times itself."""
    return struct.pack("=BBHhHI", 0, _ETHERNET, 0, 0, 0, min(rate, _WORD_MAX))


def unpack(layout: struct.Struct, data: bytes) -> tuple[int, ...]:
    """Return the structure that data begins with, or raise MalformedError."""
    if len(data) < layout.size:
        raise MalformedError(f"{len(data)} bytes of traffic control, where {layout.size} are needed")
    return layout.unpack_from(data)


def words(data: bytes, count: int) -> tuple[int, ...]:
    """Return so many numbers of 32 bits; zeros, where there are fewer."""
    return struct.unpack_from(f"={count}I", data) if len(data) >= 4 * count else (0,) * count


def wide(found: dict[int, bytes], kind: int, default: int) -> int:
    """Return an attribute of 64 bits, or what there is without it."""
    value = found.get(kind, b"")
    return struct.unpack("=Q", value)[0] if len(value) == 8 else default  # noqa: PLR2004 - of 64 bits
