"""A netlink socket, which belongs to the network namespace that it was made in, whoever uses it.

Several requests go in one send, and the kernel carries them out one after the other: **a refused one does not keep those after
it from being tried**.  So what is sent together is undone together by who sends it, or is a batch of nftables, which the kernel
does all of or nothing.

What the kernel has to say is there when a send returns, so nobody waits for it.  Signal handlers and finalizers may use a
socket that the thread is in the midst of using: whoever reads hands to the others what is theirs.
"""

from __future__ import annotations

import os
import struct
from errno import EBUSY, EINTR, EMSGSIZE, ENOBUFS
from functools import partial
from itertools import count, islice
from threading import RLock
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from isolib._kernel import calls
from isolib._kernel.handle import home
from isolib._kernel.hints import hint
from isolib._kernel.netlink import codec
from isolib._kernel.sockets import open_netlink_socket
from isolib._kernel.waiting import poll
from isolib.errors import ClosedError, SyscallError, from_errno

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from isolib._kernel.handle import Fd
    from isolib._kernel.netlink.codec import Ack, Message
    from isolib.types import HasFileno

__all__ = ["GENERIC", "NETFILTER", "ROUTE", "Request", "Socket", "joined", "open_netlink", "refused"]

T = TypeVar("T")

# linux/netlink.h
ROUTE: Final = 0
NETFILTER: Final = 12
GENERIC: Final = 16
_NAMES: Final = {ROUTE: "route", NETFILTER: "netfilter", GENERIC: "generic"}

#: linux/netfilter/nfnetlink.h: the marks around a batch, and the structure nfgenmsg of the mark, with the subsystem's number.
_BATCH_BEGIN: Final = 0x10
_BATCH_END: Final = 0x11
_MARK: Final = struct.Struct(">BBH")

#: A dump comes in parts of 32 KiB at the most; other answers are shorter, several of them come one by one.
_PART: Final = 65536
#: Bytes sent at once: the kernel wants them in one piece of its memory, and the answers must have room in the socket.
_TOGETHER: Final = 32768
#: Requests sent at once.  What is answered must have room in the socket, an ordinary user's 416 KiB or more: a refusal takes 1
#: KiB of it, a link that is told 4, and one with more to tell 8.
_MOST: Final = 40
_TRIES: Final = 20
_LAST_NUMBER: Final = 0xFFFFFFFF
#: Milliseconds.
_LOOK_AGAIN: Final = 1

_HINTS: Final = {
    EMSGSIZE: "it is more than can be sent at once: sysctl net.core.wmem_max",
    ENOBUFS: "there was no room for the answers, so nobody knows what was done: sysctl net.core.rmem_max",
}


class Request(NamedTuple):
    """What is asked of the kernel.

    Attributes
    ----------
    type
        RTM_NEWLINK and the like.
    body
        The structure of that type, and attributes.
    flags
        NLM_F_* beside those for a request and its acknowledgement.
    op
        How the call is named in errors: "RTM_NEWLINK".
    about
        The object that it is about, for errors: a text, or what makes one when it is needed.
    hints
        What an error number means for this request.
    """

    type: int
    body: bytes
    flags: int
    op: str
    about: str | tuple[object, ...]
    hints: Mapping[int, str] = {}

    @property
    def target(self) -> str:
        """The object that it is about."""
        return self.about if isinstance(self.about, str) else "".join(map(str, self.about))


