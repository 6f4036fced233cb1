"""Who refused, and what would help: from a failed call, its error number and the facts.  Pure, and tested without a kernel."""

from __future__ import annotations

from dataclasses import dataclass, replace
from errno import (
    EACCES,
    EAFNOSUPPORT,
    EAGAIN,
    EDQUOT,
    EINVAL,
    EMFILE,
    ENFILE,
    ENODEV,
    ENOENT,
    ENOMEM,
    ENOSPC,
    ENOSYS,
    ENOTTY,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
    EPROTONOSUPPORT,
    EUSERS,
    errorcode,
)
from os import strerror
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from isolib.support.facts import Facts

#: Kernel options, by what they give.
_NAMESPACE_OPTION: Final = {
    "user": "CONFIG_USER_NS",
    "mnt": "CONFIG_NAMESPACES",
    "pid": "CONFIG_PID_NS",
    "net": "CONFIG_NET_NS",
    "ipc": "CONFIG_IPC_NS",
    "uts": "CONFIG_UTS_NS",
    "cgroup": "CONFIG_CGROUPS",
    "time": "CONFIG_TIME_NS",
}

#: The first kernels that have a call, where a feature makes several.
_SINCE: Final = {"fsopen": "5.2", "open_tree": "5.2", "move_mount": "5.2", "mount_setattr": "5.12", "openat2": "5.6"}

#: What kernels answer to a request that they do not know.
_UNKNOWN_TO_KERNEL: Final = frozenset({EINVAL, ENOTTY, EOPNOTSUPP, ENODEV, ENXIO, ENOENT, EPROTONOSUPPORT, EAFNOSUPPORT})

FILTER: Final = "a seccomp filter in force"
_NO_FILTER: Final = "allow the call in the filter (Docker: --security-opt seccomp=unconfined)"


class Refusal(NamedTuple):
    """Who refuses, and what would allow it."""

    refused_by: str
    remedy: str


class Refused(Exception):
    """Raised by a probe that knows who refuses.

    Parameters
    ----------
    reason
        What was seen.
    refusal
        Who refuses, and the remedy.
    """

    def __init__(self, reason: str, refusal: Refusal) -> None:
        super().__init__(reason, refusal)
        self.reason = reason
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class Need:
    """What a feature needs of the kernel.

    Attributes
    ----------
    since
        The first version that has it, for telling a kernel that is too old from a filter.
    option
        The kernel option that builds it, where there is one.
    module
        The module, where that option makes one.
    capability
        The capability that it takes.
    """

    since: str = ""
    option: str = ""
    module: str = ""
    capability: str = ""


NOTHING: Final = Need()


def said(op: str, target: str | None, errno: int) -> str:
    """Return a failed call as the reason of a feature."""
    object_of = f": {target}" if target else ""
    return f"{op}{object_of}: {strerror(errno)} ({errorcode.get(errno, errno)})"


def without(need: Need, facts: Facts) -> Refusal:
    """Say that the kernel lacks something: too old, not configured, or its module not loaded."""
    option, module = need.option, need.module
    state = facts.config(option) if option else ""
    if state == "m" and module:
        return _not_loaded(module, facts)
    if need.since and not facts.is_since(need.since):
        return Refusal(f"the kernel: older than Linux {need.since}", f"Linux {need.since} or later")
    if state == "y":
        return Refusal(f"the kernel, although {option} is set", "the boot parameters may disable it; see the kernel's log")
    if state:
        return Refusal(f"the kernel: built without {option}", f"a kernel with {option}")
    load = f"modprobe {module}, or " if module else ""
    return Refusal("the kernel" + (f": perhaps without {option}" if option else ""), f"{load}a kernel with {option or 'it'}")


def _not_loaded(module: str, facts: Facts) -> Refusal:
    if facts.sysctls.get("kernel.modules_disabled") == "1":
        return Refusal(facts.knob("kernel.modules_disabled"), f"load the module {module} at boot")
    return Refusal(f"the kernel module {module}: it is not loaded", f"modprobe {module}, as root")


