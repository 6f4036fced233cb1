from __future__ import annotations

import hashlib
import io
import os
import zlib
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from isolib.errors import ArchiveError
from isolib.unionfs.archive import tar
from isolib.unionfs.archive.recipe import Recorder, replay
from isolib.unionfs.archive.streams import DigestReader, DigestWriter, chain_id
from isolib.unionfs.entry import Entry, Kind
from tests import hostile
from tests.hostile import END, directory, hard_link, member, sparse, symlink
from tests.tars import ARCHIVES, file, packed, unpacked

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from tests.tars import Whole


def noise(size: int, seed: int = 0) -> bytes:
    """Return bytes that cannot be compressed."""
    return hashlib.shake_256(b"%d" % seed).digest(size)


def recorded(archive: bytes, keep: Collection[int] = ()) -> tuple[bytes, Recorder, list[Whole]]:
    """Read an archive, and return its recipe, what made it, and what is in the archive."""
    sink = io.BytesIO()
    recorder = Recorder(sink, keep=keep)
    pieces = unpacked(archive, record=recorder)
    recorder.finish()
    assert recorder.size == len(archive)
    return sink.getvalue(), recorder, pieces


def remade(recipe: bytes, contents: Mapping[bytes, bytes]) -> bytes:
    """Make an archive again from the contents of files by their paths."""
    return b"".join(replay(io.BytesIO(recipe), lambda path: io.BytesIO(contents[path])))


def tree(pieces: Sequence[Whole], *, whiteouts: bool) -> dict[bytes, bytes]:
    """Return the files that there are when an archive has been unpacked; whiteouts may take away what it has itself."""
    found: dict[bytes, bytes] = {}
    for entry, data in pieces:
        path, kind = entry.path, entry.kind
        parents = {path[:at] for at, byte in enumerate(path) if byte == ord("/")}
        gone = parents & set(found)
        if kind in {Kind.FILE, Kind.SYMLINK, Kind.FIFO, Kind.HARDLINK} or (kind is Kind.WHITEOUT and whiteouts):
            gone |= {other for other in found if other == path or other.startswith(path + b"/")}
        elif kind is Kind.DIRECTORY:
            gone |= {path} & set(found)
        linked = found.get(entry.target)
        for other in gone:
            del found[other]
        if kind is Kind.FILE:
            assert data is not None
            found[path] = data
        elif kind is Kind.HARDLINK and linked is not None:
            found[path] = linked
    return found


@given(ARCHIVES)
def test_of_what_is_written(pieces: list[Whole]) -> None:
    """The recipe that is made while a layer is written makes the layer again, to the byte."""
    unique = list({entry.path: (entry, data) for entry, data in pieces}.values())
    sink = io.BytesIO()
    archive = packed(unique, record=Recorder(sink))
    assert remade(sink.getvalue(), tree(unique, whiteouts=False)) == archive


FEW = st.sampled_from([b"a", b"b", b"a/b", b"a/b/c", b"a/d"])
MEMBERS = st.one_of(
    st.builds(member, FEW, st.binary(min_size=1, max_size=700)),
    st.builds(member, FEW, st.binary(min_size=1, max_size=700)),
    st.builds(directory, FEW),
    st.builds(symlink, FEW, st.just(b"x")),
    st.builds(lambda path: member(b"/".join([*path.split(b"/")[:-1], b".wh." + path.split(b"/")[-1]]), b"x" * 9), FEW),
    st.builds(hard_link, st.just(b"h"), FEW),
)


@given(st.lists(MEMBERS, max_size=9).map(b"".join), st.booleans())
def test_of_what_is_read(archive: bytes, whiteouts: bool) -> None:  # noqa: FBT001  # drawn
    """What one entry brings and a later one takes away is told, and when it is kept, the archive can be made again."""
    archive += END
    recipe, recorder, pieces = recorded(archive)
    if recorder.lost:
        recipe, recorder, again = recorded(archive, keep=recorder.lost)
        assert again == pieces
        assert not recorder.lost
    assert remade(recipe, tree(pieces, whiteouts=whiteouts)) == archive


