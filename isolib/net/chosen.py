"""The subnets of this program's networks: what is chosen overlaps none of them, and nothing of the caller's namespace.

What is given overlaps nothing of a namespace in which both would be reached, or meant to be.
"""

from __future__ import annotations

import os
from itertools import count
from threading import RLock
from typing import TYPE_CHECKING, Final, TypeVar

from isolib.errors import PlanError
from isolib.net import parsing, requests
from isolib.net.pool import BROAD
from isolib.net.where import Where

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from isolib._kernel.handle import Rollback
    from isolib.net.values import AnyNetwork, Route

__all__ = ["check_apart", "check_beyond", "choose", "keep"]

NetworkT = TypeVar("NetworkT", bound="AnyNetwork")


class _Taken:
    """What has been given or chosen, until it is given back; a fork keeps its parent's, whose networks are still there."""

    def __init__(self) -> None:
        self.lock = RLock()
        self.subnets: dict[int, AnyNetwork] = {}
        self.numbers = count(1)


_taken: Final = _Taken()


def _renew() -> None:
    _taken.lock = RLock()  # who holds the parent's is not in a fork


os.register_at_fork(after_in_child=_renew)


def keep(undo: Rollback, subnet: NetworkT) -> NetworkT:
    """Return a subnet, which is not chosen by others until that is undone."""
    key = next(_taken.numbers)
    undo.push(_taken.subnets.pop, key, None)
    _taken.subnets[key] = subnet
    return subnet


def choose(undo: Rollback, chooser: Callable[[list[AnyNetwork]], NetworkT], version: int) -> NetworkT:
    """Return and `keep` what a function chooses of what is free: it is given all that is taken of a version of IP."""
    with _taken.lock:
        here = Where(None).socket
        taken = [*_taken.subnets.values(), *map(parsing.parse_destination, here.dump(requests.dump_routes(version)))]
        found = map(parsing.parse_address, here.dump(requests.dump_addresses(version)))
        return keep(undo, chooser([*taken, *(address.interface.network for address in found)]))


def check_apart(where: Where, subnets: Sequence[AnyNetwork], is_own: Callable[[int], bool]) -> None:
    """Raise `PlanError` where a namespace has a way to a part of one of these subnets that is to lie at a link of it now.

    Which of the two its packets would take were chance.  A way to much more than the subnet does not matter: the smaller
    network counts; but what lies at one of its links, and a part of that, cannot lie at another.

    Parameters
    ----------
    where
        The namespace.
    subnets
        What is to lie at a link.
    is_own
        Says whether the link of a number leads to the same network already.
    """
    for route in _ways(where, subnets, is_own):
        for subnet in subnets:
            is_wider = route.destination.prefixlen < subnet.prefixlen
            if _meets(route, subnet) and not (is_wider and _is_far(route)):
                name = _name(where, route.index)
                raise PlanError(f"ns: {subnet} overlaps {route.destination}, to which this namespace has a way: {name}")


def check_beyond(here: Where, subnets: Sequence[AnyNetwork]) -> None:
    """Raise `PlanError` where a network with a way out would hide by its own subnet what lies at a link of the host.

    What isolib has put there does not count: nobody wants to reach the cables of other networks.
    """
    for route in _ways(here, subnets):
        for subnet in subnets:
            if _meets(route, subnet) and not _is_far(route):
                name = _name(here, route.index)
                if not name.startswith("isolib-"):
                    what = "subnet" if subnet.version == 4 else "ipv6"  # noqa: PLR2004
                    by = f"which {name} of the caller's namespace leads to, and which could not be reached from the network"
                    raise PlanError(f"{what}: {subnet} overlaps {route.destination}, {by}")


def _ways(where: Where, subnets: Sequence[AnyNetwork], is_own: Callable[[int], bool] = lambda _: False) -> Iterator[Route]:
    """Yield the routes of the main table to where subnets may be, but for those by links that are the network's own."""
    for version in {subnet.version for subnet in subnets}:
        for message in where.socket.dump(requests.dump_routes(version)):
            # Most are others, and need not be read whole.
            table, length = parsing.parse_extent(message)
            if table == "main" and length > BROAD:
                way = parsing.parse_way(message)
                if way is None or not is_own(way):
                    yield parsing.parse_route(message)


def _meets(route: Route, subnet: AnyNetwork) -> bool:
    return route.destination.version == subnet.version and route.destination.overlaps(subnet)


def _is_far(route: Route) -> bool:
    """Return whether it leads by a gateway, or nowhere."""
    return route.gateway is not None or route.index is None


def _name(where: Where, index: int | None) -> str:
    if index is None:
        return "to nowhere, or by several links"
    return parsing.parse_link(where.socket.ask(requests.get_link_by_index(index, f"link {index}"))[0]).name
