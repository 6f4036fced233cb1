"""Stores: images, the layers that they share, and the trees that are made of them, in one directory."""

from __future__ import annotations

import os
from errno import EROFS
from functools import partial
from operator import itemgetter
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, BinaryIO, Final
from weakref import WeakSet

from isolib._kernel.assembly import is_host_root
from isolib._kernel.handle import Fd, Handle, Rollback
from isolib._kernel.hints import typed
from isolib.errors import ArchiveError, ImageNotFound, PlanError, StoreDamaged, Unsupported, from_errno
from isolib.types import check_path, parse_size
from isolib.unionfs import tar
from isolib.unionfs.collecting import collect
from isolib.unionfs.config import Platform
from isolib.unionfs.documents import Document, dump
from isolib.unionfs.drivers import best, driver_class, examine, features
from isolib.unionfs.images import find, opened_image
from isolib.unionfs.layout import PARTS, Layout
from isolib.unionfs.loading import Loader
from isolib.unionfs.locks import Locks, lock
from isolib.unionfs.offers import docker_offers, oci_offers
from isolib.unionfs.records import Records, Standing
from isolib.unionfs.references import Reference
from isolib.unionfs.roots import RootLoader
from isolib.unionfs.sources import SourceKind, opened_source
from isolib.unionfs.tree import Keeper, new_tree, open_tree
from isolib.unionfs.verifying import verify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from isolib.types import AnyPath, Feature
    from isolib.unionfs.areas import Area
    from isolib.unionfs.collecting import Collected
    from isolib.unionfs.images import Image
    from isolib.unionfs.loading import Progress
    from isolib.unionfs.offers import Offer
    from isolib.unionfs.sources import Source
    from isolib.unionfs.tree import Tree
    from isolib.unionfs.verifying import Finding

__all__ = ["Store", "drivers", "open_store"]

VERSION: Final = 1
_FILE: Final = "store.json"
_NEW: Final = "store.json.new"


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


