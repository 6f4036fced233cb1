"""The one thread that serves sockets: names are answered and connections forwarded on it.

It is started when there is something to serve, and ends when there is nothing any more. It waits in epoll_wait(2) alone, so
what it serves is *never* to block it: every socket is non-blocking, and what must be waited for is watched.

What belongs together, a `Served`, has one lock. The thread holds it while it calls, and others while they begin and stop, so
what `stop` has returned from is never called again. No other lock is held meanwhile, so no two threads wait for each other. The
locks and threads are the interpreter's own, not those that gevent puts in their place: native threads meet here.

Forks. The epoll instance is shared with the parent, so a child must not change it; and while a child has a copy of a socket,
its port is taken and its peer hears of no end. So the child's copies are closed as soon as it is there.
"""

from __future__ import annotations

import os
import resource
import select
import stat
import time
from _socket import socket as Socket  # noqa: N812 - not socket.socket, which gevent replaces
from _thread import RLock  # reentrant: a finalizer, which may run anywhere, stops what it owns
from collections import deque
from errno import ENOTSOCK
from functools import partial
from heapq import heapify, heappop, heappush
from itertools import count
from traceback import format_tb
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib._kernel.handle import Epoll, Fd, home
from isolib._kernel.hints import typed
from isolib._kernel.threads import OwnThread
from isolib.errors import ClosedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from isolib.types import HasFileno

    Ready: TypeAlias = Callable[[int], None]

__all__ = ["IN", "OUT", "Served", "Socket", "Timer", "copy_socket", "disown", "take_socket"]

IN: Final = select.EPOLLIN
OUT: Final = select.EPOLLOUT

#: Bytes that are taken from a socket at a time. Of a stream, as much is kept for who does not read: little beside what the
#: kernel keeps. A quarter of it costs a fifth of the throughput, and two fifths beside a thread that computes. splice(2) is no
#: faster for the same size, and takes a pipe for each direction.
_CHUNK: Final = 1 << 18
#: From how many timers on those that were cancelled are cleared away.
_TIMERS: Final = 256

#: In C throughout, so that nothing comes between a descriptor and its owner.
_socket_of: Final = partial(Socket, -1, -1, -1)


def copy_socket(owner: HasFileno) -> Socket:
    """Return a socket that is a copy of somebody's.

    Raises
    ------
    OSError
        It is no socket, or there are no descriptors left.
    """
    number = owner.fileno()
    if not stat.S_ISSOCK(os.fstat(number).st_mode):
        raise OSError(ENOTSOCK, os.strerror(ENOTSOCK))
    return next(map(_socket_of, map(os.dup, (number,))))


def disown(owner: HasFileno) -> None:
    """Close what has been copied."""
    close = getattr(owner, "close", None)
    if close is not None:
        close()


def take_socket(owner: HasFileno) -> Socket:
    """Return a socket in the place of somebody's, which is closed in any case."""
    try:
        return copy_socket(owner)
    finally:
        disown(owner)


class Timer:
    """A call to come, unless `cancel` forestalls it."""

    __slots__ = ("_call", "_served")

    def __init__(self, served: Served, call: Callable[[], None]) -> None:
        self._served = served
        self._call: Callable[[], None] | None = call
        served.timers.add(self)

    @property
    def is_cancelled(self) -> bool:
        """Whether there is nothing to call any more."""
        return self._call is None

    def cancel(self) -> None:
        """Do not call; again is nothing."""
        self._call = None
        self._served.timers.discard(self)

    def ring(self) -> None:
        """Call, on the thread."""
        with self._served.lock:
            call = self._call
            self.cancel()
            if call is not None:
                try:
                    call()
                except BaseException as error:  # noqa: BLE001 - kept for whoever asks; the thread serves others too
                    self._served.blame(error)


