"""A way out for who has no right over the host's namespace: by pasta and by slirp4netns.

The program that makes the network has no capability, and the namespace that it is in belongs to somebody else: a small host of
the test's, with a server behind it.
"""

from __future__ import annotations

import gc
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import warnings
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib import process as processes
from isolib.net import chosen, links, new_network, translators, way_out
from isolib.net.hosts import nameservers
from tests.interrupts import interrupt
from tests.nets import PATIENCE, family_of, listen, socket_in, until
from tests.rights import having
from tests.wires import address
from tests.worlds import HERE, HERE6, ORDINARY, OTHER, SERVER, SERVER6, heard, say, world

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from isolib.types import HasFileno
    from tests.worlds import World

pytestmark = pytest.mark.usefixtures("user_namespaces")

PORT = 8080
NODE = "chmod 0666 /dev/net/tun lets everybody, which is what udev does; root tests what an ordinary user gets with it"
NETWORK = """
ns = isolib.new_netns()
network = new_network("10.77.0.0/24", ipv6="fd77::/64", internet={internet!r})
endpoint = network.attach(ns)
"""


@pytest.fixture
def place() -> Iterator[World]:
    """Return the small world."""
    with world() as made:
        yield made


@pytest.fixture(params=["pasta", "slirp4netns"])
def kind(request: pytest.FixtureRequest) -> str:
    """Return the name of a program that this host has."""
    name: str = request.param
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        pytest.skip(f"this user may not open /dev/net/tun: {NODE}")
    return name


@contextmanager
def serving(*places: tuple[HasFileno, str]) -> Iterator[None]:
    """Serve at these addresses: who connects is told his own, and so is who sends a datagram."""
    with ExitStack() as stack:
        for ns, one in places:
            server = stack.enter_context(listen(ns, one, PORT))
            datagrams = stack.enter_context(socket_in(ns, socket.SOCK_DGRAM, family_of(one)))
            datagrams.bind((one, PORT))
            for each, serve in ((server, answer), (datagrams, answer_datagrams)):
                each.settimeout(None)
                thread = threading.Thread(target=serve, args=(each,))
                thread.start()
                stack.callback(thread.join)
            stack.callback(server.shutdown, socket.SHUT_RDWR)
            stack.callback(stop, datagrams)
        yield


def answer(server: socket.socket) -> None:
    """Tell everybody who connects his address."""
    while True:
        try:
            client, peer = server.accept()
        except OSError:
            return
        with client:
            client.sendall(peer[0].encode())


def answer_datagrams(server: socket.socket) -> None:
    """Tell everybody who sends something his address, until something empty comes."""
    while True:
        data, peer = server.recvfrom(1500)
        if not data:
            return
        server.sendto(peer[0].encode(), peer)


def stop(server: socket.socket) -> None:
    """Send something empty."""
    server.sendto(b"", server.getsockname())


def program(internet: object, body: str) -> str:
    """Return a program that makes a network and does something."""
    ending = "\nnetwork.close(), ns.close()\n"
    lines = [line for line in body.splitlines() if line.strip()]
    indent = len(lines[0]) - len(lines[0].lstrip()) if lines else 0
    return NETWORK.format(internet=internet) + "\n".join(line[indent:] for line in lines) + ending


def test_reaches(place: World, kind: str) -> None:
    """TCP and UDP of IPv4 and IPv6 get where the host's get, with the host's address; the host's namespace is as it was."""
    before = [link.name for link in links(place.host)]
    body = f"""
    tell(network.way_out.kind, network.way_out.lost, network.internet)
    tell(get(ns, "{SERVER}", {PORT}), get(ns, "{SERVER6}", {PORT}), get(ns, "{OTHER}", {PORT}))
    for server in ("{SERVER}", "{SERVER6}"):
        with socket_in(ns, socket.SOCK_DGRAM, family_of(server)) as client:
            client.sendto(b"?", (server, {PORT}))
            tell(client.recv(100).decode())
    tell(sorted(link.name for link in links()), Sysctls()["net.ipv4.ip_forward"])
    """
    servers = [(place.server, one) for one in (SERVER, SERVER6, OTHER)]
    with serving(*servers), place.program(program(kind, body)) as process:
        assert heard(process) == f"{kind} None True"
        assert heard(process).split() == [HERE, HERE6, HERE]
        assert [heard(process) for _ in range(2)] == [HERE, HERE6]
        assert heard(process) == f"{sorted(before)} 0"
        assert process.wait(PATIENCE).code == 0


