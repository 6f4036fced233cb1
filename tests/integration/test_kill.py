"""kill -9 of the host at any instant leaves nothing: no process, mount, namespace or directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
    with isolib.spawn(["sh", "-c", script], new={"user", "pid", "mnt", "net", "uts", "ipc", "cgroup"}, stdout=isolib.PIPE) as process:
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

# A child subreaper adopts whatever the killed host leaves, wherever it has gone: what it has no more, nobody has.
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
print(json.dumps(left))
"""


def namespaces() -> set[str]:
    """Return every namespace that some process on this host is in."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            for kind in ("mnt", "net", "pid", "user"):
                try:
                    found.add(os.readlink(entry / "ns" / kind))
                except OSError:
                    continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("body", BODIES)
def test_nothing_survives_the_host(body: str, tmp_path: Path) -> None:
    """One second after the host was killed at each of 50 points nothing of it is left."""
    work = tmp_path / "work"
    work.mkdir(mode=0o755)
    before = (namespaces(), Path("/proc/self/mountinfo").read_bytes(), set(os.listdir("/tmp")), list(work.iterdir()))
    delays = [0.0007 * point for point in range(50)]
    warm = 'isolib.run(["true"])' if body in {"run", "sandbox"} else 'isolib.spawn(["true"]).close()'
    program = HOST.format(body=BODIES[body], warm=warm)
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, program, json.dumps(delays)], capture_output=True, timeout=600, check=False, cwd=work
    )
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout) == []
    after = (namespaces(), Path("/proc/self/mountinfo").read_bytes(), set(os.listdir("/tmp")), list(work.iterdir()))
    assert after[0] - before[0] == set()
    assert after[1:2] == before[1:2]
    assert after[3] == before[3]
