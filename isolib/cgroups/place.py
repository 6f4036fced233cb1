"""Where new groups go: below the caller's own group in every hierarchy, or below one that was delegated to him.

cgroup v2 has a rule that v1 has not: a group that gives controllers to groups below it has no processes itself (the top one is
exempt).  The caller's own group has one, the caller.  So in v2 the place is, in this order:

1. the caller's group, if it is the top one, or if v2 has no controller that is asked for;
2. the nearest group above it that he may use and that has no processes, or is the top: what a delegated subtree with a leaf for
   the caller is;
3. with ``allow=("move-self",)``, the caller's group, once its processes have been moved to a leaf below it;
4. without systemd, and when only counting is wanted of v2, the caller's group: it gives no controllers then;
5. a scope that systemd delegates (the extra ``isolib[systemd]``).

The search above ends at a group that he may not use, or that systemd, where it runs, has not delegated (CGROUP_DELEGATION).
"""

from __future__ import annotations

import os
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from errno import EBUSY, EOPNOTSUPP
from threading import Lock
from typing import TYPE_CHECKING, Final

from isolib._kernel import cgroupfs, reaper
from isolib._kernel.handle import home
from isolib.cgroups import systemd
from isolib.cgroups.files import Directory, distinct
from isolib.cgroups.hierarchy import V1_CONTROLLERS, may_use, read_words, survey
from isolib.cgroups.lodge import COUNTING, LEGACY, SHARED
from isolib.errors import PermissionDenied, SyscallError, Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from isolib._kernel.cgroupfs import Group
    from isolib._kernel.reaper import Ticket
    from isolib.cgroups.hierarchy import Survey

__all__ = ["MOVE_SELF", "Place", "available_in", "enable", "enabled_in", "find", "not_enabled", "open_house"]

MOVE_SELF: Final = "move-self"
_CONTROL: Final = "cgroup.subtree_control"


@dataclass(slots=True)
class Place:
    """The directories in which a group is made.

    Attributes
    ----------
    unified
        In v2, or None.
    legacy
        In v1, by controller as v2 calls it; co-mounted controllers share one.
    refusals
        Why there is no directory for a controller.
    top
        Where cgroup v2 is mounted.
    known
        The controllers that were looked for.
    source
        Finds the same place with other controllers.
    """

    source: Callable[[Collection[str]], Place]
    unified: Directory | None = None
    legacy: dict[str, Directory] = field(default_factory=dict)
    refusals: dict[str, Unsupported] = field(default_factory=dict)
    top: str = "/"
    known: set[str] = field(default_factory=set)
    _told: dict[tuple[Directory, ...], reaper.Place] = field(default_factory=dict)

    def entrust(self, parents: Iterable[Directory], name: str, keep: Callable[[Ticket], object]) -> Ticket:
        """Entrust what is made by that name in some of the directories to the reaper, which is told of them once."""
        key = tuple(parents)
        found = self._told.get(key)
        if found is None:
            found = self._told[key] = reaper.place([one.fileno() for one in key])
        return found.entrust(name, keep)

    @property
    def directories(self) -> list[Directory]:
        """Its directories, each once."""
        return distinct([self.unified, *self.legacy.values()])


