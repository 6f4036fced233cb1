"""What is said to systemd, and what is made of its answers. The bus is a real one; a small program plays systemd on it."""

from __future__ import annotations

import asyncio
import errno
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jeepney
import pytest

from isolib import GoneError, PermissionDenied, PlanError, SyscallError, Unsupported
from isolib.cgroups import systemd, systemd_bus
from isolib.cgroups.systemd_bus import MANAGER, Message, decoded, method_call, refused, user_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SOMEBODY = os.getppid() or 1
"""A process that is not this one; nothing happens to it, for there is no real systemd here."""

FAKE = Path(__file__).parents[1] / "fake_systemd.py"
FREEDESKTOP = "org.freedesktop.DBus.Error"


# ---- arguments ----


@pytest.mark.parametrize(
    "bad",
    [
        lambda: systemd.start_scope([]),
        lambda: systemd.start_scope([0]),
        lambda: systemd.start_scope([-1]),
        lambda: systemd.start_scope([2**31]),
        lambda: systemd.start_scope([SOMEBODY, os.getpid()]),
        lambda: systemd.start_scope([SOMEBODY], timeout=0),
        lambda: systemd.start_scope([SOMEBODY], timeout=float("nan")),
    ],
)
def test_bad_arguments(bad: Callable[[], object]) -> None:
    """A bad argument is refused before systemd is looked for; the calling process and the sender (0) are bad ones."""
    with pytest.raises(PlanError):
        bad()


# ---- messages ----


def parsed(data: bytes) -> Any:  # noqa: ANN401 -- jeepney has no types
    """Return the one message that the bytes are."""
    (message,) = jeepney.Parser().feed(data)
    return message


