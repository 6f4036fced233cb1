"""Traffic control: what is sent for a value, what is read from the kernel's words, and that nonsense is refused."""

from __future__ import annotations

import struct
from typing import TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolib._kernel.netlink import codec, tc
from isolib._kernel.netlink.codec import MalformedError, Message
from isolib._kernel.netlink.qdiscs import CERTAIN, QDISCS, Bfifo, Clsact, Htb, HtbClass, Ingress, Netem, Pfifo, Tbf

Sent: TypeAlias = "tuple[int, int, int, int, dict[int, bytes]]"

times = st.integers(0, 2**62)
chances = st.integers(2, CERTAIN) | st.just(0)
words = st.integers(0, 2**32 - 1)
netems = st.builds(
    Netem,
    delay=times,
    jitter=times,
    loss=chances,
    duplicate=chances,
    corrupt=chances,
    reorder=chances,
    gap=words,
    rate=st.integers(0, 2**63),
    limit=words,
    delay_correlation=chances,
    loss_correlation=chances,
    duplicate_correlation=chances,
    corrupt_correlation=chances,
    reorder_correlation=chances,
)
ANY = [Netem(), Tbf(1, 1, 1), Htb(), Pfifo(1), Bfifo(1), Clsact(), Ingress()]


def taken_apart(body: bytes) -> Sent:
    """Return the interface, handle, parent and info of a request, and its attributes."""
    _, _, _, index, number, parent, info = tc.TCMSG.unpack_from(body)
    return index, number, parent, info, codec.table(body, tc.TCMSG.size)


@given(netems)
def test_netem_comes_back(netem: Netem) -> None:
    """All that netem is told comes back as it was."""
    assert Netem.parse(netem.options()) == netem


@given(st.integers(1, 2**40), st.integers(1, 2**32 - 1), words)
def test_bucket_comes_back(rate: int, burst: int, limit: int) -> None:
    """A token bucket comes back as it was; its burst, which the kernel tells as a time, to one tick of 64 ns."""
    back = Tbf.parse(Tbf(rate, burst, limit).options())
    assert (back.rate, back.limit_bytes) == (rate, limit)
    longest = (2**32 - 1) * 64 * rate / 10**9
    assert back.burst_bytes == pytest.approx(min(burst, longest), abs=1 + 64 * rate / 10**9, rel=1e-6)


@given(words)
def test_queues_come_back(number: int) -> None:
    """Queues and the root of a tree come back as they were."""
    for one in (Pfifo(number), Bfifo(number), Htb(number)):
        assert type(one).parse(one.options()) == one
    assert Clsact.parse(Clsact().options()) == Clsact()
    assert Ingress.parse(Ingress().options()) == Ingress()


