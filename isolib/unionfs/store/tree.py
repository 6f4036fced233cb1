"""Trees: an image that can be written to, or nothing that can be."""

from __future__ import annotations

import fcntl
import os
import re
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from errno import EBUSY
from threading import RLock
from typing import TYPE_CHECKING, Final, NamedTuple

from isolib._kernel.handle import Handle, Rollback
from isolib.errors import ClosedError, ImageNotFound, PlanError, SyscallError
from isolib.unionfs.archive import tar
from isolib.unionfs.archive.recipe import Recorder
from isolib.unionfs.archive.streams import DigestWriter, chain_id
from isolib.unionfs.disk.times import limit_times
from isolib.unionfs.entry import Kind, Layer
from isolib.unionfs.images.config import History, ImageConfig, Platform, derive, new_config
from isolib.unionfs.images.documents import dump
from isolib.unionfs.images.images import opened_image
from isolib.unionfs.images.references import Reference
from isolib.unionfs.rooted import Rooted, ids_of, kind_at
from isolib.unionfs.stays import Stay, Stays
from isolib.unionfs.store.changes import changes
from isolib.unionfs.store.layers import RecipeFile
from isolib.unionfs.store.locks import try_lock
from isolib.unionfs.store.records import LayerRecord, Standing, TreeRecord, hex_of
from isolib.unionfs.store.recovery import PENDING, finish, move_layer, recover, reset, write_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from isolib._kernel.assembly import Scene
    from isolib._kernel.handle import Fd
    from isolib.unionfs.archive.streams import Writable
    from isolib.unionfs.drivers.base import IdMaps, TreeUsage
    from isolib.unionfs.entry import Change, Piece, Pieces
    from isolib.unionfs.images.images import Image
    from isolib.unionfs.store.areas import Area
    from isolib.unionfs.store.records import Records

__all__ = ["Tree", "check_tree_name", "lend_new", "new_tree", "open_tree"]

_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")


def check_tree_name(name: str, what: str) -> str:
    """Return a name for a tree or a snapshot.

    Raises
    ------
    PlanError
        It is none.
    """
    if not _NAME.fullmatch(str(name)):
        raise PlanError(f"{what}: 1 to 128 letters, digits, '_', '.' and '-', the first a letter or digit, not {name!r}")
    return name


class Keeper(NamedTuple):
    """The store of a tree, as the tree knows it: it is not closed for being forgotten as long as it has trees.

    Attributes
    ----------
    records
        What the store has on record.
    keep
        Has a tree closed when the store is, and returns it.
    """

    records: Records
    keep: Callable[[Tree], Tree]


