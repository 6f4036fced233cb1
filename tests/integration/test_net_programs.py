"""Real programs across networks: what is made of wires, bridges, addresses and names is a network to them."""

from __future__ import annotations

import re
import subprocess
import textwrap
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, NamedTuple

import pytest

import isolib
from isolib import PIPE, Sandbox, new_netns
from isolib.net import new_network
from tests.nets import PATIENCE, dial
from tests.oracles import run_in
from tests.programs import iperf3, need, postgresql, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from isolib.namespaces import NetNS
    from isolib.net import Endpoint, Network

pytestmark = pytest.mark.usefixtures("user_namespaces")


class Lan(NamedTuple):
    """A network with two who are attached."""

    network: Network
    web: Endpoint
    client: Endpoint
    web_ns: NetNS
    client_ns: NetNS


@pytest.fixture
def lan() -> Iterator[Lan]:
    """Return a network of both kinds of addresses."""
    with ExitStack() as stack:
        web, client = (stack.enter_context(closing(new_netns())) for _ in range(2))
        network = stack.enter_context(new_network("10.77.0.0/24", ipv6="fd77::/64"))
        ends = network.attach(web, hostname="web"), network.attach(client, hostname="client")
        yield Lan(network, *ends, web, client)


# ---- iperf3 ----


@pytest.mark.parametrize("family", ["address", "ipv6"])
def test_iperf3_tcp(lan: Lan, family: str) -> None:
    """A stream of 64 MiB goes through, either way, and the counters of the interfaces say so too."""
    for options in ((), ("-R",)):
        before = lan.web.stats(), lan.client.stats()
        measured = iperf3(lan.client_ns, lan.web_ns, getattr(lan.web, family), "-n", "64M", *options)
        assert measured["sum_sent"]["bytes"] >= 64 << 20
        # The receiver leaves what is in the buffers of both ends when the sender is done.
        arrived = measured["sum_received"]["bytes"]
        assert arrived > 32 << 20
        after = lan.web.stats(), lan.client.stats()
        for now, then in zip(after, before, strict=True):
            assert now is not None
            assert then is not None
            assert (now.tx_bytes + now.rx_bytes) - (then.tx_bytes + then.rx_bytes) > arrived


@pytest.mark.parametrize("family", ["address", "ipv6"])
def test_iperf3_udp(lan: Lan, family: str) -> None:
    """Of as many datagrams as a socket has room for none is lost: all come to the interface, and iperf3 misses none."""
    before = lan.web.stats()
    measured = iperf3(lan.client_ns, lan.web_ns, getattr(lan.web, family), "-u", "-n", "100K", "-b", "20M")
    after = lan.web.stats()
    assert before is not None
    assert after is not None
    assert after.rx_packets - before.rx_packets > measured["sum_sent"]["packets"] > 60
    # Those that it has not read when the sender is done it does not count at all.
    assert measured["sum"]["lost_packets"] == 0
    assert measured["sum_received"]["packets"] > 0


# ---- nginx, wrk, curl ----

NGINX = """
    daemon off;
    user root root;
    worker_processes 2;
    pid nginx.pid;
    events { worker_connections 256; }
    http {
        access_log off;
        client_body_temp_path body;
        proxy_temp_path proxy;
        fastcgi_temp_path fastcgi;
        uwsgi_temp_path uwsgi;
        scgi_temp_path scgi;
        server { listen 80; listen [::]:80; return 200 "from $server_addr\\n"; }
    }
"""


@pytest.fixture
def nginx(lan: Lan, tmp_path: Path) -> Iterator[Lan]:
    """Have nginx serve in one of the namespaces, on port 80 and of both kinds of addresses."""
    need("nginx")
    (tmp_path / "nginx.conf").write_text(textwrap.dedent(NGINX))

    def answers() -> bool:
        try:
            dial(lan.client_ns, str(lan.web.address), 80).close()
        except ConnectionRefusedError:
            return False
        return True

    argv = ["nginx", "-p", str(tmp_path), "-c", "nginx.conf", "-e", "stderr"]
    with serving(lan.web_ns, argv, answers, tmp_path / "log"):
        yield lan


