"""A packet socket of one interface: what comes and goes there, as the kernel hands it to who listens (packet(7))."""

from __future__ import annotations

import os
import struct
from _socket import socket as Socket  # noqa: N812 - not socket.socket, which gevent replaces
from errno import ENODEV
from fcntl import ioctl
from functools import partial
from threading import RLock
from typing import TYPE_CHECKING, Any, Final

from isolib._kernel.hints import hint
from isolib._kernel.sockets import open_socket
from isolib.errors import SyscallError, Unsupported, from_errno
from isolib.net import pcapng, ring

if TYPE_CHECKING:
    from isolib._kernel.handle import Fd
    from isolib.types import HasFileno

__all__ = ["ALL", "NONE", "PacketSocket", "new_packet_socket", "open_packet_socket", "refused"]

_AF_PACKET: Final = 17
_SOCK_RAW: Final = 3
_SOL_SOCKET: Final = 1
_SO_ERROR: Final = 4
_SOL_PACKET: Final = 263
_ADD_MEMBERSHIP: Final = 1
_STATISTICS: Final = 6
_IGNORE_OUTGOING: Final = 23
_PROMISCUOUS: Final = 1
#: Every protocol, for `PacketSocket.want`.
ALL: Final = 3
#: One that no frame has.
NONE: Final = 0xFFFF

# Of netdevice(7), and of linux/if_arp.h the kinds of hardware.
_SIOCGIFNAME: Final = 0x8910
_SIOCGIFHWADDR: Final = 0x8927
_SIOCGIFINDEX: Final = 0x8933
_IFREQ: Final = struct.Struct("=16si20x")
_HARDWARE: Final = struct.Struct("=16sH6s16x")
_ARPHRD_LOOPBACK: Final = 772
#: What packets of a kind of hardware begin with: Ethernet's addresses, or IP's header at once (tun, ipip, sit).
_LINK_TYPES: Final = {
    1: pcapng.ETHERNET,
    _ARPHRD_LOOPBACK: pcapng.ETHERNET,
    **dict.fromkeys((519, 768, 769, 776, 65534), pcapng.RAW_IP),
}


def refused(op: str, target: str, error: OSError) -> SyscallError:
    """Return isolib's exception for what Python's own functions have raised."""
    if isinstance(error, SyscallError):
        return error
    number = error.errno or 0
    return from_errno(op, target, number, hint(op, number, target))


def new_packet_socket(net: HasFileno | None) -> Fd:
    """Return a packet socket of a namespace, which receives nothing yet; otherwise as `open_socket`."""
    return open_socket(net, _AF_PACKET, _SOCK_RAW, label="packet socket")


def open_packet_socket(net: HasFileno | None, name: str, *, snaplen: int, promiscuous: bool) -> PacketSocket:
    """Return a socket that receives nothing yet, of an interface of a namespace; None: that of the calling thread.

    Raises
    ------
    SyscallError, SetupFailed
        The kernel refused; with ENODEV, there is no such interface.
    Unsupported
        The interface is of a kind whose packets cannot be described in a file.
    """
    with new_packet_socket(net) as fd:
        try:
            # In one go of C functions: an interrupt leaves no descriptor that nobody owns.
            sock = next(map(partial(Socket, _AF_PACKET, _SOCK_RAW, 0), map(os.dup, (fd.fileno(),))))
        except OSError as error:
            raise refused("dup", "packet socket", error) from None
    try:
        return PacketSocket(sock, name, snaplen, promiscuous=promiscuous)
    except BaseException:
        sock.close()
        raise


class PacketSocket:
    """A packet socket with its ring.

    Attributes
    ----------
    index
        The number of the interface.
    mac
        Its address.
    link_type
        What its packets begin with, by the names of `isolib.net.pcapng`.
    ring
        Where they are.
    received, dropped
        How many came, and for how many there was no room, when it was last counted.
    """

    def __init__(self, sock: Socket, name: str, snaplen: int, *, promiscuous: bool) -> None:
        self._sock = sock
        self.received = 0
        self.dropped = 0
        self._lock = RLock()  # of the counts
        self.index = self._ioctl("SIOCGIFINDEX", _SIOCGIFINDEX, name, _IFREQ.pack(os.fsencode(name), 0), _IFREQ)[1]
        request = _HARDWARE.pack(os.fsencode(name), 0, b"")
        hardware, self.mac = self._ioctl("SIOCGIFHWADDR", _SIOCGIFHWADDR, name, request, _HARDWARE)[1:]
        found = _LINK_TYPES.get(hardware)
        if found is None:
            raise Unsupported(
                f"capturing from {name}",
                f"its hardware, ARPHRD_ number {hardware}, whose frames isolib cannot name in a file",
                "tcpdump -i, which has a form of its own for them",
            )
        self.link_type = found
        try:
            if hardware == _ARPHRD_LOOPBACK:  # each packet leaves it and comes back: once is enough
                sock.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
            ring.prepare(sock, snaplen)
            if promiscuous:
                sock.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, struct.pack("=iHH8x", self.index, _PROMISCUOUS, 0))
        except OSError as error:
            raise refused("setsockopt", f"packet socket of {name}", error) from None
        try:
            self.ring = ring.Ring(sock.fileno(), snaplen)
        except OSError as error:
            raise refused("mmap", f"packet socket of {name}", error) from None

    def _ioctl(self, op: str, number: int, name: str, request: bytes, layout: struct.Struct) -> tuple[Any, ...]:
        try:
            return layout.unpack(ioctl(self._sock.fileno(), number, request))
        except OSError as error:
            advice = "there is no such interface in the namespace" if error.errno == ENODEV else None
            raise from_errno(f"ioctl {op}", name, error.errno or 0, advice or hint("ioctl", error.errno or 0, name)) from None

    def fileno(self) -> int:
        """Return the descriptor, readable when there are packets; -1: it is closed."""
        return self._sock.fileno()

    def want(self, protocol: int) -> None:
        """Receive packets of this protocol from now on (packet(7)); those of another are all there when this returns.

        Raises
        ------
        SyscallError
            The interface is gone.
        """
        name = self._ioctl("SIOCGIFNAME", _SIOCGIFNAME, f"interface {self.index}", _IFREQ.pack(b"", self.index), _IFREQ)[0]
        now = os.fsdecode(name.rstrip(b"\0"))
        try:
            self._sock.bind((now, protocol))
        except OSError as error:
            raise refused("bind", f"packet socket of {now}", error) from None

    def clear_error(self) -> None:
        """Take note that the interface is down, or gone; when it is up again the kernel goes on by itself."""
        self._sock.getsockopt(_SOL_SOCKET, _SO_ERROR)

    def count(self) -> None:
        """Ask how many packets came, and for how many there was no room; the kernel counts from the last time on."""
        with self._lock:
            if self._sock.fileno() >= 0:
                received, dropped, _ = struct.unpack("=III", self._sock.getsockopt(_SOL_PACKET, _STATISTICS, 12))
                self.received += received
                self.dropped += dropped

    def close(self) -> None:
        """Close the socket and the ring."""
        with self._lock:
            self.abandon()

    def abandon(self) -> None:
        """In a fork of the process, where nobody may be left to release a lock, close the copies."""
        self.ring.close()
        self._sock.close()