class Socket:
    """A netlink socket, prepared (`calls.netlink_prepare`), and the requests that go through it; threads take turns."""

    __slots__ = ("__weakref__", "_closed", "_fd", "_hearers", "_home", "_label", "_lock", "_numbers", "_unsettled")

    def __init__(self, fd: Fd, label: str) -> None:
        self._fd = fd
        self._label = label
        self._home = home()
        self._lock = RLock()  # of what follows
        self._hearers: tuple[_Heard, ...] = ()  # those further back were interrupted by those further on
        self._unsettled = False
        self._closed = False
        self._numbers = count()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Socket {self._label}{' closed' if self._closed else ''}>"

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd.fileno()

    def close(self) -> None:
        """Close it; again is nothing.  Tables of nftables that it owns go with it."""
        if self._home != home():  # a copy; and nobody may be left to release the lock
            self._fd.close()
            return
        with self._lock:
            self._closed = True
            if not self._hearers:  # else they do it: a number that somebody is using must not get another meaning
                self._fd.close()

    def send(self, *requests: Request) -> list[list[Message]]:
        """Have requests carried out, in their order, and return what each was answered beside its acknowledgement.

        Raises
        ------
        SyscallError
            The kernel refused one, the first of which it is; the others were tried all the same.  It has the kernel's own
            words, where there are any.
        """
        answers: list[list[Message]] = []
        refused: SyscallError | None = None
        for part in _parts(requests):
            numbers = self.numbers(len(part))
            try:
                answers += self._talk(joined(part, numbers), part, numbers)
            except SyscallError as error:
                refused = refused or error
        try:
            if refused is not None:
                raise refused
        finally:
            del refused  # else it and this frame would hold each other
        return answers

    def ask(self, request: Request) -> list[Message]:
        """Have one request carried out; as `send`."""
        return self.send(request)[0]

    def dump(self, request: Request) -> list[Message]:
        """Return all that the kernel has of what a request describes; asked again when it changes meanwhile.

        Raises
        ------
        SyscallError
            The kernel refused.
        """
        for _ in range(_TRIES):
            numbers = self.numbers(1)
            sent = codec.request(request.type, request.body, flags=request.flags | codec.DUMP, sequence=numbers[0])
            try:
                found = self._talk(sent, (request,), numbers)[0]
            except SyscallError as error:
                if error.errno != EBUSY:
                    raise
                # One at a time: whom this thread has interrupted gets the rest of his.
                with self._lock:
                    self._settle()
                continue
            if not any(message.flags & codec.DUMP_INTERRUPTED for message in found):
                return found
        raise from_errno(request.op, request.target, EINTR, "it changes all the time: no consistent list can be had")

    def batch(self, subsystem: int, *requests: Request) -> list[list[Message]]:
        """Have requests of one nfnetlink subsystem carried out, all or none of them; as `send`.

        Raises
        ------
        SyscallError
            The kernel refused one of them, and has done none.
        """
        if not requests:
            return []
        begin, *numbers, end = self.numbers(len(requests) + 2)
        mark = _MARK.pack(0, 0, subsystem)
        sent = b"".join(
            (
                codec.request(_BATCH_BEGIN, mark, sequence=begin),
                joined(requests, numbers),
                codec.request(_BATCH_END, mark, sequence=end),
            )
        )
        # What is wrong with the whole of it is said of the mark.
        return self._talk(sent, (requests[0], *requests), [begin, *numbers], fatal=begin)[1:]

    def numbers(self, count: int) -> list[int]:
        """Return so many numbers for requests, one after the other, that no other one of this socket has; 0 is that of news."""
        return [1 + number % _LAST_NUMBER for number in islice(self._numbers, count)]

    def lend(self, call: Callable[[], T]) -> T:
        """Return what a function returns that uses the descriptor: meanwhile it is nobody else's turn.

        Where this thread `has_interrupted` somebody, what it reads may be that one's.  Where it fails, the next one hears what
        was left.

        Raises
        ------
        ClosedError
            It is closed.
        """
        if self._home != home():
            raise ClosedError(f"{self!r} belongs to the process that made it")
        with self._lock:
            return self._turn(_NOBODY, call)

    @property
    def has_interrupted(self) -> bool:
        """Whether this thread, to which it is lent, has left others' answers unread, as a signal handler may."""
        return len(self._hearers) > 1

    def _talk(
        self, sent: bytes, requests: Sequence[Request], numbers: list[int], *, fatal: int | None = None
    ) -> list[list[Message]]:
        if self._home != home():
            raise ClosedError(f"{self!r} belongs to the process that made it")
        heard = _Heard(numbers, fatal)
        try:
            with self._lock:
                self._turn(heard, partial(self._listen, sent, heard))
        except OSError as error:
            raise _kept(requests[0], error.errno or 0) from None
        if heard.refused:
            raise heard.refusal(requests)
        return heard.answers

    def _turn(self, heard: _Heard, call: Callable[[], T]) -> T:
        if self._closed:
            raise ClosedError(f"{self!r} cannot be used any more")
        outer = self._hearers
        if self._unsettled and not outer:  # by who was interrupted, and has no use for it any more
            self._settle()
        try:
            self._hearers = (*outer, heard)
            self._unsettled = True
            result = call()
            self._unsettled = bool(outer)
        finally:
            self._hearers = outer  # before any call: there an interrupt could come
            self._leave()
        return result

    def _leave(self) -> None:
        if self._closed and not self._hearers:
            self._fd.close()

    def _listen(self, sent: bytes, heard: _Heard) -> None:
        try:
            self._say(sent)
            while not heard.all:
                # Nothing there: somebody came between the last line and this, and has handed over what this one waits for.
                if not self._hear():
                    poll(self._fd, _LOOK_AGAIN)
        except OSError as error:
            if error.errno != ENOBUFS:
                raise
            # What came first is there, and nothing comes after what was lost.
            self._settle()
            if not heard.all and not heard.refused:
                raise

    def _hear(self) -> bool:
        """Hand one part of what the kernel has answered to whoever it is for; return whether there was any."""
        try:
            part = os.read(self._fd.fileno(), _PART)
        except BlockingIOError:
            return False
        self._hand_over(part)
        return True

    def _say(self, sent: bytes) -> None:
        """Send requests, and hand over what is answered at once."""
        part, errno = calls.netlink_talk(self._fd.fileno(), sent)
        self._hand_over(part)
        if errno:
            raise OSError(errno, os.strerror(errno))

    def _hand_over(self, part: bytes) -> None:
        for message in codec.messages(part):
            for one in self._hearers:
                one.take(message)

    def _settle(self) -> None:
        """Hear all that there is, but what was lost."""
        while True:
            try:
                if not self._hear():
                    return
            except OSError as error:
                if error.errno != ENOBUFS:
                    raise


