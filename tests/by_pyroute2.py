"""What pyroute2 says of a network namespace, in isolib's own values.

It runs inside the namespace, as a program of its own, and reads what the kernel tells it by code and names of its own.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface, ip_network
from typing import TYPE_CHECKING, Any

import pytest

from isolib.net.values import Address, BridgeOptions, Link, LinkStats, Neighbour, PortOptions, Route, Rule
from tests.oracles import FOREVER, run_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from isolib.namespaces import NetNS

    Object = dict[str, Any]

PROGRAM = """
import json, sys
from pyroute2 import IPRoute
from pyroute2.netlink import rtnl
from pyroute2.netlink.rtnl import fibmsg, ifaddrmsg, ifinfmsg, ndmsg

def plain(value):
    if isinstance(value, dict):
        found = {key: plain(one) for key, one in value.items() if key not in {"attrs", "header", "__align"}}
        return found | {one[0]: plain(one[1]) for one in value.get("attrs", ())}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return value.hex() if isinstance(value, (bytes, bytearray)) else value

families = 2, 10
with IPRoute() as route:
    found = {
        "links": route.get_links(),
        "addresses": route.get_addr(),
        "routes": [one for family in families for one in route.get_routes(family=family)],
        "neighbours": [one for family in families for one in route.get_neighbours(family=family)],
        "rules": [one for family in families for one in route.get_rules(family=family)],
        "qdiscs": route.get_qdiscs(),
    }
    found = {key: [plain(one) for one in list(messages)] for key, messages in found.items()}
