"""What is known of the host, the caller and the user before anything is tried: read from files of the kernel's.

Facts never decide whether a feature is available.  They say who it was that refused.
"""

from __future__ import annotations

import gzip
import os
import pwd
import re
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Final

from isolib._kernel.procfs import parse_mountinfo, parse_status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from isolib._kernel.procfs import Mount

#: capabilities(7), those that isolib can use; the number is the bit.
CAPABILITIES: Final = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_CHROOT": 18,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_SYS_NICE": 23,
    "CAP_SYS_RESOURCE": 24,
    "CAP_MKNOD": 27,
    "CAP_SETFCAP": 31,
    "CAP_BPF": 39,
}

KINDS: Final = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time")

#: The knobs that refuse things.
KNOBS: Final = (
    *(f"user.max_{kind}_namespaces" for kind in KINDS),
    "kernel.unprivileged_userns_clone",
    "kernel.apparmor_restrict_unprivileged_userns",
    "kernel.yama.ptrace_scope",
    "kernel.modules_disabled",
    "kernel.io_uring_disabled",
    "kernel.keys.maxkeys",
    "vm.memfd_noexec",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of the host and of the caller.

    Attributes
    ----------
    release, machine
        As uname(2) gives them.
    user, uid, gid
        The effective ids of the caller, and the name that its uid has, or the number.
    capabilities
        The effective set of the calling thread, a mask; ``last_capability`` is the highest that the kernel knows.
    no_new_privs, seccomp
        Of the calling thread: proc_pid_status(5); 2 is a filter.
    apparmor
        The profile that confines the caller, or an empty string.
    sysctls
        The knobs that exist, and their values.
    config
        Gives the value of a kernel option: ``"y"``, ``"m"``, ``"n"``, or an empty string where the host does not tell.
    mounts
        Of the caller's mount namespace.
    namespaces
        The kinds that the kernel has.
    initial
        The kinds of which the caller is in the host's first, as far as that can be told from within.
    """

    release: str = ""
    machine: str = ""
    user: str = "root"
    uid: int = 0
    gid: int = 0
    capabilities: int = 0
    last_capability: int = 40
    no_new_privs: bool = False
    seccomp: int = 0
    apparmor: str = ""
    sysctls: Mapping[str, str] = field(default_factory=dict)
    config: Callable[[str], str] = field(default=lambda _: "")
    mounts: tuple[Mount, ...] = ()
    namespaces: frozenset[str] = frozenset(KINDS)
    initial: frozenset[str] = frozenset(KINDS)

    def has(self, capability: str) -> bool:
        """Return whether the caller has a capability."""
        return bool(self.capabilities >> CAPABILITIES[capability] & 1)

    def is_since(self, version: str) -> bool:
        """Return whether the kernel calls itself at least this version; for saying who refused, never whether."""
        return version_of(self.release) >= version_of(version)

    def knob(self, name: str) -> str:
        """Return a sysctl as ``name = value``."""
        return f"{name} = {self.sysctls[name]}"

    @property
    def chroot(self) -> bool:
        """Whether the caller's root is no mount point of its mount namespace: user_namespaces(7) refuses there."""
        return bool(self.mounts) and not any(mount.mount_point == "/" for mount in self.mounts)

    @property
    def over_proc(self) -> tuple[str, ...]:
        """What is mounted over parts of /proc, and so makes the kernel refuse a new procfs (mount_too_revealing)."""
        return tuple(
            mount.mount_point
            for mount in self.mounts
            if mount.mount_point.startswith("/proc/") and mount.mount_point != "/proc/sys/fs/binfmt_misc"
        )


def version_of(text: str) -> tuple[int, int]:
    """Return the first two numbers of a kernel's version."""
    numbers = re.match(r"(\d+)\.(\d+)", text)
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)


def read_bytes(path: str) -> bytes:
    """Return what a file holds; nothing when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def read(path: str) -> str | None:
    """Return what a file of the kernel's says, or None when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return os.fsdecode(file.read()).strip()
    except OSError:
        return None


def read_mounts(path: str = "/proc/thread-self/mountinfo") -> tuple[Mount, ...]:
    """Return the mounts of a mount namespace; none when they cannot be read."""
    try:
        return tuple(parse_mountinfo(read_bytes(path)))
    except ValueError:
        return ()


def _status() -> Mapping[str, str]:
    try:
        return parse_status(read_bytes("/proc/thread-self/status"))
    except ValueError:
        return {}


def read_sysctls(names: Iterable[str], root: str = "/proc/sys") -> dict[str, str]:
    """Return the sysctls of these names that exist and can be read."""
    found = {name: read(f"{root}/{name.replace('.', '/')}") for name in names}
    return {name: value for name, value in found.items() if value is not None}


def option_in(config: bytes, option: str) -> str:
    """Return what a kernel configuration says of an option: its value, or ``"n"``."""
    found = re.search(rb"^" + re.escape(option.encode()) + rb"=(.*)$", config, re.MULTILINE)
    return found[1].decode("ascii", "replace").strip('"') if found else "n"


def config_reader(release: str) -> Callable[[str], str]:
    """Return the function that looks options up; the file is read when the first is asked for, or never."""

    @cache
    def content() -> bytes | None:
        with suppress(OSError, EOFError), gzip.open("/proc/config.gz") as packed:
            return packed.read()
        for path in (f"/boot/config-{release}", f"/lib/modules/{release}/config"):
            with suppress(OSError), open(path, "rb") as file:
                return file.read()
        return None

    def config(option: str) -> str:
        known = content()
        return "" if known is None else option_in(known, option)

    return config


#: The inode numbers of the first namespaces: linux/nsfs.h, enum init_ns_ino.  Those of net and mnt are fixed since 6.18 only.
_FIRST: Final = {
    "time": 0xEFFFFFFA,
    "cgroup": 0xEFFFFFFB,
    "pid": 0xEFFFFFFC,
    "user": 0xEFFFFFFD,
    "uts": 0xEFFFFFFE,
    "ipc": 0xEFFFFFFF,
}


def _links() -> dict[str, str]:
    links = {}
    for kind in KINDS:
        with suppress(OSError):
            links[kind] = os.readlink(f"/proc/thread-self/ns/{kind}")
    return links


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def gather() -> Facts:
    """Read everything; what cannot be read is left at its default."""
    system = os.uname()
    status = _status()
    links = _links()
    last = read("/proc/sys/kernel/cap_last_cap") or ""
    # Not os.geteuid: the thread may have credentials of its own (setresuid(2), C library/kernel differences).
    uid = int(status["Uid"].split()[1]) if "Uid" in status else os.geteuid()
    gid = int(status["Gid"].split()[1]) if "Gid" in status else os.getegid()
    profile = read("/proc/thread-self/attr/apparmor/current") or ""
    return Facts(
        release=system.release,
        machine=system.machine,
        user=_user_name(uid),
        uid=uid,
        gid=gid,
        capabilities=int(status.get("CapEff", "0"), 16),
        last_capability=int(last) if last.isdigit() else 40,
        no_new_privs=status.get("NoNewPrivs") == "1",
        seccomp=int(status.get("Seccomp", "0")),
        apparmor="" if profile.startswith("unconfined") else profile,
        sysctls=read_sysctls(KNOBS),
        config=config_reader(system.release),
        mounts=read_mounts(),
        namespaces=frozenset(links),
        initial=frozenset(kind for kind, link in links.items() if link == f"{kind}:[{_FIRST.get(kind)}]"),
    )
