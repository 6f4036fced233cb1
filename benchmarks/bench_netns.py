"""Making, entering and leaving a network namespace, beside the bare system calls that do the same.

``with isolib.new_netns():`` is compared with unshare(CLONE_NEWNET) and setns() back by ctypes, with loopback brought up and
without; entering one that exists, with setns() there and back.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys
from typing import Final

# Last: an installed isolib goes before the checkout, which has no compiled part.
sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from benchmarks import common

CLONE_NEWNET: Final = 0x40000000
SIOCSIFFLAGS: Final = 0x8914
_LO_UP: Final = struct.pack("16sh22x", b"lo", 1)
_libc: Final = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), what)


def _lo_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, _LO_UP)


class Bare:
    """The same by system calls, on the calling thread."""

    def __init__(self) -> None:
        self.home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.create(lo=False, keep=True)

    def create(self, *, lo: bool, keep: bool = False) -> None:
        """Make a namespace, enter it, leave it."""
        _checked(_libc.unshare(CLONE_NEWNET), "unshare(CLONE_NEWNET)")
        if lo:
            _lo_up()
        fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        _checked(_libc.setns(self.home, CLONE_NEWNET), "setns")
        if keep:
            self.other = fd
        else:
            os.close(fd)

    def enter(self) -> None:
        """Enter a namespace that exists, leave it."""
        _checked(_libc.setns(self.other, CLONE_NEWNET), "setns")
        _checked(_libc.setns(self.home, CLONE_NEWNET), "setns")


def isolib_contenders() -> tuple[list[common.Contender], dict[str, str]]:
    """Return what isolib offers, or why it cannot be measured."""
    try:
        import isolib  # noqa: PLC0415 - whether it is there is the question

        new_netns = isolib.new_netns
        kept = new_netns()
    except (ImportError, AttributeError, OSError) as error:
        return [], {"isolib": f"{type(error).__name__}: {error}"}

    def create(*, lo: bool) -> None:
        with new_netns(lo=lo):
            pass

    def enter() -> None:
        with kept.entered():
            pass

    return [
        common.Contender("new_netns()", lambda: create(lo=True)),
        common.Contender("new_netns(lo=False)", lambda: create(lo=False)),
        common.Contender("netns.entered()", common.each_of(100, enter)),
    ], {}


def main() -> None:
    """Measure and report."""
    options = common.arguments(__doc__).parse_args()
    rounds = 20 if options.quick else 500
    ours, absent = isolib_contenders()
    try:
        bare = Bare()
    except OSError as error:
        sys.exit(f"bench_netns: {error}: making a network namespace needs root")
    contenders = [
        common.Contender("unshare, lo up, setns", lambda: bare.create(lo=True)),
        common.Contender("unshare, setns", lambda: bare.create(lo=False)),
        common.Contender("setns, setns", common.each_of(100, bare.enter)),
        *ours,
    ]
    timings = {one.name: one for one in common.interleave(contenders, rounds)}
    groups = {
        "made with loopback up, entered, left": ("unshare, lo up, setns", "new_netns()"),
        "made, entered, left": ("unshare, setns", "new_netns(lo=False)"),
        "entered and left": ("setns, setns", "netns.entered()"),
    }
    for title, names in groups.items():
        common.table(title, [timings[name] for name in names if name in timings], names[0])
    common.tell_absent(absent)
    common.write_json(options.json, {"netns": common.timings_of(list(timings.values())), "absent": absent})


if __name__ == "__main__":
    main()
