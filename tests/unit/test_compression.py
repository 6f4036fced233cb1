from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import subprocess
import sys
import tracemalloc
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolib.errors import ArchiveError, ClosedError, PlanError, Unsupported
from isolib.unionfs.archive.compression import Compression, new_compressor, of_media_type, open_compressed
from tests.tars import Dribble

if TYPE_CHECKING:
    from collections.abc import Mapping

TEXT = b"".join(b"line %d of a text\n" % number for number in range(20_000))


def has_zstd() -> bool:
    """Return whether this Python has zstd."""
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd  # noqa: PLC0415  # it may be missing
        else:
            from backports import zstd  # noqa: PLC0415  # so may this
    except ImportError:
        return False
    return bool(zstd.zstd_version)


needs_zstd = pytest.mark.skipif(not has_zstd(), reason="this Python has no zstd")
WRITTEN = [Compression.NONE, Compression.GZIP, pytest.param(Compression.ZSTD, marks=needs_zstd)]


def compressed(data: bytes, compression: Compression, level: int | None = None) -> bytes:
    """Return data compressed by isolib."""
    sink = io.BytesIO()
    with new_compressor(sink, compression, level=level) as compressor:
        for at in range(0, len(data), 10_000):
            assert compressor.write(data[at : at + 10_000]) == len(data[at : at + 10_000])
    return sink.getvalue()


def by_others(data: bytes, compression: Compression) -> bytes:
    """Return data compressed by others."""
    match compression:
        case Compression.NONE:
            return data
        case Compression.GZIP:
            return gzip.compress(data)
        case Compression.BZIP2:
            return bz2.compress(data)
        case Compression.XZ:
            return lzma.compress(data)
        case Compression.ZSTD:
            return compressed(data, compression)


def expanded(packed: bytes, *, limit: int | None = None, most: int = 1 << 30, size: int = 4096) -> bytes:
    """Return what a stream has in it."""
    stream = open_compressed(Dribble(packed, most), limit=limit)
    parts = list(iter(lambda: stream.read(size), b""))
    assert max(map(len, parts), default=0) <= size
    return b"".join(parts)


READ = [pytest.param(kind, marks=needs_zstd if kind is Compression.ZSTD else ()) for kind in Compression]
PACKED = [kind for kind in READ if kind.values[0] is not Compression.NONE]


@pytest.mark.parametrize("compression", READ)
def test_told_by_the_first_bytes(compression: Compression) -> None:
    """What a stream is compressed with is told by its beginning, and it is expanded."""
    packed = by_others(TEXT, compression)
    assert open_compressed(io.BytesIO(packed)).compression is compression
    assert expanded(packed) == TEXT
    assert expanded(packed, most=1, size=1 << 20) == TEXT


@pytest.mark.parametrize("compression", WRITTEN)
@given(data=st.binary(max_size=5000))
def test_what_is_compressed_is_expanded(compression: Compression, data: bytes) -> None:
    """Whatever is compressed is expanded to the same."""
    packed = compressed(data, compression)
    if compression is not Compression.NONE:
        assert open_compressed(io.BytesIO(packed)).compression is compression
        assert expanded(packed) == data


@pytest.mark.parametrize("compression", WRITTEN)
def test_the_same_each_time(compression: Compression) -> None:
    """The same bytes are compressed to the same bytes, without the time, and smaller with more effort."""
    assert compressed(TEXT, compression) == compressed(TEXT, compression)
    if compression is not Compression.NONE:
        assert len(compressed(TEXT, compression, 9)) < len(compressed(TEXT, compression, 1))
    if compression is Compression.GZIP:
        assert compressed(TEXT, compression)[:8] == b"\x1f\x8b\x08\0\0\0\0\0"


