"""Bad weather, measured: what is in force happens to packets as it was asked for.

Whatever is a matter of chance is tried so often that a right one is taken for wrong less than once in a million times.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from isolib.net.weather import parse_impairment
from tests.programs import iperf3
from tests.traffic import FAR, Flow, line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.traffic import Line

pytestmark = pytest.mark.usefixtures("user_namespaces")

#: Asks for the relay where there is no netem, and for nothing that can be seen.
UNSEEN = "1us"
#: Of Ethernet, IP and UDP.
HEADERS = 14 + 20 + 8


@dataclass
class Weather:
    """A line, and what is asked for besides so that a backend has to do it."""

    line: Line
    more: dict[str, str]

    def apply(self, **asked: object) -> frozenset[str]:
        """Have this weather; return the backends."""
        return self.line.shaping.apply(parse_impairment(**(self.more | asked))).backends  # type: ignore[arg-type]


@pytest.fixture(params=["as the kernel can", "relay"])
def weather(request: pytest.FixtureRequest) -> Iterator[Weather]:
    """Return a line that is shaped by what the kernel has, and by the relay."""
    with line(without_netem=request.param == "relay") as made:
        yield Weather(made, {"delay": UNSEEN} if request.param == "relay" else {})


def round_trips(near: Line, count: int) -> float:
    """Return the median of so many round trips, in seconds."""
    taken = []
    with near.udp() as here, near.udp(far=True) as there:
        here.connect(there.getsockname())
        there.connect(here.getsockname())
        for _ in range(count):
            start = time.perf_counter()
            here.send(b"there")
            there.send(there.recv(100))
            here.recv(100)
            taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def test_delay(weather: Weather) -> None:
    """A round trip takes longer by the delay that was asked for, within 2 ms, also when it is changed."""
    plain = round_trips(weather.line, 60)
    for delay in (0.02, 0.04, 0.005):
        weather.apply(delay=delay)
        assert round_trips(weather.line, 60) - plain == pytest.approx(delay, abs=0.002)


def test_jitter(weather: Weather) -> None:
    """With a jitter the delay is never outside of its bounds, and half of the packets are on either side of its middle."""
    weather.apply(delay="20ms", jitter="15ms")
    with Flow(weather.line) as flow:
        taken = []
        for _ in range(200):
            start = time.perf_counter()
            flow.send()
            flow.take_until(len(flow.received) + 1)
            taken.append(time.perf_counter() - start)
    assert min(taken) >= 0.005
    # The median of 200 has a deviation of 1.06 ms.
    assert statistics.median(taken) == pytest.approx(0.02, abs=0.0075)
    assert max(taken) - min(taken) > 0.02


def sent(weather: Weather, count: int, *, size: int = 100, checksum: bool = True) -> Flow:
    """Return what came of so many datagrams and a few more, sent no faster than they are taken, so that none is too many."""
    with Flow(weather.line, size=size, checksum=checksum) as flow:
        while flow.sent < count:
            flow.send(100)
            flow.send_on()
        flow.take(0.5)
        flow.arrived = flow.delivered
    return flow


def test_loss(weather: Weather) -> None:
    """Of 10,000 packets as many are lost as was asked for, within 10 %."""
    weather.apply(loss=0.25)
    flow = sent(weather, 10_000)
    assert flow.sent - flow.arrived == pytest.approx(flow.sent * 0.25, rel=0.1)


def test_duplicates(weather: Weather) -> None:
    """Of 10,000 packets as many come twice as was asked for, within 10 %, and no other one."""
    weather.apply(duplicate=0.25)
    flow = sent(weather, 10_000)
    assert flow.arrived - flow.sent == pytest.approx(flow.sent * 0.25, rel=0.1)
    numbers = flow.numbers
    assert max(map(numbers.count, set(numbers[:200]))) == 2


def test_corruption(weather: Weather) -> None:
    """Of 4,000 packets as many have one bit turned as was asked for, within 10 %, and no other is changed."""
    weather.apply(corrupt=0.5)
    flow = sent(weather, 4000, size=1400, checksum=False)
    turned = [int.from_bytes(one[4:], "big").bit_count() for one in flow.received]
    assert set(turned) == {0, 1}
    assert turned.count(1) == pytest.approx(flow.sent / 2 * 1396 / (1400 + HEADERS), rel=0.1)


def test_reordering(weather: Weather) -> None:
    """Of 4,000 packets as many overtake others as was asked for, within 10 %, and none is lost."""
    weather.apply(delay="100ms", reorder=0.5)
    with Flow(weather.line) as flow:
        for burst in range(40):
            flow.send(100)
            flow.take_until(100 * (burst + 1))
    lowest, early = len(flow.numbers), 0
    for number in reversed(flow.numbers):
        early += number > lowest
        lowest = min(lowest, number)
    assert sorted(flow.numbers) == list(range(4000))
    assert early == pytest.approx(2000, rel=0.1)


def test_rate(weather: Weather) -> None:
    """What comes across in two seconds, when more is sent all the time, is the rate that was asked for, within 10 %."""
    weather.apply(rate="20mbit")
    with Flow(weather.line, size=1400) as flow:
        saturate(flow, 0.5)
        before, start = flow.delivered, time.monotonic()
        saturate(flow, 2)
        bits = (flow.delivered - before) * 8 * (1400 + HEADERS)
        measured = bits / (time.monotonic() - start)
    assert measured == pytest.approx(20e6, rel=0.1)


def saturate(flow: Flow, seconds: float) -> None:
    """Send for so many seconds, more than passes, and take what comes."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        flow.send(20)
        flow.take(0.0002)


@pytest.mark.slow
def test_iperf3_agrees(weather: Weather) -> None:
    """What iperf3 measures is the rate that was asked for, within 10 %."""
    weather.apply(rate="20mbit")
    measured = iperf3(weather.line.near, weather.line.far, FAR, "-t", "4", "-O", "1")
    assert measured["sum_received"]["bits_per_second"] == pytest.approx(20e6, rel=0.1)


def test_throughput_of_the_relay() -> None:
    """The relay takes 10,000 packets sent at once by whoever sends as fast as it can in Python, and loses none of them."""
    with line(without_netem=True) as made:
        weather = Weather(made, {})
        weather.apply(delay="10ms")
        with Flow(made) as flow:
            for burst in range(40):
                flow.send(250)
                flow.take_until(250 * (burst + 1))
            assert sorted(flow.numbers) == list(range(10_000))
