"""Capturing, with tshark as the judge of what is in the file."""

from __future__ import annotations

import errno
import gc
import hashlib
import io
import json
import os
import resource
import socket
import struct
import subprocess
import threading
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib import PIPE, ClosedError, PlanError, SyscallError
from isolib._kernel.sockets import open_socket
from isolib._kernel.waiting import poll
from isolib.net import capture, links, new_veth
from isolib.net.capture import _Recorder, _Sink
from isolib.net.packet_socket import open_packet_socket
from tests.interrupts import interrupt
from tests.rights import RIGHTS, having

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from isolib.namespaces import NetNS
    from isolib.net import Veth

PORT = 7777
OUT, IN = "0x00000002", "0x00000001"


@pytest.fixture(params=RIGHTS, autouse=True)
def rights(request: pytest.FixtureRequest, user_namespaces: None) -> Iterator[str]:
    """Run the test once with root's capabilities, and once without any."""
    with having(request.param):
        yield request.param


@pytest.fixture
def net() -> Iterator[NetNS]:
    """Return a namespace that the test's thread is not in; its loopback interface is up."""
    with closing(isolib.new_netns()) as namespace:
        yield namespace


class Cable:
    """Two namespaces and what connects them."""

    def __init__(self, a: NetNS, b: NetNS, veth: Veth) -> None:
        self.a, self.b, self.veth = a, b, veth


@pytest.fixture
def cable(net: NetNS) -> Iterator[Cable]:
    """Return two namespaces that are connected, 10.9.0.1 and 10.9.0.2."""
    with (
        closing(isolib.new_netns()) as other,
        new_veth(net, other, names=("one", "two"), addresses=("10.9.0.1/24", "10.9.0.2/24")) as veth,
    ):
        yield Cable(net, other, veth)


@contextmanager
def in_netns(net: NetNS, kind: int, family: int = socket.AF_INET, protocol: int = 0) -> Iterator[socket.socket]:
    """Give a socket of a namespace."""
    with open_socket(net, family, kind, protocol) as fd, socket.fromfd(fd.fileno(), family, kind, protocol) as sock:
        sock.settimeout(30)
        yield sock


def chatter(net: NetNS, address: str, count: int, port: int = PORT) -> None:
    """Send so many datagrams, each with its number, to who need not be there."""
    with in_netns(net, socket.SOCK_DGRAM) as sock:
        for number in range(count):
            sock.sendto(b"%08d" % number, (address, port))


def numbers(payloads: list[str]) -> list[int]:
    """Return the numbers that datagrams of `chatter` had."""
    return [int(bytes.fromhex(payload)) for payload in payloads]


# ---- what is in the file ----


def test_both_directions(cable: Cable, tmp_path: Path, read: Callable[..., list[list[str]]]) -> None:
    """At either end everything is in the file that went and came there, in its order, with its content and direction."""
    files = tmp_path / "a", tmp_path / "b"
    with in_netns(cable.a, socket.SOCK_DGRAM) as a, in_netns(cable.b, socket.SOCK_DGRAM) as b:
        b.bind(("10.9.0.2", PORT))
        a.connect(("10.9.0.2", PORT))
        with capture(cable.a, "one", files[0]) as one, capture(cable.b, "two", files[1]) as two:
            for number in range(500):
                a.send(b"%08d" % number)
                data, address = b.recvfrom(100)
                b.sendto(b"%08d" % (int(data) + 1000), address)
                a.recv(100)
    expected = [line for number in range(500) for line in (number, number + 1000)]
    for file, captured, ways in ((files[0], one, (OUT, IN)), (files[1], two, (IN, OUT))):
        found = read(file, "udp.payload", "frame.packet_flags_direction", only=f"udp.port=={PORT}")
        assert numbers([payload for payload, _ in found]) == expected
        assert [way for _, way in found] == list(ways) * 500
        assert len(read(file, "frame.number")) == captured.packets >= 1000
        assert captured.dropped == 0
        times = [float(line[0]) for line in read(file, "frame.time_epoch")]
        assert times == sorted(times)


