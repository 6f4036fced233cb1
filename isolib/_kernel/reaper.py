"""The reaper, as its host sees it: what no descriptor can own is entrusted to it before it is made, and struck when it is gone.

The reaper is one small process beside this one, started when something is entrusted for the first time (`native/reap.c`). It
sleeps until this process has ended, by whatever: then it ends what is in the directories that are entrusted still, removes
them, and links, gives settings their values back, and ends too. One exception: where this process is PID 1 of a pid namespace,
the kernel ends the reaper with it.

What is entrusted stands in memory that both share, so recording it and striking it are stores: no system call, nobody is woken,
and the GIL is not given away. An entry's body is written first, and the word that makes it count last; an aligned word of four
bytes is written as a whole on every processor that isolib knows. Nothing orders the two for other processors, and nothing needs
to: the reaper looks when it has learned of this process's end, and learns with it all that was stored before.
"""

from __future__ import annotations

import fcntl
import os
import resource
import stat
import sys
from collections import deque
from contextlib import suppress
from functools import partial
from itertools import count
from struct import Struct
from threading import RLock
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary, ref

from isolib._kernel import calls
from isolib._kernel.handle import Fd, home
from isolib._kernel.launch import launch
from isolib._kernel.plan import REAP, Builder
from isolib.errors import IsolibError, PlanError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from isolib._kernel.launch import Launched

#: What follows an entry's state: kind, number of bases, nothing, the bases, the name.
_BODY: Final = Struct(f"=III{calls.ENTRY_BASES}H256s")
_NAME_MAX: Final = 255
_LIVE: Final = 1
_WORD: Final = 4
_HIGH: Final = calls.TABLE_HIGH // _WORD
_OWNER: Final = calls.TABLE_OWNER // _WORD
_GUARD: Final = calls.TABLE_GUARD // _WORD

#: What an entry of each kind is looked up in.
_WANTED: Final = {
    calls.ENTRY_CGROUP: "a directory of cgroups",
    calls.ENTRY_LINK: "a netlink socket",
    calls.ENTRY_SETTING: "an open file of /proc/sys",
    calls.ENTRY_BESIDE: "an open file of /proc/sys",
    calls.ENTRY_MOUNT: "the root of a mount, a directory",
}
_FITS: Final = {
    calls.ENTRY_CGROUP: stat.S_ISDIR,
    calls.ENTRY_LINK: stat.S_ISSOCK,
    calls.ENTRY_SETTING: stat.S_ISREG,
    calls.ENTRY_BESIDE: stat.S_ISREG,
    calls.ENTRY_MOUNT: stat.S_ISDIR,
}
_MAGICS: Final = {
    calls.ENTRY_CGROUP: calls.CGROUP_MAGICS,
    calls.ENTRY_LINK: {calls.SOCKFS_MAGIC},
    calls.ENTRY_SETTING: {calls.PROC_SUPER_MAGIC},
    calls.ENTRY_BESIDE: {calls.PROC_SUPER_MAGIC},
}

#: Directories that stay known when nobody uses them: who makes one group after the other need not send them each time.
_KEPT: Final = 32
#: Descriptors that the reaper needs beside those of directories, most of them to walk down a tree.
_OTHERS: Final = 160
_LOWEST: Final = 3
#: Milliseconds for the reaper to answer; it does so at once, if nobody has stopped it.
_ANSWERS_WITHIN: Final = 1000


class _Base:
    """A directory, socket or file that the reaper knows by a number; both are let go when nobody uses this any more.

    It has no finalizer: while one runs, another thread may still find the object, and use what is let go.
    """

    __slots__ = ("__weakref__", "fd", "index", "kind")

    def __init__(self, fd: Fd, index: int, kind: int) -> None:
        self.fd = fd
        self.index = index
        self.kind = kind


class Ticket:
    """The proof that something is entrusted; `strike` takes it back."""

    __slots__ = ("_bases", "_index", "_reaper")

    def __init__(self, reaper: _Reaper, index: int, bases: tuple[_Base, ...]) -> None:
        self._reaper = reaper
        self._index = index
        self._bases = bases  # whose numbers stay theirs until then

    def strike(self) -> None:
        """Say that it is gone, or another's business from now on. Again is nothing, and so it is in a fork of the process."""
        reaper = self._reaper
        if reaper.home != home():
            return
        with reaper.lock:
            if reaper.live.get(self._index) is self:
                reaper.words[reaper.word_of(self._index)] = 0
                # Interrupted from here on, it is an entry less; the first line bears being run again.
                del reaper.live[self._index]
                reaper.free.append(self._index)

    def let_go(self) -> None:
        """Strike it, and return when the reaper has closed its own descriptors for it, which kept something busy."""
        self.strike()
        if self._reaper.home == home():
            for base in self._bases:
                self._reaper.let_go_now(base)


