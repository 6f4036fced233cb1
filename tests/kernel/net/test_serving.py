from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import threading
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib._kernel.handle import Fd
from isolib.errors import ClosedError
from isolib.net.serving import IN, Served, Socket, take_socket
from tests.threads import here, in_a_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAME = "isolib serving"


class Echo(Served):
    """Sends back what it receives; of one word it dies, as far as it can."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self.sock = self.own(take_socket(sock))

    def begin(self) -> None:
        """Receive."""
        self.watch(self.sock, IN, self.ready)

    def ready(self, _: int) -> None:
        """Answer."""
        data = self.sock.recv(100)
        if data == b"raise":
            raise ZeroDivisionError("of a client")
        if data == b"exit":
            raise SystemExit(1)
        if data == b"where":
            data = str(here()).encode()
        if data == b"mask":
            data = " ".join(str(int(each)) for each in signal.pthread_sigmask(signal.SIG_BLOCK, ())).encode()
        self.sock.send(data)


class Pair:
    """An echo, and the other end."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(20)
        self.sock = ours
        self.echo = Echo(theirs)
        self.echo.start()

    def ask(self, data: bytes) -> bytes:
        """Return what comes back."""
        self.sock.send(data)
        return self.sock.recv(4096)

    def close(self) -> None:
        """Stop both."""
        self.echo.stop()
        self.sock.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Return an echo that is served."""
    one = Pair()
    yield one
    one.close()


def serving() -> list[threading.Thread]:
    """Return the threads that serve."""
    return [thread for thread in threading.enumerate() if thread.name == NAME]


def test_one_thread() -> None:
    """Whatever is served, there is one thread, and it has ended when there is nothing."""
    pairs = [Pair() for _ in range(10)]
    threads = serving()
    assert [thread.daemon for thread in threads] == [True]
    assert [pair.ask(b"%d" % number) for number, pair in enumerate(pairs)] == [b"%d" % number for number in range(10)]
    for pair in pairs:
        pair.close()
    threads[0].join(20)
    assert not threads[0].is_alive()


def test_starts_again() -> None:
    """What comes after the last one has gone is served too, at once, a hundred times."""
    for _ in range(100):
        pair = Pair()
        assert pair.ask(b"again") == b"again"
        pair.close()


def test_starts_and_ends_by_many_threads() -> None:
    """Threads that begin and end at the same time never find nobody who serves them."""

    def work() -> None:
        for _ in range(50):
            pair = Pair()
            assert pair.ask(b"x") == b"x"
            pair.close()

    outcomes: SimpleQueue[BaseException | None] = SimpleQueue()

    def body() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - compared below
            outcomes.put(error)
        else:
            outcomes.put(None)

    threads = [threading.Thread(target=body) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [outcomes.get() for _ in threads] == [None] * 8


@pytest.mark.parametrize(("word", "kind"), [(b"raise", ZeroDivisionError), (b"exit", SystemExit)])
def test_an_exception_of_one(pair: Pair, word: bytes, kind: type[BaseException]) -> None:
    """What one raises is kept for whoever asks, and the others are served on by the same thread."""
    other, threads = Pair(), serving()
    pair.sock.send(word)
    assert other.ask(b"still") == b"still"
    assert isinstance(pair.echo.error, kind)
    assert "in ready" in pair.echo.error.__notes__[0]
    assert serving() == threads
    other.close()


def test_stop_is_final(pair: Pair) -> None:
    """When stop has returned, the sockets are closed and nothing is called; again is nothing."""
    pair.echo.stop()
    pair.echo.stop()
    assert pair.sock.recv(1) == b""
    assert pair.echo.sock.fileno() == -1
    with pytest.raises(ClosedError):
        pair.echo.own(Socket(socket.AF_INET, socket.SOCK_STREAM))


def test_stop_waits_for_the_call(pair: Pair) -> None:
    """Stop waits for a call that is being made, by which nothing is changed afterwards."""
    entered, go = threading.Event(), threading.Event()
    done = []

    def ready(_: int) -> None:
        entered.set()
        go.wait(20)
        done.append(pair.echo.sock.recv(10))

    with pair.echo.lock:
        pair.echo.watch(pair.echo.sock, IN, ready)
    pair.sock.send(b"last")
    assert entered.wait(20)
    threading.Timer(0.01, go.set).start()
    pair.echo.stop()
    assert done == [b"last"]


def test_stop_from_within(pair: Pair) -> None:
    """One that stops itself while it is called is stopped, and the thread goes on."""
    other = Pair()

    def ready(_: int) -> None:
        pair.echo.sock.recv(10)
        pair.echo.stop()
        pair.echo.watch(pair.echo.sock, IN, ready)

    with pair.echo.lock:
        pair.echo.watch(pair.echo.sock, IN, ready)
    pair.sock.send(b"go")
    assert pair.sock.recv(1) == b""
    assert other.ask(b"on") == b"on"
    other.close()


def test_timers(pair: Pair) -> None:
    """Timers ring in their order, those that were cancelled do not, and one that raises harms nobody."""
    rung: SimpleQueue[str] = SimpleQueue()
    with pair.echo.lock:
        pair.echo.after(0.03, partial(rung.put, "late"))
        pair.echo.after(0.01, partial(rung.put, "early"))
        pair.echo.after(0.0, partial(set[str]().remove, "missing"))
        pair.echo.after(0.02, partial(rung.put, "never")).cancel()
    assert [rung.get(timeout=20), rung.get(timeout=20)] == ["early", "late"]
    assert isinstance(pair.echo.error, KeyError)
    assert pair.echo.timers == set()


def test_many_cancelled_timers(pair: Pair) -> None:
    """Timers that were cancelled are not kept until their time."""
    with pair.echo.lock:
        for _ in range(5000):
            pair.echo.after(3600, print).cancel()
        kept = pair.echo.after(3600, print)
    assert pair.ask(b"x") == b"x"
    assert pair.ask(b"x") == b"x"
    loop = pair.echo.loop
    assert loop is not None
    assert len(loop._timers) + len(loop._new_timers) < 600
    assert pair.echo.timers == {kept}


def test_nothing_rings_after_stop() -> None:
    """The timers of what was stopped are gone with it."""
    rung: list[int] = []
    pair = Pair()
    with pair.echo.lock:
        pair.echo.after(0.0, partial(rung.append, 1))
        pair.echo.after(3600, partial(rung.append, 2))
    pair.close()
    assert pair.echo.timers == set()
    assert rung in ([], [1])


def test_signals_are_for_others(pair: Pair) -> None:
    """The thread takes no signal that is meant for the program, nor SIGPIPE, but those that tell of its own faults."""
    blocked = {int(word) for word in pair.ask(b"mask").split()}
    assert {signal.SIGPIPE, signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGALRM} <= blocked
    assert not {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT} & blocked


def test_finalizer_in_a_call() -> None:
    """Something that the collector finds while the thread is in a call can be stopped by its finalizer, on that thread."""

    class Owner:
        def __init__(self) -> None:
            self.me = self
            self.pair = Pair()
            socks.append(self.pair.sock)

        def __del__(self) -> None:
            self.pair.echo.stop()

    socks: list[socket.socket] = []
    pair = Pair()
    gc.disable()
    try:
        Owner()
        with pair.echo.lock:
            pair.echo.after(0, lambda: (gc.collect(), None)[1])
        assert socks[0].recv(1) == b""
    finally:
        gc.enable()
    socks[0].close()
    assert pair.ask(b"on") == b"on"
    pair.close()


# ---- forks, namespaces, other hosts ----


def in_a_fork(action: Callable[[], object]) -> int:
    """Call something in a fork of this process, which then ends without more ado, and return its exit status."""
    child = os.fork()
    if not child:
        status = 1
        try:
            action()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_fork(pair: Pair) -> None:
    """A fork has no copies of the sockets, may stop what its parent serves without harm, and can serve by itself."""

    def child() -> None:
        assert pair.echo.sock.fileno() == -1
        pair.echo.stop()
        own = Pair()
        assert own.ask(b"child") == b"child"
        own.close()

    assert pair.ask(b"before") == b"before"
    assert in_a_fork(child) == 0
    assert pair.ask(b"after") == b"after"


def test_fork_does_not_keep_a_socket(pair: Pair) -> None:
    """The peer hears of the end at once, also while a child that was forked before lives."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    os.close(read)
    pair.echo.stop()
    assert pair.sock.recv(1) == b""
    os.close(write)
    os.waitpid(child, 0)


