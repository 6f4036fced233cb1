"""The contract of the storage drivers: what a store asks of each, whatever it is made of.

A driver keeps *layers*, which never change once they are sealed, and *trees*, which are written to, in one directory.  Both
have names that the store gives them; of images, digests of archives and tags a driver knows nothing.

The store sees to it that no two callers use one name at the same time, and that no layer is removed while something stands on
it.  The driver sees to it that a process that is killed at any point leaves either what was or what is to be, and at most a
draft.
"""

from __future__ import annotations

import enum
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from isolib._kernel import calls
from isolib._kernel.guest import SAFE
from isolib._kernel.handle import Fd
from isolib.errors import Unsupported, from_errno
from isolib.types import IdMap
from isolib.unionfs.overlays.lending import clone_directory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolib.unionfs.entry import Pieces

IdMaps: TypeAlias = tuple[tuple[IdMap, ...], tuple[IdMap, ...]]

__all__ = ["Draft", "Driver", "Form", "TreeUsage"]


class Form(enum.Enum):
    """How a layer lies on disk."""

    #: Its own changes only; what it deletes is marked as overlayfs does, with ``trusted.overlay.*`` attributes.
    OVERLAY = "overlay"
    #: The same, with ``user.overlay.*`` attributes, as an overlay mounted with ``userxattr`` reads them.
    USER_OVERLAY = "user overlay"
    #: The whole tree, as it looks with this layer on top.
    MERGED = "merged"


@dataclass(frozen=True, slots=True)
class TreeUsage:
    """What a tree takes up beyond the layers below it.

    Attributes
    ----------
    size
        Bytes on disk.
    files
        Inodes; None where the driver cannot tell.
    """

    size: int
    files: int | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """A layer in the making.

    Attributes
    ----------
    name
        Of the draft; `Driver.drafts` lists it until it is sealed or dropped.
    root
        A directory to unpack into: empty for OVERLAY forms, the parent's tree for MERGED.
    """

    name: str
    root: Fd


