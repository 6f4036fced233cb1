"""The plan: its encoding as C reads it, its limits, its explanation; Python and the launcher agree on every kind of step."""

from __future__ import annotations

import errno
import re
import struct
from importlib import import_module
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isolib._kernel import calls
from isolib._kernel.explain import explain_step
from isolib._kernel.launch import launch
from isolib._kernel.plan import BLOBS, COMMAND, HOLD, HOST, INSIDE, KINDS, Builder, Plan, Slot, Step, encode_text, exec_step
from isolib.errors import PlanError, SetupFailed

# The compiler's own view of the structures, which no test of ours repeats.
FFI: Any = import_module("isolib._kernel._ext").ffi

DECLARED, OTHER, MADE, TERMINAL = (
    Slot("declared", declared=True),
    Slot("another", declared=True),
    Slot("made", declared=False),
    Slot("terminal", declared=False),
)

#: A sound step of each kind.
EXAMPLES = {
    "CLONE": Step("CLONE", fd=DECLARED, flags=calls.CLONE_NEWPID | calls.CLONE_NEWUSER, value=1),
    "MAP": Step("MAP", text=b"uid_map", text2=b"0 1000 1\n"),
    "MAP_HELPER": Step("MAP_HELPER", text=b"/usr/bin/newuidmap", text2=b"0\0001000\0001\0"),
    "GO": Step("GO"),
    "SUPERVISE": Step("SUPERVISE", flags=1, value=1000),
    "HOLD": Step("HOLD"),
    "REAP": Step("REAP", fd=DECLARED),
    "EXEC": exec_step([b"program", b"argument"], [b"A=1"], [b"/bin/program", b"/usr/bin/program"]),
    "SETNS": Step("SETNS", fd=DECLARED, flags=calls.CLONE_NEWNET),
    "UNSHARE": Step("UNSHARE", flags=calls.CLONE_NEWCGROUP),
    "OPEN": Step("OPEN", fd=DECLARED, out=MADE, text=b"file", value=0o644 << 32 | 0x10),
    "TARGET": Step("TARGET", fd=DECLARED, out=MADE, text=b"directory/file", flags=1, value=0o755),
    "CLOSE": Step("CLOSE", fd=DECLARED),
    "OPEN_TREE": Step("OPEN_TREE", out=MADE, text=b"/", flags=0x8001),
    "MOVE_MOUNT": Step("MOVE_MOUNT", fd=DECLARED, fd2=OTHER, flags=0x44),
    "MOUNT_SETATTR": Step("MOUNT_SETATTR", fd=DECLARED, fd2=OTHER, flags=0x9000, value=0x100001, size=2, size2=1 << 18),
    "FSOPEN": Step("FSOPEN", out=MADE, text=b"tmpfs"),
    "FSCONFIG": Step("FSCONFIG", fd=DECLARED, flags=1, text=b"size", text2=b"1048576"),
    "FSMOUNT": Step("FSMOUNT", fd=DECLARED, out=MADE, value=6),
    "CHECK_DEVICE": Step("CHECK_DEVICE", fd=DECLARED, value=1 << 32 | 3),
    "MKNOD": Step("MKNOD", fd=DECLARED, text=b"file", value=0o100644),
    "MKDIR": Step("MKDIR", fd=DECLARED, text=b"directory", value=0o755),
    "SYMLINK": Step("SYMLINK", fd=DECLARED, text=b"link", text2=b"target"),
    "WRITE": Step("WRITE", fd=DECLARED, text=b"file", text2=b"content\0with NUL", flags=1),
    "PUT": Step("PUT", fd=DECLARED, text2=b"0"),
    "PIVOT_ROOT": Step("PIVOT_ROOT", text=b".", text2=b"."),
    "UMOUNT": Step("UMOUNT", text=b".", flags=2),
    "FCHDIR": Step("FCHDIR", fd=DECLARED),
    "CHDIR": Step("CHDIR", text=b"/"),
    "SETHOSTNAME": Step("SETHOSTNAME", text=b"host"),
    "SETDOMAINNAME": Step("SETDOMAINNAME", text=b"domain"),
    "LINK_UP": Step("LINK_UP", text=b"lo"),
    "SOCKET": Step("SOCKET", out=MADE, flags=16, value=3 << 32),
    "SEND": Step("SEND", fd=DECLARED, fd2=DECLARED),
    "SETSID": Step("SETSID"),
    "PTY_OPEN": Step("PTY_OPEN", text=b"/dev/ptmx", out=MADE, fd2=TERMINAL),
    "STDIO": Step("STDIO", fd=DECLARED, flags=1),
    "FCHOWN": Step("FCHOWN", fd=DECLARED, flags=1, value=1),
    "PRCTL": Step("PRCTL", flags=38, value=1),
    "RLIMIT": Step("RLIMIT", size=7, flags=100, value=100),
    "UMASK": Step("UMASK", value=0o22),
    "PRIORITY": Step("PRIORITY", value=5),
    "PERSONALITY": Step("PERSONALITY", value=8),
    "AFFINITY": Step("AFFINITY", text2=b"\xff" * 8),
    "KEYRING": Step("KEYRING"),
    "BOUNDING": Step("BOUNDING", value=1 << 5),
    "SETGROUPS": Step("SETGROUPS", text2=struct.pack("=2I", 1, 2)),
    "SETGID": Step("SETGID", value=1),
    "SETUID": Step("SETUID", value=1),
    "CAPSET": Step("CAPSET", flags=3, value=1),
    "AMBIENT": Step("AMBIENT", value=3),
    "CLOSE_FDS": Step("CLOSE_FDS"),
    "LANDLOCK": Step("LANDLOCK", fd=DECLARED),
    "SECCOMP": Step("SECCOMP", text2=struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000)),
    "FAIL": Step("FAIL", value=errno.EXDEV),
}

