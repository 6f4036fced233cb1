"""From what a caller asks for to a launch plan: namespaces, id maps, identity, the order of it all.

The order is the kernel's: a user namespace is joined before those it owns and after those it does not; ids are mapped before
anything is created; the cgroup namespace is unshared once the process is in its cgroup; the old root goes last; the identity
changes after everything that needs privileges, the filter comes last of all.
"""

from __future__ import annotations

import os
import struct
import threading
from dataclasses import dataclass
from errno import EINVAL, ENOENT, ENOSYS, EPERM
from signal import SIGKILL
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib._kernel.launch import launch
from isolib._kernel.plan import COMMAND, HOLD, HOST, INSIDE, Builder, Slot, Step, encode_text
from isolib._kernel.procfs import parse_effective
from isolib.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from isolib._kernel.handle import Fd
    from isolib._kernel.idmap import IdMapPlan
    from isolib.types import HasFileno, IdMap

#: A set of namespaces is named by these.
KINDS: Final = frozenset(calls.NAMESPACE_FLAGS)

#: Those that clone makes.  A cgroup namespace shows as its root the cgroup in which it was unshared, so that is done inside;
#: a time namespace is entered by the next process that is born or executed, so that is done by the supervisor.
_BY_CLONE: Final = KINDS - {"cgroup", "time"}

#: Nobody needs a privilege for port 80 of a network that is his alone (ip(7), since Linux 4.11).
_LOW_PORTS: Final = b"/proc/sys/net/ipv4/ip_unprivileged_port_start"
_SYSCTLS: Final = "/proc/sys"

_CAP_SYS_ADMIN: Final = 21

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_KEEPCAPS: Final = 8
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_SET_NO_NEW_PRIVS: Final = 38


@dataclass(frozen=True, slots=True)
class Scene:
    """What those who add steps may want to know of the process to come.

    Attributes
    ----------
    new
        The kinds of its new namespaces.
    privileged
        Whether the caller is root on the host.
    uid_map, gid_map
        Of its new user namespace; empty when there is none.
    userns
        The slot of a user namespace with the same maps, for id-mapped mounts; only where the caller is privileged.
    uid, gid
        The ids of the command, as it sees them.
    cwd
        Its working directory, or None: unchanged.
    joined
        The kinds of namespaces that it joins.
    powerless
        Whether the command has no capability, not over its own namespaces either: what covers something stays where it is.
    """

    new: frozenset[str]
    privileged: bool
    uid_map: tuple[IdMap, ...] = ()
    gid_map: tuple[IdMap, ...] = ()
    userns: Slot | None = None
    uid: int = 0
    gid: int = 0
    cwd: str | None = None
    joined: frozenset[str] = frozenset()
    powerless: bool = False


@dataclass(frozen=True, slots=True)
class Identity:
    """The user, group and supplementary groups of the command, as it sees them; ``groups`` None leaves them."""

    uid: int
    gid: int
    groups: tuple[int, ...] | None = ()


@dataclass(frozen=True, slots=True)
class Rights:
    """What the command is left with: ``capabilities`` is a mask, or None: unchanged."""

    capabilities: int | None = None
    no_new_privs: bool = False
    landlock: int | None = None
    seccomp: bytes | None = None


def may_administer() -> bool:
    """Return whether the calling thread has CAP_SYS_ADMIN over its own user namespace, be that the host's or another."""
    with open("/proc/thread-self/status", "rb", buffering=0) as file:
        return bool(parse_effective(file.readall()) >> _CAP_SYS_ADMIN & 1)


def is_host_root() -> bool:
    """Return whether the calling thread is root of the whole host: user id 0 in the first user namespace, which has all ids."""
    return os.geteuid() == 0 and calls.is_in_first_userns()


def is_privileged() -> bool:
    """Return whether the calling thread may do what only the host's administrator may: id-mapped mounts, for one."""
    return is_host_root() and may_administer()


