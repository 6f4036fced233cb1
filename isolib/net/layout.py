"""Where everything stands in the picture of a network: hosts above, bridges in a row, namespaces below them.  Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple
from unicodedata import east_asian_width

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolib.net.picture import Box, Cable, Picture

__all__ = ["BAR", "LINE", "PAD", "Frame", "Label", "Layout", "Route", "clean"]

# All lengths are in pixels.
GAP: Final = 26
"""Between boxes that stand side by side."""
WIRE: Final = 84
"""The same, where a cable leads from one to the other."""
STEM: Final = 18
"""How far a cable leads straight away from a box before it may turn."""
LANE: Final = 11
"""Between cables that run beside each other, and between those that end beside each other."""
PAD: Final = 10
LINE: Final = 15
"""The height of a line of text."""
BAR: Final = 34
"""The height of a bridge."""
CHARACTER: Final = 6.7
"""The width of a character in the small fixed-width font."""
CAPITAL: Final = 8.2
"""The width of a character in the font of names, at most."""
NARROWEST: Final = 76
LONGEST: Final = 40
"""How many characters of a text are shown. All of it is in what a pointer brings up."""
IN_A_ROW: Final = 8
"""How many namespaces that have nothing but one bridge stand side by side; more of them stand in a block."""
_ROUNDS: Final = 60
"""How often routers are moved to the middle of their neighbours."""


def clean(text: str) -> str:
    """Return text on one line that no terminal and no XML parser stumbles over: a name may come from anywhere."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _columns(text: str) -> int:
    """Return how many columns of a fixed-width font a text takes."""
    return sum(2 if east_asian_width(c) in "WF" else 1 for c in text)


class Label(NamedTuple):
    """The name of an interface beside its cable."""

    text: str
    x: float
    y: float
    leftward: bool


@dataclass(eq=False, slots=True)
class Frame:
    """A box with its texts, and where it stands.

    Attributes
    ----------
    title
        Its name.
    lines
        What stands below it, or at a bridge beside it; each with whether it is out of the ordinary.
    gutter
        In a block, where the cable runs that all of its column share.
    """

    box: Box
    title: str = ""
    lines: list[tuple[str, bool]] = field(default_factory=list)
    width: float = 0
    height: float = 0
    x: float = 0
    y: float = 0
    gutter: float | None = None

    def __post_init__(self) -> None:
        self.title = _short(self.box.title)
        self.lines = [(_short(clean(note)), False) for note in self.box.notes]
        if self.box.kind == "bridge":
            self.lines = [(_short(" · ".join(text for text, _ in self.lines)), False)] if self.lines else []
            beside = sum(CHARACTER * (2 + _columns(text)) for text, _ in self.lines)
            self.width = max(NARROWEST, CAPITAL * _columns(self.title) + beside + 2 * PAD)
            self.height = BAR
            return
        for plug in self.box.plugs:
            name = clean(plug.name)
            first, *more = map(clean, plug.addresses or ("",))
            self.lines.append((_short(f"{name} {first}".rstrip()), False))
            self.lines += [(_short(f"{' ' * (len(name) + 1)}{address}"), False) for address in more]
            self.lines += [(_short(f"  {clean(text)}"), True) for text in (*([] if plug.up else ["down"]), *plug.notes)]
        widths = [CAPITAL * _columns(self.title), *(CHARACTER * _columns(text) for text, _ in self.lines)]
        self.width = max(NARROWEST, max(widths) + 2 * PAD)
        self.height = 2 * PAD + LINE * (1 + len(self.lines))

    @property
    def right(self) -> float:
        """Its right edge."""
        return self.x + self.width

    @property
    def bottom(self) -> float:
        """Its lower edge."""
        return self.y + self.height

    @property
    def middle(self) -> float:
        """The middle between its left and its right edge."""
        return self.x + self.width / 2

    @property
    def is_bridge(self) -> bool:
        """Whether it is a bridge."""
        return self.box.kind == "bridge"

    @property
    def is_host(self) -> bool:
        """Whether it is a host."""
        return self.box.kind == "host"


