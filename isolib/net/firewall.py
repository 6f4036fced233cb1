"""The firewall of a network: tables of nftables that go when this program does.

Two namespaces of a network have one each. In the one where its bridge is, everything is ours: what nobody allowed is not
forwarded, and the tables go with the namespace. In the host's, it only speaks of what comes from or goes to the interface that
leads to the network, and the tables belong to the socket that made them: nobody else can change them, and they go with it, also
by a kill -9. (That one waits for every processor when it is closed, ten milliseconds or more; the other does not.)

A table of the host's own firewall sees the same packets, and what it drops is dropped: nobody can accept for others.

Sources: nft(8), linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from errno import EAFNOSUPPORT, EINVAL, ENOENT, EOPNOTSUPP, EPROTONOSUPPORT
from ipaddress import IPv4Network, IPv6Network, ip_network
from threading import RLock
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from isolib._kernel.handle import Rollback
from isolib._kernel.netlink.conntrack import Server, forget_flow, list_flows, parse_flow
from isolib._kernel.netlink.nft import BRIDGE, INET, NAMES_OF_FAMILIES, SUBSYSTEM, parse_elements, parse_rule
from isolib._kernel.netlink.nft_expressions import Counter
from isolib._kernel.netlink.nft_match import PROTOCOLS
from isolib._kernel.netlink.socket import NETFILTER, open_netlink
from isolib.errors import PlanError, SyscallError, Unsupported
from isolib.net.checks import check_address
from isolib.net.ruleset import Changes, State, Target, check_port, check_published

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from ipaddress import IPv4Address, IPv6Address
    from types import TracebackType
    from typing import Self

    from isolib._kernel.netlink.nft import Element, Rule
    from isolib._kernel.netlink.socket import Socket
    from isolib.net.ruleset import Published
    from isolib.types import HasFileno

    Address: TypeAlias = "IPv4Address | IPv6Address"

__all__ = ["BRIDGE_SETTINGS", "Firewall", "Group", "Tally", "open_firewall"]

Subnet: TypeAlias = IPv4Network | IPv6Network

_LONGEST: Final = 200  # nft's names have 255 bytes at the most
_MISSING: Final = {EOPNOTSUPP, EPROTONOSUPPORT, EAFNOSUPPORT}
_NETFILTER: Final = "a kernel with CONFIG_NF_TABLES: modprobe nf_tables"
_OWNER: Final = "Linux 5.12; or a network that needs nothing of its host: no internet, no ports published there"


BRIDGE_SETTINGS: Final = tuple(f"net.bridge.bridge-nf-call-{table}" for table in ("iptables", "ip6tables", "arptables"))
"""What must be 0 where a bridge is, in so far as it exists there (Linux 5.3, br_netfilter): else the kernel shows frames
between ports to the tables of family inet as well, and a port that is published is not reached from its own endpoint."""


class Group(NamedTuple):
    """Endpoints on one side of a partition: their interfaces at the bridge, and their addresses."""

    interfaces: tuple[str, ...]
    addresses: tuple[Address, ...] = ()


class Tally(NamedTuple):
    """What rules have counted."""

    packets: int
    bytes: int


class Firewall:
    """The tables of one network in one namespace.

    Every method is one batch, which the kernel carries out as a whole or not at all; `together` makes one batch of several.
    Threads take turns.

    Attributes
    ----------
    name
        Of its tables, of family inet and, from the first use, bridge.
    """

    def __init__(self, socket: Socket, name: str, *, private: bool, subnets: tuple[Subnet, ...]) -> None:
        self.name = name
        self._socket = socket
        self._private = private
        self._subnets = subnets
        self._lock = RLock()
        self._state = State()
        self._gathered: Changes | None = None
        with self._gathering() as changes:
            changes.begin()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Firewall {self.name} on {self._socket!r}>"

    def close(self) -> None:
        """Close the socket; again is nothing.  Tables in the host's namespace go with it, others with their namespace."""
        with self._lock:
            self._socket.close()

    def _changes(self) -> Changes:
        return Changes(self.name, self._state, private=self._private, subnets=self._subnets)

    def _send(self, changes: Changes) -> None:
        try:
            self._socket.batch(SUBSYSTEM, *changes.batch())
        except SyscallError as error:
            if error.errno in _MISSING:
                family = NAMES_OF_FAMILIES[BRIDGE if changes.bridge.label in str(error.target) else INET]
                by, remedy = f"the kernel: no nftables of family {family}", f"a kernel with CONFIG_NF_TABLES_{family.upper()}"
                raise Unsupported(f"firewalls ({family})", by, remedy) from error
            raise

    @contextmanager
    def _gathering(self) -> Iterator[Changes]:
        with self._lock:
            outer = self._gathered
            changes = self._changes() if outer is None else outer
            requests, state = len(changes.requests), changes.state
            self._gathered = changes
            try:
                yield changes
                if outer is None:
                    self._send(changes)
                    self._state = changes.state
            except BaseException:
                del changes.requests[requests:]
                changes.state = state
                raise
            finally:
                self._gathered = outer

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make one batch of all that is called in the block, when it ends; when it raises, nothing of it is done.

        Raises
        ------
        SyscallError
            The kernel refused one of the changes, and has made none.
        """
        with self._gathering():
            yield

    # ---- what passes ----

    def guard_loopback(self, interface: str | None = None) -> None:
        """Drop what is for or from 127.0.0.0/8 and ::1 and comes in by an interface; None: by any but lo.

        The kernel drops it as well, unless net.ipv4.conf.*.route_localnet says otherwise; ::1 always.  It passes on what is for
        "::" and for addresses of IPv4 in IPv6 (::ffff:127.0.0.1), which sockets take for loopback's: that is dropped too.
        """
        with self._gathering() as changes:
            changes.guard_loopback(interface)

    def serve(self, interface: str, services: Iterable[tuple[str, int]] = ()) -> None:
        """Let what comes in by an interface reach these ports of the namespace itself, and nothing else of it.

        Ping is answered, and neighbours are found; nobody is believed who says that he is a router.

        Parameters
        ----------
        interface
            Its name.
        services
            Protocols and ports: ``("udp", 53)``.

        Raises
        ------
        PlanError
            There is no such protocol or port.
        """
        with self._gathering() as changes:
            changes.serve(interface, services)

    def route(self, inside: str, outside: str | None = None, *, outward: bool = True, between: bool = True) -> None:
        """Forward between a network's interface and others what is allowed, and nothing else; nothing else is opened by it.

        Allowed is: what goes out to where it may (`allow`, `deny`), answers, and what is published. In a private namespace
        nothing is forwarded between other interfaces either.

        Parameters
        ----------
        inside
            The bridge, or the interface that leads to it.
        outside
            What goes out does so by this interface only; None: by any.
        outward
            Whether anything may go out that is no answer.
        between
            Whether endpoints may reach each other by way of this namespace, which they can have their packets take; by
            published ports they may in any case. What goes from port to port of a bridge does not come here: see `isolate`.
        """
        with self._gathering() as changes:
            changes.route(inside, outside, outward=outward, between=between)

    def allow(self, *destinations: str | Address | Subnet) -> None:
        """Let these addresses and networks be reached, from now on; of several decisions, that on the smallest network counts.

        Raises
        ------
        PlanError
            One is no address or network.
        """
        self.decide(destinations, allowed=True)

    def deny(self, *destinations: str | Address | Subnet) -> None:
        """Let these addresses and networks be reached no more, by connections that stand neither; as `allow`."""
        self.decide(destinations, allowed=False)

    def decide(self, destinations: Iterable[str | Address | Subnet], *, allowed: bool, everything: bool = False) -> None:
        """Let them be reached or not, as `allow` and `deny`; ``everything``: and all that nobody decided about."""
        networks = [_network(one) for one in destinations]
        with self._gathering() as changes:
            if everything:
                self.set_open(allowed)
            changes.decide(changes.state.egress.decide(networks, allowed=allowed))

    def set_open(self, value: bool) -> None:  # noqa: FBT001 -- it is all that is said
        """Say whether what nobody decided about may be reached; at first it may."""
        with self._gathering() as changes:
            changes.decide(replace(changes.state.egress, open=value))

    # ---- translation ----

    def masquerade(self, subnet: Subnet, out: str | None = None) -> None:
        """Give what leaves a network the address of the interface that it leaves by.

        Parameters
        ----------
        subnet
            The network.
        out
            The interface; None: all that does not go to the network itself.
        """
        with self._gathering() as changes:
            changes.masquerade(subnet, out)

    def publish(self, proto: str, host: str | Address | None, host_port: int, address: str | Address, port: int) -> None:
        """Lead a port of this namespace to another address, for who comes from outside, from here, and from the network itself.

        No socket holds the port: a program here can listen on it too, and hears nobody but over loopback.

        Parameters
        ----------
        proto
            ``"tcp"``, ``"udp"`` or ``"sctp"``.
        host, host_port
            Where to: an address of the namespace, or None, 0.0.0.0 or :: for every one, but those of loopback; those cannot be
            translated, and take a forwarder.
        address, port
            Where it leads.

        Raises
        ------
        PlanError
            It is published already; it cannot be.
        """
        target = Target(check_address(address, "target"), check_port(proto, port, "port")[1])
        wanted = check_published(proto, host, host_port, target.address.version)
        with self._gathering() as changes:
            changes.publish(wanted, target)

    def unpublish(self, proto: str, host: str | Address | None, host_port: int, *, version: int = 4) -> None:
        """Lead it there no more; connections that stand go on, until they are `cut`.

        Parameters
        ----------
        proto, host, host_port
            As for `publish`.
        version
            Of which protocol it is, where the host does not tell.

        Raises
        ------
        PlanError
            It is not published.
        """
        if host is not None:
            version = check_address(host, "host").version
        wanted = check_published(proto, host, host_port, version)
        with self._gathering() as changes:
            changes.unpublish(wanted)

    def cut(self, proto: str, address: str | Address, port: int, *, answers: bool = False) -> None:
        """Forget connections: what belongs to them is not translated any more.

        Parameters
        ----------
        proto, address, port
            Of whom: of the port that they were made to.  Those that lead to the same server by another one stand.
        answers
            Whether it is the port that answers, behind all translation.

        Raises
        ------
        PlanError
            There is no such protocol, address or port.
        SyscallError
            The kernel refused.  EINVAL, EOPNOTSUPP: it has no CONFIG_NF_CT_NETLINK.
        """
        server = Server(PROTOCOLS[check_port(proto, port, "port")[0]], check_address(address, "address"), port)
        with self._lock:
            flows = filter(None, map(parse_flow, self._socket.dump(list_flows(server, answers=answers))))
            for each in [one for one in flows if (one.answers if answers else one.meant) == server]:
                try:
                    self._socket.ask(forget_flow(each))
                except SyscallError as error:
                    if error.errno != ENOENT:  # it has ended
                        raise

    @property
    def published(self) -> Mapping[Published, Target]:
        """The ports that are published, and where they lead."""
        return self._state.published

    # ---- between endpoints ----

    def guard_ports(self) -> None:
        """Let no port of a bridge here say to others that it is their router (ICMPv6 advertisements and redirects)."""
        with self._gathering() as changes:
            changes.guard_ports()

    def isolate(self, *, isolated: bool = True) -> None:
        """Let endpoints of the network reach each other by published ports only; or again as they are."""
        with self._gathering() as changes:
            changes.isolate(isolated=isolated)

    def partition(self, *groups: Group) -> None:
        """Drop all between endpoints of different groups, by connections that stand too; earlier partitions are forgotten.

        Who is in no group reaches everybody; this namespace itself is reached by all.

        Raises
        ------
        PlanError
            There are not two groups, or an interface or address is in two.
        """
        if len(groups) < 2:  # noqa: PLR2004 -- one has nobody to be apart from
            raise PlanError("partition: it takes two groups at least")
        members = [one for group in groups for one in (*group.interfaces, *group.addresses)]
        if twice := sorted({str(one) for one in members if members.count(one) > 1}):
            raise PlanError(f"partition: in two groups: {', '.join(twice)}")
        with self._gathering() as changes:
            changes.part(groups)

    def heal(self) -> None:
        """Drop nothing between groups any more."""
        with self._gathering() as changes:
            changes.part(())

    # ---- what the kernel has ----

    def rules(self) -> tuple[Rule, ...]:
        """Return the rules that are in force, as the kernel tells them.

        Raises
        ------
        SyscallError
            The kernel does not tell.
        """
        with self._lock:
            scopes = self._changes().tables()
            return tuple(parse_rule(message) for scope in scopes for message in self._socket.dump(scope.rules()))

    def elements(self, name: str) -> list[Element]:
        """Return what is in a set or map of the table of family inet, by its keys.

        Raises
        ------
        SyscallError
            There is none of that name.
        """
        with self._lock:
            return parse_elements(self._socket.dump(self._changes().inet.elements(name)))

    def counters(self) -> dict[str, Tally]:
        """Return what was counted, by the rules' comments: ``"masquerade"``, ``"not allowed"``.

        Raises
        ------
        SyscallError
            As in `rules`.
        """
        found: dict[str, Tally] = {}
        for one in self.rules():
            for counter in one.expressions:
                if isinstance(counter, Counter):
                    old = found.get(one.comment, Tally(0, 0))
                    found[one.comment] = Tally(old.packets + counter.packets, old.bytes + counter.bytes)
        return found


def _network(value: str | Address | Subnet) -> Subnet:
    try:
        # Numbers and bytes would be taken as addresses too.
        return ip_network(str(value))
    except ValueError as error:
        raise PlanError(f"destination: an address or a network is wanted: {error}") from None


def open_firewall(net: HasFileno | None, name: str, *, private: bool = False, subnets: Iterable[Subnet] = ()) -> Firewall:
    """Make a firewall that does nothing yet.

    Parameters
    ----------
    net
        The network namespace; None: that of the calling thread.
    name
        Its tables are named so, after ``isolib-``.
    private
        Whether the namespace is one of ours: nothing is forwarded there that was not allowed, and it ends with us.
    subnets
        The networks at a bridge in this namespace, for what is published to them.

    Raises
    ------
    PlanError
        The name cannot be one.
    SyscallError, SetupFailed
        The kernel refused; EEXIST: there are such tables already.
    Unsupported
        The kernel has no nftables; or, before Linux 5.12, no tables that belong to a socket, and the namespace is not
        private: they would stay when this program is killed.

    Notes
    -----
    Privileges: CAP_NET_ADMIN in the user namespace that owns the network namespace; who made that has it.
    """
    if not name.isprintable() or not 1 <= len(name.encode()) <= _LONGEST:
        raise PlanError(f"a firewall's name is 1 to {_LONGEST} printable bytes: {name!r}")
    with Rollback() as undo:
        try:
            socket = open_netlink(net, NETFILTER)
            undo.push(socket.close)
            firewall = Firewall(socket, f"isolib-{name}", private=private, subnets=tuple(subnets))
        except SyscallError as error:
            if error.errno in _MISSING:
                raise Unsupported("firewalls", "the kernel: no netlink for netfilter", _NETFILTER) from error
            if error.errno == EINVAL and not private:  # the flag
                raise Unsupported("a firewall that ends with this program", "a kernel before Linux 5.12", _OWNER) from error
            raise
        undo.dismiss()
    return firewall
