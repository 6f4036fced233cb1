"""Subnets that are chosen, and addresses that are taken and released."""

from __future__ import annotations

import threading
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from isolib.errors import PlanError
from isolib.net import pool as module
from isolib.net.checks import check_address
from isolib.net.pool import Pool, choose_subnet, choose_ula, parse_subnet, usable

PRIVATE = [IPv4Network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")]
ULA = IPv6Network("fd00::/8")


def subnets_of(parent: IPv4Network | IPv6Network, shortest: int = 0, longest: int = 128) -> st.SearchStrategy[Any]:
    """Return what makes subnets of a network, with prefixes within limits."""
    make: Any = type(parent)
    first = int(parent.network_address)
    return st.builds(
        lambda offset, prefix: make((first + offset, prefix), strict=False),
        st.integers(0, parent.num_addresses - 1),
        st.integers(max(shortest, parent.prefixlen), min(longest, parent.max_prefixlen)),
    )


V4 = subnets_of(IPv4Network("0.0.0.0/0"))
V6 = subnets_of(IPv6Network("::/0"))


class TestParse:
    @pytest.mark.parametrize(
        "text",
        [
            "10.77.0.0/24",
            "10.0.0.0/8",
            "8.8.8.0/24",
            "100.64.0.0/31",
            "192.168.7.0/30",
            "fd77::/64",
            "2001:db8::/32",
            "fd77::/127",
        ],
    )
    def test_taken_as_it_is(self, text: str) -> None:
        """Private and public subnets are values of ipaddress, down to a /31 and a /127; such a value is taken too."""
        subnet = parse_subnet(text)
        assert subnet == ip_network(text)
        assert parse_subnet(subnet) is not None
        assert parse_subnet(subnet) == subnet

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("10.77.0.5/24", r"the subnet that it is in is 10\.77\.0\.0/24"),
            ("fd77::1/64", "the subnet that it is in is fd77::/64"),
            ("10.77.0.5", r"10\.77\.0\.5/32 is one address.*smallest subnet is a /31"),
            ("fd77::/128", "smallest subnet is a /127"),
            ("127.0.0.0/24", "never leave their host"),
            ("0.0.0.0/0", "mean no address"),
            ("224.1.0.0/16", "multicast"),
            ("255.255.255.0/24", "broadcast"),
            ("::/0", "reserved"),
            ("::ffff:10.0.0.0/120", "reserved"),
            ("fe80::/64", "of links"),
            ("ff02::/16", "multicast"),
            ("10.77.0.0/33", "is no subnet"),
            ("10.77.0/24", "is no subnet"),
            ("10.77.00.0/24", "is no subnet"),
            ("10.77.0.0/24 ", "is no subnet"),
            ("auto", "is no subnet"),
            ("", "is no subnet"),
            ("10.77.0.0/24\0", "is no subnet"),
        ],
    )
    def test_refused(self, text: str, why: str) -> None:
        """A subnet that cannot work is refused with its reason, under the name of the argument."""
        with pytest.raises(PlanError, match=f"^ipv6: .*{why}"):
            parse_subnet(text, "ipv6")

    @pytest.mark.parametrize("value", [None, 10, True, b"10.77.0.0/24", ("10.77.0.0", 24), IPv4Address("10.77.0.0")])
    def test_other_types(self, value: str) -> None:
        """What ipaddress would make something of that nobody meant is refused."""
        with pytest.raises(PlanError, match="is a str or a network of ipaddress"):
            parse_subnet(value)

    @given(
        subnets_of(PRIVATE[0], longest=31) | subnets_of(ULA, longest=127),
        st.lists(st.one_of(V4, V6, subnets_of(PRIVATE[0])), max_size=5),
    )
    def test_overlaps(self, subnet: IPv4Network | IPv6Network, taken: list[IPv4Network | IPv6Network]) -> None:
        """A subnet is refused exactly if it overlaps one that is taken, which the message names."""
        overlapped = [one for one in taken if type(one) is type(subnet) and one.overlaps(subnet)]
        if not overlapped:
            assert parse_subnet(subnet, taken=taken) == subnet
            return
        with pytest.raises(PlanError, match=f"overlaps {overlapped[0]}, which is taken"):
            parse_subnet(subnet, taken=iter(taken))

    @given(st.text(max_size=40))
    def test_any_text(self, text: str) -> None:
        """Any text gives a subnet that has room, or a PlanError."""
        try:
            subnet = parse_subnet(text)
        except PlanError:
            return
        assert subnet.num_addresses >= 2

    @pytest.mark.parametrize(
        "value",
        [
            "",
            "10.77.0.5/24",
            "10.77.0",
            "10.77.0.005",
            "fe80::1%eth0",
            "web",
            5,
            None,
            IPv4Interface("10.77.0.5/24"),
            IPv6Address("fe80::1%2"),
        ],
    )
    def test_no_address(self, value: str) -> None:
        """An address with a prefix or a scope, a number and a name are no addresses."""
        with pytest.raises(PlanError, match=r"^address: .* is no address"):
            check_address(value)