def lacks(capability: str, facts: Facts, remedy: str = "") -> Refusal:
    """Say that the caller lacks a capability."""
    return Refusal(f"missing capability {capability}", remedy or f"root instead of {facts.user}, or {capability}")


def call(op: str, errno: int, need: Need, facts: Facts) -> Refusal:
    """Say who refused a system call, from its error number alone."""
    name = errorcode.get(errno, str(errno))
    if errno == ENOSYS:
        return _not_there(replace(need, since=_SINCE.get(op, need.since)), facts)
    if errno in (EPERM, EACCES):
        return _denied(op, need, facts)
    if errno in _UNKNOWN_TO_KERNEL:
        return without(need, facts)
    if errno == EDQUOT and "kernel.keys.maxkeys" in facts.sysctls:
        return Refusal(facts.knob("kernel.keys.maxkeys"), "raise kernel.keys.maxkeys")
    return Refusal(f"the kernel ({name})", f"none known; the manual of {op} may say what {name} means")


def _not_there(need: Need, facts: Facts) -> Refusal:
    """ENOSYS: from a kernel that calls itself new enough, and is not built without it, it is a filter that answers so."""
    built = not need.option or facts.config(need.option) != "n"
    if facts.seccomp and built and (not need.since or facts.is_since(need.since)):
        return Refusal(FILTER, _NO_FILTER)
    return without(need, facts)


def shortage(op: str, target: str | None, errno: int) -> Refusal | None:
    """Return what a failure was for want of, whatever was tried: descriptors, processes, memory, /proc; else None."""
    if op == "open" and target == "/proc":
        return Refusal("nobody: procfs is not mounted at /proc", "mount -t proc proc /proc")
    return _SHORTAGES.get(errno)


_SHORTAGES: Final = {
    EMFILE: Refusal("RLIMIT_NOFILE of the caller: all descriptors are in use", "close some, or raise it (ulimit -n)"),
    ENFILE: Refusal("fs.file-max: the host has too many files open", "sysctl -w fs.file-max=..."),
    EAGAIN: Refusal("RLIMIT_NPROC, pids.max of a cgroup, or kernel.pid_max", "end some processes, or raise it"),
    ENOMEM: Refusal("memory: there is none left, on the host or in the cgroup", "free some, or raise memory.max"),
}


def _denied(op: str, need: Need, facts: Facts) -> Refusal:
    if need.capability and not facts.has(need.capability):
        return lacks(need.capability, facts)
    if facts.seccomp:
        return Refusal(FILTER, _NO_FILTER)
    if facts.apparmor:
        return Refusal(f"AppArmor, profile {facts.apparmor}", "a profile that allows it, or none")
    return Refusal("a security module, or the kernel's own policy", f"see the kernel's log for {op}")


# ---- namespaces ----


def namespace(kinds: Collection[str], op: str, errno: int, facts: Facts) -> Refusal:
    """Say who refused new namespaces of these kinds (or, with ``op`` "write", the id maps of a new user namespace)."""
    if errno in (ENOSPC, EUSERS):
        return _used_up(kinds, facts)
    if errno in (EPERM, EACCES):
        return _no_namespace(kinds, op, facts)
    absent = [kind for kind in kinds if kind not in facts.namespaces]
    if errno in (EINVAL, ENOSYS) and absent:
        return without(Need(option=_NAMESPACE_OPTION[absent[0]]), facts)
    return shortage(op, None, errno) or call(op, errno, Need(since="5.3" if op == "clone3" else ""), facts)


def _no_namespace(kinds: Collection[str], op: str, facts: Facts) -> Refusal:
    if "user" in kinds:
        return _no_user_namespace(op, facts)
    if facts.has("CAP_SYS_ADMIN"):
        return _denied(op, NOTHING, facts)
    others = ", ".join(repr(kind) for kind in kinds)
    return lacks("CAP_SYS_ADMIN", facts, f"a user namespace as well: new={{{others}, 'user'}}")


