"""The initial ramdisk of a guest: a cpio archive with busybox, the modules that reach the host's files, and init.sh."""

from __future__ import annotations

import gzip
import lzma
import shlex
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.vm.kernels import Engine, tool

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

HERE = Path(__file__).parent

NEEDED = {
    Engine.UML: ("overlay",),
    Engine.QEMU: ("virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_rng"),
}
"""The modules without which there is no root file system, and for quick random numbers."""


@dataclass(frozen=True)
class Entry:
    """One file of a cpio archive."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def cpio(entries: Iterable[Entry]) -> bytes:
    """Return an archive of the format "newc" (initramfs buffer format in the kernel's documentation)."""
    members = [_member(inode, entry) for inode, entry in enumerate(entries, 1)]
    return b"".join((*members, _member(0, Entry("TRAILER!!!", 0))))


def _member(inode: int, entry: Entry) -> bytes:
    name = entry.name.encode() + b"\0"
    links, owner, time, check = 1, 0, 0, 0
    fields = (inode, entry.mode, owner, owner, links, time, len(entry.data), 0, 0, *entry.device, len(name), check)
    header = b"070701" + b"".join(b"%08x" % field for field in fields)
    return _padded(header + name) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def load_order(dependencies: str, builtin: str, wanted: Iterable[str]) -> list[str]:
    """Return the paths of modules in the order in which they can be loaded.

    `dependencies` and `builtin` are the texts of modules.dep and modules.builtin. A line of modules.dep names a module and all
    that it needs, directly or not, the first to be loaded last.
    """
    lines = [line.partition(":") for line in dependencies.splitlines()]
    needs = {_module(path): [path, *others.split()] for path, _, others in lines}
    built_in = {_module(path) for path in builtin.splitlines()}
    order: list[str] = []
    for name in wanted:
        if name not in needs and name not in built_in:
            raise LookupError(f"the kernel has no module {name}")
        order += [path for path in reversed(needs.get(name, [])) if path not in order]
    return order


def _module(path: str) -> str:
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def unpacked(module: Path) -> bytes:
    """Return a module as the system call takes it."""
    data = module.read_bytes()
    match module.suffix:
        case ".xz":
            return lzma.decompress(data)
        case ".gz":
            return gzip.decompress(data)
        case ".ko":
            return data
        case _:
            raise ValueError(f"{module} is packed in a way unknown here")


def initrd(engine: Engine, modules: Path, settings: Mapping[str, str], kept: Iterable[str]) -> bytes:
    """Return the initial ramdisk. `settings` are variables for init.sh, `kept` what no fresh file system there may hide."""
    texts = [(modules / name).read_text(encoding="utf-8") for name in ("modules.dep", "modules.builtin")]
    order = load_order(texts[0], texts[1], NEEDED[engine])
    files = {
        "bin/busybox": (0o755, Path(tool("busybox")).read_bytes()),
        "init": (0o755, (HERE / "init.sh").read_bytes()),
        "kept": (0o644, "".join(f"{path}\n" for path in kept).encode()),
        "settings": (0o644, "".join(f"{name}={shlex.quote(value)}\n" for name, value in settings.items()).encode()),
        **{f"modules/{at:02}.ko": (0o644, unpacked(modules / path)) for at, path in enumerate(order)},
    }
    directories = ("bin", "dev", "host", "modules", "new", "over", "plain", "proc", "sys")
    return cpio(
        [
            *(Entry(name, stat.S_IFDIR | 0o755) for name in directories),
            Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
            *(Entry(name, stat.S_IFREG | mode, data) for name, (mode, data) in files.items()),
        ]
    )
