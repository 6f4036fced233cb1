"""What of the host is visible in a root made of it: looked up when a plan is made, and no more often than it changes."""

from __future__ import annotations

import os
import pwd
import stat
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

__all__ = [
    "PRIVATE",
    "Entry",
    "entries",
    "interpreter",
    "is_closed",
    "is_hidden",
    "linked_files",
    "private",
    "programs",
]

PRIVATE: Final = {"/tmp": 0o1777, "/run": 0o755, "/root": 0o755, "/home": 0o755}
"""What is private and writable at the top level, with its permission bits."""

_NOT_BOUND: Final = frozenset({"proc", "dev", "sys", "tmp", "run", "root", "home", "lost+found"})

#: Directories of the system that passwd(5) gives to daemons as their homes.
_SYSTEM: Final = ("/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/sbin", "/sys", "/usr")
_SYSTEM_EXACTLY: Final = frozenset({"/", "/media", "/mnt", "/opt", "/srv", "/var", "/var/cache", "/var/lib", "/var/log"})


@dataclass(frozen=True, slots=True)
class Entry:
    """Something at the top level of the host: its name, what it is, and what it says when it is a symbolic link."""

    name: str
    kind: Literal["directory", "file", "link"]
    to: str = ""


def entries() -> tuple[Entry, ...]:
    """Return what of the host's top level is shown; listed again only when the directory has changed."""
    return _entries(os.stat("/").st_mtime_ns)


@lru_cache(maxsize=1)
def _entries(_: int) -> tuple[Entry, ...]:
    found = []
    with os.scandir("/") as listing:
        for one in listing:
            if one.name in _NOT_BOUND:
                continue
            if one.is_symlink():
                found.append(Entry(one.name, "link", os.readlink("/" + one.name)))
            elif one.is_dir():
                found.append(Entry(one.name, "directory"))
            elif one.is_file():
                found.append(Entry(one.name, "file"))
    return tuple(sorted(found, key=lambda one: one.name))


def private() -> dict[str, int]:
    """Return all that is private and writable, with its permission bits: /var/tmp and hidden homes too."""
    found = dict(PRIVATE)
    if os.path.isdir("/var/tmp") and not os.path.islink("/var/tmp") and not os.path.islink("/var"):
        found["/var/tmp"] = 0o1777
    return found | dict.fromkeys(_homes(), 0o755)


def is_hidden(path: str) -> bool:
    """Return whether a path of the host lies where the guest has a directory of its own."""
    return path.split("/")[1] in _NOT_BOUND or (path + "/").startswith(tuple(place + "/" for place in private()))


def is_closed(path: str) -> bool:
    """Return whether a user who is nobody on the host cannot read the directory at a path, or cannot come there."""
    parts = [part for part in path.split("/") if part]
    try:
        for count in range(1, len(parts) + 1):
            needed = stat.S_IXOTH if count < len(parts) else stat.S_IXOTH | stat.S_IROTH
            if os.stat("/" + "/".join(parts[:count])).st_mode & needed != needed:
                return True
    except OSError:
        return True
    return False


def linked_files() -> list[str]:
    """Return the files in private places that links of the system's lead to, which would lead nowhere inside."""
    real = os.path.realpath("/etc/resolv.conf")  # of systemd-resolved and others, below /run
    return [real] if is_hidden(real) and os.path.isfile(real) else []


def _homes() -> list[str]:
    """Return the caller's home and the real places of /home and /root, where these would be visible at another path."""
    homes = {os.path.realpath(one) for one in ("/home", "/root")}
    with suppress(KeyError):  # a user without an entry has no home that could be known
        homes.add(os.path.realpath(pwd.getpwuid(os.geteuid()).pw_dir))
    return sorted(
        home
        for home in homes
        if home.split("/")[1] not in _NOT_BOUND
        and home not in _SYSTEM_EXACTLY
        and not any((home + "/").startswith(system + "/") for system in _SYSTEM)
        and os.path.isdir(home)
    )


# ---- the interpreter ----


def interpreter() -> list[str]:
    """Return the directories that this interpreter and isolib are made of: outermost ones, absolute."""
    wanted: list[str] = []
    for prefix in (sys.base_prefix, sys.prefix, sys.exec_prefix, sys.base_exec_prefix):
        wanted.extend(_of_prefix(os.path.abspath(prefix)))
    wanted.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    user_site = _user_site()
    if user_site is not None:
        wanted.append(user_site)
    found: list[str] = []
    for path in sorted({*wanted, *map(os.path.realpath, wanted)}):
        if not any((path + "/").startswith(outer + "/") for outer in found) and os.path.isdir(path):
            found.append(path)
    return found


def _of_prefix(prefix: str) -> list[str]:
    """Return a prefix, or the parts of it that are Python's where it is somebody's home or all of the system."""
    homes = {"/", "/home", "/root", "/tmp", "/run", "/var/tmp", os.path.expanduser("~")}
    with suppress(KeyError):
        homes.add(pwd.getpwuid(os.geteuid()).pw_dir)
    if any((home.rstrip("/") + "/").startswith(prefix.rstrip("/") + "/") for home in homes):
        import sysconfig  # noqa: PLC0415 - dear to import, and rarely needed

        return [sysconfig.get_path("stdlib"), os.path.dirname(os.path.realpath(sys.executable))]
    return [prefix]


def _user_site() -> str | None:
    site = sys.modules.get("site")
    path = getattr(site, "USER_SITE", None) if getattr(site, "ENABLE_USER_SITE", None) else None
    return path if isinstance(path, str) and os.path.isdir(path) and path in sys.path else None


def programs() -> list[str]:
    """Return the directories of this interpreter's programs that no standard PATH has."""
    standard = {"/usr/local/bin", "/usr/bin", "/bin"}
    found = dict.fromkeys(os.path.join(prefix, "bin") for prefix in (sys.prefix, sys.base_prefix))
    return [path for path in found if path not in standard and os.path.isdir(path)]
