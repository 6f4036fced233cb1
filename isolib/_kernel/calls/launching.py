"""The calls of a launch, and what a launched process is fed and drained by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from isolib._kernel._ext import ffi, lib
from isolib._kernel.calls.checking import checked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolib._kernel.calls.batching import Batch

#: ``struct isolib_launch`` and ``isolib_pump``: what cffi makes has no type.
LaunchRequest: TypeAlias = Any
Pump: TypeAlias = Any

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
END_OOM: Final[int] = lib.ISOLIB_END_OOM

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
    #: Whether `run` waits until the command runs, and for the end of the supervisor, not only for its word.
    careful: bool = False
    #: What `run` does in the same call when the process and all that it left behind are gone.
    after: Batch | None = None


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
    request.careful = wanted.careful
    request.after = ffi.NULL if wanted.after is None else wanted.after.lend()
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
        if wanted.after is not None:
            wanted.after.returned()
        if result == 0:  # nothing to close or to free: each such call would give the GIL away once more
            ffi.gc(request, None)
            if pump.out.capacity <= _SHORT and pump.err.capacity <= _SHORT:
                ffi.gc(pump, None)
            return PUMP_DONE
        if result == 2:  # noqa: PLR2004 - as cdef.h says
            return checked("ppoll", "process", _negative_errno(pumped[0]))
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
    return checked("ppoll", "process", _negative_errno(lib.isolib_pump_run(pump, until, timeout_ns)))


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
