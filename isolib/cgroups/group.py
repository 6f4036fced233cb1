"""A control group: limits, priority, accounting and control of the processes in it, whichever version of cgroups does it."""

from __future__ import annotations

from contextlib import suppress
from itertools import count
from threading import RLock
from typing import TYPE_CHECKING, Final
from weakref import WeakSet

from isolib._kernel import seam
from isolib.cgroups import freezing, moving, removal
from isolib.cgroups.files import distinct
from isolib.cgroups.freezing import Frozen
from isolib.cgroups.lodge import Lodge, Quarters, avoid_clone
from isolib.cgroups.moving import Entered, process_id
from isolib.cgroups.place import enabled_in, open_house
from isolib.cgroups.watched import Watched
from isolib.errors import ClosedError, GoneError, IsolibError, Unsupported

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence
    from typing import Unpack

    import psutil

    from isolib._kernel.lodging import Account, Shape
    from isolib._kernel.seam import Process
    from isolib.cgroups.controllers.cpu import Cpu
    from isolib.cgroups.controllers.cpuset import Cpuset
    from isolib.cgroups.controllers.device_control import Devices
    from isolib.cgroups.controllers.hugetlb import Hugetlb
    from isolib.cgroups.controllers.io import Io
    from isolib.cgroups.controllers.memory import Memory
    from isolib.cgroups.controllers.pids import Pids
    from isolib.cgroups.controls import Controls
    from isolib.cgroups.files import Directory
    from isolib.cgroups.limits import LimitFields
    from isolib.cgroups.moving import HasPid

__all__ = ["THREADED", "Cgroup"]

#: The controllers that a threaded group can have (kernel/cgroup: CGRP_CFTYPE of threaded subsystems).
THREADED: Final = frozenset({"cpu", "cpuset", "perf_event", "pids"})
#: The group below for processes that are moved in.
_JOINED: Final = "joined"


