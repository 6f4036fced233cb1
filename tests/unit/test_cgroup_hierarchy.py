"""Which hierarchies a host has, from what the kernel writes on hosts of all kinds."""

from __future__ import annotations

import os
from types import MappingProxyType
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from isolib._kernel.cgroupfs import V1_NAMES, Group, controller_state, mode, own_group, own_groups
from isolib._kernel.procfs import CgroupEntry, Mount, parse_cgroup, parse_mountinfo
from isolib.cgroups.hierarchy import V1_CONTROLLERS, Binding, Hierarchy, Survey, may_use, read_words
from tests.recorded import V1, V2, fill

if TYPE_CHECKING:
    from pathlib import Path

TOP = "/sys/fs/cgroup"


def mounts_of(*lines: str) -> list[Mount]:
    """Return mounts given as ``ROOT POINT OPTIONS TYPE SUPER``, the last one on top, as isolib looks at them."""
    text = ""
    for number, line in enumerate(lines):
        root, point, options, fs_type, super_options = line.split(" ")
        text += (
            f"{30 + number} 24 0:{26 + number} {root} {point} {options} shared:{number} - {fs_type} cgroup {super_options}\n"
        )
    return parse_mountinfo(text.encode())[::-1]


def v1_mount(names: str, options: str = "rw,nosuid,nodev,noexec,relatime", root: str = "/") -> str:
    """Return the mount of a hierarchy of v1."""
    return f"{root} {TOP}/{names} {options} cgroup rw,{names}"


def looked(mounts: list[Mount], cgroup: str) -> tuple[str, str | None, dict[str, str]]:
    """Return the mode, and the paths of the groups."""
    unified, legacy = own_groups(mounts, parse_cgroup(cgroup.encode()))
    return mode(mounts), None if unified is None else unified.path, {name: one.path for name, one in legacy.items()}


# ---- hosts ----


def test_unified() -> None:
    """A host of today has one hierarchy, and the caller is in a group of it."""
    mounts = mounts_of(f"/ {TOP} rw,nosuid cgroup2 rw,nsdelegate,memory_recursiveprot")
    assert looked(mounts, "0::/user.slice/session-1.scope\n") == ("unified", f"{TOP}/user.slice/session-1.scope", {})
    assert looked(mounts, "0::/\n") == ("unified", TOP, {})


def test_systemd_legacy_and_hybrid() -> None:
    """Controllers that are mounted together are in one group, in whichever order they are named."""
    lines = [v1_mount("name=systemd").replace("name=systemd rw,", "systemd rw,"), v1_mount("cpu,cpuacct"), v1_mount("memory")]
    cgroup = "5:memory:/m\n4:cpuacct,cpu:/c\n1:name=systemd:/init.scope\n0::/init.scope\n"
    paths = {"memory": f"{TOP}/memory/m", "cpu": f"{TOP}/cpu,cpuacct/c", "cpuacct": f"{TOP}/cpu,cpuacct/c"}
    assert looked(mounts_of(*lines), cgroup) == ("legacy", None, paths)
    hybrid = mounts_of(*lines, f"/ {TOP}/unified rw cgroup2 rw,nsdelegate")
    assert looked(hybrid, cgroup) == ("hybrid", f"{TOP}/unified/init.scope", paths)
    _, legacy = own_groups(hybrid, parse_cgroup(cgroup.encode()))
    assert legacy["cpu"] is legacy["cpuacct"]
    assert legacy["cpu"].controllers == ("cpuacct", "cpu")


def test_hybrid_with_split_controllers() -> None:
    """Each controller may have a hierarchy of its own, with the caller in another group of each."""
    names = ("cpu", "cpuacct", "memory", "pids", "blkio")
    mounts = mounts_of(*map(v1_mount, names), f"/ {TOP}/unified rw cgroup2 rw")
    cgroup = "".join(f"{number}:{name}:/g{number}\n" for number, name in enumerate(names, 1)) + "0::/\n"
    paths = {name: f"{TOP}/{name}/g{number}" for number, name in enumerate(names, 1)}
    assert looked(mounts, cgroup) == ("hybrid", f"{TOP}/unified", paths)


def test_named_hierarchy_alone() -> None:
    """A hierarchy that has a name and no controllers limits nothing: beside v2 the host is unified, and alone it has none."""
    named = f"/ {TOP}/systemd rw cgroup rw,xattr,name=systemd"
    assert looked(mounts_of(named, f"/ {TOP}/unified rw cgroup2 rw"), "1:name=systemd:/a\n0::/a\n") == (
        "unified",
        f"{TOP}/unified/a",
        {},
    )
    assert looked(mounts_of(named), "1:name=systemd:/a\n") == ("", None, {})


