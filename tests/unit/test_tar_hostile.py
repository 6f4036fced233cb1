from __future__ import annotations

import io
import pickle
import tracemalloc
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from isolib.errors import ArchiveError
from isolib.unionfs import tar
from isolib.unionfs.entry import Entry, Kind
from isolib.unionfs.pax import parse
from tests import hostile
from tests.hostile import END, directory, extended, member, sparse
from tests.tars import ARCHIVES, file, packed, unpacked

if TYPE_CHECKING:
    from tests.tars import Whole

REFUSED = [case for case in hostile.EVERY if case.refused is not None]
READ = [case for case in hostile.EVERY if case.refused is None]


def test_there_are_many() -> None:
    """Each case has a name of its own."""
    assert len({case.name for case in hostile.EVERY}) == len(hostile.EVERY) > 150


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_refused(case: hostile.Hostile) -> None:
    """An archive that asks for what must not be is refused, and the reason is said."""
    with pytest.raises(ArchiveError) as caught:
        unpacked(case.archive())
    assert case.refused is not None
    assert case.refused in str(caught.value)
    assert str(caught.value).isprintable()
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301  # our own


@pytest.mark.parametrize("case", READ, ids=str)
def test_read(case: hostile.Hostile) -> None:
    """An archive that only unpacking must be careful with is read, and no path in it leads out of the tree."""
    for entry, _ in unpacked(case.archive()):
        for path in (entry.path, *([entry.target] if entry.kind is Kind.HARDLINK else [])):
            assert not path.startswith(b"/")
            assert b".." not in path.split(b"/")


def test_the_error_names_the_entry() -> None:
    """An error says which entry it is about, by the path that is in the archive."""
    with pytest.raises(ArchiveError, match=r"^bad/name: .*no number") as caught:
        unpacked(member(b"good") + member(b"bad/name", uid=b"zzz") + END)
    assert caught.value.entry == "bad/name"
    with pytest.raises(ArchiveError, match=r"^long: .*3 bytes before the end"):
        unpacked(member(b"long", b"12345", size=8)[: 512 + 5])


BROAD = b"".join(
    [
        directory(b"d/"),
        member(b"d/f", b"content" * 100, uid=1),
        extended({b"mtime": b"1.5", b"SCHILY.xattr.user.a": b"b"}),
        member(b"d/g", b"x"),
        member(b"././@LongLink", b"n" * 120 + b"\0", b"L"),
        member(b"n", b"x", magic=b"ustar  \0"),
        sparse([(3, 4), (2000, 5)], 3000, b"123456789"),
        hostile.symlink(b"s", b"d"),
        hostile.hard_link(b"h", b"d/f"),
        member(b"c", kind=b"3", major=1, minor=3),
        member(b"d/.wh.gone"),
        extended({b"uid": b"7"}, b"g"),
        member(b".wh..wh.plnk/1", b"kept"),
        hostile.hard_link(b"k", b".wh..wh.plnk/1"),
        END,
    ]
)


def test_cut_short_anywhere() -> None:
    """An archive that is cut short at any byte is refused; only the second half of its end mark may be missing."""
    whole = unpacked(BROAD)
    assert len(whole) == 10
    for end in range(len(BROAD) - 512 + 1):
        if end == len(BROAD) - 512:
            assert unpacked(BROAD[:end]) == whole
        else:
            with pytest.raises(ArchiveError):
                unpacked(BROAD[:end])


def test_without_an_end_mark() -> None:
    """Where a digest will tell, an archive may stop between two entries, but not in one or before the one that is announced."""
    assert unpacked(BROAD[: -len(END)], unended=True) == unpacked(BROAD)
    assert unpacked(b"", unended=True) == []
    for archive in (member(b"x", b"x")[:-1], member(b"x", b"x")[:512], extended({b"path": b"y"})):
        with pytest.raises(ArchiveError):
            unpacked(archive, unended=True)


def tolerant(archive: bytes) -> None:
    """Read an archive of which nothing is known."""
    with suppress(ArchiveError):
        unpacked(archive, limits=tar.Limits(size=1 << 20), unended=True)


