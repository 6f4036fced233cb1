"""Disk I/O: limits by device, weights, latency, and what was read and written."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolib.cgroups.controllers.io import DeviceIo, Io, load_stat, load_v1_stat, total
from isolib.cgroups.files import parse_nested
from isolib.cgroups.values import IoLimit
from isolib.errors import PlanError, Unsupported
from tests.recorded import MIB, group

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.recorded import Recorded

DISK = (8, 0)


@pytest.fixture
def v2(tmp_path: Path) -> Iterator[Recorded]:
    """Return a new group of v2."""
    with group(tmp_path / "v2", 2) as directory:
        yield directory


@pytest.fixture
def v1(tmp_path: Path) -> Iterator[Recorded]:
    """Return a new group of v1."""
    with group(tmp_path / "v1", 1) as directory:
        yield directory


# ---- limits ----


def test_limits_in_v2(v2: Recorded) -> None:
    """One line sets all four rates of a device, in v2's own words."""
    io = Io(v2)
    io.max = {"8:0": IoLimit(wbps="1M", riops=100)}
    assert v2.writes == [("io.max", "8:0 rbps=max wbps=1048576 riops=100 wiops=max")]
    assert io.max == {DISK: IoLimit(wbps=MIB, riops=100)}
    io.max = {DISK: IoLimit()}
    assert io.max == {}


def test_limits_in_v1(v1: Recorded) -> None:
    """Each rate has its file, and 0 is no limit."""
    io = Io(v1)
    io.max = {DISK: IoLimit(wbps="1M", riops=100)}
    assert v1.writes == [
        ("blkio.throttle.read_bps_device", "8:0 0"),
        ("blkio.throttle.write_bps_device", "8:0 1048576"),
        ("blkio.throttle.read_iops_device", "8:0 100"),
        ("blkio.throttle.write_iops_device", "8:0 0"),
    ]
    for name in ("read_bps", "write_iops"):  # the kernel shows no line for what has no limit
        v1.show(f"blkio.throttle.{name}_device", "")
    assert io.max == {DISK: IoLimit(wbps=MIB, riops=100)}


def test_limits_of_several_disks(v2: Recorded, v1: Recorded) -> None:
    """Every device is written by itself, and what was set for others is read too."""
    for io, directory in ((Io(v2), v2), (Io(v1), v1)):
        io.max = {(8, 0): IoLimit(rbps=1), (8, 16): IoLimit(rbps=2)}
        assert [value.split()[0] for _, value in directory.writes].count("8:16") == (1 if io.is_v2 else 4)
    v2.show("io.max", "8:0 rbps=1 wbps=max riops=max wiops=max\n8:16 rbps=max wbps=2 riops=max wiops=max\n")
    v1.show("blkio.throttle.read_bps_device", "8:0 1\n8:16 3\n")
    v1.show("blkio.throttle.write_bps_device", "8:16 2\n")
    for name in ("read_iops", "write_iops"):
        v1.show(f"blkio.throttle.{name}_device", "")
    assert Io(v2).max == {(8, 0): IoLimit(rbps=1), (8, 16): IoLimit(wbps=2)}
    assert Io(v1).max == {(8, 0): IoLimit(rbps=1), (8, 16): IoLimit(rbps=3, wbps=2)}


def test_disk_without_a_number(v2: Recorded, v1: Recorded) -> None:
    """A hidden path of an NVMe disk, which the kernel calls (unknown), is passed over, and the others are read."""
    v2.show("io.max", "(unknown) rbps=5 wbps=max riops=max wiops=max\n8:0 rbps=1 wbps=max riops=max wiops=max\n")
    v1.show("blkio.throttle.read_bps_device", "(unknown) 5\n8:0 1\n")
    assert Io(v2).max == Io(v1).max == {DISK: IoLimit(rbps=1)}
    v2.show("io.stat", "(unknown) rbytes=5 wbytes=6\n8:0 rbytes=1 wbytes=2 rios=3 wios=4\n")
    v1.show("blkio.throttle.io_service_bytes_recursive", "(unknown) Read 5\n8:0 Read 1\n8:0 Write 2\nTotal 8\n")
    v1.show("blkio.throttle.io_serviced_recursive", "(unknown) Read 5\n8:0 Read 3\n8:0 Write 4\nTotal 8\n")
    assert Io(v2).stat() == Io(v1).stat() == {DISK: DeviceIo(1, 2, 3, 4)}


# ---- weight and latency ----


@pytest.mark.parametrize(
    ("file", "text"), [("io.weight", "default 100\n8:16 200\n"), ("io.bfq.weight", "default 100\n8:16 200\n")]
)
def test_weights_by_device(v2: Recorded, file: str, text: str) -> None:
    """The weight is the default one of the group, also where somebody has given it another one for one disk."""
    v2.show(file, text)
    assert Io(v2).weight == 100