@pytest.mark.parametrize(
    ("compression", "tool"), [(Compression.GZIP, "gzip"), pytest.param(Compression.ZSTD, "zstd", marks=needs_zstd)]
)
def test_the_tools_agree(compression: Compression, tool: str) -> None:
    """The usual tools expand what is written, and what they write is expanded, in several members too."""
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    assert subprocess.run([tool, "-dc"], input=compressed(TEXT, compression), stdout=subprocess.PIPE, check=True).stdout == TEXT
    packed = subprocess.run([tool, "-c"], input=TEXT, stdout=subprocess.PIPE, check=True).stdout
    assert expanded(packed + packed) == TEXT + TEXT


@pytest.mark.parametrize("compression", PACKED)
@pytest.mark.parametrize("most", [1 << 30, 100])
def test_several_members(compression: Compression, most: int) -> None:
    """Members in a row are one stream, as when files are concatenated; an empty one adds nothing."""
    one, none = by_others(TEXT[:3000], compression), by_others(b"", compression)
    assert expanded(one + none + one, most=most) == 2 * TEXT[:3000]


@pytest.mark.parametrize("compression", PACKED)
def test_zeros_after_the_end(compression: Compression) -> None:
    """Zeros that fill up a block after the end are nothing, and anything else there is refused."""
    packed = by_others(TEXT[:3000], compression)
    assert expanded(packed + bytes(200_000)) == TEXT[:3000]
    with pytest.raises(ArchiveError, match=r"damaged|cut short"):
        expanded(packed + b"junk" * 10)


@pytest.mark.parametrize("compression", PACKED)
def test_cut_short_anywhere(compression: Compression) -> None:
    """A stream that is cut short at any byte is refused, as soon as it can be told to be one."""
    packed = by_others(TEXT[:500], compression)
    for end in range(6, len(packed)):
        with pytest.raises(ArchiveError):
            expanded(packed[:end])


@pytest.mark.parametrize("compression", PACKED)
def test_damaged(compression: Compression) -> None:
    """A stream with another byte is refused, or has what it had where the byte has no meaning: its time, its system."""
    packed = by_others(TEXT[:500], compression)
    refused = 0
    for at in range(6, len(packed)):
        try:
            data = expanded(packed[:at] + bytes([packed[at] ^ 0x55]) + packed[at + 1 :])
        except ArchiveError:
            refused += 1
        else:
            assert data == TEXT[:500]
    assert refused >= len(packed) - 20


@pytest.mark.parametrize("magic", [b"\x1f\x8b", b"BZh9", b"\xfd7zXZ\0", pytest.param(b"\x28\xb5\x2f\xfd", marks=needs_zstd)])
@given(data=st.binary(max_size=300))
def test_any_bytes(magic: bytes, data: bytes) -> None:
    """Any bytes after the beginning of a format are expanded or refused, and nothing else happens."""
    try:
        expanded(magic + data, limit=1 << 20)
    except ArchiveError as error:
        assert str(error)  # noqa: PT017  # it need not be raised


@pytest.mark.parametrize("compression", READ)
def test_limit(compression: Compression) -> None:
    """With a limit, what is just within it is read, and one byte more is refused."""
    packed = by_others(TEXT, compression)
    assert expanded(packed, limit=len(TEXT)) == TEXT
    with pytest.raises(ArchiveError, match=f"more than the limit of {len(TEXT) - 1} bytes"):
        expanded(packed, limit=len(TEXT) - 1)


BOMBS: Mapping[Compression, bytes] = {
    Compression.GZIP: gzip.compress(bytes(64 << 20)),
    Compression.BZIP2: bz2.compress(bytes(64 << 20)),
    Compression.XZ: lzma.compress(bytes(64 << 20)),
}


@pytest.mark.parametrize("compression", BOMBS)
def test_bombs(compression: Compression) -> None:
    """Of what expands to a thousand times its size, no more is in memory than is asked for."""
    tracemalloc.start()
    try:
        stream = open_compressed(io.BytesIO(BOMBS[compression]))
        size = 0
        while data := stream.read(1000):
            size += len(data)
            if size > 1 << 20:
                break
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


