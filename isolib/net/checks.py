"""Arguments of networks, checked before anything is done: names, MAC addresses, MTUs, addresses."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import TYPE_CHECKING, Final, TypeVar

from isolib.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from isolib.net.values import AnyAddress, AnyInterface, AnyNetwork

T = TypeVar("T")

__all__ = [
    "HIGHEST_PORT",
    "check_address",
    "check_alias",
    "check_choice",
    "check_interface",
    "check_interfaces",
    "check_mac",
    "check_mtu",
    "check_name",
    "check_network",
    "check_number",
    "check_pair",
]

HIGHEST_PORT: Final = 65535
#: IFNAMSIZ, less its NUL.
NAME_MAX: Final = 15
_ALIAS_MAX: Final = 255
_SMALLEST_MTU: Final = 68
_GREATEST_MTU: Final = 65535
_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]{1,15}")
_MAC: Final = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", re.IGNORECASE)


def check_name(value: str, what: str) -> str:
    """Return the name of a link, when the kernel takes it.

    Raises
    ------
    PlanError
        It is empty, longer than 15 bytes, "." or "..", or holds a slash, a colon or a space.

    Examples
    --------
    >>> check_name("eth0", "name")
    'eth0'
    """
    if not isinstance(value, str):
        raise PlanError(f"{what}: the name of a link is a str, not {value!r}")
    if _PLAIN.fullmatch(value):
        return value
    try:
        length = len(os.fsencode(value))
    except UnicodeEncodeError:
        raise PlanError(f"{what}: this name cannot be written in bytes: {value!r}") from None
    if not 1 <= length <= NAME_MAX:
        raise PlanError(f"{what}: the name of a link is 1 to {NAME_MAX} bytes long, not {length}: {value!r}")
    if value in {".", ".."} or any(
        character in "/:" or character.isspace() or not character.isprintable() for character in value
    ):
        raise PlanError(f"{what}: the name of a link cannot be a dot, nor hold a slash, a colon or a space: {value!r}")
    if "%" in value:  # the kernel would put a number there
        raise PlanError(f"{what}: the name of a link cannot hold a '%' here: {value!r}")
    return value


def check_alias(value: str, what: str = "alias") -> str:
    """Return the alias of a link, a free text of at most 255 bytes; the empty one is none.

    Raises
    ------
    PlanError
        It is no text, is longer, or holds a NUL.
    """
    if not isinstance(value, str):
        raise PlanError(f"{what}: the alias of a link is a str, not {value!r}")
    try:
        length = len(value.encode())
    except UnicodeEncodeError:
        raise PlanError(f"{what}: this text cannot be written in bytes: {value!r}") from None
    if length > _ALIAS_MAX or "\0" in value:
        raise PlanError(f"{what}: the alias of a link is at most {_ALIAS_MAX} bytes long, without a NUL: {value!r}")
    return value


def check_interfaces(values: Sequence[str | AnyInterface], what: str = "addresses") -> list[AnyInterface]:
    """Return several addresses, each with the length of its network's prefix, in their order.

    Raises
    ------
    PlanError
        One is none, is given twice, or it is no list.
    """
    given: object = values
    if not isinstance(given, (tuple, list)):
        raise PlanError(f"{what}: a list is wanted, such as ['10.0.0.1/24'], not {values!r}")
    found = [check_interface(value, f"{what}[{at}]") for at, value in enumerate(values)]
    if len(set(found)) < len(found):
        raise PlanError(f"{what}: an address is given twice: {values!r}")
    return found


def check_choice(value: str, what: str, choices: Collection[str]) -> str:
    """Return one of several words.

    Raises
    ------
    PlanError
        It is none of them.
    """
    given: object = value
    if not isinstance(given, str) or given not in choices:
        raise PlanError(f"{what}: {' or '.join(map(repr, choices))} is wanted, not {value!r}")
    return value


def check_mac(value: str | bytes, what: str) -> bytes:
    """Return a MAC address as its six bytes.

    Raises
    ------
    PlanError
        It is something else, or a group's: the address of a link has an even first byte, and is not all zeros.

    Examples
    --------
    >>> check_mac("02:42:ac:11:00:02", "mac").hex()
    '0242ac110002'
    """
    if isinstance(value, str) and _MAC.fullmatch(value):
        value = bytes.fromhex(value.replace(":", ""))
    if not isinstance(value, bytes) or len(value) != 6:  # noqa: PLR2004 - bytes of a MAC address
        raise PlanError(f"{what}: a MAC address is written '02:42:ac:11:00:02', not {value!r}")
    if value[0] & 1 or not any(value):
        raise PlanError(f"{what}: {value.hex(':')} is a group's address, or nobody's: a link cannot have it")
    return value


def check_mtu(value: int, what: str = "mtu") -> int:
    """Return an MTU in bytes that some link can have: 68 to 65535; what this one can have, the kernel says."""
    return check_number(value, what, _SMALLEST_MTU, _GREATEST_MTU)


def check_number(value: int, what: str, low: int, high: int) -> int:
    """Return a number within bounds, both included.

    Raises
    ------
    PlanError
        It is none, or beyond them.
    """
    given: object = value
    if not isinstance(given, int) or isinstance(given, bool) or not low <= value <= high:
        raise PlanError(f"{what}: a number from {low} to {high} is wanted, not {value!r}")
    return value


def check_interface(value: str | AnyInterface, what: str) -> AnyInterface:
    """Return an address with the length of its network's prefix.

    Raises
    ------
    PlanError
        It is none, has no prefix ("10.0.0.1"), or is the network's own or its broadcast address.

    Examples
    --------
    >>> check_interface("10.0.0.1/24", "address")
    IPv4Interface('10.0.0.1/24')
    """
    if isinstance(value, str):
        if "/" not in value:
            raise PlanError(f"{what}: {value!r} has no prefix: write '{value}/24' for a network of 256 addresses")
        try:
            value = ip_interface(value)
        except ValueError as error:
            raise PlanError(f"{what}: {error}") from None
    given: object = value
    if not isinstance(given, (IPv4Interface, IPv6Interface)) or "%" in str(given):  # behind it, the name of a link
        raise PlanError(f"{what}: an address with its prefix is wanted, such as '10.0.0.1/24', not {value!r}")
    network = value.network
    if network.num_addresses > 2 and value.ip == network.network_address:  # noqa: PLR2004 - both are hosts in a /31
        raise PlanError(f"{what}: {value} is the address of its network, which no host has")
    if value.version == 4 and network.num_addresses > 2 and value.ip == network.broadcast_address:  # noqa: PLR2004
        raise PlanError(f"{what}: {value} is the broadcast address of its network, which no host has")
    if value.ip.is_multicast or value.ip.is_unspecified:
        raise PlanError(f"{what}: no host can have {value.ip}")
    return value


def check_address(value: str | AnyAddress, what: str = "address") -> AnyAddress:
    """Return an address, without a prefix and without the name of a link behind it ("fe80::1%eth0").

    Raises
    ------
    PlanError
        It is something else.
    """
    # An interface of ipaddress is an address too, and its text has a prefix, which is refused.
    if isinstance(value, (str, IPv4Address, IPv6Address)):
        with suppress(ValueError):
            address = ip_address(str(value))
            if isinstance(address, IPv4Address) or address.scope_id is None:
                return address
    raise PlanError(f"{what}: {value!r} is no address; one is written as '10.77.0.5' or 'fd77::5'")


def check_network(value: str | AnyNetwork, what: str) -> AnyNetwork:
    """Return a network.

    Raises
    ------
    PlanError
        It is none, or has bits beyond its prefix.
    """
    if isinstance(value, str):
        try:
            value = ip_network(value)
        except ValueError as error:
            raise PlanError(f"{what}: {error}") from None
    if not isinstance(value, (IPv4Network, IPv6Network)):
        raise PlanError(f"{what}: a network is wanted, such as '10.1.0.0/16', not {value!r}")
    return value


def check_pair(values: Sequence[T], what: str) -> tuple[T, T]:
    """Return two values, one for each end.

    Raises
    ------
    PlanError
        There are not two of them.
    """
    given: object = values
    if not isinstance(given, (tuple, list)) or len(given) != 2:  # noqa: PLR2004 - two ends
        raise PlanError(f"{what}: two are wanted, one for each end, not {values!r}")
    return values[0], values[1]
