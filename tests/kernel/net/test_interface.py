"""One interface of a namespace: what is changed there is what ip sees, and what cannot be is told."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack
from ipaddress import ip_address, ip_interface, ip_network
from typing import TYPE_CHECKING

import pytest

from isolib import PlanError, SyscallError
from isolib.net import owned, queries
from isolib.net.veth import new_veth
from tests import oracles
from tests.nets import socket_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from isolib.namespaces import NetNS
    from isolib.net.interface import Interface
    from isolib.net.values import Link


@pytest.fixture
def end(a: NetNS, b: NetNS) -> Iterator[Interface]:
    """Return one end of a cable, which has an address of each family."""
    with new_veth(a, b, names=("eth0", "far"), addresses=("10.0.0.1/24", "10.0.0.2/24")) as cable:
        cable.a.add_address("fd00::1/64")
        yield cable.a


def seen(a: NetNS) -> Link:
    """Return the interface as ip sees it."""
    (found,) = [one for one in oracles.links(a) if one.kind == "veth"]
    return found


def errno_of(action: Callable[[], object]) -> int:
    """Return with what an action is refused."""
    with pytest.raises(SyscallError) as caught:
        action()
    assert caught.value.hint, "it says nothing that would help"
    return caught.value.errno


# ---- the link ----


def test_up_and_down(a: NetNS, b: NetNS, end: Interface) -> None:
    """It is taken down and brought up again, and so is what the other end can do."""

    def able() -> tuple[bool, ...]:
        # The carrier, and not the state of RFC 2863: that the kernel may change up to a second later.
        (far,) = [one for one in oracles.links(b) if one.kind == "veth"]
        return seen(a).up, end.link().up, "lower_up" in seen(a).flags, "lower_up" in far.flags

    end.down()
    assert able() == (False, False, False, False)
    end.up()
    assert able() == (True, True, True, True)


def test_changes_in_one_request(a: NetNS, end: Interface) -> None:
    """Name, MTU, MAC address and alias are changed together, and it is known by its new name from then on."""
    end.down()
    end.change(name="wan0", mtu=9000, mac="02:00:00:00:00:01", alias="to the world: é")
    found = seen(a)
    assert (found.name, found.mtu, found.mac, found.alias) == ("wan0", 9000, "02:00:00:00:00:01", "to the world: é")
    assert (end.name, repr(end)) == ("wan0", f"<Interface wan0 index={end.index}>")
    end.change(alias="")
    assert seen(a).alias == ""
    end.change()
    assert (seen(a).name, seen(a).mtu, seen(a).mac) == ("wan0", 9000, "02:00:00:00:00:01")


@pytest.mark.parametrize(
    "change",
    [
        {"name": "x" * 16},
        {"name": "a/b"},
        {"mtu": 5},
        {"mac": "01:00:00:00:00:01"},
        {"mac": "00:00:00:00:00:00"},
        {"mac": "02:00:00:00:00"},
        {"mac": b"\x02"},
        {"alias": "x" * 256},
        {"alias": "a\0b"},
        {"alias": 5},
        {"alias": "\ud800"},
    ],
    ids=str,
)
def test_changes_that_cannot_be(a: NetNS, end: Interface, change: dict[str, object]) -> None:
    """A value that no link can have is refused by its name, and nothing is changed, not even beside it."""
    before = end.link()
    with pytest.raises(PlanError, match=next(iter(change))):
        end.change(**{"alias": "new", "mtu": 1300, **change})  # type: ignore[arg-type]
    assert (end.link().mtu, end.link().alias, end.link().name) == (before.mtu, "", "eth0")


def test_name_of_another(a: NetNS, end: Interface) -> None:
    """A name that another link has is refused, and both keep theirs."""
    end.down()
    assert errno_of(lambda: end.change(name="lo")) == errno.EEXIST
    assert (end.name, end.link().name) == ("eth0", "eth0")


def test_statistics(a: NetNS, b: NetNS, end: Interface) -> None:
    """What passes is counted as ip counts it."""
    before = end.stats()
    with socket_in(a, socket.SOCK_DGRAM) as sender:
        end.add_neighbour("10.0.0.9", "02:00:00:00:00:09")
        for _ in range(10):
            sender.sendto(bytes(1000), ("10.0.0.9", 9))
    after = end.stats()
    assert before is not None
    assert after is not None
    assert after.tx_packets >= before.tx_packets + 10
    assert after.tx_bytes >= before.tx_bytes + 10 * 1042
    for _ in range(30):
        now = end.stats()
        told = seen(a).stats
        if end.stats() == now:
            assert told == now
            return
    pytest.fail("it never stands still")


def test_link_that_is_gone(a: NetNS, b: NetNS) -> None:
    """Of a link that is gone every question and every change says so."""
    cable = new_veth(a, b)
    end = cable.a
    cable.close()
    for action in (end.link, end.stats, end.up, end.down, lambda: end.change(mtu=1400), lambda: end.add_address("10.0.0.1/24")):
        assert errno_of(action) == errno.ENODEV


# ---- addresses ----


def test_addresses(a: NetNS, end: Interface) -> None:
    """Addresses of both families are given and taken, and are there at once as ip sees them."""
    for text in ("10.0.5.1/16", "10.7.0.1/31", "10.8.0.1/32", "fd01::1/64", "fd02::1/128"):
        end.add_address(text)
        for found in ({one.interface: one for one in end.addresses()}, {one.interface: one for one in oracles.addresses(a)}):
            assert "tentative" not in found[ip_interface(text)].flags
            assert found[ip_interface(text)].index == end.index
        end.remove_address(text)
        assert ip_interface(text) not in {one.interface for one in oracles.addresses(a)}


def test_address_with_another_end(a: NetNS, end: Interface) -> None:
    """A point-to-point address says who the other end is, and is taken as it was given."""
    end.add_address("10.9.0.1/32", peer="10.9.0.2")
    (found,) = [one for one in oracles.addresses(a) if one.peer is not None]
    assert (str(found.interface), found.peer) == ("10.9.0.1/32", ip_address("10.9.0.2"))
    assert found in set(end.addresses())
    end.remove_address("10.9.0.1/32", peer="10.9.0.2")
    assert not [one for one in oracles.addresses(a) if one.peer is not None]


def test_broadcast_address(a: NetNS, end: Interface) -> None:
    """A network of IPv4 gets its broadcast address, one of two hosts or one has none."""
    for text, broadcast in (("10.20.0.1/24", "10.20.0.255"), ("10.21.0.1/31", None), ("10.22.0.1/32", None)):
        end.add_address(text)
        (found,) = [one for one in oracles.addresses(a) if one.interface == ip_interface(text)]
        assert found.broadcast == (None if broadcast is None else ip_address(broadcast))


@pytest.mark.parametrize("text", ["10.30.0.1/24", "fd30::1/64"])
def test_addresses_for_a_time(a: NetNS, end: Interface, text: str) -> None:
    """For how long an address is valid and preferred is as ip sees it, is changed live, and comes to be for ever again."""
    own = ip_interface(text)

    def seen() -> tuple[int | None, int | None, frozenset[str]]:
        (ours,) = [one for one in end.addresses() if one.interface == own]
        (theirs,) = [one for one in oracles.addresses(a) if one.interface == own]
        assert ours.flags == theirs.flags
        for mine, other in ((ours.valid, theirs.valid), (ours.preferred, theirs.preferred)):
            assert mine == other or None not in {mine, other}  # both count down meanwhile
        return theirs.valid, theirs.preferred, theirs.flags

    end.add_address(text, valid=5000, preferred=3000)
    valid, preferred, flags = seen()
    assert valid is not None
    assert preferred is not None
    assert 4000 < valid <= 5000
    assert 2000 < preferred <= 3000
    assert flags & {"permanent", "deprecated"} == set()
    end.change_address(text, valid=9000)
    valid, preferred, _ = seen()
    assert valid is not None
    assert preferred is not None
    assert 8000 < preferred <= valid <= 9000
    end.change_address(text, preferred=0)
    assert seen()[0] is None
    assert "deprecated" in seen()[2]  # of one of IPv4 that is valid for ever, the kernel does not tell since when
    end.change_address(text)
    assert seen()[:2] == (None, None)
    assert "permanent" in seen()[2]
    end.remove_address(text)
    assert errno_of(lambda: end.change_address(text, valid=60)) == errno.EADDRNOTAVAIL
    assert own not in {one.interface for one in oracles.addresses(a)}


@pytest.mark.parametrize("text", ["10.30.0.1/24", "fd30::1/64"])
def test_addresses_without_their_route(a: NetNS, end: Interface, text: str) -> None:
    """With noprefixroute there is no route to the address's network, not when its time is changed either; without, there is."""
    network = ip_interface(text).network

    def has_route() -> bool:
        return any(one.destination == network and one.table == "main" for one in oracles.routes(a))

    end.add_address(text, noprefixroute=True)
    for valid in (None, 600, None):
        end.change_address(text, valid=valid)
        (found,) = [one for one in oracles.addresses(a) if one.interface == ip_interface(text)]
        assert "noprefixroute" in found.flags
        assert not has_route()
    end.remove_address(text)
    end.add_address(text)
    assert has_route()


