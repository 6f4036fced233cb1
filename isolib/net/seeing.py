"""From networks as they are now to pictures of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isolib.net.picture import Box, Cable, Picture, Plug

if TYPE_CHECKING:
    from isolib.net.endpoint import Endpoint
    from isolib.net.network import Network
    from isolib.net.published import Published
    from isolib.net.way_out import WayOut

__all__ = ["picture_of_network"]


def picture_of_network(network: Network, published: list[Published]) -> Picture:
    """Return what a network looks like now: its bridge, who is attached, and what leads in and out."""
    ends = network.endpoints()
    up = {link.index for link in network.bridge.ports() if link.up}
    subnets = [str(one) for one in (network.subnet, network.subnet6) if one is not None]
    gateways = [f"gateway {one}" for one in (network.gateway, network.gateway6) if one is not None]
    bridge = Box("bridge", "bridge", notes=(*subnets, *gateways), label=network.bridge.name)
    boxes = [bridge, *(_box(number, endpoint, network, up) for number, endpoint in enumerate(ends))]
    cables = [
        Cable(("bridge", endpoint.port.name), (f"endpoint {number}", endpoint.name)) for number, endpoint in enumerate(ends)
    ]
    if network.internet or published:
        notes = [f"{one.outside} to {_name(one.endpoint)}:{one.inner_port}" for one in published]
        ways = () if network.way_out is None else (_way(network.way_out),)
        boxes.insert(0, Box("host", "host", plugs=(Plug("uplink"),) if network.internet else (), notes=(*ways, *notes)))
        if network.internet:
            cables.insert(0, Cable(("host", "uplink"), ("bridge", "uplink")))
    return Picture(tuple(boxes), tuple(cables), network.name)


def _way(way_out: WayOut) -> str:
    return f"way out{'' if way_out.pid is None else f' by {way_out.kind}'}{': lost' if way_out.lost else ''}"


def _name(endpoint: Endpoint) -> str:
    return endpoint.hostname or str(endpoint.address or endpoint.ipv6)


def _box(number: int, endpoint: Endpoint, network: Network, up: set[int]) -> Box:
    lengths = {4: network.subnet, 6: network.subnet6}
    addresses = []
    for address in endpoint.addresses:
        subnet = lengths[address.version]
        addresses.append(f"{address}/{subnet.prefixlen}" if subnet is not None else str(address))
    notes = [f"{direction}: {one.name} {one.value:g}" for direction, found in endpoint.weather().items() for one in found]
    plug = Plug(endpoint.name, tuple(addresses), notes=tuple(notes), up=endpoint.port.index in up)
    return Box(f"endpoint {number}", "namespace", plugs=(plug,), label=_name(endpoint))
