"""What changes in a network namespace, as the kernel tells it: links, addresses, routes, neighbours."""

from __future__ import annotations

import select
from collections.abc import Iterable
from errno import ENOBUFS
from typing import TYPE_CHECKING, Final

from isolib._kernel.hints import typed
from isolib._kernel.netlink import codec
from isolib._kernel.netlink.socket import open_netlink
from isolib._kernel.news import News
from isolib.errors import PlanError
from isolib.net import requests
from isolib.net.ledger import KINDS, Change, Ledger
from isolib.net.subscription import LONGEST, subscribe
from isolib.net.values import Address, Link, Neighbour, Route
from isolib.net.where import check_namespace

if TYPE_CHECKING:
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


class Changes(News[Change]):
    """What changes in a network namespace from now on: an iterator, for `for` and for `async for` (asyncio and trio).

    It ends when `close` was called, by whichever thread.  `fileno` is readable when there is something, for other event loops.
    Several threads may take from it; each change is given once.  The namespace lives on as long as this is open.

    What is undone before it was seen may not be told; what the kernel tells again and again is told once.
    """

    _what = "the changes of a network namespace"

    @typed(_what)
    def __init__(self, net: HasFileno | None, of: frozenset[type[Thing]]) -> None:
        super().__init__()
        self._of = of
        self._kinds = of | _BEFORE_ROUTES if Route in of else of
        self._ledger = Ledger(self._kinds)
        self._due = set(self._kinds)
        self._torn = False
        try:
            groups = [group for kind in self._kinds for group in KINDS[kind].groups]
            self._news = self._own(subscribe(net, groups))
            self._asking = self._own(open_netlink(net))
            self._epoll.register(self._news.fileno(), select.EPOLLIN)
            # What changed since it was subscribed is known already, and nothing to tell.
            while self._listen():
                pass
            self._found.clear()
        except BaseException:
            self._release()
            raise

    def __repr__(self) -> str:
        kinds = ", ".join(kind.__name__ for kind in KINDS if kind in self._of)
        return f"<Changes of {kinds}{': closed' if self._closed else ''}>"

    def _look(self) -> None:
        while not self._found and not self._closed and self._listen():
            pass

    def _listen(self) -> bool:
        """Look at what the kernel has told; return whether it was anything."""
        if self._torn:  # who looked last was interrupted, and may have read something that is known to nobody now
            self._due.update(self._kinds)
        self._torn = True
        heard, has_all = bool(self._due), False
        for _ in range(_TOGETHER):
            try:
                data, (sender, _) = self._news.recvfrom(LONGEST)
            except BlockingIOError:
                has_all = True
                break
            except OSError as error:
                if error.errno != ENOBUFS:
                    raise
                self._tell([Change("lost", None)])
                self._due.update(self._kinds)
            else:
                if sender == 0:  # the kernel; root of the namespace could tell something, too
                    self._note(change for message in codec.messages(data) for change in self._ledger.take(message))
            heard = True
        if self._ledger.is_stale and Route in self._of:
            self._due.add(Route)
        # What is still to be read is older than what there is now.  And after a loss, until all is read, the kernel drops what
        # it would tell, and does not say so again.
        for kind in [kind for kind in KINDS if kind in self._due and has_all]:
            self._note(self._ledger.compare(kind, self._asking.dump(_DUMPS[kind]())))
            self._due.discard(kind)
        self._ledger.is_stale = False
        self._torn = False
        return heard

    def _note(self, found: Iterable[Change]) -> None:
        self._tell(change for change in found if type(change.what) in self._of)


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
