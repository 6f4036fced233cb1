"""Making groups, and adopting those that are there."""

from __future__ import annotations

import os
from contextlib import suppress
from errno import EEXIST
from itertools import count
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls, cgroupfs
from isolib._kernel.handle import Rollback
from isolib._kernel.hints import typed
from isolib.cgroups import moving, place, removal
from isolib.cgroups.controllers.cpuset import inherit
from isolib.cgroups.controls import Controls
from isolib.cgroups.errands import Errands
from isolib.cgroups.files import Directory, distinct
from isolib.cgroups.group import THREADED, Cgroup
from isolib.cgroups.hierarchy import V2_NAMES
from isolib.cgroups.limits import Limits, parse_allow
from isolib.cgroups.lodge import COUNTING, LEGACY
from isolib.cgroups.place import Place
from isolib.cgroups.values import check_name
from isolib.errors import GoneError, PlanError, SyscallError, Unsupported
from isolib.types import check_path

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from isolib.cgroups.controllers.device_rules import DeviceRule
    from isolib.cgroups.moving import HasPid
    from isolib.cgroups.values import IoLimit

__all__ = ["new_cgroup", "open_cgroup"]

_numbers: Final = count(1)
_TRIES: Final = 100


def new_cgroup(
    *,
    name: str | None = None,
    parent: Cgroup | None = None,
    memory_max: int | str | None = None,
    memory_high: int | str | None = None,
    memory_low: int | str | None = None,
    swap_max: int | str | None = None,
    cpu_max: float | None = None,
    cpu_weight: int | None = None,
    cpus: str | Iterable[int] | None = None,
    mems: str | Iterable[int] | None = None,
    pids_max: int | None = None,
    io_weight: int | None = None,
    io_max: Mapping[str | os.PathLike[str] | tuple[int, int], IoLimit] | None = None,
    hugetlb_max: Mapping[int | str, int | str | None] | None = None,
    devices: Sequence[DeviceRule | str] | None = None,
    oom_group: bool = True,
    allow: Collection[str] = (),
    threaded: bool = False,
) -> Cgroup:
    """Make a control group with these limits; nothing lives in it at first.

    Parameters
    ----------
    name
        One directory name; None: one that is free.
    parent
        The group below which it is made; None: where this program may make groups, which is below its own, or in a subtree
        that was delegated to it.
    memory_max, memory_high, memory_low, swap_max
        Bytes, or a text such as "256M" (powers of 1024); "max": no limit.  Beyond ``memory_max`` the kernel kills; beyond
        ``memory_high`` it slows down.  ``swap_max`` is beside the memory.
    cpu_max
        In processors: 0.5 is half of one.
    cpu_weight, io_weight
        1 to 10000, against groups beside it; 100 is the default.
    cpus, mems
        Processors and memory nodes: "0-3,8", or numbers.
    pids_max
        Processes and threads, the supervisors of what isolib starts among them.
    io_max
        `isolib.cgroups.IoLimit` by device: "/dev/sda", "8:0", or any path on its file system.
    hugetlb_max
        Bytes by size of page: ``{"2M": "64M"}``.
    devices
        `isolib.cgroups.DeviceRule` values, or texts such as "c 1:3 rw"; the last one that fits decides, and nothing that none
        allows can be opened or made.
    oom_group
        Whether everybody in the group is killed when the kernel must kill somebody.
    allow
        Names of arguments that may be left out where the host cannot keep them (`Cgroup.degraded` says which were), and
        "move-self": the processes of this program's own group may be moved to a group below it, where the kernel's rule against
        processes in inner groups is in the way.  They stay there.
    threaded
        Whether it is for threads of the processes of ``parent`` (cgroup v2).

    Returns
    -------
    Cgroup
        Owned: closing it kills who is in it and removes it, and so does the end of this program.

    Raises
    ------
    PlanError
        An argument cannot work; nothing was done.
    Unsupported
        The host cannot keep a limit, or this user may make no groups; who refuses, and what would help.
    SyscallError
        The kernel refuses a value; the message names the file and the value.  Nothing is left.

    Notes
    -----
    Privileges: write access to a group: root, a delegated subtree, or systemd (``pip install isolib[systemd]``).  Device rules
    in cgroup v2 take CAP_BPF and CAP_NET_ADMIN too, or CAP_SYS_ADMIN, which those of v1 take.  The first group of a process
    starts its reaper, which removes what a killed program leaves.
    Sources: cgroups(7), Documentation/admin-guide/cgroup-v2.rst, and cgroup-v1/ beside it.

    Examples
    --------
    >>> with new_cgroup(memory_max="256M", pids_max=64) as group:
    ...     group.memory.max
    268435456
    """
    given = {
        "memory_max": memory_max,
        "memory_high": memory_high,
        "memory_low": memory_low,
        "swap_max": swap_max,
        "cpu_max": cpu_max,
        "cpu_weight": cpu_weight,
        "cpus": cpus,
        "mems": mems,
        "pids_max": pids_max,
        "io_weight": io_weight,
        "io_max": io_max,
        "hugetlb_max": hugetlb_max,
        "devices": devices,
        "oom_group": oom_group,
    }
    return make(given, name=name, parent=parent, allow=allow, threaded=threaded, oom="group" if oom_group else "one")


