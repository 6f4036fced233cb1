"""What the programs of iproute2 say of a network namespace, in isolib's own values.

They run inside the namespace and read what the kernel tells them by code of their own.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import asdict
from ipaddress import ip_address, ip_interface, ip_network
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from isolib import PIPE
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

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from isolib._kernel.netlink.tc import QdiscState
    from isolib.namespaces import NetNS
    from isolib.net.values import AnyNetwork

    Object = dict[str, Any]

T = TypeVar("T")

TRIES = 30
"""How often a namespace is looked at until it stands still."""

PATIENCE = 60
"""Seconds after which a program has failed."""

FOREVER = 0xFFFFFFFF


def run_in(ns: NetNS | None, *argv: str) -> str:
    """Run a program in a namespace, or where this one is, and return what it writes; without it, skip the test."""
    if shutil.which(argv[0]) is None:
        pytest.skip(f"{argv[0]} is not installed")
    if ns is None:
        return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout
    with ns.spawn(argv, stdout=PIPE, stderr=PIPE) as process:
        out, errors = process.communicate(timeout=PATIENCE)
        assert process.wait(PATIENCE).code == 0, (argv, errors)
    return (out or b"").decode()


def ip(ns: NetNS | None, *arguments: str) -> list[Object]:
    """Return what `ip` says in JSON."""
    found: list[Object] = json.loads(run_in(ns, "ip", "-j", "-d", *arguments) or "[]")
    return [one for one in found if one]


def bridge(ns: NetNS | None, *arguments: str) -> list[Object]:
    """Return what `bridge` says in JSON."""
    found: list[Object] = json.loads(run_in(ns, "bridge", "-j", "-d", *arguments) or "[]")
    return found


# ---- links ----


def links(ns: NetNS) -> list[Link]:
    """Return the links as `ip` tells them."""
    found = ip(ns, "-s", "link")
    numbers = {one["ifname"]: int(one["ifindex"]) for one in found}
    return [_link(one, numbers) for one in found]


def numbers(ns: NetNS | None) -> list[tuple[int, str, int]]:
    """Return number, name and MTU of the links as `ip` tells them."""
    return [(one["ifindex"], one["ifname"], one["mtu"]) for one in ip(ns, "link")]


def _link(one: Object, numbers: dict[str, int]) -> Link:
    info = one.get("linkinfo", {})
    kind = info.get("info_kind", "loopback" if "LOOPBACK" in one["flags"] else "")
    data = info.get("info_data", {})
    # It leaves IFF_RUNNING out, and says NO-CARRIER where it is missing.
    flags = {flag.lower() for flag in one["flags"] if flag not in {"NO-CARRIER", "M-DOWN"}}
    if "up" in flags and "NO-CARRIER" not in one["flags"]:
        flags.add("running")
    return Link(
        index=one["ifindex"],
        name=one["ifname"],
        kind=kind,
        mac=one.get("address", ""),
        mtu=one["mtu"],
        flags=frozenset(flags),
        state=one["operstate"].lower(),
        master=numbers[one["master"]] if "master" in one else None,
        lower=_lower(one, data, kind, numbers),
        lower_nsid=one.get("link_netnsid"),
        alias=one.get("ifalias", ""),
        stats=_stats(one["stats64"]),
        bridge=_bridge(data) if kind == "bridge" else None,
        port=_port(info["info_slave_data"]) if info.get("info_slave_kind") == "bridge" else None,
        vlan=data["id"] if kind == "vlan" else None,
        vni=data["id"] if kind == "vxlan" else None,
        mode=data.get("mode") if kind in {"macvlan", "ipvlan"} else None,
    )


def _lower(one: Object, data: Object, kind: str, numbers: dict[str, int]) -> int | None:
    given = data.get("link_index", data.get("link")) if kind == "vxlan" else one.get("link_index", one.get("link"))
    if isinstance(given, str):
        # By number where the name is that of a link in another namespace.
        return numbers[given] if given in numbers else int(given.removeprefix("if"))
    return given


def _stats(stats: Object) -> LinkStats:
    rx, tx = stats["rx"], stats["tx"]
    return LinkStats(
        rx_packets=rx["packets"],
        tx_packets=tx["packets"],
        rx_bytes=rx["bytes"],
        tx_bytes=tx["bytes"],
        rx_errors=rx["errors"],
        tx_errors=tx["errors"],
        rx_dropped=rx["dropped"],
        tx_dropped=tx["dropped"],
        multicast=rx["multicast"],
        collisions=tx["collisions"],
    )


def _bridge(data: Object) -> BridgeOptions:
    return BridgeOptions(
        stp=bool(data["stp_state"]),
        forward_delay=data["forward_delay"] / 100,
        hello_time=data["hello_time"] / 100,
        max_age=data["max_age"] / 100,
        ageing_time=data["ageing_time"] / 100,
        priority=data["priority"],
        vlan_filtering=bool(data.get("vlan_filtering", 0)),
        default_pvid=data.get("vlan_default_pvid", 0),
        multicast_snooping=bool(data.get("mcast_snooping", 0)),
    )


def _port(data: Object) -> PortOptions:
    return PortOptions(
        state=data["state"],
        priority=data["priority"],
        cost=data["cost"],
        hairpin=data["hairpin"],
        guard=data["guard"],
        fast_leave=data.get("fastleave", False),
        learning=data["learning"],
        flood=data["flood"],
        isolated=data["isolated"],
    )


# ---- addresses ----


def addresses(ns: NetNS) -> set[Address]:
    """Return the addresses as `ip` tells them."""
    return {_address(address, one["ifindex"]) for one in ip(ns, "addr") for address in one["addr_info"]}


#: Flags of addresses that `ip` has the same names for.
_FLAGS = ("secondary", "nodad", "optimistic", "dadfailed", "home", "deprecated", "tentative", "mngtmpaddr", "noprefixroute")


def _address(one: Object, index: int) -> Address:
    flags = {name for name in _FLAGS if one.get(name)} | ({"stable-privacy"} if one.get("stable-privacy") else set())
    # It says of an address that lasts for ever nothing, and of the other one that it is dynamic.
    flags |= set() if one.get("dynamic") else {"permanent"}
    return Address(
        interface=ip_interface(f"{one['local']}/{one['prefixlen']}"),
        index=index,
        scope=one["scope"],
        flags=frozenset(flags),
        peer=ip_address(one["address"]) if "address" in one else None,
        broadcast=ip_address(one["broadcast"]) if "broadcast" in one else None,
        valid=None if one["valid_life_time"] == FOREVER else one["valid_life_time"],
        preferred=None if one["preferred_life_time"] == FOREVER else one["preferred_life_time"],
    )


# ---- routes, neighbours, rules ----


def routes(ns: NetNS) -> set[Route]:
    """Return the routes of all tables as `ip` tells them."""
    numbers = {one["ifname"]: int(one["ifindex"]) for one in ip(ns, "link")}
    found = {_route(one, numbers, 4) for one in ip(ns, "-4", "route", "show", "table", "all")}
    return found | {_route(one, numbers, 6) for one in ip(ns, "-6", "route", "show", "table", "all")}


def _route(one: Object, numbers: dict[str, int], version: int) -> Route:
    return Route(
        destination=_network(one["dst"], version),
        gateway=_gateway(one),
        index=numbers[one["dev"]] if "dev" in one else None,
        source=ip_address(one["prefsrc"]) if "prefsrc" in one else None,
        metric=one.get("metric", 0),
        table=_number(one["table"]),
        protocol=_number(one["protocol"]),
        scope=_number(one["scope"]),
        type=one["type"],
        mtu=one.get("metrics", [{}])[0].get("mtu"),
        onlink="onlink" in one["flags"],
        hops=tuple((_gateway(hop), numbers[hop["dev"]], hop["weight"]) for hop in one.get("nexthops", [])),
    )


def _gateway(one: Object) -> Any:  # noqa: ANN401 - an address, or none
    text = one.get("gateway") or one.get("via", {}).get("host")
    return None if text is None else ip_address(text)


def _network(text: str, version: int) -> AnyNetwork:
    if text == "default":
        text = "0.0.0.0/0" if version == 4 else "::/0"
    return ip_network(text)


def _number(text: str) -> str | int:
    return int(text) if text.isdigit() else text


def neighbours(ns: NetNS) -> set[Neighbour]:
    """Return the neighbours as `ip` tells them."""
    links = ip(ns, "link")
    numbers = {one["ifname"]: int(one["ifindex"]) for one in links}
    # Of one on a link without hardware addresses (tun) it prints what is in its memory.
    without = {one["ifname"] for one in links if not one.get("address")}
    return {
        Neighbour(
            address=ip_address(one["dst"]),
            index=numbers[one["dev"]],
            mac="" if one["dev"] in without else one.get("lladdr", ""),
            state=one["state"][0].lower(),
            router="router" in one,
        )
        for one in ip(ns, "neigh", "show", "nud", "all")
    }


def rules(ns: NetNS) -> list[Rule]:
    """Return the rules as `ip` tells them."""
    return [_rule(one, version) for version in (4, 6) for one in ip(ns, f"-{version}", "rule")]


def _rule(one: Object, version: int) -> Rule:
    action = "goto" if "goto" in one else one.get("action", "lookup")
    mark = int(one.get("fwmark", "0"), 16)
    return Rule(
        priority=one["priority"],
        action=action,
        table=_number(one.get("table", "unspec")),
        family={4: 2, 6: 10}[version],
        source=_part(one, "src"),
        destination=_part(one, "dst"),
        incoming=one.get("iif", ""),
        outgoing=one.get("oif", ""),
        mark=mark,
        # It leaves out the mask that has all bits.
        mask=int(one["fwmask"], 16) if "fwmask" in one else FOREVER if "fwmark" in one else 0,
    )


def _part(one: Object, key: str) -> AnyNetwork | None:
    text = one.get(key, "all")
    return None if text == "all" else ip_network(f"{text}/{one[f'{key}len']}" if f"{key}len" in one else text)


# ---- bridges, features ----


def fdb(ns: NetNS, name: str) -> set[FdbEntry]:
    """Return the table of MAC addresses of a bridge as `bridge` tells it."""
    numbers = {one["ifname"]: int(one["ifindex"]) for one in ip(ns, "link")}
    return {
        FdbEntry(
            mac=one["mac"],
            index=numbers[one["ifname"]],
            vlan=one.get("vlan"),
            state={"permanent": "local", "static": "static"}.get(one["state"], "dynamic"),
            sticky="sticky" in one["flags"],
        )
        for one in bridge(ns, "fdb", "show", "br", name)
        # Of the bridge itself it says no master; what a device listens to is "self", and no entry of the table.
        if one.get("master") == name and "self" not in one["flags"]
    }


def vlans(ns: NetNS) -> set[PortVlan]:
    """Return the VLANs of all bridges and ports as `bridge` tells them."""
    numbers = {one["ifname"]: int(one["ifindex"]) for one in ip(ns, "link")}
    return {
        PortVlan(
            numbers[one["ifname"]],
            number,
            pvid="PVID" in vlan.get("flags", ()),
            untagged="Egress Untagged" in vlan.get("flags", ()),
        )
        for one in bridge(ns, "vlan")
        for vlan in one["vlans"]
        for number in range(vlan["vlan"], vlan.get("vlanEnd", vlan["vlan"]) + 1)
    }


def features(ns: NetNS, name: str) -> dict[str, Feature]:
    """Return the features of an interface as `ethtool` tells them, but for those words of its own that are for several."""
    found = {}
    for line in run_in(ns, "ethtool", "-k", name).splitlines()[1:]:
        key, _, value = line.strip().partition(": ")
        words = value.split()
        active = words[0] == "on"
        wanted = active if "[requested" not in value else "[requested on]" in value
        found[key] = Feature(key, active, wanted, fixed="[fixed]" in value)
    return found


def ports(ns: NetNS) -> dict[int, PortOptions]:
    """Return the ports of bridges by their numbers as `bridge` tells them."""
    found: list[Object] = json.loads(run_in(ns, "bridge", "-j", "-d", "link") or "[]")
    return {one["ifindex"]: _port(one) for one in found if "master" in one}


# ---- queueing disciplines ----

ROOT = 0xFFFFFFFF
"""What stands for the parent of one that is in none."""


def qdiscs(ns: NetNS) -> list[Object]:
    """Return the queueing disciplines as `tc` tells them, as `flat` has them."""
    numbers = {one["ifname"]: int(one["ifindex"]) for one in ip(ns, "link")}
    found: list[Object] = json.loads(run_in(ns, "tc", "-j", "-s", "qdisc", "show") or "[]")
    return [_qdisc(one, numbers) for one in found]


def _qdisc(one: Object, numbers: dict[str, int]) -> Object:
    return {
        "index": numbers[one["dev"]],
        "kind": one["kind"],
        "number": _handle(one["handle"]),
        "parent": ROOT if one.get("root") else _handle(one["parent"]),
        "sent": one["packets"],
        "sent_bytes": one["bytes"],
        "dropped": one["drops"],
        "waiting": one["qlen"],
        "waiting_bytes": one["backlog"],
        "overlimits": one["overlimits"],
        **(OPTIONS[one["kind"]](one["options"]) if one["kind"] in OPTIONS else {}),
    }


def _handle(text: str) -> int:
    major, _, minor = text.partition(":")
    return int(major or "0", 16) << 16 | int(minor or "0", 16)


def _tbf(told: Object) -> Object:
    # What may wait, it tells as the microseconds that this takes after the burst.
    return {
        "rate": told["rate"],
        "burst_bytes": float(told["burst"]),
        "limit_bytes": told["burst"] + told["rate"] * told["lat"] / 1e6,
    }


def _netem(told: Object) -> Object:
    found: Object = {"limit": told["limit"], "gap": told.get("gap", 0), "rate": told.get("rate", {}).get("rate", 0)}
    times = told.get("delay", {})
    found |= {name: times.get(name, 0) * 1e9 for name in ("delay", "jitter")}
    found["delay_correlation"] = times.get("correlation", 0) * 2**32
    for name, key in (("loss", "loss-random"), *((same, same) for same in ("duplicate", "corrupt", "reorder"))):
        chances = told.get(key, {})
        found |= {name: chances.get(name, 0) * 2**32, f"{name}_correlation": chances.get("correlation", 0) * 2**32}
    return found


OPTIONS: dict[str, Callable[[Object], Object]] = {"tbf": _tbf, "netem": _netem, "pfifo": lambda told: {"limit": told["limit"]}}


def flat(state: QdiscState) -> Object:
    """Return a queueing discipline as isolib reads it, all in one: what it is, what has passed it, what it is set to."""
    options = {} if state.options is None else asdict(state.options)
    return {name: getattr(state, name) for name in ("index", "kind", "number", "parent")} | asdict(state.stats) | options


# ---- both ----


def difference(ours: object, theirs: object) -> str:
    """Return what two say that is not the same, of lists, sets and dictionaries no more than that."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return "\n".join(f"{key}: {difference(ours[key], theirs.get(key))}" for key in ours if ours[key] != theirs.get(key))
    if isinstance(ours, (set, list)) and isinstance(theirs, (set, list)):
        ours, theirs = [one for one in ours if one not in theirs], [one for one in theirs if one not in ours]
    return f"\nours:   {ours}\ntheirs: {theirs}"


def agree(ours: Callable[[], T], theirs: Callable[[], T], what: object = "") -> T:
    """Fail unless both say the same of what stands still meanwhile: the kernel sends and learns by itself."""
    for _ in range(TRIES):
        before, other = ours(), theirs()
        if ours() == before:
            if before != other:
                pytest.fail(f"{what or 'they differ'}: {difference(before, other)}", pytrace=False)
            return before
    pytest.fail(f"it never stands still: {what}")


def names(found: Sequence[Link]) -> list[str]:
    """Return the names of links, but for loopback."""
    return [one.name for one in found if one.kind != "loopback"]
