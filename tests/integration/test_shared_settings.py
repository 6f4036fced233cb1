"""A setting of a namespace that several programs hold: the last one gives it back, however each of them ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest

from isolib import open_netns
from isolib._kernel.sockets import open_file_in
from isolib.net.sysctl import Sysctls
from tests.groups import has_ended, host

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolib.namespaces import NetNS
    from tests.groups import Host

pytestmark = pytest.mark.usefixtures("user_namespaces")

TRIES = int(os.environ.get("ISOLIB_TEST_TRIES", "12"))
ROOT = os.geteuid() == 0
FORWARD = "net.ipv4.ip_forward"
WAYS = ("close", "exit", "kill")

PRELUDE = """
import fcntl, struct
from isolib.net.sysctl import Sysctls, hold
made = []
"""

HOLDING = """
made.append(hold(*{setting!r}))
tell(reaper.pid())
if sys.stdin.readline() == "close\\n":
    made.pop().close()
    tell()
"""


class Program(NamedTuple):
    """A program that holds something, and a descriptor of its reaper."""

    host: Host
    reaper: int

    def end(self, way: str) -> None:
        """End it in one of several ways; when this returns its reaper has done its work."""
        if way == "kill":
            self.host.kill()
        else:
            self.host.say(way)
            if way == "close":
                assert self.host.heard() == []
        assert has_ended(self.reaper)


class Machine:
    """A network namespace, and programs in it."""

    def __init__(self, stack: contextlib.ExitStack, pid: int, ns: NetNS) -> None:
        self._stack = stack
        self._pid = pid
        self.ns = ns

    def run(self, body: str) -> Host:
        """Run a program there."""
        user = () if ROOT else ("--user", "--preserve-credentials")
        inside = ("nsenter", "--target", str(self._pid), "--net", *user)
        return self._stack.enter_context(host(PRELUDE + body, [], *inside))

    def holding(self, name: str = FORWARD, value: object = 1) -> Program:
        """Run a program there that holds a setting by now."""
        running = self.run(HOLDING.format(setting=(name, value)))
        (pid,) = running.heard()
        return Program(running, running.pidfd(pid))

    def setting(self, name: str = FORWARD) -> str:
        """Return a setting of its namespace, as the kernel writes it."""
        with open_file_in(self.ns, f"/proc/sys/{name.replace('.', '/')}", os.O_RDONLY) as file:
            return os.pread(file.fileno(), 100, 0).decode().strip()

    def change(self, value: int, name: str = FORWARD) -> None:
        """Change a setting there, for good."""
        Sysctls(self.ns)[name] = value


@contextmanager
def new_machine() -> Iterator[Machine]:
    """Make a network namespace to run programs in."""
    inside = ("unshare", "--net") if ROOT else ("unshare", "--map-root-user", "--net")
    with contextlib.ExitStack() as stack:
        keeper = stack.enter_context(host("tell(os.getpid())\nsys.stdin.readline()", [], *inside))
        (pid,) = keeper.heard()
        ns = open_netns(pid=pid)
        stack.callback(ns.close)
        yield Machine(stack, pid, ns)


@pytest.fixture
def machine() -> Iterator[Machine]:
    """Return a network namespace to run programs in."""
    with new_machine() as made:
        yield made


@pytest.mark.parametrize("second", WAYS)
@pytest.mark.parametrize("first", WAYS)
def test_two_programs(machine: Machine, first: str, second: str) -> None:
    """The first of two programs that ends, in whatever way, leaves the setting to the second, and that one gives it back."""
    one, other = machine.holding(), machine.holding()
    assert machine.setting() == "1"
    one.end(first)
    assert machine.setting() == "1"
    other.end(second)
    assert machine.setting() == "0"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("net.ipv4.ip_default_ttl", 33),
        ("net.ipv4.ip_local_port_range", "2000\t3000"),
        ("net.ipv4.ip_local_reserved_ports", "8080,9090-9099"),
        ("net.ipv4.tcp_rmem", "4096\t65536\t1048576"),
    ],
)
def test_other_values(machine: Machine, name: str, value: object) -> None:
    """What was there before the first of three programs, text or number or nothing at all, is there after the last."""
    before = machine.setting(name)
    programs = [machine.holding(name, value) for _ in range(3)]
    assert machine.setting(name) == str(value) != before
    for program, way in zip(programs, WAYS, strict=True):
        assert machine.setting(name) == str(value)
        program.end(way)
    assert machine.setting(name) == before


@pytest.mark.parametrize("second", WAYS)
@pytest.mark.parametrize("first", WAYS)
def test_what_changes_with_forwarding(machine: Machine, first: str, second: str) -> None:
    """What links have of their own, and whether redirects are believed, is as it was after the last of two programs."""
    own = {"net.ipv4.conf.all.accept_redirects": 0, "net.ipv4.conf.lo.forwarding": 1, "net.ipv6.conf.lo.forwarding": 1}
    for name, value in own.items():
        machine.change(value, name)
    for name in (FORWARD, "net.ipv6.conf.all.forwarding"):
        programs = machine.holding(name), machine.holding(name)
        for program, way in zip(programs, (first, second), strict=True):
            assert (machine.setting(name), machine.setting("net.ipv4.conf.all.accept_redirects")) == ("1", "0")
            program.end(way)
        assert machine.setting(name) == "0"
        assert {one: machine.setting(one) for one in own} == {one: str(value) for one, value in own.items()}


@pytest.mark.parametrize("way", WAYS)
def test_spaces_between_numbers(machine: Machine, way: str) -> None:
    """Programs that write one value in two ways hold it together, and the last, however it ends, gives the old one back."""
    name = "net.ipv4.ip_local_port_range"
    before = machine.setting(name)
    programs = [machine.holding(name, value) for value in ((2000, 3000), "2000 3000")]
    for program in programs:
        assert machine.setting(name) == "2000\t3000"
        program.end(way)
    assert machine.setting(name) == before


@pytest.mark.parametrize("way", WAYS)
def test_changed_by_somebody_else(machine: Machine, way: str) -> None:
    """What somebody else has set meanwhile stays, however the holders end."""
    name = "net.ipv4.ip_default_ttl"
    programs = [machine.holding(name, 33), machine.holding(name, 33)]
    machine.change(44, name)
    for program in programs:
        program.end(way)
    assert machine.setting(name) == "44"


def test_set_for_good(machine: Machine) -> None:
    """What was so before anybody held it stays so."""
    machine.change(1)
    for way in WAYS:
        running = machine.run(f"made.append(hold({FORWARD!r}, 1))\ntell(reaper.pid())\nsys.stdin.readline()")
        (pid,) = running.heard()
        Program(running, running.pidfd(pid)).end("kill" if way == "kill" else "exit")
        assert machine.setting() == "1"


def test_held_at_another_value(machine: Machine) -> None:
    """A setting that another program holds at one value cannot be held at another, and can when that program has ended."""
    name = "net.ipv4.ip_default_ttl"
    first = machine.holding(name, 33)
    second = machine.run(f"""
