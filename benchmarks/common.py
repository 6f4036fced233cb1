"""What the benchmarks share: contenders that take turns, minima and medians, the table, the compiled floor.

Machines are noisy, and their noise lasts longer than a contender's turn.  Every round therefore runs each contender once, in
an order that is drawn anew; what is compared was measured in the same minutes.  The minimum says what the work costs, the
median what a user of this machine, as busy as it was, got.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import mmap
import os
import random
import statistics
import subprocess
import sys
import sysconfig
import threading
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

HERE: Final = os.path.dirname(os.path.abspath(__file__))

#: Variants of the floor, as floor.c numbers them.
NO_NET, HOST_ROOT_BIND, IN_PLACE = 1, 2, 4


@dataclass(frozen=True, slots=True)
class Contender:
    """A name and what to do once; it raises when it fails."""

    name: str
    once: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Timing:
    """What a contender took, in milliseconds of wall time."""

    name: str
    minimum: float
    median: float
    runs: int

    @classmethod
    def of(cls, name: str, nanoseconds: Sequence[int]) -> Timing:
        """Summarize one contender's runs."""
        return cls(name, min(nanoseconds) / 1e6, statistics.median(nanoseconds) / 1e6, len(nanoseconds))


def present(contenders: Sequence[Contender]) -> tuple[list[Contender], dict[str, str]]:
    """Run each contender once; return those that work, and why the others do not."""
    working, absent = [], {}
    for contender in contenders:
        try:
            contender.once()
        except Exception as error:  # noqa: BLE001 - another tool's failure may be anything, and is reported
            absent[contender.name] = f"{type(error).__name__}: {error}".strip().replace("\n", " ")[:200]
        else:
            working.append(contender)
    return working, absent


def taken(once: Callable[[], object]) -> int:
    """Return the nanoseconds that something takes, for a contender whose turn has more to it."""
    start = time.perf_counter_ns()
    once()
    return time.perf_counter_ns() - start


def each_of(times: int, once: Callable[[], object]) -> Callable[[], int]:
    """Return a function that measures one of many calls in a row: for what takes a microsecond."""

    def all_of_them() -> int:
        start = time.perf_counter_ns()
        for _ in range(times):
            once()
        return (time.perf_counter_ns() - start) // times

    return all_of_them


def interleave(contenders: Sequence[Contender], rounds: int) -> list[Timing]:
    """Let contenders take turns, in an order drawn anew for each round; one that returns an int has measured itself."""
    taken: dict[str, list[int]] = {one.name: [] for one in contenders}
    order = list(contenders)
    for _ in range(rounds):
        random.shuffle(order)
        for one in order:
            start = time.perf_counter_ns()
            result = one.once()
            elapsed = time.perf_counter_ns() - start
            taken[one.name].append(result if isinstance(result, int) else elapsed)
    return [Timing.of(name, nanoseconds) for name, nanoseconds in taken.items()]


# ---- the floor ----


@dataclass(frozen=True, slots=True)
class Floor:
    """The compiled floor, as a program and as a C function that is called without the GIL."""

    program: str
    library: ctypes.CDLL

    def sandbox(self, variant: int = 0) -> None:
        """Make one sandbox in one C call."""
        status = self.library.floor_sandbox(variant)
        if status:
            raise OSError(-status if status < 0 else 0, f"floor_sandbox: {os.strerror(-status) if status < 0 else status}")

    def report(self, *arguments: str) -> dict[str, float]:
        """Run the program and return what it measured."""
        done = subprocess.run([self.program, *arguments], check=True, stdout=subprocess.PIPE)
        numbers: dict[str, float] = json.loads(done.stdout)
        return numbers


def compile_floor(directory: str) -> Floor:
    """Compile floor.c into a directory."""
    _compile("floor", os.path.join(directory, "floor"))
    compile_library("floor", directory)
    return load_floor(directory)


def compile_library(name: str, directory: str) -> ctypes.CDLL:
    """Compile a floor of that name into a directory, and return it as a library; its functions are called without the GIL."""
    path = os.path.join(directory, f"{name}.so")
    _compile(name, path, "-shared", "-fPIC")
    return ctypes.CDLL(path)


