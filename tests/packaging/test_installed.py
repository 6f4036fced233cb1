from __future__ import annotations

import os
import struct
from importlib import resources
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

LAUNCHER_LIMIT = 32 * 1024

PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_GNU_STACK = 1, 2, 3, 0x6474E551
PF_X, PF_W = 1, 2


def installed() -> Path:
    """Return the directory of the installed package."""
    with resources.as_file(resources.files("isolib")) as package:
        return package


@pytest.fixture
def launcher() -> Path:
    """Return the installed launcher."""
    return installed() / "_kernel" / "isolib-launcher"


def program_headers(elf: bytes) -> list[tuple[int, int]]:
    """Return type and flags of each program header of a 64-bit little-endian file."""
    assert elf[:6] == b"\x7fELF\x02\x01"
    (start,) = struct.unpack_from("<Q", elf, 32)
    size, count = struct.unpack_from("<HH", elf, 54)
    return [struct.unpack_from("<II", elf, start + size * index) for index in range(count)]


def test_launcher_is_an_executable_of_little_size(launcher: Path) -> None:
    """The launcher is executable and small, for it is read anew at every launch."""
    assert os.access(launcher, os.X_OK)
    assert launcher.stat().st_size <= LAUNCHER_LIMIT


def test_launcher_needs_no_libc(launcher: Path) -> None:
    """The launcher is static: it names no interpreter and has nothing to link."""
    types = {kind for kind, _ in program_headers(launcher.read_bytes())}
    assert PT_LOAD in types
    assert types.isdisjoint({PT_DYNAMIC, PT_INTERP})


def test_launcher_has_no_memory_both_writable_and_executable(launcher: Path) -> None:
    """No segment of the launcher can be written and executed, its stack included."""
    headers = program_headers(launcher.read_bytes())
    assert [flags & PF_X for kind, flags in headers if kind == PT_GNU_STACK] == [0]
    assert not [flags for kind, flags in headers if kind == PT_LOAD and flags & PF_W and flags & PF_X]


def test_package_is_typed_and_the_installed_one() -> None:
    """Tests see what pip installed, with its type marker and without C sources."""
    package = installed()
    assert (package / "py.typed").is_file()
    assert not (package / "_kernel" / "native").exists()
