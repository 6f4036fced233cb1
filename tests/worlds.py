"""A small world for programs that have no right over their network: a host, a server behind it, and the program in the host."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from isolib import PIPE
from isolib.net import new_veth
from isolib.net.sysctl import Sysctls
from tests.wires import Lab, address, route

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from isolib import Process
    from isolib.namespaces import NetNS

HERE, HERE6 = "198.51.100.1", "2001:db8::1"
SERVER, SERVER6 = "198.51.100.2", "2001:db8::2"
OTHER = "203.0.113.9"

NOBODY = ("unshare", "--user", "--map-user=1000", "--map-group=1000")
"""Runs a program without any capability, and in a network namespace that is of a user namespace above."""

WITH_TUN = "mount -t tmpfs -o mode=755 tmpfs /dev/net && mknod -m 666 /dev/net/tun c 10 200"
ORDINARY = (
    *("unshare", "--mount", "sh", "-ec"),
    f'{WITH_TUN}\nexec setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all "$@"',
    "sh",
)
"""Run by root, runs a program as an ordinary user, who may open /dev/net/tun, which he often may not."""

PRELUDE = '''
import errno, os, socket, sys
import isolib
from isolib.net import addresses, links, new_network, routes
from isolib.net.sysctl import Sysctls
from tests.nets import PATIENCE, SOON, dial, family_of, listen, reaches, socket_in
from tests.wires import route
from tests.worlds import HERE, HERE6, OTHER, SERVER, SERVER6

def get(ns, server, port, patience=PATIENCE):
    """Return what a server says, or the name of the error."""
    with socket_in(ns, family=family_of(server)) as client:
        client.settimeout(patience)
        try:
            client.connect((server, port))
            return client.recv(100).decode()
        except OSError as error:
            return type(error).__name__

def tell(*words):
    print(*words, flush=True)

def hear():
    return sys.stdin.readline().strip()
'''


class World(NamedTuple):
    """A host, and a server to which its default routes lead."""

    host: NetNS
    server: NetNS

    @contextmanager
    def program(self, body: str) -> Iterator[Process]:
        """Run a program in the host, as somebody who has no right there."""
        with self.host.spawn(argv_of(body), env=environment(), stdin=PIPE, stdout=PIPE) as process:
            yield process

    def popen(self, body: str, prefix: Sequence[str] = NOBODY) -> subprocess.Popen[bytes]:
        """Run a program in the host, where nobody ends what it leaves behind; for root."""
        pipe = subprocess.PIPE
        return self.host.run(subprocess.Popen, argv_of(body, prefix), env=environment(), stdin=pipe, stdout=pipe)

    def inhabitants(self) -> set[int]:
        """Return the processes that are in the host; for root."""
        found = set()
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with suppress(FileNotFoundError, ProcessLookupError, PermissionError):  # gone by now; above this root
                if os.stat(f"/proc/{pid}/ns/net").st_ino == self.host.id:
                    found.add(int(pid))
        return found


def argv_of(body: str, prefix: Sequence[str] = NOBODY) -> list[str]:
    """Return what runs a program in Python."""
    return [*prefix, sys.executable, "-c", PRELUDE + textwrap.dedent(body)]


def environment() -> dict[str, str]:
    """Return what lets a program find what this one has."""
    # The checkout last: it has an isolib too, without what is compiled.
    path = os.pathsep.join([*(one or os.getcwd() for one in sys.path), str(Path(__file__).parents[1])])
    return {"PATH": os.environ["PATH"], "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def heard(process: Process) -> str:
    """Return the next line that a program tells."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "the program has failed"
    return line.decode().strip()


def say(process: Process, word: str = "") -> None:
    """Let a program go on."""
    assert process.stdin is not None
    process.stdin.write(f"{word}\n".encode())
    process.stdin.flush()


@contextmanager
def world() -> Iterator[World]:
    """Make a host with a way to somewhere else, by IPv4 and IPv6."""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab())
        host, server = lab.namespace(), lab.namespace()
        addresses = f"{HERE}/24", f"{SERVER}/24"
        stack.enter_context(new_veth(host, server, names=("wan", "eth0"), addresses=addresses))
        address(host, "wan", f"{HERE6}/64")
        address(server, "eth0", f"{SERVER6}/64")
        address(server, "lo", f"{OTHER}/32")
        route(host, "0.0.0.0/0", SERVER)
        route(host, "::/0", SERVER6)
        Sysctls(host)["net.ipv4.ping_group_range"] = (0, 2**31 - 1)
        yield World(host, server)
