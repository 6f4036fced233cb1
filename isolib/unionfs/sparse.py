"""Files with holes as GNU tar stores them: where the data lie, in four notations.

An archive has only the data of such a file, and a map.  OCI layers have none of them, but other archives that are loaded may.

Source: GNU tar manual, "Storing Sparse Files".

>>> check([(0, 5), (1 << 20, 3)], size=1 << 30, stored=8)
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from isolib.errors import ArchiveError
from isolib.unionfs.headers import number
from isolib.unionfs.pax import decimal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TypeAlias

    #: Offset and length of each stretch of data.
    Extents: TypeAlias = Sequence[tuple[int, int]]

__all__ = ["KEYS", "check", "in_content", "in_header", "in_records", "real_size", "version"]

#: Each notation in an extended header has one of them.  The last is of star, whose map is yet another.
KEYS: Final = (b"GNU.sparse.major", b"GNU.sparse.map", b"GNU.sparse.size", b"GNU.sparse.realsize", b"SCHILY.realsize")

#: A map's size is the archive's to say, so it has a limit; GNU tar's own files of a terabyte stay below.
_MOST: Final = 1 << 20

_PAIR: Final = 24
_FIRST: Final = slice(386, 482)
_FIRST_MORE: Final = 482
_REAL_SIZE: Final = slice(483, 495)
_MORE: Final = 504
_LINE: Final = re.compile(rb"([0-9]{1,20})\n")


def check(extents: Extents, *, size: int, stored: int) -> None:
    """Refuse a map that contradicts itself.

    Parameters
    ----------
    extents
        The map.
    size
        Of the file, in bytes.
    stored
        How many bytes of it are in the archive.

    Raises
    ------
    ArchiveError
        The stretches overlap, go beyond the end, or are not what is stored.
    """
    at = total = 0
    for offset, length in extents:
        if offset < at or length < 0:
            raise ArchiveError("the stretches of its sparse map overlap or are out of order")
        at = offset + length
        total += length
    if at > size:
        raise ArchiveError("its sparse map goes beyond its end")
    if total != stored:
        raise ArchiveError(f"its sparse map has {total} bytes, the archive {stored}")


def _pairs(block: bytes) -> list[tuple[int, int]]:
    pairs = []
    for at in range(0, len(block), _PAIR):
        offset, length = number(block[at : at + 12]), number(block[at + 12 : at + _PAIR])
        if offset is None or length is None:
            raise ArchiveError("its sparse map has something that is no number")
        if block[at + 12] == 0:  # no length, not even a zero: the rest is unused
            break
        pairs.append((offset, length))
    return pairs


def _too_many() -> ArchiveError:
    return ArchiveError(f"its sparse map has more than {_MOST} stretches")


def in_header(block: bytes, more: Callable[[], bytes]) -> tuple[int, Extents]:
    """Read the map of old GNU tar: in the header, and in blocks after it.

    Parameters
    ----------
    block
        The header.
    more
        Returns the next block.

    Returns
    -------
    int, Extents
        The size of the file, and the map.
    """
    size = number(block[_REAL_SIZE])
    if size is None or size < 0:
        raise ArchiveError("the size of a sparse file is no number")
    extents = _pairs(block[_FIRST])
    continues = block[_FIRST_MORE]
    while continues:
        block = more()
        extents += _pairs(block[:_MORE])
        continues = block[_MORE]
        if len(extents) > _MOST:
            raise _too_many()
    return size, extents


def _paired(numbers: Sequence[bytes]) -> Extents:
    """Make a map of alternating offsets and lengths.

    Raises
    ------
    ArchiveError
        They are no numbers, not in pairs, or too many.
    """
    if len(numbers) % 2:
        raise ArchiveError("its sparse map has an offset without a length")
    if len(numbers) > 2 * _MOST:
        raise _too_many()
    values = [decimal(text, b"GNU.sparse.map") for text in numbers]
    return list(zip(values[::2], values[1::2], strict=True))


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


def in_records(values: Mapping[bytes, bytes], pairs: Sequence[tuple[bytes, bytes]]) -> Extents:
    """Read the map of versions 0.0 and 0.1: in an extended header.

    Parameters
    ----------
    values, pairs
        The records: see `isolib.unionfs.pax.Records`.
    """
    text = values.get(b"GNU.sparse.map")
    if text is not None:
        extents = _paired(text.split(b",") if text else [])
    else:
        keys = [key for key, _ in pairs]
        if keys != [b"GNU.sparse.offset", b"GNU.sparse.numbytes"] * (len(keys) // 2):
            raise ArchiveError("its sparse map does not alternate offsets and lengths")
        extents = _paired([value for _, value in pairs])
    count = values.get(b"GNU.sparse.numblocks")
    if count is not None and decimal(count, b"GNU.sparse.numblocks") != len(extents):
        raise ArchiveError(f"its sparse map has {len(extents)} stretches and says that it has {count.decode()}")
    return extents


def in_content(more: Callable[[], bytes], room: int) -> tuple[Extents, int]:
    """Read the map of version 1.0: in lines, in the first blocks of the content.

    Parameters
    ----------
    more
        Returns the next block.
    room
        How many blocks the content has.

    Returns
    -------
    Extents, int
        The map, and how many blocks it took.
    """
    data, blocks, at = b"", 0, 0
    lines: list[bytes] = []
    wanted = 1
    while len(lines) < wanted:
        line = _LINE.match(data, at)
        if line is None:
            if len(data) - at > _PAIR or blocks == room:  # longer than any number
                raise ArchiveError("its sparse map is malformed")
            data, at = data[at:] + more(), 0
            blocks += 1
            continue
        at = line.end()
        lines.append(line[1])
        if len(lines) == 1:
            if (count := int(line[1])) > _MOST:
                raise _too_many()
            wanted = 1 + 2 * count
    return _paired(lines[1:]), blocks
