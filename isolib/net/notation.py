"""The notation of topologies, as ``"web - br0 - db, br0 - r1 - br1 - client"``.  Pure: text in, what it mentions out.

In it spaces, tabs and ``# comments`` mean nothing, and a line feed is as a comma::

    topology  = [ chain ] { ("," | ";" | line feed) [ chain ] }
    chain     = place { cable place }
    cable     = "-" | "-[" subnets "]-"             of as many "-" as one likes
    place     = bridge [ "[" subnets "]" ] | namespace [ "(" addresses ")" ]
    bridge    = "br" and a number
    namespace = any other name of a host: letters, digits and "_", with single "-" and "." between them
    subnets   = one of IPv4, one of IPv6, or one of each
    addresses = any number of them; those and subnets are separated by spaces, commas or both

A "-" between letters is part of a name, any other one is a cable. A place may be mentioned as often as needed, and is the
same one every time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Final, TypeAlias

from isolib.errors import PlanError
from isolib.net.checks import check_address
from isolib.net.pool import parse_subnet
from isolib.types import MAX_HOSTNAME

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolib.net.pool import IPAddress, IPNetwork

__all__ = ["Medium", "Sketch", "is_bridge", "medium_of", "read"]

#: What frames travel in: a bridge, by its name, or a cable between two namespaces, by theirs.
Medium: TypeAlias = str | tuple[str, str]

_TOKEN: Final = re.compile(
    r"""(?P<blank>[ \t\r\f\v]+|\#[^\n]*)
      | (?P<end>[,;\n])
      | (?P<cable>-+(?:\[(?P<label>[^]\n]*)]-+)?)
      | (?P<name>[A-Za-z0-9_]+(?:[.-][A-Za-z0-9_]+)*)
      | \[(?P<subnets>[^]\n]*)]
      | \((?P<addresses>[^)\n]*)\)""",
    re.VERBOSE,
)
_BRIDGE: Final = re.compile(r"br[0-9]+")
_JOINED: Final = re.compile(r"(?:^|-)br[0-9]+(?:-|$)")
_NUMBER: Final = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
_SEPARATORS: Final = re.compile(r"[\s,]+")
LONGEST_LABEL: Final = 63
"""Characters of a part of a host name (RFC 1035, 2.3.4)."""
LONGEST_INTERFACE: Final = 15
"""Characters of an interface's name (netdevice(7): IFNAMSIZ counts the closing NUL)."""


def is_bridge(name: str) -> bool:
    """Return whether a name is one of a bridge: ``br0``, ``br12``."""
    return _BRIDGE.fullmatch(name) is not None


def medium_of(left: str, right: str) -> Medium:
    """Return what frames travel in over a cable between two places."""
    return left if is_bridge(left) else right if is_bridge(right) else (left, right)


@dataclass(slots=True)
class Sketch:
    """What a topology mentions, each in the order of its first mention.

    Attributes
    ----------
    places
        The names of namespaces and bridges.
    cables
        The names at both ends, as they stand there.
    media
        The bridges, and the cables that lead to none.
    subnets
        Those that are given, by medium.
    addresses
        Those that are given, by namespace.
    """

    places: list[str] = field(default_factory=list)
    cables: list[tuple[str, str]] = field(default_factory=list)
    media: list[Medium] = field(default_factory=list)
    subnets: dict[Medium, list[IPNetwork]] = field(default_factory=dict)
    addresses: dict[str, list[IPAddress]] = field(default_factory=dict)


def read(text: str) -> Sketch:
    """Return what a topology mentions.

    Raises
    ------
    PlanError
        It does not follow the notation, connects a place with itself, or the same two places twice.
    """
    if not isinstance(text, str):
        raise PlanError(f"topology: it is a text as 'web - br0 - db', not {text!r}")
    reader = _Reader(text)
    tokens: list[re.Match[str]] = []
    for token in _tokens(text):
        if token.lastgroup == "end":
            reader.read_chain(tokens)
            tokens = []
        elif token.lastgroup != "blank":
            tokens.append(token)
    reader.read_chain(tokens)
    reader.check()
    return reader.sketch


def _tokens(text: str) -> Iterator[re.Match[str]]:
    position = 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            raise PlanError(f"topology: {text[position]!r}{_after(text, position)}: {_advice(text[position])}")
        yield token
        position = token.end()


def _after(text: str, position: int) -> str:
    """Return where in the text something is, in words."""
    said = text[:position].rpartition("\n")[2].strip()
    return f" after {said!r}" if said else ""


def _advice(character: str) -> str:
    if character in "([":
        return "it is not closed"
    if character in ")]":
        return "it was not opened"
    return "names are made of ASCII letters, digits and '_', with single '-' and '.' between them"


