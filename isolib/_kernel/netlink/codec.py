"""Netlink's messages and attributes: bytes in, values out, and back.  Nothing here knows that a kernel exists.

A message is a header and a body; the body begins with a structure of its type, and attributes follow.  An attribute is a
length, a kind and a value, padded to four bytes; the value may be attributes again.  Numbers are in the machine's order, but
those of nftables and some others in the network's.

Source: netlink(7), rtnetlink(7), linux/netlink.h.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from isolib.errors import IsolibError

__all__ = [
    "ACK",
    "CREATE",
    "DUMP",
    "EXCL",
    "HEADER",
    "REPLACE",
    "Ack",
    "MalformedError",
    "Message",
    "attribute",
    "attributes",
    "be16",
    "be32",
    "be64",
    "first",
    "flag",
    "messages",
    "nested",
    "parse_ack",
    "request",
    "s32",
    "table",
    "text",
    "u8",
    "u16",
    "u32",
    "u64",
    "word",
]

# linux/netlink.h
REQUEST: Final = 0x001
ACK: Final = 0x004
DUMP_INTERRUPTED: Final = 0x010
REPLACE: Final = 0x100
EXCL: Final = 0x200
DUMP: Final = 0x300
CREATE: Final = 0x400
APPEND: Final = 0x800
_CAPPED: Final = 0x100
_ACK_TLVS: Final = 0x200

ERROR: Final = 2
DONE: Final = 3

_NESTED: Final = 0x8000
_KIND: Final = 0x3FFF
_LONGEST: Final = 0xFFFF
_ACK_TEXT: Final = 1
_HIGHEST_ERRNO: Final = 4095

HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_U32: Final = struct.Struct("=HHI")
_ERRNO: Final = struct.Struct("=i")


class MalformedError(IsolibError, ValueError):
    """Bytes that are no netlink message: a length that is beyond the end, or shorter than a header."""


class Message(NamedTuple):
    """A message: its type, NLM_F_* flags, the number of the request that it belongs to, a port, and all after the header."""

    type: int
    flags: int
    sequence: int
    port: int
    body: bytes


class Ack(NamedTuple):
    """What a request came to: 0 or an error number, and what the kernel says about it, or an empty text."""

    errno: int
    text: str


# ---- attributes ----


def attribute(kind: int, value: bytes) -> bytes:
    r"""Return an attribute.

    Raises
    ------
    ValueError
        The value is too long for the length of an attribute: 65,531 bytes.

    Examples
    --------
    >>> attribute(3, b"lo\0").hex()
    '070003006c6f0000'
    """
    size = _ATTRIBUTE.size + len(value)
    if size > _LONGEST:
        raise ValueError(f"a value of {len(value)} bytes is too long for a netlink attribute")
    return _ATTRIBUTE.pack(size, kind) + value + bytes(-size % 4)


def nested(kind: int, *inner: bytes) -> bytes:
    """Return an attribute that holds attributes."""
    return attribute(kind | _NESTED, b"".join(inner))


def flag(kind: int) -> bytes:
    """Return an attribute without a value."""
    return attribute(kind, b"")


def text(kind: int, value: str) -> bytes:
    """Return an attribute that holds a text, with its NUL; what `word` gave goes back as it came."""
    return attribute(kind, value.encode("utf-8", "surrogateescape") + b"\0")


def u8(kind: int, value: int) -> bytes:
    """Return an attribute that holds an unsigned number of 8 bits."""
    return attribute(kind, struct.pack("=B", value))


def u16(kind: int, value: int) -> bytes:
    """Return an attribute that holds an unsigned number of 16 bits."""
    return attribute(kind, struct.pack("=H", value))


def u32(kind: int, value: int) -> bytes:
    """Return an attribute that holds an unsigned number of 32 bits."""
    return _U32.pack(_U32.size, kind, value)


def u64(kind: int, value: int) -> bytes:
    """Return an attribute that holds an unsigned number of 64 bits."""
    return attribute(kind, struct.pack("=Q", value))


def s32(kind: int, value: int) -> bytes:
    """Return an attribute that holds a signed number of 32 bits."""
    return attribute(kind, struct.pack("=i", value))


def be16(kind: int, value: int) -> bytes:
    """Return an attribute that holds an unsigned number of 16 bits in the network's order."""
    return attribute(kind, struct.pack(">H", value))


def be32(kind: int, value: int) -> bytes:
    """Return an attribute that holds an unsigned number of 32 bits in the network's order."""
    return attribute(kind, struct.pack(">I", value))


