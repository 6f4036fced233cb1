"""What `isolib.doctor` returns: features, and the report that shows them as a table.  Pure: values in, text out."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping
from itertools import zip_longest
from typing import TYPE_CHECKING, Final

from isolib.types import Feature

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["WIDTH", "Feature", "Report"]

WIDTH: Final = 100
_MARK: Final = {True: "yes", False: "no"}
_NAME: Final = 25
_REFUSED: Final = 33
_GAP: Final = "  "
_LEFT: Final = _NAME + 3 + 2 * len(_GAP)
_REMEDY: Final = WIDTH - _LEFT - _REFUSED - len(_GAP)


def _clean(text: str) -> str:
    """Return text on one line: names of mounts and profiles may hold line feeds and escape sequences."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(_clean(text), width, break_on_hyphens=False) or [""]


def _rows(feature: Feature) -> Iterator[str]:
    left = [_wrap(feature.name, _NAME), [_MARK[feature.available]]]
    if feature.available:
        cells = [*left, _wrap(feature.reason, WIDTH - _LEFT)]
        widths = [_NAME, 3, 0]
    else:
        cells = [*left, _wrap(feature.refused_by, _REFUSED), _wrap(feature.remedy, _REMEDY)]
        widths = [_NAME, 3, _REFUSED, 0]
    for line in zip_longest(*cells, fillvalue=""):
        yield _GAP.join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()


class Report(Mapping[str, Feature]):
    """The features of a host for one user: a mapping from name to `Feature`, in sections.

    Printed, it is a table of at most 100 columns; in a notebook it is a table too.

    Parameters
    ----------
    sections
        The features by section, each name once.

    Examples
    --------
    >>> report = Report({"network": [Feature("tun", False, "no file", "/dev/net/tun: there is none", "modprobe tun")]})
    >>> print(report)
    feature                    ?    refused by                         remedy
    <BLANKLINE>
    network
    tun                        no   /dev/net/tun: there is none        modprobe tun
    >>> list(report.missing())
    ['tun']
    """

    __slots__ = ("_features", "_sections")

    def __init__(self, sections: Mapping[str, Iterable[Feature]]) -> None:
        self._sections = {title: tuple(features) for title, features in sections.items()}
        self._features: dict[str, Feature] = {}
        for features in self._sections.values():
            for feature in features:
                if feature.name in self._features:
                    raise ValueError(f"two features are called {feature.name!r}")
                self._features[feature.name] = feature

    def __getitem__(self, name: str) -> Feature:
        return self._features[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._features)

    def __len__(self) -> int:
        return len(self._features)

    @property
    def sections(self) -> Mapping[str, tuple[Feature, ...]]:
        """The features by section, in the order in which they are shown."""
        return dict(self._sections)

    def missing(self) -> Report:
        """Return what is not available, as a report of its own: empty, and so false, when nothing is missing."""
        left = {title: [one for one in features if not one] for title, features in self._sections.items()}
        return Report({title: features for title, features in left.items() if features})

    def __str__(self) -> str:
        lines = [_GAP.join((f"{'feature':<{_NAME}}", "?  ", f"{'refused by':<{_REFUSED}}", "remedy"))]
        for title, features in self._sections.items():
            lines += ["", title]
            for feature in features:
                lines += _rows(feature)
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        body = []
        for title, features in self._sections.items():
            body.append(f'<tr><th colspan="4" scope="rowgroup">{_escape(title)}</th></tr>')
            body += map(_html_row, features)
        head = "<tr><th>feature</th><th>available</th><th>refused by</th><th>remedy</th></tr>"
        caption = f"{len(self)} features, {len(self.missing())} of them not available"
        return (
            f'<div class="isolib-report"><style>{_STYLE}</style><table><caption>{caption}</caption>'
            f"<thead>{head}</thead><tbody>{''.join(body)}</tbody></table></div>"
        )


def _escape(text: str) -> str:
    return html.escape(_clean(text))


def _html_row(feature: Feature) -> str:
    name, reason = _escape(feature.name), _escape(feature.reason)
    mark = _MARK[feature.available]
    if feature.available:
        rest = f'<td colspan="2">{reason}</td>'
    else:
        rest = f'<td title="{reason}">{_escape(feature.refused_by)}</td><td>{_escape(feature.remedy)}</td>'
    return f'<tr><td>{name}</td><td class="{mark}">{mark}</td>{rest}</tr>'


#: Text has the colour of the page that it stands in, whether that is light or dark; the two marks are legible on both.
_STYLE: Final = (
    ".isolib-report table{border-collapse:collapse;color:inherit;background:transparent;font-size:90%}"
    ".isolib-report td,.isolib-report th{border-bottom:1px solid rgba(128,128,128,.4);padding:.2em .7em;"
    "text-align:left;vertical-align:top;color:inherit;background:transparent}"
    ".isolib-report th[scope]{padding-top:1em}.isolib-report caption{text-align:left;color:inherit;padding:.3em .7em}"
    ".isolib-report td.yes{border-left:.4em solid #2e9e4f}.isolib-report td.no{border-left:.4em solid #d1453b;font-weight:bold}"
)

for _public in (Feature, Report):
    # Tracebacks and pickles name the place that users import from.
    _public.__module__ = "isolib.support"
