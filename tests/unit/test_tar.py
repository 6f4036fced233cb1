from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolib.errors import ArchiveError, ClosedError, PlanError
from isolib.unionfs import headers, names, pax, tar
from isolib.unionfs.entry import Entry, Kind
from tests import hostile
from tests.hostile import END, binary, directory, extended, hard_link, member, octal
from tests.tars import ARCHIVES, SECOND, file, packed, unpacked

if TYPE_CHECKING:
    from tests.tars import Whole


class Spy(io.BytesIO):
    """Keeps the size of each piece that is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def write(self, data: bytes, /) -> int:  # type: ignore[override]
        """Take bytes."""
        self.sizes.append(len(data))
        return super().write(data)


def entries(archive: bytes) -> list[Entry]:
    """Return what an archive has, without the contents."""
    return [entry for entry, _ in unpacked(archive + END)]


@given(ARCHIVES)
def test_what_is_written_is_read(pieces: list[Whole]) -> None:
    """Whatever entries there are, a layer that is written and read has the same, with their contents."""
    assert unpacked(packed(pieces)) == pieces


@given(ARCHIVES, st.sampled_from([1, 7, 511, 512, 513, 4096]))
def test_short_reads(pieces: list[Whole], most: int) -> None:
    """A stream may return as few bytes at a time as it likes."""
    assert unpacked(packed(pieces), most=most) == pieces


@given(ARCHIVES)
def test_written_is_the_same_each_time(pieces: list[Whole]) -> None:
    """The same entries make the same bytes, in whole blocks, with the end mark."""
    archive = packed(pieces)
    assert archive == packed(pieces)
    assert len(archive) % 512 == 0
    assert archive.endswith(END)


@given(st.integers(), st.sampled_from([8, 12]))
def test_binary_numbers(value: int, width: int) -> None:
    """Numbers that are written in base 256 are read back, whether negative or large, as far as they fit."""
    limit = 1 << (8 * width - 2)
    value = value % (2 * limit) - limit
    assert headers.number(binary(value, width)) == value


@given(st.integers(0, 0o7777777))
def test_octal_numbers(value: int) -> None:
    """Octal numbers are read with NUL or space at the end, and with spaces or zeros before."""
    for field in (octal(value, 8), b"%o \0" % value, b"%7o " % value, b"%o" % value, b"%o\0xxx" % value):
        assert headers.number(field) == value


@given(st.binary(min_size=512, max_size=512))
def test_check_sum(block: bytes) -> None:
    """The check sum is the plain sum of the bytes, with spaces in its own place, and may be one of signed bytes."""
    unsigned = sum(block[:148]) + 8 * 32 + sum(block[156:])
    signed = unsigned - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
    for value in {unsigned, signed}:
        assert headers.decode(block[:148] + binary(value, 8) + block[156:]).block[:148] == block[:148]
    for value in {unsigned + 1, signed - 1} - {unsigned, signed}:
        with pytest.raises(ArchiveError, match="check sum"):
            headers.decode(block[:148] + binary(value, 8) + block[156:])


@given(st.dictionaries(st.from_regex(rb"[A-Za-z.]{1,200}", fullmatch=True), st.binary(max_size=2000), max_size=5))
def test_records(values: dict[bytes, bytes]) -> None:
    """Records of any lengths are read as they were written, and as somebody else writes them."""
    data = b"".join(pax.record(key, value) for key, value in values.items())
    assert data == b"".join(hostile.record(key, value) for key, value in values.items())
    assert pax.parse(data).values == values


@given(st.integers(-(1 << 69), 1 << 69))
def test_times(value: int) -> None:
    """Times are exact to the nanosecond, before 1970 too."""
    (text,) = pax.parse(pax.time_record(b"mtime", value)).values.values()
    assert pax.nanoseconds(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [(b"1", 1), (b"1.", 1), (b"1.5", 1.5), (b"-1.5", -1.5), (b"0.000000001", 1e-9), (b"1.9999999999", 1.999999999)],
)
def test_time_notations(text: bytes, value: float) -> None:
    """A time may have a fraction or none, and what is below a nanosecond is cut off."""
    assert pax.nanoseconds(text) == round(value * SECOND)


@pytest.mark.parametrize(
    ("written", "path"),
    [
        (b"a/b", b"a/b"),
        (b"./a/b", b"a/b"),
        (b"/a/b", b"a/b"),
        (b"a//b/", b"a/b"),
        (b"a/./b/.", b"a/b"),
        (b"...", b"..."),
        (b"..a/b..", b"..a/b.."),
        (b"./", b""),
        (b"/", b""),
        (b".//.", b""),
    ],
)
def test_paths(written: bytes, path: bytes) -> None:
    """A path is made relative to the root, without what means nothing."""
    assert names.relative(written) == path


@given(st.binary(max_size=400))
def test_paths_stay_below(written: bytes) -> None:
    """Whatever a path is, it becomes one that stays below the root, or is refused; and made so once, it stays the same."""
    try:
        path = names.relative(written)
    except ArchiveError:
        return
    assert not {b"", b".", b".."} & set(path.split(b"/")) or not path
    assert not path or names.relative(path) == path


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        (b".wh.a", Entry(b"a", Kind.WHITEOUT)),
        (b"d/.wh.a.b", Entry(b"d/a.b", Kind.WHITEOUT)),
        (b"./d/.wh...a", Entry(b"d/..a", Kind.WHITEOUT)),
        (b".wh." + b"n" * 95, Entry(b"n" * 95, Kind.WHITEOUT)),
        (b".wh..wh..opq", Entry(b"", Kind.OPAQUE)),
        (b"a/b/.wh..wh..opq", Entry(b"a/b", Kind.OPAQUE)),
    ],
)
def test_whiteouts(name: bytes, entry: Entry) -> None:
    """Names that begin with ``.wh.`` are whiteouts, whatever has them: a file, aufs's hard link, a directory."""
    for archive in (member(name), member(name, b"content"), directory(name + b"/"), hard_link(name, b".wh..wh.aufs")):
        assert entries(archive) == [entry]


