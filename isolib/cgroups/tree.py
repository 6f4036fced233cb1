"""A group and the groups below it: who lives there, and what they have counted together."""

from __future__ import annotations

import os
from contextlib import suppress
from errno import ENODEV, ENOENT, EOPNOTSUPP
from functools import partial
from typing import TYPE_CHECKING, Final

from isolib._kernel.handle import Fd
from isolib._kernel.hints import typed
from isolib.cgroups.files import parse_flat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolib.cgroups.files import Directory

__all__ = ["ABSENT", "counted_in", "each_group", "listed", "names_in", "open_at", "pids_in", "read_at", "walk"]

#: How the kernel says that a group has no such file, or is itself no more.
ABSENT: Final = frozenset({ENODEV, ENOENT, EOPNOTSUPP})
_BLOCK: Final = 65536


def open_at(fd: int, name: str, flags: int = os.O_RDONLY) -> Fd:
    """Open a file, or a group, in a directory."""
    opened = Fd.take(partial(os.open, dir_fd=fd), name, flags | os.O_CLOEXEC | os.O_NOFOLLOW)
    assert opened is not None  # noqa: S101 - os.open raises
    return opened


def each_group(fd: int) -> Iterator[int]:
    """Yield a descriptor of the group, and of each below."""
    return (one for _, one in walk(fd))


def walk(fd: int, path: str = ".") -> Iterator[tuple[str, int]]:
    """Yield the path, from the group on, and a descriptor, of the group and of each below."""
    yield path, fd
    for name in names_in(fd):
        try:
            child = open_at(fd, name, os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        with child:
            yield from walk(child.fileno(), f"{path}/{name}")


def names_in(fd: int) -> list[str]:
    """Return the names of the groups in a directory.

    It is opened anew: through one descriptor, the listing of one thread goes on where that of another is, and misses groups.
    """
    with suppress(FileNotFoundError), open_at(fd, ".", os.O_DIRECTORY) as own, os.scandir(own.fileno()) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    return []


@typed("processes of a control group")
def pids_in(directory: Directory) -> list[int]:
    """Return who lives in a group and below it, as this pid namespace numbers them (0: not visible here)."""
    return list(dict.fromkeys(pid for fd in each_group(directory.fileno()) for pid in listed(fd)))


def listed(fd: int) -> list[int]:
    """Return who lives in one group."""
    for name in ("cgroup.procs", "cgroup.threads"):  # a threaded group has no list of processes
        if (data := read_at(fd, name)) is not None:
            return [int(word) for word in data.split()]
    return []


@typed("what a control group counts")
def counted_in(directory: Directory, file: str, key: str) -> int:
    """Return the sum of a line of a file over a group and those below it: v1 counts each alone."""
    return sum(parse_flat(read_at(fd, file) or b"").get(key, 0) for fd in each_group(directory.fileno()))


def read_at(fd: int, name: str) -> bytes | None:
    """Return what is in a file of a group; None where it has no such file, or is gone."""
    parts = []
    try:
        with open_at(fd, name) as file:
            while part := os.read(file.fileno(), _BLOCK):
                parts.append(part)
    except OSError as error:
        if error.errno not in ABSENT:
            raise
        return None
    return b"".join(parts)
