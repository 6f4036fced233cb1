"""The files of volumes: copied, written into archives and read from them, by whom they belong to.

Root does it himself.  Files of an ordinary user's volume belong to him, or to his subordinate ids, which he has in a user
namespace alone: there a deputy does it, to whom he is root.  So in an archive the owners are those that are seen inside, where
the volume was used, and an archive that root has made is one that he can have, and the other way round.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from isolib._kernel import calls
from isolib._kernel.handle import Fd
from isolib.errors import PermissionDenied, from_errno
from isolib.unionfs.archive import tar
from isolib.unionfs.archive.compression import open_compressed
from isolib.unionfs.archive.streams import CHUNK, DigestReader
from isolib.unionfs.disk.copying import copy_tree
from isolib.unionfs.disk.files import attempt
from isolib.unionfs.disk.scan import scan
from isolib.unionfs.disk.unpack import unpack
from isolib.unionfs.drivers.base import Form
from isolib.unionfs.drivers.usage import usage_of
from isolib.unionfs.overlays.deputy import deputy

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from isolib.unionfs.archive.reading import Limits
    from isolib.unionfs.archive.streams import Readable, Writable
    from isolib.unionfs.disk.scan import Ids
    from isolib.unionfs.drivers.base import TreeUsage
    from isolib.unionfs.overlays.deputy import Deputy
    from isolib.unionfs.store.records import Records

__all__ = ["copied", "counted", "discard", "is_empty", "packed", "unpacked"]

P = ParamSpec("P")
R = TypeVar("R")

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_PIPE: Final = 1 << 16


def _deputy() -> Deputy | None:
    """Return who has all the ids that the files may have; None: this process has."""
    if os.geteuid() == 0:
        return None
    found = deputy()
    return found if found.id_map == "auto" else None


def _do(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    by = _deputy()
    return function(*args, **kwargs) if by is None else by.call(function, *args, **kwargs)


def _ids() -> Ids | None:
    """Return the map between an archive's owners and those on disk, either way, for who has but his own ids."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        return None
    return partial(_exchanged, {0: uid, uid: 0}, {0: gid, gid: 0})


def _exchanged(uids: dict[int, int], gids: dict[int, int], uid: int, gid: int) -> tuple[int, int]:
    return uids.get(uid, uid), gids.get(gid, gid)


def copied(source: Fd, target: Fd, shown: str) -> None:
    """Make an empty directory a copy of another one: see `isolib.unionfs.disk.copying.copy_tree`."""
    _do(_copy, source, target, shown)


def _copy(source: Fd, target: Fd, shown: str) -> None:
    with _to_read(source) as one, _to_read(target) as other:
        copy_tree(one, other, shown)


def _to_read(root: Fd) -> Fd:
    """Open a directory anew, of which there may be a descriptor that only says where it is."""
    made = attempt("openat", b"", Fd.take, partial(os.open, dir_fd=root.fileno()), ".", _DIRECTORY)
    assert made is not None  # noqa: S101 - os.open raises
    return made


def counted(root: Fd) -> TreeUsage:
    """Return what a directory takes up."""
    return _do(usage_of, root)  # which opens all of it anew


def is_empty(root: Fd) -> bool:
    """Return whether nothing is in a directory."""
    return _do(_is_empty, root)


def _is_empty(root: Fd) -> bool:
    with _to_read(root) as opened, os.scandir(opened.fileno()) as names:
        return next(names, None) is None


def discard(records: Records, path: str) -> None:
    """Remove a part of a store that may have files of a volume in it; nothing there is nothing."""
    above, name = os.path.split(path)
    with suppress(FileNotFoundError), records.layout.open(above, os.O_DIRECTORY) as directory:
        try:
            records.driver.discard_volume(directory, name)
        except PermissionDenied:
            by = _deputy()
            if by is None:
                raise
            by.call(_discard, directory, name)


def _discard(directory: Fd, name: str) -> None:
    calls.remove_tree(directory.fileno(), name, name)


# ---- archives ----


def packed(root: Fd, sink: Writable, mtime_limit: int | None) -> None:
    """Write the tar of a directory."""
    by = _deputy()
    if by is None:
        _pack(root, sink, mtime_limit, _ids())
        return
    reading, writing = Fd.take_all(os.pipe2, os.O_CLOEXEC)
    with reading, by.begin(_pack_into, root, writing, mtime_limit) as begun:
        writing.close()
        while data := os.read(reading.fileno(), _PIPE):
            sink.write(data)
        begun.result()


def _pack(root: Fd, sink: Writable, mtime_limit: int | None, ids: Ids | None = None) -> None:
    tar.write(scan(root.fileno(), Form.MERGED, ids=ids), sink, mtime_limit=mtime_limit)


def _pack_into(root: Fd, pipe: Fd, mtime_limit: int | None) -> None:
    with root, pipe, open(pipe.fileno(), "wb", closefd=False) as sink:
        _pack(root, sink, mtime_limit)


def unpacked(source: Readable, root: Fd, limits: Limits, allow: Collection[str]) -> None:
    """Unpack a tar, compressed or not, into an empty directory."""
    by = _deputy()
    if by is None:
        _unpack(source, root, limits, allow, _ids())
        return
    reading, writing = Fd.take_all(os.pipe2, os.O_CLOEXEC)
    with writing, by.begin(_unpack_from, reading, root, limits, tuple(allow)) as begun:
        reading.close()
        with suppress(BrokenPipeError):  # it has refused, and says why
            while data := source.read(CHUNK):
                _write(writing, data)
        writing.close()
        begun.result()


def _write(pipe: Fd, data: bytes) -> None:
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(pipe.fileno(), left) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise from_errno("write", "a pipe", error.errno or 0) from None


def _unpack(source: Readable, root: Fd, limits: Limits, allow: Collection[str], ids: Ids | None = None) -> None:
    plain = DigestReader(open_compressed(source))
    unpack(tar.read(plain, limits=limits), root.fileno(), Form.MERGED, limits=limits, ids=ids, allow=allow)
    plain.drain()


def _unpack_from(pipe: Fd, root: Fd, limits: Limits, allow: Collection[str]) -> None:
    with pipe, root, open(pipe.fileno(), "rb", closefd=False) as source:
        _unpack(source, root, limits, allow)
