"""The driver of ZFS: every layer and every tree is a dataset, and a copy is a clone of a snapshot, which is made at once.

The kernel has no interface of its own to this that is documented: the program ``zfs`` is run, from its whole path.  What it
makes is never mounted by it; mounts are ours, and go with their descriptors.

All datasets lie in one, which a file ``dataset`` of the driver's directory, or of the one above it, names; or else that which
the directory lies on.

A clone stands on the snapshot that it was made from, and that on its dataset.  Whoever wants to remove a dataset therefore has
those that stand on it change places with it first; the snapshots themselves are marked, when they are made, to go with
their last clone.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from secrets import token_hex
from typing import ClassVar, Final

from isolib._kernel import calls
from isolib._kernel.guest import SAFE
from isolib._kernel.handle import Fd
from isolib._kernel.mountapi import new_mount
from isolib._kernel.procfs import parse_mountinfo
from isolib.errors import SyscallError, Unsupported
from isolib.unionfs.disk.files import twin
from isolib.unionfs.drivers import zfs_words as words
from isolib.unionfs.drivers.base import TreeUsage
from isolib.unionfs.drivers.directories import Home
from isolib.unionfs.drivers.recorded import RecordedDriver
from isolib.unionfs.drivers.running import need_program, run_program

__all__ = ["ZfsDriver"]

_FEATURE: Final = "the zfs driver"
_REMEDY: Final = "a directory on ZFS, or one with a file 'dataset' that names a dataset; zfs allow for whoever is not root"
_ABSENT: Final = "does not exist"
_BUSY: Final = "busy"
_ROOM: Final = 64  # of a name of ours, with that of a snapshot
_PROMOTIONS: Final = 1024


class ZfsDriver(RecordedDriver):
    """Datasets of ZFS.

    Notes
    -----
    Takes root of the host: the kernel mounts ZFS for nobody else.  A quota bounds what a tree has of its own (zfsprops(7),
    ``quota``).  Sources: zfs(8) and its sub-pages.
    """

    name: ClassVar[str] = "zfs"

    @classmethod
    def examine(cls, home: int, path: str) -> None:
        """Find out whether a dataset can be made, and be mounted.

        Raises
        ------
        Unsupported
            It cannot.
        """
        need_program("zfs", _FEATURE, "zfsutils-linux")
        place = Home(twin(home), path)
        driver = cls(place.fd, path)
        thing = driver._new_thing()
        try:
            driver._make_empty(thing)
            driver._mount_thing(thing, readonly=False).close()
            driver._remove_thing(thing)
        except SyscallError as error:
            with contextlib.suppress(SyscallError):
                driver._remove_thing(thing)
            raise Unsupported(_FEATURE, f"{path}: {error}", _REMEDY) from error

    def _run(self, argv: list[str]) -> str:
        return run_program([need_program("zfs", _FEATURE, "zfsutils-linux"), *argv])

    def _parent(self) -> str:
        named = self._place.read("dataset") or self._place.read("../dataset")
        return words.check_dataset(named.strip() or self._dataset_here(), _ROOM)

    def _dataset_here(self) -> str:
        """Return the dataset that the directory lies on."""
        device = os.fstat(self.home.fileno()).st_dev
        for one in parse_mountinfo(Path("/proc/thread-self/mountinfo").read_bytes()):
            if one.fs_type == "zfs" and one.dev == (os.major(device), os.minor(device)):
                return one.source
        raise Unsupported(_FEATURE, f"{self.path}, which is not on ZFS and names no dataset", _REMEDY)

    # Roots

    def _new_thing(self) -> str:
        return f"{self._parent()}/isolib-{token_hex(8)}"

    def _make_empty(self, thing: str) -> None:
        self._run(words.create_words(thing))

    def _make_copy(self, source: str, thing: str, quota: int | None) -> None:
        snapshot = token_hex(8)
        self._run(words.snapshot_words(source, snapshot))
        try:
            self._run(words.clone_words(source, snapshot, thing, quota))
        finally:
            self._run(words.forget_words(source, snapshot))

    def _remove_thing(self, thing: str) -> bool:
        for _ in range(_PROMOTIONS):
            try:
                self._run(words.destroy_words(thing))
            except SyscallError as error:
                said = str(error)
                if _ABSENT in said or _BUSY in said:
                    return _ABSENT in said
                clone = words.parse_standing(self._run(words.standing_words(os.path.dirname(thing))), thing)
                if clone is None:
                    raise
                with contextlib.suppress(SyscallError):  # somebody has removed it meanwhile
                    self._run(words.promote_words(clone))  # the youngest snapshot's: all older ones come along
            else:
                return True
        return False

    def _mount_thing(self, thing: str, *, readonly: bool) -> Fd:
        return Fd(new_mount("zfs", {"source": thing}, attributes=SAFE | (calls.MOUNT_ATTR_RDONLY if readonly else 0)))

    def _freeze(self, root: str) -> None:
        self._run(words.set_words(self._named(root), "readonly", "on"))

    # What a tree has

    def _limit(self, root: str, quota: int) -> None:
        self._run(words.set_words(self._named(root), "quota", str(quota)))

    def usage(self, tree: str) -> TreeUsage:
        """Return what a tree has of its own, as ZFS counts it; that is behind what was written by some seconds."""
        now = f"{self._existing(tree)}/now"
        with self._open_root(f"{now}/root") as root:
            calls.syncfs(root.fileno(), self._place.show(now))
        return TreeUsage(int(self._run(words.get_words(self._named(f"{now}/root"), "used"))))
