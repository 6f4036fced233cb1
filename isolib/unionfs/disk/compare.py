"""What is different between two trees, and what a layer changes of what is below it."""

from __future__ import annotations

import os
import stat
from contextlib import closing
from errno import ESTALE
from fcntl import ioctl
from io import BytesIO
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib.errors import from_errno
from isolib.unionfs.disk.below import Below
from isolib.unionfs.disk.files import CHUNK, Descent, attempt, get_xattrs, joined, shown
from isolib.unionfs.disk.scan import SMALL, FileContent, Level, describe, hard_link, with_content
from isolib.unionfs.entry import Change, ChangeKind, Entry, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from collections.abc import Set as AbstractSet

    from isolib._kernel.calls import Found
    from isolib.unionfs.disk.below import Visible
    from isolib.unionfs.drivers.base import Form
    from isolib.unionfs.entry import Content, Piece, Pieces

__all__ = ["changes", "difference", "exact"]

_BTRFS_FS_INFO: Final = 0x8400941F
_BTRFS_FS_INFO_SIZE: Final = 1024


def difference(old: int, new: int, within: AbstractSet[int] | None = None) -> Pieces:
    """Return what must be changed of a tree to make another one of it: parents first, names in the order of their bytes.

    Exactly that: everything in it is different, and what is the same is not in it.  Owners, modes, times of modification to the
    nanosecond, extended attributes, contents, and which names are of one file count; times of access and of change do not.

    Parameters
    ----------
    old, new
        Descriptors of the directories, as MERGED layers lie; they stay open until the last piece has been taken.  Neither tree
        is to be changed meanwhile.
    within
        Inodes of the new tree's file system, among which are all that are not as they were, and all directories above these:
        what others stand for, and what is below them, is left out where it has the same number in the old tree, which therefore
        is a snapshot of the new one or the other way round.  None: nothing is known.

    Raises
    ------
    SyscallError
        Something cannot be read, or is mounted there (EXDEV).

    Notes
    -----
    No time says that a file is the same: files of the same size are read, unless both are one inode, or are made of the same
    blocks, as reflinks are (btrfs and XFS; FS_IOC_FIEMAP).

    Sockets are in neither tree.
    """
    return _Difference(old, new, within)


class _Difference:
    def __init__(self, old: int, new: int, within: AbstractSet[int] | None) -> None:
        self._old = old
        self._new = new
        self._within = within

    def __iter__(self) -> Iterator[Piece]:
        with Descent(self._old) as old, Descent(self._new) as new:
            yield from _Walk(old, new, self._within).pieces()


class _Frame:
    """A directory of the new tree, beside that of the old one if it was one there too."""

    __slots__ = ("_new", "_new_level", "_old", "_old_level")

    def __init__(self, old_level: Level | None, new_level: Level) -> None:
        self._old_level = old_level
        self._new_level = new_level
        #: What is next; an empty list: it is not known yet, for what is looked at too early would only wait.
        self._old: list[Found | None] = []
        self._new: list[Found | None] = []

    @property
    def is_paired(self) -> bool:
        """Whether it was a directory in the old tree."""
        return self._old_level is not None

    def next_pair(self) -> tuple[Found | None, Found | None]:
        """Return what the next name stands for in the old and in the new tree; None twice at the end."""
        if not self._old:
            self._old.append(None if self._old_level is None else _no_socket(self._old_level))
        if not self._new:
            self._new.append(_no_socket(self._new_level))
        old, new = self._old[0], self._new[0]
        if old is not None and new is not None and old.name != new.name:
            old, new = (old, None) if old.name < new.name else (None, new)
        if old is not None:
            self._old.clear()
        if new is not None:
            self._new.clear()
        return old, new


def _no_socket(level: Level) -> Found | None:
    while (found := level.next()) is not None and stat.S_ISSOCK(found.mode):
        pass
    return found


