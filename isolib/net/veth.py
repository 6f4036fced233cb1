"""A cable between two network namespaces: a pair of virtual Ethernet interfaces (veth(4))."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isolib._kernel.handle import Handle, Rollback
from isolib._kernel.hints import typed
from isolib.errors import PlanError
from isolib.net import parsing, requests
from isolib.net.carrier import settle
from isolib.net.checks import check_interface, check_mtu, check_name, check_pair
from isolib.net.interface import Interface
from isolib.net.owned import check_free, make_link
from isolib.net.where import Where, check_namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from isolib._kernel.netlink.socket import Request
    from isolib.net.values import AnyInterface
    from isolib.types import HasFileno

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
    >>> with new_netns() as a, new_netns() as b, new_veth(a, b, addresses=("10.0.0.1/24", "10.0.0.2/24")) as cable:
    ...     cable.a.link().state
    'up'
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
    with Rollback() as undo:
        pair = connect(*ends, undo, own_names, mtu=mtu)
        for end, address in zip(pair, own_addresses, strict=True):
            if address is not None:
                end.add_address(address)
        settle(*pair)
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
    before_up: Callable[[], object] | None = None,
) -> tuple[Interface, Interface]:
    """Make a pair, up, for those who compose.

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
    before_up
        Called when there is the second end, or that which is in the caller's own namespace, and before it comes up.
    """
    if there.net is None and here.net is not None:  # by a request in the caller's own, which needs no descriptor of that
        other, one = connect(there, here, undo, (names[1], names[0]), mtu=mtu, macs=(macs[1], macs[0]), before_up=before_up)
        if master is not None:
            here.socket.ask(requests.set_link(one.index, one.name, requests.link_attributes(master=master)))
        return one, other
    peer_net = None if there.net is None else there.net.fileno()
    peer = requests.link_attributes(name=names[1], mtu=mtu, mac=macs[1], net=peer_net)
    own = requests.link_attributes(name=names[0], mtu=mtu, mac=macs[0], master=master)
    data = requests.veth_peer(peer)
    up = before_up is None or here.net is not None

    def request(index: int) -> Request:
        return requests.new_link("veth", own, name=names[0], index=index, up=up, data=data)

    check_free(there, names[1])
    one = make_link(here, undo, names[0], request)
    if before_up is not None:
        before_up()
    if not up:
        here.socket.ask(requests.bring_up(names[0]))
    # The kernel brings a peer up before it has another end, which it refuses (drivers/net/veth.c): so by a request of its own.
    found = parsing.parse_link(there.socket.send(requests.get_link(names[1]), requests.bring_up(names[1]))[0][0])
    return one, Interface(there, found.index, names[1])
