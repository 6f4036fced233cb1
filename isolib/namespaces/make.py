"""Making namespaces.

A thread makes net, uts, ipc and cgroup namespaces for itself and is back where it was before anything else can happen. All
the others, and all of them for who has no privileges, are made by a process of the launcher, which holds them until their
descriptors are here.

Who has no CAP_SYS_ADMIN gets a namespace that belongs to a user namespace of his own, in which he is root.
"""

from __future__ import annotations

import os
from errno import EINVAL, EPERM, ERANGE
from math import floor
from threading import RLock
from typing import TYPE_CHECKING, Final, TypeVar
from weakref import WeakValueDictionary

from isolib._kernel import assembly, calls
from isolib._kernel.handle import Rollback, home
from isolib._kernel.hints import hint
from isolib._kernel.idmap import resolve
from isolib._kernel.launch import ground
from isolib._kernel.plan import HOST, INSIDE, Builder, Step
from isolib.errors import SetupFailed, SyscallError, ThreadStranded, Unsupported, from_errno
from isolib.namespaces import enter
from isolib.namespaces.handle import Namespace
from isolib.namespaces.held import Held
from isolib.namespaces.kinds import CgroupNS, IpcNS, MntNS, NetNS, PidNS, TimeNS, UserNS, UtsNS
from isolib.types import check_hostname, check_id_map, parse_duration

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import timedelta

    from isolib._kernel.handle import Fd
    from isolib.types import IdMap

N = TypeVar("N", bound=Namespace)

_SECOND: Final = 1_000_000_000


def new_netns(*, lo: bool = True) -> NetNS:
    """Make a network namespace; in a `with` block the calling thread is inside.

    Parameters
    ----------
    lo
        Whether its loopback interface is brought up. Without, not even 127.0.0.1 can be reached.

    Returns
    -------
    NetNS
        Owned: the kernel takes the namespace down when the handle is closed and nobody is inside.

    Raises
    ------
    SyscallError
        The kernel refused. ENOSPC: user.max_net_namespaces.
    SetupFailed
        The same, for a caller without CAP_SYS_ADMIN: he may not make user namespaces.
    ThreadStranded
        The calling thread could not be brought back earlier.

    Notes
    -----
    The calling thread is in the new namespace for a moment. Privileges: CAP_SYS_ADMIN; without, the namespace is owned by a
    user namespace of the caller's (`Namespace.owner`), one for all that are open, `Namespace.spawn` works, but no thread can
    enter. Kernel:
    unshare(2), CLONE_NEWNET. Source: network_namespaces(7).

    Examples
    --------
    >>> import socket
    >>> with new_netns():
    ...     server = socket.create_server(("127.0.0.1", 80))  # the host's port 80 is not touched
    >>> server.close()
    """
    return _make(NetNS, lo=lo)


def new_utsns(*, hostname: str | None = None, domainname: str | None = None) -> UtsNS:
    """Make a UTS namespace; in a `with` block the calling thread is inside.

    Parameters
    ----------
    hostname, domainname
        Its host name and NIS domain name, each 1 to 64 bytes long; None: those of the calling thread's.

    Returns
    -------
    UtsNS
        Owned.

    Raises
    ------
    PlanError
        A name cannot be one.
    SyscallError, SetupFailed, ThreadStranded
        As in `new_netns`.

    Notes
    -----
    Privileges and the calling thread as in `new_netns`. Kernel: unshare(2), CLONE_NEWUTS. Source: uts_namespaces(7).

    Examples
    --------
    >>> import socket
    >>> with new_utsns(hostname="box"):
    ...     socket.gethostname()
    'box'
    """
    host = None if hostname is None else check_hostname(hostname, "hostname")
    domain = None if domainname is None else check_hostname(domainname, "domainname")
    return _make(UtsNS, hostname=host, domainname=domain)


