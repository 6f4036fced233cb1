"""The launch plan: an immutable list of steps, encoded for the launcher, and explained for people.

A :class:`Builder` collects steps in the order in which they will run; :meth:`Builder.build` freezes them.  The plan is complete
and validated before the first system call, and is the one source of what the launcher does, of what an error says, and of what
:meth:`Plan.explain` prints.
"""

from __future__ import annotations

import os
import struct
from copy import copy
from typing import TYPE_CHECKING, Final, NamedTuple

from isolib._kernel import calls
from isolib._kernel.course import sections
from isolib._kernel.explain import explain_step
from isolib.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from isolib._kernel.course import Section
    from isolib._kernel.lending import Lender

KINDS: Final = calls.step_kinds()
_STEP: Final = struct.Struct("=HHiiiQQIIII")
_HEADER: Final = struct.Struct("=IIIIIi")
_WORD: Final = 0xFFFFFFFFFFFFFFFF

HOST, INSIDE, COMMAND = "host", "inside", "command"


class Slot:
    """A place for a file descriptor: declared (the host fills it) or produced by a step."""

    __slots__ = ("declared", "label")

    def __init__(self, label: str, *, declared: bool) -> None:
        self.label = label
        self.declared = declared

    def __repr__(self) -> str:
        return f"<{self.label}>"


class Step(NamedTuple):
    """One step; what its fields mean depends on the kind, as ``cdef.h`` says."""

    kind: str
    fd: Slot | None = None
    fd2: Slot | None = None
    out: Slot | None = None
    flags: int = 0
    value: int = 0
    text: bytes = b""
    text2: bytes = b""
    size: int = 0
    size2: int = 0
    ignore: int = 0
    what: str = ""  # the object, for errors: a path, a name

    @property
    def op(self) -> str:
        """The system call that an error of this step is about."""
        return explain_step(self).op

    @property
    def target(self) -> str:
        """The object that an error of this step is about."""
        return self.what or os.fsdecode(self.text.replace(b"\0", b" ").strip())


#: The kinds whose second text is counted bytes, not a string.
BLOBS: Final = frozenset({"MAP", "MAP_HELPER", "EXEC", "WRITE", "PUT", "AFFINITY", "SETGROUPS", "SECCOMP"})


class Plan:
    """An immutable plan: ``steps``, the slots that the host must fill (``declared``), and its encoding."""

    __slots__ = ("_bytes", "_prefix", "declared", "pty", "slots", "steps", "stream_owner")

    def __init__(self, steps: Sequence[Step], *, declared: Sequence[Slot], pty: Slot | None = None) -> None:
        self.steps = tuple(steps)
        self.declared = tuple(declared)
        self.pty = pty
        #: Whom the pipes of the command are given to, or None.
        self.stream_owner: tuple[int, int] | None = None
        self.slots = _number_slots(self.steps, self.declared)
        if pty not in self.slots:
            raise PlanError(f"no step opens {pty!r}")
        self._prefix: tuple[bytes, bytes] | None = None
        self._bytes: bytes | None = None

    def with_end(self, end: Step) -> Plan:
        """Return the same plan with another last step; what is before it is encoded only once."""
        plan = Plan.__new__(Plan)
        plan.steps = (*self.steps[:-1], end)
        plan.declared, plan.pty, plan.slots = self.declared, self.pty, self.slots
        plan.stream_owner = self.stream_owner
        plan._prefix, plan._bytes = self._encode_prefix(), None  # noqa: SLF001 - its own class
        return plan

    def encode(self) -> bytes:
        """Return the plan as the launcher reads it."""
        if self._bytes is None:
            steps, texts = self._encode_prefix()
            area = _Texts(texts)
            last = self._pack(self.steps[-1], area)
            self._bytes = self._frame(steps + last, area.area())
        return self._bytes

    def _encode_prefix(self) -> tuple[bytes, bytes]:
        if self._prefix is None:
            area = _Texts()
            steps = b"".join([self._pack(step, area) for step in self.steps[:-1]])
            self._prefix = steps, area.area()
        return self._prefix

    def _pack(self, step: Step, area: _Texts) -> bytes:
        slots = self.slots
        return _STEP.pack(
            KINDS[step.kind],
            step.ignore,
            slots[step.fd],
            slots[step.fd2],
            slots[step.out],
            step.flags & _WORD,
            step.value & _WORD,
            *area.place(step),
        )

    def _frame(self, steps: bytes, area: bytes) -> bytes:
        size = _HEADER.size + len(steps) + len(area)
        if size > calls.MAX_PLAN:
            raise PlanError(f"the plan has {size} bytes of steps and texts; {calls.MAX_PLAN} is the most")
        slots = len(self.slots) - 1
        header = _HEADER.pack(calls.PLAN_MAGIC, calls.PLAN_VERSION, len(self.steps), slots, len(area), self.slots[self.pty])
        return header + steps + area

    def explain(self) -> str:
        """Return the system calls to come, process by process, a line each, with the manual page that describes it.

        A line begins with the number of its step, which is also that of an error.
        """
        return "\n".join(line for section in self.sections() for line in section.lines())

    def sections(self) -> list[Section]:
        """Return what each process of the launch will do, and the calling thread."""
        return list(sections(self.steps))


