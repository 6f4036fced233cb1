"""Paths in a tree, where its symbolic links lead as if its top were "/": also where nothing lies yet.

openat2(2) with RESOLVE_IN_ROOT does that for what exists.  Here it is done for what is to be made, too: a link that leads to
nothing says where to make it.  Nobody else may change the tree meanwhile; if somebody does, what is opened by the path that is
returned is still below the top, for nothing is followed then.
"""

from __future__ import annotations

import os
import stat
from errno import ELOOP, ENOENT, ENOTDIR
from typing import TYPE_CHECKING, Final, NamedTuple

from isolib.errors import SyscallError, from_errno
from isolib.unionfs.disk.attributes import set_mtime
from isolib.unionfs.disk.files import attempt, open_beneath, shown

if TYPE_CHECKING:
    from isolib._kernel.handle import Fd

__all__ = ["MountPoints", "Resolved", "make_directories", "read_file", "resolve"]

#: As many as the kernel follows (path_resolution(7)).
_MOST_LINKS: Final = 40
_PATH: Final = os.O_PATH | os.O_DIRECTORY


class Resolved(NamedTuple):
    """Where a path leads.

    Attributes
    ----------
    path
        From the top on, without links.
    missing
        How many names at its end there are not.
    kind
        What lies there, as `stat.S_IFMT` has it; None: nothing.
    """

    path: bytes
    missing: int
    kind: int | None

    @property
    def is_directory(self) -> bool:
        """Whether a directory lies there."""
        return self.kind == stat.S_IFDIR


def resolve(root: int, path: bytes, *, follow: bool = True) -> Resolved:
    """Find out where a path leads in a tree.

    Parameters
    ----------
    root
        A descriptor of its top.
    path
        From the top on, with or without a slash before it.
    follow
        Whether a symbolic link at the end is followed.

    Raises
    ------
    SyscallError
        ELOOP: too many links.  ENOTDIR: something on the way is no directory.
    """
    todo = _names(path)[::-1]
    found: list[bytes] = []
    missing = links = 0
    while todo:
        name = todo.pop()
        if name == b"..":
            found, missing = found[:-1], max(0, missing - 1)
            continue
        found.append(name)
        if missing:
            missing += 1
            continue
        mode = _mode(root, found)
        if mode is None:
            missing = 1
        elif stat.S_ISLNK(mode) and (todo or follow):
            links += 1
            if links > _MOST_LINKS:
                raise from_errno("openat2", shown(path), ELOOP)
            target = _target(root, found)
            found = [] if target.startswith(b"/") else found[:-1]
            todo += _names(target)[::-1]
        elif todo and not stat.S_ISDIR(mode):
            raise from_errno("openat2", shown(b"/".join(found)), ENOTDIR)
    mode = None if missing else _mode(root, found)
    return Resolved(b"/".join(found), missing, None if mode is None else stat.S_IFMT(mode))


def _names(path: bytes) -> list[bytes]:
    return [name for name in path.split(b"/") if name not in {b"", b"."}]


def _parent(root: int, names: list[bytes]) -> Fd:
    return open_beneath(root, b"/".join(names[:-1]), _PATH)


def _mode(root: int, names: list[bytes]) -> int | None:
    if not names:
        return stat.S_IFDIR
    with _parent(root, names) as parent:
        try:
            return attempt("newfstatat", b"/".join(names), _lstat, names[-1], parent.fileno()).st_mode
        except SyscallError as error:
            if error.errno == ENOENT:
                return None
            raise


def _lstat(name: bytes, dir_fd: int) -> os.stat_result:
    return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)


def _target(root: int, names: list[bytes]) -> bytes:
    with _parent(root, names) as parent:
        target: bytes = attempt("readlinkat", b"/".join(names), os.readlink, names[-1], dir_fd=parent.fileno())
        return target


def read_file(root: int, path: bytes, most: int) -> bytes:
    """Return the beginning of a file in a tree; nothing where there is none.

    Parameters
    ----------
    root, path
        As in `resolve`.
    most
        How many bytes.
    """
    found = resolve(root, path)
    if found.kind != stat.S_IFREG:
        return b""
    with (
        open_beneath(root, found.path, os.O_RDONLY | os.O_NONBLOCK) as file,
        open(file.fileno(), "rb", closefd=False) as stream,
    ):
        return attempt("read", found.path, stream.read, most)


def make_directories(root: int, path: bytes, *, mode: int = 0o755) -> bytes:
    """Make a directory in a tree, with those above it, where it is absent; return where it is.

    Raises
    ------
    SyscallError
        ENOTDIR: something else lies there.
    """
    found = resolve(root, path)
    if found.kind is not None and not found.is_directory:
        raise from_errno("mkdirat", shown(found.path), ENOTDIR)
    for name in _absent(found):
        _make(root, name, directory=True, mode=mode)
    return found.path


def _absent(found: Resolved) -> list[bytes]:
    """Return the paths that there are not, from the top on."""
    names = found.path.split(b"/")
    return [b"/".join(names[:count]) for count in range(len(names) - found.missing + 1, len(names) + 1)]


def _make(root: int, path: bytes, *, directory: bool, mode: int = 0o755) -> None:
    names = path.split(b"/")
    with _parent(root, names) as parent:
        if directory:
            attempt("mkdirat", path, os.mkdir, names[-1], dir_fd=parent.fileno())
            # Whatever the umask of this process is.
            attempt("fchmodat", path, os.chmod, names[-1], mode, dir_fd=parent.fileno())
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(attempt("openat", path, os.open, names[-1], flags, 0o644, dir_fd=parent.fileno()))


class _Made(NamedTuple):
    path: bytes
    before: int
    after: int


class MountPoints:
    """Mount points that a tree has for a while: what was made for them goes again, and leaves no trace in a layer.

    Parameters
    ----------
    root
        A descriptor of the tree's top.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._made: list[_Made] = []

    def make(self, path: bytes, *, directory: bool, follow: bool = True) -> bytes:
        """Make one where nothing lies, with the directories above it; return where it is."""
        found = resolve(self._root, path, follow=follow)
        for name in _absent(found):
            above = name.rpartition(b"/")[0]
            before = self._mtime(above)
            _make(self._root, name, directory=directory or name != found.path)
            self._made.append(_Made(name, before, self._mtime(above)))
        return found.path

    def _mtime(self, path: bytes) -> int:
        with open_beneath(self._root, path) as opened:
            return os.fstat(opened.fileno()).st_mtime_ns

    def remove(self) -> None:
        """Remove what was made and is empty still.  A directory above in which nothing else has changed has its time again."""
        while self._made:
            self._remove(self._made.pop())

    def _remove(self, made: _Made) -> None:
        above, _, name = made.path.rpartition(b"/")
        try:
            with open_beneath(self._root, above) as parent:
                status = attempt("newfstatat", made.path, _lstat, name, parent.fileno())
                if stat.S_ISREG(status.st_mode) and status.st_size:
                    return
                is_unchanged = os.fstat(parent.fileno()).st_mtime_ns == made.after
                remove = os.rmdir if stat.S_ISDIR(status.st_mode) else os.unlink
                try:
                    remove(name, dir_fd=parent.fileno())
                except OSError:  # it is used: it has something in it
                    return
                if is_unchanged:
                    set_mtime(parent.fileno(), made.before, above)
        except SyscallError as error:
            if error.errno not in {ENOENT, ENOTDIR, ELOOP}:  # else the command has removed, or replaced, it
                raise