class _Cache:
    """The place of this process, by its lines in /proc/PID/cgroup: they change when somebody moves it."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.place: tuple[tuple[object, ...], Place] | None = None
        #: The scopes that systemd has delegated, one for each process that has asked.
        self.scopes: dict[tuple[int, int], str] = {}


_cache: Final = _Cache()


def _renew() -> None:
    _cache.lock = Lock()
    _cache.place = None


os.register_at_fork(after_in_child=_renew)


def descriptors() -> set[int]:
    """Return what stays open for the life of this process: the directories of its place."""
    return set() if _cache.place is None else {fd for one in _cache.place[1].directories for fd in one.descriptors}


def find(controllers: Collection[str], allow: Collection[str] = (), *, trust: bool = False) -> Place:
    """Return where a group with these controllers is made; it is kept, and grows.

    Parameters
    ----------
    controllers
        Those that it must have; those that only count are added where they can be had.
    allow
        ``"move-self"`` among them lets the processes of the caller's own group be moved.
    trust
        Whether its directories need not be looked at: whoever makes something in them learns that they are gone.

    Raises
    ------
    Unsupported
        There is no place: who refuses, and exactly what would help.
    """
    wanted = frozenset(controllers) | COUNTING | LEGACY
    with _cache.lock:
        kept = _cache.place
        key = (home(), cgroupfs.read_entries(), MOVE_SELF in allow)
        if kept is None or kept[0] != key or not (trust or all(one.is_there() for one in kept[1].directories)):
            found = _search(survey(), wanted, frozenset(controllers), move_self=MOVE_SELF in allow)
            kept = _cache.place = ((home(), cgroupfs.read_entries(), MOVE_SELF in allow), found)
        elif not wanted <= kept[1].known:
            _add(kept[1], survey(), wanted - kept[1].known)
        return kept[1]


def _search(found: Survey, wanted: frozenset[str], needed: frozenset[str], *, move_self: bool) -> Place:
    place = Place(lambda more: find(more, (MOVE_SELF,) if move_self else ()))
    if found.unified is not None:
        in_v2 = {name for name in wanted & found.in_v2 if name not in found.legacy}
        path = _unified_place(found.unified, in_v2, in_v2 & needed, move_self=move_self)
        place.unified, place.top = Directory.open(path, 2), found.unified.top
    _add(place, found, wanted)
    return place


def _add(place: Place, found: Survey, wanted: frozenset[str]) -> None:
    """Add the directories of controllers, or the reasons why there are none."""
    if place.unified is not None:
        in_v2 = wanted & found.in_v2
        enable(place.unified, place.top, in_v2)
        for name in in_v2 - enabled_in(place.unified):
            place.refusals[name] = not_enabled(name, place.unified.path)
    opened = {one.path: one for one in place.legacy.values()}
    # Where v2 is mounted every group can be frozen, and its processor time is counted, without a controller.
    place.known |= wanted
    for name in wanted - found.in_v2 - (LEGACY if place.unified is not None else frozenset()):
        group = found.legacy.get(V1_CONTROLLERS[name])
        refusal = _v1_refusal(name, group)
        if refusal is not None:
            place.refusals[name] = refusal
        elif group is not None:
            if group.path not in opened:
                opened[group.path] = Directory.open(group.path, 1)
            place.legacy[name] = opened[group.path]


def _v1_refusal(name: str, group: Group | None) -> Unsupported | None:
    feature = f"the {name} controller of a control group"
    if group is None:
        v1_name = V1_CONTROLLERS[name]
        return Unsupported(
            feature,
            "this host, where it is in no hierarchy",
            f"boot without cgroup_disable={name}, or as root: mount -t cgroup -o {v1_name} cgroup /sys/fs/cgroup/{v1_name}",
        )
    if group.readonly:
        return Unsupported(feature, f"{group.top}, which is mounted read-only", "start with a writable cgroupfs")
    if name == "io" and (others := set(group.controllers) - {V1_CONTROLLERS[one] for one in SHARED}):
        return Unsupported(
            feature,
            f"{group.top}, where it is mounted together with {', '.join(sorted(others))}: it binds nobody in groups below",
            "as root: mount -t cgroup -o blkio by itself, or cgroup v2",
        )
    if not may_use(group.path, unified=False):
        return Unsupported(
            feature,
            f"the permissions of {group.path}",
            f"root, or a group there that belongs to this user (uid {os.geteuid()})",
        )
    return None


def not_enabled(name: str, path: str) -> Unsupported:
    """Return the exception for a controller that a group does not give to those below it."""
    return Unsupported(
        f"the {name} controller of a control group",
        f"{path}/{_CONTROL}, which lacks it",
        f"as its owner: echo +{name} > {path}/{_CONTROL}, and the same in each group above it",
    )


# ---- v2 ----


def _unified_place(own: Group, in_v2: set[str], needed: set[str], *, move_self: bool) -> str:
    if own.readonly:
        raise Unsupported("control groups", f"{own.top}, which is mounted read-only", "start with a writable cgroupfs")
    if is_top(own.path) and may_use(own.path, unified=True):
        return own.path
    if not in_v2 and may_use(own.path, unified=True):  # where it gives nothing, the rule does not apply
        return own.path
    above = _nearest_above(own)
    if above is not None:
        return above
    if may_use(own.path, unified=True):
        if move_self:
            _move_processes(own.path)
            return own.path
        if not needed and not systemd.is_running():
            return own.path
    if systemd.is_running():
        return _systemd_scope(own, move_self=move_self)
    raise _no_place(own)


def is_top(path: str) -> bool:
    """Return whether a directory is the top of the whole hierarchy, not that of a cgroup namespace; it has no type."""
    return not os.path.exists(f"{path}/cgroup.type")


def _is_inhabited(path: str) -> bool:
    """Return whether processes live in a group of v2; so does who cannot be listed, as the threads of a threaded one."""
    try:
        with open(f"{path}/cgroup.procs", "rb") as file:
            return bool(file.read(1))
    except OSError:
        return True


def _nearest_above(own: Group) -> str | None:
    directory = own.path
    while directory != own.top:
        directory = os.path.dirname(directory)
        if not may_use(directory, unified=True):
            return None
        if systemd.is_running() and systemd.delegated_ancestor(directory, own.top) is None:
            return None
        if is_top(directory) or not _is_inhabited(directory):
            return directory
    return None


def _move_processes(path: str) -> None:
    """Move the processes of a group to a leaf below it, that it can give controllers to others."""
    leaf = f"isolib-self-{os.getpid()}"
    with Directory.open(path, 2) as directory:
        directory.make(leaf, anew=False)
        for _ in range(100):  # some are born meanwhile
            pids = directory.read("cgroup.procs").split()
            if not pids:
                return
            for pid in pids:
                with suppress(ProcessLookupError):
                    directory.write(f"{leaf}/cgroup.procs", pid)
    raise Unsupported(
        "moving the processes of a control group", f"{path}, where more are born than can be moved", "start in a group below it"
    )


def _systemd_scope(own: Group, *, move_self: bool) -> str:
    """Ask systemd for a delegated scope, once; it lives as long as the reaper of this process does."""
    if (known := _cache.scopes.get(home())) is not None and os.path.isdir(known):
        return known
    # Who is no root must have the right to write to a group above both, or nobody is born from the one into the other.
    outside = os.geteuid() != 0 and not _is_in_user_manager(own)
    if outside and not move_self:
        raise _no_place(own)
    try:
        scope = systemd.start_scope([reaper.pid()], move_self=outside)
    except (Unsupported, SyscallError) as refusal:
        error = _no_place(own)
        error.add_note(f"systemd was asked for a scope, too: {refusal}")
        raise error from refusal
    path = own.top + scope.path
    with Directory.open(path, 2) as directory:
        for leaf, pid in [("reaper", reaper.pid()), *([("self", os.getpid())] if outside else [])]:
            directory.make(leaf)
            directory.write(f"{leaf}/cgroup.procs", str(pid))
    _cache.scopes[home()] = path
    return path


def _is_in_user_manager(own: Group) -> bool:
    """Return whether a group is below that of the user's own systemd, which belongs to him as a whole."""
    directory = own.path
    while directory != own.top:
        if may_use(directory, unified=True) and os.path.basename(directory) == f"user@{os.geteuid()}.service":
            return True
        directory = os.path.dirname(directory)
    return False


