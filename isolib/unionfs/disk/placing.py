"""Where the entries of a layer go: the directories that it needs, and what it is known to bring so far."""

from __future__ import annotations

import enum
import os
import stat
from contextlib import suppress
from errno import EACCES, EEXIST, EINVAL, ENODATA, ENOTSUP
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib.errors import ArchiveError, SyscallError, from_errno
from isolib.unionfs.disk.files import NOT_A_DIRECTORY, attempt, joined, make_accessible, open_beneath, shown

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from isolib._kernel.handle import Fd
    from isolib.unionfs.entry import Entry

__all__ = ["Node", "Places", "Whose"]

#: Rights that the owner needs over a directory while it is being filled.
_NEEDED: Final = 0o700
_TRIES: Final = 64
_DEFAULT_ACL: Final = "system.posix_acl_default"


class Whose(enum.Enum):
    """Who brings what is at a path."""

    OURS = "a file of this layer"
    DIRECTORY = "a directory of this layer"
    BELOW = "a lower layer, if any"
    NOBODY = "nothing can be there"


class Node:
    """A directory that a layer has, or says something about.

    Attributes
    ----------
    names
        What the layer brings in it: None for what is no directory.
    made
        It is there, and belongs to the layer.
    entry
        What it is to be; None: the layer does not say.
    opaque
        Nothing is to be seen of what is below it.
    gone
        Names of which nothing is to be seen that is below.
    before
        What it was when it was found there.
    acl
        Its access control list for what is made in it, which must not apply to what a layer brings.
    """

    __slots__ = ("acl", "before", "entry", "gone", "made", "names", "opaque")

    def __init__(self) -> None:
        self.names: dict[bytes, Node | None] = {}
        self.made = False
        self.entry: Entry | None = None
        self.opaque = False
        self.gone: set[bytes] = set()
        self.before: os.stat_result | None = None
        self.acl: bytes | None = None

    def brings(self, name: bytes) -> bool:
        """Return whether the layer brings something of this name in it."""
        if name not in self.names:
            return False
        child = self.names[name]
        return child is None or child.made


