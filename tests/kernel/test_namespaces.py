"""Making and adopting namespaces, what the handles say of them, and what comes of mistakes."""

from __future__ import annotations

import os
import re
import select
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import timedelta
from errno import ENOTTY
from fractions import Fraction
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib import PIPE, ClosedError, GoneError, IdMap, PermissionDenied, PlanError, SetupFailed, SyscallError, Unsupported
from isolib import namespaces as ns
from isolib._kernel import calls
from tests.rights import having
from tests.seccomp import Denied
from tests.threads import here, in_a_thread, restrict_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

NEW: Mapping[str, Callable[[], ns.Namespace]] = {
    "net": ns.new_netns,
    "uts": ns.new_utsns,
    "ipc": ns.new_ipcns,
    "cgroup": ns.new_cgroupns,
    "mnt": ns.new_mntns,
    "pid": ns.new_pidns,
    "user": ns.new_userns,
    "time": ns.new_timens,
}
OPEN: Mapping[str, Callable[..., ns.Namespace]] = {
    "net": ns.open_netns,
    "uts": ns.open_utsns,
    "ipc": ns.open_ipcns,
    "cgroup": ns.open_cgroupns,
    "mnt": ns.open_mntns,
    "pid": ns.open_pidns,
    "user": ns.open_userns,
    "time": ns.open_timens,
}
ENTERED_BY_THREADS = ("net", "uts", "ipc", "cgroup")
HAS_TIME = os.path.exists("/proc/self/ns/time")
KINDS = [kind for kind in NEW if kind != "time" or HAS_TIME]
every_kind = pytest.mark.parametrize("kind", KINDS)
needs_time = pytest.mark.skipif(not HAS_TIME, reason="this kernel has no time namespaces")


def output(namespace: ns.Namespace, *argv: str, **options: object) -> str:
    """Run a program in a namespace and return what it writes."""
    with namespace.spawn(list(argv), stdout=PIPE, **options) as process:
        out, _ = process.communicate(timeout=60)
        assert process.wait(60).code == 0
    return (out or b"").decode().strip()


# ---- new ----


@every_kind
def test_new_namespace_is_one_of_its_own(kind: str) -> None:
    """A new namespace is of its kind, is no other one, and the calling thread is not in it."""
    before = here(kind)
    with closing(NEW[kind]()) as one, closing(NEW[kind]()) as other:
        assert one.kind == kind
        assert len({before, one.id, other.id}) == 3
        assert here(kind) == before
        assert os.fstat(one.fileno()).st_ino == one.id
        assert os.readlink(f"/proc/self/fd/{one.fileno()}") == f"{kind}:[{one.id}]"
        assert not os.get_inheritable(one.fileno())


@every_kind
def test_program_is_spawned_inside(kind: str) -> None:
    """A program that a handle spawns is in that namespace."""
    with closing(NEW[kind]()) as namespace:
        assert output(namespace, "readlink", f"/proc/self/ns/{kind}") == f"{kind}:[{namespace.id}]"


@every_kind
def test_program_is_spawned_where_the_caller_is(kind: str) -> None:
    """The caller's own namespaces need not be joined, which the kernel would refuse to ordinary users."""
    with closing(OPEN[kind](pid=os.getpid())) as namespace:
        assert output(namespace, "readlink", f"/proc/self/ns/{kind}") == f"{kind}:[{namespace.id}]"


@every_kind
def test_program_joins_several_namespaces(needs_root: None, kind: str) -> None:
    """Further namespaces are joined by join=, and one that is named twice is joined once."""
    other = "uts" if kind == "net" else "net"
    with closing(NEW[kind]()) as one, closing(NEW[other]()) as two:
        links = output(one, "readlink", f"/proc/self/ns/{kind}", f"/proc/self/ns/{other}", join=[two, one])
        assert links.split() == [f"{kind}:[{one.id}]", f"{other}:[{two.id}]"]


