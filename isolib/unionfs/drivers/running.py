"""Programs of other projects, where the kernel has no interface of its own to what they do: run to their end."""

from __future__ import annotations

import os
from errno import EIO
from subprocess import DEVNULL
from typing import TYPE_CHECKING, Final

from isolib._kernel import seam
from isolib._kernel.handle import Fd
from isolib._kernel.programs import find_program
from isolib.errors import Unsupported, from_errno

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["need_program", "run_program"]

_ENVIRONMENT: Final = {"PATH": "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C"}
_MOST: Final = 1 << 22


def need_program(name: str, feature: str, package: str) -> str:
    """Return the whole path of a program.

    Raises
    ------
    Unsupported
        It is not installed.
    """
    found = find_program(name)
    if found is None:
        raise Unsupported(feature, f"the program {name}, which is not installed", f"apt install {package}")
    return found


def run_program(argv: Sequence[str], *, pass_fds: Iterable[int] = ()) -> str:
    """Run a program to its end, and return what it wrote.

    Raises
    ------
    SyscallError
        EIO: it failed; the hint is what it said.
    """
    with Fd(os.memfd_create("output")) as output, Fd(os.memfd_create("errors")) as errors:
        with seam.spawn(argv, env=_ENVIRONMENT, pass_fds=pass_fds, stdin=DEVNULL, stdout=output, stderr=errors) as process:
            status = process.wait()
        if status.returncode:
            raise from_errno(os.path.basename(argv[0]), " ".join(argv[1:]), EIO, _text(errors) or str(status))
        return _text(output)


def _text(file: Fd) -> str:
    return os.pread(file.fileno(), _MOST, 0).decode(errors="surrogateescape").strip()
