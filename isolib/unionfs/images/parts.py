"""Blobs on their way from a registry into a store: a part that has come is kept, and the rest is fetched the next time.

Each lies in a directory of its own, ``staging/HEX`` by the digest of the blob, as ``part``.  The flock on the directory is its
fetcher's; without one it is nobody's, and the collector takes it.  Whoever has a blob whole has its descriptor, and needs the
directory no more: so nobody keeps a part while he waits for anything but the registry, and to wait for one is safe.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Final

from isolib.errors import ArchiveError
from isolib.unionfs.archive.streams import CHUNK
from isolib.unionfs.store.locks import try_lock, wait_for_lock
from isolib.unionfs.store.records import hex_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from isolib._kernel.handle import Fd
    from isolib.unionfs.images.offers import LayerOffer
    from isolib.unionfs.images.registry import Registry
    from isolib.unionfs.store.layout import Layout

__all__ = ["Part", "discard", "fetch", "taken_part"]

_FILE: Final = "part"
#: Bytes that an attempt must bring to count as none that failed: so a server that cuts off every one does not go on for ever.
_WORTH: Final = 1 << 20


class Part:
    """A blob that this process fetches; within ``with``.

    Parameters
    ----------
    layout, path
        Where it lies.
    lock
        The directory, locked.
    """

    def __init__(self, layout: Layout, path: str, lock: Fd) -> None:
        self._layout = layout
        self._path = path
        self._lock = lock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if isinstance(error, (ArchiveError, OSError)) or not self._has_some():
                # Damaged, or there is no room for it: of no use the next time.
                self.remove()
        finally:
            self._lock.close()

    def _has_some(self) -> bool:
        try:
            return os.stat(_FILE, dir_fd=self._lock.fileno()).st_size > 0
        except FileNotFoundError:
            return False

    def remove(self) -> None:
        """Remove it."""
        self._layout.remove(self._path)

    def opened(self, *, anew: bool = False) -> Fd:
        """Open its file, which may have something already; or another one in its place, for who had it whole may read it."""
        if anew:
            self._layout.unlink(f"{self._path}/{_FILE}")
        return self._layout.open(f"{self._path}/{_FILE}", os.O_RDWR | os.O_CREAT)

    def refused(self, error: OSError, op: str) -> Exception:
        """Return the exception for a call that failed."""
        return self._layout.refused(error, op, f"{self._path}/{_FILE}")


def taken_part(layout: Layout, digest: str, *, wait: bool) -> Part | None:
    """Have the part of a blob, from now on alone.

    Parameters
    ----------
    layout
        The store.
    digest
        Of the blob.
    wait
        Whether to wait while another has it.

    Returns
    -------
    Part or None
        None: another has it, and he is not waited for.
    """
    path = f"staging/{hex_of(digest)}"
    while True:
        layout.make(path)
        try:
            lock = layout.open(path, os.O_DIRECTORY)
        except FileNotFoundError:  # taken away just now
            continue
        try:
            if wait:
                wait_for_lock(lock.fileno())
            elif not try_lock(lock.fileno()):
                lock.close()
                return None
            if os.path.samestat(os.fstat(lock.fileno()), os.stat(path, dir_fd=layout.root.fileno(), follow_symlinks=False)):
                return Part(layout, path, lock)
        except FileNotFoundError:
            pass
        except BaseException:
            lock.close()
            raise
        lock.close()


def discard(layout: Layout, digest: str) -> None:
    """Remove the part of a blob that is not needed any more, unless another has it."""
    if layout.holds(f"staging/{hex_of(digest)}") and (part := taken_part(layout, digest, wait=False)) is not None:
        with part:
            part.remove()


class _Growing:
    """A file that grows, and the digest of what is in it."""

    def __init__(self, part: Part, size: int) -> None:
        self._part = part
        self.file = part.opened()
        self._total = size
        self._digest = hashlib.sha256()
        self.size = 0

    def take_up(self) -> None:
        """Take what there is already."""
        try:
            while self.size <= self._total and (data := os.pread(self.file.fileno(), CHUNK, self.size)):
                self._digest.update(data)
                self.size += len(data)
        except OSError as error:
            raise self._part.refused(error, "pread64") from None
        if self.size > self._total:
            self.drop()

    def drop(self) -> None:
        """Begin anew."""
        self.file.close()
        self.file = self._part.opened(anew=True)
        self._digest = hashlib.sha256()
        self.size = 0

    def add(self, data: bytes) -> None:
        """Add what has come."""
        left = memoryview(data)
        try:
            while left:
                written = os.pwrite(self.file.fileno(), left, self.size)
                self._digest.update(left[:written])
                self.size += written
                left = left[written:]
        except OSError as error:
            raise self._part.refused(error, "pwrite64") from None

    @property
    def digest(self) -> str:
        return f"sha256:{self._digest.hexdigest()}"


def fetch(registry: Registry, part: Part, blob: LayerOffer, tell: Callable[[int], None]) -> Fd:
    """Fetch what is missing of a blob.

    Parameters
    ----------
    registry
        Where it is.
    part
        Where it is put.
    blob
        Which one; its digest and its size are known.
    tell
        Is told how many bytes there are, now and then.

    Returns
    -------
    Fd
        Its file: all of it, and its digest is right.

    Raises
    ------
    ArchiveError
        It has another digest or size.
    RegistryError
        The registry does not send it; what has come is kept.
    """
    assert blob.digest is not None  # noqa: S101 - a manifest has it
    assert blob.size is not None  # noqa: S101 - and this
    growing = _Growing(part, blob.size)
    try:
        growing.take_up()
        is_fresh = growing.size == 0
        _fill(registry, growing, blob.digest, blob.size, tell)
        if growing.digest != blob.digest and not is_fresh:
            # What was kept was no good: written by a process that died with the machine.
            growing.drop()
            _fill(registry, growing, blob.digest, blob.size, tell)
        if growing.digest != blob.digest:
            raise ArchiveError(f"its digest is {growing.digest}: it is another, or damaged", blob.digest)
    except BaseException:
        growing.file.close()
        raise
    return growing.file


def _fill(registry: Registry, growing: _Growing, digest: str, size: int, tell: Callable[[int], None]) -> None:
    failures = 0
    while growing.size < size:
        before = growing.size
        try:
            _attempt(registry, growing, digest, size, tell)
        except registry.transient as error:
            if growing.size == size:  # the end of it is all that is missing
                break
            failures = 1 if growing.size - before >= _WORTH else failures + 1
            registry.wait(error, failures)
    tell(size)


def _attempt(registry: Registry, growing: _Growing, digest: str, size: int, tell: Callable[[int], None]) -> None:
    with registry.blob(digest, size, growing.size) as coming:
        if coming.start != growing.size:
            growing.drop()
        if coming.start is None:
            raise registry.broken("it has less of it than it had")
        told = growing.size
        for data in coming.pieces():
            if growing.size + len(data) > size:
                raise ArchiveError(f"more than its {size} bytes are sent", digest)
            growing.add(data)
            if growing.size - told >= CHUNK:
                told = growing.size
                tell(told)
    if growing.size < size:
        raise registry.broken(f"it has sent {growing.size} of {size} bytes")
