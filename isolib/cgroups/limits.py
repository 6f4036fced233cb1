"""The limits of a new group: arguments, validated before anything is made, and applied in the order that the kernel wants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypedDict

from isolib.cgroups.controllers import hugetlb as huge
from isolib.cgroups.controllers import io as disk
from isolib.cgroups.controllers.device_control import parse_rules
from isolib.cgroups.place import MOVE_SELF
from isolib.cgroups.values import (
    cpu_quota,
    cpus_of,
    parse_count,
    parse_cpus,
    parse_flag,
    parse_limit,
    parse_protection,
    parse_weight,
)
from isolib.errors import PlanError, SyscallError, Unsupported

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from isolib.cgroups.controllers.device_rules import DeviceRule
    from isolib.cgroups.controls import Controls
    from isolib.cgroups.values import IoLimit

__all__ = ["LimitFields", "Limits", "parse_allow"]


class LimitFields(TypedDict, total=False):
    """The limits that `isolib.new_cgroup` takes."""

    memory_max: int | str | None
    memory_high: int | str | None
    memory_low: int | str | None
    swap_max: int | str | None
    cpu_max: float | None
    cpu_weight: int | None
    cpus: str | Iterable[int] | None
    mems: str | Iterable[int] | None
    pids_max: int | None
    io_weight: int | None
    io_max: Mapping[str | os.PathLike[str] | tuple[int, int], IoLimit] | None
    hugetlb_max: Mapping[int | str, int | str | None] | None
    devices: Sequence[DeviceRule | str] | None
    oom_group: bool
    allow: Collection[str]


@dataclass(frozen=True, slots=True)
class _Kind:
    """An argument: its controller, the attribute that it sets, and how it is read."""

    controller: str
    attribute: str
    parse: Callable[[object, str], Any]


def _processors(value: object, what: str) -> float | None:
    quota = cpu_quota(value, what)
    return None if quota is None else cpus_of(*quota)


#: In the order in which they are applied: what others depend on goes first.  (v1 takes no limit on swap before one on memory.)
_KINDS: Final = {
    "cpus": _Kind("cpuset", "cpus", parse_cpus),
    "mems": _Kind("cpuset", "mems", parse_cpus),
    "memory_max": _Kind("memory", "max", parse_limit),
    "memory_high": _Kind("memory", "high", parse_limit),
    "memory_low": _Kind("memory", "low", parse_protection),
    "swap_max": _Kind("memory", "swap_max", parse_limit),
    "cpu_max": _Kind("cpu", "max", _processors),
    "cpu_weight": _Kind("cpu", "weight", parse_weight),
    "pids_max": _Kind("pids", "max", parse_count),
    "io_weight": _Kind("io", "weight", parse_weight),
    "io_max": _Kind("io", "max", disk.parse_max),
    "hugetlb_max": _Kind("hugetlb", "max", huge.parse_limits),
    "devices": _Kind("devices", "rules", parse_rules),
}
#: Those that are compared with what the group above has.
_ORDERED: Final = ("memory_max", "swap_max", "cpu_max", "pids_max")
_SETS: Final = ("cpus", "mems")
_ALLOWED: Final = frozenset({*_KINDS, MOVE_SELF})


def parse_allow(allow: object) -> frozenset[str]:
    """Return what may be left out, or done, when there is no other way.

    Raises
    ------
    PlanError
        It names something else.
    """
    if isinstance(allow, str) or not hasattr(allow, "__iter__"):
        raise PlanError(f"allow={allow!r}: a list of names is wanted, such as ('swap_max',)")
    names = list(allow)
    unknown = [name for name in names if not isinstance(name, str) or name not in _ALLOWED]
    if unknown:
        raise PlanError(f"allow: {', '.join(sorted(map(repr, unknown)))}: the names are {', '.join(sorted(_ALLOWED))}")
    return frozenset(names)


class Limits:
    """What was asked for, by the name of the argument; only what is not None.

    Parameters
    ----------
    given
        The arguments of `isolib.new_cgroup`.
    called
        What the caller calls them, for messages.
    """

    def __init__(self, given: Mapping[str, object], called: Mapping[str, str] | None = None) -> None:
        called = called or {}
        self._given = {name: given[name] for name in _KINDS if given.get(name) is not None}
        self._parsed = {name: _KINDS[name].parse(value, called.get(name, name)) for name, value in self._given.items()}
        self.oom_group = parse_flag(given.get("oom_group", True), "oom_group")
        #: The controllers that it takes; devices see to themselves.
        self.controllers = frozenset([_KINDS[name].controller for name in self._given]) - {"devices"}

    @property
    def settings(self) -> list[tuple[str, str, object]]:
        """What is set, in order: controller, attribute and value."""
        return [(_KINDS[name].controller, _KINDS[name].attribute, value) for name, value in self._given.items()]

    def check_possible(self, legacy_memory: bool) -> None:  # noqa: FBT001 - of the package only
        """Look for what v1 cannot do with these limits together.

        Raises
        ------
        PlanError
            There is something, and nothing was made yet.
        """
        if legacy_memory and self._parsed.get("swap_max") is not None and self._parsed.get("memory_max") is None:
            raise PlanError("swap_max: cgroup v1 limits memory and swap together, so memory_max must be given too")

    def check_within(self, parent: Controls) -> None:
        """Compare with the limits of the group above.

        Raises
        ------
        PlanError
            One is above it; the message names the file and both values.
        """
        for name in (*_ORDERED, *_SETS):
            kind = _KINDS[name]
            if name not in self._given or not parent.has(kind.controller):
                continue
            try:
                above = getattr(getattr(parent, _ATTRIBUTES[kind.controller]), kind.attribute)
            except (Unsupported, SyscallError):  # it has no such limit
                continue
            wanted = self._parsed[name]
            if name in _SETS:
                exceeds = bool(above) and not wanted <= above
            else:
                exceeds = above is not None and (wanted is None or wanted > above)
            if exceeds:
                where = parent.paths.get(kind.controller, "the group above")
                raise PlanError(
                    f"{name}={self._given[name]!r}: more than {kind.controller}.{kind.attribute} of {where}: {above}"
                )

    def apply(self, controls: Controls, allow: frozenset[str]) -> dict[str, Unsupported]:
        """Set every limit; returns the refusals of those that may be left out.

        Raises
        ------
        Unsupported, SyscallError
            A limit cannot be kept here.
        """
        refused: dict[str, Unsupported] = {}
        for name, value in self._parsed.items():  # what was given may be an iterator, or have changed since it was checked
            kind = _KINDS[name]
            controller = getattr(controls, _ATTRIBUTES[kind.controller])
            try:
                setattr(controller, kind.attribute, value)
            except Unsupported as error:
                if name not in allow:
                    raise
                refused[name] = error
        return refused


_ATTRIBUTES: Final = {name: name for name in ("cpu", "cpuset", "devices", "hugetlb", "io", "memory")} | {
    "pids": "pids_controller"
}
