"""nftables: the requests for tables, chains, sets and rules, and what the kernel has of them.  Nothing here asks it anything.

Every request is sent in a batch (`Socket.batch`), which the kernel carries out as a whole or not at all.  The numbers of the
sets' types are those of the program nft, which shows sets by them; the kernel only keeps them.

Source: linux/netfilter/nf_tables.h, nft(8).
"""

from __future__ import annotations

import struct
import sys
from bisect import bisect_right
from dataclasses import dataclass
from errno import EEXIST, ENOENT, EOPNOTSUPP, EPERM
from typing import TYPE_CHECKING, Final, NamedTuple

from isolib._kernel.netlink import codec
from isolib._kernel.netlink.nft_expressions import decode, encode
from isolib._kernel.netlink.socket import Request

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from isolib._kernel.netlink.codec import Message
    from isolib._kernel.netlink.nft_expressions import Expression

__all__ = [
    "ADDRESS",
    "BRIDGE",
    "EGRESS",
    "FORWARD",
    "INET",
    "INPUT",
    "IPV4",
    "IPV6",
    "NAMES_OF_FAMILIES",
    "NETDEV",
    "OUTPUT",
    "POSTROUTING",
    "PREROUTING",
    "SUBSYSTEM",
    "Element",
    "Hook",
    "Kind",
    "Rule",
    "Scope",
    "joined",
    "key",
    "parse_elements",
    "parse_rule",
]

#: linux/netfilter/nfnetlink.h
SUBSYSTEM: Final = 10

# linux/netfilter.h
INET: Final = 1
IPV4: Final = 2
NETDEV: Final = 5
BRIDGE: Final = 7
IPV6: Final = 10
NAMES_OF_FAMILIES: Final[Mapping[int, str]] = {INET: "inet", IPV4: "ip", NETDEV: "netdev", BRIDGE: "bridge", IPV6: "ip6"}

PREROUTING: Final = 0
INPUT: Final = 1
FORWARD: Final = 2
OUTPUT: Final = 3
POSTROUTING: Final = 4

#: Of `NETDEV`: what one interface sends (Linux 5.16).
EGRESS: Final = 1

NEW_TABLE: Final = 0
DELETE_TABLE: Final = 2
NEW_CHAIN: Final = 3
DELETE_CHAIN: Final = 5
NEW_RULE: Final = 6
GET_RULE: Final = 7
DELETE_RULE: Final = 8
NEW_SET: Final = 9
DELETE_SET: Final = 11
NEW_ELEMENTS: Final = 12
GET_ELEMENTS: Final = 13
DELETE_ELEMENTS: Final = 14
_NAMES: Final = {
    NEW_TABLE: "NFT_MSG_NEWTABLE",
    DELETE_TABLE: "NFT_MSG_DELTABLE",
    NEW_CHAIN: "NFT_MSG_NEWCHAIN",
    DELETE_CHAIN: "NFT_MSG_DELCHAIN",
    NEW_RULE: "NFT_MSG_NEWRULE",
    GET_RULE: "NFT_MSG_GETRULE",
    DELETE_RULE: "NFT_MSG_DELRULE",
    NEW_SET: "NFT_MSG_NEWSET",
    DELETE_SET: "NFT_MSG_DELSET",
    NEW_ELEMENTS: "NFT_MSG_NEWSETELEM",
    GET_ELEMENTS: "NFT_MSG_GETSETELEM",
    DELETE_ELEMENTS: "NFT_MSG_DELSETELEM",
}

_OWNER: Final = 2
_INTERVAL: Final = 4
_MAP: Final = 8
_INTERVAL_END: Final = 1
_COMMENT: Final = 0  # libnftnl/udata.h: what the program nft keeps in the user data of a rule
_KEY_ORDER: Final = 0  # the same, of a set
_OWN_ORDER: Final = 1
_NETWORK_ORDER: Final = 2
_WORD: Final = 4
_LONGEST_COMMENT: Final = 127  # what nft(8) takes
_HEAD: Final = struct.Struct(">BBH")
#: What the kernel means, by the message.
_HINTS: Final[Mapping[int, Mapping[int, str]]] = {
    NEW_TABLE: {
        EEXIST: "there is a table of this name",
        EPERM: "it takes CAP_NET_ADMIN over the network namespace; or a table of this name belongs to another socket",
    },
    NEW_CHAIN: {
        ENOENT: "the kernel has no chains of this type here (CONFIG_NF_NAT: modprobe nft_chain_nat), or not the table",
        EOPNOTSUPP: "this kernel has no such hook (for what an interface sends: CONFIG_NETFILTER_EGRESS, Linux 5.16)",
    },
    NEW_RULE: {ENOENT: "there is no such chain or set; or the kernel lacks what the rule does (CONFIG_NFT_*, or its module)"},
    NEW_ELEMENTS: {EEXIST: "it is in the set already, or overlaps with what is", ENOENT: "there is no such set"},
    DELETE_ELEMENTS: {ENOENT: "it is not in the set, or there is no such set"},
}
#: The elements of one message are one attribute, which holds 65,531 bytes; each takes at most 130.
_TOGETHER: Final = 400


