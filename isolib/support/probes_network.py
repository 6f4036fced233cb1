"""Probes of networks: devices, queueing disciplines and firewall tables are made in a network namespace of their own.

Nobody enters it.  Its process hands over a netlink socket, which stays in the namespace that it was made in; the kernel asks
whether who opened it and who uses it may, and the owner of the user namespace may.
"""

from __future__ import annotations

import fcntl
import os
import struct
from errno import ENODEV, ENOENT, EOPNOTSUPP
from functools import partial
from typing import TYPE_CHECKING, Final

from isolib._kernel.netlink import codec, nft, nft_match, tc
from isolib._kernel.netlink.nft import Hook, Scope
from isolib._kernel.netlink.qdiscs import Htb, Netem, Tbf
from isolib._kernel.netlink.socket import NETFILTER, ROUTE, Request
from isolib._kernel.plan import Step
from isolib.errors import from_errno
from isolib.support import refusals
from isolib.support.examination import Probe, explain_device
from isolib.support.refusals import Need, Refusal, Refused

if TYPE_CHECKING:
    from isolib._kernel.netlink.qdiscs import AnyQdisc
    from isolib.errors import SyscallError
    from isolib.support.examination import Examination
    from isolib.support.facts import Facts

_LO: Final = 1

# linux/rtnetlink.h, linux/if_link.h
_NEW_LINK: Final = 16
_IFNAME: Final = 3
_LINK: Final = 5
_LINKINFO: Final = 18
_KIND: Final = 1
_DATA: Final = 2
_VLAN_ID: Final = 1
_VXLAN_ID: Final = 1

_TUNSETIFF: Final = 0x400454CA
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000

#: Its burst is longer than any packet of lo's, else the kernel writes to its log.
_BUCKET: Final = Tbf(rate=1_000_000, burst_bytes=1 << 20, limit_bytes=10_000_000)

#: Each kind's number in the probing namespace.
_INDEX: Final = {"veth": 101, "dummy": 102, "bridge": 103, "macvlan": 104, "ipvlan": 105, "vxlan": 106, "vlan": 107}
_LOWERS: Final = ("veth", "dummy", "bridge")


def _new_link(kind: str, index: int, lower: int = 0, data: bytes = b"") -> Request:
    """Return the request for a network device of a kind; it gets the number and, from it, a name."""
    info = [codec.text(_KIND, kind), *([codec.nested(_DATA, data)] if data else [])]
    attributes = [codec.text(_IFNAME, f"probe{index}"), *([codec.u32(_LINK, lower)] if lower else [])]
    body = struct.pack("=BxHiII", 0, 0, index, 0, 0) + b"".join(attributes) + codec.nested(_LINKINFO, *info)
    return Request(_NEW_LINK, body, codec.CREATE, "RTM_NEWLINK", kind)


def _link(kind: str, exam: Examination, *, data: bytes = b"", stands: bool = False) -> str:
    lower = _new_lower(kind, exam) if stands else 0
    exam.netlink(ROUTE).ask(_new_link(kind, _INDEX[kind], lower, data))
    return ""


def _new_lower(kind: str, exam: Examination) -> int:
    """Make a device for another to stand on, of the first kind that could be made: each takes one for itself alone."""
    lower = next((one for one in _LOWERS if exam.found[one]), None)
    if lower is None:
        by = Refusal("the kernel: no device that it could stand on", "a kernel with veth, dummy or bridge")
        raise Refused(f"{kind} was not tried", by)
    index = _INDEX[kind] + 100
    exam.netlink(ROUTE).ask(_new_link(lower, index))
    return index


def _explain_link(error: SyscallError, need: Need, facts: Facts) -> Refusal:
    if error.op == "RTM_NEWLINK" and error.errno in (EOPNOTSUPP, ENODEV):
        return refusals.without(need, facts)
    return refusals.call(error.op, error.errno, need, facts)


def _qdisc(qdisc: AnyQdisc, exam: Examination) -> str:
    exam.netlink(ROUTE).ask(tc.add_qdisc(_LO, qdisc, "lo"))
    return ""


def _explain_qdisc(error: SyscallError, need: Need, facts: Facts) -> Refusal:
    if error.errno in (ENOENT, EOPNOTSUPP):
        return refusals.without(need, facts)
    return refusals.call(error.op, error.errno, need, facts)


def _nftables(kind: str, exam: Examination) -> str:
    scope = Scope(nft.INET, f"isolib-{kind}")
    requests = [scope.new(owned=kind == "owner")]
    if kind == "masquerade":
        hook = Hook(nft.POSTROUTING, 100, "nat")
        requests += [scope.new_chain("post", hook), scope.add("post", nft_match.masquerade())]
    exam.netlink(NETFILTER).batch(nft.SUBSYSTEM, *requests)
    return ""


def _explain_nft(error: SyscallError, need: Need, facts: Facts) -> Refusal:
    if error.op.startswith("NFT") and error.errno == ENOENT:
        return refusals.without(need, facts)
    return refusals.call(error.op, error.errno, need, facts)


def _tun(exam: Examination) -> str:
    step = Step("OPEN", text=b"/dev/net/tun", flags=os.O_RDWR | os.O_CLOEXEC, what="/dev/net/tun")
    device = exam.handed("tun", step)
    try:
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"probe-tun", _IFF_TUN | _IFF_NO_PI))
    except OSError as error:
        raise from_errno("ioctl TUNSETIFF", "/dev/net/tun", error.errno or 0) from error
    return ""


def _probe(kind: str, option: str, module: str, *, data: bytes = b"", stands: bool = False) -> Probe:
    need = Need(option=option, module=module, capability="CAP_NET_ADMIN")
    return Probe(kind, partial(_link, kind, data=data, stands=stands), need, _explain_link)


def _nft_probe(name: str, kind: str, since: str, option: str, module: str) -> Probe:
    need = Need(since=since, option=option, module=module, capability="CAP_NET_ADMIN")
    return Probe(name, partial(_nftables, kind), need, _explain_nft)


NETWORK: Final = (
    _probe("veth", "CONFIG_VETH", "veth"),
    _probe("dummy", "CONFIG_DUMMY", "dummy"),
    _probe("bridge", "CONFIG_BRIDGE", "bridge"),
    _probe("macvlan", "CONFIG_MACVLAN", "macvlan", stands=True),
    _probe("ipvlan", "CONFIG_IPVLAN", "ipvlan", stands=True),
    _probe("vxlan", "CONFIG_VXLAN", "vxlan", data=codec.u32(_VXLAN_ID, 7)),
    _probe("vlan", "CONFIG_VLAN_8021Q", "8021q", data=codec.u16(_VLAN_ID, 7), stands=True),
    Probe("tun", _tun, Need(option="CONFIG_TUN", module="tun"), explain_device),
    Probe("netem", partial(_qdisc, Netem()), Need("", "CONFIG_NET_SCH_NETEM", "sch_netem"), _explain_qdisc),
    Probe("tbf", partial(_qdisc, _BUCKET), Need("", "CONFIG_NET_SCH_TBF", "sch_tbf"), _explain_qdisc),
    Probe("htb", partial(_qdisc, Htb()), Need("", "CONFIG_NET_SCH_HTB", "sch_htb"), _explain_qdisc),
    _nft_probe("nftables", "table", "3.14", "CONFIG_NF_TABLES_INET", "nf_tables"),
    _nft_probe("nftables owned table", "owner", "5.12", "CONFIG_NF_TABLES_INET", "nf_tables"),
    _nft_probe("nftables masquerade", "masquerade", "5.2", "CONFIG_NFT_MASQ", "nft_masq"),
)
