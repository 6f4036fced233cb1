"""One process asked for: the arguments of `spawn`, validated, and turned into a plan.

A `Request` is made once and may be launched many times: everything but the program, its arguments and its streams is planned
when it is made.
"""

from __future__ import annotations

import os
from copy import copy
from dataclasses import replace
from errno import ECHILD, ENOSYS, EPERM
from typing import TYPE_CHECKING, Final, Protocol, TypeVar, cast

from isolib._kernel import assembly, calls
from isolib._kernel.assembly import Identity, Scene
from isolib._kernel.handle import Rollback
from isolib._kernel.hints import typed
from isolib._kernel.idmap import IdMapPlan, resolve
from isolib._kernel.launch import Launched, launch, run
from isolib._kernel.plan import INSIDE, Builder, Step, exec_step
from isolib.errors import PlanError, SetupFailed
from isolib.types import check_argv, check_hostname, check_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from isolib._kernel.assembly import Rights
    from isolib._kernel.lending import Lender, Loan
    from isolib._kernel.lodging import Lodge, Lodging, Shape
    from isolib._kernel.plan import Plan, Slot
    from isolib.types import HasFileno, IdMap

    class MountValue(Protocol):
        """A value of isolib.mounts."""

        def add_steps(self, builder: Builder, root: Slot | None, scene: Scene) -> None:
            """Add the steps that attach it beneath a root."""

    class Shown(Lender, Protocol):
        """A directory that a handle holds open."""

        @property
        def path(self) -> str:
            """Where it is on the host."""

        def fileno(self) -> int:
            """Return a descriptor of it."""

    class RootValue(Protocol):
        """A value of isolib.mounts.Root, an image, a tree."""

        def add_steps(self, builder: Builder, mounts: Sequence[MountValue], scene: Scene) -> None:
            """Add the steps that build the root, with mounts in it, and enter it."""

        def visible(self) -> list[str]:
            """Return what is seen inside before any mounts: a line for each path."""

    class Confine(Protocol):
        """A value of isolib.confine."""

        def rights(self) -> Rights:
            """Return what the command is left with."""


T = TypeVar("T")

_MAX_ID: Final = 2**32 - 2
_INFINITY: Final = 2**64 - 1
_MAX_DEADLINE: Final = (2**31 - 1) // 1000
#: How a launch fails where CLONE_INTO_CGROUP is not to be had: the kernel kills the process, or a filter hides clone3.
_CLONE_FAILS: Final = frozenset({ECHILD, ENOSYS, EPERM})
_TOO_LITTLE: Final = "the memory limit of its control group was reached before the program could start: raise memory_max"
_RLIMITS: Final = 16  # RLIM_NLIMITS of asm-generic/resource.h


