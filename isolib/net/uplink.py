"""A network's way to where the host's own packets go: one cable to the host, and translation of addresses at both its ends.

In the network's namespace the endpoints get the address of the cable's inner end, so that the host need know nothing of the
network's subnet, and networks with the same one do not meet.  In the host's namespace that address gets the one by which the
host goes out.  What is changed there (the cable's end, a table of nftables, two settings) goes with this program, however it
ends.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_interface, ip_network
from socket import SOCK_STREAM, getaddrinfo, inet_aton
from typing import TYPE_CHECKING, Final

from isolib.errors import PermissionDenied, PlanError, from_errno
from isolib.net import requests, sysctl
from isolib.net.carrier import settle, settle_addresses
from isolib.net.chosen import choose
from isolib.net.firewall import BRIDGE_SETTINGS, open_firewall
from isolib.net.hosts import nameservers
from isolib.net.names import check_name as check_host
from isolib.net.pool import choose_subnet, choose_ula
from isolib.net.portmap import PortMaps
from isolib.net.veth import connect
from isolib.net.where import Where

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from isolib._kernel.handle import Rollback
    from isolib._kernel.seam import NetNS
    from isolib.net.firewall import Firewall
    from isolib.net.values import AnyAddress, AnyInterface, AnyNetwork

__all__ = ["UPLINK", "host_resolvers", "lay_uplink", "open_inner_firewall", "resolve_all"]

UPLINK: Final = "uplink"
_SMALL: Final = 30
_RIGHTS: Final = (
    "a way out takes CAP_NET_ADMIN over the caller's own network namespace, and so root; a network without one takes no right"
)


def open_inner_firewall(undo: Rollback, ns: NetNS, subnets: Sequence[AnyNetwork]) -> Firewall:
    """Make the firewall of a network's own namespace; what frames between ports of its bridge are is nobody else's business."""
    settings = sysctl.Sysctls(ns)
    for name in BRIDGE_SETTINGS:
        if settings.get(name, "0") != "0":
            settings[name] = 0
    firewall = open_firewall(ns, "network", private=True, subnets=subnets)
    undo.push(firewall.close)
    firewall.guard_loopback()
    return firewall


@contextmanager
def _telling_rights() -> Iterator[None]:
    """Say what it takes, of whatever the kernel refuses first to who has no right over the caller's namespace."""
    try:
        yield
    except PermissionDenied as error:
        raise from_errno(error.op, error.target, error.errno, _RIGHTS) from None


@_telling_rights()
def lay_uplink(
    undo: Rollback, where: Where, firewall: Firewall, bridge: str, subnets: Sequence[AnyNetwork], *, isolate: bool
) -> PortMaps:
    """Connect a network with the namespace that the calling thread is in, by which its packets go on.

    Parameters
    ----------
    undo
        Gets the steps that take it all back.
    where
        The namespace of the network.
    firewall
        The one of that namespace.
    bridge
        The name of its bridge.
    subnets
        Of the network.
    isolate
        Whether its endpoints do not reach each other by way of the gateway either.

    Returns
    -------
    PortMaps
        By which ports of the host can lead in.

    Raises
    ------
    SyscallError
        The kernel refused.  PermissionDenied: it takes CAP_NET_ADMIN over the caller's own network namespace.
    Unsupported
        The kernel has no nftables that go with this program.
    """
    here = Where(None)
    name = f"isolib-{os.urandom(4).hex()}"
    cables = [_cable(undo, subnet.version) for subnet in subnets]
    for subnet in subnets:
        undo.adopt(sysctl.hold(sysctl.FORWARDING[subnet.version], 1))
        sysctl.Sysctls(where.net)[sysctl.FORWARDING[subnet.version]] = 1
    outer = open_firewall(None, name.removeprefix("isolib-"), subnets=[cable[0].network for cable in cables])
    undo.push(outer.close)
    with outer.together():
        outer.guard_loopback(name)
        outer.route(name)
        for cable in cables:
            outer.masquerade(cable[0].network)
    with firewall.together():
        firewall.route(bridge, UPLINK, between=not isolate)
        for subnet in subnets:
            firewall.masquerade(subnet, UPLINK)
    ends = connect(here, where, undo, (name, UPLINK))
    here.socket.send(*(requests.add_address(cable[0], ends[0].index, name) for cable in cables))
    inner = [requests.add_address(cable[1], ends[1].index, UPLINK) for cable in cables]
    ways = [requests.default_route(cable[0].ip, ends[1].index) for cable in cables]
    where.socket.send(*inner, *ways)
    settle(*ends)
    for number, end in enumerate(ends):
        settle_addresses(end, [cable[number] for cable in cables])
    maps = PortMaps(here, outer, firewall, [cable[1].ip for cable in cables])
    undo.push(maps.forget)
    return maps


def _cable(undo: Rollback, version: int) -> tuple[AnyInterface, AnyInterface]:
    """Return the addresses of the cable's ends, of which the first is the host's; nobody else chooses them meanwhile."""
    if version == 4:  # noqa: PLR2004
        subnet: AnyNetwork = choose(undo, partial(choose_subnet, prefix=_SMALL), 4)
    else:
        subnet = ip_network((choose(undo, choose_ula, 6).network_address, 126))
    return ip_interface((subnet[1], subnet.prefixlen)), ip_interface((subnet[2], subnet.prefixlen))


def resolve_all(destinations: Iterable[str | AnyAddress | AnyNetwork]) -> list[str]:
    """Return the addresses and networks that destinations are, but "all"; names are looked up."""
    return [one for each in destinations if each != "all" for one in _resolve(each)]


def _resolve(destination: str | AnyAddress | AnyNetwork) -> list[str]:
    given: object = destination
    if not isinstance(given, (str, IPv4Address, IPv6Address, IPv4Network, IPv6Network)):
        raise PlanError(f"destination: an address, a network or a name is wanted, not {destination!r}")
    text = str(destination)
    try:
        ip_network(text)
    except ValueError as error:
        if "/" in text or _is_number(text):
            raise PlanError(f"destination: an address, a network or a name is wanted: {error}") from None
        name = check_host(text, "destination")
        return sorted({str(found[4][0]) for found in getaddrinfo(name, None, type=SOCK_STREAM)})
    return [text]


def _is_number(text: str) -> bool:
    """Return whether getaddrinfo(3) takes it for an address, as "10.1", which is 10.0.0.1 (inet_aton(3))."""
    try:
        inet_aton(text)
    except (OSError, UnicodeEncodeError):
        return False
    return True


def host_resolvers() -> tuple[str, ...]:
    """Return whom the host asks for names, by its /etc/resolv.conf; nobody where that says nothing."""
    try:
        with open("/etc/resolv.conf", encoding="utf-8", errors="replace") as file:
            return nameservers(file.read())
    except OSError:
        return ()
