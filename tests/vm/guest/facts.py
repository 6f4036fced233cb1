"""What a guest is, looked at from inside. Run by `test_kernels.py` there; not named as a test, since on the host it fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import isolib
from isolib._kernel.procfs import parse_cgroup, parse_mountinfo
from tests.examined import in_new_net
from tests.vm.kernels import KERNELS
from tests.vm.machine import ACCOUNT, ACCOUNT_ID

KERNEL = KERNELS[os.environ["ISOLIB_VM"]]
IS_USER = os.environ["USER"] == ACCOUNT
IS_SYSTEMD = bool(os.environ["ISOLIB_VM_SYSTEMD"])
GROUPS = Path("/sys/fs/cgroup")


def own_group() -> str:
    """Return the path of this process's group."""
    (entry,) = parse_cgroup(Path("/proc/self/cgroup").read_bytes())
    return entry.path


def test_the_kernel_is_another_one() -> None:
    """The guest's kernel is not the host's."""
    assert os.uname().release != os.environ["HOST_RELEASE"]


def test_isolib_is_the_installed_one() -> None:
    """What is imported is the environment's isolib, with its compiled part, not the checkout's."""
    assert Path(isolib.__path__[0]).is_relative_to(sys.prefix)
    with isolib.spawn(["echo", "here"], stdout=isolib.PIPE) as process:
        assert process.communicate() == (b"here\n", None)


def test_the_only_cgroups_are_those_of_version_2() -> None:
    """Of all cgroup file systems there is one, version 2, in its usual place."""
    mounts = parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())
    groups = [(mount.fs_type, mount.mount_point) for mount in mounts if mount.fs_type.startswith("cgroup")]
    assert groups == [("cgroup2", os.fspath(GROUPS))]


def test_controllers_are_those_that_the_kernel_is_chosen_for() -> None:
    """The root cgroup offers exactly what the table of kernels says."""
    assert frozenset((GROUPS / "cgroup.controllers").read_text(encoding="ascii").split()) == KERNEL.controllers


def test_pressure_is_measured_where_the_table_says() -> None:
    """The kernel has /proc/pressure or not, as the table says."""
    assert os.path.exists("/proc/pressure/memory") == KERNEL.pressure


def test_there_is_netem() -> None:
    """The kernel has what emulates bad networks, by tc's account."""
    assert in_new_net("exec tc qdisc add dev lo root netem")


def test_command_runs_as_the_one_asked_for() -> None:
    """User, group, supplementary groups and home directory are those of root or of the ordinary user."""
    expected = ACCOUNT_ID if IS_USER else 0
    assert (os.getuid(), os.geteuid(), os.getgid(), os.getgroups()) == (expected, expected, expected, [expected])
    assert os.stat(os.environ["HOME"]).st_uid == expected


def test_command_is_in_its_group() -> None:
    """The command's group is the root, a leaf of a delegated one, or where systemd puts services and sessions."""
    match IS_SYSTEMD, IS_USER:
        case False, False:
            assert own_group() == "/"
        case False, True:
            assert own_group() == "/delegated/leaf"
        case True, False:
            assert own_group() == "/system.slice/vm.service/leaf"
        case _:
            assert own_group().startswith(f"/user.slice/user-{ACCOUNT_ID}.slice/session-")


def test_the_group_above_can_be_used() -> None:
    """Beside the leaf, a group can be made, have every controller that is delegated, and take a process."""
    if IS_SYSTEMD and IS_USER:
        pytest.skip("a session has no such group; the service manager gives one, which the next test asks")
    parent = (GROUPS / own_group().lstrip("/")).parent if own_group() != "/" else GROUPS
    for name in (parent / "cgroup.controllers").read_text(encoding="ascii").split():
        (parent / "cgroup.subtree_control").write_text(f"+{name}", encoding="ascii")
    group = parent / "isolib-facts"
    group.mkdir()
    try:
        there, here = (one / "cgroup.controllers" for one in (group, parent))
        assert there.read_text(encoding="ascii") == here.read_text(encoding="ascii")
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
            (group / "cgroup.procs").write_text(str(process.pid), encoding="ascii")
            assert (group / "cgroup.procs").read_text(encoding="ascii").split() == [str(process.pid)]
    finally:
        group.rmdir()


def test_the_first_process_is_systemd_only_where_asked_for() -> None:
    """Under systemd, its services have started, the ordinary user's manager has too, and gives him delegated scopes."""
    assert (Path("/proc/1/comm").read_text(encoding="ascii") == "systemd\n") == IS_SYSTEMD
    if not IS_SYSTEMD:
        return
    assert Path(f"/run/user/{ACCOUNT_ID}/bus").is_socket()
    scope = ["systemd-run", "--scope", "-q", "-p", "Delegate=yes", "cat", "/proc/self/cgroup"]
    if IS_USER:
        scope.insert(1, "--user")
    group = subprocess.run(scope, check=True, capture_output=True, text=True, timeout=60).stdout
    assert group.startswith(f"0::/user.slice/user-{ACCOUNT_ID}.slice/user@" if IS_USER else "0::/system.slice/run-")
