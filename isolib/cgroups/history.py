"""Samples of a group over time, taken by a thread, ready to be plotted."""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from isolib._kernel.handle import home
from isolib._kernel.hints import typed
from isolib._kernel.waiting import Alarm, poll
from isolib.cgroups.controllers.io import DeviceIo
from isolib.cgroups.pressure import PressureLine, PressureValues
from isolib.cgroups.stats import CpuStats, MemoryStats, PidsStats, show_size
from isolib.cgroups.values import parse_count
from isolib.errors import GoneError, PlanError
from isolib.types import parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta
    from types import TracebackType
    from typing import Self

    from isolib.cgroups.stats import Stats

__all__ = ["History"]

_WIDTH: Final = 240
_HEIGHT: Final = 40
#: The most points of a picture: as many as it has pixels.
_POINTS: Final = _WIDTH


class _Recorder:
    """What the thread works on; it does not know the `History`, so that one which nobody has any more can end it."""

    def __init__(self, sample: Callable[[], Stats], every: float, most: int) -> None:
        self.sample = sample
        self.every = every
        self.alarm = Alarm()
        self.error: Exception | None = None
        self.home = home()
        first = sample()
        self.begin = first.time
        self.samples = deque([first], most)
        self.is_ended = False

    def run(self) -> None:
        """Sample until somebody rings, the group is gone, or something fails."""
        start = time.monotonic()
        tick = 1
        try:
            # Each moment is counted from the start, so that what a sample costs delays none but itself.
            while not poll(self.alarm, max(0.0, start + tick * self.every - time.monotonic()) * 1000):
                self.samples.append(self.sample())
                tick = max(tick, int((time.monotonic() - start) / self.every)) + 1
        except GoneError:
            pass
        except Exception as error:  # noqa: BLE001 - raised by close()
            self.error = error
        finally:
            self.is_ended = True


