"""Arguments of networks: what is taken, in which form it comes back, and what is refused by whose name."""

from __future__ import annotations

from ipaddress import IPv4Interface, ip_address, ip_interface, ip_network
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolib import PlanError
from isolib.net import checks
from isolib.net.interface import check_destination, check_metric, check_table
from isolib.net.sysctl import check_setting

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize("name", ["a", "eth0", "eth0.100", "x" * 15, "é" * 7, "_-+@!", "...", "日本語"])
def test_names(name: str) -> None:
    """What the kernel takes as the name of a link is taken as it is."""
    assert checks.check_name(name, "name") == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x" * 16,
        "é" * 8,
        ".",
        "..",
        "a/b",
        "a:b",
        "a b",
        "a\tb",
        "a\n",
        "a\0",
        "a\xa0",
        "a%d",
        "%",
        "\x7f",
        "\ud800",
        5,
        b"a",
        None,
    ],
)
def test_names_that_are_none(name: object) -> None:
    """What the kernel refuses, or would take for something else, is refused by the argument's name."""
    with pytest.raises(PlanError, match=r"^names\[1\]: "):
        checks.check_name(name, "names[1]")  # type: ignore[arg-type]


@given(st.text(max_size=20))
def test_any_name(name: str) -> None:
    """A text is a name as it stands, or it is refused."""
    try:
        found = checks.check_name(name, "name")
    except PlanError:
        return
    assert found == name
    assert 1 <= len(name.encode()) <= 15
    assert not set(name) & set("/: \t\n\0%")


@pytest.mark.parametrize("mac", ["02:42:ac:11:00:0f", "02:42:AC:11:00:0F", b"\x02\x42\xac\x11\x00\x0f"])
def test_mac_addresses(mac: str | bytes) -> None:
    """A MAC address is taken in letters of either case, and as bytes."""
    assert checks.check_mac(mac, "mac") == bytes.fromhex("0242ac11000f")


@pytest.mark.parametrize(
    "mac",
    [
        *(
            "",
            "02:42:ac:11:00",
            "02:42:ac:11:00:02:03",
            "02-42-ac-11-00-02",
            "0242ac110002",
            "02:42:ac:11:00:0g",
            " 02:42:ac:11:00:02",
        ),
        *("02:42:ac:11:00:02\n", "01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", b"\2" * 5, b"\2" * 7, 5, None),
    ],
)
def test_mac_addresses_that_are_none(mac: object) -> None:
    """What is no MAC address, or that of a group, of everybody or of nobody, is refused."""
    with pytest.raises(PlanError, match=r"^mac: "):
        checks.check_mac(mac, "mac")  # type: ignore[arg-type]


@pytest.mark.parametrize(("number", "is_one"), [(67, False), (68, True), (1500, True), (65535, True), (65536, False)])
def test_mtus(number: int, *, is_one: bool) -> None:
    """An MTU is from 68, which IPv4 needs, to 65535."""
    if is_one:
        assert checks.check_mtu(number) == number
        return
    with pytest.raises(PlanError, match=r"^mtu: a number from 68 to 65535 is wanted"):
        checks.check_mtu(number)


@pytest.mark.parametrize("number", [True, False, "5", 5.0, None, b"5"])
def test_numbers_that_are_none(number: object) -> None:
    """Only an integer is a number, and a truth value is not."""
    with pytest.raises(PlanError, match=r"^x: a number from 0 to 9"):
        checks.check_number(number, "x", 0, 9)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["10.0.0.1/24", "10.0.0.0/31", "10.0.0.1/31", "10.0.0.0/32", "fd00::1/64", "fd00::/127", "fd00::/128"]
)
def test_addresses_with_their_network(text: str) -> None:
    """What a host can have is taken, as a text and as a value; in a network of two, both are hosts."""
    assert (
        checks.check_interface(text, "address") == checks.check_interface(ip_interface(text), "address") == ip_interface(text)
    )


@pytest.mark.parametrize(
    "value",
    [
        *(
            "10.0.0.1",
            "10.0.0.0/24",
            "10.0.0.255/24",
            "10.0.0.1/33",
            "10.0.0/24",
            "224.0.0.1/24",
            "0.0.0.0/32",
            "::/128",
            "fd00::/64",
        ),
        *(
            "ff02::1/64",
            "fd00::1/129",
            "",
            "/24",
            "x/24",
            5,
            None,
            ip_address("10.0.0.1"),
            ip_network("10.0.0.0/24"),
            b"10.0.0.1/24",
            "fe80::1%eth0/64",
        ),
    ],
)
def test_addresses_that_no_host_has(value: object) -> None:
    """What no host can have is refused, and so is an address without its network."""
    with pytest.raises(PlanError, match=r"^address: "):
        checks.check_interface(value, "address")  # type: ignore[arg-type]