def test_weight_prefers_iocost(v2: Recorded) -> None:
    """Where the kernel has iocost its file is used, and its weights go to 10000."""
    v2.show("io.weight", "default 100\n")
    io = Io(v2)
    io.weight = 10000
    assert v2.writes == [("io.weight", "10000")]


def test_weight_of_bfq(v2: Recorded, v1: Recorded) -> None:
    """A weight that BFQ cannot keep is Unsupported, and nothing is written."""
    for directory in (v2, v1):
        with pytest.raises(Unsupported, match="1000"):
            Io(directory).weight = 1001
        assert directory.writes == []


def test_no_weight(v2: Recorded, v1: Recorded) -> None:
    """A kernel with neither iocost nor BFQ is named as what refuses, and so is what would help."""
    for directory, file in ((v2, "io.bfq.weight"), (v1, "blkio.bfq.weight")):
        os.unlink(f"{directory.path}/{file}")
        io = Io(directory)
        with pytest.raises(Unsupported, match=r"neither iocost nor BFQ.*modprobe bfq"):
            assert io.weight
        with pytest.raises(Unsupported, match="neither iocost nor BFQ"):
            io.weight = 5


def test_latency(v2: Recorded, v1: Recorded) -> None:
    """A target is written in microseconds and read in seconds, and none is 0."""
    io = Io(v2)
    io.set_latency("8:0", 0.01)
    assert io.latency == {DISK: 0.01}
    io.set_latency(DISK, None)
    assert v2.writes == [("io.latency", "8:0 target=10000"), ("io.latency", "8:0 target=0")]
    with pytest.raises(Unsupported, match="cgroup v1"):
        Io(v1).set_latency("8:0", 0.01)
    for device, target in (("8:0", -1), ("/dev/null", 1)):
        with pytest.raises(PlanError):
            io.set_latency(device, target)


# ---- what was read and written ----


def test_stat(v2: Recorded, v1: Recorded) -> None:
    """Both versions count bytes and operations, discards too."""
    expected = DeviceIo(4096, 8192, 1, 2, 16, 3)
    assert Io(v2).stat() == {DISK: expected, (254, 1): DeviceIo()}
    assert Io(v1).stat() == {DISK: expected}
    assert total(Io(v2).stat()) == (4096, 8192)


def test_disks_that_share_a_line() -> None:
    """Some kernels end no line for a disk that has done nothing: what follows is of the last disk before it."""
    found = load_stat(b"7:7 7:6 7:5 8:0 rbytes=1 wbytes=2 rios=3 wios=4\n7:3 rbytes=9\n")
    assert found == {
        (8, 0): DeviceIo(1, 2, 3, 4),
        (7, 3): DeviceIo(9),
        **dict.fromkeys([(7, 7), (7, 6), (7, 5)], DeviceIo()),
    }


NUMBERS = st.integers(min_value=0, max_value=2**64 - 1)
DEVICES = st.tuples(st.integers(min_value=0, max_value=4095), st.integers(min_value=0, max_value=2**20 - 1))
COUNTS = st.dictionaries(DEVICES, st.builds(DeviceIo, *[NUMBERS] * 6), max_size=5)


@given(COUNTS)
def test_any_stat(devices: dict[tuple[int, int], DeviceIo]) -> None:
    """What a kernel of either version writes for any counts is read as the same counts."""
    new = "".join(
        f"{major}:{minor} rbytes={one.read_bytes} wbytes={one.written_bytes} rios={one.reads} wios={one.writes} "
        f"dbytes={one.discarded_bytes} dios={one.discards} cost.usage=7\n"
        for (major, minor), one in devices.items()
    )
    assert load_stat(new.encode()) == devices
    amounts, operations = ("".join(v1_lines(devices, *names)) for names in (BYTES, OPERATIONS))
    assert load_v1_stat(amounts.encode(), operations.encode()) == devices


BYTES = ("read_bytes", "written_bytes", "discarded_bytes")
OPERATIONS = ("reads", "writes", "discards")


def v1_lines(devices: dict[tuple[int, int], DeviceIo], *names: str) -> Iterator[str]:
    """Yield the lines of one file of v1."""
    for (major, minor), one in devices.items():
        for word, name in zip(("Read", "Write", "Discard"), names, strict=True):
            yield f"{major}:{minor} {word} {getattr(one, name)}\n"
        yield f"{major}:{minor} Sync 5\n{major}:{minor} Async 6\n{major}:{minor} Total 7\n"
    yield "Total 99\n"


@given(st.binary(max_size=200), st.text(alphabet="8:0 =\nrbytesReadWrite()9", max_size=100))
def test_any_bytes(data: bytes, text: str) -> None:
    """Whatever a file holds ends in a value or in a ValueError."""
    for content in (data, text.encode()):
        parse_nested(content)
        for load in (load_stat, lambda content: load_v1_stat(content, content)):
            try:
                found = load(content)
            except ValueError:
                continue
            assert all(isinstance(one, DeviceIo) for one in found.values())