from isolib import PlanError
try:
    hold({name!r}, 34)
except PlanError as error:
    assert "held at '33' by another program" in str(error), error
    tell(1)
sys.stdin.readline()
made.append(hold({name!r}, 34))
tell(reaper.pid())
sys.stdin.readline()
""")
    assert second.heard() == [1]
    assert machine.setting(name) == "33"
    first.end("kill")
    second.say("")
    (pid,) = second.heard()
    assert machine.setting(name) == "34"
    Program(second, second.pidfd(pid)).end("kill")
    assert machine.setting(name) == "64"


def test_needed_again(machine: Machine) -> None:
    """Who comes when somebody has changed what others hold gets what he asks for, and so do they again."""
    first = machine.holding()
    machine.change(0)
    second = machine.holding()
    assert machine.setting() == "1"
    second.end("close")
    assert machine.setting() == "1"
    first.end("close")
    assert machine.setting() == "0"


def test_who_may_only_read(machine: Machine) -> None:
    """Who may only read a setting and locks it keeps others from holding it, which is told, but not from giving it back."""
    held = machine.holding()
    with open_file_in(machine.ns, "/proc/sys/net/ipv4/ip_forward", os.O_RDONLY) as file:
        lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 0, 1, 0)
        fcntl.fcntl(file.fileno(), fcntl.F_OFD_SETLK, lock)
        second = machine.run(f"""
try:
    hold({FORWARD!r}, 1)
except OSError as error:
    tell(error.errno)
""")
        assert second.heard() == [11]
        assert machine.setting() == "1"
        held.end("close")
        assert machine.setting() == "0"
    again = machine.holding()
    with open_file_in(machine.ns, "/proc/sys/net/ipv4/ip_forward", os.O_RDONLY) as file:
        fcntl.fcntl(file.fileno(), fcntl.F_OFD_SETLK, lock)
        again.end("kill")
        assert machine.setting() == "0"


WORK = f"""
def work(number):
    for _ in range(number):
        with hold({FORWARD!r}, 1):
            if Sysctls()[{FORWARD!r}] != "1":
                tell(1)
                sys.exit(1)
"""


def test_many_at_once(machine: Machine) -> None:
    """Each of several programs that come and go as fast as they can finds the setting as it holds it, and none leaves it so."""
    programs = [machine.run(WORK + "tell()\nsys.stdin.readline()\nwork(150)\ntell(0)") for _ in range(4)]
    for program in programs:
        assert program.heard() == []
    for program in programs:
        program.say("")
    for program in programs:
        assert program.heard() == [0]
    assert machine.setting() == "0"


def test_killed_at_any_moment() -> None:
    """Of two programs that come and go the first is killed at any moment; the other does not notice, and nothing is left."""
    moment = threading.Event()
    for _ in range(TRIES):
        with new_machine() as machine:
            victim = machine.run(WORK + "tell(reaper.pid())\nwork(1 << 30)")
            witness = machine.run(WORK + "tell()\nwork(60)\ntell(0)\nsys.stdin.readline()")
            (pid,) = victim.heard()
            assert witness.heard() == []
            reaper = victim.pidfd(pid)
            moment.wait(os.urandom(1)[0] / 4000)
            victim.kill()
            assert witness.heard() == [0]
            assert has_ended(reaper)
            assert machine.setting() == "0"


def test_a_fork_is_no_holder(machine: Machine) -> None:
    """A fork of a program, which has its descriptors, keeps nothing when that program is killed."""
    running = machine.run(f"""
made.append(hold({FORWARD!r}, 1))
child = os.fork()
if not child:
    signal.pause()
tell(reaper.pid(), child)
signal.pause()
""")
    pid, child = running.heard()
    fork = running.pidfd(child)
    Program(running, running.pidfd(pid)).end("kill")
    assert machine.setting() == "0"
    os.kill(child, 9)
    assert has_ended(fork)
