from __future__ import annotations

import gzip
import lzma
import os
import select
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vm.__main__ import main, parse
from tests.vm.image import Entry, cpio, load_order, unpacked
from tests.vm.kernels import KERNELS, Engine, Unavailable, parts_of, tool, with_interpreter
from tests.vm.machine import ACCOUNT, Guest, changes, script, session, variables

NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=40)
ENTRIES = st.lists(
    st.builds(
        Entry,
        NAMES,
        st.integers(0, 0o177777),
        st.binary(max_size=40),
        st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    ),
    max_size=5,
)


# ---- the initial ramdisk ----


def members(archive: bytes) -> list[tuple[Entry, int]]:
    """Return the entries of an archive of the format newc with their inode numbers; this is what cpio(5) says about it."""
    found, at = [], 0
    while at < len(archive):
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[start : start + 8], 16) for start in range(at + 6, at + 110, 8)]
        inode, mode, size, device, length = fields[0], fields[1], fields[6], (fields[9], fields[10]), fields[11]
        name = archive[at + 110 : at + 110 + length]
        start = (at + 110 + length + 3) // 4 * 4
        assert name.endswith(b"\0")
        found.append((Entry(name[:-1].decode(), mode, archive[start : start + size], device), inode))
        at = (start + size + 3) // 4 * 4
    return found


@given(ENTRIES)
def test_archive_has_what_was_put_in(entries: list[Entry]) -> None:
    """Names, modes, contents and devices come back, each entry with an inode of its own, and the trailer is the last."""
    *found, trailer = members(cpio(entries))
    assert [entry for entry, _ in found] == entries
    assert len({inode for _, inode in found}) == len(found)
    assert trailer[0].name == "TRAILER!!!"


def test_archive_is_one_that_others_read(tmp_path: Path) -> None:
    """Busybox's cpio unpacks a directory, a file and an executable of the archive as they were put in."""
    if not shutil.which("busybox"):
        pytest.skip("needs busybox")
    entries = [
        Entry("below", stat.S_IFDIR | 0o750),
        Entry("below/file", stat.S_IFREG | 0o640, b"odd"),
        Entry("program", stat.S_IFREG | 0o755, bytes(range(256))),
    ]
    subprocess.run(["busybox", "cpio", "-i", "-m"], cwd=tmp_path, input=cpio(entries), check=True, capture_output=True)
    for entry in entries:
        path = tmp_path / entry.name
        assert path.stat().st_mode == entry.mode
        assert not path.is_file() or path.read_bytes() == entry.data


DEPENDENCIES = """\
kernel/net/9p/9pnet.ko.xz: kernel/lib/netfs.ko.xz
kernel/net/9p/9pnet_virtio.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/drivers/virtio.ko.xz kernel/lib/netfs.ko.xz
kernel/lib/netfs.ko.xz:
kernel/drivers/virtio.ko.xz:
kernel/drivers/virtio-rng.ko.xz: kernel/drivers/virtio.ko.xz
"""


def test_modules_are_loaded_after_what_they_need() -> None:
    """Each module comes once, after all that it needs, and - in a file's name is the same as _."""
    order = load_order(DEPENDENCIES, "", ["9pnet_virtio", "virtio_rng", "netfs"])
    assert [path.rpartition("/")[2] for path in order] == [
        "netfs.ko.xz",
        "virtio.ko.xz",
        "9pnet.ko.xz",
        "9pnet_virtio.ko.xz",
        "virtio-rng.ko.xz",
    ]


def test_modules_that_are_built_in_need_no_file() -> None:
    """A module of modules.builtin is passed over; one that is nowhere is an error that names it."""
    assert load_order(DEPENDENCIES, "kernel/fs/over-lay.ko\n", ["over_lay", "netfs"]) == ["kernel/lib/netfs.ko.xz"]
    with pytest.raises(LookupError, match="no module overlay"):
        load_order(DEPENDENCIES, "", ["overlay"])


def test_modules_are_unpacked(tmp_path: Path) -> None:
    """Whatever a module is packed with, the system call gets it plain; a way that is unknown is an error."""
    for suffix, data in (".ko", b"\x7fELF"), (".gz", gzip.compress(b"\x7fELF")), (".xz", lzma.compress(b"\x7fELF")):
        path = tmp_path / f"module{suffix}"
        path.write_bytes(data)
        assert unpacked(path) == b"\x7fELF"
    path = tmp_path / "module.rar"
    path.touch()
    with pytest.raises(ValueError, match="unknown here"):
        unpacked(path)


# ---- kernels ----


def test_only_packages_of_the_kernel_are_taken() -> None:
    """Of what a package depends on, the parts of the kernel are fetched, not tools or alternatives."""
    said = (
        "linux-image-amd64\n  PreDepends: linux-base\n  Depends: linux-image-7.2.13+deb14-amd64\n  Depends: kmod\n"
        " |Depends: initramfs-tools\n  Depends: linux-modules-7.2.13+deb14-amd64\n  Suggests: linux-doc-7.2\n"
    )
    assert parts_of(said) == ["linux-image-7.2.13+deb14-amd64", "linux-modules-7.2.13+deb14-amd64"]


