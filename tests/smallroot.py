"""A root file system in which a shell runs: the host's own, with a few programs and the libraries that they need."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PROGRAMS = ("sh", "cat", "chmod", "chown", "env", "id", "ln", "ls", "mkdir", "rm", "sleep", "stat", "touch")
USERS = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:An app:/home/app:/bin/sh\n"
GROUPS = "root:x:0:\nmore:x:1002:app,other\nothers:x:1003:other\napp:x:1001:\n"


def small_root(path: Path) -> Path:
    """Make one, which is this user's."""
    for name in PROGRAMS:
        program = shutil.which(name, path="/usr/bin:/bin")
        assert program is not None, name
        _copy(program, path / "bin" / name)
        told = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
        for library in re.findall(r"(/\S+) \(0x", told.stdout):
            _copy(library, path / library.removeprefix("/"))
    (path / "etc").mkdir()
    (path / "etc/passwd").write_text(USERS)
    (path / "etc/group").write_text(GROUPS)
    for one in (path, *path.rglob("*")):
        os.utime(one, (1_500_000_000, 1_500_000_000))
    return path


def _copy(source: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copyfile(source, target)
        target.chmod(0o755)
