"""Descriptors that a limit refuses, one after the other."""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

import pytest

from isolib.errors import SyscallError

if TYPE_CHECKING:
    from collections.abc import Callable

MOST = 40
"""Descriptors that nothing here needs more of."""


def refusals(once: Callable[[], object]) -> list[SyscallError]:
    """Do something again and again, each time with one more descriptor; return its errors until it succeeds."""
    once()  # what is opened once and for all is there
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    first = os.dup(0)
    os.close(first)
    found: list[SyscallError] = []
    try:
        for allowed in range(first, first + MOST):
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
            try:
                once()
            except SyscallError as error:
                found.append(error)
            else:
                return found
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    pytest.fail("never enough")
