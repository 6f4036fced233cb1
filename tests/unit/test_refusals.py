"""Who refused, from error numbers and facts; and the facts, from bytes."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolib._kernel.cgroupfs import controller_state, mode, own_group
from isolib._kernel.procfs import CgroupEntry, parse_mountinfo
from isolib.support import refusals
from isolib.support.facts import CAPABILITIES, Facts, option_in, version_of
from isolib.support.probes_host import container_of
from isolib.support.refusals import FILTER, Need

USER = Facts(release="6.18.0", user="ann", uid=1000, gid=1000)
ROOT = Facts(release="6.18.0", capabilities=(1 << 41) - 1)
FILTERED = replace(ROOT, seccomp=2)

NO_CLONE = {"kernel.unprivileged_userns_clone": "0"}
APPARMOR = {"kernel.apparmor_restrict_unprivileged_userns": "1"}
IN_CHROOT = tuple(parse_mountinfo(b"30 20 8:1 /jail/proc /proc rw - proc proc rw\n"))
KNOB = "kernel.modules_disabled"

#: Kinds asked for, the call, its error, the facts; and what the answer must name, and the remedy.
NAMESPACES = [
    (("net",), "clone3", errno.EPERM, USER, "missing capability CAP_SYS_ADMIN", "new={'net', 'user'}"),
    (("net",), "clone3", errno.EPERM, FILTERED, FILTER, "seccomp"),
    (("user",), "clone3", errno.EPERM, replace(USER, sysctls=NO_CLONE), "userns_clone = 0", "userns_clone=1"),
    (("user", "net"), "clone3", errno.EPERM, replace(USER, sysctls=APPARMOR), "AppArmor", "'userns,'"),
    (("user",), "clone3", errno.EPERM, replace(ROOT, mounts=IN_CHROOT), "chroot", "pivot_root"),
    (("user",), "write", errno.EPERM, USER, "ids of the caller", "mapped ids"),
    (
        ("user",),
        "clone3",
        errno.ENOSPC,
        replace(USER, sysctls={"user.max_user_namespaces": "0"}),
        "max_user_namespaces = 0",
        "sysctl -w",
    ),
    (
        ("user", "net"),
        "clone3",
        errno.ENOSPC,
        replace(USER, sysctls={"user.max_user_namespaces": "9", "user.max_net_namespaces": "0"}),
        "user.max_net_namespaces = 0",
        "sysctl -w user.max_net_namespaces=",
    ),
    (
        ("user",),
        "clone3",
        errno.ENOSPC,
        replace(USER, sysctls={"user.max_user_namespaces": "9"}),
        "= 9, here or in an outer",
        "raise",
    ),
    (("user",), "clone3", errno.EUSERS, USER, "32 deep", "raise"),
    (
        ("time",),
        "unshare",
        errno.EINVAL,
        replace(ROOT, namespaces=frozenset({"user", "net"}), config=lambda _: "n"),
        "built without CONFIG_TIME_NS",
        "CONFIG_TIME_NS",
    ),
    (("net",), "clone3", errno.ENOSYS, FILTERED, FILTER, "seccomp"),
]


@pytest.mark.parametrize("case", NAMESPACES)
def test_who_refused_namespaces(case: tuple[tuple[str, ...], str, int, Facts, str, str]) -> None:
    """Each refusal is traced to the knob, the module, the capability, the filter or the kernel."""
    kinds, op, number, facts, who, remedy = case
    refusal = refusals.namespace(kinds, op, number, facts)
    assert who in refusal.refused_by
    assert remedy in refusal.remedy


def test_root_is_not_refused_by_knobs_for_ordinary_users() -> None:
    """A knob against unprivileged user namespaces is not named to who has CAP_SYS_ADMIN."""
    privileged = replace(ROOT, sysctls=NO_CLONE | APPARMOR)
    refusal = refusals.namespace(("user",), "clone3", errno.EPERM, privileged)
    assert "unprivileged" not in refusal.refused_by


CALLS = [
    ("clone3", errno.ENOSYS, Need("5.3"), FILTERED, FILTER),
    ("clone3", errno.ENOSYS, Need("5.3"), replace(FILTERED, release="5.2.1"), "older than Linux 5.3"),
    ("clone3", errno.ENOSYS, Need("5.3"), replace(ROOT, release="5.2.1"), "older than Linux 5.3"),
    (
        "landlock_create_ruleset",
        errno.ENOSYS,
        Need("5.13", "CONFIG_SECURITY_LANDLOCK"),
        replace(FILTERED, config=lambda _: "n"),
        "built without",
    ),
    ("mount_setattr", errno.ENOSYS, Need("5.2"), replace(ROOT, release="5.10.0"), "older than Linux 5.12"),
    ("prlimit64", errno.EPERM, Need(capability="CAP_SYS_RESOURCE"), USER, "missing capability CAP_SYS_RESOURCE"),
    ("keyctl", errno.EPERM, Need(), FILTERED, FILTER),
    ("keyctl", errno.EACCES, Need(), replace(ROOT, apparmor="snap.x"), "AppArmor, profile snap.x"),
    ("keyctl", errno.EPERM, Need(), ROOT, "security module"),
    ("keyctl", errno.EDQUOT, Need(), replace(USER, sysctls={"kernel.keys.maxkeys": "200"}), "kernel.keys.maxkeys = 200"),
    ("fsopen", errno.ENODEV, Need("", "CONFIG_X", "x"), replace(ROOT, config=lambda _: "m"), "module x"),
    (
        "fsopen",
        errno.ENODEV,
        Need("", "CONFIG_X", "x"),
        replace(ROOT, config=lambda _: "m", sysctls={KNOB: "1"}),
        "modules_disabled = 1",
    ),
    ("fsopen", errno.ENODEV, Need("", "CONFIG_X", "x"), ROOT, "perhaps without CONFIG_X"),
    ("prctl", errno.EINVAL, Need("", "CONFIG_X"), replace(ROOT, config=lambda _: "y"), "although CONFIG_X is set"),
    ("read", errno.EIO, Need(), ROOT, "EIO"),
]


@pytest.mark.parametrize(("op", "number", "need", "facts", "who"), CALLS)
def test_who_refused_a_call(op: str, number: int, need: Need, facts: Facts, who: str) -> None:
    """The version and the options of the kernel tell it from a filter; capabilities tell a user from a policy."""
    refusal = refusals.call(op, number, need, facts)
    assert who in refusal.refused_by
    assert refusal.remedy


@given(
    st.sampled_from(["clone3", "fsopen", "fsconfig", "fsmount", "unshare", "write", "open"]),
    st.integers(1, 133),
    st.sampled_from([USER, ROOT, FILTERED]),
    st.booleans(),
)
def test_every_error_number_has_an_answer(op: str, number: int, facts: Facts, new_user: bool) -> None:  # noqa: FBT001 - drawn
    """Whatever the kernel answers, somebody is named and something is advised."""
    for refusal in (
        refusals.call(op, number, Need("5.2", "CONFIG_X", "x"), facts),
        refusals.mount(op, number, Need(), facts, new_user=new_user),
        refusals.namespace(("user", "net"), op, number, facts),
        refusals.procfs(number, facts),
        refusals.device_file("/dev/x", number, "crw------- of uid 0", Need(), facts),
    ):
        assert refusal.refused_by
        assert refusal.remedy
        assert "\n" not in refusal.refused_by + refusal.remedy


@pytest.mark.parametrize(
    ("number", "who"),
    [(errno.EMFILE, "RLIMIT_NOFILE"), (errno.ENFILE, "fs.file-max"), (errno.EAGAIN, "RLIMIT_NPROC"), (errno.ENOMEM, "memory")],
)
def test_want_is_told_whatever_was_tried(number: int, who: str) -> None:
    """A limit on descriptors, processes or memory says nothing about a feature."""
    for refusal in (refusals.shortage("socket", None, number), refusals.namespace(("net",), "clone3", number, USER)):
        assert refusal is not None
        assert who in refusal.refused_by
    assert refusals.shortage("socket", None, errno.EPERM) is None


def test_who_refused_a_mount() -> None:
    """Outside of a user namespace it is the capability; inside, the kernel's age or AppArmor."""
    overlay = Need("5.11")
    assert "CAP_SYS_ADMIN" in refusals.mount("fsopen", errno.EPERM, overlay, USER, new_user=False).refused_by
    old = replace(USER, release="5.10.0")
    assert "before Linux 5.11" in refusals.mount("fsconfig", errno.EPERM, overlay, old, new_user=True).refused_by
    confined = replace(USER, sysctls=APPARMOR)
    assert "AppArmor" in refusals.mount("fsopen", errno.EACCES, overlay, confined, new_user=True).refused_by


