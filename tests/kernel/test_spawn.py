"""Processes: birth, streams, statuses, identity, and what they cannot inherit."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
from pathlib import Path

import pytest

import isolib
from isolib import PIPE, STDOUT, PlanError, Reason, SandboxTimeout, SetupFailed, spawn
from tests.seccomp import MACHINE, NUMBERS
from tests.threads import in_a_thread

USER_AND_PID = {"user", "pid"}


def output(argv: list[str], **kwargs: object) -> bytes:
    """Run a program by spawn and return what it printed."""
    with spawn(argv, stdout=PIPE, **kwargs) as process:  # type: ignore[arg-type]
        out, _ = process.communicate(timeout=60)
    assert out is not None
    return out


def test_status_is_that_of_the_command() -> None:
    """Every exit status from 0 to 255 comes back as it is."""
    for code in (0, 1, 2, 127, 128, 255):
        with spawn(["sh", "-c", f"exit {code}"]) as process:
            end = process.wait(60)
        assert (end.code, end.signal, end.reason, end.returncode) == (code, None, Reason.EXITED, code)


def test_death_by_signal_is_told_from_an_exit() -> None:
    """A command that a signal ends has a signal and no code, and its returncode is negative, as in subprocess."""
    with spawn(["sh", "-c", "kill -SEGV $$"], new=USER_AND_PID) as process:
        end = process.wait(60)
    assert (end.code, end.signal, end.reason, end.returncode) == (None, signal.SIGSEGV, Reason.SIGNALED, -11)


def test_missing_program_is_an_exception() -> None:
    """What cannot be executed is an error of the call, which names the program, and not exit status 127."""
    with pytest.raises(SetupFailed) as caught:
        spawn(["/nonexistent/program"])
    assert caught.value.op == "execve"
    assert "/nonexistent/program" in str(caught.value)
    assert "EXEC" in caught.value.step


def test_program_without_the_right_to_execute_is_refused(tmp_path: Path) -> None:
    """A file without the x bit raises EACCES."""
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    with pytest.raises(SetupFailed) as caught:
        spawn([str(script)])
    assert caught.value.errno == 13


def test_path_of_the_new_environment_finds_the_program(tmp_path: Path) -> None:
    """A program without a slash is looked for in the PATH that it will have, not in the caller's."""
    program = tmp_path / "only-here"
    program.write_text("#!/bin/sh\necho found\n")
    program.chmod(0o755)
    assert output(["only-here"], env={"PATH": str(tmp_path)}) == b"found\n"
    with pytest.raises(SetupFailed):
        spawn(["only-here"], env={"PATH": "/nonexistent"})


def test_environment_is_exactly_the_one_given() -> None:
    """Nothing is added to env, a new-line in a value is kept, and an empty one is empty."""
    assert output(["/usr/bin/env", "-0"], env={"A": "1\n2", "B": ""}) == b"A=1\n2\0B=\0"
    assert output(["/usr/bin/env"], env={}) == b""


def test_only_declared_descriptors_survive(tmp_path: Path) -> None:
    """An inheritable descriptor of the host is not inherited; one in pass_fds keeps its number."""
    with (tmp_path / "secret").open("wb") as secret, (tmp_path / "shared").open("wb") as shared:
        os.set_inheritable(secret.fileno(), True)  # noqa: FBT003 - its only form
        number = shared.fileno()
        listed = output(["ls", "/proc/self/fd"], pass_fds=[number]).split()
    assert set(listed) - {b"3"} == {b"0", b"1", b"2", str(number).encode()} - {b"3"}


def test_standard_streams_may_be_exchanged() -> None:
    """stdout=2 and stderr=1 change places, though each has the other's number."""
    program = "import isolib\nwith isolib.spawn(['sh', '-c', 'echo out; echo err >&2'], stdout=2, stderr=1) as p: p.wait(60)\n"
    with spawn([sys.executable, "-c", program], stdout=PIPE, stderr=PIPE) as process:
        out, err = process.communicate(timeout=60)
    assert (out, err) == (b"err\n", b"out\n")


