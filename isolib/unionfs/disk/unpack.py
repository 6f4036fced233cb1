"""From pieces to a directory: what a layer says is made true there."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from errno import EEXIST, EINVAL, ENOENT, EPERM
from functools import partial
from io import UnsupportedOperation
from typing import TYPE_CHECKING, Final, TypeVar

from isolib._kernel import calls
from isolib._kernel.handle import Fd
from isolib.errors import ArchiveError, SyscallError, from_errno
from isolib.unionfs.archive.reading import Limits
from isolib.unionfs.disk.attributes import Attributes, Skipped
from isolib.unionfs.disk.below import Below
from isolib.unionfs.disk.files import CHUNK, NOT_A_DIRECTORY, attempt, copy_file, open_beneath, shown
from isolib.unionfs.disk.placing import Places, Whose
from isolib.unionfs.disk.scan import hard_link
from isolib.unionfs.disk.settling import settle
from isolib.unionfs.drivers.base import Form
from isolib.unionfs.entry import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from isolib.unionfs.disk.scan import Ids
    from isolib.unionfs.entry import Content, Entry, Pieces

__all__ = ["Limits", "Skipped", "Unpacked", "unpack"]

T = TypeVar("T")

_DEFAULT: Final = Limits()
_SMALL: Final = 1 << 20
_MAX_ID: Final = 2**32 - 2
_MODES: Final = 0o7777
_MAX_MAJOR: Final = 0xFFF
_MAX_MINOR: Final = 0xFFFFF
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OF_THE_ROOT: Final = frozenset({Kind.DIRECTORY, Kind.OPAQUE})
_TYPES: Final = {Kind.FIFO: stat.S_IFIFO, Kind.CHARACTER: stat.S_IFCHR, Kind.BLOCK: stat.S_IFBLK}
_TRIES: Final = 64


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What has been unpacked.

    Attributes
    ----------
    size
        Bytes of the contents of all files.
    files
        How many entries there were.
    skipped
        What was left out because it was refused and that was allowed.
    """

    size: int
    files: int
    skipped: tuple[Skipped, ...] = ()


def unpack(
    pieces: Pieces,
    root: int,
    form: Form,
    *,
    lowers: Sequence[int] = (),
    limits: Limits = _DEFAULT,
    ids: Ids | None = None,
    allow: Collection[str] = (),
) -> Unpacked:
    """Make below a directory what a layer says.

    The tree, or the union of this directory with the layers below it, then is as the layer wants it, in each form the same,
    whatever the order of the pieces:

    - A directory over a directory gives it its attributes; anything else takes the place of what was there, with all in it.
    - Whiteouts and opaque marks hide what lower layers have, and nothing that the same layer brings.
    - Of two entries for one path the later one counts.
    - A directory that is needed and not listed is as it is below, or root's with mode 0755 where nothing is below.  Its time of
      modification stays, too.
    - Nothing is ever reached through a symbolic link.  One of a lower layer that stands where a directory is needed is replaced
      by one: an overlay shows the same, and what the layer says then does not depend on where that link leads.  One of the same
      layer is refused: archives of real trees cannot have that, and every program makes something else of it.

    Parameters
    ----------
    pieces
        From an archive, a directory or a comparison; their paths are checked again.
    root
        A descriptor of the directory: empty for OVERLAY forms, the tree below for MERGED.  When this raises, it is to be
        thrown away.
    form
        How the layer is to lie there.  OVERLAY needs CAP_SYS_ADMIN in the first user namespace, for its attributes.
    lowers
        For OVERLAY forms, descriptors of the layers below, the topmost first, in the same form, or of their mounted union.
        Where there are none, nothing is below, and no whiteout is made: overlayfs shows those in a directory that it does not
        merge with another.
    limits
        What may be made.
    ids
        Maps owner and group in the layer to those on disk.
    allow
        What may be left out where it is refused: "devices", "owners" (the files are the caller's then), "xattrs".

    Returns
    -------
    Unpacked

    Raises
    ------
    ArchiveError
        The layer asks for what must not be, or grows beyond the limits.
    SyscallError
        Something could not be made; its path is the target.  PermissionDenied for what ``allow`` does not have.
    PlanError
        An argument cannot work.

    Notes
    -----
    Attributes by which overlayfs and its like keep their books, and those of security modules, are left out.

    Sources: the OCI image specification, layer.md; Documentation/filesystems/overlayfs.rst; openat2(2).
    """
    run = _Unpacking(root, form, Below(lowers, form), limits, Attributes(ids, allow))
    with run.places:
        for entry, content in pieces:
            run.take(entry, content)
        run.finish()
    return Unpacked(run.size, run.files, tuple(run.attributes.skipped))