def check_kinds(new: Iterable[str]) -> frozenset[str]:
    """Return the kinds of new namespaces, validated."""
    if isinstance(new, str):
        raise PlanError(f"new={new!r}: a set of kinds is wanted, such as {{'pid', 'net'}}")
    kinds = frozenset(new)
    unknown = kinds - KINDS
    if unknown:
        raise PlanError(
            f"unknown kinds of namespaces: {', '.join(sorted(map(str, unknown)))}; there are {', '.join(sorted(KINDS))}"
        )
    return kinds


# ---- joining ----


@dataclass(frozen=True, slots=True)
class _Joined:
    fd: int
    kind: str
    label: str


def _joined(handle: HasFileno) -> _Joined:
    fd = handle.fileno()
    try:
        flag = calls.namespace_flag(fd)
    except OSError as error:
        raise PlanError(f"join: {handle!r} is not a namespace ({error.strerror})") from None
    for kind, known in calls.NAMESPACE_FLAGS.items():
        if known == flag:
            return _Joined(fd, kind, f"{kind} namespace")
    raise PlanError(f"join: {handle!r} is a namespace of an unknown kind ({flag:#x})")


def _owned_by(fd: int, userns: int) -> bool:
    """Return whether that user namespace owns a namespace; one that we may not ask about is not ours to enter earlier."""
    try:
        owner = calls.namespace_owner(fd)
    except OSError:
        return True
    with owner:
        return os.path.sameopenfile(owner.fileno(), userns)


@dataclass(frozen=True, slots=True)
class Joins:
    """The namespaces to join: their kinds, and the steps in their order."""

    kinds: frozenset[str]
    steps: tuple[Step, ...]


#: Says where the calling thread would be had it entered nothing: descriptors and clone flags.  isolib.namespaces sets it, for
#: what is not imported has moved no thread.
_astray: Final[list[Callable[[], list[tuple[int, int]]]]] = []


def register_astray(function: Callable[[], list[tuple[int, int]]]) -> None:
    """Let a function say which namespaces the calling thread has left for a while."""
    _astray.append(function)


def outside() -> list[tuple[int, int]]:
    """Return where the calling thread would be had it entered nothing; the descriptors are there until it returns."""
    return [each for function in _astray for each in function()]


def is_astray() -> bool:
    """Return whether the calling thread is inside a namespace that it will leave again."""
    return bool(outside())


def plan_joins(builder: Builder, handles: Iterable[HasFileno], new: frozenset[str], under: HasFileno | None = None) -> Joins:
    """Return the steps that join namespaces, each in its turn; ``under`` is a user namespace above all others."""
    joined = [_joined(handle) for handle in handles]
    kinds = [one.kind for one in joined]
    twice = {kind for kind in kinds if kinds.count(kind) > 1} or (set(kinds) & new)
    if twice:
        raise PlanError(
            f"{', '.join(sorted(twice))}: a process is in one namespace of a kind, but two are named in new= and join="
        )
    # Within each part the mount namespace comes last: with it the thread's root and working directory change.
    joined.sort(key=lambda one: one.kind == "mnt")
    users = [one for one in joined if one.kind == "user"]
    others = [one for one in joined if one.kind != "user"]
    late = [one for one in others if users and _owned_by(one.fd, users[0].fd)]
    early = [one for one in others if one not in late]
    above = [] if under is None else [_joined(under)]
    # A process is in the namespaces that are named, else in the program's own, never in those that the thread is visiting.
    names = {flag: kind for kind, flag in calls.NAMESPACE_FLAGS.items()}
    home = [_Joined(fd, names[flag], f"{names[flag]} namespace of the program") for fd, flag in outside()]
    steps = [
        Step("SETNS", fd=builder.declare(one.fd, one.label), flags=calls.NAMESPACE_FLAGS[one.kind], what=one.label)
        for one in (*(one for one in home if one.kind not in new.union(kinds)), *above, *early, *users, *late)
    ]
    return Joins(frozenset(kinds), tuple(steps))


# ---- id maps ----


def _map_text(ranges: Sequence[IdMap]) -> str:
    return "".join(f"{one.inside} {one.outside} {one.count}\n" for one in ranges)


