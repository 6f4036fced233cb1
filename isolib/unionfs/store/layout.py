"""What lies where in a store's directory, and how it is written so that a crash at any point leaves the old or the new.

::

    store.json      {"version": 1, "driver": "overlay"}; what has it is a store
    lock            nobody's content: `isolib.unionfs.store.locks`
    locks/          one file for each layer that is being made just now
    blobs/HEX       configs and manifests, by their digests
    images/HEX      an image, by the digest of its config: which manifest it came with
    names/HEX       a name, by the digest of its full form: which image it is of
    layers/HEX/     a layer, by its chain id: meta.json, and the recipe of its tar
    steps/HEX       what came of a step of a build: `isolib.unionfs.store.steps`
    trees/NAME/     a writable tree: meta.json; the flock on the directory is its owner's
    volumes/NAME/   a volume: meta.json, and content/root, its files; see `isolib.unionfs.store.volumes`
    staging/ID/     what is being made, and what a process relies on meanwhile; the flock on the directory is its owner's
    driver/         the storage driver's: the files of layers and trees

Every file is written whole in ``staging``, synced, and renamed to its place; every directory likewise.  So nothing in another
place is ever half there.
"""

from __future__ import annotations

import errno as e
import os
import stat
from contextlib import suppress
from errno import EACCES, EEXIST, ENOTEMPTY, EPERM, EROFS
from functools import partial
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib._kernel.handle import Fd
from isolib._kernel.hints import hint, typed
from isolib.errors import StoreDamaged, from_errno
from isolib.unionfs.images.documents import LARGEST

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Layout", "damaged"]

PARTS: Final = ("blobs", "driver", "images", "layers", "locks", "names", "staging", "steps", "trees", "volumes")
_PRIVATE: Final = 0o700
_REFUSED: Final = frozenset({EACCES, EPERM, EROFS})
#: What is said of a file that is lost, or is another thing, or lies on a disk that is failing.
_DAMAGE: Final = frozenset({e.EBADMSG, e.EIO, e.EISDIR, e.ELOOP, e.ENODATA, e.ENOENT, e.ENOTDIR, e.ENXIO, e.EUCLEAN, e.EXDEV})


def damaged(error: OSError, what: str) -> Exception:
    """Return the exception for a part of a store that cannot be read: damage, unless it is this process that cannot."""
    return StoreDamaged(f"it cannot be read: {error.strerror}", what) if error.errno in _DAMAGE else error  # else EMFILE or so