class TestUsable:
    @given(subnets_of(IPv4Network("0.0.0.0/0"), 20, 31))
    def test_hosts(self, subnet: IPv4Network) -> None:
        """In IPv4 they are those that ipaddress calls the hosts of a subnet."""
        hosts = list(subnet.hosts())
        assert usable(subnet) == (int(hosts[0]), int(hosts[-1]))

    @given(subnets_of(IPv6Network("::/0"), 116, 127))
    def test_hosts_of_ipv6(self, subnet: IPv6Network) -> None:
        """In IPv6 they are all but the address that is every router's; a /127 has none such."""
        hosts = list(subnet.hosts())
        assert usable(subnet) == (int(hosts[0]), int(hosts[-1]))
        assert hosts[-1] == subnet.broadcast_address


class TestChoose:
    def test_order(self) -> None:
        """The first is 10.77.0.0/24, and each one after it the next that is not taken."""
        taken: list[IPv4Network | IPv6Network] = []
        for _ in range(300):
            taken.append(choose_subnet(taken))
        assert taken[0] == IPv4Network("10.77.0.0/24")
        assert taken[299] == IPv4Network("10.78.43.0/24")

    @pytest.mark.parametrize("route", ["0.0.0.0/0", "0.0.0.0/1", "10.0.0.0/7", "::/0", "fd00::/8"])
    def test_default_routes(self, route: str) -> None:
        """A default route, the pieces of one that a VPN sets, and routes of IPv6 take nothing."""
        assert choose_subnet([ip_network(route)]) == IPv4Network("10.77.0.0/24")

    @pytest.mark.parametrize(
        ("taken", "prefix", "expected"),
        [
            (["10.0.0.0/8"], 24, "172.16.0.0/24"),
            (["10.77.0.0/32"], 24, "10.77.1.0/24"),
            (["10.77.0.255/32"], 24, "10.77.1.0/24"),
            (["10.76.255.255/32"], 24, "10.77.0.0/24"),
            (["10.77.1.0/32"], 24, "10.77.0.0/24"),
            (["10.77.0.0/32"], 31, "10.77.0.2/31"),
            (["10.77.0.1/32"], 31, "10.77.0.2/31"),
            (["10.77.0.0/24", "10.77.1.0/25", "10.77.0.0/25", "10.77.2.4/30"], 24, "10.77.3.0/24"),
            ([], 9, "10.128.0.0/9"),
            ([], 16, "10.77.0.0/16"),
        ],
    )
    def test_edges(self, taken: list[str], prefix: int, expected: str) -> None:
        """One address that is taken at either end of a subnet is enough to pass over it, and one beside it is not."""
        assert choose_subnet(map(ip_network, taken), prefix=prefix) == IPv4Network(expected)

    def test_last_resort(self) -> None:
        """What is left of the private ranges is found wherever it is, and the error comes when nothing is."""
        for expected in ("172.16.0.0/12", "192.168.0.0/16", "10.0.0.0/24"):
            free = IPv4Network(expected)
            rest = [part for area in PRIVATE for part in (area.address_exclude(free) if free.subnet_of(area) else [area])]
            assert choose_subnet(rest).subnet_of(free)
        with pytest.raises(PlanError, match="no private /24 is free"):
            choose_subnet(PRIVATE)

    @given(st.lists(st.one_of([V4, V6, *map(subnets_of, PRIVATE)]), max_size=30), st.integers(9, 31))
    def test_free(self, taken: list[IPv4Network | IPv6Network], prefix: int) -> None:
        """The subnet is private, has the prefix, overlaps nothing that is taken, and is the same whatever the order is."""
        try:
            subnet = choose_subnet(taken, prefix=prefix)
        except PlanError:
            # Then not even one of those that are tried last is free.
            blocks = IPv4Network("192.168.0.0/16").subnets(new_prefix=prefix) if prefix in range(16, 25) else ()
            counting = [one for one in taken if isinstance(one, IPv4Network) and one.prefixlen > 7]
            assert all(any(block.overlaps(one) for one in counting) for block in blocks)
            return
        assert subnet.prefixlen == prefix
        assert any(subnet.subnet_of(area) for area in PRIVATE)
        assert not any(subnet.overlaps(one) for one in taken if isinstance(one, IPv4Network) and one.prefixlen > 7)
        assert choose_subnet(reversed(taken), prefix=prefix) == subnet

    @given(st.lists(subnets_of(IPv4Network("10.77.0.0/20")), max_size=20))
    def test_first(self, taken: list[IPv4Network]) -> None:
        """No subnet before the chosen one is free."""
        subnet = choose_subnet(taken)
        for before in IPv4Network("10.77.0.0/16").subnets(new_prefix=24):
            if before == subnet:
                break
            assert any(before.overlaps(one) for one in taken)

    @pytest.mark.parametrize("prefix", [8, 32, -1, True, "24", None, 24.0])
    def test_prefix(self, prefix: int) -> None:
        """A prefix that leaves no choice or no room is refused."""
        with pytest.raises(PlanError, match="prefix="):
            choose_subnet(prefix=prefix)


