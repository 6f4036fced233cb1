"""Layers as hypothesis makes them, a model of what they do to a tree, and trees as the kernel shows them."""

from __future__ import annotations

import io
import os
import stat
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from hypothesis import strategies as st

from isolib._kernel import calls
from isolib._kernel.handle import Fd
from isolib._kernel.mountapi import new_mount
from isolib.errors import ArchiveError
from isolib.unionfs.disk.unpack import unpack
from isolib.unionfs.drivers.base import Form
from isolib.unionfs.entry import Entry, Kind
from tests.storage import disk

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import TypeAlias

    from isolib.unionfs.entry import Piece, Pieces

#: An entry, and its content, which can be read any number of times.
Made: TypeAlias = "tuple[Entry, bytes]"

OVERLAYS: Final = (Form.OVERLAY, Form.USER_OVERLAY)
_ME: Final = (os.geteuid(), os.getegid())
_MINE: Final[dict[str, object]] = {"uid": _ME[0], "gid": _ME[1]}
#: Of what this user can look at afterwards.
_READABLE: Final = 0 if _ME[0] == 0 else 0o700
_MARKS: Final = {Kind.WHITEOUT, Kind.OPAQUE}
_TYPES: Final = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFCHR: Kind.CHARACTER,
    stat.S_IFBLK: Kind.BLOCK,
}


def file(path: bytes, content: bytes = b"", mode: int = 0o644, **fields: object) -> Made:
    """Return a file of the caller's."""
    return Entry(path, Kind.FILE, mode, size=len(content), **(_MINE | fields)), content  # type: ignore[arg-type]


def directory(path: bytes, mode: int = 0o755, **fields: object) -> Made:
    """Return a directory of the caller's."""
    return Entry(path, Kind.DIRECTORY, mode, **(_MINE | fields)), b""  # type: ignore[arg-type]


def symlink(path: bytes, target: bytes) -> Made:
    """Return a symbolic link of the caller's."""
    return Entry(path, Kind.SYMLINK, 0o777, *_ME, target=target), b""


def link(path: bytes, target: bytes) -> Made:
    """Return a hard link."""
    return Entry(path, Kind.HARDLINK, 0o644, *_ME, target=target), b""


def whiteout(path: bytes) -> Made:
    """Return a whiteout."""
    return Entry(path, Kind.WHITEOUT), b""


def opaque(path: bytes) -> Made:
    """Return an opaque mark."""
    return Entry(path, Kind.OPAQUE), b""


def pieces(made: Iterable[Made]) -> Iterator[Piece]:
    """Return what is to be unpacked."""
    for entry, content in made:
        yield entry, io.BytesIO(content) if entry.kind is Kind.FILE else None


def kept(found: Pieces) -> list[Made]:
    """Return pieces that can be used again."""
    return [(entry, b"" if content is None else content.read()) for entry, content in found]


# ---- what hypothesis makes ----

_NAMES = st.sampled_from([b"a", b"b", b"a-", b"\xff"])
_PATHS = st.lists(_NAMES, min_size=1, max_size=3).map(b"/".join)
_TIMES = st.sampled_from([0, 1, -1, 10**18 + 123_456_789, -(10**9) - 5])
_XATTRS = st.dictionaries(st.sampled_from([b"user.one", b"user.two"]), st.sampled_from([b"", b"x", b"\0\xff"]), max_size=2)


@st.composite
def entries(draw: st.DrawFn, owners: Sequence[int], *, marks: bool) -> Made:
    """Return an entry of any kind."""
    path = draw(_PATHS)
    kinds = [Kind.FILE, Kind.FILE, Kind.DIRECTORY, Kind.DIRECTORY, Kind.SYMLINK, Kind.FIFO, Kind.HARDLINK]
    kind = draw(st.sampled_from(kinds + [Kind.WHITEOUT, Kind.WHITEOUT, Kind.OPAQUE] * marks))
    if kind in _MARKS:
        return Entry(path, kind), b""
    owner = draw(st.sampled_from(owners))
    mode = 0o777 if kind is Kind.SYMLINK else draw(st.sampled_from([0o644, 0o755, 0o000, 0o6711, 0o1777, 0o2555])) | _READABLE
    entry = Entry(path, kind, mode, owner, owner, draw(_TIMES))
    if kind is Kind.FILE:
        content = draw(st.sampled_from([b"", b"one", b"two", b"x" * 70_000]))
        return replace(entry, size=len(content), xattrs=draw(_XATTRS)), content
    if kind is Kind.DIRECTORY:
        return replace(entry, xattrs=draw(_XATTRS), opaque=marks and draw(st.booleans())), b""
    if kind is Kind.FIFO:
        return entry, b""
    return replace(entry, target=draw(_PATHS)), b""


