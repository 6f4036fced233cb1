"""Mounts in the reaper's table, and what the reaper leaves of them of a killed host."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isolib import PlanError
from isolib._kernel import calls, reaper
from isolib._kernel.mountapi import attach, new_mount
from isolib._kernel.procfs import parse_mountinfo
from tests.table import entry, indices, own

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

HOST = """
import os, signal, sys
from isolib._kernel import calls, reaper
from isolib._kernel.mountapi import attach, new_mount

def mount(path):
    made = new_mount("tmpfs", {"size": "64k"})
    reaper.entrust_mount(made)
    attach(made, os.open(path, os.O_PATH), path)
    return made

target = sys.argv[1]
"""


@pytest.fixture
def target(tmp_path: Path) -> Iterator[str]:
    """Return a directory of a mount of its own, whose mounts reach nobody else, to attach things to."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path], check=True)
    subprocess.run(["mount", "--make-private", tmp_path], check=True)
    (tmp_path / "target").mkdir()
    (tmp_path / "other").mkdir()
    yield str(tmp_path / "target")
    subprocess.run(["umount", "-R", tmp_path], check=True)


@pytest.fixture
def mount() -> Iterator[int]:
    """Return a mount that is attached nowhere; there is a reaper."""
    reaper.pid()
    fd = new_mount("tmpfs", {"size": "64k"})
    yield fd
    os.close(fd)


def mounted() -> list[str]:
    """Return where something is mounted."""
    return [one.mount_point for one in parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())]


def held() -> list[str]:
    """Return what the reaper has open."""
    found = []
    for number in os.listdir(f"/proc/{reaper.pid()}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/{reaper.pid()}/fd/{number}"))
    return sorted(found)


def kill_host(body: str, target: str, gone: list[str]) -> None:
    """Run a program that mounts something, kill it, and wait until these mounts are gone."""
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        poll = select.poll()
        poll.register(table, select.POLLPRI)
        table.read()
        argv = [sys.executable, "-c", f"{HOST}\n{body}\nprint(flush=True)\nsignal.pause()", target]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as host:
            assert host.stdout is not None
            assert host.stdout.readline()
            assert set(gone) <= set(mounted())
            host.send_signal(signal.SIGKILL)
        while set(gone) & set(mounted()):
            assert poll.poll(10_000)


def test_mount_is_what_c_reads(mount: int) -> None:
    """A mount stands in the table, below a descriptor of it that is its own, until it is struck."""
    before = indices()
    first, second = (reaper.entrust_mount(mount) for _ in range(2))
    found = [entry(index) for index in set(indices()) - set(before)]
    assert [one["kind"] for one in found] == [calls.ENTRY_MOUNT] * 2
    assert found[0]["bases"] != found[1]["bases"]
    for ticket in (first, second):
        ticket.let_go()
        ticket.let_go()
    assert indices() == before


def test_let_go(mount: int) -> None:
    """When a mount is let go, the reaper has closed its descriptor: nothing keeps the mount busy any more."""
    before = held()
    for _ in range(100):
        ticket = reaper.entrust_mount(mount)
        ticket.let_go()
        assert held() == before


def test_not_a_directory(tmp_path: Path) -> None:
    """What is no directory is no mount's root that could be entrusted."""
    with open(tmp_path / "file", "w", encoding="utf-8") as file, pytest.raises(PlanError, match="the root of a mount"):
        reaper.entrust_mount(file.fileno())


def test_another_reaper_knows(mount: int) -> None:
    """Who ends the reaper gets another one, and that knows the mount by the same number."""
    ticket = reaper.entrust_mount(mount)
    first = reaper.pid()
    pidfd = os.pidfd_open(first)
    os.kill(first, signal.SIGKILL)
    assert select.select([pidfd], [], [], 10)[0]
    os.close(pidfd)
    another = reaper.entrust_mount(mount)
    assert reaper.pid() != first
    known = [base for base in own()._known.values() if base.kind == calls.ENTRY_MOUNT]
    assert len(known) == 2
    another.let_go()  # when this is answered, all that was said before was heard
    after = held()
    ticket.let_go()
    assert len(held()) == len(after) - 1
    assert not [base for base in own()._known.values() if base.kind == calls.ENTRY_MOUNT]


def test_killed_host(target: str) -> None:
    """Of a host that is killed no mount is left."""
    kill_host("mount(target)", target, [target])


def test_busy(target: str) -> None:
    """A mount goes though somebody has a file in it open."""
    kill_host("mount(target); open(target + '/file', 'w')", target, [target])


def test_moved(target: str) -> None:
    """A mount goes wherever it was moved to, and what somebody has put in its place stays."""
    other = f"{os.path.dirname(target)}/other"
    body = f"""
import subprocess
mount(target)
subprocess.run(["mount", "--move", target, {other!r}], check=True)
subprocess.run(["mount", "-t", "tmpfs", "mine", target], check=True)
"""
    kill_host(body, target, [other])
    assert target in mounted()


def test_unmounted_by_somebody(target: str) -> None:
    """Where a mount was unmounted already, what was mounted in its place stays."""
    other = f"{os.path.dirname(target)}/other"
    body = f"""
import subprocess
mount(target)
mount({other!r})
subprocess.run(["umount", "-l", target], check=True)
subprocess.run(["mount", "-t", "tmpfs", "mine", target], check=True)
"""
    kill_host(body, target, [other])
    assert target in mounted()


def test_covered(target: str) -> None:
    """What somebody has mounted on top of a mount goes with it: nobody could reach it any more."""
    body = """
import subprocess
mount(target)
subprocess.run(["mount", "-t", "tmpfs", "mine", target], check=True)
"""
    kill_host(body, target, [target])


def test_many(target: str) -> None:
    """Many mounts go, nested ones too."""
    body = """
for number in range(50):
    path = f"{target}/{number}"
    os.mkdir(path)
    mount(path)
    os.mkdir(path + "/below")
    mount(path + "/below")
"""
    kill_host(body, target, [f"{target}/{number}" for number in range(50)])


def test_attached_by_hand(target: str, mount: int) -> None:
    """A mount that is attached and detached by its owner is nobody's afterwards."""
    ticket = reaper.entrust_mount(mount)
    place = os.open(target, os.O_PATH)
    attach(mount, place, target)
    os.close(place)
    assert target in mounted()
    calls.umount(target, calls.MNT_DETACH)
    ticket.let_go()
    assert target not in mounted()
