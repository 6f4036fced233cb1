"""Which kinds of links this host has for this user, by ip's account and not by isolib's."""

from __future__ import annotations

import re
from contextlib import closing
from functools import cache

import pytest

from isolib import new_netns
from tests import oracles

BY_IP = {
    "macvlan": "link add link lower name it type macvlan",
    "ipvlan": "link add link lower name it type ipvlan",
    "ipvlan l3s": "link add link lower name it type ipvlan mode l3s",
    "vlan": "link add link lower name it type vlan id 7",
    "vxlan": "link add name it type vxlan id 7 dstport 4789",
    "dummy": "link add name it type dummy",
    "tun": "tuntap add mode tun name it",
    "tap": "tuntap add mode tap name it",
}
"""How ip makes a link of each kind."""

REFUSALS = re.compile(r"not supported|Unknown device type|Unknown error 524|open: ", re.IGNORECASE)
"""What it says where there are none; 524 is ENOTSUPP, and what is opened is /dev/net/tun."""


@cache
def refusal(kind: str) -> str:
    """Return why this host has no links of a kind for this user, as ip is told; "": it has."""
    with closing(new_netns()) as ns:
        commands = f"ip link add lower type veth peer name far; ip {BY_IP[kind]} 2>&1 || exit 0"
        said = oracles.run_in(ns, "sh", "-ec", f"PATH=$PATH:/usr/sbin:/sbin\n{commands}").strip()
    assert not said or REFUSALS.search(said), said
    return said


def needs(kind: str) -> None:
    """Skip the test where this host has no links of a kind for this user: by ip's account, not by isolib's."""
    if refusal(kind):
        pytest.skip(f"this host has no {kind} links: {refusal(kind)}")
