"""What will be done to make a group and a place in it for one process, in words that strace and the manual pages use."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, NoReturn

from isolib._kernel.explain import Call
from isolib.cgroups import place
from isolib.cgroups.files import distinct
from isolib.cgroups.limits import Limits, parse_allow
from isolib.cgroups.lodge import COUNTING, LEGACY, Quarters, apart

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from isolib.cgroups.files import Directory

__all__ = ["Outline"]

_PAGE = "cgroups(7)"


class Outline:
    """A group that is not made: a place is looked for, which may enable controllers above, or ask systemd for a scope.

    Parameters
    ----------
    given, allow
        The arguments of `isolib.new_cgroup`.
    oom
        As in `isolib.Cgroup`.
    """

    def __init__(self, given: Mapping[str, object], allow: Collection[str] = (), oom: str = "group") -> None:
        self._limits = Limits(given)
        where = place.find(self._limits.controllers, parse_allow(allow))
        wanted = {*self._limits.controllers, *COUNTING, *LEGACY}
        self._unified = where.unified
        self._legacy = {name: one for name, one in where.legacy.items() if name in wanted}
        self._oom = oom
        self._counting: frozenset[str] = frozenset()
        if where.unified is not None:
            self._counting = place.enabled_in(where.unified).intersection(COUNTING) - self._legacy.keys()
        #: What a launch must provide for (as a group says it).
        self.shape = Quarters(where.unified, self._legacy, self._counting, count(), oom=oom).shape

    def lodge(self) -> NoReturn:
        """Return no place."""
        raise AssertionError("the plan of an outline is read, and not run")

    def avoid_clone(self) -> bool:
        """Return that there is no other way."""
        return False

    def explain(self) -> str:
        """Return the calls of the calling thread in the file system of cgroups, a line each."""
        return "\n".join(["calling thread, for the control group:", *(f"       {call}" for call in self.calls())])

    def calls(self) -> list[Call]:
        """Return the same."""
        memory = "memory" in self._counting
        group, own = "isolib-PID-N", "isolib-PID-N/pN"
        parents = distinct([self._unified, *self._legacy.values()])
        places = distinct([self._unified, *apart(self._legacy)])
        calls = [_make(parent, group) for parent in parents]
        for controller, attribute, value in self._limits.settings:
            calls.append(Call("write", f"{controller}.{attribute} = {value!r}", _PAGE))
        if self._unified is not None and memory and self._oom == "group":
            calls.append(_write(self._unified, f"{group}/memory.oom.group", "1"))
        if self._unified is not None and self._counting:
            enabled = " ".join(f"+{name}" for name in sorted(self._counting))
            calls.append(_write(self._unified, f"{group}/cgroup.subtree_control", enabled))
        calls += [_make(parent, own) for parent in places]
        if self._unified is not None and memory and self._oom == "process":
            calls.append(_write(self._unified, f"{own}/memory.oom.group", "1"))
        for one in distinct(self._legacy.values()):
            calls.append(_open(one, f"{own if one in places else group}/tasks", "O_WRONLY"))
        if self.shape.oom:
            one = self._legacy["memory"]
            calls += [Call("eventfd2", "", "eventfd(2)"), _open(one, f"{own}/memory.oom_control", "O_RDONLY")]
            calls.append(_write(one, f"{own}/cgroup.event_control", "eventfd, memory.oom_control"))
        return calls


def _make(parent: Directory, name: str) -> Call:
    return Call("mkdirat", f'"{parent.path}/{name}"', _PAGE)


def _write(parent: Directory, name: str, value: str) -> Call:
    return Call("write", f'"{parent.path}/{name}", {value!r}', _PAGE)


def _open(parent: Directory, name: str, mode: str) -> Call:
    return Call("openat", f'"{parent.path}/{name}", {mode}', _PAGE)
