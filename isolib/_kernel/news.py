"""News: what happens somewhere, given to whoever waits for it, in threads, under asyncio and under trio, until it is closed."""

from __future__ import annotations

import os
import select
from abc import ABC, abstractmethod
from collections import deque
from contextlib import suppress
from threading import RLock
from typing import TYPE_CHECKING, ClassVar, Generic, Protocol, TypeVar

from isolib._kernel.handle import Epoll, Fd, home
from isolib._kernel.hints import typed
from isolib._kernel.waiting import Alarm, Deadline, poll, readable
from isolib.errors import ClosedError, IsolibError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import timedelta
    from types import TracebackType
    from typing import Self

__all__ = ["News"]


class _Closable(Protocol):
    def close(self) -> object: ...


T = TypeVar("T")
OwnedT = TypeVar("OwnedT", bound=_Closable)


class News(ABC, Generic[T]):
    """What happens from now on: an iterator, for `for` and for `async for` (asyncio and trio).

    It ends when `close` was called, by whichever thread, and when nothing more can happen.  `fileno` is readable when there is
    something, for other event loops.  Several threads may take from it; each thing is given once.

    A subclass hands what it needs to `_own`, has `_epoll` watch that, and looks in `_look` what has happened.
    """

    #: What this is, for messages.
    _what: ClassVar[str]

    def __init__(self) -> None:
        self._lock = RLock()  # of what follows; nobody waits while he holds it, but a signal handler may close us there
        self._found: deque[T] = deque()
        self._over: IsolibError | None = None
        self._waiting: set[object] = set()
        self._closed = False
        self._is_marked = False
        self._home = home()
        self._owned: list[_Closable] = []
        try:
            self._epoll = self._own(Epoll())
            self._alarm = self._own(Alarm())
            mark = Fd.take(os.eventfd, 0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            assert mark is not None  # noqa: S101 - os.eventfd raises
            self._mark = self._own(mark)
            for fd in (self._alarm, self._mark):
                self._epoll.register(fd.fileno(), select.EPOLLIN)
        except BaseException:
            self._release()
            raise

    def _own(self, one: OwnedT) -> OwnedT:
        """Close something with this, in the order in which it was handed over."""
        self._owned.append(one)
        return one

    @abstractmethod
    def _look(self) -> None:
        """Look what has happened, without waiting, and `_tell` it; for subclasses."""

    def _tell(self, things: Iterable[T]) -> None:
        """Have things given to those who wait."""
        self._found.extend(things)

    def _end(self, error: IsolibError) -> None:
        """Have an exception raised when all was given, for nothing more can happen."""
        self._over = error
        self._alarm.ring()  # the others that wait

    # ---- taking ----

    def wait(self, timeout: float | timedelta | None = None) -> T | None:
        """Wait for what happens next.

        Parameters
        ----------
        timeout
            Seconds or a timedelta; None: no limit.

        Returns
        -------
        object or None
            None: nothing happened in time.

        Raises
        ------
        GoneError
            What was watched is gone; what happened before is given first.
        ClosedError
            This was closed, perhaps meanwhile.
        """
        return self.wait_until(Deadline(timeout))

    def wait_until(self, deadline: Deadline) -> T | None:
        """As `wait`."""
        self._check_home()
        waiter = object()
        try:
            self._enter(waiter)
            while (found := self._take()) is None:
                if not poll(self._epoll, deadline.milliseconds()) and deadline.is_over:
                    return None
            return found
        finally:
            try:
                self._leave(waiter)
            except BaseException:  # from a signal handler, and nobody else would do it
                self._leave(waiter)
                raise

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        try:
            found = self.wait()
        except IsolibError as error:
            if self._is_end(error):
                raise StopIteration from None
            raise
        assert found is not None  # noqa: S101 - there was no deadline
        return found

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        try:
            return await self._wait_async()
        except IsolibError as error:
            if self._is_end(error):
                raise StopAsyncIteration from None
            raise

    async def _wait_async(self) -> T:
        self._check_home()
        waiter = object()
        try:
            self._enter(waiter)
            while (found := self._take()) is None:
                # Of each waiter's own: an event loop knows one waiter for a descriptor.
                with typed(self._what):
                    own = Fd.take(os.dup, self._epoll.fileno())
                assert own is not None  # noqa: S101 - os.dup raises
                with own:
                    await readable(own.fileno())
            return found
        finally:
            try:
                self._leave(waiter)
            except BaseException:  # from a signal handler, and nobody else would do it
                self._leave(waiter)
                raise

    def _is_end(self, error: IsolibError) -> bool:
        return error is self._over or isinstance(error, ClosedError)

    def _take(self) -> T | None:
        """Return what is there; None: wait."""
        with self._lock:
            self._check_open()
            if not self._found and self._over is None:
                self._look()
                self._check_open()  # a signal handler may have closed us
            found = self._found.popleft() if self._found else None
            if bool(self._found) != self._is_marked:  # for the others who wait, and for who waits for `fileno`
                self._turn_mark()
        if found is None and self._over is not None:
            raise self._over
        return found

    def _turn_mark(self) -> None:
        # Interrupted on the way, it is called again with as much to do.
        if self._is_marked:
            with suppress(BlockingIOError):
                os.eventfd_read(self._mark.fileno())
            self._is_marked = False
        else:
            self._is_marked = True
            os.eventfd_write(self._mark.fileno(), 1)

    def fileno(self) -> int:
        """Return a descriptor that is readable when there is something to `wait` for.

        Raises
        ------
        ClosedError
            This was closed.
        """
        self._check_open()
        return self._epoll.fileno()

    # ---- the end ----

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"{self!r} cannot be used any more")

    def _check_home(self) -> None:
        if self._home != home():
            raise ClosedError(f"{self!r} belongs to another process: this one is a fork of it")

    def _enter(self, waiter: object) -> None:
        with self._lock:
            self._check_open()
            self._waiting.add(waiter)

    def _leave(self, waiter: object) -> None:
        with self._lock:
            self._waiting.discard(waiter)
            if self._closed and not self._waiting:
                self._release()

    def close(self) -> None:
        """Stop watching, and end the waiting of others; again is nothing."""
        if self._home != home():  # nobody else uses it here, and nobody may be left to release the lock
            self._release()
            return
        with self._lock:
            self._closed = True
            self._alarm.ring()
            if not self._waiting:  # else the last of those does it: a descriptor that is waited for must not change its meaning
                self._release()

    def _release(self) -> None:
        self._closed = True
        for one in self._owned:
            one.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
