"""What each step of a plan does, in words that strace and the manual pages use.  Pure: steps in, text out."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from isolib._kernel.plan import Slot, Step


class Call(NamedTuple):
    """One system call to come: its name, its arguments as text, the manual page, how often it is made.

    Where that is not known before, ``when`` says on what it depends: it may be made not at all, or many times.
    """

    name: str
    arguments: str = ""
    page: str = ""
    times: int = 1
    when: str = ""

    @property
    def pattern(self) -> str:
        """A regular expression for its name, as often as it is made, each time followed by a space."""
        return f"(?:{self.name} )" + ("*" if self.when else f"{{{self.times}}}" if self.times > 1 else "")

    def __str__(self) -> str:
        text = f"{self.name}({self.arguments})" + (f"  x {self.times}" if self.times > 1 else "")
        text += f"  [{self.when}]" if self.when else ""
        return f"{text:<96} {self.page or self.name + '(2)'}"


class Explained(NamedTuple):
    """A step explained: the call that an error is about, and all calls that are made when nothing fails."""

    op: str
    calls: tuple[Call, ...]
    form: str = ""

    @property
    def names(self) -> list[str]:
        """The names of the calls that are certain, in order, each as often as it is made."""
        return [call.name for call in self.calls if not call.when for _ in range(call.times)]

    @property
    def pattern(self) -> str:
        """A regular expression for the names of the calls, each followed by a space."""
        return self.form or "".join(call.pattern for call in self.calls)

    def lines(self) -> list[str]:
        """One line a call, the manual page in the right-hand column."""
        return [str(call) for call in self.calls]


def _names(table: dict[int, str], value: int) -> str:
    found = [name for bit, name in table.items() if value & bit]
    rest = value & ~sum(table)
    return "|".join(found + ([hex(rest)] if rest else [])) or "0"


_CLONE: Final = {
    0x00000080: "CLONE_NEWTIME",
    0x00000200: "CLONE_FS",
    0x00020000: "CLONE_NEWNS",
    0x02000000: "CLONE_NEWCGROUP",
    0x04000000: "CLONE_NEWUTS",
    0x08000000: "CLONE_NEWIPC",
    0x10000000: "CLONE_NEWUSER",
    0x20000000: "CLONE_NEWPID",
    0x40000000: "CLONE_NEWNET",
}
_MOUNT_ATTR: Final = {
    0x01: "MOUNT_ATTR_RDONLY",
    0x02: "MOUNT_ATTR_NOSUID",
    0x04: "MOUNT_ATTR_NODEV",
    0x08: "MOUNT_ATTR_NOEXEC",
    0x100000: "MOUNT_ATTR_IDMAP",
    0x200000: "MOUNT_ATTR_NOSYMFOLLOW",
}
_AT: Final = {0x1: "OPEN_TREE_CLONE", 0x100: "AT_SYMLINK_NOFOLLOW", 0x1000: "AT_EMPTY_PATH", 0x8000: "AT_RECURSIVE"}
_OPEN: Final = {
    os.O_WRONLY: "O_WRONLY",
    os.O_RDWR: "O_RDWR",
    os.O_CREAT: "O_CREAT",
    os.O_EXCL: "O_EXCL",
    os.O_TRUNC: "O_TRUNC",
    os.O_APPEND: "O_APPEND",
    os.O_DIRECTORY: "O_DIRECTORY",
    os.O_NOFOLLOW: "O_NOFOLLOW",
    os.O_PATH: "O_PATH",
}
_RESOLVE: Final = {
    0x01: "RESOLVE_NO_XDEV",
    0x02: "RESOLVE_NO_MAGICLINKS",
    0x04: "RESOLVE_NO_SYMLINKS",
    0x08: "RESOLVE_BENEATH",
    0x10: "RESOLVE_IN_ROOT",
}
_FSCONFIG: Final = {0: "SET_FLAG", 1: "SET_STRING", 5: "SET_FD", 6: "CMD_CREATE"}
_PRCTL: Final = {
    1: "PR_SET_PDEATHSIG",
    4: "PR_SET_DUMPABLE",
    36: "PR_SET_CHILD_SUBREAPER",
    38: "PR_SET_NO_NEW_PRIVS",
    8: "PR_SET_KEEPCAPS",
    28: "PR_SET_SECUREBITS",
}

#: Capabilities that kernels of today have: CAP_CHECKPOINT_RESTORE, 40, is the last.
_LAST_CAPABILITY: Final = 40


def _text(value: bytes) -> str:
    return '"' + os.fsdecode(value) + '"'


def _fd(slot: Slot | None) -> str:
    return "AT_FDCWD" if slot is None else repr(slot)


def _clone(s: Step) -> list[Call]:
    flags = [_names(_CLONE, s.flags)] if s.flags else []
    flags += ["CLONE_PARENT", "CLONE_PIDFD"] + (["CLONE_INTO_CGROUP"] if s.fd else [])
    made = [Call("rt_sigprocmask", "SIG_BLOCK, SIGTERM"), Call("pipe2", "O_CLOEXEC")]
    fall_back = [] if s.fd else [Call("clone", "|".join(flags), when="where clone3 is ENOSYS")]
    told = Call("sendmsg", "pidfd of the new process", "unix(7)")
    return [*made, Call("clone3", "|".join(flags)), *fall_back, Call("close"), told]


def _map(s: Step) -> list[Call]:
    path = f"/proc/PID/{os.fsdecode(s.text)}"
    return [
        Call("openat", f'"{path}", O_WRONLY', "user_namespaces(7)"),
        Call("write", repr(os.fsdecode(s.text2)), "user_namespaces(7)"),
        Call("close", ""),
    ]


def _map_helper(s: Step) -> list[Call]:
    program = os.fsdecode(s.text)
    arguments = " ".join(os.fsdecode(word) for word in s.text2.split(b"\0")[:-1])
    page = os.path.basename(program) + "(1)"
    return [Call("clone", f"{program} PID {arguments}", page), Call("wait4", program, page)]


def _go(_: Step) -> list[Call]:
    return [
        Call("setpgid", "0, 0"),
        Call("write", "one byte: the new process may go on", "pipe(7)"),
        Call("ppoll", "the pipe, status socket, pidfd of the host: until the new process supervises"),
        Call("exit_group", "0"),
    ]


def _supervise(_: Step) -> list[Call]:
    return [Call("signalfd4", "every signal"), Call("clone", "CLONE_VM|CLONE_VFORK|CLONE_PIDFD")]


def _hold(_: Step) -> list[Call]:
    return [Call("signalfd4", "every signal")]


def _reap(s: Step) -> list[Call]:
    return [
        Call("lseek", f"{_fd(s.fd)}, SEEK_END"),
        Call("mmap", f"{_fd(s.fd)}, MAP_SHARED"),
        Call("rt_sigprocmask", "block every signal"),
        Call("setsid", ""),
        Call("setns", "pidfd of the host: where the calling thread is elsewhere"),
        Call("prctl", 'PR_SET_NAME, "isolib-reaper"'),
        Call("prctl", "PR_SET_DUMPABLE, 0"),
        Call("prlimit64", "RLIMIT_NOFILE: as many as it may", times=2),
        Call("chdir", '"/"'),
        Call("set_robust_list", "the table tells when it has ended", "get_robust_list(2)"),
        Call("gettid", ""),
    ]


def _exec(s: Step) -> list[Call]:
    first, *others = s.text.split(b"\0")[:-1]
    tried = [Call("execve", _text(path), when="when those before are not there") for path in others]
    return [Call("mmap", "argv and environment"), Call("execve", _text(first)), *tried]


def _openat2(s: Step) -> Call:
    opened = _names(_OPEN, s.flags) if s.flags & ~os.O_CLOEXEC else "O_RDONLY"
    return Call("openat2", f"{_fd(s.fd)}, {_text(s.text)}, {opened}, {_names(_RESOLVE, s.value & 0xFFFFFFFF)}")


def _open(s: Step) -> list[Call]:
    return [_openat2(s)]


def _target(s: Step) -> list[Call]:
    absent = "for each part of the path, when the whole is absent"
    make = Call("mkdirat", when=absent) if s.flags & 1 else Call("openat", "O_CREAT|O_EXCL", when=absent)
    return [
        Call("openat2", f"{_fd(s.fd)}, {_text(s.text)}, O_PATH, RESOLVE_IN_ROOT|RESOLVE_NO_MAGICLINKS"),
        Call("fcntl", "F_DUPFD_CLOEXEC", when="when it is absent"),
        Call("openat2", when=absent),
        make,
        Call("close", when=absent),
    ]


def _write(s: Step) -> list[Call]:
    return [_openat2(s), Call("write", f"{len(s.text2)} bytes"), Call("close", "")]


def _mount_setattr(s: Step) -> list[Call]:
    userns = f", userns={s.fd2!r}" if s.fd2 else ""
    spread = (
        f", propagation={_names({1 << 18: 'MS_PRIVATE', 1 << 19: 'MS_SLAVE', 1 << 20: 'MS_SHARED'}, s.size2)}"
        if s.size2
        else ""
    )
    attributes = f"set={_names(_MOUNT_ATTR, s.value)}" + (f", clear={_names(_MOUNT_ATTR, s.size)}" if s.size else "")
    return [Call("mount_setattr", f"{_fd(s.fd)}, {_text(s.text)}, {_names(_AT, s.flags)}, {attributes}{spread}{userns}")]


def _fsconfig(s: Step) -> list[Call]:
    value = _text(s.text2) if s.flags == 1 else repr(s.fd2) if s.flags == 5 else ""  # noqa: PLR2004 - the ABI's own numbers
    return [Call("fsconfig", ", ".join(part for part in (_fd(s.fd), _FSCONFIG[s.flags], os.fsdecode(s.text), value) if part))]


def _link_up(s: Step) -> list[Call]:
    name = os.fsdecode(s.text)
    page = "netdevice(7)"
    return [
        Call("socket", "AF_INET, SOCK_DGRAM"),
        Call("ioctl", f"SIOCGIFFLAGS, {name}", page),
        Call("ioctl", f"SIOCSIFFLAGS, {name}, IFF_UP", page),
        Call("close", ""),
    ]


def _socket(s: Step) -> list[Call]:
    family = {2: "AF_INET", 10: "AF_INET6", 16: "AF_NETLINK"}.get(s.flags, str(s.flags))
    kind = {1: "SOCK_STREAM", 2: "SOCK_DGRAM", 3: "SOCK_RAW"}.get(s.value >> 32, str(s.value >> 32))
    return [Call("socket", f"{family}, {kind}, {s.value & 0xFFFFFFFF}")]


def _pty_open(s: Step) -> list[Call]:
    page = "ioctl_tty(2)"
    return [
        Call("openat", f"{_fd(s.fd)}, {_text(s.text)}, O_RDWR|O_NOCTTY"),
        Call("ioctl", "TIOCSPTLCK", page),
        Call("ioctl", "TIOCGPTPEER", page),
    ]


def _stdio(s: Step) -> list[Call]:
    calls = [Call("dup3", f"{_fd(s.fd)} -> 0, 1, 2", times=3)]
    return calls + ([Call("ioctl", "TIOCSCTTY", "ioctl_tty(2)")] if s.flags else [])


def _prctl(s: Step) -> list[Call]:
    return [Call("prctl", f"{_PRCTL.get(s.flags, str(s.flags))}, {s.value}")]


def _bounding(s: Step) -> list[Call]:
    dropped = [number for number in range(_LAST_CAPABILITY + 2) if not s.value >> number & 1]
    return [Call("prctl", "PR_CAPBSET_DROP", "capabilities(7)", times=len(dropped))]


def _capset(s: Step) -> list[Call]:
    return [Call("capset", f"permitted={s.flags:#x}, inheritable={s.value:#x}"), Call("capget", "")]


def _ambient(s: Step) -> list[Call]:
    raised = [Call("prctl", "PR_CAP_AMBIENT_RAISE", times=s.value.bit_count())] if s.value else []
    return [Call("prctl", "PR_CAP_AMBIENT_CLEAR_ALL"), *raised]


def _identity(name: str) -> Callable[[Step], list[Call]]:
    def explain(s: Step) -> list[Call]:
        return [Call(f"setres{name}", f"{s.value}"), Call(f"getres{name}", "")]

    return explain


def _one(name: str, form: str = "") -> Callable[[Step], list[Call]]:
    def explain(s: Step) -> list[Call]:
        return [Call(name, form.format(fd=_fd(s.fd), fd2=_fd(s.fd2), text=_text(s.text), text2=_text(s.text2), s=s))]

    return explain


_EXPLAIN: Final[dict[str, Callable[[Step], list[Call]]]] = {
    "CLONE": _clone,
    "MAP": _map,
    "MAP_HELPER": _map_helper,
    "GO": _go,
    "SUPERVISE": _supervise,
    "HOLD": _hold,
    "REAP": _reap,
    "EXEC": _exec,
    "SETNS": lambda s: [Call("setns", f"{_fd(s.fd)}, {_names(_CLONE, s.flags)}")],
    "UNSHARE": lambda s: [Call("unshare", _names(_CLONE, s.flags))],
    "OPEN": _open,
    "TARGET": _target,
    "CLOSE": _one("close", "{fd}"),
    "OPEN_TREE": lambda s: [Call("open_tree", f"{_fd(s.fd)}, {_text(s.text)}, {_names(_AT, s.flags & ~os.O_CLOEXEC)}")],
    "MOVE_MOUNT": _one("move_mount", "{fd}, {text}, {fd2}, {text2}"),
    "MOUNT_SETATTR": _mount_setattr,
    "FSOPEN": _one("fsopen", "{text}"),
    "FSCONFIG": _fsconfig,
    "FSMOUNT": lambda s: [Call("fsmount", f"{_fd(s.fd)}, {_names(_MOUNT_ATTR, s.value)}")],
    "CHECK_DEVICE": lambda s: [Call("statx", f"{_fd(s.fd)} is character device {s.value >> 32}:{s.value & 0xFFFFFFFF}")],
    "MKDIR": _one("mkdirat", "{fd}, {text}, {s.value:#o}"),
    "MKNOD": _one("mknodat", "{fd}, {text}, S_IFREG|{s.value:#o}"),
    "SYMLINK": _one("symlinkat", "{text2}, {fd}, {text}"),
    "WRITE": _write,
    "PUT": lambda s: [
        Call(
            "write", f"{_fd(s.fd)}, {os.fsdecode(s.text2)!r}", "cgroups(7)", when="where the slot is filled" if s.flags else ""
        )
    ],
    "PIVOT_ROOT": _one("pivot_root", "{text}, {text2}"),
    "UMOUNT": lambda s: [Call("umount2", f"{_text(s.text)}, {'MNT_DETACH' if s.flags == 2 else s.flags}")],  # noqa: PLR2004
    "FCHDIR": _one("fchdir", "{fd}"),
    "CHDIR": lambda s: [Call("chdir", _text(s.text)), Call("getcwd", "")],
    "SETHOSTNAME": _one("sethostname", "{text}"),
    "SETDOMAINNAME": _one("setdomainname", "{text}"),
    "LINK_UP": _link_up,
    "SOCKET": _socket,
    "SEND": _one("sendmsg", "{fd2}, SCM_RIGHTS {fd}"),
    "SETSID": _one("setsid"),
    "PTY_OPEN": _pty_open,
    "STDIO": _stdio,
    "FCHOWN": _one("fchown", "{fd}, {s.flags}, {s.value}"),
    "PRCTL": _prctl,
    "RLIMIT": _one("prlimit64", "resource {s.size}, {s.flags}, {s.value}"),
    "UMASK": lambda s: [Call("umask", "as it was" if s.flags else f"{s.value:#o}")],
    "PRIORITY": _one("setpriority", "{s.value}"),
    "PERSONALITY": _one("personality", "{s.value:#x}"),
    "AFFINITY": _one("sched_setaffinity"),
    "KEYRING": _one("keyctl", "KEYCTL_JOIN_SESSION_KEYRING"),
    "BOUNDING": _bounding,
    "SETGROUPS": lambda s: [Call("setgroups", f"{len(s.text2) // 4} groups")],
    "SETGID": _identity("gid"),
    "SETUID": _identity("uid"),
    "CAPSET": _capset,
    "AMBIENT": _ambient,
    "CLOSE_FDS": lambda _: [
        Call("close_range", "all but 0, 1, 2 and those passed on"),
        Call("close_range", when="once more for each gap between them"),
    ],
    "LANDLOCK": _one("landlock_restrict_self", "{fd}"),
    "SECCOMP": lambda s: [Call("seccomp", f"SECCOMP_SET_MODE_FILTER, {len(s.text2) // 8} instructions")],
    "FAIL": lambda s: [Call("fail", f"errno {s.value}", "a test's own step")],
}

#: The call that an error is about, where it is not the first.
_OP: Final = {
    "CLONE": "clone3",
    "MAP": "write",
    "MAP_HELPER": "newuidmap",
    "EXEC": "execve",
    "SUPERVISE": "clone",
    "LINK_UP": "ioctl",
}

#: The exact order of calls that depend on what they find.
_FORMS: Final = {
    "TARGET": "openat2 (?:fcntl (?:openat2 (?:(?:mkdirat |openat close )openat2 )?close )+)?",
}


def explain_step(step: Step) -> Explained:
    """Explain one step."""
    calls = tuple(_EXPLAIN[step.kind](step))
    if step.ignore:
        calls = (calls[0], *(call._replace(when="unless the first is refused") for call in calls[1:]))
    if step.kind == "MAP_HELPER":
        return Explained(os.path.basename(os.fsdecode(step.text)), calls)
    return Explained(_OP.get(step.kind) or calls[0].name, calls, _FORMS.get(step.kind, ""))