class Request:
    """A validated request; `launch` runs it."""

    @typed("a process")
    def __init__(
        self,
        *,
        new: Iterable[str] = (),
        join: Iterable[HasFileno] = (),
        under: HasFileno | None = None,
        cgroup: HasFileno | Lodging | None = None,
        root: RootValue | None = None,
        mounts: Sequence[MountValue] = (),
        id_map: str | Sequence[IdMap] | IdMapPlan | None = None,
        gid_map: str | Sequence[IdMap] | None = None,
        hostname: str | None = None,
        domainname: str | None = None,
        user: str | int | tuple[int, int] | None = None,
        groups: Iterable[int] = (),
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        pass_fds: Iterable[int] = (),
        pty: bool = False,
        rlimits: Mapping[int, int | tuple[int, int]] | None = None,
        umask: int | None = None,
        confine: Confine | None = None,
        identity: Identity | None = None,
        rights: Rights | None = None,
        deadline: float = 0,
        dumpable: bool = False,
        stream_owner: tuple[int, int] | None = None,
    ) -> None:
        kinds = assembly.check_kinds(new)
        self._joins = tuple(join)  # kept alive: their descriptors are in the plan
        self._under = under
        self._cgroup = cgroup
        self._env = None if env is None else _check_env(env)
        self._keep = _check_keep(pass_fds)
        self._last: tuple[tuple[bytes, ...], Plan] | None = None
        builder = Builder()
        joins = assembly.plan_joins(builder, self._joins, kinds, under)
        self._join_slots = [builder.slot_of(one.fileno()) for one in (*self._joins, under) if one is not None]
        mnt = "mnt" in kinds | joins.kinds
        uts = "uts" in kinds | joins.kinds
        if (root is not None or mounts) and not mnt:
            raise PlanError("root= and mounts= need a mount namespace: new={'mnt', ...}, or the host's own mounts would change")
        needed = own_map(root)
        if needed is not None and "user" not in kinds | joins.kinds:
            raise PlanError("root=: what an ordinary user mounts belongs to a user namespace: new={'mnt', 'user', ...}")
        maps = _maps(kinds, id_map or (needed if "user" in kinds else None), gid_map)
        if (hostname is not None or domainname is not None) and not uts:
            raise PlanError("hostname= needs a UTS namespace: new={'uts', ...}, or the host's own name would change")
        identity = identity or _identity(user, maps, tuple(groups))
        where = None if cwd is None else check_path(cwd, "cwd")
        rights = rights if confine is None else confine.rights()
        powerless = rights is not None and rights.capabilities == 0
        scene = replace(_scene(builder, kinds, maps, identity, where), joined=joins.kinds, powerless=powerless)
        builder.stream_owner = stream_owner or _stream_owner(scene)
        self._lodging = None if cgroup is None or not hasattr(cgroup, "lodge") else cast("Lodging", cgroup)
        self._places = _Places(builder, self._lodging.shape) if self._lodging else None
        if cgroup is not None and self._lodging is None:
            builder.cgroup = builder.declare(cast("HasFileno", cgroup).fileno(), "cgroup")
        builder.deadline_ms = _deadline_ms(deadline)
        assembly.add_birth(builder, scene, maps, joins, dumpable=dumpable)
        assembly.add_names(builder, hostname if hostname is None else check_hostname(hostname, "hostname"), domainname)
        if "mnt" in kinds:
            assembly.add_private_propagation(builder)
        if root is not None:
            root.add_steps(builder, mounts, scene)
        else:
            for mount in mounts:
                mount.add_steps(builder, None, scene)
        assembly.add_command(
            builder,
            terminal=assembly.add_pty(builder, identity) if pty else None,
            rlimits=_check_rlimits(rlimits),
            umask=umask,
            identity=identity,
            rights=rights,
            cwd=where,
            own_keyring=bool(kinds | joins.kinds),
            outlives_supervisor="pid" not in kinds,
        )
        self.builder = builder
        self.scene = scene

    def let_go(self) -> Request:
        """Let go of the namespaces that it was made with, and return it; from then on it is only there for `again`."""
        self._joins, self._under = (), None
        return self

    def again(self, join: Sequence[HasFileno], under: HasFileno | None, contents: Mapping[tuple[str, bytes], bytes]) -> Request:
        """Return the same request with other namespaces of the same kinds, and files with other contents (`Builder.again`)."""
        made = copy(self)
        made._joins, made._under, made._last = tuple(join), under, None  # noqa: SLF001 - its own class
        fds = [one.fileno() for one in (*join, under) if one is not None]
        made.builder = self.builder.again(dict(zip(self._join_slots, fds, strict=True)), contents)
        return made

    def plan(self, argv: Sequence[str | bytes | os.PathLike[str]]) -> Plan:
        """Return the whole plan for a program: what `launch` would run."""
        return self._plan(check_argv(argv))

    def _plan(self, words: tuple[bytes, ...]) -> Plan:
        # Tests and judges run one command again and again; its plan is then encoded already.
        last = self._last
        if last is not None and last[0] == words and self._env is not None:
            return last[1]
        end = exec_step(words, _env_words(self._env), assembly.exec_candidates(words[0], self._env))
        plan = self.builder.build(end) if last is None else last[1].with_end(end)
        self._last = (words, plan)
        return plan

    def launch(self, argv: Sequence[str | bytes | os.PathLike[str]], stdio: tuple[int, int, int]) -> Launched:
        """Start the program."""
        plan = self.plan(argv)
        return self._housed(lambda fds, lodge: launch(plan, fds, stdio=stdio, keep=self._keep, lodge=lodge))

    def run(
        self,
        argv: Sequence[str | bytes | os.PathLike[str]],
        pump: calls.Pump,
        stdio: tuple[int, int, int],
        timeout_ns: int,
        premises: tuple[bytes, int] | None,
    ) -> tuple[Launched, int] | None:
        """Run the program to its end; see `isolib._kernel.launch.run`."""
        plan = self.plan(argv)
        return self._housed(
            lambda fds, lodge: run(plan, fds, pump, stdio=stdio, timeout_ns=timeout_ns, premises=premises, lodge=lodge)
        )

    def hold(self) -> Launched:
        """Start a resident process without a program, which keeps the namespaces and mounts alive."""
        null = calls.STDIO_NULL
        plan = self.builder.build(assembly.HOLD)
        return self._housed(lambda fds, lodge: launch(plan, fds, stdio=(null, null, null), lodge=lodge))

    @typed("a process")
    def _housed(self, start: Callable[[list[int], Lodge | None], T]) -> T:
        """Start a process with what is lent to it, where something is, which it has until it is gone."""
        if not self.builder.borrows:
            return self._placed(start, {})
        with Rollback() as undo:
            lent: dict[Slot, int] = {}
            loans: list[Loan] = []
            for slot, lender in self.builder.lenders.items():
                loan = lender.lend(self.scene)
                loans.append(loan)
                undo.push(loan.close)
                lent[slot] = loan.open()
            started = self._placed(start, lent)
            launched = started[0] if isinstance(started, tuple) else started
            if isinstance(launched, Launched):  # else a premise of the plan holds no more
                launched.loans = tuple(loans)
                undo.dismiss()
        return started

    def _placed(self, start: Callable[[list[int], Lodge | None], T], lent: dict[Slot, int]) -> T:
        """Start a process in a place of its own in the group, where there is a group."""
        while self._lodging is not None and self._places is not None:
            lodge = self._lodging.lodge()
            try:
                started = start(self.builder.fds_with({**lent, **self._places.filled(lodge)}), lodge)
            except SetupFailed as failed:
                if lodge.settle().oom_kills:
                    error = SetupFailed(failed.step, failed.op, failed.target, failed.errno, _TOO_LITTLE)
                    raise error from failed
                if failed.errno not in _CLONE_FAILS or not self._lodging.avoid_clone():
                    raise
            except BaseException:
                lodge.settle()
                raise
            else:
                if started is None:  # a premise of the plan holds no more
                    lodge.settle()
                elif isinstance(started, Launched) and started.command_pid:
                    lodge.supervisor = started.supervisor_pid
                return started
        return start(self.builder.fds_with(lent), None)


