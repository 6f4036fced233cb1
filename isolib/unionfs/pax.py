r"""Extended headers, PAX: records of a key and a value, for what the header of an entry has no room for.

Sources: POSIX.1-2017, pax, "pax Extended Header"; for ``SCHILY.*`` star(5), for ``LIBARCHIVE.*`` tar(5) of libarchive, for the
escapes in the names of extended attributes GNU tar (src/xheader.c).

>>> parse(record(b"path", b"caf\xc3\xa9") + time_record(b"mtime", 1_500_000_000)).values
{b'path': b'caf\xc3\xa9', b'mtime': b'1.500000000'}
"""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error as Base64Error
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from isolib.errors import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "LONGEST",
    "Records",
    "decimal",
    "nanoseconds",
    "parse",
    "record",
    "time_record",
    "whole_seconds",
    "xattr_records",
    "xattrs",
]

#: Bytes that an extended header may have.  A file's extended attributes, of at most 64 KiB each, are what is long in it.
LONGEST: Final = 8 << 20

#: Different keys in it: a file's attributes have names of 64 KiB all told.
_MOST: Final = 1 << 14

_SECOND: Final = 1_000_000_000
#: 35,000 years, beyond what any file system keeps.
_FARTHEST: Final = 1 << 40

_LENGTH: Final = re.compile(rb"([1-9][0-9]{0,7}) ")
_DECIMAL: Final = re.compile(rb"[0-9]{1,40}")
_TIME: Final = re.compile(rb"(-?)([0-9]{1,20})(?:\.([0-9]*))?")

_SCHILY: Final = b"SCHILY.xattr."
_LIBARCHIVE: Final = b"LIBARCHIVE.xattr."
_LONGEST_NAME: Final = 255
_LONGEST_VALUE: Final = 65536
#: What attributes of Linux begin with; others (``com.apple.``) are another system's, and cannot be here.
_NAMESPACES: Final = (b"security.", b"system.", b"trusted.", b"user.")
_QUOTED: Final = re.compile(rb"%([0-9A-Fa-f]{2})")


@dataclass(frozen=True, slots=True)
class Records:
    """The records of one extended header.

    Attributes
    ----------
    values
        Every key with its last value.
    extents
        The offsets and lengths that version 0.0 of GNU's sparse format gives by repeating two keys, in their order.
    """

    values: dict[bytes, bytes]
    extents: list[tuple[bytes, bytes]] = field(default_factory=list)


def parse(data: bytes) -> Records:
    """Read the records of an extended header.

    Raises
    ------
    ArchiveError
        They are not as they must be, to the byte.
    """
    values: dict[bytes, bytes] = {}
    extents: list[tuple[bytes, bytes]] = []
    at, end = 0, len(data)
    while at < end:
        length = _LENGTH.match(data, at, at + 9)
        stop = at + int(length[1]) if length else 0
        equals = data.find(b"=", at, stop)
        if length is None or stop > end or data[stop - 1 : stop] != b"\n" or equals <= length.end():
            raise ArchiveError(f"a record of an extended header is malformed: {data[at : at + 40]!r}")
        key = data[length.end() : equals]
        value = data[equals + 1 : stop - 1]
        if key.startswith(b"GNU.sparse.") and key in {b"GNU.sparse.offset", b"GNU.sparse.numbytes"}:
            extents.append((key, value))
        else:
            values[key] = value
        if len(values) > _MOST:
            raise ArchiveError(f"an extended header of more than {_MOST} records")
        at = stop
    return Records(values, extents)


def record(key: bytes, value: bytes) -> bytes:
    """Make a record, which begins with its own length."""
    rest = len(key) + len(value) + 3
    length = rest + len(b"%d" % rest)
    if len(b"%d" % length) != len(b"%d" % rest):
        length += 1
    return b"%d %b=%b\n" % (length, key, value)


def decimal(text: bytes, key: bytes) -> int:
    """Read the number that a record gives.

    Raises
    ------
    ArchiveError
        It is none.
    """
    if _DECIMAL.fullmatch(text) is None:
        raise ArchiveError(f"{key.decode(errors='backslashreplace')} is no number in its extended header: {text[:40]!r}")
    return int(text)


def nanoseconds(text: bytes) -> int:
    """Read a time in seconds, exactly; digits beyond the ninth after the point are cut off.

    Raises
    ------
    ArchiveError
        It is no time, or farther away than 35,000 years.

    Examples
    --------
    >>> nanoseconds(b"1.25"), nanoseconds(b"-0.5")
    (1250000000, -500000000)
    """
    parts = _TIME.fullmatch(text)
    if parts is None:
        raise ArchiveError(f"no time in its extended header: {text[:40]!r}")
    sign, whole, fraction = parts.groups(b"")
    seconds = int(whole)
    if seconds > _FARTHEST:
        raise ArchiveError(f"its time is out of range: {text!r}")
    value = seconds * _SECOND + int(fraction[:9].ljust(9, b"0"))
    return -value if sign else value


def whole_seconds(value: int) -> int:
    """Return a time that a header gives in seconds, in nanoseconds.

    Raises
    ------
    ArchiveError
        It is farther away than 35,000 years.
    """
    if not -_FARTHEST <= value <= _FARTHEST:
        raise ArchiveError(f"its time is out of range: {value}")
    return value * _SECOND


def time_record(key: bytes, value: int) -> bytes:
    """Make a record of a time in nanoseconds."""
    seconds, rest = divmod(abs(value), _SECOND)
    return record(key, b"%b%d.%09d" % (b"-" if value < 0 else b"", seconds, rest))


def xattrs(values: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Return the extended attributes that records give, by their names.

    Raises
    ------
    ArchiveError
        A name or a value is longer than Linux has room for, or malformed.
    """
    found: dict[bytes, bytes] = {}
    for key, value in values.items():
        if key.startswith(_SCHILY):
            # GNU tar writes these two so, as a key may have no "=" in it.
            name = key[len(_SCHILY) :].replace(b"%3D", b"=").replace(b"%25", b"%")
        elif key.startswith(_LIBARCHIVE):
            name = _QUOTED.sub(lambda byte: bytes([int(byte[1], 16)]), key[len(_LIBARCHIVE) :])
            if _SCHILY + name in values:
                continue  # bsdtar writes both
            try:
                value = b64decode(value + b"=" * (-len(value) % 4), validate=True)  # noqa: PLW2901  # the same, decoded
            except Base64Error as error:
                raise ArchiveError(f"its extended attribute {name!r} is no base64") from error
        else:
            continue
        if not name.startswith(_NAMESPACES):
            continue
        if len(name) > _LONGEST_NAME or len(value) > _LONGEST_VALUE or 0 in name:
            raise ArchiveError(
                f"its extended attribute {name[:255]!r} is longer than there is room for, or has a NUL in its name"
            )
        found[name] = value
    return found


def xattr_records(attributes: Mapping[bytes, bytes]) -> Iterable[bytes]:
    """Make the records of extended attributes, in the order of their names."""
    for name in sorted(attributes):
        yield record(_SCHILY + name.replace(b"%", b"%25").replace(b"=", b"%3D"), attributes[name])
