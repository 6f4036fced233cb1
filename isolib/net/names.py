"""The names of a network: who has which address, changed at any time by any thread, and looked up by the one that answers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from threading import Lock
from typing import TYPE_CHECKING, Final, TypeAlias

from isolib.errors import PlanError
from isolib.net.checks import check_address

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Network, IPv6Network

__all__ = ["Address", "Names", "Zone", "check_name"]

Address: TypeAlias = IPv4Address | IPv6Address

#: What host names are made of (RFC 1123, 2.1), and the underscore, which many have all the same.
_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
#: RFC 1035, 2.3.4: 255 bytes with a length before each label and the root's at the end.
_LONGEST: Final = 253


def check_name(name: str, what: str = "name") -> str:
    """Return a domain name as it is looked up: in lower case, without the dot at its end.

    Raises
    ------
    PlanError
        It cannot be the name of a host. One with other letters than ASCII's is to be written as programs ask for it, `xn--...`.

    Examples
    --------
    >>> check_name("DB-1.Example.")
    'db-1.example'
    """
    if not isinstance(name, str):
        raise PlanError(f"{what}: a name is a str, not {name!r}")
    folded = name.removesuffix(".").lower()
    if not name.isascii() or len(folded) > _LONGEST or not all(map(_LABEL.fullmatch, folded.split("."))):
        raise PlanError(
            f"{what}: labels of 1 to 63 letters, digits, hyphens and underscores, {_LONGEST} characters in all, not {name!r}"
        )
    return folded


class Names:
    """Which name has which addresses, and the other way round.

    A name may be given more than once, also with the same address, and then must be taken as often: several endpoints may share
    one. Each operation is whole for those who look up meanwhile.

    Examples
    --------
    >>> from ipaddress import ip_address
    >>> names = Names()
    >>> names.add("db", ["10.0.0.2", "fd00::2"])
    >>> names.addresses("db")
    (IPv4Address('10.0.0.2'), IPv6Address('fd00::2'))
    >>> names.names(ip_address("10.0.0.2"))
    ('db',)
    >>> names.discard("db", ["10.0.0.2", "fd00::2"])
    >>> "db" in names
    False
    """

    def __init__(self) -> None:
        self._lock = Lock()  # of those who change it; to look up is one operation of a dictionary, which needs none
        self._addresses: dict[str, tuple[Address, ...]] = {}
        self._names: dict[Address, tuple[str, ...]] = {}

    def add(self, name: str, addresses: Iterable[str | Address]) -> None:
        """Give a name to addresses, in addition to those that have it.

        Raises
        ------
        PlanError
            It is no name of a host, or one of them no address; nothing has changed then.
        """
        key, values = check_name(name), _parse(addresses)
        with self._lock:
            self._addresses[key] = self._addresses.get(key, ()) + values
            for value in values:
                self._names[value] = (*self._names.get(value, ()), key)

    def discard(self, name: str, addresses: Iterable[str | Address]) -> None:
        """Take a name from addresses, once from each that has it."""
        key, values = check_name(name), _parse(addresses)
        with self._lock:
            for value in values:
                _take(self._addresses, key, value)
                _take(self._names, value, key)

    def addresses(self, name: str) -> tuple[Address, ...]:
        """Return the addresses of a name that is as `check_name` makes it; each once, the oldest first."""
        return tuple(dict.fromkeys(self._addresses.get(name, ())))

    def names(self, address: Address) -> tuple[str, ...]:
        """Return the names of an address; each once, the oldest first."""
        return tuple(dict.fromkeys(self._names.get(address, ())))

    def __contains__(self, name: str) -> bool:
        return name in self._addresses

    def __len__(self) -> int:
        return len(self._addresses)

    def has_below(self, name: str) -> bool:
        """Return whether a name has others below it, as `example` has when there is `db.example`."""
        end = f".{name}"
        return any(each.endswith(end) for each in self._addresses.copy())

    def table(self) -> dict[Address, tuple[str, ...]]:
        """Return the names of each address as they are now, as a file `hosts` has them."""
        with self._lock:
            return {address: tuple(dict.fromkeys(names)) for address, names in self._names.items()}

    def __repr__(self) -> str:
        return f"<Names of {len(self._names)} addresses>"


@dataclass(frozen=True, slots=True)
class Zone:
    """What a network's responder answers from.

    Attributes
    ----------
    names
        The names as they are when they are asked for.
    domain
        The domain of the network, or None. The names are known below it too.
    subnets
        The addresses of the network, whose names nobody else knows.
    forwards
        Whether there are resolvers to ask for everything else.
    """

    names: Names
    domain: str | None = None
    subnets: tuple[IPv4Network | IPv6Network, ...] = ()
    forwards: bool = False

    def __post_init__(self) -> None:
        if self.domain is not None:
            object.__setattr__(self, "domain", check_name(self.domain, "domain"))


def _parse(addresses: Iterable[str | Address]) -> tuple[Address, ...]:
    return tuple(check_address(one, "addresses") for one in ([addresses] if isinstance(addresses, str) else addresses))


def _take(table: dict, key: object, value: object) -> None:  # type: ignore[type-arg]
    left = list(table.get(key, ()))
    if value in left:
        left.remove(value)
    if left:
        table[key] = tuple(left)
    else:
        table.pop(key, None)
