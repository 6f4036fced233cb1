"""What drivers share whose roots are no directories of the store, but things elsewhere that a *record* names.

Where the other drivers of whole trees have a directory ``root``, these have a file ``root`` with the name of the thing.  All
that `isolib.unionfs.drivers.directories` says of directories is so true of things too: the record is written before the thing
is made, and whoever removes the record's directory removes the thing first.  A name is never used twice, so a record that an
interrupted process has left names that thing, or none.
"""

from __future__ import annotations

import os
import stat
from abc import abstractmethod
from errno import ENOENT
from typing import TYPE_CHECKING, Final

from isolib.errors import from_errno
from isolib.unionfs.disk.files import open_at
from isolib.unionfs.drivers.directories import discard
from isolib.unionfs.drivers.merged import MergedDriver
from isolib.unionfs.overlays.stacking import open_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolib._kernel.handle import Fd

__all__ = ["RecordedDriver"]

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_RECORD: Final = "root"


class RecordedDriver(MergedDriver):
    """A driver whose roots are things that records name."""

    @abstractmethod
    def _new_thing(self) -> str:
        """Return a name that no thing has, had or will have but for the caller's."""

    @abstractmethod
    def _make_empty(self, thing: str) -> None:
        """Make an empty one."""

    @abstractmethod
    def _make_copy(self, source: str, thing: str, quota: int | None) -> None:
        """Make one that is as another is at this moment."""

    @abstractmethod
    def _remove_thing(self, thing: str) -> bool:
        """Remove one; none of this name is nothing.  Returns False where somebody uses it: then it stays."""

    @abstractmethod
    def _mount_thing(self, thing: str, *, readonly: bool) -> Fd:
        """Return a detached mount of one."""

    def _named(self, root: str) -> str:
        """Return the name in a record."""
        found = self._place.read(root)
        if not found:
            raise from_errno("openat", self._place.show(root), ENOENT)
        return found

    def _new_record(self, path: str) -> str:
        thing = self._new_thing()
        self._place.write(path, thing)
        return thing

    def _new_root(self, path: str) -> None:
        """Make an empty root: a copy of one that is kept, for to make one is dear."""
        if not self._place.has("empty"):
            with self._place.making() as made:
                self._make_empty(self._new_record(f"{made}/{_RECORD}"))
                self._place.move(made, "empty")  # if there is one, that is it
        self._copy_root(f"empty/{_RECORD}", path)

    def _copy_root(self, source: str, target: str, quota: int | None = None) -> None:
        self._make_copy(self._named(source), self._new_record(target), quota)

    def _open_thing(self, thing: str, *, readonly: bool = False) -> Fd:
        """Open the root of one as a directory, which is mounted for as long as it is open."""
        with self._mount_thing(thing, readonly=readonly) as mount:
            return open_directory(".", dir_fd=mount.fileno(), flags=os.O_RDONLY)

    def _open_root(self, root: str, *, readonly: bool = False) -> Fd:
        return self._open_thing(self._named(root), readonly=readonly)

    def mount(self, tree: str) -> Fd:
        """Mount a tree; a mount of a tree that is mounted shows the same."""
        return self._mount_thing(self._named(f"{self._existing(tree)}/now/{_RECORD}"), readonly=False)

    def _discard(self, directory: int, name: str) -> None:
        """Remove something with what its records name; what somebody uses stays aside, for a later sweep."""
        gone = [self._remove_thing(thing) for thing in _records(directory, name)]
        if all(gone):
            discard(directory, name)

    def settle(self) -> None:
        """Wait until what is removed behind is gone; what was in use when it was removed, and is no more, goes now."""
        super().settle()
        if self._place.names("aside"):
            self._place.sweep()


def _records(directory: int, name: str) -> Iterator[str]:
    """Yield what the records in a directory of ours name."""
    found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    if stat.S_ISDIR(found.st_mode):
        with open_at(name, _DIRECTORY, dir_fd=directory) as below:
            for each in os.listdir(below.fileno()):
                yield from _records(below.fileno(), each)
    elif name == _RECORD:
        with (
            open_at(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory) as file,
            open(file.fileno(), encoding="utf-8", closefd=False) as record,
        ):
            yield record.read()
