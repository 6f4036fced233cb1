"""Files with holes as GNU tar stores them: where the data lie, in four notations.

An archive has only the data of such a file, and a map.  OCI layers have none of them, but other archives that are loaded may.

Source: GNU tar manual, "Storing Sparse Files".

>>> extents = Map()
>>> extents.add_all([b"0", b"5", b"1048576", b"3"])
>>> extents.check(size=1 << 30, stored=8)
"""

from __future__ import annotations

import re
from array import array
from typing import TYPE_CHECKING, Final

from isolib.errors import ArchiveError
from isolib.unionfs.archive.headers import number
from isolib.unionfs.archive.pax import decimal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["KEYS", "Map", "in_content", "in_header", "in_records", "real_size", "version"]

#: Each notation in an extended header has one of them.  The last is of star, whose map is yet another.
KEYS: Final = (b"GNU.sparse.major", b"GNU.sparse.map", b"GNU.sparse.size", b"GNU.sparse.realsize", b"SCHILY.realsize")

#: Stretches that a map may have: every other block of a gigabyte.
_MOST: Final = 1 << 18
_LARGEST: Final = (1 << 63) - 1

_PAIR: Final = 24
_FIRST: Final = slice(386, 482)
_FIRST_MORE: Final = 482
_REAL_SIZE: Final = slice(483, 495)
_MORE: Final = 504
_LONGEST_LINE: Final = 21
_LINE: Final = re.compile(rb"([0-9]{1,20})\n")


class Map:
    """Where the data of a file lie.  Stretches come in the order of the file, and do not overlap.

    Attributes
    ----------
    offsets, ends
        Of each stretch: where it begins, and where it is over.
    stored
        How many bytes there are in all stretches.
    """

    __slots__ = ("ends", "offsets", "stored")

    def __init__(self) -> None:
        # Numbers of eight bytes: a map may be long, and it is the archive that says how long.
        self.offsets = array("q")
        self.ends = array("q")
        self.stored = 0

    def add(self, offset: int, length: int) -> None:
        """Add a stretch.

        Raises
        ------
        ArchiveError
            It does not come after the others, there are too many, or a number is beyond 63 bits.
        """
        end = offset + length
        if length < 0 or end > _LARGEST or offset < (self.ends[-1] if self.ends else 0):
            raise ArchiveError("the stretches of its sparse map overlap or are out of order")
        if len(self.ends) == _MOST:
            raise ArchiveError(f"its sparse map has more than {_MOST} stretches")
        self.offsets.append(offset)
        self.ends.append(end)
        self.stored += length

    def add_all(self, numbers: Sequence[bytes]) -> None:
        """Add stretches that are given by alternating offsets and lengths.

        Raises
        ------
        ArchiveError
            As from `add`; or they are no numbers, or not in pairs.
        """
        if len(numbers) % 2:
            raise ArchiveError("its sparse map has an offset without a length")
        for at in range(0, len(numbers), 2):
            self.add(decimal(numbers[at], b"GNU.sparse.map"), decimal(numbers[at + 1], b"GNU.sparse.map"))

    def check(self, *, size: int, stored: int) -> None:
        """Refuse a map that does not fit its file.

        Parameters
        ----------
        size
            Of the file, in bytes.
        stored
            How many bytes of it are in the archive.

        Raises
        ------
        ArchiveError
            It goes beyond the end of the file, or has another number of bytes than are stored.
        """
        if self.ends and self.ends[-1] > size:
            raise ArchiveError("its sparse map goes beyond its end")
        if self.stored != stored:
            raise ArchiveError(f"its sparse map has {self.stored} bytes, the archive {stored}")


def _add_pairs(found: Map, block: bytes) -> None:
    """Add what a block of old GNU tar has."""
    for at in range(0, len(block), _PAIR):
        offset, length = number(block[at : at + 12]), number(block[at + 12 : at + _PAIR])
        if offset is None or length is None:
            raise ArchiveError("its sparse map has something that is no number")
        if block[at + 12] == 0:  # no length, not even a zero: the rest is unused
            return
        found.add(offset, length)


