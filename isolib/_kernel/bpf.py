"""eBPF programs as values, and the assembler that makes of them what the kernel takes.

It knows what a program needs that looks at its context and answers yes or no: loads, masks, comparisons, jumps. All is pure:
from instructions to numbers. Jumps go forward only, as every kernel's verifier wants it, so every program ends.

Sources: Documentation/bpf/standardization/instruction-set.rst, linux/bpf_common.h, linux/bpf.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TypeAlias

    Code: TypeAlias = "Instruction | Label"

__all__ = [
    "MAX_INSTRUCTIONS",
    "Instruction",
    "Label",
    "Reg",
    "and_",
    "assemble",
    "exit_",
    "ja",
    "jeq",
    "jne",
    "jset",
    "ldxw",
    "mov",
    "rsh",
]

MAX_INSTRUCTIONS: Final = 4096
"""What every kernel takes (BPF_MAXINSNS); since 5.2 it takes more from the privileged, but no jump goes further than 2**15."""

_OPCODES: Final = {
    "ldxw": 0x61,
    "mov": 0xB7,
    "and": 0x57,
    "rsh": 0x77,
    "ja": 0x05,
    "jeq": 0x15,
    "jne": 0x55,
    "jset": 0x45,
    "exit": 0x95,
}
_X: Final = 0x08  # the operand is a register and no constant
_ARITHMETIC: Final = {"mov": "=", "and": "&=", "rsh": ">>="}
_COMPARISONS: Final = {"jeq": "==", "jne": "!=", "jset": "&"}
_WITH_OPERAND: Final = _ARITHMETIC.keys() | _COMPARISONS.keys()
_JUMPS: Final = _COMPARISONS.keys() | {"ja"}
_UNUSED: Final = {
    "ldxw": ("to",),
    "ja": ("dst", "operand", "offset"),
    "exit": ("dst", "operand", "offset", "to"),
    **dict.fromkeys(_ARITHMETIC, ("offset", "to")),
    **dict.fromkeys(_COMPARISONS, ("offset",)),
}
"""Fields that must be as if nobody had given them: the kernel insists on zeros, so that they can mean something one day."""
_BITS: Final = 64


class Reg(Enum):
    """A register.  A program starts with its context's address in r1 and ends with its answer in r0; r10 is the stack's."""

    R0 = 0
    R1 = 1
    R2 = 2
    R3 = 3
    R4 = 4
    R5 = 5
    R6 = 6
    R7 = 7
    R8 = 8
    R9 = 9
    R10 = 10

    def __str__(self) -> str:
        return f"r{self.value}"


@dataclass(frozen=True, slots=True)
class Label:
    """A place in a program; what follows it is where a jump to this name goes."""

    name: str


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction; the functions below make them.

    Attributes
    ----------
    op
        What it does: ``"mov"``.
    dst
        The register that it changes or compares.
    operand
        The other one, or a constant of 32 bits, which is extended with its sign.
    offset
        Of what is loaded, from the address in the operand.
    to
        The name of the label that it jumps to.
    """

    op: str
    dst: Reg = Reg.R0
    operand: Reg | int = 0
    offset: int = 0
    to: str = ""

    def __str__(self) -> str:
        if self.op == "ldxw":
            return f"{self.dst} = *(u32 *)({self.operand} + {self.offset})"
        if self.op in _ARITHMETIC:
            return f"{self.dst} {_ARITHMETIC[self.op]} {self.operand}"
        if self.op in _COMPARISONS:
            return f"if {self.dst} {_COMPARISONS[self.op]} {self.operand} goto {self.to}"
        return f"goto {self.to}" if self.op == "ja" else self.op


_NOTHING: Final = Instruction("")


def ldxw(dst: Reg, address: Reg, offset: int) -> Instruction:
    """Load 32 bits; the upper half becomes zero."""
    return Instruction("ldxw", dst, address, offset)


def mov(dst: Reg, operand: Reg | int) -> Instruction:
    """Set a register."""
    return Instruction("mov", dst, operand)


def and_(dst: Reg, operand: Reg | int) -> Instruction:
    """Keep the bits that are set in the operand."""
    return Instruction("and", dst, operand)


def rsh(dst: Reg, operand: Reg | int) -> Instruction:
    """Shift to the right, zeros coming in."""
    return Instruction("rsh", dst, operand)


def ja(to: str) -> Instruction:
    """Jump."""
    return Instruction("ja", to=to)


def jeq(dst: Reg, operand: Reg | int, to: str) -> Instruction:
    """Jump if both are equal."""
    return Instruction("jeq", dst, operand, to=to)


def jne(dst: Reg, operand: Reg | int, to: str) -> Instruction:
    """Jump if they are not equal."""
    return Instruction("jne", dst, operand, to=to)


def jset(dst: Reg, operand: Reg | int, to: str) -> Instruction:
    """Jump if they have a bit in common."""
    return Instruction("jset", dst, operand, to=to)


def exit_() -> Instruction:
    """End with the answer that is in r0."""
    return Instruction("exit")


# ---- to numbers ----


def assemble(code: Iterable[Code]) -> tuple[int, ...]:
    """Return a program as the kernel takes it: a 64-bit number for each instruction, for the little endian machines.

    Raises
    ------
    ValueError
        A jump goes back, out of the program, or to a label that is not there or there twice; a number has too many bits.

    Examples
    --------
    >>> [hex(word) for word in assemble([mov(Reg.R0, 1), exit_()])]
    ['0x1000000b7', '0x95']
    """
    places: dict[str, int] = {}
    instructions: list[Instruction] = []
    for item in code:
        if isinstance(item, Instruction):
            instructions.append(item)
        elif item.name in places:
            raise ValueError(f"the label {item.name} is there twice")
        else:
            places[item.name] = len(instructions)
    return tuple(_encode(item, _distance(item, index, places, len(instructions))) for index, item in enumerate(instructions))


def _distance(item: Instruction, index: int, places: dict[str, int], end: int) -> int:
    """Return what an instruction has in its offset: how far it jumps, or from where it loads."""
    if item.op not in _JUMPS:
        return item.offset
    if item.to not in places:
        raise ValueError(f"{item}: there is no such label")
    if not index < places[item.to] < end:
        raise ValueError(f"{item}: it does not lead forward to an instruction")
    return places[item.to] - index - 1


def _encode(item: Instruction, offset: int) -> int:
    if item.op not in _OPCODES:
        raise ValueError(f"{item.op!r} is no instruction that is known here")
    if wrong := [name for name in _UNUSED[item.op] if getattr(item, name) != getattr(_NOTHING, name)]:
        raise ValueError(f"{item}: {item.op} has no {wrong[0]}")
    opcode, source, constant = _OPCODES[item.op], 0, 0
    if isinstance(item.operand, Reg):
        source = item.operand.value
        opcode |= _X if item.op in _WITH_OPERAND else 0
    elif item.op == "ldxw":
        raise ValueError(f"{item}: an address is in a register")
    else:
        constant = item.operand
    if not -(1 << 15) <= offset < 1 << 15:
        raise ValueError(f"{item}: {offset} does not fit into 16 bits")
    if not -(1 << 31) <= constant < 1 << 31:
        raise ValueError(f"{item}: {constant} does not fit into 32 bits")
    if item.op == "rsh" and not 0 <= constant < _BITS:
        raise ValueError(f"{item}: a register has {_BITS} bits")
    return opcode | item.dst.value << 8 | source << 12 | (offset & 0xFFFF) << 16 | (constant & 0xFFFFFFFF) << 32
