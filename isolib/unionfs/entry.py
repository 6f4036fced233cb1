"""What a layer is made of: entries, as values.

A layer says what is different from what lies below it.  Archives are read into entries and written from them, directories are
scanned into them and made from them, and the difference of two trees is a sequence of them; so each of these needs to know
nothing of the others.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Final

    from isolib._kernel.calls import Packed

__all__ = ["Change", "ChangeKind", "Content", "Entry", "Kind", "Layer", "Offer", "Offered", "Offering", "Piece", "Pieces"]

_NONE: Final[Mapping[bytes, bytes]] = MappingProxyType({})


class Kind(enum.Enum):
    """What an entry is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symbolic link"
    HARDLINK = "hard link"
    FIFO = "FIFO"
    CHARACTER = "character device"
    BLOCK = "block device"
    WHITEOUT = "whiteout"
    OPAQUE = "opaque mark"


@dataclass(frozen=True, slots=True)
class Entry:
    """One change that a layer makes.

    Attributes
    ----------
    path
        Relative to the root of the tree, without "." and "..", without a slash at either end; empty for the root itself.
    kind
        What lies there from now on.  A WHITEOUT: nothing does.  An OPAQUE mark says of a directory what ``opaque`` says, and
        nothing else: what it is otherwise, another entry tells, before it or after it, or the directory stays as it is.
    mode
        Permission bits, with set-user-id, set-group-id and sticky.
    uid, gid
        The owner, as numbers.
    mtime
        Time of the last modification, in nanoseconds since 1970; may be negative.
    size
        Of a FILE's content, in bytes.
    target
        The text of a SYMLINK; the path, as ``path`` is written, of the name that a HARDLINK is a further name of.
    device
        Major and minor number of a CHARACTER or BLOCK device.
    xattrs
        Extended attributes by their full names, ``security.capability`` among them; never those by which overlay and its like
        keep their own books.
    opaque
        Of a DIRECTORY: what lower layers have in it is hidden.
    """

    path: bytes
    kind: Kind
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    size: int = 0
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[bytes, bytes] = field(default_factory=lambda: _NONE)
    opaque: bool = False


class Content(Protocol):
    """The content of a FILE, to be read once, front to back.

    One that has a ``fileno`` is all of that file, from its beginning, and may be copied without being read.
    """

    def read(self, size: int = -1, /) -> bytes:
        """Return the next bytes, at most so many; none at the end."""


#: An entry, and its content if it is a FILE.  The content is to be read, or given up, before the next one is asked for.
Piece: TypeAlias = tuple[Entry, Content | None]
Pieces: TypeAlias = Iterable[Piece]


class Offer(Protocol):
    """Names in a directory, of which some may be packed at once; what is not packed comes as pieces."""

    taken: int
    """How many have been packed."""

    def pack(self, room: memoryview, limit: int | None, *, is_recorded: bool) -> Packed:
        """Pack the next ones as they are in a tar, up to the first that is not small and plain.

        Parameters
        ----------
        room
            Where that goes.
        limit
            Later times become this one; not negative.
        is_recorded
            Whether the records of a recipe are wanted too.
        """


Offered: TypeAlias = Piece | Offer


@runtime_checkable
class Offering(Protocol):
    """Pieces of which some may be packed, in the place of being told one by one."""

    def __iter__(self) -> Iterator[Piece]:
        """Tell all one by one."""

    def offers(self) -> Iterator[Offered]:
        """Tell one by one what is not packed: an offer is made, and holds until the next one is asked for."""


class ChangeKind(enum.Enum):
    """What has happened to a path."""

    ADDED = "added"
    MODIFIED = "modified"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True, order=True)
class Change:
    """One path at which a tree differs from what lies below it.

    Attributes
    ----------
    path
        As in the tree, from its root on: ``/etc/passwd``.  Bytes that are no UTF-8 are kept as by `os.fsdecode`.
    kind
        ADDED, MODIFIED or DELETED.  A directory whose content alone has changed is not listed.
    """

    path: str
    kind: ChangeKind = field(compare=False)


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of an image: what it is, wherever it lies.

    Attributes
    ----------
    diff_id
        ``sha256:`` and the digest of the layer's uncompressed tar.
    chain_id
        ``sha256:`` and the digest that stands for this layer with all below it (OCI image specification, config.md).
    size
        Of the uncompressed tar, in bytes.
    """

    diff_id: str
    chain_id: str
    size: int