MAPPING = {"MAP", "MAP_HELPER"}
ENDS = {"HOLD", "REAP", "SUPERVISE", "EXEC"}


def plan_with(step: Step, *, first: Step | None = None) -> Plan:
    """Return a plan in which a step stands where its kind may stand."""
    host = [] if first is None else [first]
    mapping: list[Step] = []
    clone, go, supervise, end = Step("CLONE"), Step("GO"), Step("SUPERVISE"), EXAMPLES["EXEC"]
    if step.kind == "CLONE":
        clone = step
    elif step.kind in MAPPING:
        mapping.append(step)
    elif step.kind == "GO":
        go = step
    elif step.kind == "SUPERVISE":
        supervise = step
    elif step.kind in ENDS:
        end = step
    else:
        host.append(step)
    tail = [end] if end.kind in {"HOLD", "REAP"} else [supervise, end]
    return Plan([*host, clone, *mapping, go, *tail], declared=[DECLARED, OTHER])


class Decoded:
    """An encoded plan as the compiler's structures show it."""

    def __init__(self, encoded: bytes) -> None:
        plan = FFI.cast("struct isolib_plan *", FFI.from_buffer(encoded))
        self.header = plan[0]
        self.steps = FFI.cast("struct isolib_step *", plan + 1)
        start = FFI.sizeof("struct isolib_plan") + self.header.step_count * FFI.sizeof("struct isolib_step")
        self.area = encoded[start:]

    def text(self, offset: int) -> bytes:
        """Return the string at an offset."""
        return self.area[offset : self.area.index(b"\0", offset)]

    def blob(self, offset: int, size: int) -> bytes:
        """Return counted bytes, which a NUL follows."""
        assert self.area[offset + size] == 0
        return self.area[offset : offset + size]

    def check(self, number: int, step: Step, slots: dict[Slot | None, int]) -> None:
        """Fail unless a step says in C what it says in Python."""
        found = self.steps[number]
        assert (found.kind, found.ignore, found.flags, found.value) == (KINDS[step.kind], step.ignore, step.flags, step.value)
        assert (found.fd, found.fd2, found.out) == (slots[step.fd], slots[step.fd2], slots[step.out])
        if step.kind == "EXEC":
            assert self.blob(found.text, found.size) == step.text
        else:
            assert self.text(found.text) == step.text
        if step.kind in BLOBS:
            assert self.blob(found.text2, found.size2) == step.text2
        else:
            assert self.text(found.text2) == step.text2
            assert (found.size, found.size2) == (step.size, step.size2)


def check_encoding(plan: Plan) -> None:
    """Fail unless C reads in the encoding what Python has put into it."""
    encoded = plan.encode()
    decoded = Decoded(encoded)
    header = decoded.header
    assert (header.magic, header.version) == (calls.PLAN_MAGIC, calls.PLAN_VERSION)
    assert (header.step_count, header.slot_count) == (len(plan.steps), len(plan.slots) - 1)
    assert (header.text_size, header.pty) == (len(decoded.area), plan.slots[plan.pty])
    assert decoded.area[0] == decoded.area[-1] == 0
    for number, step in enumerate(plan.steps):
        decoded.check(number, step, plan.slots)


