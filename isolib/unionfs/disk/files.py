"""Names below a directory that somebody else may be changing: each is used relative to a descriptor, and no link is followed.

A path leads from a descriptor downward: its parts are directories, never symbolic links, never another mount.  What is found
otherwise is an error that names the path, as it is in the tree: ``/etc/passwd``.
"""

from __future__ import annotations

import os
import sys
from errno import EBADF, EINVAL, ELOOP, ENOSYS, ENOTDIR, EOPNOTSUPP, EPERM, ESTALE, EXDEV
from fcntl import F_DUPFD_CLOEXEC, fcntl, ioctl
from functools import partial
from operator import methodcaller
from typing import TYPE_CHECKING, Final, Self, TypeVar

from isolib._kernel import calls
from isolib._kernel.handle import Fd
from isolib.errors import from_errno

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType

    from isolib.types import AnyPath

__all__ = [
    "CHUNK",
    "NOT_A_DIRECTORY",
    "Descent",
    "attempt",
    "copy_file",
    "get_xattrs",
    "is_kept",
    "joined",
    "make_accessible",
    "names_in",
    "open_at",
    "open_beneath",
    "shown",
    "twin",
]

T = TypeVar("T")

#: What openat2(2) says when something on the way is no directory.
NOT_A_DIRECTORY: Final = frozenset({ELOOP, ENOTDIR})
#: Bytes that are copied at once.
CHUNK: Final = 1 << 20

_LONGEST: Final = 4095  # PATH_MAX, without its NUL
_DIRECTORY: Final = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_AT_ONCE: Final = 64
_FICLONE: Final = 0x40049409
_CANNOT_COPY: Final = frozenset({EBADF, EINVAL, ENOSYS, EOPNOTSUPP, EPERM, EXDEV})

#: As os.fsencode does it with what os.listdir returns, without asking of each name what it is.
_as_bytes: Final = methodcaller("encode", sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())

#: By which overlayfs and fuse-overlayfs keep their own books.
_BOOKS: Final = (b"trusted.overlay.", b"user.overlay.", b"user.fuseoverlayfs.")
#: They say what one host thinks of a file, or hold for one file system only.
_OF_THE_HOST: Final = (b"security.selinux", b"security.SMACK64", b"security.apparmor", b"security.evm", b"btrfs.")
_SYSTEM: Final = b"system."
_ACL: Final = b"system.posix_acl_"


def shown(path: bytes) -> str:
    """Return a path in a tree as it is shown, from the tree's root on."""
    return "/" + os.fsdecode(path)


def joined(path: bytes, name: bytes) -> bytes:
    """Return the path of what is in a directory of a tree."""
    return b"%b/%b" % (path, name) if path else name


def attempt(op: str, path: bytes, function: Callable[..., T], /, *args: object, **options: object) -> T:
    """Call a function of `os`; what it raises says which system call has failed, and on which path of the tree."""
    try:
        return function(*args, **options)
    except OSError as error:
        raise from_errno(op, shown(path), error.errno or EINVAL) from None


def open_at(path: AnyPath, flags: int, *, dir_fd: int | None = None, mode: int = 0o600) -> Fd:
    """As `os.open`, closed by exec, and owned before an interrupt can come."""
    made = Fd.take(partial(os.open, dir_fd=dir_fd), path, flags | os.O_CLOEXEC, mode)
    assert made is not None  # noqa: S101 - os.open raises
    return made


def twin(fd: int) -> Fd:
    """Return another descriptor of the same, owned before an interrupt can come."""
    made = Fd.take(fcntl, fd, F_DUPFD_CLOEXEC, 3)
    assert made is not None  # noqa: S101 - fcntl raises
    return made


def open_beneath(root: int, path: bytes, flags: int = os.O_RDONLY | _DIRECTORY, *, what: bytes | None = None) -> Fd:
    """Open a path below a directory, by default as a directory; empty: the directory itself.

    Parameters
    ----------
    root
        A descriptor of the directory.
    path
        Relative to it.  Longer ones than the kernel takes at once are opened in parts.
    flags
        As for open(2); O_NOFOLLOW and O_CLOEXEC are added.
    what
        The path in the tree, for errors, where it is another.

    Raises
    ------
    SyscallError
        ELOOP or ENOTDIR where a part of the path is a symbolic link, or something else that is no directory; EXDEV where
        something is mounted.
    """
    what = path if what is None else what
    if len(path) <= _LONGEST:
        return calls.take_beneath(root, path or b".", flags, shown(what))
    cut = path.rindex(b"/", 0, _LONGEST)
    with calls.take_beneath(root, path[:cut], os.O_PATH | _DIRECTORY, shown(what)) as held:
        return open_beneath(held.fileno(), path[cut + 1 :], flags, what=what)