class Tree(Rooted, Handle, made_by="Store.checkout() or Store.tree()"):
    """A tree that can be written to, above an image that is not changed by it.

    One process has it; its threads may use it together.  What is in it is reached by `path`, or by the descriptor, which stay
    the same as long as it is open.

    As ``root=`` of `isolib.spawn`, `isolib.run` and `isolib.Sandbox` it is the root of any number of processes, one after
    another and at once: what they write is written to it.  What is root's in it is root's inside, whoever that is outside.
    Where the driver is overlay and root has started them in a user namespace, files at `path` belong to who they are outside,
    and cannot be changed there, as long as any of them is in it; while the first comes and the last goes, `path` leads nowhere.
    What is closed while processes are in it stays for them, and goes with the last of them.

    Attributes
    ----------
    name
        What the store calls it.
    kept
        Whether it stays in the store when it is closed, or when the process ends: the trees that were given a name.
    """

    def __init__(self, keeper: Keeper, name: str, record: TreeRecord, lock: Fd) -> None:
        self._keeper = keeper
        self._records = records = keeper.records
        self._record = record
        self._using = RLock()
        self.name = name
        self.kept = record.kept
        self._stays = Stays(records.driver, record.tree, name, self._using)
        super().__init__(records.driver.mount(record.tree))
        self._lock = self._adopt(lock)

    @property
    def path(self) -> str:
        """Where it is: for this process, and for others of the same user as long as this one lives."""
        return f"/proc/{os.getpid()}/fd/{self.fileno()}"

    @property
    def image(self) -> Image | None:
        """The image that it stands on; None: on none, or one that was removed from the store."""
        digest = self._record.standing.image
        try:
            return None if digest is None else opened_image(self._records, digest)
        except ImageNotFound:
            return None

    @property
    def snapshots(self) -> tuple[str, ...]:
        """The names of its snapshots, sorted."""
        self._check_open()
        return tuple(sorted(self._record.snapshots.keys() & self._records.driver.snapshots(self._record.tree)))

    def _changed(self) -> Pieces:
        self._check_open()
        return self._records.driver.changed(self._record.tree)

    def changes(self) -> list[Change]:
        """Return the paths at which it differs from what it stands on, sorted.

        Raises
        ------
        SyscallError
            Something in it cannot be read.
        """
        with self._using:
            return changes(self._records, self._changed(), self._record.standing.below)

    def diff(self, sink: Writable, *, mtime_limit: int | None = None) -> Layer:
        """Write what it changes as a tar: the layer that `commit` would make.

        Parameters
        ----------
        sink
            A file that is open for writing bytes, or anything with ``write``.
        mtime_limit
            Later times become this one, in nanoseconds since 1970.

        Returns
        -------
        Layer
            What was written.  The same changes make the same bytes.
        """
        digest = DigestWriter(sink)
        with self._using:
            tar.write(self._changed(), digest, mtime_limit=mtime_limit)
            top = chain_id(self._top, digest.digest)
        return Layer(digest.digest, top, digest.size)

    @property
    def _top(self) -> str | None:
        below = self._record.standing.below
        return below[-1] if below else None

    def commit(
        self,
        message: str = "",
        *,
        tag: str | None = None,
        config: ImageConfig | None = None,
        created_by: str = "",
        created: datetime | None = None,
        mtime_limit: int | None = None,
    ) -> Image:
        """Make an image of it as it is now: that which it stands on, with what was changed as one layer more.

        Nothing is copied: the changes become the layer, and the tree goes on above it, without changes.  Where nothing has
        changed, the image gets no layer.  Nothing may write to the tree meanwhile: end or freeze what runs in it.

        Parameters
        ----------
        message
            What was done, for the image's history.
        tag
            What to call the image.
        config
            How it is to be run, where that is to change: ``dataclasses.replace(tree.image.config, cmd=("sh",))``.
        created_by
            The command that did it, for the history.
        created
            When; now, if nothing is said.  With a fixed time the same changes make the same image.
        mtime_limit
            Later times become this one, in the tree too, in nanoseconds since 1970.

        Raises
        ------
        PlanError
            ``tag`` is no name.
        SyscallError
            ENOSPC: the disk is full.  The tree has its changes still.
        ArchiveError
            Something is in the tree that no layer can hold: a file whose name begins with ``.wh.``.
        """
        called = None if tag is None else Reference.parse(tag, "tag")
        moment = datetime.now(UTC) if created is None else created
        step = History(moment, created_by, message)
        records, below = self._records, self._record.standing.below
        with self._using, records.area() as area:
            self._check_open()
            limit_times(self.fileno(), self._changed, mtime_limit)
            records.layout.make(f"{area.path}/{PENDING}")
            recipe = RecipeFile(records, area, f"{PENDING}/layer")
            layer = self._written(recipe)
            told = self._config(config, layer, step, moment)
            if layer is None:
                record = records.add_image(area, told, None, [] if called is None else [called])
                self._write(replace(self._record, standing=Standing(record.digest, below)))
                return opened_image(records, record.digest)
            recipe.complete(LayerRecord(layer, self._top))
            records.layout.write(f"{area.path}/{PENDING}/config", told, durable=self.kept)
            promise = {"layer": layer.chain_id, "name": "" if called is None else called.full}
            records.layout.write(f"{area.path}/{PENDING}/commit.json", dump(promise), durable=self.kept)
            self._become(area, layer)
            record = finish(records, area, self.name)
            self._record = records.tree(self.name)
        return opened_image(records, record.digest)

    def _written(self, recipe: RecipeFile) -> Layer | None:
        """Write the recipe of the layer that the changes are; None: there are none."""
        digest = DigestWriter()
        seen = _Seen(self._changed())
        with recipe.writing() as sink:
            tar.write(seen, digest, record=Recorder(sink))
        if not seen.more_than_directories and not self.changes():
            return None
        return Layer(digest.digest, chain_id(self._top, digest.digest), digest.size)

    def _config(self, config: ImageConfig | None, layer: Layer | None, step: History, moment: datetime) -> bytes:
        base = self._record.standing.image
        diff_id = None if layer is None else layer.diff_id
        if base is None:
            host = Platform.host()
            plain = ImageConfig(architecture=host.architecture, variant=host.variant, os=host.os)
            told = replace(config or plain, created=moment)
            return new_config(told, [] if diff_id is None else [diff_id], [replace(step, empty_layer=diff_id is None)])
        told = replace(config or self._records.config(base).config, created=moment)
        return derive(self._records.blob(base), told, diff_id, step)

    def _become(self, area: Area, layer: Layer) -> None:
        """Let the driver make a layer of the changes, and put it on record."""
        records, name = self._records, hex_of(layer.chain_id)
        try:
            with records.locks.layer(name):
                with records.locks.shared():
                    area.rely_on([f"layer:{layer.chain_id}"])
                    there = records.has_layer(layer.chain_id)
                if not there:
                    records.driver.remove_layer(name)  # of somebody who was killed before he could put it on record
                records.layout.move(f"{area.path}/{PENDING}", f"trees/{self.name}/{PENDING}", durable=self.kept)
                records.driver.commit(self._record.tree, name)
                move_layer(records, self.name, layer.chain_id)
        except BaseException:
            recover(records, self.name)
            self._record = records.tree(self.name)
            raise
        self._stays.mount_again(self.fileno())

    # ---- who is in it ----

    def lend(self, scene: Scene) -> Stay:
        """Return a mount for one more process (for the modules that compose; `isolib.spawn` and others take ``root=tree``).

        Raises
        ------
        SyscallError
            EBUSY: a process is in it whose ids are mapped in another way.
        """
        ids = ids_of(scene)
        return Stay(lambda stay: self._stays.enter(stay, ids, self.fileno()), self._stays.leave)

    def own_map(self) -> str | None:
        """Return the id map that a process with this root needs, where it is not the usual one."""
        return self._records.driver.own_map()

    def kind(self, name: str) -> int | None:
        """Return the type of what lies at a name in its top directory; None: nothing."""
        with self._using:  # the descriptor leads to the tree, and not from one mount of it to another
            return kind_at(self.fileno(), name)

    def told(self) -> str:
        """Return what it is, for people."""
        return f"the tree {self.name}, writable"

    def _write(self, record: TreeRecord) -> None:
        write_tree(self._records, self.name, record)
        self._record = record

    def snapshot(self, name: str | None = None) -> str:
        """Keep it as it is now, to come back to by `reset`.

        Parameters
        ----------
        name
            What to call it; otherwise it gets a number.

        Returns
        -------
        str
            The name.

        Raises
        ------
        PlanError
            The name is taken, or none.
        """
        with self._using:
            there = self.snapshots
            if name is None:
                name = next(text for number in range(len(there) + 1) if (text := str(number + 1)) not in there)
            if check_tree_name(name, "name") in there:
                raise PlanError(f"name: there is a snapshot {name!r} already")
            self._write(replace(self._record, snapshots={**self._record.snapshots, name: self._record.standing}))
            self._records.driver.snapshot(self._record.tree, name)
            return name

    def reset(self, snapshot: str | None = None) -> None:
        """Take it back to what it was.

        What was written is removed behind: it takes no longer for more of it.  Descriptors of files in it that are open still
        go to what was.

        Parameters
        ----------
        snapshot
            To when that was taken.  None: to what it stands on, without any change.

        Raises
        ------
        ImageNotFound
            It has no such snapshot.
        """
        with self._using:
            if snapshot is not None and snapshot not in self.snapshots:
                raise ImageNotFound(f"the tree {self.name} has no snapshot {snapshot!r}")
            self._check_open()
            self._stays.check_none()
            if snapshot is not None:
                self._write(replace(self._record, resetting=snapshot))
            self._records.driver.reset(self._record.tree, snapshot)
            if snapshot is not None:
                self._write(reset(self._record))
            self._stays.mount_again(self.fileno())

    def fork(self, *, name: str | None = None) -> Tree:
        """Make another tree that is as this one is now; each goes its own way from then on.

        Parameters
        ----------
        name
            As in `Store.checkout`.
        """
        with self._using:
            self._check_open()
            return _made(self._keeper, self._record.standing, name, self._record.tree)

    def usage(self) -> TreeUsage:
        """Return what it takes up beyond what it stands on."""
        with self._using:
            self._check_open()
            return self._records.driver.usage(self._record.tree)

    def remove(self) -> None:
        """Close it and remove it from the store, also where it is kept."""
        self.kept = False
        self.close()

    def _release(self) -> None:
        self._stays.part(self._lock, self._give_up)

    def _give_up(self, lock: Fd) -> None:
        records = self._records
        records.driver.release(self._record.tree)
        if self.kept:
            # A fork of this process may have the descriptor still.
            fcntl.flock(lock.fileno(), fcntl.LOCK_UN)
            return
        _take_off(records, self.name, self._record.tree)

    def _describe(self) -> str:
        return self.name


