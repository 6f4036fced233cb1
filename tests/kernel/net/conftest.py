"""Network namespaces for tests."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from isolib import new_netns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolib.namespaces import NetNS


@pytest.fixture
def a(user_namespaces: None) -> Iterator[NetNS]:
    """Return a network namespace."""
    with closing(new_netns()) as made:  # itself, it would be entered
        yield made


@pytest.fixture
def b(user_namespaces: None) -> Iterator[NetNS]:
    """Return another network namespace."""
    with closing(new_netns()) as made:  # itself, it would be entered
        yield made
