"""Rules for devices: what they mean, and that both forms decide alike."""

from __future__ import annotations

import os
import pickle
import stat
import struct
from dataclasses import FrozenInstanceError
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from isolib._kernel.bpf import MAX_INSTRUCTIONS
from isolib.cgroups.controllers.devices import STANDARD_DEVICES, DeviceRule, evaluate, program, v1_writes
from isolib.errors import PlanError, SyscallError, Unsupported
from isolib.mounts.dev import DEVICES
from tests.bpf import simulate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    Request = tuple[str, int, int, str]

OTHER = 7
"""A number that no rule of these tests names."""

KINDS = "bc"
MAJORS = (1, 4095)
MINORS = (0, 2**20 - 1)
ACCESSES = ("r", "w", "m", "rw", "rm", "wm", "rwm")
DEVICES_ASKED = tuple(product(KINDS, (*MAJORS, OTHER), (*MINORS, OTHER)))
REQUESTS = tuple((*device, access) for device in DEVICES_ASKED for access in ACCESSES)

RULES: st.SearchStrategy[DeviceRule] = st.builds(
    DeviceRule,
    st.sampled_from(("a", "b", "c")),
    st.sampled_from((None, None, *MAJORS)),
    st.sampled_from((None, None, *MINORS)),
    st.sampled_from(ACCESSES),
    st.booleans(),
)
LISTS = st.lists(RULES, max_size=7).map(tuple)


def allow(text: str) -> DeviceRule:
    """Return a permission."""
    return DeviceRule.parse(text)


def deny(text: str) -> DeviceRule:
    """Return a denial."""
    return DeviceRule.parse(text, allow=False)


# ---- the meaning ----


def applied(rules: Iterable[DeviceRule]) -> set[Request]:
    """Return what is allowed: each rule, in its order, adds to it or takes from it."""
    single: set[Request] = set()
    for rule in rules:
        for kind, major, minor in DEVICES_ASKED:
            if rule.kind in ("a", kind) and rule.major in (None, major) and rule.minor in (None, minor):
                change = {(kind, major, minor, letter) for letter in rule.access}
                single = single | change if rule.allow else single - change
    return {request for request in REQUESTS if all((*request[:3], letter) in single for letter in request[3])}


@given(LISTS)
def test_last_rule_decides(rules: tuple[DeviceRule, ...]) -> None:
    """Rules have the same effect as if each, in its order, added to what is allowed or took from it."""
    assert {request for request in REQUESTS if evaluate(rules, *request)} == applied(rules)


@pytest.mark.parametrize(
    ("rules", "request_", "answer"),
    [
        ([], ("c", 1, 3, "r"), False),
        ([allow("a")], ("b", 8, 0, "rwm"), True),
        ([allow("c 1:3 r"), allow("c 1:3 w")], ("c", 1, 3, "rw"), True),
        ([allow("c 1:3 r"), allow("c *:* w")], ("c", 1, 3, "rw"), True),
        ([allow("c 1:3 rw")], ("c", 1, 3, "rm"), False),
        ([allow("c 1:3 rw")], ("b", 1, 3, "r"), False),
        ([allow("a"), deny("c 1:* w")], ("c", 1, 3, "w"), False),
        ([allow("a"), deny("c 1:* w")], ("c", 1, 3, "r"), True),
        ([allow("a"), deny("c 1:* w"), allow("c 1:3 w")], ("c", 1, 3, "rwm"), True),
        ([allow("c 1:3 rw"), deny("a *:* m")], ("c", 1, 3, "rw"), True),
    ],
)
def test_examples(rules: list[DeviceRule], request_: Request, answer: object) -> None:
    """Permissions add up, a later rule wins where it speaks, and nothing is allowed by itself."""
    assert evaluate(rules, *request_) is answer
    assert by_program(program(rules), request_) is answer


def test_standard_devices() -> None:
    """The devices of every /dev, ptmx and terminals can be used; consoles, disks, memory, and making of nodes cannot."""
    for major, minor in (*DEVICES.values(), (5, 2), (136, 0), (136, 12345)):
        assert evaluate(STANDARD_DEVICES, "c", major, minor, "rw")
    refused = (("c", 1, 1, "r"), ("c", 5, 1, "w"), ("c", 4, 1, "w"), ("c", 10, 229, "r"), ("b", 8, 0, "r"), ("c", 1, 11, "r"))
    for request in (*refused, ("b", 8, 0, "m"), ("c", 10, 200, "m")):
        assert not evaluate(STANDARD_DEVICES, *request)
    assert len(v1_writes(STANDARD_DEVICES)) == 1 + len(STANDARD_DEVICES)