def _encoded(name: str | bytes) -> bytes:
    encoded = name if isinstance(name, bytes) else os.fsencode(name)
    if b"/" in encoded or b"\0" in encoded or encoded in {b"", b".", b".."} or len(encoded) > _NAME_MAX:
        raise PlanError(f"not the name of a directory: {name!r}")
    return encoded


def _speaks_netlink(fd: int) -> bool:
    from socket import AF_NETLINK, fromfd  # noqa: PLC0415 - only who makes networks pays for it

    with fromfd(fd, -1, -1) as twin:  # which asks the kernel of what family it is
        return twin.family == AF_NETLINK


class Place:
    """Parent directories, one for each hierarchy, in which things of one name are made; looked at once for all of them."""

    __slots__ = ("_bases", "_reaper", "_row")

    def __init__(self, reaper: _Reaper, bases: tuple[_Base, ...]) -> None:
        self._settle(reaper, bases)

    def _settle(self, reaper: _Reaper, bases: tuple[_Base, ...]) -> None:
        numbers = [base.index for base in bases] + [0] * (calls.ENTRY_BASES - len(bases))
        self._reaper, self._bases, self._row = reaper, bases, (calls.ENTRY_CGROUP, len(bases), 0, *numbers)

    def entrust(self, name: str | bytes, keep: Callable[[Ticket], object] | None = None) -> Ticket:
        """Have the directories of this name removed when this process is gone; as :func:`entrust`."""
        encoded = _encoded(name)
        reaper = self._reaper
        if reaper.home != home():  # this is a fork: the directories are the same, the reaper is another
            reaper = _own()
            self._settle(reaper, reaper.bases([base.fd.fileno() for base in self._bases]))
        return reaper.record(self._row, self._bases, encoded, keep)


