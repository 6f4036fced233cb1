"""Answers to questions about names: bytes in, bytes out (RFC 1035, and 2308, 6761, 6891, 8020, 8482 where they are named).

`respond` knows nothing of sockets. What it decides, and why:

- A name of the network, by itself or with the network's domain behind it, has its addresses. Of what else is asked about it
  there is nothing (NOERROR without an answer), nor of a domain that only has names below it.
- What is not there but would be of the network does not exist (NXDOMAIN): names below its domain, addresses of its subnets.
  Nor does a name of one label that is asked for addresses: no public name has addresses and no dot, so nobody else is asked.
- Anything else is not ours. With resolvers to ask it is forwarded. Without, it is refused (REFUSED, no recursion), as by
  Docker in its internal networks. aardvark-dns says NXDOMAIN, and a resolver that hears so asks nobody else; but an endpoint
  may be in two networks, and have a server in each.
- Nothing may be kept (a time to live of 0): names come and go with what they are names of.

dnspython reads and writes the messages. Importing it takes some 40 ms, and an answer some 0.1 ms: enough for thousands of
questions a second. Only who answers needs to import this module; `isolib.net.responder` does with the first question.
"""

from __future__ import annotations

import enum
import struct
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING, Any, Final

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

if TYPE_CHECKING:
    from isolib.net.names import Address, Zone

__all__ = ["Outcome", "failure", "is_failure", "is_reply", "respond", "shortened"]

TTL: Final = 0

#: Of a question; longer ones have something in them that nobody asks us.
_LONGEST: Final = 4096
_HEADER: Final = struct.Struct("!HHHHHH")
_QR: Final = 0x8000
_OPCODE: Final = 0x7800
_RD: Final = 0x0100
#: What a datagram may have without EDNS, and what we say and give with it: fits into every path (RFC 9715).
_PLAIN: Final = 512
_PAYLOAD: Final = 1232
_STREAM: Final = 65535
_IN: Final = dns.rdataclass.IN
_LOOPBACK: Final = (IPv4Address("127.0.0.1"), IPv6Address("::1"))


class Outcome(enum.Enum):
    """What is to be done with a question that has no answer here."""

    DROP = "drop"
    """Say nothing: it is no question, or none that could be answered."""
    FORWARD = "forward"
    """Ask a resolver, and pass its answer on."""


def respond(query: bytes, zone: Zone, *, stream: bool = False) -> bytes | Outcome:
    """Answer a question.

    Parameters
    ----------
    query
        The message as it came, whatever it is.
    zone
        What is known.
    stream
        Whether it came over a stream, where an answer may be long; else it is truncated (TC) to what the asker takes.
    """
    refused = _look_at(query)
    if refused is not None:
        return refused
    try:
        message = dns.message.from_wire(query)
        answer = _Answer(message, zone)
        return answer.wire(stream=stream) if answer.settle() else Outcome.FORWARD
    except Exception:  # noqa: BLE001 - these bytes are anybody's, and the parser is not ours: whatever it says, they are malformed
        return _bare(query, dns.rcode.FORMERR)


def _look_at(query: bytes) -> bytes | Outcome | None:
    """Return the answer to what need not be read any further, else None."""
    if len(query) < _HEADER.size:
        return Outcome.DROP
    _, flags, questions, answers, authorities, additional = _HEADER.unpack_from(query)
    if flags & _QR:  # an answer: two that answer each other would never end
        return Outcome.DROP
    if flags & _OPCODE:
        return _bare(query, dns.rcode.NOTIMP)
    # Additional are the asker's EDNS and a signature.
    if questions != 1 or answers or authorities or additional > 2 or len(query) > _LONGEST:  # noqa: PLR2004 - as said
        return _bare(query, dns.rcode.FORMERR)
    return None


def _bare(query: bytes, rcode: int) -> bytes:
    """Return an answer without the question, which could not be read."""
    number, flags, *_ = _HEADER.unpack_from(query)
    return _HEADER.pack(number, _QR | flags & (_OPCODE | _RD) | rcode, 0, 0, 0, 0)


