r"""The blocks of 512 bytes that a tar consists of: numbers, texts, check sums.

A header is read into a `Header`, which holds what the block says and nothing of what extended headers add.  It is made from
numbers and texts that fit; what does not fit is the business of `isolib.unionfs.archive.pax`.

Sources: POSIX.1-2017, pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format"; tar(5) of libarchive.

>>> block = header(b"etc/motd", b"0", mode=0o644, size=5, mtime=1_700_000_000)
>>> decoded = decode(block)
>>> decoded.name, oct(decoded.number(MODE)), decoded.number(SIZE)
(b'etc/motd', '0o644', 5)
"""

from __future__ import annotations

from typing import Final, NamedTuple
from zlib import adler32

from isolib.errors import ArchiveError

__all__ = [
    "BLOCK",
    "DEVMAJOR",
    "DEVMINOR",
    "GID",
    "LARGEST_ID",
    "LARGEST_SIZE",
    "LARGEST_TIME",
    "MODE",
    "MTIME",
    "SIZE",
    "UID",
    "ZEROS",
    "Header",
    "decode",
    "header",
    "number",
    "padding",
    "split",
]

BLOCK: Final = 512
ZEROS: Final = bytes(BLOCK)

# Where the numbers are.
MODE: Final = slice(100, 108)
UID: Final = slice(108, 116)
GID: Final = slice(116, 124)
SIZE: Final = slice(124, 136)
MTIME: Final = slice(136, 148)
DEVMAJOR: Final = slice(329, 337)
DEVMINOR: Final = slice(337, 345)

#: What a header has room for: octal digits, and a NUL to end them.
LARGEST_ID: Final = 0o7777777
LARGEST_SIZE: Final = 0o77777777777
LARGEST_TIME: Final = LARGEST_SIZE

_NAME: Final = 100
_LINK: Final = slice(157, 257)
_MAGIC: Final = slice(257, 263)
_PREFIX: Final = slice(345, 500)
#: The dialect of star: a shorter prefix, then times of access and change, and its mark at the end.
_STAR_PREFIX: Final = slice(345, 476)
_STAR_MARK: Final = slice(508, 512)

_CHECKSUM: Final = 148
_TYPE: Final = 156
_PREFIX_ROOM: Final = 155
#: The check sum counts itself as eight spaces.
_BLANKS: Final = 8 * 0x20
_HIGH: Final = bytes(range(0x80))

_BASE_256: Final = 0x80
_PADDINGS: Final = bytes(BLOCK - 1)


def number(field: bytes) -> int | None:
    r"""Read a number: octal digits, or a binary one (GNU, star), which may be negative.

    Parameters
    ----------
    field
        The bytes of the field.

    Returns
    -------
    int or None
        None when it is no number.  An empty field is 0.

    Examples
    --------
    >>> number(b"0000644\0"), number(b"   644 \0"), number(b"\x80\0\0\0\0\0\1\0")
    (420, 420, 256)
    >>> number(b"\xff" * 8), number(b"0x1")
    (-1, None)
    """
    if field[0] & _BASE_256:
        bits = 8 * len(field) - 1
        value = int.from_bytes(field, "big") & ((1 << bits) - 1)
        return value - (1 << bits) if value >> (bits - 1) else value
    text = field.strip(b" \0")
    if not text.isdigit():  # int() takes signs, underscores and "0o" too
        if not text:
            return 0
        text = text.partition(b"\0")[0].rstrip(b" ")
        if not text.isdigit():
            return None
    try:
        return int(text, 8)
    except ValueError:
        return None


class Header(NamedTuple):
    """What a header block says.

    Attributes
    ----------
    block
        All of it.
    kind
        The type flag, one byte.
    name, link
        As they are written; the name with the prefix of ustar.
    gnu
        Whether it is in the format of old GNU tar, in which what follows the device numbers means something else.
    """

    block: bytes
    kind: bytes
    name: bytes
    link: bytes
    gnu: bool

    def number(self, field: slice) -> int:
        """Return one of its numbers.

        Raises
        ------
        ArchiveError
            There is none.
        """
        value = number(self.block[field])
        if value is None:
            raise ArchiveError(f"{self.block[field]!r} in its header is no number", self.name)
        return value