def test_file_says_what_it_is(net: NetNS, tmp_path: Path, tshark: str) -> None:
    """The file names its interface, what made it, nanoseconds, and at its end what was counted."""
    file = tmp_path / "file"
    with capture(net, "lo", file):
        chatter(net, "127.0.0.1", 3)
    info = subprocess.run(["capinfos", "-M", file], capture_output=True, text=True, check=True).stdout
    for words in ("Capture application: isolib", "Name = lo", "Time precision = nanoseconds (9)", "stat entries = 1"):
        assert words in info
    assert f"Linux {os.uname().release}" in info


def test_begins_at_once_and_ends_with_the_last(net: NetNS, tmp_path: Path, read: Callable[..., list[list[str]]]) -> None:
    """What is sent before is not in the file, the first packet after it began is, and so is the last before it is closed."""
    for turn in range(1, 11):
        chatter(net, "127.0.0.1", turn, port=PORT + 1)
        with capture(net, "lo", tmp_path / "file") as captured:
            chatter(net, "127.0.0.1", turn)
        # Each is answered that nobody listens.
        assert captured.packets == 2 * turn
        assert not captured.running
    found = read(tmp_path / "file", "udp.payload", only=f"udp.dstport=={PORT} && !icmp")
    assert numbers([line[0] for line in found]) == list(range(10))


def test_many_packets(net: NetNS, tmp_path: Path, read: Callable[..., list[list[str]]]) -> None:
    """Of a hundred thousand packets in one go each is in the file, in its order, or counted as lost; there it is read back."""
    count = 100_000
    with in_netns(net, socket.SOCK_DGRAM) as listener, capture(net, "lo", tmp_path / "file") as captured:
        listener.bind(("127.0.0.1", PORT))
        chatter(net, "127.0.0.1", count)
    assert captured.packets + captured.dropped == count
    found = numbers([line[0] for line in read(tmp_path / "file", "udp.payload")])
    assert len(found) == captured.packets
    assert found == sorted(set(found))


def test_loss_is_counted(net: NetNS, tshark: str, tmp_path: Path) -> None:
    """When the file cannot take what comes, what is lost is counted, in the handle and in the file."""
    go_on = threading.Event()

    class Slow(io.BytesIO):
        def write(self, data: object) -> int:
            if self.tell():
                go_on.wait(60)
            return super().write(data)  # type: ignore[arg-type]

    slow = Slow()
    try:
        with in_netns(net, socket.SOCK_DGRAM) as listener, capture(net, "lo", slow) as captured:
            listener.bind(("127.0.0.1", PORT))
            with in_netns(net, socket.SOCK_DGRAM) as sock:
                for _ in range(700):
                    sock.sendto(bytes(60_000), ("127.0.0.1", PORT))
            assert captured.dropped > 100
            go_on.set()
    finally:
        go_on.set()
    assert captured.packets + captured.dropped == 700
    dropped = struct.pack("=HHQ", 5, 8, captured.dropped)
    assert dropped in slow.getvalue()[-100:]


def test_long_packets(cable: Cable, tmp_path: Path, read: Callable[..., list[list[str]]]) -> None:
    """What TCP hands to the interface before it is cut for the wire is in the file whole, and the stream with it."""
    stream = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(32_768))
    got = bytearray()
    with (
        in_netns(cable.b, socket.SOCK_STREAM) as server,
        in_netns(cable.a, socket.SOCK_STREAM) as client,
        capture(cable.a, "one", tmp_path / "file") as captured,
    ):
        server.bind(("10.9.0.2", PORT))
        server.listen()
        client.connect(("10.9.0.2", PORT))
        accepted, _ = server.accept()
        sender = threading.Thread(target=client.sendall, args=(stream,))
        sender.start()
        with accepted:
            while len(got) < len(stream):
                got += accepted.recv(1 << 20)
        sender.join()
    assert bytes(got) == stream
    found = read(
        *(tmp_path / "file", "frame.len", "frame.cap_len", "tcp.seq_raw", "tcp.payload"),
        only=f"tcp.dstport=={PORT} && tcp.len>0",
    )
    assert captured.dropped == 0
    assert all(size == kept for size, kept, *_ in found)
    assert max(int(size) for size, *_ in found) > 10_000
    start = min(int(number) for *_, number, _ in found)
    whole = bytearray(len(stream))
    for _, _, number, payload in found:
        raw = bytes.fromhex(payload)
        whole[int(number) - start : int(number) - start + len(raw)] = raw
    assert bytes(whole) == stream


