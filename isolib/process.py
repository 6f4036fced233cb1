"""Processes: started by name of what isolates them, fed and drained without a deadlock, ended with all that they left behind.

:func:`spawn` is to `subprocess.Popen` what a container is to a program: the same streams and statuses, and beside them the
namespaces, the root, the mounts, the identity and the limits that the process is born with.  Nothing forks the interpreter: the
launcher, a small program without libc, is executed in between, and the host gets no child, no SIGCHLD, and no zombie.

Every process has a supervisor, which is PID 1 of its new pid namespace, or its parent where it shares somebody else's.  It ends
the process when the host ends, whatever way, and ends what the process left behind when the process ends.
"""

from __future__ import annotations

import signal as signals
import threading
import time
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any, Final

from isolib._kernel import calls
from isolib._kernel.handle import home
from isolib._kernel.lodging import Account
from isolib._kernel.request import Request
from isolib._kernel.streams import DEVNULL, PIPE, STDOUT, open_stream, stdio, surrender
from isolib._kernel.verdict import Evidence, usage, verdict
from isolib.errors import ClosedError, GoneError, PlanError, SandboxTimeout
from isolib.types import parse_duration

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import timedelta
    from types import TracebackType
    from typing import Self

    import psutil

    from isolib._kernel.launch import Launched
    from isolib._kernel.lodging import Lodging
    from isolib._kernel.request import Confine, MountValue, RootValue
    from isolib.types import Exit, HasFileno, IdMap, Usage

__all__ = ["DEVNULL", "PIPE", "STDOUT", "Process", "spawn"]

_BOTH: Final = calls.UNTIL_EXIT | calls.UNTIL_STREAMS
_SECOND: Final = 1_000_000_000


def spawn(
    argv: Sequence[str | bytes | os.PathLike[str]],
    *,
    new: Iterable[str] = (),
    join: Iterable[HasFileno] = (),
    cgroup: HasFileno | Lodging | None = None,
    root: RootValue | None = None,
    mounts: Sequence[MountValue] = (),
    id_map: str | Sequence[IdMap] | None = None,
    hostname: str | None = None,
    user: str | int | tuple[int, int] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    stdin: int | HasFileno | None = None,
    stdout: int | HasFileno | None = None,
    stderr: int | HasFileno | None = None,
    pass_fds: Iterable[int] = (),
    pty: bool = False,
    rlimits: Mapping[int, int | tuple[int, int]] | None = None,
    confine: Confine | None = None,
    init: bool | None = None,
) -> Process:
    r"""Start a program in the namespaces that are named, and in no others.

    Of the kinds that are in neither ``new`` nor ``join`` it gets this program's own namespaces.  That the calling thread is
    inside `with new_netns():` at the moment has no say: a process that inherits by accident is a process in the wrong place.

    Parameters
    ----------
    argv
        The program and its arguments; a program without a slash is looked for in the PATH of ``env``, inside the new root.
    new
        Kinds of namespaces to make: any of pid, net, ipc, mnt, uts, user, cgroup, time.  A new net has its lo up.
    join
        Handles of namespaces to enter.
    cgroup
        A `isolib.cgroups.Cgroup`, or a descriptor of any directory of cgroup v2: the process, its supervisor and all that it
        starts are born in it (CLONE_INTO_CGROUP; in v1 the new process enters by itself, before anything else).
    root
        A value of `isolib.mounts.Root`, or an image, tree or overlay of `isolib.unionfs`; needs a new mnt namespace.  What the
        process writes is in the tree or the overlay; what it writes to an image goes with it.  For what belongs to a user
        namespace of an ordinary user, ``id_map`` is that of this namespace if nothing is said.
    mounts
        Values of `isolib.mounts`, attached in their order.
    id_map
        For a new user namespace: "root" (the default: root inside is the caller), "same", "auto" or a list of IdMap.
    hostname
        For a new uts namespace.
    user
        Name, number or (uid, gid) as the process sees them; None: the identity that its namespaces give it.
    cwd
        Inside the root, entered as the user.
    env
        The whole environment; None: that of this process.
    stdin, stdout, stderr
        As in subprocess: None inherits; PIPE, DEVNULL, STDOUT (for stderr), a descriptor or an object with a fileno.
    pass_fds
        Descriptors that the process gets with their numbers; it gets no others.
    pty
        Its standard streams are a new terminal, whose other end is ``Process.terminal``.
    rlimits
        ``{resource.RLIMIT_NOFILE: (soft, hard)}``; one number sets both.
    confine
        A `isolib.confine.Confinement`.
    init
        None or True: a supervisor as PID 1 of the new pid namespace.  False is not offered: a program as PID 1 gets no default
        signal actions and reaps nothing.

    Returns
    -------
    Process
        It has been executed: a program that is not there is an exception here, not an exit status 127.

    Raises
    ------
    PlanError
        An argument cannot work; nothing was done.
    SetupFailed
        A system call failed; the message names it, its object and the remedy.  Nothing is left.

    Notes
    -----
    Privileges: those of the namespaces asked for; all of them without any when ``new`` holds "user" and the host allows user
    namespaces.  Sources: clone(2), namespaces(7), pid_namespaces(7), user_namespaces(7).

    Examples
    --------
    >>> with spawn(["sh", "-c", "echo $$"], new={"user", "pid"}, stdout=PIPE) as process:
    ...     process.communicate()[0]
    b'2\n'
    """
    if init is False:
        raise PlanError("init=False: every process is supervised, or nothing would end it with its host")
    request = Request(
        new=new,
        join=join,
        cgroup=cgroup,
        root=root,
        mounts=mounts,
        id_map=id_map,
        hostname=hostname,
        user=user,
        cwd=cwd,
        env=env,
        pass_fds=pass_fds,
        pty=pty,
        rlimits=rlimits,
        confine=confine,
    )
    return Process.start(request, argv, stdin=stdin, stdout=stdout, stderr=stderr, pty=pty)


