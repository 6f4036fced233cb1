"""What is done in several directories of a control group at once, in one call, where `Directory` would take one for each.

Each call gives the GIL away, and beside busy threads it may take some milliseconds to get it back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from isolib._kernel import calls
from isolib.cgroups.files import DIRECTORY, SHORT, Directory, not_opened
from isolib.cgroups.tree import ABSENT
from isolib.errors import GoneError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from isolib._kernel.handle import Fd
    from isolib.errors import SyscallError

__all__ = ["Errands", "contents", "do_reading"]

K = TypeVar("K")

#: Files with a line for each disk that was used, and room for some hundred.
_LONGER: Final = frozenset({"io.stat"})
_LONG: Final = 65536


class Errands:
    """Operations in directories of control groups, done in order, up to the first that is refused.

    Those that are added are numbered from 0.  What they open stays theirs, and is closed together; the directories that they
    are about must stay open until they are done.
    """

    def __init__(self) -> None:
        self._batch = calls.Batch()
        #: What each is about, for messages: a directory, the name of something in it, and what is written.
        self._about: list[tuple[Directory, str, str | None]] = []
        self._groups: set[int] = set()

    # ---- what is to be done ----

    def be_absent(self, parent: Directory, name: str) -> int:
        """Have it refused, as if it should be made, that there is something of a name."""
        self._about.append((parent, name, None))
        return self._batch.add(calls.ERRAND_ABSENT, parent.fileno(), name)

    def make(self, parent: Directory, name: str) -> int:
        """Have a group made."""
        self._about.append((parent, name, None))
        return self._batch.add(calls.ERRAND_MKDIR, parent.fileno(), name)

    def remove(self, parent: Directory, name: str) -> int:
        """Have an empty group removed."""
        self._about.append((parent, name, None))
        return self._batch.add(calls.ERRAND_RMDIR, parent.fileno(), name)

    def open_group(self, parent: Directory, name: str) -> int:
        """Have a group opened; see `directory`."""
        number = self.open_file(parent, name, DIRECTORY)
        self._groups.add(number)
        return number

    def open_file(self, directory: Directory, name: str, flags: int) -> int:
        """Have a file opened; see `fd`."""
        self._about.append((directory, name, None))
        return self._batch.add(calls.ERRAND_OPEN, directory.fileno(), name, flags=flags)

    def read(self, directory: Directory, name: str) -> int:
        """Have a file of one record read; see `content`."""
        self._about.append((directory, name, None))
        return self._batch.add_read(directory.fileno(), name, _LONG if name in _LONGER else SHORT)

    def hold(self, directory: Directory, name: str, text: str) -> int:
        """Have it refused with EBUSY that there is no such text in a file."""
        self._about.append((directory, name, None))
        return self._batch.add(calls.ERRAND_HOLDS, directory.fileno(), name, text)

    def write(self, directory: Directory, name: str, value: str) -> int:
        """Have a value written into a file."""
        self._about.append((directory, name, value))
        return self._batch.add(calls.ERRAND_WRITE, directory.fileno(), name, value)

    def notify(self, directory: Directory, name: str, control: str) -> int:
        """Have an eventfd told of what a file of v1 tells of, by a cgroup.event_control; see `fd`."""
        self._about.append((directory, name, None))
        return self._batch.add(calls.ERRAND_NOTIFY, directory.fileno(), name, control)

    def close_those_of(self, other: Errands) -> None:
        """Have all closed that others have opened; the last errand, for it is about nothing that could be complained of."""
        self._batch.add_close(other._batch)

    # ---- doing it ----

    @property
    def batch(self) -> calls.Batch:
        """The operations, to be lent to a call that does them as well; then `take` comes before `attempt`."""
        return self._batch

    def take(self) -> None:
        """Have them done here only; a call that does them at this moment is waited for."""
        self._batch.take()

    def attempt(self) -> SyscallError | None:
        """Do what is left to be done; returns the exception for what was refused, which can be passed over."""
        refused = self._batch.run()
        if refused is None:
            return None
        number = self._batch.done
        directory, name, value = self._about[number]
        if number in self._groups:
            return not_opened(f"{directory.path}/{name}", refused.errno)
        return directory.refused(refused.call, name, refused.errno, value)

    def pass_over(self) -> int:
        """Leave out what was refused; returns its number."""
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
        return number < self._batch.done

    @property
    def is_complete(self) -> bool:
        """Whether all were done, or passed over."""
        return self._batch.is_complete

    def directory(self, number: int) -> Directory:
        """Return a group that was opened; another object each time."""
        parent, name, _ = self._about[number]
        return Directory(self._batch.fd(number), f"{parent.path}/{name}", parent.version)

    def fd(self, number: int) -> Fd:
        """Return what was opened."""
        return self._batch.fd(number)

    def content(self, number: int) -> str:
        """Return what was read."""
        return self._batch.data(number).decode("ascii", "replace")

    def close(self) -> None:
        """Close all that was opened; again is nothing."""
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
    found, refused = do_reading(errands, numbers)
    if refused is not None:
        raise refused
    return found


def do_reading(errands: Errands, numbers: Mapping[K, int]) -> tuple[dict[K, str], SyscallError | None]:
    """Do errands that read files, and leave those out that the kernel does not give to a group, or that are gone.

    Returns what was read, by what is called how here, and what was refused: nothing behind that was done.
    """
    absent = set()
    while (refused := errands.attempt()) is not None:
        if isinstance(refused, GoneError) or refused.errno not in ABSENT:
            break
        absent.add(errands.pass_over())
    read = {key: number for key, number in numbers.items() if number not in absent and errands.is_done(number)}
    return {key: errands.content(number) for key, number in read.items()}, refused