def new_ipcns() -> IpcNS:
    """Make an IPC namespace; in a `with` block the calling thread is inside.

    Returns
    -------
    IpcNS
        Owned. What is in it (shared memory, semaphores, queues) goes with it.

    Raises
    ------
    SyscallError, SetupFailed, ThreadStranded
        As in `new_netns`.

    Notes
    -----
    The calling thread's semaphore operations with SEM_UNDO are undone. Otherwise as in `new_netns`. Kernel: unshare(2),
    CLONE_NEWIPC. Source: ipc_namespaces(7).

    Examples
    --------
    >>> with new_ipcns() as ipc:
    ...     ipc.kind
    'ipc'
    """
    return _make(IpcNS)


def new_cgroupns() -> CgroupNS:
    """Make a cgroup namespace; in a `with` block the calling thread is inside.

    Its root is the cgroup that the calling thread is in now.

    Returns
    -------
    CgroupNS
        Owned.

    Raises
    ------
    SyscallError, SetupFailed, ThreadStranded
        As in `new_netns`.

    Notes
    -----
    Privileges and the calling thread as in `new_netns`. Kernel: unshare(2), CLONE_NEWCGROUP. Source: cgroup_namespaces(7).

    Examples
    --------
    >>> with new_cgroupns(), open("/proc/thread-self/cgroup") as file:
    ...     file.read().splitlines()[-1]
    '0::/'
    """
    return _make(CgroupNS)


def new_mntns() -> MntNS:
    """Make a mount namespace: a copy of the calling thread's mounts. `with` is its lifetime.

    What is mounted inside, by `Namespace.run` or `Namespace.spawn`, is not seen outside. Mounts that are made and undone on
    the host are followed inside where the host shares them (MS_SLAVE), so that the copy keeps no file system busy.

    Returns
    -------
    MntNS
        Owned: closed and with nobody inside, all its mounts are undone.

    Raises
    ------
    SetupFailed
        The kernel refused; the message says what would help.

    Notes
    -----
    Nothing happens to the calling thread. Privileges: CAP_SYS_ADMIN; without, it is owned by a user namespace of the
    caller's. Kernel: clone(2), CLONE_NEWNS; mount_setattr(2), Linux 5.12. Source: mount_namespaces(7).

    Examples
    --------
    >>> import os
    >>> with new_mntns() as mnt:
    ...     mnt.run(os.getcwd)
    '/'
    """
    builder = Builder()
    builder.clone_flags = calls.CLONE_NEWNS
    slave = Step("MOUNT_SETATTR", text=b"/", flags=calls.AT_RECURSIVE, size2=calls.MS_SLAVE, what="/ (propagation)")
    builder.add(INSIDE, slave)
    return _hold(MntNS, builder)


def new_pidns() -> PidNS:
    """Make a pid namespace, with a PID 1 that reaps. `with` is its lifetime.

    `Namespace.spawn` starts programs inside; they see each other, and what else a /proc shows that is mounted inside.

    Returns
    -------
    PidNS
        Owned: closing it kills everything inside, and so does the end of this process.

    Raises
    ------
    SetupFailed
        The kernel refused; the message says what would help.

    Notes
    -----
    Nothing happens to the calling thread. Privileges: CAP_SYS_ADMIN; without, it is owned by a user namespace of the
    caller's. Kernel: clone(2), CLONE_NEWPID. Source: pid_namespaces(7).

    Examples
    --------
    >>> from isolib import PIPE
    >>> with new_pidns() as pids, pids.spawn(["sh", "-c", "echo $$"], stdout=PIPE) as process:
    ...     int(process.communicate()[0]) < 10
    True
    """
    builder = Builder()
    builder.clone_flags = calls.CLONE_NEWPID
    builder.supervise_flags = 1
    return _hold(PidNS, builder, stay=True)


