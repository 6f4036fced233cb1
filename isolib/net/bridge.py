"""A bridge: a switch in a network namespace, whose ports are interfaces of that namespace (bridge(8))."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from isolib._kernel.handle import Rollback
from isolib._kernel.hints import typed
from isolib._kernel.netlink import codec
from isolib.errors import PlanError
from isolib.net import bridging, parsing, requests
from isolib.net.carrier import settle_addresses
from isolib.net.checks import check_interfaces, check_mac, check_mtu, check_name, check_number
from isolib.net.owned import OwnedLink, make_link
from isolib.net.where import Where, check_namespace
from isolib.types import parse_duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import timedelta

    from isolib._kernel.netlink.socket import Request
    from isolib.net.interface import Interface
    from isolib.net.values import AnyInterface, FdbEntry, Link, PortVlan
    from isolib.types import HasFileno

__all__ = ["Bridge", "isolation", "make_bridge", "new_bridge", "random_mac", "shutting"]

_MOST: Final = 0xFFFF
_COSTLIEST: Final = 0xFFFF

# linux/if_link.h: IFLA_BR_*, IFLA_BRPORT_*
_FORWARD_DELAY, _HELLO_TIME, _MAX_AGE, _AGEING_TIME, _STP, _PRIORITY, _VLAN_FILTERING = range(1, 8)
_SNOOPING, _DEFAULT_PVID = 23, 39
_PORT_PRIORITY, _COST, _HAIRPIN, _GUARD, _FAST_LEAVE, _LEARNING, _FLOOD, _ISOLATED = 2, 3, 4, 5, 7, 8, 9, 33
_STATE, _FLUSH = 1, 24
_DISABLED: Final = 0


class Bridge(OwnedLink, made_by="isolib.new_bridge()"):
    """A switch: it learns which MAC address is behind which of its ports, and passes frames on.

    Attributes
    ----------
    interface
        The bridge as an interface of its namespace: to give it addresses, by which the namespace itself takes part.
    """

    def __init__(self, interface: Interface, undo: Rollback, where: Where) -> None:
        super().__init__(interface, undo)
        self.where = where

    def ports(self) -> list[Link]:
        """Return the links that are its ports now."""
        self._check_open()
        found = [parsing.parse_link(message) for message in self.where.socket.dump(requests.dump_links())]
        return [link for link in found if link.master == self.index]

    def add(self, port: Interface) -> None:
        """Make an interface of the bridge's namespace one of its ports: an end of a veth pair, as a rule.

        Raises
        ------
        PlanError
            The interface is in another namespace.
        SyscallError
            The kernel refused.  EBUSY: it is another one's port; ELOOP: it is a bridge itself.
        """
        self._check_open()
        self._check_beside(port)
        self.where.socket.ask(requests.set_link(port.index, port.name, requests.link_attributes(master=self.index)))

    def remove(self, port: Interface) -> None:
        """Make a port an interface like any other again."""
        self._check_open()
        self._check_beside(port)
        self.where.socket.ask(requests.set_link(port.index, port.name, requests.link_attributes(master=0)))

    def set_port(
        self,
        port: Interface,
        *,
        hairpin: bool | None = None,
        isolated: bool | None = None,
        learning: bool | None = None,
        flood: bool | None = None,
        guard: bool | None = None,
        fast_leave: bool | None = None,
        cost: int | None = None,
        priority: int | None = None,
    ) -> None:
        """Change how the bridge treats a port; None leaves as it is.

        Parameters
        ----------
        port
            One of its ports.
        hairpin
            Whether a frame may leave by the port it came from.
        isolated
            Whether it speaks to those ports only that are not isolated.
        learning, flood
            Whether addresses behind it are learned, and whether frames to unknown ones leave by it.
        guard
            Whether it is shut when a message of the spanning tree comes from it.
        fast_leave
            Whether a group is left at once.
        cost, priority
            Of the spanning tree: 1 to 65535, and 0 to 63.

        Raises
        ------
        PlanError
            A value cannot be one, or the interface is in another namespace.
        SyscallError
            The kernel refused: it is no port of a bridge.
        """
        self._check_open()
        self._check_beside(port)
        switches = {
            _HAIRPIN: hairpin,
            _GUARD: guard,
            _FAST_LEAVE: fast_leave,
            _LEARNING: learning,
            _FLOOD: flood,
            _ISOLATED: isolated,
        }
        parts = [codec.u8(kind, value) for kind, value in switches.items() if value is not None]
        if cost is not None:
            parts.append(codec.u32(_COST, check_number(cost, "cost", 1, _COSTLIEST)))
        if priority is not None:
            parts.append(codec.u16(_PORT_PRIORITY, check_number(priority, "priority", 0, 63)))
        if parts:
            self.where.socket.ask(requests.set_port(port.index, port.name, b"".join(parts)))

    def change(
        self,
        *,
        stp: bool | None = None,
        ageing_time: float | timedelta | None = None,
        forward_delay: float | timedelta | None = None,
        hello_time: float | timedelta | None = None,
        max_age: float | timedelta | None = None,
        priority: int | None = None,
        vlan_filtering: bool | None = None,
        default_pvid: int | None = None,
        multicast_snooping: bool | None = None,
    ) -> None:
        """Change how the bridge works; the arguments are those of `new_bridge`, and None leaves as it is.

        With ``default_pvid``, the ports that are in the VLAN that was it are in the new one instead.
        """
        self._check_open()
        data = _options(
            stp=stp,
            ageing_time=ageing_time,
            forward_delay=forward_delay,
            hello_time=hello_time,
            max_age=max_age,
            priority=priority,
            vlan_filtering=vlan_filtering,
            default_pvid=default_pvid,
            multicast_snooping=multicast_snooping,
        )
        if data:
            with bridging.with_vlans(asked=bool(vlan_filtering)):
                self.where.socket.ask(requests.set_kind(self.index, self.name, "bridge", data))
        _check_pvid(self.interface, default_pvid)

    # ---- VLANs ----

    def vlans(self, port: Interface | None = None) -> list[PortVlan]:
        """Return the VLANs that its ports are in, and the bridge itself; or those of one port.

        Who gives the bridge ``vlan_filtering`` makes them count.
        """
        self._check_open()
        found = [
            vlan
            for message in self.where.socket.dump(bridging.dump_vlans())
            for vlan in bridging.parse_vlans(message, self.index)
        ]
        return found if port is None else [vlan for vlan in found if vlan.index == port.index]

    def add_vlans(self, port: Interface, vlans: int | Iterable[int], *, pvid: bool = False, untagged: bool = False) -> None:
        """Put a port in VLANs, or change how it is in them.

        Parameters
        ----------
        port
            One of its ports, or its own `interface`, by which the namespace itself takes part.
        vlans
            A number, or several: ``[10, 20]``, ``range(100, 200)``; each 1 to 4094.
        pvid
            Whether frames that come in without a tag belong to it; to one VLAN only, which the port then has instead of the one
            that it had.
        untagged
            Whether frames leave without a tag: ``pvid`` and ``untagged`` make the port an access port, and neither a trunk.

        Raises
        ------
        PlanError
            A number cannot be one, or several are to be the ``pvid``; or it is no port of this bridge.
        SyscallError
            The kernel refused.
        Unsupported
            Its bridges have no VLANs.

        Notes
        -----
        A new port is in the VLAN ``default_pvid`` of the bridge: `remove_vlans` takes it out.  Privileges: CAP_NET_ADMIN over
        the namespace.  Kernel: CONFIG_BRIDGE_VLAN_FILTERING.  Source: bridge(8).
        """
        numbers = bridging.check_vlans(vlans)
        if pvid and len(numbers) > 1:
            raise PlanError(f"pvid: frames without a tag belong to one VLAN, not to {len(numbers)}")
        is_bridge = self._check_port(port)
        if not numbers:
            return
        request = bridging.add_vlans(port.index, port.name, numbers, pvid=pvid, untagged=untagged, is_bridge=is_bridge)
        with bridging.with_vlans():
            self.where.socket.ask(request)

    def remove_vlans(self, port: Interface, vlans: int | Iterable[int]) -> None:
        """Take a port out of VLANs; those that it is not in are nothing.  Otherwise as `add_vlans`."""
        numbers = bridging.check_vlans(vlans)
        is_bridge = self._check_port(port)
        if numbers:
            self.where.socket.ask(bridging.remove_vlans(port.index, port.name, numbers, is_bridge=is_bridge))

    # ---- the table of MAC addresses ----

    def fdb(self) -> list[FdbEntry]:
        """Return where it sends what is for which MAC address: what it has learned, was told, and has itself."""
        self._check_open()
        told = self.where.socket.dump(bridging.dump_fdb(self.index, self.name))
        return [entry for message in told if (entry := bridging.parse_fdb(message, self.index)) is not None]

    def add_fdb(self, mac: str | bytes, port: Interface, *, vlan: int | None = None, sticky: bool = True) -> None:
        """Say behind which port a MAC address is; that is not forgotten.

        Parameters
        ----------
        mac
            The address, of one host.
        port
            One of its ports, or its own `interface`: what is for that address is then for the namespace itself.
        vlan
            In which VLAN, which the port must be in; None: without a VLAN, and in all that the port is in.
        sticky
            Whether it stays so when the address is heard from behind another port.

        Raises
        ------
        PlanError
            It is no MAC address, no VLAN, or no port of this bridge.
        SyscallError
            The kernel refused.

        Notes
        -----
        Privileges: CAP_NET_ADMIN over the namespace.  Source: bridge(8).

        Examples
        --------
        >>> from isolib import new_netns, new_veth
        >>> hub, a = new_netns(), new_netns()
        >>> with new_bridge("br0", ns=hub) as bridge, new_veth(hub, a) as cable:
        ...     bridge.add(cable.a)
        ...     bridge.add_fdb("02:00:00:00:00:01", cable.a)
        ...     {entry.state for entry in bridge.fdb() if entry.mac == "02:00:00:00:00:01"}
        {'static'}
        >>> hub.close(), a.close()
        (None, None)
        """
        own = check_mac(mac, "mac")
        number = None if vlan is None else bridging.check_vlan(vlan)
        is_bridge = self._check_port(port)
        self.where.socket.ask(bridging.add_fdb(port.index, port.name, own, number, sticky=sticky, is_bridge=is_bridge))

    def remove_fdb(self, mac: str | bytes, port: Interface, *, vlan: int | None = None) -> None:
        """Forget that a MAC address is behind a port, whether it was said or learned; with ENOENT it is not known to be."""
        own = check_mac(mac, "mac")
        number = None if vlan is None else bridging.check_vlan(vlan)
        is_bridge = self._check_port(port)
        self.where.socket.ask(bridging.remove_fdb(port.index, port.name, own, number, is_bridge=is_bridge))

    def _check_beside(self, port: Interface) -> None:
        if port.ns != self.interface.ns:
            raise PlanError(f"{port.name} is in another namespace than the bridge {self.name}")

    def _check_port(self, port: Interface) -> bool:
        """Raise PlanError where this is none of its ports; return whether it is the bridge itself."""
        self._check_open()
        self._check_beside(port)
        if port.index == self.index:
            return True
        if port.link().master != self.index:  # else another bridge's port would be changed
            raise PlanError(f"port: {port.name} is no port of the bridge {self.name}")
        return False


@typed("a bridge")
def new_bridge(
    name: str | None = None,
    *,
    ns: HasFileno | None = None,
    addresses: Sequence[str | AnyInterface] = (),
    mac: str | bytes | None = None,
    mtu: int | None = None,
    stp: bool = False,
    ageing_time: float | timedelta | None = None,
    forward_delay: float | timedelta | None = None,
    hello_time: float | timedelta | None = None,
    max_age: float | timedelta | None = None,
    priority: int | None = None,
    vlan_filtering: bool = False,
    default_pvid: int | None = None,
    multicast_snooping: bool | None = None,
) -> Bridge:
    """Make a bridge, up and without ports.

    Parameters
    ----------
    name
        At most 15 bytes; None: "isolib-" and a number.
    ns
        The namespace; None: that of the calling thread.
    addresses
        Of the bridge itself, each with its network's prefix: "10.0.0.1/24".
    mac
        Its MAC address; None: one at random, which stays whatever becomes of its ports.
    mtu
        Bytes; None: 1500.
    stp
        Whether it takes part in a spanning tree, so that bridges may be connected in circles.
    ageing_time, forward_delay
        Seconds after which a learned address is forgotten, and after which a port passes frames on in a spanning tree;
        None: 300 and 15, as the kernel has them.
    hello_time, max_age
        Seconds between messages of the spanning tree, and after which one counts no more; None: 2 and 20.
    priority
        0 to 65535: the bridge with the lowest becomes the root of the tree; None: 32768.
    vlan_filtering
        Whether ports belong to VLANs (`Bridge.add_vlans`).
    default_pvid
        The VLAN that a new port is in, untagged, 0 to 4094; 0: none.  None: 1.
    multicast_snooping
        Whether frames to groups go to those only who have joined; None: as the kernel has it.

    Returns
    -------
    Bridge
        Owned: closing it removes it, and so does the end of this program.

    Raises
    ------
    PlanError
        An argument cannot work; nothing was done.
    SyscallError
        The kernel refused, and nothing is left.  EEXIST: the name is taken; EOPNOTSUPP: it has no bridges.
    Unsupported
        Its bridges have no VLANs.
    ClosedError
        The namespace is closed.

    Notes
    -----
    Privileges: CAP_NET_ADMIN over the namespace.  Kernel: CONFIG_BRIDGE.  Sources: bridge(8), rtnetlink(7).

    Examples
    --------
    >>> from isolib import new_netns, new_veth
    >>> hub, a = new_netns(), new_netns()
    >>> with new_bridge("br0", ns=hub) as bridge, new_veth(hub, a) as cable:
    ...     bridge.add(cable.a)
    ...     [port.name for port in bridge.ports()]
    ['veth0']
    >>> hub.close(), a.close()
    (None, None)
    """
    own_name = None if name is None else check_name(name, "name")
    own_addresses = check_interfaces(addresses)
    hardware = random_mac() if mac is None else check_mac(mac, "mac")
    attributes = requests.link_attributes(mac=hardware, mtu=None if mtu is None else check_mtu(mtu))
    data = _options(
        stp=stp or None,
        ageing_time=ageing_time,
        forward_delay=forward_delay,
        hello_time=hello_time,
        max_age=max_age,
        priority=priority,
        vlan_filtering=vlan_filtering or None,
        default_pvid=default_pvid,
        multicast_snooping=multicast_snooping,
    )
    where = Where(check_namespace(ns, "ns"))
    with bridging.with_vlans(asked=vlan_filtering), Rollback() as undo:
        interface = make_bridge(
            where, undo, own_name or f"isolib-{os.urandom(4).hex()}", attributes, data, addresses=own_addresses
        )
        _check_pvid(interface, default_pvid)
        settle_addresses(interface, own_addresses)
        made = Bridge._make(interface, undo, where)
        undo.keep()
    return made


def make_bridge(
    where: Where,
    undo: Rollback,
    name: str,
    attributes: bytes,
    data: bytes = b"",
    *,
    addresses: Sequence[AnyInterface] = (),
    put: tuple[str, str] | None = None,
) -> Interface:
    """Make a bridge for those who compose."""
    named = attributes + requests.link_attributes(name=name)

    def request(index: int) -> Request:
        return requests.new_link("bridge", named, name=name, index=index, up=True, data=data)

    def then(made: Interface) -> list[Request]:
        return [requests.add_address(address, made.index, name) for address in addresses]

    return make_link(where, undo, name, request, then, put=put)


def isolation(port: Interface) -> Request:
    """Return the request that keeps a port from speaking to those that are isolated too."""
    return requests.set_port(port.index, port.name, codec.u8(_ISOLATED, value=True))


def shutting(port: Interface) -> Request:
    """Return the request that lets nothing pass at a port, until its link comes up anew, and forgets who is behind it."""
    return requests.set_port(port.index, port.name, codec.u8(_STATE, _DISABLED) + codec.attribute(_FLUSH, b""))


def random_mac() -> bytes:
    """Return a MAC address of those that everybody may choose: without one, a bridge takes that of its lowest port."""
    return bytes([0x02, *os.urandom(5)])


def _check_pvid(interface: Interface, wanted: int | None) -> None:
    """Raise `Unsupported` where the kernel has ignored a default PVID: without VLANs, it does so without a word."""
    if wanted is not None:
        options = interface.link().bridge
        if options is None or options.default_pvid != wanted:
            raise bridging.without_vlans()


def _options(
    *,
    stp: bool | None,
    ageing_time: float | timedelta | None,
    forward_delay: float | timedelta | None,
    hello_time: float | timedelta | None,
    max_age: float | timedelta | None,
    priority: int | None,
    vlan_filtering: bool | None,
    default_pvid: int | None,
    multicast_snooping: bool | None,
) -> bytes:
    parts = []
    if stp is not None:
        parts.append(codec.u32(_STP, int(stp)))
    times = (
        (_AGEING_TIME, ageing_time, "ageing_time"),
        (_FORWARD_DELAY, forward_delay, "forward_delay"),
        (_HELLO_TIME, hello_time, "hello_time"),
        (_MAX_AGE, max_age, "max_age"),
    )
    for kind, value, what in times:
        if value is not None:
            hundredths = round(parse_duration(value, what) * parsing.HZ)
            parts.append(codec.u32(kind, check_number(hundredths, what, 0, (1 << 31) - 1)))
    if priority is not None:
        parts.append(codec.u16(_PRIORITY, check_number(priority, "priority", 0, _MOST)))
    if vlan_filtering is not None:
        parts.append(codec.u8(_VLAN_FILTERING, vlan_filtering))
    if default_pvid is not None:
        parts.append(codec.u16(_DEFAULT_PVID, check_number(default_pvid, "default_pvid", 0, bridging.HIGHEST_VLAN)))
    if multicast_snooping is not None:
        parts.append(codec.u8(_SNOOPING, multicast_snooping))
    return b"".join(parts)
