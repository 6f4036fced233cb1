"""Netlink's messages and attributes: there and back, and whatever comes instead of them."""

from __future__ import annotations

import contextlib
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolib._kernel.netlink import codec
from isolib._kernel.netlink.codec import Ack, MalformedError, Message
from isolib.errors import IsolibError

if TYPE_CHECKING:
    from collections.abc import Callable

KINDS = st.integers(0, 0x3FFF)
VALUES = st.binary(max_size=40)
ATTRIBUTES = st.lists(st.tuples(KINDS, VALUES), max_size=6)
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=80)
MESSAGES = st.lists(
    st.builds(
        Message,
        st.integers(0, 0xFFFF),
        st.integers(0, 0xFFFF).map(lambda flags: flags | codec.REQUEST),
        st.integers(0, 0xFFFFFFFF),
        st.just(0),
        st.binary(max_size=64),
    ),
    max_size=4,
)


def packed(attributes: list[tuple[int, bytes]]) -> bytes:
    """Return attributes as they are sent."""
    return b"".join(codec.attribute(kind, value) for kind, value in attributes)


def sent(messages: list[Message]) -> bytes:
    """Return messages as they are sent."""
    return b"".join(codec.request(one.type, one.body, flags=one.flags, sequence=one.sequence) for one in messages)


def ack(errno: int, text: str = "", *, request: bytes | None = None, kind: int = codec.ERROR) -> Message:
    """Return what the kernel answers to a request, whole (None: its header only, NLM_F_CAPPED), with its words if any."""
    body = struct.pack("=i", -errno)
    flags = 0
    if kind == codec.ERROR:
        whole = codec.request(16, b"\0" * 16)
        flags |= 0x100 if request is None else 0
        body += whole[: codec.HEADER.size] if request is None else request
    if text:
        flags |= 0x200
        body += codec.text(1, text) + codec.u32(2, 16)
    return Message(kind, flags, 1, 0, body)


# ---- there and back ----


@given(ATTRIBUTES)
def test_attributes_come_back(attributes: list[tuple[int, bytes]]) -> None:
    """What was packed is what is read, in its order, each padded to four bytes."""
    data = packed(attributes)
    assert len(data) % 4 == 0
    assert codec.attributes(data) == attributes
    assert codec.table(data) == dict(attributes)
    assert codec.attributes(b"abcd" + data, 4) == attributes


@given(KINDS, ATTRIBUTES)
def test_nested_attributes_come_back(kind: int, inner: list[tuple[int, bytes]]) -> None:
    """The mark of an attribute that holds others is set for the kernel, and is no part of the kind that is read."""
    data = codec.nested(kind, *(codec.attribute(*one) for one in inner))
    assert struct.unpack_from("=H", data, 2)[0] == kind | 0x8000
    [(found, value)] = codec.attributes(data)
    assert found == kind
    assert codec.attributes(value) == inner


@given(KINDS, VALUES)
def test_byte_order_mark_is_no_part_of_the_kind(kind: int, value: bytes) -> None:
    """NLA_F_NET_BYTEORDER, which some subsystems set, does not make another kind of an attribute."""
    assert codec.attributes(codec.attribute(kind | 0x4000, value)) == [(kind, value)]


@pytest.mark.parametrize(
    ("write", "form", "low", "high"),
    [
        (codec.u8, "=B", 0, 2**8 - 1),
        (codec.u16, "=H", 0, 2**16 - 1),
        (codec.u32, "=I", 0, 2**32 - 1),
        (codec.u64, "=Q", 0, 2**64 - 1),
        (codec.s32, "=i", -(2**31), 2**31 - 1),
        (codec.be16, ">H", 0, 2**16 - 1),
        (codec.be32, ">I", 0, 2**32 - 1),
        (codec.be64, ">Q", 0, 2**64 - 1),
    ],
)
def test_numbers_have_their_size_and_order(write: Callable[[int, int], bytes], form: str, low: int, high: int) -> None:
    """A number takes its size, in its byte order; one that does not fit is refused and not cut."""
    for number in (low, 1, 0x12 % (high + 1), high):
        assert codec.attributes(write(7, number)) == [(7, struct.pack(form, number))]
    for number in (low - 1, high + 1):
        with pytest.raises(struct.error):
            write(7, number)


def test_flag_is_empty() -> None:
    """A flag is an attribute that holds nothing."""
    assert codec.flag(9) == bytes.fromhex("04000900") if struct.pack("=H", 1) == b"\1\0" else bytes.fromhex("00040009")
    assert codec.attributes(codec.flag(9)) == [(9, b"")]


@given(st.binary(max_size=40).filter(lambda raw: b"\0" not in raw))
def test_names_go_back_as_they_came(raw: bytes) -> None:
    """A name that the kernel sent, whatever its bytes, can be sent back: an interface may be called by any."""
    [(_, value)] = codec.attributes(codec.text(3, codec.word(raw + b"\0")))
    assert value == raw + b"\0"


@given(MESSAGES)
def test_messages_come_back(messages: list[Message]) -> None:
    """What was sent together is read one by one, each body without its padding."""
    data = sent(messages)
    assert len(data) % 4 == 0
    assert codec.messages(data) == messages