# ---- the program ----


def by_program(words: Sequence[int], request: Request, *, more: int = 0) -> bool:
    """Return what the program answers; ``more``: further bits of access."""
    kind, major, minor, access = request
    bits = sum({"m": 1, "r": 2, "w": 4}[letter] for letter in access) | more
    context = struct.pack("<III", bits << 16 | {"b": 1, "c": 2}[kind], major, minor)
    answer = simulate(words, context)
    assert answer in (0, 1)  # the verifier insists
    return answer == 1


@given(LISTS)
@example((allow("a"),))
@example((allow("a"), deny("a")))
@example((deny("a"), allow("c 1:* rwm"), deny("a *:0 w"), allow("c *:* m")))
def test_program_decides_as_the_rules_do(rules: tuple[DeviceRule, ...]) -> None:
    """For every request, the program answers what the rules say, and to a request with unknown accesses no."""
    words = program(rules)
    for request in REQUESTS:
        assert by_program(words, request) is evaluate(rules, *request)
        assert not by_program(words, request, more=8)
    for device in DEVICES_ASKED:
        assert by_program(words, (*device, ""))
        assert evaluate(rules, *device, "")


@given(LISTS)
def test_program_is_short_and_always_the_same(rules: tuple[DeviceRule, ...]) -> None:
    """Each rule costs six instructions for each kind at the most, and the same list makes the same program."""
    both = sum(2 if rule.kind == "a" else 1 for rule in rules)
    assert len(program(rules)) <= 12 + 6 * both
    assert program(list(rules)) == program(rules)


@given(LISTS)
def test_no_instruction_is_out_of_reach(rules: tuple[DeviceRule, ...]) -> None:
    """Every instruction can be reached from the first, for the verifier refuses programs where one cannot."""
    words = program(rules)
    reached, todo = set[int](), [0]
    while todo:
        index = todo.pop()
        if index not in reached:
            reached.add(index)
            opcode, offset = words[index] & 0xFF, words[index] >> 16 & 0xFFFF
            jumps = opcode & 7 == 5 and opcode != 0x95
            todo += [index + 1 + offset] if jumps else []
            todo += [] if opcode in (0x05, 0x95) else [index + 1]
    assert reached == set(range(len(words)))


def test_longest_program() -> None:
    """A list whose program fits is taken; one whose program is too long is refused before anything is done."""
    many = [DeviceRule("c", 1, minor) for minor in range(20000)]
    fitting = (MAX_INSTRUCTIONS - 12) // 6
    assert len(program(many[:fitting])) <= MAX_INSTRUCTIONS
    with pytest.raises(PlanError, match=f"20000 rules make 120012 instructions .* {MAX_INSTRUCTIONS}"):
        program(many)


# ---- cgroup v1 ----


class V1:
    """What a v1 group does with what is written into its files (security/device_cgroup.c), its parent allowing everything."""

    def __init__(self) -> None:
        self.default = True
        self.exceptions: dict[tuple[str, str, str], set[str]] = {}

    def write(self, file: str, text: str) -> None:
        """Write into a file."""
        allowing = {"devices.allow": True, "devices.deny": False}[file]
        if text == "a":
            self.default, self.exceptions = allowing, {}
            return
        kind, numbers, letters = text.split(" ")
        major, minor = numbers.split(":")
        assert kind in ("b", "c")
        assert letters == "".join(letter for letter in "rwm" if letter in letters) != ""
        found = self.exceptions.setdefault((kind, major, minor), set())
        if allowing is self.default:  # only an exception for exactly the same devices is taken back
            found -= set(letters)
        else:
            found |= set(letters)
        if not found:
            del self.exceptions[kind, major, minor]

    def decide(self, kind: str, major: int, minor: int, access: str) -> bool:
        """Return whether a request is allowed."""
        matching = [
            letters
            for (its_kind, its_major, its_minor), letters in self.exceptions.items()
            if its_kind == kind and its_major in ("*", str(major)) and its_minor in ("*", str(minor))
        ]
        if self.default:
            return not any(letters & set(access) for letters in matching)
        return any(set(access) <= letters for letters in matching)


