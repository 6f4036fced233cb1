"""The CPU time of `import isolib` beside bare Python, the import of what it stands on included.

Importing isolib itself loads names lazily; the second contender also touches what a first sandbox needs.  The CPU time of the
whole interpreter process, user and system, is what is compared: a machine that is busy lengthens wall time, not this.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

# Last: an installed isolib goes before the checkout, which has no compiled part.
sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from benchmarks import common

if TYPE_CHECKING:
    from collections.abc import Callable

STATEMENTS: Final = {
    "bare python": "pass",
    "import isolib": "import isolib",
    "import isolib; isolib.run": "import isolib; isolib.run",
    "import subprocess": "import subprocess",
    "import cffi's back end": "import _cffi_backend",
    "import asyncio": "import asyncio",
}


def cpu_of(statement: str) -> Callable[[], int]:
    """Return a function that runs a statement in a new interpreter and returns the nanoseconds of CPU time it took."""

    def once() -> int:
        pid = os.posix_spawn(sys.executable, [sys.executable, "-c", statement], os.environ)
        _, status, usage = os.wait4(pid, 0)
        if status:
            raise RuntimeError(f"{statement!r} fails in this interpreter ({sys.executable}): is isolib installed?")
        return int((usage.ru_utime + usage.ru_stime) * 1e9)

    return once


def main() -> None:
    """Measure and report."""
    options = common.arguments(__doc__).parse_args()
    contenders, absent = common.present([common.Contender(name, cpu_of(text)) for name, text in STATEMENTS.items()])
    timings = common.interleave(contenders, 10 if options.quick else 100)
    bare = next(one for one in timings if one.name == "bare python")
    common.table("CPU time of an interpreter that does this and ends", timings, bare.name)
    common.tell_absent(absent)
    print("\nover bare python:")
    for one in timings:
        if one is not bare:
            print(f"  {one.name}: {one.minimum - bare.minimum:.2f} ms (minima), {one.median - bare.median:.2f} ms (medians)")
    common.write_json(options.json, {"import": common.timings_of(timings), "absent": absent})


if __name__ == "__main__":
    main()
