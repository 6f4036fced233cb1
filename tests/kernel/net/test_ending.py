"""The end of namespaces: told when nothing of them is there any more, to all who wait, and not before."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

import isolib
from isolib import ClosedError, PlanError, SyscallError, new_netns
from isolib.namespaces import NetNS
from isolib.net import ending, links, new_network, new_veth, topology
from isolib.net.ending import _Watch, dump_numbers, number_of
from tests import oracles
from tests.descriptors import refusals
from tests.interrupts import interrupt
from tests.nets import PATIENCE, SOON, holders
from tests.watches import check_fork, join
from tests.wires import connect

if TYPE_CHECKING:
    from types import CodeType

    from isolib.net import Ending

pytestmark = pytest.mark.usefixtures("user_namespaces")

MODULES = {str(Path(isolib.__path__[0], name)) for name in ("net/ending.py", "_kernel/news.py")}
CABLES = 20


def wired(kept: NetNS) -> NetNS:
    """Return a namespace to which many cables lead from one that is kept; with it, they go."""
    made = new_netns()
    for number in range(CABLES):
        connect(kept, f"near{number}", made, f"far{number}")
    return made


def names(ns: NetNS) -> list[str]:
    """Return the names of the links of a namespace, but for loopback, by another program's account."""
    return oracles.names(oracles.links(ns))


def test_nothing_is_there(a: NetNS) -> None:
    """When the end is told, the other ends of all its cables are gone, in one try as in any other; before, they are there."""
    for _ in range(10):
        other = wired(a)
        with ending(other) as end:
            assert end.wait(0) is False
            assert len(names(a)) == CABLES
            other.close()
            assert end.wait(PATIENCE) is True
            assert [one.name for one in links(a)] == ["lo"]  # at once: another program takes its time to start
            assert names(a) == []
            assert (end.wait(0), end.wait()) == (True, True)


def test_namespace_that_somebody_holds(a: NetNS) -> None:
    """A namespace lives on, and its end is not told, while a descriptor, a socket, or a program is in it or for it."""
    for hold in holders():
        other = new_netns()
        with new_veth(a, other, names=("near", "far")), ending(other) as end:
            leave = hold(other)
            other.close()
            assert end.wait(SOON) is False
            assert names(a) == ["near"]
            leave()
            assert end.wait(PATIENCE) is True
            assert names(a) == []


def test_several_namespaces() -> None:
    """The end of several is that of the last of them, whatever the order is in which they go; given twice is given once."""
    with ExitStack() as stack:
        some = [new_netns() for _ in range(4)]
        for one in some:
            stack.callback(one.close)
        end = stack.enter_context(ending(*some, some[0]))
        for one in reversed(some):
            assert end.wait(0) is False
            one.close()
        assert end.wait(PATIENCE) is True
        assert repr(end) == "<Ending over>"


def test_many_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """More ends at once than there is room to be told of are told all the same: the kernel is asked who is left."""
    asked: list[set[int]] = []
    ask = _Watch._ask

    def noting(watch: _Watch) -> None:
        ask(watch)
        asked.append(set(watch._left))

    monkeypatch.setattr(_Watch, "_ask", noting)
    some = [new_netns(lo=False) for _ in range(100)]
    with ending(*some) as end, ending(*some) as other:
        end._watch._told.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the least that there is: it is full by now
        for one in some:
            one.close()
        assert other.wait(PATIENCE) is True
        assert asked == []
        assert end.wait(PATIENCE) is True
    assert asked == [{0}]


