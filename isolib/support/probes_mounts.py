"""Probes of mounts: file systems are made in a mount namespace that ends with the probe, attached to nothing of the host's."""

from __future__ import annotations

import os
from errno import EINVAL, EPERM
from functools import partial
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib._kernel.plan import INSIDE, Step
from isolib.errors import SyscallError
from isolib.support import refusals
from isolib.support.attempts import (
    add_attached,
    add_file_system,
    attempt,
    descriptor,
    flag,
    option,
    own_room,
    resident,
    room,
    user_namespace,
)
from isolib.support.examination import Probe, mode_of
from isolib.support.refusals import Need, Refusal, Refused, said

if TYPE_CHECKING:
    from isolib._kernel.plan import Builder, Slot
    from isolib.support.examination import Examination
    from isolib.support.facts import Facts

_OVERLAY: Final = Need(since="3.18", option="CONFIG_OVERLAY_FS", module="overlay")
_LAYERS: Final = ("lower", "upper", "work")
_OPEN_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def _explain(error: SyscallError, need: Need, facts: Facts) -> Refusal:
    if error.op == "openat2":
        return refusals.device_file(str(error.target), error.errno, mode_of(str(error.target)), need, facts)
    return refusals.mount(error.op, error.errno, need, facts, new_user=not facts.has("CAP_SYS_ADMIN"))


def _explain_in_user_namespace(error: SyscallError, need: Need, facts: Facts) -> Refusal:
    return refusals.mount(error.op, error.errno, need, facts, new_user=True)


def _tmpfs(exam: Examination) -> str:
    builder = own_room(exam.facts, "mnt")
    add_file_system(builder, "tmpfs", option("size", "4k"), option("mode", "0700"))
    attempt(exam.facts, builder)
    return ""


def _clone_root(builder: Builder) -> Slot:
    # Recursive: in a user namespace a mount may not be cloned without those that cover parts of it.
    flags = calls.OPEN_TREE_CLONE | calls.OPEN_TREE_CLOEXEC | calls.AT_RECURSIVE
    return builder.produce(INSIDE, Step("OPEN_TREE", text=b"/", flags=flags, what="/"), "copy of /")


def _open_tree(exam: Examination) -> str:
    builder = own_room(exam.facts, "mnt")
    _clone_root(builder)
    attempt(exam.facts, builder)
    return ""


def _move_mount(exam: Examination) -> str:
    builder = own_room(exam.facts, "mnt")
    add_attached(builder, add_file_system(builder, "tmpfs"))
    attempt(exam.facts, builder)
    return ""


def _set_attributes(builder: Builder, mount: Slot, attributes: int, userns: Slot | None = None) -> None:
    flags = calls.AT_EMPTY_PATH | (0 if userns else calls.AT_RECURSIVE)
    builder.add(INSIDE, Step("MOUNT_SETATTR", fd=mount, fd2=userns, flags=flags, value=attributes, what="copy of /"))


def _mount_setattr(exam: Examination) -> str:
    builder = own_room(exam.facts, "mnt")
    _set_attributes(builder, _clone_root(builder), calls.MOUNT_ATTR_RDONLY)
    attempt(exam.facts, builder)
    return "recursive read-only"


def _id_mapped(exam: Examination) -> str:
    facts = exam.facts
    root = next((mount.fs_type for mount in reversed(facts.mounts) if mount.mount_point == "/"), "the root")
    with resident(facts, room(facts, "user")) as owner:
        userns = user_namespace(owner)
    try:
        builder = own_room(facts, "mnt")
        slot = builder.declare(userns, "user namespace")
        flags = calls.OPEN_TREE_CLONE | calls.OPEN_TREE_CLOEXEC
        if not facts.has("CAP_SYS_ADMIN"):
            flags |= calls.AT_RECURSIVE
        tree = builder.produce(INSIDE, Step("OPEN_TREE", text=b"/", flags=flags, what="/"), "copy of /")
        _set_attributes(builder, tree, calls.MOUNT_ATTR_IDMAP, slot)
        attempt(facts, builder)
    except SyscallError as error:
        reason = said(error.op, error.target, error.errno)
        if error.op == "mount_setattr" and error.errno == EPERM and not facts.has("CAP_SYS_ADMIN"):
            raise Refused(
                reason, refusals.lacks("CAP_SYS_ADMIN", facts, "root: it takes the owner of the file system")
            ) from error
        if error.op == "mount_setattr" and error.errno == EINVAL:
            by = Refusal(f"the kernel: not on {root}", f"a root on another file system, or a kernel that can on {root}")
            raise Refused(reason, by) from error
        raise
    finally:
        os.close(userns)
    return f"on {root}, the file system of /"


