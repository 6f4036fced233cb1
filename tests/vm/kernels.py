"""Other Linux kernels: which there are, and how one is fetched as a Debian package and unpacked. Nothing is installed."""

from __future__ import annotations

import contextlib
import enum
import fcntl
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Unavailable(Exception):
    """A kernel cannot be had, or what is needed to boot it."""


class Engine(enum.Enum):
    """What a kernel runs on."""

    UML = "uml"
    """User-Mode Linux: the kernel is a program. Boots in a second; dear are system calls and forks, not computing."""
    QEMU = "qemu"
    """An emulated machine, without the help of the processor: any kernel, some twenty times slower."""


@dataclass(frozen=True)
class Kernel:
    """A kernel, named by what it is for."""

    purpose: str
    engine: Engine
    suite: str
    """Debian's suite that it is of."""
    package: str
    """The package; one that only depends on the newest image leads to that."""
    controllers: frozenset[str]
    """What its root cgroup of version 2 offers."""
    pressure: bool = True
    """Whether it measures pressure (PSI)."""
    words: tuple[str, ...] = ()
    """What is added to its command line."""


@dataclass(frozen=True)
class Files:
    """An unpacked kernel."""

    directory: Path
    image: Path
    modules: Path
    libraries: Path | None
    """Libraries of its own, for an image that is a program."""


_UML = frozenset({"cpu", "io", "memory", "pids"})
_DEBIAN = _UML | {"cpuset", "hugetlb", "rdma"}

KERNELS = {
    "unified": Kernel(
        "the newest kernel on cgroups of version 2 alone; without cpuset, hugetlb, pressure",
        *(Engine.UML, "sid", "user-mode-linux", _UML),
        pressure=False,
        words=("seccomp=on",),  # system calls by seccomp instead of ptrace: three times faster
    ),
    "uml-stable": Kernel(
        "the same from Debian's stable release, should sid be broken",
        *(Engine.UML, "trixie", "user-mode-linux", _UML),
        pressure=False,
    ),
    "full": Kernel(
        "what Debian's stable release boots: every controller, pressure, Landlock, nftables",
        *(Engine.QEMU, "trixie", "linux-image-amd64", _DEBIAN | {"misc"}),
    ),
    "old": Kernel(
        "5.10: has no cgroup.kill, memory.peak, mount_setattr, nor overlays of ordinary users",
        *(Engine.QEMU, "bullseye", "linux-image-amd64", _DEBIAN),
    ),
    "newest": Kernel(
        "as full, from sid",
        *(Engine.QEMU, "sid", "linux-image-amd64", _DEBIAN | {"misc"}),
    ),
}

_INTERPRETER = b"/lib64/ld-linux-x86-64.so.2\0"
OWN_INTERPRETER = "ld.so"
"""The loader of an image that is a program, relative to `Files.directory`, which is where it must be started."""

_PARTS = re.compile(r"\s*Depends: (linux-(?:base|binary|image|modules)-\S+)")


def cache() -> Path:
    """Return where kernels are kept: $ISOLIB_KERNELS, or where this user keeps such things."""
    if chosen := os.environ.get("ISOLIB_KERNELS"):
        return Path(chosen).absolute()
    if os.geteuid() == 0:
        return Path("/var/cache/isolib/kernels")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "isolib/kernels"


