"""Mounts, files and directories of a new root, as frozen values: comparable, hashable, picklable, and checked when made."""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib._kernel.guest import SAFE, Guest, Place, inodes_for
from isolib._kernel.mountapi import kind_in_root
from isolib.errors import PlanError
from isolib.mounts.checks import check_mode, check_room, check_source, check_target
from isolib.mounts.idmap import mount_userns
from isolib.types import check_id_map, check_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolib._kernel.assembly import Scene
    from isolib._kernel.plan import Builder, Slot
    from isolib.types import AnyPath, IdMap

__all__ = ["TMPFS_SIZE", "Bind", "Dir", "File", "Mask", "Mount", "ReadOnly", "Symlink", "Tmpfs"]

TMPFS_SIZE: Final = 256 << 20
"""The size of a `Tmpfs` that is given none, in bytes."""

MAX_FILE: Final = 8 << 20
"""The most that a `File` may hold, in bytes: it travels within the plan."""


def freeze(value: object, **fields: object) -> None:
    """Set fields of a frozen value while it is being made."""
    for name, content in fields.items():
        object.__setattr__(value, name, content)


class Mount(ABC):
    """What every value for ``mounts=`` is."""

    __slots__ = ()

    @abstractmethod
    def add_steps(self, builder: Builder, root: Slot | None, scene: Scene) -> None:
        """Add the steps that attach it beneath a root; None: that of the process's creator."""


@dataclass(frozen=True, slots=True)
class Bind(Mount):
    """A file or directory of the host, shown at a path inside.

    Devices and set-user-id bits have no effect in it, whatever the host's own mount allows (nosuid, nodev).  Flags of the
    host's mount stay; in a user namespace they are locked.

    Parameters
    ----------
    source
        The path on the host; symbolic links in it are followed.  A relative path starts from the working directory of now.
    target
        The path inside, absolute and without ``..``; it is resolved within the root, and made where that is possible.  A file
        goes on a file, a directory on a directory.
    readonly
        Whether nothing can be written through it, nor through any mount below it (mount_setattr(2), AT_RECURSIVE).
    recursive
        Whether what is mounted below the source comes along.  In a user namespace the kernel insists on that where there is
        such a mount, for it may hide something.
    id_map
        A list of IdMap, for users and groups alike: what is ``outside`` on disk appears as ``inside``, and what ``inside``
        makes is ``outside`` on disk; all other ids appear as nobody.  Only for root on the host.

    Raises
    ------
    PlanError
        An argument cannot work.

    Notes
    -----
    Errors at the launch name the path: a source that is missing, a target that leads out of the root or goes through a magic
    link such as ``/proc/self/fd/7``, a mount point that is absent in a read-only place.  A source that root gives is opened
    with root's own rights.  Sources: open_tree(2), mount_setattr(2), move_mount(2), openat2(2).

    Examples
    --------
    >>> Bind("/usr/share/zoneinfo", "/data//zones")
    Bind(source='/usr/share/zoneinfo', target='/data/zones', readonly=True, recursive=True, id_map=None)
    """

    source: AnyPath
    target: AnyPath
    _: KW_ONLY
    readonly: bool = True
    recursive: bool = True
    id_map: Sequence[IdMap] | None = None

    def __post_init__(self) -> None:
        freeze(
            self,
            source=check_source(self.source, "source", of="Bind"),
            target=check_target(self.target, "target", of="Bind"),
            id_map=None if self.id_map is None else check_id_map(self.id_map, "Bind: id_map"),
        )

    def add_steps(self, builder: Builder, root: Slot | None, scene: Scene) -> None:
        """Add the steps that attach it."""
        guest = Guest.of(builder, root, scene)
        source, target = os.fsdecode(self.source), os.fsdecode(self.target)
        attributes = SAFE | (calls.MOUNT_ATTR_RDONLY if self.readonly else 0)
        userns = None if self.id_map is None else mount_userns(guest, self.id_map)
        mount = guest.host_tree(source, attributes, recursive=self.recursive, userns=userns)
        if _is_directory(source):
            guest.attach(mount, target, Place("foreign", mount, writable=not self.readonly, source=source))
        else:
            guest.attach(mount, target, Place("file", mount), directory=False)


