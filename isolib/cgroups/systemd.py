"""A cgroup of one's own where systemd has the tree: a delegated scope, asked for over D-Bus.

Where systemd runs, every cgroup has one writer, and of the groups that it made that is systemd itself: who makes groups of
his own there, be it root, is in its way. He asks for a unit with ``Delegate=yes`` instead: everything below its group is his
(https://systemd.io/CGROUP_DELEGATION). A *scope* is such a unit for processes that somebody else started.
"""

from __future__ import annotations

import errno as e
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Final

from isolib._kernel.assembly import is_host_root
from isolib.cgroups.systemd_bus import BUS, FEATURE, MANAGER, SYSTEMD, Place, connected
from isolib.errors import GoneError, PlanError, SyscallError, Unsupported, from_errno

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from isolib.cgroups.systemd_bus import Bus, Message

__all__ = ["Scope", "delegated_ancestor", "delegated_by_systemd", "is_running", "start_scope"]

_BOOTED: Final = "/run/systemd/system"
_JOBS: Final = f"type='signal',sender='{SYSTEMD}',path='{MANAGER.path}',interface='{MANAGER.interface}',member='JobRemoved'"
#: The results of a job but "done".
_RESULTS: Final = {
    "canceled": (e.ECANCELED, "another job took its place"),
    "dependency": (e.EIO, "a unit that it needs, as its slice, could not be started"),
    "failed": (e.EIO, "the processes may have ended; journalctl tells why"),
    "skipped": (e.ECANCELED, "it does not apply to this unit"),
    "timeout": (e.ETIMEDOUT, "systemd's own time for it was over"),
}

#: Seconds for systemd to come to a bus that has just been started.
_EARLY: Final = 3.0
_INFINITY: Final = 2**64 - 1
_UNIT: Final = re.compile(r".+\.(mount|scope|service|slice|socket|swap)")
_USER_MANAGER: Final = re.compile(r"user@\d+\.service")

_numbers = count(1)


@dataclass(frozen=True, slots=True)
class Scope:
    """A scope unit of systemd.

    Attributes
    ----------
    name
        The unit: ``"isolib-1234-1.scope"``.
    path
        Its cgroup, below the root of the hierarchy, as in /proc/PID/cgroup: ``"/system.slice/isolib-1234-1.scope"``.
    """

    name: str
    path: str


def is_running() -> bool:
    """Return whether systemd is the init of this system, and so the owner of its cgroups: sd_booted(3)."""
    return os.path.isdir(_BOOTED)


def start_scope(pids: Sequence[int], *, user: bool | None = None, timeout: float = 10.0, move_self: bool = False) -> Scope:
    """Have systemd move processes into a new scope with a delegated cgroup, and return when they are there.

    The scope ends by itself when its last process has ended, and its cgroup, with all below it, goes then: one process must
    stay in it for as long as it is needed. On cgroup v2 that process must be moved to a group below before controllers are
    enabled for groups below. At the end of the system (of the user's last session, for the user's systemd) systemd ends the
    processes. No limit on tasks is set on the scope itself.

    Blocks, for some milliseconds as a rule; any thread may call it, also one in which an event loop runs. The calling process
    is not moved, unless that is asked for.

    Parameters
    ----------
    pids
        Processes of the caller's user, started to be moved and not yet waited for.
    user
        Whether to ask the user's systemd instead of the system's. By default root of the machine asks the system's.
    timeout
        How long to wait, in seconds, for all together. When it is over the scope may still come to be: end the processes.
    move_self
        Whether the calling process is moved too.

    Raises
    ------
    PlanError
        An argument cannot work. Nothing was done.
    Unsupported
        No systemd, no bus, or no jeepney.
    PermissionDenied
        The bus, polkit or systemd refuses it to this user.
    SyscallError
        Another refusal, by its nearest errno: ETIMEDOUT after the time-out, ESRCH (as `GoneError`) when the processes have
        ended.

    Examples
    --------
    >>> process = spawn(["sleep", "inf"])  # doctest: +SKIP
    >>> start_scope([process.pid]).path  # doctest: +SKIP
    '/user.slice/user-1000.slice/user@1000.service/app.slice/isolib-1234-1.scope'
    """
    _check(pids)
    properties = _properties([*pids, os.getpid()] if move_self else pids)
    with _manager(user=user, timeout=timeout) as (bus, us):
        _check_numbers(bus, us)
        while True:
            unit = f"isolib-{os.getpid()}-{next(_numbers)}.scope"
            try:
                _start(bus, unit, properties)
            except SyscallError as error:
                # That of a process that had this number before, or has it in another pid namespace.
                if error.errno != e.EEXIST:
                    raise
            else:
                return Scope(unit, _control_group(bus, unit))


