"""Sockets of a namespace that are made in store, for who must send a process for each."""

from __future__ import annotations

import errno
import os
import resource
import socket
from contextlib import closing
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from isolib import SetupFailed, SyscallError
from isolib._kernel import calls
from isolib._kernel.launch import launch
from isolib._kernel.plan import HOLD, INSIDE, Builder, Step
from isolib.net.plugs import Stock
from isolib.net.serving import take_socket
from tests.nets import listen

if TYPE_CHECKING:
    from isolib.namespaces import NetNS
    from isolib.net import Network

SENDS = os.geteuid() != 0
"""Who is not root sends a process."""


def descriptors() -> int:
    """Return how many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_sockets_are_those_of_the_namespace(a: NetNS, address: str) -> None:
    """Each socket of a stock is one of the namespace, of the family of the address, and does not block."""
    with listen(a, address) as server, closing(Stock(a)) as stock:
        for _ in range(20):
            sock = take_socket(stock.take(ip_address(address), socket.SOCK_STREAM))
            try:
                assert not os.get_blocking(sock.fileno())
                assert sock.connect_ex(server.getsockname()) in {0, errno.EINPROGRESS}
                server.accept()[0].close()
            finally:
                sock.close()
        sock = take_socket(stock.take(ip_address(address), socket.SOCK_DGRAM))
        assert sock.type & 0xF == socket.SOCK_DGRAM
        sock.close()


def test_store_is_bounded(a: NetNS) -> None:
    """Sixteen are made at a time, by one process, and the next when those are used; who need not send one makes one."""
    with closing(Stock(a)) as stock:
        taken = [stock.take(ip_address("127.0.0.1"), socket.SOCK_STREAM)]
        taken[0].close()
        before = descriptors()
        for number in range(1, 17):
            taken.append(stock.take(ip_address("127.0.0.1"), socket.SOCK_STREAM))
            made = number if not SENDS else 0 if number < 16 else 16
            assert descriptors() == before + made
        stock.close()
        assert descriptors() == before + (16 if not SENDS else 16 - 15)
        for one in taken:
            one.close()


def test_closed_with_the_network(network: Network, a: NetNS) -> None:
    """What a network's published ports have in store is closed with it."""
    endpoint = network.attach(a)
    with listen(a, str(endpoint.address), 80) as server:
        with network.publish(0, endpoint, 80) as published:
            for _ in range(3):
                with socket.create_connection(("127.0.0.1", published.port)):
                    server.accept()[0].close()
        stores = network._stock._spare.values()
        assert [len(one) for one in stores] == [13 if SENDS else 0]
        network.close()
        assert not any(stores)


def test_sent_to_what_is_no_socket() -> None:
    """A descriptor that cannot be sent is told as such."""
    builder = Builder()
    with open("/dev/null", "rb") as file:
        way = builder.declare(file.fileno(), "no socket")
        builder.add(INSIDE, Step("SEND", fd=way, fd2=way, what="a socket"))
        with pytest.raises(SetupFailed) as caught:
            launch(builder.build(HOLD), builder.fds)
    assert (caught.value.op, caught.value.target, caught.value.errno) == ("sendmsg", "a socket", errno.ENOTSOCK)


def test_no_room_for_what_was_sent() -> None:
    """A descriptor that was sent to who may have no more of them is told as that, and what was sent in vain is closed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ours, theirs:
        reading, writing = os.pipe()
        socket.send_fds(theirs, [b"\0"], [writing])
        os.close(writing)
        resource.setrlimit(resource.RLIMIT_NOFILE, (writing, hard))  # the lowest that is free
        try:
            with pytest.raises(SyscallError) as caught:
                calls.receive_descriptor(ours.fileno(), "a socket")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert (caught.value.op, caught.value.target, caught.value.errno) == ("recvmsg", "a socket", errno.EMFILE)
        assert os.read(reading, 1) == b""
        os.close(reading)
