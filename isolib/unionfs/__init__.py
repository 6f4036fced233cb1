"""Union file systems: directories in layers merged into one tree, images, commits and volumes."""

from __future__ import annotations

from isolib.unionfs.entry import Change as Change
from isolib.unionfs.entry import ChangeKind as ChangeKind
from isolib.unionfs.overlay import Branch as Branch
from isolib.unionfs.overlay import OverlayMount as OverlayMount
from isolib.unionfs.overlay import new_overlay as new_overlay
from isolib.unionfs.overlay_diff import OverlayStats as OverlayStats

__all__ = ["Branch", "Change", "ChangeKind", "OverlayMount", "OverlayStats", "new_overlay"]

for _public in (Branch, Change, ChangeKind, OverlayMount, OverlayStats, new_overlay):
    # Tracebacks and pickles name the place that users import from.
    _public.__module__ = "isolib.unionfs"
