"""A netlink socket, which belongs to the network namespace that it was made in, whoever uses it.

Several requests go in one send, and the kernel carries them out one after the other: **a refused one does not keep those after
it from being tried**.  So what is sent together is undone together by who sends it, or is a batch of nftables, which the kernel
does all of or nothing.
"""

from __future__ import annotations

import os
import struct
from errno import EINTR
from itertools import count
from threading import Lock
from typing import TYPE_CHECKING, Final, NamedTuple

from isolib._kernel import calls
from isolib._kernel.handle import home
from isolib._kernel.hints import hint
from isolib._kernel.netlink import codec
from isolib._kernel.sockets import open_socket
from isolib.errors import ClosedError, from_errno

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from isolib._kernel.handle import Fd
    from isolib._kernel.netlink.codec import Ack, Message
    from isolib.errors import SyscallError
    from isolib.types import HasFileno

__all__ = ["GENERIC", "NETFILTER", "ROUTE", "Request", "Socket", "open_netlink"]

# linux/netlink.h
ROUTE: Final = 0
NETFILTER: Final = 12
GENERIC: Final = 16
_NAMES: Final = {ROUTE: "route", NETFILTER: "netfilter", GENERIC: "generic"}
_AF_NETLINK: Final = 16
_SOCK_RAW: Final = 3

#: linux/netfilter/nfnetlink.h: the marks around a batch, and the structure nfgenmsg of the mark, with the subsystem's number.
_BATCH_BEGIN: Final = 0x10
_BATCH_END: Final = 0x11
_MARK: Final = struct.Struct(">BBH")

#: A dump comes in parts of 32 KiB at the most; other answers are shorter, several of them come one by one.
_PART: Final = 65536
#: Bytes sent at once: the kernel wants them in one piece of its memory, and the answers must have room in the socket.
_TOGETHER: Final = 32768
_TRIES: Final = 20


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
    target
        The object that it is about, for errors.
    hints
        What an error number means for this request.
    """

    type: int
    body: bytes
    flags: int
    op: str
    target: str
    hints: Mapping[int, str] = {}


class Socket:
    """A netlink socket and the requests that go through it; threads take turns."""

    __slots__ = ("__weakref__", "_fd", "_home", "_label", "_lock", "_numbers")

    def __init__(self, fd: Fd, label: str) -> None:
        calls.netlink_prepare(fd.fileno(), label)
        self._fd = fd
        self._label = label
        self._home = home()
        self._lock = Lock()
        self._numbers = count(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Socket {self._label}{' closed' if self._fd.closed else ''}>"

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd.fileno()

    def close(self) -> None:
        """Close it; again is nothing.  Tables of nftables that it owns go with it."""
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
        for part in _parts(requests):
            first = next(self._numbers)
            numbers = [first, *(next(self._numbers) for _ in part[1:])]
            last = len(part) - 1
            sent = b"".join(
                codec.request(one.type, one.body, flags=one.flags | (codec.ACK if index == last else 0), sequence=number)
                for index, (number, one) in enumerate(zip(numbers, part, strict=True))
            )
            answers += self._talk(sent, part, numbers)
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
        for left in reversed(range(_TRIES)):
            number = next(self._numbers)
            sent = codec.request(request.type, request.body, flags=request.flags | codec.DUMP, sequence=number)
            found = self._talk(sent, (request,), [number])[0]
            if not any(message.flags & codec.DUMP_INTERRUPTED for message in found):
                return found
            if not left:
                break
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
        begin, *numbers, end = (next(self._numbers) for _ in range(len(requests) + 2))
        mark = _MARK.pack(0, 0, subsystem)
        last = len(requests) - 1
        sent = b"".join(
            (
                codec.request(_BATCH_BEGIN, mark, sequence=begin),
                *(
                    codec.request(one.type, one.body, flags=one.flags | (codec.ACK if index == last else 0), sequence=number)
                    for index, (number, one) in enumerate(zip(numbers, requests, strict=True))
                ),
                codec.request(_BATCH_END, mark, sequence=end),
            )
        )
        # What is wrong with the whole of it is said of the mark.
        return self._talk(sent, (requests[0], *requests), [begin, *numbers], fatal=begin)[1:]

    def _talk(
        self, sent: bytes, requests: Sequence[Request], numbers: list[int], *, fatal: int | None = None
    ) -> list[list[Message]]:
        if self._home != home():
            raise ClosedError(f"{self!r} belongs to the process that made it")
        fd = self._fd.fileno()
        heard = _Heard(numbers, fatal)
        try:
            with self._lock:
                os.write(fd, sent)
                while not heard.all:
                    for message in codec.messages(os.read(fd, _PART)):
                        heard.take(message)
        except OSError as error:
            errno = error.errno or 0
            raise from_errno(requests[0].op, requests[0].target, errno, hint("netlink", errno)) from None
        if heard.refused:
            first = min(heard.refused)
            raise refusal(requests[first], heard.refused[first])
        return heard.answers


class _Heard:
    """What has come back to requests with these numbers."""

    def __init__(self, numbers: list[int], fatal: int | None) -> None:
        self.answers: list[list[Message]] = [[] for _ in numbers]
        self.refused: dict[int, Ack] = {}
        self.all = False
        self._last = {numbers[-1], fatal}
        self._index = {number: at for at, number in enumerate(numbers)}

    def take(self, message: Message) -> None:
        at = self._index.get(message.sequence)
        if at is None:  # an answer to somebody who was interrupted
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


def refusal(request: Request, ack: Ack) -> SyscallError:
    """Return the exception for a request that the kernel refused: its own words, and what would help."""
    known = request.hints.get(ack.errno) or hint(request.op, ack.errno, request.target)
    words = f"the kernel says: {ack.text}" if ack.text else ""
    return from_errno(request.op, request.target, ack.errno, "; ".join(filter(None, (known, words))) or None)


def _parts(requests: Sequence[Request]) -> list[Sequence[Request]]:
    """Return them in parts that can be sent at once."""
    found: list[Sequence[Request]] = []
    start = size = 0
    for at, one in enumerate(requests):
        length = codec.HEADER.size + len(one.body) + 3
        if at > start and size + length > _TOGETHER:
            found.append(requests[start:at])
            start, size = at, 0
        size += length
    if start < len(requests):
        found.append(requests[start:])
    return found


def open_netlink(net: HasFileno | None, protocol: int = ROUTE) -> Socket:
    """Return a netlink socket of a network namespace; None: that of the calling thread.

    Raises
    ------
    SyscallError, SetupFailed
        As in `isolib._kernel.sockets.open_socket`.
    """
    label = f"netlink {_NAMES.get(protocol, protocol)}"
    return Socket(open_socket(net, _AF_NETLINK, _SOCK_RAW, protocol, label=label), label)
