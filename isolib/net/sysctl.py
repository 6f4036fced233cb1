"""The settings of a network namespace: what lies in /proc/sys/net there (sysctl(8)).

Those of a namespace of ours die with it.  Those of a namespace that stays are changed by `hold`, which puts them back.
"""

from __future__ import annotations

import os
from errno import EINVAL, ENOENT
from functools import partial
from threading import RLock
from typing import TYPE_CHECKING, Final, NamedTuple
from weakref import WeakValueDictionary

from isolib._kernel import reaper
from isolib._kernel.handle import Fd, Handle, Rollback, home
from isolib._kernel.hints import typed
from isolib._kernel.holders import Held, Holders
from isolib._kernel.sockets import open_file_in
from isolib.errors import PlanError, SyscallError, from_errno
from isolib.net.where import check_namespace

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    from isolib.types import HasFileno

    Value: TypeAlias = str | int | bool | Sequence[int]

__all__ = ["HeldSetting", "Sysctls", "check_setting", "hold", "no_advertisements", "no_forwarding"]

FORWARDING: Final = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}
"""By the version of IP, whether packets are passed on."""

_TOP: Final = "/proc/sys"
#: Where what the kernel changes with forwarding lies: of each link, and for links to come.
_LINKS: Final = {
    f"{_TOP}/net/ipv4/ip_forward": f"{_TOP}/net/ipv4/conf",
    f"{_TOP}/net/ipv4/conf/all/forwarding": f"{_TOP}/net/ipv4/conf",
    f"{_TOP}/net/ipv6/conf/all/forwarding": f"{_TOP}/net/ipv6/conf",
}
#: No link's name.  It stands for whether redirects are believed: of IPv4 alone the kernel changes that too.
_ALL: Final = "all"
_PAGE: Final = 4096
_LONGEST: Final = 16 * _PAGE
_NO_SETTING: Final = "this kernel has no such setting here, or the link that it is of does not exist"
_NO_VALUE: Final = "the setting cannot have this value"


def check_setting(name: str) -> str:
    """Return the path of a setting below /proc/sys.

    Parameters
    ----------
    name
        With dots or slashes, with "net" before it or without: the first of them to come separates, as in sysctl(8), and the
        other one stands for the first in the name of a link: "net.ipv4.conf.eth0/100.forwarding" is that of eth0.100.

    Raises
    ------
    PlanError
        It is no name, or it leads elsewhere.

    Examples
    --------
    >>> check_setting("net.ipv4.ip_forward"), check_setting("ipv4/conf/eth0.100/forwarding")
    ('net/ipv4/ip_forward', 'net/ipv4/conf/eth0.100/forwarding')
    """
    if not isinstance(name, str):
        raise PlanError(f"name: the name of a setting is a str, such as 'net.ipv4.ip_forward', not {name!r}")
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        raise PlanError(f"name: this name cannot be written in bytes: {name!r}") from None
    dot, slash = name.find("."), name.find("/")
    if dot >= 0 and (slash < 0 or dot < slash):
        name = name.translate({ord("."): "/", ord("/"): "."})
    parts = name.split("/")
    if parts[0] != "net":
        parts.insert(0, "net")
    if len(parts) < 2 or any(part in {"", ".", ".."} or not part.isprintable() for part in parts):  # noqa: PLR2004
        raise PlanError(f"name: not the name of a setting of a network, such as 'net.ipv4.ip_forward': {name!r}")
    if len(os.fsencode("/".join((_TOP, *parts)))) >= _PAGE:
        raise PlanError("name: longer than a path can be")
    return "/".join(parts)


def _check_value(value: Value) -> str:
    given: object = value
    if isinstance(given, (tuple, list)):
        if not given or not all(isinstance(number, int) for number in given):
            raise PlanError(f"value: several numbers are wanted, not {value!r}")
        return "\t".join(str(int(number)) for number in given)
    if isinstance(given, int):
        return str(int(given))
    if not isinstance(given, str):
        raise PlanError(f"value: a text, a number or several are wanted, not {value!r}")
    try:
        length = len(given.encode())
    except UnicodeEncodeError:
        raise PlanError(f"value: this text cannot be written in bytes: {value!r}") from None
    if not 0 < length < _PAGE or "\0" in given or "\n" in given:
        raise PlanError(f"value: a setting is one line of 1 to {_PAGE - 1} bytes, not {value!r}")
    return given


