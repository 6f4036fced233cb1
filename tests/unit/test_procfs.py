from __future__ import annotations

import fcntl
import os
import resource
import subprocess
from typing import TYPE_CHECKING

import psutil
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from isolib._kernel.procfs import (
    CgroupEntry,
    FdInfo,
    Limit,
    Mount,
    parse_account_ids,
    parse_cgroup,
    parse_cmdline,
    parse_fdinfo,
    parse_filesystems,
    parse_id_map,
    parse_limits,
    parse_mountinfo,
    parse_namespace_link,
    parse_stat,
    parse_status,
    parse_subid,
)
from isolib.types import IdMap

if TYPE_CHECKING:
    from collections.abc import Callable

PARSERS: tuple[Callable[[bytes], object], ...] = (
    parse_account_ids,
    parse_cgroup,
    parse_cmdline,
    parse_fdinfo,
    parse_filesystems,
    parse_id_map,
    parse_limits,
    parse_mountinfo,
    parse_namespace_link,
    parse_stat,
    parse_status,
    lambda data: parse_account_ids(group=data),
    lambda data: parse_account_ids(subid=data),
    lambda data: parse_subid(data, "alice", 1000),
)

# What the kernel writes, or nearly: pieces from which fuzzing makes files that get past the first check.
PIECES = st.sampled_from(
    [
        *(b" - ", b"\\040", b"\\134", b"\\", b",", b"shared:1", b"36 35 98:0 /a /b rw", b"ext3 /dev/root rw"),
        *(b"0::/", b"4:memory:", b"1000", b"4294967295", b"99999999999999999999999999", b"-1", b"alice", b" (", b") "),
        *(b"S", b"unlimited", b"Limit                     Soft\n", b"nodev", b"pos:\t0", b"flags:\t02", b"mnt_id:\t9"),
        *(b"Pid:\t-1", b"net:[", b"]", b"\n", b"\t", b" ", b":", b"\0", b"\r", b"\x0b", b"\xff", b"\xc3\xa9"),
    ]
)
BYTES = st.one_of(st.binary(max_size=200), st.lists(PIECES, max_size=60).map(b"".join))
# Names as the kernel has them: any bytes but NUL.
NAMES = st.binary(min_size=1, max_size=30).filter(lambda name: b"\0" not in name)
IDS = st.integers(min_value=0, max_value=2**32 - 2)
NUMBERS = st.integers(min_value=0, max_value=2**64 - 1)


def read(path: str) -> bytes:
    """Return a whole file."""
    with open(path, "rb") as file:
        return file.read()


@given(BYTES)
def test_arbitrary_bytes(data: bytes) -> None:
    """On whatever bytes, a parser returns or raises ValueError."""
    for parse in PARSERS:
        try:
            parse(data)
        except ValueError:
            continue


# ---- mountinfo ----


def escape(name: bytes, also: bytes = b"") -> bytes:
    """Write a name as the kernel does (fs/proc_namespace.c, mangle)."""
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\#" + also else bytes((byte,)) for byte in name)


def write_mount(mount: Mount) -> bytes:
    """Write a line of mountinfo as the kernel does."""
    return b"%d %d %d:%d %s %s %s %s- %s %s %s\n" % (
        mount.id,
        mount.parent,
        *mount.dev,
        escape(os.fsencode(mount.root)),
        escape(os.fsencode(mount.mount_point)),
        ",".join(mount.options).encode(),
        "".join(f"{field} " for field in mount.optional).encode(),
        escape(mount.fs_type.encode()),
        escape(os.fsencode(mount.source)),
        b",".join(escape(os.fsencode(option), b",") for option in mount.super_options),
    )


MOUNTS = st.builds(
    Mount,
    id=NUMBERS,
    parent=NUMBERS,
    dev=st.tuples(NUMBERS, NUMBERS),
    root=NAMES.map(os.fsdecode),
    mount_point=NAMES.map(os.fsdecode),
    options=st.lists(st.sampled_from(["rw", "ro", "nosuid", "relatime"]), min_size=1).map(tuple),
    optional=st.lists(st.sampled_from(["shared:1", "master:27", "unbindable"])).map(tuple),
    fs_type=st.sampled_from(["ext4", "fuse.sshfs", "tmpfs"]),
    source=st.one_of(NAMES, st.just(b"")).map(os.fsdecode),
    super_options=st.lists(NAMES.map(os.fsdecode)).map(tuple),
)


