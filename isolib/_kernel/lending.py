"""What a launch asks of directories that belong to somebody: the seam between processes and `isolib.unionfs`.

Neither of the two knows the other.  A root or a volume that is handed to a launch offers `Lender.lend`, which yields a
descriptor for one process to have; when the process and all that it left behind are gone, the loan is closed, and the owner
goes on with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from isolib._kernel.assembly import Scene

__all__ = ["Lender", "Loan", "RootLender"]


class Loan(Protocol):
    """A directory that one process has, and that stays there for it."""

    def open(self) -> int:
        """Begin it, and return a detached mount, which the process attaches, or a directory, which it clones."""

    def close(self) -> None:
        """Be told that the process and all that it left behind are gone, or that it was not begun; again is nothing.

        It is called too when `open` fails or is interrupted.  In a fork it closes descriptors and does nothing else.
        """


class Lender(Protocol):
    """What has a directory that processes can be given."""

    def lend(self, scene: Scene) -> Loan:
        """Return it for one more process, a root with its ids as the process is to see them; nothing is done before `open`."""


class RootLender(Lender, Protocol):
    """What has a root that processes can be given."""

    def own_map(self) -> str | None:
        """Return the id map of the user namespace that it belongs to, which processes need too; None: that of the host."""

    @property
    def is_writable(self) -> bool:
        """Whether anything can be written to it."""

    def kind(self, name: str) -> int | None:
        """Return the type of what lies at a name in its top directory, as `stat.S_IFMT` has it; None: nothing, or unknown."""

    def told(self) -> str:
        """Return what it is, for people: "the image ...", "the tree ...", and what becomes of what is written to it."""
