"""Processor time (Documentation/admin-guide/cgroup-v2.rst, CPU; Documentation/scheduler/sched-bwc.rst)."""

from __future__ import annotations

from errno import EINVAL
from typing import TYPE_CHECKING, Final

from isolib.cgroups.controllers.knobs import Controller, Knob, flag
from isolib.cgroups.values import cpu_quota, cpus_of, microseconds, parse_weight, shares_of, weight_of
from isolib.errors import PlanError, SyscallError

if TYPE_CHECKING:
    from datetime import timedelta

__all__ = ["Cpu"]

_QUOTA: Final = "cpu.cfs_quota_us"
_PERIOD: Final = "cpu.cfs_period_us"
#: Of a new group (kernel/sched/fair.c, default_cfs_period), which has no quota.
_FIRST_PERIOD: Final = 100_000


class Cpu(Controller):
    """The processor time of a group; weights and limits mean the same in both versions of cgroups.

    `max` is kept by a quota in each period of 0.1 s (1 s below a hundredth of a processor).
    """

    name = "cpu"

    @property
    def max(self) -> float | None:
        """How many processors the group may use at the most; 0.5 is half of one, None: no limit."""
        quota, period = self._bandwidth()
        return None if quota is None else cpus_of(quota, period)

    @max.setter  # noqa: A003 - the property
    def max(self, value: float | None) -> None:
        self._set_bandwidth(cpu_quota(value, "cpu.max"))

    def _bandwidth(self) -> tuple[int | None, int]:
        if self.is_v2:
            first, period = self.read("cpu.max", None, "max").split()
            return (None if first == "max" else int(first)), int(period)
        return self._quota(), int(self.read(None, _PERIOD, "max"))

    def _quota(self) -> int | None:
        quota = int(self.read(None, _QUOTA, "max"))
        return None if quota < 0 else quota

    def _set_bandwidth(self, wanted: tuple[int, int] | None) -> None:
        if self.is_v2:
            self.write("cpu.max", None, "max", "max" if wanted is None else f"{wanted[0]} {wanted[1]}")
            return
        if wanted is None:
            self.write(None, _QUOTA, "max", "-1")
            return
        quota, period = wanted
        writes = [(_QUOTA, quota)]
        is_new = self.directory.is_new
        if (_FIRST_PERIOD if is_new else int(self.read(None, _PERIOD, "max"))) != period:
            before = None if is_new else self._quota()
            # The kernel compares the share with that of the group above after each write: the one that lowers it goes first.
            writes.insert(1 if before is not None and before > quota else 0, (_PERIOD, period))
        for name, number in writes:
            self.write(None, name, "max", str(number))

    @property
    def burst(self) -> float:
        """Seconds of unused time that the group may save up and use beyond `max` (since Linux 5.14)."""
        return int(self.read("cpu.max.burst", "cpu.cfs_burst_us", "burst")) / 1e6

    @burst.setter
    def burst(self, value: float | timedelta) -> None:
        wanted = microseconds(value, "cpu.burst")
        try:
            self.write("cpu.max.burst", "cpu.cfs_burst_us", "burst", str(wanted))
        except SyscallError as error:
            quota = self._bandwidth()[0]
            if error.errno == EINVAL and (quota is None or wanted > quota):
                limit = "there is no cpu.max" if quota is None else f"it is more than the quota, {quota / 1e6:g} s"
                raise PlanError(f"cpu.burst = {value!r}: {limit}; set cpu.max first") from error
            raise

    weight = Knob(
        "cpu.weight",
        "cpu.shares",
        parse=parse_weight,
        show=str,
        load=int,
        v1_show=lambda weight: str(shares_of(weight)),
        v1_load=lambda text: weight_of(int(text)),
        doc="The group's part of what its siblings compete for, 1 to 10000; 100 at first.",
    )
    idle = flag("cpu.idle", "cpu.idle", "Whether the group runs only when no other wants to (since Linux 5.15).")

    @property
    def uclamp_min(self) -> float:
        """The least performance that its processes ask of a processor, in percent (CONFIG_UCLAMP_TASK_GROUP)."""
        return _load_percent(self.read("cpu.uclamp.min", "cpu.uclamp.min", "uclamp_min"))

    @uclamp_min.setter
    def uclamp_min(self, value: float) -> None:
        self.write("cpu.uclamp.min", "cpu.uclamp.min", "uclamp_min", _show_percent(value, "cpu.uclamp_min"))

    @property
    def uclamp_max(self) -> float:
        """The most performance that its processes ask of a processor, in percent."""
        return _load_percent(self.read("cpu.uclamp.max", "cpu.uclamp.max", "uclamp_max"))

    @uclamp_max.setter
    def uclamp_max(self, value: float) -> None:
        self.write("cpu.uclamp.max", "cpu.uclamp.max", "uclamp_max", _show_percent(value, "cpu.uclamp_max"))


_HUNDRED: Final = 100.0


def _load_percent(text: str) -> float:
    return _HUNDRED if text == "max" else float(text)


def _show_percent(value: object, what: str) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _HUNDRED:
        raise PlanError(f"{what}: a percentage from 0 to 100 is wanted, not {value!r}")
    return f"{value:.2f}"
