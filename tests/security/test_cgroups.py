"""Hostile code in a sandbox with limits: it finds no group, cannot raise its limits or leave them, and hurts but itself."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib import Reason, Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("user_namespaces", "groups")


def python(code: str) -> list[str]:
    """Return the command for a program."""
    return ["python3", "-I", "-S", "-c", code]


#: As whom the command sees itself; None: as root.
users = pytest.mark.parametrize("user", [None, 1000])


@pytest.fixture
def neighbour() -> Iterator[Sandbox]:
    """Return another sandbox, which must go on; so must this host."""
    with Sandbox(cwd="/tmp", memory="64M", pids=20) as box:
        process = box.popen(["sleep", "1000"])
        yield box
        assert process.poll() is None
        assert box.run(["echo", "well"]).stdout == b"well\n"
    assert subprocess.run(["true"], check=False).returncode == 0


# ---- what it sees ----

LOOK_ROUND = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def attempt(what, result):
    print(what, "done" if result == 0 else "refused")
os.makedirs("/tmp/m", exist_ok=True)
controllers = ["", "memory", "pids", "cpu", "cpuset", "devices", "freezer", "blkio", "rdma", "misc", "none,name=x"]
def mounts(who):
    attempt(who + " cgroup2", libc.mount(b"none", b"/tmp/m", b"cgroup2", 0, None))
    for name in controllers:
        attempt(f"{who} cgroup {name}", libc.mount(b"none", b"/tmp/m", b"cgroup", 0, name.encode()))
mounts("mount")
print("groups", sorted({line.rstrip().split(":", 2)[2] for line in open("/proc/self/cgroup")}))
print("groups of 1", sorted({line.rstrip().split(":", 2)[2] for line in open("/proc/1/cgroup")}))
mounted = [line.split(" - ") for line in open("/proc/self/mountinfo")]  # those below what covers them are listed too
mounted = [one[0].split()[2:5:2] for one in mounted if one[1].split()[0] in ("cgroup", "cgroup2")]
print("hierarchies", len(mounted))
for number, path in mounted:  # nowhere else could they be
    try:
        status = os.stat(path)
    except OSError:
        continue
    if number == f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}":
        print("found", path)
unshared = libc.unshare(0x10000000 | 0x00020000 | 0x02000000)
print("unshared", unshared)
if unshared == 0:
    for kind, name in [("cgroup2", ""), *(("cgroup", name) for name in controllers)]:
        if libc.mount(b"none", b"/tmp/m", kind.encode(), 0, name.encode()):
            continue
        print("nested", kind, name)
        for path, names, files in os.walk("/tmp/m"):
            for file in files:
                if os.access(f"{path}/{file}", os.W_OK):
                    print("found", kind, f"{path}/{file}")
                try:
                    os.close(os.open(f"{path}/{file}", os.O_WRONLY))
                    print("found", kind, f"{path}/{file}")
                except OSError:
                    pass
            try:
                os.mkdir(f"{path}/x")
                print("found", kind, path, name)
            except OSError:
                pass
        libc.umount2(b"/tmp/m", 2)
print("end")
"""


@users
def test_no_group_is_in_sight(user: int | None) -> None:
    """No file of a group is found; where it mounts a hierarchy in namespaces of its own it can write nothing; its group is "/".

    An ordinary user to whom groups of v2 were delegated owns the group of the command too, below that with the limits.
    """
    with Sandbox(cwd="/tmp", memory="128M", pids=40, user=user) as box:
        done = box.run(python(LOOK_ROUND), timeout=120)
    lines = done.stdout.decode().splitlines()
    assert (done.returncode, lines[-1]) == (0, "end"), (lines, done.stderr)
    assert "groups ['/']" in lines
    assert "unshared 0" in lines
    if os.geteuid() == 0:  # elsewhere the host's /sys is not even covered, but left out
        assert "hierarchies 0" not in lines
    assert "nested cgroup2 " in lines
    assert not [line for line in lines if line.endswith("done")]
    found = [line for line in lines if line.startswith("found")]
    assert [line for line in found if os.geteuid() == 0 or not line.startswith("found cgroup2")] == []
    assert len([line for line in lines if line.endswith("refused")]) == 12
    assert not any("isolib" in line for line in lines)


def test_no_group_of_others_is_named() -> None:
    """/proc names no group outside: of nobody who can be seen."""
    code = (
        "import glob\n"
        "for path in glob.glob('/proc/[0-9]*/cgroup') + glob.glob('/proc/self/task/*/cgroup'): print(open(path).read())"
    )
    with Sandbox(cwd="/tmp", pids=40) as box:
        box.popen(["sleep", "1000"])
        out = box.run(python(code)).stdout.decode()
    assert out
    assert "isolib" not in out


@pytest.mark.root
def test_files_of_limits_are_not_its_own() -> None:
    """No file of the group, nor of those of its processes, belongs to anybody inside."""
    with Sandbox(cwd="/tmp", memory="200M", pids=60) as box, box.popen(["sleep", "1000"]):
        assert box.cgroup is not None
        for path in set(box.cgroup.paths.values()):
            for top, _, files in os.walk(path):
                assert {os.stat(f"{top}/{name}").st_uid for name in files} | {os.stat(top).st_uid} == {0}
        maps = box.run(["cat", "/proc/self/uid_map"], check=True).stdout.split()
        assert b"0" not in maps[1::3]


