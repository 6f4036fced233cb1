"""Bad weather on a real cable: what is in force, what it does to packets, how it changes, and that nothing is left."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from isolib._kernel.netlink import tc
from isolib._kernel.netlink.qdiscs import Bfifo, Htb, HtbClass, Ingress, Pfifo, Tbf
from isolib.errors import SyscallError
from isolib.net.queries import links
from isolib.net.weather import Impairment, parse_impairment
from tests.examined import in_new_net
from tests.nets import PATIENCE, socket_in, until
from tests.oracles import run_in as tool
from tests.traffic import FAR, NEAR, Flow, line, opened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.traffic import Line

pytestmark = pytest.mark.usefixtures("user_namespaces")

ETH_P_ALL = 3


@pytest.fixture(params=["as the kernel can", "without netem"])
def near(request: pytest.FixtureRequest) -> Iterator[Line]:
    """Return a cable whose near end is shaped by the best backend, and by those for kernels without netem."""
    with line(without_netem=request.param != "as the kernel can", one_processor=True) as made:
        yield made


@pytest.fixture
def relayed() -> Iterator[Line]:
    """Return a cable whose near end is shaped by the relay."""
    with line(without_netem=True, one_processor=True) as made:
        yield made


ASKED = {
    "delay": "20ms",
    "jitter": "5ms",
    "loss": "1%",
    "duplicate": "2%",
    "corrupt": "3%",
    "reorder": "4%",
    "rate": "10mbit",
    "limit": 500,
}


def test_all_is_in_force(near: Line) -> None:
    """Everything that is asked for together is in force by one backend, with the values asked for."""
    asked = parse_impairment(**ASKED)  # type: ignore[arg-type]
    force = near.shaping.apply(asked)
    assert {one.name for one in force} == set(ASKED)
    assert len(force.backends) == 1
    assert all(force[name].value == pytest.approx(value, rel=1e-6) for name, value in asked.asked())
    assert all(one.exactly for one in force)
    assert near.shaping.in_force is force


def test_netem_where_there_is_one() -> None:
    """Where tc can have a netem, that does the weather, and elsewhere a relay does what delays."""
    has_netem = in_new_net("exec tc qdisc add dev lo root netem")
    with line() as made:
        for asked in (parse_impairment(delay="1ms"), parse_impairment(**ASKED)):  # type: ignore[arg-type]
            assert made.shaping.apply(asked).backends == {"netem" if has_netem else "relay"}


@pytest.mark.parametrize("name", ["delay", "loss", "duplicate", "corrupt", "rate"])
def test_each_is_in_force(near: Line, name: str) -> None:
    """Each thing can be asked for alone, and replaces what was there before, whatever backend did that."""
    for asked in (parse_impairment(**{name: ASKED[name]}), parse_impairment(loss=0.5), parse_impairment(delay=1)):  # type: ignore[arg-type]
        force = near.shaping.apply(asked)
        assert {one.name for one in force} - {"limit"} == {key for key, _ in asked.asked()}


def test_tools_agree(near: Line) -> None:
    """What tc and nft see is what is said to be in force."""
    for asked in (parse_impairment(rate="8mbit", limit=77), parse_impairment(loss="25%"), parse_impairment(delay="30ms")):
        backends = near.shaping.apply(asked).backends
        listed = {one["kind"]: one.get("options", {}) for one in json.loads(tool(near.near, "tc", "-j", "qdisc"))}
        assert ("netem" in listed) is ("netem" in backends)
        assert ("tbf" in listed) is ("tbf" in backends)
        assert (tool(near.near, "tc", "filter", "show", "dev", near.cable.a.name, "egress") != "") is ("relay" in backends)
        if "tbf" in backends:
            assert listed["tbf"]["rate"] == 1_000_000
            assert listed["pfifo"]["limit"] == 77
        if "netem" in backends and asked.delay:
            assert listed["netem"]["delay"]["delay"] == pytest.approx(0.03)
        if "nftables" in backends or "netem" not in backends:
            rules = tool(near.near, "nft", "list", "ruleset") if os.geteuid() == 0 else None
            assert rules is None or ("numgen random" in rules) is ("nftables" in backends)


def test_what_the_kernel_says_is_parsed(near: Line) -> None:
    """A token bucket reads back as it was set, and counts what has passed it."""
    near.shaping._has_netem = False
    near.shaping.apply(parse_impairment(rate="80mbit", limit=50))
    with Flow(near) as flow:
        flow.send(10)
        flow.take_until(10)
    states = {one.kind: one for one in near.queues()}
    bucket = states["tbf"].options
    assert isinstance(bucket, Tbf)
    assert bucket.rate == 10_000_000
    assert bucket.burst_bytes == pytest.approx(20_000, rel=0.01)
    assert states["tbf"].stats.sent >= 10
    assert states["tbf"].stats.sent_bytes >= 10 * 142
    assert states["pfifo"].options == Pfifo(50)


def test_classes_and_queues_are_made(near: Line) -> None:
    """The kernel takes the other queueing disciplines as they are encoded, and tells them as they were."""
    route, index = near.near.netlink(), near.cable.a.index
    name = near.cable.a.name
    route.send(
        tc.add_qdisc(index, Htb(default=7), name, number=tc.handle(1)),
        tc.add_class(index, HtbClass(10**6, 2 * 10**6, 5000), name, number=tc.handle(1, 7), parent=tc.handle(1)),
        tc.add_qdisc(index, Bfifo(12345), name, parent=tc.handle(1, 7)),
        tc.add_qdisc(index, Ingress(), name),
    )
    states = {one.kind: one.options for one in near.queues()}
    assert states == {"htb": Htb(default=7), "bfifo": Bfifo(12345), "ingress": Ingress()}
    assert "rate 8Mbit ceil 16Mbit burst 5000b" in tool(near.near, "tc", "class", "show", "dev", name)
    route.ask(tc.delete_qdisc(index, name))
    route.ask(tc.delete_qdisc(index, name, parent=tc.CLSACT))
    assert {one.kind for one in near.queues()} == {"noqueue"}


def test_loss_of_all(near: Line) -> None:
    """With a loss of 1 nothing passes, with none all does, and the change is for whatever is sent after it."""
    with Flow(near) as flow:
        flow.send()
        flow.take_until(1)
        for loss in (1, 0.999_999_999, None):
            near.shaping.apply(parse_impairment(loss=loss))
            flow.send(20)
        flow.take_until(21)
        assert flow.numbers == [0, *range(41, 61)]


def test_change_loses_nothing(near: Line) -> None:
    """A delay that is changed while packets are under way loses none, also where it goes up and down."""
    with Flow(near) as flow:
        for delay in ("30ms", "10ms", "50ms", "20ms"):
            near.shaping.apply(parse_impairment(delay=delay))
            flow.send(100)
        flow.take_until(400)
        assert sorted(flow.numbers) == list(range(400))


def test_clear_of_a_relay_sends_what_waits(relayed: Line) -> None:
    """What waits in a relay when the weather turns good is sent at once, in its order."""
    relayed.shaping.apply(parse_impairment(delay=3600))
    with Flow(relayed) as flow:
        neighbours(relayed)
        flow.send(50)
        relayed.shaping.clear()
        flow.take_until(50)
        assert flow.numbers == list(range(50))


def neighbours(near: Line) -> None:
    """Tell both ends each other's MAC address, so that no question needs to pass."""
    for ns, end, other, address in (
        (near.near, near.cable.a, near.cable.b, FAR),
        (near.far, near.cable.b, near.cable.a, NEAR),
    ):
        tool(ns, "ip", "neigh", "replace", address, "lladdr", other.link().mac, "dev", end.name, "nud", "permanent")


