"""Copies of whole trees, exactly as they are."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls

if TYPE_CHECKING:
    from isolib.types import HasFileno

__all__ = ["copy_tree"]

_MOST_THREADS: Final = 4


def copy_tree(source: HasFileno, target: HasFileno, shown: str, *, threads: int | None = None) -> None:
    """Copy a directory into another one, with all that is in it: the second is then as the first.

    Contents with their holes, owners, modes, times of access and of modification in nanoseconds, extended attributes
    (capabilities and access lists are such), hard links among the names that are copied, symbolic links, FIFOs, sockets and
    devices.  Where the file system can share contents between files, nothing is copied of them, but of files of a block or two
    on XFS, where that is faster.  What is mounted below the directory is left out.  No link is followed.

    Parameters
    ----------
    source
        A descriptor of a directory, which does not change meanwhile.
    target
        A descriptor of a directory, which is empty.  It gets the owner, the mode, the attributes and the times of the first.
    shown
        The path of the second one, for messages.
    threads
        How many work at it; by default as many as there are processors for this process, up to four.

    Raises
    ------
    SyscallError
        Something cannot be read, made, or kept as it is: its path is relative to both directories.  ENOSPC and EDQUOT: there is
        no room.  What was made so far stays.

    Notes
    -----
    It works on threads of its own, without the interpreter, and an interrupt ends it after at most 64 MiB of a file.  Another
    user's files, devices and attributes of ``trusted.`` and ``security.`` take root's privileges, or those of a user namespace,
    where the kernel has it so.  Sources: ioctl_ficlonerange(2), copy_file_range(2), lseek(2), xattr(7).

    Examples
    --------
    >>> import tempfile
    >>> from isolib._kernel.handle import Fd
    >>> with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
    ...     os.symlink("/nowhere", f"{one}/link")
    ...     with Fd(os.open(one, os.O_RDONLY)) as source, Fd(os.open(other, os.O_RDONLY)) as target:
    ...         copy_tree(source, target, other)
    ...     os.readlink(f"{other}/link")
    '/nowhere'
    """
    if threads is None:
        threads = min(len(os.sched_getaffinity(0)), _MOST_THREADS)
    calls.copy_tree(source.fileno(), target.fileno(), threads, shown)
