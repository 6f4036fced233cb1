"""What programs read to find each other by name: resolv.conf(5) and hosts(5), as texts."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from isolib.errors import PlanError
from isolib.net.names import check_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from isolib.net.names import Address

__all__ = ["hosts", "nameservers", "resolv_conf"]

#: What the resolver of glibc reads; it ignores more without a word (resolv.conf(5), MAXNS).
_SERVERS: Final = 3
#: Of glibc before 2.26, and others (resolv.conf(5), MAXDNSRCH).
_DOMAINS: Final = 6

_LOCAL: Final = """\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
"""


def resolv_conf(servers: Sequence[str | Address], *, search: Sequence[str] = (), options: Sequence[str] = ("ndots:0",)) -> str:
    """Return a resolv.conf.

    Parameters
    ----------
    servers
        Whom to ask, at most three. Without any, programs ask 127.0.0.1.
    search
        The domains that are put behind a name that is not found as it is, at most six.
    options
        As in resolv.conf(5). With ``ndots:0`` a name is first looked for as it is, also one without a dot, as the names of a
        network are.

    Raises
    ------
    PlanError
        There are too many, or one is no address, name or option.

    Examples
    --------
    >>> print(resolv_conf(["10.0.0.1"], search=["lab"]), end="")
    nameserver 10.0.0.1
    search lab
    options ndots:0
    """
    if len(servers) > _SERVERS or len(search) > _DOMAINS:
        raise PlanError(f"at most {_SERVERS} servers and {_DOMAINS} domains, not {len(servers)} and {len(search)}")
    if any(not option or not option.isprintable() or " " in option for option in options):
        raise PlanError(f"options: words, not {options!r}")
    lines = [f"nameserver {_address(server)}" for server in servers]
    if search:
        lines.append("search " + " ".join(check_name(domain, "search") for domain in search))
    if options:
        lines.append("options " + " ".join(options))
    return "\n".join(lines) + "\n"


def nameservers(text: str) -> tuple[str, ...]:
    """Return the servers that a resolv.conf names, those that glibc asks.

    Examples
    --------
    >>> nameservers(resolv_conf(["9.9.9.9", "fe80::1%eth0"], search=["lab"]))
    ('9.9.9.9', 'fe80::1%eth0')
    """
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            try:
                ip_address(words[1])
            except ValueError:
                continue
            found.append(words[1])
    return tuple(found[:_SERVERS])


def hosts(
    entries: Mapping[Address, Iterable[str]] | Iterable[tuple[str | Address, Iterable[str]]], *, domain: str | None = None
) -> str:
    """Return a file `hosts`: localhost, and one line for each address.

    Parameters
    ----------
    entries
        Addresses and their names: the first is the one that an address is shown as. An address without names has no line.
    domain
        What is put behind the first name for the full one, which comes before all (hosts(5): the canonical name).

    Raises
    ------
    PlanError
        One is no address, or no name.

    Examples
    --------
    >>> print(hosts([("10.0.0.2", ["db", "primary"])], domain="lab").expandtabs(12), end="")
    127.0.0.1   localhost
    ::1         localhost ip6-localhost ip6-loopback
    10.0.0.2    db.lab db primary
    """
    pairs = entries.items() if hasattr(entries, "items") else entries
    lines = [_LOCAL]
    for address, given in pairs:
        names = [check_name(name) for name in given]
        if names and domain is not None:
            names.insert(0, f"{names[0]}.{check_name(domain, 'domain')}")
        if names:
            lines.append(f"{_address(address)}\t{' '.join(dict.fromkeys(names))}\n")
    return "".join(lines)


def _address(value: str | Address) -> str:
    try:
        return str(ip_address(value))
    except ValueError as error:
        raise PlanError(f"{error}") from None
