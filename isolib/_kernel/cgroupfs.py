"""Which control group hierarchies are mounted, and which group of each a process is in.

All is pure but `read_entries`, `read_mounts` and `look`.

There are three kinds of hosts (cgroups(7)): *unified*, where cgroup v2 has every controller; *legacy*, where each controller
is in a hierarchy of v1; and *hybrid*, where both are mounted and a controller is in the one or the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib._kernel.procfs import parse_cgroup, parse_mountinfo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolib._kernel.procfs import CgroupEntry, Mount

__all__ = ["V1_NAMES", "Group", "controller_state", "look", "mode", "own_group", "own_groups", "read_entries", "read_mounts"]

#: The controllers of v1, as mount options name them; they are never more.
V1_NAMES: Final = frozenset(
    {
        *("blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "memory"),
        *("misc", "net_cls", "net_prio", "perf_event", "pids", "rdma"),
    }
)

_ENTRIES: Final = "/proc/thread-self/cgroup"
_ROOM: Final = 4096
_ANYWHERE: Final = -1  # the path is absolute


@dataclass(frozen=True, slots=True)
class Group:
    """The caller's group in one hierarchy.

    Attributes
    ----------
    path
        Its directory.
    top
        The directory where the hierarchy is mounted.
    unified
        Whether it is of cgroup v2.
    readonly
        Whether it is mounted read-only.
    controllers
        Those that are bound to a hierarchy of v1; empty for v2.
    """

    path: str
    top: str
    unified: bool
    readonly: bool
    controllers: tuple[str, ...] = ()


def mode(mounts: Sequence[Mount]) -> str:
    """Return ``"unified"``, ``"hybrid"``, ``"legacy"``, or an empty string where no hierarchy is mounted."""
    unified = any(mount.fs_type == "cgroup2" for mount in mounts)
    legacy = any(mount.fs_type == "cgroup" and V1_NAMES & set(mount.super_options) for mount in mounts)
    if unified:
        return "hybrid" if legacy else "unified"
    return "legacy" if legacy else ""


def own_group(mounts: Sequence[Mount], entries: Sequence[CgroupEntry], controller: str | None = None) -> Group | None:
    """Return the caller's group in the hierarchy of a v1 controller, or of v2; None where it cannot be seen.

    Of several mounts of it the first one that can be written is taken: others may be copies for a container.
    """
    found = None
    for entry in entries:
        if (controller in entry.controllers) if controller else (entry.hierarchy_id == 0):
            for mount in mounts:
                of_it = controller in mount.super_options if controller else True
                if mount.fs_type == ("cgroup" if controller else "cgroup2") and of_it:
                    below = _below(mount.root, entry.path)
                    if below is not None and (found is None or found.readonly):
                        group = Group(
                            path=mount.mount_point + below,
                            top=mount.mount_point,
                            unified=controller is None,
                            readonly="ro" in mount.options or "ro" in mount.super_options,
                            controllers=entry.controllers,
                        )
                        found = group if found is None or not group.readonly else found
    return found


def own_groups(mounts: Sequence[Mount], entries: Sequence[CgroupEntry]) -> tuple[Group | None, dict[str, Group]]:
    """Return the caller's group in v2, or None, and those of v1 by controller; co-mounted controllers have one and the same."""
    legacy: dict[str, Group] = {}
    for entry in entries:
        found = next(filter(None, (own_group(mounts, entries, name) for name in entry.controllers if name in V1_NAMES)), None)
        if found is not None:
            legacy |= dict.fromkeys(entry.controllers, found)
    return own_group(mounts, entries), legacy


def _below(root: str, path: str) -> str | None:
    """Return a group's path below the one that is mounted; None when it is outside."""
    if path == "/.." or path.startswith("/../"):
        return None
    if root == "/":
        return "" if path == "/" else path
    return path[len(root) :] if path == root or path.startswith(root + "/") else None


def controller_state(content: str, name: str) -> str:
    """Return what /proc/cgroups says of a v1 controller: ``"absent"``, ``"disabled"``, ``"unbound"`` or ``"bound"``."""
    for line in content.splitlines():
        fields = line.split()
        if len(fields) == 4 and fields[0] == name:  # noqa: PLR2004 - name, hierarchy, groups, whether it is enabled
            if fields[3] == "0":
                return "disabled"
            return "unbound" if fields[1] == "0" else "bound"
    return "absent"


def read_entries() -> bytes:
    """Return the calling thread's /proc/PID/cgroup."""
    data = calls.read_file(_ANYWHERE, _ENTRIES, _ROOM, to_end=False)
    if isinstance(data, bytes) and len(data) < _ROOM:  # the kernel hands it out as one record
        return data
    with open(_ENTRIES, "rb", buffering=0) as file:  # longer, or the exception
        return file.readall()


def read_mounts() -> list[Mount]:
    """Return the mounts of the calling thread's mount namespace that are of cgroups, those on top first."""
    with open("/proc/thread-self/mountinfo", "rb") as file:
        lines = [line for line in file if b" - cgroup" in line]
    return [mount for mount in reversed(parse_mountinfo(b"".join(lines))) if mount.fs_type in {"cgroup", "cgroup2"}]


def look() -> tuple[str, Group | None, dict[str, Group]]:
    """Return the mode, and the caller's groups as `own_groups` does."""
    mounts = read_mounts()
    return (mode(mounts), *own_groups(mounts, parse_cgroup(read_entries())))
