"""A throw-away host for tests that change theirs: namespaces of its own of every kind but user, and cgroups of its own.

A test that is marked `destructive` is run by a pytest of its own in there, as root on the machine, so that it can do what root
can do.  Whatever it leaves ends with the pid namespace; the cgroups are thawed and removed.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import isolib
from isolib._kernel.procfs import parse_cgroup, parse_mountinfo

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Set for the test that runs inside.
INSIDE = "ISOLIB_TEST_THROWAWAY_HOST"

# Runs in the new namespaces: into the groups first, so that they are what the cgroup namespace shows as its root.
_ENTER = """
import ctypes, os, sys
groups, argv = sys.argv[1].split(":"), sys.argv[2:]
for group in filter(None, groups):
    with open(group + "/cgroup.procs", "w") as file:
        file.write("0")
if ctypes.CDLL(None, use_errno=True).unshare(0x02000000):
    raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWCGROUP)")
os.execv(argv[0], argv)
"""

_KINDS = {"pid", "mnt", "net", "ipc", "uts", "cgroup"}
_PATIENCE = 500


def own_groups() -> list[Path]:
    """Return the directory of this process's group in every hierarchy that is mounted."""
    entries = parse_cgroup(Path("/proc/self/cgroup").read_bytes())
    paths = {name: entry.path for entry in entries for name in entry.controllers or ("",)}
    found = []
    for mount in parse_mountinfo(Path("/proc/self/mountinfo").read_bytes()):
        names = [""] if mount.fs_type == "cgroup2" else [name for name in mount.super_options if name in paths]
        if mount.fs_type in {"cgroup", "cgroup2"} and names:
            found.append(Path(mount.mount_point) / paths[names[0]].removeprefix(mount.root).lstrip("/"))
    return found


@contextlib.contextmanager
def groups() -> Iterator[list[Path]]:
    """Make a group below each of this process's; they are thawed and removed at the end."""
    made: list[Path] = []
    try:
        for parent in own_groups():
            group = parent / f"isolib-test-{os.getpid()}"
            with contextlib.suppress(PermissionError):
                group.mkdir()
                made.append(group)
                _inherit(parent, group)
        yield made
    finally:
        for group in made:
            _remove(group)


def _inherit(parent: Path, group: Path) -> None:
    """Give a cpuset what it must have before a process can enter it (cgroup v1, cpuset(7))."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        if (group / name).exists() and not (group / name).read_text(encoding="ascii").strip():
            (group / name).write_text((parent / name).read_text(encoding="ascii"), encoding="ascii")


def _remove(group: Path) -> None:
    for thaw, word in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
        if (group / thaw).exists():
            (group / thaw).write_text(word, encoding="ascii")
    pause = threading.Event()
    for _ in range(_PATIENCE):  # cgroup v1 tells nobody when the last process is gone
        try:
            for below in sorted((one for one in group.rglob("*") if one.is_dir()), reverse=True):
                below.rmdir()
            group.rmdir()
        except OSError:
            pause.wait(0.01)
        else:
            return
    group.rmdir()


def run_inside(node: str, root: Path) -> tuple[int, str]:
    """Run one test in a throw-away host; returns the exit status of its pytest, and what that printed."""
    with groups() as made:
        pytest = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", node]
        script = 'mount -t proc proc /proc && exec "$0" "$@"'
        argv = ["sh", "-c", script, sys.executable, "-c", _ENTER, ":".join(map(str, made)), *pytest]
        env = {**os.environ, INSIDE: "1"}
        with isolib.spawn(
            argv, new=_KINDS - {"cgroup"}, cwd=root, env=env, stdout=isolib.PIPE, stderr=isolib.STDOUT
        ) as process:
            out, _ = process.communicate(timeout=300)
            return process.wait().returncode, (out or b"").decode(errors="replace")
