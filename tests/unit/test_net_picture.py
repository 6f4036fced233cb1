"""The picture of a network: as a drawing, as a card, as text and for Graphviz."""

from __future__ import annotations

import pickle
import re
from html.parser import HTMLParser
from itertools import pairwise
from typing import TYPE_CHECKING, Any, get_args
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolib.errors import PlanError
from isolib.net.layout import IN_A_ROW, LONGEST, Layout
from isolib.net.picture import Box, Cable, Kind, Picture, Plug, picture_of
from isolib.net.wiring import wire

if TYPE_CHECKING:
    from isolib.net.layout import Frame

HOSTILE = "</svg><script>alert(1)</script>\"'&\\N\n\x00\x1b[31m\u202e\ud800漢字é"
TEXT = st.text(max_size=12) | st.sampled_from([HOSTILE, "web", "10.77.0.2/24", "&lt;", "<b>", "]]>", "\\", '"', "漢" * 60])

WEB = Box("web", plugs=(Plug("eth0", ("10.77.0.2/24", "fd77::2/64"), ("delay 20 ms", "loss 1 %")),))
DB = Box("db", plugs=(Plug("eth0", ("10.77.0.3/24",), up=False),), notes=("postgres",))
HOST = Box("host", "host", plugs=(Plug("isolib-0", ("10.77.0.1/24",)),))
BRIDGE = Box("br0", "bridge", notes=("10.77.0.0/24", "internet"))
NETWORK = Picture(
    (HOST, BRIDGE, WEB, DB),
    (
        Cable(("host", "isolib-0"), ("br0", "up")),
        Cable(("web", "eth0"), ("br0", "p0")),
        Cable(("br0", "p1"), ("db", "eth0")),
    ),
    "net-7f",
)


@st.composite
def pictures(draw: st.DrawFn) -> Picture:
    """Return any picture: with circles, several cables between two boxes, boxes connected with themselves."""
    names = draw(st.lists(TEXT, max_size=9, unique=True))
    plugs = st.builds(Plug, TEXT, st.lists(TEXT, max_size=2).map(tuple), st.lists(TEXT, max_size=2).map(tuple), st.booleans())
    box = st.builds(
        Box,
        st.just(""),
        st.sampled_from(get_args(Kind)),
        st.lists(plugs, min_size=1, max_size=3, unique_by=lambda plug: plug.name).map(tuple),
        st.lists(TEXT, max_size=2).map(tuple),
    )
    boxes = tuple(Box(name, one.kind, one.plugs, one.notes) for name in names for one in [draw(box)])
    ends = st.sampled_from([(one.name, plug.name) for one in boxes for plug in one.plugs] or [("", "")])
    cables = draw(st.lists(st.builds(Cable, ends, ends), max_size=12)) if boxes else []
    return Picture(boxes, tuple(cables), draw(TEXT))


def star(count: int) -> Picture:
    """Return a bridge with many namespaces."""
    return picture_of(wire(",".join(f"n{n}x - br0" for n in range(count))))


def texts(svg: str) -> list[str]:
    """Return the texts of a drawing."""
    return ["".join(one.itertext()) for one in ET.fromstring(svg).iter() if one.tag.endswith("}text")]  # noqa: S314 - our own


