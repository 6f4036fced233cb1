"""Subvolumes, snapshots and quotas of btrfs: ioctl(2), linux/btrfs.h."""

from __future__ import annotations

import os
from errno import ENOENT
from typing import Final, NamedTuple

from isolib._kernel._ext import ffi, lib
from isolib._kernel.calls.checking import checked, path_bytes

BTRFS_SUPER_MAGIC: Final = 0x9123683E
#: The inode of every subvolume's root.
BTRFS_ROOT_INODE: Final = 256

_ROOM: Final = 4096
_INODES: Final = 1024
_NAMES: Final = 1 << 16  # a file has at most 65,535


class Subvolume(NamedTuple):
    """A subvolume: its number, the generation of its last change, and that at which it was made.

    Attributes
    ----------
    parent
        The uuid of that of which it is a snapshot; zeros where it is of none.
    """

    id: int
    generation: int
    origin_generation: int
    uuid: bytes
    parent: bytes


def btrfs_create(directory: int, name: str, target: str) -> None:
    """Make a subvolume in a directory."""
    checked("ioctl BTRFS_IOC_SUBVOL_CREATE_V2", target, lib.isolib_btrfs_create(directory, path_bytes(name)))


def btrfs_snapshot(source: int, directory: int, name: str, target: str, *, readonly: bool) -> None:
    """Make a snapshot of a subvolume in a directory."""
    result = lib.isolib_btrfs_snapshot(source, directory, path_bytes(name), readonly)
    checked("ioctl BTRFS_IOC_SNAP_CREATE_V2", target, result)


def btrfs_destroy(directory: int, name: str, target: str) -> None:
    """Remove a subvolume that holds no other."""
    checked("ioctl BTRFS_IOC_SNAP_DESTROY_V2", target, lib.isolib_btrfs_destroy(directory, path_bytes(name)))


def btrfs_set_readonly(subvolume: int, target: str, *, readonly: bool) -> None:
    """Make a subvolume read-only, or writable again."""
    checked("ioctl BTRFS_IOC_SUBVOL_SETFLAGS", target, lib.isolib_btrfs_set_readonly(subvolume, readonly))


def btrfs_subvolume(fd: int, target: str) -> Subvolume:
    """Tell of the subvolume that a descriptor is of."""
    found = ffi.new("struct isolib_btrfs_subvolume *")
    checked("ioctl BTRFS_IOC_GET_SUBVOL_INFO", target, lib.isolib_btrfs_subvolume(fd, found))
    uuid, parent = bytes(found.uuid), bytes(found.parent)
    return Subvolume(found.id, found.generation, found.origin_generation, uuid, parent)


def btrfs_touched(subvolume: int, generation: int, most: int, target: str) -> set[int] | None:
    """Return inodes of a subvolume among which are all that were changed at a generation or later; None: more than so many.

    It takes CAP_SYS_ADMIN.
    """
    first = ffi.new("uint64_t *", BTRFS_ROOT_INODE)
    inodes = ffi.new("uint64_t[]", _INODES)
    found: set[int] = set()
    while first[0]:
        count = lib.isolib_btrfs_touched(subvolume, generation, first, inodes, _INODES)
        found.update(inodes[0 : checked("ioctl BTRFS_IOC_TREE_SEARCH_V2", target, count)])
        if len(found) > most:
            return None
    return found


def btrfs_parents(subvolume: int, inode: int, target: str) -> set[int]:
    """Return the inodes of the directories in which something has names.  It takes CAP_SYS_ADMIN."""
    directories = ffi.new("uint64_t[]", _NAMES)
    count = lib.isolib_btrfs_parents(subvolume, inode, directories, _NAMES)
    return set(directories[0 : checked("ioctl BTRFS_IOC_TREE_SEARCH_V2", target, count)])


def btrfs_where(subvolume: int, inode: int, target: str) -> bytes | None:
    """Return where a directory lies in a subvolume, or one of the names of a file; None: nowhere.  It takes CAP_SYS_ADMIN."""
    path = ffi.new("char[]", lib.ISOLIB_BTRFS_PATH)
    result = lib.isolib_btrfs_where(subvolume, inode, path, lib.ISOLIB_BTRFS_PATH)
    if result < 0 and ffi.errno == ENOENT:
        return None
    checked("ioctl BTRFS_IOC_INO_LOOKUP", target, result)
    return bytes(ffi.string(path)).rstrip(b"/")


def btrfs_nested(subvolume: int, target: str) -> list[str]:
    """Return the paths of the subvolumes right below one, relative to it."""
    after = ffi.new("uint64_t *")
    nested = ffi.new("struct isolib_btrfs_nested[]", lib.ISOLIB_BTRFS_NESTED)
    path = ffi.new("char[]", _ROOM)
    found = []
    while True:
        count = lib.isolib_btrfs_nested(subvolume, after, nested, lib.ISOLIB_BTRFS_NESTED)
        for index in range(checked("ioctl BTRFS_IOC_GET_SUBVOL_ROOTREF", target, count)):
            result = lib.isolib_btrfs_path(subvolume, nested + index, path, _ROOM)
            checked("ioctl BTRFS_IOC_INO_LOOKUP_USER", target, result)
            found.append(os.fsdecode(ffi.string(path)))
        if not after[0]:
            return found


def btrfs_quota_enable(fd: int, target: str) -> None:
    """Have a file system count what each subvolume takes up."""
    checked("ioctl BTRFS_IOC_QUOTA_CTL", target, lib.isolib_btrfs_quota_enable(fd))


def btrfs_limit(subvolume: int, exclusive: int, target: str) -> None:
    """Set how many bytes a subvolume may have that it shares with none."""
    checked("ioctl BTRFS_IOC_QGROUP_LIMIT", target, lib.isolib_btrfs_limit(subvolume, exclusive))


def btrfs_drop_qgroup(fd: int, subvolume: int, target: str) -> None:
    """Forget what was counted for a subvolume that is gone."""
    checked("ioctl BTRFS_IOC_QGROUP_CREATE", target, lib.isolib_btrfs_drop_qgroup(fd, subvolume))


def btrfs_exclusive(fd: int, subvolume: int, target: str) -> int:
    """Return how many bytes a subvolume has that it shares with none, where the file system counts that."""
    exclusive = ffi.new("uint64_t *")
    checked("ioctl BTRFS_IOC_TREE_SEARCH_V2", target, lib.isolib_btrfs_usage(fd, subvolume, exclusive))
    return int(exclusive[0])
