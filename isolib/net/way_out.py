"""What leads out of a network: a cable to the host, which takes a right over its namespace, or a program that takes none.

Such a program lives as long as the network and this program at most, in a pid namespace of the launcher's; it belongs to the
user namespace that owns the network's, and has no right anywhere else.
"""

from __future__ import annotations

import os
import select
from errno import EACCES, EPERM, EXDEV
from functools import partial
from ipaddress import ip_interface, ip_network
from typing import TYPE_CHECKING, Final, NamedTuple

from isolib._kernel import calls, seam
from isolib._kernel.assembly import outside
from isolib._kernel.handle import Fd, Rollback
from isolib._kernel.netlink.conversation import Turn
from isolib._kernel.programs import find_program
from isolib._kernel.streams import DEVNULL
from isolib._kernel.waiting import Deadline, poll
from isolib.errors import GoneError, PlanError, SyscallError, Unsupported, from_errno
from isolib.net import parsing, requests, sysctl
from isolib.net.carrier import settle_addresses
from isolib.net.chosen import choose, keep
from isolib.net.interface import Interface
from isolib.net.pool import choose_subnet, choose_ula
from isolib.net.tap import check_device
from isolib.net.translators import TRANSLATORS
from isolib.net.uplink import UPLINK, lay_uplink
from isolib.net.where import Where

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolib._kernel.seam import Process
    from isolib.net.firewall import Firewall
    from isolib.net.portmap import PortMaps
    from isolib.net.translators import Cable, Translator
    from isolib.net.values import AnyNetwork
    from isolib.types import Exit, HasFileno

__all__ = ["Way", "WayOut", "check_subnets", "choose_way", "open_way"]

_VETH: Final = "veth"
_PATIENCE: Final = 10.0
"""Seconds, after which a program that does not say that it is ready is not waited for."""
_ROOM: Final = 1 << 16
_IPV4: Final = 4
_PACKAGES: Final = " or ".join(f"{one.name} (Debian: apt-get install {one.package})" for one in TRANSLATORS)
_HINT: Final = f"a way out takes CAP_NET_ADMIN over the caller's own network namespace, or {_PACKAGES}"
_HINT_VETH: Final = 'internet="veth" takes CAP_NET_ADMIN over the caller\'s own network namespace'


class Way(NamedTuple):
    """A way out that was chosen: the program and its path; by a cable, none."""

    translator: Translator | None = None
    path: str = ""


def choose_way(internet: object) -> Way | None:
    """Return the way out that was asked for; nothing is made.

    Raises
    ------
    PlanError
        There is none of that name.
    PermissionDenied
        It takes a right that the caller has not, or a program that is not installed.
    Unsupported
        The program is not installed, or may not make a tap device.
    """
    if internet is None or internet is False:
        return None
    names = [_VETH, *(one.name for one in TRANSLATORS)]
    if internet is not True and internet not in names:
        raise PlanError(f"internet: True, False, {', '.join(map(repr, names))} are wanted, not {internet!r}")
    refusal = _refusal() if internet in (True, _VETH) else None
    if internet in (True, _VETH) and refusal is None:
        return Way()
    for one in TRANSLATORS:
        if internet in (True, one.name) and (path := find_program(one.name)) is not None:
            check_device(f"a way out by {one.name}")
            return Way(one, path)
    if refusal is not None:
        hint = _HINT if internet is True else _HINT_VETH
        raise from_errno(refusal.op, "the caller's network namespace", refusal.errno, hint) from None
    package = next(one.package for one in TRANSLATORS if one.name == internet)
    raise Unsupported(f"a way out by {internet}", f"missing tool {internet}", f"apt-get install {package}")


def check_subnets(way: Way | None, subnets: Sequence[AnyNetwork]) -> None:
    """Raise PlanError where a subnet overlaps what the program has for itself."""
    if way is not None and way.translator is not None and way.translator.prefix6 is not None:
        taken = ip_network(way.translator.prefix6)
        for subnet in subnets:
            if subnet.version == taken.version and subnet.overlaps(taken):
                raise PlanError(f"ipv6={str(subnet)!r}: {way.translator.name} has {taken} for itself")