@given(st.lists(MOUNTS, max_size=5))
def test_mountinfo_round_trip(mounts: list[Mount]) -> None:
    """Every name survives, whatever bytes it holds."""
    assert parse_mountinfo(b"".join(map(write_mount, mounts))) == mounts


def test_mountinfo_of_the_manual_page() -> None:
    """The example of proc_pid_mountinfo(5), and names that it does not show."""
    data = (
        b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"
        b"40 35 0:40 / /a\\040b\\134c\\012d rw shared:1 master:2 propagate_from:3 - tmpfs  rw,size=4k\n"
        b"41 35 0:41 / /o ro - overlay overlay rw,lowerdir=/a\\054b:/c,upperdir=/d e\n"
    )
    first, second, third = parse_mountinfo(data)
    assert first == Mount(
        id=36,
        parent=35,
        dev=(98, 0),
        root="/mnt1",
        mount_point="/mnt2",
        options=("rw", "noatime"),
        optional=("master:1",),
        fs_type="ext3",
        source="/dev/root",
        super_options=("rw", "errors=continue"),
    )
    assert second.mount_point == "/a b\\c\nd"
    assert second.optional == ("shared:1", "master:2", "propagate_from:3")
    assert second.source == ""
    assert third.super_options == ("rw", "lowerdir=/a,b:/c", "upperdir=/d e")


def test_mountinfo_of_this_process() -> None:
    """The mounts are those that another reader finds, and the root directory is on one of them."""
    mounts = parse_mountinfo(read("/proc/self/mountinfo"))
    seen = {(mount.source, mount.mount_point, mount.fs_type) for mount in mounts}
    others = {(part.device, part.mountpoint, part.fstype) for part in psutil.disk_partitions(all=True)}
    assert {(point, kind) for _, point, kind in seen} == {(point, kind) for _, point, kind in others}
    device = os.stat("/proc/self").st_dev
    assert (os.major(device), os.minor(device)) in {mount.dev for mount in mounts if mount.fs_type == "proc"}


@pytest.mark.parametrize(
    "line",
    [
        b"36 35 98:0 /mnt1 /mnt2 rw ext3 /dev/root rw",
        b"36 35 98:0 /mnt1 /mnt2 - ext3 /dev/root rw",
        b"36 35 98 /mnt1 /mnt2 rw - ext3 /dev/root rw",
        b"36 35 98:0 /mnt1 /mnt2 rw - ext3",
        b"36 -1 98:0 /mnt1 /mnt2 rw - ext3 /dev/root rw",
        b"",
    ],
)
def test_not_mountinfo(line: bytes) -> None:
    """A line with too few fields, or without numbers, is refused."""
    with pytest.raises(ValueError, match="not a"):
        parse_mountinfo(line + b"\n")


# ---- cgroup, status, stat ----


def test_cgroup() -> None:
    """Both versions, a named hierarchy, and a path with colons."""
    data = b"9:name=systemd:/a:b\n4:cpu,cpuacct:/x (deleted)\n0::/../y z\n"
    assert parse_cgroup(data) == [
        CgroupEntry(9, ("name=systemd",), "/a:b"),
        CgroupEntry(4, ("cpu", "cpuacct"), "/x (deleted)"),
        CgroupEntry(0, (), "/../y z"),
    ]
    assert all(entry.path.startswith("/") for entry in parse_cgroup(read("/proc/self/cgroup")))
    with pytest.raises(ValueError, match="not a line"):
        parse_cgroup(b"4:memory\n")


def test_status() -> None:
    """The fields of this process are what Python says."""
    status = parse_status(read("/proc/self/status"))
    assert status["Pid"] == str(os.getpid())
    assert list(map(int, status["Uid"].split())) == [*os.getresuid(), os.geteuid()]
    assert int(status["FDSize"]) > 0
    assert parse_status(b"Name:\ta:\\nb\n") == {"Name": "a:\\nb"}


