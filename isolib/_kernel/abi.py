"""Numbers of the kernel's interfaces that no header of an older distribution has yet: ABI, the same everywhere and for ever."""

from __future__ import annotations

import os
from typing import Final

# sched.h
CLONE_NEWTIME: Final = 0x00000080
CLONE_FS: Final = 0x00000200
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

#: The clone flag of each kind of namespace, by the name that /proc/PID/ns gives it.
NAMESPACE_FLAGS: Final = {
    "user": CLONE_NEWUSER,
    "mnt": CLONE_NEWNS,
    "pid": CLONE_NEWPID,
    "net": CLONE_NEWNET,
    "ipc": CLONE_NEWIPC,
    "uts": CLONE_NEWUTS,
    "cgroup": CLONE_NEWCGROUP,
    "time": CLONE_NEWTIME,
}

# linux/pidfd.h, since 6.11: PIDFD_GET_*_NAMESPACE
PIDFD_NAMESPACE: Final = {
    "cgroup": 1,
    "ipc": 2,
    "mnt": 3,
    "net": 4,
    "pid": 5,
    "time": 7,
    "time_for_children": 8,
    "user": 9,
    "uts": 10,
}

# linux/mount.h
OPEN_TREE_CLONE: Final = 1
OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000
AT_RECURSIVE: Final = 0x8000
AT_NO_AUTOMOUNT: Final = 0x800
AT_SYMLINK_NOFOLLOW: Final = 0x100
MOVE_MOUNT_F_EMPTY_PATH: Final = 0x04
MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40
FSOPEN_CLOEXEC: Final = 1
FSMOUNT_CLOEXEC: Final = 1
FSCONFIG_SET_FLAG: Final = 0
FSCONFIG_SET_STRING: Final = 1
FSCONFIG_SET_FD: Final = 5
FSCONFIG_CMD_CREATE: Final = 6
FSCONFIG_CMD_RECONFIGURE: Final = 7
MOUNT_ATTR_RDONLY: Final = 0x01
MOUNT_ATTR_NOSUID: Final = 0x02
MOUNT_ATTR_NODEV: Final = 0x04
MOUNT_ATTR_NOEXEC: Final = 0x08
MOUNT_ATTR_NOSYMFOLLOW: Final = 0x200000
MOUNT_ATTR_IDMAP: Final = 0x100000
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MNT_DETACH: Final = 2

# linux/fs.h
RENAME_NOREPLACE: Final = 0x1
RENAME_EXCHANGE: Final = 0x2

# linux/openat2.h
RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10

# linux/nsfs.h
NS_GET_USERNS: Final = 0xB701
NS_GET_PARENT: Final = 0xB702

PROC_SUPER_MAGIC: Final = 0x9FA0
SOCKFS_MAGIC: Final = 0x534F434B
CGROUP_SUPER_MAGIC: Final = 0x27E0EB
CGROUP2_SUPER_MAGIC: Final = 0x63677270
CGROUP_MAGICS: Final = frozenset({CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC})
NSFS_MAGIC: Final = 0x6E736673
