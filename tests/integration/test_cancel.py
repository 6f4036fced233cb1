"""A launch that is held up by one of its steps can be interrupted: what it has made is gone when the exception comes."""

from __future__ import annotations

import errno
import os
import signal
from typing import TYPE_CHECKING

import pytest

from isolib._kernel import calls
from isolib._kernel.launch import ground, launch
from isolib._kernel.plan import COMMAND, HOLD, HOST, INSIDE, Builder, Slot, Step
from tests.plans import nothing_changes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import FrameType

pytestmark = pytest.mark.usefixtures("user_namespaces")


class Interrupted(Exception):
    """What the handler raises."""


@pytest.fixture
def alarm() -> Iterator[None]:
    """Raise Interrupted a moment from now, in the main thread."""
    ground()  # what the first launch leaves open for those to come

    def handler(_: int, __: FrameType | None) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kinds", [(), ("user",), ("user", "pid")])
@pytest.mark.parametrize("phase", [HOST, INSIDE, COMMAND])
@pytest.mark.usefixtures("alarm")
def test_a_step_that_never_returns(phase: str, kinds: tuple[str, ...], tmp_path: Path) -> None:
    """The opening of a FIFO is given up in whichever process it is, and nobody waits for its other end any more."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    builder = Builder()
    builder.clone_flags = sum(calls.NAMESPACE_FLAGS[kind] for kind in kinds)
    if kinds:
        builder.map("setgroups", "deny")
        builder.map("uid_map", f"0 {os.geteuid()} 1\n")
        builder.map("gid_map", f"0 {os.getegid()} 1\n")
    opening = Step("OPEN", text=os.fsencode(fifo), flags=os.O_RDONLY, out=Slot("file", declared=False), what="the FIFO")
    builder.add(phase, opening)
    end = Step("EXEC", text=b"/bin/true\0", text2=b"true\0", flags=1) if phase == COMMAND else HOLD
    with nothing_changes(), pytest.raises(Interrupted):
        launch(builder.build(end), builder.fds)
    with pytest.raises(OSError, match="No such device or address") as refused:
        os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    assert refused.value.errno == errno.ENXIO