_NAMESPACE: Final = 0x2  # OPEN_TREE_NAMESPACE and FSMOUNT_NAMESPACE of linux/mount.h


def _open_tree_namespace(exam: Examination) -> str:
    builder = own_room(exam.facts, "mnt")
    flags = _NAMESPACE | calls.OPEN_TREE_CLOEXEC | calls.AT_RECURSIVE
    builder.produce(INSIDE, Step("OPEN_TREE", text=b"/", flags=flags, what="OPEN_TREE_NAMESPACE"), "mount namespace")
    attempt(exam.facts, builder)
    return ""


def _fsmount_namespace(exam: Examination) -> str:
    builder = own_room(exam.facts, "mnt")
    add_file_system(builder, "tmpfs", flags=_NAMESPACE)
    attempt(exam.facts, builder)
    return ""


# ---- overlay ----


def _add_layers(builder: Builder) -> Slot:
    tree = add_file_system(builder, "tmpfs")
    for name in _LAYERS:
        builder.add(INSIDE, Step("MKDIR", fd=tree, text=name.encode(), value=0o755, what=name))
    return tree


def _add_overlay_by_path(builder: Builder, key: str = "lowerdir", *options: Step) -> None:
    """Mount an overlay whose layers are named by paths, relative to the working directory: no path of the host is needed."""
    tree = _add_layers(builder)
    add_attached(builder, tree)  # kernels up to 6.14 take no layers from a mount that is not
    builder.add(INSIDE, Step("FCHDIR", fd=tree, what="layers"))
    add_file_system(builder, "overlay", option(key, "lower"), option("upperdir", "upper"), option("workdir", "work"), *options)


def _add_overlay_by_descriptor(builder: Builder) -> None:
    tree = _add_layers(builder)
    slots = [
        builder.produce(INSIDE, Step("OPEN", fd=tree, text=name.encode(), flags=_OPEN_DIRECTORY, what=name), name)
        for name in _LAYERS
    ]
    keys = ("lowerdir+", "upperdir", "workdir")
    add_file_system(builder, "overlay", *(descriptor(key, slot) for key, slot in zip(keys, slots, strict=True)))


def _overlay(exam: Examination) -> str:
    builder = room(exam.facts, "mnt")
    _add_overlay_by_path(builder)
    attempt(exam.facts, builder)
    return ""


def _overlay_with(kind: str, exam: Examination) -> str:
    """Mount an overlay as isolib would for this caller: as root, or as root of a user namespace."""
    builder = room(exam.facts, "user", "mnt") if kind == "user" else own_room(exam.facts, "mnt")
    match kind:
        case "descriptor":
            _add_overlay_by_descriptor(builder)
        case "append":
            _add_overlay_by_path(builder, "lowerdir+")
        case "userxattr" | "volatile":
            _add_overlay_by_path(builder, "lowerdir", flag(kind))
        case _:
            _add_overlay_by_path(builder)
    attempt(exam.facts, builder)
    return ""


def _tmpfs_xattr(exam: Examination) -> str:
    """Set an extended attribute on a file of a tmpfs that belongs to a user namespace; the mount is handed over for it."""
    builder = room(exam.facts, "user", "mnt")
    builder.pty = add_file_system(builder, "tmpfs")
    with resident(exam.facts, builder) as launched:
        file = os.open("file", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=launched.pty)
        try:
            os.setxattr(file, "user.isolib", b"1")
        except OSError as error:
            need = Need(since="6.6", option="CONFIG_TMPFS_XATTR")
            reason = said("setxattr", "user.isolib", error.errno or 0)
            raise Refused(reason, refusals.without(need, exam.facts)) from error
        finally:
            os.close(file)
    return "user.*"


