"""Networks: beside the bare system calls that do the same (floor_net.c), beside pyroute2, and beside ip(8).

Six questions, each answered with all contenders taking turns in one run:

- attach: a namespace, a cable from it to a bridge, its address, both ends up, the default route
- busy: the same beside two Python threads that compute
- make: a network, a lab of a hundred nodes, and a program that runs in a network and in none
- close: a network with one namespace, with ten, with a hundred, and a lab of a hundred nodes: how long until close() returns
- spaces: a thousand namespaces, made and dropped
- flow: what passes through a cable, and through a bridge, in a second

What a contender has made is taken down, and the kernel has ended doing so, before the next one's turn: that time is nobody's.
Goals are judged by minima.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

# Last: an installed isolib goes before the checkout, which has no compiled part.
sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from benchmarks import common
from benchmarks.common import Contender

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CLONE_NEWNET: Final = 0x40000000
CLONE_NEWNS: Final = 0x20000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
SUBNET, GATEWAY = "10.77.0.0/16", "10.77.0.1"
FLOOR, CARRYING = "floor: one C call", "floor: one C call, until it carries"
ISOLIB: Final = "isolib: new_netns(), network.attach()"
PLAIN: Final = "isolib: new_netns(), new_veth(), add(), add_route()"
PYROUTE2, IP = "pyroute2", "ip, seven times"
#: Of a hub: its loopback and its bridge.
BARE_LINKS: Final = 2
BUSY_THREADS: Final = 2
_libc: Final = ctypes.CDLL(None, use_errno=True)


class Way(Protocol):
    """One way to attach namespaces to a bridge."""

    def hub(self) -> int:
        """Return a descriptor of the namespace that the bridge is in."""

    def attach(self) -> None:
        """Make a namespace and attach it."""

    def drop(self) -> None:
        """Let go of all namespaces."""

    def close(self) -> None:
        """Let go of everything."""


def hide_run() -> None:
    """Have a /run of this process's own: ip(8) and pyroute2 mount things there, and leave them.

    Raises
    ------
    OSError
        It takes root.
    """
    failed: int = (
        _libc.unshare(CLONE_NEWNS)
        or _libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None)
        or _libc.mount(b"tmpfs", b"/run", b"tmpfs", 0, None)
    )
    if failed:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), "/run")


def count_links(net: int) -> int:
    """Return how many links a namespace has."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(net, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        try:
            return len(socket.if_nameindex())
        finally:
            if _libc.setns(home, CLONE_NEWNET):
                os._exit(1)
    finally:
        os.close(home)


def settle(net: int) -> None:
    """Wait until the kernel has taken down what was attached."""
    while count_links(net) > BARE_LINKS:
        time.sleep(0.001)


def attaching(way: Way) -> Callable[[], int]:
    """Return a function that attaches one namespace, and returns what that took alone."""

    def once() -> int:
        taken = common.taken(way.attach)
        way.drop()
        settle(way.hub())
        return taken

    return once


def beside_busy(once: Callable[[], object]) -> Callable[[], object]:
    """Return a function that does the same beside Python threads that compute."""

    def beside() -> object:
        with common.busy_threads(BUSY_THREADS):
            return once()

    return beside


# ---- the floor ----


class Floor:
    """The bare system calls."""

    def __init__(self, directory: str) -> None:
        self.library = common.compile_library("floor_net", directory)
        self._hub = self._checked(self.library.floor_hub())
        self._made = 0

    @staticmethod
    def _checked(result: int) -> int:
        if result < 0:
            raise OSError(-result, f"floor_net: {os.strerror(-result)}")
        return result

    def hub(self) -> int:
        """Return the bridge's namespace."""
        return self._hub

    def attach(self, *, carrying: bool = False) -> None:
        """Attach one more, and ask until it carries, or not."""
        self._checked(self.library.floor_attach(self._made, int(carrying)))
        self._made += 1

    def drop(self) -> None:
        """Close their descriptors."""
        self.library.floor_drop(self._made)
        self._made = 0

    def close(self) -> None:
        """Leave the bridge to the end of this process."""
        self.drop()

    def hubs(self) -> None:
        """Make one more bridge, in a namespace of its own, and let go of that."""
        self._checked(self.library.floor_another_hub())

    def spaces(self, count: int) -> None:
        """Make and drop so many namespaces."""
        self._checked(self.library.floor_spaces(count))

    def flow(self, source: int, target: int, address: str, seconds: float) -> float:
        """Return how many bytes a second pass from one namespace to an address of another."""
        rate = ctypes.c_double()
        self._checked(self.library.floor_flow(source, target, address.encode(), ctypes.c_double(seconds), ctypes.byref(rate)))
        return rate.value


