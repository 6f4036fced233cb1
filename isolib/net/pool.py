"""Which subnet a network has, and which of its addresses are free.  Pure: the caller says what is taken elsewhere."""

from __future__ import annotations

import secrets
import threading
from bisect import bisect_right
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING, Final, TypeAlias

from isolib.errors import PlanError
from isolib.net.checks import check_address

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["IPAddress", "IPNetwork", "Pool", "choose_subnet", "choose_ula", "parse_subnet", "usable"]

IPAddress: TypeAlias = IPv4Address | IPv6Address
IPNetwork: TypeAlias = IPv4Network | IPv6Network

REMEMBERED: Final = 4096
"""How many released addresses a pool keeps in mind, to give them out again last."""
BROAD: Final = 7
"""A route with a prefix at most this long is a default route or a piece of one, as VPNs set them, and takes no subnet."""
ULA_BITS: Final = 56
"""What is free to choose of a unique local /64 (RFC 4193): 40 bits for the site, 16 for the subnet."""

#: Where subnets are looked for (RFC 1918), in this order. Home routers, clouds and VPNs like the beginning of 10.0.0.0/8 best.
_AREAS: Final = tuple(
    (int(IPv4Address(first)), int(IPv4Address(last)))
    for first, last in (
        ("10.77.0.0", "10.255.255.255"),
        ("172.16.0.0", "172.31.255.255"),
        ("192.168.0.0", "192.168.255.255"),
        ("10.0.0.0", "10.76.255.255"),
    )
)
_ULA: Final = IPv6Network("fd00::/8")
_WIDEST: Final = 9
_NARROWEST: Final = 31
#: What the kernel does not treat as ordinary addresses of an interface, and so cannot be a network's.
_SPECIAL: Final[dict[IPNetwork, str]] = {
    IPv4Network("0.0.0.0/8"): "mean no address",
    IPv4Network("127.0.0.0/8"): "never leave their host",
    IPv4Network("224.0.0.0/4"): "are of groups (multicast)",
    IPv4Network("255.255.255.255/32"): "are of everybody (broadcast)",
    IPv6Network("::/8"): "are reserved: loopback, IPv4 in IPv6",
    IPv6Network("fe80::/10"): "are of links, where every interface has one of its own",
    IPv6Network("ff00::/8"): "are of groups (multicast)",
}


def parse_subnet(value: str | IPNetwork, what: str = "subnet", *, taken: Iterable[IPNetwork] = ()) -> IPNetwork:
    """Return a subnet that a network can have.

    Parameters
    ----------
    value
        As ``"10.77.0.0/24"`` or ``"fd77::/64"``. Public addresses are allowed: inside, they hide those of the internet.
    what
        The name of the argument, for the message.
    taken
        Subnets that it must not overlap.

    Raises
    ------
    PlanError
        It is no subnet, has bits set after its prefix, holds addresses that are no host's, has no room for a gateway and
        one endpoint (smaller than /31 or /127), or overlaps one that is taken.

    Examples
    --------
    >>> parse_subnet("10.77.0.0/24")
    IPv4Network('10.77.0.0/24')
    >>> parse_subnet("10.77.0.5/24")
    Traceback (most recent call last):
        ...
    isolib.PlanError: subnet: '10.77.0.5/24' is an address with a prefix; the subnet that it is in is 10.77.0.0/24
    """
    if not isinstance(value, (str, IPv4Network, IPv6Network)):
        raise PlanError(f"{what}: a subnet is a str or a network of ipaddress, not {value!r}")
    try:
        subnet = ip_network(value, strict=False)
    except ValueError:
        raise PlanError(f"{what}: {value!r} is no subnet; one is written as '10.77.0.0/24' or 'fd77::/64'") from None
    if subnet.prefixlen == subnet.max_prefixlen:
        most = subnet.max_prefixlen - 1
        raise PlanError(
            f"{what}: {subnet} is one address, and a gateway and an endpoint are two: the smallest subnet is a /{most}"
        )
    if isinstance(value, str) and not _is_strict(value):
        raise PlanError(f"{what}: {value!r} is an address with a prefix; the subnet that it is in is {subnet}")
    for special, why in _SPECIAL.items():
        if special.version == subnet.version and subnet.overlaps(special):
            raise PlanError(f"{what}: {subnet} overlaps {special}, whose addresses {why}")
    for other in taken:
        if other.version == subnet.version and subnet.overlaps(other):
            raise PlanError(f"{what}: {subnet} overlaps {other}, which is taken")
    return subnet


def _is_strict(text: str) -> bool:
    try:
        ip_network(text)
    except ValueError:
        return False
    return True