def test_names_with_the_mark_inside() -> None:
    """A name that has ``.wh.`` not at its beginning is a name."""
    assert [entry.path for entry in entries(member(b"a.wh.b") + member(b"x.wh./y"))] == [b"a.wh.b", b"x.wh./y"]


def test_opaque_right_after() -> None:
    """An opaque mark right after its directory is part of this one, and elsewhere an entry of its own, before or after."""
    mark = member(b"d/.wh..wh..opq")
    opaque = Entry(b"d", Kind.DIRECTORY, 0o755, opaque=True)
    assert entries(directory(b"d") + mark + mark) == [opaque, Entry(b"d", Kind.OPAQUE)]
    assert entries(mark + directory(b"d")) == [Entry(b"d", Kind.OPAQUE), replace(opaque, opaque=False)]
    other = replace(opaque, path=b"d/e", opaque=False)
    assert entries(directory(b"d") + directory(b"d/e") + mark)[1:] == [other, Entry(b"d", Kind.OPAQUE)]


@pytest.mark.parametrize("space", ["trusted", "user"])
def test_marks_of_overlay(space: str) -> None:
    """What overlay marks with attributes is decoded, and no attribute of overlay is left."""

    def marked(key: str, value: bytes) -> bytes:
        attribute = f"SCHILY.xattr.{space}.overlay.{key}".encode()
        return extended({attribute: value, b"SCHILY.xattr.user.kept": b"1"})

    kept = {b"user.kept": b"1"}
    read = entries(
        marked("opaque", b"y")
        + directory(b"opaque")
        + marked("opaque", b"x")
        + directory(b"with whiteouts in it")
        + marked("whiteout", b"")
        + member(b"with whiteouts in it/gone")
        + marked("whiteout", b"")
        + member(b"not empty", b"x")
        + marked("origin", b"\0")
        + member(b"copied up", b"x")
        + marked("overlay.opaque", b"y")
        + directory(b"nested")
        + member(b"device", kind=b"3")
    )
    assert read == [
        Entry(b"opaque", Kind.DIRECTORY, 0o755, xattrs=kept, opaque=True),
        Entry(b"with whiteouts in it", Kind.DIRECTORY, 0o755, xattrs=kept),
        Entry(b"with whiteouts in it/gone", Kind.WHITEOUT),
        Entry(b"not empty", Kind.FILE, size=1, xattrs=kept),
        Entry(b"copied up", Kind.FILE, size=1, xattrs=kept),
        Entry(b"nested", Kind.DIRECTORY, 0o755, xattrs=kept),
        Entry(b"device", Kind.WHITEOUT),
    ]


