"""Capturing the packets of an interface in a file, without libpcap.

The packets are handed over by the kernel in a ring of memory (see `isolib.net.ring`), through a socket that was born in the
namespace; a thread writes them down.  The file is pcapng (see `isolib.net.pcapng`).
"""

from __future__ import annotations

import io
import os
import stat
import time
from contextlib import suppress
from errno import EEXIST
from typing import TYPE_CHECKING, Final, Protocol

from isolib._kernel import calls
from isolib._kernel.handle import Epoll, Fd, Handle, Rollback
from isolib._kernel.hints import typed
from isolib._kernel.threads import OwnThread
from isolib._kernel.waiting import Alarm, poll
from isolib.errors import PlanError, from_errno
from isolib.net import pcapng
from isolib.net.checks import check_name, check_number
from isolib.net.packet_socket import ALL, NONE, open_packet_socket, refused
from isolib.net.ring import LONGEST
from isolib.net.where import check_namespace
from isolib.types import check_path

if TYPE_CHECKING:
    from isolib.net.packet_socket import PacketSocket
    from isolib.types import AnyPath, HasFileno

    class BinaryFile(Protocol):
        """Where bytes can be written: a file that is open for that, a `io.BytesIO`."""

        def write(self, data: bytes, /) -> int | None:
            """Write, and return how many of them."""


__all__ = ["Capture", "capture"]

# sys/epoll.h; not of the module select, from which gevent takes them
_EPOLLIN: Final = 0x1
_EPOLLERR: Final = 0x8


class _Sink:
    """The file: ours, by its path, or somebody else's, who closes it."""

    def __init__(self, where: AnyPath | BinaryFile) -> None:
        self._fd: Fd | None = None
        self._file: BinaryFile | None = None
        if isinstance(where, (str, bytes, os.PathLike)):
            self.label = check_path(where, "path")
            return
        file: object = where
        if isinstance(file, io.TextIOBase) or not hasattr(file, "write"):
            raise PlanError(f"path: a path, or a file that is open for bytes, is wanted, not {where!r}")
        self._file, self.label = where, str(getattr(where, "name", where))

    def open(self) -> None:
        """Make the file, or empty one that is there."""
        if self._file is not None:
            return
        try:
            # A pipe would be waited for, and a device may do something when it is opened.
            if os.path.exists(self.label) and not stat.S_ISREG(os.stat(self.label).st_mode):
                raise from_errno("open", self.label, EEXIST, "it is no regular file: what shall be written to is given open")
            self._fd = Fd.take(os.open, self.label, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_TRUNC, 0o666)
        except OSError as error:
            raise refused("open", self.label, error) from None

    def write(self, data: bytes) -> None:
        """Write all of it."""
        view = memoryview(data)
        while view:
            view = view[self._write(view) :]

    def _write(self, view: memoryview) -> int:
        if self._file is not None:
            written = self._file.write(view)  # type: ignore[arg-type]  # files take whatever has bytes
            return len(view) if written is None else written
        assert self._fd is not None  # noqa: S101 - it was opened
        try:
            return os.write(self._fd.fileno(), view)
        except OSError as error:
            raise refused("write", self.label, error) from None

    def finish(self) -> None:
        """Close the file, or have what is still in its buffer written."""
        if self._fd is not None:
            self._fd.close()
        elif callable(flush := getattr(self._file, "flush", None)):
            flush()

    def abandon(self) -> None:
        """In a fork of the process, close the copy."""
        if self._fd is not None:
            self._fd.close()


class _Recorder:
    """What the thread works on; it does not know the `Capture`, so that one which nobody has any more can end it."""

    def __init__(self, source: PacketSocket, sink: _Sink, started: int) -> None:
        self.source = source
        self.sink = sink
        self.started = started
        self.alarm = Alarm()
        self.packets = 0
        self.is_ending = False
        self.error: BaseException | None = None
        self.number = 0
        self.is_over = False
        #: Whether the thread writes: said once, by itself or who started it, or by who ends this where that was interrupted.
        self._is_begun: dict[None, bool] = {}
        self._ended = Alarm()
        self._is_settled = False
        self._thread = OwnThread("isolib capture", "the thread that captures")
        self._epoll = Epoll()
        self._epoll.register(source.fileno(), _EPOLLIN)
        self._epoll.register(self.alarm.fileno(), _EPOLLIN)

    def run(self) -> None:
        """Write packets down until somebody rings, then those that are left; on the thread."""
        self.number = calls.thread_number()
        if not self._is_begun.setdefault(None, True):
            return
        try:
            self._write_all()
        except BaseException as error:  # noqa: BLE001 - raised by close()
            self.error = error
        finally:
            try:
                self._epoll.close()
                self.source.close()
                self.sink.finish()
            except BaseException as error:  # noqa: BLE001
                self.error = self.error or error
            self.is_over = True
            self._ended.ring()

    def _write_all(self) -> None:
        while not self.is_ending:
            if not self._write(self.source.ring.take()):
                self._wait()
        with suppress(OSError):  # it is gone, and nothing comes from it
            self.source.want(NONE)
        while self._write(self.source.ring.take()):
            pass
        self._write(self.source.ring.take(rest=True))
        self.source.count()
        now = time.time_ns()
        source = self.source
        self.sink.write(
            pcapng.statistics_block(
                now, start=self.started, end=now, received=source.received, dropped=source.dropped, delivered=self.packets
            )
        )

    def _wait(self) -> None:
        for number, events in self._epoll.poll():
            if number == self.source.fileno() and events & _EPOLLERR:
                self.source.clear_error()

    def _write(self, packets: list[bytes]) -> bool:
        if packets:
            self.sink.write(b"".join(packets))
            self.packets += len(packets)
        return bool(packets)

    # ---- for others ----

    def start(self) -> None:
        """Start the thread."""
        self._thread.start_outside(self.run)
        self._is_begun.setdefault(None, True)

    def end(self) -> None:
        """Have the rest written, and wait for it; but a finalizer that runs in the thread itself cannot."""
        self.is_ending = True
        if self._is_begun.setdefault(None, False) and not self._is_settled:
            self.alarm.ring()
            if calls.thread_number() == self.number:
                return
            poll(self._ended, None)
            self._is_settled = True
        self._thread.join()
        self._epoll.close()
        self.alarm.close()
        self._ended.close()

    def abandon(self) -> None:
        """In a fork of the process, close the copies of everything."""
        self._epoll.close()
        self.source.abandon()
        self.sink.abandon()
        self.alarm.close()
        self._ended.close()