class _Walk:
    """A way through two trees, side by side.

    Of files with several names this is kept, by device and inode: in the new tree the first name, in the old one the first name
    that the new tree has unchanged.  A further name is the same when both say the same of it.
    """

    def __init__(self, old: Descent, new: Descent, within: AbstractSet[int] | None) -> None:
        self._old = old
        self._new = new
        self._within = within
        self._looker = calls.Looker()
        self._old_names: dict[tuple[int, int], bytes] = {}
        self._new_names: dict[tuple[int, int], bytes] = {}
        self._same_system: dict[tuple[int, int], bool] = {}
        self._tops = (0, 0)

    def pieces(self) -> Iterator[Piece]:
        """Yield what is different."""
        before, after = (_look(self._looker, at, b".", b"") for at in (self._old, self._new))
        if not self._alike(before, after, b""):
            yield self._entry(after, b""), None
        self._tops = before.device, after.device
        frames = [self._frame(both=True)]
        while frames:
            frame = frames[-1]
            old, new = frame.next_pair()
            if new is None:
                if old is not None:
                    yield Entry(joined(self._new.path, old.name), Kind.WHITEOUT), None
                    continue
                self._leave(frames)
                continue
            path = joined(self._new.path, new.name)
            if not stat.S_ISDIR(new.mode):
                yield from self._file(old, new, path)
                continue
            both = old is not None and stat.S_ISDIR(old.mode)
            if self._is_left_out(old, new):
                continue
            if old is None or not both or not self._alike(old, new, path):
                yield self._entry(new, path), None
            self._new.enter(new.name)
            if both:
                self._old.enter(new.name)
            frames.append(self._frame(both=both))

    def _is_left_out(self, old: Found | None, new: Found) -> bool:
        """Return whether it is known of a directory that nothing in it has changed."""
        if self._within is None or old is None or (old.device, new.device) != self._tops or old.inode != new.inode:
            return False
        return new.inode not in self._within

    def _frame(self, *, both: bool) -> _Frame:
        new = Level(self._looker, self._new, SMALL)
        if not both:
            return _Frame(None, new)
        old = Level(self._looker, self._old, SMALL)
        if self._within is not None and (os.fstat(self._old.fd).st_dev, os.fstat(self._new.fd).st_dev) == self._tops:
            unchanged = _files_in(self._old) & _files_in(self._new)
            known = {name for name, inode in unchanged if inode not in self._within}
            for level in (old, new):
                level.names = [name for name in level.names if name not in known]
        return _Frame(old, new)

    def _leave(self, frames: list[_Frame]) -> None:
        frame = frames.pop()
        if frames:
            self._new.leave()
            if frame.is_paired:
                self._old.leave()

    def _entry(self, found: Found, path: bytes) -> Entry:
        entry = describe(self._new.fd, found, path)
        if entry is None:  # sockets have been left out
            raise from_errno("statx", shown(path), ESTALE)
        return entry

    def _file(self, old: Found | None, new: Found, path: bytes) -> Iterator[Piece]:
        new_id = (new.device, new.inode)
        first = self._new_names.get(new_id) if new.links > 1 else None
        if first is not None:
            if old is None or self._old_names.get((old.device, old.inode)) != first:
                yield hard_link(self._entry(new, path), first), None
            return
        if new.links > 1:
            self._new_names[new_id] = path
        if old is not None:
            old_id = (old.device, old.inode)
            if (old.links == 1 or old_id not in self._old_names) and self._same(old, new, path):
                if old.links > 1:
                    self._old_names[old_id] = path
                return
        entry = self._entry(new, path)
        if entry.kind is Kind.FILE:
            yield from with_content(entry, self._new.fd, new)
        else:
            yield entry, None

    def _same(self, old: Found, new: Found, path: bytes) -> bool:
        if (old.device, old.inode) == (new.device, new.inode):
            return True
        if not self._alike(old, new, path):
            return False
        if old.content is not None and new.content is not None:
            return old.content == new.content
        return not stat.S_ISREG(new.mode) or self._same_content(old, new, path)

    def _alike(self, old: Found, new: Found, path: bytes) -> bool:
        """Return whether everything is the same but the content."""
        if _told(old) != _told(new) or (not stat.S_ISDIR(new.mode) and old.size != new.size):
            return False
        if not old.xattrs and not new.xattrs:
            return True
        sides = ((self._old.fd, old), (self._new.fd, new))
        before, after = (get_xattrs(fd, found.name, found.xattrs.split(b"\0")[:-1], path) for fd, found in sides)
        return before == after

    def _same_content(self, old: Found, new: Found, path: bytes) -> bool:
        one, other = FileContent(self._old.fd, old, path), FileContent(self._new.fd, new, path)
        with closing(one), closing(other):
            if self._is_one_system(one, other, old, new) and calls.same_extents(one.fileno(), other.fileno()):
                return True
            return _same_bytes(one, other)

    def _is_one_system(self, one: FileContent, other: FileContent, old: Found, new: Found) -> bool:
        """Return whether blocks of the same number are the same: each subvolume of btrfs has a device number of its own."""
        if old.device == new.device:
            return True
        known = self._same_system.get((old.device, new.device))
        if known is None:
            first = _btrfs_of(one.fileno())
            known = first is not None and first == _btrfs_of(other.fileno())
            self._same_system[old.device, new.device] = known
        return known


