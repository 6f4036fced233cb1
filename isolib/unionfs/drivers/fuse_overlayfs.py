"""wip"""
from isolib.unionfs.drivers.overlay import OverlayDriver
class FuseOverlayDriver(OverlayDriver):
    name = "fuse-overlayfs"