class _Unpacking:
    def __init__(self, root: int, form: Form, below: Below, limits: Limits, attributes: Attributes) -> None:
        self.places = Places(root, limits.entries)
        self.attributes = attributes
        self.size = 0
        self.files = 0
        self._form = form
        self._below = below
        self._limits = limits
        #: Targets of hard links that are not of this layer, which must not be hidden by it.
        self._linked: list[bytes] = []
        self._copied: dict[tuple[int, int, int], bytes] = {}

    def take(self, entry: Entry, content: Content | None) -> None:
        """Make true what an entry says."""
        self._check(entry)
        self.files += 1
        kind = entry.kind
        if kind is Kind.FILE:
            self._file(entry, content)
        elif kind is Kind.DIRECTORY:
            self._directory(entry)
        elif kind is Kind.WHITEOUT or kind is Kind.OPAQUE:
            self._mark(entry)
        elif kind is Kind.HARDLINK:
            self._link(entry)
        elif kind is Kind.SYMLINK:
            self._symlink(entry)
        else:
            self._node(entry)

    def finish(self) -> None:
        """Do what can be done only when all entries have come."""
        for target in self._linked:
            if self.places.hides(target):
                raise ArchiveError("is linked to, and deleted by the same layer", target)
        settle(self.places, self._form, self._below, self.attributes)

    def _check(self, entry: Entry) -> None:
        path, limits = entry.path, self._limits
        parts = path.split(b"/") if path else []
        if b"" in parts or b"." in parts or b".." in parts or 0 in path:
            raise ArchiveError("is no path below a directory", path)
        if len(parts) > limits.depth or len(path) > limits.path:
            raise ArchiveError(f"is deeper or longer than the limits: {limits.depth} names, {limits.path} bytes", path[:255])
        if not path and entry.kind not in _OF_THE_ROOT:
            raise ArchiveError(f"a {entry.kind.value} takes the place of the root")
        if not (0 <= entry.uid <= _MAX_ID and 0 <= entry.gid <= _MAX_ID and 0 <= entry.mode <= _MODES):
            raise ArchiveError(f"has the owner {entry.uid}:{entry.gid} and the mode {entry.mode:#o}", path)
        if self.files >= limits.entries:
            raise ArchiveError(f"is one entry more than the limit, {limits.entries}", path)
        self.size += entry.size
        if entry.size < 0 or self.size > limits.size:
            raise ArchiveError(f"takes the contents beyond the limit, {limits.size} bytes", path)

    # One method for each kind

    def _directory(self, entry: Entry) -> None:
        if not entry.path:
            node = self.places.root
        else:
            fd, above, name = self.places.parent(entry.path)
            node = self.places.directory(fd, above, name, entry.path)
        node.entry = entry
        node.opaque = node.opaque or entry.opaque

    def _mark(self, entry: Entry) -> None:
        if entry.kind is Kind.OPAQUE:
            if (node := self.places.marked(entry.path)) is not None:
                node.opaque = True
            return
        parent, _, name = entry.path.rpartition(b"/")
        if (node := self.places.marked(parent)) is not None:
            node.gone.add(name)

    def _file(self, entry: Entry, content: Content | None, attributes: Attributes | None = None) -> None:
        if content is None and entry.size:
            raise ArchiveError("is a file without content", entry.path)
        attributes = attributes or self.attributes
        source = None if content is None else _descriptor(content)
        if source is not None or entry.xattrs or entry.size > _SMALL:
            self._file_in_steps(entry, content, source, attributes)
            return
        data = b"" if content is None else _whole(content, entry)
        fd, above, name = self.places.parent(entry.path)
        owner = attributes.granted(entry)
        for _ in range(_TRIES):
            refused = calls.make_file(fd, name, data, mode=entry.mode, mtime=entry.mtime, owner=owner)
            if refused is None:
                above.names[name] = None
                return
            if refused.call == "openat" and refused.errno == EEXIST:
                self.places.replace(fd, above, name, entry.path)
            elif refused.call == "fchown" and owner is not None:
                attributes.owner_refused(entry, owner, refused.call, refused.errno)
                owner = None
            else:
                raise from_errno(refused.call, shown(entry.path), refused.errno)
        raise from_errno("openat", shown(entry.path), EEXIST)

    def _file_in_steps(self, entry: Entry, content: Content | None, source: int | None, attributes: Attributes) -> None:
        fd, name, made = self._put(entry, "openat", _create)
        with made:
            try:
                if source is not None:
                    copy_file(source, made.fileno(), entry.size, entry.path)
                elif content is not None:
                    _pour(content, made.fileno(), entry)
                attributes.dress(made.fileno(), entry)
            except BaseException:
                with suppress(OSError):
                    os.unlink(name, dir_fd=fd)
                raise

    def _symlink(self, entry: Entry, attributes: Attributes | None = None) -> None:
        if not entry.target or 0 in entry.target:
            raise ArchiveError("is a symbolic link to no path", entry.path)
        fd, name, _ = self._put(entry, "symlinkat", partial(_symlink, entry.target))
        (attributes or self.attributes).dress_name(fd, name, entry)

    def _node(self, entry: Entry, attributes: Attributes | None = None) -> None:
        major, minor = entry.device
        if entry.kind is not Kind.FIFO and not (0 <= major <= _MAX_MAJOR and 0 <= minor <= _MAX_MINOR):
            raise ArchiveError(f"is a device with the number {major}:{minor}", entry.path)
        if entry.kind is Kind.CHARACTER and entry.device == (0, 0):
            raise ArchiveError("is a character device 0:0, which is a whiteout to overlayfs", entry.path)
        try:
            fd, name, _ = self._put(entry, "mknodat", partial(_mknod, _TYPES[entry.kind] | 0o600, os.makedev(major, minor)))
        except SyscallError as error:
            if entry.kind is Kind.FIFO:
                raise
            attributes = attributes or self.attributes
            attributes.refused("devices", entry, f"{entry.kind.value} {major}:{minor}", error.op, error.errno)
            # What is below at its path is not to be seen in its place.
            parent, _, name = entry.path.rpartition(b"/")
            if (node := self.places.marked(parent)) is not None:
                node.gone.add(name)
            return
        (attributes or self.attributes).dress_name(fd, name, entry)

    def _put(self, entry: Entry, op: str, create: Callable[[bytes, int], T]) -> tuple[int, bytes, T]:
        """Make something where there may be something already."""
        fd, above, name = self.places.parent(entry.path)
        for _ in range(_TRIES):
            try:
                made = create(name, fd)
            except FileExistsError:
                self.places.replace(fd, above, name, entry.path)
            except OSError as error:
                raise from_errno(op, shown(entry.path), error.errno or EINVAL) from None
            else:
                above.names[name] = None
                return fd, name, made
        raise from_errno(op, shown(entry.path), EEXIST)

    # Hard links

    def _link(self, entry: Entry) -> None:
        path, target = entry.path, entry.target
        parts = target.split(b"/")
        if b"" in parts or b"." in parts or b".." in parts or 0 in target:
            raise ArchiveError("is a hard link to what is no path below a directory", path)
        if target == path or target.startswith(path + b"/"):
            raise ArchiveError("is a hard link to itself, or to what it takes the place of", path)
        whose = self.places.whose(target)
        if whose is Whose.NOBODY or (whose is Whose.BELOW and self.places.hides(target)):
            raise ArchiveError(f"is a hard link to {shown(target)}, which is not there", path)
        if whose is Whose.BELOW:
            self._linked.append(target)
            if self._form is not Form.MERGED:
                self._copy_up(entry)
        parent, _, name = target.rpartition(b"/")
        try:
            with open_beneath(self.places.fd, parent, os.O_PATH | os.O_DIRECTORY, what=path) as source:
                self._put(entry, "linkat", partial(_link, name, source.fileno()))
                if whose is Whose.BELOW:
                    # It is the layer's too from now on: an overlay has it in this layer.
                    _, above, name = self.places.parent(target)
                    above.names[name] = None
        except SyscallError as error:
            if error.errno == ENOENT or error.errno in NOT_A_DIRECTORY:
                raise ArchiveError(f"is a hard link to {shown(target)}, which is not there", path) from None
            if error.errno == EPERM and self._is_directory(target):
                raise ArchiveError(f"is a hard link to {shown(target)}, which is a directory", path) from None
            raise

    def _is_directory(self, path: bytes) -> bool:
        with open_beneath(self.places.fd, path, os.O_PATH) as found:
            return stat.S_ISDIR(os.fstat(found.fileno()).st_mode)

    def _copy_up(self, link: Entry) -> None:
        """Bring a file of a lower layer into this one, as an overlay does before it makes another name for it."""
        seen = self._below.find(link.target)
        if seen is None or seen.entry.kind is Kind.DIRECTORY:
            raise ArchiveError(f"is a hard link to {shown(link.target)}, which is no file below", link.path)
        identity = seen.layer, seen.found.device, seen.found.inode
        first = self._copied.setdefault(identity, link.target)
        entry, as_it_is = seen.entry, self.attributes.unmapped()
        if first != link.target and self.places.whose(first) is Whose.OURS:
            self._link(hard_link(entry, first))
        elif entry.kind is Kind.FILE:
            with self._below.open(seen, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY) as source:
                self._file_in_steps(entry, None, source.fileno(), as_it_is)
        elif entry.kind is Kind.SYMLINK:
            self._symlink(entry, as_it_is)
        else:
            self._node(entry, as_it_is)


