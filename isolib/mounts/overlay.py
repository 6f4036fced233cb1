"""Union mounts: directories of the host below, what is written above, kept or thrown away.

Layers are named to the kernel by short names in the scratch: symbolic links to paths of the host, or places where an id-mapped
clone is attached.  So paths with ``:`` and ``,`` need no quoting, none is too long for fsconfig(2), and the layers belong to
the mount namespace that the overlay is made in, as it must be.  (Layers by descriptor need Linux 6.13, and a detached layer
of the host's is refused to a user namespace.)
"""

from __future__ import annotations

import os
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib._kernel.guest import SAFE, Guest, Place, inodes_for
from isolib._kernel.plan import HOST, INSIDE, Step
from isolib.errors import PlanError
from isolib.mounts.checks import check_source, check_target
from isolib.mounts.idmap import mount_userns
from isolib.mounts.values import TMPFS_SIZE, Mount, freeze
from isolib.types import check_id_map

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolib._kernel.assembly import Scene
    from isolib._kernel.plan import Builder, Slot
    from isolib.types import AnyPath, IdMap

__all__ = ["MAX_LOWERS", "Layers", "Overlay"]

MAX_LOWERS: Final = 500
"""The most layers that the kernel stacks (OVL_MAX_STACK)."""

_MAX_VALUE: Final = 255  # bytes of one fsconfig(2) value


@dataclass(frozen=True, slots=True)
class Overlay(Mount):
    """Directories of the host laid over one another, and a place above them for what is written.

    Parameters
    ----------
    target
        The path inside; made where that is possible.
    lowers
        Directories of the host, the topmost first; they are never changed.
    upper
        A directory of the host that takes what is written.  None: a place in memory that vanishes with the process.
    work
        With ``upper``: an empty directory on the same file system, for the kernel's own use.
    id_map
        Of every layer, as of `Bind`.  Only for root on the host.

    Raises
    ------
    PlanError
        An argument cannot work: no lower or more than 500, one directory twice, ``upper`` without ``work``.

    Notes
    -----
    Files keep their owners, unless ids are mapped.  In a user namespace a file whose owner has no id there can be read, as far
    as its permissions let anybody, but not changed: its copy in the upper layer would need that id (EOVERFLOW).  Before Linux
    6.6, whose tmpfs has no user.* attributes, a directory that comes from a lower layer cannot be removed or renamed where the
    upper one is in memory (EIO, EXDEV).

    Source: Documentation/filesystems/overlayfs.rst.

    Examples
    --------
    >>> Overlay("/etc", ["/srv/etc", "/etc"]).lowers
    ('/srv/etc', '/etc')
    """

    target: AnyPath
    lowers: Sequence[AnyPath]
    _: KW_ONLY
    upper: AnyPath | None = None
    work: AnyPath | None = None
    id_map: Sequence[IdMap] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.lowers, (str, bytes)) or not hasattr(self.lowers, "__iter__"):
            raise PlanError(f"Overlay: lowers is a list of directories, not {self.lowers!r}")
        lowers = tuple(check_source(one, "lowers", of="Overlay") for one in self.lowers)
        if not 1 <= len(lowers) <= MAX_LOWERS:
            raise PlanError(f"Overlay: {len(lowers)} lower directories; it takes 1 to {MAX_LOWERS}")
        upper = None if self.upper is None else check_source(self.upper, "upper", of="Overlay")
        work = None if self.work is None else check_source(self.work, "work", of="Overlay")
        if (upper is None) != (work is None):
            raise PlanError("Overlay: upper= and work= are given together: work is an empty directory on upper's file system")
        used = [*lowers, *(one for one in (upper, work) if one is not None)]
        twice = {one for one in used if used.count(one) > 1}
        if twice:
            raise PlanError(f"Overlay: one directory, two layers: {', '.join(sorted(twice))}")
        target = check_target(self.target, "target", of="Overlay")
        id_map = None if self.id_map is None else check_id_map(self.id_map, "Overlay: id_map")
        freeze(self, target=target, lowers=lowers, upper=upper, work=work, id_map=id_map)

    def add_steps(self, builder: Builder, root: Slot | None, scene: Scene) -> None:
        """Add the steps that attach it."""
        guest = Guest.of(builder, root, scene)
        target = os.fsdecode(self.target)
        userns = None if self.id_map is None else mount_userns(guest, self.id_map)
        layers = Layers(guest, target, userns)
        for lower in self.lowers:
            layers.add_lower(os.fsdecode(lower))
        if self.upper is None or self.work is None:
            layers.new_upper(0o755)
        else:
            layers.take_upper(os.fsdecode(self.upper), os.fsdecode(self.work))
        layers.attach(volatile=self.upper is None)


