"""What a deputy runs: it executes the functions that it is sent, each in a thread, until its host is gone."""

from __future__ import annotations

import os
import resource
import traceback
from _socket import socket as Socket  # noqa: N812 - the interpreter's own
from threading import Thread
from typing import TYPE_CHECKING, Any, cast

from isolib._kernel import calls
from isolib._kernel.waiting import poll
from isolib.errors import IsolibError
from isolib.unionfs.overlays import courier

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["serve"]


def serve(fd: int) -> None:
    """Serve the host behind a socket; returns when that is closed."""
    # By itself, and not by who started it: so its mounts follow those of the host, which come and go (mount_namespaces(7)).
    calls.unshare(calls.CLONE_NEWNS, "mnt namespace of a deputy")
    # What its host opens at once, it opens beside what others of the host's threads have here.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    while True:
        poll(fd, None)
        try:
            conversation = calls.receive_descriptor(fd, "a conversation")
        except OSError:  # its end
            return
        # Each is a call of one of the host's threads, who sees it closed when the answer has been sent: nothing else holds it.
        with conversation:
            socket = Socket(-1, -1, -1, os.dup(conversation.fileno()))
        Thread(target=_answer, args=(socket,), daemon=True).start()
        del socket


def _answer(socket: Socket) -> None:
    try:
        _send(socket, _result(socket))
    except (EOFError, OSError):  # who called waits no more
        pass
    finally:
        socket.close()


def _result(socket: Socket) -> tuple[object, BaseException | None]:
    try:
        function, args, kwargs = cast("tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]", courier.receive(socket))
        return function(*args, **kwargs), None
    except EOFError:
        raise
    except BaseException as error:  # noqa: BLE001 - raised where it was called from
        error.add_note("".join(traceback.format_exception(error)).rstrip())
        return None, error


def _send(socket: Socket, answer: tuple[object, BaseException | None]) -> None:
    try:
        courier.send(socket, answer)
    except (TypeError, AttributeError, ValueError) as error:  # pickle has many ways to refuse, and has sent nothing
        courier.send(socket, (None, IsolibError(f"the answer of a deputy cannot be sent: {error}: {answer!r}")))
