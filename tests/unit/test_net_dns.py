from __future__ import annotations

import struct
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from isolib.net.dns import Outcome, failure, is_failure, is_reply, respond, shortened
from isolib.net.names import Names, Zone

if TYPE_CHECKING:
    from dns.message import Message

SUBNETS = (ip_network("10.77.0.0/24"), ip_network("fd00:77::/64"))


@pytest.fixture(scope="module")
def zone() -> Zone:
    """Return the names of a small network with the domain `lab`."""
    names = Names()
    names.add("web", ["10.77.0.2", "fd00:77::2"])
    names.add("db", ["10.77.0.3"])
    names.add("www", ["10.77.0.2"])
    names.add("shared", ["10.77.0.4"])
    names.add("shared", ["10.77.0.5"])
    names.add("node.cluster", ["10.77.0.6"])
    names.add("six", ["fd00:77::7"])
    return Zone(names, "lab", SUBNETS)


def query(name: str, kind: str = "A", **options: Any) -> bytes:  # noqa: ANN401 - dnspython's
    """Return a question."""
    return dns.message.make_query(name, kind, **options).to_wire()


def ask(zone: Zone, name: str, kind: str = "A", **options: Any) -> Message:  # noqa: ANN401 - dnspython's
    """Return the answer to a question, which must be one to it."""
    question = query(name, kind, **options)
    answer = respond(question, zone)
    assert isinstance(answer, bytes)
    assert is_reply(question, answer)
    return dns.message.from_wire(answer)


def said(message: Message) -> tuple[str, list[str]]:
    """Return what an answer says: its code, and what each of its records holds."""
    return dns.rcode.to_text(message.rcode()), [each.to_text() for rrset in message.answer for each in rrset]


@pytest.mark.parametrize(
    ("name", "kind", "code", "values"),
    [
        ("web", "A", "NOERROR", ["10.77.0.2"]),
        ("web", "AAAA", "NOERROR", ["fd00:77::2"]),
        ("web", "ANY", "NOERROR", ["10.77.0.2", "fd00:77::2"]),
        ("web.lab", "A", "NOERROR", ["10.77.0.2"]),
        ("WeB.LaB.", "A", "NOERROR", ["10.77.0.2"]),
        ("node.cluster", "A", "NOERROR", ["10.77.0.6"]),
        ("node.cluster.lab", "A", "NOERROR", ["10.77.0.6"]),
        ("localhost", "A", "NOERROR", ["127.0.0.1"]),
        ("localhost.lab", "AAAA", "NOERROR", ["::1"]),
        ("db", "AAAA", "NOERROR", []),
        ("six", "A", "NOERROR", []),
        ("web", "MX", "NOERROR", []),
        ("web", "HTTPS", "NOERROR", []),
        ("lab", "A", "NOERROR", []),
        ("lab", "NS", "NOERROR", []),
        ("lab", "SOA", "NOERROR", ["lab. nobody.lab. 1 60 60 60 0"]),
        ("cluster", "A", "NOERROR", []),
        ("cluster.lab", "A", "NOERROR", []),
        ("nobody", "A", "NXDOMAIN", []),
        ("nobody", "AAAA", "NXDOMAIN", []),
        ("nobody.lab", "A", "NXDOMAIN", []),
        ("nobody.lab", "TXT", "NXDOMAIN", []),
        ("web.web.lab", "A", "NXDOMAIN", []),
        ("2.0.77.10.in-addr.arpa", "PTR", "NOERROR", ["web.lab.", "www.lab."]),
        ("2.0.77.10.IN-ADDR.ARPA", "PTR", "NOERROR", ["web.lab.", "www.lab."]),
        (ip_address("fd00:77::2").reverse_pointer, "PTR", "NOERROR", ["web.lab."]),
        ("2.0.77.10.in-addr.arpa", "A", "NOERROR", []),
        ("0.77.10.in-addr.arpa", "PTR", "NOERROR", []),
        ("99.0.77.10.in-addr.arpa", "PTR", "NXDOMAIN", []),
        ("x.0.77.10.in-addr.arpa", "PTR", "NXDOMAIN", []),
        ("1.2.0.77.10.in-addr.arpa", "PTR", "NXDOMAIN", []),
        ("256.0.77.10.in-addr.arpa", "PTR", "NXDOMAIN", []),
        (ip_address("fd00:77::99").reverse_pointer, "PTR", "NXDOMAIN", []),
        ("2.1.77.10.in-addr.arpa", "PTR", "REFUSED", []),
        ("arpa", "PTR", "REFUSED", []),
        ("in-addr.arpa", "PTR", "REFUSED", []),
        ("x.in-addr.arpa", "PTR", "REFUSED", []),
        ("7.7.ip6.arpa", "PTR", "REFUSED", []),
        ("1.e164.arpa", "PTR", "REFUSED", []),
        ("example.com", "A", "REFUSED", []),
        ("com", "NS", "REFUSED", []),
        (".", "NS", "REFUSED", []),
        ("web.lab.example", "A", "REFUSED", []),
        ("xlab", "TXT", "REFUSED", []),
        (r"node\.cluster.lab", "A", "NXDOMAIN", []),
        (r"\000web.lab", "A", "NXDOMAIN", []),
        ("lab", "AXFR", "REFUSED", []),
    ],
)
def test_answers(zone: Zone, name: str, kind: str, code: str, values: list[str]) -> None:
    """Names and addresses of the network are answered for, existing or not, and everything else is refused."""
    assert said(ask(zone, name, kind)) == (code, values)


