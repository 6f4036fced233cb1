"""Two network namespaces with a cable between them, and packets that are sent from one to the other and counted."""

from __future__ import annotations

import os
import select
import socket
import struct
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isolib import new_netns
from isolib._kernel.netlink import tc
from isolib.net.shaping import Shaping
from isolib.net.veth import new_veth
from isolib.net.where import Where
from tests.nets import PATIENCE, socket_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from isolib.namespaces import NetNS
    from isolib.net.veth import Veth

NEAR = "10.9.0.1"
FAR = "10.9.0.2"
_SO_NO_CHECK = 11
_SO_MEMINFO = 55
_DROPS = 8


@dataclass
class Line:
    """A cable: what the near end sends is shaped."""

    near: NetNS
    far: NetNS
    cable: Veth
    shaping: Shaping

    def udp(self, *, far: bool = False) -> socket.socket:
        """Return a socket at one end, bound to a free port."""
        return opened(self.far if far else self.near, socket.SOCK_DGRAM, FAR if far else NEAR)

    def queues(self) -> list[tc.QdiscState]:
        """Return the queueing disciplines that the near end has, with what has passed them."""
        found = map(tc.parse_qdisc, self.near.netlink().dump(tc.dump_qdiscs(self.cable.a.index)))
        return [one for one in found if one.index == self.cable.a.index]


def opened(ns: NetNS, kind: int, address: str) -> socket.socket:
    """Return a socket that was born in a namespace, bound to a free port."""
    made = socket_in(ns, kind)
    made.bind((address, 0))
    return made


@contextmanager
def line(*, without_netem: bool = False, one_processor: bool = False) -> Iterator[Line]:
    """Connect two new namespaces.

    Parameters
    ----------
    without_netem
        As if the kernel had none.
    one_processor
        The calling thread, and a relay that it starts, stay on one: what two of them send, a cable delivers in any order.
    """
    processors = os.sched_getaffinity(0)
    with ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, processors)
        if one_processor:
            os.sched_setaffinity(0, {min(processors)})
        near, far = (stack.enter_context(closing(new_netns())) for _ in range(2))
        cable = stack.enter_context(new_veth(near, far, addresses=(f"{NEAR}/24", f"{FAR}/24")))
        shaping = Shaping(Where(near), cable.a.index, cable.a.name)
        stack.callback(shaping.clear)
        if without_netem:
            shaping._has_netem = False
        yield Line(near, far, cable, shaping)


class Flow:
    """Numbered datagrams from the near end to the far one."""

    def __init__(self, line: Line, *, size: int = 100, checksum: bool = True) -> None:
        self._out = line.udp()
        self._in = line.udp(far=True)
        self._in.settimeout(0)
        self._in.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)  # net.core.rmem_max bounds it
        self.size = size
        self.sent = 0
        self.received: list[bytes] = []
        self.arrived = 0
        self._out.setsockopt(socket.SOL_SOCKET, _SO_NO_CHECK, int(not checksum))
        # The first one asks for the other's address first, and waits for the answer.
        self._out.connect(self._in.getsockname())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._out.close()
        self._in.close()

    def send(self, count: int = 1) -> None:
        """Send datagrams, each with its number, and take meanwhile what has come."""
        for number in range(self.sent, self.sent + count):
            self._out.send(struct.pack(">I", number).ljust(self.size, b"\0"))
            if number % 50 == 0:
                self.take()
        self.sent += count

    def send_on(self) -> None:
        """Send datagrams until one of them has come, and with it whatever of those before it comes."""
        first, looked_at = self.sent, len(self.received)
        while not any(first <= number < self.sent for number in self.numbers_from(looked_at)):
            assert self.sent < first + 5000, "none has come"
            self.send()
            self.take(0.002)

    def take(self, timeout: float = 0) -> None:
        """Take what has come, until nothing more comes for so long."""
        while self._take_one(timeout):
            pass

    def take_until(self, count: int) -> None:
        """Take until so many have come in all."""
        while len(self.received) < count:
            assert self._take_one(PATIENCE), f"{len(self.received)} of {count} have come"

    def _take_one(self, timeout: float) -> bool:
        if not select.select([self._in], [], [], timeout)[0]:
            return False
        with suppress(BlockingIOError):  # its checksum is looked at now
            self.received.append(self._in.recv(65536))
        return True

    @property
    def numbers(self) -> list[int]:
        """The numbers of the datagrams that came, in that order."""
        return self.numbers_from(0)

    def numbers_from(self, start: int) -> list[int]:
        """The numbers of the datagrams that came after the first so many."""
        return [int(struct.unpack(">I", one[:4])[0]) for one in self.received[start:]]

    @property
    def delivered(self) -> int:
        """How many came as far as the receiver's socket, whose buffer may have had no room for all."""
        meminfo = self._in.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36)
        return len(self.received) + int(struct.unpack("=9I", meminfo)[_DROPS])