class TestChooseUla:
    @given(st.integers(0, 2**56 - 1))
    def test_bits(self, bits: int) -> None:
        """The bits stand between fd and the host's part."""
        subnet = choose_ula(bits=bits)
        assert subnet.prefixlen == 64
        assert int(subnet.network_address) == 0xFD << 120 | bits << 64

    def test_random(self) -> None:
        """Without bits every subnet is another one, in fd00::/8."""
        subnets = {choose_ula() for _ in range(20)}
        assert len(subnets) == 20
        assert all(subnet.subnet_of(IPv6Network("fd00::/8")) for subnet in subnets)

    @given(st.integers(0, 2**56 - 1), st.lists(V4 | V6 | subnets_of(ULA), max_size=20))
    def test_free(self, bits: int, taken: list[IPv4Network | IPv6Network]) -> None:
        """It overlaps nothing that is taken, and if the bits are taken, the next that are free are used."""
        counting = [one for one in taken if isinstance(one, IPv6Network) and one.prefixlen > 7]
        try:
            subnet = choose_ula(taken, bits=bits)
        except PlanError:
            assert IPv6Network("fd00::/8") in counting
            return
        assert not any(subnet.overlaps(one) for one in counting)
        wanted = IPv6Network((0xFD << 120 | bits << 64, 64))
        assert subnet == wanted or any(wanted.overlaps(one) for one in counting)

    def test_round(self) -> None:
        """After the last bits come the first."""
        last = choose_ula(bits=2**56 - 1)
        assert choose_ula([last], bits=2**56 - 1) == IPv6Network("fd00::/64")
        with pytest.raises(PlanError, match="no unique local /64 is free"):
            choose_ula([IPv6Network("fd00::/8")], bits=5)

    @pytest.mark.parametrize("bits", [-1, 2**56, True, "1", 0.0])
    def test_other_bits(self, bits: int) -> None:
        """More than 56 bits are refused."""
        with pytest.raises(PlanError, match="bits="):
            choose_ula(bits=bits)