def _used_up(kinds: Collection[str], facts: Facts) -> Refusal:
    """ENOSPC: the message that no space is left on a device is about a number of namespaces."""
    knobs = [f"user.max_{kind}_namespaces" for kind in kinds]
    zero = [knob for knob in knobs if facts.sysctls.get(knob) == "0"]
    if zero:
        return Refusal(facts.knob(zero[0]), f"sysctl -w {zero[0]}=10000")
    known = " or ".join(facts.knob(knob) for knob in knobs if knob in facts.sysctls) or " or ".join(knobs)
    nested = "; user namespaces nest 32 deep" if "user" in kinds else ""
    return Refusal(f"{known}, here or in an outer user namespace{nested}", "raise it there, or end what uses them up")


def _no_user_namespace(op: str, facts: Facts) -> Refusal:
    clone = "kernel.unprivileged_userns_clone"
    if facts.sysctls.get(clone) == "0" and not facts.has("CAP_SYS_ADMIN"):
        return Refusal(facts.knob(clone), f"sysctl -w {clone}=1")
    apparmor = apparmor_refusal(facts)
    if apparmor:
        return apparmor
    if facts.chroot:
        return Refusal("the kernel: the caller is in a chroot", "pivot_root instead of chroot, or start outside of it")
    if op == "write":
        return Refusal("the kernel: ids of the caller that its own user namespace does not map", "start with mapped ids")
    return _denied(op, NOTHING, facts)


def apparmor_refusal(facts: Facts) -> Refusal | None:
    """Return AppArmor as the one who refuses user namespaces, or rights in them, to unprivileged programs."""
    knob = "kernel.apparmor_restrict_unprivileged_userns"
    if facts.sysctls.get(knob, "0") == "0" or facts.has("CAP_SYS_ADMIN"):
        return None
    return Refusal(f"AppArmor: {facts.knob(knob)}", f"a profile with 'userns,' for this program, or sysctl -w {knob}=0")


# ---- mounts ----


def mount(op: str, errno: int, need: Need, facts: Facts, *, new_user: bool) -> Refusal:
    """Say who refused a step of making a mount; ``new_user``: within a user namespace of our own."""
    if errno not in (EPERM, EACCES):
        return call(op, errno, need, facts)
    if not new_user:
        return _denied(op, Need(capability="CAP_SYS_ADMIN"), facts)
    # There the process has every capability over what it owns.  A file system that is not for user namespaces is refused when
    # it is created.
    if op == "fsconfig" and need.since and not facts.is_since(need.since):
        return Refusal(f"the kernel: not in a user namespace before Linux {need.since}", f"Linux {need.since}, or root")
    return apparmor_refusal(facts) or _denied(op, NOTHING, facts)


def procfs(errno: int, facts: Facts) -> Refusal:
    """Say who refused a new procfs: the kernel, when the caller's own shows less than a new one would."""
    if errno != EPERM:
        return call("fsmount", errno, NOTHING, facts)
    if facts.over_proc:
        covered = ", ".join(facts.over_proc[:2]) + (", ..." if len(facts.over_proc) > 2 else "")  # noqa: PLR2004 - brevity
        return Refusal(
            f"the kernel: the caller's /proc is covered in part ({covered})",
            "start where /proc is whole (Docker: --security-opt systempaths=unconfined)",
        )
    return Refusal("the kernel: no procfs that shows everything is mounted here", "start where /proc is mounted, and whole")


# ---- files and tools ----


