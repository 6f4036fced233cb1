"""Making networks: which subnets they have, and what they are made of."""

from __future__ import annotations

import os
from ipaddress import ip_interface
from typing import TYPE_CHECKING, Final

from isolib._kernel import seam
from isolib._kernel.handle import Rollback
from isolib._kernel.hints import typed
from isolib._kernel.sockets import put_in
from isolib.errors import PlanError
from isolib.net import requests
from isolib.net.attaching import close_all
from isolib.net.bridge import Bridge, make_bridge, random_mac
from isolib.net.chosen import check_beyond, choose, keep
from isolib.net.network import Network
from isolib.net.pool import Pool, choose_subnet, choose_ula, parse_subnet
from isolib.net.sysctl import no_forwarding
from isolib.net.uplink import open_inner_firewall
from isolib.net.way_out import check_subnets, choose_way, open_way
from isolib.net.where import Where
from isolib.types import check_hostname

if TYPE_CHECKING:
    from isolib._kernel.handle import Handle
    from isolib.net.values import AnyInterface, AnyNetwork

__all__ = ["new_network"]

_BRIDGE: Final = "br0"


@typed("a network")
def new_network(
    subnet: str | AnyNetwork | None = "auto",
    *,
    ipv6: str | AnyNetwork | bool | None = None,
    internet: bool | str = False,
    isolate: bool = False,
    dns: bool = True,
    name: str | None = None,
) -> Network:
    """Make a network: a bridge in a namespace of its own, with a subnet.

    Parameters
    ----------
    subnet
        "10.77.0.0/24"; "auto": a private one that overlaps no route of the host's and no other network of this program;
        None: no IPv4.
    ipv6
        "fd77::/64"; True: a unique local one; None or False: no IPv6.
    internet
        Whether packets go on from the gateway to where those of the calling thread's namespace go, with its address, that
        namespace itself included, but for its loopback; `Network.allow` and `Network.deny` say whereto.  Names that are none
        of the network's are then asked of the servers of /etc/resolv.conf, by this program and from its own namespace.
        Or by what they go: "veth", a cable to that namespace, where the kernel translates and forwards; "pasta" (Debian:
        passt) or "slirp4netns", a program that is started for it, and opens a socket there for each connection.  True is
        "veth" for who has the right to it, for others the first of the two programs that is installed.
    isolate
        Whether those who are attached reach the gateway only, and not each other.
    dns
        Whether the gateway answers those who are attached about each other's names and, with ``internet``, about others.  A
        sandbox in a network without it asks whom the resolv.conf of its root names.
    name
        A label.

    Returns
    -------
    Network
        Owned.

    Raises
    ------
    PlanError
        A subnet cannot be one, or with ``internet`` overlaps what lies at a link of the caller's namespace, and would hide it;
        nothing was done.
    SyscallError
        The kernel refused, and nothing is left.  PermissionDenied: the caller has no right to "veth", and none of the programs
        is installed.
    Unsupported
        The kernel has no nftables, which ``internet`` takes; the program that was asked for is not installed, may not open
        /dev/net/tun, or ended, which is told with what it said.

    Notes
    -----
    Privileges: none; who has no CAP_SYS_ADMIN gets a network that belongs to a user namespace of his own.  With "veth":
    CAP_NET_ADMIN over the calling thread's network namespace, whose forwarding (``net.ipv4.ip_forward``, with IPv6
    ``net.ipv6.conf.all.forwarding``) is switched on, unless it is, until the last such network is closed, of this program and
    of others in that namespace with the same /proc (`isolib.net.hold`).
    With "pasta" and "slirp4netns": to read and write /dev/net/tun, and nothing is changed in the caller's namespace.  The
    program runs as the caller, in the user namespace that owns the network, without environment, and sandboxes itself; it ends
    with the network and with this program.  Where it ends by itself, `Network.way_out` says so, `attach`, `allow` and `deny`
    raise GoneError, and who connects to elsewhere is told ENETUNREACH; the network itself goes on.  Ports of the network are
    not forwarded by it.  It translates TCP, UDP and ping.  Datagrams of more than one packet (1472 bytes by IPv4) pass
    slirp4netns; pasta loses them, and that of Debian 12 delivers their first 1472 bytes.  pasta of Debian 12 takes a default
    route of the host's, for each of IPv4 and IPv6; slirp4netns has fd00::/64 for itself.

    Kernel: CONFIG_BRIDGE, CONFIG_VETH, CONFIG_NET_NS; with ``internet`` nftables too, and Linux 5.12.

    Who forwards IPv6 takes no default route from routers' advertisements and drops those that he has, but at interfaces whose
    ``accept_ra`` is 2 (ip-sysctl.rst).

    Examples
    --------
    >>> from isolib import new_netns
    >>> a, b = new_netns(), new_netns()
    >>> with new_network("10.77.0.0/24") as network:
    ...     [str(network.attach(one).address) for one in (a, b)]
    ['10.77.0.2', '10.77.0.3']
    >>> a.close(), b.close()
    (None, None)
    """
    way = choose_way(internet)
    label = f"isolib-{os.getpid()}" if name is None else check_hostname(name, "name")
    with Rollback() as undo:
        pools = tuple(map(Pool, _subnets(undo, subnet, ipv6=ipv6)))
        check_subnets(way, [pool.subnet for pool in pools])
        if internet:
            check_beyond(Where(None), [pool.subnet for pool in pools])
        made: list[Handle] = []
        undo.push(close_all, made)  # when the namespace has gone: then nothing is taken down link by link
        ns = undo.adopt(seam.new_netns())
        where = Where(ns)
        bridge_undo = Rollback()
        hardware = requests.link_attributes(mac=random_mac())
        # Else as the host's first namespace has it (net.core.devconf_inherit_init_net).
        off = [no_forwarding(pool.subnet.version) for pool in pools] if way is None else []
        for path, text in off[1:]:
            put_in(ns, path, text)
        addresses = [_of_gateway(pool) for pool in pools]
        interface = make_bridge(where, bridge_undo, _BRIDGE, hardware, addresses=addresses, put=off[0] if off else None)
        bridge = Bridge._make(interface, bridge_undo, where)
        made.append(bridge)
        firewall = way_out = None
        if way is not None:
            subnets = [pool.subnet for pool in pools]
            firewall = open_inner_firewall(undo, ns, subnets)
            way_out = open_way(way, undo, where, firewall, subnets, bridge=_BRIDGE, isolate=isolate)
        network = Network._make(
            ns, bridge, undo, pools, name=label, isolate=isolate, dns=dns, firewall=firewall, way_out=way_out
        )
        undo.keep()
    return network


def _of_gateway(pool: Pool) -> AnyInterface:
    return ip_interface(f"{pool.gateway}/{pool.subnet.prefixlen}")


def _subnets(undo: Rollback, subnet: str | AnyNetwork | None, *, ipv6: str | AnyNetwork | bool | None) -> list[AnyNetwork]:
    """Return the subnets of a network, IPv4 first; others do not choose them until that is closed."""
    found: list[AnyNetwork] = []
    if subnet == "auto":
        found.append(choose(undo, choose_subnet, 4))
    elif subnet is not None:
        found.append(keep(undo, parse_subnet(subnet)))
    if ipv6 is True:
        found.append(choose(undo, choose_ula, 6))
    elif ipv6 is not None and ipv6 is not False:
        found.append(keep(undo, parse_subnet(ipv6, "ipv6")))
    wanted = [*([] if subnet is None else [4]), *([] if ipv6 is None or ipv6 is False else [6])]
    if [one.version for one in found] != wanted:
        raise PlanError(f"subnet={subnet!r}, ipv6={ipv6!r}: subnet is of IPv4, ipv6 of IPv6")
    if not found:
        raise PlanError("subnet=None: a network needs addresses: give it ipv6=True")
    return found
