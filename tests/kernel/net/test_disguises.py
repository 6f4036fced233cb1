"""Packets for nobody, which a program that leads a network out would take for ones for the host's loopback."""

from __future__ import annotations

import os
import shutil
import socket
from contextlib import ExitStack

import pytest

from tests.nets import listen, socket_in
from tests.worlds import HERE6, heard, world

pytestmark = pytest.mark.usefixtures("user_namespaces")

PORT = 8080
BODY = """
from tests.packets import first_of_ipv6
ns = isolib.new_netns()
network = new_network(None, ipv6="fd77::/64", internet={kind!r})
endpoint = network.attach(ns)
gateway = next(one.mac for one in links(network.ns) if one.name == "br0")
head = bytes.fromhex((gateway + endpoint.mac).replace(":", "")) + b"\\x86\\xdd"
with socket_in(ns, socket.SOCK_RAW, socket.AF_PACKET) as wire:
    wire.bind(("eth0", 0))
    for destination in ("::", "::ffff:127.0.0.1", "::ffff:0.0.0.0", "{HERE6}"):
        for proto in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
            wire.send(head + first_of_ipv6(proto, str(endpoint.ipv6), destination, {PORT}))
tell()
hear()
network.close(), ns.close()
"""


@pytest.mark.parametrize("kind", ["pasta", "slirp4netns"])
def test_loopback_in_disguise(kind: str) -> None:
    """What is put on the wire for "::", or for an address of IPv4 in IPv6, comes to no server of the host's; the rest does."""
    if shutil.which(kind) is None or not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        pytest.skip(f"{kind} is not installed, or this user may not open /dev/net/tun")
    with ExitStack() as stack:
        place = stack.enter_context(world())
        servers = {one: stack.enter_context(listen(place.host, one, PORT)) for one in ("127.0.0.1", "::1", HERE6)}
        boxes = {}
        for one, server in servers.items():
            boxes[one] = stack.enter_context(socket_in(place.host, socket.SOCK_DGRAM, server.family))
            boxes[one].bind((one, PORT))
        process = stack.enter_context(place.program(BODY.format(kind=kind, HERE6=HERE6, PORT=PORT)))
        assert heard(process) == ""
        # They were sent last, so the others have come by now, if they do.
        servers[HERE6].accept()[0].close()
        assert boxes[HERE6].recv(10) == b"hi"
        for one in ("127.0.0.1", "::1"):
            servers[one].settimeout(0)
            boxes[one].settimeout(0)
            with pytest.raises(BlockingIOError):
                servers[one].accept()
            with pytest.raises(BlockingIOError):
                boxes[one].recv(10)