@pytest.mark.parametrize("case", [case for case in hostile.EVERY if case.refused is None], ids=str)
def test_of_hostile_archives(case: hostile.Hostile) -> None:
    """Of an archive that is odd but read, a recipe is made that has every byte that no file will have."""
    archive = case.archive()
    recipe, recorder, pieces = recorded(archive)
    recipe, recorder, _ = recorded(archive, keep=recorder.lost)
    assert not recorder.lost
    assert remade(recipe, tree(pieces, whiteouts=False)) == archive


def test_what_is_lost() -> None:
    """Contents are numbered in the order of the archive; lost are those that are replaced, or whose directory is."""
    archive = b"".join([member(b"a", b"0"), member(b"empty"), member(b"d/b", b"1"), member(b"d/c", b"2"), member(b"a", b"3")])
    assert recorded(archive + END)[1].lost == {0}
    assert recorded(archive + directory(b"d") + END)[1].lost == {0}
    assert recorded(archive + symlink(b"d", b"x") + END)[1].lost == {0, 1, 2}
    assert recorded(archive + member(b"a/x", b"4") + END)[1].lost == {0, 3}
    assert recorded(archive + END, keep={0})[1].lost == set()


def test_the_price() -> None:
    """A recipe has none of the contents, and takes a few bytes for each file."""
    pieces = [file(b"usr/share/doc/package-%d/copyright" % number, noise(2000, number)) for number in range(500)]
    sink = io.BytesIO()
    packed(pieces, record=Recorder(sink))
    assert len(sink.getvalue()) < 30 * len(pieces)


def test_contents_are_read_where_they_lie() -> None:
    """Sparse files, and contents of whiteouts and of aufs's books, are in the recipe; of other files only where they are."""
    secret = noise(5000)
    archive = sparse([(10, 5)], 100, b"12345") + member(b".wh.x", b"whited out") + member(b"f", secret) + END
    recipe = recorded(archive)[0]
    asked: list[bytes] = []

    def opened(path: bytes) -> io.BytesIO:
        asked.append(path)
        return io.BytesIO(secret)

    assert b"".join(replay(io.BytesIO(recipe), opened)) == archive
    assert asked == [b"f"]
    assert len(recipe) < 1000


def test_contents_are_closed() -> None:
    """What is opened is closed, also when the replay is given up or fails."""
    archive = packed([file(b"f", b"content")])
    recipe = recorded(archive)[0]
    opened: list[io.BytesIO] = []

    def opener(data: bytes) -> io.BytesIO:
        opened.append(io.BytesIO(data))
        return opened[-1]

    replaying = replay(io.BytesIO(recipe), lambda _: opener(b"content"))
    assert next(replaying)[:1] == b"f"
    assert next(replaying) == b"content"
    replaying.close()
    assert opened.pop().closed
    for wrong in (b"conten", b"content!"):
        with pytest.raises(ArchiveError, match=r"^f: has"):
            list(replay(io.BytesIO(recipe), lambda _, wrong=wrong: opener(wrong)))  # type: ignore[misc]
        assert opened.pop().closed


def test_large_contents_come_in_parts() -> None:
    """A replay never has more than 1 MiB of anything at once, also of what the recipe itself has."""
    big = noise(3 << 20)
    archive = packed([file(b"f", big), file(b"f", b"x"), file(b"g", big)])
    recipe, recorder, _ = recorded(archive, keep={0})
    assert not recorder.lost
    parts = list(replay(io.BytesIO(recipe), lambda path: io.BytesIO({b"f": b"x", b"g": big}[path])))
    assert b"".join(parts) == archive
    assert max(map(len, parts)) <= 1 << 20


RECIPE = recorded(packed([file(b"d/f", b"content"), file(b"g", bytes(5000)), (Entry(b"h", Kind.WHITEOUT), None)]))[0]
CONTENTS = {b"d/f": b"content", b"g": bytes(5000)}


def test_cut_short_anywhere() -> None:
    """A recipe that is cut short at any byte, or goes on, is refused."""
    assert remade(RECIPE, CONTENTS)
    for end in range(len(RECIPE)):
        with pytest.raises(ArchiveError):
            remade(RECIPE[:end], CONTENTS)
    with pytest.raises(ArchiveError, match="does not end"):
        remade(RECIPE + b"x", CONTENTS)


def test_another_version() -> None:
    """A recipe of another version says so."""
    with pytest.raises(ArchiveError, match=r"version.*isolib recipe 2"):
        remade(RECIPE.replace(b"recipe 1", b"recipe 2"), CONTENTS)