def test_loader_of_a_program_is_replaced_in_place(tmp_path: Path) -> None:
    """A program with another loader keeps its size and runs with that one, found in the working directory."""
    program = Path("/bin/true").read_bytes()
    if b"/lib64/ld-linux-x86-64.so.2\0" not in program:
        pytest.skip("/bin/true of this machine has another loader")
    changed = tmp_path / "true"
    changed.write_bytes(with_interpreter(program, b"ld.so"))
    changed.chmod(0o755)
    assert changed.stat().st_size == len(program)
    with pytest.raises(FileNotFoundError):
        subprocess.run([changed], cwd=tmp_path, check=True)
    (tmp_path / "ld.so").symlink_to("/lib64/ld-linux-x86-64.so.2")
    subprocess.run([changed], cwd=tmp_path, check=True)


@pytest.mark.parametrize("program", [b"no loader", b"/lib64/ld-linux-x86-64.so.2\0" * 2])
def test_program_whose_loader_is_not_clear_is_refused(program: bytes) -> None:
    """A program without the usual loader, or with its path twice, is not changed."""
    with pytest.raises(ValueError, match="cannot be made"):
        with_interpreter(program, b"ld.so")


def test_missing_tool_is_told_with_what_brings_it() -> None:
    """The error for a program that is not here names it and the group of packages."""
    with pytest.raises(Unavailable, match=r"no-such-tool is not here.*system-packages vm"):
        tool("no-such-tool")


def test_kernels_of_one_name_are_of_a_known_engine() -> None:
    """The kernels that the tests choose are in the table, on the engine that makes them quick or complete."""
    assert KERNELS["unified"].engine is Engine.UML
    assert KERNELS["full"].engine is Engine.QEMU
    assert KERNELS["full"].controllers > KERNELS["unified"].controllers


# ---- the command ----


def test_command_has_exactly_its_words_directory_and_environment(tmp_path: Path) -> None:
    """Words with spaces, quotes and newlines arrive as they are; of the caller's environment nothing does."""
    place = tmp_path / "it's a place"
    place.mkdir()
    show = "import os, sys; print(repr((sys.argv[1:], os.getcwd(), dict(os.environ))))"
    words, environment = ["a b", "it's", "$HOME\n`id`", ""], {"ONE": "1 'x'\n2", "LC_ALL": "C.UTF-8"}
    text = script([sys.executable, "-c", show, *words], environment, place)
    out = subprocess.run(["sh"], input=text, capture_output=True, text=True, check=True).stdout
    assert out == f"{(words, os.fspath(place), environment)!r}\n"


def test_command_does_not_run_elsewhere() -> None:
    """Where the directory does not exist, the command is not run, and the status says that it failed."""
    text = script(["echo", "ran"], {}, Path("/no/such/place"))
    done = subprocess.run(["sh"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode != 0, done.stdout) == (True, "")


def test_environment_is_that_of_who_runs_it() -> None:
    """Home, name and PATH are root's or the ordinary user's; he has a bus only where systemd gives him one."""
    root, user, session_user = (
        variables(Guest("unified", who, init)) for who, init in ((False, False), (True, False), (True, True))
    )
    assert (root["HOME"], root["USER"]) == ("/root", "root")
    assert (user["HOME"], user["LOGNAME"]) == (f"/home/{ACCOUNT}", ACCOUNT)
    assert "DBUS_SESSION_BUS_ADDRESS" not in user
    assert session_user["DBUS_SESSION_BUS_ADDRESS"].endswith("/bus")


# ---- the command line ----


def test_what_follows_two_hyphens_is_the_commands() -> None:
    """Options before -- are the runner's; after it, nothing is looked at, another -- neither."""
    options, command = parse(["--user", "--systemd", "--timeout", "7", "full", "--", "git", "log", "--", "--user"])
    assert (options.kernel, options.user, options.systemd, options.timeout) == ("full", True, True, 7)
    assert command == ["git", "log", "--", "--user"]
    assert parse(["full"])[1] == []


def test_unknown_kernel_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A kernel that is not in the table is a usage error that lists those that are."""
    with pytest.raises(SystemExit, match="2"):
        main(["no-such-kernel", "--", "true"])
    assert "unified" in capsys.readouterr().err


# ---- waiting ----


def test_a_write_and_a_new_name_are_noticed(tmp_path: Path) -> None:
    """The descriptor of a directory becomes readable when a file in it is written, and when one gets its final name."""
    path = tmp_path / "new"
    path.touch()
    with changes(tmp_path) as notices:
        assert select.select([notices], [], [], 0)[0] == []
        path.write_text("more", encoding="ascii")
        assert select.select([notices], [], [], 20)[0] == [notices]
        os.read(notices, 65536)
        path.rename(tmp_path / "status")
        assert select.select([notices], [], [], 20)[0] == [notices]


def test_session_is_its_living_processes() -> None:
    """All processes of a session are found, and none once they have ended."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, start_new_session=True) as leader:
        assert session(leader.pid) == {leader.pid}
    assert session(leader.pid) == set()
