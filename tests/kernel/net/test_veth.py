"""Veth pairs: both ends where they belong, whole or not at all, and gone with their handle."""

from __future__ import annotations

import errno
import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib import ClosedError, PermissionDenied, PlanError, SyscallError, new_netns
from isolib._kernel import reaper
from isolib.net import queries
from isolib.net.sysctl import Sysctls
from isolib.net.veth import new_veth
from tests import oracles, table
from tests.interrupts import interrupt
from tests.nets import dial, listen

if TYPE_CHECKING:
    from types import CodeType

    from isolib.namespaces import NetNS
    from isolib.net.veth import Veth

#: Where interrupts are raised: all that has to do with a link that is made and removed.
OWNERS = {
    os.path.join(os.path.dirname(isolib.__file__), name)
    for name in (
        *(
            "net/veth.py",
            "net/owned.py",
            "net/interface.py",
            "net/where.py",
            "net/queries.py",
            "net/carrier.py",
            "net/subscription.py",
        ),
        *("_kernel/netlink/socket.py", "_kernel/handle.py", "_kernel/reaper.py"),
    )
}

NAMES = f"zz-{os.getpid()}-a", f"zz-{os.getpid()}-b"
"""Of the ends of a pair in the host's own namespace."""


def names(ns: NetNS | None) -> list[str]:
    """Return the names of the links of a namespace, but for loopback."""
    return sorted(oracles.names(queries.links(ns)))


def entrusted() -> set[int]:
    """Return what the reaper, which there is then, would remove now."""
    reaper.pid()
    return set(table.indices())


# ---- made ----


def test_both_ends_are_where_they_belong(a: NetNS, b: NetNS) -> None:
    """Each end is in its namespace, up, with its name, its address and its MTU, and says what the other end is."""
    with new_veth(a, b, names=("left", "right"), addresses=("10.0.0.1/24", "10.0.0.2/24"), mtu=1400) as cable:
        ends = {}
        for ns, end, name, address in ((a, cable.a, "left", "10.0.0.1/24"), (b, cable.b, "right", "10.0.0.2/24")):
            (ends[name],) = [one for one in oracles.links(ns) if one.kind == "veth"]
            found = end.link()
            assert (end.ns, end.name, end.index) == (ns, name, found.index)
            assert (found.name, found.kind, found.mtu, found.up) == (name, "veth", 1400, True)
            assert "lower_up" in found.flags
            assert address in {str(one.interface) for one in oracles.addresses(ns) if one.index == end.index}
        assert (ends["left"].lower, ends["right"].lower) == (ends["right"].index, ends["left"].index)
        assert None not in {ends["left"].lower_nsid, ends["right"].lower_nsid}
        assert repr(cable) == "<Veth left -- right>"
    assert names(a) == names(b) == []


def test_what_goes_in_comes_out(a: NetNS, b: NetNS) -> None:
    """A stream goes from one namespace to the other and back, over IPv4 and over IPv6, as soon as the pair is made."""
    for addresses in (("10.0.0.1/24", "10.0.0.2/24"), ("fd00::1/64", "fd00::2/64")):
        with new_veth(a, b, addresses=addresses):
            target = addresses[1].split("/")[0]
            with listen(b, target, 8080) as server, dial(a, target, 8080) as near:
                near.sendall(b"there")
                assert near.getsockname()[0] == addresses[0].split("/")[0]
                with server.accept()[0] as far:
                    assert far.recv(10) == b"there"
                    far.sendall(b"back")
                    assert near.recv(10) == b"back"


def test_pair_within_one_namespace(a: NetNS) -> None:
    """Both ends may be in one namespace, under two names."""
    with new_veth(a, a, names=("one", "other")):
        assert names(a) == ["one", "other"]
    assert names(a) == []
    with pytest.raises(PlanError, match="both ends would be 'one'"):
        new_veth(a, a, names=("one", "one"))


def test_end_where_the_caller_is(a: NetNS, needs_root: None) -> None:
    """An end in the caller's own namespace, on whichever side, is entrusted to the reaper until it is closed."""
    before = entrusted()
    for sides in ((None, a), (a, None), (None, None)):
        with new_veth(*sides, names=NAMES) as cable:
            ours = {one.name for one in queries.links()} & set(NAMES)
            assert ours == {name for side, name in zip(sides, NAMES, strict=True) if side is None}
            assert "lower_up" in cable.a.link().flags & cable.b.link().flags
            assert len(entrusted() - before) == 1
        assert entrusted() == before
        assert names(a) == []
        assert not {one.name for one in queries.links()} & set(NAMES)


