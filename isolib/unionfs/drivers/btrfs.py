"""The driver of btrfs: every layer and every tree is a subvolume, and a copy is a snapshot, which is made at once.

What a guest makes inside is his: subvolumes too, which the kernel leaves out of a snapshot.  They are copied into it, as
directories, and removed with what they are in.
"""

from __future__ import annotations

import contextlib
import os
import stat
from errno import EACCES, EINVAL, ENOENT, ENOTCONN, ENOTTY, EOVERFLOW, EPERM
from typing import TYPE_CHECKING, ClassVar, Final

from isolib._kernel import calls
from isolib._kernel.handle import Fd
from isolib.errors import SyscallError, Unsupported, from_errno
from isolib.unionfs.disk.copying import copy_tree
from isolib.unionfs.disk.files import twin
from isolib.unionfs.drivers.base import TreeUsage
from isolib.unionfs.drivers.directories import Home
from isolib.unionfs.drivers.merged import MergedDriver
from isolib.unionfs.drivers.usage import usage_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet

__all__ = ["BtrfsDriver"]

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: Of so many inodes that may have changed each is asked for by itself; where there are more, the whole tree is looked at.
_MOST_TOUCHED: Final = 20_000
_BENEATH: Final = calls.RESOLVE_BENEATH | calls.RESOLVE_NO_SYMLINKS | calls.RESOLVE_NO_MAGICLINKS