class TestPool:
    def test_ends(self) -> None:
        """Every host's address but the gateway's is given out once, in order."""
        pool = Pool("10.77.0.0/28")
        assert pool.gateway == IPv4Address("10.77.0.1")
        assert [str(pool.take()) for _ in range(pool.size)] == [f"10.77.0.{n}" for n in range(2, 15)]

    @pytest.mark.parametrize(
        ("subnet", "gateway", "endpoint"),
        [
            ("10.0.0.0/31", "10.0.0.0", "10.0.0.1"),
            ("10.0.0.0/30", "10.0.0.1", "10.0.0.2"),
            ("fd77::/127", "fd77::", "fd77::1"),
            ("fd77::/64", "fd77::1", "fd77::2"),
        ],
    )
    def test_small(self, subnet: str, gateway: str, endpoint: str) -> None:
        """The gateway has the first address that a host can have, and the first endpoint the next."""
        pool = Pool(subnet)
        assert (str(pool.gateway), str(pool.take())) == (gateway, endpoint)

    def test_given_gateway(self) -> None:
        """Another address can be the gateway's, and the first one is then an endpoint's."""
        pool = Pool("10.77.0.0/29", "10.77.0.6")
        assert [str(pool.take()) for _ in range(5)] == [f"10.77.0.{n}" for n in range(1, 6)]

    @pytest.mark.parametrize(
        ("address", "why"),
        [
            ("10.77.0.0", r"10\.77\.0\.0 is no host's: in 10\.77\.0\.0/24 those have 10\.77\.0\.1 to 10\.77\.0\.254"),
            ("10.77.0.255", "is no host's"),
            ("10.77.0.1", r"10\.77\.0\.1 is the gateway of 10\.77\.0\.0/24"),
            ("10.77.1.5", r"10\.77\.1\.5 is not in 10\.77\.0\.0/24"),
            ("fd77::5", "is not in"),
            ("web", "is no address"),
            (5, "is no address"),
        ],
    )
    def test_static_refused(self, address: str, why: str) -> None:
        """An address that cannot be an endpoint's is refused with its reason, and nothing is taken."""
        pool = Pool("10.77.0.0/24")
        with pytest.raises(PlanError, match=f"^address: .*{why}"):
            pool.take(address)
        with pytest.raises(PlanError, match=r"^address: "):
            pool.release(address)
        assert pool.taken() == ()

    @pytest.mark.parametrize("gateway", ["10.77.0.0", "10.77.0.255", "10.78.0.1", "fd77::1", "x"])
    def test_gateway_refused(self, gateway: str) -> None:
        """The gateway has an address that a host of the subnet can have."""
        with pytest.raises(PlanError, match=r"^gateway: "):
            Pool("10.77.0.0/24", gateway)

    def test_anycast(self) -> None:
        """The address of IPv6 that is every router's is no endpoint's."""
        with pytest.raises(PlanError, match="fd77:: is no host's"):
            Pool("fd77::/64").take("fd77::")

    def test_taken(self) -> None:
        """What is taken is not given out again, and a static address that is taken is named."""
        pool = Pool("10.77.0.0/24")
        assert pool.take("10.77.0.2") == IPv4Address("10.77.0.2")
        assert pool.take(IPv4Address("10.77.0.4")) == IPv4Address("10.77.0.4")
        assert [str(pool.take()) for _ in range(2)] == ["10.77.0.3", "10.77.0.5"]
        with pytest.raises(PlanError, match=r"^address: 10\.77\.0\.4 is taken"):
            pool.take("10.77.0.4")

    def test_full(self) -> None:
        """A full pool says which it is and how many addresses it has, and has one again when one is released."""
        pool = Pool("10.77.0.0/29")
        taken = [pool.take() for _ in range(5)]
        with pytest.raises(PlanError, match=r"10\.77\.0\.0/29 is full: of 5 addresses 5 are taken"):
            pool.take()
        pool.release(taken[2])
        assert pool.take() == taken[2]

    def test_released_last(self) -> None:
        """New addresses come before released ones, and of those the one whose release is longest ago, static ones too."""
        pool = Pool("10.77.0.0/29")
        first, second = pool.take(), pool.take()
        pool.take("10.77.0.5")
        for address in (second, "10.77.0.5", first):
            pool.release(address)
        assert [str(pool.take()) for _ in range(5)] == ["10.77.0.4", "10.77.0.6", "10.77.0.3", "10.77.0.5", "10.77.0.2"]

    def test_released_twice(self) -> None:
        """What is not taken cannot be released."""
        pool = Pool("10.77.0.0/24")
        pool.release(pool.take())
        with pytest.raises(PlanError, match=r"10\.77\.0\.2 is not taken"):
            pool.release("10.77.0.2")

    @pytest.mark.parametrize("subnet", ["10.0.0.0/8", "fd77::/64", "fd00::/9"])
    def test_huge(self, subnet: str) -> None:
        """However large a subnet is, its addresses are given out one by one, and its end can be taken."""
        pool = Pool(subnet)
        last = ip_network(subnet).broadcast_address - (pool.subnet.version == 4)
        assert pool.take(last) == last
        assert pool.take() == pool.gateway + 1
        assert pool.free == pool.size - 2
        assert pool.size == ip_network(subnet).num_addresses - (3 if pool.subnet.version == 4 else 2)

    def test_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of the released addresses a limited number is kept in mind, and those that are forgotten are given out again."""
        monkeypatch.setattr(module, "REMEMBERED", 3)
        pool = Pool("10.77.0.0/28")
        kept = set()
        for _ in range(1000):
            pool.release(pool.take())
            kept.add(len(pool._released))
        assert kept == {1, 2, 3}
        assert len({pool.take() for _ in range(pool.size)}) == 13

    def test_threads(self) -> None:
        """Threads that take and release at the same time never hold the same address."""
        pool = Pool("10.77.0.0/26")
        held: set[object] = set()
        clashes: list[object] = []
        barrier = threading.Barrier(4)

        def work() -> None:
            barrier.wait()
            for _ in range(500):
                address = pool.take()
                if address in held:
                    clashes.append(address)
                held.add(address)
                held.remove(address)
                pool.release(address)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert clashes == []
        assert pool.taken() == ()
        assert pool.free == pool.size

    def test_repr(self) -> None:
        """A pool shows its subnet, its gateway and how full it is."""
        pool = Pool("fd77::/126")
        pool.take()
        assert repr(pool) == "<Pool fd77::/126, gateway fd77::1, 1 of 2 taken>"


class PoolLife(RuleBasedStateMachine):
    """A pool beside a list that does the same slowly."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool("10.77.0.0/28", "10.77.0.3")
        self.fresh = [IPv4Address(f"10.77.0.{n}") for n in range(1, 15) if n != 3]
        self.released: list[IPv4Address] = []
        self.taken: set[IPv4Address] = set()

    @precondition(lambda self: self.fresh or self.released)
    @rule()
    def take(self) -> None:
        """The next one is the first that was never taken, and else the one that was released first."""
        address = self.pool.take()
        assert isinstance(address, IPv4Address)
        assert address == (min(self.fresh) if self.fresh else self.released[0])
        (self.fresh or self.released).remove(address)
        self.taken.add(address)

    @rule(number=st.integers(0, 15))
    def take_static(self, number: int) -> None:
        """A given one is taken if it is free."""
        address = IPv4Address(f"10.77.0.{number}")
        free = address in self.fresh or address in self.released
        if free:
            assert self.pool.take(address) == address
            (self.fresh if address in self.fresh else self.released).remove(address)
            self.taken.add(address)
            return
        with pytest.raises(PlanError):
            self.pool.take(str(address))

    @rule(number=st.integers(0, 15))
    def release(self, number: int) -> None:
        """A taken one is released."""
        address = IPv4Address(f"10.77.0.{number}")
        if address in self.taken:
            self.pool.release(address)
            self.taken.remove(address)
            self.released.append(address)
            return
        with pytest.raises(PlanError):
            self.pool.release(address)

    @invariant()
    def agree(self) -> None:
        """Both have the same addresses taken."""
        assert self.pool.taken() == tuple(sorted(self.taken))
        assert self.pool.free == len(self.fresh) + len(self.released)
        if not self.pool.free:
            with pytest.raises(PlanError, match="is full"):
                self.pool.take()


TestPoolLife = PoolLife.TestCase


@given(subnets_of(PRIVATE[0], 24, 31) | subnets_of(ULA, 120, 127))
def test_whole_pool(subnet: IPv4Network | IPv6Network) -> None:
    """A pool gives out all addresses that a host can have but the gateway's, each once, of either IP version."""
    pool = Pool(subnet)
    found = [pool.take() for _ in range(pool.size)]
    first, last = usable(subnet)
    assert {pool.gateway, *found} == {ip_address(n) if subnet.version == 4 else IPv6Address(n) for n in range(first, last + 1)}
    assert len(set(found)) == len(found)
