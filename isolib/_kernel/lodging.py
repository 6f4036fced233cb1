"""What a launch asks of a control group, and what it is told at the end: the seam between processes and `isolib.cgroups`.

Neither of the two knows the other.  A group that is handed to a launch offers `lodge`, which yields the place that one process
is born in; when the process and all that it left behind are gone, `settle` says what they used, and takes the place down.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolib._kernel.calls import Batch

__all__ = ["Account", "Lodge", "Lodging", "Shape"]


class Account(NamedTuple):
    """What a group says of those that lived in it; None where the host does not count it.

    Attributes
    ----------
    cpu_user, cpu_system
        In seconds.
    memory_peak, io_read, io_written
        In bytes.
    pids_peak
        The most processes and threads at any one time, without the supervisor.
    oom_kills
        How many the kernel killed for want of memory.
    pids_hits
        How often a new process or thread was refused for a limit on their number.
    """

    cpu_user: float | None = None
    cpu_system: float | None = None
    memory_peak: int | None = None
    io_read: int | None = None
    io_written: int | None = None
    pids_peak: int | None = None
    oom_kills: int = 0
    pids_hits: int = 0


class Shape(NamedTuple):
    """What a plan must provide for, whichever process it is run for.

    Attributes
    ----------
    unified
        Whether there is a directory of v2.
    legacy
        In how many hierarchies of v1 the process must enter a group.
    oom
        Whether the supervisor is told by an eventfd that the group is out of memory (v1, which kills one process only).
    oom_kills
        Whether it then looks who was killed, and ends only its own.
    """

    unified: bool
    legacy: int
    oom: bool
    oom_kills: bool


class Lodge(Protocol):
    """The place of one process; the descriptors stay the lodge's."""

    #: The directory of v2 for CLONE_INTO_CGROUP, or -1.
    directory: int
    #: cgroup.procs of v2, open for writing, where CLONE_INTO_CGROUP will not do; else -1.
    procs: int
    #: The tasks files of v1, open for writing.
    tasks: Sequence[int]
    #: An eventfd that becomes readable when the group is out of memory, or -1.
    oom: int
    #: memory.oom_control of v1, which counts who was killed here, or -1.
    oom_kills: int
    #: The pid of its supervisor, told by the launch when there is a command; 0 before.
    supervisor: int
    #: Whether its group was killed by this program.
    killed: bool

    def kill(self) -> None:
        """Kill everybody in it, the supervisor too."""

    def reap(self) -> None:
        """Reap those of the whole group whose parents were killed with them, where this process has adopted them."""

    def is_frozen(self) -> bool:
        """Return whether those in it stand still, and so cannot be asked for anything."""

    def parting(self) -> Batch | None:
        """Return what can be done of `settle` as soon as everybody is gone, for `run` to do in its one call; or None."""

    def settle(self) -> Account:
        """Kill who is left, wait for their ends, take the place down, and return what it says; again is the same value."""


class Lodging(Protocol):
    """A group that processes can be born in."""

    @property
    def shape(self) -> Shape:
        """What a plan must provide for."""

    def lodge(self) -> Lodge:
        """Return the place for one more process."""

    def avoid_clone(self) -> bool:
        """Be told that a process died at its birth by CLONE_INTO_CGROUP; returns whether another way is left to try."""
