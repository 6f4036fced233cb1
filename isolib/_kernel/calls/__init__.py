"""The typed face of the compiled extension, and its one importer.

Every function here is one system call (or the one call of a launch, or of a batch); a refusal becomes a
:class:`~isolib.errors.SyscallError` that names the call and its object.  Constants come from the compiler by way of the
extension, or are kernel ABI that no header of an older distribution has yet.
"""

from __future__ import annotations

from isolib._kernel.abi import *  # noqa: F403 - they are this module's constants
from isolib._kernel.calls.away import *  # noqa: F403
from isolib._kernel.calls.batching import *  # noqa: F403
from isolib._kernel.calls.bpf import *  # noqa: F403
from isolib._kernel.calls.btrfs import *  # noqa: F403
from isolib._kernel.calls.conversing import *  # noqa: F403
from isolib._kernel.calls.copying import *  # noqa: F403
from isolib._kernel.calls.files import *  # noqa: F403
from isolib._kernel.calls.launching import *  # noqa: F403
from isolib._kernel.calls.packing import *  # noqa: F403
from isolib._kernel.calls.quotas import *  # noqa: F403
from isolib._kernel.calls.reaping import *  # noqa: F403
from isolib._kernel.calls.relaying import *  # noqa: F403
from isolib._kernel.calls.stacking import *  # noqa: F403
from isolib._kernel.calls.system import *  # noqa: F403
