"""Rules, routes by several ways, and routes that lead nowhere, as ip sees them."""

from __future__ import annotations

import errno
import socket
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

import pytest

from isolib import ClosedError, PlanError, SyscallError, new_netns
from isolib.net import queries
from isolib.net.routing import add_barrier, add_route, add_rule, new_rule, remove_barrier, remove_route, remove_rule
from isolib.net.veth import new_veth
from tests import oracles
from tests.nets import socket_in

if TYPE_CHECKING:
    from isolib.namespaces import NetNS

RULES: list[dict[str, object]] = [
    {"table": 7},
    {"table": "local"},
    {"table": 4294967295, "source": "10.7.0.0/16"},
    {"table": "main", "destination": "10.7.0.0/16", "source": "10.0.0.1/32"},
    {"table": 7, "source": "fd00::/8"},
    {"table": 7, "family": 6},
    {"table": 7, "incoming": "lo", "outgoing": "eth0"},
    {"table": 7, "mark": 3},
    {"table": 7, "mark": 3, "mask": 0xFF},
    {"action": "prohibit", "source": "10.7.0.0/16"},
    {"action": "blackhole", "destination": "fd00::/8"},
    {"action": "unreachable", "mark": 0xFFFFFFFF},
]


@pytest.mark.parametrize("arguments", RULES, ids=str)
def test_rules(a: NetNS, arguments: dict[str, object]) -> None:
    """A rule is, field by field, what ip says and what isolib reads, and is removed by its own value."""
    rule = new_rule(100, **arguments)  # type: ignore[arg-type]
    before = oracles.rules(a)
    add_rule(rule, ns=a)
    assert [one for one in oracles.rules(a) if one not in before] == [rule]
    assert queries.rules(a) == oracles.rules(a)
    with pytest.raises(SyscallError) as caught:
        add_rule(rule, ns=a)
    assert caught.value.errno == errno.EEXIST
    remove_rule(rule, ns=a)
    assert oracles.rules(a) == before
    with pytest.raises(SyscallError) as caught:
        remove_rule(rule, ns=a)
    assert caught.value.errno == errno.ENOENT


def test_rules_of_another_namespace(a: NetNS, b: NetNS) -> None:
    """Rules that are read in one namespace can be added in another."""
    for number, arguments in enumerate(RULES, 100):
        add_rule(new_rule(number, **arguments), ns=a)  # type: ignore[arg-type]
    there = queries.rules(b)
    for rule in queries.rules(a):
        if rule not in there:
            add_rule(rule, ns=b)
    assert queries.rules(b) == queries.rules(a) == oracles.rules(b)


@pytest.mark.parametrize(
    "arguments",
    [
        {"priority": 0},
        {"priority": 1 << 32},
        {"priority": "1"},
        {"action": "goto"},
        {"action": 1},
        {"table": "mine"},
        {"table": 0},
        {"family": 5},
        {"family": 6, "source": "10.0.0.0/8"},
        {"destination": "fd00::/8", "source": "10.0.0.0/8"},
        {"destination": "10.0.0.1/8"},
        {"incoming": "x" * 16},
        {"outgoing": "a/b"},
        {"mark": -1},
        {"mask": 1 << 32},
    ],
    ids=str,
)
def test_rules_that_cannot_be(arguments: dict[str, object]) -> None:
    """What no rule can be is refused by its name."""
    with pytest.raises(PlanError, match=next(reversed(arguments))):
        new_rule(**{"priority": 100, **arguments})  # type: ignore[arg-type]


def test_rule_that_isolib_cannot_write(a: NetNS) -> None:
    """A rule that jumps to another is read, but not written."""
    oracles.run_in(a, "ip", "rule", "add", "prio", "60", "goto", "32766")
    (found,) = [one for one in queries.rules(a) if one.priority == 60]
    for action in (add_rule, remove_rule):
        with pytest.raises(PlanError, match="not 'goto'"):
            action(found, ns=a)