@given(st.integers(16, len(RECIPE) - 1), st.integers(0, 255))
def test_damaged(at: int, value: int) -> None:
    """A recipe with another byte anywhere is refused: nothing that it makes of it passes for the archive."""
    assume(RECIPE[at] != value)
    with pytest.raises(ArchiveError):
        list(replay(io.BytesIO(RECIPE[:at] + bytes([value]) + RECIPE[at + 1 :]), lambda _: io.BytesIO(b"x")))


@given(st.binary(max_size=200))
def test_any_records(data: bytes) -> None:
    """Any records are replayed or refused, and nothing else happens."""
    with suppress(ArchiveError):
        list(replay(io.BytesIO(b"isolib recipe 1\n" + zlib.compress(data)), lambda _: io.BytesIO(b"x")))


@pytest.mark.parametrize(
    "data",
    [
        b"r" + (1 << 40).to_bytes(8, "little"),
        b"c" + (1).to_bytes(8, "little") + b"\xff\xff" + b"short",
        b"e" + (7).to_bytes(8, "little"),
        b"?" + bytes(8),
        b"e" + bytes(8) + b"more",
    ],
    ids=["a terabyte", "a path that is not there", "a wrong sum", "an unknown record", "more after the end"],
)
def test_records_that_cannot_be(data: bytes) -> None:
    """Records that contradict themselves are refused before anything is made of them."""
    with pytest.raises(ArchiveError):
        list(replay(io.BytesIO(b"isolib recipe 1\n" + zlib.compress(data)), lambda _: io.BytesIO(b"x")))


def test_from_descriptors(tmp_path: os.PathLike[str]) -> None:
    """Contents may come from files on disk, and the digest of what is made is that of the archive."""
    pieces = [file(b"f%d" % number, os.urandom(number * 1000)) for number in range(5)]
    for entry, data in pieces:
        assert data is not None
        with open(os.path.join(os.fsencode(tmp_path), entry.path), "xb") as stream:
            stream.write(data)
    archive = packed([(replace(entry, xattrs={b"user.a": b"b"}), data) for entry, data in pieces])
    recipe = recorded(archive)[0]
    writer = DigestWriter()
    for part in replay(io.BytesIO(recipe), lambda path: open(os.path.join(os.fsencode(tmp_path), path), "rb")):  # noqa: SIM115  # replay closes it
        writer.write(part)
    assert writer.digest == f"sha256:{hashlib.sha256(archive).hexdigest()}"
    assert writer.size == len(archive)


def test_digests_while_reading() -> None:
    """A digest that is taken while an archive is read is that of all of it, whatever of it was wanted."""
    archive = packed([file(b"f", bytes(5000)), file(b"g", b"g")]) + bytes(9000)
    reader = DigestReader(io.BytesIO(archive))
    assert [entry.path for entry, _ in tar.read(reader)] == [b"f", b"g"]
    expected = f"sha256:{hashlib.sha256(archive).hexdigest()}"
    assert (reader.digest, reader.size) == (expected, len(archive))
    reader.expect(expected)
    with pytest.raises(ArchiveError, match=f"the digest of its {len(archive)} bytes is {expected}"):
        reader.expect("sha256:" + "0" * 64)
    unread = DigestReader(io.BytesIO(archive))
    unread.expect(expected)


def test_digests_pass_on() -> None:
    """What a digest is taken of goes on to where it was to go."""
    sink = io.BytesIO()
    writer = DigestWriter(sink)
    assert [writer.write(b"ab"), writer.write(b"c")] == [2, 1]
    assert sink.getvalue() == b"abc"
    assert writer.digest == f"sha256:{hashlib.sha256(b'abc').hexdigest()}"


def test_chain_ids() -> None:
    """A chain id is that of the OCI specification: the digest of the one below, a space, and the layer's own."""
    first, second, third = (f"sha256:{digit * 64}" for digit in "abc")
    assert chain_id(None, first) == first
    both = f"sha256:{hashlib.sha256(f'{first} {second}'.encode()).hexdigest()}"
    assert chain_id(first, second) == both
    assert chain_id(both, third) == f"sha256:{hashlib.sha256(f'{both} {third}'.encode()).hexdigest()}"
