"""Runs real programs in a full sandbox and prints what isolates them: what `make demo` runs.

Works as root and as an ordinary user. Exits with 1 when anything is not isolated as this page says.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import statistics
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import isolib

if TYPE_CHECKING:
    from collections.abc import Mapping

WIDTH = 80
MAX_ACCOUNT = 0xFFFF  # above that distributions have no accounts
RUNS = 20
NEEDED = ("launcher", "kernel", "mount_setattr", "overlay in user namespace", "procfs", "id-mapped mounts")
SECRET = "ISOLIB_DEMO_SECRET"  # noqa: S105 - a name
LETTER = "letter.txt"

PROGRAM = r"""
#include <stdio.h>
#include <sys/utsname.h>
#include <unistd.h>

int main(void) {
    struct utsname name;
    uname(&name);
    printf("process %d, user %d, on %s\n", (int)getpid(), (int)getuid(), name.nodename);
    return 0;
}
"""

# Runs outside and inside alike, with the same interpreter: the two columns of the table are two runs of one program.
PROBE = r"""
import json, os, socket, sys
port, host_pid, secret, letter = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]

def works(function, *arguments):
    try:
        function(*arguments)
    except OSError:
        return False
    return True

def running(name):
    # The dead are not counted: how long they show depends on the init of this host, which takes note of them.
    try:
        with open(f"/proc/{name}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1] not in b"ZX"
    except OSError:
        return False

with open("/proc/self/status") as file:
    status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
with open(letter) as file:
    before = file.read()
if len(sys.argv) > 5:
    with open(letter, "w") as file:
        file.write("rewritten")
with open(letter) as file:
    after = file.read()
print(json.dumps({
    "pid": os.getpid(),
    "uid": os.getuid(),
    "hostname": os.uname().nodename,
    "interfaces": sorted(name for _, name in socket.if_nameindex()),
    "processes": sum(running(name) for name in os.listdir("/proc") if name.isdigit()),
    "capabilities": int(status["CapEff"], 16),
    "no_new_privs": int(status["NoNewPrivs"]),
    "signal": works(os.kill, host_pid, 0),
    "server": works(socket.create_connection, ("127.0.0.1", port), 2),
    "secret": secret in os.environ,
    "shadow": os.access("/etc/shadow", os.R_OK),
    "usr": os.access("/usr", os.W_OK),
    "letter": after,
    "same": before,
}))
"""


@dataclass(frozen=True)
class Row:
    """A line of the table: what is asked, both answers, and whether the answer inside is what it has to be."""

    what: str
    outside: object
    inside: object
    holds: bool


def main() -> int:
    """Run everything; returns the exit status."""
    who = "root" if os.geteuid() == 0 else f"an ordinary user (uid {os.geteuid()})"
    print(f"isolib {isolib.__version__} on Linux {os.uname().release}, started by {who}")
    try:
        failures = demonstrate_somewhere()
    except isolib.IsolibError as refusal:
        return explain_refusal(refusal)
    for failure in failures:
        print(f"\nNOT ISOLATED AS CLAIMED: {failure}", file=sys.stderr)
    return 1 if failures else 0


def demonstrate_somewhere() -> list[str]:
    """Show everything in a new directory; root's has to be on a file system that can map ids, which not every /tmp is on."""
    places = [place for place in (None, "/var/tmp", "/dev/shm") if place is None or os.access(place, os.W_OK)]
    for place in places:
        with tempfile.TemporaryDirectory(prefix="isolib-demo-", dir=place) as work:
            try:
                return demonstrate(work)
            except isolib.Unsupported:
                if place == places[-1]:
                    raise
    return []


def demonstrate(work: str) -> list[str]:
    """Show everything; returns what does not hold."""
    letter = Path(work, LETTER)
    letter.write_text("original", encoding="ascii")
    os.environ[SECRET] = "1"
    failures = []
    with socket.create_server(("127.0.0.1", 0)) as server, isolib.Sandbox(cwd=work) as box:
        failures += show_program(box)
        arguments = [sys.executable, "-I", "-S", "-c", PROBE, str(server.getsockname()[1]), str(os.getpid()), SECRET, LETTER]
        outside = run_outside(arguments, work)
        inside = json.loads(box.run([*arguments, "rewrite"], check=True).stdout)
        with box.popen(["sleep", "60"]) as sleeper:
            inside["outer"] = sleeper.psutil().uids().real
        failures += show_table(rows(outside, inside, letter))
        failures += show_audit(box.audit())
    print(f"\nthe block has ended; the directory holds: {', '.join(sorted(os.listdir(work)))}")
    if os.listdir(work) != [LETTER] or letter.read_text(encoding="ascii") != "original":
        failures.append("the working directory has changed")
    show_time(work)
    return failures


def title(text: str) -> None:
    """Print a heading."""
    print(f"\n{text}\n{'-' * len(text)}")


def show_program(box: isolib.Sandbox) -> list[str]:
    """Compile a program in the sandbox and run it there, or run Python where there is no compiler."""
    if shutil.which("gcc"):
        title("A C program, compiled and run in the sandbox")
        box.run(["sh", "-c", "cat >hello.c"], input=PROGRAM.encode(), check=True)
        print("$ gcc -o hello hello.c && ./hello")
        box.run(["gcc", "-o", "hello", "hello.c"], check=True)
        done = box.run(["./hello"], check=True)
    else:
        title("A Python program, run in the sandbox (there is no gcc here)")
        code = "import os; print(f'process {os.getpid()}, user {os.getuid()}, on {os.uname().nodename}')"
        done = box.run([sys.executable, "-I", "-c", code], check=True)
    print(done.stdout.decode().rstrip())
    print(f"ended: {done.exit.reason.value} {done.returncode}, cpu {1000 * (done.usage.cpu_user or 0):.0f} ms")
    return [] if done.stdout.endswith(b", user 0, on sandbox\n") else [f"the program says {done.stdout!r}"]


def run_outside(arguments: list[str], work: str) -> dict[str, object]:
    """Run the probe as any program of this user's runs."""
    with isolib.spawn(arguments, cwd=work, stdout=isolib.PIPE) as process:
        answers: dict[str, object] = json.loads(process.communicate()[0] or b"{}")
    return answers


def rows(outside: Mapping[str, object], inside: Mapping[str, object], letter: Path) -> list[Row]:
    """Return the table, and what has to be true of each line."""
    few = 2  # PID 1 and the command
    kept = letter.read_text(encoding="ascii")
    count = inside["processes"]

    def row(what: str, key: str, *, holds: bool) -> Row:
        return Row(what, outside[key], inside[key], holds)

    return [
        row("process id", "pid", holds=inside["pid"] != outside["pid"]),
        row("user id", "uid", holds=inside["uid"] == 0),
        Row("user id as this host sees it", outside["uid"], inside["outer"], is_nobody(inside["outer"])),
        row("host name", "hostname", holds=inside["hostname"] == "sandbox"),
        row("network interfaces", "interfaces", holds=inside["interfaces"] == ["lo"]),
        row("running processes visible", "processes", holds=isinstance(count, int) and count <= few),
        row("can signal this demo", "signal", holds=inside["signal"] is False),
        row("reaches a server on 127.0.0.1", "server", holds=inside["server"] is False),
        row("sees a variable of this demo", "secret", holds=inside["secret"] is False),
        row("can read /etc/shadow", "shadow", holds=inside["shadow"] is False),
        row("can write in /usr", "usr", holds=inside["usr"] is False),
        row("capabilities", "capabilities", holds=inside["capabilities"] == 0),
        row("no_new_privs", "no_new_privs", holds=inside["no_new_privs"] == 1),
        Row(f"{LETTER}, rewritten inside", kept, inside["letter"], (kept, inside["letter"]) == ("original", "rewritten")),
    ]


def is_nobody(uid: object) -> bool:
    """Return whether a user id of this host is one that owns nothing of it; an ordinary user can give but the own one."""
    return isinstance(uid, int) and (uid > MAX_ACCOUNT if os.geteuid() == 0 else uid == os.geteuid())


def show(value: object) -> str:
    """Return a cell of the table."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, int) and value > 0xFFFFFFFF:  # noqa: PLR2004 - a mask, not a count or an id
        return hex(value)
    return str(value)


def show_table(lines: list[Row]) -> list[str]:
    """Print what one program finds outside and inside."""
    title("One program, run outside and inside")
    print(f"{'':<30} {'outside':<24} inside")
    for line in lines:
        cells = textwrap.shorten(show(line.outside), 24, placeholder=" ..."), show(line.inside)
        print(f"{line.what:<30} {cells[0]:<24} {cells[1]}{'' if line.holds else '   <-- wrong'}"[:WIDTH])
    return [f"{line.what}: {show(line.inside)}" for line in lines if not line.holds]


def show_audit(found: Mapping[str, str]) -> list[str]:
    """Print what the kernel says is in force, and return what is the host's own."""
    title("What the kernel says is in force: Sandbox.audit()")
    for name, value in found.items():
        print(f"{name:<30} {value}"[:WIDTH])
    wrong = [f"{name}: {value}" for name, value in found.items() if value == "the host's"]
    wrong += [f"{name}: {value}" for name, value in found.items() if name.startswith("capabilities") and int(value, 16)]
    return wrong + ([] if found["no_new_privs"] == "1" else ["no_new_privs is not set"])


def show_time(work: str) -> None:
    """Print what a sandbox costs here and now."""
    title("Time")
    taken = []
    for _ in range(RUNS):
        before = time.perf_counter()
        isolib.run(["true"], cwd=work, check=True)
        taken.append(1000 * (time.perf_counter() - before))
    print(f"a new sandbox, `true` in it, and its end: {statistics.median(taken):.1f} ms, the median of {RUNS}")


def explain_refusal(refusal: Exception) -> int:
    """Say what this host refuses and what would allow it."""
    print(f"\nThis host refuses the sandbox:\n  {refusal}", file=sys.stderr)
    missing = isolib.doctor().missing()
    wanted = missing.get("user namespace")
    for feature in [wanted] if wanted is not None else [missing[name] for name in NEEDED if name in missing]:
        print(f"\n{feature.name}: refused by {feature.refused_by}\n  what would allow it: {feature.remedy}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
