"""Areas: where a process makes things for a store, and notes what it relies on.

An area is a directory that its maker has locked.  When the lock is gone so is the process, and the collector removes the area
and what belongs to it: drafts and trees of the driver whose names begin with the area's.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from secrets import token_hex
from typing import TYPE_CHECKING, Final

from isolib.unionfs.store.locks import try_lock

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from isolib._kernel.handle import Fd
    from isolib.unionfs.store.layout import Layout
    from isolib.unionfs.store.locks import Locks

__all__ = ["Area", "new_area", "owner", "relied_on"]

_RELIES: Final = "relies-on"


class Area:
    """One area of this process.

    Attributes
    ----------
    name
        Its own name, and the beginning of the names of what the driver makes for it.
    path
        Where it lies in the store.
    """

    def __init__(self, layout: Layout, name: str, lock: Fd) -> None:
        self.name = name
        self.path = f"staging/{name}"
        self._layout = layout
        self._lock = lock
        self._is_handed_over = False
        self._count = 0

    def fresh(self) -> str:
        """Return a name for something of the driver's: nobody has it, and it is known whose it is."""
        self._count += 1
        return f"{self.name}-{self._count}"

    def rely_on(self, things: Iterable[str]) -> None:
        """Note what is relied on: ``layer:CHAIN``, ``blob:DIGEST``.  The caller holds the store.

        It counts until the area is gone.  Nobody reads it before the caller lets go of the store, and if he never does, he is
        dead and it counts no more; so it need not be atomic.
        """
        if text := "".join(f"{one}\n" for one in things):
            with self._layout.open(f"{self.path}/{_RELIES}", os.O_WRONLY | os.O_APPEND | os.O_CREAT) as file:
                try:
                    os.write(file.fileno(), text.encode("ascii"))
                except OSError as error:
                    raise self._layout.refused(error, "write", self.path) from None

    def put(self, to: str, data: bytes, *, durable: bool = True) -> None:
        """Write a file to its place in the store, whole and, if ``durable``, on disk."""
        draft = f"{self.path}/file"
        self._layout.write(draft, data, durable=durable)
        self._layout.move(draft, to, durable=durable)

    def hand_over(self, to: str, *, durable: bool) -> Fd | None:
        """Make the area a directory of the store; its lock stays this process's, and is returned.  None: there is one."""
        self._is_handed_over = self._layout.move(self.path, to, durable=durable)
        return self._lock if self._is_handed_over else None

    def end(self) -> None:
        """Remove it with all that is in it, unless it was handed over."""
        self._layout.remove(self.path)
        if not self._is_handed_over:
            self._lock.close()  # an exception that is kept keeps what the functions on its way have: this object too


def _make(layout: Layout, locks: Locks) -> Area:
    # The collector must not see it before it is locked.
    with locks.shared():
        while True:
            name = token_hex(8)
            try:
                os.mkdir(f"staging/{name}", 0o700, dir_fd=layout.root.fileno())
            except FileExistsError:
                continue
            except OSError as error:
                raise layout.refused(error, "mkdirat", "staging") from None
            lock = layout.open(f"staging/{name}", os.O_DIRECTORY)
            if try_lock(lock.fileno()):
                return Area(layout, name, lock)


@contextmanager
def new_area(layout: Layout, locks: Locks) -> Iterator[Area]:
    """Make an area, and remove it at the end of the block unless it was handed over."""
    area = _make(layout, locks)
    try:
        yield area
    finally:
        area.end()


def relied_on(layout: Layout, area: str) -> set[str]:
    """Return what the owner of an area relies on."""
    try:
        return set(layout.read(f"staging/{area}/{_RELIES}").decode("ascii", "replace").split())
    except FileNotFoundError:
        return set()


def owner(name: str) -> str:
    """Return the area to which a draft or a tree of the driver belongs."""
    return name.rpartition("-")[0]
