"""eBPF programs as values: an assembler, its inverse, and an interpreter by which programs are tested without the kernel.

It knows what a program needs that looks at its context and answers yes or no: loads, masks, comparisons, jumps. All is pure:
from instructions to numbers and back. Jumps go forward only, as every kernel's verifier wants it, so every program ends.

Sources: Documentation/bpf/standardization/instruction-set.rst, linux/bpf_common.h, linux/bpf.h.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import TypeAlias

    Code: TypeAlias = "Instruction | Label"

__all__ = [
    "MAX_INSTRUCTIONS",
    "Instruction",
    "Label",
    "Reg",
    "and_",
    "assemble",
    "disassemble",
    "exit_",
    "ja",
    "jeq",
    "jne",
    "jset",
    "ldxw",
    "listing",
    "mov",
    "rsh",
    "simulate",
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
_NAMES: Final = {code: op for op, code in _OPCODES.items()}
_X: Final = 0x08  # the operand is a register and no constant
_ARITHMETIC: Final[dict[str, tuple[str, Callable[[int, int], int]]]] = {
    "mov": ("=", lambda _, value: value),
    "and": ("&=", operator.and_),
    "rsh": (">>=", lambda old, value: old >> (value & 63)),
}
_COMPARISONS: Final[dict[str, tuple[str, Callable[[int, int], bool]]]] = {
    "jeq": ("==", operator.eq),
    "jne": ("!=", operator.ne),
    "jset": ("&", lambda left, right: left & right != 0),
}
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
_WORD: Final = (1 << _BITS) - 1


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

    def __str__(self) -> str:
        return f"{self.name}:"


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
            return f"{self.dst} {_ARITHMETIC[self.op][0]} {self.operand}"
        if self.op in _COMPARISONS:
            return f"if {self.dst} {_COMPARISONS[self.op][0]} {self.operand} goto {self.to}"
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


# ---- to numbers and back ----


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


def disassemble(words: Sequence[int]) -> tuple[Code, ...]:
    """Return the instructions that `assemble` makes these numbers of; labels are called after where they are.

    Raises
    ------
    ValueError
        It is no program that this module could have made.
    """
    instructions = [_decode(word, index) for index, word in enumerate(words)]
    targets = {item.to for item in instructions if item.to}
    code: list[Code] = []
    for index, item in enumerate(instructions):
        code += [Label(name) for name in (f"L{index}",) if name in targets]
        code.append(item)
    if assemble(code) != tuple(words):
        raise ValueError("a field that an instruction does not use is not zero")
    return tuple(code)


def _decode(word: int, index: int) -> Instruction:
    opcode, dst, source = word & 0xFF, word >> 8 & 0xF, word >> 12 & 0xF
    offset, constant = _signed(word >> 16, 16), _signed(word >> 32, 32)
    op = _NAMES.get(opcode) or _NAMES.get(opcode & ~_X, "")
    if (
        not op
        or not 0 <= word <= _WORD
        or max(dst, source) > Reg.R10.value
        or (opcode != _OPCODES[op] and op not in _WITH_OPERAND)
    ):
        raise ValueError(f"{word:#x} is no instruction that is known here")
    is_register = op == "ldxw" or opcode != _OPCODES[op]
    if op in _JUMPS:
        return Instruction(op, Reg(dst), Reg(source) if is_register else constant, to=f"L{index + 1 + offset}")
    return Instruction(op, Reg(dst), Reg(source) if is_register else constant, offset)


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def listing(words: Sequence[int]) -> str:
    """Return a program as text, as the kernel's own tools write it.

    Examples
    --------
    >>> print(listing(assemble([mov(Reg.R0, 1), exit_()])))
        r0 = 1
        exit
    """
    return "\n".join(str(item) if isinstance(item, Label) else f"    {item}" for item in disassemble(words))


# ---- execution ----


def simulate(words: Sequence[int], context: bytes) -> int:
    """Return what a program answers, computed here.

    Parameters
    ----------
    words
        The program.
    context
        What r1 leads to, in the machine's order of bytes, which is the little endian one.

    Raises
    ------
    ValueError
        It does what a verifier refuses: uses a register that has no value, reads beside the context, counts with an address,
        runs over its end; or it is no program of `assemble`.
    """
    instructions = [item for item in disassemble(words) if isinstance(item, Instruction)]
    registers: dict[Reg, int | None] = {Reg.R1: None}  # None: the context's address
    index = 0
    while index < len(instructions):
        item = instructions[index]
        index += 1
        if item.op == "exit":
            return _number(registers, Reg.R0)
        if item.op == "ldxw":
            registers[item.dst] = _load(registers, item, context)
        elif item.op == "mov" and isinstance(item.operand, Reg) and registers.get(item.operand, 0) is None:
            registers[item.dst] = None
        elif item.op in _ARITHMETIC:
            old = 0 if item.op == "mov" else _number(registers, item.dst)
            registers[item.dst] = _ARITHMETIC[item.op][1](old, _number(registers, item.operand)) & _WORD
        elif item.op == "ja" or _COMPARISONS[item.op][1](_number(registers, item.dst), _number(registers, item.operand)):
            index = int(item.to.removeprefix("L"))  # as disassemble calls them
    raise ValueError("the program runs over its end")


def _number(registers: dict[Reg, int | None], operand: Reg | int) -> int:
    if not isinstance(operand, Reg):
        return operand & _WORD
    value = registers.get(operand)
    if value is None:
        raise ValueError(f"{operand} holds no number")
    return value


def _load(registers: dict[Reg, int | None], item: Instruction, context: bytes) -> int:
    if not isinstance(item.operand, Reg) or registers.get(item.operand, 0) is not None:
        raise ValueError(f"{item}: {item.operand} is not the context's address")
    if not 0 <= item.offset <= len(context) - 4:
        raise ValueError(f"{item}: it reads beside the context, which has {len(context)} bytes")
    return int.from_bytes(context[item.offset : item.offset + 4], "little")
