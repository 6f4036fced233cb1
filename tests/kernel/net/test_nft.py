"""The values of nftables against the kernel and the program nft: what each writes, the other reads as the same."""

from __future__ import annotations

from ipaddress import ip_network
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib._kernel.netlink import nft
from isolib._kernel.netlink import nft_match as m
from isolib._kernel.netlink.nft import BRIDGE, INET, IPV4, IPV6, Element, Hook, Scope, parse_elements, parse_rule
from isolib._kernel.netlink.nft_expressions import ACCEPT, DROP, Unknown, Verdict
from isolib._kernel.netlink.nft_numbers import Code, MetaKey
from isolib._kernel.netlink.socket import NETFILTER, open_netlink
from isolib.errors import SyscallError
from tests.nets import PATIENCE
from tests.wires import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolib._kernel.netlink.nft_match import Expressions
    from isolib._kernel.netlink.socket import Socket
    from isolib.namespaces import NetNS

FILTER = [
    ('iifname "eth0" accept', m.rule(m.arrives("eth0"), ACCEPT)),
    ('oifname != "lo" return', m.rule(m.leaves("lo", other=True), Verdict(Code.RETURN))),
    ('iifname "isolib*" goto other', m.rule(m.arrives("isolib*"), Verdict(Code.GOTO, "other"))),
    ("ip saddr 10.0.0.0/8 drop", m.rule(m.from_(ip_network("10.0.0.0/8")), DROP)),
    ("ip daddr != 10.1.2.0/24 drop", m.rule(m.to(ip_network("10.1.2.0/24"), other=True), DROP)),
    ("ip daddr 10.1.32.0/20 drop", m.rule(m.to(ip_network("10.1.32.0/20")), DROP)),
    ("ip daddr 10.1.2.3 drop", m.rule(m.to(ip_network("10.1.2.3")), DROP)),
    ("ip6 saddr fd00::/64 drop", m.rule(m.from_(ip_network("fd00::/64")), DROP)),
    ("ip6 saddr != fd00::/61 drop", m.rule(m.from_(ip_network("fd00::/61"), other=True), DROP)),
    ("ip6 daddr ::1 drop", m.rule(m.to(ip_network("::1")), DROP)),
    ("meta nfproto ipv6 drop", m.rule(m.family(IPV6), DROP)),
    ("meta nfproto ipv4 drop", m.rule(m.to(ip_network("0.0.0.0/0")), DROP)),
    ("tcp dport 80 counter", m.rule(m.port("tcp", 80), m.count())),
    ("udp dport 53 jump other", m.rule(m.port("udp", 53), m.jump("other"))),
    ("icmpv6 type nd-router-advert drop", m.rule(m.icmpv6(134), DROP)),
    ("meta l4proto icmp accept", m.rule(m.protocol("icmp"), ACCEPT)),
    ("ct state established,related accept", m.rule(m.connection(m.ESTABLISHED), ACCEPT)),
    ("ct state invalid drop", m.rule(m.connection(m.INVALID), DROP)),
    ("ct status dnat accept", m.rule(m.translated(), ACCEPT)),
    ("ct direction original drop", m.rule(m.original(), DROP)),
    ("numgen random mod 4294967295 < 42949673 drop", m.rule(m.lose(0.01), DROP)),
    ("reject with icmpx type admin-prohibited", m.refuse()),
    ("reject with tcp reset", m.rule(m.protocol("tcp"), m.reset())),
    ("fib daddr type local accept", m.rule(m.to_here(), ACCEPT)),
    ("ip saddr @v4 drop", m.rule(m.source_in(IPV4, "v4"), DROP)),
    ("ip6 daddr != @v6 drop", m.rule(m.destination_in(IPV6, "v6", other=True), DROP)),
    ("iifname @names drop", m.rule(m.interface_in(MetaKey.IIFNAME, "names"), DROP)),
    ("oifname != @names drop", m.rule(m.interface_in(MetaKey.OIFNAME, "names", other=True), DROP)),
    ("meta l4proto . th dport @services accept", m.rule(m.service_in("services"), ACCEPT)),
]
NAT = [
    ("ip saddr 10.0.0.0/24 masquerade", m.rule(m.from_(ip_network("10.0.0.0/24")), m.masquerade())),
]
DNAT = [
    ("dnat ip to ip daddr . meta l4proto . th dport map @exact", m.dnat_to_found(IPV4, "exact", with_address=True)),
    ("meta nfproto ipv6 dnat ip6 to meta l4proto . th dport map @every", m.dnat_to_found(IPV6, "every", with_address=False)),
]
BRIDGED = [
    ("meta protocol ip6 icmpv6 type nd-redirect drop", m.rule(m.icmpv6(137, BRIDGE), DROP)),
    ('iifname "a" oifname "b" drop', m.rule(m.arrives("a"), m.leaves("b"), DROP)),
    ("ip saddr 10.0.0.0/24 drop", m.rule(m.from_(ip_network("10.0.0.0/24"), table=BRIDGE), DROP)),
]
CHAINS = [("inet", "rules", FILTER), ("inet", "srcnat", NAT), ("inet", "dstnat", DNAT), ("bridge", "rules", BRIDGED)]
CASES = [
    pytest.param((family, chain), text, ours, id=f"{family} {text}") for family, chain, table in CHAINS for text, ours in table
]

