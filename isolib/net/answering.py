"""Who answers questions about names in a network, where somebody has one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isolib.net.names import Zone
from isolib.net.uplink import host_resolvers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolib._kernel.handle import Handle
    from isolib.net.names import Names
    from isolib.net.pool import Pool
    from isolib.types import HasFileno

__all__ = ["answer"]


def answer(ns: HasFileno, pools: Sequence[Pool], names: Names, *, internet: bool) -> Handle:
    """Begin to answer questions about names at the gateway's addresses; others' are passed on where there is a way out."""
    from isolib.net.responder import respond_at  # noqa: PLC0415 - who has no names needs none of it

    zone = Zone(names, subnets=tuple(pool.subnet for pool in pools))
    upstream = host_resolvers() if internet else ()
    return respond_at(ns, [pool.gateway for pool in pools], zone=zone, upstream=upstream)