# ---- every kind ----


def test_every_kind_is_tried() -> None:
    """The tests below know an example of every kind of step there is."""
    assert EXAMPLES.keys() == KINDS.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_explained(kind: str) -> None:
    """Each kind has calls with a manual page each, and the one that an error is about is one of them."""
    explained = explain_step(EXAMPLES[kind])
    assert explained.op
    for line in explained.lines():
        assert re.fullmatch(r"\w+\(.*\).* +\S+\([1-8]\)|fail\(.*\) +a test's own step", line), line
    if kind != "MAP_HELPER":
        assert explained.op in explained.names
    assert re.fullmatch(explained.pattern, "".join(f"{name} " for name in explained.names))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_encoded(kind: str) -> None:
    """C reads every field of every kind as Python has written it."""
    check_encoding(plan_with(EXAMPLES[kind]))


@pytest.mark.parametrize("kind", KINDS)
def test_launcher_accepts_every_kind(kind: str) -> None:
    """The launcher finds a plan with any kind of step sound, and runs its first step."""
    with pytest.raises(SetupFailed) as caught:
        launch(plan_with(EXAMPLES[kind], first=Step("FAIL", value=errno.EXDEV)), [0, 0])
    assert (caught.value.step, caught.value.errno) == ("0 FAIL (first)", errno.EXDEV)


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [Step("CLONE"), Step("GO")],
        [Step("GO"), Step("CLONE"), Step("HOLD")],
        [Step("CLONE"), Step("SETSID"), Step("GO"), Step("HOLD")],
        [Step("CLONE"), Step("CLONE"), Step("GO"), Step("HOLD")],
        [Step("CLONE"), Step("GO"), Step("GO"), Step("HOLD")],
        [Step("CLONE"), Step("GO"), Step("HOLD"), Step("SETSID")],
        [Step("CLONE"), Step("GO"), Step("SUPERVISE"), Step("HOLD")],
        [Step("CLONE"), Step("GO"), EXAMPLES["EXEC"]],
        [Step("CLONE"), EXAMPLES["MAP"], Step("GO"), EXAMPLES["MAP"], Step("HOLD")],
        [Step("CLONE"), Step("GO"), Step("SETNS"), Step("HOLD")],
        [Step("CLONE"), Step("GO"), Step("REAP")],
        [Step("CLONE"), Step("GO"), Step("SUPERVISE"), EXAMPLES["REAP"]],
        [Step("CLONE"), Step("GO"), EXAMPLES["REAP"], Step("HOLD")],
        [Step("CLONE"), Step("GO"), Step("REAP", fd=DECLARED, value=1)],
        [Step("CLONE"), Step("GO"), Step("CHDIR"), Step("SETSID", fd=DECLARED), Step("HOLD")],
        [Step("CLONE"), Step("GO"), Step("SECCOMP", text2=b"7 bytes"), Step("HOLD")],
        [Step("CLONE"), Step("GO"), Step("SETGROUPS", text2=b"3 b"), Step("HOLD")],
        [Step("CLONE"), Step("GO"), Step("SUPERVISE"), EXAMPLES["EXEC"]._replace(flags=3)],
        [Step("CLONE"), Step("GO"), Step("SUPERVISE"), EXAMPLES["EXEC"]._replace(flags=0, value=3)],
        [Step("CLONE"), Step("GO"), Step("SUPERVISE"), EXAMPLES["EXEC"]._replace(text=b"")],
        [Step("CLONE"), Step("GO"), Step("SUPERVISE"), EXAMPLES["EXEC"]._replace(text=b"unterminated")],
    ],
)
def test_launcher_refuses_an_unsound_plan(steps: list[Step]) -> None:
    """A plan out of order, with a slot or a text that its kind does not take, or wrongly counted is refused as a whole."""
    plan = Plan(steps or [HOLD], declared=[DECLARED])
    if not steps:
        plan.steps = (HOLD,)
    with pytest.raises(SetupFailed) as caught:
        launch(plan, [0])
    assert caught.value.errno == errno.EINVAL
    assert caught.value.op == "launch"


# ---- any plan ----

