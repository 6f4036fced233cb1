"""From a directory to pieces: what a layer or a tree is made of."""

from __future__ import annotations

import io
import os
import stat
from dataclasses import replace
from errno import ENOENT, ENOTDIR, ESTALE
from operator import length_hint
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, cast

from isolib._kernel import calls
from isolib.errors import SyscallError, Unsupported, from_errno
from isolib.unionfs.disk.files import Descent, attempt, get_xattrs, joined, names_in, shown
from isolib.unionfs.drivers.base import Form
from isolib.unionfs.entry import Entry, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    from isolib._kernel.calls import Found, Packed
    from isolib._kernel.handle import Fd
    from isolib.unionfs.entry import Piece

    #: From the owner and group of one side to those of the other.
    Ids: TypeAlias = Callable[[int, int], tuple[int, int]]

__all__ = [
    "BOOKS",
    "SMALL",
    "FileContent",
    "FileOffer",
    "Ids",
    "Level",
    "Scan",
    "describe",
    "hard_link",
    "scan",
    "with_content",
]

#: Files of up to so many bytes are read while their directory is.
SMALL: Final = 65536

#: The attributes by which a form keeps its books, as far as they say what a layer is.
BOOKS: Final = {Form.OVERLAY: b"trusted.overlay.", Form.USER_OVERLAY: b"user.overlay."}
#: Of what has none.
NO_XATTRS: Final = MappingProxyType[bytes, bytes]({})
_OPAQUE_IN_FUSE: Final = b"user.fuseoverlayfs.opaque"
_ELSEWHERE: Final = (b"redirect", b"metacopy")

_KINDS: Final = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFCHR: Kind.CHARACTER,
    stat.S_IFBLK: Kind.BLOCK,
}
_MODES: Final = 0o7777
_NO_DEVICE: Final = (0, 0)
_ONE_NAME: Final = frozenset({Kind.DIRECTORY, Kind.WHITEOUT})


def scan(root: int, form: Form, *, ids: Ids | None = None) -> Scan:
    """Return what a directory is made of, as pieces: each directory before what is in it, names in the order of their bytes.

    Nothing is followed, and no file but a regular one is opened.  The second name of a file, in this order, is a HARDLINK to
    the first.  Sockets, which no layer can have, are left out: `Scan.left_out` names them.

    Parameters
    ----------
    root
        A descriptor of the directory, which stays open until the last piece has been taken.
    form
        How it lies on disk.  In OVERLAY forms whiteouts, of both kinds that overlayfs has, and opaque marks are decoded.
    ids
        Maps the owner and group on disk to those in the layer.

    Returns
    -------
    Scan
        Iterating it reads the directory; each time anew.

    Raises
    ------
    SyscallError
        Something cannot be read, or is mounted there (EXDEV); ESTALE for a file that was changed while it was read.
    Unsupported
        Overlayfs keeps a part of the layer elsewhere (redirect, metacopy).

    Notes
    -----
    What is removed while it is looked for is not in it.  A content is exactly as long as its entry says.

    Sources: Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories"; ovl_is_whiteout in the kernel.

    Examples
    --------
    >>> root = os.open("/etc", os.O_RDONLY)
    >>> next(iter(scan(root, Form.MERGED)))[0].kind
    <Kind.DIRECTORY: 'directory'>
    >>> os.close(root)
    """
    return Scan(root, form, ids)


class FileContent:
    """The content of a file, opened when it is first asked for; it has a descriptor, of which it is all that there is."""

    __slots__ = ("_dir_fd", "_fd", "_found", "_left", "_path")

    def __init__(self, dir_fd: int, found: Found, path: bytes) -> None:
        self._dir_fd: int | None = dir_fd
        self._found = found
        self._path = path
        self._left = found.size
        self._fd: Fd | None = None

    def fileno(self) -> int:
        """Return a descriptor of the file; its content begins at 0, wherever it stands.

        Raises
        ------
        SyscallError
            ESTALE: the file is not any more what it was.
        """
        if self._fd is None:
            if self._dir_fd is None:
                raise ValueError(f"{shown(self._path)}: the next piece has been asked for")
            opened = calls.open_to_read(self._dir_fd, self._found.name, shown(self._path))
            status = os.fstat(opened.fileno())
            was = self._found
            if (status.st_ino, status.st_dev, status.st_size) != (was.inode, was.device, was.size):
                raise from_errno("openat", shown(self._path), ESTALE, "the file was changed while its directory was read")
            self._fd = opened
        return self._fd.fileno()

    def read(self, size: int = -1, /) -> bytes:
        """Return the next bytes; none at the end.

        Raises
        ------
        SyscallError
            ESTALE: there are fewer than there were.
        """
        wanted = self._left if size < 0 else min(size, self._left)
        if not wanted:
            return b""
        fd = self.fileno()
        try:
            data = os.pread(fd, wanted, self._found.size - self._left)
        except OSError as error:
            raise from_errno("read", shown(self._path), error.errno or ESTALE) from None
        if not data:
            raise from_errno("read", shown(self._path), ESTALE, "the file became shorter while it was read")
        self._left -= len(data)
        if size < 0 and self._left:
            return data + self.read()
        return data

    def close(self) -> None:
        """Give it up."""
        self._dir_fd = None
        if self._fd is not None:
            self._fd.close()


