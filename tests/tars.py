"""Archives in tests: read and written in memory, and entries of every kind for hypothesis."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final, TypeAlias

from hypothesis import strategies as st

from isolib.unionfs.archive import tar
from isolib.unionfs.entry import Entry, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from isolib.unionfs.archive.recipe import Recorder

#: An entry, and the whole content of a file.
Whole: TypeAlias = tuple[Entry, bytes | None]

SECOND: Final = 1_000_000_000


class Dribble:
    """A stream that returns a few bytes at a time, as a socket may."""

    def __init__(self, data: bytes, most: int) -> None:
        self._stream = io.BytesIO(data)
        self._most = most

    def read(self, size: int, /) -> bytes:
        """Return the next bytes."""
        return self._stream.read(min(size, self._most))


def unpacked(
    archive: bytes,
    *,
    limits: tar.Limits | None = None,
    record: Recorder | None = None,
    unended: bool = False,
    most: int = 1 << 30,
) -> list[Whole]:
    """Read an archive, contents and all."""
    stream = Dribble(archive, most)
    pieces = tar.read(stream, limits=limits or tar.Limits(), record=record, unended=unended)
    return [(entry, None if content is None else content.read()) for entry, content in pieces]


def packed(pieces: Iterable[Whole], *, mtime_limit: int | None = None, record: Recorder | None = None) -> bytes:
    """Write an archive."""
    sink = io.BytesIO()
    whole = ((entry, None if data is None else io.BytesIO(data)) for entry, data in pieces)
    size = tar.write(whole, sink, mtime_limit=mtime_limit, record=record)
    assert size == len(sink.getvalue())
    return sink.getvalue()


def file(path: bytes, data: bytes = b"") -> Whole:
    """Return a file."""
    return Entry(path, Kind.FILE, size=len(data)), data


def _is_name(name: bytes) -> bool:
    return name not in {b".", b".."} and not name.startswith(b".wh.")


_BYTES: Final = st.integers(1, 255).filter(lambda byte: byte != ord("/"))
NAMES: Final = st.one_of(
    st.from_regex(rb"[a-z][a-z0-9._-]{0,30}", fullmatch=True),
    st.lists(_BYTES, min_size=1, max_size=255).map(bytes),
    st.integers(90, 255).map(lambda size: b"n" * size),
).filter(_is_name)
PATHS: Final = st.lists(NAMES, min_size=1, max_size=8).map(b"/".join)
XATTRS: Final = st.dictionaries(
    st.builds(
        lambda space, name: space + bytes(name),
        st.sampled_from([b"user.", b"security.", b"trusted.", b"system."]),
        st.lists(st.integers(1, 255), min_size=1, max_size=200),
    ).filter(lambda name: b"overlay" not in name),
    st.one_of(st.binary(max_size=100), st.sampled_from([b"", bytes(65536)])),
    max_size=3,
)
_IDS: Final = st.one_of(st.integers(0, 70_000), st.integers(0, (1 << 32) - 2))
_TIMES: Final = st.one_of(
    st.integers(0, 1 << 33).map(lambda seconds: seconds * SECOND), st.integers(-(1 << 40) * SECOND, (1 << 40) * SECOND)
)


@st.composite
def wholes(draw: st.DrawFn) -> Whole:
    """Draw an entry of any kind, with its content."""
    kind = draw(st.sampled_from(Kind))
    path = draw(PATHS)
    if kind is Kind.WHITEOUT:
        return Entry(path, kind), None
    if kind is Kind.OPAQUE:
        return Entry(draw(st.sampled_from([b"", path])), kind), None
    data = draw(st.binary(max_size=1500)) if kind is Kind.FILE else None
    if kind is Kind.DIRECTORY:
        path = draw(st.sampled_from([b"", path]))
    target = b""
    if kind is Kind.SYMLINK:
        target = draw(st.lists(st.integers(1, 255), min_size=1, max_size=300).map(bytes))
    elif kind is Kind.HARDLINK:
        target = draw(PATHS.filter(lambda other: other != path))
    device = (0, 0)
    if kind in {Kind.CHARACTER, Kind.BLOCK}:
        device = draw(st.tuples(st.integers(1, (1 << 12) - 1), st.integers(0, (1 << 20) - 1)))
    entry = Entry(
        path,
        kind,
        mode=draw(st.integers(0, 0o7777)),
        uid=draw(_IDS),
        gid=draw(_IDS),
        mtime=draw(_TIMES),
        size=len(data or b""),
        target=target,
        device=device,
        xattrs=draw(XATTRS),
        opaque=kind is Kind.DIRECTORY and draw(st.booleans()),
    )
    return entry, data


def told_apart(pieces: Sequence[Whole]) -> list[Whole]:
    """Return pieces without the opaque marks that come right after their directories, for they are read as one."""
    kept: list[Whole] = []
    for piece in pieces:
        entry = piece[0]
        if entry.kind is Kind.OPAQUE and kept and kept[-1][0].path == entry.path:
            continue
        kept.append(piece)
    return kept


ARCHIVES: Final = st.lists(wholes(), max_size=6).map(told_apart)