def _refusal() -> SyscallError | None:
    """Return how the kernel refuses this caller to change the namespace that he is in, or None."""
    try:
        # There is no link 0: who may is told that, and nothing has changed.
        Where(None).socket.ask(requests.remove_link(0, "no link"))
    except SyscallError as error:
        if error.errno in {EPERM, EACCES}:
            return error
    return None


class WayOut:
    """What leads out of a network.

    Attributes
    ----------
    kind
        ``"veth"``: a cable to the host's namespace, where the kernel translates and forwards; ``"pasta"`` or
        ``"slirp4netns"``: this program.
    pid
        That of the program; None: there is none.
    maps
        By which ports of the host lead in; None: the kernel translates none.
    """

    def __init__(
        self, kind: str, process: Process | None = None, words: Fd | None = None, *, maps: PortMaps | None = None
    ) -> None:
        self.kind = kind
        self.maps = maps
        self.pid = None if process is None else process.pid
        self._process = process
        self._words = words
        self._pidfd = None if process is None else _pidfd(process)
        self._lost: str | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<WayOut {self.kind}{'' if self.pid is None else f' pid={self.pid}'}{': lost' if self.lost else ''}>"

    @property
    def lost(self) -> str | None:
        """How the program ended by itself, or was ended by somebody: nothing leads out any more; None: it has not."""
        if self._lost is None and self._process is not None and not self._closed and self._has_ended():
            self._lost = _account(self.kind, self._process.wait(), self._words)
        return self._lost

    def _has_ended(self) -> bool:
        # Its supervisor, which ends what it has left, follows it a moment later.
        return self._pidfd is not None and not self._pidfd.closed and bool(poll(self._pidfd, 0))

    def check(self) -> None:
        """Raise GoneError where it is `lost`."""
        if self.lost is not None:
            raise GoneError(self.kind, "the way out", hint=f"{self.lost}; make a new network")

    def _close(self) -> None:
        self._closed = True
        if self._process is not None:
            self._process.close()
        if self._pidfd is not None:
            self._pidfd.close()


def _pidfd(process: Process) -> Fd:
    """Return a descriptor of the program itself; where that has gone already, one of its supervisor, which follows."""
    try:
        found = Fd.take(os.pidfd_open, process.pid)
    except ProcessLookupError:
        found = Fd.take(os.dup, process.fileno())
    assert found is not None  # noqa: S101 - they raise
    return found


def _account(kind: str, ended: Exit, words: Fd | None) -> str:
    how = f"signal {ended.signal}" if ended.signal is not None else f"status {ended.code}"
    said = _read(words)
    return f"{kind} has ended ({how}){f': {said}' if said else ''}"


def _read(words: Fd | None) -> str:
    """Return what a program has said on its standard error, on one line."""
    if words is None or words.closed:
        return ""
    try:
        data = os.read(words.fileno(), _ROOM)
    except BlockingIOError:
        return ""
    lines = [line.strip() for line in data.decode("utf-8", "backslashreplace").splitlines()]
    return "; ".join(line for line in lines if line)


def open_way(
    way: Way, undo: Rollback, where: Where, firewall: Firewall, subnets: Sequence[AnyNetwork], *, bridge: str, isolate: bool
) -> WayOut:
    """Lead a network's packets on; parameters and errors as of `isolib.net.uplink.lay_uplink`.

    Raises
    ------
    Unsupported
        The program ended, or did not say that it is ready: with what it said.
    """
    if way.translator is None:
        return WayOut(_VETH, maps=lay_uplink(undo, where, firewall, bridge, subnets, isolate=isolate))
    cables = [_cable(undo, way.translator, subnet) for subnet in subnets]
    for subnet in subnets:
        sysctl.Sysctls(where.net)[sysctl.FORWARDING[subnet.version]] = 1
    with firewall.together():
        firewall.route(bridge, UPLINK, between=not isolate)
        for subnet in subnets:
            firewall.masquerade(subnet, UPLINK)
        # Only its next hop is there, and nobody's service: what the program might make of these addresses is the host's.
        firewall.deny(*(own.network for own, _ in cables))
    made = _start(undo, way, where, cables)
    link = parsing.parse_link(where.socket.ask(requests.get_link(UPLINK))[0])
    interface = Interface(where, link.index, UPLINK)
    wanted = (
        requests.set_link(link.index, UPLINK, up=True),
        *(requests.add_address(other, link.index, UPLINK) for _, other in cables),
        *(requests.default_route(own.ip, link.index) for own, _ in cables),
    )
    where.converse(Turn(where.net, None, wanted, sysctl.no_advertisements(UPLINK)))
    settle_addresses(interface, [other for _, other in cables])
    return made


