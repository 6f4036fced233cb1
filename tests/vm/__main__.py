"""`python -m tests.vm --help` says it."""

from __future__ import annotations

import argparse
import signal
import sys

from tests.vm.kernels import KERNELS, Unavailable, fetch
from tests.vm.machine import Died, Guest, TimedOut, run

DESCRIPTION = """\
Runs a command on another Linux kernel, in this machine's files. Its output is passed on while it comes, and its exit status is
this program's; 124 is for a time-out, 125 for a kernel that cannot be had or that ended before the command did. Without a
command, the kernel is only fetched.

kernels:
"""

EXAMPLE = """
PATH begins with the virtual environment:

  python -m tests.vm --user unified -- pytest -q tests/kernel/test_spawn.py
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser for what comes before `--`."""
    kernels = "".join(f"  {name:<11} {kernel.purpose}\n" for name, kernel in KERNELS.items())
    made = argparse.ArgumentParser(
        prog="python -m tests.vm",
        usage="%(prog)s [options] KERNEL [-- COMMAND ...]",
        description=DESCRIPTION + kernels + EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("kernel", choices=KERNELS, metavar="KERNEL", help=argparse.SUPPRESS)
    made.add_argument("--user", action="store_true", help="as an ordinary user, in a cgroup delegated to him")
    made.add_argument("--systemd", action="store_true", help="under systemd")
    made.add_argument("--timeout", type=float, default=600, metavar="SECONDS", help="end the machine after so long (600)")
    made.add_argument("--memory", type=int, default=2048, metavar="MIB", help="of the guest (2048)")
    made.add_argument("--words", default="", help="more words for the kernel's command line")
    return made


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return what comes before `--`, parsed, and the command after it."""
    at = argv.index("--") if "--" in argv else len(argv)
    return parser().parse_args(argv[:at]), argv[at + 1 :]


def main(argv: list[str]) -> int:
    """Run the command that a command line asks for, and return the exit status."""
    options, command = parse(argv)
    guest = Guest(options.kernel, options.user, options.systemd, options.memory, tuple(options.words.split()))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # as any exception, it ends the machine first
    try:
        if command:
            return run(guest, command, output=sys.stdout.buffer, timeout=options.timeout)
        fetch(options.kernel)
    except (Died, TimedOut, Unavailable) as error:
        sys.stderr.write(f"isolib: {error}\n")
        return 124 if isinstance(error, TimedOut) else 125
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