def _helper_arguments(ranges: Sequence[IdMap]) -> list[str]:
    return [str(number) for one in ranges for number in (one.inside, one.outside, one.count)]


def add_maps(builder: Builder, maps: IdMapPlan) -> None:
    """Add the writing of the id maps of a new user namespace (user_namespaces(7))."""
    if maps.helper:
        builder.map_helper("/usr/bin/newuidmap", _helper_arguments(maps.uid))
        builder.map_helper("/usr/bin/newgidmap", _helper_arguments(maps.gid))
        return
    builder.map("uid_map", _map_text(maps.uid))
    if maps.setgroups_deny:
        builder.map("setgroups", "deny")
    builder.map("gid_map", _map_text(maps.gid))


def maps_id(ranges: Sequence[IdMap], inside: int) -> bool:
    """Return whether a map gives an inside id a meaning."""
    return any(one.inside <= inside < one.inside + one.count for one in ranges)


def outside_id(ranges: Sequence[IdMap], inside: int) -> int | None:
    """Return what an inside id is outside, or None."""
    for one in ranges:
        if one.inside <= inside < one.inside + one.count:
            return one.outside + inside - one.inside
    return None


_userns_lock: Final = threading.Lock()
_userns_cache: Final[dict[tuple[int, tuple[IdMap, ...], tuple[IdMap, ...]], Fd]] = {}


def userns_fd(uid_map: tuple[IdMap, ...], gid_map: tuple[IdMap, ...]) -> int:
    """Return a user namespace with these maps, for id-mapped mounts; made once and kept for the life of this process.

    Needs root: each map is written as it is (mount_setattr(2), MOUNT_ATTR_IDMAP).
    """
    key = (os.getpid(), uid_map, gid_map)
    with _userns_lock:
        found = _userns_cache.get(key)
        if found is None:
            found = _userns_cache[key] = _make_userns(uid_map, gid_map)
        return found.fileno()


def _make_userns(uid_map: tuple[IdMap, ...], gid_map: tuple[IdMap, ...]) -> Fd:
    builder = Builder()
    builder.clone_flags = calls.CLONE_NEWUSER
    builder.map("uid_map", _map_text(uid_map))
    builder.map("gid_map", _map_text(gid_map))
    process = launch(builder.build(HOLD))
    try:
        return process.namespace("user")
    finally:
        process.end()


# ---- the process itself ----


def add_birth(builder: Builder, scene: Scene, maps: IdMapPlan | None, joins: Joins, *, dumpable: bool = False) -> None:
    """Add what comes first: joins, clone flags, maps, the identity that sets things up, the supervisor's role.

    A process that is not dumpable shows its memory and its namespaces to nobody; ``dumpable`` is for a resident one whose
    namespaces an ordinary user is about to open, who then tells it to hide.
    """
    flags = sum(calls.NAMESPACE_FLAGS[kind] for kind in scene.new & _BY_CLONE)
    # Who joins a pid namespace stays outside of it; his children are inside.  So a supervisor that joins when it has been
    # born cannot be seen, and not killed, by those who are in there.
    outside = "pid" in joins.kinds and "user" not in scene.new
    if not outside:
        for step in joins.steps:
            builder.add(HOST, step)
        builder.clone_flags = flags
    if maps is not None:
        add_maps(builder, maps)
    if not dumpable:
        builder.add(INSIDE, Step("PRCTL", flags=_PR_SET_DUMPABLE, value=0, what="PR_SET_DUMPABLE"))
    if outside:
        for step in joins.steps:
            builder.add(INSIDE, step)
        if flags:
            builder.add(INSIDE, Step("UNSHARE", flags=flags, what="new namespaces"))
    if "user" in scene.new | joins.kinds:
        _add_inner_root(builder, scene, maps)
    _add_role(builder, scene)
    if "net" in scene.new:
        _add_network(builder)