def test_files_of_aufs() -> None:
    """A file that aufs keeps among its pseudo-links appears at its first name, and its other names are links to that."""
    kept = member(b"./.wh..wh.plnk/7.1", b"content", mode=0o4711, uid=5) + member(b".wh..wh.plnk/8.1", b"other")
    links = (
        hard_link(b"c", b".wh..wh.plnk/8.1") + hard_link(b"a", b"/.wh..wh.plnk/7.1") + hard_link(b"d/b", b".wh..wh.plnk/7.1")
    )
    archive = directory(b".wh..wh.plnk") + kept + member(b".wh..wh.orph/x", b"x") + member(b".wh..wh.aufs") + links + END
    assert unpacked(archive) == [
        file(b"c", b"other"),
        (Entry(b"a", Kind.FILE, 0o4711, uid=5, size=7), b"content"),
        (Entry(b"d/b", Kind.HARDLINK, target=b"a"), None),
    ]


def test_old_archives() -> None:
    """Before ustar there was no type for directories and no prefix, and files had none or one of two types."""
    archive = member(b"d/", kind=b"\0", magic=b"", rest=b"no prefix") + member(b"f", b"x", b"\0", magic=b"", rest=b"no prefix")
    assert entries(archive + member(b"e/")) == [
        Entry(b"d", Kind.DIRECTORY),
        Entry(b"f", Kind.FILE, size=1),
        Entry(b"e", Kind.DIRECTORY),
    ]


def test_prefixes() -> None:
    """Only ustar has a prefix; star's is shorter; where GNU tar has other things, nothing is made of them."""
    star = b"d".ljust(131, b"\0") + b"00000000017 00000000017 " + bytes(8) + b"tar\0"
    archive = member(b"a", prefix=b"b/c") + member(b"a", rest=star) + member(b"a", magic=b"ustar  \0", rest=b"00000000017")
    assert [entry.path for entry in entries(archive)] == [b"b/c/a", b"d/a", b"a"]


def test_long_names_of_gnu() -> None:
    """GNU tar's long names are for the next entry alone."""
    path, link = b"p" * 200, b"l" * 200
    long = member(b"././@LongLink", link + b"\0", b"K") + member(b"././@LongLink", path + b"\0", b"L")
    read = entries(long + member(b"p", kind=b"2", link=b"l") + member(b"short"))
    assert [(entry.path, entry.target) for entry in read] == [(path, link), (b"short", b"")]


def test_named_twice_alike() -> None:
    """An entry may have its name in a long header and in an extended one, as some programs write it, if it is the same."""
    long = member(b"././@LongLink", b"n" * 120 + b"\0", b"L") + extended({b"path": b"n" * 120})
    assert [entry.path for entry in entries(long + member(b"n"))] == [b"n" * 120]


def test_global_headers() -> None:
    """A global header is for all that follow, until the next; an entry's own goes before it; an empty record is none."""
    read = entries(
        extended({b"uid": b"7", b"mtime": b"1.5", b"comment": b"x"}, b"g")
        + member(b"a", uid=1)
        + extended({b"uid": b"8"})
        + member(b"b")
        + extended({b"uid": b""})
        + member(b"c", uid=1)
        + extended({b"uid": b""}, b"g")
        + member(b"d", uid=2)
    )
    assert [entry.uid for entry in read] == [7, 8, 1, 2]
    assert {entry.mtime for entry in read} == {1_500_000_000}


