"""Control groups: beside the bare system calls that do the same (floor_cgroups.c), and beside the tools that make them.

Five questions, each answered with all contenders taking turns in one run:

- life: a group with three limits, a process that is born, lives and ends in it, and the end of both; and the group alone
- birth: a process born in a group, beside one that is born in none, from idle and in a row
- sample: a counter that is read again and again
- end: killing, freezing and thawing everybody in a group, one process and a hundred
- reaper: entrusting a directory to the reaper, and striking it

Goals are judged by minima.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Final

# Last: an installed isolib goes before the checkout, which has no compiled part.
sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from benchmarks import common
from benchmarks.common import Contender
from benchmarks.peers_cgroups import CPU, IDLE, MEMORY, PIDS, TRUE, from_idle, peers, serve, tools

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from isolib._kernel.lodging import Account, Shape
    from isolib.cgroups import Cgroup
    from isolib.process import Process

CROWD: Final = 100
#: Seconds until those who have been started sleep: floor_cgroups.c has the same.
SETTLE: Final = 0.02
#: Of a group in which one process is born after the other: the dead count until init has reaped their supervisors.
MANY: Final = 10_000
FLOOR, ISOLIB = "floor: one C call", "isolib"
LAUNCHED: Final = "floor, launched by isolib"
_V1: Final = ("cpu", "memory", "pids", "blkio")


# ---- the floor ----


def hierarchies() -> tuple[str | None, dict[str, str]]:
    """Return this process's directory in cgroup v2, and those in v1 by controller."""
    unified: str | None = None
    legacy: dict[str, str] = {}
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        groups = [line.rstrip("\n").split(":", 2) for line in file]
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        mounts = [line.split() for line in file if " - cgroup" in line]
    for number, names, path in groups:
        for mount in mounts:
            kind, options = mount[mount.index("-") + 1], mount[-1].split(",")
            below = "" if path == mount[3] else path.removeprefix(mount[3].rstrip("/"))
            if number == "0" and kind == "cgroup2":
                unified = mount[4] + below.rstrip("/")
            elif kind == "cgroup":
                legacy |= {name: mount[4] + below.rstrip("/") for name in names.split(",") if name in options}
    return unified, legacy


class Bare:
    """The floor, compiled, for the hierarchies of this host."""

    def __init__(self, directory: str) -> None:
        self._library = common.compile_library("floor_cgroups", directory)
        unified, legacy = hierarchies()
        if unified is not None and "memory" not in legacy:
            self._enable(unified)
        places = [unified, *(legacy.get(name) for name in _V1)]
        self._check(self._library.floor_setup(*(None if one is None else os.fsencode(one) for one in places)))

    @staticmethod
    def _enable(unified: str) -> None:
        with open(f"{unified}/cgroup.subtree_control", "w", encoding="ascii") as file:
            file.write("+cpu +io +memory +pids")

    @staticmethod
    def _check(result: int) -> None:
        if result:
            raise OSError(-result, f"floor_cgroups: {os.strerror(-result)}")

    def group(self) -> None:
        """Make a group with three limits, remove it."""
        self._check(self._library.floor_group())

    def life(self) -> None:
        """Do the same with a process in it."""
        self._check(self._library.floor_process())

    def launched(self) -> None:
        """Do the same, the process launched by isolib's launcher: what is left of the difference is the group's."""
        import isolib  # noqa: PLC0415 - whether it is there is the question

        with isolib.spawn([TRUE], cgroup=BareLodging(self)) as process:
            process.wait()

    def begin(self) -> list[int]:
        """Make a group and a place in it; returns descriptors: of v2, of the tasks files, of the eventfd, each -1 if not."""
        fds = (ctypes.c_int * 6)()
        self._check(self._library.floor_begin(fds))
        return list(fds)

    def finish(self) -> None:
        """Read the accounts, remove both."""
        self._check(self._library.floor_finish())

    def crowd(self, processes: int, what: str) -> Callable[[], int]:
        """Return a function that freezes, thaws and kills so many processes, and returns what one of the three took."""

        def once() -> int:
            taken = {name: ctypes.c_int64() for name in ("freeze", "thaw", "kill")}
            self._check(self._library.floor_crowd(processes, *map(ctypes.byref, taken.values())))
            return taken[what].value

        return once


