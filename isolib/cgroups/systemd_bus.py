"""A connection to a D-Bus message bus on which systemd is, for one task with a time-out.

Messages and addresses are the business of the Python package jeepney, an optional dependency that is imported when it is
needed. The few lines that move bytes are here: jeepney's own connection waits without a limit for its first answer, and tells
the bus a user id, which is the wrong one inside a user namespace.

The protocol is in the D-Bus specification, what systemd understands in org.freedesktop.systemd1(5).
"""

from __future__ import annotations

import errno as e
import os
import pwd
import re
import socket
import stat
import struct
from collections import deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from isolib.errors import SyscallError, Unsupported, from_errno

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import ModuleType

    from isolib.errors import IsolibError

__all__ = ["BUS", "FEATURE", "MANAGER", "SYSTEMD", "Bus", "Message", "Place", "connected", "decoded", "method_call", "refused"]

FEATURE: Final = "a cgroup delegated by systemd"

_POLKIT: Final = "polkit must allow this user org.freedesktop.systemd1.manage-units; or ask the user's own systemd (user=True)"
_CLOSED: Final = "the bus has closed the connection"

#: The errors with a meaning here: their errno, and what would help.
_ERRORS: Final = {
    "org.freedesktop.DBus.Error.AccessDenied": (e.EACCES, _POLKIT),
    "org.freedesktop.DBus.Error.AuthFailed": (e.EACCES, None),
    "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired": (e.EACCES, _POLKIT),
    "org.freedesktop.DBus.Error.InvalidArgs": (e.EINVAL, None),
    "org.freedesktop.DBus.Error.LimitsExceeded": (e.ENOBUFS, None),
    "org.freedesktop.DBus.Error.NoMemory": (e.ENOMEM, None),
    "org.freedesktop.DBus.Error.NoReply": (e.ETIMEDOUT, None),
    "org.freedesktop.DBus.Error.NotSupported": (e.EOPNOTSUPP, None),
    "org.freedesktop.DBus.Error.PropertyReadOnly": (e.EINVAL, "systemd 236 or newer is needed"),
    "org.freedesktop.DBus.Error.Timeout": (e.ETIMEDOUT, None),
    "org.freedesktop.DBus.Error.UnixProcessIdUnknown": (e.ESRCH, None),
    "org.freedesktop.systemd1.NoSuchUnit": (e.ENOENT, None),
    "org.freedesktop.systemd1.ShuttingDown": (e.ECANCELED, "the system is being shut down"),
    "org.freedesktop.systemd1.UnitExists": (e.EEXIST, None),
}
_NOBODY: Final = re.compile(r"org\.freedesktop\.DBus\.Error\.(ServiceUnknown|NameHasNoOwner|Spawn\..*)")
#: How systemd hands on the error number of a system call.
_ERRNO: Final = re.compile(r"System\.Error\.(E[A-Z0-9]+)")


@dataclass(frozen=True, slots=True)
class Place:
    """Whom a call is for.

    Attributes
    ----------
    who
        The name on the bus.
    path, interface
        The object of it, and the interface of that.
    """

    who: str
    path: str
    interface: str


SYSTEMD: Final = "org.freedesktop.systemd1"
MANAGER: Final = Place(SYSTEMD, "/org/freedesktop/systemd1", f"{SYSTEMD}.Manager")
BUS: Final = Place("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")


@dataclass(frozen=True, slots=True)
class Message:
    """What came over the bus.

    Attributes
    ----------
    sender
        The unique name of the sender, which the bus vouches for.
    reply_to
        The number of the call that it answers, or None.
    error
        The name of the error that it is, or None.
    path, member
        The object and the name of a signal, or None.
    body
        The arguments.
    """

    sender: str | None
    reply_to: int | None
    error: str | None
    path: str | None
    member: str | None
    body: tuple[Any, ...]


