"""Probes of the host itself: what it is, what watches over it, who cleans up.  They come last, and use what was found."""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from isolib._kernel import calls
from isolib._kernel.plan import Builder
from isolib.support import refusals
from isolib.support.attempts import resident
from isolib.support.examination import Probe
from isolib.support.facts import read, read_bytes
from isolib.support.refusals import Refusal, Refused, said

if TYPE_CHECKING:
    from collections.abc import Mapping

    from isolib.support.examination import Examination

#: Without these isolib does nothing; the last of them came with Linux 5.12.
NEEDED: Final = ("launcher", "openat2", "fsopen", "open_tree", "move_mount", "mount_setattr")
_NEEDED_SINCE: Final = "5.12"
_PATIENCE: Final = 200  # milliseconds
_ARCHITECTURES: Final = ("x86_64", "aarch64")

#: linux/lsm.h
MODULES: Final = {
    100: "capability",
    101: "selinux",
    102: "smack",
    103: "tomoyo",
    104: "apparmor",
    105: "yama",
    106: "loadpin",
    107: "safesetid",
    108: "lockdown",
    109: "bpf",
    110: "landlock",
    111: "ima",
    112: "evm",
    113: "ipe",
}


def _kernel(exam: Examination) -> str:
    facts = exam.facts
    missing = [name for name in NEEDED if not exam.found[name]]
    if missing:
        first = exam.found[missing[0]]
        too_old = not facts.is_since(_NEEDED_SINCE)
        remedy = f"Linux {_NEEDED_SINCE} or later" if too_old else first.remedy
        raise Refused(f"Linux {facts.release} without {', '.join(missing)}", Refusal(first.refused_by, remedy))
    return f"Linux {facts.release}"


def _architecture(exam: Examination) -> str:
    machine = exam.facts.machine
    if machine not in _ARCHITECTURES:
        raise Refused(
            machine, Refusal(f"isolib: its launcher is not written for {machine}", f"one of {', '.join(_ARCHITECTURES)}")
        )
    return machine


def container_of(evidence: Mapping[str, str], *, nested: bool) -> str:
    """Return the container engine behind PID 1, or an empty string.

    Parameters
    ----------
    evidence
        File contents by path, of those that exist; ``"environ"`` is what PID 1 has in its variable ``container``.
    nested
        Whether the caller is outside of the host's first namespaces.  Where it is not, an image's files say nothing: a
        virtual machine may have been made from one.
    """
    told = evidence.get("environ") or evidence.get("/run/systemd/container") or ""
    if told:
        return told
    version = evidence.get("/proc/version", "")
    if "gVisor" in version:
        return "gVisor"
    if nested:
        signs = {"/run/.containerenv": "podman", "/.dockerenv": "docker", "/var/run/secrets/kubernetes.io": "kubernetes"}
        found = next((engine for path, engine in signs.items() if path in evidence), "")
        if found:
            return found
    return "WSL" if "microsoft" in version.lower() else ""


def _container(exam: Examination) -> str:
    if not exam.facts.namespaces:
        return "unknown: /proc does not tell"
    evidence = {"environ": _first_environment("container")}
    for path in ("/run/systemd/container", "/run/.containerenv", "/proc/version"):
        content = read(path)
        if content is not None:
            evidence[path] = content
    evidence.update({path: "" for path in ("/.dockerenv", "/var/run/secrets/kubernetes.io") if os.path.exists(path)})
    outer = [kind for kind in ("pid", "ipc", "uts", "user") if kind in exam.facts.namespaces - exam.facts.initial]
    engine = container_of(evidence, nested=bool(outer))
    if not outer:
        return engine or "none: the host's first namespaces"
    return f"{engine or 'unknown'}: not in the host's first {', '.join(outer)} namespace"


def _first_environment(name: str) -> str:
    """Return a variable of PID 1; root may read it."""
    for variable in read_bytes("/proc/1/environ").split(b"\0"):
        key, _, value = variable.partition(b"=")
        if key == name.encode():
            return os.fsdecode(value)
    return ""


