"""Who may do what in a store while others are at it: locks that the kernel drops when their process is gone.

All are flock(2) on descriptors that one call opens and closes, so threads exclude each other as processes do.  Whoever takes
several takes them in this order, and holds none of a later kind while it waits for an earlier one:

0. a **step** (``locks/step-HEX``) of a build, while it is done, minutes perhaps: one does it, the others wait and find it done.
1. a **tree** (the directory ``trees/NAME``), by its owner, as long as he has it.  Never waited for: somebody else's is refused.
2. a **layer** (``locks/HEX``), while it is made or removed, minutes perhaps: one makes it, the others wait and find it there.
3. the **store** (``lock``), for moments: shared by those who look what there is *and* note that they rely on it, exclusive for
   those who look what is relied on *and* take away what is not.
4. an **area** (``staging/ID``), by who makes things in it.  Never waited for: one that can be locked is a dead process's.

A **volume** (``locks/volume-NAME``) is held as a layer is, by who makes, opens, fills or removes it.  That it is *used* is told
by two more locks, shared by all who use it: that of the directory ``volumes/NAME`` by who has a handle, that of ``content`` in
it by who can reach the files.  Who would have them alone holds the volume, and waits for nobody.

Beside these, a **part** (``staging/HEX``, see `isolib.unionfs.images.parts`) by who fetches it from a registry.  It is waited
for by those who hold none of the others but their own area, and who has it waits for none of the others.

What a process relies on it notes in its area (`isolib.unionfs.store.areas`); so neither a load that takes minutes keeps the
collector waiting, nor the other way round.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from errno import EWOULDBLOCK
from typing import TYPE_CHECKING

from isolib._kernel.hints import typed
from isolib.unionfs.disk.files import open_at

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from isolib._kernel.handle import Fd
    from isolib.unionfs.store.layout import Layout

__all__ = ["Locks", "lock", "try_lock", "wait_for_lock"]


def try_lock(fd: int) -> bool:
    """Lock what a descriptor is of for this descriptor alone, unless somebody has it; tell whether it was done."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno != EWOULDBLOCK:
            raise
        return False
    return True


def wait_for_lock(fd: int) -> None:
    """Lock what a descriptor is of for this descriptor alone, when nobody has it any more."""
    fcntl.flock(fd, fcntl.LOCK_EX)


@contextmanager
def lock(fd: int, what: str) -> Iterator[None]:
    """Hold what a descriptor is of alone, for the time of the block; whoever opens it anew is another."""
    with typed(what), open_at(f"/proc/self/fd/{fd}", os.O_RDONLY) as own:
        fcntl.flock(own.fileno(), fcntl.LOCK_EX)
        yield


class Locks:
    """The locks of a store.

    Parameters
    ----------
    layout
        Its directory.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Hold the store together with others: nothing that is there is taken away."""
        with self._locked("lock", fcntl.LOCK_SH):
            yield

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the store alone: nobody comes to rely on anything."""
        with self._locked("lock", fcntl.LOCK_EX):
            yield

    @contextmanager
    def _locked(self, name: str, how: int) -> Iterator[None]:
        try:
            file = self._layout.open(name)
        except FileNotFoundError:
            file = self._layout.open(name, os.O_RDONLY | os.O_CREAT)
        with file:
            self._flock(file, name, how)
            yield

    def _flock(self, file: Fd, name: str, how: int) -> None:
        try:
            fcntl.flock(file.fileno(), how)
        except OSError as error:
            raise self._layout.refused(error, "flock", name) from None

    @contextmanager
    def layer(self, name: str) -> Iterator[None]:
        """Hold a layer alone, be it there or not."""
        path = f"locks/{name}"
        with self._own(path):
            try:
                yield
            finally:
                # While it is held: who waits for this file finds that it is not the one of that name any more.
                self._layout.unlink(path)

    def volume(self, name: str) -> AbstractContextManager[None]:
        """Hold a volume alone, be it there or not."""
        return self.layer(f"volume-{name}")

    def _own(self, path: str) -> Fd:
        while True:
            file = self._layout.open(path, os.O_RDONLY | os.O_CREAT)
            try:
                self._flock(file, path, fcntl.LOCK_EX)
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path, dir_fd=self._layout.root.fileno())):
                    return file
            except FileNotFoundError:
                pass
            except BaseException:
                file.close()
                raise
            file.close()
