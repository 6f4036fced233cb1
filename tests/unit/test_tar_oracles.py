"""Archives go to and come from other programs: Python's tarfile, GNU tar, bsdtar."""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
import subprocess
import tarfile
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given

from isolib.unionfs.archive import tar
from isolib.unionfs.entry import Entry, Kind
from tests.tars import ARCHIVES, SECOND, packed, unpacked

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.tars import Whole

TOOLS: Final = [
    pytest.param(tool, marks=pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed"))
    for tool in ("tar", "bsdtar")
]
FORMATS: Final = [
    *((["tar", f"--format={form}"], form == "posix") for form in ("gnu", "oldgnu", "ustar", "v7", "posix")),
    *((["bsdtar", f"--format={form}"], form == "pax") for form in ("gnutar", "ustar", "pax")),
]
SPARSE: Final = [
    ["tar", "--format=gnu", "-S"],
    *(["tar", "--format=posix", "-S", f"--sparse-version={version}"] for version in ("0.0", "0.1", "1.0")),
    ["bsdtar", "--format=pax", "--read-sparse"],
]
KINDS: Final = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFIFO: Kind.FIFO,
}
#: Where nothing wider fits, as in the oldest format: no name is longer.
SHORT: Final = 90
LONG: Final = [b"n" * 255, b"d" * 80 + b"/" + b"e" * 80 + b"/" + b"f" * 80]


def needs(command: Sequence[str]) -> None:
    """Skip where a program is missing."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")


def seen(root: bytes) -> dict[bytes, Whole]:
    """Return what is in a directory; of a file's names, each as a file."""
    found: dict[bytes, Whole] = {}
    for directory, directories, files in os.walk(root):
        for name in [b"", *directories, *files]:
            path = os.path.join(directory, name) if name else directory
            relative = path[len(root) + 1 :]
            status = os.lstat(path)
            kind = KINDS[stat.S_IFMT(status.st_mode)]
            data = None
            if kind is Kind.FILE:
                with open(path, "rb") as stream:
                    data = stream.read()
            attributes = {}
            if kind is not Kind.SYMLINK:
                names = [os.fsencode(one) for one in os.listxattr(path) if one.startswith("user.")]
                attributes = {one: os.getxattr(path, one) for one in names}
            entry = Entry(
                relative,
                kind,
                mode=stat.S_IMODE(status.st_mode),
                uid=status.st_uid,
                gid=status.st_gid,
                mtime=status.st_mtime_ns,
                size=len(data or b""),
                target=os.readlink(path) if kind is Kind.SYMLINK else b"",
                xattrs=attributes,
            )
            found[relative] = (entry, data)
    return found


def as_files(pieces: Sequence[Whole]) -> dict[bytes, Whole]:
    """Return pieces by their paths, and hard links as what they are links to."""
    found: dict[bytes, Whole] = {}
    for entry, data in pieces:
        if entry.kind is Kind.HARDLINK:
            linked, content = found[entry.target]
            found[entry.path] = (replace(linked, path=entry.path), content)
        else:
            found[entry.path] = (entry, data)
    return found