def usable(subnet: IPNetwork) -> tuple[int, int]:
    """Return the first and the last address of a subnet that a host can have, as numbers.

    The first of all is the network's name or, in IPv6, every router's (RFC 4291, 2.6.1), and the last in IPv4 is everybody's.
    A /31 and a /127 have neither (RFC 3021, RFC 6164), and the kernel knows that.

    Examples
    --------
    >>> first, last = usable(IPv4Network("10.77.0.0/24"))
    >>> str(IPv4Address(first)), str(IPv4Address(last))
    ('10.77.0.1', '10.77.0.254')
    """
    first, last = int(subnet.network_address), int(subnet.broadcast_address)
    if subnet.prefixlen >= subnet.max_prefixlen - 1:
        return first, last
    return first + 1, last - isinstance(subnet, IPv4Network)


def address_of(number: int, subnet: IPNetwork) -> IPAddress:
    """Return the address that a number is, of the IP version of a subnet."""
    return IPv4Address(number) if isinstance(subnet, IPv4Network) else IPv6Address(number)


def choose_subnet(taken: Iterable[IPNetwork] = (), *, prefix: int = 24) -> IPv4Network:
    """Return a private IPv4 subnet that overlaps none of those that are taken.

    The same ones taken, the same one is chosen: the first free of 10.77.0.0 to 10.255.255.255, 172.16.0.0/12,
    192.168.0.0/16 and the rest of 10.0.0.0/8.

    Parameters
    ----------
    taken
        The destinations of the host's routes, the subnets of its addresses, those of other networks; of IPv6 too, which
        do not matter here. Default routes, and their pieces up to /7, do not count.
    prefix
        How long its prefix is, from 9 to 31.

    Raises
    ------
    PlanError
        There is none, or the prefix is another number.

    Examples
    --------
    >>> choose_subnet([IPv4Network("0.0.0.0/0"), IPv4Network("10.77.0.0/23")])
    IPv4Network('10.77.2.0/24')
    """
    if not _is_number(prefix, _WIDEST, _NARROWEST):
        raise PlanError(f"prefix={prefix!r}: the prefix of a subnet to be chosen is a number from {_WIDEST} to {_NARROWEST}")
    busy = _busy(taken, 4)
    size = 1 << (32 - prefix)
    for first, last in _AREAS:
        if (found := _gap(first, last, size, busy)) is not None:
            return IPv4Network((found, prefix))
    raise PlanError(
        f"no private /{prefix} is free: routes and networks take all of 10.0.0.0/8, 172.16.0.0/12 and 192.168.0.0/16 "
        "-- give the network a subnet, which may be one that is not private"
    )


def choose_ula(taken: Iterable[IPNetwork] = (), *, bits: int | None = None) -> IPv6Network:
    """Return a unique local IPv6 subnet, a /64, that overlaps none of those that are taken.

    Parameters
    ----------
    taken
        As of `choose_subnet`; those of IPv4 do not matter here.
    bits
        The 56 bits between ``fd`` and the host's part, or where to begin to look if that is taken. None: random ones, as
        RFC 4193 asks, so that networks that are joined one day do not clash.

    Raises
    ------
    PlanError
        There is none, or there are more bits.

    Examples
    --------
    >>> choose_ula(bits=0x77_0000_0000_0001)
    IPv6Network('fd77:0:0:1::/64')
    """
    if bits is None:
        bits = secrets.randbits(ULA_BITS)
    elif not _is_number(bits, 0, (1 << ULA_BITS) - 1):
        raise PlanError(f"bits={bits!r}: the bits of a unique local subnet are a number of at most {ULA_BITS} bits")
    first, last = int(_ULA.network_address), int(_ULA.broadcast_address)
    start, size = first | bits << 64, 1 << 64
    busy = _busy(taken, 6)
    found = _gap(start, last, size, busy)
    if found is None:
        found = _gap(first, start - 1, size, busy)
    if found is None:
        raise PlanError(f"no unique local /64 is free: routes and networks take all of {_ULA} -- give the network a subnet")
    return IPv6Network((found, 64))