def test_end_after_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who ends when others were not told of for want of room, and the kernel was asked who is left, is told of all the same."""
    ask = _Watch._ask
    with closing(new_netns(lo=False)) as more, ending(more) as gone:

        def ending_more(watch: _Watch) -> None:
            ask(watch)
            if not more.closed:
                more.close()
                assert gone.wait(PATIENCE) is True

        some = [new_netns(lo=False) for _ in range(50)]
        with ending(*some, more) as end, ending(*some) as other:
            end._watch._told.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            for one in some:
                one.close()
            assert other.wait(PATIENCE) is True
            monkeypatch.setattr(_Watch, "_ask", ending_more)
            assert end.wait(PATIENCE) is True
            assert more.closed


def test_network(a: NetNS) -> None:
    """The end of a network is told when it has been closed; then who was attached has no interface of it any more."""
    network = new_network("10.77.0.0/24", ipv6="fd77::/64")
    network.attach(a, hostname="web")
    with network.ending() as end:
        assert end.wait(0) is False
        network.close()
        assert end.wait(PATIENCE) is True
        assert names(a) == []
    with pytest.raises(ClosedError):
        network.ending()


def test_topology(a: NetNS) -> None:
    """The end of a topology is that of all its namespaces, that of the bridges too."""
    lab = topology("web - br0 - db, br0 - r1 - br1 - client")
    places = [*(lab[name] for name in lab), lab.bridges["br0"].where.net]
    for number, place in enumerate(places):
        assert isinstance(place, NetNS)
        connect(a, f"near{number}", place, "watch")
    with lab.ending() as end:
        lab.close()
        assert end.wait(PATIENCE) is True
        assert names(a) == []
    with pytest.raises(ClosedError):
        lab.ending()


# ---- who waits ----


def test_all_who_wait_are_told(ns: NetNS) -> None:
    """Several threads that wait are all told."""
    other = new_netns()
    with ending(other) as end, ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(end.wait, PATIENCE) for _ in range(4)]
        other.close()
        assert [one.result() for one in waiting] == [True] * 4


def test_event_loops() -> None:
    """Tasks of asyncio and of trio wait for it side by side, and a cancelled one disturbs no other."""

    async def under_asyncio() -> None:
        other = new_netns()
        with ending(other) as end:

            async def wait() -> bool:
                return await end

            tasks = [asyncio.create_task(wait()) for _ in range(3)]
            await asyncio.wait(tasks, timeout=0)
            tasks[0].cancel()
            other.close()
            async with asyncio.timeout(PATIENCE):
                assert await asyncio.gather(*tasks[1:]) == [True, True]
            assert await end is True

    async def under_trio() -> None:
        other = new_netns()
        with ending(other) as end, trio.fail_after(PATIENCE):
            other.close()
            assert await end is True

    asyncio.run(under_asyncio())
    trio.run(under_trio)


def test_descriptor_for_other_loops() -> None:
    """Its descriptor is readable when the end has come, and whoever asks then is told."""
    import select  # noqa: PLC0415 - of this test alone

    other = new_netns()
    with ending(other) as end:
        other.close()
        poll = select.poll()
        poll.register(end.fileno(), select.POLLIN)
        while not end.wait(0):
            assert poll.poll(PATIENCE * 1000)
        assert poll.poll(0)


def test_closing_ends_the_waiting(ns: NetNS) -> None:
    """Closing it ends the waiting of others; again is nothing, and it cannot be used any more."""
    end = ending(ns)
    refused: list[BaseException] = []

    def wait() -> None:
        try:
            end.wait()
        except ClosedError as error:
            refused.append(error)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    end.close()
    join(*threads)
    assert len(refused) == 3
    end.close()
    for action in (end.fileno, lambda: end.wait(0)):
        with pytest.raises(ClosedError):
            action()


def test_fork(ns: NetNS) -> None:
    """A fork is refused its use, and may close it; then it goes on here."""
    other = new_netns()
    with ending(other) as end:
        check_fork(end)  # type: ignore[arg-type]
        other.close()
        assert end.wait(PATIENCE) is True


# ---- what is refused ----


def test_what_has_no_end(ns: NetNS) -> None:
    """What is no network namespace, the caller's own, and nothing at all are refused before anything is done."""
    for wrong in ((5,), (None,), (), (ns, "eth0")):
        with pytest.raises(PlanError, match="namespaces"):
            ending(*wrong)
    gone = new_netns()
    gone.close()
    with pytest.raises(ClosedError):
        ending(ns, gone)


def test_without_descriptors(ns: NetNS) -> None:
    """Whichever descriptor is refused, the error says which limit that is, and nothing is left."""
    ending(ns).close()  # what is made once, is
    refused = refusals(lambda: ending(ns).close())
    assert len(refused) > 3
    assert {error.errno for error in refused} == {errno.EMFILE}
    assert {type(error) for error in refused} <= {SyscallError, isolib.SetupFailed}


@pytest.mark.filterwarnings("ignore:never closed:ResourceWarning")
def test_interrupts(lost: list[type[BaseException]]) -> None:
    """Wherever an interrupt comes, nothing is left of it, and who waits again is told of the end all the same."""
    turn = 0
    ended = 0
    while True:
        other = new_netns()
        kept: list[Ending] = []

        def live(other: NetNS = other, kept: list[Ending] = kept) -> None:
            kept.append(ending(other))
            other.close()
            kept[0].wait(PATIENCE)

        was = interrupt(turn := turn + 1, live, is_ours)
        other.close()
        for end in kept:
            with end:
                assert end.wait(PATIENCE) is True, turn
                ended += 1
        if was != 0:
            break
    assert turn > 50
    assert ended > 10


def is_ours(code: CodeType) -> bool:
    """Return whether interrupts are raised in this code."""
    return code.co_filename in MODULES


def test_numbers_as_ip_sees_them(ns: NetNS) -> None:
    """The numbers that the watch gives are those that ip tells of its namespace, and go with it."""
    with closing(new_netns()) as other, ending(ns, other) as end:
        post = end._watch._post
        numbers = {number_of(message) for message in post.netlink().dump(dump_numbers())}
        assert numbers == {one["nsid"] for one in oracles.ip(post, "netns", "list-id")} == {0, 1, 2}
