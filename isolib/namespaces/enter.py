"""Entering a namespace with the calling thread, and getting back.

Linux keeps namespaces with threads, not with processes. What is done here concerns the calling thread alone, and is read
from /proc/thread-self: /proc/self is the main thread, and restoring a worker thread from it moves the worker to another
network.

Every stay inside is recorded on a stack of the thread's own, together with a descriptor of the namespace that the thread
came from. The ways in which a stay can end badly:

- *The thread cannot go back* (it gave its privileges up inside): `ThreadStranded`, and so is every later use.
- *Another thread leaves*, because a generator or a coroutine crossed threads in the midst of a `with`. Nobody but the
  thread itself can bring it back: `ThreadStranded` is raised where the block ended. The thread that is left behind returns
  when it next enters or leaves a namespace by isolib.
- *Out of order*, because two generators or tasks of one thread have overlapping blocks: `IsolibError`. The thread goes back
  to where it was before the block that ended, and the block that was overtaken raises too, when it ends: its last part
  ran outside.
- *Another task enters* while a coroutine awaits inside its block: `IsolibError`, before anything happens. It is noticed by
  the context (contextvars), when it uses isolib; what else it does in the wrong namespace cannot be noticed.

Between two byte codes Python may raise KeyboardInterrupt. The thread returns all the same, with one exception that Python
gives nobody a hold on: at the very entry into `__exit__`. Then it returns when the object of the `with` is gone.
"""

from __future__ import annotations

import os
import sys
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from isolib._kernel import assembly, calls
from isolib._kernel.handle import Fd
from isolib.errors import IsolibError, PermissionDenied, SyscallError, ThreadStranded, from_errno

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["Stays", "check_usable", "is_inside", "move", "open_own", "outside", "strand"]

_HINT: Final = (
    "entering takes CAP_SYS_ADMIN over the namespace, and coming back over the one that the thread is in: spawn() starts a "
    "program inside, run() may do without the way back, and all works when this program was started in namespaces of its own "
    "(unshare --map-root-user --net --uts --ipc --cgroup)"
)

_COROUTINE: Final = 0x80 | 0x100 | 0x200  # inspect.CO_COROUTINE, CO_ITERABLE_COROUTINE, CO_ASYNC_GENERATOR


class _Thread:
    """What isolib has done to one native thread; greenlets share it."""

    __slots__ = ("abandoned", "number", "stack", "stranded", "tid")

    def __init__(self, number: int) -> None:
        self.number = number
        self.tid = threading.get_native_id()
        self.stack: list[_Stay] = []
        self.stranded = ""
        self.abandoned = False


class _Stay:
    """One stay of one thread in one namespace."""

    __slots__ = ("asynchronous", "label", "left", "native", "outer", "overtaken_by", "thread")

    def __init__(self, thread: _Thread, kind: str, label: str) -> None:
        self.thread = thread
        self.label = label
        self.native = calls.new_stay(kind)
        self.asynchronous = _in_coroutine()
        self.left = False  # by its own block, or for it; whether the thread has returned says the stack
        self.overtaken_by = ""
        self.outer = _innermost.get()


# By numbers that the extension gives: what `threading` says may have been replaced by gevent's, for which a thread is a
# greenlet, and the numbers of dead threads are given again.
_threads: Final[dict[int, _Thread]] = {}

# The innermost stay that the running code can know of.
_innermost: Final[ContextVar[_Stay | None]] = ContextVar("isolib.namespaces.innermost", default=None)


def _in_coroutine() -> bool:
    frame: FrameType | None = sys._getframe(2)  # noqa: SLF001 -- inspect, which has it too, is dear to import
    while frame is not None:
        if frame.f_code.co_flags & _COROUTINE:
            return True
        frame = frame.f_back
    return False


def _this_thread() -> _Thread:
    number = calls.thread_number()
    thread = _threads.get(number)
    if thread is None:
        if _threads:
            _forget_the_dead()
        thread = _threads.setdefault(number, _Thread(number))
    if thread.stranded:
        raise ThreadStranded(thread.stranded)
    return thread


def _forget(thread: _Thread) -> None:
    if not thread.stack and not thread.stranded:
        _threads.pop(thread.number, None)