def _is_number(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _counts(network: IPNetwork, version: int) -> bool:
    return network.version == version and network.prefixlen > BROAD


def _busy(taken: Iterable[IPNetwork], version: int) -> list[tuple[int, int]]:
    """Return what is taken as ranges that do not touch, in order."""
    ranges = sorted((int(one.network_address), int(one.broadcast_address)) for one in taken if _counts(one, version))
    merged: list[tuple[int, int]] = []
    for first, last in ranges:
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(merged[-1][1], last)
        else:
            merged.append((first, last))
    return merged


def _gap(first: int, last: int, size: int, busy: list[tuple[int, int]]) -> int | None:
    """Return where the first free block of a size is, a multiple of which it starts at."""
    start = first + -first % size
    while start + size - 1 <= last:
        before = bisect_right(busy, start + size - 1, key=itemgetter(0)) - 1
        if before < 0 or busy[before][1] < start:
            return start
        start = busy[before][1] + 1
        start += -start % size
    return None


class Pool:
    """The addresses of a subnet, of which each is given out once at a time.  Threads may share it.

    Neither the network's own address is given out, nor the broadcast address, nor the gateway's. A released address comes
    last again, so that whoever still remembers its last owner does not meet another one. What a pool costs depends on how
    many addresses are taken, not on how many there are.

    Parameters
    ----------
    subnet
        As of `parse_subnet`.
    gateway
        The address that is the gateway's for good; by default the first.

    Attributes
    ----------
    subnet, gateway
        As values of `ipaddress`.
    size
        How many addresses there are to be taken.

    Raises
    ------
    PlanError
        The subnet cannot be one, or the gateway cannot be in it.

    Examples
    --------
    >>> pool = Pool("10.77.0.0/24")
    >>> pool.take(), pool.take("10.77.0.200")
    (IPv4Address('10.77.0.2'), IPv4Address('10.77.0.200'))
    >>> pool
    <Pool 10.77.0.0/24, gateway 10.77.0.1, 2 of 253 taken>
    """

    def __init__(self, subnet: str | IPNetwork, gateway: str | IPAddress | None = None) -> None:
        self.subnet = parse_subnet(subnet)
        self._kind = IPv4Address if isinstance(self.subnet, IPv4Network) else IPv6Address
        self._first, self._last = usable(self.subnet)
        self.size = self._last - self._first
        self._gateway = self._first if gateway is None else self._number(gateway, "gateway")
        self.gateway = self._address(self._gateway)
        self._lock = threading.Lock()
        self._taken: set[int] = set()
        #: Oldest first. What is forgotten is as an address that was never taken.
        self._released: dict[int, None] = {}
        self._next = self._first

    def take(self, address: str | IPAddress | None = None, what: str = "address") -> IPAddress:
        """Return an address that is nobody else's until it is released.

        Parameters
        ----------
        address
            Which one; None: the next of those that were never taken, else the one whose release is longest ago.
        what
            The name of the argument, for the message.

        Raises
        ------
        PlanError
            It is not in the subnet, is nobody's to have, or is taken; or all are.
        """
        number = None if address is None else self._number(address, what)
        with self._lock:
            if number is None:
                number = self._free()
            elif number == self._gateway:
                raise PlanError(f"{what}: {address} is the gateway of {self.subnet}")
            elif number in self._taken:
                raise PlanError(f"{what}: {address} is taken")
            self._released.pop(number, None)
            self._taken.add(number)
        return self._address(number)

    def release(self, address: str | IPAddress) -> None:
        """Give back an address.

        Raises
        ------
        PlanError
            It is not taken.
        """
        number = self._number(address, "address")
        with self._lock:
            if number not in self._taken:
                raise PlanError(f"address: {address} is not taken")
            self._taken.remove(number)
            self._released[number] = None
            if len(self._released) > REMEMBERED:
                del self._released[next(iter(self._released))]

    @property
    def free(self) -> int:
        """How many addresses can still be taken."""
        return self.size - len(self._taken)

    def taken(self) -> tuple[IPAddress, ...]:
        """Return the addresses that are taken, in order, without the gateway's."""
        with self._lock:
            numbers = sorted(self._taken)
        return tuple(map(self._address, numbers))

    def __repr__(self) -> str:
        return f"<Pool {self.subnet}, gateway {self.gateway}, {len(self._taken)} of {self.size} taken>"

    def _address(self, number: int) -> IPAddress:
        return self._kind(number)

    def _number(self, value: str | IPAddress, what: str) -> int:
        address = value if isinstance(value, self._kind) else check_address(value, what)
        if address not in self.subnet:
            raise PlanError(f"{what}: {address} is not in {self.subnet}")
        number = int(address)
        if not self._first <= number <= self._last:
            raise PlanError(f"{what}: {address} is no host's: in {self.subnet} those have {self._ends()}")
        return number

    def _ends(self) -> str:
        return f"{self._address(self._first)} to {self._address(self._last)}"

    def _free(self) -> int:
        if not self.free:
            raise PlanError(
                f"{self.subnet} is full: of {self.size} addresses {self.size} are taken -- detach an endpoint, or make the "
                "network with a larger subnet"
            )
        if self.free == len(self._released):
            return next(iter(self._released))
        number = self._next
        if not self._is_new(number):
            number = next(filter(self._is_new, self._round()))
        self._next = number + 1
        return number

    def _is_new(self, number: int) -> bool:
        return number <= self._last and number != self._gateway and number not in self._taken and number not in self._released

    def _round(self) -> Iterator[int]:
        """Return every address once, from where the last one was found."""
        return chain(range(self._next, self._last + 1), range(self._first, self._next))