@every_kind
def test_with_closes(kind: str) -> None:
    """At the end of a `with` block the handle is closed, and the thread is where it was."""
    before = here(kind)
    namespace = NEW[kind]()
    if kind in ENTERED_BY_THREADS and os.geteuid():
        with pytest.raises(PermissionDenied, match=r"spawn\(\)"), namespace:
            pytest.fail("not reached")
    else:
        with namespace as value:
            assert value is namespace
            assert (here(kind) == namespace.id) is (kind in ENTERED_BY_THREADS)
    assert namespace.closed
    assert here(kind) == before


@every_kind
def test_closed_handle_is_refused_everywhere(kind: str) -> None:
    """Whatever a closed handle is asked to do raises ClosedError; what it is called stays known."""
    namespace = NEW[kind]()
    namespace.close()
    namespace.close()
    for use in (
        namespace.fileno,
        namespace.entered,
        namespace.__enter__,
        lambda: namespace.run(os.getpid),
        lambda: namespace.spawn(["true"]),
        lambda: namespace.owner,
        lambda: namespace.pin("/nonexistent/x"),
        lambda: OPEN[kind](fd=namespace),
    ):
        with pytest.raises(ClosedError):
            use()
    assert repr(namespace) == f"<{type(namespace).__name__} {kind}:[{namespace.id}] closed>"


@every_kind
def test_owner_is_the_user_namespace_with_power_over_it(kind: str) -> None:
    """What root makes belongs to root's user namespace, what others make to a new one of theirs, below their own."""
    with closing(NEW[kind]()) as namespace:
        owner = namespace.owner
        assert owner.kind == "user"
        assert owner is namespace.owner
        if os.geteuid() == 0 or kind == "user":
            assert owner.id == here("user")
        else:
            assert owner.id != here("user")
            assert owner.owner.id == here("user")
            assert output(namespace, "id", "-u") == "0"
    assert owner.closed


def test_threads_have_one_owner(user_namespaces: None) -> None:
    """What threads without rights make at the same time belongs to one user namespace: a cable lies between any two of it."""
    start = threading.Barrier(8)

    def make(_: int) -> ns.NetNS:
        with having("rootless"):
            start.wait()
            return ns.new_netns()

    with ThreadPoolExecutor(8) as pool, ExitStack() as stack:
        made = [stack.enter_context(closing(one)) for one in pool.map(make, range(8))]
        assert len({one.owner.id for one in made}) == 1


def test_first_user_namespace_has_no_owner(needs_root: None) -> None:
    """Who asks for an owner outside of his own user namespace is told so."""
    with ns.open_userns(pid=os.getpid()) as mine, pytest.raises(PermissionDenied, match="outside of your own"):
        _ = mine.owner


def test_loopback_is_up_or_down() -> None:
    """The loopback interface is up, or as the kernel makes it: down."""
    for lo in (True, False):
        with closing(ns.new_netns(lo=lo)) as namespace:
            flags = re.findall(r"<(.*?)>", output(namespace, "ip", "-o", "link", "show", "lo"))[0].split(",")
        assert ("UP" in flags) is lo


def test_names_of_a_uts_namespace() -> None:
    """Host name and domain name are those asked for; what is not asked for is that of the caller."""
    with closing(ns.new_utsns(hostname="a" * 64, domainname="example")) as both, closing(ns.new_utsns()) as none:
        assert output(both, "uname", "-n") == "a" * 64
        assert output(both, "cat", "/proc/sys/kernel/domainname") == "example"
        assert output(none, "uname", "-n") == socket.gethostname()


@pytest.mark.parametrize("name", ["", "a" * 65, "a\0b", "a\nb", "a/b", b"bytes", 5])
def test_impossible_names_are_refused(name: str) -> None:
    """A name that no host can have is a PlanError."""
    with pytest.raises(PlanError, match="hostname"):
        ns.new_utsns(hostname=name)
    with pytest.raises(PlanError, match="domainname"):
        ns.new_utsns(domainname=name)


