"""Times of modification that depend on nothing but what was asked for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from isolib.unionfs.disk.attributes import set_mtime
from isolib.unionfs.disk.files import attempt, open_beneath
from isolib.unionfs.entry import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from isolib.unionfs.entry import Pieces

__all__ = ["limit_times"]

_MARKS = frozenset({Kind.WHITEOUT, Kind.OPAQUE})


def limit_times(root: int, changed: Callable[[], Pieces], limit: int | None) -> None:
    """Have nothing of what was changed in a tree be newer than a limit.

    Parameters
    ----------
    root
        A descriptor of its top.
    changed
        Returns what was changed.
    limit
        In nanoseconds since 1970.  None: there is none.

    Notes
    -----
    Source: https://reproducible-builds.org/specs/source-date-epoch.
    """
    if limit is None:
        return
    newer = [entry.path for entry, _ in changed() if entry.mtime > limit and entry.kind not in _MARKS]
    for path in newer:
        above, _, name = path.rpartition(b"/")
        with open_beneath(root, above) as parent:
            if name:
                attempt("utimensat", path, _set, parent.fileno(), name, limit)
            else:
                set_mtime(parent.fileno(), limit, path)


def _set(parent: int, name: bytes, limit: int) -> None:
    os.utime(name, ns=(limit, limit), dir_fd=parent, follow_symlinks=False)
