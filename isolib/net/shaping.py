"""Bad weather for what one interface sends, changed live: by netem, else by what this kernel has, else by a relay.

Backends, in their order:

- *netem* does everything, in one queueing discipline.
- A token bucket (*tbf*) does a rate, and *nftables* a loss, where nothing else is asked for.
- The *relay*, a thread of this process, does everything again.

Which a kernel has is known when it is asked to do it.
"""

from __future__ import annotations

from contextlib import suppress
from errno import EAFNOSUPPORT, ENOENT, EOPNOTSUPP
from threading import RLock
from typing import TYPE_CHECKING, Final

from isolib._kernel.netlink import nft_match, tc
from isolib._kernel.netlink.qdiscs import CERTAIN, Netem, Pfifo, Tbf
from isolib.errors import ClosedError, SyscallError, Unsupported
from isolib.net import parsing, requests
from isolib.net.loss import LACKING, Loss
from isolib.net.relay import GONE, Relay, parts, suppress_errno
from isolib.net.weather import Effect, Impairment, InForce

if TYPE_CHECKING:
    from isolib._kernel.netlink.qdiscs import AnyQdisc
    from isolib.net.values import Link
    from isolib.net.where import Where

__all__ = ["Shaping"]

#: The numbers of our queueing disciplines, so that each can be changed in place.
_NETEM: Final = tc.handle(0x1501)
_TBF: Final = tc.handle(0x1502)
_MISSING: Final = frozenset({ENOENT, EOPNOTSUPP, EAFNOSUPPORT})

#: So high a rate, in bytes a second, that it takes no time: with a rate, netem lets no packet overtake another.
_IN_ORDER: Final = 1 << 40
_BITS: Final = 8
#: Ethernet's header and two tags.
_HEADERS: Final = 22
#: A bucket holds what flows in so many parts of a second, and two packets at the least.
_BURSTS: Final = 500
_STEP: Final = "in steps of 2^-32"
_TOGETHER: Final = "packets that the kernel joins (GSO) share one fate"


