"""What Python itself needs of the mount API: detached mounts, and paths that cannot lead out of a root.

Every function returns a descriptor that the caller owns.  A detached mount lives as long as its descriptor, or until it is
attached; nothing appears in any mount namespace before.  Closing one that was never attached waits for an RCU grace period,
milliseconds: make only what is used.
"""

from __future__ import annotations

import os
import stat
from errno import EAGAIN, EEXIST, ENOENT
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib.errors import SyscallError, from_errno

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["attach", "clone_tree", "kind_in_root", "make_directories", "new_mount", "open_in_root", "takes_id_map"]

_IN_ROOT: Final = calls.RESOLVE_IN_ROOT | calls.RESOLVE_NO_MAGICLINKS
_TRIES: Final = 1000


def open_in_root(root: int, path: str, flags: int = os.O_PATH, *, resolve: int = _IN_ROOT) -> int:
    """Open a path as if ``root`` were "/": no symbolic link and no ``..`` leads out, no magic link is followed.

    Parameters
    ----------
    root
        A descriptor of the directory.
    path
        Relative or absolute; both start at the root.
    flags
        As for open(2); O_CLOEXEC is added.
    resolve
        How to resolve, for what is to be stricter.

    Raises
    ------
    SyscallError
        ELOOP for a magic link; otherwise as open(2).

    Notes
    -----
    Source: openat2(2), RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS.  It answers EAGAIN when it cannot tell where ".." led because
    something on the system was being renamed; that is tried again.
    """
    for _ in range(_TRIES):
        try:
            return calls.openat2(root, path, flags, resolve=resolve)
        except SyscallError as error:
            if error.errno != EAGAIN:
                raise
    raise from_errno("openat2", path, EAGAIN)


def make_directories(root: int, path: str, mode: int = 0o755) -> int:
    """Open a directory beneath a root as `open_in_root`, and make what is absent of it, as ``mkdir -p``.

    Parameters
    ----------
    root
        A descriptor of the directory that counts as "/".
    path
        Relative or absolute; both start at the root.
    mode
        Permission bits of what is made, less the process's umask.

    Raises
    ------
    SyscallError
        A part of the path is no directory, or a dangling link, or cannot be made.
    """
    current = os.dup(root)
    try:
        done = ""
        for name in path.split("/"):
            if name in {"", "."}:
                continue
            done = f"{done}/{name}"
            # In this order no interrupt finds a number here that is closed already, and may be somebody else's.
            previous, current = current, _next_directory(root, current, done, name, mode)
            os.close(previous)
    except BaseException:
        os.close(current)
        raise
    return current


def _next_directory(root: int, parent: int, whole: str, name: str, mode: int) -> int:
    flags = os.O_PATH | os.O_DIRECTORY
    try:
        return open_in_root(root, whole, flags)
    except SyscallError as error:
        if error.errno != ENOENT:
            raise
    try:
        os.mkdir(name, mode, dir_fd=parent)
    except OSError as error:
        if error.errno != EEXIST:
            raise from_errno("mkdirat", whole, error.errno or 0) from None
    # Made in the directory that was opened before, and opened there: whoever exchanges it meanwhile gains nothing.
    return open_in_root(parent, name, flags, resolve=calls.RESOLVE_BENEATH | calls.RESOLVE_NO_SYMLINKS)