def test_nothing_mounted() -> None:
    """Where nothing is mounted there are no groups to be seen, although the caller is in some."""
    assert looked([], "3:memory:/a\n0::/a\n") == ("", None, {})
    assert looked(mounts_of("/ / rw ext4 rw", f"/ {TOP} rw tmpfs rw"), "0::/\n") == ("", None, {})


@pytest.mark.parametrize("options", [("ro,nosuid", "rw"), ("rw", "ro")])
def test_docker(options: tuple[str, str]) -> None:
    """In a container with a namespace of its own the top is its own group, mounted read-only by one option or the other."""
    mount, super_options = options
    found = own_group(mounts_of(f"/ {TOP} {mount} cgroup2 {super_options}"), parse_cgroup(b"0::/\n"))
    assert found == Group(path=TOP, top=TOP, unified=True, readonly=True)
    legacy = mounts_of(v1_mount("memory", "ro"))
    group = own_group(legacy, parse_cgroup(b"4:memory:/\n"), "memory")
    assert group == Group(f"{TOP}/memory", f"{TOP}/memory", unified=False, readonly=True, controllers=("memory",))


def test_docker_without_a_namespace() -> None:
    """Without a namespace the container's group is mounted, and the caller's path begins with it."""
    mounts = mounts_of(v1_mount("memory", root="/docker/abc"), f"/docker/abc {TOP}/unified rw cgroup2 rw")
    assert looked(mounts, "4:memory:/docker/abc\n0::/docker/abc/x\n") == (
        "hybrid",
        f"{TOP}/unified/x",
        {"memory": f"{TOP}/memory"},
    )
    # and what only begins with the same letters is another group, which is not to be seen
    assert looked(mounts, "4:memory:/docker/abcd\n0::/docker\n") == ("hybrid", None, {})


@pytest.mark.parametrize("path", ["/..", "/../x", "/../../x/y"])
def test_outside_of_the_namespace(path: str) -> None:
    """A group outside of the reader's namespace cannot be seen."""
    mounts = mounts_of(f"/ {TOP} rw cgroup2 rw", v1_mount("memory"))
    assert looked(mounts, f"4:memory:{path}\n0::{path}\n") == ("hybrid", None, {})


@pytest.mark.parametrize("path", ["/..x", "/...", "/a/..b"])
def test_names_with_dots(path: str) -> None:
    """A name that only begins with two dots is a name as any other."""
    assert looked(mounts_of(f"/ {TOP} rw cgroup2 rw"), f"0::{path}\n") == ("unified", TOP + path, {})


def test_mount_of_the_host_in_a_new_namespace() -> None:
    """What was mounted before the namespace was made shows more than the namespace, by names that nobody tells."""
    assert own_group(mounts_of(f"/../.. {TOP} rw cgroup2 rw"), parse_cgroup(b"0::/\n")) is None


def test_removed_group() -> None:
    """Of a group that was removed the kernel tells the path it had, which is there no more."""
    found = own_group(mounts_of(f"/ {TOP} rw cgroup2 rw"), parse_cgroup(b"0::/a (deleted)\n"))
    assert found is not None
    assert found.path == f"{TOP}/a (deleted)"


def test_several_mounts() -> None:
    """Of several mounts of a hierarchy one that shows the group and can be written is taken, and else the one on top."""
    host, container, copy = f"/ {TOP} rw cgroup2 rw", "/box /var/box/cgroup rw cgroup2 rw", f"/ /mnt{TOP} ro cgroup2 rw"
    entries = parse_cgroup(b"0::/a\n")
    for lines, top in (
        ((host, container), TOP),
        ((container, host), TOP),
        ((host, copy), TOP),
        ((copy, host), TOP),
        ((copy,), f"/mnt{TOP}"),
        ((host, "/ /other rw cgroup2 rw"), "/other"),
    ):  # fmt: skip
        found = own_group(mounts_of(*lines), entries)
        assert found is not None
        assert (found.top, found.path) == (top, f"{top}/a")


# ---- whatever there may be ----