def test_ipc_objects_stay_inside(needs_root: None) -> None:
    """A System V queue that is made inside is not seen outside, and is gone with the namespace."""
    with ns.new_ipcns():
        subprocess.run(["ipcmk", "-Q"], check=True, capture_output=True)
        inside = subprocess.run(["ipcs", "-q"], check=True, capture_output=True, text=True).stdout
    outside = subprocess.run(["ipcs", "-q"], check=True, capture_output=True, text=True).stdout
    assert len(inside.splitlines()) > len(outside.splitlines())


def test_root_of_a_cgroup_namespace_is_the_callers_cgroup() -> None:
    """Inside, the cgroup of who made it is shown as "/"."""
    with closing(ns.new_cgroupns()) as namespace:
        lines = output(namespace, "cat", "/proc/self/cgroup").splitlines()
    assert {line.split(":", 2)[2] for line in lines} == {"/"}


def test_mounts_inside_do_not_reach_the_host(needs_root: None, tmp_path: Path) -> None:
    """What is mounted inside is not seen outside, even where the host shares its mounts."""
    with ns.new_mntns() as host, closing(host.run(_share_and_copy)) as copy:
        copy.run(calls.mount, "tmpfs", str(tmp_path), "tmpfs", 0)
        assert _is_mounted(str(tmp_path), copy)
        assert not _is_mounted(str(tmp_path), host)
        assert not os.path.ismount(tmp_path)


def test_mounts_of_the_host_are_followed(needs_root: None, tmp_path: Path) -> None:
    """A file system that a sharing host unmounts is unmounted inside too, and so not kept busy."""
    with ns.new_mntns() as host, closing(host.run(_share_and_copy)) as copy:
        host.run(calls.mount, "tmpfs", str(tmp_path), "tmpfs", 0)
        assert _is_mounted(str(tmp_path), copy)
        host.run(calls.umount, str(tmp_path))
        assert not _is_mounted(str(tmp_path), copy)


def _share_and_copy() -> ns.MntNS:
    calls.mount_setattr(calls.AT_FDCWD, "/", flags=calls.AT_RECURSIVE, propagation=1 << 20)  # MS_SHARED
    return ns.new_mntns()


def _is_mounted(path: str, namespace: ns.MntNS) -> bool:
    return namespace.run(os.path.ismount, path)


def test_first_program_in_a_pid_namespace_is_not_init() -> None:
    """PID 1 is isolib's; the first program is another process, and sees nobody above it."""
    with ns.new_pidns() as namespace:
        pid, parent = map(int, output(namespace, "sh", "-c", "echo $$ $PPID").split())
        assert pid > 1
        assert parent == 0


def test_closing_a_pid_namespace_kills_what_is_inside() -> None:
    """When close() returns, everything that ran inside has ended."""
    namespace = ns.new_pidns()
    process = namespace.spawn(["sleep", "1000"])
    namespace.close()
    assert process.wait(10).signal == 9
    process.close()


HOST = """
import isolib, time
namespace = isolib.new_pidns()
process = namespace.spawn(["sleep", "1000"])
print(process.pid, flush=True)
time.sleep(1000)
"""


def test_killed_host_leaves_nothing_inside() -> None:
    """When the host is killed, its pid namespaces end, and everything in them."""
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", HOST], stdout=subprocess.PIPE, env=environment) as host:
        assert host.stdout
        pidfd = os.pidfd_open(int(host.stdout.readline()))
        host.kill()
        try:
            assert select.select([pidfd], [], [], 10)[0] == [pidfd]
        finally:
            os.close(pidfd)


def test_dead_pid_namespace_says_so(needs_root: None) -> None:
    """When PID 1 was killed from outside, spawn() says that the namespace is gone."""
    with ns.new_pidns() as namespace:
        first = next(node for node in ns.tree() if node.id == namespace.id).pid
        assert first
        pidfd = os.pidfd_open(first)
        os.kill(first, 9)
        select.select([pidfd], [], [])
        os.close(pidfd)
        with pytest.raises(GoneError, match="first process has ended"):
            namespace.spawn(["true"])


