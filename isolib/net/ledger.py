"""What there is in a namespace, as far as it was told, and what has changed: messages in, changes out, and no kernel asked.

The kernel tells of everything twice or more, and of some things not at all: routes of IPv4 that go with their link.  So what is
told is compared with what is known, and now and then with all that there is.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from isolib._kernel.netlink import codec
from isolib.net import parsing
from isolib.net.values import Address, Link, Neighbour, Route

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator

    from isolib._kernel.netlink.codec import Message

__all__ = ["KINDS", "Change", "Ledger", "Thing"]

Thing: TypeAlias = Link | Address | Route | Neighbour

#: RTM_F_CLONED: a route that was learned of another one, and is no entry of a table.
_CLONED: Final = 0x200
_ROUTE_FLAGS: Final = slice(8, 12)


@dataclass(frozen=True, slots=True)
class Change:
    """Something that has changed in a namespace.

    Attributes
    ----------
    kind
        "added", "changed" or "removed"; or "lost": more happened than there was room for, and some of it was not told.  What
        is different since then follows as if it had just happened.
    what
        A `Link`, `Address`, `Route` or `Neighbour`, as it is now, or was last; None where something was lost.
    before
        As it was before, where it was known.
    """

    kind: Literal["added", "changed", "removed", "lost"]
    what: Thing | None
    before: Thing | None = None


class _Kind(NamedTuple):
    """How things of a kind are told of.

    Attributes
    ----------
    new
        The type of the message that there is one; that it is gone has the next number.
    groups
        RTNLGRP_* (linux/rtnetlink.h).
    parse
        From a message to the thing, or None: it is none.
    key
        What makes it the same thing when it changes.
    """

    new: int
    groups: tuple[int, ...]
    parse: Callable[[Message], Thing | None]
    key: Callable[..., Hashable]


def _link(message: Message) -> Link | None:
    # A bridge tells of its ports with messages of its own, that one has left it as if the link were gone.
    return None if message.body[:1] == bytes([parsing.AF_BRIDGE]) else parsing.parse_link(message)


def _address(message: Message) -> Address | None:
    return parsing.parse_address(message) if parsing.is_of_ip(message) else None


def _route(message: Message) -> Route | None:
    cloned = int.from_bytes(message.body[_ROUTE_FLAGS], sys.byteorder) & _CLONED
    return parsing.parse_route(message) if parsing.is_of_ip(message) and not cloned else None


def _neighbour(message: Message) -> Neighbour | None:
    # The kernel makes entries of its own for groups and for itself, of which it tells nobody.
    found = parsing.parse_neighbour(message)
    return None if found is None or found.state == "noarp" else found


KINDS: Final[dict[type[Thing], _Kind]] = {
    Link: _Kind(16, (1,), _link, lambda link: link.index),
    Address: _Kind(20, (5, 9), _address, lambda address: (address.index, address.interface, address.peer)),
    Route: _Kind(24, (7, 11), _route, lambda route: route),
    Neighbour: _Kind(28, (3,), _neighbour, lambda neighbour: (neighbour.index, neighbour.address)),
}
_BY_TYPE: Final = {kind.new + gone: (cls, not gone) for cls, kind in KINDS.items() for gone in (0, 1)}


class Ledger:
    """What is known of some kinds of things.

    Attributes
    ----------
    is_stale
        Whether something has happened that routes go with, of which nobody is told.
    """

    def __init__(self, kinds: Iterable[type[Thing]]) -> None:
        self.is_stale = False
        self._known: dict[type[Thing], dict[Hashable, Thing]] = {kind: {} for kind in kinds}

    def take(self, message: Message) -> Iterator[Change]:
        """Note what a message tells, and yield what is news.

        Raises
        ------
        MalformedError
            It is no message of its type.
        """
        cls, is_there = _BY_TYPE.get(message.type, (None, False))
        if cls is None or cls not in self._known:
            return
        kind = KINDS[cls]
        thing = kind.parse(message)
        if thing is None:
            return
        if is_there:
            yield from self._note(cls, thing, replaces=bool(message.flags & codec.REPLACE))
            return
        before = self._known[cls].pop(kind.key(thing), None)
        self.is_stale |= cls is not Route and cls is not Neighbour
        if before is not None:
            yield Change("removed", thing, before)

    def _note(self, cls: type[Thing], thing: Thing, *, replaces: bool = False) -> Iterator[Change]:
        known = self._known[cls]
        key = KINDS[cls].key(thing)
        before = known.pop(key, None)
        if before is None and replaces and isinstance(thing, Route):
            before = self._replaced(thing)
        known[key] = thing
        if before is None:
            yield Change("added", thing)
        elif _plain(before) != _plain(thing):
            self.is_stale |= isinstance(before, Link) and isinstance(thing, Link) and before.up and not thing.up
            yield Change("changed", thing, before)

    def _replaced(self, route: Route) -> Thing | None:
        """Forget the route whose place another one has taken, and return it."""
        place = route.destination, route.table, route.metric
        known = self._known[Route]
        for other in known.values():
            if isinstance(other, Route) and (other.destination, other.table, other.metric) == place:
                return known.pop(other)
        return None

    def compare(self, cls: type[Thing], messages: Iterable[Message]) -> Iterator[Change]:
        """Note all that there is of a kind, and yield what is different from what was known."""
        kind = KINDS[cls]
        things = [thing for thing in map(kind.parse, messages) if thing is not None]
        known = self._known[cls]
        for key in known.keys() - {kind.key(thing) for thing in things}:
            gone = known.pop(key)
            yield Change("removed", gone, gone)
        for thing in things:
            yield from self._note(cls, thing)


def _plain(thing: Thing) -> Thing:
    """Return a thing without what changes all the time."""
    return replace(thing, stats=None) if isinstance(thing, Link) and thing.stats is not None else thing
