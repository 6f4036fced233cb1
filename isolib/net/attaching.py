"""What a network does for one who is attached: an address is taken and given back, and what his interface gets is asked for."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from isolib._kernel.handle import Rollback
from isolib.errors import PlanError
from isolib.net import requests
from isolib.net.bridge import isolation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from isolib._kernel.handle import Handle
    from isolib._kernel.netlink.socket import Request
    from isolib.net.interface import Interface
    from isolib.net.pool import Pool
    from isolib.net.values import AnyAddress

__all__ = ["close_all", "equip", "take", "tame"]


def take(
    undo: Rollback, pools: Sequence[Pool], wanted: Mapping[int, tuple[str | AnyAddress | None, str]], name: str
) -> list[AnyAddress]:
    """Return addresses, one of each subnet of a network, that nobody else has until that is undone.

    Parameters
    ----------
    undo, pools
        What takes them back, and where they come from.
    wanted
        Which, by version, and the argument that says so; None: free ones.
    name
        Of the network, for errors.

    Raises
    ------
    PlanError
        One cannot be had.
    """
    versions = {pool.subnet.version for pool in pools}
    for version, (value, what) in wanted.items():
        if value is not None and version not in versions:
            raise PlanError(f"{what}: {value}: the network {name} has no addresses of this kind")
    return [_take(undo, pool, *wanted[pool.subnet.version]) for pool in pools]


def _take(undo: Rollback, pool: Pool, wanted: str | AnyAddress | None, what: str) -> AnyAddress:
    address = pool.take(wanted, what)

    def release() -> None:
        with suppress(PlanError):  # a step may be run twice
            pool.release(address)

    undo.push(release)
    return address


def tame(port: Interface, *, isolate: bool) -> list[Request]:
    """Return the request by which a port of the bridge hears no other such port, where that is wanted."""
    return [isolation(port)] if isolate else []


def equip(pools: Sequence[Pool], taken: Sequence[AnyAddress], interface: Interface, *, default_route: bool) -> list[Request]:
    """Return the requests that give an interface its addresses, and its namespace the default route."""
    wanted = []
    for pool, address in zip(pools, taken, strict=True):
        wanted.append(requests.add_host(address, pool.subnet.prefixlen, interface.index, interface.name))
    if default_route:
        wanted += [requests.default_route(pool.gateway, interface.index) for pool in pools]
    return wanted


def close_all(handles: Sequence[Handle]) -> None:
    """Close several handles, the first first, and all of them, whatever one has to say."""
    if not handles:
        return
    with Rollback() as undo:
        for handle in reversed(handles):
            undo.adopt(handle)
