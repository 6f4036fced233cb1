"""The driver that needs nothing of the kernel: every layer and every tree is a whole copy.

Where the file system shares contents between files (btrfs, XFS, bcachefs), a copy costs only its names and inodes.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar

from isolib.errors import SyscallError, Unsupported
from isolib.unionfs.disk.copying import copy_tree
from isolib.unionfs.disk.files import twin
from isolib.unionfs.drivers.directories import Home
from isolib.unionfs.drivers.merged import MergedDriver
from isolib.unionfs.drivers.usage import usage_of

if TYPE_CHECKING:
    from isolib.unionfs.drivers.base import TreeUsage

__all__ = ["VfsDriver"]


class VfsDriver(MergedDriver):
    """Directories, copied."""

    name: ClassVar[str] = "vfs"

    @classmethod
    def examine(cls, home: int, path: str) -> None:
        """Find out whether directories can be made there, and be exchanged.

        Raises
        ------
        Unsupported
            They cannot.
        """
        place = Home(twin(home), path)
        try:
            with place.making() as one, place.making() as other:
                place.exchange(one, other)
            place.settle()
        except SyscallError as error:
            raise Unsupported(
                "the vfs driver", f"{path}: {error.op}: {error.strerror}", "a directory on a writable file system of Linux"
            ) from error

    def _new_root(self, path: str) -> None:
        self._place.make(path)
        with self._place.open(path) as root:
            os.fchmod(root.fileno(), 0o755)

    def _copy_root(self, source: str, target: str, quota: int | None = None) -> None:  # noqa: ARG002 - there is none
        self._place.make(target)
        with self._place.open(source) as old, self._place.open(target) as new:
            copy_tree(old, new, self._place.show(target))

    def _check_quota(self, quota: int) -> None:
        super()._check_quota(quota)
        raise Unsupported("a quota for a tree", "the vfs driver", "driver='btrfs', or another with file systems of its own")

    def usage(self, tree: str) -> TreeUsage:
        with self.mount(tree) as root:
            return usage_of(root)