@dataclass(eq=False, slots=True)
class Route:
    """A cable, and how it runs.

    Attributes
    ----------
    ends
        The frames at its ends, the upper or left one first.
    plugs
        The names of the interfaces there.
    zone
        ``"above"`` the bridges, ``"between"`` them and the namespaces, ``"below"`` those, or at the ``"side"`` of both ends.
    xs
        Where its ends are.
    lane
        In which lane of its zone it crosses from one to the other; None if it leads straight.
    points
        The corners of the line.
    """

    cable: Cable
    ends: tuple[Frame, Frame]
    plugs: tuple[str, str]
    zone: str
    xs: list[float] = field(default_factory=lambda: [0.0, 0.0])
    lane: int | None = None
    points: list[tuple[float, float]] = field(default_factory=list)

    @property
    def level(self) -> bool:
        """Whether both ends are at the same height, so that no straight line connects them."""
        a, b = self.ends
        return self.zone == "below" or a.box.kind == b.box.kind

    def from_bottom(self, n: int) -> bool:
        """Return whether an end is at the lower edge of its box."""
        return self.zone == "below" or self.ends[n].is_host or (self.zone == "between" and self.ends[n].is_bridge)


class Layout:
    """The places of everything in a picture.

    Attributes
    ----------
    frames
        The boxes.
    routes
        The cables.
    labels
        The names of interfaces, at boxes that have several.
    left, right, bottom
        The edges of all that; the upper one is 0.
    """

    def __init__(self, picture: Picture) -> None:
        self.frames = [Frame(box) for box in picture.boxes]
        self._hosts = [frame for frame in self.frames if frame.is_host]
        self._bridges = [frame for frame in self.frames if frame.is_bridge]
        self._spaces = [frame for frame in self.frames if not frame.is_host and not frame.is_bridge]
        self._rank = {frame: n for n, frame in enumerate([*self._hosts, *self._bridges, *self._spaces])}
        by_name = {frame.box.name: frame for frame in self.frames}
        self._neighbours: dict[Frame, list[Frame]] = {frame: [] for frame in self.frames}
        for cable in picture.cables:
            a, b = by_name[cable.a[0]], by_name[cable.b[0]]
            self._neighbours[a].append(b)
            self._neighbours[b].append(a)
        row = self._arrange()
        self.routes = self._classify(picture, by_name, row)
        self._ends: dict[Frame, list[tuple[Route, int]]] = {frame: [] for frame in self.frames}
        for route in self.routes:
            for n in (0, 1):
                self._ends[route.ends[n]].append((route, n))
        #: Where the bars of bridges begin at the earliest.
        self._starts: dict[Frame, float] = {}
        self._set_columns(row)
        for space in self._spaces:
            self._spread(space, "above", "between")
            self._spread(space, "below")
        self._set_bars()
        self._set_hosts()
        self._attach()
        lanes = {zone: self._set_lanes(zone) for zone in ("above", "between", "below")}
        self._set_heights(lanes)
        self._draw_lines()
        self.labels = list(self._name_plugs())
        xs = [x for route in self.routes for x, _ in route.points]
        self.left = min([0.0, *xs, *(frame.x for frame in self.frames)])
        self.right = max([0.0, *xs, *(frame.right for frame in self.frames)])

    def _arrange(self) -> list[list[Frame]]:
        """Return the namespaces from left to right, where those that stand in a block are one item."""
        singles: dict[Frame, list[Frame]] = {bridge: [] for bridge in self._bridges}
        for space in self._spaces:
            if (bridge := self._only(space)) is not None:
                singles[bridge].append(space)
        blocks = {id(frame): block for block in singles.values() if len(block) > IN_A_ROW for frame in block}
        position = self._positions()
        row = []
        for space in sorted(self._spaces, key=lambda space: (position[space], self._rank[space])):
            block = blocks.get(id(space), [space])
            if space is block[0]:
                row.append(block)
        return row

    def _positions(self) -> dict[Frame, float]:
        """Return where along the bridges each namespace belongs: in the middle of its neighbours, or behind all bridges."""
        position = {frame: float(n) for n, frame in enumerate([*self._bridges, *self._spaces])}
        moving: dict[Frame, None] = {}
        edge = list(self._bridges)
        while edge:
            found = {near: None for frame in edge for near in self._neighbours[frame] if near in position}
            edge = [frame for frame in found if not frame.is_bridge and frame not in moving]
            moving |= dict.fromkeys(edge)
        near = {frame: [one for one in self._neighbours[frame] if one in position] for frame in moving}
        for frame in moving:
            position[frame] = min(position[one] for one in near[frame])
        for _ in range(_ROUNDS):
            for frame, others in near.items():
                position[frame] = sum(position[one] for one in others) / len(others)
        return {frame: round(at, 6) for frame, at in position.items()}

    def _classify(self, picture: Picture, by_name: dict[str, Frame], row: list[list[Frame]]) -> list[Route]:
        # Which pairs a cable can connect side by side; one cable each.
        beside = {(a[0], b[0]) for a, b in pairwise(row) if len(a) == len(b) == 1} | set(pairwise(self._bridges))
        order = {frame: n for n, frame in enumerate([*self._hosts, *self._bridges, *(one for item in row for one in item)])}
        routes = []
        for cable in picture.cables:
            (a, a_plug), (b, b_plug) = sorted(
                ((by_name[name], plug) for name, plug in (cable.a, cable.b)),
                key=lambda end: order[end[0]],
            )
            if a.is_host:
                zone = "above"
            elif (a, b) in beside:
                beside.remove((a, b))
                zone = "side"
            elif b.is_bridge:
                zone = "above"
            else:
                zone = "between" if a.is_bridge else "below"
            routes.append(Route(cable, (a, b), (clean(a_plug), clean(b_plug)), zone))
        return routes

    def _set_columns(self, row: list[list[Frame]]) -> None:
        linked = {route.ends for route in self.routes if route.zone == "side"}
        starts = self._starts
        x = 0.0
        for n, item in enumerate(row):
            if n:
                x += WIRE if (row[n - 1][0], item[0]) in linked else GAP
            if (bridge := self._only(item[0])) is not None and bridge not in starts:
                x = starts[bridge] = self._pass_bare(bridge, x)
            if len(item) > 1:
                x = self._set_block(item, x)
            else:
                item[0].x = x
                x = item[0].right
            if bridge is not None and (n + 1 == len(row) or self._only(row[n + 1][0]) is not bridge):
                x = max(x, starts[bridge] + bridge.width)

    def _pass_bare(self, bridge: Frame, x: float) -> float:
        """Leave room for the bridges before one below which nothing stands."""
        for other in self._bridges[: self._bridges.index(bridge)]:
            if other not in self._starts and all(near.is_bridge or near.is_host for near in self._neighbours[other]):
                self._starts[other] = x
                x += other.width + WIRE
        return x

    def _only(self, frame: Frame) -> Frame | None:
        """Return the bridge that is all that a namespace is connected with."""
        near = self._neighbours[frame]
        return near[0] if len(near) == 1 and near[0].is_bridge and not frame.is_host and not frame.is_bridge else None

    def _set_block(self, frames: list[Frame], x: float) -> float:
        """Place many namespaces in rows; each column has one cable at its left, from which it goes to each of them."""
        columns = max(IN_A_ROW, math.ceil(math.sqrt(1.5 * len(frames))))
        width = max(frame.width for frame in frames)
        y = 0.0
        for start in range(0, len(frames), columns):
            line = frames[start : start + columns]
            for n, frame in enumerate(line):
                frame.gutter = x + n * (width + GAP)
                frame.x, frame.y, frame.width = frame.gutter + LANE, y, width
            y += max(frame.height for frame in line) + LANE
        return x + columns * (width + GAP) - GAP + LANE

    def _spread(self, frame: Frame, *zones: str) -> None:
        """Space out the cables at one edge of a box, in the order of where they lead."""
        ends = [(route, n) for route, n in self._ends[frame] if route.zone in zones]
        ends.sort(key=lambda end: (end[0].ends[1 - end[1]].x, self._rank[end[0].ends[1 - end[1]]]))
        for k, (route, n) in enumerate(ends, 1):
            route.xs[n] = frame.x + frame.width * k / (len(ends) + 1) if frame.gutter is None else frame.gutter

    def _set_bars(self) -> None:
        """Let bridges reach as far as what is connected with them alone, and then further where others are in reach."""
        linked = {route.ends for route in self.routes if route.zone == "side"}
        gaps = [WIRE / 2 if pair in linked else GAP / 2 for pair in pairwise(self._bridges)]
        xs = {one: [route.xs[1] for route, _ in self._ends[one] if route.zone == "between"] for one in self._bridges}
        cursor = -math.inf
        for n, bridge in enumerate(self._bridges):
            own = [frame for frame in self._neighbours[bridge] if self._only(frame) is bridge]
            if own:
                first = min(frame.x if frame.gutter is None else frame.gutter - LANE for frame in own)
                last = max(frame.right for frame in own)
            else:
                first = last = (
                    sum(xs[bridge]) / len(xs[bridge]) - bridge.width / 2
                    if xs[bridge]
                    else self._starts.get(bridge, max(cursor, 0))
                )
            bridge.x = max(first, cursor + (gaps[n - 1] if n else 0))
            bridge.width = max(last - bridge.x, bridge.width)
            cursor = bridge.right
        for n, bridge in enumerate(self._bridges):
            before = self._bridges[n - 1].right + gaps[n - 1] if n else -math.inf
            after = self._bridges[n + 1].x - gaps[n] if n + 1 < len(self._bridges) else math.inf
            left = min([bridge.x, *(x - LANE for x in xs[bridge] if x - LANE >= before)])
            right = max([bridge.right, *(x + LANE for x in xs[bridge] if x + LANE <= after)])
            bridge.x, bridge.width = left, right - left

    def _set_hosts(self) -> None:
        cursor = -math.inf
        for host in self._hosts:
            near = [frame.middle for frame in self._neighbours[host] if not frame.is_host] or [0.0]
            host.x = max(sum(near) / len(near) - host.width / 2, cursor + GAP)
            cursor = host.right
        for host in self._hosts:
            self._spread(host, "above")

    def _attach(self) -> None:
        """Find places at the bridges: straight above or below where cables come from, and else as near as there is room."""
        used: dict[tuple[Frame, str], list[float]] = {}
        ends = [(route, n) for bridge in self._bridges for route, n in self._ends[bridge] if route.zone in {"above", "between"}]
        turning = []
        for route, n in ends:
            bridge, x = route.ends[n], route.xs[1 - n]
            if not route.ends[1 - n].is_bridge and bridge.x < x < bridge.right:
                route.xs[n] = x
                used.setdefault((bridge, route.zone), []).append(x)
            else:
                turning.append((route, n))
        for route, n in turning:
            bridge, other = route.ends[n], route.ends[1 - n]
            taken = used.setdefault((bridge, route.zone), [])
            step = LANE if other.middle < bridge.middle else -LANE
            x = bridge.x + LANE if step > 0 else bridge.right - LANE
            while any(abs(x - one) < LANE for one in taken) and bridge.x < x + step < bridge.right:
                x += step
            route.xs[n] = x
            taken.append(x)

    def _set_lanes(self, zone: str) -> int:
        """Give each cable that has to cross over a lane in which it meets no other; return how many there are."""
        lanes: list[list[tuple[float, float]]] = []
        crossing = [route for route in self.routes if route.zone == zone and (route.level or route.xs[0] != route.xs[1])]
        for route in sorted(crossing, key=lambda route: abs(route.xs[0] - route.xs[1])):
            first, last = min(route.xs) - LANE, max(route.xs) + LANE
            route.lane = next((n for n, lane in enumerate(lanes) if all(last <= a or b <= first for a, b in lane)), len(lanes))
            if route.lane == len(lanes):
                lanes.append([])
            lanes[route.lane].append((first, last))
        return len(lanes)

    def _set_heights(self, lanes: dict[str, int]) -> None:
        y = max((host.height for host in self._hosts), default=0.0)
        for host in self._hosts:
            host.y = y - host.height
        if self._hosts and len(self._hosts) < len(self.frames):
            y += STEM
        if lanes["above"] or (self._hosts and len(self._hosts) < len(self.frames)):
            y += STEM + LANE * max(0, lanes["above"] - 1)
        self._bases = {"above": y}
        for bridge in self._bridges:
            bridge.y = y
        if self._bridges:
            y += BAR
            self._bases["between"] = y
            y += 2 * STEM + LANE * max(0, lanes["between"] - 1) if self._spaces else 0
        for space in self._spaces:
            space.y += y
        self.bottom = self._bases["below"] = max([y, *(frame.bottom for frame in self.frames)])
        if lanes["below"]:
            self.bottom += STEM + LANE * (lanes["below"] - 1)

    def _draw_lines(self) -> None:
        for route in self.routes:
            a, b = route.ends
            if route.zone == "side":
                y = a.y + (BAR / 2 if a.is_bridge else PAD + LINE / 2)
                route.points = [(a.right, y), (b.x, y)]
                continue
            ends = [(route.xs[n], route.ends[n].bottom if route.from_bottom(n) else route.ends[n].y) for n in (0, 1)]
            if b.gutter is not None:
                y = b.y + PAD + LINE / 2
                ends[1:] = [(b.gutter, y), (b.x, y)]
            if route.lane is not None:
                away = STEM + LANE * route.lane
                y = self._bases[route.zone] + (-away if route.zone == "above" else away)
                ends[1:1] = [(route.xs[0], y), (route.xs[1], y)]
            route.points = ends

    def _name_plugs(self) -> Iterator[Label]:
        for frame in self.frames:
            if frame.is_bridge or len(self._ends[frame]) == 1:
                continue
            for route, n in self._ends[frame]:
                x, y = route.points[-n]
                if route.zone == "side":
                    yield Label(route.plugs[n], x - 4 if n else x + 4, y - 4, leftward=bool(n))
                else:
                    yield Label(route.plugs[n], x + 4, y + (11 if route.from_bottom(n) else -4), leftward=False)