class BareLodging:
    """What a launch asks of a control group (isolib._kernel.lodging), by the floor's system calls."""

    def __init__(self, bare: Bare) -> None:
        self.killed, self.supervisor, self.procs = False, 0, -1
        self._bare = bare
        self.directory, *tasks, self.oom = bare.begin()
        self.oom_kills = -1
        self.tasks: Sequence[int] = [fd for fd in tasks if fd >= 0]

    @property
    def shape(self) -> Shape:
        """What a launch must provide for."""
        from isolib._kernel.lodging import Shape  # noqa: PLC0415

        return Shape(self.directory >= 0, len(self.tasks), self.oom >= 0, oom_kills=False)

    def lodge(self) -> BareLodging:
        """Return the place, the only one."""
        return self

    def avoid_clone(self) -> bool:
        """Know no other way."""
        return False

    def kill(self) -> None:
        """Leave it: it ends by itself."""

    def reap(self) -> None:
        """Leave them: they are nobody's here."""

    def is_frozen(self) -> bool:
        """Return that it is not."""
        return False

    def parting(self) -> None:
        """Leave nothing to be done by others."""

    def settle(self) -> Account:
        """Take the place down."""
        from isolib._kernel.lodging import Account  # noqa: PLC0415

        self._bare.finish()
        return Account()


# ---- isolib ----


def new_group(pids: int = PIDS, cpu: float = CPU) -> Cgroup:
    """Return a group of isolib's with the three limits."""
    import isolib  # noqa: PLC0415

    return isolib.new_cgroup(memory_max=MEMORY, cpu_max=cpu, pids_max=pids)


def isolib_group() -> None:
    """Make a group, remove it."""
    with new_group():
        pass


def isolib_life() -> None:
    """Do the same with a process in it."""
    with new_group() as group, group.spawn([TRUE]) as process:
        process.wait()


def isolib_spawn() -> None:
    """Run a process in no group of its own."""
    import isolib  # noqa: PLC0415

    with isolib.spawn([TRUE]) as process:
        process.wait()


# ---- the questions ----