# ---- file systems of the kernel's ----


def _of_kernel(fs_type: str, kinds: tuple[str, ...], exam: Examination) -> str:
    builder = own_room(exam.facts, *kinds)
    add_file_system(builder, fs_type)
    attempt(exam.facts, builder)
    return ""


def _explain_procfs(error: SyscallError, need: Need, facts: Facts) -> Refusal:
    if error.op == "fsmount":
        return refusals.procfs(error.errno, facts)
    return _explain(error, need, facts)


def _fuse(exam: Examination) -> str:
    """Mount a FUSE file system that nobody serves; it ends with its descriptor.

    Kernels want the descriptor by number and opened in the same user namespace: it becomes number 0 of the process.
    """
    builder = own_room(exam.facts, "mnt")
    device = Step("OPEN", text=b"/dev/fuse", flags=os.O_RDWR | os.O_CLOEXEC, what="/dev/fuse")
    builder.add(INSIDE, Step("STDIO", fd=builder.produce(INSIDE, device, "/dev/fuse"), what="/dev/fuse"))
    options = (option("fd", "0"), option("rootmode", "40000"), option("user_id", "0"), option("group_id", "0"))
    add_file_system(builder, "fuse", *options)
    attempt(exam.facts, builder)
    return ""


_FUSE: Final = Need(since="4.18", option="CONFIG_FUSE_FS", module="fuse")

MOUNTS: Final = (
    Probe("fsopen", _tmpfs, Need(since="5.2", option="CONFIG_TMPFS"), _explain),
    Probe("open_tree", _open_tree, Need(since="5.2"), _explain),
    Probe("move_mount", _move_mount, Need(since="5.2"), _explain),
    Probe("mount_setattr", _mount_setattr, Need(since="5.12"), _explain),
    Probe("OPEN_TREE_NAMESPACE", _open_tree_namespace, Need(since="7.0"), _explain),
    Probe("FSMOUNT_NAMESPACE", _fsmount_namespace, Need(since="7.1"), _explain),
    Probe("id-mapped mounts", _id_mapped, Need(since="5.12"), _explain),
    Probe("overlay", _overlay, _OVERLAY, _explain),
    Probe(
        "overlay in user namespace",
        partial(_overlay_with, "user"),
        Need("5.11", _OVERLAY.option, "overlay"),
        _explain_in_user_namespace,
    ),
    Probe("overlay lowerdir+", partial(_overlay_with, "append"), Need("6.5", _OVERLAY.option, "overlay"), _explain),
    Probe("overlay layers by fd", partial(_overlay_with, "descriptor"), Need("6.13", _OVERLAY.option, "overlay"), _explain),
    Probe("overlay userxattr", partial(_overlay_with, "userxattr"), Need("5.11", _OVERLAY.option, "overlay"), _explain),
    Probe("overlay volatile", partial(_overlay_with, "volatile"), Need("5.10", _OVERLAY.option, "overlay"), _explain),
    Probe("tmpfs xattr", _tmpfs_xattr, Need(since="6.6", option="CONFIG_TMPFS_XATTR"), _explain_in_user_namespace),
    Probe("fuse", _fuse, _FUSE, _explain),
    Probe("procfs", partial(_of_kernel, "proc", ("pid", "mnt")), Need(option="CONFIG_PROC_FS"), _explain_procfs),
    Probe("devpts", partial(_of_kernel, "devpts", ("mnt",)), Need(option="CONFIG_UNIX98_PTYS"), _explain),
    Probe("mqueue", partial(_of_kernel, "mqueue", ("ipc", "mnt")), Need(option="CONFIG_POSIX_MQUEUE"), _explain),
)