def test_start_is_what_systemd_understands() -> None:
    """The call has the method's signature, and the properties that make a delegated scope of the processes."""
    properties = systemd._properties([7, 8])
    call = parsed(method_call(3, MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", ("x.scope", "fail", properties, [])))
    field = jeepney.HeaderFields
    assert call.header.message_type is jeepney.MessageType.method_call
    assert call.header.flags == jeepney.MessageFlag.no_auto_start
    assert call.header.serial == 3
    assert call.header.fields == {
        field.path: "/org/freedesktop/systemd1",
        field.interface: "org.freedesktop.systemd1.Manager",
        field.member: "StartTransientUnit",
        field.destination: "org.freedesktop.systemd1",
        field.signature: "ssa(sv)a(sa(sv))",
    }
    name, mode, pairs, others = call.body
    assert (name, mode, others) == ("x.scope", "fail", [])
    assert dict(pairs) == {
        "Description": ("s", "Processes of isolib"),
        "PIDs": ("au", [7, 8]),
        "Delegate": ("b", True),
        "CollectMode": ("s", "inactive-or-failed"),
        "TasksMax": ("t", 2**64 - 1),
    }


def removed(job: str, result: str, *, sender: str = ":1.0") -> Message:
    """Return the signal that a job has ended, as it comes over the bus."""
    address = jeepney.DBusAddress(MANAGER.path, interface=MANAGER.interface)
    signal = jeepney.new_signal(address, "JobRemoved", "uoss", (5, job, "x.scope", result))
    signal.header.fields[jeepney.HeaderFields.sender] = sender
    received = parsed(signal.serialise(serial=9))
    return decoded(received.header.fields, received.body)


@pytest.mark.parametrize("result", ["done", "failed", "canceled"])
def test_result_of_job(result: str) -> None:
    """The result of a job is read from the signal about it."""
    assert systemd.job_result(removed("/job/5", result), "/job/5", ":1.0") == result


@pytest.mark.parametrize(
    "signal",
    [
        removed("/job/6", "done"),
        removed("/job/55", "done"),
        removed("/job/5", "done", sender=":1.7"),
        Message(":1.0", None, None, MANAGER.path, "JobNew", (5, "/job/5", "x.scope")),
        Message(":1.0", None, None, "/elsewhere", "JobRemoved", (5, "/job/5", "x.scope", "done")),
    ],
)
def test_signal_of_others(signal: Message) -> None:
    """A signal about another job, from somebody else, of another kind or of another object says nothing about the job."""
    assert systemd.job_result(signal, "/job/5", ":1.0") is None


@pytest.mark.parametrize(
    ("name", "kind", "number", "says"),
    [
        (f"{FREEDESKTOP}.AccessDenied", PermissionDenied, errno.EACCES, "polkit"),
        (f"{FREEDESKTOP}.InteractiveAuthorizationRequired", PermissionDenied, errno.EACCES, "polkit"),
        (f"{FREEDESKTOP}.InvalidArgs", SyscallError, errno.EINVAL, "not today"),
        (f"{FREEDESKTOP}.PropertyReadOnly", SyscallError, errno.EINVAL, "systemd 236"),
        (f"{FREEDESKTOP}.UnixProcessIdUnknown", GoneError, errno.ESRCH, "not today"),
        ("org.freedesktop.systemd1.UnitExists", SyscallError, errno.EEXIST, "not today"),
        ("org.freedesktop.systemd1.NoSuchUnit", SyscallError, errno.ENOENT, "not today"),
        ("System.Error.ENOSPC", SyscallError, errno.ENOSPC, "not today"),
        ("System.Error.EPERM", PermissionDenied, errno.EPERM, "not today"),
        ("System.Error.EWHATEVER", SyscallError, errno.EIO, "System.Error.EWHATEVER"),
        ("org.example.Unheard", SyscallError, errno.EIO, "org.example.Unheard"),
    ],
)
def test_refusal(name: str, kind: type[SyscallError], number: int, says: str) -> None:
    """An error of the bus or of systemd becomes the exception that its meaning asks for, with what was said."""
    error = refused("StartTransientUnit", "x.scope", name, "not today")
    assert type(error) is kind
    assert isinstance(error, SyscallError)
    assert (error.op, error.target, error.errno) == ("StartTransientUnit", "x.scope", number)
    assert says in str(error)
    assert name in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301 -- our own


def test_refusal_keeps_its_line() -> None:
    """A text with line feeds and escape sequences does not get into an exception's message as it is."""
    error = refused("StartTransientUnit", "x.scope", "org.example.Unheard", "a\n\x1b[2Jb")
    assert str(error).isprintable()


@pytest.mark.parametrize("name", ["ServiceUnknown", "NameHasNoOwner", "Spawn.ChildExited"])
def test_systemd_not_on_bus(name: str) -> None:
    """That nobody on the bus is systemd is a matter of the host, not of the call."""
    assert isinstance(refused("Subscribe", "/", f"{FREEDESKTOP}.{name}", "no such name"), Unsupported)


# ---- where the bus is ----


@pytest.fixture
def sockets(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Return a function that makes a listening socket, and returns its path."""
    with ExitStack() as stack:

        def make(name: str) -> str:
            path = str(tmp_path / name)
            listening = stack.enter_context(socket.socket(socket.AF_UNIX))
            listening.bind(path)
            listening.listen()
            return path

        yield make


def test_runtime_directory_first(sockets: Callable[[str], str], tmp_path: Path) -> None:
    """The user's bus is where systemd puts it, also when the environment names another one for the session."""
    bus, other = sockets("bus"), sockets("other")
    environ = {"XDG_RUNTIME_DIR": str(tmp_path), "DBUS_SESSION_BUS_ADDRESS": f"unix:path={other}"}
    assert user_address(environ, os.geteuid()) == bus


@pytest.mark.parametrize(
    "address", ["unix:path={}", "tcp:host=h,port=1;unix:path={}", "unix:path=/nowhere;unix:path={},guid=00"]
)
def test_session_address(sockets: Callable[[str], str], tmp_path: Path, address: str) -> None:
    """Where systemd put none, the address in the environment is used: the first of it that is a socket of the user."""
    other, uid = sockets("other,a"), os.geteuid()
    escaped = other.replace(",", "%2c")
    environ = {"XDG_RUNTIME_DIR": str(tmp_path), "DBUS_SESSION_BUS_ADDRESS": address.format(escaped)}
    usual = f"/run/user/{uid}/bus"
    assert user_address(environ, uid) == (usual if os.path.exists(usual) else other)


def test_abstract_address() -> None:
    """An address that is no file is taken as it is."""
    environ = {"DBUS_SESSION_BUS_ADDRESS": "unix:abstract=/tmp/dbus-x,guid=00"}
    assert user_address(environ, 4_000_000_000) == "\0/tmp/dbus-x"


@pytest.mark.parametrize("address", ["", "nonsense", "tcp:host=h,port=1", "unix:path=/nowhere", "unix:path=/etc/passwd"])
def test_no_user_bus(sockets: Callable[[str], str], tmp_path: Path, address: str) -> None:
    """A bus of another user, as after su, and what is no bus, are not taken; the error says how to get one."""
    sockets("bus")
    environ = {"XDG_RUNTIME_DIR": str(tmp_path), "DBUS_SESSION_BUS_ADDRESS": address}
    with pytest.raises(Unsupported, match="loginctl enable-linger 4000000000") as caught:
        user_address(environ, 4_000_000_000)
    assert str(tmp_path / "bus") in caught.value.refused_by


@pytest.mark.parametrize("address", ["tcp:host=h,port=1", "nonsense"])
def test_bad_system_address(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """An address of the system's bus that cannot be used is named in the error."""
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
    with pytest.raises(Unsupported, match="DBUS_SYSTEM_BUS_ADDRESS"):
        systemd_bus.system_address()


# ---- what is missing ----


def test_no_systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where systemd does not run the error says that it is it that is missing."""
    monkeypatch.setattr(systemd, "_BOOTED", str(tmp_path / "missing"))
    assert not systemd.is_running()
    with pytest.raises(Unsupported, match="not systemd"):
        systemd.start_scope([SOMEBODY])


def test_no_jeepney(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the optional package the error says which it is and how to install it."""
    for name in ("jeepney", "jeepney.bus"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(Unsupported, match=re.escape("jeepney, which is not installed -- pip install 'isolib[systemd]'")):
        systemd_bus.system_address()


def test_jeepney_is_not_imported() -> None:
    """The module can be imported without the optional package, and does not import it."""
    code = "import sys, isolib.cgroups.systemd; sys.exit('jeepney' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- on a bus ----

CONFIGURATION = """
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>session</type><listen>unix:path={}</listen>{}
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy>
</busconfig>
"""


@contextmanager
def running(*argv: str | Path) -> Iterator[subprocess.Popen[str]]:
    """Run a program that prints a line when it is ready, and end it."""
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            assert process.stdout.readline()
            yield process
        finally:
            process.terminate()


@contextmanager
def daemon(directory: Path, more: str = "") -> Iterator[str]:
    """Run a bus, and give its address."""
    if shutil.which("dbus-daemon") is None:
        pytest.skip("dbus-daemon is not installed")
    (directory / "bus.conf").write_text(CONFIGURATION.format(directory / "bus", more))
    command = ("dbus-daemon", f"--config-file={directory / 'bus.conf'}", "--nofork", "--print-address")
    with running(*command):
        yield f"unix:path={directory / 'bus'}"


@pytest.fixture
def user_bus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return where the user's bus is, for a host that systemd has booted; there is none yet."""
    monkeypatch.setattr(systemd, "_BOOTED", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    return tmp_path / "bus"


@pytest.fixture
def manager(user_bus: Path) -> Iterator[Path]:
    """Run a bus with the fake systemd on it; what the file says that is returned happens to the jobs, nothing odd at first."""
    orders = user_bus.with_name("orders")
    orders.touch()
    with daemon(user_bus.parent) as address, running(sys.executable, FAKE, address, orders):
        yield orders


@pytest.fixture
def unit(monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what the next scope of this process is called."""
    monkeypatch.setattr(systemd, "_numbers", count(7))
    return f"isolib-{os.getpid()}-7.scope"


def start(timeout: float = 10.0) -> systemd.Scope:
    """Ask the fake systemd for a scope."""
    return systemd.start_scope([SOMEBODY], user=True, timeout=timeout)


def test_start(manager: Path, unit: str) -> None:
    """The scope that comes back has the name that was asked for and the group that systemd tells, when the job is done."""
    assert start() == systemd.Scope(unit, "/group/of/unit/of/it")


def test_names(manager: Path) -> None:
    """Scopes get different names with the number of this process."""
    first, second = start(), start()
    assert first.name != second.name
    assert re.fullmatch(rf"isolib-{os.getpid()}-\d+\.scope", first.name)


def test_taken_names_are_passed_over(manager: Path) -> None:
    """Where a name is taken the next is tried, until one is free."""
    number = int(start().name.split("-")[2].removesuffix(".scope"))
    manager.write_text("taken 3")
    assert start().name == f"isolib-{os.getpid()}-{number + 4}.scope"


def test_signal_before_answer(manager: Path) -> None:
    """A job that has ended before its name is known is not waited for."""
    manager.write_text("early done")
    assert start().path
    manager.write_text("early failed")
    with pytest.raises(SyscallError, match="'failed'"):
        start()


def test_forged_signal(manager: Path) -> None:
    """A signal that somebody else sends in systemd's words is not believed."""
    manager.write_text("forged")
    assert start().path


@pytest.mark.parametrize(
    ("result", "number"),
    [
        ("failed", errno.EIO),
        ("canceled", errno.ECANCELED),
        ("timeout", errno.ETIMEDOUT),
        ("dependency", errno.EIO),
        ("skipped", errno.ECANCELED),
        ("unheard-of", errno.EIO),
    ],
)
def test_job_fails(manager: Path, unit: str, result: str, number: int) -> None:
    """A job that does not end as "done" is an error that says how it ended."""
    manager.write_text(f"result {result}")
    with pytest.raises(SyscallError, match=repr(result)) as caught:
        start()
    assert (caught.value.op, caught.value.target, caught.value.errno) == ("StartTransientUnit", unit, number)


def test_unit_is_gone(manager: Path) -> None:
    """A scope whose processes have ended before its group was asked for is gone, which is an error."""
    manager.write_text("ended")
    with pytest.raises(GoneError, match="have ended"):
        start()


def test_refused_by_systemd(manager: Path) -> None:
    """An error that systemd answers is raised."""
    manager.write_text(f"error {FREEDESKTOP}.AccessDenied")
    with pytest.raises(PermissionDenied, match="polkit"):
        start()


@pytest.mark.parametrize("order", ["silent", "unfinished"])
def test_time_out(manager: Path, order: str) -> None:
    """An answer or a signal that does not come is waited for no longer than asked."""
    manager.write_text(order)
    with pytest.raises(SyscallError, match=r"within 0\.3 s") as caught:
        start(timeout=0.3)
    assert (caught.value.op, caught.value.errno) == ("StartTransientUnit", errno.ETIMEDOUT)


def test_programs_do_not_inherit_the_connection(manager: Path) -> None:
    """What another thread starts meanwhile does not get the connection to the bus, and the end of the block closes it."""
    with systemd_bus.connected(user=True, timeout=10) as (bus, _):
        number = bus._socket.fileno()
        assert not os.get_inheritable(number)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_in_event_loop(manager: Path, unit: str) -> None:
    """A scope can be started from a coroutine, as a notebook's cell is one."""

    async def cell() -> systemd.Scope:
        return start()

    assert asyncio.run(cell()).name == unit


def test_in_threads(manager: Path) -> None:
    """Threads that start scopes at once get one each."""
    with ThreadPoolExecutor(8) as pool:
        scopes = list(pool.map(lambda _: start(), range(32)))
    assert len({scope.name for scope in scopes}) == 32


def as_guest(*unshare: str) -> str:
    """Start a scope from other namespaces, by whom the default asks, and return its name or the error."""
    code = (
        "from isolib import IsolibError\n"
        "from isolib.cgroups import systemd\n"
        "systemd._BOOTED = '/'\n"
        f"try: print(systemd.start_scope([{SOMEBODY}]).name)\n"
        "except IsolibError as error: print(error)\n"
    )
    argv = ["unshare", "--map-root-user", *unshare, sys.executable, "-c", code]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def test_in_user_namespace(manager: Path, user_namespaces: None) -> None:
    """Root in a user namespace is known to the bus by the id that he has outside, and asks the user's systemd."""
    assert re.fullmatch(r"isolib-\d+-1\.scope", as_guest())


def test_in_pid_namespace(manager: Path, user_namespaces: None) -> None:
    """Where the number of a process means another one to systemd, none is moved."""
    assert "refused by the pid namespace" in as_guest("--pid", "--fork")


def test_no_systemd_on_bus(user_bus: Path) -> None:
    """A bus without systemd, as dbus-run-session makes one, is told from a refusal."""
    with daemon(user_bus.parent), pytest.raises(Unsupported, match="systemd is not"):
        start()


def test_refused_by_bus(user_bus: Path) -> None:
    """A bus that does not let this user in is told from one that is not there."""
    with daemon(user_bus.parent, "<auth>ANONYMOUS</auth>"), pytest.raises(PermissionDenied, match="REJECTED"):
        start()


def test_dead_socket(user_bus: Path) -> None:
    """A socket at which nobody listens any more is no bus."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(user_bus))
    with pytest.raises(Unsupported, match=f"{user_bus}.*refused"):
        start()


def test_silent_bus(user_bus: Path) -> None:
    """A bus that takes a connection and says nothing is waited for no longer than asked."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(user_bus))
        sock.listen()
        with pytest.raises(SyscallError) as caught:
            start(timeout=0.2)
    assert caught.value.errno == errno.ETIMEDOUT


def test_busy_bus(user_bus: Path) -> None:
    """A bus whose queue of connections stays full is an error of time, not a bus that is missing."""
    with ExitStack() as stack:
        sock = stack.enter_context(socket.socket(socket.AF_UNIX))
        sock.bind(str(user_bus))
        sock.listen(0)
        taken = 0
        while taken == 0:
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            taken = waiting.connect_ex(str(user_bus))
        assert taken == errno.EAGAIN
        with pytest.raises(SyscallError) as caught:
            start(timeout=0.2)
        assert caught.value.errno == errno.ETIMEDOUT


@pytest.mark.parametrize("answer", [b"", b"DATA\r\n", b"DATA\r\nOK 00\r\n", b"OK 00\r\n" * 2, b"ERROR\r\n"])
def test_bus_hangs_up(user_bus: Path, answer: bytes) -> None:
    """A bus that closes the connection, or speaks otherwise than a bus does, is an error at once."""

    def serve(sock: socket.socket) -> None:
        connection, _ = sock.accept()
        with connection:
            connection.recv(100)
            connection.sendall(answer)

    with socket.socket(socket.AF_UNIX) as sock, ThreadPoolExecutor(1) as pool:
        sock.bind(str(user_bus))
        sock.listen()
        serving = pool.submit(serve, sock)
        with pytest.raises(SyscallError) as caught:
            start(timeout=60)
        serving.result()
    assert caught.value.errno in {errno.ECONNRESET, errno.EPIPE, errno.EACCES}


# ---- whose group it is ----


@pytest.fixture
def tree(place: Path) -> Path:
    """Return a directory that looks like a hierarchy of cgroups with marks."""
    marked = (
        "system.slice/mine.scope",
        "user.slice/user-1.slice/user@1.service",
        "user.slice/user-1.slice/user@1.service/app.slice/mine.scope",
    )
    for path in (*marked, "system.slice/other.service", "system.slice/mine.scope/a/b", "raw/x"):
        (place / path).mkdir(parents=True, exist_ok=True)
    for path in marked:
        try:
            os.setxattr(place / path, "user.delegate", b"1")
        except OSError as error:
            pytest.skip(f"/var/tmp has no extended attributes of users: {error}")
    os.setxattr(place / "system.slice/other.service", "user.delegate", b"0")
    return place


def test_mark(tree: Path) -> None:
    """A group is delegated when its mark says so; another value and no mark say no."""
    assert systemd.delegated_by_systemd(f"{tree}/system.slice/mine.scope")
    assert not systemd.delegated_by_systemd(f"{tree}/system.slice/other.service")
    assert not systemd.delegated_by_systemd(f"{tree}/system.slice")


def test_mark_of_missing_group(tree: Path) -> None:
    """A group that is not there is not said to be without a mark."""
    with pytest.raises(SyscallError, match="getxattr") as caught:
        systemd.delegated_by_systemd(f"{tree}/missing")
    assert caught.value.errno == errno.ENOENT


def test_mark_where_there_are_none() -> None:
    """On a file system without such attributes nothing is delegated."""
    assert not systemd.delegated_by_systemd("/proc/self")


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("system.slice/mine.scope", "system.slice/mine.scope"),
        ("system.slice/mine.scope/a/b", "system.slice/mine.scope"),
        ("system.slice/mine.scope/a/b/", "system.slice/mine.scope"),
        ("system.slice/other.service", None),
        ("system.slice", None),
        ("raw/x", None),
        (".", None),
        ("../elsewhere", None),
        # What systemd gave to the user's systemd is not the user's programs'.
        ("user.slice/user-1.slice/user@1.service", None),
        ("user.slice/user-1.slice/user@1.service/app.slice", None),
        (
            "user.slice/user-1.slice/user@1.service/app.slice/mine.scope",
            "user.slice/user-1.slice/user@1.service/app.slice/mine.scope",
        ),
    ],
)
def test_delegated_ancestor(tree: Path, path: str, found: str | None) -> None:
    """The nearest unit decides whether a group is the caller's to divide, and the group that the user's systemd has is not."""
    assert systemd.delegated_ancestor(f"{tree}/{path}", str(tree)) == (found and f"{tree}/{found}")
