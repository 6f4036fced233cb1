"""The root of a process to come, while its steps are being written.

A `Guest` is the slot of that root, and knows what lies in it: which directories this plan makes itself, and where the content
is somebody else's.  In the first, nothing can be there that the plan has not put there, so mount points are made by name and
mounts attached by name.  In the second, every path is resolved by openat2 with the guest's root as its "/", without magic
links, to a descriptor, and mounts attach to that: whatever an image or another process does to the path meanwhile, the mount
goes where the path led, or nowhere.

One hidden tmpfs, the *scratch*, is made for each root.  The root itself, private directories, upper layers and files are
directories of it: one file system to make and to limit instead of ten.  It is attached while the root is built, because
kernels before 6.15 clone only what is attached, and goes with the old root.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from errno import EEXIST
from typing import TYPE_CHECKING, Final, Literal

from isolib._kernel import calls
from isolib._kernel.plan import COMMAND, HOST, INSIDE, Slot, Step, encode_text
from isolib.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from isolib._kernel.assembly import Scene
    from isolib._kernel.lending import Lender
    from isolib._kernel.plan import Builder

    Kind = Literal["directory", "file", "link", "foreign"]

__all__ = ["ROOM", "SAFE", "Guest", "Place", "inodes_for"]

ROOM: Final = 1 << 30
"""The default size of a scratch in bytes: what all that is written to the private directories of one root may take."""

SAFE: Final = calls.MOUNT_ATTR_NOSUID | calls.MOUNT_ATTR_NODEV
"""What every mount of ours is, those of devices excepted."""

_PATH_ONLY: Final = os.O_PATH
_IN_ROOT: Final = calls.RESOLVE_IN_ROOT | calls.RESOLVE_NO_MAGICLINKS
_CLONE: Final = calls.OPEN_TREE_CLONE | calls.OPEN_TREE_CLOEXEC
_ONTO_NAME: Final = calls.MOVE_MOUNT_F_EMPTY_PATH
_ONTO_FD: Final = calls.MOVE_MOUNT_F_EMPTY_PATH | calls.MOVE_MOUNT_T_EMPTY_PATH
_NULL: Final = 1 << 32 | 3  # the device number of /dev/null


def inodes_for(size: int) -> int:
    """Return the limit on files that goes with a size: one for each page of 4 KiB, the least that content takes."""
    return max(64, size >> 12)


@dataclass(frozen=True, slots=True)
class Place:
    """What lies at a path of the guest.

    Attributes
    ----------
    kind
        A directory that the plan made (or the root of a file system that it made), a file, a symbolic link, or "foreign": a
        directory that is the root of a mount whose content is not known.
    base, name
        Where it is: a slot, and for what the plan made a path below that, without symbolic links.
    writable
        For foreign content: whether a mount point that is absent may be made in it.
    source
        For foreign content: its path on the host, where it has one.
    """

    kind: Kind
    base: Slot
    name: str = ""
    writable: bool = False
    source: str | None = None

    def below(self, name: str, kind: Kind) -> Place:
        return Place(kind, self.base, f"{self.name}/{name}" if self.name else name)


def _is_open(path: str) -> bool:
    try:
        return bool(os.stat(path).st_mode & stat.S_IXOTH)
    except OSError:
        return True  # absent: the step that needs it says so


class Guest(Slot):
    """The root being built: a slot, and what is known to lie in it."""

    __slots__ = (
        "_above",
        "_empty",
        "_known",
        "_names",
        "_where",
        "builder",
        "devices",
        "host_view",
        "in_place",
        "nulls",
        "scene",
        "scratch",
        "skeleton",
    )

    def __init__(self, builder: Builder, scene: Scene) -> None:
        super().__init__("root", declared=False)
        self.builder = builder
        self.scene = scene
        self.scratch: Slot | None = None
        self.skeleton = False
        #: Foreign content lies at the same path as on the host.
        self.host_view = False
        #: The root is the host's tree itself, as the new mount namespace has it, covered where it must not be seen.
        self.in_place = False
        #: Devices that were cloned before the host's /dev was covered, by name.
        self.devices: dict[str, Slot] = {}
        self.nulls: list[Slot] = []  # as devices, to mask with
        self._known: dict[str, Place] = {}
        self._above: set[str] = set()  # paths that something known lies, or lay, below
        self._names = 0
        self._empty: Slot | None = None
        self._where: Slot | None = None
        builder.guest = self
        self.add("UMASK", what="umask")
        builder.add(COMMAND, Step("UMASK", flags=1, what="umask"))

    @classmethod
    def of(cls, builder: Builder, root: Slot | None, scene: Scene) -> Guest:
        """Return the guest that a root value began, or that of a process which keeps its creator's root."""
        if isinstance(root, Guest):
            return root
        if isinstance(builder.guest, Guest):
            return builder.guest
        guest = cls(builder, scene)
        guest.host_view = True
        flags = _PATH_ONLY | os.O_DIRECTORY
        builder.add(INSIDE, Step("OPEN", text=b"/", flags=flags, out=guest, what="/"))
        guest._known["/"] = Place("foreign", guest, source="/")
        return guest

    @classmethod
    def begin(cls, builder: Builder, scene: Scene, room: int = ROOM) -> Guest:
        """Begin a root: makes the scratch; `make_skeleton` or `take_tree` comes next."""
        if "mnt" not in scene.new:
            raise PlanError("root= needs a mount namespace of its own: new={'mnt', ...}; one that is joined has other users")
        guest = cls(builder, scene)
        guest.begin_scratch(room)
        guest.add("MKDIR", fd=guest.scratch, text=b"root", value=0o755, what="new root")
        return guest

    def begin_scratch(self, room: int) -> None:
        """Make the private space."""
        self.scratch = self.new_fs("tmpfs", {"size": str(room), "nr_inodes": str(inodes_for(room))}, SAFE)
        # Lookups go on from the process's own root, which is below this mount, not on it.
        self.add("MOVE_MOUNT", fd=self.scratch, text2=b"/", flags=_ONTO_NAME, what="private space")

    def make_skeleton(self) -> None:
        """Make the root a directory of the scratch."""
        self.clone_of(self.private_space, "root", out=self)
        self.add("MOVE_MOUNT", fd=self, fd2=self.scratch, text2=b"root", flags=_ONTO_NAME, what="new root")
        self.skeleton = True
        self._known["/"] = Place("directory", self)

    def take_tree(self, path: str, *, writable: bool, userns: Slot | None) -> None:
        """Make the root a directory of the host's."""
        attributes = SAFE | (0 if writable else calls.MOUNT_ATTR_RDONLY)
        self.host_tree(path, attributes, recursive=True, userns=userns, out=self)
        self.add("MOVE_MOUNT", fd=self, fd2=self.scratch, text2=b"root", flags=_ONTO_NAME, what="new root")
        self._known["/"] = Place("foreign", self, writable=writable, source=path)

    def borrow(self, lender: Lender, *, writable: bool) -> None:
        """Make the root what somebody lends to each process of the plan; what is written to it he gets back with it."""
        self.builder.borrow(self, lender)
        self.set_attributes(self, SAFE, what="new root")
        self.add("MOVE_MOUNT", fd=self, fd2=self.scratch, text2=b"root", flags=_ONTO_NAME, what="new root")
        self._known["/"] = Place("foreign", self, writable=writable)

    def enter(self) -> None:
        """Make it the root of the process; the old root and the scratch are gone after it (pivot_root(2))."""
        # The old root comes to lie on the new one, and what lies on it is what umount finds: it must be the only thing there.
        self.add("MOVE_MOUNT", fd=self.scratch, text2=b"/proc", flags=_ONTO_NAME, what="private space")
        self.add("FCHDIR", fd=self, what="new root")
        self.add("PIVOT_ROOT", text=b".", text2=b".", what="new root")
        self.add("UMOUNT", text=b".", flags=calls.MNT_DETACH, what="old root")

    # ---- steps ----

    def add(
        self,
        kind: str,
        *,
        fd: Slot | None = None,
        fd2: Slot | None = None,
        flags: int = 0,
        value: int = 0,
        text: str | bytes = b"",
        text2: str | bytes = b"",
        what: str,
        ignore: int = 0,
    ) -> None:
        """Add a step that yields nothing."""
        step = Step(kind, fd, fd2, None, flags, value, encode_text(text), encode_text(text2), ignore=ignore, what=what)
        self.builder.add(INSIDE, step)

    @property
    def private_space(self) -> Slot:
        """The scratch."""
        if self.scratch is None:
            raise AssertionError("a guest with its creator's root has no scratch")
        return self.scratch

    @property
    def source_phase(self) -> str:
        """Where paths of the host are opened: as the caller, where a privileged one's process will be nobody on the host."""
        return HOST if self.scene.privileged and "user" in self.scene.new else INSIDE

    def new_fs(self, kind: str, options: Mapping[str, str], attributes: int) -> Slot:
        """Make a file system: a detached mount."""
        step = Step("FSOPEN", text=kind.encode(), flags=calls.FSOPEN_CLOEXEC, what=kind)
        context = self.builder.produce(INSIDE, step, f"{kind} context")
        for key, value in options.items():
            self.add("FSCONFIG", fd=context, flags=calls.FSCONFIG_SET_STRING, text=key, text2=value, what=f"{kind} {key}")
        return self.finish_fs(context, kind, attributes)

    def finish_fs(self, context: Slot, kind: str, attributes: int) -> Slot:
        """Create the file system that was configured, and return its mount."""
        self.add("FSCONFIG", fd=context, flags=calls.FSCONFIG_CMD_CREATE, what=kind)
        step = Step("FSMOUNT", fd=context, flags=calls.FSMOUNT_CLOEXEC, value=attributes, what=kind)
        return self.builder.produce(INSIDE, step, kind)

    def clone_of(self, base: Slot, name: str, *, recursive: bool = False, out: Slot | None = None) -> Slot:
        """Clone what lies below a slot that this plan made, as a detached mount."""
        flags = _CLONE | (0 if name else calls.AT_EMPTY_PATH) | (calls.AT_RECURSIVE if recursive else 0)
        slot = out or Slot(name or base.label, declared=False)
        self.builder.add(
            INSIDE, Step("OPEN_TREE", fd=base, text=encode_text(name), flags=flags, out=slot, what=name or base.label)
        )
        return slot

    def host_tree(
        self,
        path: str,
        attributes: int,
        *,
        recursive: bool,
        userns: Slot | None = None,
        out: Slot | None = None,
        phase: str | None = None,
    ) -> Slot:
        """Clone what lies at a path of the host, as a detached mount with these attributes added."""
        phase = phase or self.source_phase
        spread = calls.AT_RECURSIVE if recursive else 0
        slot = out or Slot(path, declared=False)
        self.builder.add(phase, Step("OPEN_TREE", text=encode_text(path), flags=_CLONE | spread, out=slot, what=path))
        # What was cloned in the host's own mount namespace shares its propagation, and would carry mounts to it.
        private = calls.MS_PRIVATE if phase == HOST else 0
        idmap = calls.MOUNT_ATTR_IDMAP if userns else 0
        if attributes or private or idmap:
            flags = calls.AT_EMPTY_PATH | spread
            step = Step("MOUNT_SETATTR", fd=slot, fd2=userns, flags=flags, value=attributes | idmap, size2=private, what=path)
            self.builder.add(phase, step)
        return slot

    def set_attributes(self, mount: Slot, attributes: int, *, clear: int = 0, recursive: bool = False, what: str) -> None:
        """Set, or clear, attributes of a mount."""
        flags = calls.AT_EMPTY_PATH | (calls.AT_RECURSIVE if recursive else 0)
        step = Step("MOUNT_SETATTR", fd=mount, flags=flags, value=attributes, size=clear, what=what)
        self.builder.add(INSIDE, step)

    def new_name(self, prefix: str) -> str:
        """Return a name that is free in the scratch."""
        self._names += 1
        return f"{prefix}{self._names}"

    # ---- what lies where ----

    def look(self, path: str) -> tuple[Place, list[str]]:
        """Return what is known of the longest beginning of a path, and the names that follow."""
        names = [name for name in path.split("/") if name]
        for count in range(len(names), -1, -1):
            place = self._known.get("/" + "/".join(names[:count]))
            if place is not None:
                rest = names[count:]
                if rest and place.kind == "file":
                    raise PlanError(f"{path}: /{'/'.join(names[:count])} is a file")
                return place, rest
        raise AssertionError(path)

    def note(self, path: str, place: Place) -> None:
        """Remember what lies at a path; what lay below it lies there no more."""
        if path in self._above:
            below = path + "/"
            for known in [one for one in self._known if one.startswith(below)]:
                del self._known[known]
        self._remember(path, place)

    def _remember(self, path: str, place: Place) -> None:
        self._known[path] = place
        above = path.rpartition("/")[0]
        while above and above not in self._above:
            self._above.add(above)
            above = above.rpartition("/")[0]

    def make(self, path: str, *, directory: bool = True, mode: int = 0o755) -> Place:
        """Make a directory, or an empty file, and what is absent above it, where `look` has found a directory of ours."""
        place, rest = self.look(path)
        if not rest:
            if place.kind != ("directory" if directory else "file"):
                raise PlanError(f"{path}: a {'directory' if directory else 'file'} is wanted here, but it is a {place.kind}")
            return place
        at = "/".join(path.split("/")[: -len(rest)])
        for name in rest[:-1]:
            at, place = f"{at}/{name}", place.below(name, "directory")
            self.add("MKDIR", fd=place.base, text=place.name, value=0o755, what=at)
            self._remember(at, place)
        place = place.below(rest[-1], "directory" if directory else "file")
        if directory:
            self.add("MKDIR", fd=place.base, text=place.name, value=mode, what=path)
        else:
            self.add("MKNOD", fd=place.base, text=place.name, value=mode & 0o666, what=path)
        self._remember(path, place)
        return place

    def find(self, path: str, *, directory: bool, existing: bool = False) -> Slot:
        """Resolve a path in the guest's root at run time; what is absent is made where that is possible and wanted."""
        place, _ = self.look(path)
        slot = Slot(path, declared=False)
        if place.kind == "foreign" and place.writable and not existing:
            step = Step("TARGET", fd=self, text=encode_text(path), flags=int(directory), value=0o755, out=slot, what=path)
        else:
            flags = _PATH_ONLY | (os.O_DIRECTORY if directory else 0)
            step = Step("OPEN", fd=self, text=encode_text(path), flags=flags, value=_IN_ROOT, out=slot, what=path)
        self.builder.add(INSIDE, step)
        return slot

    def find_plain(self, path: str) -> Slot:
        """Resolve a directory of which no part may be a symbolic link: where a hostile image would send /proc elsewhere."""
        place, _ = self.look(path)
        parent, _, name = path.rpartition("/")
        base: Slot = self
        if place.kind == "foreign" and place.writable:
            if parent:
                base, path = self.find(parent, directory=True), name
            self.add("MKDIR", fd=base, text=name, value=0o755, ignore=EEXIST, what=path)
        slot = Slot(path, declared=False)
        resolve = _IN_ROOT | calls.RESOLVE_NO_SYMLINKS
        flags = _PATH_ONLY | os.O_DIRECTORY
        self.builder.add(INSIDE, Step("OPEN", fd=base, text=encode_text(path), flags=flags, value=resolve, out=slot, what=path))
        return slot

    def make_way(self, path: str) -> None:
        """Make a path of the host reachable where directories above it are closed to the process, who is nobody on the host.

        The topmost closed one is covered with a directory of ours: nobody could see what is in it anyway.
        """
        if not (self.host_view and (self.skeleton or self.in_place) and self.source_phase == HOST):
            return
        names = path.split("/")[1:-1]
        for count in range(1, len(names) + 1):
            above = "/" + "/".join(names[:count])
            place, rest = self.look(above)
            if place.kind != "directory" and not _is_open(above):
                self.private(above, 0o755)
                return
            if place.kind == "directory" and rest:
                return

    # ---- attaching ----

    def attach(
        self, mount: Slot, target: str, then: Place, *, directory: bool = True, existing: bool = False, plain: bool = False
    ) -> None:
        """Attach a detached mount at a path of the guest."""
        place, rest = self.look(target)
        if place.kind == "directory" or (place.kind == "file" and not rest):
            if existing and rest:
                raise PlanError(f"{target}: there is nothing of this name")
            place = self.make(target, directory=directory)
            flags = _ONTO_NAME if place.name else _ONTO_FD
            self.add("MOVE_MOUNT", fd=mount, fd2=place.base, text2=place.name, flags=flags, what=target)
        else:
            spot = self.find_plain(target) if plain else self.find(target, directory=directory, existing=existing)
            self.add("MOVE_MOUNT", fd=mount, fd2=spot, flags=_ONTO_FD, what=target)
        self.note(target, then)

    def attach_onto(self, mount: Slot, base: Slot, name: str, what: str) -> None:
        """Attach a detached mount onto something that is known to lie below a slot."""
        self.add("MOVE_MOUNT", fd=mount, fd2=base, text2=name, flags=_ONTO_NAME if name else _ONTO_FD, what=what)

    def private(self, target: str, mode: int, *, plain: bool = False) -> Slot:
        """Attach a fresh, writable directory of the scratch; returns its mount."""
        place, rest = self.look(target)
        if self.skeleton and rest and place.base is self and place.kind == "directory":
            place = self.make(target, mode=mode)
            content = self.clone_of(self.private_space, f"root/{place.name}")
        else:
            name = self.new_name("p")
            self.add("MKDIR", fd=self.private_space, text=name, value=mode, what=target)
            content = self.clone_of(self.private_space, name)
        if self.in_place and place.base is self:
            # The host's own directories, not an image's: no name in them is a trap.
            self.attach_onto(content, self, target[1:], target)
            self.note(target, Place("directory", content))
            return content
        self.attach(content, target, Place("directory", content), plain=plain)
        return content

    def null(self) -> Slot:
        """Clone the host's /dev/null, verified: it covers a file that is masked."""
        if self.nulls:
            return self.nulls.pop()
        slot = self.host_tree("/dev/null", 0, recursive=False, phase=INSIDE)
        self.add("CHECK_DEVICE", fd=slot, value=_NULL, what="/dev/null")
        return slot

    def nothing(self) -> Slot:
        """Return a mount of the empty, read-only directory that covers a directory; it must be attached at once."""
        if self.scratch is not None:
            if self._empty is None:
                self._empty = self.scratch
                self.add("MKDIR", fd=self.scratch, text="empty", value=0o555, what="empty directory")
            empty = self.clone_of(self.scratch, "empty")
            self.set_attributes(empty, calls.MOUNT_ATTR_RDONLY, what="empty directory")
            return empty
        if self._empty is None:
            options = {"size": "4096", "nr_inodes": "1", "mode": "555"}
            self._empty = self.new_fs("tmpfs", options, SAFE | calls.MOUNT_ATTR_RDONLY)
            return self._empty
        return self.clone_of(self._empty, "")

    def write(self, place: Place, data: bytes, mode: int, *, what: str, existing: bool = False) -> None:
        """Write a file that the plan makes, or has made."""
        flags = os.O_WRONLY | os.O_NOFOLLOW | (os.O_TRUNC if existing else os.O_CREAT | os.O_EXCL)
        how = (0 if existing else mode << 32) | calls.RESOLVE_BENEATH | calls.RESOLVE_NO_SYMLINKS
        step = Step("WRITE", fd=place.base, flags=flags, value=how, text=encode_text(place.name), text2=data, what=what)
        self.builder.add(INSIDE, step)

    def loose_file(self, data: bytes, mode: int, *, what: str) -> Slot:
        """Return the mount of a file with this content, to cover one that is there."""
        if self.scratch is not None:
            made = Place("file", self.scratch, self.new_name("f"))
            self.write(made, data, mode, what=what)
            self.own(made, what)
            return self.clone_of(self.scratch, made.name)
        # It is attached over the root, where no lookup of this process leads, for as long as it takes to clone from it.
        options = {"size": str(max(4096, len(data))), "nr_inodes": "2"}
        space = self.new_fs("tmpfs", options, SAFE)
        self.add("MOVE_MOUNT", fd=space, text2=b"/", flags=_ONTO_NAME, what=what)
        made = Place("file", space, "file")
        self.write(made, data, mode, what=what)
        self.own(made, what)
        content = self.clone_of(space, made.name)
        self.go(space)
        self.add("UMOUNT", text=b".", flags=calls.MNT_DETACH, what=what)
        self.go_back()
        return content

    @property
    def gives_away(self) -> bool:
        """Whether what is made belongs to somebody else than the command's user."""
        scene = self.scene
        mapped = not scene.uid_map or any(one.inside == 0 for one in scene.uid_map)
        return mapped and (scene.uid, scene.gid) != (0, 0)

    def own(self, place: Place, what: str) -> None:
        """Give what was made to the command's user, where that is not who made it."""
        if not self.gives_away:
            return
        slot = Slot(what, declared=False)
        step = Step(
            "OPEN", fd=place.base, text=encode_text(place.name or "."), flags=os.O_RDONLY | os.O_NOFOLLOW, out=slot, what=what
        )
        self.builder.add(INSIDE, step)
        self.add("FCHOWN", fd=slot, flags=self.scene.uid, value=self.scene.gid, what=what)

    # ---- the working directory of the steps ----

    def go(self, slot: Slot) -> None:
        """Make a directory the one that relative paths of the next steps start from."""
        if self.scratch is None and self._where is None:
            self._where = Slot("working directory", declared=False)
            step = Step("OPEN", text=b".", flags=_PATH_ONLY | os.O_DIRECTORY, out=self._where, what="working directory")
            self.builder.add(INSIDE, step)
        self.add("FCHDIR", fd=slot, what=slot.label)

    def go_back(self) -> None:
        """Return from `go`; a root of ours is entered at the end anyway."""
        if self.scratch is None and self._where is not None:
            self.add("FCHDIR", fd=self._where, what="working directory")
