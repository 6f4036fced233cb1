"""What drivers share that keep everything in directories of one file system.

======================  =====================================================================
``drafts/NAME/root``    a layer in the making
``layers/NAME/root``    a layer
``trees/NAME``          a tree; what is in it is the driver's matter
``aside``               what is being made, and what is being removed
======================  =====================================================================

What is made is made aside and renamed to its place, and what is removed leaves its place by a rename; so nobody finds half of
a thing, however a process ends.  Whoever has something aside holds a lock of it, flock(2), which ends with the process: what is
aside and has no lock, `Home.sweep` removes.

Around each root lies a directory of ours, for a root has the owner and the mode that an archive gives it, and not everybody may
rename such a directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from abc import abstractmethod
from collections import deque
from errno import EEXIST, ENOENT, ENOTEMPTY
from secrets import token_hex
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib._kernel.handle import home
from isolib._kernel.hints import hint
from isolib._kernel.threads import OwnThread
from isolib.errors import IsolibError, PlanError, SyscallError, from_errno
from isolib.unionfs.disk.files import open_at, twin
from isolib.unionfs.drivers.base import Draft, Driver

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from isolib._kernel.handle import Fd

__all__ = ["DirectoryDriver", "Home", "check_name", "discard"]

_ASIDE: Final = "aside"
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_LONGEST_NAME: Final = 255
_MODE: Final = 0o700  # what layers hold of set-user-id programs is no user's of the host


def check_name(name: str) -> str:
    """Return a name that one directory can have, or raise PlanError."""
    encoded = os.fsencode(name)
    if name in {"", ".", ".."} or len(encoded) > _LONGEST_NAME or any(byte in encoded for byte in b"/\0\n"):
        raise PlanError(f"no name for a layer or a tree: {name!r}")
    return name


@contextlib.contextmanager
def _named(op: str, path: str) -> Generator[None]:
    try:
        yield
    except IsolibError:
        raise
    except OSError as error:
        raise from_errno(op, path, error.errno or 0, hint(op, error.errno or 0, path)) from None


def discard(directory: int, name: str) -> None:
    """Remove something in a directory, with all that is in it; none of this name is nothing."""
    calls.remove_tree(directory, name, name)


class Home:
    """A driver's directory, in which things are whole or not there.

    Paths are relative to it, and made of names that `check_name` has passed.

    Parameters
    ----------
    fd
        A descriptor of the directory.
    path
        Its path, for messages.
    remove
        Removes what has a name in a directory, with all that is in it, and is content where nothing has.
    """

    def __init__(self, fd: Fd, path: str, remove: Callable[[int, str], None] = discard) -> None:
        self.fd = fd
        self.path = path
        self._remove = remove
        self._remover = _Remover(self._remove_aside)

    def show(self, path: str) -> str:
        """Return a path as messages have it."""
        return os.path.join(self.path, path)

    def names(self, path: str) -> set[str]:
        """Return the names in a directory; none where there is no such directory."""
        try:
            with self.open(path) as directory:
                return set(os.listdir(directory.fileno()))
        except OSError as error:
            if error.errno != ENOENT:
                raise
            return set()

    def has(self, path: str) -> bool:
        """Return whether there is something at a path."""
        with _named("fstatat", self.show(path)):
            try:
                os.stat(path, dir_fd=self.fd.fileno(), follow_symlinks=False)
            except FileNotFoundError:
                return False
            return True

    def open(self, path: str) -> Fd:
        """Open a directory.

        Raises
        ------
        SyscallError
            There is none; or as openat(2).
        """
        with _named("openat", self.show(path)):
            return open_at(path, _DIRECTORY, dir_fd=self.fd.fileno())

    def make(self, path: str, *, exist_ok: bool = False) -> None:
        """Make a directory, and those above it."""
        above = os.path.dirname(path)
        if above and not self.has(above):
            self.make(above, exist_ok=True)
        with _named("mkdirat", self.show(path)):
            try:
                os.mkdir(path, _MODE, dir_fd=self.fd.fileno())
            except FileExistsError:
                if not exist_ok:
                    raise

    def read(self, path: str) -> str:
        """Return the text in a file; empty where there is no file."""
        with _named("openat", self.show(path)):
            try:
                file = open_at(path, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self.fd.fileno())
            except FileNotFoundError:
                return ""
            with file, open(file.fileno(), encoding="utf-8", errors="surrogateescape", closefd=False) as stream:
                return stream.read()

    def write(self, path: str, text: str) -> None:
        """Put a text into a file, in the place of what is in it, in one step."""
        with self._lodged(self._new_file) as new, _named("write", self.show(path)):
            with (
                open_at(new, os.O_WRONLY | os.O_NOFOLLOW, dir_fd=self.fd.fileno()) as file,
                open(file.fileno(), "w", encoding="utf-8", errors="surrogateescape", closefd=False) as stream,
            ):
                stream.write(text)
            os.rename(new, path, src_dir_fd=self.fd.fileno(), dst_dir_fd=self.fd.fileno())

    def move(self, old: str, new: str) -> bool:
        """Move a directory to its place, in one step; returns False where something is there already."""
        here = self.fd.fileno()
        above = os.path.dirname(new)
        if above and not self.has(above):
            self.make(above, exist_ok=True)
        try:
            calls.rename(here, old, here, new, calls.RENAME_NOREPLACE, self.show(new))
        except OSError as error:
            if error.errno not in {EEXIST, ENOTEMPTY}:
                raise
            return False
        return True

    def put(self, old: str, new: str) -> None:
        """Move a directory to its place, in one step.

        Raises
        ------
        SyscallError
            EEXIST: something is there already.
        """
        if not self.move(old, new):
            raise from_errno("renameat2", self.show(new), EEXIST)

    def exchange(self, one: str, other: str) -> None:
        """Exchange two directories, in one step."""
        here = self.fd.fileno()
        calls.rename(here, one, here, other, calls.RENAME_EXCHANGE, self.show(other))

    # Aside

    def making(self) -> contextlib.AbstractContextManager[str]:
        """Return a new directory aside, for a `with` block; what is of it then and was not moved to its place is removed."""
        return self._lodged(self._new_directory)

    def remove(self, path: str) -> None:
        """Remove something, in one step: what that takes goes on behind.  Nothing there is nothing."""
        lock = self._lock(path)
        if lock is not None:
            with lock:
                self._put_aside(path, lock)

    def remove_unless(self, path: str, is_used: Callable[[], bool]) -> None:
        """Remove something, as `remove`, that nobody uses and that nobody is making at this moment."""
        lock = self._lock(path, fcntl.LOCK_EX)
        if lock is not None:
            with lock:
                if not is_used():
                    self._put_aside(path, lock)

    def _put_aside(self, path: str, lock: Fd) -> None:
        here, new = self.fd.fileno(), self._new_name()
        try:
            calls.rename(here, path, here, new, calls.RENAME_NOREPLACE, self.show(path))
        except OSError as error:
            if error.errno != ENOENT:
                raise
            return
        self._remover.add(new, lock)

    def settle(self) -> None:
        """Wait until what is removed behind is gone."""
        self._remover.join()

    def sweep(self) -> None:
        """Remove what interrupted calls have left aside.

        Raises
        ------
        SyscallError
            Something cannot be removed.
        """
        for name in self.names(_ASIDE):
            path = f"{_ASIDE}/{name}"
            lock = self._lock(path, fcntl.LOCK_EX)
            if lock is not None:
                with lock:
                    self._remove_aside(path)

    def _new_name(self) -> str:
        self.make(_ASIDE, exist_ok=True)
        return f"{_ASIDE}/{token_hex(8)}"

    def _new_directory(self, path: str) -> None:
        with _named("mkdirat", self.show(path)):
            os.mkdir(path, _MODE, dir_fd=self.fd.fileno())

    def _new_file(self, path: str) -> None:
        with _named("openat", self.show(path)):
            open_at(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, dir_fd=self.fd.fileno()).close()

    @contextlib.contextmanager
    def _lodged(self, make: Callable[[str], None]) -> Generator[str]:
        path, lock = self._new_name(), None
        try:
            while lock is None:  # a sweep may find it before it is locked
                make(path)
                lock = self._lock(path)
                path = path if lock else self._new_name()
            yield path
        finally:
            if self.has(path):
                self.remove(path)
            if lock is not None:
                lock.close()  # an exception that is kept keeps what this function has

    def _lock(self, path: str, kind: int = fcntl.LOCK_SH) -> Fd | None:
        """Return what holds the lock of something; None where it is not there, or somebody else has it."""
        with _named("openat", self.show(path)):
            try:
                lock = open_at(path, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self.fd.fileno())
            except FileNotFoundError:
                return None
            try:
                fcntl.flock(lock.fileno(), kind | fcntl.LOCK_NB)
                found = os.stat(path, dir_fd=self.fd.fileno(), follow_symlinks=False)
                if os.path.samestat(found, os.fstat(lock.fileno())):
                    return lock
            except (FileNotFoundError, BlockingIOError):
                pass
            except BaseException:
                lock.close()
                raise
            lock.close()
            return None

    def _remove_aside(self, path: str) -> None:
        with self.open(_ASIDE) as aside:
            self._remove(aside.fileno(), os.path.basename(path))


class _Remover:
    """Removes things one after the other, on a thread that is there while there are any."""

    def __init__(self, remove: Callable[[str], None]) -> None:
        self._remove = remove
        self._forget()

    def _forget(self) -> None:
        self._home = home()
        self._changed = threading.Condition()
        self._waiting: deque[tuple[str, Fd]] = deque()
        self._is_running = False

    def add(self, path: str, lock: Fd) -> None:
        """Have something removed; the lock is closed then."""
        if self._home != home():
            self._forget()  # the thread has stayed in the process that this one is a fork of
        with _named("fcntl", path):
            kept = twin(lock.fileno())
        with self._changed:
            self._waiting.append((path, kept))
            if self._is_running:
                return
            self._is_running = True
        try:
            OwnThread("isolib-remover", "the thread that removes").start_outside(self._work)
        except SyscallError:
            self._work()  # there can be no more threads

    def join(self) -> None:
        """Wait until all is removed."""
        if self._home == home():
            with self._changed:
                self._changed.wait_for(lambda: not self._is_running)
                is_left = bool(self._waiting)
            if is_left:  # by somebody who was interrupted before there was a thread
                self._work()

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._is_running = False
                    self._changed.notify_all()
                    return
                path, lock = self._waiting.popleft()
            with lock, contextlib.suppress(OSError):  # it stays aside: a sweep will say why
                self._remove(path)


class DirectoryDriver(Driver):
    """A driver that keeps everything in directories of one file system."""

    def __init__(self, home: Fd, path: str) -> None:
        super().__init__(home, path)
        self._place = Home(home, path, self._discard)

    # What a driver says of its directories

    def _discard(self, directory: int, name: str) -> None:
        """Remove something with all that is in it; none of this name is nothing."""
        discard(directory, name)

    @abstractmethod
    def _found(self, root: str, below: Sequence[str]) -> None:
        """Make the root of a draft, at a path, above layers."""

    def _open_root(self, root: str, *, readonly: bool = False) -> Fd:  # noqa: ARG002 - for those to whom it is a mount
        """Open a root, which stays a driver's matter: a directory, or a mount."""
        return self._place.open(root)

    def _freeze(self, root: str) -> None:
        """See to it that a root does not change any more."""

    # Layers

    def new_draft(self, name: str, below: Sequence[str]) -> Draft:
        path = f"drafts/{check_name(name)}"
        self._place.make(path)
        try:
            self._found(f"{path}/root", below)
            return Draft(name, self._open_root(f"{path}/root"))
        except BaseException:
            self.drop(name)
            raise

    def seal(self, draft: Draft, layer: str) -> None:
        check_name(layer)
        draft.root.close()
        self._freeze(f"drafts/{draft.name}/root")
        if not self._place.move(f"drafts/{draft.name}", f"layers/{layer}"):
            self.drop(draft.name)

    def drop(self, draft: str) -> None:
        self._place.remove(f"drafts/{check_name(draft)}")

    def drafts(self) -> set[str]:
        return self._place.names("drafts")

    def open_layer(self, layer: str) -> Fd:
        return self._open_root(f"layers/{check_name(layer)}/root", readonly=True)

    def layers(self) -> set[str]:
        return self._place.names("layers")

    def remove_layer(self, layer: str) -> None:
        self._place.remove(f"layers/{check_name(layer)}")

    # Trees

    def trees(self) -> set[str]:
        return self._place.names("trees")

    def remove_tree(self, tree: str) -> None:
        self.release(tree)
        self._place.remove(f"trees/{check_name(tree)}")

    # Leftovers

    def sweep(self) -> None:
        self._place.sweep()

    def settle(self) -> None:
        self._place.settle()
