"""What will be done to make a group and a place in it for one process, in words that strace and the manual pages use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isolib._kernel.explain import Call
from isolib.cgroups import place
from isolib.cgroups.files import distinct
from isolib.cgroups.limits import Limits, parse_allow
from isolib.cgroups.lodge import COUNTING, LEGACY, apart

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = ["explain"]

_PAGE = "cgroups(7)"


def explain(given: Mapping[str, object], allow: Collection[str] = ()) -> str:
    """Return the calls on the file system of cgroups, a line each; the group is looked for a place, and is not made.

    Parameters
    ----------
    given, allow
        The arguments of `isolib.new_cgroup`.
    """
    limits = Limits(given)
    where = place.find(limits.controllers, parse_allow(allow))
    wanted = {*limits.controllers, *COUNTING, *LEGACY}
    legacy = {name: one for name, one in where.legacy.items() if name in wanted}
    parents, places = distinct([where.unified, *legacy.values()]), distinct([where.unified, *apart(legacy)])
    calls = [Call("mkdirat", f'"{one.path}/isolib-PID-N"', _PAGE) for one in parents]
    calls += [Call("write", f"{controller}.{attribute} = {value!r}", _PAGE) for controller, attribute, value in limits.settings]
    calls += [Call("mkdirat", f'"{one.path}/isolib-PID-N/pN"', _PAGE) for one in places]
    calls += [
        Call("openat", f'"{one.path}/isolib-PID-N/{"pN/" if one in places else ""}tasks", O_WRONLY', _PAGE)
        for one in distinct(legacy.values())
    ]
    return "\n".join(["calling thread, for the control group:", *(f"       {call}" for call in calls)])
