"""Probes of what layers can be stored on: file systems, block devices, and the programs of other projects."""

from __future__ import annotations

import fcntl
import os
import struct
from functools import partial
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib._kernel.plan import INSIDE, Step
from isolib._kernel.programs import find_program
from isolib.errors import from_errno
from isolib.support import refusals
from isolib.support.attempts import attempt, own_room
from isolib.support.examination import Probe, explain_call, explain_device, open_device
from isolib.support.refusals import Need, Refused

if TYPE_CHECKING:
    from isolib.errors import SyscallError
    from isolib.support.examination import Examination
    from isolib.support.facts import Facts

# linux/dm-ioctl.h: _IOWR(0xfd, number, struct dm_ioctl)
_DM: Final = struct.Struct("=3I4I2i2IQ128s129s7x")
_DM_VERSION: Final = 0xC138FD00
_DM_GET_TARGET_VERSION: Final = 0xC138FD11


def _file_system(fs_type: str, exam: Examination) -> str:
    """Ask for the file system, which loads its module; mounting one takes a device of it, and the host's root."""
    facts = exam.facts
    builder = own_room(facts, "mnt")
    builder.produce(INSIDE, Step("FSOPEN", text=fs_type.encode(), flags=calls.FSOPEN_CLOEXEC, what=fs_type), fs_type)
    attempt(facts, builder)
    mounted = [mount.mount_point for mount in facts.mounts if mount.fs_type == fs_type]
    if mounted:
        return f"mounted at {mounted[0]}"
    if not facts.has("CAP_SYS_ADMIN"):
        remedy = "root mounts one, and gives a directory on it away"
        raise Refused("the kernel has it, none is mounted", refusals.lacks("CAP_SYS_ADMIN", facts, remedy))
    return "none is mounted"


def _loop(_: Examination) -> str:
    os.close(open_device("/dev/loop-control"))
    return ""


def _ask_device_mapper(request: int, name: bytes = b"") -> tuple[int, ...]:
    device = open_device("/dev/mapper/control")
    try:
        header = _DM.pack(4, 0, 0, 16384, _DM.size, 0, 0, 0, 0, 0, 0, name, b"")
        answer = fcntl.ioctl(device, request, header.ljust(16384, b"\0"))
    except OSError as error:
        raise from_errno("ioctl", f"device-mapper {name.decode()}".rstrip(), error.errno or 0) from error
    finally:
        os.close(device)
    return _DM.unpack_from(answer)[:3]


def _device_mapper(_: Examination) -> str:
    return "interface " + ".".join(map(str, _ask_device_mapper(_DM_VERSION)))


def _thin_pool(_: Examination) -> str:
    _ask_device_mapper(_DM_GET_TARGET_VERSION, b"thin-pool")
    return ""


def _zfs(exam: Examination) -> str:
    os.close(open_device("/dev/zfs"))
    return _tool("zfs", "zfsutils-linux", exam)


def _tool(name: str, package: str, _: Examination) -> str:
    path = find_program(name)
    if path is None:
        raise Refused(f"{name} is nowhere on PATH", refusals.tool(name, package))
    return path


def _explain_file_system(error: SyscallError, need: Need, facts: Facts) -> refusals.Refusal:
    return refusals.mount(error.op, error.errno, need, facts, new_user=not facts.has("CAP_SYS_ADMIN"))


_ROOT: Final = "CAP_SYS_ADMIN"

STORAGE: Final = (
    Probe("btrfs", partial(_file_system, "btrfs"), Need("", "CONFIG_BTRFS_FS", "btrfs"), _explain_file_system),
    Probe("xfs", partial(_file_system, "xfs"), Need("", "CONFIG_XFS_FS", "xfs"), _explain_file_system),
    Probe("aufs", partial(_file_system, "aufs"), Need("", "CONFIG_AUFS_FS", "aufs"), _explain_file_system),
    Probe("loop", _loop, Need("", "CONFIG_BLK_DEV_LOOP", "loop", _ROOT), explain_device),
    Probe("device-mapper", _device_mapper, Need("", "CONFIG_BLK_DEV_DM", "dm_mod", _ROOT), explain_device),
    Probe(
        "device-mapper thin-pool", _thin_pool, Need("", "CONFIG_DM_THIN_PROVISIONING", "dm_thin_pool", _ROOT), explain_device
    ),
    Probe("zfs", _zfs, Need("", "CONFIG_ZFS", "zfs", _ROOT), explain_device),
)

TOOLS: Final = tuple(
    Probe(name, partial(_tool, name, package), explain=explain_call)
    for name, package in (("fuse-overlayfs", "fuse-overlayfs"), ("pasta", "passt"), ("slirp4netns", "slirp4netns"))
)
