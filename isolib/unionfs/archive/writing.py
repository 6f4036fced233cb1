"""Writes a tar: see `isolib.unionfs.archive.tar.write`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from isolib.errors import ArchiveError, PlanError
from isolib.unionfs.archive import pax
from isolib.unionfs.archive.headers import BLOCK, LARGEST_ID, LARGEST_SIZE, LARGEST_TIME, ZEROS, header, padding, split
from isolib.unionfs.archive.names import LONGEST_COMPONENT, LONGEST_PATH, OPAQUE, WHITEOUT, whiteout
from isolib.unionfs.archive.streams import CHUNK
from isolib.unionfs.entry import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from isolib.unionfs.archive.recipe import Recorder
    from isolib.unionfs.archive.streams import Writable
    from isolib.unionfs.entry import Content, Entry, Offer

__all__ = ["Writer"]

_FLAGS: Final[Mapping[Kind, bytes]] = {
    Kind.FILE: b"0",
    Kind.HARDLINK: b"1",
    Kind.SYMLINK: b"2",
    Kind.CHARACTER: b"3",
    Kind.BLOCK: b"4",
    Kind.DIRECTORY: b"5",
    Kind.FIFO: b"6",
}
_EXTENDED: Final = b"x"
#: As Python's tarfile has it.  One name for all keeps the archive the same whatever the names of the files.
_EXTENDED_NAME: Final = b"././@PaxHeader"
_SHORT: Final = 100
#: A file that is packed finds room until the next flush.
_ROOM: Final = CHUNK + (96 << 10)
_SECOND: Final = 1_000_000_000
#: What takes the place of bytes that are not ASCII in a header, beside an extended one that has them.
_PLAIN: Final = bytes(byte if byte < 0x80 else 0x5F for byte in range(256))  # noqa: PLR2004


class Writer:
    """Writes entries, one after the other; the parameters are those of `isolib.unionfs.archive.tar.write`."""

    def __init__(self, sink: Writable, *, mtime_limit: int | None = None, record: Recorder | None = None) -> None:
        self._sink = sink
        self._limit = mtime_limit
        self._record = record
        self._buffer = memoryview(bytearray(_ROOM))
        self._held = 0
        #: Bytes of the archive so far.
        self.size = 0
        #: Headers of extended headers, by the size of these.
        self._extended: dict[int, bytes] = {}

    def add(self, entry: Entry, content: Content | None) -> None:
        """Write an entry."""
        if WHITEOUT in entry.path:
            _check_names(entry.path)
        head = self._head(entry)
        record = self._record
        if record is not None:
            record.raw(head)
        self._put(head)
        size = entry.size
        if entry.kind is not Kind.FILE or not size:
            return
        if content is None:
            raise PlanError(f"{entry.path!r}: a file without its content")
        fill = padding(size)
        quiet = record is None or record.content(entry.path, size)
        left = size
        while left:
            data = content.read(min(left, CHUNK))
            if not data:
                raise ArchiveError(f"its content ends after {size - left} of {size} bytes", entry.path)
            left -= len(data)
            self._put(data)
            if not quiet and record is not None:
                record.raw(data)
        if fill:
            self._put(fill)
            if record is not None:
                record.raw(fill)

    def finish(self) -> None:
        """Write the end mark, and all that is held back."""
        end = ZEROS + ZEROS
        if self._record is not None:
            self._record.raw(end)
            self._record.finish()
        self._put(end)
        self._flush()

    def pack(self, offer: Offer) -> None:
        """Take as much of an offer as there is that can be."""
        limit, record = self._limit, self._record
        if (limit is not None and limit < 0) or not (record is None or record.takes_records()):
            return
        goes_on = True
        while goes_on:
            packed = offer.pack(self._buffer[self._held :], limit, is_recorded=record is not None)
            goes_on = packed.goes_on
            self._held += packed.size
            if record is not None and packed.size:
                record.records(packed.records, packed.contents, packed.size)
            if self._held >= CHUNK:
                self._flush()

    def _put(self, data: bytes) -> None:
        size, held = len(data), self._held
        end = held + size
        if end <= _ROOM:
            self._buffer[held:end] = data
            self._held = end
            if end >= CHUNK:
                self._flush()
            return
        self._flush()
        self._sink.write(data)
        self.size += size

    def _flush(self) -> None:
        held = self._held
        if held:
            self._held = 0
            self._sink.write(bytes(self._buffer[:held]))
            self.size += held

    # Headers

    def _head(self, entry: Entry) -> bytes:
        """Return all the headers of an entry."""
        kind = entry.kind
        if kind is Kind.WHITEOUT:
            return self._mark(whiteout(entry.path))
        if kind is Kind.OPAQUE:
            return self._mark(_opaque(entry.path))
        path, link, size = entry.path, entry.target, entry.size
        mtime = entry.mtime if self._limit is None else min(entry.mtime, self._limit)
        seconds, rest = divmod(mtime, _SECOND)
        records = b""
        if rest or not 0 <= seconds <= LARGEST_TIME:
            records = pax.time_record(b"mtime", mtime)
            seconds = min(max(seconds, 0), LARGEST_TIME)
        if kind is Kind.DIRECTORY:
            path = path + b"/" if path else b"./"
            size = 0
        elif kind is not Kind.FILE:
            size = 0
        if (
            len(path) <= _SHORT
            and len(link) <= _SHORT
            and entry.uid <= LARGEST_ID
            and entry.gid <= LARGEST_ID
            and size <= LARGEST_SIZE
            and not entry.xattrs
            and path.isascii()
            and link.isascii()
        ):
            head = header(
                path,
                _FLAGS[kind],
                mode=entry.mode,
                uid=entry.uid,
                gid=entry.gid,
                size=size,
                mtime=seconds,
                link=link,
                device=entry.device,
            )
        else:
            name, prefix, link, more = _fit_names(path, link)
            (uid, gid, size), numbers = _fit_numbers(entry.uid, entry.gid, size)
            records = b"".join([*more, records, *numbers, *pax.xattr_records(entry.xattrs)])
            head = header(
                name,
                _FLAGS[kind],
                mode=entry.mode,
                uid=uid,
                gid=gid,
                size=size,
                mtime=seconds,
                link=link,
                device=entry.device,
                prefix=prefix,
            )
        if records:
            head = self._extension(records, entry.path) + head
        return head + self._mark(_opaque(entry.path)) if entry.opaque else head

    def _extension(self, records: bytes, path: bytes) -> bytes:
        """Return an extended header."""
        size = len(records)
        head = self._extended.get(size)
        if head is None:
            if size > pax.LONGEST:
                raise ArchiveError(f"its extended attributes are more than {pax.LONGEST} bytes", path)
            head = header(_EXTENDED_NAME, _EXTENDED, mode=0o644, size=size)
            if len(self._extended) < BLOCK:
                self._extended[size] = head
        return head + records.ljust(size + -size % BLOCK, b"\0")

    def _mark(self, path: bytes) -> bytes:
        """Return the headers of a file that stands for what is not there."""
        name, prefix, _, records = _fit_names(path, b"")
        head = header(name, _FLAGS[Kind.FILE], mode=0, prefix=prefix)
        return self._extension(b"".join(records), path) + head if records else head


def _fit_names(path: bytes, link: bytes) -> tuple[bytes, bytes, bytes, list[bytes]]:
    """Return name, prefix and link as a header has room for them, and records of what it has no room for."""
    name, prefix, records = path, b"", []
    for what, text in (("path", path), ("target", link)):
        if len(text) > LONGEST_PATH + text.endswith(b"/"):
            raise ArchiveError(f"its {what} is longer than {LONGEST_PATH} bytes", path[:LONGEST_COMPONENT])
    if not _is_utf8(path) or not _is_utf8(link):
        records.append(pax.record(b"hdrcharset", b"BINARY"))
    if len(path) > _SHORT or not path.isascii():
        parts = split(path) if path.isascii() else None
        if parts is None:
            records.append(pax.record(b"path", path))
            name = path.translate(_PLAIN)[:_SHORT]
        else:
            prefix, name = parts
    if len(link) > _SHORT or not link.isascii():
        records.append(pax.record(b"linkpath", link))
        link = link.translate(_PLAIN)[:_SHORT]
    return name, prefix, link, records


def _fit_numbers(uid: int, gid: int, size: int) -> tuple[list[int], list[bytes]]:
    """Return numbers as a header has room for them, and records of those that it has no room for."""
    records, fitting = [], []
    for key, value, largest in ((b"uid", uid, LARGEST_ID), (b"gid", gid, LARGEST_ID), (b"size", size, LARGEST_SIZE)):
        if value > largest:
            records.append(pax.record(key, b"%d" % value))
        fitting.append(value if value <= largest else 0)
    return fitting, records


def _opaque(path: bytes) -> bytes:
    return b"%b/%b" % (path, OPAQUE) if path else OPAQUE


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _check_names(path: bytes) -> None:
    """Refuse a name that an OCI layer has no way to hold."""
    if any(name.startswith(WHITEOUT) for name in path.split(b"/")):
        raise ArchiveError("has a name that begins with '.wh.', which in a layer means that something is gone", path)
