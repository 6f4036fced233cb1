"""KeyboardInterrupt at every point of the making and closing of what is served, and of networks."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import threading
import warnings
from typing import TYPE_CHECKING

import pytest

from isolib import new_netns
from isolib._kernel import handle
from isolib.net import (
    chosen,
    endpoint,
    forward,
    make,
    network,
    new_network,
    plugs,
    published,
    responder,
    serving,
    streams,
    upstream,
)
from isolib.net.forward import new_forwarder
from isolib.net.names import Names, Zone
from isolib.net.responder import new_responder
from tests.interrupts import interrupt

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType

SERVED = {module.__file__ for module in (forward, handle, responder, serving, streams, upstream)}
NETWORKS = {module.__file__ for module in (chosen, endpoint, make, network, plugs, published)}


def a_forwarder() -> None:
    """Forward, and stop."""
    with socket.create_server(("127.0.0.1", 0)) as front:
        new_forwarder(front, socket.socket, ("127.0.0.1", 1)).close()


def a_relay_of_datagrams() -> None:
    """Forward datagrams, and stop."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as front:
        front.bind(("0.0.0.0", 0))
        new_forwarder(front, socket.socket, ("127.0.0.1", 1)).close()


def a_responder() -> None:
    """Answer, and stop."""
    with socket.create_server(("127.0.0.1", 0)) as streams, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("127.0.0.1", 0))
        new_responder([datagrams], [streams], zone=Zone(Names(), "lab"), upstream=["127.0.0.1"]).close()


def a_network() -> None:
    """Make a network, attach somebody who has a name and a port, and close it."""
    ns = new_netns()
    try:
        with new_network("10.77.0.0/24", ipv6=True) as made:
            made.publish(0, made.attach(ns, hostname="web"), 80)
    finally:
        ns.close()


def settled() -> tuple[set[str], list[object]]:
    """Return the descriptors, and the subnets that are taken, when no thread serves any more."""
    gc.collect()
    for thread in threading.enumerate():
        if thread.name == "isolib serving":
            with contextlib.suppress(RuntimeError):  # interrupted before it was started
                thread.join(20)
            assert not thread.is_alive()
    return set(os.listdir("/proc/self/fd")), [*chosen._taken.subnets.values()]


@pytest.mark.usefixtures("user_namespaces")
@pytest.mark.parametrize(
    ("action", "ours"),
    [(a_forwarder, SERVED), (a_relay_of_datagrams, SERVED), (a_responder, SERVED), (a_network, NETWORKS)],
)
def test_interrupt_at_every_point(action: Callable[[], None], ours: set[str], lost: list[type[BaseException]]) -> None:
    """Wherever an interrupt comes, no socket, namespace or subnet is left, and no thread that serves nothing."""

    def is_ours(code: CodeType) -> bool:
        return code.co_filename in ours

    action()
    gc.collect()
    gc.freeze()  # so that hundreds of collections look only at what the action made
    before = settled()
    turn, interrupted = 0, True
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        stack.callback(gc.unfreeze)
        warnings.simplefilter("ignore", ResourceWarning)
        while interrupted:
            turn += 1
            interrupted = interrupt(turn, action, is_ours) == 0
            assert settled() == before, turn
    assert turn > 50
    assert set(lost) <= {KeyboardInterrupt}