class Sysctls:
    """The settings of a network namespace, by name: texts, as the kernel writes them.

    Each access opens the file in the namespace: no setting is read or written in another one.

    Parameters
    ----------
    ns
        A handle of the namespace; None: that in which the calling thread is when it asks.

    Raises
    ------
    PlanError
        A name is no setting's, or a value is none.
    SyscallError, SetupFailed
        The kernel refused.  ENOENT: there is no such setting; EINVAL: not with this value.
    ClosedError
        The handle is closed.

    Notes
    -----
    Privileges: CAP_SYS_ADMIN over another namespace to read, CAP_NET_ADMIN over any to write; its owner has both.  What is
    written stays: `hold` puts it back.  Some settings are the whole host's, and are not there in other namespaces than its
    first.  Sources: sysctl(8), Documentation/networking/ip-sysctl.rst.

    Examples
    --------
    >>> from isolib import new_netns
    >>> ns = new_netns()
    >>> settings = Sysctls(ns)
    >>> settings["net.ipv4.ip_forward"] = True
    >>> settings["net.ipv4.ip_forward"]
    '1'
    >>> ns.close()
    """

    __slots__ = ("_net",)

    def __init__(self, ns: HasFileno | None = None) -> None:
        self._net = check_namespace(ns, "ns")

    def __repr__(self) -> str:
        return f"<Sysctls of {self._net!r}>" if self._net is not None else "<Sysctls here>"

    @typed("a setting")
    def __getitem__(self, name: str) -> str:
        path = f"{_TOP}/{check_setting(name)}"
        with _opened(self._net, path, os.O_RDONLY) as file:
            return _read(file, path)

    @typed("a setting")
    def __setitem__(self, name: str, value: Value) -> None:
        path, text = f"{_TOP}/{check_setting(name)}", _check_value(value)
        with _opened(self._net, path, os.O_WRONLY) as file:
            _write(file, path, text)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    def get(self, name: str, default: str | None = None) -> str | None:
        """Return a setting, or something else where there is none of this name."""
        try:
            return self[name]
        except SyscallError as error:
            if error.errno != ENOENT:
                raise
            return default

    def number(self, name: str) -> int:
        """Return a setting that is one number.

        Raises
        ------
        ValueError
            It is something else.
        """
        return int(self[name])

    def numbers(self, name: str) -> tuple[int, ...]:
        """Return a setting that is several numbers: "net.ipv4.ip_local_port_range".

        Raises
        ------
        ValueError
            It is something else.
        """
        return tuple(map(int, self[name].split()))


def no_advertisements(link: str) -> tuple[str, str]:
    """Return the setting, and its value, by which a link takes no address and no route from who claims to be a router.

    Without IPv6 there is none, and no advertisement.
    """
    return f"{_TOP}/net/ipv6/conf/{link}/accept_ra", "0"


def no_forwarding(version: int) -> tuple[str, str]:
    """Return the setting, and its value, by which a namespace passes no packets on; without IPv6 there is none for that."""
    return f"{_TOP}/{FORWARDING[version].replace('.', '/')}", "0"


def _opened(net: HasFileno | None, path: str, flags: int) -> Fd:
    try:
        return open_file_in(net, path, flags)
    except SyscallError as error:
        if error.errno != ENOENT:
            raise
        raise from_errno("open", path, ENOENT, _NO_SETTING) from None


def _read(file: Fd, path: str) -> str:
    try:
        return os.pread(file.fileno(), _LONGEST, 0).decode("utf-8", "surrogateescape").strip()
    except OSError as error:
        raise from_errno("read", path, error.errno or 0) from None


def _write(file: Fd, path: str, text: str) -> None:
    try:
        # A whole line: of an empty text alone the kernel would not hear.
        os.pwrite(file.fileno(), f"{text}\n".encode("utf-8", "surrogateescape"), 0)
    except OSError as error:
        errno = error.errno or 0
        raise from_errno("write", path, errno, _NO_VALUE if errno == EINVAL else None) from None


