from __future__ import annotations

import contextlib
import fcntl
import io
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.vm.kernels import KERNELS
from tests.vm.machine import ROOT, Died, Guest, TimedOut, run, session

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.vm

CGROUPS = ("tests/kernel/cgroups",)
"""What is run in every guest of `GUESTS`."""

LIMITS = (
    "tests/integration/test_limits.py",
    "tests/integration/test_reaper.py",
    "tests/kernel/test_reaper.py",
    "tests/security/test_cgroups.py",
)
"""What is run in guests in which nothing but cgroup v2 is there."""

LINKS = ("tests/kernel/net/test_kinds.py", "tests/kernel/net/test_vlans.py")
"""What is run in guests that have kinds of links, and bridges with VLANs, that others lack."""

RARE = "not macvlan and not vxlan and not tun and not tap and not bad_arguments and not interrupts"
"""Which of it: what is of those kinds, and asks the kernel; each system call takes thirty times as long there."""

WEATHER = ("tests/integration/test_bad_weather.py", "tests/kernel/net/test_shaping.py", "tests/kernel/net/test_oracles.py")
"""What is run in a guest that has netem: measured there as on a kernel without, by iperf3 too, and what others say of it."""

DEVICES = ("tests/kernel/unionfs/test_drivers.py", "tests/kernel/unionfs/test_devicemapper.py")
"""What is run in a guest that has thin pools of device-mapper."""

QUOTAS = ("tests/kernel/unionfs/test_overlay_quota.py",)
"""What is run in a guest whose kernel is made with quotas of XFS."""

STORES = ("tests/kernel/unionfs/test_file_systems.py",)
"""What is run in guests whose kernels name the layers of an overlay in older ways."""

GUESTS = [
    Guest("unified"),
    Guest("unified", as_user=True),
    Guest("unified", systemd=True),
    Guest("unified", systemd=True, as_user=True),
    Guest("full"),
    Guest("full", as_user=True),
]

OTHERS = [Guest(name) for name in KERNELS if name not in {guest.kernel for guest in GUESTS}]

WORK = Path("/srv")
"""Where the tests run: a sandbox of root's maps ids for its working directory, which the overlay of the checkout cannot."""

PATIENCE = 800
"""Seconds for one guest; less than `make test-vm` allows a test."""