class Kind(NamedTuple):
    """A type of the keys and values in sets and maps: the number that nft knows it by, its bytes, and their order.

    The order is 1 for the machine's own, 2 for the network's, 0 for a concatenation.
    """

    number: int
    size: int
    order: int = _NETWORK_ORDER


ADDRESS: Final[Mapping[int, Kind]] = {IPV4: Kind(7, 4), IPV6: Kind(8, 16)}
PROTOCOL: Final = Kind(12, 1)
PORT: Final = Kind(13, 2)
MARK: Final = Kind(19, 4, _OWN_ORDER)
IFNAME: Final = Kind(41, 16, _OWN_ORDER)
_BITS: Final = 6  # of a type's number within that of a concatenation


def joined(*kinds: Kind) -> Kind:
    """Return the type of several values one after the other, each padded to four bytes."""
    number = 0
    for one in kinds:
        number = number << _BITS | one.number
    return Kind(number, sum(one.size + -one.size % _WORD for one in kinds), 0)


def key(*values: bytes) -> bytes:
    r"""Return values as a key of several, each padded to four bytes.

    Examples
    --------
    >>> key(b"\x06", b"\x00\x50").hex()
    '0600000000500000'
    """
    return b"".join(one + bytes(-len(one) % _WORD) for one in values)


class Element(NamedTuple):
    """What is in a set: a key; the first one beyond it, where it is an interval; what it is mapped to, if anything.

    In a set of intervals, one without an end reaches to the last key there is.
    """

    key: bytes
    end: bytes | None = None
    value: bytes | None = None


