"""Real programs work in the default sandbox: an interpreter, a compiler, a version control system, a database server."""

from __future__ import annotations

import os
import pickle
import sys
import textwrap
from pathlib import Path

import pytest

import isolib
from isolib import Sandbox
from tests.programs import need, postgresql


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of the caller's own, which is where a sandbox is writable."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python(work: Path) -> None:
    """The interpreter that imports isolib runs inside, with its packages, wherever it is installed."""
    done = isolib.run(["python3", "-c", "import sys, psutil, _cffi_backend; print(sys.prefix)"], check=True)
    assert done.stdout.decode().strip() == sys.prefix


def test_gcc(work: Path) -> None:
    """A C program is compiled from the working directory and runs; the binary is not there afterwards."""
    need("gcc")
    (work / "hello.c").write_text('#include <stdio.h>\nint main(void) { puts("hello from inside"); return 3; }\n')
    with Sandbox() as box:
        box.run(["gcc", "-O2", "-o", "hello", "hello.c"], check=True)
        done = box.run(["./hello"])
    assert (done.returncode, done.stdout) == (3, b"hello from inside\n")
    assert sorted(path.name for path in work.iterdir()) == ["hello.c"]


def test_git(work: Path) -> None:
    """A repository is made, committed to and read; with writable="keep" the host has it afterwards."""
    need("git")
    script = """
        set -e
        git init -q .
        git config user.email a@example.org; git config user.name A
        echo content > file; git add file; git commit -q -m "first"
        git log --format=%s
    """
    with Sandbox(writable="keep") as box:
        done = box.run(["sh", "-c", textwrap.dedent(script)], check=True)
    assert done.stdout == b"first\n"
    assert (work / ".git" / "HEAD").exists()
    assert (work / "file").read_text() == "content\n"
    assert (work / "file").stat().st_uid == os.geteuid()


@pytest.mark.slow
def test_postgresql(work: Path) -> None:
    """A PostgreSQL server is initialised, started and queried inside, over loopback and over its socket."""
    programs = postgresql()
    script = """
        set -e
        initdb -D /tmp/data -A trust -U postgres > /dev/null
        pg_ctl -D /tmp/data -w -o "-k /tmp -c listen_addresses=127.0.0.1" -l /tmp/log start > /dev/null || cat /tmp/log
        psql -h /tmp -U postgres -Atc "create table t as select generate_series(1, 1000) as n"
        psql -h 127.0.0.1 -U postgres -Atc "select sum(n) from t"
        pg_ctl -D /tmp/data -w stop > /dev/null
    """
    with Sandbox(user=(1000, 1000), env={"PATH": f"{programs}:/usr/bin:/bin"}) as box:
        done = box.run(["sh", "-c", textwrap.dedent(script)], timeout=120)
    assert (done.returncode, done.stdout) == (0, b"SELECT 1000\n500500\n"), done.stderr.decode()


def test_completed_is_that_of_subprocess() -> None:
    """run() returns a subprocess.CompletedProcess with bytes, and how it ended and what it used."""
    import subprocess  # noqa: PLC0415

    done = isolib.run(["sh", "-c", "cat; echo err >&2; exit 4"], input=b"in")
    assert isinstance(done, subprocess.CompletedProcess)
    assert (done.returncode, done.stdout, done.stderr) == (4, b"in", b"err\n")
    assert done.exit.reason is isolib.Reason.EXITED
    assert done.usage.wall is not None
    with pytest.raises(isolib.CommandFailed) as caught:
        isolib.run(["sh", "-c", "echo why >&2; exit 4"], check=True)
    assert caught.value.returncode == 4
    assert "why" in str(caught.value)


def test_time_out_and_wall_limit() -> None:
    """timeout raises with what was captured; the wall limit is a verdict, kept by the supervisor."""
    with pytest.raises(isolib.SandboxTimeout) as caught:
        isolib.run(["sh", "-c", "echo partial; sleep 60"], timeout=0.5)
    assert caught.value.stdout == b"partial\n"
    done = isolib.run(["sh", "-c", "echo partial; sleep 60"], wall=0.5)
    assert (done.exit.reason, done.stdout) == (isolib.Reason.TIMEOUT, b"partial\n")
    with pytest.raises(isolib.SandboxTimeout):
        isolib.run(["sleep", "60"], wall=0.2, check=True)


def test_output_limit_ends_the_command() -> None:
    """A command that writes without end is killed, and its output is cut at the limit."""
    done = isolib.run(["sh", "-c", "yes"], output="1M", timeout=60)
    assert (done.exit.reason, len(done.stdout)) == (isolib.Reason.LIMIT, 1 << 20)


def test_state_lives_as_long_as_the_block(work: Path) -> None:
    """What one command writes the next one sees; the host sees none of it."""
    with Sandbox() as box:
        box.run(["sh", "-c", "echo 1 > /tmp/isolib-state; echo 2 > y; echo 3 > /var/tmp/z; echo 4 > ~/home"], check=True)
        done = box.run(["sh", "-c", "cat /tmp/isolib-state y /var/tmp/z ~/home; whoami; hostname; pwd"], check=True)
        assert done.stdout.split() == [b"1", b"2", b"3", b"4", b"root", b"sandbox", os.fsencode(work)]
    assert list(work.iterdir()) == []
    assert not Path("/tmp/isolib-state").exists()


SERVER = """
import socket
server = socket.create_server(("127.0.0.1", 80))
print("up", flush=True)
server.accept()[0].send(b"hi")
"""


def test_background_process_lives_on_in_the_block() -> None:
    """popen() starts a server that further commands talk to; the block's end ends it."""
    with Sandbox() as box:
        server = box.popen(["python3", "-c", SERVER])
        assert server.stdout is not None
        assert server.stdout.readline() == b"up\n"
        client = "import socket; print(socket.create_connection(('127.0.0.1', 80)).recv(10))"
        assert box.run(["python3", "-c", client], check=True).stdout == b"b'hi'\n"
        endless = box.popen(["sleep", "1000"])
    assert endless.exit is not None
    assert endless.exit.reason is isolib.Reason.KILLED


def test_spec_is_a_value() -> None:
    """Specs compare, hash and pickle; unknown fields and limits that are no limits are refused."""
    spec = isolib.SandboxSpec(env={"A": "1"}, limits=isolib.Limits(wall=5))
    assert pickle.loads(pickle.dumps(spec)) == spec  # noqa: S301 - our own
    assert hash(spec) == hash(isolib.SandboxSpec(env={"A": "1"}, limits=isolib.Limits(wall=5.0)))
    with pytest.raises(isolib.PlanError, match="nonsense"):
        Sandbox(nonsense=1)  # type: ignore[call-arg]
    with pytest.raises(isolib.PlanError, match="memory"):
        Sandbox(memory="plenty")
    with pytest.raises(isolib.PlanError, match="network"):
        Sandbox(network="bridge")


def test_closed_sandbox_says_so() -> None:
    """A sandbox is usable in its block only."""
    box = Sandbox()
    with pytest.raises(isolib.ClosedError):
        box.run(["true"])
    with box:
        box.run(["true"], check=True)
    with pytest.raises(isolib.ClosedError):
        box.run(["true"])