def test_attributes() -> None:
    """Attributes come in star's notation and in libarchive's; of both, the former counts; other systems' are none of ours."""
    records = {
        b"SCHILY.xattr.user.a%3Db%25": b"\0\n=\xff",
        b"LIBARCHIVE.xattr.user.c%3Dd": b"AP8",
        b"LIBARCHIVE.xattr.user.e": b"AAAA",
        b"SCHILY.xattr.user.e": b"e",
        b"SCHILY.xattr.user.empty": b"",
        b"SCHILY.xattr.com.apple.quarantine": b"x",
    }
    (entry,) = entries(extended(records) + member(b"f"))
    assert entry.xattrs == {b"user.a=b%": b"\0\n=\xff", b"user.c=d": b"\0\xff", b"user.e": b"e", b"user.empty": b""}


def test_sizes_of_what_has_no_content() -> None:
    """Only files have a content, whatever the headers of others say."""
    kinds = [(b"5", Kind.DIRECTORY), (b"1", Kind.HARDLINK), (b"2", Kind.SYMLINK), (b"6", Kind.FIFO), (b"4", Kind.BLOCK)]
    archive = b"".join(member(kind, b"", kind, link=b"x", size=512) for kind, _ in kinds)
    assert [(entry.kind, entry.size) for entry in entries(archive)] == [(kind, 0) for _, kind in kinds]


def test_content_of_incremental_directories() -> None:
    """GNU tar's incremental archives have lists of names in their directories: these are passed over, and so are labels."""
    archive = member(b"label", kind=b"V") + member(b"d/", b"Yfile\0\0", b"D") + member(b"d/file", b"x")
    assert entries(archive) == [Entry(b"d", Kind.DIRECTORY), Entry(b"d/file", Kind.FILE, size=1)]


def test_content_is_given_up() -> None:
    """Contents that are not read, or not to their end, are passed over; afterwards they cannot be read."""
    archive = packed([file(b"a", b"a" * 2000), file(b"b", b"b" * 2000), file(b"c", b"c")])
    pieces = tar.read(io.BytesIO(archive))
    _, first = next(pieces)
    assert first is not None
    assert first.read(5) == b"aaaaa"
    _, second = next(pieces)
    assert second is not None
    with pytest.raises(ClosedError):
        first.read(5)
    _, third = next(pieces)
    assert third is not None
    assert third.read(100) == b"c"
    assert third.read(100) == b""
    assert list(pieces) == []


def test_the_stream_is_read_to_its_end() -> None:
    """What follows the end mark is read too, so that a digest is that of the whole."""
    stream = io.BytesIO(packed([file(b"a", b"a")]) + bytes(100_000) + b"junk")
    assert len(list(tar.read(stream))) == 1
    assert stream.read() == b""


def test_chunks() -> None:
    """The sink is given small files together and large ones in parts, about 1 MiB at a time."""
    sink = Spy()
    small = [(Entry(b"%d" % number, Kind.FILE, size=1000), io.BytesIO(bytes(1000))) for number in range(1500)]
    tar.write([*small, (Entry(b"large", Kind.FILE, size=5 << 20), io.BytesIO(bytes(5 << 20)))], sink)
    assert len(sink.sizes) <= 9
    assert max(sink.sizes) <= 2 << 20