def _add_network(builder: Builder) -> None:
    builder.add(INSIDE, Step("LINK_UP", text=b"lo", what="lo"))
    if _can_set_sysctls():
        builder.add(INSIDE, Step("WRITE", text=_LOW_PORTS, text2=b"0", flags=os.O_WRONLY, ignore=ENOENT, what="low ports"))


def _can_set_sysctls() -> bool:
    """Return whether /proc/sys can be written; in containers, and in sandboxes, it is read-only, and low ports stay root's."""
    try:
        return not os.statvfs(_SYSCTLS).f_flag & os.ST_RDONLY
    except FileNotFoundError:
        return False


def _add_role(builder: Builder, scene: Scene) -> None:
    builder.add(INSIDE, Step("SETSID", what="supervisor"))
    if "pid" in scene.new:
        builder.supervise_flags = 1
    else:
        builder.add(INSIDE, Step("PRCTL", flags=_PR_SET_CHILD_SUBREAPER, value=1, what="PR_SET_CHILD_SUBREAPER"))
    if "cgroup" in scene.new:
        builder.add(INSIDE, Step("UNSHARE", flags=calls.CLONE_NEWCGROUP, what="cgroup namespace"))
    if "time" in scene.new:
        builder.add(INSIDE, Step("UNSHARE", flags=calls.CLONE_NEWTIME, what="time namespace"))


def _add_inner_root(builder: Builder, scene: Scene, maps: IdMapPlan | None) -> None:
    """Become root inside, where inside has a root: what is created belongs to a mapped id then (else EOVERFLOW)."""
    if maps is None:  # joined: what its map holds is not known here
        builder.add(INSIDE, Step("SETGROUPS", ignore=EPERM, what="supplementary groups"))
        builder.add(INSIDE, Step("SETGID", value=0, ignore=EINVAL, what="gid 0"))
        builder.add(INSIDE, Step("SETUID", value=0, ignore=EINVAL, what="uid 0"))
        return
    if not maps.setgroups_deny:
        builder.add(INSIDE, Step("SETGROUPS", what="supplementary groups"))
    if maps_id(scene.gid_map, 0):
        builder.add(INSIDE, Step("SETGID", value=0, what="gid 0"))
    if maps_id(scene.uid_map, 0):
        builder.add(INSIDE, Step("SETUID", value=0, what="uid 0"))


def add_names(builder: Builder, hostname: str | None, domainname: str | None = None) -> None:
    """Add the naming of the UTS namespace."""
    if hostname is not None:
        builder.add(INSIDE, Step("SETHOSTNAME", text=encode_text(hostname), what=hostname))
    if domainname is not None:
        builder.add(INSIDE, Step("SETDOMAINNAME", text=encode_text(domainname), what=domainname))


def add_private_propagation(builder: Builder) -> None:
    """Keep mounts made inside from reaching the host, whatever propagation its root has (mount_namespaces(7))."""
    builder.add(
        INSIDE,
        Step("MOUNT_SETATTR", text=b"/", flags=calls.AT_RECURSIVE, size2=calls.MS_PRIVATE, what="/ (propagation)"),
    )


def add_pty(builder: Builder, owner: Identity | None) -> Slot:
    """Open a terminal in the new root; its master goes to the host, its other end is returned."""
    master, terminal = Slot("master", declared=False), Slot("terminal", declared=False)
    builder.add(INSIDE, Step("PTY_OPEN", text=b"/dev/ptmx", out=master, fd2=terminal, what="/dev/ptmx"))
    if owner is not None:
        builder.add(INSIDE, Step("FCHOWN", fd=terminal, flags=owner.uid, value=owner.gid, what="terminal"))
    builder.pty = master
    return terminal


