r"""Parsers of the files under /proc.

Pure functions, bytes to frozen values: they have no idea that a kernel exists. Names of files and processes become text as
`os.fsdecode` makes it, so that nothing is lost. On bytes that the kernel would never write they raise ValueError, and
nothing else. The formats are in proc(5), with the files of each process in its sub-pages (proc_pid_mountinfo(5) ...).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from isolib.types import MAX_ID, IdMap

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "CgroupEntry",
    "FdInfo",
    "Limit",
    "Mount",
    "Stat",
    "parse_account_ids",
    "parse_cgroup",
    "parse_cmdline",
    "parse_effective",
    "parse_fdinfo",
    "parse_filesystems",
    "parse_id_map",
    "parse_limits",
    "parse_mountinfo",
    "parse_namespace_link",
    "parse_stat",
    "parse_status",
    "parse_subid",
]

NAMESPACE_KINDS = frozenset({"cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"})

_ESCAPE = re.compile(rb"\\([0-3][0-7]{2})")
_NAMESPACE = re.compile(r"([a-z]+):\[([0-9]{1,20})\]", re.ASCII)


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of mountinfo.

    Attributes
    ----------
    id, parent
        The ids of this mount and of the one that it is mounted on.
    dev
        Major and minor number of the file system's device.
    root
        The directory (or file) of the file system that is mounted.
    mount_point
        Where, seen from the root directory of the process.
    options
        The options of this mount: ``("rw", "nosuid")``.
    optional
        The optional fields: ``("shared:7", "master:1")``; none for a private mount.
    fs_type
        The file system, with its subtype: ``"fuse.sshfs"``.
    source
        What was mounted; empty or ``"none"`` where it has no meaning.
    super_options
        The options of the file system, in its own words.
    """

    id: int
    parent: int
    dev: tuple[int, int]
    root: str
    mount_point: str
    options: tuple[str, ...]
    optional: tuple[str, ...]
    fs_type: str
    source: str
    super_options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CgroupEntry:
    """A line of /proc/PID/cgroup.

    Attributes
    ----------
    hierarchy_id
        0 for cgroup v2.
    controllers
        The v1 controllers, or ``("name=systemd",)``; empty for v2.
    path
        The group, below the root of the reader's cgroup namespace (``"/../x"`` is outside of it). The kernel appends
        ``" (deleted)"`` when the group was removed.
    """

    hierarchy_id: int
    controllers: tuple[str, ...]
    path: str


@dataclass(frozen=True, slots=True)
class Stat:
    """What is of use in /proc/PID/stat.

    Attributes
    ----------
    pid, ppid, pgrp, session
        The process, its parent, its process group and its session; 0 for one outside of the pid namespace.
    comm
        The name of the program, at most 15 bytes; it may hold anything, spaces and parentheses too.
    state
        One letter: R, S, D, Z, T, t, X, I.
    tty
        The device number of the controlling terminal, or 0.
    flags
        The kernel's PF_ flags.
    utime, stime, cutime, cstime
        Time used in user and kernel mode, and that of children that were waited for, in clock ticks.
    threads
        How many.
    starttime
        When it started, in clock ticks since the boot: with the pid, the identity of a process.
    exit_signal
        The signal that its parent gets when it ends; 0 for one that is invisible to wait(2) without __WALL.
    """

    pid: int
    comm: str
    state: str
    ppid: int
    pgrp: int
    session: int
    tty: int
    flags: int
    utime: int
    stime: int
    cutime: int
    cstime: int
    threads: int
    starttime: int
    exit_signal: int


@dataclass(frozen=True, slots=True)
class Limit:
    """A line of /proc/PID/limits; None is unlimited.

    Attributes
    ----------
    soft, hard
        The limit in force, and how far it may be raised.
    unit
        ``"bytes"``, ``"files"`` ..., or empty.
    """

    soft: int | None
    hard: int | None
    unit: str


@dataclass(frozen=True, slots=True)
class FdInfo:
    """A file of /proc/PID/fdinfo.

    Attributes
    ----------
    pos
        The offset.
    flags
        The flags of open(2) and the close-on-exec flag.
    mnt_id
        The mount that the file was opened on.
    ino
        Its inode number; None before Linux 5.14.
    fields
        Every line that the kind of file adds, name and value, in order; a name may come several times.
    """

    pos: int
    flags: int
    mnt_id: int
    ino: int | None
    fields: tuple[tuple[str, str], ...]

    @property
    def pid(self) -> int | None:
        """The process of a pidfd: -1 when it is gone, 0 when it is not visible here; None if this is no pidfd."""
        value = dict(self.fields).get("Pid")
        return None if value is None else _integer(os.fsencode(value), signed=True)


def _lines(data: bytes) -> list[bytes]:
    # Only a line feed ends a line: splitlines() would also cut at a carriage return, which a name may hold.
    return data.removesuffix(b"\n").split(b"\n") if data else []


