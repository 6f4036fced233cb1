"""The typed face of the compiled extension, and its one importer.

Every function here is one system call (or the one call of a launch); a refusal becomes a :class:`~isolib.errors.SyscallError`
that names the call and its object.  Constants come from the compiler by way of the extension, or are kernel ABI that no header
of an older distribution has yet.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from errno import EINVAL
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from isolib._kernel._ext import ffi, lib
from isolib._kernel.abi import *  # noqa: F403 - they are this module's constants
from isolib._kernel.abi import (
    FSMOUNT_CLOEXEC,
    FSOPEN_CLOEXEC,
    MOVE_MOUNT_F_EMPTY_PATH,
    MOVE_MOUNT_T_EMPTY_PATH,
    NAMESPACE_FLAGS,
    NS_GET_PARENT,
    NS_GET_USERNS,
    OPEN_TREE_CLOEXEC,
    PIDFD_NAMESPACE,
)
from isolib._kernel.handle import Fd
from isolib._kernel.hints import hint
from isolib.errors import ThreadStranded, from_errno

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from isolib.errors import SyscallError

#: ``struct isolib_launch``, ``isolib_pump`` and ``isolib_stay``: what cffi makes has no type.
LaunchRequest: TypeAlias = Any
Pump: TypeAlias = Any
Stay: TypeAlias = Any

NO_SLOT: Final[int] = lib.ISOLIB_NO_SLOT
MAX_STEPS: Final[int] = lib.ISOLIB_MAX_STEPS
MAX_SLOTS: Final[int] = lib.ISOLIB_MAX_SLOTS
MAX_KEEP: Final[int] = lib.ISOLIB_MAX_KEEP - 3
MAX_PLAN: Final[int] = lib.ISOLIB_MAX_PLAN
PLAN_MAGIC: Final[int] = lib.ISOLIB_PLAN_MAGIC
PLAN_VERSION: Final[int] = lib.ISOLIB_PLAN_VERSION

STDIO_INHERIT: Final[int] = lib.ISOLIB_STDIO_INHERIT
STDIO_PIPE: Final[int] = lib.ISOLIB_STDIO_PIPE
STDIO_NULL: Final[int] = lib.ISOLIB_STDIO_NULL
STDIO_STDOUT: Final[int] = lib.ISOLIB_STDIO_STDOUT

#: The number of the terminal among the streams of a launch; the others have those that they have in the process.
TERMINAL: Final = 3

END_DEADLINE: Final[int] = lib.ISOLIB_END_DEADLINE
END_KILLED: Final[int] = lib.ISOLIB_END_KILLED

PUMP_DONE: Final[int] = lib.ISOLIB_PUMP_DONE
PUMP_TIMEOUT: Final[int] = lib.ISOLIB_PUMP_TIMEOUT
PUMP_SIGNAL: Final[int] = lib.ISOLIB_PUMP_SIGNAL
PUMP_OVERFLOW: Final[int] = lib.ISOLIB_PUMP_OVERFLOW
UNTIL_EXIT: Final[int] = lib.ISOLIB_UNTIL_EXIT
UNTIL_STREAMS: Final[int] = lib.ISOLIB_UNTIL_STREAMS

#: An output up to this size lies in the pump itself.
_SHORT: Final[int] = len(ffi.new("struct isolib_stream *").first)

STAGES: Final = ("host", "first", "inside", "command")


def step_kinds() -> dict[str, int]:
    """Return the number of each kind of step, by its name without the prefix: ``{"CLONE": 1, ...}``."""
    return {name[5:]: getattr(lib, name) for name in dir(lib) if name.startswith("STEP_") and name != "STEP_KINDS"}


def _checked(op: str, target: str | None, result: int) -> int:
    if result < 0:
        raise _refusal(op, target, ffi.errno)
    return result


def _taken(op: str, target: str, made: Fd | None) -> Fd:
    if made is None:
        raise _refusal(op, target, ffi.errno)
    return made


def _refusal(op: str, target: str | None, errno: int) -> SyscallError:
    return from_errno(op, target, errno, hint(op, errno, target))


def _path(value: str | bytes) -> bytes:
    return os.fsencode(value)


def setns(fd: int, kinds: int, target: str) -> None:
    """Move the calling thread into a namespace: setns(2)."""
    _checked("setns", target, lib.isolib_setns(fd, kinds))


def unshare(flags: int, target: str) -> None:
    """Give the calling thread new namespaces (or a file-system context of its own): unshare(2)."""
    _checked("unshare", target, lib.isolib_unshare(flags))


def namespace_owner(fd: int) -> Fd:
    """Return the user namespace that owns this namespace: ioctl_nsfs(2), NS_GET_USERNS."""
    return _taken("ioctl NS_GET_USERNS", "namespace", Fd.take(lib.isolib_ns_ioctl_fd, fd, NS_GET_USERNS))


def namespace_parent(fd: int) -> Fd:
    """Return the parent of a user or pid namespace: ioctl_nsfs(2), NS_GET_PARENT."""
    return _taken("ioctl NS_GET_PARENT", "namespace", Fd.take(lib.isolib_ns_ioctl_fd, fd, NS_GET_PARENT))


def namespace_flag(fd: int) -> int:
    """Return the clone flag that tells the namespace's kind: ioctl_nsfs(2), NS_GET_NSTYPE."""
    return _checked("ioctl NS_GET_NSTYPE", "namespace", lib.isolib_ns_kind(fd))


