"""The report of doctor() as a value, as text and as HTML."""

from __future__ import annotations

import pickle
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolib.support.report import WIDTH, Feature, Report

YES = Feature("veth", available=True, reason="")
NO = Feature(
    "time namespace",
    available=False,
    reason="unshare: time: Invalid argument (EINVAL)",
    refused_by="the kernel: built without CONFIG_TIME_NS",
    remedy="a kernel with CONFIG_TIME_NS",
)

TEXT = st.text(max_size=300)
FEATURES = st.lists(
    st.builds(Feature, name=TEXT, available=st.booleans(), reason=TEXT, refused_by=TEXT, remedy=TEXT),
    max_size=8,
    unique_by=lambda feature: feature.name,
)


def test_feature_is_as_true_as_it_is_available() -> None:
    """A feature stands for its availability in a condition."""
    assert YES
    assert not NO


def test_report_is_a_mapping_by_name() -> None:
    """Names lead to features, in the order in which they are shown."""
    report = Report({"network": [YES], "namespaces": [NO]})
    assert list(report) == ["veth", "time namespace"]
    assert report["veth"] is YES
    assert report.get("nothing") is None
    assert len(report) == 2
    assert dict(report.sections) == {"network": (YES,), "namespaces": (NO,)}


def test_name_that_comes_twice_is_refused() -> None:
    """Two features of one name would hide one another."""
    with pytest.raises(ValueError, match="veth"):
        Report({"a": [YES], "b": [YES]})


def test_missing_is_a_report_of_what_is_not_available() -> None:
    """It keeps the sections that have something left, and is false when nothing is missing."""
    report = Report({"network": [YES], "namespaces": [NO]})
    assert list(report.missing()) == ["time namespace"]
    assert list(report.missing().sections) == ["namespaces"]
    assert not Report({"network": [YES]}).missing()


def test_table_has_the_names_and_who_refuses() -> None:
    """A line begins with the name; what refuses and what helps stand beside it."""
    lines = str(Report({"network": [YES], "namespaces": [NO]})).splitlines()
    assert lines[0].split() == ["feature", "?", "refused", "by", "remedy"]
    assert "veth                       yes" in lines
    row = next(line for line in lines if line.startswith("time namespace"))
    assert row.split()[2] == "no"
    assert "the kernel: built without" in row
    assert "a kernel with CONFIG_TIME_NS" in row


@given(FEATURES)
def test_any_report_fits_and_shows_no_control_characters(features: list[Feature]) -> None:
    """Whatever names mounts and profiles have, the table has its width and its lines."""
    for line in str(Report({"all": features})).split("\n"):
        assert len(line) <= WIDTH
        assert line.isprintable()


@given(FEATURES)
def test_reports_survive_pickling(features: list[Feature]) -> None:
    """A report made in another process is the same."""
    report = Report({"all": features})
    copy = pickle.loads(pickle.dumps(report))  # noqa: S301 - its own
    assert copy == report
    assert str(copy) == str(report)


class Balance(HTMLParser):
    """Checks that every element is closed where it should be, and collects the text of the cells."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element and what it would load."""
        self.open.append(tag)
        self.sources += [name for name, _ in attrs if name in ("src", "href")]
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        """Compare with the last that was opened."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Collect the text of a cell."""
        if self.open[-1] == "td":
            self.cells[-1] += data


@given(FEATURES)
def test_html_is_balanced_and_escaped(features: list[Feature]) -> None:
    """No name breaks out of its cell, and nothing is loaded from elsewhere."""
    parser = Balance()
    parser.feed(Report({"<b>&": features})._repr_html_())
    parser.close()
    assert parser.open == []
    assert parser.sources == []
    assert len(parser.cells) == sum(3 if feature else 4 for feature in features)


def test_html_says_what_the_table_says() -> None:
    """The cells hold names, marks, who refuses and the remedy; the reason is told when one points at it."""
    html = Report({"namespaces": [NO], "network": [YES]})._repr_html_()
    parser = Balance()
    parser.feed(html)
    assert parser.cells[:4] == ["time namespace", "no", NO.refused_by, NO.remedy]
    assert NO.reason in html
    assert "2 features, 1 of them not available" in html


def test_html_takes_the_colours_of_its_page() -> None:
    """Text and background are inherited, so that a dark page stays dark."""
    html = Report({"network": [YES]})._repr_html_()
    assert "color:inherit" in html
    assert "background:transparent" in html
