"""Links of the kinds that stand on others, or on nothing: macvlan, ipvlan, vlan, vxlan, dummy.

What they have in common: a link is made whole, up and with its addresses, in the namespace where it belongs, also where what it
stands on is in another one; or it is not made.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from errno import EOPNOTSUPP
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, TypeVar

from isolib._kernel.handle import Fd, Rollback
from isolib._kernel.hints import typed
from isolib._kernel.netlink import codec
from isolib.errors import PlanError, SyscallError, Unsupported
from isolib.net import parsing, requests
from isolib.net.carrier import settle_addresses
from isolib.net.checks import (
    HIGHEST_PORT,
    check_address,
    check_choice,
    check_interfaces,
    check_mac,
    check_mtu,
    check_name,
    check_number,
)
from isolib.net.interface import Interface
from isolib.net.owned import OwnedLink, make_link
from isolib.net.where import Where, check_namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from isolib._kernel.netlink.socket import Request
    from isolib.net.values import AnyAddress, AnyInterface
    from isolib.types import HasFileno

    LinkT = TypeVar("LinkT", bound=OwnedLink)

__all__ = [
    "Dummy",
    "Ipvlan",
    "Macvlan",
    "Vlan",
    "Vxlan",
    "new_dummy",
    "new_ipvlan",
    "new_macvlan",
    "new_vlan",
    "new_vxlan",
    "supported",
]

#: What another link stands on: an interface of whatever namespace, a link that isolib made, or the name of one here.
Lower: TypeAlias = "str | Interface | OwnedLink"

#: Kernel options and modules, as `isolib.doctor` names them.
_OPTIONS: Final = {
    "bridge": ("CONFIG_BRIDGE", "bridge"),
    "dummy": ("CONFIG_DUMMY", "dummy"),
    "ipvlan": ("CONFIG_IPVLAN", "ipvlan"),
    "macvlan": ("CONFIG_MACVLAN", "macvlan"),
    "veth": ("CONFIG_VETH", "veth"),
    "vlan": ("CONFIG_VLAN_8021Q", "8021q"),
    "vxlan": ("CONFIG_VXLAN", "vxlan"),
}
#: What the kernel says where it is the kind that it does not know; other things it refuses with the same number.
_UNKNOWN: Final = "Unknown device type"
_SAYS: Final = "the kernel says"

# linux/if_link.h
_MACVLAN_MODES: Final = {name: number for number, name in parsing.MACVLAN_MODES.items() if name != "source"}
_IPVLAN_MODES: Final = {name: number for number, name in parsing.IPVLAN_MODES.items()}
_IPVLAN_ISOLATION: Final = {"bridge": 0, "private": 1, "vepa": 2}
_VLAN_PROTOCOLS: Final = {"802.1Q": 0x8100, "802.1ad": 0x88A8}
_VLAN_MOST: Final = 4094
_VNI_MOST: Final = (1 << 24) - 1
#: IFLA_VXLAN_*: of the group or remote, and of the local address, by the version of IP.
_VXLAN_REMOTE: Final = {4: 2, 6: 16}
_VXLAN_LOCAL: Final = {4: 4, 6: 17}


@contextmanager
def supported(kind: str) -> Iterator[None]:
    """Raise `Unsupported` in the block, or the function, where the kernel does not know this kind of link."""
    try:
        yield
    except SyscallError as error:
        words = error.hint or ""
        if error.op != "RTM_NEWLINK" or error.errno != EOPNOTSUPP or (_SAYS in words and _UNKNOWN not in words):
            raise
        option, module = _OPTIONS[kind]
        by = f"the kernel: perhaps without {option}"
        raise Unsupported(f"{kind} links", by, f"modprobe {module}, or a kernel with {option}") from error


class Macvlan(OwnedLink, made_by="isolib.net.new_macvlan()"):
    """A link with a MAC address of its own on another one, as if it were on the same wire."""


class Ipvlan(OwnedLink, made_by="isolib.net.new_ipvlan()"):
    """A link with addresses of its own and the MAC address of the one below."""


class Vlan(OwnedLink, made_by="isolib.net.new_vlan()"):
    """A link for the frames of another one that have a VLAN's number."""


class Vxlan(OwnedLink, made_by="isolib.net.new_vxlan()"):
    """An Ethernet through UDP: frames go to other hosts of the same network number."""


class Dummy(OwnedLink, made_by="isolib.net.new_dummy()"):
    """A link with nothing behind it: what is sent there is gone."""


class _Wanted(NamedTuple):
    """What every kind takes, checked."""

    where: Where
    name: str
    attributes: bytes
    addresses: list[AnyInterface]