def _integer(field: bytes, *, signed: bool = False, base: int = 10) -> int:
    digits = field[1:] if signed and field.startswith(b"-") else field
    # int() takes more: spaces, signs, underscores, and so many digits that it raises or takes long.
    if not digits.isdigit() or len(digits) > 24:  # noqa: PLR2004 -- 2**64 has 22 digits in octal
        raise ValueError(f"not a number: {field[:50]!r}")
    return int(field, base)


def _text(field: bytes) -> str:
    return os.fsdecode(field)


def _unescape(field: bytes) -> str:
    r"""Return a name in which the kernel wrote space, tab, line feed, backslash and '#' as three octal digits."""
    return _text(_ESCAPE.sub(lambda match: bytes((int(match[1], 8),)), field))


def _options(field: bytes) -> tuple[str, ...]:
    # Split before unescaping: a comma within an option is escaped.
    return tuple(_unescape(option) for option in field.split(b",") if option)


def parse_mountinfo(data: bytes) -> list[Mount]:
    """Return the mounts of /proc/PID/mountinfo, in its order."""
    return [_parse_mount(line) for line in _lines(data)]


@lru_cache(maxsize=256)  # each sandbox looks at the same table
def _parse_mount(line: bytes) -> Mount:
    # Exactly one space between fields: the source may be empty.
    fields = line.split(b" ")
    try:
        dash = fields.index(b"-", 6)
        mount_id, parent, dev, root, mount_point, options = fields[:6]
        fs_type, source, super_options = fields[dash + 1], fields[dash + 2], b" ".join(fields[dash + 3 :])
        major, minor = dev.split(b":")
    except (IndexError, ValueError):
        raise ValueError(f"not a line of mountinfo: {line[:200]!r}") from None
    return Mount(
        id=_integer(mount_id),
        parent=_integer(parent),
        dev=(_integer(major), _integer(minor)),
        root=_unescape(root),
        mount_point=_unescape(mount_point),
        options=_options(options),
        optional=tuple(_text(field) for field in fields[6:dash]),
        fs_type=_unescape(fs_type),
        source=_unescape(source),
        super_options=_options(super_options),
    )


def parse_cgroup(data: bytes) -> list[CgroupEntry]:
    """Return the lines of /proc/PID/cgroup, in its order (cgroups(7))."""
    entries = []
    for line in _lines(data):
        parts = line.split(b":", 2)
        if len(parts) != 3:  # noqa: PLR2004 -- as split says
            raise ValueError(f"not a line of /proc/PID/cgroup: {line[:200]!r}")
        number, controllers, path = parts
        names = tuple(_text(name) for name in controllers.split(b",")) if controllers else ()
        entries.append(CgroupEntry(_integer(number), names, _text(path)))
    return entries


def parse_status(data: bytes) -> Mapping[str, str]:
    """Return the fields of /proc/PID/status by name, as they are, without the white space around them."""
    fields = {}
    for line in _lines(data):
        name, colon, value = line.partition(b":")
        if not colon:
            raise ValueError(f"not a line of /proc/PID/status: {line[:200]!r}")
        fields[_text(name)] = _text(value.strip())
    return fields


def parse_effective(data: bytes) -> int:
    """Return the effective capabilities in /proc/PID/status as a mask.

    One field of sixty, for who asks at every launch: `parse_status` takes twice as long as the kernel takes to write them.
    """
    return int(data.partition(b"\nCapEff:")[2].partition(b"\n")[0], 16)


def parse_id_map(data: bytes) -> list[IdMap]:
    """Return the ranges of /proc/PID/uid_map or gid_map (user_namespaces(7))."""
    ranges = []
    for line in _lines(data):
        fields = line.split()
        if len(fields) != 3:  # noqa: PLR2004 -- inside, outside, count
            raise ValueError(f"not a line of an id map: {line[:200]!r}")
        ranges.append(IdMap(*map(_integer, fields)))
    return ranges


def parse_subid(data: bytes, user: str | None, uid: int) -> list[tuple[int, int]]:
    """Return what /etc/subuid or /etc/subgid grants to a user.

    Parameters
    ----------
    data
        The file.
    user
        The user's name, or None when he has none.
    uid
        His number, which may stand there instead (subuid(5)).

    Returns
    -------
    list of (start, count)
        In the order of the file. Lines that are no such lines are passed over, as newuidmap(1) does.
    """
    names = {str(uid).encode()} | ({os.fsencode(user)} if user else set())
    return [grant for name, grant in _parse_grants(data) if name in names]


def parse_account_ids(passwd: bytes = b"", group: bytes = b"", subid: bytes = b"") -> list[tuple[int, int]]:
    """Return every id that a file like /etc/passwd, /etc/group or /etc/subuid speaks of.

    Parameters
    ----------
    passwd, group, subid
        Files in these formats.

    Returns
    -------
    list of (start, count)
        In the order of the files. Lines that are no such lines are passed over.
    """
    used = [grant for _, grant in _parse_grants(subid)]
    # Third field the user's id, fourth his group's; in a group's line the third is the group's and the fourth its members.
    for data, columns in ((passwd, slice(2, 4)), (group, slice(2, 3))):
        for line in _lines(data):
            numbers = map(_id, line.split(b":")[columns])
            used.extend((number, 1) for number in numbers if number is not None)
    return used