class _Seen:
    """Pieces, and whether more than directories was among them."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self.more_than_directories = False

    def __iter__(self) -> Iterator[Piece]:
        for entry, content in self._pieces:
            self.more_than_directories |= entry.kind is not Kind.DIRECTORY
            yield entry, content


def new_tree(keeper: Keeper, standing: Standing, name: str | None, *, quota: int | None = None) -> Tree:
    """Make a tree above layers; see `Store.checkout`."""
    return _made(keeper, standing, name, None, quota=quota)


def _made(keeper: Keeper, standing: Standing, name: str | None, source: str | None, *, quota: int | None = None) -> Tree:
    records = keeper.records
    if name is not None:
        check_tree_name(name, "name")
    called, record, lock = _founded(records, standing, name, source, quota)
    try:
        return keeper.keep(Tree._make(keeper, called, record, lock))
    except BaseException:
        _take_off(records, called, record.tree)
        raise


def _founded(
    records: Records, standing: Standing, name: str | None, source: str | None, quota: int | None
) -> tuple[str, TreeRecord, Fd]:
    """Put a tree into the store; returns its name, its record and its lock."""
    with records.area() as area:
        with records.locks.shared():
            records.hold(area, standing.below, [] if standing.image is None else [standing.image])
        record = TreeRecord(area.fresh(), name is not None, standing)
        try:
            if source is None:
                records.driver.new_tree(record.tree, [*map(hex_of, standing.below)], quota=quota)
            else:
                records.driver.fork(source, record.tree)
            records.layout.write(f"{area.path}/meta.json", record.told(), durable=record.kept)
            with records.locks.shared():
                lock = area.hand_over(f"trees/{name or area.name}", durable=record.kept)
            if lock is None:
                raise PlanError(f"name: the store has a tree {name!r} already")
        except BaseException:
            records.driver.remove_tree(record.tree)
            raise
        return name or area.name, record, lock


def lend_new(records: Records, standing: Standing, ids: IdMaps | None) -> Stay:
    """Lend a tree to one process that is nobody else's, and goes with it; with its ids mapped, see `Driver.lend`."""
    made: list[tuple[str, TreeRecord, Fd]] = []

    def enter(_: Stay) -> Fd:
        made.append(_founded(records, standing, None, None, None))
        return records.driver.lend(made[0][1].tree, ids, only=True)

    def leave(_: Stay) -> None:
        for name, record, lock in made:
            with lock, suppress(ClosedError):  # of a store that was closed before: that is for its next collection
                records.driver.release(record.tree)
                _take_off(records, name, record.tree)
        made.clear()

    return Stay(enter, leave)