TEXT = st.binary(max_size=40).map(lambda data: data.replace(b"\0", b""))
WORD = st.integers(0, 2**64 - 1)
SIZE = st.integers(0, 2**32 - 1)
SLOTS = [Slot(f"slot {number}", declared=True) for number in range(6)]
SLOT = st.sampled_from([None, *SLOTS])


@st.composite
def a_step(draw: st.DrawFn) -> Step:
    """Return a step of any kind with anything in its fields."""
    kind = draw(st.sampled_from(sorted(KINDS.keys() - {"EXEC"})))
    blob = kind in BLOBS
    return Step(
        kind,
        fd=draw(SLOT),
        fd2=draw(SLOT),
        out=draw(SLOT),
        flags=draw(WORD),
        value=draw(WORD),
        text=draw(TEXT),
        text2=draw(st.binary(max_size=60) if blob else TEXT),
        size=0 if blob else draw(SIZE),
        size2=0 if blob else draw(SIZE),
        ignore=draw(st.integers(0, 2**16 - 1)),
    )


@st.composite
def an_exec(draw: st.DrawFn) -> Step:
    """Return an EXEC step."""
    argv = draw(st.lists(TEXT, min_size=1, max_size=4))
    return exec_step(argv, draw(st.lists(TEXT, max_size=4)), draw(st.lists(TEXT.filter(bool), min_size=1, max_size=3)))


@settings(max_examples=300, deadline=None)
@given(st.lists(a_step(), max_size=20), an_exec(), st.sampled_from([None, *SLOTS]))
def test_any_plan_is_read_as_it_was_written(steps: list[Step], end: Step, pty: Slot | None) -> None:
    """Whatever stands in the fields, C reads it unchanged."""
    check_encoding(Plan([*steps, end], declared=SLOTS, pty=pty))


@settings(max_examples=200, deadline=None)
@given(st.lists(a_step(), max_size=20), st.lists(an_exec(), min_size=2, max_size=4))
def test_another_end_encodes_as_a_plan_of_its_own(steps: list[Step], ends: list[Step]) -> None:
    """with_end() gives the bytes that a plan made anew would have, and leaves the plan that it came from alone."""
    first = Plan([*steps, ends[0]], declared=SLOTS)
    before = first.encode()
    for end in ends[1:]:
        other = first.with_end(end)
        assert other.encode() == Plan([*steps, end], declared=SLOTS).encode()
        assert other.with_end(ends[0]).encode() == before
        check_encoding(other)
    assert first.encode() == before
    assert first.steps == (*steps, ends[0])


def test_equal_texts_are_stored_once() -> None:
    """A thousand steps on one path need its bytes once."""
    builder = Builder()
    for _ in range(1000):
        builder.add(INSIDE, Step("CHDIR", text=b"/a/rather/long/path"))
    assert builder.build(HOLD).encode().count(b"/a/rather/long/path\0") == 1


# ---- slots ----


def test_declared_slots_come_first_in_their_order() -> None:
    """The host's descriptors fill the first slots, in the order of their declaration; those that steps make follow."""
    builder = Builder()
    first = builder.declare(7, "first")
    made = builder.produce(INSIDE, Step("FSOPEN", text=b"proc"), "made")
    second = builder.declare(3, "second")
    builder.add(INSIDE, Step("FCHDIR", fd=second))
    builder.add(INSIDE, Step("FCHDIR", fd=made))
    plan = builder.build(HOLD)
    assert builder.fds == [7, 3]
    assert plan.declared == (first, second)
    assert (plan.slots[None], plan.slots[first], plan.slots[second], plan.slots[made]) == (-1, 0, 1, 2)


def test_a_slot_must_be_filled_before_it_is_used() -> None:
    """A step that names a slot which neither the host nor an earlier step has filled is a PlanError."""
    for kind in ("FCHDIR", "MOVE_MOUNT"):
        builder = Builder()
        never = Slot("never made", declared=False)
        step = Step(kind, fd=never) if kind == "FCHDIR" else Step(kind, fd2=never)
        builder.add(INSIDE, step)
        with pytest.raises(PlanError, match="never made"):
            builder.build(HOLD)
    builder = Builder()
    late = Slot("late", declared=False)
    builder.add(INSIDE, Step("FCHDIR", fd=late))
    builder.add(INSIDE, Step("FSOPEN", text=b"proc", out=late))
    with pytest.raises(PlanError, match="late"):
        builder.build(HOLD)


