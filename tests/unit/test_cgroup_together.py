"""Controllers of v1 that are mounted together: who has a group of its own below, and which limits can be kept there."""

from __future__ import annotations

import os
from itertools import permutations
from typing import TYPE_CHECKING

import pytest

from isolib._kernel.cgroupfs import Group
from isolib.cgroups import place
from isolib.cgroups.files import Directory, distinct
from isolib.cgroups.lodge import Quarters, apart
from tests.recorded import V1, fill

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from isolib.errors import Unsupported


@pytest.fixture
def directories(tmp_path: Path) -> Iterator[list[Directory]]:
    """Return three directories of v1."""
    for name in ("one", "two", "three"):
        fill(tmp_path / name, V1)
    opened = [Directory.open(str(tmp_path / name), 1) for name in ("one", "two", "three")]
    yield opened
    for one in opened:
        one.close()


def test_each_once(directories: list[Directory]) -> None:
    """Directories that several controllers share come once, in the order in which they were first named."""
    one, two, _ = directories
    assert distinct([two, None, one, two, one]) == [two, one]


def test_only_disks_and_devices_are_shared(directories: list[Directory]) -> None:
    """A hierarchy of disk I/O or devices alone has no groups of single processes; with another controller it has."""
    one, two, three = directories
    assert apart({"memory": one, "io": two, "devices": three}) == [one]
    assert apart({"io": one, "devices": one}) == []
    for names in permutations(["memory", "io", "devices"]):
        together = dict.fromkeys(names, one) | {"pids": two}
        assert apart(together) == [one, two]
        quarters = Quarters(None, together, frozenset(), iter(range(9)))
        assert (quarters.counted, quarters.shared) == ([one, two], [])


def test_limit_that_would_bind_nobody(tmp_path: Path) -> None:
    """Limits on disk I/O are refused in one hierarchy with what counts processes apart, and not beside devices."""
    fill(tmp_path / "top", V1)

    def refusal(*controllers: str) -> Unsupported | None:
        path = str(tmp_path / "top")
        return place._v1_refusal("io", Group(path, path, unified=False, readonly=False, controllers=controllers))

    assert refusal("blkio") is None
    assert refusal("devices", "blkio") is None
    for controllers in permutations(["memory", "blkio", "cpu"]):
        found = refusal(*controllers)
        assert found is not None
        assert "together with cpu, memory" in str(found)
    assert os.path.basename(str(tmp_path / "top")) in str(refusal("blkio", "pids"))