class Carrying:
    """The same, until the cable carries."""

    def __init__(self, floor: Floor) -> None:
        self.hub, self.attach = floor.hub, partial(floor.attach, carrying=True)
        self.drop, self.close = floor.drop, floor.close


# ---- isolib ----


class Attached:
    """isolib, as a network."""

    def __init__(self) -> None:
        import isolib  # noqa: PLC0415 - whether it is there is the question
        from isolib.net import new_network  # noqa: PLC0415

        self._new_netns = isolib.new_netns
        self.network = new_network(SUBNET)
        self._made = contextlib.ExitStack()

    def hub(self) -> int:
        """Return the network's namespace."""
        return self.network.ns.fileno()

    def attach(self) -> None:
        """Attach one more."""
        ns = self._new_netns()
        self._made.callback(ns.close)
        self.network.attach(ns)

    def drop(self) -> None:
        """Close their handles."""
        self._made.close()

    def close(self) -> None:
        """Close the network, and then what is attached to it."""
        self.network.close()
        self.drop()


class Wired:
    """isolib, piece by piece."""

    def __init__(self) -> None:
        import isolib  # noqa: PLC0415
        from isolib.net import new_bridge, new_veth  # noqa: PLC0415

        self._new_netns, self._new_veth = isolib.new_netns, new_veth
        self._hub = isolib.new_netns()
        self._bridge = new_bridge("br0", ns=self._hub, addresses=[f"{GATEWAY}/16"])
        self._made = contextlib.ExitStack()
        self._numbers = itertools.count()

    def hub(self) -> int:
        """Return the bridge's namespace."""
        return self._hub.fileno()

    def attach(self) -> None:
        """Attach one more."""
        ns = self._new_netns()
        self._made.callback(ns.close)
        number = next(self._numbers)
        names, addresses = (f"port{number}", "eth0"), (None, f"10.77.{number // 250 % 250}.{number % 250 + 2}/16")
        cable = self._new_veth(self._hub, ns, names=names, addresses=addresses)
        self._made.callback(cable.close)
        self._bridge.add(cable.a)
        cable.b.add_route(gateway=GATEWAY)

    def drop(self) -> None:
        """Close their handles."""
        self._made.close()

    def close(self) -> None:
        """Close everything."""
        self.drop()
        self._hub.close()
        self._bridge.close()


# ---- others ----


class Pyroute2:
    """pyroute2, as its documentation uses it."""

    def __init__(self) -> None:
        from pyroute2 import NetNS, netns  # type: ignore[import-untyped]  # noqa: PLC0415 - only for this

        self._new, self._netns = NetNS, netns
        self._prefix = f"isolib-bench-{os.getpid()}"
        netns.create(f"{self._prefix}-hub")
        self._names: list[str] = []
        self._hub = NetNS(f"{self._prefix}-hub")
        self._hub.link("add", ifname="br0", kind="bridge")
        self._bridge = self._hub.link_lookup(ifname="br0")[0]
        self._hub.addr("add", index=self._bridge, address=GATEWAY, prefixlen=16)
        self._hub.link("set", index=self._bridge, state="up")
        self._fd = os.open(f"/run/netns/{self._prefix}-hub", os.O_RDONLY)

    def hub(self) -> int:
        """Return the bridge's namespace."""
        return self._fd

    def attach(self) -> None:
        """Attach one more."""
        number = len(self._names)
        name = f"{self._prefix}-{number}"
        self._names.append(name)
        self._netns.create(name)
        port = f"port{number}"
        self._hub.link("add", ifname=port, kind="veth", peer={"ifname": "eth0", "net_ns_fd": name})
        self._hub.link("set", index=self._hub.link_lookup(ifname=port)[0], master=self._bridge, state="up")
        with self._new(name) as inside:
            eth0 = inside.link_lookup(ifname="eth0")[0]
            inside.link("set", index=inside.link_lookup(ifname="lo")[0], state="up")
            inside.addr("add", index=eth0, address=f"10.77.0.{number + 2}", prefixlen=16)
            inside.link("set", index=eth0, state="up")
            inside.route("add", dst="default", gateway=GATEWAY)

    def drop(self) -> None:
        """Remove their names."""
        while self._names:
            self._netns.remove(self._names.pop())

    def close(self) -> None:
        """Remove everything."""
        self.drop()
        self._hub.close()
        os.close(self._fd)
        self._netns.remove(f"{self._prefix}-hub")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


