"""Links and settings in the reaper's table.  What it leaves of them of a killed host: tests/integration/test_net_hosts.py."""

from __future__ import annotations

import gc
import os
import socket
from typing import TYPE_CHECKING

import pytest

from isolib import PlanError
from isolib._kernel import calls, reaper
from isolib._kernel.netlink.socket import open_netlink
from tests.groups import parents
from tests.table import entry, indices, own

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from isolib._kernel.netlink.socket import Socket
    from isolib._kernel.reaper import Ticket


@pytest.fixture
def route() -> Iterator[Socket]:
    """Return a netlink socket of this process's network namespace; there is a reaper."""
    reaper.pid()
    with open_netlink(None) as found:
        yield found


@pytest.fixture
def setting() -> Iterator[int]:
    """Return a setting that this process may write, open for that; there is a reaper."""
    reaper.pid()
    fd = os.open("/proc/self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
    yield fd
    os.close(fd)


def test_link_is_what_c_reads(route: Socket) -> None:
    """A link stands in the table by its number, below the socket of its namespace, until it is struck."""
    before = indices()
    ticket = reaper.entrust_link(route.fileno(), 2147483646)
    (index,) = set(indices()) - set(before)
    found = entry(index)
    assert (found["kind"], found["name"]) == (calls.ENTRY_LINK, b"2147483646")
    assert len(found["bases"]) == 1  # type: ignore[arg-type]
    ticket.strike()
    ticket.strike()
    assert indices() == before


def test_setting_is_what_c_reads(setting: int) -> None:
    """A setting stands in the table by the line that it is given back, and by what it is to be then, until it is struck."""
    before = indices()
    for value in ("0", "4096 131072 6291456", "1\t2", "é", "", "x" * 252):
        ticket = reaper.entrust_setting(setting, value, "1")
        (index,) = set(indices()) - set(before)
        found = entry(index)
        assert (found["kind"], found["name"], found["rest"]) == (calls.ENTRY_SETTING, f"{value}\n".encode(), b"1")
        ticket.strike()
    assert indices() == before


def test_setting_that_is_too_long(setting: int) -> None:
    """Values that an entry has no room for together are refused, and so is what is not one line."""
    before = indices()
    for old, value in (("x" * 253, "1"), ("1", "x" * 253), ("0", "a\0b"), ("0", "")):
        with pytest.raises(PlanError):
            reaper.entrust_setting(setting, old, value)
    assert indices() == before


def test_one_socket_for_many_links(route: Socket) -> None:
    """The reaper is sent a socket once for all links of its namespace, and lets it go with the last."""
    known = len(own()._known)
    tickets = [reaper.entrust_link(route.fileno(), number) for number in range(1, 50)]
    assert len(own()._known) == known + 1
    for ticket in tickets:
        ticket.strike()
    del ticket, tickets
    gc.collect()
    assert len(own()._known) == known


def test_ticket_is_given_before_it_counts(route: Socket, setting: int) -> None:
    """Who is to keep the ticket has it before the entry counts."""
    makers: list[Callable[[Callable[[Ticket], object]], Ticket]] = [
        lambda keep: reaper.entrust_link(route.fileno(), 7, keep),
        lambda keep: reaper.entrust_setting(setting, "0", "1", keep),
    ]
    for make in makers:
        seen: list[tuple[Ticket, list[int]]] = []
        before = indices()
        ticket = make(lambda given, seen=seen: seen.append((given, indices())))  # type: ignore[misc]
        assert seen == [(ticket, before)]
        ticket.strike()


def test_what_is_looked_up_elsewhere(route: Socket, setting: int, tmp_path: Path) -> None:
    """A link is looked up in a socket, a setting in a file of /proc, and in nothing else: nothing is written elsewhere."""
    group = os.open(parents()[0], os.O_PATH | os.O_CLOEXEC)
    plain = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    before = indices()
    try:
        for fd in (group, plain, setting):
            with pytest.raises(PlanError, match="is not a netlink socket"):
                reaper.entrust_link(fd, 7)
        for fd in (group, plain, route.fileno()):
            with pytest.raises(PlanError, match="is not an open file of /proc/sys"):
                reaper.entrust_setting(fd, "0", "1")
        with pytest.raises(PlanError, match="is not a directory of cgroups"):
            reaper.entrust([setting], "isolib-absent")
    finally:
        os.close(group)
        os.close(plain)
    assert indices() == before


def test_socket_of_another_kind(route: Socket) -> None:
    """A socket that does not speak netlink is no place for links."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream, pytest.raises(PlanError, match="not a netlink socket"):
        reaper.entrust_link(stream.fileno(), 7)


def test_known_by_another_kind(route: Socket) -> None:
    """What is known as the socket of links is no place for groups or settings."""
    ticket = reaper.entrust_link(route.fileno(), 7)
    with pytest.raises(PlanError):
        reaper.entrust_setting(route.fileno(), "0", "1")
    with pytest.raises(PlanError):
        reaper.entrust([route.fileno()], "isolib-absent")
    ticket.strike()
