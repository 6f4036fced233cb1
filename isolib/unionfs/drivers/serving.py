"""In a deputy: drivers that it has open for its host, and what it does with them.

Everything here runs in the user namespace, called by `isolib.unionfs.drivers.deputed`; drivers are known by a key that the host
makes.
"""

from __future__ import annotations

import os
from errno import EPERM
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, TypeVar

from isolib._kernel.procfs import parse_id_map
from isolib.errors import IsolibError, SyscallError, from_errno
from isolib.unionfs import drivers
from isolib.unionfs.archive import tar
from isolib.unionfs.archive.streams import Descriptor
from isolib.unionfs.disk.files import shown
from isolib.unionfs.disk.scan import scan
from isolib.unionfs.drivers.base import Form
from isolib.unionfs.drivers.contents import Contents

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import BinaryIO

    from isolib._kernel.handle import Fd
    from isolib.unionfs.archive.tar import Limits
    from isolib.unionfs.drivers.base import Draft, Driver
    from isolib.unionfs.drivers.contents import Written
    from isolib.unionfs.entry import Change, Piece, Pieces

__all__ = ["NotServedError"]

R = TypeVar("R")

_OWN_IDS: Final = 2
_RANGES: Final = "a range in /etc/subuid and /etc/subgid, and newuidmap and newgidmap (apt install uidmap)"


class NotServedError(IsolibError):
    """The deputy does not have a driver open: it is another one than that which had."""


class _Archives(Contents):
    """The files of a driver, for a host whose ids are others."""

    def fill(self, draft: Draft, directory: Fd, recipe: BinaryIO, *, limits: Limits) -> Written:
        return self._filled(draft, _known(scan(directory.fileno(), Form.MERGED)), recipe, limits)


_open: Final[dict[str, Driver]] = {}
_lock: Final = Lock()


def _class_of(name: str) -> type[Driver]:
    if name == "fuse-overlayfs":
        from isolib.unionfs.drivers.fuse_overlayfs import HostedFuseOverlayDriver  # noqa: PLC0415

        return HostedFuseOverlayDriver
    return drivers.driver_class(name)


