"""The one way up: what a lower layer asks a higher one to do, found when it is asked.

`Namespace.spawn` is a convenience of layer 2 for a function of the same layer, which does not know of namespaces, and a network
needs a namespace to lie in. None imports the other; all know this module, which imports what is above it when it is called.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from isolib._kernel.lending import RootLender
    from isolib._kernel.request import MountValue, RootValue, Shown
    from isolib.namespaces import NetNS as NetNS  # noqa: PLC0414
    from isolib.net import Network as Network  # noqa: PLC0414
    from isolib.process import Process as Process  # noqa: PLC0414 -- for the signatures of those who call
    from isolib.spec import Limits as Limits  # noqa: PLC0414
    from isolib.types import AnyPath

__all__ = ["bind", "lent_root", "new_netns", "run_step", "show", "spawn", "tmpfs"]


def spawn(argv: Sequence[str | bytes | os.PathLike[str]], **options: object) -> Process:
    """Start a program: `isolib.process.spawn`, whose options these are."""
    process: Process = import_module("isolib.process").spawn(argv, **options)
    return process


def run_step(argv: Sequence[str | bytes | os.PathLike[str]], **options: object) -> None:
    """Run a command in a tree to its end: `isolib.workroom.run_step`, whose options these are."""
    import_module("isolib.workroom").run_step(argv, **options)


def bind(source: str, target: str, *, readonly: bool = True) -> MountValue:
    """Return what shows a directory of the host to a program: `isolib.mounts.Bind`."""
    value: MountValue = import_module("isolib.mounts").Bind(source, target, readonly=readonly)
    return value


def show(source: Shown, target: AnyPath, *, readonly: bool) -> MountValue:
    """Return what shows an open directory to a program: `isolib.mounts.Show`."""
    value: MountValue = import_module("isolib.mounts.show").Show(source, target, readonly=readonly)
    return value


def tmpfs(target: str) -> MountValue:
    """Return an empty file system in memory for a program: `isolib.mounts.Tmpfs`."""
    value: MountValue = import_module("isolib.mounts").Tmpfs(target)
    return value


def lent_root(lender: RootLender) -> RootValue:
    """Return what makes of something that is lent the root of a program: `isolib.mounts.lent.LentRoot`."""
    value: RootValue = import_module("isolib.mounts.lent").LentRoot(lender)
    return value


def new_netns() -> NetNS:
    """Make a network namespace: `isolib.namespaces.new_netns`."""
    made: NetNS = import_module("isolib.namespaces").new_netns()
    return made
