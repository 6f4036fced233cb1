"""A sandbox's way out: its place in a network."""

from __future__ import annotations

import os
from errno import ENOENT
from typing import TYPE_CHECKING

from isolib._kernel import assembly
from isolib._kernel.handle import Rollback
from isolib._kernel.sockets import open_file_in
from isolib.errors import SyscallError
from isolib.mounts import File
from isolib.namespaces import new_netns

if TYPE_CHECKING:
    from isolib.namespaces import NetNS, UserNS
    from isolib.net import Network
    from isolib.spec import SandboxSpec

__all__ = ["Outlet"]

_LOW_PORTS = "/proc/sys/net/ipv4/ip_unprivileged_port_start"


class Outlet:
    """A network namespace that is attached to a network, for one sandbox; it goes with that.

    Attributes
    ----------
    ns
        The namespace, which the sandbox joins: it is not the owner, and so cannot change its addresses, routes or rules.
    owner
        What owns it where the caller has no privileges, and so has to own the sandbox's user namespace too.
    endpoint
        Its place in the network.
    mounts
        Files for the sandbox: whom it asks for names.
    """

    def __init__(self, network: Network, spec: SandboxSpec) -> None:
        with Rollback() as undo:
            self.ns: NetNS = undo.adopt(new_netns())
            self.owner: UserNS | None = None if assembly.may_administer() else self.ns.owner
            _open_low_ports(self.ns)
            self.endpoint = undo.adopt(network.attach(self.ns, hostname=spec.hostname))
            for port, inner in (spec.publish or {}).items():
                undo.adopt(network.publish(port, self.endpoint, inner))
            self.mounts = (File("/etc/resolv.conf", network.resolv_conf()),)
            undo.keep()
        self._undo = undo

    def close(self) -> None:
        """Leave the network; again is nothing."""
        self._undo.unwind()


def _open_low_ports(ns: NetNS) -> None:
    """Let who is no root of the namespace listen on port 80: the network is his alone (ip(7), since Linux 4.11)."""
    try:
        fd = open_file_in(ns, _LOW_PORTS, os.O_WRONLY)
    except SyscallError as error:
        if error.errno != ENOENT:
            raise
        return
    with fd:
        os.write(fd.fileno(), b"0")