def _cable(undo: Rollback, translator: Translator, subnet: AnyNetwork) -> Cable:
    """Return the addresses at the tap device, of which the first is the program's."""
    chosen: AnyNetwork
    if subnet.version == _IPV4:
        chosen = choose(undo, partial(choose_subnet, prefix=translator.prefix), 4)
    elif translator.prefix6 is None:
        chosen = ip_network((choose(undo, choose_ula, 6).network_address, 126))
    else:
        chosen = keep(undo, ip_network(translator.prefix6))
    own, other = translator.ends
    return ip_interface((chosen[own], chosen.prefixlen)), ip_interface((chosen[other], chosen.prefixlen))


def _start(undo: Rollback, way: Way, where: Where, cables: Sequence[Cable]) -> WayOut:
    translator, ns = way.translator, where.net
    assert translator is not None  # noqa: S101 - the caller has looked
    assert ns is not None  # noqa: S101 - it is the network's own
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    (ready, told), (words, said) = (Fd.take_all(os.pipe2, flags) for _ in range(2))
    undo.adopt(words)  # as long as it runs: who writes where nobody reads is ended
    undo.adopt(ready)
    with told, said, Rollback() as joined:
        number = told.fileno()
        process = seam.spawn(
            [way.path, *translator.arguments(UPLINK, cables, number, os.geteuid() == 0)],
            new={"pid"},
            join=_joins(joined, ns),
            cwd="/",
            env={},
            stdin=ns,
            stdout=told if translator.ready_is_stdout else DEVNULL,
            stderr=said,
            pass_fds=() if translator.ready_is_stdout else (number,),
        )
        made = WayOut(translator.name, process, words)
        undo.push(made._close)  # noqa: SLF001 - of this module
    _wait(made, ready)
    return made


def _joins(undo: Rollback, ns: HasFileno) -> list[HasFileno]:
    """Return the namespaces that the program is born in: where the calling thread is, and the one that owns the network's."""
    found: list[HasFileno] = []
    if any(flag == calls.NAMESPACE_FLAGS["net"] for _, flag in outside()):
        here = Fd.take(os.open, "/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        assert here is not None  # noqa: S101 - os.open raises
        found.append(undo.adopt(here))
    try:
        owner = undo.adopt(calls.namespace_owner(ns.fileno()))
    except SyscallError as error:
        if error.errno not in {EPERM, EXDEV}:
            raise
        return found  # above our own, where we have the rights that we have
    if not os.path.samestat(os.fstat(owner.fileno()), os.stat("/proc/thread-self/ns/user")):
        found.append(owner)
    return found


def _wait(made: WayOut, ready: Fd) -> None:
    """Return when the program has said that it is ready, which it does by writing something."""
    deadline = Deadline(_PATIENCE)
    events = 0
    while not events & select.POLLIN:
        events = poll(ready, deadline.milliseconds())
        if not events & select.POLLIN and (events or deadline.is_over):
            break
    else:
        _read(made._words)  # noqa: SLF001 - of this module; what it says when it begins is no news later
        return
    if events:
        assert made._process is not None  # noqa: S101, SLF001 - of this module
        made._process.wait(_PATIENCE)  # noqa: SLF001 - it has let go of what it was to write to
    why = made.lost or f"{made.kind}, which was not ready within {_PATIENCE:g} s"
    others = "another way out: " + ", ".join(f'internet="{one.name}"' for one in TRANSLATORS if one.name != made.kind)
    raise Unsupported(f"a way out by {made.kind}", why, others)
