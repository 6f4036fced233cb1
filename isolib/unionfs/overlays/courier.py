"""Values and descriptors between this process and its deputy: pickled, with descriptors beside them.

Both ends are the same code and the same user, and believe each other.
"""

from __future__ import annotations

import io
import pickle
from _socket import SOL_SOCKET  # the interpreter's own, not gevent's
from array import array
from select import POLLIN
from struct import Struct
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib._kernel.handle import Fd
from isolib._kernel.waiting import poll

if TYPE_CHECKING:
    from _socket import socket as _Socket  # noqa: N812 - not socket.socket, which gevent replaces

__all__ = ["receive", "send", "send_descriptor"]

_SCM_RIGHTS: Final = 1
_HEADER: Final = Struct("=QI")


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.fds: list[int] = []

    def persistent_id(self, obj: object) -> int | None:
        if not isinstance(obj, Fd):
            return None
        self.fds.append(obj.fileno())
        return len(self.fds) - 1


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, fds: list[Fd]) -> None:
        super().__init__(io.BytesIO(data))
        self._received = fds

    def persistent_load(self, pid: int) -> Fd:
        return self._received[pid]


def send_descriptor(socket: _Socket, fd: int) -> None:
    """Send one descriptor, with a byte: unix(7), SCM_RIGHTS."""
    socket.sendmsg([b"\0"], [(SOL_SOCKET, _SCM_RIGHTS, array("i", [fd]))])


def send(socket: _Socket, value: object) -> None:
    """Send a value; every `Fd` in it arrives as another one for the same file."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(value)
    data = file.getvalue()
    socket.sendall(_HEADER.pack(len(data), len(pickler.fds)) + data)
    for fd in pickler.fds:
        send_descriptor(socket, fd)


def receive(socket: _Socket) -> object:
    """Wait for a value, and return it.

    Raises
    ------
    EOFError
        The other end is closed.
    """
    size, count = _HEADER.unpack(_read(socket, _HEADER.size))
    data = _read(socket, size)
    fds = [_receive_descriptor(socket) for _ in range(count)]
    return _Unpickler(data, fds).load()


def _read(socket: _Socket, size: int) -> bytes:
    data = bytearray(size)
    done = 0
    while done < size:
        got = socket.recv_into(memoryview(data)[done:])
        if not got:
            raise EOFError("the other end of a conversation is closed")
        done += got
    return bytes(data)


def _receive_descriptor(socket: _Socket) -> Fd:
    # Taken within one call of a C function: an interrupt finds no descriptor that nobody owns.
    poll(socket.fileno(), None, POLLIN)
    return calls.receive_descriptor(socket.fileno(), "a descriptor")
