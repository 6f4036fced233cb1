"""An overlay without a store as the root of processes: what `isolib.unionfs.stays` asks of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar

from isolib._kernel import calls
from isolib._kernel.assembly import userns_fd
from isolib.errors import PermissionDenied, Unsupported
from isolib.unionfs.overlays.cloning import clone
from isolib.unionfs.overlays.deputy import deputy
from isolib.unionfs.overlays.stacking import needs_deputy, open_directory

if TYPE_CHECKING:
    from collections.abc import Callable

    from isolib._kernel.handle import Fd
    from isolib.unionfs.drivers.base import IdMaps
    from isolib.unionfs.overlays.deputy import Deputy

__all__ = ["Lending", "clone_directory"]


def clone_directory(directory: Fd, attributes: int, ids: IdMaps | None) -> Fd:
    """Return a mount of a directory of the host, which is attached nowhere; an ordinary user has it from his deputy.

    Raises
    ------
    Unsupported
        The deputy does not see the directory.
    """
    is_elsewhere = False
    try:
        return clone(directory, attributes, None if ids is None else userns_fd(*ids))
    except PermissionDenied:
        if not needs_deputy():
            raise
    except Unsupported:
        if ids is not None or calls.is_in_first_userns():
            raise
        is_elsewhere = True  # to a deputy: what it has of its host lies in another mount namespace
    path, found = os.readlink(f"/proc/self/fd/{directory.fileno()}"), os.fstat(directory.fileno())
    seen = path, (found.st_dev, found.st_ino), attributes
    made = _clone_seen(*seen) if is_elsewhere else deputy().call(_clone_seen, *seen)
    if made is None:
        raise Unsupported(
            f"{path} as the root of an ordinary user's process",
            "the kernel, which shows another directory at this path in a new mount namespace",
            "a store on a file system that is mounted for everybody",
        )
    return made


def _clone_seen(path: str, identity: tuple[int, int], attributes: int) -> Fd | None:
    """In a deputy: return a mount of what lies at a path, if that is what lies there for its host; else None."""
    with open_directory(path) as directory:
        found = os.fstat(directory.fileno())
        return clone(directory, attributes) if (found.st_dev, found.st_ino) == identity else None


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
