"""A cable between two network namespaces: a pair of virtual Ethernet interfaces (veth(4))."""

from __future__ import annotations

from errno import EEXIST
from typing import TYPE_CHECKING

from isolib._kernel.handle import Handle, Rollback
from isolib._kernel.hints import typed
from isolib._kernel.netlink.conversation import Turn
from isolib.errors import PlanError, SyscallError
from isolib.net import requests
from isolib.net.carrier import heed, question, settle, settle_addresses
from isolib.net.checks import check_interface, check_mtu, check_name, check_pair
from isolib.net.interface import Interface
from isolib.net.owned import announce, check_free, new_number, nothing_more
from isolib.net.where import Where, check_namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import TypeAlias

    from isolib._kernel.netlink.socket import Request
    from isolib.net.values import AnyInterface
    from isolib.types import HasFileno

    Then: TypeAlias = Callable[[Interface], Iterable[Request]]

__all__ = ["Veth", "connect", "new_veth"]


class Veth(Handle, made_by="isolib.new_veth()"):
    """A cable: what goes in at one end comes out at the other, and when one end goes, both do.

    Attributes
    ----------
    a, b
        The two ends, each an `Interface` in its namespace.
    """

    def __init__(self, a: Interface, b: Interface, undo: Rollback) -> None:
        super().__init__()
        self.a = a
        self.b = b
        self._undo = undo

    def _release(self) -> None:
        self._undo.unwind()

    def _describe(self) -> str:
        return f"{self.a.name} -- {self.b.name}"


@typed("a veth pair")
def new_veth(
    a: HasFileno | None = None,
    b: HasFileno | None = None,
    *,
    names: Sequence[str] = ("veth0", "veth1"),
    addresses: Sequence[str | AnyInterface | None] = (None, None),
    mtu: int | None = None,
) -> Veth:
    """Connect two network namespaces by a pair of virtual Ethernet interfaces; both ends are up.

    Parameters
    ----------
    a, b
        Handles of the namespaces; None: that of the calling thread.
    names
        Of the interfaces, each at most 15 bytes.
    addresses
        Of the interfaces, each with its network's prefix: "10.0.0.1/24".
    mtu
        Bytes of the longest packet, 68 to 65535; None: 1500.

    Returns
    -------
    Veth
        Owned: closing it removes both ends, and so does the end of this program, or of one of the namespaces.

    Raises
    ------
    PlanError
        An argument cannot work; nothing was done.
    SyscallError
        The kernel refused, and nothing is left.  EEXIST: a name is taken; EOPNOTSUPP: it has no veth.
    ClosedError
        A namespace is closed.

    Notes
    -----
    The other end is born where it belongs, within the same request: no device is moved.  Privileges: CAP_NET_ADMIN over both
    namespaces, which the owner of their user namespaces has.  Kernel: CONFIG_VETH.  Sources: veth(4), rtnetlink(7).

    Examples
    --------
    >>> from isolib import new_netns
    >>> a, b = new_netns(), new_netns()
    >>> with new_veth(a, b, addresses=("10.0.0.1/24", "10.0.0.2/24")) as cable:
    ...     cable.a.link().up, cable.b.link().up
    (True, True)
    >>> a.close(), b.close()
    (None, None)
    """
    own_names = check_name(check_pair(names, "names")[0], "names[0]"), check_name(names[1], "names[1]")
    own_addresses = [
        None if address is None else check_interface(address, f"addresses[{at}]")
        for at, address in enumerate(check_pair(addresses, "addresses"))
    ]
    if mtu is not None:
        check_mtu(mtu)
    ends = Where(check_namespace(a, "a")), Where(check_namespace(b, "b"))
    if own_names[0] == own_names[1] and ends[0].socket is ends[1].socket:
        raise PlanError(f"names: both ends would be {own_names[0]!r} in one namespace")

    def addressing(address: AnyInterface | None) -> Then:
        return lambda end: () if address is None else (requests.add_address(address, end.index, end.name),)

    with Rollback() as undo:
        then = addressing(own_addresses[0]), addressing(own_addresses[1])
        pair = connect(*ends, undo, own_names, mtu=mtu, then=then, settled=())
        for end, address in zip(pair, own_addresses, strict=True):
            settle_addresses(end, () if address is None else (address,))
        made = Veth._make(*pair, undo)
        undo.keep()
    return made


def connect(
    here: Where,
    there: Where,
    undo: Rollback,
    names: tuple[str, str],
    *,
    mtu: int | None = None,
    macs: tuple[bytes | None, bytes | None] = (None, None),
    master: int | None = None,
    put: tuple[str, str] | None = None,
    then: tuple[Then, Then] = (nothing_more, nothing_more),
    settled: Sequence[Interface] | None = None,
) -> tuple[Interface, Interface]:
    """Make a pair, up, for those who compose: by one conversation with the kernel.

    Parameters
    ----------
    here, there
        Where the ends lie.
    undo
        Gets the steps that remove the pair.
    names, macs
        Of the ends.
    mtu
        Of both.
    master
        The number of a bridge beside the first end, which becomes a port of it.
    put
        A file of /proc/sys/net of the second end, or of that which is in the caller's own namespace, and what is written to it
        before that end comes up; where there is no such file, nothing is.
    then
        Returns, for each end, what is asked for when it is up.
    settled
        What else is to carry at the end, as both ends are; None: they need not either.
    """
    if there.net is None and here.net is not None:  # by a request in the caller's own, which needs no descriptor of that

        def join(port: Interface) -> Iterator[Request]:
            if master is not None:
                yield requests.set_link(port.index, port.name, requests.link_attributes(master=master))
            yield from then[0](port)

        turned = (names[1], names[0]), (macs[1], macs[0]), (then[1], join)
        other, one = connect(there, here, undo, turned[0], mtu=mtu, macs=turned[1], put=put, then=turned[2], settled=settled)
        return one, other
    two = Interface(there, new_number(), names[1])
    peer_net = None if there.net is None else there.net.fileno()
    peer = requests.link_attributes(name=names[1], mtu=mtu, mac=macs[1], net=peer_net)
    own = requests.link_attributes(name=names[0], mtu=mtu, mac=macs[0], master=master)
    data = requests.veth_peer(peer, two.index)
    link, socket = announce(here, undo, names[0]), here.socket
    one = Interface(here, link.index, names[0])
    up = put is None or here.net is not None
    made = requests.new_link("veth", own, name=names[0], index=one.index, up=up, data=data)
    # The kernel brings a peer up before it has another end, which it refuses (drivers/net/veth.c): so by a request of its own.
    inside = (requests.bring_up(names[1]), *then[1](two), question(two))
    if up:
        turns = [Turn(here.net, socket, (made, *then[0](one))), Turn(there.net, None, inside, put)]
    else:
        late = (requests.bring_up(names[0]), *then[0](one))
        turns = [Turn(None, socket, (made,)), Turn(None, socket, late, put), Turn(there.net, None, inside)]
    beside = [] if settled is None else [one, *(end for end in settled if end.ns is not None and end.ns is here.net)]
    if beside:
        turns.append(Turn(here.net, socket, tuple(map(question, beside))))
    try:
        there.converse(*turns)
    except SyscallError as error:
        if error.errno == EEXIST and (error.op, error.target) == (made.op, made.target):
            check_free(here, names[0])
            check_free(there, names[1])
        raise
    link.is_sure = True
    if settled is not None:
        heed(two, turns[-2].answers[-1])
        for end, answer in zip(beside, turns[-1].answers, strict=True):
            heed(end, answer)
        settle(*(end for end in settled if end not in beside))
    return one, two
