"""Odd hosts: whatever a program was started with, spawn() and run() do the same, or say why they cannot."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

import isolib

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("user_namespaces")

PROGRAM = """
import isolib
with isolib.spawn(["sh", "-c", "echo word; umask"], new={"user", "pid", "mnt"}, stdout=isolib.PIPE) as process:
    print(process.communicate()[0], process.wait().code)
print(isolib.run(["sh", "-c", "cat; exit 3"], input=b"text").stdout)
with isolib.Sandbox() as box:
    print(box.run(["sh", "-c", "echo x > /tmp/file && cat /tmp/file"]).stdout)
"""


def expected(mask: str) -> list[str]:
    """Return what the program prints."""
    return [f"b'word\\n{mask}\\n' 0", "b'text'", "b'x\\n'"]


def printed(
    directory: Path, *options: str, env: dict[str, str] | None = None, before: Callable[[], None] | None = None
) -> list[str]:
    """Run the program as a host of its own and return its lines."""
    whole = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), **(env or {})}
    done = subprocess.run(
        [sys.executable, *options, "-c", PROGRAM],
        cwd=directory,
        env=whole,
        preexec_fn=before,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.fixture
def mask() -> str:
    """Return the umask as a shell prints it."""
    now = os.umask(0)
    os.umask(now)
    return f"{now:04o}"


def test_strict_interpreter(mask: str, tmp_path: Path) -> None:
    """In development mode, with warnings as errors, nothing is said."""
    assert printed(tmp_path, "-X", "dev", "-W", "error") == expected(mask)


@pytest.mark.parametrize(
    "env", [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}, {"HOME": "/proc"}, {"HOME": "/nonexistent"}]
)
def test_environments(env: dict[str, str], mask: str, tmp_path: Path) -> None:
    """Neither the locale nor a home that is absent or cannot be written matters."""
    assert printed(tmp_path, env=env) == expected(mask)


def test_places_with_odd_names(mask: str, tmp_path: Path) -> None:
    """The directories for temporary files and to work in may have spaces and bytes that are no UTF-8 in their names."""
    odd = tmp_path / os.fsdecode(b"a b,c:d\\ \xe9")
    odd.mkdir()
    assert printed(odd, env={"TMPDIR": str(odd)}) == expected(mask)


def test_closed_umask(tmp_path: Path) -> None:
    """With a umask of 077 what is made for the sandbox is as accessible as ever, and the command has the caller's mask."""

    def close() -> None:
        os.umask(0o077)

    assert printed(tmp_path, before=close) == expected("0077")


def test_blocked_signals(mask: str, tmp_path: Path) -> None:
    """A host that has every signal blocked, to read them from a signalfd, hears of each process's end all the same."""

    def block() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())

    assert printed(tmp_path, before=block) == expected(mask)


def test_working_directory_that_was_removed(tmp_path: Path) -> None:
    """A host whose working directory is gone is told so by run(), and what to do; a spawn that names a directory works."""
    program = """
import os, isolib
os.mkdir("gone"); os.chdir("gone"); os.rmdir("../gone")
print(isolib.spawn(["true"], cwd="/").wait().code)
try:
    isolib.run(["true"])
except isolib.IsolibError as error:
    print("chdir" in str(error) or error)
os.chdir("/")
print(isolib.run(["true"]).returncode)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.stdout.split("\n")[:3], done.returncode) == (["0", "True", "0"], 0), done.stdout + done.stderr


def test_stopped_host_is_no_dead_host() -> None:
    """What a host that is stopped for a while has started lives on."""
    program = """
import isolib
with isolib.spawn(["cat"], new={"user", "pid"}, stdin=isolib.PIPE, stdout=isolib.PIPE) as process:
    print("up", flush=True); input()
    print(process.communicate(b"still there")[0])
"""
    host = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert host.stdout is not None
    assert host.stdout.readline() == b"up\n"
    host.send_signal(signal.SIGSTOP)
    os.waitpid(host.pid, os.WUNTRACED)
    host.send_signal(signal.SIGCONT)
    assert host.communicate(b"\n", timeout=60)[0] == b"b'still there'\n"
    assert host.returncode == 0
    assert isolib.run(["true"]).returncode == 0


def test_thread_that_started_it_may_end() -> None:
    """A process outlives the thread that started it, and can be waited for by another."""
    started: list[isolib.Process] = []
    argv, kinds = ["sh", "-c", "read line; exit 7"], {"user", "pid"}
    thread = threading.Thread(target=lambda: started.append(isolib.spawn(argv, new=kinds, stdin=isolib.PIPE)))
    thread.start()
    thread.join()
    with started[0] as process:
        assert process.poll() is None
        process.communicate(b"go\n")
        assert process.wait().code == 7