def test_jitter_keeps_the_order(near: Line) -> None:
    """Packets with a jitter come in their order."""
    near.shaping.apply(parse_impairment(delay="20ms", jitter="20ms"))
    with Flow(near) as flow:
        neighbours(near)
        flow.send(300)
        flow.take_until(300)
        assert flow.numbers == list(range(300))


def test_reorder(near: Line) -> None:
    """Packets that are reordered overtake those that wait, none is lost, and the others keep their order."""
    near.shaping.apply(parse_impairment(delay="50ms", reorder=0.5))
    with Flow(near) as flow:
        neighbours(near)
        flow.send(200)
        flow.take_until(200)
        assert sorted(flow.numbers) == list(range(200))
        highest, overtaken = -1, []
        for number in flow.numbers:
            if number < highest:
                overtaken.append(number)
            highest = max(highest, number)
        assert overtaken
        assert overtaken == sorted(overtaken)


def test_every_packet_twice(near: Line) -> None:
    """With a probability of 1 every packet comes twice."""
    near.shaping.apply(parse_impairment(duplicate=1))
    with Flow(near) as flow:
        flow.send(100)
        flow.take_until(200)
        assert sorted(flow.numbers) == sorted([*range(100), *range(100)])


@pytest.mark.parametrize("checksum", [False, True])
def test_corruption(near: Line, checksum: bool) -> None:  # noqa: FBT001 - pytest's parameter
    """One bit of a corrupt packet is turned, and where there is a checksum, it no longer fits."""
    with Flow(near, size=1400, checksum=checksum) as flow:
        neighbours(near)
        near.shaping.apply(parse_impairment(corrupt=1))
        flow.send(60)
        near.shaping.apply(parse_impairment())
        flow.size = 50
        flow.send(1)
        flow.take_until(1)
        flow.take(0.1)  # whoever came first by another processor
        turned = [sum(byte.bit_count() for byte in one[4:]) for one in flow.received]
    # Most of the bits of a packet are what is looked at here.
    assert set(turned) <= {0, 1}
    assert sum(turned) == 0 if checksum else sum(turned) > 30


