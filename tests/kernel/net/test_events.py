"""What changes in a network namespace, as the kernel tells it."""

from __future__ import annotations

import asyncio
import os
import random
import select
import signal
import socket
import struct
import threading
from contextlib import closing
from ipaddress import IPv4Address, ip_network
from queue import SimpleQueue
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib import PIPE, STDOUT, ClosedError, PlanError
from isolib._kernel.netlink import codec
from isolib._kernel.netlink.socket import open_netlink
from isolib.net import Address, Change, Link, Neighbour, Route, addresses, changes, links, neighbours, requests, routes
from tests import watches
from tests.nets import PATIENCE, socket_in
from tests.rights import RIGHTS, having
from tests.watches import in_background, join
from tests.wires import sysctl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from isolib.namespaces import NetNS
    from isolib.net import Changes

PACKAGE = os.path.dirname(isolib.__file__)


@pytest.fixture(params=RIGHTS, autouse=True)
def rights(request: pytest.FixtureRequest, user_namespaces: None) -> Iterator[str]:
    """Run the test once with root's capabilities, and once without any."""
    with having(request.param):
        yield request.param


@pytest.fixture
def net() -> Iterator[NetNS]:
    """Return a namespace that the test's thread is not in, and where nothing happens by itself: there is no IPv6."""
    with closing(isolib.new_netns()) as namespace:
        without_ipv6(namespace)
        yield namespace


def without_ipv6(net: NetNS) -> None:
    """Switch IPv6 off in a namespace, in which things happen by themselves."""
    for name in ("all", "default"):
        sysctl(net, f"net.ipv6.conf.{name}.disable_ipv6", "1")


@pytest.fixture
def news(net: NetNS) -> Iterator[Changes]:
    """Return what tells of its changes."""
    with changes(net) as opened:
        yield opened


def ip(net: NetNS, *lines: str, force: bool = False) -> None:
    """Have ip do several things in a namespace; with force, each that it can."""
    argv = ["ip", *(["-force"] if force else []), "-batch", "-"]
    with net.spawn(argv, stdin=PIPE, stdout=PIPE, stderr=STDOUT) as process:
        out, _ = process.communicate("".join(f"{line}\n" for line in lines).encode(), timeout=60)
        assert process.wait(60).code == 0 or force, out


def take(news: Changes, kind: str, cls: type[object]) -> Change:
    """Return the next change of this kind of such a thing; what comes before is passed over."""
    while True:
        change = news.wait(PATIENCE)
        assert change is not None, f"not told: {kind} {cls.__name__}"
        if change.kind == kind and isinstance(change.what, cls):
            return change


def everything(news: Changes) -> list[Change]:
    """Return all that has been told by now: the kernel tells before the call returns that did it."""
    found = []
    while (change := news.wait(0)) is not None:
        found.append(change)
    return found


def told(found: list[Change], cls: type[object]) -> list[tuple[str, str]]:
    """Return what happened to the links of these changes."""
    return [(change.kind, getattr(change.what, "name", "")) for change in found if isinstance(change.what, cls)]


# ---- what is told ----


def test_a_link(net: NetNS, news: Changes) -> None:
    """A link is told when it is made, brought up, renamed, and removed; what was there before is not."""
    assert news.wait(0) is None
    ip(net, "link add br0 type bridge")
    made = take(news, "added", Link).what
    assert isinstance(made, Link)
    (there,) = [link for link in links(net) if link.name == "br0"]
    assert (made.index, made.name, made.kind, made.mac) == (there.index, "br0", "bridge", there.mac)
    ip(net, "link set br0 up")
    up = take(news, "changed", Link)
    assert isinstance(up.what, Link)
    assert isinstance(up.before, Link)
    assert (up.what.up, up.before.up) == (True, False)
    ip(net, "link set br0 name br1")
    renamed = take(news, "changed", Link)
    while getattr(renamed.what, "name", "") != "br1":
        renamed = take(news, "changed", Link)
    ip(net, "link del br1")
    gone = take(news, "removed", Link)
    assert isinstance(gone.what, Link)
    assert (gone.what.name, gone.what.index) == ("br1", made.index)
    assert told(everything(news), Link) == []


def test_a_port_of_a_bridge(net: NetNS, news: Changes) -> None:
    """A link that becomes a port of a bridge, and no longer is one, has changed; it was never removed."""
    ip(
        net,
        "link add br0 type bridge",
        "link add name va type veth peer name vb",
        "link set va master br0",
        "link set va nomaster",
    )
    found = [change for change in everything(news) if getattr(change.what, "name", "") == "va"]
    assert found[0].kind == "added"
    assert {change.kind for change in found[1:]} == {"changed"}
    masters = [change.what.master for change in found if isinstance(change.what, Link)]
    assert masters[0] is None
    assert any(masters)
    assert masters[-1] is None