def test_ordinary_user_cannot_wire_the_host(a: NetNS) -> None:
    """Who may not change the host's namespace is told so, and nothing is left."""
    if os.geteuid() == 0:
        pytest.skip("root may")
    for sides in ((None, a), (a, None), (None, None)):
        with pytest.raises(PermissionDenied, match="CAP_NET_ADMIN"):
            new_veth(*sides, names=NAMES)
    assert names(a) == []


# ---- refused ----

BAD: list[dict[str, object]] = [
    {"names": ("", "b")},
    {"names": ("a" * 16, "b")},
    {"names": ("a", "é" * 8)},
    {"names": ("a/b", "b")},
    {"names": ("a b", "b")},
    {"names": ("a", "..")},
    {"names": ("a", "b%d")},
    {"names": ("a\n", "b")},
    {"names": ("a\0", "b")},
    {"names": ("a", "\udc80")},
    {"names": ("a",)},
    {"names": ("a", "b", "c")},
    {"names": "ab"},
    {"names": (1, 2)},
    {"addresses": ("10.0.0.1", None)},
    {"addresses": (None, "10.0.0.0/24")},
    {"addresses": (None, "10.0.0.255/24")},
    {"addresses": (None, "224.0.0.1/24")},
    {"addresses": ("300.0.0.1/24", None)},
    {"addresses": (7, None)},
    {"addresses": ("10.0.0.1/24",)},
    {"mtu": 67},
    {"mtu": 65536},
    {"mtu": "1500"},
    {"mtu": True},
]


@pytest.mark.parametrize("arguments", BAD, ids=str)
def test_bad_arguments(a: NetNS, b: NetNS, arguments: dict[str, object]) -> None:
    """What cannot work is refused by name before anything is done."""
    with pytest.raises(PlanError, match=next(iter(arguments))):
        new_veth(a, b, **arguments)  # type: ignore[arg-type]
    assert names(a) == names(b) == []


@pytest.mark.parametrize("length", [1, 15])
def test_longest_name(a: NetNS, b: NetNS, length: int) -> None:
    """A name of 15 bytes is one, whatever letters they are."""
    name = "x" * (length - 1) + "y" if length < 3 else "é" * 7 + "x"
    with new_veth(a, b, names=(name, name)):
        assert names(a) == names(b) == [name]


@pytest.mark.parametrize("side", [0, 1])
def test_name_that_is_taken(a: NetNS, b: NetNS, side: int) -> None:
    """A name that is taken at either end is told, what has it stays, and nothing is left at the other end."""
    taken = ("left", "right")[side]
    where = (a, b)[side]
    with new_veth(where, where, names=(taken, "other")) as cable:
        with pytest.raises(SyscallError, match=r"RTM_NEWLINK.*taken|there is a link") as caught:
            new_veth(a, b, names=("left", "right"))
        assert caught.value.errno == errno.EEXIST
        assert names(where) == sorted(["other", taken])
        assert names((b, a)[side]) == []
        assert cable.a.link().name == taken


@pytest.mark.parametrize("side", [0, 1])
def test_address_that_the_kernel_refuses(a: NetNS, b: NetNS, side: int) -> None:
    """When the last step fails, the pair that was made before it is gone."""
    for name in ("all", "default"):
        Sysctls((a, b)[side])[f"ipv6/conf/{name}/disable_ipv6"] = True
    addresses = (None, "fd00::1/64") if side else ("fd00::1/64", None)
    with pytest.raises(SyscallError) as caught:
        new_veth(a, b, addresses=addresses)
    assert caught.value.op == "RTM_NEWADDR"
    assert "fd00::1/64" in str(caught.value)
    assert names(a) == names(b) == []


@pytest.mark.parametrize("side", [0, 1])
def test_closed_namespace(a: NetNS, side: int) -> None:
    """A closed namespace at either end is told, and nothing is left in the other one."""
    gone = new_netns()
    gone.close()
    with pytest.raises(ClosedError):
        new_veth(*((gone, a) if side == 0 else (a, gone)))
    assert names(a) == []


@pytest.mark.parametrize("wrong", [1, "eth0", object()])
def test_end_that_is_no_namespace(a: NetNS, wrong: object) -> None:
    """What is no network namespace is told by the argument's name."""
    with pytest.raises(PlanError, match="b: a network namespace is wanted"):
        new_veth(a, wrong)  # type: ignore[arg-type]
    with closing(isolib.new_utsns()) as other, pytest.raises(PlanError, match="a: a network namespace is wanted"):
        new_veth(other, a)
    assert names(a) == []