def new_userns(*, uid_map: str | Iterable[IdMap] = "root", gid_map: str | Iterable[IdMap] = "root") -> UserNS:
    r"""Make a user namespace. `with` is its lifetime.

    Parameters
    ----------
    uid_map, gid_map
        Which user and group ids inside are which outside: ``"root"``, root inside is the caller; ``"same"``, the caller's
        own ids; ``"auto"``, the subordinate ids of the caller from /etc/subuid and /etc/subgid, for root a range that nobody
        has; or a list of `IdMap`.

    Returns
    -------
    UserNS
        Owned.

    Raises
    ------
    PlanError
        A map cannot be one (ranges that overlap, none at all), or not for this caller, who has no subordinate ids.
    SetupFailed
        The kernel refused; the message says what would help.

    Notes
    -----
    Nothing happens to the calling thread. Privileges: none for the caller's own ids; /usr/bin/newuidmap and newgidmap are run
    for subordinate ids, CAP_SETUID and CAP_SETGID map any. Kernel: clone(2), CLONE_NEWUSER. Source: user_namespaces(7).

    Examples
    --------
    >>> from isolib import PIPE
    >>> with new_userns() as user, user.spawn(["id", "-u"], stdout=PIPE) as process:
    ...     process.communicate()[0]
    b'0\n'
    """
    builder = Builder()
    builder.clone_flags = calls.CLONE_NEWUSER
    assembly.add_maps(builder, resolve(_ranges(uid_map, "uid_map"), _ranges(gid_map, "gid_map")))
    return _take(UserNS, Held(builder, "user namespace"))


def _ranges(value: str | Iterable[IdMap], what: str) -> str | list[IdMap]:
    return value if isinstance(value, str) else list(check_id_map(value, what))


def new_timens(*, monotonic: float | timedelta = 0, boottime: float | timedelta = 0) -> TimeNS:
    """Make a time namespace, in which the clocks that count from boot are shifted. `with` is its lifetime.

    Parameters
    ----------
    monotonic, boottime
        What is added to CLOCK_MONOTONIC and CLOCK_BOOTTIME, in seconds or as a timedelta; may be negative, as long as the
        clocks do not become so.

    Returns
    -------
    TimeNS
        Owned.

    Raises
    ------
    PlanError
        An offset is no duration.
    Unsupported
        The kernel has no time namespaces.
    SetupFailed
        The kernel refused; ERANGE: a clock would be negative, or beyond 146 years.

    Notes
    -----
    Nothing happens to the calling thread. Privileges: CAP_SYS_ADMIN and CAP_SYS_TIME; without, it is owned by a user
    namespace of the caller's. Kernel: unshare(2), CLONE_NEWTIME, Linux 5.6. Source: time_namespaces(7).

    Examples
    --------
    >>> from isolib import PIPE
    >>> with new_timens(boottime=10**8) as time, time.spawn(["cat", "/proc/uptime"], stdout=PIPE) as process:
    ...     float(process.communicate()[0].split()[0]) > 10**8
    True
    """
    offsets = f"monotonic {_offset(monotonic, 'monotonic')}\nboottime {_offset(boottime, 'boottime')}\n"
    builder = Builder()
    builder.add(INSIDE, Step("UNSHARE", flags=calls.CLONE_NEWTIME, what="time namespace"))
    proc = builder.declare(ground().proc, "/proc")
    file = b"self/timens_offsets"
    builder.add(INSIDE, Step("WRITE", fd=proc, text=file, flags=os.O_WRONLY, text2=offsets.encode(), what="timens_offsets"))
    return _hold(TimeNS, builder)


def _offset(value: float | timedelta, what: str) -> str:
    """Return an offset as the kernel reads it: seconds, which may be negative, and nanoseconds, which are added to them."""
    from datetime import timedelta  # noqa: PLC0415 -- only few need it

    if isinstance(value, timedelta):
        parse_duration(abs(value), what)
        return f"{value.days * 86400 + value.seconds} {value.microseconds * 1000}"
    given: object = value
    parse_duration(-given if isinstance(given, (int, float)) and given < 0 else value, what)
    number = value if isinstance(value, int) else float(value)
    seconds = floor(number)
    nanoseconds = round((number - seconds) * _SECOND)
    return f"{seconds + nanoseconds // _SECOND} {nanoseconds % _SECOND}"


# ---- how ----

_CONFIG: Final = {
    "cgroup": "CONFIG_CGROUPS",
    "ipc": "CONFIG_IPC_NS",
    "net": "CONFIG_NET_NS",
    "pid": "CONFIG_PID_NS",
    "time": "CONFIG_TIME_NS",
    "user": "CONFIG_USER_NS",
    "uts": "CONFIG_UTS_NS",
}


