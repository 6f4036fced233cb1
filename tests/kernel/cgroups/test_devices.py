"""Device rules on the real kernel: who is in a group can do what its rules allow, on cgroup v2 and on v1."""

from __future__ import annotations

import os
import re
import select
import stat
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from errno import EACCES, EBADF, ENOENT, EPERM
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib import PIPE, PermissionDenied, PlanError, SyscallError
from isolib._kernel import calls
from isolib.cgroups.controllers import devices
from isolib.cgroups.controllers.devices import STANDARD_DEVICES, DeviceRule, attached, evaluate
from tests.groups import parents

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import IO

    from isolib._kernel.handle import Fd

pytestmark = pytest.mark.root

ASKER = """
import errno, os, stat, sys
os.chdir(sys.argv[1])
for line in sys.stdin:
    kind, major, minor, access = line.split()
    code = 0
    try:
        if access == "m":
            os.mknod("made", {"c": stat.S_IFCHR, "b": stat.S_IFBLK}[kind] | 0o600, os.makedev(int(major), int(minor)))
            os.unlink("made")
        else:
            flags = {"r": os.O_RDONLY, "w": os.O_WRONLY, "rw": os.O_RDWR}[access]
            os.close(os.open(f"{kind}-{major}-{minor}", flags | os.O_NONBLOCK | os.O_NOCTTY))
    except OSError as error:
        code = error.errno
    print(code, flush=True)
"""
"""Does with devices what it is told, and says with which error."""

NULL, ZERO, FULL, NOBODY, DISK = ("c", 1, 3), ("c", 1, 5), ("c", 1, 7), ("c", 240, 9), ("b", 240, 9)
"""The last two are of a range for experiments: no driver is there, which is found out after the question of permission."""

ACCESSES = ("r", "w", "m", "rw")


