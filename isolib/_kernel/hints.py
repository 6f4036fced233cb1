"""What an error number means where the kernel's own words mislead, and what would help.

The kernel has some hundred error numbers for all that can go wrong: a user namespace over its limit is "No space left on
device", a missing interpreter is "No such file". `hint` knows the meaning for each system call that isolib makes. The facts
are those of the manual page of the call, and of the kernel's source where the page is silent.
"""

from __future__ import annotations

import errno as e
import os
from functools import wraps
from typing import TYPE_CHECKING, Final, ParamSpec, TypeAlias, TypeVar

from isolib.errors import IsolibError, from_errno

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    Sysctl: TypeAlias = Callable[[str], str | None]
    Hint: TypeAlias = str | Callable[[str, Sysctl], str | None]

__all__ = ["TABLE", "hint", "read_sysctl", "typed"]

P = ParamSpec("P")
R = TypeVar("R")

BIRTH = ("clone", "clone3", "fork", "unshare")
MOUNTING = ("fsconfig", "fsmount", "fsopen", "mount", "move_mount", "open_tree", "pivot_root", "umount", "umount2")
EXEC = ("execve", "execveat")
IDS = ("setgid", "setgroups", "setresgid", "setresuid", "setuid")
OWNERS = ("chown", "fchown", "fchownat", "lchown")
CREATE = ("mkdirat", "mknodat", "openat", "openat2", "symlinkat", "write")
LOOKUP = ("chdir", "fchdir", "open_tree", "openat", "openat2")
NAMES = ("setdomainname", "sethostname")
OWNER = ("ioctl NS_GET_PARENT", "ioctl NS_GET_USERNS")
HELPERS = ("newgidmap", "newuidmap")
LIMITS = ("prlimit", "prlimit64", "setrlimit")
LANDLOCK = ("landlock_create_ruleset", "landlock_restrict_self")
#: Everybody may make these calls.
FREE = (
    *("capget", "close_range", "dup3", "fcntl", "getcwd", "getresgid", "getresuid", "mmap", "pidfd_open", "pipe2"),
    *("setsid", "signalfd4", "socket", "socketpair"),
)
ANY = ("",)

NO_DESCRIPTORS: Final = "this process has as many descriptors as it may: raise RLIMIT_NOFILE (ulimit -n)"
KINDS: Final = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")


def read_sysctl(name: str) -> str | None:
    """Return the value of a sysctl, or None where it does not exist or cannot be read."""
    try:
        # As bytes: looking up a codec may take a descriptor, and that there are no more may be what is asked about.
        with open(f"/proc/sys/{name.replace('.', '/')}", "rb") as file:
            return file.read().decode("ascii").strip()
    except (OSError, ValueError):
        return None


def hint(op: str, errno: int, context: str | None = None, *, sysctl: Sysctl = read_sysctl) -> str | None:
    """Return what an error means and what would help, in one line.

    Parameters
    ----------
    op
        The system call: ``"unshare"``.
    errno
        The error number.
    context
        What it was applied to, in words: a path, a file system, a kind of namespace. Some hints depend on it.
    sysctl
        How to ask for a sysctl by its dotted name, for hints that tell which of several knobs it was.

    Returns
    -------
    str or None
        None when the kernel's own words say it all.

    Examples
    --------
    >>> hint("setns", 87)
    'a time namespace can be entered only by a process with one thread'
    """
    found = TABLE.get((op, errno)) or TABLE.get(("", errno))
    return found(context or "", sysctl) if callable(found) else found


# ---- hints that look around first ----


def _namespace_limit(context: str, sysctl: Sysctl) -> str:
    # kernel/ucount.c; since Linux 4.9 also for more than 32 levels, where it was EUSERS before.
    named = [kind for kind in KINDS if kind in context] or KINDS
    knobs = {name: sysctl(name) for name in (f"user.max_{kind}_namespaces" for kind in named)}
    if zero := [name for name, value in knobs.items() if value == "0"]:
        return f"{zero[0]} = 0: sysctl -w {zero[0]}=10000"
    known = " or ".join(f"{name} = {value}" for name, value in knobs.items() if value) if len(named) == 1 else ""
    return f"a limit on namespaces is reached: {known or 'one of user.max_*_namespaces'}; or the nesting is 32 levels deep"


