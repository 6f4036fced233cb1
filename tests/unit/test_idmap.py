from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from isolib._kernel import idmap
from isolib._kernel.idmap import RESERVED, Caller, IdMapPlan, Side, auto_map, free_range, read_caller, resolve
from isolib.errors import PlanError
from isolib.types import MAX_ID, IdMap, check_id_map

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolib._kernel.idmap import Form, Range

WHOLE = ((0, MAX_ID + 1),)


def caller(
    *,
    own: int = 1000,
    privileged: bool = False,
    mapped: tuple[Range, ...] = WHOLE,
    granted: tuple[Range, ...] = (),
    user: str | None = "alice",
    taken: tuple[Range, ...] = (),
) -> Caller:
    """Return somebody whose two sides are alike."""
    kinds: tuple[Literal["uid"], Literal["gid"]] = ("uid", "gid")
    uid, gid = (Side(kind, own, privileged, mapped, granted) for kind in kinds)
    return Caller(uid, gid, user, taken)


ALICE = caller(granted=((100000, 65536),))
ROOT = caller(own=0, privileged=True, user=None)


def test_own_id() -> None:
    """One's own id needs no helper, but for groups the loss of setgroups; root keeps that."""
    assert resolve("root", "root", ALICE) == IdMapPlan((IdMap(0, 1000),), (IdMap(0, 1000),), setgroups_deny=True, helper=False)
    assert resolve("same", "same", ALICE) == IdMapPlan(
        (IdMap(1000, 1000),), (IdMap(1000, 1000),), setgroups_deny=True, helper=False
    )
    assert resolve("root", "same", ROOT) == IdMapPlan((IdMap(0, 0),), (IdMap(0, 0),), setgroups_deny=False, helper=False)
    assert resolve([IdMap(7, 1000)], [IdMap(8, 1000)], ALICE).helper is False


def test_auto_for_an_ordinary_user() -> None:
    """0 inside is the user, then come all his subordinate ids, each once; newuidmap writes that, and setgroups stays."""
    plan = resolve("auto", "auto", ALICE)
    ids = (IdMap(0, 1000), IdMap(1, 100000, 65536))
    assert plan == IdMapPlan(ids, ids, setgroups_deny=False, helper=True)
    many = caller(granted=((100, 10), (100, 10), (105, 10), (999, 3)))
    assert resolve("auto", "auto", many).uid == (
        IdMap(0, 1000),
        IdMap(1, 100, 10),
        IdMap(11, 110, 5),
        IdMap(16, 999),
        IdMap(17, 1001),
    )
    inner = caller(granted=((100000, 65536),), mapped=((0, 100010),))
    assert resolve("auto", "auto", inner).uid == (IdMap(0, 1000), IdMap(1, 100000, 10))


def test_mixed() -> None:
    """The two maps may differ, and one that needs the helper is enough."""
    plan = resolve("auto", "root", ALICE)
    assert plan.helper
    assert plan.setgroups_deny
    assert plan.gid == (IdMap(0, 1000),)


def test_auto_for_root() -> None:
    """Root gets 65536 ids that own nothing, the same for users and groups."""
    plan = resolve("auto", "auto", ROOT)
    assert plan.uid == plan.gid == (IdMap(0, 0x70000000, 65536),)
    assert not plan.helper
    assert not plan.setgroups_deny
    taken = caller(own=0, privileged=True, taken=((0x70000005, 1), (0x70010000, 65537)))
    assert resolve("auto", "auto", taken).uid == (IdMap(0, 0x70030000, 65536),)


def test_auto_for_root_of_a_container() -> None:
    """Where fewer ids exist, root gets the longest run of free ones."""
    inner = caller(own=0, privileged=True, mapped=((0, 65536),), taken=((5000, 1),))
    assert resolve("auto", "auto", inner).uid == (IdMap(0, 5001, 61184 - 5001),)
    with pytest.raises(PlanError, match=r"no free user ids: .* has 0, and accounts own them all -- id_map='root' needs none"):
        resolve("auto", "auto", caller(own=0, privileged=True, mapped=((0, 1),)))
    sides = (Side("uid", 0, True, ((0, 5000),)), Side("gid", 0, True, ((4000, 9000),)))  # noqa: FBT003 -- as in Side
    assert resolve("auto", "auto", Caller(*sides, None, ())).gid == (IdMap(0, 4000, 1000),)