def test_a_declared_slot_is_one_of_this_builder() -> None:
    """A slot that another builder declared has no descriptor here: a PlanError."""
    builder = Builder()
    builder.add(INSIDE, Step("FCHDIR", fd=Builder().declare(0, "somebody else's")))
    with pytest.raises(PlanError, match="somebody else's"):
        builder.build(HOLD)


def test_terminal_needs_a_slot_of_the_plan() -> None:
    """The terminal that is handed to the host is one that a step has opened."""
    builder = Builder()
    builder.pty = Slot("master", declared=False)
    with pytest.raises(PlanError, match="master"):
        builder.build(HOLD)


# ---- limits ----


@pytest.mark.parametrize("phase", [HOST, INSIDE, COMMAND])
def test_steps_are_limited(phase: str) -> None:
    """16,384 steps are the most, whatever their phase; the next is a PlanError when it is added."""
    builder = Builder()
    step = Step("UMASK", value=0o22)
    for _ in range(calls.MAX_STEPS):
        builder.add(phase, step)
    with pytest.raises(PlanError, match="16384"):
        builder.add(phase, step)
    with pytest.raises(PlanError, match="16384"):
        builder.build(EXAMPLES["EXEC"])


def test_the_most_steps_are_launched() -> None:
    """A plan of exactly 16,384 steps runs."""
    builder = Builder()
    for _ in range(calls.MAX_STEPS - 3):
        builder.add(INSIDE, Step("UMASK", value=0o22))
    plan = builder.build(HOLD)
    assert len(plan.steps) == 16384
    launch(plan).close()


def test_slots_are_limited() -> None:
    """1,024 slots are the most."""
    builder = Builder()
    for number in range(calls.MAX_SLOTS):
        builder.produce(INSIDE, Step("SOCKET", flags=2, value=2 << 32), f"slot {number}")
    builder.build(HOLD)
    builder.produce(INSIDE, Step("SOCKET", flags=2, value=2 << 32), "one more")
    with pytest.raises(PlanError, match="1025 descriptors; 1024 is the most"):
        builder.build(HOLD)


def test_bytes_are_limited() -> None:
    """A plan of more than 16 MiB is a PlanError when it is encoded, also where only its end is that large."""
    builder = Builder()
    builder.add(INSIDE, Step("WRITE", text=b"/file", text2=bytes(calls.MAX_PLAN)))
    with pytest.raises(PlanError, match="16777216 is the most"):
        builder.build(HOLD).encode()
    small = Builder().build(EXAMPLES["EXEC"])
    small.encode()
    with pytest.raises(PlanError, match="16777216 is the most"):
        small.with_end(exec_step([b"x", bytes(1) * calls.MAX_PLAN], [], [b"x"])).encode()


def test_nul_is_refused() -> None:
    """A NUL in a path or a name would cut it: a PlanError when the text is made, or else when the plan is encoded."""
    with pytest.raises(PlanError, match="NUL"):
        encode_text("a\0b")
    with pytest.raises(PlanError, match="NUL"):
        encode_text(b"\0")
    assert encode_text("caf\xe9/\udcff") == b"caf\xc3\xa9/\xff"
    for step in (Step("CHDIR", text=b"/a\0b"), Step("SYMLINK", text=b"a", text2=b"b\0c"), Step("WRITE", text=b"a\0b")):
        builder = Builder()
        builder.add(INSIDE, step)
        with pytest.raises(PlanError, match="NUL"):
            builder.build(HOLD).encode()


def test_the_child_waits_for_its_maps() -> None:
    """Id maps are written between the birth of the new process and the word that it may go on."""
    builder = Builder()
    builder.map("uid_map", "0 0 1\n")
    assert [step.kind for step in builder.build(HOLD).steps[:3]] == ["CLONE", "MAP", "GO"]


def test_phases_follow_each_other() -> None:
    """Whatever the order in which steps were added, the host's come first and the command's last."""
    builder = Builder()
    builder.add(COMMAND, Step("UMASK", value=3))
    builder.add(INSIDE, Step("UMASK", value=2))
    builder.add(HOST, Step("UMASK", value=1))
    plan = builder.build(EXAMPLES["EXEC"])
    assert [step.kind for step in plan.steps] == ["UMASK", "CLONE", "GO", "UMASK", "SUPERVISE", "UMASK", "EXEC"]
    assert [step.value for step in plan.steps if step.kind == "UMASK"] == [1, 2, 3]