class BtrfsDriver(MergedDriver):
    """Subvolumes and snapshots.

    Notes
    -----
    Subvolumes take no privileges.  Quotas take CAP_SYS_ADMIN on the host: the first tree with one turns the counting on for the
    whole file system, which stays so.  A quota bounds what a tree shares with no other.  Source: btrfs-ioctl(2).
    """

    name: ClassVar[str] = "btrfs"

    @classmethod
    def examine(cls, home: int, path: str) -> None:
        """Find out whether subvolumes can be made there, and be removed.

        Raises
        ------
        Unsupported
            They cannot.
        """
        feature, remedy = "the btrfs driver", "a directory on btrfs, with Linux 4.18 or newer"
        if calls.fs_magic(home) != calls.BTRFS_SUPER_MAGIC:
            raise Unsupported(feature, f"{path}, which is not on btrfs", remedy)
        place = Home(twin(home), path, _remove)
        try:
            with place.making() as made, place.open(made) as directory:
                calls.btrfs_create(directory.fileno(), "root", path)
                with place.open(f"{made}/root") as root:  # of a mere directory, those that lie elsewhere would be refused
                    calls.btrfs_nested(root.fileno(), path)
                _remove(directory.fileno(), "root")
            place.settle()
        except SyscallError as error:
            raise Unsupported(feature, f"{path}: {error.op}: {error.strerror}", remedy) from error

    # Roots

    def _discard(self, directory: int, name: str) -> None:
        _remove(directory, name)

    @contextlib.contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        above, name = os.path.split(path)
        with self._place.open(above) as directory:
            yield directory.fileno(), name

    def _new_root(self, path: str) -> None:
        with self._parent(path) as (directory, name):
            calls.btrfs_create(directory, name, self._place.show(path))
        with self._place.open(path) as root:
            os.fchmod(root.fileno(), 0o755)

    def _copy_root(self, source: str, target: str, quota: int | None = None) -> None:
        shown = self._place.show(target)
        with self._place.open(source) as old, self._parent(target) as (directory, name):
            calls.btrfs_snapshot(old.fileno(), directory, name, shown, readonly=False)
            with self._place.open(target) as new:
                for path in calls.btrfs_nested(old.fileno(), self._place.show(source)):
                    _copy_nested(old, new, path, shown)
        if quota is not None:
            self._limit(target, quota)

    def _within(self, old: Fd, new: Fd) -> AbstractSet[int] | None:
        """Ask the kernel which blocks of the tree were written since it and the layer were one.

        That can be told where one of both is a snapshot of the other, and the layer has not changed since; and only to who has
        CAP_SYS_ADMIN.  Where a directory was moved it says too little: files in it have other paths, and what they are named
        elsewhere was not touched.
        """
        layer, tree = (calls.btrfs_subvolume(fd.fileno(), self.path) for fd in (old, new))
        if tree.parent == layer.uuid:
            since = tree.origin_generation
        elif layer.parent == tree.uuid:
            since = layer.origin_generation
        else:
            return None
        if layer.generation > since:
            return None
        calls.syncfs(new.fileno(), self.path)  # what is not written yet has no generation
        try:
            found = calls.btrfs_touched(new.fileno(), since, _MOST_TOUCHED, self.path)
            if found is None or any(_was_moved(old, new, inode, self.path) for inode in found):
                return None
            return _with_those_above(new, found, self.path)
        except SyscallError as error:
            if error.errno not in {EPERM, EACCES, EINVAL, ENOTTY, EOVERFLOW}:
                raise
            return None

    def _freeze(self, root: str) -> None:
        with self._place.open(root) as subvolume:
            calls.btrfs_set_readonly(subvolume.fileno(), self._place.show(root), readonly=True)

    # Volumes

    def new_volume(self, directory: Fd, name: str, path: str, *, quota: int | None = None) -> None:
        if quota is not None:
            self._check_quota(quota)
        calls.btrfs_create(directory.fileno(), name, path)
        with _open_below(directory, name) as root:
            os.fchmod(root.fileno(), 0o755)
            if quota is not None:
                calls.btrfs_limit(root.fileno(), quota, path)

    def copy_volume(self, source: Fd, directory: Fd, name: str, path: str, *, quota: int | None = None) -> bool:
        if quota is not None:
            self._check_quota(quota)
        calls.btrfs_snapshot(source.fileno(), directory.fileno(), name, path, readonly=False)
        with _open_below(directory, name) as new:
            for nested in calls.btrfs_nested(source.fileno(), path):
                _copy_nested(source, new, nested, path)
            if quota is not None:
                calls.btrfs_limit(new.fileno(), quota, path)
        return True

    def discard_volume(self, directory: Fd, name: str) -> None:
        _remove(directory.fileno(), name)

    # Quotas

    def _check_quota(self, quota: int) -> None:
        super()._check_quota(quota)
        try:
            calls.btrfs_quota_enable(self.home.fileno(), self.path)
        except SyscallError as error:
            if error.errno != EPERM:
                raise
            remedy = "root of the host, or a tree without a quota"
            raise Unsupported("a quota for a tree", "the kernel, for want of CAP_SYS_ADMIN", remedy) from error

    def _limit(self, root: str, quota: int) -> None:
        with self._place.open(root) as subvolume:
            calls.btrfs_limit(subvolume.fileno(), quota, self._place.show(root))

    def usage(self, tree: str) -> TreeUsage:
        """Return what a tree shares with no other: as the file system counts it, or added up, where that does not count."""
        with self.mount(tree) as root:
            shown = self._place.show(f"trees/{tree}")
            try:
                calls.syncfs(root.fileno(), shown)  # it counts what it commits
                number = calls.btrfs_subvolume(root.fileno(), shown).id
                return TreeUsage(calls.btrfs_exclusive(root.fileno(), number, shown))
            except SyscallError as error:
                if error.errno not in {ENOENT, EPERM, EACCES, ENOTTY, EINVAL, ENOTCONN}:
                    raise
            return TreeUsage(usage_of(root).size)


def _was_moved(old: Fd, new: Fd, inode: int, path: str) -> bool:
    """Return whether something is a directory that has another path now."""
    here = calls.btrfs_where(new.fileno(), inode, path)
    there = calls.btrfs_where(old.fileno(), inode, path)
    if not here or there is None or here == there:
        return False
    with Fd(
        calls.openat2(new.fileno(), os.fsdecode(here), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, resolve=_BENEATH)
    ) as found:
        return stat.S_ISDIR(os.fstat(found.fileno()).st_mode)


