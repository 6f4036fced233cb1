"""What the reaper leaves of a host that was killed: no group that was entrusted, and nothing that was in one."""

from __future__ import annotations

import os
import random
import re
import shutil
import threading
from typing import TYPE_CHECKING

import pytest

from isolib._kernel.course import sections
from isolib._kernel.plan import REAP, Step
from tests.groups import has_ended, host, is_running, left, parents

if TYPE_CHECKING:
    from pathlib import Path

SITUATIONS = {
    "empty": "group('a')",
    "absent": "reaper.entrust(FDS, PREFIX + 'a')",
    "sleeping": "group('a'); pids = [member('a') for _ in range(3)]",
    "stopped": "group('a'); pids = [member('a')]; os.kill(pids[0], signal.SIGSTOP)",
    "nested": "group('a', '/b/c/d'); make('a', '/e'); pids = [member('a/b/c/d'), member('a/e'), member('a/e')]",
    "in some only": "group('a'); os.rmdir(f'{PARENTS[0]}/{PREFIX}a')",
    "forking": "group('a'); pids = [member('a', 'sh', '-c', 'while :; do sleep 0 & done')]",
    "leaving children": "group('a'); pids = [member('a', 'sh', '-c', 'while :; do (sh -c \"sleep 1000 &\"); done')]",
    "hundreds": """
        for number in range(200):
            group(f'a{number}')
            if number % 4 == 0:
                pids.append(member(f'a{number}'))
    """,
}


def check(body: str, bases: list[str]) -> None:
    """Fail unless nothing is left of a host that does this, tells its reaper and its members, and is killed."""
    with host(f"pids = []\n{_flat(body)}\ntell(reaper.pid(), *pids)\nsignal.pause()", bases) as program:
        reaper, *members = program.heard_pidfds()
        assert is_running(reaper)
        program.kill()
        assert has_ended(reaper)
        assert left(program.prefix) == []
        assert [has_ended(member) for member in members] == [True] * len(members)


def _flat(body: str) -> str:
    """Return a program without the indentation that it has in this file."""
    lines = [line for line in body.splitlines() if line.strip()]
    indent = len(lines[0]) - len(lines[0].lstrip())
    return "\n".join(line[indent:] for line in lines)


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("version", [1, 2])
def test_killed_host(version: int, situation: str) -> None:
    """Of a host that is killed no group is left, in neither version, whatever is in it and whatever that does."""
    check(SITUATIONS[situation], parents(version=version))


@pytest.mark.parametrize("situation", ["sleeping", "nested"])
def test_killed_host_in_all_hierarchies(situation: str) -> None:
    """One entry is removed from every hierarchy that it is in, of both versions."""
    check(SITUATIONS[situation], parents())


def test_frozen_in_version_2() -> None:
    """A group that is frozen is ended, and so is one that is frozen below it."""
    body = """
        group('a', '/b')
        pids = [member('a'), member('a/b')]
        for name in ('a', 'a/b'):
            write(f'{PARENTS[0]}/{PREFIX}{name}/cgroup.freeze', 1)
    """
    check(body, parents(version=2))


def test_frozen_in_version_1() -> None:
    """A process that the freezer holds does not die by a signal: it is thawed, and so is one below that is frozen by itself."""
    body = """
        group('a', '/b')
        pids = [member('a'), member('a/b')]
        for name in ('a/b', 'a'):
            write(f'{PARENTS[0]}/{PREFIX}{name}/freezer.state', 'FROZEN')
    """
    check(body, parents(version=1, controller="freezer"))


def test_end_of_the_interpreter() -> None:
    """A host that ends by itself without a word leaves as little as one that is killed."""
    with host("group('a')\nmember('a')\ntell(reaper.pid())\nsys.stdin.readline()", parents()) as program:
        (reaper,) = program.heard_pidfds()
        program.say("end")
        assert program.process.wait(60) == 0
        assert has_ended(reaper)
        assert left(program.prefix) == []


def test_struck_entry_is_not_touched() -> None:
    """What was struck is nobody's business: a group of the same name, made later by somebody else, stays as it is."""
    body = """
        ticket = group('kept')
        for parent in PARENTS:
            os.rmdir(f'{parent}/{PREFIX}kept')
        ticket.strike()
        ticket.strike()
        group('gone')
        tell(reaper.pid())
        signal.pause()
    """
    with host(body, parents()) as program:
        (reaper,) = program.heard_pidfds()
        kept = [f"{parent}/{program.prefix}kept" for parent in parents()]
        for path in kept:
            os.mkdir(path)
        program.kill()
        assert has_ended(reaper)
        assert left(program.prefix) == sorted(kept)