def _security_modules(exam: Examination) -> str:
    with suppress(OSError):
        return ", ".join(MODULES.get(number, f"number {number}") for number in calls.security_modules())
    listed = read("/sys/kernel/security/lsm")
    if listed:
        return listed.replace(",", ", ")
    signs = {
        "/sys/module/apparmor/parameters/enabled": "apparmor",
        "/sys/fs/selinux/enforce": "selinux",
        "/proc/sys/kernel/yama/ptrace_scope": "yama",
    }
    active = [name for path, name in signs.items() if (read(path) or "N") != "N"]
    if exam.found["landlock"]:
        active.append("landlock")
    return f"{', '.join(active) or 'none'} by their files, for securityfs is not mounted"


def _unconfined(exam: Examination) -> str:
    exam.require_proc()
    facts = exam.facts
    if facts.seccomp:
        raise Refused(
            f"Seccomp: {facts.seccomp}",
            Refusal(refusals.FILTER, "start without it (Docker: --security-opt seccomp=unconfined)"),
        )
    if facts.no_new_privs:
        raise Refused("NoNewPrivs: 1", Refusal("no_new_privs of the caller", "start without it (systemd: NoNewPrivileges=no)"))
    if facts.apparmor:
        raise Refused(
            facts.apparmor, Refusal(f"AppArmor, profile {facts.apparmor}", "start it unconfined (aa-exec -p unconfined)")
        )
    return "no filter, no no_new_privs, no profile"


def _ptrace(exam: Examination) -> str:
    knob = "kernel.yama.ptrace_scope"
    told = exam.facts.knob(knob) if knob in exam.facts.sysctls else "no Yama"
    with resident(exam.facts, Builder()) as launched:
        try:
            os.close(os.open(f"/proc/{launched.supervisor_pid}/mem", os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            by = f"Yama: {told}" if exam.facts.sysctls.get(knob, "0") != "0" else "the kernel's ptrace rules"
            raise Refused(
                said("open", "/proc/PID/mem", error.errno or 0), Refusal(by, f"sysctl -w {knob}=0, or CAP_SYS_PTRACE")
            ) from error
    return told


def _orphans(exam: Examination) -> str:
    """Look whether the first process that was started, long ended by now, was reaped by who became its parent."""
    if exam.orphan is None:
        launcher = exam.found["launcher"]
        raise Refused("no process could be started", Refusal(launcher.refused_by, launcher.remedy))
    pidfd, parent = exam.orphan
    who = _process_name(parent)
    if not _is_gone(pidfd):
        by = Refusal(f"{who}: it waits for its children late, or never", "an init as PID 1 (Docker: --init), or a subreaper")
        raise Refused(f"a process that ended stayed a zombie for {_PATIENCE} ms", by)
    return f"by {who}"


def _is_gone(pidfd: int) -> bool:
    # Since 6.9 the reaping of a process hangs its pidfd up; before, the time runs out, but only where one is not reaped.
    for milliseconds in (0, _PATIENCE):
        poll = select.poll()
        poll.register(pidfd, 0)
        poll.poll(milliseconds)
        try:
            signal.pidfd_send_signal(pidfd, 0)
        except ProcessLookupError:
            return True
    return False


def _process_name(pid: int) -> str:
    if pid == 0:
        return "a process outside of this pid namespace"
    if pid == os.getpid():
        return "this process, a child subreaper"
    name = read(f"/proc/{pid}/comm") or "unknown"
    return f"PID 1, {name}" if pid == 1 else f"the child subreaper {name} (PID {pid})"


HOST: Final = (
    Probe("kernel", _kernel),
    Probe("architecture", _architecture),
    Probe("container", _container),
    Probe("security modules", _security_modules),
    Probe("unconfined caller", _unconfined),
    Probe("orphans are reaped", _orphans),
    Probe("ptrace", _ptrace),
)
