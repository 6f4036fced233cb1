"""Settings of a network namespace: read and written in it and nowhere else, held, and put back."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import struct
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib import ClosedError, PermissionDenied, PlanError, SyscallError, new_netns
from isolib._kernel import calls, reaper
from isolib._kernel.sockets import open_file_in
from isolib.net.sysctl import Sysctls, hold
from isolib.net.veth import new_veth
from tests import oracles, table
from tests.interrupts import interrupt

if TYPE_CHECKING:
    from types import CodeType

    from isolib.namespaces import NetNS

OWNERS = {
    os.path.join(os.path.dirname(isolib.__file__), name)
    for name in (
        "net/sysctl.py",
        "net/where.py",
        "_kernel/handle.py",
        "_kernel/holders.py",
        "_kernel/reaper.py",
        "_kernel/sockets.py",
    )
}

FORWARD = "net.ipv4.ip_forward"


def cat(ns: NetNS, path: str) -> str:
    """Return a setting as a program in the namespace reads it."""
    return oracles.run_in(ns, "cat", f"/proc/sys/{path}").strip()


def test_settings_are_those_of_the_namespace(a: NetNS, b: NetNS) -> None:
    """What is written in one namespace is what programs there read, and no other one's setting has changed."""
    host = Path("/proc/sys/net/ipv4/ip_forward").read_text(encoding="ascii")
    for value in ("1", "0", 1, 0, True, False):
        Sysctls(a)[FORWARD] = value
        assert cat(a, "net/ipv4/ip_forward") == str(int(value)) == Sysctls(a)[FORWARD]
        assert Sysctls(b)[FORWARD] == cat(b, "net/ipv4/ip_forward") == "0"
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text(encoding="ascii") == host


def test_forms_of_values(a: NetNS) -> None:
    """Several numbers, one number and a word are written and read as what they are."""
    settings = Sysctls(a)
    settings["net.ipv4.ip_local_port_range"] = (2000, 3000)
    assert settings.numbers("net.ipv4.ip_local_port_range") == (2000, 3000)
    assert cat(a, "net/ipv4/ip_local_port_range").split() == ["2000", "3000"]
    settings["ipv4.ip_local_port_range"] = "4000 5000"
    assert settings["net/ipv4/ip_local_port_range"].split() == ["4000", "5000"]
    settings["ipv4.ip_default_ttl"] = 42
    assert settings.number("ipv4.ip_default_ttl") == 42
    settings["ipv4.ping_group_range"] = [1, 0]
    assert settings.numbers("ipv4/ping_group_range") == (1, 0)


def test_settings_of_a_link_with_a_dot_in_its_name(a: NetNS) -> None:
    """A link's name that has a dot is written with slashes around it, or with a slash for the dot."""
    with new_veth(a, a, names=("x.100", "y")):
        settings = Sysctls(a)
        settings["net.ipv4.conf.x/100.forwarding"] = True
        assert settings["net/ipv4/conf/x.100/forwarding"] == cat(a, "net/ipv4/conf/x.100/forwarding") == "1"
        assert settings["ipv4.conf.y.forwarding"] == "0"


def test_setting_that_there_is_not(a: NetNS) -> None:
    """A setting that does not exist is told as such, and so is one of a link that does not."""
    settings = Sysctls(a)
    for name in ("net.ipv4.no_such_setting", "net/ipv4/conf/absent/forwarding", "no.such"):
        with pytest.raises(SyscallError, match="no such setting") as caught:
            settings[name]
        assert caught.value.errno == errno.ENOENT
        with pytest.raises(SyscallError, match="no such setting"):
            settings[name] = 1
        assert name not in settings
        assert settings.get(name) is None
        assert settings.get(name, "7") == "7"
    assert FORWARD in settings
    assert settings.get(FORWARD) == "0"
    assert 5 not in settings


@pytest.mark.parametrize("value", ["x", "1 2 x", "99999999999999999999999"])
def test_value_that_the_kernel_refuses(a: NetNS, value: str) -> None:
    """What a setting cannot be is told with its name, and it stays as it was."""
    before = Sysctls(a)["ipv4.ip_local_port_range"]
    with pytest.raises(SyscallError, match=r"write: /proc/sys/net/ipv4/ip_local_port_range.*cannot have this value") as caught:
        Sysctls(a)["ipv4.ip_local_port_range"] = value
    assert caught.value.errno == errno.EINVAL
    assert Sysctls(a)["ipv4.ip_local_port_range"] == before


@pytest.mark.parametrize("value", ["", "1\n2", "a\0b", None, 1.5, (), (1, "2"), "x" * 4096, "\ud800", b"1"], ids=repr)
def test_value_that_is_none(a: NetNS, value: object) -> None:
    """What no setting can be is refused before anything is opened."""
    with pytest.raises(PlanError, match="value"):
        Sysctls(a)[FORWARD] = value  # type: ignore[assignment]
    with pytest.raises(PlanError, match="value"):
        hold(FORWARD, value, ns=a)  # type: ignore[arg-type]
    assert Sysctls(a)[FORWARD] == "0"


