"""BPF programs: bpf(2)."""

from __future__ import annotations

from errno import ENOSPC
from typing import TYPE_CHECKING, Final, NamedTuple

from isolib._kernel._ext import ffi, lib
from isolib._kernel.calls.checking import checked, refusal, taken
from isolib._kernel.handle import Fd

if TYPE_CHECKING:
    from collections.abc import Sequence

_BPF_ALLOW: Final = (0x00000001000000B7, 0x0000000000000095)  # r0 = 1; exit
_DEVICE: Final = "BPF_PROG_TYPE_CGROUP_DEVICE"

# linux/bpf.h
BPF_PROG_TYPE_CGROUP_DEVICE: Final = 15
BPF_F_ALLOW_MULTI: Final = 2
_BPF_F_QUERY_EFFECTIVE: Final = 1
_MANY: Final = 64
"""How many programs of a kind a group takes (BPF_CGROUP_MAX_PROGS); those that it inherits come on top."""


class BpfProgram(NamedTuple):
    """What the kernel tells of a program: ``tag`` is a digest of its instructions."""

    id: int
    type: int
    name: str
    tag: bytes


def bpf_device_program(instructions: Sequence[int] = _BPF_ALLOW) -> int:
    """Load a program that decides about access to devices in a cgroup of v2, by default one that allows all: bpf(2).

    Returns its descriptor.  It decides nothing before it is attached to a group.
    """
    return checked("bpf", _DEVICE, lib.isolib_bpf_device_program(list(instructions), len(instructions)))


def take_device_program(instructions: Sequence[int]) -> Fd:
    """As `bpf_device_program`, owned from the first moment on."""
    return taken("bpf", _DEVICE, Fd.take(lib.isolib_bpf_device_program, list(instructions), len(instructions)))


def bpf_attach(group: int, program: int, flags: int) -> None:
    """Attach a device program to the group whose v2 directory this is: BPF_PROG_ATTACH."""
    checked("bpf", "BPF_PROG_ATTACH", lib.isolib_bpf_attach(group, program, flags))


def bpf_detach(group: int, program: int) -> None:
    """Detach a device program: BPF_PROG_DETACH.

    Where the group's programs were not attached with BPF_F_ALLOW_MULTI, the kernel detaches the only one, whichever is given.
    """
    checked("bpf", "BPF_PROG_DETACH", lib.isolib_bpf_detach(group, program))


def bpf_attached(group: int, *, effective: bool = False) -> list[int]:
    """Return the ids of the device programs of a group, ``effective``: with those that it inherits; BPF_PROG_QUERY."""
    flags = _BPF_F_QUERY_EFFECTIVE if effective else 0
    count = ffi.new("uint32_t *", _MANY)
    while True:
        ids = ffi.new("uint32_t[]", count[0])
        if lib.isolib_bpf_attached(group, flags, ids, count) >= 0:
            return [int(ids[index]) for index in range(count[0])]
        # Then the kernel says how many there are; by the next call there may be more.
        if ffi.errno != ENOSPC or count[0] <= len(ids):
            raise refusal("bpf", "BPF_PROG_QUERY", ffi.errno)


def bpf_program(program_id: int) -> Fd:
    """Return a descriptor of a program that is loaded: BPF_PROG_GET_FD_BY_ID."""
    return taken("bpf", f"BPF_PROG_GET_FD_BY_ID {program_id}", Fd.take(lib.isolib_bpf_program_by_id, program_id))


def bpf_program_info(program: int) -> BpfProgram:
    """Return what the kernel tells of a program: BPF_OBJ_GET_INFO_BY_FD."""
    info = ffi.new("struct isolib_bpf_program *")
    checked("bpf", "BPF_OBJ_GET_INFO_BY_FD", lib.isolib_bpf_program_info(program, info))
    return BpfProgram(info.id, info.type, ffi.string(info.name).decode(), bytes(info.tag))
