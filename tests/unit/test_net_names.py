from __future__ import annotations

import string
import threading
from ipaddress import ip_address

import hypothesis.strategies as st
import pytest
from hypothesis import given

from isolib.errors import PlanError
from isolib.net.hosts import hosts, nameservers, resolv_conf
from isolib.net.names import Names, Zone, check_name
from isolib.net.upstream import parse_servers

WEB, DB = ip_address("10.0.0.2"), ip_address("fd00::3")


@pytest.mark.parametrize("name", ["a", "a" * 63, "db-1", "_srv._tcp", "x.y.z", ".".join(["a" * 61] * 4), "1", "xn--bcher-kva"])
def test_check_name(name: str) -> None:
    """Names of hosts are taken, and looked up in lower case and without a dot at the end."""
    assert check_name(f"{name.upper()}.") == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "a..b",
        ".a",
        "a" * 64,
        ".".join(["a" * 63] * 4),
        "-a",
        "a-",
        "a b",
        "a\n",
        "a\0",
        "a/b",
        "bücher",
        "\u212a",
        "a..",
        "*",
    ],
)
def test_check_name_refuses(name: str) -> None:
    """What cannot be the name of a host is refused, letters that only look like ASCII's in lower case too."""
    with pytest.raises(PlanError, match="name"):
        check_name(name)


@given(st.text(alphabet=string.printable + "äß\u212a\0", max_size=260))
def test_check_name_is_total(name: str) -> None:
    """Whatever is given is refused, or is the same when it is given again."""
    try:
        checked = check_name(name)
    except PlanError:
        return
    assert check_name(checked) == checked
    assert set(checked) <= set(string.ascii_lowercase + string.digits + "-_.")


def test_check_name_wants_text() -> None:
    """A name that is no str is refused."""
    with pytest.raises(PlanError, match="a str"):
        check_name(b"web")  # type: ignore[arg-type]


def test_names_both_ways() -> None:
    """A name has its addresses, and each address its names, in the order in which they were given."""
    names = Names()
    names.add("Web.", [WEB, DB])
    names.add("www", ["10.0.0.2"])
    assert names.addresses("web") == (WEB, DB)
    assert names.names(WEB) == ("web", "www")
    assert names.table() == {WEB: ("web", "www"), DB: ("web",)}
    assert (len(names), "web" in names, "Web" in names) == (2, True, False)
    assert repr(names) == "<Names of 2 addresses>"


def test_names_given_twice() -> None:
    """A name that two have given to an address stays until both have taken it."""
    names = Names()
    names.add("web", [WEB])
    names.add("web", [WEB])
    assert names.addresses("web") == (WEB,)
    names.discard("web", [WEB])
    assert names.addresses("web") == (WEB,)
    names.discard("web", [WEB])
    assert ("web" in names, names.names(WEB), names.table()) == (False, (), {})
    names.discard("web", [WEB])  # nobody has it: nothing


def test_names_of_a_shared_name() -> None:
    """Of a name that several have, each takes only his own address."""
    names = Names()
    names.add("web", ["10.0.0.2"])
    names.add("web", ["10.0.0.3"])
    names.discard("web", ["10.0.0.2"])
    assert names.addresses("web") == (ip_address("10.0.0.3"),)


def test_names_all_or_nothing() -> None:
    """One wrong address, and nothing has changed."""
    names = Names()
    with pytest.raises(PlanError, match=r"10\.0\.0\.300"):
        names.add("web", ["10.0.0.2", "10.0.0.300"])
    with pytest.raises(PlanError):
        names.add("not a name", ["10.0.0.2"])
    assert (len(names), names.table()) == (0, {})


def test_names_below() -> None:
    """A name knows whether there are others below it."""
    names = Names()
    names.add("node.cluster", [WEB])
    assert [names.has_below(name) for name in ("cluster", "node.cluster", "luster", "x")] == [True, False, False, False]


