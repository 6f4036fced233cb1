"""A thin pool of device-mapper, and its devices, each owned by the descriptors that have it open.

The pool lies on two files of the driver's directory, ``data`` and ``metadata``, through loop devices; either may be a symbolic
link to a block device instead, put there before the first use.  Devices have numbers, of which none is used twice: the pool's
*transaction id* counts them, which the kernel changes only for who knows its value.

Nothing of it outlives its users.  Every device of device-mapper is told right after it is made to go when it is closed for the
last time, the loop devices likewise; so a process that is killed lets go of its mounts, these of their devices, the last of
these of the pool, and that of the files.  That takes the kernel a moment, in which nobody may have the files a second time:
they are locked, flock(2), and the loop devices hold the very open files that have the lock.  What was made and not yet told to
go when a process ended, is found by its name, and used, or removed by `ThinPool.sweep`.

Source: the kernel's Documentation/admin-guide/device-mapper/thin-provisioning.rst.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from dataclasses import asdict, dataclass
from errno import EBUSY, ENODATA, ENODEV, ENOENT, ENOSPC, ENXIO
from secrets import token_hex
from typing import TYPE_CHECKING, Final

from isolib._kernel.devicemapper import SECTOR, DeviceMapper, Nodes, Target
from isolib._kernel.handle import Fd, Rollback, home
from isolib._kernel.loop import attach_loop
from isolib._kernel.uevents import Removals
from isolib._kernel.waiting import Deadline
from isolib.errors import IsolibError, SyscallError, from_errno
from isolib.unionfs.disk.files import open_at

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolib._kernel.devicemapper import Device
    from isolib.unionfs.drivers.directories import Home

__all__ = ["PoolFacts", "PoolStatus", "ThinPool", "parse_pool", "parse_thin", "pool_table", "thin_table"]

_BLOCK: Final = 128  # sectors: 64 KiB, the least that a pool takes, and the least that a write to a snapshot copies
_UNIT: Final = _BLOCK * SECTOR
_METADATA_LEAST: Final = 8 << 20
_METADATA_MOST: Final = 15 << 30
#: What a mapping takes, 48 bytes a block, and that of what several devices share in part.
_METADATA_SHARE: Final = 256
_LOW_WATER: Final = 0  # nobody waits for the event
_LAST_NUMBER: Final = (1 << 24) - 1
_TRIES: Final = 16
_PATIENCE: Final = 5.0
_FULL: Final = "the thin pool is full: remove layers or trees, or give it a larger data device"


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """What stays of a pool for ever.

    Attributes
    ----------
    token
        What the names of its devices begin with, on a host that may have several.
    size
        Of each of its devices, in bytes.
    file_system
        That is on them.
    """

    token: str
    size: int
    file_system: str


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """What a pool says of itself; counted in blocks, of its data of 64 KiB."""

    transaction: int
    metadata_used: int
    metadata_size: int
    data_used: int
    data_size: int
    mode: str

    @property
    def is_full(self) -> bool:
        """Whether there is no room for a further block."""
        return self.mode == "out_of_data_space" or self.data_used >= self.data_size or self.metadata_used >= self.metadata_size


def pool_table(metadata: int, data: int, size: int) -> Target:
    """Return the table of a pool on two devices; ``size`` in bytes.

    A new block is zeroed first, so nobody reads what another one has left; who finds no more room is told at once.
    """
    text = f"{_number(metadata)} {_number(data)} {_BLOCK} {_LOW_WATER} 1 error_if_no_space"
    return Target(0, size // _UNIT * _BLOCK, "thin-pool", text)


def thin_table(pool: int, number: int, size: int) -> Target:
    """Return the table of a device of a pool; ``size`` in bytes."""
    return Target(0, size // SECTOR, "thin", f"{_number(pool)} {number}")


def parse_pool(text: str) -> PoolStatus:
    """Return what a status line of a pool says.

    Raises
    ------
    SyscallError
        ENXIO: the pool has failed.
    """
    fields = text.split()
    if len(fields) < 5:  # noqa: PLR2004 - "Fail", "Error"
        raise from_errno("ioctl DM_TABLE_STATUS", "thin pool", ENXIO, f"the pool says {text!r}: see the kernel's log")
    metadata_used, metadata_size = map(int, fields[1].split("/"))
    data_used, data_size = map(int, fields[2].split("/"))
    return PoolStatus(int(fields[0]), metadata_used, metadata_size, data_used, data_size, fields[4])


def parse_thin(text: str) -> int:
    """Return how many bytes are mapped, as a status line of a thin device says."""
    first = text.partition(" ")[0]
    if not first.isdecimal():
        raise from_errno("ioctl DM_TABLE_STATUS", "thin device", ENXIO, f"it says {text!r}: see the kernel's log")
    return int(first) * SECTOR


def _number(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"


class ThinPool:
    """A pool, which is there while this object or a mount of one of its devices is.

    Parameters
    ----------
    place
        The directory that it lies in.
    file_system
        What a new pool is to hold.
    size
        Of a new pool's data, in bytes; None: what is free in the file system of the directory.
    """

    def __init__(self, place: Home, file_system: str, size: int | None = None) -> None:
        self._place = place
        self._file_system = file_system
        self._size = size
        self.nodes = Nodes()
        self._dm = DeviceMapper(self.nodes)
        self._held: Fd | None = None
        self._facts: PoolFacts | None = None
        self._home = home()

    # Names

    @property
    def facts(self) -> PoolFacts:
        """What stays of the pool for ever; a new pool is made."""
        if self._facts is None:
            with self._locked():
                pass
        assert self._facts is not None  # noqa: S101 - `_locked` has set it
        return self._facts

    def _name(self, number: int | None = None) -> str:
        assert self._facts is not None  # noqa: S101
        return f"isolib-{self._facts.token}-{'pool' if number is None else number}"

    # The pool

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Keep everybody else from making and removing devices: other threads and other processes."""
        flags = os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            lock = os.open("lock", flags, 0o600, dir_fd=self._place.fd.fileno())
        except OSError as error:
            raise from_errno("openat", self._place.show("lock"), error.errno or 0) from None
        with Fd(lock):
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock, with the pool open."""
        with self._lock():
            if self._facts is None:
                self._facts = self._read() or self._found()
            if self._held is None or self._home != home():
                self._held, self._home = self._find() or self._build(), home()
            yield

    def _read(self) -> PoolFacts | None:
        text = self._place.read("pool")
        return PoolFacts(**json.loads(text)) if text else None

    def _found(self) -> PoolFacts:
        """Make the files of a new pool."""
        data = self._provide("data", self._size or self._free())
        self._provide("metadata", min(max(data // _METADATA_SHARE, _METADATA_LEAST), _METADATA_MOST))
        facts = PoolFacts(token_hex(8), data // _UNIT * _UNIT, self._file_system)
        self._place.write("pool", json.dumps(asdict(facts)))
        return facts

    def _free(self) -> int:
        found = os.statvfs(self._place.fd.fileno())
        return found.f_bavail * found.f_frsize

    def _provide(self, name: str, size: int) -> int:
        """Make a file that takes up nothing, if there is none; returns the size of what there is."""
        with self._open_image(name, os.O_CREAT) as image:
            found = os.lseek(image.fileno(), 0, os.SEEK_END)
            if not found:
                os.truncate(image.fileno(), size)
            return found or size

    def _open_image(self, name: str, flags: int = 0) -> Fd:
        try:
            return open_at(name, os.O_RDWR | flags, dir_fd=self._place.fd.fileno())
        except OSError as error:
            raise from_errno("openat", self._place.show(name), error.errno or 0) from None

    def _find(self) -> Fd | None:
        """Return the pool that somebody has made."""
        name = self._name()
        found = self._dm.status(name)
        if found is None:
            return None
        if not found.has_table:
            self._dm.remove(name)  # who made it was interrupted
            return None
        return self._hold(found)

    def _hold(self, device: Device) -> Fd | None:
        """Open a device, which then stays until it is closed; None where it has gone at this moment."""
        if device.is_suspended:
            self._dm.resume(device.name)
        try:
            held = self.nodes.open(device.number)
        except SyscallError as error:
            if error.errno not in {ENXIO, ENODEV, ENOENT}:
                raise
            return None
        self._dm.remove(device.name, when_closed=True)
        return held

    def _build(self) -> Fd:
        with Rollback() as undo:
            metadata, data = (undo.adopt(self._attach(name)) for name in ("metadata", "data"))
            devices = [os.fstat(device.fileno()).st_rdev for device in (metadata, data)]
            name = self._name()
            undo.push(self._dm.remove, name)
            number = self._dm.create(name).number
            size = os.lseek(data.fileno(), 0, os.SEEK_END)
            self._dm.load(name, [pool_table(devices[0], devices[1], size)])
            self._dm.resume(name)
            held = self.nodes.open(number)
            self._dm.remove(name, when_closed=True)
            undo.dismiss()
            return held

    def _attach(self, name: str) -> Fd:
        with self._open_image(name) as image:
            fcntl.flock(image.fileno(), fcntl.LOCK_EX)  # until a pool that has gone has let go of it
            return attach_loop(self.nodes, image, self._place.show(name))

    def status(self) -> PoolStatus:
        """Return what the pool says of itself."""
        with self._locked():
            return self._status()

    def _status(self) -> PoolStatus:
        (target,) = self._dm.table_status(self._name())
        return parse_pool(target.text)

    def _tell(self, message: str) -> None:
        """Send a message to the pool, one for which it needs room."""
        if self._status().is_full:
            raise from_errno("ioctl DM_TARGET_MSG", message, ENOSPC, _FULL)
        self._dm.message(self._name(), message)

    def explain(self, error: SyscallError) -> SyscallError:
        """Return what a refusal of a file system on a device comes from: that the pool is full, or as it is."""
        return from_errno(error.op, error.target, ENOSPC, _FULL) if self.status().is_full else error

    # Its devices

    def new_number(self) -> int:
        """Return a number that no device has, had or will have but for the caller's.

        Raises
        ------
        IsolibError
            The kernel knows 16,777,216 numbers, and all were used.
        """
        with self._locked():
            number = self._status().transaction
            if number > _LAST_NUMBER:
                raise IsolibError(f"the thin pool of {self._place.path} has had {number} devices: it can number no more")
            self._tell(f"set_transaction_id {number} {number + 1}")
            return number

    def create(self, number: int) -> None:
        """Make an empty device."""
        with self._locked():
            self._tell(f"create_thin {number}")

    def snapshot(self, origin: int, number: int) -> None:
        """Make a device that is as another one is at this moment, file system and all."""
        with self._locked(), Rollback() as undo:
            found = self._dm.status(self._name(origin))
            held = found and self._hold(found)
            if held:
                undo.adopt(held)
                # Or the copy is of what no moment had.  Resumed even where it was interrupted: else every writer hangs.
                undo.push(self._dm.resume, self._name(origin))
                self._dm.suspend(self._name(origin))
            self._tell(f"create_snap {number} {origin}")

    @contextlib.contextmanager
    def open(self, number: int) -> Iterator[Fd]:
        """Give a descriptor of a device's block device, which is there as long as it is open somewhere, or mounted."""
        with self._locked():
            held = self._activate(number)
        with held:
            yield held

    def _activate(self, number: int) -> Fd:
        name = self._name(number)
        for _ in range(_TRIES):  # one that is there may be gone when it is opened
            found = self._dm.status(name)
            with Rollback() as undo:
                if found is None:
                    undo.push(self._dm.remove, name)
                    found = self._dm.create(name)
                if not found.has_table:
                    self._dm.load(name, [thin_table(self._device_number(), number, self.facts.size)])
                    self._dm.resume(name)
                held = self._hold(found)
                if held:
                    undo.dismiss()
                    return held
        raise from_errno("openat", name, EBUSY)

    def _device_number(self) -> int:
        assert self._held is not None  # noqa: S101 - `_locked` has opened it
        return os.fstat(self._held.fileno()).st_rdev

    def mapped(self, number: int) -> int:
        """Return how many bytes of a device are mapped, those that it shares with others too."""
        with self.open(number):
            (target,) = self._dm.table_status(self._name(number))
            return parse_thin(target.text)

    def delete(self, number: int) -> bool:
        """Remove a device; none of this number is nothing.  Returns False where somebody has it open: then it stays."""
        with self._locked(), Removals() as removals:
            deadline = Deadline(_PATIENCE)
            while True:
                found = self._dm.status(self._name(number))
                if found and found.open_count:
                    return False
                if found:
                    self._dm.remove(found.name)
                try:
                    self._dm.message(self._name(), f"delete {number}")
                except SyscallError as error:
                    if error.errno == ENODATA:
                        return True
                    # Nobody has it, and it is not yet gone: the kernel removes it behind.
                    if error.errno != EBUSY or not removals.wait(deadline):
                        raise
                else:
                    return True

    def sweep(self) -> None:
        """Remove the devices of processes that were ended between making one and telling it to go."""
        with self._lock():
            self._facts = self._facts or self._read()
            if self._facts is None:
                return
            prefix = f"isolib-{self._facts.token}-"
            pool = self._name()
            for name in sorted((name for name in self._dm.names() if name.startswith(prefix)), key=lambda one: one == pool):
                found = self._dm.status(name)
                if found and found.has_table and found.is_suspended:
                    self._dm.resume(name)
                if found and not found.open_count:
                    self._dm.remove(name)

    def close(self) -> None:
        """Let go of the pool; it is gone then, unless others have it or something of it is mounted.  Again is nothing."""
        held, self._held = self._held, None
        if held is not None and not self._place.fd.closed:
            with self._lock():
                held.close()
                with contextlib.suppress(SyscallError):  # the kernel was faster, or others have it
                    self._dm.remove(self._name())
        self._dm.close()
        self.nodes.fd.close()
