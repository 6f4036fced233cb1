"""What doctor() finds in processes of their own: as root of new namespaces, below a seccomp filter, as another user."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import isolib
from isolib.support import Feature
from tests.seccomp import deny

if TYPE_CHECKING:
    from tests.seccomp import Denied

PACKAGE = str(Path(isolib.__file__).parent.parent)
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

SCRIPT = """
import dataclasses, json, sys
sys.path.insert(0, sys.argv[1])
from isolib.support import doctor
print(json.dumps([dataclasses.astuple(feature) for feature in doctor().values()]))
"""

NO_NEW_PRIVS = """
import ctypes
assert ctypes.CDLL(None).prctl(38, 1, 0, 0, 0) == 0
"""

FILTERED = (
    NO_NEW_PRIVS
    + """
class Program(ctypes.Structure):
    _fields_ = [("count", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
code = bytes.fromhex("{program}")
buffer = ctypes.create_string_buffer(code, len(code))
program = Program(len(code) // 8, ctypes.addressof(buffer))
assert ctypes.CDLL(None).prctl(22, 2, ctypes.byref(program), 0, 0) == 0
"""
)


def examined(*prefix: str, before: str = "", **options: object) -> dict[str, Feature]:
    """Return what doctor() finds in a process of its own, started by a prefix, after some code."""
    argv = [*prefix, sys.executable, "-c", f"import sys; sys.path.insert(0, sys.argv[1])\n{before}{SCRIPT}", PACKAGE]
    env = {"PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, env=env, **options)  # type: ignore[call-overload]
    return {values[0]: Feature(*values) for values in json.loads(done.stdout)}


def inside(commands: str, *flags: str) -> dict[str, Feature]:
    """Return what doctor() finds as root of a new user namespace (and others), after some shell commands there."""
    return examined("unshare", "-Ur", *flags, "sh", "-ec", f'{commands}\nexec "$@"', "sh")


def filtered(*denied: Denied) -> dict[str, Feature]:
    """Return what doctor() finds below a seccomp filter."""
    return examined(before=FILTERED.format(program=deny(*denied).hex()))


def succeeds(*argv: str) -> bool:
    """Return whether a command ends with status 0."""
    env = {"PATH": SYSTEM_PATH}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.run(argv, check=False, env=env, **quiet).returncode == 0  # type: ignore[call-overload,no-any-return]


def in_new_net(*script: str) -> bool:
    """Return whether a shell script succeeds in a network namespace as this caller can make it."""
    return succeeds("unshare", *([] if os.geteuid() == 0 else ["-Ur"]), "--net", "sh", "-ec", "\n".join(script))


@cache
def nft_can(command: str) -> bool:
    """Return whether the program nft can do this in a network namespace of this caller's: what the host has, not isolib."""
    return in_new_net(f"exec nft {shlex.quote(command)}")
