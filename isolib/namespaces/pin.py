"""Names for namespaces in the file system: mounts of nsfs files, as `ip netns` makes them.

Everything is done on descriptors: what is mounted on is the file that was made here, not what somebody has put in its place.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from errno import EEXIST, EINVAL, ELOOP, ENOENT
from functools import partial
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib._kernel.handle import Fd, Rollback
from isolib.errors import PlanError, SyscallError, from_errno

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DIRECTORY", "attach", "check_name", "detach"]

DIRECTORY: Final = "/run/netns"
"""Where `ip netns` has its names (ip-netns(8)); /var/run is a link to /run."""

_MS_BIND: Final = 0x1000
_MS_REC: Final = 0x4000
_MS_SHARED: Final = 1 << 20
_UMOUNT_NOFOLLOW: Final = 8
_MAX_NAME: Final = 255

_PLACE: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def check_name(name: str) -> str:
    """Return a name of `ip netns` when it can be one.

    Raises
    ------
    PlanError
        It is empty, too long, or more than one part of a path.
    """
    if not isinstance(name, str):
        raise PlanError(f"name: a str is wanted, not {name!r}")
    if not name or name in (".", "..") or "/" in name or "\0" in name or len(os.fsencode(name)) > _MAX_NAME:
        raise PlanError(f"name: {name!r} cannot be a name of a network namespace: it is a file name in {DIRECTORY}")
    return name


def attach(fd: int, label: str, place: str) -> None:
    """Make a file and mount a namespace on it; the file is there and mounted on, or it is not there."""
    directory, name = os.path.split(place)
    if not name:
        raise PlanError(f"path: {place!r} is a directory")
    if os.path.normpath(directory).removeprefix("/var") == DIRECTORY:
        _set_up_directory()
    with Rollback() as undo:
        parent = undo.adopt(_open(directory, os.open, directory, _PLACE))
        with Rollback() as undo_file:
            target = undo.adopt(_create(place, name, parent, undo_file))
            tree = undo.adopt(_open(place, calls.open_tree, fd, "", calls.OPEN_TREE_CLONE | calls.AT_EMPTY_PATH))
            try:
                calls.move_mount(tree.fileno(), target.fileno(), "", place)
            except SyscallError as error:
                hint = error.hint
                if label.startswith("mnt:") and error.errno in (EINVAL, ELOOP):
                    hint = "a mount namespace cannot be pinned in itself, nor in an older one"
                raise from_errno("move_mount", f"{label} on {place}", error.errno, hint) from None
            undo_file.dismiss()


def detach(place: str, identity: tuple[int, int], label: str) -> None:
    """Undo the mount of a namespace and remove the file."""
    try:
        status = os.stat(place)
    except FileNotFoundError:
        return
    except OSError as error:
        raise from_errno("stat", place, error.errno or 0) from None
    if (status.st_dev, status.st_ino) != identity:
        raise SyscallError("umount", place, EINVAL, f"{label} is not what is mounted there")
    calls.umount(place, calls.MNT_DETACH | _UMOUNT_NOFOLLOW)
    try:
        os.unlink(place)
    except OSError as error:
        if error.errno != ENOENT:
            raise from_errno("unlink", place, error.errno or 0) from None


def _open(place: str, function: Callable[..., int], *args: object) -> Fd:
    try:
        fd = Fd.take(function, *args)
    except SyscallError as error:
        raise from_errno(error.op, place, error.errno, _hint(error.errno) or error.hint) from None
    except OSError as error:
        raise from_errno("open", place, error.errno or 0, _hint(error.errno)) from None
    assert fd is not None  # noqa: S101 -- all these raise
    return fd


def _hint(errno: int | None) -> str | None:
    if errno == EEXIST:
        return "a namespace is pinned at a path where nothing is yet"
    return "its directory must be there" if errno == ENOENT else None


def _create(place: str, name: str, parent: Fd, undo: Rollback) -> Fd:
    # Mode 0, as `ip netns` makes it: what is seen while it is mounted on is the mode of nsfs, 0444.
    create = partial(os.open, name, _FILE, 0, dir_fd=parent.fileno())
    if _exists(name, parent):  # before the undoing is noted, which would remove it
        raise from_errno("open", place, EEXIST, _hint(EEXIST))
    undo.push(_remove, name, parent)
    try:
        return _open(place, create)
    except SyscallError:
        undo.dismiss()
        raise


def _exists(name: str, parent: Fd) -> bool:
    try:
        os.stat(name, dir_fd=parent.fileno(), follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _remove(name: str, parent: Fd) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=parent.fileno())


def _set_up_directory() -> None:
    """Make /run/netns a shared mount of itself, as `ip netns` does: names given in one mount namespace are seen in others."""
    try:
        os.makedirs(DIRECTORY, mode=0o755, exist_ok=True)
        with Fd(os.open(DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as directory:
            # `ip netns` takes this lock too: two who mount at the same time would mount one over the other.
            fcntl.flock(directory.fileno(), fcntl.LOCK_EX)
            try:
                calls.mount("", DIRECTORY, "none", _MS_SHARED | _MS_REC)
            except SyscallError as error:
                if error.errno != EINVAL:  # no mount point yet
                    raise
                calls.mount(DIRECTORY, DIRECTORY, "none", _MS_BIND | _MS_REC)
                calls.mount("", DIRECTORY, "none", _MS_SHARED | _MS_REC)
    except SyscallError:
        raise
    except OSError as error:
        raise from_errno("mkdir", DIRECTORY, error.errno or 0) from None