class Layout:
    """A store's directory.

    Every name is relative to it, and is made by this package: digests, and names of trees that were checked.

    Parameters
    ----------
    root
        A descriptor of the directory.
    path
        Its path, for messages.
    """

    def __init__(self, root: Fd, path: str) -> None:
        self.root = root
        self.path = path

    def _typed(self, name: str) -> typed:
        return typed(f"{self.path}/{name}")

    def open(self, name: str, flags: int = os.O_RDONLY, mode: int = 0o600) -> Fd:
        """Open a file or a directory.

        Raises
        ------
        SyscallError
            As open(2); FileNotFoundError comes as it is, for it is an answer.
        """
        try:
            opened = Fd.take(partial(os.open, dir_fd=self.root.fileno()), name, flags | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self.refused(error, "openat", name) from None
        assert opened is not None  # noqa: S101 - os.open raises
        return opened

    def refused(self, error: OSError, op: str, name: str) -> Exception:
        """Return the exception for a call that failed, which says so where it is that the store cannot be written."""
        number, target = error.errno or 0, f"{self.path}/{name}"
        readonly = number in _REFUSED and not self.may_write()
        return from_errno(
            op, target, number, "the store can only be read by this process" if readonly else hint(op, number, target)
        )

    def may_write(self) -> bool:
        """Return whether this process can change the store."""
        return os.access(".", os.W_OK | os.X_OK, dir_fd=self.root.fileno())

    def check_writable(self) -> None:
        """Refuse to go on where this process cannot change the store."""
        if not self.may_write():
            number = EROFS if os.fstatvfs(self.root.fileno()).f_flag & os.ST_RDONLY else EACCES
            raise self.refused(OSError(number, os.strerror(number)), "faccessat", "staging")

    def read(self, name: str) -> bytes:
        """Return a file's content.

        Raises
        ------
        FileNotFoundError
            There is none.
        StoreDamaged
            It is no file, or cannot be read.
        """
        with self.open_file(name) as file, self._typed(name), open(file.fileno(), "rb", closefd=False, buffering=0) as stream:
            try:
                return stream.read(LARGEST + 1)
            except OSError as error:
                raise damaged(error, name) from None

    def open_file(self, name: str) -> Fd:
        """Open a plain file, and wait for nobody if it is something else.

        Raises
        ------
        FileNotFoundError
            There is none.
        StoreDamaged
            It is something else.
        """
        try:
            opened = self.open(name, os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise damaged(error, name) from None
        if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
            opened.close()
            raise StoreDamaged("it is not a plain file", name)
        return opened

    def names(self, part: str) -> list[str]:
        """Return the names in a directory, sorted; none where there is no directory."""
        try:
            with self.open(part, os.O_DIRECTORY) as directory, self._typed(part):
                return sorted(os.listdir(directory.fileno()))
        except FileNotFoundError:
            return []

    def holds(self, name: str) -> bool:
        """Return whether there is something of a name."""
        try:
            os.stat(name, dir_fd=self.root.fileno(), follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self.refused(error, "newfstatat", name) from None
        return True

    def make(self, name: str) -> None:
        """Make a directory; where there is one, nothing."""
        try:
            os.mkdir(name, _PRIVATE, dir_fd=self.root.fileno())
        except OSError as error:
            if error.errno != EEXIST:
                raise self.refused(error, "mkdirat", name) from None

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Write a file that nobody reads before it is renamed, or its directory is; if ``durable``, it is on disk on return."""
        with self.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file:
            try:
                with open(file.fileno(), "wb", closefd=False, buffering=0) as stream:
                    left = memoryview(data)
                    while left:
                        left = left[stream.write(left) :]
                if durable:
                    os.fsync(file.fileno())
            except OSError as error:
                raise self.refused(error, "write", name) from None

    def move(self, name: str, to: str, *, durable: bool = True) -> bool:
        """Rename, and if ``durable`` see to it that the new name is on disk; a file replaces another.

        Returns
        -------
        bool
            False where a directory is there already.
        """
        root = self.root.fileno()
        try:
            os.rename(name, to, src_dir_fd=root, dst_dir_fd=root)
        except OSError as error:
            if error.errno in {EEXIST, ENOTEMPTY}:
                return False
            raise self.refused(error, "renameat", to) from None
        if durable:
            self.sync(os.path.dirname(to))
        return True

    def exchange(self, name: str, other: str) -> None:
        """Exchange two directories, in one step, and see to it that the second has its new content on disk."""
        root = self.root.fileno()
        calls.rename(root, name, root, other, calls.RENAME_EXCHANGE, f"{self.path}/{other}")
        self.sync(os.path.dirname(other))

    def sync(self, name: str) -> None:
        """Have what a file holds, or the names in a directory, on disk."""
        with self.open(name or ".") as opened:
            try:
                os.fsync(opened.fileno())
            except OSError as error:
                raise self.refused(error, "fsync", name) from None

    def unlink(self, name: str) -> bool:
        """Remove a file; tell whether there was one."""
        try:
            os.unlink(name, dir_fd=self.root.fileno())
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self.refused(error, "unlinkat", name) from None
        return True

    def remove(self, name: str) -> None:
        """Remove a directory, whatever its files' modes are; none is nothing."""
        above, last = os.path.split(name)
        with suppress(FileNotFoundError), self.open(above or ".", os.O_DIRECTORY) as directory:
            try:
                calls.remove_tree(directory.fileno(), last, f"{self.path}/{name}")
            except OSError as error:
                raise self.refused(error, "unlinkat", name) from None

    def each(self, part: str) -> Iterator[tuple[str, bytes]]:
        """Yield names and contents of the files of a part; what is removed meanwhile is left out."""
        for name in self.names(part):
            with suppress(FileNotFoundError):
                yield name, self.read(f"{part}/{name}")
