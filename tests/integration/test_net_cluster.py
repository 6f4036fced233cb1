"""A cluster of a real store, etcd, in a network that is parted and healed: it loses its quorum, and has it again."""

from __future__ import annotations

import json
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import pytest

from isolib import DEVNULL, PIPE, new_netns
from isolib.net import new_network
from tests.nets import PATIENCE, until
from tests.programs import need, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from isolib.namespaces import NetNS
    from isolib.net import Endpoint, Network

pytestmark = pytest.mark.usefixtures("user_namespaces")

SIZE = 5


class Member:
    """One of a cluster, asked from its own namespace."""

    def __init__(self, ns: NetNS, endpoint: Endpoint) -> None:
        self.ns = ns
        self.endpoint = endpoint
        self.name = str(endpoint.hostname)

    def url(self, port: int) -> str:
        """Return where one of its ports is."""
        return f"http://{self.endpoint.address}:{port}"

    def serve_argv(self, cluster: list[Member], data: Path) -> list[str]:
        """Return the command that runs it."""
        options = {
            "name": self.name,
            "data-dir": str(data / self.name),
            "listen-peer-urls": self.url(2380),
            "initial-advertise-peer-urls": self.url(2380),
            "listen-client-urls": self.url(2379),
            "advertise-client-urls": self.url(2379),
            "initial-cluster": ",".join(f"{one.name}={one.url(2380)}" for one in cluster),
            "initial-cluster-state": "new",
        }
        return ["etcd", *(f"--{name}={value}" for name, value in options.items())]

    def ask(self, *words: str, seconds: int = PATIENCE) -> tuple[int | None, str]:
        """Ask it by etcdctl, and return the exit status and what that prints."""
        argv = ["etcdctl", f"--endpoints={self.url(2379)}", f"--command-timeout={seconds}s", *words]
        with self.ns.spawn(argv, stdin=DEVNULL, stdout=PIPE, stderr=PIPE) as process:
            out, errors = process.communicate(timeout=2 * PATIENCE)
            return process.wait(PATIENCE).code, (out or b"").decode() + (errors or b"").decode()

    def status(self) -> dict[str, Any]:
        """Return what it knows by itself: who it is, who leads, in which term; nothing, when it does not answer."""
        code, said = self.ask("endpoint", "status", "-w", "json", seconds=1)
        if code != 0:
            return {}
        found: dict[str, Any] = json.loads(said)[0]["Status"]
        return found

    def leader(self) -> int:
        """Return whom it takes for the leader; 0: nobody."""
        return int(self.status().get("leader", 0))

    def id(self) -> int:
        """Return its own number."""
        return int(self.status()["header"]["member_id"])

    def refuses(self, *words: str) -> bool:
        """Return whether it has no answer, for want of others who agree."""
        code, said = self.ask(*words, seconds=1)
        assert code == 0 or "context deadline exceeded" in said or "etcdserver:" in said, said
        return code != 0

    def agreed(self, *words: str) -> str:
        """Return its answer once the majority agrees: who asks while it has a new leader elected, is told to ask again."""
        said: list[str] = []

        def is_answered() -> bool:
            code, words_of_it = self.ask(*words)
            said.append(words_of_it)
            return code == 0

        assert until(is_answered), said
        return said[-1].strip()

    def get(self, key: str, *options: str) -> str:
        """Read a value; none is empty."""
        return self.agreed("get", "--print-value-only", *options, key)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[Network, list[Member]]]:
    """Return a network, and in it a cluster that has a leader."""
    need("etcd", "etcdctl")
    with ExitStack() as stack:
        network = stack.enter_context(new_network("10.77.0.0/24"))
        spaces = [stack.enter_context(closing(new_netns())) for _ in range(SIZE)]
        members = [Member(ns, network.attach(ns, hostname=f"etcd{number}")) for number, ns in enumerate(spaces)]
        for one in members:
            argv = one.serve_argv(members, tmp_path)
            stack.enter_context(serving(one.ns, argv, lambda: True, tmp_path / f"{one.name}.log"))
        assert until(lambda: agree(members))
        yield network, members


def agree(members: list[Member]) -> bool:
    """Return whether all have the same leader."""
    leaders = {one.leader() for one in members}
    return len(leaders) == 1 and 0 not in leaders


def leader_and_others(members: list[Member]) -> tuple[Member, list[Member]]:
    """Return who leads, once all agree, and who does not."""
    assert until(lambda: agree(members))
    number = members[0].leader()
    return next(one for one in members if one.id() == number), [one for one in members if one.id() != number]


@pytest.mark.parametrize("led", ["few", pytest.param("many", marks=pytest.mark.slow)])
def test_quorum(cluster: tuple[Network, list[Member]], led: str) -> None:
    """Parted, a side of two refuses to write, also when it has the leader, and three go on; healed, all have the same data."""
    network, members = cluster
    leader, others = leader_and_others(members)
    few, many = ([leader, others[0]], others[1:]) if led == "few" else (others[:2], [leader, *others[2:]])
    assert few[0].agreed("put", "before", "all") == "OK"
    assert [one.get("before") for one in members] == ["all"] * SIZE

    network.partition([one.endpoint for one in few], [one.endpoint for one in many])
    assert until(lambda: [one.leader() for one in few] == [0, 0])
    assert many[0].agreed("put", "during", "many") == "OK"
    assert [one.get("during") for one in many] == ["many"] * 3
    assert leader_and_others(many)[0] in many
    assert few[0].refuses("get", "before")
    for one in few:
        assert one.refuses("put", "lost", "few")
        # What it has by itself, without asking the others.
        assert [one.get(key, "--consistency=s") for key in ("before", "during")] == ["all", ""]

    network.heal()
    assert until(lambda: agree(members))
    for key, value in {"before": "all", "during": "many", "lost": ""}.items():
        assert [one.get(key) for one in members] == [value] * SIZE
    assert few[0].agreed("put", "after", "all") == "OK"
    assert [one.get("after") for one in members] == ["all"] * SIZE