SET_UP = """
table inet t {
    set v4 { type ipv4_addr; }
    set v6 { type ipv6_addr; }
    set names { type ifname; }
    set services { type inet_proto . inet_service; }
    map exact { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }
    map every { type inet_proto . inet_service : ipv6_addr . inet_service; }
    chain other { }
    chain rules { type filter hook input priority 0; }
    chain srcnat { type nat hook postrouting priority 100; }
    chain dstnat { type nat hook prerouting priority -100; }
}
table bridge t {
    chain rules { type filter hook forward priority -200; }
}
"""


def run_nft(net: NetNS, text: str) -> None:
    """Have the program nft carry out commands."""
    with net.spawn(["nft", "-f", "-"], stdin=isolib.PIPE, stdout=isolib.PIPE, stderr=isolib.STDOUT) as process:
        out, _ = process.communicate(text.encode(), timeout=PATIENCE)
        assert process.wait().returncode == 0, (text, out)


def list_nft(net: NetNS, *what: str) -> str:
    """Return what the program nft lists."""
    with net.spawn(["nft", "list", *what], stdout=isolib.PIPE) as process:
        out, _ = process.communicate(timeout=PATIENCE)
        return (out or b"").decode()


@pytest.fixture(scope="module")
def net() -> Iterator[NetNS]:
    """Return a namespace with a table of every kind that the tests write rules into."""
    with Lab() as lab:
        made = lab.namespace()
        run_nft(made, SET_UP)
        yield made


@pytest.fixture
def netfilter(net: NetNS) -> Iterator[Socket]:
    """Return a socket of that namespace."""
    with open_netlink(net, NETFILTER) as socket:
        yield socket


@pytest.mark.parametrize(("where", "text", "ours"), CASES)
def test_same_as_nft(net: NetNS, netfilter: Socket, where: tuple[str, str], text: str, ours: Expressions) -> None:
    """A rule that nft has written is, read back, what ours is; ours, written, is read back as it was, and shown as nft's is."""
    family, chain = where
    scope = Scope({"inet": INET, "bridge": BRIDGE}[family], "t")
    run_nft(net, f"flush chain {family} t {chain}; add rule {family} t {chain} {text}")
    netfilter.batch(nft.SUBSYSTEM, scope.add(chain, ours))
    theirs, same = [parse_rule(one) for one in netfilter.dump(scope.rules(chain))]
    assert theirs.expressions == ours
    assert same.expressions == ours
    first, second = [line for line in list_nft(net, "chain", family, "t", chain).splitlines() if line.startswith("\t\t")][1:]
    assert first == second


