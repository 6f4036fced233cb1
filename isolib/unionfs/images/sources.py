"""What a path holds that is to be loaded: told by its content, whatever it is called.

Archives of images are known by a file at their top, an OCI layout by ``oci-layout`` and what ``docker save`` writes by
``manifest.json``.  A tar that has ``usr`` or the like at its top is a root file system, and so is any that is none of the
others.
"""

from __future__ import annotations

import enum
import os
import stat
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, Final

from isolib._kernel.handle import Fd
from isolib._kernel.hints import typed
from isolib.errors import ArchiveError, PlanError
from isolib.unionfs.archive.compression import Compression, open_compressed
from isolib.unionfs.archive.streams import CHUNK
from isolib.unionfs.disk.files import open_at
from isolib.unionfs.images import docker
from isolib.unionfs.images.blobs import DirectoryFiles, TarFiles, read
from isolib.unionfs.images.members import Section, members
from isolib.unionfs.images.offers import INDEX, LAYOUT, docker_offers, oci_offers
from isolib.unionfs.images.references import Reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from isolib.unionfs.archive.streams import Readable
    from isolib.unionfs.images.blobs import Files
    from isolib.unionfs.images.config import Platform
    from isolib.unionfs.images.members import Member
    from isolib.unionfs.images.offers import Offer

__all__ = ["Source", "SourceKind", "opened_source", "selected"]

_OF_A_ROOT: Final = frozenset(
    [
        "bin",
        "boot",
        "dev",
        "etc",
        "home",
        "lib",
        "lib32",
        "lib64",
        "libx32",
        "media",
        "mnt",
        "opt",
        "proc",
        "root",
        "run",
        "sbin",
        "srv",
        "sys",
        "tmp",
        "usr",
        "var",
    ]
)
_OF_IMAGES: Final = frozenset({LAYOUT, INDEX, docker.MANIFEST})
_BLOBS: Final = "blobs/sha256/"
_SUFFIXES: Final = (".json", "/layer.tar")
#: More than any archive of images has.
_MOST: Final = 100_000


class SourceKind(enum.Enum):
    """What a source is."""

    OCI = "OCI layout"
    DOCKER = "archive of docker save"
    DIRECTORY = "directory"
    TAR = "tar of a root file system"


@dataclass(frozen=True, slots=True)
class Source:
    """What is to be loaded.

    Attributes
    ----------
    kind
        What it is.
    files
        Its files: of an archive of images all that are in it, of a TAR itself alone, by the name ``""``.
    root
        A descriptor of the DIRECTORY.
    """

    kind: SourceKind
    files: Files
    root: Fd | None = None


class _Whole:
    """A file as the only one of its kind."""

    def __init__(self, file: Fd, size: int) -> None:
        self._file = file
        self._size = size

    def has(self, path: str) -> bool:
        return not path

    @contextmanager
    def open(self, path: str) -> Iterator[tuple[Section, int]]:  # noqa: ARG002 - there is one
        yield Section(self._file.fileno(), 0, self._size), self._size