def pidfd_namespace(pidfd: int, kind: str) -> int:
    """Return a descriptor of a process's namespace without /proc: ioctl_pidfd(2), since Linux 6.11."""
    return _checked(
        f"ioctl PIDFD_GET_{kind.upper()}_NAMESPACE", "pidfd", lib.isolib_pidfd_namespace(pidfd, PIDFD_NAMESPACE[kind])
    )


def take_namespace(pidfd: int, kind: str) -> Fd:
    """As `pidfd_namespace`, owned from the first moment on."""
    made = Fd.take(lib.isolib_pidfd_namespace, pidfd, PIDFD_NAMESPACE[kind])
    return _taken(f"ioctl PIDFD_GET_{kind.upper()}_NAMESPACE", "pidfd", made)


# Of the calling thread: /proc/self would be the main thread.
_OWN_FILES: Final = {kind: f"/proc/thread-self/ns/{kind}".encode() for kind in NAMESPACE_FLAGS}

_NEW_STAGES: Final = {
    lib.ISOLIB_NEW_OPEN: "open",
    lib.ISOLIB_NEW_WAY_BACK: "setns",
    lib.ISOLIB_NEW_UNSHARE: "unshare",
    lib.ISOLIB_NEW_LINK_UP: "ioctl SIOCSIFFLAGS",
    lib.ISOLIB_NEW_HOSTNAME: "sethostname",
    lib.ISOLIB_NEW_DOMAINNAME: "setdomainname",
    lib.ISOLIB_NEW_REOPEN: "open",
    lib.ISOLIB_NEW_RETURN: "setns",
}


def new_namespace(kind: str, *, lo: bool = False, hostname: str | None = None, domainname: str | None = None) -> Fd:
    """Make a net, uts, ipc or cgroup namespace; the calling thread is in it meanwhile, and where it was afterwards.

    Raises
    ------
    ThreadStranded
        The thread could not go back. For every other failure it has.
    """
    stage = ffi.new("int32_t *")
    names = [ffi.NULL if name is None else ffi.new("char[]", os.fsencode(name)) for name in (hostname, domainname)]
    made = Fd.take(lib.isolib_namespace_new, NAMESPACE_FLAGS[kind], _OWN_FILES[kind], int(lo), *names, stage)
    if made is not None:
        return made
    error = from_errno(_NEW_STAGES[stage[0]], f"new {kind} namespace", ffi.errno)
    if stage[0] == lib.ISOLIB_NEW_RETURN:
        raise ThreadStranded(f"the thread stays in a new {kind} namespace") from error
    raise error


def new_stay(kind: str) -> Stay:
    """Return an empty ``struct isolib_stay``; what it holds is closed with it."""
    return ffi.gc(ffi.new("struct isolib_stay *", (NAMESPACE_FLAGS[kind], -1)), lib.isolib_stay_forget)


def begin_stay(stay: Stay, fd: int, kind: str, target: str) -> None:
    """Move the calling thread into a namespace that it can come back from; the stay knows the way back from before that on."""
    result = lib.isolib_stay_begin(stay, fd, _OWN_FILES[kind])
    if result < 0:
        errno = ffi.errno
        where = f"{target}, the way back" if result == -2 else target  # noqa: PLR2004 -- as cdef.h says
        raise from_errno("open" if result == -1 else "setns", where, errno)