def test_longest_attribute() -> None:
    """An attribute can be 65,535 bytes long; one more is refused, for its length would be read as another."""
    value = bytes(65_531)
    data = codec.attribute(1, value) + codec.u8(2, 5)
    assert len(data) == 65_536 + 8
    assert codec.attributes(data) == [(1, value), (2, b"\5")]
    with pytest.raises(ValueError, match="65532 bytes is too long"):
        codec.attribute(1, bytes(65_532))
    with pytest.raises(ValueError, match="too long"):
        codec.nested(1, codec.attribute(1, value))


# ---- what is no message ----


@given(ATTRIBUTES, st.data())
def test_cut_attributes(attributes: list[tuple[int, bytes]], data: st.DataObject) -> None:
    """However many bytes are missing at the end, those before are read or the end is refused; nothing is made up."""
    whole = packed(attributes)
    cut = data.draw(st.integers(0, len(whole)))
    try:
        found = codec.attributes(whole[:cut])
    except MalformedError:
        return
    assert found == attributes[: len(found)]


@given(MESSAGES, st.data())
def test_cut_messages(messages: list[Message], data: st.DataObject) -> None:
    """However many bytes are missing at the end, the messages before are read or the end is refused."""
    whole = sent(messages)
    cut = data.draw(st.integers(0, len(whole)))
    try:
        found = codec.messages(whole[:cut])
    except MalformedError:
        return
    assert found == messages[: len(found)]


@given(st.one_of(st.binary(max_size=200), MESSAGES.map(sent)), st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255))))
def test_changed_bytes(data: bytes, changes: list[tuple[int, int]]) -> None:
    """Whatever bytes come, every reader returns or raises MalformedError, and reads nothing twice."""
    changed = bytearray(data)
    for at, byte in changes:
        if at < len(changed):
            changed[at] = byte
    raw = bytes(changed)
    with contextlib.suppress(MalformedError):
        for message in codec.messages(raw):
            for read in (codec.parse_ack, lambda one: codec.table(one.body), lambda one: codec.word(one.body)):
                with contextlib.suppress(MalformedError):
                    read(message)
    with contextlib.suppress(MalformedError):
        assert sum(4 + len(value) for _, value in codec.attributes(raw)) <= len(raw)


def test_malformed_is_isolibs_own() -> None:
    """What is raised for such bytes is one of isolib's exceptions."""
    assert issubclass(MalformedError, IsolibError)
    assert issubclass(MalformedError, ValueError)


@pytest.mark.parametrize("size", [0, 1, 3, 9, 0xFFFF])
def test_attribute_with_an_impossible_length(size: int) -> None:
    """A length that is shorter than a header would be read for ever, and a longer one than there is beyond the end."""
    with pytest.raises(MalformedError, match=f"{size} bytes long, where 8 are left"):
        codec.attributes(struct.pack("=HHI", size, 1, 0))


@pytest.mark.parametrize("size", [0, 15, 17, 0xFFFFFFFF])
def test_message_with_an_impossible_length(size: int) -> None:
    """The same of messages."""
    with pytest.raises(MalformedError, match=f"{size} bytes long, where 16 are left"):
        codec.messages(struct.pack("=IHHII", size, 16, 0, 1, 0))


# ---- acknowledgements ----


@given(st.integers(0, 4095), WORDS, st.binary(max_size=60))
def test_acknowledgements(errno: int, text: str, body: bytes) -> None:
    """The error and the kernel's words are found behind the header of the request, and behind the whole of it."""
    request = codec.request(16, body)
    assert codec.parse_ack(ack(errno, text)) == Ack(errno, text)
    assert codec.parse_ack(ack(errno, text, request=request)) == Ack(errno, text)
    assert codec.parse_ack(ack(errno, text, kind=codec.DONE)) == Ack(errno, text)


def test_acknowledgement_without_words() -> None:
    """Where the kernel says that there are none, what follows is not taken for some: it is the request."""
    request = codec.request(16, codec.text(1, "not the kernel's"))
    assert codec.parse_ack(ack(22, request=request)) == Ack(22, "")


def test_end_of_a_dump_may_be_empty() -> None:
    """An NLMSG_DONE need not say that nothing went wrong; an NLMSG_ERROR must say what did."""
    assert codec.parse_ack(Message(codec.DONE, 0, 1, 0, b"")) == Ack(0, "")
    with pytest.raises(MalformedError, match="3 bytes"):
        codec.parse_ack(Message(codec.ERROR, 0, 1, 0, b"\0\0\0"))


@pytest.mark.parametrize("number", [1, 2**31 - 1, -4096, -(2**31)])
def test_acknowledgement_with_an_impossible_error(number: int) -> None:
    """A number that no error has is refused: no exception could be made of it."""
    with pytest.raises(MalformedError, match=str(-number)):
        codec.parse_ack(Message(codec.ERROR, 0, 1, 0, struct.pack("=i", number) + bytes(16)))


def test_acknowledgement_of_a_request_that_is_cut() -> None:
    """One that should hold the whole request, and does not even hold its header, is refused."""
    with pytest.raises(MalformedError):
        codec.parse_ack(Message(codec.ERROR, 0x200, 1, 0, struct.pack("=i", -22) + bytes(8)))


@given(ATTRIBUTES, KINDS)
def test_first_of_a_kind(attributes: list[tuple[int, bytes]], kind: int) -> None:
    """The first attribute of a kind is found, and where there is none, nothing."""
    for wanted in (kind, *(one for one, _ in attributes)):
        assert codec.first(packed(attributes), wanted) == next((value for one, value in attributes if one == wanted), None)