def test_netem_bytes() -> None:
    """Netem's structure and attributes are those of linux/pkt_sched.h, and all are sent, so that none stays as it was."""
    netem = Netem(delay=20_000_000, jitter=64, loss=CERTAIN, reorder=CERTAIN // 2, gap=1, rate=5 * 10**9, limit=7)
    data = netem.options()
    assert struct.unpack_from("=6I", data) == (312_500, 7, 2**32 - 1, 1, 0, 1)
    found = codec.table(data, 24)
    assert set(found) == {1, 3, 4, 6, 8, 10, 11}
    assert struct.unpack("=II", found[3]) == (2**31 - 1, 0)
    assert struct.unpack("=IiIi", found[6]) == (2**32 - 1, 0, 0, 0)
    assert [struct.unpack("=Q", found[kind])[0] for kind in (8, 10, 11)] == [5 * 10**9, 20_000_000, 64]
    assert set(codec.table(Netem().options(), 24)) == {1, 3, 4, 6, 10, 11}


def test_bucket_bytes() -> None:
    """A rate beyond 32 bits has an attribute of its own, and the burst is given in bytes."""
    found = codec.table(Tbf(2**33, 1500, 3000).options())
    assert struct.unpack("=I", found[6]) == (1500,)
    assert struct.unpack("=Q", found[4]) == (2**33,)
    assert struct.unpack("=BBHhHI12xIII", found[1])[5:7] == (2**32 - 1, 3000)
    assert set(codec.table(Tbf(1000, 1500, 3000).options())) == {1, 6}


def test_class_bytes() -> None:
    """A class has its two rates, and the times that its burst takes at them."""
    found = codec.table(HtbClass(rate=10**6, ceil=2**33, burst_bytes=1000).options())
    values = struct.unpack("=BBHhHIBBHhHIIIIII", found[1])
    assert (values[5], values[11]) == (10**6, 2**32 - 1)
    assert values[12:14] == (10**6 // 64, -(-1000 * 10**9 // 2**33) // 64)
    assert set(found) == {1, 7}


def test_replace() -> None:
    """A queueing discipline takes the place of another; a place for filters is made where there is none."""
    request = tc.add_qdisc(3, Pfifo(5), "eth0", number=tc.handle(2), parent=tc.handle(1, 1))
    assert (request.type, request.flags, request.target) == (36, codec.CREATE | codec.REPLACE, "pfifo of eth0")
    index, number, parent, info, found = taken_apart(request.body)
    assert (index, number, parent, info) == (3, 0x20000, 0x10001, 0)
    assert found == {1: b"pfifo\0", 2: struct.pack("=I", 5)}
    request = tc.add_qdisc(3, Clsact(), "eth0")
    assert request.flags == codec.CREATE | codec.EXCL
    assert taken_apart(request.body)[:3] == (3, 0xFFFF0000, 0xFFFFFFF1)


def test_filters() -> None:
    """A filter that redirects names the other interface; its protocol is in the network's order."""
    request = tc.add_filter(3, tc.redirect_filter(9), "eth0", parent=tc.EGRESS, priority=2, protocol=tc.ANY_PROTOCOL)
    index, _, parent, info, found = taken_apart(request.body)
    assert (index, parent, info >> 16) == (3, 0xFFFFFFF3, 2)
    assert struct.pack("=H", info & 0xFFFF) == b"\0\3"
    assert found[1] == b"u32\0"
    options = codec.table(found[2])
    assert set(options) == {5, 7}
    assert len(options[5]) == 16 + 16
    action = codec.table(codec.table(options[7])[1])
    assert action[1] == b"mirred\0"
    assert struct.unpack("=IIiiiiI", codec.table(action[2])[2]) == (0, 0, 4, 0, 0, 1, 9)
    assert set(codec.table(tc.pass_filter())) == {5}
    gone = tc.delete_filter(3, "eth0", parent=tc.EGRESS, priority=2, protocol=tc.ANY_PROTOCOL)
    assert taken_apart(gone.body)[:4] == taken_apart(request.body)[:4]


def told(kind: str, options: bytes, stats: bytes) -> Message:
    """Return what the kernel says of a queueing discipline."""
    body = tc.TCMSG.pack(0, 0, 0, 3, 0x10000, tc.ROOT, 2)
    body += codec.text(1, kind) + codec.attribute(2, options) + codec.attribute(7, stats)
    return Message(36, 0, 1, 0, body)


def test_statistics() -> None:
    """What has passed is read from the nested statistics, with the 64-bit count of packets where there is one."""
    basic = codec.attribute(1, struct.pack("=QI4x", 2**40, 7))
    queue = codec.attribute(3, struct.pack("=5I", 1, 1500, 3, 4, 5))
    state = tc.parse_qdisc(told("pfifo", struct.pack("=I", 9), basic + queue))
    assert (state.index, state.kind, state.number, state.parent) == (3, "pfifo", 0x10000, tc.ROOT)
    assert state.options == Pfifo(9)
    assert state.stats == tc.QueueStats(2**40, 7, dropped=3, waiting=1, waiting_bytes=1500, overlimits=5)
    wide = codec.u64(8, 2**33)
    assert tc.parse_qdisc(told("pfifo", struct.pack("=I", 9), basic + wide)).stats.sent == 2**33
    assert tc.parse_qdisc(told("unheard-of", b"\1", b"")).options is None


@given(st.sampled_from(sorted(QDISCS)), st.binary(max_size=120), st.binary(max_size=60))
def test_nonsense(kind: str, options: bytes, stats: bytes) -> None:
    """Whatever stands in a message, it is a value or a `MalformedError`."""
    try:
        state = tc.parse_qdisc(told(kind, options, stats))
    except MalformedError:
        return
    assert state.kind == kind


@given(st.binary(max_size=60))
def test_short_message(body: bytes) -> None:
    """A message without its structure is refused."""
    try:
        tc.parse_qdisc(Message(36, 0, 1, 0, body))
    except MalformedError:
        return
    assert len(body) >= tc.TCMSG.size


@pytest.mark.parametrize("one", ANY, ids=lambda one: one.kind)
def test_every_kind_is_known(one: Netem) -> None:
    """The kernel's name of each kind leads back to it."""
    assert QDISCS[one.kind] is type(one)