def _userns_refused(_: str, sysctl: Sysctl) -> str:
    for name, refused, remedy in (
        (
            "kernel.apparmor_restrict_unprivileged_userns",
            "1",
            "an AppArmor profile with 'userns,' for this program, or sysctl -w {}=0",
        ),
        ("kernel.unprivileged_userns_clone", "0", "sysctl -w {}=1"),
        ("user.max_user_namespaces", "0", "sysctl -w {}=10000"),
    ):
        if sysctl(name) == refused:
            return f"{name} = {refused}: {remedy.format(name)}"
    return (
        "namespaces need CAP_SYS_ADMIN, or a new user namespace around them; that one is refused in a chroot, to who has "
        "no id in his own one, by seccomp filters (Docker's default one) and by security modules"
    )


def _no_inotify(_: str, sysctl: Sysctl) -> str:
    # inotify_init1(2) has one error number for two limits.
    try:
        os.close(os.eventfd(0, os.EFD_CLOEXEC))
    except OSError:
        return NO_DESCRIPTORS
    knob = "fs.inotify.max_user_instances"
    return f"this user has as many inotify instances as he may: sysctl {knob} = {sysctl(knob) or '?'}"


def _too_many_processes(_: str, sysctl: Sysctl) -> str:
    knobs = ", ".join(f"{name} = {sysctl(name) or '?'}" for name in ("kernel.pid_max", "kernel.threads-max"))
    return f"too many processes: RLIMIT_NPROC of this user, pids.max of a cgroup above, or {knobs}"


def _keys(_: str, sysctl: Sysctl) -> str:
    names = ("kernel.keys.maxkeys", "kernel.keys.maxbytes")
    knobs = ", ".join(f"{name} = {sysctl(name) or '?'}" for name in names)
    return f"the user's quota of keys is full: {knobs} (root_maxkeys and root_maxbytes for root; keyctl purge frees keys)"


def _no_space(context: str, sysctl: Sysctl) -> str:
    if "ptmx" in context:
        return f"too many terminals: kernel.pty.max = {sysctl('kernel.pty.max') or '?'}, or max= of this devpts"
    return "the file system is full: its bytes (size=) or its files (nr_inodes=)"


def _id_map(context: str, _: Sysctl) -> str | None:
    if not context.startswith(("uid_map", "gid_map")):
        return None
    return (
        "the writer may not map these ids: others than his own take CAP_SETUID and CAP_SETGID (id 0 CAP_SETFCAP too), or "
        "newuidmap and ranges in /etc/subuid; his own group takes 'deny' in setgroups first"
    )


def _id_map_form(context: str, _: Sysctl) -> str | None:
    if not context.startswith(("uid_map", "gid_map")):
        return None
    return "an id outside does not exist in the writer's own user namespace, ranges overlap, or the map is longer than a page"


def _refused_ioctl(context: str, _: Sysctl) -> str:
    if context.startswith(("terminal", "/dev/")):
        return "a terminal becomes the controlling one of a session's leader that has none, and of one session only"
    return "changing an interface takes CAP_NET_ADMIN in the user namespace that owns the network namespace"


def _refused_option(context: str, _: Sysctl) -> str:
    if any(word in context for word in ("overlay", "lowerdir", "upperdir", "workdir")):
        return (
            "overlay refuses a layer or an option: upper and work must lie on one writable file system that is no overlay, and "
            "neither in the other; layers are at most 500, all opened in this mount namespace; dmesg tells which it was"
        )
    return "the file system does not know the option, or not this value; dmesg tells which"


# ---- hints that take more than a line ----