def kind_in_root(root: str, path: str) -> int | None:
    """Return the type of what lies at a path beneath a root, as ``stat.S_IFMT`` gives it; None where nothing can be found.

    Parameters
    ----------
    root
        The path of the directory that counts as "/".
    path
        Relative or absolute; both start at the root.  The last part is followed when it is a symbolic link.
    """
    try:
        base = os.open(root, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        found = open_in_root(base, path or ".")
    except SyscallError:
        return None
    finally:
        os.close(base)
    try:
        return stat.S_IFMT(os.fstat(found).st_mode)
    finally:
        os.close(found)


def clone_tree(
    path: str,
    *,
    dir_fd: int = calls.AT_FDCWD,
    recursive: bool = True,
    attributes: int = 0,
    userns: int | None = None,
) -> int:
    """Clone what is mounted at a path as a detached, private mount.

    Parameters
    ----------
    path
        Relative to ``dir_fd``; empty for what ``dir_fd`` itself is.
    dir_fd
        A descriptor, or AT_FDCWD.
    recursive
        Whether the mounts below come along; the attributes are theirs too.
    attributes
        MOUNT_ATTR_* to set.
    userns
        A descriptor of a user namespace, to map the ids by.

    Raises
    ------
    SyscallError
        PermissionDenied without CAP_SYS_ADMIN over the mount namespace; EINVAL for ids that the file system cannot map.

    Notes
    -----
    Sources: open_tree(2), mount_setattr(2).
    """
    spread = calls.AT_RECURSIVE if recursive else 0
    empty = 0 if path else calls.AT_EMPTY_PATH
    mount = calls.open_tree(dir_fd, path, calls.OPEN_TREE_CLONE | spread | empty)
    try:
        calls.mount_setattr(
            mount,
            "",
            flags=calls.AT_EMPTY_PATH | spread,
            set_=attributes | (0 if userns is None else calls.MOUNT_ATTR_IDMAP),
            propagation=calls.MS_PRIVATE,
            userns=-1 if userns is None else userns,
        )
    except BaseException:
        os.close(mount)
        raise
    return mount


def new_mount(fs_type: str, options: Mapping[str, str | int | None] | None = None, *, attributes: int = 0) -> int:
    """Make a file system, and return its detached mount.

    Parameters
    ----------
    fs_type
        As /proc/filesystems names it.
    options
        Values by name, in order: a str, a descriptor (an int), or None for a flag.
    attributes
        MOUNT_ATTR_* of the mount.

    Raises
    ------
    SyscallError
        As fsopen(2), fsconfig(2) and fsmount(2); the option that was refused is its target.
    """
    context = calls.fsopen(fs_type)
    try:
        for key, value in (options or {}).items():
            if value is None:
                calls.fsconfig(context, calls.FSCONFIG_SET_FLAG, key)
            elif isinstance(value, int):
                calls.fsconfig(context, calls.FSCONFIG_SET_FD, key, aux=value)
            else:
                calls.fsconfig(context, calls.FSCONFIG_SET_STRING, key, value)
        calls.fsconfig(context, calls.FSCONFIG_CMD_CREATE)
        return calls.fsmount(context, attributes)
    finally:
        os.close(context)


def attach(mount: int, target: int, what: str) -> None:
    """Attach a detached mount onto what a descriptor is open on, in the mount namespace of the calling thread.

    Parameters
    ----------
    mount
        From `clone_tree` or `new_mount`.
    target
        A descriptor, from `open_in_root` or `make_directories` where the path is somebody else's.
    what
        The path, for the error.

    Notes
    -----
    Source: move_mount(2).
    """
    calls.move_mount(mount, target, "", what)


_takes_id_map: Final[dict[tuple[int, int, str | None], bool]] = {}


def takes_id_map(path: str, userns: int, *, recursive: bool = True) -> bool:
    """Return whether what lies at a path can be mounted with its ids mapped.

    The kernel is asked by trying: once for each file system, or for each path where all that is mounted below counts too.

    Parameters
    ----------
    path
        On the host.
    userns
        A descriptor of the user namespace.
    recursive
        Whether all that is mounted below must take it too.
    """
    try:
        device = os.stat(path).st_dev
    except OSError:
        return False
    key = (os.getpid(), device, path if recursive else None)
    found = _takes_id_map.get(key)
    if found is None:
        try:
            os.close(clone_tree(path, recursive=recursive, userns=userns))
        except SyscallError:
            found = False
        else:
            found = True
        _takes_id_map[key] = found
    return found
