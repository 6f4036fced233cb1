"""Small networks for tests: namespaces, devices between them, addresses, routes, and sockets that are inside.

As root each namespace is one of the host's; an ordinary user's are all owned by one user namespace of his.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from ipaddress import ip_interface
from typing import TYPE_CHECKING

import isolib
from isolib._kernel.netlink import codec
from isolib._kernel.netlink.socket import Request, open_netlink
from isolib._kernel.sockets import open_file_in, open_socket

if TYPE_CHECKING:
    from isolib.namespaces import NetNS

UP = 1
_IFINFO = struct.Struct("=BxHiII")
_NEW_LINK, _GET_LINK, _NEW_ADDRESS, _NEW_ROUTE = 16, 18, 20, 24
_NAME, _MASTER, _LINKINFO, _NS_FD, _MAC = 3, 10, 18, 28, 1
_NO_DAD = 2
PATIENCE = 20


class Lab(contextlib.ExitStack):
    """Namespaces and what connects them, gone at the end of the block."""

    def __init__(self) -> None:
        super().__init__()
        self._user = None if os.geteuid() == 0 else self.enter_context(contextlib.closing(isolib.new_userns()))

    def namespace(self) -> NetNS:
        """Return a new network namespace whose loopback is up."""
        if self._user is None:
            made = isolib.new_netns()
        else:
            with self._user.spawn(["cat"], new={"net"}, stdin=isolib.PIPE) as holder:
                made = isolib.open_netns(pid=holder.pid)
        self.callback(made.close)
        change(made, "lo", up=True)
        return made


def ask(net: NetNS, kind: int, body: bytes, flags: int, target: str) -> list[codec.Message]:
    """Have one request of rtnetlink carried out."""
    with open_netlink(net) as route:
        return route.ask(Request(kind, body, flags, "rtnetlink", target))


def _link(name: str, *, up: bool = False) -> bytes:
    return _IFINFO.pack(0, 0, 0, UP if up else 0, UP if up else 0) + codec.text(_NAME, name)


def add(net: NetNS, name: str, kind: str, *data: bytes) -> None:
    """Make a device."""
    info = codec.nested(_LINKINFO, codec.text(1, kind), *([codec.nested(2, *data)] if data else []))
    ask(net, _NEW_LINK, _link(name) + info, codec.CREATE | codec.EXCL, name)


def connect(net: NetNS, name: str, other: NetNS, peer: str) -> None:
    """Make a cable from one namespace to another; both ends are up."""
    add(net, name, "veth", codec.attribute(1, _link(peer) + codec.u32(_NS_FD, other.fileno())))
    change(net, name, up=True)
    change(other, peer, up=True)


def look(net: NetNS, name: str) -> tuple[int, bytes]:
    """Return the number and the hardware address of a device."""
    body = ask(net, _GET_LINK, _link(name), 0, name)[0].body
    return _IFINFO.unpack_from(body)[2], codec.table(body, _IFINFO.size).get(_MAC, b"")


def change(net: NetNS, name: str, *, up: bool = False, master: str | None = None) -> None:
    """Bring a device up, or make it a port."""
    more = b"" if master is None else codec.u32(_MASTER, look(net, master)[0])
    ask(net, _NEW_LINK, _link(name, up=up) + more, 0, name)


def address(net: NetNS, name: str, *values: str) -> None:
    """Give a device addresses, with the lengths of their networks."""
    index = look(net, name)[0]
    for value in values:
        one = ip_interface(value)
        family = socket.AF_INET if one.version == 4 else socket.AF_INET6
        body = struct.pack("=BBBBI", family, one.network.prefixlen, _NO_DAD, 0, index)
        ask(net, _NEW_ADDRESS, body + b"".join(codec.attribute(kind, one.packed) for kind in (1, 2)), codec.CREATE, value)


def route(net: NetNS, destination: str, gateway: str) -> None:
    """Send what is for a network by a gateway."""
    to, by = ip_interface(destination), ip_interface(gateway)
    family = socket.AF_INET if to.version == 4 else socket.AF_INET6
    head = struct.pack("=BBBBBBBBI", family, to.network.prefixlen, 0, 0, 254, 4, 0, 1, 0)
    ask(net, _NEW_ROUTE, head + codec.attribute(1, to.packed) + codec.attribute(5, by.packed), codec.CREATE, destination)


def sysctl(net: NetNS, name: str, value: str) -> None:
    """Set one of the settings of a network namespace."""
    with open_file_in(net, f"/proc/sys/{name.replace('.', '/')}", os.O_WRONLY) as file:
        os.write(file.fileno(), value.encode())


def inside(net: NetNS, kind: int = socket.SOCK_STREAM, family: int = socket.AF_INET, protocol: int = 0) -> socket.socket:
    """Return a socket of a namespace; it gives up after a while."""
    with open_socket(net, family, kind, protocol) as fd:
        made = socket.socket(fileno=os.dup(fd.fileno()))
    made.settimeout(PATIENCE)
    return made


def family_of(host: str) -> int:
    """Return the family of an address."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def listen(net: NetNS, host: str, port: int) -> socket.socket:
    """Return a socket that waits for connections of TCP."""
    made = inside(net, family=family_of(host))
    made.bind((host, port))
    made.listen()
    return made


def dial(net: NetNS, host: str, port: int) -> socket.socket:
    """Return a connection of TCP, or raise."""
    made = inside(net, family=family_of(host))
    try:
        made.connect((host, port))
    except OSError:
        made.close()
        raise
    return made
