"""What tests do with threads of their own, and to them: what a thread gives up concerns no other test."""

from __future__ import annotations

import ctypes
import os
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeVar

from tests.seccomp import deny

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.seccomp import Denied

    T = TypeVar("T")


def here(kind: str = "net") -> int:
    """Return the number of the calling thread's namespace."""
    return os.stat(f"/proc/thread-self/ns/{kind}").st_ino


def in_a_thread(function: Callable[[], T]) -> T:
    """Call a function on a thread of its own, and return or raise what it does."""
    outcome: SimpleQueue[tuple[bool, object]] = SimpleQueue()

    def body() -> None:
        try:
            outcome.put((True, function()))
        except BaseException as error:  # noqa: BLE001 -- the caller's
            outcome.put((False, error))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    returned, value = outcome.get()
    if isinstance(value, BaseException) and not returned:
        raise value
    return value  # type: ignore[return-value]


def give_privileges_up() -> None:
    """Drop every capability of the calling thread, and of no other (capset(2))."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None, use_errno=True).capset(header, data) == 0


def restrict_thread(*denied: Denied) -> None:
    """Make system calls of the calling thread fail, for the rest of its life (seccomp(2))."""
    program = deny(*denied)
    code = ctypes.create_string_buffer(program, len(program))
    libc = ctypes.CDLL(None, use_errno=True)

    class Program(ctypes.Structure):
        _fields_ = (("size", ctypes.c_ushort), ("code", ctypes.c_void_p))

    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, ctypes.byref(Program(len(program) // 8, ctypes.addressof(code)))) == 0  # PR_SET_SECCOMP
