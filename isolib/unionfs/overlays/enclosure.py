"""A mount made in a mount namespace of its own, by a thread of its own, for kernels that take no layer from anywhere else."""

from __future__ import annotations

import os
from _queue import SimpleQueue  # not queue.SimpleQueue, which gevent replaces
from errno import E2BIG, EBADF, EINVAL, EOPNOTSUPP
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from isolib._kernel import calls
from isolib._kernel.handle import Fd
from isolib._kernel.mountapi import attach
from isolib._kernel.threads import OwnThread
from isolib.errors import SyscallError, from_errno

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from isolib.unionfs.overlays.stacking import Options

__all__ = ["UNKNOWN", "Enclosure", "enclosed"]

T = TypeVar("T")

#: How layers are named, the newest way first.
_WAYS: Final = (calls.STACK_BY_FD, calls.STACK_BY_PATH, calls.STACK_TOGETHER)
#: What a kernel says of a way that is newer than it is.  The third: all names together are too long for it.  The last: it
#: takes descriptors, but not of a place only (Linux 6.5 to 6.12).
UNKNOWN: Final = frozenset({EINVAL, EOPNOTSUPP, E2BIG, EBADF})
#: The way that has worked, unknown at first.
_way: Final[dict[str, int]] = {}
_PAGE: Final = 4095
"""Bytes that mount(2) takes; what is longer it cuts off without a word."""

_MS: Final = {
    calls.MOUNT_ATTR_RDONLY: 1,
    calls.MOUNT_ATTR_NOSUID: 2,
    calls.MOUNT_ATTR_NODEV: 4,
    calls.MOUNT_ATTR_NOEXEC: 8,
}
_CLONE: Final = calls.OPEN_TREE_CLONE


class Enclosure:
    """A thread's own mount namespace, in which everything lies that a mount is made of."""

    def __init__(self) -> None:
        calls.enclose_thread()
        self._scratch = calls.new_stack("tmpfs", (("size", "64k"), ("mode", "700")))
        # On top of "/", where no path leads.
        with _opened("/") as root:
            attach(self._scratch.fileno(), root.fileno(), "/")
        self._names = 0

    def _new_place(self) -> Fd:
        self._names += 1
        os.mkdir(str(self._names), 0o700, dir_fd=self._scratch.fileno())
        return _opened(str(self._names), self._scratch.fileno())

    def admit(self, mount: Fd) -> Fd:
        """Return what layers can be taken from, for a mount that is attached nowhere: here it is attached."""
        with self._new_place() as place:
            attach(mount.fileno(), place.fileno(), "a layer")
        # The path leads through the mount; the descriptor that was there before does not.
        return _opened(str(self._names), self._scratch.fileno())

    def layers(self, paths: Sequence[str], mapped: int, userns: int | None) -> calls.Layers:
        """Open directories, the first ones with their ids mapped."""
        if userns is None:
            return calls.Layers(paths)
        with calls.Layers(paths[:mapped]) as found:
            found.map_ids(mapped, userns)
            there = [self.admit(found.take(number)) for number in range(mapped)]
        return calls.Layers([*(f"/proc/self/fd/{one.fileno()}" for one in there), *paths[mapped:]])

    def mount(self, options: Options, lowers: calls.Layers, upper: int, work: int, attributes: int) -> Fd:
        """Make an overlay, in the first way that this kernel takes."""
        known = _way.get("way")
        farthest: calls.StackRefused | None = None
        for way in _WAYS if known is None else (known,):
            try:
                # Relative to the thread's directory: names are short then.
                made = calls.new_stack(
                    "overlay", options, lowers=lowers, upper=upper, work=work, attributes=attributes, way=way, prefix=""
                )
            except calls.StackRefused as refused:
                if refused.error.errno not in UNKNOWN:
                    raise
                if farthest is None or refused.stage > farthest.stage:
                    farthest = refused
            else:
                _way["way"] = way
                return made
        # Without a memory of it: it is for those that are too long for the others.
        try:
            return self._by_mount(options, lowers, upper, work, attributes)
        except calls.StackRefused as refused:
            raise (farthest or refused) from None

    def _by_mount(self, options: Options, lowers: calls.Layers, upper: int, work: int, attributes: int) -> Fd:
        words = [f"{key}={value}" if value else key for key, value in options]
        words.append("lowerdir=" + ":".join(str(lowers.fd(number)) for number in range(len(lowers))))
        if upper >= 0:
            words += [f"upperdir={upper}", f"workdir={work}"]
        data = ",".join(words)
        flags = sum(flag for attribute, flag in _MS.items() if attributes & attribute)
        with self._new_place() as place:
            try:
                if len(data) > _PAGE:
                    raise from_errno("mount", "overlay", E2BIG, "the names of all layers together are longer than a page")
                calls.mount("overlay", str(place.fileno()), "overlay", flags, data)
            except SyscallError as error:
                raise calls.StackRefused(error, calls.STACK_CREATE) from None
        return calls.take_tree(self._scratch.fileno(), str(self._names), _CLONE)


def _opened(path: str, dir_fd: int | None = None) -> Fd:
    made = Fd.take(partial(os.open, dir_fd=dir_fd), path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    assert made is not None  # noqa: S101 - os.open raises
    return made


def enclosed(build: Callable[[Enclosure], T]) -> T:
    """Return what a function makes in an enclosure, which ends with it."""
    answer: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()

    def body() -> None:
        try:
            answer.put((build(Enclosure()), None))
        except BaseException as error:  # noqa: BLE001 - raised by who waits
            answer.put((None, error))

    thread = OwnThread("isolib-overlay", "a thread with a mount namespace of its own")
    thread.start(body)
    try:
        made, error = answer.get()
    finally:
        thread.join()
    if error is not None:
        raise error
    return made  # type: ignore[return-value]  # there is one where there is no error