@given(st.binary(max_size=3000))
def test_any_bytes(data: bytes) -> None:
    """Any bytes are read or refused, and nothing else happens."""
    tolerant(data)


@given(st.lists(st.tuples(st.integers(0, len(BROAD) - 1), st.integers(0, 255)), min_size=1, max_size=20))
def test_damaged_without_check_sums(changes: list[tuple[int, int]]) -> None:
    """An archive with some bytes changed is read or refused, also where the check sums are made to fit."""
    damaged = bytearray(BROAD)
    for at, value in changes:
        damaged[at] = value
    tolerant(bytes(damaged))
    for at in range(0, len(damaged), 512):
        if damaged[at + 257 : at + 262] == b"ustar":
            total = sum(damaged[at : at + 148]) + 8 * 32 + sum(damaged[at + 156 : at + 512])
            damaged[at + 148 : at + 156] = b"%06o\0 " % total
    tolerant(bytes(damaged))


FIELDS = st.one_of(st.integers(0, 0o7777777), st.binary(min_size=8, max_size=8))
KEYS = st.sampled_from(
    [
        *(b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime", b"hdrcharset", b"SCHILY.devmajor", b"SCHILY.devminor"),
        *(b"SCHILY.xattr.user.a", b"SCHILY.xattr.trusted.overlay.opaque", b"LIBARCHIVE.xattr.user.%ff", b"SCHILY.realsize"),
        *(b"GNU.sparse.major", b"GNU.sparse.minor", b"GNU.sparse.map", b"GNU.sparse.size", b"GNU.sparse.realsize"),
        *(b"GNU.sparse.numblocks", b"GNU.sparse.offset", b"GNU.sparse.numbytes", b"GNU.sparse.name"),
    ]
)
VALUES = st.one_of(
    st.integers(-3, 3000).map(lambda value: b"%d" % value),
    st.lists(st.integers(0, 600), max_size=6).map(lambda values: b",".join(b"%d" % value for value in values)),
    st.sampled_from([b"y", b"x", b"a/b", b"../a", b".wh.a", b".wh..wh.plnk/a", b"1.5", b"-1", b"AAAA", b"BINARY", b"1e9"]),
    st.binary(max_size=20),
)


@st.composite
def members(draw: st.DrawFn) -> bytes:
    """Draw an entry that means something, or nearly."""
    kind = bytes([draw(st.sampled_from(b"0123456\0xgLKSDV7XZ"))])
    fields: dict[str, Any] = {
        key: draw(FIELDS) for key in draw(st.sets(st.sampled_from(["mode", "uid", "gid", "mtime", "major", "minor"])))
    }
    name = draw(st.sampled_from([b"a", b"a/b", b"a/", b"./", b".wh.a", b".wh..wh..opq", b".wh..wh.plnk/a", b"", b"../a"]))
    if kind in {b"x", b"g", b"X"}:
        content = b"".join(hostile.record(key, value) for key, value in draw(st.lists(st.tuples(KEYS, VALUES), max_size=6)))
    else:
        content = draw(st.one_of(st.binary(max_size=600), VALUES, st.just(b"1\n0\n5\n".ljust(517, b"\0"))))
    magic = draw(st.sampled_from([b"ustar\x0000", b"ustar  \0", b""]))
    rest = draw(st.one_of(st.just(b""), st.binary(max_size=167), st.just(bytes(41) + 4 * b"00000000000 00000000001 ")))
    return member(name, content, kind, link=draw(st.sampled_from([b"", b"a", b"b", b"../c"])), magic=magic, rest=rest, **fields)


@given(st.lists(members(), max_size=8).map(b"".join))
@example(extended({b"size": b"0"}) + member(b"a", b"x" * 600))
def test_nearly_an_archive(data: bytes) -> None:
    """Archives of odd headers in odd orders are read or refused, and nothing else happens."""
    tolerant(data)
    tolerant(data + END)


@given(st.binary(max_size=200))
@example(b"9 a=\n")
def test_any_records(data: bytes) -> None:
    """Any bytes are records or refused."""
    try:
        records = parse(data)
    except ArchiveError:
        return
    assert records.values or records.extents or not data


@given(ARCHIVES, st.integers(0, 3000))
def test_limit_of_size(pieces: list[Whole], size: int) -> None:
    """What an archive has in its contents is within the limit, or it is refused."""
    contents = sum(len(data) for _, data in pieces if data is not None)
    try:
        read = unpacked(packed(pieces), limits=tar.Limits(size=size))
    except ArchiveError as error:
        assert "more than the limit" in str(error)  # noqa: PT017  # it need not be raised
    else:
        assert read == pieces
        assert contents <= size


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (tar.Limits(entries=2), "more entries than the limit of 2"),
        (tar.Limits(depth=2), "more names than the limit of 2"),
        (tar.Limits(path=4), "longer than the limit of 4 bytes"),
        (tar.Limits(size=2), "more than the limit of 2 bytes"),
    ],
)
def test_limits(limits: tar.Limits, reason: str) -> None:
    """Each limit holds what is just within it, and refuses what is just beyond."""
    assert len(unpacked(packed([file(b"a/b", b"xx"), (Entry(b"a/c", Kind.FIFO), None)]), limits=limits)) == 2
    with pytest.raises(ArchiveError, match=reason):
        unpacked(
            packed([file(b"a/b/c", b"xxx"), (Entry(b"a/c", Kind.FIFO), None), (Entry(b"d", Kind.FIFO), None)]), limits=limits
        )