@pytest.mark.parametrize(
    ("who", "message"),
    [
        (caller(), "no subordinate user ids for user 'alice' in /etc/subuid -- as root: usermod --add-subuids"),
        (
            caller(user=None),
            "no subordinate user ids for uid 1000 in /etc/subuid -- newuidmap\\(1\\) serves only users that have a",
        ),
        (caller(granted=((5, 5),), mapped=((1000, 1),)), "no subordinate user ids for user 'alice'"),
        (caller(granted=((1000, 1),)), "no subordinate user ids"),
    ],
)
def test_no_subordinate_ids(who: Caller, message: str) -> None:
    """Who has no subordinate ids is told how to get some."""
    with pytest.raises(PlanError, match=message):
        resolve("auto", "auto", who)


@pytest.mark.parametrize(
    ("uid_map", "who", "message"),
    [
        ("roots", ALICE, "uid map: 'root', 'same', 'auto' or a list of IdMap, not 'roots'"),
        (7, ALICE, "uid map: an id map is a list of IdMap"),
        ([], ALICE, "uid map: the map is empty"),
        ([IdMap(0, 1), IdMap(0, 2)], ROOT, "uid map: .* overlap inside"),
        (
            [IdMap(0, 5)],
            ALICE,
            "uid map: user id 5 is not yours to map: your own is 1000, and /etc/subuid grants 100000-165535 to",
        ),
        ([IdMap(0, 1000, 2)], ALICE, "user id 1000 is not yours"),
        ([IdMap(0, 165535, 2)], ALICE, "user id 165536 is not yours"),
        ([IdMap(0, 7)], caller(), "grants none to user 'alice'"),
        ([IdMap(0, 9000)], caller(own=0, privileged=True, mapped=((0, 9000),)), "user id 9000 does not exist in .* 0-8999"),
        ("root", caller(own=65534, mapped=((0, 1),)), "user id 65534 does not exist"),
        ([IdMap(3 * n, 4000000000 + 3 * n) for n in range(340)], ROOT, "uid map: written down it has .* bytes"),
    ],
)
def test_refused(uid_map: Any, who: Caller, message: str) -> None:  # noqa: ANN401 -- rubbish too
    """A map that the kernel or newuidmap would refuse is refused beforehand, and the message says what would be possible."""
    with pytest.raises(PlanError, match=message):
        resolve(uid_map, "root", who)


def test_list_for_an_ordinary_user() -> None:
    """A list may use what is granted, and one's own id."""
    ids = [IdMap(0, 100000, 1000), IdMap(1000, 1000), IdMap(1001, 101001, 64535)]
    plan = resolve(ids, ids, ALICE)
    assert plan == IdMapPlan(tuple(ids), tuple(ids), setgroups_deny=False, helper=True)


# ---- properties ----

IDS = st.one_of(st.integers(min_value=0, max_value=70), st.integers(min_value=0, max_value=MAX_ID))


def ranges(longest: int = 2**17) -> st.SearchStrategy[tuple[Range, ...]]:
    """Make ranges of ids, which may overlap."""
    counts = st.one_of(st.integers(min_value=1, max_value=9), st.integers(min_value=1, max_value=longest))
    one = st.tuples(IDS, counts).map(lambda made: (made[0], min(made[1], MAX_ID + 1 - made[0])))
    return st.lists(one, max_size=5).map(tuple)


def overlap(first: Range, second: Range) -> bool:
    """Say whether two ranges share an id."""
    return max(first[0], second[0]) < min(sum(first), sum(second))


@given(taken=ranges(2**31), available=ranges(2**32))
@example(taken=(), available=WHOLE)
@example(taken=((0, 2**31),), available=WHOLE)
@example(taken=WHOLE, available=WHOLE)
def test_free_range(taken: tuple[Range, ...], available: tuple[Range, ...]) -> None:
    """A free range exists, holds nothing that is taken or reserved, and is a whole one wherever there is a whole one."""
    start, count = free_range(taken, available)
    assert 0 <= count <= 65536
    if count:
        assert any(first <= start and start + count <= first + size for first, size in available)
        assert not any(overlap((start, count), other) for other in (*taken, *RESERVED))
    if count == 65536:
        return
    for aligned in range(0, 2**32 - 65536, 65536 * 257):  # a sample of where there might have been one
        whole = (aligned, 65536)
        inside = any(first <= aligned and aligned + 65536 <= first + size for first, size in available)
        assert not inside or any(overlap(whole, other) for other in (*taken, *RESERVED))


@st.composite
def callers(draw: st.DrawFn) -> Caller:
    """Make anybody."""
    sides = [
        Side(kind, draw(IDS), draw(st.booleans()), draw(st.one_of(st.just(WHOLE), ranges(2**32))), draw(ranges()))
        for kind in ("uid", "gid")
    ]
    return Caller(sides[0], sides[1], draw(st.sampled_from([None, "alice"])), draw(ranges()))


FORMS = st.one_of(
    st.sampled_from(["root", "same", "auto", "other"]),
    st.lists(st.builds(IdMap, IDS, IDS, st.integers(min_value=1, max_value=70000)), max_size=4),
)