def _forget_the_dead() -> None:
    """Forget threads that ended inside; their descriptors keep the namespaces alive that they came from."""
    for thread in list(_threads.values()):
        if (thread.abandoned or thread.stranded) and not os.path.exists(f"/proc/self/task/{thread.tid}"):
            _threads.pop(thread.number, None)


def check_usable() -> None:
    """Raise `ThreadStranded` when the calling thread could not be brought back earlier."""
    thread = _threads.get(calls.thread_number())
    if thread is not None and thread.stranded:
        raise ThreadStranded(thread.stranded)


def strand(reason: str) -> None:
    """Declare the calling thread stranded."""
    _this_thread().stranded = reason


def is_inside() -> bool:
    """Return whether the calling thread is somewhere by isolib, or stranded."""
    thread = _threads.get(calls.thread_number())
    return thread is not None and bool(thread.stack or thread.stranded)


def outside() -> list[tuple[int, int]]:
    """Return where the calling thread was before it entered anything: descriptor and flag for each kind that it is inside of.

    The descriptors stay the thread's own, and are there until it returns.
    """
    thread = _threads.get(calls.thread_number())
    first: dict[int, int] = {}
    for stay in thread.stack if thread else ():
        first.setdefault(stay.native.kind, stay.native.before)
    return [(fd, flag) for flag, fd in first.items()]


assembly.register_astray(outside)


