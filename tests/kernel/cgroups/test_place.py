"""Where groups are made for who has a delegated group of cgroup v2, and lives in it or below it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.groups import parents, take_away

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

USER = 65534

#: Enters a group of v2 and becomes nobody, then runs the code.  All is loaded before: he may not be able to read this Python.
ENTER = f"""
import os, sys, traceback
import isolib
with isolib.new_cgroup() as group, group.spawn(["true"], stdout=isolib.PIPE) as process:
    process.communicate()
with open(sys.argv[1] + "/cgroup.procs", "w") as file: file.write("0")
os.setgroups([]); os.setgid({USER}); os.setuid({USER})
def own():
    with open("/proc/self/cgroup") as file: return next(line[3:-1] for line in file if line.startswith("0::"))
"""

#: The limits that take a controller of v2, by the controller.
LIMITS = {"memory": '{"memory_max": "64M"}', "hugetlb": '{"hugetlb_max": {"2M": "4M"}}'}


@pytest.fixture
def delegated() -> Iterator[tuple[Path, str]]:
    """Return a group that belongs to an ordinary user, with a controller, and limits that take that; it must be left empty."""
    top = Path(parents(version=2)[0])
    while (top.parent / "cgroup.procs").exists():
        top = top.parent
    given = (top / "cgroup.controllers").read_text(encoding="ascii").split()
    controller = next((name for name in LIMITS if name in given), None)
    if controller is None:
        pytest.skip("cgroup v2 has no controller here")
    if os.path.isdir("/run/systemd/system"):
        pytest.skip("systemd has the groups of this host")
    control = top / "cgroup.subtree_control"
    group = top / f"isolib-test-delegated-{os.getpid()}"
    was_given = controller in control.read_text(encoding="ascii").split()
    control.write_text(f"+{controller}", encoding="ascii")
    try:
        group.mkdir()
        for name in ("", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"):
            os.chown(group / name, USER, USER)
        try:
            yield group, LIMITS[controller]
        finally:
            left = take_away(str(group))
    finally:
        if not was_given:
            control.write_text(f"-{controller}", encoding="ascii")
    assert left == []


def run(place: Path, code: str) -> str:
    """Return what the code prints, run by an ordinary user in a group."""
    argv = [sys.executable, "-c", ENTER + code, str(place)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_in_a_leaf_below(delegated: tuple[Path, str]) -> None:
    """Who lives in a leaf of his delegated group gets groups beside it, and nobody is moved."""
    group, limits = delegated
    leaf = group / "leaf"
    leaf.mkdir()
    for name in ("", "cgroup.procs"):
        os.chown(leaf / name, USER, USER)
    code = f"""
before = own()
with isolib.new_cgroup(**{limits}) as made:
    print(made.path)
    with made.spawn(["cat", "/proc/self/cgroup"], stdout=isolib.PIPE) as process:
        assert made.name in (process.communicate()[0] or b"").decode()
assert own() == before
"""
    assert Path(run(leaf, code).strip()).parent == group
    assert take_away(str(leaf)) == []


def test_in_the_way(delegated: tuple[Path, str]) -> None:
    """Who lives in his delegated group itself is told that he is in the way, and exactly what to do."""
    group, limits = delegated
    code = f"""
before = own()
try:
    isolib.new_cgroup(**{limits})
except isolib.Unsupported as error:
    print(error)
assert own() == before
"""
    text = run(group, code)
    assert str(group) in text
    assert "allow=('move-self',)" in text
    assert [one for one in group.iterdir() if one.is_dir()] == []


def test_move_self(delegated: tuple[Path, str]) -> None:
    """With allow=("move-self",) his processes are moved to a group below, and groups are made beside that, again and again."""
    group, limits = delegated
    code = f"""
for _ in range(2):
    with isolib.new_cgroup(**{limits}, allow=("move-self",)) as made:
        print(made.path)
        with made.spawn(["true"]) as process:
            assert process.wait().code == 0
    print(own())
"""
    first, where, second, same = run(group, code).split()
    assert Path(first).parent == Path(second).parent == group
    assert where == same
    assert Path(where).parent.name == group.name
    assert take_away(str(group / Path(where).name)) == []  # it stays, as is promised


def test_without_controllers(delegated: tuple[Path, str]) -> None:
    """A group that needs no controller needs nobody to be moved."""
    group, _ = delegated
    code = """
with isolib.new_cgroup() as made, made.spawn(["sleep", "100"]) as process:
    assert process.pid in made.pids()
    made.freeze()
    made.kill()
    print(process.wait().reason)
"""
    assert run(group, code).strip() == "Reason.KILLED"
