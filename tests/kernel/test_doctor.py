"""doctor() against what the kernel and other programs say, and against refusals that are provoked for real."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib.support import Feature, doctor
from tests.seccomp import Denied, deny

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from isolib.support import Report
    from tests.conftest import Account

ROOT = os.geteuid() == 0
PACKAGE = str(Path(isolib.__file__).parent.parent)
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
KINDS = ("mnt", "pid", "net", "ipc", "uts", "cgroup", "time")
DEVICES = ("veth", "dummy", "bridge", "macvlan", "ipvlan", "vxlan", "vlan")
QDISCS = {"netem": ["netem", "limit", "100"], "tbf": ["tbf", "rate", "8mbit", "burst", "1mb", "limit", "1mb"], "htb": ["htb"]}

#: The first kernels that have a feature; what came after this kernel must be refused, with the version named.
SINCE = {
    "overlay in user namespace": (5, 11),
    "mount_setattr": (5, 12),
    "nftables owned table": (5, 12),
    "landlock": (5, 13),
    "cgroup.kill": (5, 14),
    "overlay lowerdir+": (6, 5),
    "tmpfs xattr": (6, 6),
    "pidfd namespaces": (6, 11),
    "overlay layers by fd": (6, 13),
    "OPEN_TREE_NAMESPACE": (7, 0),
    "FSMOUNT_NAMESPACE": (7, 1),
}

SCRIPT = """
import dataclasses, json, sys
sys.path.insert(0, sys.argv[1])
from isolib.support import doctor
print(json.dumps([dataclasses.astuple(feature) for feature in doctor().values()]))
"""

NO_NEW_PRIVS = """
import ctypes
assert ctypes.CDLL(None).prctl(38, 1, 0, 0, 0) == 0
"""

FILTERED = (
    NO_NEW_PRIVS
    + """
