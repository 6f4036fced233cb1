"""Namespaces in namespaces: as deep as the kernel allows, in a chroot, in a sandbox, of somebody else's."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib import SetupFailed, spawn
from isolib import namespaces as ns
from tests.programs import as_host

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.usefixtures("user_namespaces")


DEEP = """
import ctypes, os
import isolib
libc = ctypes.CDLL(None, use_errno=True)
ids = os.geteuid(), os.getegid()
for level in range(40):
    if libc.unshare(0x10000000):
        break
    open("/proc/self/setgroups", "w").write("deny")
    open("/proc/self/uid_map", "w").write(f"0 {ids[0]} 1")
    open("/proc/self/gid_map", "w").write(f"0 {ids[1]} 1")
    ids = 0, 0
for attempt in (lambda: isolib.spawn(["true"], new={"user"}), lambda: isolib.run(["true"], cwd="/tmp")):
    try:
        attempt().close()
    except isolib.SetupFailed as error:
        print(error.op, error.errno, error.hint)
with isolib.spawn(["true"]) as process:
    print(process.wait().code)
"""


def test_deepest_user_namespace() -> None:
    """Where user namespaces are nested as deep as the kernel allows, the error says so; what needs none works."""
    *refused, plain = as_host(DEEP).splitlines()
    assert len(refused) == 2
    for line in refused:
        assert line.split()[1] in {str(errno.ENOSPC), str(errno.EUSERS)}
        assert "32" in line
    assert plain == "0"


def test_chroot() -> None:
    """In a chroot no user namespace can be made; the error says that, and what needs none works."""
    program = """
        import isolib
        for attempt in (lambda: isolib.spawn(["true"], new={"user"}), lambda: isolib.run(["true"], cwd="/tmp")):
            try:
                attempt().close()
            except isolib.IsolibError as error:
                print("chroot" in str(error) or str(error))
        with isolib.spawn(["true"]) as process:
            print(process.wait().code)
    """
    setup = 'mount --rbind / /mnt; exec chroot /mnt "$@"'
    out = as_host(program, "unshare", "--user", "--map-root-user", "--mount", "sh", "-ec", setup, "sh")
    assert out.splitlines() == ["True", "True", "0"]


@pytest.mark.unprivileged
def test_namespace_of_another_owner() -> None:
    """Joining a namespace from a user namespace that does not own it is an error that says whose capability it takes."""
    with closing(ns.new_userns()) as user, closing(ns.new_netns()) as net:
        with pytest.raises(SetupFailed) as caught:
            spawn(["true"], join=[user, net])
        assert (caught.value.op, caught.value.errno) == ("setns", errno.EPERM)
        assert "owns" in (caught.value.hint or "")


NESTED = """
import isolib, sys
depth = int(sys.argv[1])
if depth:
    argv = [sys.executable, "-c", open(sys.argv[2]).read(), str(depth - 1), sys.argv[2]]
    with isolib.spawn(argv, new={"user", "uts", "ipc"}, hostname=f"depth-{depth}", stdout=isolib.PIPE) as process:
        print(process.communicate(timeout=60)[0].decode(), end="")
with isolib.spawn(["uname", "-n"], stdout=isolib.PIPE) as process:
    print(process.communicate(timeout=60)[0].decode(), end="")
"""


def test_processes_nest(tmp_path: Path) -> None:
    """What isolib starts can use isolib: three levels of namespaces, each in the one before."""
    (tmp_path / "program").write_text(NESTED)
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    argv = [sys.executable, "-c", NESTED, "3", str(tmp_path / "program")]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.split() == ["depth-1", "depth-2", "depth-3", os.uname().nodename], done.stderr


IN_A_SANDBOX = """
import isolib, sys
try:
    with isolib.spawn(["sh", "-c", "exit 4"], new=set(sys.argv[1].split())) as process:
        print(process.wait(60).code)
except isolib.SetupFailed as error:
    print(error)
try:
    isolib.run(["true"], cwd="/tmp", network="host")
except isolib.SetupFailed as error:
    print(error.op, error.target, error.hint)
"""


@pytest.mark.parametrize("kinds", ["user uts ipc", "user pid mnt", "user net"])
def test_sandbox_in_a_sandbox(kinds: str) -> None:
    """In a sandbox namespaces can be made; another sandbox is refused, with the reason: its /proc cannot be a new one."""
    env = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    argv = ["python3", "-c", IN_A_SANDBOX, kinds]
    done = isolib.run(argv, cwd="/tmp", env=env, user=(1000, 1000), timeout=60)
    first, second = done.stdout.decode().splitlines()
    assert second.startswith("fsmount proc ")
    assert "nothing is mounted over" in second
    assert first == "4"
