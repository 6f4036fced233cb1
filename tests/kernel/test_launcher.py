"""The launcher as a program: what it is made of, what it refuses to read, and how it is found and started."""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import re
import socket
import struct
import subprocess
import sys
import textwrap
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from isolib import PIPE, SetupFailed, spawn
from isolib._kernel import calls
from isolib._kernel.assembly import Rights
from isolib._kernel.launch import ground, launch
from isolib._kernel.plan import HOLD, INSIDE, Builder, Step
from isolib._kernel.request import Request
from isolib.process import Process
from tests.seccomp import Denied, deny

if TYPE_CHECKING:
    from collections.abc import Iterator

LAUNCHER = Path(os.fsdecode(ground().image_path))
ALL_KINDS = {"user", "pid", "mnt", "net", "ipc", "uts", "cgroup", "time"}

# ---- what it is made of: elf(5) ----

LOAD, DYNAMIC, INTERPRETER, STACK = 1, 2, 3, 0x6474E551
EXECUTE, WRITE = 1, 2
MACHINES = {"x86_64": 62, "aarch64": 183}


class Segment(NamedTuple):
    """A program header of a 64-bit ELF file."""

    type: int
    flags: int
    offset: int
    address: int
    physical: int
    file_size: int
    memory_size: int
    alignment: int


class Elf:
    """The headers of a 64-bit, little-endian ELF file."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.ident = data[:16]
        header = struct.unpack_from("<HHIQQQIHHHHHH", data, 16)
        self.type, self.machine, _, self.entry, segments, sections = header[:6]
        segment_size, segment_count, section_size, section_count, names = header[8:13]
        self.segments = [
            Segment(*struct.unpack_from("<IIQQQQQQ", data, segments + number * segment_size)) for number in range(segment_count)
        ]
        headers = [struct.unpack_from("<IIQQQQ", data, sections + number * section_size) for number in range(section_count)]
        strings = headers[names][4]
        self.sections = [data[strings + name : data.index(b"\0", strings + name)].decode() for name, *_ in headers]


@pytest.fixture(scope="module")
def elf() -> Elf:
    """Return the launcher's headers."""
    return Elf(LAUNCHER.read_bytes())


def test_launcher_is_small(elf: Elf) -> None:
    """It has at most 32 KiB, in the file and, its stacks and its table of descriptors apart, in memory."""
    assert len(elf.data) <= 32 * 1024
    assert sum(segment.memory_size for segment in elf.segments) <= 128 * 1024


def test_launcher_is_static(elf: Elf) -> None:
    """It is an ordinary executable for this machine, without interpreter, dynamic linking or symbols that others have."""
    assert elf.ident[:7] == b"\x7fELF\2\1\1"
    assert (elf.type, elf.machine) == (2, MACHINES[os.uname().machine])
    assert {segment.type for segment in elf.segments} <= {LOAD, STACK}
    assert set(elf.sections) <= {"", ".text", ".rodata", ".eh_frame", ".data", ".bss", ".comment", ".shstrtab"}
    assert not re.search(rb"libc\.|GLIBC|ld-linux|malloc|errno", elf.data)


def test_launcher_cannot_be_written_into(elf: Elf) -> None:
    """No part of it is both writable and executable, its stack included."""
    for segment in elf.segments:
        assert not (segment.flags & WRITE and segment.flags & EXECUTE)
    (stack,) = (segment for segment in elf.segments if segment.type == STACK)
    assert not stack.flags & EXECUTE
    (entered,) = (one for one in elf.segments if one.address <= elf.entry < one.address + one.memory_size)
    assert entered.flags & EXECUTE


# ---- what it refuses ----

FFI: Any = import_module("isolib._kernel._ext").ffi
HEAD = FFI.sizeof("struct isolib_boot")


def holding_plan(*steps: Step) -> bytes:
    """Return the encoding of a plan that keeps a process."""
    builder = Builder()
    for step in steps:
        builder.add(INSIDE, step)
    return builder.build(HOLD).encode()


def boot_file(plan: bytes, *, status: int = -1, **changed: int) -> bytes:
    """Return a boot file as the host writes it, with some fields changed."""
    fields = {
        "magic": calls.PLAN_MAGIC,
        "keep_count": 3,
        "plan_offset": HEAD + 16,
        "plan_size": len(plan),
        "status": status,
        "host": -1,
        "proc": -1,
    }
    head = FFI.new("struct isolib_boot *", fields | changed)
    return bytes(FFI.buffer(head)) + struct.pack("=4i", 0, 1, 2, 0) + plan