@needs_zstd
def test_windows_of_zstd() -> None:
    """A zstd stream that asks for more memory than usual is refused, and frames that are to be skipped are skipped."""
    # Frame_Header_Descriptor 0: a window follows, here of 2**(10 + 21) bytes.
    with pytest.raises(ArchiveError, match=r"zstd: .*too much memory"):
        expanded(b"\x28\xb5\x2f\xfd\0" + bytes([21 << 3]) + b"\x01\0\0")
    skipped = b"\x53\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"a tag"
    assert expanded(skipped + compressed(b"abc", Compression.ZSTD)) == b"abc"


def test_memory_of_xz() -> None:
    """An xz stream that asks for more memory than usual is refused."""
    packed = bytearray(lzma.compress(b"abc", filters=[{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 20}]))
    # The size of the dictionary is one byte of the block's header; the check sum of that follows.
    at = packed.index(0x21, 12) + 2
    packed[at] = 38
    packed[20:24] = zlib.crc32(packed[12:20]).to_bytes(4, "little")
    with pytest.raises(ArchiveError, match="xz: Memory usage limit"):
        expanded(bytes(packed))


def test_short_streams() -> None:
    """Streams that are shorter than the beginning of any format are what they are."""
    for data in (b"", b"B", b"\x1f", b"plain"):
        assert expanded(data) == data
    assert open_compressed(io.BytesIO(TEXT)).read(0) == b""


@pytest.mark.parametrize(
    ("media_type", "compression"),
    [
        ("application/vnd.oci.image.layer.v1.tar", Compression.NONE),
        ("application/vnd.oci.image.layer.v1.tar+gzip", Compression.GZIP),
        ("application/vnd.oci.image.layer.v1.tar+zstd", Compression.ZSTD),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", Compression.GZIP),
        ("application/vnd.docker.image.rootfs.diff.tar", Compression.NONE),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", Compression.GZIP),
        ("application/vnd.docker.image.rootfs.diff.tar.zstd", Compression.ZSTD),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Compression.GZIP),
    ],
)
def test_media_types(media_type: str, compression: Compression) -> None:
    """The media types of layers, of OCI and of Docker, say how they are compressed."""
    assert of_media_type(media_type) is compression


@pytest.mark.parametrize(
    "media_type", ["", "application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.layer.v1.tar+br"]
)
def test_unknown_media_types(media_type: str) -> None:
    """Other media types are refused."""
    with pytest.raises(ArchiveError, match="not the media type of a layer"):
        of_media_type(media_type)


@pytest.mark.parametrize(
    ("compression", "level"),
    [(Compression.GZIP, 10), (Compression.GZIP, -1), (Compression.ZSTD, 23), (Compression.ZSTD, 0), (Compression.XZ, None)],
)
def test_what_layers_cannot_be(compression: Compression, level: int | None) -> None:
    """Layers are compressed with gzip or zstd, at a level that these have."""
    with pytest.raises(PlanError):
        new_compressor(io.BytesIO(), compression, level=level)


def test_after_the_end() -> None:
    """A stream that has been ended takes nothing more, and one whose block fails is not ended."""
    sink = io.BytesIO()
    compressor = new_compressor(sink, Compression.GZIP)
    compressor.write(b"abc")
    compressor.finish()
    with pytest.raises(ClosedError):
        compressor.write(b"d")
    failing = io.BytesIO()
    with suppress(KeyError), new_compressor(failing, Compression.GZIP) as compressor:
        compressor.write(b"abc")
        raise KeyError
    with pytest.raises(ArchiveError):
        expanded(failing.getvalue() or b"\x1f\x8b")


@pytest.mark.skipif(has_zstd(), reason="this Python has zstd")
def test_without_zstd() -> None:
    """Where Python has no zstd, both ways say so, and how to get it."""
    with pytest.raises(Unsupported, match="zstd"):
        open_compressed(io.BytesIO(b"\x28\xb5\x2f\xfd" + bytes(10)))
    with pytest.raises(Unsupported, match="zstd"):
        new_compressor(io.BytesIO(), Compression.ZSTD)
