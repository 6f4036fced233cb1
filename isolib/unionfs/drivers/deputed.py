"""The drivers of an ordinary user: they work in a user namespace, by his deputy.

An ordinary user may not give files to others, nor mount anything; in a user namespace he may do both, with the ids that
/etc/subuid and /etc/subgid give him: see `isolib.unionfs.overlays.deputy`.  Each driver here stands for one there.  Layers come
and go through pipes, as the tars that they are, and descriptors of drafts, layers and trees come back.

A store is told nothing of it: the files in it are the user's, and those of his subordinate ids.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager, suppress
from secrets import token_hex
from threading import RLock
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakValueDictionary

from isolib._kernel.handle import Fd, Rollback
from isolib._kernel.procfs import parse_effective
from isolib.errors import GoneError, SyscallError, Unsupported
from isolib.unionfs.archive import tar
from isolib.unionfs.archive.streams import CHUNK, Descriptor
from isolib.unionfs.disk.files import twin
from isolib.unionfs.drivers import serving
from isolib.unionfs.drivers.base import Driver
from isolib.unionfs.drivers.contents import Contents
from isolib.unionfs.overlays.deputy import deputy
from isolib.unionfs.overlays.overlay_diff import NO_LIMITS

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from typing import BinaryIO

    from isolib.types import HasFileno
    from isolib.unionfs.archive.streams import Readable, Writable
    from isolib.unionfs.archive.tar import Limits
    from isolib.unionfs.drivers.base import Draft, Form, IdMaps, TreeUsage
    from isolib.unionfs.drivers.contents import Written
    from isolib.unionfs.entry import Change, Piece
    from isolib.unionfs.overlays.deputy import Call

__all__ = ["DeputedContents", "DeputedDriver", "contents_of", "examine", "is_needed", "opened"]

P = ParamSpec("P")
R = TypeVar("R")

_CAP_CHOWN = 0


def is_needed() -> bool:
    """Return whether the calling thread may not give files to the owners that an image has."""
    with open("/proc/thread-self/status", "rb", buffering=0) as file:
        return not parse_effective(file.readall()) >> _CAP_CHOWN & 1


def opened(kind: type[Driver], home: Fd, path: str) -> Driver:
    """Open a driver: here, or by the deputy."""
    return DeputedDriver(kind, home, path) if is_needed() else kind(home, path)


def contents_of(driver: Driver) -> Contents:
    """Return what reads and writes the files of a driver."""
    return DeputedContents(driver) if isinstance(driver, DeputedDriver) else Contents(driver)


def examine(kind: type[Driver], home: int, path: str) -> None:
    """Find out by trying whether a driver works in a directory; as `isolib.unionfs.drivers.examine`.

    Raises
    ------
    Unsupported
        It does not, or there is no deputy.
    """
    found = deputy()
    try:
        with twin(home) as own:
            if not found.call_to_end(serving.examine, kind.name, own, path):
                found.end()
                if not found.call_to_end(serving.examine, kind.name, own, path):
                    raise _elsewhere(kind.name, path)
    except SyscallError as error:
        raise Unsupported(
            f"the {kind.name} driver for an ordinary user", str(error), "a host that gives him user namespaces, or root"
        ) from error


def _elsewhere(name: str, path: str) -> Unsupported:
    return Unsupported(
        f"the {name} driver for an ordinary user in {path}",
        "the kernel, which shows another directory at this path in a new mount namespace",
        "a directory whose file system is mounted for everybody, and to which this user has the way",
    )


class DeputedDriver(Driver):
    """A driver that works in the deputy.

    One that is killed is replaced with the next call.  What it was doing raises GoneError; trees' descriptors of the overlay
    driver stay good, while those of fuse-overlayfs, whose program ends with it, are to be asked for anew.

    Parameters
    ----------
    kind
        Which driver.
    home, path
        As of `Driver`.
    """

    def __init__(self, kind: type[Driver], home: Fd, path: str) -> None:
        super().__init__(home, path)
        self.name = kind.name  # type: ignore[misc]  # that of the other one
        self._key = token_hex(8)
        self._deputy = deputy()
        self._lock = RLock()
        self._form: Form | None = None
        self._is_open = False
        self._mounts: dict[str, Fd] = {}
        self._held: WeakValueDictionary[str, Fd] = WeakValueDictionary()

    @classmethod
    def examine(cls, home: int, path: str) -> None:
        """Do nothing: `examine` asks for a driver by its class."""

    # Conversation

    def ask(self, function: Callable[Concatenate[str, P], R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Have a function of `serving` run there, to its end."""
        try:
            return self._deputy.call_to_end(function, self._key, *args, **kwargs)
        except serving.NotServedError:
            self._open_there()
            return self._deputy.call_to_end(function, self._key, *args, **kwargs)

    def _open_there(self) -> None:
        with self._lock:
            self._is_open = True
            if not self._take_up():
                # Something was mounted here that did not reach it.
                self._deputy.end()
                if not self._take_up():
                    raise _elsewhere(self.name, self.path)

    def _take_up(self) -> bool:
        return self._deputy.call_to_end(serving.take_up, self._key, self.name, self.home, self.path, dict(self._mounts))

    @contextmanager
    def receiving(self, function: Callable[..., object], /, *args: object, **kwargs: object) -> Generator[_Incoming]:
        """Give what a function writes to its argument ``pipe``."""
        self.ask(serving.check)
        there, here = _pipe()
        with self._deputy.begin_to_end(function, self._key, *args, pipe=here, **kwargs) as call, there:
            here.close()
            yield _Incoming(there, call)

    @contextmanager
    def sending(self, function: Callable[..., object], /, *args: object, **kwargs: object) -> Generator[tuple[Fd, Call[Any]]]:
        """Give what a function reads from its argument ``archive``, and its call."""
        self.ask(serving.check)
        there, here = _pipe()
        with self._deputy.begin_to_end(function, self._key, *args, archive=there, **kwargs) as call, here:
            there.close()
            yield here, call

    def _do(self, method: str, *args: object, **kwargs: object) -> Any:  # noqa: ANN401 - what the method returns
        return self.ask(serving.perform, method, args, kwargs, None)

    def _change(self, method: str, tree: str, *args: object, **kwargs: object) -> Any:  # noqa: ANN401 - what the method returns
        """Do something to a tree, which nobody else takes until it is done, even if this process is killed meanwhile."""
        lock = self._held.get(tree)
        return self.ask(serving.perform, method, (tree, *args), kwargs, None if lock is None or lock.closed else lock)

    @property
    def form(self) -> Form:
        """That of the other one."""
        if self._form is None:
            self._form = self.ask(serving.form)
        return self._form

    # Layers

    def new_draft(self, name: str, below: Sequence[str]) -> Draft:
        made: Draft = self._do("new_draft", name, tuple(below))
        return made

    def seal(self, draft: Draft, layer: str) -> None:
        with draft.root:
            self._do("seal", draft, layer)

    def drop(self, draft: str) -> None:
        self._do("drop", draft)

    def drafts(self) -> set[str]:
        found: set[str] = self._do("drafts")
        return found

    def open_layer(self, layer: str) -> Fd:
        found: Fd = self._do("open_layer", layer)
        return found

    def layers(self) -> set[str]:
        found: set[str] = self._do("layers")
        return found

    def remove_layer(self, layer: str) -> None:
        self._do("remove_layer", layer)

    # Trees

    def hold(self, tree: str, lock: Fd) -> None:
        self._held[tree] = lock

    def new_tree(self, tree: str, below: Sequence[str], *, quota: int | None = None) -> None:
        self._do("new_tree", tree, tuple(below), quota=quota)

    def mount(self, tree: str) -> Fd:
        with self._lock:
            found: Fd = self._change("mount", tree)
            # Another deputy would have to know it, for two mounts of one tree do not know of each other.
            self._mounts[tree] = twin(found.fileno())
            return found

    def release(self, tree: str) -> None:
        self._mounts.pop(tree, None)
        self._change("release", tree)

    @property
    def maps_whole_trees(self) -> bool:  # type: ignore[override]  # that of the other one
        """Never: whose files they are follows from the user namespace."""
        return False

    def own_map(self) -> str | None:
        return self._deputy.id_map

    def lend(self, tree: str, ids: IdMaps | None = None, *, only: bool = False) -> Fd:
        found: Fd = self._change("lend", tree, ids, only=only)
        return found

    def take_back(self, tree: str) -> None:
        self._change("take_back", tree)

    def changed(self, tree: str) -> Generator[Piece]:
        with self.receiving(serving.changed, tree) as incoming:
            yield from tar.read(incoming, limits=NO_LIMITS)

    def commit(self, tree: str, layer: str) -> None:
        # If the deputy is killed meanwhile, this is a mount of what may be a layer by then.
        self._mounts.pop(tree, None)
        self._change("commit", tree, layer)

    def snapshot(self, tree: str, snapshot: str) -> None:
        self._change("snapshot", tree, snapshot)

    def reset(self, tree: str, snapshot: str | None = None) -> None:
        self._mounts.pop(tree, None)
        self._change("reset", tree, snapshot)

    def fork(self, tree: str, new: str) -> None:
        self._change("fork", tree, new)

    def snapshots(self, tree: str) -> set[str]:
        found: set[str] = self._do("snapshots", tree)
        return found

    def trees(self) -> set[str]:
        found: set[str] = self._do("trees")
        return found

    def remove_tree(self, tree: str) -> None:
        self._mounts.pop(tree, None)
        self._change("remove_tree", tree)

    def usage(self, tree: str) -> TreeUsage:
        found: TreeUsage = self._do("usage", tree)
        return found

    def sweep(self) -> None:
        self._do("sweep")

    def settle(self) -> None:
        if self._is_open:
            self._do("settle")

    def close(self) -> None:
        if self._is_open and not self.home.closed:
            with suppress(GoneError):
                self._deputy.call_to_end(serving.put_down, self._key)
        self._mounts.clear()
        super().close()


