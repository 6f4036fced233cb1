"""What can be the root of a process: what `isolib.spawn`, `isolib.run` and `isolib.Sandbox` take as ``root=``."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from isolib._kernel import seam

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolib._kernel.assembly import Scene
    from isolib._kernel.lending import RootLender
    from isolib._kernel.plan import Builder
    from isolib._kernel.request import MountValue
    from isolib.unionfs.drivers.base import IdMaps

__all__ = ["Rooted", "ids_of", "kind_at"]


class Rooted:
    """A root that is lent to processes (`isolib._kernel.lending.RootLender`), and as which it is a value for ``root=``."""

    __slots__ = ()

    def add_steps(self: RootLender, builder: Builder, mounts: Sequence[MountValue], scene: Scene) -> None:
        """Add the steps that build the root of a process, with mounts in it, and enter it."""
        seam.lent_root(self).add_steps(builder, mounts, scene)

    def visible(self: RootLender) -> list[str]:
        """Return what a process with this root sees before any mounts: a line for each path."""
        return seam.lent_root(self).visible()

    @property
    def is_writable(self) -> bool:
        """Whether a process with this root can write to it."""
        return True

    def own_map(self) -> str | None:
        """Return the id map that a process with this root needs, where it is not the usual one."""
        return None


def ids_of(scene: Scene) -> IdMaps | None:
    """Return how ids are to be mapped, so that what is root's on disk is root's inside; None: as they are on disk.

    Only a privileged caller can map them, and needs to: another one's files on disk are his own, as he is root inside.
    """
    if scene.userns is None or all(one.inside == one.outside for one in (*scene.uid_map, *scene.gid_map)):
        return None
    return scene.uid_map, scene.gid_map


def kind_at(directory: int, name: str) -> int | None:
    """Return the type of what lies at a name in a directory, which is not followed; None: nothing."""
    try:
        return stat.S_IFMT(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return None