@pytest.mark.root
def test_outside_of_namespaces() -> None:
    """The thread is in the program's own network namespace, also when it is started inside another one, which can thus end."""

    def inside() -> tuple[bytes, Pair]:
        with isolib.new_netns():
            pair = Pair()
            return pair.ask(b"where"), pair

    where, pair = in_a_thread(inside)
    assert int(where) == here()
    pair.close()


def test_in_an_event_loop() -> None:
    """It serves a program that runs an event loop, which knows nothing of it."""

    async def main() -> tuple[bytes, bytes]:
        pair = Pair()
        reader, writer = await asyncio.open_connection(sock=pair.sock)
        writer.write(b"one")
        first = await reader.read(100)
        writer.write(b"two")
        second = await reader.read(100)
        writer.close()
        await writer.wait_closed()
        pair.close()
        return first, second

    assert asyncio.run(main()) == (b"one", b"two")


def test_started_by_a_thread_that_ends() -> None:
    """It serves on when the thread that began it has ended."""
    pair = in_a_thread(Pair)
    assert pair.ask(b"on") == b"on"
    pair.close()


def test_take_socket() -> None:
    """A descriptor becomes a socket that no executed program gets, and its owner has nothing; also where it was no socket."""
    ours, theirs = socket.socketpair()
    with ours:
        sock = take_socket(theirs)
        assert theirs.fileno() == -1
        assert not os.get_inheritable(sock.fileno())
        assert sock.type == socket.SOCK_STREAM
        sock.close()
    null = Fd(os.open("/dev/null", os.O_RDONLY))
    with pytest.raises(OSError, match="socket"):
        take_socket(null)
    assert null.closed


def test_sockets_do_not_block(pair: Pair) -> None:
    """Whatever is owned does not block."""
    assert pair.echo.sock.getblocking() is False