def test_closed_standard_streams_do_no_harm() -> None:
    """A host without descriptors 0 to 2 can spawn: the command's are /dev/null, and nothing of ours takes their numbers."""
    program = (
        "import os, isolib; report = os.dup(1)\n"
        "for fd in (0, 1, 2): os.close(fd)\n"
        "with isolib.spawn(['sh', '-c', 'readlink /proc/self/fd/0'], new={'user', 'pid'}, stdout=isolib.PIPE) as p:\n"
        "    os.write(report, p.communicate(timeout=60)[0])\n"
    )
    with spawn([sys.executable, "-c", program], stdout=PIPE) as process:
        assert process.communicate(timeout=60)[0] == b"/dev/null\n"


def test_stderr_can_go_where_stdout_goes() -> None:
    """stderr=STDOUT joins the two."""
    assert output(["sh", "-c", "echo a; echo b >&2"], stderr=STDOUT) == b"a\nb\n"


def test_a_hundred_megabytes_both_ways() -> None:
    """communicate() feeds and drains side by side: 100 MB through cat and 100 MB on stderr, without a deadlock."""
    size = 100 * 1024 * 1024
    data = bytes(1024) * (size // 1024)
    with spawn(["sh", "-c", "tee /dev/stderr"], stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
        out, err = process.communicate(data, timeout=300)
    assert out is not None
    assert err is not None
    assert len(out) == len(err) == size


def test_input_that_is_not_read_is_no_error() -> None:
    """A command that ends without reading its input does not raise BrokenPipeError."""
    with spawn(["true"], stdin=PIPE) as process:
        assert process.communicate(bytes(10_000_000), timeout=60) == (None, None)
        assert process.wait().code == 0


def test_time_out_keeps_what_was_captured() -> None:
    """SandboxTimeout carries the output so far; a further communicate() goes on where the first stopped."""
    with spawn(["sh", "-c", "echo early; read x; echo late $x"], stdin=PIPE, stdout=PIPE) as process:
        with pytest.raises(SandboxTimeout) as caught:
            process.wait(0.5)
        assert caught.value.timeout == 0.5
        assert process.stdin is not None
        process.stdin.write(b"word\n")
        process.stdin.flush()
        out, _ = process.communicate(timeout=60)
        assert out == b"early\nlate word\n"


def test_time_out_of_communicate_carries_output() -> None:
    """What was read before the time-out is in the exception and in the next result."""
    with spawn(["sh", "-c", "echo early; exec sleep 60"], stdout=PIPE) as process:
        with pytest.raises(SandboxTimeout) as caught:
            process.communicate(timeout=1)
        assert caught.value.stdout == b"early\n"
        process.kill()
        assert process.communicate(timeout=60)[0] == b"early\n"
        assert process.wait().reason is Reason.KILLED


def test_outputs_can_be_read_as_files() -> None:
    """stdin and stdout are ordinary binary files."""
    with spawn(["cat"], stdin=PIPE, stdout=PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"one\n")
        process.stdin.close()
        assert process.stdout.readline() == b"one\n"
        assert process.wait(60).code == 0


def test_what_a_file_has_read_ahead_is_not_lost() -> None:
    """communicate() goes on where reading from stdout and writing to stdin stopped, buffers included."""
    with spawn(["sh", "-c", "echo one; echo two; cat"], stdin=PIPE, stdout=PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"three\n")
        assert process.stdout.readline() == b"one\n"
        assert process.communicate(b"four\n", timeout=60)[0] == b"two\nthree\nfour\n"


def test_kill_ends_the_whole_tree() -> None:
    """Killing ends what the command has started too, daemons in sessions of their own, with a pid namespace or without."""
    for new in (set(), USER_AND_PID):
        script = "setsid sleep 1000 & (setsid setsid sh -c 'sleep 1000 & sleep 1000' &) ; echo ready; sleep 1000"
        env = {"PATH": os.environ["PATH"], "MARK": "kill-tree"}
        with spawn(["sh", "-c", script], new=new, stdout=PIPE, env=env) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            process.kill()
            assert process.wait(60).reason is Reason.KILLED
        assert marked(b"MARK=kill-tree") == []


def test_what_a_command_leaves_behind_ends_with_it() -> None:
    """A daemon that outlives its command does not outlive the process."""
    for new in (set(), USER_AND_PID):
        script = "setsid sleep 1000 > /dev/null & exit 7"
        with spawn(["sh", "-c", script], new=new, env={"PATH": os.environ["PATH"], "MARK": "left-behind"}) as process:
            assert process.wait(60).code == 7
            assert marked(b"MARK=left-behind") == []


def marked(mark: bytes) -> list[int]:
    """Return the ids of live processes with a mark in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if mark in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def test_signals_reach_the_command() -> None:
    """send_signal goes to the command; so does a signal to the supervisor, whose pidfd fileno() is."""
    script = "trap 'echo one' USR1; trap 'echo two; exit 3' TERM; echo ready; while :; do sleep 0.05; done"
    with spawn(["sh", "-c", script], new=USER_AND_PID, stdout=PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.readline() == b"one\n"
        signal.pidfd_send_signal(process.fileno(), signal.SIGTERM)
        assert process.stdout.readline() == b"two\n"
        assert process.wait(60).code == 3


def test_ignored_signals_are_reset() -> None:
    """Python ignores SIGPIPE; the command has every disposition at its default and no signal blocked."""
    status = output(["grep", "-E", "^Sig(Ign|Blk)", "/proc/self/status"]).split()
    assert status[1::2] == [b"0000000000000000"] * 2


def test_command_has_a_session_of_its_own() -> None:
    """kill(0) from the command reaches neither its supervisor nor the host."""
    fields = output(["cat", "/proc/self/stat"], new=USER_AND_PID)
    pid, _, _, _, group, session = fields.split()[:6]
    assert group == session == pid
    with spawn(["sh", "-c", "kill -TERM 0; sleep 5"], new=USER_AND_PID) as process:
        assert process.wait(60).signal == signal.SIGTERM


def test_deadline_of_wait_leaves_the_process_alone() -> None:
    """poll() is None while it runs, and the same Exit ever after."""
    with spawn(["sleep", "60"]) as process:
        assert process.poll() is None
        process.terminate()
        end = process.wait(60)
        assert end.signal == signal.SIGTERM
        assert process.poll() is end
        assert process.returncode == -15


def test_rlimits_are_set() -> None:
    """A soft and a hard limit arrive; a soft one above the hard one is refused."""
    limits = output(["sh", "-c", "ulimit -Sn; ulimit -Hn"], rlimits={resource.RLIMIT_NOFILE: (64, 128)})
    assert limits == b"64\n128\n"
    with pytest.raises(PlanError, match="above hard"):
        spawn(["true"], rlimits={resource.RLIMIT_NOFILE: (129, 128)})


def test_usage_is_measured() -> None:
    """wall, cpu and memory are those of the command and its children."""
    program = "x = bytearray(50_000_000)\nfor i in range(1_000_000): pass"
    with spawn([sys.executable, "-c", program]) as process:
        usage = process.wait(60).usage
    assert usage.wall is not None
    assert usage.wall > 0
    assert usage.memory_peak is not None
    assert usage.memory_peak > 50_000_000
    assert usage.cpu_user is not None
    assert 0 < usage.cpu_user < 30


def test_forgotten_process_is_killed_with_a_warning() -> None:
    """A process that nobody holds any more is ended, and a ResourceWarning says so."""
    process = spawn(["sleep", "1000"])
    pidfd = os.dup(process.fileno())
    try:
        with pytest.warns(ResourceWarning, match="forgotten"):
            del process
        assert wait_readable(pidfd)
    finally:
        os.close(pidfd)


def wait_readable(fd: int, seconds: float = 10) -> bool:
    """Wait until a descriptor is readable."""
    import select  # noqa: PLC0415

    return bool(select.select([fd], [], [], seconds)[0])


def test_host_has_no_child() -> None:
    """The host gets no child and no SIGCHLD: nothing for wait(2) to steal."""
    received: list[int] = []
    before = signal.signal(signal.SIGCHLD, lambda number, _frame: received.append(number))
    try:
        with spawn(["true"]) as process, pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)
        process.close()
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert received == []
    assert process.exit is not None


def test_host_is_left_as_found() -> None:
    """Working directory, umask, signal mask and dumpability of the caller are what they were."""

    def state() -> tuple[object, ...]:
        status = Path("/proc/thread-self/status").read_text(encoding="ascii")
        fields = ("Umask", "SigB", "SigI", "SigC", "Cap", "NoNewPrivs", "Seccomp")
        wanted = tuple(line for line in status.splitlines() if line.startswith(fields))
        return (Path.cwd(), wanted, Path("/proc/self/environ").stat().st_uid)

    before = state()
    with spawn(["sh", "-c", "umask 077; cd /"], new={"user", "mnt", "pid", "net"}, user=0) as process:
        process.wait(60)
    assert state() == before


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"argv": []}, "argv"),
        ({"argv": "true"}, "argv"),
        ({"argv": ["a\0b"]}, "NUL"),
        ({"new": {"nonsense"}}, "nonsense"),
        ({"new": "pid"}, "set"),
        ({"hostname": "x"}, "uts"),
        ({"hostname": "x" * 65, "new": {"user", "uts"}}, "64"),
        ({"hostname": "a\nb", "new": {"user", "uts"}}, "control"),
        ({"id_map": "root"}, "user"),
        ({"id_map": [isolib.IdMap(0, 0, 10), isolib.IdMap(5, 100, 10)], "new": {"user"}}, "overlap"),
        ({"id_map": [isolib.IdMap(0, 0, 0)], "new": {"user"}}, "count"),
        ({"user": -1}, "ids"),
        ({"user": 2**32}, "ids"),
        ({"user": "1000:"}, "no such user"),
        ({"user": "0x0"}, "no such user"),
        ({"user": True}, "user"),
        ({"cwd": ""}, "cwd"),
        ({"cwd": "a\0b"}, "NUL"),
        ({"env": {"A=B": "c"}}, "env"),
        ({"env": {"": "c"}}, "env"),
        ({"env": {"A": "\0"}}, "env"),
        ({"pass_fds": [1_000_000]}, "not open"),
        ({"pass_fds": [-1]}, "descriptor"),
        ({"stdin": 1_000_000}, "not open"),
        ({"stdout": -7}, "stdout"),
        ({"stdin": STDOUT}, "stdin"),
        ({"rlimits": {99: 1}}, "resource"),
        ({"pty": True, "stdout": PIPE}, "terminal"),
        ({"init": False}, "supervised"),
    ],
)
def test_bad_arguments_are_refused_before_anything_happens(kwargs: dict[str, object], message: str) -> None:
    """A bad argument is a PlanError that names it."""
    argv = kwargs.pop("argv", ["true"])
    with pytest.raises(PlanError, match=message):
        spawn(argv, **kwargs)  # type: ignore[arg-type]


def test_join_takes_namespaces_only(tmp_path: Path) -> None:
    """A regular file where a namespace is expected is a PlanError."""
    with (tmp_path / "file").open("w") as file, pytest.raises(PlanError, match="not a namespace"):
        spawn(["true"], join=[file])


def test_absent_working_directory_is_an_error_of_the_step() -> None:
    """The exception names chdir and the directory."""
    with pytest.raises(SetupFailed) as caught:
        spawn(["true"], cwd="/nonexistent/directory")
    assert (caught.value.op, caught.value.target, caught.value.errno) == ("chdir", "/nonexistent/directory", 2)


def test_pty_is_the_controlling_terminal() -> None:
    """The streams are a terminal, which is the session's, has a size, and ends with EIO."""
    script = "tty; test -t 0 && test -t 1 && test -t 2 && stty size < /dev/tty; read x; stty size"
    with spawn(["sh", "-c", script], pty=True) as process:
        assert process.terminal is not None
        process.resize(33, 99)
        process.terminal.write(b"go\n")
        text = b""
        try:
            while chunk := process.terminal.read(1000):
                text += chunk
        except OSError as error:
            assert error.errno == 5  # noqa: PT017 - EIO is the end
        assert process.wait(60).code == 0
    assert b"/dev/pts/" in text
    assert b"33 99" in text


def test_psutil_sees_the_command() -> None:
    """pid is that of the command, and psutil() is its process."""
    with spawn(["cat", "-"], new=USER_AND_PID, stdin=PIPE, stdout=PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"up\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"up\n"
        assert process.psutil().cmdline() == ["cat", "-"]
        assert process.psutil().pid == process.pid


def test_supervisor_hides_its_memory_and_environment() -> None:
    """PID 1 is a fresh program with an empty environment, which the command cannot look into."""
    script = "cat /proc/1/environ 2>&1; readlink /proc/1/exe; ls /proc/1/fd 2>&1; echo done"
    mounts = [isolib.mounts.Proc()]
    out = output(["sh", "-c", script], new={"user", "pid", "mnt"}, mounts=mounts)
    assert b"done" in out
    assert os.environb.get(b"PATH", b"?") not in out
    assert b"python" not in out


def test_keyring_is_not_the_hosts() -> None:
    """With a namespace of its own the command has a session keyring of its own; without one it keeps the caller's."""
    keyctl = NUMBERS["keyctl"][MACHINE]
    program = f"import ctypes; print(ctypes.CDLL(None).syscall({keyctl}, 0, -3, 0))"  # KEYCTL_GET_KEYRING_ID of the session's

    def body() -> None:
        # Who has none is shown that of the user, which is another one in every user namespace.
        host = ctypes.CDLL(None).syscall(keyctl, 1, None)  # KEYCTL_JOIN_SESSION_KEYRING, of this thread alone
        assert host > 0
        first, second = (int(output([sys.executable, "-c", program], new={"user"})) for _ in range(2))
        assert min(first, second) > 0
        assert len({host, first, second}) == 3
        assert int(output([sys.executable, "-c", program])) == host

    in_a_thread(body)


def test_wait_from_another_thread_while_it_is_killed() -> None:
    """kill() works while another thread is in wait()."""
    import threading  # noqa: PLC0415

    with spawn(["sleep", "1000"]) as process:
        ends: list[isolib.Exit] = []
        waiter = threading.Thread(target=lambda: ends.append(process.wait(60)))
        waiter.start()
        time.sleep(0.1)
        process.kill()
        waiter.join(60)
    assert [end.reason for end in ends] == [Reason.KILLED]


def test_namespaces_that_the_thread_visits_are_not_inherited(needs_root: None) -> None:
    """A process is in the namespaces that are named, else in the program's own; never in those that the thread is visiting."""
    own, own_uts = os.readlink("/proc/self/ns/net"), os.readlink("/proc/self/ns/uts")
    with isolib.new_netns() as net, isolib.new_utsns():
        visited = os.readlink("/proc/thread-self/ns/net")
        assert visited != own
        assert output(["readlink", "/proc/self/ns/net"]).decode().strip() == own
        assert output(["readlink", "/proc/self/ns/net"], join=[net]).decode().strip() == visited
        assert output(["readlink", "/proc/self/ns/uts"], join=[net]).decode().strip() == own_uts
        assert isolib.run(["readlink", "/proc/self/ns/net"], network="host").stdout.decode().strip() == own
    assert isolib.run(["readlink", "/proc/self/ns/net"], network="host").stdout.decode().strip() == own