@needs_time
@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        (0, ("0", "0")),
        (7, ("7", "0")),
        (1.25, ("1", "250000000")),
        (-1.25, ("-2", "750000000")),
        (-3, ("-3", "0")),
        (0.9999999999, ("1", "0")),
        (-1e-10, ("0", "0")),
        (timedelta(days=2, microseconds=1), ("172800", "1000")),
        (-timedelta(microseconds=1), ("-1", "999999000")),
        (Fraction(1, 2), ("0", "500000000")),
        (10**8, ("100000000", "0")),
    ],
)
def test_clocks_are_shifted(offset: float, expected: tuple[str, str]) -> None:
    """The offsets that a program sees are those asked for, also negative ones and fractions."""
    with ns.new_timens(boottime=offset) as namespace:
        lines = [line.split() for line in output(namespace, "cat", "/proc/self/timens_offsets").splitlines()]
    assert lines == [["monotonic", "0", "0"], ["boottime", *expected]]


@needs_time
def test_each_clock_has_its_own_offset() -> None:
    """Monotonic and boottime are shifted independently, and the host's clocks are not."""
    code = "import time; print(time.clock_gettime(time.CLOCK_MONOTONIC), time.clock_gettime(time.CLOCK_BOOTTIME))"
    with ns.new_timens(monotonic=10**7, boottime=2 * 10**7) as namespace:
        monotonic, boottime = map(float, output(namespace, "/usr/bin/python3", "-I", "-c", code).split())
    assert 10**7 < monotonic < 2 * 10**7 < boottime


@pytest.mark.parametrize("offset", ["1", None, float("nan"), float("inf"), -float("inf"), True, 10**20, [], 1j])
def test_impossible_offsets_are_refused(offset: float) -> None:
    """What is no duration is a PlanError."""
    with pytest.raises(PlanError, match="boottime"):
        ns.new_timens(boottime=offset)


@needs_time
def test_clock_before_its_beginning_is_refused() -> None:
    """The kernel refuses an offset by which a clock would be negative, and the message says why."""
    with pytest.raises(SetupFailed, match="negative") as caught:
        ns.new_timens(monotonic=-(10**9))
    assert caught.value.target == "timens_offsets"


# ---- user namespaces ----


def uid_map(namespace: ns.UserNS, which: str = "uid_map") -> list[list[int]]:
    """Return the id map as a program inside sees it."""
    return [list(map(int, line.split())) for line in output(namespace, "cat", f"/proc/self/{which}").splitlines()]


def test_root_inside_is_the_caller() -> None:
    """By default root inside is who made it, and nobody else is anybody."""
    with ns.new_userns() as namespace:
        assert output(namespace, "id", "-u") == output(namespace, "id", "-g") == "0"
        if os.geteuid():
            assert output(namespace, "cat", "/proc/self/setgroups") == "deny"


def test_same_ids_inside() -> None:
    """With "same" the caller is the same inside."""
    with ns.new_userns(uid_map="same", gid_map="same") as namespace:
        assert output(namespace, "id", "-u") == str(os.geteuid())


def test_range_of_ids_for_root(needs_root: None) -> None:
    """With "auto" root gets a range of ids that nobody has."""
    with ns.new_userns(uid_map="auto", gid_map="auto") as namespace:
        ((inside, outside, count),) = uid_map(namespace)
        assert (inside, count) == (0, 65536)
        assert outside >= 65536
        assert output(namespace, "id", "-u") == "0"


def test_ranges_as_given(needs_root: None) -> None:
    """A list of ranges is written as it is."""
    ranges = [IdMap(0, 100000, 10), IdMap(10, 200000), IdMap(1000, 0)]
    with ns.new_userns(uid_map=ranges, gid_map=iter(ranges)) as namespace:
        expected = [[each.inside, each.outside, each.count] for each in ranges]
        assert uid_map(namespace) == uid_map(namespace, "gid_map") == expected


