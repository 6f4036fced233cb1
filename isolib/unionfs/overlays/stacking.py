"""Directories laid over one another: a detached overlay mount, made of descriptors from the first moment on.

How layers are named is the kernel's age: by descriptor (``lowerdir+``, Linux 6.13), by a path that leads to one (6.7), all in
one value of fsconfig(2), or in the page that mount(2) takes.  Before 6.15 a layer must belong to the caller's mount namespace,
so a detached one, such as a file system in memory that is attached nowhere, is refused.  Then the mount is made by a thread of
its own, in a mount namespace of its own, where everything is attached that it takes; what it returns is as detached as ever,
and the namespace ends with the thread.  Which of these it is, is found by trying, and remembered.

Options that make of the upper directory the whole of what was written, and nothing but that:

- ``metacopy=off``: a file whose owner or mode was changed is copied whole.  Else the upper directory would hold a file without
  content, worth nothing without the very layer below it.
- ``redirect_dir=nofollow``: a directory of a lower layer that is renamed is copied by who renames it (EXDEV), as on two file
  systems.  Else the upper directory would hold a reference to a path of the lower ones, which no archive can express; and in a
  user namespace the kernel allows nothing else.
- ``index=off``: no hard links into the work directory, whose names are handles of the lower file system's files.  The price:
  one of several names of a file that is written to becomes a file of its own.
- ``volatile`` where what is written lies on disk and is thrown away.  Not in memory, of which nothing is written out anyway:
  the mark that overlayfs makes in the work directory would take a twentieth of the time of a mount.
- ``xino=auto``: numbers of inodes are unique where the file systems leave room for it.  It writes nothing.

Sources: Documentation/filesystems/overlayfs.rst, open_tree(2), mount_setattr(2).
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from errno import EROFS
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from isolib._kernel import assembly, calls
from isolib._kernel.guest import SAFE, inodes_for
from isolib._kernel.handle import Fd
from isolib._kernel.hints import typed
from isolib.errors import SyscallError, from_errno
from isolib.types import IdMap
from isolib.unionfs.disk.copying import copy_tree
from isolib.unionfs.overlays.cloning import clone
from isolib.unionfs.overlays.enclosure import UNKNOWN, enclosed
from isolib.unionfs.overlays.refused import explained

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    Options: TypeAlias = Sequence[tuple[str, str]]

__all__ = ["MAX_LAYERS", "ROOM", "Stack", "Stacked", "open_directory", "stack", "stack_in_memory", "user_xattrs"]

MAX_LAYERS: Final = 500
"""The most lower layers that the kernel takes (OVL_MAX_STACK)."""
ROOM: Final = 256 << 20
"""What a place in memory has room for if nobody says otherwise, in bytes."""

_OPTIONS: Final = (("metacopy", "off"), ("redirect_dir", "nofollow"), ("index", "off"), ("xino", "auto"))
_USER: Final = ("userxattr", "")


def _flat(options: Options) -> bytes:
    return "".join(f"{key}\0{value}\0" for key, value in options).encode()


_IN_MEMORY: Final = _flat(_OPTIONS), _flat((*_OPTIONS, _USER))

#: What overlayfs makes of it when it cannot use the work directory; it says so in the kernel's log alone.
_READ_ONLY: Final = (
    "overlayfs could not make its directories in it, and the mount would be read-only (dmesg tells more): it must be writable "
    "for who mounts, whose ids must be in the id map"
)
_LAST_ID: Final = 2**32 - 2

#: Whether this kernel takes layers as descriptors, of mounts that are attached nowhere: unknown, until one has been made.
_direct: Final[dict[str, bool]] = {}


@dataclass(frozen=True, slots=True)
class Stack:
    """What is laid over one another.

    Attributes
    ----------
    lowers
        Paths of directories, the topmost first.
    upper, work
        Paths of directories that take what is written; None: a place in memory, which is attached nowhere.
    room
        Of that place, in bytes.
    readonly
        There is no upper directory.
    volatile
        Nothing needs to reach the disk: what is written is thrown away.
    attributes
        MOUNT_ATTR_* of the mount.
    id_map
        Which id on disk (``outside``) is which in the mount (``inside``), for every layer on disk.
    ids
        In place of that, for users and for groups: what is ``inside`` on disk is ``outside`` in the mount.
    """

    lowers: tuple[str, ...]
    upper: str | None = None
    work: str | None = None
    room: int = ROOM
    readonly: bool = False
    volatile: bool = False
    attributes: int = 0
    id_map: tuple[IdMap, ...] | None = None
    ids: tuple[tuple[IdMap, ...], tuple[IdMap, ...]] | None = None


class Stacked(NamedTuple):
    """A detached mount, and what belongs to it.

    Attributes
    ----------
    mount
        Its root; it goes when the last descriptor of it is closed.
    upper
        The upper directory, as it lies on disk or in memory; None: there is none.
    space
        The file system in memory that the upper directory lies in; None: it lies on disk.
    """

    mount: Fd
    upper: Fd | None = None
    space: Fd | None = None


class Place(Protocol):
    """Where a mount is made: by the calling thread, or in an `Enclosure`."""

    def admit(self, mount: Fd) -> Fd:
        """Return what layers can be taken from, for a mount that is attached nowhere."""

    def layers(self, paths: Sequence[str], mapped: int, userns: int | None) -> calls.Layers:
        """Open directories, the first ones with their ids mapped."""

    def mount(self, options: Options, lowers: calls.Layers, upper: int, work: int, attributes: int) -> Fd:
        """Make an overlay."""


class _Here:
    """The calling thread, of a kernel that needs no detour."""

    def __init__(self, opened: calls.Layers | None) -> None:
        self._opened = opened

    def admit(self, mount: Fd) -> Fd:
        return mount

    def layers(self, paths: Sequence[str], mapped: int, userns: int | None) -> calls.Layers:
        opened = self._opened
        # What they were asked for is what they are, if nothing had to be merged.
        layers = opened if opened is not None and opened.names == paths else calls.Layers(paths)
        if userns is not None:
            layers.map_ids(mapped, userns)
        return layers

    def mount(self, options: Options, lowers: calls.Layers, upper: int, work: int, attributes: int) -> Fd:
        return calls.new_stack("overlay", options, lowers=lowers, upper=upper, work=work, attributes=attributes)


def user_xattrs() -> bool:
    """Return whether overlayfs must keep its books in user.* attributes here: trusted.* belong to the first user namespace."""
    return not calls.is_in_first_userns()


def needs_deputy() -> bool:
    """Return whether an ordinary user, who may mount nothing, could do so in a user namespace of his own."""
    return not assembly.may_administer() or _is_foreign()


def _is_foreign() -> bool:
    """Return whether the mount namespace belongs to another user namespace than that of the calling thread."""
    own = Fd.take(os.open, "/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    assert own is not None  # noqa: S101 - os.open raises
    with own as mounts:
        try:
            owner = calls.namespace_owner(mounts.fileno())
        except SyscallError:  # EPERM: it is one that this process may not see
            return True
    with owner:
        return not os.path.samestat(os.fstat(owner.fileno()), os.stat("/proc/thread-self/ns/user"))


def remount(mount: Fd, what: str, flag: str) -> None:
    """Make a whole overlay read-only ("ro"), or writable again ("rw")."""
    calls.reconfigure(mount.fileno(), flag, f"overlay {what}")


def open_directory(path: str, *, dir_fd: int | None = None, flags: int = os.O_PATH) -> Fd:
    """Return a directory, open as a place only unless flags say otherwise."""
    with typed(path):
        made = Fd.take(partial(os.open, dir_fd=dir_fd), path, flags | os.O_DIRECTORY | os.O_CLOEXEC)
    assert made is not None  # noqa: S101 - os.open raises
    return made


def stack(wanted: Stack, opened: calls.Layers | None = None) -> Stacked:
    """Make the mount.

    Parameters
    ----------
    wanted
        What it is made of.
    opened
        The lower directories, if they are open already; whatever lies at their paths by then.

    Raises
    ------
    SyscallError
        The kernel refused; the hint says which option or layer it was, as far as that can be told.
    """
    userns = _userns(wanted)
    try:
        if _direct.get("works") is False:
            return enclosed(partial(_build, wanted, userns))
        try:
            made = _build(wanted, userns, _Here(opened))
        except calls.StackRefused as refused:
            if refused.error.errno not in UNKNOWN or "works" in _direct:
                raise
            with suppress(calls.StackRefused):
                made = enclosed(partial(_build, wanted, userns))
                _direct["works"] = False
                return made
            raise
    except calls.StackRefused as refused:
        raise explained(refused, wanted.lowers, wanted.upper) from None
    _direct["works"] = True
    return made


def stack_in_memory(wanted: Stack) -> Stacked | None:
    """Make what is made most often in one call; None: it is another case, or was refused, which the long way explains."""
    if not _direct.get("works") or wanted.id_map is not None or wanted.ids is not None or wanted.upper is not None:
        return None
    if wanted.readonly or len(wanted.lowers) > MAX_LAYERS:
        return None
    made = calls.new_union(wanted.lowers, _IN_MEMORY, wanted.attributes, _flat_space(wanted.room), SAFE)
    return None if made is None else Stacked(*made)


def stack_again(wanted: Stack, made: Stacked) -> Fd:
    """Make another mount of the same directories, those in memory too, with other ids; the first one must be gone."""
    if made.space is None or made.upper is None:
        return stack(wanted).mount
    userns = _userns(wanted)
    with clone(made.space, userns=userns) as space:
        try:
            return _build(wanted, userns, _Here(None), there=space).mount
        except calls.StackRefused as refused:
            raise explained(refused, wanted.lowers, wanted.upper) from None


def _build(wanted: Stack, userns: int | None, place: Place, *, own: int = 0, there: Fd | None = None) -> Stacked:
    """Make a mount; the last ``own`` layers were made here, and have their ids mapped already; ``there`` is its space."""
    lowers = wanted.lowers
    kept: list[Fd] = []  # until the overlay has them
    for most, make in ((2 * MAX_LAYERS - 1, _copied), (MAX_LAYERS, _merged)):
        if len(lowers) > most:
            # Only the oldest can be one: what they delete has nothing below it, for a merged directory shows no whiteouts.
            oldest = Stack(lowers[most - 1 :], readonly=True, room=wanted.room)
            path, fd = make(oldest, userns, place, own)
            lowers, own = (*lowers[: most - 1], path), 1
            kept.append(fd)
    mapped = len(lowers) - own
    space = upper = work = around = None
    if there is not None or wanted.upper is not None:
        upper, work, around = _upper_there(wanted, userns, place, there)
    elif not wanted.readonly or len(lowers) == 1:
        space = _new_space(wanted.room)
        inside = place.admit(space)
        kept.append(inside)
        if wanted.readonly:  # the kernel wants two layers, or an upper one
            os.mkdir("empty", 0o755, dir_fd=inside.fileno())
            lowers = (*lowers, f"{_path_of(inside)}/empty")
        else:
            upper, work = _upper_in_memory(inside)
    layers = place.layers(lowers, mapped, userns)
    try:
        if space is not None and upper is not None:
            copy_attributes(layers.fd(0), upper.fileno())
        options = [*_OPTIONS, *([_USER] if user_xattrs() else [])]
        if wanted.volatile and upper is not None:
            options.append(("volatile", ""))
        numbers = (-1, -1) if upper is None or work is None else (upper.fileno(), work.fileno())
        mount = place.mount(options, layers, *numbers, wanted.attributes)
        if upper is not None and os.fstatvfs(mount.fileno()).f_flag & os.ST_RDONLY:
            raise from_errno("fsconfig", f"overlay workdir {wanted.work or 'in memory'}", EROFS, _READ_ONLY)
    finally:
        layers.close()
        if around is not None:
            around.close()
    return Stacked(mount, upper, space)


def _merged(oldest: Stack, userns: int | None, place: Place, own: int) -> tuple[str, Fd]:
    """Return the path of what layers look like, which is an overlay of its own, and what it hangs on."""
    fd = place.admit(_build(oldest, userns, place, own=own).mount)
    return _path_of(fd), fd


def _copied(oldest: Stack, userns: int | None, place: Place, own: int) -> tuple[str, Fd]:
    """Return the same, as a copy in memory: of overlays, no more than two lie on one another."""
    fd = place.admit(_new_space(oldest.room))
    os.mkdir("all", 0o755, dir_fd=fd.fileno())
    with (
        _build(oldest, userns, place, own=own).mount as merged,
        open_directory(".", dir_fd=merged.fileno(), flags=os.O_RDONLY) as source,
        open_directory("all", dir_fd=fd.fileno(), flags=os.O_RDONLY) as target,
    ):
        copy_tree(source, target, "the oldest layers, merged in memory")
    return f"{_path_of(fd)}/all", fd


def _path_of(fd: Fd) -> str:
    return f"/proc/self/fd/{fd.fileno()}"


def _userns(wanted: Stack) -> int | None:
    if wanted.ids is not None:
        users, groups = map(_with_own, wanted.ids)
        return assembly.userns_fd(users, groups)
    if wanted.id_map is None:
        return None
    # The kernel looks an id on disk up as one inside of that namespace (mount_setattr(2), MOUNT_ATTR_IDMAP).
    ranges = tuple(IdMap(one.outside, one.inside, one.count) for one in wanted.id_map)
    return assembly.userns_fd(ranges, ranges)


def _with_own(ids: tuple[IdMap, ...]) -> tuple[IdMap, ...]:
    """Return a map with a place for root, who mounts, and so makes whiteouts, and files before they get their owners.

    On disk these have the last id that there is, which is nobody's.
    """
    return ids if any(one.outside == 0 for one in ids) else (*ids, IdMap(_LAST_ID, 0))


def _new_space(room: int) -> Fd:
    return calls.new_stack("tmpfs", _space_options(room), attributes=SAFE)


def _space_options(room: int) -> Options:
    return ("size", str(room)), ("nr_inodes", str(inodes_for(room))), ("mode", "700")


@lru_cache(maxsize=8)
def _flat_space(room: int) -> bytes:
    return _flat(_space_options(room))


def _upper_in_memory(space: Fd) -> tuple[Fd, Fd]:
    os.mkdir("upper", 0o755, dir_fd=space.fileno())
    os.mkdir("work", 0o700, dir_fd=space.fileno())
    return _upper_of(space)


def _upper_of(space: Fd) -> tuple[Fd, Fd]:
    return open_directory("upper", dir_fd=space.fileno()), open_directory("work", dir_fd=space.fileno())


def _upper_there(wanted: Stack, userns: int | None, place: Place, there: Fd | None) -> tuple[Fd, Fd, calls.Layers | None]:
    """Return the two directories, and the mount that they are in, where that is one of ours."""
    if there is not None:
        return (*_upper_of(there), None)
    upper, work = wanted.upper or "", wanted.work or ""
    if userns is None:
        return open_directory(upper), open_directory(work), None
    # For the kernel both must be below one mount, so what is mapped is a clone of what both lie in.
    upper, work = _real(upper), _real(work)
    above = os.path.commonpath([upper, work])
    both = place.layers([above], 1, userns)
    return (
        open_directory(os.path.relpath(upper, above), dir_fd=both.fd(0)),
        open_directory(os.path.relpath(work, above), dir_fd=both.fd(0)),
        both,
    )


def _real(path: str) -> str:
    """Return a path without links; as it is where it leads through a descriptor of a mount that is attached nowhere."""
    found = os.path.realpath(path)
    return found if os.path.exists(found) and os.path.samefile(found, path) else path


def copy_attributes(source: int, target: int) -> None:
    """Give a directory the owner, mode, attributes and times of another one, as far as they can be had here.

    Parameters
    ----------
    source, target
        Descriptors, which may be open as places only.
    """
    status, old = os.fstat(source), os.fstat(target)
    path, there = f"/proc/self/fd/{source}", f"/proc/self/fd/{target}"
    if (old.st_uid, old.st_gid) != (status.st_uid, status.st_gid):
        with suppress(OSError):  # an id that is not mapped here
            os.chown(there, status.st_uid, status.st_gid)
    if old.st_mode != status.st_mode:
        os.chmod(there, stat.S_IMODE(status.st_mode))
    for name in os.listxattr(path):
        if not name.startswith(("trusted.overlay.", "user.overlay.")):
            with suppress(OSError):  # one of the kind that this process may not set, or the file system does not have
                os.setxattr(there, name, os.getxattr(path, name))
    os.utime(there, ns=(status.st_atime_ns, status.st_mtime_ns))