class FileOffer:
    """Names of a directory, from one on; see `isolib.unionfs.entry.Offer`.

    Attributes
    ----------
    path
        Of the directory.
    below
        A descriptor of what lies below it: files that are as there, by what stat(2) says, are not packed.  -1: nothing does.
    """

    __slots__ = ("_dir_fd", "_names", "_packer", "_start", "below", "path", "taken")

    def __init__(self, packer: calls.Packer, dir_fd: int, path: bytes, names: list[bytes], start: int) -> None:
        self._packer = packer
        self._dir_fd = dir_fd
        self._names = names
        self._start = start
        self.path = path
        self.below = -1
        self.taken = 0

    def pack(self, room: memoryview, limit: int | None, *, is_recorded: bool) -> Packed:
        """Pack the next ones."""
        start = self._start + self.taken
        made = self._packer.pack(
            room,
            self._names,
            start,
            dir_fd=self._dir_fd,
            path=self.path,
            below=self.below,
            limit=limit,
            is_recorded=is_recorded,
        )
        self.taken += made.files
        return made


class Level:
    """The names of one directory, looked at in turn."""

    __slots__ = ("_at", "_looker", "_most", "_next", "_rows", "_small", "names")

    def __init__(self, looker: calls.Looker, at: Descent, small: int) -> None:
        self._looker = looker
        self._at = at
        self._small = small
        self.names = names_in(at.fd, at.path)
        self._next = 0
        self._rows: Iterator[Found] = iter(())
        #: How many are looked at in one call, where some are offered first.
        self._most: int | None = None

    def offer(self, packer: calls.Packer) -> Iterator[FileOffer]:
        """Yield an offer of the names that are left, unless the next one has been looked at; what is taken is passed over."""
        if length_hint(self._rows) or self._next == len(self.names):
            return
        offer = FileOffer(packer, self._at.fd, self._at.path, self.names, self._next)
        yield offer
        self._next += offer.taken
        # What is looked at is not packed: so little at first, and more for as long as nothing can be packed.
        self._most = 1 if offer.taken or self._most is None else 2 * self._most

    def next(self) -> Found | None:
        """Return what the next name stands for, of which there still is one; its directory is the one that is gone through."""
        while True:
            for row in self._rows:
                if not row.error:
                    return row
                if row.error != ENOENT:
                    raise from_errno("statx", shown(joined(self._at.path, row.name)), row.error)
            if self._next == len(self.names):
                return None
            rows = self._looker.look(self._at.fd, self.names, self._next, self._small, self._most)
            self._next += len(rows)
            self._rows = iter(rows)


def describe(dir_fd: int, found: Found, path: bytes, form: Form = Form.MERGED, ids: Ids | None = None) -> Entry | None:
    """Return the entry for what a name in a directory stands for; None for a socket."""
    kind = _KINDS.get(stat.S_IFMT(found.mode))
    if kind is None:
        return None
    attributes = found.xattrs.split(b"\0")[:-1] if found.xattrs else []
    books = BOOKS.get(form)
    if books is not None and _is_whiteout(found, kind, attributes, books):
        return Entry(path, Kind.WHITEOUT)
    owner = (found.uid, found.gid) if ids is None else ids(found.uid, found.gid)
    mode, size = stat.S_IMODE(found.mode), found.size if kind is Kind.FILE else 0
    if not attributes and kind is Kind.FILE:
        return Entry(path, kind, mode, *owner, found.mtime, size)
    opaque = books is not None and _is_opaque(dir_fd, found.name, attributes, books, path) and kind is Kind.DIRECTORY
    return Entry(
        path,
        kind,
        mode,
        *owner,
        found.mtime,
        size,
        _target(dir_fd, found, path) if kind is Kind.SYMLINK else b"",
        found.rdev if kind in {Kind.CHARACTER, Kind.BLOCK} else _NO_DEVICE,
        get_xattrs(dir_fd, found.name, attributes, path),
        # Overlayfs looks at the roots of all its layers, whatever they say of themselves.
        opaque and path != b"",
    )