def open_store(path: AnyPath | None = None, *, driver: str | None = None) -> Store:
    r"""Open a store, or make one.

    Parameters
    ----------
    path
        Its directory.  None: ``/var/lib/isolib`` for root of the host; for others ``isolib`` in ``$XDG_DATA_HOME``, or in
        ``~/.local/share`` where that is not set.
    driver
        How a new store keeps layers and trees: ``"overlay"``, ``"btrfs"``, ``"fuse-overlayfs"`` or ``"vfs"``; `drivers` tells
        which of them work.  None: the first that works.  A store keeps to its driver.

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

    A store that can only be read, by its mount or its mode, is opened like any other: images can be looked at and saved, and
    what would change it raises `SyscallError` (EROFS) or `PermissionDenied`.

    What is on record is on disk: files are synced before they get their names.  The contents of layers are written back by
    the kernel in its own time, as with every other program; after a power failure, `Store.verify` tells whether all arrived.

    Examples
    --------
    >>> with open_store("/tmp/isolib-example", driver="vfs") as store:
    ...     with store.checkout() as tree:
    ...         with open(f"{tree.path}/motd", "w") as file:
    ...             _ = file.write("hello\n")
    ...         image = tree.commit("say hello", tag="hello")
    ...     store.image("hello").names
    ('hello:latest',)
    """
    where = os.path.abspath(default_path() if path is None else check_path(path, "path"))
    wanted = None if driver is None else driver_class(driver)
    with typed(where):
        os.makedirs(where, 0o700, exist_ok=True)
        root = Fd(os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    with Rollback() as undo:
        undo.adopt(root)
        layout = Layout(root, where)
        name = _driver_of(layout) or _founded(layout, driver)
        if wanted is not None and wanted.name != name:
            raise PlanError(f"driver: the store {where} has the driver {name!r}, not {driver!r}")
        if layout.may_write():
            for part in PARTS:
                layout.make(part)
        found = driver_class(name)(undo.adopt(layout.open("driver", os.O_DIRECTORY)), f"{where}/driver")
        store = Store._make(Records(layout, Locks(layout), found), root)
        undo.dismiss()
    return store


def _driver_of(layout: Layout) -> str | None:
    """Return the driver of a store; None where there is no store yet."""
    try:
        data = layout.read(_FILE)
    except FileNotFoundError:
        return None
    what = f"{layout.path}/{_FILE}"
    try:
        document = Document.read(data, what)
        version = document.number("version")
        if version > VERSION:
            raise Unsupported(
                f"the store {layout.path}",
                f"this isolib, which knows stores of version {VERSION}; it is of version {version}",
                "a newer isolib",
            )
        name = document.text("driver")
        driver_class(name)
    except (ArchiveError, PlanError) as error:
        raise StoreDamaged(str(error), what) from None
    return name


def _founded(layout: Layout, driver: str | None) -> str:
    """Make a store of an empty directory; return its driver."""
    with lock(layout.root.fileno(), layout.path):
        if (there := _driver_of(layout)) is not None:
            return there
        if others := {*layout.names(".")} - {_NEW}:
            raise PlanError(f"path: the directory {layout.path} is no store, and has {min(others)!r} in it")
        if not layout.may_write():
            raise from_errno(
                "openat", f"{layout.path}/{_FILE}", EROFS, "this process cannot write there, and there is no store yet"
            )
        home = layout.root.fileno()
        if driver is None:
            found = best(home, layout.path)
        else:
            found = driver_class(driver)
            examine(found, home, layout.path)
        layout.write(_NEW, dump({"version": VERSION, "driver": found.name}))
        layout.move(_NEW, _FILE)
        return found.name


class Store(Handle, made_by="open_store()"):
    """Images, the layers that they share, and trees that are made of them, in one directory.

    Closing it closes the trees that were made with it.
    """

    def __init__(self, records: Records, root: Fd) -> None:
        self._records = records
        self._trees: WeakSet[Tree] = WeakSet()
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
            A layer has what this process may not make: devices, for one.

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
                offers = _selected(found, wanted, select, one=called is not None)
                loader = Loader(records, area, most, progress)
                loaded = [loader.load(found.files, offer, called or offer.names) for offer in offers]
            else:
                loaded = [RootLoader(records, area, most, progress).load_root(found, called or [], wanted or Platform.host())]
        return opened_image(records, loaded[0].digest)

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

    def gc(self, *, unnamed: bool = False) -> Collected:
        """Take away what nothing refers to: layers that no image and no tree needs, and what dead processes have left.

        It can be called at any time, whatever others do with the store.

        Parameters
        ----------
        unnamed
            Whether images without a name go too.

        Raises
        ------
        StoreDamaged
            Something on record cannot be read, so nobody knows what is needed; nothing was taken.
        """
        self._check_open()
        return collect(self._records, unnamed=unnamed)

    def verify(self, *, contents: bool = True, progress: Callable[[int, int], object] | None = None) -> tuple[Finding, ...]:
        """Look at everything on record, and return what is wrong.

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
            # What is removed behind is removed by way of the driver's descriptor.
            undo.push(self._records.driver.settle)
            for tree in [*self._trees]:
                undo.push(tree.close)

    def _describe(self) -> str:
        return f"{self.path} ({self.driver})"


def _spool(area: Area, path: str) -> BinaryIO:
    with typed(path):
        return TemporaryFile(dir=f"{path}/{area.path}")


def _selected(found: Source, platform: Platform | None, select: str | None, *, one: bool) -> Sequence[Offer]:
    offers = (oci_offers if found.kind is SourceKind.OCI else docker_offers)(found.files, platform)
    if select is not None:
        offers = [offer for offer in offers if _is_meant(offer, select)]
        if not offers:
            raise ArchiveError(f"there is no image {select!r} in it")
    if one and len(offers) > 1:
        called = ", ".join(str(offer.names[0]) if offer.names else offer.tag or offer.digest for offer in offers)
        raise ArchiveError(f"there are {len(offers)} images in it, and only one can get the name; select one of them: {called}")
    return offers


def _is_meant(offer: Offer, select: str) -> bool:
    if select in {offer.tag, offer.digest, *map(str, offer.names)}:
        return True
    try:
        return Reference.parse(select) in offer.names
    except PlanError:
        return False
