"""Paths in archives: made like those of entries, and what is in names that begin with ``.wh.``.

Sources: the OCI image specification, layer.md, "Representing Changes"; aufs(5); path_resolution(7).

>>> relative(b"./usr//lib/")
b'usr/lib'
>>> marked(b"etc/.wh.motd"), marked(b"etc/.wh..wh..opq")
((<Mark.WHITEOUT: 'whiteout'>, b'etc/motd'), (<Mark.OPAQUE: 'opaque'>, b'etc'))
"""

from __future__ import annotations

import enum
from typing import Final

from isolib.errors import ArchiveError

__all__ = ["LONGEST_COMPONENT", "LONGEST_PATH", "OPAQUE", "WHITEOUT", "Mark", "marked", "relative", "whiteout"]

#: PATH_MAX without its NUL, and NAME_MAX.
LONGEST_PATH: Final = 4095
LONGEST_COMPONENT: Final = 255
#: Bytes of a path with all its slashes and dots that mean nothing.
_LONGEST_WRITTEN: Final = 1 << 16

WHITEOUT: Final = b".wh."
#: What aufs keeps for itself begins so; OCI has taken over one of its names.
_OF_AUFS: Final = b".wh..wh."
OPAQUE: Final = b".wh..wh..opq"
_LINKS_OF_AUFS: Final = b".wh..wh.plnk"


class Mark(enum.Enum):
    """What a name with the prefix ``.wh.`` means."""

    WHITEOUT = "whiteout"
    OPAQUE = "opaque"
    #: Books of aufs: nothing that is in the tree.
    AUFS = "aufs"
    #: A file that aufs keeps because it has several names, which are links to this one.
    AUFS_LINK = "aufs link"


def relative(path: bytes, what: str = "its path") -> bytes:
    """Return a path as entries have it: relative to the root of the tree; empty for the root.

    Parameters
    ----------
    path
        As it is in the archive.  One that begins with a slash is relative too, as for every program that unpacks layers.
    what
        What to call it when it is refused.

    Raises
    ------
    ArchiveError
        It is empty, leads upward, has a NUL, or is longer than Linux has room for.
    """
    if len(path) > _LONGEST_WRITTEN:
        raise ArchiveError(f"{what} is longer than {LONGEST_PATH} bytes", path[:LONGEST_COMPONENT])
    parts = path.split(b"/")
    clean = path
    if b"" in parts or b"." in parts:
        parts = [part for part in parts if part not in {b"", b"."}]
        clean = b"/".join(parts)
        if not path:
            raise ArchiveError(f"{what} is empty", path)
    if b".." in parts:
        raise ArchiveError(f"{what} leads upward, with '..'", path)
    if len(path) > LONGEST_COMPONENT:
        if len(clean) > LONGEST_PATH:
            raise ArchiveError(f"{what} is longer than {LONGEST_PATH} bytes", path[:LONGEST_COMPONENT])
        if any(len(part) > LONGEST_COMPONENT + len(WHITEOUT) * part.startswith(WHITEOUT) for part in parts):
            raise ArchiveError(f"{what} has a name of more than {LONGEST_COMPONENT} bytes in it", path[:LONGEST_COMPONENT])
    if 0 in path:
        raise ArchiveError(f"{what} has a NUL in it", path)
    return clean


def marked(path: bytes) -> tuple[Mark, bytes] | None:
    """Return what a path of `relative` means if it has ``.wh.`` in it.

    Returns
    -------
    Mark, bytes
        And the path that is meant: of what is gone, of the directory that is opaque, of the file that aufs keeps.  None: the
        path means itself.

    Raises
    ------
    ArchiveError
        It is a whiteout of nothing, of "." or "..", or something below a whiteout.
    """
    parts = path.split(b"/")
    for part in parts[:-1]:
        if part.startswith(_OF_AUFS):
            return (Mark.AUFS_LINK if parts[0] == _LINKS_OF_AUFS and len(parts) == 2 else Mark.AUFS), path  # noqa: PLR2004  # itself, a name
        if part.startswith(WHITEOUT):
            raise ArchiveError("lies below a whiteout", path)
    *directory, name = parts
    if not name.startswith(WHITEOUT):
        return None
    if name == OPAQUE:
        return Mark.OPAQUE, b"/".join(directory)
    if name.startswith(_OF_AUFS):
        return Mark.AUFS, path
    name = name[len(WHITEOUT) :]
    if name in {b"", b".", b".."}:
        raise ArchiveError("is a whiteout of no name", path)
    return Mark.WHITEOUT, b"/".join([*directory, name])


def whiteout(path: bytes) -> bytes:
    """Return the path of the whiteout of a path."""
    directory, slash, name = path.rpartition(b"/")
    return b"%b%b%b%b" % (directory, slash, WHITEOUT, name)
