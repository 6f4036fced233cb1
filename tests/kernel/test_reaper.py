"""The reaper's table and process, as the host has them. What it leaves of a killed host: tests/integration/test_reaper.py."""

from __future__ import annotations

import errno
import gc
import os
import signal
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from isolib._kernel._ext import ffi

from isolib import IsolibError, PlanError, SetupFailed
from isolib._kernel import calls, reaper
from isolib._kernel.launch import ground, launch
from isolib._kernel.plan import INSIDE, REAP, Builder, Step
from isolib._kernel.procfs import parse_stat, parse_status
from isolib.cgroups import place
from tests.groups import has_ended, is_running, parents
from tests.interrupts import interrupt
from tests.plans import NO_NEW_PRIVS
from tests.seccomp import Denied, deny
from tests.table import entry, indices, lost, own

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType

    from isolib._kernel.launch import Launched

KIB = 1024


@pytest.fixture
def base() -> Iterator[int]:
    """Return a directory of cgroups; there is a reaper."""
    fd = os.open(parents()[0], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    reaper.pid()
    yield fd
    os.close(fd)


@pytest.fixture
def running(base: int) -> int:
    """Return the process id of a reaper that knows the directory."""
    reaper.entrust([base], "isolib-absent").strike()
    return reaper.pid()


def shared() -> Launched:
    """Return what this process has of the one that it has started."""
    launched = own().launched
    assert launched is not None
    return launched


# ---- the table ----


def test_entry_is_what_c_reads(base: int) -> None:
    """What is entrusted stands in the table as the compiler's structures read it, until it is struck."""
    name = os.urandom(100).translate(None, b"/\0") + b"\xff\n"
    before = indices()
    ticket = reaper.entrust([base, base], name)
    (index,) = set(indices()) - set(before)
    found = entry(index)
    assert (found["kind"], found["name"]) == (calls.ENTRY_CGROUP, name)
    assert found["bases"] == [found["bases"][0]] * 2  # type: ignore[index]
    ticket.strike()
    assert indices() == before


def test_table_is_that_of_the_header(base: int) -> None:
    """The header says how the entries lie, and the file can get no other size."""
    reaper.entrust([base], "isolib-absent").strike()
    table = ffi.from_buffer("struct isolib_table *", own().bytes)
    assert (table.entry_size, table.capacity) == (ffi.sizeof("struct isolib_entry"), calls.TABLE_ENTRIES)
    size = ffi.sizeof("struct isolib_table") + table.entry_size * table.capacity
    assert os.fstat(own().table.fileno()).st_size == size == len(own().bytes)
    for other in (0, size + 4096):
        with pytest.raises(PermissionError):
            os.ftruncate(own().table.fileno(), other)


def test_shorter_name_leaves_nothing_of_a_longer_one(base: int) -> None:
    """A place in the table that is used again holds the new name only."""
    reaper.entrust([base], "x" * 255).strike()
    ticket = reaper.entrust([base], "y")
    assert [entry(index)["name"] for index in indices()] == [b"y"]
    ticket.strike()


def test_struck_twice(base: int) -> None:
    """A ticket that is struck again does nothing to what has its place in the table by then."""
    first = reaper.entrust([base], "isolib-first")
    first.strike()
    second = reaper.entrust([base], "isolib-second")
    first.strike()
    assert [entry(index)["name"] for index in indices()] == [b"isolib-second"]
    second.strike()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/", "a\0b", "x" * 256, b"\xff" * 256, "ä" * 128])
def test_name_that_is_none(base: int, name: str | bytes) -> None:
    """What is not the name of one directory is refused, and not entrusted."""
    before = indices()
    with pytest.raises(PlanError, match="not the name of a directory"):
        reaper.entrust([base], name)
    assert indices() == before


def test_directory_that_is_no_group(base: int, tmp_path: Path) -> None:
    """Only directories of cgroups are places: nothing else is ever removed."""
    (tmp_path / "file").touch()
    for path in (str(tmp_path), str(tmp_path / "file"), "/proc", f"{parents()[0]}/cgroup.procs"):
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        with pytest.raises(PlanError, match="not a directory of cgroups"):
            reaper.entrust([base, fd], "isolib-absent")
        os.close(fd)


@pytest.mark.parametrize("number", [0, calls.ENTRY_BASES + 1])
def test_too_few_and_too_many_parents(base: int, number: int) -> None:
    """An entry has one to sixteen parent directories."""
    with pytest.raises(PlanError, match="1 to 16"):
        reaper.entrust([base] * number, "isolib-absent")


def test_closed_parent() -> None:
    """A descriptor that is closed is the kernel's error, and nothing is entrusted."""
    reaper.pid()  # its start takes free numbers
    fd = os.open("/", os.O_PATH | os.O_CLOEXEC)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        reaper.entrust([fd], "isolib-absent")


def test_full_table(base: int) -> None:
    """A table without room is a clear error; a struck entry makes room."""
    place = reaper.place([base])
    before = indices()
    tickets = [place.entrust("isolib-absent") for _ in range(calls.TABLE_ENTRIES - len(before) - len(lost()))]
    try:
        for _ in range(2):
            with pytest.raises(IsolibError, match="16384 things are entrusted"):
                place.entrust("isolib-absent")
        tickets.pop().strike()
        tickets.append(place.entrust("isolib-absent"))
    finally:
        for ticket in tickets:
            ticket.strike()
    assert indices() == before


# ---- directories ----


@pytest.fixture
def many() -> Iterator[list[int]]:
    """Return many directories of cgroups, more than the reaper can hold open; it holds none for the groups of this process."""
    place._cache.place = None
    top = f"{parents()[0]}/isolib-test-{os.urandom(8).hex()}"
    with ExitStack() as stack:
        os.mkdir(top)
        stack.callback(os.rmdir, top)
        fds = []
        for number in range(calls.TABLE_BASES + 20):
            os.mkdir(f"{top}/{number}")
            stack.callback(os.rmdir, f"{top}/{number}")
            fds.append(os.open(f"{top}/{number}", os.O_PATH | os.O_CLOEXEC))
            stack.callback(os.close, fds[-1])
        yield fds


def test_one_directory_opened_twice(base: int) -> None:
    """The reaper is sent a directory once, by whatever descriptors it is named."""
    again = os.open(parents()[0], os.O_RDONLY | os.O_CLOEXEC)
    tickets = [reaper.entrust([base], "isolib-a"), reaper.entrust([again], "isolib-b")]
    os.close(again)
    assert len({str(entry(index)["bases"]) for index in indices()}) == 1
    for ticket in tickets:
        ticket.strike()


def test_directories_come_and_go(many: list[int]) -> None:
    """Directories that nobody uses any more make room for others, however many there are in the course of time."""
    own()._recent.clear()
    gc.collect()  # what failed before may still hold groups, and they their directories
    assert len(own()._known) == 0
    for fd in many:
        reaper.entrust([fd], "isolib-absent").strike()
    assert len(own()._known) <= reaper._KEPT


def test_too_many_directories(many: list[int]) -> None:
    """More directories at one time than the reaper can hold open are a clear error, and those before are guarded still."""
    tickets: list[reaper.Ticket] = []
    try:
        with pytest.raises(IsolibError, match="too many parent directories"):
            tickets.extend(reaper.entrust([fd], "isolib-absent") for fd in many)
        assert len({str(entry(index)["bases"]) for index in indices()}) == len(tickets) == calls.TABLE_BASES
    finally:
        for ticket in tickets:
            ticket.strike()


def test_number_in_use_is_not_given_away(many: list[int]) -> None:
    """As long as an entry is live its directory keeps its number, though its ticket is lost."""
    reaper.entrust([many[0]], "isolib-lost")
    ((index, ticket),) = own().live.items()
    bases = entry(index)["bases"]
    del ticket
    for fd in many[1:]:
        other = reaper.entrust([fd], "isolib-absent")
        assert [entry(at)["bases"] for at in indices() if at != index] != [bases]
        other.strike()
    own().live[index].strike()


# ---- the process ----


def test_process_is_out_of_the_way(running: int) -> None:
    """It has a name, a session of its own and the root as its directory, blocks every signal, and is nobody's child here."""
    status = parse_status(Path(f"/proc/{running}/status").read_bytes())
    found = parse_stat(Path(f"/proc/{running}/stat").read_bytes())
    unblockable = 1 << signal.SIGKILL - 1 | 1 << signal.SIGSTOP - 1
    assert status["Name"] == "isolib-reaper"
    assert int(status["SigBlk"], 16) == (1 << 64) - 1 & ~unblockable
    assert os.getsid(running) == os.getpgid(running) == running
    assert int(status["PPid"]) != os.getpid()
    assert found.comm == "isolib-reaper"
    assert os.stat(f"/proc/{running}/fd").st_uid == 0  # it is not dumpable


@pytest.mark.root
def test_descriptors_are_those_that_it_needs(running: int) -> None:
    """It holds its socket, the pidfd of this process, and the directories; its table is memory, and it has no streams."""
    links = {os.readlink(f"/proc/{running}/fd/{number}") for number in os.listdir(f"/proc/{running}/fd")}
    directories = {link for link in links if link.startswith("/")}
    others = {link.partition(":")[0].removeprefix("anon_inode") or "pidfd" for link in links - directories}
    assert others == {"socket", "pidfd"}
    assert directories == {os.readlink(f"/proc/self/fd/{one.fd.fileno()}") for one in own()._known.values()}
    assert os.readlink(f"/proc/{running}/cwd") == "/"


def test_memory(running: int) -> None:
    """Its resident memory, pages that it shares with this process included, is less than 200 KiB.

    Not counted is what the kernel keeps for every process: its stack there, its page tables, its descriptors.
    """
    pages = int(Path(f"/proc/{running}/statm").read_text(encoding="ascii").split()[1])
    assert 0 < pages * os.sysconf("SC_PAGE_SIZE") < 200 * KIB


def test_signals_do_not_end_it(running: int, base: int) -> None:
    """Signals to it and to its group, but for SIGKILL, are left pending for ever, and it goes on."""
    pidfd = os.pidfd_open(running)
    catchable = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
    try:
        for number in catchable:
            os.killpg(running, number)
            os.kill(running, number)
        status = parse_status(Path(f"/proc/{running}/status").read_bytes())
        assert int(status["ShdPnd"], 16).bit_count() >= len(catchable) - 4  # those that stop and continue cancel each other
        assert is_running(pidfd)
        reaper.entrust([base], "isolib-absent").strike()
        assert reaper.pid() == running
    finally:
        os.close(pidfd)


def test_killed_reaper_is_noticed(running: int, base: int) -> None:
    """Where somebody has killed it, the next thing that is entrusted starts another, and only that."""
    pidfd = os.pidfd_open(running)
    ticket = reaper.entrust([base], "isolib-absent")
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    assert has_ended(pidfd)
    os.close(pidfd)
    ticket.strike()
    assert shared().supervisor_pid == running  # nobody has looked yet
    reaper.entrust([base], "isolib-absent").strike()
    other = reaper.pid()
    assert other != running
    reaper.entrust([base], "isolib-absent").strike()
    assert reaper.pid() == other


@pytest.mark.parametrize("call", ["lseek", "mmap", "rt_sigprocmask", "setsid", "chdir", "set_robust_list"])
def test_start_that_fails(call: str) -> None:
    """A reaper that cannot do what it must is an error of the step and the call, and no process is left."""
    builder = Builder()
    with calls.new_table() as table:
        slot = builder.declare(table.fileno(), "table")
        builder.add(INSIDE, NO_NEW_PRIVS)
        builder.add(INSIDE, Step("SECCOMP", text2=deny(Denied(call, errno.EPERM)), what="fault"))
        with pytest.raises(SetupFailed) as caught:
            launch(builder.build(REAP._replace(fd=slot)), builder.fds)
    assert (caught.value.step, caught.value.op, caught.value.errno) == ("4 REAP (inside)", call, errno.EPERM)


@pytest.mark.parametrize(
    ("content", "error"),
    [(b"", errno.EINVAL), (bytes(63), errno.EINVAL), (bytes(4096), errno.EPROTO)],
    ids=["empty", "short", "of something else"],
)
def test_table_that_is_none(content: bytes, error: int) -> None:
    """A reaper whose table is not one does not start: it would read beyond the end when nobody is left to see it."""
    fd = os.memfd_create("isolib-test")
    os.write(fd, content)
    builder = Builder()
    table = builder.declare(fd, "table")
    try:
        with pytest.raises(SetupFailed) as caught:
            launch(builder.build(REAP._replace(fd=table)), builder.fds)
        assert (caught.value.step, caught.value.errno) == ("2 REAP (inside)", error)
    finally:
        os.close(fd)


# ---- forks, threads, interrupts ----


def test_fork_has_nothing_of_its_parents(running: int, base: int) -> None:
    """A fork has neither socket nor table, strikes nothing, and starts a reaper of its own when it needs one."""
    ticket = reaper.entrust([base], "isolib-parent")
    place = reaper.place([base])
    parents_own = {shared().status, shared().pidfd, own().table.fileno()}
    child = os.fork()
    if not child:
        status = 1
        try:
            open_ = {int(number) for number in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{number}")}
            maps = Path("/proc/self/maps").read_text(encoding="ascii")
            is_free = not parents_own & open_ and "isolib-table" not in maps and not reaper._reapers
            ticket.strike()
            place.entrust("isolib-child")
            names = [entry(index)["name"] for index in indices()]
            status = 0 if is_free and names == [b"isolib-child"] and reaper.pid() != running else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [entry(index)["name"] for index in indices()] == [b"isolib-parent"]
    assert reaper.pid() == running
    ticket.strike()


def test_threads(base: int) -> None:
    """Threads that entrust and strike side by side never get one another's place, and leave none."""
    place = reaper.place([base])
    wrong: list[object] = []

    def work(number: int) -> None:
        for turn in range(300):
            name = f"isolib-{number}-{turn}"
            ticket = place.entrust(name)
            if entry(ticket._index) != {**entry(ticket._index), "live": True, "name": name.encode()}:
                wrong.append(name)
            ticket.strike()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert indices() == []
    assert len(set(own().free)) == len(own().free)


def counts(code: CodeType) -> bool:
    """Say whether code is the reaper's."""
    return code.co_filename in {reaper.__file__, ground.__code__.co_filename}


@pytest.mark.parametrize("is_warm", [True, False])
def test_interrupt_at_every_point(base: int, *, is_warm: bool) -> None:
    """KeyboardInterrupt at any point of entrusting leaves at the most an entry, which is whole; and of striking, nothing."""
    turn, left = 0, 0
    while not left:
        turn += 1
        if not is_warm:
            stop_reaper(base)
        left = interrupt(turn, lambda: reaper.entrust([base], "isolib-absent"), counts)
        assert all(entry(index)["name"] == b"isolib-absent" and index in own().live for index in indices())
        for ticket in tuple(own().live.values()):
            ticket.strike()
        assert indices() == []
    assert turn > 5
    turn, left = 0, 0
    while is_warm and not left:
        turn += 1
        ticket = reaper.entrust([base], "isolib-absent")
        left = interrupt(turn, ticket.strike, counts)
        ticket.strike()
        assert indices() == []
        assert len(set(own().free)) == len(own().free)


def stop_reaper(base: int) -> None:
    """Kill the reaper, as somebody else might."""
    reaper.entrust([base], "isolib-absent").strike()
    pidfd = os.pidfd_open(reaper.pid())
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    assert has_ended(pidfd)
    os.close(pidfd)
