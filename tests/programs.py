"""Programs that tests run: in namespaces, in the host's root with mounts, and as hosts of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

from isolib import DEVNULL, PIPE, STDOUT, spawn
from isolib.mounts import Root

if TYPE_CHECKING:
    from pathlib import Path

    from isolib.mounts import Mount

IS_ROOT = os.geteuid() == 0
ID_MAP = "auto" if IS_ROOT else "root"
KINDS = frozenset({"user", "mnt", "pid", "ipc"})

EAT = "import sys\nblock = bytearray(int(sys.argv[1]) << 20)\nprint('survived')"
"""Uses as many megabytes of memory as it is told to."""
FORK_BOMB = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
"""Becomes as many processes as it may, and tries on."""


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


def as_host(program: str, *prefix: str, cwd: str | Path = "/tmp") -> str:
    """Run a Python program, which has isolib, in a process of its own and return what it printed."""
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
    }
    argv = [*prefix, sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
