"""Small networks for tests: namespaces, and links, addresses and routes that one request makes and nothing undoes."""

from __future__ import annotations

import contextlib
import os
from ipaddress import ip_address, ip_interface, ip_network
from typing import TYPE_CHECKING

import isolib
from isolib._kernel.netlink.socket import open_netlink
from isolib._kernel.sockets import open_file_in
from isolib.net import parsing, requests

if TYPE_CHECKING:
    from isolib._kernel.netlink.socket import Request
    from isolib.namespaces import NetNS


class Lab(contextlib.ExitStack):
    """Namespaces and what connects them, gone at the end of the block."""

    def namespace(self) -> NetNS:
        """Return a new network namespace whose loopback is up."""
        return self.enter_context(contextlib.closing(isolib.new_netns()))


def say(net: NetNS, *wanted: Request) -> None:
    """Have requests of rtnetlink carried out."""
    with open_netlink(net) as route:
        route.send(*wanted)


def add(net: NetNS, name: str, kind: str) -> None:
    """Make a device."""
    say(net, requests.new_link(kind, requests.link_attributes(name=name), name=name))


def connect(net: NetNS, name: str, other: NetNS, peer: str) -> None:
    """Make a cable from one namespace to another; both ends are up."""
    end = requests.veth_peer(requests.link_attributes(name=peer, net=other.fileno()), 0)
    say(net, requests.new_link("veth", requests.link_attributes(name=name), name=name, data=end), requests.bring_up(name))
    say(other, requests.bring_up(peer))


def look(net: NetNS, name: str) -> tuple[int, bytes]:
    """Return the number and the hardware address of a device."""
    with open_netlink(net) as route:
        link = parsing.parse_link(route.ask(requests.get_link(name))[0])
    return link.index, bytes.fromhex(link.mac.replace(":", ""))


def up(net: NetNS, name: str) -> None:
    """Bring a device up."""
    say(net, requests.bring_up(name))


def plug(net: NetNS, name: str, bridge: str) -> None:
    """Make a device a port of a bridge."""
    say(net, requests.set_link(look(net, name)[0], name, requests.link_attributes(master=look(net, bridge)[0])))


def address(net: NetNS, name: str, *values: str) -> None:
    """Give a device addresses, with the lengths of their networks."""
    index = look(net, name)[0]
    say(net, *(requests.add_address(ip_interface(value), index, name) for value in values))


def route(net: NetNS, destination: str, gateway: str) -> None:
    """Send what is for a network by a gateway."""
    say(net, requests.add_route(ip_network(destination), gateway=ip_address(gateway)))


def sysctl(net: NetNS, name: str, value: str) -> None:
    """Set one of the settings of a network namespace."""
    with open_file_in(net, f"/proc/sys/{name.replace('.', '/')}", os.O_WRONLY) as file:
        os.write(file.fileno(), value.encode())