def _files_in(at: Descent) -> set[tuple[bytes, int]]:
    """Return names and inodes of what is in a directory but directories, for no number tells which of these are subvolumes."""
    with attempt("getdents64", at.path, os.scandir, at.fd) as entries:
        return {(os.fsencode(one.name), one.inode()) for one in entries if not one.is_dir(follow_symlinks=False)}


def _told(found: Found) -> tuple[object, ...]:
    return found.mode, found.uid, found.gid, found.mtime, found.rdev


def _look(looker: calls.Looker, at: Descent, name: bytes, path: bytes) -> Found:
    (found,) = looker.look(at.fd, [name], 0, 0)
    if found.error:
        raise from_errno("statx", shown(path), found.error)
    return found


def _btrfs_of(fd: int) -> bytes | None:
    answer = bytearray(_BTRFS_FS_INFO_SIZE)
    try:
        ioctl(fd, _BTRFS_FS_INFO, answer)
    except OSError:
        return None
    return bytes(answer[16:32])


def _same_bytes(one: Content, other: Content) -> bool:
    while (part := _read_all(one, CHUNK)) == _read_all(other, CHUNK):
        if not part:
            return True
    return False


def _read_all(content: Content, size: int) -> bytes:
    """Return so many bytes; fewer at the end only."""
    data = content.read(size)
    while len(data) < size and (more := content.read(size - len(data))):
        data += more
    return data


# ---- a layer and what is below ----


def changes(pieces: Pieces, lowers: Sequence[int], form: Form) -> list[Change]:
    """Return the paths at which a layer makes a tree another one than what is below it, sorted.

    Parameters
    ----------
    pieces
        Of the layer.
    lowers
        Descriptors of the layers below, the topmost first, or of their merged tree.
    form
        How those lie on disk.

    Notes
    -----
    A directory that is gone is one DELETED path.  Of directories the time of modification does not count, for it tells no more
    than the paths in it.
    """
    below = Below(lowers, form)
    found: dict[bytes, ChangeKind] = {}
    brought: dict[bytes, Kind] = {}
    hidden: list[bytes] = []
    gone: list[bytes] = []
    for entry, content in pieces:
        if entry.kind is Kind.WHITEOUT:
            gone.append(entry.path)
            continue
        if entry.opaque or entry.kind is Kind.OPAQUE:
            hidden.append(entry.path)
        if entry.kind is Kind.OPAQUE:
            continue
        brought[entry.path] = entry.kind
        kind = _change(entry, content, below, found)
        if kind is None:
            found.pop(entry.path, None)
        else:
            found[entry.path] = kind
    hidden += [path for path in gone if path in brought]
    for path in gone:
        if path not in brought and below.find(path) is not None:
            found[path] = ChangeKind.DELETED
    for path in hidden:
        _note_hidden(path, below, brought, found)
    return sorted(Change(shown(path), kind) for path, kind in found.items())


