r"""Files of captured packets, pcapng: values in, bytes out.  Nothing here knows where packets come from.

A file is a row of blocks: one that says what follows, one for the interface, one for each packet, and at the end what the
interface counted.  Wireshark, tshark and tcpdump read it.  Numbers are in the machine's order, which the first block tells.

Source: the Internet draft draft-ietf-opsawg-pcapng.

>>> header = section(application="example")
>>> interface = interface_block("eth0", ETHERNET)
>>> packet = packet_block(1_700_000_000_000_000_000, b"\xff" * 60, 60, Direction.INBOUND)
>>> len(header + interface + packet) % 4
0
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ETHERNET", "RAW_IP", "Direction", "Reception", "interface_block", "packet_block", "section", "statistics_block"]

#: LINKTYPE_ETHERNET and LINKTYPE_RAW: what a packet begins with.
ETHERNET: Final = 1
RAW_IP: Final = 101

_SECTION: Final = 0x0A0D0D0A
_INTERFACE: Final = 1
_STATISTICS: Final = 5
_PACKET: Final = 6

_MAGIC: Final = 0x1A2B3C4D
_UNKNOWN_LENGTH: Final = -1
_LONGEST_OPTION: Final = 0xFFFF

_SHB_HARDWARE: Final = 2
_SHB_OS: Final = 3
_SHB_APPLICATION: Final = 4
_IF_NAME: Final = 2
_IF_DESCRIPTION: Final = 3
_IF_MAC: Final = 6
_IF_RESOLUTION: Final = 9
_IF_OS: Final = 12
_EPB_FLAGS: Final = 2
_ISB_START: Final = 2
_ISB_END: Final = 3
_ISB_RECEIVED: Final = 4
_ISB_DROPPED: Final = 5
_ISB_DELIVERED: Final = 8

#: Of time stamps: ten to the minus nine seconds.
_NANOSECONDS: Final = 9
_MAC_SIZE: Final = 6

_BLOCK: Final = struct.Struct("=II")
_LENGTH: Final = struct.Struct("=I")
_OPTION: Final = struct.Struct("=HH")
_TIME: Final = struct.Struct("=II")
_COUNT: Final = struct.Struct("=Q")
#: A packet's block to its data: type, length, interface, time (high, low), bytes kept, bytes it had.
_PACKET_HEAD: Final = struct.Struct("=IIIIIII")
#: And after it: the option with the flags, the end of the options, the length again.
_PACKET_TAIL: Final = struct.Struct("=HHIHHI")
_PACKET_ROUND: Final = _PACKET_HEAD.size + _PACKET_TAIL.size
_PADDING: Final = (b"", b"\0\0\0", b"\0\0", b"\0")


class Direction(IntEnum):
    """Whether a packet came or went."""

    UNKNOWN = 0
    INBOUND = 1
    OUTBOUND = 2


class Reception(IntEnum):
    """Whom a packet that came was for: this interface, several, all, or somebody else (it was overheard)."""

    UNKNOWN = 0
    UNICAST = 1
    MULTICAST = 2
    BROADCAST = 3
    PROMISCUOUS = 4


def _option(kind: int, value: bytes) -> bytes:
    value = value[:_LONGEST_OPTION]
    return _OPTION.pack(kind, len(value)) + value + _PADDING[len(value) % 4]


def _text(kind: int, value: str) -> bytes:
    """Return an option that holds a text, as UTF-8 whatever it was; none for an empty one."""
    raw = value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").encode()
    return _option(kind, raw) if value else b""


def _block(kind: int, body: bytes, options: Iterable[bytes]) -> bytes:
    inner = b"".join(options)
    if inner:
        inner += _OPTION.pack(0, 0)
    size = _BLOCK.size + len(body) + len(inner) + _LENGTH.size
    return _BLOCK.pack(kind, size) + body + inner + _LENGTH.pack(size)


def section(*, hardware: str = "", system: str = "", application: str = "") -> bytes:
    """Return the block that begins a file; how long what follows is, is left open.

    Parameters
    ----------
    hardware, system, application
        What captures: the machine, its operating system, the program.
    """
    body = struct.pack("=IHHq", _MAGIC, 1, 0, _UNKNOWN_LENGTH)
    texts = ((_SHB_HARDWARE, hardware), (_SHB_OS, system), (_SHB_APPLICATION, application))
    return _block(_SECTION, body, [_text(kind, value) for kind, value in texts])


def interface_block(
    name: str, link_type: int, *, snaplen: int = 0, mac: bytes = b"", description: str = "", system: str = ""
) -> bytes:
    """Return the block that describes an interface; the first one of a file has the number 0.

    Parameters
    ----------
    name
        As the host calls it.
    link_type
        What packets begin with: `ETHERNET`, `RAW_IP`.
    snaplen
        How many bytes of a packet are kept at the most; 0: all.
    mac
        Its address, of six bytes; empty where it has none.
    description, system
        Free texts.
    """
    options = (
        _text(_IF_NAME, name),
        _text(_IF_DESCRIPTION, description),
        _option(_IF_MAC, mac) if len(mac) == _MAC_SIZE else b"",
        _option(_IF_RESOLUTION, bytes([_NANOSECONDS])),
        _text(_IF_OS, system),
    )
    return _block(_INTERFACE, struct.pack("=HHI", link_type, 0, snaplen), options)


def packet_block(
    time: int,
    data: bytes,
    size: int,
    direction: int = Direction.UNKNOWN,
    reception: int = Reception.UNKNOWN,
    *,
    interface: int = 0,
) -> bytes:
    """Return the block of a packet.

    Parameters
    ----------
    time
        Nanoseconds since 1970, UTC.
    data
        What is kept of it.
    size
        How many bytes it had.
    direction, reception
        A `Direction` and a `Reception`.
    interface
        The number of the interface.
    """
    kept = len(data)
    padding = -kept % 4
    total = _PACKET_ROUND + kept + padding
    flags = direction | reception << 2
    head = _PACKET_HEAD.pack(_PACKET, total, interface, time >> 32, time & 0xFFFFFFFF, kept, size)
    return b"".join((head, data, bytes(padding), _PACKET_TAIL.pack(_EPB_FLAGS, 4, flags, 0, 0, total)))


def statistics_block(
    time: int,
    *,
    start: int | None = None,
    end: int | None = None,
    received: int | None = None,
    dropped: int | None = None,
    delivered: int | None = None,
    interface: int = 0,
) -> bytes:
    """Return the block that tells what an interface counted; what is None is left out.

    Parameters
    ----------
    time, start, end
        When this was counted, and when the capture began and ended, in nanoseconds since 1970.
    received, dropped, delivered
        Packets that came to the capture, that it had no room for, and that are in the file.
    interface
        The number of the interface.
    """
    moments = ((_ISB_START, start), (_ISB_END, end))
    counts = ((_ISB_RECEIVED, received), (_ISB_DROPPED, dropped), (_ISB_DELIVERED, delivered))
    options = [_option(kind, _time(moment)) for kind, moment in moments if moment is not None]
    options += [_option(kind, _COUNT.pack(count)) for kind, count in counts if count is not None]
    return _block(_STATISTICS, _LENGTH.pack(interface) + _time(time), options)


def _time(nanoseconds: int) -> bytes:
    return _TIME.pack(nanoseconds >> 32, nanoseconds & 0xFFFFFFFF)