def test_loopback_of_the_host(place: World, kind: str) -> None:
    """Servers on the host's loopback are not reached: not by any address at the tap, though that is allowed."""
    body = f"""
    found = set()
    for one in addresses(network.ns):
        if one.index == links(network.ns)[1].index and not one.interface.is_link_local:
            network.allow(one.interface.network)
            found.update(str(one.interface.network[number]) for number in (1, 2, 3))
    found -= {{str(one.interface.ip) for one in addresses(network.ns)}}
    tell(len(found) >= 3, "127.0.0.1" in get(ns, "{SERVER}", {PORT}))
    tell({{get(ns, one, {PORT}, SOON) for one in [*sorted(found), "127.0.0.1", "::1"]}} <= {{
        "ConnectionRefusedError", "TimeoutError", "OSError", "PermissionError"}})
    tell(get(ns, "{HERE}", {PORT}))
    """
    servers = [(place.host, one) for one in ("127.0.0.1", "::1", HERE)]
    with serving(*servers, (place.server, SERVER)), place.program(program(kind, body)) as process:
        assert heard(process) == "True False"
        assert heard(process) == "True"
        assert heard(process) in {HERE, SERVER}
        assert process.wait(PATIENCE).code == 0


def test_nobody_comes_in(place: World, kind: str) -> None:
    """What listens in the network, at the gateway too, is reached at no address of the host's, and no port there is taken."""
    body = f"""
    servers = [listen(ns, "0.0.0.0", {PORT}), listen(network.ns, "0.0.0.0", {PORT}), listen(network.ns, "::1", {PORT})]
    tell()
    hear()
    [server.close() for server in servers]
    """
    with place.program(program(kind, body)) as process:
        assert heard(process) == ""
        for one in ("127.0.0.1", HERE, "::1", HERE6):
            with socket_in(place.host, family=family_of(one)) as client, pytest.raises(ConnectionRefusedError):
                client.connect((one, PORT))
        with socket_in(place.server) as client, pytest.raises(ConnectionRefusedError):
            client.connect((HERE, PORT))
        say(process)
        assert process.wait(PATIENCE).code == 0


def test_isolate(place: World, kind: str) -> None:
    """Who may not reach the others of his network reaches elsewhere, and the others by no detour: gateway, or the way out."""
    body = f"""
    with new_network("10.78.0.0/24", ipv6="fd78::/64", internet={kind!r}, isolate=True) as apart:
        spaces = [isolib.new_netns(), isolib.new_netns()]
        one, two = map(apart.attach, spaces)
        tell(*(get(space, to, {PORT}) for space in spaces for to in ("{SERVER}", "{SERVER6}")))
        for gateway, own, to in ((apart.gateway, one.address, two.address), (apart.gateway6, one.ipv6, two.ipv6)):
            tell(reaches(*spaces, to, patience=SOON))
            route(spaces[0], f"{{to}}/{{to.max_prefixlen}}", str(gateway))
            route(spaces[1], f"{{own}}/{{to.max_prefixlen}}", str(gateway))
            tell(reaches(*spaces, to, patience=SOON))
        [each.close() for each in spaces]
    """
    with serving((place.server, SERVER), (place.server, SERVER6)), place.program(program(internet=False, body=body)) as process:
        assert heard(process).split() == [HERE, HERE6] * 2
        assert [heard(process) for _ in range(4)] == ["False"] * 4
        assert process.wait(PATIENCE).code == 0


