"""Asking the resolvers that the host asks, for those who may have an answer from outside."""

from __future__ import annotations

import secrets
import socket
from errno import EINPROGRESS
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from isolib.errors import PlanError
from isolib.net.serving import IN, OUT, take_socket

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, TypeAlias

    from isolib.net.serving import Served, Socket, Timer
    from isolib.types import HasFileno

    Connect: TypeAlias = Callable[[int, int], HasFileno]
    Done: TypeAlias = Callable[[bytes | None], None]
    Server: TypeAlias = tuple[int, Any]

__all__ = ["Ask", "parse_servers"]

_PORT: Final = 53
#: Seconds for each server, each time: two of them, asked twice, are done when a client that waits for 5 s asks again.
_PATIENCE: Final = 1.2
_ROUNDS: Final = 2


def parse_servers(servers: Sequence[str | tuple[str, int]]) -> tuple[Server, ...]:
    """Return the families and addresses of resolvers, that are given as numeric addresses, with a port or without.

    Raises
    ------
    PlanError
        One is no address.
    """
    found = []
    for server in servers:
        try:
            host, port = (server, _PORT) if isinstance(server, str) else server
            ip_address(host)  # getaddrinfo(3) takes "10.1" and numbers too
            family, _, _, _, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
            )[0]
        except (OSError, TypeError, ValueError) as error:
            raise PlanError(f"upstream: {server!r} is no address of a resolver: {error}") from None
        found.append((int(family), address))
    return tuple(found)


class Ask:
    """One question on its way: the servers are asked one after the other, twice at the most, until one answers.

    Somebody who guesses must not be able to answer in their stead (RFC 5452). So each question has a number at random, and a
    socket of its own with a port of the kernel's choice, which is connected: the kernel takes nothing from anybody else.
    And the answer must repeat the question.

    Parameters
    ----------
    served
        Which the sockets are served with.
    servers
        Of `parse_servers`.
    connect
        Opens a socket of a family and a type, in the namespace from which the servers are reached.
    query
        The question, which is passed on as it is, but for its number.
    stream
        Whether it came over a stream: then it is asked over one.
    done
        Called once with the answer, under the number of the question; or with None: nobody answered.
    """

    def __init__(
        self, served: Served, servers: Sequence[Server], connect: Connect, query: bytes, done: Done, *, stream: bool
    ) -> None:
        self._served = served
        self._left = [*servers] * _ROUNDS
        self._connect = connect
        self._query = query
        self._done = done
        self._is_stream = stream
        self._sock: Socket | None = None
        self._timer: Timer | None = None
        self._asked = b""
        self._to_send = b""
        self._received = bytearray()
        self._refusal: bytes | None = None

    def begin(self) -> None:
        """Ask the next server."""
        self.close()
        while self._left:
            family, address = self._left.pop(0)
            try:
                self._open(family, address)
            except Exception as error:  # noqa: BLE001 - of the caller's function too; there may be other servers
                self._served.error = error
                self.close()
            else:
                return
        self._done(self._refusal)

    def _open(self, family: int, address: Any) -> None:  # noqa: ANN401 - of any family
        kind = socket.SOCK_STREAM if self._is_stream else socket.SOCK_DGRAM
        self._sock = sock = self._served.own(take_socket(self._connect(family, kind)))
        errno = sock.connect_ex(address)
        if errno not in {0, EINPROGRESS}:
            raise OSError(errno, f"connect to {address}")
        self._asked = secrets.token_bytes(2) + self._query[2:]
        self._received.clear()
        self._timer = self._served.after(_PATIENCE, self.begin)
        if self._is_stream:
            self._to_send = len(self._asked).to_bytes(2, "big") + self._asked
            self._served.watch(sock, OUT, self._ready_stream)
        else:
            sock.send(self._asked)
            self._served.watch(sock, IN, self._ready_datagram)

    def close(self) -> None:
        """Ask no longer; again is nothing."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sock is not None:
            self._served.drop(self._sock)
            self._sock = None

    def _ready_datagram(self, _: int) -> None:
        assert self._sock is not None  # noqa: S101 - it is watched
        scratch = self._served.scratch
        try:
            size = self._sock.recv_into(scratch)
        except BlockingIOError:
            return
        except OSError as error:  # nobody is there: an ICMP error
            self._served.error = error
            self.begin()
            return
        self._hear(bytes(scratch[:size]))

    def _ready_stream(self, _: int) -> None:
        assert self._sock is not None  # noqa: S101 - it is watched
        try:
            if self._to_send:
                self._to_send = self._to_send[self._sock.send(self._to_send) :]
                if not self._to_send:
                    self._served.watch(self._sock, IN, self._ready_stream)
                return
            scratch = self._served.scratch
            size = self._sock.recv_into(scratch)
        except BlockingIOError:
            return
        except OSError as error:
            self._served.error = error
            self.begin()
            return
        self._received += scratch[:size]
        length = 2 + int.from_bytes(self._received[:2], "big")
        if len(self._received) >= max(length, 2):
            self._hear(bytes(self._received[2:length]))
        elif not size:
            self.begin()

    def _hear(self, reply: bytes) -> None:
        from isolib.net import dns  # noqa: PLC0415 - dear to import; whoever asks has it

        if not dns.is_reply(self._asked, reply):
            if self._is_stream:
                self.begin()
            return  # a datagram of somebody who guesses; the answer may still come
        answer = self._query[:2] + reply[2:]
        if dns.is_failure(reply):
            self._refusal = answer
            self.begin()
            return
        self.close()
        self._done(answer)
