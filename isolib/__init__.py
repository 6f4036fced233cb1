r"""Kernel isolation for Python: namespaces, control groups, union file systems, virtual networks, and a sandbox made of them.

    >>> import isolib
    >>> isolib.run(["id", "-un"]).stdout
    b'root\n'

The layers, lowest first; a module imports from lower layers only, and modules of layer 2 do not import each other:

    L0  errors, types
    L1  _kernel: the only code that makes system calls
    L2  cgroups, namespaces, mounts, net, process, support, unionfs
    L3  spec, outlet, setting, oneshot, sandbox
    L4  this module

Names are loaded when they are first used (PEP 562), so that ``import isolib`` costs next to nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers take it for true; importing typing would cost more than the rest
if TYPE_CHECKING:
    from isolib.cgroups import Cgroup as Cgroup
    from isolib.cgroups import IoLimit as IoLimit
    from isolib.cgroups import hierarchy as hierarchy
    from isolib.cgroups import new_cgroup as new_cgroup
    from isolib.cgroups import open_cgroup as open_cgroup
    from isolib.errors import ArchiveError as ArchiveError
    from isolib.errors import ClosedError as ClosedError
    from isolib.errors import CommandFailed as CommandFailed
    from isolib.errors import GoneError as GoneError
    from isolib.errors import ImageNotFound as ImageNotFound
    from isolib.errors import IsolibError as IsolibError
    from isolib.errors import LimitExceeded as LimitExceeded
    from isolib.errors import OutOfMemory as OutOfMemory
    from isolib.errors import PermissionDenied as PermissionDenied
    from isolib.errors import PlanError as PlanError
    from isolib.errors import RegistryError as RegistryError
    from isolib.errors import SandboxTimeout as SandboxTimeout
    from isolib.errors import SetupFailed as SetupFailed
    from isolib.errors import StoreDamaged as StoreDamaged
    from isolib.errors import SyscallError as SyscallError
    from isolib.errors import ThreadStranded as ThreadStranded
    from isolib.errors import Unsupported as Unsupported
    from isolib.namespaces import new_cgroupns as new_cgroupns
    from isolib.namespaces import new_ipcns as new_ipcns
    from isolib.namespaces import new_mntns as new_mntns
    from isolib.namespaces import new_netns as new_netns
    from isolib.namespaces import new_pidns as new_pidns
    from isolib.namespaces import new_timens as new_timens
    from isolib.namespaces import new_userns as new_userns
    from isolib.namespaces import new_utsns as new_utsns
    from isolib.namespaces import open_cgroupns as open_cgroupns
    from isolib.namespaces import open_ipcns as open_ipcns
    from isolib.namespaces import open_mntns as open_mntns
    from isolib.namespaces import open_netns as open_netns
    from isolib.namespaces import open_pidns as open_pidns
    from isolib.namespaces import open_timens as open_timens
    from isolib.namespaces import open_userns as open_userns
    from isolib.namespaces import open_utsns as open_utsns
    from isolib.net import Publish as Publish
    from isolib.net import new_bridge as new_bridge
    from isolib.net import new_dummy as new_dummy
    from isolib.net import new_ipvlan as new_ipvlan
    from isolib.net import new_macvlan as new_macvlan
    from isolib.net import new_network as new_network
    from isolib.net import new_tap as new_tap
    from isolib.net import new_tun as new_tun
    from isolib.net import new_veth as new_veth
    from isolib.net import new_vlan as new_vlan
    from isolib.net import new_vxlan as new_vxlan
    from isolib.process import DEVNULL as DEVNULL
    from isolib.process import PIPE as PIPE
    from isolib.process import STDOUT as STDOUT
    from isolib.process import Process as Process
    from isolib.process import spawn as spawn
    from isolib.sandbox import Sandbox as Sandbox
    from isolib.sandbox import run as run
    from isolib.spec import Completed as Completed
    from isolib.spec import Limits as Limits
    from isolib.spec import SandboxSpec as SandboxSpec
    from isolib.support import doctor as doctor
    from isolib.types import Exit as Exit
    from isolib.types import IdMap as IdMap
    from isolib.types import Reason as Reason
    from isolib.types import Usage as Usage
    from isolib.unionfs import new_overlay as new_overlay
    from isolib.unionfs import open_store as open_store

__version__ = "0.1.0"

_KINDS = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
_HOMES = {
    "cgroups": ("Cgroup", "IoLimit", "hierarchy", "new_cgroup", "open_cgroup"),
    "errors": (
        "ArchiveError",
        "ClosedError",
        "CommandFailed",
        "GoneError",
        "ImageNotFound",
        "IsolibError",
        "LimitExceeded",
        "OutOfMemory",
        "PermissionDenied",
        "PlanError",
        "RegistryError",
        "SandboxTimeout",
        "SetupFailed",
        "StoreDamaged",
        "SyscallError",
        "ThreadStranded",
        "Unsupported",
    ),
    "namespaces": tuple(f"{verb}_{kind}ns" for verb in ("new", "open") for kind in _KINDS),
    "net": (
        "Publish",
        "new_bridge",
        "new_dummy",
        "new_ipvlan",
        "new_macvlan",
        "new_network",
        "new_tap",
        "new_tun",
        "new_veth",
        "new_vlan",
        "new_vxlan",
    ),
    "process": ("DEVNULL", "PIPE", "STDOUT", "Process", "spawn"),
    "sandbox": ("Sandbox", "run"),
    "spec": ("Completed", "Limits", "SandboxSpec"),
    "support": ("doctor",),
    "types": ("Exit", "IdMap", "Reason", "Usage"),
    "unionfs": ("new_overlay", "open_store"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [*sorted(_HOME), "__version__"]  # noqa: PLE0604 - strings


def __getattr__(name: str) -> object:
    from importlib import import_module  # noqa: PLC0415 - nothing is imported before it is needed

    if name in _HOME:
        value: object = getattr(import_module(f"isolib.{_HOME[name]}"), name)
    elif name in {"mounts", *_HOMES}:
        value = import_module(f"isolib.{name}")
    else:
        raise AttributeError(f"module 'isolib' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, "mounts", *_HOMES})