class Program(ctypes.Structure):
    _fields_ = [("count", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
code = bytes.fromhex("{program}")
buffer = ctypes.create_string_buffer(code, len(code))
program = Program(len(code) // 8, ctypes.addressof(buffer))
assert ctypes.CDLL(None).prctl(22, 2, ctypes.byref(program), 0, 0) == 0
"""
)


def can_make_user_namespaces() -> bool:
    """Return whether unshare(1) can."""
    return subprocess.run(["unshare", "-Ur", "true"], check=False, stderr=subprocess.DEVNULL).returncode == 0


needs_user_namespace = pytest.mark.usefixtures("user_namespaces")


def examined(*prefix: str, before: str = "", **options: object) -> dict[str, Feature]:
    """Return what doctor() finds in a process of its own, started by a prefix, after some code."""
    argv = [*prefix, sys.executable, "-c", f"import sys; sys.path.insert(0, sys.argv[1])\n{before}{SCRIPT}", PACKAGE]
    env = {"PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, env=env, **options)  # type: ignore[call-overload]
    return {values[0]: Feature(*values) for values in json.loads(done.stdout)}


def inside(commands: str, *flags: str) -> dict[str, Feature]:
    """Return what doctor() finds as root of a new user namespace (and others), after some shell commands there."""
    return examined("unshare", "-Ur", *flags, "sh", "-ec", f'{commands}\nexec "$@"', "sh")


@pytest.fixture(scope="module", autouse=True)
def report() -> Report:
    """What doctor() finds here; with what the first launch of a process opens for the life of it."""
    return doctor()


# ---- the report ----


def test_what_is_missing_names_who_refuses_and_a_remedy(report: Report) -> None:
    """Every feature that is not available says why, who refuses it, and what would help, each in one line."""
    for feature in report.missing().values():
        for text in (feature.reason, feature.refused_by, feature.remedy):
            assert text, feature
            assert text.isprintable(), feature
    for feature in report.values():
        if feature:
            assert not feature.refused_by, feature
            assert not feature.remedy, feature


def test_no_probe_breaks(report: Report) -> None:
    """No feature is refused for an error that its probe did not expect."""
    assert [str(feature) for feature in report.values() if "did not expect" in feature.refused_by] == []


def test_table_fits_a_hundred_columns(report: Report) -> None:
    """Printed, no line is longer, and every name is there."""
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 100
    assert all(any(line.startswith(name) for line in lines) for name in report)


def test_it_is_importable_from_the_package() -> None:
    """isolib.doctor is this function."""
    assert isolib.doctor is doctor


# ---- nothing of the caller changes ----


def _children(directory: str) -> list[str]:
    return sorted(entry.path for entry in os.scandir(directory) if entry.is_dir(follow_symlinks=False))


def state() -> dict[str, object]:
    """Return everything of this process that a probe could have changed."""
    status = Path("/proc/thread-self/status").read_text().splitlines()
    kept = ("Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp", "SigBlk", "SigIgn", "SigCgt", "SigPnd", "Threads", "Umask")
    mounts = Path("/proc/self/mountinfo").read_text()
    return {
        "descriptors": sorted(os.listdir("/proc/self/fd")),
        "namespaces": {name: os.readlink(f"/proc/thread-self/ns/{name}") for name in os.listdir("/proc/thread-self/ns")},
        "status": [line for line in status if line.startswith(kept)],
        "mounts": mounts,
        "limits": Path("/proc/self/limits").read_text(),
        "interfaces": sorted(os.listdir("/proc/sys/net/ipv4/conf")),
        "directory": Path.cwd(),
        "threads": threading.active_count(),
        "handlers": [signal.getsignal(number) for number in sorted(signal.valid_signals())],
        "cgroups": {
            line.split()[4]: _children(line.split()[4])
            for line in mounts.splitlines()
            if " - cgroup2 " in line or " - cgroup " in line
        },
        "keyring": ctypes.CDLL(None).syscall({"x86_64": 250}.get(os.uname().machine, 219), 0, -3, 0),
    }


def test_the_caller_is_left_as_found() -> None:
    """Descriptors, namespaces, credentials, mounts, groups, interfaces, signals: all as before, and there is no child."""
    before = state()
    doctor()
    assert state() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_it_works_in_a_thread_of_a_busy_process() -> None:
    """Eight at once find the same."""
    found: list[dict[str, bool]] = []

    def examine() -> None:
        found.append({name: feature.available for name, feature in doctor().items() if name != "orphans are reaped"})

    threads = [threading.Thread(target=examine) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(one == found[0] for one in found)


# ---- other programs and the kernel's own files agree ----


def succeeds(*argv: str) -> bool:
    """Return whether a command ends with status 0."""
    env = {"PATH": SYSTEM_PATH}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.run(argv, check=False, env=env, **quiet).returncode == 0  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("user", [False, True])
def test_namespaces_as_unshare_finds_them(report: Report, kind: str, *, user: bool) -> None:
    """unshare(1) can make what is available, and no other."""
    option = {"mnt": "--mount"}.get(kind, f"--{kind}")
    name = f"user+{kind} namespaces" if user else f"{kind} namespace"
    assert report[name].available == succeeds("unshare", *(["-Ur"] if user else []), option, "true"), report[name]


def test_user_namespace_as_unshare_finds_it(report: Report) -> None:
    """unshare --user can make one when it is available."""
    assert report["user namespace"].available == can_make_user_namespaces()


def in_new_net(*script: str) -> bool:
    """Return whether a shell script succeeds in a network namespace as this caller can make it."""
    return succeeds("unshare", *([] if ROOT else ["-Ur"]), "--net", "sh", "-ec", "\n".join(script))


@pytest.mark.skipif(not shutil.which("ip", path=SYSTEM_PATH), reason="needs iproute2")
@pytest.mark.parametrize("kind", DEVICES)
def test_devices_as_ip_makes_them(report: Report, kind: str) -> None:
    """Ip(8) can make what is available, and no other."""
    words = {"macvlan": "link p0", "ipvlan": "link p0", "vlan": "link p0"}.get(kind, "")
    more = {"vxlan": "id 7 dstport 4789", "vlan": "id 7"}.get(kind, "")
    lower = "ip link add name p0 type veth" if words else ":"
    assert report[kind].available == in_new_net(lower, f"ip link add name x0 {words} type {kind} {more}"), report[kind]


@pytest.mark.skipif(not shutil.which("tc", path=SYSTEM_PATH), reason="needs iproute2")
@pytest.mark.parametrize("kind", QDISCS)
def test_queueing_disciplines_as_tc_makes_them(report: Report, kind: str) -> None:
    """Tc(8) can make what is available, and no other."""
    assert report[kind].available == in_new_net(f"tc qdisc add dev lo root {' '.join(QDISCS[kind])}"), report[kind]


@pytest.mark.skipif(not shutil.which("nft", path=SYSTEM_PATH), reason="needs nftables")
def test_tables_as_nft_makes_them(report: Report) -> None:
    """Nft(8) can make what is available, and no other."""
    masquerade = "nft 'add chain inet x y { type nat hook postrouting priority 100; }; add rule inet x y masquerade'"
    assert report["nftables"].available == in_new_net("nft add table inet x")
    assert report["nftables masquerade"].available == in_new_net("nft add table inet x", masquerade)


@pytest.mark.parametrize("name", ["btrfs", "xfs", "aufs", "fuse", "overlay", "mqueue", "devpts"])
def test_file_systems_as_the_kernel_lists_them(report: Report, name: str) -> None:
    """What /proc/filesystems lists is not refused for want of it, and what it does not list is not available."""
    lines = Path("/proc/filesystems").read_text().splitlines()
    listed = name in {line.split()[-1] for line in lines}
    lacking = "built without" in report[name].refused_by or "perhaps without" in report[name].refused_by
    assert listed or not report[name]
    assert not (listed and lacking) or report[name].reason.startswith("openat2"), report[name]


def test_capabilities_are_those_of_the_thread(report: Report) -> None:
    """CapEff of /proc/self/status has the bit of each capability that is available."""
    status = Path("/proc/thread-self/status").read_text()
    effective = int(re.search(r"CapEff:\s*([0-9a-f]+)", status)[1], 16)  # type: ignore[index]
    numbers = {"CAP_SETGID": 6, "CAP_SETUID": 7, "CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21, "CAP_MKNOD": 27, "CAP_BPF": 39}
    numbers |= {"CAP_SYS_PTRACE": 19, "CAP_SYS_RESOURCE": 24}
    for name, number in numbers.items():
        assert report[name].available == bool(effective >> number & 1), report[name]


def test_system_calls_as_libc_finds_them(report: Report) -> None:
    """clone3 and Landlock answer the same through libc's syscall()."""
    libc = ctypes.CDLL(None, use_errno=True)
    there = libc.syscall(435, None, 0) == -1 and ctypes.get_errno() == errno.EINVAL
    assert report["clone3"].available == there
    abi = libc.syscall(444, None, 0, 1)
    assert report["landlock"].available == (abi > 0)
    assert abi <= 0 or report["landlock"].reason == f"ABI {abi}"


def test_seccomp_as_the_kernel_lists_it(report: Report) -> None:
    """The kernel lists user_notif among its actions when notification is available."""
    actions = Path("/proc/sys/kernel/seccomp/actions_avail").read_text().split()
    assert report["seccomp filter"].available == ("allow" in actions)
    assert report["seccomp notification"].available == ("user_notif" in actions)


def test_cgroup_mode_as_the_mounts_show_it(report: Report) -> None:
    """A cgroup2 at the top is unified, one beside v1 controllers hybrid."""
    types = [line.split()[2] for line in Path("/proc/mounts").read_text().splitlines()]
    expected = {(True, True): "hybrid", (True, False): "unified", (False, True): "legacy"}
    assert report["cgroups"].reason == expected["cgroup2" in types, "cgroup" in types]


def test_groups_can_be_made_where_a_controller_is_available(report: Report) -> None:
    """A directory can be made in the caller's group of each controller that is available, and of no other."""
    for name in ("cpu", "cpuset", "memory", "io", "pids", "hugetlb", "devices"):
        feature = report[f"cgroup {name}"]
        place = re.match(r"v[12], (/.*)|(/\S+) cannot be written", feature.reason)
        if place:
            assert _can_make_group(place[1] or place[2]) == feature.available, feature
        else:
            assert not feature


def _can_make_group(parent: str) -> bool:
    path = Path(parent, f"isolib-test-{os.getpid()}")
    try:
        path.mkdir()
    except OSError:
        return False
    path.rmdir()
    return True


def test_what_is_newer_than_this_kernel_is_refused_by_it(report: Report) -> None:
    """A feature that came with a later kernel is not available, and the version that has it is named."""
    release = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
    for name, since in SINCE.items():
        if release < since:
            assert not report[name]
            assert "older than Linux" in report[name].refused_by or "missing" in report[name].refused_by, report[name]
        else:
            assert "older than" not in report[name].refused_by, report[name]


def test_tools_are_those_on_the_path(tmp_path: Path) -> None:
    """A program that is executable is found, and one that is nowhere is named with its package."""
    (tmp_path / "pasta").touch(0o755)
    found = examined("env", f"PATH={tmp_path}")
    assert found["pasta"].reason == str(tmp_path / "pasta")
    if not shutil.which("slirp4netns", path=SYSTEM_PATH):
        assert found["slirp4netns"].refused_by == "missing tool slirp4netns"
        assert "slirp4netns" in found["slirp4netns"].remedy


# ---- refusals, provoked ----


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


def filtered(*denied: Denied) -> dict[str, Feature]:
    """Return what doctor() finds below a seccomp filter."""
    return examined(before=FILTERED.format(program=deny(*denied).hex()))


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


def examined_as(user: Account) -> dict[str, Feature]:
    """Return what doctor() finds as a user, with a Python that he can run."""
    for python in (sys.executable, shutil.which("python3", path="/usr/bin")):
        if python is not None:
            with suppress(PermissionError):
                done = user.run([python, "-c", SCRIPT, PACKAGE], env={"PATH": SYSTEM_PATH}, cwd="/")
                if done.returncode == 0:
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


@pytest.mark.parametrize("limit", [8, 11, 14, 20])
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
    mount = report["cgroup delegation"].reason
    if not report["cgroup delegation"]:
        pytest.skip("no cgroup v2 that can be written")
    top = next(line.split()[4] for line in mounts_of("cgroup2") if mount.startswith(line.split()[4]))
    found = examined("unshare", "--mount", "sh", "-ec", f'mount -o remount,bind,ro {top}; exec "$@"', "sh")
    assert not found["cgroup delegation"]
    assert "read-only" in found["cgroup delegation"].refused_by
    assert found["cgroup v2"]


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
