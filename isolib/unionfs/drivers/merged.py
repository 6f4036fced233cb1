"""What drivers share whose layers and trees are whole copies, however a copy is made there.

A tree ``trees/NAME`` holds its *state* as it is ``now``, its ``snapshots``, which are states too, and its ``quota``.  A state
is a directory with a ``root`` and with the names of the layers ``below`` it.  One that is to come is made aside, and takes the
place of the present one by an exchange: the tree is at no time without a state.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from isolib.errors import PlanError
from isolib.unionfs.disk.compare import difference
from isolib.unionfs.drivers.base import Form
from isolib.unionfs.drivers.directories import DirectoryDriver, check_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet

    from isolib._kernel.handle import Fd
    from isolib.unionfs.entry import Pieces

__all__ = ["MergedDriver"]


class MergedDriver(DirectoryDriver):
    """A driver of the form MERGED."""

    # How a driver makes roots; paths are relative to its directory

    @abstractmethod
    def _new_root(self, path: str) -> None:
        """Make an empty root."""

    @abstractmethod
    def _copy_root(self, source: str, target: str, quota: int | None = None) -> None:
        """Make a root that is as another one is."""

    def _limit(self, root: str, quota: int) -> None:
        """Set how many bytes of its own a root may have."""

    def _within(self, old: Fd, new: Fd) -> AbstractSet[int] | None:  # noqa: ARG002 - for those that know
        """Return the inodes of a tree that are perhaps not as in a layer, with the directories above them: see `difference`."""
        return None

    @property
    def form(self) -> Form:
        """MERGED."""
        return Form.MERGED

    def _found(self, root: str, below: Sequence[str], quota: int | None = None) -> None:
        if below:
            self._copy_root(f"layers/{check_name(below[-1])}/root", root, quota)
        else:
            self._new_root(root)
            if quota is not None:
                self._limit(root, quota)

    # States

    def _below(self, state: str) -> list[str]:
        return self._place.read(f"{state}/below").split()

    def _quota(self, tree: str) -> int | None:
        text = self._place.read(f"trees/{tree}/quota")
        return int(text) if text else None

    def _existing(self, tree: str) -> str:
        """Return the path of a tree, which there is."""
        path = f"trees/{check_name(tree)}"
        self._place.open(path).close()
        return path

    # Trees

    def new_tree(self, tree: str, below: Sequence[str], *, quota: int | None = None) -> None:
        check_name(tree)
        if quota is not None:
            self._check_quota(quota)
        with self._place.making() as new:
            self._place.make(f"{new}/now")
            self._found(f"{new}/now/root", below, quota)
            self._put_tree(new, tree, below, quota)

    def fork(self, tree: str, new: str) -> None:
        check_name(new)
        path, quota = self._existing(tree), self._quota(tree)
        with self._place.making() as made:
            self._place.make(f"{made}/now")
            self._copy_root(f"{path}/now/root", f"{made}/now/root", quota)
            self._put_tree(made, new, self._below(f"{path}/now"), quota)

    def _check_quota(self, quota: int) -> None:
        if quota <= 0:
            raise PlanError(f"quota={quota}: a number of bytes is wanted")

    def _put_tree(self, made: str, tree: str, below: Sequence[str], quota: int | None) -> None:
        self._place.write(f"{made}/now/below", "\n".join(below))
        if quota is not None:
            self._place.write(f"{made}/quota", str(quota))
        self._place.make(f"{made}/snapshots")
        self._place.put(made, f"trees/{tree}")

    def mount(self, tree: str) -> Fd:
        return self._open_root(f"trees/{check_name(tree)}/now/root")

    def release(self, tree: str) -> None:
        """Do nothing: a plain directory needs nothing beside its descriptor."""

    def changed(self, tree: str) -> Pieces:
        return self._changed(tree, self._below(f"{self._existing(tree)}/now"))

    def _changed(self, tree: str, below: list[str]) -> Pieces:
        with self.mount(tree) as new:
            if below:
                with self.open_layer(below[-1]) as old:
                    yield from difference(old.fileno(), new.fileno(), self._within(old, new))
            else:
                with self._place.making() as empty, self._place.open(empty) as old:
                    yield from difference(old.fileno(), new.fileno())

    def commit(self, tree: str, layer: str) -> None:
        check_name(layer)
        now = f"{self._existing(tree)}/now"
        with self._place.making() as new:
            self._copy_root(f"{now}/root", f"{new}/root")
            self._freeze(f"{new}/root")
            self._place.move(new, f"layers/{layer}")  # if there is one of this name, that is it
        self._place.write(f"{now}/below", "\n".join([*self._below(now), layer]))

    def snapshot(self, tree: str, snapshot: str) -> None:
        check_name(snapshot)
        path = self._existing(tree)
        with self._place.making() as new:
            self._copy_root(f"{path}/now/root", f"{new}/root")
            self._freeze(f"{new}/root")
            self._place.write(f"{new}/below", self._place.read(f"{path}/now/below"))
            self._place.put(new, f"{path}/snapshots/{snapshot}")

    def reset(self, tree: str, snapshot: str | None = None) -> None:
        path, quota = self._existing(tree), self._quota(tree)
        state = f"{path}/now" if snapshot is None else f"{path}/snapshots/{check_name(snapshot)}"
        below = self._below(state)
        with self._place.making() as new:
            if snapshot is None:
                self._found(f"{new}/root", below, quota)
            else:
                self._copy_root(f"{state}/root", f"{new}/root", quota)
            self._place.write(f"{new}/below", "\n".join(below))
            self._place.exchange(new, f"{path}/now")

    def snapshots(self, tree: str) -> set[str]:
        return self._place.names(f"{self._existing(tree)}/snapshots")