def end_stay(stay: Stay, target: str) -> None:
    """Move the calling thread back; again is nothing."""
    _checked("setns", target, lib.isolib_stay_end(stay))


#: A number that no other native thread of this process has, had or will have.
thread_number: Final[Callable[[], int]] = lib.isolib_thread_number


def fs_magic(fd: int) -> int:
    """Return the type of the file system that a descriptor lies in: fstatfs(2)."""
    return _checked("fstatfs", f"fd {fd}", lib.isolib_fs_magic(fd))


def openat2(dir_fd: int, path: str, flags: int, *, mode: int = 0, resolve: int = 0) -> int:
    """Open a file with restricted path resolution: openat2(2)."""
    return _checked("openat2", path, lib.isolib_openat2(dir_fd, _path(path), flags | os.O_CLOEXEC, mode, resolve))


def open_tree(dir_fd: int, path: str, flags: int) -> int:
    """Open, or clone as a detached mount, what is mounted at a path: open_tree(2)."""
    return _checked("open_tree", path or f"fd {dir_fd}", lib.isolib_open_tree(dir_fd, _path(path), flags | OPEN_TREE_CLOEXEC))


def move_mount(from_fd: int, to_fd: int, to_path: str, target: str) -> None:
    """Attach a detached mount: move_mount(2)."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | (0 if to_path else MOVE_MOUNT_T_EMPTY_PATH)
    _checked("move_mount", target, lib.isolib_move_mount(from_fd, b"", to_fd, _path(to_path), flags))


def fsopen(fs_type: str) -> int:
    """Begin to make a file system: fsopen(2)."""
    return _checked("fsopen", fs_type, lib.isolib_fsopen(fs_type.encode(), FSOPEN_CLOEXEC))


def fsconfig(fd: int, command: int, key: str | None = None, value: str | None = None, aux: int = 0) -> None:
    """Set an option of a file system being made, or create it: fsconfig(2)."""
    encoded = ffi.NULL if key is None else ffi.new("char[]", _path(key))
    text = ffi.NULL if value is None else ffi.new("char[]", _path(value))
    _checked("fsconfig", key or "create", lib.isolib_fsconfig(fd, command, encoded, text, aux))


def fsmount(fd: int, attributes: int = 0) -> int:
    """Return the detached mount of a created file system: fsmount(2)."""
    return _checked("fsmount", f"fd {fd}", lib.isolib_fsmount(fd, FSMOUNT_CLOEXEC, attributes))


def mount_setattr(
    fd: int, path: str, *, flags: int, set_: int = 0, clear: int = 0, propagation: int = 0, userns: int = -1
) -> None:
    """Change properties of a mount or a tree of them: mount_setattr(2)."""
    result = lib.isolib_mount_setattr(fd, _path(path), flags, set_, clear, propagation, userns)
    _checked("mount_setattr", path or f"fd {fd}", result)


def mount(source: str, target: str, fs_type: str, flags: int, data: str | None = None) -> None:
    """Mount in the old way: mount(2)."""
    text = ffi.NULL if data is None else ffi.new("char[]", _path(data))
    _checked("mount", target, lib.isolib_mount(_path(source), _path(target), fs_type.encode(), flags, text))


def umount(target: str, flags: int = 0) -> None:
    """Unmount: umount2(2)."""
    _checked("umount2", target, lib.isolib_umount2(_path(target), flags))


def clone3() -> bool:
    """Return whether clone3(2) can be called: a filter may answer ENOSYS to it, and so do kernels before 5.3.

    Raises
    ------
    SyscallError
        With ENOSYS, or with what a filter answers instead.
    """
    if lib.isolib_clone3_size() < 0 and ffi.errno != EINVAL:
        raise from_errno("clone3", None, ffi.errno)
    return True


def landlock_abi() -> int:
    """Return the version of Landlock's interface: landlock_create_ruleset(2), LANDLOCK_CREATE_RULESET_VERSION."""
    return _checked("landlock_create_ruleset", None, lib.isolib_landlock_abi())


def security_modules() -> list[int]:
    """Return the LSM_ID_* of the active security modules, in their order: lsm_list_modules(2), since Linux 6.8."""
    ids = ffi.new("uint64_t[64]")
    count = _checked("lsm_list_modules", None, lib.isolib_security_modules(ids, len(ids)))
    return [int(ids[index]) for index in range(count)]


_BPF_ALLOW: Final = (0x00000001000000B7, 0x0000000000000095)  # r0 = 1; exit