def test_shared_name(zone: Zone) -> None:
    """A name that several have is answered with all their addresses, sometimes one first and sometimes the other."""
    answers = {tuple(said(ask(zone, "shared"))[1]) for _ in range(64)}  # all alike: once in 2**63 runs
    assert answers == {("10.77.0.4", "10.77.0.5"), ("10.77.0.5", "10.77.0.4")}


def test_flags(zone: Zone) -> None:
    """What is ours is said with authority, what is not without, and recursion is offered only where there are resolvers."""
    ours, others = ask(zone, "web"), ask(zone, "example.com")
    assert ours.flags == dns.flags.QR | dns.flags.AA | dns.flags.RD
    assert others.flags & ~0xF == dns.flags.QR | dns.flags.RD
    forwarding = Zone(zone.names, zone.domain, zone.subnets, forwards=True)
    assert ask(forwarding, "web").flags & dns.flags.RA


def test_nothing_is_kept(zone: Zone) -> None:
    """Nobody may keep an answer, nor that there was none."""
    assert [rrset.ttl for rrset in ask(zone, "web", "ANY").answer] == [0, 0]
    (soa,) = ask(zone, "nobody.lab").authority
    assert (soa.name.to_text(), soa.ttl, soa[0].minimum) == ("lab.", 0, 0)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("example.com", "A"),
        ("com", "NS"),
        ("com", "DNSKEY"),
        (".", "NS"),
        ("1.1.168.192.in-addr.arpa", "PTR"),
        ("web.org", "A"),
    ],
)
def test_forwards_the_rest(zone: Zone, name: str, kind: str) -> None:
    """Where there are resolvers, what is not ours is for them."""
    assert respond(query(name, kind), Zone(zone.names, "lab", SUBNETS, forwards=True)) is Outcome.FORWARD


@pytest.mark.parametrize(
    ("name", "kind"),
    [("web", "A"), ("nobody", "A"), ("nobody.lab", "A"), ("db", "AAAA"), ("99.0.77.10.in-addr.arpa", "PTR"), ("lab", "AXFR")],
)
def test_forwards_nothing_of_ours(zone: Zone, name: str, kind: str) -> None:
    """No resolver learns of the network's names and addresses, nor of names of one label."""
    assert isinstance(respond(query(name, kind), Zone(zone.names, "lab", SUBNETS, forwards=True)), bytes)


def test_without_a_domain() -> None:
    """A network without a domain knows its names by themselves."""
    names = Names()
    names.add("web", ["10.77.0.2"])
    zone = Zone(names, None, SUBNETS)
    assert said(ask(zone, "web")) == ("NOERROR", ["10.77.0.2"])
    assert said(ask(zone, "2.0.77.10.in-addr.arpa", "PTR")) == ("NOERROR", ["web."])
    assert said(ask(zone, "nobody")) == ("NXDOMAIN", [])
    assert said(ask(zone, "web.lab")) == ("REFUSED", [])


def test_names_are_live(zone: Zone) -> None:
    """A name that is given or taken is known, or unknown, from the next question on."""
    zone.names.add("new", ["10.77.0.9"])
    assert said(ask(zone, "new")) == ("NOERROR", ["10.77.0.9"])
    zone.names.discard("new", ["10.77.0.9"])
    assert said(ask(zone, "new")) == ("NXDOMAIN", [])


