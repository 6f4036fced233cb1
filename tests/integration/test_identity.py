"""Who a command is: its namespaces, ids, groups, keys, limits, streams and terminal."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

import isolib
from isolib import DEVNULL, PlanError, Sandbox, SetupFailed, spawn
from isolib.mounts import Dev, Proc
from tests.programs import ID_MAP, IS_ROOT, KINDS, as_host, output
from tests.seccomp import MACHINE, NUMBERS

pytestmark = pytest.mark.usefixtures("user_namespaces")


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


@pytest.mark.parametrize(
    "limit", [{"wall": -1}, {"wall": 1e12}, {"wall": "x"}, {"output": -1}, {"output": "1X"}, {"output": 2**70}]
)
def test_impossible_limits(limit: dict[str, object]) -> None:
    """A limit that is negative, too large or no number is a PlanError that names it."""
    with pytest.raises(PlanError, match=next(iter(limit))):
        isolib.run(["true"], cwd="/tmp", **limit)  # type: ignore[arg-type]


CGROUPS = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
uid, gid = os.geteuid(), os.getegid()
if libc.unshare(0x10000000 | 0x00020000 | 0x02000000):
    raise OSError(ctypes.get_errno(), "unshare")
for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
    with open(f"/proc/self/{name}", "w") as file:
        file.write(text)
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
    done = isolib.run(["python3", "-c", CGROUPS], cwd="/tmp", user=(1000, 1000), timeout=60)
    assert (done.stdout, done.stderr) == (b"root inside\n", b"")


@pytest.mark.root
def test_settings_where_root_inside_is_root() -> None:
    """With a private /proc, who is the host's root inside cannot write to /proc/sys either."""
    before = Path("/proc/sys/kernel/core_pattern").read_bytes()
    script = "cat /proc/self/uid_map; echo x > /proc/sys/kernel/core_pattern"
    out = output(["sh", "-c", script], new={"user", "pid", "mnt"}, id_map="root", mounts=[Proc()])
    assert out.split()[:3] == ["0", "0", "1"]
    assert "Read-only file system" in out
    assert Path("/proc/sys/kernel/core_pattern").read_bytes() == before


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