names = {
    "IFF": ifinfmsg.IFF_NAMES,
    "IFA": ifaddrmsg.IFA_F_NAMES,
    "NUD": ndmsg.NUD_NAMES,
    "FR_ACT": fibmsg.FR_ACT_NAMES,
    "scope": rtnl.rt_scope,
    "type": rtnl.rt_type,
    "proto": rtnl.rt_proto,
}
found["names"] = {
    key: {number: name for name, number in table.items() if isinstance(name, str)} for key, table in names.items()
}
json.dump(found, sys.stdout)
"""

PORT_STATES = ("disabled", "listening", "learning", "forwarding", "blocking")
"""Of linux/if_bridge.h: it has no names for them, nor for these:"""
TABLES = {0: "unspec", 253: "default", 254: "main", 255: "local"}
IPVLAN_MODES = ("l2", "l3", "l3s")


@dataclass(frozen=True)
class Seen:
    """All that there is in a namespace."""

    links: list[Link]
    addresses: set[Address]
    routes: set[Route]
    neighbours: set[Neighbour]
    rules: list[Rule]
    qdiscs: list[Object]
    """As `tests.oracles.flat` has them."""


def look(ns: NetNS | None) -> Seen:
    """Return what pyroute2 sees in a namespace; without it, skip the test."""
    pytest.importorskip("pyroute2")
    found = json.loads(run_in(ns, sys.executable, "-c", PROGRAM))
    names = {key: {int(number): name for number, name in table.items()} for key, table in found["names"].items()}
    return Seen(
        links=[_link(one, names["IFF"]) for one in found["links"]],
        addresses={_address(one, names) for one in found["addresses"]},
        routes={_route(one, names) for one in found["routes"]},
        neighbours={_neighbour(one, names["NUD"]) for one in found["neighbours"]},
        rules=[_rule(one, names["FR_ACT"]) for one in found["rules"]],
        qdiscs=[_qdisc(one) for one in found["qdiscs"]],
    )


def _words(value: int, names: dict[int, str], prefix: str) -> frozenset[str]:
    return frozenset(name.removeprefix(prefix).lower() for bit, name in names.items() if value & bit)


def _link(one: Object, names: dict[int, str]) -> Link:
    info = one.get("IFLA_LINKINFO", {})
    kind = info.get("IFLA_INFO_KIND", "loopback" if one["flags"] & 8 else "")
    data = info.get("IFLA_INFO_DATA", {})
    port = info.get("IFLA_INFO_SLAVE_DATA")
    lower = data.get("IFLA_VXLAN_LINK") if kind == "vxlan" else one.get("IFLA_LINK")
    return Link(
        index=one["index"],
        name=one["IFLA_IFNAME"],
        kind=kind,
        mac=one.get("IFLA_ADDRESS", ""),
        mtu=one["IFLA_MTU"],
        flags=_words(one["flags"], names, "IFF_"),
        state=one["IFLA_OPERSTATE"].lower(),
        master=one.get("IFLA_MASTER"),
        lower=lower or None,
        lower_nsid=one.get("IFLA_LINK_NETNSID"),
        alias=one.get("IFLA_IFALIAS", ""),
        stats=LinkStats(**{name: one["IFLA_STATS64"][name] for name in LinkStats.__slots__}),
        bridge=_bridge(data) if kind == "bridge" else None,
        port=_port(port) if info.get("IFLA_INFO_SLAVE_KIND") == "bridge" and port is not None else None,
        vlan=data["IFLA_VLAN_ID"] if kind == "vlan" else None,
        vni=data["IFLA_VXLAN_ID"] if kind == "vxlan" else None,
        mode=_mode(kind, data),
    )


def _mode(kind: str, data: Object) -> str | None:
    if kind == "ipvlan":
        return IPVLAN_MODES[data["IFLA_IPVLAN_MODE"]]
    return str(data["IFLA_MACVLAN_MODE"]) if kind == "macvlan" else None


def _bridge(data: Object) -> BridgeOptions:
    return BridgeOptions(
        stp=bool(data["IFLA_BR_STP_STATE"]),
        forward_delay=data["IFLA_BR_FORWARD_DELAY"] / 100,
        hello_time=data["IFLA_BR_HELLO_TIME"] / 100,
        max_age=data["IFLA_BR_MAX_AGE"] / 100,
        ageing_time=data["IFLA_BR_AGEING_TIME"] / 100,
        priority=data["IFLA_BR_PRIORITY"],
        vlan_filtering=bool(data["IFLA_BR_VLAN_FILTERING"]),
        default_pvid=data.get("IFLA_BR_VLAN_DEFAULT_PVID", 0),
        multicast_snooping=bool(data.get("IFLA_BR_MCAST_SNOOPING", 0)),
    )


def _port(data: Object) -> PortOptions:
    return PortOptions(
        state=PORT_STATES[data["IFLA_BRPORT_STATE"]],
        priority=data["IFLA_BRPORT_PRIORITY"],
        cost=data["IFLA_BRPORT_COST"],
        hairpin=bool(data["IFLA_BRPORT_MODE"]),
        guard=bool(data["IFLA_BRPORT_GUARD"]),
        fast_leave=bool(data.get("IFLA_BRPORT_FAST_LEAVE", 0)),
        learning=bool(data["IFLA_BRPORT_LEARNING"]),
        flood=bool(data["IFLA_BRPORT_UNICAST_FLOOD"]),
        isolated=bool(data["IFLA_BRPORT_ISOLATED"]),
    )


def _address(one: Object, names: dict[str, dict[int, str]]) -> Address:
    local, address, times = one.get("IFA_LOCAL"), one["IFA_ADDRESS"], one["IFA_CACHEINFO"]
    # Its name for 1 is that of IPv6, and its others differ by an underscore.
    other = {
        "temporary": "secondary",
        "homeaddress": "home",
        "managetempaddr": "mngtmpaddr",
        "stable_privacy": "stable-privacy",
    }
    flags = _words(one["IFA_FLAGS"], names["IFA"], "IFA_F_")
    return Address(
        interface=ip_interface(f"{local or address}/{one['prefixlen']}"),
        index=one["index"],
        scope=_scope(one["scope"], names),
        flags=frozenset(other.get(flag, flag) for flag in flags),
        peer=ip_address(address) if local not in {None, address} else None,
        broadcast=ip_address(one["IFA_BROADCAST"]) if "IFA_BROADCAST" in one else None,
        valid=None if times["ifa_valid"] == FOREVER else times["ifa_valid"],
        preferred=None if times["ifa_preferred"] == FOREVER else times["ifa_preferred"],
    )


def _named(number: int, names: dict[int, str]) -> str | int:
    return names.get(number, number)


def _scope(number: int, names: dict[str, dict[int, str]]) -> str:
    name = names["scope"][number]
    return "global" if name == "universe" else name


def _route(one: Object, names: dict[str, dict[int, str]]) -> Route:
    return Route(
        destination=_network(one.get("RTA_DST"), one["dst_len"], one["family"]),
        gateway=_gateway(one),
        index=one.get("RTA_OIF"),
        source=ip_address(one["RTA_PREFSRC"]) if "RTA_PREFSRC" in one else None,
        metric=one.get("RTA_PRIORITY", 0),
        table=_named(one["RTA_TABLE"], TABLES),
        protocol=_named(one["proto"], names["proto"]),
        scope=_scope(one["scope"], names),
        type=names["type"][one["type"]],
        hops=tuple((_gateway(hop), hop["oif"], hop["hops"] + 1) for hop in one.get("RTA_MULTIPATH", ())),
    )


def _gateway(one: Object) -> Any:  # noqa: ANN401 - an address, or none
    text = one.get("RTA_GATEWAY") or one.get("RTA_VIA", {}).get("addr")
    return None if text is None else ip_address(text)


def _network(text: str | None, length: int, family: int) -> Any:  # noqa: ANN401 - of either family
    return ip_network(f"{text or ('0.0.0.0' if family == 2 else '::')}/{length}")


def _neighbour(one: Object, names: dict[int, str]) -> Neighbour:
    return Neighbour(
        address=ip_address(one["NDA_DST"]),
        index=one["ifindex"],
        mac=one.get("NDA_LLADDR", ""),
        state=names[one["state"]].removeprefix("NUD_").lower(),
        router=bool(one["flags"] & 0x80),
    )


def _rule(one: Object, names: dict[int, str]) -> Rule:
    action = names[one["action"]].removeprefix("FR_ACT_").lower()
    return Rule(
        priority=one.get("FRA_PRIORITY", 0),
        action="lookup" if action == "to_tbl" else action,
        table=_named(one.get("FRA_TABLE", 0), TABLES),
        family=one["family"],
        source=_network(one["FRA_SRC"], one["src_len"], one["family"]) if "FRA_SRC" in one else None,
        destination=_network(one["FRA_DST"], one["dst_len"], one["family"]) if "FRA_DST" in one else None,
        incoming=one.get("FRA_IIFNAME", ""),
        outgoing=one.get("FRA_OIFNAME", ""),
        mark=one.get("FRA_FWMARK", 0),
        mask=one.get("FRA_FWMASK", 0),
    )


def _qdisc(one: Object) -> Object:
    kind, given, stats = one["TCA_KIND"], one.get("TCA_OPTIONS") or {}, one["TCA_STATS2"]
    counts, queue = stats["TCA_STATS_BASIC"], stats["TCA_STATS_QUEUE"]
    return {
        "index": one["index"],
        "kind": kind,
        "number": one["handle"],
        "parent": one["parent"],
        "sent": counts["packets"],
        "sent_bytes": counts["bytes"],
        "dropped": queue["drops"],
        "waiting": queue["qlen"],
        "waiting_bytes": queue["backlog"],
        "overlimits": queue["overlimits"],
        **(OPTIONS[kind](given) if kind in OPTIONS else {}),
    }


def _tbf(given: Object) -> Object:
    told = given["TCA_TBF_PARMS"]
    # Of times it has the kernel's own units, 64 ns.
    return {"rate": told["rate"], "limit_bytes": told["limit"], "burst_bytes": told["buffer"] * 64 * told["rate"] / 1e9}


def _netem(given: Object) -> Object:
    correlations, reorder, corrupt = (given[f"TCA_NETEM_{name}"] for name in ("CORR", "REORDER", "CORRUPT"))
    chances = {
        "loss": given["loss"],
        "duplicate": given["duplicate"],
        "corrupt": corrupt["prob_corrupt"],
        "reorder": reorder["prob_reorder"],
        "delay_correlation": correlations["delay_corr"],
        "loss_correlation": correlations["loss_corr"],
        "duplicate_correlation": correlations["dup_corr"],
        "corrupt_correlation": corrupt["corr_corrupt"],
        "reorder_correlation": reorder["corr_reorder"],
    }
    found = {name: float(chance) for name, chance in chances.items()}
    found |= {name: given[name] * 64.0 for name in ("delay", "jitter")}
    return found | {"gap": given["gap"], "limit": given["limit"], "rate": given["TCA_NETEM_RATE"]["rate"]}


OPTIONS: dict[str, Callable[[Object], Object]] = {
    "tbf": _tbf,
    "netem": _netem,
    "pfifo": lambda given: {"limit": given["limit"]},
}
"""What the options of a kind are, as `tests.oracles.flat` has them."""