def test_what_is_not_known_is_kept(net: NetNS, netfilter: Socket) -> None:
    """An expression that has no value here is shown by its name, and the rest of its rule is read."""
    run_nft(net, 'flush chain inet t rules; add rule inet t rules meta l4proto tcp log prefix "seen" accept comment "logs"')
    (rule,) = [parse_rule(one) for one in netfilter.dump(Scope(INET, "t").rules("rules"))]
    *known, log, last = rule.expressions
    assert tuple(known) == m.protocol("tcp")
    assert isinstance(log, Unknown)
    assert log.word == "log"
    assert last == ACCEPT
    assert rule.comment == "logs"


def test_rules_come_and_go(net: NetNS, netfilter: Socket) -> None:
    """One rule is removed by its number, the others of its chain stay; then all of the chain."""
    scope = Scope(INET, "t")
    run_nft(net, "flush chain inet t rules")
    netfilter.batch(nft.SUBSYSTEM, *(scope.add("rules", m.port("tcp", number), f"n{number}") for number in (1, 2, 3)))
    rules = [parse_rule(one) for one in netfilter.dump(scope.rules("rules"))]
    assert [one.comment for one in rules] == ["n1", "n2", "n3"]
    netfilter.batch(nft.SUBSYSTEM, scope.remove("rules", rules[1].handle))
    assert [parse_rule(one) for one in netfilter.dump(scope.rules("rules"))] == [rules[0], rules[2]]
    netfilter.batch(nft.SUBSYSTEM, scope.empty("rules"))
    assert netfilter.dump(scope.rules("rules")) == []


def test_sets_come_and_go(net: NetNS, netfilter: Socket) -> None:
    """Elements are put in and taken out, intervals to the very last address, maps with what they lead to."""
    scope = Scope(INET, "own")
    low, high = Element(b"\x0a\0\0\0", b"\x0b\0\0\0"), Element(b"\xff\xff\xff\0")
    mapped = Element(nft.key(b"\x06", b"\0\x50"), value=bytes(4))
    netfilter.batch(
        nft.SUBSYSTEM,
        scope.new(owned=False),
        scope.new_set("ranges", nft.ADDRESS[IPV4], intervals=True, number=1),
        scope.new_set("map", nft.joined(nft.PROTOCOL, nft.PORT), nft.MARK, number=2),
        *scope.put("ranges", [low, high]),
        *scope.put("map", [mapped]),
    )
    assert parse_elements(netfilter.dump(scope.elements("ranges"))) == [low, high]
    assert parse_elements(netfilter.dump(scope.elements("map"))) == [mapped]
    listed = list_nft(net, "table", "inet", "own")
    assert "10.0.0.0/8, 255.255.255.0/24" in listed
    assert "tcp . 80 : 0x00000000" in listed
    netfilter.batch(nft.SUBSYSTEM, *scope.take("ranges", [low]), scope.clear("map"))
    assert parse_elements(netfilter.dump(scope.elements("ranges"))) == [high]
    assert parse_elements(netfilter.dump(scope.elements("map"))) == []
    with pytest.raises(SyscallError, match="elements of ranges"):
        netfilter.batch(nft.SUBSYSTEM, *scope.take("ranges", [low]))
    netfilter.batch(nft.SUBSYSTEM, scope.delete_set("map"), scope.delete())
    assert "own" not in list_nft(net, "tables")


def test_chains_have_places(net: NetNS, netfilter: Socket) -> None:
    """A chain is at its hook with its priority and policy, as nft shows it."""
    scope = Scope(INET, "places")
    netfilter.batch(
        nft.SUBSYSTEM,
        scope.new(owned=False),
        scope.new_chain("shut", Hook(nft.FORWARD, -5, accepts=False)),
        scope.new_chain("nat", Hook(nft.POSTROUTING, 100, "nat")),
        scope.new_chain("plain"),
    )
    listed = list_nft(net, "table", "inet", "places")
    netfilter.batch(nft.SUBSYSTEM, scope.delete())
    assert "type filter hook forward priority filter - 5; policy drop;" in listed
    assert "type nat hook postrouting priority srcnat; policy accept;" in listed
    assert "chain plain {" in listed