def test_extended_headers_count() -> None:
    """Extended headers count as size, with their own blocks: a small archive may hold many that expand to nothing."""
    archive = packed([(Entry(b"f", Kind.FIFO, mtime=1), None)])
    assert len(unpacked(archive, limits=tar.Limits(size=1024))) == 1
    with pytest.raises(ArchiveError, match="more than the limit of 1023 bytes"):
        unpacked(archive, limits=tar.Limits(size=1023))


class Endless:
    """A stream that begins with an archive's beginning, and never ends."""

    def __init__(self, head: bytes, more: bytes) -> None:
        self._head = io.BytesIO(head)
        self._more = more

    def read(self, size: int, /) -> bytes:
        """Return the next bytes."""
        return self._head.read(size) or (self._more * (size // len(self._more) + 1))[:size]


def read_in_parts(stream: Endless) -> None:
    """Read an archive, and keep nothing."""
    for _, content in tar.read(stream, limits=tar.Limits(size=64 << 20, entries=50_000)):
        while content is not None and content.read(1 << 20):
            pass


@pytest.mark.parametrize(
    ("head", "more"),
    [
        (member(b"x", size=hostile.binary(1 << 40, 12)), b"x"),
        (sparse([(0, 1)], 1 << 40, b"x"), b"x"),
        (member(b"x") + END, bytes(512)),
        (member(b"x") + END, b"junk"),
        (b"", extended({b"comment": bytes(1 << 19)}) + member(b"x")),
        (b"", extended({b"comment": b"x"}, b"g")),
        (b"", member(b"x", b"x" * 1000)),
        (extended({b"GNU.sparse.major": b"1", b"GNU.sparse.realsize": b"1"}) + member(b"x", size=1 << 30), b"1\n" * 256),
        (
            member(b"x", b"", b"S", rest=bytes(41) + 4 * b"00000000000 00000000001 " + b"\1" + b"00000000001"),
            b"0 \0" + b"1" * 509,
        ),
    ],
    ids=["content", "holes", "zeros at the end", "junk at the end", "headers", "global headers", "entries", "map", "old map"],
)
def test_bombs(head: bytes, more: bytes) -> None:
    """An archive that never ends is refused at its limits, and takes no more memory than a fixed amount."""
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveError):
            read_in_parts(Endless(head, more))
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()


def test_a_content_is_never_whole_in_memory() -> None:
    """A content is read piece by piece, as the reader of it asks, also where it is one hole."""
    holes = sparse([(0, 1)], 1 << 40, b"x")
    _, content = next(iter(tar.read(io.BytesIO(holes + END), limits=tar.Limits(size=1 << 41))))
    assert content is not None
    assert content.read(1 << 30) == b"x"
    assert max(len(content.read(1 << 30)) for _ in islice(iter(int, 1), 10)) <= 1 << 20
