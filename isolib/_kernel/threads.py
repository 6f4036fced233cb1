"""Threads of isolib's own, beside those of the program, which have nothing to do with what those do."""

from __future__ import annotations

import signal
import sys
from _queue import SimpleQueue  # not queue.SimpleQueue, which gevent replaces
from errno import EAGAIN
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Final

from isolib._kernel import assembly, calls
from isolib.errors import from_errno

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["OwnThread"]

#: Signals by which the kernel tells a thread of its own fault.
_FAULTS: Final = {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGSYS, signal.SIGTRAP}


class OwnThread:
    """A daemon thread, one of the system's also where gevent has put something else in the place of threads.

    Parameters
    ----------
    name
        Its name.
    what
        What it is, for errors.
    """

    def __init__(self, name: str, what: str) -> None:
        self._name = name
        self._what = what
        self._thread: Thread | None = None

    def start(self, body: Callable[[], None]) -> None:
        """Start it.

        Raises
        ------
        SyscallError
            There can be no more threads.
        """
        monkey = sys.modules.get("gevent.monkey")
        try:
            if monkey is not None and monkey.is_module_patched("_thread"):
                # What it calls a thread would run in the caller's, and go with that one wherever it goes.
                monkey.get_original("_thread", "start_new_thread")(body, ())
            else:
                self._thread = Thread(target=body, name=self._name, daemon=True)
                self._thread.start()
        except RuntimeError as error:
            raise from_errno("pthread_create", self._what, EAGAIN) from error

    def start_outside(self, body: Callable[[], None]) -> None:
        """Start it with all signals blocked, in the namespaces that the calling thread was in before it went anywhere.

        Raises
        ------
        SyscallError
            As `start`; or it cannot get back there.
        """
        away = assembly.outside()
        # A new thread is where its creator is, which may be inside a namespace that is to end before this thread does.
        moved: SimpleQueue[BaseException | None] = SimpleQueue()
        self.start(partial(_live_outside, away, moved, body))
        if away and (failure := moved.get()) is not None:
            raise failure

    def join(self) -> None:
        """Wait until it has ended, if it was started; of one beside gevent nobody can tell, and it is not waited for."""
        if self._thread is not None and self._thread.is_alive():
            self._thread.join()


def _live_outside(away: list[tuple[int, int]], moved: SimpleQueue[BaseException | None], body: Callable[[], None]) -> None:
    # They are for the program's threads; and SIGPIPE, which a program may have set to kill it, comes to nobody.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _FAULTS)
    try:
        for fd, flag in away:
            calls.setns(fd, flag, "the namespace outside")
    except BaseException as error:  # noqa: BLE001 - raised where the thread was started
        moved.put(error)
        return
    moved.put(None)
    body()