def _compile(name: str, output: str, *options: str) -> None:
    compiler = os.environ.get("CC") or (sysconfig.get_config_var("CC") or "cc").split()[0]
    strict = ["-O2", "-Wall", "-Wextra", "-Werror", "-std=gnu17", "-pthread"]
    subprocess.run([compiler, *strict, *options, "-o", output, os.path.join(HERE, f"{name}.c")], check=True)


def load_floor(directory: str) -> Floor:
    """Load what `compile_floor` has made."""
    return Floor(os.path.join(directory, "floor"), ctypes.CDLL(os.path.join(directory, "floor.so")))


# ---- hosts, busy and large ----


class Host:
    """A process that runs contenders on demand: another run of a benchmark, which answers by `serve`."""

    def __init__(self, *argv: str) -> None:
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        answer = self._process.stdout.readline().rstrip("\n")
        if not answer or answer.startswith("failed"):
            raise RuntimeError(answer or "the host process has died")
        return answer

    def contender(self, name: str, shown: str) -> Contender:
        """Return one that runs there, and is shown by another name."""

        def once() -> int:
            assert self._process.stdin is not None  # noqa: S101 - it is a pipe
            print(name, file=self._process.stdin, flush=True)
            return int(self._answer())

        return Contender(shown, once)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def serve(contenders: Sequence[Contender], size: int) -> None:
    """Be a host process of a given size: run the contender that each line names, and answer with its nanoseconds.

    One that returns an int has measured itself.
    """
    ballast = mmap.mmap(-1, max(size, mmap.PAGESIZE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # heaps of small objects are not in huge pages
        ballast.madvise(mmap.MADV_NOHUGEPAGE)
    ballast[:: mmap.PAGESIZE] = b"x" * len(range(0, len(ballast), mmap.PAGESIZE))
    known = {one.name: one for one in contenders}
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.perf_counter_ns()
        try:
            result = known[line.rstrip("\n")].once()
        except Exception as error:  # noqa: BLE001 - reported to the other side
            print("failed", repr(error).replace("\n", " "), flush=True)
        else:
            print(result if isinstance(result, int) else time.perf_counter_ns() - start, flush=True)


def memory_available() -> int:
    """Return how many bytes can be had without swapping (proc_meminfo(5))."""
    with open("/proc/meminfo", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))


@contextlib.contextmanager
def busy_threads(count: int) -> Iterator[None]:
    """Compute in Python, on threads that give the interpreter up only when they are asked to."""
    stop = threading.Event()

    def compute() -> None:
        number = 0
        while not stop.is_set():
            for _ in range(1000):
                number = (number * 1103515245 + 12345) & 0x7FFFFFFF

    threads = [threading.Thread(target=compute) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def per_second(once: Callable[[], object], threads: int, seconds: float) -> float:
    """Return how often a second that many threads get it done."""
    made = [0] * threads
    errors: list[BaseException] = []
    start = time.monotonic()

    def work(index: int) -> None:
        try:
            while time.monotonic() < start + seconds:
                once()
                made[index] += 1
        except BaseException as error:  # noqa: BLE001 - raised by the one who waits
            errors.append(error)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]
    return sum(made) / (time.monotonic() - start)


# ---- reporting ----


def table(title: str, timings: Sequence[Timing], floor: str | None = None) -> None:
    """Print timings, the fastest first, and how many times the floor's each is."""
    if not timings:
        return
    base = next((one for one in timings if one.name == floor), None)
    width = max([len(one.name) for one in timings] + [9])
    print(f"\n{title}\n{'':{width}}  {'min ms':>9}  {'median ms':>9}" + ("   x min  x median" if base else ""))
    for one in sorted(timings, key=lambda timing: timing.minimum):
        ratio = f"  {one.minimum / base.minimum:6.2f}  {one.median / base.median:8.2f}" if base else ""
        print(f"{one.name:{width}}  {one.minimum:9.4f}  {one.median:9.4f}{ratio}")


def goal(timings: Sequence[Timing], of: str, against: str, most: float) -> dict[str, object] | None:
    """Say whether a contender's minimum is at most so many times another's; None where one of the two is absent."""
    found = {one.name: one for one in timings}
    if of not in found or against not in found:
        return None
    ratios = found[of].minimum / found[against].minimum, found[of].median / found[against].median
    reached = "reached" if ratios[0] <= most else "MISSED"
    wanted = f"at most {most:g} x" if most >= 1 else f"{1 / most:g} x faster than"
    shown = ratios if most >= 1 else (1 / ratios[0], 1 / ratios[1])
    print(f"goal: {of}: {wanted} {against}: {shown[0]:.2f} x (medians {shown[1]:.2f} x): {reached}")
    return {"of": of, "against": against, "most": most, "minima": ratios[0], "medians": ratios[1]}


def goal_within(timings: Sequence[Timing], of: str, most: float) -> dict[str, object] | None:
    """Say whether a contender's minimum is at most so many milliseconds."""
    found = next((one for one in timings if one.name == of), None)
    if found is None:
        return None
    reached = "reached" if found.minimum <= most else "MISSED"
    print(f"goal: {of}: at most {most * 1e3:g} us: {found.minimum * 1e3:.2f} us (median {found.median * 1e3:.2f}): {reached}")
    return {"of": of, "most": most, "minimum": found.minimum, "median": found.median}


def tell_absent(absent: dict[str, str]) -> None:
    """Say which contenders could not take part, and why: a table must not grow shorter in silence."""
    for name, reason in absent.items():
        print(f"not measured: {name}: {reason}")


def timings_of(timings: Sequence[Timing]) -> list[dict[str, object]]:
    """Return timings as JSON takes them."""
    return [asdict(one) for one in timings]


Goals: TypeAlias = "list[dict[str, object] | None]"
"""What `goal` and `goal_within` have found."""


def answer(timings: Sequence[Timing], absent: dict[str, str], goals: Goals | None = None) -> dict[str, object]:
    """Say who is absent, and return everything as JSON takes it."""
    tell_absent(absent)
    return {"timings": timings_of(timings), "goals": [one for one in goals or () if one], "absent": absent}


def ask(questions: Sequence[str], answers: Mapping[str, Callable[[], dict[str, object]]]) -> dict[str, object]:
    """Answer questions; one that this host refuses is told, and the others are answered all the same."""
    found: dict[str, object] = {}
    for question in questions:
        try:
            found[question] = answers[question]()
        except Exception as error:  # noqa: BLE001 - what a host refuses may be anything, and is reported
            print(f"\nnot answered: {question}: {type(error).__name__}: {error}")
            found[question] = {"refused": str(error)}
    return found


def machine() -> dict[str, object]:
    """Return what a reader must know of the machine to judge the numbers."""
    with open("/proc/self/mountinfo", "rb") as mounts:
        mounted = len(mounts.readlines())
    return {
        "kernel": " ".join(os.uname()[2:]),
        "cpus": len(os.sched_getaffinity(0)),
        "load": os.getloadavg(),
        "mounts": mounted,
        "euid": os.geteuid(),
        "python": sys.version.split()[0],
    }


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Return the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds: to see that it works, not to compare")
    parser.add_argument("--json", metavar="FILE", help="write everything measured to FILE")
    return parser


def parse(parser: argparse.ArgumentParser, questions: Sequence[str]) -> argparse.Namespace:
    """Return what the command line says, with the questions to be answered: all, where it names none."""
    parser.add_argument("questions", nargs="*", default=questions, help=f"of: {', '.join(questions)}; all of them by default")
    options = parser.parse_args()
    unknown = set(options.questions) - set(questions)
    if unknown:
        parser.error(f"no such question: {', '.join(sorted(unknown))}")
    return options


def write_json(path: str | None, results: dict[str, object]) -> None:
    """Write the results, where that is wanted."""
    if path:
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"machine": machine(), **results}, file, indent=1)
            file.write("\n")
