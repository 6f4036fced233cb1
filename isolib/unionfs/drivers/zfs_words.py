"""The words of zfs(8), as the driver of ZFS uses them: what is said to the program, and what it answers.

Pure functions: they have no idea that there is such a program.
"""

from __future__ import annotations

import re
from typing import Final

from isolib.errors import PlanError

__all__ = [
    "check_dataset",
    "clone_words",
    "create_words",
    "destroy_words",
    "forget_words",
    "get_words",
    "parse_standing",
    "promote_words",
    "set_words",
    "snapshot_words",
    "standing_words",
]

#: zfs(8), "ZFS File System Hierarchy" and zfsprops(7): which characters, and how long all together.
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.: -]*(?:/[A-Za-z0-9_.: -]+)*")
_LONGEST: Final = 255
_OURS: Final = "mountpoint=legacy"  # what zfs mounts by itself, it mounts for everybody


def check_dataset(name: str, room: int = 0) -> str:
    """Return the name of a dataset, below which a name of so many bytes is possible, or raise PlanError."""
    if not _NAME.fullmatch(name) or len(name) + room > _LONGEST or any(part in {".", ".."} for part in name.split("/")):
        raise PlanError(f"not the name of a ZFS dataset: {name!r}")
    return name


def create_words(dataset: str) -> list[str]:
    """Make an empty dataset: attributes beside the inode, as many as there are, and lists of access rights (zfs-create(8))."""
    return ["create", "-o", _OURS, "-o", "xattr=sa", "-o", "acltype=posixacl", dataset]


def snapshot_words(dataset: str, snapshot: str) -> list[str]:
    """Keep a dataset as it is at this moment (zfs-snapshot(8))."""
    return ["snapshot", f"{dataset}@{snapshot}"]


def clone_words(dataset: str, snapshot: str, new: str, quota: int | None = None) -> list[str]:
    """Make a dataset that is as a snapshot is (zfs-clone(8)); the quota counts what it does not share with that."""
    properties = [_OURS, "xattr=sa", "acltype=posixacl"] + ([] if quota is None else [f"quota={quota}"])
    return ["clone", *(word for one in properties for word in ("-o", one)), f"{dataset}@{snapshot}", new]


def forget_words(dataset: str, snapshot: str) -> list[str]:
    """Have a snapshot go with the last clone that stands on it; at once where none does (zfs-destroy(8), -d)."""
    return ["destroy", "-d", f"{dataset}@{snapshot}"]


def destroy_words(dataset: str) -> list[str]:
    """Remove a dataset and its snapshots (zfs-destroy(8), -r)."""
    return ["destroy", "-r", dataset]


def promote_words(clone: str) -> list[str]:
    """Have a clone change places with the dataset that it stands on (zfs-promote(8))."""
    return ["promote", clone]


def set_words(dataset: str, name: str, value: str) -> list[str]:
    """Set a property (zfs-set(8))."""
    return ["set", f"{name}={value}", dataset]


def get_words(dataset: str, name: str) -> list[str]:
    """Ask for a property, as a bare value in bytes (zfs-get(8))."""
    return ["get", "-H", "-p", "-o", "value", name, dataset]


def standing_words(parent: str) -> list[str]:
    """Ask which datasets and snapshots are below one, what each dataset stands on, and how old each is (zfs-list(8)).

    A snapshot's own property ``clones`` says it too, but where datasets come and go, "zfs get" of that was seen never to end.
    """
    return ["list", "-H", "-p", "-t", "filesystem,snapshot", "-d", "2", "-o", "name,origin,createtxg", parent]


def parse_standing(text: str, dataset: str) -> str | None:
    """Return the dataset that stands on the youngest snapshot of one that any does; None where none does."""
    lines = [line.split("\t") for line in text.splitlines() if line]
    age = {name: int(born) for name, _, born in lines if "@" in name}
    standing = {origin: name for name, origin, _ in lines if origin.startswith(f"{dataset}@")}
    return standing[max(standing, key=lambda origin: age.get(origin, 0))] if standing else None