def test_covered_proc_is_told_from_an_absent_one() -> None:
    """What covers parts of /proc is named; binfmt_misc, which lies on an empty directory, does not count."""
    binfmt = b"31 30 0:9 / /proc/sys/fs/binfmt_misc rw - binfmt_misc binfmt_misc rw\n"
    mask = b"32 30 0:6 /null /proc/kcore rw - devtmpfs devtmpfs rw\n"
    whole = replace(ROOT, mounts=tuple(parse_mountinfo(binfmt)))
    covered = replace(ROOT, mounts=tuple(parse_mountinfo(binfmt + mask)))
    assert "/proc/kcore" in refusals.procfs(errno.EPERM, covered).refused_by
    assert "binfmt_misc" not in refusals.procfs(errno.EPERM, covered).refused_by
    assert "no procfs that shows everything" in refusals.procfs(errno.EPERM, whole).refused_by


DEVICES = [
    (errno.ENOENT, Need(option="CONFIG_TUN"), replace(ROOT, config=lambda _: "y"), "/dev/x: there is none"),
    (errno.ENOENT, Need(option="CONFIG_TUN"), replace(ROOT, config=lambda _: "n"), "built without CONFIG_TUN"),
    (errno.ENXIO, Need(option="CONFIG_TUN"), replace(ROOT, config=lambda _: "n"), "built without CONFIG_TUN"),
    (errno.EACCES, Need(), USER, "crw------- of uid 0"),
    (errno.EACCES, Need(capability="CAP_SYS_ADMIN"), USER, "missing capability CAP_SYS_ADMIN"),
    (errno.EPERM, Need(), ROOT, "device controller"),
]