class _Answer:
    """An answer in the making."""

    def __init__(self, message: dns.message.Message, zone: Zone) -> None:
        self._zone = zone
        self._message = message
        self._question = message.question[0]
        self._name = self._question.name
        self._type = self._question.rdtype
        self._response = dns.message.make_response(message, recursion_available=zone.forwards, our_payload=_PAYLOAD)

    def wire(self, *, stream: bool) -> bytes:
        """Return the message."""
        # Addresses in another order each time, for those who share a name; but an address has one name that comes first.
        shuffles: Any = {"want_shuffle": self._type != dns.rdatatype.PTR}
        return self._response.to_wire(max_size=_room(self._message, stream=stream), prefer_truncation=True, **shuffles)

    def settle(self) -> bool:
        """Find the answer; False: somebody else is to be asked."""
        if self._message.edns > 0:
            self._response.set_rcode(dns.rcode.BADVERS)
            return True
        if self._question.rdclass != _IN or (dns.rdatatype.is_metatype(self._type) and self._type != dns.rdatatype.ANY):
            return self._refuse()  # transfers, for one
        labels = self._name.labels
        if len(labels) > 2 and labels[-2].lower() == b"arpa":  # noqa: PLR2004 - a label, this one and the root's
            return self._settle_reverse([label.decode("latin-1").lower() for label in labels[-4::-1]], labels[-3].lower())
        return self._settle_forward(self._name.to_text(omit_final_dot=True).lower())

    def _settle_forward(self, name: str) -> bool:
        domain = self._zone.domain
        is_below = domain is not None and name.endswith(f".{domain}")
        bare = name.removesuffix(f".{domain}") if is_below else name
        if bare == "localhost":  # RFC 6761, 6.3
            return self._say(_LOOPBACK)
        # Above all the whole name: somebody may be called as the network's domain, or as somebody elsewhere.
        addresses = self._zone.names.addresses(name) or self._zone.names.addresses(bare)
        if addresses:
            return self._say(addresses)
        exists = name == domain or self._zone.names.has_below(bare)
        is_plain = "." not in name and self._type in {dns.rdatatype.A, dns.rdatatype.AAAA}
        return self._say_nothing(exists=exists) if exists or is_below or is_plain else self._pass_on()

    def _settle_reverse(self, labels: list[str], tree: bytes) -> bool:
        """Answer for an address, of which the labels are the parts, the highest first."""
        network, is_whole = _network(labels, tree)
        if network is None or not any(_contains(subnet, network) for subnet in self._zone.subnets):
            return self._pass_on()
        if not is_whole:
            return self._say_nothing(exists=False)
        names = self._zone.names.names(network.network_address) if network.prefixlen == network.max_prefixlen else ()
        domain = self._zone.domain
        if names and self._type in {dns.rdatatype.PTR, dns.rdatatype.ANY}:
            self._add("PTR", [f"{name}.{domain}." if domain else f"{name}." for name in names])
            return True
        # Between the subnet and its addresses there are domains, though nothing is known of them (RFC 8020).
        return self._say_nothing(exists=bool(names) or network.prefixlen < network.max_prefixlen)

    def _say(self, addresses: tuple[Address, ...]) -> bool:
        wants_all = self._type == dns.rdatatype.ANY  # which is less than RFC 8482 fears
        v4 = [str(each) for each in addresses if each.version == 4]  # noqa: PLR2004 - IPv4
        v6 = [str(each) for each in addresses if each.version == 6]  # noqa: PLR2004 - IPv6
        for kind, texts in (("A", v4), ("AAAA", v6)):
            if texts and (wants_all or self._type == dns.rdatatype.from_text(kind)):
                self._add(kind, texts)
        return bool(self._response.answer) or self._say_nothing(exists=True)

    def _add(self, kind: str, texts: list[str]) -> None:
        self._response.flags |= dns.flags.AA
        # The question's own name, in the letters that it was asked in: some compare them.
        self._response.answer.append(dns.rrset.from_text_list(self._name, TTL, _IN, kind, texts))

    def _say_nothing(self, *, exists: bool) -> bool:
        """Say that the name does not exist, or has nothing of what was asked for."""
        self._response.flags |= dns.flags.AA
        if not exists:
            self._response.set_rcode(dns.rcode.NXDOMAIN)
        if self._zone.domain is None:
            return True
        origin = dns.name.from_text(self._zone.domain)
        if self._name.is_subdomain(origin):
            # How long this may be remembered (RFC 2308, 5): not at all.
            soa = dns.rrset.from_text(origin, TTL, _IN, "SOA", f"{origin} nobody.{origin} 1 60 60 60 {TTL}")
            is_asked = self._type == dns.rdatatype.SOA and self._name == origin
            (self._response.answer if is_asked else self._response.authority).append(soa)
        return True

    def _pass_on(self) -> bool:
        return not self._zone.forwards and self._refuse()

    def _refuse(self) -> bool:
        self._response.set_rcode(dns.rcode.REFUSED)
        return True


