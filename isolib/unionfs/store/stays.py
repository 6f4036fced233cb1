"""Who is in a tree: the processes that have it as their root, and what they have of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isolib._kernel.handle import home

if TYPE_CHECKING:
    from collections.abc import Callable

    from isolib._kernel.handle import Fd

__all__ = ["Stay"]


class Stay:
    """That one process has a tree as its root (`isolib._kernel.lending.Loan`).

    Parameters
    ----------
    mount
        A mount of the tree, which the process attaches.
    leave
        Is called when the process is gone.
    """

    def __init__(self, mount: Fd, leave: Callable[[], None]) -> None:
        self._home = home()
        self._mount = mount
        self._leave: list[Callable[[], None]] = [leave]

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
