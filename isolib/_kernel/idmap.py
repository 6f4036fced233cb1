"""Which ids of the host stand for the ids of a new user namespace.

`resolve` turns what users say (``"root"``, ``"same"``, ``"auto"``, a list) into an `IdMapPlan`: what is to be written, and
by whom. All of it is decided here, before anything is made: a map that the kernel or newuidmap(1) would refuse is a
`PlanError` that says what would help.

The rules are in user_namespaces(7). A process with CAP_SETUID (CAP_SETGID) may map any id that exists in its own user
namespace. One without may map exactly its own id, after giving up setgroups(2); more only newuidmap(1) and newgidmap(1) do
for it, as far as subuid(5) and subgid(5) grant.
"""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, TypeAlias

from isolib._kernel.procfs import parse_account_ids, parse_effective, parse_id_map, parse_subid
from isolib.errors import PlanError
from isolib.types import MAX_ID, IdMap, check_id_map

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Form: TypeAlias = str | Sequence[IdMap]

__all__ = ["Caller", "IdMapPlan", "Side", "auto_map", "free_range", "read_caller", "resolve"]

Range: TypeAlias = tuple[int, int]
"""First id and count."""

RANGE = 65536
"""How many ids a whole system has use for: 16 bits, which the ids of every distribution fit in."""

RESERVED: tuple[Range, ...] = ((0, 1000), (61184, 65536 - 61184))
"""Ids that are never free, also where no file speaks of them: those of the system, and those that systemd gives to services
while they run, with the two 16-bit ids for nobody (systemd.io/UIDS-GIDS)."""

PREFERRED: tuple[Range, ...] = ((0x70000000, 0x7FFE0000 - 0x70000000), (RANGE, 2**31 - RANGE), (0, MAX_ID + 1))
"""Where to look for a free range, best first: what nobody uses by convention (systemd-nspawn takes ids below, and
systemd's foreign images those above), then whatever is positive also as a signed number, then anything."""

CAP_SETGID = 1 << 6
CAP_SETUID = 1 << 7


@dataclass(frozen=True, slots=True)
class IdMapPlan:
    """The maps of a new user namespace, ready to be written.

    Attributes
    ----------
    uid, gid
        The ranges.
    setgroups_deny
        Whether setgroups(2) must be given up first: ``deny`` written to /proc/PID/setgroups.
    helper
        Whether newuidmap(1) and newgidmap(1) must write the maps.
    """

    uid: tuple[IdMap, ...]
    gid: tuple[IdMap, ...]
    setgroups_deny: bool
    helper: bool


