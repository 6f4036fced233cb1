"""Network virtualisation: links, bridges, addresses, routes, and networks made of them.

What is made belongs to a network namespace and dies with it; what has to lie in a namespace that does not die with its handle
is entrusted to the reaper.  No tool is run: the kernel is spoken to by netlink, through sockets that belong to the namespaces.
"""

from __future__ import annotations

from isolib.net.bridge import Bridge, new_bridge
from isolib.net.capture import Capture, capture
from isolib.net.ending import Ending, ending
from isolib.net.endpoint import Endpoint
from isolib.net.events import Change, Changes, changes
from isolib.net.forward import Traffic
from isolib.net.interface import Interface
from isolib.net.kinds import (
    Dummy,
    Ipvlan,
    Macvlan,
    Vlan,
    Vxlan,
    new_dummy,
    new_ipvlan,
    new_macvlan,
    new_vlan,
    new_vxlan,
)
from isolib.net.lab import Topology, topology
from isolib.net.make import new_network
from isolib.net.network import Network
from isolib.net.picture import Box, Cable, Picture, Plug
from isolib.net.publish import Publish
from isolib.net.published import Offered, Published
from isolib.net.queries import addresses, links, neighbours, routes, rules
from isolib.net.routing import add_barrier, add_route, add_rule, new_rule, remove_barrier, remove_route, remove_rule
from isolib.net.sysctl import HeldSetting, Sysctls, hold
from isolib.net.tap import Tap, Tun, new_tap, new_tun
from isolib.net.values import (
    Address,
    BridgeOptions,
    FdbEntry,
    Feature,
    Link,
    LinkStats,
    Neighbour,
    PortOptions,
    PortVlan,
    Route,
    Rule,
)
from isolib.net.veth import Veth, new_veth
from isolib.net.way_out import WayOut
from isolib.net.weather import Effect, Impairment, InForce
from isolib.net.wiring import CableEnd, Segment, WiredCable, WiredNode, WiredPort, WiredRoute, Wiring, wire

__all__ = [
    "Address",
    "Box",
    "Bridge",
    "BridgeOptions",
    "Cable",
    "CableEnd",
    "Capture",
    "Change",
    "Changes",
    "Dummy",
    "Effect",
    "Ending",
    "Endpoint",
    "FdbEntry",
    "Feature",
    "HeldSetting",
    "Impairment",
    "InForce",
    "Interface",
    "Ipvlan",
    "Link",
    "LinkStats",
    "Macvlan",
    "Neighbour",
    "Network",
    "Offered",
    "Picture",
    "Plug",
    "PortOptions",
    "PortVlan",
    "Publish",
    "Published",
    "Route",
    "Rule",
    "Segment",
    "Sysctls",
    "Tap",
    "Topology",
    "Traffic",
    "Tun",
    "Veth",
    "Vlan",
    "Vxlan",
    "WayOut",
    "WiredCable",
    "WiredNode",
    "WiredPort",
    "WiredRoute",
    "Wiring",
    "add_barrier",
    "add_route",
    "add_rule",
    "addresses",
    "capture",
    "changes",
    "ending",
    "hold",
    "links",
    "neighbours",
    "new_bridge",
    "new_dummy",
    "new_ipvlan",
    "new_macvlan",
    "new_network",
    "new_rule",
    "new_tap",
    "new_tun",
    "new_veth",
    "new_vlan",
    "new_vxlan",
    "remove_barrier",
    "remove_route",
    "remove_rule",
    "routes",
    "rules",
    "topology",
    "wire",
]

for _name in __all__:
    if isinstance(globals()[_name], type):
        # Tracebacks and reprs name the place that users import from.
        globals()[_name].__module__ = "isolib.net"
