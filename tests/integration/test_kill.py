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
program, delays = sys.argv[1], json.loads(sys.argv[2])
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
    host = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert host.stdout.readline() == b"ready\\n"
    time.sleep(delay)
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
    left.extend(map(str, surroundings() - before))
print(json.dumps(left))
"""

OWN_PROC = 'mount -t proc proc /proc && exec "$0" "$@"'


@pytest.mark.slow
@pytest.mark.parametrize("body", BODIES)
def test_nothing_survives_the_host(body: str, tmp_path: Path) -> None:
    """One second after the host was killed at each of 50 points nothing of it is left."""
    delays = [0.0007 * point for point in range(50)]
    warm = 'isolib.run(["true"])' if body in {"run", "sandbox"} else 'isolib.spawn(["true"]).close()'
    program = HOST.format(body=BODIES[body], warm=warm)
    argv = ["sh", "-c", OWN_PROC, sys.executable, "-c", DRIVER, program, json.dumps(delays)]
    new = {"pid", "mnt"} if os.geteuid() == 0 else {"user", "pid", "mnt"}
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with isolib.spawn(argv, new=new, cwd=tmp_path, env=env, stdout=isolib.PIPE, stderr=isolib.PIPE) as driver:
        out, err = driver.communicate(timeout=600)
        assert driver.wait().code == 0, (err or b"").decode()
    assert json.loads(out or b"") == []
    assert list(tmp_path.iterdir()) == []
