"""doctor() where something is refused: provoked for real, and the one who refuses is named."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isolib.support import Feature, doctor
from tests.examined import NO_NEW_PRIVS, PACKAGE, SCRIPT, SYSTEM_PATH, examined, filtered, inside
from tests.groups import parents
from tests.seccomp import Denied

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from isolib.support import Report
    from tests.conftest import Account

ROOT = os.geteuid() == 0

needs_user_namespace = pytest.mark.usefixtures("user_namespaces")


@pytest.fixture(scope="module", autouse=True)
def report() -> Report:
    """What doctor() finds here; with what the first launch of a process opens for the life of it."""
    return doctor()


@needs_user_namespace
def test_limit_on_user_namespaces_is_named() -> None:
    """user.max_user_namespaces = 0 refuses every user namespace, and is what is named; others can still be made."""
    found = inside("echo 0 >/proc/sys/user/max_user_namespaces")
    for name in ("user namespace", "user+net namespaces", "overlay in user namespace", "tmpfs xattr"):
        assert not found[name], name
        assert found[name].refused_by == "user.max_user_namespaces = 0", found[name]
        assert found[name].remedy.startswith("sysctl -w user.max_user_namespaces="), found[name]
    assert found["net namespace"]
    assert found["uts namespace"]


@needs_user_namespace
def test_limit_on_network_namespaces_is_named() -> None:
    """user.max_net_namespaces = 0 refuses network namespaces and all that needs one, and nothing else."""
    found = inside("echo 0 >/proc/sys/user/max_net_namespaces")
    for name in ("net namespace", "user+net namespaces", "veth", "netem", "nftables", "tun"):
        assert not found[name], name
        assert found[name].refused_by == "user.max_net_namespaces = 0", found[name]
        assert found[name].remedy.startswith("sysctl -w user.max_net_namespaces="), found[name]
        assert "ENOSPC" in found[name].reason, found[name]
    assert found["user namespace"]
    assert found["mnt namespace"]


@needs_user_namespace
def test_limit_on_time_namespaces_is_named() -> None:
    """The same for a kind that is unshared, not cloned."""
    found = inside("echo 0 >/proc/sys/user/max_time_namespaces")
    assert found["time namespace"].refused_by == "user.max_time_namespaces = 0"
    assert found["user+time namespaces"].refused_by == "user.max_time_namespaces = 0"


def test_filter_that_denies_clone3_is_told_from_an_old_kernel(report: Report) -> None:
    """A filter that answers ENOSYS is named for what only clone3 can do; everything else works by clone."""
    found = filtered(Denied("clone3", errno.ENOSYS))
    assert found["clone3"].refused_by == "a seccomp filter in force"
    assert "seccomp" in found["clone3"].remedy
    assert not found["CLONE_INTO_CGROUP"]
    if report["CLONE_INTO_CGROUP"]:
        assert found["CLONE_INTO_CGROUP"].refused_by == "a seccomp filter in force"
    assert found["launcher"]
    assert not found["unconfined caller"]
    for name in ("net namespace", "user+net namespaces", "overlay", "veth"):
        assert found[name].available == report[name].available, name


def test_filter_that_denies_mounting_is_named() -> None:
    """A filter that answers EPERM to fsopen refuses all file systems, to one who has every capability he needs."""
    found = filtered(Denied("fsopen", errno.EPERM))
    for name in ("fsopen", "procfs", "overlay in user namespace"):
        assert not found[name]
        assert found[name].refused_by == "a seccomp filter in force", found[name]
    assert not found["kernel"]
    assert "fsopen" in found["kernel"].reason


def test_filter_that_denies_new_namespaces_is_named() -> None:
    """A filter that answers EPERM to clone3 and clone, as those of container engines do, leaves nothing that is launched."""
    found = filtered(Denied("clone3", errno.EPERM))
    assert found["clone3"].refused_by == "a seccomp filter in force"
    assert found["user namespace"].refused_by == "a seccomp filter in force", found["user namespace"]
    assert not found["launcher"]


def test_no_new_privs_of_the_caller_is_named(report: Report) -> None:
    """It is told, and is what refuses id ranges to an ordinary user, whose programs for them are setuid."""
    found = examined(before=NO_NEW_PRIVS)
    assert found["unconfined caller"].refused_by.startswith("no_new_privs")
    if not ROOT and report["id ranges"]:
        assert found["id ranges"].refused_by.startswith("no_new_privs")


@needs_user_namespace
def test_user_namespace_of_one_id_has_no_ranges() -> None:
    """Root of a user namespace that maps one id has no second to give away."""
    found = inside(":")
    assert not found["id ranges"]
    assert "maps one id" in found["id ranges"].refused_by


@pytest.mark.root
def test_user_without_a_range_is_told_the_command(ordinary_user: Account) -> None:
    """Nobody has no range in /etc/subuid, which is named with the command that gives him one."""
    found = examined_as(ordinary_user)
    assert not found["id ranges"]
    assert found["id ranges"].refused_by == "/etc/subuid and /etc/subgid: no range for nobody"
    command = re.fullmatch(
        r"usermod --add-subuids (\d+)-(\d+) --add-subgids (\d+)-(\d+) nobody, as root", found["id ranges"].remedy
    )
    assert command
    start, end = int(command[1]), int(command[2])
    assert end - start == 65535
    for line in Path("/etc/subuid").read_text().splitlines():
        _, other, count = line.split(":")
        assert end < int(other) or start >= int(other) + int(count)


@pytest.mark.root
def test_ordinary_user_lacks_what_root_has(report: Report, ordinary_user: Account) -> None:
    """For nobody, what takes a capability is refused for it, and what a user namespace gives is there all the same."""
    found = examined_as(ordinary_user)
    ids = ["id-mapped mounts"] if report["mount_setattr"] else []
    for name in ("net namespace", "overlay", "CAP_SYS_ADMIN", *ids):
        assert found[name].refused_by == "missing capability CAP_SYS_ADMIN", found[name]
    assert not found["cgroup delegation"]
    assert "missing delegation" in found["cgroup delegation"].refused_by
    for name in ("user+net namespaces", "overlay in user namespace", "veth", "nftables", "procfs"):
        assert found[name].available == report[name].available, found[name]


NEEDED = """
import sys
sys.path.insert(0, sys.argv[1])
import _cffi_backend
open(sys.argv[1] + "/isolib/__init__.py").close()
"""
"""Ends well where who runs it can read isolib, and this Python can load what that is linked with."""


def examined_as(user: Account) -> dict[str, Feature]:
    """Return what doctor() finds as a user, with a Python that he can run."""
    for python in (sys.executable, shutil.which("python3", path="/usr/bin")):
        if python is not None:
            with suppress(PermissionError):
                env = {"PATH": SYSTEM_PATH}
                if user.run([python, "-c", NEEDED, PACKAGE], env=env, cwd="/").returncode == 0:
                    done = user.run([python, "-c", SCRIPT, PACKAGE], env=env, cwd="/")
                    assert done.returncode == 0, done.stderr
                    return {values[0]: Feature(*values) for values in json.loads(done.stdout)}
    pytest.skip(f"no Python here that uid {user.uid} can run with isolib")


@needs_user_namespace
def test_covered_proc_is_named() -> None:
    """Where a part of /proc is covered, as in a container, no new procfs can be made, and the cover is named."""
    # In the user namespace that covers it the cover could be taken off again; in the next it is locked.
    script = 'mount --bind /dev/null /proc/version; exec unshare -Ur --mount "$@"'
    found = examined("unshare", "-Ur", "--mount", "sh", "-ec", script, "sh")
    assert not found["procfs"]
    assert "/proc/version" in found["procfs"].refused_by
    assert "EPERM" in found["procfs"].reason


@needs_user_namespace
def test_host_without_proc_is_told() -> None:
    """Where procfs is not mounted nothing can be launched or known of the caller, and that is why."""
    found = inside("mount -t tmpfs tmpfs /proc", "--mount")
    for name in ("launcher", "user namespace", "veth", "capabilities", "unconfined caller", "kernel"):
        assert not found[name]
        assert found[name].refused_by == "nobody: procfs is not mounted at /proc", found[name]
    assert found["clone3"]


@pytest.mark.parametrize("limit", [8, 11, 14])
def test_want_of_descriptors_is_told(limit: int) -> None:
    """With too few descriptors nothing is raised, and features that could not be tried say so."""
    code = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))\n"
    found = examined(before=f"from isolib.support import doctor\n{code}")
    refusals = {feature.refused_by for feature in found.values()}
    assert "RLIMIT_NOFILE of the caller: all descriptors are in use" in refusals
    assert not any("did not expect" in refusal for refusal in refusals)


@needs_user_namespace
def test_chroot_is_named(tmp_path: Path) -> None:
    """A user namespace is refused to a process in a chroot, and the chroot is named."""
    script = [f"cd {tmp_path}", "mkdir tmp; mount --rbind /tmp tmp"]
    for path in sorted(Path("/").iterdir()):
        if path.is_symlink():
            script.append(f"ln -s {os.readlink(path)} {path.name}")
        elif path.is_dir() and path.name not in ("tmp", "lost+found"):
            script.append(f"mkdir {path.name}; mount --rbind {path} {path.name}")
    found = examined("unshare", "-Ur", "--mount", "sh", "-ec", "\n".join([*script, f'exec chroot {tmp_path} "$@"']), "sh")
    assert not found["user namespace"]
    assert "chroot" in found["user namespace"].refused_by, found["user namespace"]
    assert found["uts namespace"]


@pytest.mark.root  # the file belongs to the host's root
@needs_user_namespace
def test_policy_against_memory_files_is_named() -> None:
    """vm.memfd_noexec = 2 of the pid namespace refuses to execute memory files; the installed launcher runs instead."""
    if not Path("/proc/sys/vm/memfd_noexec").exists():
        pytest.skip("this kernel has no vm.memfd_noexec")
    found = inside("echo 2 >/proc/sys/vm/memfd_noexec", "--pid", "--fork", "--mount-proc")
    assert not found["memfd exec"]
    assert found["memfd exec"].refused_by == "vm.memfd_noexec = 2"
    assert found["launcher"]
    assert found["user+net namespaces"]


@needs_user_namespace
def test_hidden_device_is_named() -> None:
    """Without /dev/net/tun there is no tun, and the file is named."""
    found = inside("[ ! -d /dev/net ] || mount -t tmpfs tmpfs /dev/net", "--mount")
    assert not found["tun"]
    assert "/dev/net/tun" in found["tun"].reason
    assert "ENOENT" in found["tun"].reason


@pytest.mark.root
def test_dropped_capability_is_named(report: Report) -> None:
    """Root without CAP_NET_ADMIN makes a network namespace and can do nothing in it."""
    found = examined("setpriv", "--bounding-set=-net_admin")
    assert found["CAP_NET_ADMIN"].refused_by == "missing capability CAP_NET_ADMIN"
    assert found["net namespace"].available == report["net namespace"].available
    assert not found["veth"]
    assert found["veth"].refused_by == "missing capability CAP_NET_ADMIN", found["veth"]
    assert "CAP_NET_ADMIN" in found["capabilities"].reason or not found["capabilities"]


@pytest.mark.root
def test_read_only_cgroups_are_named(report: Report) -> None:
    """Where cgroupfs is mounted read-only, as in a container, no group can be made, and that is why."""
    group = parents(version=2)[0]
    assert report["cgroup delegation"].available
    assert report["cgroup delegation"].reason == group
    top = next(line.split()[4] for line in mounts_of("cgroup2") if group.startswith(line.split()[4]))
    found = examined("unshare", "--mount", "sh", "-ec", f'mount -o remount,bind,ro {top}; exec "$@"', "sh")
    assert not found["cgroup delegation"]
    assert "read-only" in found["cgroup delegation"].refused_by
    assert found["cgroup v2"]


@pytest.mark.root
def test_caller_in_a_group_that_was_killed_is_told(report: Report) -> None:
    """Some kernels kill at birth whom a member of a once killed group clones into another; others do not."""
    above = parents(version=2)[0]
    group = Path(above, f"isolib-test-{os.getpid()}")
    group.mkdir()
    try:
        if not (group / "cgroup.kill").exists():
            assert not report["cgroup.kill"]
            pytest.skip("this kernel has no cgroup.kill (before 5.14)")
        assert report["cgroup.kill"]
        assert report["CLONE_INTO_CGROUP"].reason == above
        (group / "cgroup.kill").write_text("1")
        found = examined("sh", "-ec", f'echo $$ >{group}/cgroup.procs; exec "$@"', "sh")
    finally:
        group.rmdir()
    feature = found["CLONE_INTO_CGROUP"]
    assert feature.available == report["birth after cgroup.kill"].available
    if not feature:
        assert str(group) in feature.refused_by
        assert "ECHILD" in feature.reason
    assert found["launcher"]


def mounts_of(fs_type: str) -> Iterator[str]:
    """Give the lines of mountinfo about a file system."""
    return (line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" - {fs_type} " in line)


def test_subreaper_is_named() -> None:
    """A child subreaper, not PID 1, gets the orphans, and is named; one that does not wait is found out."""
    code = "import ctypes, subprocess, sys; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0); subprocess.run(sys.argv[1:], check=True)"
    found = examined(sys.executable, "-c", code)
    feature = found["orphans are reaped"]
    assert not feature
    assert "the child subreaper" in feature.refused_by
    own = examined(before="import ctypes; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)")
    assert own["orphans are reaped"].reason == "by this process, a child subreaper"


def test_closed_standard_streams_do_no_harm(report: Report) -> None:
    """With descriptors 0 and 2 closed, it finds the same."""
    found = examined("sh", "-c", 'exec "$@" <&- 2>&-', "sh")
    same = partial(filter, lambda name: name not in ("orphans are reaped", "pasta"))
    different: Sequence[str] = [name for name in same(report) if found[name].available != report[name].available]
    assert different == []
