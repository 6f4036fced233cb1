"""The driver of the kernel's own union file system: a layer is a directory of its changes, and nothing is ever copied.

Beside what `isolib.unionfs.drivers.directories` says:

==========================  =============================================================================
``parts/NAME``              what a tree has written: ``root`` is the upper directory, ``work`` the kernel's
``trees/NAME/now``          the *state* of a tree: what it is made of
``trees/NAME/snapshots/*``  states that it can be taken back to
``empty``                   what lies below a tree that stands on no layer
==========================  =============================================================================

A state is a text: its topmost line names the part that is written to, the others what lies below it, the lowest last: layers,
and parts that are not written to any more.  It changes in one step, when the file is replaced.  A part is named in a state
before it is made, and made by who needs it first, so one that no state names never will be named again, and can be removed.

What was written becomes a layer by a rename; the state that says so is there before, and whoever finds it without the layer
does the rename, for who wrote it was interrupted.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from dataclasses import replace
from errno import EBUSY, EEXIST, ENOENT, EPERM
from functools import partial
from threading import RLock
from typing import TYPE_CHECKING, ClassVar

from isolib._kernel import calls
from isolib._kernel.guest import SAFE
from isolib._kernel.handle import Rollback, home
from isolib._kernel.threads import OwnThread
from isolib.errors import SyscallError, Unsupported, from_errno
from isolib.unionfs.disk.copying import copy_tree
from isolib.unionfs.disk.files import twin
from isolib.unionfs.disk.unpack import unpack
from isolib.unionfs.drivers.base import Form, TreeUsage
from isolib.unionfs.drivers.directories import DirectoryDriver, Home, check_name, discard
from isolib.unionfs.drivers.projects import check_quota, free_project, give_project
from isolib.unionfs.drivers.states import State, new_part
from isolib.unionfs.drivers.usage import usage_of
from isolib.unionfs.overlays import stacking
from isolib.unionfs.overlays.cloning import clone
from isolib.unionfs.overlays.overlay_diff import NO_LIMITS, Changed, ChangedLater
from isolib.unionfs.overlays.stacking import Stack, open_directory, stack
from isolib.unionfs.overlays.uppers import Uppers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from isolib._kernel.handle import Fd
    from isolib.unionfs.drivers.base import IdMaps
    from isolib.unionfs.entry import Pieces

__all__ = ["OverlayDriver"]


class OverlayDriver(DirectoryDriver):
    """Directories, stacked by the kernel.

    Notes
    -----
    A quota takes a home on XFS that is mounted with ``prjquota``, and root of the host: see
    `isolib.unionfs.drivers.projects`.  It bounds what a tree has written since its last commit or reset, and where a snapshot
    or a fork copies nothing, since that; deleting what a layer has takes next to nothing.  Who wants more gets ENOSPC,
    which is what XFS says then.
    """

    name: ClassVar[str] = "overlay"
    maps_whole_trees: ClassVar[bool] = True

    def __init__(self, home: Fd, path: str) -> None:
        super().__init__(home, path)
        self._lock = RLock()
        self._behind: set[OwnThread] = set()
        self._mounts: dict[tuple[object, str], Fd] = {}
        self._lent: dict[tuple[object, str], IdMaps | None] = {}  # and how their ids are mapped

    @classmethod
    def examine(cls, home: int, path: str) -> None:
        """Find out whether an overlay can be mounted and written to there.

        Raises
        ------
        Unsupported
            It cannot.
        """
        with twin(home) as fd:
            place = Home(fd, path)
            try:
                with place.making() as made:
                    _try_out(place, made)
            except OSError as error:
                raise Unsupported(
                    "the overlay driver",
                    f"{path}: {error}",
                    "a directory on ext4, xfs, btrfs or tmpfs that is no overlay itself, CAP_SYS_ADMIN in this user namespace",
                ) from error
            finally:
                place.settle()

    @property
    def form(self) -> Form:
        """OVERLAY, or in a user namespace USER_OVERLAY."""
        return Form.USER_OVERLAY if stacking.user_xattrs() else Form.OVERLAY

    def _found(self, root: str, below: Sequence[str]) -> None:  # noqa: ARG002 - a layer of changes is empty at first
        self._place.make(root)
        with self._place.open(root) as made:
            os.fchmod(made.fileno(), 0o755)

    def _stack(self, wanted: Stack) -> Fd:
        """Make the mount of a tree."""
        return stack(wanted).mount

    def _tidy(self, tree: str, part: str) -> None:
        """See to it that what a tree has written lies in its part as a layer lies on disk."""

    # States

    def _path(self, tree: str, snapshot: str | None = None) -> str:
        path = f"trees/{check_name(tree)}"
        return f"{path}/now" if snapshot is None else f"{path}/snapshots/{check_name(snapshot)}"

    def _state(self, tree: str, snapshot: str | None = None) -> State:
        path = self._path(tree, snapshot)
        text = self._place.read(path)
        if not text:
            raise from_errno("openat", self._place.show(path), ENOENT)
        state = State.of(text)
        if state.sealing:
            self._finish_sealing(state)
            state = replace(state, sealing="")
            self._place.write(path, state.text())
        return state

    def _write(self, tree: str, state: State) -> None:
        self._place.write(self._path(tree), state.text())

    def _finish_sealing(self, state: State) -> None:
        part, layer = f"parts/{state.sealing}", f"layers/{state.layers[0]}"
        try:
            if self._place.has(part) and not self._place.move(part, layer):
                self._place.remove(part)  # there is one of this name, which is the same
        except SyscallError as error:
            if error.errno != ENOENT:  # else another process has done it at this moment
                raise
        with self._place.open(layer) as directory:
            discard(directory.fileno(), "work")
            if state.quota:
                free_project(directory, self._place.show(layer))

    def _layer_path(self, one: str) -> str:
        kind, _, name = one.partition(" ")
        return self._place.show(f"{kind}s/{name}/root")

    def _lowers(self, below: Sequence[str]) -> tuple[str, ...]:
        if below:
            return tuple(map(self._layer_path, below))
        if not self._place.has("empty"):
            with self._place.making() as made:
                with self._place.open(made) as directory:
                    os.fchmod(directory.fileno(), 0o755)
                self._place.move(made, "empty")
        return (self._place.show("empty"),)

    def _merged(self, below: Sequence[str]) -> Fd:
        """Return what layers and parts are together, to be read."""
        lowers = self._lowers(below)
        return open_directory(lowers[0]) if len(lowers) == 1 else self._stack(Stack(lowers, readonly=True))

    def _provide_part(self, state: State) -> str:
        """Make the part that is written to, if nobody has; returns its path."""
        path = f"parts/{state.part}"
        if not self._place.has(path):
            with self._place.making() as made:
                if state.quota:
                    with self._place.open(made) as whole:
                        give_project(whole, state.quota, self._place.show(path))
                self._place.make(f"{made}/root")
                self._place.make(f"{made}/work")
                with open_directory(self._lowers(state.below)[0]) as top, self._place.open(f"{made}/root") as root:
                    stacking.copy_attributes(top.fileno(), root.fileno())
                self._place.move(made, path)
        return path

    # Trees

    def new_tree(self, tree: str, below: Sequence[str], *, quota: int | None = None) -> None:
        """Write down what it is made of; its directories are made when it is mounted."""
        check_name(tree)
        if quota is not None:
            check_quota(self.home, self.path, quota)
        state = State(new_part(), tuple(f"layer {check_name(one)}" for one in reversed(below)), quota=quota or 0)
        self._put_tree(tree, state)

    def _put_tree(self, tree: str, state: State) -> None:
        with self._place.making() as made:
            self._place.make(f"{made}/snapshots")
            self._place.write(f"{made}/now", state.text())
            self._place.put(made, f"trees/{tree}")

    def mount(self, tree: str) -> Fd:
        """Mount it, or return the mount again that it has."""
        with self._lock:
            key = (home(), tree)
            found = self._mounts.get(key)
            if found is None:
                found = self._mounts[key] = self._stack(self._wanted(tree, self._lent.get(key)))
            # What this process made in one that is mapped would belong to nobody who is known to those who have it.
            return twin(found.fileno()) if self._lent.get(key) is None else clone(found, calls.MOUNT_ATTR_RDONLY)

    def _wanted(self, tree: str, ids: IdMaps | None, *, volatile: bool = False) -> Stack:
        """Return what a tree is made of, for one mount at a time."""
        state = self._state(tree)
        part = self._place.show(self._provide_part(state))
        where = self._lowers(state.below), f"{part}/root", f"{part}/work"
        return Stack(*where, attributes=SAFE, ids=ids, volatile=volatile)

    def lend(self, tree: str, ids: IdMaps | None = None, *, only: bool = False) -> Fd:
        """Clone the mount, in which the directories are mapped that it is made of, for overlayfs maps no ids of a mount."""
        key = (home(), tree)
        with self._lock:
            if only:  # what is written there is thrown away, and need not reach the disk before that
                return self._stack(self._wanted(tree, ids, volatile=True))
            if self._lent.get(key) != ids:
                self.release(tree)
            self._lent[key] = ids
            self.mount(tree).close()
            return clone(self._mounts[key])

    def take_back(self, tree: str) -> None:
        """Forget the mount, if it maps ids."""
        with self._lock:
            if self._lent.pop((home(), tree), None) is not None:
                self.release(tree)

    def adopt(self, tree: str, mount: Fd) -> None:
        """Go on with a mount, which is never mounted twice."""
        with self._lock:
            self._mounts.setdefault((home(), tree), mount)

    def release(self, tree: str) -> None:
        """Forget the mount.  What is written to a descriptor of it after that may be in a layer that was made meanwhile."""
        with self._lock:
            self._lent.pop((home(), tree), None)
            self._mounts.pop((home(), tree), None)

    def _frozen(self, tree: str) -> bool:
        """Make the mount of a tree read-only, for everybody who has it; returns False where that cannot be.

        A file is open to be written; or it is of another user namespace (`adopt`).
        """
        mount = self._mounts.get((home(), tree))
        if mount is None:
            return True
        try:
            stacking.remount(mount, tree, "ro")
        except SyscallError as error:
            if error.errno not in {EBUSY, EPERM}:
                raise
            return False
        return True

    # What was written

    def changed(self, tree: str) -> Pieces:
        """Compare what was written, in all its parts, with the layers."""
        state = self._state(tree)
        self._tidy(tree, state.part)
        return self._changed(state, [f"layer {layer}" for layer in state.layers])

    def _changed(self, state: State, below: Sequence[str]) -> Pieces:
        return ChangedLater(partial(self._compared, state, below))

    @contextmanager
    def _compared(self, state: State, below: Sequence[str]) -> Iterator[Changed]:
        with Rollback() as undo:
            written = [undo.adopt(self._place.open(f"{self._provide_part(state)}/root"))]
            written += [undo.adopt(self._place.open(f"parts/{part}/root")) for part in state.parts]
            merged = undo.adopt(self._merged(below))
            yield Changed(Uppers(written, self.form), merged, with_time_of_top=True)

    def commit(self, tree: str, layer: str) -> None:
        """Make the upper directory a layer by a rename; a copy where snapshots lie between, or somebody is writing."""
        check_name(layer)
        with self._lock:
            state, is_still = self._state(tree), self._frozen(tree)
            self._tidy(tree, state.part)
            below = (f"layer {layer}", *(f"layer {one}" for one in state.layers))
            if (home(), tree) in self._lent:
                self._commit_lent(tree, state, layer, below, is_still=is_still)
            elif state.parts or not is_still:
                self._copy_layer(state, layer)
                # Who writes at this moment goes on doing so to his part, which has then what the layer has, and more.
                self._write(tree, replace(state, part=new_part() if is_still else state.part, below=below))
            else:
                self._provide_part(state)
                # From this moment on it is a layer, and `_state` does the rest, here or in another process.
                self._write(tree, replace(state, part=new_part(), below=below, sealing=state.part))
                self._state(tree)
            if is_still and (home(), tree) not in self._lent:
                self._leave_behind(tree, [state.part, *state.parts])

    def _commit_lent(self, tree: str, state: State, layer: str, below: tuple[str, ...], *, is_still: bool) -> None:
        """Make a layer of a copy: those who have the tree go on with their mount, and so with its upper directory."""
        try:
            self._copy_layer(state, layer)
            self._write(tree, replace(state, below=below))
        finally:
            if is_still:
                stacking.remount(self._mounts[home(), tree], tree, "rw")

    def _copy_layer(self, state: State, layer: str) -> None:
        below = [f"layer {one}" for one in state.layers]
        with self._place.making() as made:
            self._place.make(f"{made}/root")
            with self._place.open(f"{made}/root") as root, self._merged(below) as merged:
                unpack(self._changed(state, below), root.fileno(), self.form, lowers=[merged.fileno()], limits=NO_LIMITS)
                with self._place.open(f"{self._provide_part(state)}/root") as top:
                    stacking.copy_attributes(top.fileno(), root.fileno())
            self._place.move(made, f"layers/{layer}")  # if there is one of this name, that is it

    def snapshot(self, tree: str, snapshot: str) -> None:
        """Let the upper directory be below the tree from now on; where that is mounted, a copy of it, for the mount stays."""
        path = self._path(tree, snapshot)
        with self._lock:
            state = self._state(tree)
            if self._place.has(path):
                raise from_errno("renameat2", self._place.show(path), EEXIST)
            with self._shared_part(tree, state) as below:
                self._place.write(path, State("", below).text())

    def fork(self, tree: str, new: str) -> None:
        """Put another tree on the same layers and parts; as with a snapshot."""
        check_name(new)
        with self._lock:
            state = self._state(tree)
            with self._shared_part(tree, state) as below:
                self._put_tree(new, replace(state, part=new_part(), below=below))

    @contextmanager
    def _shared_part(self, tree: str, state: State) -> Iterator[tuple[str, ...]]:
        """Give what a tree is made of, with what was written so far as a part that nobody writes to, for others to stand on."""
        self._tidy(tree, state.part)
        if (home(), tree) not in self._mounts:
            self._provide_part(state)
            below = (f"part {state.part}", *state.below)
            # First: what others stand on is never the part that is written to.
            self._write(tree, replace(state, part=new_part(), below=below))
            yield below
            return
        # A mount cannot be given another upper directory; so its own stays, and a copy is what others stand on.
        part, is_still = new_part(), self._frozen(tree)
        try:
            with self._place.making() as made:
                self._place.make(f"{made}/root")
                self._place.make(f"{made}/work")
                with self._place.open(f"parts/{state.part}/root") as old, self._place.open(f"{made}/root") as new:
                    copy_tree(old, new, self._place.show(f"parts/{part}"))
                self._place.move(made, f"parts/{part}")
                yield (f"part {part}", *state.below)  # meanwhile it is locked, and no sweep takes it for nobody's
        finally:
            if is_still:
                stacking.remount(self._mounts[home(), tree], tree, "rw")

    def reset(self, tree: str, snapshot: str | None = None) -> None:
        """Begin a new upper directory, and remove the other one behind."""
        with self._lock:
            state = self._state(tree)
            below = tuple(f"layer {one}" for one in state.layers)
            if snapshot is not None:
                below = self._state(tree, snapshot).below
            self._write(tree, replace(state, part=new_part(), below=below))
            self._leave_behind(tree, [state.part, *state.parts])

    def snapshots(self, tree: str) -> set[str]:
        """Return the names of the snapshots."""
        self._state(tree)
        return self._place.names(f"trees/{tree}/snapshots")

    def remove_tree(self, tree: str) -> None:
        """Remove what says that it is there, and behind, what no other tree stands on."""
        check_name(tree)
        with self._lock:
            parts: list[str] = []
            for state in self._states(tree):
                parts += [*filter(None, [state.part, state.sealing]), *state.parts]
            self._place.remove(f"trees/{check_name(tree)}")
            self._leave_behind(tree, parts)

    def usage(self, tree: str) -> TreeUsage:
        """Add up what was written, snapshots that it stands on included."""
        state = self._state(tree)
        self._tidy(tree, state.part)
        size = files = 0
        for part in (self._provide_part(state), *(f"parts/{part}" for part in state.parts)):
            with self._place.open(f"{part}/root") as root:
                found = usage_of(root)
            size, files = size + found.size, files + (found.files or 0)
        return TreeUsage(size, files)

    # Leftovers

    def _leave_behind(self, tree: str, parts: Sequence[str]) -> None:
        """Have parts removed that nothing stands on any more, and then the mount of the tree let go: both take their time."""
        mount = self._mounts.pop((home(), tree), None)
        thread = OwnThread("isolib-remover", "the thread that removes")
        work = partial(self._remove_behind, thread, tuple(dict.fromkeys(parts)), mount)
        self._behind.add(thread)
        try:
            thread.start_outside(work)
        except SyscallError:
            work()  # there can be no more threads

    def _remove_behind(self, thread: OwnThread, parts: Sequence[str], mount: Fd | None) -> None:
        try:
            with suppress(OSError):  # it stays, and a sweep will say why
                self._collect(parts)
                self._place.settle()
            if mount is not None:
                mount.close()
        finally:
            self._behind.discard(thread)

    def _collect(self, parts: Sequence[str]) -> None:
        """Remove those of the parts that no state names."""
        used = self._used()
        for part in parts:
            if part not in used:
                self._remove_part(part)

    def _remove_part(self, part: str) -> None:
        path = f"parts/{part}"
        try:
            whole = self._place.open(path)
        except SyscallError as error:
            if error.errno != ENOENT:
                raise
            return
        with whole:
            # Who makes one holds a lock of it until a state names it.
            self._place.remove_unless(path, partial(self._is_used, part))
            if not self._place.has(path):
                free_project(whole, self._place.show(path))

    def _is_used(self, part: str) -> bool:
        return part in self._used()

    def _states(self, tree: str) -> Iterator[State]:
        """Yield the states of a tree, as they stand there; none where there is no such tree."""
        snapshots = self._place.names(f"trees/{tree}/snapshots")
        for path in (f"trees/{tree}/now", *(f"trees/{tree}/snapshots/{one}" for one in snapshots)):
            if text := self._place.read(path):
                yield State.of(text)

    def _used(self) -> set[str]:
        """Return the parts that some state names."""
        used: set[str] = set()
        for tree in self.trees():
            for state in self._states(tree):
                used.update((state.part, state.sealing, *state.parts))
        return used

    def sweep(self) -> None:
        """Finish commits, and remove parts that no state names."""
        for tree in self.trees():
            with suppress(SyscallError):  # it was removed meanwhile
                self._state(tree)
        self._collect(sorted(self._place.names("parts")))
        super().sweep()

    def settle(self) -> None:
        """Wait until what is removed behind is gone."""
        for thread in tuple(self._behind):
            thread.join()
        super().settle()


def _try_out(place: Home, made: str) -> None:
    """Mount an overlay in a directory, and write to it."""
    for name in ("lower", "upper", "work"):
        place.make(f"{made}/{name}")
    with place.open(f"{made}/lower") as lower:
        os.mkdir("directory", dir_fd=lower.fileno())
    where = [place.show(f"{made}/{name}") for name in ("lower", "upper", "work")]
    with stack(Stack((where[0],), where[1], where[2])).mount as mount:
        os.rmdir("directory", dir_fd=mount.fileno())  # leaves a whiteout
        os.mkdir("directory", dir_fd=mount.fileno())  # and this an attribute