def test_directory_is_no_setting(a: NetNS) -> None:
    """A directory of settings is told to be none."""
    with pytest.raises(SyscallError) as caught:
        Sysctls(a)["net.ipv4"]
    assert caught.value.errno == errno.EISDIR


def test_namespace_that_is_none(a: NetNS) -> None:
    """What is no network namespace is refused at once, and a closed one by its own exception."""
    with pytest.raises(PlanError, match="a network namespace is wanted"):
        Sysctls(5)  # type: ignore[arg-type]
    with closing(new_netns()) as gone:
        settings = Sysctls(gone)
    with pytest.raises(ClosedError):
        settings[FORWARD]
    with pytest.raises(ClosedError):
        hold(FORWARD, 1, ns=gone)


def test_the_calling_threads_own() -> None:
    """Without a namespace, it is that of the calling thread; who may not write there is told so."""
    assert Sysctls()[FORWARD] == Path("/proc/sys/net/ipv4/ip_forward").read_text(encoding="ascii").strip()
    if os.geteuid():
        with pytest.raises(PermissionDenied):
            Sysctls()[FORWARD] = 1
        with pytest.raises(PermissionDenied):
            hold(FORWARD, Sysctls()[FORWARD])


# ---- held ----


def test_held_by_several(a: NetNS) -> None:
    """A setting has its value until the last of its users is closed, in whatever order, and then its old one again."""
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        users = [hold(FORWARD, 1, ns=a) for _ in range(3)]
        assert repr(users[0]) == "<HeldSetting /proc/sys/net/ipv4/ip_forward = 1>"
        for left, number in enumerate(order):
            assert cat(a, "net/ipv4/ip_forward") == "1", left
            users[number].close()
            users[number].close()
        assert cat(a, "net/ipv4/ip_forward") == "0"


def test_held_by_many_threads(a: NetNS) -> None:
    """Whoever holds a setting, on whichever thread, finds it at its value all the while."""
    together = threading.Barrier(8)

    def use(_: int) -> bool:
        together.wait()
        seen = []
        for _ in range(30):
            with hold(FORWARD, 1, ns=a):
                seen.append(Sysctls(a)[FORWARD])
        return set(seen) == {"1"}

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, range(8)))
    assert Sysctls(a)[FORWARD] == "0"


def test_held_at_two_values(a: NetNS) -> None:
    """A setting that is held at one value cannot be held at another, and stays at the first."""
    with hold("ipv4.ip_default_ttl", 33, ns=a):
        with pytest.raises(PlanError, match="held at '33'"):
            hold("ipv4.ip_default_ttl", 34, ns=a)
        assert Sysctls(a)["ipv4.ip_default_ttl"] == "33"
    with hold("ipv4.ip_default_ttl", 34, ns=a):
        assert Sysctls(a)["ipv4.ip_default_ttl"] == "34"
    assert Sysctls(a)["ipv4.ip_default_ttl"] == "64"


def test_held_in_place_of_nothing(a: NetNS) -> None:
    """A setting that was empty is so again."""
    name = "net.ipv4.ip_local_reserved_ports"
    with hold(name, "8080", ns=a):
        assert Sysctls(a)[name] == "8080"
    assert Sysctls(a)[name] == ""
    with closing(isolib.open_netns(fd=a)) as stays, hold(name, "8080", ns=stays):
        assert Sysctls(a)[name] == "8080"
    assert Sysctls(a)[name] == ""


def test_held_at_what_it_was(a: NetNS) -> None:
    """A setting that had its value before is not touched, whatever becomes of it meanwhile."""
    with hold("ipv4.ip_default_ttl", 64, ns=a):
        Sysctls(a)["ipv4.ip_default_ttl"] = 65
    assert Sysctls(a)["ipv4.ip_default_ttl"] == "65"


def test_changed_by_somebody_else_meanwhile(a: NetNS) -> None:
    """What somebody else has set meanwhile is not put back."""
    with hold("ipv4.ip_default_ttl", 33, ns=a):
        Sysctls(a)["ipv4.ip_default_ttl"] = 65
    assert Sysctls(a)["ipv4.ip_default_ttl"] == "65"


def test_refused_value_changes_nothing(a: NetNS) -> None:
    """A value that the kernel refuses is held by nobody, and the next one can be."""
    with pytest.raises(SyscallError, match="cannot have this value"):
        hold("ipv4.ip_default_ttl", 256, ns=a)
    assert Sysctls(a)["ipv4.ip_default_ttl"] == "64"
    with hold("ipv4.ip_default_ttl", 33, ns=a):
        assert Sysctls(a)["ipv4.ip_default_ttl"] == "33"
    assert Sysctls(a)["ipv4.ip_default_ttl"] == "64"


def test_spaces_between_numbers(a: NetNS) -> None:
    """Numbers with spaces between them, where the kernel shows tabs, are the same value, and are put back."""
    name = "net.ipv4.ip_local_port_range"
    before = cat(a, "net/ipv4/ip_local_port_range")
    with hold(name, "2000 3000", ns=a), hold(name, (2000, 3000), ns=a):
        assert cat(a, "net/ipv4/ip_local_port_range") == "2000\t3000"
    assert cat(a, "net/ipv4/ip_local_port_range") == before


