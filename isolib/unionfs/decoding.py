"""Makes an entry of a header and the records that extend it.  Overlay's own marks become whiteouts and opaque directories.

Sources: Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories", "Nesting overlayfs mounts";
fuse-overlayfs(1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from isolib.errors import ArchiveError
from isolib.unionfs import pax
from isolib.unionfs.entry import Entry, Kind
from isolib.unionfs.headers import DEVMAJOR, DEVMINOR, GID, MODE, MTIME, UID

if TYPE_CHECKING:
    from collections.abc import Mapping

    from isolib.unionfs.headers import Header

__all__ = ["chosen", "make"]

#: Of dev_t in Linux, and the id that means none: (uid_t) -1.
_MAJORS: Final = 1 << 12
_MINORS: Final = 1 << 20
_NO_ID: Final = (1 << 32) - 1

_NODES: Final = frozenset({Kind.CHARACTER, Kind.BLOCK})

_BOOKS: Final = (b"trusted.overlay.", b"user.overlay.", b"user.fuseoverlayfs.")
#: Those that say that what is here is not all: the rest is in another layer, at another path.
_ELSEWHERE: Final = frozenset({b"metacopy", b"redirect"})


def chosen(written: bytes, long: bytes | None, recorded: bytes | None) -> bytes:
    """Return a name that a header has, GNU's long header, or a record.

    Raises
    ------
    ArchiveError
        Both of the latter have one, and not the same: some programs take the one, some the other.
    """
    if long is not None and recorded and long != recorded:
        raise ArchiveError("is named twice, in a long header of GNU and in an extended one", recorded)
    return recorded or (written if long is None else long)


def _number(header: Header, values: Mapping[bytes, bytes], key: bytes, field: slice, end: int) -> int:
    text = values.get(key)
    value = pax.decimal(text, key) if text else header.number(field)
    if not 0 <= value < end:
        raise ArchiveError(f"has the {key.decode()} {value}, which is out of range")
    return value


def make(header: Header, values: Mapping[bytes, bytes], kind: Kind, path: bytes, *, target: bytes, size: int) -> Entry:
    """Make an entry.

    Parameters
    ----------
    header
        Its header.
    values
        The records that go with it.
    kind, path, target, size
        What is known already.

    Raises
    ------
    ArchiveError
        Something is out of range, or the entry is not whole without another layer.
    """
    mode = header.number(MODE) & 0o7777
    uid = _number(header, values, b"uid", UID, _NO_ID)
    gid = _number(header, values, b"gid", GID, _NO_ID)
    text = values.get(b"mtime")
    mtime = pax.nanoseconds(text) if text else pax.whole_seconds(header.number(MTIME))
    device = (0, 0)
    if kind in _NODES:
        major = _number(header, values, b"SCHILY.devmajor", DEVMAJOR, _MAJORS)
        device = (major, _number(header, values, b"SCHILY.devminor", DEVMINOR, _MINORS))
        if kind is Kind.CHARACTER and device == (0, 0):
            return Entry(path, Kind.WHITEOUT)
    attributes = pax.xattrs(values) if values else None
    if not attributes:
        return Entry(path, kind, mode, uid, gid, mtime, size, target, device)
    marks = _take_marks(attributes)
    if kind is Kind.FILE and not size and b"whiteout" in marks:
        return Entry(path, Kind.WHITEOUT)
    opaque = kind is Kind.DIRECTORY and marks.get(b"opaque") == b"y"
    return Entry(path, kind, mode, uid, gid, mtime, size, target, device, attributes, opaque)


def _take_marks(attributes: dict[bytes, bytes]) -> Mapping[bytes, bytes]:
    """Remove the attributes in which overlay keeps its books, and return what they say."""
    marks: dict[bytes, bytes] = {}
    for name in [name for name in attributes if name.startswith(_BOOKS)]:
        key = name.split(b".", 2)[-1]
        marks[key] = attributes.pop(name)
        if key in _ELSEWHERE:
            raise ArchiveError(f"is not all here: overlay's attribute {name.decode()!r} says that another layer has the rest")
    return marks
