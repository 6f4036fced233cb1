"""Runs one command in a guest: another kernel with this machine's files, which ends when the command does.

The guest's / is the host's, read-only under a tmpfs: this checkout is there with its environment, and nothing written is kept.
There is no network, and /run, /srv, /tmp and /var/tmp are fresh. Output and exit status come back through a directory that both
sides have.

A process of User-Mode Linux that uses some 250 MB can hang for ever: every page of it may be a mapping of its own on the host,
which allows 65,530 (vm.max_map_count), and the kernel tries again when one is refused.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from tests.vm.engines import Boot
from tests.vm.image import HERE, initrd
from tests.vm.kernels import KERNELS, fetch, tool

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT = HERE.parent.parent
"""The checkout."""

ACCOUNT, ACCOUNT_ID = "guest", 4321
"""The ordinary user that every guest has, with ranges in /etc/subuid and /etc/subgid."""

_SAID = 4000
"""Characters of the console's end that an error shows."""


class Died(Exception):
    """The kernel ended before the command did."""


class TimedOut(Exception):
    """The command did not end in time; the machine was ended."""


@dataclass(frozen=True)
class Guest:
    """What to boot, and as whom the command is to run there.

    Without systemd, root's command runs in the root cgroup, the ordinary user's in a leaf of a cgroup that is delegated to him.
    With systemd as the first process, root's command runs in a leaf of a service's delegated cgroup, the ordinary user's in a
    session of logind; his service manager and its bus are there in either case.
    """

    kernel: str
    as_user: bool = False
    systemd: bool = False
    memory: int = 2048
    """In MiB."""
    words: tuple[str, ...] = ()
    """What is added to the kernel's command line."""

    def __str__(self) -> str:
        return "-".join((self.kernel, *["systemd"] * self.systemd, "user" if self.as_user else "root"))


def run(
    guest: Guest,
    command: Sequence[str],
    *,
    output: BinaryIO,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 600,
) -> int:
    """Run a command in a guest, and return its exit status as a shell has it.

    The command's output of both kinds goes to `output` while it is written. `environment` is added to what a login has.
    All that was started here is gone on return. Raises `Died` and `TimedOut`.
    """
    kernel, files = KERNELS[guest.kernel], fetch(guest.kernel)
    cwd = cwd or Path.cwd()
    # Not where TMPDIR says: words of a kernel's command line have no spaces.
    with tempfile.TemporaryDirectory(prefix="isolib-vm-", dir="/var/tmp") as name:
        place = Path(name)
        exchange = place / "exchange"
        exchange.mkdir()
        exchange.chmod(0o755)  # whatever the umask is: the guest's ordinary user enters it
        shutil.copy(HERE / "command.sh", exchange)
        (exchange / "command").write_text(script(command, variables(guest) | dict(environment or {}), cwd), encoding="utf-8")
        (exchange / "output").touch()
        (exchange / "output").chmod(0o666)  # he may open /dev/stdout
        settings = {
            "ACCOUNT": ACCOUNT,
            "ACCOUNT_ID": str(ACCOUNT_ID),
            "AS_USER": "1" * guest.as_user,
            "ENGINE": kernel.engine.value,
            "EXCHANGE": str(exchange),
            "MODULES": str(files.modules),
            "SYSTEMD": "1" * guest.systemd,
        }
        kept = dict.fromkeys(str(path) for path in (ROOT, environment_prefix(), interpreter(), cwd))
        (place / "initrd").write_bytes(initrd(kernel.engine, files.modules, settings, kept))
        argv = Boot(kernel, files, place, guest.memory, guest.words).argv()
        with (place / "console").open("wb") as console, started(argv, files.directory, console) as pidfd:
            status = _watch(exchange, pidfd, output, timeout)
        if status is None:
            said = (place / "console").read_text(encoding="utf-8", errors="replace").strip()
            raise Died(f"the kernel {guest.kernel} ended before the command did; its console said:\n{said[-_SAID:]}")
        return status


