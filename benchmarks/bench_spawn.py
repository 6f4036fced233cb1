"""A full sandbox that runs /bin/true, beside the bare system calls (floor.c) and the other tools that make one.

Four questions, each answered with all contenders taking turns in one run:

- latency: how long is one sandbox, from Python?
- host size: does it depend on how much memory the host process has?
- busy: and beside two Python threads that compute?
- throughput: how many a second, from 1, 8 and 64 threads?
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Final

# Last: an installed isolib goes before the checkout, which has no compiled part.
sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from benchmarks import common
from benchmarks.common import Contender

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FLOOR: Final = "floor: one C call"
ISOLIB: Final = "isolib.run"
CRUN: Final = "subprocess, crun"
TRUE: Final = "/bin/true"
FOREIGN_IDS: Final = 0x70000000  # as floor.c
PRIVATE_TOP: Final = frozenset({"proc", "dev", "tmp", "root", "home", "lost+found"})
HOST_SIZES: Final = {"50 MB": 50 << 20, "1 GB": 1 << 30, "4 GB": 4 << 30}
_libc: Final = ctypes.CDLL(None, use_errno=True)


def command(*argv: str) -> Callable[[], None]:
    """Return a function that runs a command by `subprocess.run` and is content only with success."""

    def once() -> None:
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)

    return once


def bubblewrap() -> list[str]:
    """Return bwrap's way to say: a full sandbox."""
    own = ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/root", "--tmpfs", "/home"]
    return [
        "bwrap",
        "--unshare-all",
        "--unshare-user",
        "--ro-bind",
        "/",
        "/",
        *own,
        "--hostname",
        "sandbox",
        "--cap-drop",
        "ALL",
        TRUE,
    ]


def minijail() -> list[str]:
    """Return minijail0's way: a new root of binds, all namespaces but cgroup's in older versions."""
    binds = [word for name in top_directories() for word in ("-b", f"/{name}")]
    return [
        "minijail0",
        "-pvlerNU",
        "-m",
        f"0 {os.geteuid()} 1",
        "-M",
        f"0 {os.getegid()} 1",
        "-P",
        "/var/empty",
        *binds,
        "-t",
        TRUE,
    ]


def top_directories() -> list[str]:
    """Return the names of the directories of the host's root that a sandbox sees."""
    names = sorted(os.listdir("/"))
    return [name for name in names if name not in PRIVATE_TOP and os.path.isdir(f"/{name}") and not os.path.islink(f"/{name}")]


# ---- what programs do today: fork, and ctypes in the child ----


def _call(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"system call {number}")
    return result


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def fork_and_ctypes() -> None:
    """Make a full sandbox by os.fork and ctypes; the machine must be x86-64 or aarch64, whose newer calls share numbers."""
    (ready, say_ready), (go, say_go) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(say_go)  # else the parent's end would not be noticed
            _forked_child(say_ready, go)
        finally:
            os._exit(126)
    os.close(say_ready)
    try:
        if os.read(ready, 1):
            root = os.geteuid() == 0
            if not root:
                _write(f"/proc/{pid}/setgroups", "deny")
            _write(f"/proc/{pid}/uid_map", f"0 {FOREIGN_IDS if root else os.geteuid()} {65536 if root else 1}")
            _write(f"/proc/{pid}/gid_map", f"0 {FOREIGN_IDS if root else os.getegid()} {65536 if root else 1}")
            os.write(say_go, b"x")
    finally:
        for fd in (ready, go, say_go):
            os.close(fd)
        _, status = os.waitpid(pid, 0)
    if status:
        raise RuntimeError(f"the forked child failed with {os.waitstatus_to_exitcode(status)}")


def _forked_child(say_ready: int, go: int) -> None:
    everything = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
    if _libc.unshare(everything) != 0:
        os._exit(125)
    os.write(say_ready, b"x")
    os.read(go, 1)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 255)
    devices = {
        name: _call(428, -100, f"/dev/{name}".encode(), 1) for name in ("null", "zero", "full", "random", "urandom", "tty")
    }
    read_only = (ctypes.c_uint64 * 4)(1 | 2, 0, 1 << 18, 0)
    _call(442, -100, b"/", 0x8000, read_only, ctypes.sizeof(read_only))
    for kind, target in (
        (b"proc", b"/proc"),
        (b"tmpfs", b"/tmp"),
        (b"tmpfs", b"/root"),
        (b"tmpfs", b"/home"),
        (b"tmpfs", b"/dev"),
    ):
        if _libc.mount(kind, target, kind, 2, None) != 0:
            os._exit(124)
    for name, tree in devices.items():
        os.close(os.open(f"/dev/{name}", os.O_CREAT | os.O_WRONLY))
        _call(429, tree, b"", -100, f"/dev/{name}".encode(), 4)
    _libc.sethostname(b"sandbox", 7)
    _libc.prctl(38, 1, 0, 0, 0)
    os.execv(TRUE, [TRUE])  # noqa: S606 - a shell is not wanted


# ---- OCI runtimes ----