def be64(kind: int, value: int) -> bytes:
    """Return an attribute that holds an unsigned number of 64 bits in the network's order."""
    return attribute(kind, struct.pack(">Q", value))


def attributes(data: bytes, offset: int = 0) -> list[tuple[int, bytes]]:
    r"""Return the attributes from an offset on, in their order, kinds without the bits for nesting and byte order.

    Raises
    ------
    MalformedError
        A length is shorter than an attribute's header, or longer than what is there.

    Examples
    --------
    >>> attributes(bytes.fromhex("070003006c6f0000"))
    [(3, b'lo\x00')]
    """
    found = []
    end = len(data)
    while offset + _ATTRIBUTE.size <= end:
        size, kind = _ATTRIBUTE.unpack_from(data, offset)
        if size < _ATTRIBUTE.size or offset + size > end:
            raise _malformed(size, end - offset)
        found.append((kind & _KIND, data[offset + _ATTRIBUTE.size : offset + size]))
        offset += size + (-size % 4)
    return found


def first(data: bytes, kind: int, offset: int = 0) -> bytes | None:
    """Return the first attribute of a kind from an offset on, or None; what comes after it is not looked at.

    Raises
    ------
    MalformedError
        As in `attributes`.
    """
    end = len(data)
    while offset + _ATTRIBUTE.size <= end:
        size, found = _ATTRIBUTE.unpack_from(data, offset)
        if size < _ATTRIBUTE.size or offset + size > end:
            raise _malformed(size, end - offset)
        if found & _KIND == kind:
            return data[offset + _ATTRIBUTE.size : offset + size]
        offset += size + (-size % 4)
    return None


def _malformed(size: int, left: int) -> MalformedError:
    return MalformedError(f"an attribute says that it is {size} bytes long, where {left} are left")


def table(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """Return the attributes from an offset on by kind; of several of one kind, the last.

    Raises
    ------
    MalformedError
        As in `attributes`.
    """
    return dict(attributes(data, offset))


def word(value: bytes) -> str:
    """Return a text that the kernel sent: up to its NUL, undecodable bytes as surrogates."""
    return value.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


# ---- messages ----


def request(kind: int, body: bytes, *, flags: int = 0, sequence: int = 0) -> bytes:
    """Return a request.

    Parameters
    ----------
    kind
        Its type: RTM_NEWLINK.
    body
        The structure of that type, and attributes.
    flags
        NLM_F_* beside NLM_F_REQUEST.
    sequence
        A number that its answers will have.
    """
    size = HEADER.size + len(body)
    return HEADER.pack(size, kind, REQUEST | flags, sequence, 0) + body + bytes(-size % 4)


def messages(data: bytes) -> list[Message]:
    """Return the messages that were received together.

    Raises
    ------
    MalformedError
        A length is shorter than a header, or longer than what is there.
    """
    found = []
    at = 0
    end = len(data)
    while at + HEADER.size <= end:
        size, kind, flags, sequence, port = HEADER.unpack_from(data, at)
        if size < HEADER.size or at + size > end:
            raise MalformedError(f"a netlink message says that it is {size} bytes long, where {end - at} are left")
        found.append(Message(kind, flags, sequence, port, data[at + HEADER.size : at + size]))
        at += size + (-size % 4)
    return found


def parse_ack(message: Message) -> Ack:
    """Return what an NLMSG_ERROR or NLMSG_DONE says, with the text of an extended acknowledgement (Linux 4.12).

    Raises
    ------
    MalformedError
        It is too short, or its error is none.
    """
    body = message.body
    if len(body) < _ERRNO.size:
        if message.type == DONE:
            return Ack(0, "")
        raise MalformedError(f"a netlink acknowledgement of {len(body)} bytes")
    errno = -_ERRNO.unpack_from(body)[0]
    if not 0 <= errno <= _HIGHEST_ERRNO:
        raise MalformedError(f"a netlink acknowledgement with error {errno}")
    if not message.flags & _ACK_TLVS:
        return Ack(errno, "")
    offset = _ERRNO.size
    if message.type == ERROR:
        offset += HEADER.size
        if not message.flags & _CAPPED:  # the whole request stands there
            if len(body) < offset:
                raise MalformedError(f"a netlink acknowledgement of {len(body)} bytes")
            size = HEADER.unpack_from(body, _ERRNO.size)[0]
            offset = _ERRNO.size + size + (-size % 4)
    return Ack(errno, word(table(body, offset).get(_ACK_TEXT, b"")))
