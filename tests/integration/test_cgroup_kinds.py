"""The tests of control groups in other surroundings: without cgroup v2, and as a user to whom groups were delegated."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.groups import PATIENCE, hierarchies, left, sweep

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, pytest.mark.slow]

TESTS = str(Path(__file__).parents[1] / "kernel" / "cgroups" / "test_cgroups.py")
PYTEST = [
    sys.executable,
    "-m",
    "pytest",
    "-q",
    "-x",
    "-p",
    "no:cacheprovider",
    "-m",
    "not slow and not vm",
    "--no-header",
    TESTS,
]
USER = 65534
MOST = 60
"""How many pass at the least: those that are skipped prove nothing."""


def run(argv: list[str], home: str = "/tmp") -> None:
    """Run the tests, and fail with what they say."""
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "HOME": home,
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    env |= {"PYTHONSAFEPATH": "1", "HYPOTHESIS_STORAGE_DIRECTORY": f"{home}/hypothesis"}
    root = str(Path(__file__).parents[2])
    done = subprocess.run(argv, env=env, cwd=root, capture_output=True, text=True, check=False, timeout=PATIENCE * 20)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-5000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > MOST, done.stdout[-2000:]


@pytest.fixture
def delegated() -> Iterator[list[str]]:
    """Return groups that belong to an ordinary user, one in each hierarchy."""
    name = f"isolib-test-{os.getpid()}-{os.urandom(4).hex()}-user"
    made = []
    for one in hierarchies():
        path = f"{one.path}/{name}"
        os.mkdir(path)
        made.append(path)
        for file in (".", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control", "tasks"):
            with suppress(FileNotFoundError):
                os.chown(f"{path}/{file}", USER, USER)
    yield made
    deadline = time.monotonic() + PATIENCE
    tick = threading.Event()
    while left(name) and time.monotonic() < deadline:  # the reaper of the tests, and what init has not reaped, are in there
        sweep(name)
        tick.wait(0.02)


def test_without_version_2(delegated: list[str]) -> None:
    """Where only v1 is mounted, groups do the same."""
    mount = next((one.path for one in hierarchies() if one.version == 2), None)
    if mount is None or not os.path.ismount(mount) or len(hierarchies()) == 1:
        pytest.skip("this host is no hybrid one")
    enter = "".join(f"echo 0 > {group}/cgroup.procs && " for group in delegated)  # below which nobody else makes any
    run(["unshare", "-m", "sh", "-c", f'{enter} umount {mount} && exec "$@"', "sh", *PYTEST])


# The interpreter may be in a directory that only root may enter; in a mount namespace of one's own nobody needs to.
AS_USER = """
set -e
for group in $GROUPS_TO_ENTER; do echo 0 > $group/cgroup.procs; done
prefix=$1; shift
case $prefix in /root/*)
    mkdir -p /run/isolib-test-hold
    mount -t tmpfs tmpfs /run/isolib-test-hold
    mkdir /run/isolib-test-hold/root
    mount --rbind /root /run/isolib-test-hold/root
    mount -t tmpfs -o mode=755 tmpfs /root
    for part in .pyenv .local; do
        if [ -d /run/isolib-test-hold/root/$part ]; then
            mkdir /root/$part
            mount --rbind /run/isolib-test-hold/root/$part /root/$part
        fi
    done
    umount -l /run/isolib-test-hold;;
esac
exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"
"""


def test_as_a_user_to_whom_groups_were_delegated(delegated: list[str], place: Path) -> None:
    """An ordinary user to whom a group was delegated in each hierarchy does the same there as root does."""
    os.chown(place, USER, USER)
    script = AS_USER.replace("$GROUPS_TO_ENTER", " ".join(delegated))
    run(["unshare", "-m", "sh", "-c", script, "sh", os.path.realpath(sys.base_prefix), *PYTEST], str(place))
