"""What the host and its reaper share: a table in memory, and the descriptors that are sent."""

from __future__ import annotations

from errno import EINTR, ENOMEM
from typing import Final

from isolib._kernel._ext import ffi, lib
from isolib._kernel.calls.checking import checked, refusal, taken
from isolib._kernel.handle import Fd

TABLE_ENTRIES: Final[int] = lib.ISOLIB_TABLE_ENTRIES
TABLE_BASES: Final[int] = lib.ISOLIB_TABLE_BASES
TABLE_HEADER: Final[int] = ffi.sizeof("struct isolib_table")
TABLE_HIGH: Final[int] = ffi.offsetof("struct isolib_table", "high")
TABLE_OWNER: Final[int] = ffi.offsetof("struct isolib_table", "owner")
TABLE_GUARD: Final[int] = ffi.offsetof("struct isolib_table", "guard")
ENTRY_SIZE: Final[int] = ffi.sizeof("struct isolib_entry")
ENTRY_BASES: Final[int] = lib.ISOLIB_ENTRY_BASES
ENTRY_BODY: Final[int] = ffi.offsetof("struct isolib_entry", "kind")
ENTRY_CGROUP: Final[int] = lib.ISOLIB_ENTRY_CGROUP
ENTRY_LINK: Final[int] = lib.ISOLIB_ENTRY_LINK
ENTRY_SETTING: Final[int] = lib.ISOLIB_ENTRY_SETTING
ENTRY_BESIDE: Final[int] = lib.ISOLIB_ENTRY_BESIDE
ENTRY_MOUNT: Final[int] = lib.ISOLIB_ENTRY_MOUNT
OWNER_DIED: Final[int] = lib.ISOLIB_OWNER_DIED
SETTING_DOOR: Final[int] = lib.ISOLIB_SETTING_DOOR
SETTING_MARKS_FROM: Final[int] = lib.ISOLIB_SETTING_MARKS_FROM

_TABLE: Final = "the reaper's table"
_BASE: Final = ffi.typeof("struct isolib_base *")


def new_table() -> Fd:
    """Return a memory file with an empty table, whose size is sealed: memfd_create(2)."""
    return taken("memfd_create", _TABLE, Fd.take(lib.isolib_table_new))


def map_table(fd: int) -> memoryview:
    """Return the memory of a table: mmap(2). It is unmapped when the view and all made from it are released."""
    table = lib.isolib_table_map(fd)
    if table == ffi.NULL:
        raise refusal("mmap", _TABLE, ffi.errno or ENOMEM)
    owned = ffi.gc(table, lib.isolib_table_unmap)
    return memoryview(ffi.buffer(owned, TABLE_HEADER + TABLE_ENTRIES * ENTRY_SIZE))


def send_base(status: int, index: int, fd: int, kind: int = 0, *, answer: int = 0) -> None:
    """Send the reaper a directory, or -1: the number is free again; unix(7), SCM_RIGHTS.

    ``kind`` is ENTRY_MOUNT for a mount; with ``answer``, the reaper says when it is done.
    """
    checked("sendmsg", "the reaper", lib.isolib_table_send_base(status, ffi.new(_BASE, (index, kind, answer)), fd))


def await_answer(status: int, answer: int, milliseconds: int) -> bool:
    """Wait for the reaper's answer; returns whether it came: the reaper may have been ended, or stopped."""
    while lib.isolib_table_await_answer(status, answer, milliseconds) < 0:
        if ffi.errno != EINTR:  # between two calls Python runs its signal handlers
            return False
    return True