def add_command(
    builder: Builder,
    *,
    terminal: Slot | None = None,
    rlimits: Mapping[int, tuple[int, int]] | None = None,
    umask: int | None = None,
    identity: Identity | None = None,
    rights: Rights | None = None,
    cwd: str | None = None,
    own_keyring: bool = False,
    outlives_supervisor: bool = False,
) -> None:
    """Add what the command's own process does before its exec: privileges go after all that needs them."""
    rights = rights or Rights()
    mask = rights.capabilities
    builder.add(COMMAND, Step("SETSID", what="command"))
    if own_keyring:
        # Not the supervisor: its keyring would count against the user's quota until init has reaped it.
        builder.add(COMMAND, Step("KEYRING", ignore=ENOSYS, what="session keyring"))
    if terminal is not None:
        builder.add(COMMAND, Step("STDIO", fd=terminal, flags=1, what="terminal"))
    for resource, (soft, hard) in (rlimits or {}).items():
        builder.add(COMMAND, Step("RLIMIT", size=resource, flags=soft, value=hard, what=f"resource limit {resource}"))
    if umask is not None:
        builder.add(COMMAND, Step("UMASK", value=umask, what="umask"))
    if mask is not None:
        builder.add(COMMAND, Step("BOUNDING", value=mask, what="capability bounding set"))
    if identity is not None:
        _add_identity(builder, identity, keep=bool(mask))
    if cwd is not None:
        builder.add(COMMAND, Step("CHDIR", text=encode_text(cwd), what=cwd))
    if mask is not None:
        raised = mask if identity is not None and identity.uid else 0
        builder.add(COMMAND, Step("CAPSET", flags=mask, value=raised, what="capabilities"))
        builder.add(COMMAND, Step("AMBIENT", value=raised, what="ambient capabilities"))
    if outlives_supervisor:
        # Late, for a change of credentials takes it back.  Where the supervisor is PID 1 its end is everybody's anyway.
        builder.add(COMMAND, Step("PRCTL", flags=_PR_SET_PDEATHSIG, value=SIGKILL, what="PR_SET_PDEATHSIG"))
    _add_confinement(builder, rights)


def _add_confinement(builder: Builder, rights: Rights) -> None:
    if rights.no_new_privs:
        builder.add(COMMAND, Step("PRCTL", flags=_PR_SET_NO_NEW_PRIVS, value=1, what="PR_SET_NO_NEW_PRIVS"))
    ruleset = None if rights.landlock is None else builder.declare(rights.landlock, "Landlock ruleset")
    if ruleset is not None:
        builder.add(COMMAND, Step("LANDLOCK", fd=ruleset, what="Landlock ruleset"))
    builder.add(COMMAND, Step("CLOSE_FDS", what="descriptors"))
    if rights.seccomp is not None:
        builder.add(COMMAND, Step("SECCOMP", text2=rights.seccomp, what="seccomp filter"))


def _add_identity(builder: Builder, identity: Identity, *, keep: bool) -> None:
    if keep and identity.uid:
        builder.add(COMMAND, Step("PRCTL", flags=_PR_SET_KEEPCAPS, value=1, what="PR_SET_KEEPCAPS"))
    if identity.groups is not None:
        groups = struct.pack(f"={len(identity.groups)}I", *identity.groups)
        builder.add(COMMAND, Step("SETGROUPS", text2=groups, what=f"groups {identity.groups}"))
    builder.add(COMMAND, Step("SETGID", value=identity.gid, what=f"gid {identity.gid}"))
    builder.add(COMMAND, Step("SETUID", value=identity.uid, what=f"uid {identity.uid}"))


def exec_candidates(program: bytes, env: Mapping[bytes, bytes] | None) -> list[bytes]:
    """Return the paths to try for a program, as execvp(3): by the command's own PATH."""
    if b"/" in program:
        return [program]
    path = (os.environb if env is None else env).get(b"PATH") or b"/usr/local/bin:/usr/bin:/bin"
    return [os.path.join(directory or b".", program) for directory in path.split(b":")]


__all__ = [
    "HOLD",
    "KINDS",
    "Identity",
    "Rights",
    "Scene",
    "add_birth",
    "add_command",
    "add_maps",
    "add_names",
    "add_private_propagation",
    "add_pty",
    "check_kinds",
    "exec_candidates",
    "is_astray",
    "is_host_root",
    "is_privileged",
    "maps_id",
    "may_administer",
    "outside",
    "outside_id",
    "plan_joins",
    "register_astray",
    "userns_fd",
]
