"""The working directory of a sandbox in the host's root."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isolib._kernel import assembly, calls
from isolib._kernel.guest import SAFE, Guest, Place
from isolib._kernel.mountapi import takes_id_map
from isolib.errors import PlanError, Unsupported
from isolib.mounts.checks import check_target
from isolib.mounts.idmap import work_userns
from isolib.mounts.overlay import Layers
from isolib.mounts.table import KERNEL, fs_type_of, kernel_mounts, mounts_below, outermost
from isolib.mounts.values import Mount, freeze

if TYPE_CHECKING:
    from isolib._kernel.assembly import Scene
    from isolib._kernel.plan import Builder, Slot
    from isolib.types import AnyPath

__all__ = ["WorkTree"]


@dataclass(frozen=True, slots=True)
class WorkTree(Mount):
    """A working directory of the host's, at the same path inside: files of the caller belong to the command's user.

    Parameters
    ----------
    path
        The directory, absolute.  One that the host does not have is not shown: a mount may bring it, or entering it fails.
    mode
        "discard": what is written goes to memory and vanishes.  What is mounted below the directory is read-only.
        "keep": what is written is written to the host.
        "none": nothing can be written.

    Raises
    ------
    PlanError
        An argument cannot work; mounts below the directory that an overlay would uncover.
    Unsupported
        Root's directory is to be writable, and lies on a file system that cannot map ids.

    Notes
    -----
    An ordinary user's files belong to the command's user because that is whom the user namespace maps to the caller.  Root's
    files are id-mapped for it: what root may read there, the command may.  (With "none", where the file system cannot do that,
    it reads what anybody may.)  With "discard", a file can be read but not changed when its owner or group has no id inside:
    files of an ordinary user whose group is another than the user's own.

    Examples
    --------
    >>> WorkTree("/srv/project", "keep")
    WorkTree(path='/srv/project', mode='keep')
    """

    path: AnyPath
    mode: str = "discard"

    def __post_init__(self) -> None:
        freeze(self, path=check_target(self.path, "path", of="WorkTree"))
        if self.mode not in {"discard", "keep", "none"}:
            raise PlanError(f"WorkTree: mode={self.mode!r}: 'discard', 'keep' or 'none'")

    def add_steps(self, builder: Builder, root: Slot | None, scene: Scene) -> None:
        """Add the steps that attach it."""
        guest = Guest.of(builder, root, scene)
        path = os.fsdecode(self.path)
        if not os.path.isdir(path):
            return
        userns = self._userns(guest, path)
        below = mounts_below(path)
        guest.make_way(path)
        attributes = SAFE | (0 if self.mode == "keep" else calls.MOUNT_ATTR_RDONLY)
        whole = userns is None and self.mode != "discard"
        if self.mode == "discard":
            _lay_over(guest, path, userns, below)
        else:
            tree = guest.host_tree(path, attributes, recursive=whole, userns=userns)
            guest.attach(tree, path, Place("foreign", tree, writable=self.mode == "keep", source=path))
        shown = [path] if whole else [point for point, fs_type in outermost(below) if fs_type not in KERNEL]
        for point in [] if whole else shown:
            _show_mount(guest, point, attributes, userns)
        for point in kernel_mounts(shown) if below else ():
            cover = guest.nothing()
            guest.attach(cover, point, Place("foreign", cover), existing=True)

    def _userns(self, guest: Guest, path: str) -> Slot | None:
        userns = work_userns(guest)
        if userns is None or takes_id_map(path, _userns_fd(guest), recursive=False):
            return userns
        if self.mode == "none":
            return None
        raise Unsupported(
            f"a writable working directory {path} in a sandbox of root's",
            f"its file system, which does not map ids for a mount ({fs_type_of(path)})",
            "writable='none', cwd= on another file system (ext4, xfs, btrfs, tmpfs), or start as an ordinary user",
        )


def _lay_over(guest: Guest, path: str, userns: Slot | None, below: list[tuple[str, str]]) -> None:
    """Cover a directory with an overlay over itself."""
    if below and userns is None and "user" in guest.scene.new:
        raise PlanError(
            f"{path}: {below[0][0]} is mounted below it, and an overlay in a user namespace would uncover what that hides: "
            "writable='keep' or 'none', or another cwd="
        )
    layers = Layers(guest, path, userns)
    layers.add_lower(path)
    layers.new_upper(stat.S_IMODE(os.stat(path).st_mode))
    layers.attach(volatile=True)


def _show_mount(guest: Guest, point: str, attributes: int, userns: Slot | None) -> None:
    """Show what is mounted below the directory, which has not come along; with its ids mapped where it takes that."""
    mapped = userns if userns is not None and takes_id_map(point, _userns_fd(guest)) else None
    tree = guest.host_tree(point, attributes, recursive=True, userns=mapped)
    if os.path.isdir(point):
        guest.attach(tree, point, Place("foreign", tree, source=point), existing=True)
    else:
        guest.attach(tree, point, Place("file", tree), directory=False, existing=True)


def _userns_fd(guest: Guest) -> int:
    return assembly.userns_fd(guest.scene.uid_map, guest.scene.gid_map)