# ---- settings of a namespace that stays ----


class _Shared:
    """A setting that this process holds, for as long as somebody in it needs it."""

    def __init__(self) -> None:
        self._lock = RLock()  # a finalizer may come here in the midst of anything
        self._users: set[int] = set()
        self._undo: Rollback | None = None
        self.value = ""

    def join(self, user: int, net: HasFileno | None, path: str, value: str) -> None:
        """Hold it, unless another user does."""
        with self._lock:
            if self._undo and not _is_same(self.value, value):
                raise PlanError(f"value: {path} is held at {self.value!r} by another user in this program, not {value!r}")
            self._users.add(user)
            if not self._undo:  # or whoever has undone it was interrupted then, and comes again
                self._change(net, path, value)

    def leave(self, user: int) -> None:
        """Let it go, unless another user needs it still."""
        with self._lock:
            self._users.discard(user)
            undo = self._undo
            if self._users or undo is None:
                return
            undo.unwind()
            self._undo = None

    def _change(self, net: HasFileno | None, path: str, value: str) -> None:
        with Rollback() as undo:
            file = undo.adopt(_opened(net, path, os.O_RDWR))
            holders = Holders(file, path)
            undo.push(holders.clear)
            with holders.door():
                others, now = holders.others(), _read(file, path)
                if others is not None and not _is_same(others.value, value):
                    raise PlanError(f"value: {path} is held at {others.value!r} by another program, not {value!r}")
                if others is not None:
                    held = others._replace(value=value)
                else:
                    held = Held(now, value, _own_ways(net, path) if (now, value) == ("0", "1") else "")
                if not _is_same(held.old, value):
                    own, beside = _Value(file, path, held.old, value), _beside(undo, net, path, held)
                    if not getattr(net, "made_here", False):
                        for one in beside:
                            reaper.entrust_setting(*one.row, lambda ticket: undo.push(ticket.strike), beside=True)
                        reaper.entrust_setting(*own.row, lambda ticket: undo.push(ticket.strike))
                    undo.push(_put_back, holders, own, beside, [])
                    holders.join(held)
                if not _is_same(now, value):
                    _put(file, path, value, now)
            self.value = value
            self._undo = undo
            undo.keep()


class _Value(NamedTuple):
    """What a setting is to be given back, and what it has then: its own, or what the kernel made of it with another one's."""

    file: Fd
    path: str
    old: str
    value: str

    @property
    def row(self) -> tuple[int, str, str]:
        """As the reaper is told."""
        return self.file.fileno(), self.old, self.value

    def has(self, value: str) -> bool:
        """Return whether it has a value; that of a link that has gone has none."""
        return _is_at(self.file, self.path, value)

    def give_back(self) -> None:
        """Give it what it was."""
        _write(self.file, self.path, self.old)


def _own_ways(net: HasFileno | None, path: str) -> str:
    """Return which links pass packets on by a setting of their own, and whether redirects are not believed.

    The kernel switches all of it with forwarding, and does not remember what it was (inet_forward_change, net/ipv4/devinet.c).
    """
    links = _LINKS.get(path)
    if links is None:
        return ""
    with _opened(net, links, os.O_RDONLY | os.O_DIRECTORY) as directory:
        names = sorted(set(os.listdir(directory.fileno())) - {_ALL})
        found = [name for name in names if _look(directory, f"{name}/forwarding") == "1"]
        if "ipv4" in links and _look(directory, f"{_ALL}/accept_redirects") == "0":
            found.append(_ALL)
    return " ".join(found)


