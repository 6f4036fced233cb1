"""What the calling thread and the new process are seen to do with groups: how one is born in them, and that nobody sleeps."""

from __future__ import annotations

import re
import threading

import pytest

import isolib
from tests.groups import hierarchies, needs
from tests.strace import attached

SLEEPS = "nanosleep,clock_nanosleep,pause,rt_sigtimedwait"


@pytest.fixture(autouse=True)
def _warm() -> None:
    """Have everything opened that is opened once; skips where this user may make no groups."""
    needs()
    with isolib.new_cgroup(pids_max=30) as group, group.spawn(["true"]) as process:
        process.wait(60)


def test_first_process_is_born_inside() -> None:
    """In v2 it is cloned into its group, and nobody writes to a cgroup.procs."""
    if not any(one.version == 2 for one in hierarchies()):
        pytest.skip("this host has no cgroup v2 that this user may use")
    with (
        attached("-s300", "-etrace=clone3,openat") as trace,
        isolib.new_cgroup(pids_max=30) as group,
        group.spawn(["true"]) as process,
    ):
        assert process.wait(60).code == 0
    text = trace.text()
    assert len(re.findall(r"clone3\(\{flags=[A-Z_|]*CLONE_INTO_CGROUP[^\n]*= \d+", text)) == 1
    written = [line for line in text.splitlines() if "cgroup.procs" in line and ("O_WRONLY" in line or "O_RDWR" in line)]
    assert written == []


def test_nobody_sleeps() -> None:
    """No call is a sleep; nothing is polled only where the kernel has just refused a removal, and tells nobody of more."""
    calls = f"{SLEEPS},poll,ppoll,select,pselect6,epoll_wait,unlinkat,rmdir"
    own = threading.get_native_id()
    with attached("-s100", f"-etrace={calls}") as trace:
        for _ in range(20):
            with isolib.new_cgroup(pids_max=30) as group, group.spawn(["sh", "-c", "sleep 100 & exit 3"]) as process:
                assert process.wait(60).code == 3
            with isolib.new_cgroup(pids_max=30) as group, group.spawn(["sleep", "100"]) as process:
                group.kill()
    lines = trace.lines(own)
    assert any(line.startswith(("poll", "ppoll")) for line in lines)
    assert [line for line in lines if line.startswith(tuple(SLEEPS.split(",")))] == []
    before = ""
    for line in lines:
        if re.match(r"p?poll\(NULL|p?poll\(\[\]", line):
            assert re.match(r"(unlinkat|rmdir)\(.*EBUSY", before), (before, line)
        before = line
