"""The roots that a process can be given: the host's, none, or a directory with a system in it."""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Final

from isolib._kernel import assembly, calls
from isolib._kernel.guest import ROOM, SAFE, Guest, Place
from isolib._kernel.mountapi import takes_id_map
from isolib._kernel.plan import INSIDE
from isolib.errors import PlanError
from isolib.mounts import cover, host
from isolib.mounts.checks import check_room, check_source
from isolib.mounts.dev import Dev
from isolib.mounts.idmap import tree_userns, work_userns
from isolib.mounts.proc import Proc
from isolib.mounts.table import kernel_mounts
from isolib.mounts.values import freeze

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from isolib._kernel.assembly import Scene
    from isolib._kernel.plan import Builder
    from isolib._kernel.request import MountValue
    from isolib.types import AnyPath

__all__ = ["Root", "enter_with"]

_READ_ONLY: Final = calls.MOUNT_ATTR_RDONLY


class Root(ABC):
    """What ``root=`` takes: `Root.host`, `Root.empty` or `Root.tree`; their values are frozen, comparable and picklable."""

    __slots__ = ()

    @staticmethod
    def host(*, writable: bool = False, room: int | str | None = None) -> Root:
        """Return a root that shows the host's files, with private places where they would be secret or in the way.

        Exactly this is visible:

        - every directory, file and symbolic link at the host's top level, with all that is mounted below, read-only, without
          devices and set-user-id bits; but not /proc, /dev, /sys, /tmp, /run, /root, /home and /lost+found;
        - /tmp, /var/tmp, /run, /root, /home: empty, private, writable, in memory, and gone with the process;
        - in /run the file that /etc/resolv.conf is a link to, if it is one;
        - /proc and /dev as of `Proc` and `Dev`; /sys: an empty directory, for sysfs shows the machine's hardware;
        - the interpreter: `sys.prefix`, `sys.base_prefix`, the user's site-packages if enabled, and the directory of isolib
          itself, read-only, where they would not be seen, because they lie in a private place or are closed to others.  Started
          by root they are id-mapped: files that only root can read are readable in these directories, and in no others.

        Private is also the caller's home where it lies elsewhere (/var/lib/jenkins); hidden is what the host has mounted below
        the visible of proc, sysfs, cgroup and the like.  File permissions hold as ever: started by
        root, the process is nobody on the host; started by a user, it is that user, and reads what the user can read.  Unix
        sockets that lie outside the private places can be connected to, if their permissions allow it.

        Parameters
        ----------
        writable
            The host's files are not made read-only: what the process may write, it writes to the host.
        room
            What the private places may hold together, in bytes or as "64M"; None: 1 GiB.

        Raises
        ------
        PlanError
            An argument cannot work.

        Examples
        --------
        >>> Root.host()
        HostRoot(writable=False, room=1073741824)
        """
        return HostRoot(writable=writable, room=_room(room, "Root.host"))

    @staticmethod
    def empty(*, room: int | str | None = None) -> Root:
        """Return a root with nothing in it but what ``mounts=`` brings; read-only when it is entered.

        Parameters
        ----------
        room
            What `File` values and private places may hold together, in bytes or as "64M"; None: 1 GiB.

        Raises
        ------
        PlanError
            An argument cannot work.

        Examples
        --------
        >>> Root.empty()
        EmptyRoot(room=1073741824)
        """
        return EmptyRoot(room=_room(room, "Root.empty"))

    @staticmethod
    def tree(path: AnyPath, *, writable: bool = False, room: int | str | None = None) -> Root:
        """Return a root that is a directory of the host with a system in it: an unpacked image, a debootstrap tree.

        A private /proc, /dev and /tmp cover those of the tree, where it has such directories or they can be made.  Started by
        root, the tree is id-mapped: what belongs to root on disk belongs to root inside.  It may be hostile: no path in it
        leads out.

        Parameters
        ----------
        path
            The directory.
        writable
            What is written is written to the tree.  Otherwise all is read-only, and mount points must exist in it.
        room
            What /tmp and /dev/shm may hold together, in bytes or as "64M"; None: 1 GiB.

        Raises
        ------
        PlanError
            The path is no directory, or its /proc or /dev is something else than a directory.

        Examples
        --------
        >>> Root.tree("/usr")
        TreeRoot(path='/usr', writable=False, room=1073741824)
        """
        return TreeRoot(path, writable=writable, room=_room(room, "Root.tree"))

    @staticmethod
    def interpreter_directories() -> list[str]:
        """Return the directories of this interpreter's programs, for a PATH inside `Root.host`."""
        return host.programs()

    @abstractmethod
    def add_steps(self, builder: Builder, mounts: Sequence[MountValue], scene: Scene) -> None:
        """Add the steps that build the root, with mounts in it, and enter it."""

    @abstractmethod
    def visible(self) -> list[str]:
        """Return what is seen inside before any mounts: a line for each path."""