def life(bare: Bare, host: common.Host, directory: str, *, quick: bool) -> dict[str, object]:
    """Measure a group with three limits from its making to its end, with a process in it and without."""
    rounds = 10 if quick else 300
    group = "A group with three limits, made and removed"
    whole = "A group with three limits; a process is born, lives and ends in it; both are removed"
    own = {
        group: [Contender(FLOOR, bare.group), Contender(ISOLIB, isolib_group)],
        whole: [
            Contender(FLOOR, bare.life),
            Contender(LAUNCHED, bare.launched),
            Contender(ISOLIB, isolib_life),
            Contender("isolib.spawn, no group", isolib_spawn),
        ],
    }
    # Apart from the above: what a peer leaves to the kernel, such as moves of processes, is paid for by whoever comes next.
    others = {
        f"{group}: the peers": [own[group][1], *peers(host, 0)],
        f"{whole}: the peers": [own[whole][2], *peers(host, 1)],
        f"{whole}: the peers, from idle": [
            Contender(one.name, from_idle(one.once)) for one in [own[whole][2], *peers(host, 1)]
        ],
        f"{whole}: programs": [own[whole][2], *tools(directory)],
    }
    found: dict[str, object] = {}
    for title, contenders in own.items():
        working, absent = common.present(contenders)
        timings = common.interleave(working, rounds)
        common.table(title, timings, FLOOR)
        goals = [common.goal(timings, ISOLIB, name, 1.5) for name in (FLOOR, LAUNCHED)]
        found[title] = common.answer(timings, absent, goals)
    for title, contenders in others.items():
        working, absent = common.present(contenders)
        timings = common.interleave(working, rounds // 5)
        common.table(title, timings, ISOLIB)
        goals = [common.goal(timings, ISOLIB, one.name, 0.1) for one in working if one.name != ISOLIB]
        found[title] = common.answer(timings, absent, goals)
    return found


def _timed(prepare: Callable[[], Callable[[], Process]], *, idle: float, to_end: bool) -> Callable[[], int]:
    """Return a function that starts a process and measures until it is started, or until it has ended."""

    def once() -> int:
        start = prepare()
        if idle:
            time.sleep(idle)
        begin = time.perf_counter_ns()
        process = start()
        started = time.perf_counter_ns()
        with process:
            process.wait()
        return (time.perf_counter_ns() if to_end else started) - begin

    return once


def birth(bare: Bare, *, quick: bool) -> dict[str, object]:
    """Measure births in a group and in none, from idle and in a row."""
    import isolib  # noqa: PLC0415

    found: dict[str, object] = {}
    plain, inside, moved = "isolib.spawn(), no group", "group.spawn()", "isolib.spawn(), then cgroup.procs"
    cpus = float(os.cpu_count() or 1)  # a limit that does not throttle, for one process is born after the other
    with new_group(MANY, cpus) as group, new_group(MANY, cpus) as target:
        files = sorted(f"{path}/cgroup.procs" for path in set(target.paths.values()))
        if not any("/unified/" in file for file in files) and len(files) == 1:  # v2, where inner groups take nobody
            os.mkdir(os.path.join(os.path.dirname(files[0]), "moved"))
            files = [os.path.join(os.path.dirname(files[0]), "moved", "cgroup.procs")]

        def start_and_move() -> Process:
            process = isolib.spawn(["sleep", "0.001"])
            for path in files:
                with contextlib.suppress(ProcessLookupError), open(path, "w", encoding="ascii") as file:
                    file.write(str(process.pid))
            return process

        def prepared() -> Callable[[], Process]:
            lodging = BareLodging(bare)
            return lambda: isolib.spawn([TRUE], cgroup=lodging)

        ways: dict[str, Callable[[], Callable[[], Process]]] = {
            plain: lambda: lambda: isolib.spawn([TRUE]),
            inside: lambda: lambda: group.spawn([TRUE]),
            "isolib.spawn(), the floor's group": prepared,
        }
        # Apart from the others: whoever is born after a move waits for it too.
        naive: dict[str, Callable[[], Callable[[], Process]]] = {inside: ways[inside], moved: lambda: start_and_move}
        for to_end in (False, True):
            for idle in (IDLE, 0.0):
                title = f"A process, until it has {'ended' if to_end else 'started'}, {'from idle' if idle else 'in a row'}"
                for some, floor in ((ways, plain), (naive, inside)):
                    wanted = [Contender(name, _timed(way, idle=idle, to_end=to_end)) for name, way in some.items()]
                    contenders, absent = common.present(wanted)
                    timings = common.interleave(contenders, 10 if quick else 150 if idle else 400)
                    common.table(title, timings, floor)
                    goals: common.Goals = [] if to_end or some is naive else [common.goal(timings, inside, plain, 1.1)]
                    found[f"{title}: {', '.join(some)}"] = common.answer(timings, absent, goals)
    return found


def sample(*, quick: bool) -> dict[str, object]:
    """Measure counters that are read again and again."""
    import psutil  # noqa: PLC0415

    with contextlib.ExitStack() as stack:
        group = stack.enter_context(new_group())
        process = stack.enter_context(group.spawn(["sleep", "1000"]))
        memory = group.memory.directory
        file = "memory.current" if group.memory.is_v2 else "memory.usage_in_bytes"
        path = f"{memory.path}/{file}"
        kept = stack.enter_context(open(path, "rb", buffering=0))

        def by_open() -> int:
            with open(path, encoding="ascii") as opened:
                return int(opened.read())

        contenders = [
            Contender("pread of a kept descriptor", common.each_of(100, lambda: os.pread(kept.fileno(), 99, 0))),
            Contender("Directory.sample()", common.each_of(100, lambda: memory.sample(file))),
            Contender("group.memory.current", common.each_of(100, lambda: group.memory.current)),
            Contender("open().read()", common.each_of(100, by_open)),
            Contender("group.stats()", common.each_of(10, group.stats)),
            Contender("psutil: memory_info()", common.each_of(100, psutil.Process(process.pid).memory_info)),
            Contender("psutil: memory_full_info()", common.each_of(10, psutil.Process(process.pid).memory_full_info)),
        ]
        working, absent = common.present(contenders)
        timings = common.interleave(working, 10 if quick else 200)
    common.table("A counter of memory, read again and again", timings, "pread of a kept descriptor")
    goals: common.Goals = [common.goal_within(timings, name, 0.005) for name in ("Directory.sample()", "group.memory.current")]
    return common.answer(timings, absent, goals)


#: A command that is so many processes, all told of by one line.
_MANY: Final = "i=1; while [ $i -lt {} ]; do sleep 1000 & i=$((i+1)); done; echo; exec sleep 1000"


def crowd(processes: int, what: str) -> Callable[[], int]:
    """Return a function that does one thing to so many processes in a group of isolib's, and returns what it took."""

    def once() -> int:
        import isolib  # noqa: PLC0415

        with isolib.new_cgroup(pids_max=1000) as group:
            process = group.spawn(["sh", "-c", _MANY.format(processes)], stdout=isolib.PIPE)
            assert process.stdout is not None  # noqa: S101 - it is a pipe
            process.stdout.readline()
            time.sleep(SETTLE)
            if what == "thaw":
                group.freeze()
            start = time.perf_counter_ns()
            getattr(group, what)()
            taken = time.perf_counter_ns() - start
            group.kill()
            process.close()
            return taken

    return once


def end(bare: Bare, *, quick: bool) -> dict[str, object]:
    """Measure killing, freezing and thawing."""
    found: dict[str, object] = {}
    for what in ("kill", "freeze", "thaw"):
        for processes in (1, CROWD):
            title = f"group.{what}(), until the kernel says so, with {processes} process{'es' if processes > 1 else ''}"
            wanted = [Contender(FLOOR, bare.crowd(processes, what)), Contender(ISOLIB, crowd(processes, what))]
            working, absent = common.present(wanted)
            timings = common.interleave(working, 3 if quick else 20 if processes > 1 else 60)
            common.table(title, timings, FLOOR)
            found[title] = common.answer(timings, absent, [])
    return found


def reaper(bare: Bare, *, quick: bool) -> dict[str, object]:
    """Measure what it costs to leave nothing behind."""
    from isolib._kernel import reaper as own  # noqa: PLC0415

    unified, legacy = hierarchies()
    paths = [one for one in (unified, *(legacy.get(name) for name in _V1)) if one is not None]
    fds = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in paths]
    place = own.place(fds)
    contenders = [
        Contender(FLOOR.replace("one C call", "a group, made and removed"), bare.group),
        Contender("entrust(), strike()", common.each_of(100, lambda: own.entrust(fds, "isolib-bench").strike())),
        Contender("place.entrust(), strike()", common.each_of(100, lambda: place.entrust("isolib-bench").strike())),
    ]
    working, absent = common.present(contenders)
    timings = common.interleave(working, 10 if quick else 200)
    for fd in fds:
        os.close(fd)
    common.table(f"A name in {len(fds)} directories, entrusted to the reaper and struck", timings)
    return common.answer(timings, absent, [])