def test_an_address(net: NetNS, news: Changes) -> None:
    """An address is told when it comes and when it goes, with the routes that the kernel makes for it."""
    ip(net, "address add 10.1.0.1/24 dev lo")
    change = take(news, "added", Address)
    assert change.what in addresses(net)
    ip(net, "address del 10.1.0.1/24 dev lo")
    assert take(news, "removed", Address).what == change.what


def test_a_route(net: NetNS, news: Changes) -> None:
    """A route is told when it comes, when another one takes its place, and when it goes."""
    ip(net, "link add br0 up type bridge", "address add 10.1.0.1/24 dev br0")
    everything(news)
    ip(net, "route add 10.2.0.0/16 via 10.1.0.2")
    added = take(news, "added", Route)
    assert added.what in routes(net)
    ip(net, "route replace 10.2.0.0/16 via 10.1.0.3")
    changed = take(news, "changed", Route)
    assert isinstance(changed.what, Route)
    assert (changed.what.gateway, changed.before) == (IPv4Address("10.1.0.3"), added.what)
    ip(net, "route append 10.2.0.0/16 via 10.1.0.4", "route del 10.2.0.0/16 via 10.1.0.3")
    assert [change.kind for change in everything(news)] == ["added", "removed"]


@pytest.mark.parametrize("end", ["link set br0 down", "link del br0"])
def test_routes_that_go_silently(net: NetNS, end: str) -> None:
    """A route that goes with its link is told, although the kernel says nothing of it."""
    ip(net, "link add br0 up type bridge", "address add 10.1.0.1/24 dev br0", "route add 10.2.0.0/16 via 10.1.0.2")
    with changes(net, of=[Route]) as news:
        ip(net, end)
        gone = {change.what.destination for change in everything(news) if isinstance(change.what, Route)}
        assert ip_network("10.2.0.0/16") in gone
        assert ip_network("10.1.0.0/24") in gone


def test_a_neighbour(net: NetNS, news: Changes) -> None:
    """A neighbour is told when it is learned, when it moves, and when it is forgotten."""
    ip(net, "link add br0 up type bridge")
    everything(news)
    ip(net, "neigh add 10.1.0.9 lladdr 02:00:00:00:00:01 dev br0 nud permanent")
    assert take(news, "added", Neighbour).what in neighbours(net)
    ip(net, "neigh replace 10.1.0.9 lladdr 02:00:00:00:00:02 dev br0 nud permanent")
    moved = take(news, "changed", Neighbour)
    assert isinstance(moved.what, Neighbour)
    assert moved.what.mac == "02:00:00:00:00:02"
    ip(net, "neigh del 10.1.0.9 dev br0")
    assert isinstance(take(news, "removed", Neighbour).what, Neighbour)


def test_only_what_is_wanted(net: NetNS) -> None:
    """Of what nobody asked for nothing is told."""
    with changes(net, of=[Address]) as some, changes(net, of={Link}) as others:
        assert repr(some) == "<Changes of Address>"
        ip(net, "link add br0 up type bridge", "address add 10.1.0.1/24 dev br0", "link del br0")
        assert {type(change.what) for change in everything(some)} == {Address}
        assert {type(change.what) for change in everything(others)} == {Link}


def test_another_namespace_is_not_told_of(net: NetNS, news: Changes) -> None:
    """What happens in other namespaces is not told."""
    with closing(isolib.new_netns()) as other:
        ip(other, "link add br0 type bridge")
    assert news.wait(0) is None


def things(net: NetNS) -> dict[str, list[object]]:
    """Return what there is, without counters."""
    found: dict[str, list[object]] = {
        "links": [(link.index, link.name, link.flags, link.mtu, link.master) for link in links(net)],
        "addresses": list(addresses(net)),
        "routes": list(routes(net, table=None)),
        "neighbours": [neighbour for neighbour in neighbours(net) if neighbour.state != "noarp"],
    }
    return {name: sorted(values, key=repr) for name, values in found.items()}


