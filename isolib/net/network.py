"""A network as an object: a bridge in a namespace of its own, and addresses for all who are attached to it.

Nothing of it lies in the host's namespace: when this program ends, however it does, the namespace goes, and all that is in it.
"""

from __future__ import annotations

import html
from functools import partial
from itertools import count
from threading import RLock
from typing import TYPE_CHECKING, Literal

from isolib._kernel.handle import Handle, Rollback
from isolib._kernel.hints import typed
from isolib.errors import PlanError
from isolib.net import hosts
from isolib.net.answering import answer
from isolib.net.attaching import close_all, equip, take, tame
from isolib.net.carrier import settle_addresses
from isolib.net.checks import check_name
from isolib.net.chosen import check_apart
from isolib.net.ending import ending
from isolib.net.endpoint import Endpoint, sides_of
from isolib.net.leaving import Leaving
from isolib.net.names import Names
from isolib.net.names import check_name as check_host
from isolib.net.plugs import Stock
from isolib.net.publish import Publish
from isolib.net.published import new_offered, new_published
from isolib.net.seeing import picture_of_network
from isolib.net.sysctl import no_advertisements
from isolib.net.uplink import open_inner_firewall, resolve_all
from isolib.net.veth import connect
from isolib.net.where import Where, check_namespace

if TYPE_CHECKING:
    from collections.abc import Sequence
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

    from isolib._kernel.seam import NetNS
    from isolib.net.bridge import Bridge
    from isolib.net.ending import Ending
    from isolib.net.firewall import Firewall
    from isolib.net.picture import Picture
    from isolib.net.pool import Pool
    from isolib.net.publish import Path
    from isolib.net.published import Offered, Published, Service
    from isolib.net.values import AnyAddress, AnyNetwork
    from isolib.net.way_out import WayOut
    from isolib.types import HasFileno

__all__ = ["Network"]