class Driver(ABC):
    """Layers and trees in one directory.

    Parameters
    ----------
    home
        A descriptor of the directory, which is the driver's alone.
    path
        The directory's path, for messages and for interfaces that take nothing else.
    """

    #: As ``driver=`` names it.
    name: ClassVar[str]

    def __init__(self, home: Fd, path: str) -> None:
        self.home = home
        self.path = path

    @classmethod
    @abstractmethod
    def examine(cls, home: int, path: str) -> None:
        """Find out by trying whether it works in a directory, and leave nothing there.

        Raises
        ------
        Unsupported
            It does not: what refuses it, and what would help.
        """

    @property
    @abstractmethod
    def form(self) -> Form:
        """How its layers lie on disk."""

    # Layers

    @abstractmethod
    def new_draft(self, name: str, below: Sequence[str]) -> Draft:
        """Begin a layer above others, the lowest first."""

    @abstractmethod
    def seal(self, draft: Draft, layer: str) -> None:
        """Make a layer of a draft, in one step; from then on it does not change.  Where the layer exists, drop the draft."""

    @abstractmethod
    def drop(self, draft: str) -> None:
        """Remove a draft, whoever began it; none of this name is nothing."""

    @abstractmethod
    def drafts(self) -> set[str]:
        """Return the names of the drafts."""

    @abstractmethod
    def open_layer(self, layer: str) -> Fd:
        """Open the directory of a layer: its own files, at their paths (OVERLAY forms), or the whole tree (MERGED)."""

    def sync(self, layer: str) -> None:
        """Have all that a layer holds on disk, which takes as long as the file system has things of anybody to write."""
        with self.open_layer(layer) as root:
            calls.syncfs(root.fileno(), os.path.join(self.path, layer))

    @abstractmethod
    def layers(self) -> set[str]:
        """Return the names of the layers."""

    @abstractmethod
    def remove_layer(self, layer: str) -> None:
        """Remove a layer; none of this name is nothing."""

    # Trees

    @abstractmethod
    def new_tree(self, tree: str, below: Sequence[str], *, quota: int | None = None) -> None:
        """Make a tree above layers, the lowest first; with room for so many bytes of its own."""

    @abstractmethod
    def mount(self, tree: str) -> Fd:
        """Return the root of a tree, which is a mount of its own or a plain directory.

        It lives as long as this descriptor or what is cloned from it; nothing else may be left when the process is gone.
        """

    #: Whether ids can be mapped of a whole tree only, for all who have it, because no mount of it can be.
    maps_whole_trees: ClassVar[bool] = False

    def lend(self, tree: str, ids: IdMaps | None = None, *, only: bool = False) -> Fd:  # noqa: ARG002 - who mounts asks
        """Return a mount of a tree that is attached nowhere, for one process to attach.

        Parameters
        ----------
        tree
            Its name.
        ids
            The maps of users and of groups: what is ``inside`` on disk is ``outside`` in the mount.  None: they are as on disk.
            Where whole trees are mapped, `mount` returns one with these ids from then on, which cannot be written to, until
            `take_back`.
        only
            Nobody else will have the tree, until it is removed: there will be no `mount` of it, nor a `take_back`.
        """
        with self.mount(tree) as root:
            return clone_directory(root, SAFE, ids)

    def own_map(self) -> str | None:
        """Return the id map of the user namespace that its trees belong to; None: they belong to that of this process."""
        return None

    def take_back(self, tree: str) -> None:  # noqa: B027 -- a mount of its own is nobody else's matter
        """Be told that nobody has a tree any more to whom it was lent; `mount` returns one with the ids on disk again."""

    @abstractmethod
    def release(self, tree: str) -> None:
        """Let go what `mount` needed beside the descriptor (a process that serves the mount); again is nothing."""

    @abstractmethod
    def changed(self, tree: str) -> Pieces:
        """Return what the tree changes of the layers below, parents before children, otherwise sorted by path.

        Each path once, exactly: nothing that is as it is below, except directories on the way that the form has copied.
        """

    @abstractmethod
    def commit(self, tree: str, layer: str) -> None:
        """Make a layer of what the tree has changed, and let the tree go on above it, empty of changes.

        A descriptor that `mount` has returned is to be asked for anew.
        """

    @abstractmethod
    def snapshot(self, tree: str, snapshot: str) -> None:
        """Keep the tree as it is now under a name."""

    @abstractmethod
    def reset(self, tree: str, snapshot: str | None = None) -> None:
        """Take the tree back to a snapshot; None: to the layers below.  A descriptor of `mount` is to be asked for anew.

        What was written is removed behind; `snapshots` and `trees` do not list it.
        """

    @abstractmethod
    def fork(self, tree: str, new: str) -> None:
        """Make another tree that is as this one is now, and shares what lies below."""

    @abstractmethod
    def snapshots(self, tree: str) -> set[str]:
        """Return the names of a tree's snapshots."""

    @abstractmethod
    def trees(self) -> set[str]:
        """Return the names of the trees."""

    @abstractmethod
    def remove_tree(self, tree: str) -> None:
        """Remove a tree and its snapshots; none of this name is nothing."""

    @abstractmethod
    def usage(self, tree: str) -> TreeUsage:
        """Return what a tree takes up."""

    @abstractmethod
    def sweep(self) -> None:
        """Remove what calls that were interrupted have left: what is being removed, half made trees; not drafts."""

    # Volumes, which lie in the store's own directories.  A driver has them only made as its file system makes such things best.

    def new_volume(self, directory: Fd, name: str, path: str, *, quota: int | None = None) -> None:
        """Make an empty directory in another one, with room for so many bytes; ``path`` is that of the first, for messages.

        Raises
        ------
        Unsupported
            The driver has no quota for it.
        """
        if quota is not None:
            raise Unsupported("a quota for a volume", f"the {self.name} driver", "driver='btrfs', or a volume without quota=")
        try:
            os.mkdir(name, 0o700, dir_fd=directory.fileno())
            with Fd(os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory.fileno())) as root:
                os.fchmod(root.fileno(), 0o755)  # whatever the umask is
        except OSError as error:
            raise from_errno("mkdirat", path, error.errno or 0) from None

    def copy_volume(self, source: Fd, directory: Fd, name: str, path: str, *, quota: int | None = None) -> bool:  # noqa: ARG002
        """Make a directory in another one that shares what it has with a first one; False: only a copy can be made."""
        return False

    def discard_volume(self, directory: Fd, name: str) -> None:
        """Remove something in a directory, with all that is in it, volumes too; none of this name is nothing."""
        calls.remove_tree(directory.fileno(), name, name)

    # For a process that does all this for another one: see `isolib.unionfs.drivers.deputed`

    def hold(self, tree: str, lock: Fd) -> None:  # noqa: B027 -- who works in this process ends with it
        """Note what is locked as long as the caller has a tree, so that who works for him elsewhere keeps it locked."""

    def adopt(self, tree: str, mount: Fd) -> None:  # noqa: B027 -- a plain directory knows of no mount
        """Take a mount of a tree that another process has made, which is gone, as what `mount` has returned."""

    def settle(self) -> None:  # noqa: B027 -- a driver that removes nothing behind has nothing to wait for
        """Wait until what is removed behind is gone."""

    def close(self) -> None:
        """Let go of the directory, and of all that the driver itself keeps open; again is nothing.  What is mounted stays."""
        self.home.close()