def simpler(found: dict[bytes, Whole], *, exact: bool) -> dict[bytes, Whole]:
    """Return pieces as a format keeps them that has neither fractions of seconds nor attributes."""
    if exact:
        return found
    return {
        path: (replace(entry, mtime=entry.mtime // SECOND * SECOND, xattrs={}), data) for path, (entry, data) in found.items()
    }


@pytest.fixture
def root(tmp_path: Path) -> bytes:
    """Make a directory with a bit of everything that any user can make and any format can hold."""
    root = os.fsencode(tmp_path / "root")
    os.makedirs(root + b"/directory/below")
    for number, mode in enumerate((0o644, 0o600, 0o4755, 0o1777)):
        path = root + b"/directory/f%d" % number
        with open(path, "xb") as stream:
            stream.write(b"%d" % number * (number * 700))
        os.chmod(path, mode)
    os.link(root + b"/directory/f2", root + b"/directory/below/link")
    os.symlink(b"../directory/f1", root + b"/symbolic")
    os.symlink(b"/nowhere", root + b"/directory/dangling")
    os.mkfifo(root + b"/fifo", 0o640)
    os.chmod(root + b"/directory/below", 0o2750)
    with open(root + "/ä ö\n".encode() + b"\xff", "xb") as stream:
        stream.write(b"odd")
    os.utime(root + b"/directory/f1", ns=(0, 1_234_567_890_123_456_789))
    return root


def wide(root: bytes) -> None:
    """Add what only newer formats hold."""
    for path in LONG:
        os.makedirs(os.path.dirname(root + b"/" + path), exist_ok=True)
        with open(root + b"/" + path, "xb") as stream:
            stream.write(b"long")
    os.symlink(b"t" * 300, root + b"/long target")
    with open(root + b"/attributes", "xb") as stream:
        stream.write(b"x")
    try:
        os.setxattr(root + b"/attributes", b"user.a=b%3D", b"\0\xff\n=")
        os.setxattr(root + b"/directory", b"user.empty", b"")
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise


@pytest.mark.parametrize(("command", "exact"), FORMATS, ids=[" ".join(command) for command, _ in FORMATS])
def test_from_a_tool(command: list[str], exact: bool, root: bytes) -> None:  # noqa: FBT001  # a parameter of the test
    """What another program packs is read as it is on disk, in every format that it knows; all but PAX cut times."""
    needs(command)
    if command[1] == "--format=v7":
        os.unlink(root + b"/fifo")
    if exact:
        wide(root)
        if command[0] == "tar":  # libarchive writes what is before 1970 in a way of its own
            os.utime(root + b"/directory/f2", ns=(0, -1_500_000_000))
    elif command[1] not in {"--format=v7", "--format=ustar", "--format=gnutar"}:
        for path in LONG:
            os.makedirs(os.path.dirname(root + b"/" + path), exist_ok=True)
            with open(root + b"/" + path, "xb"):
                pass
    attributes = ["--xattrs"] if exact else []
    run = subprocess.run([*command, *attributes, "-cf", "-", "-C", root, "."], stdout=subprocess.PIPE, check=True)
    assert simpler(as_files(unpacked(run.stdout)), exact=exact) == simpler(seen(root), exact=exact)


@pytest.mark.parametrize("command", SPARSE, ids=" ".join)
def test_sparse_files_from_a_tool(command: list[str], tmp_path: Path) -> None:
    """Files with holes are read as they are, in every notation: with data first or last, many stretches, or one hole."""
    needs(command)
    root = os.fsencode(tmp_path / "root")
    os.mkdir(root)
    for name, offsets, size in (
        (b"many", range(0, 200 << 16, 1 << 17), 14 << 20),
        (b"end", [5 << 20], 0),
        (b"hole", [], 1 << 20),
    ):
        with open(root + b"/" + name, "xb") as stream:
            for offset in offsets:
                stream.seek(offset)
                stream.write(b"data at %d" % offset)
            if size:
                stream.truncate(size)
    archive = subprocess.run([*command, "-cf", "-", "-C", root, "."], stdout=subprocess.PIPE, check=True).stdout
    assert {path: data for path, (_, data) in as_files(unpacked(archive)).items()} == {
        path: data for path, (_, data) in seen(root).items()
    }
    if not any(os.stat(root + b"/" + name).st_blocks * 512 >= 1 << 20 for name in (b"end", b"hole")):
        assert len(archive) < 2 << 20


@pytest.mark.parametrize("tool", TOOLS)
def test_to_a_tool(tool: str, root: bytes, tmp_path: Path) -> None:
    """What is written is unpacked by another program to what it was, to the nanosecond and with attributes."""
    wide(root)
    if tool == "tar":  # libarchive reads what is before 1970, and escapes in the names of attributes, in ways of its own
        os.utime(root + b"/directory/f2", ns=(0, -1_500_000_000))
    else:
        os.unlink(root + b"/attributes")
    expected = seen(root)
    first, second = b"directory/below/link", b"directory/f2"
    linked = Entry(second, Kind.HARDLINK, target=first, mtime=expected[first][0].mtime, mode=expected[first][0].mode)
    linked = replace(linked, uid=os.getuid(), gid=os.getgid())
    pieces = [piece if path != second else (linked, None) for path, piece in sorted(expected.items())]
    other = tmp_path / "other"
    other.mkdir()
    command = [tool, "-xpf", "-", "-C", str(other), "--xattrs", *(["--xattrs-include=user.*"] if tool == "tar" else [])]
    subprocess.run(command, input=packed(pieces), check=True)
    made = seen(os.fsencode(other))
    if tool == "bsdtar":  # the root itself it leaves as it is
        del made[b""], expected[b""]
    assert made == expected
    names = [os.stat(os.path.join(os.fsencode(other), path)).st_ino for path in (first, second)]
    assert names[0] == names[1]


@pytest.mark.parametrize("tool", TOOLS)
def test_listed_by_a_tool(tool: str) -> None:
    """Another program lists what an ordinary user cannot make: devices, owners beyond 21 bits, large files."""
    pieces: list[Whole] = [
        (Entry(b"c", Kind.CHARACTER, 0o620, 3_000_000_000, 4_000_000_000, mtime=SECOND, device=(4095, 1_048_575)), None),
        (Entry(b"d", Kind.BLOCK, 0o660, 1, 2, mtime=SECOND, device=(8, 1)), None),
    ]
    numeric = "--numeric-owner"
    run = subprocess.run(
        [tool, "-tvf", "-", numeric], input=packed(pieces), stdout=subprocess.PIPE, check=True, env={"TZ": "UTC", **os.environ}
    )
    text = run.stdout.decode().replace("/", " ")
    first, second = (line.split() for line in text.splitlines())
    assert {"3000000000", "4000000000", "c"} <= set(first)
    assert first[0] == "crw--w----"
    assert second[0] == "brw-rw----"
    assert "4095,1048575" in first
    assert "8,1" in second


FLAGS: Final = {
    tarfile.REGTYPE: Kind.FILE,
    tarfile.DIRTYPE: Kind.DIRECTORY,
    tarfile.SYMTYPE: Kind.SYMLINK,
    tarfile.LNKTYPE: Kind.HARDLINK,
    tarfile.FIFOTYPE: Kind.FIFO,
    tarfile.CHRTYPE: Kind.CHARACTER,
    tarfile.BLKTYPE: Kind.BLOCK,
}


def by_tarfile(archive: bytes) -> list[Whole]:
    """Read an archive with Python's own module."""
    found: list[Whole] = []
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        for info in opened:
            kind = FLAGS[info.type]
            data = None
            if kind is Kind.FILE:
                stream = opened.extractfile(info)
                assert stream is not None
                data = stream.read()
            name = info.name.encode("utf-8", "surrogateescape")
            entry = Entry(
                b"" if name == b"." else name,
                kind,
                mode=info.mode,
                uid=info.uid,
                gid=info.gid,
                size=len(data or b""),
                target=info.linkname.encode("utf-8", "surrogateescape"),
                device=(info.devmajor, info.devminor) if kind in {Kind.CHARACTER, Kind.BLOCK} else (0, 0),
            )
            found.append((entry, data))
    return found


def plain(pieces: Sequence[Whole]) -> list[Whole]:
    """Return pieces as tarfile knows them: without times, which are floats there, attributes and what layers add."""
    kept = [piece for piece in pieces if piece[0].kind not in {Kind.WHITEOUT, Kind.OPAQUE}]
    return [(replace(entry, mtime=0, xattrs={}, opaque=False), data) for entry, data in kept]


@given(ARCHIVES)
def test_to_tarfile(pieces: list[Whole]) -> None:
    """Whatever entries there are, Python's own module reads them as they were written."""
    pieces = [(replace(entry, xattrs={}, opaque=False), data) for entry, data in plain(pieces)]
    assert by_tarfile(packed(pieces)) == pieces


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["ustar", "gnu", "pax"])
@given(pieces=ARCHIVES)
def test_from_tarfile(form: int, pieces: list[Whole]) -> None:
    """Whatever Python's own module writes, in each of its formats, is read as it was."""
    sink = io.BytesIO()
    expected: list[Whole] = []
    flags = {kind: flag for flag, kind in FLAGS.items()}
    with tarfile.open(fileobj=sink, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as opened:
        for entry, data in plain(pieces):
            info = tarfile.TarInfo((entry.path or b"./").decode("utf-8", "surrogateescape"))
            info.type = flags[entry.kind]
            info.mode, info.uid, info.gid, info.size, info.mtime = entry.mode, entry.uid, entry.gid, len(data or b""), 7
            info.linkname = entry.target.decode("utf-8", "surrogateescape")
            info.devmajor, info.devminor = entry.device
            try:
                opened.addfile(info, io.BytesIO(data or b""))
            except (ValueError, UnicodeEncodeError):
                continue  # it has no room for that in this format
            expected.append((replace(entry, mtime=7 * SECOND), data))
    assert unpacked(sink.getvalue()) == expected


def test_attributes_of_tarfile() -> None:
    """Python's own module sees an extended header's records as they are."""
    archive = packed(
        [(Entry(b"f", Kind.FIFO, mtime=1_500_000_000, xattrs={b"user.a": b"b", b"security.capability": b"c"}), None)]
    )
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        (info,) = opened
    assert info.pax_headers == {
        "mtime": "1.500000000",
        "SCHILY.xattr.user.a": "b",
        "SCHILY.xattr.security.capability": "c",
    }


class Zeros:
    """A content of zeros, which costs no memory; or of something that comes before them."""

    def __init__(self, size: int, head: bytes = b"") -> None:
        self._head = io.BytesIO(head)
        self._left = size
        self._chunk = bytes(1 << 20)

    def read(self, size: int = -1, /) -> bytes:
        """Return the next bytes."""
        if head := self._head.read(size):
            return head
        data = self._chunk[: min(size, self._left)]
        self._left -= len(data)
        return data


class Beginning:
    """Keeps the first bytes, and counts the others."""

    def __init__(self) -> None:
        self.data = b""
        self.size = 0

    def write(self, data: bytes, /) -> None:
        """Take bytes."""
        self.data += data[: 2048 - len(self.data)]
        self.size += len(data)


def test_more_than_ustar_has_room_for() -> None:
    """A file of more than 8 GiB is written with its size in an extended header; tarfile reads it so, and isolib too."""
    entry = Entry(b"f", Kind.FILE, size=9 << 30)
    sink = Beginning()
    assert tar.write([(entry, Zeros(entry.size))], sink) == sink.size == entry.size + 5 * 512
    head = sink.data[:1536]
    assert tarfile.TarInfo.frombuf(head[1024:], "utf-8", "strict").size == 0
    with tarfile.open(fileobj=io.BytesIO(head + bytes(512))) as opened:
        info = opened.next()
    assert info is not None
    assert info.size == entry.size
    ((read, content),) = tar.read(Zeros(entry.size + 1024, head))
    assert content is not None
    assert read == entry