class Capture(Handle, made_by="capture()"):
    """The packets of an interface, on their way into a file until it is closed; a context manager.

    The thread that writes is a daemon, which the interpreter does not wait for at its exit: what was not closed then ends with
    the last full part.

    Attributes
    ----------
    interface
        The name of the interface when it began.
    path
        The file, as a text.
    """

    def __init__(self, recorder: _Recorder, interface: str) -> None:
        super().__init__()
        self._recorder = recorder
        self.interface = interface
        self.path = recorder.sink.label

    def _describe(self) -> str:
        return f"of {self.interface} in {self.path}, {self.packets} packets"

    @property
    def packets(self) -> int:
        """How many packets are in the file; a packet may come there up to 20 ms after it has passed."""
        return self._recorder.packets

    @property
    def dropped(self) -> int:
        """How many packets were lost because the ring was full: this process, or its disk, was too slow for them."""
        if self.is_ours:
            self._recorder.source.count()
        return self._recorder.source.dropped

    @property
    def running(self) -> bool:
        """Whether it captures: it is not closed, and writing has not failed."""
        return self.is_ours and not self._recorder.is_over

    def _release(self) -> None:
        self._recorder.end()
        error, self._recorder.error = self._recorder.error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # else it and this frame would hold each other

    def _drop(self) -> None:
        if not self.is_ours:
            self._recorder.abandon()
        super()._drop()


def capture(
    net: HasFileno | None,
    interface: str,
    path: AnyPath | BinaryFile,
    *,
    snaplen: int = LONGEST,
    promiscuous: bool = True,
) -> Capture:
    """Write what comes and goes at an interface into a file, from now on until the returned handle is closed.

    Parameters
    ----------
    net
        The namespace of the interface; None: that of the calling thread.
    interface
        Its name.
    path
        The file, which is made, or overwritten when it is a regular one; or a file that is open for writing bytes, which stays
        open and is written to by another thread.
    snaplen
        How many bytes of each packet are kept, 1 to 262,144.
    promiscuous
        Whether frames are seen too that are for somebody else, as at the port of a switch.

    Returns
    -------
    Capture
        Every packet that passes after this returns and before it is closed is in the file, or counted in `Capture.dropped`;
        closing it writes the rest, and raises what went wrong with the file meanwhile.

    Raises
    ------
    PlanError
        An argument cannot work.
    SyscallError, SetupFailed
        The kernel refused.  ENODEV: there is no such interface.  EEXIST: the path is no regular file.
    Unsupported
        The interface is of a kind whose packets cannot be described in a file.
    ClosedError
        The handle of the namespace is closed.

    Notes
    -----
    Packets are seen as tcpdump sees them: what goes, before it is cut into pieces for the wire and before its checksum is
    there, where the device does that; of the loopback interface what comes back, once.  The namespace lives on as long as this
    is open, also when its handle is closed.  16 MiB of memory are taken.

    Privileges: CAP_NET_RAW over the namespace, which who owns it has.  Kernel: packet(7), TPACKET_V3, Linux 4.20.

    Examples
    --------
    >>> import io, isolib
    >>> ns = isolib.new_netns()
    >>> with capture(ns, "lo", io.BytesIO()) as captured:
    ...     pass  # what is to be looked at
    >>> captured.packets, captured.dropped
    (0, 0)
    >>> ns.close()
    """
    net = check_namespace(net, "net")
    name = check_name(interface, "interface")
    kept = check_number(snaplen, "snaplen", 1, LONGEST)
    sink = _Sink(path)
    with Rollback() as undo:
        source = open_packet_socket(net, name, snaplen=kept, promiscuous=bool(promiscuous))
        undo.push(source.close)
        source.want(ALL)
        started = time.time_ns()
        sink.open()  # last of what may be refused: a file that was there stays as it is
        undo.push(sink.abandon)
        host = os.uname()
        system = f"{host.sysname} {host.release}"
        head = pcapng.section(hardware=host.machine, system=system, application="isolib")
        sink.write(head + pcapng.interface_block(name, source.link_type, snaplen=kept, mac=source.mac, system=system))
        with typed("a capture"):
            recorder = _Recorder(source, sink, started)
        undo.push(recorder.end)
        recorder.start()
        made = Capture._make(recorder, name)
        undo.dismiss()
        return made
