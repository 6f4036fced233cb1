"""What a tree takes up on disk that nothing else shares."""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from errno import EINVAL, ENOTTY, EOPNOTSUPP
from typing import TYPE_CHECKING, Final

from isolib.errors import from_errno
from isolib.unionfs.disk.files import open_at
from isolib.unionfs.drivers.base import TreeUsage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolib._kernel.handle import Fd

__all__ = ["usage_of"]

# linux/fiemap.h
_FS_IOC_FIEMAP: Final = 0xC020660B
_HEADER: Final = struct.Struct("=QQIIII")  # start, length, flags, mapped, count, reserved
_EXTENT: Final = struct.Struct("=QQQQQIIII")  # logical, physical, length, reserved, flags, reserved
_LAST: Final = 0x1
_SHARED: Final = 0x2000
_EXTENTS: Final = 256
_END: Final = (1 << 64) - 1

_BLOCK: Final = 512  # stat(2), st_blocks


def usage_of(root: Fd) -> TreeUsage:
    """Add up a tree: its inodes, and their bytes on disk but those that are shared with others (reflinks).

    Raises
    ------
    SyscallError
        A directory or a file cannot be opened.

    Notes
    -----
    Source: the kernel's Documentation/filesystems/fiemap.rst.
    """
    size, seen = 0, set[tuple[int, int]]()
    top = os.fstat(root.fileno())
    seen.add((top.st_dev, top.st_ino))
    size += top.st_blocks * _BLOCK
    waiting = [""]
    while waiting:
        path = waiting.pop()
        with _open(root, path or ".", os.O_DIRECTORY) as directory:
            for name, found in _inodes(directory, seen):
                if stat.S_ISDIR(found.st_mode):
                    waiting.append(f"{path}/{name}" if path else name)
                shared = _shared(directory, name) if stat.S_ISREG(found.st_mode) and found.st_blocks else 0
                size += max(0, found.st_blocks * _BLOCK - shared)
    return TreeUsage(size, len(seen))


def _inodes(directory: Fd, seen: set[tuple[int, int]]) -> Iterator[tuple[str, os.stat_result]]:
    """Yield what is in a directory and was not seen under another name."""
    for name in os.listdir(directory.fileno()):
        found = os.stat(name, dir_fd=directory.fileno(), follow_symlinks=False)
        if (found.st_dev, found.st_ino) not in seen:
            seen.add((found.st_dev, found.st_ino))
            yield name, found


def _open(base: Fd, path: str, flags: int) -> Fd:
    try:
        return open_at(path, os.O_RDONLY | os.O_NOFOLLOW | flags, dir_fd=base.fileno())
    except OSError as error:
        raise from_errno("openat", path, error.errno or 0) from None


def _shared(directory: Fd, name: str) -> int:
    """Return how many bytes of a file other files have too."""
    shared, at, is_last = 0, 0, False
    with _open(directory, name, 0) as file:
        while not is_last:
            answer = bytearray(_HEADER.pack(at, _END - at, 0, 0, _EXTENTS, 0) + bytes(_EXTENTS * _EXTENT.size))
            try:
                fcntl.ioctl(file.fileno(), _FS_IOC_FIEMAP, answer)
            except OSError as error:
                if error.errno not in {EINVAL, ENOTTY, EOPNOTSUPP}:
                    raise from_errno("ioctl FS_IOC_FIEMAP", name, error.errno or 0) from None
                return 0  # a file system that shares nothing
            mapped = _HEADER.unpack_from(answer)[3]
            for index in range(mapped):
                logical, _, length, _, _, flags, *_ = _EXTENT.unpack_from(answer, _HEADER.size + index * _EXTENT.size)
                shared += length if flags & _SHARED else 0
                at, is_last = logical + length, bool(flags & _LAST)
            is_last = is_last or not mapped
    return shared
