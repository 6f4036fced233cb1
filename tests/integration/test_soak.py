"""Thousands of processes, sandboxes and failures in one host: it is afterwards what it was before."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HOST = """
import contextlib, ctypes, gc, json, os, sys, threading, warnings
import isolib
from isolib import PIPE

ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # a child subreaper: what nobody reaps is found
warnings.simplefilter("ignore", ResourceWarning)
ALL = {"user", "pid", "mnt", "net", "ipc", "uts", "cgroup", "time"}
user = os.geteuid()

def expect(kind, call, *arguments, **options):
    try:
        call(*arguments, **options)
    except kind:
        return
    raise AssertionError(f"no {kind}")

def plain():
    with isolib.spawn(["sh", "-c", "exit 7"]) as process:
        assert process.wait(60).code == 7

def pipes():
    with isolib.spawn(["cat"], stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
        assert process.communicate(b"x" * 100_000, 60)[0] == b"x" * 100_000

def files():
    with isolib.spawn(["sh", "-c", "echo one; cat"], stdin=PIPE, stdout=PIPE, new={"user"}) as process:
        assert process.stdout.readline() == b"one\\n"
        process.stdin.write(b"two\\n")
        assert process.communicate(timeout=60)[0] == b"two\\n"

def everything():
    with isolib.spawn(["true"], new=ALL, hostname="soak", cwd="/", rlimits={7: 64}, pty=True) as process:
        assert process.wait(60).code == 0

def terminal():
    with isolib.spawn(["cat"], pty=True) as process:
        process.terminal.write(b"x\\n")
        process.terminal.read(1)

def killed():
    with isolib.spawn(["sh", "-c", "sleep 100 & sleep 100"], new={"user", "pid"}) as process:
        process.kill()
        assert process.wait(60).reason is isolib.Reason.KILLED

def abandoned():
    with isolib.spawn(["sleep", "100"]):
        pass

def late():
    with isolib.spawn(["sleep", "100"]) as process:
        expect(isolib.SandboxTimeout, process.wait, 0.001)

def refused():
    expect(isolib.PlanError, isolib.spawn, [])
    expect(isolib.PlanError, isolib.spawn, ["true"], new={"nonsense"})
    expect(isolib.SetupFailed, isolib.spawn, ["/nonexistent"], stdin=PIPE, stdout=PIPE)
    expect(isolib.SetupFailed, isolib.spawn, ["true"], cwd="/nonexistent", new=ALL, pty=True)

def run():
    assert isolib.run(["cat"], input=b"x").stdout == b"x"

def failed_run():
    expect(isolib.SetupFailed, isolib.run, ["/nonexistent"])
    expect(isolib.CommandFailed, isolib.run, ["false"], check=True)

def late_run():
    expect(isolib.SandboxTimeout, isolib.run, ["sleep", "100"], timeout=0.001)

def flood():
    assert isolib.run(["yes"], output=1000).exit.reason is isolib.Reason.LIMIT

def sandbox():
    with isolib.Sandbox() as box:
        assert box.run(["true"]).returncode == 0
        box.popen(["sleep", "100"])

def many():
    threads = [threading.Thread(target=plain) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()

def joined():
    with isolib.spawn(["sh", "-c", "echo; exec sleep 100"], new={"user", "net"}, stdout=PIPE) as other:
        other.stdout.readline()
        with contextlib.ExitStack() as stack:
            handles = [stack.enter_context(open(f"/proc/{other.pid}/ns/{kind}")) for kind in ("user", "net")]
            with isolib.spawn(["true"], join=handles) as process:
                assert process.wait(60).code == 0

MIX = [plain, pipes, files, everything, terminal, killed, abandoned, late, refused, run, failed_run, late_run, flood, sandbox,
       many, joined, run, plain, pipes, everything]

def census():
    gc.collect()
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    lines = {}
    for name in ("maps", "mountinfo"):
        with open(f"/proc/self/{name}") as file:
            lines[name] = len(file.readlines())
    children = []
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/children") as file:
            children += file.read().split()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")), "tasks": len(os.listdir("/proc/self/task")),
        "threads": threading.active_count(), "children": len(children), "resident": resident, **lines,
    }

def go(count):
    for turn in range(count):
        MIX[turn % len(MIX)]()

go(200)  # until caches are full and pools have their size
before = census()
go(int(sys.argv[1]))
print(json.dumps([before, census()]))
"""

TURNS = 2000


@pytest.mark.slow
def test_soak(user_namespaces: None) -> None:
    """After 2,000 processes, sandboxes and failures: the same descriptors, threads, children, mounts; no memory lost."""
    done = subprocess.run([sys.executable, "-c", HOST, str(TURNS)], capture_output=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr.decode()
    before, after = json.loads(done.stdout)
    for name in ("descriptors", "threads", "tasks", "children", "mountinfo"):
        assert before[name] == after[name], (name, before, after)
    # The allocators of C and Python hold back some: much less than a page, or a mapping, for each of so many turns.
    assert after["maps"] < before["maps"] + TURNS // 50
    assert after["resident"] < before["resident"] + TURNS * 2048
