"""The driver of AUFS: a layer is a branch, a directory of its changes, and the kernel alone reads and writes what lies in it.

It goes where a kernel has AUFS, which none of Linux itself has.  States, parts and layers are those of the overlay driver.
What is deleted is marked by files ``.wh.NAME`` and ``.wh..wh..opq``, and files with several names are kept below
``.wh..wh.plnk``: that is AUFS's own business here.  A draft is mounted above its layers and unpacked into like any directory,
and what a tree has changed is told by comparing it with what is mounted below it.  So to the store its form is that of whole
trees.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from isolib._kernel import calls
from isolib._kernel.guest import SAFE
from isolib._kernel.handle import Fd, Rollback
from isolib._kernel.procfs import parse_filesystems
from isolib.errors import PlanError, Unsupported
from isolib.unionfs.disk.compare import difference
from isolib.unionfs.disk.files import twin
from isolib.unionfs.disk.unpack import unpack
from isolib.unionfs.drivers.base import Form
from isolib.unionfs.drivers.directories import Home, check_name
from isolib.unionfs.drivers.overlay import OverlayDriver
from isolib.unionfs.overlays.overlay_diff import NO_LIMITS
from isolib.unionfs.overlays.stacking import Stack, copy_attributes, open_directory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from isolib.unionfs.drivers.states import State
    from isolib.unionfs.entry import Piece

__all__ = ["BRANCHES", "AufsDriver", "branch", "mount_groups", "mount_text"]

#: How many branches AUFS takes as it is configured by default (CONFIG_AUFS_BRANCH_MAX_127).
BRANCHES: Final = 127
_VALUE: Final = 255  # fsconfig(2)
_FEATURE: Final = "the aufs driver"
#: Where AUFS notes inode numbers: not in a branch, which would become a layer, nor where it would be locked up.
_XINO: Final = "/dev/shm/isolib.xino"

Option = tuple[str, str | None]


# ---- what AUFS is told; source: aufs(5) ----


def branch(path: str, mode: str) -> str:
    """Return a branch as AUFS takes it: ``PATH=MODE``; ``rw`` is written to, ``ro+wh`` is not and may hide what is below."""
    if any(sign in path for sign in ":,=\\\n"):
        raise PlanError(f"no path for a branch of AUFS: {path!r}")
    return f"{path}={mode}"


def mount_groups(upper: str | None, lowers: Sequence[str]) -> list[list[Option]]:
    """Return the options of a mount, and of the remounts that bring the branches for which these have no room.

    Parameters
    ----------
    upper
        The branch that is written to; None: there is none.
    lowers
        The others, the topmost first.
    """
    specs = ([] if upper is None else [branch(upper, "rw")]) + [branch(lower, "ro+wh") for lower in lowers]
    if len(specs) > BRANCHES:
        raise PlanError(f"{len(specs)} branches; AUFS takes {BRANCHES}: commit fewer layers, or make one of several")
    first: list[str] = []
    while specs and len(":".join([*first, specs[0]])) <= _VALUE:
        first.append(specs.pop(0))
    # dirperm1: rights of a directory are those of its topmost branch alone.  dio: O_DIRECT works as on the branch.
    flags: list[Option] = [("dio", None), ("xino", _XINO), ("dirperm1", None)]
    groups: list[list[Option]] = [[("br", ":".join(first)), *flags]]
    return groups + [[("append", spec)] for spec in specs]


def mount_text(groups: Sequence[Sequence[Option]]) -> list[str]:
    """Return options as mount(8) takes them: of the mount, and of each remount."""
    texts = [",".join(_option_text(*option) for option in group) for group in groups]
    return [texts[0], *(f"remount,{text}" for text in texts[1:])]


def _option_text(key: str, value: str | None) -> str:
    if value is None:
        return key
    return f"{key}:{value}" if key in {"br", "append"} else f"{key}={value}"


# ---- the driver ----


class AufsDriver(OverlayDriver):
    """Directories, stacked by AUFS.

    Notes
    -----
    Takes a kernel with the patches of AUFS (aufs-standalone), and root of the host.  A link to a file of a lower layer is a
    pseudo-link, which AUFS forgets when the tree is unmounted: the names are files of their own then.  Source: aufs(5).
    """

    name: ClassVar[str] = "aufs"

    @classmethod
    def examine(cls, home: int, path: str) -> None:
        """Find out whether a tree can be mounted and written to there.

        Raises
        ------
        Unsupported
            It cannot.
        """
        remedy = "a kernel with the patches of AUFS (aufs-standalone), modprobe aufs, root of the host; or driver='overlay'"
        if cls.name not in parse_filesystems(Path("/proc/filesystems").read_bytes()):
            raise Unsupported(_FEATURE, "the kernel, which has no aufs in /proc/filesystems", remedy)
        place = Home(twin(home), path)
        try:
            with place.making() as made:
                for name in ("lower", "upper"):
                    place.make(f"{made}/{name}")
                lower, upper = (place.show(f"{made}/{name}") for name in ("lower", "upper"))
                Path(lower, "file").touch()
                with _mounted(Stack((lower,), upper)) as mount:
                    os.unlink("file", dir_fd=mount.fileno())
            place.settle()
        except OSError as error:
            raise Unsupported(_FEATURE, f"{path}: {error}", remedy) from error

    @property
    def form(self) -> Form:
        """MERGED: what deletes, AUFS writes itself."""
        return Form.MERGED

    def _stack(self, wanted: Stack) -> Fd:
        if wanted.ids is not None:
            raise Unsupported(
                "a tree of AUFS as the root of a process in a user namespace of its own",
                "AUFS, which takes no branches with mapped ids",
                "a store with driver='overlay' or 'vfs'; or spawn() without a new user namespace",
            )
        return _mounted(wanted)

    def _merged(self, below: Sequence[str]) -> Fd:
        return _mounted(Stack(self._lowers(below), readonly=True))  # also one alone: it has AUFS's own files in it

    # Layers: each remembers those below it, for it is looked at with them

    def _found(self, root: str, below: Sequence[str]) -> None:
        super()._found(root, below)
        self._remember(os.path.dirname(root), below)

    def _remember(self, directory: str, below: Sequence[str]) -> None:
        self._place.write(f"{directory}/below", "\n".join(map(check_name, below)))

    def _below(self, root: str) -> list[str]:
        names = self._place.read(f"{os.path.dirname(root)}/below").split("\n")
        return [f"layer {name}" for name in reversed(names) if name]

    def _open_root(self, root: str, *, readonly: bool = False) -> Fd:
        self._place.open(root).close()  # or it is told that there is none
        own, lowers = self._place.show(root), tuple(map(self._layer_path, self._below(root)))
        wanted = Stack((own, *lowers), readonly=True) if readonly else Stack(lowers, own, attributes=SAFE)
        with _mounted(wanted) as mount:
            return open_directory(".", dir_fd=mount.fileno(), flags=os.O_RDONLY)

    def _finish_sealing(self, state: State) -> None:
        if self._place.has(f"parts/{state.sealing}"):
            self._remember(f"parts/{state.sealing}", list(reversed(state.layers[1:])))
        super()._finish_sealing(state)

    # What was written

    def _changed(self, state: State, below: Sequence[str]) -> Iterator[Piece]:
        with Rollback() as undo:
            old = undo.adopt(self._merged(below))
            part = self._place.show(f"{self._provide_part(state)}/root")
            new = undo.adopt(_mounted(Stack((part, *self._lowers(state.below)), readonly=True)))
            yield from difference(old.fileno(), new.fileno())

    def _copy_layer(self, state: State, layer: str) -> None:
        below = [f"layer {one}" for one in state.layers]
        with self._place.making() as made:
            self._found(f"{made}/root", list(reversed(state.layers)))
            with self._open_root(f"{made}/root") as root:
                unpack(self._changed(state, below), root.fileno(), self.form, limits=NO_LIMITS)
            with self._place.open(f"{made}/root") as own, self._place.open(f"{self._provide_part(state)}/root") as top:
                copy_attributes(top.fileno(), own.fileno())
            self._place.move(made, f"layers/{layer}")  # if there is one of this name, that is it


@contextmanager
def _short_paths(paths: Sequence[str]) -> Iterator[list[str]]:
    """Give paths without what means something in an option."""
    with Rollback() as undo:
        yield [f"/proc/self/fd/{undo.adopt(open_directory(path)).fileno()}" for path in paths]


def _mounted(wanted: Stack) -> Fd:
    """Make a detached mount."""
    with _short_paths([*([] if wanted.upper is None else [wanted.upper]), *wanted.lowers]) as paths:
        upper = None if wanted.upper is None else paths.pop(0)
        first, *others = mount_groups(upper, paths)
        with Fd(calls.fsopen("aufs")) as context:
            _configure(context, first, calls.FSCONFIG_CMD_CREATE)
            attributes = wanted.attributes | (calls.MOUNT_ATTR_RDONLY if wanted.readonly else 0)
            mount = Fd(calls.fsmount(context.fileno(), attributes))
            try:
                for group in others:
                    _configure(context, group, calls.FSCONFIG_CMD_RECONFIGURE)
            except BaseException:
                mount.close()
                raise
            return mount


def _configure(context: Fd, group: Sequence[Option], command: int) -> None:
    for key, value in group:
        kind = calls.FSCONFIG_SET_FLAG if value is None else calls.FSCONFIG_SET_STRING
        calls.fsconfig(context.fileno(), kind, key, value)
    calls.fsconfig(context.fileno(), command)