def _no_place(own: Group) -> Unsupported:
    path = own.path
    if not may_use(path, unified=True) and systemd.is_running():
        return Unsupported(
            "control groups",
            f"the permissions of {path}, which this user (uid {os.geteuid()}) may not use, and from which nobody can be born "
            "into a scope of his own systemd",
            "allow=('move-self',), by which systemd moves this process into a scope of its own (pip install isolib[systemd]); "
            "or start it by systemd-run --user --scope -p Delegate=yes COMMAND",
        )
    if not may_use(path, unified=True):
        return Unsupported(
            "control groups",
            f"the permissions of {path}, which this user (uid {os.geteuid()}) may not use",
            "as root: mkdir a group, chown it and its cgroup.procs, cgroup.threads and cgroup.subtree_control to this user, "
            "and start this program in a group below it",
        )
    return Unsupported(
        "control groups with controllers",
        f"cgroup v2, where a group with processes gives no controllers to groups below it: this process is in {path}",
        f"allow=('move-self',), which moves the processes of {path} to a group below it; or start in one: "
        f"mkdir {path}/main && echo $$ > {path}/main/cgroup.procs",
    )


def enabled_in(directory: Directory) -> frozenset[str]:
    """Return the controllers that a group of v2 gives to those below it."""
    return frozenset(directory.sample(_CONTROL).decode("ascii").split())


def available_in(directory: Directory) -> frozenset[str]:
    """Return the controllers that a group of v2 has."""
    return frozenset(directory.sample("cgroup.controllers").decode("ascii").split())


def enable(directory: Directory, top: str, names: Collection[str], *, threaded: bool = False) -> None:
    """Enable controllers for the groups below a directory of v2, from the top down, as far as that is possible.

    Not in a group in which processes live, though the kernel would let it give some: it becomes the domain of threads by that,
    and the groups below it can have no processes.

    Parameters
    ----------
    directory, top
        The group, and where its hierarchy is mounted.
    names
        The controllers.
    threaded
        Whether that is what is wanted.
    """
    missing = set(names) - enabled_in(directory)
    if not missing:
        return
    chain = [directory.path]
    while chain[-1] not in {top, "/"} and missing - set(read_words(f"{chain[-1]}/cgroup.controllers")):
        chain.append(os.path.dirname(chain[-1]))
    for path in reversed(chain):
        available = set(read_words(f"{path}/cgroup.controllers"))
        wanted = missing & available - set(read_words(f"{path}/{_CONTROL}"))
        if not wanted or (not threaded and not is_top(path) and _is_inhabited(path)):
            continue
        with nullcontext(directory) if path == directory.path else Directory.open(path, 2) as one:
            for name in sorted(wanted):
                try:
                    one.write(_CONTROL, f"+{name}")
                except PermissionDenied:
                    continue
                except SyscallError as error:
                    if error.errno not in {EBUSY, EOPNOTSUPP}:
                        raise


def open_house(directory: Directory | None) -> frozenset[str]:
    """Give the counting controllers of v2 to the groups below one; returns those that they have then."""
    if directory is None:
        return frozenset()
    wanted = COUNTING.intersection(directory.glance("cgroup.controllers").decode("ascii").split())
    if wanted and (missing := wanted.difference(directory.glance(_CONTROL).decode("ascii").split())):
        directory.write(_CONTROL, " ".join(f"+{name}" for name in sorted(missing)))
    return wanted
