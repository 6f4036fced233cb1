"""Id-mapped mounts: which id on disk is which inside.

The kernel takes such a map as a user namespace: an id on disk is looked up as one *inside* that namespace, and what stands
*outside* for it is who owns the file on the host (mount_setattr(2), MOUNT_ATTR_IDMAP).  The new process then sees that
through the map of its own user namespace.  Here the two are composed.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from isolib._kernel import assembly
from isolib.errors import PlanError, Unsupported
from isolib.types import IdMap, check_id_map

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from isolib._kernel.guest import Guest
    from isolib._kernel.plan import Slot

__all__ = ["compose", "exchange", "mount_userns", "tree_userns", "work_userns"]


def compose(ranges: Iterable[IdMap], inner: Sequence[IdMap]) -> tuple[IdMap, ...]:
    """Return the map of a mount: from ids on disk to ids of the host.

    Parameters
    ----------
    ranges
        ``inside`` is the id that the process sees, ``outside`` the one on disk.
    inner
        The map of the process's user namespace; empty when it has the host's.

    Raises
    ------
    PlanError
        An id inside is not mapped in the user namespace.
    """
    composed = []
    for one in ranges:
        if not inner:
            composed.append(IdMap(one.outside, one.inside, one.count))
            continue
        covered = 0
        for extent in inner:
            first = max(one.inside, extent.inside)
            end = min(one.inside + one.count, extent.inside + extent.count)
            if first < end:
                covered += end - first
                on_disk = one.outside + first - one.inside
                composed.append(IdMap(on_disk, extent.outside + first - extent.inside, end - first))
        if covered < one.count:
            raise PlanError(f"id_map: {one}: not every id inside is mapped in the new user namespace")
    return check_id_map(composed, "id_map")


def exchange(inner: Sequence[IdMap], inside: int, on_disk: int) -> list[IdMap]:
    """Return the identity over the ids of a user namespace, but that ``inside`` is ``on_disk`` and the other way round."""
    ranges = []
    cuts = {inside, inside + 1, on_disk, on_disk + 1}
    swapped = {inside: on_disk, on_disk: inside}
    for extent in inner:
        end = extent.inside + extent.count
        starts = sorted({extent.inside, *(cut for cut in cuts if extent.inside < cut < end)})
        for first, after in zip(starts, [*starts[1:], end], strict=True):
            ranges.append(IdMap(first, swapped.get(first, first), after - first))
    return ranges


def _slot(guest: Guest, uids: tuple[IdMap, ...], gids: tuple[IdMap, ...]) -> Slot:
    fd = assembly.userns_fd(uids, gids)
    return guest.builder.declare(fd, "user namespace of an id-mapped mount")


def mount_userns(guest: Guest, ranges: Sequence[IdMap]) -> Slot:
    """Return the slot of a user namespace for a mount with this map of users and groups."""
    scene = guest.scene
    if not scene.privileged:
        raise Unsupported(
            "an id-mapped bind",
            "the kernel: it takes CAP_SYS_ADMIN in the user namespace that mounted the file system, the host's",
            "start as root, or leave id_map= out: files of yours belong inside to whom id_map= of the process maps to you",
        )
    return _slot(guest, compose(ranges, scene.uid_map), compose(ranges, scene.gid_map))


def work_userns(guest: Guest) -> Slot | None:
    """Return the slot for a mount in which files of the caller belong to the command's user; None: they do anyway."""
    scene = guest.scene
    if scene.userns is None:
        return None
    own = (os.geteuid(), os.getegid())
    if own == (scene.uid, scene.gid):
        return scene.userns
    uids = compose(exchange(scene.uid_map, scene.uid, own[0]), scene.uid_map)
    gids = compose(exchange(scene.gid_map, scene.gid, own[1]), scene.gid_map)
    return _slot(guest, uids, gids)


def tree_userns(guest: Guest, path: str) -> Slot | None:
    """Return the slot for a mount of an unpacked image; None where its ids are right as they are, or must stay.

    An image that root unpacked has files of root's, which inside is another.  One whose files belong to mapped ids already was
    unpacked for this very map.  The host's own root is never mapped: what only root may read there stays so.
    """
    scene = guest.scene
    if scene.userns is None:
        return None
    try:
        status, host = os.stat(path), os.stat("/")
    except OSError:
        return scene.userns  # the step that opens it says what is wrong
    if os.path.samestat(status, host):
        return None
    shifted = any(one.outside <= status.st_uid < one.outside + one.count for one in scene.uid_map)
    return None if shifted and status.st_uid else scene.userns