class History:
    """Samples of a group, taken every so often by a thread of its own until it is closed; a context manager.

    It ends by itself when the group has been removed, and keeps what it has.

    The thread is a daemon, for the interpreter waits at its exit for all others: a history that nobody closed would keep it for
    ever.  Nothing is lost when it is ended there: all it does is read.

    Parameters
    ----------
    sample
        What makes a sample.
    every
        Seconds or a timedelta between two.  Moments that are missed, because a sample took longer, are left out.
    most
        How many are kept; the oldest go first.

    Raises
    ------
    PlanError
        An argument cannot work.
    GoneError
        There is no such group.
    """

    @typed("the history of a control group")
    def __init__(self, sample: Callable[[], Stats], every: float | timedelta, *, most: int = 10_000) -> None:
        seconds = parse_duration(every, "every")
        if not seconds:
            raise PlanError("every: 0: more than nothing is wanted between two samples")
        kept = parse_count(most, "most", sys.maxsize)
        if not kept:
            raise PlanError(f"most: a number of samples, at least 1, is wanted, not {most!r}")
        self._recorder = _Recorder(sample, seconds, kept)
        # Also run at the interpreter's exit, before the thread would be stopped in the midst of something.
        self._stop = weakref.finalize(self, self._recorder.alarm.ring)
        self._thread = threading.Thread(target=self._recorder.run, name="isolib history", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        state = "ended" if self.ended else f"every {self._recorder.every:g} s"
        return f"<History of {len(self._recorder.samples)} samples, {state}>"

    @property
    def ended(self) -> bool:
        """Whether no more samples are taken: it was closed, the group is gone, or something failed."""
        return self._recorder.is_ended or self._recorder.home != home()

    @property
    def samples(self) -> tuple[Stats, ...]:
        """What there is so far, oldest first."""
        return tuple(self._recorder.samples.copy())

    def series(self, name: str, *, rate: bool = False) -> tuple[list[float], list[float]]:
        """Return times and values, as ``matplotlib.pyplot.plot(*history.series("memory.current"))`` takes them.

        Parameters
        ----------
        name
            A number of `Stats`: ``"memory.current"``, ``"memory.raw.pgscan"``, ``"cpu.total"``, ``"pids.current"``,
            ``"io.read_bytes"`` (of all devices), ``"io.8:0.writes"``, ``"pressure.memory.some.avg10"``, ``"hugetlb.2MB"``.
        rate
            How much it grew in a second, from each sample to the next: of ``"cpu.total"`` that is the processors in use.

        Returns
        -------
        tuple of two lists
            Seconds since the first sample of all, and values.  Samples that have no such number are left out.

        Raises
        ------
        PlanError
            There is no such number.
        """
        keys = _keys(name)
        found = [(one.time - self._recorder.begin, value) for one in self.samples if (value := _value(one, keys)) is not None]
        if rate:
            found = [(now, (new - old) / (now - then)) for (then, old), (now, new) in pairwise(found) if now > then]
        return [at for at, _ in found], [value for _, value in found]

    def close(self) -> None:
        """Take no more samples; what there is stays. Again is nothing.

        Raises
        ------
        Exception
            What ended it, unless that was the removal of the group.
        """
        recorder = self._recorder
        if recorder.home != home():  # the thread is the parent's
            return
        recorder.alarm.ring()
        self._thread.join()
        self._stop.detach()
        recorder.alarm.close()
        error, recorder.error = recorder.error, None
        if error is not None:
            raise error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.close()
        except Exception as failure:
            if error is None:
                raise
            error.add_note(f"and the history ended by {type(failure).__name__}: {failure}")

    def _repr_html_(self) -> str:
        pictures = [
            _picture("memory", self.series("memory.current"), show_size),
            _picture("cpu", self.series("cpu.total", rate=True), lambda number: f"{number:.2f} processors"),
        ]
        return f"<div><p>{escape(repr(self))}</p>{''.join(pictures)}</div>"


# ---- numbers by name ----

_PARTS: Final[Mapping[str, type]] = {"memory": MemoryStats, "cpu": CpuStats, "pids": PidsStats}


def _keys(name: str) -> tuple[str, ...]:
    """Return the parts of a name, when there may be such a number."""
    keys = tuple(str(name).split("."))
    match keys:
        case ("memory" | "cpu" | "pids" as part, key) if key != "raw":
            known = key in _names(_PARTS[part])
        case ("memory", "raw", _) | ("hugetlb", _):
            known = True
        case ("io", *device, key):
            known = len(device) < 2 and key in _names(DeviceIo)  # noqa: PLR2004 - all of them, or one
        case ("pressure", _, kind, key):
            known = kind in _names(PressureValues) and key in _names(PressureLine)
        case _:
            known = False
    if not known:
        numbers = ", ".join(f"{part}.{key}" for part, kind in _PARTS.items() for key in _names(kind))
        raise PlanError(f"name: {name!r} is no number of Stats: {numbers}, memory.raw.*, io.*, pressure.*.*.*, hugetlb.*")
    return keys


def _names(kind: type) -> list[str]:
    return [one.name for one in fields(kind)] if is_dataclass(kind) else []


def _value(stats: Stats, keys: tuple[str, ...]) -> float | None:
    if keys[0] == "io":
        devices = [one for (major, minor), one in stats.io.items() if len(keys) == 2 or f"{major}:{minor}" == keys[1]]  # noqa: PLR2004
        return float(sum(getattr(one, keys[-1]) for one in devices)) if devices else None
    found: object = stats
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else getattr(found, key)
        if found is None:
            return None
    return float(found) if isinstance(found, (int, float)) else None


# ---- pictures ----


def _picture(title: str, series: tuple[list[float], list[float]], show: Callable[[float], str]) -> str:
    """Return a line without axes, and what it ends and culminates in; nothing where there is nothing to show."""
    times, values = series
    if not values:
        return ""
    most, first, span = max(values) or 1.0, times[0], (times[-1] - times[0]) or 1.0
    step = max(1, len(values) // _POINTS)
    points = " ".join(
        f"{(at - first) / span * _WIDTH:.1f},{_HEIGHT - max(0.0, value) / most * (_HEIGHT - 2) - 1:.1f}"
        for at, value in list(zip(times, values, strict=True))[::-step][::-1]
    )
    # No colour of its own, so that it can be read on any background; nothing is loaded from anywhere.
    return (
        f'<figure style="display:inline-block;margin:0 1em 0 0"><svg width="{_WIDTH}" height="{_HEIGHT}" role="img" '
        f'aria-label="{escape(title)}"><polyline points="{points}" fill="none" stroke="currentColor"/></svg>'
        f"<figcaption>{escape(title)}: {escape(show(values[-1]))}, at most {escape(show(max(values)))}</figcaption></figure>"
    )
