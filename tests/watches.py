"""What every watch must do, whatever it tells of: of a control group, or of a network namespace."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Protocol, TypeVar

import pytest

from isolib.errors import ClosedError
from tests.descriptors import refusals
from tests.groups import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable
    from queue import SimpleQueue
    from typing import Self

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Watch(Protocol[T_co]):
    """What tells of things that happen."""

    def wait(self, timeout: float | None = None, /) -> T_co | None:
        """Return the next one."""

    def fileno(self) -> int:
        """Return the number of its descriptor."""

    def close(self) -> None:
        """Stop."""

    def __iter__(self) -> Self: ...

    def __next__(self) -> T_co: ...

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> T_co: ...


def in_background(watch: Watch[T], found: SimpleQueue[T] | None = None) -> threading.Thread:
    """Iterate on a thread."""

    def body() -> None:
        for event in watch:
            if found is not None:
                found.put(event)

    thread = threading.Thread(target=body)
    thread.start()
    return thread


def join(*threads: threading.Thread) -> None:
    """Fail unless these threads end."""
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def check_close_ends_blocked_iterations(watch: Watch[object]) -> None:
    """Fail unless closing it on one thread ends the iterations of others, and leaves nothing that could be used."""
    threads = [in_background(watch) for _ in range(3)]
    watch.close()
    join(*threads)
    watch.close()
    with pytest.raises(ClosedError):
        watch.fileno()
    with pytest.raises(ClosedError):
        watch.wait(0)
    assert "closed" in repr(watch)


def check_handler_closes(watch: Watch[object]) -> None:
    """Fail unless a signal handler may close what the interrupted thread waits for."""
    before = signal.signal(signal.SIGALRM, lambda *_: watch.close())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        assert list(watch) == []
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def check_asyncio_tasks_wait_side_by_side(new: Callable[[], Watch[object]]) -> None:
    """Fail unless several tasks may wait, closing ends them all, and a cancelled one disturbs no other."""

    async def body() -> None:
        with closing(new()) as watch:

            async def collect() -> list[object]:
                return [event async for event in watch]

            tasks = [asyncio.create_task(collect()) for _ in range(3)]
            await asyncio.wait(tasks, timeout=0)
            tasks[0].cancel()
            with pytest.raises(asyncio.CancelledError):
                await tasks[0]
            watch.close()
            async with asyncio.timeout(PATIENCE):
                assert await asyncio.gather(*tasks[1:]) == [[], []]

    asyncio.run(body())


def check_fork(watch: Watch[object]) -> None:
    """Fail unless a fork is refused its use, and may close it."""
    child = os.fork()
    if not child:
        status = 1
        try:
            with pytest.raises(ClosedError, match="fork"):
                watch.wait(0)
            watch.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def check_no_descriptors(new: Callable[[], Watch[object]]) -> None:
    """Fail unless the error names the limit, whichever descriptor is refused."""
    refused = refusals(lambda: new().close())
    assert len(refused) > 3
    assert {error.errno for error in refused} == {errno.EMFILE}
    assert [str(error) for error in refused if "RLIMIT_NOFILE" not in str(error)] == []
