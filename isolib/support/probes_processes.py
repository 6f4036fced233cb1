"""Probes of processes: how they are born, watched, confined."""

from __future__ import annotations

import os
import signal
import struct
from errno import ENODEV, EOPNOTSUPP, EPERM
from functools import partial
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib._kernel.launch import ground, launch
from isolib._kernel.plan import COMMAND, INSIDE, Builder, Step, exec_step
from isolib.errors import SyscallError, from_errno
from isolib.support import refusals
from isolib.support.attempts import attempt, end, resident
from isolib.support.examination import Probe
from isolib.support.facts import CAPABILITIES
from isolib.support.refusals import Need, Refusal, Refused

if TYPE_CHECKING:
    from isolib.support.examination import Examination
    from isolib.support.facts import Facts

_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_SCHED_CORE: Final = 62
_PR_SCHED_CORE_CREATE: Final = 1
_FILTER_NEW_LISTENER: Final = 8
#: One instruction of classic BPF, RET of SECCOMP_RET_ALLOW: seccomp(2).
_ALLOW_ALL: Final = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)
_RLIMIT_CORE: Final = 4

#: What the capabilities are for.
_PURPOSE: Final = {
    "CAP_SYS_ADMIN": "mounts and namespaces without a user namespace",
    "CAP_NET_ADMIN": "the host's own network: bridges, forwarding, firewall",
    "CAP_SETUID": "id maps of any range",
    "CAP_SETGID": "id maps of any range",
    "CAP_MKNOD": "device nodes",
    "CAP_BPF": "device programs of cgroups v2",
    "CAP_SYS_PTRACE": "looking into processes of others",
}


def _launcher(exam: Examination) -> str:
    with resident(exam.facts, Builder()) as launched:
        exam.remember(launched)
    return "a process was started by it, and ended"


def _clone3(_: Examination) -> str:
    calls.clone3()
    return ""


def _pidfd(_: Examination) -> str:
    fd = os.pidfd_open(os.getpid())
    try:
        signal.pidfd_send_signal(fd, 0)
    except OSError as error:
        raise from_errno("pidfd_send_signal", None, error.errno or 0) from error
    finally:
        os.close(fd)
    return ""


def _pidfd_wait(_: Examination) -> str:
    fd = os.pidfd_open(os.getpid())
    try:
        os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        pass  # the answer of a kernel that knows what is asked: no process is its own child
    except OSError as error:
        raise from_errno("waitid", "P_PIDFD", error.errno or 0) from error
    finally:
        os.close(fd)
    return ""


def _pidfd_namespaces(_: Examination) -> str:
    fd = os.pidfd_open(os.getpid())
    try:
        os.close(calls.pidfd_namespace(fd, "net"))
    finally:
        os.close(fd)
    return ""


def _execute(path: str, *, keep: tuple[int, ...] = ()) -> None:
    """Execute the launcher as a command: without a plan it ends at once.  Every descriptor but ``keep`` is closed before."""
    builder = Builder()
    builder.add(COMMAND, Step("CLOSE_FDS", what="descriptors"))
    plan = builder.build(exec_step([b"isolib-launcher"], [], [os.fsencode(path)]))
    end(launch(plan, stdio=(calls.STDIO_NULL,) * 3, keep=keep))


def _close_range(_: Examination) -> str:
    _execute(os.fsdecode(ground().image_path))
    return ""


def _memfd_exec(exam: Examination) -> str:
    image = ground().image
    knob = "vm.memfd_noexec"
    if image < 0:
        by = exam.facts.knob(knob) if exam.facts.sysctls.get(knob, "0") != "0" else "the kernel's policy"
        raise Refused("memfd_create: Permission denied (EACCES)", Refusal(by, f"sysctl -w {knob}=1"))
    _execute(f"/proc/self/fd/{image}", keep=(image,))
    return exam.facts.knob(knob) if knob in exam.facts.sysctls else ""


def _openat2(_: Examination) -> str:
    os.close(calls.openat2(calls.AT_FDCWD, "/", os.O_PATH, resolve=calls.RESOLVE_IN_ROOT | calls.RESOLVE_NO_MAGICLINKS))
    return ""


def _inside(exam: Examination, *steps: Step) -> None:
    builder = Builder()
    for step in steps:
        builder.add(INSIDE, step)
    attempt(exam.facts, builder)


_NO_NEW_PRIVS: Final = Step("PRCTL", flags=_PR_SET_NO_NEW_PRIVS, value=1, what="PR_SET_NO_NEW_PRIVS")


def _no_new_privs(exam: Examination) -> str:
    _inside(exam, _NO_NEW_PRIVS)
    return ""