def test_egress(place: World, kind: str) -> None:
    """What may be reached is changed live, as with a cable."""
    body = f"""
    def look():
        tell(*(get(ns, one, {PORT}, SOON if one in denied else PATIENCE) for one in ("{SERVER}", "{OTHER}", "{SERVER6}")))
    denied = {{"{SERVER}", "{SERVER6}"}}
    network.deny(*denied)
    look()
    denied = {{"{OTHER}", "{SERVER6}"}}
    network.deny("all")
    network.allow("{SERVER}")
    look()
    """
    servers = [(place.server, one) for one in (SERVER, SERVER6, OTHER)]
    with serving(*servers), place.program(program(kind, body)) as process:
        first, second = heard(process).split(), heard(process).split()
        assert [one in {HERE, HERE6} for one in first] == [False, True, False]
        assert [one in {HERE, HERE6} for one in second] == [True, False, False]
        assert process.wait(PATIENCE).code == 0


def test_ended_by_somebody(place: World, kind: str) -> None:
    """When the program has ended, the network says so, and nobody is attached to it as if it led anywhere."""
    body = """
    tell(network.way_out.pid)
    hear()
    tell(network.way_out.lost)
    other = isolib.new_netns()
    for call in (lambda: network.attach(other), lambda: network.allow("192.0.2.1")):
        try:
            call()
        except isolib.GoneError as error:
            tell(error)
    other.close()
    """
    with place.program(program(kind, body)) as process:
        pidfd = os.pidfd_open(int(heard(process)))
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        has_ended(pidfd)
        say(process)
        assert heard(process) == f"{kind} has ended (signal 9)"
        assert "make a new network" in heard(process)
        assert heard(process).startswith(f"{kind}: the way out")
        assert process.wait(PATIENCE).code == 0


def test_what_comes_after_its_end(place: World, kind: str) -> None:
    """When the program has ended, connections to elsewhere are refused at once, not lost; the network itself goes on."""
    body = f"""
    other = isolib.new_netns()
    near = network.attach(other)
    tell(network.way_out.pid, *(get(ns, one, {PORT}) for one in ("{SERVER}", "{SERVER6}")))
    hear()
    for one in ("{SERVER}", "{SERVER6}"):
        with socket_in(ns, family=family_of(one)) as client:
            tell(errno.errorcode[client.connect_ex((one, {PORT}))])
    with listen(other, near.address, {PORT}) as server, network.publish(0, near, {PORT}) as published:
        for here, one, port in ((ns, str(near.address), {PORT}), (None, "127.0.0.1", published.port)):
            with dial(here, one, port), server.accept()[0]:
                tell("reached")
    other.close()
    """
    with serving((place.server, SERVER), (place.server, SERVER6)), place.program(program(kind, body)) as process:
        pid, *before = heard(process).split()
        assert before == [HERE, HERE6]
        translator = os.pidfd_open(int(pid))
        signal.pidfd_send_signal(translator, signal.SIGTERM)
        has_ended(translator)
        say(process)
        assert [heard(process) for _ in range(2)] == ["ENETUNREACH", "ENETUNREACH"]
        assert [heard(process) for _ in range(2)] == ["reached", "reached"]
        assert process.wait(PATIENCE).code == 0


def has_ended(pidfd: int) -> None:
    """Fail unless a process ends, and close its descriptor."""
    try:
        assert select.select([pidfd], [], [], PATIENCE)[0]
    finally:
        os.close(pidfd)