class _Places:
    """The slots of a plan that each launch fills with the descriptors of its lodge."""

    def __init__(self, builder: Builder, shape: Shape) -> None:
        self._clone = self._procs = None
        if shape.unified:
            self._clone = builder.cgroup = builder.declare(-1, "cgroup")
            self._procs = builder.declare(-1, "cgroup.procs")
        self._tasks = [builder.declare(-1, "tasks") for _ in range(shape.legacy)]
        self._oom = builder.oom = builder.declare(-1, "eventfd") if shape.oom else None
        self._kills = builder.oom_kills = builder.declare(-1, "memory.oom_control") if shape.oom_kills else None
        for slot in (self._procs, *self._tasks):
            if slot is not None:
                # A process of one thread that moves itself waits for nobody else in v1 (cgroup_procs_write_start).
                builder.add(INSIDE, Step("PUT", fd=slot, flags=int(slot is self._procs), text2=b"0", what=slot.label))

    def filled(self, lodge: Lodge) -> dict[Slot, int]:
        """Return what the slots hold for one launch."""
        found = dict(zip(self._tasks, lodge.tasks, strict=True))
        launch = ((self._clone, lodge.directory), (self._procs, lodge.procs))
        others = (*launch, (self._oom, lodge.oom), (self._kills, lodge.oom_kills))
        return found | {slot: fd for slot, fd in others if slot is not None}


def _deadline_ms(seconds: float) -> int:
    if not seconds:
        return 0
    if seconds > _MAX_DEADLINE:
        raise PlanError(f"a wall limit of {seconds:g} s: {_MAX_DEADLINE} s (24 days) is the most; None means no limit")
    return max(1, round(seconds * 1000))


def own_map(root: RootValue | None) -> str | None:
    """Return the id map that a root comes with, for its files belong to a user namespace with this one; None: it has none."""
    found: Callable[[], str | None] | None = getattr(root, "own_map", None)
    return None if found is None else found()


def _is_whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_pair(value: Sequence[object], low: int, high: int) -> bool:
    return len(value) == len((low, high)) and all(_is_whole(one, low, high) for one in value)


def _maps(
    kinds: frozenset[str], id_map: str | Sequence[IdMap] | IdMapPlan | None, gid_map: str | Sequence[IdMap] | None
) -> IdMapPlan | None:
    # The map of the user ids is that of the group ids too, unless that is another one.
    if "user" not in kinds:
        if id_map is not None:
            raise PlanError("id_map= needs a user namespace: new={'user', ...}")
        return None
    if isinstance(id_map, IdMapPlan):
        return id_map
    wanted = "root" if id_map is None else id_map
    return resolve(wanted, wanted if gid_map is None else gid_map)


def _scene(
    builder: Builder, kinds: frozenset[str], maps: IdMapPlan | None, identity: Identity | None, cwd: str | None
) -> Scene:
    privileged = assembly.is_privileged()
    uid, gid = (0, 0) if identity is None else (identity.uid, identity.gid)
    if maps is None:
        return Scene(new=kinds, privileged=privileged, uid=uid, gid=gid, cwd=cwd)
    userns = None
    if privileged and "mnt" in kinds:
        userns = builder.declare(assembly.userns_fd(maps.uid, maps.gid), "user namespace of id-mapped mounts")
    return Scene(new=kinds, privileged=privileged, uid_map=maps.uid, gid_map=maps.gid, userns=userns, uid=uid, gid=gid, cwd=cwd)