def bpf_device_program(instructions: Sequence[int] = _BPF_ALLOW) -> int:
    """Load a program that decides about access to devices in a cgroup of v2, by default one that allows all: bpf(2).

    Returns its descriptor.  It decides nothing before it is attached to a group.
    """
    return _checked("bpf", "BPF_PROG_TYPE_CGROUP_DEVICE", lib.isolib_bpf_device_program(list(instructions), len(instructions)))


def pidfd_send_signal(pidfd: int, signal: int, target: str) -> None:
    """Send a signal to the process behind a pidfd: pidfd_send_signal(2)."""
    _checked("pidfd_send_signal", target, lib.isolib_pidfd_send_signal(pidfd, signal))


def pty_size(fd: int, rows: int, columns: int) -> None:
    """Set the size of a terminal: ioctl_tty(2), TIOCSWINSZ."""
    _checked("ioctl TIOCSWINSZ", f"fd {fd}", lib.isolib_pty_size(fd, rows, columns))


def seal_launcher(path: str) -> Fd:
    """Return a sealed memory file with the launcher's image: memfd_create(2), F_ADD_SEALS."""
    return _taken("memfd_create", path, Fd.take(lib.isolib_launcher_seal, _path(path)))


@dataclass(eq=False)
class LaunchRefused(Exception):
    """A step of a launch failed: which, with what errno, in which stage, in which system call (None: the step's own)."""

    step: int
    errno: int
    stage: str
    call: str | None


def new_launch() -> LaunchRequest:
    """Return an empty ``struct isolib_launch``; what it comes to own is closed with it."""
    empty = {"status": -1, "pidfd": -1, "command": -1, "pty": -1, "pipes": [-1, -1, -1]}
    return ffi.gc(ffi.new("struct isolib_launch *", empty), lib.isolib_launch_forget)


def launch_stream(request: LaunchRequest, stream: int) -> int:
    """Return the descriptor of one of the pipes of a launch, 0 to 2, or of its terminal, 3; or -1."""
    return int(request.pty if stream == TERMINAL else request.pipes[stream])


def close_stream(request: LaunchRequest, stream: int) -> None:
    """Close one of the pipes of a launch, 0 to 2, or its terminal, 3; again is nothing."""
    lib.isolib_launch_close(request, stream)


def abort_launch(request: LaunchRequest) -> None:
    """End what a launch has started, wait for its end, reap it where that is this process's part, and close everything."""
    lib.isolib_launch_abort(request)


def forget_launch(request: LaunchRequest) -> None:
    """Close what a launch has given, in one call; the supervisor sees that, and ends what still runs."""
    lib.isolib_launch_forget(request)


class Launch(NamedTuple):
    """What a launch needs, as `launch` and `run` hand it to the extension."""

    image: int
    image_path: bytes
    plan: bytes
    slots: Sequence[int]
    keep: Sequence[int]
    stdio: Sequence[int]
    host: int
    proc: int
    #: Whom the pipes are given to: user and group id, as this process sees them.
    stream_owner: tuple[int, int] | None = None
    #: What the plan was made for: the working directory and the time of the last change of "/".
    premises: tuple[bytes, int] | None = None


def _fill(request: LaunchRequest, wanted: Launch) -> tuple[object, ...]:
    """Fill the C structure; what is returned must live as long as it is used."""
    path = ffi.new("char[]", wanted.image_path)
    steps = ffi.from_buffer("uint8_t[]", wanted.plan)
    slots = ffi.new("int32_t[]", wanted.slots)
    keep = ffi.new("int32_t[]", wanted.keep)
    where = ffi.NULL
    request.launcher, request.launcher_path = wanted.image, path
    request.plan, request.plan_size = steps, len(wanted.plan)
    request.slots, request.slot_count = slots, len(wanted.slots)
    request.keep, request.keep_count = keep, len(wanted.keep)
    request.stdio = wanted.stdio
    request.stream_owner = wanted.stream_owner or (lib.ISOLIB_NOBODY, lib.ISOLIB_NOBODY)
    request.host, request.proc = wanted.host, wanted.proc
    if wanted.premises is not None:
        where = ffi.new("char[]", wanted.premises[0])
        request.premise_cwd, request.premise_root_ns = where, wanted.premises[1]
    return path, steps, slots, keep, where