def names_in(dir_fd: int, path: bytes) -> list[bytes]:
    """Return the names in a directory, sorted."""
    return sorted(map(_as_bytes, attempt("getdents64", path, os.listdir, dir_fd)))


class Descent:
    """A way through a tree, one directory at a time, however deep: of the directories above only some stay open.

    Those that do not are opened again by way of "..", and must be the ones that they were.

    Parameters
    ----------
    root
        A descriptor of the directory to begin in, which stays the caller's.
    path
        Its path in the tree, for errors.
    """

    __slots__ = ("_closed", "_held", "path")

    def __init__(self, root: int, path: bytes = b"") -> None:
        self.path = path
        #: Of the directories above that are closed: device and inode.
        self._closed: list[tuple[int, int]] = []
        self._held = [open_beneath(root, b"", what=path)]

    @property
    def fd(self) -> int:
        """The descriptor of the directory that it is in."""
        return self._held[-1].fileno()

    @property
    def depth(self) -> int:
        """How many directories it is below the first."""
        return len(self._closed) + len(self._held) - 1

    def enter(self, name: bytes) -> None:
        """Go into a directory of this one."""
        path = joined(self.path, name)
        self._held.append(open_beneath(self.fd, name, what=path))
        self.path = path
        if len(self._held) > _OPEN_AT_ONCE:
            self._closed.append(_identity(self._held[0].fileno()))
            self._held.pop(0).close()

    def leave(self) -> None:
        """Go back to the directory above.

        Raises
        ------
        SyscallError
            ESTALE: the directory was moved meanwhile.
        """
        path = self.path.rpartition(b"/")[0]
        if len(self._held) == 1:
            self._held.insert(0, self._above(path))
        self._held.pop().close()
        self.path = path

    def _above(self, path: bytes) -> Fd:
        made = attempt("openat", path, Fd.take, partial(os.open, dir_fd=self.fd), "..", os.O_RDONLY | _DIRECTORY)
        if made is None or self._closed[-1] != _identity(made.fileno()):
            raise from_errno("openat", shown(path), ESTALE, "its directory was moved meanwhile")
        self._closed.pop()
        return made

    def close(self) -> None:
        """Close what is open of it."""
        for held in self._held:
            held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def make_accessible(fd: int, path: bytes) -> None:
    """Give the owner all rights over a directory, whose descriptor may be an O_PATH one."""
    attempt("chmod", path, os.chmod, f"/proc/self/fd/{fd}", 0o700)


# ---- attributes and contents ----


def is_kept(attribute: bytes) -> bool:
    """Return whether an extended attribute belongs to a file wherever it lies.

    Not what overlayfs and its like keep for themselves, what a security module of one host thinks of it, or settings of one
    file system.
    """
    if attribute.startswith(_SYSTEM):
        return attribute.startswith(_ACL)
    return not attribute.startswith(_BOOKS + _OF_THE_HOST)


def get_xattrs(dir_fd: int, name: bytes, attributes: Iterable[bytes], path: bytes) -> Mapping[bytes, bytes]:
    """Return the extended attributes of what is in a directory that are to be kept, of those named."""
    what = shown(path)
    return {one: calls.get_xattr(dir_fd, name, one, what) for one in attributes if is_kept(one)}


def copy_file(source: int, target: int, size: int, path: bytes) -> None:
    """Copy so many bytes from the beginning of a file into an empty one: shared, or by the kernel, where that is possible.

    Raises
    ------
    SyscallError
        ESTALE: it is shorter by now.
    """
    if os.fstat(source).st_size == size:
        try:
            ioctl(target, _FICLONE, source)
        except OSError:
            pass  # another file system, or one that cannot
        else:
            return
    done, copy = 0, _copy_range
    while done < size:
        got = copy(source, target, min(size - done, 1 << 30), done, path)
        if got is None:
            copy = _copy_bytes
        elif got == 0:
            raise from_errno("read", shown(path), ESTALE, "it became shorter while it was copied")
        else:
            done += got


def _copy_range(source: int, target: int, size: int, offset: int, path: bytes) -> int | None:
    try:
        return os.copy_file_range(source, target, size, offset, offset)
    except OSError as error:
        if error.errno in _CANNOT_COPY:
            return None
        raise from_errno("copy_file_range", shown(path), error.errno or EINVAL) from None


def _copy_bytes(source: int, target: int, size: int, offset: int, path: bytes) -> int:
    data = attempt("read", path, os.pread, source, min(size, CHUNK), offset)
    done = 0
    while done < len(data):
        done += attempt("write", path, os.pwrite, target, memoryview(data)[done:], offset + done)
    return len(data)
