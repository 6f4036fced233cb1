"""The relay: a thread of the extension that takes packets from one interface and gives them to another later, or never."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from isolib._kernel._ext import ffi, lib
from isolib._kernel.calls.checking import checked

#: ``struct isolib_relay``: what cffi makes has no type.
Relay: TypeAlias = Any


class RelayWeather(NamedTuple):
    """What happens to packets in a relay.

    Attributes
    ----------
    delay_ns, jitter_ns
        In nanoseconds; the delay is anywhere from so much less to so much more.
    rate
        Bits in a second; 0: no limit.
    loss, duplicate, corrupt, reorder
        In parts of 2^32.
    limit
        How many may wait.
    """

    delay_ns: int
    jitter_ns: int
    rate: int
    loss: int
    duplicate: int
    corrupt: int
    reorder: int
    limit: int


class RelayEnds(NamedTuple):
    """Where a relay takes from and gives to: two packet sockets, and the interfaces of their namespaces.

    Attributes
    ----------
    in_fd, in_index
        The socket is without a protocol yet: it is told what to receive when the ring is there.
    out_fd, out_index
        The socket receives nothing.
    mtu
        No packet is longer, but for its headers.
    protocol
        What the packets that are put back are marked with.
    """

    in_fd: int
    in_index: int
    out_fd: int
    out_index: int
    mtu: int
    protocol: int


def new_relay() -> Relay:
    """Return an empty ``struct isolib_relay``; it ends when nobody has it any more."""
    return ffi.gc(ffi.new("struct isolib_relay *", {"in": -1, "out": -1, "wake": -1}), lib.isolib_relay_end)


def relay_start(relay: Relay, ends: RelayEnds, weather: RelayWeather, target: str) -> None:
    """Start the thread, which keeps sockets of its own: packet(7), PACKET_RX_RING."""
    wire = ends.protocol.to_bytes(2, "big")
    fields = (*ends[:5], ffi.cast("uint16_t *", ffi.from_buffer(wire))[0])
    places, wanted = ffi.new("struct isolib_ends *", fields), ffi.new("struct isolib_weather *", tuple(weather))
    checked("setsockopt PACKET_RX_RING", target, lib.isolib_relay_start(relay, places, wanted))


def relay_change(relay: Relay, weather: RelayWeather) -> None:
    """Change what happens to packets that are taken from now on; one that has ended does not mind."""
    lib.isolib_relay_change(relay, ffi.new("struct isolib_weather *", tuple(weather)))


def relay_end(relay: Relay) -> None:
    """Send what waits, and end the thread; again is nothing.  In a fork of its process, close the descriptors only."""
    lib.isolib_relay_end(relay)


def relay_leave(relay: Relay) -> None:
    """As `relay_end`, but do not wait for the thread, which closes everything itself."""
    lib.isolib_relay_leave(relay)
