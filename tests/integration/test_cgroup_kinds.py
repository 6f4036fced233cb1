"""The tests of control groups in other surroundings: without cgroup v2, and as a user to whom groups were delegated."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.groups import AWKWARD, PATIENCE, hierarchies, is_legacy, sweep, take_away

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, pytest.mark.slow]

PLACE = Path(__file__).parents[1] / "kernel" / "cgroups"
TESTS = str(PLACE / "test_cgroups.py")
MORE = [str(PLACE / f"test_{name}.py") for name in ("facade", "history", "pressure")]
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
    "-rs",
    TESTS,
]
USER = 65534
#: Some of the tests need these.
CONTROLLERS = {"cpu", "cpuset", "hugetlb", "io", "memory", "pids"}


def run(argv: list[str], home: str = "/tmp") -> set[str]:
    """Run the tests, fail with what they say, and return why some were skipped: those prove nothing."""
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "HOME": home,
        "PYTHONDONTWRITEBYTECODE": "1",
        "ISOLIB_TEST_NEEDS_GROUPS": "1",
    }
    env |= {"PYTHONSAFEPATH": "1", "HYPOTHESIS_STORAGE_DIRECTORY": f"{home}/hypothesis"}
    root = str(Path(__file__).parents[2])
    done = subprocess.run(argv, env=env, cwd=root, capture_output=True, text=True, check=False, timeout=PATIENCE * 20)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-5000:]
    assert re.search(r"^\d+ passed\b", done.stdout, re.MULTILINE), done.stdout[-2000:]
    return set(re.findall(r"^SKIPPED \[\d+\] \S+ (.*)$", done.stdout, re.MULTILINE))


def lacking(*more: str) -> set[str]:
    """Return why tests are skipped that need controllers which are not in v1, or others that groups do not have there."""
    names = {name for name in CONTROLLERS if not is_legacy(name)}.union(more)
    return {f"groups of this user have no {name} controller on this host" for name in names}


@pytest.fixture
def delegated() -> Iterator[list[str]]:
    """Return groups that belong to an ordinary user, one in each hierarchy; nothing may be left below them."""
    name = f"isolib-test-{os.getpid()}-{os.urandom(4).hex()}-user"
    made = [f"{one.path}/{name}" for one in hierarchies()]
    try:
        for path in made:
            os.mkdir(path)
            for file in (".", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control", "tasks"):
                with suppress(FileNotFoundError):
                    os.chown(f"{path}/{file}", USER, USER)
        yield made
        # The reaper of the tests was in there, and is gone within a second.
        assert {path: take_away(path) for path in made} == {path: [] for path in made}
    finally:
        sweep(name)


def test_without_version_2(delegated: list[str]) -> None:
    """Where only v1 is mounted, groups do the same."""
    mount = next((one.path for one in hierarchies() if one.version == 2), None)
    if mount is None or not os.path.ismount(mount) or len(hierarchies()) == 1:
        pytest.skip("this host is no hybrid one")
    enter = "".join(f"echo 0 > {group}/cgroup.procs && " for group in delegated)  # below which nobody else makes any
    skipped = run(["unshare", "-m", "sh", "-c", f'{enter} umount {mount} && exec "$@"', "sh", *PYTEST, *MORE])
    no_v2 = "this host has no cgroup v2 in which this user may make groups"
    no_loop = {reason for reason in skipped if reason.startswith("no loop devices here")}
    assert skipped == {no_v2} | no_loop | lacking()


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
    skipped = run(["unshare", "-m", "sh", "-c", script, "sh", os.path.realpath(sys.base_prefix), *PYTEST], str(place))
    for_root = "needs to be started by root, who may make a block device"
    assert skipped == {for_root} | lacking(*AWKWARD)  # in v2 he is in the way of controllers himself