class _Reaper:
    """The table of this process, and the process that guards it."""

    def __init__(self) -> None:
        self.home = home()
        self.lock = RLock()  # a finalizer may strike in the midst of anything here
        self.table = calls.new_table()
        self.bytes = calls.map_table(self.table.fileno())
        self.words = self.bytes.cast("I")
        self.live: dict[int, Ticket] = {}
        self.free: list[int] = []
        self._high = count()
        self._answers = count(1)
        self.launched: Launched | None = None
        # One setting may be known twice: the locks of who holds it are those of his own open file.
        self._known: WeakValueDictionary[tuple[int, int, bool], _Base] = WeakValueDictionary()
        self._watched: dict[int, ref[_Base]] = {}
        self._recent: deque[_Base] = deque(maxlen=_KEPT)
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        most = calls.TABLE_BASES if hard == resource.RLIM_INFINITY else max(1, min(calls.TABLE_BASES, hard - _OTHERS))
        self._numbers = range(most)

    @staticmethod
    def word_of(index: int) -> int:
        """Return where the state of an entry stands."""
        return (calls.TABLE_HEADER + index * calls.ENTRY_SIZE) // _WORD

    def record(
        self, row: tuple[int, ...], bases: tuple[_Base, ...], name: bytes, keep: Callable[[Ticket], object] | None
    ) -> Ticket:
        """Write an entry."""
        with self.lock:
            if not self._is_guarded:
                self._start()
            index = self.free.pop() if self.free else self._next()
            ticket = Ticket(self, index, bases)
            if keep is not None:
                keep(ticket)
            word = self.word_of(index)
            _BODY.pack_into(self.bytes, word * _WORD + calls.ENTRY_BODY, *row, name)
            self.live[index] = ticket
            self.words[word] = _LIVE
            return ticket

    def _next(self) -> int:
        index = next(self._high)
        if index >= calls.TABLE_ENTRIES:
            self._high = count(calls.TABLE_ENTRIES)
            raise IsolibError(f"{calls.TABLE_ENTRIES} things are entrusted to the reaper, and there is room for no more")
        self.words[_HIGH] = index + 1
        return index

    @property
    def _is_guarded(self) -> bool:
        return self.words[_GUARD] != 0 and not self.words[_OWNER] & calls.OWNER_DIED

    def running(self) -> Launched:
        """Return the process, started if there is none."""
        with self.lock:
            return self.launched if self.launched and self._is_guarded else self._start()

    def _start(self) -> Launched:
        """Start the process, or another one for the same table where somebody has ended it."""
        self.words[_GUARD] = 0
        before = self.launched
        if before is not None:
            before.end()
        self.launched = None
        self.words[_OWNER] = 0
        builder = Builder()
        table = builder.declare(self.table.fileno(), "table of the reaper")
        launched = launch(builder.build(REAP._replace(fd=table)), builder.fds)
        for base in self._known.values():
            calls.send_base(launched.status, base.index, base.fd.fileno(), base.kind)
        # What is interrupted before this is forgotten with its socket, and the process that it has made sees that.
        self.launched = launched
        self.words[_GUARD] = launched.supervisor_pid
        return launched

    def bases(self, fds: Sequence[int], kind: int = calls.ENTRY_CGROUP) -> tuple[_Base, ...]:
        """Return what the reaper knows these descriptors by, which it is told of those that it does not know."""
        if not 0 < len(fds) <= calls.ENTRY_BASES:
            raise PlanError(f"{len(fds)} parent directories; 1 to {calls.ENTRY_BASES} are possible")
        with self.lock:
            return tuple([self._base(fd, kind) for fd in fds])

    def _base(self, fd: int, kind: int) -> _Base:
        status = os.fstat(fd)
        if kind == calls.ENTRY_MOUNT:  # of which several have the same root
            return self._new_base(fd, status, kind)
        found = self._known.get((status.st_dev, status.st_ino, kind == calls.ENTRY_BESIDE))
        if found is not None and found.kind != kind:
            raise PlanError(f"descriptor {fd} is not {_WANTED[kind]}")
        return self._new_base(fd, status, kind) if found is None else found

    def _new_base(self, fd: int, status: os.stat_result, kind: int) -> _Base:
        if not _FITS[kind](status.st_mode) or (kind in _MAGICS and calls.fs_magic(fd) not in _MAGICS[kind]):
            raise PlanError(f"descriptor {fd} is not {_WANTED[kind]}")
        if kind == calls.ENTRY_LINK and not _speaks_netlink(fd):
            raise PlanError(f"descriptor {fd} is not {_WANTED[kind]}")
        number = self._free_number()
        if number is None:
            self._recent.clear()
            number = self._free_number()
        if number is None:
            raise IsolibError("things in too many parent directories are entrusted to the reaper: it can hold no more open")
        own = Fd.take(fcntl.fcntl, fd, fcntl.F_DUPFD_CLOEXEC, _LOWEST)
        assert own is not None  # noqa: S101 - fcntl raises
        base = _Base(own, number, kind)
        self._watched[number] = ref(base, partial(self._let_go, number))
        calls.send_base(self.running().status, base.index, own.fileno(), kind)
        is_beside = kind == calls.ENTRY_BESIDE
        key = (-1, number, False) if kind == calls.ENTRY_MOUNT else (status.st_dev, status.st_ino, is_beside)
        self._known[key] = base  # now: it counts as told from here on
        if kind == calls.ENTRY_CGROUP:  # a socket would keep its namespace alive
            self._recent.append(base)
        return base

    def _free_number(self) -> int | None:
        """Return a number that no base has, however it has gone: who lets go may have been interrupted."""
        for number in self._numbers:
            watched = self._watched.get(number)
            if watched is None or watched() is None:
                return number
        return None

    def _let_go(self, number: int, gone: ref[_Base]) -> None:
        """Have the reaper close what it knew by a number, unless another has that by now."""
        if self.launched is None or sys.is_finalizing():
            return
        with self.lock:
            if self._watched.get(number) is gone:
                with suppress(OSError):  # it was killed: the next one will not be told of this
                    calls.send_base(self.launched.status, number, -1)
                del self._watched[number]

    def let_go_now(self, base: _Base) -> None:
        """Have the reaper close what a ticket was for, and wait until it has: what it had open is busy no more."""
        with self.lock:
            watched = self._watched.get(base.index)
            if self.launched is None or watched is None or watched() is not base:
                return
            answer = next(self._answers)
            with suppress(OSError):  # it was killed: then it is closed
                calls.send_base(self.launched.status, base.index, -1, answer=answer)
                calls.await_answer(self.launched.status, answer, _ANSWERS_WITHIN)
            del self._watched[base.index]
            self._known.pop((-1, base.index, False), None)

    def forget(self) -> None:
        """Let go of everything, in a fork of the process."""
        launched, self.launched = self.launched, None
        if launched is not None:
            launched.close()
        self.words.release()
        self.bytes.release()
        self.table.close()

    @property
    def descriptors(self) -> set[int]:
        """What stays open for the life of this process."""
        ours = {self.table.fileno(), *(base.fd.fileno() for base in self._known.values())}
        return ours | ({self.launched.status, self.launched.pidfd} if self.launched else set())