@pytest.mark.parametrize(("value", "written"), [("033", "27"), ("0x21", "33")])
def test_value_that_the_kernel_writes_otherwise(a: NetNS, value: str, written: str) -> None:
    """What would not be known again as what was put there is refused, with what the kernel makes of it, and put back."""
    with pytest.raises(PlanError, match=f"is '{written}' when"):
        hold("ipv4.ip_default_ttl", value, ns=a)
    assert cat(a, "net/ipv4/ip_default_ttl") == "64"


WAYS_OF_LINKS = {
    "net.ipv4.conf.all.accept_redirects": "0",
    "net.ipv4.conf.default.forwarding": "1",
    "net.ipv4.conf.lo.forwarding": "1",
    "net.ipv6.conf.default.forwarding": "1",
    "net.ipv6.conf.lo.forwarding": "1",
}
"""What the kernel changes with forwarding, and how it is not by itself."""


@pytest.mark.parametrize("name", [FORWARD, "net.ipv4.conf.all.forwarding", "net.ipv6.conf.all.forwarding"])
def test_what_changes_with_forwarding(a: NetNS, name: str) -> None:
    """What links have of their own, and whether redirects are believed, is as it was; what somebody has changed stays so."""
    settings = Sysctls(a)
    for one, value in WAYS_OF_LINKS.items():
        settings[one] = value
    with hold(name, 1, ns=a), hold(name, 1, ns=a):
        pass
    assert {one: cat(a, one.replace(".", "/")) for one in WAYS_OF_LINKS} == WAYS_OF_LINKS
    assert settings[name] == "0"
    changed = name.replace("all", "lo").replace("ip_forward", "conf.lo.forwarding")
    with hold(name, 1, ns=a):
        settings[changed] = 0
    assert {one: settings[one] for one in WAYS_OF_LINKS} == WAYS_OF_LINKS | {changed: "0"}


def test_lock_that_is_no_holders(a: NetNS) -> None:
    """A lock where those of holders lie, and that tells nothing, keeps nobody waiting: it is told."""
    with open_file_in(a, "/proc/sys/net/ipv4/ip_forward", os.O_RDWR) as file:
        lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, (1 << calls.SETTING_MARKS_FROM) + 1, 1, 0)
        fcntl.fcntl(file.fileno(), fcntl.F_OFD_SETLK, lock)
        with pytest.raises(SyscallError, match="no holder's") as caught:
            hold(FORWARD, 1, ns=a)
    assert caught.value.errno == errno.EAGAIN
    with hold(FORWARD, 1, ns=a):
        assert Sysctls(a)[FORWARD] == "1"
    assert Sysctls(a)[FORWARD] == "0"


def test_held_where_the_caller_is(needs_root: None) -> None:
    """In a namespace that may outlive this program, the old value is entrusted to the reaper until it is put back."""
    reaper.pid()
    with new_netns(), new_netns():
        with hold(FORWARD, 1):
            entries = [table.entry(index) for index in table.indices()]
            assert [one["name"] for one in entries if one["kind"] == calls.ENTRY_SETTING] == [b"0\n"]
            with hold(FORWARD, "1"):
                assert len(table.indices()) == len(entries)
            assert Sysctls()[FORWARD] == "1"
        assert Sysctls()[FORWARD] == "0"
        assert not [one for one in map(table.entry, table.indices()) if one["kind"] == calls.ENTRY_SETTING]


def test_forgotten_and_forked(a: NetNS) -> None:
    """A fork's copy puts nothing back, and what nobody closes is put back when it is collected, with a warning."""
    held = hold(FORWARD, 1, ns=a)
    child = os.fork()
    if not child:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                held.close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert Sysctls(a)[FORWARD] == "1"
    with pytest.warns(ResourceWarning, match="never closed: <HeldSetting"):
        del held
    assert Sysctls(a)[FORWARD] == "0"


@pytest.mark.filterwarnings("ignore:never closed:ResourceWarning")
@pytest.mark.parametrize(("name", "value"), [("net.ipv4.ip_default_ttl", 33), (FORWARD, 1)])
def test_interrupts(a: NetNS, lost: list[type[BaseException]], name: str, value: int) -> None:
    """An interrupt at any point of holding and letting go leaves the old value, and the next one can hold it."""
    settings = Sysctls(a)
    for one, own in WAYS_OF_LINKS.items():
        settings[one] = own
    names = (name, "net.ipv4.conf.lo.forwarding", "net.ipv4.conf.all.accept_redirects")
    before = [settings[one] for one in names]

    def live() -> None:
        hold(name, value, ns=a).close()

    live()
    turn = 0
    while interrupt(turn := turn + 1, live, is_ours) == 0:
        gc.collect(0)
        assert [settings[one] for one in names] == before, turn
    assert turn > 50


def is_ours(code: CodeType) -> bool:
    """Return whether interrupts are raised in this code."""
    return code.co_filename in OWNERS
