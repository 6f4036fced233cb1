"""The files of which an archive of images consists: in a directory, or in a tar.

Whoever made the directory chose what is in it, so symbolic links do not lead out of it, and only plain files are read.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from errno import ELOOP, ENOENT, ENOTDIR
from typing import TYPE_CHECKING, Final, Protocol

from isolib._kernel.handle import Fd
from isolib._kernel.mountapi import open_in_root
from isolib.errors import ArchiveError, SyscallError
from isolib.unionfs.images.documents import LARGEST
from isolib.unionfs.images.members import Section

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

    from isolib.unionfs.images.members import Member

__all__ = ["DirectoryFiles", "Files", "TarFiles"]

_HOPS: Final = 16


class Files(Protocol):
    """Files by their paths."""

    def has(self, path: str) -> bool:
        """Return whether there is a file."""

    def open(self, path: str) -> AbstractContextManager[tuple[Section, int]]:
        """Have a file open, and its size.

        Raises
        ------
        ArchiveError
            There is none.
        """


def read(files: Files, path: str) -> bytes:
    """Return a document.

    Raises
    ------
    ArchiveError
        There is none, or it is too long for one.
    """
    with files.open(path) as (section, size):
        if size > LARGEST:
            raise ArchiveError(f"a document of {size} bytes; {LARGEST} are the most", path)
        data = section.read()
        if len(data) != size:
            raise ArchiveError("it is cut short", path)
        return data


class DirectoryFiles:
    """The files in a directory.

    Parameters
    ----------
    root
        Its descriptor.
    """

    def __init__(self, root: Fd) -> None:
        self._root = root

    def _opened(self, path: str) -> Fd:
        try:
            # A FIFO would wait for its writer.
            return Fd(open_in_root(self._root.fileno(), path, os.O_RDONLY | os.O_NONBLOCK))
        except SyscallError as error:
            if error.errno in {ELOOP, ENOENT, ENOTDIR}:
                raise ArchiveError("there is no such file", path) from None
            raise

    def has(self, path: str) -> bool:
        """Return whether there is a file."""
        try:
            with self.open(path):
                return True
        except ArchiveError:
            return False

    @contextmanager
    def open(self, path: str) -> Iterator[tuple[Section, int]]:
        """Have a file open, and its size."""
        with self._opened(path) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ArchiveError("this is not a plain file", path)
            yield Section(file.fileno(), 0, status.st_size), status.st_size


class TarFiles:
    """The files in a tar.

    Parameters
    ----------
    fd
        A descriptor of the tar, which is not compressed.
    index
        Where its files are, by their paths.
    """

    def __init__(self, fd: int, index: Mapping[str, Member]) -> None:
        self._fd = fd
        self._index = index

    def _member(self, path: str) -> Member | None:
        found = self._index.get(path)
        for _ in range(_HOPS):
            if found is None or found.link is None:
                break
            found = self._index.get(found.link)
        return found if found is not None and found.is_file and found.link is None else None

    def has(self, path: str) -> bool:
        """Return whether there is a file."""
        return self._member(path) is not None

    @contextmanager
    def open(self, path: str) -> Iterator[tuple[Section, int]]:
        """Have a file open, and its size."""
        member = self._member(path)
        if member is None:
            raise ArchiveError("there is no such file", path)
        yield Section(self._fd, member.offset, member.size), member.size
