"""Small root file systems, for processes that are to have one that is not the host's."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from pathlib import Path

PROGRAMS: Final = ("cat", "chmod", "chown", "env", "id", "ln", "ls", "mkdir", "rm", "sh", "sleep", "stat", "touch", "true")
USERS: Final = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:An app:/home/app:/bin/sh\n"
GROUPS: Final = "root:x:0:\nmore:x:1002:app,other\nothers:x:1003:other\napp:x:1001:\n"


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


def root_with_accounts(where: Path) -> Path:
    """Make one that knows users and groups, and is the same each time."""
    small_root(where, directories=("etc",))
    (where / "etc/passwd").write_text(USERS)
    (where / "etc/group").write_text(GROUPS)
    for one in (where, *where.rglob("*")):
        os.utime(one, (1_500_000_000, 1_500_000_000), follow_symlinks=False)
    return where