def open_own(kind: str) -> Fd:
    """Open the calling thread's own namespace of a kind."""
    path = f"/proc/thread-self/ns/{kind}"
    try:
        fd = Fd.take(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise from_errno("open", path, error.errno or 0) from None
    assert fd is not None  # noqa: S101 -- os.open raises
    return fd


def move(fd: int, kind: str, label: str) -> None:
    """Move the calling thread into a namespace and keep no record of it.

    Raises
    ------
    SyscallError
        The kernel refused; `PermissionDenied` says what to do instead.
    """
    try:
        calls.setns(fd, calls.NAMESPACE_FLAGS[kind], label)
    except PermissionDenied as error:
        raise PermissionDenied(error.op, label, error.errno, _HINT) from None


class Stays:
    """The stays of one `with` object: it may be entered again while it is inside, and by several threads.

    The object holds nothing but these; when it goes and one of them has not ended, the thread returns then.
    """

    __slots__ = ("_stays",)

    def __init__(self) -> None:
        self._stays: list[_Stay] = []

    def __bool__(self) -> bool:
        """Whether a thread is inside."""
        return any(not stay.left for stay in self._stays)

    def enter(self, fd: int, kind: str, label: str) -> None:
        """Move the calling thread into a namespace; it is in it, or nothing has changed.

        Raises
        ------
        IsolibError
            Another task of this thread awaits inside a block of its own.
        SyscallError
            The kernel refused.
        ThreadStranded
            The thread could not be brought back from an earlier stay.
        """
        thread = _this_thread()
        try:
            if thread.stack:
                _return_abandoned(thread)
                _check_task(thread, label)
            stay = _Stay(thread, kind, label)
            try:
                thread.stack.append(stay)
                self._stays.append(stay)
                calls.begin_stay(stay.native, fd, kind, label)
                _innermost.set(stay)
            except BaseException as error:
                self._end(stay)
                if isinstance(error, PermissionDenied):
                    raise PermissionDenied(error.op, label, error.errno, _HINT) from None
                raise
        finally:
            if not thread.stack:
                _forget(thread)

    def leave(self, error: BaseException | None = None) -> None:
        """Bring the calling thread back to where it was before its last `enter`.

        Parameters
        ----------
        error
            What ended the block. A KeyboardInterrupt goes on with a note where the block was left out of order, for it may
            have come at the very entry into the `__exit__` of an inner block, and be the reason.

        Raises
        ------
        IsolibError
            Out of order; the thread is where it was before that `enter`.
        ThreadStranded
            The thread could not go back, or it is another thread that entered.
        """
        stay = self._last()
        try:
            _leave(stay)
        except _OutOfOrder as problem:
            if not isinstance(error, KeyboardInterrupt):
                raise IsolibError(str(problem)) from None
            error.add_note(str(problem))
        finally:
            self._end(stay)

    def _last(self) -> _Stay:
        """Return this thread's last stay, or when it has none, the last one of all."""
        if len(self._stays) == 1 and not self._stays[0].left:
            return self._stays[0]
        number = calls.thread_number()
        last = None
        for stay in self._stays:
            if not stay.left and (last is None or stay.thread.number == number or last.thread.number != number):
                last = stay
        if last is None:
            raise IsolibError("this block was left already")
        return last

    def _end(self, stay: _Stay) -> None:
        thread = stay.thread
        if stay in thread.stack and not (stay.left or thread.stranded) and calls.thread_number() == thread.number:
            # Interrupted by the exception of a signal handler: what it interrupted is done first.
            _unwind(stay)
        stay.left = True
        if stay in self._stays:
            self._stays.remove(stay)

    def __del__(self) -> None:
        if sys.is_finalizing():
            return
        for stay in reversed(getattr(self, "_stays", ())):
            if not stay.left:
                try:
                    _leave(stay)
                except IsolibError:
                    # Where nobody could catch it. It is noted with the thread, and raised at its next use.
                    stay.left = True


class _OutOfOrder(IsolibError):
    """A block has ended before one that began later."""


def _check_task(thread: _Thread, label: str) -> None:
    if thread.stack and thread.stack[-1].asynchronous and _innermost.get() is not thread.stack[-1]:
        raise IsolibError(
            f"{label} was not entered: this thread is inside {thread.stack[-1].label}, where another task awaits in its "
            "`with` block; use run() or spawn(), which concern no other task, or do not await inside the block"
        )


def _leave(stay: _Stay) -> None:
    thread = stay.thread
    if calls.thread_number() != thread.number:
        _abandon(stay)
    if thread.stranded:
        raise ThreadStranded(thread.stranded)
    if stay.overtaken_by:
        raise _OutOfOrder(
            f"the thread left {stay.label} before this block ended, when an earlier block in {stay.overtaken_by} ended: "
            "the rest of this block ran outside"
        )
    if thread.stack[-1:] == [stay] or stay not in thread.stack:  # the latter when it was interrupted after its return
        _unwind(stay)
        return
    late = [each for each in thread.stack[thread.stack.index(stay) + 1 :] if not each.left]
    for each in late:
        each.overtaken_by = stay.label
    _unwind(stay)
    if late:
        raise _OutOfOrder(
            f"{stay.label} was left out of order, before {', '.join(each.label for each in reversed(late))}: the thread has "
            f"left these too, and is where it was before it entered {stay.label}"
        )


def _abandon(stay: _Stay) -> None:
    """Note that a block ended in another thread than the one that is inside, and raise."""
    thread = stay.thread
    stay.left = True
    thread.abandoned = True
    _forget_the_dead()
    raise ThreadStranded(
        f"thread {thread.tid} entered {stay.label}, and thread {threading.get_native_id()} left it (a generator or coroutine "
        "changed threads inside the block): the first one stays inside until it next enters or leaves a namespace by isolib"
    )


def _unwind(stay: _Stay) -> None:
    """Bring the thread back to where it was before a stay, and out of those beneath that were abandoned; may be repeated."""
    thread = stay.thread
    while stay in thread.stack:
        _return(thread)
    _return_abandoned(thread)
    if _innermost.get() is stay:
        # Not by a token: that is bound to one context, and a block may end in a copy of it.
        _innermost.set(stay.outer)
    _forget(thread)


def _return_abandoned(thread: _Thread) -> None:
    while thread.stack and thread.stack[-1].left:
        _return(thread)


def _return(thread: _Thread) -> None:
    stay = thread.stack[-1]
    try:
        calls.end_stay(stay.native, f"the namespace that the thread came from into {stay.label}")
    except SyscallError as error:
        thread.stranded = f"this thread is still in {stay.label}, and must not run anything else: {error}"
        thread.stack.clear()  # nobody will go back this way, and its descriptors keep namespaces alive
        raise ThreadStranded(thread.stranded) from error
    del thread.stack[-1]
