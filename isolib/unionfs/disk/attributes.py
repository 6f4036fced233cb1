"""What belongs to a file beside its content, given to it in the right order, or not where that is allowed.

The owner comes first, for changing it takes set-user-id and capabilities away; then the extended attributes, access control
lists among them; then the mode, whose group bits are such a list's mask; the time last.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from errno import EACCES, EINVAL, ENOTSUP, EOVERFLOW, EPERM
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib.errors import PlanError, from_errno
from isolib.unionfs.disk.files import attempt, is_kept, shown
from isolib.unionfs.entry import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from isolib.unionfs.disk.scan import Ids
    from isolib.unionfs.entry import Entry

__all__ = ["DEFAULT_MODE", "DEGRADABLE", "Attributes", "Skipped", "set_mtime"]

#: What may be left out where it is refused, when the caller says so.
DEGRADABLE: Final = frozenset({"devices", "owners", "xattrs"})
#: Of directories that an archive does not list, and nothing below has.
DEFAULT_MODE: Final = 0o755

#: EINVAL: the id has no meaning in this user namespace.
_REFUSED: Final = {
    "devices": frozenset({EACCES, EPERM}),
    "owners": frozenset({EACCES, EINVAL, EOVERFLOW, EPERM}),
    "xattrs": frozenset({EACCES, EINVAL, ENOTSUP, EPERM}),
}
_HINTS: Final = {
    "devices": "device nodes are root's on the host to make: allow=['devices'] leaves them out",
    "owners": "the caller may not give files to these ids, or they are not mapped in its user namespace: "
    "allow=['owners'] leaves the files to the caller",
    "xattrs": "the file system has no such attributes, or the caller may not set them: allow=['xattrs'] leaves them out",
}


@dataclass(frozen=True, slots=True)
class Skipped:
    """What was left out because it was refused, and the caller had allowed that.

    Attributes
    ----------
    path
        Of the entry.
    what
        "devices": there is none; "owners": it is the caller's; "xattrs": it lacks an extended attribute.
    detail
        Which device, which owner, which attribute.
    errno
        What the kernel said.
    """

    path: bytes
    what: str
    detail: str
    errno: int


class Attributes:
    """Gives files what belongs to them, and notes what is refused.

    Parameters
    ----------
    ids
        Maps the owner and group of an entry to those on disk.
    allow
        Of `DEGRADABLE`.

    Raises
    ------
    PlanError
        There is no such thing to allow.
    """

    def __init__(self, ids: Ids | None, allow: Collection[str]) -> None:
        if isinstance(allow, (str, bytes)) or not DEGRADABLE.issuperset(allow):
            raise PlanError(f"allow={allow!r}: a list of some of {', '.join(sorted(DEGRADABLE))}")
        self._ids = ids
        self._allow = frozenset(allow)
        self._not_ours: set[tuple[int, int]] = set()
        self.skipped: list[Skipped] = []

    def owner(self, entry: Entry) -> tuple[int, int]:
        """Return the owner and group on disk."""
        return (entry.uid, entry.gid) if self._ids is None else self._ids(entry.uid, entry.gid)

    def granted(self, entry: Entry) -> tuple[int, int] | None:
        """Return the owner and group on disk; None, and noted, where it was refused before to give files to them."""
        owner = self.owner(entry)
        if owner not in self._not_ours:
            return owner
        self.owner_refused(entry, owner, "fchown", EPERM)
        return None

    def unmapped(self) -> Attributes:
        """Return the same for entries that have the ids on disk already."""
        other = Attributes(None, self._allow)
        other.skipped = self.skipped
        return other

    def refused(self, what: str, entry: Entry, detail: str, op: str, errno: int) -> None:
        """Note that something was refused, or raise where that is not allowed."""
        if errno not in _REFUSED[what]:
            raise from_errno(op, shown(entry.path), errno)
        if what not in self._allow:
            raise from_errno(op, shown(entry.path), errno, f"{detail}: {_HINTS[what]}")
        self.skipped.append(Skipped(entry.path, what, detail, errno))

    def owner_refused(self, entry: Entry, owner: tuple[int, int], op: str, errno: int) -> None:
        """As `refused`, for an owner; it is not asked for again."""
        self.refused("owners", entry, f"{owner[0]}:{owner[1]}", op, errno)
        self._not_ours.add(owner)

    def dress(self, fd: int, entry: Entry, *, anew: bool = True) -> None:
        """Give all to the file or directory that is open.

        Parameters
        ----------
        fd
            Its descriptor.
        entry
            What it is to have.
        anew
            It was made just now: it has no attributes that it is not to have.
        """
        self._own(entry, fd)
        if not anew:
            for one in _names(fd, entry.path):
                if is_kept(one) and one not in entry.xattrs:
                    attempt("fremovexattr", entry.path, os.removexattr, fd, one)
        for one, value in entry.xattrs.items():
            if is_kept(one):
                self._set(entry, one, os.setxattr, fd, one, value)
        attempt("fchmod", entry.path, os.fchmod, fd, entry.mode)
        set_mtime(fd, entry.mtime, entry.path)

    def dress_name(self, dir_fd: int, name: bytes, entry: Entry) -> None:
        """Give all to what is in a directory and cannot be opened: a symbolic link, a FIFO, a device."""
        self._own(entry, dir_fd, name)
        for one, value in entry.xattrs.items():
            if is_kept(one):
                self._set(entry, one, calls.set_xattr, dir_fd, name, one, value, shown(entry.path))
        if entry.kind is not Kind.SYMLINK:
            calls.chmod_at(dir_fd, name, entry.mode, shown(entry.path))
        times = (entry.mtime, entry.mtime)
        attempt("utimensat", entry.path, os.utime, name, ns=times, dir_fd=dir_fd, follow_symlinks=False)

    def _own(self, entry: Entry, fd: int, name: bytes | None = None) -> None:
        owner = self.granted(entry)
        if owner is None:
            return
        try:
            if name is None:
                os.fchown(fd, *owner)
            else:
                os.chown(name, *owner, dir_fd=fd, follow_symlinks=False)
        except OSError as error:
            self.owner_refused(entry, owner, "fchownat", error.errno or EINVAL)

    def _set(self, entry: Entry, attribute: bytes, function: Callable[..., object], *args: object) -> None:
        try:
            function(*args)
        except OSError as error:
            self.refused("xattrs", entry, os.fsdecode(attribute), "setxattr", error.errno or EINVAL)


def _names(fd: int, path: bytes) -> list[bytes]:
    try:
        return list(map(os.fsencode, os.listxattr(fd)))
    except OSError as error:
        if error.errno == ENOTSUP:
            return []
        raise from_errno("flistxattr", shown(path), error.errno or EINVAL) from None


def set_mtime(fd: int, mtime: int, path: bytes) -> None:
    """Say when the file or directory that is open was modified, in nanoseconds; and read, for want of better knowledge."""
    attempt("utimensat", path, os.utime, fd, ns=(mtime, mtime))