class _Texts:
    """The text area: offset 0 is the empty string, equal strings are stored once."""

    def __init__(self, before: bytes = b"\0") -> None:
        self._parts: list[bytes] = [before]
        self._offsets: dict[bytes, int] = {b"": 0}
        self._size = len(before)

    def _put(self, text: bytes) -> int:
        offset = self._offsets.get(text)
        if offset is None:
            offset = self._offsets[text] = self._size
            self._parts.append(text + b"\0")
            self._size += len(text) + 1
        return offset

    def place(self, step: Step) -> tuple[int, int, int, int]:
        """Return ``text, size, text2, size2`` of a step."""
        if step.kind == "EXEC":
            return self._put(step.text), len(step.text), self._put(step.text2), len(step.text2)
        blob = step.kind in BLOBS
        if b"\0" in step.text or (b"\0" in step.text2 and not blob):
            raise PlanError(f"NUL in a text of {step.kind} {step.what}")
        if blob:
            return self._put(step.text), 0, self._put(step.text2), len(step.text2)
        return self._put(step.text), step.size, self._put(step.text2), step.size2

    def area(self) -> bytes:
        return b"".join(self._parts)


def _number_slots(steps: Iterable[Step], declared: Sequence[Slot]) -> dict[Slot | None, int]:
    numbers: dict[Slot | None, int] = {None: calls.NO_SLOT}
    for slot in declared:
        numbers[slot] = len(numbers) - 1
    for step in steps:
        made = (step.out, step.fd2) if step.kind == "PTY_OPEN" else (step.out,)
        for used in (step.fd, step.fd2):
            if used not in numbers and used not in made:
                raise PlanError(f"{step.kind} uses {used!r}, which is neither declared nor made by a step before it")
        for filled in made:
            if filled not in numbers:
                numbers[filled] = len(numbers) - 1
    if len(numbers) - 1 > calls.MAX_SLOTS:
        raise PlanError(f"the plan uses {len(numbers) - 1} descriptors; {calls.MAX_SLOTS} is the most")
    return numbers


def encode_text(text: str | bytes) -> bytes:
    """Return the bytes of a path or a name for a step; a NUL in it is a :class:`PlanError`."""
    encoded = os.fsencode(text)
    if b"\0" in encoded:
        raise PlanError(f"NUL in {text!r}")
    return encoded