@pytest.mark.parametrize(
    "times",
    [
        {"valid": 0},
        {"valid": -1},
        {"valid": 0xFFFFFFFF},
        {"valid": "1h"},
        {"valid": True},
        {"preferred": -1},
        {"preferred": 0xFFFFFFFF},
        {"preferred": 11, "valid": 10},
    ],
    ids=str,
)
def test_times_that_no_address_has(a: NetNS, end: Interface, times: dict[str, object]) -> None:
    """What is no number of seconds, and an address that is preferred longer than valid, are refused by name."""
    for action in (end.add_address, end.change_address):
        with pytest.raises(PlanError, match=next(iter(times))):
            action("10.30.0.1/24", **times)  # type: ignore[arg-type]
    assert ip_interface("10.30.0.1/24") not in {one.interface for one in oracles.addresses(a)}


def test_addresses_that_are_refused(end: Interface) -> None:
    """An address that is there already, and one that is not, are told by their own error numbers."""
    assert errno_of(lambda: end.add_address("10.0.0.1/24")) == errno.EEXIST
    assert errno_of(lambda: end.add_address("fd00::1/64")) == errno.EEXIST
    assert errno_of(lambda: end.remove_address("10.0.0.7/24")) == errno.EADDRNOTAVAIL
    assert errno_of(lambda: end.remove_address("fd00::7/64")) == errno.EADDRNOTAVAIL


