"""A root that belongs to somebody: an image, a tree of a store, an overlay."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isolib._kernel.guest import ROOM, Guest
from isolib.errors import PlanError
from isolib.mounts.dev import Dev
from isolib.mounts.proc import Proc
from isolib.mounts.root import Root

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolib._kernel.assembly import Scene
    from isolib._kernel.lending import Lender
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

    lender: Lender
    room: int = ROOM

    def add_steps(self, builder: Builder, mounts: Sequence[MountValue], scene: Scene) -> None:
        """Add the steps that build the root, with mounts in it, and enter it."""
        has_tmp = self._has_tmp()
        guest = Guest.begin(builder, scene, self.room)
        guest.borrow(self.lender)
        Proc().add_steps(builder, guest, scene)
        Dev().add_steps(builder, guest, scene)
        if has_tmp:
            guest.private("/tmp", 0o1777, plain=True)
        for mount in mounts:
            mount.add_steps(builder, guest, scene)
        guest.enter()

    def _has_tmp(self) -> bool:
        """Return whether a private /tmp can be; a link of this name is the image's own affair."""
        for name in ("proc", "dev"):
            kind = self.lender.kind(name)
            if kind is not None and not stat.S_ISDIR(kind):
                raise PlanError(f"root: /{name} of {self.lender.told()} is no directory: nothing safe can be mounted there")
        kind = self.lender.kind("tmp")
        return kind is None or stat.S_ISDIR(kind)

    def visible(self) -> list[str]:
        """Return what is seen inside before any mounts: a line for each path."""
        own = ["/proc", "/dev", *(["/tmp"] if self._has_tmp() else [])]
        return [f"/: {self.lender.told()}", *(f"{path}: private" for path in own)]