def test_snaplen(net: NetNS, tmp_path: Path, read: Callable[..., list[list[str]]]) -> None:
    """Of each packet so much is kept as was asked for, and its whole length is told."""
    with in_netns(net, socket.SOCK_DGRAM) as listener, capture(net, "lo", tmp_path / "file", snaplen=60):
        listener.bind(("127.0.0.1", PORT))
        with in_netns(net, socket.SOCK_DGRAM) as sock:
            for size in (0, 18, 19, 9000):
                sock.sendto(bytes(size), ("127.0.0.1", PORT))
    found = read(tmp_path / "file", "frame.len", "frame.cap_len")
    assert found == [["42", "42"], ["60", "60"], ["61", "60"], ["9042", "60"]]


def frames(cable: Cable, *sent: bytes) -> None:
    """Send frames from one end to the other."""
    with in_netns(cable.a, socket.SOCK_RAW, socket.AF_PACKET) as sock:
        for frame in sent:
            sock.bind(("one", 0))
            sock.send(frame)


def mac(net: NetNS, name: str) -> bytes:
    """Return the address of an interface."""
    return bytes.fromhex(next(link.mac for link in links(net) if link.name == name).replace(":", ""))


@contextmanager
def heard(net: NetNS, name: str, packets: int) -> Iterator[None]:
    """Wait at the end of the block until so many frames have come, and every capture has them, which the kernel tells first."""
    with in_netns(net, socket.SOCK_RAW, socket.AF_PACKET) as sock:
        sock.bind((name, 0x88B5))
        yield
        for _ in range(packets):
            sock.recv(2000)


def test_whom_frames_are_for(cable: Cable, tmp_path: Path, read: Callable[..., list[list[str]]]) -> None:
    """What comes is told apart: for this interface, for several, for all, for somebody else."""
    own, sender = mac(cable.b, "two"), mac(cable.a, "one")
    everybody, several, other = b"\xff" * 6, b"\x01\0\x5e\0\0\x01", b"\x02\0\0\0\0\x99"
    with capture(cable.b, "two", tmp_path / "file"), heard(cable.b, "two", 4):
        frames(cable, *(to + sender + b"\x88\xb5" + bytes(50) for to in (own, several, everybody, other)))
    found = read(tmp_path / "file", "frame.packet_flags_reception_type", only="eth.type==0x88b5")
    assert found == [["1"], ["2"], ["3"], ["4"]]


def test_tagged_frames(cable: Cable, tmp_path: Path, read: Callable[..., list[list[str]]]) -> None:
    """The tag of a VLAN is in the frame, which is as long as it was on the wire, at both ends."""
    own, sender = mac(cable.b, "two"), mac(cable.a, "one")
    tagged = [own + sender + tag + b"\x88\xb5" + bytes(60) for tag in (b"\x81\0\x60\x05", b"\x88\xa8\0\x07")]
    with capture(cable.a, "one", tmp_path / "a"), capture(cable.b, "two", tmp_path / "b"), heard(cable.b, "two", 2):
        frames(cable, *tagged)
    for file in ("a", "b"):
        found = read(tmp_path / file, "vlan.id", "ieee8021ad.id", "vlan.priority", "frame.len", only="vlan || ieee8021ad")
        assert [line[0] or line[1] for line in found] == ["5", "7"]
        assert [line[3] for line in found] == ["78", "78"]
        raw = Path(tmp_path / file).read_bytes()
        assert all(frame in raw for frame in tagged)


