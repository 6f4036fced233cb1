"""What a sandbox is made of, what it may use, and what a command in it gives back: values."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypedDict, TypeVar

from isolib.errors import PlanError
from isolib.types import check_hostname, check_path, parse_duration, parse_size

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import timedelta

    from isolib._kernel.request import MountValue, RootValue
    from isolib.cgroups.values import IoLimit
    from isolib.errors import Unsupported
    from isolib.net import Network
    from isolib.net.publish import Wanted
    from isolib.types import AnyPath, Exit, Usage
    from isolib.unionfs import Volume

    #: What a path inside leads to: a volume of a store or a directory of the host, to be written to or "ro".
    VolumeSource: TypeAlias = Volume | AnyPath | tuple[Volume | AnyPath, str]

__all__ = ["Completed", "Limits", "SandboxSpec"]

T = TypeVar("T")

#: The limits that control groups keep, and the arguments of `isolib.new_cgroup` that they are.
_IN_GROUP: Final = {
    "memory": "memory_max",
    "swap": "swap_max",
    "cpu": "cpu_max",
    "cpu_weight": "cpu_weight",
    "pids": "pids_max",
    "io": "io_max",
}
_IN_SANDBOX: Final = {new: old for old, new in _IN_GROUP.items()}


class Completed(subprocess.CompletedProcess[bytes]):
    """The result of a command: that of `subprocess.run` (args, returncode, stdout, stderr as bytes), and more.

    Attributes
    ----------
    exit
        How it ended, and why.
    usage
        What it used.
    degraded
        The limits that were not kept, because the host cannot and ``allow=`` named them: who refused each.
    """

    def __init__(self, args: Sequence[str | bytes | os.PathLike[str]], end: Exit, stdout: bytes, stderr: bytes) -> None:
        super().__init__(args, end.returncode, stdout, stderr)
        self.exit = end
        self.degraded: Mapping[str, Unsupported] = {}

    @property
    def usage(self) -> Usage:
        """What the command used."""
        return self.exit.usage

    def __repr__(self) -> str:
        degraded = f", degraded={sorted(self.degraded)}" if self.degraded else ""
        return f"{super().__repr__()[:-1]}, exit={self.exit!r}{degraded})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a sandbox may use at the most; None: no limit of ours.

    Attributes
    ----------
    wall
        Seconds (or a timedelta) for each command; enforced by the supervisor, however busy the host is.  The reason is TIMEOUT.
    output
        Bytes kept of each of stdout and stderr; a command that writes more is killed.  The reason is LIMIT.
    memory, swap
        Bytes, or a text such as "512M", of the whole sandbox; swap is beside the memory.  The reason is OOM.
    cpu
        In processors, of the whole sandbox: 0.5 is half of one.
    cpu_weight
        1 to 10000, against other groups; 100 is the default.
    pids
        Processes and threads of the whole sandbox; a supervisor for each command, and one for the sandbox, are among them.  The
        reason is LIMIT where the command failed for it.
    io
        `isolib.cgroups.IoLimit` by device, as `isolib.new_cgroup` takes them.
    """

    memory: int | str | None = None
    swap: int | str | None = None
    cpu: float | None = None
    cpu_weight: int | None = None
    pids: int | None = None
    io: Mapping[str | os.PathLike[str] | tuple[int, int], IoLimit] | None = None
    wall: float | timedelta | None = None
    output: int | str | None = None

    def __post_init__(self) -> None:
        if self.group:
            from isolib.cgroups.limits import Limits as GroupLimits  # noqa: PLC0415 - who has no limits needs none of it

            GroupLimits(self.group, _IN_SANDBOX)
        if self.io is not None:
            object.__setattr__(self, "io", _Table(self.io))
        if self.wall is not None:
            object.__setattr__(self, "wall", parse_duration(self.wall, "wall"))
        if self.output is not None:
            object.__setattr__(self, "output", parse_size(self.output, "output"))

    @property
    def group(self) -> dict[str, Any]:
        """The limits that a control group keeps, as arguments of `isolib.new_cgroup`."""
        return {new: value for old, new in _IN_GROUP.items() if (value := getattr(self, old)) is not None}


