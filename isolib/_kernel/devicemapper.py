"""Device-mapper: the codec of its ioctls, and the conversation with it (linux/dm-ioctl.h).

Every request is one buffer, ``struct dm_ioctl`` and what belongs to it behind; the answer comes back in the same one.  The
codec is pure.  Device nodes are made where nobody else sees them, so nothing here waits for udev or needs a /dev.
"""

from __future__ import annotations

import fcntl
import os
import stat
from dataclasses import dataclass
from errno import ENOENT, ENXIO
from struct import Struct
from typing import TYPE_CHECKING, Final

from isolib._kernel.handle import Fd
from isolib._kernel.mountapi import new_mount
from isolib.errors import PlanError, SyscallError, from_errno

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Device", "DeviceMapper", "Nodes", "Target", "decode", "decode_names", "decode_targets", "encode", "encode_targets"]

#: Version, whole size, where the data starts, targets, open count, flags, event, nothing, device, name, uuid, nothing.
_HEADER: Final = Struct("=3IIIIiIIIQ128s129s7x")
_TARGET: Final = Struct("=QQiI16s")  # first sector, sectors, status, where the next one is, type
_NAME: Final = Struct("=QI")  # device, where the next one is
_MESSAGE: Final = Struct("=Q")  # sector
#: The oldest version of the interface with all that is used here: DM_DEFERRED_REMOVE, Linux 3.13.
_VERSION: Final = (4, 27, 0)
_NAME_MAX: Final = 127
_TYPE_MAX: Final = 15
_ALIGN: Final = 8
_ROOM: Final = 16384
_MOST_ROOM: Final = 1 << 24

_DEV_CREATE, _DEV_REMOVE, _DEV_SUSPEND, _DEV_STATUS = 3, 4, 6, 7
_LIST_DEVICES, _TABLE_LOAD, _TABLE_STATUS, _TARGET_MSG = 2, 9, 12, 14
_OPS: Final = {
    _LIST_DEVICES: "DM_LIST_DEVICES",
    _DEV_CREATE: "DM_DEV_CREATE",
    _DEV_REMOVE: "DM_DEV_REMOVE",
    _DEV_SUSPEND: "DM_DEV_SUSPEND",
    _DEV_STATUS: "DM_DEV_STATUS",
    _TABLE_LOAD: "DM_TABLE_LOAD",
    _TABLE_STATUS: "DM_TABLE_STATUS",
    _TARGET_MSG: "DM_TARGET_MSG",
}
_IOCTL: Final = 0xC0000000 | _HEADER.size << 16 | 0xFD << 8  # _IOWR(DM_IOCTL, ..., struct dm_ioctl)

_SUSPEND: Final = 1 << 1
_ACTIVE_PRESENT: Final = 1 << 5
_BUFFER_FULL: Final = 1 << 8
_DEFERRED_REMOVE: Final = 1 << 17

#: Documentation/admin-guide/devices.txt
_CONTROL: Final = os.makedev(10, 236)

SECTOR: Final = 512


# ---- the codec ----


@dataclass(frozen=True, slots=True)
class Target:
    """One line of a table, or of its status.

    Attributes
    ----------
    start, length
        Sectors of 512 bytes.
    kind
        ``thin-pool``, ``thin``.
    text
        Its parameters, or what it says of itself.
    """

    start: int
    length: int
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Device:
    """What the kernel tells of a device."""

    name: str
    number: int
    open_count: int
    is_suspended: bool
    has_table: bool
    is_going: bool
    """Whether it is removed when nobody has it open any more."""


@dataclass(frozen=True, slots=True)
class _Answer:
    device: Device
    targets: int
    flags: int
    data: bytes


def _check(name: str, longest: int, what: str) -> bytes:
    encoded = os.fsencode(name)
    if len(encoded) > longest or any(byte in encoded for byte in b"/\0"):
        raise PlanError(f"no {what} of device-mapper: {name!r}")
    return encoded


def encode(name: str, *, flags: int = 0, targets: int = 0, data: bytes = b"", room: int = 0) -> bytearray:
    """Return a request, with so much room for the answer's data."""
    size = _HEADER.size + max(len(data), room)
    header = (*_VERSION, size, _HEADER.size, targets, 0, flags, 0, 0, 0, _check(name, _NAME_MAX, "name"), b"")
    return bytearray(_HEADER.pack(*header) + data.ljust(size - _HEADER.size, b"\0"))


def encode_targets(targets: Sequence[Target]) -> bytes:
    """Return a table as DM_TABLE_LOAD takes it."""
    found = bytearray()
    for target in targets:
        text = os.fsencode(target.text) + b"\0"
        size = _TARGET.size + len(text)
        size += -size % _ALIGN
        kind = _check(target.kind, _TYPE_MAX, "target")
        found += (_TARGET.pack(target.start, target.length, 0, size, kind) + text).ljust(size, b"\0")
    return bytes(found)


def decode(answer: bytes | bytearray) -> _Answer:
    """Return what the kernel has answered."""
    fields = _HEADER.unpack_from(answer)
    size, start, targets, opened, flags, number, name = (
        fields[3],
        fields[4],
        fields[5],
        fields[6],
        fields[7],
        fields[10],
        fields[11],
    )
    device = Device(
        name=os.fsdecode(name.partition(b"\0")[0]),
        number=number,
        open_count=opened,
        is_suspended=bool(flags & _SUSPEND),
        has_table=bool(flags & _ACTIVE_PRESENT),
        is_going=bool(flags & _DEFERRED_REMOVE),
    )
    return _Answer(device, targets, flags, bytes(answer[start:size]))