def start(*arguments: str, fds: tuple[int, ...] = ()) -> subprocess.CompletedProcess[bytes]:
    """Run the launcher with these arguments and nothing else."""
    return subprocess.run(
        ["isolib-init", *arguments], executable=LAUNCHER, env={}, pass_fds=fds, capture_output=True, timeout=60, check=False
    )


def boot(content: bytes, *fds: int) -> subprocess.CompletedProcess[bytes]:
    """Run the launcher on a boot file."""
    with closing(os.fdopen(os.memfd_create("boot"), "r+b", buffering=0)) as file:
        file.write(content)
        return start(str(file.fileno()), fds=(file.fileno(), *fds))


def assert_refused(done: subprocess.CompletedProcess[bytes]) -> None:
    """Fail unless it ended by itself, without a word, and not by a signal."""
    assert (done.returncode, done.stdout, done.stderr) == (127, b"", b"")


@pytest.mark.parametrize(
    "arguments", [(), ("",), ("x",), ("-1",), ("1048577",), ("99999999999999999999",), ("3", "4"), ("0",)], ids=repr
)
def test_launcher_without_a_boot_file(arguments: tuple[str, ...]) -> None:
    """Started by hand, with anything but the number of a boot file, it ends with 127."""
    assert_refused(start(*arguments))


GARBAGE = {
    "nothing": b"",
    "one byte": b"I",
    "zeros": bytes(4096),
    "ones": b"\xff" * 4096,
    "text": b"#!/bin/sh\nexit 0\n" * 100,
    "only the head": boot_file(b"")[:HEAD],
    "wrong magic": boot_file(holding_plan(), magic=0x7F454C46),
    "plan before the lists": boot_file(holding_plan(), plan_offset=HEAD),
    "plan unaligned": boot_file(holding_plan(), plan_offset=HEAD + 17),
    "plan beyond the end": boot_file(holding_plan(), plan_offset=1 << 30),
    "plan too long": boot_file(holding_plan(), plan_size=len(holding_plan()) + 8),
    "plan too short": boot_file(holding_plan(), plan_size=len(holding_plan()) - 8),
    "plan of four gigabytes": boot_file(holding_plan(), plan_size=0xFFFFFFFF),
    "too many slots": boot_file(holding_plan(), slot_count=0xFFFFFFFF),
    "slots without a plan's": boot_file(holding_plan(), slot_count=1, keep_count=2),
    "too many kept": boot_file(holding_plan(), keep_count=0x40000001),
}


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_launcher_refuses_garbage(content: bytes) -> None:
    """A boot file that the host would not write is refused, whatever is wrong with it."""
    assert_refused(boot(content))


def test_launcher_refuses_every_truncation() -> None:
    """A boot file that was cut anywhere is refused."""
    whole = boot_file(holding_plan(Step("FAIL", value=errno.EXDEV)))
    for size in range(0, len(whole), 8):
        assert_refused(boot(whole[:size]))


@pytest.mark.parametrize("offset", [0, 4, 8, 12, 16, 20])
def test_launcher_tells_of_an_unsound_plan(offset: int) -> None:
    """With a sound boot file, the error of an unsound plan is reported to the host, as of no step of it."""
    plan = bytearray(holding_plan())
    struct.pack_into("=I", plan, offset, 0x7FFFFFFF)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        assert_refused(boot(boot_file(bytes(plan), status=theirs.fileno()), theirs.fileno()))
        theirs.close()
        kind, step, error, _, stage = struct.unpack_from("=Iiiii", ours.recv(4096))
        assert (step, stage) == (-1, 1)
        assert kind == 6  # ISOLIB_FAILED
        assert error == (errno.EPROTO if offset < 8 else errno.EINVAL)
        assert ours.recv(4096) == b""


# ---- the sealed image ----


@pytest.fixture
def resident() -> Iterator[int]:
    """Run a process that only a supervisor is left of; returns the supervisor's pid."""
    held = launch(Builder().build(HOLD))
    try:
        yield held.supervisor_pid
    finally:
        held.close()


def test_image_is_a_sealed_memory_file(resident: int) -> None:
    """A supervisor executes a memory file that is a copy of the installed launcher and carries every seal."""
    assert os.readlink(f"/proc/{resident}/exe") == "/memfd:isolib-launcher (deleted)"
    image = ground().image
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    assert fcntl.fcntl(image, fcntl.F_GET_SEALS) & seals == seals
    assert os.pread(image, 1 << 20, 0) == LAUNCHER.read_bytes()
    assert os.fstat(image).st_mode & 0o777 == 0o555