@pytest.mark.parametrize(("number", "need", "facts", "who"), DEVICES)
def test_who_refused_a_device(number: int, need: Need, facts: Facts, who: str) -> None:
    """A device that is absent, closed to the user, or denied by a cgroup is told apart."""
    assert who in refusals.device_file("/dev/x", number, "crw------- of uid 0", need, facts).refused_by


def test_helper_for_id_maps_may_lack_its_right() -> None:
    """Absent, robbed of its setuid bit, on a nosuid mount, started with no_new_privs: each is told; else nothing is."""

    def told(facts: Facts = USER, *, exists: bool = True, privileged: bool = True, nosuid: bool = False) -> str:
        found = refusals.id_helper("/usr/bin/newuidmap", exists=exists, privileged=privileged, nosuid=nosuid, facts=facts)
        return found.refused_by if found else ""

    assert told() == ""
    assert told(exists=False) == "missing tool newuidmap"
    assert "setuid" in told(privileged=False)
    assert "nosuid" in told(nosuid=True)
    assert "no_new_privs" in told(replace(USER, no_new_privs=True))


@given(st.lists(st.tuples(st.integers(0, 2**31), st.integers(1, 2**20)), max_size=20))
def test_proposed_range_is_free(grants: list[tuple[int, int]]) -> None:
    """The range in the remedy overlaps nobody's."""
    start = refusals.next_free(grants)
    assert start >= 100000
    assert all(start >= other + count or start + 65536 <= other for other, count in grants)


def test_command_for_a_range_names_what_is_missing() -> None:
    """Only the file that grants nothing is mended."""
    both = refusals.no_range({"/etc/subuid": [(100000, 65536)], "/etc/subgid": []}, USER)
    assert both.refused_by == "/etc/subuid and /etc/subgid: no range for ann"
    assert both.remedy == "usermod --add-subuids 196608-262143 --add-subgids 100000-165535 ann, as root"
    one = refusals.no_range({"/etc/subgid": []}, USER)
    assert "--add-subuids" not in one.remedy


# ---- facts ----


def test_capabilities_are_bits() -> None:
    """A mask holds what its bits say."""
    facts = Facts(capabilities=1 << CAPABILITIES["CAP_NET_ADMIN"])
    assert facts.has("CAP_NET_ADMIN")
    assert not facts.has("CAP_SYS_ADMIN")


@pytest.mark.parametrize(
    ("text", "version"), [("6.18.44-x", (6, 18)), ("5.10.0-32-amd64", (5, 10)), ("7.2-rc1", (7, 2)), ("?", (0, 0))]
)
def test_versions_are_numbers(text: str, version: tuple[int, int]) -> None:
    """6.9 is older than 6.18."""
    assert version_of(text) == version


