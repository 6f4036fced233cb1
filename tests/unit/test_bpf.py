"""The assembler of BPF programs, and the inverse and the interpreter by which they are tested."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolib._kernel.bpf import Instruction, Label, Reg, and_, assemble, exit_, ja, jeq, jne, jset, ldxw, mov, rsh
from tests.bpf import disassemble, listing, simulate

if TYPE_CHECKING:
    from isolib._kernel.bpf import Code

R0, R1, R2, R10 = Reg.R0, Reg.R1, Reg.R2, Reg.R10

REGISTERS = st.sampled_from(Reg)
CONSTANTS = st.integers(-(2**31), 2**31 - 1)
OPERANDS = CONSTANTS | REGISTERS
PLAIN = st.one_of(
    st.builds(ldxw, REGISTERS, REGISTERS, st.integers(-(2**15), 2**15 - 1)),
    st.builds(mov, REGISTERS, OPERANDS),
    st.builds(and_, REGISTERS, OPERANDS),
    st.builds(rsh, REGISTERS, st.integers(0, 63) | REGISTERS),
    st.just(exit_()),
)


@st.composite
def programs(draw: st.DrawFn) -> list[Code]:
    """Return instructions, some of them jumps forward to one of several labels."""
    plain = draw(st.lists(PLAIN, min_size=1, max_size=12))
    code: list[Code] = []
    for index in range(len(plain) - 1):
        code += [Label(f"{kind}{index}") for kind in draw(st.sets(st.sampled_from("ab")))]
        target = draw(st.integers(index + 1, len(plain) - 1))
        jump = draw(st.sampled_from((None, ja, jeq, jne, jset)))
        # The instruction stands between the jump and its target, which therefore is never where it is.
        if jump is ja:
            code.append(ja(f"x{target}"))
        elif jump in (jeq, jne, jset):
            code.append(jump(draw(REGISTERS), draw(OPERANDS), f"x{target}"))
        code += [plain[index], Label(f"x{index + 1}")]
    return [*code, plain[-1]]


@given(programs())
def test_disassembly_is_the_inverse(code: list[Code]) -> None:
    """Assembled, disassembled and assembled again, a program is the same, and so is its text."""
    words = assemble(code)
    again = disassemble(words)
    assert assemble(again) == words
    assert disassemble(assemble(again)) == again
    same = [(item.op, item.dst, item.operand, item.offset) for item in code if isinstance(item, Instruction)]
    assert [(item.op, item.dst, item.operand, item.offset) for item in again if isinstance(item, Instruction)] == same
    assert listing(words).count("\n") == len(again) - 1


OPCODES = st.sampled_from(
    (0x61, 0xB7, 0xBF, 0x57, 0x5F, 0x77, 0x7F, 0x05, 0x15, 0x1D, 0x55, 0x5D, 0x45, 0x4D, 0x95, 0x85, 0x0D)
)
WORDS = st.integers(-1, 2**64) | st.builds(
    lambda opcode, registers, offset, constant: opcode | registers << 8 | offset << 16 | constant << 32,
    OPCODES,
    st.sampled_from((0, 0x10, 0x21, 0xA9, 0xB0)),
    st.sampled_from((0, 0, 1, 0xFFFF)),
    st.sampled_from((0, 0, 5, 2**32 - 1)),
)


@given(st.lists(WORDS, max_size=6))
def test_any_numbers(words: list[int]) -> None:
    """Numbers are either refused, or a program that assembles to just these numbers."""
    try:
        code = disassemble(words)
    except ValueError:
        return
    assert assemble(code) == tuple(words)


def test_encoding() -> None:
    """Instructions have the numbers that the kernel's headers give them."""
    code: list[Code] = [
        ldxw(Reg.R4, R1, 8),  # BPF_LDX | BPF_MEM | BPF_W
        mov(Reg.R3, Reg.R4),  # BPF_ALU64 | BPF_MOV | BPF_X
        and_(Reg.R3, -2),  # BPF_ALU64 | BPF_AND | BPF_K
        rsh(Reg.R3, 16),
        jset(Reg.R3, 4, "end"),  # BPF_JMP | BPF_JSET | BPF_K
        jne(Reg.R3, Reg.R4, "end"),
        mov(R0, 1),
        Label("end"),
        exit_(),
    ]
    assert assemble(code) == (
        0x0000_0000_0008_14_61,
        0x0000_0000_0000_43_BF,
        0xFFFF_FFFE_0000_03_57,
        0x0000_0010_0000_03_77,
        0x0000_0004_0002_03_45,
        0x0000_0000_0001_43_5D,
        0x0000_0001_0000_00_B7,
        0x0000_0000_0000_00_95,
    )


