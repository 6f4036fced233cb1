"""The deputy: a Python process in a user namespace, in which an ordinary user may mount and own files of several users.

An ordinary user may not mount anything in the host's mount namespace, and not give a file to anybody else.  In a user namespace
he may do both.  A process with threads cannot enter one, so another does it for him: a Python of its own, started when it is
needed for the first time, which runs functions of isolib and hands back what they return, descriptors too.  A mount that it has
made lives as long as a descriptor of it, wherever that is.

There is one for each process and id map.  It ends with the process, however that ends; who kills it gets another one with the
next call.
"""

from __future__ import annotations

import atexit
import os
import sys
from _socket import AF_UNIX, SHUT_WR, SOCK_STREAM, socketpair  # the interpreter's own, not gevent's
from contextlib import suppress
from threading import RLock
from typing import TYPE_CHECKING, Final, Generic, ParamSpec, TypeVar, cast

from isolib._kernel import idmap, seam
from isolib._kernel.handle import home
from isolib._kernel.hints import typed
from isolib._kernel.streams import DEVNULL
from isolib._kernel.waiting import poll
from isolib.errors import GoneError, PlanError, Unsupported
from isolib.unionfs.overlays import courier

if TYPE_CHECKING:
    from _socket import socket as Socket  # noqa: N812 - the interpreter's own
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from isolib._kernel.seam import Process

__all__ = ["Deputy", "deputy"]

P = ParamSpec("P")
R = TypeVar("R")

_HELPERS: Final = ("/usr/bin/newuidmap", "/usr/bin/newgidmap")
_START: Final = (
    "import sys; sys.path.insert(0, sys.argv[1]); from isolib.unionfs.overlays._deputy import serve; serve(int(sys.argv[2]))"
)
_PACKAGE: Final = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))


class Call(Generic[R]):
    """A function that runs there."""

    def __init__(self, socket: Socket, function: Callable[..., R], *, to_end: bool = False) -> None:
        self._socket = socket
        self._function = function
        self._to_end = to_end

    def result(self) -> R:
        """Wait for its end, and return what it returns, or raise what it raises."""
        try:
            result, error = cast("tuple[R, BaseException | None]", courier.receive(self._socket))
        except (EOFError, ConnectionError):
            raise _gone(self._function) from None
        if error is not None:
            raise error
        return result

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._to_end and error is not None:
            _wait_for_end(self._socket)
        self._socket.close()


def _wait_for_end(socket: Socket) -> None:
    """Wait until the other end has nothing to do with a conversation any more, however often that is interrupted.

    What was not sent whole it does not begin; what it has begun it ends; and then it closes its end.
    """
    with suppress(OSError):  # it is closed already
        socket.shutdown(SHUT_WR)
    interrupt = None
    while True:
        try:
            if poll(socket.fileno(), None) and not socket.recv(1 << 16):
                break
        except OSError:
            break
        except BaseException as error:  # noqa: BLE001 - raised below
            interrupt = error
    if interrupt is not None:
        raise interrupt


def _gone(function: Callable[..., object]) -> GoneError:
    return GoneError("recvmsg", f"deputy for {getattr(function, '__name__', function)}")


class Deputy:
    """One of them, made by `deputy`.

    Parameters
    ----------
    id_map
        As of `isolib.spawn`.
    """

    def __init__(self, id_map: str) -> None:
        self.id_map = id_map
        self._home = home()
        self._lock = RLock()
        self._running: tuple[Process, Socket] | None = None

    def call(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a function of isolib's there, and return what it returns.

        Each call has a thread of its own there.  Who is interrupted meanwhile waits no longer; the function runs to its end,
        and what it returns is dropped.

        Parameters
        ----------
        function
            Of a module, not of another function; it is sent by its name.
        *args, **kwargs
            What can be pickled, or an `Fd`, also within other things.

        Raises
        ------
        Exception
            What the function raised, with its traceback as a note.
        Unsupported
            There can be no deputy.
        GoneError
            It was killed meanwhile.
        """
        with self.begin(function, *args, **kwargs) as begun:
            return begun.result()

    def begin(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """Have a function run there, and wait for it later; otherwise as `call`."""
        return self._converse(function, args, kwargs, to_end=False)

    def call_to_end(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """As `call`; but who is interrupted waits until the function has ended, so that he can set right what it has done."""
        with self.begin_to_end(function, *args, **kwargs) as begun:
            return begun.result()

    def begin_to_end(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """As `begin`; but a block that this is used for, and that does not end well, waits until the function has ended."""
        return self._converse(function, args, kwargs, to_end=True)

    def _converse(
        self, function: Callable[..., R], args: tuple[object, ...], kwargs: dict[str, object], *, to_end: bool
    ) -> Call[R]:
        ours, theirs = socketpair(AF_UNIX, SOCK_STREAM)
        try:
            with self._lock:
                self._begin(theirs.fileno())
            theirs.close()
            courier.send(ours, (function, args, kwargs))
            return Call(ours, function, to_end=to_end)
        except BaseException as error:
            theirs.close()
            if to_end:
                _wait_for_end(ours)
            ours.close()
            if isinstance(error, ConnectionError):
                raise _gone(function) from None
            raise
        finally:
            theirs.close()

    def _begin(self, conversation: int) -> None:
        """Hand over the other end of a conversation; who was killed is replaced."""
        if self._running is not None:
            try:
                courier.send_descriptor(self._running[1], conversation)
            except OSError:
                self.end()
            else:
                return
        self._running = self._start()
        atexit.register(self.end)
        courier.send_descriptor(self._running[1], conversation)

    @typed("a deputy")
    def _start(self) -> tuple[Process, Socket]:
        if not sys.executable:
            raise Unsupported(
                "a mount for an ordinary user",
                "this program, which does not know its Python (sys.executable)",
                "a process that is started as Python, or root",
            )
        ours, theirs = socketpair(AF_UNIX, SOCK_STREAM)
        try:
            process = seam.spawn(
                [sys.executable, "-I", "-c", _START, _PACKAGE, str(theirs.fileno())],
                new={"user"},
                id_map=self.id_map,
                pass_fds=(theirs.fileno(),),
                stdin=DEVNULL,
                stdout=DEVNULL,
                stderr=DEVNULL,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return process, ours

    def end(self) -> None:
        """End it; the next call starts another one, which sees the host's mounts as they are then."""
        if self._home != home():
            return
        atexit.unregister(self.end)
        with self._lock:
            running, self._running = self._running, None
        if running is not None:
            running[1].close()
            running[0].close()


_deputies: Final[dict[tuple[object, str], Deputy]] = {}


def deputy(id_map: str | None = None) -> Deputy:
    """Return the deputy of this process.

    Parameters
    ----------
    id_map
        "auto" or "root"; None: "auto" where the user has subordinate ids (subuid(5)), else "root".
    """
    if id_map is None:
        id_map = "auto" if _has_subordinate_ids() else "root"
    key = (home(), id_map)
    return _deputies.get(key) or _deputies.setdefault(key, Deputy(id_map))


def _has_subordinate_ids() -> bool:
    if not all(os.access(helper, os.X_OK) for helper in _HELPERS):
        return False
    try:
        idmap.resolve("auto", "auto")
    except PlanError:
        return False
    return True