def test_letters_of_the_question(zone: Zone) -> None:
    """An answer has the name in the letters that it was asked in, which some askers insist on."""
    answer = respond(query("wEb.LAb"), zone)
    assert isinstance(answer, bytes)
    assert answer.count(b"\x03wEb\x03LAb\x00") == 1
    assert dns.message.from_wire(answer).answer[0].name.to_text() == "wEb.LAb."


# ---- sizes ----


@pytest.fixture(scope="module")
def crowd() -> Zone:
    """Return a zone in which one name has 150 addresses: an answer of 2.4 kB."""
    names = Names()
    names.add("many", [f"10.77.0.{number}" for number in range(1, 151)])
    return Zone(names, "lab", SUBNETS)


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({}, 512),
        ({"use_edns": 0, "payload": 100}, 512),
        ({"use_edns": 0, "payload": 800}, 800),
        ({"use_edns": 0, "payload": 1232}, 1232),
        ({"use_edns": 0, "payload": 65535}, 1232),
    ],
)
def test_truncation(crowd: Zone, options: dict[str, Any], limit: int) -> None:
    """A datagram is never longer than its asker takes nor than a path does, and says what is missing."""
    answer = respond(query("many", **options), crowd)
    assert isinstance(answer, bytes)
    assert len(answer) <= limit
    message = dns.message.from_wire(answer)
    assert message.flags & dns.flags.TC
    assert message.edns == (0 if options else -1)


def test_stream_is_not_truncated(crowd: Zone) -> None:
    """Over a stream the answer is whole."""
    answer = respond(query("many"), crowd, stream=True)
    assert isinstance(answer, bytes)
    message = dns.message.from_wire(answer)
    assert not message.flags & dns.flags.TC
    assert len(message.answer[0]) == 150


def test_edns(zone: Zone) -> None:
    """EDNS is answered with EDNS, only where it was asked with; of a version that is not known, only that is said."""
    assert ask(zone, "web").edns == -1
    assert (ask(zone, "web", use_edns=0).edns, ask(zone, "web", use_edns=0).payload) == (0, 1232)
    later = ask(zone, "web", use_edns=1)
    assert (later.rcode(), later.answer) == (dns.rcode.BADVERS, [])


# ---- what is no question ----


def header(flags: int = 0x0100, questions: int = 1, answers: int = 0, authorities: int = 0, additional: int = 0) -> bytes:
    """Return the header of a message."""
    return struct.pack("!HHHHHH", 0x1234, flags, questions, answers, authorities, additional)


QUESTION = b"\x03web\x00\x00\x01\x00\x01"


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (header() + b"\x03we", "FORMERR"),
        (header() + b"\xc0\x0c\x00\x01\x00\x01", "FORMERR"),  # a name that points to itself
        (header() + b"\x41" + b"a" * 65 + b"\x00\x00\x01\x00\x01", "FORMERR"),
        (header() + b"\x3f" + b"a" * 63 + (b"\x3f" + b"a" * 63) * 4 + b"\x00\x00\x01\x00\x01", "FORMERR"),
        (header() + QUESTION + b"x", "FORMERR"),
        (header(questions=0), "FORMERR"),
        (header(questions=2) + QUESTION * 2, "FORMERR"),
        (header(answers=1) + QUESTION, "FORMERR"),
        (header(additional=1) + QUESTION + b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x09abc", "FORMERR"),
        (header() + QUESTION + b"x" * 5000, "FORMERR"),
        (header(flags=0x2800), "NOTIMP"),  # UPDATE
        (header(flags=0x2100), "NOTIMP"),  # NOTIFY
        (header() + b"\x07version\x04bind\x00\x00\x10\x00\x03", "REFUSED"),  # of class CHAOS
    ],
)
def test_malformed(zone: Zone, message: bytes, code: str) -> None:
    """What is no question that can be answered is answered with what is wrong, under its own number."""
    answer = respond(message, zone)
    assert isinstance(answer, bytes)
    assert answer[:2] == message[:2]
    assert dns.message.from_wire(answer, question_only=True).rcode() == dns.rcode.from_text(code)


@pytest.mark.parametrize("message", [b"", b"\x00" * 11, header(flags=0x8180) + QUESTION])
def test_dropped(zone: Zone, message: bytes) -> None:
    """Nothing is said to less than a header, nor to an answer: two responders would never end."""
    assert respond(message, zone) is Outcome.DROP


@given(message=st.binary(max_size=600), stream=st.booleans())
def test_any_bytes(zone: Zone, message: bytes, *, stream: bool) -> None:
    """Whatever comes is dropped, or answered by a message under its number that is no question; nothing is raised."""
    check(respond(message, zone, stream=stream), message)