@given(who=callers(), uid_map=FORMS, gid_map=FORMS)
@example(who=ALICE, uid_map="auto", gid_map="auto")
@example(who=ROOT, uid_map="auto", gid_map="root")
def test_a_plan_can_be_carried_out(who: Caller, uid_map: Form, gid_map: Form) -> None:
    """Whoever asks for whatever: a plan keeps the rules of user_namespaces(7) and newuidmap(1), or there is a PlanError."""
    try:
        plan = resolve(uid_map, gid_map, who)
    except PlanError:
        return
    for ids, side in ((plan.uid, who.uid), (plan.gid, who.gid)):
        check_id_map(ids)
        for one in ids:
            assert covered((one.outside, one.count), side.mapped)
            own = one.outside == side.own and one.count == 1
            assert side.privileged or own or covered((one.outside, one.count), side.granted)
        direct = side.privileged or (len(ids) == 1 and ids[0].count == 1 and ids[0].outside == side.own)
        assert direct or plan.helper
    assert plan.helper or who.gid.privileged or plan.setgroups_deny


def covered(one: Range, others: Sequence[Range]) -> bool:
    """Say whether every id of a range is in one of the others; a sweep, unlike the code under test."""
    position, end = one[0], sum(one)
    for first, size in sorted(others):
        if first <= position < first + size:
            position = first + size
    return position >= end


# ---- this host ----


def test_read_caller() -> None:
    """The caller is who runs this test, and what he may do is what the kernel says."""
    who = read_caller()
    assert (who.uid.own, who.gid.own) == (os.geteuid(), os.getegid())
    assert covered((os.geteuid(), 1), who.uid.mapped)
    with open("/proc/thread-self/status", encoding="utf-8") as file:
        line = next(line for line in file if line.startswith("CapEff:"))
    capabilities = int(line.split()[1], 16)
    assert (who.uid.privileged, who.gid.privileged) == (bool(capabilities & 1 << 7), bool(capabilities & 1 << 6))
    assert covered((0, 1), who.taken)
    bare = read_caller(names=False)
    assert (bare.uid.own, bare.user, bare.taken) == (who.uid.own, None, ())


def test_taken_ids() -> None:
    """What accounts and grants speak of is merged."""
    assert idmap._taken(b"a:x:5:6::/:\nb:x:7:100::/:\n", b"c:x:6:\n", b"a:100:50\n", b"a:120:100\n") == ((5, 3), (100, 120))


def test_auto_map() -> None:
    """The map of this user is one that the kernel would take, or the message names the remedy."""
    try:
        ids = auto_map()
    except PlanError as error:
        assert " -- " in str(error)  # noqa: PT017 -- either is right, by who runs this
    else:
        assert check_id_map(ids)[0].inside == 0
        assert auto_map("gid")[0].inside == 0


def write_maps(plan: IdMapPlan) -> tuple[str, str]:
    """Write the maps for a process in a new user namespace, and return what the kernel made of them."""
    code = "import ctypes; print(ctypes.CDLL(None).unshare(0x10000000), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-I", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "0\n"
        if plan.setgroups_deny:
            write(child.pid, "setgroups", "deny")
        found = []
        for name, ids in (("uid_map", plan.uid), ("gid_map", plan.gid)):
            write(child.pid, name, "".join(f"{one.inside} {one.outside} {one.count}\n" for one in ids))
            with open(f"/proc/{child.pid}/{name}", encoding="ascii") as file:
                found.append(" ".join(file.read().split()))
        child.communicate("\n")
    return found[0], found[1]


def write(pid: int, name: str, text: str) -> None:
    """Write to a file of a process."""
    with open(f"/proc/{pid}/{name}", "w", encoding="ascii") as file:
        file.write(text)


@pytest.mark.usefixtures("user_namespaces")
@pytest.mark.parametrize("form", ["root", "same"])
def test_the_kernel_takes_ones_own_id(form: str) -> None:
    """The kernel takes the plan for one's own id, from root and from an ordinary user."""
    inside = 0 if form == "root" else os.geteuid()
    group = 0 if form == "root" else os.getegid()
    assert write_maps(resolve(form, form)) == (f"{inside} {os.geteuid()} 1", f"{group} {os.getegid()} 1")


@pytest.mark.usefixtures("user_namespaces", "needs_root")
def test_the_kernel_takes_a_free_range() -> None:
    """The kernel takes root's own plan of ids that own nothing, and nobody has a name for its first one."""
    plan = resolve("auto", "auto")
    uid_map, gid_map = write_maps(plan)
    assert uid_map == gid_map == f"0 {plan.uid[0].outside} {plan.uid[0].count}"
    assert idmap._user_name(plan.uid[0].outside) is None