def _parse_grants(data: bytes) -> list[tuple[bytes, tuple[int, int]]]:
    grants = []
    for line in _lines(data):
        name, *numbers = line.split(b":")
        if len(numbers) != 2 or not name:  # noqa: PLR2004 -- start and count
            continue
        start, count = map(_id, numbers)
        if start is not None and count and start + count - 1 <= MAX_ID:
            grants.append((name, (start, count)))
    return grants


def _id(field: bytes) -> int | None:
    try:
        number = _integer(field)
    except ValueError:
        return None
    return number if number <= MAX_ID else None


def parse_stat(data: bytes) -> Stat:
    """Return what /proc/PID/stat says (proc_pid_stat(5))."""
    # The name is between the first and the last parenthesis, and may hold parentheses itself.
    head, opening, rest = data.partition(b" (")
    comm, closing, tail = rest.rpartition(b") ")
    fields = tail.split()
    if not opening or not closing or len(fields) < 36:  # noqa: PLR2004 -- to the exit signal, there since Linux 2.1
        raise ValueError(f"not a /proc/PID/stat: {data[:200]!r}")
    state, *others = fields
    if not (len(state) == 1 and state.isalpha()):
        raise ValueError(f"not the state of a process: {state[:50]!r}")

    def number(position: int) -> int:
        """Return a field by its number in the manual page."""
        return _integer(others[position - 4], signed=True)

    return Stat(
        pid=_integer(head),
        comm=_text(comm),
        state=state.decode("ascii"),
        ppid=number(4),
        pgrp=number(5),
        session=number(6),
        tty=number(7),
        flags=number(9),
        utime=number(14),
        stime=number(15),
        cutime=number(16),
        cstime=number(17),
        threads=number(20),
        starttime=number(22),
        exit_signal=number(38),
    )


def parse_limits(data: bytes) -> Mapping[str, Limit]:
    """Return the lines of /proc/PID/limits by name: ``"Max open files"``."""
    header, *lines = _lines(data) or [b""]
    if not header.startswith(b"Limit "):
        raise ValueError(f"not a /proc/PID/limits: {data[:200]!r}")
    limits = {}
    for line in lines:
        # Columns of a fixed width (fs/proc/base.c, proc_pid_limits): names hold spaces, and a unit may be missing.
        name, values = line[:25].rstrip(), line[26:].split()
        if not name or len(values) not in (2, 3):
            raise ValueError(f"not a line of /proc/PID/limits: {line[:200]!r}")
        soft, hard = (None if value == b"unlimited" else _integer(value) for value in values[:2])
        limits[_text(name)] = Limit(soft, hard, _text(b"".join(values[2:])))
    return limits


def parse_filesystems(data: bytes) -> Mapping[str, bool]:
    """Return the file systems of /proc/filesystems, and whether each needs a block device."""
    systems = {}
    for line in _lines(data):
        prefix, tab, name = line.partition(b"\t")
        if not tab or not name or prefix not in (b"", b"nodev"):
            raise ValueError(f"not a line of /proc/filesystems: {line[:200]!r}")
        systems[_text(name)] = not prefix
    return systems


def parse_fdinfo(data: bytes) -> FdInfo:
    """Return what a file of /proc/PID/fdinfo says (proc_pid_fdinfo(5))."""
    fields = []
    for line in _lines(data):
        name, colon, value = line.partition(b":")
        if not colon:
            raise ValueError(f"not a line of /proc/PID/fdinfo: {line[:200]!r}")
        fields.append((_text(name), value.strip()))
    common = {name: value for name, value in reversed(fields) if name in ("pos", "flags", "mnt_id", "ino")}
    try:
        pos, flags, mnt_id = _integer(common["pos"], signed=True), common["flags"], _integer(common["mnt_id"])
        ino = _integer(common["ino"]) if "ino" in common else None
        return FdInfo(
            pos=pos,
            flags=_integer(flags, base=8),
            mnt_id=mnt_id,
            ino=ino,
            fields=tuple((name, _text(value)) for name, value in fields if name not in common),
        )
    except KeyError as missing:
        raise ValueError(f"not a /proc/PID/fdinfo file, without {missing}: {data[:200]!r}") from None


def parse_cmdline(data: bytes) -> list[str]:
    """Return the arguments in /proc/PID/cmdline; none for a kernel thread or a zombie.

    The process can write anything there (setproctitle), also without the NUL that ends each argument.
    """
    return [_text(argument) for argument in data.removesuffix(b"\0").split(b"\0")] if data else []


def parse_namespace_link(link: str | bytes) -> tuple[str, int]:
    """Return kind and inode number of a namespace from the target of a link in /proc/PID/ns.

    Examples
    --------
    >>> parse_namespace_link("net:[4026531840]")
    ('net', 4026531840)
    """
    match = _NAMESPACE.fullmatch(os.fsdecode(link))
    if match is None or match[1] not in NAMESPACE_KINDS:
        raise ValueError(f"not a namespace: {link[:200]!r}")
    return match[1], int(match[2])
