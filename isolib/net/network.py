"""A network as an object: a bridge in a namespace of its own, and addresses for all who are attached to it.

Nothing of it lies in the host's namespace: when this program ends, however it does, the namespace goes, and all that is in it.
"""

from __future__ import annotations

import html
from contextlib import suppress
from functools import partial
from itertools import count
from threading import RLock
from typing import TYPE_CHECKING, Final

from isolib._kernel.handle import Handle, Rollback
from isolib._kernel.hints import typed
from isolib.errors import PlanError
from isolib.net import hosts, requests
from isolib.net.bridge import isolation
from isolib.net.carrier import settle_addresses
from isolib.net.checks import check_address, check_name, check_number
from isolib.net.endpoint import Endpoint
from isolib.net.firewall import Group
from isolib.net.forward import new_forwarder
from isolib.net.names import Names, Zone
from isolib.net.names import check_name as check_host
from isolib.net.plugs import KINDS, bound_socket, new_socket
from isolib.net.published import Published
from isolib.net.seeing import picture_of_network
from isolib.net.sysctl import no_advertisements
from isolib.net.uplink import host_resolvers, open_inner_firewall, resolve
from isolib.net.veth import connect
from isolib.net.where import Where, check_namespace

if TYPE_CHECKING:
    from collections.abc import Sequence
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

    from isolib._kernel.netlink.socket import Request
    from isolib._kernel.seam import NetNS
    from isolib.net.bridge import Bridge
    from isolib.net.firewall import Firewall
    from isolib.net.interface import Interface
    from isolib.net.picture import Picture
    from isolib.net.pool import Pool
    from isolib.net.serving import Socket
    from isolib.net.values import AnyAddress, AnyNetwork
    from isolib.types import HasFileno

__all__ = ["Network", "close_all"]

_DNS_PORT: Final = 53
_HIGHEST_PORT: Final = 65535