def test_several_addresses() -> None:
    """Several addresses come back in their order; one given twice, and one text for a list, are refused."""
    texts = ["10.0.0.2/24", "10.0.0.1/24", "fd00::1/64"]
    assert checks.check_interfaces(texts) == checks.check_interfaces(tuple(texts)) == [ip_interface(text) for text in texts]
    assert checks.check_interfaces(()) == []
    for wrong in ("10.0.0.1/24", None, {"10.0.0.1/24"}, ["10.0.0.1/24"] * 2, ["10.0.0.1/24", IPv4Interface("10.0.0.1/24")]):
        with pytest.raises(PlanError, match=r"^addresses: "):
            checks.check_interfaces(wrong)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match=r"^addresses\[1\]: "):
        checks.check_interfaces(["10.0.0.1/24", "10.0.0.2"])


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (
            checks.check_address,
            ["10.0.0.1", "fd00::1"],
            ["10.0.0.1/24", "", "x", 5, None, "10.0.0.01", "fe80::1%eth0", ip_interface("10.0.0.1/24")],
        ),
        (
            checks.check_network,
            ["10.0.0.0/8", "10.0.0.1/32", "::/0"],
            ["10.0.0.1/8", "", "x", 5, None, ip_interface("10.0.0.1/8")],
        ),
        (checks.check_alias, ["", "é" * 127, "a\nb"], ["x" * 256, "é" * 128, "\0", "\ud800", 5, None, b"x"]),
    ],
)
def test_other_texts(check: Callable[[object, str], object], good: list[str], bad: list[object]) -> None:
    """Addresses, networks and aliases are taken, and what is none is refused by the argument's name."""
    for text in good:
        assert str(check(text, "it")) == text
        assert check(check(text, "it"), "it") == check(text, "it")
    for value in bad:
        with pytest.raises(PlanError, match=r"^it: "):
            check(value, "it")


def test_two_of_something() -> None:
    """Two are taken as a tuple or a list, and nothing else is."""
    assert checks.check_pair(("a", "b"), "names") == checks.check_pair(["a", "b"], "names") == ("a", "b")
    for wrong in ("ab", ("a",), ("a", "b", "c"), None, {"a", "b"}):
        with pytest.raises(PlanError, match=r"^names: two are wanted"):
            checks.check_pair(wrong, "names")  # type: ignore[arg-type]


def test_one_of_several_words() -> None:
    """One of the words is taken, and others are told what there is."""
    assert checks.check_choice("a", "mode", ("a", "b")) == "a"
    for wrong in ("c", "", "A", 1, None, ["a"]):
        with pytest.raises(PlanError, match=r"^mode: 'a' or 'b' is wanted"):
            checks.check_choice(wrong, "mode", ("a", "b"))  # type: ignore[arg-type]


def test_destinations() -> None:
    """The default is that of the gateway's family; a route of IPv4 may go by IPv6, and not the other way round."""
    four, six = ip_address("10.0.0.1"), ip_address("fd00::1")
    assert check_destination("default", four) == ip_network("0.0.0.0/0")
    assert check_destination("default", six) == ip_network("::/0")
    assert check_destination("10.0.0.0/8", six) == ip_network("10.0.0.0/8")
    with pytest.raises(PlanError, match=r"^destination='default'"):
        check_destination("default", None)
    with pytest.raises(PlanError, match=r"^gateway: 10\.0\.0\.1 cannot be that of fd00::/8"):
        check_destination("fd00::/8", four)


def test_metrics_and_tables() -> None:
    """Metrics are numbers of 32 bits, tables the same but zero, or one of three names."""
    for number in (None, 0, 1, 0xFFFFFFFF):
        check_metric(number)
    for wrong in (-1, 1 << 32, "1", True):
        with pytest.raises(PlanError, match=r"^metric: "):
            check_metric(wrong)  # type: ignore[arg-type]
    for table in ("main", "local", "default", 1, 0xFFFFFFFF):
        assert check_table(table) == table
    for other in (0, 1 << 32, "unspec", "mine", "", None, True):
        with pytest.raises(PlanError, match=r"^table: "):
            check_table(other)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/ip_forward", "net/ipv4/ip_forward"),
        ("ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("ipv4/ip_forward", "net/ipv4/ip_forward"),
        ("net.ipv4.conf.eth0/100.forwarding", "net/ipv4/conf/eth0.100/forwarding"),
        ("net/ipv4/conf/eth0.100/forwarding", "net/ipv4/conf/eth0.100/forwarding"),
        ("core.somaxconn", "net/core/somaxconn"),
        ("net.net", "net/net"),
        ("unix", "net/unix"),
    ],
)
def test_names_of_settings(name: str, path: str) -> None:
    """Names are written as for sysctl(8), with the net that they all begin with or without."""
    assert check_setting(name) == path


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "/", "net", "net.", "net/", "/net/ipv4", ".net.ipv4", "net..ipv4", "net//ipv4", "net/../kernel/hostname"),
        *(
            "net/ipv4/..",
            "net/./ipv4",
            "../kernel",
            "net.ipv4.a\0b",
            "net.ipv4.a\nb",
            "net." + "x" * 4100,
            "net.\ud800",
            5,
            None,
            b"net",
        ),
    ],
)
def test_names_that_lead_elsewhere(name: object) -> None:
    """What is no name below net, or leads out of it, is refused."""
    with pytest.raises(PlanError, match=r"^name: "):
        check_setting(name)  # type: ignore[arg-type]


@given(st.text(alphabet="net./a", max_size=12) | st.text(max_size=12))
def test_any_name_of_a_setting(name: str) -> None:
    """Whatever the name is, it is refused, or it stays below net."""
    try:
        path = check_setting(name)
    except PlanError:
        return
    parts = path.split("/")
    assert parts[0] == "net"
    assert len(parts) > 1
    assert not {"", ".", ".."} & set(parts)