@pytest.mark.parametrize(
    "ranges",
    [
        [],
        [IdMap(0, 0, 2), IdMap(1, 5)],
        [IdMap(0, 0, 2), IdMap(5, 1)],
        [IdMap(0, 0, 0)],
        [IdMap(-1, 0)],
        [IdMap(0, 2**32 - 1)],
        [(0, 0, 1)],
        "everything",
        7,
    ],
)
def test_impossible_maps_are_refused(ranges: list[IdMap]) -> None:
    """Overlapping, empty and impossible maps are a PlanError."""
    with pytest.raises(PlanError):
        ns.new_userns(uid_map=ranges)
    with pytest.raises(PlanError):
        ns.new_userns(gid_map=ranges)


def test_user_namespaces_are_nested_by_their_owners() -> None:
    """The owner of a user namespace is the one that it was made in."""
    with ns.new_userns() as namespace:
        assert namespace.owner.id == here("user")


# ---- equality ----


def test_handles_of_one_namespace_are_equal() -> None:
    """Handles are equal, and one member of a set, when they are for the same namespace, whatever they were opened by."""
    with closing(ns.new_userns()) as one, closing(ns.new_userns()) as other, ns.open_userns(fd=one) as again:
        assert one == again
        assert hash(one) == hash(again)
        assert one != other
        assert one != one.id
        assert {one, again, other} == {one, other}
    assert one == again


def test_handles_cannot_be_forged() -> None:
    """No handle is made but by the functions for it."""
    for cls in (ns.Namespace, ns.NetNS, ns.UserNS):
        with pytest.raises(TypeError, match="no public constructor"):
            cls(3)  # type: ignore[arg-type]


def test_forgotten_handle_is_closed_and_complains() -> None:
    """A handle that nobody closed is closed when it goes, with a ResourceWarning that names it."""
    before = set(os.listdir("/proc/self/fd"))
    with pytest.warns(ResourceWarning, match=r"never closed: <UserNS user:\["):
        ns.new_userns()
    assert set(os.listdir("/proc/self/fd")) == before


# ---- open ----


@every_kind
def test_namespace_of_a_process(kind: str) -> None:
    """By pid, the namespace is that of the process."""
    with closing(NEW[kind]()) as namespace, namespace.spawn(["sleep", "1000"]) as process:
        with closing(OPEN[kind](pid=process.pid)) as opened:
            assert opened == namespace
        with ns.of(process.pid) as every:
            assert every[kind] == namespace


@every_kind
def test_adopted_namespace_outlives_its_handle(kind: str) -> None:
    """Closing a handle that adopted a namespace takes nothing away from who is inside."""
    with closing(OPEN[kind](pid=os.getpid())) as opened:
        assert opened.id == here(kind)
    assert here(kind) == opened.id


@every_kind
def test_namespace_by_path_and_descriptor(kind: str) -> None:
    """By path or by descriptor it is the same one, and the caller's descriptor stays open."""
    path = f"/proc/self/ns/{kind}"
    with open(path, "rb") as file, ExitStack() as stack:
        for how in ({"path": path}, {"fd": file}, {"fd": file.fileno()}):
            opened = stack.enter_context(closing(OPEN[kind](**how)))
            assert opened.id == os.fstat(file.fileno()).st_ino


