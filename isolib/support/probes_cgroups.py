"""Probes of control groups: which hierarchies there are, and what the caller may do in its own group of each.

A directory outlives the process that made it, so one is made only for what cannot be seen otherwise, and for a moment.
"""

from __future__ import annotations

import os
import pwd
import threading
from contextlib import contextmanager, suppress
from errno import EACCES, ECHILD, EPERM
from functools import partial
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib._kernel.cgroupfs import controller_state, mode, own_group
from isolib._kernel.plan import Builder
from isolib._kernel.procfs import parse_cgroup
from isolib.errors import SyscallError
from isolib.support import refusals
from isolib.support.attempts import attempt
from isolib.support.examination import Probe
from isolib.support.facts import read, read_bytes
from isolib.support.refusals import NOTHING, Need, Refusal, Refused, said

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolib._kernel.cgroupfs import Group
    from isolib._kernel.procfs import CgroupEntry
    from isolib.support.examination import Examination
    from isolib.support.facts import Facts

#: The controllers by their name in v2, with the name in v1 and the kernel option.
CONTROLLERS: Final = {
    "cpu": ("cpu", "CONFIG_CGROUP_SCHED"),
    "cpuset": ("cpuset", "CONFIG_CPUSETS"),
    "memory": ("memory", "CONFIG_MEMCG"),
    "io": ("blkio", "CONFIG_BLK_CGROUP"),
    "pids": ("pids", "CONFIG_CGROUP_PIDS"),
    "hugetlb": ("hugetlb", "CONFIG_CGROUP_HUGETLB"),
    "devices": ("devices", "CONFIG_CGROUP_DEVICE"),
    "freezer": ("freezer", "CONFIG_CGROUP_FREEZER"),
}
_CORE: Final = frozenset({"freezer", "devices"})  # no controllers in v2: a file of every group, and a BPF program
#: How the groups are called that a probe makes for a moment.
_OURS: Final = "isolib-doctor-"


def _entries() -> list[CgroupEntry]:
    return parse_cgroup(read_bytes("/proc/thread-self/cgroup"))


def _may_write(path: str) -> bool:
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def _owner(path: str) -> str:
    try:
        uid = os.stat(path).st_uid
    except OSError:
        return "somebody unknown"
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _write_refusal(group: Group, facts: Facts) -> Refusal:
    return refusals.cgroup_write(
        group.path,
        _owner(group.path),
        facts,
        readonly=group.readonly,
        unified=group.unified,
        systemd=os.path.isdir("/run/systemd/system"),
    )


def _unified_group(exam: Examination) -> Group:
    group = own_group(exam.facts.mounts, _entries())
    if group is None:
        by = Refusal(
            "nobody: no cgroup v2 hierarchy is mounted here", "as root: mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified"
        )
        raise Refused("no mount of cgroup2 shows the caller's group", by)
    return group


def _mode(exam: Examination) -> str:
    found = mode(exam.facts.mounts)
    if not found:
        by = Refusal("nobody: no hierarchy is mounted", "as root: mount -t cgroup2 cgroup2 /sys/fs/cgroup")
        raise Refused("no cgroup and no cgroup2 in /proc/self/mountinfo", by)
    return found


def _unified(exam: Examination) -> str:
    return f"this process is in {_unified_group(exam).path}"


def _delegated(exam: Examination) -> str:
    group = _unified_group(exam)
    wanted = (group.path, *(f"{group.path}/{name}" for name in ("cgroup.procs", "cgroup.subtree_control")))
    refused = [path for path in wanted if not _may_write(path)]
    if refused:
        raise Refused(f"{refused[0]} cannot be written", _write_refusal(group, exam.facts))
    return group.path


