"""Layers unpacked, on the real kernel."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isolib.unionfs.drivers.base import Form
from tests.layered import OVERLAYS, check_merged, check_union, layers

if TYPE_CHECKING:
    from tests.layered import Made

OWNERS = (0, 1000) if os.geteuid() == 0 else (os.geteuid(),)


@given(st.lists(layers(OWNERS), min_size=1, max_size=3))
def test_model(stack: list[list[Made]]) -> None:
    """A tree into which layers are unpacked is what the rules of OCI say, whatever the order of their entries."""
    check_merged(stack)


@pytest.mark.root
@pytest.mark.parametrize("form", OVERLAYS)
@settings(max_examples=200)
@given(st.lists(layers(OWNERS), min_size=2, max_size=3))
def test_union(form: Form, stack: list[list[Made]]) -> None:
    """The kernel's overlay of layers that lie in directories of their own is the tree into which all are unpacked."""
    check_union(form, stack)