class Served:
    """What is served as one: sockets, which it owns, and timers.

    Its methods are for who holds `lock`: the thread, when it calls. `start` and `stop` are for everybody else.

    Attributes
    ----------
    lock
        Held whenever it is called.
    """

    def __init__(self) -> None:
        self.lock = RLock()
        self._error: BaseException | None = None
        self.timers: set[Timer] = set()
        self.sockets: dict[int, Socket] = {}
        self._home = home()
        self.loop: _Loop | None = None
        self.is_stopped = False

    @property
    def error(self) -> BaseException | None:
        """What went wrong last, and nobody could be told of; without frames, which would keep what they saw."""
        return self._error

    @error.setter
    def error(self, error: BaseException) -> None:
        each: BaseException | None = error
        while each is not None:
            each.__traceback__ = None
            each = each.__cause__ or each.__context__
        self._error = error

    def blame(self, error: BaseException) -> None:
        """Keep an exception that was not to be expected, and where it came from."""
        error.add_note(f"on the thread that serves:\n{''.join(format_tb(error.__traceback__))}".rstrip())
        self.error = error

    def start(self) -> None:
        """Be served from now on: `begin` is called, and whatever it watches is.

        Raises
        ------
        SyscallError
            There can be no more threads or descriptors, or the thread cannot get back from the namespace of this one.
        """
        with typed("what serves sockets"):
            _enlist(self)
            with self.lock:
                self.begin()

    def stop(self) -> None:
        """Be served no longer; all sockets are closed when this returns. Again is nothing."""
        if self._home != home():
            self.abandon()
            return
        with self.lock:
            self.is_stopped = True
            self.end()
            for timer in self.timers.copy():
                timer.cancel()
            for sock in [*self.sockets.values()]:
                self.drop(sock)
        loop = self.loop
        if loop is not None:
            loop.discharge(self)
            self.loop = None

    def begin(self) -> None:
        """Watch what is there; for subclasses."""

    def end(self) -> None:
        """Do what must be done before the sockets are closed; for subclasses, and it must bear being done twice."""

    def abandon(self) -> None:
        """In a fork of the process, close its copies of the sockets and nothing else."""
        for sock in [*self.sockets.values()]:
            sock.close()

    # ---- for the thread ----

    @property
    def is_crowded(self) -> bool:
        """Whether who connects, and may be anybody, would take the descriptors that the rest of the program needs."""
        return self.loop is not None and self.loop.is_crowded

    @property
    def scratch(self) -> memoryview:
        """Memory to receive into, which is worth nothing when the call has returned."""
        assert self.loop is not None  # noqa: S101 - it is called by the loop
        return self.loop.scratch

    def own(self, sock: Socket) -> Socket:
        """Own a socket, which does not block from now on, and is closed by `drop` or with all.

        Raises
        ------
        ClosedError
            This was stopped: by a finalizer, which came in the midst of a call.
        """
        if self.is_stopped:
            sock.close()
            raise ClosedError("it is served no longer")
        sock.setblocking(False)  # noqa: FBT003 - its only argument
        self.sockets[sock.fileno()] = sock
        return sock

    def watch(self, sock: Socket, mask: int, ready: Ready) -> None:
        """Call a function with the events of a socket (epoll_ctl(2)) whenever it is ready; what was said before is replaced.

        With no event asked for, it is still told of the end of both directions and of errors, again and again: `mute` it then.
        """
        if self.loop is not None:
            self.loop.watch(self, sock.fileno(), mask, ready)

    def mute(self, sock: Socket) -> None:
        """Watch a socket no longer."""
        if self.loop is not None:
            self.loop.forget(sock.fileno())

    def drop(self, sock: Socket) -> None:
        """Close a socket; again is nothing."""
        number = sock.fileno()
        if self.sockets.get(number) is sock:
            self.mute(sock)  # first: where a fork has a copy, closing it alone would leave it in the epoll instance for good
            del self.sockets[number]
        sock.close()

    def after(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Call a function in so many seconds."""
        timer = Timer(self, call)
        if self.loop is not None:
            self.loop.add_timer(time.monotonic() + seconds, timer)
        return timer


class _Loop:
    """The thread, and what it waits for.

    Its descriptors are closed when nobody has this object any more: whoever has it may wake the thread, also when it has ended.
    """

    def __init__(self) -> None:
        self.scratch = memoryview(bytearray(_CHUNK))
        self.served: set[Served] = set()
        self._entries: dict[int, tuple[Served, int, Ready]] = {}
        self._new_timers: deque[tuple[float, int, Timer]] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._clean_at = _TIMERS
        self._order = count()
        self._epoll = Epoll()
        bell = Fd.take(os.eventfd, 0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        assert bell is not None  # noqa: S101 - os.eventfd raises
        self._bell = bell
        self._epoll.register(bell.fileno(), IN)
        self._number = 0

    # ---- for everybody ----

    def start(self) -> None:
        """Start the thread."""
        OwnThread("isolib serving", "the thread that serves sockets").start_outside(self._live)

    def discharge(self, served: Served) -> None:
        """Serve something no longer; no lock is taken, for a finalizer may call this anywhere."""
        self.served.discard(served)
        if not self.served:
            self.wake()

    def wake(self) -> None:
        """Let the thread look at what has changed."""
        os.eventfd_write(self._bell.fileno(), 1)

    def watch(self, served: Served, number: int, mask: int, ready: Ready) -> None:
        """Call for the events of a descriptor."""
        before = self._entries.get(number)
        self._entries[number] = (served, mask, ready)
        if before is None:
            self._epoll.register(number, mask)
        elif before[1] != mask:
            self._epoll.modify(number, mask)

    def forget(self, number: int) -> None:
        """Do not call any more."""
        if self._entries.pop(number, None) is not None:
            self._epoll.unregister(number)

    def add_timer(self, when: float, timer: Timer) -> None:
        """Ring a timer."""
        self._new_timers.append((when, next(self._order), timer))
        if calls.thread_number() != self._number:
            self.wake()

    @property
    def is_crowded(self) -> bool:
        """Whether a quarter of all descriptors serves, and of all others too few are left."""
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if most == resource.RLIM_INFINITY or sum(len(one.sockets) for one in self.served.copy()) < most // 4:
            return False
        try:
            lowest = Fd.take(os.dup, self._bell.fileno())
        except OSError:
            return True
        assert lowest is not None  # noqa: S101 - os.dup raises
        with lowest:
            return lowest.fileno() >= most - most // 4

    def abandon(self) -> None:
        """In a fork of the process, close the copies of everything."""
        for served in self.served.copy():
            served.abandon()
        self._epoll.close()
        self._bell.close()

    # ---- the thread ----

    def _live(self) -> None:
        self._number = calls.thread_number()
        while not _is_over(self):
            self._turn()
        self._timers.clear()

    def _turn(self) -> None:
        for number, mask in self._epoll.poll(self._patience()):
            entry = self._entries.get(number)
            if entry is not None:
                self._tell(number, entry, mask)
            elif number == self._bell.fileno():
                os.eventfd_read(number)
        while self._timers and self._timers[0][0] <= time.monotonic():
            heappop(self._timers)[2].ring()

    def _tell(self, number: int, entry: tuple[Served, int, Ready], mask: int) -> None:
        served, _, ready = entry
        with served.lock:
            if self._entries.get(number) is not entry:  # it was stopped while we waited for the lock
                return
            try:
                ready(mask)
            except BaseException as error:  # noqa: BLE001 - kept for whoever asks; the thread serves others too
                served.blame(error)
                self.forget(number)  # or it would come again at once

    def _patience(self) -> float | None:
        """Return the seconds until the next timer, None: for ever."""
        while self._new_timers:
            heappush(self._timers, self._new_timers.popleft())
        if len(self._timers) > self._clean_at:
            self._timers = [each for each in self._timers if not each[2].is_cancelled]
            heapify(self._timers)
            self._clean_at = max(_TIMERS, 2 * len(self._timers))
        while self._timers and self._timers[0][2].is_cancelled:
            heappop(self._timers)
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None


class _State:
    """Of this process: the loop that serves, if any."""

    def __init__(self) -> None:
        self.home = home()
        self.lock = RLock()
        self.loop: _Loop | None = None


_state = _State()


def _own() -> _State:
    global _state  # noqa: PLW0603 - one thread in a process
    if _state.home != home():  # after a fork in C code, which ran no hook
        _state = _State()
    return _state


def _enlist(served: Served) -> None:
    """Let something be served by the thread, which is started if need be."""
    state = _own()
    with state.lock:
        if state.loop is not None:
            served.loop = state.loop
            state.loop.served.add(served)
            return
        # Before there is a thread, for it ends when there is nothing; and wherever an interrupt comes, stop() will find it.
        served.loop = loop = _Loop()
        loop.served.add(served)
        loop.start()
        state.loop = loop


def _is_over(loop: _Loop) -> bool:
    """Return whether the thread has nothing to do any more, and forget it then."""
    if loop.served:
        return False
    state = _own()
    with state.lock:
        if loop.served:  # somebody came meanwhile
            return False
        if state.loop is loop:
            state.loop = None
        return True


def _in_child() -> None:
    global _state
    before, _state = _state, _State()
    if before.loop is not None:
        before.loop.abandon()


os.register_at_fork(after_in_child=_in_child)
