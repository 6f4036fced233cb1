"""Test suites whose tests all have the same port: each is in a network namespace of its own, one by one and in parallel."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("user_namespaces")

CONFTEST = """
    from contextlib import closing
    import isolib, pytest

    @pytest.fixture
    def lab():
        with closing(isolib.new_netns()) as ns, isolib.new_network("10.77.0.0/24") as network:
            network.attach(ns)
            yield network, ns
"""

SUITE = """
    import socket, sys
    import isolib, pytest

    SERVE = '''
    import socket
    with socket.create_server(("10.77.0.2", 8080)) as server:
        print("up", flush=True)
        with server.accept()[0] as client:
            client.sendall(client.recv(100)[::-1])
    '''

    @pytest.mark.parametrize("number", range(200))
    def test_port(lab, number):
        network, ns = lab
        with (
            ns.spawn([sys.executable, "-I", "-S", "-c", SERVE], stdout=isolib.PIPE) as server,
            network.publish(0, network.endpoints()[0], 8080) as published,
        ):
            assert server.stdout.readline() == b"up\\n"
            with socket.create_connection(("127.0.0.1", published.port), 30) as client:
                client.sendall(b"test %d" % number)
                assert client.recv(100)[::-1] == b"test %d" % number
            assert server.wait(60).code == 0
"""


@pytest.mark.parametrize(
    "options", [pytest.param(["-p", "no:xdist"], marks=pytest.mark.slow, id="serially"), pytest.param(["-n", "4"], id="xdist")]
)
def test_two_hundred_tests_of_one_port(tmp_path: Path, options: list[str]) -> None:
    """Two hundred tests that have all a server at port 8080 of the same address pass, one by one and by four workers."""
    (tmp_path / "conftest.py").write_text(textwrap.dedent(CONFTEST))
    (tmp_path / "test_ports.py").write_text(textwrap.dedent(SUITE))
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^200 passed in", done.stdout, re.MULTILINE), done.stdout
