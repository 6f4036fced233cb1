"""Requests of rtnetlink: their bytes, whom they are about, and what is said when they are refused."""

from __future__ import annotations

import errno
from ipaddress import ip_address, ip_interface, ip_network
from typing import TYPE_CHECKING

import pytest

from isolib import PermissionDenied, SyscallError
from isolib._kernel.netlink import codec
from isolib._kernel.netlink.codec import Ack
from isolib._kernel.netlink.socket import refusal
from isolib.net import requests
from isolib.net.parsing import IFADDR, IFINFO, NDMSG, RTMSG
from isolib.net.values import Rule

if TYPE_CHECKING:
    from isolib._kernel.netlink.socket import Request

RULE = Rule(100, "lookup", 7, 2, source=ip_network("10.0.0.0/8"))

#: Each request, with its number in linux/rtnetlink.h, its name there, and what it is about.
REQUESTS: list[tuple[Request, int, str, str]] = [
    (requests.new_link("veth", b"", name="x"), 16, "RTM_NEWLINK", "veth x"),
    (requests.set_link(7, "x", up=True), 16, "RTM_NEWLINK", "x"),
    (requests.bring_up("x"), 16, "RTM_NEWLINK", "x"),
    (requests.remove_link(7, "x"), 17, "RTM_DELLINK", "x"),
    (requests.get_link("x"), 18, "RTM_GETLINK", "x"),
    (requests.get_link_by_index(7, "x"), 18, "RTM_GETLINK", "x"),
    (requests.dump_links(), 18, "RTM_GETLINK", "links"),
    (requests.add_address(ip_interface("10.0.0.1/24"), 7, "x"), 20, "RTM_NEWADDR", "10.0.0.1/24 on x"),
    (requests.remove_address(ip_interface("10.0.0.1/24"), 7, "x"), 21, "RTM_DELADDR", "10.0.0.1/24 on x"),
    (requests.dump_addresses(), 22, "RTM_GETADDR", "addresses"),
    (requests.add_route(ip_network("10.0.0.0/8"), index=7), 24, "RTM_NEWROUTE", "10.0.0.0/8 via link 7"),
    (
        requests.add_route(ip_network("10.0.0.0/8"), gateway=ip_address("10.0.0.1")),
        *(24, "RTM_NEWROUTE", "10.0.0.0/8 via 10.0.0.1"),
    ),
    (requests.add_route(ip_network("10.0.0.0/8"), kind="blackhole"), 24, "RTM_NEWROUTE", "blackhole 10.0.0.0/8"),
    (requests.remove_route(ip_network("10.0.0.0/8")), 25, "RTM_DELROUTE", "10.0.0.0/8"),
    (requests.dump_routes(), 26, "RTM_GETROUTE", "routes"),
    (requests.find_route(ip_address("fd00::1"), 7), 26, "RTM_GETROUTE", "fd00::1"),
    (requests.add_neighbour(ip_address("10.0.0.1"), b"\2" * 6, 7, "x"), 28, "RTM_NEWNEIGH", "10.0.0.1 on x"),
    (requests.remove_neighbour(ip_address("10.0.0.1"), 7, "x"), 29, "RTM_DELNEIGH", "10.0.0.1 on x"),
    (requests.dump_neighbours(), 30, "RTM_GETNEIGH", "neighbours"),
    (requests.add_rule(RULE), 32, "RTM_NEWRULE", "rule 100"),
    (requests.remove_rule(RULE), 33, "RTM_DELRULE", "rule 100"),
    (requests.dump_rules(), 34, "RTM_GETRULE", "rules"),
]


@pytest.mark.parametrize(("request_", "number", "op", "target"), REQUESTS, ids=[f"{row[2]} {row[3]}" for row in REQUESTS])
def test_what_requests_say(request_: Request, number: int, op: str, target: str) -> None:
    """Each has the number that the header has for its name, and names what it is about; what follows is attributes."""
    assert (request_.type, request_.op, request_.target) == (number, op, target)
    sizes = {16: IFINFO.size, 20: IFADDR.size, 24: RTMSG.size, 28: NDMSG.size, 32: RTMSG.size}
    assert codec.attributes(request_.body, sizes[number & ~3]) is not None
    has_to_be_new = op in {"RTM_NEWADDR", "RTM_NEWROUTE", "RTM_NEWRULE"} or target == "veth x"
    assert bool(request_.flags & codec.EXCL) == has_to_be_new
    assert bool(request_.flags & codec.CREATE) == (has_to_be_new or op == "RTM_NEWNEIGH")


