"""Network namespaces for tests, and a network."""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import pytest

from isolib import new_netns
from isolib.net import new_network

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from isolib.namespaces import NetNS
    from isolib.net import Network


@pytest.fixture
def new_ns(user_namespaces: None) -> Iterator[Callable[[], NetNS]]:
    """Return what makes a network namespace that is closed after the test."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(closing(new_netns()))  # itself, it would be entered


@pytest.fixture
def a(new_ns: Callable[[], NetNS]) -> NetNS:
    """Return a network namespace."""
    return new_ns()


@pytest.fixture
def b(new_ns: Callable[[], NetNS]) -> NetNS:
    """Return another network namespace."""
    return new_ns()


@pytest.fixture
def ns(new_ns: Callable[[], NetNS]) -> NetNS:
    """Return the only network namespace."""
    return new_ns()


@pytest.fixture
def network(user_namespaces: None) -> Iterator[Network]:
    """Return a network of both kinds of addresses."""
    with new_network("10.77.0.0/24", ipv6="fd77::/64") as made:
        yield made