def replayed(found: list[Change]) -> dict[str, list[object]]:
    """Return what there is when so much has happened to nothing."""
    known: dict[object, object] = {}
    for change in found:
        if change.before is not None:
            del known[key(change.before)]
        if change.kind != "removed" and change.what is not None:
            assert key(change.what) not in known
            known[key(change.what)] = change.what
    names = {Link: "links", Address: "addresses", Route: "routes", Neighbour: "neighbours"}
    result: dict[str, list[object]] = {name: [] for name in names.values()}
    for thing in known.values():
        if isinstance(thing, Link):
            result["links"].append((thing.index, thing.name, thing.flags, thing.mtu, thing.master))
        else:
            result[names[type(thing)]].append(thing)
    return {name: sorted(values, key=repr) for name, values in result.items()}


def key(thing: object) -> object:
    """Return what makes a thing the same when it changes."""
    return ("link", thing.index) if isinstance(thing, Link) else thing


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("room", [None, 1, 1 << 17])
def test_what_is_told_is_what_there_is(seed: int, room: int | None) -> None:
    """Whatever happens, and however much of it is lost, who follows what is told knows in the end what there is."""
    chance = random.Random(seed)  # noqa: S311 - not for secrets
    with closing(isolib.new_netns(lo=False)) as net:
        without_ipv6(net)
        with changes(net) as news:
            if room:
                news._news.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
            ip(net, "link set lo up", "link add br0 up type bridge", "link add name va type veth peer name vb")
            for _ in range(10):
                number = chance.randrange(1, 5)
                lines = [
                    f"address add 10.{number}.0.1/24 dev br0",
                    f"address del 10.{number}.0.1/24 dev br0",
                    f"route add 10.9.{number}.0/24 dev br0",
                    f"route replace 10.9.{number}.0/24 dev lo",
                    "link set br0 down",
                    "link set br0 up",
                    "link set va master br0",
                    "link set va nomaster",
                    f"link set vb mtu {1000 + number}",
                    f"neigh replace 10.1.0.{number} lladdr 02:00:00:00:00:0{number} dev br0 nud permanent",
                    "link del va",
                    "link add name va type veth peer name vb",
                ]
                ip(net, *chance.choices(lines, k=12), force=True)
            found = everything(news)
            before = [Change("added", link) for link in LOOPBACK]
            assert replayed(before + found) == things(net)
            if news._news.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= 1 << 20 or room:
                assert any(change.kind == "lost" for change in found) is bool(room)


LOOPBACK = [Link(1, "lo", "loopback", "00:00:00:00:00:00", 65536, frozenset({"loopback"}), "down")]


def test_loss_is_told(net: NetNS, news: Changes) -> None:
    """That there was no room is told first, and then everything that has come or gone meanwhile."""
    news._news.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    ip(net, *(f"address add 10.1.{number}.1/32 dev lo" for number in range(200)))
    found = everything(news)
    assert Change("lost", None) in found
    assert len([change for change in found if isinstance(change.what, Address)]) == 200
    ip(net, "address del 10.1.7.1/32 dev lo")
    assert take(news, "removed", Address).kind == "removed"


def test_nobody_but_the_kernel_tells(net: NetNS, news: Changes) -> None:
    """Root of the namespace cannot tell of what has not happened."""
    body = struct.pack("=BxHiII", 0, 1, 99, 0, 0) + codec.text(3, "forged")
    message = codec.HEADER.pack(16 + len(body), 16, 0, 0, 0) + body
    with socket_in(net, socket.SOCK_RAW, socket.AF_NETLINK) as forger:
        forger.sendto(message, (0, 1))
    ip(net, "link add real type bridge")
    assert told(everything(news), Link)[0] == ("added", "real")


# ---- waiting ----


def test_close_ends_blocked_iterations(net: NetNS) -> None:
    """Closing it on one thread ends the iterations of others, and nothing stays open."""
    watches.check_close_ends_blocked_iterations(changes(net))


def test_each_change_is_given_once(net: NetNS) -> None:
    """Threads that take from one share the changes: all that come are given, each to one of them."""
    found: SimpleQueue[Change] = SimpleQueue()
    with changes(net, of=[Address]) as news:
        threads = [in_background(news, found) for _ in range(3)]
        ip(net, *(f"address add 10.1.{number}.1/32 dev lo" for number in range(100)))
        seen = [str(found.get(timeout=PATIENCE).what) for _ in range(100)]
    join(*threads)
    assert len(set(seen)) == 100
    assert found.empty()


