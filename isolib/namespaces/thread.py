"""A thread that lives inside a namespace, and runs what others give it.

`with ns:` moves the caller's thread, which is wrong where that thread is shared by others (an event loop, a pool), and
impossible for mount namespaces: a thread that has its own has its own working directory and umask too, for good (unshare(2),
CLONE_FS), so the caller's could never be put back. A resident thread enters once and stays.

It is a daemon thread: Python ends without waiting for it. It holds no reference to the handle whose thread it is.
"""

from __future__ import annotations

import os
from _queue import SimpleQueue  # not queue.SimpleQueue: gevent replaces that one, and here native threads meet
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from isolib._kernel import calls
from isolib._kernel.threads import OwnThread
from isolib.errors import ClosedError, IsolibError
from isolib.namespaces import enter

if TYPE_CHECKING:
    from collections.abc import Callable

    from isolib._kernel.handle import Fd

__all__ = ["Resident"]

P = ParamSpec("P")
R = TypeVar("R")


class _Job:
    """A call in the context of its caller, and the outcome: whether it returned, and the value or the exception."""

    __slots__ = ("call", "deserted", "outcome")

    def __init__(self, call: Callable[[], object]) -> None:
        self.call: Callable[[], object] | None = partial(copy_context().run, call)
        self.deserted = False  # by its caller, who was interrupted
        self.outcome: SimpleQueue[tuple[bool, Any]] = SimpleQueue()

    def perform(self) -> tuple[bool, Any]:
        assert self.call is not None  # noqa: S101 -- performed once
        try:
            return True, self.call()
        except BaseException as error:  # noqa: BLE001 -- the caller's, SystemExit too
            # The traceback begins with this function; it goes on with the caller's.
            trace = error.__traceback__
            return False, error.with_traceback(trace.tb_next if trace else None)
        finally:
            self.call = None  # its arguments must not live as long as this thread idles


class _Worker:
    """One thread inside. Whoever puts None into its inbox ends it."""

    def __init__(self, kind: str, label: str) -> None:
        self.kind = kind
        self.label = label
        self.number = 0
        self.inbox: SimpleQueue[_Job | None] = SimpleQueue()
        self.ended: SimpleQueue[None] = SimpleQueue()
        self.current: _Job | None = None
        self.waiting_for: _Worker | None = None
        self._thread = OwnThread(f"isolib {label}", f"a thread in {label}")

    def start(self, fd: int, unclean: Callable[[_Worker], None]) -> None:
        """Start the thread; it is inside when this returns."""
        started: SimpleQueue[BaseException | None] = SimpleQueue()
        self._thread.start(partial(self._live, fd, enter.outside(), started, unclean))
        error = started.get()
        if error is not None:
            raise error

    def join(self) -> None:
        """Wait until the thread has left the namespace and ended."""
        self.ended.get()
        self.ended.put(None)  # for whoever asks next
        self._thread.join()

    def _live(
        self,
        fd: int,
        outside: list[tuple[int, int]],
        started: SimpleQueue[BaseException | None],
        unclean: Callable[[_Worker], None],
    ) -> None:
        home: Fd | None = None
        try:
            try:
                home = self._settle(fd, outside)
            except BaseException as error:  # noqa: BLE001 -- the caller's
                started.put(error)
                return
            del outside
            self.number = calls.thread_number()
            _workers[self.number] = self
            started.put(None)
            self._serve(unclean)
        finally:
            _workers.pop(self.number, None)
            if home is not None:
                self._go_home(home)
            self.ended.put(None)

    def _settle(self, fd: int, outside: list[tuple[int, int]]) -> Fd:
        # A new thread is where its creator is, which may be inside something that has nothing to do with this one.
        for previous, flag in outside:
            calls.setns(previous, flag, "the namespace outside")
        if self.kind == "mnt":
            calls.unshare(calls.CLONE_FS, "file-system context of the thread")
        home = enter.open_own(self.kind)
        enter.move(fd, self.kind, self.label)
        return home

    def _serve(self, unclean: Callable[[_Worker], None]) -> None:
        while (job := self.inbox.get()) is not None:
            self.current = job
            outcome = (False, None) if job.deserted else job.perform()
            if enter.is_inside():
                # It left this thread somewhere else, where nobody must run: the next job gets another one.
                unclean(self)
            self.current = None
            job.outcome.put(outcome)
            del job, outcome

    def _go_home(self, home: Fd) -> None:
        # The kernel would let go of the namespace as well, but only when the thread is gone, some time after this.
        with suppress(OSError):  # a job has given the privilege up
            calls.setns(home.fileno(), calls.NAMESPACE_FLAGS[self.kind], "the namespace outside")
        home.close()


# Of this process, by the numbers that enter.py goes by too; each strikes itself off.
_workers: Final[dict[int, _Worker]] = {}


class Resident:
    """The resident thread of one handle, started when it is first needed."""

    def __init__(self, kind: str, label: str) -> None:
        self._kind = kind
        self._label = label
        self._home = os.getpid()
        self._lock = Lock()
        self._worker: _Worker | None = None
        self._closed = False

    @property
    def is_ours(self) -> bool:
        """Whether this process has the thread; a fork has not."""
        return self._home == os.getpid()

    def run(self, fd: int, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function on the thread and return what it returns, or raise what it raises."""
        caller = _workers.get(calls.thread_number())
        if caller is not None and caller is self._worker:
            return function(*args, **kwargs)
        job = _Job(partial(function, *args, **kwargs))
        try:
            with self._lock:
                worker = self._ready(fd)
                _check_circle(caller, worker)
                worker.inbox.put(job)
            returned, result = job.outcome.get()
        except BaseException:
            job.deserted = True
            raise
        finally:
            if caller is not None:
                caller.waiting_for = None
        if returned:
            value: R = result
            return value
        try:
            raise result
        finally:
            del result  # whose traceback holds this frame

    def _ready(self, fd: int) -> _Worker:
        if self._closed:
            raise ClosedError(f"{self._label} was closed")
        if self._worker is None:
            worker = _Worker(self._kind, self._label)
            try:
                worker.start(fd, self._replace)
                self._worker = worker
            except BaseException:
                worker.inbox.put(None)
                self._worker = None
                raise
        return self._worker

    def _replace(self, worker: _Worker) -> None:
        """End a worker that a job has left in another place than it found it in."""
        with self._lock:
            if self._worker is worker:
                self._worker = None
        while not worker.inbox.empty():
            job = worker.inbox.get()
            if job is not None:
                error = IsolibError(f"a job before this one did not come back to {self._label}; run() again starts anew")
                job.outcome.put((False, error))
        worker.inbox.put(None)

    def close(self) -> None:
        """End the thread, when it has done what it was given before; again is nothing.

        It is waited for, unless it still does what somebody has been interrupted waiting for: that may take any time.
        """
        with self._lock:
            self._closed = True
            worker = self._worker
        if worker is None:
            return
        worker.inbox.put(None)
        current = worker.current
        if worker.number != calls.thread_number() and not (current is not None and current.deserted):
            worker.join()


def _check_circle(caller: _Worker | None, target: _Worker) -> None:
    """Raise when the caller's thread and the target would wait for each other for ever."""
    if caller is None:
        return
    # Noted first, so that of two who close a circle at the same time at least one sees it.
    caller.waiting_for = target
    other: _Worker | None = target
    while other is not None:
        if other is caller:
            raise IsolibError(f"run() in {target.label} would wait for itself: it waits for {caller.label}, which calls it")
        other = other.waiting_for