_ENTERING = (
    "it takes CAP_SYS_ADMIN in the user namespace that owns the target, and (but for a user namespace) in one's own; and "
    "nobody enters the user namespace where he is"
)
_ENTERING_FORM = (
    "it is no namespace of this kind, or an ancestor; or threads: a process that has several cannot enter a user namespace, "
    "nor a thread that shares its directories a mount namespace"
)
_MOUNTING = (
    "it takes CAP_SYS_ADMIN in the user namespace that owns the mount namespace; in a user namespace, flags of the original "
    "mount stay (nosuid, ro ...), and a new proc or sysfs takes one here that nothing is mounted over"
)
_ATTRIBUTES = (
    "flags that come from a more privileged mount namespace are locked; an id-mapped mount takes CAP_SYS_ADMIN in the user "
    "namespace that mounted the file system"
)
_MOVING = (
    "the mount or its place is in another mount namespace or unbindable, a shared mount would move, or a directory meets a file"
)


# ---- the table ----


def _table(rows: tuple[tuple[tuple[str, ...], int, Hint], ...]) -> dict[tuple[str, int], Hint]:
    table: dict[tuple[str, int], Hint] = {}
    for ops, errno, text in rows:
        for op in ops:
            if (op, errno) in table:
                raise ValueError(f"two hints for {op} and {e.errorcode[errno]}")
            table[op, errno] = text
    return table