def test_extended_headers_only_where_needed() -> None:
    """What ustar has room for costs one block; what it has not, an extended header, whose name is always the same."""
    directories = b"/".join([b"d" * 50] * 3)
    cases = [
        (Entry(b"n" * 100, Kind.FILE), 1),
        (Entry(directories + b"/" + b"n" * 100, Kind.FILE), 1),
        (Entry(directories + b"/" + b"n" * 101, Kind.FILE), 3),
        (Entry(b"p" * 155 + b"/" + b"n" * 100, Kind.FILE), 1),
        (Entry(b"p" * 156 + b"/" + b"n" * 50, Kind.FILE), 3),
        (Entry(b"p" * 99 + b"/n", Kind.FILE), 1),
        (Entry("é".encode(), Kind.FILE), 3),
        (Entry(b"f", Kind.SYMLINK, target=b"t" * 100), 1),
        (Entry(b"f", Kind.SYMLINK, target=b"t" * 101), 3),
        (Entry(b"f", Kind.FILE, mtime=SECOND), 1),
        (Entry(b"f", Kind.FILE, mtime=SECOND + 1), 3),
        (Entry(b"f", Kind.FILE, mtime=-SECOND), 3),
        (Entry(b"f", Kind.FILE, uid=0o7777777), 1),
        (Entry(b"f", Kind.FILE, gid=0o10000000), 3),
        (Entry(b"f", Kind.BLOCK, device=(4095, 0xFFFFF)), 1),
        (Entry(b"f", Kind.FILE, xattrs={b"user.a": b""}), 3),
        (Entry(b"d", Kind.DIRECTORY, opaque=True), 2),
        (Entry(b"n" * 300, Kind.WHITEOUT), 3),
    ]
    for entry, blocks in cases:
        archive = packed([(entry, b"" if entry.kind is Kind.FILE else None)])
        assert len(archive) // 512 - 2 == blocks, entry
        assert blocks < 3 or archive.startswith(b"././@PaxHeader\0")


def test_names_in_layers() -> None:
    """Directories end in a slash, the root is ``./``, a whiteout and an opaque mark are empty files without rights or time."""
    archive = packed(
        [
            (Entry(b"", Kind.DIRECTORY, opaque=True), None),
            (Entry(b"a/d", Kind.DIRECTORY, opaque=True), None),
            (Entry(b"a/gone", Kind.WHITEOUT), None),
        ]
    )
    blocks = [archive[at : at + 512] for at in range(0, len(archive) - len(END), 512)]
    assert [block[:100].rstrip(b"\0") for block in blocks] == [
        b"./",
        b".wh..wh..opq",
        b"a/d/",
        b"a/d/.wh..wh..opq",
        b"a/.wh.gone",
    ]
    for block in (blocks[1], blocks[3], blocks[4]):
        assert block[100:148] == 3 * octal(0, 8) + 2 * octal(0, 12)
        assert block[156:157] == b"0"


def test_times_are_limited() -> None:
    """With a limit, later times become it, and earlier ones stay."""
    pieces = [(Entry(b"%d" % number, Kind.FIFO, mtime=number * SECOND), None) for number in range(4)]
    assert [entry.mtime for entry, _ in unpacked(packed(pieces, mtime_limit=2 * SECOND))] == [0, SECOND, 2 * SECOND, 2 * SECOND]


def test_content_that_shrinks() -> None:
    """A content that is shorter than its entry says is refused, and one that is longer is cut."""
    with pytest.raises(ArchiveError, match="f: its content ends after 2 of 3 bytes"):
        packed([(Entry(b"f", Kind.FILE, size=3), b"ab")])
    assert unpacked(packed([(Entry(b"f", Kind.FILE, size=3), b"abcd")])) == [file(b"f", b"abc")]
    with pytest.raises(PlanError):
        packed([(Entry(b"f", Kind.FILE, size=3), None)])


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (Entry(b"a/.wh.b", Kind.FIFO), "begins with '.wh.'"),
        (Entry(b".wh.a/b", Kind.WHITEOUT), "begins with '.wh.'"),
        (Entry(b"d/" * 2047 + b"nn", Kind.FIFO), "longer than 4095"),
        (Entry(b"s", Kind.SYMLINK, target=b"t" * 4096), "longer than 4095"),
        (Entry(b"x", Kind.FIFO, xattrs={b"user.%d" % number: bytes(65000) for number in range(130)}), "more than 8388608"),
    ],
    ids=["name of a whiteout", "below a whiteout", "path", "target", "attributes"],
)
def test_what_cannot_be_in_a_layer(entry: Entry, reason: str) -> None:
    """What could not be read again is not written."""
    with pytest.raises(ArchiveError, match=reason):
        packed([(entry, None)])
