"""Volumes at paths of the host."""

from __future__ import annotations

import fcntl
from typing import TYPE_CHECKING

from isolib._kernel import calls
from isolib._kernel.guest import SAFE
from isolib._kernel.handle import Fd, Handle, Rollback
from isolib._kernel.mountapi import clone_tree
from isolib.unionfs.overlays.attachment import Attachment

if TYPE_CHECKING:
    from isolib.unionfs.store.volumes import Volume

__all__ = ["VolumeMount"]


class VolumeMount(Handle, made_by="Volume.mount()"):
    """A volume at a path of the host, until this is closed or this process is gone.

    Attributes
    ----------
    target
        The path.
    """

    def __init__(self, volume: Volume, target: str, *, readonly: bool) -> None:
        self.target = target
        self._volume = volume  # which is not to be forgotten before this is
        self._undo = Rollback()
        root, used = volume.opened_for_another()
        attributes = SAFE | (calls.MOUNT_ATTR_RDONLY if readonly else 0)
        mount = Fd(clone_tree("", dir_fd=root.fileno(), attributes=attributes))
        root.close()
        super().__init__(mount)
        self._used = self._adopt(used)
        try:
            with self._undo as undo:
                attachment = Attachment(mount)
                undo.push(attachment.detach)
                attachment.attach(target)
                undo.keep()
        except BaseException:
            self._drop()  # whoever has the exception has this object, and the volume would be in use
            raise

    def detach(self) -> None:
        """Detach it: `close`."""
        self.close()

    def _release(self) -> None:
        self._undo.unwind()
        fcntl.flock(self._used.fileno(), fcntl.LOCK_UN)  # a fork of this process may have it still

    def _describe(self) -> str:
        return f"{self._volume.name} at {self.target}"
