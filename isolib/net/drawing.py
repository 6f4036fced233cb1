"""A network as an SVG that has the colours of the page that it stands in.  Pure: values in, text out."""

from __future__ import annotations

import html
from math import hypot
from typing import TYPE_CHECKING, Final

from isolib.net.layout import CHARACTER, LINE, PAD, Layout, clean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolib.net.layout import Frame, Label, Route
    from isolib.net.picture import Box, Picture

__all__ = ["draw"]

MARGIN: Final = 12
BEND: Final = 6
"""The radius of a cable's corner."""

_MONO: Final = "ui-monospace,'SF Mono','DejaVu Sans Mono','Liberation Mono',Menlo,Consolas,monospace"
_SANS: Final = "system-ui,-apple-system,'Segoe UI','DejaVu Sans','Liberation Sans',Arial,sans-serif"
#: Both stand out, and can be read, on white and on black.
_BLUE: Final = "#218bff"
_ORANGE: Final = "#d9480f"

#: Where the drawing is a document of its own, and only there, it is the root, and nobody else has chosen its colours.
_ALONE: Final = "@media (prefers-color-scheme:dark){svg:root{color-scheme:dark;color:#e6edf3}}"
_NAME: Final = f'font-family="{_SANS}" font-size="13" font-weight="600"'
_FRAMES: Final = {
    "namespace": 'rx="6" fill="currentColor" fill-opacity=".04" stroke="currentColor" stroke-opacity=".55"',
    "bridge": f'rx="6" fill="{_BLUE}" fill-opacity=".16" stroke="{_BLUE}"',
    "host": 'rx="2" fill="currentColor" fill-opacity=".04" stroke="currentColor" stroke-opacity=".8" stroke-width="2"',
}


def draw(picture: Picture) -> str:
    """Return the picture as an SVG element, whose looks are attributes: a style sheet would be one for the whole page."""
    layout = Layout(picture)
    left, top = layout.left - MARGIN, -MARGIN
    width, height = layout.right - left + MARGIN, layout.bottom - top + MARGIN
    # One opacity for all of them: where several run in one line they are not darker.
    cables = "".join(_cable(route, up=picture.is_up(route.cable)) for route in layout.routes)
    parts = [f'<g fill="none" stroke-width="1.5" opacity=".7">{cables}</g>']
    parts += map(_frame, layout.frames)
    parts += map(_dots, layout.routes)
    parts += map(_label, layout.labels)
    name = f"{picture.title}: {picture.summary()}" if picture.title else picture.summary()
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{_n(left)} {_n(top)} {_n(width)} {_n(height)}" '
        f'width="{_n(width)}" height="{_n(height)}" role="img" aria-label="{_escape(name)}" fill="currentColor" '
        f'font-family="{_MONO}" font-size="11"><style>{_ALONE}</style>{"".join(parts)}</svg>'
    )


def _n(value: float) -> str:
    return f"{value:z.1f}".removesuffix(".0")


def _escape(text: str) -> str:
    return html.escape(clean(text))


def _cable(route: Route, *, up: bool) -> str:
    """Return a line with round corners."""
    (x, y), *rest = route.points
    path = f"M{_n(x)} {_n(y)}"
    for (x1, y1), (x2, y2), (x3, y3) in zip(route.points, rest, rest[1:], strict=False):
        before, after = hypot(x2 - x1, y2 - y1), hypot(x3 - x2, y3 - y2)
        if before and after:
            bend = min(BEND, before / 2, after / 2)
            path += f"L{_n(x2 - bend * (x2 - x1) / before)} {_n(y2 - bend * (y2 - y1) / before)}"
            path += f"Q{_n(x2)} {_n(y2)} {_n(x2 + bend * (x3 - x2) / after)} {_n(y2 + bend * (y3 - y2) / after)}"
    path += f"L{_n(rest[-1][0])} {_n(rest[-1][1])}"
    return (
        f'<path d="{path}" stroke="currentColor"/>' if up else f'<path d="{path}" stroke="{_ORANGE}" stroke-dasharray="4 4"/>'
    )


def _dots(route: Route) -> str:
    ends = zip((route.points[0], route.points[-1]), route.ends, strict=True)
    return "".join(f'<circle cx="{_n(x)}" cy="{_n(y)}" r="3" fill="{_BLUE}"/>' for (x, y), frame in ends if frame.is_bridge)


def _frame(frame: Frame) -> str:
    size = f'width="{_n(frame.width)}" height="{_n(frame.height)}"'
    rect = f'<rect x="{_n(frame.x)}" y="{_n(frame.y)}" {size} {_FRAMES[frame.box.kind]}/>'
    told = "\n".join(map(_escape, _told(frame.box)))
    return f"<g><title>{told}</title>{rect}{''.join(_texts(frame))}</g>"


def _texts(frame: Frame) -> Iterator[str]:
    title = f"{_NAME}>{_escape(frame.title)}</"
    if frame.is_bridge:
        notes = "".join(f"<tspan>&#160; {_escape(text)}</tspan>" for text, _ in frame.lines)
        place = f'x="{_n(frame.middle)}" y="{_n(frame.y + frame.height / 2 + 4)}"'
        yield f'<text {place} text-anchor="middle"><tspan {title}tspan>{notes}</text>'
        return
    x, y = frame.x + PAD, frame.y + PAD + 10
    yield f'<text x="{_n(x)}" y="{_n(y)}" {title}text>'
    for n, (text, special) in enumerate(frame.lines, 1):
        shown = text.lstrip(" ")
        place = f'x="{_n(x + CHARACTER * (len(text) - len(shown)))}" y="{_n(y + n * LINE + 2)}"'
        fill = f'fill="{_ORANGE}"' if special else 'fill-opacity=".85"'
        yield f"<text {place} {fill}>{_escape(shown)}</text>"


def _told(box: Box) -> list[str]:
    """Return all that is known of a box, which is what a pointer brings up."""
    lines = [f"{box.kind} {box.title}", *box.notes]
    lines += (" ".join([plug.name, *plug.addresses, *([] if plug.up else ["down"]), *plug.notes]) for plug in box.plugs)
    return lines


def _label(label: Label) -> str:
    anchor = ' text-anchor="end"' if label.leftward else ""
    return f'<text x="{_n(label.x)}" y="{_n(label.y)}" font-size="9" fill-opacity=".75"{anchor}>{_escape(label.text)}</text>'