def say(client: socket.socket, what: bytes) -> None:
    """Send all of it, and that it is all."""
    client.sendall(what)
    client.shutdown(socket.SHUT_WR)


def test_long_and_short_packets_pass_whole(relayed: Line) -> None:
    """What the relay puts back is what it has taken: from the shortest packet to the longest, and what TCP joins and splits."""
    relayed.shaping.apply(parse_impairment(delay="1ms", loss="1%"))
    sent = os.urandom(3_000_000)
    with opened(relayed.far, socket.SOCK_STREAM, FAR) as server:
        server.listen()
        with opened(relayed.near, socket.SOCK_STREAM, NEAR) as client:
            client.connect(server.getsockname())
            accepted, _ = server.accept()
            writer = threading.Thread(target=say, args=(client, sent))
            writer.start()
            with accepted:
                accepted.settimeout(PATIENCE)
                received = b"".join(iter(lambda: accepted.recv(65536), b""))
            writer.join()
    assert hashlib.sha256(received).digest() == hashlib.sha256(sent).digest()
    with Flow(relayed, size=1472) as flow:
        relayed.shaping.apply(parse_impairment(delay="1ms"))
        flow.send(50)
        flow.take_until(50)
        assert {len(one) for one in flow.received} == {1472}


def test_tags_pass(relayed: Line) -> None:
    """A frame with an 802.1Q tag has it behind the relay too."""
    relayed.shaping.apply(parse_impairment(delay="1ms"))
    ends = ((relayed.near, relayed.cable.a.name), (relayed.far, relayed.cable.b.name))
    sockets = []
    for ns, name in ends:
        sockets.append(socket_in(ns, socket.SOCK_RAW, socket.AF_PACKET))
        sockets[-1].bind((name, ETH_P_ALL))
    out, into = sockets
    with out, into:
        into.setsockopt(263, 8, 1)  # SOL_PACKET, PACKET_AUXDATA: the kernel tells the tag beside the frame
        payload = b"\x88\xb5" + b"isolib" * 10
        out.send(b"\xff" * 6 + b"\x02\0\0\0\0\x01" + b"\x81\x00\x20\x2a" + payload)
        while True:
            frame, extra, _, _ = into.recvmsg(2000, 100)
            if b"isolib" in frame:
                break
    assert frame == b"\xff" * 6 + b"\x02\0\0\0\0\x01" + payload
    assert int.from_bytes(extra[0][2][16:18], sys.byteorder) == 0x202A