def decode_targets(data: bytes, count: int) -> list[Target]:
    """Return the lines of a table or of its status; where the next one is, is told from the start of the data."""
    found, at = [], 0
    for _ in range(count):
        start, length, _, following, kind = _TARGET.unpack_from(data, at)
        text = data[at + _TARGET.size :].partition(b"\0")[0]
        found.append(Target(start, length, os.fsdecode(kind.rstrip(b"\0")), os.fsdecode(text)))
        at = following
    return found


def decode_names(data: bytes) -> dict[str, int]:
    """Return the devices that DM_LIST_DEVICES lists: numbers by names."""
    found, at, following = {}, 0, -1
    while following and at + _NAME.size <= len(data):
        number, following = _NAME.unpack_from(data, at)
        if number:  # none at all: one that is empty
            found[os.fsdecode(data[at + _NAME.size :].partition(b"\0")[0])] = number
        at += following
    return found


# ---- the kernel ----


class Nodes:
    """A place for device nodes, in memory and attached nowhere: it is gone with its descriptor.

    Raises
    ------
    SyscallError
        PermissionDenied without CAP_SYS_ADMIN and CAP_MKNOD on the host: a user namespace has no nodes that can be opened.
    """

    def __init__(self) -> None:
        self.fd = Fd(new_mount("tmpfs", {"mode": "700", "size": "1M"}))

    def path(self, device: int, kind: int = stat.S_IFBLK) -> str:
        """Return a path of a device's node, for this process."""
        name = f"{stat.S_IFMT(kind):o}-{device:x}"
        try:
            os.mknod(name, kind | 0o600, device, dir_fd=self.fd.fileno())
        except FileExistsError:
            pass
        except OSError as error:
            raise from_errno("mknodat", name, error.errno or 0) from None
        return f"/proc/self/fd/{self.fd.fileno()}/{name}"

    def open(self, device: int, kind: int = stat.S_IFBLK, flags: int = os.O_RDWR) -> Fd:
        """Open a device, by which the kernel loads its module, if it knows one."""
        path = self.path(device, kind)
        try:
            return Fd(os.open(path, flags | os.O_CLOEXEC))
        except OSError as error:
            raise from_errno("openat", f"device {os.major(device)}:{os.minor(device)}", error.errno or 0) from None


class DeviceMapper:
    """What speaks with device-mapper.

    Notes
    -----
    Needs CAP_SYS_ADMIN on the host.  Source: linux/dm-ioctl.h, the kernel's Documentation/admin-guide/device-mapper.
    """

    def __init__(self, nodes: Nodes) -> None:
        self._control = nodes.open(_CONTROL, stat.S_IFCHR)

    def _ask(self, command: int, name: str, *, flags: int = 0, targets: int = 0, data: bytes = b"", room: int = 0) -> _Answer:
        while True:
            request = encode(name, flags=flags, targets=targets, data=data, room=room)
            try:
                fcntl.ioctl(self._control.fileno(), _IOCTL | command, request)
            except OSError as error:
                raise from_errno(f"ioctl {_OPS[command]}", name or None, error.errno or 0) from None
            answer = decode(request)
            if not answer.flags & _BUFFER_FULL or room > _MOST_ROOM:
                return answer
            room *= 2

    def create(self, name: str) -> Device:
        """Make a device without a table; EBUSY where there is one of this name."""
        return self._ask(_DEV_CREATE, name).device

    def load(self, name: str, targets: Sequence[Target]) -> None:
        """Give a device a table, which is in use from `resume` on."""
        self._ask(_TABLE_LOAD, name, targets=len(targets), data=encode_targets(targets))

    def suspend(self, name: str) -> None:
        """Have the file system on a device write out what it has, and hold back what comes; returns when that is done."""
        self._ask(_DEV_SUSPEND, name, flags=_SUSPEND)

    def resume(self, name: str) -> None:
        """Let a device go on, with the table that was loaded; again is nothing."""
        self._ask(_DEV_SUSPEND, name)

    def status(self, name: str) -> Device | None:
        """Return what there is of a device; None where there is none."""
        try:
            return self._ask(_DEV_STATUS, name).device
        except SyscallError as error:
            if error.errno != ENXIO:
                raise
            return None

    def table_status(self, name: str) -> list[Target]:
        """Return what the targets of a device say of themselves."""
        answer = self._ask(_TABLE_STATUS, name, room=_ROOM)
        return decode_targets(answer.data, answer.targets)

    def message(self, name: str, text: str) -> None:
        """Send a message to the target at a device's first sector."""
        self._ask(_TARGET_MSG, name, data=_MESSAGE.pack(0) + os.fsencode(text) + b"\0")

    def remove(self, name: str, *, when_closed: bool = False) -> None:
        """Remove a device, or have the kernel do that when its last user has closed it; none of this name is nothing."""
        try:
            self._ask(_DEV_REMOVE, name, flags=_DEFERRED_REMOVE if when_closed else 0)
        except SyscallError as error:
            if error.errno not in {ENXIO, ENOENT}:
                raise

    def names(self) -> dict[str, int]:
        """Return all devices: numbers by names."""
        return decode_names(self._ask(_LIST_DEVICES, "", room=_ROOM).data)

    def close(self) -> None:
        """Let go of the kernel's end; again is nothing."""
        self._control.close()
