"""Networks in an event loop that is running, and in the cells of a notebook, which run in one."""

from __future__ import annotations

import asyncio
import io
import textwrap
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import pytest

from isolib import new_netns
from isolib.net import changes, new_network, topology
from tests.nets import PATIENCE, listen, reaches
from tests.programs import in_notebook

if TYPE_CHECKING:
    from isolib.namespaces import NetNS

pytestmark = pytest.mark.usefixtures("user_namespaces")


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send what comes back, in the other order."""
    writer.write((await reader.readline())[::-1])
    writer.close()
    await writer.wait_closed()


async def ask(port: int, word: bytes) -> bytes:
    """Say a word at a port of the host's loopback, and return the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(word + b"\n")
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def one_network(number: int, packets: io.BytesIO | None = None) -> list[bytes]:
    """Make a network whose endpoint is served by this loop, reach it by a published port, and close all."""
    with ExitStack() as stack:
        ns: NetNS = stack.enter_context(closing(new_netns()))
        network = stack.enter_context(new_network("10.77.0.0/24", ipv6=True))
        with changes(network.ns) as told:
            endpoint = network.attach(ns, hostname="web")
            async with asyncio.timeout(PATIENCE):
                assert (await anext(told)).kind in {"added", "changed"}
        if packets is not None:
            stack.enter_context(endpoint.capture(packets))
        server = await asyncio.start_server(echo, sock=listen(ns, str(endpoint.address), 80))
        async with server:
            published = network.publish(0, endpoint, 80)
            words = [f"{number} {each}".encode() for each in range(5)]
            answers = await asyncio.gather(*(ask(published.port, word) for word in words))
            assert answers == [b"\n" + word[::-1] for word in words]
        return answers


def test_in_a_loop() -> None:
    """In one loop networks are made, served, published, captured and closed side by side."""
    packets = io.BytesIO()

    async def main() -> list[list[bytes]]:
        async with asyncio.timeout(2 * PATIENCE):
            return await asyncio.gather(*(one_network(number, packets if number == 0 else None) for number in range(8)))

    answers = asyncio.run(main(), debug=True)
    assert len({answer for some in answers for answer in some}) == 40
    assert [answer in packets.getvalue() for answer in answers[0]] == [True] * 5
    assert [answer in packets.getvalue() for answer in answers[1]] == [False] * 5


def test_in_threads_of_a_loop() -> None:
    """Topologies are made and closed in the threads of a loop, while its own thread has a network."""

    def lab() -> bool:
        with topology("a - br - b") as made:
            return reaches(made["a"], made["b"], made.hosts["b"][0])

    async def main() -> None:
        labs = [asyncio.create_task(asyncio.to_thread(lab)) for _ in range(6)]
        assert len(await one_network(9)) == 5
        assert await asyncio.gather(*labs) == [True] * 6

    asyncio.run(main())


CELLS = (
    """
        import asyncio, io, sys
        import isolib
        from isolib.net import topology

        web, client = isolib.new_netns(), isolib.new_netns()
        network = isolib.new_network("10.77.0.0/24", name="lab")
        endpoint = network.attach(web, hostname="web")
        network.attach(client, hostname="client").impair(loss="10%")
        packets = io.BytesIO()
        capture = endpoint.capture(packets)
        published = network.publish(0, endpoint, 80)
        network
    """,
    """
        assert asyncio.get_running_loop().is_running()
        program = "import socket; s = socket.create_server(('', 80)); print(flush=True); s.accept()[0].sendall(b'from the web')"
        with web.spawn([sys.executable, "-c", program], stdout=isolib.PIPE) as server:
            server.stdout.readline()
            reader, writer = await asyncio.open_connection("127.0.0.1", published.port)
            print((await reader.read()).decode())
            writer.close()
    """,
    """
        capture.close()
        print(b"from the web" in packets.getvalue())
        network.close(), web.close(), client.close()
        network
    """,
    """
        lab = topology("a - br0 - router - br1 - b")
        picture = lab.picture()
        lab.close()
        picture
    """,
)


def test_in_a_notebook() -> None:
    """In the cells of a notebook networks are made, drawn, reached, captured and closed; a closed one says that it is."""
    drawn, said, closed, lab = in_notebook(*map(textwrap.dedent, CELLS))
    html = drawn[0]["data"]["text/html"]
    assert "<svg" in html
    for text in ("web", "client", "10.77.0.2/24", "10.77.0.0/24", "loss"):
        assert text in html
    assert said[0]["text"] == "from the web\n"
    assert closed[0]["text"] == "True\n"
    assert "closed" in closed[1]["data"]["text/html"]
    assert "router" in lab[0]["data"]["text/html"]