def in_header(block: bytes, more: Callable[[], bytes]) -> tuple[int, Map]:
    """Read the map of old GNU tar: in the header, and in blocks after it.

    Parameters
    ----------
    block
        The header.
    more
        Returns the next block.

    Returns
    -------
    int, Map
        The size of the file, and the map.
    """
    size = number(block[_REAL_SIZE])
    if size is None or size < 0:
        raise ArchiveError("the size of a sparse file is no number")
    found = Map()
    _add_pairs(found, block[_FIRST])
    continues = block[_FIRST_MORE]
    while continues:
        block = more()
        before = len(found.ends)
        _add_pairs(found, block[:_MORE])
        continues = block[_MORE]
        if continues and len(found.ends) == before:
            raise ArchiveError("its sparse map goes on with nothing in it")
    return size, found


def version(values: Mapping[bytes, bytes]) -> tuple[int, int]:
    """Return which of the notations in extended headers is used: (1, 0), or (0, 0) for both others.

    Raises
    ------
    ArchiveError
        Another one.
    """
    major, minor = values.get(b"GNU.sparse.major", b"0"), values.get(b"GNU.sparse.minor", b"0")
    if b"SCHILY.realsize" in values or (major, minor) not in {(b"0", b"0"), (b"0", b"1"), (b"1", b"0")}:
        raise ArchiveError("is sparse in a notation that is not known")
    return int(major), 0


def real_size(values: Mapping[bytes, bytes]) -> int:
    """Return the size of the file.

    Raises
    ------
    ArchiveError
        It is not there, or no number.
    """
    text = values.get(b"GNU.sparse.realsize") or values.get(b"GNU.sparse.size", b"")
    return decimal(text, b"GNU.sparse.size")


def in_records(values: Mapping[bytes, bytes], pairs: Sequence[tuple[bytes, bytes]]) -> Map:
    """Read the map of versions 0.0 and 0.1: in an extended header.

    Parameters
    ----------
    values, pairs
        The records: see `isolib.unionfs.archive.pax.Records`.
    """
    found = Map()
    text = values.get(b"GNU.sparse.map")
    if text is None:
        keys = [key for key, _ in pairs]
        if keys != [b"GNU.sparse.offset", b"GNU.sparse.numbytes"] * (len(keys) // 2):
            raise ArchiveError("its sparse map does not alternate offsets and lengths")
        found.add_all([value for _, value in pairs])
    elif text:
        found.add_all(text.split(b",", 2 * _MOST + 2))
    count = values.get(b"GNU.sparse.numblocks")
    if count is not None and decimal(count, b"GNU.sparse.numblocks") != len(found.ends):
        raise ArchiveError(f"its sparse map has {len(found.ends)} stretches and says that it has {count.decode()}")
    return found


def in_content(more: Callable[[], bytes], room: int) -> tuple[Map, int]:
    """Read the map of version 1.0: in lines, in the first blocks of the content.

    Parameters
    ----------
    more
        Returns the next block.
    room
        How many blocks the content has.

    Returns
    -------
    Map, int
        The map, and how many blocks it took.
    """
    lines = _Lines(more, room)
    found = Map()
    count = lines.next()
    if count > _MOST:
        raise ArchiveError(f"its sparse map has more than {_MOST} stretches")
    for _ in range(count):
        found.add(lines.next(), lines.next())
    return found, lines.blocks


class _Lines:
    """Numbers in lines, in blocks."""

    def __init__(self, more: Callable[[], bytes], room: int) -> None:
        self._more = more
        self._room = room
        self._data = b""
        self._at = 0
        self.blocks = 0

    def next(self) -> int:
        """Return the next number."""
        while (line := _LINE.match(self._data, self._at)) is None:
            rest = self._data[self._at :]
            if len(rest) > _LONGEST_LINE or self.blocks == self._room:
                raise ArchiveError("its sparse map is malformed")
            self._data, self._at = rest + self._more(), 0
            self.blocks += 1
        self._at = line.end()
        return int(line[1])
