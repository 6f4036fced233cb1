"""A relay for one interface: what it would send is led to a thread of the extension, which sends it later, or not at all.

How.  A filter on the interface's way out (clsact, u32, mirred) lets packets leave by a veth instead, whose other end lies in a
network namespace of the relay's own.  Nobody else is there, so nothing answers them; a packet socket takes them, and the
thread puts them back by another packet socket, which marks them with a protocol of their own that a filter before that one lets
pass.  The interface's own taps see them when they really leave.

Whose.  The namespace of the relay, and with it both ends of the veth, live as long as the thread's socket does.  After a
kill -9 the filter leads to nobody: the interface sends nothing until it is removed, which those who own it see to.

Packets are taken apart before (GSO), so that each frame has its own fate; who is in a namespace for which filters are made
needs no privilege beyond it: no /dev/net/tun, no BPF.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from errno import EEXIST, EINVAL, ENODEV, ENOENT
from random import SystemRandom
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib._kernel.handle import Rollback
from isolib._kernel.netlink import codec, tc
from isolib._kernel.netlink.qdiscs import CERTAIN, Clsact
from isolib._kernel.netlink.socket import open_netlink
from isolib._kernel.sockets import new_namespace_beside
from isolib.errors import ClosedError, SyscallError
from isolib.net import parsing, requests
from isolib.net.packet_socket import new_packet_socket

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolib._kernel.netlink.socket import Request
    from isolib.net.weather import Impairment
    from isolib.net.where import Where

__all__ = ["GONE", "Relay", "parts", "suppress_errno"]

#: No frame has it: below 0x600 the field is a length.
_PUT_BACK: Final = 0x0150
#: Of the filters; who adds others between them decides himself.
_PASS: Final = 100
_REDIRECT: Final = 101

#: The number of the end in a namespace where there is nothing yet but lo.
_INNER: Final = 2
#: An MTU under IPv6's least: the end beside the interface has no IPv6, and says nothing.  What passes is not measured by it.
_SILENT_MTU: Final = 1279
_LONGEST_MTU: Final = 65535
_GSO_MAX_SEGS: Final = 40
_LOWEST: Final = 1 << 24
_HIGHEST: Final = (1 << 31) - 1
_random: Final = SystemRandom()
#: That what is to be removed is not there, or its interface is not.
GONE: Final = frozenset({ENODEV, ENOENT, EINVAL})


@contextmanager
def suppress_errno(*numbers: int) -> Iterator[None]:
    """Take these refusals of the kernel for an answer."""
    try:
        yield
    except SyscallError as error:
        if error.errno not in numbers:
            raise


def parts(probability: float) -> int:
    """Return a probability in parts of 2^32; nothing that is possible becomes impossible."""
    return max(2, round(probability * CERTAIN)) if probability else 0


def _weather(asked: Impairment) -> calls.RelayWeather:
    return calls.RelayWeather(
        delay_ns=round(asked.delay * 1e9),
        jitter_ns=round(asked.jitter * 1e9),
        rate=asked.rate or 0,
        loss=parts(asked.loss),
        duplicate=parts(asked.duplicate),
        corrupt=parts(asked.corrupt),
        reorder=parts(asked.reorder),
        limit=asked.queue,
    )


class Relay:
    """A relay that runs.

    Parameters
    ----------
    where
        The namespace.
    index, name
        Of the interface.
    asked
        What happens to packets at first.

    Raises
    ------
    SyscallError, SetupFailed
        The kernel refused, and nothing is left.  ENOENT: it lacks the filter or the action.

    Notes
    -----
    Packets up to the MTU that the interface has now pass.  Privileges: CAP_NET_ADMIN and CAP_NET_RAW over the namespace.
    Kernel: CONFIG_VETH, CONFIG_PACKET, CONFIG_NET_SCH_INGRESS, CONFIG_NET_CLS_U32, CONFIG_NET_ACT_MIRRED; Linux 4.16.
    """

    def __init__(self, where: Where, index: int, name: str, asked: Impairment) -> None:
        self._where = where
        self._index = index
        self._name = name
        self.mtu = parsing.parse_link(where.socket.ask(requests.get_link_by_index(index, name))[0]).mtu
        self._undo = Rollback()
        with self._undo as undo:
            self._thread = calls.new_relay()
            self._lead(undo, self._cable(undo, asked))
            undo.keep()

    def _cable(self, undo: Rollback, asked: Impairment) -> int:
        """Make the veth and start the thread at its other end; return the number of the near end."""
        where, name = self._where, self._name
        near = _random.randint(_LOWEST, _HIGHEST)
        label = f"isolib-{near:08x}"
        inner = new_namespace_beside(where.net)
        with inner, open_netlink(inner) as far:
            peer = requests.link_attributes(name="veth0", mtu=_LONGEST_MTU, net=inner.fileno())
            data = codec.nested(1, parsing.IFINFO.pack(0, 0, _INNER, 0, 0) + peer)
            own = requests.link_attributes(name=label, mtu=_SILENT_MTU) + codec.u32(_GSO_MAX_SEGS, 1)
            undo.push(self._forget, requests.remove_link(near, label))
            where.socket.ask(requests.new_link("veth", own, name=label, index=near, data=data))
            # The end that comes up last can send at once; the other drops what it is given until a worker of the kernel's
            # has seen that it has a carrier (net/core/link_watch.c).
            far.ask(requests.set_link(_INNER, "veth0", up=True))
            where.socket.ask(requests.set_link(near, label, up=True))
            with new_packet_socket(inner) as taken, new_packet_socket(where.net) as put:
                ends = calls.RelayEnds(taken.fileno(), _INNER, put.fileno(), self._index, self.mtu, _PUT_BACK)
                undo.push(calls.relay_end, self._thread)
                calls.relay_start(self._thread, ends, _weather(asked), f"relay of {name}")
        return near

    def _lead(self, undo: Rollback, target: int) -> None:
        """Lead what the interface would send to the near end."""
        socket, index, name = self._where.socket, self._index, self._name
        # It stays: while the kernel makes or removes one, it drops what an interface that is up would send (qdisc_graft).
        with suppress_errno(EEXIST):
            socket.ask(tc.add_qdisc(index, Clsact(), name))
        for options, priority, protocol in (
            (tc.pass_filter(), _PASS, _PUT_BACK),
            (tc.redirect_filter(target), _REDIRECT, tc.ANY_PROTOCOL),
        ):
            at = {"parent": tc.EGRESS, "priority": priority, "protocol": protocol}
            undo.push(self._forget, tc.delete_filter(index, name, **at))
            socket.ask(tc.add_filter(index, options, name, **at))

    def _forget(self, request: Request) -> None:
        """Take something off the interface, unless it, or its namespace, is gone."""
        with suppress(ClosedError), suppress_errno(*GONE):
            self._where.socket.ask(request)

    def change(self, asked: Impairment) -> None:
        """Change what happens to packets that come from now on; those that wait leave when they were to."""
        calls.relay_change(self._thread, _weather(asked))

    def end(self) -> None:
        """Have the thread end, and with it the veth, but leave the interface as it is; it is not waited for."""
        calls.relay_leave(self._thread)
        self._undo.dismiss()

    def close(self) -> None:
        """Open the direct way again, and send what waits at once; again is nothing."""
        self._undo.unwind()
