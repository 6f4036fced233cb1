"""Which destinations may be reached: decisions about addresses and networks, and what is refused in all.  Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from ipaddress import IPv4Network, IPv6Network
    from typing import Self

    Subnet: TypeAlias = "IPv4Network | IPv6Network"

__all__ = ["Egress", "Interval"]

_BITS: Final = {4: 32, 6: 128}


class Interval(NamedTuple):
    """Addresses, as numbers, from the first to before the end."""

    start: int
    end: int


@dataclass(frozen=True)
class Egress:
    """What may be reached.

    Of several decisions about one address, that about the smallest network counts, as with routes.

    Attributes
    ----------
    decisions
        Networks that may be reached, and such that may not.
    open
        Whether everything else may.

    Examples
    --------
    >>> from ipaddress import ip_network
    >>> lab = Egress(open=False).decide([ip_network("10.0.0.0/8")], allowed=True)
    >>> [hex(number) for interval in lab.refused(4) for number in interval]
    ['0x0', '0xa000000', '0xb000000', '0x100000000']
    """

    decisions: Mapping[Subnet, bool] = field(default_factory=dict)
    open: bool = True

    def decide(self, networks: Iterable[Subnet], *, allowed: bool) -> Self:
        """Return the same with networks allowed or refused; what was decided about the same ones before is forgotten."""
        return replace(self, decisions={**self.decisions, **dict.fromkeys(networks, allowed)})

    def refused(self, version: int) -> list[Interval]:
        """Return what may not be reached of IPv4 (4) or IPv6 (6): intervals in order that neither overlap nor touch."""
        found: list[Interval] = []
        around = [(1 << _BITS[version], self.open)]
        at = 0

        def pass_to(end: int, *, allowed: bool) -> None:
            nonlocal at
            if not allowed and at < end:
                start = found.pop().start if found and found[-1].end == at else at
                found.append(Interval(start, end))
            at = max(at, end)

        networks = (one for one in self.decisions if one.version == version)
        for network in sorted(networks, key=lambda one: (int(one.network_address), one.prefixlen)):
            start = int(network.network_address)
            while around[-1][0] <= start:
                end, allowed = around.pop()
                pass_to(end, allowed=allowed)
            pass_to(start, allowed=around[-1][1])
            around.append((start + network.num_addresses, self.decisions[network]))
        while around:
            end, allowed = around.pop()
            pass_to(end, allowed=allowed)
        return found
