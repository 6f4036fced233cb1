"""Names below a directory's descriptor: what Python's os module lacks, and many of them in one call."""

from __future__ import annotations

import os
import struct
from errno import ENOTSUP, ERANGE
from typing import Any, Final, NamedTuple

from isolib._kernel._ext import ffi, lib
from isolib._kernel.calls.batching import Refused
from isolib._kernel.calls.checking import checked
from isolib.errors import from_errno

_ROOM: Final = 1 << 20
_ROWS: Final = 512
_XATTR_ROOM: Final = 65536  # XATTR_SIZE_MAX
_CHARS: Final = ffi.typeof("char[]")
_FOUND: Final = ffi.typeof("struct isolib_found[]")
_DRESS: Final = ffi.typeof("struct isolib_dress *")
_ROW: Final = struct.Struct("=QQQqqIIIIIIIIIIii")
_NANOSECONDS: Final = 10**9
_STAGES: Final = {
    lib.ISOLIB_MAKE_OPEN: "openat",
    lib.ISOLIB_MAKE_WRITE: "write",
    lib.ISOLIB_MAKE_OWNER: "fchown",
    lib.ISOLIB_MAKE_MODE: "fchmod",
    lib.ISOLIB_MAKE_TIME: "utimensat",
}


def list_xattrs(dir_fd: int, name: bytes, target: str) -> list[bytes]:
    """Return the names of the extended attributes of what is in a directory, a symbolic link too: listxattrat(2)."""
    data = ffi.new(_CHARS, _XATTR_ROOM)
    size = lib.isolib_xattr_list(dir_fd, name, data, _XATTR_ROOM)
    if size < 0 and ffi.errno == ENOTSUP:
        return []
    return bytes(ffi.buffer(data, checked("listxattr", target, size))).split(b"\0")[:-1]


def get_xattr(dir_fd: int, name: bytes, attribute: bytes, target: str) -> bytes:
    """Return an extended attribute of what is in a directory, a symbolic link too: getxattrat(2)."""
    room = 256
    while True:
        data = ffi.new(_CHARS, room)
        size = lib.isolib_xattr_get(dir_fd, name, attribute, data, room)
        if size < 0 and ffi.errno == ERANGE and room < _XATTR_ROOM:
            room = _XATTR_ROOM
            continue
        return bytes(ffi.buffer(data, checked("getxattr", target, size)))


def set_xattr(dir_fd: int, name: bytes, attribute: bytes, value: bytes, target: str) -> None:
    """Set an extended attribute of what is in a directory, a symbolic link too: setxattrat(2)."""
    checked("setxattr", target, lib.isolib_xattr_set(dir_fd, name, attribute, value, len(value)))


def remove_xattr(dir_fd: int, name: bytes, attribute: bytes, target: str) -> None:
    """Remove an extended attribute of what is in a directory, a symbolic link too: removexattrat(2)."""
    checked("removexattr", target, lib.isolib_xattr_remove(dir_fd, name, attribute))


def chmod_at(dir_fd: int, name: bytes, mode: int, target: str) -> None:
    """Set the mode of what is in a directory; a symbolic link is refused: fchmodat2(2)."""
    checked("fchmodat", target, lib.isolib_chmod_at(dir_fd, name, mode))


def open_to_read(dir_fd: int, name: bytes, target: str) -> int:
    """Open a file of a directory, without changing when it was last read where that is allowed, and without waiting."""
    return checked("openat", target, lib.isolib_open_to_read(dir_fd, name))


class Found(NamedTuple):
    """What a name in a directory stands for."""

    name: bytes
    device: int
    inode: int
    size: int
    mtime: int
    ctime: int
    mode: int
    uid: int
    gid: int
    links: int
    rdev: tuple[int, int]
    xattrs: bytes
    """The names of its extended attributes, a NUL after each."""
    content: bytes | None
    """A symbolic link's text, or all of a small file; None where it is to be opened."""
    error: int
    """What kept from looking at it."""


class Looker:
    """Looks at many names in one call, with one buffer; by one thread at a time.

    Parameters
    ----------
    room
        Bytes of the buffer: what may be read at once, and 70,000 more for the names of attributes and a link's text.
    """

    __slots__ = ("_data", "_found", "_room")

    def __init__(self, room: int = _ROOM) -> None:
        self._room = room
        self._data: Any = ffi.new(_CHARS, room)
        self._found: Any = ffi.new(_FOUND, _ROWS)

    def look(self, dir_fd: int, names: list[bytes], start: int, small: int) -> list[Found]:
        """Look at names of a directory, from one on, in order: up to the first directory, or as many as there is room for.

        Parameters
        ----------
        dir_fd
            Of the directory.
        names
            Without NUL.
        start
            With which to begin.
        small
            The content of files of up to so many bytes comes along.
        """
        part = names[start : start + _ROWS]
        joined = b"\0".join(part)
        count = lib.isolib_look(dir_fd, joined, len(part), self._found, self._data, self._room, small)
        view = memoryview(ffi.buffer(self._data, self._room))
        rows = ffi.buffer(self._found, count * _ROW.size)
        at, made = 0, []
        for name, row in zip(part, _ROW.iter_unpack(rows), strict=False):
            (device, inode, size, seconds, changed, ns, changed_ns, mode, uid, gid, links) = row[:11]
            (major, minor, xattrs, content, is_whole, error) = row[11:]
            middle = at + xattrs
            end = middle + content
            made.append(
                Found(
                    name,
                    device,
                    inode,
                    size,
                    seconds * _NANOSECONDS + ns,
                    changed * _NANOSECONDS + changed_ns,
                    mode,
                    uid,
                    gid,
                    links,
                    (major, minor),
                    bytes(view[at:middle]) if xattrs else b"",
                    bytes(view[middle:end]) if is_whole else None,
                    error,
                )
            )
            at = end
        return made


def make_file(dir_fd: int, name: bytes, data: bytes, *, mode: int, mtime: int, owner: tuple[int, int] | None) -> Refused | None:
    """Make a file with all that belongs to it, or none; returns what was refused.

    Parameters
    ----------
    dir_fd
        Of the directory.
    name
        Must not be there.
    data
        All of its content.
    mode
        Permission bits, with set-user-id and its like.
    mtime
        In nanoseconds.
    owner
        None: the caller's.
    """
    seconds, ns = divmod(mtime, _NANOSECONDS)
    uid, gid = owner or (0, 0)
    dress = ffi.new(_DRESS, (mode, uid, gid, owner is not None, seconds, ns))
    stage = lib.isolib_make_file(dir_fd, name, data, len(data), dress)
    return Refused(_STAGES[stage], ffi.errno) if stage else None


def clear_directory(dir_fd: int, target: str) -> list[bytes]:
    """Remove what is in a directory but directories; returns the names of some of these, all of them if they are few.

    Raises
    ------
    SyscallError
        It cannot be read, or something in it cannot be removed, whose name is appended to the target.
    """
    left = ffi.new(_CHARS, _XATTR_ROOM)
    size = lib.isolib_clear(dir_fd, left, _XATTR_ROOM)
    if size == -1:
        checked("getdents64", target, size)
    if size < 0:
        errno = ffi.errno
        raise from_errno("unlinkat", os.path.join(target, os.fsdecode(ffi.string(left))), errno)
    return bytes(ffi.buffer(left, size)).split(b"\0")[:-1]


def same_extents(one: int, other: int) -> bool:
    """Return whether two files of one file system are made of the same blocks: FS_IOC_FIEMAP; False where that is not told."""
    return bool(lib.isolib_same_extents(one, other))
