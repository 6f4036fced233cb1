"""The throw-away host in which destructive tests run keeps what they do away from the machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

import isolib
from tests import throwaway


@pytest.fixture(autouse=True)
def only_root(needs_root: None) -> None:
    """It takes root to be root of a host."""


@pytest.mark.destructive
def test_the_host_can_be_changed() -> None:
    """Name, mounts and network of the throw-away host can be changed; a spawn in there sees it, and works."""
    socket.sethostname("thrown-away")
    subprocess.run(["mount", "-t", "tmpfs", "none", "/mnt"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", "/usr/share"], check=True)
    assert isolib.run(["hostname"], cwd="/").stdout == b"sandbox\n"
    with isolib.spawn(["hostname"], stdout=isolib.PIPE) as process:
        assert process.communicate(timeout=60)[0] == b"thrown-away\n"
    assert os.listdir("/mnt") == []


@pytest.mark.destructive
def test_everything_can_be_killed() -> None:
    """kill(-1) ends all processes of the throw-away host but this one, and nobody outside."""
    victim = subprocess.Popen(["sleep", "1000"])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.kill(-1, signal.SIGTERM)
    assert victim.wait(60) == -signal.SIGTERM


@pytest.mark.destructive
def test_its_processes_are_in_groups_of_their_own() -> None:
    """Every hierarchy shows the throw-away host's own group as the root."""
    lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    assert {line.split(":", 2)[2] for line in lines} == {"/"}


def test_nothing_of_it_is_left() -> None:
    """A test that freezes itself and leaves children behind is thawed, ended and removed."""
    before = {group: set(os.listdir(group)) for group in throwaway.own_groups()}
    with throwaway.groups() as made:
        assert made
        sleeper = subprocess.Popen(["sleep", "1000"])
        for group in made:
            (group / "cgroup.procs").write_text(str(sleeper.pid), encoding="ascii")
        for name, word in (("freezer.state", "FROZEN"), ("cgroup.freeze", "1")):
            for group in made:
                if (group / name).exists():
                    (group / name).write_text(word, encoding="ascii")
        sleeper.kill()
        waiter = time.monotonic()
        for group in made:
            for name, word in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
                if (group / name).exists():
                    (group / name).write_text(word, encoding="ascii")
        assert sleeper.wait(60) == -signal.SIGKILL
        assert time.monotonic() > waiter
    assert {group: set(os.listdir(group)) for group in throwaway.own_groups()} == before