def _unsupported(kind: str) -> Unsupported:
    return Unsupported(f"{kind} namespaces", "this kernel", f"a kernel with {_CONFIG.get(kind, 'them')}=y")


def _make(cls: type[N], *, lo: bool = False, hostname: str | None = None, domainname: str | None = None) -> N:
    """Make a namespace that threads can be in."""
    enter.check_usable()
    try:
        fd, identity = calls.new_namespace(cls.kind, lo=lo, hostname=hostname, domainname=domainname)
    except ThreadStranded as error:
        enter.strand(f"{error}: {error.__cause__}")
        raise
    except SyscallError as error:
        if error.op not in ("setns", "unshare") or error.errno not in (EINVAL, EPERM):
            raise from_errno(error.op, error.target, error.errno, hint(error.op, error.errno, error.target)) from None
        if error.errno == EINVAL:
            raise _unsupported(cls.kind) from None
    else:
        return cls._make(fd, identity=identity, made_here=True)
    builder = Builder()
    if cls.kind == "cgroup":  # its root is the cgroup of who makes it
        builder.add(INSIDE, Step("UNSHARE", flags=calls.CLONE_NEWCGROUP, what="cgroup namespace"))
    else:
        builder.clone_flags = calls.NAMESPACE_FLAGS[cls.kind]
    if lo:
        builder.add(INSIDE, Step("LINK_UP", text=b"lo", what="lo"))
    assembly.add_names(builder, hostname, domainname)
    return _hold(cls, builder)


#: The user namespaces that own what callers without privileges have made, as long as something of it is open.
_rooms: Final[WeakValueDictionary[tuple[object, ...], Fd]] = WeakValueDictionary()
#: Held while the first of them is made, so that threads which come meanwhile use it too; each fork has one of its own.
_settling: Final[dict[object, RLock]] = {}


def _hold(cls: type[N], builder: Builder, *, stay: bool = False) -> N:
    """Make a namespace by a process that holds it.

    Who has no privileges gets one that a user namespace of his owns.  It is the same for all that he makes, for a process is
    in one user namespace only, and only who has power over two network namespaces lays a cable between them.
    """
    if assembly.may_administer():
        return _take(cls, _held(cls, builder), stay=stay)
    status = os.stat("/proc/thread-self/ns/user")
    key = (home(), os.geteuid(), status.st_dev, status.st_ino)
    room = _rooms.get(key)
    if room is None:
        with _settling.setdefault(home(), RLock()):
            room = _rooms.get(key)
            if room is None:
                builder.clone_flags |= calls.CLONE_NEWUSER
                assembly.add_maps(builder, resolve("root", "root"))
                return _take(cls, _held(cls, builder), key=key, stay=stay)
    slot = builder.declare(room.fileno(), "user namespace")
    builder.add(HOST, Step("SETNS", fd=slot, flags=calls.CLONE_NEWUSER, what="user namespace"))
    return _take(cls, _held(cls, builder), room=room, key=key, stay=stay)


def _held(cls: type[N], builder: Builder) -> Held:
    try:
        return Held(builder, f"{cls.kind} namespace")
    except SetupFailed as error:
        if error.errno == EINVAL and error.op in ("clone3", "unshare"):
            raise _unsupported(cls.kind) from None
        if error.errno == ERANGE:
            text = "the clock would be negative in there, or more than 146 years from its beginning"
            raise SetupFailed(error.step, error.op, error.target, error.errno, text) from None
        raise


def _take(cls: type[N], held: Held, *, room: Fd | None = None, key: tuple[object, ...] | None = None, stay: bool = False) -> N:
    with Rollback() as undo:
        undo.push(held.end)
        fd: Fd = held.namespace("time_for_children" if cls.kind == "time" else cls.kind)
        owner = undo.adopt(UserNS._make(held.namespace("user"))) if key is not None else None
        if key is not None and room is None:
            room = _rooms.setdefault(key, held.namespace("user"))
        if stay:
            held.hide()
        else:
            held.end()
        made = cls._make(fd, owner=owner, room=room, process=held if stay else None, made_here=True)
        undo.dismiss()
    return made
