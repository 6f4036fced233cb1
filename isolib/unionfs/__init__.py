"""Union file systems: directories in layers merged into one tree, images, commits and volumes."""

from __future__ import annotations

from isolib.unionfs.archive.reading import Limits as Limits
from isolib.unionfs.drivers.base import TreeUsage as TreeUsage
from isolib.unionfs.entry import Change as Change
from isolib.unionfs.entry import ChangeKind as ChangeKind
from isolib.unionfs.entry import Layer as Layer
from isolib.unionfs.images.config import History as History
from isolib.unionfs.images.config import ImageConfig as ImageConfig
from isolib.unionfs.images.config import Platform as Platform
from isolib.unionfs.images.images import Image as Image
from isolib.unionfs.images.loading import Progress as Progress
from isolib.unionfs.overlays.overlay import Branch as Branch
from isolib.unionfs.overlays.overlay import OverlayMount as OverlayMount
from isolib.unionfs.overlays.overlay import new_overlay as new_overlay
from isolib.unionfs.overlays.overlay_diff import OverlayStats as OverlayStats
from isolib.unionfs.store.collecting import Collected as Collected
from isolib.unionfs.store.store import Store as Store
from isolib.unionfs.store.store import drivers as drivers
from isolib.unionfs.store.store import open_store as open_store
from isolib.unionfs.store.tree import Tree as Tree
from isolib.unionfs.store.verifying import Finding as Finding
from isolib.unionfs.store.verifying import Subject as Subject
from isolib.unionfs.store.volume_mount import VolumeMount as VolumeMount
from isolib.unionfs.store.volumes import Volume as Volume

__all__ = [
    "Branch",
    "Change",
    "ChangeKind",
    "Collected",
    "Finding",
    "History",
    "Image",
    "ImageConfig",
    "Layer",
    "Limits",
    "OverlayMount",
    "OverlayStats",
    "Platform",
    "Progress",
    "Store",
    "Subject",
    "Tree",
    "TreeUsage",
    "Volume",
    "VolumeMount",
    "drivers",
    "new_overlay",
    "open_store",
]

for _public in (
    *(Branch, Change, ChangeKind, OverlayMount, OverlayStats, new_overlay),
    *(Collected, Finding, History, Image, ImageConfig, Layer, Limits, Platform, Progress, Store, Subject, Tree, TreeUsage),
    *(Volume, VolumeMount),
    *(drivers, open_store),
):
    # Tracebacks and pickles name the place that users import from.
    _public.__module__ = "isolib.unionfs"