PATHS = st.sampled_from(["/", "/..", "/../x", "/a", "/a/b", "/ab", "/a (deleted)", "/..a"])
NAMES = st.sampled_from([*sorted(V1_NAMES), "name=systemd", "rw", "x"])
MOUNTS = st.builds(
    Mount,
    id=st.just(1),
    parent=st.just(1),
    dev=st.just((0, 1)),
    root=PATHS,
    mount_point=st.sampled_from([TOP, "/mnt", f"{TOP}/memory"]),
    options=st.sampled_from([("rw",), ("ro",), ()]),
    optional=st.just(()),
    fs_type=st.sampled_from(["cgroup", "cgroup2", "tmpfs"]),
    source=st.just("x"),
    super_options=st.lists(NAMES, max_size=3).map(tuple),
)
ENTRIES = st.builds(CgroupEntry, st.integers(min_value=0, max_value=3), st.lists(NAMES, max_size=3).map(tuple), PATHS)


@given(st.lists(MOUNTS, max_size=5), st.lists(ENTRIES, max_size=5))
def test_any_host(mounts: list[Mount], entries: list[CgroupEntry]) -> None:
    """Whatever is mounted, each group that is found lies below its mount, which is of its version, and nothing is raised."""
    unified, legacy = own_groups(mounts, entries)
    assert mode(mounts) in {"", "unified", "hybrid", "legacy"}
    for group in ([unified] if unified else []) + list(legacy.values()):
        kind = "cgroup2" if group.unified else "cgroup"
        assert any((one.mount_point, one.fs_type) == (group.top, kind) for one in mounts)
        assert group.path == group.top or group.path.startswith(f"{group.top}/")
        assert "/../" not in f"{group.path}/"


def test_controller_states() -> None:
    """The kernel's table says of each controller of v1 whether it is there, off, bound to a hierarchy or to none."""
    table = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t3\t7\t1\nmemory\t0\t7\t1\npids\t0\t1\t0\n"
    states = [controller_state(table, name) for name in ("cpu", "memory", "pids", "rdma")]
    assert states == ["bound", "unbound", "disabled", "absent"]


@given(st.text(alphabet="cpu 01\t\n"))
@example("cpu")
@example("cpu 1 1 1 1")
def test_any_table(content: str) -> None:
    """Whatever the table holds, the answer is one of four words."""
    assert controller_state(content, "cpu") in {"absent", "disabled", "unbound", "bound"}


# ---- where a controller is ----


def test_bindings(tmp_path: Path) -> None:
    """What v2 has is there, built-in things too; whether the caller's own group has it is told; the rest is in v1."""
    fill(tmp_path / "own", V2 | {"cgroup.controllers": "pids\n"})
    unified = Group(str(tmp_path / "own"), str(tmp_path), unified=True, readonly=False)
    legacy = Group("/c/io", "/c", unified=False, readonly=False, controllers=("blkio",))
    found = Survey("hybrid", unified, MappingProxyType({"blkio": legacy, "freezer": legacy}), frozenset({"pids", "memory"}))
    assert found.binding("pids") == Binding(2, unified.path, unified.top, enabled=True)
    assert found.binding("memory") == Binding(2, unified.path, unified.top, enabled=False)
    assert found.binding("freezer") == found.binding("devices") == Binding(2, unified.path, unified.top)
    assert found.binding("io") == Binding(1, "/c/io", "/c")
    assert found.binding("rdma") is None
    alone = Survey("legacy", None, found.legacy, frozenset())
    assert alone.binding("freezer") == Binding(1, "/c/io", "/c")
    assert alone.binding("devices") is None


def test_may_use(tmp_path: Path) -> None:
    """A group may be used when every file that it takes can be written: other ones in each version."""
    for name, files, unified in (("v2", V2, True), ("v1", V1, False)):
        place = fill(tmp_path / name, files)
        assert may_use(place, unified=unified)
        assert not may_use(place, unified=not unified)
    os.unlink(tmp_path / "v2/cgroup.subtree_control")
    assert not may_use(str(tmp_path / "v2"), unified=True)
    assert not may_use(str(tmp_path / "nothing"), unified=False)


def test_words(tmp_path: Path) -> None:
    """A file that cannot be read has no words."""
    (tmp_path / "cgroup.controllers").write_text("cpu io\n")
    assert read_words(f"{tmp_path}/cgroup.controllers") == ["cpu", "io"]
    assert read_words(f"{tmp_path}/nothing") == read_words(str(tmp_path)) == []


def test_shown() -> None:
    """A hierarchy shows where each controller is; every controller has a name in v1 that the kernel knows."""
    shown = repr(Hierarchy("hybrid", {"io": Binding(1, "/c/io", "/c")}, None, "root"))
    assert shown == "<Hierarchy hybrid, root; io: v1 /c/io>"
    assert set(V1_CONTROLLERS.values()) <= V1_NAMES
