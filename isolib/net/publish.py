"""What is to be published, as a value: read and checked before anything is made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from isolib.errors import PlanError
from isolib.net.checks import HIGHEST_PORT, check_address, check_number
from isolib.net.plugs import KINDS, check_path

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from isolib.net.values import AnyAddress

__all__ = ["Path", "Publish", "Wanted", "check_proto", "read_all"]

Path: TypeAlias = "str | os.PathLike[str]"
_Entry: TypeAlias = "Publish | str | tuple[int | Path, int] | tuple[int | Path, int, str]"
Wanted: TypeAlias = "Mapping[int, int] | Mapping[int | Path, int] | Sequence[_Entry]"

_LOCAL: Final = "127.0.0.1"
_WAYS: Final = (None, "kernel", "forwarder")
#: An address, which in brackets may have colons; the ports; a protocol.
_TEXT: Final = re.compile(r"(?:(?:\[([^][]*)]|([^][:]*)):)?([0-9]{1,5}):([0-9]{1,5})(?:/(.*))?", re.ASCII)
_FORMS: Final = "ports as in {8080: 80}, or a list as in ['8080:80', (5353, 53, 'udp'), Publish(80, 80, host='0.0.0.0')]"


@dataclass(frozen=True, slots=True)
class Publish:
    """A port to be published: what `isolib.net.Network.publish` takes, less whose port it is.

    Attributes
    ----------
    host_port
        The port outside; 0: a free one.  Or the path of a unix socket, at which nothing is yet.
    port
        The port inside.
    proto
        "tcp" or "udp".
    host
        The address outside; "0.0.0.0" and "::" are all.
    mode
        The permissions of a unix socket, less those of the umask.
    via
        "kernel", "forwarder", or None: the kernel where it can.

    Raises
    ------
    PlanError
        There is no such port, address, path or way.

    Examples
    --------
    >>> Publish(8080, 80, host="0.0.0.0")
    Publish(host_port=8080, port=80, proto='tcp', host='0.0.0.0', mode=384, via=None)
    >>> Publish.parse("[::1]:5353:53/udp")
    Publish(host_port=5353, port=53, proto='udp', host='::1', mode=384, via=None)
    """

    host_port: int | Path
    port: int
    proto: str = "tcp"
    _: KW_ONLY
    host: str | AnyAddress = _LOCAL
    mode: int = 0o600
    via: Literal["kernel", "forwarder"] | None = None

    def __post_init__(self) -> None:
        check_proto(self.proto)
        if self.via not in _WAYS:
            raise PlanError(f"via={self.via!r}: 'kernel', 'forwarder', or None for the kernel where it can")
        check_number(self.port, "port", 1, HIGHEST_PORT)
        check_number(self.mode, "mode", 0, 0o777)
        if isinstance(self.host_port, int):
            check_number(self.host_port, "host_port", 0, HIGHEST_PORT)
            object.__setattr__(self, "host", str(check_address(self.host, "host")))
            return
        object.__setattr__(self, "host_port", check_path(self.host_port, "host_port"))
        if self.proto != "tcp" or str(self.host) != _LOCAL:
            raise PlanError("host_port: a unix socket leads to a port of TCP, and has a path in place of an address")

    @property
    def path(self) -> str | None:
        """The path of the unix socket, or None."""
        return None if isinstance(self.host_port, int) else str(self.host_port)

    @classmethod
    def parse(cls, text: str) -> Publish:
        """Return what ``[HOST:]HOST_PORT:PORT[/PROTO]`` means: as for ``docker run -p``, but without a host 127.0.0.1.

        An address of IPv6 stands in brackets.

        Raises
        ------
        PlanError
            It is something else.
        """
        given: object = text
        found = _TEXT.fullmatch(given) if isinstance(given, str) else None
        if found is None:
            raise PlanError(f"publish: a text as '8080:80', '127.0.0.1:53:53/udp' or '[::1]:8080:80' is wanted, not {text!r}")
        six, four, outside, inside, proto = found.groups()
        host = next((one for one in (six, four) if one is not None), _LOCAL)
        return cls(int(outside), int(inside), "tcp" if proto is None else proto, host=host)


def read_all(given: Wanted) -> tuple[Publish, ...]:
    """Return what is to be published, in its order.

    Raises
    ------
    PlanError
        One cannot be, or two are at the same place outside.
    """
    entries: object = given
    if isinstance(entries, Mapping):
        entries = [*entries.items()]
    if not isinstance(entries, (list, tuple)):
        raise PlanError(f"publish: {_FORMS} are wanted, not {given!r}")
    found: list[Publish] = []
    for entry in entries:
        try:
            found.append(_read(entry))
        except PlanError as error:
            raise PlanError(f"publish: {entry!r}: {str(error).removeprefix('publish: ')}") from None
    places = [(one.host, one.host_port, one.proto) for one in found if one.host_port != 0]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice is not None:
        raise PlanError(f"publish: {twice[1] if isinstance(twice[1], str) else '{}:{}/{}'.format(*twice)} is given twice")
    return tuple(found)


def _read(entry: object) -> Publish:
    if isinstance(entry, Publish):
        return entry
    if isinstance(entry, str):
        return Publish.parse(entry)
    if isinstance(entry, tuple) and len(entry) in {2, 3}:
        return Publish(*entry)
    raise PlanError(f"{_FORMS} are wanted")


def check_proto(proto: object) -> str:
    """Return "tcp" or "udp", or raise PlanError."""
    if not isinstance(proto, str) or proto not in KINDS:
        raise PlanError(f"proto: {' or '.join(map(repr, KINDS))} is wanted, not {proto!r}")
    return proto
