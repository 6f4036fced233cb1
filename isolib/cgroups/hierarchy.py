"""Which hierarchies this host has, where each controller is bound, and what the caller may do there.

One function decides: `hierarchy`.  It looks at what is mounted (the type of each file system, not its path), at the caller's
line in /proc/PID/cgroup for each hierarchy, and at cgroup.controllers, which tells what cgroup v2 has.  In a hybrid host a
controller is in one of the two; what belongs to no controller (birth, killing, freezing, events, pressure) is in v2 wherever
that is mounted.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from isolib._kernel import cgroupfs
from isolib.errors import Unsupported

if TYPE_CHECKING:
    from collections.abc import Mapping

    from isolib._kernel.cgroupfs import Group

__all__ = ["V1_CONTROLLERS", "V2_NAMES", "Binding", "Hierarchy", "hierarchy", "may_use", "read_words", "survey"]

#: The controllers, as v2 calls them, with their names in v1.
V1_CONTROLLERS: Final = MappingProxyType(
    {
        "cpu": "cpu",
        "cpuacct": "cpuacct",  # in v2 that is a file of every group
        "cpuset": "cpuset",
        "memory": "memory",
        "io": "blkio",
        "pids": "pids",
        "hugetlb": "hugetlb",
        "devices": "devices",
        "freezer": "freezer",
        "rdma": "rdma",
        "misc": "misc",
    }
)
#: The other way round.
V2_NAMES: Final = MappingProxyType({v1: name for name, v1 in V1_CONTROLLERS.items()})
#: What v2 has without a controller: a file of every group, and a BPF program.
_BUILT_IN: Final = frozenset({"devices", "freezer"})
_FILES: Final = ("cgroup.procs", "cgroup.subtree_control")


@dataclass(frozen=True, slots=True)
class Binding:
    """Where a controller is.

    Attributes
    ----------
    version
        2 or 1.
    path
        The directory of the caller's own group in that hierarchy.
    top
        The directory where the hierarchy is mounted.
    enabled
        Whether the caller's own group has the controller (always, in v1).
    """

    version: int
    path: str
    top: str
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """The control groups of a host, as the caller sees them.

    Attributes
    ----------
    mode
        ``"unified"``: cgroup v2 alone is mounted; ``"legacy"``: v1 alone is; ``"hybrid"``: both are, and share the controllers.
    controllers
        By the name in v2 (``"io"`` is v1's blkio): where each one is bound.
    path
        The caller's group in cgroup v2, or None.
    delegation
        Why the caller may make groups: ``"root"``, ``"delegated"`` (he owns his own group or one above it), or ``"none"``.
    """

    mode: str
    controllers: Mapping[str, Binding]
    path: str | None
    delegation: str

    def __reduce__(self) -> tuple[object, ...]:
        return Hierarchy._of, (self.mode, dict(self.controllers), self.path, self.delegation)

    @staticmethod
    def _of(mode: str, controllers: dict[str, Binding], path: str | None, delegation: str) -> Hierarchy:
        return Hierarchy(mode, MappingProxyType(controllers), path, delegation)

    def __repr__(self) -> str:
        where = ", ".join(f"{name}: v{one.version} {one.path}" for name, one in self.controllers.items())
        return f"<Hierarchy {self.mode}, {self.delegation}; {where}>"


@dataclass(frozen=True, slots=True)
class Survey:
    """The same, with what isolib needs to make groups.

    Attributes
    ----------
    mode
        As in `Hierarchy`.
    unified
        The caller's group in v2, or None.
    legacy
        The caller's groups in v1, by controller.
    in_v2
        The controllers that v2 has somewhere, those built in not among them.
    """

    mode: str
    unified: Group | None
    legacy: Mapping[str, Group]
    in_v2: frozenset[str]

    def binding(self, name: str) -> Binding | None:
        """Return where a controller is, or None."""
        unified = self.unified
        if unified is not None and (name in self.in_v2 or name in _BUILT_IN):
            enabled = name in _BUILT_IN or name in read_words(f"{unified.path}/cgroup.controllers")
            return Binding(2, unified.path, unified.top, enabled)
        group = self.legacy.get(V1_CONTROLLERS[name])
        return None if group is None else Binding(1, group.path, group.top)


def survey() -> Survey:
    """Look at the host.

    Raises
    ------
    Unsupported
        No hierarchy is mounted, or none shows the caller's group.
    """
    mode, unified, legacy = cgroupfs.look()
    if unified is None and not legacy:
        reason = "this host, where no cgroup hierarchy is mounted" if not mode else "the mounts, none of which shows this group"
        raise Unsupported("control groups", reason, "as root: mount -t cgroup2 cgroup2 /sys/fs/cgroup")
    in_v2 = frozenset() if unified is None else frozenset(read_words(f"{unified.top}/cgroup.controllers"))
    return Survey(mode, unified, MappingProxyType(legacy), in_v2)


def hierarchy() -> Hierarchy:
    """Return which hierarchies this host has, and where each controller is.

    Returns
    -------
    Hierarchy
        A frozen value.

    Raises
    ------
    Unsupported
        No hierarchy is mounted.

    Notes
    -----
    No privileges are needed, and nothing is changed.  Source: cgroups(7).

    Examples
    --------
    >>> hierarchy().mode in {"unified", "hybrid", "legacy"}
    True
    """
    found = survey()
    bindings = {name: one for name in V1_CONTROLLERS if (one := found.binding(name)) is not None}
    path = None if found.unified is None else found.unified.path
    return Hierarchy(found.mode, MappingProxyType(bindings), path, _delegation(found))


def _delegation(found: Survey) -> str:
    if os.geteuid() == 0:
        return "root"
    groups = [found.unified] if found.unified is not None else list(found.legacy.values())
    for group in groups:
        directory = group.path
        while directory.startswith(group.top):
            if may_use(directory, unified=group.unified):
                return "delegated"
            directory = os.path.dirname(directory)
    return "none"


def may_use(directory: str, *, unified: bool) -> bool:
    """Return whether the caller may make groups in a directory and move processes into them."""
    files = _FILES if unified else ("tasks",)
    return all(_may_write(path) for path in (directory, *(f"{directory}/{name}" for name in files)))


def _may_write(path: str) -> bool:
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def read_words(path: str) -> list[str]:
    """Return the words of a file, none where it cannot be read."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read().split()
    except OSError:
        return []
