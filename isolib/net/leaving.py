"""The cables of those who leave a network together with their namespace: the kernel takes them down behind, nobody waits.

Who removes a link waits until no processor can be about to use it, ten milliseconds or more.  A namespace that nobody has
any more goes with its links, and then a thread of the kernel waits.  So the port of who leaves is shut, which takes no
time: nothing passes there any more, and its addresses can be another's.

The kernel does not say whether somebody else has a namespace: a program in it, a socket, a handle.  Then the cable would
stay; so what is there a while later is removed by a thread of ours.  Where the kernel falls behind, who leaves next removes
it, and waits.
"""

from __future__ import annotations

import struct
import time
from _queue import Empty, SimpleQueue  # not queue.SimpleQueue, which gevent replaces
from _thread import RLock  # reentrant: a finalizer, which may run anywhere, closes what it owns
from contextlib import suppress
from errno import ENODEV
from fcntl import ioctl
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib._kernel.handle import Rollback
from isolib._kernel.threads import OwnThread
from isolib.errors import ClosedError, SyscallError
from isolib.net.bridge import shutting

if TYPE_CHECKING:
    from isolib.net.interface import Interface
    from isolib.net.where import Where

__all__ = ["Leaving"]

#: Seconds after which somebody else has the namespace, or the kernel is late.
_PATIENCE: Final = 0.25
#: Cables that may be on their way at a time.
_MOST: Final = 32
#: netdevice(7), SIOCGIFNAME: answered at once also while the kernel takes links down, where a request of rtnetlink waits.
_SIOCGIFNAME: Final = 0x8910
_IFREQ: Final = struct.Struct("=16si20x")


class Leaving:
    """The cables of one network that the kernel is about to take down.

    Parameters
    ----------
    where
        The namespace that their ends at the bridge are in.
    """

    def __init__(self, where: Where) -> None:
        self._where = where
        self._lock = RLock()  # of what follows, and of removing
        self._left: dict[Rollback, tuple[int, float]] = {}  # the oldest first
        self._error: SyscallError | None = None
        self._is_closed = False
        self._is_watched = False
        self._number = 0
        self._thread: OwnThread | None = None
        self._inbox: SimpleQueue[bool] = SimpleQueue()

    def new_cable(self, undo: Rollback) -> Rollback:
        """Return what gets the steps that remove a cable; it is unwound by a step of another, unless the cable is left."""
        made = Rollback()
        undo.push(self._remove, made)
        return made

    def _remove(self, cable: Rollback) -> None:
        with self._lock:
            if cable not in self._left:
                cable.unwind()

    def leave(self, port: Interface, cable: Rollback) -> None:
        """Let nothing pass at a port any more, and leave its cable to the kernel; where that cannot be, do nothing."""
        # Refused: somebody has taken it down, or from its bridge, or a spanning tree says what it does.
        with self._lock, suppress(SyscallError, ClosedError):
            if self._is_closed:
                return
            self._where.socket.ask(shutting(port))
            if self._thread is None:
                thread = OwnThread("isolib leaving", "the thread that looks after cables")
                thread.start_outside(self._live)
                self._thread = thread
            self._left[cable] = port.index, time.monotonic()
            if not self._is_watched:
                self._inbox.put(True)  # noqa: FBT003 - there is something
            self._clear()

    def _clear(self) -> None:
        """Forget what is gone, and remove what is overdue."""
        for cable, (index, since) in [*self._left.items()]:
            if not self._is_there(index):
                cable.dismiss()
            elif len(self._left) > _MOST or time.monotonic() - since >= _PATIENCE:
                try:
                    cable.unwind()
                except SyscallError as error:
                    self._error = self._error or error.with_traceback(None)
            else:
                return
            self._left.pop(cable, None)

    def _is_there(self, index: int) -> bool:
        try:
            socket = self._where.socket
            socket.lend(lambda: ioctl(socket.fileno(), _SIOCGIFNAME, _IFREQ.pack(b"", index)))
        except ClosedError:
            return False
        except OSError as error:
            if error.errno != ENODEV:
                raise
            return False
        return True

    def _live(self) -> None:
        self._number = calls.thread_number()
        timeout: float | None = None
        while True:
            with suppress(Empty):
                if not self._inbox.get(timeout=timeout):
                    break
            with self._lock:
                self._clear()
                self._is_watched = bool(self._left)
            timeout = _PATIENCE if self._is_watched else None
        self._inbox.put(False)  # noqa: FBT003 - for another one, where an interrupt came when this one was started

    def close(self) -> None:
        """Look after nothing any more: the cables go with the network's namespace; again is nothing.

        Raises
        ------
        SyscallError
            One could not be removed.
        """
        with self._lock:
            self._is_closed = True
            for cable in self._left:
                cable.dismiss()
            self._left.clear()
            self._inbox.put(False)  # noqa: FBT003 - there is nothing
        if self._thread is not None and calls.thread_number() != self._number:
            self._thread.join()
        error, self._error = self._error, None
        if error is not None:
            raise error