def test_stat_of_this_process() -> None:
    """The fields of this process are what Python says."""
    before = len(os.listdir("/proc/self/task"))
    stat = parse_stat(read("/proc/self/stat"))
    after = len(os.listdir("/proc/self/task"))  # threads of earlier tests may be on their way out
    assert (stat.pid, stat.ppid, stat.pgrp, stat.session) == (os.getpid(), os.getppid(), os.getpgrp(), os.getsid(0))
    assert stat.state == "R"
    assert stat.exit_signal == 17
    start = stat.starttime / os.sysconf("SC_CLK_TCK") + psutil.boot_time()
    assert start == pytest.approx(psutil.Process().create_time(), abs=2)
    assert after <= stat.threads <= before


@given(NAMES)
@example(b") S 1 (x) R 2")
@example(b"\n")
def test_stat_with_any_name(name: bytes) -> None:
    """The name of a process may hold anything, also what looks like the fields after it."""
    line = read("/proc/self/stat")
    ours = parse_stat(line)
    forged = line[: line.index(b"(") + 1] + name + line[line.rindex(b")") :]
    other = parse_stat(forged)
    assert os.fsencode(other.comm) == name
    assert (other.pid, other.starttime, other.exit_signal) == (ours.pid, ours.starttime, ours.exit_signal)


# ---- ids ----


@given(st.lists(st.builds(IdMap, IDS, IDS, st.integers(min_value=1, max_value=2**32 - 1)), max_size=8))
def test_id_map_round_trip(ranges: list[IdMap]) -> None:
    """A map reads as it was written."""
    data = b"".join(b"%10u %10u %10u\n" % (one.inside, one.outside, one.count) for one in ranges)
    assert parse_id_map(data) == ranges


def test_id_map_of_this_process() -> None:
    """The map of this process holds its own id."""
    ranges = parse_id_map(read("/proc/self/uid_map"))
    assert any(one.inside <= os.getuid() < one.inside + one.count for one in ranges)
    with pytest.raises(ValueError, match="not a line"):
        parse_id_map(b"0 1000\n")


def test_subid() -> None:
    """A user's ranges are found by name and by number; broken lines and other users' are passed over."""
    data = (
        b"alice:100000:65536\n"
        b"# a comment\n"
        b"bob:165536:65536\n"
        b"\n"
        b"1000:231072:10\n"
        b"alice:x:65536\n"
        b"alice:300000\n"
        b"alice:300000:0\n"
        b"alice:4294967290:100\n"
        b"alice:400000:1:2\n"
        b"alice: 5:1\n"
        b"10001:7:1\n"
        b"alice:500000:1"
    )
    assert parse_subid(data, "alice", 1000) == [(100000, 65536), (231072, 10), (500000, 1)]
    assert parse_subid(data, None, 1000) == [(231072, 10)]
    assert parse_subid(data, "bob", 7) == [(165536, 65536)]
    assert parse_subid(b"", "alice", 1000) == []


def test_account_ids() -> None:
    """Every id of passwd, group and subuid is found; broken lines are passed over."""
    passwd = b"root:x:0:0:root:/root:/bin/sh\nalice:x:1000:100::/home/alice:\n+::::::\nbroken\nx:x:-1:4294967295::\n"
    group = b"root:x:0:\nusers:x:100:alice,1001\nwheel:x:10\n"
    subid = b"alice:100000:65536\nalice:no:1\n"
    assert parse_account_ids(passwd) == [(0, 1), (0, 1), (1000, 1), (100, 1)]
    assert parse_account_ids(group=group) == [(0, 1), (100, 1), (10, 1)]
    assert parse_account_ids(passwd, subid=subid)[0] == (100000, 65536)


# ---- limits, file systems, descriptors, arguments, namespaces ----


