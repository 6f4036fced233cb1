"""Topologies: what a line of text draws is there, and works."""

from __future__ import annotations

import pytest

from isolib import ClosedError, PlanError
from isolib.net import links, topology
from tests.nets import SOON, reaches

pytestmark = pytest.mark.usefixtures("user_namespaces")

LINE = "web - br0 - db, br0 - r1 - br1 - client"


@pytest.mark.parametrize("ipv6", [False, True])
def test_everything_reaches_everything(ipv6: bool) -> None:  # noqa: FBT001
    """Each namespace reaches each address of each other one, over the routers."""
    with topology(LINE, ipv6=ipv6) as lab:
        assert list(lab) == ["web", "db", "r1", "client"]
        for one in lab:
            for other in lab:
                for address in lab.hosts[other]:
                    assert reaches(lab[one], lab[other], address), (one, other, address)


def test_given_addresses() -> None:
    """Subnets and addresses of the text are those of the kernel."""
    with topology("a(10.1.0.9) - br0[10.1.0.0/24], br0 - b, b -[10.2.0.0/30]- c") as lab:
        assert [str(address) for address in lab.hosts["a"]] == ["10.1.0.9"]
        assert reaches(lab["a"], lab["c"], lab.hosts["c"][0])
        assert {link.name for link in links(lab["b"])} == {"lo", "eth0", "eth1"}
        assert {port.name for port in lab.bridges["br0"].ports()} == {"br0p0", "br0p1"}


def test_two_bridges() -> None:
    """Bridges with a cable between them are one segment."""
    with topology("a - br0 - br1 - b") as lab:
        assert reaches(lab["a"], lab["b"], lab.hosts["b"][0])


def test_cables_are_pulled() -> None:
    """A cable can be pulled at its end, and plugged in again."""
    with topology("a - b") as lab:
        lab.interface("b").down()
        assert not reaches(lab["a"], lab["b"], lab.hosts["b"][0], patience=SOON)
        lab.interface("b").up()
        assert reaches(lab["a"], lab["b"], lab.hosts["b"][0])
        with pytest.raises(KeyError):
            lab.interface("b", "eth1")


def test_all_is_closed() -> None:
    """With the topology all its namespaces are closed."""
    with topology(LINE) as lab:
        spaces = [lab[name] for name in lab]
        bridge = lab.bridges["br0"]
    assert all(ns.closed for ns in spaces)
    assert bridge.closed
    with pytest.raises(ClosedError):
        lab.interface("web")


@pytest.mark.parametrize("text", ["", "a - ", "a - a", "br0 - much-too-long-a-name-for-anybody-" * 4, "a -[10.0.0.1/24]- b"])
def test_bad_texts(text: str) -> None:
    """What draws nothing is refused before anything is made."""
    with pytest.raises(PlanError):
        topology(text)


def test_sixty_nodes() -> None:
    """Sixty namespaces on one bridge, from one line."""
    with topology(", ".join(f"n{number} - br0" for number in range(60))) as lab:
        assert len(lab) == 60
        assert reaches(lab["n0"], lab["n59"], lab.hosts["n59"][0])
        lab.bridges["br0"].close()
        assert not reaches(lab["n0"], lab["n59"], lab.hosts["n59"][0], patience=SOON)
        assert [link.name for link in links(lab["n0"])] == ["lo", "eth0"]
