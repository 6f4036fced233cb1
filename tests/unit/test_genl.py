"""Generic netlink, and the features of interfaces that are asked for by it: there and back, and whatever comes instead."""

from __future__ import annotations

import contextlib
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolib import PlanError
from isolib._kernel.netlink import codec, genl
from isolib._kernel.netlink.codec import MalformedError, Message
from isolib._kernel.netlink.genl import Family
from isolib.net import features
from isolib.net.values import Feature

if TYPE_CHECKING:
    from isolib._kernel.netlink.socket import Request

WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=15)
ETHTOOL = Family(20, "ethtool", 1)


def message(*attributes: bytes, command: int = 1) -> Message:
    """Return a message of a family."""
    return Message(20, 0, 1, 0, genl.HEADER.pack(command, 1) + b"".join(attributes))


def told(family: Family) -> Message:
    """Return what the controller says of a family."""
    groups = (
        codec.nested(at, codec.text(1, name), codec.u32(2, number))
        for at, (name, number) in enumerate(family.groups.items(), start=1)
    )
    attributes = codec.u16(1, family.id), codec.text(2, family.name), codec.u32(3, family.version), codec.nested(7, *groups)
    return message(*attributes)


@given(
    st.builds(
        Family,
        st.integers(1, 0xFFFF),
        WORDS,
        st.integers(0, 255),
        st.dictionaries(WORDS, st.integers(0, 0xFFFFFFFF), max_size=5),
    )
)
def test_families_come_back(family: Family) -> None:
    """Number, version and groups of a family are read as they were told."""
    assert genl.parse_family(told(family)) == family


def test_family_without_a_number() -> None:
    """What has no number is no family, and what has no header is no message."""
    with pytest.raises(MalformedError, match="without a number"):
        genl.parse_family(message(codec.text(2, "ethtool")))
    for size in range(genl.HEADER.size):
        with pytest.raises(MalformedError, match=f"with {size} bytes"):
            genl.payload(Message(20, 0, 1, 0, bytes(size)))


def test_requests_byte_by_byte() -> None:
    """A request has the family's number as its type, then the command and the version, and names what it is about."""
    asked = genl.ask_for_family("ethtool")
    assert (asked.type, asked.op, asked.target) == (0x10, "CTRL_CMD_GETFAMILY", "ethtool")
    assert asked.body == bytes([3, 1, 0, 0]) + codec.text(2, "ethtool")
    wanted = features.set_request(ETHTOOL, 7, "eth0", {"a": True, "b": False})
    assert (wanted.type, wanted.op, wanted.target) == (20, "ETHTOOL_MSG_FEATURES_SET", "eth0")
    bits = codec.nested(1, codec.text(2, "a"), codec.flag(3)) + codec.nested(1, codec.text(2, "b"))
    header = codec.nested(1, codec.u32(1, 7), codec.u32(3, 2))
    assert wanted.body == bytes([12, 1, 0, 0]) + header + codec.nested(3, codec.nested(3, bits))
    read: Request = features.get_request(ETHTOOL, 7, "eth0")
    assert read.body == bytes([11, 1, 0, 0]) + codec.nested(1, codec.u32(1, 7))


# ---- features ----


def bit(number: int, name: str, *more: bytes) -> bytes:
    """Return a bit of a set."""
    return codec.nested(1, codec.u32(1, number), codec.text(2, name), *more)


def reply(found: list[Feature]) -> Message:
    """Return what the kernel says of features: those that can be changed by a mask, the others as lists."""
    hardware = [bit(at, one.name, *([] if one.fixed else [codec.flag(3)])) for at, one in enumerate(found)]
    wanted = [bit(at, one.name) for at, one in enumerate(found) if one.wanted and not one.fixed]
    active = [bit(at, one.name) for at, one in enumerate(found) if one.active]
    lists = (codec.nested(kind, codec.flag(1), codec.nested(3, *bits)) for kind, bits in ((3, wanted), (4, active)))
    return message(codec.nested(2, codec.u32(2, 64), codec.nested(3, *hardware)), *lists)


def feature(name: str, *, active: bool, wanted: bool, fixed: bool) -> Feature:
    """Return a feature as the kernel can have it: of a fixed one, nothing else is wanted."""
    return Feature(name, active, active if fixed else wanted, fixed)


FEATURES = st.lists(
    st.builds(feature, WORDS, active=st.booleans(), wanted=st.booleans(), fixed=st.booleans()),
    max_size=8,
    unique_by=lambda one: one.name,
)


@given(FEATURES)
def test_features_come_back(found: list[Feature]) -> None:
    """Each feature is read as it was told: whether it is active, wanted and fixed, in the kernel's order."""
    assert list(features.parse_features(reply(found)).values()) == found


def test_features_that_never_change() -> None:
    """What is of the hardware and yet cannot be changed is fixed; a number that no feature has any more is left out."""
    hardware = codec.nested(2, codec.nested(3, bit(0, "a", codec.flag(3)), bit(1, ""), bit(2, "b", codec.flag(3))))
    fixed = codec.nested(5, codec.flag(1), codec.nested(3, bit(0, "a")))
    found = features.parse_features(message(hardware, fixed))
    assert {name: one.fixed for name, one in found.items()} == {"a": True, "b": False}


@given(st.one_of(st.binary(max_size=200), FEATURES.map(lambda found: reply(found).body)), st.data())
def test_changed_bytes(body: bytes, data: st.DataObject) -> None:
    """Whatever bytes come, every reader returns values or raises MalformedError."""
    raw = bytearray(body)
    for at, byte in data.draw(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=6)):
        if at < len(raw):
            raw[at] = byte
    changed = Message(20, 0, 1, 0, bytes(raw))
    with contextlib.suppress(MalformedError):
        assert all(isinstance(one, Feature) for one in features.parse_features(changed).values())
    with contextlib.suppress(MalformedError):
        assert genl.parse_family(changed).id > 0


@pytest.mark.parametrize("value", [b"", b"\0" * 3, struct.pack("=Q", 1)])
def test_bit_with_an_impossible_number(value: bytes) -> None:
    """A bit whose number is none is refused: it would be taken for another."""
    one = codec.nested(1, codec.attribute(1, value), codec.text(2, "a"))
    with pytest.raises(MalformedError, match="without a number"):
        features.parse_features(message(codec.nested(2, codec.nested(3, one))))


@pytest.mark.parametrize("changes", [{"tx": 1}, {"tx": None}, ["tx"], "tx", None], ids=str)
def test_changes_that_are_none(changes: object) -> None:
    """What does not say of each feature whether it is to be on is refused before anybody is asked."""
    with pytest.raises(PlanError, match="changes"):
        features.change_features(None, 7, "eth0", changes)  # type: ignore[arg-type]
