"""The storage drivers of a store, behind one contract.

Each is a module with one class, a `isolib.unionfs.drivers.base.Driver`, and is imported when it is asked for.
"""

from __future__ import annotations

import os
from secrets import token_hex
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib._kernel.hints import typed
from isolib.errors import PlanError, Unsupported
from isolib.types import Feature
from isolib.unionfs.disk.files import open_at

if TYPE_CHECKING:
    from collections.abc import Mapping

    from isolib.unionfs.drivers.base import Driver

__all__ = ["NAMES", "best", "driver_class", "examine", "features"]

#: In the order in which they are tried: the cheapest first, and last the one that always works.
_TRIED: Final = ("overlay", "btrfs", "zfs", "fuse-overlayfs", "vfs")
#: All; the last ones are used when they are named, for they take the disk for themselves, or few kernels have them.
NAMES: Final = (*_TRIED, "devicemapper", "aufs")


def driver_class(name: str) -> type[Driver]:
    """Return a driver.

    Raises
    ------
    PlanError
        There is none of this name.
    """
    match name:
        case "overlay":
            from isolib.unionfs.drivers.overlay import OverlayDriver as Found  # noqa: PLC0415
        case "btrfs":
            from isolib.unionfs.drivers.btrfs import BtrfsDriver as Found  # type: ignore[assignment]  # noqa: PLC0415
        case "fuse-overlayfs":
            from isolib.unionfs.drivers.fuse_overlayfs import FuseOverlayDriver as Found  # noqa: PLC0415
        case "zfs":
            from isolib.unionfs.drivers.zfs import ZfsDriver as Found  # type: ignore[assignment]  # noqa: PLC0415
        case "devicemapper":
            from isolib.unionfs.drivers.devicemapper import DeviceMapperDriver as Found  # type: ignore[assignment]  # noqa: PLC0415
        case "aufs":
            from isolib.unionfs.drivers.aufs import AufsDriver as Found  # noqa: PLC0415
        case "vfs":
            from isolib.unionfs.drivers.vfs import VfsDriver as Found  # type: ignore[assignment]  # noqa: PLC0415
        case _:
            raise PlanError(f"driver: {name!r} is none; there are {', '.join(NAMES)}")
    return Found


def examine(found: type[Driver], home: int, path: str) -> None:
    """Find out by trying whether a driver works in a directory, in one of its own that is gone then.

    Raises
    ------
    Unsupported
        It does not.
    """
    from isolib.unionfs.drivers import deputed  # noqa: PLC0415 - most processes need none

    if deputed.is_needed():
        deputed.examine(found, home, path)
        return
    name = f".isolib-{token_hex(8)}"
    with typed(path):
        try:
            os.mkdir(name, 0o700, dir_fd=home)
        except OSError as error:
            what = f"{path}: {error.strerror}"
            raise Unsupported(f"the {found.name} driver", what, "a directory in which this process can make others") from error
        try:
            with open_at(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=home) as own:
                found.examine(own.fileno(), f"{path}/{name}")
        finally:
            calls.remove_tree(home, name, f"{path}/{name}")


def best(home: int, path: str) -> type[Driver]:
    """Return the first driver that works in a directory.

    Raises
    ------
    Unsupported
        None does: what refuses the last one, and in notes what refuses the others.
    """
    refusals = []
    for name in _TRIED:
        found = driver_class(name)
        try:
            examine(found, home, path)
        except Unsupported as refusal:
            refusals.append(refusal)
        else:
            return found
    error = refusals.pop()
    for other in refusals:
        error.add_note(str(other))
    raise error


def features(path: str) -> Mapping[str, Feature]:
    """Return which drivers work in a directory, by their names: first those that are tried, in that order."""
    with typed(path):
        home = open_at(path, os.O_RDONLY | os.O_DIRECTORY)
    with home:
        return {name: _feature(name, home.fileno(), path) for name in NAMES}


def _feature(name: str, home: int, path: str) -> Feature:
    try:
        examine(driver_class(name), home, path)
    except Unsupported as error:
        return Feature(name, available=False, reason=str(error), refused_by=error.refused_by, remedy=error.remedy)
    return Feature(name, available=True, reason=f"tried in {path}")
