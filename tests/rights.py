"""With root's capabilities and without: what a test does is tried with both."""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

RIGHTS = (pytest.param("privileged", marks=pytest.mark.root), "rootless")
"""The parameters of a fixture."""


@contextmanager
def having(rights: str) -> Iterator[None]:
    """Let the calling thread keep its capabilities, or have none in effect for the time of a block (capset(2))."""
    if rights == "privileged":
        yield
        return
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, data) == 0
    before = data[0], data[3]
    data[0] = data[3] = 0
    assert libc.capset(header, data) == 0
    try:
        yield
    finally:
        data[0], data[3] = before
        assert libc.capset(header, data) == 0
