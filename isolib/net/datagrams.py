"""Datagrams: receiving them with what it takes to answer from the right address, and forwarding them."""

from __future__ import annotations

import os
import socket
import time
from collections import OrderedDict
from errno import EMFILE
from struct import Struct
from typing import TYPE_CHECKING, Final

from isolib.net.serving import IN, take_socket
from isolib.net.streams import Relay

if TYPE_CHECKING:
    from typing import Any, TypeAlias

    from isolib.net.serving import Socket, Timer
    from isolib.net.streams import Open, Target

    Address: TypeAlias = tuple[Any, ...] | str | bytes | None
    Ancillary: TypeAlias = list[tuple[int, int, bytes]]

__all__ = ["DatagramRelay", "Mailbox"]

_V4: Final = (socket.IPPROTO_IP, 8)  # IP_PKTINFO, as the option and as the message
_V6: Final = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO)
_INFO_V4: Final = Struct("=i4s4s")  # in_pktinfo: interface, our address, the destination (ip(7))
_INFO_V6: Final = Struct("=16si")  # in6_pktinfo: our address, interface (ipv6(7))
_LINK_LOCAL: Final = (b"\xfe\x80", b"\xff\x02")
#: Datagrams that are received before others have their turn.
_AT_ONCE: Final = 32


class Mailbox:
    """A socket that many write to, each of whom is answered from the address that he wrote to.

    That is not so by itself where a socket is bound to all addresses of a host that has several: the kernel would choose by the
    route, and a client that is connected takes no answer from anybody else.
    """

    __slots__ = ("_room", "sock")

    def __init__(self, sock: Socket) -> None:
        self.sock = sock
        self._room = 0
        options = {int(socket.AF_INET): (socket.IPPROTO_IP, _V4[1]), int(socket.AF_INET6): (_V6[0], socket.IPV6_RECVPKTINFO)}
        option = options.get(sock.family)
        if option is not None and sock.getsockname()[0] in {"0.0.0.0", "::"}:  # noqa: S104 - asked, not bound
            sock.setsockopt(*option, 1)
            self._room = socket.CMSG_SPACE(_INFO_V6.size)

    def receive(self, scratch: memoryview) -> tuple[memoryview, Address, Ancillary]:
        """Return what came, from where, and what `send` wants for the answer."""
        if not self._room:
            size, address = self.sock.recvfrom_into(scratch)
            return scratch[:size], address, []
        size, ancillary, _, address = self.sock.recvmsg_into([scratch], self._room)
        return scratch[:size], address, [_reply(*each) for each in ancillary if each[:2] in {_V4, _V6}]

    def send(self, data: bytes | memoryview, address: Address, ancillary: Ancillary) -> bool:
        """Answer; False where that is not possible, for want of room or of the client."""
        try:
            if ancillary:
                self.sock.sendmsg([data], ancillary, 0, address)
            else:
                self.sock.sendto(data, address)  # type: ignore[arg-type]
        except OSError:
            return False
        return True


def _reply(level: int, kind: int, data: bytes) -> tuple[int, int, bytes]:
    if (level, kind) == _V4:
        _, ours, _ = _INFO_V4.unpack(data)
        return level, kind, _INFO_V4.pack(0, ours, bytes(4))
    ours, interface = _INFO_V6.unpack(data)
    # Only an address that each link has one of needs to be told with its interface; others are left to the routes.
    return level, kind, _INFO_V6.pack(ours, interface if ours[:2] in _LINK_LOCAL else 0)


class DatagramRelay(Relay):
    """Forwards datagrams: each client, known by its address, has a socket of its own on the other side."""

    def __init__(self, sock: Socket, connect: Open, target: Target, limit: int, idle: float) -> None:
        super().__init__(sock, connect, target, limit, idle)
        self._mailbox = Mailbox(sock)
        self._clients: OrderedDict[Address, _Client] = OrderedDict()  # the one that was silent longest first
        self._timer: Timer | None = None

    @property
    def active(self) -> int:
        """How many clients are known."""
        return len(self._clients)

    def begin(self) -> None:
        """Receive."""
        self.watch(self.front, IN, self._receive)

    def end(self) -> None:
        """Forget the clients."""
        self._clients.clear()

    def _receive(self, _: int) -> None:
        for _ in range(_AT_ONCE):
            try:
                data, address, ancillary = self._mailbox.receive(self.scratch)
            except BlockingIOError:
                return
            except OSError as error:  # an ICMP error of an answer
                self.error = error
                continue
            try:
                client = self._client(address)
                client.ancillary = ancillary
                self.sent += client.sock.send(data)
            except Exception as error:  # noqa: BLE001 - the caller's function's too; kept for him
                self.failed += 1
                self.error = error

    def _client(self, address: Address) -> _Client:
        client = self._clients.get(address)
        if client is None:
            if self.is_crowded:
                if not self._clients:
                    raise OSError(EMFILE, os.strerror(EMFILE))
                self._forget(next(iter(self._clients)))
            sock = self.own(take_socket(self.connect()))
            try:
                sock.connect(self.target)
            except BaseException:
                self.drop(sock)
                raise
            self.connections += 1
            if len(self._clients) >= self.limit:
                self._forget(next(iter(self._clients)))
            client = self._clients[address] = _Client(self, sock, address)
            self.watch(sock, IN, client.answer)
        self.touch(client)
        return client

    def touch(self, client: _Client) -> None:
        """Note that a client, or its server, said something."""
        client.last = time.monotonic()
        self._clients.move_to_end(client.address)
        if self._timer is None:
            self._timer = self.after(self.idle, self._expire)

    def answer(self, client: _Client) -> None:
        """Pass on what came from a client's server."""
        try:
            size = client.sock.recv_into(self.scratch)
        except BlockingIOError:
            return
        except OSError as error:  # nobody listens there: ICMP said so. The client will ask again, or not.
            self.failed += 1
            self.error = error
            return
        self.touch(client)
        if self._mailbox.send(self.scratch[:size], client.address, client.ancillary):
            self.received += size
        else:
            self.failed += 1

    def _forget(self, address: Address) -> None:
        self.drop(self._clients.pop(address).sock)

    def _expire(self) -> None:
        self._timer = None
        now = time.monotonic()
        while self._clients:
            address, client = next(iter(self._clients.items()))
            left = client.last + self.idle - now
            if left > 0:
                self._timer = self.after(left, self._expire)
                return
            self._forget(address)


class _Client:
    """One who sent datagrams, and the socket that was opened for that."""

    __slots__ = ("_relay", "address", "ancillary", "last", "sock")

    def __init__(self, relay: DatagramRelay, sock: Socket, address: Address) -> None:
        self._relay = relay
        self.sock = sock
        self.address = address
        self.ancillary: Ancillary = []
        self.last = 0.0

    def answer(self, _: int) -> None:
        """Pass on what came from its server."""
        self._relay.answer(self)
