"""VLANs and tables of bridges: requests read back, what the kernel tells, and what it never would."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolib import PlanError
from isolib._kernel.netlink import codec
from isolib._kernel.netlink.codec import MalformedError, Message
from isolib.net import bridging
from isolib.net.ending import give_number, gone, number_of
from isolib.net.parsing import IFINFO, NDMSG
from isolib.net.values import FdbEntry, PortVlan

if TYPE_CHECKING:
    from collections.abc import Callable

NUMBERS = st.sets(st.integers(1, 4094), max_size=60) | st.sets(st.integers(1, 40), max_size=40)
BRIDGE = 9


def message(body: bytes, kind: int = 16) -> Message:
    """Return a message with this body."""
    return Message(kind, 0, 1, 0, body)


def of_port(body: bytes) -> Message:
    """Return a request about a port as the kernel would tell of it: with its bridge."""
    return message(body + codec.u32(10, BRIDGE))


@given(NUMBERS, st.booleans(), st.booleans())
def test_vlans_that_are_asked_for(numbers: set[int], pvid: bool, untagged: bool) -> None:  # noqa: FBT001
    """The body of a request for VLANs, in ranges where they have no gap, is read as these VLANs."""
    asked = bridging.add_vlans(7, "x", bridging.check_vlans(numbers), pvid=pvid, untagged=untagged)
    found = bridging.parse_vlans(of_port(asked.body), BRIDGE)
    assert found == [PortVlan(7, number, pvid=pvid, untagged=untagged) for number in sorted(numbers)]
    assert bridging.parse_vlans(of_port(asked.body), BRIDGE + 1) == []
    taken = bridging.remove_vlans(7, "x", sorted(numbers))
    assert {one.id for one in bridging.parse_vlans(of_port(taken.body), BRIDGE)} == numbers


def test_all_vlans_are_one_range() -> None:
    """All numbers there are take two attributes, and those of the bridge itself are asked of itself."""
    asked = bridging.add_vlans(7, "x", list(range(1, 4095)))
    ((kind, value),) = codec.attributes(asked.body, IFINFO.size)
    assert (kind, len(codec.attributes(value))) == (26, 2)
    own = bridging.add_vlans(BRIDGE, "br0", [5], is_bridge=True)
    ((_, value),) = codec.attributes(own.body, IFINFO.size)
    assert codec.attributes(value)[0] == (0, (2).to_bytes(2, "little"))
    assert bridging.parse_vlans(message(own.body), BRIDGE) == [PortVlan(BRIDGE, 5)]


@pytest.mark.parametrize(
    ("info", "words"),
    [
        (codec.attribute(2, b"\0\0\1"), "a VLAN of 3 bytes"),
        (codec.attribute(2, b"\x10\0\5\0"), "no beginning"),
        (codec.attribute(2, b"\0\0\xff\xff"), "the number 65535"),
        (
            codec.attribute(2, b"\x08\0\1\0") + codec.attribute(2, b"\0\0\5\0") + codec.attribute(2, b"\x10\0\7\0"),
            "no beginning",
        ),
    ],
)
def test_vlans_that_are_none(info: bytes, words: str) -> None:
    """What is wrong with a VLAN is said."""
    body = IFINFO.pack(7, 0, 7, 0, 0) + codec.nested(26, info)
    with pytest.raises(MalformedError, match=words):
        bridging.parse_vlans(of_port(body), BRIDGE)


@given(
    mac=st.binary(min_size=6, max_size=6),
    vlan=st.none() | st.integers(1, 4094),
    sticky=st.booleans(),
    is_bridge=st.booleans(),
)
def test_entries_that_are_asked_for(mac: bytes, vlan: int | None, sticky: bool, is_bridge: bool) -> None:  # noqa: FBT001
    """The body of a request for an entry is read as that entry; the bridge's own is local, and needs not be sticky."""
    asked = bridging.add_fdb(7, "x", mac, vlan, sticky=sticky, is_bridge=is_bridge)
    found = bridging.parse_fdb(message(asked.body + codec.u32(9, BRIDGE), 28), BRIDGE)
    state = "local" if is_bridge else "static"
    assert found == FdbEntry(mac.hex(":"), 7, vlan, state, sticky=sticky and not is_bridge)
    assert bridging.parse_fdb(message(asked.body + codec.u32(9, BRIDGE + 1), 28), BRIDGE) is None
    assert bridging.parse_fdb(message(asked.body, 28), BRIDGE) is None


def test_entry_without_an_address() -> None:
    """An entry of a bridge whose address is none is malformed."""
    with pytest.raises(MalformedError, match="a MAC address of 5 bytes"):
        bridging.parse_fdb(message(NDMSG.pack(7, 7, 2, 0, 0) + codec.u32(9, BRIDGE) + codec.attribute(2, bytes(5))), BRIDGE)


@pytest.mark.parametrize(("parse", "size"), [(bridging.parse_vlans, IFINFO.size), (bridging.parse_fdb, NDMSG.size)])
def test_too_short(parse: Callable[[Message, int], object], size: int) -> None:
    """A message that is shorter than its structure is malformed."""
    for length in range(size):
        with pytest.raises(MalformedError, match=f"{length} bytes"):
            parse(message(bytes(length)), BRIDGE)


ATTRIBUTES = st.lists(
    st.builds(codec.attribute, st.sampled_from([2, 5, 9, 10, 26]), st.binary(max_size=12) | st.just(b"\t\0\0\0")), max_size=5
).map(b"".join)


@given(head=st.binary(min_size=IFINFO.size, max_size=IFINFO.size), body=ATTRIBUTES | st.binary(max_size=100), inner=ATTRIBUTES)
def test_bytes_of_any_kind(head: bytes, body: bytes, inner: bytes) -> None:
    """Whatever the bytes are, they are values, or are told to be malformed."""
    for raw in (head + body, head + codec.u32(10, BRIDGE) + codec.attribute(26, inner), b"\7" + head[1 : NDMSG.size] + body):
        for parse in (bridging.parse_vlans, bridging.parse_fdb):
            try:
                found = parse(message(raw), BRIDGE)
            except MalformedError:
                continue
            assert found is None or isinstance(found, (list, FdbEntry))


@pytest.mark.parametrize("wrong", [0, 4095, "7", True, None, [1, 0], ["7"]])
def test_numbers_that_are_none(wrong: object) -> None:
    """What is no number of a VLAN, alone or among others, is told by the argument's name."""
    with pytest.raises(PlanError, match="vlans: a number from 1 to 4094"):
        bridging.check_vlans(wrong)  # type: ignore[arg-type]


@given(number=st.integers(0, (1 << 31) - 1), kind=st.sampled_from([88, 89, 90]))
def test_numbers_of_namespaces(number: int, kind: int) -> None:
    """The number that a namespace is given is read back, and one that is gone is told by the message that says so alone."""
    told = message(give_number(number, 5).body, kind)
    assert number_of(told) == number
    assert gone([told]) == ({number} if kind == 89 else set())


@given(st.binary(max_size=60))
def test_numbers_in_bytes_of_any_kind(body: bytes) -> None:
    """Whatever the bytes are, they have a number, or none, or are told to be malformed."""
    try:
        found = number_of(message(body))
    except MalformedError:
        return
    assert found is None or isinstance(found, int)