def oci_bundle(directory: str) -> str:
    """Write a bundle for the same sandbox: binds of the host's directories on an empty root."""
    rootfs = os.path.join(directory, "rootfs")
    for name in [*top_directories(), "proc", "dev", "tmp", "root", "home"]:
        os.makedirs(os.path.join(rootfs, name))
    for name in os.listdir("/"):
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}"), os.path.join(rootfs, name))
    subprocess.run(["runc", "spec"], cwd=directory, check=True)
    config_path = os.path.join(directory, "config.json")
    with open(config_path, encoding="utf-8") as file:
        config = json.load(file)
    config["process"].update(terminal=False, args=[TRUE], noNewPrivileges=True, capabilities={})
    config["root"] = {"path": "rootfs", "readonly": True}
    binds = [
        {"destination": f"/{name}", "type": "bind", "source": f"/{name}", "options": ["rbind", "ro", "nosuid"]}
        for name in top_directories()
    ]
    kept = [mount for mount in config["mounts"] if not mount["destination"].startswith("/sys")]
    for mount in kept:
        mount["options"] = [option for option in mount.get("options", []) if option != "gid=5"]
    own_tmp = {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev"]}
    config["mounts"] = [*binds, *kept, own_tmp]
    config["linux"].pop("resources", None)
    config["linux"]["namespaces"] = [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "user", "cgroup")]
    ids = [{"containerID": 0, "hostID": FOREIGN_IDS, "size": 65536}]
    config["linux"].update(uidMappings=ids, gidMappings=ids, cgroupsPath=f"isolib-bench-{os.getpid()}")
    with open(config_path, "w", encoding="utf-8") as file:
        json.dump(config, file)
    return directory


def oci_contenders(directory: str) -> list[Contender]:
    """Return runc and crun, which need root here and a bundle that runc writes."""
    state = os.path.join(directory, "state")
    bundle = os.path.join(directory, "bundle")

    def runtime(*words: str) -> Callable[[], None]:
        def once() -> None:
            if not os.path.isdir(bundle):
                os.mkdir(bundle)
                oci_bundle(bundle)
            argv = [*words, "--root", state, "run", "--bundle", bundle, f"isolib-bench-{os.getpid()}"]
            subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)

        return once

    return [Contender("subprocess, runc", runtime("runc")), Contender(CRUN, runtime("crun", "--cgroup-manager=disabled"))]


#: crun refuses hosts where cgroup v1 and v2 share the controllers, unless it does not see them.
WITHOUT_CGROUPS: Final = (
    *("unshare", "--mount", "--propagation", "private"),
    *("sh", "-c", 'mount -t tmpfs none /sys/fs/cgroup && exec "$@"', "sh"),
)


# ---- the contenders ----


def isolib_run(*, cwd: str | None) -> None:
    """Run the library's one-shot sandbox; `cwd` "/" has no layer over the working directory."""
    import isolib  # noqa: PLC0415 - whether it is there is the question

    done = isolib.run([TRUE]) if cwd is None else isolib.run([TRUE], cwd=cwd)
    if done.returncode != 0:
        raise RuntimeError(f"isolib.run: {done!r}")


def essential(floor: common.Floor) -> list[Contender]:
    """Return those that every question is asked of."""
    return [
        Contender(FLOOR, floor.sandbox),
        Contender(ISOLIB, lambda: isolib_run(cwd="/")),
        Contender("subprocess, bwrap", command(*bubblewrap())),
        Contender("os.fork, ctypes", fork_and_ctypes),
        Contender("subprocess, no sandbox", command(TRUE)),
    ]


def everyone(floor: common.Floor, directory: str) -> list[Contender]:
    """Return all contenders."""
    everything = [
        "--pid",
        "--net",
        "--ipc",
        "--mount",
        "--uts",
        "--user",
        "--cgroup",
        "--fork",
        "--map-root-user",
        "--mount-proc",
    ]
    binds = [word for name in top_directories() for word in ("-R", f"/{name}")]
    return [
        *essential(floor),
        Contender("isolib.run, layer over cwd", lambda: isolib_run(cwd=None)),
        Contender("floor, single bind of /", lambda: floor.sandbox(common.HOST_ROOT_BIND)),
        Contender("floor, / in place", lambda: floor.sandbox(common.IN_PLACE)),
        Contender("floor, host's network", lambda: floor.sandbox(common.NO_NET)),
        Contender("subprocess, floor", command(floor.program, "--run", TRUE)),
        Contender("subprocess, unshare (proc only)", command("unshare", *everything, TRUE)),
        Contender("subprocess, minijail0", command(*minijail())),
        Contender("subprocess, nsjail", command("nsjail", "-Mo", "--really_quiet", *binds, "-T", "/tmp", "--", TRUE)),
        *oci_contenders(directory),
    ]


# ---- the questions ----