class _Incoming:
    """What a function in the deputy writes to a pipe.  At its end the function's error is raised, if it has one."""

    def __init__(self, pipe: Fd, call: Call[Any]) -> None:
        self._pipe = pipe
        self._call = call
        self._ended = False
        self.result: Any = None

    def read(self, size: int, /) -> bytes:
        data = b"" if self._ended else os.read(self._pipe.fileno(), size)
        if not data and not self._ended:
            self._ended = True
            self.result = self._call.result()
        return data


class DeputedContents(Contents):
    """The files of a driver that works in the deputy."""

    driver: DeputedDriver

    def unpack(
        self, draft: Draft, below: Sequence[str], archive: Readable, recipe: BinaryIO, *, limits: Limits, unended: bool
    ) -> frozenset[int]:
        with twin(recipe.fileno()) as file:
            arguments = {"limits": limits, "unended": unended}
            with self.driver.sending(serving.unpack, draft, tuple(below), recipe=file, **arguments) as (sink, call):
                with sink:
                    _pump(archive, sink)
                found: frozenset[int] = call.result()
                return found

    @property
    def root_ids(self) -> tuple[int, int]:
        return 0, 0

    def within(self, root: HasFileno, function: Callable[Concatenate[int, P], R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        with twin(root.fileno()) as top:
            return self.driver.ask(serving.within, top, function, args, kwargs)

    def fill(self, draft: Draft, directory: Fd, recipe: BinaryIO, *, limits: Limits) -> Written:
        with twin(recipe.fileno()) as file:
            return self.driver.ask(serving.fill, draft, directory, file, limits=limits)

    def archive(
        self, tree: str, sink: Writable | None = None, *, recipe: BinaryIO | None = None, mtime_limit: int | None = None
    ) -> Written:
        with Rollback() as undo:
            file = None if recipe is None else undo.adopt(twin(recipe.fileno()))
            if sink is None:
                return self.driver.ask(serving.archive, tree, None, file, mtime_limit)
            with self.driver.receiving(serving.archive, tree, recipe=file, mtime_limit=mtime_limit) as incoming:
                while data := incoming.read(CHUNK):
                    sink.write(data)
                found: Written = incoming.result
                return found

    def limit_times(self, tree: str, root: HasFileno, limit: int) -> None:
        with twin(root.fileno()) as top:
            self.driver.ask(serving.limit_times, tree, top, limit)

    def changes(self, tree: str, below: Sequence[str]) -> list[Change]:
        return self.driver.ask(serving.changes, tree, tuple(below))

    def replay(self, layer: str, recipe: BinaryIO) -> Generator[bytes]:
        with twin(recipe.fileno()) as file, self.driver.receiving(serving.replay, layer, file) as incoming:
            while data := incoming.read(CHUNK):
                yield data


def _pump(source: Readable, sink: Fd) -> None:
    """Write all of a stream to a pipe, or until nobody reads it any more: he says why."""
    pipe = Descriptor(sink)
    while data := source.read(CHUNK):
        try:
            pipe.write(data)
        except BrokenPipeError:
            return


def _pipe() -> tuple[Fd, Fd]:
    """Return a pipe, of the size that everybody may have."""
    there, here = Fd.take_all(os.pipe2, os.O_CLOEXEC)
    with suppress(OSError):  # the user has so many that they are small
        fcntl.fcntl(here.fileno(), fcntl.F_SETPIPE_SZ, CHUNK)
    return there, here
