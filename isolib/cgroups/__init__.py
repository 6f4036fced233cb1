"""Control groups: limits, priority, accounting, isolation and control, the same whichever version of cgroups the host has.

>>> import isolib
>>> with isolib.new_cgroup(memory_max="256M", pids_max=64) as group:
...     with group.spawn(["true"]) as process:
...         process.wait().code
0
"""

from __future__ import annotations

from isolib.cgroups.controllers.cpu import Cpu as Cpu
from isolib.cgroups.controllers.cpuset import Cpuset as Cpuset
from isolib.cgroups.controllers.device_control import Devices as Devices
from isolib.cgroups.controllers.device_rules import STANDARD_DEVICES as STANDARD_DEVICES
from isolib.cgroups.controllers.device_rules import DeviceRule as DeviceRule
from isolib.cgroups.controllers.hugetlb import Hugetlb as Hugetlb
from isolib.cgroups.controllers.io import DeviceIo as DeviceIo
from isolib.cgroups.controllers.io import Io as Io
from isolib.cgroups.controllers.memory import Memory as Memory
from isolib.cgroups.controllers.pids import Pids as Pids
from isolib.cgroups.events import Events as Events
from isolib.cgroups.freezing import Frozen as Frozen
from isolib.cgroups.group import Cgroup as Cgroup
from isolib.cgroups.hierarchy import Binding as Binding
from isolib.cgroups.hierarchy import Hierarchy as Hierarchy
from isolib.cgroups.hierarchy import hierarchy as hierarchy
from isolib.cgroups.history import History as History
from isolib.cgroups.make import new_cgroup as new_cgroup
from isolib.cgroups.make import open_cgroup as open_cgroup
from isolib.cgroups.moving import Entered as Entered
from isolib.cgroups.pressure import Pressure as Pressure
from isolib.cgroups.pressure import PressureLine as PressureLine
from isolib.cgroups.pressure import Pressures as Pressures
from isolib.cgroups.pressure import PressureValues as PressureValues
from isolib.cgroups.pressure import Trigger as Trigger
from isolib.cgroups.sources import Event as Event
from isolib.cgroups.sources import EventKind as EventKind
from isolib.cgroups.stats import CpuStats as CpuStats
from isolib.cgroups.stats import MemoryStats as MemoryStats
from isolib.cgroups.stats import PidsStats as PidsStats
from isolib.cgroups.stats import Stats as Stats
from isolib.cgroups.values import IoLimit as IoLimit

for _public in (
    *(Memory, Cpu, Cpuset, Io, Pids, Hugetlb, Devices),
    *(DeviceRule, DeviceIo, Stats, MemoryStats, CpuStats, PidsStats, PressureValues, PressureLine),
    *(Pressures, Pressure, Trigger, Events, Event, EventKind, History, Frozen, Entered, Hierarchy, Binding),
):
    # Tracebacks and pickles name the place that users import from.
    _public.__module__ = __name__