_reapers: dict[tuple[int, int], _Reaper] = {}


def _own() -> _Reaper:
    key = home()
    # Of two threads that come here at once one has made an empty table for nothing.
    return _reapers.get(key) or _reapers.setdefault(key, _Reaper())


def _forget_after_fork() -> None:
    for reaper in _reapers.values():
        reaper.forget()
    _reapers.clear()


os.register_at_fork(after_in_child=_forget_after_fork)


def place(bases: Sequence[int]) -> Place:
    """Return a place to entrust things in: one look at the directories for all of them.

    Parameters
    ----------
    bases
        Descriptors of the parent directories in file systems of cgroups, which stay the caller's.
    """
    reaper = _own()
    return Place(reaper, reaper.bases(bases))


def entrust(bases: Sequence[int], name: str | bytes, keep: Callable[[Ticket], object] | None = None) -> Ticket:
    """Have the directories of this name in each of these removed when this process is gone, with all that is in them.

    To be called before they are made; what does not exist is nothing. Their processes are ended, frozen or not, and the groups
    below them are removed too.

    Parameters
    ----------
    bases
        Descriptors of the parent directories in file systems of cgroups, one for each hierarchy, which stay the caller's.
    name
        Of the directory that will be made in each.
    keep
        Called with the ticket before it counts: who is interrupted then has it all the same.

    Returns
    -------
    Ticket
        To `strike` when they are removed.

    Raises
    ------
    PlanError
        The name is not that of one directory, or a descriptor not of a directory of cgroups.
    IsolibError
        More is entrusted already than there is room for.
    SetupFailed
        The reaper could not be started.
    """
    return place(bases).entrust(name, keep)


def entrust_link(netlink: int, index: int, keep: Callable[[Ticket], object] | None = None) -> Ticket:
    """Have the link of this number removed when this process is gone; to be called before it is made, with that number.

    Parameters
    ----------
    netlink
        A rtnetlink socket of the link's namespace, which stays the caller's; the reaper holds the namespace by it.
    index
        The link's number.
    keep
        As in `entrust`.
    """
    return _entrust(calls.ENTRY_LINK, netlink, str(index).encode(), keep)


def entrust_setting(
    file: int, old: str, value: str, keep: Callable[[Ticket], object] | None = None, *, beside: bool = False
) -> Ticket:
    """Have a setting given its old value back when this process is gone; to be called before the setting is changed.

    Nothing is done then where it has another value than this process has given it, or where another program holds it by a lock
    on that file (`isolib._kernel.holders`).  The locks of the open file are this process's, and the reaper's.

    Parameters
    ----------
    file
        A file of /proc/sys, open for reading and writing, which stays the caller's.
    old
        What it is given then.
    value
        What it is to have until then.
    keep
        As in `entrust`.
    beside
        Whether it is one that the kernel changes with another that is entrusted: it has this value when that one was given
        back, and is given its own then.
    """
    before = _encoded(f"{old}\n")  # an empty one would be no write at all
    kind = calls.ENTRY_BESIDE if beside else calls.ENTRY_SETTING
    return _entrust(kind, file, b"\0".join((before, _encoded(value))), keep)


def entrust_mount(mount: int, keep: Callable[[Ticket], object] | None = None) -> Ticket:
    """Have a mount detached when this process is gone; to be called before it is attached.

    It is known by a descriptor: whatever else is mounted in its place by then stays.

    Parameters
    ----------
    mount
        A descriptor of its root, a directory, which stays the caller's.  The reaper keeps one too, and so the mount in use:
        `Ticket.let_go` ends that.
    keep
        As in `entrust`.
    """
    return _entrust(calls.ENTRY_MOUNT, mount, b"mount", keep)


def _entrust(kind: int, base: int, name: bytes, keep: Callable[[Ticket], object] | None) -> Ticket:
    if len(name) > _NAME_MAX:
        raise PlanError(f"what a setting was and what it is to be are longer than {_NAME_MAX} bytes together")
    reaper = _own()
    with reaper.lock:
        bases = reaper.bases([base], kind)
        row = (kind, 1, 0, bases[0].index, *[0] * (calls.ENTRY_BASES - 1))
        return reaper.record(row, bases, name, keep)


def pid() -> int:
    """Return the process id of the reaper, which is started if there is none."""
    return _own().running().supervisor_pid