@given(data=st.data())
@example(data=None)
def test_damaged_questions(zone: Zone, data: st.DataObject | None) -> None:
    """So it is with questions of which some bytes are others, or that end early."""
    whole = bytearray(query("node.cluster.lab", "AAAA", use_edns=0, options=[]))
    if data is not None:
        for _ in range(data.draw(st.integers(1, 6))):
            whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
        del whole[data.draw(st.integers(0, len(whole))) :]
    check(respond(bytes(whole), zone), bytes(whole))


@given(labels=st.lists(st.binary(min_size=1, max_size=63), max_size=6), kind=st.integers(0, 65535), ours=st.booleans())
def test_any_name(zone: Zone, labels: list[bytes], kind: int, *, ours: bool) -> None:
    """So it is with every name, of any bytes, and every type; and what is made up below our domain is not there."""
    name = b"".join(bytes([len(label)]) + label for label in [*labels, *([b"lab"] if ours else [])]) + b"\x00"
    message = header() + name + kind.to_bytes(2, "big") + b"\x00\x01"
    answer = respond(message, zone)
    check(answer, message)
    if (
        ours
        and len(name) <= 255
        and labels
        and all(len(label) > 12 for label in labels)
        and not 128 <= kind <= 254
        and kind != 41
    ):
        assert isinstance(answer, bytes)
        assert dns.message.from_wire(answer, question_only=True).rcode() == dns.rcode.NXDOMAIN


def check(answer: bytes | Outcome, message: bytes) -> None:
    """Assert that an answer is one: to this message, and within its room."""
    if isinstance(answer, bytes):
        assert answer[:2] == message[:2]
        assert answer[2] & 0x80
        assert len(answer) <= 1232
        dns.message.from_wire(answer)
    else:
        assert answer is Outcome.DROP


# ---- what resolvers say ----


def answer_to(question: bytes, address: str = "192.0.2.1") -> bytes:
    """Return what a resolver would say."""
    message = dns.message.make_response(dns.message.from_wire(question), recursion_available=True)
    message.answer.append(dns.rrset.from_text(message.question[0].name, 60, "IN", "A", address))
    return message.to_wire()


def test_is_reply() -> None:
    """An answer is one to a question only with its number and the question in it, in whichever letters."""
    asked = query("example.com")
    assert is_reply(asked, answer_to(asked))
    assert is_reply(asked, answer_to(asked).replace(b"example", b"EXAMPLE"))
    assert not is_reply(asked, asked)
    assert not is_reply(asked, b"\0\0" + answer_to(asked)[2:])
    assert not is_reply(asked, asked[:2] + answer_to(query("example.org"))[2:])
    assert not is_reply(asked, asked[:2] + answer_to(query("example.com", "AAAA"))[2:])
    assert not is_reply(asked, answer_to(asked)[:12])
    assert not is_reply(asked, b"")


@given(reply=st.binary(max_size=80))
def test_is_reply_to_nothing(reply: bytes) -> None:
    """No bytes are an answer by chance, and none raise."""
    asked = query("example.com")
    assert not is_reply(asked, asked[:2] + reply)


@pytest.mark.parametrize(("code", "expected"), [("NOERROR", False), ("NXDOMAIN", False), ("SERVFAIL", True), ("REFUSED", True)])
def test_is_failure(code: str, *, expected: bool) -> None:
    """That there is no such name is an answer; that one would not say is none."""
    message = dns.message.make_response(dns.message.make_query("example.com", "A"))
    message.set_rcode(dns.rcode.from_text(code))
    assert is_failure(message.to_wire()) is expected


def test_failure() -> None:
    """Where nobody has answered, the asker hears SERVFAIL, and nothing where the question is none."""
    asked = query("example.com")
    answer = failure(asked)
    assert isinstance(answer, bytes)
    assert is_reply(asked, answer)
    assert dns.message.from_wire(answer).rcode() == dns.rcode.SERVFAIL
    assert failure(header() + b"\xc0") is Outcome.DROP


def test_shortened() -> None:
    """A resolver's answer that is longer than its asker takes becomes one that says so."""
    asked = query("example.com")
    short = answer_to(asked)
    assert shortened(asked, short) is short
    long = short + b"x" * 600
    assert shortened(asked, long, stream=True) is long
    message = dns.message.from_wire(shortened(asked, long))
    assert (bool(message.flags & dns.flags.TC), message.answer) == (True, [])
