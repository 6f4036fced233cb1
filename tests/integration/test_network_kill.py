"""What a network leaves in its host's namespace when its program is killed: nothing."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
from contextlib import closing
from subprocess import PIPE
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib._kernel.netlink import codec
from isolib._kernel.netlink.socket import NETFILTER, Request
from isolib.net import addresses, links, routes
from isolib.net.sysctl import Sysctls
from tests.nets import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolib.namespaces import NetNS

pytestmark = pytest.mark.root

PROGRAM = """
import isolib, sys
from isolib.net import new_veth
while True:
    ns = isolib.new_netns()
    with isolib.new_network("10.77.0.0/24", ipv6=True, internet=True) as network:
        endpoint = network.attach(ns, hostname="web")
        mine = network.attach(None, name="lab0", default_route=False)
        cable = new_veth(None, None, names=("cable0", "cable1"), addresses=("10.99.0.1/30", None))
        published = network.publish(0, endpoint, 80)
        print(flush=True)
        if sys.argv[1] == "stay":
            sys.stdin.read()
        published.close(), cable.close(), mine.close(), ns.close()
"""
SETTINGS = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")
NFT_GETTABLE = 10 << 8 | 1


@pytest.fixture
def host() -> Iterator[NetNS]:
    """Return the namespace of a host."""
    with closing(isolib.new_netns()) as made:
        yield made


def state(host: NetNS) -> tuple[object, ...]:
    """Return all of a host's namespace that a network may change."""
    settings = Sysctls(host)
    ask = Request(NFT_GETTABLE, bytes(4), 0, "NFT_MSG_GETTABLE", "tables")
    tables = [codec.word(codec.table(message.body, 4)[1]) for message in host.netlink(NETFILTER).dump(ask)]
    return (
        {link.name for link in links(host)},
        {str(address.interface) for address in addresses(host)},
        {str(route.destination) for route in routes(host, table=None)},
        tables,
        [settings[name] for name in SETTINGS],
    )


def test_killed_at_rest(host: NetNS) -> None:
    """A program that is killed while its network stands leaves no link, address, route, table or setting."""
    before = state(host)
    with host.run(subprocess.Popen, [sys.executable, "-c", PROGRAM, "stay"], stdin=PIPE, stdout=PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        during = state(host)
        assert during[4] == ["1", "1"]
        assert len(during[3]) == 1  # type: ignore[arg-type]
        assert {"lab0", "cable0", "cable1"} <= during[0]  # type: ignore[operator]
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert until(lambda: state(host) == before), state(host)


@pytest.mark.parametrize("moment", range(12))
def test_killed_at_work(host: NetNS, moment: int) -> None:
    """Whenever it is killed while it makes and closes networks, nothing stays."""
    before = state(host)
    number = random.Random(moment)  # noqa: S311 - the same moments each time
    with host.run(subprocess.Popen, [sys.executable, "-c", PROGRAM, "go"], stdout=PIPE) as process:
        assert process.stdout is not None
        for _ in range(number.randint(1, 4)):
            assert process.stdout.readline() == b"\n"
        threading.Event().wait(number.random() * 0.05)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert until(lambda: state(host) == before), state(host)