def delegated_by_systemd(path: str) -> bool:
    """Return whether a cgroup's directory has systemd's mark of delegation, an extended attribute.

    The mark is readable by everybody since Linux 5.7, and by root before. The system's systemd sets it; a user's does not in
    old releases (252 does not): a group without the mark may be delegated all the same.

    Raises
    ------
    SyscallError
        The directory cannot be looked at; it may be gone (ENOENT).
    """
    for name in ("user.delegate", "trusted.delegate"):
        try:
            if os.getxattr(path, name) == b"1":
                return True
        except OSError as error:
            # Some kernels have no such attributes here, and those that begin with "trusted." are for CAP_SYS_ADMIN.
            if error.errno not in (e.ENODATA, e.EOPNOTSUPP, e.EPERM):
                raise from_errno("getxattr", path, error.errno or e.EIO) from None
    return False


def delegated_ancestor(path: str, top: str) -> str | None:
    """Return the group that systemd delegated and in which this one is, itself or one above it; None when systemd has it.

    The nearest unit decides: where a user's systemd was given its group, those that it made below are its own. What it
    says matters only where systemd runs; elsewhere nobody marks groups.

    Parameters
    ----------
    path
        A cgroup's directory.
    top
        Where its hierarchy is mounted.

    Raises
    ------
    SyscallError
        As in `delegated_by_systemd`.
    """
    place, top = os.path.normpath(path), os.path.normpath(top)
    while place != top and place.startswith(top):
        name = os.path.basename(place)
        if _UNIT.fullmatch(name):
            return place if not _USER_MANAGER.fullmatch(name) and delegated_by_systemd(place) else None
        place = os.path.dirname(place)
    return None


# ---- what is asked ----


def _check(pids: Sequence[int]) -> None:
    if not pids:
        raise PlanError("a scope needs a process: it ends with its last one")
    for pid in pids:
        # 0 would be the sender of the message.
        if not 0 < pid < 2**31:
            raise PlanError(f"not a process: {pid}")
        if pid == os.getpid():
            raise PlanError("the calling process is not moved: start one for the scope")


def _properties(pids: Sequence[int]) -> list[tuple[str, tuple[str, object]]]:
    """Return the properties of the unit, as in systemd.resource-control(5) and systemd.unit(5)."""
    return [
        ("Description", ("s", "Processes of isolib")),
        ("PIDs", ("au", list(pids))),
        ("Delegate", ("b", True)),  # of every controller that there is
        ("CollectMode", ("s", "inactive-or-failed")),  # else a failed one keeps its name
        ("TasksMax", ("t", _INFINITY)),  # limits are set on the groups below
    ]


# ---- the manager ----


@contextmanager
def _manager(*, user: bool | None, timeout: float) -> Iterator[tuple[Bus, str]]:
    """Give a connection on which the manager tells of its jobs, and our name on it, for the length of the block."""
    if not timeout > 0:
        raise PlanError(f"a time-out is more than nothing: {timeout}")
    if not is_running():
        raise Unsupported(FEATURE, "the init of this system, which is not systemd", "a group that the caller may write himself")
    with connected(user=not is_host_root() if user is None else user, timeout=timeout) as (bus, name):
        bus.wait_for_owner(SYSTEMD, _EARLY)
        bus.ask(BUS, "AddMatch", "s", _JOBS)
        # systemd says nothing while nobody listens.
        bus.ask(MANAGER, "Subscribe")
        yield bus, name


def _check_numbers(bus: Bus, name: str) -> None:
    """Refuse where the numbers of processes mean others to systemd than to us."""
    (pid,) = bus.ask(BUS, "GetConnectionUnixProcessID", "s", name).body
    if pid != os.getpid():
        raise Unsupported(FEATURE, "the pid namespace, which is not systemd's", "ask from a process outside of it")


def _start(bus: Bus, unit: str, properties: list[tuple[str, tuple[str, object]]]) -> None:
    """Have the manager start a unit, and wait until it has."""
    member = "StartTransientUnit"
    reply = bus.ask(MANAGER, member, "ssa(sv)a(sa(sv))", unit, "fail", properties, [], target=unit)
    (job,) = reply.body
    for signal in bus.signals():
        result = job_result(signal, job, reply.sender)
        if result == "done":
            return
        if result is not None:
            errno, meaning = _RESULTS.get(result, (e.EIO, "journalctl tells why"))
            raise from_errno(member, unit, errno, f"systemd's job ended as {result!r}: {meaning}")


def job_result(signal: Message, job: str, manager: str | None) -> str | None:
    """Return how a job ended, if this signal tells it, and is from the one who has the job."""
    # Whoever is on the bus may send us signals.
    if (signal.sender, signal.path, signal.member) != (manager, MANAGER.path, "JobRemoved"):
        return None
    _, path, _, result = signal.body
    return str(result) if path == job else None


def _control_group(bus: Bus, unit: str) -> str:
    """Return the cgroup of a scope."""
    try:
        (path,) = bus.ask(MANAGER, "GetUnit", "s", unit, target=unit).body
    except SyscallError as error:
        if error.errno != e.ENOENT:
            raise
        group = ""
    else:
        properties = Place(SYSTEMD, path, "org.freedesktop.DBus.Properties")
        reply = bus.ask(properties, "Get", "ss", f"{SYSTEMD}.Scope", "ControlGroup", target=unit)
        ((_, group),) = reply.body
    if not group:
        raise GoneError("StartTransientUnit", unit, hint="its processes have ended, and the scope with them")
    return str(group)
