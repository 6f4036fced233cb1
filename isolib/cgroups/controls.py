"""The controllers of a group, each found, or made, when it is first used.

In v1 a group is in those hierarchies that it needs: a controller that is used later is one more directory, and those who live
in the group are moved into it.  In v2 the group above must give the controller, which is one write.
"""

from __future__ import annotations

from contextlib import suppress
from threading import RLock
from typing import TYPE_CHECKING, TypeVar

from isolib._kernel import reaper
from isolib.cgroups import moving
from isolib.cgroups.controllers.cpu import Cpu
from isolib.cgroups.controllers.cpuset import Cpuset, inherit
from isolib.cgroups.controllers.device_control import Devices
from isolib.cgroups.controllers.hugetlb import Hugetlb
from isolib.cgroups.controllers.io import Io
from isolib.cgroups.controllers.memory import Memory
from isolib.cgroups.controllers.pids import Pids
from isolib.cgroups.files import Directory, distinct
from isolib.cgroups.hierarchy import V1_CONTROLLERS, V2_NAMES
from isolib.cgroups.place import available_in, enable
from isolib.cgroups.tree import pids_in
from isolib.cgroups.values import check_file
from isolib.errors import GoneError, Unsupported

if TYPE_CHECKING:
    from collections.abc import Mapping

    from isolib._kernel.reaper import Ticket
    from isolib.cgroups.controllers.knobs import Controller
    from isolib.cgroups.errands import Errands
    from isolib.cgroups.place import Place

__all__ = ["Controls"]

C = TypeVar("C", bound="Controller")


class Controls:
    """The directories of a group, and its controllers.

    Parameters
    ----------
    name
        The group's, the same in every hierarchy.
    place
        Where it was made.
    unified
        Its directory in v2, or None.
    legacy
        Its directories in v1, by controller.
    owned
        Whether it is ours; to somebody else's group nothing is added.
    """

    def __init__(
        self, name: str, place: Place, unified: Directory | None, legacy: Mapping[str, Directory], *, owned: bool
    ) -> None:
        self.name = name
        self.place = place
        self.unified = unified
        self.legacy = dict(legacy)
        self.owned = owned
        #: What its directories were opened by, all in one call, and are closed by; None: each by itself.
        self.together: Errands | None = None
        #: What the reaper knows it by.
        self.tickets: list[Ticket] = []
        self._lock = RLock()
        self._known: dict[type[Controller], Controller] = {}
        self._devices: Devices | None = None

    @property
    def distinct(self) -> list[Directory]:
        """The directories of v1, each once."""
        return distinct(self.legacy.values())

    @property
    def directories(self) -> list[Directory]:
        """All directories."""
        return distinct([self.unified, *self.legacy.values()])

    @property
    def paths(self) -> dict[str, str]:
        """The directories by controller, and that of v2 itself by the empty name."""
        found = {name: one.path for name, one in self.legacy.items()}
        if self.unified is not None:
            found |= dict.fromkeys(["", *sorted(available_in(self.unified) - found.keys())], self.unified.path)
        return found

    @property
    def by_name(self) -> dict[str, Directory]:
        """The directory that has each controller."""
        unified = self.unified
        found = {} if unified is None else dict.fromkeys(available_in(unified), unified)
        return found | self.legacy

    def pids(self) -> list[int]:
        """Return who lives in the group and below it."""
        if self.unified is not None:
            return pids_in(self.unified)
        return list(dict.fromkeys(pid for one in self.distinct for pid in pids_in(one)))

    def close(self) -> None:
        """Close the directories."""
        if self.together is not None:
            self.together.close()
        for directory in self.directories:
            directory.close()

    def has(self, name: str) -> bool:
        """Return whether the group has a controller already."""
        return name in self.legacy or (self.unified is not None and name in available_in(self.unified))

    def directory_of(self, file: str) -> Directory:
        """Return the directory in which a control file stands, by the part of its name before the dot."""
        prefix = check_file(file).partition(".")[0]
        name = V2_NAMES.get(prefix, prefix)
        if name == "cgroup" or name not in V1_CONTROLLERS:
            if self.unified is None:
                raise Unsupported(
                    f"{file} of a control group", "this host, which has no cgroup v2", "a file of a v1 controller"
                )
            return self.unified
        directory, refusal = self.find(name)
        if directory is None:
            raise refusal or Unsupported(f"{file} of a control group", f"this host, which has no {name} controller", "")
        return directory

    # ---- controllers ----

    def get(self, cls: type[C]) -> C:
        """Return a controller; one that cannot be had raises its refusal when it is used."""
        found = self._known.get(cls)
        if found is None:
            with self._lock:
                found = cls(*self.find(cls.name))
                if found.is_available:
                    self._known[cls] = found
        return found  # type: ignore[return-value]  # it is under its own class

    def find(self, name: str) -> tuple[Directory | None, Unsupported | None]:
        """Return the directory that has a controller, or why there is none."""
        if name in self.legacy:
            return self.legacy[name], None
        if self.unified is not None and name in available_in(self.unified):
            return self.unified, None
        place = self.place.source({name})
        if name in place.legacy and self.owned:
            return self._extend(name, place), None
        if self.unified is not None and place.unified is not None and name not in place.legacy:
            enable(place.unified, place.top, {name})
            if name in available_in(self.unified):
                return self.unified, None
        return None, place.refusals.get(name)

    def _extend(self, name: str, place: Place) -> Directory:
        parent = place.legacy[name]
        reaper.entrust([parent.fileno()], self.name, self.tickets.append)
        parent.make(self.name, anew=False)
        made = Directory.open(self.name, 1, parent=parent)
        if name == "cpuset":
            inherit(parent, made)
        self.legacy |= {other: made for other, directory in place.legacy.items() if directory is parent}
        self.place.legacy |= {other: parent for other, directory in place.legacy.items() if directory is parent}
        for pid in self.pids():
            with suppress(GoneError):
                moving.move(pid, [made])
        return made

    @property
    def memory(self) -> Memory:
        """Its memory."""
        return self.get(Memory)

    @property
    def cpu(self) -> Cpu:
        """Its processor time."""
        return self.get(Cpu)

    @property
    def cpuset(self) -> Cpuset:
        """Its processors and memory nodes."""
        return self.get(Cpuset)

    @property
    def io(self) -> Io:
        """Its disk I/O."""
        return self.get(Io)

    @property
    def pids_controller(self) -> Pids:
        """Its number of processes and threads."""
        return self.get(Pids).listing(self.pids)

    @property
    def devices(self) -> Devices:
        """The devices that it may use."""
        if self._devices is None:
            self._devices = Devices(self.unified, self._legacy_devices)
        return self._devices

    def _legacy_devices(self) -> Directory:
        place = self.place.source({"devices"}) if "devices" not in self.legacy else None
        directory = self.legacy.get("devices")
        if directory is None and place is not None and "devices" in place.legacy and self.owned:
            directory = self._extend("devices", place)
        if directory is None:
            raise Unsupported(
                "device rules of a control group", "this host, where no hierarchy of v1 has them", "CAP_BPF, for those of v2"
            )
        return directory

    @property
    def hugetlb(self) -> Hugetlb:
        """Its huge pages."""
        return self.get(Hugetlb)
