"""Who is in a tree: the processes that have it as their root, and where the tree's own descriptor leads meanwhile."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from errno import EBUSY
from typing import TYPE_CHECKING

from isolib._kernel.handle import Fd, home
from isolib.errors import ClosedError, SyscallError

if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import RLock
    from typing import Protocol

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
    mount
        Its mount, which the process attaches.
    leave
        Is called when the process is gone.
    """

    def __init__(self, mount: Fd, leave: Callable[[], object]) -> None:
        self._home = home()
        self._mount = mount
        self._leave = [leave]

    def fileno(self) -> int:
        """Return the mount."""
        return self._mount.fileno()

    def close(self) -> None:
        """Let go of the mount, and say that the process is gone; again, or in a fork, only the former."""
        self._mount.close()
        if self._home == home():
            while self._leave:  # one that is interrupted is called again
                self._leave[-1]()
                self._leave.pop()


class Stays:
    """The processes that are in a tree.

    Parameters
    ----------
    driver, tree
        Who has the tree, and what he calls it.
    name
        What the store calls it.
    using
        Is held by who does something with the tree.
    """

    def __init__(self, driver: Owner, tree: str, name: str, using: RLock) -> None:
        self._driver = driver
        self._tree = tree
        self._name = name
        self._using = using
        self._count = 0
        self._ids: IdMaps | None = None
        self._descriptor = -1
        self._parting: Callable[[], None] | None = None

    def __bool__(self) -> bool:
        return self._count > 0

    def check_none(self) -> None:
        """Refuse what would take their root from under them.

        Raises
        ------
        SyscallError
            EBUSY: somebody is there.
        """
        if self._count:
            hint = "a process has it as its root, and would lose that: end it first"
            raise SyscallError("rename", f"tree {self._name}", EBUSY, hint)

    def lend(self, ids: IdMaps | None, descriptor: int) -> Stay:
        """Have one more, with ids mapped; see `Tree.lend`.  ``descriptor`` is the tree's own."""
        with self._using:
            self._descriptor = descriptor
            self._map(ids)
            try:
                mount = self._driver.lend(self._tree, ids)
            except BaseException:
                if not self._count:
                    self._be_empty()
                raise
            self._count += 1
        return Stay(mount, self._left)

    def _map(self, ids: IdMaps | None) -> None:
        """Have the whole tree mapped, where it cannot be for one process alone."""
        if not self._driver.maps_whole_trees or ids == self._ids:
            return
        if self._count:
            hint = "a process has it as its root whose id map is another: end that first, or start both with the same id_map="
            raise SyscallError("mount_setattr", f"tree {self._name}", EBUSY, hint)
        self._let_mount_go()
        try:
            self._driver.lend(self._tree, ids).close()
            self._ids = ids
        finally:
            if self._ids != ids:
                self._driver.release(self._tree)
            self.mount_again(self._descriptor)

    def _let_mount_go(self) -> None:
        """Have the descriptor lead to nothing: overlayfs wants no second mount with the same upper directory."""
        with Fd(os.open("/dev/null", os.O_PATH | os.O_CLOEXEC)) as nothing:
            os.dup2(nothing.fileno(), self._descriptor, inheritable=False)
        self._driver.release(self._tree)

    def mount_again(self, descriptor: int) -> None:
        """Have the tree's descriptor lead to the tree as it is now; its number stays."""
        with self._driver.mount(self._tree) as mount:
            os.dup2(mount.fileno(), descriptor, inheritable=False)

    def _left(self) -> None:
        """Be told that one is gone."""
        with self._using:
            self._count -= 1
            if self._count:
                return
            if self._parting is not None:
                self._parting()
                return
            self._be_empty()

    def _be_empty(self) -> None:
        """Have the tree as it is when nobody is in it."""
        self._driver.take_back(self._tree)
        if self._ids is not None:
            self._ids = None
            self._let_mount_go()
            self.mount_again(self._descriptor)

    def part(self, lock: Fd, give_up: Callable[[Fd], None]) -> None:
        """Give up the tree, when nobody is in it any more; its lock is held until then.

        Where its store has been closed by then, what is left to do is for the next collection.
        """
        with self._using:
            if not self._count:
                give_up(lock)
                return
            kept = Fd(fcntl.fcntl(lock.fileno(), fcntl.F_DUPFD_CLOEXEC, 3))

            def parting() -> None:
                with kept, suppress(ClosedError):
                    give_up(kept)

            self._parting = parting
