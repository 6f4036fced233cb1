"""Seccomp filters that make a system call fail as a kernel, a security module or a container engine would."""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

#: Name: number on x86-64, number on aarch64.
NUMBERS = {
    "add_key": (248, 217),
    "capget": (125, 90),
    "capset": (126, 91),
    "chdir": (80, 49),
    "clock_gettime": (228, 113),
    "clone": (56, 220),
    "clone3": (435, 435),
    "close": (3, 57),
    "close_range": (436, 436),
    "dup3": (292, 24),
    "execve": (59, 221),
    "execveat": (322, 281),
    "fchdir": (81, 50),
    "fchown": (93, 55),
    "fcntl": (72, 25),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "getcwd": (79, 17),
    "getresgid": (120, 150),
    "getresuid": (118, 148),
    "getrusage": (98, 165),
    "getxattrat": (464, 464),
    "ioctl": (16, 29),
    "keyctl": (250, 219),
    "kill": (62, 129),
    "landlock_restrict_self": (446, 446),
    "listxattrat": (465, 465),
    "lseek": (8, 62),
    "memfd_create": (319, 279),
    "mkdirat": (258, 34),
    "mknodat": (259, 33),
    "mmap": (9, 222),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "openat": (257, 56),
    "openat2": (437, 437),
    "personality": (135, 92),
    "pipe2": (293, 59),
    "pivot_root": (155, 41),
    "ppoll": (271, 73),
    "prctl": (157, 167),
    "prlimit64": (302, 261),
    "read": (0, 63),
    "recvmsg": (47, 212),
    "request_key": (249, 218),
    "rt_sigprocmask": (14, 135),
    "sched_setaffinity": (203, 122),
    "seccomp": (317, 277),
    "sendmsg": (46, 211),
    "setdomainname": (171, 162),
    "setgroups": (116, 159),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "setpriority": (141, 140),
    "setresgid": (119, 149),
    "setresuid": (117, 147),
    "set_robust_list": (273, 99),
    "setsid": (112, 157),
    "setsockopt": (54, 208),
    "setxattrat": (463, 463),
    "signalfd4": (289, 74),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "statx": (332, 291),
    "symlinkat": (266, 36),
    "umask": (95, 166),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "wait4": (61, 260),
    "write": (1, 64),
    "writev": (20, 66),
}

MACHINE = {"x86_64": 0, "aarch64": 1}.get(os.uname().machine, 0)

LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, FAIL_WITH = 0x7FFF0000, 0x00050000
ARGUMENTS = 16  # where they begin in struct seccomp_data


class Denied(NamedTuple):
    """A call that is to fail with an error number; only where its arguments have the given values, if any are given."""

    name: str
    errno: int
    arguments: tuple[tuple[int, int], ...] = ()


def _instruction(code: int, value: int, if_not: int = 0) -> bytes:
    return struct.pack("=HBBI", code, 0, if_not, value)


def deny(*calls: Denied) -> bytes:
    """Return the program of a filter that lets everything pass but these calls."""
    program = b""
    for call in calls:
        tests = [(0, NUMBERS[call.name][MACHINE])]
        tests += [(ARGUMENTS + 8 * number, value & 0xFFFFFFFF) for number, value in call.arguments]
        left = 2 * len(tests)
        for offset, value in tests:
            left -= 2
            program += _instruction(LOAD, offset) + _instruction(JUMP_IF_EQUAL, value, if_not=left + 1)
        program += _instruction(RETURN, FAIL_WITH | call.errno)
    return program + _instruction(RETURN, ALLOW)