@pytest.mark.parametrize("kind", ["unreachable", "prohibit", "blackhole", "throw"])
@pytest.mark.parametrize("destination", ["10.9.0.0/16", "0.0.0.0/0", "10.9.9.9/32", "fd09::/32", "::/0"])
def test_barriers(a: NetNS, kind: str, destination: str) -> None:
    """A route that leads nowhere is of its kind by ip's account, in its table with its metric, and is removed."""
    before = oracles.routes(a)
    add_barrier(destination, kind, ns=a, metric=9, table=7)
    (made,) = oracles.routes(a) - before
    assert (made.type, str(made.destination), made.metric, made.table) == (kind, destination, 9, 7)
    assert made in queries.routes(a, table=7)
    with pytest.raises(SyscallError) as caught:
        add_barrier(destination, kind, ns=a, metric=9, table=7)
    assert caught.value.errno == errno.EEXIST
    remove_barrier(destination, kind, ns=a, metric=9, table=7)
    assert oracles.routes(a) == before
    with pytest.raises(SyscallError) as caught:
        remove_barrier(destination, kind, ns=a, metric=9, table=7)
    assert caught.value.errno == errno.ESRCH


def test_what_a_barrier_says(a: NetNS, b: NetNS) -> None:
    """Who sends there is told what the documentation says."""
    with new_veth(a, b, addresses=("10.0.0.1/24", "10.0.0.2/24")):
        for kind, number in (("unreachable", errno.EHOSTUNREACH), ("prohibit", errno.EACCES), ("blackhole", errno.EINVAL)):
            add_barrier("10.9.0.0/16", kind, ns=a)
            with socket_in(a, socket.SOCK_DGRAM) as sender:
                assert sender.connect_ex(("10.9.0.1", 9)) == number
            remove_barrier("10.9.0.0/16", kind, ns=a)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("default",), "destination"),
        (("10.0.0.1/8",), "destination"),
        (("10.0.0.0/8", "unicast"), "kind"),
        (("10.0.0.0/8", 5), "kind"),
    ],
)
def test_barriers_that_cannot_be(a: NetNS, arguments: tuple[str, ...], word: str) -> None:
    """What no such route can be is refused by its name."""
    for action in (add_barrier, remove_barrier):
        with pytest.raises(PlanError, match=word):
            action(*arguments, ns=a)


def test_namespace_that_is_none() -> None:
    """What is no network namespace, or is closed, is told by each."""
    gone = new_netns()
    gone.close()
    rule = new_rule(100)
    for action in (add_rule, remove_rule):
        with pytest.raises(ClosedError):
            action(rule, ns=gone)
        with pytest.raises(PlanError):
            action(rule, ns=5)  # type: ignore[arg-type]
    for barrier in (add_barrier, remove_barrier):
        with pytest.raises(ClosedError):
            barrier("10.0.0.0/8", ns=gone)


# ---- routes by several ways ----


@pytest.mark.parametrize(
    ("destination", "gateways", "options"),
    [
        ("10.9.0.0/16", ("10.0.0.2", "10.1.0.2"), {}),
        ("0.0.0.0/0", ("10.0.0.2", "10.1.0.2"), {"metric": 7, "mtu": 1300, "source": "10.0.0.1"}),
        ("fd09::/32", ("fd00::2", "fd01::2"), {"table": 7, "mtu": 1400}),
        ("10.9.0.0/16", ("10.0.0.2", None), {"table": 777}),
        ("10.9.0.0/16", ("fe80::1", "10.1.0.2"), {}),
    ],
    ids=str,
)
def test_routes_by_several_ways(
    a: NetNS, b: NetNS, destination: str, gateways: tuple[str | None, ...], options: dict[str, object]
) -> None:
    """Gateways, interfaces and weights of a route by several ways are those that ip tells, and it goes as a whole."""
    with (
        new_veth(a, b, names=("x0", "y0"), addresses=("10.0.0.1/24", "10.0.0.2/24")) as one,
        new_veth(a, b, names=("x1", "y1"), addresses=("10.1.0.1/24", "10.1.0.2/24")) as other,
    ):
        one.a.add_address("fd00::1/64")
        other.a.add_address("fd01::1/64")
        before = oracles.routes(a)
        hops = list(zip(gateways, (one.a, other.a), (1, 200), strict=True))
        add_route(destination, hops, **options)  # type: ignore[arg-type]
        (made,) = oracles.routes(a) - before
        assert made in queries.routes(a, table=None)
        assert made.destination == ip_network(destination)
        assert {(way and str(way), index, weight) for way, index, weight in made.hops} == {
            (way, end.index, weight) for way, end, weight in hops
        }
        found = {"metric": made.metric, "mtu": made.mtu, "table": made.table, "source": made.source and str(made.source)}
        assert {key: found[key] for key in options} == options
        with pytest.raises(SyscallError) as caught:
            add_route(destination, hops, **options)  # type: ignore[arg-type]
        assert caught.value.errno == errno.EEXIST
        kept = {key: value for key, value in options.items() if key in {"metric", "table"}}
        remove_route(destination, ns=a, **kept)  # type: ignore[arg-type]
        assert oracles.routes(a) == before
        with pytest.raises(SyscallError) as caught:
            remove_route(destination, ns=a, **kept)  # type: ignore[arg-type]
        assert caught.value.errno == errno.ESRCH


