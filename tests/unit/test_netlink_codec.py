"""Netlink's messages and attributes, without a kernel: there and back, and bytes that are neither."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolib import IsolibError
from isolib._kernel.netlink import codec
from isolib._kernel.netlink.codec import Ack, MalformedError, Message
from isolib._kernel.netlink.socket import Request, _parts

if TYPE_CHECKING:
    from collections.abc import Callable

KINDS = st.integers(0, 0x3FFF)
PAIRS = st.lists(st.tuples(KINDS, st.binary(max_size=40)), max_size=10)


@given(PAIRS)
def test_attributes_there_and_back(pairs: list[tuple[int, bytes]]) -> None:
    """Attributes are read as they were written, in their order, whatever their lengths are; of one kind, the last counts."""
    data = b"".join(codec.attribute(kind, value) for kind, value in pairs)
    assert len(data) % 4 == 0
    assert codec.attributes(data) == pairs
    assert codec.attributes(b"head" + data, 4) == pairs
    assert codec.table(data) == dict(pairs)


@given(PAIRS, KINDS)
def test_nested_attributes(pairs: list[tuple[int, bytes]], kind: int) -> None:
    """Attributes within an attribute are found in it, whose kind is without the mark."""
    ((found, inner),) = codec.attributes(codec.nested(kind, *(codec.attribute(*pair) for pair in pairs)))
    assert found == kind
    assert codec.attributes(inner) == pairs


@pytest.mark.parametrize(
    ("made", "value"),
    [
        (codec.u8(1, 255), b"\xff"),
        (codec.u16(1, 0x0102), struct.pack("=H", 0x0102)),
        (codec.u32(1, 0x01020304), struct.pack("=I", 0x01020304)),
        (codec.u64(1, 0x0102030405060708), struct.pack("=Q", 0x0102030405060708)),
        (codec.s32(1, -1), b"\xff" * 4),
        (codec.be16(1, 0x0102), b"\1\2"),
        (codec.be32(1, 0x01020304), b"\1\2\3\4"),
        (codec.be64(1, 0x0102030405060708), b"\1\2\3\4\5\6\7\x08"),
        (codec.text(1, "é"), b"\xc3\xa9\0"),
        (codec.flag(1), b""),
    ],
)
def test_values(made: bytes, value: bytes) -> None:
    """Numbers are in the order of the machine or the network's, texts have a NUL, flags nothing."""
    assert codec.attributes(made) == [(1, value)]


@pytest.mark.parametrize("make", [codec.u8, codec.u16, codec.u32, codec.u64, codec.be16, codec.be32, codec.be64])
def test_numbers_that_do_not_fit(make: Callable[[int, int], bytes]) -> None:
    """A number that has no room is refused, and never cut."""
    for number in (-1, 1 << 64):
        with pytest.raises(struct.error):
            make(1, number)


def test_longest_attribute() -> None:
    """An attribute holds 65,531 bytes and not one more."""
    assert codec.attributes(codec.attribute(1, bytes(65531))) == [(1, bytes(65531))]
    with pytest.raises(ValueError, match="65532 bytes"):
        codec.attribute(1, bytes(65532))


@given(st.binary(max_size=100), st.integers(0, 110))
def test_bytes_that_are_no_attributes(data: bytes, offset: int) -> None:
    """Whatever the bytes are, they are attributes, or are told to be none."""
    try:
        found = codec.attributes(data, offset)
    except MalformedError:
        return
    assert sum(4 + len(value) for _, value in found) <= max(0, len(data) - offset)


@pytest.mark.parametrize("data", [b"\3\0\1\0", b"\0\0\1\0", b"\5\0\1\0", b"\xff\xff\1\0aaaa"])
def test_attributes_of_wrong_lengths(data: bytes) -> None:
    """A length shorter than the header, or longer than what is there, is malformed: an error of isolib's, and a ValueError."""
    for kind in (MalformedError, IsolibError, ValueError):
        with pytest.raises(kind, match="bytes long"):
            codec.attributes(data)


MESSAGES = st.lists(
    st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=40), st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)), max_size=6
)


@given(MESSAGES)
def test_messages_there_and_back(wanted: list[tuple[int, bytes, int, int]]) -> None:
    """Requests that are sent together are read as so many messages."""
    data = b"".join(codec.request(kind, body, flags=flags, sequence=number) for kind, body, flags, number in wanted)
    assert codec.messages(data) == [Message(kind, flags | 1, number, 0, body) for kind, body, flags, number in wanted]


@given(st.binary(max_size=100))
def test_bytes_that_are_no_messages(data: bytes) -> None:
    """Whatever the bytes are, they are messages, or are told to be none; and so are acknowledgements."""
    try:
        found = codec.messages(data)
    except MalformedError:
        found = []
    for message in (*found, Message(2, 0x200, 1, 0, data), Message(3, 0x200, 1, 0, data), Message(2, 0x300, 1, 0, data)):
        try:
            ack = codec.parse_ack(message)
        except MalformedError:
            continue
        assert isinstance(ack.errno, int)
        assert isinstance(ack.text, str)


def test_acknowledgements() -> None:
    """An acknowledgement says the error number, and the kernel's words wherever they stand."""
    words = codec.text(1, "no such thing")
    header = codec.HEADER.pack(20, 16, 1, 7, 0)
    refused = struct.pack("=i", -17)
    assert codec.parse_ack(Message(2, 0, 7, 0, struct.pack("=i", 0) + header)) == Ack(0, "")
    assert codec.parse_ack(Message(2, 0, 7, 0, refused + header)) == Ack(17, "")
    assert codec.parse_ack(Message(2, 0x300, 7, 0, refused + header + words)) == Ack(17, "no such thing")
    assert codec.parse_ack(Message(2, 0x200, 7, 0, refused + header + b"body" + words)) == Ack(17, "no such thing")
    assert codec.parse_ack(Message(3, 0x202, 7, 0, refused + words)) == Ack(17, "no such thing")
    assert codec.parse_ack(Message(3, 2, 7, 0, b"")) == Ack(0, "")
    for body in (b"", b"\0\0\0"):
        with pytest.raises(MalformedError, match="acknowledgement"):
            codec.parse_ack(Message(2, 0, 7, 0, body))
    with pytest.raises(MalformedError, match="acknowledgement"):
        codec.parse_ack(Message(2, 0x200, 7, 0, refused))


def test_words() -> None:
    """A text ends at its NUL or its end, and bytes that are none come as Python writes such file names."""
    assert [codec.word(value) for value in (b"", b"lo\0", b"lo", b"l\0o", b"\xff\0")] == ["", "lo", "lo", "l", "\udcff"]


@given(st.lists(st.integers(0, 20000), max_size=20))
def test_parts(sizes: list[int]) -> None:
    """Many requests are sent in parts, each as long as it may be, all in their order, and a long one alone."""
    requests = [Request(16, bytes(size), 0, "RTM_NEWLINK", str(number)) for number, size in enumerate(sizes)]
    parts = _parts(requests)
    assert [one for part in parts for one in part] == requests
    lengths = [sum(16 + len(one.body) + 3 for one in part) for part in parts]
    assert all(length <= 32768 or len(part) == 1 for length, part in zip(lengths, parts, strict=True))
    heads = [16 + len(part[0].body) + 3 for part in parts[1:]]
    assert all(length + head > 32768 for length, head in zip(lengths, heads, strict=False))
