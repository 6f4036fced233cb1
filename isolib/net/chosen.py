"""The subnets of this program's networks: what is chosen overlaps none of them, and nothing of the caller's namespace."""

from __future__ import annotations

import os
from itertools import count
from threading import RLock
from typing import TYPE_CHECKING, Final, TypeVar

from isolib.net.queries import addresses, routes

if TYPE_CHECKING:
    from collections.abc import Callable

    from isolib._kernel.handle import Rollback
    from isolib.net.values import AnyNetwork

__all__ = ["choose", "keep"]

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


def choose(undo: Rollback, chooser: Callable[[list[AnyNetwork]], NetworkT]) -> NetworkT:
    """Return and `keep` what a function chooses of what is free: it is given all that is taken."""
    with _taken.lock:
        taken = [*_taken.subnets.values(), *(route.destination for route in routes(table=None))]
        taken += [address.interface.network for address in addresses()]
        return keep(undo, chooser(taken))
