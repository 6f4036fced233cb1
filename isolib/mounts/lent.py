"""A root that belongs to somebody: an image, a tree of a store, an overlay."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isolib._kernel.guest import ROOM, Guest
from isolib.errors import PlanError
from isolib.mounts.root import Root, enter_with

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolib._kernel.assembly import Scene
    from isolib._kernel.lending import RootLender
    from isolib._kernel.plan import Builder
    from isolib._kernel.request import MountValue

__all__ = ["LentRoot"]


@dataclass(frozen=True, slots=True)
class LentRoot(Root):
    """A root that each process gets of its owner when it starts, and that the owner gets back.

    It may be hostile: no path in it leads out.  A private /proc, /dev and /tmp cover its own.

    Parameters
    ----------
    lender
        Who has it.
    room
        What /tmp and /dev/shm may hold together, in bytes.
    """

    lender: RootLender
    room: int = ROOM

    def add_steps(self, builder: Builder, mounts: Sequence[MountValue], scene: Scene) -> None:
        """Add the steps that build the root, with mounts in it, and enter it."""
        own = self._own()
        guest = Guest.begin(builder, scene, self.room)
        guest.borrow(self.lender, writable=self.lender.is_writable)
        enter_with(guest, own, mounts)

    def _own(self) -> list[str]:
        """Return which of /proc, /dev and /tmp can be covered by private ones.

        Should it be a link by then, the launch fails.  One that is called /tmp is the image's own affair.
        """
        own = []
        for name in ("/proc", "/dev", "/tmp"):
            kind = self.lender.kind(name[1:])
            if kind == stat.S_IFDIR or (kind is None and self.lender.is_writable):
                own.append(name)
            elif kind is not None and name != "/tmp":
                raise PlanError(f"root: {name} of {self.lender.told()} is no directory: nothing safe can be mounted there")
        return own

    def visible(self) -> list[str]:
        """Return what is seen inside before any mounts: a line for each path."""
        return [f"/: {self.lender.told()}", *(f"{path}: private" for path in self._own())]