def _wanted(
    ns: HasFileno | None,
    name: str,
    mtu: int | None,
    mac: str | bytes | None,
    addresses: Sequence[str | AnyInterface],
) -> _Wanted:
    own = check_name(name, "name")
    attributes = requests.link_attributes(
        name=own, mtu=None if mtu is None else check_mtu(mtu), mac=None if mac is None else check_mac(mac, "mac")
    )
    interfaces = check_interfaces(addresses)
    return _Wanted(Where(check_namespace(ns, "ns")), own, attributes, interfaces)


def _check_lower(value: Lower) -> str | Interface:
    if isinstance(value, OwnedLink):
        return value.interface
    if isinstance(value, Interface):
        return value
    if isinstance(value, str):
        return check_name(value, "lower")
    raise PlanError(f"lower: the name of a link, an Interface, or a link that isolib made is wanted, not {value!r}")


def _find_lower(lower: str | Interface) -> tuple[Where, int]:
    if isinstance(lower, Interface):
        return lower.where, lower.index
    where = Where(None)
    return where, parsing.parse_link(where.socket.ask(requests.get_link(lower))[0]).index


def _born(cls: type[LinkT], kind: str, wanted: _Wanted, data: bytes) -> LinkT:
    """Make a link that stands on nothing."""

    def request(index: int) -> Request:
        return requests.new_link(kind, wanted.attributes, name=wanted.name, index=index, up=True, data=data)

    with supported(kind), Rollback() as undo:
        return _finish(cls, wanted, undo, make_link(wanted.where, undo, wanted.name, request))


def _born_on(
    cls: type[LinkT], kind: str, lower: str | Interface, wanted: _Wanted, data: Callable[[int], bytes], *, by_link: bool = True
) -> LinkT:
    """Make a link that stands on another.

    Parameters
    ----------
    data
        Returns the attributes of its kind, from the number of that other one.
    by_link
        Whether that number is told as IFLA_LINK, too.
    """
    below, number = _find_lower(lower)
    is_here = below.socket is wanted.where.socket
    with supported(kind), _target(None if is_here else wanted.where) as net, Rollback() as undo:
        attributes = wanted.attributes + requests.link_attributes(lower=number if by_link else None, net=net)

        def request(index: int) -> Request:
            return requests.new_link(kind, attributes, name=wanted.name, index=index, up=True, data=data(number))

        made = make_link(wanted.where, undo, wanted.name, request, by=None if is_here else below)
        return _finish(cls, wanted, undo, made)


