"""A sandbox's way out: its place in a network."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast

from isolib._kernel import assembly
from isolib._kernel.handle import Rollback
from isolib._kernel.sockets import put_in
from isolib.mounts import File
from isolib.namespaces import new_netns
from isolib.net.hosts import hosts

if TYPE_CHECKING:
    from isolib._kernel.request import MountValue
    from isolib.namespaces import NetNS, UserNS
    from isolib.net import Network, Publish, Published
    from isolib.spec import SandboxSpec

__all__ = ["Outlet"]

#: From which port on nobody needs a right to listen (ip(7)).
_LOWEST = "/proc/sys/net/ipv4/ip_unprivileged_port_start"
_HOSTS = "/etc/hosts"
_RESOLVERS = "/etc/resolv.conf"


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
    published
        Its ports that are, in the order in which the spec has them.
    files
        Paths and contents of files for the sandbox: whom it asks for names, if the network answers, and, in place of what the
        host's root says there, its own name.
    """

    def __init__(self, network: Network, spec: SandboxSpec) -> None:
        self.published: tuple[Published, ...] = ()
        with Rollback() as undo:
            self.ns: NetNS = undo.adopt(new_netns())
            self.owner: UserNS | None = None if assembly.may_administer() else self.ns.owner
            put_in(self.ns, _LOWEST, "0")  # the namespace is this sandbox's alone
            self.endpoint = network.attach(self.ns, hostname=spec.hostname)
            undo.push(self.endpoint.leave)  # and then the namespace, which nobody else has: who was in it has ended
            for one in cast("tuple[Publish, ...]", spec.publish or ()):
                outside, inside = one.host_port, one.port
                made = network.publish(
                    outside, self.endpoint, inside, proto=one.proto, host=one.host, mode=one.mode, via=one.via
                )
                self.published += (undo.adopt(made),)
            self.files: list[tuple[str, bytes]] = []
            if network.dns:
                self.files.append((_RESOLVERS, network.resolv_conf().encode()))
            # What the host calls so is not who the network calls so.  Where there is no such file, one can be made.
            if hasattr(spec.root, "lend") or (spec.root is None and os.path.exists(_HOSTS)):
                text = hosts((one, [spec.hostname]) for one in self.endpoint.addresses)
                self.files.append((_HOSTS, text.encode()))
            undo.keep()
        self._undo = undo

    @property
    def mounts(self) -> list[MountValue]:
        """The files, to be mounted."""
        return [File(path, data) for path, data in self.files]

    @property
    def premises(self) -> tuple[object, ...]:
        """What a plan for this sandbox rests on, where it is to serve for others too: their namespaces and contents differ."""
        changed = os.stat("/etc").st_mtime_ns if os.path.isdir("/etc") else 0  # what there is to be covered may be another
        return (self.owner is None, changed, *(path for path, _ in self.files))

    def close(self) -> None:
        """Leave the network; again is nothing."""
        self._undo.unwind()
