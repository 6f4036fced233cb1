"""Names below a directory's descriptor: what Python's os module lacks, and many of them in one call."""

from __future__ import annotations

import os
import struct
from errno import ERANGE
from typing import Any, Final, NamedTuple

from isolib._kernel._ext import ffi, lib
from isolib._kernel.abi import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV
from isolib._kernel.calls.batching import Refused
from isolib._kernel.calls.checking import checked, taken
from isolib._kernel.handle import Fd

_ROOM: Final = 1 << 18  # more would not stay in the processor's cache
_ROWS: Final = 512
_XATTR_ROOM: Final = 65536  # XATTR_SIZE_MAX
_CHARS: Final = ffi.typeof("char[]")
_FOUND: Final = ffi.typeof("struct isolib_found[]")
_DRESS: Final = ffi.typeof("struct isolib_dress *")
_ROW: Final = struct.Struct("=QQQq9Iii4x")  # filled up as C does
_NANOSECONDS: Final = 10**9
_STAGES: Final = {
    lib.ISOLIB_MAKE_OPEN: "openat",
    lib.ISOLIB_MAKE_WRITE: "write",
    lib.ISOLIB_MAKE_OWNER: "fchown",
    lib.ISOLIB_MAKE_MODE: "fchmod",
    lib.ISOLIB_MAKE_TIME: "utimensat",
}


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


def chmod_at(dir_fd: int, name: bytes, mode: int, target: str) -> None:
    """Set the mode of what is in a directory; a symbolic link is refused: fchmodat2(2)."""
    checked("fchmodat", target, lib.isolib_chmod_at(dir_fd, name, mode))


def open_to_read(dir_fd: int, name: bytes, target: str) -> Fd:
    """Open a file of a directory, without changing when it was last read where that is allowed, and without waiting."""
    return taken("openat", target, Fd.take(lib.isolib_open_to_read, dir_fd, name))


def take_beneath(dir_fd: int, path: bytes, flags: int, target: str) -> Fd:
    """Open a path below a directory: no symbolic link, no mount is on the way, or at its end: openat2(2).

    EAGAIN, which it answers when it cannot tell where ".." led, does not come of a path without that.
    """
    resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV
    made = Fd.take(lib.isolib_openat2, dir_fd, path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0, resolve)
    return taken("openat2", target, made)


class Found(NamedTuple):
    """What a name in a directory stands for."""

    name: bytes
    device: int
    inode: int
    size: int
    mtime: int
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

    def look(self, dir_fd: int, names: list[bytes], start: int, small: int, most: int | None = None) -> list[Found]:
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
        most
            No more names than this.
        """
        part = names[start : start + min(most or _ROWS, _ROWS)]
        joined = b"\0".join(part)
        count = lib.isolib_look(dir_fd, joined, len(part), self._found, self._data, self._room, small)
        view = memoryview(ffi.buffer(self._data, self._room))
        rows = ffi.buffer(self._found, count * _ROW.size)
        at, made, new = 0, [], tuple.__new__
        for name, row in zip(part, _ROW.iter_unpack(rows), strict=False):
            device, inode, size, seconds, ns, mode, uid, gid, links, major, minor, xattrs, content, is_whole, error = row
            middle = at + xattrs
            end = middle + content
            mtime = seconds * _NANOSECONDS + ns
            told = bytes(view[at:middle]) if xattrs else b""
            text = bytes(view[middle:end]) if is_whole else None
            at = end
            # The constructor of a named tuple costs three times as much.
            made.append(
                new(Found, (name, device, inode, size, mtime, mode, uid, gid, links, (major, minor), told, text, error))
            )
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


def same_extents(one: int, other: int) -> bool:
    """Return whether two files of one file system are made of the same blocks: FS_IOC_FIEMAP; False where that is not told."""
    return bool(lib.isolib_same_extents(one, other))
