"""The host's tree as a root, where it is: read-only, and covered where it must not be seen.

Binding the host's directories one by one into a new root costs twice as many system calls, and leaving the old root costs an
RCU wait.  It is the way where covers would not do: for a command that has capabilities over its mount namespace, which could
take them off; for an ordinary user's, whose sources can only be opened when they are covered already.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib._kernel.guest import SAFE, Guest
from isolib._kernel.plan import INSIDE
from isolib.mounts import host
from isolib.mounts.dev import DEVICES
from isolib.mounts.proc import masked_files

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolib._kernel.assembly import Scene
    from isolib._kernel.plan import Builder
    from isolib._kernel.request import MountValue

_EMPTY: Final = "/sys"


def can_cover(mounts: Sequence[MountValue], scene: Scene) -> bool:
    """Return whether covers stay on, and the host has all directories to cover and all places to mount something at."""
    if not (scene.powerless and scene.privileged and "user" in scene.new):
        return False
    if not all(os.path.isdir(path) and not os.path.islink(path) for path in ("/proc", "/dev", _EMPTY, *host.private())):
        return False
    for mount in mounts:
        target = getattr(mount, "target", None) or getattr(mount, "path", None)
        if not isinstance(target, str) or not (host.is_hidden(target) or os.path.lexists(target)):
            return False
    return True


def begin(builder: Builder, scene: Scene, room: int) -> Guest:
    """Begin a root that is the host's own tree, read-only."""
    guest = Guest.of(builder, None, scene)
    guest.in_place = True
    # Before the mounts that they are cloned from lose the right to have devices.
    guest.devices = {name: guest.host_tree(f"/dev/{name}", 0, recursive=False, phase=INSIDE) for name in DEVICES}
    guest.nulls = [guest.null() for _ in range(masked_files())]
    guest.set_attributes(guest, SAFE | calls.MOUNT_ATTR_RDONLY, recursive=True, what="/")
    guest.begin_scratch(room)
    return guest


def end(guest: Guest) -> None:
    """End it: the private space goes below the emptiness of /sys.

    It must not stay on top of "/", where whoever joins the namespace would find it as the root.
    """
    empty = guest.nothing()
    guest.attach_onto(guest.private_space, guest, _EMPTY[1:], "private space")
    guest.attach_onto(empty, guest, _EMPTY[1:], _EMPTY)
