"""What is to be copied into an image: files and directories from elsewhere, taken once, under one digest.

They are read one time only, into a file of the store's.  So what the digest is of is what gets into the image, whatever becomes
of the originals meanwhile.
"""

from __future__ import annotations

import os
import stat
from array import array
from contextlib import ExitStack
from dataclasses import replace
from errno import EISDIR, ENOENT, ENOTDIR
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, NamedTuple

from isolib._kernel import calls
from isolib._kernel.hints import typed
from isolib.errors import ArchiveError, PlanError, from_errno
from isolib.types import check_path
from isolib.unionfs.archive import tar
from isolib.unionfs.archive.streams import DigestWriter
from isolib.unionfs.disk.files import joined, open_at, open_beneath, shown
from isolib.unionfs.disk.resolving import resolve
from isolib.unionfs.disk.scan import SMALL, describe, scan, with_content
from isolib.unionfs.disk.unpack import unpack
from isolib.unionfs.drivers.base import Form
from isolib.unionfs.entry import Entry, Kind
from isolib.unionfs.images.accounts import owner_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import BinaryIO

    from isolib._kernel.handle import Fd
    from isolib.types import AnyPath
    from isolib.unionfs.disk.resolving import Resolved
    from isolib.unionfs.entry import Content, Piece, Pieces

__all__ = ["Context", "Excluded", "Source", "gather", "gather_below", "open_source", "put"]

_DIRECTORY_MODE: Final = 0o755
_READ: Final = 0o444
#: They name users and groups of where they come from.
_ACCESS_LISTS: Final = b"system.posix_acl_"
_NO_DEVICE: Final = (0, 0)


# ---- where it comes from ----


class Source(NamedTuple):
    """One thing to be copied.

    Attributes
    ----------
    root
        A descriptor of the directory, or of the one that the file lies in.
    name
        The file's name; None: it is the directory.
    """

    root: int
    name: bytes | None


@typed("a source")
def open_source(stack: ExitStack, path: AnyPath) -> Source:
    """Open a file or directory of the host, which symbolic links may lead to.

    Raises
    ------
    PlanError
        It is something else.
    SyscallError
        It cannot be opened.
    """
    real = os.path.realpath(os.fsencode(check_path(path, "source")), strict=True)
    kind = stat.S_IFMT(os.stat(real).st_mode)
    above, name = (real, None) if kind == stat.S_IFDIR else os.path.split(real)
    _check_kind(kind, os.fsdecode(real))
    return Source(stack.enter_context(open_at(above, os.O_RDONLY | os.O_DIRECTORY)).fileno(), name)


def open_below(stack: ExitStack, root: int, path: AnyPath) -> Source:
    """Open a file or directory of a tree, in which alone symbolic links lead; otherwise as `open_source`."""
    found = resolve(root, os.fsencode(check_path(path, "source")))
    if found.kind is None:
        raise from_errno("openat2", shown(found.path), ENOENT)
    _check_kind(found.kind, shown(found.path))
    above, _, name = found.path.rpartition(b"/")
    opened = stack.enter_context(open_beneath(root, found.path if found.is_directory else above))
    return Source(opened.fileno(), None if found.is_directory else name)


def _check_kind(kind: int, path: str) -> None:
    if kind not in {stat.S_IFDIR, stat.S_IFREG}:
        raise PlanError(f"source: {path} is neither a file nor a directory")


class Excluded:
    """What is left out of directories that are copied.

    Parameters
    ----------
    patterns
        As those of `fnmatch`.  One without a slash is for names, at any depth; one with a slash for the whole path below the
        directory that is copied, and each part of it for one name.  What is in a directory that is left out is left out too.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        if isinstance(patterns, (str, bytes)):
            raise PlanError(f"exclude: a list of patterns, not {patterns!r}")
        #: Each as its parts.
        self.patterns = [one.strip("/").split("/") for one in patterns]
        self._whole = ["/" in one for one in patterns]

    def __call__(self, path: bytes) -> bool:
        """Return whether a path is left out, itself or with a directory above it."""
        if not self.patterns:
            return False
        parts = os.fsdecode(path).split("/")
        return any(self._leaves_out(parts[:count]) for count in range(1, len(parts) + 1))

    def _leaves_out(self, parts: list[str]) -> bool:
        return any(
            len(pattern) == len(parts) and all(map(fnmatchcase, parts, pattern))
            if whole
            else fnmatchcase(parts[-1], pattern[0])
            for pattern, whole in zip(self.patterns, self._whole, strict=True)
        )


# ---- taking it ----


class Context(NamedTuple):
    """What is to be copied.

    Attributes
    ----------
    file
        The archive.  What belongs to the first source is called ``0`` in it, and so on.
    digest
        Of all but the times.
    times
        Of the last modification, in nanoseconds since 1970, one for each entry.
    are_directories
        Of each source: whether it is a directory.
    """

    file: Fd
    digest: str
    times: array[int]
    are_directories: tuple[bool, ...]

    @property
    def kind(self) -> str:
        """What it is, as Docker's histories call it."""
        if len(self.are_directories) > 1:
            return "multi"
        return "dir" if self.are_directories[0] else "file"

    def pieces(self) -> Iterator[Piece]:
        """Yield what is in it."""
        times = iter(self.times)
        with open(self.file.fileno(), "rb", closefd=False) as stream:
            stream.seek(0)
            for entry, content in tar.read(stream):
                yield replace(entry, mtime=next(times)), content


