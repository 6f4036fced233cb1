"""With root's capabilities and without: what a test does is tried with both."""

from __future__ import annotations

import ctypes
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

RIGHTS = ("privileged", "rootless")


@contextmanager
def having(rights: str) -> Iterator[None]:
    """Let the calling thread have its capabilities, skipping the test where it has none, or have none in effect (capset(2))."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, data) == 0
    if rights == "privileged":
        if os.geteuid() != 0:
            pytest.skip("needs to be started by root")
        yield
        return
    before = data[0], data[3]
    data[0] = data[3] = 0
    assert libc.capset(header, data) == 0
    try:
        yield
    finally:
        data[0], data[3] = before
        assert libc.capset(header, data) == 0
