"""Who leaves a network together with his namespace: at once for everybody, and behind for the kernel."""

from __future__ import annotations

import errno
import os
import threading
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib import SyscallError, new_netns
from isolib.net import leaving, links, new_network
from tests import oracles
from tests.interrupts import interrupt
from tests.nets import SOON, holders, reaches, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType

    from isolib.namespaces import NetNS
    from isolib.net import Endpoint, Network

pytestmark = pytest.mark.usefixtures("user_namespaces")

MODULES = {str(Path(isolib.__path__[0], "net", name)) for name in ("leaving.py", "endpoint.py")}


def ports(network: Network) -> list[str]:
    """Return the names of the ports of a network's bridge."""
    return [port.name for port in network.bridge.ports()]


def states(network: Network) -> dict[str, str]:
    """Return the states of the ports of a network's bridge, by another program's account."""
    return {one["ifname"]: one["state"] for one in oracles.bridge(network.ns, "link")}


def learn(network: Network, ns: NetNS, endpoint: Endpoint) -> None:
    """Have the bridge learn behind which port an endpoint is."""
    assert endpoint.address is not None
    assert reaches(network.ns, ns, endpoint.address)
    assert behind(network, endpoint)


def behind(network: Network, endpoint: Endpoint) -> bool:
    """Return whether the bridge knows behind which port an endpoint is."""
    return (endpoint.mac, endpoint.port.index) in {(entry.mac, entry.index) for entry in network.bridge.fdb()}


def test_gone_with_its_namespace(network: Network) -> None:
    """Who has left is nobody's endpoint and has no name any more, at once, and the kernel takes his cable down behind."""
    ns = new_netns()
    endpoint = network.attach(ns, hostname="web")
    endpoint.leave()
    assert endpoint.closed
    assert network.endpoints() == []
    assert "web" not in network.hosts()
    endpoint.leave()
    endpoint.close()
    ns.close()
    assert until(lambda: not ports(network))


def test_nothing_passes(network: Network, new_ns: Callable[[], NetNS]) -> None:
    """What has left is neither heard nor reached from the moment on, though its cable is there still and somebody in it."""
    a, b = new_ns(), new_ns()
    endpoint, other = network.attach(a), network.attach(b)
    assert endpoint.address is not None
    assert other.address is not None
    learn(network, a, endpoint)
    with network._leaving._lock:  # the thread does not come to it meanwhile
        endpoint.leave()
        assert states(network) == {endpoint.port.name: "disabled", other.port.name: "forwarding"}
        assert [link.name for link in links(a)] == ["lo", "eth0"]
        assert not reaches(a, b, other.address, patience=SOON)
        assert not reaches(b, a, endpoint.address, patience=SOON)
        assert not reaches(network.ns, a, endpoint.address, patience=SOON)


def test_address_is_free_at_once(new_ns: Callable[[], NetNS]) -> None:
    """The address of who has left is another's at once, who is reached by it though the first one's cable is there still."""
    a, b, c = new_ns(), new_ns(), new_ns()
    with new_network("10.77.0.0/30") as network, network._leaving._lock:
        first = network.attach(a)
        learn(network, a, first)
        first.leave()
        assert not behind(network, first)
        second = network.attach(b)
        assert second.address == first.address
        assert second.address is not None
        assert reaches(network.ns, b, second.address)
        assert network.gateway is not None
        assert reaches(b, network.ns, network.gateway)
        assert set(ports(network)) == {first.port.name, second.port.name}
        second.leave()
        third = network.attach(c, address=first.address)
        assert reaches(network.ns, c, third.address or "")


def test_namespace_that_somebody_holds(network: Network) -> None:
    """Where somebody else has the namespace, by a descriptor, a socket or a program, the cable is removed all the same."""
    for hold in holders():
        ns = new_netns()
        endpoint = network.attach(ns)
        with ExitStack() as stack:
            stack.callback(hold(ns))
            endpoint.leave()
            ns.close()
            assert until(lambda: not ports(network))


