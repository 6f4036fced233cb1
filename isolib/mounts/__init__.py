"""Mounts and roots: what a new process sees of the file system, as frozen values.

A value says what is wanted, and does nothing: `isolib.spawn` and `isolib.Sandbox` turn it into steps of the launch.  Mounts
are made in the order given, so a later one may lie in an earlier one; every path inside is resolved within the root; nothing
that is mounted reaches the host.

A process that is given CAP_SYS_ADMIN in its user namespace is master of the mounts in it, and can undo masks and read-only
flags that are not the host's own.  What a sandbox runs has no capability; what `isolib.spawn` runs as root in a new user
namespace has all.
"""

from __future__ import annotations

from isolib.mounts.dev import Dev as Dev
from isolib.mounts.overlay import Overlay as Overlay
from isolib.mounts.proc import Proc as Proc
from isolib.mounts.root import Root as Root
from isolib.mounts.values import Bind as Bind
from isolib.mounts.values import Dir as Dir
from isolib.mounts.values import File as File
from isolib.mounts.values import Mask as Mask
from isolib.mounts.values import Mount as Mount
from isolib.mounts.values import ReadOnly as ReadOnly
from isolib.mounts.values import Symlink as Symlink
from isolib.mounts.values import Tmpfs as Tmpfs
from isolib.mounts.worktree import WorkTree as WorkTree

__all__ = ["Bind", "Dev", "Dir", "File", "Mask", "Mount", "Overlay", "Proc", "ReadOnly", "Root", "Symlink", "Tmpfs"]

for _public in (Bind, Dev, Dir, File, Mask, Mount, Overlay, Proc, ReadOnly, Root, Symlink, Tmpfs, WorkTree):
    # Tracebacks and pickles name the place that users import from.
    _public.__module__ = "isolib.mounts"
