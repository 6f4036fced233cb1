"""Files of captured packets: what is in their blocks, and what the kernel's memory becomes there."""

from __future__ import annotations

import struct
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolib.net import pcapng, ring
from isolib.net.pcapng import Direction, Reception

TIMES = st.integers(0, 2**64 - 1)


class Block(NamedTuple):
    """A block of a file: its type, and what is between its lengths."""

    kind: int
    body: bytes


def blocks(data: bytes) -> list[Block]:
    """Take a file apart, as the draft describes it; both lengths of a block are the same, and whole words."""
    found = []
    while data:
        kind, size = struct.unpack_from("=II", data)
        assert size % 4 == 0
        assert struct.unpack_from("=I", data, size - 4) == (size,)
        found.append(Block(kind, data[8 : size - 4]))
        data = data[size:]
    return found


def options(data: bytes) -> dict[int, bytes]:
    """Take the options of a block apart, which end with one of its own."""
    found: dict[int, bytes] = {}
    while data:
        kind, size = struct.unpack_from("=HH", data)
        if not kind:
            assert data == bytes(4)
            return found
        assert kind not in found
        found[kind] = data[4 : 4 + size]
        data = data[4 + size + -size % 4 :]
    assert not found
    return found


def test_section() -> None:
    """A file begins with its magic number, the version, no length, and who made it; what is not known is left out."""
    [section] = blocks(pcapng.section(hardware="x86_64", system="Linux", application="isolib"))
    assert section.kind == 0x0A0D0D0A
    assert struct.unpack_from("=IHHq", section.body) == (0x1A2B3C4D, 1, 0, -1)
    assert options(section.body[16:]) == {2: b"x86_64", 3: b"Linux", 4: b"isolib"}
    assert blocks(pcapng.section())[0].body[16:] == b""


@given(st.text(max_size=20), st.integers(0, 2**32 - 1), st.sampled_from([b"", b"\2\0\0\0\0\1"]))
def test_interface(name: str, snaplen: int, mac: bytes) -> None:
    """An interface has its name, address and length, and times in nanoseconds."""
    [block] = blocks(pcapng.interface_block(name, pcapng.ETHERNET, snaplen=snaplen, mac=mac))
    assert block.kind == 1
    assert struct.unpack_from("=HHI", block.body) == (1, 0, snaplen)
    found = options(block.body[8:])
    assert found[9] == b"\x09"
    assert found.get(2, b"").decode() == name
    assert found.get(6, b"") == mac


def test_texts_that_cannot_be() -> None:
    """A name that is no text is written with its bytes spelt out, and one that is too long is cut: the file stays one."""
    [block] = blocks(pcapng.interface_block("eth\udcff", pcapng.ETHERNET, description="x" * 70_000))
    found = options(block.body[8:])
    assert found[2] == rb"eth\xff"
    assert len(found[3]) == 65_535


@given(TIMES, st.binary(max_size=100), st.integers(0, 2**32 - 1), st.sampled_from(Direction), st.sampled_from(Reception))
def test_packet(time: int, data: bytes, size: int, direction: Direction, reception: Reception) -> None:
    """A packet has its time, in two halves, what is kept, how long it was, whether it came or went, and for whom."""
    [block] = blocks(pcapng.packet_block(time, data, size, direction, reception, interface=3))
    assert block.kind == 6
    interface, high, low, kept, whole = struct.unpack_from("=IIIII", block.body)
    assert (interface, high << 32 | low, kept, whole) == (3, time, len(data), size)
    assert block.body[20 : 20 + kept] == data
    found = options(block.body[20 + kept + -kept % 4 :])
    assert struct.unpack("=I", found[2]) == (direction | reception << 2,)


@given(TIMES, st.none() | st.integers(0, 2**64 - 1))
def test_statistics(time: int, dropped: int | None) -> None:
    """What was counted is there, and what was not counted is left out."""
    [block] = blocks(pcapng.statistics_block(time, start=time, end=time, received=7, dropped=dropped, delivered=5))
    assert block.kind == 5
    assert struct.unpack_from("=III", block.body) == (0, time >> 32, time & 0xFFFFFFFF)
    found = options(block.body[12:])
    assert found[2] == found[3] == block.body[4:12]
    assert (found[4], found[8]) == (struct.pack("=Q", 7), struct.pack("=Q", 5))
    assert found.get(5) == (None if dropped is None else struct.pack("=Q", dropped))


