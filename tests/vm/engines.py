"""The commands that boot a kernel, with its console on the standard output."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.vm.kernels import Engine, tool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.vm.kernels import Files, Kernel


@dataclass(frozen=True)
class Boot:
    """One start of a kernel."""

    kernel: Kernel
    files: Files
    place: Path
    """A directory of its own, in which `initrd` is, and `exchange`, the directory that both sides have."""
    memory: int
    """In MiB."""
    words: Sequence[str]
    """What is added to the kernel's command line."""

    def argv(self) -> list[str]:
        """Return the command; it is to be started in the directory of the kernel's files."""
        words = ["quiet", "panic=-1", *self.kernel.words, *self.words]
        return self._uml(words) if self.kernel.engine is Engine.UML else self._qemu(words)

    def _uml(self, words: Sequence[str]) -> list[str]:
        variables = [f"LD_LIBRARY_PATH={self.files.libraries}", f"TMPDIR={self._memory_place()}"]
        places = [f"initrd={self.place}/initrd", f"uml_dir={self.place}/", "umid=vm"]
        return ["env", *variables, str(self.files.image), f"mem={self.memory}M", *places, "con=null", "con0=null,fd:1", *words]

    def _memory_place(self) -> Path:
        """Return where User-Mode Linux keeps its memory: on a tmpfs if that is large enough and may be executed."""
        with contextlib.suppress(FileNotFoundError):
            shm = os.statvfs("/dev/shm")
            if shm.f_bavail * shm.f_frsize >= self.memory << 20 and not shm.f_flag & os.ST_NOEXEC:
                return Path("/dev/shm")
        return self.place

    def _qemu(self, words: Sequence[str]) -> list[str]:
        options = {
            "-machine": "q35",
            # One thread for both processors: with one for each, a kernel that patches its code dies now and then on a busy
            # host, of what another processor has still of the old (int3).
            "-accel": "tcg,thread=single,tb-size=512",
            "-cpu": "Nehalem",  # emulating what later ones have is slower
            "-smp": "2",
            "-m": str(self.memory),
            "-display": "none",
            "-serial": "stdio",
            "-kernel": str(self.files.image),
            "-initrd": f"{self.place}/initrd",
            "-append": " ".join(("console=ttyS0", "mitigations=off", "nokaslr", "tsc=reliable", *words)),
        }
        argv = [tool("qemu-system-x86_64"), "-nodefaults", "-no-user-config", "-no-reboot", "-device", "virtio-rng-pci"]
        for name, path, mode in (("host", "/", ",readonly=on"), ("exchange", f"{self.place}/exchange", "")):
            argv += ["-fsdev", f"local,id={name},path={path},security_model=none,multidevs=remap{mode}"]
            argv += ["-device", f"virtio-9p-pci,fsdev={name},mount_tag={name}"]
        return [*argv, *(word for option in options.items() for word in option)]
