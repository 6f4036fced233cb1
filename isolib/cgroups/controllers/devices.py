"""Which devices the processes of a group may use: rules, and the two forms in which kernels take them.

On cgroup v2 a BPF program decides, which `attach` makes of the rules and attaches to the group's directory. It stays with the
group, whoever closes what, and goes when the directory is removed; what is below the group is bound by it too. On v1 the rules
are written into the group's files devices.allow and devices.deny (`v1_writes`).

The kernel asks when a device node is opened or made, not when an open one is used: what a process has open, it keeps. It does
not ask about what has no node, such as network interfaces, nor since 5.8 for the making of a whiteout (the character device
0:0), by hand or where overlayfs makes one for who deletes a file.

Sources: Documentation/admin-guide/cgroup-v2.rst ("Device controller"), cgroup-v1/devices.rst, security/device_cgroup.c, bpf(2).
"""

from __future__ import annotations

from errno import E2BIG, EBADF, EINVAL, ENOENT, ENOSYS, EPERM
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib._kernel.handle import Rollback
from isolib.cgroups.controllers.device_forms import program, v1_writes
from isolib.cgroups.controllers.device_rules import STANDARD_DEVICES, DeviceRule, evaluate
from isolib.errors import SyscallError, Unsupported, from_errno

if TYPE_CHECKING:
    from collections.abc import Iterable

    from isolib._kernel.handle import Fd

__all__ = [
    "STANDARD_DEVICES",
    "DeviceRule",
    "attach",
    "attached",
    "detach",
    "evaluate",
    "program",
    "replace",
    "v1_writes",
]


def attach(dir_fd: int, rules: Iterable[DeviceRule]) -> Fd:
    """Bind a group of cgroup v2 to rules, besides what it is bound to already: an access must be allowed by all.

    Parameters
    ----------
    dir_fd
        A descriptor of the group's directory.
    rules
        The list of rules.

    Returns
    -------
    Fd
        The program, for `replace` and `detach`. Closing it changes nothing: the program goes with the group.

    Raises
    ------
    PlanError
        A rule is none, or there are too many.
    PermissionDenied
        It takes CAP_BPF and CAP_NET_ADMIN, or CAP_SYS_ADMIN, in the first user namespace; or a group above has a program that
        tolerates no other.
    Unsupported
        The kernel has no device programs (4.15, CONFIG_CGROUP_BPF).
    SyscallError
        The descriptor is none of a cgroup v2 directory; the group has 64 programs; the kernel is short of memory.

    Notes
    -----
    bpf(2), BPF_PROG_LOAD and BPF_PROG_ATTACH with BPF_F_ALLOW_MULTI: groups below can be given programs too, and add to the
    restrictions but never take away.
    """
    loaded = _load(rules)
    with Rollback() as undo:
        undo.push(detach, dir_fd, loaded)
        _attach(undo, dir_fd, loaded)
        undo.dismiss()
    return loaded


def replace(dir_fd: int, old: Fd, rules: Iterable[DeviceRule]) -> Fd:
    """Give a group other rules: at no time is more allowed than either list allows, and what both allow is allowed throughout.

    Parameters
    ----------
    dir_fd
        A descriptor of the group's directory.
    old
        What `attach` or `replace` returned; closed afterwards.
    rules
        The list of rules.

    Returns
    -------
    Fd
        As `attach`.

    Raises
    ------
    IsolibError
        As `attach`; then the old rules hold.
    """
    loaded = _load(rules)
    with Rollback() as undo:
        undo.push(_restore, dir_fd, old, loaded)
        _attach(undo, dir_fd, loaded)
        detach(dir_fd, old)
        undo.dismiss()
    return loaded


def detach(dir_fd: int, attached_program: Fd) -> None:
    """Free a group from the rules of `attach`, and close the program; again, or when the group is gone, is nothing.

    Raises
    ------
    SyscallError
        As `attach`.
    """
    if attached_program.closed:
        return
    # Asked first: where the programs are somebody else's, and not attached with BPF_F_ALLOW_MULTI, the kernel would detach
    # whatever is there.
    if _is_attached(dir_fd, attached_program):
        calls.bpf_detach(dir_fd, attached_program.fileno())
    attached_program.close()


def attached(dir_fd: int, *, effective: bool = False) -> list[int]:
    """Return the ids of the device programs of a group of cgroup v2, in their order.

    Parameters
    ----------
    dir_fd
        A descriptor of the group's directory.
    effective
        Whether to return those of the groups above as well, which bind this one too.

    Raises
    ------
    SyscallError
        It takes CAP_NET_ADMIN; or the descriptor is none of a cgroup v2 directory.
    """
    try:
        return calls.bpf_attached(dir_fd, effective=effective)
    except SyscallError as error:
        raise _explained(error) from error


def _is_attached(dir_fd: int, loaded: Fd) -> bool:
    program_id = calls.bpf_program_info(loaded.fileno()).id
    try:
        return program_id in attached(dir_fd)
    except SyscallError as error:
        if error.errno == ENOENT:  # the group has been removed, and what was attached to it is detached
            return False
        raise


def _restore(dir_fd: int, old: Fd, loaded: Fd) -> None:
    """Undo half a replacement; one that was interrupted when the old program was gone is left, or nothing would hold."""
    if not old.closed and _is_attached(dir_fd, old):
        detach(dir_fd, loaded)


def _load(rules: Iterable[DeviceRule]) -> Fd:
    words = program(rules)
    try:
        return calls.take_device_program(words)
    except SyscallError as error:
        raise _explained(error) from error


def _attach(undo: Rollback, dir_fd: int, loaded: Fd) -> None:
    try:
        calls.bpf_attach(dir_fd, loaded.fileno(), calls.BPF_F_ALLOW_MULTI)
    except SyscallError as error:
        undo.dismiss()  # nothing was done
        loaded.close()
        raise _explained(error) from error


_PRIVILEGES: Final = (
    "it takes CAP_BPF and CAP_NET_ADMIN, or CAP_SYS_ADMIN, in the first user namespace, even with "
    "kernel.unprivileged_bpf_disabled = 0 (before Linux 5.11 room in RLIMIT_MEMLOCK too); whom it refuses in spite of them, "
    "a security module, kernel lockdown or a seccomp filter does"
)
_HINTS: Final = {
    EBADF: "it is no directory of cgroup v2",
    ENOENT: "the group has been removed",
    E2BIG: "the rules are too many for this kernel's verifier",
    EPERM: _PRIVILEGES,
}
_ATTACH_HINTS: Final = _HINTS | {
    E2BIG: "the group has 64 device programs, and takes no more",
    EPERM: f"the group, or one above it, has a device program that was attached without BPF_F_ALLOW_MULTI; or {_PRIVILEGES}",
}


def _explained(error: SyscallError) -> SyscallError | Unsupported:
    """Return the exception that says what a refusal of bpf(2) means here."""
    if error.errno in (EINVAL, ENOSYS):
        option = "CONFIG_BPF_SYSCALL" if error.errno == ENOSYS else "CONFIG_CGROUP_BPF"
        return Unsupported(
            "device rules on cgroup v2",
            f"the kernel, which is older than 4.15 or was built without {option}, or a seccomp filter",
            f"a kernel with {option}, or the devices controller of cgroup v1",
        )
    hints = _ATTACH_HINTS if error.target == "BPF_PROG_ATTACH" else _HINTS
    return from_errno(error.op, error.target, error.errno, hints.get(error.errno, error.hint))
