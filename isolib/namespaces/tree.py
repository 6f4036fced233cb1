"""Which namespaces there are, who owns them, and who is inside: what lsns(8) shows, as a value."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls, procfs
from isolib._kernel.handle import Fd
from isolib.errors import SyscallError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["NamespaceNode", "NamespaceTree", "tree"]

_KINDS: Final = tuple(calls.NAMESPACE_FLAGS)
_OTHER_KINDS: Final = tuple(kind for kind in _KINDS if kind != "mnt")
_WIDTH: Final = 80
"""How much of a command is shown, in characters. All of it is in the value."""


@dataclass(frozen=True, slots=True)
class NamespaceNode:
    """A namespace as others see it.

    Attributes
    ----------
    kind, id
        As those of `Namespace`.
    owner
        The id of the user namespace that owns it; None where that lies outside of the caller's own, or cannot be asked for.
    parent
        Of a pid or user namespace: the id of the one that it is in. Otherwise None.
    processes
        How many processes are in it.
    pid, uid, command
        Of those the one with the lowest pid, the user that it runs as, and its command line (its name, where it has none). The
        process itself determines what its command line says. None, None and "" where there is no process.
    """

    kind: str
    id: int
    owner: int | None
    parent: int | None
    processes: int
    pid: int | None
    uid: int | None
    command: str


@dataclass(frozen=True)
class NamespaceTree:
    """The namespaces of all processes that the caller can ask about, each beneath the user namespace that owns it.

    Iterated over it gives every node once, owners before what they own. ``str()`` is a table, and a notebook shows one.

    Attributes
    ----------
    namespaces
        By id.
    unreadable
        How many processes did not let themselves be asked. Namespaces that have no others are missing.
    """

    namespaces: dict[int, NamespaceNode]
    unreadable: int = 0
    _children: dict[int | None, list[NamespaceNode]] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        for node in sorted(self.namespaces.values(), key=_order):
            self._children.setdefault(node.owner if node.owner in self.namespaces else None, []).append(node)

    @property
    def roots(self) -> tuple[NamespaceNode, ...]:
        """The namespaces whose owners are not known: for root on the host, the one first user namespace."""
        return tuple(self._children.get(None, ()))

    def children(self, node: NamespaceNode) -> tuple[NamespaceNode, ...]:
        """Return the namespaces that a user namespace owns, further user namespaces last; of any other kind, none."""
        return tuple(self._children.get(node.id, ()))

    def __getitem__(self, number: int) -> NamespaceNode:
        return self.namespaces[number]

    def __contains__(self, number: object) -> bool:
        return number in self.namespaces

    def __len__(self) -> int:
        return len(self.namespaces)

    def __iter__(self) -> Iterator[NamespaceNode]:
        return (node for node, *_ in self._walk())

    def _walk(self) -> Iterator[tuple[NamespaceNode, int, str]]:
        """Give every node, its depth and the lines that lead to it."""
        waiting = [(node, 0, "") for node in reversed(self.roots)]
        while waiting:
            node, depth, lines = waiting.pop()
            yield node, depth, lines
            # What leads further down: a corner has nothing beneath it.
            trunk = lines.replace("├─", "│ ").replace("└─", "  ")
            below = self.children(node)
            waiting += [(each, depth + 1, trunk + ("├─" if each is not below[-1] else "└─")) for each in reversed(below)]

    def __str__(self) -> str:
        rows = [("NAMESPACE", "PROCESSES", "PID", "UID", "COMMAND")]
        for node, _, lines in self._walk():
            rows.append((f"{lines}{node.kind} {node.id}", *_cells(node)))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        text = [
            f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}  {row[4]}".rstrip()
            for row in rows
        ]
        return "\n".join([*text, *self._footer()])

    def _footer(self) -> list[str]:
        if not self.unreadable:
            return []
        what = "1 process is" if self.unreadable == 1 else f"{self.unreadable} processes are"
        return [f"{what} missing: that needs the right to ptrace (CAP_SYS_PTRACE)"]

    def _repr_html_(self) -> str:
        # No colour of its own, so that it can be read on any background; nothing is loaded from anywhere.
        cell = "text-align:left;padding:0 1em 0 0;border:0;background:none;color:inherit"
        number = cell.replace("left", "right")
        head = "".join(
            f'<th style="{style};border-bottom:1px solid currentColor">{title}</th>'
            for style, title in zip((cell, number, number, number, cell), _TITLES, strict=True)
        )
        rows = []
        for node, depth, _ in self._walk():
            processes, pid, uid, command = map(escape, _cells(node))
            name = f'<span style="padding-left:{depth * 1.5}em">{node.kind}&nbsp;<code>{node.id}</code></span>'
            numbers = "".join(f'<td style="{number}">{each}</td>' for each in (processes, pid, uid))
            rows.append(f'<tr><td style="{cell}">{name}</td>{numbers}<td style="{cell}"><code>{command}</code></td></tr>')
        footer = "".join(f'<p style="opacity:0.7">{escape(line)}</p>' for line in self._footer())
        table = f'<table style="border-collapse:collapse"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
        return f"<div>{table}{footer}</div>"


_TITLES: Final = ("Namespace", "Processes", "PID", "UID", "Command")


def _order(node: NamespaceNode) -> tuple[bool, int, int]:
    return node.kind == "user", _KINDS.index(node.kind), node.id


def _cells(node: NamespaceNode) -> tuple[str, str, str, str]:
    # A process may have any name, an escape sequence for the terminal among them.
    shown = "".join(each if each.isprintable() else repr(each)[1:-1] for each in node.command[: _WIDTH + 1])
    if len(shown) > _WIDTH:
        shown = shown[: _WIDTH - 1] + "…"
    return str(node.processes), _or_dash(node.pid), _or_dash(node.uid), shown


def _or_dash(number: int | None) -> str:
    return "-" if number is None else str(number)


def tree() -> NamespaceTree:
    """Look through /proc for all namespaces, and ask the kernel who owns them.

    Returns
    -------
    NamespaceTree
        As it was at that moment, or in the milliseconds about it: processes come and go meanwhile. Namespaces without
        processes are in it when they own, or are the parents of, others; those that only descriptors and pins keep are not.

    Raises
    ------
    SyscallError
        /proc cannot be read.

    Notes
    -----
    Nothing happens to the caller. Privileges: none for the caller's own processes, CAP_SYS_PTRACE for others. Kernel:
    /proc/PID/ns, ioctl_nsfs(2). Source: lsns(8).

    Examples
    --------
    >>> import os
    >>> here = os.stat("/proc/self/ns/net").st_ino
    >>> tree()[here].kind
    'net'
    """
    scan = _Scan()
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            scan.add_process(int(entry))
    scan.ask_for_owners()
    return NamespaceTree({number: scan.node(number) for number in sorted(scan.kinds)}, scan.unreadable)


class _Scan:
    """What has been found so far."""

    def __init__(self) -> None:
        self.kinds: dict[int, str] = {}
        self.pids: dict[int, list[int]] = {}
        self.owners: dict[int, int | None] = {}
        self.parents: dict[int, int | None] = {}
        self.unreadable = 0

    def add_process(self, pid: int) -> None:
        try:
            # First the one kind that every kernel has. It goes when a process ends, so one that has only a user namespace,
            # and waits to be reaped, does not count.
            found = {"mnt": _number(pid, "mnt")}
            for kind in _OTHER_KINDS:
                with suppress(FileNotFoundError):
                    found[kind] = _number(pid, kind)
        except PermissionError:
            self.unreadable += 1
            return
        except OSError:
            return
        for kind, number in found.items():
            self.kinds[number] = kind
            self.pids.setdefault(number, []).append(pid)

    def ask_for_owners(self) -> None:
        for number, kind in list(self.kinds.items()):
            # The lowest may have ended by now, and its pid may even be somebody else's.
            pids = sorted(self.pids[number])
            opened = ((pid, _open_namespace(pid, kind, number)) for pid in pids)
            pid, fd = next(((pid, fd) for pid, fd in opened if fd is not None), (0, None))
            if fd is None:  # it went with the last of them
                del self.kinds[number], self.pids[number]
                continue
            with fd:
                self.pids[number] = pids[pids.index(pid) :]
                self._ask(fd, number)

    def _ask(self, fd: Fd, number: int) -> None:
        kind = self.kinds[number]
        self.owners[number] = self._follow(calls.namespace_owner, fd, "user")
        if kind == "user":
            self.parents[number] = self.owners[number]
        elif kind == "pid":
            self.parents[number] = self._follow(calls.namespace_parent, fd, "pid")

    def _follow(self, ask: Callable[[int], Fd], fd: Fd, kind: str) -> int | None:
        """Return who is owner or parent; who has not been seen yet is taken note of, and asked in turn."""
        try:
            found = ask(fd.fileno())
        except SyscallError:  # outside of our own, or the first
            return None
        with found:
            number = os.fstat(found.fileno()).st_ino
            if number not in self.kinds:
                self.kinds[number] = kind
                self.pids[number] = []
                self._ask(found, number)
        return number

    def node(self, number: int) -> NamespaceNode:
        pids = self.pids[number]
        pid = pids[0] if pids else None
        return NamespaceNode(
            kind=self.kinds[number],
            id=number,
            owner=self.owners.get(number),
            parent=self.parents.get(number),
            processes=len(pids),
            pid=pid,
            uid=None if pid is None else _uid(pid),
            command="" if pid is None else _command(pid),
        )


def _number(pid: int, kind: str) -> int:
    return procfs.parse_namespace_link(os.readlink(f"/proc/{pid}/ns/{kind}"))[1]


def _open_namespace(pid: int, kind: str, number: int) -> Fd | None:
    try:
        fd = Fd.take(os.open, f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    return fd if fd is not None and os.fstat(fd.fileno()).st_ino == number else None


def _uid(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def _command(pid: int) -> str:
    try:
        words = procfs.parse_cmdline(_read(f"/proc/{pid}/cmdline"))
        return " ".join(words) if words else procfs.parse_stat(_read(f"/proc/{pid}/stat")).comm
    except (OSError, ValueError):
        return ""


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