@pytest.mark.parametrize("killed", [False, True])
def test_ends_with_the_network(place: World, kind: str, *, killed: bool) -> None:
    """Of a network that is closed, and of a program that is killed, no process is left."""
    body = """
    tell(network.way_out.pid)
    hear()
    network.close()
    tell(network.way_out.lost)
    hear()
    """
    with place.program(program(kind, body)) as process:
        translator = os.pidfd_open(int(heard(process)))
        if killed:
            os.kill(process.pid, signal.SIGKILL)
        else:
            say(process)
            assert heard(process) == "None"
        has_ended(translator)
        if not killed:
            say(process)
            assert process.wait(PATIENCE).code == 0


@pytest.mark.root
@pytest.mark.parametrize("moment", range(6))
def test_killed_at_work(place: World, kind: str, moment: int) -> None:
    """Whenever a program is killed while it makes and closes such networks, nothing of it is left that runs."""
    body = f"""
    while True:
        ns = isolib.new_netns()
        with new_network("10.77.0.0/24", internet={kind!r}) as network:
            network.attach(ns)
            tell()
        ns.close()
    """
    number = random.Random(moment)  # noqa: S311 - the same moments each time
    with place.popen(body) as process:
        assert process.stdout is not None
        for _ in range(number.randint(1, 2)):
            assert process.stdout.readline() == b"\n"
        threading.Event().wait(number.random() * 0.1)
        process.kill()
    assert until(lambda: not place.inhabitants())


@pytest.mark.root
def test_interrupt_at_every_point(place: World, kind: str, lost: list[type[BaseException]]) -> None:
    """Wherever an interrupt comes while the program is started, and ended, no process, descriptor or subnet is left."""

    def action() -> None:
        new_network("10.77.0.0/24", ipv6="fd77::/64", internet=kind).close()

    def left() -> tuple[object, ...]:
        gc.collect()
        return set(os.listdir("/proc/self/fd")), [*chosen._taken.subnets.values()], place.inhabitants()

    ours = {module.__file__ for module in (way_out, translators, processes)}
    with place.host.entered(), warnings.catch_warnings(), ExitStack() as stack:
        warnings.simplefilter("ignore", ResourceWarning)
        action()
        gc.collect()
        gc.freeze()  # so that hundreds of collections look only at what the action made
        stack.callback(gc.unfreeze)
        before = left()
        turn = 1
        while not interrupt(turn, action, lambda code: code.co_filename in ours):
            assert until(lambda: left() == before), turn
            turn += 1
    assert turn > 40
    assert set(lost) <= {KeyboardInterrupt}


@pytest.mark.root
def test_ordinary_user(place: World, kind: str) -> None:
    """An ordinary user, who is in no user namespace of anybody's, gets a way out where he may open /dev/net/tun."""
    reading = [sys.executable, "-I", "-c", f"open({isolib.__file__!r}).close()"]
    needed = reading, ["unshare", "--user", "true"]
    if any(subprocess.run([*ORDINARY, *argv], check=False, capture_output=True).returncode for argv in needed):
        pytest.skip("an ordinary user cannot run this Python here or read its packages, or may make no user namespace")
    body = f"""
    tell(os.geteuid(), network.way_out.kind, get(ns, "{SERVER}", {PORT}), get(ns, "{SERVER6}", {PORT}))
    """
    with serving((place.server, SERVER), (place.server, SERVER6)), place.popen(program(kind, body), ORDINARY) as process:
        assert process.communicate(timeout=PATIENCE)[0].decode() == f"65534 {kind} {HERE} {HERE6}\n"
        assert process.returncode == 0


def test_sandbox(place: World, kind: str) -> None:
    """A sandbox in such a network gets out, and finds the others in it by name."""
    body = f"""
    code = "import socket, sys; print(socket.create_connection((sys.argv[1], {PORT}), {PATIENCE}).recv(100).decode())"
    name = "import socket; print(socket.gethostbyname('web'))"
    with isolib.Sandbox(network=network, hostname="web"), isolib.Sandbox(network=network) as box:
        tell(box.run([sys.executable, "-c", code, "{SERVER}"], check=True).stdout.decode().strip())
        tell(box.run([sys.executable, "-c", name], check=True).stdout.decode().strip())
    """
    with serving((place.server, SERVER)), place.program(program(kind, body)) as process:
        assert heard(process) == HERE
        assert heard(process).startswith("10.77.0.")
        assert process.wait(PATIENCE).code == 0