class Shaping:
    """What happens to packets that leave by one interface.

    Parameters
    ----------
    where
        The namespace.
    index, name
        Of the interface, which somebody else owns.

    Notes
    -----
    Privileges: CAP_NET_ADMIN over the namespace, for the relay CAP_NET_RAW too; who owns its user namespace has both.  It takes
    the place of a queueing discipline that the interface has.  One thread at a time does something to it; others wait.
    """

    def __init__(self, where: Where, index: int, name: str) -> None:
        self._where = where
        self._index = index
        self._name = name
        self._lock = RLock()
        self._has_netem: bool | None = None
        self._root: AnyQdisc | None = None
        self._loss: Loss | None = None
        self._relay: Relay | None = None
        self._in_force = InForce(Impairment())

    def __repr__(self) -> str:
        return f"<Shaping {self._name} {self._in_force.impairment!r}>"

    @property
    def in_force(self) -> InForce:
        """What is in force."""
        return self._in_force

    def apply(self, asked: Impairment) -> InForce:
        """Have this weather from now on, in place of what there was; without any, the same as `clear`.

        Within one backend nothing is lost by the change: packets that wait stay, and leave when they were to.  Where the
        backend changes, those in a queue of the kernel are lost with it, and those in a relay sent at once; and what is sent in
        the milliseconds in which the kernel puts a queueing discipline on the interface, or takes it off, it drops.

        Returns
        -------
        InForce
            Each thing that was asked for, what does it, and how exactly.

        Raises
        ------
        SyscallError, SetupFailed
            The kernel refused.  What was in force before may be so no more: apply again, or `clear`.
        Unsupported
            Neither netem nor what else it would take is in this kernel.
        """
        with self._lock:
            if not asked:
                self.clear()
                return self._in_force
            self._in_force = InForce(asked, self._by_netem(asked) or self._by_kernel(asked) or self._by_relay(asked))
            return self._in_force

    def clear(self) -> None:
        """Have good weather again; again is nothing.

        What waits in a relay is sent at once, and what waits in a queue of the kernel is lost.
        """
        with self._lock:
            self._end(root=True, loss=True, relay=True)
            self._in_force = InForce(Impairment())

    def close(self) -> None:
        """End what runs, for whoever removes the interface next, which takes the rest with it; again is nothing.

        Until then, the interface sends nothing where the relay was.
        """
        with self._lock:
            if self._relay is not None:
                self._relay.end()
            if self._loss is not None:
                self._loss.close()
            self._relay = self._loss = self._root = None
            self._in_force = InForce(Impairment())

    # ---- backends: each returns what it does, or nothing when it cannot do all of it ----

    def _link(self) -> Link:
        return parsing.parse_link(self._where.socket.ask(requests.get_link_by_index(self._index, self._name))[0])

    def _by_netem(self, asked: Impairment) -> tuple[Effect, ...]:
        if self._has_netem is False:
            return ()
        netem = _netem(asked)
        try:
            self._where.socket.ask(tc.add_qdisc(self._index, netem, self._name, number=_NETEM))
        except SyscallError as error:
            if error.errno not in _MISSING:
                raise
            self._has_netem = False
            return ()
        self._has_netem = True
        self._root = netem
        self._end(loss=True, relay=True)
        return _effects_of_netem(asked, netem)

    def _by_kernel(self, asked: Impairment) -> tuple[Effect, ...]:
        if asked.delay or asked.jitter or asked.duplicate or asked.corrupt or asked.reorder:
            return ()
        effects: tuple[Effect, ...] = ()
        if asked.rate is not None:
            limited = self._limit(asked.rate, asked.queue)
            if limited is None:
                return ()
            effects += (
                Effect(
                    "rate", limited.rate * _BITS, "tbf", f"Ethernet's headers included, bursts of {limited.burst_bytes} bytes"
                ),
                Effect("limit", asked.queue, "tbf", f"packets; {_TOGETHER}"),
            )
        if asked.loss:
            if not self._lose(asked.loss):
                return ()
            value = nft_match.threshold(asked.loss) / nft_match.MODULUS
            effects += (Effect("loss", value, "nftables", f"each packet by itself, {_STEP}; {_TOGETHER}"),)
        self._end(root=asked.rate is None, loss=not asked.loss, relay=True)
        return effects

    def _limit(self, rate: int, queue: int) -> Tbf | None:
        """Have a token bucket; None: the kernel has none."""
        longest = self._link().mtu + _HEADERS
        each = max(1, round(rate / _BITS))
        bucket = Tbf(each, max(each // _BURSTS, 2 * longest), min(queue * longest, 2**32 - 1))
        try:
            self._where.socket.ask(tc.add_qdisc(self._index, bucket, self._name, number=_TBF))
            self._root = bucket
            # The queue that it has by itself counts bytes.
            self._where.socket.ask(tc.add_qdisc(self._index, Pfifo(queue), self._name, parent=_TBF + 1))
        except SyscallError as error:
            if error.errno not in _MISSING:
                raise
            return None
        return bucket

    def _lose(self, probability: float) -> bool:
        """Lose packets by nftables, if it can."""
        if self._loss is not None:
            self._loss.change(probability)
            return True
        try:
            self._loss = Loss(self._where.net, self._index, self._link().name, probability)
        except SyscallError as error:
            if error.errno not in LACKING:
                raise
            return False
        return True

    def _by_relay(self, asked: Impairment) -> tuple[Effect, ...]:
        if self._relay is not None and self._link().mtu > self._relay.mtu:  # its ring has no room for what may come now
            self._end(relay=True)
        if self._relay is None:
            try:
                self._relay = Relay(self._where, self._index, self._name, asked)
            except SyscallError as error:
                if error.errno not in _MISSING:
                    raise
                raise Unsupported(
                    f"{', '.join(name for name, _ in asked.asked())} on {self._name}",
                    f"this kernel ({error})",
                    "CONFIG_NET_SCH_NETEM, or NET_SCH_INGRESS, NET_CLS_U32, NET_ACT_MIRRED, VETH and PACKET",
                ) from error
        else:
            self._relay.change(asked)
        self._end(root=True, loss=True)
        return _effects_of_relay(asked)

    def _end(self, *, root: bool = False, loss: bool = False, relay: bool = False) -> None:
        """End backends; those that do nothing are nothing."""
        if relay and self._relay is not None:
            self._relay.close()
            self._relay = None
        if loss and self._loss is not None:
            self._loss.close()
            self._loss = None
        if root and self._root is not None:
            with suppress(ClosedError), suppress_errno(*GONE):
                self._where.socket.ask(tc.delete_qdisc(self._index, self._name))
            self._root = None


def _netem(asked: Impairment) -> Netem:
    rate = 0 if asked.rate is None else max(1, round(asked.rate / _BITS))
    return Netem(
        delay=round(asked.delay * 1e9),
        jitter=round(asked.jitter * 1e9),
        loss=parts(asked.loss),
        duplicate=parts(asked.duplicate),
        corrupt=parts(asked.corrupt),
        reorder=parts(asked.reorder),
        gap=1 if asked.reorder else 0,
        rate=rate or (_IN_ORDER if asked.jitter else 0),
        limit=asked.queue,
    )


def _effects_of_netem(asked: Impairment, netem: Netem) -> tuple[Effect, ...]:
    late = "from the kernel's high-resolution timers"
    return _effects(asked, "netem", rate=netem.rate * _BITS, late=late, unit="packet", together=f"; {_TOGETHER}")


def _effects_of_relay(asked: Impairment) -> tuple[Effect, ...]:
    late = "and what it takes to wake a thread, some 0.1 ms on an idle machine"
    return _effects(asked, "relay", rate=asked.rate or 0, late=late, unit="frame")


def _effects(asked: Impairment, backend: str, *, rate: int, late: str, unit: str, together: str = "") -> tuple[Effect, ...]:
    """Return what a backend does that does everything: in nanoseconds, and in parts of 2^32."""
    by_itself = f"each {unit} by itself, {_STEP}{together}"
    exactly = {
        "delay": late,
        "jitter": "uniform from so much less to so much more; no packet overtakes another",
        "loss": by_itself,
        "duplicate": by_itself,
        "corrupt": f"one bit of a {unit}, {_STEP}",
        "reorder": f"these are not delayed, {_STEP}",
    }
    effects = []
    for name, value in asked.asked():
        if name in exactly:
            rounded = round(value * 1e9) / 1e9 if name in {"delay", "jitter"} else parts(value) / CERTAIN
            effects.append(Effect(name, rounded, backend, exactly[name]))
    if asked.rate:
        effects.append(Effect("rate", rate, backend, "Ethernet's headers included, without bursts"))
    if asked.delay or asked.rate:
        effects.append(Effect("limit", asked.queue, backend, "packets"))
    return tuple(effects)
