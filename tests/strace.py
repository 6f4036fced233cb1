"""strace, attached to this very process: what the processes of a launch do, and how to make their system calls fail."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

_PR_SET_PTRACER = 0x59616D61
_CALL = re.compile(r"(\w+)\(.*?(?:\)\s+= (\S+).*)?$", re.DOTALL)


class Trace:
    """What strace, the process `tracer`, has written for each process; complete when the block of `attached` has ended."""

    def __init__(self, tracer: int = 0) -> None:
        self.tracer = tracer
        self._texts: dict[int, str] = {}

    def read(self, directory: Path) -> None:
        """Take over strace's files."""
        for path in directory.iterdir():
            self._texts[int(path.suffix[1:])] = path.read_text(encoding="ascii", errors="replace")

    def calls(self, pid: int) -> list[tuple[str, str]]:
        """Return the name and the result of each system call of a process."""
        found = (_CALL.match(line) for line in self._texts.get(pid, "").splitlines())
        return [(match[1], match[2] or "?") for match in found if match]

    def lines(self, pid: int) -> list[str]:
        """Return what strace has written for a process."""
        return self._texts.get(pid, "").splitlines()

    def text(self) -> str:
        """Return everything."""
        return "\n".join(f"{pid}:\n{text}" for pid, text in sorted(self._texts.items()))

    def pids(self) -> list[int]:
        """Return every process that was seen."""
        return sorted(self._texts)

    def child_of(self, pid: int, name: str) -> int:
        """Return the pid that the last call of this name by a process, a kind of clone, has returned."""
        born = [int(result) for call, result in self.calls(pid) if call == name and result.isdigit()]
        return born[-1] if born else 0


@contextlib.contextmanager
def attached(*options: str) -> Iterator[Trace]:
    """Let strace follow this process and its children for the time of the block."""
    program = shutil.which("strace")
    if program is None:
        pytest.skip("strace is not installed")
    trace = Trace()
    with tempfile.TemporaryDirectory() as directory:
        argv = [program, "-f", "-ff", "-s0", "-o", f"{directory}/t", *options, "-p", str(os.getpid())]
        with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as strace:
            assert strace.stderr is not None
            ctypes.CDLL(None).prctl(_PR_SET_PTRACER, strace.pid, 0, 0, 0)  # only Yama knows it, and only there it is needed
            try:
                line = strace.stderr.readline()
                if b"attached" not in line:
                    pytest.skip(f"strace may not attach to this process: {line.decode().strip()}")
                trace.tracer = strace.pid
                yield trace
            finally:
                wait_for_the_others(strace.pid)
                strace.send_signal(signal.SIGINT)
                strace.wait()
                trace.read(Path(directory))


def wait_for_the_others(tracer: int) -> None:
    """Wait until only this process is traced: `isolib.run` returns when all is dead but the supervisor, which soon is."""
    pause = threading.Event()
    own = str(os.getpid())
    for _ in range(1000):
        if not any(number != own and tracer_of(number) == tracer for number in filter(str.isdigit, os.listdir("/proc"))):
            return
        pause.wait(0.005)


def tracer_of(number: str) -> int:
    """Return the process id of who traces a process, or 0."""
    try:
        status = Path(f"/proc/{number}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    return int(status.partition("TracerPid:")[2].split()[0])


def tid() -> int:
    """Return the number by which strace knows the calling thread."""
    return threading.get_native_id()