class Process:
    """A running process, its streams, and its end.

    Made by `spawn`.  Leaving its ``with`` kills it and all that it started; so does forgetting it, with a ResourceWarning.

    Attributes
    ----------
    args
        What was executed.
    pid
        The process id, as this process sees it.
    stdin, stdout, stderr
        Binary files where PIPE was asked for, else None.
    terminal
        With ``pty=True``, the terminal's master as an unbuffered binary file, else None.
    """

    def __init__(
        self, args: Sequence[str | bytes | os.PathLike[str]], launched: Launched, pump: calls.Pump | None = None
    ) -> None:
        self.args = args
        self.pid = launched.command_pid or launched.supervisor_pid
        self._home = home()
        self._lock = threading.Lock()
        self._files: list[IO[bytes] | None] = [None, None, None, None]
        self._early = [b"", b"", b""]  # what the files had read ahead when `communicate` took over
        self._exit: Exit | None = None
        self._origin: tuple[Request, tuple[int, int, int]] | None = None
        self._killed = False
        self._limit: int | None = None
        self._input: Any = None
        self._pump: calls.Pump = calls.new_pump() if pump is None else pump
        if pump is None:
            calls.pump_watch(self._pump, launched.request)
        self._launched = launched  # last: who has it is complete

    @classmethod
    def start(
        cls,
        request: Request,
        argv: Sequence[str | bytes | os.PathLike[str]],
        *,
        stdin: int | HasFileno | None,
        stdout: int | HasFileno | None,
        stderr: int | HasFileno | None,
        pty: bool = False,
    ) -> Self:
        """Launch a request (for the modules that compose; others use `spawn`)."""
        streams = stdio(stdin, stdout, stderr, pty=pty)
        process = cls(argv, request.launch(argv, streams))
        process._origin = request, streams
        return process

    def again(self) -> Self:
        """End it with all that it started, and start the same program anew, with the same arguments.

        Returns
        -------
        Process
            The new one; streams that were pipes are new pipes.
        """
        if self._origin is None:
            raise PlanError(f"{self!r} cannot be started again: it was not made by spawn")
        request, streams = self._origin
        self.close()
        process = type(self)(self.args, request.launch(self.args, streams))
        process._origin = self._origin  # noqa: SLF001 - its own class
        return process

    # ---- what it is ----

    def __repr__(self) -> str:
        state = "closed" if self._launched.pidfd < 0 else "running"
        if self._exit is not None:
            state = f"{self._exit.reason.value} {self._exit.returncode}"
        return f"<Process {self.pid} {list(map(str, self.args))!r} {state}>"

    def fileno(self) -> int:
        """Return a pidfd that becomes readable when the process and all that it left behind are gone.

        It is the supervisor's.  Signals sent to it reach the process (SIGKILL and SIGSTOP excepted); `send_signal` needs no
        such detour.
        """
        if self._launched.pidfd < 0:
            raise ClosedError(f"{self!r} is closed")
        return self._launched.pidfd

    @property
    def exit(self) -> Exit | None:
        """How it ended, once that is known."""
        return self._exit

    @property
    def returncode(self) -> int | None:
        """The exit status as in subprocess, once it is known."""
        return None if self._exit is None else self._exit.returncode

    def psutil(self) -> psutil.Process:
        """Return psutil's view of the process."""
        import psutil  # noqa: PLC0415 - it costs 20 ms to import, and few ask

        try:
            return psutil.Process(self.pid)
        except psutil.NoSuchProcess:
            raise GoneError("open", f"process {self.pid}") from None

    # ---- streams ----

    def _file(self, number: int) -> IO[bytes] | None:
        if self._files[number] is None and calls.launch_stream(self._launched.request, number) >= 0:
            self._files[number] = open_stream(self._launched.request, number)
        return self._files[number]

    @property
    def stdin(self) -> IO[bytes] | None:
        """The writing end of its standard input."""
        return self._file(0)

    @property
    def stdout(self) -> IO[bytes] | None:
        """The reading end of its standard output."""
        return self._file(1)

    @property
    def stderr(self) -> IO[bytes] | None:
        """The reading end of its standard error."""
        return self._file(2)

    @property
    def terminal(self) -> IO[bytes] | None:
        """The master of its terminal, unbuffered; a read after the end raises OSError (EIO), as pty(7) says."""
        return self._file(calls.TERMINAL)

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of its terminal; it gets a SIGWINCH (ioctl_tty(2))."""
        terminal = self.terminal
        if terminal is None:
            raise PlanError("resize: the process has no terminal; it is made by pty=True")
        calls.pty_size(terminal.fileno(), rows, columns)

    # ---- waiting ----

    def poll(self) -> Exit | None:
        """Return how it ended, or None while it or something that it left behind still runs."""
        if self._exit is None and self._lock.acquire(blocking=False):  # else another thread waits, and will know
            try:
                self._run_pump(calls.UNTIL_EXIT, 0)
            finally:
                self._lock.release()
        return self._exit

    def wait(self, timeout: float | timedelta | None = None) -> Exit:
        """Wait until it and all that it left behind are gone; its outputs are not read meanwhile (see `communicate`).

        Raises
        ------
        SandboxTimeout
            It still runs after ``timeout`` seconds; it goes on.
        """
        if self._exit is None:
            with self._lock:
                self._wait(calls.UNTIL_EXIT, timeout)
        assert self._exit is not None  # noqa: S101 - _wait raises or sets it
        return self._exit

    def communicate(
        self,
        input: bytes | None = None,  # noqa: A002 - subprocess's name
        timeout: float | timedelta | None = None,
    ) -> tuple[bytes | None, bytes | None]:
        """Feed its input and read its outputs until it has ended; returns (stdout, stderr), each None where it is no pipe.

        Input and outputs go on side by side, so nothing blocks however large they are.  What was read before a time-out stays:
        a further call goes on where this one stopped, and the exception carries it too.

        Raises
        ------
        SandboxTimeout
            It still runs after ``timeout`` seconds; it goes on.
        """
        with self._lock:
            self._attach_streams(input)
            self._wait(_BOTH, timeout)
            return self._captured()

    def _attach_streams(self, data: bytes | None) -> None:
        pump = self._pump
        if self._input is None:
            if data and calls.launch_stream(self._launched.request, 0) < 0:
                raise PlanError("communicate(input=...): the process was not started with stdin=PIPE, or its stdin is closed")
            self._input = calls.pump_input(data or b"")
            pump.input, pump.input_size = self._input, len(data or b"")
        for number in range(calls.TERMINAL):
            file = self._files[number]
            if file is not None and not file.closed:
                self._early[number] = surrender(file)
            self._files[number] = None
        calls.pump_attach(pump, self._launched.request)

    def _captured(self) -> tuple[bytes | None, bytes | None]:
        out, err = self._pump.out, self._pump.err
        return (
            None if out.fd < 0 and not out.capacity else self._early[1] + calls.stream_bytes(out),
            None if err.fd < 0 and not err.capacity else self._early[2] + calls.stream_bytes(err),
        )

    def _wait(self, until: int, timeout: float | timedelta | None) -> None:
        if timeout is None:
            self._run_pump(until, -1)
            return
        seconds = parse_duration(timeout, "timeout")
        if self._run_pump(until, int(seconds * _SECOND)) == calls.PUMP_TIMEOUT:
            out, err = self._captured()
            raise SandboxTimeout(self.args, seconds, out, err, self._usage())

    def _run_pump(self, until: int, timeout_ns: int) -> int:
        if self._launched.pidfd < 0 and self._exit is None:
            raise ClosedError(f"{self!r} is closed")
        deadline = time.monotonic_ns() + timeout_ns if timeout_ns > 0 else 0
        result = calls.pump_run(self._pump, until, timeout_ns)
        while result in (calls.PUMP_SIGNAL, calls.PUMP_OVERFLOW):  # between two calls Python runs its signal handlers
            if result == calls.PUMP_OVERFLOW:
                self.kill()
            left = max(0, deadline - time.monotonic_ns()) if deadline else timeout_ns
            result = calls.pump_run(self._pump, until, left)
        if self._pump.gone and self._exit is None:
            self._exit = self._ended()
            self._launched.give_back()
        return result

    def _ended(self) -> Exit:
        pump, lodge = self._pump, self._launched.lodge
        account = Account() if lodge is None else lodge.settle()
        killed = self._killed or (lodge is not None and lodge.killed)
        overflowed = self._limit is not None and bool(pump.out.overflow or pump.err.overflow)
        return verdict(pump, Evidence(account, killed, overflowed), self._usage(account))

    def _usage(self, account: Account = Account()) -> Usage:  # noqa: B008 - immutable
        return usage(self._pump, self._launched.started_ns, time.monotonic_ns(), account)

    # ---- ending ----

    def send_signal(self, signal: int) -> None:
        """Send a signal to the process itself; nothing happens when it has ended (as in subprocess)."""
        if self._exit is not None or self._launched.command < 0:
            return
        try:
            calls.pidfd_send_signal(self._launched.command, signal, f"process {self.pid}")
        except ProcessLookupError:
            return

    def terminate(self) -> None:
        """Ask the process to end: SIGTERM."""
        self.send_signal(signals.SIGTERM)

    def kill(self) -> None:
        """Kill the process and everything that it has started; returns at once (see `wait`).

        With a pid namespace of its own, or a control group, nothing escapes that.  Without either its descendants are killed
        wherever they have moved in the process tree, but one that forks faster than it is killed may be ahead for a while, and
        one whose supervisor was killed by somebody is not found any more; the process itself ends with its supervisor.
        """
        if self._exit is None and self._launched.status >= 0 and self._home == home():
            self._killed = True
            calls.say(self._launched.status)
            lodge = self._launched.lodge
            if lodge is not None and lodge.is_frozen():  # nobody in there hears a word
                lodge.kill()

    def close(self) -> None:
        """Kill it if it still runs, wait for its end, and close everything that belongs to it."""
        if self._launched.pidfd < 0:  # nothing was ever handed out, or it has been given back
            self._launched.give_back()
            return
        try:
            self._end()
        except KeyboardInterrupt:  # it is raised when all is released
            self._end()
            raise
        finally:
            self._close_streams()
            self._launched.close()

    def _end(self) -> None:
        # A copy that os.fork made gives up its descriptors and leaves the process to its owner.
        if self._exit is not None or self._home != home():
            return
        self.kill()
        with self._lock:
            self._run_pump(calls.UNTIL_EXIT, _SECOND)
            if self._exit is None:  # a supervisor that was stopped or frozen from outside
                if self._launched.lodge is not None:
                    self._launched.lodge.kill()
                with suppress(GoneError):  # it has just ended
                    calls.pidfd_send_signal(self._launched.pidfd, signals.SIGKILL, f"process {self.pid}")
            while self._exit is None:
                if self._launched.lodge is not None:
                    self._launched.lodge.reap()
                self._run_pump(calls.UNTIL_EXIT, _SECOND)

    def _close_streams(self) -> None:
        calls.pump_close(self._pump)
        for file in self._files:
            if file is not None:
                # What was still buffered for a process that is gone; a file whose closing was interrupted.
                with suppress(BrokenPipeError, ValueError):
                    file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def __del__(self, _warn: Callable[..., None] | None = None) -> None:
        launched = getattr(self, "_launched", None)
        if launched is None or launched.pidfd < 0:
            return
        if self._exit is None and self._home == home():
            import warnings  # noqa: PLC0415 - rare

            text = f"{self!r} was forgotten: it is killed now; use `with` or close()"
            warnings.warn(text, ResourceWarning, stacklevel=2, source=self)
        self._close_streams()
        launched.close()
