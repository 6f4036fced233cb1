"""The resolver of a network: the sockets that are asked, and whom else it asks. What it says is `isolib.net.dns`'s.

It runs on the thread of `isolib.net.serving`, on sockets that were born in the network's namespace: no process need live there,
and what is asked there is answered from this process's memory.
"""

from __future__ import annotations

import socket
from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from isolib._kernel.handle import Handle, Rollback
from isolib.errors import PlanError
from isolib.net.datagrams import Mailbox
from isolib.net.plugs import bound_socket
from isolib.net.serving import IN, OUT, Served, Socket, disown
from isolib.net.streams import PAUSE, SHORT, accept, take_copy
from isolib.net.upstream import Ask, parse_servers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from isolib.net.names import Zone
    from isolib.net.serving import Timer
    from isolib.net.upstream import Connect, Server
    from isolib.net.values import AnyAddress
    from isolib.types import HasFileno

__all__ = ["Questions", "Responder", "new_responder", "respond_at"]

_PORT: Final = 53

#: Questions that are received before others have their turn: an answer takes a tenth of a millisecond.
_AT_ONCE: Final = 8
#: Questions that may be on their way to resolvers at a time. Each has a socket.
_ASKING: Final = 128
#: Connections that may be open at a time. With more, the one that was silent longest is closed (RFC 7766, 6.2.3).
_OPEN: Final = 64
#: Seconds that one may be silent.
_IDLE: Final = 10.0
#: Of one connection, what may be on its way to resolvers; it is not read from meanwhile.
_AHEAD: Final = 16
_LONGEST: Final = 4096


@dataclass(frozen=True, slots=True)
class Questions:
    """What a responder has done until now.

    Attributes
    ----------
    answered
        How many questions it has answered by itself, whatever the answer was.
    forwarded
        How many it has passed on to a resolver.
    failed
        How many of those no resolver answered, or could not be passed on.
    dropped
        How many messages were no questions.
    """

    answered: int
    forwarded: int
    failed: int
    dropped: int


class Responder(Handle, made_by="new_responder()"):
    """Answers questions about names; by `new_responder`."""

    def __init__(self, service: _Service) -> None:
        super().__init__()
        self._service = service

    @property
    def error(self) -> BaseException | None:
        """What went wrong last, and nobody could be told of."""
        return self._service.error

    def stats(self) -> Questions:
        """Return what it has done until now."""
        one = self._service
        return Questions(one.answered, one.forwarded, one.failed, one.dropped)

    def _release(self) -> None:
        self._service.stop()

    def _describe(self) -> str:
        zone = self._service.zone
        return f"for {zone.domain or 'names without a domain'}" + (", forwards" if zone.forwards else "")


def respond_at(ns: HasFileno, addresses: Sequence[AnyAddress], *, zone: Zone, upstream: Sequence[str] = ()) -> Responder:
    """Answer questions about names at the addresses of a namespace; otherwise as `new_responder`."""
    sockets: dict[str, list[Socket]] = {"udp": [], "tcp": []}
    with Rollback() as undo:
        for proto, made in sockets.items():
            for address in addresses:
                made.append(bound_socket(ns, address, _PORT, proto))
                undo.push(made[-1].close)
        responder = new_responder(sockets["udp"], sockets["tcp"], zone=zone, upstream=upstream)
        undo.dismiss()
    return responder


