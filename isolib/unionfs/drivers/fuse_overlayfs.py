"""The driver of fuse-overlayfs: what the overlay driver does, where the kernel's overlay is not to be had.

The file system is mounted by us, as a detached mount like all others, and served by the program ``fuse-overlayfs``, which gets
the kernel's end of it as a descriptor and mounts nothing.  It runs in a mount namespace of its own, where the layers lie at
short paths, for in its options a colon, a comma or a backslash of a path would mean something else.  It ends with the mount,
and with this process.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from errno import EACCES, ENODEV, ENOENT, ENOTCONN, ENXIO, EPERM
from subprocess import DEVNULL
from typing import TYPE_CHECKING, ClassVar, Final

from isolib._kernel import calls, seam
from isolib._kernel.handle import Fd, Rollback, home
from isolib._kernel.mountapi import new_mount
from isolib._kernel.programs import find_program
from isolib.errors import Unsupported, from_errno
from isolib.unionfs.disk.files import open_at, twin
from isolib.unionfs.drivers.overlay import OverlayDriver
from isolib.unionfs.overlays.stacking import Stack, open_directory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolib._kernel.request import MountValue

__all__ = ["FuseOverlayDriver", "HostedFuseOverlayDriver"]

_PROGRAM: Final = "fuse-overlayfs"
_DEVICE: Final = "/dev/fuse"
#: What the program may see its layers below, in its own mount namespace, where nothing of these is needed.
_COVERED: Final = ("/mnt", "/media", "/srv", "/tmp", "/run")
#: Beside the attribute that says that a directory is opaque, the program leaves files that say so to older ones of itself.
_MARKS: Final = frozenset({".wh..opq", ".wh..wh..opq"})
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


class _Service:
    """A mount and the process that serves it, as `Fd` wants its owner."""

    def __init__(self, mount: Fd, process: seam.Process) -> None:
        self._mount = mount
        self._process = process

    @property
    def closed(self) -> bool:
        return self._mount.closed

    def fileno(self) -> int:
        return self._mount.fileno()

    def close(self) -> None:
        if not self._mount.closed:
            with suppress(OSError):  # the program has ended
                _sync(self._mount)
        self._mount.close()
        self._process.close()

    def __del__(self) -> None:
        self.close()


class FuseOverlayDriver(OverlayDriver):
    """Directories, stacked by a program.

    Notes
    -----
    It takes /dev/fuse and CAP_SYS_ADMIN in the user namespace of this process, as every mount does.  When a tree is let go
    (`release`), other descriptors of its mount answer ENOTCONN.

    What it shows is the program's: where names are removed, linked and renamed in quick succession, open(2) with O_EXCL answers
    EEXIST now and then for a name that was just removed, and directories that were copied up get new times.  Release 1.10 does
    so however it is mounted, also with caches of no duration.

    Sources: mount(2), the kernel's Documentation/filesystems/fuse/fuse.rst, libfuse's fuse_session_mount(3).
    """

    name: ClassVar[str] = "fuse-overlayfs"
    #: Who may use a mount beside who has made it.
    _access: ClassVar[tuple[str, ...]] = ("allow_other",)  # guests have ids of their own

    def adopt(self, tree: str, mount: Fd) -> None:
        """Leave it: who served it is gone."""

    @classmethod
    def examine(cls, home: int, path: str) -> None:
        """Find out whether the program is there, and serves a mount that can be written to.

        Raises
        ------
        Unsupported
            It does not.
        """
        driver = cls(twin(home), path)
        place = driver._place
        try:
            with place.making() as made:
                for name in ("lower", "upper", "work"):
                    place.make(f"{made}/{name}")
                where = [place.show(f"{made}/{name}") for name in ("lower", "upper", "work")]
                with driver._stack(Stack((where[0],), where[1], where[2])) as mount:
                    os.mkdir("directory", dir_fd=mount.fileno())
                if not place.has(f"{made}/upper/directory"):
                    raise from_errno("mkdirat", where[1], ENOENT)
        except OSError as error:
            remedy = (
                "a directory that is attached in this mount namespace, on a file system with extended attributes; and "
                "CAP_SYS_ADMIN in this user namespace"
            )
            raise Unsupported("the fuse-overlayfs driver", f"{path}: {error}", remedy) from error
        finally:
            place.settle()
            driver.home.close()

    def _stack(self, wanted: Stack) -> Fd:
        program = find_program(_PROGRAM)
        if program is None:
            raise Unsupported("the fuse-overlayfs driver", "the program, which is not installed", "apt install fuse-overlayfs")
        if wanted.ids is not None:
            raise Unsupported(
                "a tree of fuse-overlayfs as the root of a process in a user namespace of its own",
                "fuse-overlayfs, whose mount maps no ids",
                "a store with driver='overlay' or 'vfs'; or spawn() without a new user namespace",
            )
        covered, shown, options = _arrange(wanted)
        with Rollback() as undo:
            device = undo.adopt(_open_device())
            attributes = wanted.attributes | (calls.MOUNT_ATTR_RDONLY if wanted.readonly else 0)
            mount = undo.adopt(Fd(_mount(device, attributes, self._access)))
            said = undo.adopt(Fd(os.memfd_create(_PROGRAM)))
            argv = [program, "-f", "-o", options, f"/dev/fd/{device.fileno()}"]
            process = seam.spawn(
                argv,
                new={"mnt"},
                mounts=[seam.tmpfs(covered), *shown],
                pass_fds=[device.fileno()],
                stdin=DEVNULL,
                stdout=said,
                stderr=said,
            )
            undo.push(process.close)
            device.close()  # only the program has it now: if that ends, who waits for an answer is told
            _check_served(mount, said)
            said.close()
            undo.dismiss()
            return Fd.held(_Service(mount, process))

    def release(self, tree: str) -> None:
        """Unmount, and end the program."""
        with self._lock:
            found = self._mounts.pop((home(), tree), None)
            super().release(tree)
        if found is not None:
            found.close()

    def _tidy(self, tree: str, part: str) -> None:
        """Have what was written reach the part, and remove the files that mark opaque directories: attributes do so too."""
        mount = self._mounts.get((home(), tree))
        if mount is not None:
            _sync(mount)
        if not self._place.has(f"parts/{part}"):
            return
        waiting = [""]
        with self._place.open(f"parts/{part}/root") as root:
            while waiting:
                path = waiting.pop()
                with open_at(path or ".", _DIRECTORY, dir_fd=root.fileno()) as directory:
                    names = os.listdir(directory.fileno())
                    if marks := _MARKS.intersection(names):
                        status = os.fstat(directory.fileno())
                        for name in marks:
                            os.unlink(name, dir_fd=directory.fileno())
                        # Nobody has written to it: it keeps its time.
                        os.utime(directory.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))
                    others = (name for name in names if name not in marks)
                    waiting += [os.path.join(path, name) for name in others if _is_directory(directory, name)]


class HostedFuseOverlayDriver(FuseOverlayDriver):
    """The same in a user namespace, for a process outside of it.

    To ``allow_other`` only those are others who are in the same user namespace.  Without it only the user himself may use a
    mount, as who he is, in any: what runs in it as somebody else is answered EACCES.
    """

    _access = ()


def _sync(mount: Fd) -> None:
    """Have what was written reach the upper directory: the kernel keeps contents and times until there is time."""
    with open_directory(".", dir_fd=mount.fileno(), flags=os.O_RDONLY) as root:
        calls.syncfs(root.fileno(), _PROGRAM)


def _is_directory(directory: Fd, name: str) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=directory.fileno(), follow_symlinks=False).st_mode)


def _arrange(wanted: Stack) -> tuple[str, list[MountValue], str]:
    """Return which directory of the host the program does not see, what it sees there instead, and how it is told."""
    lowers = [_real(lower) for lower in wanted.lowers]
    above, upper = os.path.split(wanted.upper or "")
    written = _real(above) if above else None
    top = _free(lowers if written is None else [*lowers, written])
    shown = [seam.bind(lower, f"{top}/{index}") for index, lower in enumerate(lowers)]
    # Without a cache of what is written: when the kernel gives it back later, files get the time of that.
    options = "writeback=0,lowerdir=" + ":".join(f"{top}/{index}" for index in range(len(lowers)))
    if written is not None:
        # One mount, for it renames from the work directory to the upper one.
        shown.append(seam.bind(written, f"{top}/written", readonly=False))
        options += f",upperdir={top}/written/{upper},workdir={top}/written/{os.path.basename(wanted.work or '')}"
    return top, shown, options


def _free(paths: Sequence[str]) -> str:
    """Return a directory that can be covered: none of these paths lies in it."""
    for covered in _COVERED:
        if os.path.isdir(covered) and not any(path.startswith(f"{covered}/") for path in paths):
            return covered
    remedy = "a store that does not lie in one of these"
    raise Unsupported("the fuse-overlayfs driver", f"this host, which has none free of {', '.join(_COVERED)}", remedy)


def _real(path: str) -> str:
    with open_directory(path) as directory:
        return os.readlink(f"/proc/self/fd/{directory.fileno()}")


def _open_device() -> Fd:
    try:
        return open_at(_DEVICE, os.O_RDWR)
    except OSError as error:
        if error.errno not in {ENOENT, ENODEV, ENXIO, EACCES, EPERM}:
            raise from_errno("openat", _DEVICE, error.errno or 0) from None
        refused = f"{_DEVICE}: {os.strerror(error.errno)}"
        raise Unsupported("the fuse-overlayfs driver", refused, "modprobe fuse, and the right to open it") from error


def _mount(device: Fd, attributes: int, access: Sequence[str]) -> int:
    options = {
        "source": _PROGRAM,
        "fd": str(device.fileno()),
        "rootmode": "40000",
        "user_id": str(os.geteuid()),
        "group_id": str(os.getegid()),
        **dict.fromkeys(access),
        "default_permissions": None,  # the kernel decides by owner, mode and lists, as everywhere
    }
    return new_mount("fuse", options, attributes=attributes)


def _check_served(mount: Fd, said: Fd) -> None:
    try:
        os.stat(".", dir_fd=mount.fileno())
        os.statvfs(mount.fileno())
    except OSError as error:
        text = os.pread(said.fileno(), 1000, 0).decode(errors="replace").strip().replace("\n", "; ")
        raise from_errno("mount", _PROGRAM, error.errno or ENOTCONN, text or None) from None