def _seccomp(exam: Examination, flags: int) -> str:
    _inside(exam, _NO_NEW_PRIVS, Step("SECCOMP", flags=flags, text2=_ALLOW_ALL, what="a filter that allows everything"))
    return ""


def _landlock(_: Examination) -> str:
    try:
        return f"ABI {calls.landlock_abi()}"
    except SyscallError as error:
        if error.errno != EOPNOTSUPP:
            raise
        by = Refusal("the boot: Landlock is built in, but not active", "add landlock to the boot parameter lsm=")
        raise Refused(refusals.said(error.op, None, error.errno), by) from error


def _keyring(exam: Examination) -> str:
    _inside(exam, Step("KEYRING", what="a new session keyring"))
    return ""


def _core_scheduling(exam: Examination) -> str:
    _inside(exam, Step("PRCTL", flags=_PR_SCHED_CORE, value=_PR_SCHED_CORE_CREATE, what="PR_SCHED_CORE"))
    return ""


def _explain_core(error: SyscallError, need: Need, facts: Facts) -> Refusal:
    if error.errno == ENODEV:
        return Refusal("the processor: its cores run one thread each", "none is needed")
    return refusals.call(error.op, error.errno, need, facts)


# ---- capabilities ----


def _capabilities(exam: Examination) -> str:
    exam.require_proc()
    facts = exam.facts
    everything = (2 << facts.last_capability) - 1
    have = facts.capabilities & everything
    if have == everything:
        return "all"
    if not have:
        raise Refused(
            "the effective set is empty", Refusal(f"the user {facts.user} is not root", "none for most: a user namespace does")
        )
    names = {number: name for name, number in CAPABILITIES.items()}
    missing = [number for number in range(facts.last_capability + 1) if not have >> number & 1]
    if len(missing) > len(CAPABILITIES):
        return "only " + ", ".join(names[n] for n in sorted(names) if have >> n & 1)
    return "all but " + ", ".join(names.get(number, f"number {number}") for number in missing)


def _capability(name: str, exam: Examination) -> str:
    exam.require_proc()
    if not exam.facts.has(name):
        raise Refused("not in the effective set", refusals.lacks(name, exam.facts, f"root; it is for {_PURPOSE[name]}"))
    return _PURPOSE[name]


def _hard_limits(exam: Examination) -> str:
    """Lower a hard limit and raise it again, which takes CAP_SYS_RESOURCE: getrlimit(2)."""
    lower = Step("RLIMIT", size=_RLIMIT_CORE, what="RLIMIT_CORE = 0")
    _inside(exam, lower, lower._replace(flags=4096, value=4096, what="RLIMIT_CORE = 4096"))
    return "raising hard limits"


def _explain_limits(error: SyscallError, need: Need, facts: Facts) -> Refusal:
    refusal = refusals.call(error.op, error.errno, need, facts)
    if error.errno != EPERM or facts.has("CAP_SYS_RESOURCE"):
        return refusal
    return refusal._replace(remedy="a root that has it; it is for raising hard limits")


PROCESSES: Final = (
    Probe("launcher", _launcher, Need(since="5.9")),
    Probe("clone3", _clone3, Need(since="5.3")),
    Probe("close_range", _close_range, Need(since="5.9")),
    Probe("memfd exec", _memfd_exec, Need(since="3.17")),
    Probe("openat2", _openat2, Need(since="5.6")),
    Probe("pidfd_send_signal", _pidfd, Need(since="5.1")),
    Probe("pidfd waitid", _pidfd_wait, Need(since="5.4")),
    Probe("pidfd namespaces", _pidfd_namespaces, Need(since="6.11")),
    Probe("no_new_privs", _no_new_privs, Need(since="3.5")),
    Probe("seccomp filter", partial(_seccomp, flags=0), Need(since="3.17", option="CONFIG_SECCOMP_FILTER")),
    Probe(
        "seccomp notification", partial(_seccomp, flags=_FILTER_NEW_LISTENER), Need(since="5.0", option="CONFIG_SECCOMP_FILTER")
    ),
    Probe("landlock", _landlock, Need(since="5.13", option="CONFIG_SECURITY_LANDLOCK")),
    Probe("session keyring", _keyring, Need(option="CONFIG_KEYS")),
    Probe("core scheduling", _core_scheduling, Need(since="5.14", option="CONFIG_SCHED_CORE"), _explain_core),
)

CAPABILITY_PROBES: Final = (
    Probe("capabilities", _capabilities),
    *(Probe(name, partial(_capability, name)) for name in _PURPOSE),
    Probe("CAP_SYS_RESOURCE", _hard_limits, Need(capability="CAP_SYS_RESOURCE"), _explain_limits),
)
