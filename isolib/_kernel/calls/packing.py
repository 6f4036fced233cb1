"""Small files as they are in a tar, many in one call."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from isolib._kernel._ext import ffi, lib

PACK_ROOM: Final[int] = lib.ISOLIB_PACK_ROOM
"""Bytes that one file takes at most, in the archive or in the records of it."""

_PACK: Final = ffi.typeof("struct isolib_pack *")
_CHARS: Final = ffi.typeof("char[]")
_RECORDS_ROOM: Final = 1 << 18
_AT_ONCE: Final = 512
_NO_LIMIT: Final = (1 << 63) - 1, 0
_SECOND: Final = 10**9


class Packed(NamedTuple):
    """What has been packed."""

    files: int
    """How many."""
    size: int
    """Bytes of the archive."""
    records: bytes
    """What a recipe says of them."""
    contents: int
    """How many of the records are contents."""
    goes_on: bool
    """Whether the next one may be such a file too: there was no room for it, or it was not looked at."""


class Packer:
    """Packs files, with one buffer; by one thread at a time."""

    __slots__ = ("_records",)

    def __init__(self) -> None:
        self._records: Any = ffi.new(_CHARS, _RECORDS_ROOM)

    def pack(
        self,
        room: memoryview,
        names: list[bytes],
        start: int,
        *,
        dir_fd: int,
        path: bytes,
        below: int,
        limit: int | None,
        is_recorded: bool,
    ) -> Packed:
        """Pack files of a directory, from one of its names on, up to the first that is not small and plain.

        Parameters
        ----------
        room
            Where the archive goes.
        names, start
            Without NUL, and with which to begin.
        dir_fd, path
            The directory that they are in, and its path in the archive.
        below
            What lies below the directory, whose files are not packed if they are the same by what stat(2) says; or -1.
        limit
            Later times become this one, in nanoseconds; not negative.
        is_recorded
            Whether records are wanted.
        """
        part = names[start : start + _AT_ONCE]
        text, joined = ffi.new(_CHARS, path), b"\0".join(part)
        tar = ffi.from_buffer(_CHARS, room, require_writable=True)
        latest = _NO_LIMIT if limit is None else divmod(limit, _SECOND)
        pack = ffi.new(
            _PACK,
            (dir_fd, below, text, *latest, is_recorded, tar, len(room), 0, self._records, _RECORDS_ROOM, 0, 0, 0),
        )
        count = lib.isolib_pack(pack, joined, len(part))
        records = bytes(ffi.buffer(self._records, pack.records_used))
        goes_on = bool(pack.is_full) or count == len(part) < len(names) - start
        return Packed(count, pack.tar_used, records, pack.contents, goes_on)
