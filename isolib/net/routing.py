"""What decides where packets go beside the routes of one interface: rules, and routes that lead nowhere.

They are a namespace's own, and die with it; in a namespace that stays, who adds them removes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from isolib.errors import PlanError
from isolib.net import requests
from isolib.net.checks import check_address, check_choice, check_mtu, check_name, check_network, check_number
from isolib.net.interface import MAX_NUMBER, check_destination, check_metric, check_table
from isolib.net.parsing import AF_INET, AF_INET6
from isolib.net.values import Rule
from isolib.net.where import route_socket

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolib.net.interface import Interface
    from isolib.net.values import AnyAddress, AnyNetwork
    from isolib.types import HasFileno

__all__ = ["add_barrier", "add_route", "add_rule", "new_rule", "remove_barrier", "remove_route", "remove_rule"]

_BARRIERS: Final = ("blackhole", "unreachable", "prohibit", "throw")
_ACTIONS: Final = ("lookup", "blackhole", "unreachable", "prohibit")
_WEIGHTIEST: Final = 256
_FAMILIES: Final = {4: AF_INET, 6: AF_INET6}


def add_barrier(
    destination: str | AnyNetwork,
    kind: str = "unreachable",
    *,
    ns: HasFileno | None = None,
    metric: int | None = None,
    table: str | int = "main",
) -> None:
    """Add a route that leads nowhere.

    Parameters
    ----------
    destination
        "10.1.0.0/16", "0.0.0.0/0".
    kind
        "unreachable" and "prohibit": the sender is told, by EHOSTUNREACH or EACCES; "blackhole": he is not (EINVAL here);
        "throw": the next rule is asked.
    ns
        The namespace; None: that of the calling thread.
    metric, table
        As in `Interface.add_route`.

    Raises
    ------
    PlanError
        An argument cannot work; nothing was done.
    SyscallError, SetupFailed
        The kernel refused.  EEXIST: there is such a route.
    ClosedError
        The handle of the namespace is closed.

    Notes
    -----
    Privileges: CAP_NET_ADMIN over the namespace.  Source: rtnetlink(7), ip-route(8).
    """
    network = check_destination(destination, None)
    check_choice(kind, "kind", _BARRIERS)
    check_metric(metric)
    request = requests.add_route(network, metric=metric, table=check_table(table), kind=kind)
    with route_socket(ns) as socket:
        socket.ask(request)


def remove_barrier(
    destination: str | AnyNetwork,
    kind: str = "unreachable",
    *,
    ns: HasFileno | None = None,
    metric: int | None = None,
    table: str | int = "main",
) -> None:
    """Remove a route that leads nowhere; with ESRCH there was none.  Otherwise as `add_barrier`."""
    network = check_destination(destination, None)
    check_choice(kind, "kind", _BARRIERS)
    check_metric(metric)
    request = requests.remove_route(network, metric=metric, table=check_table(table), kind=kind)
    with route_socket(ns) as socket:
        socket.ask(request)


def add_route(
    destination: str | AnyNetwork,
    hops: Sequence[tuple[str | AnyAddress | None, Interface, int]],
    *,
    metric: int | None = None,
    table: str | int = "main",
    source: str | AnyAddress | None = None,
    mtu: int | None = None,
) -> None:
    """Add a route by several ways, among which packets are divided: those of one connection go the same.

    Parameters
    ----------
    destination
        "10.1.0.0/16", "0.0.0.0/0".
    hops
        The ways, two or more: a gateway, or None, the interface, and a weight from 1 to 256.
    metric, table, source, mtu
        As in `Interface.add_route`.

    Raises
    ------
    PlanError
        An argument cannot work, or the interfaces are of several namespaces; nothing was done.
    SyscallError
        The kernel refused.  EEXIST: there is such a route; ENETUNREACH: a gateway is on no network of the namespace.
    ClosedError
        The handle of the namespace is closed.

    Notes
    -----
    `routes` tells it as one `Route` with ``hops``.  Privileges: CAP_NET_ADMIN over the namespace.  Kernel:
    CONFIG_IP_ROUTE_MULTIPATH for IPv4.  Source: ip-route(8).

    Examples
    --------
    >>> from isolib import new_netns, new_veth
    >>> from isolib.net.queries import routes
    >>> a, b = new_netns(), new_netns()
    >>> with new_veth(a, b, addresses=("10.0.0.1/24", "10.0.0.2/24")) as cable:
    ...     add_route("10.9.0.0/16", [("10.0.0.2", cable.a, 1), ("10.0.0.3", cable.a, 3)])
    ...     [hop[2] for route in routes(a) for hop in route.hops]
    [1, 3]
    >>> a.close(), b.close()
    (None, None)
    """
    if len(hops) < 2 or any(len(hop) != 3 for hop in hops):  # noqa: PLR2004
        raise PlanError(f"hops: two or more are wanted, each a gateway or None, an interface and a weight, not {hops!r}")
    ways = [None if gateway is None else check_address(gateway, f"hops[{at}]") for at, (gateway, _, _) in enumerate(hops)]
    networks = [check_destination(destination, way) for way in ways]
    found = [
        (way, interface.index, check_number(weight, f"hops[{at}]", 1, _WEIGHTIEST))
        for at, (way, (_, interface, weight)) in enumerate(zip(ways, hops, strict=True))
    ]
    places = [interface.where for _, interface, _ in hops]
    if any(place.socket is not places[0].socket for place in places):
        raise PlanError("hops: the interfaces are of several namespaces")
    check_metric(metric)
    request = requests.add_route(
        networks[0],
        hops=found,
        metric=metric,
        table=check_table(table),
        source=None if source is None else check_address(source, "source"),
        mtu=None if mtu is None else check_mtu(mtu),
    )
    places[0].socket.ask(request)


def remove_route(
    destination: str | AnyNetwork, *, ns: HasFileno | None = None, metric: int | None = None, table: str | int = "main"
) -> None:
    """Remove a route, by whichever interfaces it goes; with ESRCH there was none.

    Where several have this destination, the one with the lowest metric, or with the one that is given; of IPv6, all its ways.
    """
    network = check_destination(destination, None)
    check_metric(metric)
    request = requests.remove_route(network, metric=metric, table=check_table(table))
    with route_socket(ns) as socket:
        socket.ask(request)


def new_rule(
    priority: int,
    *,
    action: str = "lookup",
    table: str | int = "main",
    family: int | None = None,
    source: str | AnyNetwork | None = None,
    destination: str | AnyNetwork | None = None,
    incoming: str = "",
    outgoing: str = "",
    mark: int = 0,
    mask: int = MAX_NUMBER,
) -> Rule:
    """Return a rule by which a namespace chooses a table of routes, to be added.

    Parameters
    ----------
    priority
        The lowest is asked first, 1 to 4294967295; the kernel's own are 0 (local), 32766 (main) and 32767 (default).
    action
        "lookup": the table is looked in; "blackhole", "unreachable" and "prohibit": as in `add_barrier`.
    table
        A name or a number.
    family
        4 or 6; None: that of source or destination, or 4.
    source, destination
        Networks that a packet must be from and to, or None: whatever they are.
    incoming, outgoing
        Names of links: where it came in ("lo": from here), what its sender is bound to; "": whatever.
    mark, mask
        The bits of the packet's mark that are looked at, and what they must be.

    Raises
    ------
    PlanError
        An argument cannot work, or they do not fit together.

    Examples
    --------
    >>> new_rule(100, table=7, source="10.7.0.0/16").table
    7
    """
    given = ((source, "source"), (destination, "destination"))
    networks = [None if one is None else check_network(one, what) for one, what in given]
    versions = {one.version for one in networks if one is not None} | ({family} if family is not None else set())
    if len(versions) > 1:
        raise PlanError("source, destination, family: they are of different families")
    version = versions.pop() if versions else 4
    if version not in _FAMILIES:
        raise PlanError(f"family: 4 or 6 is wanted, not {family!r}")
    check_number(mark, "mark", 0, MAX_NUMBER)
    check_number(mask, "mask", 0, MAX_NUMBER)
    return Rule(
        priority=check_number(priority, "priority", 1, MAX_NUMBER),
        action=check_choice(action, "action", _ACTIONS),
        table=check_table(table) if action == "lookup" else "unspec",
        family=_FAMILIES[version],
        source=networks[0],
        destination=networks[1],
        incoming=incoming and check_name(incoming, "incoming"),
        outgoing=outgoing and check_name(outgoing, "outgoing"),
        mark=mark,
        mask=mask if mark else 0,
    )


def add_rule(rule: Rule, *, ns: HasFileno | None = None) -> None:
    """Add a rule.

    Parameters
    ----------
    rule
        From `new_rule`, or one that `isolib.net.rules` has found in another namespace.
    ns
        The namespace; None: that of the calling thread.

    Raises
    ------
    PlanError
        It is a rule that isolib cannot write: "goto".
    SyscallError, SetupFailed
        The kernel refused.  EEXIST: there is such a rule.
    ClosedError
        The handle of the namespace is closed.

    Notes
    -----
    Privileges: CAP_NET_ADMIN over the namespace.  Kernel: CONFIG_IP_MULTIPLE_TABLES.  Source: ip-rule(8).

    Examples
    --------
    >>> from isolib import new_netns
    >>> from isolib.net.queries import rules
    >>> ns = new_netns()
    >>> add_rule(new_rule(100, table=7, source="10.7.0.0/16"), ns=ns)
    >>> [rule.priority for rule in rules(ns) if rule.table == 7]
    [100]
    >>> ns.close()
    """
    check_choice(rule.action, "rule", _ACTIONS)
    with route_socket(ns) as socket:
        socket.ask(requests.add_rule(rule))


def remove_rule(rule: Rule, *, ns: HasFileno | None = None) -> None:
    """Remove a rule; with ENOENT there was none like it.  Otherwise as `add_rule`."""
    check_choice(rule.action, "rule", _ACTIONS)
    with route_socket(ns) as socket:
        socket.ask(requests.remove_rule(rule))
