"""The two forms in which kernels take device rules: a BPF program (cgroup v2), and what is written into files (cgroup v1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from isolib._kernel import bpf
from isolib._kernel.bpf import Instruction, Label, Reg, and_, exit_, ja, jeq, jne, jset, ldxw, mov, rsh
from isolib.cgroups.controllers.device_rules import ACCESSES, check_rules, decisive, granted, in_order, rule_text
from isolib.errors import PlanError, Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import TypeAlias

    from isolib._kernel.bpf import Code
    from isolib.cgroups.controllers.device_rules import DeviceRule, Numbers

    Cells: TypeAlias = dict[Numbers, str]

__all__ = ["program", "v1_writes"]

# linux/bpf.h: BPF_DEVCG_DEV_*, BPF_DEVCG_ACC_*
_TYPES: Final = {"b": 1, "c": 2}
_BITS: Final = {"r": 2, "w": 4, "m": 1}

# ---- cgroup v2 ----

_CONTEXT, _PENDING, _SCRATCH = Reg.R1, Reg.R2, Reg.R3
_ACCESS_TYPE, _MAJOR, _MINOR = 0, 4, 8  # struct bpf_cgroup_dev_ctx; the first is access << 16 | type


def program(rules: Iterable[DeviceRule]) -> tuple[int, ...]:
    """Return the BPF program that decides as the rules do, always the same for the same list.

    Its context is struct bpf_cgroup_dev_ctx; it answers 1 for yes and 0 for no. It goes through the rules from the last to the
    first, with at most six instructions for each, and strikes what is asked for when it is allowed; when something is denied,
    or something is left, the answer is no. So it is with accesses that a future kernel may know.

    Raises
    ------
    PlanError
        It would be longer than the kernel takes.
    """
    checked = check_rules(rules)
    code = [
        ldxw(_PENDING, _CONTEXT, _ACCESS_TYPE),
        mov(_SCRATCH, _PENDING),
        and_(_SCRATCH, 0xFFFF),
        rsh(_PENDING, 16),
        jeq(_PENDING, 0, "allow"),
        jeq(_SCRATCH, _TYPES["c"], "c"),
        jne(_SCRATCH, _TYPES["b"], "deny"),
        *_section(checked, "b"),
        ja("deny"),
        Label("c"),
        *_section(checked, "c"),
        Label("deny"),
        mov(Reg.R0, 0),
        exit_(),
        Label("allow"),
        mov(Reg.R0, 1),
        exit_(),
    ]
    length = sum(isinstance(item, Instruction) for item in code)
    if length > bpf.MAX_INSTRUCTIONS:
        raise PlanError(
            f"devices: {len(checked)} rules make {length} instructions of BPF; the kernel takes {bpf.MAX_INSTRUCTIONS}"
        )
    return bpf.assemble(code)


def _section(rules: Sequence[DeviceRule], kind: str) -> list[Code]:
    """Return the code for one kind of device; it ends where nothing allowed what was left."""
    code: list[Code] = []
    for index, rule in reversed(tuple(enumerate(rules))):
        if rule.kind not in ("a", kind):
            continue
        bits, name = _mask(rule.access), f"{kind}{index}"
        # Loaded anew each time: a verifier that remembers which number the last rule has found follows the rest of the program
        # once for each rule, and gives up at a million instructions.
        for offset, number in ((_MAJOR, rule.major), (_MINOR, rule.minor)):
            code += [] if number is None else [ldxw(_SCRATCH, _CONTEXT, offset), jne(_SCRATCH, number, name)]
        code += [and_(_PENDING, ~bits), jeq(_PENDING, 0, "allow")] if rule.allow else [jset(_PENDING, bits, "deny")]
        code.append(Label(name))
    return code


def _mask(letters: str) -> int:
    return sum(_BITS[letter] for letter in letters)


# ---- cgroup v1 ----


def v1_writes(rules: Iterable[DeviceRule]) -> list[tuple[str, str]]:
    """Return what to write into which file of a v1 group, in this order, so that it decides as the rules do.

    Returns
    -------
    list of (file, text)
        The first is always ``("devices.deny", "a")``.

    Raises
    ------
    PlanError
        A rule is none.
    Unsupported
        v1 cannot say it; the rule is named.

    Notes
    -----
    v1 knows a default and exceptions from it, but none from exceptions. Where the default is to deny, a request must be
    contained in one exception; where it is to allow, it must touch none. So rules are not written one by one: each exception
    says all that holds for its devices.

    The writes take CAP_SYS_ADMIN and a group without children. Lists that allow but for exceptions need a parent that allows
    by default, and, between the second write and the last, allow too much: write them before a process is in the group. All
    others only ever add to what is allowed. Where the parent does not allow something, the kernel refuses the write (EPERM).

    Examples
    --------
    >>> from isolib.cgroups.controllers.devices import DeviceRule
    >>> v1_writes([DeviceRule("c", 1, None, "r"), DeviceRule("c", 1, 3, "w")])
    [('devices.deny', 'a'), ('devices.allow', 'c 1:* r'), ('devices.allow', 'c 1:3 rw')]
    """
    checked = check_rules(rules)
    allowed = {kind: _cells(checked, kind) for kind in ("c", "b")}
    denied = {
        kind: {numbers: in_order(set(ACCESSES) - set(letters)) for numbers, letters in cells.items()}
        for kind, cells in allowed.items()
    }
    writes = [("devices.deny", "a")]
    contradictions = [(kind, *found) for kind, cells in allowed.items() for found in _contradictions(cells)]
    if not contradictions:
        return writes + [("devices.allow", text) for text in _exceptions(allowed)]
    if not any(_contradictions(cells) for cells in denied.values()):
        return [*writes, ("devices.allow", "a"), *(("devices.deny", text) for text in _exceptions(denied))]
    kind, numbers, letter = contradictions[0]
    rule = decisive(checked, kind, numbers, letter)  # a denial: what holds for the wider cell holds here but for that
    index = next(index for index, one in enumerate(checked) if one is rule)
    raise Unsupported(
        f"devices[{index}], {rule}",
        "cgroup v1, which knows a default and exceptions from it, but none from exceptions",
        "allow the devices one by one instead of many but some, or use cgroup v2",
    )


def _cells(rules: Sequence[DeviceRule], kind: str) -> Cells:
    """Return what is allowed with the devices of a kind, which fall into cells: those that rules name, and all others.

    None in a cell's numbers is any number that is in no narrower cell. Wider cells come first.
    """
    named = {(rule.major, rule.minor) for rule in rules if rule.kind in ("a", kind)}
    majors = {major for major, minor in named if minor is None}
    minors = {minor for major, minor in named if major is None}
    # Where two wildcards cross, both speak. Elsewhere a cell that no rule names is as a wider one, and needs no mention.
    cells = named | {(None, None)} | {(major, minor) for major in majors for minor in minors}
    ordered = sorted(
        cells, key=lambda numbers: (*(number is not None for number in numbers), *(number or 0 for number in numbers))
    )
    return {numbers: granted(rules, kind, numbers) for numbers in ordered}


def _wider(cells: Cells, numbers: Numbers) -> list[Numbers]:
    major, minor = numbers
    return [one for one in ((None, None), (major, None), (None, minor)) if one != numbers and one in cells]


def _contradictions(cells: Cells) -> list[tuple[Numbers, str]]:
    """Return where a cell lacks what a wider one has: an exception for that would cover the cell as well."""
    return [
        (numbers, letter)
        for numbers, letters in cells.items()
        for wider in _wider(cells, numbers)
        for letter in cells[wider]
        if letter not in letters
    ]


def _exceptions(kinds: dict[str, Cells]) -> list[str]:
    """Return the exceptions that give every cell what it has, where it has not all of it from a wider one."""
    return [
        rule_text(kind, numbers, letters)
        for kind, cells in kinds.items()
        for numbers, letters in cells.items()
        if letters and all(cells[wider] != letters for wider in _wider(cells, numbers))
    ]
