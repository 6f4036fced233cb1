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
    "clones_words",
    "create_words",
    "destroy_words",
    "forget_words",
    "get_words",
    "parse_clones",
    "promote_words",
    "set_words",
    "snapshot_words",
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


def clones_words(dataset: str) -> list[str]:
    """Ask which datasets stand on the snapshots of one."""
    return ["get", "-H", "-p", "-d", "1", "-t", "snapshot", "-o", "name,value", "clones", dataset]


def parse_clones(text: str) -> dict[str, list[str]]:
    """Return the clones by the names of the snapshots, in the order of these, without those that have none."""
    lines = [line.split("\t") for line in text.splitlines() if line]
    return {name: value.split(",") for name, value in lines if value and value != "-"}