def shown(text: str) -> str:
    """Return a text as it is shown: on one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)


class TestValues:
    def test_two_of_a_name(self) -> None:
        """Cables lead to names, so each box has another one."""
        with pytest.raises(PlanError, match="two boxes are called 'web'"):
            Picture((WEB, DB, WEB))

    @pytest.mark.parametrize(
        ("end", "why"),
        [(("nobody", "eth0"), "leads to 'nobody', and there is no such box"), (("web", "eth1"), "leads to 'eth1' of 'web'")],
    )
    def test_loose_cable(self, end: tuple[str, str], why: str) -> None:
        """A cable ends at an interface of a box; a bridge's need not be known."""
        with pytest.raises(PlanError, match=why):
            Picture((WEB, BRIDGE), (Cable(("br0", "whatever"), end),))
        assert Picture((WEB, BRIDGE), (Cable(("br0", "whatever"), ("web", "eth0")),)).cables

    def test_summary(self) -> None:
        """A picture says how many of each it shows."""
        assert NETWORK.summary() == "2 namespaces, 1 bridge, 1 host, 3 cables"
        assert Picture((WEB, BRIDGE), (Cable(("web", "eth0"), ("br0", "")),)).summary() == "1 namespace, 1 bridge, 1 cable"
        assert Picture(()).summary() == "0 cables"

    def test_frozen(self) -> None:
        """A picture is a value: equal, hashable and picklable."""
        again = pickle.loads(pickle.dumps(NETWORK))  # noqa: S301 - its own
        assert again == NETWORK
        assert hash(again) == hash(NETWORK)
        assert again.svg() == NETWORK.svg()

    def test_wiring(self) -> None:
        """A topology has a picture, with its bridges' subnets and its namespaces' addresses."""
        picture = picture_of(wire("web - br0 - br1 - r1, r1 - admin"), "lab")
        assert [(box.name, box.kind) for box in picture.boxes] == [
            *(("br0", "bridge"), ("br1", "bridge")),
            *(("web", "namespace"), ("r1", "namespace"), ("admin", "namespace")),
        ]
        assert picture.box("br1").notes == ("10.77.0.0/24",)
        assert picture.box("r1").plugs == (Plug("eth0", ("10.77.0.2/24",)), Plug("eth1", ("10.77.1.1/24",)))
        assert len(picture.cables) == 4
        assert picture.title == "lab"


class TestText:
    def test_network(self) -> None:
        """Each bridge is a tree of what is connected, with addresses, state and notes in columns."""
        assert str(NETWORK).splitlines() == [
            "net-7f",
            "br0  10.77.0.0/24  internet",
            "├─ host  isolib-0  10.77.0.1/24",
            "├─ web   eth0      10.77.0.2/24  fd77::2/64  delay 20 ms  loss 1 %",
            "└─ db    eth0      10.77.0.3/24  down  postgres",
        ]

    def test_bridge_to_bridge(self) -> None:
        """A bridge below another is its name alone, whatever is known of its interfaces."""
        ports = (Plug("p0", ("10.0.0.1/24",), up=False),)
        picture = Picture((Box("br0", "bridge"), Box("br1", "bridge", ports)), (Cable(("br0", "p0"), ("br1", "p0")),))
        assert str(picture).splitlines() == ["br0", "└─ br1", "br1", "└─ br0"]

    def test_other_cables(self) -> None:
        """Cables between namespaces, and what has no cable, stand on lines of their own."""
        lonely = Box("lonely", notes=("nothing here",))
        picture = Picture((WEB, DB, lonely), (Cable(("web", "eth0"), ("db", "eth0")),))
        assert str(picture).splitlines() == [
            "web  eth0  10.77.0.2/24  fd77::2/64  delay 20 ms  loss 1 % ── db  eth0  10.77.0.3/24  down  postgres",
            "lonely  nothing here",
        ]

    @given(pictures())
    def test_any(self, picture: Picture) -> None:
        """Whatever the names are, every box and every cable is there, and no line holds a control character."""
        lines = str(picture).split("\n")
        assert all(line.isprintable() for line in lines)
        for box in picture.boxes:
            assert any(shown(box.name) in line for line in lines)
        ends = [[picture.box(name).kind for name, _ in (cable.a, cable.b)] for cable in picture.cables]
        assert sum(" ── " in line for line in lines) >= sum("bridge" not in kinds for kinds in ends)