@pytest.mark.parametrize("row", REQUESTS, ids=[f"{row[2]} {row[3]}" for row in REQUESTS])
def test_what_is_said_of_a_refusal(row: tuple[Request, int, str, str]) -> None:
    """A refusal names the request, its object, why, and the kernel's own words; where it is a privilege, which."""
    error = refusal(row[0], Ack(errno.EPERM, "Not for you"))
    assert isinstance(error, PermissionDenied)
    assert (error.op, error.target, error.errno) == (row[2], row[3], errno.EPERM)
    assert "the kernel says: Not for you" in str(error)
    if not row[2].startswith("RTM_GET"):
        assert "CAP_NET_ADMIN" in str(error)


def test_refusals_that_the_kernel_explains_badly() -> None:
    """Numbers that mean something else in each request are told as what they mean there."""
    link = requests.new_link("dummy", b"", name="x")
    said = {
        number: str(refusal(link, Ack(number, ""))) for number in (errno.EEXIST, errno.EOPNOTSUPP, errno.ENETDOWN, errno.ENODEV)
    }
    assert [word in text for word, text in zip(("taken", "doctor()", "bring it up", "below"), said.values(), strict=True)] == [
        True
    ] * 4
    assert "already" in str(refusal(requests.add_address(ip_interface("10.0.0.1/24"), 7, "x"), Ack(errno.EEXIST, "")))
    assert "no such route" in str(refusal(requests.remove_route(ip_network("10.0.0.0/8")), Ack(errno.ESRCH, "")))
    assert "no such rule" in str(refusal(requests.remove_rule(RULE), Ack(errno.ENOENT, "")))
    unknown = refusal(link, Ack(errno.EXDEV, ""))
    assert isinstance(unknown, SyscallError)
    assert unknown.hint is None


def test_link_request_byte_by_byte() -> None:
    """A request for a link holds its structure, its attributes, and its kind with what is that kind's own."""
    attributes = requests.link_attributes(name="x", mac=b"\2" * 6, mtu=1400, master=5, lower=6, alias="hi", net=9)
    body = requests.new_link("vlan", attributes, name="x", index=7, up=True, data=codec.u16(1, 4)).body
    assert IFINFO.unpack_from(body) == (0, 0, 7, 1, 1)
    assert codec.table(body, IFINFO.size) == {
        3: b"x\0",
        1: b"\2" * 6,
        4: (1400).to_bytes(4, "little"),
        10: (5).to_bytes(4, "little"),
        5: (6).to_bytes(4, "little"),
        20: b"hi",
        28: (9).to_bytes(4, "little"),
        18: codec.text(1, "vlan") + codec.nested(2, codec.u16(1, 4)),
    }
    assert requests.link_attributes() == b""
    assert codec.table(requests.new_link("dummy", b"", name="x").body, IFINFO.size) == {18: codec.text(1, "dummy")}


def test_route_removal_says_as_little_as_it_can() -> None:
    """What is to be removed is described by what is given alone: not by who made it, its scope or its kind."""
    body = requests.remove_route(ip_network("10.0.0.0/8")).body
    assert RTMSG.unpack_from(body) == (2, 8, 0, 0, 254, 0, 255, 0, 0)
    assert codec.table(body, RTMSG.size) == {15: (254).to_bytes(4, "little"), 1: ip_address("10.0.0.0").packed}


def test_tables_beyond_a_byte() -> None:
    """A table whose number is no byte stands in its attribute alone."""
    for table, small in ((255, 255), (256, 0), ("main", 254), ("local", 255), ("default", 253)):
        body = requests.add_route(ip_network("10.0.0.0/8"), index=7, table=table).body
        assert RTMSG.unpack_from(body)[4] == small
        assert int.from_bytes(codec.table(body, RTMSG.size)[15], "little") == requests.table_number(table)