def latency(floor: common.Floor, directory: str, *, quick: bool) -> dict[str, object]:
    """Measure one sandbox at a time."""
    with contextlib.ExitStack() as stack:
        wanted = everyone(floor, directory)
        if os.geteuid() == 0:
            apart = stack.enter_context(contextlib.closing(host(directory, 0, *WITHOUT_CGROUPS)))
            wanted.append(apart.contender(CRUN, f"{CRUN}, sees no cgroups"))
        contenders, absent = common.present(wanted)
        timings = common.interleave(contenders, 10 if quick else 200)
    common.table("One full sandbox with /bin/true in it", timings, FLOOR)
    return common.answer(timings, absent)


def host(directory: str, size: int, *before: str) -> common.Host:
    """Start another run of this file, which serves; `before` are the words before its command."""
    return common.Host(*before, sys.executable, os.path.abspath(__file__), "--serve", str(size), directory)


def host_size(directory: str, *, quick: bool) -> dict[str, object]:
    """Measure from host processes of several sizes, which take turns as the contenders do."""
    sizes = {label: size for label, size in HOST_SIZES.items() if size * 3 < common.memory_available()}
    skipped = {label: "not enough memory" for label in HOST_SIZES if label not in sizes}
    with contextlib.ExitStack() as stack:
        names = [FLOOR, ISOLIB, "subprocess, no sandbox", "os.fork, ctypes"]
        hosts = {label: stack.enter_context(contextlib.closing(host(directory, size))) for label, size in sizes.items()}
        wanted = [one.contender(name, f"{name}, {label}") for name in names for label, one in hosts.items()]
        contenders, absent = common.present(wanted)
        timings = common.interleave(contenders, 5 if quick else 100)
    for name in names:
        common.table(
            f"From hosts of several sizes: {name}",
            [one for one in timings if one.name.startswith(f"{name}, ")],
            f"{name}, 50 MB",
        )
    return common.answer(timings, {**absent, **skipped})


def busy(floor: common.Floor, *, quick: bool) -> dict[str, object]:
    """Measure beside two Python threads that compute: what is paid is each return to the interpreter."""
    contenders, absent = common.present(essential(floor))
    with common.busy_threads(2):
        timings = common.interleave(contenders, 5 if quick else 60)
    common.table("Beside two busy Python threads", timings, FLOOR)
    return common.answer(timings, absent)


def throughput(floor: common.Floor, *, quick: bool) -> dict[str, object]:
    """Measure sandboxes a second; the best and the median of several turns."""
    seconds, rounds, counts = (0.5, 1, (1, 8)) if quick else (2.0, 5, (1, 8, 64))
    threaded, absent = common.present([one for one in essential(floor) if one.name in {FLOOR, ISOLIB, "subprocess, bwrap"}])
    own = "floor: its own threads"
    rates: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for threads in counts:
            rates.setdefault((own, threads), []).append(
                floor.report("--threads", str(threads), "--seconds", str(seconds))["per_second"]
            )
            for one in threaded:
                rates.setdefault((one.name, threads), []).append(common.per_second(one.once, threads, seconds))
    print(
        f"\nSandboxes a second, best (median) of {rounds} turns\n{'threads':24}" + "".join(f"{count:>16}" for count in counts)
    )
    for name in [own, *(one.name for one in threaded)]:
        cells = [sorted(rates[name, count]) for count in counts]
        print(f"{name:24}" + "".join(f"{f'{cell[-1]:.0f} ({cell[len(cell) // 2]:.0f})':>16}" for cell in cells))
    common.tell_absent(absent)
    return {
        "rates": [{"name": name, "threads": count, "per_second": rate} for (name, count), rate in rates.items()],
        "absent": absent,
    }


QUESTIONS: Final = ("latency", "host-size", "busy", "throughput")


def ask(questions: Sequence[str], *, quick: bool) -> dict[str, object]:
    """Answer the questions, with everything that this needs in a directory that is removed."""
    with tempfile.TemporaryDirectory(prefix="isolib-bench-") as directory:
        os.chmod(directory, 0o755)  # a root without power over it must be able to look inside  # noqa: S103
        floor = common.compile_floor(directory)
        answers: dict[str, Callable[[], dict[str, object]]] = {
            "latency": lambda: latency(floor, directory, quick=quick),
            "host-size": lambda: host_size(directory, quick=quick),
            "busy": lambda: busy(floor, quick=quick),
            "throughput": lambda: throughput(floor, quick=quick),
        }
        return {question: answers[question]() for question in questions}


def main() -> None:
    """Measure and report."""
    parser = common.arguments(__doc__)
    parser.add_argument("--serve", nargs=2, metavar=("BYTES", "DIRECTORY"), help="be a host process of that size")
    options = common.parse(parser, QUESTIONS)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if options.serve:
        size, directory = options.serve
        contenders = [*essential(common.load_floor(directory)), *oci_contenders(directory)]
        common.serve(contenders, int(size))
        return
    missing = [tool for tool in ("cc", "bwrap") if shutil.which(tool) is None]
    if missing:
        print(f"without {', '.join(missing)} (apt-get install gcc bubblewrap crun runc) there is less to compare with")
    common.write_json(options.json, ask(options.questions, quick=options.quick))


if __name__ == "__main__":
    main()
