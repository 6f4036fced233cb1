"""Network virtualisation: links, bridges, addresses, routes, and networks made of them.

What is made belongs to a network namespace and dies with it; what has to lie in a namespace that does not die with its handle
is entrusted to the reaper.  No tool is run: the kernel is spoken to by netlink, through sockets that belong to the namespaces.
"""

from __future__ import annotations

from isolib.net.bridge import Bridge, new_bridge
from isolib.net.capture import Capture, capture
from isolib.net.endpoint import Endpoint
from isolib.net.events import Change, Changes, changes
from isolib.net.forward import Traffic
from isolib.net.interface import Interface
from isolib.net.lab import Topology, topology
from isolib.net.make import new_network
from isolib.net.network import Network
from isolib.net.picture import Picture
from isolib.net.published import Published
from isolib.net.queries import addresses, links, neighbours, routes, rules
from isolib.net.values import Address, BridgeOptions, Link, LinkStats, Neighbour, PortOptions, Route, Rule
from isolib.net.veth import Veth, new_veth
from isolib.net.wiring import CableEnd, Segment, WiredCable, WiredNode, WiredPort, WiredRoute, Wiring, wire

__all__ = [
    "Address",
    "Bridge",
    "BridgeOptions",
    "CableEnd",
    "Capture",
    "Change",
    "Changes",
    "Endpoint",
    "Interface",
    "Link",
    "LinkStats",
    "Neighbour",
    "Network",
    "Picture",
    "PortOptions",
    "Published",
    "Route",
    "Rule",
    "Segment",
    "Topology",
    "Traffic",
    "Veth",
    "WiredCable",
    "WiredNode",
    "WiredPort",
    "WiredRoute",
    "Wiring",
    "addresses",
    "capture",
    "changes",
    "links",
    "neighbours",
    "new_bridge",
    "new_network",
    "new_veth",
    "routes",
    "rules",
    "topology",
    "wire",
]

for _name in __all__:
    if isinstance(globals()[_name], type):
        # Tracebacks and reprs name the place that users import from.
        globals()[_name].__module__ = "isolib.net"
