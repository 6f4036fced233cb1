"""Programs that lead a namespace's packets on without a right over the host's: what they translate, they send by own sockets.

Each gets the network's namespace as its standard input, joins it by that, makes a tap device there, and says when it is ready.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from ipaddress import IPv4Interface, IPv6Interface

    Cable = tuple[IPv4Interface | IPv6Interface, IPv4Interface | IPv6Interface]

__all__ = ["PASTA", "SLIRP4NETNS", "TRANSLATORS", "Translator"]

_NETNS: Final = "/proc/self/fd/0"
_IPV4: Final = 4
_MTU: Final = "1500"
"""As of the endpoints: a longer packet would have to be cut for them, which routers do not for IPv6."""


class Translator(NamedTuple):
    """One of these programs.

    Attributes
    ----------
    name
        Of the program.
    package
        Debian's.
    prefix
        Of the IPv4 network at its tap device.
    ends
        The numbers of the addresses there: its own, and the namespace's.
    prefix6
        The IPv6 network there, where that is not to be chosen.
    arguments
        Returns its arguments: for the name of the device, the addresses at it, the descriptor that is told of its being ready,
        and whether it is started as root.
    ready_is_stdout
        Whether that descriptor has to be its standard output, for it closes all but the standard streams.
    """

    name: str
    package: str
    prefix: int
    ends: tuple[int, int]
    prefix6: str | None
    arguments: Callable[[str, Sequence[Cable], int, bool], list[str]]
    ready_is_stdout: bool


def _pasta(device: str, cables: Sequence[Cable], _: int, as_root: bool) -> list[str]:  # noqa: FBT001 - a callback's
    words = ["--foreground", "--quiet", "--netns", _NETNS, "--no-netns-quit", "--pid", "/proc/self/fd/1"]
    words += ["--ns-ifname", device, "--mtu", _MTU]
    # Of the host, loopback would be at the gateway's address; ports would be forwarded both ways.
    words += ["--no-map-gw", "--tcp-ports", "none", "--udp-ports", "none", "--tcp-ns", "none", "--udp-ns", "none"]
    words += ["--no-dhcp", "--no-dhcpv6", "--no-ra", "--dns", "none"]
    if as_root:  # nobody, who it would be else, may not join a namespace of root's
        words += ["--runas", "0:0"]
    versions = [own.version for own, _ in cables]
    if len(versions) == 1:
        words.append("--ipv4-only" if versions[0] == _IPV4 else "--ipv6-only")
    for own, other in cables:
        words += ["--address", str(other.ip), "--gateway", str(own.ip)]
        if own.version == _IPV4:
            words += ["--netmask", str(own.network.prefixlen)]
    return words


def _slirp4netns(device: str, cables: Sequence[Cable], ready: int, _: bool) -> list[str]:  # noqa: FBT001 - a callback's
    words = ["--netns-type=path", "--enable-sandbox", "--enable-seccomp", "--disable-host-loopback", "--disable-dns"]
    words += [f"--ready-fd={ready}", f"--mtu={_MTU}"]
    for own, _own_end in cables:
        words.append(f"--cidr={own.network}" if own.version == _IPV4 else "--enable-ipv6")
    return [*words, _NETNS, device]


PASTA: Final = Translator("pasta", "passt", 30, (1, 2), None, _pasta, ready_is_stdout=True)
#: Its own addresses are the second of each network (libslirp).
SLIRP4NETNS: Final = Translator("slirp4netns", "slirp4netns", 24, (2, 100), "fd00::/64", _slirp4netns, ready_is_stdout=False)
TRANSLATORS: Final = (PASTA, SLIRP4NETNS)
"""In the order in which they are chosen."""
