"""Handles for namespaces that are there already: of a process, at a path, by the name of `ip netns`, behind a descriptor."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from errno import EBADF, EINVAL, ENOENT, EOPNOTSUPP
from typing import TYPE_CHECKING, Final, TypeVar

from isolib._kernel import calls
from isolib._kernel.handle import Fd, Rollback
from isolib.errors import GoneError, IsolibError, PermissionDenied, PlanError, SyscallError, Unsupported, from_errno
from isolib.namespaces import held, pin
from isolib.namespaces.enter import open_own
from isolib.namespaces.handle import CLASSES, Namespace
from isolib.namespaces.kinds import CgroupNS, IpcNS, MntNS, NetNS, PidNS, TimeNS, UserNS, UtsNS
from isolib.types import check_path

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

    from isolib.types import HasFileno

N = TypeVar("N", bound=Namespace)

_MAX_PID: Final = 1 << 22  # PID_MAX_LIMIT
_KINDS_BY_FLAG: Final = {flag: kind for kind, flag in calls.NAMESPACE_FLAGS.items()}
_PTRACE_HINT: Final = "the process of another user, or one with more privileges than yours; CAP_SYS_PTRACE may ask for any"
_FILE_TYPES: Final = {
    stat.S_IFREG: "a regular file",
    stat.S_IFDIR: "a directory",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


def open_netns(
    *,
    pid: int | None = None,
    path: os.PathLike[str] | str | None = None,
    name: str | None = None,
    fd: int | HasFileno | None = None,
) -> NetNS:
    """Adopt a network namespace that is there already. Exactly one argument says which.

    Parameters
    ----------
    pid
        That of a process (or thread), as the calling process sees it.
    path
        Its file: /proc/PID/ns/net, or where it was pinned.
    name
        Its name in `ip netns`, a file in /run/netns.
    fd
        A descriptor of it, or an object that has one; it stays the caller's.

    Returns
    -------
    NetNS
        It keeps the namespace alive while it is open; closing it takes nothing away from others. In a `with` block the
        calling thread is inside, as with `new_netns`.

    Raises
    ------
    PlanError
        None or several arguments; no such pid can exist; what is there is something else, which the message names.
    Unsupported
        The kernel does not have this kind.
    GoneError
        There is no process of this pid.
    PermissionDenied
        It is the process of somebody else.
    SyscallError
        There is nothing at the path or of this name.

    Notes
    -----
    Nothing happens to the calling thread. Privileges: to ask for a process's, those to ptrace it (PTRACE_MODE_READ_FSCREDS).
    Kernel: pidfd_open(2), ioctl_pidfd(2) (Linux 6.11, before that /proc/PID/ns). Sources: namespaces(7), ip-netns(8).

    Examples
    --------
    >>> import os
    >>> from isolib import open_netns
    >>> with open_netns(pid=os.getpid()) as net:
    ...     net.kind
    'net'
    """
    return _open(NetNS, pid, path, name, fd)


def open_utsns(
    *,
    pid: int | None = None,
    path: os.PathLike[str] | str | None = None,
    name: str | None = None,
    fd: int | HasFileno | None = None,
) -> UtsNS:
    """Adopt a UTS namespace that is there already, in all as `open_netns`."""
    return _open(UtsNS, pid, path, name, fd)


def open_ipcns(
    *,
    pid: int | None = None,
    path: os.PathLike[str] | str | None = None,
    name: str | None = None,
    fd: int | HasFileno | None = None,
) -> IpcNS:
    """Adopt an IPC namespace that is there already, in all as `open_netns`."""
    return _open(IpcNS, pid, path, name, fd)


def open_cgroupns(
    *,
    pid: int | None = None,
    path: os.PathLike[str] | str | None = None,
    name: str | None = None,
    fd: int | HasFileno | None = None,
) -> CgroupNS:
    """Adopt a cgroup namespace that is there already, in all as `open_netns`."""
    return _open(CgroupNS, pid, path, name, fd)


def open_mntns(
    *,
    pid: int | None = None,
    path: os.PathLike[str] | str | None = None,
    name: str | None = None,
    fd: int | HasFileno | None = None,
) -> MntNS:
    """Adopt a mount namespace that is there already, as `open_netns`; `with` is the handle's lifetime only."""
    return _open(MntNS, pid, path, name, fd)


