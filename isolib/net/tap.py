"""Interfaces whose other end is this program: tun for packets, tap for frames (tun(4))."""

from __future__ import annotations

import fcntl
import os
import select
import stat
import struct
from errno import EACCES, EAGAIN, EBUSY, EEXIST, ENODEV, ENOENT, ENXIO, EPERM
from typing import TYPE_CHECKING, Final, TypeVar

from isolib._kernel.handle import Handle
from isolib._kernel.hints import typed
from isolib._kernel.sockets import open_file_in
from isolib._kernel.waiting import Deadline, poll
from isolib.errors import SyscallError, Unsupported, from_errno
from isolib.net import parsing, requests
from isolib.net.carrier import settle_addresses
from isolib.net.checks import check_interfaces, check_mac, check_mtu, check_name
from isolib.net.interface import Interface
from isolib.net.where import Where, check_namespace

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta
    from typing import SupportsFloat

    from isolib._kernel.handle import Fd
    from isolib.net.values import AnyInterface
    from isolib.types import HasFileno

    EndT = TypeVar("EndT", bound="_End")

__all__ = ["Tap", "Tun", "check_device", "new_tap", "new_tun"]

_DEVICE: Final = "/dev/net/tun"

# linux/if_tun.h
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN: Final = 0x0001
_IFF_TAP: Final = 0x0002
_IFF_NO_PI: Final = 0x1000
_IFF_TUN_EXCL: Final = 0x8000
_IFREQ: Final = struct.Struct("16sH22x")
#: The longest packet or frame: an MTU of 65535 and an Ethernet header with a VLAN's tag.
_LONGEST: Final = 65535 + 18

_SET_HINTS: Final = {
    EPERM: "it takes CAP_NET_ADMIN over the namespace, which the owner of its user namespace has",
    EEXIST: "there is a link of this name in the namespace",
}


class _End(Handle):
    """The end of an interface that is this program's; the interface dies with the descriptor.

    `fileno` is readable when something has come, for event loops; it does not block.

    Attributes
    ----------
    interface
        The other end, in its namespace: to look at it and to change it.
    """

    def __init__(self, fd: Fd, interface: Interface) -> None:
        super().__init__(fd)
        self.interface = interface

    def _describe(self) -> str:
        return f"{self.interface.name} index={self.interface.index}"

    @property
    def name(self) -> str:
        """Its name."""
        return self.interface.name

    @property
    def index(self) -> int:
        """Its number in its namespace."""
        return self.interface.index

    def read(self, *, timeout: SupportsFloat | timedelta | None = None) -> bytes | None:
        """Return the next packet (tun) or frame (tap) that somebody sent by the interface.

        Parameters
        ----------
        timeout
            Seconds, or a timedelta; None: for ever.

        Returns
        -------
        bytes or None
            None: nothing came within the time.

        Raises
        ------
        SyscallError
            The interface is gone, with its namespace (EBADFD).
        """
        deadline = Deadline(timeout)
        while poll(self, deadline.milliseconds()) or not deadline.is_over:
            try:
                return os.read(self.fileno(), _LONGEST)
            except BlockingIOError:  # another thread was faster, or it is longer than poll(2) waits
                continue
            except OSError as error:
                raise from_errno("read", self.name, error.errno or 0) from None
        return None

    def write(self, packet: bytes) -> None:
        """Have a packet (tun) or a frame (tap) come in by the interface.

        Raises
        ------
        SyscallError
            EIO: the interface is down; EINVAL: it is neither IPv4 nor IPv6, or shorter than a header.
        """
        while True:
            try:
                os.write(self.fileno(), packet)
            except OSError as error:
                if error.errno != EAGAIN:
                    raise from_errno("write", self.name, error.errno or 0) from None
            else:
                return
            poll(self, None, select.POLLOUT)


class Tun(_End, made_by="isolib.net.new_tun()"):
    """The end of an interface that is this program's, for packets of IPv4 and IPv6."""


class Tap(_End, made_by="isolib.net.new_tap()"):
    """The end of an interface that is this program's, for Ethernet frames."""


