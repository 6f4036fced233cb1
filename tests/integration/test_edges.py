"""The edges of what processes, mounts and sandboxes promise: odd hosts, refusals, orphans, keys, groups, terminals, forks."""

from __future__ import annotations

import errno
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import warnings
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib import DEVNULL, PIPE, STDOUT, IdMap, PlanError, Reason, Sandbox, SetupFailed, spawn
from isolib import namespaces as ns
from isolib.mounts import Bind, Dev, File, Mask, Overlay, Proc, Root
from tests.seccomp import MACHINE, NUMBERS
from tests.strace import attached
from tests.threads import here

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from isolib.mounts import Mount

pytestmark = pytest.mark.usefixtures("user_namespaces")

IS_ROOT = os.geteuid() == 0
ID_MAP = "auto" if IS_ROOT else "root"
KINDS = frozenset({"user", "mnt", "pid", "ipc"})
PATIENCE = 10


def output(argv: list[str], **options: object) -> str:
    """Run a program by spawn and return all that it printed."""
    with spawn(argv, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, **options) as process:  # type: ignore[arg-type]
        out, _ = process.communicate(timeout=60)
    return os.fsdecode(out or b"")


def on_skeleton(script: str, *mounts: Mount, new: frozenset[str] = KINDS, **options: object) -> str:
    """Run a script in the host's root with these mounts."""
    id_map = ID_MAP if "user" in new else None
    argv = ["sh", "-c", script]
    return output(argv, new=new, root=Root.host(), mounts=mounts, id_map=id_map, cwd="/", **options)


