"""News: what is common to all who tell of something; told here by an eventfd."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

import pytest

from isolib._kernel import news as module
from isolib._kernel.handle import Fd
from isolib._kernel.news import News
from isolib.errors import ClosedError, GoneError, SyscallError
from tests.interrupts import interrupt

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType

PATIENCE = 30.0


class Ticks(News[int]):
    """Tells 1, 2, 3 ... as often as somebody has said so."""

    _what = "ticks"

    def __init__(self) -> None:
        super().__init__()
        fd = Fd.take(os.eventfd, 0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        assert fd is not None
        self._fd = self._own(fd)
        self._epoll.register(fd.fileno(), select.EPOLLIN)
        self._last = 0
        self.fails: SyscallError | None = None

    def tick(self, times: int) -> None:
        """Have it tell that many more."""
        os.eventfd_write(self._fd.fileno(), times)

    def _look(self) -> None:
        try:
            times = os.eventfd_read(self._fd.fileno())
        except BlockingIOError:
            return
        if isinstance(self.fails, GoneError):
            self._end(self.fails)
        elif self.fails is not None:
            raise self.fails
        self._tell(range(self._last + 1, self._last + times + 1))
        self._last += times


def is_readable(ticks: Ticks) -> bool:
    """Return whether an event loop would be told."""
    poll = select.poll()
    poll.register(ticks, select.POLLIN)
    return poll.poll(0) != []


def descriptors() -> set[str]:
    """Return the open descriptors."""
    return set(os.listdir("/proc/self/fd"))


def test_readable_as_long_as_there_is_something() -> None:
    """What was found together with something else is waited for as that: until all of it was taken, and not any longer."""
    with Ticks() as ticks:
        assert not is_readable(ticks)
        assert ticks.wait(0) is None
        for turn in range(2):
            ticks.tick(3)
            for number in range(3):
                assert is_readable(ticks)
                assert ticks.wait(0) == 3 * turn + number + 1
            assert not is_readable(ticks)


def test_found_by_one_for_all() -> None:
    """Threads that wait are woken for what another one has found, and each thing is given once."""
    found: SimpleQueue[int] = SimpleQueue()

    def take() -> None:
        one = ticks.wait(PATIENCE)
        assert one is not None
        found.put(one)

    with Ticks() as ticks:
        threads = [threading.Thread(target=take) for _ in range(3)]
        for thread in threads:
            thread.start()
        ticks.tick(3)
        assert sorted(found.get(timeout=PATIENCE) for _ in threads) == [1, 2, 3]
        for thread in threads:
            thread.join(PATIENCE)


def test_end() -> None:
    """What happened before the end is given first; then iterations end, and who waits is told why."""
    ticks = Ticks()
    with ticks:
        ticks.tick(2)
        ticks.fails = GoneError("poll", "ticks", 2)
        assert list(ticks) == [1, 2]
        assert is_readable(ticks)
        with pytest.raises(GoneError):
            ticks.wait()
    with pytest.raises(ClosedError):
        ticks.wait()
    assert list(ticks) == []


def test_errors_do_not_end_it_silently() -> None:
    """An iteration raises what is no end."""
    with Ticks() as ticks:
        ticks.fails = SyscallError("read", "ticks", 5)
        ticks.tick(1)
        with pytest.raises(SyscallError):
            next(ticks)

        async def take() -> int:
            ticks.tick(1)
            return await anext(ticks)

        with pytest.raises(SyscallError):
            asyncio.run(take())


def take_one() -> None:
    """Wait for something that is there, and for something that is not."""
    with Ticks() as ticks:
        ticks.tick(2)
        ticks.wait(0)
        ticks.wait(0)
        ticks.wait(0)


def take_in_parts() -> None:
    """Take and close, wherever that is interrupted: closed again, it has closed everything."""
    ticks = Ticks()
    try:
        ticks.tick(2)
        ticks.wait(0)
    except BaseException:
        # As in a handler of the caller's: whoever was interrupted is still on the stack of the exception.
        ticks.close()
        assert ticks._epoll.closed
        raise
    ticks.close()


def is_ours(code: CodeType) -> bool:
    """Return whether code waits."""
    return code.co_filename == module.__file__


@pytest.mark.parametrize("action", [take_one, take_in_parts])
def test_interrupts(action: Callable[[], None]) -> None:
    """Wherever an interrupt comes, nobody is thought to wait who does not: what is closed then is closed."""
    action()
    gc.collect()
    before = descriptors()
    turn, interrupted = 0, True
    while interrupted:
        turn += 1
        interrupted = interrupt(turn, action, is_ours) == 0
        assert descriptors() == before, turn
    assert turn > 20


def test_interrupts_break_nothing() -> None:
    """Wherever an interrupt comes, it can be waited for afterwards, and what is told then is given."""
    turn, interrupted = 0, True
    while interrupted:
        turn += 1
        with Ticks() as ticks:
            ticks.tick(2)

            def take(ticks: Ticks = ticks) -> None:
                while ticks.wait(0) is not None:
                    pass

            interrupted = interrupt(turn, take, is_ours) == 0
            take()
            assert not is_readable(ticks)
            ticks.tick(1)
            assert is_readable(ticks)
            assert ticks.wait(0) is not None
            assert not is_readable(ticks)
    assert turn > 20
