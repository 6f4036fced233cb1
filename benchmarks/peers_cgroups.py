"""The peers of bench_cgroups.py: the Python packages that make control groups, and the programs that run a command in one."""

from __future__ import annotations

import json
import os
import subprocess
import time
from typing import TYPE_CHECKING, Any, Final

from benchmarks import bench_spawn, common
from benchmarks.common import Contender

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TRUE: Final = "/bin/true"
MEMORY, CPU, PIDS = 64 << 20, 0.5, 64
#: Seconds of idleness that let the kernel's RCU go idle too: what waits for it costs most then.
IDLE: Final = 0.03


# ---- the peers, which may live in another environment ----


def _benchexec_group() -> Any:  # noqa: ANN401 - it has no types
    from benchexec.cgroups import Cgroups  # type: ignore[import-not-found]  # noqa: PLC0415

    found = Cgroups.initialize()
    wanted = {"memory", "cpu", "pids", "cpuacct", "freezer"} & set(found.subsystems)
    if missing := {"memory", "cpu", "pids"} - wanted:
        raise RuntimeError(f"BenchExec finds no {', '.join(sorted(missing))} here")
    group = found.create_fresh_child_cgroup(wanted)
    group.write_memory_limit(MEMORY)
    if group.version == 1:
        group.set_value("cpu", "cfs_quota_us", "50000")
    else:
        group.set_value("cpu", "max", "50000 100000")
    group.set_value("pids", "max", str(PIDS))
    return group


def benchexec_group() -> None:
    """Make a group, remove it."""
    _benchexec_group().remove()


def benchexec_life() -> None:
    """Do the same with a process in it, which enters as BenchExec lets its own enter: after a fork, before the exec."""
    group = _benchexec_group()
    try:
        subprocess.Popen([TRUE], preexec_fn=lambda: group.add_task(os.getpid())).wait()  # noqa: PLW1509
        group.read_cputime()
        group.read_max_mem_usage()
        group.kill_all_tasks()
    finally:
        group.remove()


_executors: Final[list[Any]] = []


def benchexec_run() -> None:
    """Run a command within limits as BenchExec offers it to programs, without its container."""
    from benchexec.runexecutor import RunExecutor  # type: ignore[import-not-found]  # noqa: PLC0415

    if not _executors:
        _executors.append(RunExecutor(use_namespaces=False))
    result = _executors[0].execute_run([TRUE], os.devnull, memlimit=MEMORY, hardtimelimit=60, write_header=False)
    if "memory" not in result:
        raise RuntimeError(f"BenchExec kept no limit: {result}")


def _cgroupspy_groups() -> list[tuple[Any, Any]]:
    from cgroupspy.trees import Tree  # type: ignore[import-not-found]  # noqa: PLC0415

    tree, made = Tree(), []
    for name in ("memory", "cpu", "pids"):
        parent = tree.get_node_by_path(f"/{name}/")
        if parent is None:
            raise RuntimeError(f"cgroupspy, which knows cgroup v1 only, finds no {name} here")
        group = parent.create_cgroup(f"isolib-bench-{os.getpid()}")
        made.append((parent, group))
        if name == "memory":
            group.controller.limit_in_bytes = MEMORY
        elif name == "cpu":
            group.controller.cfs_quota_us = 50000
        else:  # it has no controller of this name
            with open(os.path.join(os.fsdecode(group.full_path), "pids.max"), "w", encoding="ascii") as file:
                file.write(str(PIDS))
    return made


def cgroupspy_group() -> None:
    """Make a group, remove it."""
    for parent, group in _cgroupspy_groups():
        parent.delete_cgroup(os.fsdecode(group.name))


def cgroupspy_life() -> None:
    """Do the same with a process in it, which is moved there after its birth: cgroupspy has no other way."""
    groups = _cgroupspy_groups()
    try:
        process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        for _, group in groups:
            with open(os.path.join(os.fsdecode(group.full_path), "cgroup.procs"), "w", encoding="ascii") as file:
                file.write(str(process.pid))
        process.communicate()
    finally:
        for parent, group in groups:
            parent.delete_cgroup(os.fsdecode(group.name))


RUNNER: Final = "BenchExec, RunExecutor: memory only"
PEERS: Final = {
    "BenchExec": (benchexec_group, benchexec_life),
    "cgroupspy": (cgroupspy_group, cgroupspy_life),
}


def from_idle(once: Callable[[], object]) -> Callable[[], int]:
    """Return a function that waits before it does something, and measures without the wait."""

    def waited() -> int:
        time.sleep(IDLE)
        start = time.perf_counter_ns()
        result = once()
        return result if isinstance(result, int) else time.perf_counter_ns() - start

    return waited


def peers(host: common.Host, which: int) -> list[Contender]:
    """Return the peers that are Python packages, in a process of the interpreter that has them."""
    whole = [host.contender(f"{RUNNER} 1", RUNNER)] if which else []
    return [host.contender(f"{name} {which}", name) for name in PEERS] + whole


def serve() -> None:
    """Be the process of the peers."""
    known = [Contender(f"{name} {which}", once) for name, both in PEERS.items() for which, once in enumerate(both)]
    common.serve([*known, Contender(f"{RUNNER} 1", benchexec_run)], 0)


def tools(directory: str) -> list[Contender]:
    """Return the programs that make a group with limits and run a command in it."""
    bundle = os.path.join(directory, "bundle")

    def runtime(*words: str) -> Callable[[], None]:
        def once() -> None:
            if not os.path.isdir(bundle):
                os.mkdir(bundle)
                _limited_bundle(bundle)
            state = os.path.join(directory, "state")
            _quiet([*words, "--root", state, "run", "--bundle", bundle, f"isolib-bench-{os.getpid()}"])

        return once

    scope = ["systemd-run", "--scope", "--quiet", "-p", f"MemoryMax={MEMORY}", "-p", "CPUQuota=50%", "-p", f"TasksMax={PIDS}"]
    return [
        Contender("subprocess, runc", runtime("runc")),
        Contender("subprocess, crun", runtime("crun")),
        Contender("subprocess, systemd-run", lambda: _quiet([*scope, TRUE])),
    ]


def _quiet(argv: Sequence[str]) -> None:
    done = subprocess.run(argv, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise RuntimeError(done.stdout.decode(errors="replace").strip() or f"exit status {done.returncode}")


def _limited_bundle(bundle: str) -> None:
    """Write a bundle with the three limits and as few namespaces as there can be."""
    bench_spawn.oci_bundle(bundle)
    path = os.path.join(bundle, "config.json")
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    for name in ("uidMappings", "gidMappings"):
        del config["linux"][name]
    del config["hostname"]
    config["mounts"] = [one for one in config["mounts"] if one["type"] in {"bind", "proc", "tmpfs"}]
    config["linux"]["namespaces"] = [{"type": "mount"}, {"type": "pid"}]
    config["linux"]["resources"] = {
        "memory": {"limit": MEMORY},
        "cpu": {"quota": 50000, "period": 100000},
        "pids": {"limit": PIDS},
    }
    with open(path, "w", encoding="utf-8") as file:
        json.dump(config, file)