def _is_directory(path: str) -> bool:
    """Return whether a path of the host leads to a directory; one that is not there is an error of the step that opens it."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except OSError:
        return True


@dataclass(frozen=True, slots=True)
class Tmpfs(Mount):
    """A file system in memory, empty at first, that vanishes with its process.  It belongs to the command's user.

    Parameters
    ----------
    target
        The path inside; made where that is possible.
    size
        The most that its files may hold, in bytes or as "64M"; None: 256 MiB.  The number of files is limited too: to one for
        each 4 KiB of the size.  The memory counts as its writer's.
    mode
        The permission bits of its root directory.

    Raises
    ------
    PlanError
        An argument cannot work.

    Notes
    -----
    Source: tmpfs(5).

    Examples
    --------
    >>> Tmpfs("/scratch", size="64M")
    Tmpfs(target='/scratch', size=67108864, mode=493)
    """

    target: AnyPath
    _: KW_ONLY
    size: int | str | None = None
    mode: int = 0o755

    def __post_init__(self) -> None:
        freeze(
            self,
            target=check_target(self.target, "target", of="Tmpfs"),
            size=None if self.size is None else check_room(self.size, "size", of="Tmpfs"),
            mode=check_mode(self.mode, "mode", of="Tmpfs"),
        )

    def add_steps(self, builder: Builder, root: Slot | None, scene: Scene) -> None:
        """Add the steps that attach it."""
        guest = Guest.of(builder, root, scene)
        size = TMPFS_SIZE if self.size is None else int(self.size)
        options = {"size": str(size), "nr_inodes": str(inodes_for(size)), "mode": f"{self.mode:o}"}
        if guest.gives_away:
            options |= {"uid": str(scene.uid), "gid": str(scene.gid)}
        mount = guest.new_fs("tmpfs", options, SAFE)
        guest.attach(mount, os.fsdecode(self.target), Place("directory", mount))


@dataclass(frozen=True, slots=True)
class Mask(Mount):
    """Something that is to be hidden: a file reads as empty, a directory is empty and read-only.

    Parameters
    ----------
    path
        The path inside; it must exist.

    Raises
    ------
    PlanError
        The path cannot work.

    Notes
    -----
    A file is covered by the host's /dev/null, whose device number is verified; a directory by one empty directory that all
    masks of a root share.  Which of the two it takes is looked up when the plan is made; should it be the other one by then,
    the launch fails, and nothing runs unmasked.

    Examples
    --------
    >>> Mask("/etc/machine-id")
    Mask(path='/etc/machine-id')
    """

    path: AnyPath

    def __post_init__(self) -> None:
        freeze(self, path=check_target(self.path, "path", of="Mask"))

    def add_steps(self, builder: Builder, root: Slot | None, scene: Scene) -> None:
        """Add the steps that attach it."""
        guest = Guest.of(builder, root, scene)
        path = os.fsdecode(self.path)
        if _leads_to_directory(guest, path):
            cover = guest.nothing()
            guest.attach(cover, path, Place("foreign", cover), existing=True)
        else:
            cover = guest.null()
            guest.attach(cover, path, Place("file", cover), directory=False, existing=True)


def _leads_to_directory(guest: Guest, path: str) -> bool:
    """Return what lies at a path of the guest, as far as can be told beforehand; the mount fails if it is the other thing."""
    place, rest = guest.look(path)
    if rest and place.source is not None:
        if guest.host_view and path == os.path.join(place.source, *rest):
            return _is_directory(path)
        return kind_in_root(place.source, "/".join(rest)) == stat.S_IFDIR
    return place.kind in {"directory", "foreign"} and not rest


@dataclass(frozen=True, slots=True)
class ReadOnly(Mount):
    """Something that is to be made read-only, with every mount below it.

    Parameters
    ----------
    path
        The path inside; it must exist.

    Raises
    ------
    PlanError
        The path cannot work.

    Notes
    -----
    It is bound onto itself: open_tree(2), mount_setattr(2) with AT_RECURSIVE.

    Examples
    --------
    >>> ReadOnly("/tmp/input")
    ReadOnly(path='/tmp/input')
    """

    path: AnyPath

    def __post_init__(self) -> None:
        freeze(self, path=check_target(self.path, "path", of="ReadOnly"))

    def add_steps(self, builder: Builder, root: Slot | None, scene: Scene) -> None:
        """Add the steps that attach it."""
        guest = Guest.of(builder, root, scene)
        path = os.fsdecode(self.path)
        place, rest = guest.look(path)
        if rest and place.kind == "directory":
            raise PlanError(f"ReadOnly: {path}: there is nothing of this name")
        spot = guest.find(path, directory=False, existing=True)
        tree = guest.clone_of(spot, "", recursive=True)
        guest.set_attributes(tree, calls.MOUNT_ATTR_RDONLY, recursive=True, what=path)
        guest.attach_onto(tree, spot, "", path)
        guest.note(path, Place("foreign", tree, source=place.source and os.path.join(place.source, *rest)))


@dataclass(frozen=True, slots=True)
class File(Mount):
    r"""A file with this content, which belongs to the command's user and vanishes with the process.

    In a directory that the plan makes, or a file system in memory, it is written there; elsewhere it covers a file that exists.

    Parameters
    ----------
    target
        The path inside.
    data
        The content, at most 8 MiB; a str is written as UTF-8.
    mode
        Its permission bits, without the set-user-id bit and its like.

    Raises
    ------
    PlanError
        An argument cannot work.

    Examples
    --------
    >>> File("/etc/resolv.conf", "nameserver 10.77.0.1\\n")
    File(target='/etc/resolv.conf', data=b'nameserver 10.77.0.1\\n', mode=420)
    """

    target: AnyPath
    data: bytes | str
    _: KW_ONLY
    mode: int = 0o644

    def __post_init__(self) -> None:
        data: object = self.data
        if isinstance(data, str):
            try:
                data = data.encode()
            except UnicodeEncodeError:
                raise PlanError("File: data: this text cannot be written as UTF-8; give bytes") from None
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise PlanError(f"File: data is bytes or str, not {type(data).__name__}")
        content = bytes(data)
        if len(content) > MAX_FILE:
            raise PlanError(f"File: data: {len(content)} bytes; {MAX_FILE} is the most: put it into a file and bind that")
        target = check_target(self.target, "target", of="File")
        freeze(self, target=target, data=content, mode=check_mode(self.mode, "mode", of="File", most=0o777))

    def add_steps(self, builder: Builder, root: Slot | None, scene: Scene) -> None:
        """Add the steps that write or attach it."""
        guest = Guest.of(builder, root, scene)
        target, data = os.fsdecode(self.target), bytes(self.data)  # type: ignore[arg-type]  # checked above
        place, rest = guest.look(target)
        if place.kind == "directory":
            if not rest:
                raise PlanError(f"File: {target}: a directory lies there")
            parent = guest.make(target.rpartition("/")[0] or "/")
            made = parent.below(rest[-1], "file")
            guest.write(made, data, self.mode, what=target)
            guest.own(made, target)
            guest.note(target, made)
            return
        if place.kind == "file" and place.name:
            guest.write(place, data, self.mode, what=target, existing=True)
            return
        content = guest.loose_file(data, self.mode, what=target)
        guest.attach(content, target, Place("file", content), directory=False)


@dataclass(frozen=True, slots=True)
class Dir(Mount):
    """A directory, made with its parents where it is absent; then it belongs to the command's user.

    Parameters
    ----------
    target
        The path inside.
    mode
        Its permission bits when it is made; one that exists keeps its own.

    Raises
    ------
    PlanError
        An argument cannot work, or there is no root of its own to make directories in.

    Examples
    --------
    >>> Dir("/data/in")
    Dir(target='/data/in', mode=493)
    """

    target: AnyPath
    _: KW_ONLY
    mode: int = 0o755

    def __post_init__(self) -> None:
        target = check_target(self.target, "target", of="Dir")
        freeze(self, target=target, mode=check_mode(self.mode, "mode", of="Dir"))

    def add_steps(self, builder: Builder, root: Slot | None, scene: Scene) -> None:
        """Add the steps that make it."""
        guest = Guest.of(builder, root, scene)
        target = os.fsdecode(self.target)
        place, rest = guest.look(target)
        if place.kind == "directory":
            made = guest.make(target, mode=self.mode)
            if rest:
                guest.own(made, target)
            return
        _refuse_host(guest, "Dir", target)
        guest.find(target, directory=True)


@dataclass(frozen=True, slots=True)
class Symlink(Mount):
    """A symbolic link.

    Parameters
    ----------
    target
        Where the link lies inside; nothing else may lie there.
    to
        What it says, relative or absolute; an absolute path is one inside.

    Raises
    ------
    PlanError
        An argument cannot work, or there is no root of its own to make links in.

    Examples
    --------
    >>> Symlink("/usr/bin/python", "python3")
    Symlink(target='/usr/bin/python', to='python3')
    """

    target: AnyPath
    to: AnyPath

    def __post_init__(self) -> None:
        freeze(self, target=check_target(self.target, "target", of="Symlink"), to=check_path(self.to, "Symlink: to"))

    def add_steps(self, builder: Builder, root: Slot | None, scene: Scene) -> None:
        """Add the steps that make it."""
        guest = Guest.of(builder, root, scene)
        target, to = os.fsdecode(self.target), os.fsdecode(self.to)
        place, rest = guest.look(target)
        if not rest:
            raise PlanError(f"Symlink: {target}: something lies there already")
        parent, _, name = target.rpartition("/")
        if place.kind == "directory":
            made = guest.make(parent or "/").below(name, "link")
            guest.add("SYMLINK", fd=made.base, text=made.name, text2=to, what=target)
            guest.note(target, made)
            return
        _refuse_host(guest, "Symlink", target)
        directory = guest.find(parent, directory=True) if parent else guest
        guest.add("SYMLINK", fd=directory, text=name, text2=to, what=target)


def _refuse_host(guest: Guest, what: str, target: str) -> None:
    if guest.scratch is None:
        raise PlanError(
            f"{what}: {target}: it would be made in the host's own file system; give root=, or a Tmpfs above it before"
        )
