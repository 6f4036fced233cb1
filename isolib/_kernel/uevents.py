"""What the kernel says of devices: its own messages, as every program may hear them (lib/kobject_uevent.c)."""

from __future__ import annotations

import socket
from errno import ENOBUFS
from typing import TYPE_CHECKING, Final

from isolib._kernel.waiting import poll

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from isolib._kernel.waiting import Deadline

__all__ = ["Removals"]

_KOBJECT_UEVENT: Final = 15
_KERNEL: Final = 1
_ROOM: Final = 8192


class Removals:
    """Tells when a device has gone; it hears what happens from the moment on at which it is made.

    Notes
    -----
    Source: netlink(7), NETLINK_KOBJECT_UEVENT.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, _KOBJECT_UEVENT)
        self._socket.bind((0, _KERNEL))

    def wait(self, deadline: Deadline) -> bool:
        """Wait for the next removal; returns False when the time is over.  Messages that were lost count as one."""
        while True:
            try:
                if self._socket.recv(_ROOM).startswith(b"remove@"):
                    return True
            except BlockingIOError:
                if not poll(self._socket, deadline.milliseconds()):
                    return False
            except OSError as error:
                if error.errno != ENOBUFS:
                    raise
                return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._socket.close()