def _room(message: dns.message.Message, *, stream: bool) -> int:
    if stream:
        return _STREAM
    return max(_PLAIN, min(message.payload, _PAYLOAD)) if message.edns >= 0 else _PLAIN


def _network(labels: list[str], tree: bytes) -> tuple[IPv4Network | IPv6Network | None, bool]:
    """Return what a reverse name speaks of, and whether all of its labels do (RFC 1035, 3.5; RFC 3596, 2.5)."""
    base, digits, longest = {b"in-addr": (10, 3, 4), b"ip6": (16, 1, 32)}.get(tree, (0, 0, 0))
    parts: list[int] = []
    with suppress(ValueError):
        for label in labels[:longest]:
            part = int(label, base) if label.isascii() and label.isalnum() and len(label) <= digits else -1
            if not 0 <= part < (256 if base == 10 else 16):  # noqa: PLR2004 - of an octet, or half of one
                break
            parts.append(part)
    if not parts:
        return None, False
    is_whole = len(parts) == len(labels)
    if base == 16:  # noqa: PLR2004 - IPv6
        packed = bytes.fromhex("".join(f"{part:x}" for part in parts).ljust(32, "0"))
        return IPv6Network((packed, 4 * len(parts))), is_whole
    return IPv4Network((bytes(parts).ljust(4, b"\0"), 8 * len(parts))), is_whole


def _contains(subnet: IPv4Network | IPv6Network, other: IPv4Network | IPv6Network) -> bool:
    return subnet.version == other.version and other.subnet_of(subnet)  # type: ignore[arg-type]


# ---- of forwarding ----


def is_reply(query: bytes, reply: bytes) -> bool:
    """Return whether a message answers a question: its number, its kind, and the question in it are the same."""
    if len(reply) < _HEADER.size or reply[:2] != query[:2] or not reply[2] & 0x80:
        return False
    try:
        asked = dns.message.from_wire(query, question_only=True)
        told = dns.message.from_wire(reply, question_only=True)
    except Exception:  # noqa: BLE001 - as above
        return False
    return asked.opcode() == told.opcode() and asked.question == told.question


def is_failure(reply: bytes) -> bool:
    """Return whether a resolver says that it could not or would not find out, so that another one may be asked."""
    return reply[3] & 0xF in {dns.rcode.FORMERR, dns.rcode.SERVFAIL, dns.rcode.NOTIMP, dns.rcode.REFUSED}


def failure(query: bytes) -> bytes | Outcome:
    """Return the answer where no resolver gave one: SERVFAIL."""
    try:
        message = dns.message.from_wire(query)
        response = dns.message.make_response(message, recursion_available=True, our_payload=_PAYLOAD)
        response.set_rcode(dns.rcode.SERVFAIL)
        return response.to_wire()
    except Exception:  # noqa: BLE001 - as above
        return Outcome.DROP


def shortened(query: bytes, reply: bytes, *, stream: bool = False) -> bytes:
    """Return a resolver's answer as the asker takes it: where it is too long for a datagram, only that it is (TC)."""
    message = dns.message.from_wire(query)
    if len(reply) <= _room(message, stream=stream):
        return reply
    response = dns.message.make_response(message, recursion_available=True, our_payload=_PAYLOAD)
    response.flags |= dns.flags.TC
    return response.to_wire()