def test_fileno_is_readable_when_there_is_something(net: NetNS, news: Changes) -> None:
    """Any event loop can wait for it: it is readable as long as there is something to take, and not any longer."""
    poll = select.poll()
    poll.register(news, select.POLLIN)
    assert poll.poll(0) == []
    ip(net, *(f"link add br{number} type bridge" for number in range(5)))
    taken = 0
    while poll.poll(0):
        taken += news.wait(0) is not None
    assert taken >= 5
    assert news.wait(0) is None
    assert poll.poll(0) == []


async def watch(net: NetNS) -> list[str]:
    """Follow the changes until they end; nothing here is of one event loop."""
    with changes(net, of=[Link]) as news:
        ip(net, "link add br0 type bridge")
        names = [getattr((await anext(news)).what, "name", "")]
        timer = threading.Timer(0.05, ip, (net, "link add br1 type bridge"))
        timer.start()
        while names[-1] != "br1":
            names.append(getattr((await anext(news)).what, "name", ""))
        timer.join()
        threading.Timer(0.05, news.close).start()
        return names + [getattr(change.what, "name", "") async for change in news]


def test_asyncio(net: NetNS) -> None:
    """`async for` gives the changes under asyncio, and ends when it is closed."""
    names = asyncio.run(watch(net))
    assert set(names) == {"br0", "br1"}


def test_trio(net: NetNS) -> None:
    """`async for` gives the changes under trio, and ends when it is closed."""
    import trio  # noqa: PLC0415 - what asyncio's code does depends on whether it is imported

    assert set(trio.run(watch, net)) == {"br0", "br1"}


def test_asyncio_tasks_wait_side_by_side(net: NetNS) -> None:
    """Several tasks may wait for the next change; closing ends them all, and a cancelled one disturbs no other."""
    watches.check_asyncio_tasks_wait_side_by_side(lambda: changes(net))


def test_interrupts_lose_nothing(net: NetNS) -> None:
    """Wherever an interrupt comes while changes are read, what has changed is told afterwards all the same."""
    armed = False

    def handler(_: int, frame: FrameType | None) -> None:
        nonlocal armed
        # In a finalizer of others it would be lost, with the rest of that.
        if armed and frame is not None and frame.f_code.co_filename.startswith(PACKAGE):
            armed = False
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, handler)
    interrupted = 0
    with changes(net, of=[Address]) as news:
        ip(net, *(f"address add 10.1.{number}.1/32 dev lo" for number in range(200)))
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0007, 0.0007)
            for turn in range(400):
                try:
                    armed = True
                    while armed:
                        news.wait(0.001)
                except KeyboardInterrupt:
                    interrupted += 1
                if turn % 40 == 0:
                    ip(net, f"address add 10.2.{turn // 40}.1/32 dev lo")
        finally:
            armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert interrupted > 300
        ip(net, "address add 10.3.0.1/32 dev lo")
        seen = {str(change.what.interface) for change in everything(news) if isinstance(change.what, Address)}
        assert "10.3.0.1/32" in seen
        known = news._ledger._known[Address]
        assert sorted(map(repr, known.values())) == sorted(map(repr, addresses(net)))


def test_handler_closes(net: NetNS) -> None:
    """A signal handler may close what the interrupted thread waits for."""
    watches.check_handler_closes(changes(net))


def test_closing_the_handle_does_not_disturb(net: NetNS, news: Changes) -> None:
    """The namespace lives on, and its changes are told, when its handle is closed."""
    with open_netlink(net) as route:
        net.close()
        route.ask(requests.new_link("bridge", requests.link_attributes(name="br0"), name="br0"))
    assert take(news, "added", Link).kind == "added"
    with pytest.raises(ClosedError):
        changes(net)


def test_fork(net: NetNS, news: Changes) -> None:
    """In a fork it is of no use, and closing it there takes nothing from the parent."""
    ip(net, "link add br0 type bridge")
    watches.check_fork(news)
    assert take(news, "added", Link).kind == "added"


def test_no_descriptors(net: NetNS) -> None:
    """Whichever descriptor is refused, the error names that limit and nothing stays open."""
    watches.check_no_descriptors(lambda: changes(net))


@pytest.mark.parametrize("of", [[], "Link", [str], [Link, None], 5, [["Link"]]])
def test_bad_arguments(net: NetNS, of: object) -> None:
    """What is no kind of thing is refused before anything is opened, and so are times that are none."""
    with pytest.raises(PlanError, match="of"):
        changes(net, of=of)  # type: ignore[arg-type]  # that is the test
    with pytest.raises(PlanError, match="ns"):
        changes(5)  # type: ignore[arg-type]
    with changes(net) as news, pytest.raises(PlanError, match="timeout"):
        news.wait(-1)