def test_promiscuous(cable: Cable, tmp_path: Path) -> None:
    """The interface takes frames for others as long as it is wanted, and no longer."""

    def promiscuity() -> int:
        with cable.b.spawn(["ip", "-d", "-j", "link", "show", "two"], stdout=PIPE) as process:
            out, _ = process.communicate(timeout=60)
        return int(json.loads(out or b"")[0]["promiscuity"])

    with capture(cable.b, "two", tmp_path / "file", promiscuous=False):
        assert promiscuity() == 0
    with capture(cable.b, "two", tmp_path / "file"):
        assert promiscuity() == 1
    assert promiscuity() == 0


# ---- interfaces that change ----


def test_interface_that_goes_down_and_up(cable: Cable, tmp_path: Path, read: Callable[..., list[list[str]]]) -> None:
    """While an interface is down nothing is captured, and when it is up again it goes on."""
    with capture(cable.a, "one", tmp_path / "file") as captured:
        chatter(cable.a, "10.9.0.2", 3)
        cable.veth.a.down()
        cable.veth.a.up()
        assert captured.running
        with in_netns(cable.a, socket.SOCK_RAW, socket.AF_PACKET) as sock:
            sock.bind(("one", 0))
            sock.send(b"\xff" * 12 + b"\x88\xb5" + bytes(50))
    assert len(read(tmp_path / "file", "frame.number", only="eth.type==0x88b5")) == 1


def test_interface_that_goes_for_good(cable: Cable, tmp_path: Path, read: Callable[..., list[list[str]]]) -> None:
    """When the interface is removed, what it had is in the file, and closing is no error."""
    with capture(cable.a, "one", tmp_path / "file") as captured:
        chatter(cable.a, "10.9.0.255", 0)
        frames(cable, *[b"\xff" * 12 + b"\x88\xb5" + bytes(50)] * 5)
        cable.veth.close()
        assert captured.running
    assert len(read(tmp_path / "file", "frame.number", only="eth.type==0x88b5")) == 5


def test_interface_that_is_renamed(cable: Cable, tmp_path: Path) -> None:
    """An interface that gets another name is captured on, and the last packet is there."""
    with capture(cable.a, "one", tmp_path / "file") as captured:
        with cable.a.spawn(["ip", "link", "set", "one", "name", "uno"]) as process:
            assert process.wait(60).code == 0
        before = captured.packets
        with in_netns(cable.a, socket.SOCK_RAW, socket.AF_PACKET) as sock:
            sock.bind(("uno", 0))
            sock.send(b"\xff" * 12 + b"\x88\xb5" + bytes(50))
    assert captured.packets > before
    assert (tmp_path / "file").read_bytes().count(b"\xff" * 12 + b"\x88\xb5") == 1


def test_namespace_lives_as_long(net: NetNS, tmp_path: Path) -> None:
    """Closing the handle of the namespace does not end it."""
    with capture(net, "lo", tmp_path / "file") as captured, in_netns(net, socket.SOCK_DGRAM) as sock:
        net.close()
        sock.sendto(b"x", ("127.0.0.1", PORT))
    assert captured.packets >= 1
    with pytest.raises(ClosedError):
        capture(net, "lo", tmp_path / "other")
    assert not (tmp_path / "other").exists()


# ---- files ----


def test_file_is_overwritten(net: NetNS, tmp_path: Path) -> None:
    """A regular file is emptied first, also behind a symbolic link."""
    file = tmp_path / "file"
    file.write_bytes(bytes(100_000))
    (tmp_path / "link").symlink_to(file)
    with capture(net, "lo", tmp_path / "link") as captured:
        assert captured.path == str(tmp_path / "link")
    assert 0 < file.stat().st_size < 1000


