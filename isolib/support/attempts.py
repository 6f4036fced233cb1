"""Trying things in a throw-away process: the launcher runs a plan to its end, and nothing of it stays.

Nothing is forked from the interpreter, the caller's own namespaces, credentials and descriptors are not touched, and what fails
comes back as the step and its error number.
"""

from __future__ import annotations

import os
import select
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib._kernel.launch import launch
from isolib._kernel.plan import HOLD, INSIDE, Builder, Step
from isolib.errors import SetupFailed
from isolib.support import refusals
from isolib.support.refusals import Refused, said

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolib._kernel.launch import Launched
    from isolib._kernel.plan import Slot
    from isolib.support.facts import Facts

_NULL: Final = (calls.STDIO_NULL, calls.STDIO_NULL, calls.STDIO_NULL)

#: A cgroup namespace shows as its root the group in which it was unshared, and a time namespace is for the next process only,
#: so the launcher does not clone into these.
_UNSHARED: Final = ("cgroup", "time")

#: The calls that make namespaces; whatever was to be tried, a refusal by one of them is about these.
_BIRTH: Final = frozenset({"clone3", "unshare", "write"})


def room(facts: Facts, *kinds: str) -> Builder:
    """Return a plan for a process in new namespaces; in a new user namespace it is root, and outside the caller."""
    builder = Builder()
    for kind in kinds:
        flag = calls.NAMESPACE_FLAGS[kind]
        if kind in _UNSHARED:
            builder.add(INSIDE, Step("UNSHARE", flags=flag, what=f"{kind} namespace"))
        else:
            builder.clone_flags |= flag
    if "user" in kinds:
        builder.map("uid_map", f"0 {facts.uid} 1\n")
        if not facts.has("CAP_SETGID"):
            builder.map("setgroups", "deny")
        builder.map("gid_map", f"0 {facts.gid} 1\n")
    if "pid" in kinds:
        builder.supervise_flags = 1
    return builder


def own_room(facts: Facts, *kinds: str) -> Builder:
    """Return a room as isolib would make it for this caller: with a user namespace where it cannot do without."""
    return room(facts, *kinds) if facts.has("CAP_SYS_ADMIN") else room(facts, "user", *kinds)


def kinds_of(builder: Builder) -> tuple[str, ...]:
    """Return the kinds of namespaces that are made by the clone of a plan."""
    return tuple(kind for kind, flag in calls.NAMESPACE_FLAGS.items() if builder.clone_flags & flag)


@contextmanager
def resident(facts: Facts, builder: Builder) -> Iterator[Launched]:
    """Run a plan's steps in a process that stays for the length of the block.

    Raises
    ------
    Refused
        The namespaces could not be made.
    SetupFailed
        Another step failed.
    """
    try:
        launched = launch(builder.build(HOLD), builder.fds, stdio=_NULL)
    except SetupFailed as error:
        kinds = ((error.target or "").partition(" ")[0],) if error.op == "unshare" else kinds_of(builder)
        if error.op in _BIRTH and kinds:
            reason = said(error.op, ", ".join(kinds), error.errno)
            raise Refused(reason, refusals.namespace(kinds, error.op, error.errno, facts)) from error
        raise
    try:
        yield launched
    finally:
        end(launched)


def end(launched: Launched) -> None:
    """End a process and wait until it is gone with all that it owned."""
    pidfd = os.dup(launched.pidfd)
    try:
        launched.close()
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll()
        calls.reap(pidfd)
    finally:
        os.close(pidfd)


def attempt(facts: Facts, builder: Builder) -> None:
    """Run a plan's steps, and undo them by ending the process; raises as `resident`."""
    with resident(facts, builder):
        pass


# ---- steps ----


def option(key: str, value: str) -> Step:
    """Return the step that sets an option of a file system to a text."""
    return Step("FSCONFIG", flags=calls.FSCONFIG_SET_STRING, text=key.encode(), text2=value.encode(), what=f"{key}={value}")


def flag(key: str) -> Step:
    """Return the step that sets a flag of a file system."""
    return Step("FSCONFIG", flags=calls.FSCONFIG_SET_FLAG, text=key.encode(), what=key)


def descriptor(key: str, slot: Slot) -> Step:
    """Return the step that sets an option of a file system to a descriptor."""
    return Step("FSCONFIG", fd2=slot, flags=calls.FSCONFIG_SET_FD, text=key.encode(), what=f"{key} by descriptor")


def add_file_system(builder: Builder, fs_type: str, *options: Step, flags: int = 0) -> Slot:
    """Make a file system; its mount is attached nowhere.  ``flags`` are those of fsmount(2)."""
    what = fs_type
    context = builder.produce(
        INSIDE, Step("FSOPEN", text=fs_type.encode(), flags=calls.FSOPEN_CLOEXEC, what=what), f"{fs_type} context"
    )
    for one in options:
        builder.add(INSIDE, one._replace(fd=context))
    builder.add(INSIDE, Step("FSCONFIG", fd=context, flags=calls.FSCONFIG_CMD_CREATE, what=what))
    mount = Step("FSMOUNT", fd=context, flags=calls.FSMOUNT_CLOEXEC | flags, what=what)
    return builder.produce(INSIDE, mount, fs_type)


def add_attached(builder: Builder, mount: Slot) -> None:
    """Attach a mount over "/" of the process's own mount namespace, whose mounts no longer spread anywhere then."""
    spread = Step("MOUNT_SETATTR", text=b"/", flags=calls.AT_RECURSIVE, size2=calls.MS_PRIVATE, what="/ (propagation)")
    builder.add(INSIDE, spread)
    builder.add(INSIDE, Step("MOVE_MOUNT", fd=mount, text2=b"/", flags=calls.MOVE_MOUNT_F_EMPTY_PATH, what="/"))


def user_namespace(launched: Launched) -> int:
    """Return a descriptor of a process's user namespace."""
    with suppress(OSError):  # before Linux 6.11
        return calls.pidfd_namespace(launched.pidfd, "user")
    return os.open(f"/proc/{launched.supervisor_pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
