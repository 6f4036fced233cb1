"""An open directory of a control group, and its files: read, written, and complained about by name and value.

Nothing here knows what a file means, nor that it is a kernel's: a plain directory with files of the same names will do, which
is how the controllers are tested without privileges.
"""

from __future__ import annotations

import os
from errno import EACCES, EBUSY, EEXIST, EINVAL, ENODEV, ENOENT, EOPNOTSUPP, EPERM, ERANGE, EROFS
from functools import partial
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib._kernel.handle import Fd
from isolib._kernel.hints import hint, typed
from isolib.errors import GoneError, PlanError, SyscallError, from_errno

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import Self

__all__ = ["Directory", "distinct", "not_opened", "parse_flat", "parse_nested"]

DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
#: As much as is read of a file at first; nearly all are far shorter.
SHORT: Final = 4096
#: As much as one read of a counter yields; the longest, memory.stat, has some 1,500 bytes.
_COUNTER: Final = 16384

_WRITE_HINTS: Final = {
    EACCES: "it takes write permission: root, or a group that was delegated to this user",
    EEXIST: "the name is taken: leave name= out, and a free one is found",
    EBUSY: "it is in use: memory above the new limit that cannot be reclaimed, or processes in a group with controllers",
    EINVAL: "the kernel does not take this value here: out of its range, not a whole disk, or more than the group above has",
    ENODEV: "there is no such device, or it has no such setting",
    EOPNOTSUPP: "the group is threaded or its domain invalid (cgroup.type), or its controller is not enabled here",
    EPERM: "the kernel refuses it to this user, or for this group",
    ERANGE: "out of the range that the kernel takes",
    EROFS: "cgroupfs is mounted read-only here",
}