def test_what_is_no_regular_file(net: NetNS, tmp_path: Path) -> None:
    """Pipes, devices and directories are refused and left as they are; nobody waits for the pipe's other end."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/null"):
        with pytest.raises(SyscallError, match="no regular file") as raised:
            capture(net, "lo", path)
        assert (raised.value.op, raised.value.target) == ("open", str(path))


def test_file_that_cannot_be_made(net: NetNS, tmp_path: Path) -> None:
    """The error names the call and the path."""
    with pytest.raises(SyscallError) as raised:
        capture(net, "lo", tmp_path / "missing" / "file")
    assert (raised.value.op, raised.value.errno) == ("open", errno.ENOENT)
    assert "missing/file" in str(raised.value)


def test_interface_that_there_is_not(net: NetNS, tmp_path: Path) -> None:
    """An unknown interface is named, and a file that was there is as it was."""
    file = tmp_path / "file"
    file.write_bytes(b"before")
    with pytest.raises(SyscallError, match="no such interface") as raised:
        capture(net, "eth9", file)
    assert (raised.value.target, raised.value.errno) == ("eth9", errno.ENODEV)
    assert file.read_bytes() == b"before"


def test_full_disk(net: NetNS, tmp_path: Path) -> None:
    """When the file can take no more, capturing ends, and closing tells why with the file's name."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    file = tmp_path / "file"
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
        captured = capture(net, "lo", file)
        chatter(net, "127.0.0.1", 1000)
        assert poll(captured._recorder._ended, 30_000)
        assert not captured.running
        with pytest.raises(SyscallError) as raised:
            captured.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert (raised.value.op, raised.value.target, raised.value.errno) == ("write", str(file), errno.EFBIG)
    captured.close()


class Drip(io.RawIOBase):
    """A file that takes a few bytes at a time."""

    def __init__(self) -> None:
        self.data = b""
        self.flushed = 0

    def writable(self) -> bool:
        """Say so."""
        return True

    def write(self, data: object) -> int:
        """Take the first of them."""
        some = bytes(data)[:7]  # type: ignore[call-overload]
        self.data += some
        return len(some)

    def flush(self) -> None:
        """Count it."""
        self.flushed += 1


def test_files_of_the_callers(net: NetNS, tmp_path: Path) -> None:
    """A file that is given open gets all of it, piece by piece where it must, is flushed and stays open."""
    drip, memory = Drip(), io.BytesIO()
    with (
        open(tmp_path / "file", "wb") as buffered,
        capture(net, "lo", drip) as one,
        capture(net, "lo", memory),
        capture(net, "lo", buffered) as third,
    ):
        assert third.path == str(tmp_path / "file")
        chatter(net, "127.0.0.1", 2)
        for captured in (one, third):
            captured.close()
        assert not buffered.closed
        assert (tmp_path / "file").stat().st_size > 300
    assert one.packets == 4
    assert drip.flushed == 1
    assert drip.data.count(b"00000001") == memory.getvalue().count(b"00000001") == 2
    assert not memory.closed


def test_error_of_the_callers_file(net: NetNS) -> None:
    """What the file raises is raised by what writes first: the start, or closing."""

    class Broken(io.BytesIO):
        def write(self, data: object) -> int:
            if self.tell() >= self.limit:
                raise OSError(errno.EIO, "broken")
            return super().write(data)  # type: ignore[arg-type]

        limit = 0

    with pytest.raises(OSError, match="broken"):
        capture(net, "lo", Broken())
    later = Broken()
    later.limit = 1
    captured = capture(net, "lo", later)
    with pytest.raises(OSError, match="broken"):
        captured.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"interface": ""}, "interface"),
        ({"interface": "x" * 16}, "interface"),
        ({"interface": 5}, "interface"),
        ({"path": ""}, "path"),
        ({"path": 5}, "path"),
        ({"path": io.StringIO()}, "path"),
        ({"snaplen": 0}, "snaplen"),
        ({"snaplen": 262_145}, "snaplen"),
        ({"snaplen": "1K"}, "snaplen"),
        ({"net": 5}, "net"),
    ],
)
def test_bad_arguments(net: NetNS, tmp_path: Path, arguments: dict[str, object], words: str) -> None:
    """An argument that cannot work is named before anything is done."""
    with pytest.raises(PlanError, match=words):
        capture(**{"net": net, "interface": "lo", "path": tmp_path / "file"} | arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "file").exists()


# ---- lives ----