class Places:
    """The directories of a layer that is being made.

    Parameters
    ----------
    fd
        A descriptor of its root.
    room
        How many there may be, with those that the layer does not list.
    """

    def __init__(self, fd: int, room: int) -> None:
        self.fd = fd
        self.root = Node()
        self._room = room
        self._path: bytes | None = None
        self._node = self.root
        self._held: Fd | None = None

    def __enter__(self) -> Self:
        with open_beneath(self.fd, b"") as root:
            _remember(root.fileno(), self.root, b"")
        self.root.made = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._held is not None:
            self._held.close()

    def parent(self, path: bytes) -> tuple[int, Node, bytes]:
        """Return the directory that an entry lies in, which is made where it is not there, and the entry's name.

        The descriptor is good until the next call.

        Raises
        ------
        ArchiveError
            The same layer has something else there: a file, or a symbolic link.
        """
        parent, _, name = path.rpartition(b"/")
        held = self._held
        if held is None or parent != self._path:
            held = self._go(parent, path)
        return held.fileno(), self._node, name

    def make(self, path: bytes) -> None:
        """Make a directory, and those that it lies in."""
        self._go(path, path)

    def _go(self, path: bytes, wanted: bytes) -> Fd:
        parts, node, known = path.split(b"/") if path else [], self.root, 0
        for name in parts:
            child = node.names.get(name, self.root)
            if child is None:
                raise ArchiveError("lies below what is no directory in the same layer", wanted)
            if child is self.root or not child.made:
                break
            node, known = child, known + 1
        at = b"/".join(parts[:known])
        held = open_beneath(self.fd, at, os.O_PATH | os.O_DIRECTORY)
        for name in parts[known:]:
            at = joined(at, name)
            node = self.directory(held.fileno(), node, name, at)
            inner = open_beneath(held.fileno(), name, os.O_PATH | os.O_DIRECTORY, what=at)
            held.close()
            held = inner
        if self._held is not None:
            self._held.close()
        self._path, self._node, self._held = path, node, held
        return held

    def directory(self, fd: int, above: Node, name: bytes, path: bytes) -> Node:
        """Make a directory in one that is there, or take the one that is."""
        child = above.names.get(name, self.root)
        if child is not None and child is not self.root and child.made:
            return child
        node = self._new() if child is None or child is self.root else child
        if child is None:
            # The file that this layer brought before has taken the place of what is below.
            self.replace(fd, above, name, path)
            node.opaque = True
        for _ in range(_TRIES):
            try:
                os.mkdir(name, _NEEDED, dir_fd=fd)
            except FileExistsError:
                if _adopt(fd, name, node, path):
                    break
                calls.remove_tree(fd, name, shown(path))
            except OSError as error:
                raise from_errno("mkdirat", shown(path), error.errno or EINVAL) from None
            else:
                break
        else:
            raise from_errno("mkdirat", shown(path), EEXIST)
        node.made = True
        above.names[name] = node
        return node

    def replace(self, fd: int, above: Node, name: bytes, path: bytes) -> None:
        """Remove what is at a path, whoever has brought it."""
        above.names.pop(name, None)
        calls.remove_tree(fd, name, shown(path))

    def marked(self, path: bytes) -> Node | None:
        """Return the directory at a path to say something about what is below it; None: nothing can be below it."""
        node = self.root
        for name in path.split(b"/") if path else ():
            child = node.names.get(name, self.root)
            if child is None:
                return None
            if child is self.root:
                child = node.names[name] = self._new()
            node = child
        return node

    def _new(self) -> Node:
        self._room -= 1
        if self._room < 0:
            raise ArchiveError("the layer has more directories than the limit allows, with those that it does not list")
        return Node()

    def whose(self, path: bytes) -> Whose:
        """Return who brings what is at a path."""
        node, (*parents, name) = self.root, path.split(b"/")
        for one in parents:
            child = node.names.get(one, self.root)
            if child is None:
                return Whose.NOBODY
            if child is self.root:
                return Whose.BELOW
            node = child
        if not node.brings(name):
            return Whose.BELOW
        return Whose.OURS if node.names[name] is None else Whose.DIRECTORY

    def hides(self, path: bytes) -> bool:
        """Return whether nothing is to be seen of what lower layers have at a path."""
        node = self.root
        for name in path.split(b"/"):
            if node.opaque or name in node.gone:
                return True
            child = node.names.get(name)
            if child is None:
                return False
            node = child
        return False


def _adopt(fd: int, name: bytes, node: Node, path: bytes) -> bool:
    """Take what is of this name, if it is a directory."""
    try:
        found = open_beneath(fd, name, what=path)
    except SyscallError as error:
        if error.errno in NOT_A_DIRECTORY:
            return False
        if error.errno != EACCES:
            raise
        with open_beneath(fd, name, os.O_PATH | os.O_DIRECTORY, what=path) as closed:
            node.before = os.fstat(closed.fileno())
            make_accessible(closed.fileno(), path)
        found = open_beneath(fd, name, what=path)
    with found:
        _remember(found.fileno(), node, path)
    return True


def _remember(fd: int, node: Node, path: bytes) -> None:
    """Keep what a directory was, and let it be filled."""
    if node.before is None:
        node.before = os.fstat(fd)
    mode = stat.S_IMODE(node.before.st_mode)
    # With set-group-id, what is made in it would get its group.
    if (filling := (mode | _NEEDED) & ~stat.S_ISGID) != mode:
        with suppress(SyscallError):  # it may do all the same
            attempt("fchmod", path, os.fchmod, fd, filling)
    try:
        node.acl = os.getxattr(fd, _DEFAULT_ACL)
    except OSError as error:
        if error.errno not in {ENODATA, ENOTSUP}:
            raise from_errno("fgetxattr", shown(path), error.errno or EINVAL) from None
        return
    attempt("fremovexattr", path, os.removexattr, fd, _DEFAULT_ACL)
