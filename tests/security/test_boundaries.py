"""Boundaries and invariants of SECURITY.md that no other test tries."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from pathlib import Path

import pytest

import isolib
from isolib import PIPE, Sandbox
from isolib.mounts import Bind, Root

CONNECT = """
import socket, sys
with socket.socket(socket.AF_UNIX) as client:
    try:
        client.connect(chr(0) + sys.argv[1])
    except OSError as error:
        print(type(error).__name__)
    else:
        print("connected")
"""

IN_A_TERMINAL = """
import isolib, os, sys
os.close(os.open("/dev/tty", os.O_RDWR))  # this host has a terminal
inner = "import os; os.open('/dev/tty', os.O_RDWR)"
done = isolib.run([sys.executable, "-I", "-S", "-c", inner], cwd="/tmp")
print("ENXIO" if b"No such device or address" in done.stderr else done, flush=True)
"""


def fields(pid: int) -> dict[str, str]:
    """Return what /proc/PID/status says."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    return {name: value.strip() for name, value in (line.split(":", 1) for line in lines if ":" in line)}


def test_abstract_sockets_do_not_cross() -> None:
    """An abstract socket that a program on the host listens at is not there in the sandbox."""
    name = f"isolib-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0{name}")
        server.listen()
        with isolib.spawn([sys.executable, "-I", "-S", "-c", CONNECT, name], stdout=PIPE) as outside:
            assert outside.communicate()[0] == b"connected\n"
        inside = isolib.run([sys.executable, "-I", "-S", "-c", CONNECT, name], cwd="/tmp", check=True)
    assert inside.stdout == b"ConnectionRefusedError\n"


def test_terminal_of_the_host_does_not_cross() -> None:
    """A command whose host has a terminal has none, so there is nothing to type into."""
    with isolib.spawn([sys.executable, "-c", IN_A_TERMINAL], pty=True) as host:
        assert host.terminal is not None
        assert host.terminal.read(100).strip() == b"ENXIO"
        assert host.wait(60).code == 0


@pytest.mark.parametrize(
    "place", ["/proc/self/fd/{fd}", "/proc/{pid}/fd/{fd}", "/dev/fd/{fd}", "/proc/self/cwd", "/proc/{pid}/root"]
)
def test_magic_links_are_no_working_directory(place: str) -> None:
    """A directory of the host that a link of /proc leads to is refused, wherever the link is found."""
    fd = os.open("/etc", os.O_RDONLY)
    os.set_inheritable(fd, True)  # noqa: FBT003 - its only form
    try:
        path = place.format(fd=fd, pid=os.getpid())
        with pytest.raises(isolib.IsolibError):
            isolib.run(["true"], cwd=path)
        with pytest.raises(isolib.IsolibError):
            isolib.run(["true"], cwd=path, writable="none")
    finally:
        os.close(fd)


def test_links_of_a_hostile_tree_do_not_lead_out(tmp_path: Path) -> None:
    """A mount whose target is a link out of the root lands within the root, and the host is untouched."""
    outside = tmp_path / "outside"
    tree = tmp_path / "tree"
    for directory in (outside, tree, tree / "sub"):
        directory.mkdir()
    (tree / "sub" / "absolute").symlink_to(outside)
    (tree / "sub" / "dots").symlink_to("../" * 20 + str(outside).lstrip("/"))
    for link in ("absolute", "dots"):
        mounts = [Bind("/usr", "/usr"), Bind("/etc", f"/sub/{link}/made")]
        with pytest.raises(isolib.IsolibError):  # what the link names does not exist in the root, which cannot be written
            isolib.run(["true"], root=Root.tree(tree), mounts=mounts)
        with pytest.raises(isolib.IsolibError):  # and making it would take a directory through a link that dangles
            isolib.run(["true"], root=Root.tree(tree, writable=True), mounts=mounts)
    assert list(outside.iterdir()) == []


def test_supervisor_has_but_the_right_to_kill() -> None:
    """Beside hostile code it has no capability but CAP_KILL, cannot gain any, and is nobody's to trace."""
    with Sandbox(cwd="/tmp") as box, box.popen(["sleep", "60"]) as process:
        supervisor = process.psutil().ppid()
        found = fields(supervisor)
        assert int(found["CapEff"], 16) | 1 << 5 == 1 << 5
        assert int(found["CapPrm"], 16) | 1 << 5 == 1 << 5
        assert int(found["CapInh"], 16) == int(found["CapAmb"], 16) == 0
        assert found["NoNewPrivs"] == "1"
        assert os.stat(f"/proc/{supervisor}/status").st_uid == 0  # not dumpable: its files in /proc belong to root


COVERS = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def attempt(what, result):
    print(what, "done" if result == 0 else os.strerror(ctypes.get_errno()))
attempt("umount", libc.umount2(b"/sys", 2))
uid = os.geteuid()
if libc.unshare(0x10000000 | 0x00020000) == 0:
    open("/proc/self/setgroups", "w").write("deny")
    open("/proc/self/uid_map", "w").write(f"0 {uid} 1")
    for place in (b"/sys", b"/tmp", b"/proc/sys", b"/home"):
        attempt("nested umount", libc.umount2(place, 2))
    attempt("nested remount", libc.mount(b"none", b"/usr", None, 4096 | 32, None))
    attempt("nested remount", libc.mount(b"none", b"/", None, 4096 | 32, None))
print(os.path.exists("/sys/fs"), os.path.exists("/sys/kernel"))
"""


def test_covers_stay_on() -> None:
    """What hides the host is not taken off, nor made writable: not as it is, and not as root of a namespace of its own."""
    done = isolib.run(["python3", "-c", COVERS], cwd="/", timeout=60)
    lines = done.stdout.decode().splitlines()
    assert lines, done.stderr.decode()
    assert not [line for line in lines if line.endswith("done")]
    assert lines[-1] == "False False"
