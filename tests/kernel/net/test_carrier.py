"""Waiting until an address of IPv6 is one: when it returns, by what, and that it does not wait for nothing."""

from __future__ import annotations

import errno
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Any

import pytest

from isolib import SyscallError
from isolib._kernel.waiting import poll
from isolib.net import carrier, parsing, requests, subscription
from isolib.net.bridge import new_bridge
from isolib.net.routing import add_barrier
from isolib.net.sysctl import Sysctls
from isolib.net.veth import new_veth
from tests import oracles
from tests.nets import reaches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    from isolib.namespaces import NetNS
    from isolib.net.interface import Interface

    Meanwhile: TypeAlias = Callable[[Interface, Callable[[], object]], None]

ENDLESS = 60.0
"""Seconds that nobody waits, but for what does not come."""

ADDRESS = IPv6Address("fd00::1")


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Wait so long for news that a test in which none comes fails."""
    monkeypatch.setattr(carrier, "_PATIENCE", ENDLESS)
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < ENDLESS, "it waited for what did not come"


@pytest.fixture
def end(a: NetNS, b: NetNS) -> Iterator[Interface]:
    """Return one end of a cable, without an address of IPv6 but its own."""
    with new_veth(a, b, names=("eth0", "far")) as cable:
        yield cable.a


def is_local(end: Interface, address: str | IPv6Address = ADDRESS) -> bool:
    """Return whether packets to an address, by a link, are for the namespace itself."""
    try:
        found = end.where.socket.ask(requests.find_route(ip_address(address), end.index))
    except SyscallError as error:
        if error.errno != errno.ENETUNREACH:  # which Linux 6.12 says where 6.18 has a route
            raise
        return False
    return parsing.parse_route(found[0]).type == "local"


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Meanwhile:
    """Return what waits for the address on one thread, and on this one does something when that waits."""
    waits = threading.Event()

    def telling(*arguments: Any) -> int:  # noqa: ANN401 - those of poll
        waits.set()
        return poll(*arguments)

    def run(end: Interface, action: Callable[[], object]) -> None:
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(carrier.settle_addresses, end, [ADDRESS])
            assert waits.wait(oracles.PATIENCE)
            action()
            waiting.result()

    monkeypatch.setattr(carrier, "poll", telling)
    return run


def give(end: Interface) -> None:
    """Give the address to a link, as another program does."""
    oracles.run_in(end.where.net, "ip", "addr", "add", f"{ADDRESS}/64", "dev", end.name, "nodad")  # type: ignore[arg-type]


def test_what_is_given_is_there(a: NetNS, b: NetNS) -> None:
    """When a cable or a bridge was made, or an address given, the addresses of IPv6 are the namespace's, each time."""
    for _ in range(30):
        with ExitStack() as stack:
            cable = stack.enter_context(new_veth(a, b, addresses=("fd00::1/64", "fd00::2/64")))
            bridge = stack.enter_context(new_bridge("br0", ns=a, addresses=["fd01::1/64"]))
            made = [(cable.a, "fd00::1"), (cable.b, "fd00::2"), (bridge.interface, "fd01::1")]
            assert all(is_local(end, address) for end, address in made)
            for number in range(3, 9):
                cable.a.add_address(f"fd00::{number}/64")
                assert is_local(cable.a, f"fd00::{number}")


def test_address_that_comes_later(a: NetNS, b: NetNS, end: Interface, meanwhile: Meanwhile) -> None:
    """Who waits for an address goes on when another program gives it, and it can be reached."""
    meanwhile(end, lambda: give(end))
    assert is_local(end)
    (far,) = [one for one in oracles.links(b) if one.kind == "veth"]
    oracles.run_in(b, "ip", "addr", "add", "fd00::2/64", "dev", far.name, "nodad")
    assert reaches(b, a, ADDRESS)


@pytest.mark.parametrize("kind", ["unreachable", "prohibit", "blackhole"])
def test_address_in_a_network_that_leads_nowhere(a: NetNS, end: Interface, kind: str, meanwhile: Meanwhile) -> None:
    """A route that is to lead nowhere is no answer: the address is waited for, and comes before that route."""
    add_barrier("fd00::/16", kind, ns=a)
    add_barrier("::/0", kind, ns=a)
    meanwhile(end, lambda: give(end))
    assert is_local(end)


def test_address_of_another_link(a: NetNS, end: Interface) -> None:
    """An address that another link of the namespace has is none of this one yet, as it is with those of links."""
    with new_veth(a, a, names=("x", "y")) as other:
        for text in ("fe80::1/64", "fd07::1/64"):
            other.a.add_address(text)
            address = text.partition("/")[0]
            assert is_local(other.a, address)
            assert not is_local(end, address)
            end.add_address(text)
            assert is_local(end, address)


@pytest.mark.parametrize("state", ["down", "without a carrier", "without a carrier, and routes by it are ignored"])
def test_link_that_can_do_nothing(a: NetNS, b: NetNS, state: str) -> None:
    """An address of a link that is down, or whose other end is, is given without waiting for what does not come."""
    with new_veth(a, b, names=("eth0", "far")) as cable:
        if "ignored" in state:
            for name in ("all", "default", "eth0"):
                Sysctls(a)[f"net/ipv6/conf/{name}/ignore_routes_with_linkdown"] = 1
        (cable.a if state == "down" else cable.b).down()
        cable.a.add_address("fd00::1/64")
        cable.a.add_address("10.0.0.1/24")
        assert "fd00::1/64" in {str(one.interface) for one in oracles.addresses(a)}
        (cable.a if state == "down" else cable.b).up()
        carrier.settle(cable.a, cable.b)
        carrier.settle_addresses(cable.a, [ADDRESS])
        cable.b.add_address("fd00::2/64")
        assert reaches(b, a, ADDRESS)


def test_without_ipv6(a: NetNS, end: Interface) -> None:
    """Where IPv6 is switched off, its addresses are refused at once, and those of IPv4 are given."""
    Sysctls(a)["ipv6/conf/all/disable_ipv6"] = 1
    for action in (
        lambda: end.add_address("fd00::1/64"),
        lambda: new_bridge("br0", ns=a, addresses=["10.5.0.1/24", "fd05::1/64"]),
    ):
        with pytest.raises(SyscallError) as caught:
            action()
        assert (caught.value.op, caught.value.errno) == ("RTM_NEWADDR", errno.EACCES)
    end.add_address("10.0.0.1/24")
    carrier.settle_addresses(end, [ip_address("10.0.0.1"), ip_address("10.0.0.9")])


def test_patience_ends(end: Interface, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for ever for an address that does not come."""
    monkeypatch.setattr(carrier, "_PATIENCE", 0.05)
    carrier.settle_addresses(end, [ADDRESS])
    assert not is_local(end)


def test_link_that_goes_meanwhile(a: NetNS, b: NetNS, meanwhile: Meanwhile) -> None:
    """Who waits for an address of a link that is removed is told."""
    with new_veth(a, b, names=("eth0", "far")) as cable, pytest.raises(SyscallError) as caught:
        meanwhile(cable.a, cable.close)
    assert caught.value.errno == errno.ENODEV


def test_more_news_than_room(a: NetNS, end: Interface, monkeypatch: pytest.MonkeyPatch) -> None:
    """When more news come than there is room for, it is looked again."""
    monkeypatch.setattr(subscription, "_ROOM", 1)
    asked = 0

    def is_to_come() -> bool:
        nonlocal asked
        asked += 1
        for number in range(200):
            end.change(alias=str(number))
        return asked < 5

    carrier._wait(a, is_to_come)
    assert asked == 5
