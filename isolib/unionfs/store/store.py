"""Stores: images, the layers that they share, and the trees that are made of them, in one directory."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from operator import itemgetter
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, BinaryIO
from weakref import WeakSet

from isolib._kernel.assembly import is_host_root
from isolib._kernel.handle import Handle, Rollback
from isolib._kernel.hints import typed
from isolib.errors import ImageNotFound, PlanError, StoreDamaged
from isolib.types import check_path, parse_duration, parse_size
from isolib.unionfs.archive import tar
from isolib.unionfs.drivers import driver_class, features
from isolib.unionfs.images.auth import check_credentials
from isolib.unionfs.images.config import Platform
from isolib.unionfs.images.images import find, find_digest, opened_image
from isolib.unionfs.images.loading import Loader
from isolib.unionfs.images.pulling import Puller
from isolib.unionfs.images.references import Reference
from isolib.unionfs.images.registry import Registry, check_insecure
from isolib.unionfs.images.roots import RootLoader
from isolib.unionfs.images.sources import SourceKind, opened_source, selected
from isolib.unionfs.store.collecting import collect
from isolib.unionfs.store.founding import open_records
from isolib.unionfs.store.records import Standing
from isolib.unionfs.store.tree import Keeper, new_tree, open_tree
from isolib.unionfs.store.verifying import verify
from isolib.unionfs.store.volume_shelf import Volumes
from isolib.unionfs.store.volumes import VolumeKeeper

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from datetime import timedelta

    from isolib._kernel.handle import Fd
    from isolib.types import AnyPath, Feature
    from isolib.unionfs.images.images import Image
    from isolib.unionfs.images.loading import Progress
    from isolib.unionfs.store.areas import Area
    from isolib.unionfs.store.collecting import Collected
    from isolib.unionfs.store.records import Records
    from isolib.unionfs.store.tree import Tree
    from isolib.unionfs.store.verifying import Finding
    from isolib.unionfs.store.volumes import Volume

__all__ = ["Store", "drivers", "open_store"]


def default_path() -> str:
    """Return where a store is when nothing is said: see `open_store`."""
    if is_host_root():
        return "/var/lib/isolib"
    data = os.environ.get("XDG_DATA_HOME", "")
    return os.path.join(data if data.startswith("/") else os.path.expanduser("~/.local/share"), "isolib")


def drivers(path: AnyPath | None = None) -> Mapping[str, Feature]:
    """Find out which storage drivers work in a directory, by trying.

    Parameters
    ----------
    path
        The directory.  None: where `open_store` would make a store; where that does not exist yet, what it would lie in.

    Returns
    -------
    Mapping
        From name to `isolib.support.Feature`, in the order in which `open_store` tries them.  One that does not work says what
        refuses it, and what would help.

    Raises
    ------
    SyscallError
        There is no such directory.

    Examples
    --------
    >>> bool(drivers("/tmp")["vfs"])
    True
    """
    if path is not None:
        return features(check_path(path, "path"))
    found = default_path()
    while not os.path.isdir(found):
        found = os.path.dirname(found)
    return features(found)


def open_store(path: AnyPath | None = None, *, driver: str | None = None, durable: bool = False) -> Store:
    r"""Open a store, or make one.

    Parameters
    ----------
    path
        Its directory.  None: ``/var/lib/isolib`` for root of the host; for others ``isolib`` in ``$XDG_DATA_HOME``, or in
        ``~/.local/share`` where that is not set.
    driver
        How a new store keeps layers and trees: ``"overlay"``, ``"btrfs"``, ``"zfs"``, ``"fuse-overlayfs"``, ``"vfs"``,
        ``"devicemapper"`` or ``"aufs"``; `drivers` tells
        which of them work.  None: the first that works.  A store keeps to its driver.
    durable
        Whether what this handle loads, pulls and commits survives a failure of power once the call has returned.

    Returns
    -------
    Store
        A handle.  A store is used by any number of processes and threads at once.

    Raises
    ------
    PlanError
        There is no such driver, or the store has another; the directory has other things in it.
    Unsupported
        The driver does not work there, or the store is of a newer version of isolib: nothing has been touched.
    SyscallError
        The directory cannot be opened or made.

    Notes
    -----
    Privileges: those of the driver.  What is in a store is only for its owner: it has set-user-id programs.

    An ordinary user has the same images as root, with the same digests, where he has subordinate ids (subuid(5)): files of
    root's in an image are his own on disk, and those of others belong to these ids.  A process in a user namespace, which
    isolib starts, does for him what takes rights over them.  Without subordinate ids only what belongs to root alone can be
    loaded.  Through ``tree.path`` he does what he may as himself; with fuse-overlayfs nobody but himself gets into a tree.

    A store that can only be read, by its mount or its mode, is opened like any other: images can be looked at and saved, and
    what would change it raises `SyscallError` (EROFS) or `PermissionDenied`.

    What is on record is on disk: records are synced before they get their names.  The files of layers are, with ``durable``,
    by syncfs(2) before their layer gets on record: the whole file system, whoever has written to it, which took 7 to 23 ms on a
    disk that others were using.  Otherwise the kernel writes them back in its own time, as with every other program;
    after a failure of power, `Store.verify` tells whether all arrived.  Where a process is killed, nothing is lost either way.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as path, open_store(f"{path}/store", driver="vfs") as store:
    ...     with store.checkout() as tree:
    ...         with open(f"{tree.path}/motd", "w") as file:
    ...             _ = file.write("hello\n")
    ...         image = tree.commit("say hello", tag="hello")
    ...     store.image("hello").names
    ('hello:latest',)
    """
    where = os.path.abspath(default_path() if path is None else check_path(path, "path"))
    if driver is not None:
        driver_class(driver)
    with typed(where):
        os.makedirs(where, 0o700, exist_ok=True)
    records = open_records(where, driver, durable=durable)
    return Store._make(records, records.layout.root)


class Store(Volumes, Handle, made_by="open_store()"):
    """Images, the layers that they share, trees that are made of them, and volumes, in one directory.

    Closing it closes the trees and volumes that were made with it.
    """

    def __init__(self, records: Records, root: Fd) -> None:
        self._records = records
        self._trees: WeakSet[Tree] = WeakSet()
        self._volumes: WeakSet[Volume] = WeakSet()
        super().__init__(root, records.driver.home)

    @property
    def path(self) -> str:
        """Its directory."""
        return self._records.layout.path

    @property
    def driver(self) -> str:
        """The name of its storage driver."""
        return self._records.driver.name

    def load(
        self,
        source: AnyPath,
        *,
        progress: Callable[[Progress], object] | None = None,
        name: str | None = None,
        platform: str | None = None,
        select: str | None = None,
        limits: tar.Limits | None = None,
    ) -> Image:
        """Bring in images from outside.

        What the source is, is told by its content: an OCI image layout, as a directory or in a tar; an archive of ``docker
        save``; a directory or a tar of a root file system, which becomes an image of one layer.  Each may be compressed.
        Layers that the store has already are not read.

        Parameters
        ----------
        source
            The path.  A pipe is read to its end first.
        progress
            Is called with a `Progress` now and then; what it raises ends the load.
        name
            What to call the image, in the place of what the source calls it.
        platform
            ``"linux/arm64"``: what to take from a source for several; None: what is for this machine.  What is for one other
            platform alone is taken only when it is asked for, or when the source does not say what it is for.
        select
            Which image, where the source has several: its name, its tag, or its digest.  None: all of them.
        limits
            What each layer may grow to.

        Returns
        -------
        Image
            The one that was asked for, or the first.

        Raises
        ------
        ArchiveError
            The source is damaged, cut short, or holds something that is not known here; a digest is not what it should be;
            there is nothing for the platform.  Nothing of it is in the store, but perhaps images that came before it.
        SyscallError
            The source cannot be read, or the store cannot be written (ENOSPC: the disk is full); nothing is left in it.
        PermissionDenied
            A layer has what this process may not make: devices, for one, or files of owners for whom an ordinary user has no
            subordinate ids.  Or a directory has files of such owners; nobody (65534) in one cannot be told from them.

        Examples
        --------
        >>> store.load("debian.tar", name="debian:12").layers  # doctest: +SKIP
        """
        path = check_path(source, "source")
        called = None if name is None else [Reference.parse(name)]
        wanted = None if platform is None else Platform.parse(platform)
        most = limits or tar.Limits()
        self._check_open()
        records = self._records
        with records.area() as area, opened_source(path, partial(_spool, area, self.path)) as found:
            if found.kind in {SourceKind.OCI, SourceKind.DOCKER}:
                offers = selected(found, wanted, select, one=called is not None)
                loader = Loader(records, area, most, progress)
                loaded = [loader.load(found.files, offer, called or offer.names) for offer in offers]
            else:
                loaded = [RootLoader(records, area, most, progress).load_root(found, called or [], wanted or Platform.host())]
        return opened_image(records, loaded[0].digest)

    def pull(
        self,
        reference: str,
        *,
        progress: Callable[[Progress], object] | None = None,
        name: str | None = None,
        platform: str | None = None,
        limits: tar.Limits | None = None,
        credentials: tuple[str, str] | None = None,
        insecure: str | Collection[str] = (),
        timeout: float | timedelta = 30,
    ) -> Image:
        """Bring in an image from a registry.

        Layers and configs that the store has are not fetched.  What has come of a layer when a pull is interrupted stays
        until `gc`, and the next pull fetches the rest.

        Parameters
        ----------
        reference
            Its name: ``"debian:12"``, ``"registry.example:5000/team/app@sha256:..."``.
        progress
            Is called with a `Progress` now and then, by this thread; what it raises ends the pull.
        name
            What to call it, in the place of the reference; one without a tag gives no name.
        platform, limits
            As of `load`.
        credentials
            The user's name and his password or token.  None: what Podman's and Docker's files have for the registry, if it asks
            for any.  Credential helpers are not run.
        insecure
            Names of registries, as in the reference, that may be spoken to without encryption.  Those on this machine
            (``localhost``, 127.0.0.0/8, ::1) may anyhow.  Certificates are verified in any case.
        timeout
            Seconds in which a server must answer, and send at least something.  What fails is tried again a few times.

        Raises
        ------
        Unsupported
            The Python package urllib3 is missing: ``pip install 'isolib[registry]'``.
        ImageNotFound
            The registry has no such image.
        RegistryError
            It cannot be reached, refuses, or does not answer as it should.
        ArchiveError
            What it sends is damaged, too large, another than was asked for, or not known here; nothing of it is kept.
        PlanError
            An argument, or a file of credentials, is no good.
        SyscallError
            The store cannot be written.

        Notes
        -----
        The environment is respected: ``SSL_CERT_FILE``, ``https_proxy``, ``no_proxy``.  Sources:
        `isolib.unionfs.images.registry`.

        Examples
        --------
        >>> store.pull("debian:12", progress=print).layers  # doctest: +SKIP
        """
        wanted = Reference.parse(reference, "reference")
        named = [Reference.parse(name)] if name is not None else [replace(wanted, digest=None)] if wanted.tag else []
        chosen = None if platform is None else Platform.parse(platform)
        seconds = parse_duration(timeout, "timeout")
        if not seconds:
            raise PlanError("timeout: more than no time is needed")
        known, plain = check_credentials(credentials), check_insecure(insecure)
        self._check_open()
        records = self._records
        with records.area() as area, Registry(wanted, known, plain, seconds) as registry:
            pulled = Puller(records, area, registry, limits or tar.Limits(), progress).pull(wanted, chosen, named)
        return opened_image(records, pulled.digest)

    def images(self) -> tuple[Image, ...]:
        """Return the images, the newest first; those that do not say when they were made last."""
        self._check_open()
        found = [*self._opened()]
        dated = [(image.config.created, image) for image in found if image.config.created is not None]
        dated.sort(key=itemgetter(0), reverse=True)
        return (*(image for _, image in dated), *(image for image in found if image.config.created is None))

    def _opened(self) -> Iterator[Image]:
        for digest in self._records.images():
            try:
                yield opened_image(self._records, digest)
            except (ImageNotFound, StoreDamaged):
                if self._records.has_image(digest):  # else it was removed just now
                    raise

    def image(self, name: str) -> Image:
        """Return an image.

        Parameters
        ----------
        name
            A name, the digest of the image or of its manifest, or at least four digits of the beginning of one.

        Raises
        ------
        ImageNotFound
            There is none, or several are meant.
        PlanError
            It is no name.
        """
        self._check_open()
        return find(self._records, name)

    def remove(self, name: str) -> None:
        """Take an image out of the store, as `Image.remove` does; also one that is damaged, of which there is no `Image`.

        Parameters
        ----------
        name
            As of `image`; `verify` tells the digests of those that are damaged.

        Raises
        ------
        ImageNotFound, PlanError
            As of `image`.
        """
        self._check_open()
        self._records.remove_image(find_digest(self._records, name))

    def checkout(self, image: Image | str | None = None, *, name: str | None = None, quota: int | str | None = None) -> Tree:
        """Make a tree of an image, to be written to.  The image is not changed by it.

        Parameters
        ----------
        image
            An image of this store, or its name.  None: an empty tree.
        name
            What to call the tree, which then stays in the store until it is removed: see `tree`.  Without one it goes when it
            is closed, or is collected when this process has ended.
        quota
            How much may be written, in bytes or as ``"1G"``, where the driver can see to that.

        Raises
        ------
        PlanError
            A tree has this name already.
        Unsupported
            The driver knows no quota here.
        ImageNotFound
            There is no such image.
        SyscallError
            It cannot be made.
        """
        self._check_open()
        room = None if quota is None else parse_size(quota, "quota")
        found = find(self._records, image) if isinstance(image, str) else image
        if found is not None:
            self._records.image(found.digest)
        standing = Standing(None, ()) if found is None else Standing(found.digest, tuple(one.chain_id for one in found.layers))
        return new_tree(Keeper(self._records, self._keep), standing, name, quota=room)

    def tree(self, name: str) -> Tree:
        """Take a tree that was kept.

        Raises
        ------
        ImageNotFound
            There is none of this name.
        SyscallError
            EBUSY: another handle has it, in this process or another.
        """
        self._check_open()
        return open_tree(Keeper(self._records, self._keep), name)

    def trees(self) -> tuple[str, ...]:
        """Return the names of the trees that are kept."""
        self._check_open()
        return tuple(self._records.kept_trees())

    def _keep(self, tree: Tree) -> Tree:
        self._trees.add(tree)
        return tree

    @property
    def _volume_keeper(self) -> VolumeKeeper:
        self._check_open()
        return VolumeKeeper(self._records, self._keep_volume, Keeper(self._records, self._keep))

    def _keep_volume(self, volume: Volume) -> Volume:
        self._volumes.add(volume)
        return volume

    def gc(self, *, unnamed: bool = False) -> Collected:
        """Take away what nothing refers to: layers that no image and no tree needs, and what dead processes have left.

        Volumes stay.

        It can be called at any time, whatever others do with the store.

        Parameters
        ----------
        unnamed
            Whether images without a name go too, but for those from which one with a name was built (`Image.run`).

        Raises
        ------
        StoreDamaged
            Something on record cannot be read, so nobody knows what is needed; nothing was taken.
        """
        self._check_open()
        return collect(self._records, unnamed=unnamed)

    def verify(self, *, contents: bool = True, progress: Callable[[int, int], object] | None = None) -> tuple[Finding, ...]:
        """Look at everything on record, and return what is wrong.

        Contents of files are compared, and what is on record.  Owners, modes and times that somebody has changed in the store's
        own directories are not looked for, nor files that he has added there.

        Parameters
        ----------
        contents
            Whether to make the tar of every layer again, and compare its digest; otherwise only whether all is there.
        progress
            Is told how many layers have been looked at, and how many there are.

        Returns
        -------
        tuple of Finding
            Empty: nothing is wrong.  What was left by processes that were killed is nothing wrong.
        """
        self._check_open()
        return verify(self._records, contents=contents, progress=progress)

    def _release(self) -> None:
        with Rollback() as undo:
            undo.push(self._records.driver.close)
            # What is removed behind is removed by way of the driver's descriptor.
            undo.push(self._records.driver.settle)
            for one in [*self._trees, *self._volumes]:
                undo.push(one.close)

    def _describe(self) -> str:
        return f"{self.path} ({self.driver})"


def _spool(area: Area, path: str) -> BinaryIO:
    with typed(path):
        return TemporaryFile(dir=f"{path}/{area.path}")
