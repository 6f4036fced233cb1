"""Conversations with the kernel about several network namespaces: one call, which gives the GIL away once."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from isolib._kernel._ext import ffi, lib
from isolib._kernel.calls.away import OWN_FILES, failure
from isolib._kernel.calls.checking import path_bytes
from isolib._kernel.handle import Fd

if TYPE_CHECKING:
    from collections.abc import Sequence

_ROOM: Final = 2 * lib.ISOLIB_NETLINK_PART
_NULL: Final = ffi.NULL
_allocate: Final = ffi.new_allocator(should_clear_after_alloc=False)
# Looked up by name they would cost more than what they are for.
_CONVERSATION: Final = ffi.typeof("struct isolib_conversation *")
_CHARS: Final = ffi.typeof("char[]")


#: A socket, prepared, or -1: one of the namespace, which is made; the namespace, which is gone to before, where there is
#: something to be done, or -1: the calling thread's own; the protocol of what is made; requests; the number of the last; a file
#: of /proc/sys/net and what is written to it before.
Said: TypeAlias = tuple[int, int, int, bytes, int, tuple[str, str] | None]


class Conversation:
    """Several turns, one after the other, up to the first that fails."""

    __slots__ = ("_alive", "_conversation", "_turns")

    def __init__(self, turns: Sequence[Said]) -> None:
        alive: list[Any] = [_allocate("char[]", _ROOM)]
        rows = []
        for fd, net, protocol, sent, last, put in turns:
            bytes_ = ffi.from_buffer(_CHARS, sent)
            path = text = _NULL
            if put is not None:
                path, text = ffi.new(_CHARS, path_bytes(put[0])), ffi.new(_CHARS, put[1].encode())
            alive += (bytes_, path, text)
            rows.append((fd, net, protocol, len(sent), last, 0, 0, path, text, bytes_))
        self._alive = alive
        self._conversation = ffi.new(_CONVERSATION, (len(rows), 0, 0, 0, _ROOM, alive[0], rows))
        self._turns = self._conversation.turns

    def hold(self) -> Fd | None:
        """Take the turns that are left; return the socket that was made for one of them."""
        return Fd.take(lib.isolib_converse, self._conversation, OWN_FILES["net"])

    @property
    def done(self) -> int:
        """How many turns were taken: what failed in the next one, if there is one, `check` and `error` say."""
        return int(self._conversation.done)

    @property
    def error(self) -> int:
        """What kept from hearing the end of a turn, or 0."""
        return int(self._conversation.error)

    def check(self, target: str) -> None:
        """Raise what failed before anything was said in a turn.

        Raises
        ------
        ThreadStranded, SyscallError
            As `netlink_in`.
        """
        stage = int(self._conversation.stage)
        if stage != lib.ISOLIB_AWAY_TALK:
            if stage in {lib.ISOLIB_AWAY_FILE, lib.ISOLIB_AWAY_PUT}:
                target = os.fsdecode(ffi.string(self._turns[self.done].path))
            raise failure(stage, self.error, target)

    def heard(self) -> list[bytes]:
        """Return what was answered in each turn; in one that was not begun, nothing."""
        ends = [0, *[int(self._turns[at].end) for at in range(self._conversation.count)]]
        whole = ffi.buffer(self._alive[0], max(ends))
        return [whole[start:end] for start, end in pairwise(ends)]

    def change(self, turn: int, fd: int) -> None:
        """Let a turn have this socket, or -1 again, and nothing be written before."""
        one = self._turns[turn]
        one.path, one.fd = _NULL, fd