def new_responder(
    datagrams: Sequence[HasFileno],
    streams: Sequence[HasFileno] = (),
    *,
    zone: Zone,
    upstream: Sequence[str | tuple[str, int]] = (),
    connect: Connect | None = None,
) -> Responder:
    """Answer questions about names that come to sockets, which may have been born in any namespace.

    Parameters
    ----------
    datagrams
        Bound sockets of UDP; they are the responder's from now on.
    streams
        Listening sockets of TCP, as well. Answers that are too long for a datagram are had from there.
    zone
        What is known. It may change meanwhile.
    upstream
        Resolvers for everything else, as numeric addresses, with a port or without; by default nobody is asked.
    connect
        Opens a socket of a family and a type for asking them; it must not wait. By default the socket is of the namespace of
        this program.

    Returns
    -------
    Responder
        Close it.

    Raises
    ------
    PlanError
        A socket is of another kind, or a resolver has no address.
    SyscallError
        There are no more descriptors or threads.
    """
    servers = parse_servers(upstream)
    taken: list[Socket] = []
    try:
        for given, kind in ((datagrams, socket.SOCK_DGRAM), (streams, socket.SOCK_STREAM)):
            for one in given:
                taken.append(take_copy(one, "the socket to be asked on"))
                if taken[-1].type & 0xF != kind or taken[-1].family not in {socket.AF_INET, socket.AF_INET6}:
                    raise PlanError(f"a responder is asked over UDP and TCP, not family {taken[-1].family}")
        service = _Service(taken, replace(zone, forwards=bool(servers)), servers, connect or _open_here)
    except BaseException:
        for sock in taken:
            sock.close()
        raise
    responder = Responder._make(service)
    try:
        service.start()
    except BaseException:
        responder.close()
        raise
    for one in (*datagrams, *streams):
        disown(one)
    return responder


def _open_here(family: int, kind: int) -> Socket:
    return Socket(family, kind)


class _Service(Served):
    """What is served."""

    def __init__(self, socks: Sequence[Socket], zone: Zone, servers: Sequence[Server], connect: Connect) -> None:
        super().__init__()
        self.zone = zone
        self.answered = self.forwarded = self.failed = self.dropped = 0
        self._servers = servers
        self._connect = connect
        for sock in socks:
            self.own(sock)
        self._mailboxes = [Mailbox(sock) for sock in socks if sock.type & 0xF == socket.SOCK_DGRAM]
        self._listening = [sock for sock in socks if sock.type & 0xF == socket.SOCK_STREAM]
        self._asks: dict[object, Ask] = {}
        self._conversations: OrderedDict[int, _Conversation] = OrderedDict()  # the one that was silent longest first

    def begin(self) -> None:
        """Be asked."""
        for mailbox in self._mailboxes:
            self.watch(mailbox.sock, IN, partial(self._receive, mailbox))
        for sock in self._listening:
            self._listen(sock)

    def end(self) -> None:
        """Forget who has asked."""
        self._asks.clear()
        self._conversations.clear()

    def _listen(self, sock: Socket) -> None:
        self.watch(sock, IN, partial(self._accept, sock))

    def _receive(self, mailbox: Mailbox, _: int) -> None:
        for _ in range(_AT_ONCE):
            try:
                data, address, ancillary = mailbox.receive(self.scratch)
            except BlockingIOError:
                return
            except OSError as error:  # an ICMP error of an answer
                self.error = error
                continue
            give = partial(mailbox.send, address=address, ancillary=ancillary)
            self.answer(bytes(data), (mailbox.sock.fileno(), address), give, stream=False)

    def _accept(self, sock: Socket, _: int) -> None:
        try:
            one = accept(sock)
        except OSError as error:
            self.error = error
            if error.errno in SHORT:
                self.mute(sock)
                self.after(PAUSE, partial(self._listen, sock))
            return
        if one is None:
            return
        if len(self._conversations) >= _OPEN:
            next(iter(self._conversations.values())).close()
        conversation = _Conversation(self, self.own(one))
        self._conversations[id(conversation)] = conversation
        conversation.begin()

    def touch(self, conversation: _Conversation) -> None:
        """Note that a connection is in use."""
        self._conversations.move_to_end(id(conversation))

    def forget(self, conversation: _Conversation) -> None:
        """Let a connection go."""
        self._conversations.pop(id(conversation), None)

    def answer(self, query: bytes, source: object, give: Callable[[bytes], object], *, stream: bool) -> bool:
        """Answer a question, now or later; False where nothing will be said."""
        from isolib.net import dns  # noqa: PLC0415 - dear to import: who is never asked does not pay for it

        outcome = dns.respond(query, self.zone, stream=stream)
        if isinstance(outcome, bytes):
            self.answered += 1
            give(outcome)
        elif outcome is dns.Outcome.DROP:
            self.dropped += 1
            return False
        else:
            self._forward(query, source, give, stream=stream)
        return True

    def _forward(self, query: bytes, source: object, give: Callable[[bytes], object], *, stream: bool) -> None:
        key = (source, query)
        if key in self._asks:  # asked again by somebody who has no patience
            return
        done = partial(self._answered, key, query, give, stream=stream)
        if len(self._asks) >= _ASKING:
            done(None)
            return
        self.forwarded += 1
        ask = self._asks[key] = Ask(self, self._servers, self._connect, query, done, stream=stream)
        ask.begin()

    def _answered(
        self, key: object, query: bytes, give: Callable[[bytes], object], reply: bytes | None, *, stream: bool
    ) -> None:
        from isolib.net import dns  # noqa: PLC0415 - as above

        self._asks.pop(key, None)
        if reply is None:
            self.failed += 1
            outcome = dns.failure(query)
            if isinstance(outcome, bytes):
                give(outcome)
        else:
            give(dns.shortened(query, reply, stream=stream))


