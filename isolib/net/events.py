"""What changes in a network namespace, as the kernel tells it: links, addresses, routes, neighbours."""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Iterable
from errno import ENOBUFS
from threading import RLock
from typing import TYPE_CHECKING, Final
from weakref import ref

from isolib._kernel.handle import Epoll, Fd, Rollback, home
from isolib._kernel.hints import typed
from isolib._kernel.netlink import codec
from isolib._kernel.netlink.socket import open_netlink
from isolib._kernel.waiting import Alarm, Deadline, poll, readable
from isolib.errors import ClosedError, PlanError
from isolib.net import requests
from isolib.net.ledger import KINDS, Change, Ledger
from isolib.net.news import LONGEST, subscribe
from isolib.net.values import Address, Link, Neighbour, Route
from isolib.net.where import check_namespace

if TYPE_CHECKING:
    from datetime import timedelta
    from types import TracebackType
    from typing import Self

    from isolib.net.ledger import Thing
    from isolib.types import HasFileno

__all__ = ["Change", "Changes", "changes"]

#: Messages that are looked at before somebody gets what they say.
_TOGETHER: Final = 64

_DUMPS: Final = {
    Link: requests.dump_links,
    Address: requests.dump_addresses,
    Route: requests.dump_routes,
    Neighbour: requests.dump_neighbours,
}
#: With these, routes may go without a word.
_BEFORE_ROUTES: Final = frozenset({Link, Address})


class _Waiter:
    """Who waits: known as long as he has this, for an interrupt may keep him from saying that he does no longer."""

    __slots__ = ("__weakref__",)