def layers(owners: Sequence[int], *, marks: bool = True) -> st.SearchStrategy[list[Made]]:
    """Return layers, which may well be none: in some a file is in the way of what follows, or a link leads nowhere."""
    return st.lists(entries(owners, marks=marks), max_size=12)


# ---- what a layer does ----


@dataclass(frozen=True)
class Thing:
    """What is at a path; of names of one file, the first."""

    kind: Kind
    mode: int
    owner: tuple[int, int]
    mtime: int
    content: bytes = b""
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)
    names: frozenset[bytes] = frozenset()


class Model:
    """A tree in memory: the rules of OCI's layer.md, as simply as they can be said."""

    def __init__(self) -> None:
        self.inodes: dict[int, Thing] = {}
        self.paths: dict[bytes, int] = {}
        self._put(b"", Thing(Kind.DIRECTORY, 0o755, _ME, 0))

    def _put(self, path: bytes, thing: Thing) -> None:
        number = len(self.inodes)
        self.inodes[number] = thing
        self.paths[path] = number

    def at(self, path: bytes) -> Thing | None:
        """Return what is at a path."""
        return self.inodes[self.paths[path]] if path in self.paths else None

    def _remove(self, path: bytes, *, itself: bool = True) -> None:
        for one in [one for one in self.paths if one.startswith(path + b"/") or (itself and one == path)]:
            del self.paths[one]

    def apply(self, layer: Sequence[Made]) -> None:
        """Change the tree as a layer says, or raise ArchiveError where it means nothing."""
        for entry, _ in layer:
            if entry.kind is Kind.WHITEOUT:
                self._remove(entry.path)
            elif entry.kind is Kind.OPAQUE or entry.opaque:
                self._remove(entry.path, itself=False)
        ours: set[bytes] = set()
        for entry, content in layer:
            if entry.kind not in _MARKS:
                self._bring(entry, content, ours)

    def _bring(self, entry: Entry, content: bytes, ours: set[bytes]) -> None:
        path, above = entry.path, b""
        if entry.kind is Kind.HARDLINK:
            target = self.at(entry.target)
            if path == entry.target or entry.target.startswith(path + b"/") or target is None or target.kind is Kind.DIRECTORY:
                raise ArchiveError("a link to nothing", path)
        for name in path.split(b"/")[:-1]:
            above = above + b"/" + name if above else name
            thing = self.at(above)
            if thing is None or thing.kind is not Kind.DIRECTORY:
                if above in ours and thing is not None:
                    raise ArchiveError("below a file", path)
                self._put(above, Thing(Kind.DIRECTORY, 0o755, _ME, 0))
            ours.add(above)
        if entry.kind is Kind.HARDLINK:
            number = self.paths[entry.target]
            self._remove(path)
            self.paths[path] = number
            parts = entry.target.split(b"/")
            ours.update(b"/".join(parts[: depth + 1]) for depth in range(len(parts)))
        else:
            was = self.at(path)
            if was is None or was.kind is not Kind.DIRECTORY or entry.kind is not Kind.DIRECTORY:
                self._remove(path)
            text = content or entry.target
            self._put(path, Thing(entry.kind, entry.mode, (entry.uid, entry.gid), entry.mtime, text, dict(entry.xattrs)))
        ours.add(path)

    def tree(self) -> dict[bytes, Thing]:
        """Return all that there is."""
        names: dict[int, set[bytes]] = {}
        for path, number in self.paths.items():
            names.setdefault(number, set()).add(path)
        return {path: replace(self.inodes[number], names=frozenset(names[number])) for path, number in self.paths.items()}


# ---- what the kernel shows ----