class Layers:
    """The layers of one overlay, as names in a hidden directory."""

    def __init__(self, guest: Guest, target: str, userns: Slot | None) -> None:
        self.guest = guest
        self.target = target
        self.userns = userns
        #: Layers that the new process could not open itself, or not as they are to be seen, are cloned and attached.
        self.clones = userns is not None or guest.source_phase == HOST
        self.lowers: list[str] = []
        self.upper = ""
        self.work = ""
        if guest.scratch is not None:
            self.space: Slot = guest.scratch
            self.prefix = guest.new_name("o")
        else:
            # Below the overlay itself, where nothing sees it.
            options = {"size": str(TMPFS_SIZE), "nr_inodes": str(inodes_for(TMPFS_SIZE)), "mode": "700"}
            self.space = guest.new_fs("tmpfs", options, SAFE)
            guest.attach(self.space, target, Place("directory", self.space))
            self.prefix = ""

    def _name(self, kind: str) -> str:
        # Short: the names of all lowers together fit into one value, as kernels before 6.8 want them.
        return f"{self.prefix}{kind}"

    def _place(self, name: str, path: str, attributes: int) -> None:
        """Give a directory of the host a name."""
        if not self.clones:
            self.guest.add("SYMLINK", fd=self.space, text=name, text2=path, what=path)
            return
        tree = self.guest.host_tree(path, attributes, recursive=False, userns=self.userns)
        self.guest.add("MKDIR", fd=self.space, text=name, value=0o700, what=path)
        self.guest.attach_onto(tree, self.space, name, path)

    def add_lower(self, path: str) -> None:
        """Add a directory of the host as the next lower layer."""
        name = self._name(f"l{len(self.lowers):x}")
        self._place(name, path, calls.MOUNT_ATTR_RDONLY)
        self.lowers.append(name)

    def new_upper(self, mode: int) -> None:
        """Make the upper and work directories; the root of the overlay has this mode."""
        self.upper, self.work = self._name("u"), self._name("w")
        self.guest.add("MKDIR", fd=self.space, text=self.upper, value=mode, what=f"{self.target} (upper)")
        self.guest.own(Place("directory", self.space, self.upper), f"{self.target} (upper)")
        self.guest.add("MKDIR", fd=self.space, text=self.work, value=0o700, what=f"{self.target} (work)")

    def take_upper(self, upper: str, work: str) -> None:
        """Use directories of the host as upper and work; for the kernel they must be below one mount."""
        self.upper, self.work = self._name("u"), self._name("w")
        above = ""
        if self.clones:
            above = os.path.commonpath([upper, work])
            self._place(self._name("b"), above, 0)
        for name, path in ((self.upper, upper), (self.work, work)):
            to = f"{self._name('b')}/{os.path.relpath(path, above)}" if above else path
            self.guest.add("SYMLINK", fd=self.space, text=name, text2=to, what=path)

    def attach(self, *, volatile: bool) -> None:
        """Make the overlay, and attach it."""
        guest, what = self.guest, self.target
        step = Step("FSOPEN", text=b"overlay", flags=calls.FSOPEN_CLOEXEC, what=what)
        context = guest.builder.produce(INSIDE, step, "overlay context")

        def put(key: str, value: str) -> None:
            guest.add("FSCONFIG", fd=context, flags=calls.FSCONFIG_SET_STRING, text=key, text2=value, what=f"{what} ({key})")

        guest.go(self.space)
        together = ":".join(self.lowers)
        if len(together) <= _MAX_VALUE:
            put("lowerdir", together)
        else:
            for name in self.lowers:
                put("lowerdir+", name)
        put("upperdir", self.upper)
        put("workdir", self.work)
        flags = ["volatile"] if volatile else []
        if guest.scene.uid_map or not calls.is_in_first_userns():
            flags.append("userxattr")  # trusted.* attributes belong to the first user namespace
        for key in flags:
            guest.add("FSCONFIG", fd=context, flags=calls.FSCONFIG_SET_FLAG, text=key, what=f"{what} ({key})")
        mount = guest.finish_fs(context, f"{what} (overlay)", SAFE)
        guest.go_back()
        guest.attach(mount, self.target, Place("foreign", mount, writable=True))