def test_names_from_many_threads() -> None:
    """Names that are given and taken by many threads at a time, and read meanwhile, are neither lost nor left."""
    names = Names()
    names.add("stays", [WEB])
    seen = []

    def work(number: int) -> None:
        for turn in range(100):
            names.add("shared", [f"10.1.{number}.{turn}"])
            seen.append(names.addresses("stays"))
            names.discard("shared", [f"10.1.{number}.{turn}"])

    threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(seen) == {(WEB,)}
    assert names.table() == {WEB: ("stays",)}


def test_zone_checks_its_domain() -> None:
    """The domain of a zone is a name, kept as it is looked up."""
    assert Zone(Names(), "Lab.").domain == "lab"
    with pytest.raises(PlanError, match="domain"):
        Zone(Names(), "a b")


# ---- the texts ----


def test_resolv_conf() -> None:
    """The text has a line for each server, the domains, and the options."""
    text = resolv_conf(["10.0.0.1", DB], search=["lab", "Corp.Example."], options=["ndots:1", "timeout:2"])
    assert text == "nameserver 10.0.0.1\nnameserver fd00::3\nsearch lab corp.example\noptions ndots:1 timeout:2\n"
    assert resolv_conf([], options=()) == "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"servers": ["10.0.0.1"] * 4}, "at most"),
        ({"servers": [], "search": list("abcdefg")}, "at most"),
        ({"servers": ["10.0.0.1\nnameserver 6.6.6.6"]}, "address"),
        ({"servers": ["web"]}, "web"),
        ({"servers": [], "search": ["a b"]}, "search"),
        ({"servers": [], "options": ["ndots:0\nnameserver 6.6.6.6"]}, "options"),
        ({"servers": [], "options": [""]}, "options"),
    ],
)
def test_resolv_conf_refuses(arguments: dict[str, list[str]], message: str) -> None:
    """What the resolver would not read, or would read as something else, is refused."""
    with pytest.raises(PlanError, match=message):
        resolv_conf(**arguments)


def test_nameservers() -> None:
    """Of a resolv.conf the first three servers are read, as glibc does, and what is no address is left out."""
    text = """; mine\n#nameserver 1.1.1.1\nnameserver\t9.9.9.9 # here\n nameserver 127.0.0.53\nnameserver\n
nameserver nonsense\nnameserver fe80::1%eth0\nnameserver 8.8.8.8\nsearch lab\n"""
    assert nameservers(text) == ("9.9.9.9", "127.0.0.53", "fe80::1%eth0")
    assert nameservers("") == ()


def test_hosts() -> None:
    """The file has localhost and each address once, under its full name first; those without a name are left out."""
    text = hosts({WEB: ("Web", "www"), DB: ()}, domain="lab")
    assert text.splitlines() == [
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        "10.0.0.2\tweb.lab web www",
    ]
    assert hosts([("fd00:0::3", ["db", "db"])]).endswith("\nfd00::3\tdb\n")


@pytest.mark.parametrize("entry", [("10.0.0.2", ["a b"]), ("10.0.0.2", ["a\n6.6.6.6 b"]), ("web", ["db"]), ("10.0.0.2", [""])])
def test_hosts_refuses(entry: tuple[str, list[str]]) -> None:
    """What would be another line, or another name, is refused."""
    with pytest.raises(PlanError):
        hosts([entry])


@pytest.mark.parametrize(
    "servers", [["localhost"], ["10.0.0"], [("10.0.0.1", -1)], [("10.0.0.1", "x", 1)], [None], ["::1", ""]]
)
def test_resolvers_refused(servers: list[str]) -> None:
    """A resolver is named by its address, with a port that there can be."""
    with pytest.raises(PlanError, match="upstream"):
        parse_servers(servers)


def test_resolvers() -> None:
    """A resolver's port is 53 unless it is given."""
    assert [address[:2] for _, address in parse_servers(["10.0.0.1", ("::1", 5353)])] == [("10.0.0.1", 53), ("::1", 5353)]