def _create(name: bytes, dir_fd: int) -> Fd:
    (made,) = Fd.take_all(map, partial(os.open, dir_fd=dir_fd), (name,), (_CREATE,), (0o600,))
    return made


def _symlink(target: bytes, name: bytes, dir_fd: int) -> None:
    os.symlink(target, name, dir_fd=dir_fd)


def _mknod(mode: int, device: int, name: bytes, dir_fd: int) -> None:
    os.mknod(name, mode, device, dir_fd=dir_fd)


def _link(target: bytes, target_fd: int, name: bytes, dir_fd: int) -> None:
    os.link(target, name, src_dir_fd=target_fd, dst_dir_fd=dir_fd, follow_symlinks=False)


def _descriptor(content: Content) -> int | None:
    fileno = getattr(content, "fileno", None)
    if fileno is None:
        return None
    try:
        return int(fileno())
    except UnsupportedOperation:
        return None


def _whole(content: Content, entry: Entry) -> bytes:
    data = content.read(entry.size)
    while len(data) < entry.size:
        more = content.read(entry.size - len(data))
        if not more:
            raise ArchiveError(f"has {len(data)} bytes of content, not {entry.size}", entry.path)
        data += more
    return data


def _pour(content: Content, fd: int, entry: Entry) -> None:
    left = entry.size
    while left:
        data = content.read(min(left, CHUNK))
        if not data:
            raise ArchiveError(f"has {entry.size - left} bytes of content, not {entry.size}", entry.path)
        left -= len(data)
        rest = memoryview(data)
        while rest:
            rest = rest[attempt("write", entry.path, os.write, fd, rest) :]