def _text(field: bytes) -> bytes:
    end = field.find(0)
    return field if end < 0 else field[:end]


def _sum(block: bytes) -> int:
    # adler32 begins with a plain sum: of at most 255 bytes, it has not yet wrapped around.  It is ten times as fast as sum().
    low = 0xFFFF
    return (adler32(block[:_CHECKSUM]) & low) + (adler32(block[_TYPE:356]) & low) + (adler32(block[356:]) & low) - 3 + _BLANKS


def decode(block: bytes) -> Header:
    """Read a header.

    Parameters
    ----------
    block
        Its 512 bytes, not all of them zero.

    Raises
    ------
    ArchiveError
        It is none: the check sum is wrong, both in unsigned bytes and in the signed ones of some old programs.
    """
    name = _text(block[:_NAME])
    stored = number(block[_CHECKSUM:_TYPE])
    actual = _sum(block)
    if stored != actual:
        high = len(block[:_CHECKSUM].translate(None, _HIGH)) + len(block[_TYPE:].translate(None, _HIGH))
        if stored != actual - 256 * high:
            raise ArchiveError("the check sum of its header is wrong: the archive is damaged, or no tar", name)
    magic = block[_MAGIC]
    if magic == b"ustar\0":
        prefix = _text(block[_STAR_PREFIX if block[_STAR_MARK] == b"tar\0" else _PREFIX])
        if prefix:
            name = b"%b/%b" % (prefix, name)
    return Header(block, block[_TYPE : _TYPE + 1], name, _text(block[_LINK]), magic == b"ustar ")


# What comes after the check sum and the type flag of an entry that is neither a link nor a device.
_PLAIN_TAIL: Final = bytes(100) + b"ustar\x0000" + bytes(247)
_PLAIN_SUM: Final = sum(_PLAIN_TAIL) + _BLANKS - 1


def header(
    name: bytes,
    kind: bytes,
    *,
    mode: int,
    uid: int = 0,
    gid: int = 0,
    size: int = 0,
    mtime: int = 0,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
    prefix: bytes = b"",
) -> bytes:
    """Make a header block in the format of ustar.

    Parameters
    ----------
    name, link
        At most 100 bytes.
    kind
        The type flag.
    mode, uid, gid, size, mtime, device
        Not negative, and at most what there is room for; the time in seconds.
    prefix
        At most 155 bytes: the directories before the name.
    """
    fixed = b"%b%07o\0%07o\0%07o\0%011o\0%011o\0" % (name.ljust(100, b"\0"), mode, uid, gid, size, mtime)
    if not link and device == (0, 0) and not prefix:
        total = (adler32(fixed) & 0xFFFF) + _PLAIN_SUM + kind[0]
        return b"%b%06o\0 %b%b" % (fixed, total, kind, _PLAIN_TAIL)
    major, minor = device
    block = b"%b        %b%bustar\x0000%b%07o\0%07o\0%b" % (
        fixed,
        kind,
        link.ljust(100, b"\0"),
        bytes(64),
        major,
        minor,
        prefix.ljust(167, b"\0"),
    )
    return b"%b%06o\0 %b" % (fixed, _sum(block), block[_TYPE:])


def split(path: bytes) -> tuple[bytes, bytes] | None:
    """Divide a path of more than 100 bytes into a prefix and a name, as ustar has room for.

    Returns
    -------
    tuple of bytes or None
        None where no slash is at the right place.

    Examples
    --------
    >>> prefix, name = split(b"a" * 90 + b"/" + b"b" * 60)
    >>> len(prefix), len(name)
    (90, 60)
    """
    at = path.find(b"/", len(path) - _NAME - 1, min(_PREFIX_ROOM + 1, len(path) - 1))
    return None if at <= 0 else (path[:at], path[at + 1 :])


def padding(size: int) -> bytes:
    """Return the zeros that fill the last block of so many bytes."""
    return _PADDINGS[: -size % BLOCK]
