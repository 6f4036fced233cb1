"""Small root file systems, for processes that are to have one that is not the host's."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from pathlib import Path

PROGRAMS: Final = ("cat", "chown", "id", "ln", "ls", "mkdir", "rm", "sh", "stat", "touch", "true")


def small_root(where: Path, *, directories: tuple[str, ...] = ("dev", "etc", "proc", "tmp")) -> Path:
    """Make a root with busybox in it, as its programs; skip the test where the host has none without libraries."""
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("busybox is not installed")
    (where / "bin").mkdir(parents=True)
    for name in directories:
        (where / name).mkdir()
    shutil.copy(busybox, where / "bin/busybox")
    for name in PROGRAMS:
        os.symlink("busybox", where / "bin" / name)
    return where
