"""The codec of device-mapper, and what is said to a thin pool."""

from __future__ import annotations

import errno
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolib import PlanError, SyscallError
from isolib._kernel.devicemapper import Target, decode, decode_names, decode_targets, encode, encode_targets
from isolib.unionfs.drivers.devicemapper import mkfs_argv, mount_options
from isolib.unionfs.drivers.thin import PoolStatus, parse_pool, parse_thin, pool_table, thin_table

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=300)
KINDS = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=15)
SECTORS = st.integers(0, 2**64 - 1)
TARGETS = st.lists(st.builds(Target, SECTORS, SECTORS, KINDS, TEXT), max_size=5)


def test_a_request_is_laid_out_as_the_kernel_has_it() -> None:
    """A request begins with the version, has the name at byte 48, and its data at byte 312."""
    request = encode("pool", flags=0x20002, targets=1, data=b"data")
    assert struct.unpack_from("=3I", request) == (4, 27, 0)
    size, start, targets, flags = struct.unpack_from("=3I4xI", request, 12)
    assert (size, start, targets, flags) == (316, 312, 1, 0x20002)
    assert request[48:53] == b"pool\0"
    assert request[312:] == b"data"


def test_a_target_is_aligned() -> None:
    """Each line of a table begins at a multiple of eight bytes, and says where the next one begins."""
    table = encode_targets([Target(0, 8, "thin", "253:0 1"), Target(8, 8, "zero", "")])
    assert struct.unpack_from("=QQiI16s", table) == (0, 8, 0, 48, b"thin" + bytes(12))
    assert table[40:48] == b"253:0 1\0"
    assert struct.unpack_from("=QQiI16s", table, 48)[3] == len(table) - 48 == 48


@given(TARGETS)
def test_tables_come_back(targets: list[Target]) -> None:
    """What is told of a table is what it was made of, where each line says from the beginning where the next one is."""
    data, at, moved = encode_targets(targets), 0, bytearray()
    while at < len(data):
        start, length, status, size, kind = struct.unpack_from("=QQiI16s", data, at)
        moved += struct.pack("=QQiI16s", start, length, status, at + size, kind) + data[at + 40 : at + size]
        at += size
    assert decode_targets(bytes(moved), len(targets)) == targets


@given(st.text("abc-0123", min_size=1, max_size=127), st.binary(max_size=50), st.integers(0, 2**32 - 1))
def test_requests_come_back(name: str, data: bytes, flags: int) -> None:
    """An answer is read by the layout that a request is written in."""
    answer = decode(encode(name, flags=flags, data=data))
    assert (answer.device.name, answer.flags, answer.data) == (name, flags, data)
    assert (answer.device.is_suspended, answer.device.has_table) == (bool(flags & 2), bool(flags & 32))


@pytest.mark.parametrize("name", ["x" * 128, "a/b", "a\0b"])
def test_names_that_are_none_are_refused(name: str) -> None:
    """A name that the kernel would cut or take apart is refused before it is asked."""
    with pytest.raises(PlanError):
        encode(name)


def test_devices_are_listed() -> None:
    """Of a list of devices each has its number; an empty list is one entry without a number."""
    one = struct.pack("=QI", 0xFD00, 24) + b"first\0".ljust(12, b"\0")
    two = struct.pack("=QI", 0xFD01, 0) + b"second\0"
    assert decode_names(one + two) == {"first": 0xFD00, "second": 0xFD01}
    assert decode_names(struct.pack("=QI", 0, 0) + bytes(8)) == {}
    assert decode_names(b"") == {}


def test_tables_of_pools_and_devices() -> None:
    """A pool has blocks of 64 KiB, zeroes them, and refuses at once when it is full; a device names its pool and its number."""
    pool = pool_table(os.makedev(7, 0), os.makedev(7, 300), (1 << 30) + 5)
    assert pool == Target(0, 2097152, "thin-pool", "7:0 7:300 128 0 1 error_if_no_space")
    assert thin_table(os.makedev(253, 0), 5, 1 << 20) == Target(0, 2048, "thin", "253:0 5")


def test_what_a_pool_says() -> None:
    """Of the status of a pool is read whether it has failed, and whether it is full: by data, metadata or its own word."""
    status = parse_pool("3 17/2048 10/16384 - rw discard_passdown error_if_no_space - 1024")
    assert status == PoolStatus(3, 17, 2048, 10, 16384, "rw")
    assert not status.is_full
    for text in ("3 17/2048 16384/16384 - rw x", "3 2048/2048 1/16384 - ro x", "3 1/2 1/3 - out_of_data_space x"):
        assert parse_pool(text).is_full
    for text in ("Fail", "Error", ""):
        with pytest.raises(SyscallError) as caught:
            parse_pool(text)
        assert caught.value.errno == errno.ENXIO


def test_what_a_device_says() -> None:
    """Of a thin device is read how many bytes are mapped; that it has failed is an error."""
    assert parse_thin("2048 4095") == 1 << 20
    assert parse_thin("0 -") == 0
    for text in ("Fail", "-", ""):
        with pytest.raises(SyscallError):
            parse_thin(text)


def test_how_file_systems_are_made_and_mounted() -> None:
    """Nothing is written that a new device has already, and copies of one XFS can be mounted together."""
    ext4 = "/sbin/mkfs.ext4 -q -F -m 0 -E nodiscard,lazy_itable_init=1,lazy_journal_init=1 /dev/x"
    assert mkfs_argv("ext4", "/sbin/mkfs.ext4", "/dev/x") == ext4.split()
    assert mkfs_argv("xfs", "/sbin/mkfs.xfs", "/dev/x") == ["/sbin/mkfs.xfs", "-q", "-f", "-K", "/dev/x"]
    assert mount_options("ext4", "/dev/x") == {"source": "/dev/x", "discard": None, "noinit_itable": None}
    assert mount_options("xfs", "/dev/x") == {"source": "/dev/x", "discard": None, "nouuid": None}
