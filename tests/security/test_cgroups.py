"""What a sandbox can do to its control groups: nothing."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib import Reason, Sandbox
from tests.groups import left, parents

if TYPE_CHECKING:
    from isolib.spec import SandboxFields

pytestmark = pytest.mark.usefixtures("user_namespaces", "groups")

PYTHON = os.path.realpath(sys.executable)

FIND = r"""
import os
for top, directories, files in os.walk("/"):
    directories[:] = [name for name in directories if top != "/" or name not in {"proc", "usr", "nix"}]
    for name in files:
        if name in {"release_agent", "notify_on_release", "cgroup.procs", "tasks", "memory.max", "devices.allow"}:
            print(os.path.join(top, name))
"""

MOUNT = r"""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
os.mkdir("/tmp/into")
for again in (False, True):
    if again and libc.unshare(0x10000000 | 0x00020000 | 0x02000000):  # user, mnt, cgroup
        break
    kinds = [(b"cgroup2", None)] + [
        (b"cgroup", name) for name in (b"memory", b"pids", b"devices", b"freezer", b"none,name=systemd", b"none,name=isolib")
    ]
    for kind, options in kinds:
        if libc.mount(b"none", b"/tmp/into", kind, 0, options) == 0:
            own = [name for name in os.listdir("/tmp/into") if os.access(f"/tmp/into/{name}", os.W_OK)]
            if os.access("/tmp/into", os.W_OK) or own:
                print(kind, options, os.access("/tmp/into", os.W_OK), own)
            libc.umount2(b"/tmp/into", 2)
"""

LIMITS: SandboxFields = {"cwd": "/tmp", "memory": "200M", "pids": 60}


@pytest.fixture
def groups() -> None:
    """Skip these tests where this user may make no groups with memory."""
    parents(controller="memory")


def test_no_file_of_groups_is_there() -> None:
    """Nothing of cgroupfs can be reached inside, and no release_agent is anywhere."""
    done = isolib.run([PYTHON, "-I", "-S", "-c", FIND], check=True, **LIMITS)
    assert done.stdout == b""


@pytest.mark.root
def test_mounting_it_gives_nothing() -> None:
    """Who mounts cgroupfs inside, in new namespaces below, finds nothing there that could be written."""
    done = isolib.run([PYTHON, "-I", "-S", "-c", MOUNT], **LIMITS)
    assert (done.returncode, done.stdout) == (0, b""), done.stderr.decode()


def test_names_of_the_host_do_not_show() -> None:
    """In every hierarchy in which the sandbox has a group it sees itself at the top."""
    with Sandbox(**LIMITS) as box:
        lines = box.run(["cat", "/proc/self/cgroup"], check=True).stdout.decode().splitlines()
        assert box.cgroup is not None
        group = box.cgroup
        assert not any(group.name in line for line in lines)
        own = {frozenset(line.split(":")[1].split(",")): line.split(":", 2)[2] for line in lines}
        used = [name for name in group.paths if any(name in one for one in own)]
        assert used
        assert all(path == "/" for one, path in own.items() if one & set(used))


def test_whoever_it_starts_is_bound() -> None:
    """Those who leave their session, their parents and their namespaces stay in the group, and die with it."""
    script = "setsid setsid sh -c 'sleep 1000 & sleep 1000' & unshare -Upf sleep 1000 & sleep 1000"
    with Sandbox(**LIMITS) as box:
        assert box.cgroup is not None
        before = len(box.cgroup.pids())
        with box.popen(["sh", "-c", script]) as process:
            while len(box.cgroup.pids()) < before + 7:  # two shells, four that sleep, and who waits for one of them
                assert process.poll() is None
        box.cgroup.kill()
        assert box.cgroup.pids() == []
    assert left(f"isolib-{os.getpid()}-") == []


@pytest.mark.parametrize("limit", ["memory", "pids"])
def test_a_bomb_does_not_reach_the_host(limit: str) -> None:
    """Many processes that all take memory, or start others, are bounded together."""
    bomb = {
        "memory": "import os\nos.fork(); os.fork(); os.fork()\nblock = bytearray(60 << 20)\nimport time; time.sleep(30)",
        "pids": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    }[limit]
    with Sandbox(cwd="/tmp", memory="200M", swap=0, pids=60, wall=2) as box:
        done = box.run([PYTHON, "-I", "-S", "-c", bomb])
        assert done.exit.reason in {Reason.OOM, Reason.TIMEOUT, Reason.LIMIT}
        assert box.cgroup is not None
        stats = box.cgroup.stats()
        assert stats.memory is None or stats.memory.peak is None or stats.memory.peak <= 201 << 20
        assert stats.pids is None or stats.pids.peak is None or stats.pids.peak <= 60
        assert box.run(["echo", "on"], check=True).stdout == b"on\n"


@pytest.mark.root
def test_files_of_limits_are_not_its_own() -> None:
    """No file of the group, nor of those of its processes, belongs to anybody inside."""
    with Sandbox(**LIMITS) as box, box.popen(["sleep", "1000"]):
        assert box.cgroup is not None
        for path in set(box.cgroup.paths.values()):
            for top, _, files in os.walk(path):
                assert {os.stat(f"{top}/{name}").st_uid for name in files} | {os.stat(top).st_uid} == {0}
        maps = box.run(["cat", "/proc/self/uid_map"], check=True).stdout.split()
        assert b"0" not in maps[1::3]