def test_handle(net: NetNS) -> None:
    """It describes itself, is closed by its block, and closing it again is nothing."""
    with capture(net, "lo", io.BytesIO()) as captured:
        assert captured.running
        assert "of lo in" in repr(captured)
    captured.close()
    assert "closed" in repr(captured)
    assert (captured.packets, captured.dropped) == (0, 0)
    with pytest.raises(ClosedError), captured:
        pass


def test_own_namespace(rights: str, tmp_path: Path) -> None:
    """Without a namespace it is that of the calling thread; who has no rights there is told so."""
    if rights == "rootless":
        with pytest.raises(isolib.PermissionDenied):
            capture(None, "lo", tmp_path / "file")
        return
    with isolib.new_netns() as net, capture(None, "lo", tmp_path / "file") as captured:
        chatter(net, "127.0.0.1", 3)
    assert captured.packets == 6


def test_end_before_it_began(net: NetNS) -> None:
    """Who was interrupted before there was a thread does not wait for one, and one that comes yet does nothing."""
    file = io.BytesIO()
    with closing(open_packet_socket(net, "lo", snaplen=100, promiscuous=False)) as source:
        recorder = _Recorder(source, _Sink(file), 0)
        recorder.end()
        recorder.run()
        assert source.fileno() >= 0
    assert file.getvalue() == b""


def test_several_at_once(net: NetNS) -> None:
    """Each of several captures of one interface has every packet."""
    files = [io.BytesIO() for _ in range(5)]
    with ExitStack() as stack:
        captures = [stack.enter_context(capture(net, "lo", file)) for file in files]
        chatter(net, "127.0.0.1", 50)
    assert [captured.packets for captured in captures] == [100] * 5
    assert [file.getvalue().count(b"00000049") for file in files] == [2] * 5


def test_fork(net: NetNS, tmp_path: Path) -> None:
    """A fork's copy is of no use and may be closed; the parent's goes on, and none of its counts are lost."""
    with capture(net, "lo", tmp_path / "file") as captured:
        chatter(net, "127.0.0.1", 10)
        child = os.fork()
        if not child:
            status = 1
            try:
                assert not captured.running
                assert captured.dropped == 0
                captured.close()
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        chatter(net, "127.0.0.1", 10)
    assert captured.packets == 40
    assert struct.pack("=HHQ", 4, 8, 40) in (tmp_path / "file").read_bytes()[-100:]


def test_forgotten(net: NetNS) -> None:
    """One that nobody has any more complains, and ends with its file written."""
    file = io.BytesIO()
    captured = capture(net, "lo", file)
    chatter(net, "127.0.0.1", 4)
    with pytest.warns(ResourceWarning, match="never closed"):
        del captured
    assert file.getvalue().count(b"00000003") == 2


def test_no_descriptors(net: NetNS, tmp_path: Path) -> None:
    """Whichever descriptor is refused, the error is isolib's and names the limit, and nothing stays open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    capture(net, "lo", tmp_path / "file").close()
    first = os.dup(0)
    os.close(first)
    refusals: list[str] = []
    try:
        for allowed in range(first, first + 40):
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
            try:
                capture(net, "lo", tmp_path / "file").close()
            except SyscallError as error:
                refusals.append(str(error))
            else:
                break
        else:
            pytest.fail("never enough")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(refusals) > 3
    assert [text for text in refusals if "RLIMIT_NOFILE" not in text] == []


@pytest.mark.filterwarnings("ignore:never closed:ResourceWarning", "ignore:unclosed:ResourceWarning")
def test_interrupt_at_every_point(rights: str, net: NetNS) -> None:
    """Wherever a KeyboardInterrupt comes, no thread, socket or file is left."""
    own = {f"/isolib/{name}.py" for name in ("net/capture", "net/packet_socket", "net/ring", "_kernel/threads")}

    def scenario() -> None:
        with capture(net, "lo", io.BytesIO()):
            pass

    turn = 1 if rights == "privileged" else 2  # each at points of its own, for every turn waits for the kernel
    while not interrupt(turn, scenario, lambda code: any(code.co_filename.endswith(name) for name in own)):
        gc.collect()
        assert [thread.name for thread in threading.enumerate() if thread.name == "isolib capture"] == [], turn
        turn += 3
    assert turn > 20
