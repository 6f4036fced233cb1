"""What is to be published: texts, tuples and values, and what cannot be."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolib import PlanError
from isolib.net import Publish
from isolib.net.publish import read_all

PORTS = st.integers(1, 65535)
HOSTS = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("8080:80", Publish(8080, 80)),
        ("0:80", Publish(0, 80)),
        ("8080:80/tcp", Publish(8080, 80)),
        ("5353:53/udp", Publish(5353, 53, "udp")),
        ("0.0.0.0:8080:80", Publish(8080, 80, host="0.0.0.0")),
        ("[::1]:8080:80/udp", Publish(8080, 80, "udp", host="::1")),
        ("[198.51.100.1]:8080:80", Publish(8080, 80, host="198.51.100.1")),
    ],
)
def test_texts(text: str, wanted: Publish) -> None:
    """A text means what docker's notation means, at loopback where it names no address."""
    assert Publish.parse(text) == wanted
    assert read_all([text]) == (wanted,)


@given(host=HOSTS, outside=PORTS, inside=PORTS, proto=st.sampled_from(["tcp", "udp"]))
def test_every_port_has_a_text(host: object, outside: int, inside: int, proto: str) -> None:
    """What can be published at an address is read from a text as from its parts."""
    text = f"[{host}]:{outside}:{inside}/{proto}"
    assert Publish.parse(text) == Publish(outside, inside, proto, host=str(host))


@given(st.one_of(st.text(), st.from_regex(r"\A(\[?[0-9a-f.:]*\]?:)?[0-9]*:[0-9]*(/[a-z]*)?\Z")))
def test_any_text(text: str) -> None:
    """Whatever the text is, it is a port that can be published, or refused with the error for that."""
    try:
        found = Publish.parse(text)
    except PlanError:
        return
    assert isinstance(found.host_port, int)
    assert 0 <= found.host_port <= 65535
    assert 1 <= found.port <= 65535


def test_many() -> None:
    """A mapping, tuples, texts and values mean the same, their order is kept, and what is read can be read again."""
    wanted = (Publish(8080, 80), Publish(5353, 53, "udp"))
    assert read_all([(8080, 80), (5353, 53, "udp")]) == wanted
    assert read_all(["8080:80", Publish(5353, 53, proto="udp")]) == wanted
    assert read_all(wanted) == wanted
    assert read_all({8080: 80, 443: 443}) == (Publish(8080, 80), Publish(443, 443))
    assert read_all({}) == read_all([]) == ()


def test_unix_sockets() -> None:
    """A path in place of a port is kept whole."""
    found = read_all([("/run/web", 80), (Path("run/web"), 80)])
    assert found == (Publish("/run/web", 80), Publish(f"{os.getcwd()}/run/web", 80))


def test_is_a_value() -> None:
    """It can be compared, hashed and pickled, however its address is written."""
    one = Publish(8080, 80, host="0:0::1", via="kernel")
    assert one == Publish(8080, 80, host="::1", via="kernel") != Publish(8080, 80, host="::1")
    assert hash(one) == hash(Publish(8080, 80, host="::1", via="kernel"))
    assert pickle.loads(pickle.dumps(one)) == one  # noqa: S301 - our own


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (["80"], "'80'"),
        (["8080:80/sctp"], "sctp"),
        (["8080:80/"], "proto"),
        (["::1:8080:80"], "::1"),
        ([":8080:80"], "host"),
        (["[]:8080:80"], "host"),
        (["localhost:8080:80"], "localhost"),
        (["8080:65536"], "port: .*65536"),
        (["8080:0"], "port"),
        (["8000-8010:80"], "8000-8010"),
        (["\u0661:80"], "wanted"),
        ([(8080,)], "Publish"),
        ([(8080, 80, "udp", "::1")], "Publish"),
        ([("8080", 80)], "host_port"),
        ([(8080, True)], "port"),
        ([(8080, 80, None)], "proto"),
        ([(8080, 80, [])], "proto"),
        ([("/run/web", 80, "udp")], "host_port"),
        ([8080], "Publish"),
        ([None], "Publish"),
        ("8080:80", "list"),
        (8080, "list"),
        (Publish(8080, 80), "list"),
        ({8080: 80}.items(), "list"),
        (["8080:80", (8080, 81)], "127.0.0.1:8080/tcp is given twice"),
        ([("/run/web", 80), ("/run/web", 81)], "/run/web is given twice"),
    ],
)
def test_what_cannot_be(wanted: object, words: str) -> None:
    """What is no port to be published is refused by the argument's name, and what was given is in the error."""
    with pytest.raises(PlanError, match=f"^publish: .*{words}"):
        read_all(wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", [None, 8080, b"8080:80"])
def test_no_texts(text: object) -> None:
    """What is no text is not read as one."""
    with pytest.raises(PlanError, match="publish"):
        Publish.parse(text)  # type: ignore[arg-type]


def test_same_port_of_other_protocols_and_addresses() -> None:
    """One number is many ports, and free ones are each another one."""
    assert len(read_all(["53:53", "53:53/udp", "[::1]:53:53", "0:53", "0:53"])) == 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"via": "nft"}, "via"),
        ({"via": []}, "via"),
        ({"mode": 0o1777}, "mode"),
        ({"host": "::1%lo"}, "host"),
        ({"host": None}, "host"),
    ],
)
def test_bad_options(options: dict[str, object], words: str) -> None:
    """What is no way, mode or address is refused by its name."""
    with pytest.raises(PlanError, match=f"^{words}"):
        Publish(8080, 80, **options)  # type: ignore[arg-type]