@pytest.mark.parametrize("host", ["10.77.0.2", "[fd77::2]"])
def test_wrk(nginx: Lan, host: str) -> None:
    """Of all requests over twenty connections at once, none fails."""
    said = run_in(nginx.client_ns, "wrk", "-t", "2", "-c", "20", "-d", "1s", f"http://{host}/")
    requests = re.search(r"(\d+) requests in", said)
    assert requests is not None, said
    assert int(requests[1]) > 100
    assert "Socket errors" not in said
    assert "Non-2xx" not in said


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_curl_to_a_published_port(nginx: Lan, host: str) -> None:
    """Who asks the host on its loopback gets the endpoint's answer, over one connection or many."""
    need("curl")
    with nginx.network.publish(0, nginx.web, 80, host=host) as published:
        url = f"http://{f'[{host}]' if ':' in host else host}:{published.port}/"
        done = subprocess.run(["curl", "-sS", "--noproxy", "*", *[url] * 5], capture_output=True, timeout=PATIENCE, check=True)
        assert (done.stdout, done.stderr) == (b"from 10.77.0.2\n" * 5, b"")
        once = ["curl", "-sS", "--noproxy", "*", "-H", "Connection: close", *[url] * 5]
        done = subprocess.run(once, capture_output=True, timeout=PATIENCE, check=True)
        assert (done.stdout, done.stderr) == (b"from 10.77.0.2\n" * 5, b"")
        assert published.stats().connections == 6
    done = subprocess.run(["curl", "-sS", "--noproxy", "*", url], capture_output=True, timeout=PATIENCE, check=False)
    assert done.returncode == 7  # it failed to connect


def test_curl_by_name(nginx: Lan) -> None:
    """A program in a sandbox finds an endpoint by its name, over IPv4 and IPv6."""
    need("curl")
    with Sandbox(network=nginx.network) as box:
        assert box.run(["curl", "-4", "-sS", "http://web/"], check=True).stdout == b"from 10.77.0.2\n"
        assert box.run(["curl", "-6", "-sS", "http://web/"], check=True).stdout == b"from fd77::2\n"
        assert box.run(["curl", "-sS", "http://nobody/"]).returncode == 6  # it could not resolve the name


# ---- dig ----


@pytest.mark.parametrize("server", ["10.77.0.1", "fd77::1"])
@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
def test_dig(lan: Lan, server: str, transport: str) -> None:
    """What dig hears of the gateway are the addresses and the names of the endpoints, and that there are no others."""

    def dig(*words: str) -> str:
        return run_in(lan.client_ns, "dig", f"@{server}", transport, "+tries=1", f"+time={PATIENCE}", *words)

    assert dig("+short", "web", "A").split() == ["10.77.0.2"]
    assert dig("+short", "web", "AAAA").split() == ["fd77::2"]
    assert dig("+short", "-x", "10.77.0.3").split() == ["client."]
    assert dig("+short", "-x", "fd77::3").split() == ["client."]
    assert "status: NXDOMAIN" in dig("nobody", "A")
    assert "status: NXDOMAIN" in dig("-x", "10.77.0.9")
    lan.web.detach()
    assert "status: NXDOMAIN" in dig("web", "A")


# ---- PostgreSQL ----

DATABASE = """
    set -e
    initdb --no-sync -D /tmp/data -A trust -U postgres > /dev/null
    echo 'host all all samenet trust' >> /tmp/data/pg_hba.conf
    exec postgres -F -D /tmp/data -k /tmp -c 'listen_addresses=*' 2>&1
"""


def test_postgresql(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database in a sandbox is filled and asked by psql from another one, by its name, and only by who is in its network."""
    monkeypatch.chdir(tmp_path)
    env = {"PATH": f"{postgresql()}:/usr/bin:/bin"}
    options = {"user": (1000, 1000), "env": env}

    def ask(box: Sandbox, host: str, query: str) -> bytes:
        argv = ["psql", "-h", host, "-U", "postgres", "-Atc", query]
        return box.run(argv, timeout=PATIENCE, check=True).stdout

    with (
        new_network("10.77.0.0/24", ipv6="fd77::/64") as network,
        Sandbox(network=network, hostname="db", **options) as database,  # type: ignore[arg-type]
        Sandbox(network=network, **options) as client,  # type: ignore[arg-type]
        Sandbox(**options) as stranger,  # type: ignore[arg-type]
        database.popen(["sh", "-c", textwrap.dedent(DATABASE)], stdout=PIPE) as server,
    ):
        assert server.stdout is not None
        assert any(b"ready to accept connections" in line for line in iter(server.stdout.readline, b""))
        assert ask(client, "db", "create table t as select generate_series(1, 1000) as n") == b"SELECT 1000\n"
        assert ask(client, "db", "select sum(n) from t") == b"500500\n"
        assert ask(client, "10.77.0.2", "select inet_client_addr(), sum(n) from t") == b"10.77.0.3|500500\n"
        assert ask(client, "fd77::2", "select inet_client_addr(), sum(n) from t") == b"fd77::3|500500\n"
        with pytest.raises(isolib.CommandFailed) as refused:
            ask(stranger, "10.77.0.2", "select 1")
        assert b"Network is unreachable" in refused.value.stderr