QUESTIONS: Final = ("life", "birth", "sample", "end", "reaper")


def ask(questions: Sequence[str], interpreter: str, *, quick: bool) -> dict[str, object]:
    """Answer the questions, with everything that this needs in a directory that is removed."""
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="isolib-bench-"))
        bare = Bare(directory)
        host = stack.enter_context(contextlib.closing(common.Host(interpreter, os.path.abspath(__file__), "--serve")))
        answers: dict[str, Callable[[], dict[str, object]]] = {
            "life": lambda: life(bare, host, directory, quick=quick),
            "birth": lambda: birth(bare, quick=quick),
            "sample": lambda: sample(quick=quick),
            "end": lambda: end(bare, quick=quick),
            "reaper": lambda: reaper(bare, quick=quick),
        }
        return common.ask(questions, answers)


def main() -> None:
    """Measure and report."""
    parser = common.arguments(__doc__)
    parser.add_argument("--peers", metavar="PYTHON", default=sys.executable, help="one that has benchexec and cgroupspy")
    parser.add_argument("--serve", action="store_true", help="be the process in which those two run")
    options = common.parse(parser, QUESTIONS)
    if options.serve:
        serve()
        return
    if shutil.which("runc") is None:
        print("without runc (apt-get install runc crun) there is less to compare with")
    common.write_json(options.json, ask(options.questions, options.peers, quick=options.quick))


if __name__ == "__main__":
    main()