@contextmanager
def _target(where: Where | None) -> Iterator[int | None]:
    """Give a descriptor of the namespace where a link is to be born, where that is not where the request goes."""
    if where is None or where.net is not None:
        yield None if where is None or where.net is None else where.net.fileno()
        return
    here = Fd.take(os.open, "/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    assert here is not None  # noqa: S101 - os.open raises
    with here:
        yield here.fileno()


def _finish(cls: type[LinkT], wanted: _Wanted, undo: Rollback, interface: Interface) -> LinkT:
    requested = [requests.add_address(address, interface.index, wanted.name) for address in wanted.addresses]
    wanted.where.socket.send(*requested)
    settle_addresses(interface, wanted.addresses)
    made = cls._make(interface, undo)
    undo.keep()
    return made


@typed("a macvlan link")
def new_macvlan(
    lower: Lower,
    *,
    ns: HasFileno | None = None,
    name: str = "macvlan0",
    mode: str = "bridge",
    mtu: int | None = None,
    mac: str | bytes | None = None,
    addresses: Sequence[str | AnyInterface] = (),
) -> Macvlan:
    """Make a link with a MAC address of its own on another one, and bring it up.

    Parameters
    ----------
    lower
        What it stands on: an `Interface` of any namespace, a link that isolib made, or the name of a link in the namespace of
        the calling thread.
    ns
        A handle of the namespace that it is born in; None: that of the calling thread.
    name
        At most 15 bytes.
    mode
        "bridge": those on one link reach each other; "private": they do not; "vepa": by the switch outside only; "passthru":
        there is this one alone, with the address of the link below.  With none of them that link itself is reached.
    mtu
        Bytes of the longest packet; None: that of the link below, which it cannot be above.
    mac
        None: one at random.
    addresses
        Each with its network's prefix: "10.0.0.1/24".

    Returns
    -------
    Macvlan
        Owned: closing it removes the link, and so does the end of this program, of its namespace, or of the link below.

    Raises
    ------
    PlanError
        An argument cannot work; nothing was done.
    Unsupported
        The kernel has none.
    SyscallError
        The kernel refused, and nothing is left.  EEXIST: the name is taken; ENODEV: there is no such link below; EINVAL: that
        is one that carries none (loopback), or has one in mode passthru.
    ClosedError
        A namespace is closed.

    Notes
    -----
    Privileges: CAP_NET_ADMIN over both namespaces.  Kernel: CONFIG_MACVLAN.  Source: rtnetlink(7), linux/if_link.h.

    Examples
    --------
    >>> from isolib import new_netns, new_veth
    >>> from isolib.net.kinds import new_macvlan
    >>> a, b = new_netns(), new_netns()
    >>> with new_veth(a, a, names=("wire", "far")) as cable:
    ...     with new_macvlan(cable.a, ns=b, name="eth0", addresses=["10.0.0.2/24"]) as link:
    ...         link.interface.link().mode
    'bridge'
    >>> a.close(), b.close()
    (None, None)
    """
    below = _check_lower(lower)
    number = _MACVLAN_MODES[check_choice(mode, "mode", _MACVLAN_MODES)]
    wanted = _wanted(ns, name, mtu, mac, addresses)
    return _born_on(Macvlan, "macvlan", below, wanted, lambda _: codec.u32(1, number))


@typed("an ipvlan link")
def new_ipvlan(
    lower: Lower,
    *,
    ns: HasFileno | None = None,
    name: str = "ipvlan0",
    mode: str = "l2",
    isolation: str = "bridge",
    mtu: int | None = None,
    addresses: Sequence[str | AnyInterface] = (),
) -> Ipvlan:
    """Make a link with addresses of its own and the MAC address of the one below, and bring it up; otherwise as `new_macvlan`.

    Parameters
    ----------
    lower, ns, name, mtu, addresses
        As for `new_macvlan`.
    mode
        "l2": frames are passed by address; "l3": packets are routed by the namespace below, without ARP; "l3s": the same, and
        netfilter of the namespace below sees them.  All on one link have the same.
    isolation
        "bridge": those on one link reach each other; "private": they do not; "vepa": by a router outside only.

    Raises
    ------
    PlanError, Unsupported, SyscallError, ClosedError
        As in `new_macvlan`.  EBUSY: the link below carries macvlan links.

    Notes
    -----
    Privileges: as for `new_macvlan`.  Kernel: CONFIG_IPVLAN; "l3s" takes CONFIG_IPVLAN_L3S.  Source:
    Documentation/networking/ipvlan.rst.
    """
    below = _check_lower(lower)
    number = _IPVLAN_MODES[check_choice(mode, "mode", _IPVLAN_MODES)]
    flags = _IPVLAN_ISOLATION[check_choice(isolation, "isolation", _IPVLAN_ISOLATION)]
    wanted = _wanted(ns, name, mtu, None, addresses)
    data = codec.u16(1, number) + (codec.u16(2, flags) if flags else b"")
    return _born_on(Ipvlan, "ipvlan", below, wanted, lambda _: data)


@typed("a vlan link")
def new_vlan(
    lower: Lower,
    id: int,  # noqa: A002 - as it is called
    *,
    ns: HasFileno | None = None,
    name: str | None = None,
    protocol: str = "802.1Q",
    mtu: int | None = None,
    mac: str | bytes | None = None,
    addresses: Sequence[str | AnyInterface] = (),
) -> Vlan:
    """Make a link for the frames of another one that have a VLAN's number, and bring it up; otherwise as `new_macvlan`.

    Parameters
    ----------
    lower, ns, mtu, addresses
        As for `new_macvlan`.  The link below must be up.
    id
        The number, 1 to 4094.
    name
        None: "vlan" and the number.
    protocol
        "802.1Q", or "802.1ad" for the outer of two tags.
    mac
        None: that of the link below.

    Raises
    ------
    PlanError, Unsupported, SyscallError, ClosedError
        As in `new_macvlan`.  EEXIST: or the link below has this number already; ENETDOWN: the link below is down.

    Notes
    -----
    Privileges: as for `new_macvlan`.  Kernel: CONFIG_VLAN_8021Q.  Source: rtnetlink(7), linux/if_link.h.
    """
    below = _check_lower(lower)
    number = check_number(id, "id", 1, _VLAN_MOST)
    ethertype = _VLAN_PROTOCOLS[check_choice(protocol, "protocol", _VLAN_PROTOCOLS)]
    wanted = _wanted(ns, f"vlan{number}" if name is None else name, mtu, mac, addresses)
    data = codec.u16(1, number) + codec.be16(5, ethertype)
    return _born_on(Vlan, "vlan", below, wanted, lambda _: data)


@typed("a vxlan link")
def new_vxlan(
    vni: int,
    *,
    ns: HasFileno | None = None,
    name: str | None = None,
    remote: str | AnyAddress | None = None,
    local: str | AnyAddress | None = None,
    lower: Lower | None = None,
    port: int = 4789,
    learning: bool = True,
    mtu: int | None = None,
    mac: str | bytes | None = None,
    addresses: Sequence[str | AnyInterface] = (),
) -> Vxlan:
    """Make an Ethernet through UDP, and bring it up.

    Parameters
    ----------
    vni
        The number of the network, 0 to 16777215: hosts with the same are on one wire.
    ns, mac, addresses
        As for `new_macvlan`.
    name
        None: "vxlan" and the number.
    remote
        Where frames go whose place is not known: another host, or a multicast group of all of them, which takes ``lower``.
    local
        The source of what is sent; of the same family.
    lower
        The link that all goes by, as for `new_macvlan`: in whose namespace the UDP socket is.  None: as routes of ``ns`` say.
    port
        Of UDP, 1 to 65535, on all hosts the same.
    learning
        Whether it remembers behind which host a MAC address was seen.
    mtu
        Bytes of the longest packet; None: what fits through the link below, or 1500.

    Returns
    -------
    Vxlan
        Owned, as in `new_macvlan`.

    Raises
    ------
    PlanError, Unsupported, SyscallError, ClosedError
        As in `new_macvlan`.  EEXIST: or there is one with this number and port in the namespace already; EADDRINUSE: another
        program has the port.

    Notes
    -----
    Privileges: as for `new_macvlan`.  Kernel: CONFIG_VXLAN.  Source: Documentation/networking/vxlan.rst, RFC 7348.

    Examples
    --------
    >>> from isolib import new_netns, new_veth
    >>> from isolib.net.kinds import new_vxlan
    >>> a, b = new_netns(), new_netns()
    >>> with new_veth(a, b, addresses=("10.0.0.1/24", "10.0.0.2/24")):
    ...     with (
    ...         new_vxlan(7, ns=a, remote="10.0.0.2", addresses=["192.168.7.1/24"]),
    ...         new_vxlan(7, ns=b, remote="10.0.0.1", addresses=["192.168.7.2/24"]) as far,
    ...     ):
    ...         far.interface.link().vni
    7
    >>> a.close(), b.close()
    (None, None)
    """
    number = check_number(vni, "vni", 0, _VNI_MOST)
    ends = [None if end is None else check_address(end, what) for end, what in ((remote, "remote"), (local, "local"))]
    below = None if lower is None else _check_lower(lower)
    _check_ends(ends, has_lower=below is not None)
    own = [codec.u32(1, number), codec.be16(15, check_number(port, "port", 1, HIGHEST_PORT)), codec.u8(7, int(bool(learning)))]
    kinds = (_VXLAN_REMOTE, _VXLAN_LOCAL)
    own += [codec.attribute(kind[end.version], end.packed) for kind, end in zip(kinds, ends, strict=True) if end is not None]
    wanted = _wanted(ns, f"vxlan{number}" if name is None else name, mtu, mac, addresses)
    data = b"".join(own)
    if below is None:
        return _born(Vxlan, "vxlan", wanted, data)
    return _born_on(Vxlan, "vxlan", below, wanted, lambda index: data + codec.u32(3, index), by_link=False)


def _check_ends(ends: list[AnyAddress | None], *, has_lower: bool) -> None:
    remote, local = ends
    if remote is not None and local is not None and remote.version != local.version:
        raise PlanError(f"remote, local: {remote} and {local} are of different families")
    if local is not None and local.is_multicast:
        raise PlanError(f"local: {local} is a group's address, which no host has")
    if remote is not None and remote.is_multicast and not has_lower:
        raise PlanError(f"remote: {remote} is a group's address: say by which link it is reached (lower=)")


@typed("a dummy link")
def new_dummy(
    *,
    ns: HasFileno | None = None,
    name: str = "dummy0",
    mtu: int | None = None,
    mac: str | bytes | None = None,
    addresses: Sequence[str | AnyInterface] = (),
) -> Dummy:
    """Make a link with nothing behind it, and bring it up: a place for addresses, and an end for routes.

    Parameters
    ----------
    ns, name, mac, addresses
        As for `new_macvlan`.
    mtu
        Bytes of the longest packet, 68 to 65535; None: 1500.

    Returns
    -------
    Dummy
        Owned: closing it removes the link, and so does the end of this program, or of its namespace.

    Raises
    ------
    PlanError, Unsupported, SyscallError, ClosedError
        As in `new_macvlan`.

    Notes
    -----
    Privileges: CAP_NET_ADMIN over the namespace.  Kernel: CONFIG_DUMMY.
    """
    return _born(Dummy, "dummy", _wanted(ns, name, mtu, mac, addresses), b"")
