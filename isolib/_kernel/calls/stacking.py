"""File systems made in one call, and the layers of overlays."""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from typing import TYPE_CHECKING, Any, Final, cast

from isolib._kernel._ext import ffi, lib
from isolib._kernel.abi import AT_FDCWD, OPEN_TREE_CLOEXEC
from isolib._kernel.calls.checking import checked, path_bytes, refusal, taken
from isolib._kernel.handle import Fd

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import TracebackType
    from typing import Self

    from isolib.errors import SyscallError

STACK_BY_FD: Final[int] = lib.ISOLIB_STACK_BY_FD
STACK_BY_PATH: Final[int] = lib.ISOLIB_STACK_BY_PATH
STACK_TOGETHER: Final[int] = lib.ISOLIB_STACK_TOGETHER
STACK_CREATE: Final[int] = lib.ISOLIB_STACK_CREATE

#: Without the descriptor.
_IDENTITY: Final = Struct("=8xQQ")
_LAYERS: Final = ffi.typeof("struct isolib_layers *")
_STACK: Final = ffi.typeof("struct isolib_stack *")
_UNION: Final = ffi.typeof("struct isolib_union *")
_CHARS: Final = ffi.typeof("char[]")
_NULL: Final = ffi.NULL

#: How far it came, and the call that failed there.
_STAGES: Final = {
    lib.ISOLIB_STACK_OPEN: "fsopen",
    lib.ISOLIB_STACK_OPTION: "fsconfig",
    lib.ISOLIB_STACK_LOWER: "fsconfig",
    lib.ISOLIB_STACK_UPPER: "fsconfig",
    lib.ISOLIB_STACK_WORK: "fsconfig",
    lib.ISOLIB_STACK_CREATE: "fsconfig",
    lib.ISOLIB_STACK_MOUNT: "fsmount",
}
_PARTS: Final = {lib.ISOLIB_STACK_UPPER: "upperdir", lib.ISOLIB_STACK_WORK: "workdir", lib.ISOLIB_STACK_LOWER: "lowerdir"}


