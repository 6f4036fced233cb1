"""BPF programs: bpf(2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from isolib._kernel._ext import lib
from isolib._kernel.calls.checking import checked

if TYPE_CHECKING:
    from collections.abc import Sequence

_BPF_ALLOW: Final = (0x00000001000000B7, 0x0000000000000095)  # r0 = 1; exit


def bpf_device_program(instructions: Sequence[int] = _BPF_ALLOW) -> int:
    """Load a program that decides about access to devices in a cgroup of v2, by default one that allows all: bpf(2).

    Returns its descriptor.  It decides nothing before it is attached to a group.
    """
    return checked("bpf", "BPF_PROG_TYPE_CGROUP_DEVICE", lib.isolib_bpf_device_program(list(instructions), len(instructions)))