class Cgroup(Watched, made_by="isolib.new_cgroup() or isolib.open_cgroup()"):
    """A control group, in cgroup v2 and in as many hierarchies of v1 as it takes.

    `close` kills everybody in it, waits for their ends and removes it; so does leaving its ``with`` block, and so does the
    death of this program, within a second (a small process, the reaper, sees to that).  A group that was adopted
    (`isolib.open_cgroup`) is left as it is.

    Attributes
    ----------
    name
        The last part of its path.
    degraded
        What was asked for, cannot be kept here, and was left out because ``allow=`` named it: the refusals, by the name of the
        argument.
    oom
        Who is killed with a process that the kernel kills for want of memory: everybody in the "group", all that belongs to
        the "process" that isolib started, or the "one" alone.

    Notes
    -----
    Privileges: those of `isolib.new_cgroup`; reading an adopted group takes none where its files can be read.
    Sources: cgroups(7), Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/.
    """

    def __init__(self, controls: Controls) -> None:
        super().__init__()
        self.name = controls.name
        self.degraded: Mapping[str, Unsupported] = {}
        self._controls = controls
        self._lock = RLock()
        self._lodges: WeakSet[Lodge] = WeakSet()
        self._children: WeakSet[Cgroup] = WeakSet()
        self._visits: list[Entered] = []
        self._spare: Lodge | None = None
        self._births = 0
        self._numbers = count(1)
        self._ending = False
        self._standing = 0
        self._quarters: Quarters | None = None
        self.oom = "one"
        self._flat = False

    # ---- what it is ----

    def _describe(self) -> str:
        directories = self._controls.directories
        return directories[0].path if directories else self.name

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._released

    def fileno(self) -> int:
        """Return the descriptor of its directory in cgroup v2.

        Raises
        ------
        Unsupported
            cgroup v2 is not mounted here.
        """
        self._check_open()
        unified = self._controls.unified
        if unified is None:
            raise Unsupported("the descriptor of a control group", "this host, which has no cgroup v2", "paths has those of v1")
        return unified.fileno()

    @property
    def path(self) -> str | None:
        """Its directory in cgroup v2, or None where that is not mounted."""
        unified = self._controls.unified
        return None if unified is None else unified.path

    @property
    def paths(self) -> Mapping[str, str]:
        """Its directories: by controller, and that of cgroup v2 itself by the empty name."""
        return self._controls.paths

    @property
    def memory(self) -> Memory:
        """Its memory."""
        return self._controls.memory

    @property
    def cpu(self) -> Cpu:
        """Its processor time."""
        return self._controls.cpu

    @property
    def cpuset(self) -> Cpuset:
        """Its processors and memory nodes."""
        return self._controls.cpuset

    @property
    def io(self) -> Io:
        """Its disk I/O."""
        return self._controls.io

    @property
    def pids(self) -> Pids:
        """Its number of processes and threads; ``pids()`` returns the ids of the processes in it and below it, as seen here."""
        return self._controls.pids_controller.counting(self._hits)

    @property
    def hugetlb(self) -> Hugetlb:
        """Its huge pages."""
        return self._controls.hugetlb

    @property
    def devices(self) -> Devices:
        """The devices that it may use."""
        return self._controls.devices

    # ---- the raw files ----

    def read(self, file: str) -> str:
        """Return what a control file holds: ``cg.read("rdma.max")``; the part before the dot says which controller's it is.

        Raises `Unsupported` where no hierarchy of this host has the controller, and `SyscallError` where there is no such file.
        """
        self._check_open()
        return self._controls.directory_of(file).read(file)

    def write(self, file: str, value: str) -> None:
        """Write a control file, as it is; for what isolib has no name for.  Errors are those of `read`."""
        self._check_open()
        self._controls.directory_of(file).write(file, value)

    # ---- who is in it ----

    def processes(self) -> list[psutil.Process]:
        """Return the processes in it and below it."""
        import psutil  # noqa: PLC0415 - it costs 20 ms to import, and few ask

        found = []
        for pid in self.pids():
            with suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(pid))
        return found

    def add(self, process: int | HasPid) -> None:
        """Move a process that exists, with all its threads, into the group: the kernel waits for others then, and at birth not.

        Parameters
        ----------
        process
            Its id, or an object with a ``pid``.

        Raises
        ------
        GoneError
            There is no such process.
        PermissionDenied
            It, or the group where it is, is somebody else's.
        """
        pid = process_id(process)
        quarters = self._housing()
        unified = quarters.unified
        if unified is not None and quarters.flat:
            moving.move(pid, [unified])
        elif unified is not None:  # it may give controllers to groups below it, and takes no processes itself then
            unified.make(_JOINED, anew=False)
            moving.move(pid, [unified], f"{_JOINED}/cgroup.procs")
        moving.move(pid, self._controls.distinct)

    def add_thread(self, thread: int) -> None:
        """Move one thread of a process of the group above into this one, which is a threaded one.

        Parameters
        ----------
        thread
            Its native id (`threading.get_native_id`).
        """
        number = process_id(thread, "thread")
        self._check_open()
        unified = self._controls.unified
        if unified is not None:
            moving.move(number, [unified], "cgroup.threads")
        moving.move(number, self._controls.distinct, "tasks")

    def entered(self) -> Entered:
        """Return a context manager: in its block this process, with all its threads, is in the group; then it goes back.

        The limits bind the whole interpreter there: beyond ``memory.max`` it is this program that the kernel kills.

        Returns
        -------
        Entered
            The value of the block is this handle.
        """
        self._check_open()
        return Entered(self)

    # ---- birth ----

    @property
    def shape(self) -> Shape:
        """What a launch must provide for (for `isolib.spawn`)."""
        return self._housing().shape

    def _check_lasting(self) -> None:
        """Fail when it is closed, or somebody is about to; for who holds the lock."""
        self._check_open()
        if self._ending:
            raise ClosedError(f"{self!r} is being closed")

    def _housing(self) -> Quarters:
        """Return what those who live here are given; made when it is first needed."""
        with self._lock:
            self._check_lasting()
            controls = self._controls
            found = self._quarters
            if found is None or found.legacy.keys() != controls.legacy.keys():
                self._drop_spare()
                foreign = not controls.owned
                counting = frozenset() if foreign or self._flat else open_house(controls.unified)
                legacy, flat = dict(controls.legacy), self._flat
                found = self._quarters = Quarters(
                    controls.unified, legacy, counting, self._numbers, oom=self.oom, is_flat=flat, foreign=foreign
                )
            return found

    def flatten(self) -> None:
        """Let processes live in the group itself, which threaded groups below it take (for `child`)."""
        with self._lock:
            unified = self._controls.unified
            if self._quarters is not None and not self._quarters.flat:
                raise IsolibError(f"{self!r}: threaded groups below it must be made before its first process is started")
            if unified is not None and (given := enabled_in(unified) - THREADED):
                raise IsolibError(
                    f"{self!r} gives {', '.join(sorted(given))} to groups below it, and can have no threaded ones"
                )
            self._flat = True

    def lodge(self) -> Lodge:
        """Return the place for one more process (for `isolib.spawn`)."""
        with self._lock:
            quarters = self._housing()
            if self.is_frozen:
                raise IsolibError(f"{self!r} is frozen, and a process would not come to be in it: thaw() it first")
            spare, self._spare = self._spare, None
            found = spare or Lodge(quarters, left=self._left)
            self._lodges.add(found)
            self._births += 1
        found.ready(was_spare=spare is not None)
        return found

    def prepare(self) -> None:
        """Make the place of the next process now, that its birth need not wait for it."""
        with self._lock:
            if self._spare is None and not self._ending:
                self._spare = Lodge(self._housing(), left=self._left)

    def _left(self, account: Account) -> None:
        """One process is gone: where several have come, more will."""
        with self._lock:
            if "memory" in self._controls.legacy:
                self._kills_before += account.oom_kills
            self._hits_before += account.pids_hits
        if self._births > 1:
            with suppress(IsolibError):  # the group is gone, or going
                self.prepare()

    def avoid_clone(self) -> bool:
        """Be told that CLONE_INTO_CGROUP killed a process at its birth (for `isolib.spawn`)."""
        self._drop_spare()
        return self._controls.unified is not None and avoid_clone()

    def _drop_spare(self) -> None:
        with self._lock:
            spare, self._spare = self._spare, None
        if spare is not None:
            spare.settle()

    def spawn(self, argv: Sequence[str | bytes | os.PathLike[str]], **options: object) -> Process:
        """Start a program in the group: `isolib.spawn` with ``cgroup=`` this one.

        It is born inside, in a group of its own below this one, which counts what it uses: no process is moved.  Errors are
        those of `isolib.spawn`, and `IsolibError` where the group is frozen.

        Examples
        --------
        >>> with new_cgroup(pids_max=16) as group, group.spawn(["true"]) as process:
        ...     process.wait().code
        0
        """
        self._check_open()
        return seam.spawn(argv, **{**options, "cgroup": self})

    def restart(self, process: Process) -> Process:
        """End a process of this group, with all that it started, and start the same program anew.

        Parameters
        ----------
        process
            What `spawn` has returned.

        Returns
        -------
        Process
            The new one, started with the same arguments; streams that were pipes are pipes again.
        """
        self._check_open()
        return process.again()

    # ---- groups below ----

    def child(self, name: str, *, threaded: bool = False, **limits: Unpack[LimitFields]) -> Cgroup:
        """Make a group below this one; its limits are within those of this one, or that is a PlanError.

        Parameters
        ----------
        name
            Its name.
        threaded
            Whether it is for threads of the processes of this one (``cgroup.type`` of v2); see `add_thread`.
        **limits
            As in `isolib.new_cgroup`.
        """
        from isolib.cgroups.make import new_cgroup  # noqa: PLC0415 - the two need each other

        return new_cgroup(name=name, parent=self, threaded=threaded, **limits)

    def bear(self, make: Callable[[Controls], Cgroup]) -> Cgroup:
        """Have a group made below this one, which stays open meanwhile, and closes it before itself (for `new_cgroup`)."""
        with self._lock:
            self._check_lasting()
            made = make(self._controls)
            self._children.add(made)
            return made

    # ---- control ----

    def freeze(self) -> None:
        """Suspend everybody in it, and wait until they stand still; a frozen group can be killed, and closed.

        In cgroup v2 by cgroup.freeze (since Linux 5.2), otherwise by the freezer of v1.

        Raises
        ------
        IsolibError
            Somebody did not stop within 10 s, in an uninterruptible wait; the group goes on.
        """
        self._check_open()
        freezing.freeze(self._controls.unified, self._freezer())

    def thaw(self) -> None:
        """Let everybody go on."""
        self._check_open()
        freezing.thaw(self._controls.unified, self._freezer())

    @property
    def is_frozen(self) -> bool:
        """Whether everybody in it stands still."""
        self._check_open()
        unified = self._controls.unified
        found = None if unified is None else freezing.seen_frozen(unified)
        return freezing.is_frozen(None, self._freezer()) if found is None else found

    def _freezer(self) -> Directory | None:
        unified = self._controls.unified
        if unified is not None and freezing.has_freezer(unified):
            return None
        return self._controls.find("freezer")[0]

    def frozen(self) -> Frozen:
        """Return a context manager: everybody in the group stands still in its block, and goes on after it.

        Blocks nest; the group goes on after the outermost.
        """
        return Frozen(self)

    def _hold_still(self, change: int) -> None:
        with self._lock:
            before, self._standing = self._standing, self._standing + change
            if before == 0 and change > 0:
                try:
                    self.freeze()
                except BaseException as error:
                    self._standing = 0
                    try:
                        self.thaw()
                    except IsolibError as other:
                        error.add_note(f"and it could not be thawed: {other}")
                    raise
            elif self._standing == 0 and not self.closed:
                self.thaw()

    def kill(self) -> None:
        """Kill everybody in it and below it, however fast they fork, and wait for their ends.

        The group stays, and `spawn` works as before.  Raises `IsolibError` when somebody is left after 30 s, in an
        uninterruptible wait.
        """
        self._check_open()
        controls = self._controls
        with self._lock:
            lodges = list(self._lodges)
        for lodge in lodges:
            lodge.killed = True
        supervisors = {lodge.supervisor for lodge in lodges}
        with suppress(GoneError):
            removal.end(controls.unified, self._freezer(), controls.distinct, supervisors)

    # ---- its end ----

    def _release(self) -> None:
        # Interrupted, it is run again: so nothing is closed before all is taken down.
        controls = self._controls
        try:
            if controls.owned and not any(one.closed for one in controls.directories):
                self._take_down()
                for ticket in controls.tickets:
                    ticket.strike()
        except Exception:  # what could not be removed stays entrusted to the reaper
            for lodge in list(self._lodges):
                lodge.abandon()
            controls.close()
            raise
        controls.close()

    def _take_down(self) -> None:
        controls = self._controls
        with self._lock:  # who makes a place, or a group below, has it; and nobody begins to do so from now on
            self._ending = True
        for visit in list(self._visits):  # it would kill this very process
            visit.leave()
        for child in list(self._children):
            child.close()
        # Those of v1 first: who lives in v2 alone is found there afterwards.
        where = controls.place
        parents = distinct([*map(where.legacy.get, controls.legacy), None if controls.unified is None else where.unified])
        is_left = self._spare is None and all(lodge.is_gone for lodge in self._lodges)
        is_gone = is_left and removal.remove_empty(parents, self.name)
        if not is_gone:
            with suppress(GoneError):
                removal.kill(controls.unified, controls.distinct)
        for lodge in list(self._lodges):  # or wait until somebody else has
            lodge.settle()
        if not is_gone:
            self._drop_spare()
            removal.remove_all(parents, self.name)


Cgroup.__module__ = "isolib.cgroups"
