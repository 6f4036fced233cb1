"""The tests of groups once more, on a host where cgroup v2 is not mounted: v1 alone does all that it can."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from isolib._kernel.procfs import parse_mountinfo


@pytest.mark.root
@pytest.mark.slow
def test_without_v2() -> None:
    """Who has but the hierarchies of v1 has groups with limits, freezing, killing and counting all the same."""
    mounts = parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())
    if not any(mount.fs_type == "cgroup" for mount in mounts):
        pytest.skip("this host has no cgroup v1")
    here = Path(__file__).parent
    unified = [mount.mount_point for mount in mounts if mount.fs_type == "cgroup2"]
    script = 'for place in $UNIFIED; do umount "$place"; done; exec "$@"'
    tests = [str(here / name) for name in ("test_cgroups.py", "test_facade.py", "test_history.py", "test_pressure.py")]
    argv = ["unshare", "-m", "sh", "-c", script, "sh", sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*argv, "-m", "not slow", *tests],
        cwd=here.parents[2],
        env=os.environ | {"UNIFIED": " ".join(unified)},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