class Network(Handle, made_by="isolib.new_network()"):
    """A bridge, a subnet, and the namespaces that are attached to it.

    Closing it takes it away from all of them at once; the kernel clears up behind, and `ending` tells when it has.

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
        Whether those who are attached reach what the host reaches.
    dns
        Whether the gateway answers questions about names.
    way_out
        By what they do, and whether that is still there; None: they do not.
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
        dns: bool,
        firewall: Firewall | None,
        way_out: WayOut | None,
    ) -> None:
        super().__init__()
        self.ns = ns
        self.bridge = bridge
        self.name = name
        self._undo = undo
        self.dns = dns
        self._isolate = isolate
        self._where = Where(ns)
        self._pools = pools
        self._subnets = [pool.subnet for pool in pools]
        # Of what is done with it, and of what it has.  Who closes something that it has, holds that one's own lock, and then
        # this one: so nothing is closed by who holds this one.
        self._lock = RLock()
        self._names = Names()
        self._responder: Handle | None = None
        self._firewall = firewall
        self.internet = way_out is not None
        self.way_out = way_out
        self._published: set[Published] = set()
        self._offered: set[Offered] = set()
        self._stock = Stock(ns)
        undo.push(self._stock.close)
        self._leaving = Leaving(self._where)
        undo.push(self._leaving.close)
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
            undo.push(close_all, [*self._published, *self._offered])

    def ending(self) -> Ending:
        """Return what tells when the network, closed, has ended, as `isolib.net.ending`; those attached to it may live on."""
        return ending(self.ns)

    def publish(
        self,
        host_port: int | Path,
        endpoint: Endpoint,
        port: int,
        *,
        proto: str = "tcp",
        host: str | AnyAddress = "127.0.0.1",
        mode: int = 0o600,
        via: Literal["kernel", "forwarder"] | None = None,
    ) -> Published:
        """Let a port of the caller's own namespace, or a unix socket, lead to a port of an endpoint.

        Where the network has a way out of the kind "veth", through that namespace, the kernel translates, for all addresses
        but those of loopback: at full speed, and the server sees who its client is.  Otherwise a thread of this program
        forwards, which takes no privilege and no rule in the kernel; the server sees the gateway in its client's place.  For a
        caller without CAP_SYS_ADMIN a process of the launcher opens the sockets inside, 16 at a time.

        Parameters
        ----------
        host_port
            The port outside; 0: a free one, which is the ``port`` of what is returned.  Or the path of a unix socket, at which
            nothing is yet: it is removed at the end, but stays when this program is killed.
        endpoint
            One of this network's.
        port
            The port inside.
        proto
            "tcp" or "udp".
        host
            The address outside; "0.0.0.0" and "::" are all.
        mode
            The permissions of a unix socket, less those of the umask: who may write to it may connect.
        via
            "forwarder": the kernel does nothing of it; "kernel": it does, or this fails; None: where it can.

        Returns
        -------
        Published
            Owned by the network too: it goes with it, and with the endpoint.

        Raises
        ------
        PlanError
            An argument cannot work.
        SyscallError
            EADDRINUSE: the port is in use, or there is something at the path.
        Unsupported
            ``via="kernel"``, and the kernel tells nobody of the connections that it translates (CONFIG_NF_CT_NETLINK).

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
        with self._lock:
            self._check_open()
            if endpoint not in self._endpoints.values():
                raise PlanError(f"endpoint: {endpoint!r} is none of {self!r}")
            wanted = Publish(host_port, port, proto, host=host, mode=mode, via=via)
            maps = None if self.way_out is None else self.way_out.maps
            made = new_published(self._stock, maps, endpoint, wanted, left=self._published.discard)
            self._published.add(made)
        return made

    def offer(self, port: int, to: Service, *, proto: str = "tcp") -> Offered:
        """Let a port of the gateway lead to a service of the caller's own namespace, and to nothing else there.

        All who are attached reach it, whatever else they may not.  A thread of this program forwards, so the service sees this
        program as its client: on 127.0.0.1, and with its user id where it is a unix socket's.

        Parameters
        ----------
        port
            The port at the gateway's addresses; 0: a free one.
        to
            Where the service is: an address and a port, ``("127.0.0.1", 5432)``, or the path of a unix socket.
        proto
            "tcp" or "udp".

        Returns
        -------
        Offered
            Owned by the network too.

        Raises
        ------
        PlanError
            An argument cannot work.
        SyscallError
            EADDRINUSE: the port is in use; 53 is, where names are answered.

        Examples
        --------
        >>> from isolib import new_network
        >>> with new_network("10.77.0.0/24") as network:
        ...     network.offer(5432, ("127.0.0.1", 5432))
        <Offered 10.77.0.1:5432/tcp -> ('127.0.0.1', 5432)>
        """
        with self._lock:
            self._check_open()
            made = new_offered(
                self.ns, [pool.gateway for pool in self._pools], port, to, proto=proto, left=self._offered.discard
            )
            self._offered.add(made)
        return made

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
        found = resolve_all(destinations)
        with self._lock:
            self._check_way()
            self._its_firewall().decide(found, everything="all" in destinations, allowed=allowed)

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
            sides = sides_of(groups, self._endpoints.values(), self)
            self._its_firewall().partition(*sides)

    def heal(self) -> None:
        """Let everything pass between endpoints again."""
        with self._lock:
            self._check_open()
            self._its_firewall().heal()

    def _check_way(self) -> None:
        self._check_open()
        if self.way_out is not None:
            self.way_out.check()

    def _its_firewall(self) -> Firewall:
        if self._firewall is None:
            self._firewall = open_inner_firewall(self._undo, self.ns, self._subnets)
        return self._firewall

    def hosts(self) -> str:
        """Return a file /etc/hosts for those who are attached: localhost, and everybody who has a host name."""
        return hosts.hosts(self._names.table())

    def resolv_conf(self) -> str:
        """Return a file /etc/resolv.conf for those who are attached: the gateway answers, by its name or another's.

        Raises
        ------
        PlanError
            It answers nobody (``dns=False``).
        """
        if not self.dns:
            raise PlanError(f"the network {self.name} answers no questions about names: new_network(dns=True), or `hosts`")
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
            By which the others find it, asking the gateway (`resolv_conf`; not with ``dns=False``), or in a file (`hosts`).
        default_route
            Whether the gateway is its way to everywhere else; not where it has another.

        Returns
        -------
        Endpoint
            Owned by the network too: it goes with it.

        Raises
        ------
        PlanError
            An address is outside of the subnet, taken, or none is free; a name cannot be one: nothing was done.  Or the
            namespace has a way to another network that overlaps this one: nothing is left.
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
            self._check_way()
            taken = take(undo, self._pools, {4: (address, "address"), 6: (ipv6, "ipv6")}, self.name)
            is_known = there.is_known
            if is_known:
                check_apart(there, self._subnets, self._has_link)
            mac = bytes([0x02, 0x42, *taken[0].packed[-4:]])
            cable = self._leaving.new_cable(undo)
            port, interface = connect(
                self._where,
                there,
                cable,
                (f"isolib{next(self._numbers)}", name),
                macs=(None, mac),
                master=self.bridge.index,
                put=no_advertisements(name),
                then=(partial(tame, isolate=self._isolate), partial(equip, self._pools, taken, default_route=default_route)),
                settled=(self.bridge.interface,),
            )
            if not is_known:  # asked now, it takes no other visit there
                check_apart(there, self._subnets, lambda index: index == interface.index)
            if self._responder is None and self.dns and (host is not None or self.internet):
                self._responder = self._undo.adopt(answer(self.ns, self._pools, self._names, internet=self.internet))
            if self.subnet6 is not None:
                settle_addresses(interface, taken)
                settle_addresses(self.bridge.interface, (pool.gateway for pool in self._pools))
            endpoint = Endpoint._make(
                interface,
                port,
                undo,
                leave=partial(self._leaving.leave, port, cable),
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

    def _has_link(self, index: int) -> bool:
        return any(one.interface.index == index for one in self.endpoints())

    def _forget(self, endpoint: Endpoint) -> None:
        """Take an endpoint's name and ports away, as long as its addresses are its own."""
        with self._lock:
            if id(endpoint) in self._endpoints and endpoint.hostname is not None:
                self._names.discard(endpoint.hostname, endpoint.addresses)
            self._endpoints.pop(id(endpoint), None)
            published = [one for one in [*self._published] if one.endpoint is endpoint]
        close_all(published)
