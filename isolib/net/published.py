"""What leads into a network from outside of it, and out of it: ports of endpoints, and services of the host."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, TypeAlias

from isolib._kernel.handle import Fd, Handle, Rollback
from isolib._kernel.sockets import open_socket
from isolib.errors import PlanError, Unsupported
from isolib.net.checks import HIGHEST_PORT, check_address, check_number
from isolib.net.forward import Traffic, new_forwarder
from isolib.net.plugs import KINDS, SocketFile, bound_socket, check_path, new_socket
from isolib.net.publish import check_proto

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from isolib.net.endpoint import Endpoint
    from isolib.net.forward import Forwarder
    from isolib.net.plugs import Stock
    from isolib.net.portmap import PortMaps
    from isolib.net.publish import Path, Publish
    from isolib.net.serving import Socket
    from isolib.net.streams import Open, Target
    from isolib.net.values import AnyAddress
    from isolib.types import HasFileno

__all__ = ["Offered", "Published", "Service", "new_offered", "new_published"]

Service: TypeAlias = "tuple[str | AnyAddress, int] | Path"


class Published(Handle, made_by="Network.publish()"):
    """A published port; closing it frees the port outside, or removes the socket's file, and resets its connections.

    Attributes
    ----------
    address, port
        Where it is reached; None and 0 where that is a unix socket.
    path
        The unix socket by which it is reached, or None.
    endpoint, inner_port
        Where that leads.
    proto
        "tcp" or "udp".
    via
        "kernel": it translates, and the server sees the client's address; only what it cannot translate, as what is sent to
        127.0.0.1, a thread of this program forwards.  "forwarder": that thread forwards all.
    """

    def __init__(
        self,
        forwarder: Forwarder,
        address: AnyAddress | None,
        port: int,
        endpoint: Endpoint,
        *,
        inner_port: int,
        proto: str,
        file: SocketFile | None,
        translation: Rollback | None,
        left: Callable[[Published], object],
    ) -> None:
        super().__init__()
        self.address = address
        self.port = port
        self.path = None if file is None else file.path
        self.endpoint = endpoint
        self.inner_port = inner_port
        self.proto = proto
        self._forwarder = forwarder
        self.via = "forwarder" if translation is None else "kernel"
        self._file = file
        self._translation = translation
        self._left = left

    @property
    def outside(self) -> str:
        """Where it is reached, as text."""
        return self.path or f"{self.address}:{self.port}/{self.proto}"

    def stats(self) -> Traffic:
        """Return what this program has forwarded; what the kernel translates is not counted."""
        return self._forwarder.stats()

    def _release(self) -> None:
        with Rollback() as undo:
            undo.push(self._left, self)
            undo.adopt(self._forwarder)
            if self._file is not None:
                undo.push(self._file.remove)
            if self._translation is not None:
                undo.push(self._translation.unwind)

    def _describe(self) -> str:
        return f"{self.outside} -> {self.endpoint.address or self.endpoint.ipv6}:{self.inner_port}"


def new_published(
    stock: Stock,
    maps: PortMaps | None,
    endpoint: Endpoint,
    wanted: Publish,
    *,
    left: Callable[[Published], object],
) -> Published:
    """Let a port of the calling thread's namespace, or a unix socket, lead to an endpoint; as `Network.publish`.

    ``stock`` is of the namespace from which the endpoint is reached, ``maps`` what the kernel can translate; ``left`` is called
    with what is returned, at its end.
    """
    proto, port, via = wanted.proto, wanted.port, wanted.via
    inside = endpoint.address or endpoint.ipv6
    assert inside is not None  # noqa: S101 - a network has addresses of one kind at least
    connect = partial(stock.take, inside, KINDS[proto])
    with Rollback() as undo:
        file, address = None, None
        if isinstance(wanted.host_port, int):
            address = ip_address(str(wanted.host))
            is_translated = _can_translate(maps, address, inside, via)
            front = bound_socket(None, address, wanted.host_port, proto)
        else:
            is_translated = _can_translate(maps, None, inside, via)
            file = SocketFile(os.fspath(wanted.host_port))
            undo.push(file.remove)
            front = file.listen(wanted.mode)
        own_port = 0 if file is not None else front.getsockname()[1]
        forwarder = undo.adopt(_forward(front, connect, (str(inside), port)))
        translation = None
        if maps is not None and address is not None and is_translated:
            with suppress(*(() if via == "kernel" else (Unsupported,))):
                translation = maps.lead(proto, address, own_port, inside, port)
                undo.push(translation.unwind)
        published = Published._make(
            *(forwarder, address, own_port, endpoint),
            inner_port=port,
            proto=proto,
            file=file,
            translation=translation,
            left=left,
        )
        undo.dismiss()
    return published


def _can_translate(maps: PortMaps | None, outside: AnyAddress | None, target: AnyAddress, via: str | None) -> bool:
    can = maps is not None and outside is not None and maps.can_lead(outside, target)
    if via == "kernel" and not can:
        raise PlanError(
            "via='kernel': it takes a network with a way out (internet=True) through the calling thread's namespace, and an "
            f"address of the endpoint's protocol that is none of loopback's, not {outside or 'a unix socket'}"
        )
    return can and via != "forwarder"


class Offered(Handle, made_by="Network.offer()"):
    """A service of the host in a network; closing it frees the port there and resets its connections.

    Attributes
    ----------
    addresses
        Where it is reached: the gateway's.
    port
        The port at each of them.
    to
        Where that leads: an address and a port, or the path of a unix socket.
    proto
        "tcp" or "udp".
    """

    def __init__(
        self,
        forwarders: Sequence[Forwarder],
        addresses: tuple[AnyAddress, ...],
        port: int,
        to: Target,
        *,
        proto: str,
        undo: Rollback,
        left: Callable[[Offered], object],
    ) -> None:
        super().__init__()
        self.addresses = addresses
        self.port = port
        self.to = to
        self.proto = proto
        self._forwarders = tuple(forwarders)
        self._undo = undo
        self._left = left

    def stats(self) -> Traffic:
        """Return what has gone through it."""
        each = [one.stats() for one in self._forwarders]
        names = ("connections", "active", "failed", "sent", "received")
        return Traffic(*(sum(getattr(one, name) for one in each) for name in names))

    def _release(self) -> None:
        with Rollback() as undo:
            undo.push(self._left, self)
            undo.push(self._undo.unwind)

    def _describe(self) -> str:
        return f"{self.addresses[0]}:{self.port}/{self.proto} -> {self.to!r}"


def new_offered(
    ns: HasFileno,
    gateways: Sequence[AnyAddress],
    port: int,
    to: Service,
    *,
    proto: str,
    left: Callable[[Offered], object],
) -> Offered:
    """Let a port of a network's gateway lead to a service of the calling thread's namespace; as `Network.offer`."""
    check_proto(proto)
    check_number(port, "port", 0, HIGHEST_PORT)
    with Rollback() as undo:
        connect, target = _service(undo, to, proto)
        forwarders = []
        for gateway in gateways:
            front = bound_socket(ns, gateway, port, proto)
            port = front.getsockname()[1]
            forwarders.append(undo.adopt(_forward(front, connect, target)))
        offered = Offered._make(forwarders, tuple(gateways), port, target, proto=proto, undo=undo, left=left)
        undo.keep()
    return offered


def _service(undo: Rollback, to: Service, proto: str) -> tuple[Open, Target]:
    """Return what opens a socket for a service, wherever the thread is that does so, and its address."""
    if not isinstance(to, tuple):
        path = check_path(to, "to")
        if proto != "tcp":
            raise PlanError(f"to: a unix socket is one for streams (proto='tcp'): {path!r}")
        return partial(open_socket, None, socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK), path
    if len(to) != 2:  # noqa: PLR2004
        raise PlanError(f"to: an address and a port, or a path is wanted, not {to!r}")
    address = check_address(to[0], "to")
    check_number(to[1], "to", 1, HIGHEST_PORT)
    here = Fd.take(os.open, "/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    assert here is not None  # noqa: S101 - os.open raises
    return partial(new_socket, undo.adopt(here), address, KINDS[proto]), (str(address), to[1])


def _forward(front: Socket, connect: Open, target: Target) -> Forwarder:
    try:
        return new_forwarder(front, connect, target)
    except BaseException:
        front.close()
        raise