class _Sink:
    """A file that is written as a whole."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    @typed("what is to be copied")
    def write(self, data: bytes) -> None:
        self._file.write(data)


def gather_below(
    root: int, paths: Sequence[AnyPath], file: Fd, excluded: Excluded, *, owner: tuple[int, int], mode: int | None
) -> Context:
    """Read what is to be copied from paths of a tree, whose top is ``root``; otherwise as `gather`."""
    with ExitStack() as stack:
        return gather([open_below(stack, root, one) for one in paths], file, excluded, owner=owner, mode=mode)


def gather(sources: Sequence[Source], file: Fd, excluded: Excluded, *, owner: tuple[int, int], mode: int | None) -> Context:
    """Read what is to be copied.

    Parameters
    ----------
    sources
        What it is.
    file
        Open for reading and writing, empty.
    excluded
        What is left out.
    owner
        Whose everything becomes.
    mode
        Permission bits that everything gets; directories can be searched, too, by those who can read them.  None: its own.

    Raises
    ------
    ArchiveError
        No layer can have it: a name that begins with ``.wh.``, a device 0:0.
    SyscallError
        It cannot be read, or was changed while it was.
    """
    times = array("q")

    def told() -> Iterator[Piece]:
        for number, source in enumerate(sources):
            for entry, content in _pieces(source, excluded):
                if entry.kind is Kind.CHARACTER and entry.device == _NO_DEVICE:
                    raise ArchiveError("is a character device 0:0, which in a layer means that something is gone", entry.path)
                times.append(entry.mtime)
                yield _dressed(entry, b"%d" % number, owner, mode), content

    with open(file.fileno(), "wb", closefd=False) as stream:
        digest = DigestWriter(_Sink(stream))
        tar.write(told(), digest)
    return Context(file, digest.digest, times, tuple(one.name is None for one in sources))


def _dressed(entry: Entry, top: bytes, owner: tuple[int, int], mode: int | None) -> Entry:
    bits = entry.mode if mode is None or entry.kind is Kind.SYMLINK else mode
    if mode is not None and entry.kind is Kind.DIRECTORY:
        bits |= (mode & _READ) >> 2
    attributes = {name: value for name, value in entry.xattrs.items() if not name.startswith(_ACCESS_LISTS)}
    path = joined(top, entry.path) if entry.path else top
    target = joined(top, entry.target) if entry.kind is Kind.HARDLINK else entry.target
    uid, gid = owner
    return replace(entry, path=path, target=target, uid=uid, gid=gid, mode=bits, mtime=0, xattrs=attributes)


def _pieces(source: Source, excluded: Excluded) -> Iterator[Piece]:
    if source.name is not None:
        yield from _one(source.root, source.name, source.name)
        return
    #: Files whose first name is left out, and the name that they have in its place.
    instead: dict[bytes, bytes] = {}
    for entry, content in scan(source.root, Form.MERGED):
        if entry.path and excluded(entry.path):
            continue
        if entry.kind is Kind.HARDLINK and excluded(entry.target):
            if (first := instead.setdefault(entry.target, entry.path)) is entry.path:
                yield from _one(source.root, entry.path, entry.path)
            else:
                yield replace(entry, target=first), content
            continue
        yield entry, content


def _one(root: int, path: bytes, name: bytes) -> Iterator[Piece]:
    """Yield what lies at a path, which is no directory."""
    above, _, last = path.rpartition(b"/")
    with open_beneath(root, above) as parent:
        (row,) = calls.Looker().look(parent.fileno(), [last], 0, SMALL)
        if row.error:
            raise from_errno("statx", shown(path), row.error)
        entry = describe(parent.fileno(), row, name)
        if entry is None:
            return
        if entry.kind is Kind.FILE:
            yield from with_content(entry, parent.fileno(), row)
        else:
            yield entry, None


# ---- where it goes ----


def put(root: int, context: Context, target: bytes, owner: str | None, ids: tuple[int, int]) -> None:
    """Unpack what was taken at a path of a tree; see `placed`.

    Parameters
    ----------
    root, context, target
        As of `placed`.
    owner
        Whose everything becomes, as the image knows them; None: it is theirs whose ids it was taken with.
    ids
        With which it was taken.
    """
    named = ids if owner is None else owner_of(root, owner)
    pieces = placed(context, root, target, named)
    if named != ids:
        pieces = ((replace(entry, uid=named[0], gid=named[1]), content) for entry, content in pieces)
    unpack(pieces, root, Form.MERGED)


def placed(context: Context, root: int, target: bytes, owner: tuple[int, int]) -> Pieces:
    """Return what is to be unpacked at the top of a tree, so that what was taken is at a path of it.

    A directory's content goes into the target, which is a directory then; a file goes into it where it is one, or is to be one,
    because several things are copied or because its path ends with a slash; otherwise the file is what lies there.  A directory
    that is there already, and that is the target, stays as it is but for what comes into it.

    Parameters
    ----------
    context
        What was taken.
    root
        A descriptor of the top.
    target
        The path, from the top on; links in it lead within the tree.
    owner
        Whose the directories above it become that there are not yet.

    Raises
    ------
    SyscallError
        ENOTDIR: a directory is to be where something else lies.  EISDIR: the other way round.
    """
    found = resolve(root, target)
    into = len(context.are_directories) > 1 or context.are_directories[0] or target.endswith((b"/", b"/.")) or not found.path
    into = into or found.is_directory
    if into and found.kind is not None and not found.is_directory:
        raise from_errno("mkdirat", shown(found.path), ENOTDIR, "this is where a directory is to be copied to, or into")
    return _Checked(root, _moved(context, found, owner, into=into))


def _moved(context: Context, found: Resolved, owner: tuple[int, int], *, into: bool) -> Iterator[Piece]:
    names = found.path.split(b"/")
    made = range(len(names) - found.missing + 1, len(names) + (into and not context.are_directories[0]))
    newest = max(context.times, default=0)
    for count in made:
        yield Entry(b"/".join(names[:count]), Kind.DIRECTORY, _DIRECTORY_MODE, *owner, newest), None
    for entry, content in context.pieces():
        number, _, rest = entry.path.partition(b"/")
        if not rest:
            # Of several directories the first one says what that is like in which they become one.
            if number == b"0" and found.missing:
                yield replace(entry, path=found.path), content
            continue
        yield replace(entry, path=_at(found, rest, into=into), target=_target(entry, found, into=into)), content


def _target(entry: Entry, found: Resolved, *, into: bool) -> bytes:
    if entry.kind is not Kind.HARDLINK:
        return entry.target
    return _at(found, entry.target.partition(b"/")[2], into=into)


def _at(found: Resolved, rest: bytes, *, into: bool) -> bytes:
    return joined(found.path, rest) if into else found.path


class _Checked:
    """Pieces of which no directory takes the place of something else, nor the other way round."""

    def __init__(self, root: int, pieces: Iterable[Piece]) -> None:
        self._root = root
        self._pieces = pieces
        self._new: set[bytes] = set()

    def __iter__(self) -> Iterator[tuple[Entry, Content | None]]:
        for entry, content in self._pieces:
            above = entry.path.rpartition(b"/")[0]
            is_directory = entry.kind is Kind.DIRECTORY
            kind = None if above in self._new else self._kind(entry.path)
            if kind is None and is_directory:
                self._new.add(entry.path)
            if kind is not None and (kind == stat.S_IFDIR) is not is_directory:
                number, text = (ENOTDIR, "a directory") if is_directory else (EISDIR, "something else than a directory")
                hint = f"{text} is to be copied there: remove what lies there first, or choose another place"
                raise from_errno("renameat2", shown(entry.path), number, hint)
            yield entry, content

    def _kind(self, path: bytes) -> int | None:
        above, _, name = path.rpartition(b"/")
        with open_beneath(self._root, above, os.O_PATH | os.O_DIRECTORY) as parent:
            try:
                return stat.S_IFMT(os.stat(name, dir_fd=parent.fileno(), follow_symlinks=False).st_mode)
            except FileNotFoundError:
                return None
