"""Signals, and who is left: what a command can do to its supervisor, and who ends whom."""

from __future__ import annotations

import os
import select
import signal
import threading
from contextlib import suppress

import pytest

import isolib
from isolib import PIPE, Reason, Sandbox, spawn
from isolib.mounts import Proc
from tests.programs import ID_MAP

pytestmark = pytest.mark.usefixtures("user_namespaces")

PATIENCE = 10


def ends(pidfd: int) -> bool:
    """Say whether a process ends while one waits for it."""
    return bool(select.select([pidfd], [], [], PATIENCE)[0])


def test_signal_to_the_group_stays_with_the_command() -> None:
    """kill(0) reaches neither the supervisor nor the host: without a namespace, in a sandbox, in one that stays."""
    argv = ["sh", "-c", "kill -TERM 0; sleep 60"]
    with spawn(argv) as process:
        assert process.wait(60).signal == signal.SIGTERM
    assert isolib.run(argv, cwd="/tmp").exit.signal == signal.SIGTERM
    with Sandbox(cwd="/tmp") as box:
        assert box.run(argv).exit.signal == signal.SIGTERM
        assert box.run(["true"]).returncode == 0


REAPED = """
for i in 1 2 3 4 5; do (setsid true &); done
(sh -c 'sleep 0.01 & exit' &)
turn=0
while grep -q '^State:.Z' /proc/[0-9]*/status 2>/dev/null; do
    turn=$((turn + 1)); [ $turn -gt 500 ] && exit 1; sleep 0.02
done
exit 0
"""


def test_orphans_are_reaped() -> None:
    """What ends without a parent to wait for it leaves no zombie: in sandboxes of both kinds and in bare pid namespaces."""
    argv = ["sh", "-c", REAPED]
    done = isolib.run(argv, cwd="/tmp", timeout=60)
    assert (done.returncode, done.stdout) == (0, b"")
    with Sandbox(cwd="/tmp") as box:
        done = box.run(argv, timeout=60)
        assert (done.returncode, done.stdout) == (0, b"")
    with spawn(argv, new={"user", "pid", "mnt"}, id_map=ID_MAP, mounts=[Proc()], stdout=PIPE) as process:
        assert process.communicate(timeout=60)[0] == b""
        assert process.wait(60).code == 0


@pytest.mark.parametrize("new", [set(), {"user", "pid"}], ids=["plain", "inside"])
def test_killed_supervisor_takes_the_command_along(new: set[str]) -> None:
    """A command whose supervisor is killed ends too: nobody would end it with its host."""
    with spawn(["sh", "-c", "echo; exec sleep 1000"], new=new, stdout=PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        command = os.pidfd_open(process.pid)
        try:
            signal.pidfd_send_signal(process.fileno(), signal.SIGKILL)
            assert process.wait(60).reason is Reason.KILLED
            assert ends(command)
        finally:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(command, signal.SIGKILL)
            os.close(command)


def test_sandbox_is_killed_from_another_thread() -> None:
    """kill() ends a run() that another thread is in; what comes later is refused, and close() works as ever."""
    with Sandbox(cwd="/tmp") as box:
        watch = box.popen(["sh", "-c", "until [ -e /tmp/up ]; do sleep 0.01; done; echo up; sleep 1000"])

        def kill() -> None:
            assert watch.stdout is not None
            watch.stdout.readline()
            box.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        assert box.run(["sh", "-c", "touch /tmp/up; sleep 1000"]).exit.signal == signal.SIGKILL
        killer.join()
        assert watch.wait(60).signal == signal.SIGKILL
        with pytest.raises(isolib.IsolibError):
            box.run(["true"])
