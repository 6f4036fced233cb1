"""System calls that Python's os module lacks, one function each."""

from __future__ import annotations

import os
from errno import EINVAL
from typing import TYPE_CHECKING, Final

from isolib._kernel._ext import ffi, lib
from isolib._kernel.abi import (
    FSMOUNT_CLOEXEC,
    FSOPEN_CLOEXEC,
    MOVE_MOUNT_F_EMPTY_PATH,
    MOVE_MOUNT_T_EMPTY_PATH,
    NS_GET_PARENT,
    NS_GET_USERNS,
    OPEN_TREE_CLOEXEC,
    PIDFD_NAMESPACE,
)
from isolib._kernel.calls.checking import checked, path_bytes, taken
from isolib._kernel.handle import Fd
from isolib.errors import from_errno

if TYPE_CHECKING:
    from collections.abc import Callable


def setns(fd: int, kinds: int, target: str) -> None:
    """Move the calling thread into a namespace: setns(2)."""
    checked("setns", target, lib.isolib_setns(fd, kinds))


def unshare(flags: int, target: str) -> None:
    """Give the calling thread new namespaces (or a file-system context of its own): unshare(2)."""
    checked("unshare", target, lib.isolib_unshare(flags))


def namespace_owner(fd: int) -> Fd:
    """Return the user namespace that owns this namespace: ioctl_nsfs(2), NS_GET_USERNS."""
    return taken("ioctl NS_GET_USERNS", "namespace", Fd.take(lib.isolib_ns_ioctl_fd, fd, NS_GET_USERNS))


def namespace_parent(fd: int) -> Fd:
    """Return the parent of a user or pid namespace: ioctl_nsfs(2), NS_GET_PARENT."""
    return taken("ioctl NS_GET_PARENT", "namespace", Fd.take(lib.isolib_ns_ioctl_fd, fd, NS_GET_PARENT))


def namespace_flag(fd: int) -> int:
    """Return the clone flag that tells the namespace's kind: ioctl_nsfs(2), NS_GET_NSTYPE."""
    return checked("ioctl NS_GET_NSTYPE", "namespace", lib.isolib_ns_kind(fd))


def is_in_first_userns() -> bool:
    """Return whether the calling thread is in the first user namespace, the host's."""
    return bool(checked("stat", "/proc/thread-self/ns/user", lib.isolib_is_in_first_userns()))


def pidfd_namespace(pidfd: int, kind: str) -> int:
    """Return a descriptor of a process's namespace without /proc: ioctl_pidfd(2), since Linux 6.11."""
    return checked(
        f"ioctl PIDFD_GET_{kind.upper()}_NAMESPACE", "pidfd", lib.isolib_pidfd_namespace(pidfd, PIDFD_NAMESPACE[kind])
    )


def take_namespace(pidfd: int, kind: str) -> Fd:
    """As `pidfd_namespace`, owned from the first moment on."""
    made = Fd.take(lib.isolib_pidfd_namespace, pidfd, PIDFD_NAMESPACE[kind])
    return taken(f"ioctl PIDFD_GET_{kind.upper()}_NAMESPACE", "pidfd", made)


#: A number that no other native thread of this process has, had or will have.
thread_number: Final[Callable[[], int]] = lib.isolib_thread_number


def fs_magic(fd: int) -> int:
    """Return the type of the file system that a descriptor lies in: fstatfs(2)."""
    return checked("fstatfs", f"fd {fd}", lib.isolib_fs_magic(fd))


def openat2(dir_fd: int, path: str, flags: int, *, mode: int = 0, resolve: int = 0) -> int:
    """Open a file with restricted path resolution: openat2(2)."""
    return checked("openat2", path, lib.isolib_openat2(dir_fd, path_bytes(path), flags | os.O_CLOEXEC, mode, resolve))


def rename(  # noqa: PLR0917 - as the call has them
    old_dir: int, old: str, new_dir: int, new: str, flags: int, target: str
) -> None:
    """Rename what is in a directory, or exchange two things: renameat2(2)."""
    checked("renameat2", target, lib.isolib_renameat2(old_dir, path_bytes(old), new_dir, path_bytes(new), flags))


def open_tree(dir_fd: int, path: str, flags: int) -> int:
    """Open, or clone as a detached mount, what is mounted at a path: open_tree(2)."""
    return checked(
        "open_tree", path or f"fd {dir_fd}", lib.isolib_open_tree(dir_fd, path_bytes(path), flags | OPEN_TREE_CLOEXEC)
    )