class _Table(dict[Any, Any]):
    """A mapping that can be a key: nobody changes it."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


def _volume(value: VolumeSource) -> tuple[Volume | AnyPath, str]:
    source, access = value if isinstance(value, tuple) else (value, "rw")
    if access not in {"ro", "rw"}:
        raise PlanError(f"volumes: {access!r}: 'ro' or 'rw'")
    if isinstance(source, (str, bytes, os.PathLike)):
        return check_path(source, "volumes"), access
    if not hasattr(source, "bind"):
        raise PlanError(f"volumes: {source!r}: a volume of a store, or a path")
    return source, access


class SandboxFields(TypedDict, total=False):
    """The fields of `SandboxSpec` and, given flat, of `Limits`: what `isolib.run` and `Sandbox` take."""

    root: RootValue | None
    mounts: Sequence[MountValue]
    volumes: Mapping[AnyPath, VolumeSource]
    network: str | Network | None
    publish: Wanted | None
    limits: Limits
    hostname: str
    user: str | int | tuple[int, int] | None
    env: Mapping[str, str] | None
    cwd: str | os.PathLike[str] | None
    writable: str
    memory: int | str | None
    swap: int | str | None
    cpu: float | None
    cpu_weight: int | None
    pids: int | None
    io: Mapping[str | os.PathLike[str] | tuple[int, int], IoLimit] | None
    allow: Collection[str]
    wall: float | timedelta | None
    output: int | str | None


_FLAT: Final = frozenset(one.name for one in fields(Limits))


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """What a sandbox is made of: a value that can be compared, hashed and pickled.

    Attributes
    ----------
    root
        A value of `isolib.mounts.Root`; None: the host's own, read-only (`Root.host` says what is visible).  Or of
        `isolib.unionfs`: an `Image`, with a layer above it that takes what is written and goes with the sandbox; a `Tree` or an
        `OverlayMount`, to which what is written is written.  What is root's in them is root's inside.  How an image wants to be
        run its `config` says: nothing of it is applied here.  A spec with a tree or an overlay cannot be pickled.
    mounts
        Values of `isolib.mounts`, attached in their order.
    volumes
        What lies at paths inside, beside and above ``mounts``: ``{"/data": store.volume("data")}``, to be written to, or
        ``{"/data": (store.volume("data"), "ro")}``.  A volume is in use as long as the sandbox is open, and a spec with one
        cannot be pickled.  In the place of a volume a path is a directory of the host, as `isolib.mounts.Bind` shows it.
    network
        None: a network namespace with nothing but loopback.  "host": the host's network.  An `isolib.net.Network`: an endpoint
        in it, under the name ``hostname``, and with its resolver in /etc/resolv.conf, which the root has to have or to have
        room for; such a spec cannot be pickled.
    publish
        Ports of the host that lead to ports of the sandbox, which takes a network.  ``{8080: 80}``: TCP, at 127.0.0.1.  Or a
        list, each of which is a text, ``"8080:80"``, ``"0.0.0.0:8080:80"``, ``"[::1]:5353:53/udp"``; a pair or three, ``(5353,
        53, "udp")``; or an `isolib.net.Publish`, which says all that `isolib.net.Network.publish` can.  The host's port 0 is a
        free one, which `Sandbox.published` has.  The spec has them as values of `isolib.net.Publish`.
    limits
        A `Limits`; its fields may be given flat too: ``SandboxSpec(wall=10)``.
    hostname
        The sandbox's own.
    user
        A name of the host's passwd database, a number, or (uid, gid): as the command sees itself.  None: root inside, which is
        nobody outside.
    env
        Added to a small fixed environment (PATH, HOME, USER, LANG); the host's own never shows.
    cwd
        Where commands start; None: the caller's working directory where the root is the host's, else "/".
    writable
        The working directory in the host's root: "discard" (changes go to a layer that vanishes), "keep", "none".
    allow
        Limits that may be left out where the host cannot keep them, by their names here ("memory", "pids" ...), and
        "move-self", as in `isolib.new_cgroup`.  `Sandbox.degraded` and `Completed.degraded` say which were.
    """

    root: RootValue | None = None
    mounts: tuple[MountValue, ...] = ()
    volumes: Mapping[AnyPath, VolumeSource] = field(default_factory=dict)
    network: str | Network | None = None
    publish: Wanted | None = None
    limits: Limits = field(default_factory=Limits)
    hostname: str = "sandbox"
    user: str | int | tuple[int, int] | None = None
    env: Mapping[str, str] | None = None
    cwd: str | os.PathLike[str] | None = None
    writable: str = "discard"
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "mounts", tuple(self.mounts))
        object.__setattr__(self, "volumes", _Table({target: _volume(one) for target, one in self.volumes.items()}))
        object.__setattr__(self, "allow", tuple(self.allow))
        unknown = set(self.allow) - _IN_GROUP.keys() - {"move-self"}
        if unknown:
            raise PlanError(f"allow: {sorted(unknown)}: the names are {', '.join(sorted(_IN_GROUP))}, and move-self")
        if self.env is not None:
            object.__setattr__(self, "env", _Table(self.env))
        if self.cwd is not None:
            object.__setattr__(self, "cwd", check_path(self.cwd, "cwd"))
        check_hostname(self.hostname, "hostname")
        self._check_network()
        if self.writable not in {"discard", "keep", "none"}:
            raise PlanError(f"writable={self.writable!r}: 'discard', 'keep' or 'none'")

    def _check_network(self) -> None:
        is_network = hasattr(self.network, "attach")
        if not is_network and self.network is not None and self.network != "host":
            raise PlanError(f"network={self.network!r}: None (loopback only), 'host', or a network (isolib.new_network())")
        if self.publish is not None and not is_network:
            raise PlanError("publish=: ports lead into a network: give network=isolib.new_network()")
        if not is_network:
            return
        from isolib.net.names import check_name  # noqa: PLC0415 - who has no network needs none of it

        check_name(self.hostname, "hostname")
        if self.publish is not None:
            from isolib.net.publish import read_all  # noqa: PLC0415 - as above

            object.__setattr__(self, "publish", read_all(self.publish))

    @staticmethod
    def by_own_names(named: Mapping[str, T]) -> dict[str, T]:
        """Return what stands under the arguments of `isolib.new_cgroup` under the names that limits have here."""
        return {_IN_SANDBOX.get(name, name): value for name, value in named.items()}

    @property
    def group_allow(self) -> tuple[str, ...]:
        """What `allow` is called by `isolib.new_cgroup`."""
        return tuple(_IN_GROUP.get(name, name) for name in self.allow)

    @classmethod
    def of(cls, spec: SandboxSpec | None, given: SandboxFields) -> SandboxSpec:
        """Return a spec with some fields changed, those of `Limits` among them."""
        flat: dict[str, Any] = {name: value for name, value in given.items() if name in _FLAT}
        rest: dict[str, Any] = {name: value for name, value in given.items() if name not in _FLAT}
        unknown = rest.keys() - {one.name for one in fields(cls)}
        if unknown:
            raise PlanError(f"a sandbox has no {', '.join(sorted(unknown))}")
        base = spec or cls()
        if flat:
            rest["limits"] = replace(rest.get("limits", base.limits), **flat)
        return replace(base, **rest) if rest else base
