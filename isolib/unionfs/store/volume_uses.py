"""Descriptors of volumes, and the locks by which others see that they are used."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from errno import EACCES, EBUSY, EWOULDBLOCK
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from isolib._kernel.handle import Fd
from isolib._kernel.hints import typed
from isolib._kernel.mountapi import open_in_root
from isolib.errors import PlanError, SyscallError, from_errno
from isolib.types import check_path, parse_size
from isolib.unionfs.disk.files import open_at
from isolib.unionfs.stays import Stay
from isolib.unionfs.store.volume_records import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from isolib.types import AnyPath
    from isolib.unionfs.archive.streams import Readable

__all__ = [
    "check_labels",
    "check_quota",
    "directory_in",
    "lock_alone",
    "open_root",
    "opened_again",
    "reading",
    "used_by_process",
]

_DIRECTORY: Final = os.O_DIRECTORY | os.O_NOFOLLOW


def lock_alone(fd: Fd, what: str) -> None:
    """Have alone what may be shared with others.

    Raises
    ------
    SyscallError
        EBUSY: it is.
    """
    try:
        fcntl.flock(fd.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno != EWOULDBLOCK:
            raise from_errno("flock", what, error.errno or 0) from None
        hint = "another handle or a process, perhaps of somebody else's, uses this volume"
        raise SyscallError("flock", what, EBUSY, hint) from None


def open_root(content: Fd) -> Fd:
    """Open the files of a volume; where that is refused, as a place only."""
    for flags in (os.O_RDONLY, os.O_PATH):
        try:
            return open_at(ROOT, flags | _DIRECTORY, dir_fd=content.fileno())
        except OSError as error:
            if error.errno != EACCES or flags == os.O_PATH:
                raise from_errno("openat", ROOT, error.errno or 0) from None
    raise AssertionError


def opened_again(fd: Fd, flags: int) -> Fd:
    """Open a directory anew."""
    with typed("a volume"):
        return open_at(".", flags | _DIRECTORY, dir_fd=fd.fileno())


def used_by_process(opened: Callable[[], tuple[Fd, Fd]]) -> Stay:
    """Return that a process has a volume; ``opened`` returns its files, and what tells that they are in use."""
    taken: list[Fd] = []

    def enter(_: Stay) -> Fd:
        root, used = opened()
        taken.append(used)
        return root

    def leave(_: Stay) -> None:
        while taken:
            with taken.pop() as used:  # a fork of this process may have it still
                fcntl.flock(used.fileno(), fcntl.LOCK_UN)

    return Stay(enter, leave)


@contextmanager
def reading(source: AnyPath | Readable) -> Iterator[Readable]:
    """Have what a path or a file is of."""
    if not isinstance(source, (str, bytes, os.PathLike)):
        yield source
        return
    path = check_path(source, "source")
    with typed(path):
        file: BinaryIO = open(path, "rb", buffering=0)  # noqa: SIM115 - what the block raises is not about this
    with file:
        yield cast("Readable", file)


def directory_in(root: int, path: str) -> Fd:
    """Open a directory of an image, in which symbolic links lead nowhere else."""
    return Fd(open_in_root(root, path, os.O_RDONLY | os.O_DIRECTORY))


def check_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Return what is to be noted of a volume, as it is then."""
    if not all(isinstance(one, str) for item in labels.items() for one in item):
        raise PlanError(f"labels: a mapping from str to str, not {labels!r}")
    return dict(labels)


def check_quota(quota: int | str | None) -> int | None:
    """Return how many bytes a volume is to have room for."""
    room = None if quota is None else parse_size(quota, "quota")
    if room is not None and room < 1:
        raise PlanError(f"quota={quota!r}: a number of bytes is wanted")
    return room
