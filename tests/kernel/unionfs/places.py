"""Where drivers are tried: each on every file system that it is for, as root and as an ordinary user."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest

from isolib._kernel.handle import Fd
from isolib.errors import Unsupported
from isolib.unionfs.drivers.btrfs import BtrfsDriver
from isolib.unionfs.drivers.fuse_overlayfs import FuseOverlayDriver
from isolib.unionfs.drivers.overlay import OverlayDriver
from isolib.unionfs.drivers.vfs import VfsDriver
from tests.storage import disk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from isolib.unionfs.drivers.base import Driver

DRIVERS: Final[dict[str, type[Driver]]] = {one.name: one for one in (VfsDriver, BtrfsDriver, OverlayDriver, FuseOverlayDriver)}

#: A driver and a file system.  "here" is what the tests' temporary directories lie on.
PLACES: Final = (
    ("vfs", "here"),
    ("vfs", "tmpfs"),
    ("vfs", "xfs"),
    ("vfs", "btrfs"),
    ("btrfs", "btrfs"),
    ("overlay", "tmpfs"),
    ("overlay", "ext4"),
    ("fuse-overlayfs", "here"),
)


@dataclass(frozen=True)
class Place:
    """A directory for a driver."""

    kind: type[Driver]
    path: str

    def driver(self) -> Driver:
        """Return a driver that knows only what lies in the directory, as another process would have it."""
        return self.kind(Fd(os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)), self.path)


@contextlib.contextmanager
def place(driver: str, file_system: str, tmp_path: Path, *, size: int | None = None) -> Iterator[Place]:
    """Make a directory for a driver; skip the test where the host has not what that takes."""
    with contextlib.ExitStack() as stack:
        top = str(tmp_path)
        if file_system != "here":
            top = stack.enter_context(disk(file_system, size=size) if size else disk(file_system)).path
        if driver == "fuse-overlayfs" and shutil.which(driver) is None:
            pytest.skip("fuse-overlayfs is not installed")
        if driver == "fuse-overlayfs" and (os.geteuid() != 0 or not os.path.exists("/dev/fuse")):
            pytest.skip("needs /dev/fuse, and to be started by root")
        path = os.path.join(top, "home")
        os.mkdir(path, 0o700)
        yield Place(DRIVERS[driver], path)


def layer(driver: Driver, name: str, below: list[str], fill: Callable[[str], None]) -> None:
    """Make a layer of what a function puts into a directory."""
    draft = driver.new_draft(f"draft-of-{name}", below)
    fill(f"/proc/self/fd/{draft.root.fileno()}")
    driver.seal(draft, name)


def write(path: str, text: str = "") -> None:
    """Put a text into a file, and make the directories above it."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


@contextlib.contextmanager
def mounted(driver: Driver, tree: str) -> Iterator[str]:
    """Give the path of a tree's root."""
    with driver.mount(tree) as root:
        yield f"/proc/self/fd/{root.fileno()}"


def leftovers(path: str) -> list[str]:
    """Return what is in a driver's directory that is no layer, no tree, no draft."""
    aside = os.path.join(path, "aside")
    return os.listdir(aside) if os.path.isdir(aside) else []


def is_supported(kind: type[Driver], path: str) -> bool:
    """Return whether a driver says of itself that it works in a directory."""
    with Fd(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as home:
        try:
            kind.examine(home.fileno(), path)
        except Unsupported:
            return False
        return True
