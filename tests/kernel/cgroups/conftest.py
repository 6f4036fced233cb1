"""Control groups for tests, made by hand: one directory in each hierarchy, in the place where isolib would make its own."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from itertools import count
from typing import TYPE_CHECKING

import pytest

from isolib.cgroups import place, removal
from isolib.cgroups.files import Directory
from tests.groups import has_version_2, is_legacy, needs

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTROLLERS = {"memory", "pids", "cpu", "io", "cpuacct", "hugetlb"}

NUMBERS = count(1)


class RawGroup:
    """A control group in every hierarchy.

    Attributes
    ----------
    unified
        Its directory in cgroup v2, or None.
    controllers
        The directory that has each controller.
    """

    def __init__(self) -> None:
        name = f"zz-isolib-{os.getpid()}-{next(NUMBERS)}"
        where = place.find(CONTROLLERS)
        self.unified: Directory | None = None
        self.controllers: dict[str, Directory] = {}
        self._made: list[tuple[Directory, str]] = []
        self._stack = ExitStack()
        self._running: list[subprocess.Popen[bytes]] = []
        if where.unified is not None:
            self.unified = self._make(where.unified.path, name, 2)
            self.controllers |= dict.fromkeys(place.enabled_in(where.unified) & CONTROLLERS, self.unified)
        for key, parent in where.legacy.items():
            if key in CONTROLLERS:
                self.controllers[key] = self._make(parent.path, name, 1)

    def _make(self, above: str, name: str, version: int) -> Directory:
        for parent, _ in self._made:
            if parent.path == above:  # controllers that are mounted together
                return self._stack.enter_context(Directory.open(name, version, parent=parent))
        parent = self._stack.enter_context(Directory.open(above, version))
        parent.make(name)
        self._made.append((parent, name))
        return self._stack.enter_context(Directory.open(name, version, parent=parent))

    def in_v2(self) -> Directory:
        """Return its directory in cgroup v2; skip the test where this host has none for this user."""
        if not has_version_2():
            pytest.skip("this host has no cgroup v2 in which this user may make groups")
        assert self.unified is not None
        return self.unified

    def in_v1(self) -> list[Directory]:
        """Return its directories in cgroup v1; skip the test where this host has none for this user."""
        if not any(map(is_legacy, CONTROLLERS)):
            pytest.skip("this host has no controllers in cgroup v1 whose groups this user may make")
        assert self.legacy
        return self.legacy

    @property
    def directories(self) -> list[Directory]:
        """Every directory, each once."""
        found = [] if self.unified is None else [self.unified]
        return list({one.path: one for one in (*found, *self.controllers.values())}.values())

    @property
    def legacy(self) -> list[Directory]:
        """Those of cgroup v1."""
        return [one for one in self.directories if one.version == 1]

    def limit_memory(self, limit: str) -> None:
        """Limit memory, and let nothing be swapped out where that can be said."""
        memory = self.controllers["memory"]
        memory.write("memory.max" if memory.version == 2 else "memory.limit_in_bytes", limit)
        for file in ("memory.swap.max", "memory.swappiness"):
            if memory.has(file):
                memory.write(file, "0")

    def start(self, code: str, *before: str, below: str = "") -> subprocess.Popen[bytes]:
        """Run Python in the group (or one below each directory); returns when it is there and has begun.

        It ends when its input does, if it reads that.
        """
        enter = "".join(f"open({f'{one.path}{below}/cgroup.procs'!r}, 'w').write('0'); " for one in self.directories)
        text = f"import os, sys; {enter}os.write(1, b'in')\n{code}"
        argv = [*before, sys.executable, "-I", "-S", "-c", text]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._running.append(process)
        assert process.stdout is not None
        assert process.stdout.read(2) == b"in"
        return process

    def stay(self) -> subprocess.Popen[bytes]:
        """Start a process that ends when `end` is called."""
        return self.start("sys.stdin.read()")

    def eat(self, below: str = "") -> None:
        """Let a process use memory until it is killed."""
        process = self.start("x = []\nwhile True: x.append(bytes(1 << 20).replace(b'\\0', b'x'))", below=below)
        self.end(process, expected=-9)

    def end(self, process: subprocess.Popen[bytes], expected: int = 0) -> None:
        """End a process."""
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait() == expected

    def remove(self) -> None:
        """Take it down; again is nothing."""
        for process in self._running:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                stream.close()
        for parent, name in self._made:
            removal.remove(parent, name)

    def close(self) -> None:
        """Take it down, and close everything."""
        self.remove()
        self._stack.close()


@pytest.fixture
def raw_group() -> Iterator[RawGroup]:
    """Return a control group in every hierarchy, which ends with the test; skip where this user may make none."""
    needs("memory", "pids")
    group = RawGroup()
    try:
        yield group
    finally:
        group.close()