SEAL_FUTURE_WRITE = 0x10  # linux/fcntl.h


def refuses_writing(path: str) -> bool:
    """Say whether nothing at all can change the file, by any path to it."""
    try:
        fd = os.open(path, os.O_RDWR)
    except OSError as error:
        return error.errno in {errno.ETXTBSY, errno.EACCES, errno.EPERM}
    refusals = []
    try:
        for attempt in (
            lambda: os.pwrite(fd, b"\x90", 0),
            lambda: os.ftruncate(fd, 0),
            lambda: os.posix_fallocate(fd, 0, 1 << 20),
            lambda: mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE).close(),
            lambda: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEAL_FUTURE_WRITE),
        ):
            try:
                attempt()
            except PermissionError:
                refusals.append(True)
            else:
                refusals.append(False)
    finally:
        os.close(fd)
    return all(refusals)


def test_image_cannot_be_changed_while_it_runs(resident: int) -> None:
    """The executable of a supervisor cannot be opened for writing, neither by /proc/PID/exe nor by the host's descriptor."""
    for path in (f"/proc/{resident}/exe", f"/proc/self/fd/{ground().image}"):
        with pytest.raises(OSError, match=r"Text file busy|Permission denied"):
            os.close(os.open(path, os.O_RDWR))
        assert refuses_writing(path)


def test_image_cannot_be_changed_when_nothing_runs() -> None:
    """With no process left that executes it, it still cannot be written, cut or mapped for writing."""
    spawn(["true"]).close()
    assert refuses_writing(f"/proc/self/fd/{ground().image}")
    assert os.pread(ground().image, 1 << 20, 0) == LAUNCHER.read_bytes()


def test_image_is_not_among_the_descriptors_of_the_command() -> None:
    """Neither the image nor anything else of the launcher's is open in the command."""
    program = "import os; print([os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd') if int(fd) > 2])"
    with spawn([sys.executable, "-c", f"try:\n {program}\nexcept OSError: print([])"], stdout=PIPE) as process:
        out, _ = process.communicate(timeout=60)
    assert out == b"[]\n"


# ---- where the kernel or a filter refuses ----

TRY = """
import json, os, sys, isolib
from isolib._kernel.launch import ground
def attempt(**options):
    try:
        with isolib.spawn(["sh", "-c", "exit 7"], **options) as process:
            return process.wait(60).code
    except isolib.SetupFailed as error:
        return error.op, error.errno, error.hint
    except isolib.Unsupported as error:
        return str(error)
"""


def run_denied(program: str, *denied: Denied, new: set[str] | None = None) -> list[Any]:
    """Run a Python program in which some system calls fail; returns what it printed as JSON."""
    request = Request(new=new or set(), rights=Rights(no_new_privs=True, seccomp=deny(*denied)))
    argv = [sys.executable, "-c", TRY + textwrap.dedent(program)]
    with Process.start(request, argv, stdin=None, stdout=PIPE, stderr=None) as process:
        out, _ = process.communicate(timeout=120)
        assert process.wait(60).code == 0
    assert out is not None
    result: list[Any] = json.loads(out)
    return result


def test_memory_files_that_may_not_be_executed() -> None:
    """Where a policy refuses to execute memory files, the installed file is executed."""
    program = "print(json.dumps([ground().image >= 0, attempt(new={'user', 'pid'})]))"
    assert run_denied(program, Denied("execveat", errno.EACCES)) == [True, 7]


def test_kernel_that_knows_no_executable_memory_files() -> None:
    """Before Linux 6.3 the flag MFD_EXEC is EINVAL, and the image is made without it."""
    program = "print(json.dumps([ground().image >= 0, attempt(new={'user', 'pid'})]))"
    denied = Denied("memfd_create", errno.EINVAL, ((1, 0x1 | 0x2 | 0x10),))
    assert run_denied(program, denied) == [True, 7]


def test_image_that_cannot_be_made() -> None:
    """Where no executable memory file can be made, the installed file is executed."""
    program = "print(json.dumps([ground().image, attempt(new={'user', 'pid'})]))"
    denied = Denied("memfd_create", errno.EACCES, ((1, 0x1 | 0x2 | 0x10),))
    assert run_denied(program, denied) == [-1, 7]


def test_nothing_can_be_executed() -> None:
    """Where the installed file cannot be executed either, the error says so."""
    program = """
    ground().image_path = b"/nonexistent/isolib-launcher"
    ground().image = -1
    print(json.dumps(attempt()))
    """
    op, number, hint = run_denied(program)
    assert (op, number) == ("execve", errno.ENOENT)
    assert hint