def _controller(name: str, exam: Examination) -> str:
    facts = exam.facts
    legacy_name, kernel_option = CONTROLLERS[name]
    entries = _entries()
    group = own_group(facts.mounts, entries, legacy_name)
    unified = own_group(facts.mounts, entries)
    need = Need(option=kernel_option)
    state = controller_state(read("/proc/cgroups") or "", legacy_name)
    if group is None and unified is not None:
        group = _in_unified(name, unified, state, need, facts)
    if group is None:
        raise Refused(f"{name} is in no hierarchy", refusals.controller_off(name, state, need, facts))
    if not _may_write(group.path):
        raise Refused(f"{group.path} cannot be written", _write_refusal(group, facts))
    if group.unified and name == "devices":
        os.close(calls.bpf_device_program())
    return f"v{2 if group.unified else 1}, {group.path}"


def _in_unified(name: str, group: Group, state: str, need: Need, facts: Facts) -> Group | None:
    enabled = (read(f"{group.path}/cgroup.controllers") or "").split()
    if name in _CORE or name in enabled:
        return group
    if name in (read(f"{group.top}/cgroup.controllers") or "").split():
        reason = f"{group.path}/cgroup.controllers lacks it"
        raise Refused(reason, refusals.controller_not_enabled(name, os.path.dirname(group.path)))
    # In v2 alone everything that the kernel has is listed at the top: what is not there was built out, or disabled.
    if state != "disabled":
        raise Refused(f"{name} is in no hierarchy", refusals.controller_off(name, "absent", need, facts))
    return None


# ---- files that a group has ----


@contextmanager
def _any_group(exam: Examination, file: str) -> Iterator[tuple[str, frozenset[str]]]:
    """Give a group that is not the top one, which lacks many files, and its files: one that has ``file``, if any has."""
    group = _unified_group(exam)
    known = {path: files for path in _groups(group) if (files := _files(path))}
    path = next((path for path, files in known.items() if file in files), next(iter(known), None))
    if path is not None:
        yield path, known[path]
        return
    with _new_group(group, exam.facts) as made:
        yield made, _files(made)


def _files(group: str) -> frozenset[str]:
    """Return the files of a group; none when it is gone by now, for then what was seen last may be half of it."""
    try:
        files = frozenset(os.listdir(group))
    except OSError:
        return frozenset()
    return files if os.path.isdir(group) else frozenset()


@contextmanager
def _new_group(parent: Group, facts: Facts) -> Iterator[str]:
    """Make a group for the length of the block."""
    path = f"{parent.path}/{_OURS}{os.getpid()}-{threading.get_native_id()}"
    try:
        os.mkdir(path)
    except OSError as error:
        raise Refused(said("mkdir", path, error.errno or 0), _write_refusal(parent, facts)) from error
    try:
        yield path
    finally:
        os.rmdir(path)


def _groups(group: Group) -> list[str]:
    found = [group.path] if group.path != group.top else []
    for directory in dict.fromkeys((group.path, group.top)):
        with suppress(OSError), os.scandir(directory) as entries:
            # Not those that other threads have made for a moment, to look at: their files may be going.
            found += [one.path for one in entries if one.is_dir(follow_symlinks=False) and not one.name.startswith(_OURS)]
    return found


def _group_file(file: str, exam: Examination) -> str:
    with _any_group(exam, file) as (path, files):
        if file not in files:
            need = Need(since={"cgroup.kill": "5.14", "cgroup.freeze": "5.2"}.get(file, ""))
            raise Refused(f"{path} has no {file}", refusals.without(need, exam.facts))
    return ""


def _freezer(exam: Examination) -> str:
    try:
        _group_file("cgroup.freeze", exam)
    except Refused:
        return _controller("freezer", exam)
    return "v2, cgroup.freeze"


def _memory_peak(exam: Examination) -> str:
    legacy = own_group(exam.facts.mounts, _entries(), "memory")
    if legacy is not None and os.path.exists(f"{legacy.path}/memory.max_usage_in_bytes"):
        return "v1, memory.max_usage_in_bytes"
    with _any_group(exam, "memory.current") as (path, files):
        if "memory.current" not in files:
            raise Refused("no group has memory.current", refusals.controller_not_enabled("memory", os.path.dirname(path)))
        if "memory.peak" not in files:
            raise Refused(f"{path} has no memory.peak", refusals.without(Need(since="5.19"), exam.facts))
    return "v2, memory.peak"


