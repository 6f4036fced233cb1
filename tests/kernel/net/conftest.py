"""Network namespaces for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from isolib import new_netns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolib.namespaces import NetNS


@pytest.fixture
def a(user_namespaces: None) -> Iterator[NetNS]:
    """Return a network namespace."""
    with_end = new_netns()
    try:
        yield with_end
    finally:
        with_end.close()


@pytest.fixture
def b(user_namespaces: None) -> Iterator[NetNS]:
    """Return another network namespace."""
    with_end = new_netns()
    try:
        yield with_end
    finally:
        with_end.close()