def fetch(name: str) -> Files:
    """Return a kernel's files; they are fetched when this is the first time. Two who fetch at once wait for each other."""
    kernel, directory = KERNELS[name], cache() / name
    if os.uname().machine != "x86_64":
        raise Unavailable("the kernels are for x86-64, and so must this machine be")
    if not directory.exists():
        cache().mkdir(parents=True, exist_ok=True)
        with _lock(cache() / "lock"):
            if not directory.exists():
                sys.stderr.write(f"isolib: fetching the kernel {name}: {kernel.package} of Debian {kernel.suite}\n")
                unfinished = cache() / f"{name}.new"
                shutil.rmtree(unfinished, ignore_errors=True)
                _unpack(kernel, unfinished)
                unfinished.rename(directory)
    return _files(kernel, directory)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _unpack(kernel: Kernel, directory: Path) -> None:
    """Fetch the packages that a kernel is made of, and make of them what `_files` expects."""
    apt = Apt(kernel.suite)
    packages = apt.parts(kernel.package)
    if kernel.engine is Engine.UML:
        packages.append("libc6")  # that of this machine may be older than what the image was linked with
    downloads = directory / "packages"
    downloads.mkdir(parents=True)
    apt.run("apt-get", "download", *packages, cwd=downloads)
    for package in downloads.iterdir():
        run("dpkg", "-x", package, directory)
    shutil.rmtree(downloads)
    if kernel.engine is Engine.UML:
        image = directory / "usr/bin/linux.uml"
        image.write_bytes(with_interpreter(image.read_bytes(), OWN_INTERPRETER.encode()))
        loader = next(directory.rglob("ld-linux-x86-64.so.2"))
        (directory / OWN_INTERPRETER).symlink_to(loader.resolve().relative_to(directory.resolve()))
        return
    if (directory / "usr/lib/modules").is_dir():  # depmod looks in /lib
        (directory / "lib").mkdir(exist_ok=True)
        (directory / "lib/modules").symlink_to("../usr/lib/modules")
    # The package would do that when it is installed.
    release = next((directory / "lib/modules").iterdir()).name
    run("depmod", "-b", directory, release)


def _files(kernel: Kernel, directory: Path) -> Files:
    if kernel.engine is Engine.UML:
        libraries = (directory / OWN_INTERPRETER).resolve().parent
        return Files(directory, directory / "usr/bin/linux.uml", next((directory / "usr/lib/uml/modules").iterdir()), libraries)
    modules = next((directory / "lib/modules").iterdir())
    image = next(path for path in (*directory.glob("boot/vmlinuz-*"), *modules.glob("vmlinuz*")) if path.is_file())
    return Files(directory, image, modules, None)


def with_interpreter(program: bytes, interpreter: bytes) -> bytes:
    """Return an ELF program with another loader. The kernel looks for a relative one in the working directory (execve(2))."""
    if program.count(_INTERPRETER) != 1 or len(interpreter) >= len(_INTERPRETER):
        raise ValueError(f"the loader cannot be made {interpreter.decode()}")
    return program.replace(_INTERPRETER, interpreter.ljust(len(_INTERPRETER), b"\0"))


def parts_of(description: str) -> list[str]:
    """Return which packages of the kernel a package needs, from what apt-cache says that it depends on."""
    return [found[1] for line in description.splitlines() if (found := _PARTS.fullmatch(line))]


class Apt:
    """Debian's archive as it is in one suite; the sources and lists of this machine's own apt stay as they are."""

    def __init__(self, suite: str) -> None:
        place = cache() / "apt" / suite
        (place / "lists/partial").mkdir(parents=True, exist_ok=True)
        (place / "cache/archives/partial").mkdir(parents=True, exist_ok=True)
        mirror = os.environ.get("ISOLIB_DEBIAN_MIRROR", "http://deb.debian.org/debian")
        (place / "debian.sources").write_text(
            f"Types: deb\nURIs: {mirror}\nSuites: {suite}\nComponents: main\n"
            "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n",
            encoding="utf-8",
        )
        settings = {
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "APT::Sandbox::User": "root",  # no account of its own could write to the cache
            "Dir::Cache": place / "cache",
            "Dir::Etc::SourceList": place / "debian.sources",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State::Lists": place / "lists",
        }
        self.options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
        self.run("apt-get", "update")

    def run(self, tool: str, *words: str, cwd: Path | None = None) -> str:
        """Run one of apt's tools, and return what it said."""
        return run(tool, *self.options, "-q", *words, cwd=cwd)

    def parts(self, package: str) -> list[str]:
        """Return a package and all packages of the kernel that it needs."""
        found = [package]
        for one in found:  # grows meanwhile
            found += [part for part in parts_of(self.run("apt-cache", "depends", one)) if part not in found]
        return found


def run(*argv: str | Path, cwd: Path | None = None) -> str:
    """Run a command, and return what it printed; what it said when it fails is in the error."""
    command = [tool(str(argv[0])), *argv[1:]]
    done = subprocess.run(command, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise Unavailable(f"{' '.join(map(str, argv))} failed:\n{done.stdout}")
    return done.stdout


def tool(name: str) -> str:
    """Return the path of a program that guests are made with; those of administrators are not on everybody's PATH."""
    if path := shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"):
        return path
    raise Unavailable(f"{name} is not here; this installs what guests need: .ci/system-packages vm")