class _Reader:
    """What has been read so far."""

    def __init__(self, text: str) -> None:
        self.sketch = Sketch()
        self._text = text
        self._by_folded: dict[str, str] = {}
        self._pairs: set[frozenset[str]] = set()

    def read_chain(self, tokens: list[re.Match[str]]) -> None:
        place: str | None = None
        cable: re.Match[str] | None = None
        for token in tokens:
            where = _after(self._text, token.start())
            if token.lastgroup == "name":
                if place is not None and cable is None:
                    raise PlanError(f"topology: {token[0]!r}{where}: between two places is a '-' or a ','")
                self._meet(token[0])
                if place is not None and cable is not None:
                    self._connect(place, token[0], cable)
                place, cable = token[0], None
            elif place is None or cable is not None:
                raise PlanError(f"topology: {token[0]!r}{where}: the name of a place is missing before it")
            elif token.lastgroup == "cable":
                cable = token
            else:
                self._annotate(place, token)
        if cable is not None:
            raise PlanError(f"topology: {cable[0]!r}{_after(self._text, cable.start())} leads to no place")

    def check(self) -> None:
        """Refuse what can only be seen at the end."""
        if not self.sketch.places:
            raise PlanError(f"topology: {self._text!r} mentions no place")
        connected = set(chain.from_iterable(self.sketch.cables))
        for name in self.sketch.places:
            if "-" in name and name not in connected:
                raise PlanError(
                    f"topology: {name!r} is one name, and no cable leads there: put spaces around the '-' of a cable"
                )

    def _meet(self, name: str) -> None:
        known = self._by_folded.get(name.lower())
        if known == name:
            return
        if known is not None:
            raise PlanError(f"topology: {known!r} and {name!r}: host names know no capitals, so these two are one")
        self._by_folded[name.lower()] = name
        self.sketch.places.append(name)
        if is_bridge(name):
            if len(name) > LONGEST_INTERFACE:
                raise PlanError(f"topology: {name!r} is longer than {LONGEST_INTERFACE} characters, the most for an interface")
            self.sketch.media.append(name)
        elif _JOINED.search(name):
            raise PlanError(f"topology: {name!r} is one name: put spaces around the '-' of a cable")
        elif len(name) > MAX_HOSTNAME:
            raise PlanError(f"topology: {name!r} is longer than {MAX_HOSTNAME} characters, the most for a host")
        elif max(map(len, name.split("."))) > LONGEST_LABEL:
            raise PlanError(f"topology: {name!r} has more than {LONGEST_LABEL} characters between dots, the most for a host")
        elif _NUMBER.fullmatch(name.rpartition(".")[2]):
            raise PlanError(f"topology: {name!r} ends in a number, and programs would take it for an address")
        elif name.lower() == "localhost":
            raise PlanError(f"topology: {name!r} is what every host calls itself")

    def _connect(self, left: str, right: str, cable: re.Match[str]) -> None:
        if left == right:
            raise PlanError(f"topology: '{left} {cable[0]} {right}' connects {left!r} with itself")
        if frozenset((left, right)) in self._pairs:
            raise PlanError(f"topology: '{left} {cable[0]} {right}' is a second cable between the two")
        self._pairs.add(frozenset((left, right)))
        self.sketch.cables.append((left, right))
        medium = medium_of(left, right)
        if isinstance(medium, tuple):
            self.sketch.media.append(medium)
        if cable["label"] is not None:
            self._give_subnets(medium, cable["label"], f"'{left} {cable[0]} {right}'")

    def _annotate(self, place: str, token: re.Match[str]) -> None:
        what = f"'{place}{token[0]}'"
        if token.lastgroup == "subnets":
            if not is_bridge(place):
                raise PlanError(
                    f"topology: {what}: a namespace has addresses in '()'; bridges and cables, as 'a -[...]- b', have subnets"
                )
            self._give_subnets(place, token["subnets"], what)
        elif is_bridge(place):
            raise PlanError(f"topology: {what}: a bridge has no address here, but a subnet in '[]'")
        else:
            given = [check_address(word, f"topology: {what}") for word in _words(token["addresses"], what)]
            self.sketch.addresses.setdefault(place, []).extend(given)

    def _give_subnets(self, medium: Medium, text: str, what: str) -> None:
        given = [parse_subnet(word, f"topology: {what}") for word in _words(text, what)]
        self.sketch.subnets.setdefault(medium, []).extend(given)


def _words(text: str, what: str) -> list[str]:
    words = [word for word in _SEPARATORS.split(text) if word]
    if not words:
        raise PlanError(f"topology: {what}: there is nothing in the brackets")
    return words
