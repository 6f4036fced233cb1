"""What the default sandbox keeps from its command, tried from inside."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import isolib
from isolib import Sandbox


def inside(script: str, **fields: object) -> str:
    """Run a shell script in a sandbox and return all that it printed."""
    done = isolib.run(["sh", "-c", script], timeout=60, **fields)  # type: ignore[arg-type]
    return (done.stdout + done.stderr).decode()


def test_every_namespace_is_new() -> None:
    """None of the seven is the host's."""
    kinds = ("pid", "net", "ipc", "mnt", "uts", "user", "cgroup")
    seen = inside("for k in pid net ipc mnt uts user cgroup; do readlink /proc/self/ns/$k; done").split()
    host = [os.readlink(f"/proc/self/ns/{kind}") for kind in kinds]
    assert len(seen) == len(kinds)
    assert not set(seen) & set(host)


def test_no_capability_and_none_to_gain() -> None:
    """Every capability set is empty, the bounding set too, and no_new_privs is on."""
    status = dict(line.split(":", 1) for line in inside("cat /proc/self/status").splitlines() if ":" in line)
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert status["NoNewPrivs"].strip() == "1"


def test_root_inside_is_nobody_outside() -> None:
    """Root's sandbox owns nothing outside; an ordinary user's is the user."""
    with Sandbox() as box, box.popen(["sleep", "60"]) as process:
        outside = process.psutil().uids().real
    if os.geteuid() == 0:
        assert outside >= 65536
    else:
        assert outside == os.geteuid()


def test_what_only_root_may_read_stays_unreadable() -> None:
    """/etc/shadow and the files of root's home are closed, also when root starts the sandbox."""
    out = inside("cat /etc/shadow; ls -A /root /home /run")
    assert "Permission denied" in out
    assert "root:" not in out.replace("/root:", "")
    assert ".ssh" not in out


@pytest.mark.parametrize("path", ["/usr/x", "/etc/x", "/x", "/var/x", "/opt/x"])
def test_host_files_are_read_only(path: str) -> None:
    """Writing to the host's tree fails, and the host has nothing new."""
    out = inside(f"echo 1 > {path}")
    assert "Read-only file system" in out or "Permission denied" in out or "nonexistent" in out
    assert not Path(path).exists()


def test_only_loopback() -> None:
    """There is one interface, lo, and it is up."""
    out = inside("cat /proc/net/dev")
    names = [line.split(":")[0].strip() for line in out.splitlines() if ":" in line]
    assert names == ["lo"]
    assert inside("python3 -c 'import socket; socket.create_server((\"127.0.0.1\", 1)); print(1)'").strip() == "1"


def test_host_processes_are_invisible() -> None:
    """ps sees its own; kill reaches nobody else."""
    pids = [word for word in inside("ls /proc").split() if word.isdigit()]
    assert 1 <= len(pids) <= 4
    with isolib.spawn(["sleep", "1000"]) as process:
        assert "No such process" in inside(f"kill -9 {process.pid} 2>&1")
        assert process.poll() is None


def test_command_cannot_reach_its_supervisor() -> None:
    """kill(-1) ends what is inside; how the command ended is known all the same, and the wall limit holds."""
    with Sandbox(wall=1) as box:
        assert box.run(["sh", "-c", "kill -9 -1; exit 5"]).exit.code == 5
        assert box.run(["sh", "-c", "kill -9 -1; sleep 1000"]).exit.reason is isolib.Reason.TIMEOUT
    done = isolib.run(["sh", "-c", "kill -9 -1; exit 6"])
    assert done.exit.code == 6


def test_environment_of_the_host_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the command's environment nor in that of PID 1."""
    monkeypatch.setenv("SECRET_OF_THE_HOST", "canary-in-environment")
    out = inside("env; cat /proc/*/environ | tr '\\0' '\\n'")
    assert "canary" not in out