@typed("a tun interface")
def new_tun(
    *,
    ns: HasFileno | None = None,
    name: str = "tun0",
    mtu: int | None = None,
    addresses: Sequence[str | AnyInterface] = (),
) -> Tun:
    """Make an interface whose packets this program reads and writes, and bring it up.

    Parameters
    ----------
    ns
        A handle of the namespace that it lies in; None: that of the calling thread.
    name
        At most 15 bytes.
    mtu
        Bytes of the longest packet, 68 to 65535; None: 1500.
    addresses
        Each with its network's prefix: "10.0.0.1/24".

    Returns
    -------
    Tun
        It owns the descriptor, and the descriptor the interface: when it is closed, or this program ends, that is gone.

    Raises
    ------
    PlanError
        An argument cannot work; nothing was done.
    Unsupported
        There is no /dev/net/tun, or this user may not open it.
    SyscallError
        The kernel refused, and nothing is left.  EEXIST: the name is taken.
    ClosedError
        The namespace is closed.

    Notes
    -----
    Packets have no header of tun's own before them (IFF_NO_PI).  The device file is opened in the namespace, by the calling
    thread for the moment of one call, or by a process of the launcher.  Privileges: CAP_NET_ADMIN over the namespace, and to
    read and write /dev/net/tun.  Kernel: CONFIG_TUN.  Source: Documentation/networking/tuntap.rst.

    Examples
    --------
    >>> from isolib import new_netns
    >>> from isolib.net.tap import new_tun
    >>> ns = new_netns()
    >>> with new_tun(ns=ns, addresses=["10.0.0.1/24"]) as tun:
    ...     tun.interface.link().up
    True
    >>> ns.close()
    """
    return _made(Tun, _IFF_TUN, ns=ns, name=name, mtu=mtu, mac=None, addresses=addresses)


@typed("a tap interface")
def new_tap(
    *,
    ns: HasFileno | None = None,
    name: str = "tap0",
    mtu: int | None = None,
    mac: str | bytes | None = None,
    addresses: Sequence[str | AnyInterface] = (),
) -> Tap:
    """Make an interface whose Ethernet frames this program reads and writes, and bring it up; otherwise as `new_tun`.

    Parameters
    ----------
    ns, name, mtu, addresses
        As for `new_tun`.
    mac
        That of the namespace's end; None: one at random.

    Raises
    ------
    PlanError, Unsupported, SyscallError, ClosedError
        As in `new_tun`.

    Notes
    -----
    As for `new_tun`.
    """
    return _made(Tap, _IFF_TAP, ns=ns, name=name, mtu=mtu, mac=mac, addresses=addresses)


def _made(
    cls: type[EndT],
    kind: int,
    *,
    ns: HasFileno | None,
    name: str,
    mtu: int | None,
    mac: str | bytes | None,
    addresses: Sequence[str | AnyInterface],
) -> EndT:
    own = check_name(name, "name")
    attributes = requests.link_attributes(
        mtu=None if mtu is None else check_mtu(mtu), mac=None if mac is None else check_mac(mac, "mac")
    )
    interfaces = check_interfaces(addresses)
    where = Where(check_namespace(ns, "ns"))
    fd = _open(ns)
    try:
        _attach(fd, kind, own)
        interface = Interface(where, parsing.parse_link(where.socket.ask(requests.get_link(own))[0]).index, own)
        where.socket.send(
            requests.set_link(interface.index, own, attributes, up=True),
            *(requests.add_address(address, interface.index, own) for address in interfaces),
        )
        settle_addresses(interface, interfaces)
        return cls._make(fd, interface)
    except BaseException:
        fd.close()
        raise


def _open(ns: HasFileno | None) -> Fd:
    try:
        return open_file_in(ns, _DEVICE, os.O_RDWR | os.O_NONBLOCK)
    except SyscallError as error:
        if error.target != _DEVICE or error.errno not in {ENOENT, ENODEV, ENXIO, EACCES, EPERM}:
            raise
        raise Unsupported("tun and tap interfaces", *_refusal(error.errno)) from error


def check_device(feature: str) -> None:
    """Raise Unsupported for a feature of another program's where this user may not open /dev/net/tun; nothing is made."""
    try:
        os.close(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise Unsupported(feature, *_refusal(error.errno or 0)) from error


def _refusal(errno: int) -> tuple[str, str]:
    if errno == EACCES:
        mode = stat.filemode(os.stat(_DEVICE).st_mode)
        return f"the mode of {_DEVICE}: {mode}", f"chmod 0666 {_DEVICE}, or add this user to its group"
    if errno == EPERM:
        return "the device controller of a cgroup", f"allow {_DEVICE} there (Docker: --device {_DEVICE})"
    if errno == ENOENT:
        return (
            f"{_DEVICE}: there is none; the kernel: perhaps without CONFIG_TUN",
            "modprobe tun, or a /dev that has it (devtmpfs; Docker: --device)",
        )
    return "the kernel: perhaps without CONFIG_TUN", "modprobe tun, or a kernel with CONFIG_TUN"


def _attach(fd: Fd, kind: int, name: str) -> None:
    # Exclusively: else an interface that somebody has left without a program would be taken.
    wanted = _IFREQ.pack(os.fsencode(name), kind | _IFF_NO_PI | _IFF_TUN_EXCL)
    try:
        fcntl.ioctl(fd.fileno(), _TUNSETIFF, wanted)
    except OSError as error:
        errno = EEXIST if error.errno == EBUSY else error.errno or 0
        raise from_errno("ioctl TUNSETIFF", name, errno, _SET_HINTS.get(errno)) from None