def _pressure(exam: Examination) -> str:
    try:
        with open("/proc/pressure/memory", "rb") as file:
            file.read()
    except FileNotFoundError as error:
        need = Need(since="4.20", option="CONFIG_PSI")
        raise Refused("there is no /proc/pressure", _pressure_refusal(need, exam.facts)) from error
    except OSError as error:
        by = Refusal("the boot: pressure is not measured (CONFIG_PSI_DEFAULT_DISABLED)", "the boot parameter psi=1")
        raise Refused(said("open", "/proc/pressure/memory", error.errno or 0), by) from error
    return "/proc/pressure"


def _pressure_refusal(need: Need, facts: Facts) -> Refusal:
    if facts.config("CONFIG_PSI") == "y":
        return Refusal("the boot: pressure is not measured", "the boot parameter psi=1")
    return refusals.without(need, facts)


# ---- birth ----


def _be_born(path: str, exam: Examination) -> None:
    """Start a process that is born in a group."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        builder = Builder()
        builder.cgroup = builder.declare(fd, "cgroup")
        attempt(exam.facts, builder)
    finally:
        os.close(fd)


def _clone_into(exam: Examination) -> str:
    """Be born in the caller's own group, and in a new one below it where one can be made."""
    group = _unified_group(exam)
    place = group.path
    try:
        _be_born(place, exam)
        if _may_write(group.path):
            with _new_group(group, exam.facts) as place:
                _be_born(place, exam)
    except SyscallError as error:
        reason = said(error.op, place, error.errno)
        if error.errno == ECHILD:
            by = (
                f"the kernel: the caller's group was killed once ({group.path}/cgroup.kill), and who it clones into others dies"
            )
            raise Refused(reason, Refusal(by, "start in a group that was never killed")) from error
        if error.errno in (EACCES, EPERM) and not _may_write(f"{group.path}/cgroup.procs"):
            raise Refused(reason, _write_refusal(group, exam.facts)) from error
        raise
    return group.path


def _clone_into_killed(exam: Examination) -> str:
    """Be born in a group to which cgroup.kill was written once, when nobody was in it.

    Some kernels compare how often that happened to the target with how often it happened to the group of the caller.
    """
    if not exam.found["CLONE_INTO_CGROUP"] or not exam.found["cgroup.kill"]:
        needed = next(exam.found[name] for name in ("CLONE_INTO_CGROUP", "cgroup.kill") if not exam.found[name])
        raise Refused(f"{needed.name}: {needed.reason}", Refusal(needed.refused_by, needed.remedy))
    with _new_group(_unified_group(exam), exam.facts) as path:
        with open(f"{path}/cgroup.kill", "wb", buffering=0) as file:
            file.write(b"1")
        try:
            _be_born(path, exam)
        except SyscallError as error:
            if error.errno != ECHILD:
                raise
            by = Refusal(
                "the kernel: who is cloned into a group that was killed once dies", "a new group after each cgroup.kill"
            )
            raise Refused("the process was killed at its birth", by) from error
    return ""


CGROUPS: Final = (
    Probe("cgroups", _mode),
    Probe("cgroup v2", _unified),
    Probe("cgroup delegation", _delegated),
    *(
        Probe(
            f"cgroup {name}",
            partial(_controller, name),
            Need(capability="CAP_BPF", option="CONFIG_CGROUP_BPF") if name == "devices" else NOTHING,
        )
        for name in CONTROLLERS
        if name != "freezer"
    ),
    Probe("cgroup freezer", _freezer),
    Probe("cgroup.kill", partial(_group_file, "cgroup.kill")),
    Probe("memory.peak", _memory_peak),
    Probe("pressure (PSI)", _pressure),
    Probe("CLONE_INTO_CGROUP", _clone_into, Need(since="5.7")),
    Probe("birth after cgroup.kill", _clone_into_killed, Need(since="5.14")),
)