def environment_prefix() -> Path:
    """Return the directory of the virtual environment: the running one, else the checkout's."""
    return Path(sys.prefix) if sys.prefix != sys.base_prefix else ROOT / ".venv"


def interpreter() -> Path:
    """Return the program that is the environment's Python; its own directory is another one."""
    return (environment_prefix() / "bin/python").resolve()


def variables(guest: Guest) -> dict[str, str]:
    """Return the environment of a guest's command."""
    name, home = (ACCOUNT, f"/home/{ACCOUNT}") if guest.as_user else ("root", "/root")
    found = {
        "HOME": home,
        "HYPOTHESIS_STORAGE_DIRECTORY": "/tmp/hypothesis",
        "ISOLIB_VM": guest.kernel,
        "ISOLIB_VM_SYSTEMD": "1" * guest.systemd,
        "LANG": "C.UTF-8",
        "LOGNAME": name,
        "PATH": f"{environment_prefix()}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONSAFEPATH": "1",  # the installed isolib, not the checkout's
        "SHELL": "/bin/sh",
        "USER": name,
    }
    if guest.systemd and guest.as_user:
        runtime = f"/run/user/{ACCOUNT_ID}"
        found |= {"XDG_RUNTIME_DIR": runtime, "DBUS_SESSION_BUS_ADDRESS": f"unix:path={runtime}/bus"}
    return found


def script(command: Sequence[str], environment: Mapping[str, str], cwd: Path) -> str:
    """Return the shell script that becomes the command, in its directory and with its environment alone."""
    words = ["env", "-i", *(f"{name}={value}" for name, value in environment.items()), *command]
    return f"cd {shlex.quote(str(cwd))} || exit\nexec {shlex.join(words)}\n"


# ---- the machine's process ----


@contextlib.contextmanager
def started(argv: Sequence[str], directory: Path, console: BinaryIO) -> Iterator[int]:
    """Start a machine in a session of its own, and give a pidfd of it; at the end nothing of that session is left."""
    argv = [tool("setpriv"), "--pdeathsig", "KILL", *argv]  # it ends with this process, even by SIGKILL
    process = subprocess.Popen(
        argv, cwd=directory, stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True
    )
    pidfd = os.pidfd_open(process.pid)
    try:
        yield pidfd
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # not waited for yet, so the number is still its
        others = [fd for pid in session(process.pid) if (fd := _open_process(pid)) is not None]
        process.wait()
        for fd in (pidfd, *others):
            select.select([fd], [], [])
            os.close(fd)


def session(leader: int) -> set[int]:
    """Return the processes of a session that have not ended."""
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            state, *fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            if int(fields[2]) == leader and state not in "ZX":
                found.add(int(pid))
    return found


def _open_process(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


# ---- what comes back ----


def _watch(exchange: Path, pidfd: int, output: BinaryIO, timeout: float) -> int | None:
    """Pass on what the command writes until its status is there; returns that, or None when the machine has ended without."""
    deadline = time.monotonic() + timeout
    with changes(exchange) as notices, (exchange / "output").open("rb") as written:
        poll = select.poll()
        poll.register(notices, select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        ready: dict[int, int] = {}
        while True:
            # Looked for first: what was written before it is there too.
            has_status = (exchange / "status").exists()
            shutil.copyfileobj(written, output)
            output.flush()
            if has_status:
                return int((exchange / "status").read_text(encoding="ascii"))
            if pidfd in ready:
                return None
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimedOut(f"the command was still running after {timeout:g} seconds")
            ready = dict(poll.poll(left * 1000))
            if notices in ready:
                os.read(notices, 65536)


@contextlib.contextmanager
def changes(directory: Path) -> Iterator[int]:
    """Give a descriptor that is readable when something in a directory was written or renamed (inotify(7))."""
    modify, moved_to = 0x2, 0x80
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if fd < 0 or libc.inotify_add_watch(fd, os.fsencode(directory), modify | moved_to) < 0:
            raise OSError(ctypes.get_errno(), "inotify", str(directory))
        yield fd
    finally:
        if fd >= 0:
            os.close(fd)
