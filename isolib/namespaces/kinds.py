"""The eight kinds of namespaces, a class for each: what they isolate, and what threads can do with them."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from isolib._kernel.handle import Rollback
from isolib._kernel.netlink.socket import ROUTE, open_netlink
from isolib.namespaces.handle import Namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from isolib._kernel.netlink.socket import Socket

__all__ = ["CgroupNS", "IpcNS", "MntNS", "NetNS", "PidNS", "TimeNS", "UserNS", "UtsNS"]

_FOR_GOOD = "the kernel: a thread with its own mount namespace keeps a root, working directory and umask of its own for good"


class NetNS(Namespace, made_by="isolib.new_netns() or isolib.open_netns()"):
    """A network namespace: interfaces, addresses, routes, ports, firewall rules (network_namespaces(7))."""

    kind = "net"
    _sockets: Mapping[int, Socket] = MappingProxyType({})

    def netlink(self, protocol: int = ROUTE, *, make: Callable[[], Socket] | None = None) -> Socket:
        """Return the netlink socket that belongs to this namespace, made when it is first asked for and closed with the handle.

        For who composes: whoever holds it speaks to the kernel about this namespace without going there.

        Parameters
        ----------
        protocol
            NETLINK_ROUTE, NETLINK_NETFILTER or NETLINK_GENERIC.
        make
            Makes it where there is none, for who has more to do on the way there; None: `open_netlink` does.

        Raises
        ------
        SyscallError, SetupFailed
            The kernel refused: who is not the owner of the namespace's user namespace lacks CAP_SYS_ADMIN over it.
        ClosedError
            The handle is closed.
        """
        self._check_open()
        found = self._sockets.get(protocol)
        if found is None:
            with self._guard():
                self._check_open()
                found = self._sockets.get(protocol)
                if found is None:
                    found = open_netlink(self, protocol) if make is None else make()
                    self._sockets = {**self._sockets, protocol: found}
        return found

    def has_netlink(self, protocol: int) -> bool:
        """Return whether `netlink` has made that socket already."""
        return protocol in self._sockets

    def _release(self) -> None:
        if not self._sockets:
            super()._release()
            return
        with Rollback() as undo:
            undo.push(super()._release)
            for socket in self._sockets.values():
                undo.push(socket.close)


class UtsNS(Namespace, made_by="isolib.new_utsns() or isolib.open_utsns()"):
    """A UTS namespace: host name and NIS domain name (uts_namespaces(7))."""

    kind = "uts"


class IpcNS(Namespace, made_by="isolib.new_ipcns() or isolib.open_ipcns()"):
    """An IPC namespace: System V shared memory, semaphores, queues, and POSIX message queues (ipc_namespaces(7))."""

    kind = "ipc"


class CgroupNS(Namespace, made_by="isolib.new_cgroupns() or isolib.open_cgroupns()"):
    """A cgroup namespace: which cgroup is shown as the root (cgroup_namespaces(7))."""

    kind = "cgroup"


class MntNS(Namespace, made_by="isolib.new_mntns() or isolib.open_mntns()"):
    """A mount namespace (mount_namespaces(7)). `run` and `spawn` go inside; `with` is its lifetime only."""

    kind = "mnt"
    _entry_refused_by = _FOR_GOOD
    _instead = "run() calls a function on a thread of its own, spawn() starts a program inside"


class PidNS(Namespace, made_by="isolib.new_pidns() or isolib.open_pidns()"):
    """A pid namespace (pid_namespaces(7)). `spawn` goes inside; `with` is its lifetime.

    One that isolib made has a PID 1 that reaps, for as long as the handle is open. Closing the handle ends PID 1, and with it
    everything inside.
    """

    kind = "pid"
    _entry_refused_by = _life_refused_by = "the kernel: a thread stays in the pid namespace in which it was born"


class UserNS(Namespace, made_by="isolib.new_userns() or isolib.open_userns()"):
    """A user namespace: user and group ids, capabilities (user_namespaces(7)). `spawn` goes inside; `with` is its lifetime."""

    kind = "user"
    _entry_refused_by = _life_refused_by = "the kernel: a process with several threads stays in its user namespace"


class TimeNS(Namespace, made_by="isolib.new_timens() or isolib.open_timens()"):
    """A time namespace: offsets of the monotonic clocks (time_namespaces(7)). `spawn` goes inside; `with` is its lifetime."""

    kind = "time"
    _entry_refused_by = _life_refused_by = "the kernel: a process with several threads stays in its time namespace"