@dataclass(frozen=True, slots=True)
class Side:
    """What counts for the map of user ids, or for that of group ids.

    Attributes
    ----------
    kind
        ``"uid"`` or ``"gid"``.
    own
        The caller's effective id.
    privileged
        Whether the caller has CAP_SETUID or CAP_SETGID.
    mapped
        The ids that exist in the caller's own user namespace.
    granted
        The ids that subuid(5) or subgid(5) grants to the caller.
    """

    kind: Literal["uid", "gid"]
    own: int
    privileged: bool
    mapped: tuple[Range, ...]
    granted: tuple[Range, ...] = ()

    @property
    def what(self) -> str:
        """Return what these ids are of."""
        return "user" if self.kind == "uid" else "group"

    @property
    def file(self) -> str:
        """Return the file that grants such ids."""
        return f"/etc/sub{self.kind}"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks for a map: all that `resolve` looks at.

    Attributes
    ----------
    uid, gid
        The two sides.
    user
        The caller's name, or None when he has none or it does not matter.
    taken
        The ids, of users and groups, that own something on this host.
    """

    uid: Side
    gid: Side
    user: str | None
    taken: tuple[Range, ...]
    setgroups_denied: bool = False


def resolve(uid_map: Form, gid_map: Form, caller: Caller | None = None) -> IdMapPlan:
    """Return what must be done for the wanted maps.

    Parameters
    ----------
    uid_map, gid_map
        ``"root"``: id 0 inside is the caller, and nothing else is mapped. ``"same"``: the caller's own id is the same
        inside, and nothing else is mapped. ``"auto"``: 0 inside is the caller, and from 1 on come his subordinate ids; for a
        privileged caller, 65536 ids from 0 on that own nothing outside, or as many as there are free where he sees fewer. Or
        the ranges themselves.
    caller
        Who asks. By default it is read from this thread and from /etc.

    Raises
    ------
    PlanError
        The map is not possible, or not for this caller.
    """
    if caller is None:
        own = all(isinstance(form, str) and form in {"root", "same"} for form in (uid_map, gid_map))
        caller = read_caller(names=not own)
    uid = _resolve_side(uid_map, caller.uid, caller)
    gid = _resolve_side(gid_map, caller.gid, caller)
    return IdMapPlan(
        uid=uid,
        gid=gid,
        # Else a group that is denied something could be dropped to get it: user_namespaces(7), CVE-2014-8989.
        setgroups_deny=caller.setgroups_denied or (not caller.gid.privileged and _is_own(gid, caller.gid)),
        helper=any(not side.privileged and not _is_own(ids, side) for ids, side in ((uid, caller.uid), (gid, caller.gid))),
    )


def auto_map(kind: Literal["uid", "gid"] = "uid") -> list[IdMap]:
    """Return what ``"auto"`` means for the calling thread.

    Parameters
    ----------
    kind
        Whether user ids or group ids are meant.

    Raises
    ------
    PlanError
        The caller has no subordinate ids; or, privileged, sees no id that is free.
    """
    plan = resolve("auto", "auto")
    return list(plan.uid if kind == "uid" else plan.gid)


def _is_own(ids: tuple[IdMap, ...], side: Side) -> bool:
    """Say whether this is the one map that the kernel lets an unprivileged process write: its own id, and nothing else."""
    return len(ids) == 1 and ids[0].outside == side.own and ids[0].count == 1


def _resolve_side(form: Form, side: Side, caller: Caller) -> tuple[IdMap, ...]:
    name = f"{side.kind} map"
    if form == "auto":
        ids = _free_map(side, caller) if caller.uid.privileged and caller.gid.privileged else _granted_map(side, caller)
    elif form in ("root", "same"):
        ids = [IdMap(0 if form == "root" else side.own, side.own)]
    elif isinstance(form, str):
        raise PlanError(f"{name}: 'root', 'same', 'auto' or a list of IdMap, not {form!r}")
    else:
        ids = list(check_id_map(form, name))
    checked = check_id_map(ids, name)
    _check_outside(checked, side, caller)
    # The kernel takes less than a page in one write, and takes only one (kernel/user_namespace.c, map_write).
    length = sum(len(f"{one.inside} {one.outside} {one.count}\n") for one in checked)
    if length >= (page := os.sysconf("SC_PAGE_SIZE")):
        raise PlanError(f"{name}: written down it has {length} bytes, and the kernel takes less than {page}: use fewer ranges")
    return checked


def _check_outside(ids: tuple[IdMap, ...], side: Side, caller: Caller) -> None:
    for one in ids:
        if missing := _subtract([(one.outside, one.count)], side.mapped):
            raise PlanError(
                f"{side.kind} map: {side.what} id {missing[0][0]} does not exist in the user namespace of this process, "
                f"whose ids are {_words(side.mapped)}"
            )
        if side.privileged or (one.count == 1 and one.outside == side.own):
            continue
        if denied := _subtract([(one.outside, one.count)], side.granted):
            raise PlanError(
                f"{side.kind} map: {side.what} id {denied[0][0]} is not yours to map: your own is {side.own}, and {side.file} "
                f"grants {_words(side.granted) or 'none'} to {_name(side, caller)} -- {_remedy(caller)}"
            )


def _granted_map(side: Side, caller: Caller) -> list[IdMap]:
    ids = [IdMap(0, side.own)]
    # A range may stand there twice, or overlap with another one: each id is mapped once.
    used: list[Range] = [(side.own, 1)]
    inside = 1
    for grant in _intersect(side.granted, side.mapped):
        for start, count in _subtract([grant], used):
            ids.append(IdMap(inside, start, count))
            inside += count
        used.append(grant)
    if inside == 1:
        raise PlanError(f"no subordinate {side.what} ids for {_name(side, caller)} in {side.file} -- {_remedy(caller)}")
    return ids


def _free_map(side: Side, caller: Caller) -> list[IdMap]:
    # One range that is free on both sides, so that a user and his group keep having the same number.
    available = _intersect(caller.uid.mapped, caller.gid.mapped)
    start, count = free_range(caller.taken, available)
    if not count:
        raise PlanError(
            f"no free {side.what} ids: the user namespace of this process has {_words(available) or 'none'}, and accounts own "
            "them all -- id_map='root' needs none"
        )
    return [IdMap(0, start, count)]


def free_range(taken: Sequence[Range], available: Sequence[Range]) -> Range:
    """Return a range of ids that own nothing.

    Parameters
    ----------
    taken
        Ids that own something.
    available
        Ids that exist.

    Returns
    -------
    start, count
        65536 ids from a multiple of 65536 on where there are such, the same ones for the same arguments. Else the longest
        range that there is; its count is 0 when there is none.
    """
    gaps = _subtract(available, [*taken, *RESERVED])
    for preferred in PREFERRED:
        for start, count in _intersect(gaps, [preferred]):
            aligned = -(-start // RANGE) * RANGE
            if aligned + RANGE <= start + count:
                return aligned, RANGE
    start, count = max(gaps, key=lambda gap: gap[1], default=(0, 0))
    return start, min(count, RANGE)


def _name(side: Side, caller: Caller) -> str:
    return f"user {caller.user!r}" if caller.user else f"{side.kind} {side.own}"


def _remedy(caller: Caller) -> str:
    if not caller.user:
        return (
            f"newuidmap(1) serves only users that have a name, and uid {caller.uid.own} has none: id_map='root' needs neither"
        )
    return (
        f"as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {caller.user}; or use id_map='root', "
        "which needs no subordinate ids"
    )


def _words(ranges: Sequence[Range]) -> str:
    words = [f"{start}-{start + count - 1}" if count > 1 else f"{start}" for start, count in ranges[:5]]
    return ", ".join(words + (["..."] if len(ranges) > 5 else []))  # noqa: PLR2004 -- enough for a message


def _subtract(ranges: Iterable[Range], minus: Iterable[Range]) -> list[Range]:
    """Return what of the first is not in the second, in the order of the first."""
    removed = sorted(minus)
    left = []
    for first, size in ranges:
        start, end = first, first + size
        for other, count in removed:
            if other >= end:
                break
            if start < other:
                left.append((start, other - start))
            start = max(start, other + count)
        if start < end:
            left.append((start, end - start))
    return left


def _intersect(ranges: Iterable[Range], others: Iterable[Range]) -> list[Range]:
    """Return what of the first is in the second too, in the order of the first."""
    others = list(others)
    return [
        (start, stop - start)
        for first, count in ranges
        for other, size in others
        if (start := max(first, other)) < (stop := min(first + count, other + size))
    ]


# ---- reading ----


def read_caller(*, names: bool = True) -> Caller:
    """Return what the calling thread is and may do.

    Parameters
    ----------
    names
        Whether to read the files in /etc as well, and to ask for the caller's name. Where only his own ids are to be mapped
        nothing of that matters.
    """
    uid, gid = os.geteuid(), os.getegid()
    capabilities = parse_effective(_read("/proc/thread-self/status"))
    may_uid, may_gid = bool(capabilities & CAP_SETUID), bool(capabilities & CAP_SETGID)
    user: str | None = None
    granted: dict[str, tuple[Range, ...]] = {"uid": (), "gid": ()}
    taken: tuple[Range, ...] = ()
    if names:
        passwd, group, subuid, subgid = (_read(f"/etc/{name}", b"") for name in ("passwd", "group", "subuid", "subgid"))
        taken = _taken(passwd, group, subuid, subgid)
        if not (may_uid and may_gid):
            user = _user_name(uid)
            granted = {kind: tuple(parse_subid(data, user, uid)) for kind, data in (("uid", subuid), ("gid", subgid))}
    return Caller(
        uid=Side("uid", uid, may_uid, _mapped("uid"), granted["uid"]),
        gid=Side("gid", gid, may_gid, _mapped("gid"), granted["gid"]),
        user=user,
        taken=taken,
        # Denied in a user namespace, it is denied in all that are made in there.
        setgroups_denied=_read("/proc/thread-self/setgroups", b"").strip() == b"deny",
    )


def _mapped(kind: str) -> tuple[Range, ...]:
    return tuple((one.inside, one.count) for one in parse_id_map(_read(f"/proc/thread-self/{kind}_map")))


@lru_cache(maxsize=1)
def _taken(passwd: bytes, group: bytes, subuid: bytes, subgid: bytes) -> tuple[Range, ...]:
    # Remembered by content: parsing takes longer than reading, and a launch should take neither.
    merged: list[Range] = []
    for start, count in sorted(parse_account_ids(passwd, group, subuid) + parse_account_ids(subid=subgid)):
        if merged and start <= sum(merged[-1]):
            first, size = merged[-1]
            merged[-1] = (first, max(size, start + count - first))
        else:
            merged.append((start, count))
    return tuple(merged)


def _user_name(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def _read(path: str, default: bytes | None = None) -> bytes:
    try:
        file = open(path, "rb", buffering=0)  # noqa: SIM115 - the exception is about this alone
    except OSError:
        if default is None:
            raise
        return default  # no such file: it grants nothing, and nobody is in it
    with file:
        return file.read()