class Network(Handle, made_by="isolib.new_network()"):
    """A bridge, a subnet, and the namespaces that are attached to it.

    Closing it takes it away from all of them at once; the kernel clears up behind.

    Attributes
    ----------
    name
        A label.
    ns
        The namespace that it lies in.
    bridge
        Its bridge, which has the gateway's addresses.
    subnet, gateway
        Of IPv4, or None.
    subnet6, gateway6
        Of IPv6, or None.
    internet
        Whether those who are attached reach what the host reaches.  That takes a setting of the host's, whose users each
        program counts for itself: what that means for several programs at once, `new_network` says.
    """

    _is_ending = False

    def __init__(
        self,
        ns: NetNS,
        bridge: Bridge,
        undo: Rollback,
        pools: tuple[Pool, ...],
        *,
        name: str,
        isolate: bool,
        firewall: Firewall | None,
    ) -> None:
        super().__init__()
        self.ns = ns
        self.bridge = bridge
        self.name = name
        self._undo = undo
        self._isolate = isolate
        self._where = Where(ns)
        self._pools = pools
        # Of what is done with it, and of what it has.  Who closes something that it has, holds that one's own lock, and then
        # this one: so nothing is closed by who holds this one.
        self._lock = RLock()
        self._names = Names()
        self._responder: Handle | None = None
        self._firewall = firewall
        self.internet = firewall is not None
        self._published: set[Published] = set()
        self._endpoints: dict[int, Endpoint] = {}
        self._numbers = count(1)
        first = {pool.subnet.version: pool for pool in pools}
        self.subnet: IPv4Network | None = first[4].subnet if 4 in first else None  # type: ignore[assignment]  # noqa: PLR2004
        self.gateway: IPv4Address | None = first[4].gateway if 4 in first else None  # type: ignore[assignment]  # noqa: PLR2004
        self.subnet6: IPv6Network | None = first[6].subnet if 6 in first else None  # type: ignore[assignment]  # noqa: PLR2004
        self.gateway6: IPv6Address | None = first[6].gateway if 6 in first else None  # type: ignore[assignment]  # noqa: PLR2004

    def _describe(self) -> str:
        return f"{self.name} {self.subnet or self.subnet6}"

    @property
    def closed(self) -> bool:
        """Whether it was closed, or is being closed."""
        return self._is_ending or super().closed

    def _release(self) -> None:
        with self._lock:  # when what others do is done, and nobody begins
            self._is_ending = True
        with Rollback() as undo:
            undo.push(close_all, [*self._endpoints.values()])
            undo.push(self._undo.unwind)
            undo.push(close_all, [*self._published])

    def publish(
        self,
        host_port: int,
        endpoint: Endpoint,
        port: int,
        *,
        proto: str = "tcp",
        host: str | AnyAddress = "127.0.0.1",
    ) -> Published:
        """Let a port of the caller's own namespace lead to one of an endpoint.

        A thread of this program forwards, so it takes no privilege and no rule in the kernel, and ports of 127.0.0.1 can be
        published; who is connected sees the gateway as the other side.

        Parameters
        ----------
        host_port
            The port outside; 0: a free one, which is the ``port`` of what is returned.
        endpoint
            One of this network's.
        port
            The port inside.
        proto
            "tcp" or "udp".
        host
            The address outside; "0.0.0.0" and "::" are all.

        Returns
        -------
        Published
            Owned by the network too: it goes with it, and with the endpoint.

        Raises
        ------
        PlanError
            An argument cannot work.
        SyscallError
            EADDRINUSE: the port is in use.

        Notes
        -----
        For a caller without CAP_SYS_ADMIN a process of the launcher opens the socket of each connection inside.

        Examples
        --------
        >>> from isolib import new_netns, new_network
        >>> a = new_netns()
        >>> with new_network() as network:
        ...     published = network.publish(0, network.attach(a), 80)
        ...     published.port > 0
        True
        >>> a.close()
        """
        if proto not in KINDS:
            raise PlanError(f"proto: {' or '.join(map(repr, KINDS))} is wanted, not {proto!r}")
        check_number(host_port, "host_port", 0, _HIGHEST_PORT)
        check_number(port, "port", 1, _HIGHEST_PORT)
        outside = check_address(host, "host")
        with self._lock:
            self._check_open()
            if endpoint not in self._endpoints.values():
                raise PlanError(f"endpoint: {endpoint!r} is none of {self!r}")
            inside = endpoint.address or endpoint.ipv6
            assert inside is not None  # noqa: S101 - a network has addresses of one kind at least
            front = bound_socket(None, outside, host_port, proto)
            own_port = front.getsockname()[1]
            connect = partial(new_socket, self.ns, inside, KINDS[proto])
            try:
                forwarder = new_forwarder(front, connect, (str(inside), port))
            except BaseException:
                front.close()
                raise
            published = Published._make(
                forwarder, outside, own_port, endpoint, inner_port=port, proto=proto, left=self._published.discard
            )
            self._published.add(published)
        return published

    def allow(self, *destinations: str | AnyAddress | AnyNetwork) -> None:
        """Let these addresses and networks be reached from the network; of several decisions, the smallest network's counts.

        It is about packets that leave the network.  The gateway's own answers about names (`attach`) are none, and what they
        are asked of the outside goes on to be asked by this program.

        Parameters
        ----------
        *destinations
            Addresses, networks, or host names, which are looked up now, once, and with the caller's resolver: when their
            addresses change, that is not followed.  "all" is everything that nobody has decided about.

        Raises
        ------
        PlanError
            One is none of these, or the network has no way out (``internet=``).
        OSError
            A name cannot be looked up (socket.gaierror).
        """
        self._decide(destinations, allowed=True)

    def deny(self, *destinations: str | AnyAddress | AnyNetwork) -> None:
        """Let these addresses and networks be reached no more, by connections that stand neither; as `allow`."""
        self._decide(destinations, allowed=False)

    def _decide(self, destinations: Sequence[str | AnyAddress | AnyNetwork], *, allowed: bool) -> None:
        if not self.internet:
            raise PlanError("allow and deny are about the way out, and this network has none: new_network(internet=True)")
        found = [one for each in destinations if each != "all" for one in resolve(each)]
        with self._lock:
            self._check_open()
            firewall = self._its_firewall()
            with firewall.together():
                if "all" in destinations:
                    firewall.set_open(allowed)
                (firewall.allow if allowed else firewall.deny)(*found)

    def partition(self, *groups: Sequence[Endpoint]) -> None:
        """Let nothing pass between endpoints of different groups, from now on; an earlier partition is forgotten.

        Who is in no group reaches everybody, and the gateway is reached by all.

        Parameters
        ----------
        *groups
            Two or more lists of endpoints of this network.

        Raises
        ------
        PlanError
            An endpoint is in two groups, or another network's; or there are not two groups.
        Unsupported
            The kernel has no nftables for bridges.

        Notes
        -----
        Kernel: CONFIG_NF_TABLES_BRIDGE.

        Examples
        --------
        >>> from isolib import new_netns, new_network
        >>> a, b = new_netns(), new_netns()
        >>> with new_network() as network:
        ...     network.partition([network.attach(a)], [network.attach(b)])
        ...     network.heal()
        >>> a.close(), b.close()
        (None, None)
        """
        with self._lock:
            self._check_open()
            own = self._endpoints.values()
            strangers = [endpoint for group in groups for endpoint in group if endpoint not in own]
            if strangers:
                raise PlanError(f"partition: {strangers[0]!r} is none of {self!r}")
            # Addresses too: an endpoint can have its packets take the way by the gateway.
            sides = [
                Group(tuple(one.port.name for one in group), tuple(address for one in group for address in one.addresses))
                for group in groups
            ]
            self._its_firewall().partition(*sides)

    def heal(self) -> None:
        """Let everything pass between endpoints again."""
        with self._lock:
            self._check_open()
            self._its_firewall().heal()

    def _its_firewall(self) -> Firewall:
        if self._firewall is None:
            self._firewall = open_inner_firewall(self._undo, self.ns, self._subnets)
        return self._firewall

    @property
    def _subnets(self) -> list[AnyNetwork]:
        return [pool.subnet for pool in self._pools]

    def hosts(self) -> str:
        """Return a file /etc/hosts for those who are attached: localhost, and everybody who has a host name."""
        return hosts.hosts(self._names.table())

    def resolv_conf(self) -> str:
        """Return a file /etc/resolv.conf for those who are attached: the gateway answers, by its name or another's."""
        return hosts.resolv_conf([pool.gateway for pool in self._pools])

    def picture(self) -> Picture:
        """Return what it looks like now: printed it is text, in a notebook a drawing; `Picture.to_dot` is for Graphviz.

        Examples
        --------
        >>> from isolib import new_netns, new_network
        >>> web = new_netns()
        >>> with new_network("10.77.0.0/24", name="lab") as network:
        ...     endpoint = network.attach(web, hostname="web")
        ...     print(network.picture().summary())
        1 namespace, 1 bridge, 1 cable
        >>> web.close()
        """
        with self._lock:
            self._check_open()
            return picture_of_network(self, list(self._published))

    def _repr_html_(self) -> str:
        return html.escape(repr(self)) if self.closed else self.picture()._repr_html_()

    def endpoints(self) -> list[Endpoint]:
        """Return who is attached, in the order of their coming."""
        with self._lock:
            return list(self._endpoints.values())

    @typed("an endpoint")
    def attach(
        self,
        ns: HasFileno | None,
        *,
        name: str = "eth0",
        address: str | AnyAddress | None = None,
        ipv6: str | AnyAddress | None = None,
        hostname: str | None = None,
        default_route: bool = True,
    ) -> Endpoint:
        """Give a namespace an interface in this network, with an address and the default route through the bridge.

        Parameters
        ----------
        ns
            The namespace; None: that of the calling thread.
        name
            Of the interface, inside.
        address, ipv6
            Which addresses it gets; None: free ones.
        hostname
            By which the others find it, asking the gateway (`resolv_conf`), or in a file (`hosts`).
        default_route
            Whether the gateway is its way to everywhere else; not where it has another.

        Returns
        -------
        Endpoint
            Owned by the network too: it goes with it.

        Raises
        ------
        PlanError
            An address is outside of the subnet, taken, or none is free; a name cannot be one; nothing was done.
        SyscallError
            The kernel refused, and nothing is left.  EEXIST: the namespace has an interface of this name, or a default route.
        ClosedError
            The network, or the namespace, is closed.

        Notes
        -----
        Router advertisements are not accepted by the interface.  Privileges: CAP_NET_ADMIN over the namespace, which the
        owner of its user namespace has.  Kernel: CONFIG_VETH, CONFIG_BRIDGE.

        Examples
        --------
        >>> from isolib import new_netns, new_network
        >>> a = new_netns()
        >>> with new_network("10.77.0.0/24") as network:
        ...     network.attach(a).address
        IPv4Address('10.77.0.2')
        >>> a.close()
        """
        check_name(name, "name")
        host = None if hostname is None else check_host(hostname, "hostname")
        there = Where(check_namespace(ns, "ns"))
        with self._lock, Rollback() as undo:
            self._check_open()
            if host is not None or self.internet:
                self._answer()
            taken = [self._take(undo, pool, address if pool.subnet is self.subnet else ipv6) for pool in self._pools]
            if address is not None or ipv6 is not None:
                self._check_wanted(address, ipv6)
            mac = bytes([0x02, 0x42, *taken[0].packed[-4:]])
            port, interface = connect(
                self._where,
                there,
                undo,
                (f"isolib{next(self._numbers)}", name),
                macs=(None, mac),
                master=self.bridge.index,
                put=no_advertisements(name),
                then=(self._tame, partial(self._equip, taken, default_route=default_route)),
                settled=(self.bridge.interface,),
            )
            if self.subnet6 is not None:
                settle_addresses(interface, taken)
                settle_addresses(self.bridge.interface, (pool.gateway for pool in self._pools))
            endpoint = Endpoint._make(
                interface,
                port,
                undo,
                address=None if self.subnet is None else taken[0],
                ipv6=None if self.subnet6 is None else taken[-1],
                mac=mac.hex(":"),
                hostname=host,
            )
            undo.push(self._forget, endpoint)
            self._endpoints[id(endpoint)] = endpoint
            if host is not None:
                self._names.add(host, endpoint.addresses)
            undo.keep()
        return endpoint

    def _take(self, undo: Rollback, pool: Pool, wanted: str | AnyAddress | None) -> AnyAddress:
        address = pool.take(None if wanted is None else check_address(wanted))

        def release() -> None:
            with suppress(PlanError):  # a step may be run twice
                pool.release(address)

        undo.push(release)
        return address

    def _check_wanted(self, address: object, ipv6: object) -> None:
        for value, subnet, what in ((address, self.subnet, "address"), (ipv6, self.subnet6, "ipv6")):
            if value is not None and subnet is None:
                raise PlanError(f"{what}={value!r}: the network {self.name} has no addresses of this kind")

    def _tame(self, port: Interface) -> list[Request]:
        return [isolation(port)] if self._isolate else []

    def _equip(self, taken: list[AnyAddress], interface: Interface, *, default_route: bool) -> list[Request]:
        wanted = []
        for pool, address in zip(self._pools, taken, strict=True):
            wanted.append(requests.add_host(address, pool.subnet.prefixlen, interface.index, interface.name))
        if default_route:
            wanted += [requests.default_route(pool.gateway, interface.index) for pool in self._pools]
        return wanted

    def _forget(self, endpoint: Endpoint) -> None:
        """Take an endpoint's name and ports away, as long as its addresses are its own."""
        with self._lock:
            if id(endpoint) in self._endpoints and endpoint.hostname is not None:
                self._names.discard(endpoint.hostname, endpoint.addresses)
            self._endpoints.pop(id(endpoint), None)
            published = [one for one in [*self._published] if one.endpoint is endpoint]
        close_all(published)

    def _answer(self) -> None:
        """Begin to answer questions about names at the gateway's addresses."""
        if self._responder is not None:
            return
        from isolib.net.responder import new_responder  # noqa: PLC0415 - who has no names needs none of it

        zone = Zone(self._names, subnets=tuple(pool.subnet for pool in self._pools))
        sockets: dict[str, list[Socket]] = {"udp": [], "tcp": []}
        with Rollback() as undo:
            for proto, made in sockets.items():
                for pool in self._pools:
                    made.append(bound_socket(self.ns, pool.gateway, _DNS_PORT, proto))
                    undo.push(made[-1].close)
            upstream = host_resolvers() if self.internet else ()
            responder = new_responder(sockets["udp"], sockets["tcp"], zone=zone, upstream=upstream)
            self._responder = self._undo.adopt(responder)
            undo.dismiss()


def close_all(handles: Sequence[Handle]) -> None:
    """Close several handles, the first first, and all of them, whatever one has to say."""
    if not handles:
        return
    with Rollback() as undo:
        for handle in reversed(handles):
            undo.adopt(handle)
