"""What is done with bytes behind whoever makes them: digests and compression take a processor each."""

from __future__ import annotations

from _queue import SimpleQueue  # not queue.SimpleQueue, which gevent replaces
from functools import partial
from typing import TYPE_CHECKING, Final

from isolib._kernel.threads import OwnThread
from isolib.errors import SyscallError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from isolib.unionfs.archive.streams import Writable

__all__ = ["Behind"]

#: How many pieces may wait: of 1 MiB each, that is what it takes of memory.
_WAITING: Final = 8
#: Less is done at once, for a thread costs as much.
_LITTLE: Final = 1 << 17


class Behind:
    """Does things in their order, in a thread of its own, which begins with the first that is worth it.

    At the end of the block all is done, or an error is raised; where the block itself raises one, the rest is left.

    Examples
    --------
    >>> done = []
    >>> with Behind() as behind:
    ...     behind.do(done.append, bytes(1 << 20))
    >>> len(done)
    1
    """

    def __init__(self) -> None:
        self._todo: SimpleQueue[tuple[Callable[[bytes], object], bytes] | None] = SimpleQueue()
        self._free: SimpleQueue[None] = SimpleQueue()
        self._ended: SimpleQueue[None] = SimpleQueue()
        self._failure: BaseException | None = None
        self._thread: OwnThread | None = None
        self._can_start = True

    def do(self, function: Callable[[bytes], object], data: bytes) -> None:
        """Have a function called with bytes; waits while too many are to come before.

        Raises
        ------
        BaseException
            What one of those before has raised.
        """
        if self._thread is None and (len(data) < _LITTLE or not self._started()):
            function(data)
            return
        self._check()
        self._free.get()
        self._todo.put((function, data))

    def sink(self, sink: Writable) -> Writable:
        """Return what passes everything on to a sink, behind."""
        return _Sink(partial(self.do, sink.write))

    def _started(self) -> bool:
        if not self._can_start:
            return False
        thread = OwnThread("isolib-behind", "a thread for digests")
        for _ in range(_WAITING):
            self._free.put(None)
        try:
            thread.start(self._work)
        except SyscallError:  # there can be no more threads: it takes longer
            self._can_start = False
            return False
        self._thread = thread
        return True

    def _work(self) -> None:
        while (one := self._todo.get()) is not None:
            function, data = one
            try:
                if self._failure is None:
                    function(data)
            except BaseException as error:  # noqa: BLE001 - raised where it is waited for
                self._failure = error
            # What a piece has of memory goes before the next one comes.
            del one, function, data
            self._free.put(None)
        self._ended.put(None)
        self._ended.put(None)  # whoever was interrupted waits again, and does not know whether he had the first

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._thread is None:
            return
        if error is not None:
            self._failure = self._failure or error
        self._todo.put(None)
        try:
            self._ended.get()
        except BaseException as interrupt:
            # What it writes to is gone when this returns.
            self._failure = self._failure or interrupt
            self._ended.get()
            raise
        self._thread.join()
        if error is None:
            self._check()


class _Sink:
    """What bytes go to."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write

    def write(self, data: bytes, /) -> None:
        self._write(data)