def _is_whiteout(found: Found, kind: Kind, attributes: list[bytes], books: bytes) -> bool:
    if kind is Kind.CHARACTER:
        return found.rdev == _NO_DEVICE
    return kind is Kind.FILE and found.size == 0 and books + b"whiteout" in attributes


def _is_opaque(dir_fd: int, name: bytes, attributes: list[bytes], books: bytes, path: bytes) -> bool:
    for one in _ELSEWHERE:
        if books + one in attributes:
            raise Unsupported(
                "a layer that overlayfs has written with redirect_dir or metacopy",
                f"the attribute {os.fsdecode(books + one)} of {shown(path)}: a part of it lies in another layer",
                "mount with redirect_dir=off and metacopy=off whatever is to become a layer",
            )
    mark = next((one for one in (books + b"opaque", _OPAQUE_IN_FUSE) if one in attributes), None)
    return mark is not None and calls.get_xattr(dir_fd, name, mark, shown(path)) == b"y"


def _target(dir_fd: int, found: Found, path: bytes) -> bytes:
    return found.content if found.content is not None else attempt("readlinkat", path, os.readlink, found.name, dir_fd=dir_fd)


def hard_link(entry: Entry, target: bytes) -> Entry:
    """Return what stands for a further name of a file."""
    return replace(entry, kind=Kind.HARDLINK, size=0, target=target, device=_NO_DEVICE, xattrs=NO_XATTRS)


def with_content(entry: Entry, dir_fd: int, found: Found) -> Iterator[Piece]:
    """Yield the piece of a FILE, and give its content up when the next one is asked for."""
    if found.content is not None:
        yield entry, io.BytesIO(found.content)
        return
    content = FileContent(dir_fd, found, entry.path)
    try:
        yield entry, content
    finally:
        content.close()


class Scan:
    """What a directory is made of; see `scan`.

    Attributes
    ----------
    left_out
        The paths of the sockets that the last iteration has left out.
    """

    def __init__(self, root: int, form: Form, ids: Ids | None) -> None:
        self._root = root
        self._form = form
        self._ids = ids
        self.left_out: list[bytes] = []

    def __iter__(self) -> Iterator[Piece]:
        return cast("Iterator[Piece]", self._go_through(None))  # nobody offers

    def offers(self) -> Iterator[Piece | FileOffer]:
        """As iterating it, with offers of small files."""
        return self._go_through(calls.Packer() if self._ids is None else None)

    def _go_through(self, packer: calls.Packer | None) -> Iterator[Piece | FileOffer]:
        self.left_out = []
        looker = calls.Looker()
        first: dict[tuple[int, int], bytes] = {}
        with Descent(self._root) as at:
            yield self._root_entry(looker, at), None
            levels = [Level(looker, at, SMALL)]
            while levels:
                if packer is not None:
                    yield from levels[-1].offer(packer)
                row = levels[-1].next()
                if row is None:
                    levels.pop()
                    if levels:
                        at.leave()
                    continue
                path = joined(at.path, row.name)
                if row.links == 1 and row.content is not None and not row.xattrs and stat.S_ISREG(row.mode):
                    # As below, but most are such, and this is faster.
                    owner = (row.uid, row.gid) if self._ids is None else self._ids(row.uid, row.gid)
                    yield Entry(path, Kind.FILE, row.mode & _MODES, *owner, row.mtime, row.size), io.BytesIO(row.content)
                    continue
                entry = self._entry(at.fd, row, path, first)
                if entry is None:
                    continue
                if entry.kind is Kind.FILE:
                    yield from with_content(entry, at.fd, row)
                    continue
                yield entry, None
                if entry.kind is Kind.DIRECTORY and _entered(at, row.name):
                    levels.append(Level(looker, at, SMALL))

    def _entry(self, dir_fd: int, row: Found, path: bytes, first: dict[tuple[int, int], bytes]) -> Entry | None:
        entry = describe(dir_fd, row, path, self._form, self._ids)
        if entry is None:
            self.left_out.append(path)
        elif row.links > 1 and entry.kind not in _ONE_NAME:
            name = first.setdefault((row.device, row.inode), path)
            if name is not path:
                return hard_link(entry, name)
        return entry

    def _root_entry(self, looker: calls.Looker, at: Descent) -> Entry:
        (row,) = looker.look(at.fd, [b"."], 0, 0)
        if row.error:
            raise from_errno("statx", "/", row.error)
        entry = describe(at.fd, row, b"", self._form, self._ids)
        if entry is None:
            raise from_errno("statx", "/", ENOTDIR)
        return entry


def _entered(at: Descent, name: bytes) -> bool:
    try:
        at.enter(name)
    except SyscallError as error:
        if error.errno != ENOENT:
            raise
        return False
    return True