def launch(request: LaunchRequest, wanted: Launch) -> None:
    """Start a process by the launcher: one call without the GIL, resumed when a signal handler has to run in between.

    The descriptors of the result stand in ``request``; whatever is raised here, it owns none afterwards.
    """
    alive = _fill(request, wanted)
    try:
        _until_launched(request, lib.isolib_launch(request))
    except BaseException:
        lib.isolib_launch_abort(request)
        raise
    del alive


def _until_launched(request: LaunchRequest, result: int) -> None:
    while result == 1:  # between two calls Python runs its signal handlers
        result = lib.isolib_launch_wait(request)
    if result < 0:
        raise _refused(request.step, request.error, request.stage, request.call)


def _refused(step: int, errno: int, stage: int, number: int) -> LaunchRefused:
    name = lib.isolib_call_name(number) if number else ffi.NULL
    return LaunchRefused(step, errno, STAGES[stage], None if name == ffi.NULL else ffi.string(name).decode())


def heard_failure(pump: Pump) -> LaunchRefused | None:
    """Return what the launcher told a pump of a step that failed, or None."""
    if not pump.has_failure:
        return None
    told = pump.failure
    return _refused(told.step, told.error, told.stage, told.call)


def run(request: LaunchRequest, pump: Pump, wanted: Launch, timeout_ns: int) -> int:
    """Run a process to its end in one call without the GIL; returns what `pump_run` would.

    With PUMP_DONE ``request`` owns nothing any more; else the process runs, and is the caller's to go on with.
    """
    alive = _fill(request, wanted)
    pumped = ffi.new("int32_t *")
    try:
        result = lib.isolib_run(request, pump, timeout_ns, pumped)
        if result == 0:  # nothing to close or to free: each such call would give the GIL away once more
            ffi.gc(request, None)
            if pump.out.capacity <= _SHORT and pump.err.capacity <= _SHORT:
                ffi.gc(pump, None)
            return PUMP_DONE
        if result == 2:  # noqa: PLR2004 - as cdef.h says
            return _checked("ppoll", "process", _negative_errno(pumped[0]))
        _until_launched(request, result)
        pump_attach(pump, request)
    except BaseException:
        lib.isolib_launch_abort(request)
        raise
    del alive
    return PUMP_SIGNAL


def new_pump() -> Pump:
    """Return an empty ``struct isolib_pump``; its streams are closed and its buffers freed with it."""
    pump = ffi.new("struct isolib_pump *", {"status": -1, "pidfd": -1, "stdin_fd": -1})
    pump.out.fd = pump.err.fd = -1
    pump.out.limit = pump.err.limit = (1 << 64) - 1
    return ffi.gc(pump, lib.isolib_pump_free)


def pump_watch(pump: Pump, request: LaunchRequest) -> None:
    """Point a pump at a launched process, and leave the streams alone."""
    pump.status, pump.pidfd = request.status, request.pidfd
    pump.has_exit, pump.exit = request.has_exit, request.exit


def pump_attach(pump: Pump, request: LaunchRequest) -> None:
    """Point a pump at a launched process, and hand it the pipes that are still the launch's, in one call."""
    lib.isolib_pump_attach(pump, request)


def pump_input(data: bytes | bytearray | memoryview) -> Any:
    """Return the C view of the input bytes; the caller keeps it alive while the pump runs."""
    return ffi.from_buffer("uint8_t[]", data)


def pump_close(pump: Pump) -> None:
    """Close the streams of a pump, in one call."""
    lib.isolib_pump_close(pump)


def pump_run(pump: Any, until: int, timeout_ns: int) -> int:
    """Run the pump; returns PUMP_DONE, PUMP_TIMEOUT, PUMP_SIGNAL or PUMP_OVERFLOW."""
    return _checked("ppoll", "process", _negative_errno(lib.isolib_pump_run(pump, until, timeout_ns)))


def _negative_errno(result: int) -> int:
    if result < 0:
        ffi.errno = -result
    return result


def stream_bytes(stream: Any) -> bytes:
    """Copy out what a stream of the pump has captured."""
    return bytes(ffi.buffer(stream.data, stream.size)) if stream.size else b""


def reap(pidfd: int) -> None:
    """Reap the process if it has become this one's child (PID 1, child subreaper); nothing otherwise."""
    lib.isolib_reap(pidfd)


def say(status: int, *, hide: bool = False) -> None:
    """Tell a supervisor to end everything, or to hide itself; one that is gone hears nothing."""
    word = lib.ISOLIB_SAY_HIDE if hide else lib.ISOLIB_SAY_END
    lib.isolib_say(status, word)
