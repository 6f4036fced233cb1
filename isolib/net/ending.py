"""When network namespaces have really ended: nobody is in them any more, and the kernel has cleared up behind.

Closing the last reference to a namespace takes no time; a thread of the kernel does the rest, some time later (cleanup_net).
It tells the namespaces that have a number for the dying one, and that is the *beginning* of its work (RTM_DELNSID).  There is
one such thread, and it does not begin with those that were left later before it has done with all that it took.  So a second
namespace is left when the first is told of: when that is told of, the first is gone, with all that it had.
"""

from __future__ import annotations

import os
import select
import struct
from errno import ENOBUFS
from typing import TYPE_CHECKING, Final

from isolib._kernel import seam
from isolib._kernel.hints import typed
from isolib._kernel.netlink import codec
from isolib._kernel.netlink.socket import Request
from isolib._kernel.news import News
from isolib._kernel.waiting import Deadline
from isolib.errors import PlanError
from isolib.net.subscription import LONGEST, subscribe
from isolib.net.where import check_namespace

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence
    from datetime import timedelta
    from types import TracebackType
    from typing import Self

    from isolib._kernel.netlink.codec import Message
    from isolib.types import HasFileno

__all__ = ["Ending", "dump_numbers", "ending", "give_number", "gone", "number_of"]

# linux/rtnetlink.h, linux/net_namespace.h
_NEWNSID, _DELNSID, _GETNSID = 88, 89, 90
_GROUP: Final = 28
_NUMBER, _DESCRIPTOR = 1, 3
_HEAD: Final = struct.Struct("=Bxxx")
_S32: Final = struct.Struct("=i")
#: The number of the namespace that is left last.
_LAST: Final = 0


# ---- messages ----


def give_number(number: int, fd: int) -> Request:
    """Return the request that gives a namespace a number by which another one knows it."""
    body = _HEAD.pack(0) + codec.s32(_NUMBER, number) + codec.u32(_DESCRIPTOR, fd)
    return Request(_NEWNSID, body, 0, "RTM_NEWNSID", f"namespace {number}")


def dump_numbers() -> Request:
    """Return the request for the numbers of the namespaces that one knows, which the kernel has not begun to clear up."""
    return Request(_GETNSID, _HEAD.pack(0), 0, "RTM_GETNSID", "namespaces")


def number_of(message: Message) -> int | None:
    """Return the number that a message about a namespace has, or None.

    Raises
    ------
    MalformedError
        Its attributes are no attributes.
    """
    value = codec.first(message.body, _NUMBER, _HEAD.size)
    return _S32.unpack(value)[0] if value is not None and len(value) == _S32.size else None


def gone(messages: Iterable[Message]) -> set[int]:
    """Return the numbers of the namespaces that the kernel says it has begun to clear up.

    Raises
    ------
    MalformedError
        A message is none.
    """
    return {number for one in messages if one.type == _DELNSID and (number := number_of(one)) is not None}


# ---- waiting ----


class _Watch(News[bool]):
    """The watch itself: of a namespace that nobody else has, in which the others, and the last one, have numbers."""

    _what = "the end of network namespaces"

    @typed(_what)
    def __init__(self, namespaces: Sequence[HasFileno]) -> None:
        super().__init__()
        self._is_over = False
        self._torn = False
        self._missed = False
        self._left: set[int] = set()
        try:
            self._post = self._own(seam.new_netns())
            self._last = self._own(seam.new_netns())
            self._told = self._own(subscribe(self._post, [_GROUP]))
            self._epoll.register(self._told.fileno(), select.EPOLLIN)
            asked = [give_number(number, one.fileno()) for number, one in enumerate([self._last, *namespaces])]
            self._post.netlink().send(*asked)
            self._left = set(range(len(asked)))
        except BaseException:
            self._release()
            raise

    def __repr__(self) -> str:
        return f"<watch of {len(self._left)} namespaces{': closed' if self._closed else ''}>"

    @property
    def is_over(self) -> bool:
        """Whether all of them have ended."""
        return self._is_over

    def _take(self) -> bool | None:
        # The end is told to all who wait, and again to who asks again.
        with self._lock:
            self._check_open()
            if not self._is_over:
                self._look()
                self._check_open()  # a signal handler may have closed us
            return True if self._is_over else None

    def _look(self) -> None:
        if self._torn:  # who looked last was interrupted, and may have read what is known to nobody now
            self._missed = True
        self._torn = True
        while self._hear() or self._catch_up():
            pass
        if self._left == {_LAST} and not self._last.closed:
            self._last.close()
            self._hear()  # it may be told of already
        if not self._left:
            self._is_over = True
            self._alarm.ring()  # the others that wait
        self._torn = False

    def _hear(self) -> bool:
        """Note one thing that the kernel has told; return whether there was any."""
        try:
            data, (sender, _) = self._told.recvfrom(LONGEST)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != ENOBUFS:
                raise
            self._missed = True
        else:
            if sender == 0:  # the kernel
                self._left -= gone(codec.messages(data))
        return True

    def _catch_up(self) -> bool:
        """Look who is left, where some of what was told is lost; return whether it was."""
        # Not before the rest is heard: until then the kernel drops what it would tell, and does not say so again.
        if self._missed:
            self._missed = False
            self._ask()
            return True
        return False

    def _ask(self) -> None:
        there = {number_of(message) for message in self._post.netlink().dump(dump_numbers())}
        self._left &= {number for number in there if number is not None}


