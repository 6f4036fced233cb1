"""A private /dev with the devices that every program may use, and none of the machine's."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib._kernel.guest import SAFE, Guest, Place
from isolib._kernel.plan import INSIDE
from isolib.mounts.checks import check_target
from isolib.mounts.values import Mount, freeze

if TYPE_CHECKING:
    from isolib._kernel.assembly import Scene
    from isolib._kernel.plan import Builder, Slot
    from isolib.types import AnyPath

__all__ = ["DEVICES", "Dev"]

DEVICES: Final = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
"""The devices of every /dev, with their numbers (Documentation/admin-guide/devices.txt)."""

_LINKS: Final = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
_TTY_GROUP: Final = 5  # of every Linux distribution; devpts gives its terminals to it
_QUIET: Final = calls.MOUNT_ATTR_NOSUID | calls.MOUNT_ATTR_NOEXEC


@dataclass(frozen=True, slots=True)
class Dev(Mount):
    """A directory of devices: null zero full random urandom tty, an own devpts (ptmx, pts), shm, fd stdin stdout stderr.

    With a new ipc namespace it has mqueue too.  Devices are the host's own, bound, each verified by its number; the directory
    itself is read-only, /dev/shm is writable.

    Parameters
    ----------
    target
        Where; no part of it may be a symbolic link.

    Raises
    ------
    PlanError
        The path cannot work.

    Notes
    -----
    Bound and not made: mknod(2) of a device is refused in a user namespace.
    Sources: null(4), random(4), pts(4), mq_overview(7).

    Examples
    --------
    >>> Dev()
    Dev(target='/dev')
    """

    target: AnyPath = "/dev"

    def __post_init__(self) -> None:
        freeze(self, target=check_target(self.target, "target", of="Dev"))

    def add_steps(self, builder: Builder, root: Slot | None, scene: Scene) -> None:
        """Add the steps that attach it."""
        guest = Guest.of(builder, root, scene)
        target = os.fsdecode(self.target)
        devices = {name: _host_device(guest, name) for name in DEVICES}  # before anything covers the host's
        dev, mount = _directory(guest, target)
        for name, device in devices.items():
            node = dev.below(name, "file")
            guest.add("MKNOD", fd=node.base, text=node.name, value=0o666, what=f"{target}/{name}")
            guest.attach_onto(device, node.base, node.name, f"{target}/{name}")
        for name, to in _LINKS.items():
            link = dev.below(name, "link")
            guest.add("SYMLINK", fd=link.base, text=link.name, text2=to, what=f"{target}/{name}")
            guest.note(f"{target}/{name}", link)
        _mount(guest, dev, "pts", target, guest.new_fs("devpts", _devpts_options(scene), _QUIET))
        if "ipc" in scene.new:
            _mount(guest, dev, "mqueue", target, guest.new_fs("mqueue", {}, SAFE | calls.MOUNT_ATTR_NOEXEC))
        _shared_memory(guest, dev, target)
        if mount is not None:
            guest.set_attributes(mount, _QUIET | calls.MOUNT_ATTR_RDONLY, what=target)
            guest.note(target, Place("foreign", mount))


def _host_device(guest: Guest, name: str) -> Slot:
    path = f"/dev/{name}"
    device = guest.devices.pop(name, None) or guest.host_tree(path, 0, recursive=False, phase=INSIDE)
    major, minor = DEVICES[name]
    guest.add("CHECK_DEVICE", fd=device, value=major << 32 | minor, what=path)
    return device


def _directory(guest: Guest, target: str) -> tuple[Place, Slot | None]:
    """Return an empty directory to fill, and its mount where it is one of its own."""
    place, rest = guest.look(target)
    if guest.skeleton and place.base is guest and place.kind == "directory" and rest:
        return guest.make(target), None  # the skeleton is made read-only as a whole
    if guest.scratch is not None:
        mount = guest.private(target, 0o755, plain=True)
    else:
        mount = guest.new_fs("tmpfs", {"size": "64k", "nr_inodes": "64", "mode": "755"}, _QUIET)
        guest.attach(mount, target, Place("directory", mount), plain=True)
    return Place("directory", mount), mount


def _devpts_options(scene: Scene) -> dict[str, str]:
    options = {"ptmxmode": "0666", "mode": "0620"}
    mapped = any(one.inside <= _TTY_GROUP < one.inside + one.count for one in scene.gid_map)
    if mapped or not scene.gid_map:
        options["gid"] = str(_TTY_GROUP)
    return options


def _mount(guest: Guest, dev: Place, name: str, target: str, mount: Slot) -> None:
    node, what = dev.below(name, "directory"), f"{target}/{name}"
    guest.add("MKDIR", fd=node.base, text=node.name, value=0o755, what=what)
    guest.attach_onto(mount, node.base, node.name, what)
    guest.note(what, Place("foreign", mount))


def _shared_memory(guest: Guest, dev: Place, target: str) -> None:
    if guest.scratch is not None:
        guest.private(f"{target}/shm", 0o1777)
        return
    mount = guest.new_fs("tmpfs", {"size": "64M", "nr_inodes": "16384", "mode": "1777"}, SAFE)
    _mount(guest, dev, "shm", target, mount)