class Bus:
    """A connection to a bus. Each operation waits for what is left of the time at most."""

    def __init__(self, sock: socket.socket, address: str, timeout: float) -> None:
        self._socket = sock
        self._address = address
        self._timeout = timeout
        self._deadline = monotonic() + timeout
        self._serials = count(1)
        self._parser = jeepney().Parser()
        self._signals: deque[Message] = deque()
        self._op = "connect"
        self._target = address

    def open(self) -> str:
        """Connect, and return the name that the bus gives us."""
        left = self._left()
        # A connection that waits in a full queue is not told by poll(2); unix(7) has this limit for it.
        limit = struct.pack("ll", int(left), int(left % 1 * 1_000_000) or 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        try:
            self._socket.connect(self._address)
        except BlockingIOError:
            raise self._late() from None
        except OSError as error:
            raise no_bus(f"{self._address!r}: {error.strerror or error}") from error
        # The empty answer says: the kernel knows who I am. A number would be one of the caller's user namespace.
        self._send(b"\0AUTH EXTERNAL\r\nDATA\r\n")
        answer = b""
        while answer.count(b"\r\n") < 2 and not answer.startswith((b"REJECTED", b"ERROR")):  # noqa: PLR2004 -- lines sent
            answer += self._receive()
        if b"\r\nOK " not in answer:
            raise from_errno("connect", self._address, e.EACCES, f"the bus does not know this user: {answer[:100]!r}")
        self._send(b"BEGIN\r\n")
        (name,) = self.ask(BUS, "Hello").body
        return str(name)

    def ask(self, place: Place, member: str, signature: str = "", *body: object, target: str | None = None) -> Message:
        """Call a method and return the answer.

        Parameters
        ----------
        place, member, signature, body
            The method and its arguments.
        target
            What it is about, for errors.

        Raises
        ------
        SyscallError, Unsupported
            The answer is an error.
        """
        self._op, self._target = member, target or place.path
        serial = next(self._serials)
        self._send(method_call(serial, place, member, signature, body))
        while (message := self._next()).reply_to != serial:
            self._keep(message)
        if message.error is not None:
            raise refused(member, self._target, message.error, str(next(iter(message.body), "")))
        return message

    def signals(self) -> Iterator[Message]:
        """Yield the signals, those first that came before an answer."""
        while True:
            while self._signals:
                yield self._signals.popleft()
            self._keep(self._next())

    def wait_for_owner(self, name: str, seconds: float) -> None:
        """Wait a while until somebody has a name on the bus; the first to use a user's bus has it started, and is early."""
        self.ask(BUS, "AddMatch", "s", f"type='signal',sender='{BUS.who}',member='NameOwnerChanged',arg0='{name}'")
        if self.ask(BUS, "NameHasOwner", "s", name).body[0]:
            return
        whole, self._deadline = self._deadline, min(self._deadline, monotonic() + seconds)
        try:
            for signal in self.signals():
                if (signal.sender, signal.member) == (BUS.who, "NameOwnerChanged") and signal.body[0] == name:
                    return
        except SyscallError as error:
            if error.errno != e.ETIMEDOUT:
                raise
        finally:
            self._deadline = whole

    def _keep(self, message: Message) -> None:
        if message.reply_to is None:
            self._signals.append(message)

    def _next(self) -> Message:
        while (message := self._parser.get_next_message()) is None:
            self._parser.add_data(self._receive())
        return decoded(message.header.fields, message.body)

    def _send(self, data: bytes) -> None:
        self._socket.settimeout(self._left())
        try:
            self._socket.sendall(data)
        except TimeoutError:
            raise self._late() from None
        except OSError as error:
            raise self._broken(error.errno) from error

    def _receive(self) -> bytes:
        self._socket.settimeout(self._left())
        try:
            data = self._socket.recv(65536)
        except TimeoutError:
            raise self._late() from None
        except OSError as error:
            raise self._broken(error.errno) from error
        if not data:
            raise self._broken(e.ECONNRESET)
        return data

    def _left(self) -> float:
        left = self._deadline - monotonic()
        if left <= 0:
            raise self._late()
        return left

    def _late(self) -> SyscallError:
        return from_errno(self._op, self._target, e.ETIMEDOUT, f"no answer at {self._address} within {self._timeout:g} s")

    def _broken(self, errno: int | None) -> SyscallError:
        return from_errno(self._op, self._target, errno or e.EIO, _CLOSED)


@contextmanager
def connected(*, user: bool, timeout: float) -> Iterator[tuple[Bus, str]]:
    """Give a connection to the system's or the user's bus, and our name on it, for the length of the block."""
    address = user_address(os.environ, os.geteuid()) if user else system_address()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        bus = Bus(sock, address, timeout)
        yield bus, bus.open()


def jeepney() -> ModuleType:
    """Return the package that knows D-Bus."""
    try:
        import jeepney.bus  # noqa: PLC0415 -- optional, and not needed where systemd is not
    except ImportError as error:
        if error.name and error.name.split(".")[0] != "jeepney":
            raise
        raise Unsupported(
            FEATURE, "the Python package jeepney, which is not installed", "pip install 'isolib[systemd]'"
        ) from error
    library: ModuleType = jeepney
    return library


# ---- where the buses are ----


def system_address() -> str:
    """Return the address of the system's bus."""
    try:
        return str(jeepney().bus.find_system_bus())
    except (RuntimeError, ValueError) as error:
        raise no_bus(f"$DBUS_SYSTEM_BUS_ADDRESS ({error})") from error


def user_address(environ: Mapping[str, str], uid: int) -> str:
    """Return the address of the bus where a user's systemd is.

    The environment may be another user's (after su), and its address that of another bus (after dbus-run-session): where
    systemd puts its own comes first, and only this user's socket is taken.
    """
    places = [f"{environ['XDG_RUNTIME_DIR']}/bus"] if environ.get("XDG_RUNTIME_DIR") else []
    places.append(f"/run/user/{uid}/bus")
    if given := environ.get("DBUS_SESSION_BUS_ADDRESS"):
        with suppress(RuntimeError, ValueError):  # of a kind that cannot be used, or no address
            places += jeepney().bus.get_connectable_addresses(given)
    for place in places:
        if place.startswith("\0") or _is_socket_of(place, uid):
            return place
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    raise Unsupported(
        FEATURE,
        f"the user's bus, which does not run: no {' and no '.join(places)} of this user",
        f"a login session with dbus-user-session; or, without one: loginctl enable-linger {name}",
    )


def _is_socket_of(path: str, uid: int) -> bool:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return False
    return stat.S_ISSOCK(status.st_mode) and status.st_uid == uid


def no_bus(what: str) -> Unsupported:
    """Return the error for a bus that cannot be reached."""
    return Unsupported(FEATURE, f"the bus, which cannot be reached: {what}", "install and start D-Bus: systemctl start dbus")


# ---- messages ----


def method_call(serial: int, place: Place, member: str, signature: str, body: tuple[object, ...]) -> bytes:
    """Return the call of a method as it is sent."""
    library = jeepney()
    address = library.DBusAddress(place.path, bus_name=place.who, interface=place.interface)
    message = library.new_method_call(address, member, signature or None, body)
    # systemd is there or is not: the bus shall not try to start it.
    message.header.flags = library.MessageFlag.no_auto_start
    return bytes(message.serialise(serial=serial))


def decoded(fields: Mapping[int, Any], body: tuple[Any, ...]) -> Message:
    """Return what is of use in a message, by the header fields of the specification."""
    path, member, error, reply_to, sender = (fields.get(code) for code in (1, 3, 4, 5, 7))
    return Message(sender=sender, reply_to=reply_to, error=error, path=path, member=member, body=body)


def refused(op: str, target: str, name: str, text: str) -> IsolibError:
    """Return the exception for an error from the bus or from systemd.

    Parameters
    ----------
    op, target
        What was called, and for what.
    name, text
        The error's name and what it says.
    """
    if _NOBODY.fullmatch(name):
        return Unsupported(
            FEATURE, f"the bus, on which systemd is not: {text}", "the bus of the system or of a login session (unset DBUS_*)"
        )
    errno, remedy = _ERRORS.get(name, (e.EIO, None))
    if system := _ERRNO.fullmatch(name):
        errno = getattr(e, system[1], e.EIO)
    said = text if text.isprintable() else repr(text)
    said = f"{said} ({name})" if said else name
    return from_errno(op, target, errno, f"{said}; {remedy}" if remedy else said)
