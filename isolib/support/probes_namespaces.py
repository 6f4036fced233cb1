"""Probes of namespaces: each kind is made, alone and together with a user namespace; and what ids can be mapped."""

from __future__ import annotations

import os
import stat
from errno import EACCES, EPERM
from functools import partial
from typing import TYPE_CHECKING, Final

from isolib._kernel.plan import INSIDE, Builder, Step
from isolib._kernel.procfs import parse_account_ids, parse_id_map, parse_subid
from isolib.support import refusals
from isolib.support.attempts import attempt, room
from isolib.support.examination import Probe
from isolib.support.facts import KINDS, read_bytes
from isolib.support.refusals import NOTHING, Refusal, Refused

if TYPE_CHECKING:
    from isolib.errors import SyscallError
    from isolib.support.examination import Examination
    from isolib.support.facts import Facts
    from isolib.support.refusals import Need

_FILES: Final = ("/etc/subuid", "/etc/subgid")
_PROGRAMS: Final = ("/usr/bin/newuidmap", "/usr/bin/newgidmap")
_RANGE: Final = 65536


def _made(kinds: tuple[str, ...], exam: Examination) -> str:
    attempt(exam.facts, room(exam.facts, *kinds))
    return ""


def _user(exam: Examination) -> str:
    """Make a user namespace and use the rights that it gives: AppArmor lets it be made, and then takes them."""
    builder = room(exam.facts, "user", "uts")
    builder.add(INSIDE, Step("SETHOSTNAME", text=b"isolib", what="in a user namespace"))
    attempt(exam.facts, builder)
    return f"as {exam.facts.user}"


def _explain_user(error: SyscallError, need: Need, facts: Facts) -> Refusal:
    refusal = refusals.apparmor_refusal(facts) if error.errno in (EPERM, EACCES) else None
    return refusal or refusals.call(error.op, error.errno, need, facts)


# ---- id ranges ----


def _id_ranges(exam: Examination) -> str:
    facts = exam.facts
    return _own_ids(facts) if facts.has("CAP_SETUID") and facts.has("CAP_SETGID") else _subordinate_ids(facts)


def _own_ids(facts: Facts) -> str:
    """Map a range by writing it, which takes CAP_SETUID and CAP_SETGID, and ids that this user namespace has itself."""
    builder = Builder()
    builder.clone_flags = room(facts, "user").clone_flags
    counts = []
    for name in ("uid_map", "gid_map"):
        own = [(one.inside, one.count) for one in parse_id_map(read_bytes(f"/proc/thread-self/{name}"))]
        start, available = max(own, key=lambda one: one[1], default=(0, 0))
        count = min(_RANGE, available - 1)
        if count < 1:
            by = Refusal("this user namespace: it maps one id only", "start outside of it, or in one that maps a range")
            raise Refused(f"/proc/self/{name}: {available} ids", by)
        builder.map(name, f"0 {start + 1} {count}\n")
        counts.append(count)
    attempt(facts, builder)
    return f"{min(counts)} ids, written by {facts.user}"


def _subordinate_ids(facts: Facts) -> str:
    """Map the ranges of /etc/subuid and /etc/subgid by the setuid programs that may."""
    name = None if facts.user.isdigit() else facts.user
    content = {file: read_bytes(file) for file in _FILES}
    granted = {file: parse_subid(content[file], name, facts.uid) for file in _FILES}
    missing = {file: parse_account_ids(subid=content[file]) for file in _FILES if not granted[file]}
    if missing:
        raise Refused("no subordinate ids", refusals.no_range(missing, facts))
    builder = Builder()
    builder.clone_flags = room(facts, "user").clone_flags
    for file, program in zip(_FILES, _PROGRAMS, strict=True):
        refusal = _helper_refusal(program, facts)
        if refusal:
            raise Refused(f"{program} cannot write id maps", refusal)
        start, count = granted[file][0]
        builder.map_helper(program, ["0", str(start), str(count)])
    attempt(facts, builder)
    return f"{min(granted[file][0][1] for file in _FILES)} ids, by newuidmap and newgidmap"


def _helper_refusal(program: str, facts: Facts) -> Refusal | None:
    try:
        status = os.stat(program)
    except OSError:
        return refusals.id_helper(program, exists=False, privileged=False, nosuid=False, facts=facts)
    privileged = bool(status.st_mode & stat.S_ISUID and status.st_uid == 0) or _has_file_capabilities(program)
    nosuid = bool(os.statvfs(program).f_flag & os.ST_NOSUID)
    return refusals.id_helper(program, exists=True, privileged=privileged, nosuid=nosuid, facts=facts)


def _has_file_capabilities(path: str) -> bool:
    try:
        return bool(os.getxattr(path, "security.capability"))
    except OSError:
        return False


def _explain_helper(error: SyscallError, need: Need, facts: Facts) -> Refusal:
    if error.op in ("newuidmap", "newgidmap"):
        return Refusal(f"{error.op}", f"the ranges in /etc/subuid and /etc/subgid that {error.op} would write for {facts.user}")
    return refusals.call(error.op, error.errno, need, facts)


_OTHERS: Final = tuple(kind for kind in KINDS if kind != "user")

NAMESPACES: Final = (
    Probe("user namespace", _user, NOTHING, _explain_user),
    *(Probe(f"{kind} namespace", partial(_made, (kind,))) for kind in _OTHERS),
    *(Probe(f"user+{kind} namespaces", partial(_made, ("user", kind))) for kind in _OTHERS),
    Probe("id ranges", _id_ranges, NOTHING, _explain_helper),
)
