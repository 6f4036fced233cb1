"""Memory that the kernel writes captured packets into and this process reads them from: a row of blocks, in turn.

Nothing is copied through a system call, so a process that is late loses nothing until the row is full; and the row is not
bounded by net.core.rmem_max, as the buffers of who is not root are.

Source: packet(7), networking/packet_mmap in the kernel's documentation, linux/if_packet.h: TPACKET_V3.
"""

from __future__ import annotations

import struct
from array import array
from mmap import MAP_SHARED, PROT_READ, PROT_WRITE, mmap
from typing import TYPE_CHECKING, Final

from isolib.net.pcapng import Direction, Reception, packet_block

if TYPE_CHECKING:
    from _socket import socket as Socket  # noqa: N812 - as a class is called

__all__ = ["LONGEST", "Ring", "block_size", "packets", "prepare"]

#: Bytes of a packet that can be kept: the longest that tcpdump and Wireshark take.
LONGEST: Final = 262_144

_SOL_PACKET: Final = 263
_RX_RING: Final = 5
_VERSION: Final = 10
_TPACKET_V3: Final = 2
_SO_ATTACH_FILTER: Final = 26
_BPF_RETURN: Final = 0x06

_SIZE: Final = 1 << 24
_SMALLEST: Final = 1 << 17
#: What a block has beside its packets, and a packet beside its data, rounded up.
_BESIDE: Final = 4096
_FRAME: Final = 2048
#: Milliseconds after which a block is handed over that is not full.
_PATIENCE: Final = 20

# Of one block, behind its version and the offset of private data: status, packets, offset of the first.  Native: its words are
# read in one piece.
_BLOCK: Final = struct.Struct("@II")
_WORD: Final = struct.Struct("@I")
_STATUS: Final = 8
_COUNT: Final = 12
_OURS: Final = 1
_KERNELS: Final = 0

# struct tpacket3_hdr (next, seconds, nanoseconds, kept, size, status, begin, net, hash, vlan, its protocol), then struct
# sockaddr_ll, of which the type of the packet.
_PACKET: Final = struct.Struct("@IIIIIIHHIIHH8x10xB")
_VLAN: Final = 1 << 4
_VLAN_PROTOCOL: Final = 1 << 6
_DOT1Q: Final = 0x8100
_TAG: Final = struct.Struct(">HH")
#: Where a tag stands: behind the two addresses.
_TAG_AT: Final = 12

_KINDS: Final = {
    0: (Direction.INBOUND, Reception.UNICAST),
    1: (Direction.INBOUND, Reception.BROADCAST),
    2: (Direction.INBOUND, Reception.MULTICAST),
    3: (Direction.INBOUND, Reception.PROMISCUOUS),
    4: (Direction.OUTBOUND, Reception.UNKNOWN),
}
_OTHER: Final = (Direction.UNKNOWN, Reception.UNKNOWN)
_SECOND: Final = 1_000_000_000


def block_size(snaplen: int) -> int:
    """Return how large a block must be that holds a packet of this length: a power of two."""
    return max(_SMALLEST, 1 << (snaplen + _BESIDE - 1).bit_length())


def prepare(sock: Socket, snaplen: int) -> None:
    """Give a packet socket, which receives nothing yet, its ring, and let the kernel keep so much of each packet.

    Raises
    ------
    OSError
        The kernel refused.
    """
    size = block_size(snaplen)
    count = _SIZE // size
    program = array("B", struct.pack("=HBBI", _BPF_RETURN, 0, 0, snaplen))
    sock.setsockopt(1, _SO_ATTACH_FILTER, struct.pack("@HP", 1, program.buffer_info()[0]))
    sock.setsockopt(_SOL_PACKET, _VERSION, _TPACKET_V3)
    request = struct.pack("=IIIIIII", size, count, _FRAME, size // _FRAME * count, _PATIENCE, 0, 0)
    sock.setsockopt(_SOL_PACKET, _RX_RING, request)


class Ring:
    """The ring of a prepared socket.  One thread reads.

    Raises
    ------
    OSError
        It cannot be mapped.
    """

    def __init__(self, fd: int, snaplen: int) -> None:
        self._snaplen = snaplen
        self._size = block_size(snaplen)
        self._count = _SIZE // self._size
        self._next = 0
        self._memory = mmap(fd, self._size * self._count, MAP_SHARED, PROT_READ | PROT_WRITE)

    def take(self, *, rest: bool = False) -> list[bytes]:
        """Return the packets of the next block, as a file has them, and give the block back; nothing: it is not full yet.

        Parameters
        ----------
        rest
            The kernel writes no more: what is in a block that it has not handed over is taken too.
        """
        at = self._next * self._size
        # The status goes first: what is beside it is whole when this says so.
        status = _WORD.unpack_from(self._memory, at + _STATUS)[0]
        if not status & _OURS and not rest:
            return []
        count, first = _BLOCK.unpack_from(self._memory, at + _COUNT)
        found = packets(self._memory, at + first, count, self._snaplen)
        # The count goes first: what the kernel may write from then on must be its own.
        _WORD.pack_into(self._memory, at + _COUNT, 0)
        if status & _OURS:
            _WORD.pack_into(self._memory, at + _STATUS, _KERNELS)
            self._next = (self._next + 1) % self._count
        return found

    def close(self) -> None:
        """Unmap it."""
        self._memory.close()


def packets(memory: mmap | bytes, at: int, count: int, snaplen: int) -> list[bytes]:
    """Return so many packets of a block of a ring as a file has them.

    A tag of a VLAN, which the kernel takes out, is put in again.

    Parameters
    ----------
    memory
        The ring.
    at
        Where the first packet begins.
    count
        How many there are.
    snaplen
        The most bytes of each that are kept.
    """
    found = []
    for _ in range(count):
        skip, seconds, fraction, kept, size, status, begin, _, _, tag, protocol, _, kind = _PACKET.unpack_from(memory, at)
        data = memory[at + begin : at + begin + kept]
        if status & _VLAN and kept >= _TAG_AT:
            protocol = protocol if status & _VLAN_PROTOCOL else _DOT1Q
            data = data[:_TAG_AT] + _TAG.pack(protocol, tag) + data[_TAG_AT:]
            data = data[:snaplen]
            size += _TAG.size
        direction, reception = _KINDS.get(kind, _OTHER)
        found.append(packet_block(seconds * _SECOND + fraction, data, size, direction, reception))
        at += skip
    return found
