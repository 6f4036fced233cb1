"""Directories that a handle of this process holds open, shown to a program."""

from __future__ import annotations

import os
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Final

from isolib._kernel import assembly, calls
from isolib._kernel.guest import SAFE, Guest, Place
from isolib._kernel.mountapi import takes_id_map
from isolib._kernel.plan import HOST, Step
from isolib.errors import Unsupported
from isolib.mounts.checks import check_target
from isolib.mounts.values import Mount, freeze

if TYPE_CHECKING:
    from isolib._kernel.assembly import Scene
    from isolib._kernel.plan import Builder, Slot
    from isolib._kernel.request import Shown
    from isolib.types import AnyPath

__all__ = ["Show"]

_WHOLE: Final = calls.AT_EMPTY_PATH | calls.AT_RECURSIVE


@dataclass(frozen=True, slots=True)
class Show(Mount):
    """A directory that a handle holds, shown at a path inside; the handle says for each process which one that is.

    Devices and set-user-id bits have no effect in it.  Started by root, it is id-mapped: an id on disk is the same id inside,
    so what root inside makes is root's on disk.  An ordinary user's process has his ids, as the map of its user namespace says.

    Parameters
    ----------
    source
        What holds it.
    target
        The path inside, as of `isolib.mounts.Bind`.
    readonly
        Whether nothing can be written through it, nor through any mount below it.

    Raises
    ------
    PlanError
        The target cannot work.

    Notes
    -----
    Who may clone mounts of the host, its root, has it cloned from the descriptor.  The kernel clones for a process in a user
    namespace nothing but what lies at a path of its own mount namespace (open_tree(2), EINVAL); there the path is taken, of
    which the handle has made sure for each process that it leads to the same directory.
    """

    source: Shown
    target: AnyPath
    _: KW_ONLY
    readonly: bool

    def __post_init__(self) -> None:
        freeze(self, target=check_target(self.target, "target", of="mount of a volume"), readonly=bool(self.readonly))

    def add_steps(self, builder: Builder, root: Slot | None, scene: Scene) -> None:
        """Add the steps that attach it."""
        guest = Guest.of(builder, root, scene)
        target, path = os.fsdecode(self.target), self.source.path
        slot = builder.declare(-1, path)
        builder.borrow(slot, self.source)
        attributes = SAFE | (calls.MOUNT_ATTR_RDONLY if self.readonly else 0)
        if scene.privileged:
            mount = _cloned(builder, slot, path, attributes, self._userns(scene))
        else:
            mount = guest.host_tree(path, attributes, recursive=True)
        guest.attach(mount, target, Place("foreign", mount, writable=not self.readonly, source=path))

    def _userns(self, scene: Scene) -> Slot | None:
        where = f"/proc/self/fd/{self.source.fileno()}"
        if scene.userns is None or takes_id_map(where, assembly.userns_fd(scene.uid_map, scene.gid_map), recursive=False):
            return scene.userns
        raise Unsupported(
            f"{self.source.path} in a process of root's with a user namespace of its own",
            "its file system, which does not map ids for a mount",
            "a file system that does (ext4, xfs, btrfs, tmpfs), or start as an ordinary user",
        )


def _cloned(builder: Builder, slot: Slot, path: str, attributes: int, userns: Slot | None) -> Slot:
    """Clone what a descriptor is of, while the process still is in the host's mount namespace."""
    flags = calls.OPEN_TREE_CLONE | calls.OPEN_TREE_CLOEXEC | _WHOLE
    mount = builder.produce(HOST, Step("OPEN_TREE", fd=slot, flags=flags, what=path), path)
    idmap = 0 if userns is None else calls.MOUNT_ATTR_IDMAP
    builder.add(
        HOST,
        Step(
            "MOUNT_SETATTR",
            fd=mount,
            fd2=userns,
            flags=_WHOLE,
            value=attributes | idmap,
            size2=calls.MS_PRIVATE,
            what=path,
        ),
    )
    return mount