def test_names_of_elsewhere(place: World, kind: str) -> None:
    """Names that are none of the network's are asked of the host's resolver."""
    with open("/etc/resolv.conf", encoding="utf-8") as file:
        resolver = next(iter(nameservers(file.read())), "127.0.0.1")
    ns = place.host if resolver.startswith("127.") else place.server
    if ns is place.server:
        address(ns, "lo", f"{resolver}/{32 if family_of(resolver) == socket.AF_INET else 128}")
    question = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04some\x07invalid\x00\x00\x01\x00\x01"
    body = f"""
    with socket_in(ns, socket.SOCK_DGRAM) as client:
        client.sendto({question!r}, (str(network.gateway), 53))
        tell(client.recv(512)[-4:])
    """
    with socket_in(ns, socket.SOCK_DGRAM, family_of(resolver)) as server:
        server.bind((resolver, 53))
        with place.program(program(kind, body)) as process:
            asked, peer = server.recvfrom(512)
            reply = asked[:2] + b"\x81\x80\x00\x01\x00\x01\x00\x00\x00\x00" + question[12:]
            server.sendto(reply + b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\xc0\x00\x02\x07", peer)
            assert heard(process) == str(b"\xc0\x00\x02\x07")
            assert process.wait(PATIENCE).code == 0


def test_chosen_by_itself(place: World, kind: str) -> None:
    """Who has no right to a cable gets the first program that there is, and by name no other."""
    first = "pasta" if shutil.which("pasta") else kind
    with place.program(program(internet=True, body="tell(network.way_out.kind)")) as process:
        assert heard(process) == first
        assert process.wait(PATIENCE).code == 0


def test_nothing_installed() -> None:
    """Where neither program is found, the error names the right, and both with their packages; nothing is made."""
    if any(shutil.which(name, path="/usr/local/sbin:/usr/sbin:/sbin") for name in ("pasta", "slirp4netns")):
        pytest.skip("where administrators have their programs, this host has one of the two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "/nonexistent")
        with having("rootless"), pytest.raises(isolib.PermissionDenied) as caught:
            new_network(internet=True)
        for word in ("CAP_NET_ADMIN", "pasta", "apt-get install passt", "apt-get install slirp4netns"):
            assert word in str(caught.value)
        with having("rootless"), pytest.raises(isolib.PermissionDenied, match="CAP_NET_ADMIN"):
            new_network(internet="veth")
        for name, package in (("pasta", "passt"), ("slirp4netns", "slirp4netns")):
            with pytest.raises(isolib.Unsupported, match=f"missing tool {name} -- apt-get install {package}"):
                new_network(internet=name)


def test_subnet_of_the_program() -> None:
    """A network that has what slirp4netns has for itself is refused before anything is made."""
    if shutil.which("slirp4netns") is None or not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        pytest.skip(f"slirp4netns is not installed, or this user may not open /dev/net/tun: {NODE}")
    with pytest.raises(isolib.PlanError, match="fd00::/64 for itself"):
        new_network(ipv6="fd00::/64", internet="slirp4netns")


def test_no_such_way() -> None:
    """Another word is no way out."""
    with pytest.raises(isolib.PlanError, match="'slirp4netns'"):
        new_network(internet="vpn")


def test_what_it_says(tmp_path: Path, kind: str) -> None:
    """A program that ends before it is ready is told of with what it said."""
    fake = tmp_path / kind
    fake.write_text("#!/bin/sh\necho no way >&2\nexit 3\n", encoding="ascii")
    fake.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        with pytest.raises(isolib.Unsupported, match=rf"{kind} has ended \(status 3\): no way"):
            new_network(internet=kind)
