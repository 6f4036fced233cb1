"""A tree in memory, and what the calls of POSIX do to it: the oracle of whatever claims to be one, without isolib."""

from __future__ import annotations

import copy
import os
import stat
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from tests.trees import Facts

TOP: Final = "."
CAPABILITY: Final = "security.capability"
_SET_ID: Final = stat.S_ISUID | stat.S_ISGID


@dataclass(eq=False)
class Node:
    """An inode: what it is, whatever names lead to it.

    Attributes
    ----------
    mode
        With the type.
    content
        Bytes of a file, target of a symbolic link, number of a device.
    is_lower
        Whether it lies in a layer still.
    """

    mode: int
    owner: tuple[int, int]
    mtime: int = 0
    content: bytes | str | int | None = None
    xattrs: dict[str, bytes] = field(default_factory=dict)
    is_lower: bool = False

    @property
    def kind(self) -> int:
        """The type."""
        return stat.S_IFMT(self.mode)

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    def counts(self) -> tuple[object, ...]:
        """Return what makes it another one: the time of a directory does not."""
        return self.mode, self.owner, None if self.is_directory else self.mtime, self.content, self.xattrs


class Model:
    """A tree in memory.

    Times are not foretold: what an operation touches gets the time that the real tree has, and all else keeps its own.

    Parameters
    ----------
    breaks_bonds
        Whether a name of a file in a lower layer becomes a file of its own when it is changed, as in an overlay without index.
    """

    def __init__(self, *, breaks_bonds: bool) -> None:
        self.breaks_bonds = breaks_bonds
        self.nodes: dict[str, Node] = {}

    def copy(self) -> Model:
        """Return another tree that is as this one is."""
        return copy.deepcopy(self)

    def settled(self) -> Model:
        """Return this tree as it is when all of it lies in layers."""
        new = self.copy()
        for node in new.nodes.values():
            node.is_lower = True
        return new

    # What there is

    def directories(self) -> list[str]:
        """Return the paths of the directories."""
        return sorted(path for path, node in self.nodes.items() if node.is_directory)

    def files(self) -> list[str]:
        """Return the paths of the regular files."""
        return sorted(path for path, node in self.nodes.items() if stat.S_ISREG(node.mode))

    def paths(self) -> list[str]:
        """Return all paths but the top."""
        return sorted(path for path in self.nodes if path != TOP)

    def inside(self, path: str) -> list[str]:
        """Return what is below a path, itself included, children first."""
        return sorted((one for one in self.nodes if one == path or one.startswith(f"{path}/")), reverse=True)

    def names(self, node: Node) -> list[str]:
        """Return the names of a file."""
        return sorted(path for path, one in self.nodes.items() if one is node)

    def bonds(self) -> set[frozenset[str]]:
        """Return which names are of one file."""
        return bonds((path, id(node)) for path, node in self.nodes.items())

    # What happens to it

    def bring(self, path: str, mode: int, content: bytes | str | int | None = None) -> Node:
        """Make something new, where nothing is."""
        above = self.nodes[parent(path)]
        group = above.owner[1] if above.mode & stat.S_ISGID else os.getegid()
        node = self.nodes[path] = Node(mode, (os.geteuid(), group), content=content)
        return node

    def own(self, path: str) -> Node:
        """Return what is to be changed by a name."""
        node = self.nodes[path]
        if node.is_lower and not node.is_directory and self.breaks_bonds:
            if len(self.names(node)) > 1:
                node = self.nodes[path] = copy.deepcopy(node)
            node.is_lower = False
        return node

    def remove(self, path: str) -> None:
        """Remove a path and what is below it."""
        for one in self.inside(path):
            del self.nodes[one]

    def move(self, old: str, new: str) -> None:
        """Give a path and what is below it another name, in the place of what is there."""
        moved = {new + one.removeprefix(old): self.nodes[one] for one in self.inside(old)}
        self.remove(old)
        if new in self.nodes:
            self.remove(new)
        self.nodes |= moved

    def may_move(self, path: str) -> bool:
        """Return whether rename(2) can move what is there."""
        node = self.nodes[path]
        return not (node.is_directory and node.is_lower and self.breaks_bonds)

    # What is to be seen of it

    def facts(self) -> dict[str, Facts]:
        """Return all that there is, as `tests.trees.facts` tells it."""
        first = {id(node): path for path, node in sorted(self.nodes.items(), key=lambda one: one[0].split("/"), reverse=True)}
        children: dict[str, list[str]] = defaultdict(list)
        for path in self.paths():
            children[parent(path)].append(os.path.basename(path))
        found: dict[str, Facts] = {}
        for path, node in self.nodes.items():
            content = tuple(sorted(children[path], reverse=True)) if node.is_directory else node.content
            found[path] = (node.mode, *node.owner, node.mtime, content, node.xattrs, first[id(node)])
        return found

    def changes(self, base: Model) -> tuple[dict[str, str], set[str]]:
        """Return what has happened to each path since, and the paths of which only that they are of one file has changed."""
        happened: dict[str, str] = {}
        for path, node in self.nodes.items():
            old = base.nodes.get(path)
            if old is None:
                happened[shown(path)] = "added"
            elif old.counts() != node.counts():
                happened[shown(path)] = "modified"
        for path in base.paths():
            above = self.nodes.get(parent(path))
            if path not in self.nodes and above is not None and above.is_directory:
                happened[shown(path)] = "deleted"
        other = {shown(path) for group in self.bonds() ^ base.bonds() for path in group}
        return happened, other - happened.keys()