class _Conversation:
    """A connection over which questions come, each with its length before it (RFC 1035, 4.2.2)."""

    __slots__ = ("_asked", "_ended", "_is_reading", "_service", "_sock", "_timer", "_to_read", "_to_send", "_waiting")

    def __init__(self, service: _Service, sock: Socket) -> None:
        self._service = service
        self._sock = sock
        self._to_read = bytearray()
        self._to_send = bytearray()
        self._waiting = 0
        self._asked = 0
        self._ended = False
        self._is_reading = False
        self._timer: Timer | None = None

    def begin(self) -> None:
        """Wait for questions."""
        self._settle()

    def close(self) -> None:
        """End it; again is nothing."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._service.drop(self._sock)
        self._service.forget(self)

    @property
    def _is_closed(self) -> bool:
        return self._sock.fileno() < 0

    def _ready(self, mask: int) -> None:
        try:
            if mask & OUT and self._to_send:
                del self._to_send[: self._sock.send(self._to_send)]
            if mask & ~OUT and not self._to_send and not self._ended:
                self._receive()
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._read()
        self._settle()

    def _receive(self) -> None:
        scratch = self._service.scratch
        size = self._sock.recv_into(scratch, _LONGEST)
        self._ended = not size
        self._to_read += scratch[:size]

    def _read(self) -> None:
        """Answer what has come whole, unless nobody takes the answers."""
        self._is_reading = True
        try:
            while not self._to_send and self._waiting < _AHEAD and (query := self._next()) is not None:
                self._waiting += 1
                self._asked += 1
                # The number: the same question may be asked twice over one connection, and have two answers.
                if not self._service.answer(query, (id(self), self._asked), self._give, stream=True):
                    self.close()
        finally:
            self._is_reading = False

    def _next(self) -> bytes | None:
        end = 2 + int.from_bytes(self._to_read[:2], "big")
        if self._is_closed or len(self._to_read) < max(end, 3):
            if end > _LONGEST:
                self.close()
            return None
        query = bytes(self._to_read[2:end])
        del self._to_read[:end]
        return query

    def _give(self, reply: bytes) -> None:
        if self._is_closed:
            return
        self._waiting -= 1
        self._to_send += len(reply).to_bytes(2, "big") + reply
        try:
            del self._to_send[: self._sock.send(self._to_send)]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
        if not self._is_reading:  # the answer of a resolver
            self._read()
            self._settle()

    def _settle(self) -> None:
        """Wait for what can come next."""
        if self._is_closed:
            return
        if self._ended and not self._to_send and not self._waiting:
            self.close()
            return
        reads = IN if not (self._ended or self._to_send or self._waiting >= _AHEAD) else 0
        writes = OUT if self._to_send else 0
        self._service.touch(self)
        if reads | writes:
            self._service.watch(self._sock, reads | writes, self._ready)
        else:
            self._service.mute(self._sock)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._service.after(_IDLE, self.close)