class Ip:
    """ip(8), as a script uses it."""

    def __init__(self) -> None:
        self._prefix = f"isolib-bench-{os.getpid()}-ip"
        self._hub = f"{self._prefix}-hub"
        self.names: list[str] = []
        _ip("netns", "add", self._hub)
        _ip("-n", self._hub, "link", "add", "br0", "up", "type", "bridge")
        _ip("-n", self._hub, "addr", "add", f"{GATEWAY}/16", "dev", "br0")
        self._fd = os.open(f"/run/netns/{self._hub}", os.O_RDONLY)

    def hub(self) -> int:
        """Return the bridge's namespace."""
        return self._fd

    def attach(self) -> None:
        """Attach one more."""
        number = len(self.names)
        name, port = f"{self._prefix}-{number}", f"port{number}"
        self.names.append(name)
        _ip("netns", "add", name)
        _ip("-n", self._hub, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("-n", self._hub, "link", "set", port, "master", "br0", "up")
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", name, "addr", "add", f"10.77.0.{number + 2}/16", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")
        _ip("-n", name, "route", "add", "default", "via", GATEWAY)

    def drop(self) -> None:
        """Remove their names."""
        while self.names:
            _ip("netns", "del", self.names.pop())

    def close(self) -> None:
        """Remove everything."""
        self.drop()
        os.close(self._fd)
        _ip("netns", "del", self._hub)


@contextlib.contextmanager
def ways(floor: Floor) -> Iterator[tuple[dict[str, Way], dict[str, str]]]:
    """Give all that work here, and why the others do not."""
    makers: dict[str, Callable[[], Way]] = {FLOOR: lambda: floor, ISOLIB: Attached, PLAIN: Wired, IP: Ip}
    found: dict[str, Way] = {}
    absent: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        for name, make in makers.items():
            try:
                found[name] = way = make()
            except Exception as error:  # noqa: BLE001 - reported
                absent[name] = f"{type(error).__name__}: {error}"
            else:
                stack.callback(way.close)
        yield found, absent


# ---- the questions ----


def attach(floor: Floor, host: common.Host | None, *, busy: bool, quick: bool) -> dict[str, object]:
    """Measure how long it takes until a namespace is on a bridge."""
    with ways(floor) as (found, absent):
        wanted = [Contender(name, attaching(way)) for name, way in found.items()]
        wanted.append(Contender(CARRYING, attaching(Carrying(floor))))
        if busy:
            wanted = [Contender(one.name, beside_busy(one.once)) for one in wanted]
        if host is not None:
            wanted.append(host.contender("busy" if busy else "attach", PYROUTE2))
        working, refused = common.present(wanted)
        timings = common.interleave(working, 5 if quick else 40 if busy else 150)
    beside = f", beside {BUSY_THREADS} threads that compute" if busy else ""
    common.table(f"A namespace on a bridge, with address and default route{beside}", timings, FLOOR)
    goals: common.Goals = []
    if not busy:
        goals = [common.goal(timings, name, base, 1.5) for name in (ISOLIB, PLAIN) for base in (FLOOR, CARRYING)]
        goals += [common.goal(timings, name, other, 0.125) for name in (ISOLIB, PLAIN) for other in (PYROUTE2, IP)]
    return common.answer(timings, absent | refused, goals)


def _nodes(size: int) -> str:
    """Return the text of a topology with so many nodes on one bridge."""
    return ", ".join(f"n{number} - br0" for number in range(size))