def tree(root: int) -> dict[bytes, Thing]:
    """Return all that there is below a directory, found without isolib."""
    top = os.fsencode(f"/proc/self/fd/{root}")
    found: dict[bytes, tuple[int, Thing]] = {}
    todo = [b""]
    while todo:
        path = todo.pop()
        full = top + b"/" + path
        status = os.lstat(full if path else top + b"/.")
        kind = _TYPES[stat.S_IFMT(status.st_mode)]
        content = b""
        if kind is Kind.FILE:
            with open(full, "rb") as opened:
                content = opened.read()
        elif kind is Kind.SYMLINK:
            content = os.readlink(full)
        elif kind is Kind.DIRECTORY:
            todo += [path + b"/" + name if path else name for name in os.listdir(full)]
        names = map(os.fsencode, os.listxattr(full, follow_symlinks=not path))
        xattrs = {name: os.getxattr(full, name, follow_symlinks=not path) for name in names if b"overlay." not in name}
        owner = (status.st_uid, status.st_gid)
        thing = Thing(kind, stat.S_IMODE(status.st_mode), owner, status.st_mtime_ns, content, xattrs)
        found[path] = (status.st_ino, thing)
    inodes: dict[int, set[bytes]] = {}
    for path, (number, _) in found.items():
        inodes.setdefault(number, set()).add(path)
    return {path: replace(thing, names=frozenset(inodes[number])) for path, (number, thing) in found.items()}


def without_names(things: Mapping[bytes, Thing]) -> dict[bytes, Thing]:
    """Return a tree without which names are of one file: an overlay breaks such a bond when it copies a file up."""
    return {path: replace(thing, names=frozenset()) for path, thing in things.items()}


@contextmanager
def places(count: int) -> Iterator[list[Fd]]:
    """Make empty directories."""
    with ExitStack() as stack:
        made = []
        for _ in range(count):
            path = stack.enter_context(tempfile.TemporaryDirectory())
            made.append(stack.enter_context(Fd(os.open(path, os.O_RDONLY | os.O_CLOEXEC))))
            # What is too deep for shutil, or closed to the caller.
            stack.callback(calls.remove_tree, made[-1].fileno(), None, "")
        yield made


@contextmanager
def anywhere() -> Iterator[Fd]:
    """Make an empty directory; in memory, where that is possible: a disk takes long to remove deep trees."""
    if os.geteuid() == 0:
        with disk("tmpfs") as made:
            yield made.root
    else:
        with places(1) as (root,):
            yield root


@contextmanager
def union(form: Form, lowers: Sequence[Fd]) -> Iterator[Fd]:
    """Mount an overlay of layers, the topmost first, as the kernel makes it; attached nowhere."""
    with places(1) as (empty,):
        paths = [os.readlink(f"/proc/self/fd/{one.fileno()}") for one in (*lowers, empty)]
        options: dict[str, str | int | None] = {"lowerdir": ":".join(paths)}
        if form is Form.USER_OVERLAY:
            options["userxattr"] = None
        with Fd(new_mount("overlay", options)) as mounted:
            yield mounted


def make(layer: Iterable[Made], root: Fd, form: Form = Form.MERGED, lowers: Sequence[Fd] = ()) -> None:
    """Unpack a layer."""
    unpack(pieces(layer), root.fileno(), form, lowers=[one.fileno() for one in lowers])


def _outcome(layer: Sequence[Made], root: Fd, form: Form, lowers: Sequence[Fd] = ()) -> bool:
    try:
        make(layer, root, form, lowers)
    except ArchiveError:
        return False
    return True


def check_merged(stack: Sequence[Sequence[Made]]) -> None:
    """Unpack layers into one tree, which must be what the model says."""
    model = Model()
    with places(1) as (root,):
        for layer in stack:
            try:
                model.apply(layer)
            except ArchiveError:
                assert not _outcome(layer, root, Form.MERGED)
                return
            make(layer, root)
            expected = model.tree()
            if not any(entry.path == b"" for entry, _ in layer):
                # Of the root nothing is said.
                expected[b""] = tree(root.fileno())[b""]
            assert tree(root.fileno()) == expected


def check_union(form: Form, stack: Sequence[Sequence[Made]]) -> None:
    """Unpack layers each into a directory of its own, whose union must be what all unpacked into one tree are."""
    with places(len(stack) + 1) as (merged, *roots):
        lowers: list[Fd] = []
        for layer, root in zip(stack, roots, strict=True):
            layer = [directory(b""), *layer]  # noqa: PLW2901  # what is said of the root
            done = _outcome(layer, merged, Form.MERGED)
            assert _outcome(layer, root, form, lowers) == done
            if not done:
                return
            lowers.insert(0, root)
            with union(form, lowers) as mounted:
                assert without_names(tree(mounted.fileno())) == without_names(tree(merged.fileno()))