# ---- that it cannot leave ----

SCATTER = """
import os, sys, time
ready, tell = os.pipe()
for kind in range(4):
    if (child := os.fork()) == 0:
        if kind > 0:
            os.setsid()
        if kind > 1 and os.fork():
            os._exit(0)
        if kind > 2:
            try: os.setpgid(0, 0)
            except OSError: pass
        for fd in (0, 1, 2):
            os.close(fd)
        os.write(tell, b"x")
        time.sleep(1000)
    if kind > 1:
        os.waitpid(child, 0)
for _ in range(4):
    os.read(ready, 1)
print("scattered", flush=True)
if len(sys.argv) > 1:
    time.sleep(1000)
"""


@users
def test_all_descendants_are_in_the_group(user: int | None) -> None:
    """Whoever it forks, twice and into sessions of their own, is in the group, seen from outside, and ends with the command."""
    with Sandbox(cwd="/tmp", pids=40, memory="128M", user=user) as box:
        process = box.popen([*python(SCATTER), "stay"])
        assert process.stdout is not None
        assert process.stdout.readline() == b"scattered\n"
        everybody = of_namespace(process.pid)
        # PID 1, which shows itself to root alone, the command, and four that it has started.
        assert len(everybody) == (6 if os.geteuid() == 0 else 5)
        assert everybody <= set(box.cgroup.pids())
        scattered = {pid for pid in everybody if b"python" in cmdline(pid)}
        assert len(scattered) == 5
        process.kill()
        process.wait(60)
        assert not scattered & set(box.cgroup.pids())
        assert box.run(python(SCATTER)).stdout == b"scattered\n"
        assert not [pid for pid in box.cgroup.pids() if b"python" in cmdline(pid)]


def of_namespace(pid: int) -> set[int]:
    """Return the processes of a process's pid namespace."""
    own = os.readlink(f"/proc/{pid}/ns/pid")
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{name}/ns/pid") == own:
                found.add(int(name))
        except OSError:  # gone, or a supervisor that shows itself to nobody
            continue
    return found


def cmdline(pid: int) -> bytes:
    """Return the arguments of a process; empty for one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


# ---- bombs ----

EAT = "x = []\nwhile True: x.append(bytearray(1 << 20))"
MANY = f"""
import os
for _ in range(8):
    if not os.fork():
        exec({EAT!r})
os.wait()
raise SystemExit(1)
"""
BOMBS = {
    "fork": ("import os\nwhile True:\n    try: os.fork()\n    except OSError: os._exit(1)", Reason.LIMIT),
    "thread": (
        "import threading as t, time\nwhile True: t.Thread(target=time.sleep, args=(1000,), daemon=True).start()",
        Reason.LIMIT,
    ),
    "memory": (EAT, Reason.OOM),
    "memory of children": (MANY, Reason.OOM),
    "files in memory": ("with open('/tmp/big', 'wb') as file:\n    while True: file.write(bytes(1 << 20))", Reason.OOM),
    "anonymous files": ("import os\nfd = os.memfd_create('x')\nwhile True: os.write(fd, bytes(1 << 20))", Reason.OOM),
}


@users
@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs(bomb: str, user: int | None, neighbour: Sandbox) -> None:
    """A bomb ends by its limit, the reason says so, it never had more, and another sandbox does not notice."""
    code, reason = BOMBS[bomb]
    done = isolib.run(python(code), cwd="/tmp", memory="48M", swap=None, pids=30, user=user, timeout=120)
    assert done.exit.reason is reason, done
    assert done.returncode != 0
    for peak, most in ((done.usage.memory_peak, 50 << 20), (done.usage.pids_peak, 30)):  # who is dying may go a little beyond
        assert peak is not None
        assert peak <= most


def test_fork_bomb_ends_with_its_time() -> None:
    """A fork bomb that never gives up is ended with all that it is, by the wall limit."""
    code = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    done = isolib.run(python(code), cwd="/tmp", memory="256M", pids=60, wall=1, timeout=120)
    assert done.exit.reason is Reason.TIMEOUT


# ---- names ----


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "..", ".", "/x", "a/b", "", "x\0y", "cgroup.procs", "tasks", "-\n", 5, b"x/y"]
)
def test_names_do_not_lead_elsewhere(name: object) -> None:
    """The name of a group is one new directory name, or an error before anything is made."""
    with pytest.raises(isolib.PlanError):
        isolib.new_cgroup(name=name)  # type: ignore[arg-type]
    with isolib.new_cgroup() as group, pytest.raises(isolib.PlanError):
        group.child(name)  # type: ignore[arg-type]


@pytest.mark.parametrize("file", ["../cgroup.procs", "/etc/passwd", "memory.max/../../cgroup.procs", "x\0y", ""])
def test_raw_files_are_the_groups_own(file: str) -> None:
    """read and write take the name of a file of the group, and no path."""
    with isolib.new_cgroup() as group:
        with pytest.raises(isolib.PlanError, match="not the name of a control file"):
            group.read(file)
        with pytest.raises(isolib.PlanError, match="not the name of a control file"):
            group.write(file, "1")
