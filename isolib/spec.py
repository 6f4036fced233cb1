"""What a sandbox is made of, what it may use, and what a command in it gives back: values."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Final, TypedDict

from isolib.errors import PlanError, Unsupported
from isolib.types import check_hostname, check_path, parse_duration, parse_size

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from datetime import timedelta

    from isolib._kernel.request import MountValue, RootValue
    from isolib.types import Exit, Usage

__all__ = ["Completed", "Limits", "SandboxSpec"]

_LATER: Final = ("memory", "swap", "cpu", "cpu_weight", "pids", "io")


class Completed(subprocess.CompletedProcess[bytes]):
    """The result of a command: that of `subprocess.run` (args, returncode, stdout, stderr as bytes), and more.

    Attributes
    ----------
    exit
        How it ended, and why.
    usage
        What it used.
    """

    def __init__(self, args: Sequence[str | bytes | os.PathLike[str]], end: Exit, stdout: bytes, stderr: bytes) -> None:
        super().__init__(args, end.returncode, stdout, stderr)
        self.exit = end

    @property
    def usage(self) -> Usage:
        """What the command used."""
        return self.exit.usage

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, exit={self.exit!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a sandbox may use at the most; None: no limit of ours.

    Attributes
    ----------
    wall
        Seconds (or a timedelta) for each command; enforced by the supervisor, however busy the host is.  The reason is TIMEOUT.
    output
        Bytes kept of each of stdout and stderr; a command that writes more is killed.  The reason is LIMIT.
    memory, swap, cpu, cpu_weight, pids, io
        Of the whole sandbox; they need control groups.
    """

    memory: int | str | None = None
    swap: int | str | None = None
    cpu: float | None = None
    cpu_weight: int | None = None
    pids: int | None = None
    io: object = None
    wall: float | timedelta | None = None
    output: int | str | None = None

    def __post_init__(self) -> None:
        for name in _LATER:
            if getattr(self, name) is not None:
                raise Unsupported(
                    f"{name}= of a sandbox", "this version of isolib, which has no control groups yet", f"leave {name}= out"
                )
        if self.wall is not None:
            object.__setattr__(self, "wall", parse_duration(self.wall, "wall"))
        if self.output is not None:
            object.__setattr__(self, "output", parse_size(self.output, "output"))


class _Env(dict[str, str]):
    """An environment that can be a key: nobody changes it."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


class SandboxFields(TypedDict, total=False):
    """The fields of `SandboxSpec` and, given flat, of `Limits`: what `isolib.run` and `Sandbox` take."""

    root: RootValue | None
    mounts: Sequence[MountValue]
    network: str | None
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
    io: object
    wall: float | timedelta | None
    output: int | str | None


_FLAT: Final = frozenset(one.name for one in fields(Limits))


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """What a sandbox is made of: a value that can be compared, hashed and pickled.

    Attributes
    ----------
    root
        A value of `isolib.mounts.Root`; None: the host's own, read-only (`Root.host` says what is visible).
    mounts
        Values of `isolib.mounts`, attached in their order.
    network
        None: a network namespace with nothing but loopback.  "host": the host's network.
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
    """

    root: RootValue | None = None
    mounts: tuple[MountValue, ...] = ()
    network: str | None = None
    limits: Limits = field(default_factory=Limits)
    hostname: str = "sandbox"
    user: str | int | tuple[int, int] | None = None
    env: Mapping[str, str] | None = None
    cwd: str | os.PathLike[str] | None = None
    writable: str = "discard"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mounts", tuple(self.mounts))
        if self.env is not None:
            object.__setattr__(self, "env", _Env(self.env))
        if self.cwd is not None:
            object.__setattr__(self, "cwd", check_path(self.cwd, "cwd"))
        check_hostname(self.hostname, "hostname")
        if self.network not in {None, "host"}:
            raise PlanError(f"network={self.network!r}: None (loopback only) or 'host'")
        if self.writable not in {"discard", "keep", "none"}:
            raise PlanError(f"writable={self.writable!r}: 'discard', 'keep' or 'none'")

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