@pytest.mark.parametrize("reason", ["a spanning tree", "no port", "down", "bad weather"])
def test_what_cannot_be_left(network: Network, new_ns: Callable[[], NetNS], reason: str) -> None:
    """Where nobody but another can shut the port, or more than a cable is to be undone, all is gone when it returns."""
    ns = new_ns()
    endpoint = network.attach(ns)
    if reason == "a spanning tree":
        network.bridge.change(stp=True)
    elif reason == "no port":
        network.bridge.remove(endpoint.port)
    elif reason == "down":
        endpoint.down()
    else:
        endpoint.impair(loss=0.5)
    endpoint.leave()
    assert [link.name for link in links(ns)] == ["lo"]
    assert endpoint.port.name not in [link.name for link in links(network.ns)]
    assert network.endpoints() == []


def test_no_more_than_so_many(network: Network) -> None:
    """Of the cables of many who leave, and whose namespaces stay, there are never more than so many."""
    most = 0
    with ExitStack() as stack:
        for _ in range(leaving._MOST + 20):
            ns = new_netns()
            stack.callback(os.close, os.dup(ns.fileno()))
            network.attach(ns).leave()
            ns.close()
            most = max(most, len(ports(network)))
        assert 1 < most <= leaving._MOST
        assert until(lambda: not ports(network))


def test_many(network: Network) -> None:
    """Three hundred come and go, each in a namespace of its own, and nothing of them is left."""
    for _ in range(300):
        with closing(new_netns()) as ns:
            network.attach(ns).leave()
    assert until(lambda: not ports(network))
    assert network._leaving._left == {} or until(lambda: not network._leaving._left)


def test_network_that_is_closed(new_ns: Callable[[], NetNS]) -> None:
    """A network is closed while cables are on their way, and no thread waits for them any more; the kernel takes them down."""
    ns = new_ns()
    before = threading.active_count()
    with new_network("10.77.0.0/24", dns=False) as network:
        endpoint, other = network.attach(ns), network.attach(new_ns())
        endpoint.leave()
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
    assert other.closed
    other.leave()
    assert until(lambda: [link.name for link in links(ns)] == ["lo"])


def test_one_that_cannot_be_removed(new_ns: Callable[[], NetNS]) -> None:
    """What could not be removed behind is told by who closes the network, and the others are removed all the same."""

    def refuse() -> None:
        raise SyscallError("undo", "this", errno.EIO)

    spaces = [new_ns(), new_ns()]
    network = new_network("10.77.0.0/24")
    ends = [network.attach(ns) for ns in spaces]
    with network._leaving._lock:
        for end in ends:
            end.leave()
        next(iter(network._leaving._left)).push(refuse)
    assert until(lambda: not network._leaving._left)
    assert ports(network) == []
    with pytest.raises(SyscallError, match="undo"):
        network.close()
    assert network.ns.closed


def test_forked(network: Network, new_ns: Callable[[], NetNS]) -> None:
    """In a fork of the program the endpoint is the parent's: leaving there takes nothing away."""
    ns = new_ns()
    endpoint = network.attach(ns)
    pid = os.fork()
    if not pid:
        try:
            endpoint.leave()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert states(network) == {endpoint.port.name: "forwarding"}
    assert network.gateway is not None
    assert reaches(ns, network.ns, network.gateway)


@pytest.mark.filterwarnings("ignore:never closed:ResourceWarning")
def test_interrupts() -> None:
    """Wherever an interrupt comes, who leaves again has left, and nothing of it is left in the network."""
    turn = 0
    with new_network("10.77.0.0/24", dns=False) as network:
        while True:
            ns = new_netns()
            endpoint = network.attach(ns)
            was = interrupt(turn := turn + 1, endpoint.leave, is_ours)
            endpoint.leave()
            ns.close()
            assert network.endpoints() == []
            if was != 0:
                break
        assert turn > 10
        assert until(lambda: not ports(network))


def is_ours(code: CodeType) -> bool:
    """Return whether interrupts are raised in this code."""
    return code.co_filename in MODULES