def test_namespace_of_a_thread() -> None:
    """A pid may be that of a thread that is not the first of its process."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        with closing(ns.open_netns(pid=thread.native_id)) as opened:
            assert opened.id == here("net")
    finally:
        end.set()
        thread.join()


@pytest.mark.parametrize("pid", [0, -1, True, 2**22 + 1, 2**40, "1", 1.0])
def test_impossible_pids_are_refused(pid: int) -> None:
    """What cannot be a pid is a PlanError; none of these means "myself" or "a group"."""
    with pytest.raises(PlanError, match="pid"):
        ns.open_netns(pid=pid)
    with pytest.raises(PlanError, match="pid"):
        ns.of(pid)


def test_process_that_has_ended() -> None:
    """A pid that nobody has is a GoneError, and so is one of a process that waits to be reaped."""
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(GoneError):
        ns.open_netns(pid=child.pid)
    child.wait()
    with pytest.raises(GoneError, match=f"process {child.pid}"):
        ns.open_netns(pid=child.pid)
    with pytest.raises(GoneError):
        ns.of(child.pid)


def test_without_the_calls_of_newer_kernels(needs_root: None) -> None:
    """Before Linux 6.11, where a pidfd does not know the namespaces, /proc does."""

    def worker() -> None:
        for kind, number in calls.PIDFD_NAMESPACE.items():
            restrict_thread(Denied("ioctl", ENOTTY, ((1, 0xFF00 | number),)))
            if kind in KINDS:
                with closing(OPEN[kind](pid=os.getpid())) as opened:
                    assert opened.id == here(kind)
        for kind in KINDS:
            with closing(NEW[kind]()) as made:
                assert made.id != here(made.kind)

    in_a_thread(worker)


@pytest.mark.unprivileged
def test_process_of_another_user() -> None:
    """The namespaces of another user's process are refused, with a reason."""
    with pytest.raises(PermissionDenied, match="CAP_SYS_PTRACE"):
        ns.open_netns(pid=1)


def test_exactly_one_way_to_say_which() -> None:
    """No argument, or two of them, is a PlanError."""
    with pytest.raises(PlanError, match="exactly one"):
        ns.open_netns()
    with pytest.raises(PlanError, match="exactly one"):
        ns.open_netns(pid=os.getpid(), path="/proc/self/ns/net")


def test_kinds_are_not_mistaken() -> None:
    """A namespace of another kind is a PlanError that names both."""
    with pytest.raises(PlanError, match="kind uts, not net"):
        ns.open_netns(path="/proc/self/ns/uts")
    with open("/proc/self/ns/net", "rb") as file, pytest.raises(PlanError, match="kind net, not mnt"):
        ns.open_mntns(fd=file)


def test_things_that_are_no_namespaces(tmp_path: Path) -> None:
    """Whatever else is at a path or behind a descriptor is named, and nothing is read from it or waited for."""
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    for path, what in (
        (tmp_path / "file", "a regular file"),
        (tmp_path, "a directory"),
        (tmp_path / "pipe", "a pipe"),
        ("/dev/null", "a character device"),
    ):
        with pytest.raises(PlanError, match=what):
            ns.open_netns(path=path)
    pidfd, timer = os.pidfd_open(os.getpid()), os.memfd_create("regular", os.MFD_CLOEXEC)
    one, other = socket.socketpair()
    with one, other, pytest.raises(PlanError, match="a socket"):
        ns.open_netns(fd=one)
    with pytest.raises(PlanError, match="pidfd"):
        ns.open_netns(fd=pidfd)
    with pytest.raises(PlanError, match="a regular file"):
        ns.open_netns(fd=timer)
    os.close(pidfd)
    os.close(timer)


def test_descriptors_that_are_none() -> None:
    """A closed descriptor, a negative one, and what has none are PlanErrors."""
    fd = os.open("/proc/self/ns/net", os.O_RDONLY)
    os.close(fd)
    for wrong in (fd, -1, True, 2**31 - 1, "3", object()):
        with pytest.raises(PlanError, match="fd"):
            ns.open_netns(fd=wrong)  # type: ignore[arg-type]


def test_descriptor_that_is_only_a_path() -> None:
    """A descriptor that was opened with O_PATH is refused with the reason."""
    fd = os.open("/proc/self/ns/net", os.O_PATH)
    with pytest.raises(PlanError, match="O_PATH"):
        ns.open_netns(fd=fd)
    os.close(fd)


