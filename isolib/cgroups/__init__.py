"""Control groups: limits, priority, accounting, isolation and control, the same whichever version of cgroups the host has.

>>> import isolib
>>> with isolib.new_cgroup(memory_max="256M", pids_max=64) as group:
...     with group.spawn(["true"]) as process:
...         process.wait().code
0
"""

from __future__ import annotations

from isolib.cgroups.controllers.device_rules import STANDARD_DEVICES as STANDARD_DEVICES
from isolib.cgroups.controllers.device_rules import DeviceRule as DeviceRule
from isolib.cgroups.controllers.io import DeviceIo as DeviceIo
from isolib.cgroups.group import Cgroup as Cgroup
from isolib.cgroups.hierarchy import Binding as Binding
from isolib.cgroups.hierarchy import Hierarchy as Hierarchy
from isolib.cgroups.hierarchy import hierarchy as hierarchy
from isolib.cgroups.make import new_cgroup as new_cgroup
from isolib.cgroups.make import open_cgroup as open_cgroup
from isolib.cgroups.values import IoLimit as IoLimit