def move_mount(from_fd: int, to_fd: int, to_path: str, target: str) -> None:
    """Attach a detached mount: move_mount(2)."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | (0 if to_path else MOVE_MOUNT_T_EMPTY_PATH)
    checked("move_mount", target, lib.isolib_move_mount(from_fd, b"", to_fd, path_bytes(to_path), flags))


def fsopen(fs_type: str) -> int:
    """Begin to make a file system: fsopen(2)."""
    return checked("fsopen", fs_type, lib.isolib_fsopen(fs_type.encode(), FSOPEN_CLOEXEC))


def fsconfig(fd: int, command: int, key: str | None = None, value: str | None = None, aux: int = 0) -> None:
    """Set an option of a file system being made, or create it: fsconfig(2)."""
    encoded = ffi.NULL if key is None else ffi.new("char[]", path_bytes(key))
    text = ffi.NULL if value is None else ffi.new("char[]", path_bytes(value))
    checked("fsconfig", key or "create", lib.isolib_fsconfig(fd, command, encoded, text, aux))


def fsmount(fd: int, attributes: int = 0) -> int:
    """Return the detached mount of a created file system: fsmount(2)."""
    return checked("fsmount", f"fd {fd}", lib.isolib_fsmount(fd, FSMOUNT_CLOEXEC, attributes))


def mount_setattr(
    fd: int, path: str, *, flags: int, set_: int = 0, clear: int = 0, propagation: int = 0, userns: int = -1
) -> None:
    """Change properties of a mount or a tree of them: mount_setattr(2)."""
    result = lib.isolib_mount_setattr(fd, path_bytes(path), flags, set_, clear, propagation, userns)
    checked("mount_setattr", path or f"fd {fd}", result)


def mount(source: str, target: str, fs_type: str, flags: int, data: str | None = None) -> None:
    """Mount in the old way: mount(2)."""
    text = ffi.NULL if data is None else ffi.new("char[]", path_bytes(data))
    checked("mount", target, lib.isolib_mount(path_bytes(source), path_bytes(target), fs_type.encode(), flags, text))


def umount(target: str, flags: int = 0) -> None:
    """Unmount: umount2(2)."""
    checked("umount2", target, lib.isolib_umount2(path_bytes(target), flags))


def clone3() -> bool:
    """Return whether clone3(2) can be called: a filter may answer ENOSYS to it, and so do kernels before 5.3.

    Raises
    ------
    SyscallError
        With ENOSYS, or with what a filter answers instead.
    """
    if lib.isolib_clone3_size() < 0 and ffi.errno != EINVAL:
        raise from_errno("clone3", None, ffi.errno)
    return True


def watch_removals(directory: str, target: str) -> Fd:
    """Return a descriptor, not blocking, that tells when something in a directory is removed: inotify(7), IN_DELETE."""
    return taken("inotify_add_watch", target, Fd.take(lib.isolib_watch_removals, path_bytes(directory)))


def landlock_abi() -> int:
    """Return the version of Landlock's interface: landlock_create_ruleset(2), LANDLOCK_CREATE_RULESET_VERSION."""
    return checked("landlock_create_ruleset", None, lib.isolib_landlock_abi())


def security_modules() -> list[int]:
    """Return the LSM_ID_* of the active security modules, in their order: lsm_list_modules(2), since Linux 6.8."""
    ids = ffi.new("uint64_t[64]")
    count = checked("lsm_list_modules", None, lib.isolib_security_modules(ids, len(ids)))
    return [int(ids[index]) for index in range(count)]


def pidfd_send_signal(pidfd: int, signal: int, target: str) -> None:
    """Send a signal to the process behind a pidfd: pidfd_send_signal(2)."""
    checked("pidfd_send_signal", target, lib.isolib_pidfd_send_signal(pidfd, signal))


def pty_size(fd: int, rows: int, columns: int) -> None:
    """Set the size of a terminal: ioctl_tty(2), TIOCSWINSZ."""
    checked("ioctl TIOCSWINSZ", f"fd {fd}", lib.isolib_pty_size(fd, rows, columns))


def seal_launcher(path: str) -> Fd:
    """Return a sealed memory file with the launcher's image: memfd_create(2), F_ADD_SEALS."""
    return taken("memfd_create", path, Fd.take(lib.isolib_launcher_seal, path_bytes(path)))