class Group:
    """A group that is the test's own."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self.path = path
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def fileno(self) -> int:
        """Return its directory."""
        return self.fd

    def remove(self) -> None:
        """Remove it."""
        os.close(self.fd)
        self.path.rmdir()


@contextmanager
def new_group(parent: str) -> Iterator[Group]:
    """Make a group for the length of a block."""
    group = Group(Path(parent, f"isolib-devices-{os.getpid()}"))
    try:
        yield group
    finally:
        group.remove()


@pytest.fixture
def group() -> Iterator[Group]:
    """Return a group of cgroup v2."""
    with new_group(parents(version=2)[0]) as made:
        yield made


@pytest.fixture
def nodes(place: Path) -> Path:
    """Return a directory with a node of each device."""
    for kind, major, minor in (NULL, ZERO, FULL, NOBODY, DISK):
        mode = {"c": stat.S_IFCHR, "b": stat.S_IFBLK}[kind] | 0o600
        os.mknod(place / f"{kind}-{major}-{minor}", mode, os.makedev(major, minor))
    return place


class Asker:
    """A process in a group that does with devices what it is told."""

    def __init__(self, to: IO[bytes] | None, back: IO[bytes] | None) -> None:
        assert to is not None
        assert back is not None
        self.to, self.back = to, back

    def error(self, device: tuple[str, int, int], access: str) -> int:
        """Return with which error something fails; 0: it does not."""
        kind, major, minor = device
        self.to.write(f"{kind} {major} {minor} {access}\n".encode())
        self.to.flush()
        return int(self.back.readline())

    def may(self, device: tuple[str, int, int], access: str) -> bool:
        """Return whether something is allowed."""
        return self.error(device, access) != EPERM

    def allowed(self) -> set[tuple[str, int, int, str]]:
        """Return all that is allowed."""
        return {(*one, access) for one in (NULL, ZERO, FULL, NOBODY, DISK) for access in ACCESSES if self.may(one, access)}


@contextmanager
def asker(nodes: Path, group: Group) -> Iterator[Asker]:
    """Start one that is born in a group of v2."""
    argv = [sys.executable, "-c", ASKER, str(nodes)]
    with isolib.spawn(argv, cgroup=group, stdin=PIPE, stdout=PIPE) as process:
        yield Asker(process.stdin, process.stdout)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60).code == 0


def expected(rules: tuple[DeviceRule, ...]) -> set[tuple[str, int, int, str]]:
    """Return what rules allow."""
    return {(*one, access) for one in (NULL, ZERO, FULL, NOBODY, DISK) for access in ACCESSES if evaluate(rules, *one, access)}


def allow(*texts: str) -> tuple[DeviceRule, ...]:
    """Return permissions."""
    return tuple(DeviceRule.parse(text) for text in texts)


def deny(*texts: str) -> tuple[DeviceRule, ...]:
    """Return denials."""
    return tuple(DeviceRule.parse(text, allow=False) for text in texts)


LISTS = [
    (),
    allow("a"),
    STANDARD_DEVICES,
    (*STANDARD_DEVICES, *allow("c *:* m", "b *:* m")),
    (*deny("a"), *allow("c 1:5 r", "c 1:7 w", "c 1:7 r")),
    (*allow("c 1:* rw"), *allow("b 240:9 m")),
    (*allow("a"), *deny("c 1:7 w", "b *:* m")),
    allow("c 1:* r", "c *:9 w", "c 240:* m"),
    (*allow("b *:* r", "c 1:3 rwm"), *deny("c 1:* m")),
]
"""All of these v1 can say too."""


def test_the_kernel_decides_as_the_rules_do(group: Group, nodes: Path) -> None:
    """Every device and access is allowed to a process in the group just as the rules say, while they are replaced under it."""
    with asker(nodes, group) as process:
        everything = process.allowed()
        assert everything == expected(allow("a"))
        held = devices.attach(group.fd, LISTS[0])
        assert process.allowed() == set()
        for rules in (*LISTS[1:], (*allow("c 1:* rw"), *deny("c 1:7 w"), *allow("c 1:7 m"))):
            held = devices.replace(group.fd, held, rules)
            assert process.allowed() == expected(rules)
        devices.detach(group.fd, held)
        assert process.allowed() == everything


def test_v1_and_v2_decide_alike(group: Group, nodes: Path) -> None:
    """What is written into a v1 group's files gives the same decisions as the program of a v2 group."""
    parent = parents(version=1, controller="devices")[0]
    argv = [sys.executable, "-c", ASKER, str(nodes)]
    with new_group(parent) as legacy, subprocess.Popen(argv, stdin=PIPE, stdout=PIPE) as child:
        for place in (legacy, group):
            (place.path / "cgroup.procs").write_text(str(child.pid))
        process = Asker(child.stdin, child.stdout)
        for rules in LISTS:
            for file, text in devices.v1_writes(rules):
                (legacy.path / file).write_text(text)
            by_v1 = process.allowed()
            (legacy.path / "devices.allow").write_text("a")
            held = devices.attach(group.fd, rules)
            assert process.allowed() == by_v1 == expected(rules)
            devices.detach(group.fd, held)


def test_denied_is_what_programs_see(group: Group, nodes: Path) -> None:
    """With the standard devices, ordinary programs work, and one that writes to another device is told EPERM."""
    held = devices.attach(group.fd, (*STANDARD_DEVICES, *deny("c 1:7 r")))
    script = "head -c 3 /dev/zero | tr '\\0' x; echo >/dev/null; cat /dev/full; cat b-240-9; mknod n b 240 9; ls n"
    env = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
    with isolib.spawn(["sh", "-c", script], cgroup=group, cwd=nodes, stdout=PIPE, stderr=PIPE, env=env) as process:
        out, err = process.communicate(timeout=60)
    assert out == b"xxx"
    assert err is not None
    assert [line.rpartition(b": ")[2] for line in err.splitlines()] == [b"Operation not permitted"] * 3 + [
        b"No such file or directory"
    ]
    devices.detach(group.fd, held)


