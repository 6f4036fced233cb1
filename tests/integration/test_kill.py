"""kill -9 of the host at any instant leaves nothing: no process, mount, namespace or directory."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

import pytest

import isolib

if TYPE_CHECKING:
    from pathlib import Path

HOST = """
import sys, isolib
{warm}
sys.stdout.write("ready\\n"); sys.stdout.flush()
script = "sleep 1000 & setsid sleep 1000 & echo x; sleep 0.003"
while True:
    {body}
"""

BODIES = {
    "spawn": """
    with isolib.spawn(["sh", "-c", script], stdout=isolib.PIPE) as process:
        process.stdout.readline()
""",
    "namespaces": """
    kinds = ["user", "pid", "mnt", "net", "uts", "ipc", "cgroup"]
    with isolib.spawn(["sh", "-c", script], new=kinds, stdout=isolib.PIPE) as process:
        process.stdout.readline()
""",
    "run": """
    isolib.run(["sh", "-c", "sleep 1000 & setsid sleep 1000 & echo x; sleep 0.003"])
""",
    "sandbox": """
    with isolib.Sandbox() as box:
        box.popen(["sleep", "1000"])
        box.run(["sh", "-c", script])
""",
}

# It runs in a pid namespace of its own, where nobody else comes and goes.  A child subreaper adopts whatever the killed host
# leaves, wherever that has gone: what it has no more, nobody has.
DRIVER = """
import ctypes, json, os, signal, subprocess, sys, threading, time
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
program, delays, busy, device = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4]
tick = threading.Event()

def adopted():
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                break
        except ChildProcessError:
            return []
    with open("/proc/thread-self/children") as file:
        return [int(word) for word in file.read().split()]

def names():
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with open(f"/proc/{pid}/comm") as file:
            found.append(file.read().strip())
    return found

def surroundings():
    found = set(open("/proc/self/mountinfo"))
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for kind in ("mnt", "net", "pid", "user", "ipc", "uts", "cgroup"):
            try:
                found.add(os.readlink(f"/proc/{pid}/ns/{kind}"))
            except PermissionError:  # the supervisor of this driver, which shows itself to nobody
                continue
    return found

before = surroundings()
left = []
for delay in delays:
    server = os.open(device, os.O_RDWR)
    argv = [sys.executable, "-c", program, str(server)]
    host = subprocess.Popen(argv, stdout=subprocess.PIPE, pass_fds=[server])
    assert host.stdout.readline() == b"ready\\n"
    time.sleep(delay)
    if busy and busy not in names():  # everything stands still then
        left.append([delay, "it was not running", names()])
    host.kill()
    host.wait()
    host.stdout.close()
    deadline = time.monotonic() + 1
    rest = adopted()
    while rest and time.monotonic() < deadline:
        tick.wait(0.005)
        rest = adopted()
    for pid in rest:
        with open(f"/proc/{pid}/cmdline") as file:
            left.append([delay, pid, file.read()])
        os.kill(pid, signal.SIGKILL)
    os.close(server)
    left.extend(map(str, surroundings() - before))
print(json.dumps(left))
"""

OWN_PROC = 'mount -t proc proc /proc && exec "$0" "$@"'


def what_is_left(
    program: str, delays: list[float], directory: Path, *, busy: str | None = None, device: str = "/dev/null"
) -> list[object]:
    """Return what there is a second after the program was killed, with a device, at each of the delays, while `busy` ran."""
    argv = ["sh", "-c", OWN_PROC, sys.executable, "-c", DRIVER, program, json.dumps(delays), json.dumps(busy), device]
    new = {"pid", "mnt"} if os.geteuid() == 0 else {"user", "pid", "mnt"}
    env = {**os.environ, "TMPDIR": str(directory)}
    with isolib.spawn(argv, new=new, cwd=directory, env=env, stdout=isolib.PIPE, stderr=isolib.PIPE) as driver:
        out, err = driver.communicate(timeout=600)
        assert driver.wait().code == 0, (err or b"").decode()
    left = json.loads(out or b"")
    assert isinstance(left, list)
    return left


@pytest.mark.slow
@pytest.mark.parametrize("body", BODIES)
def test_nothing_survives_the_host(body: str, tmp_path: Path) -> None:
    """One second after the host was killed at each of 50 points nothing of it is left."""
    delays = [0.0007 * point for point in range(50)]
    warm = 'isolib.run(["true"])' if body in {"run", "sandbox"} else 'isolib.spawn(["true"]).close()'
    assert what_is_left(HOST.format(body=BODIES[body], warm=warm), delays, tmp_path) == []
    assert list(tmp_path.iterdir()) == []


# A set-up step that never returns, as one does whose file server is dead.  How it waits is given: opening a FIFO is left by any
# signal, looking up a name on a FUSE file system whose server says nothing only by one that kills.  The server is the driver.
BLOCKED = r"""
import ctypes, os, sys
from isolib._kernel import calls
from isolib._kernel.launch import launch
from isolib._kernel.plan import COMMAND, HOLD, HOST, INSIDE, Builder, Slot, Step

libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x20000 if os.geteuid() == 0 else 0x10020000):
    raise OSError(ctypes.get_errno(), "unshare")
os.mkdir("dead")
if {dead_server}:
    options = f"fd={{sys.argv[1]}},rootmode=40000,user_id=0,group_id=0".encode()
    if libc.mount(b"fuse", b"dead", b"fuse", 0, options):
        raise OSError(ctypes.get_errno(), "mount")
    waits = Step("OPEN_TREE", text=b"dead/x", flags=0, out=Slot("tree", declared=False))
else:
    os.mkfifo("dead/fifo")
    waits = Step("OPEN", text=b"dead/fifo", flags=os.O_RDONLY, out=Slot("file", declared=False))
builder = Builder()
builder.clone_flags = {flags}
builder.add({phase}, waits)
end = Step("EXEC", text=b"/bin/true\0", text2=b"true\0", flags=1) if {phase} == COMMAND else HOLD
plan = builder.build(end)
print("ready", flush=True)
launch(plan, builder.fds)
"""


@pytest.mark.parametrize("flags", ["0", "calls.NAMESPACE_FLAGS['pid']"])
@pytest.mark.parametrize("phase", ["HOST", "INSIDE", "COMMAND"])
@pytest.mark.parametrize("dead_server", [False, True], ids=["fifo", "fuse"])
def test_a_step_that_never_returns_does_not_survive(*, dead_server: bool, phase: str, flags: str, tmp_path: Path) -> None:
    """A launch that is held up in any of its processes ends with its host too."""
    device = "/dev/fuse" if dead_server else "/dev/null"
    if not os.access(device, os.R_OK | os.W_OK):
        pytest.skip(f"this user may not open {device}")
    program = BLOCKED.format(dead_server=dead_server, phase=phase, flags=flags)
    assert what_is_left(program, [0.3], tmp_path, busy="isolib-init", device=device) == []
