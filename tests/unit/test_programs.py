"""Where programs of other projects are found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isolib._kernel.programs import find_program

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_first_of_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first file of the PATH counts that may be executed; directories, other files and relative places do not."""
    places = [tmp_path / name for name in ("a", "b", "c", "d")]
    for place in places:
        place.mkdir()
    (places[0] / "it").mkdir()
    (places[1] / "it").write_text("")
    for place in places[2:]:
        (place / "it").write_text("")
        (place / "it").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", ":".join(["", "d", *map(str, places)]))
    assert find_program("it") == str(places[2] / "it")
    assert find_program("it-is-nowhere") is None


def test_places_of_administrators(monkeypatch: pytest.MonkeyPatch) -> None:
    """What only administrators have on their PATH is found too."""
    monkeypatch.setenv("PATH", "/nonexistent")
    found = find_program("ldconfig")
    assert found in {None, "/usr/sbin/ldconfig", "/sbin/ldconfig", "/usr/local/sbin/ldconfig"}
    monkeypatch.setenv("PATH", "/usr/sbin:/sbin")
    assert find_program("ldconfig") == found