class Hook(NamedTuple):
    """Where packets come into a chain: hook, place among others there, kind of chain; of `NETDEV`, the interface."""

    hook: int
    priority: int
    type: str = "filter"
    accepts: bool = True
    device: str | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule, as the kernel has it.

    Attributes
    ----------
    family, table, chain
        Where it is: ``"inet"``, ``"bridge"``.
    expressions
        What it does, counters with what they have counted.
    comment
        What was written beside it.
    handle
        Its number in the table.
    """

    family: str
    table: str
    chain: str
    expressions: tuple[Expression, ...]
    comment: str = ""
    handle: int = 0


@dataclass(frozen=True, slots=True)
class Scope:
    """A table, and the requests about what is in it.

    Attributes
    ----------
    family
        Of which protocol: `INET`, `BRIDGE`.
    name
        Its name.
    """

    family: int
    name: str

    @property
    def label(self) -> str:
        """What it is called in errors."""
        return f"table {NAMES_OF_FAMILIES[self.family]} {self.name}"

    def _request(self, kind: int, *attributes: bytes, flags: int = 0, what: str = "") -> Request:
        body = _HEAD.pack(self.family, 0, 0) + codec.text(1, self.name) + b"".join(attributes)
        target = f"{self.label}: {what}" if what else self.label
        return Request(SUBSYSTEM << 8 | kind, body, flags, _NAMES[kind], target, _HINTS.get(kind, {}))

    def new(self, *, owned: bool) -> Request:
        """Make it; when owned (Linux 5.12), nobody else can change it, and it goes with the socket that it was made by."""
        return self._request(NEW_TABLE, codec.be32(2, _OWNER if owned else 0), flags=codec.CREATE | codec.EXCL)

    def delete(self) -> Request:
        """Remove it with all that is in it."""
        return self._request(DELETE_TABLE)

    def new_chain(self, chain: str, hook: Hook | None = None) -> Request:
        """Make a chain; without a hook, one that others lead to."""
        attributes = [codec.text(3, chain)]
        if hook is not None:
            where = [codec.be32(1, hook.hook), codec.attribute(2, struct.pack(">i", hook.priority))]
            if hook.device is not None:
                where.append(codec.text(3, hook.device))
            attributes += [codec.nested(4, *where), codec.be32(5, int(hook.accepts)), codec.text(7, hook.type)]
        return self._request(NEW_CHAIN, *attributes, flags=codec.CREATE | codec.EXCL, what=f"chain {chain}")

    def add(self, chain: str, expressions: Iterable[Expression], comment: str = "") -> Request:
        """Add a rule at the end of a chain."""
        attributes = [codec.text(2, chain), codec.nested(4, encode(*expressions))]
        if comment:
            words = comment.encode() + b"\0"
            if len(words) > _LONGEST_COMMENT + 1:
                raise ValueError(f"a comment of a rule has at most {_LONGEST_COMMENT} bytes: {comment!r}")
            attributes.append(codec.attribute(7, bytes((_COMMENT, len(words))) + words))
        return self._request(NEW_RULE, *attributes, flags=codec.CREATE | codec.APPEND, what=f"rule of {chain}")

    def remove(self, chain: str, handle: int) -> Request:
        """Remove one rule."""
        return self._request(DELETE_RULE, codec.text(2, chain), codec.be64(3, handle), what=f"rule {handle} of {chain}")

    def empty(self, chain: str) -> Request:
        """Remove all rules of a chain."""
        return self._request(DELETE_RULE, codec.text(2, chain), what=f"rules of {chain}")

    def new_set(self, name: str, of: Kind, to: Kind | None = None, *, intervals: bool = False, number: int = 1) -> Request:
        """Make a set; with ``to``, a map.  Those of one batch have different numbers."""
        flags = (_INTERVAL if intervals else 0) | (_MAP if to is not None else 0)
        attributes = [codec.text(2, name), codec.be32(3, flags), codec.be32(4, of.number), codec.be32(5, of.size)]
        if to is not None:
            attributes += [codec.be32(6, to.number), codec.be32(7, to.size)]
        order = bytes((_KEY_ORDER, 4)) + of.order.to_bytes(4, sys.byteorder)
        attributes += [codec.be32(10, number), codec.attribute(13, order)]
        return self._request(NEW_SET, *attributes, flags=codec.CREATE | codec.EXCL, what=f"set {name}")

    def delete_set(self, name: str) -> Request:
        """Remove a set that no rule uses."""
        return self._request(DELETE_SET, codec.text(2, name), what=f"set {name}")

    def put(self, name: str, elements: Sequence[Element]) -> list[Request]:
        """Put elements into a set; one that is there with another value is an error, EEXIST."""
        return self._elements(NEW_ELEMENTS, name, elements, codec.CREATE)

    def take(self, name: str, elements: Sequence[Element]) -> list[Request]:
        """Take elements out of a set; one that is not there is an error, ENOENT."""
        return self._elements(DELETE_ELEMENTS, name, elements, 0)

    def clear(self, name: str) -> Request:
        """Take all elements out of a set."""
        return self._request(DELETE_ELEMENTS, codec.text(2, name), what=f"elements of {name}")

    def _elements(self, kind: int, name: str, elements: Sequence[Element], flags: int) -> list[Request]:
        parts = [part for one in elements for part in _element(one)]
        return [
            self._request(
                kind,
                codec.text(2, name),
                codec.nested(3, *(codec.nested(1, part) for part in parts[at : at + _TOGETHER])),
                flags=flags,
                what=f"elements of {name}",
            )
            for at in range(0, len(parts), _TOGETHER)
        ]

    def rules(self, chain: str | None = None) -> Request:
        """Ask for all rules, or those of one chain, by `Socket.dump`."""
        return self._request(GET_RULE, *(() if chain is None else (codec.text(2, chain),)))

    def elements(self, name: str) -> Request:
        """Ask for what is in a set, by `Socket.dump`."""
        return self._request(GET_ELEMENTS, codec.text(2, name), what=f"elements of {name}")


def _value(kind: int, value: bytes) -> bytes:
    return codec.nested(kind, codec.attribute(1, value))


def _element(one: Element) -> Iterable[bytes]:
    yield _value(1, one.key) + (b"" if one.value is None else _value(2, one.value))
    if one.end is not None:
        yield _value(1, one.end) + codec.be32(3, _INTERVAL_END)


# ---- what the kernel has ----


def parse_rule(message: Message) -> Rule:
    """Return a rule that the kernel told of.

    Raises
    ------
    MalformedError
        It is none.
    """
    found = codec.table(message.body, _HEAD.size)
    family = message.body[0] if message.body else 0
    comment = _comment(found.get(7, b""))
    table, chain = (codec.word(found.get(kind, b"")) for kind in (1, 2))
    handle = int.from_bytes(found.get(3, b""), "big")
    return Rule(NAMES_OF_FAMILIES.get(family, str(family)), table, chain, decode(found.get(4, b"")), comment, handle)


def _comment(data: bytes) -> str:
    while len(data) >= 2:  # noqa: PLR2004 -- kind and length
        kind, size = data[:2]
        if kind == _COMMENT:
            return codec.word(data[2 : 2 + size])
        data = data[2 + size :]
    return ""


def parse_elements(dump: Iterable[Message]) -> list[Element]:
    """Return the elements of a set that the kernel told of, by their keys; intervals with their ends.

    Raises
    ------
    MalformedError
        They are none.
    """
    starts: dict[bytes, bytes | None] = {}
    ends: list[bytes] = []
    for message in dump:
        for kind, listed in codec.attributes(message.body, _HEAD.size):
            if kind == 3:  # noqa: PLR2004 -- NFTA_SET_ELEM_LIST_ELEMENTS
                for _, one in codec.attributes(listed):
                    _sort(codec.table(one), starts, ends)
    ends.sort()
    found = []
    for start in sorted(starts):
        at = bisect_right(ends, start)
        found.append(Element(start, ends[at] if at < len(ends) else None, starts[start]))
    return found


def _sort(one: Mapping[int, bytes], starts: dict[bytes, bytes | None], ends: list[bytes]) -> None:
    of, value = (codec.table(one.get(kind, b"")).get(1) for kind in (1, 2))
    if of is None:
        raise codec.MalformedError("an element without a key")
    if int.from_bytes(one.get(3, b""), "big") & _INTERVAL_END:
        ends.append(of)
    else:
        starts[of] = value
