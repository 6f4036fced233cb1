"""Overlays that a deputy mounts for an ordinary user: what is said to it, and what it does."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib.errors import Unsupported
from isolib.unionfs.deputy import deputy
from isolib.unionfs.stacking import open_directory, stack

if TYPE_CHECKING:
    from isolib._kernel.handle import Fd
    from isolib.unionfs.deputy import Deputy
    from isolib.unionfs.stacking import Stack, Stacked

__all__ = ["stack_by_deputy"]

#: What leads to a descriptor of a process.
_OF_PROCESS: Final = re.compile(r"/proc/(self|thread-self|[0-9]+)/fd/[0-9]+(?=/|$)")


def stack_by_deputy(wanted: Stack) -> tuple[Stacked, Deputy]:
    """Have a mount made in a user namespace; the deputy is the one who may do more with it.

    Raises
    ------
    SyscallError
        As `isolib.unionfs.stacking.stack`.
    Unsupported
        There can be no deputy, or it does not see these directories.
    """
    paths = _paths(wanted)
    with calls.Layers(paths) as seen:
        identities = tuple(seen.identities)
        carried = _carried(paths)
        found = deputy()
        made = found.call(stack_seen, wanted, identities, carried)
        if made is None:
            # Something was mounted here that did not reach it.  Mounts that it has made need it no more.
            found.end()
            made = found.call(stack_seen, wanted, identities, carried)
    if made is None:
        raise Unsupported(
            "an overlay for an ordinary user of these directories",
            "the kernel, which shows other directories at these paths in a new mount namespace",
            "name directories whose file system is mounted for everybody",
        )
    return made, found


def _paths(wanted: Stack) -> tuple[str, ...]:
    return (*wanted.lowers, *(path for path in (wanted.upper, wanted.work) if path is not None))


def _carried(paths: tuple[str, ...]) -> dict[str, Fd]:
    """Return descriptors for paths that lead through one of this process, which nobody in a user namespace can follow.

    What lies there is attached nowhere, such as another overlay: that the deputy can use.
    """
    found: dict[str, Fd] = {}
    for path in paths:
        match = _OF_PROCESS.match(path)
        if match is not None and match[1] in {"self", "thread-self", str(os.getpid())} and match[0] not in found:
            found[match[0]] = open_directory(match[0])
    return found


def stack_seen(wanted: Stack, identities: tuple[tuple[int, int], ...], carried: dict[str, Fd]) -> Stacked | None:
    """In a deputy: make a mount, if the paths lead where they lead for its host; else None."""

    def own(path: str) -> str:
        match = _OF_PROCESS.match(path)
        fd = None if match is None else carried.get(match[0])
        return path if match is None or fd is None else f"/proc/self/fd/{fd.fileno()}{path[match.end() :]}"

    mine = replace(
        wanted,
        lowers=tuple(map(own, wanted.lowers)),
        upper=None if wanted.upper is None else own(wanted.upper),
        work=None if wanted.work is None else own(wanted.work),
    )
    with calls.Layers(_paths(mine)) as seen:
        if tuple(seen.identities) != identities:
            return None
    return stack(mine)
