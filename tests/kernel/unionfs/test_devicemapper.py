"""What the driver of device-mapper does beside the contract: lifetimes, a full pool, other processes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isolib import SyscallError
from isolib._kernel.devicemapper import DeviceMapper, Nodes
from isolib._kernel.handle import Fd
from isolib.unionfs.drivers.devicemapper import DeviceMapperDriver
from tests.kernel.unionfs.places import Place, layer, leftovers, mounted, need_thin_pools, write
from tests.storage import loop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DATA = 64 << 20
"""What the pool holds here."""


@pytest.fixture
def where(tmp_path: Path) -> Iterator[Place]:
    """Return a directory with a small pool to be, of which no device is left in the end."""
    need_thin_pools()
    path = tmp_path / "home"
    path.mkdir(mode=0o700)
    with (path / "data").open("wb") as data:
        data.truncate(DATA)
    yield Place(DeviceMapperDriver, str(path))
    assert leftovers(str(path)) == []
    wait_until_gone(path)


@pytest.fixture
def driver(where: Place) -> Iterator[DeviceMapperDriver]:
    """Return a driver with a layer "base" and a tree "tree"."""
    made = where.driver()
    assert isinstance(made, DeviceMapperDriver)
    layer(made, "base", [], lambda top: write(f"{top}/file", "text"))
    made.new_tree("tree", ["base"])
    yield made
    if not made.home.closed:
        for tree in made.trees():
            made.remove_tree(tree)
        made.settle()
        made.close()


def token(path: str | Path) -> str:
    """Return what the names of a pool's devices begin with."""
    return f"isolib-{json.loads(Path(path, 'pool').read_text())['token']}-"


def devices(path: str | Path) -> set[str]:
    """Return the devices of a pool, without what their names begin with."""
    nodes = Nodes()
    mapper = DeviceMapper(nodes)
    begin = token(path)
    found = {name.removeprefix(begin) for name in mapper.names() if name.startswith(begin)}
    mapper.close()
    nodes.fd.close()
    return found


def wait_until_gone(path: Path) -> None:
    """Return when the kernel has let go of a pool's files, which tells nothing to whom they are not locked for."""
    for name in ("data", "metadata"):
        with (path / name).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
    assert devices(path) == set()


