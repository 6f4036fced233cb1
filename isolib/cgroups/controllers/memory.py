"""Memory: limits, protection, swap, what is used (Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst)."""

from __future__ import annotations

from errno import EAGAIN
from typing import TYPE_CHECKING, Final

from isolib.cgroups.controllers.knobs import Controller, Knob, flag, load_limit, number, show_limit, show_v1_limit, size
from isolib.cgroups.files import parse_flat
from isolib.cgroups.values import parse_limit, parse_protection
from isolib.errors import PlanError, SyscallError, Unsupported
from isolib.types import MAX_SIZE, parse_size

if TYPE_CHECKING:
    from isolib.cgroups.files import Directory

__all__ = ["Memory"]

_LIMIT: Final = "memory.limit_in_bytes"
_BOTH: Final = "memory.memsw.limit_in_bytes"


def _legacy_swap(directory: Directory, both: int | None) -> int | None:
    """Return how much swap v1 allows: what both together may be beyond memory alone."""
    memory = None if both is None else load_limit(directory.read(_LIMIT).strip())
    return None if memory is None or both is None else both - memory


def _legacy_both(directory: Directory) -> int | None:
    """Return the limit on memory and swap together; None, too, where swap is not counted and there is no such file."""
    if directory.is_new:
        return None
    data = directory.glance_if_there(_BOTH)
    return None if data is None else load_limit(data.decode("ascii").strip())


def _set_legacy(directory: Directory, memory: int | None, swap: int | None, current: int | None) -> None:
    """Set the limit on memory, and that on both together, now `current`, which the kernel never lets be the smaller one."""
    both = None if memory is None or swap is None else min(memory + swap, MAX_SIZE)
    writes = [(_LIMIT, show_v1_limit(memory))]
    if both != current:
        writes.append((_BOTH, show_v1_limit(both)))
    if current is not None and (memory is None or memory > current):
        writes.reverse()
    for name, text in writes:
        directory.write(name, text)


def _load_protection(text: str) -> int:
    limit = load_limit(text)
    return MAX_SIZE if limit is None else limit


def _protection(value: int) -> int | None:
    """Return what is protected as a limit that is shown in the same words."""
    return None if value == MAX_SIZE else value


class Memory(Controller):
    """The memory of a group: anonymous, page cache, and what the kernel keeps for it.

    All attributes that are limits can be read and assigned, in bytes or as texts as "64M"; None is no limit.  `low` and `min`
    protect: None is 0, and "max" everything, which reads as the most bytes that there can be (2**63 - 1).  In cgroup v1, `low`
    is the soft limit (everything at first), `swap_max` is kept by the limit on memory and swap together, and `high` and `min`
    do not exist.
    """

    name = "memory"

    @property
    def max(self) -> int | None:
        """Bytes that the group may use at the most.  Beyond, the kernel reclaims, and then kills (`oom_group`)."""
        return load_limit(self.read("memory.max", _LIMIT, "max"))

    @max.setter  # noqa: A003 - the property
    def max(self, value: int | str | None) -> None:
        limit = parse_limit(value, "memory.max")
        if self.is_v2:
            self.write("memory.max", None, "max", show_limit(limit))
        else:
            both = _legacy_both(self.directory)
            _set_legacy(self.directory, limit, _legacy_swap(self.directory, both), both)

    high = size("memory.high", "Bytes beyond which the group is slowed down and its memory reclaimed; nothing is killed.")
    low = Knob(
        "memory.low",
        "memory.soft_limit_in_bytes",
        parse=parse_protection,
        show=lambda value: show_limit(_protection(value)),
        load=_load_protection,
        v1_show=lambda value: show_v1_limit(_protection(value)),
        doc="Bytes that are not reclaimed while others have memory to give.",
    )
    min = Knob(
        "memory.min",
        None,
        parse=parse_protection,
        show=lambda value: show_limit(_protection(value)),
        load=_load_protection,
        doc="Bytes that are never reclaimed.",
    )

    @property
    def swap_max(self) -> int | None:
        """Bytes of swap that the group may use, beside its memory."""
        text = self.read("memory.swap.max", _BOTH, "swap_max")
        return load_limit(text) if self.is_v2 else _legacy_swap(self.directory, load_limit(text))

    @swap_max.setter
    def swap_max(self, value: int | str | None) -> None:
        limit = parse_limit(value, "memory.swap_max")
        if self.is_v2:
            self.write("memory.swap.max", None, "swap_max", show_limit(limit))
            return
        both = load_limit(self.read(None, _BOTH, "swap_max"))  # where swap is not counted there is no such file
        memory = self.max
        if memory is None and limit is not None:
            raise PlanError("memory.swap_max: cgroup v1 limits memory and swap together, so memory.max must be set before it")
        _set_legacy(self.directory, memory, limit, both)

    swap_high = size("memory.swap.high", "Bytes of swap beyond which the group is slowed down.")
    oom_group = flag(
        "memory.oom.group",
        None,
        "Whether the kernel, when it must kill, kills the whole group: half a group is seldom of use.",
    )

    @property
    def current(self) -> int:
        """Bytes in use now."""
        return number(self, "memory.current", "memory.usage_in_bytes", "current")

    @property
    def peak(self) -> int:
        """The most bytes that were in use at any one time (v2: since Linux 5.19)."""
        return number(self, "memory.peak", "memory.max_usage_in_bytes", "peak")

    @property
    def swap_current(self) -> int:
        """Bytes of swap in use now."""
        if self.is_v2:
            return number(self, "memory.swap.current", None, "swap_current")
        both = number(self, None, "memory.memsw.usage_in_bytes", "swap_current")
        return 0 if both < self.current else both - self.current

    def reclaim(self, amount: int | str) -> bool:
        """Take memory back that can be had without harm: page cache, and what can be swapped out.

        Parameters
        ----------
        amount
            Bytes, or a text such as "64M".

        Returns
        -------
        bool
            Whether that much was found.

        Raises
        ------
        Unsupported
            cgroup v1, or a kernel before 5.19 (memory.reclaim).
        """
        wanted = parse_size(amount, "amount")
        try:
            self.write("memory.reclaim", None, "reclaim", str(wanted))
        except SyscallError as error:
            if error.errno == EAGAIN:
                return False
            raise
        return True

    def reset_peak(self) -> None:
        """Let `peak` begin anew.

        Raises
        ------
        Unsupported
            cgroup v2: there the peak of a group is that of its whole life.
        """
        if self.is_v2:
            raise Unsupported(
                "resetting memory.peak of a control group", "cgroup v2, which does so for one open file only", "a new group"
            )
        self.write(None, "memory.max_usage_in_bytes", "reset_peak", "0")

    def events(self, *, local: bool = False) -> dict[str, int]:
        """Return how often limits were met: low, high, max, oom, oom_kill, oom_group_kill; v1 has max and oom_kill.

        Parameters
        ----------
        local
            Of this group alone, without those below (v1 never counts those below).
        """
        if self.is_v2:
            file = "memory.events.local" if local and self.directory.has("memory.events.local") else "memory.events"
            return parse_flat(self.read(file, None, "events").encode())
        kills = parse_flat(self.read(None, "memory.oom_control", "events").encode()).get("oom_kill", 0)
        return {"max": number(self, None, "memory.failcnt", "events"), "oom_kill": kills}