def _take_off(records: Records, name: str, tree: str) -> None:
    """Remove a tree; the caller has it.  The collector does not come in between."""
    with records.locks.shared():
        records.layout.unlink(f"trees/{name}/meta.json")
        records.driver.remove_tree(tree)
        records.layout.remove(f"trees/{name}")


def open_tree(keeper: Keeper, name: str) -> Tree:
    """Take a tree that was kept; see `Store.tree`."""
    records = keeper.records
    check_tree_name(name, "name")
    path = f"trees/{name}"
    try:
        directory = records.layout.open(path, os.O_DIRECTORY)
    except FileNotFoundError:
        raise ImageNotFound(f"the store has no tree {name!r}") from None
    with Rollback() as undo:
        undo.adopt(directory)
        if not try_lock(directory.fileno()):
            raise SyscallError(
                "flock", f"{records.layout.path}/{path}", EBUSY, "another handle, perhaps another process's, has this tree"
            )
        # Whoever had it may have removed it before he let it go.
        if not records.layout.holds(f"{path}/meta.json") or not records.tree(name).kept:
            raise ImageNotFound(f"the store has no tree {name!r}")
        recover(records, name)
        tree = Tree._make(keeper, name, records.tree(name), directory)
        undo.dismiss()
        return keeper.keep(tree)
