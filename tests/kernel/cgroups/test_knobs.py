"""Settings that hardly anybody uses, on the real kernel: kept where the group has the file, else refused by name."""

from __future__ import annotations

import os

import pytest

import isolib
from tests.groups import needs

#: Controller, attribute, value, what is read back, and the file in v2 and in v1.
KNOBS: list[tuple[str, str, object, object, str, str | None]] = [
    ("cpu", "burst", 0.01, 0.01, "cpu.max.burst", "cpu.cfs_burst_us"),
    ("cpu", "idle", True, True, "cpu.idle", "cpu.idle"),
    ("cpu", "uclamp_min", 20, 20.0, "cpu.uclamp.min", "cpu.uclamp.min"),
    ("cpu", "uclamp_max", 80, 80.0, "cpu.uclamp.max", "cpu.uclamp.max"),
    ("memory", "min", "1M", 1 << 20, "memory.min", None),
    ("memory", "low", "2M", 2 << 20, "memory.low", "memory.soft_limit_in_bytes"),
    ("memory", "high", "32M", 32 << 20, "memory.high", None),
    ("memory", "swap_high", "1M", 1 << 20, "memory.swap.high", None),
    ("memory", "oom_group", False, False, "memory.oom.group", None),
]


@pytest.mark.parametrize("knob", KNOBS, ids=lambda knob: f"{knob[0]}.{knob[1]}")
def test_knob(knob: tuple[str, str, object, object, str, str | None]) -> None:
    """What is assigned is read back, from the file of the kernel."""
    controller, attribute, value, shown, v2, v1 = knob
    needs(controller)
    with isolib.new_cgroup(cpu_max=0.5 if controller == "cpu" else None) as group:
        one = getattr(group, controller)
        file = v2 if one.is_v2 else v1
        place = group.paths[controller]
        if file is not None and os.path.exists(f"{place}/{file}"):
            setattr(one, attribute, value)
            assert getattr(one, attribute) == shown
        else:
            with pytest.raises(isolib.Unsupported, match=attribute):
                setattr(one, attribute, value)


def test_reclaim() -> None:
    """The kernel takes back what it can, and says whether that was enough."""
    needs("memory")
    with isolib.new_cgroup() as group:
        if os.path.exists(f"{group.paths['memory']}/memory.reclaim"):
            assert group.memory.reclaim("1G") is False
        else:
            with pytest.raises(isolib.Unsupported, match="reclaim"):
                group.memory.reclaim("1G")


@pytest.mark.parametrize("name", ["rdma", "misc"])
def test_controllers_without_a_name_here(name: str) -> None:
    """Those for which isolib has no attributes are read and written raw; a refused value is an error with file and value."""
    needs(name)
    with isolib.new_cgroup() as group:
        assert isinstance(group.read(f"{name}.max"), str)
        with pytest.raises(isolib.SyscallError, match=rf"{name}\.max = 'isolib-absent 5'"):
            group.write(f"{name}.max", "isolib-absent 5")