class TestDrawing:
    @given(pictures())
    def test_safe(self, picture: Picture) -> None:
        """Whatever the names are, the drawing is XML of a few harmless elements, and refers to nothing outside itself."""
        root = ET.fromstring(picture.svg())  # noqa: S314 - our own
        for element in root.iter():
            assert element.tag.removeprefix("{http://www.w3.org/2000/svg}") in {
                *("svg", "style", "g", "title", "rect", "text", "tspan", "path", "circle"),
            }
            assert not {
                name for name in element.attrib if name.endswith(("href", "src", "style", "id")) or name.startswith("on")
            }
            assert not [value for name, value in element.attrib.items() if "url(" in value and name != "aria-label"]

    def test_colours(self) -> None:
        """Lines and texts have the colour of the page, and nothing is filled so that the page is hidden."""
        root = ET.fromstring(NETWORK.svg())  # noqa: S314 - our own
        colours = {value for one in root.iter() for name, value in one.attrib.items() if name in {"fill", "stroke"}}
        assert colours == {"currentColor", "none", "#218bff", "#d9480f"}
        for rect in (one for one in root.iter() if one.tag.endswith("}rect")):
            assert float(rect.attrib["fill-opacity"]) < 0.2
        for colour in ("#218bff", "#d9480f"):
            # As WCAG 2 has it: 3 is asked for lines, and for large texts.
            red, green, blue = (int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5))
            light = sum(f * ((c + 0.055) / 1.055) ** 2.4 for f, c in ((0.2126, red), (0.7152, green), (0.0722, blue)))
            assert 1.05 / (light + 0.05) > 3
            assert (light + 0.05) / 0.05 > 3

    def test_says_everything(self) -> None:
        """Names, addresses, states and notes are texts of the drawing, and its description says what it shows."""
        said = texts(NETWORK.svg())
        for text in (
            "host",
            "isolib-0 10.77.0.1/24",
            "web",
            "eth0 10.77.0.2/24",
            "fd77::2/64",
            "delay 20 ms",
            "loss 1 %",
            "down",
        ):
            assert text in said
        assert "postgres" in said
        assert "br0\xa0 10.77.0.0/24 · internet" in said
        root = ET.fromstring(NETWORK.svg())  # noqa: S314 - our own
        assert root.attrib["role"] == "img"
        assert root.attrib["aria-label"] == "net-7f: 2 namespaces, 1 bridge, 1 host, 3 cables"

    def test_down(self) -> None:
        """The cable of an interface that is down is dashed."""
        up = Picture((WEB, BRIDGE), (Cable(("web", "eth0"), ("br0", "")),))
        down = Picture((DB, BRIDGE), (Cable(("db", "eth0"), ("br0", "")),))
        port = Box("br0", "bridge", plugs=(Plug("p0", up=False),))
        port_down = Picture((WEB, port), (Cable(("web", "eth0"), ("br0", "p0")),))
        assert ["stroke-dasharray" in one.svg() for one in (up, down, port_down)] == [False, True, True]

    def test_long(self) -> None:
        """A long text is cut, and is whole in what a pointer brings up."""
        name = "x" * 100
        svg = Picture((Box(name, plugs=(Plug("eth0", notes=("y" * 100,)),)),)).svg()
        assert max(map(len, texts(svg))) == LONGEST
        title = next(one for one in ET.fromstring(svg).iter() if one.tag.endswith("}title"))  # noqa: S314 - our own
        assert title.text == f"namespace {name}\neth0 {'y' * 100}"

    @given(pictures())
    def test_same(self, picture: Picture) -> None:
        """The same picture has the same drawing."""
        assert picture.svg() == Picture(picture.boxes, picture.cables, picture.title).svg()

    def test_empty(self) -> None:
        """A picture of nothing is a drawing too."""
        assert texts(Picture(()).svg()) == []
        assert str(Picture(())) == ""


