"""Samples of a group over time."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from isolib.cgroups.history import History
from isolib.cgroups.stats import read_stats
from isolib.errors import GoneError

if TYPE_CHECKING:
    from isolib.cgroups.stats import Stats
    from tests.kernel.cgroups.conftest import RawGroup

PATIENCE = 30.0


class Sampler:
    """Samples of a group, that can be waited for."""

    def __init__(self, group: RawGroup, wanted: int) -> None:
        self.group = group
        self.left = wanted
        self.done = threading.Event()

    def __call__(self) -> Stats:
        """Take one."""
        stats = read_stats(self.group.unified, self.group.controllers)
        self.left -= 1
        if self.left <= 0:
            self.done.set()
        return stats


def threads() -> list[str]:
    """Return the names of the threads of histories."""
    return [thread.name for thread in threading.enumerate() if thread.name == "isolib history"]


def test_series(raw_group: RawGroup) -> None:
    """Samples come until it is closed, in their order, and show what the group does."""
    sampler = Sampler(raw_group, 8)
    raw_group.start("while True: pass")
    with History(sampler, 0.01) as history:
        assert sampler.done.wait(PATIENCE)
        assert threads() == ["isolib history"]
        states = [history.ended]
    assert [*states, history.ended] == [False, True]
    assert threads() == []
    times, values = history.series("cpu.total")
    assert len(times) == len(values) == len(history.samples) >= 7
    assert times[0] == 0
    assert sorted(times) == times
    assert values[-1] > values[0]
    assert max(history.series("cpu.total", rate=True)[1]) > 0
    assert set(history.series("pids.current")[1]) == {1.0}
    history.close()


def test_gone_group(raw_group: RawGroup) -> None:
    """It ends by itself when the group is removed, raises nothing, and keeps what it has."""
    sampler = Sampler(raw_group, 3)
    with History(sampler, 0.005) as history:
        assert sampler.done.wait(PATIENCE)
        raw_group.remove()
        history._thread.join(PATIENCE)
        assert history.ended
    assert len(history.samples) >= 2
    with pytest.raises(GoneError):
        History(sampler, 0.005)


def test_error(raw_group: RawGroup) -> None:
    """An error of another kind is raised by close(), once, and does not hide that of the block."""

    def failing() -> Stats:
        if sampler.left < 3:
            raise OSError("no more")
        return sampler()

    sampler = Sampler(raw_group, 4)
    history = History(failing, 0.001)
    history._thread.join(PATIENCE)
    with pytest.raises(OSError, match="no more"):
        history.close()
    history.close()
    sampler = Sampler(raw_group, 4)
    history = History(failing, 0.001)
    history._thread.join(PATIENCE)
    mistake = KeyError()
    with pytest.raises(KeyError) as caught, history:
        raise mistake
    assert caught.value is mistake
    assert "no more" in str(mistake.__notes__)


def test_the_oldest_go_first(raw_group: RawGroup) -> None:
    """No more samples are kept than was said; times go on from the first of all."""
    sampler = Sampler(raw_group, 10)
    with History(sampler, 0.001, most=3) as history:
        assert sampler.done.wait(PATIENCE)
    assert len(history.samples) == 3
    assert history.series("memory.current")[0][0] > 0


def test_dropped_without_closing(raw_group: RawGroup) -> None:
    """A history that nobody has any more ends its thread."""
    history = History(Sampler(raw_group, 1), 0.01)
    thread = history._thread
    del history
    gc.collect()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_exit_of_the_interpreter() -> None:
    """A history that nobody closed does not keep the interpreter, and says nothing at its exit."""
    code = (
        "from isolib.cgroups.history import History\nfrom isolib.cgroups.stats import Stats\n"
        "history = History(Stats, 0.0001)\nwhile len(history.samples) < 3: pass"
    )
    for options in (["-X", "dev", "-W", "error"], []):
        done = subprocess.run([sys.executable, *options, "-c", code], capture_output=True, timeout=PATIENCE, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_fork(raw_group: RawGroup) -> None:
    """In a fork it has what was there, takes nothing more, and closing it does not end the parent's."""
    sampler = Sampler(raw_group, 3)
    history = History(sampler, 3600)
    child = os.fork()
    if not child:
        status = 1
        try:
            assert history.ended
            assert len(history.samples) == 1
            history.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not history.ended
    history.close()


def test_picture(raw_group: RawGroup) -> None:
    """A notebook shows memory and processors as lines, and nothing that it would have to load."""
    sampler = Sampler(raw_group, 4)
    with History(sampler, 0.005) as history:
        assert sampler.done.wait(PATIENCE)
    html = history._repr_html_()
    assert html.count("<polyline") == 2
    assert "http" not in html
    assert "script" not in html
