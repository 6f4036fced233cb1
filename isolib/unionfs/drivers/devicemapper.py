"""The driver of thin provisioning: every layer and every tree is a device with a file system, and a copy is a snapshot of it.

A copy is made at once, whatever is in it, and shares all blocks that neither side writes to.  A record names the number of a
device in the pool (`isolib.unionfs.drivers.thin`), which lies in two files of the driver's directory, or on the devices that
``data`` and ``metadata`` there are symbolic links to.
"""

from __future__ import annotations

import contextlib
import os
import stat
from errno import EBUSY
from typing import ClassVar, Final

from isolib._kernel import calls
from isolib._kernel.guest import SAFE
from isolib._kernel.handle import Fd, home
from isolib._kernel.mountapi import new_mount
from isolib._kernel.programs import find_program
from isolib.errors import SyscallError, Unsupported
from isolib.unionfs.disk.files import twin
from isolib.unionfs.drivers.base import TreeUsage
from isolib.unionfs.drivers.directories import Home
from isolib.unionfs.drivers.recorded import RecordedDriver
from isolib.unionfs.drivers.running import need_program, run_program
from isolib.unionfs.drivers.thin import ThinPool

__all__ = ["DeviceMapperDriver", "mkfs_argv", "mount_options"]

_FEATURE: Final = "the devicemapper driver"
#: For a trial.
_SMALL: Final = 64 << 20
#: What can make each file system, and the Debian package that it is of; the first that is there is taken.
_MAKERS: Final = {"ext4": ("mkfs.ext4", "e2fsprogs"), "xfs": ("mkfs.xfs", "xfsprogs")}


def mkfs_argv(file_system: str, program: str, device: str) -> list[str]:
    """Return the command that makes a file system on a device that reads as zeros.

    Nothing is written that says nothing but zero: no tables of inodes, no journal, and nothing is discarded.
    """
    if file_system == "xfs":
        return [program, "-q", "-f", "-K", device]
    return [program, "-q", "-F", "-m", "0", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1", device]


def mount_options(file_system: str, device: str) -> dict[str, str | int | None]:
    """Return how a file system is mounted: what is deleted goes back to the pool."""
    # The copies of an XFS have one uuid.  Nothing fills ext4's tables behind, which would take room and say nothing.
    return {"source": device, "discard": None, "nouuid" if file_system == "xfs" else "noinit_itable": None}


class DeviceMapperDriver(RecordedDriver):
    """Devices of a thin pool.

    Notes
    -----
    Takes CAP_SYS_ADMIN and CAP_MKNOD on the host, for the kernel mounts these file systems for nobody else.  The program
    mkfs.ext4 (or mkfs.xfs) is run, once for each store: the kernel has no interface that makes a file system.  Mounts, devices,
    pool and loop devices go with the last descriptor, also when this process is killed.

    A new pool may grow to what was free in its file system when it was made, and that is also the size of each tree; a pool
    that is full refuses with ENOSPC, and so do files in it.  There is no quota for one tree.
    """

    name: ClassVar[str] = "devicemapper"

    def __init__(self, home: Fd, path: str) -> None:
        super().__init__(home, path)
        self._opened: dict[object, ThinPool] = {}

    @classmethod
    def examine(cls, home: int, path: str) -> None:
        """Find out whether a thin pool can be made there, and a device of it.

        Raises
        ------
        Unsupported
            It cannot.
        """
        _need_maker(_file_system())
        place = Home(twin(home), path)
        try:
            with place.making() as made, place.open(made) as inside:
                pool = ThinPool(Home(inside, place.show(made)), "", _SMALL)
                try:
                    pool.create(pool.new_number())
                finally:
                    pool.close()
            place.settle()
        except SyscallError as error:
            raise Unsupported(
                _FEATURE,
                f"{path}: {error.op}: {error.strerror}",
                "root of the host, a kernel with dm-thin-pool and loop devices (modprobe dm-thin-pool loop)",
            ) from error

    @property
    def _pool(self) -> ThinPool:
        key = home()
        if key not in self._opened:
            self._opened = {key: ThinPool(self._place, _file_system())}
        return self._opened[key]

    def close(self) -> None:
        """Let go of the directory and the pool, which goes with the last mount of what is in it."""
        for pool in self._opened.values():
            pool.close()
        self._opened = {}
        super().close()

    # Roots

    def _new_thing(self) -> str:
        return str(self._pool.new_number())

    def _make_empty(self, thing: str) -> None:
        number = int(thing)
        self._pool.create(number)
        file_system = self._pool.facts.file_system
        program = _need_maker(file_system)
        with self._pool.open(number) as device:
            # A child has its own descriptors, so its path of the device is not ours.
            run_program(mkfs_argv(file_system, program, f"/proc/self/fd/{device.fileno()}"), pass_fds=[device.fileno()])
        with self._open_thing(thing) as root:
            with contextlib.suppress(FileNotFoundError):
                os.rmdir("lost+found", dir_fd=root.fileno())
            os.fchmod(root.fileno(), 0o755)

    def _make_copy(self, source: str, thing: str, quota: int | None) -> None:  # noqa: ARG002 - there is none
        self._pool.snapshot(int(source), int(thing))

    def _remove_thing(self, thing: str) -> bool:
        return self._pool.delete(int(thing))

    def _mount_thing(self, thing: str, *, readonly: bool) -> Fd:
        pool = self._pool
        with pool.open(int(thing)) as device:
            path = pool.nodes.path(os.fstat(device.fileno()).st_rdev, stat.S_IFBLK)
            try:
                return _mounted(pool.facts.file_system, path, readonly=readonly)
            except SyscallError as error:
                raise pool.explain(error) from error

    # What a tree has

    def _check_quota(self, quota: int) -> None:
        super()._check_quota(quota)
        raise Unsupported("a quota for a tree", _FEATURE, "driver='btrfs'")

    def usage(self, tree: str) -> TreeUsage:
        """Return how much more is mapped than in the layer below; a block in the place of a shared one does not count."""
        now = f"{self._existing(tree)}/now"
        with self._open_root(f"{now}/root") as root:
            calls.syncfs(root.fileno(), self._place.show(now))
        below = self._below(now)
        base = self._named(f"layers/{below[-1]}/root" if below else "empty/root")
        return TreeUsage(max(0, self._pool.mapped(int(self._named(f"{now}/root"))) - self._pool.mapped(int(base))))

    def sweep(self) -> None:
        """Remove what interrupted calls have left, also of devices."""
        if self._place.has("pool"):
            self._pool.sweep()
        super().sweep()


def _mounted(file_system: str, path: str, *, readonly: bool) -> Fd:
    options = mount_options(file_system, path)
    if not readonly:
        return Fd(new_mount(file_system, options, attributes=SAFE))
    try:
        # Nothing at all is written then, for which a full pool would have no room.
        return Fd(new_mount(file_system, {**options, "ro": None}, attributes=SAFE | calls.MOUNT_ATTR_RDONLY))
    except SyscallError as error:
        if error.errno != EBUSY:
            raise
    # Somebody has it still mounted as it was when it could be written to: then it is one file system.
    return Fd(new_mount(file_system, options, attributes=SAFE | calls.MOUNT_ATTR_RDONLY))


def _file_system() -> str:
    """Return which file system a new pool is to hold."""
    found = [name for name, (program, _) in _MAKERS.items() if find_program(program)]
    return found[0] if found else _need_maker("ext4")


def _need_maker(file_system: str) -> str:
    program, package = _MAKERS[file_system]
    return need_program(program, _FEATURE, package)