@typed("a control group")
def make(
    given: Mapping[str, object],
    *,
    name: str | None = None,
    parent: Cgroup | None = None,
    allow: Collection[str] = (),
    threaded: bool = False,
    oom: str = "group",
) -> Cgroup:
    """Make a group, as `new_cgroup`; ``oom`` is as in `Cgroup` (for the modules that compose)."""
    limits = Limits(given)
    allowed = parse_allow(allow)
    chosen = None if name is None else check_name(name, below=parent is not None)
    counting = frozenset() if threaded else COUNTING | LEGACY

    def make_in(where: Place) -> Cgroup:
        limits.check_possible("memory" in where.legacy)
        return _named(where, chosen, limits, allowed, counting=counting, oom=oom)

    if parent is None:
        if threaded:
            raise PlanError("threaded=True: it is for threads of the processes of a group: use child() of that one")
        with suppress(GoneError):
            return make_in(place.find(limits.controllers, allowed, trust=True))
        # Somebody has removed the groups in which those before were made.
        return make_in(place.find(limits.controllers, allowed))
    if not isinstance(parent, Cgroup):
        raise PlanError(f"parent={parent!r}: a Cgroup is wanted; isolib.open_cgroup() adopts one that is there")

    def make_below(controls: Controls) -> Cgroup:
        limits.check_within(controls)
        if threaded and (wrong := limits.controllers - THREADED):
            raise PlanError(f"threaded=True: a threaded group cannot have {', '.join(sorted(wrong))}, which are for processes")
        if threaded:
            parent.flatten()
        return make_in(_below(controls, limits.controllers, counting))

    return parent.bear(make_below)


def _named(
    where: Place, chosen: str | None, limits: Limits, allowed: frozenset[str], *, counting: frozenset[str], oom: str
) -> Cgroup:
    """Make a group of this name, or of one that is free."""
    for left in reversed(range(1 if chosen else _TRIES)):
        try:
            free = chosen or f"isolib-{os.getpid()}-{next(_numbers)}"
            return _make(where, free, limits, allowed, counting=counting, oom=oom)
        except SyscallError as error:
            # The remains of a host of the same number, or a host in another pid namespace.
            if error.errno != EEXIST or not left:
                raise
    raise AssertionError("there is a last try")


def _below(controls: Controls, wanted: Collection[str], counting: Collection[str] = COUNTING | LEGACY) -> Place:
    """Return where the groups below a group are made."""
    found = Place(lambda more: _below(controls, more))
    found.unified, found.top = controls.unified, controls.place.top
    for name in {*wanted, *counting}:
        directory, refusal = controls.find(name)
        if directory is None:
            found.refusals[name] = refusal or Unsupported(
                f"the {name} controller of a control group",
                f"the group above, which lacks it: {controls.name}",
                "another parent",
            )
        elif directory is not found.unified:
            found.legacy[name] = directory
    if found.unified is not None:
        in_v2 = place.available_in(found.unified).intersection({*wanted, *counting})
        place.enable(found.unified, found.unified.path, in_v2, threaded=not counting)
        for name in in_v2 - place.enabled_in(found.unified):
            found.refusals[name] = place.not_enabled(name, found.unified.path)
    return found


