"""Waiting for a descriptor to become readable: in a thread, under asyncio and under trio, and being woken by another thread."""

from __future__ import annotations

import os
import select
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from isolib._kernel.handle import Fd, home
from isolib.types import parse_duration

if TYPE_CHECKING:
    from asyncio import Future
    from datetime import timedelta
    from typing import SupportsFloat

    from isolib.types import HasFileno

__all__ = ["Alarm", "Deadline", "poll", "readable"]

#: The longest time-out that poll(2) takes, in milliseconds.
_LONGEST: Final = 2**31 - 1


class Deadline:
    """A point in time, or None: never.

    Parameters
    ----------
    timeout
        Seconds from now, a timedelta, or None.
    """

    __slots__ = ("_at",)

    def __init__(self, timeout: SupportsFloat | timedelta | None, what: str = "timeout") -> None:
        self._at = None if timeout is None else time.monotonic() + parse_duration(timeout, what)

    def milliseconds(self) -> float | None:
        """Return what is left, as poll takes it; 0 when it is over."""
        return None if self._at is None else min(max(0.0, (self._at - time.monotonic()) * 1000), _LONGEST)

    @property
    def is_over(self) -> bool:
        """Whether it has come."""
        return self._at is not None and time.monotonic() >= self._at


class Alarm:
    """What one thread wakes others by, as often as they look until it is closed: an eventfd that nobody reads."""

    __slots__ = ("_fd", "_home")

    def __init__(self) -> None:
        fd = Fd.take(os.eventfd, 0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        assert fd is not None  # noqa: S101 - os.eventfd raises
        self._fd = fd
        self._home = home()

    def fileno(self) -> int:
        """Return the descriptor, readable from `ring` on."""
        return self._fd.fileno()

    def ring(self) -> None:
        """Wake everybody; in a fork, where it would wake those of the parent, do nothing."""
        if self._home == home() and not self._fd.closed:
            with suppress(BlockingIOError):  # it rings already
                os.eventfd_write(self._fd.fileno(), 1)

    def close(self) -> None:
        """Close it."""
        self._fd.close()


def poll(fd: HasFileno | int, timeout: float | None, events: int = select.POLLIN) -> int:
    """Wait for a descriptor, milliseconds or for ever; returns the events that came, 0: none."""
    one = select.poll()
    one.register(fd, events)
    found = one.poll(timeout)
    return found[0][1] if found else 0


async def readable(fd: int) -> None:
    """Wait until a descriptor can be read, under asyncio or trio, whichever runs this coroutine.

    The descriptor must stay open meanwhile, and nobody else may wait for the same number.
    """
    # Whoever runs under trio has imported it; and trio says of the calling code, not of the thread, whether it is its own.
    trio: Any = sys.modules.get("trio")
    if trio is not None and _is_in(trio):
        await trio.lowlevel.wait_readable(fd)
        return
    import asyncio  # noqa: PLC0415 - dear to import, and its users have it

    loop = asyncio.get_running_loop()
    done: Future[None] = loop.create_future()
    loop.add_reader(fd, _set, done)
    try:
        await done
    finally:
        loop.remove_reader(fd)


def _set(done: Future[None]) -> None:
    if not done.done():  # it was cancelled
        done.set_result(None)


def _is_in(trio: Any) -> bool:  # noqa: ANN401 - not a dependency
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        return False
    return True