def test_packets_by_several_ways(a: NetNS, b: NetNS) -> None:
    """Of many connections, some take one way and some the other."""
    with (
        new_veth(a, b, names=("x0", "y0"), addresses=("10.0.0.1/24", "10.0.0.2/24")) as one,
        new_veth(a, b, names=("x1", "y1"), addresses=("10.1.0.1/24", "10.1.0.2/24")) as other,
        socket_in(a, socket.SOCK_DGRAM) as sender,
    ):
        for cable, gateway in ((one, "10.0.0.2"), (other, "10.1.0.2")):
            cable.a.add_neighbour(gateway, "02:00:00:00:00:09")
        add_route("10.9.0.0/16", [("10.0.0.2", one.a, 1), ("10.1.0.2", other.a, 1)])

        def sent() -> list[int]:
            return [0 if (stats := cable.a.stats()) is None else stats.tx_packets for cable in (one, other)]

        before = sent()
        for number in range(1, 255):
            sender.sendto(b"x", (f"10.9.0.{number}", 9))
        by_one, by_other = (now - then for now, then in zip(sent(), before, strict=True))
        assert min(by_one, by_other) >= 50


def test_routes_by_several_ways_that_cannot_be(a: NetNS, b: NetNS) -> None:
    """One way alone, a weight that there is not, and ways from several namespaces are refused before the kernel is asked."""
    with new_veth(a, b, addresses=("10.0.0.1/24", "10.0.0.2/24")) as cable:
        end = cable.a
        before = oracles.routes(a)
        bad: list[tuple[str, object, dict[str, object], str]] = [
            ("10.9.0.0/16", [], {}, "hops"),
            ("10.9.0.0/16", [("10.0.0.2", end, 1)], {}, "hops"),
            ("10.9.0.0/16", [("10.0.0.2", end)] * 2, {}, "hops"),
            ("10.9.0.0/16", [("10.0.0.2", end, 1), ("10.0.0.3", end, 0)], {}, r"hops\[1\]"),
            ("10.9.0.0/16", [("10.0.0.2", end, 257), ("10.0.0.3", end, 1)], {}, r"hops\[0\]"),
            ("10.9.0.0/16", [("10.0.0.2", end, 1), ("x", end, 1)], {}, r"hops\[1\]"),
            ("10.9.0.0/16", [("10.0.0.2", end, 1), ("10.0.0.1", cable.b, 1)], {}, "several namespaces"),
            ("fd09::/32", [("10.0.0.2", end, 1), ("10.0.0.3", end, 1)], {}, "gateway"),
            ("nowhere", [("10.0.0.2", end, 1), ("10.0.0.3", end, 1)], {}, "destination"),
            ("10.9.0.0/16", [("10.0.0.2", end, 1), ("10.0.0.3", end, 1)], {"mtu": 5}, "mtu"),
            ("10.9.0.0/16", [("10.0.0.2", end, 1), ("10.0.0.3", end, 1)], {"metric": -1}, "metric"),
        ]
        for destination, hops, options, words in bad:
            with pytest.raises(PlanError, match=words):
                add_route(destination, hops, **options)  # type: ignore[arg-type]
        assert oracles.routes(a) == before
        assert ip_address("10.0.0.1") in {one.interface.ip for one in queries.addresses(a)}
