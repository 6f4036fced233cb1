"""What can be seen of a stack of directories before anything is done with it."""

from __future__ import annotations

import fcntl
import os
from errno import EBUSY, EROFS
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib.errors import PlanError, Unsupported, from_errno
from isolib.unionfs.disk.scan import scan
from isolib.unionfs.drivers.base import Form
from isolib.unionfs.entry import Kind
from isolib.unionfs.overlays.refused import is_overlay
from isolib.unionfs.overlays.stacking import open_directory

if TYPE_CHECKING:
    from collections.abc import Iterable

    from isolib._kernel.handle import Fd
    from isolib.unionfs.overlays.stacking import Stack

__all__ = ["check_stack", "check_unmarked", "lock_upper"]

#: What overlayfs itself leaves in a work directory.
_OF_WORK: Final = frozenset({"work", "index"})


def check_stack(wanted: Stack) -> calls.Layers:
    """Refuse what cannot work, as far as that can be seen; returns the lower directories, open.

    Raises
    ------
    PlanError
        One directory is two layers; upper or work do not fit together, or lie where they cannot.
    SyscallError
        Something cannot be opened.
    """
    lowers = calls.Layers(wanted.lowers)
    seen = dict(zip(lowers.identities, wanted.lowers, strict=True))
    if len(seen) != len(lowers):
        seen.clear()
        for path, identity in zip(wanted.lowers, lowers.identities, strict=True):
            if identity in seen:
                raise PlanError(f"one directory, two layers: {seen[identity]}, {path}")
            seen[identity] = path
    if wanted.upper is not None and wanted.work is not None:
        _check_upper(wanted.upper, wanted.work, seen)
    return lowers


def _check_upper(upper: str, work: str, lowers: dict[tuple[int, int], str]) -> None:
    with calls.Layers((upper, work)) as both:
        identities = tuple(both.identities)
        for path, identity in zip((upper, work), identities, strict=True):
            if identity in lowers:
                raise PlanError(f"one directory, two layers: {lowers[identity]}, {path}")
        if identities[0] == identities[1]:
            raise PlanError(f"upper and work are one directory: {upper}")
        if identities[0][0] != identities[1][0]:
            raise PlanError(f"work must lie on the same file system as upper: {work}, {upper}")
        if is_overlay(both.fd(0)):
            raise PlanError(f"upper lies in an overlay, which has no room for the marks of another one: {upper}")
        if os.fstatvfs(both.fd(0)).f_flag & os.ST_RDONLY:
            raise from_errno("fsconfig", f"upperdir {upper}", EROFS, "it lies on a read-only mount: readonly=True needs none")
    _check_places(upper, work, lowers.values())
    _check_work(work)


def _check_places(upper: str, work: str, lowers: Iterable[str]) -> None:
    """Refuse directories that lie in one another.  A lower one around the others is possible: it shows what is written."""
    real = {path: f"{os.path.realpath(path)}/" for path in (upper, work)}
    for one, other in ((upper, work), (work, upper)):
        if real[one].startswith(real[other]):
            raise PlanError(f"neither of upper and work may lie in the other: {one}, {other}")
    for lower in lowers:
        there = f"{os.path.realpath(lower)}/"
        for path in (upper, work):
            if there.startswith(real[path]):
                raise PlanError(f"a layer must not lie in an upper or work directory: {lower}, {path}")


def _check_work(work: str) -> None:
    names = set(os.listdir(work))
    if foreign := names - _OF_WORK:
        raise PlanError(f"work must be empty, for the kernel removes what is in it: {work} has {min(foreign)!r}")
    if os.path.isdir(f"{work}/work/incompat/volatile"):
        raise PlanError(
            f"{work} was used by a volatile mount that has not ended well: what lies in its upper directory may be incomplete; "
            "remove both, or the mark, work/incompat/volatile"
        )


def check_unmarked(path: str) -> None:
    """Refuse a tree in which something would be a mark to overlayfs.

    Raises
    ------
    Unsupported
        There is such a thing, whose path is named.
    """
    with open_directory(path) as root:
        for form in (Form.OVERLAY, Form.USER_OVERLAY):
            for entry, _ in scan(root.fileno(), form):
                if entry.kind is Kind.WHITEOUT or entry.opaque:
                    what = "a whiteout" if entry.kind is Kind.WHITEOUT else "an opaque directory"
                    raise Unsupported(
                        f"{path} as a read-only tree without whiteouts",
                        f"overlayfs, to which {os.path.join(path, os.fsdecode(entry.path))} is {what}, whatever is asked",
                        "Branch(path, 'ro+wh') where that is meant; else give it another form: another device number, no mark",
                    )


def lock_upper(upper: str) -> Fd:
    """Keep another one from having the same upper directory: overlayfs lets that happen, whatever comes of it."""
    lock = open_directory(upper, flags=os.O_RDONLY)
    try:
        fcntl.flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        hint = "another overlay has this upper directory: close that one, or use another directory"
        raise from_errno("flock", upper, EBUSY, hint) from None
    return lock
