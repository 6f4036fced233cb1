"""What BPF programs say and do: the inverse of the assembler, and an interpreter that does without the kernel.

Source: Documentation/bpf/standardization/instruction-set.rst.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

from isolib._kernel.bpf import _BITS, _JUMPS, _OPCODES, _WITH_OPERAND, _X, Instruction, Label, Reg, assemble

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from isolib._kernel.bpf import Code

NAMES = {code: op for op, code in _OPCODES.items()}
WORD = (1 << _BITS) - 1
ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "mov": lambda _, value: value,
    "and": operator.and_,
    "rsh": lambda old, value: old >> (value & 63),
}
COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "jeq": operator.eq,
    "jne": operator.ne,
    "jset": lambda left, right: left & right != 0,
}


def disassemble(words: Sequence[int]) -> tuple[Code, ...]:
    """Return the instructions that `assemble` makes these numbers of; labels are called after where they are.

    Raises
    ------
    ValueError
        It is no program that `assemble` could have made.
    """
    instructions = [decode(word, index) for index, word in enumerate(words)]
    targets = {item.to for item in instructions if item.to}
    code: list[Code] = []
    for index, item in enumerate(instructions):
        code += [Label(name) for name in (f"L{index}",) if name in targets]
        code.append(item)
    if assemble(code) != tuple(words):
        raise ValueError("a field that an instruction does not use is not zero")
    return tuple(code)


def decode(word: int, index: int) -> Instruction:
    """Return the instruction that a number at this place is."""
    opcode, dst, source = word & 0xFF, word >> 8 & 0xF, word >> 12 & 0xF
    offset, constant = signed(word >> 16, 16), signed(word >> 32, 32)
    op = NAMES.get(opcode) or NAMES.get(opcode & ~_X, "")
    if (
        not op
        or not 0 <= word <= WORD
        or max(dst, source) > Reg.R10.value
        or (opcode != _OPCODES[op] and op not in _WITH_OPERAND)
    ):
        raise ValueError(f"{word:#x} is no instruction that is known here")
    is_register = op == "ldxw" or opcode != _OPCODES[op]
    if op in _JUMPS:
        return Instruction(op, Reg(dst), Reg(source) if is_register else constant, to=f"L{index + 1 + offset}")
    return Instruction(op, Reg(dst), Reg(source) if is_register else constant, offset)


def signed(value: int, bits: int) -> int:
    """Return the number with a sign that the lowest bits are."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def listing(words: Sequence[int]) -> str:
    """Return a program as text, as the kernel's own tools write it."""
    return "\n".join(f"{item.name}:" if isinstance(item, Label) else f"    {item}" for item in disassemble(words))


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
            return number(registers, Reg.R0)
        if item.op == "ldxw":
            registers[item.dst] = load(registers, item, context)
        elif item.op == "mov" and isinstance(item.operand, Reg) and registers.get(item.operand, 0) is None:
            registers[item.dst] = None
        elif item.op in ARITHMETIC:
            old = 0 if item.op == "mov" else number(registers, item.dst)
            registers[item.dst] = ARITHMETIC[item.op](old, number(registers, item.operand)) & WORD
        elif item.op == "ja" or COMPARISONS[item.op](number(registers, item.dst), number(registers, item.operand)):
            index = int(item.to.removeprefix("L"))  # as disassemble calls them
    raise ValueError("the program runs over its end")


def number(registers: dict[Reg, int | None], operand: Reg | int) -> int:
    """Return what an operand is worth."""
    if not isinstance(operand, Reg):
        return operand & WORD
    value = registers.get(operand)
    if value is None:
        raise ValueError(f"{operand} holds no number")
    return value


def load(registers: dict[Reg, int | None], item: Instruction, context: bytes) -> int:
    """Return what an instruction loads from the context."""
    if not isinstance(item.operand, Reg) or registers.get(item.operand, 0) is not None:
        raise ValueError(f"{item}: {item.operand} is not the context's address")
    if not 0 <= item.offset <= len(context) - 4:
        raise ValueError(f"{item}: it reads beside the context, which has {len(context)} bytes")
    return int.from_bytes(context[item.offset : item.offset + 4], "little")