# ---- gone ----


def test_namespace_that_ends_first(a: NetNS) -> None:
    """When one namespace ends, the other end goes too, and closing the pair then is nothing."""
    gone = new_netns()
    cable = new_veth(a, gone)
    gone.close()
    cable.close()
    cable.close()
    assert names(a) == []
    with pytest.raises(ClosedError):
        cable.b.link()


def test_end_that_somebody_removed(a: NetNS, b: NetNS) -> None:
    """A pair that another program has removed is closed without complaint, and asked about it is told to be gone."""
    with new_veth(a, b, names=("left", "right")) as cable:
        oracles.run_in(b, "ip", "link", "delete", "right")
        with pytest.raises(SyscallError) as caught:
            cable.a.link()
        assert caught.value.errno == errno.ENODEV


def test_renamed_end(a: NetNS, b: NetNS) -> None:
    """A pair is removed by what it is, not by what it was called, and another link that has its name by then stays."""
    cable = new_veth(a, b, names=("left", "right"))
    cable.a.down()
    cable.a.change(name="moved")
    with new_veth(a, a, names=("left", "far")):
        cable.close()
        assert names(a) == ["far", "left"]


def test_forgotten_pair(a: NetNS, b: NetNS) -> None:
    """A pair that nobody closes is removed when it is collected, with a warning."""
    cable = new_veth(a, b)
    assert names(a) == ["veth0"]
    with pytest.warns(ResourceWarning, match="never closed: <Veth veth0 -- veth1>"):
        del cable  # the last reference: CPython collects it now
    assert names(a) == names(b) == []


def test_fork_owns_nothing(a: NetNS, b: NetNS) -> None:
    """A fork's copy of a pair, closed, does nothing to the pair."""
    with new_veth(a, b, names=("left", "right")) as cable:
        child = os.fork()
        if not child:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    cable.close()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert (names(a), names(b)) == (["left"], ["right"])


# ---- many, and interrupted ----


def test_many_from_many_threads(a: NetNS, b: NetNS) -> None:
    """Sixteen threads make 64 pairs between two namespaces at once; each is whole, and all are gone afterwards."""

    def make(number: int) -> Veth:
        return new_veth(a, b, names=(f"l{number}", f"r{number}"), addresses=(f"10.{number}.0.1/24", f"10.{number}.0.2/24"))

    with ThreadPoolExecutor(16) as pool:
        cables = list(pool.map(make, range(64)))
        assert names(a) == sorted(f"l{number}" for number in range(64))
        assert names(b) == sorted(f"r{number}" for number in range(64))
        assert len({cable.a.index for cable in cables}) == 64
        assert {str(one.interface) for one in queries.addresses(a)} >= {f"10.{number}.0.1/24" for number in range(64)}
        list(pool.map(lambda cable: cable.close(), cables))
    assert names(a) == names(b) == []


def test_race_for_one_name(a: NetNS, b: NetNS) -> None:
    """Of threads that want the same name at once exactly one gets it, and none takes it from another."""
    together = threading.Barrier(8)

    def make(number: int) -> Veth | None:
        together.wait()
        try:
            return new_veth(a, b, names=("same", f"r{number}"))
        except SyscallError as error:
            if error.errno != errno.EEXIST:
                raise
            return None

    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            (cable,) = [one for one in pool.map(make, range(8)) if one is not None]
            assert names(a) == ["same"]
            assert len(names(b)) == 1
            cable.close()
            assert names(a) == names(b) == []


@pytest.mark.parametrize("where", ["ours", pytest.param("the host's", marks=pytest.mark.root)])
@pytest.mark.filterwarnings("ignore:never closed:ResourceWarning")
def test_interrupts(a: NetNS, b: NetNS, where: str, lost: list[type[BaseException]]) -> None:
    """An interrupt at any point of the life of a pair leaves no link, no descriptor, and nothing entrusted."""
    before = entrusted()
    one = a if where == "ours" else None

    def live() -> None:
        new_veth(one, b, names=NAMES, addresses=("10.0.0.1/24", "fd00::1/64")).close()

    live()
    turn = 0
    while interrupt(turn := turn + 1, live, is_ours) == 0:
        assert not {name for ns in (one, b) for name in names(ns)} & set(NAMES), turn
        assert entrusted() - table.lost() == before, turn
    assert turn > 100


def is_ours(code: CodeType) -> bool:
    """Return whether interrupts are raised in this code."""
    return code.co_filename in OWNERS
