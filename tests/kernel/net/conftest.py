"""Network namespaces for tests, a network, and who reads files of packets."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import pytest

from isolib import new_netns
from isolib.net import new_network

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

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


@pytest.fixture(scope="session")
def tshark() -> str:
    """Return the program that reads files of packets."""
    found = shutil.which("tshark")
    if found is None:
        pytest.skip("there is no tshark")
    return found


@pytest.fixture
def read(tshark: str, tmp_path: Path) -> Callable[..., list[list[str]]]:
    """Return what reads fields of packets that a filter lets through from a file."""

    def run(path: Path, *fields: str, only: str = "frame") -> list[list[str]]:
        argv = [tshark, "-n", "-r", str(path), "-Y", only, "-T", "fields", "-E", "separator=|"]
        argv += [word for field in fields for word in ("-e", field)]
        environment = {**os.environ, "HOME": str(tmp_path)}
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120, env=environment)
        assert done.returncode == 0, done.stderr
        return [line.split("|") for line in done.stdout.splitlines()]

    return run