def open_pidns(
    *,
    pid: int | None = None,
    path: os.PathLike[str] | str | None = None,
    name: str | None = None,
    fd: int | HasFileno | None = None,
) -> PidNS:
    """Adopt a pid namespace that is there already, as `open_netns`; `with` is the handle's lifetime only.

    The handle keeps the namespace known, but nothing can start in it when its PID 1 has ended.
    """
    return _open(PidNS, pid, path, name, fd)


def open_userns(
    *,
    pid: int | None = None,
    path: os.PathLike[str] | str | None = None,
    name: str | None = None,
    fd: int | HasFileno | None = None,
) -> UserNS:
    """Adopt a user namespace that is there already, as `open_netns`; `with` is the handle's lifetime only."""
    return _open(UserNS, pid, path, name, fd)


def open_timens(
    *,
    pid: int | None = None,
    path: os.PathLike[str] | str | None = None,
    name: str | None = None,
    fd: int | HasFileno | None = None,
) -> TimeNS:
    """Adopt a time namespace that is there already, as `open_netns`; `with` is the handle's lifetime only."""
    return _open(TimeNS, pid, path, name, fd)


class NamespaceSet(Mapping[str, Namespace]):
    """The namespaces of a process or thread, a handle for each kind; made by `of`.

    `close`, or the end of a `with` block, closes them all. Kinds that the kernel does not have are not in it.
    """

    def __init__(self, handles: Mapping[str, Namespace]) -> None:
        self._handles = dict(handles)

    def __getitem__(self, kind: str) -> Namespace:
        return self._handles[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(self._handles)

    def __len__(self) -> int:
        return len(self._handles)

    def __repr__(self) -> str:
        return f"<NamespaceSet {' '.join(f'{handle.kind}:[{handle.id}]' for handle in self.values())}>"

    def close(self) -> None:
        """Close every handle."""
        with Rollback() as undo:
            for handle in self.values():
                undo.adopt(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def of(pid: int | None = None) -> NamespaceSet:
    """Return handles for all the namespaces of a process.

    Parameters
    ----------
    pid
        Of which process (or thread), as the calling process sees it; None: those of the calling thread.

    Returns
    -------
    NamespaceSet
        By kind. To be closed, as its members are; a `with` block does it, and enters none of them.

    Raises
    ------
    PlanError, GoneError, PermissionDenied
        As `open_netns`.

    Notes
    -----
    Nothing happens to the calling thread. Privileges and kernel as in `open_netns`.

    Examples
    --------
    >>> import os
    >>> from isolib.namespaces import of
    >>> with of() as here, of(os.getpid()) as process:
    ...     here == process
    True
    """
    if pid is not None:
        check_pid(pid)
    with Rollback() as undo:
        handles: dict[str, Namespace] = {}
        for kind, cls in CLASSES.items():
            try:
                made = cls._make(open_own(kind) if pid is None else _of_process(pid, kind))
            except Unsupported:
                continue
            except SyscallError as error:
                if pid is None and error.errno == ENOENT:
                    continue
                raise
            handles[kind] = undo.adopt(made)
        undo.dismiss()
        return NamespaceSet(handles)


# ---- how ----


def _open(
    cls: type[N], pid: int | None, path: os.PathLike[str] | str | None, name: str | None, fd: int | HasFileno | None
) -> N:
    if sum(each is not None for each in (pid, path, name, fd)) != 1:
        raise PlanError("exactly one of pid=, path=, name= and fd= says which namespace is meant")
    if pid is not None:
        return cls._make(_of_process(check_pid(pid), cls.kind))
    if fd is not None:
        return cls._make(_of_descriptor(fd, cls.kind))
    if path is not None:
        place = os.path.abspath(check_path(path, "path"))
        return cls._make(_at_path(place, cls.kind, None), place=place)
    place = f"{pin.DIRECTORY}/{pin.check_name(name or '')}"
    return cls._make(_at_path(place, cls.kind, "`ip netns list` shows which names there are"), place=place)


def check_pid(pid: object) -> int:
    """Return a pid that a process could have.

    Raises
    ------
    PlanError
        It is no number, 0, negative, or larger than any pid.
    """
    if not isinstance(pid, int) or isinstance(pid, bool) or not 0 < pid <= _MAX_PID:
        raise PlanError(f"pid: the number of a process is wanted, 1 to {_MAX_PID}, not {pid!r}")
    return pid


def _of_process(pid: int, kind: str) -> Fd:
    label = f"process {pid}"
    try:
        pidfd = Fd.take(os.pidfd_open, pid)
    except OSError as error:
        if error.errno not in (EINVAL, ENOENT):
            raise from_errno("pidfd_open", label, error.errno or 0) from None
        pidfd = None  # a thread, and not the first of its process
    try:
        if pidfd is None:
            return held.take_by_path(pid, kind)
        with pidfd:
            return held.take(pidfd.fileno(), pid, kind)
    except PermissionDenied as error:
        raise PermissionDenied(error.op, label, error.errno, _PTRACE_HINT) from None
    except SyscallError as error:
        if error.errno in (ENOENT, EOPNOTSUPP):
            if not os.path.exists(f"/proc/self/ns/{kind}"):
                raise Unsupported(f"{kind} namespaces", "this kernel", "a kernel that was configured with them") from None
            raise GoneError(error.op, label) from None  # a process that waits to be reaped has no namespaces any more
        raise type(error)(error.op, label, error.errno, error.hint) from None


def _of_descriptor(fd: int | HasFileno, kind: str) -> Fd:
    number = fd if isinstance(fd, int) else fd.fileno() if hasattr(fd, "fileno") else None
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise PlanError(f"fd: a descriptor is wanted, or an object that has one, not {fd!r}")
    label = f"fd: descriptor {number}" if isinstance(fd, int) else f"fd: {fd!r}"
    try:
        copy = Fd.take(os.dup, number)
    except OSError as error:
        if error.errno == EBADF:
            raise PlanError(f"{label} is not open") from None
        raise from_errno("dup", label, error.errno or 0) from None
    assert copy is not None  # noqa: S101 -- os.dup raises
    _check(copy, kind, label)
    return copy


def _at_path(place: str, kind: str, hint: str | None) -> Fd:
    try:
        # To look at, not to read: opening a device or a pipe for that might do something, or wait for ever.
        with Fd(os.open(place, os.O_PATH | os.O_CLOEXEC)) as seen:
            _check_is_namespace(seen, place)
            fd = Fd.take(os.open, f"/proc/thread-self/fd/{seen.fileno()}", os.O_RDONLY | os.O_CLOEXEC)
    except IsolibError:
        raise
    except OSError as error:
        raise from_errno("open", place, error.errno or 0, hint) from None
    assert fd is not None  # noqa: S101 -- os.open raises
    _check(fd, kind, place)
    return fd


def _check(fd: Fd, kind: str, label: str) -> None:
    _check_is_namespace(fd, label)
    try:
        flag = calls.namespace_flag(fd.fileno())
    except SyscallError as error:
        if error.errno == EBADF:
            raise PlanError(f"{label} was opened with O_PATH; a namespace is opened for reading") from None
        raise
    found = _KINDS_BY_FLAG.get(flag, f"unknown ({flag:#x})")
    if found != kind:
        raise PlanError(f"{label} is a namespace of kind {found}, not {kind}")


def _check_is_namespace(fd: Fd, label: str) -> None:
    if calls.fs_magic(fd.fileno()) == calls.NSFS_MAGIC:
        return
    mode = stat.S_IFMT(os.fstat(fd.fileno()).st_mode)
    what = _FILE_TYPES.get(mode)
    link = os.readlink(f"/proc/thread-self/fd/{fd.fileno()}")
    if what is None or link.startswith(("anon_inode:", "pidfd:")):
        what = link
    raise PlanError(f"{label} is {what}, not a namespace")
