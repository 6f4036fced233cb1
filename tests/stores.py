"""Stores of the tests' own, one for each driver that this user and this host have."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

import isolib

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from isolib.unionfs import Store

DRIVERS = ("overlay", "vfs")


def usable(driver: str) -> str:
    """Return a driver, or skip the test where this user cannot have it."""
    if driver == "overlay" and os.geteuid() != 0:
        pytest.skip("an ordinary user mounts no overlays of the first user namespace")
    return driver


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    """Return the name of each driver."""
    return usable(request.param)


@pytest.fixture
def store(tmp_path: Path, driver: str) -> Iterator[Store]:
    """Return an empty store, which must be in order at the end and have nothing half made in it."""
    with isolib.open_store(tmp_path / "store", driver=driver) as opened:
        yield opened
        check(opened)


@pytest.fixture
def other(tmp_path: Path, driver: str) -> Iterator[Store]:
    """Return a second store."""
    with isolib.open_store(tmp_path / "other", driver=driver) as opened:
        yield opened
        check(opened)


def check(store: Store) -> None:
    """Assert that a store is in order, and that after a collection it has only what is on record."""
    found = store.verify()
    assert found == (), [*map(str, found)]
    store.gc()
    left = leftovers(store)
    assert not left, left
    assert store.verify() == ()


def leftovers(store: Store) -> dict[str, object]:
    """Return what a store has that is not on record, or is on record and not there."""
    records = store._records
    layout, driver = records.layout, records.driver
    trees = {records.tree(name).tree for name in records.trees()}
    found = {
        "staging": layout.names("staging"),
        "locks": layout.names("locks"),
        "drafts": driver.drafts(),
        "layers": driver.layers() ^ {*layout.names("layers")},
        "trees": driver.trees() ^ trees,
        "others": {*layout.names(".")}
        - {"store.json", "lock"}
        - {"blobs", "driver", "images", "layers", "locks", "names", "staging", "steps", "trees", "volumes"},
    }
    return {name: value for name, value in found.items() if value}