def _make(where: Place, name: str, limits: Limits, allowed: frozenset[str], *, counting: frozenset[str], oom: str) -> Cgroup:
    legacy = {one: directory for one, directory in where.legacy.items() if one in {*limits.controllers, *counting}}
    parents = distinct([where.unified, *legacy.values()])
    with Rollback() as undo:
        look, making = Errands(), Errands()
        for parent in parents:  # what is entrusted is removed with this program, and what is there is somebody else's
            look.be_absent(parent, name)
        look.run()
        ticket = where.entrust(parents, name, lambda made: undo.push(made.strike))
        steps = [(parent, making.make(parent, name), making.open_group(parent, name)) for parent in parents]
        # Open from the first, that the end of a group takes no more descriptors, of which there may be none.
        events = None if where.unified is None else making.open_file(where.unified, f"{name}/cgroup.events", os.O_RDONLY)
        undo.push(_unmake, making, steps, name)
        making.run()
        made = {id(parent): making.directory(opened) for parent, _, opened in steps}
        for directory in made.values():
            directory.is_new = True
        mine = {one: made[id(directory)] for one, directory in legacy.items()}
        controls = Controls(name, where, made.get(id(where.unified)), mine, owned=True)
        controls.tickets.append(ticket)
        controls.together = making
        if controls.unified is not None and events is not None:
            controls.unified.keep("cgroup.events", making.fd(events))
        if not counting and controls.unified is not None:
            controls.unified.write("cgroup.type", "threaded")
        if "cpuset" in legacy:
            inherit(legacy["cpuset"], mine["cpuset"])
        refused = limits.apply(controls, allowed)
        # Where v1 has the memory, the supervisor of each process sees to it.
        v2 = controls.unified if oom == "group" and "memory" not in mine else None
        if v2 is not None and "memory" in place.available_in(v2):
            v2.write("memory.oom.group", "1")
        group = Cgroup._make(controls)
        group.degraded, group.oom = refused, oom
        undo.dismiss()
        return group


def _unmake(making: Errands, steps: Iterable[tuple[Directory, int, int]], name: str) -> None:
    """Take down what was made, and nothing else."""
    making.close()
    removal.remove_all([parent for parent, made, _ in steps if making.is_done(made)], name)


def open_cgroup(path_or_pid: str | os.PathLike[str] | int | HasPid) -> Cgroup:
    """Adopt a control group that is there: by its directory in any hierarchy, or that of a process.

    Closing the handle changes nothing in it.

    Parameters
    ----------
    path_or_pid
        A directory below /sys/fs/cgroup, a process id, or an object with a ``pid``.

    Raises
    ------
    PlanError
        The directory is no control group.
    GoneError
        There is no such directory, or no such process.

    Notes
    -----
    Privileges: to read, those of the files, which everybody may read as a rule; to change or to start something, write access.

    Examples
    --------
    >>> with open_cgroup("/sys/fs/cgroup/gone") as group:
    ...     group.memory.current
    Traceback (most recent call last):
    isolib.GoneError: open: /sys/fs/cgroup/gone: No such file or directory (ENOENT) -- there is no such control group
    """
    if isinstance(path_or_pid, int) or hasattr(path_or_pid, "pid"):
        unified, legacy = moving.groups_of(moving.process_id(path_or_pid))  # type: ignore[arg-type]  # it checks
    else:
        unified, legacy = _opened(check_path(path_or_pid, "path"))
    first = unified or next(iter(legacy.values()))
    refused = Place(lambda more: Place(lambda _: refused, refusals={name: _foreign(name, first.path) for name in more}))
    controls = Controls(os.path.basename(first.path.rstrip("/")) or "/", refused, unified, legacy, owned=False)
    return Cgroup._make(controls)


def _foreign(name: str, path: str) -> Unsupported:
    return Unsupported(
        f"the {name} controller of a control group", f"{path}, which does not have it and is not isolib's", "a group of its own"
    )


def _opened(path: str) -> tuple[Directory | None, dict[str, Directory]]:
    directory = Directory.open(path, 2)
    magic = calls.fs_magic(directory.fileno())
    if magic == calls.CGROUP2_SUPER_MAGIC:
        return directory, {}
    if magic != calls.CGROUP_SUPER_MAGIC:
        raise PlanError(f"path: {path!r} is no control group: it lies in no cgroup file system")
    directory.version = 1
    place_of = os.path.realpath(path)
    for mount in cgroupfs.read_mounts():
        if mount.fs_type == "cgroup" and f"{place_of}/".startswith(f"{mount.mount_point}/"):
            found = {V2_NAMES.get(one, one): directory for one in mount.super_options if one in cgroupfs.V1_NAMES}
            return None, found or {"": directory}
    return None, {"": directory}
