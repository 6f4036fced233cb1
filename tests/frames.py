"""Frames of Ethernet, sent and seen as they are on the wire, with their VLAN tags: what switches are tested with."""

from __future__ import annotations

import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.nets import PATIENCE, SOON, socket_in

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from isolib.namespaces import NetNS

EVERYBODY = "ff:ff:ff:ff:ff:ff"

_ETH_P_ALL = 0x0003
_ETH_P_8021Q = 0x8100
#: For experiments (IEEE 802): no protocol of a kernel's.
_KIND = 0x88B5
_SOL_PACKET = 263
_PACKET_AUXDATA = 8
#: struct tpacket_auxdata: its status, and the tag that the kernel has taken out of the frame.
_AUX = struct.Struct("=IIIHHHH")
_HAS_TAG = 0x10
_VLAN = 0x0FFF


@dataclass(frozen=True)
class Frame:
    """A frame.

    Attributes
    ----------
    target, source
        MAC addresses.
    words
        What it carries.
    vlan
        The number of the VLAN in its tag; None: it has no tag.
    """

    target: str
    source: str
    words: bytes
    vlan: int | None = None


class Wire:
    """A packet socket on an interface: frames are put on it, and those that come in are seen."""

    def __init__(self, ns: NetNS, name: str) -> None:
        self._socket = socket_in(ns, socket.SOCK_RAW, socket.AF_PACKET, socket.htons(_ETH_P_ALL))
        self._socket.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        self._socket.bind((name, _ETH_P_ALL))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def put(self, frame: Frame) -> None:
        """Put a frame on the wire."""
        tag = b"" if frame.vlan is None else struct.pack("!HH", _ETH_P_8021Q, frame.vlan)
        words = frame.words.ljust(46, b"\0")
        self._socket.send(_packed(frame.target) + _packed(frame.source) + tag + struct.pack("!H", _KIND) + words)

    def seen(self, count: int = 0, soon: float = SOON) -> list[Frame]:
        """Return the frames that have come in: so many as soon as they have, or else all that come within a while."""
        found: list[Frame] = []
        end = time.monotonic() + (PATIENCE if count else soon)
        while not count or len(found) < count:
            self._socket.settimeout(max(0.0, end - time.monotonic()))
            try:
                data, extra, _, place = self._socket.recvmsg(2048, 256)
            except (TimeoutError, BlockingIOError):
                break
            if place[2] != socket.PACKET_OUTGOING and data[12:14] == struct.pack("!H", _KIND):
                tags = [
                    _AUX.unpack_from(value) for level, kind, value in extra if (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA)
                ]
                vlan = next((tag[5] & _VLAN for tag in tags if tag[0] & _HAS_TAG), None)
                found.append(Frame(data[:6].hex(":"), data[6:12].hex(":"), data[14:].rstrip(b"\0"), vlan))
        return found


def heard(wires: Sequence[Wire]) -> list[list[Frame]]:
    """Return what has come in on each of several wires within a while."""
    return [wire.seen(soon=SOON if number == 0 else 0) for number, wire in enumerate(wires)]


def _packed(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))