@pytest.mark.parametrize("path", ["", "a\0b", "x" * 5000, 7])
def test_impossible_paths_are_refused(path: str) -> None:
    """What cannot be a path is a PlanError."""
    with pytest.raises(PlanError, match="path"):
        ns.open_netns(path=path)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/run/netns/a", "a\0", "x" * 256, 7])
def test_impossible_names_of_ip_netns_are_refused(name: str) -> None:
    """A name is one part of a path: everything else is a PlanError."""
    with pytest.raises(PlanError, match="name"):
        ns.open_netns(name=name)


def test_name_that_is_not_there() -> None:
    """A name that nobody has given is an error which says how to see the names."""
    with pytest.raises(SyscallError, match="ip netns list"):
        ns.open_netns(name="isolib-nobody-has-this")


def test_all_namespaces_of_this_thread() -> None:
    """`of` has all eight kinds of the calling thread, and closes them together."""
    with ns.of() as every:
        assert {kind: handle.id for kind, handle in every.items()} == {kind: here(kind) for kind in KINDS}
        assert len(every) == len(KINDS)
        assert every["net"].kind == "net"
    assert all(handle.closed for handle in every.values())


# ---- refusals ----

IN_A_USER_NAMESPACE = """
import isolib, sys
from pathlib import Path
for kind, value in {limits!r}.items():
    Path(f"/proc/sys/user/max_{{kind}}_namespaces").write_text(value)
try:
    isolib.{call}
except isolib.SyscallError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("kind", "call"),
    [("net", "new_netns()"), ("uts", "new_utsns()"), ("pid", "new_pidns()"), ("mnt", "new_mntns()"), ("user", "new_userns()")],
)
def test_limit_on_namespaces_is_named(user_namespaces: None, kind: str, call: str) -> None:
    """When a limit on namespaces is reached, the message says which sysctl it is, not "No space left on device"."""
    code = IN_A_USER_NAMESPACE.format(limits={kind: "0"}, call=call)
    argv = ["unshare", "--user", "--map-root-user", sys.executable, "-c", code]
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment)
    assert f"user.max_{kind}_namespaces" in done.stdout, done.stderr


def test_names_are_at_the_top() -> None:
    """What makes and adopts namespaces is importable from isolib itself."""
    for kind in NEW:
        assert getattr(isolib, f"new_{kind}ns") is NEW[kind]
        assert getattr(isolib, f"open_{kind}ns") is OPEN[kind]


@pytest.mark.skipif(HAS_TIME, reason="this kernel has time namespaces")
def test_kernel_without_time_namespaces() -> None:
    """Where the kernel does not have a kind, making and adopting it is Unsupported."""
    with pytest.raises(Unsupported, match="CONFIG_TIME_NS"):
        ns.new_timens()
    with pytest.raises(Unsupported, match="time"):
        ns.open_timens(pid=os.getpid())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ENTERED_BY_THREADS])
def test_kinds_that_threads_do_not_enter(kind: str) -> None:
    """For kinds that no thread can enter and leave, entering raises Unsupported with a way that works."""
    with closing(NEW[kind]()) as namespace:
        with pytest.raises(Unsupported, match=r"spawn\(\)"):
            namespace.entered()
        if kind != "mnt":
            with pytest.raises(Unsupported, match=r"spawn\(\)"):
                namespace.run(os.getpid)


def test_whether_this_is_the_first_user_namespace() -> None:
    """Only where it is; not in another one either to which every id is mapped as it is, as the host's administrator may."""
    is_first = os.readlink("/proc/self/ns/user") == "user:[4026531837]"
    assert calls.is_in_first_userns() == is_first
    program = "from isolib._kernel import calls; print(calls.is_in_first_userns())"
    maps: list[str | list[IdMap]] = ["same", *([[IdMap(0, 0, 2**32 - 1)]] if is_first and os.geteuid() == 0 else [])]
    for one in maps:
        with isolib.spawn([sys.executable, "-c", program], new={"user"}, id_map=one, stdout=PIPE) as process:
            assert process.communicate()[0] == b"False\n"
