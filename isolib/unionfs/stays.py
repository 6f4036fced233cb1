"""Who is in a tree: the processes that have it as their root, and where the tree's own descriptor leads meanwhile."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from errno import EBUSY
from typing import TYPE_CHECKING

from isolib._kernel.handle import home
from isolib.errors import ClosedError, SyscallError
from isolib.unionfs.disk.files import open_at, twin

if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import RLock
    from typing import Protocol

    from isolib._kernel.handle import Fd
    from isolib.unionfs.drivers.base import IdMaps

    class Owner(Protocol):
        """A `Driver`, as far as it matters here."""

        @property
        def maps_whole_trees(self) -> bool: ...

        def mount(self, tree: str) -> Fd: ...

        def lend(self, tree: str, ids: IdMaps | None) -> Fd: ...

        def take_back(self, tree: str) -> None: ...

        def release(self, tree: str) -> None: ...


__all__ = ["Stay", "Stays"]


class Stay:
    """That one process has something as its root (`isolib._kernel.lending.Loan`).

    Parameters
    ----------
    enter
        Returns the mount that the process attaches.
    leave
        Is called when the process is gone, or was not started; also when `enter` was interrupted, and, if it is interrupted
        itself, again.
    """

    def __init__(self, enter: Callable[[Stay], Fd], leave: Callable[[Stay], object]) -> None:
        self._home = home()
        self._enter = enter
        self._leave = leave
        self._mount: Fd | None = None
        self._is_inside = False

    def open(self) -> int:
        """Begin it, and return the mount."""
        self._is_inside = True
        self._mount = self._enter(self)
        return self._mount.fileno()

    def close(self) -> None:
        """Let go of the mount, and say that the process is gone; again, or in a fork, only the former."""
        if self._mount is not None:
            self._mount.close()
        if self._is_inside and self._home == home():
            self._leave(self)
            self._is_inside = False

    def __del__(self) -> None:
        # Of a process that an interrupt kept from being handed out.
        if getattr(self, "_is_inside", False) and not sys.is_finalizing():
            self.close()


class Stays:
    """The processes that are in a tree.

    Parameters
    ----------
    driver, tree
        Who has the tree, and what he calls it.
    name
        What it is called by people.
    using
        Is held by who does something with the tree.
    """

    def __init__(self, driver: Owner, tree: str, name: str, using: RLock) -> None:
        self._driver = driver
        self._tree = tree
        self._name = name
        self._using = using
        self._inside: set[int] = set()  # ids: a stay that nobody has any more is to go
        self._ids: IdMaps | None = None
        self._descriptor = -1
        self._is_astray = False  # the descriptor leads to nothing, or to a mount that is mapped
        self._parting: Callable[[], None] | None = None

    def check_none(self) -> None:
        """Refuse what would take their root from under them.

        Raises
        ------
        SyscallError
            EBUSY: somebody is there.
        """
        if self._inside:
            hint = "a process has it as its root, and would lose that: end it first"
            raise SyscallError("rename", f"tree {self._name}", EBUSY, hint)

    def enter(self, stay: Stay, ids: IdMaps | None, descriptor: int) -> Fd:
        """Have one more, with ids mapped; see `Tree.lend`.  ``descriptor`` is the tree's own.  If this fails, call `leave`."""
        with self._using:
            self._descriptor = descriptor
            self._map(ids)
            self._inside.add(id(stay))
            return self._driver.lend(self._tree, ids)

    def _map(self, ids: IdMaps | None) -> None:
        """Have the whole tree mapped, where it cannot be for one process alone."""
        if not self._driver.maps_whole_trees or ids == self._ids:
            return
        if self._inside:
            hint = "a process has it as its root whose id map is another: end that first, or start both with the same id_map="
            raise SyscallError("mount_setattr", f"tree {self._name}", EBUSY, hint)
        self._let_mount_go()
        self._driver.lend(self._tree, ids).close()
        self.mount_again(self._descriptor)
        self._ids = ids

    def _let_mount_go(self) -> None:
        """Have the descriptor lead to nothing: overlayfs wants no second mount with the same upper directory."""
        self._is_astray = True
        with open_at("/dev/null", os.O_PATH) as nothing:
            os.dup2(nothing.fileno(), self._descriptor, inheritable=False)
        self._driver.release(self._tree)

    def mount_again(self, descriptor: int) -> None:
        """Have the tree's descriptor lead to the tree as it is now; its number stays."""
        with self._driver.mount(self._tree) as mount:
            os.dup2(mount.fileno(), descriptor, inheritable=False)

    def leave(self, stay: Stay) -> None:
        """Be told that one is gone, or has not come; again is nothing."""
        with self._using:
            self._inside.discard(id(stay))
            if self._inside:
                return
            if self._parting is not None:
                self._parting()
                return
            self._driver.take_back(self._tree)
            if self._is_astray:
                self._let_mount_go()
                self.mount_again(self._descriptor)
                self._ids = None
                self._is_astray = False

    def part(self, lock: Fd, give_up: Callable[[Fd], object]) -> None:
        """Give up the tree, when nobody is in it any more; its lock is held until then.

        Where its store has been closed by then, what is left to do is for the next collection.
        """
        with self._using:
            if not self._inside:
                give_up(lock)
                return
            kept = twin(lock.fileno())

            def parting() -> None:
                with kept, suppress(ClosedError):
                    give_up(kept)

            self._parting = parting