def test_big_mtu(relayed: Line) -> None:
    """An MTU that is raised under way is known at the next change."""
    relayed.shaping.apply(parse_impairment(delay="1ms"))
    relayed.cable.a.change(mtu=9000)
    relayed.cable.b.change(mtu=9000)
    relayed.shaping.apply(parse_impairment(delay="2ms"))
    with Flow(relayed, size=8900) as flow:
        flow.send(5)
        flow.take_until(5)
        assert {len(one) for one in flow.received} == {8900}


def test_down_and_up(near: Line) -> None:
    """An interface that was down has the same weather when it is up again."""
    near.shaping.apply(parse_impairment(delay="20ms", duplicate=1))
    near.cable.a.down()
    near.cable.a.up()
    with Flow(near) as flow:
        flow.send(5)
        flow.take_until(10)
        assert sorted(flow.numbers) == sorted([*range(5), *range(5)])


def test_capture_sees_what_leaves(relayed: Line) -> None:
    """Who captures at the interface sees each packet once, when it really leaves."""
    relayed.shaping.apply(parse_impairment(delay="10ms", duplicate=1))
    with socket_in(relayed.near, socket.SOCK_RAW, socket.AF_PACKET) as tap, Flow(relayed) as flow:
        tap.bind((relayed.cable.a.name, ETH_P_ALL))
        tap.settimeout(0)
        flow.send(10)
        flow.take_until(20)
        seen = 0
        try:
            while True:
                seen += b"\0" * 90 in tap.recv(2000)
        except BlockingIOError:
            pass
    assert seen == 20


def test_clear_leaves_nothing(near: Line) -> None:
    """In good weather the namespace is as it was, but for an empty place for filters: no queue, link or thread is left."""
    before = links(near.near)
    for asked in (parse_impairment(delay=1), parse_impairment(loss=1), parse_impairment(rate=10**6)):
        near.shaping.apply(asked)
    near.shaping.apply(parse_impairment(delay=1))
    near.shaping.clear()
    near.shaping.clear()
    assert [one.name for one in links(near.near)] == [one.name for one in before]
    assert {one.kind for one in near.queues()} <= {"noqueue", "clsact"}
    assert tool(near.near, "tc", "filter", "show", "dev", near.cable.a.name, "egress") == ""
    assert not near.shaping.in_force
    assert near.shaping.in_force.impairment == Impairment()


def held() -> tuple[int, set[str]]:
    """Return how many relays this process has, by the names of its threads, and its descriptors."""
    names = []
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/self/task/{thread}/comm", encoding="ascii") as file:
            names.append(file.read())
    return names.count("isolib-relay\n"), set(os.listdir("/proc/self/fd"))


def test_weather_ends_with_its_handle() -> None:
    """A handle that is closed while packets wait, and its cable after it, leave nothing: no thread, no descriptor."""
    before = held()
    with line(without_netem=True) as made:
        made.shaping.apply(parse_impairment(delay=60))
        assert until(lambda: held()[0] == before[0] + 1)  # it gives itself its name
        with Flow(made) as flow:
            flow.send(5)
            made.shaping.close()
            made.shaping.close()
    assert until(lambda: held() == before)


