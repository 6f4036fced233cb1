"""What is left of the networks of hosts that are killed, in the network namespace where they were: nothing.

Each host runs in a network namespace that the test has, which outlives it: that stands for the machine's own.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from isolib import open_netns
from isolib._kernel.sockets import open_file_in
from isolib.net import queries
from tests.groups import has_ended, host, is_running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolib.namespaces import NetNS
    from tests.groups import Host

pytestmark = pytest.mark.usefixtures("user_namespaces")

TRIES = int(os.environ.get("ISOLIB_TEST_TRIES", "12"))

INSIDE = ("unshare", "--net") if os.geteuid() == 0 else ("unshare", "--map-root-user", "--net")
"""A host that may do everything in a network namespace of its own."""

PROGRAM = """
import select
from isolib import new_netns
from isolib.net.kinds import new_macvlan, new_vxlan
from isolib.net.queries import links
from isolib.net.sysctl import Sysctls, hold
from isolib.net.veth import new_veth

def addresses(number):
    return f"10.{number}.0.1/24", f"10.{number}.0.2/24"
"""


@contextmanager
def machine(body: str) -> Iterator[tuple[Host, NetNS]]:
    """Run a host in a machine of its own, and give both when it has said that it runs, with the number of its reaper."""
    lines = [line for line in body.splitlines() if line.strip()]
    indent = len(lines[0]) - len(lines[0].lstrip())
    program = PROGRAM + "\n".join(line[indent:] for line in lines)
    with host("tell(os.getpid())\nsys.stdin.readline()\n" + program, [], *INSIDE) as running:
        (pid,) = running.heard()
        ns = open_netns(pid=pid)
        try:
            yield running, ns
        finally:
            ns.close()


def left(ns: NetNS) -> list[str]:
    """Return the links that a namespace has."""
    return [one.name for one in queries.links(ns) if one.kind != "loopback"]


def setting(ns: NetNS, name: str) -> str:
    """Return a setting of a namespace."""
    with open_file_in(ns, f"/proc/sys/{name}", os.O_RDONLY) as file:
        return os.pread(file.fileno(), 100, 0).decode().strip()


SITUATIONS = {
    "to a namespace": "made = [new_netns()]; made.append(new_veth(None, made[0], addresses=addresses(1)))",
    "from a namespace": "made = [new_netns()]; made.append(new_veth(made[0], None, addresses=addresses(1)))",
    "both here": "made = [new_veth(None, None, addresses=addresses(1))]",
    "renamed": "made = [new_veth(None, None)]; made[0].a.down(); made[0].a.change(name='other')",
    "many": """
        made = [new_netns() for _ in range(10)]
        made += [new_veth(None, ns, names=(f"v{number}", "eth0")) for number, ns in enumerate(made)]
    """,
    "standing on another": """
        made = [new_netns(), new_veth(None, None, names=("wire", "far"))]
        made += [new_macvlan("wire", name="m0"), new_macvlan("wire", ns=made[0], name="m1"), new_vxlan(7), new_vxlan(8)]
    """,
    "closed": "made = [new_veth(None, None)]; made[0].close()",
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_links_of_a_killed_host(situation: str) -> None:
    """Of a host that is killed no link is left where it was, whichever namespaces its links had been in."""
    ending = "\ntell(reaper.pid(), len(links()))\nsignal.pause()"
    with machine(SITUATIONS[situation].rstrip() + _aligned(SITUATIONS[situation], ending)) as (running, ns):
        running.say("")
        pid, number = running.heard()
        reaper = running.pidfd(pid)
        assert is_running(reaper)
        assert len(left(ns)) == number - 1
        assert (number > 1) == (situation != "closed")
        running.kill()
        assert has_ended(reaper)
        assert left(ns) == []


def _aligned(body: str, more: str) -> str:
    """Return lines indented as the first of a program is."""
    first = next(line for line in body.splitlines() if line.strip())
    return more.replace("\n", "\n" + " " * (len(first) - len(first.lstrip())))


def test_links_of_a_killed_host_that_makes_more() -> None:
    """A host that makes and removes links on four threads is killed at any moment, and none of them is left."""
    body = """
        import threading
        namespaces = [new_netns() for _ in range(4)]
        def work(number):
            while True:
                with new_veth(None, namespaces[number], names=(f"v{number}", "eth0"), addresses=addresses(number)):
                    pass
                with new_veth(namespaces[number], None, names=("eth0", f"w{number}")), new_vxlan(number, port=4000 + number):
                    pass
        reaper.pid()
        for number in range(4):
            threading.Thread(target=work, args=[number], daemon=True).start()
        tell(reaper.pid())
        signal.pause()
    """
    moment = threading.Event()
    for _ in range(TRIES):
        with machine(body) as (running, ns):
            running.say("")
            (pid,) = running.heard()
            reaper = running.pidfd(pid)
            moment.wait(os.urandom(1)[0] / 1000)
            running.kill()
            assert has_ended(reaper)
            assert left(ns) == []


def test_links_of_others_stay() -> None:
    """What other programs have made, under whatever names and numbers, is not touched when a host is killed."""
    body = """
        made = [new_veth(None, None, names=("ours", "too"))]
        made[0].a.down()
        made[0].a.change(name="gone")
        subprocess.run(["ip", "link", "add", "ours", "type", "veth", "peer", "name", "theirs"], check=True)
        subprocess.run(["ip", "link", "delete", "gone"], check=True)
        tell(reaper.pid())
        signal.pause()
    """
    with machine(body) as (running, ns):
        running.say("")
        (pid,) = running.heard()
        reaper = running.pidfd(pid)
        running.kill()
        assert has_ended(reaper)
        assert sorted(left(ns)) == ["ours", "theirs"]


def test_settings_of_a_killed_host() -> None:
    """Settings that a host held are as they were before it, and those that it had let go, or set for good, are not touched."""
    body = """
        held = [hold("net.ipv4.ip_forward", 1), hold("net.ipv4.ip_forward", 1), hold("ipv4.ip_local_port_range", "2000\\t3000")]
        held.append(hold("net.ipv4.ip_local_reserved_ports", "8080"))
        hold("ipv4.ip_default_ttl", 33).close()
        Sysctls()["ipv4.ip_default_ttl"] = 44
        held[0].close()
        tell(reaper.pid())
        signal.pause()
    """
    names = tuple(
        f"net/ipv4/{one}" for one in ("ip_forward", "ip_local_port_range", "ip_local_reserved_ports", "ip_default_ttl")
    )
    with machine(body) as (running, ns):
        before = [setting(ns, name) for name in names]
        running.say("")
        (pid,) = running.heard()
        reaper = running.pidfd(pid)
        assert [setting(ns, name).split() for name in names] == [["1"], ["2000", "3000"], ["8080"], ["44"]]
        running.kill()
        assert has_ended(reaper)
        assert [setting(ns, name) for name in names] == [*before[:3], "44"]
        assert before[2] == ""


def test_reaper_that_was_killed_before() -> None:
    """A reaper that somebody has killed is replaced by one that knows of every link before."""
    body = """
        made = [new_veth(None, None, names=("a1", "a2")), hold("net.ipv4.ip_forward", 1)]
        before = reaper.pid()
        pidfd = os.pidfd_open(before)
        os.kill(before, signal.SIGKILL)
        select.select([pidfd], [], [])
        sys.stdin.readline()
        made.append(new_veth(None, None, names=("b1", "b2")))
        tell(reaper.pid(), before)
        signal.pause()
    """
    with machine(body) as (running, ns):
        running.say("")
        running.say("")
        pid, before = running.heard()
        assert pid != before
        reaper = running.pidfd(pid)
        running.kill()
        assert has_ended(reaper)
        assert left(ns) == []
        assert setting(ns, "net/ipv4/ip_forward") == "0"


def test_host_that_ends_by_itself() -> None:
    """A host that ends without closing anything leaves nothing either."""
    with machine("made = [new_veth(None, None), hold('net.ipv4.ip_forward', 1)]; tell(reaper.pid())") as (running, ns):
        running.say("")
        (pid,) = running.heard()
        reaper = running.pidfd(pid)
        assert has_ended(reaper)
        assert left(ns) == []
        assert setting(ns, "net/ipv4/ip_forward") == "0"
        running.process.wait()
