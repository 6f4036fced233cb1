"""One more mount of what is mounted already."""

from __future__ import annotations

from errno import EINVAL
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib.errors import SyscallError, Unsupported
from isolib.unionfs.disk.files import twin

if TYPE_CHECKING:
    from isolib._kernel.handle import Fd

__all__ = ["check_cloning", "clone"]

#: Whether this kernel clones what is attached nowhere: unknown, until it has done so.
_clones: Final[dict[str, bool]] = {}


def check_cloning(mount: int) -> None:
    """Find out, for what cannot be taken back later, whether a mount that is attached nowhere can be cloned; see `clone`."""
    if "works" not in _clones:
        with twin(mount) as found:
            clone(found).close()
        _clones["works"] = True


def clone(mount: Fd, attributes: int = 0, userns: int | None = None) -> Fd:
    """Return one more mount of what is mounted, which is attached nowhere, with its ids mapped by a user namespace.

    Raises
    ------
    Unsupported
        What is mounted is attached nowhere itself, and the kernel is too old for that.
    """
    try:
        made = calls.take_tree(mount.fileno(), "", calls.OPEN_TREE_CLONE | calls.AT_EMPTY_PATH)
    except SyscallError as error:
        if (error.op, error.errno) != ("open_tree", EINVAL):
            raise
        raise Unsupported(
            "a tree or an overlay as the root of processes",
            "the kernel, which has no second mount of what is attached nowhere (Linux 6.15)",
            "an image as the root, which each process has for itself; or a store with driver='vfs' or 'btrfs'",
        ) from error
    set_ = attributes | (0 if userns is None else calls.MOUNT_ATTR_IDMAP)
    calls.mount_setattr(
        made.fileno(),
        "",
        flags=calls.AT_EMPTY_PATH,
        set_=set_,
        propagation=calls.MS_PRIVATE,
        userns=-1 if userns is None else userns,
    )
    return made