def in_child(work: Callable[[], None]) -> int:
    """Do something in a child that is killed when it is done, and return what it was killed by."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            work()
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(1)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def test_a_pool_is_there_for_as_long_as_something_is_mounted(where: Place, driver: DeviceMapperDriver) -> None:
    """Devices are there while their mounts are; a driver that was closed leaves those, and the pool goes with the last."""
    assert driver.trees() == {"tree"}
    other = where.driver()
    root = other.mount("tree")
    assert len(devices(where.path)) == 2
    other.close()
    driver.close()
    write(f"/proc/self/fd/{root.fileno()}/more", "more")
    assert len(devices(where.path)) == 2
    root.close()
    wait_until_gone(Path(where.path))
    again = where.driver()
    with mounted(again, "tree") as top:
        assert set(os.listdir(top)) == {"file", "more"}
    again.remove_tree("tree")
    again.settle()
    again.close()


def test_killed_it_leaves_no_mount_no_device_no_loop(where: Place) -> None:
    """Of a process that is killed with trees mounted nothing is left, and what it wrote is there for the next one."""

    def work() -> None:
        driver = where.driver()
        layer(driver, "base", [], lambda top: write(f"{top}/file", "text"))
        driver.new_tree("tree", ["base"])
        root = driver.mount("tree")
        write(f"/proc/self/fd/{root.fileno()}/more", "more")

    assert in_child(work) == signal.SIGKILL
    wait_until_gone(Path(where.path))
    attached = "".join(path.read_text() for path in Path("/sys/block").glob("loop*/loop/backing_file"))
    assert where.path not in attached
    driver = where.driver()
    with mounted(driver, "tree") as top:
        assert set(os.listdir(top)) == {"file", "more"}
    driver.remove_tree("tree")
    driver.settle()
    driver.close()


def test_a_device_that_was_left_held_back_goes_on(where: Place, driver: DeviceMapperDriver) -> None:
    """Who was killed while a file system was held back for a snapshot of it holds up nobody beyond the next call."""

    def work() -> None:
        pool = where.driver()
        assert isinstance(pool, DeviceMapperDriver)
        nodes = Nodes()
        mapper = DeviceMapper(nodes)
        for name in mapper.names():
            if name.startswith(token(where.path)) and not name.endswith("pool"):
                mapper.suspend(name)

    with mounted(driver, "tree") as top:
        assert in_child(work) == signal.SIGKILL
        driver.snapshot("tree", "kept")
        write(f"{top}/more", "more")
    assert driver.snapshots("tree") == {"kept"}


def test_devices_that_were_not_told_to_go_are_swept(where: Place, driver: DeviceMapperDriver) -> None:
    """Who was killed between making a device and telling it to go leaves one that the next sweep removes."""

    def work() -> None:
        nodes = Nodes()
        DeviceMapper(nodes).create(f"{token(where.path)}99")

    assert in_child(work) == signal.SIGKILL
    assert "99" in devices(where.path)
    driver.sweep()
    assert "99" not in devices(where.path)


def test_a_full_pool_is_told(driver: DeviceMapperDriver) -> None:
    """In a full pool writing fails with ENOSPC, and so does what needs room, with what to do; nothing of before is lost."""
    with contextlib.suppress(OSError), mounted(driver, "tree") as top, open(f"{top}/big", "wb", buffering=0) as file:
        for _ in range(DATA >> 19):
            file.write(os.urandom(1 << 20))
            os.fsync(file.fileno())
    # Its own file system is as large as the pool, so one alone cannot fill that: the next one does.
    with pytest.raises(OSError, match="No space left on device"):
        fill(driver)
    with pytest.raises(SyscallError, match="the thin pool is full") as refused:
        driver.snapshot("tree", "kept")
    assert refused.value.errno == errno.ENOSPC
    with pytest.raises(SyscallError, match="the thin pool is full") as refused:
        driver.mount("other")
    assert refused.value.errno == errno.ENOSPC
    with driver.open_layer("base") as root:
        assert Path(f"/proc/self/fd/{root.fileno()}/file").read_text() == "text"
    driver.remove_tree("other")
    driver.remove_tree("tree")
    driver.settle()
    driver.new_tree("tree", ["base"])
    with mounted(driver, "tree") as top:
        assert os.listdir(top) == ["file"]


def fill(driver: DeviceMapperDriver) -> None:
    """Write to another tree until that fails."""
    driver.new_tree("other", ["base"])
    with mounted(driver, "other") as top, open(f"{top}/big", "wb", buffering=0) as file:
        for _ in range(DATA >> 19):
            file.write(os.urandom(1 << 20))
            os.fsync(file.fileno())


def test_what_is_in_use_is_removed_later(where: Place, driver: DeviceMapperDriver) -> None:
    """A tree that somebody still has open is no tree any more when it was removed, and its device goes with a later sweep."""
    root = driver.mount("tree")
    driver.remove_tree("tree")
    driver.settle()
    assert (driver.trees(), len(leftovers(where.path))) == (set(), 1)
    assert Path(f"/proc/self/fd/{root.fileno()}/file").read_text() == "text"
    driver.sweep()
    assert len(leftovers(where.path)) == 1
    root.close()
    driver.sweep()
    assert leftovers(where.path) == []


def test_a_pool_on_devices(tmp_path: Path) -> None:
    """Where "data" and "metadata" are links to block devices, the pool lies on those and is as large."""
    need_thin_pools()
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    with contextlib.ExitStack() as stack:
        for name, size in (("data", DATA), ("metadata", 8 << 20)):
            image = stack.enter_context(Fd(os.memfd_create(name)))
            os.truncate(image.fileno(), size)
            (home / name).symlink_to(stack.enter_context(loop(image)))
        driver = DeviceMapperDriver(Fd(os.open(home, os.O_RDONLY | os.O_DIRECTORY)), str(home))
        layer(driver, "base", [], lambda top: write(f"{top}/file", "text"))
        assert json.loads((home / "pool").read_text())["size"] == DATA
        assert (home / "data").is_symlink()
        driver.close()
        wait_until_gone(home)


def test_processes_at_once(where: Place, driver: DeviceMapperDriver) -> None:
    """Processes that make, copy, mount and remove trees at the same time do not disturb each other."""

    def work(number: int) -> None:
        own = where.driver()
        for step in range(3):
            name = f"tree{number}-{step}"
            own.fork("tree", name)
            with mounted(own, name) as top:
                write(f"{top}/{name}", name)
            own.snapshot(name, "kept")
            with mounted(own, name) as top:
                assert set(os.listdir(top)) == {"file", name}
            if step:
                own.remove_tree(name)
        own.settle()
        own.close()

    children = []
    for number in range(3):
        child = os.fork()
        if child == 0:
            try:
                work(number)
            except BaseException as error:  # noqa: BLE001 - told, and the child ends
                sys.stderr.write(f"{error!r}\n")
                os._exit(1)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert driver.trees() == {"tree", "tree0-0", "tree1-0", "tree2-0"}


def test_dmsetup_says_the_same(where: Place, driver: DeviceMapperDriver) -> None:
    """What dmsetup tells of the pool and its device is what was asked for."""
    if shutil.which("dmsetup") is None:
        pytest.skip("dmsetup is not installed")
    with mounted(driver, "tree"):
        command = ["dmsetup", "table", "--noflush"]
        table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = dict(line.split(": ", 1) for line in table.splitlines() if line.startswith(token(where.path)))
    pool = lines.pop(f"{token(where.path)}pool").split()
    assert (pool[1:3], pool[5], "error_if_no_space" in pool) == ([str(DATA >> 9), "thin-pool"], "128", True)
    ((_, thin),) = lines.items()
    assert thin.split()[:3] == ["0", str(DATA >> 9), "thin"]


def test_a_directory_that_is_not_ours_is_not_needed(where: Place, driver: DeviceMapperDriver) -> None:
    """Without /dev everything works: the nodes of devices are made where nobody else sees them."""
    hidden = subprocess.run(
        ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /dev && exec "$@"', "-", sys.executable, "-c", PROGRAM, where.path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (hidden.returncode, hidden.stdout) == (0, "['file']\n"), hidden.stderr
    assert driver.trees() == {"tree"}


PROGRAM = """
import os, sys
from isolib._kernel.handle import Fd
from isolib.unionfs.drivers.devicemapper import DeviceMapperDriver

driver = DeviceMapperDriver(Fd(os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY)), sys.argv[1])
driver.fork("tree", "new")
with driver.open_layer("base") as root:
    print(os.listdir(root.fileno()))
driver.remove_tree("new")
driver.settle()
driver.close()
"""
