"""Mounts at paths of the host, detached again when they are given up or when this process is gone."""

from __future__ import annotations

import os
from errno import EINVAL
from functools import partial
from typing import TYPE_CHECKING

from isolib._kernel import calls, reaper
from isolib._kernel.mountapi import attach
from isolib.errors import PlanError, SyscallError
from isolib.unionfs.overlays import stacking

if TYPE_CHECKING:
    from isolib._kernel.handle import Fd
    from isolib._kernel.reaper import Ticket

__all__ = ["Attachment"]


class Attachment:
    """That a mount is attached, of which the reaper knows."""

    def __init__(self, mount: Fd) -> None:
        self._mount = mount
        self._ticket: Ticket | None = None

    def attach(self, target: str) -> None:
        """Attach it at a directory."""
        if not os.path.samestat(os.stat("/proc/thread-self/ns/mnt"), os.stat("/proc/self/ns/mnt")):
            raise PlanError("target=: this thread is in another mount namespace than its process, whose end would undo nothing")
        with stacking.open_directory(target) as place:
            reaper.entrust_mount(self._mount.fileno(), partial(setattr, self, "_ticket"))
            attach(self._mount.fileno(), place.fileno(), target)

    def detach(self) -> None:
        """Detach it, wherever it was moved; again is nothing."""
        ticket = self._ticket
        if ticket is None:
            return
        # By its descriptor, so it is this mount.  What lies on top of it would go too, and goes before.
        try:
            while True:
                calls.umount(f"/proc/self/fd/{self._mount.fileno()}", calls.MNT_DETACH)
        except SyscallError as error:
            if error.errno != EINVAL:  # else it is attached nowhere any more
                raise
        ticket.let_go()
        self._ticket = None