def enter_with(guest: Guest, own: Collection[str], mounts: Sequence[MountValue]) -> None:
    """Cover what a tree has of /proc, /dev and /tmp by private ones, where ``own`` says so; add mounts; enter it."""
    values: list[MountValue] = [value for path, value in (("/proc", Proc()), ("/dev", Dev())) if path in own]
    for value in values:
        value.add_steps(guest.builder, guest, guest.scene)
    if "/tmp" in own:
        guest.private("/tmp", 0o1777, plain=True)
    for mount in mounts:
        mount.add_steps(guest.builder, guest, guest.scene)
    guest.enter()


def _room(value: int | str | None, of: str) -> int:
    return ROOM if value is None else check_room(value, "room", of=of)


@dataclass(frozen=True, slots=True)
class EmptyRoot(Root):
    """See `Root.empty`."""

    _: KW_ONLY
    room: int = ROOM

    def add_steps(self, builder: Builder, mounts: Sequence[MountValue], scene: Scene) -> None:
        """Add the steps that build the root, with mounts in it, and enter it."""
        guest = Guest.begin(builder, scene, self.room)
        guest.make_skeleton()
        for mount in mounts:
            mount.add_steps(builder, guest, scene)
        guest.set_attributes(guest, _READ_ONLY, what="/")
        guest.enter()

    def visible(self) -> list[str]:
        """Return what is seen inside before any mounts: nothing."""
        return []


@dataclass(frozen=True, slots=True)
class HostRoot(Root):
    """See `Root.host`."""

    _: KW_ONLY
    writable: bool = False
    room: int = ROOM

    def add_steps(self, builder: Builder, mounts: Sequence[MountValue], scene: Scene) -> None:
        """Add the steps that build the root, with mounts in it, and enter it."""
        if not self.writable and cover.can_cover(mounts, scene):
            self._cover(builder, mounts, scene)
            return
        guest = Guest.begin(builder, scene, self.room)
        guest.make_skeleton()
        guest.host_view = True
        self._show_host(guest)
        guest.make("/sys")
        self._make_private(guest)
        Proc().add_steps(builder, guest, scene)
        Dev().add_steps(builder, guest, scene)
        self._show_interpreter(guest)
        for mount in mounts:
            mount.add_steps(builder, guest, scene)
        guest.set_attributes(guest, _READ_ONLY, what="/")
        guest.enter()

    def _show_host(self, guest: Guest) -> None:
        for entry in host.entries():
            self._show(guest, entry)
        if self.writable:
            guest.set_attributes(guest, SAFE, recursive=True, what="/")
        else:
            # One call for all that is bound so far; the skeleton itself has more to be made in it.
            guest.set_attributes(guest, SAFE | _READ_ONLY, recursive=True, what="/")
            guest.set_attributes(guest, 0, clear=_READ_ONLY, what="/")
        for path in _covered():
            nothing = guest.nothing()
            guest.attach(nothing, path, Place("foreign", nothing), existing=True)

    def _cover(self, builder: Builder, mounts: Sequence[MountValue], scene: Scene) -> None:
        """Build the same root by covering the host's tree where it is."""
        guest = cover.begin(builder, scene, self.room)
        rest = ["/lost+found"] if os.path.isdir("/lost+found") else []
        for path in (*_covered(), *rest):
            nothing = guest.nothing()
            guest.attach(nothing, path, Place("foreign", nothing), existing=True)
        self._make_private(guest)
        Proc().add_steps(builder, guest, scene)
        Dev().add_steps(builder, guest, scene)
        self._show_interpreter(guest)
        for mount in mounts:
            mount.add_steps(builder, guest, scene)
        cover.end(guest)

    def _show(self, guest: Guest, entry: host.Entry) -> None:
        path = "/" + entry.name
        if entry.kind == "link":
            guest.add("SYMLINK", fd=guest, text=entry.name, text2=entry.to, what=path)
            guest.note(path, Place("link", guest, entry.name))
            return
        tree = guest.host_tree(path, 0, recursive=True, phase=INSIDE)
        if entry.kind == "directory":
            guest.attach(tree, path, Place("foreign", tree, writable=self.writable, source=path))
        else:
            guest.attach(tree, path, Place("file", tree), directory=False)

    @staticmethod
    def _make_private(guest: Guest) -> None:
        for path, mode in host.private().items():
            guest.private(path, mode)
        guest.make("/run/lock", mode=0o1777)
        for path in host.linked_files():
            file = guest.host_tree(path, SAFE | _READ_ONLY, recursive=False)
            guest.attach(file, path, Place("file", file), directory=False)

    def _show_interpreter(self, guest: Guest) -> None:
        scene = guest.scene
        userns = work_userns(guest)
        for path in host.interpreter():
            if not (host.is_hidden(path) or (userns is not None and host.is_closed(path))):
                continue
            mapped = userns
            if mapped is not None and not takes_id_map(path, assembly.userns_fd(scene.uid_map, scene.gid_map)):
                mapped = None  # readable as far as its permissions let anybody read
            guest.make_way(path)
            mount = guest.host_tree(path, SAFE | _READ_ONLY, recursive=True, userns=mapped)
            guest.attach(mount, path, Place("foreign", mount, source=path))

    def visible(self) -> list[str]:
        """Return what is seen inside before any mounts: a line for each path."""
        access = "the host's" if self.writable else "the host's, read-only"
        covered = _covered()
        lines = [
            *(f"/{one.name}: {f'a link to {one.to}' if one.kind == 'link' else access}" for one in host.entries()),
            *(f"{path}: hidden" for path in covered),
            *(f"{path}: private, writable, in memory" for path in host.private()),
            *(f"{path}: the host's, read-only" for path in host.linked_files()),
            "/proc: private",
            "/dev: private",
            "/sys: empty",
            *(
                f"{path}: the interpreter's, read-only"
                for path in host.interpreter()
                if host.is_hidden(path) or (assembly.is_privileged() and host.is_closed(path))
            ),
        ]
        return sorted(lines)


