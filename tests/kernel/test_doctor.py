"""doctor() against what the kernel and other programs say."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import signal
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib.support import doctor
from tests.examined import SYSTEM_PATH, examined, in_new_net, succeeds
from tests.nets import until

if TYPE_CHECKING:
    from isolib.support import Report

ROOT = os.geteuid() == 0
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


def can_make_user_namespaces() -> bool:
    """Return whether unshare(1) can."""
    return subprocess.run(["unshare", "-Ur", "true"], check=False, stderr=subprocess.DEVNULL).returncode == 0


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
    kept = ("Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp", "SigBlk", "SigIgn", "SigCgt", "SigPnd", "Umask")
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
    before, threads = state(), os.listdir("/proc/self/task")
    doctor()
    assert state() == before
    # Threads that were joined, of this or of an earlier test, may still be on their way out.
    assert until(lambda: set(os.listdir("/proc/self/task")) <= set(threads))
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