@pytest.mark.parametrize(
    "text", ["10.0.0.1", "10.0.0.0/24", "10.0.0.255/24", "x", "224.0.0.1/24", "::/0", "ff02::1/64", 5, None]
)
def test_addresses_that_cannot_be(end: Interface, text: object) -> None:
    """What no host can have as its address is refused before the kernel is asked."""
    for action in (end.add_address, end.remove_address):
        with pytest.raises(PlanError, match="address"):
            action(text)  # type: ignore[arg-type]


# ---- routes ----


def test_routes_with_metrics_and_tables(a: NetNS, end: Interface) -> None:
    """Routes of both families, by gateways or by the link, of any table and metric, are as ip sees them, and go again."""
    wanted: list[tuple[dict[str, object], dict[str, object]]] = [
        ({"gateway": "10.0.0.2"}, {"destination": ip_network("0.0.0.0/0"), "gateway": ip_address("10.0.0.2"), "metric": 0}),
        ({"gateway": "fd00::2"}, {"destination": ip_network("::/0"), "gateway": ip_address("fd00::2"), "metric": 1024}),
        ({"destination": "10.9.0.0/16"}, {"destination": ip_network("10.9.0.0/16"), "gateway": None, "scope": "link"}),
        ({"destination": "10.9.0.0/16", "metric": 7}, {"destination": ip_network("10.9.0.0/16"), "metric": 7}),
        ({"destination": "fd09::/32", "metric": 7}, {"destination": ip_network("fd09::/32"), "metric": 7}),
        ({"destination": "10.9.0.0/16", "table": 7}, {"table": 7, "protocol": "static"}),
        ({"destination": "10.9.0.0/16", "table": 4294967295}, {"table": 4294967295}),
        ({"destination": "10.9.0.0/16", "table": "default"}, {"table": "default"}),
        ({"destination": "10.5.0.0/16", "source": "10.0.0.1"}, {"source": ip_address("10.0.0.1")}),
        ({"destination": "10.6.0.0/16", "gateway": "10.0.0.2", "mtu": 1300}, {"mtu": 1300, "onlink": False}),
        ({"destination": "fd06::/32", "gateway": "fd00::2", "mtu": 1300}, {"mtu": 1300, "onlink": False}),
        ({"destination": "10.4.0.0/16", "gateway": "192.0.2.1", "onlink": True}, {"onlink": True, "mtu": None}),
        ({"destination": "0.0.0.0/0", "gateway": "fe80::1", "metric": 9}, {"gateway": ip_address("fe80::1"), "metric": 9}),
    ]
    for arguments, expected in wanted:
        before = oracles.routes(a)
        end.add_route(**arguments)  # type: ignore[arg-type]
        (made,) = [one for one in oracles.routes(a) - before if one.protocol == "static"]
        assert made.index == end.index
        assert {key: getattr(made, key) for key in expected} == expected
        assert made in queries.routes(a, table=None)
    for arguments, _ in wanted:
        kept = {key: value for key, value in arguments.items() if key not in {"source", "mtu", "onlink"}}
        end.remove_route(**kept)  # type: ignore[arg-type]
    assert not [one for one in oracles.routes(a) if one.protocol == "static"]


