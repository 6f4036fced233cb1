"""Union mounts without a store: directories stacked into one tree, and a place above them for what is written."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from errno import EPERM
from threading import RLock
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from isolib._kernel import calls
from isolib._kernel.handle import Fd, Handle, Rollback
from isolib.errors import PlanError, SyscallError, Unsupported
from isolib.types import MAX_PATH, check_id_map, check_path, parse_size
from isolib.unionfs.disk.files import twin
from isolib.unionfs.drivers.base import Form
from isolib.unionfs.overlays import overlay_diff, proxy, stacking
from isolib.unionfs.overlays.attachment import Attachment
from isolib.unionfs.overlays.lending import Lending
from isolib.unionfs.overlays.stack_checks import check_stack, check_unmarked, lock_upper
from isolib.unionfs.overlays.stacking import Stack
from isolib.unionfs.rooted import Rooted, ids_of, kind_at
from isolib.unionfs.stays import Stay, Stays

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from isolib._kernel.assembly import Scene
    from isolib._kernel.handle import Fd
    from isolib.types import AnyPath, IdMap
    from isolib.unionfs.archive.streams import Writable
    from isolib.unionfs.drivers.base import IdMaps
    from isolib.unionfs.entry import Change
    from isolib.unionfs.overlays.deputy import Deputy
    from isolib.unionfs.overlays.overlay_diff import OverlayStats
    from isolib.unionfs.overlays.stacking import Stacked

__all__ = ["Branch", "OverlayMount", "new_overlay"]

P = ParamSpec("P")
R = TypeVar("R")

_RIGHTS: Final = ("ro+wh", "ro", "rw")


@dataclass(frozen=True, slots=True)
class Branch:
    """A directory of an overlay, and what may happen to it, in the words of AUFS.

    Parameters
    ----------
    path
        The directory.
    rights
        "ro+wh": it is never changed, and what in it is marked as deleted or opaque hides what lies below: a layer.
        "ro": it is never changed, and it is a tree, not a layer.  overlayfs knows no such thing: a character device 0:0, an
        empty file with its attribute ``whiteout`` and a directory with its attribute ``opaque`` always are marks to it.  So the
        whole of the directory is looked through for them, and one that has any is refused.
        "rw": it takes what is written, as ``upper=``; only the topmost can.

    Examples
    --------
    >>> Branch("/srv/base", "ro")
    Branch(path='/srv/base', rights='ro')
    """

    path: AnyPath
    rights: str = "ro+wh"

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", _absolute(self.path, "Branch"))
        if self.rights not in _RIGHTS:
            raise PlanError(f"Branch: rights={self.rights!r}: 'ro+wh', 'ro' or 'rw'")


def _absolute(value: AnyPath, what: str) -> str:
    path = check_path(value, what)
    if path.startswith("/"):
        return path
    try:
        return os.path.join(os.getcwd(), path)
    except FileNotFoundError:
        raise PlanError(f"{what}: {path!r} is relative, and the working directory has been deleted") from None


@dataclass(frozen=True, slots=True)
class _Wish:
    """The arguments of `new_overlay`, checked."""

    stack: Stack
    target: str | None
    trees: tuple[str, ...]

    @property
    def is_plain(self) -> bool:
        """Whether nothing is wanted of it but what it is made of."""
        return self.target is None and not self.trees


def new_overlay(
    *lowers: AnyPath | Branch,
    upper: AnyPath | None = None,
    work: AnyPath | None = None,
    target: AnyPath | None = None,
    size: int | str | None = None,
    readonly: bool = False,
    id_map: Sequence[IdMap] | None = None,
    nosuid: bool = True,
    nodev: bool = True,
    noexec: bool = False,
) -> OverlayMount:
    r"""Lay directories over one another, and mount what that looks like.

    The directories are never changed.  What is written goes to ``upper``, or to a place in memory that vanishes with the mount.
    The mount is detached: it is in nobody's mount table, and reached by its `OverlayMount.path`, by this process and by others
    of the same user.  It goes when it is closed, and when this process ends, however it ends.

    Parameters
    ----------
    *lowers
        Directories, or `Branch`, the topmost first; any number.  The kernel takes 500: of more, the oldest are merged into one
        first, by an overlay of their own.  Of overlays, two can lie on one another: of more than 999, the oldest are copied
        into memory, with room for ``size``.  Each takes two descriptors until the mount is made: RLIMIT_NOFILE, often 1,024.
    upper
        An existing directory that takes what is written.
    work
        With ``upper``: an empty directory on the same file system, for the kernel's own use.
    target
        An existing directory to attach the mount to, as mount(8) does; it is detached again when this is closed, and when this
        process is gone.  Only for who may mount there.
    size
        Of the place in memory, in bytes or as "512M"; 256 MiB if nothing is said.  It has room for as many files as pages.
    readonly
        Nothing can be written, and there is no upper directory.
    id_map
        For each `IdMap`, the ids from ``outside`` on, as they are on disk, are those from ``inside`` on in the mount.  Of every
        directory on disk; only for root on the host.
    nosuid, nodev, noexec
        Whether set-user-id bits, devices and programs have no effect in the mount.

    Returns
    -------
    OverlayMount
        A handle.

    Raises
    ------
    PlanError
        An argument cannot work: one directory twice, ``upper`` without ``work`` or on another file system, a work directory
        that is not empty, a "ro" branch with whiteouts; nothing was done.
    SyscallError
        The kernel refused.
    Unsupported
        There are no overlay mounts for this user here; or an ordinary user asked for ``target`` or ``id_map``.

    Notes
    -----
    Privileges: none where the host allows user namespaces and has Linux 5.11: an ordinary user's mount is made in one, by a
    process that is started for that once.  Files of users that have no id there can be read as far as anybody may, but not
    changed.  Before Linux 6.6, whose tmpfs has no user.* attributes, an ordinary user needs ``upper`` on disk.

    In a directory of a lower layer that is renamed, rename(2) answers EXDEV, as between two file systems, and programs copy it:
    see `isolib.unionfs.overlays.stacking`.

    Sources: Documentation/filesystems/overlayfs.rst, mount_setattr(2).

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as lower, new_overlay(lower) as merged:
    ...     with open(f"{merged.path}/motd", "w") as file:
    ...         _ = file.write("hello\n")
    ...     [(change.path, change.kind.value) for change in merged.changes()]
    [('/motd', 'added')]
    """
    wish = _checked(
        lowers, upper, work, target, size, readonly=readonly, id_map=id_map, nosuid=nosuid, nodev=nodev, noexec=noexec
    )
    return OverlayMount._make(wish)


def _checked(
    lowers: Sequence[AnyPath | Branch],
    upper: AnyPath | None,
    work: AnyPath | None,
    target: AnyPath | None,
    size: int | str | None,
    *,
    readonly: bool,
    id_map: Sequence[IdMap] | None,
    nosuid: bool,
    nodev: bool,
    noexec: bool,
) -> _Wish:
    paths = _plain_paths(lowers)
    trees: tuple[str, ...] = ()
    if paths is None:
        paths, trees, upper = _branches(lowers, upper)
    if (upper is None) != (work is None):
        raise PlanError("new_overlay: upper= and work= are given together: work is an empty directory on upper's file system")
    if readonly and upper is not None:
        raise PlanError("new_overlay: readonly=True has no upper directory")
    room = stacking.ROOM if size is None else parse_size(size, "new_overlay: size")
    if room < 1:
        raise PlanError("new_overlay: size=0 would be, for the kernel, no limit")
    attributes = (calls.MOUNT_ATTR_NOSUID if nosuid else 0) | (calls.MOUNT_ATTR_NODEV if nodev else 0)
    attributes |= calls.MOUNT_ATTR_NOEXEC if noexec else 0
    stack = Stack(
        paths,
        None if upper is None else _absolute(upper, "new_overlay: upper"),
        None if work is None else _absolute(work, "new_overlay: work"),
        room=room,
        readonly=readonly,
        attributes=attributes,
        id_map=None if id_map is None else check_id_map(id_map, "new_overlay: id_map"),
    )
    where = None if target is None else _absolute(target, "new_overlay: target")
    return _Wish(stack, where, trees)


def _plain_paths(lowers: Sequence[AnyPath | Branch]) -> tuple[str, ...] | None:
    """Return them if all are absolute paths that nothing is to be done to: nearly always, and of hundreds at once."""
    try:
        paths: tuple[str, ...] = tuple(lowers)  # type: ignore[arg-type]  # others are no text
        whole = os.fsencode("\0".join(paths))
    except (TypeError, UnicodeEncodeError):
        return None
    each = whole.split(b"\0")
    is_plain = len(each) == len(paths) and all(one[:1] == b"/" for one in each) and max(map(len, each)) <= MAX_PATH
    return paths if is_plain else None


def _branches(
    lowers: Sequence[AnyPath | Branch], upper: AnyPath | None
) -> tuple[tuple[str, ...], tuple[str, ...], AnyPath | None]:
    """Return their paths, those of them that are trees, and the upper directory."""
    branches = [
        (os.fsdecode(one.path), one.rights) if isinstance(one, Branch) else (_absolute(one, "lower"), "") for one in lowers
    ]
    if branches and branches[0][1] == "rw":
        if upper is not None:
            raise PlanError("new_overlay: a branch to write to and upper= are the same, and were both given")
        upper = branches.pop(0)[0]
    if any(rights == "rw" for _, rights in branches):
        raise PlanError("new_overlay: overlayfs writes to the topmost directory alone, which is the first")
    if not branches:
        raise PlanError("new_overlay: at least one lower directory is wanted")
    return tuple(path for path, _ in branches), tuple(path for path, rights in branches if rights == "ro"), upper


class OverlayMount(Rooted, Handle, made_by="new_overlay()"):
    """A union of directories, mounted.

    As ``root=`` of `isolib.spawn`, `isolib.run` and `isolib.Sandbox` it is the root of any number of processes, one after
    another and at once.  What is root's on disk is root's inside, if root has started them and has given no ``id_map=`` here;
    then files belong at `path` to who they are outside, and cannot be changed there, as long as any of them is in it.  An
    ordinary user's processes have the id map of the mount if they are given no other.

    Attributes
    ----------
    lowers
        The paths of the directories, the topmost first.
    target
        Where it is attached, or None.
    """

    def __init__(self, wish: _Wish) -> None:
        self._stack = wish.stack
        self.lowers = wish.stack.lowers
        self.target = wish.target
        self._undo: Rollback | None = None
        self._below: Fd | None = None
        self._using = RLock()
        self._stays: Stays | None = None
        self._deputy: Deputy | None = None
        lock: Fd | None = None
        made = stacking.stack_in_memory(wish.stack) if wish.is_plain else None
        if made is None:
            with check_stack(wish.stack) as layers:
                lock = None if wish.stack.upper is None else lock_upper(wish.stack.upper)
                made = self._stacked(wish, layers)
        super().__init__(made.mount)
        self._made = made
        self._lock = None if lock is None else self._adopt(lock)
        self._upper = None if made.upper is None else self._adopt(made.upper)
        if made.space is not None:
            self._adopt(made.space)
        if wish.target is not None:
            with Rollback() as undo:
                self._undo = undo
                attachment = Attachment(made.mount)
                undo.push(attachment.detach)
                attachment.attach(wish.target)
                undo.keep()

    def _stacked(self, wish: _Wish, layers: calls.Layers) -> Stacked:
        wanted = wish.stack
        _check_rights(wish)
        for path in wish.trees:
            self._do(check_unmarked, path)
        try:
            return stacking.stack(wanted, layers)
        except SyscallError as error:
            # Whoever may not even begin to: it is no matter of one layer.
            if (error.op, error.errno) != ("fsopen", EPERM) or not stacking.needs_deputy():
                raise
        made, self._deputy = proxy.stack_by_deputy(wanted)
        return made

    def _do(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Do what takes the rights over the files in the mount."""
        if self._deputy is not None:
            return self._deputy.call(function, *args, **kwargs)
        return function(*args, **kwargs)

    # ---- where it is ----

    @property
    def path(self) -> str:
        """Where its files are, for this process and for others of this user while this one lives.

        The target, if it has one, else ``/proc/PID/fd/NUMBER``.
        """
        return self.target or f"/proc/{os.getpid()}/fd/{self.fileno()}"

    @property
    def upper(self) -> str | None:
        """Where what was written lies, as overlayfs writes it down; None: nothing can be written.

        For looking at only: what is changed there while it is mounted has effects that the kernel does not define.
        """
        if self._upper is None:
            return None
        self._check_open()
        return self._stack.upper or f"/proc/{os.getpid()}/fd/{self._upper.fileno()}"

    @property
    def form(self) -> Form:
        """How the upper directory marks what is deleted."""
        return Form.USER_OVERLAY if self._deputy is not None or stacking.user_xattrs() else Form.OVERLAY

    def _release(self) -> None:
        with self._using:
            if self._stays is not None:
                self._stays.part(self._lock or self._fds[0], lambda _: self._lending.release(""))
        if self._undo is not None:
            self._undo.unwind()

    def _describe(self) -> str:
        more = f" and {len(self.lowers) - 1} more" if len(self.lowers) > 1 else ""
        return f"{self.lowers[0]}{more}" + (f" at {self.target}" if self.target else "")

    # ---- as a root ----

    def lend(self, scene: Scene) -> Stay:
        """Return a mount for one process (for the modules that compose; `isolib.spawn` and others take ``root=overlay``).

        Raises
        ------
        SyscallError
            EBUSY: a process has it whose ids are mapped in another way.
        Unsupported
            Its ids would have to be mapped, and it is attached.
        """
        ids = None if self._deputy is not None or self._stack.id_map is not None else ids_of(scene)
        if ids is not None and self.target is not None:
            raise Unsupported(
                "an attached overlay as the root of a process in a user namespace of its own",
                f"overlayfs, of which only all mounts at once can map ids, that at {self.target} too",
                "new_overlay() without target=, or with id_map=",
            )
        with self._using:
            self._check_open()
            if self._stays is None:
                self._lending = Lending(twin(self.fileno()), self._deputy, self._again)
                self._stays = Stays(self._lending, "", self._describe(), self._using)
            stays = self._stays
        return Stay(lambda stay: stays.enter(stay, ids, self.fileno()), stays.leave)

    def _again(self, ids: IdMaps | None) -> Fd:
        return stacking.stack_again(replace(self._stack, ids=ids), self._made)

    def own_map(self) -> str | None:
        """Return the id map that a process with this root needs: that of the user namespace in which it was mounted."""
        return None if self._deputy is None else self._deputy.id_map

    def kind(self, name: str) -> int | None:
        """Return the type of what lies at a name in its top directory; None: nothing."""
        with self._using:  # the descriptor leads to the tree, and not from one mount of it to another
            return kind_at(self.fileno(), name)

    @property
    def is_writable(self) -> bool:
        """Whether anything can be written to it."""
        return self._upper is not None

    def told(self) -> str:
        """Return what it is, for people."""
        return f"the overlay of {self._describe()}, {'writable' if self.is_writable else 'read-only'}"

    # ---- what was written ----

    def _sides(self) -> tuple[Fd, Fd, Form]:
        """Return the upper directory, what lies below it, merged, and how the upper one is written."""
        self._check_open()
        if self._upper is None:
            raise PlanError(f"{self!r} is read-only: nothing was written")
        if self._below is None:
            self._below = self._adopt(self._lower_side())
        return self._upper, self._below, self.form

    def _lower_side(self) -> Fd:
        if len(self.lowers) == 1 and self._stack.id_map is None:
            return stacking.open_directory(self.lowers[0])
        wanted = Stack(self.lowers, readonly=True, id_map=self._stack.id_map)
        return (stacking.stack(wanted) if self._deputy is None else proxy.stack_by_deputy(wanted)[0]).mount

    def changes(self) -> list[Change]:
        """Return what is different from the lower directories, sorted by path.

        A file that was opened to be written and is as it was, byte for byte, is none; a directory is one only if its own owner,
        mode or attributes have changed.  What is in a directory that was deleted is not listed.
        """
        return self._do(overlay_diff.changes, *self._sides())

    def diff(self, file: Writable) -> int:
        """Write what is different as a layer tar of the OCI image specification, the same bytes for the same changes.

        Parameters
        ----------
        file
            A binary file, open for writing.

        Returns
        -------
        int
            How many bytes were written.
        """
        upper, below, form = self._sides()
        if self._deputy is None:
            return overlay_diff.write_tar(file, upper, below, form)
        return overlay_diff.write_tar_by(self._deputy, file, upper, below, form)

    def commit(self, directory: AnyPath) -> str:
        """Make a layer of what is different: a new directory, to be a lower one of other overlays.

        Nothing is moved: this mount goes on as it is.  The content of files is shared with the upper directory where the file
        system can do that, else copied.

        Parameters
        ----------
        directory
            Is made, with its content, in one step; must not exist.

        Returns
        -------
        str
            Its path.
        """
        path = _absolute(directory, "commit: directory")
        self._do(overlay_diff.commit, *self._sides(), path)
        return path

    def stats(self) -> OverlayStats:
        """Return how much was copied up from lower directories, made anew and deleted."""
        return self._do(overlay_diff.count, *self._sides())

    def freeze(self) -> None:
        """Make it read-only, for everybody who has it, and write out what is on its way to an upper directory on disk.

        Raises
        ------
        SyscallError
            EBUSY: a file in it is open for writing.
        """
        self._check_open()
        self._do(stacking.remount, self._fds[0], self._describe(), "ro")

    def thaw(self) -> None:
        """Undo `freeze`."""
        self._check_open()
        if self._upper is None:
            raise PlanError(f"{self!r} has no upper directory")
        self._do(stacking.remount, self._fds[0], self._describe(), "rw")


def _check_rights(wish: _Wish) -> None:
    """Say what an ordinary user, who has his mount from a deputy, cannot have."""
    for what, used in (("target=", wish.target), ("id_map=", wish.stack.id_map)):
        if used is not None and stacking.needs_deputy():
            raise Unsupported(
                f"an overlay with {what} for an ordinary user",
                "the kernel: it takes CAP_SYS_ADMIN in the user namespace of the host's mounts",
                f"start as root, or leave {what} out: the mount is used by its path, or in a mount namespace of one's own",
            )