def test_kernel_options_are_found() -> None:
    """Set, a module, a text, not set, and not mentioned; one is not taken for another whose name begins the same."""
    config = b'CONFIG_A=y\nCONFIG_AB=m\n# CONFIG_C is not set\nCONFIG_LSM="landlock,yama"\n'
    assert [option_in(config, f"CONFIG_{name}") for name in ("A", "AB", "C", "D", "LSM", "B")] == [
        "y",
        "m",
        "n",
        "n",
        "landlock,yama",
        "n",
    ]


# ---- cgroups ----

V2 = b"40 30 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
V2_BESIDE = b"41 30 0:31 / /sys/fs/cgroup/unified ro - cgroup2 cgroup2 rw\n"
V1_MEMORY = b"42 30 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
V1_NAMED = b"43 30 0:33 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n"
V1_DOCKER = b"44 30 0:34 /docker/ab /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n"


@pytest.mark.parametrize(
    ("mounts", "expected"),
    [
        (V2, "unified"),
        (V2_BESIDE + V1_MEMORY, "hybrid"),
        (V2 + V1_NAMED, "unified"),
        (V1_MEMORY + V1_NAMED, "legacy"),
        (b"", ""),
        (V1_NAMED, ""),
    ],
)
def test_mode_of_the_hierarchies(mounts: bytes, expected: str) -> None:
    """A named hierarchy without controllers makes no host hybrid or legacy."""
    assert mode(parse_mountinfo(mounts)) == expected


def test_own_group_in_each_hierarchy() -> None:
    """The directory is below the mount, whatever part of the hierarchy is mounted there; outside of it there is none."""
    mounts = parse_mountinfo(V2_BESIDE + V1_MEMORY + V1_DOCKER)
    entries = [
        CgroupEntry(4, ("memory",), "/a/b"),
        CgroupEntry(3, ("cpu", "cpuacct"), "/docker/ab/c"),
        CgroupEntry(0, (), "/"),
    ]
    memory, cpu, unified = (own_group(mounts, entries, name) for name in ("memory", "cpu", None))
    assert memory is not None
    assert memory.path == "/sys/fs/cgroup/memory/a/b"
    assert not memory.readonly
    assert cpu is not None
    assert (cpu.path, cpu.readonly, cpu.unified) == ("/sys/fs/cgroup/cpu,cpuacct/c", True, False)
    assert unified is not None
    assert (unified.path, unified.unified, unified.readonly) == ("/sys/fs/cgroup/unified", True, True)
    assert own_group(mounts, [CgroupEntry(3, ("cpu",), "/other")], "cpu") is None
    assert own_group(mounts, [CgroupEntry(0, (), "/../outside")]) is None
    assert own_group(mounts, entries, "pids") is None


def test_state_of_a_controller() -> None:
    """/proc/cgroups tells what was disabled at boot from what is mounted nowhere and what is not there."""
    content = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t1\t3\t1\nmemory\t0\t1\t0\npids\t0\t1\t1\n"
    states = [controller_state(content, name) for name in ("cpu", "memory", "pids", "hugetlb")]
    assert states == ["bound", "disabled", "unbound", "absent"]


# ---- containers ----


@pytest.mark.parametrize(
    ("evidence", "nested", "engine"),
    [
        ({"environ": "lxc"}, True, "lxc"),
        ({"environ": "", "/run/systemd/container": "systemd-nspawn"}, True, "systemd-nspawn"),
        ({"/run/.containerenv": "", "/.dockerenv": ""}, True, "podman"),
        ({"/.dockerenv": ""}, True, "docker"),
        ({"/.dockerenv": ""}, False, ""),
        ({"/proc/version": "Linux version 4.4.0 (gVisor)"}, False, "gVisor"),
        ({"/proc/version": "Linux version 5.15 (Microsoft@Microsoft.com)"}, False, "WSL"),
        ({"/proc/version": "Linux version 6.1 (debian)"}, True, ""),
    ],
)
def test_container_engines(evidence: dict[str, str], nested: bool, engine: str) -> None:  # noqa: FBT001 - a parameter
    """Each is known by its sign; a sign that came with a disk image counts in a container only."""
    assert container_of(evidence, nested=nested) == engine