def test_limits() -> None:
    """The limits are what getrlimit says, and the names and units are the kernel's."""
    limits = parse_limits(read("/proc/self/limits"))
    for name, constant in (
        ("Max open files", resource.RLIMIT_NOFILE),
        ("Max stack size", resource.RLIMIT_STACK),
        ("Max processes", resource.RLIMIT_NPROC),
    ):
        pair = (limits[name].soft, limits[name].hard)
        assert pair == tuple(None if value == resource.RLIM_INFINITY else value for value in resource.getrlimit(constant))
    assert len(limits) == 16
    assert limits["Max open files"].unit == "files"
    line = b"Limit                     Soft Limit           Hard Limit           Units     \n"
    assert parse_limits(line + b"Max nice priority         0                    unlimited                      \n") == {
        "Max nice priority": Limit(0, None, "")
    }
    for broken in (b"", b"Max open files            1 1 files\n", b"Limit \nMax open files\n", b"Limit \nMax            x y\n"):
        with pytest.raises(ValueError, match="not a"):
            parse_limits(broken)


def test_filesystems() -> None:
    """Each file system is there, with what it is mounted from."""
    assert parse_filesystems(b"nodev\tsysfs\n\text4\n") == {"sysfs": False, "ext4": True}
    assert parse_filesystems(read("/proc/filesystems"))["proc"] is False
    with pytest.raises(ValueError, match="not a line"):
        parse_filesystems(b"nodev sysfs\n")


def test_fdinfo() -> None:
    """The position and the flags of a file, and the process of a pidfd, running and gone."""
    with open("/proc/self/cmdline", "rb") as file:
        file.read(1)
        os.lseek(file.fileno(), 3, os.SEEK_SET)
        info = parse_fdinfo(read(f"/proc/self/fdinfo/{file.fileno()}"))
        assert info.pos == 3
        assert info.flags & os.O_ACCMODE == fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE
        assert info.flags & os.O_CLOEXEC
        assert info.ino in {None, os.fstat(file.fileno()).st_ino}
        assert info.pid is None
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    pidfd = os.pidfd_open(child.pid)
    try:
        assert parse_fdinfo(read(f"/proc/self/fdinfo/{pidfd}")).pid == child.pid
        child.communicate()
        assert parse_fdinfo(read(f"/proc/self/fdinfo/{pidfd}")).pid == -1
    finally:
        os.close(pidfd)


def test_fdinfo_with_repeated_fields() -> None:
    """A name that comes several times is kept each time, in order."""
    data = b"pos:\t-1\nflags:\t02000002\nmnt_id:\t14\ntfd: 5 events: 19 ino:7\ntfd: 6 events: 19\n"
    info = FdInfo(-1, 0o2000002, 14, None, (("tfd", "5 events: 19 ino:7"), ("tfd", "6 events: 19")))
    assert parse_fdinfo(data) == info
    with pytest.raises(ValueError, match="without 'pos'"):
        parse_fdinfo(b"flags:\t0\nmnt_id:\t1\n")


@given(st.lists(st.binary(max_size=20).filter(lambda argument: b"\0" not in argument), min_size=1))
def test_cmdline_round_trip(argv: list[bytes]) -> None:
    """Every argument survives, also an empty one."""
    assert list(map(os.fsencode, parse_cmdline(b"".join(argument + b"\0" for argument in argv)))) == argv


def test_cmdline() -> None:
    """The arguments of this process, of a kernel thread, and of a process that wrote its own text there."""
    assert parse_cmdline(read("/proc/self/cmdline")) == psutil.Process().cmdline()
    assert parse_cmdline(b"") == []
    assert parse_cmdline(b"postgres: writer") == ["postgres: writer"]


def test_namespace_link() -> None:
    """Kind and inode number of every namespace of this process."""
    for name in os.listdir("/proc/self/ns"):
        kind, inode = parse_namespace_link(os.readlink(f"/proc/self/ns/{name}"))
        assert name.removesuffix("_for_children") == kind
        assert inode == os.stat(f"/proc/self/ns/{name}").st_ino
    assert parse_namespace_link(b"net:[4026531840]") == ("net", 4026531840)
    for link in ("net:[]", "net:[x]", "nets:[1]", "net:[1]x", "/dev/null", "pipe:[1]", "net:[\N{ARABIC-INDIC DIGIT ONE}]"):
        with pytest.raises(ValueError, match="not a namespace"):
            parse_namespace_link(link)