class Builder:
    """Collects steps.  Modules add theirs in turn; nothing happens before the plan is launched.

    ``add`` appends to the phase given: ``"host"`` runs in stage 1 with the caller's rights and namespaces, ``"inside"`` in the
    new namespaces, ``"command"`` in the command's own process before its exec.
    """

    def __init__(self) -> None:
        self._host: list[Step] = []
        self._maps: list[Step] = []
        self._inside: list[Step] = []
        self._command: list[Step] = []
        self._declared: dict[Slot, int] = {}
        self.clone_flags = 0
        self.cgroup: Slot | None = None
        #: Tells the supervisor that the group is out of memory.
        self.oom: Slot | None = None
        #: And whether that has cost its command a process.
        self.oom_kills: Slot | None = None
        self.pty: Slot | None = None
        #: The root as the first module that needed one began it, for those that come after.
        self.guest: Slot | None = None
        self.supervise_flags = 0
        self.deadline_ms = 0
        self.stream_owner: tuple[int, int] | None = None
        #: Slots that each launch fills with what somebody lends to its process.
        self.lenders: dict[Slot, Lender] = {}

    def borrow(self, slot: Slot, lender: Lender) -> None:
        """Have a slot filled by a lender with each launch."""
        slot.declared = True
        self._declared[slot] = -1
        self.lenders[slot] = lender

    @property
    def borrows(self) -> bool:
        """Whether anything is lent for a launch."""
        return bool(self.lenders)

    def declare(self, fd: int, label: str) -> Slot:
        """Return the slot that holds a descriptor of the host's."""
        slot = Slot(label, declared=True)
        self._declared[slot] = fd
        return slot

    def slot_of(self, fd: int) -> Slot:
        """Return the slot of a descriptor that was declared."""
        return next(slot for slot, declared in self._declared.items() if declared == fd)

    @property
    def fds(self) -> list[int]:
        """The descriptors of the declared slots, in their order."""
        return list(self._declared.values())

    def fds_with(self, filled: Mapping[Slot, int]) -> list[int]:
        """Return the same, with some slots filled for one launch only."""
        return [filled.get(slot, fd) for slot, fd in self._declared.items()]

    def add(self, phase: str, step: Step) -> Slot | None:
        """Append a step; returns the slot that it fills."""
        steps = self._inside if phase == INSIDE else self._host if phase == HOST else self._command
        steps.append(step)
        if len(steps) > calls.MAX_STEPS:
            raise PlanError(f"a plan of more than {calls.MAX_STEPS} steps: too many mounts or files")
        return step.out

    def produce(self, phase: str, step: Step, label: str) -> Slot:
        """Append a step that yields a descriptor; returns its slot."""
        slot = Slot(label, declared=False)
        self.add(phase, step._replace(out=slot))
        return slot

    def map(self, name: str, content: str) -> None:
        """Write ``uid_map``, ``gid_map`` or ``setgroups`` of the new user namespace."""
        self._maps.append(Step("MAP", text=name.encode(), text2=content.encode(), what=f"{name} {content.strip()}"))

    def map_helper(self, path: str, arguments: Sequence[str]) -> None:
        """Write a map by ``newuidmap`` or ``newgidmap``."""
        blob = b"".join(argument.encode() + b"\0" for argument in arguments)
        self._maps.append(Step("MAP_HELPER", text=encode_text(path), text2=blob, what=f"{path} {' '.join(arguments)}"))

    def again(self, fds: Mapping[Slot, int], contents: Mapping[tuple[str, bytes], bytes]) -> Builder:
        """Return the same with other descriptors, and files with other contents, by their names and what they had."""
        made = copy(self)
        made._declared = {**self._declared, **fds}  # noqa: SLF001 - its own class
        made._inside = [  # noqa: SLF001
            step if (step.what, step.text2) not in contents else step._replace(text2=contents[step.what, step.text2])
            for step in self._inside
        ]
        return made

    def build(self, end: Step) -> Plan:
        """Freeze: ``end`` is the EXEC step, or HOLD or REAP where nothing is executed."""
        clone = Step("CLONE", fd=self.cgroup, flags=self.clone_flags, what="new process")
        steps = [*self._host, clone, *self._maps, Step("GO"), *self._inside]
        if end.kind == "EXEC":
            steps.append(Step("SUPERVISE", self.oom, self.oom_kills, flags=self.supervise_flags, value=self.deadline_ms))
            steps.extend(self._command)
        else:
            end = end._replace(flags=self.supervise_flags, value=self.deadline_ms)
        steps.append(end)
        if len(steps) > calls.MAX_STEPS:
            raise PlanError(f"a plan of {len(steps)} steps; {calls.MAX_STEPS} is the most: too many mounts or files")
        plan = Plan(steps, declared=tuple(self._declared), pty=self.pty)
        plan.stream_owner = self.stream_owner
        return plan


def exec_step(argv: Sequence[bytes], env: Sequence[bytes], candidates: Sequence[bytes]) -> Step:
    """Return the last step: execute the first of ``candidates`` that exists, as execvp(3) does."""
    strings = b"".join(word + b"\0" for word in (*argv, *env))
    return Step(
        "EXEC",
        text=b"".join(path + b"\0" for path in candidates),
        text2=strings,
        flags=len(argv),
        value=len(env),
        what=os.fsdecode(argv[0]),
    )


HOLD: Final = Step("HOLD", what="resident process")

#: The last step of the reaper, to be given the slot of its table.
REAP: Final = Step("REAP", what="reaper")
