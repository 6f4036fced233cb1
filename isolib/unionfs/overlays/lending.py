"""An overlay without a store as the root of processes: what `isolib.unionfs.stays` asks of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from isolib._kernel import calls
from isolib._kernel.handle import Fd
from isolib._kernel.mountapi import clone_tree

if TYPE_CHECKING:
    from collections.abc import Callable

    from isolib.unionfs.drivers.base import IdMaps
    from isolib.unionfs.overlays.deputy import Deputy

__all__ = ["Lending"]


def clone(mount: Fd, attributes: int = 0) -> Fd:
    """Return one more mount of what is mounted, which is attached nowhere."""
    return Fd(clone_tree("", dir_fd=mount.fileno(), attributes=attributes))


class Lending:
    """The mount of an overlay, as its owner and the processes have it.

    Parameters
    ----------
    mount
        A descriptor of it.
    deputy
        Who has made it, where its owner could not.
    remake
        Mounts the same directories with ids mapped by this; None: as they are on disk.
    """

    maps_whole_trees: ClassVar[bool] = True

    def __init__(self, mount: Fd, deputy: Deputy | None, remake: Callable[[IdMaps | None], Fd]) -> None:
        self._mount: Fd | None = mount
        self._deputy = deputy
        self._remake = remake
        self._ids: IdMaps | None = None

    def _made(self) -> Fd:
        if self._mount is None:
            self._mount = self._remake(self._ids)
        return self._mount

    def lend(self, tree: str, ids: IdMaps | None) -> Fd:
        """Return a mount for one process; see `isolib.unionfs.drivers.base.Driver.lend`."""
        if ids != self._ids:
            self.release(tree)
            self._ids = ids
        return clone(self._made()) if self._deputy is None else self._deputy.call(clone, self._made())

    def mount(self, tree: str) -> Fd:  # noqa: ARG002 - there is one
        """Return a mount for the owner: read-only where ids are mapped, for what he made there would be nobody's."""
        return clone(self._made(), calls.MOUNT_ATTR_RDONLY if self._ids is not None else 0)

    def take_back(self, tree: str) -> None:
        """Let go of the mount, if it maps ids."""
        if self._ids is not None:
            self.release(tree)

    def release(self, tree: str) -> None:  # noqa: ARG002 - there is one
        """Let go of the mount."""
        mount, self._mount, self._ids = self._mount, None, None
        if mount is not None:
            mount.close()