def _stream_owner(scene: Scene) -> tuple[int, int] | None:
    """Return whom the pipes of a command must belong to for it to open /dev/stdout: itself, who is somebody else outside."""
    if not scene.privileged:
        return None
    uid, gid = assembly.outside_id(scene.uid_map, scene.uid), assembly.outside_id(scene.gid_map, scene.gid)
    return None if uid is None or gid is None else (uid, gid)


def _identity(
    user: str | int | tuple[int, int] | None, maps: IdMapPlan | None, groups: tuple[int, ...] = ()
) -> Identity | None:
    if user is None:
        return None
    uid, gid = user_ids(user)
    if maps is not None:
        ids = [("user", uid, maps.uid), *(("group", one, maps.gid) for one in (gid, *groups))]
        for what, number, ranges in ids:
            if not assembly.maps_id(ranges, number):
                raise PlanError(
                    f"user={user!r}: {what} id {number} is not mapped in the new user namespace; id_map='auto' maps a range, "
                    "id_map=[IdMap(...)] maps what you say"
                )
        return Identity(uid, gid, None if maps.setgroups_deny else (gid, *groups))
    return Identity(uid, gid, (gid, *groups))


def user_ids(user: str | int | tuple[int, int]) -> tuple[int, int]:
    """Return uid and gid; a name is looked up in the host's own passwd database, never in the new root's."""
    if isinstance(user, tuple):
        ids = user
    elif isinstance(user, bool) or not isinstance(user, (int, str)):
        raise PlanError(f"user={user!r}: a name, a number or (uid, gid) is wanted")
    elif isinstance(user, int):
        ids = (user, user)
    else:
        ids = _look_up(user)
    if not _is_pair(ids, 0, _MAX_ID):
        raise PlanError(f"user={user!r}: ids are whole numbers from 0 to {_MAX_ID}")
    return ids


def _look_up(user: str) -> tuple[int, int]:
    import pwd  # noqa: PLC0415 - few ask

    try:
        entry = pwd.getpwnam(user)
    except (KeyError, ValueError):
        raise PlanError(
            f"user={user!r}: no such user in the host's passwd database; a number or (uid, gid) needs none"
        ) from None
    return entry.pw_uid, entry.pw_gid


def _check_env(env: Mapping[str, str]) -> dict[bytes, bytes]:
    checked: dict[bytes, bytes] = {}
    for name, value in env.items():
        try:
            key, text = os.fsencode(name), os.fsencode(value)
        except TypeError:
            raise PlanError(f"env: names and values are str or bytes, not {name!r}: {value!r}") from None
        if not key or b"=" in key or b"\0" in key or b"\0" in text:
            raise PlanError(f"env: {name!r}: a name is not empty and has no '=', neither holds a NUL")
        checked[key] = text
    return checked


def _env_words(env: Mapping[bytes, bytes] | None) -> list[bytes]:
    return [name + b"=" + value for name, value in (os.environb if env is None else env).items()]


def _check_keep(pass_fds: Iterable[int]) -> tuple[int, ...]:
    keep = sorted(set(pass_fds))
    if len(keep) > calls.MAX_KEEP:
        raise PlanError(f"pass_fds: {len(keep)} descriptors; {calls.MAX_KEEP} are the most")
    for fd in keep:
        if not _is_whole(fd, 0, _MAX_ID):
            raise PlanError(f"pass_fds: {fd!r} is not a descriptor")
        try:
            os.fstat(fd)
        except OSError:
            raise PlanError(f"pass_fds: descriptor {fd} is not open") from None
    return tuple(fd for fd in keep if fd > 2)  # noqa: PLR2004 - the standard streams are passed anyway


def _check_rlimits(rlimits: Mapping[int, int | tuple[int, int]] | None) -> dict[int, tuple[int, int]]:
    checked: dict[int, tuple[int, int]] = {}
    for number, value in (rlimits or {}).items():
        pair = value if isinstance(value, tuple) else (value, value)
        if not _is_whole(number, 0, _RLIMITS - 1):
            raise PlanError(f"rlimits: {number!r} is not a resource; use resource.RLIMIT_*")
        if not _is_pair(pair, -1, _INFINITY):
            raise PlanError(f"rlimits: {value!r}: (soft, hard) numbers are wanted, -1 for none")
        soft, hard = (_INFINITY if one == -1 else one for one in pair)
        if soft > hard:
            raise PlanError(f"rlimits: soft limit {pair[0]} is above hard limit {pair[1]}")
        checked[number] = (soft, hard)
    return checked