def parent(path: str) -> str:
    """Return the directory in which a path is."""
    return os.path.dirname(path) or TOP


def shown(path: str) -> str:
    """Return a path as changes are told."""
    return "/" if path == TOP else f"/{path}"


def bonds(told: Iterable[tuple[str, object]]) -> set[frozenset[str]]:
    """Return groups of paths of which the same is told, of two paths and more."""
    groups: dict[object, set[str]] = defaultdict(set)
    for path, what in told:
        groups[what].add(path)
    return {frozenset(group) for group in groups.values() if len(group) > 1}


def without_bonds(told: Mapping[str, Facts]) -> dict[str, Facts]:
    """Return facts without which names are of one file."""
    return {path: one[:-1] for path, one in told.items()}


def agree(found: Mapping[str, object], expected: Mapping[str, object]) -> None:
    """Assert that both say the same, and otherwise say where they do not."""
    if found != expected:
        apart = {path: (found.get(path), expected.get(path)) for path in {*found, *expected}}
        told = [f"{path!r}: {one!r:.400}, not {other!r:.400}" for path, (one, other) in sorted(apart.items()) if one != other]
        raise AssertionError("\n".join(told))


class Actor:
    """Does to a real tree what it does to a model.

    Parameters
    ----------
    model
        The model; of a new tree, empty: the top is looked at.
    top
        Returns the path of the real one.
    """

    def __init__(self, model: Model, top: Callable[[], str]) -> None:
        self.model = model
        self._top = top
        if TOP not in model.nodes:
            status = os.lstat(self.at(TOP))
            model.nodes[TOP] = Node(status.st_mode, (status.st_uid, status.st_gid), status.st_mtime_ns)

    def at(self, path: str) -> str:
        """Return the real path."""
        return f"{self._top()}/{path}"

    def touch(self, *paths: str) -> None:
        """Take over the times that the real tree has."""
        for path in paths:
            self.model.nodes[path].mtime = os.lstat(self.at(path)).st_mtime_ns

    # To make things, in the place of what is there

    def make_room(self, path: str) -> None:
        """Remove what is at a path."""
        if path in self.model.nodes:
            self.remove(path)

    def file(self, path: str, content: bytes = b"", mode: int = 0o644) -> None:
        """Make a file."""
        self.make_room(path)
        fd = os.open(self.at(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as opened:
            opened.write(content)
        os.chmod(self.at(path), mode)  # now, for to write may clear set-user-id
        self.model.bring(path, stat.S_IFREG | mode, content)
        self.touch(path, parent(path))

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Make a directory."""
        self.make_room(path)
        os.mkdir(self.at(path))
        os.chmod(self.at(path), mode)
        self.model.bring(path, stat.S_IFDIR | mode)
        self.touch(path, parent(path))

    def symlink(self, path: str, target: str) -> None:
        """Make a symbolic link."""
        self.make_room(path)
        os.symlink(target, self.at(path))
        self.model.bring(path, stat.S_IFLNK | 0o777, target)
        self.touch(path, parent(path))

    def node(self, path: str, mode: int, device: int | None = None) -> None:
        """Make a FIFO, or a device."""
        self.make_room(path)
        os.mknod(self.at(path), mode, device or 0)
        os.chmod(self.at(path), stat.S_IMODE(mode))
        self.model.bring(path, mode, device)
        self.touch(path, parent(path))

    def link(self, old: str, new: str) -> None:
        """Give a file one more name."""
        self.make_room(new)
        os.link(self.at(old), self.at(new), follow_symlinks=False)
        self.model.nodes[new] = self.model.own(old)
        self.touch(parent(new))

    # To take things away

    def remove(self, path: str) -> None:
        """Remove what is at a path, and all that is below it."""
        for one in self.model.inside(path):
            (os.rmdir if self.model.nodes[one].is_directory else os.unlink)(self.at(one))
        self.model.remove(path)
        self.touch(parent(path))

    def moved(self, old: str, new: str) -> None:
        """Note that a path has another name."""
        for one in self.model.inside(old):
            self.model.own(one)
        self.model.move(old, new)
        self.touch(parent(old), parent(new))

    def copied(self, old: str, new: str) -> None:
        """Note that mv(1) has made directories anew, with all that can be kept, and has renamed what is in them."""
        for one in self.model.inside(old):
            node = self.model.own(one)
            if node.is_directory:
                node = self.model.nodes[one] = copy.deepcopy(node)
                node.is_lower = False
        self.model.move(old, new)
        for one in self.model.inside(new):
            if self.model.nodes[one].is_directory:  # in a set-group-id directory mv(1) makes others such
                os.chmod(self.at(one), stat.S_IMODE(self.model.nodes[one].mode))
        self.touch(parent(old), parent(new))

    # To change things

    def _written(self, path: str, content: bytes) -> None:
        node = self.model.own(path)
        node.content = content
        node.xattrs.pop(CAPABILITY, None)
        # What becomes of set-user-id when somebody writes depends on who he is.
        os.chmod(self.at(path), stat.S_IMODE(node.mode))
        self.touch(path)

    def write(self, path: str, at: int | None, data: bytes) -> None:
        """Write into a file; None: at its end."""
        flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_APPEND if at is None else 0)
        with open(os.open(self.at(path), flags), "wb", buffering=0) as opened:
            if at is not None:
                opened.seek(at)
            assert opened.write(data) == len(data)
        old = self.model.nodes[path].content
        assert isinstance(old, bytes)
        if not data:  # which changes nothing, and so takes no capability away
            self.model.own(path)
            return
        at = len(old) if at is None else at
        old = old.ljust(at, b"\0")
        self._written(path, old[:at] + data + old[at + len(data) :])

    def truncate(self, path: str, size: int) -> None:
        """Cut a file off, or make it longer."""
        os.truncate(self.at(path), size)
        old = self.model.nodes[path].content
        assert isinstance(old, bytes)
        self._written(path, old[:size].ljust(size, b"\0"))

    def replace(self, path: str) -> None:
        """Change the content of a file, but neither its size nor its time."""
        node = self.model.nodes[path]
        content, mtime = node.content, node.mtime
        assert isinstance(content, bytes)
        self.write(path, 0, bytes(255 - byte for byte in content))
        self.utime(path, mtime)

    def utime(self, path: str, mtime: int) -> None:
        """Set the time of the last modification."""
        os.utime(self.at(path), ns=(mtime, mtime), follow_symlinks=False)
        self.model.own(path).mtime = mtime

    def chmod(self, path: str, mode: int) -> None:
        """Change the permissions of what is no symbolic link."""
        os.chmod(self.at(path), mode)
        node = self.model.own(path)
        node.mode = node.kind | mode

    def chown(self, path: str, owner: tuple[int, int]) -> None:
        """Change the owner; set-user-id stays."""
        os.chown(self.at(path), *owner, follow_symlinks=False)
        node = self.model.own(path)
        node.owner = owner
        if not node.is_directory:
            node.xattrs.pop(CAPABILITY, None)
        if not stat.S_ISLNK(node.mode):
            self.chmod(path, stat.S_IMODE(node.mode))

    def set_xattr(self, path: str, name: str, value: bytes) -> None:
        """Set an extended attribute."""
        os.setxattr(self.at(path), name, value, follow_symlinks=False)
        self.model.own(path).xattrs[name] = value

    def remove_xattr(self, path: str, name: str) -> None:
        """Remove an extended attribute."""
        os.removexattr(self.at(path), name, follow_symlinks=False)
        del self.model.own(path).xattrs[name]
