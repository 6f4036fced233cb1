"""Volumes: directories of a store that have names, are kept apart from images, and are shown to sandboxes."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from threading import RLock
from typing import TYPE_CHECKING, Final, NamedTuple
from weakref import WeakSet

from isolib._kernel import calls, seam
from isolib._kernel.handle import Handle, Rollback
from isolib.errors import GoneError, ImageNotFound, PlanError, StoreDamaged, Unsupported
from isolib.types import check_path
from isolib.unionfs.archive.compression import new_compressor
from isolib.unionfs.archive.reading import Limits
from isolib.unionfs.images.images import find
from isolib.unionfs.images.saving import check_compression, written
from isolib.unionfs.overlays import stacking
from isolib.unionfs.store import volume_files as files
from isolib.unionfs.store.records import Standing
from isolib.unionfs.store.tree import check_tree_name, new_tree
from isolib.unionfs.store.volume_mount import VolumeMount
from isolib.unionfs.store.volume_records import ROOT, VolumeRecord, drafted, place_of, read_volume, take_off
from isolib.unionfs.store.volume_uses import (
    check_labels,
    check_quota,
    directory_in,
    lock_alone,
    open_root,
    opened_again,
    reading,
    used_by_process,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from isolib._kernel.assembly import Scene
    from isolib._kernel.handle import Fd
    from isolib._kernel.request import MountValue
    from isolib.types import AnyPath
    from isolib.unionfs.archive.streams import Readable, Writable
    from isolib.unionfs.drivers.base import TreeUsage
    from isolib.unionfs.images.images import Image
    from isolib.unionfs.stays import Stay
    from isolib.unionfs.store.records import Records
    from isolib.unionfs.store.tree import Keeper

__all__ = ["Volume", "VolumeKeeper", "new_volume", "open_volume"]

_DEFAULT: Final = Limits()


class VolumeKeeper(NamedTuple):
    """The store of a volume, as the volume knows it.

    Attributes
    ----------
    records
        What the store has on record.
    keep
        Has a volume closed when the store is, and returns it.
    trees
        The same, for a tree that is needed for the time being.
    """

    records: Records
    keep: Callable[[Volume], Volume]
    trees: Keeper


class Volume(Handle, made_by="Store.new_volume() or Store.volume()"):
    """A directory that a store keeps under a name, beside its images.

    Any number of handles, of any processes, may have it at once, and all may write to it.  It stays in the store until it is
    removed.  While it has a handle, or is shown to a process, it cannot be.

    Attributes
    ----------
    name
        What the store calls it.
    labels
        What was noted of it when it was made.
    quota
        How many bytes it has room for; None: as many as the file system has.

    Notes
    -----
    Whose the files are.  Made by root, a volume has the same ids on disk as inside: what root inside a sandbox makes is root's
    on disk, though it is nobody on the host, for the mount is id-mapped.  So there may be set-user-id programs in it, and the
    store's directory is closed to others.  Of an ordinary user's volume, files that root inside makes are the user's, and those
    of other users inside, where there are such (``id_map="auto"`` of `isolib.spawn`), his subordinate ids'.
    """

    def __init__(self, keeper: VolumeKeeper, name: str, record: VolumeRecord, used: Fd) -> None:
        self._keeper = keeper
        self._records = keeper.records
        self._using = RLock()
        self._content: Fd | None = None
        self._root: Fd | None = None
        self._mounts: WeakSet[VolumeMount] = WeakSet()
        self.name = name
        self.labels = record.labels
        self.quota = record.quota
        super().__init__(used)

    # ---- where it is ----

    @property
    def path(self) -> str:
        """Where its files are: for root, or for the user whose store it is."""
        return f"{self._records.layout.path}/{place_of(self.name)}/{ROOT}"

    def fileno(self) -> int:
        """Return a descriptor of the directory, which stays this handle's and keeps its number.

        From the first time on, the files are in use by this handle: see `fill` and `restore`.
        """
        return self._opened().fileno()

    def _opened(self) -> Fd:
        with self._using:
            self._check_open()
            if self._root is None:
                # Nobody fills it meanwhile.
                with self._held():
                    content = self._open_content()
                    self._root = self._adopt(open_root(content))
                    self._content = self._adopt(content)
            return self._root

    def _open_content(self) -> Fd:
        try:
            content = self._records.layout.open(place_of(self.name), os.O_DIRECTORY)
        except FileNotFoundError:
            raise StoreDamaged("its files are missing", f"volumes/{self.name}") from None
        fcntl.flock(content.fileno(), fcntl.LOCK_SH)  # nobody has it alone but who holds the volume
        return content

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Hold the volume, so that nobody fills or removes it; in a store that can only be read nobody does anyway."""
        if not self._records.layout.may_write():
            yield
            return
        with self._records.locks.volume(self.name):
            yield

    def lend(self, scene: Scene) -> Stay:  # noqa: ARG002 - the mount is mapped, not what is lent for it
        """Lend it to one process (`isolib._kernel.lending`)."""
        return used_by_process(self.opened_for_another)

    def opened_for_another(self) -> tuple[Fd, Fd]:
        """Return descriptors for one more user of it: of the files, and of what tells that they are in use."""
        with self._using:
            root = self._opened()
            if not _leads_to(self.path, root):
                raise GoneError("openat", self.path, hint="another directory lies there by now, or none")
            assert self._content is not None  # noqa: S101 - it is opened with the root
            used = opened_again(self._content, os.O_RDONLY)
            fcntl.flock(used.fileno(), fcntl.LOCK_SH)
            return opened_again(root, os.O_PATH), used

    def bind(self, target: AnyPath, *, readonly: bool = False) -> MountValue:
        """Return the volume at a path inside, for ``mounts=`` of `isolib.spawn`, `isolib.run` and `isolib.Sandbox`.

        Each process that is started with it has a mount of the directory as it is then, by descriptor, and has the volume in
        use until its handle is closed.  Set-user-id bits and devices have no effect in it.

        Parameters
        ----------
        target
            The path inside, absolute; made where that is possible.
        readonly
            Whether nothing can be written through it, nor through any mount below it.

        Raises
        ------
        PlanError
            The target cannot work.
        """
        self._check_open()
        return seam.show(self, target, readonly=readonly)

    def mount(self, target: AnyPath, *, readonly: bool = False) -> VolumeMount:
        """Attach it at a directory of the host, as mount(8) does; nosuid, nodev.

        Parameters
        ----------
        target
            An existing directory.
        readonly
            Whether nothing can be written there.

        Returns
        -------
        VolumeMount
            A handle.  It is detached when that or this one is closed, and when this process is gone, however it ends.

        Raises
        ------
        Unsupported
            An ordinary user asks for it.
        SyscallError
            There is no such directory, or the kernel refuses.
        """
        where = os.path.abspath(check_path(target, "target"))
        if stacking.needs_deputy():
            raise Unsupported(
                "a volume at a path of the host, for an ordinary user",
                "the kernel: it takes CAP_SYS_ADMIN in the user namespace of the host's mounts",
                "start as root, or use the volume by its path, or show it to a process: bind()",
            )
        made = VolumeMount._make(self, where, readonly=readonly)
        self._mounts.add(made)
        return made

    # ---- what is in it ----

    def fill(self, image: Image | str, path: AnyPath = "/") -> bool:
        """Bring in what an image has in a directory, if the volume is empty.

        All of it is kept: owners, modes, times, extended attributes, hard links; the volume's own directory becomes as the
        image's is.  It is done as a whole or not at all, and of several processes that ask for it one does it; who opens
        the volume meanwhile waits.

        Parameters
        ----------
        image
            An image of the same store, or its name.
        path
            The directory in the image.

        Returns
        -------
        bool
            False: something was in the volume already, and it is as it was.

        Raises
        ------
        ImageNotFound
            There is no such image.
        SyscallError
            EBUSY: the empty volume is in use, by a process or by another handle's descriptor.  ENOENT, ENOTDIR: the image has
            no such directory.  ENOSPC, EDQUOT: there is no room.
        """
        where = check_path(path, "path")
        records = self._records
        with self._using, self._alone() as begin:
            found = find(records, image) if isinstance(image, str) else image
            records.image(found.digest)  # it is of this store
            layers = tuple(one.chain_id for one in found.layers)
            if not self._is_empty():
                return False
            begin()
            with (
                drafted(records) as draft,
                new_tree(self._keeper.trees, Standing(found.digest, layers), None) as tree,
                directory_in(tree.fileno(), where) as source,
            ):
                with draft.make(self.quota) as root:
                    files.copied(source, root, self.path)
                    calls.syncfs(root.fileno(), self.path)
                draft.replace(self.name)
                self._come_back()
        return True

    def save(self, sink: AnyPath | Writable, *, compression: str | None = None, mtime_limit: int | None = None) -> None:
        """Write all that is in it as a tar: the same files make the same bytes.

        Sockets are left out, for no tar has them.  A name that begins with ``.wh.`` cannot be in it: in a layer it means
        another thing.  What is written to the volume meanwhile may be in the tar or not.

        Parameters
        ----------
        sink
            A path, at which the tar is when it is whole; or a file that is open for writing bytes, or anything with ``write``.
        compression
            ``"gzip"``, ``"zstd"``, or None.
        mtime_limit
            Later times become this one, in nanoseconds since 1970.

        Raises
        ------
        ArchiveError
            There is something in it that no such tar can hold.
        SyscallError
            Something cannot be read or written.
        """
        way = check_compression(compression)
        root = self._opened()
        if isinstance(sink, (str, bytes, os.PathLike)):
            with written(check_path(sink, "sink")) as file, new_compressor(file, way) as packed:
                files.packed(root, packed, mtime_limit)
            return
        with new_compressor(sink, way) as packed:
            files.packed(root, packed, mtime_limit)

    def restore(
        self,
        source: AnyPath | Readable,
        *,
        replace: bool = False,
        limits: Limits | None = None,
        allow: Collection[str] = (),
    ) -> None:
        """Bring in what a tar has, which is any tar, by `save` or by others, compressed or not.

        It is done as a whole or not at all.  An archive may be hostile: nothing in it reaches out of the volume.

        Parameters
        ----------
        source
            A path, or a file that is open for reading bytes, or anything with ``read``.
        replace
            Whether what is in the volume goes; otherwise it must be empty.
        limits
            What the archive may grow to.
        allow
            What may be left out where it is refused: "devices", "owners" (the files are the caller's then), "xattrs".

        Raises
        ------
        PlanError
            Something is in the volume, and ``replace`` was not said.
        ArchiveError
            The archive is damaged, beyond its limits, or asks for what must not be.
        SyscallError
            EBUSY: the volume is in use, by a process or by another handle's descriptor.  ENOSPC, EDQUOT: there is no room.
        PermissionDenied
            The archive has what this process may not make.
        """
        bounds = limits or _DEFAULT
        with self._using, self._alone() as begin, reading(source) as stream:
            if not replace and not self._is_empty():
                raise PlanError(f"restore: something is in the volume {self.name!r}; replace=True takes its place")
            begin()
            with drafted(self._records) as draft:
                with draft.make(self.quota) as root:
                    files.unpacked(stream, root, bounds, allow)
                    calls.syncfs(root.fileno(), self.path)
                draft.replace(self.name)
                self._come_back()

    def clone(self, name: str, *, labels: Mapping[str, str] | None = None, quota: int | str | None = None) -> Volume:
        """Make another volume that is as this one is now.

        On btrfs it is a snapshot; elsewhere a copy, which shares contents where the file system can do that.  Of what is
        written meanwhile a copy has a part.

        Parameters
        ----------
        name, quota
            As of `Store.new_volume`.
        labels
            None: those of this one.

        Raises
        ------
        PlanError
            There is a volume of this name already.
        SyscallError
            It cannot be read, or there is no room.
        """
        record = VolumeRecord(self.labels if labels is None else check_labels(labels), check_quota(quota))
        return new_volume(self._keeper, name, record, self._opened())

    def usage(self) -> TreeUsage:
        """Return what it takes up: bytes on disk that nothing else shares, and inodes.

        Raises
        ------
        SyscallError
            Something in it cannot be read.
        """
        return files.counted(self._opened())

    def remove(self) -> None:
        """Remove it from the store, and close this handle.

        Raises
        ------
        SyscallError
            EBUSY: it has another handle, in this process or another, or is shown to a process.
        """
        with self._using:
            with self._alone(removed=True) as begin:
                begin()
                take_off(self._records, self.name)
            self.close()

    # ---- having it alone ----

    @contextmanager
    def _alone(self, *, removed: bool = False) -> Iterator[Callable[[], None]]:
        """Hold the volume, and give what makes sure that nobody else uses the files; when it is removed, nor has a handle."""
        self._check_open()
        locked: list[Fd] = []
        own: list[Fd] = []

        def begin() -> None:
            content = self._content
            if content is None:
                content = self._open_content()
                own.append(content)
            for one in (content, *([self._fds[0]] if removed else [])):
                locked.append(one)
                lock_alone(one, self.path)

        with self._records.locks.volume(self.name):
            if not self._records.layout.holds(f"volumes/{self.name}"):
                raise GoneError("openat", self.path, hint="the volume was removed")
            try:
                yield begin
            finally:
                # Who takes them alone holds the volume; so nobody has come in between, and nothing is waited for.
                for one in locked:
                    fcntl.flock(one.fileno(), fcntl.LOCK_SH)
                for one in own:
                    one.close()

    def _is_empty(self) -> bool:
        if self._root is not None:
            return files.is_empty(self._root)
        with self._records.layout.open(place_of(self.name), os.O_DIRECTORY) as content, open_root(content) as root:
            return files.is_empty(root)

    def _come_back(self) -> None:
        """Have the descriptors lead to the files as they are now; their numbers stay."""
        if self._root is None or self._content is None:
            return
        with self._open_content() as content, open_root(content) as root:
            os.dup2(content.fileno(), self._content.fileno(), inheritable=False)
            os.dup2(root.fileno(), self._root.fileno(), inheritable=False)

    # ---- its end ----

    def _release(self) -> None:
        with Rollback() as undo:
            for one in (self._fds[0], self._content):
                if one is not None and not one.closed:
                    # A fork of this process may have the descriptor still.
                    undo.push(fcntl.flock, one.fileno(), fcntl.LOCK_UN)
            for mount in [*self._mounts]:
                undo.push(mount.close)

    def _describe(self) -> str:
        return self.name


