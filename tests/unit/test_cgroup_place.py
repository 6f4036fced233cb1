"""Where new groups go, decided on ordinary trees of directories."""

from __future__ import annotations

import os
from types import MappingProxyType
from typing import TYPE_CHECKING

import pytest

from isolib._kernel.cgroupfs import Group
from isolib._kernel.handle import home
from isolib.cgroups import place, systemd
from isolib.cgroups.files import Directory
from isolib.cgroups.hierarchy import Survey
from isolib.errors import SyscallError, Unsupported
from tests.recorded import V1, Recorded, fill

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTROL = "cgroup.subtree_control"
GROUP = {"cgroup.procs": "", CONTROL: "\n", "cgroup.controllers": "cpu io memory pids\n", "cgroup.type": "domain\n"}


@pytest.fixture(autouse=True)
def _no_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tree be nobody's, whatever the init of this host is."""
    monkeypatch.setattr(systemd, "_BOOTED", str(tmp_path / "booted"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a hierarchy: the top, ``a`` and ``a/b`` below it, with a process in the last one."""
    for name in ("top", "top/a", "top/a/b"):
        fill(tmp_path / name, GROUP)
    top = tmp_path / "top"
    os.unlink(top / "cgroup.type")
    (top / "a/b/cgroup.procs").write_text("1\n")
    return top


def own(top: Path, name: str = "a/b", *, readonly: bool = False) -> Group:
    """Return the group of a process."""
    return Group(str(top / name) if name else str(top), str(top), unified=True, readonly=readonly)


def found(top: Path, name: str = "a/b", needed: tuple[str, ...] = ("memory",), *, move_self: bool = False) -> str:
    """Return which place is chosen for groups with these controllers, below the top."""
    chosen = place._unified_place(own(top, name), {"memory", "pids", *needed}, set(needed), move_self=move_self)
    return os.path.relpath(chosen, top)


def close(one: Path) -> None:
    """Take the right to use a group away, from root too."""
    os.unlink(one / CONTROL)


# ---- which group of v2 ----


def test_top(tree: Path) -> None:
    """Only the top of a hierarchy has no type, and it takes processes and groups at once: the caller's own one is the place."""
    assert [place.is_top(str(tree / name)) for name in ("", "a", "a/b")] == [True, False, False]
    (tree / "cgroup.procs").write_text("1\n2\n")
    assert found(tree, "") == "."


def test_nearest_above_without_processes(tree: Path) -> None:
    """The nearest group above that has no processes is the place, and that is the top at the latest, which may have some."""
    assert found(tree) == "a"
    (tree / "a/cgroup.procs").write_text("2\n")
    (tree / "cgroup.procs").write_text("3\n")
    assert found(tree) == "."


def test_no_further_than_a_closed_group(tree: Path) -> None:
    """What lies above a group that the caller may not use is not his, although he could write there."""
    (tree / "a/cgroup.procs").write_text("2\n")
    close(tree / "a")
    with pytest.raises(Unsupported, match="gives no controllers"):
        found(tree)


def test_no_further_than_the_namespace(tree: Path) -> None:
    """The top of a cgroup namespace has a type, and so it is no place for groups while the caller is in it."""
    inner = tree / "a"
    (inner / "cgroup.procs").write_text("1\n")
    with pytest.raises(Unsupported, match="group with processes"):
        place._unified_place(
            Group(str(inner), str(inner), unified=True, readonly=False), {"memory"}, {"memory"}, move_self=False
        )


def test_groups_without_controllers(tree: Path) -> None:
    """Where no controller is wanted of v2, as in a hybrid host, the caller's own group is the place: the rule is not met."""
    assert place._unified_place(own(tree), set(), set(), move_self=False) == str(tree / "a/b")


def test_controllers_that_only_count(tree: Path) -> None:
    """Where there is no better place, controllers that only count are done without."""
    close(tree / "a")
    assert found(tree, needed=()) == "a/b"


def test_read_only(tree: Path) -> None:
    """A hierarchy that is mounted read-only is named, and nothing is looked at."""
    with pytest.raises(Unsupported, match=f"refused by {tree}, which is mounted read-only -- start with a writable cgroupfs"):
        place._unified_place(own(tree, readonly=True), {"memory"}, {"memory"}, move_self=True)


# ---- advice ----


def test_advice_where_the_own_group_may_be_used(tree: Path) -> None:
    """Who could use his own group if he were not in it is told the two ways out, with the commands as they are to be typed."""
    close(tree / "a")
    with pytest.raises(Unsupported) as caught:
        found(tree)
    path = f"{tree}/a/b"
    assert caught.value.feature == "control groups with controllers"
    assert caught.value.refused_by.endswith(f"gives no controllers to groups below it: this process is in {path}")
    assert caught.value.remedy == (
        f"allow=('move-self',), which moves the processes of {path} to a group below it; or start in one: "
        f"mkdir {path}/main && echo $$ > {path}/main/cgroup.procs"
    )


def test_advice_where_nothing_may_be_used(tree: Path) -> None:
    """Who may use nothing is told who he is, and how a group becomes his."""
    for name in ("a", "a/b"):
        close(tree / name)
    with pytest.raises(Unsupported) as caught:
        found(tree, move_self=True)
    assert caught.value.refused_by == f"the permissions of {tree}/a/b, which this user (uid {os.geteuid()}) may not use"
    for words in ("as root: mkdir a group", "chown"):
        assert words in caught.value.remedy


def test_advice_about_a_controller() -> None:
    """A controller that is not given to groups below is named with the file that lacks it and what to write there."""
    error = place.not_enabled("io", "/sys/fs/cgroup/x")
    assert str(error) == (
        "the io controller of a control group: refused by /sys/fs/cgroup/x/cgroup.subtree_control, which lacks it -- "
        "as its owner: echo +io > /sys/fs/cgroup/x/cgroup.subtree_control, and the same in each group above it"
    )


# ---- moving ----


def test_moving(tree: Path) -> None:
    """Where it is allowed, the own group is the place when its processes are in a leaf below it."""
    close(tree / "a")
    (tree / "a/b/cgroup.procs").write_text("")  # they have gone at once
    assert found(tree, move_self=True) == "a/b"
    assert (tree / f"a/b/isolib-self-{os.getpid()}").is_dir()


def test_moving_in_vain(tree: Path) -> None:
    """Each process is written to the leaf, and where there are always more it ends with a refusal."""
    leaf = tree / f"a/b/isolib-self-{os.getpid()}"
    fill(leaf, {"cgroup.procs": ""})
    with pytest.raises(Unsupported, match=f"{tree}/a/b, where more are born than can be moved"):
        place._move_processes(str(tree / "a/b"))
    assert (leaf / "cgroup.procs").read_text() == "1"


# ---- systemd ----


def test_systemds_groups(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where systemd runs, its groups are passed over however free they are, and the scope that it gave is used again."""
    (tmp_path / "booted").mkdir()
    assert place._nearest_above(own(tree)) is None
    monkeypatch.setitem(place._cache.scopes, home(), str(tree / "a"))
    assert found(tree) == "a"
    assert found(tree, needed=()) == "a"


# ---- enabling ----


@pytest.fixture
def recorded(tree: Path) -> Iterator[Recorded]:
    """Return ``a`` of the tree, and note what is written into it."""
    with Recorded.open(str(tree / "a"), 2) as directory:
        yield directory


def test_what_is_enabled(recorded: Recorded) -> None:
    """What a group has and what it gives are two things."""
    recorded.show(CONTROL, "memory pids\n")
    assert place.enabled_in(recorded) == {"memory", "pids"}
    assert place.available_in(recorded) == {"cpu", "io", "memory", "pids"}


def test_enabling(recorded: Recorded, tree: Path) -> None:
    """Each controller is written by itself, so that one that is refused costs no other, and nothing that is enabled is."""
    recorded.show(CONTROL, "pids\n")
    place.enable(recorded, str(tree), {"pids"})
    assert recorded.writes == []
    place.enable(recorded, str(tree), {"pids", "memory", "io"})
    assert recorded.writes == [(CONTROL, "+io"), (CONTROL, "+memory")]
    assert (tree / CONTROL).read_text() == "\n"


def test_enabling_from_the_top(recorded: Recorded, tree: Path) -> None:
    """A controller that a group lacks is enabled above it first, up to the nearest group that has it."""
    for name in ("a", "a/b"):
        (tree / name / "cgroup.controllers").write_text("pids\n")
    with Directory.open(str(tree / "a/b"), 2) as below:
        place.enable(below, str(tree), {"memory"})
    assert [(tree / name / CONTROL).read_text() for name in ("", "a", "a/b")] == ["+memory", "\n", "\n"]
    place.enable(recorded, str(tree / "a"), {"memory"})  # above the top that is given nothing is touched
    assert recorded.writes == []


def test_enabling_what_is_nowhere(recorded: Recorded, tree: Path) -> None:
    """A controller that no group above has is no error here: who asked for it is told by its absence."""
    place.enable(recorded, str(tree), {"hugetlb"})
    assert recorded.writes == []
    place.enable(recorded, "/elsewhere", {"hugetlb"})


@pytest.mark.parametrize(("errno", "is_raised"), [(16, False), (95, False), (1, False), (13, False), (22, True)])
def test_refused_enabling(
    recorded: Recorded, tree: Path, monkeypatch: pytest.MonkeyPatch, errno: int, *, is_raised: bool
) -> None:
    """Where processes, threads or permissions are in the way the next one is tried; anything else is raised."""
    tried = []

    def refuse(directory: Directory, name: str, value: str) -> None:
        tried.append(value)
        raise directory.refused("write", name, errno, value)

    monkeypatch.setattr(Recorded, "write", refuse)
    if is_raised:
        with pytest.raises(SyscallError):
            place.enable(recorded, str(tree), {"io", "memory"})
    else:
        place.enable(recorded, str(tree), {"io", "memory"})
    assert tried == (["+io"] if is_raised else ["+io", "+memory"])


# ---- all hierarchies together ----


def test_whole_place(tree: Path, tmp_path: Path) -> None:
    """Each controller is in v2, in v1, or refused with the words that are right for it."""
    (tree / "a" / CONTROL).write_text("pids\n")
    memory, cpu, closed = (fill(tmp_path / name, V1) for name in ("memory", "cpu", "closed"))
    os.unlink(f"{closed}/tasks")
    legacy = {
        "memory": Group(memory, memory, unified=False, readonly=False),
        "cpu": Group(cpu, cpu, unified=False, readonly=False),
        "cpuacct": Group(cpu, cpu, unified=False, readonly=False),
        "blkio": Group(closed, closed, unified=False, readonly=False),
        "cpuset": Group("/ro/x", "/ro", unified=False, readonly=True),
    }
    survey = Survey("hybrid", own(tree), MappingProxyType(legacy), frozenset({"pids"}))
    wanted = frozenset({"pids", "memory", "cpu", "cpuacct", "io", "cpuset", "rdma", "freezer"})
    made = place._search(survey, wanted, frozenset(), move_self=False)
    assert made.unified is not None
    assert (made.unified.path, made.top, made.known) == (f"{tree}/a", str(tree), set(wanted))
    assert {name: one.path for name, one in made.legacy.items()} == {"memory": memory, "cpu": cpu}
    assert {name: error.refused_by for name, error in made.refusals.items()} == {
        "io": f"the permissions of {closed}",
        "cpuset": "/ro, which is mounted read-only",
        "rdma": "this host, where it is in no hierarchy",
    }
    assert "mount -t cgroup -o rdma cgroup /sys/fs/cgroup/rdma" in made.refusals["rdma"].remedy
    assert len(made.directories) == 3
    place._add(made, survey, frozenset({"devices"}))
    assert "devices" in made.refusals


def test_legacy_place(tmp_path: Path) -> None:
    """Without v2, co-mounted controllers share one directory, and the freezer and processor times are had from v1 too."""
    both, freezer = fill(tmp_path / "both", V1), fill(tmp_path / "freezer", V1)
    legacy = dict.fromkeys(("cpu", "cpuacct"), Group(both, both, unified=False, readonly=False))
    legacy["freezer"] = Group(freezer, freezer, unified=False, readonly=False)
    survey = Survey("legacy", None, MappingProxyType(legacy), frozenset())
    made = place._search(survey, frozenset({"cpu", "cpuacct", "freezer"}), frozenset(), move_self=False)
    assert made.unified is None
    assert made.legacy["cpu"] is made.legacy["cpuacct"]
    assert sorted(one.path for one in made.directories) == sorted([both, freezer])
    assert made.refusals == {}


def test_not_given_below(tree: Path) -> None:
    """A controller that v2 has, but that could not be enabled, is refused by the file that lacks it."""
    for name in ("", "a"):
        (tree / name / "cgroup.controllers").write_text("pids\n")
    (tree / "a" / CONTROL).write_text("pids\n")
    survey = Survey("unified", own(tree), MappingProxyType({}), frozenset({"pids", "memory"}))
    made = place._search(survey, frozenset({"pids", "memory"}), frozenset({"memory"}), move_self=False)
    assert set(made.refusals) == {"memory"}
    assert f"{tree}/a/{CONTROL}" in made.refusals["memory"].refused_by