def test_fork_of_the_host() -> None:
    """A fork has a reaper of its own; its end undoes what it has entrusted, and nothing of its parent's."""
    body = """
        ticket = group('parent')
        place = reaper.place(FDS)
        child = os.fork()
        if not child:
            ticket.strike()
            place.entrust(PREFIX + 'child')
            make('child')
            tell(reaper.pid())
            sys.stdin.readline()
            os._exit(0)
        os.waitpid(child, 0)
        tell(reaper.pid())
        signal.pause()
    """
    with host(body, parents()) as program:
        (childs,) = program.heard_pidfds()
        assert len(left(f"{program.prefix}child")) == len(parents())
        program.say("end")
        (parents_own,) = program.heard_pidfds()
        assert has_ended(childs)
        assert left(f"{program.prefix}child") == []
        assert len(left(f"{program.prefix}parent")) == len(parents())
        assert is_running(parents_own)
        program.kill()
        assert has_ended(parents_own)
        assert left(program.prefix) == []


def test_fork_that_outlives_its_host() -> None:
    """A fork that lives on keeps nothing of its dead parent's alive, by none of the descriptors that it has inherited."""
    body = """
        group('a')
        child = os.fork()
        if not child:
            sys.stdin.readline()
            os._exit(0)
        tell(reaper.pid(), child)
        signal.pause()
    """
    with host(body, parents()) as program:
        reaper, child = program.heard_pidfds()
        program.kill()
        assert has_ended(reaper)
        assert left(program.prefix) == []
        assert is_running(child)
        program.say("end")
        assert has_ended(child)


def test_two_hosts() -> None:
    """Two hosts that make groups in the same places have a reaper each: the end of one is nothing to the other."""
    body = "group('a')\nmember('a')\ntell(reaper.pid())\nsignal.pause()"
    with host(body, parents()) as one, host(body, parents()) as other:
        (first,), (second,) = one.heard_pidfds(), other.heard_pidfds()
        one.kill()
        assert has_ended(first)
        assert left(one.prefix) == []
        assert len(left(other.prefix)) == len(parents())
        assert is_running(second)
        other.kill()
        assert has_ended(second)
        assert left(other.prefix) == []


def test_killed_reaper_is_replaced() -> None:
    """Where somebody kills the reaper, the next thing that is entrusted has another, which guards what was there too."""
    body = """
        group('before')
        pids = [member('before')]
        first = reaper.pid()
        gone = os.pidfd_open(first)
        os.kill(first, signal.SIGKILL)
        import select
        select.select([gone], [], [])
        group('after')
        assert reaper.pid() != first
    """
    check(body, parents())


def test_parent_directory_that_vanished() -> None:
    """An entry in a directory that is no more is nothing, and keeps nobody from removing the others."""
    body = """
        make('parent')
        inner = [os.open(f'{parent}/{PREFIX}parent', os.O_PATH | os.O_CLOEXEC) for parent in PARENTS]
        reaper.entrust(inner, 'inside')
        for parent in PARENTS:
            os.rmdir(f'{parent}/{PREFIX}parent')
        group('other')
    """
    check(body, parents())


def test_link_is_not_followed() -> None:
    """An entry is a directory in the one that was sent: a name that a damaged table makes a path leads nowhere."""
    body = """
        make('victim')
        make('parent')
        group('other')
        inner = [os.open(f'{parent}/{PREFIX}parent', os.O_PATH | os.O_CLOEXEC) for parent in PARENTS]
        reaper.entrust(inner, 'x' * 255)
        (own,) = reaper._reapers.values()
        at = bytes(own.bytes).index(b'x' * 255)
        path = f'../{PREFIX}victim'.encode()
        own.bytes[at : at + 255] = path + bytes(255 - len(path))
        tell(reaper.pid())
        signal.pause()
    """
    with host(body, parents()) as program:
        (reaper,) = program.heard_pidfds()
        program.kill()
        assert has_ended(reaper)
        kept = [f"{parent}/{program.prefix}{name}" for parent in parents() for name in ("parent", "victim")]
        assert left(program.prefix) == sorted(kept)


WORKING = """
import isolib
place = reaper.place(FDS)
tell(reaper.pid())
number = 0
while True:
    number += 1
    name = f'g{number}'
    ticket = place.entrust(PREFIX + name)
    make(name)
    process = isolib.spawn(['sleep', '1000'])
    put(process.pid, name)
    if number % 3:
        process.kill()
        process.wait()
        process.close()
        for parent in PARENTS:
            os.rmdir(f'{parent}/{PREFIX}{name}')
        ticket.strike()
"""