def test_listing() -> None:
    """The text of a program is that of the kernel's own tools, with labels where jumps go."""
    code: list[Code] = [
        ldxw(R2, R1, 4),
        and_(R2, 7),
        rsh(R2, 1),
        jeq(R2, 0, "no"),
        jset(R2, Reg.R5, "no"),
        ja("yes"),
        Label("no"),
        mov(R0, 0),
        exit_(),
        Label("yes"),
        mov(R0, R2),
        exit_(),
    ]
    assert listing(assemble(code)).split("\n") == [
        "    r2 = *(u32 *)(r1 + 4)",
        "    r2 &= 7",
        "    r2 >>= 1",
        "    if r2 == 0 goto L6",
        "    if r2 & r5 goto L6",
        "    goto L8",
        "L6:",
        "    r0 = 0",
        "    exit",
        "L8:",
        "    r0 = r2",
        "    exit",
    ]


def test_a_register_is_no_number() -> None:
    """To compare with r1 is another instruction than to compare with 1."""
    assert mov(R0, R1) != mov(R0, 1)
    assert len({mov(R0, R1), mov(R0, 1), mov(R0, 1)}) == 2


@pytest.mark.parametrize(
    "code",
    [
        [ja("x"), exit_()],
        [ja("x"), exit_(), Label("x")],
        [Label("x"), ja("x"), exit_()],
        [mov(R0, 0), Label("x"), exit_(), jeq(R0, 0, "x")],
        [Label("x"), exit_(), Label("x")],
        [mov(R0, 2**31)],
        [mov(R0, -(2**31) - 1)],
        [rsh(R0, 64)],
        [rsh(R0, -1)],
        [ldxw(R0, R1, 2**15)],
        [jeq(R0, 0, "far"), *[exit_()] * 2**15, Label("far"), exit_()],
        [Instruction("call")],
        [Instruction("exit", R0, 5)],
        [Instruction("exit", R1)],
        [Instruction("mov", R0, 0, 4)],
        [Instruction("ldxw", R0, 4)],
        [Instruction("ja", R0, R1, to="x"), exit_(), Label("x"), exit_()],
    ],
)
def test_no_program(code: list[Code]) -> None:
    """What no kernel takes, or what is no instruction, is not assembled."""
    with pytest.raises(ValueError, match=r"label|forward|bits|has no|known|register"):
        assemble(code)


CONTEXT = bytes.fromhex("78563412 ffffffff 01000000")


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        ([mov(R0, 7), exit_()], 7),
        ([mov(R0, -1), exit_()], 2**64 - 1),
        ([ldxw(R0, R1, 0), exit_()], 0x12345678),
        ([ldxw(R0, R1, 4), exit_()], 0xFFFFFFFF),
        ([ldxw(R0, R1, 0), rsh(R0, 16), exit_()], 0x1234),
        ([ldxw(R0, R1, 0), mov(R2, 8), rsh(R0, R2), and_(R0, 0xFF), exit_()], 0x56),
        ([mov(R0, -1), and_(R0, -2), exit_()], 2**64 - 2),
        ([mov(R2, R1), ldxw(R0, R2, 8), exit_()], 1),
        ([mov(R0, 1), ja("x"), mov(R0, 2), Label("x"), exit_()], 1),
        ([mov(R0, 6), jset(R0, 1, "x"), mov(R0, 2), Label("x"), exit_()], 2),
        ([mov(R0, 6), jset(R0, 4, "x"), mov(R0, 2), Label("x"), exit_()], 6),
        ([mov(R0, 6), jeq(R0, 6, "x"), mov(R0, 2), Label("x"), exit_()], 6),
        ([mov(R0, 6), jne(R0, 6, "x"), mov(R0, 2), Label("x"), exit_()], 2),
        ([ldxw(R0, R1, 4), jeq(R0, -1, "x"), mov(R0, 2), Label("x"), exit_()], 2),  # the constant is extended, the load not
    ],
)
def test_execution(code: list[Code], answer: int) -> None:
    """A program answers what a processor would."""
    assert simulate(assemble(code), CONTEXT) == answer


@pytest.mark.parametrize(
    "code",
    [
        [exit_()],
        [mov(R0, R2), exit_()],
        [mov(R0, R1), exit_()],
        [mov(R0, 1)],
        [],
        [ldxw(R0, R2, 0), exit_()],
        [mov(R2, 0), ldxw(R0, R2, 0), exit_()],
        [ldxw(R0, R1, 9), exit_()],
        [ldxw(R0, R1, -1), exit_()],
        [and_(R1, 1), mov(R0, 0), exit_()],
        [jeq(R10, 0, "x"), Label("x"), exit_()],
    ],
)
def test_refused_execution(code: list[Code]) -> None:
    """What a verifier refuses, the interpreter does too."""
    with pytest.raises(ValueError, match=r"no number|over its end|address|beside|forward"):
        simulate(assemble(code), CONTEXT)
