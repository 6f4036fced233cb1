"""Reads a tar: see `isolib.unionfs.tar.read`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from isolib.errors import ArchiveError
from isolib.unionfs import pax, sparse
from isolib.unionfs.aufs import PseudoLinks
from isolib.unionfs.decoding import chosen, make
from isolib.unionfs.entry import Entry, Kind
from isolib.unionfs.headers import BLOCK, SIZE, ZEROS, decode
from isolib.unionfs.names import LONGEST_PATH, WHITEOUT, Mark, marked, relative
from isolib.unionfs.source import Plain, Source, Sparse
from isolib.unionfs.streams import CHUNK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from isolib.unionfs.entry import Piece
    from isolib.unionfs.headers import Header
    from isolib.unionfs.recipe import Recorder
    from isolib.unionfs.streams import Readable

__all__ = ["Limits", "Reader"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What an archive may grow to, whatever it says.

    Attributes
    ----------
    size
        Bytes of all contents, holes included, and of everything else in the archive but the headers of entries.
    entries
        How many there may be.
    depth
        How many names a path may have.
    path
        How many bytes.  Linux has room for 4095, and more is refused whatever this says.
    """

    size: int = 64 << 30
    entries: int = 4_000_000
    depth: int = 2048
    path: int = LONGEST_PATH


_KINDS: Final[Mapping[bytes, Kind]] = {
    b"0": Kind.FILE,
    b"\0": Kind.FILE,  # before ustar; a directory if there is a slash at the end of its name
    b"1": Kind.HARDLINK,
    b"2": Kind.SYMLINK,
    b"3": Kind.CHARACTER,
    b"4": Kind.BLOCK,
    b"5": Kind.DIRECTORY,
    b"6": Kind.FIFO,
    b"7": Kind.FILE,  # contiguous
    b"D": Kind.DIRECTORY,  # GNU, incremental: its content is a list of names
    b"S": Kind.FILE,  # GNU, sparse
}
_INCREMENTAL: Final = b"D"
_SPARSE: Final = b"S"
_LONG_NAME: Final = b"L"
_LONG_LINK: Final = b"K"
_GLOBAL: Final = b"g"
_EXTENDED: Final = (b"x", b"X")  # the second is of Solaris
_LABEL: Final = b"V"
_REFUSED: Final = {
    b"A": "an access control list of Solaris",
    b"M": "the continuation of a file of another volume",
    b"N": "a list of long names, of an old version of GNU tar",
}
#: What would make one entry of all.
_NOT_GLOBAL: Final = (b"path", b"linkpath", b"size", b"GNU.sparse.", b"SCHILY.realsize")
_CHARSETS: Final = (b"BINARY", b"ISO-IR 10646 2000 UTF-8", b"")

#: Bytes of all that global headers say: every entry has it.
_LONGEST_GLOBAL: Final = 1 << 16
_LONGEST_NAME: Final = 1 << 16
_LARGEST: Final = (1 << 63) - 1

_NOTHING: Final = pax.Records({})