def v1_can(decisions: Callable[[str, int, int, str], bool], *, default: bool) -> bool:
    """Return whether exceptions from a default can decide so: whether all that are right for their devices suffice."""
    group = V1()
    group.default = default
    for kind in KINDS:
        for major, minor in product((None, *MAJORS), (None, *MINORS)):
            covered = [
                (kind, one, other)
                for one, other in product((*MAJORS, OTHER), (*MINORS, OTHER))
                if major in (None, one) and minor in (None, other)
            ]
            letters = {letter for letter in "rwm" if all(decisions(*device, letter) is not default for device in covered)}
            name = tuple("*" if number is None else str(number) for number in (major, minor))
            group.exceptions[kind, name[0], name[1]] = letters
    # An exception of no letters contains no request, and touches none.
    return all(group.decide(*request) is decisions(*request) for request in REQUESTS)


@given(LISTS | LISTS.map(lambda rules: tuple(rule for rule in rules if rule.allow)))
@example((allow("c 1:* r"), allow("c *:0 w")))
@example((allow("a"), deny("c 1:0 w"), deny("c 1:* r")))
@example((allow("c *:* r"), deny("c 1:* r"), allow("c 1:0 r")))
def test_v1_decides_as_the_rules_do(rules: tuple[DeviceRule, ...]) -> None:
    """What is written makes a v1 group decide as the rules say; a list is refused just if no exceptions could, by its rule."""
    expressible = [v1_can(lambda *request: evaluate(rules, *request), default=default) for default in (False, True)]
    if not any(expressible):
        with pytest.raises(Unsupported) as caught:
            v1_writes(rules)
        assert caught.value.feature in {f"devices[{index}], {rule}" for index, rule in enumerate(rules) if not rule.allow}
        return
    writes = v1_writes(rules)
    assert writes[0] == ("devices.deny", "a")
    group = V1()
    before: set[Request] = set()
    for number, (file, text) in enumerate(writes):
        group.write(file, text)
        now = {request for request in REQUESTS if group.decide(*request)}
        if number and expressible[0]:  # nothing is ever allowed that the list does not allow
            assert before <= now
            assert all(evaluate(rules, *request) for request in now)
        before = now
    assert before == {request for request in REQUESTS if evaluate(rules, *request)}


@pytest.mark.parametrize(
    ("rules", "writes"),
    [
        ([], []),
        ([deny("c 1:3 rwm")], []),
        ([allow("c 1:3 r"), allow("c 1:3 w")], [("devices.allow", "c 1:3 rw")]),
        ([allow("c 1:3 rwm"), deny("c 1:* m")], [("devices.allow", "c 1:3 rw")]),
        ([allow("c *:* m"), allow("c 1:3 rw")], [("devices.allow", "c *:* m"), ("devices.allow", "c 1:3 rwm")]),
        ([allow("a")], [("devices.allow", "c *:* rwm"), ("devices.allow", "b *:* rwm")]),
        ([allow("a"), deny("c 1:3 w")], [("devices.allow", "a"), ("devices.deny", "c 1:3 w")]),
    ],
)
def test_v1_text(rules: list[DeviceRule], writes: list[tuple[str, str]]) -> None:
    """Permissions are written with all that they inherit, denials only where everything else is allowed."""
    assert v1_writes(rules) == [("devices.deny", "a"), *writes]


def test_v1_cannot() -> None:
    """An exception from an exception is refused, and the error names the rule and what would help."""
    rules = [deny("a"), allow("c 1:* rw"), deny("c 1:7 w")]
    with pytest.raises(Unsupported, match=r"devices\[2\], deny c 1:7 w: refused by cgroup v1.*cgroup v2"):
        v1_writes(rules)