class Directory:
    """A directory of a control group, owned by its descriptor; what it holds is opened relative to that.

    Attributes
    ----------
    path
        Where it was opened: a label for messages.
    version
        2 or 1: of which cgroup interface it is.
    is_new
        Whether this program has just made it, and has written nothing in it: what can be set has its first value.
    """

    __slots__ = ("_absent", "_fd", "_kept", "is_new", "path", "version")

    def __init__(self, fd: Fd, path: str, version: int) -> None:
        self._fd = fd
        self.path = path
        self.version = version
        self.is_new = False
        self._kept: dict[str, Fd] = {}
        self._absent: set[str] = set()

    @classmethod
    def open(cls, path: str, version: int, *, parent: Directory | None = None) -> Self:
        """Open a directory by its path, or by its name below another.

        Raises
        ------
        SyscallError
            It cannot be opened; `GoneError` when there is none.
        """
        label = path if parent is None else f"{parent.path}/{path}"
        try:
            if parent is None:
                fd = Fd.take(os.open, path, DIRECTORY)
            else:
                fd = Fd.take(partial(os.open, dir_fd=parent.fileno()), path, DIRECTORY)
        except OSError as error:
            raise not_opened(label, error.errno or 0) from None
        assert fd is not None  # noqa: S101 - os.open raises
        return cls(fd, label, version)

    def copy(self) -> Self:
        """Return another object for the same directory, to be closed for itself: for who waits while others close this one."""
        return type(self)(self._anew(), self.path, self.version)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Directory {self.path} v{self.version}>"

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd.fileno()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._fd.closed

    @property
    def descriptors(self) -> set[int]:
        """Its descriptor, and those of the counters that it keeps open."""
        return {self.fileno(), *(fd.fileno() for fd in self._kept.values())}

    def close(self) -> None:
        """Close it, and the counters that it keeps open; again is nothing."""
        kept, self._kept = self._kept, {}
        for fd in kept.values():
            fd.close()
        self._fd.close()

    # ---- files ----

    def has(self, name: str) -> bool:
        """Return whether there is a file of this name."""
        try:
            os.stat(name, dir_fd=self.fileno(), follow_symlinks=False)
        except OSError:
            return False
        return True

    def open_file(self, name: str, flags: int, value: str | None = None) -> Fd:
        """Open one of its files; ``value``, for messages, is what will be written."""
        try:
            fd = Fd.take(partial(os.open, dir_fd=self.fileno()), name, flags | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise self.refused("open", name, error.errno or 0, value) from None
        assert fd is not None  # noqa: S101 - os.open raises
        return fd

    def read(self, name: str) -> str:
        """Return what is in a file.

        Raises
        ------
        SyscallError
            It cannot be read; `GoneError` when the group is gone.
        """
        return self._content(name, to_end=True).decode("ascii", "replace")

    def _content(self, name: str, *, to_end: bool) -> bytes:
        """Return what is in a file, in one call where that is short."""
        data = calls.read_file(self.fileno(), name, SHORT, to_end=to_end)
        if isinstance(data, calls.Refused):
            raise self.refused(data.call, name, data.errno)
        if len(data) < SHORT:
            return data
        parts = []
        with self.open_file(name, os.O_RDONLY) as fd:
            try:
                while part := os.read(fd.fileno(), _COUNTER):
                    parts.append(part)
            except OSError as error:
                raise self.refused("read", name, error.errno or 0) from None
        return b"".join(parts)

    def sample(self, name: str) -> bytes:
        """Return what is in a short file that is asked again and again: it stays open, which is ten times faster."""
        fd = self._kept.get(name)
        if fd is None:
            fd = self._kept.setdefault(name, self.open_file(name, os.O_RDONLY))
        try:
            data = part = os.pread(fd.fileno(), _COUNTER, 0)
            while len(part) == _COUNTER:  # io.stat of a hundred disks
                part = os.pread(fd.fileno(), _COUNTER, len(data))
                data += part
        except OSError as error:
            # A file that was taken away and given back (a controller, cgroup.pressure) is another one to those who had it open.
            if error.errno != ENODEV or not self.is_there() or self._kept.pop(name, None) is None:
                raise self.refused("read", name, error.errno or 0) from None
            return self.sample(name)
        return data

    def keep(self, name: str, fd: Fd) -> None:
        """Take a file of it that is open already for `sample`."""
        self._kept[name] = fd

    def glance(self, name: str) -> bytes:
        """Return what is in a file of one record that is asked seldom: nothing more stays open, and one call will do."""
        return self.sample(name) if name in self._kept else self._content(name, to_end=False)

    def sample_if_there(self, name: str, *, comes_and_goes: bool = False) -> bytes | None:
        """As `sample`; None where the kernel gives the group no such file, which is remembered unless it may come back."""
        return self._if_there(self.sample, name, comes_and_goes=comes_and_goes)

    def glance_if_there(self, name: str) -> bytes | None:
        """As `glance`; None where the kernel gives the group no such file, which is remembered."""
        return self._if_there(self.glance, name)

    def _if_there(self, ask: Callable[[str], bytes], name: str, *, comes_and_goes: bool = False) -> bytes | None:
        if name in self._absent:
            return None
        try:
            return ask(name)
        except SyscallError as error:
            if isinstance(error, GoneError) or error.errno not in {ENOENT, EOPNOTSUPP}:
                raise
        if not comes_and_goes:
            self._absent.add(name)
        return None

    def write(self, name: str, value: str) -> None:
        """Write a value into a file, by one call.

        Raises
        ------
        SyscallError
            The kernel refuses; the message names the file and the value.  `GoneError` when the group is gone.
        """
        try:
            data = value.encode("ascii")
        except (AttributeError, UnicodeEncodeError):
            raise PlanError(f"{name}: {value!r}: a control file takes a text of ASCII") from None
        self.is_new = False
        refused = calls.write_file(self.fileno(), name, data)
        if refused is not None:
            raise self.refused(refused.call, name, refused.errno, value)

    def refused(self, op: str, name: str, errno: int, value: str | None = None) -> SyscallError:
        """Return the exception for a call that failed on one of its files."""
        shown = f"{self.path}/{name}" if value is None else f"{self.path}/{name} = {value.strip()!r}"
        # A group that was removed says ENODEV to those who have its files open, and ENOENT to others.
        if errno in {ENODEV, ENOENT} and not self.is_there():
            return GoneError(op, shown, errno, "the control group has been removed")
        return _refused(op, shown, errno)

    def is_there(self) -> bool:
        """Return whether the group still exists; every group has this file, and a removed one has none."""
        return self.has("cgroup.procs")

    def entries(self) -> list[str]:
        """Return the names of all that is in it."""
        with self._anew() as fd, typed(self.path):
            return os.listdir(fd.fileno())

    def _anew(self) -> Fd:
        """Return a descriptor with a position of its own: listings through one go on where another thread's is."""
        return self.open_file(".", DIRECTORY)

    # ---- directories ----

    def make(self, name: str, *, anew: bool = True) -> None:
        """Make a group below.

        Parameters
        ----------
        name
            Its name.
        anew
            Whether it is an error that there is one.

        Raises
        ------
        SyscallError
            The kernel refuses; with EEXIST, there is one.
        """
        try:
            os.mkdir(name, 0o755, dir_fd=self.fileno())
        except OSError as error:
            if error.errno == EEXIST and not anew:
                return
            raise self.refused("mkdir", name, error.errno or 0) from None

    def names(self) -> list[str]:
        """Return the names of the groups below."""
        with self._anew() as fd, typed(self.path), os.scandir(fd.fileno()) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


def distinct(directories: Iterable[Directory | None]) -> list[Directory]:
    """Return those that there are, each once, in their order: controllers that are mounted together share one."""
    return list({id(one): one for one in directories if one is not None}.values())


def not_opened(path: str, errno: int) -> SyscallError:
    """Return the exception for a directory that cannot be opened."""
    if errno == ENOENT:
        return GoneError("open", path, ENOENT, "there is no such control group")
    return _refused("open", path, errno)


def _refused(op: str, target: str, errno: int) -> SyscallError:
    return from_errno(op, target, errno, _WRITE_HINTS.get(errno) or hint(op, errno, target))


def parse_flat(data: bytes) -> dict[str, int]:
    """Return the lines ``NAME NUMBER`` of a file such as cpu.stat; others are passed over."""
    found = {}
    for line in data.split(b"\n"):
        name, _, number = line.partition(b" ")
        if number.isdigit():
            found[name.decode("ascii", "replace")] = int(number)
    return found


def parse_nested(data: bytes) -> dict[str, dict[str, str]]:
    """Return the lines ``NAME KEY=VALUE KEY=VALUE`` of a file such as io.stat.

    A name without pairs may share its line with the next one: some kernels end none for a disk without I/O.
    """
    found: dict[str, dict[str, str]] = {}
    for line in data.decode("ascii", "replace").splitlines():
        pairs: dict[str, str] = {}
        for word in line.split():
            key, equals, value = word.partition("=")
            if equals:
                pairs[key] = value
            else:
                pairs = found.setdefault(word, {})
    return found
