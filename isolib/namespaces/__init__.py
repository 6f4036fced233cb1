"""Namespaces: handles for all eight kinds, entered by threads, joined by programs.

    >>> import isolib
    >>> with isolib.new_netns() as net:  # the calling thread is inside
    ...     net.run(open, "/proc/thread-self/net/dev").close()  # this runs on a thread of its own
    >>> isolib.namespaces.tree().roots[0].kind
    'user'

The modules: `make` (new_*), `adopt` (open_*, of), `handle` and `kinds` (the classes), `enter` (threads that come and go),
`thread` (threads that stay), `held` (processes that hold), `pin` (names), `tree`.
"""

from __future__ import annotations

from isolib.namespaces.adopt import NamespaceSet as NamespaceSet
from isolib.namespaces.adopt import of as of
from isolib.namespaces.adopt import open_cgroupns as open_cgroupns
from isolib.namespaces.adopt import open_ipcns as open_ipcns
from isolib.namespaces.adopt import open_mntns as open_mntns
from isolib.namespaces.adopt import open_netns as open_netns
from isolib.namespaces.adopt import open_pidns as open_pidns
from isolib.namespaces.adopt import open_timens as open_timens
from isolib.namespaces.adopt import open_userns as open_userns
from isolib.namespaces.adopt import open_utsns as open_utsns
from isolib.namespaces.handle import Entered as Entered
from isolib.namespaces.handle import Namespace as Namespace
from isolib.namespaces.kinds import CgroupNS as CgroupNS
from isolib.namespaces.kinds import IpcNS as IpcNS
from isolib.namespaces.kinds import MntNS as MntNS
from isolib.namespaces.kinds import NetNS as NetNS
from isolib.namespaces.kinds import PidNS as PidNS
from isolib.namespaces.kinds import TimeNS as TimeNS
from isolib.namespaces.kinds import UserNS as UserNS
from isolib.namespaces.kinds import UtsNS as UtsNS
from isolib.namespaces.make import new_cgroupns as new_cgroupns
from isolib.namespaces.make import new_ipcns as new_ipcns
from isolib.namespaces.make import new_mntns as new_mntns
from isolib.namespaces.make import new_netns as new_netns
from isolib.namespaces.make import new_pidns as new_pidns
from isolib.namespaces.make import new_timens as new_timens
from isolib.namespaces.make import new_userns as new_userns
from isolib.namespaces.make import new_utsns as new_utsns
from isolib.namespaces.tree import NamespaceNode as NamespaceNode
from isolib.namespaces.tree import NamespaceTree as NamespaceTree
from isolib.namespaces.tree import tree as tree