def test_killed_program(relayed: Line) -> None:
    """A program that is killed leaves no relay behind in a namespace that somebody else keeps."""
    code = """
import sys
from isolib import open_netns
from isolib.net.shaping import Shaping
from isolib.net.weather import parse_impairment
from isolib.net.where import Where
shaping = Shaping(Where(open_netns(fd=int(sys.argv[1]))), int(sys.argv[2]), sys.argv[3])
shaping._has_netem = False
shaping.apply(parse_impairment(delay=60))
print("ready", flush=True)
sys.stdin.read()
"""
    near = relayed.near.fileno()
    end = relayed.cable.a
    with socket_in(relayed.near, socket.SOCK_RAW, socket.AF_NETLINK, socket.NETLINK_ROUTE) as events:
        events.bind((0, 1))  # RTMGRP_LINK
        argv = [sys.executable, "-c", code, str(near), str(end.index), end.name]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[near]) as program:
            assert program.stdout is not None
            assert program.stdout.readline() == b"ready\n"
            assert any(one.name.startswith("isolib-") for one in links(relayed.near))
            program.kill()
        while any(one.name.startswith("isolib-") for one in links(relayed.near)):
            events.recv(65536)


def test_no_descriptors(relayed: Line) -> None:
    """Whichever descriptor is refused, the error names the limit, and of the relay nothing is left."""
    before, soft = links(relayed.near), resource.getrlimit(resource.RLIMIT_NOFILE)
    first = os.dup(0)
    os.close(first)
    refusals: list[str] = []
    try:
        for allowed in range(first, first + 40):
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, soft[1]))
            try:
                relayed.shaping.apply(parse_impairment(delay=1))
            except SyscallError as error:
                refusals.append(str(error))
            else:
                break
        else:
            pytest.fail("never enough")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, soft)
    assert len(refusals) > 3
    assert [text for text in refusals if "RLIMIT_NOFILE" not in text] == []
    relayed.shaping.clear()
    assert [one.name for one in links(relayed.near)] == [one.name for one in before]


def test_fork(relayed: Line) -> None:
    """In a fork of the program, closing does nothing to the weather of the parent."""
    relayed.shaping.apply(parse_impairment(delay="5ms"))
    pid = os.fork()
    if not pid:
        status = 1
        try:
            relayed.shaping.clear()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    with Flow(relayed) as flow:
        flow.send(20)
        flow.take_until(20)
    assert {one.kind for one in relayed.queues()} >= {"clsact"}


def test_renamed_interface(near: Line) -> None:
    """An interface that has got another name has the weather that is asked for afterwards, by the same backends."""
    asked = parse_impairment(loss=1), parse_impairment(rate=10**6), parse_impairment(delay=1)
    before = [near.shaping.apply(one).backends for one in asked]
    near.shaping.clear()
    near.cable.a.down()  # Linux 6.2 renames one that is up
    near.cable.a.change(name="other")
    near.cable.a.up()
    assert [near.shaping.apply(one).backends for one in asked] == before


def test_many_interfaces() -> None:
    """Each of many interfaces has its own weather, and leaves the others alone."""
    with ExitStack() as stack:
        lines = [stack.enter_context(line(without_netem=True)) for _ in range(10)]
        for number, one in enumerate(lines):
            one.shaping.apply(parse_impairment(delay=f"{number + 1}ms", duplicate=number % 2))
        for number, one in enumerate(lines):
            with Flow(one) as flow:
                flow.send(10)
                flow.take_until(10 * (1 + number % 2))


def test_interface_that_is_gone(near: Line) -> None:
    """Weather for an interface that is gone is refused by name, and that there is none any more is no error."""
    near.shaping.apply(parse_impairment(delay="5ms"))
    near.cable.close()
    near.shaping.clear()
    with pytest.raises(SyscallError, match=near.cable.a.name):
        near.shaping.apply(parse_impairment(delay="5ms"))
