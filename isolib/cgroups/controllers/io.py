"""Disk I/O (Documentation/admin-guide/cgroup-v2.rst, IO; cgroup-v1/blkio-controller.rst)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from isolib.cgroups.controllers.knobs import Controller
from isolib.cgroups.files import parse_nested
from isolib.cgroups.values import IoLimit, device_number, microseconds, parse_weight
from isolib.errors import PlanError, Unsupported

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from datetime import timedelta
    from typing import TypeAlias

    Device: TypeAlias = str | os.PathLike[str] | tuple[int, int]

__all__ = ["STAT_FILES", "DeviceIo", "Io", "load_stat", "load_v1_stat", "parse_max", "total"]

_KEYS: Final = ("rbps", "wbps", "riops", "wiops")
_V1_FILES: Final = {
    "rbps": "blkio.throttle.read_bps_device",
    "wbps": "blkio.throttle.write_bps_device",
    "riops": "blkio.throttle.read_iops_device",
    "wiops": "blkio.throttle.write_iops_device",
}
_V1_BYTES: Final = "blkio.throttle.io_service_bytes_recursive"
_V1_OPERATIONS: Final = "blkio.throttle.io_serviced_recursive"
#: BFQ's files: the weights of both versions have the default of 100, but BFQ goes to 1000 only (block/bfq-cgroup.c).
_BFQ: Final = ("io.bfq.weight", "blkio.bfq.weight")
_BFQ_MOST: Final = 1000


@dataclass(frozen=True, slots=True)
class DeviceIo:
    """What a group has read from and written to one device.

    Attributes
    ----------
    read_bytes, written_bytes, discarded_bytes
        In bytes.
    reads, writes, discards
        In operations.
    """

    read_bytes: int = 0
    written_bytes: int = 0
    reads: int = 0
    writes: int = 0
    discarded_bytes: int = 0
    discards: int = 0


def parse_max(value: object, what: str) -> dict[tuple[int, int], IoLimit]:
    """Return limits by device number: ``{"/dev/sda": IoLimit(wbps="10M")}``.

    Raises
    ------
    PlanError
        It is no such mapping, or there is no such device.
    """
    if not hasattr(value, "items"):
        raise PlanError(f"{what}: limits by device are wanted, {{'/dev/sda': IoLimit(wbps='10M')}}, not {value!r}")
    found = {}
    for device, limit in value.items():
        if not isinstance(limit, IoLimit):
            raise PlanError(f"{what}: {device!r}: an IoLimit is wanted, not {limit!r}")
        found[device_number(device, what)] = limit
    return found


class Io(Controller):
    """The disk I/O of a group.

    Rates are kept where the I/O is issued: in cgroup v2 also what the kernel writes back later, in v1 only direct and
    synchronous I/O.
    """

    name = "io"

    @property
    def max(self) -> dict[tuple[int, int], IoLimit]:
        """The most for each device that has a limit, by ``(major, minor)``.  Assigning leaves other devices as they are."""
        found: dict[tuple[int, int], dict[str, int]] = {}
        if self.is_v2:
            lines = parse_nested(self.read("io.max", None, "max").encode())
            for name, limits in lines.items():
                if ":" in name:
                    known = {key: int(text) for key, text in limits.items() if text != "max" and key in _KEYS}
                    found[_number(name)] = known
        else:
            for key, file in _V1_FILES.items():
                for line in self.read(None, file, "max").splitlines():
                    name, rate = line.split()
                    if ":" in name:
                        found.setdefault(_number(name), {})[key] = int(rate)
        return {device: IoLimit(**limits) for device, limits in found.items() if limits}

    @max.setter  # noqa: A003 - the property
    def max(self, value: Mapping[Device, IoLimit]) -> None:
        for (major, minor), limit in parse_max(value, "io.max").items():
            if self.is_v2:
                pairs = " ".join(f"{key}={'max' if (rate := getattr(limit, key)) is None else rate}" for key in _KEYS)
                self.write("io.max", None, "max", f"{major}:{minor} {pairs}")
                continue
            for key, file in _V1_FILES.items():
                self.write(None, file, "max", f"{major}:{minor} {getattr(limit, key) or 0}")

    @property
    def weight(self) -> int:
        """The group's part of what its siblings compete for, 1 to 10000; 100 at first (iocost, or BFQ to 1000).

        Raises
        ------
        Unsupported
            Neither is in the kernel.
        """
        file = self._weight_file()
        first = self.directory.read(file).splitlines()[0]  # "default 100"; weights for single devices follow
        return int(first.split()[-1])

    @weight.setter
    def weight(self, value: int) -> None:
        wanted = parse_weight(value, "io.weight")
        file = self._weight_file()
        if file in _BFQ and wanted > _BFQ_MOST:
            raise Unsupported(
                f"io.weight = {wanted}", f"the BFQ scheduler, whose weights end at {_BFQ_MOST} ({file})", "a smaller weight"
            )
        self.directory.write(file, str(wanted))

    def _weight_file(self) -> str:
        names = ("io.weight", _BFQ[0]) if self.is_v2 else ("blkio.weight", _BFQ[1])
        for name in names:
            if self.directory.has(name):
                return name
        raise Unsupported(
            "io.weight of a control group",
            f"the kernel, which has neither iocost nor BFQ ({self.directory.path})",
            "CONFIG_BLK_CGROUP_IOCOST, or modprobe bfq and select it for the disk",
        )

    def set_latency(self, device: Device, target: float | timedelta | None) -> None:
        """Protect the group's latency on a device: when it misses the target, others are slowed down (v2, io.latency).

        Parameters
        ----------
        device
            As in `max`.
        target
            Seconds or a timedelta; None: no target.
        """
        major, minor = device_number(device)
        wanted = 0 if target is None else microseconds(target, "io.latency")
        self.write("io.latency", None, "latency", f"{major}:{minor} target={wanted}")

    @property
    def latency(self) -> dict[tuple[int, int], float]:
        """The targets that were set, in seconds."""
        lines = parse_nested(self.read("io.latency", None, "latency").encode())
        return {_number(name): int(pairs["target"]) / 1e6 for name, pairs in lines.items()}

    def stat(self) -> dict[tuple[int, int], DeviceIo]:
        """Return what was read and written, by device."""
        if self.is_v2:
            return load_stat(self.read("io.stat", None, "stat").encode())
        return load_v1_stat(self.read(None, _V1_BYTES, "stat").encode(), self.read(None, _V1_OPERATIONS, "stat").encode())


def _number(name: str) -> tuple[int, int]:
    # Not everything has a number: a device that is gone, and a hidden path of an NVMe disk, are "(unknown)".
    major, _, minor = name.partition(":")
    return int(major), int(minor)


def load_stat(data: bytes) -> dict[tuple[int, int], DeviceIo]:
    """Return what io.stat of v2 says."""
    names = ("rbytes", "wbytes", "rios", "wios", "dbytes", "dios")
    found = {}
    for name, pairs in parse_nested(data).items():
        if ":" in name:
            found[_number(name)] = DeviceIo(*(int(pairs.get(key, "0")) for key in names))
    return found


def load_v1_stat(amounts: bytes, operations: bytes) -> dict[tuple[int, int], DeviceIo]:
    """Return what the files of v1 say: lines ``8:0 Read 4096``, and a total at the end."""
    found: dict[tuple[int, int], dict[str, int]] = {}
    for data, names in (
        (amounts, {"Read": "read_bytes", "Write": "written_bytes", "Discard": "discarded_bytes"}),
        (operations, {"Read": "reads", "Write": "writes", "Discard": "discards"}),
    ):
        for line in data.decode("ascii", "replace").splitlines():
            words = line.split()
            if len(words) == 3 and words[1] in names and ":" in words[0]:  # noqa: PLR2004 - device, operation, number
                found.setdefault(_number(words[0]), {})[names[words[1]]] = int(words[2])
    return {device: DeviceIo(**numbers) for device, numbers in found.items()}


def total(devices: Mapping[tuple[int, int], DeviceIo]) -> tuple[int, int]:
    """Return the bytes read and written, of all devices together."""
    return sum(one.read_bytes for one in devices.values()), sum(one.written_bytes for one in devices.values())


#: Files that `stat` reads, by version.
STAT_FILES: Final = {2: ("io.stat",), 1: (_V1_BYTES, _V1_OPERATIONS)}
