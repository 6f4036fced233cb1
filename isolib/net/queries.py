"""What there is in a network namespace now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isolib.net import parsing, requests
from isolib.net.where import route_socket

if TYPE_CHECKING:
    from isolib.net.values import Address, Link, Neighbour, Route, Rule
    from isolib.types import HasFileno

__all__ = ["addresses", "links", "neighbours", "routes", "rules"]


def links(ns: HasFileno | None = None) -> list[Link]:
    """Return the links of a network namespace, with what has passed through them.

    Parameters
    ----------
    ns
        The namespace; None: that of the calling thread.

    Raises
    ------
    SyscallError, SetupFailed
        The kernel refused.
    ClosedError
        The handle is closed.

    Notes
    -----
    Privileges: none for the caller's own namespace; CAP_SYS_ADMIN over another, which its owner has.  Kernel: rtnetlink(7),
    RTM_GETLINK.

    Examples
    --------
    >>> from isolib import new_netns
    >>> ns = new_netns()
    >>> [(link.name, link.up) for link in links(ns)]
    [('lo', True)]
    >>> ns.close()
    """
    with route_socket(ns) as socket:
        return [parsing.parse_link(message) for message in socket.dump(requests.dump_links())]


def addresses(ns: HasFileno | None = None) -> list[Address]:
    """Return the addresses of the links of a network namespace, of IPv4 and IPv6; otherwise as `links`.

    Examples
    --------
    >>> from isolib import new_netns
    >>> ns = new_netns()
    >>> str(addresses(ns)[0].interface)
    '127.0.0.1/8'
    >>> ns.close()
    """
    with route_socket(ns) as socket:
        return list(map(parsing.parse_address, filter(parsing.is_of_ip, socket.dump(requests.dump_addresses()))))


def routes(ns: HasFileno | None = None, *, table: str | int | None = "main") -> list[Route]:
    """Return the routes of a network namespace, of IPv4 and IPv6.

    Parameters
    ----------
    ns
        As in `links`.
    table
        A name or a number; None: those of all tables, "local" among them, which the kernel fills by itself.

    Raises
    ------
    SyscallError, SetupFailed, ClosedError
        As in `links`.
    """
    with route_socket(ns) as socket:
        found = list(map(parsing.parse_route, filter(parsing.is_of_ip, socket.dump(requests.dump_routes()))))
    return [route for route in found if table is None or route.table == table]


def neighbours(ns: HasFileno | None = None) -> list[Neighbour]:
    """Return whom a network namespace has learned of, by ARP and neighbour discovery; otherwise as `links`."""
    with route_socket(ns) as socket:
        found = map(parsing.parse_neighbour, socket.dump(requests.dump_neighbours()))
        return [neighbour for neighbour in found if neighbour is not None]


def rules(ns: HasFileno | None = None) -> list[Rule]:
    """Return the rules by which a network namespace chooses its table of routes; otherwise as `links`."""
    with route_socket(ns) as socket:
        return list(map(parsing.parse_rule, filter(parsing.is_of_ip, socket.dump(requests.dump_rules()))))
