"""Loop devices: a file as a block device, which the kernel gives up when nobody has it open any more (linux/loop.h)."""

from __future__ import annotations

import fcntl
import os
import stat
from errno import EBUSY, EINVAL
from struct import Struct
from typing import TYPE_CHECKING, Final

from isolib.errors import from_errno

if TYPE_CHECKING:
    from isolib._kernel.devicemapper import Nodes
    from isolib._kernel.handle import Fd

__all__ = ["attach_loop"]

_CONTROL: Final = os.makedev(10, 237)
_MAJOR: Final = 7
_GET_FREE: Final = 0x4C82
_CONFIGURE: Final = 0x4C0A
_CONFIG: Final = Struct("=II52xI176x64x")  # descriptor, block size, loop_info64 with its flags, reserved
_AUTOCLEAR: Final = 4
_DIRECT_IO: Final = 16
_TRIES: Final = 64


def attach_loop(nodes: Nodes, image: Fd, target: str) -> Fd:
    """Make a block device of a file, and return what holds it: it is free again when that and all other users are gone.

    The device keeps the same open file as ``image``, so a lock of it, flock(2), is held for as long as the device is there.
    Where the file system can, the file is read and written past the page cache, which keeps nothing twice.

    Raises
    ------
    SyscallError
        As LOOP_CONFIGURE (Linux 5.8); EBUSY: others take every free device at this moment.
    """
    with nodes.open(_CONTROL, stat.S_IFCHR) as control:
        for _ in range(_TRIES):
            try:
                number = fcntl.ioctl(control.fileno(), _GET_FREE)
            except OSError as error:
                raise from_errno("ioctl LOOP_CTL_GET_FREE", target, error.errno or 0) from None
            device = nodes.open(os.makedev(_MAJOR, number))
            if _configure(device, image, target):
                return device
            device.close()
    raise from_errno("ioctl LOOP_CONFIGURE", target, EBUSY)


def _configure(device: Fd, image: Fd, target: str) -> bool:
    """Return False where somebody else was faster."""
    for flags in (_AUTOCLEAR | _DIRECT_IO, _AUTOCLEAR):
        try:
            fcntl.ioctl(device.fileno(), _CONFIGURE, _CONFIG.pack(image.fileno(), 0, flags))
        except OSError as error:
            if error.errno == EBUSY:
                return False
            if error.errno != EINVAL or flags == _AUTOCLEAR:  # EINVAL: this file system has no direct I/O
                raise from_errno("ioctl LOOP_CONFIGURE", target, error.errno or 0) from None
        else:
            return True
    return False