def _change(entry: Entry, content: Content | None, below: Below, found: dict[bytes, ChangeKind]) -> ChangeKind | None:
    """Return what an entry changes; of a hard link, what was found for its target counts."""
    seen = below.find(entry.path)
    if seen is None:
        return ChangeKind.ADDED
    if entry.kind is Kind.HARDLINK:
        is_other = entry.target in found or not _is_same_file(seen, below.find(entry.target))
    else:
        is_other = _is_other(entry, content, seen, below)
    return ChangeKind.MODIFIED if is_other else None


def _is_same_file(one: Visible, other: Visible | None) -> bool:
    return other is not None and (one.found.device, one.found.inode) == (other.found.device, other.found.inode)


def _note_hidden(path: bytes, below: Below, brought: dict[bytes, Kind], found: dict[bytes, ChangeKind]) -> None:
    todo = [path]
    while todo:
        at = todo.pop()
        for name in below.names(at):
            one = joined(at, name)
            if one not in brought:
                found[one] = ChangeKind.DELETED
            elif brought[one] is Kind.DIRECTORY:
                todo.append(one)


def exact(pieces: Pieces, lowers: Sequence[int], form: Form) -> Iterator[Piece]:
    """Leave out of a layer what is as it is below: files that were written to or touched in an overlay, and are the same.

    Directories stay, and so do hard links.

    Parameters
    ----------
    pieces
        Of the layer, as `isolib.unionfs.disk.scan` has them: their contents can be read twice.
    lowers, form
        As of `changes`.
    """
    below = Below(lowers, form)
    for entry, content in pieces:
        if entry.kind not in _ALWAYS:
            seen = below.find(entry.path)
            if seen is not None and not _is_other(entry, content, seen, below):
                continue
            if isinstance(content, BytesIO):
                content.seek(0)
        yield entry, content


_ALWAYS: Final = frozenset({Kind.DIRECTORY, Kind.HARDLINK, Kind.OPAQUE, Kind.WHITEOUT})


def _is_other(entry: Entry, content: Content | None, seen: Visible, below: Below) -> bool:
    was = seen.entry
    if entry.kind is Kind.DIRECTORY and was.kind is Kind.DIRECTORY:
        return (entry.mode, entry.uid, entry.gid) != (was.mode, was.uid, was.gid) or entry.xattrs != was.xattrs
    told, before = _without_content(entry), _without_content(was)
    if told != before:
        return True
    if entry.kind is not Kind.FILE or not entry.size:
        return False
    with below.open(seen, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY) as opened:
        return content is None or not _same_bytes(_Pread(opened.fileno(), was.path), _again(content, entry.path))


def _without_content(entry: Entry) -> tuple[object, ...]:
    xattrs = tuple(sorted(entry.xattrs.items()))
    return entry.kind, entry.mode, entry.uid, entry.gid, entry.mtime, entry.size, entry.target, entry.device, xattrs


def _again(content: Content, path: bytes) -> Content:
    return _Pread(content.fileno(), path) if isinstance(content, FileContent) else content


class _Pread:
    """The content of an open file, read without moving the position that others read from."""

    def __init__(self, fd: int, path: bytes) -> None:
        self._fd = fd
        self._path = path
        self._at = 0

    def read(self, size: int = -1, /) -> bytes:
        """Return the next bytes."""
        data = attempt("pread", self._path, os.pread, self._fd, size, self._at)
        self._at += len(data)
        return data