def _look(directory: Fd, name: str) -> str:
    try:
        opened = Fd.take(partial(os.open, dir_fd=directory.fileno()), name, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # the link has gone
        return ""
    assert opened is not None  # noqa: S101 - os.open raises
    with opened:
        return _read(opened, name)


def _beside(undo: Rollback, net: HasFileno | None, path: str, held: Held) -> list[_Value]:
    """Return what is to be put right when a setting is given back."""
    found = []
    for word in held.beside.split():
        what, *values = ("accept_redirects", "0", "1") if word == _ALL else ("forwarding", "1", "0")
        own = f"{_LINKS[path]}/{word}/{what}"
        try:
            file = undo.adopt(_opened(net, own, os.O_RDWR))
        except SyscallError as error:
            if error.errno != ENOENT:  # the link has gone
                raise
        else:
            found.append(_Value(file, own, *values))
    return found


def _put(file: Fd, path: str, value: str, before: str) -> None:
    _write(file, path, value)
    if not _is_at(file, path, value):  # it would not be known again as what was put there, and stay
        found = _read(file, path)
        _write(file, path, before)
        raise PlanError(f"value: {path} is {found!r} when {value!r} is written to it: hold it at that")


def _put_back(holders: Holders, own: _Value, beside: Sequence[_Value], unchanged: list[_Value]) -> None:
    """Give a setting back, and what the kernel changes with it; interrupted in between, the list says what that is."""
    with holders.door(going=True):
        if holders.others() is None:
            if own.has(own.value):  # what somebody has changed since, who wanted it so, stays
                unchanged[:] = [one for one in beside if one.has(one.old)]
                own.give_back()
            for one in unchanged:
                if one.has(one.value):
                    one.give_back()
        holders.leave()


def _is_at(file: Fd, path: str, value: str) -> bool:
    try:
        return _is_same(_read(file, path), value)
    except SyscallError as error:
        if error.errno != ENOENT:
            raise
        return False


def _is_same(one: str, other: str) -> bool:
    """Return whether both are one value, however what is between its numbers is written."""
    return one.split() == other.split()


_held: Final[WeakValueDictionary[tuple[object, ...], _Shared]] = WeakValueDictionary()


class HeldSetting(Handle, made_by="isolib.net.sysctl.hold()"):
    """A setting that has a value for as long as somebody needs it."""

    def __init__(self, path: str, value: str, undo: Rollback) -> None:
        super().__init__()
        self._path = path
        self._value = value
        self._undo = undo

    def _release(self) -> None:
        self._undo.unwind()

    def _describe(self) -> str:
        return f"{self._path} = {self._value}"


@typed("a setting")
def hold(name: str, value: Value, *, ns: HasFileno | None = None) -> HeldSetting:
    """Give a setting of a namespace that stays a value, and put the old one back when nobody needs it any more.

    Several users, in this program and in others, may hold one setting of one namespace at one value: the last one to close puts
    back what was there before the first, and so does the reaper of a program that is killed.  Where it has the value already,
    and nobody holds it, nothing is changed and nothing put back; and what somebody else has set meanwhile stays.

    With forwarding the kernel switches that of each link, and whether redirects are believed: what was set otherwise there is
    put back too.

    Programs know of each other by locks on the setting's file, so they must have the same procfs: one in a container with a
    /proc of its own, but in the same network namespace, is not seen, and does not see the others.

    Parameters
    ----------
    name, ns
        As in `Sysctls`.
    value
        What it is to be, as the kernel writes it; between several numbers, spaces or tabs.

    Returns
    -------
    HeldSetting
        To be closed.

    Raises
    ------
    PlanError
        It is no setting's name or no value, or the kernel writes it otherwise ("01"); or somebody holds it at another one, in
        this program or another.
    SyscallError, SetupFailed, ClosedError
        As in `Sysctls`; nothing has changed.  EAGAIN: a process keeps a lock on it that is no holder's.

    Examples
    --------
    >>> from isolib import new_netns
    >>> ns = new_netns()
    >>> with hold("net.ipv4.ip_forward", 1, ns=ns):
    ...     Sysctls(ns)["net.ipv4.ip_forward"]
    '1'
    >>> ns.close()
    """
    path, text = f"{_TOP}/{check_setting(name)}", _check_value(value)
    net = check_namespace(ns, "ns")
    status = os.stat("/proc/thread-self/ns/net") if net is None else os.fstat(net.fileno())
    shared = _held.setdefault((home(), status.st_dev, status.st_ino, path), _Shared())
    with Rollback() as undo:
        undo.push(shared.leave, id(undo))
        shared.join(id(undo), net, path, text)
        held = HeldSetting._make(path, text, undo)
        undo.keep()
    return held