class _Forward:
    """A stream read by offsets that only grow."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._at = 0

    def read(self, size: int, offset: int) -> bytes:
        while self._at < offset:
            skipped = self._stream.read(min(CHUNK, offset - self._at))
            if not skipped:
                return b""
            self._at += len(skipped)
        data = b""
        while len(data) < size and (more := self._stream.read(size - len(data))):
            data += more
        self._at += len(data)
        return data


@contextmanager
def opened_source(path: str, spool: Callable[[], BinaryIO]) -> Iterator[Source]:
    """Have a source open.

    Parameters
    ----------
    path
        Where it is: a directory, a file, or something that can be read once, as a pipe.
    spool
        Makes a file without a name, for what can only be read once.

    Raises
    ------
    ArchiveError
        It is neither a tar nor one that is compressed.
    SyscallError
        It cannot be opened.
    """
    with ExitStack() as stack:
        with typed(path):
            opened = stack.enter_context(open_at(path, os.O_RDONLY))
            kind = stat.S_IFMT(os.fstat(opened.fileno()).st_mode)
        if kind == stat.S_IFDIR:
            files = DirectoryFiles(opened)
            is_layout = files.has(LAYOUT)
            yield Source(SourceKind.OCI if is_layout else SourceKind.DIRECTORY, files, None if is_layout else opened)
            return
        if kind not in {stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK}:
            raise PlanError(f"source: {path!r} is neither a directory nor a file")
        if kind != stat.S_IFREG:
            with open(opened.fileno(), "rb", closefd=False, buffering=0) as stream:
                opened = stack.enter_context(_spooled(stream, spool))
        yield _archive(opened, stack, spool)


@contextmanager
def _spooled(stream: Readable, spool: Callable[[], BinaryIO]) -> Iterator[Fd]:
    with spool() as file:
        while data := stream.read(CHUNK):
            file.write(data)
        file.flush()
        with Fd(os.dup(file.fileno())) as copy:
            yield copy


def _archive(file: Fd, stack: ExitStack, spool: Callable[[], BinaryIO]) -> Source:
    size = os.fstat(file.fileno()).st_size
    whole = Source(SourceKind.TAR, _Whole(file, size))

    def expanded() -> Readable:
        return open_compressed(Section(file.fileno(), 0, size))

    found = open_compressed(Section(file.fileno(), 0, size))
    if found.compression is Compression.NONE:
        index = _index(partial(_pread, file.fileno()))
        return whole if index is None else _recognised(TarFiles(file.fileno(), index)) or whole
    if _index(_Forward(found).read) is None:
        return whole
    plain = stack.enter_context(_spooled(expanded(), spool))
    index = _index(partial(_pread, plain.fileno()))
    return whole if index is None else _recognised(TarFiles(plain.fileno(), index)) or whole


def _pread(fd: int, size: int, offset: int) -> bytes:
    return os.pread(fd, size, offset)


def _index(read_at: Callable[[int, int], bytes]) -> dict[str, Member] | None:
    """Return where the files are; None as soon as it is clear that it is a root file system.

    So it is where something is wrong before anything of an archive of images has come: who reads it will say what.
    """
    index: dict[str, Member] = {}
    try:
        for member in members(read_at):
            if member.path.partition("/")[0] in _OF_A_ROOT or len(index) > _MOST:
                return None
            index[member.path] = member
    except ArchiveError:
        if any(path in _OF_IMAGES or path.startswith(_BLOBS) or path.endswith(_SUFFIXES) for path in index):
            raise
        return None
    return index


def _recognised(files: TarFiles) -> Source | None:
    if files.has(LAYOUT):
        return Source(SourceKind.OCI, files)
    if files.has(docker.MANIFEST):
        try:
            if docker.is_archive(read(files, docker.MANIFEST)):
                return Source(SourceKind.DOCKER, files)
        except ArchiveError:
            pass
    return None


def selected(found: Source, platform: Platform | None, select: str | None, *, one: bool) -> Sequence[Offer]:
    """Return the images of an archive that are to be loaded.

    Parameters
    ----------
    found
        The archive.
    platform
        What they must be for.
    select
        The name, the tag or the digest of the one; None: all.
    one
        Whether there must be but one.

    Raises
    ------
    ArchiveError
        There is none, or there are several where there must be one.
    """
    offers = (oci_offers if found.kind is SourceKind.OCI else docker_offers)(found.files, platform)
    if select is not None:
        offers = [offer for offer in offers if _is_meant(offer, select)]
        if not offers:
            raise ArchiveError(f"there is no image {select!r} in it")
    if one and len(offers) > 1:
        called = ", ".join(str(offer.names[0]) if offer.names else offer.tag or offer.digest for offer in offers)
        raise ArchiveError(f"there are {len(offers)} images in it, and only one can get the name; select one of them: {called}")
    return offers


def _is_meant(offer: Offer, select: str) -> bool:
    if select in {offer.tag, offer.digest, *map(str, offer.names)}:
        return True
    try:
        return Reference.parse(select) in offer.names
    except PlanError:
        return False