def _leads_to(path: str, root: Fd) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(root.fileno()))
    except (FileNotFoundError, NotADirectoryError):
        return False


# ---- how there comes to be one ----


def new_volume(keeper: VolumeKeeper, name: str, record: VolumeRecord, source: Fd | None = None) -> Volume:
    """Make a volume, empty or as another one; see `Store.new_volume`."""
    records = keeper.records
    check_tree_name(name, "name")
    with records.locks.volume(name):
        if records.layout.holds(f"volumes/{name}"):
            raise PlanError(f"name: the store has a volume {name!r} already")
        with drafted(records) as draft:
            if source is None or not draft.share(source, record.quota):
                with draft.make(record.quota) as root:
                    if source is not None:
                        files.copied(source, root, f"volumes/{name}")
            draft.put(name, record)
        return _opened(keeper, name, record)


def _opened(keeper: VolumeKeeper, name: str, record: VolumeRecord) -> Volume:
    """Make the handle; the caller holds the volume, or nobody can change the store."""
    with Rollback() as undo:
        try:
            used = undo.adopt(keeper.records.layout.open(f"volumes/{name}", os.O_DIRECTORY))
        except FileNotFoundError:
            raise ImageNotFound(f"the store has no volume {name!r}") from None
        fcntl.flock(used.fileno(), fcntl.LOCK_SH)
        volume = Volume._make(keeper, name, record, used)
        undo.dismiss()
    return keeper.keep(volume)


def open_volume(keeper: VolumeKeeper, name: str) -> Volume:
    """Take a volume; see `Store.volume`."""
    records = keeper.records
    check_tree_name(name, "name")
    if not records.layout.may_write():
        return _opened(keeper, name, read_volume(records, name))
    with records.locks.volume(name):
        return _opened(keeper, name, read_volume(records, name))