@pytest.fixture(autouse=True)
def turn(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let guests run beside each other, one for each worker, but nothing beside a test that measures times."""
    with open(__file__, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX if request.node.get_closest_marker("alone") else fcntl.LOCK_SH)
        yield


def pytest_in(guest: Guest, *paths: str, words: str = "", marks: str = "not slow") -> None:
    """Fail unless the guest's pytest is content, and at least one of its tests has passed."""
    output = io.BytesIO()
    command = ["pytest", "-q", "-m", marks, "-p", "no:cacheprovider", "-o", "faulthandler_timeout=200"]
    command += ["-k", words] if words else []
    command += [f"--rootdir={ROOT}", "-c", f"{ROOT}/pyproject.toml", *(f"{ROOT}/{path}" for path in paths)]
    if paths == CGROUPS and guest.systemd and guest.as_user:  # as the user's own systemd lets him make groups
        command = ["systemd-run", "--user", "--scope", "--quiet", "--property=Delegate=yes", *command]
    environment = {"HOST_RELEASE": os.uname().release, "ISOLIB_TEST_NEEDS_GROUPS": "1"}
    status: int | str
    try:
        status = run(guest, command, output=output, environment=environment, cwd=WORK, timeout=PATIENCE)
    except TimedOut as error:
        status = str(error)
    text = output.getvalue().decode(errors="replace")
    closing = text.strip().rpartition("\n")[2]
    if status != 0 or not re.search(r"\b[1-9]\d* passed\b", closing):
        pytest.fail(f"in the guest {guest}, pytest ended with {status}:\n{text}", pytrace=False)
    sys.stdout.write(f"{guest}: {closing}\n")


@pytest.mark.parametrize("guest", [*GUESTS, *OTHERS], ids=str)
def test_guest_is_what_it_is_said_to_be(guest: Guest) -> None:
    """Kernel, controllers, user, cgroup and first process of the guest are those that were asked for."""
    pytest_in(guest, "tests/vm/guest/facts.py")


@pytest.mark.parametrize("guest", GUESTS, ids=str)
def test_cgroups(guest: Guest) -> None:
    """The tests of cgroups pass in the guest."""
    pytest_in(guest, *CGROUPS)


@pytest.mark.parametrize("guest", GUESTS[:2], ids=str)
def test_limits_of_sandboxes(guest: Guest) -> None:
    """Limits are kept and told, hostile code stays within them, and nothing is left of a killed host, with cgroup v2 alone."""
    pytest_in(guest, *LIMITS)


@pytest.mark.parametrize("guest", GUESTS[:2], ids=str)
def test_links(guest: Guest) -> None:
    """The tests of links pass in the guest, which has dummy, ipvlan and vlan links, and VLANs of bridges."""
    pytest_in(guest, *LINKS, words=RARE)


def test_thin_pools() -> None:
    """The contract of the storage drivers holds for that of device-mapper in a guest that has thin pools."""
    pytest_in(Guest("unified"), *DEVICES, words="devicemapper")


def test_quotas_of_projects() -> None:
    """Quotas of trees that are overlays hold in a guest whose XFS has them."""
    pytest_in(Guest("newest"), *QUOTAS)


@pytest.mark.parametrize("kernel", ["old", "uml-stable"])
def test_stores_on_older_kernels(kernel: str) -> None:
    """Overlays and stores work in a guest of Linux 5.10 and in one of 6.12, which name layers by texts and by paths."""
    pytest_in(Guest(kernel), *STORES, words="here or without_a_store")


# ---- the runner itself ----


def test_status_and_output_of_a_failing_command_come_back() -> None:
    """What a command writes on both streams, bytes of any kind, arrives in order, and so does its exit status."""
    output = io.BytesIO()
    status = run(Guest("unified"), ["sh", "-c", r"printf 'out\n\377\0'; echo err >&2; exit 7"], output=output)
    assert (status, output.getvalue()) == (7, b"out\n\xff\x00err\n")


def test_status_of_a_killed_command_is_that_of_a_shell() -> None:
    """A command that a signal ended has 128 and the signal's number."""
    assert run(Guest("unified"), ["sh", "-c", "kill -9 $$"], output=io.BytesIO()) == 128 + signal.SIGKILL


def test_command_that_is_missing_is_told() -> None:
    """A command that does not exist has the status 127, and the output names it."""
    output = io.BytesIO()
    assert run(Guest("unified"), ["no-such-command"], output=output) == 127
    assert b"no-such-command" in output.getvalue()


def test_kernel_that_ends_is_told_with_its_console() -> None:
    """When the kernel panics, the exception shows what it said on its console."""
    with pytest.raises(Died, match="Kernel panic"):
        run(Guest("unified", words=("rdinit=/no/such/file",)), ["true"], output=io.BytesIO())


def test_nothing_that_the_guest_writes_is_kept() -> None:
    """Files that root writes in the guest, also over the host's, are not on the host."""
    mark = uuid.uuid4().hex
    before = Path("/etc/passwd").read_bytes()
    command = f"echo {mark} >>/etc/passwd; echo {mark} >{ROOT}/{mark}; grep -c {mark} /etc/passwd {ROOT}/{mark}"
    assert run(Guest("unified"), ["sh", "-c", command], output=io.BytesIO()) == 0
    assert Path("/etc/passwd").read_bytes() == before
    assert not (ROOT / mark).exists()


def machine(mark: str) -> int:
    """Return the process that leads a session, has a word in its arguments, and is no Python."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"tests.vm" not in words and mark.encode() in b" ".join(words) and os.getsid(int(pid)) == int(pid):
                found.append(int(pid))
    (leader,) = found
    return leader


@pytest.mark.parametrize("kernel", ["unified", "full"])
@pytest.mark.parametrize("end", ["time-out", "SIGTERM", "SIGKILL"])
def test_the_machine_ends_with_its_time_or_its_starter(kernel: str, end: str) -> None:
    """No process of a machine is left after the time is over, or after its starter was ended in any way."""
    mark = f"isolib.test={uuid.uuid4().hex}"
    seconds = "20" if end == "time-out" else "600"
    command = [
        sys.executable,
        "-m",
        "tests.vm",
        "--timeout",
        seconds,
        "--words",
        mark,
        kernel,
        "--",
        "sh",
        "-c",
        "echo up; sleep 900",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as starter:
        try:
            assert starter.stdout is not None
            assert starter.stderr is not None
            line = starter.stdout.readline()
            assert line == b"up\n", line or starter.stderr.read()
            leader = machine(mark)
            place = re.search(rb"/var/tmp/isolib-vm-\w+", Path(f"/proc/{leader}/cmdline").read_bytes())
            ends = [os.pidfd_open(pid) for pid in session(leader)]
            assert ends
            if end != "time-out":
                starter.send_signal(signal.Signals[end])
            said = starter.stderr.read()
            starter.wait()
        except BaseException:
            starter.kill()
            raise
    for fd in ends:
        assert select.select([fd], [], [], 60)[0]
        os.close(fd)
    assert place is not None
    if end == "SIGKILL":  # nobody could remove it
        shutil.rmtree(place[0])
    assert not os.path.exists(place[0])
    expected = {"time-out": (124, True), "SIGTERM": (143, False), "SIGKILL": (-9, False)}
    assert (starter.returncode, b"still running" in said) == expected[end]


# ---- what is measured ----


@pytest.mark.alone  # last, that the other worker does not wait for it
def test_weather() -> None:
    """Bad weather is measured as it was asked for in a guest that has netem, by that and by the relay, and tc says the same."""
    pytest_in(Guest("unified"), *WEATHER, marks="")
