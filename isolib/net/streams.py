"""Copying between two stream sockets, both ways."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from errno import EAGAIN, EINPROGRESS, EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOTSOCK
from struct import Struct
from typing import TYPE_CHECKING, Final, TypeAlias

from isolib.errors import from_errno
from isolib.net.serving import IN, OUT, Served, Socket, copy_socket, take_socket
from isolib.types import HasFileno

if TYPE_CHECKING:
    from isolib.net.serving import Timer

__all__ = ["PAUSE", "SHORT", "Open", "Relay", "StreamRelay", "Target", "accept", "take_copy"]

Open: TypeAlias = Callable[[], HasFileno]
Target: TypeAlias = tuple[str, int] | tuple[str, int, int, int] | str | bytes

_ERROR: Final = 0x008  # EPOLLERR
_HANGUP: Final = 0x010  # EPOLLHUP
#: Connections that are accepted before others have their turn.
_AT_ONCE: Final = 32
#: Nothing that can be waited for tells that there are descriptors, or memory, again.
SHORT: Final = {EMFILE, ENFILE, ENOBUFS, ENOMEM}
PAUSE: Final = 0.05
#: Seconds that a connection may take, which is less than the kernel's two minutes: its client waits.
_PATIENCE: Final = 30.0
#: A unix server whose queue is full cannot be waited for either (connect(2), EAGAIN).
_TRIES: Final = 600
_LINGER: Final = Struct("ii").pack(1, 0)


def take_copy(owner: HasFileno, what: str) -> Socket:
    """Return a copy of a socket that a user gives; the errors are those that he sees."""
    try:
        return copy_socket(owner)
    except OSError as error:
        errno = error.errno or 0
        raise from_errno("getsockname" if errno == ENOTSOCK else "dup", what, errno) from None


def accept(listening: Socket) -> Socket | None:
    """Return a connection, non-blocking; None: there is none.

    Raises
    ------
    OSError
        One of `SHORT`: there may be one when others have been closed.
    """
    try:
        # The face of accept4(2) that makes no object: gevent replaces the class of the one that has a public name.
        number, _ = listening._accept()  # type: ignore[attr-defined]  # noqa: SLF001
    except BlockingIOError:
        return None
    sock = Socket(listening.family, listening.type, listening.proto, fileno=number)
    sock.setblocking(False)  # noqa: FBT003 - its only argument
    return sock


class Relay(Served):
    """What forwarding has in common: a socket that clients come to, and what was counted.

    Parameters
    ----------
    sock
        That socket.
    connect, target, limit, idle
        As in `isolib.net.forward.new_forwarder`.
    """

    def __init__(self, sock: Socket, connect: Open, target: Target, limit: int, idle: float) -> None:
        super().__init__()
        self.front = self.own(sock)
        self.connect = connect
        self.target = target
        self.limit = limit
        self.idle = idle
        self.connections = self.failed = self.sent = self.received = 0

    @property
    def active(self) -> int:
        """How many clients there are."""
        return 0


class StreamRelay(Relay):
    """Forwards connections."""

    def __init__(self, sock: Socket, connect: Open, target: Target, limit: int, idle: float) -> None:
        super().__init__(sock, connect, target, limit, idle)
        self._pairs: set[_Pair] = set()
        self._is_paused = False

    @property
    def active(self) -> int:
        """How many connections there are."""
        return len(self._pairs)

    def begin(self) -> None:
        """Accept connections."""
        self._is_paused = False
        self.watch(self.front, IN, self._accept)

    def end(self) -> None:
        """Reset all connections: an end would look as if all had been said."""
        with suppress(OSError):  # where it has been closed, this is done
            # Not closing alone: a fork may not have closed its copy yet.
            self.front.shutdown(socket.SHUT_RDWR)
        for pair in self._pairs.copy():
            pair.reset()

    def _pause(self) -> None:
        self._is_paused = True
        self.mute(self.front)

    def _pause_for_a_while(self) -> None:
        self._pause()
        self.after(PAUSE, self.begin)

    def _accept(self, _: int) -> None:
        for _ in range(_AT_ONCE):
            if len(self._pairs) >= self.limit:
                self._pause()  # until `forget`
                return
            if self.is_crowded:
                self.error = OSError(EMFILE, os.strerror(EMFILE))
                self._pause_for_a_while()
                return
            try:
                outer = accept(self.front)
            except OSError as error:
                self.error = error
                if error.errno in SHORT:
                    self._pause_for_a_while()
                return
            if outer is None:
                return
            self._open(outer)

    def _open(self, outer: Socket) -> None:
        self.connections += 1
        try:
            inner = take_socket(self.connect())
        except BaseException as error:  # noqa: BLE001 - the caller's function's, kept for him
            self.fail(error)
            _linger(outer)
            outer.close()
            return
        pair = _Pair(self, outer, inner)
        self._pairs.add(pair)
        pair.begin()

    def fail(self, error: BaseException) -> None:
        """Count a connection that broke."""
        self.failed += 1
        self.error = error

    def forget(self, pair: _Pair) -> None:
        """Let a pair go that has ended."""
        self._pairs.discard(pair)
        if self._is_paused and not self.is_stopped:
            self.begin()


class _Side:
    """One of both sockets, and what came from it."""

    __slots__ = ("ended", "kept", "mask", "sock")

    def __init__(self, sock: Socket) -> None:
        self.sock = sock
        self.kept: memoryview | None = None  # of what came, and the peer did not take yet
        self.ended = False  # nothing more comes, and the peer was told
        self.mask = -1


class _Pair:
    """A connection of a client, and the one that was made for it."""

    __slots__ = ("_inner", "_is_connected", "_outer", "_relay", "_timer", "_tries")

    def __init__(self, relay: StreamRelay, outer: Socket, inner: Socket) -> None:
        self._relay = relay
        self._outer = _Side(relay.own(outer))
        self._inner = _Side(relay.own(inner))
        self._is_connected = False
        self._tries = 0
        self._timer: Timer | None = None

    def begin(self) -> None:
        """Connect."""
        try:
            for side in (self._outer, self._inner):
                if side.sock.family != socket.AF_UNIX:
                    # What was sent in one piece goes on at once, as if there were nobody between.
                    side.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._watch(self._outer, 0)
            self._connect()
        except Exception as error:  # noqa: BLE001 - what was given is no address of this family, or no such socket
            self._break(error)

    def _connect(self) -> None:
        sock = self._inner.sock
        errno = sock.connect_ex(self._relay.target)
        if errno == 0:
            self._connected()
        elif errno == EINPROGRESS:
            self._timer = self._relay.after(_PATIENCE, self._give_up)
            self._watch(self._inner, OUT)
        elif errno == EAGAIN and sock.family == socket.AF_UNIX and self._tries < _TRIES:
            self._tries += 1
            self._timer = self._relay.after(PAUSE, self._connect)
        else:
            self._break(OSError(errno, os.strerror(errno)))

    def _connected(self) -> None:
        self._is_connected = True
        self._cancel()
        self._settle()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._break(TimeoutError(f"no connection to {self._relay.target!r} in {_PATIENCE:g} s"))

    # ---- copying ----

    def _peer(self, side: _Side) -> _Side:
        return self._inner if side is self._outer else self._outer

    def _ready_outer(self, mask: int) -> None:
        self._ready(self._outer, mask)

    def _ready_inner(self, mask: int) -> None:
        self._ready(self._inner, mask)

    def _ready(self, side: _Side, mask: int) -> None:
        try:
            self._copy(side, mask)
        except OSError as error:
            self._break(error)

    def _copy(self, side: _Side, mask: int) -> None:
        # What came before a reset can still be read, and is; then reading raises the error.
        if mask & _ERROR and not (self._is_connected and side.mask & IN):
            errno = side.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if errno:
                raise OSError(errno, os.strerror(errno))
        if not side.mask:
            # Both directions of it have ended, but what came from it waits for the peer. Told again and again, we would spin.
            self._relay.mute(side.sock)
            side.mask = -1
            return
        if not self._is_connected:
            # An event may be of a socket that had this number before.
            if _has_peer(side.sock):
                self._connected()
            return
        peer = self._peer(side)
        if mask & (OUT | _HANGUP) and peer.kept is not None:
            self._give(peer, peer.kept)
        if mask & (IN | _HANGUP | _ERROR) and side.mask & IN:
            self._take(side)
        self._settle()

    def _take(self, side: _Side) -> None:
        scratch = self._relay.scratch
        try:
            size = side.sock.recv_into(scratch)
        except BlockingIOError:
            return
        if not size:
            side.ended = True
            self._peer(side).sock.shutdown(socket.SHUT_WR)
            return
        if side is self._outer:
            self._relay.sent += size
        else:
            self._relay.received += size
        self._give(side, scratch[:size])

    def _give(self, side: _Side, data: memoryview) -> None:
        """Send what came from a side to the other one, and keep the rest."""
        try:
            size = self._peer(side).sock.send(data)
        except BlockingIOError:
            size = 0
        if size == len(data):
            side.kept = None
        elif side.kept is None:
            side.kept = memoryview(bytes(data[size:]))  # the memory that it is in serves others next
        else:
            side.kept = data[size:]

    def _settle(self) -> None:
        """Wait for what can come next."""
        if self._outer.ended and self._inner.ended:
            self._end()
            return
        for side in (self._outer, self._inner):
            takes = IN if not side.ended and side.kept is None else 0
            self._watch(side, takes | (OUT if self._peer(side).kept is not None else 0))

    def _watch(self, side: _Side, mask: int) -> None:
        if mask != side.mask and (mask or side.mask != -1 or not self._is_connected):
            side.mask = mask
            self._relay.watch(side.sock, mask, self._ready_outer if side is self._outer else self._ready_inner)

    # ---- the end ----

    def _end(self) -> None:
        self._cancel()
        self._relay.forget(self)  # first: who hears of the end finds it counted
        self._relay.drop(self._outer.sock)
        self._relay.drop(self._inner.sock)

    def _break(self, error: BaseException) -> None:
        self._relay.fail(error)
        self.reset()

    def reset(self) -> None:
        """End both connections as broken."""
        _linger(self._outer.sock)
        _linger(self._inner.sock)
        self._end()


def _has_peer(sock: Socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _linger(sock: Socket) -> None:
    """Let closing a socket reset its connection, and what was not sent be lost (socket(7), SO_LINGER)."""
    if sock.fileno() >= 0 and sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