def _covered() -> list[str]:
    shown = [f"/{one.name}" for one in host.entries() if one.kind == "directory"]
    return sorted(kernel_mounts(shown))


@dataclass(frozen=True, slots=True)
class TreeRoot(Root):
    """See `Root.tree`."""

    path: AnyPath
    _: KW_ONLY
    writable: bool = False
    room: int = ROOM

    def __post_init__(self) -> None:
        freeze(self, path=check_source(self.path, "path", of="Root.tree"))

    def add_steps(self, builder: Builder, mounts: Sequence[MountValue], scene: Scene) -> None:
        """Add the steps that build the root, with mounts in it, and enter it."""
        path = os.fsdecode(self.path)
        self._check(path)
        guest = Guest.begin(builder, scene, self.room)
        userns = tree_userns(guest, path)
        if userns is not None and not takes_id_map(path, assembly.userns_fd(scene.uid_map, scene.gid_map)):
            userns = None
        guest.take_tree(path, writable=self.writable, userns=userns)
        enter_with(guest, self._own(path), mounts)

    @staticmethod
    def _check(path: str) -> None:
        try:
            mode = os.stat(path).st_mode
        except OSError as error:
            raise PlanError(f"Root.tree: {path}: {error.strerror}") from None
        if not stat.S_ISDIR(mode):
            raise PlanError(f"Root.tree: {path} is no directory; unpack an image first")

    def _own(self, path: str) -> list[str]:
        """Return which of /proc, /dev and /tmp can be covered by private ones."""
        own = []
        for name in ("/proc", "/dev", "/tmp"):
            try:
                mode = os.lstat(path + name).st_mode
            except OSError:
                if self.writable:
                    own.append(name)
                continue
            if stat.S_ISDIR(mode):
                own.append(name)
            elif name != "/tmp":
                raise PlanError(f"Root.tree: {path}{name} is no directory: nothing safe can be mounted there")
        return own

    def visible(self) -> list[str]:
        """Return what is seen inside before any mounts: a line for each path."""
        path = os.fsdecode(self.path)
        access = "writable" if self.writable else "read-only"
        return [f"/: {path} of the host, {access}", *(f"{name}: private" for name in self._own(path))]