@pytest.mark.parametrize("seed", range(12))
def test_killed_at_any_moment(seed: int) -> None:
    """A host that makes and removes groups all the time is killed at a random moment, and leaves none."""
    moment = random.Random(seed).uniform(0, 0.15)  # noqa: S311 - not for a secret
    with host(WORKING, parents()) as program:
        (reaper,) = program.heard_pidfds()
        threading.Event().wait(moment)
        program.kill()
        assert has_ended(reaper)
        assert left(program.prefix) == []


# Each turn is a fork, which is a host of its own, and kills itself at the next of the points where Python calls or returns from
# something of the reaper's.  What it leaves is adopted here, its reaper too: when nobody is left, nothing may be.
AT_EVERY_CALL = """
import ctypes
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
from isolib._kernel import calls, handle, launch
FILES = {module.__file__ for module in (reaper, handle, launch, calls.reaping, calls.launching, calls.checking)}
place = reaper.place(FDS)
os.kill(reaper.pid(), signal.SIGKILL)
os.wait()

def turn(points):
    def profile(frame, event, what):
        nonlocal points
        if frame.f_code.co_filename in FILES:
            points -= 1
            if points == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    for name in ('a', 'b'):
        sys.setprofile(profile)
        ticket = place.entrust(PREFIX + name)
        sys.setprofile(None)
        make(name)
        if name == 'a':
            for parent in PARENTS:
                os.rmdir(f'{parent}/{PREFIX}{name}')
            sys.setprofile(profile)
            ticket.strike()
            sys.setprofile(None)

points = 0
while True:
    points += 1
    child = os.fork()
    if not child:
        turn(points)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in {0, -signal.SIGKILL}, (points, code)
    while True:
        try:
            os.wait()
        except ChildProcessError:
            break
    found = [name for parent in PARENTS for name in os.listdir(parent) if name.startswith(PREFIX)]
    assert not found, (points, found)
    if code == 0:
        break
tell(points)
"""


def test_killed_at_every_call() -> None:
    """SIGKILL at each call that entrusting and striking make, the start of the reaper among them, leaves no group."""
    with host(AT_EVERY_CALL, parents()) as driver:
        (points,) = driver.heard()
        assert points > 50
        assert driver.process.wait(60) == 0


def test_members_that_come_while_it_ends() -> None:
    """Processes that are moved in by somebody else while the group is being removed are ended too, or stay outside."""
    base = parents()
    body = "group('a')\ntell(reaper.pid())\nsignal.pause()"
    mover = """
        pids = [subprocess.Popen(['sleep', '1000']).pid for _ in range(50)]
        tell(0)
        sys.stdin.readline()
        for pid in pids:
            for path in PARENTS:
                try:
                    write(f'{path}/{NAME}/cgroup.procs', pid)
                except OSError:
                    pass
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    """
    with host(body, base) as program, host(f"NAME = '{program.prefix}a'\n" + _flat(mover), base) as other:
        (reaper,) = program.heard_pidfds()
        other.heard()
        other.say("go")
        program.kill()
        assert has_ended(reaper)
        assert left(program.prefix) == []


def test_calls_are_those_that_are_told(tmp_path: Path) -> None:
    """explain() tells which calls the reaper makes when its host is gone; strace sees no others."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    body = "group('a', '/b')\nmember('a')\nmember('a/b')\ntell(reaper.pid())\nsys.stdin.readline()"
    with host(body, parents(), strace, "-f", "-ff", "-s0", "-o", str(tmp_path / "t")) as program:
        (pid,) = program.heard()
        reaper = program.pidfd(pid)
        program.say("end")
        assert program.process.wait(60) == 0
        assert has_ended(reaper)
        assert left(program.prefix) == []
    lines = (tmp_path / f"t.{pid}").read_text(encoding="ascii", errors="replace").splitlines()
    names = [match[1] for match in map(re.compile(r"(\w+)\(").match, lines) if match]
    steps = [Step("CLONE"), Step("GO"), REAP]
    whole = "".join(one.pattern for one in sections(steps) if one.title in {"inside", "supervisor"})
    assert re.fullmatch(whole, "".join(f"{name} " for name in names)), names


@pytest.mark.root
def test_start_in_another_namespace() -> None:
    """Started by a thread that is in another network, it is where the process is, and keeps nobody else's network alive."""
    body = """
        import threading, isolib
        def inside():
            with isolib.new_netns():
                group('a')
        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        own, reapers = (os.stat(f'/proc/{pid}/ns/net').st_ino for pid in ('self', reaper.pid()))
        tell(int(own == reapers), reaper.pid())
        sys.stdin.readline()
    """
    with host(body, parents()) as program:
        is_same, pid = program.heard()
        reaper = program.pidfd(pid)
        program.say("end")
        assert has_ended(reaper)
        assert is_same