class TestLayout:
    @given(pictures())
    def test_boxes(self, picture: Picture) -> None:
        """No two boxes overlap; hosts are above bridges, and those above namespaces; all is within the edges."""
        layout = Layout(picture)
        for n, a in enumerate(layout.frames):
            assert layout.left <= a.x
            assert a.right <= layout.right
            assert a.y >= 0
            assert a.bottom <= layout.bottom
            for b in layout.frames[:n]:
                assert a.right <= b.x or b.right <= a.x or a.bottom <= b.y or b.bottom <= a.y
        order = {"host": 0, "bridge": 1, "namespace": 2}
        for a, b in pairwise(sorted(layout.frames, key=lambda frame: order[frame.box.kind])):
            assert a.box.kind == b.box.kind or a.bottom < b.y

    @given(pictures())
    def test_cables(self, picture: Picture) -> None:
        """Every cable runs straight up, down or across from the edge of one of its boxes to the edge of the other."""
        layout = Layout(picture)
        assert [route.cable for route in layout.routes] == list(picture.cables)
        for route in layout.routes:
            assert sorted(frame.box.name for frame in route.ends) == sorted((route.cable.a[0], route.cable.b[0]))
            for (x1, y1), (x2, y2) in pairwise(route.points):
                assert x1 == x2 or y1 == y2
                assert layout.left <= min(x1, x2)
                assert max(x1, x2) <= layout.right
                assert min(y1, y2) >= 0
                assert max(y1, y2) <= layout.bottom
            for frame, (x, y) in zip(route.ends, (route.points[0], route.points[-1]), strict=True):
                assert frame.x <= x <= frame.right
                assert frame.y <= y <= frame.bottom
                assert x in {frame.x, frame.right} or y in {frame.y, frame.bottom}

    @given(pictures())
    def test_lanes(self, picture: Picture) -> None:
        """No two cables run across in the same place, so that one can follow each."""
        across: dict[float, list[tuple[float, float]]] = {}
        for route in Layout(picture).routes:
            if route.lane is not None:
                y = route.points[1][1]
                first, last = min(route.xs), max(route.xs)
                assert all(last < a or b < first for a, b in across.get(y, []))
                across.setdefault(y, []).append((first, last))

    def test_router(self) -> None:
        """A router stands between its bridges, which reach as far as its interfaces: its cables are straight."""
        layout = Layout(picture_of(wire("web - br0 - r1 - br1 - client, br0 - db")))
        where = {frame.box.name: frame for frame in layout.frames}
        assert where["web"].x < where["db"].x < where["r1"].x < where["client"].x
        assert all(len(route.points) == 2 for route in layout.routes)
        assert where["br0"].right > where["r1"].x
        assert where["br1"].x < where["r1"].right

    def test_chain(self) -> None:
        """Namespaces connected with each other stand side by side, and the cable that closes a ring runs below them."""
        layout = Layout(picture_of(wire("a - b - c - a")))
        a, b, c = layout.frames
        assert a.right < b.x
        assert b.right < c.x
        assert a.y == b.y == c.y
        ring = layout.routes[2]
        assert max(y for _, y in ring.points) > max(frame.bottom for frame in (a, b, c))

    def test_block(self) -> None:
        """Many namespaces of one bridge stand in rows below it, as those of a hundred do."""
        layout = Layout(star(100))
        bridge, *spaces = layout.frames
        rows = sorted({frame.y for frame in spaces})
        columns = sorted({frame.x for frame in spaces})
        assert len(rows) * len(columns) < 100 + len(columns)
        assert len(columns) == 13
        assert all(bridge.x <= frame.x and frame.right <= bridge.right for frame in spaces)
        assert rows_of(Layout(star(IN_A_ROW)).frames) == 1
        assert rows_of(Layout(star(IN_A_ROW + 1)).frames) == 2

    def test_labels(self) -> None:
        """A box with several interfaces names them at its cables."""
        labels = {(label.text, label.leftward) for label in Layout(picture_of(wire("a - r - b"))).labels}
        assert labels == {("eth0", True), ("eth1", False)}


def rows_of(frames: list[Frame]) -> int:
    """Return in how many rows namespaces stand."""
    return len({frame.y for frame in frames if frame.box.kind == "namespace"})


