"""What the kernel says is in force for a process, read from /proc by the host."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from isolib._kernel.procfs import parse_status

if TYPE_CHECKING:
    from collections.abc import Iterable


def _links(pid: int | str, kinds: Iterable[str]) -> dict[str, str]:
    return {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in kinds}


def audit(pid: int, kinds: Iterable[str]) -> dict[str, str]:
    """Return the findings by name; a namespace that is the host's own is said to be so."""
    kinds = sorted(kinds)
    inside, outside = _links(pid, kinds), _links("thread-self", kinds)
    found = {f"{kind} namespace": inside[kind] if inside[kind] != outside[kind] else "the host's" for kind in kinds}
    status = parse_status(Path(f"/proc/{pid}/status").read_bytes())
    found["user ids"] = " ".join(Path(f"/proc/{pid}/uid_map").read_text(encoding="ascii").split())
    for field, name in (
        ("CapEff", "capabilities, effective"),
        ("CapBnd", "capabilities, bounding"),
        ("CapInh", "capabilities, inheritable"),
        ("CapAmb", "capabilities, ambient"),
        ("NoNewPrivs", "no_new_privs"),
        ("Seccomp", "seccomp mode"),
    ):
        found[name] = status.get(field, "unknown").strip()
    return found