TABLE: Final = _table(
    (
        # -- processes and namespaces: clone(2), unshare(2), setns(2), user_namespaces(7), pid_namespaces(7)
        (BIRTH, e.ENOSPC, _namespace_limit),
        (BIRTH, e.EUSERS, "user namespaces are nested 32 levels deep, and more is not possible"),
        (BIRTH, e.EPERM, _userns_refused),
        (BIRTH, e.EAGAIN, _too_many_processes),
        (BIRTH, e.ENOMEM, "memory is short; or PID 1 of the pid namespace has ended, and nothing can be born in it any more"),
        (BIRTH, e.ENOSYS, "the kernel is too old for the call, or a seccomp filter (an old Docker's) hides it"),
        (BIRTH, e.EINVAL, "the kernel was built without this kind of namespace; or threads, and a new user namespace"),
        (("clone3",), e.EBUSY, "the cgroup has controllers enabled for its children, and so takes no processes itself"),
        (("clone3",), e.EACCES, "it takes write permission for cgroup.procs in the cgroup and in the nearest common ancestor"),
        (("clone3",), e.EOPNOTSUPP, "the cgroup is in a thread tree that is not valid (cgroup.type)"),
        (("setns",), e.EPERM, _ENTERING),
        (("setns",), e.EINVAL, _ENTERING_FORM),
        (("setns",), e.EUSERS, "a time namespace can be entered only by a process with one thread"),
        (NAMES, e.EPERM, "changing it takes CAP_SYS_ADMIN in the user namespace that owns the UTS namespace"),
        (OWNER, e.EPERM, "it lies outside of the user namespace of this process, which may not see it"),
        (OWNER, e.ENOTTY, "it is no namespace"),
        # -- ids: user_namespaces(7), setresuid(2), credentials(7), newuidmap(1)
        (IDS, e.EINVAL, "the id is not mapped in this user namespace: id_map='auto' or a list of IdMap maps more"),
        (("setgroups",), e.EPERM, "it takes CAP_SETGID, and is denied for good in a user namespace made without privileges"),
        (("setgid", "setresgid"), e.EPERM, "another group takes CAP_SETGID"),
        (("setresuid", "setuid"), e.EPERM, "another user takes CAP_SETUID"),
        (("setresuid", "setuid"), e.EAGAIN, "the new user has more processes than his RLIMIT_NPROC"),
        (OWNERS, e.EINVAL, "the id is not mapped in this user namespace or by this mount"),
        (OWNERS, e.EPERM, "changing the owner takes CAP_CHOWN, and both ids mapped in this user namespace"),
        (("write",), e.EPERM, _id_map),
        (("write",), e.EINVAL, _id_map_form),
        (HELPERS, e.ENOENT, "newuidmap and newgidmap are not installed (Debian: apt install uidmap); id_map='root' needs none"),
        (HELPERS, e.EPERM, "it refused: ranges outside of /etc/subuid and /etc/subgid, or it has lost its set-user-id bit"),
        (ANY, e.EOVERFLOW, "the owner of the file or the caller has no id in this user namespace or mount: it must be mapped"),
        # -- mounts: mount(2), fsopen(2), move_mount(2), mount_setattr(2), pivot_root(2), mount_namespaces(7)
        (("fsconfig", "mount"), e.EINVAL, _refused_option),
        (MOUNTING, e.EPERM, _MOUNTING),
        (("mount_setattr",), e.EPERM, _ATTRIBUTES),
        (
            ("mount_setattr",),
            e.EINVAL,
            "the file system knows no id-mapped mounts, or the mount is one, or is attached already",
        ),
        (("fsopen", "mount"), e.ENODEV, "the kernel does not know the file system: modprobe it, or see /proc/filesystems"),
        (("fsconfig", "mount"), e.EBUSY, "it is in use: an overlay's upper or work directory, or a device with other options"),
        (("fsconfig", "mount"), e.ELOOP, "a layer of the overlay is, holds or lies in its upper or work directory, or they do"),
        (("move_mount",), e.EINVAL, _MOVING),
        (("move_mount",), e.ELOOP, "the mount would come below itself"),
        (("open_tree",), e.EINVAL, "the path is on no mount of this mount namespace, or holds unbindable mounts"),
        (("fsconfig",), e.ENOSPC, "the disk that an overlay's upper and work directories are on is full"),
        (("mount", "move_mount", "open_tree"), e.ENOSPC, "too many mounts in the mount namespace: sysctl fs.mount-max"),
        (("pivot_root",), e.EINVAL, "the new root is no mount point, its parent mount is shared, or / is the initial ramfs"),
        (("pivot_root",), e.EBUSY, "the new root is on the mount of the current one: bind it onto itself first"),
        (("umount", "umount2"), e.EBUSY, "files in it are open, or something is mounted below: detach it (MNT_DETACH)"),
        (("umount", "umount2"), e.EINVAL, "it is no mount point, or it is locked by a more privileged mount namespace"),
        (("rmdir", "unlinkat"), e.EBUSY, "it is a mount point, or a cgroup that has processes or groups in it"),
        (CREATE, e.EROFS, "the root is read-only, so what does not exist cannot be created: make it beforehand"),
        (CREATE, e.ENOSPC, _no_space),
        (("openat2",), e.ELOOP, "the path has a symbolic link that leaves the root, a magic link of /proc, or too many links"),
        (("openat2",), e.EXDEV, "the path leaves the root, by '..' or by a symbolic link"),
        (("openat2",), e.EAGAIN, "a directory on the path was renamed meanwhile"),
        (LOOKUP, e.EACCES, "a directory on the path cannot be searched (x) by the user who looks, or the file not opened"),
        (("mkdirat", "mknodat", "symlinkat"), e.EACCES, "the directory cannot be written by the user who builds the root"),
        (("openat2",), e.ENOENT, "it does not exist in the root, whose content is somebody else's: make it there beforehand"),
        (("open_tree",), e.ENOENT, "the source does not exist: it is a path of this host, not of the new root"),
        (("chdir",), e.ENOENT, "there is no such directory in the root of the command, where cwd= is looked for"),
        (("chdir",), e.EXDEV, "the directory is outside of the root of the command"),
        (("statx",), e.ENODEV, "what lies there is not the device of that name: something was put in its place"),
        (("memfd_create",), e.EACCES, "memory files must not be executable here: sysctl vm.memfd_noexec"),
        # -- programs: execve(2)
        (
            EXEC,
            e.EACCES,
            "it is not executable (x), no plain file, on a noexec mount, or in a directory that cannot be searched",
        ),
        (EXEC, e.ENOENT, "it does not exist in this root; or it does, and its interpreter (#! line, ELF loader) does not"),
        (EXEC, e.ENOEXEC, "it is no program for this machine: no ELF file of its architecture, no script with a #! line"),
        (EXEC, e.E2BIG, "arguments and environment are too long: 128 KiB for one, a quarter of the stack limit for all"),
        (EXEC, e.ETXTBSY, "somebody has the file open for writing"),
        (EXEC, e.ELIBBAD, "its ELF interpreter is broken, or for another architecture"),
        # -- rights and limits: prlimit(2), capabilities(7), seccomp(2), landlock(7), keyrings(7)
        (LIMITS, e.EPERM, "raising a hard limit takes CAP_SYS_RESOURCE"),
        (LIMITS, e.EINVAL, "the soft limit is above the hard one, or there is no such limit"),
        (("capset",), e.EPERM, "a capability that the process has not can be dropped but not gained"),
        (("prctl",), e.EPERM, "leaving the bounding set takes CAP_SETPCAP; ambient is only what is permitted and inheritable"),
        (("seccomp",), e.EACCES, "a filter takes no_new_privs or CAP_SYS_ADMIN"),
        (("seccomp",), e.EINVAL, "the filter is no valid program, or longer than 4096 instructions"),
        (("landlock_restrict_self",), e.EPERM, "a ruleset takes no_new_privs or CAP_SYS_ADMIN"),
        (LANDLOCK, e.EOPNOTSUPP, "Landlock was disabled at boot: add landlock to the kernel's lsm= parameter"),
        (("pidfd_send_signal",), e.EPERM, "the process belongs to another user, and CAP_KILL is missing"),
        (("add_key", "keyctl"), e.EDQUOT, _keys),
        # -- networks and terminals: netdevice(7), ioctl_tty(2)
        (("ioctl",), e.EPERM, _refused_ioctl),
        # -- the launch itself: what the launcher tells is of these, and what it does not live to tell
        (("launch",), e.ECHILD, "the launcher was killed: by somebody, or for want of memory (dmesg tells)"),
        (("launch",), e.EINVAL, "the launcher does not understand the plan: install isolib anew, it is of two versions"),
        (("launch",), e.EPROTO, "the launcher does not understand the plan: install isolib anew, it is of two versions"),
        (("writev",), e.EFBIG, "the plan is longer than a file of this process may be: raise RLIMIT_FSIZE (ulimit -f)"),
        (("sendmsg",), e.ETOOMANYREFS, "too many descriptors of this user are under way: raise RLIMIT_NOFILE (ulimit -n)"),
        # -- notifications: inotify(7)
        (("inotify_add_watch",), e.EMFILE, _no_inotify),
        (
            ("inotify_add_watch",),
            e.ENOSPC,
            "this user has as many inotify watches as he may: sysctl fs.inotify.max_user_watches",
        ),
        # -- whatever the call
        (ANY, e.EMFILE, NO_DESCRIPTORS),
        (ANY, e.ENFILE, "the system has as many open files as it may: raise sysctl fs.file-max"),
        (FREE, e.EPERM, "everybody may make this call, so a seccomp filter or a security module refuses it: allow it there"),
        (FREE, e.EACCES, "everybody may make this call, so a security module refuses it: see its log (dmesg, auditd)"),
        (
            ANY,
            e.ENOMEM,
            "the kernel found no memory: free some, or raise the limit (memory.max of this cgroup, vm.overcommit_memory)",
        ),
        (ANY, e.ENOSYS, "the kernel is too old for the call or was built without it, or a seccomp filter hides it"),
        (ANY, e.ESRCH, "it has ended"),
    )
)


class typed:  # noqa: N801 - it reads as a function, and contextlib's is slower than what it is for
    """Make exceptions of isolib's of those that Python's own functions raise in the block, or the function, when a call fails.

    Parameters
    ----------
    what
        What it is about, where the exception names no file.
    """

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, OSError) and not isinstance(error, IsolibError):
            raise _typed(error, self._what) from error

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return the function, with this around each of its calls."""

        @wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except IsolibError:
                raise
            except OSError as error:
                raise _typed(error, self._what) from error

        return guarded


def _typed(error: OSError, what: str) -> IsolibError:
    # Which call it was Python does not say; most of those that need a descriptor, or a file, fail alike.
    number, target = error.errno or 0, str(error.filename or what)
    return from_errno("system call", target, number, hint("open", number, target))