@pytest.mark.root
def test_memfd_noexec() -> None:
    """With vm.memfd_noexec=2 in the host's pid namespace the installed file is executed, and nothing else changes."""
    program = """
    import ctypes
    assert ctypes.CDLL(None).mount(b"proc", b"/proc", b"proc", 0, None) == 0
    with open("/proc/sys/vm/memfd_noexec", "w") as file:
        file.write("2")
    print(json.dumps([ground().image, attempt(new={"mnt", "uts"}), attempt(new={"user", "pid"})]))
    """
    if not os.path.exists("/proc/sys/vm/memfd_noexec"):
        pytest.skip("the kernel has no vm.memfd_noexec")
    assert run_denied(program, new={"pid", "mnt"}) == [-1, 7, 7]


@pytest.mark.root
def test_proc_of_another_pid_namespace() -> None:
    """Where /proc numbers processes otherwise, an id map would go to somebody else's: that is refused, and nothing else is."""
    plain, mapped = run_denied("print(json.dumps([attempt(new={'net'}), attempt(new={'user'})]))", new={"pid"})
    assert plain == 7
    assert "another pid namespace" in mapped


def test_clone3_that_is_hidden() -> None:
    """Where a container engine's filter answers ENOSYS to clone3, all eight kinds of namespaces are made by clone."""
    program = f"print(json.dumps([attempt(), attempt(new={ALL_KINDS!r}, hostname='x')]))"
    assert run_denied(program, Denied("clone3", errno.ENOSYS)) == [7, 7]


KEYRING_CALLS = ("keyctl", "add_key", "request_key")


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS])
def test_keyrings_that_are_hidden(error: int) -> None:
    """Where a filter refuses every call of keyrings, processes start all the same: the command can reach none either."""
    program = "print(json.dumps([attempt(), attempt(new={'user', 'pid'})]))"
    assert run_denied(program, *(Denied(name, error) for name in KEYRING_CALLS)) == [7, 7]


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS])
@pytest.mark.parametrize("open_call", KEYRING_CALLS[1:])
def test_keyrings_that_are_hidden_in_part(open_call: str, error: int) -> None:
    """Where one call still finds the host's session keyring, a process that cannot have its own does not start."""
    denied = [Denied(name, error) for name in KEYRING_CALLS if name != open_call]
    op, number, _ = run_denied("print(json.dumps(attempt(new={'user', 'pid'})))", *denied)
    assert (op, number) == ("keyctl", errno.EPERM)


@pytest.mark.root
@pytest.mark.parametrize(
    ("call", "kind", "started"),
    [
        ("setresuid", "SETUID", "isolib.spawn(['true'], user=(1000, 1000))"),
        ("setresgid", "SETGID", "isolib.spawn(['true'], user=(1000, 1000))"),
        ("capset", "CAPSET", "isolib.run(['true'], cwd='/tmp')"),
    ],
)
def test_call_that_does_nothing(call: str, kind: str, started: str) -> None:
    """Where a call says that it has changed ids or capabilities, and has not, nothing is executed."""
    program = f"""
        try:
            {started}
        except isolib.SetupFailed as error:
            print(json.dumps([error.step.split()[1], error.errno]))
    """
    assert run_denied(program, Denied(call, 0)) == [kind, errno.EPERM]


def test_clone3_that_is_hidden_and_needed() -> None:
    """Birth in a cgroup takes clone3: without it the error says what hides it."""
    program = """
    class Group:
        def fileno(self): return os.open("/", os.O_PATH)
    print(json.dumps(attempt(cgroup=Group())))
    """
    op, number, hint = run_denied(program, Denied("clone3", errno.ENOSYS))
    assert (op, number) == ("clone3", errno.ENOSYS)
    assert "filter" in hint


def test_error_that_clone3_has_is_kept() -> None:
    """Only ENOSYS falls back to clone; another refusal is the error."""
    with pytest.raises(SetupFailed) as caught:
        spawn(["true"], cgroup=NotACgroup())
    assert (caught.value.op, caught.value.errno) == ("clone3", errno.EBADF)


class NotACgroup:
    """A descriptor of something else."""

    def __init__(self) -> None:
        self._fd = os.open("/", os.O_PATH)

    def fileno(self) -> int:
        """Return its number."""
        return self._fd

    def __del__(self) -> None:
        os.close(self._fd)
