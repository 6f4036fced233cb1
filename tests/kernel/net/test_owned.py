"""Links that isolib makes: their numbers, what is removed when the kernel refuses, settings written on the way."""

from __future__ import annotations

import errno
import os
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

import isolib
from isolib import SyscallError
from isolib._kernel.handle import Rollback
from isolib.net import links, new_bridge, new_veth, owned, requests
from isolib.net.where import Where

if TYPE_CHECKING:
    from isolib._kernel.netlink.socket import Request
    from isolib.namespaces import NetNS
    from isolib.net import Interface

pytestmark = pytest.mark.usefixtures("user_namespaces")


def next_number() -> int:
    """Return the number that the next link will get."""
    state = owned._random.getstate()
    try:
        return owned.new_number()
    finally:
        owned._random.setstate(state)


def bridge(name: str, index: int) -> Request:
    """Return the request for a bridge that is not isolib's business."""
    return requests.new_link("bridge", requests.link_attributes(name=name), name=name, index=index)


def names(ns: NetNS) -> set[str]:
    """Return the names of the links of a namespace."""
    return {link.name for link in links(ns)}


def test_anothers_number(ns: NetNS) -> None:
    """A link whose number another one has is refused, and that other one stays."""
    ns.netlink().send(bridge("theirs", next_number()))
    with pytest.raises(SyscallError) as caught:
        new_bridge("ours", ns=ns)
    assert caught.value.errno == errno.EEXIST
    assert names(ns) == {"lo", "theirs"}
    new_bridge("ours", ns=ns).close()
    assert names(ns) == {"lo", "theirs"}


def test_anothers_number_at_the_other_end(ns: NetNS) -> None:
    """A cable whose other end would have another one's number is not made, and that other one stays."""
    with closing(isolib.new_netns()) as there:
        there.netlink().send(bridge("theirs", next_number()))
        with pytest.raises(SyscallError):
            new_veth(ns, there)
        assert (names(ns), names(there)) == ({"lo"}, {"lo", "theirs"})


@pytest.mark.parametrize("taken", [0, 1])
def test_taken_names(ns: NetNS, taken: int) -> None:
    """Of a cable's two names, the one that is taken is told, and who has it stays."""
    wanted = ("one", "two")
    with closing(isolib.new_netns()) as there:
        (ns, there)[taken].netlink().send(bridge(wanted[taken], 7))
        with pytest.raises(SyscallError) as caught:
            new_veth(ns, there, names=wanted)
        assert (caught.value.op, caught.value.target, caught.value.errno) == ("RTM_NEWLINK", wanted[taken], errno.EEXIST)
        assert names(ns) | names(there) == {"lo", wanted[taken]}


def test_renamed(ns: NetNS) -> None:
    """A link that was renamed is removed with its handle."""
    made = new_bridge("before", ns=ns)
    made.interface.change(name="after")
    made.close()
    assert names(ns) == {"lo"}


def test_refused_afterwards(ns: NetNS) -> None:
    """What is asked for together with a link and refused takes the link with it."""
    where = Where(ns)

    def then(made: Interface) -> list[Request]:
        return [requests.set_link(made.index, "its master", requests.link_attributes(master=99))]

    with pytest.raises(SyscallError, match="its master"), Rollback() as undo:
        owned.make_link(where, undo, "ours", lambda index: bridge("ours", index), then)
    assert names(ns) == {"lo"}


def test_numbers_after_a_fork() -> None:
    """A fork of the program gives other numbers than the program."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(writer, str(owned.new_number()).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(writer)
    with open(reader, encoding="ascii") as file:
        assert int(file.read()) != owned.new_number()