def _is_there(home: Fd, path: str) -> bool:
    """Return whether a path leads here where it leads for the host."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(home.fileno()))
    except OSError:
        return False


def examine(name: str, home: Fd, path: str) -> bool:
    """Find out whether a driver works in a directory; False: the path leads to another one here."""
    with home:
        if not _is_there(home, path):
            return False
        drivers.examine(_class_of(name), home.fileno(), path)
        return True


def take_up(key: str, name: str, home: Fd, path: str, mounts: Mapping[str, Fd]) -> bool:
    """Open a driver, whose trees may be mounted already; False: the path leads to another directory here."""
    if not _is_there(home, path):
        return False
    with _lock:
        if key not in _open:
            driver = _class_of(name)(home, path)
            for tree, mount in mounts.items():
                driver.adopt(tree, mount)
            _open[key] = driver
    return True


def put_down(key: str) -> None:
    """Close a driver."""
    with _lock:
        driver = _open.pop(key, None)
    if driver is not None:
        driver.settle()
        driver.close()


def _driver(key: str) -> Driver:
    try:
        return _open[key]
    except KeyError:
        raise NotServedError(f"driver {key}: not open in this deputy") from None


def _contents(key: str) -> Contents:
    return _Archives(_driver(key))


def check(key: str) -> None:
    """Do nothing but raise where a driver is not open."""
    _driver(key)


def form(key: str) -> Form:
    """Return how layers lie on disk."""
    return _driver(key).form


def perform(key: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], lock: Fd | None) -> Any:  # noqa: ANN401
    """Call a method of the driver; a lock that is sent along stays held until then, even if the host is gone."""
    try:
        return getattr(_driver(key), method)(*args, **kwargs)
    finally:
        if lock is not None:  # exceptions that are kept keep what led to them
            lock.close()


def unpack(
    key: str, draft: Draft, below: Sequence[str], archive: Fd, recipe: Fd, *, limits: Limits, unended: bool
) -> frozenset[int]:
    """As `Contents.unpack`, of a pipe."""
    with archive, draft.root, _writing(recipe) as sink:
        try:
            return _contents(key).unpack(draft, below, Descriptor(archive), sink, limits=limits, unended=unended)
        except SyscallError as error:
            raise _explained(error) from None


def within(key: str, root: Fd, function: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:  # noqa: ARG001
    """As `Contents.within`."""
    with root:
        try:
            return function(root.fileno(), *args, **kwargs)
        except SyscallError as error:
            raise _explained(error) from None


def fill(key: str, draft: Draft, directory: Fd, recipe: Fd, *, limits: Limits) -> Written:
    """As `Contents.fill`."""
    with directory, draft.root, _writing(recipe) as sink:
        return _contents(key).fill(draft, directory, sink, limits=limits)


def archive(key: str, tree: str, pipe: Fd | None, recipe: Fd | None, mtime_limit: int | None) -> Written:
    """As `Contents.archive`, into a pipe."""
    contents, sink = _contents(key), None if pipe is None else Descriptor(pipe)
    try:
        if recipe is None:
            return contents.archive(tree, sink, mtime_limit=mtime_limit)
        with _writing(recipe) as file:
            return contents.archive(tree, sink, recipe=file, mtime_limit=mtime_limit)
    finally:
        if pipe is not None:
            pipe.close()


def changed(key: str, tree: str, pipe: Fd) -> None:
    """As `Driver.changed`, as a tar into a pipe."""
    with pipe:
        tar.write(_driver(key).changed(tree), Descriptor(pipe))


def changes(key: str, tree: str, below: Sequence[str]) -> list[Change]:
    """As `Contents.changes`."""
    return _contents(key).changes(tree, below)


def limit_times(key: str, tree: str, root: Fd, limit: int) -> None:
    """As `Contents.limit_times`."""
    with root:
        _contents(key).limit_times(tree, root, limit)


def replay(key: str, layer: str, recipe: Fd, pipe: Fd) -> None:
    """As `Contents.replay`, into a pipe."""
    with recipe, pipe, open(recipe.fileno(), "rb", closefd=False) as file:
        sink = Descriptor(pipe)
        for data in _contents(key).replay(layer, file):
            sink.write(data)


def _writing(fd: Fd) -> BinaryIO:
    return open(fd.fileno(), "wb", closefd=False, buffering=1 << 16)


# ---- owners ----


def _overflow() -> tuple[int, int]:
    """Return the ids that the kernel shows in the place of those that have no meaning in this user namespace."""
    found = []
    for kind in ("uid", "gid"):
        with open(f"/proc/sys/kernel/overflow{kind}", encoding="ascii") as file:
            found.append(int(file.read()))
    return found[0], found[1]


def _known(pieces: Pieces) -> Iterator[Piece]:
    """Yield pieces of a directory of the host's, all of whose owners have an id here."""
    nobody, nogroup = _overflow()
    for entry, content in pieces:
        if entry.uid == nobody or entry.gid == nogroup:
            raise from_errno(
                "newfstatat",
                shown(entry.path),
                EPERM,
                f"whose it is cannot be told: {nobody}:{nogroup} stands for all owners that are none of this user's "
                f"subordinate ids; what would help: root, a tar instead of the directory, or {_RANGES}",
            )
        yield entry, content


def _explained(error: SyscallError) -> SyscallError:
    """Say to whom this user can give files, where that was refused."""
    if error.op not in {"fchown", "fchownat"}:
        return error
    owner = (error.hint or "").partition(":")[0:3]
    return from_errno(error.op, error.target, EPERM, f"{''.join(owner).partition(': ')[0]}: {_who_can_own()}")


def _who_can_own() -> str:
    with open("/proc/self/uid_map", "rb") as file:
        ids = parse_id_map(file.read())
    if sum(one.count for one in ids) < _OWN_IDS:
        return f"this user has no ids for files of an image that are not root's; what would help: {_RANGES}"
    ranges = ", ".join(f"{one.inside} to {one.inside + one.count - 1}" for one in ids)
    return f"this user has ids for {ranges}; what would help: more of them in /etc/subuid and /etc/subgid"