def as_host(program: str, *prefix: str, cwd: str | Path = "/tmp") -> str:
    """Run a Python program, which has isolib, in a process of its own and return what it printed."""
    env = {
        "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
    }
    argv = [*prefix, sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def place() -> Iterator[Path]:
    """Return a directory that everybody may enter, on a file system of the disk."""
    path = Path(tempfile.mkdtemp(dir="/var/tmp", prefix="isolib-test-"))
    path.chmod(0o755)
    yield path
    subprocess.run(["rm", "-rf", path], check=True)  # overlay leaves directories that nobody may read


def ends(pidfd: int) -> bool:
    """Say whether a process ends while one waits for it."""
    return bool(select.select([pidfd], [], [], PATIENCE)[0])


# ---- signals, and who is left ----


def test_signal_to_the_group_stays_with_the_command() -> None:
    """kill(0) reaches neither the supervisor nor the host: without a namespace, in a sandbox, in one that stays."""
    argv = ["sh", "-c", "kill -TERM 0; sleep 60"]
    with spawn(argv) as process:
        assert process.wait(60).signal == signal.SIGTERM
    assert isolib.run(argv, cwd="/tmp").exit.signal == signal.SIGTERM
    with Sandbox(cwd="/tmp") as box:
        assert box.run(argv).exit.signal == signal.SIGTERM
        assert box.run(["true"]).returncode == 0


REAPED = """
for i in 1 2 3 4 5; do (setsid true &); done
(sh -c 'sleep 0.01 & exit' &)
turn=0
while grep -q '^State:.Z' /proc/[0-9]*/status 2>/dev/null; do
    turn=$((turn + 1)); [ $turn -gt 500 ] && exit 1; sleep 0.02
done
exit 0
"""


def test_orphans_are_reaped() -> None:
    """What ends without a parent to wait for it leaves no zombie: in sandboxes of both kinds and in bare pid namespaces."""
    argv = ["sh", "-c", REAPED]
    done = isolib.run(argv, cwd="/tmp", timeout=60)
    assert (done.returncode, done.stdout) == (0, b"")
    with Sandbox(cwd="/tmp") as box:
        done = box.run(argv, timeout=60)
        assert (done.returncode, done.stdout) == (0, b"")
    with spawn(argv, new={"user", "pid", "mnt"}, id_map=ID_MAP, mounts=[Proc()], stdout=PIPE) as process:
        assert process.communicate(timeout=60)[0] == b""
        assert process.wait(60).code == 0


@pytest.mark.parametrize("new", [set(), {"user", "pid"}], ids=["plain", "inside"])
def test_killed_supervisor_takes_the_command_along(new: set[str]) -> None:
    """A command whose supervisor is killed ends too: nobody would end it with its host."""
    with spawn(["sh", "-c", "echo; exec sleep 1000"], new=new, stdout=PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        command = os.pidfd_open(process.pid)
        try:
            signal.pidfd_send_signal(process.fileno(), signal.SIGKILL)
            assert process.wait(60).reason is Reason.KILLED
            assert ends(command)
        finally:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(command, signal.SIGKILL)
            os.close(command)


def test_waits_go_on_after_signals() -> None:
    """A host whose signal handler runs every half millisecond gets the whole of every output and the right statuses."""
    handled = 0

    def handle(_: int, __: object) -> None:
        nonlocal handled
        handled += 1

    seen = set()
    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 5e-4, 5e-4)
    try:
        for _ in range(10):
            with spawn(["sh", "-c", "cat; sleep 0.01; exit 5"], new={"user", "pid"}, stdin=PIPE, stdout=PIPE) as process:
                out, _ = process.communicate(bytes(1_000_000), timeout=60)
                seen.add((len(out or b""), process.wait().code))
            done = isolib.run(["sh", "-c", "sleep 0.01; echo x; exit 4"], cwd="/tmp")
            seen.add((len(done.stdout), done.returncode))
        with Sandbox(cwd="/tmp") as box:
            seen |= {(len(box.run(["echo", "yes"]).stdout), 0) for _ in range(10)}
        with closing(ns.new_userns()) as namespace:
            assert namespace.id != here("user")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert handled
    assert seen == {(1_000_000, 5), (2, 4), (4, 0)}


def test_sandbox_is_killed_from_another_thread() -> None:
    """kill() ends a run() that another thread is in; what comes later is refused, and close() works as ever."""
    with Sandbox(cwd="/tmp") as box:
        watch = box.popen(["sh", "-c", "until [ -e /tmp/up ]; do sleep 0.01; done; echo up; sleep 1000"])

        def kill() -> None:
            assert watch.stdout is not None
            watch.stdout.readline()
            box.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        assert box.run(["sh", "-c", "touch /tmp/up; sleep 1000"]).exit.signal == signal.SIGKILL
        killer.join()
        assert watch.wait(60).signal == signal.SIGKILL
        with pytest.raises(isolib.IsolibError):
            box.run(["true"])


@pytest.mark.parametrize("new", [set(), {"user", "pid"}], ids=["plain", "inside"])
def test_children_that_are_gone_at_once(new: set[str]) -> None:
    """Where SIGCHLD is ignored, a process of the launch that has ended before it could be watched is no failure."""
    with attached("-einject=pidfd_open:delay_enter=100000", "-etrace=pidfd_open") as trace:
        old = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        try:
            with spawn(["sh", "-c", "exit 7"], new=new) as process:
                assert process.wait(60).code == 7
        finally:
            signal.signal(signal.SIGCHLD, old)
    assert "(DELAYED)" in trace.text()


# ---- hosts that fork ----


def in_a_fork(action: Callable[[], object]) -> None:
    """Call something in a fork of this process, which then ends without more ado."""
    child = os.fork()
    if not child:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                action()
        finally:
            os._exit(0)
    os.waitpid(child, 0)


@pytest.mark.parametrize("action", [Sandbox.close, Sandbox.kill, Sandbox.__del__])
def test_sandbox_in_a_fork(action: Callable[[Sandbox], None]) -> None:
    """A fork's copy of a sandbox does nothing to the sandbox, whether it is closed, killed or forgotten."""
    with Sandbox(cwd="/tmp") as box:
        in_a_fork(lambda: action(box))
        assert box.run(["echo", "alive"]).stdout == b"alive\n"


FORKING = """
import multiprocessing, os, select, sys
import isolib

def work(pipe):
    box = isolib.Sandbox(cwd="/tmp")
    box.open()
    plain = isolib.spawn(["sleep", "1000"])
    inside = isolib.spawn(["sleep", "1000"], new={"user", "pid"})
    pipe.send([plain.pid, inside.pid, box.popen(["sleep", "1000"]).pid])
    pipe.recv()
    os._exit(0)  # as a worker of multiprocessing ends: no atexit, no finalizer

if __name__ == "__main__":
    for method in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        ours, theirs = context.Pipe()
        worker = context.Process(target=work, args=[theirs])
        worker.start()
        pidfds = [os.pidfd_open(pid) for pid in ours.recv()]
        ours.send("go")
        worker.join()
        print(method, [bool(select.select([fd], [], [], 10)[0]) for fd in pidfds])
"""


def test_workers_of_multiprocessing(tmp_path: Path) -> None:
    """A worker process that ends without closing anything leaves nothing, however it was started."""
    program = tmp_path / "forking.py"
    program.write_text(FORKING)
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    done = subprocess.run([sys.executable, program], env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.splitlines() == [f"{name} [True, True, True]" for name in ("fork", "spawn", "forkserver")], done.stderr


def test_namespaces_where_children_are_not_waited_for() -> None:
    """Namespaces of every kind are made where SIGCHLD is ignored, and the maker can start threads and programs afterwards."""
    makers: list[Callable[[], ns.Namespace]] = [ns.new_netns, ns.new_utsns, ns.new_ipcns, ns.new_cgroupns, ns.new_mntns]
    makers += [ns.new_pidns, ns.new_userns, *([ns.new_timens] if os.path.exists("/proc/self/ns/time") else [])]

    def links() -> dict[str, str]:
        return {name: os.readlink(f"/proc/thread-self/ns/{name}") for name in os.listdir("/proc/thread-self/ns")}

    before = links()
    old = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        for make in makers:
            with closing(make()) as namespace, namespace.spawn(["sh", "-c", "exit 3"]) as process:
                assert process.wait(60).code == 3
                started = threading.Thread(target=lambda: None)
                started.start()
                started.join()
    finally:
        signal.signal(signal.SIGCHLD, old)
    assert links() == before
    assert subprocess.run(["true"], check=False).returncode == 0


# ---- who the command is ----


@pytest.mark.parametrize("kind", ["pid", "net", "ipc", "mnt", "uts", "cgroup", "time"])
def test_other_namespaces_are_the_hosts(kind: str) -> None:
    """A process has new namespaces of the kinds that are named, and the host's of all others."""
    if not os.path.exists(f"/proc/self/ns/{kind}"):
        pytest.skip(f"this kernel has no {kind} namespaces")
    new = {kind} if IS_ROOT else {"user", kind}
    kinds = [name for name in os.listdir("/proc/self/ns") if not name.endswith("_for_children")]
    script = " ".join(f"/proc/self/ns/{name}" for name in kinds)
    seen = output(["readlink", *script.split()], new=new).split()
    different = {name for name, link in zip(kinds, seen, strict=True) if link != os.readlink(f"/proc/self/ns/{name}")}
    assert different == new


def test_user_and_group_are_those_asked_for() -> None:
    """user=(uid, gid) is who the command is, both parts of it, in sandboxes of both kinds."""
    for user in ((1000, 1001), (0, 5)):
        argv = ["sh", "-c", "id -u; id -g"]
        assert tuple(map(int, isolib.run(argv, cwd="/tmp", user=user).stdout.split())) == user
        with Sandbox(cwd="/tmp", user=user) as box:
            assert tuple(map(int, box.run(argv).stdout.split())) == user


@pytest.mark.root
def test_groups_of_the_host_are_given_up() -> None:
    """A command with an identity of its own, or in a sandbox, is in no further group of its host's."""
    program = """
        import os, isolib
        os.setgroups([4, 27, 54321])
        def groups(**options):
            with isolib.spawn(["id", "-G"], stdout=isolib.PIPE, **options) as process:
                return process.communicate()[0].split()
        print(groups(user=(1000, 1001)), groups(new={"user"}, id_map="auto", user=(1000, 1001)))
        print(isolib.run(["id", "-G"]).stdout, isolib.run(["id", "-G"], user=(1000, 1001)).stdout)
        with isolib.Sandbox() as box:
            print(box.run(["id", "-G"]).stdout)
    """
    assert as_host(program).split("\n")[:3] == [r"[b'1001'] [b'1001']", r"b'0\n' b'1001\n'", r"b'0\n'"]


@pytest.mark.root
def test_working_directory_is_entered_as_the_user(place: Path) -> None:
    """The working directory is one that the command's user may enter: what only root may is refused."""
    for name, owner in (("own", 1000), ("closed", 0)):
        (place / name).mkdir(mode=0o700)
        os.chown(place / name, owner, owner)
    assert output(["pwd"], user=(1000, 1000), cwd=str(place / "own")) == f"{place}/own\n"
    with pytest.raises(SetupFailed) as caught:
        spawn(["pwd"], user=(1000, 1000), cwd=str(place / "closed"))
    assert (caught.value.op, caught.value.errno, caught.value.target) == ("chdir", errno.EACCES, f"{place}/closed")


def test_commands_in_a_sandbox_have_no_power() -> None:
    """A command that joins a sandbox has no capability, can gain none, and has no descriptor but its streams."""
    secret = os.open("/etc", os.O_RDONLY)
    os.set_inheritable(secret, True)  # noqa: FBT003 - its only form
    try:
        with Sandbox(cwd="/tmp") as box:
            done = box.run(["sh", "-c", "cat /proc/self/status; echo; ls /proc/self/fd; readlink /proc/self/ns/* "])
            again = box.run(["sh", "-c", "readlink /proc/self/ns/*"]).stdout.decode().split()
    finally:
        os.close(secret)
    status, _, rest = done.stdout.decode().partition("\n\n")
    fields = dict(line.split(":", 1) for line in status.splitlines())
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(fields[name], 16) == 0, name
    assert fields["NoNewPrivs"].strip() == "1"
    assert rest.split()[:4] == ["0", "1", "2", "3"]  # 3 is ls's own
    assert rest.split()[4:] == again
    host = {os.readlink(f"/proc/self/ns/{kind}") for kind in ("pid", "net", "ipc", "mnt", "uts", "user", "cgroup")}
    assert not host & set(again)


# ---- keys, limits, groups of the kernel ----

KEYS = f"""
import ctypes
libc = ctypes.CDLL(None)
libc.syscall.restype = ctypes.c_long
buffer = ctypes.create_string_buffer(100)
for ring in (-3, -4, -5):  # of the session, the user, the user's sessions
    print(libc.syscall({NUMBERS["keyctl"][MACHINE]}, 10, ring, b"user", b"isolib-test", 0))
print(libc.syscall({NUMBERS["request_key"][MACHINE]}, b"user", b"isolib-test", None, 0))
for key in {{keys}}:
    print(libc.syscall({NUMBERS["keyctl"][MACHINE]}, 11, key, buffer, 100))
"""


def test_keys_of_the_host_are_out_of_reach() -> None:
    """A key in the session's or the user's keyring of the host is neither found nor read in a sandbox."""
    program = f"""
        import ctypes, isolib
        libc = ctypes.CDLL(None)
        libc.syscall.restype = ctypes.c_long
        add, control = {NUMBERS["add_key"][MACHINE]}, {NUMBERS["keyctl"][MACHINE]}
        libc.syscall(control, 1, None)  # a session of its own
        libc.syscall(control, 8, -4, -3)  # from which the user's is found
        keys = [libc.syscall(add, b"user", b"isolib-test", b"secret", 6, ring) for ring in (-3, -4)]
        look = {KEYS!r}.format(keys=keys)
        try:
            exec(look)
            print("--")
            for options in ({{"new": {{"user"}}}}, {{"new": {{"user", "pid"}}}}):
                with isolib.spawn(["python3", "-c", look], stdout=isolib.PIPE, **options) as process:
                    print(process.communicate()[0].decode())
            print(isolib.run(["python3", "-c", look]).stdout.decode())
            with isolib.Sandbox() as box:
                print(box.run(["python3", "-c", look]).stdout.decode())
        finally:
            for key, ring in zip(keys, (-3, -4)):
                libc.syscall(control, 9, key, ring)
    """
    outside, _, inside = as_host(program).partition("--")
    if set(outside.split()) == {"-1"}:
        pytest.skip("this host refuses keyrings to all its programs")
    assert "-1" not in outside.split(), outside
    assert inside.split() == ["-1"] * 24


def test_limit_above_the_hosts_is_an_error() -> None:
    """A hard limit that would have to be raised is an error that names the step and the capability; an equal one is set."""
    program = """
        import resource, isolib
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
        try:
            isolib.spawn(["true"], new={"user"}, rlimits={resource.RLIMIT_NOFILE: (200, 200)}).close()
        except isolib.SetupFailed as error:
            print(error.op, error.errno, "RLIMIT" in error.step, "CAP_SYS_RESOURCE" in error.hint, flush=True)
        limits = {resource.RLIMIT_NOFILE: 100}
        with isolib.spawn(["sh", "-c", "ulimit -Sn; ulimit -Hn"], new={"user"}, rlimits=limits) as process:
            process.wait()
    """
    assert as_host(program).splitlines() == ["prlimit64 1 True True", "100", "100"]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert output(["sh", "-c", "ulimit -Sn; ulimit -Hn"], rlimits={resource.RLIMIT_NOFILE: (50, hard)}).split()[0] == "50"


CGROUPS = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
uid, gid = os.geteuid(), os.getegid()
if libc.unshare(0x10000000 | 0x00020000 | 0x02000000) == 0:
    open("/proc/self/setgroups", "w").write("deny")
    open("/proc/self/uid_map", "w").write(f"0 {uid} 1")
    open("/proc/self/gid_map", "w").write(f"0 {gid} 1")
    print("root inside")
kinds = [(b"cgroup2", None)] + [(b"cgroup", name) for name in (b"cpu", b"memory", b"pids", b"freezer", b"devices", b"cpuset")]
for kind, options in kinds:
    if libc.mount(b"none", b"/tmp", kind, 0, options):
        continue
    for name in ("isolib-test",):
        try:
            os.mkdir(f"/tmp/{name}")
            print(kind, options, "made")
        except OSError:
            pass
    for name in os.listdir("/tmp"):
        if not os.path.isdir(f"/tmp/{name}") and os.access(f"/tmp/{name}", os.W_OK):
            print(kind, options, name)
    libc.umount2(b"/tmp", 2)
"""


def test_cgroups_cannot_be_changed() -> None:
    """Root of a user namespace that was made inside may mount cgroups, where the kernel lets it, and changes nothing there."""
    done = isolib.run(["python3", "-c", CGROUPS], cwd="/tmp", timeout=60)
    assert done.stdout in {b"", b"root inside\n"}, done.stdout
    assert done.stderr == b""


@pytest.mark.root
def test_settings_where_root_inside_is_root() -> None:
    """With a private /proc, who is the host's root inside cannot write to /proc/sys either."""
    before = Path("/proc/sys/kernel/core_pattern").read_bytes()
    script = "cat /proc/self/uid_map; echo x > /proc/sys/kernel/core_pattern"
    out = output(["sh", "-c", script], new={"user", "pid", "mnt"}, id_map="root", mounts=[Proc()])
    assert out.split()[:3] == ["0", "0", "1"]
    assert "Read-only file system" in out
    assert Path("/proc/sys/kernel/core_pattern").read_bytes() == before


# ---- streams and terminals ----


def test_streams_keep_their_owner(place: Path) -> None:
    """A file or a device that is given as a stream belongs to whom it belonged, whoever the command is."""

    def owners() -> list[tuple[int, int, int]]:
        found = [os.stat(path) for path in ("/dev/null", place / "file")]
        return [(one.st_uid, one.st_gid, one.st_mode) for one in found]

    with (place / "file").open("wb") as file, Path("/dev/null").open("r+b") as null:
        before = owners()
        with spawn(["true"], new=KINDS, id_map=ID_MAP, stdin=null, stdout=file, stderr=DEVNULL) as process:
            process.wait(60)
        with Sandbox(cwd="/tmp") as box, box.popen(["echo", "x"], stdin=null, stdout=file, stderr=null) as process:
            process.wait(60)
        assert owners() == before
    assert (place / "file").read_bytes() == b"x\n"


def terminal_of(process: isolib.Process) -> list[str]:
    """Return what comes out of a process's terminal."""
    assert process.terminal is not None
    text = b""
    try:
        while chunk := process.terminal.read(1000):
            text += chunk
    except OSError as error:
        assert error.errno == errno.EIO  # noqa: PT017 - the end
    return text.decode().split()


@pytest.mark.parametrize("user", [None, (1000, 1000)])
def test_terminal_in_a_sandbox(user: tuple[int, int] | None) -> None:
    """A terminal of a sandbox is one of its own devpts, the command's by owner, and its controlling one."""
    script = "tty; stat -c %u $(tty); id -u; ls /dev/pts; echo written > /dev/tty"
    uid = "0" if user is None else str(user[0])
    expected = ["/dev/pts/0", uid, uid, "0", "ptmx", "written"]
    with Sandbox(cwd="/tmp", user=user) as box, box.popen(["sh", "-c", script], pty=True) as process:
        assert terminal_of(process) == expected
    if user is None:
        argv, mounts = ["sh", "-c", script], [Proc(), Dev()]
        with spawn(argv, new=KINDS, mounts=mounts, id_map=ID_MAP, user=0, pty=True) as process:
            assert terminal_of(process) == expected


# ---- mounts ----


def test_mounts_of_the_host_are_read_only() -> None:
    """A file system that the host has mounted below a visible directory, writable for everybody, is not so in a sandbox."""
    setup = 'mount -t tmpfs -o mode=777 none /srv; touch /srv/seen; chmod 666 /srv/seen; exec "$@"'
    options = ["--propagation", "private"] if IS_ROOT else ["--user", "--map-current-user", "--keep-caps"]
    program = """
        import isolib, os
        done = isolib.run(["sh", "-c", "ls /srv; echo > /srv/new; echo > /srv/seen; mkdir /srv/x"], cwd="/tmp")
        print(done.stdout, done.stderr.count(b"Read-only file system"), os.listdir("/srv"))
    """
    out = as_host(program, "unshare", "--mount", *options, "sh", "-ec", setup, "sh")
    assert out == "b'seen\\n' 3 ['seen']\n"


def test_names_that_are_no_text(place: Path) -> None:
    """Names that are no UTF-8 work as source and target, and are not changed."""
    odd = os.fsencode(place) + b"/caf\xe9"
    os.mkdir(odd)
    with open(odd + b"/\xff", "w", encoding="ascii") as file:
        file.write("content")
    os.chmod(odd, 0o755)
    out = on_skeleton("cat /d*/s*/*; ls /d?", Bind(odd, b"/d\xe9/s\xfe"), File(b"/d\xe9/file\xfd", "x"))
    assert os.fsencode(out).startswith(b"content")
    assert {b"file\xfd", b"s\xfe"} <= set(
        os.fsencode(on_skeleton("ls /d*", File(b"/d\xe9/file\xfd", ""), Dev(b"/d\xe9/s\xfe"))).split()
    )


def test_covered_directory_is_empty(place: Path) -> None:
    """A masked directory has the link count of an empty one, so that find(1) does not look for more."""
    (place / "a" / "b").mkdir(parents=True)
    assert on_skeleton("stat -c %h /data; find /data", Bind(place, "/data"), Mask("/data")).split() == ["2", "/data"]


def test_most_layers(place: Path) -> None:
    """500 layers with names of 150 characters are one file system."""
    lowers = []
    for number in range(500):
        lower = place / f"{number} {'x' * 150}"
        lower.mkdir()
        (lower / str(number)).touch()
        lowers.append(lower)
    assert on_skeleton("ls /data | wc -l", Overlay("/data", lowers)) == "500\n"


WRONG_LAYERS: dict[str, Callable[[Path, Path], tuple[Path, Path, Path]]] = {
    "work on another file system": lambda one, other: (one / "lower", one / "upper", other),
    "lower in upper": lambda one, _: (one / "upper" / "in", one / "upper", one / "work"),
    "work in upper": lambda one, _: (one / "lower", one / "upper", one / "upper" / "in"),
    "lower by a link is upper": lambda one, _: (one / "link", one / "upper", one / "work"),
}


@pytest.mark.parametrize("layers", WRONG_LAYERS)
def test_layers_that_do_not_go_together(layers: str, place: Path) -> None:
    """Layers that overlay refuses together are an error that names the mount and says what is wrong with them."""
    for name in ("lower", "upper", "work", "upper/in"):
        (place / name).mkdir()
    (place / "link").symlink_to("upper")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        if os.stat(other).st_dev == place.stat().st_dev:
            pytest.skip("/dev/shm is on the file system of /var/tmp")
        lower, upper, work = WRONG_LAYERS[layers](place, Path(other))
        new = KINDS - {"user"} if IS_ROOT else KINDS
        with pytest.raises(SetupFailed) as caught:
            on_skeleton("true", Overlay("/data", [lower], upper=upper, work=work), new=new)
    assert caught.value.op == "fsconfig"
    assert caught.value.target is not None
    assert caught.value.target.startswith("/data")
    assert caught.value.hint is not None
    assert "upper" in caught.value.hint
    assert not os.listdir(place / "upper" / "in")


@pytest.mark.root
def test_several_id_maps_of_one_source(place: Path) -> None:
    """One directory can be bound several times, with other owners in each place; what is written lands with the right one."""
    os.chown(place, 4000, 4000)
    place.chmod(0o777)
    binds = [
        Bind(place, "/one", readonly=False, id_map=[IdMap(7, 4000)]),
        Bind(place, "/two", readonly=False, id_map=[IdMap(7, 5000), IdMap(8, 4000)]),
    ]
    out = on_skeleton("stat -c %u /one /two; touch /one/a /two/b", *binds, user=(7, 7))
    assert out.split() == ["7", "8"]
    assert ((place / "a").stat().st_uid, (place / "b").stat().st_uid) == (4000, 5000)


# ---- refusals ----

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


@pytest.mark.parametrize(
    "limit", [{"wall": -1}, {"wall": 1e12}, {"wall": "x"}, {"output": -1}, {"output": "1X"}, {"output": 2**70}]
)
def test_impossible_limits(limit: dict[str, object]) -> None:
    """A limit that is negative, too large or no number is a PlanError that names it."""
    with pytest.raises(PlanError, match=next(iter(limit))):
        isolib.run(["true"], cwd="/tmp", **limit)  # type: ignore[arg-type]
