"""What is done in several directories of a control group at once, in one call, where `Directory` would take one for each.

Each call gives the GIL away, and beside busy threads it may take some milliseconds to get it back.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from isolib._kernel import calls
from isolib._kernel.calls import Batch, Errand
from isolib.cgroups.files import DIRECTORY, Directory, not_opened
from isolib.cgroups.tree import ABSENT
from isolib.errors import GoneError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from isolib._kernel.handle import Fd
    from isolib.errors import SyscallError

__all__ = ["Errands", "contents"]

K = TypeVar("K")

#: As much as is read of a file at once; nearly all are far shorter.
_ROOM: Final = 4096


class _Object(NamedTuple):
    """What an errand is about, for messages."""

    directory: Directory
    name: str
    value: str | None = None


class Errands:
    """Operations in directories of control groups, done in order, up to the first that is refused.

    Those that are added are numbered from 0.  What they open stays theirs, and is closed together; the directories that they
    are about must stay open until they are done.
    """

    def __init__(self) -> None:
        self._errands: list[Errand] = []
        self._objects: list[_Object] = []
        self._batch: Batch | None = None

    # ---- what is to be done ----

    def _add(self, kind: int, about: _Object, flags: int = 0, data: bytes = b"", room: int = 0) -> int:
        self._errands.append(Errand(kind, about.directory.fileno(), about.name, flags, data, room))
        self._objects.append(about)
        return len(self._errands) - 1

    def be_absent(self, parent: Directory, name: str) -> int:
        """Have it refused, as if it should be made, that there is something of a name."""
        return self._add(calls.ERRAND_ABSENT, _Object(parent, name))

    def make(self, parent: Directory, name: str) -> int:
        """Have a group made."""
        return self._add(calls.ERRAND_MKDIR, _Object(parent, name))

    def remove(self, parent: Directory, name: str) -> int:
        """Have an empty group removed."""
        return self._add(calls.ERRAND_RMDIR, _Object(parent, name))

    def open_group(self, parent: Directory, name: str) -> int:
        """Have a group opened; see `directory`."""
        return self._add(calls.ERRAND_OPEN, _Object(parent, name), DIRECTORY)

    def open_file(self, directory: Directory, name: str, flags: int) -> int:
        """Have a file opened; see `fd`."""
        return self._add(calls.ERRAND_OPEN, _Object(directory, name), flags)

    def read(self, directory: Directory, name: str) -> int:
        """Have a file read; see `content`."""
        return self._add(calls.ERRAND_READ, _Object(directory, name), os.O_RDONLY, room=_ROOM)

    def write(self, directory: Directory, name: str, value: str) -> int:
        """Have a value written into a file."""
        return self._add(calls.ERRAND_WRITE, _Object(directory, name, value), os.O_WRONLY, value.encode("ascii"))

    def eventfd(self, directory: Directory, name: str) -> int:
        """Have an eventfd opened, which is for a file; see `fd`."""
        return self._add(calls.ERRAND_EVENTFD, _Object(directory, name), os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    # ---- doing it ----

    def attempt(self) -> SyscallError | None:
        """Do what is left to be done; returns the exception for what was refused, to be raised or to be `passed_over`."""
        if self._batch is None:
            self._batch = Batch(self._errands)
        refused = self._batch.run()
        if refused is None:
            return None
        directory, name, value = self._objects[refused.errand]
        if refused.call == "open" and self._errands[refused.errand].flags == DIRECTORY:
            return not_opened(f"{directory.path}/{name}", refused.errno)
        return directory.refused(refused.call, name, refused.errno, value)

    def pass_over(self) -> int:
        """Leave out what was refused; returns its number."""
        assert self._batch is not None  # noqa: S101 - something was refused
        number = self._batch.done
        self._batch.skip()
        return number

    def run(self) -> None:
        """Do what is to be done.

        Raises
        ------
        SyscallError
            One is refused: as the method of `Directory` raises it.
        """
        if (refused := self.attempt()) is not None:
            raise refused

    # ---- what has become of it ----

    def is_done(self, number: int) -> bool:
        """Return whether an errand was done."""
        return self._batch is not None and number < self._batch.done

    def directory(self, number: int) -> Directory:
        """Return a group that was opened; another object each time."""
        parent, name, _ = self._objects[number]
        return Directory(self.fd(number), f"{parent.path}/{name}", parent.version)

    def fd(self, number: int) -> Fd:
        """Return what was opened."""
        assert self._batch is not None  # noqa: S101 - it is done
        return self._batch.fd(number)

    def content(self, number: int) -> str:
        """Return what was read."""
        assert self._batch is not None  # noqa: S101 - it is done
        data = self._batch.data(number)
        if len(data) < _ROOM:
            return data.decode("ascii", "replace")
        directory, name, _ = self._objects[number]
        return directory.read(name)

    def close(self) -> None:
        """Close all that was opened; again is nothing."""
        if self._batch is not None:
            self._batch.close()


def contents(files: Mapping[K, tuple[Directory, str]]) -> dict[K, str]:
    """Return what is in several files; those that the kernel does not give to a group are left out.

    Raises
    ------
    SyscallError
        One cannot be read; `GoneError` when the group is gone.
    """
    errands = Errands()
    numbers = {key: errands.read(directory, name) for key, (directory, name) in files.items()}
    absent = set()
    while (refused := errands.attempt()) is not None:
        if isinstance(refused, GoneError) or refused.errno not in ABSENT:
            raise refused
        absent.add(errands.pass_over())
    return {key: errands.content(number) for key, number in numbers.items() if number not in absent}
