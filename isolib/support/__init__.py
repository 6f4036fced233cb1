"""What this host lets this user do, what refuses the rest, and what would help: `doctor`."""

from __future__ import annotations

from isolib.support.examination import Examination
from isolib.support.facts import gather
from isolib.support.probes_cgroups import CGROUPS
from isolib.support.probes_host import HOST
from isolib.support.probes_mounts import MOUNTS
from isolib.support.probes_namespaces import NAMESPACES
from isolib.support.probes_network import NETWORK
from isolib.support.probes_processes import CAPABILITY_PROBES, PROCESSES
from isolib.support.probes_storage import STORAGE, TOOLS
from isolib.support.report import Feature, Report

__all__ = ["Feature", "Report", "doctor"]

#: In the order in which they are examined: those of the host use what the others found.
_SECTIONS = {
    "processes": PROCESSES,
    "capabilities": CAPABILITY_PROBES,
    "namespaces": NAMESPACES,
    "mounts": MOUNTS,
    "storage": STORAGE,
    "cgroups": CGROUPS,
    "network": NETWORK,
    "programs of other projects": TOOLS,
    "host": HOST,
}


def doctor() -> Report:
    """Find out what this host lets this user do, by trying it.

    Every feature is used for real, in short-lived processes and namespaces that end with it.  The caller is left as it was: no
    change of its namespaces, mounts, credentials, signals, children or descriptors.  What the kernel loads for a feature (the
    module of a device or of a file system), it loads here as on first use.  Below the caller's cgroup, where that can be
    written, a group is made for a moment.

    No privileges are needed: the report is about the user who asks.  It takes some tenths of a second.

    Returns
    -------
    Report
        A mapping from name to `Feature`; printed, a table.  Nothing is raised for what does not work.

    Notes
    -----
    What is found holds for the calling thread, and until somebody changes a sysctl, loads a module, or mounts something.

    Examples
    --------
    >>> import isolib
    >>> report = isolib.doctor()
    >>> report["clone3"].available
    True
    >>> report.missing()  # doctest: +SKIP
    """
    with Examination(gather()) as exam:
        found = {title: [probe.examine(exam) for probe in probes] for title, probes in _SECTIONS.items()}
    return Report({"host": found.pop("host"), **found})
