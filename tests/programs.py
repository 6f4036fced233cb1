"""Programs that tests run: in namespaces, in the host's root with mounts, and as hosts of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from isolib import DEVNULL, PIPE, STDOUT, spawn
from isolib.mounts import Root
from tests.nets import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from ipaddress import IPv4Address, IPv6Address

    from isolib import Process
    from isolib.mounts import Mount
    from isolib.namespaces import NetNS

IS_ROOT = os.geteuid() == 0
ID_MAP = "auto" if IS_ROOT else "root"
KINDS = frozenset({"user", "mnt", "pid", "ipc"})

EAT = "import sys\nblock = bytearray(int(sys.argv[1]) << 20)\nprint('survived')"
"""Uses as many megabytes of memory as it is told to."""
FORK_BOMB = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
"""Becomes as many processes as it may, and tries on."""


def need(*names: str) -> None:
    """Skip the test on a host that has not all of these programs."""
    missing = [name for name in names if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}; .ci/run installs all that tests use")


def tool(*argv: object) -> str:
    """Run a program to its end, and return what it printed; it fails unless that is a good end."""
    need(str(argv[0]))
    done = subprocess.run([*map(str, argv)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


def together(argv: list[str], count: int) -> set[str]:
    """Run a program so many times at once, each beginning when its input ends, and return what they print."""
    processes = [subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    told = set()
    for process in processes:
        with process:
            assert process.stdout is not None
            told.add(process.stdout.read())
        assert process.returncode == 0
    return told


def postgresql() -> str:
    """Return where the programs of the newest PostgreSQL are; a host without it cannot test it."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not versions:
        pytest.skip("PostgreSQL is not installed; .ci/run installs it")
    return str(versions[-1].parent)


def output(argv: list[str], **options: object) -> str:
    """Run a program by spawn and return all that it printed."""
    with spawn(argv, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, **options) as process:  # type: ignore[arg-type]
        out, _ = process.communicate(timeout=60)
    return os.fsdecode(out or b"")


def on_skeleton(script: str, *mounts: Mount, new: frozenset[str] = KINDS, **options: object) -> str:
    """Run a script in the host's root with these mounts."""
    id_map = ID_MAP if "user" in new else None
    argv = ["sh", "-c", script]
    return output(argv, new=new, root=Root.host(), mounts=mounts, id_map=id_map, cwd="/", **options)


def as_host(program: str, *prefix: str, cwd: str | Path = "/tmp", timeout: float = 120) -> str:
    """Run a Python program, which has isolib, in a process of its own and return what it printed."""
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
    }
    argv = [*prefix, sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def serving(ns: NetNS, argv: list[str], answers: Callable[[], bool], log: Path, **options: object) -> Iterator[Process]:
    """Run a server in a network namespace and a pid namespace of its own, from when it answers to the end of the block."""
    with (
        log.open("wb") as file,
        ns.spawn(argv, new={"pid"}, stdin=DEVNULL, stdout=file, stderr=STDOUT, **options) as process,
    ):
        until(lambda: process.poll() is not None or answers())
        assert process.poll() is None, log.read_text()
        assert answers(), log.read_text()
        yield process


def iperf3(near: NetNS, far: NetNS, address: str | IPv4Address | IPv6Address, *options: str) -> dict[str, Any]:
    """Have iperf3 send from one namespace to an address of another, and return what it measured."""
    need("iperf3")
    with far.spawn(["iperf3", "-s", "-1", "-B", str(address), "--forceflush"], stdout=PIPE) as server:
        assert server.stdout is not None
        assert any(b"listening" in line for line in iter(server.stdout.readline, b""))
        with near.spawn(["iperf3", "-J", "-c", str(address), *options], stdout=PIPE) as client:
            out, _ = client.communicate(timeout=2 * PATIENCE)
        server.wait(PATIENCE)
    measured: dict[str, Any] = json.loads(out or b"")["end"]
    return measured


def in_notebook(*cells: str) -> list[list[dict[str, Any]]]:
    """Run cells in a kernel of Jupyter, which runs them in a loop, and return the outputs of each."""
    pytest.importorskip("ipykernel", reason="the extra `test` brings it")
    program = """
        import json, nbclient, nbformat, sys
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in json.load(sys.stdin)])
        nbclient.NotebookClient(book, timeout=120, kernel_name="python3").execute()
        print(json.dumps([cell.outputs for cell in book.cells]))
    """
    argv = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(argv, input=json.dumps(cells), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    outputs: list[list[dict[str, Any]]] = json.loads(done.stdout.splitlines()[-1])
    return outputs
