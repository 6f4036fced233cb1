"""Who answers questions about names in a network, where somebody has one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from isolib._kernel.handle import Rollback
from isolib.net.names import Zone
from isolib.net.plugs import bound_socket
from isolib.net.uplink import host_resolvers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolib._kernel.handle import Handle
    from isolib.net.names import Names
    from isolib.net.pool import Pool
    from isolib.net.serving import Socket
    from isolib.types import HasFileno

__all__ = ["answer"]

_DNS_PORT: Final = 53


def answer(ns: HasFileno, pools: Sequence[Pool], names: Names, *, internet: bool) -> Handle:
    """Begin to answer questions about names at the gateway's addresses; others' are passed on where there is a way out."""
    from isolib.net.responder import new_responder  # noqa: PLC0415 - who has no names needs none of it

    zone = Zone(names, subnets=tuple(pool.subnet for pool in pools))
    sockets: dict[str, list[Socket]] = {"udp": [], "tcp": []}
    with Rollback() as undo:
        for proto, made in sockets.items():
            for pool in pools:
                made.append(bound_socket(ns, pool.gateway, _DNS_PORT, proto))
                undo.push(made[-1].close)
        upstream = host_resolvers() if internet else ()
        responder = new_responder(sockets["udp"], sockets["tcp"], zone=zone, upstream=upstream)
        undo.dismiss()
    return responder