class Changes:
    """What changes in a network namespace from now on: an iterator, for `for` and for `async for` (asyncio and trio).

    It ends when `close` was called, by whichever thread.  `fileno` is readable when there is something, for other event loops.
    Several threads may take from it; each change is given once.  The namespace lives on as long as this is open.

    What is undone before it was seen may not be told; what the kernel tells again and again is told once.
    """

    def __init__(self, net: HasFileno | None, of: frozenset[type[Thing]]) -> None:
        self._lock = RLock()  # of what follows; nobody waits while he holds it, but a signal handler may close us there
        self._found: deque[Change] = deque()
        self._waiting: list[ref[_Waiter]] = []
        self._closed = False
        self._home = home()
        self._of = of
        self._kinds = of | _BEFORE_ROUTES if Route in of else of
        self._ledger = Ledger(self._kinds)
        self._due = set(self._kinds)
        self._torn = False
        self._is_marked = False
        with Rollback() as undo, typed("the changes of a network namespace"):
            self._alarm = Alarm()
            undo.push(self._alarm.close)
            self._news = subscribe(net, [group for kind in self._kinds for group in KINDS[kind].groups])
            undo.push(self._news.close)
            self._asking = open_netlink(net)
            undo.push(self._asking.close)
            mark = Fd.take(os.eventfd, 0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            assert mark is not None  # noqa: S101 - os.eventfd raises
            self._mark = undo.adopt(mark)
            self._epoll = Epoll()
            undo.push(self._epoll.close)
            for fd in (self._alarm, self._news, self._mark):
                self._epoll.register(fd.fileno(), select.EPOLLIN)
            # What changed since it was subscribed is known already, and nothing to tell.
            while self._listen():
                pass
            self._found.clear()
            undo.dismiss()

    def __repr__(self) -> str:
        kinds = ", ".join(kind.__name__ for kind in KINDS if kind in self._of)
        return f"<Changes of {kinds}{': closed' if self._closed else ''}>"

    # ---- taking ----

    def wait(self, timeout: float | timedelta | None = None) -> Change | None:
        """Wait for the next change.

        Parameters
        ----------
        timeout
            Seconds or a timedelta; None: no limit.

        Returns
        -------
        Change or None
            None: there was none in time.

        Raises
        ------
        ClosedError
            This was closed, perhaps meanwhile.
        """
        deadline = Deadline(timeout)
        waiter = self._enter()
        try:
            while (change := self._take()) is None:
                if not poll(self._epoll, deadline.milliseconds()) and deadline.is_over:
                    return None
            return change
        finally:
            self._leave(waiter)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Change:
        try:
            change = self.wait()
        except ClosedError:
            raise StopIteration from None
        assert change is not None  # noqa: S101 - there was no deadline
        return change

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        try:
            waiter = self._enter()
            try:
                while (change := self._take()) is None:
                    # Of each waiter's own: an event loop knows one waiter for a descriptor.
                    with typed("the changes of a network namespace"):
                        own = Fd.take(os.dup, self._epoll.fileno())
                    assert own is not None  # noqa: S101 - os.dup raises
                    with own:
                        await readable(own.fileno())
                return change
            finally:
                self._leave(waiter)
        except ClosedError:
            raise StopAsyncIteration from None

    def _take(self) -> Change | None:
        """Return what is there; None: wait."""
        with self._lock:
            while not self._found and not self._closed and self._listen():
                pass
            if self._closed:
                raise ClosedError(f"{self!r} cannot be used any more")
            change = self._found.popleft() if self._found else None
            if bool(self._found) != self._is_marked:  # for the others who wait, and for who waits for `fileno`
                self._turn_mark()
            return change

    def _turn_mark(self) -> None:
        self._is_marked = not self._is_marked
        if self._is_marked:
            os.eventfd_write(self._mark.fileno(), 1)
        else:
            os.eventfd_read(self._mark.fileno())

    def _listen(self) -> bool:
        """Look at what the kernel has told; return whether it was anything."""
        if self._torn:  # who looked last was interrupted, and may have read something that is known to nobody now
            self._due.update(self._kinds)
        self._torn = True
        heard = bool(self._due)
        for _ in range(_TOGETHER):
            try:
                data, (sender, _) = self._news.recvfrom(LONGEST)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != ENOBUFS:
                    raise
                self._found.append(Change("lost", None))
                self._due.update(self._kinds)
            else:
                if sender == 0:  # the kernel; root of the namespace could tell something, too
                    self._note(change for message in codec.messages(data) for change in self._ledger.take(message))
            heard = True
        if self._ledger.is_stale and Route in self._of:
            self._due.add(Route)
        for kind in [kind for kind in KINDS if kind in self._due]:
            self._note(self._ledger.compare(kind, self._asking.dump(_DUMPS[kind]())))
            self._due.discard(kind)
        self._ledger.is_stale = False
        self._torn = False
        return heard

    def _note(self, found: Iterable[Change]) -> None:
        self._found.extend(change for change in found if type(change.what) in self._of)

    def fileno(self) -> int:
        """Return a descriptor that is readable when there is something to `wait` for.

        Raises
        ------
        ClosedError
            This was closed.
        """
        if self._closed:
            raise ClosedError(f"{self!r} cannot be used any more")
        return self._epoll.fileno()

    # ---- the end ----

    def _enter(self) -> _Waiter:
        if self._home != home():
            raise ClosedError(f"{self!r} belongs to another process: this one is a fork of it")
        with self._lock:
            if self._closed:
                raise ClosedError(f"{self!r} cannot be used any more")
            waiter = _Waiter()
            self._waiting.append(ref(waiter))
            return waiter

    def _leave(self, waiter: _Waiter) -> None:
        with self._lock:
            self._waiting = [other for other in self._waiting if other() not in {None, waiter}]
            if self._closed and not self._waiting:
                self._release()

    def close(self) -> None:
        """Listen no longer, and end the waiting of others; again is nothing."""
        if self._home != home():  # nobody else uses it here, and nobody may be left to release the lock
            self._release()
            return
        with self._lock:
            self._closed = True
            self._alarm.ring()
            # Else the last of those does it: a descriptor that is waited for must not change its meaning.
            if all(waiter() is None for waiter in self._waiting):
                self._release()

    def _release(self) -> None:
        self._closed = True
        self._epoll.close()
        self._mark.close()
        self._asking.close()
        self._news.close()
        self._alarm.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def changes(ns: HasFileno | None = None, *, of: Iterable[type[Thing]] = (Link, Address, Route, Neighbour)) -> Changes:
    """Return what tells of the changes in a network namespace, from now on until it is closed; a context manager.

    Parameters
    ----------
    ns
        The namespace; None: that of the calling thread.
    of
        Of what: some of `Link`, `Address`, `Route` and `Neighbour`.

    Raises
    ------
    PlanError
        There are no changes of what was asked for.
    SyscallError, SetupFailed
        The kernel refused.
    ClosedError
        The handle of the namespace is closed.

    Notes
    -----
    Where more changes at once than there is room for, a `Change` of the kind "lost" says so, and then what is different.
    Privileges as for `links`.  Kernel: rtnetlink(7), RTNLGRP_LINK and others.

    Examples
    --------
    >>> import isolib
    >>> ns = isolib.new_netns()
    >>> with changes(ns, of=[Link]) as news, isolib.net.new_bridge("br0", ns=ns):
    ...     change = next(news)
    >>> change.kind, change.what.name
    ('added', 'br0')
    >>> ns.close()
    """
    net = check_namespace(ns, "ns")
    kinds: object = of
    wanted = list(kinds) if isinstance(kinds, Iterable) else []
    if not wanted or any(kind not in list(KINDS) for kind in wanted):
        raise PlanError(f"of: some of Link, Address, Route and Neighbour are wanted, not {of!r}")
    return Changes(net, frozenset(wanted))