def _with_those_above(subvolume: Fd, inodes: set[int], path: str) -> set[int]:
    """Add to inodes all directories that they are in, whichever of their names one takes."""
    found, waiting = set(inodes), list(inodes)
    while waiting:
        above = calls.btrfs_parents(subvolume.fileno(), waiting.pop(), path) - found
        found |= above
        waiting += above
    return found


def _copy_nested(old: Fd, new: Fd, path: str, shown: str) -> None:
    """Put a copy where a snapshot has, instead of a subvolume, an empty directory that nothing can be put into."""
    above, name = os.path.split(path)
    target = os.path.join(shown, path)
    with (
        Fd(calls.openat2(old.fileno(), path, _DIRECTORY, resolve=_BENEATH)) as source,
        Fd(calls.openat2(new.fileno(), above or ".", _DIRECTORY, resolve=_BENEATH)) as directory,
    ):
        before = os.fstat(directory.fileno())
        try:
            os.rmdir(name, dir_fd=directory.fileno())
            os.mkdir(name, 0o700, dir_fd=directory.fileno())
        except OSError as error:
            raise from_errno("rmdir", target, error.errno or 0) from None
        with Fd(calls.openat2(directory.fileno(), name, _DIRECTORY, resolve=_BENEATH)) as copy:
            copy_tree(source, copy, target)
        os.utime(directory.fileno(), ns=(before.st_atime_ns, before.st_mtime_ns))


# ---- removal ----


def _remove(base: int, name: str) -> None:
    """Remove something of ours, with the subvolumes that it holds or that it is."""
    try:
        top = os.open(name, _DIRECTORY, dir_fd=base)
    except OSError:
        calls.remove_tree(base, name, name)  # no directory: it is a file, or nothing
        return
    with Fd(top) as directory:
        if _is_subvolume(directory):
            try:
                _destroy(base, name, directory)
            except SyscallError:  # something in it lies deeper than a path reaches; or who we are may not search there
                calls.remove_tree(base, name, name)
            return
        for each in os.listdir(directory.fileno()):
            if os.path.isdir(f"/proc/self/fd/{directory.fileno()}/{each}"):
                _remove(directory.fileno(), each)
    calls.remove_tree(base, name, name)


def _is_subvolume(directory: Fd) -> bool:
    found = os.fstat(directory.fileno())
    return found.st_ino == calls.BTRFS_ROOT_INODE and calls.fs_magic(directory.fileno()) == calls.BTRFS_SUPER_MAGIC


def _destroy(base: int, name: str, subvolume: Fd) -> None:
    """Remove a subvolume, those in it first; how deep they lie is the guest's choice, so nothing recurses."""
    paths, done = [""], 0
    while done < len(paths):
        path = paths[done]
        done += 1
        with _open_below(subvolume, path) as one:
            calls.btrfs_set_readonly(one.fileno(), name, readonly=False)
            paths += [os.path.join(path, below) for below in calls.btrfs_nested(one.fileno(), name)]
    for path in reversed(paths[1:]):
        above, last = os.path.split(path)
        with _open_below(subvolume, above) as directory:
            _destroy_one(directory.fileno(), last)
    _destroy_one(base, name)


def _open_below(subvolume: Fd, path: str) -> Fd:
    return Fd(calls.openat2(subvolume.fileno(), path or ".", _DIRECTORY, resolve=_BENEATH))


def _destroy_one(directory: int, name: str) -> None:
    try:
        calls.btrfs_destroy(directory, name, name)
    except SyscallError as error:
        if error.errno not in {EPERM, EACCES}:
            raise
        # Without privileges, and where the file system is mounted without user_subvol_rm_allowed, an empty one is removed by
        # rmdir(2), since Linux 4.18.
        calls.remove_tree(directory, name, name)