class TestDot:
    def test_network(self) -> None:
        """Each box is a node, each cable an edge with the names of its interfaces; what is down is dashed."""
        assert NETWORK.to_dot().splitlines() == [
            "graph {",
            '  label="net-7f";',
            '  node [shape=box fontname="monospace" fontsize=10];',
            r'  n0 [label="host\nisolib-0  10.77.0.1/24" peripheries=2];',
            r'  n1 [label="br0\n10.77.0.0/24\ninternet" style=rounded];',
            r'  n2 [label="web\neth0  10.77.0.2/24  fd77::2/64  delay 20 ms  loss 1 %"];',
            r'  n3 [label="db\npostgres\neth0  10.77.0.3/24  down"];',
            '  n0 -- n1 [taillabel="isolib-0" headlabel="up" fontsize=8];',
            '  n2 -- n1 [taillabel="eth0" headlabel="p0" fontsize=8];',
            '  n1 -- n3 [taillabel="p1" headlabel="eth0" fontsize=8 style=dashed];',
            "}",
        ]

    @given(pictures())
    def test_any(self, picture: Picture) -> None:
        """Whatever the names are, they stay within their quotes, and Graphviz reads them as they are."""
        nodes = []
        for line in picture.to_dot().splitlines():
            assert line.isprintable()
            rest = re.sub(r'"(?:[^"\\]|\\.)*"', "Q", line)
            assert re.fullmatch(r"graph \{|\}|  label=Q;|  (node|n\d+|n\d+ -- n\d+) \[[\w= ]+\];", rest)
            if found := re.fullmatch(r'  n\d+ \[label="((?:[^"\\]|\\.)*)".*\];', line):
                nodes.append(re.sub(r"\\(.)", lambda one: "\n" if one[1] == "n" else one[1], found[1]).replace("&amp;", "&"))
        assert [node.split("\n")[0] for node in nodes] == [shown(box.name) for box in picture.boxes]


class Page(HTMLParser):
    """Checks that every element is closed where it should be, and collects texts by element."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.said: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element; none loads anything or has a script."""
        assert tag not in {"script", "img", "link", "iframe", "object"}
        assert not [name for name, _ in attrs if name in {"src", "href"} or name.startswith("on")]
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Compare with the last that was opened."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Collect a text."""
        self.said[self.open[-1]] = self.said.get(self.open[-1], "") + data


class TestCard:
    @given(pictures())
    def test_any(self, picture: Picture) -> None:
        """Whatever the names are, the card is balanced, has no scripts, and holds the same as text."""
        page = Page()
        page.feed(picture._repr_html_())
        page.close()
        assert page.open == []
        assert page.said.get("pre", "") == str(picture)
        assert page.said.get("strong", "") == shown(picture.title)
        assert page.said["span"] == picture.summary()

    def test_colours(self) -> None:
        """The card has the colours of its page, and no rule that would change anything there."""
        card = NETWORK.html()
        assert "color:inherit" in card
        assert NETWORK.svg() in card
        # In a page the root is another element, so this is only for a file that is nothing but the drawing.
        rules = re.findall(r"<style>@media \(prefers-color-scheme:dark\)\{(\S+?)\{[^}]*}}</style>", card)
        assert rules == ["svg:root"]
        assert card.count("<style") == 1


def test_hostile_everywhere() -> None:
    """A name that is an attack in every language is only a name in all of them."""
    box: Any = Box(HOSTILE, plugs=(Plug(HOSTILE, (HOSTILE,), (HOSTILE,)),), notes=(HOSTILE,))
    picture = Picture((box, Box("b", "bridge", notes=(HOSTILE,))), (Cable((HOSTILE, HOSTILE), ("b", HOSTILE)),), HOSTILE)
    for text in (picture.svg(), picture.html()):
        assert "<script" not in text
        assert "\x00" not in text
    assert shown(HOSTILE) in str(picture)
