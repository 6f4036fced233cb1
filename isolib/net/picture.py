"""What a network looks like: as an SVG, a card for a notebook, text, and for Graphviz.  Pure: values in, text out."""

from __future__ import annotations

import html
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from isolib.errors import PlanError
from isolib.net.drawing import draw
from isolib.net.layout import clean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolib.net.wiring import Wiring

__all__ = ["Box", "Cable", "Kind", "Picture", "Plug", "picture_of"]

Kind: TypeAlias = Literal["namespace", "bridge", "host"]

_PLURAL: Final[dict[Kind, str]] = {"namespace": "namespaces", "bridge": "bridges", "host": "hosts"}


@dataclass(frozen=True, slots=True)
class Plug:
    """An interface in a picture.

    Attributes
    ----------
    name
        As ``"eth0"``.
    addresses
        As ``"10.77.0.2/24"``, each on a line of its own.
    notes
        What is out of the ordinary, as ``"delay 20 ms"``, each on a line of its own in another colour.
    up
        Whether it is up; if not, its cable is dashed.
    """

    name: str
    addresses: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    up: bool = True


@dataclass(frozen=True, slots=True)
class Box:
    """A namespace, a bridge or a host in a picture.

    Attributes
    ----------
    name
        By which cables lead there, so no other box has it.
    kind
        ``"namespace"``, ``"bridge"`` or ``"host"``.
    plugs
        Its interfaces. Those of a bridge need not be there, and of them only the state is shown.
    notes
        What else is to be said, as the subnet of a bridge.
    label
        What is shown as its name, where that is another.
    """

    name: str
    kind: Kind = "namespace"
    plugs: tuple[Plug, ...] = ()
    notes: tuple[str, ...] = ()
    label: str = ""

    @property
    def title(self) -> str:
        """What is shown as its name, on one line."""
        return clean(self.label or self.name)

    def plug(self, name: str) -> Plug | None:
        """Return the interface of a name."""
        return next((plug for plug in self.plugs if plug.name == name), None)


@dataclass(frozen=True, slots=True)
class Cable:
    """A cable in a picture.

    Attributes
    ----------
    a, b
        Its ends: the name of a box and of an interface there. At a bridge that may be any name.
    """

    a: tuple[str, str]
    b: tuple[str, str]


