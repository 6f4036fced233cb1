"""What is said to the kernel in several network namespaces, in turn and in one call.

Each turn is one send, as `Socket.send`, and may be about a namespace that nobody has spoken with yet: a socket is made on the
way there.  The first turn in which something is refused is the last; what was done before is undone by who has asked for it.
"""

from __future__ import annotations

from errno import ENOENT
from functools import partial
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib._kernel.netlink import codec
from isolib._kernel.netlink.socket import ROUTE, Socket, joined, open_netlink, refused
from isolib._kernel.sockets import check_refusal, put_in
from isolib.errors import SyscallError

if TYPE_CHECKING:
    from collections.abc import Callable

    from isolib._kernel.handle import Fd
    from isolib._kernel.netlink.codec import Message
    from isolib._kernel.netlink.socket import Request
    from isolib.types import HasFileno

__all__ = ["Turn", "converse"]

_LABEL: Final = "netlink route"
_ENDS: Final = frozenset({codec.ERROR, codec.DONE})


class Turn:
    """What is said in one namespace at once.

    Parameters
    ----------
    net
        The namespace; None: that of the calling thread.
    socket
        Its rtnetlink socket; None: there is none yet, and when the turn was taken this is a new one.  Of one conversation, one
        namespace may be new, and have one turn.
    requests
        One or more, as many as go in one send.
    put
        A file of /proc/sys/net and what is written to it before; where there is no such file, nothing is.
    """

    __slots__ = ("answers", "net", "put", "requests", "socket")

    def __init__(
        self,
        net: HasFileno | None,
        socket: Socket | None,
        requests: tuple[Request, ...],
        put: tuple[str, str] | None = None,
    ) -> None:
        self.net = net
        self.socket = socket
        self.requests = requests
        self.put = put
        #: What those of the requests were answered that ask for something, in their order.
        self.answers: list[Message] = []


def converse(turns: tuple[Turn, ...]) -> None:
    """Take turns, in their order.

    Raises
    ------
    SyscallError, SetupFailed, ThreadStranded
        What was refused first, as in `Socket.send` and `isolib._kernel.sockets.open_netlink_socket`.
    ClosedError
        A socket, or a namespace, is closed.
    """
    call: Callable[[], None] = partial(_hold, turns)
    # In one order, that no two threads wait for each other.
    for socket in sorted({turn.socket for turn in turns if turn.socket is not None}, key=id):
        call = partial(socket.lend, call)
    call()


def _hold(turns: tuple[Turn, ...]) -> None:
    if any(turn.socket is not None and turn.socket.has_interrupted for turn in turns):
        _hold_apart(turns)
        return
    said: list[calls.Said] = []
    numbers = []
    for turn in turns:
        socket, requests = turn.socket, turn.requests
        own = list(range(1, len(requests) + 1)) if socket is None else socket.numbers(len(requests))
        numbers.append(own)
        net = -1 if turn.net is None or (socket is not None and turn.put is None) else turn.net.fileno()
        fd = -1 if socket is None else socket.fileno()
        said.append((fd, net, ROUTE, joined(requests, own), own[-1], turn.put))
    conversation = calls.Conversation(said)
    while True:
        _own(turns, conversation.hold())
        at = conversation.done
        if at == len(turns):
            break
        try:
            conversation.check(_LABEL)
        except SyscallError as error:
            conversation.change(at, _by_other_ways(turns[at], error))
        else:
            break
    all_heard = conversation.heard()
    for turn, heard in zip(turns, all_heard, strict=True):
        turn.answers = [message for message in codec.messages(heard) if message.type not in _ENDS]
    if at < len(turns):
        raise refused(turns[at].requests, numbers[at], all_heard[at], conversation.error)


def _hold_apart(turns: tuple[Turn, ...]) -> None:
    """Take turns in a call for each, between which whoever was interrupted gets his answers."""
    for turn in turns:
        _prepare(turn)
        assert turn.socket is not None  # noqa: S101 - it has one now
        turn.answers = [message for answer in turn.socket.send(*turn.requests) for message in answer]


def _own(turns: tuple[Turn, ...], made: Fd | None) -> None:
    if made is not None:
        next(turn for turn in turns if turn.socket is None).socket = Socket(made, _LABEL)


def _by_other_ways(turn: Turn, error: SyscallError) -> int:
    """Do what comes before a turn, and was refused; return the socket for it, or -1."""
    if turn.put is None or error.errno != ENOENT:
        check_refusal(error, _LABEL)
        _prepare(turn)
    turn.put = None
    return -1 if turn.socket is None else turn.socket.fileno()


def _prepare(turn: Turn) -> None:
    """Do what comes before a turn."""
    try:
        _send_somebody(turn)
    except SyscallError as error:
        if turn.put is None or error.errno != ENOENT:
            raise
        turn.put = None
        _send_somebody(turn)
    turn.put = None


def _send_somebody(turn: Turn) -> None:
    if turn.socket is None:
        turn.socket = open_netlink(turn.net, put=turn.put)
    elif turn.put is not None:
        put_in(turn.net, *turn.put)
