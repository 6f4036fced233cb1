"""File systems of the tests' own: in memory, on loop devices, never attached anywhere, gone with their descriptors."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
from dataclasses import dataclass
from errno import EBUSY
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import pytest

from isolib._kernel import calls
from isolib._kernel.handle import Fd
from isolib._kernel.mountapi import clone_tree, new_mount

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: What makes each of them, quietly, on a file that is named last.  XFS wants 300 MB, btrfs 109.
MAKERS: Final = {
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
}
SIZE: Final = 512 << 20

# linux/loop.h
_GET_FREE: Final = 0x4C82
_CONFIGURE: Final = 0x4C0A
_CONFIG: Final = struct.Struct("=II52xI176x64x")  # descriptor, block size, loop_info64 with its flags, reserved
_AUTOCLEAR: Final = 4
_TRIES: Final = 16


@dataclass(frozen=True)
class Disk:
    """A file system: a descriptor of its root, which is all that holds it."""

    kind: str
    root: Fd

    @property
    def path(self) -> str:
        """A path of its root, for this process and for those that inherit the descriptor."""
        return f"/proc/self/fd/{self.root.fileno()}"

    def readonly(self) -> Fd:
        """Return the same as a mount that nothing can be written by."""
        return Fd(clone_tree("", dir_fd=self.root.fileno(), attributes=calls.MOUNT_ATTR_RDONLY))


@contextlib.contextmanager
def disk(kind: str, *, size: int = SIZE, options: Mapping[str, str | None] = MappingProxyType({})) -> Iterator[Disk]:
    """Make a file system of a kind and a size in bytes: "tmpfs", or one of `MAKERS`; skip the test where the host has none."""
    if os.geteuid() != 0:
        pytest.skip("needs to be started by root")
    if kind == "tmpfs":
        root = Fd(new_mount(kind, {"size": str(size), "mode": "755"}))
    else:
        if shutil.which(MAKERS[kind][0]) is None:
            pytest.skip(f"{MAKERS[kind][0]} is not installed")
        root = _mounted(kind, size, options)
    with root:
        yield Disk(kind, root)


def _mounted(kind: str, size: int, options: Mapping[str, str | None]) -> Fd:
    with Fd(os.memfd_create(kind)) as image:
        os.truncate(image.fileno(), size)
        subprocess.run(
            [*MAKERS[kind], f"/proc/self/fd/{image.fileno()}"], check=True, pass_fds=[image.fileno()], stdout=subprocess.DEVNULL
        )
        with loop(image) as device:
            try:
                return Fd(new_mount(kind, {"source": device, **options}))
            except OSError as error:
                pytest.skip(f"the kernel mounts no {kind}: {error}")


@contextlib.contextmanager
def loop(image: Fd) -> Iterator[str]:
    """Give a file a loop device, which is free again when nobody uses it any more; skip the test where there are none."""
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        pytest.skip(f"no loop devices: {error}")
    with Fd(control):
        for _ in range(_TRIES):
            path = f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}"
            with Fd(os.open(path, os.O_RDWR | os.O_CLOEXEC)) as device:
                try:
                    fcntl.ioctl(device.fileno(), _CONFIGURE, _CONFIG.pack(image.fileno(), 0, _AUTOCLEAR))
                except OSError as error:
                    if error.errno == EBUSY:  # somebody else was faster
                        continue
                    raise
                yield path
                return
    pytest.skip("no loop device is free")