def make(floor: Floor, *, quick: bool) -> dict[str, object]:
    """Measure what the making of whole networks takes, and what a program's being in one adds to its run."""
    import isolib  # noqa: PLC0415 - whether it is there is the question
    from isolib.net import new_network, topology  # noqa: PLC0415

    def then_closed(make: Callable[[], contextlib.AbstractContextManager[object]]) -> Callable[[], int]:
        def once() -> int:
            start = time.perf_counter_ns()
            made = make()
            taken = time.perf_counter_ns() - start
            with made:
                pass
            _quiet(floor)
            return taken

        return once

    program = ["/bin/true"]
    hub = "floor: one C call, a bridge in a namespace"
    with new_network(SUBNET) as network:
        wanted = [
            Contender(hub, floor.hubs),
            Contender("isolib: new_network()", then_closed(new_network)),
            Contender("isolib: topology() of 100 nodes", then_closed(lambda: topology(_nodes(100)))),
            Contender("isolib: run()", lambda: isolib.run(program)),
            Contender("isolib: run(network=)", lambda: isolib.run(program, network=network)),
        ]
        working, absent = common.present(wanted)
        timings = common.interleave(working, 3 if quick else 40)
    common.table("Networks made, and programs run in one", timings)
    return common.answer(timings, absent)


def _lab(size: int) -> Attached:
    """Return a network with so many namespaces attached."""
    made = Attached()
    for _ in range(size):
        made.attach()
    return made


def closing(size: int, floor: Floor) -> Callable[[], int]:
    """Return a function that makes a network of so many and returns how long each took to be closed: with its own handle."""

    def once() -> int:
        lab = _lab(size)
        taken = common.taken(lab.close)
        _quiet(floor)
        return taken

    return once


def closing_topology(size: int, floor: Floor) -> Callable[[], int]:
    """Return a function that makes a topology of so many nodes and returns how long it took to be closed."""
    from isolib.net import topology  # noqa: PLC0415

    def once() -> int:
        lab = topology(_nodes(size))
        taken = common.taken(lab.close)
        _quiet(floor)
        return taken

    return once


def _quiet(floor: Floor) -> None:
    """Wait until the kernel has taken down what was dropped before: it does so in its turn."""
    floor.attach()
    floor.drop()
    settle(floor.hub())


def close(floor: Floor, *, quick: bool) -> dict[str, object]:
    """Measure how long the end of a network keeps its user waiting."""
    sizes = (1, 10, 100)
    wanted = [Contender(f"isolib: network and {size} namespaces", closing(size, floor)) for size in sizes]
    bare = "floor: close(2) of {} descriptors"

    def dropping(size: int) -> Callable[[], int]:
        def once() -> int:
            for _ in range(size):
                floor.attach()
            taken = common.taken(floor.drop)
            settle(floor.hub())
            return taken

        return once

    lab = Contender("isolib: topology() of 100 nodes", closing_topology(100, floor))
    wanted += [Contender(bare.format(2 * size), dropping(size)) for size in sizes] + [lab]
    working, absent = common.present(wanted)
    timings = common.interleave(working, 3 if quick else 15)
    common.table("A network closed, and its namespaces", timings)
    goals: common.Goals = [
        common.goal_within(timings, one.name, 0.1 * size)
        for one, size in zip(wanted, sizes, strict=False)  # of isolib's
    ]
    goals += [common.goal_within(timings, one.name, 50) for one in (wanted[2], lab)]
    return common.answer(timings, absent, goals)


def spaces(floor: Floor, *, quick: bool) -> dict[str, object]:
    """Measure the rate at which namespaces are made and dropped."""
    import isolib  # noqa: PLC0415 - whether it is there is the question

    count = 100 if quick else 1000

    def ours() -> None:
        for _ in range(count):
            isolib.new_netns().close()

    def then_quiet(once: Callable[[], None]) -> Callable[[], int]:
        def both() -> int:
            taken = common.taken(once)
            _quiet(floor)
            return taken

        return both

    name = "isolib: new_netns().close()"
    wanted = [Contender(FLOOR, then_quiet(lambda: floor.spaces(count))), Contender(name, then_quiet(ours))]
    working, absent = common.present(wanted)
    timings = common.interleave(working, 2 if quick else 10)
    common.table(f"{count} namespaces, made and dropped", timings, FLOOR)
    return common.answer(timings, absent, [common.goal(timings, name, FLOOR, 1 / 0.9)])