def test_replacement_never_allows_more(group: Group, nodes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the old rules go, the new ones hold: in between only what both allow is allowed, and that is so throughout."""
    seen: list[set[tuple[str, int, int, str]]] = []
    old_rules, new_rules = allow("c 1:3 rw", "c 1:5 rw"), allow("c 1:5 rw", "c 1:7 rw")
    with asker(nodes, group) as process:
        held = devices.attach(group.fd, old_rules)
        detach = calls.bpf_detach

        def look_first(group_fd: int, program: int) -> None:
            seen.append(process.allowed())
            detach(group_fd, program)

        monkeypatch.setattr(calls, "bpf_detach", look_first)
        held = devices.replace(group.fd, held, new_rules)
        assert seen == [expected(old_rules) & expected(new_rules)]
        assert process.allowed() == expected(new_rules)
        devices.detach(group.fd, held)


@pytest.mark.parametrize("interrupted", ["bpf_attach", "bpf_detach"])
def test_interrupted_replacement(group: Group, nodes: Path, monkeypatch: pytest.MonkeyPatch, interrupted: str) -> None:
    """An interrupt leaves the old rules, or if they were gone the new ones, and never none."""
    old_rules, new_rules = allow("c 1:3 rw"), allow("c 1:5 rw")
    with asker(nodes, group) as process:
        held = devices.attach(group.fd, old_rules)
        call = getattr(calls, interrupted)

        def interrupt(*arguments: int) -> None:
            monkeypatch.undo()
            call(*arguments)
            raise KeyboardInterrupt

        monkeypatch.setattr(calls, interrupted, interrupt)
        with pytest.raises(KeyboardInterrupt):
            devices.replace(group.fd, held, new_rules)
        assert process.allowed() == expected(old_rules if interrupted == "bpf_attach" else new_rules)
        assert len(attached(group.fd)) == 1
        held.close()


def test_interrupted_attachment(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt leaves nothing attached."""
    call = calls.bpf_attach

    def interrupt(*arguments: int) -> None:
        call(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(calls, "bpf_attach", interrupt)
    with pytest.raises(KeyboardInterrupt):
        devices.attach(group.fd, STANDARD_DEVICES)
    assert attached(group.fd) == []


def test_failed_replacement_leaves_the_old_rules(group: Group) -> None:
    """Rules that cannot be, or a group that is full, leave what was attached attached, and its handle open."""
    held = devices.attach(group.fd, STANDARD_DEVICES)
    before = attached(group.fd)
    with pytest.raises(PlanError, match="devices"):
        devices.replace(group.fd, held, [DeviceRule("c", 1, minor) for minor in range(2000)])
    others: list[Fd] = []
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    assert release
    is_older = (int(release[1]), int(release[2])) < (5, 11)  # programs are counted in RLIMIT_MEMLOCK, full earlier
    full = "RLIMIT_MEMLOCK" if is_older else "64 device programs"
    with pytest.raises(SyscallError, match=full):
        others.extend(devices.attach(group.fd, STANDARD_DEVICES) for _ in range(100))
    assert len(others) == 63 or is_older
    with pytest.raises(SyscallError, match=full):
        devices.replace(group.fd, held, STANDARD_DEVICES)
    assert attached(group.fd)[:1] == before
    assert not held.closed
    for one in (held, *others):
        devices.detach(group.fd, one)


def test_files_of_an_overlay_can_be_deleted(group: Group, tmp_path: Path) -> None:
    """Who may use and make no device can make whiteouts: by mknod, and by overlayfs when a lower file is deleted."""
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower/file").touch()
    code = (
        "import os, stat; os.mknod('upper/hand-made', stat.S_IFCHR, 0); os.unlink('merged/file'); print(os.listdir('merged'))"
    )
    options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    held = devices.attach(group.fd, ())
    calls.mount("overlay", str(tmp_path / "merged"), "overlay", 0, options)
    try:
        with isolib.spawn([sys.executable, "-c", code], cgroup=group, cwd=tmp_path, stdout=PIPE, stderr=PIPE) as process:
            assert process.communicate(timeout=60) == (b"[]\n", b"")
    finally:
        calls.umount(str(tmp_path / "merged"))
        devices.detach(group.fd, held)
    assert (tmp_path / "upper/file").stat().st_rdev == 0


def test_child_cannot_lift_what_its_parent_forbids(group: Group, nodes: Path) -> None:
    """A program of a child's that allows everything allows nothing that the parent's does not; both are in effect there."""
    above = devices.attach(group.fd, STANDARD_DEVICES)
    child = Group(group.path / "child")
    try:
        own = devices.attach(child.fd, allow("a"))
        with asker(nodes, child) as process:
            assert process.allowed() == expected(STANDARD_DEVICES)
            narrower = devices.replace(child.fd, own, (*allow("a"), *deny("c 1:3 w")))
            assert process.allowed() == expected((*STANDARD_DEVICES, *deny("c 1:3 w")))
        ids = [calls.bpf_program_info(one.fileno()).id for one in (above, narrower)]
        assert attached(group.fd) == attached(group.fd, effective=True) == ids[:1]
        assert attached(child.fd) == ids[1:]
        assert sorted(attached(child.fd, effective=True)) == sorted(ids)
    finally:
        child.remove()
    devices.detach(group.fd, above)
    narrower.close()


def test_program_can_be_read_back(group: Group) -> None:
    """The kernel knows the program by its id, kind and name; the same rules make the same digest, others another."""
    rules = (STANDARD_DEVICES, STANDARD_DEVICES, allow("a"))
    held = [devices.attach(group.fd, each) for each in rules]
    infos = [calls.bpf_program_info(one.fileno()) for one in held]
    assert attached(group.fd) == [info.id for info in infos]
    assert {(info.type, info.name) for info in infos} == {(calls.BPF_PROG_TYPE_CGROUP_DEVICE, "isolib_devices")}
    assert infos[0].tag == infos[1].tag != infos[2].tag
    with calls.bpf_program(infos[0].id) as again:
        assert calls.bpf_program_info(again.fileno()) == infos[0]
    for one in held:
        devices.detach(group.fd, one)
    assert attached(group.fd) == []


def wait_until_gone(program_id: int) -> None:
    """Wait until the kernel has freed a program. It tells nobody, so look now and then."""
    deadline = time.monotonic() + 60
    with suppress(SyscallError):
        while time.monotonic() < deadline:
            calls.bpf_program(program_id).close()
            select.poll().poll(5)
    with pytest.raises(SyscallError) as caught:
        calls.bpf_program(program_id)
    assert caught.value.errno == ENOENT


def test_program_goes_with_its_group() -> None:
    """Closing the handle frees nobody; removing the directory frees the program, though nobody has detached it."""
    with new_group(parents(version=2)[0]) as group:
        held = devices.attach(group.fd, STANDARD_DEVICES)
        (program_id,) = attached(group.fd)
        held.close()
        assert attached(group.fd) == [program_id]
        kept = os.dup(group.fd)
    try:
        with pytest.raises(SyscallError, match="the group has been removed"):
            attached(kept)
        with pytest.raises(SyscallError, match="the group has been removed"):
            devices.attach(kept, STANDARD_DEVICES)
    finally:
        os.close(kept)
    wait_until_gone(program_id)


def test_detaching_after_the_group(group: Group) -> None:
    """Detaching is nothing when the group is gone, and nothing the second time."""
    child = Group(group.path / "child")
    held = devices.attach(child.fd, STANDARD_DEVICES)
    kept = os.dup(child.fd)
    child.remove()
    try:
        devices.detach(kept, held)
        assert held.closed
        devices.detach(kept, held)
    finally:
        os.close(kept)


def exclusive(group: Group) -> Fd:
    """Attach a program that tolerates no other, as other programs do."""
    program = calls.take_device_program(devices.program(allow("a")))
    calls.bpf_attach(group.fd, program.fileno(), 0)
    return program


def test_exclusive_program(group: Group) -> None:
    """Where somebody's program tolerates no other, the error says so, and that program stays, whatever is detached."""
    theirs = exclusive(group)
    mine = calls.take_device_program(devices.program(STANDARD_DEVICES))
    before = attached(group.fd)
    child = Group(group.path / "child")
    try:
        for place in (group, child):
            with pytest.raises(PermissionDenied, match="without BPF_F_ALLOW_MULTI") as caught:
                devices.attach(place.fd, STANDARD_DEVICES)
            assert not hasattr(caught.value, "__notes__")
            devices.detach(place.fd, mine)
            assert attached(group.fd) == before
    finally:
        child.remove()
    calls.bpf_detach(group.fd, theirs.fileno())
    theirs.close()


@pytest.mark.parametrize("function", [lambda fd: devices.attach(fd, STANDARD_DEVICES), attached])
def test_no_group(tmp_path: Path, function: Callable[[int], object]) -> None:
    """A descriptor of something else is refused, and the error says what it takes."""
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with pytest.raises(SyscallError, match="no directory of cgroup v2") as caught:
            function(fd)
        assert caught.value.errno == EBADF
        assert not hasattr(caught.value, "__notes__")
    finally:
        os.close(fd)


def test_replacement_in_the_wrong_place(group: Group, tmp_path: Path) -> None:
    """Given another directory, a replacement fails with one plain error, and the old rules and their handle stay."""
    held = devices.attach(group.fd, STANDARD_DEVICES)
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with pytest.raises(SyscallError, match="no directory of cgroup v2") as caught:
            devices.replace(fd, held, ())
        assert not hasattr(caught.value, "__notes__")
    finally:
        os.close(fd)
    assert not held.closed
    assert len(attached(group.fd)) == 1
    devices.detach(group.fd, held)


def test_without_privileges(group: Group) -> None:
    """Who lacks the capabilities is told which they are, and whom else he could ask."""
    code = (
        "import os, sys, isolib\n"
        "from isolib.cgroups.controllers import devices\n"
        "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "for function, *more in (devices.attach, devices.STANDARD_DEVICES), (devices.attached,):\n"
        "    try: function(int(sys.argv[1]), *more)\n"
        "    except isolib.PermissionDenied as error: print(error)\n"
    )
    argv = [sys.executable, "-c", code, str(group.fd)]
    told = subprocess.run(argv, pass_fds=[group.fd], capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    assert len(told) == 2
    assert all("CAP_BPF and CAP_NET_ADMIN, or CAP_SYS_ADMIN" in line and "lockdown" in line for line in told)


def test_longest_program_is_taken(group: Group, nodes: Path) -> None:
    """The kernel's verifier accepts the longest program that we make, of rules of every form, and it decides rightly."""
    rules = tuple(
        DeviceRule("c", i if i % 3 else None, i if i % 3 != 1 else None, ("r", "w", "m", "rw")[i % 4], i % 7 != 0)
        for i in range(1, 900)
    )
    rules = (*rules, *allow("c 1:3 r"))
    assert 4000 < len(devices.program(rules)) <= 4096
    held = devices.attach(group.fd, rules)
    with asker(nodes, group) as process:
        assert process.allowed() == expected(rules)
    devices.detach(group.fd, held)


def test_kernel_refuses_what_is_no_program() -> None:
    """The kernel's verifier refuses a program without an answer, as the interpreter does."""
    with pytest.raises(SyscallError) as caught:
        calls.take_device_program((0x95,))
    assert caught.value.errno == EACCES  # what it says of the use of a register that was never written, here that of the answer