def device_file(path: str, errno: int, mode: str, need: Need, facts: Facts) -> Refusal:
    """Say who refused to open a device file; ``mode`` is that of the file and its owner, as ``ls -l`` shows them."""
    absent = errno in (ENOENT, ENODEV, ENXIO)
    if need.capability and not facts.has(need.capability) and not (absent and facts.config(need.option) == "n"):
        return lacks(need.capability, facts)
    if errno == ENOENT and facts.config(need.option) == "y":
        return Refusal(f"{path}: there is none", "a /dev that has it (devtmpfs; Docker: --device)")
    if absent:
        return without(need, facts)
    if errno == EPERM:
        return Refusal("the device controller of a cgroup", f"allow {path} there (Docker: --device {path})")
    if errno == EACCES:
        return Refusal(f"the mode of {path}: {mode}", f"chmod 0666 {path}, or add {facts.user} to its group")
    return call("open", errno, need, facts)


def tool(name: str, package: str) -> Refusal:
    """Say that a program is not installed."""
    return Refusal(f"missing tool {name}", f"apt-get install {package}")


# ---- subordinate ids ----


def next_free(grants: Collection[tuple[int, int]], count: int = 65536) -> int:
    """Return where a new range in /etc/subuid can start: after all others, at 100000 when there are none."""
    end = max((start + size for start, size in grants), default=0)
    return max(100000, -(-end // count) * count if end > 100000 else 0)  # noqa: PLR2004 - useradd's first


def no_range(missing: Mapping[str, Collection[tuple[int, int]]], facts: Facts) -> Refusal:
    """Say that a user has no subordinate ids: ``missing`` are the files, and all that they grant to others."""
    words = []
    for file, grants in missing.items():
        start = next_free(grants)
        words += ["--add-subuids" if file.endswith("subuid") else "--add-subgids", f"{start}-{start + 65535}"]
    files = " and ".join(missing)
    return Refusal(f"{files}: no range for {facts.user}", f"usermod {' '.join(words)} {facts.user}, as root")


def id_helper(path: str, *, exists: bool, privileged: bool, nosuid: bool, facts: Facts) -> Refusal | None:
    """Return why newuidmap or newgidmap cannot work for this caller, or None."""
    if not exists:
        return tool(path.rpartition("/")[2], "uidmap")
    if facts.no_new_privs:
        return Refusal("no_new_privs of the caller: setuid programs gain nothing", "start without no_new_privs")
    if not privileged:
        return Refusal(f"{path}: neither setuid nor with capabilities", f"chmod u+s {path}, as root")
    if nosuid:
        return Refusal(f"{path} lies on a nosuid mount", "remount it with suid")
    return None


# ---- cgroups ----


def cgroup_write(path: str, owner: str, facts: Facts, *, readonly: bool, unified: bool, systemd: bool) -> Refusal:
    """Say why the caller cannot make groups in its own."""
    if readonly:
        return Refusal(f"{path}: cgroupfs is mounted read-only", "start with a writable one (Docker: --cgroupns private, rw)")
    refused_by = f"missing delegation: {path} belongs to {owner}"
    if unified and systemd:
        return Refusal(refused_by, "systemd-run --user --scope -p Delegate=yes COMMAND, or Delegate=yes in the unit")
    return Refusal(refused_by, f"as root: chown -R {facts.user} a group, and start in it")


def controller_off(name: str, state: str, need: Need, facts: Facts) -> Refusal:
    """Say why a cgroup controller is not there: ``state`` is "absent", "disabled" (at boot) or "unbound"."""
    if state == "disabled":
        return Refusal(f"the boot parameter cgroup_disable={name}", "boot without it")
    if state == "unbound":
        return Refusal(f"nobody: {name} is in no mounted hierarchy", f"as root: mount -t cgroup -o {name} cgroup DIRECTORY")
    return without(need, facts)


def controller_not_enabled(name: str, parent: str) -> Refusal:
    """Say that a v2 controller is there, and that no group below ``parent`` has it."""
    file = f"{parent}/cgroup.subtree_control"
    return Refusal(f"missing delegation: {name} is not in {file}", f"as root: echo +{name} > {file} (systemd: Delegate={name})")