class _Heard:
    """What has come back to requests with these numbers."""

    def __init__(self, numbers: list[int], fatal: int | None) -> None:
        self.answers: list[list[Message]] = [[] for _ in numbers]
        self.refused: dict[int, Ack] = {}
        self.all = False
        self._last = {*numbers[-1:], fatal}
        self._index = {number: at for at, number in enumerate(numbers)}

    def take(self, message: Message) -> None:
        at = self._index.get(message.sequence)
        if at is None:  # an answer to somebody else
            return
        if message.type not in {codec.ERROR, codec.DONE}:
            self.answers[at].append(message)
            return
        ack = codec.parse_ack(message)
        if ack.errno:
            self.refused.setdefault(at, ack)
        elif message.flags & codec.DUMP_INTERRUPTED:
            self.answers[at].append(message)
        # Where the whole batch is refused, the mark before it is, and nothing else may come.
        self.all = self.all or message.sequence in self._last

    def refusal(self, requests: Sequence[Request]) -> SyscallError:
        """Return the exception for the first of these that was refused."""
        first = min(self.refused)
        return refusal(requests[first], self.refused[first])


#: Somebody whose turn it is, and who hears for himself.
_NOBODY: Final = _Heard([], None)


def refused(requests: Sequence[Request], numbers: list[int], part: bytes, errno: int) -> SyscallError:
    """Return the exception for requests of which one was refused, or whose answers were kept from being heard."""
    heard = _Heard(numbers, None)
    for message in codec.messages(part):
        heard.take(message)
    return heard.refusal(requests) if heard.refused else _kept(requests[0], errno or ENOBUFS)


def _kept(request: Request, errno: int) -> SyscallError:
    return from_errno(request.op, request.target, errno, _HINTS.get(errno) or hint("netlink", errno))


def refusal(request: Request, ack: Ack) -> SyscallError:
    """Return the exception for a request that the kernel refused: its own words, and what would help."""
    known = request.hints.get(ack.errno) or hint(request.op, ack.errno, request.target)
    words = f"the kernel says: {ack.text}" if ack.text else ""
    return from_errno(request.op, request.target, ack.errno, "; ".join(filter(None, (known, words))) or None)


def joined(requests: Sequence[Request], numbers: Sequence[int]) -> bytes:
    """Return requests as they are sent: only the last is acknowledged, but each is that is refused."""
    last = numbers[-1]
    parts = []
    for (kind, body, flags, *_), number in zip(requests, numbers, strict=True):
        parts.append(codec.request(kind, body, flags=flags | codec.ACK if number == last else flags, sequence=number))
    return b"".join(parts)


def _parts(requests: Sequence[Request]) -> list[Sequence[Request]]:
    """Return them in parts that can be sent at once."""
    found: list[Sequence[Request]] = []
    start = size = 0
    for at, one in enumerate(requests):
        length = codec.HEADER.size + len(one.body) + 3
        if at > start and (size + length > _TOGETHER or at - start == _MOST):
            found.append(requests[start:at])
            start, size = at, 0
        size += length
    if start < len(requests):
        found.append(requests[start:])
    return found


def open_netlink(net: HasFileno | None, protocol: int = ROUTE, *, put: tuple[str, str] | None = None) -> Socket:
    """Return a netlink socket of a network namespace; None: that of the calling thread.

    Parameters
    ----------
    net
        The namespace.
    protocol
        ROUTE, NETFILTER or GENERIC.
    put
        A file of /proc/sys/net and what is written to it before.

    Raises
    ------
    SyscallError, SetupFailed
        As in `isolib._kernel.sockets.open_netlink_socket`.
    """
    label = f"netlink {_NAMES.get(protocol, protocol)}"
    return Socket(open_netlink_socket(net, protocol, label, put), label)