class Layers:
    """Directories that are opened at once, each by its own descriptor, which are closed with this or when it goes.

    Parameters
    ----------
    paths
        The topmost first.
    base
        What relative ones are relative to.
    flags
        Beside O_PATH and O_DIRECTORY.

    Raises
    ------
    SyscallError
        One cannot be opened, or is no directory.
    """

    __slots__ = ("_layers", "names")

    def __init__(self, paths: Sequence[str], base: int = AT_FDCWD, flags: int = 0) -> None:
        self.names = tuple(paths)
        encoded = path_bytes("\0".join(paths))
        if encoded.count(b"\0") != max(0, len(paths) - 1):
            raise ValueError(f"a NUL in a path: {paths}")
        # Each is -1 before it is open.
        layers = ffi.new(_LAYERS, (len(paths), 0, [(-1, 0, 0, 0)] * len(paths)))
        self._layers = ffi.gc(layers, lib.isolib_layers_close)
        if lib.isolib_layers_open(layers, base, encoded, flags) < 0:
            raise refusal("open", self.names[layers.at], ffi.errno)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def identities(self) -> Iterator[tuple[int, int]]:
        """What tells each directory from all others: a device and a number on that (stat(2))."""
        start = ffi.addressof(self._layers[0], "layers")
        return cast("Iterator[tuple[int, int]]", _IDENTITY.iter_unpack(ffi.buffer(start, len(self) * _IDENTITY.size)))

    def fd(self, number: int) -> int:
        """Return the descriptor of one, which stays this object's."""
        return int(self._layers.layers[number].fd)

    def take(self, number: int) -> Fd:
        """Hand one over, which is closed here from then on; not by a thread that signal handlers run in."""
        layer = self._layers.layers[number]
        fd, layer.fd = int(layer.fd), -1
        return Fd(fd)

    def map_ids(self, first: int, userns: int) -> None:
        """Put in the place of the first ones detached mounts of them, with their ids mapped by a user namespace."""
        result = lib.isolib_layers_map(self._layers, first, userns)
        if result < 0:
            raise refusal("open_tree" if result == -1 else "mount_setattr", self.names[self._layers.at], ffi.errno)

    def close(self) -> None:
        """Close all; again is nothing."""
        lib.isolib_layers_close(self._layers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def memory(self) -> object:
        """The C structure."""
        return self._layers


class _Member:
    """One of the descriptors of what `new_union` makes, as `Fd` wants it."""

    __slots__ = ("_fd", "_made")

    def __init__(self, made: Any, number: int) -> None:
        self._made = made  # whose memory it is
        self._fd = made.fds + number

    @property
    def closed(self) -> bool:
        return bool(self._fd[0] < 0)

    def fileno(self) -> int:
        fd = int(self._fd[0])
        if fd < 0:
            raise ValueError("it is closed")
        return fd

    def close(self) -> None:
        if self._fd[0] >= 0:  # else the call would give the GIL away for nothing
            lib.isolib_close_fd(self._fd)


@lru_cache(maxsize=16)
def _kept(text: bytes) -> Any:
    """Return what is nearly always the same, as C wants it."""
    return ffi.new(_CHARS, text)


def new_union(
    lowers: Sequence[str], options: tuple[bytes, bytes], attributes: int, space_options: bytes, space_attributes: int
) -> tuple[Fd, Fd, Fd] | None:
    """Make an overlay whose upper directory lies in memory, in one call.

    Parameters
    ----------
    lowers
        The paths of the lower directories; the upper directory is to be like the topmost one, the first.
    options, space_options
        Of the overlay, where the calling thread is in the first user namespace, and where it is in another one; and of what the
        upper directory lies in: names and values, a NUL after each; an empty value for a flag.
    attributes, space_attributes
        MOUNT_ATTR_* of both.

    Returns
    -------
    tuple of Fd or None
        The mount, the upper directory, and what this lies in.  None: something is out of the ordinary, or was refused, and
        nothing was made; `Layers` and `new_stack` tell what.
    """
    first, other = options
    paths = ffi.new(_CHARS, path_bytes("\0".join(lowers)))
    options_there = _kept(first), _kept(space_options), _kept(other)
    made = ffi.new(_UNION, (len(lowers), 0, paths, *options_there, attributes, space_attributes, (-1, -1, -1)))
    owned = ffi.gc(made, lib.isolib_union_close)
    if lib.isolib_union_new(made) < 0:
        return None
    mount, upper, space = (Fd.held(_Member(owned, number)) for number in range(3))
    return mount, upper, space


class StackRefused(Exception):
    """A file system was refused: the exception to raise, what it was about, and what the kernel said.

    Attributes
    ----------
    error
        With what was refused as its target: ``lowerdir /opt/a``.
    stage
        How far it came: higher is farther.
    said
        The kernel's words, or "".
    """

    def __init__(self, error: SyscallError, stage: int, said: str = "") -> None:
        super().__init__(str(error))
        self.error = error
        self.stage = stage
        self.said = said


def new_stack(
    fs_type: str,
    options: Iterable[tuple[str, str]] = (),
    *,
    lowers: Layers | None = None,
    upper: int = -1,
    work: int = -1,
    attributes: int = 0,
    way: int = STACK_BY_FD,
    prefix: str = "/proc/self/fd/",
) -> Fd:
    """Return a detached mount of a new file system: fsopen(2), fsconfig(2), fsmount(2).

    Parameters
    ----------
    fs_type
        Its type.
    options
        Names and values, an empty one for a flag.
    lowers, upper, work
        The layers of an overlay.
    attributes
        MOUNT_ATTR_* of the mount.
    way
        How layers are named to the kernel.
    prefix
        With a number, the path of a descriptor.

    Raises
    ------
    StackRefused
        The kernel refused.
    """
    pairs = tuple(options)
    text = ffi.new(_CHARS, path_bytes("".join(f"{key}\0{value}\0" for key, value in pairs) + "\0"))
    kind, start = ffi.new(_CHARS, fs_type.encode()), ffi.new(_CHARS, prefix.encode())
    memory = _NULL if lowers is None else lowers.memory
    stack = ffi.new(_STACK, (kind, text, way, start, memory, upper, work, attributes, 0, 0))
    made = Fd.take(lib.isolib_stack_new, stack)
    if made is not None:
        return made
    errno, stage, said = ffi.errno, stack.stage, ffi.string(stack.said).decode(errors="replace").strip()
    key = pairs[stack.at][0] if stage == lib.ISOLIB_STACK_OPTION else _PARTS.get(stage, "")
    target = f"{fs_type} {key}".strip()
    if stage == lib.ISOLIB_STACK_LOWER and lowers is not None and way != STACK_TOGETHER:
        target = f"{fs_type} {key} {lowers.names[stack.at]}"
    raise StackRefused(refusal(_STAGES[stage], target, errno), stage, said)


def reconfigure(mount: int, flag: str, target: str) -> None:
    """Change a whole file system: fspick(2), fsconfig(2), FSCONFIG_CMD_RECONFIGURE."""
    result = lib.isolib_reconfigure(mount, flag.encode())
    if result < 0:
        raise refusal("fspick" if result == -1 else "fsconfig", f"{target} ({flag})", ffi.errno)


def enclose_thread() -> None:
    """Give the calling thread a mount namespace and directories of its own: unshare(2); for one that ends soon.

    From then on a relative path is the number of a descriptor.
    """
    result = lib.isolib_enclose_thread()
    if result < 0:
        op = {-1: "unshare", -2: "mount", -3: "chdir"}[result]
        raise refusal(op, "mnt namespace of a thread", ffi.errno)


def take_tree(fd: int, path: str, flags: int) -> Fd:
    """As `open_tree`, owned from the first moment on."""
    made = Fd.take(lib.isolib_open_tree, fd, path_bytes(path), flags | OPEN_TREE_CLOEXEC)
    return taken("open_tree", path or f"fd {fd}", made)


def syncfs(fd: int, target: str) -> None:
    """Write out all that is dirty of a file system: syncfs(2)."""
    checked("syncfs", target, lib.isolib_syncfs(fd))
