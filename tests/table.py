"""The reaper's table, as it lies in memory: what of it is live, and what is lost."""

from __future__ import annotations

from isolib._kernel._ext import ffi

from isolib._kernel import calls, reaper


def own() -> reaper._Reaper:
    """Return this process's."""
    (found,) = reaper._reapers.values()
    return found


def entry(index: int) -> dict[str, object]:
    """Return an entry as the reaper reads it."""
    table = ffi.from_buffer("struct isolib_table *", own().bytes)
    found = ffi.cast("struct isolib_entry *", table + 1)[index]
    bases = [found.bases[number] for number in range(found.base_count)]
    name, _, rest = bytes(ffi.buffer(found.name)).partition(b"\0")
    return {"live": found.state != 0, "kind": found.kind, "bases": bases, "name": name, "rest": rest.rstrip(b"\0")}


def indices() -> list[int]:
    """Return which entries are live, by the table itself."""
    high = own().words[calls.TABLE_HIGH // 4]
    return [index for index in range(high) if own().words[(calls.TABLE_HEADER + index * calls.ENTRY_SIZE) // 4]]


def names() -> set[str]:
    """Return the names of the groups that are entrusted."""
    return {bytes(entry(index)["name"]).decode() for index in indices()}  # type: ignore[call-overload]


def lost() -> set[int]:
    """Return the entries that are neither used nor free: who is interrupted at the wrong moment loses one."""
    used = range(own().words[calls.TABLE_HIGH // 4])
    return set(used).difference(own().free, own().live)
