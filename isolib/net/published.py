"""A port of an endpoint, reachable from outside of its network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isolib._kernel.handle import Handle

if TYPE_CHECKING:
    from collections.abc import Callable

    from isolib.net.endpoint import Endpoint
    from isolib.net.forward import Forwarder, Traffic
    from isolib.net.values import AnyAddress

__all__ = ["Published"]


class Published(Handle, made_by="Network.publish()"):
    """A published port; closing it frees the port outside and resets its connections.

    Attributes
    ----------
    address, port
        Where it is reached.
    endpoint, inner_port
        Where that leads.
    proto
        "tcp" or "udp".
    """

    def __init__(
        self,
        forwarder: Forwarder,
        address: AnyAddress,
        port: int,
        endpoint: Endpoint,
        *,
        inner_port: int,
        proto: str,
        left: Callable[[Published], object],
    ) -> None:
        super().__init__()
        self.address = address
        self.port = port
        self.endpoint = endpoint
        self.inner_port = inner_port
        self.proto = proto
        self._forwarder = forwarder
        self._left = left

    def stats(self) -> Traffic:
        """Return what has gone through it."""
        return self._forwarder.stats()

    def _release(self) -> None:
        try:
            self._forwarder.close()
        finally:
            self._left(self)

    def _describe(self) -> str:
        return f"{self.address}:{self.port}/{self.proto} -> {self.endpoint.address or self.endpoint.ipv6}:{self.inner_port}"