# ---- the kernel's memory ----


def in_ring(*frames: tuple[bytes, int, int, int, int]) -> bytes:
    """Return frames as the kernel puts them in a block: data, how long it was, type, status, VLAN (tag << 16 | protocol)."""
    found = b""
    for at, (data, size, kind, status, vlan) in enumerate(frames):
        head = struct.pack("@IIIIIIHHIIHH8x", 0, 100 + at, at, len(data), size, status, 82, 96, 0, vlan >> 16, vlan & 0xFFFF, 0)
        frame = head + struct.pack("=HHiHBB8s", 17, 0, 1, 1, kind, 6, bytes(8))
        frame = frame.ljust(82, b"\xee") + data
        frame += bytes(-len(frame) % 16)
        found += struct.pack("@I", len(frame)) + frame[4:]
    return found


def written(frames: bytes, count: int, snaplen: int = 65_536) -> list[tuple[int, bytes, int, int]]:
    """Return time, data, length and flags of what is written of a block."""
    found = []
    for [block] in map(blocks, ring.packets(frames, 0, count, snaplen)):
        _, high, low, kept, size = struct.unpack_from("=IIIII", block.body)
        flags = struct.unpack("=I", options(block.body[20 + kept + -kept % 4 :])[2])[0]
        found.append((high << 32 | low, block.body[20 : 20 + kept], size, flags))
    return found


@pytest.mark.parametrize(
    ("kind", "direction", "reception"),
    [
        (0, Direction.INBOUND, Reception.UNICAST),
        (1, Direction.INBOUND, Reception.BROADCAST),
        (2, Direction.INBOUND, Reception.MULTICAST),
        (3, Direction.INBOUND, Reception.PROMISCUOUS),
        (4, Direction.OUTBOUND, Reception.UNKNOWN),
        (200, Direction.UNKNOWN, Reception.UNKNOWN),
    ],
)
def test_kinds_of_packets(kind: int, direction: Direction, reception: Reception) -> None:
    """The kernel's type of a packet becomes its direction and whom it was for."""
    [(time, data, size, flags)] = written(in_ring((b"frame", 9, kind, 1, 0)), 1)
    assert (time, data, size) == (100 * 10**9, b"frame", 9)
    assert flags == direction | reception << 2


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_several_packets(frames: list[bytes]) -> None:
    """The packets of a block are written in their order, each with its time."""
    memory = in_ring(*((data, len(data), 0, 1, 0) for data in frames))
    found = written(memory, len(frames))
    assert [data for _, data, *_ in found] == frames
    assert [time for time, *_ in found] == [(100 + at) * 10**9 + at for at in range(len(frames))]


def test_tag_of_a_vlan_is_put_in_again() -> None:
    """The tag that the kernel has taken out stands behind the addresses again, by its own protocol, and counts as length."""
    frame = bytes(range(12)) + b"\x08\x00" + b"payload"
    plain, service = 1 << 4 | 1, 1 << 4 | 1 << 6 | 1
    first, second = (frame, 500, 0, plain, 0x2005_0000), (frame, 500, 0, service, 0x0007_88A8)
    memory = in_ring(first, second, (b"short", 5, 0, plain, 1 << 16))
    tagged, other, short = written(memory, 3)
    assert tagged[1:3] == (frame[:12] + b"\x81\x00\x20\x05" + frame[12:], 504)
    assert other[1:3] == (frame[:12] + b"\x88\xa8\x00\x07" + frame[12:], 504)
    assert short[1:3] == (b"short", 5)
    assert written(memory, 1, snaplen=14)[0][1:3] == (frame[:12] + b"\x81\x00", 504)


@given(st.integers(1, ring.LONGEST))
def test_a_packet_fits_in_a_block(snaplen: int) -> None:
    """A block holds the longest packet that is kept, with what is beside it, and is a power of two."""
    size = ring.block_size(snaplen)
    assert size.bit_count() == 1
    assert snaplen + 1024 < size <= 2**19