# ---- values ----


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"kind": "d"}, "kind='d'"),
        ({"kind": ""}, "kind=''"),
        ({"kind": None}, "kind=None"),
        ({"kind": "c", "major": -1}, "major=-1"),
        ({"kind": "c", "major": 4096}, "major=4096.*4095"),
        ({"kind": "c", "major": True}, "major=True"),
        ({"kind": "c", "major": "1"}, "major='1'"),
        ({"kind": "b", "minor": 2**20}, "minor=1048576.*1048575"),
        ({"kind": "b", "minor": 1.0}, "minor=1.0"),
        ({"kind": "b", "access": ""}, "access=''"),
        ({"kind": "b", "access": "x"}, "access='x'"),
        ({"kind": "b", "access": "rr"}, "access='rr'"),
        ({"kind": "b", "access": None}, "access=None"),
        ({"kind": "b", "allow": 1}, "allow=1"),
    ],
)
def test_bad_rule(arguments: dict[str, Any], complaint: str) -> None:
    """A rule that cannot be is refused when it is made, and the error names the field and its value."""
    with pytest.raises(PlanError, match=complaint):
        DeviceRule(**arguments)


@pytest.mark.parametrize(
    "text",
    ["", "c", "c 1:3", "c 1 rw", "d 1:3 r", "c 1:3 x", "c 1:3 rr", "c -1:3 r", "c 1:3 r\n", "c 4096:0 r", "c ٣:1 r", None, 7],
)
def test_bad_text(text: Any) -> None:  # noqa: ANN401
    """What is no rule is refused."""
    with pytest.raises(PlanError, match="DeviceRule"):
        DeviceRule.parse(text)


@given(RULES)
def test_text_is_the_inverse_of_parsing(rule: DeviceRule) -> None:
    """A rule is what is parsed from its text."""
    assert DeviceRule.parse(rule.text, allow=rule.allow) == rule
    assert str(rule) == f"{'allow' if rule.allow else 'deny'} {rule.text}"


def test_parsing() -> None:
    """`a` alone is everything, blanks may be several, and accesses come in any order."""
    assert DeviceRule.parse("a") == DeviceRule("a", None, None, "rwm")
    assert DeviceRule.parse("b  8:*\tmr", allow=False) == DeviceRule("b", 8, None, "rm", allow=False)
    assert DeviceRule("c", 1, 3, "mwr").text == "c 1:3 rwm"


def test_rules_are_values() -> None:
    """A rule is frozen, hashable, and survives pickling."""
    rule = allow("c 1:3 rw")
    with pytest.raises(FrozenInstanceError):
        rule.major = 4  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(rule)) == rule  # noqa: S301 -- its own
    assert {rule, allow("c 1:3 wr")} == {rule}


def test_rule_of_a_node(tmp_path: Path) -> None:
    """A rule can be made from a node, also by way of a symbolic link; what is no device, or not there, is told apart."""
    assert DeviceRule.of("/dev/null", "rw") == allow("c 1:3 rw")
    (tmp_path / "link").symlink_to("/dev/zero")
    assert DeviceRule.of(tmp_path / "link", allow=False) == deny("c 1:5 rwm")
    with pytest.raises(PlanError, match="it is no device"):
        DeviceRule.of(tmp_path)
    with pytest.raises(SyscallError, match="nowhere: No such file") as caught:
        DeviceRule.of(tmp_path / "nowhere")
    assert caught.value.op == "stat"
    with pytest.raises(PlanError, match="path is empty"):
        DeviceRule.of("")


def test_rule_of_a_disk(tmp_path: Path) -> None:
    """A block device makes a rule for block devices."""
    disks = [entry.path for entry in os.scandir("/dev") if stat.S_ISBLK(entry.stat().st_mode)]
    if not disks:
        pytest.skip("there is no block device in /dev")
    number = os.stat(disks[0]).st_rdev
    assert DeviceRule.of(disks[0], "r") == DeviceRule("b", os.major(number), os.minor(number), "r")


@pytest.mark.parametrize("function", [program, v1_writes, lambda rules: evaluate(rules, "c", 1, 3, "r")])
def test_list_of_something_else(function: Callable[[Any], object]) -> None:
    """What is no list of rules is refused, and the error says where."""
    with pytest.raises(PlanError, match=r"devices\[1\]='c 1:3 rwm'.*DeviceRule.parse"):
        function([allow("a"), "c 1:3 rwm"])
    with pytest.raises(PlanError, match="devices=None"):
        function(None)