def test_route_of_another_program(a: NetNS, end: Interface) -> None:
    """A route is removed whoever has made it."""
    oracles.run_in(a, "ip", "route", "add", "10.9.0.0/16", "via", "10.0.0.2")
    oracles.run_in(a, "ip", "route", "add", "fd09::/32", "via", "fd00::2")
    end.remove_route("10.9.0.0/16", gateway="10.0.0.2")
    end.remove_route("fd09::/32", gateway="fd00::2")
    assert not [one for one in oracles.routes(a) if one.protocol == "boot"]


def test_routes_that_are_refused(end: Interface) -> None:
    """A route that is there, one that is not, and one by a gateway that nobody can reach, have their own error numbers."""
    end.add_route("10.9.0.0/16")
    assert errno_of(lambda: end.add_route("10.9.0.0/16")) == errno.EEXIST
    assert errno_of(lambda: end.add_route("10.8.0.0/16", gateway="192.0.2.1")) == errno.ENETUNREACH
    assert errno_of(lambda: end.remove_route("10.8.0.0/16")) == errno.ESRCH
    assert errno_of(lambda: end.remove_route("fd08::/64")) == errno.ESRCH


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"destination": "10.9.0.1/16"},
        {"destination": "nowhere"},
        {"destination": 5},
        {"destination": ip_interface("10.9.0.1/16")},
        {"gateway": "10.0.0.0/8"},
        {"gateway": 10},
        {"destination": "fd00::/64", "gateway": "10.0.0.2"},
        {"destination": "10.9.0.0/16", "metric": -1},
        {"destination": "10.9.0.0/16", "metric": 1 << 32},
        {"destination": "10.9.0.0/16", "metric": True},
        {"destination": "10.9.0.0/16", "table": 0},
        {"destination": "10.9.0.0/16", "table": "mine"},
        {"destination": "10.9.0.0/16", "source": "x"},
        {"destination": "10.9.0.0/16", "mtu": 67},
        {"destination": "10.9.0.0/16", "mtu": "1300"},
        {"destination": "10.9.0.0/16", "onlink": True},
    ],
    ids=str,
)
def test_routes_that_cannot_be(a: NetNS, end: Interface, arguments: dict[str, object]) -> None:
    """What no route can be is refused before the kernel is asked."""
    with pytest.raises(PlanError, match=next(reversed(arguments), "destination")):
        end.add_route(**arguments)  # type: ignore[arg-type]
    assert [one for one in queries.routes(a, table=None) if one.protocol == "static"] == []


# ---- neighbours ----


def test_neighbours(a: NetNS, end: Interface) -> None:
    """Neighbours of both families are told for good, told anew, and forgotten, as ip sees it."""
    for address, mac in (
        ("10.0.0.7", "02:00:00:00:00:07"),
        ("fd00::7", "02:00:00:00:00:08"),
        ("10.0.0.7", "02:00:00:00:00:09"),
    ):
        end.add_neighbour(address, mac)
        (made,) = [one for one in oracles.neighbours(a) if str(one.address) == address]
        assert (made.mac, made.state, made.index) == (mac, "permanent", end.index)
        assert made in end.neighbours()
    for address in ("10.0.0.7", "fd00::7"):
        end.remove_neighbour(address)
        assert not [one for one in oracles.neighbours(a) if str(one.address) == address and one.state == "permanent"]
    assert errno_of(lambda: end.remove_neighbour("10.0.0.8")) == errno.ENOENT


@pytest.mark.parametrize(("address", "mac"), [("x", "02:00:00:00:00:07"), ("10.0.0.7", "x"), ("10.0.0.7", "03:00:00:00:00:07")])
def test_neighbours_that_cannot_be(end: Interface, address: str, mac: str) -> None:
    """What is no address, or no MAC address of one host, is refused before the kernel is asked."""
    with pytest.raises(PlanError, match=r"address|mac"):
        end.add_neighbour(address, mac)


def test_same_number_in_two_namespaces(a: NetNS, b: NetNS) -> None:
    """Two interfaces that have one number, each in its namespace, are told apart."""
    state = owned._random.getstate()
    with ExitStack() as stack:
        one = stack.enter_context(new_veth(a, a, names=("x", "y")))
        owned._random.setstate(state)
        other = stack.enter_context(new_veth(b, b, names=("x", "y")))
        assert one.a.index == other.a.index
        one.a.add_address("10.0.0.1/24")
        other.a.change(mtu=1400)
        assert [str(found.interface) for found in one.a.addresses() if found.interface.version == 4] == ["10.0.0.1/24"]
        assert [found for found in other.a.addresses() if found.interface.version == 4] == []
        assert (one.a.link().mtu, other.a.link().mtu) == (1500, 1400)
