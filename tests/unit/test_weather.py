"""What bad weather may be asked for in, what is refused, and how it is told."""

from __future__ import annotations

import math
import pickle
from datetime import timedelta
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolib._kernel.netlink.qdiscs import CERTAIN
from isolib.errors import PlanError
from isolib.net.relay import parts
from isolib.net.shaping import _netem
from isolib.net.weather import (
    Effect,
    Impairment,
    InForce,
    parse_impairment,
    parse_probability,
    parse_rate,
    parse_time,
)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("20ms", 0.02),
        (" 1.5 s ", 1.5),
        ("300us", 0.0003),
        ("7ns", 7e-9),
        (0.02, 0.02),
        (2, 2.0),
        (0, 0.0),
        (Fraction(1, 4), 0.25),
        (timedelta(milliseconds=20), 0.02),
    ],
)
def test_times(value: str, seconds: float) -> None:
    """A duration is a number of seconds, a timedelta, or a number with its unit."""
    assert parse_time(value, "delay") == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value", ["", "20", "20 m", "ms", "-1ms", "1e3ms", "٣ms", "20ms ago", "9" * 31 + "s", -1, math.nan, None, b"20ms", True]
)
def test_no_times(value: str) -> None:
    """What is no duration is refused, and the argument named."""
    with pytest.raises(PlanError, match=r"^delay: "):
        parse_time(value, "delay")


@pytest.mark.parametrize(("value", "probability"), [("1%", 0.01), ("0.5 %", 0.005), ("100%", 1), (0.25, 0.25), (1, 1), (0, 0)])
def test_probabilities(value: str, probability: float) -> None:
    """A probability is a number from 0 to 1, or a percentage."""
    assert parse_probability(value, "loss") == probability


@pytest.mark.parametrize(
    "value", ["", "1", "101%", "-1%", "%", "1 percent", -0.1, 1.01, 5, math.nan, math.inf, None, True, b"1%"]
)
def test_no_probabilities(value: str) -> None:
    """What is no probability is refused, a 5 that means 5% too."""
    with pytest.raises(PlanError, match=r"^loss: "):
        parse_probability(value, "loss")


@pytest.mark.parametrize(
    ("value", "rate"),
    [("10mbit", 10**7), ("1.5 Gbit/s", 1_500_000_000), ("64kibit", 65536), ("2mibit", 2**21), ("800bit", 800), (10**6, 10**6)],
)
def test_rates(value: str, rate: int) -> None:
    """A rate is bits in a second, by powers of 1000 or, with an i, of 1024."""
    assert parse_rate(value, "rate") == rate


@pytest.mark.parametrize(
    "value", ["", "10", "10mbps", "10mb", "ibit", "7bit", "9999tbit", "-1mbit", 0, 7, 10**16, 1.5, None, True]
)
def test_no_rates(value: str) -> None:
    """What is no rate is refused: tc(8) reads "10mbps" as ten megabytes."""
    with pytest.raises(PlanError, match=r"^rate: "):
        parse_rate(value, "rate")


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ({"jitter": "5ms"}, "jitter"),
        ({"delay": "5ms", "jitter": "6ms"}, "jitter"),
        ({"delay": 10, "jitter": 3}, "jitter"),
        ({"delay": 86_401}, "delay"),
        ({"reorder": 0.1}, "reorder"),
        ({"limit": 10}, "limit"),
        ({"limit": 0, "delay": 1}, "limit"),
        ({"limit": 10**7, "delay": 1}, "limit"),
        ({"limit": "10", "delay": 1}, "limit"),
        ({"limit": True, "delay": 1}, "limit"),
    ],
)
def test_what_makes_no_sense(asked: dict[str, float], name: str) -> None:
    """What the kernel would take for something else, or what does nothing, is refused, and the argument named."""
    with pytest.raises(PlanError, match=rf"^{name}: "):
        parse_impairment(**asked)  # type: ignore[arg-type]


def test_impairment_is_a_value() -> None:
    """An impairment says what was asked for, is equal to another such one, and survives pickling; none is false."""
    one = parse_impairment(delay="20ms", loss="1%", rate="10mbit")
    assert repr(one) == "Impairment(delay=0.02, loss=0.01, rate=10000000)"
    assert one == parse_impairment(delay=0.02, loss=0.01, rate=10**7) == pickle.loads(pickle.dumps(one))  # noqa: S301 - its own
    assert one
    assert not parse_impairment()
    assert not parse_impairment(delay=0, loss="0%")
    assert list(one.asked()) == [("delay", 0.02), ("loss", 0.01), ("rate", 10**7)]


def test_queue() -> None:
    """Where no limit is asked for, a fifth of a second has room, and what a delay holds back beside that, within reason."""
    assert parse_impairment(rate="1mbit").queue == 50
    assert parse_impairment(rate="12mbit").queue == 200
    assert parse_impairment(rate="1gbit").queue == 1000
    assert parse_impairment(delay=1, rate="12mbit").queue == 1200
    assert parse_impairment(delay="20ms").queue == 3000
    assert parse_impairment(delay=3600).queue == 50_000
    assert parse_impairment(delay=1, limit=7).queue == 7


@given(st.floats(0, 1))
def test_parts(probability: float) -> None:
    """A probability in parts of 2^32 is off by two at the most, and what is possible stays so in netem's scale too."""
    assert parts(probability) / CERTAIN == pytest.approx(probability, abs=2 / CERTAIN)
    assert (parts(probability) > 1) is bool(probability)


def test_netem_of_an_impairment() -> None:
    """Netem gets nanoseconds, bytes and parts; jitter without a rate gets one that takes no time, which keeps the order."""
    netem = _netem(parse_impairment(delay="20ms", jitter="1ms", reorder="50%", loss=1, rate="8mbit", limit=9))
    assert (netem.delay, netem.jitter, netem.rate, netem.limit, netem.gap) == (20_000_000, 1_000_000, 10**6, 9, 1)
    assert (netem.reorder, netem.loss) == (CERTAIN // 2, CERTAIN)
    assert _netem(parse_impairment(delay=1, jitter=1)).rate > 10**12
    assert _netem(parse_impairment(delay=1)) == type(netem)(delay=10**9, limit=50_000)


def test_in_force() -> None:
    """What is in force can be looked up by name, listed, and printed."""
    rate, loss = Effect("rate", 8, "tbf", "so"), Effect("loss", 0.5, "nftables", "thus")
    force = InForce(parse_impairment(loss=0.5, rate=8), (rate, loss))
    assert force["loss"] is loss
    assert list(force) == [rate, loss]
    assert force.backends == {"tbf", "nftables"}
    assert str(force) == "rate=8 by tbf: so\nloss=0.5 by nftables: thus"
    with pytest.raises(KeyError, match="delay"):
        force["delay"]
    good = InForce(Impairment())
    assert not good
    assert str(good) == "nothing: packets pass as they come"
