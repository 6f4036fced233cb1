"""A network as an object: a bridge in a namespace of its own, and addresses for all who are attached to it.

Nothing of it lies in the host's namespace: when this program ends, however it does, the namespace goes, and all that is in it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from errno import ENOENT
from ipaddress import ip_interface
from itertools import count
from threading import RLock
from typing import TYPE_CHECKING, Final, Literal

from isolib._kernel import seam
from isolib._kernel.handle import Handle, Rollback
from isolib._kernel.hints import typed
from isolib._kernel.sockets import open_file_in
from isolib.errors import PlanError, SyscallError
from isolib.net import requests
from isolib.net.bridge import Bridge, make_bridge
from isolib.net.checks import check_name
from isolib.net.endpoint import Endpoint
from isolib.net.pool import Pool, choose_subnet, choose_ula, parse_address, parse_subnet
from isolib.net.queries import addresses, routes
from isolib.net.veth import connect
from isolib.net.where import Where, check_namespace
from isolib.types import check_hostname

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

    from isolib._kernel.seam import NetNS
    from isolib.net.interface import Interface
    from isolib.net.values import AnyAddress, AnyInterface, AnyNetwork
    from isolib.types import HasFileno

__all__ = ["Network", "new_network"]

_BRIDGE: Final = "br0"
#: The networks of this process, which must not overlap by choice.
_chosen: Final[dict[int, tuple[AnyNetwork, ...]]] = {}
_choosing: Final = RLock()
_numbers: Final = count(1)
_IPV4: Final = 4


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
    """

    def __init__(self, ns: NetNS, bridge: Handle, undo: Rollback, pools: tuple[Pool, ...], *, name: str, isolate: bool) -> None:
        super().__init__()
        self.ns = ns
        assert isinstance(bridge, Bridge)  # noqa: S101 - what it is made with
        self.bridge = bridge
        self.name = name
        self._undo = undo
        self._isolate = isolate
        self._where = Where(ns)
        self._pools = pools
        self._lock = RLock()
        self._endpoints: dict[int, Endpoint] = {}
        self._numbers = count(1)
        first = {pool.subnet.version: pool for pool in pools}
        self.subnet: IPv4Network | None = first[4].subnet if 4 in first else None  # type: ignore[assignment]  # noqa: PLR2004
        self.gateway: IPv4Address | None = first[4].gateway if 4 in first else None  # type: ignore[assignment]  # noqa: PLR2004
        self.subnet6: IPv6Network | None = first[6].subnet if 6 in first else None  # type: ignore[assignment]  # noqa: PLR2004
        self.gateway6: IPv6Address | None = first[6].gateway if 6 in first else None  # type: ignore[assignment]  # noqa: PLR2004

    def _describe(self) -> str:
        return f"{self.name} {self.subnet or self.subnet6}"

    def _release(self) -> None:
        with self._lock:
            self._undo.unwind()
            for endpoint in list(self._endpoints.values()):
                endpoint.close()

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
            By which the others find it.
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
        >>> with new_network("10.77.0.0/24") as network, new_netns() as a:
        ...     network.attach(a).address
        IPv4Address('10.77.0.2')
        """
        self._check_open()
        check_name(name, "name")
        host = None if hostname is None else check_hostname(hostname, "hostname")
        there = Where(check_namespace(ns, "ns"))
        with self._lock, Rollback() as undo:
            taken = [self._take(undo, pool, address if pool.subnet.version == _IPV4 else ipv6) for pool in self._pools]
            self._check_wanted(address, ipv6)
            mac = bytes([0x02, 0x42, *taken[0].packed[-4:]])
            port, interface = connect(
                self._where,
                there,
                undo,
                (f"isolib{next(self._numbers)}", name),
                macs=(None, mac),
                master=self.bridge.index,
                before_up=lambda: refuse_advertisements(ns, name),
            )
            if self._isolate:
                self.bridge.set_port(port, isolated=True)
            self._equip(there, interface, taken, default_route=default_route)
            endpoint = Endpoint._make(
                interface,
                port,
                undo,
                address=next((one for one in taken if one.version == _IPV4), None),
                ipv6=next((one for one in taken if one.version != _IPV4), None),
                mac=mac.hex(":"),
                hostname=host,
                left=self._forget,
            )
            undo.keep()
            self._endpoints[id(endpoint)] = endpoint
        return endpoint

    def _take(self, undo: Rollback, pool: Pool, wanted: str | AnyAddress | None) -> AnyAddress:
        address = pool.take(None if wanted is None else parse_address(wanted))

        def release() -> None:
            with suppress(PlanError):  # a step may be run twice
                pool.release(address)

        undo.push(release)
        return address

    def _check_wanted(self, address: object, ipv6: object) -> None:
        for value, subnet, what in ((address, self.subnet, "address"), (ipv6, self.subnet6, "ipv6")):
            if value is not None and subnet is None:
                raise PlanError(f"{what}={value!r}: the network {self.name} has no addresses of this kind")

    def _equip(self, there: Where, interface: Interface, taken: list[AnyAddress], *, default_route: bool) -> None:
        wanted = []
        for pool, address in zip(self._pools, taken, strict=True):
            own = ip_interface(f"{address}/{pool.subnet.prefixlen}")
            wanted.append(requests.add_address(own, interface.index, interface.name))
        if default_route:
            wanted += [requests.default_route(pool.gateway, interface.index) for pool in self._pools]
        there.socket.send(*wanted)

    def _forget(self, endpoint: Endpoint) -> None:
        with self._lock:
            self._endpoints.pop(id(endpoint), None)


@typed("a network")
def new_network(
    subnet: str | AnyNetwork | None = "auto",
    *,
    ipv6: str | AnyNetwork | Literal[True] | None = None,
    isolate: bool = False,
    name: str | None = None,
) -> Network:
    """Make a network: a bridge in a namespace of its own, with a subnet.

    Parameters
    ----------
    subnet
        "10.77.0.0/24"; "auto": a private one that overlaps no route of the host's and no other network of this program;
        None: no IPv4.
    ipv6
        "fd77::/64"; True: a unique local one; None: no IPv6.
    isolate
        Whether those who are attached reach the gateway only, and not each other.
    name
        A label.

    Returns
    -------
    Network
        Owned.

    Raises
    ------
    PlanError
        A subnet cannot be one; nothing was done.
    SyscallError
        The kernel refused, and nothing is left.

    Notes
    -----
    Privileges: none; who has no CAP_SYS_ADMIN gets a network that belongs to a user namespace of his own.  Kernel:
    CONFIG_BRIDGE, CONFIG_VETH, CONFIG_NET_NS.

    Examples
    --------
    >>> from isolib import new_netns
    >>> with new_network("10.77.0.0/24") as network, new_netns() as a, new_netns() as b:
    ...     [str(network.attach(one).address) for one in (a, b)]
    ['10.77.0.2', '10.77.0.3']
    """
    label = f"isolib-{os.getpid()}" if name is None else check_hostname(name, "name")
    with Rollback() as undo:
        pools = tuple(map(Pool, _subnets(undo, subnet, ipv6)))
        made: list[Handle] = []
        undo.push(_close, made)  # when the namespace has gone: then nothing is taken down link by link
        ns = undo.adopt(seam.new_netns())
        where = Where(ns)
        bridge_undo = Rollback()
        interface = make_bridge(where, bridge_undo, _BRIDGE, requests.link_attributes(mac=bytes([2, *os.urandom(5)])))
        made.append(Bridge._make(interface, bridge_undo, where))
        where.socket.send(*(requests.add_address(_of_gateway(pool), interface.index, _BRIDGE) for pool in pools))
        network = Network._make(ns, made[0], undo, pools, name=label, isolate=isolate)
        undo.keep()
    return network


def _of_gateway(pool: Pool) -> AnyInterface:
    return ip_interface(f"{pool.gateway}/{pool.subnet.prefixlen}")


def _close(handles: list[Handle]) -> None:
    for handle in handles:
        handle.close()


def _subnets(
    undo: Rollback, subnet: str | AnyNetwork | None, ipv6: str | AnyNetwork | Literal[True] | None
) -> list[AnyNetwork]:
    """Return the subnets of a network, IPv4 first; those of other networks are not chosen again until that is closed."""
    found: list[AnyNetwork] = []
    with _choosing:
        taken = [one for some in _chosen.values() for one in some]
        if subnet == "auto" or ipv6 is True:
            taken += [route.destination for route in routes(table=None)]
            taken += [address.interface.network for address in addresses()]
        if subnet == "auto":
            found.append(choose_subnet(taken))
        elif subnet is not None:
            found.append(parse_subnet(subnet))
        if ipv6 is True:
            found.append(choose_ula(taken))
        elif ipv6:
            found.append(parse_subnet(ipv6, "ipv6"))
        key = next(_numbers)
        undo.push(_chosen.pop, key, None)
        _chosen[key] = tuple(found)
    wanted = [*([] if subnet is None else [4]), *([6] if ipv6 else [])]
    if [one.version for one in found] != wanted:
        raise PlanError(f"subnet={subnet!r}, ipv6={ipv6!r}: subnet is of IPv4, ipv6 of IPv6")
    if not found:
        raise PlanError("subnet=None: a network needs addresses: give it ipv6=True")
    return found


def refuse_advertisements(ns: HasFileno | None, name: str) -> None:
    """Have an interface take no address and no route from who claims to be a router."""
    path = f"/proc/sys/net/ipv6/conf/{name}/accept_ra"
    try:
        fd = open_file_in(ns, path, os.O_WRONLY)
    except SyscallError as error:
        if error.errno != ENOENT:  # without IPv6 there is none, and no advertisement
            raise
        return
    with fd:
        os.write(fd.fileno(), b"0")