class Reader:
    """What is known of an archive while it is read; the parameters are those of `isolib.unionfs.tar.read`."""

    def __init__(self, stream: Readable, limits: Limits, record: Recorder | None, *, unended: bool) -> None:
        self._source = Source(stream, record)
        self._limits = limits
        self._record = record
        self._unended = unended
        self._used = 0
        self._count = 0
        self._global: dict[bytes, bytes] = {}
        self._global_size = 0
        #: What the next entry gets from the headers before it.
        self._records: pax.Records | None = None
        self._long: dict[bytes, bytes] = {}
        #: The content that comes next in the stream.
        self._open: Plain | None = None
        self._aufs = PseudoLinks()

    def pieces(self) -> Iterator[Piece]:
        """Yield what the archive has."""
        try:
            yield from self._pieces()
        finally:
            self._aufs.close()

    def _pieces(self) -> Iterator[Piece]:
        held: Entry | None = None  # a directory, until it is known whether its opaque mark comes next
        while (header := self._next()) is not None:
            piece = self._piece(header)
            if piece is not None:
                entry, content = piece
                if held is not None:
                    if entry.kind is Kind.OPAQUE and entry.path == held.path:
                        entry = replace(held, opaque=True)
                    else:
                        yield held, None
                    held = None
                if entry.kind is Kind.DIRECTORY and not entry.opaque:
                    held = entry
                else:
                    yield entry, content
            if self._open is not None:
                self._open.finish()
                self._open = None
        if held is not None:
            yield held, None

    # Headers

    def _next(self) -> Header | None:
        """Return the next header of an entry, after those that extend it; None at the end."""
        source = self._source
        while True:
            if source.at_end():
                if not self._unended:
                    raise ArchiveError("the archive is cut short: it has no end mark")
                self._nothing_pending()
                return None
            block = source.take(BLOCK)
            if block == ZEROS:
                self._end()
                return None
            header = decode(block)
            if header.kind in _KINDS:
                return header
            self._extend(header)

    def _extend(self, header: Header) -> None:
        """Keep what a header says of the next entry, or of all."""
        kind = header.kind
        if kind in _EXTENDED:
            if self._records is not None:
                raise ArchiveError("has two extended headers", header.name)
            self._records = pax.parse(self._special(header, pax.LONGEST))
        elif kind in {_LONG_NAME, _LONG_LINK}:
            if kind in self._long:
                raise ArchiveError("has two long names", header.name)
            self._long[kind] = self._special(header, _LONGEST_NAME).partition(b"\0")[0]
        elif kind == _GLOBAL:
            self._nothing_pending()
            self._add_global(pax.parse(self._special(header, _LONGEST_GLOBAL)))
        elif kind == _LABEL:
            self._special(header, _LONGEST_NAME)
        else:
            raise ArchiveError(f"is {_REFUSED.get(kind, f'of the unknown type {kind!r}')}", header.name)

    def _special(self, header: Header, longest: int) -> bytes:
        """Return the content of a header that is no entry."""
        size = header.number(SIZE)
        if not 0 <= size <= longest:
            raise ArchiveError(f"an extended header of {size} bytes; the most is {longest}", header.name)
        filled = size + -size % BLOCK
        self._use(BLOCK + filled, header.name)
        return self._source.take(filled)[:size]

    def _add_global(self, records: pax.Records) -> None:
        for key, value in records.values.items():
            if key.startswith(_NOT_GLOBAL):
                raise ArchiveError(f"a global header gives every entry the same {key.decode(errors='backslashreplace')}")
            before = self._global.pop(key, None)
            if before is not None:
                self._global_size -= len(key) + len(before)
            if value:
                self._global[key] = value
                self._global_size += len(key) + len(value)
        if self._global_size > _LONGEST_GLOBAL:
            raise ArchiveError(f"global headers say more than {_LONGEST_GLOBAL} bytes of every entry")
        if records.extents:
            raise ArchiveError("a global header gives every entry the same sparse map")

    def _nothing_pending(self) -> None:
        if self._records is not None or self._long:
            raise ArchiveError("an extended header is not followed by the entry that it is for")

    def _end(self) -> None:
        """Read what follows the first block of zeros."""
        self._nothing_pending()
        source = self._source
        if source.at_end():
            return
        if source.take(BLOCK) != ZEROS:
            raise ArchiveError("the archive goes on after a single block of zeros, which ends it for some and not for others")
        # Blocking factors leave zeros here, and tapes what was on them before.
        while not source.at_end():
            self._use(len(source.some(CHUNK)), None)

    def _use(self, size: int, name: bytes | None) -> None:
        self._used += size
        if self._used > self._limits.size:
            raise ArchiveError(f"the archive expands to more than the limit of {self._limits.size} bytes", name)

    # Entries

    def _piece(self, header: Header) -> Piece | None:
        """Make an entry of a header and of those before it; None if it is nothing that is in the tree."""
        records, long = self._records, self._long
        if long:
            self._long = {}
        self._records = None
        try:
            return self._made(header, records or _NOTHING, long)
        except ArchiveError as error:
            if error.entry is not None:
                raise
            raise ArchiveError(error.reason, header.name) from error

    def _made(self, header: Header, records: pax.Records, long: Mapping[bytes, bytes]) -> Piece | None:
        values = self._global | records.values if self._global else records.values
        name, link = _names(header, values, long) if values or long else (header.name, header.link)
        text = values.get(b"size")
        stored = pax.decimal(text, b"size") if text else header.number(SIZE)
        kind = _KINDS[header.kind]
        if kind is Kind.FILE and name.endswith(b"/"):
            if stored:
                raise ArchiveError("is a file with the name of a directory", name)
            kind = Kind.DIRECTORY
        path = relative(name)
        self._admit(path)
        content, size = self._content(header, records, kind, path, stored)
        mark = marked(path) if WHITEOUT in path else None
        if mark is not None and mark[0] is not Mark.AUFS_LINK:
            return self._marked(*mark)
        if not path and kind is not Kind.DIRECTORY:
            raise ArchiveError(f"makes the root a {kind.value}", name)
        if kind is Kind.HARDLINK and WHITEOUT in link and (piece := self._aufs.resolve(path, relative(link))) is not None:
            return self._passing(piece)
        check = _LINKS.get(kind)
        target = check(path, link) if check is not None else b""
        entry = make(header, values, kind, path, target=target, size=size)
        if mark is not None:
            if entry.kind is Kind.FILE and content is not None:
                self._aufs.keep(entry, content)
            return None
        if self._record is not None:
            self._record.passing(entry)
            if isinstance(content, Plain) and entry.kind is Kind.FILE and size:
                content.quiet = self._record.content(path, size)
        return entry, (content if entry.kind is Kind.FILE else None)

    def _marked(self, mark: Mark, path: bytes) -> Piece | None:
        """Return what a name that begins with ``.wh.`` stands for, whatever lies there."""
        if mark is Mark.AUFS:
            return None
        return self._passing((Entry(path, Kind.WHITEOUT if mark is Mark.WHITEOUT else Kind.OPAQUE), None))

    def _passing(self, piece: Piece) -> Piece:
        """Tell of an entry whose content, if it has one, is not to be found later."""
        if self._record is not None:
            self._record.passing(replace(piece[0], size=0))
        return piece

    def _admit(self, path: bytes) -> None:
        """Count an entry, and refuse a path that is too long."""
        limits = self._limits
        self._count += 1
        if self._count > limits.entries:
            raise ArchiveError(f"the archive has more entries than the limit of {limits.entries}", path)
        if len(path) > limits.path:
            raise ArchiveError(f"its path is longer than the limit of {limits.path} bytes", path)
        if path.count(b"/") >= limits.depth:
            raise ArchiveError(f"its path has more names than the limit of {limits.depth}", path)

    def _content(
        self, header: Header, records: pax.Records, kind: Kind, path: bytes, stored: int
    ) -> tuple[Plain | Sparse | None, int]:
        """Return the content of a file and its size; what else there is in the archive is passed over."""
        if kind is not Kind.FILE:
            if header.kind == _INCREMENTAL and stored > 0:
                self._use(stored, path)
                self._open = Plain(self._source, path, stored)
            return None, 0  # whatever the header says: others have none (POSIX)
        if not 0 <= stored <= _LARGEST:
            raise ArchiveError(f"has a size of {stored} bytes", path)
        values = records.values
        if header.kind == _SPARSE or records.extents or any(map(values.__contains__, sparse.KEYS)):
            return self._sparse(header, records, path, stored)
        if stored:
            self._use(stored, path)
        self._open = content = Plain(self._source, path, stored)
        return content, stored

    def _sparse(self, header: Header, records: pax.Records, path: bytes, stored: int) -> tuple[Sparse, int]:
        """Return the content of a file with holes."""
        source, values = self._source, records.values
        if header.kind == _SPARSE:
            size, extents = sparse.in_header(header.block, lambda: source.take(BLOCK))
        elif sparse.version(values) == (1, 0):
            size = sparse.real_size(values)
            extents, blocks = sparse.in_content(lambda: source.take(BLOCK), stored // BLOCK)
            stored -= blocks * BLOCK
        else:
            size = sparse.real_size(values)
            extents = sparse.in_records(values, records.extents)
        extents.check(size=size, stored=stored)
        self._use(size, path)
        self._open = plain = Plain(source, path, stored)
        return Sparse(plain, extents, size), size


def _names(header: Header, values: Mapping[bytes, bytes], long: Mapping[bytes, bytes]) -> tuple[bytes, bytes]:
    """Return the path of an entry and that of a link, wherever they are written."""
    charset = values.get(b"hdrcharset", b"")
    if charset not in _CHARSETS:
        raise ArchiveError(f"has names in the character set {charset!r}", header.name)
    name = chosen(header.name, long.get(_LONG_NAME), values.get(b"GNU.sparse.name") or values.get(b"path"))
    return name, chosen(header.link, long.get(_LONG_LINK), values.get(b"linkpath"))


def _linked(path: bytes, link: bytes) -> bytes:
    """Return the path that a hard link is a further name of."""
    target = relative(link, "the path that it is a link to")
    if not target or target == path:
        raise ArchiveError(f"is a hard link to {'itself' if target else 'the root'}", path)
    if WHITEOUT in target and marked(target) is not None:
        raise ArchiveError("is a hard link to a whiteout", path)
    return target


def _text(path: bytes, link: bytes) -> bytes:
    """Return the text of a symbolic link."""
    if not 0 < len(link) <= LONGEST_PATH or 0 in link:
        raise ArchiveError("is a symbolic link to nothing, to more than Linux has room for, or with a NUL", path)
    return link


_LINKS: Final[Mapping[Kind, Callable[[bytes, bytes], bytes]]] = {Kind.HARDLINK: _linked, Kind.SYMLINK: _text}
