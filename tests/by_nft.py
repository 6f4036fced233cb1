"""What the program nft says of the tables in a network namespace, beside what isolib says of the same rules.

What isolib has put there is said here in nft's words, libnftables-json(5), and compared word for word.
"""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from socket import AF_INET, AF_INET6, inet_ntop
from typing import TYPE_CHECKING, Any

from isolib._kernel.netlink import nft
from isolib._kernel.netlink.nft_numbers import Base, Code, CtKey, MetaKey, Op, RejectType
from tests.oracles import run_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from isolib._kernel.netlink import nft_expressions as expressions
    from isolib._kernel.netlink.nft import Element, Rule
    from isolib.namespaces import NetNS

    Object = dict[str, Any]

FAMILIES = {2: "ipv4", 10: "ipv6"}
PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "ipv6-icmp", 132: "sctp"}
ETHERTYPES = {b"\x08\x00": "ip", b"\x86\xdd": "ip6"}
OPERATORS = {Op.EQ: "==", Op.NEQ: "!=", Op.LT: "<"}
STATES = {1: "invalid", 2: "established", 4: "related", 8: "new"}
ICMPV6 = {134: "nd-router-advert", 137: "nd-redirect"}
FIELDS = {("ipv4", 12): "saddr", ("ipv4", 16): "daddr", ("ipv6", 8): "saddr", ("ipv6", 24): "daddr"}
LOCAL = 2
PROHIBITED = 3
ALL_BITS = 0xFFFFFFFF


def ruleset(ns: NetNS | None) -> list[Object]:
    """Return what nft lists, each thing with its kind as the only key."""
    found: list[Object] = json.loads(run_in(ns, "nft", "-j", "list", "ruleset"))["nftables"]
    return [one for one in found if "metainfo" not in one]


def of_kind(listed: Iterable[Object], kind: str) -> list[Object]:
    """Return the things of a kind: "table", "chain", "set", "map", "rule"."""
    return [one[kind] for one in listed if kind in one]


# ---- rules ----


def told(rule: Object) -> Object:
    """Return a rule that nft tells of, as `said` says ours."""
    wanted = {name: rule[name] for name in ("family", "table", "chain", "handle")} | {"comment": rule.get("comment", "")}
    return wanted | {"expr": _needed([_corrected(one) for one in rule["expr"]])}


def _corrected(statement: Object) -> Object:
    match statement:
        case {"match": {"left": {"numgen": numgen}}}:
            numgen["mod"] &= ALL_BITS  # it prints a number of 32 bits as one with a sign
        case {"match": {"left": {"fib": {"flags": [flag]} as fib}}}:
            fib["flags"] = flag  # a single one is a list, or not, as its version is
        case _:
            pass
    return statement


def _needed(statements: list[Object]) -> list[Object]:
    """Leave out that what is reset is of TCP: nft does so, or not, as its version is."""
    resets = {"reject": {"type": "tcp reset"}} in statements
    tcp = {"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": "tcp"}}
    return [one for one in statements if not (resets and one == tcp)]


def said(rule: Rule) -> Object:
    """Return a rule that isolib tells of, as nft would."""
    wanted = {name: getattr(rule, name) for name in ("family", "table", "chain", "handle", "comment")}
    return wanted | {"expr": _needed(_Speaker(rule.expressions).statements)}