@dataclass(frozen=True)
class Picture:
    """A network as it is shown.  In a notebook it is a drawing, and printed it is text.

    Names, addresses and notes may hold anything: whatever is no printable character is shown as in a Python string.

    Attributes
    ----------
    boxes
        Namespaces, bridges and hosts. Of each kind those that stand first are shown first, as far as the cables allow.
    cables
        What connects them.
    title
        What it is called.

    Raises
    ------
    PlanError
        Two boxes have the same name, or a cable ends where nothing is.

    Examples
    --------
    >>> web = Box("web", plugs=(Plug("eth0", ("10.77.0.2/24",), ("loss 1 %",)),))
    >>> db = Box("db", plugs=(Plug("eth0", ("10.77.0.3/24",), up=False),))
    >>> bridge = Box("br0", "bridge", notes=("10.77.0.0/24",))
    >>> print(Picture((bridge, web, db), (Cable(("web", "eth0"), ("br0", "")), Cable(("db", "eth0"), ("br0", "")))))
    br0  10.77.0.0/24
    ├─ web  eth0  10.77.0.2/24  loss 1 %
    └─ db   eth0  10.77.0.3/24  down
    """

    boxes: tuple[Box, ...]
    cables: tuple[Cable, ...] = ()
    title: str = ""

    def __post_init__(self) -> None:
        names = self._by_name
        if len(names) < len(self.boxes):
            twice = Counter(box.name for box in self.boxes).most_common(1)[0][0]
            raise PlanError(f"picture: two boxes are called {twice!r}")
        for cable in self.cables:
            for name, plug in (cable.a, cable.b):
                if name not in names:
                    raise PlanError(f"picture: a cable leads to {name!r}, and there is no such box")
                if names[name].kind != "bridge" and names[name].plug(plug) is None:
                    raise PlanError(f"picture: a cable leads to {plug!r} of {name!r}, and there is no such interface")

    def box(self, name: str) -> Box:
        """Return the box of a name."""
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, Box]:
        return {box.name: box for box in self.boxes}

    def is_up(self, cable: Cable) -> bool:
        """Return whether both ends of a cable are up."""
        plugs = (self.box(name).plug(plug) for name, plug in (cable.a, cable.b))
        return all(plug is None or plug.up for plug in plugs)

    def summary(self) -> str:
        """Return how many of each there are, in words."""
        counts = Counter(box.kind for box in self.boxes)
        parts = [f"{counts[kind]} {kind if counts[kind] == 1 else _PLURAL[kind]}" for kind in _PLURAL if counts[kind]]
        parts.append(f"{len(self.cables)} {'cable' if len(self.cables) == 1 else 'cables'}")
        return ", ".join(parts)

    def svg(self) -> str:
        """Return a drawing: an SVG element to be put into a page, or into a file of its own.

        It has no scripts and refers to nothing outside. Lines and texts have the colour of the text around it, so that it can
        be read on light and on dark pages; those of a file of its own are light where the reader prefers dark pages.
        """
        return draw(self)

    def to_dot(self) -> str:
        """Return a graph in the language of Graphviz, for its programs: ``neato -Tsvg``."""
        numbers = {box.name: f"n{n}" for n, box in enumerate(self.boxes)}
        lines = ["graph {", f"  label={_dot(clean(self.title))};", '  node [shape=box fontname="monospace" fontsize=10];']
        for box in self.boxes:
            said = [box.title, *map(clean, box.notes)]
            if box.kind != "bridge":
                said += ["  ".join(_words(plug)) for plug in box.plugs]
            style = {"namespace": "", "bridge": " style=rounded", "host": " peripheries=2"}[box.kind]
            lines.append(f"  {numbers[box.name]} [label={_dot(*said)}{style}];")
        for cable in self.cables:
            style = "" if self.is_up(cable) else " style=dashed"
            ends = f"taillabel={_dot(clean(cable.a[1]))} headlabel={_dot(clean(cable.b[1]))}"
            lines.append(f"  {numbers[cable.a[0]]} -- {numbers[cable.b[0]]} [{ends} fontsize=8{style}];")
        return "\n".join([*lines, "}", ""])

    def text(self) -> str:
        """Return the network as text: each bridge and what is connected with it, other cables, and what has none."""
        lines = [clean(self.title)] if self.title else []
        for bridge in (box for box in self.boxes if box.kind == "bridge"):
            lines.append("  ".join([bridge.title, *map(clean, bridge.notes)]))
            lines += _branches([row for cable in self.cables if (row := self._other_end(cable, bridge))])
        for cable in self.cables:
            ends = [(self.box(name), plug) for name, plug in (cable.a, cable.b)]
            if all(box.kind != "bridge" for box, _ in ends):
                lines.append(" ── ".join("  ".join(_row(*end)) for end in ends))
        connected = {name for cable in self.cables for name, _ in (cable.a, cable.b)}
        for box in self.boxes:
            if box.name not in connected and box.kind != "bridge":
                lines.append("  ".join([box.title, *map(clean, box.notes)]))
        return "\n".join(lines)

    def _other_end(self, cable: Cable, box: Box) -> list[str]:
        for here, there in ((cable.a, cable.b), (cable.b, cable.a)):
            if here[0] == box.name:
                return _row(self.box(there[0]), there[1])
        return []

    def html(self) -> str:
        """Return a card for a page: the title, the drawing, and the same as text."""
        title = f"<strong>{html.escape(clean(self.title))}</strong> " if self.title else ""
        caption = f'{title}<span style="opacity:.7">{self.summary()}</span>'
        text = html.escape(self.text())
        return (
            '<figure style="margin:0;color:inherit;background:none">'
            f'<figcaption style="margin:0 0 .5em">{caption}</figcaption>'
            f'<div style="overflow-x:auto">{self.svg()}</div>'
            f'<details><summary>As text</summary><pre style="color:inherit;background:none">{text}</pre></details></figure>'
        )

    __str__ = text

    def _repr_html_(self) -> str:
        return self.html()


def _words(plug: Plug) -> Iterator[str]:
    yield clean(plug.name)
    yield from map(clean, plug.addresses)
    if not plug.up:
        yield "down"
    yield from map(clean, plug.notes)


def _row(box: Box, name: str) -> list[str]:
    """Return a box, one of its interfaces and what is said of that."""
    plug = box.plug(name)
    if box.kind == "bridge" or plug is None:
        return [box.title]
    return [box.title, *_words(plug), *map(clean, box.notes)]


def _branches(rows: list[list[str]]) -> Iterator[str]:
    """Yield rows as branches of a tree; the names of boxes and of interfaces are columns."""
    widths = [max((len(row[column]) for row in rows if len(row) > column), default=0) for column in (0, 1)]
    for number, row in enumerate(rows, 1):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)] + row[2:]
        yield f"{'└─' if number == len(rows) else '├─'} {'  '.join(cells)}".rstrip()


def _dot(*lines: str) -> str:
    """Return a quoted label of lines, in which no escape and no entity of Graphviz's is left."""
    safe = (line.replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"') for line in lines)
    return '"' + "\\n".join(safe) + '"'


def picture_of(wiring: Wiring, title: str = "") -> Picture:
    """Return the picture of a topology.

    Examples
    --------
    >>> from isolib.net.wiring import wire
    >>> print(picture_of(wire("web - br0 - db, db - admin")))
    br0  10.77.0.0/24
    ├─ web  eth0  10.77.0.1/24
    └─ db   eth0  10.77.0.2/24
    db  eth1  10.77.1.1/24 ── admin  eth0  10.77.1.2/24
    """
    boxes = [Box(name, "bridge", notes=tuple(map(str, one.subnets))) for one in wiring.segments for name in one.bridges]
    boxes += (
        Box(node.name, plugs=tuple(Plug(one.name, tuple(map(str, one.addresses))) for one in node.ports))
        for node in wiring.nodes
    )
    cables = (Cable((each.a.place, each.a.port), (each.b.place, each.b.port)) for each in wiring.cables)
    return Picture(tuple(boxes), tuple(cables), title)