class Ending:
    """The end of some network namespaces, for who waits for it in a thread or by ``await`` (asyncio and trio).

    It is watched from when this was made until it is closed, by whichever handles and processes the namespaces are held.
    """

    def __init__(self, namespaces: Sequence[HasFileno]) -> None:
        self._watch = _Watch(namespaces)

    def __repr__(self) -> str:
        state = "over" if self._watch.is_over else "to come"
        return f"<Ending {state}>"

    def wait(self, timeout: float | timedelta | None = None) -> bool:
        """Wait until all of the namespaces have ended.

        Parameters
        ----------
        timeout
            Seconds or a timedelta; None: no limit.

        Returns
        -------
        bool
            True: they have, and nothing of what was in them is there.  False: not in time.

        Raises
        ------
        ClosedError
            This was closed, perhaps meanwhile.
        """
        return self._watch.wait_until(Deadline(timeout)) is not None

    def __await__(self) -> Generator[object, None, bool]:
        return self._watch._wait_async().__await__()  # noqa: SLF001 -- its other half

    def fileno(self) -> int:
        """Return a descriptor that is readable when it is worth while to ask (``wait(0)``), for other event loops.

        Raises
        ------
        ClosedError
            This was closed.
        """
        return self._watch.fileno()

    def close(self) -> None:
        """Stop watching, and end the waiting of others; again is nothing."""
        self._watch.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def ending(*namespaces: HasFileno) -> Ending:
    """Return what tells when network namespaces have ended, to be asked for *before* they are closed; a context manager.

    Closing a handle returns at once; the kernel clears up behind, within milliseconds as a rule, and later where much is to be
    done.  Who makes the next thing in a namespace that is kept, under the same names, or counts what is left, waits.

    Parameters
    ----------
    *namespaces
        Handles; `Network.ending` and `Topology.ending` are for those.

    Raises
    ------
    PlanError
        There are none, or one is no network namespace.
    SyscallError, SetupFailed
        The kernel refused.
    ClosedError
        A handle is closed.

    Notes
    -----
    A namespace lives on while a process, a socket, a mount or another handle is in it or for it, and waiting for its end then
    takes as long as that.  It takes two namespaces more while it is open, and about as long as making those.  Privileges: none.
    Kernel: rtnetlink(7), RTM_DELNSID and RTNLGRP_NSID.

    Examples
    --------
    >>> from isolib import new_netns, new_veth
    >>> from isolib.net.queries import links
    >>> kept, web = new_netns(), new_netns()
    >>> cable = new_veth(kept, web)
    >>> with ending(web) as end:
    ...     web.close()
    ...     end.wait(), [link.name for link in links(kept)]
    (True, ['lo'])
    >>> cable.close(), kept.close()
    (None, None)
    """
    found: dict[tuple[int, int], HasFileno] = {}
    for at, one in enumerate(namespaces):
        namespace = check_namespace(one, f"namespaces[{at}]")
        if namespace is None:
            raise PlanError(f"namespaces[{at}]: a handle is wanted, for the calling thread's own namespace does not end so")
        status = os.fstat(namespace.fileno())
        found[status.st_dev, status.st_ino] = namespace
    if not found:
        raise PlanError("namespaces: one at least is wanted")
    return Ending(list(found.values()))