def flow(floor: Floor, *, quick: bool) -> dict[str, object]:
    """Measure what passes through, as TCP, beside what passes through that which ip(8) has made."""
    import isolib  # noqa: PLC0415
    from isolib.net import new_veth  # noqa: PLC0415

    seconds = 0.2 if quick else 1.0
    rounds = 2 if quick else 12
    with contextlib.ExitStack() as stack:
        a, b, c, d = (stack.enter_context(contextlib.closing(isolib.new_netns())) for _ in range(4))
        stack.enter_context(contextlib.closing(new_veth(a, b, addresses=("10.78.0.1/24", "10.78.0.2/24"))))
        lab = Attached()
        stack.callback(lab.close)
        there = lab.network.attach(d)
        lab.network.attach(c)
        made = Ip()
        stack.callback(made.close)
        made.attach()
        made.attach()
        x, y = (stack.enter_context(open(f"/run/netns/{name}", "rb")) for name in made.names)
        _ip("-n", made.names[0], "link", "add", "veth0", "type", "veth", "peer", "name", "veth1", "netns", made.names[1])
        for name, link, address in ((made.names[0], "veth0", "10.78.0.1/24"), (made.names[1], "veth1", "10.78.0.2/24")):
            _ip("-n", name, "addr", "add", address, "dev", link)
            _ip("-n", name, "link", "set", link, "up")
        paths = {
            "cable: isolib": (a.fileno(), b.fileno(), "10.78.0.2"),
            "cable: ip": (x.fileno(), y.fileno(), "10.78.0.2"),
            "bridge: isolib": (c.fileno(), d.fileno(), str(there.address)),
            "bridge: ip": (x.fileno(), y.fileno(), "10.77.0.3"),
        }

        def sending(source: int, target: int, address: str) -> Callable[[], int]:
            return lambda: round(2**30 * 1e9 / floor.flow(source, target, address, seconds))

        working, absent = common.present([Contender(name, sending(*path)) for name, path in paths.items()])
        timings = common.interleave(working, rounds)
    common.table("A GiB through it", timings)
    goals = [common.goal(timings, f"{what}: isolib", f"{what}: ip", 1.03) for what in ("cable", "bridge")]
    return common.answer(timings, absent, goals)


QUESTIONS: Final = ("attach", "busy", "make", "close", "spaces", "flow")


def serve() -> None:
    """Be the process in which pyroute2 is."""
    way = Pyroute2()
    with contextlib.closing(way):
        once = attaching(way)
        common.serve([Contender("attach", once), Contender("busy", beside_busy(once))], 0)


def peer(interpreter: str) -> common.Host | None:
    """Return that process, or None where there is no pyroute2."""
    try:
        return common.Host(interpreter, os.path.abspath(__file__), "--serve")
    except (OSError, RuntimeError):
        return None


def main() -> None:
    """Measure and report."""
    parser = common.arguments(__doc__)
    parser.add_argument("--peers", metavar="PYTHON", default=sys.executable, help="one that has pyroute2")
    parser.add_argument("--serve", action="store_true", help="be the process in which that runs")
    options = common.parse(parser, QUESTIONS)
    if options.serve:
        serve()
        return
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="isolib-bench-"))
        try:
            hide_run()
            floor = Floor(directory)
        except OSError as error:
            sys.exit(f"bench_net: {error}: making a network namespace needs root")
        host = peer(options.peers)
        if host is None:
            print("without pyroute2 (--peers) there is less to compare with")
        else:
            stack.callback(host.close)
        answers: dict[str, Callable[[], dict[str, object]]] = {
            "attach": lambda: attach(floor, host, busy=False, quick=options.quick),
            "busy": lambda: attach(floor, host, busy=True, quick=options.quick),
            "make": lambda: make(floor, quick=options.quick),
            "close": lambda: close(floor, quick=options.quick),
            "spaces": lambda: spaces(floor, quick=options.quick),
            "flow": lambda: flow(floor, quick=options.quick),
        }
        common.write_json(options.json, common.ask(options.questions, answers))


if __name__ == "__main__":
    main()