class _Speaker:
    """Says in statements what expressions do: those load something, and others compare it or act by it."""

    def __init__(self, rule: Iterable[expressions.Expression]) -> None:
        self.statements: list[Object] = []
        self._loaded: list[Any] = []
        self._mask = b""
        self._length = 0
        self._of = ""
        for one in rule:
            getattr(self, f"_{type(one).__name__.lower()}")(one)

    def _load(self, what: Object, length: int = 0) -> None:
        self._loaded.append(what)
        self._length = length

    def _take(self) -> Any:  # noqa: ANN401 - one thing, or several that are one key
        found = self._loaded
        self._loaded = []
        return found[0] if len(found) == 1 else {"concat": found}

    def _match(self, op: str, right: object) -> None:
        self.statements.append({"match": {"op": op, "left": self._take(), "right": right}})

    def _imply(self, key: str) -> str:
        """Leave out that a packet is of a protocol, which who looks at its header says."""
        (at,) = [n for n, one in enumerate(self.statements) if one.get("match", {}).get("left") == {"meta": {"key": key}}][-1:]
        found: str = self.statements.pop(at)["match"]["right"]
        return found

    # ---- what is loaded ----

    def _meta(self, one: expressions.Meta) -> None:
        self._load({"meta": {"key": MetaKey(one.key).name.lower()}})

    def _ct(self, one: expressions.Ct) -> None:
        self._load({"ct": {"key": CtKey(one.key).name.lower()}})

    def _fib(self, one: expressions.Fib) -> None:
        assert (one.result, one.flags) == (3, 2)
        self._load({"fib": {"result": "type", "flags": "daddr"}})

    def _numgen(self, one: expressions.Numgen) -> None:
        self._load({"numgen": {"mode": "random", "mod": one.modulus, "offset": one.offset}})

    def _payload(self, one: expressions.Payload) -> None:
        if one.base == Base.NETWORK:
            if any("nfproto" in str(past) for past in self.statements):
                self._of = self._imply("nfproto")
            field = {"protocol": {"ipv4": "ip", "ipv6": "ip6"}[self._of], "field": FIELDS[self._of, one.offset]}
            self._load({"payload": field}, one.length)
        elif one.length == 1:
            assert self._imply("l4proto") == "ipv6-icmp"
            self._imply("protocol" if any("protocol" in str(past) for past in self.statements) else "nfproto")
            self._load({"payload": {"protocol": "icmpv6", "field": "type"}}, -1)
        else:
            assert (one.offset, one.length) == (2, 2)
            self._load({"payload": {"protocol": "th", "field": "dport"}})

    # ---- what is asked ----

    def _bitwise(self, one: expressions.Bitwise) -> None:
        self._mask = one.mask

    def _byteorder(self, _: expressions.Byteorder) -> None:
        """Say nothing: nft does not either."""

    def _compare(self, one: expressions.Compare) -> None:
        mask, self._mask = self._mask, b""
        (left,) = self._loaded
        match left:
            case {"ct": {"key": "state" | "status" as key}}:
                names = STATES if key == "state" else {32: "dnat"}
                words = [name for bit, name in names.items() if int.from_bytes(mask, "little") & bit]
                self._match("in", words[0] if len(words) == 1 else words)
            case {"payload": {"field": "saddr" | "daddr"}}:
                family, whole = (AF_INET, 4) if left["payload"]["protocol"] == "ip" else (AF_INET6, 16)
                address = inet_ntop(family, one.value.ljust(whole, b"\0"))  # as the C library has it: ::ffff:0.0.0.0
                prefix = sum(byte.bit_count() for byte in mask) if mask else len(one.value) * 8
                is_host = prefix == whole * 8
                self._match(OPERATORS[Op(one.op)], address if is_host else {"prefix": {"addr": address, "len": prefix}})
            case _:
                self._match(OPERATORS[Op(one.op)], _word(left, one.value))

    def _lookup(self, one: expressions.Lookup) -> None:
        if one.into is not None:
            self._load({"map": {"key": self._take(), "data": f"@{one.set}"}})
        else:
            self._match("!=" if one.flags else "==", f"@{one.set}")

    # ---- what is done ----

    def _counter(self, one: expressions.Counter) -> None:
        self.statements.append({"counter": {"packets": one.packets, "bytes": one.bytes}})

    def _verdict(self, one: expressions.Verdict) -> None:
        word = Code(one.code).name.lower()
        self.statements.append({word: {"target": one.chain} if one.chain else None})

    def _reject(self, one: expressions.Reject) -> None:
        if one.type == RejectType.TCP_RESET:
            self.statements.append({"reject": {"type": "tcp reset"}})
        else:
            assert (one.type, one.code) == (RejectType.ICMPX, PROHIBITED)
            self.statements.append({"reject": {"type": "icmpx", "expr": "admin-prohibited"}})

    def _masquerade(self, _: expressions.Masquerade) -> None:
        self.statements.append({"masquerade": None})

    def _nat(self, one: expressions.Nat) -> None:
        self.statements.append({"dnat": {"family": {2: "ip", 10: "ip6"}[one.family], "addr": self._take()}})


def _word(left: Object, value: bytes) -> object:
    """Return what something is compared with, in nft's words."""
    ((kind, what),) = left.items()
    words: dict[str, Callable[[], object]] = {
        "iifname": lambda: value.rstrip(b"\0").decode(),
        "oifname": lambda: value.rstrip(b"\0").decode(),
        "nfproto": lambda: FAMILIES[value[0]],
        "l4proto": lambda: PROTOCOLS[value[0]],
        "protocol": lambda: ETHERTYPES[value],
        "direction": lambda: ("original", "reply")[value[0]],
        "type": lambda: ICMPV6[value[0]],
        "fib": lambda: {LOCAL: "local"}[int.from_bytes(value, "little")],
        "numgen": lambda: int.from_bytes(value, "big"),
    }
    return words[what.get("key", what.get("field", kind))]()


# ---- sets ----


def elements(listed: Object) -> list[Element]:
    """Return what is in a set or map that nft tells of, as isolib tells it."""
    of, to = (_types(listed.get(key, ())) for key in ("type", "map"))
    found = []
    for one in listed.get("elem", ()):
        given, value = (one[0], _key(one[1], to)) if to else (one, None)
        match given:
            case {"prefix": {"addr": address, "len": length}}:
                network = ip_network(f"{address}/{length}")
                found.append(_interval(network[0].packed, network[-1].packed, value))
            case {"range": [first, last]}:
                found.append(_interval(_key(first, of), _key(last, of), value))
            case _ if "interval" in listed.get("flags", ()):
                found.append(_interval(_key(given, of), _key(given, of), value))
            case _:
                found.append(nft.Element(_key(given, of), value=value))
    return sorted(found)


def _types(given: Any) -> list[str]:  # noqa: ANN401 - a word, or several
    return given.split(" . ") if isinstance(given, str) else list(given)


def _interval(first: bytes, last: bytes, value: bytes | None) -> Element:
    beyond = int.from_bytes(last, "big") + 1
    return nft.Element(first, None if beyond == 1 << len(last) * 8 else beyond.to_bytes(len(last), "big"), value)


def _key(given: Any, types: list[str]) -> bytes:  # noqa: ANN401 - what nft has for a value
    parts = given["concat"] if isinstance(given, dict) else [given]
    raw = [_raw(part, kind) for part, kind in zip(parts, types, strict=True)]
    return raw[0] if len(raw) == 1 else nft.key(*raw)


def _raw(value: Any, kind: str) -> bytes:  # noqa: ANN401 - what nft has for a value
    match kind:
        case "ipv4_addr" | "ipv6_addr":
            return ip_address(value).packed
        case "ifname":
            return str(value).encode().ljust(16, b"\0")
        case "inet_proto":
            (number,) = [number for number, name in PROTOCOLS.items() if value in {name, number}]
            return bytes((number,))
        case "inet_service":
            return int(value).to_bytes(2, "big")
        case _:
            raise AssertionError(f"a type that isolib does not use: {kind}")
