"""What an upper directory changes of what lies below it: exactly that, and nothing that is as it was.

overlayfs copies a file up when it is opened to be written, whatever becomes of it, and marks every new directory as opaque,
whatever lies below.  So the upper directory is compared with the lower ones, merged: a file that is the same, byte for byte, is
no change.  Times of directories, which tell of what is in them, are none either.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, replace
from errno import EEXIST
from typing import TYPE_CHECKING, Final, cast

from isolib._kernel import calls
from isolib._kernel.handle import Fd
from isolib._kernel.hints import typed
from isolib.errors import from_errno
from isolib.unionfs.archive import tar
from isolib.unionfs.archive.streams import Descriptor
from isolib.unionfs.disk.files import attempt, joined, names_in, open_beneath, shown
from isolib.unionfs.disk.scan import FileContent, FileOffer, describe
from isolib.unionfs.disk.unpack import Limits, unpack
from isolib.unionfs.entry import Change, ChangeKind, Kind
from isolib.unionfs.overlays import stacking
from isolib.unionfs.overlays.uppers import Uppers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from isolib._kernel.calls import Found
    from isolib.unionfs.archive.streams import Writable
    from isolib.unionfs.drivers.base import Form
    from isolib.unionfs.entry import Content, Entry, Offered, Piece
    from isolib.unionfs.overlays.deputy import Deputy

__all__ = ["NO_LIMITS", "Changed", "OverlayStats", "changes", "commit", "count", "write_tar", "write_tar_by"]

_CHUNK: Final = 1 << 20
#: For what lies on this host already.
NO_LIMITS: Final = Limits(size=1 << 62, entries=1 << 62)


@dataclass(frozen=True, slots=True)
class OverlayStats:
    """What was written to an overlay.

    Attributes
    ----------
    copied_up, copied_up_bytes
        Files of lower directories that were copied to be changed, and their sizes together.
    created, created_bytes
        Files that are new, or replace another one.
    directories
        New ones.
    whiteouts
        Names of lower directories that were deleted.
    opaque
        Directories that hide lower ones of their name.
    """

    copied_up: int = 0
    copied_up_bytes: int = 0
    created: int = 0
    created_bytes: int = 0
    directories: int = 0
    whiteouts: int = 0
    opaque: int = 0


class _Side:
    """What lies below the names of one directory."""

    __slots__ = ("_below", "_both", "_found", "_looker", "deleted", "path", "under_opaque")

    def __init__(self, looker: calls.Looker, uppers: Uppers, below: Fd | None, path: bytes, *, under_opaque: bool) -> None:
        self.path = path
        #: Whether it hides what lies below it.
        self.under_opaque = under_opaque
        #: The names that only what lies below has, where it is hidden.
        self.deleted: list[bytes] = []
        self._below = below
        self._looker = looker
        self._both: list[bytes] = []
        self._found: dict[bytes, Found] | None = None
        if below is None:
            return
        above = uppers.names(path)
        lower = names_in(below.fileno(), path)
        self._both = [name for name in lower if name in above]
        if under_opaque:
            self.deleted = [name for name in lower if name not in above]

    @property
    def found(self) -> dict[bytes, Found]:
        """Of the names that both have; they are looked at when one of them is first asked for."""
        if self._found is None:
            self._found = {}
            at = 0
            while at < len(self._both):
                for row in self._looker.look(self.fd, self._both, at, 0):
                    at += 1
                    if not row.error:
                        self._found[row.name] = row
        return self._found

    def may_hold(self, offer: FileOffer) -> None:
        """Have what is as it is here left out of an offer, but where that is hidden, and told anyway."""
        if self._both and not self.under_opaque:
            offer.below = self.fd

    @property
    def fd(self) -> int:
        """A descriptor of the directory below, where there is one."""
        assert self._below is not None  # noqa: S101 - what was found was found in it
        return self._below.fileno()

    def entry(self, name: bytes) -> Entry | None:
        """Return what lies below a name."""
        row = self.found.get(name)
        return None if row is None else describe(self.fd, row, joined(self.path, name))

    def close(self) -> None:
        if self._below is not None:
            self._below.close()


@dataclass(frozen=True, slots=True)
class _Pair:
    """An entry of an upper directory, and what lies below it.

    Attributes
    ----------
    entry, content
        As they are scanned.
    below
        None: nothing does.
    hidden
        Whether it would be hidden without this entry: it lies in an opaque directory.
    deleted
        Of an opaque directory: the names of what it hides.
    """

    entry: Entry
    content: Content | None
    below: Entry | None
    hidden: bool
    side: _Side | None


def _pairs(uppers: Uppers, below: int) -> Iterator[_Pair]:
    """Go through an upper directory and, beside it, through what lies below."""
    return cast("Iterator[_Pair]", _go_through(iter(uppers), uppers, below))  # nobody offers


def _go_through(pieces: Iterator[Piece | FileOffer], uppers: Uppers, below: int) -> Iterator[_Pair | FileOffer]:
    looker = calls.Looker()
    sides: list[_Side] = []
    try:
        for one in pieces:
            if isinstance(one, FileOffer):
                while sides[-1].path != one.path:
                    sides.pop().close()
                sides[-1].may_hold(one)
                yield one
                continue
            entry, content = one
            path = entry.path
            if not path:
                (row,) = looker.look(below, [b"."], 0, 0)
                sides.append(_Side(looker, uppers, open_beneath(below, b""), b"", under_opaque=False))
                yield _Pair(entry, None, describe(below, row, b""), hidden=False, side=sides[-1])
                continue
            parent, _, name = path.rpartition(b"/")
            while sides[-1].path != parent:
                sides.pop().close()
            here = sides[-1]
            old = here.entry(name)
            new: _Side | None = None
            if entry.kind is Kind.DIRECTORY:
                lower = None
                if old is not None and old.kind is Kind.DIRECTORY:
                    lower = open_beneath(below, path)
                hides = here.under_opaque or entry.opaque
                new = _Side(looker, uppers, lower, path, under_opaque=hides)
            yield _Pair(entry, content, old, here.under_opaque, new)
            if new is not None:
                sides.append(new)
    finally:
        for side in sides:
            side.close()


def _same_node(new: Entry, old: Entry) -> bool:
    """Return whether all but the content and the time is the same."""
    return (
        new.kind is old.kind
        and (new.mode, new.uid, new.gid, new.size, new.target, new.device)
        == (old.mode, old.uid, old.gid, old.size, old.target, old.device)
        and new.xattrs == old.xattrs
    )


class _Same:
    """Says whether an entry is as what lies below it."""

    def __init__(self, uppers: Uppers, below: int, *, keep_linked: bool) -> None:
        self._uppers = uppers
        self._below = below
        self._keep_linked = keep_linked

    def __call__(self, pair: _Pair) -> bool:
        new, old = pair.entry, pair.below
        if old is None or not _same_node(new, old):
            return False
        if new.kind is Kind.DIRECTORY:
            return True
        if new.mtime != old.mtime:
            return False
        if self._keep_linked and self._uppers.links(new.path) > 1:
            return False  # other names in this layer would have nothing to be linked to
        return pair.content is None or self._same_content(new, pair.content)

    def _same_content(self, entry: Entry, content: Content) -> bool:
        """Compare with what lies below; the content can still be read."""
        with open_beneath(self._below, entry.path, os.O_RDONLY | os.O_NONBLOCK) as other:
            for at in range(0, entry.size, _CHUNK):
                size = min(_CHUNK, entry.size - at)
                if _part(content, entry.path, at, size) != attempt("read", entry.path, os.pread, other.fileno(), size, at):
                    return False
        return True


def _part(content: Content, path: bytes, at: int, size: int) -> bytes:
    if isinstance(content, io.BytesIO):
        return bytes(content.getbuffer()[at : at + size])
    assert isinstance(content, FileContent)  # noqa: S101 - a scan has no others
    return attempt("read", path, os.pread, content.fileno(), size, at)


class Changed:
    """What upper directories change, parents before children, names in the order of their bytes.

    Parameters
    ----------
    uppers
        The directories.
    below
        What lies below them, merged; it stays open until the last piece has been taken.
    with_time_of_top
        The top, which is there at any rate, is told also if nothing of it is other than its time.
    """

    def __init__(self, uppers: Uppers, below: Fd, *, with_time_of_top: bool = False) -> None:
        self._uppers = uppers
        self._below = below
        self._with_time_of_top = with_time_of_top

    def __iter__(self) -> Iterator[Piece]:
        return cast("Iterator[Piece]", self._go_through(iter(self._uppers)))  # nobody offers

    def offers(self) -> Iterator[Piece | FileOffer]:
        """As iterating it, with offers of small files."""
        return self._go_through(self._uppers.offers())

    def _go_through(self, pieces: Iterator[Piece | FileOffer]) -> Iterator[Piece | FileOffer]:
        same = _Same(self._uppers, self._below.fileno(), keep_linked=True)
        for pair in _go_through(pieces, self._uppers, self._below.fileno()):
            if isinstance(pair, FileOffer):
                yield pair
                continue
            entry = pair.entry
            if entry.kind is Kind.WHITEOUT:
                if pair.below is not None and not pair.hidden:
                    yield entry, None
                continue
            if entry.opaque and (pair.below is None or pair.below.kind is not Kind.DIRECTORY or pair.hidden):
                entry = replace(entry, opaque=False)
            is_directory = entry.kind is Kind.DIRECTORY
            is_told = bool(entry.path) or (
                self._with_time_of_top and pair.below is not None and entry.mtime != pair.below.mtime
            )
            if is_directory and is_told and not pair.hidden:
                yield entry, None
            elif pair.hidden or not same(pair):
                yield entry, pair.content


def changes(upper: Fd, below: Fd, form: Form) -> list[Change]:
    """Return the paths at which an upper directory differs from what lies below it, sorted."""
    uppers = Uppers([upper], form)
    same = _Same(uppers, below.fileno(), keep_linked=False)
    found: list[Change] = []
    for pair in _pairs(uppers, below.fileno()):
        path, old = pair.entry.path, pair.below
        if pair.entry.kind is Kind.WHITEOUT:
            if old is not None:
                found.append(Change(shown(path), ChangeKind.DELETED))
        elif old is None:
            found.append(Change(shown(path), ChangeKind.ADDED))
        elif not same(pair):
            found.append(Change(shown(path), ChangeKind.MODIFIED))
        if pair.side is not None:
            found += [Change(shown(joined(path, name)), ChangeKind.DELETED) for name in pair.side.deleted]
    return sorted(found)


class ChangedLater:
    """What was written, compared; opened when it is gone through.

    Parameters
    ----------
    compared
        Opens it.
    """

    def __init__(self, compared: Callable[[], AbstractContextManager[Changed]]) -> None:
        self._compared = compared

    def __iter__(self) -> Iterator[Piece]:
        with self._compared() as compared:
            yield from compared

    def offers(self) -> Iterator[Offered]:
        """As iterating it, with offers of small files."""
        with self._compared() as compared:
            yield from compared.offers()


def count(upper: Fd, below: Fd, form: Form) -> OverlayStats:
    """Return how much was written."""
    numbers = dict.fromkeys(OverlayStats.__slots__, 0)
    for pair in _pairs(Uppers([upper], form), below.fileno()):
        entry, old = pair.entry, pair.below
        if entry.kind is Kind.WHITEOUT:
            numbers["whiteouts"] += 1
        elif entry.kind is Kind.DIRECTORY:
            numbers["directories"] += old is None
            numbers["opaque"] += entry.opaque and old is not None
        else:
            what = "copied_up" if old is not None and old.kind is entry.kind and not pair.hidden else "created"
            numbers[what] += 1
            numbers[f"{what}_bytes"] += entry.size
    return OverlayStats(**numbers)


# ---- what becomes of it ----


def write_tar(file: Writable, upper: Fd, below: Fd, form: Form) -> int:
    """Write the changes as a layer tar; returns how many bytes."""
    return tar.write(Changed(Uppers([upper], form), below), file)


def write_to_pipe(pipe: Fd, upper: Fd, below: Fd, form: Form) -> int:
    """In a deputy: write the changes to its host."""
    with pipe:
        return write_tar(Descriptor(pipe), upper, below, form)


def write_tar_by(deputy: Deputy, file: Writable, upper: Fd, below: Fd, form: Form) -> int:
    """Have a deputy read the changes, which this process may not all read, and write them."""
    there, here = Fd.take_all(os.pipe2, os.O_CLOEXEC)
    with there, here, deputy.begin(write_to_pipe, here, upper, below, form) as call:
        here.close()
        while data := os.read(there.fileno(), _CHUNK):
            file.write(data)
        return call.result()


def commit(upper: Fd, below: Fd, form: Form, path: str) -> None:
    """Make a layer of the changes, as a new directory, in one step.

    Raises
    ------
    SyscallError
        EEXIST: there is something of this name; nothing has changed.
    """
    parent, name = os.path.split(path.rstrip("/"))
    draft = f".{name}.{os.getpid()}-{os.urandom(4).hex()}".encode(errors="surrogateescape")
    with typed(path), stacking.open_directory(parent or "/", flags=os.O_RDONLY) as place:
        if name in {"", ".", ".."} or os.access(name, os.F_OK, dir_fd=place.fileno(), follow_symlinks=False):
            raise from_errno("mkdirat", path, EEXIST)
        os.mkdir(draft, 0o700, dir_fd=place.fileno())
        try:
            with open_beneath(place.fileno(), draft) as root:
                unpack(Changed(Uppers([upper], form), below), root.fileno(), form, lowers=[below.fileno()], limits=NO_LIMITS)
                stacking.copy_attributes(upper.fileno(), root.fileno())
            here = place.fileno()
            calls.rename(here, os.fsdecode(draft), here, name, calls.RENAME_NOREPLACE, path)
        except BaseException:
            calls.remove_tree(place.fileno(), draft, shown(draft))
            raise