def test_memory_of_the_host_is_not_there() -> None:
    """A canary in the host's heap is found nowhere in the memory of the sandbox's processes that can be read."""
    canary = b"canary-" + os.urandom(16).hex().encode()
    # It looks for the form and knows the digest only, so that it does not find what it was told.
    program = f"""
import hashlib, re, sys
form = re.compile(("canary" + chr(45)).encode() + b"[0-9a-f]" * 32)
scanned = 0
for pid in (1, "self"):
    try:
        lines = open(f"/proc/{{pid}}/maps").readlines()
        memory = open(f"/proc/{{pid}}/mem", "rb", buffering=0)
    except OSError:
        continue
    for line in lines:
        low, high = (int(part, 16) for part in line.split()[0].split("-"))
        try:
            memory.seek(low)
            data = memory.read(high - low)
        except (OSError, ValueError, OverflowError):
            continue
        scanned += len(data)
        for found in form.findall(data):
            if hashlib.sha256(found).hexdigest() == {hashlib.sha256(canary).hexdigest()!r}:
                print("found in", pid, line)
print("scanned", scanned > 1000000)
"""
    done = isolib.run(["python3", "-c", program], timeout=120)
    assert done.stdout == b"scanned True\n", done.stderr
    assert canary.startswith(b"canary-")


def test_sysctls_are_read_only() -> None:
    """/proc/sys cannot be written, core_pattern least of all."""
    before = Path("/proc/sys/kernel/core_pattern").read_bytes()
    assert "nonexistent" in inside("echo x > /proc/sys/kernel/core_pattern || echo nonexistent")
    assert Path("/proc/sys/kernel/core_pattern").read_bytes() == before


def test_descriptors_are_the_three(tmp_path: Path) -> None:
    """An open directory of the host does not leak, even when it is inheritable."""
    fd = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(fd, True)  # noqa: FBT003 - its only form
    try:
        assert set(inside("ls /proc/self/fd").split()) == {"0", "1", "2", "3"}  # 3 is ls's own
    finally:
        os.close(fd)


def test_launcher_cannot_be_written_from_inside() -> None:
    """/proc/1/exe is no file of the host, and cannot be opened."""
    out = inside("head -c 4 /proc/1/exe; echo x > /proc/1/exe; ls -l /proc/1/exe /proc/1/fd; true")
    assert "ELF" not in out
    assert "python" not in out


def test_hostname_is_its_own() -> None:
    """The sandbox's name is its own and so is a given one."""
    assert inside("hostname").strip() == "sandbox"
    assert inside("hostname", hostname="judge-7").strip() == "judge-7"


def test_host_network_is_only_there_when_asked_for() -> None:
    """network="host" shares the network namespace, and only that."""
    assert inside("readlink /proc/self/ns/net", network="host").strip() == os.readlink("/proc/self/ns/net")
    assert inside("readlink /proc/self/ns/ipc", network="host").strip() != os.readlink("/proc/self/ns/ipc")


INTERRUPTED = """
import isolib
isolib.run(["true"])
print("up", flush=True)
try:
    isolib.run(["sh", "-c", "sleep 1000"])
except KeyboardInterrupt:
    print("interrupted")
"""


def test_sandbox_dies_with_an_interrupt() -> None:
    """Ctrl-C in the host ends the sandbox and raises KeyboardInterrupt there."""
    with isolib.spawn([sys.executable, "-c", INTERRUPTED], stdout=isolib.PIPE) as host:
        assert host.stdout is not None
        assert host.stdout.readline() == b"up\n"
        settle = subprocess.run(["sleep", "1"], check=True)
        assert settle.returncode == 0
        host.send_signal(signal.SIGINT)
        assert host.stdout.readline() == b"interrupted\n"
        assert host.wait(60).code == 0


def test_audit_says_what_is_in_force() -> None:
    """audit() reads /proc from outside: new namespaces, no capability, no_new_privs."""
    with Sandbox() as box:
        found = box.audit()
    assert found["capabilities, effective"] == "0000000000000000"
    assert found["no_new_privs"] == "1"
    assert all(found[f"{kind} namespace"].startswith(f"{kind}:[") for kind in ("pid", "net", "ipc", "mnt", "uts", "user"))


def test_standard_streams_can_be_opened_by_name() -> None:
    """/dev/stdout and /dev/stderr work as files, also when root started the sandbox."""
    script = "echo out > /dev/stdout; echo err > /dev/stderr; cat /dev/stdin"
    done = isolib.run(["sh", "-c", script], input=b"in", check=True)
    assert (done.stdout, done.stderr) == (b"out\nin", b"err\n")
    with Sandbox() as box:
        done = box.run(["sh", "-c", script], input=b"in", check=True)
    assert (done.stdout, done.stderr) == (b"out\nin", b"err\n")
