"""Where drivers are tried: each on every file system that it is for, as root and as an ordinary user."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from isolib._kernel.handle import Fd
from isolib.errors import Unsupported
from isolib.unionfs.drivers.aufs import AufsDriver
from isolib.unionfs.drivers.btrfs import BtrfsDriver
from isolib.unionfs.drivers.devicemapper import DeviceMapperDriver
from isolib.unionfs.drivers.fuse_overlayfs import FuseOverlayDriver
from isolib.unionfs.drivers.overlay import OverlayDriver
from isolib.unionfs.drivers.vfs import VfsDriver
from isolib.unionfs.drivers.zfs import ZfsDriver
from tests.storage import disk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from isolib.unionfs.drivers.base import Driver

DRIVERS: Final[dict[str, type[Driver]]] = {
    one.name: one
    for one in (VfsDriver, BtrfsDriver, OverlayDriver, FuseOverlayDriver, DeviceMapperDriver, ZfsDriver, AufsDriver)
}

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
    ("devicemapper", "here"),
    ("zfs", "here"),
    ("aufs", "here"),
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
        if driver == "devicemapper":
            need_thin_pools()
        if driver == "aufs":
            need_file_system("aufs")
        path = os.path.join(top, "home")
        os.mkdir(path, 0o700)
        if driver == "zfs":
            Path(path, "dataset").write_text(stack.enter_context(zfs_pool(tmp_path)), encoding="ascii")
        yield Place(DRIVERS[driver], path)


def need_thin_pools() -> None:
    """Skip the test where the kernel has no thin pools, or this user may not make one."""
    if os.geteuid() != 0:
        pytest.skip("needs to be started by root")
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 is not installed")
    subprocess.run(["modprobe", "--quiet", "loop"], check=False)  # it may be built in
    if subprocess.run(["modprobe", "--quiet", "dm-thin-pool"], check=False).returncode:
        pytest.skip("the kernel has no dm-thin-pool")


def need_file_system(name: str) -> None:
    """Skip the test where the kernel does not list a file system, or this user may not mount it."""
    if os.geteuid() != 0:
        pytest.skip("needs to be started by root")
    subprocess.run(["modprobe", "--quiet", name], check=False)
    if name not in Path("/proc/filesystems").read_text(encoding="ascii").split():
        pytest.skip(f"the kernel has no {name}")


@contextlib.contextmanager
def zfs_pool(tmp_path: Path) -> Iterator[str]:
    """Make a pool of ZFS on a file, and give its name; skip the test where there is no ZFS."""
    need_file_system("zfs")
    if shutil.which("zpool") is None:
        pytest.skip("zpool is not installed")
    image, name = tmp_path / "pool", f"isolib-{uuid.uuid4().hex}"
    with image.open("wb") as file:
        file.truncate(256 << 20)
    subprocess.run(["zpool", "create", "-O", "mountpoint=none", "-O", "canmount=off", name, image], check=True)
    try:
        yield name
    finally:
        subprocess.run(["zpool", "destroy", "-f", name], check=True)


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
